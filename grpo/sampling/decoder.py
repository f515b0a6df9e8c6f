"""One decode of all rows, and who computes it: the model's own layers, or products fused for few rows.

A decoder turns each row's next token into the hidden state that the policy's head takes. It reads and writes the
cache; it knows nothing of draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from grpo.policy import Policy
from grpo.sampling.cache import SlotCache
from grpo.sampling.prefixes import attending, takes_attention

Masks = Tensor | Mapping[str, Tensor]
"""What is added to the scores of each row's query, [R, 1, 1, W]: of every layer, or by the type of a layer."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A decode: one token a row, which the cache already knows the place of (`SlotCache.write_at`)."""

    token_ids: Tensor  # [R]
    position_ids: Tensor  # [R]
    steer_at: Tensor | None  # [R] bool; None where nothing is steered
    masks: Masks
    cache: SlotCache


class Decoder(Protocol):
    """What computes a decode."""

    what: str
    """In a few words, for people to read."""

    def load_weights(self, policy: Policy) -> None:
        """Decode with this policy's weights as they stand."""

    def hidden(self, inputs: Inputs) -> Tensor:
        """Final hidden states [R, D]; keys and values of the tokens are written to the cache."""


class ModelDecoder:
    """The model's own layers, of any architecture."""

    what = "the model's own layers"

    def __init__(self, policy: Policy, *, on_gpu: bool = False) -> None:
        """`on_gpu`: keys are read by a kernel of GPUs, where the model's attention can be replaced."""
        self._policy = policy
        self._on_gpu = on_gpu and takes_attention(policy)

    def load_weights(self, policy: Policy) -> None:
        """A reference: nothing is copied."""
        self._policy = policy

    def hidden(self, inputs: Inputs) -> Tensor:
        """As `Decoder.hidden`."""
        with attending(self._policy, inputs.cache.banks, on_gpu=self._on_gpu):
            return self._policy.hidden(
                inputs.token_ids.unsqueeze(1),
                position_ids=inputs.position_ids.unsqueeze(1),
                attention_mask=inputs.masks if isinstance(inputs.masks, Tensor) else dict(inputs.masks),
                cache=inputs.cache,
                steer_at=None if inputs.steer_at is None else inputs.steer_at.unsqueeze(1),
            )[:, 0]
