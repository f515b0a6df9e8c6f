"""Vectors folded into a model's weights, for an engine that knows no hooks: a bias that a block adds at its end.

Adding α·v to that bias is steering at all positions, and nothing else: where sampling is steered at the positions that
choose, the prompt before its last token is not. A norm after the last bias of a block changes what is added, and where
a block has none there is nothing to add to; both are refused, by trying it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo.errors import ConfigError
from grpo.model import base_of
from grpo.persona.vectors import PersonaVectors, load
from grpo.steering import captured, check_vectors, decoder_blocks

TOLERANCE = 1e-4
"""Share of the output's largest element by which it may differ from what steering gives: float32 rounding."""
TRIED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Fold:
    """What is to be folded in: coefficient · v at the output of one block."""

    vectors: PersonaVectors
    block: int
    coefficient: float

    @property
    def said(self) -> str:
        """What was done, and what it is not, for people to read."""
        return (
            f"{self.coefficient:g} times the vector of {self.vectors.origin.trait} is in a bias of block {self.block}: "
            "it steers every position, as positions: all does, and so reads a prompt otherwise than positions: choosing"
        )

    def into(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with the vector in it; another object where biases had to be switched on.

        Raises ConfigError where the vector does not fit, and where the architecture cannot hold it, with the reason."""
        name = type(model).__name__
        steered = {self.block: self.vectors.vectors([self.block])[self.block]}
        try:
            check_vectors(steered, decoder_blocks(model), hidden_size=_text(model).hidden_size, what="--steer")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        model = with_biases(model)
        biases = _biases(decoder_blocks(model)[self.block], width=len(steered[self.block]))
        with _in_float32(model):
            bias = next((p for p in biases.values() if _is_added_at_the_end(model, p, block=self.block)), None)
        if bias is None:
            why = (
                f"none of its biases ({', '.join(biases)}) reaches the block's output as it is"
                if biases
                else "its blocks have no bias"
            )
            raise ConfigError(
                f"--steer: block {self.block} of {name} cannot hold the vector: {why}; export without --steer, and "
                "steer while sampling (`grpo talk --steer`)"
            )
        with torch.no_grad():
            bias.add_((self.coefficient * steered[self.block]).to(bias))
        return model


def fold_of(path: Path, *, coefficient: float | None, block: int | None) -> Fold:
    """What `grpo export --steer` asks for; None takes what the file recommends.

    Raises DataError for a file of something else, ConfigError for a block that it has not, and for a coefficient that
    neither the command nor the file names, or is 0."""
    vectors = load(path)
    value = vectors.recommended_coefficient if coefficient is None else coefficient
    if value is None:
        raise ConfigError(f"--coefficient: {path} recommends none (`grpo persona sweep` makes it); name one")
    if value == 0:
        raise ConfigError("--coefficient 0: adds nothing; leave out --steer, or name another one")
    chosen = vectors.default_block if block is None else block
    vectors.vectors([chosen])  # which refuses a block that is not there
    return Fold(vectors, block=chosen, coefficient=value)


def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """The model with biases of zero in its MLPs, where its config knows the switch `mlp_bias` and it is off."""
    if getattr(model.config, "mlp_bias", None) is not False:
        return model
    config: Any = type(model.config).from_dict(model.config.to_dict() | {"mlp_bias": True})
    with torch.random.fork_rng(devices=[]):
        made: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype)
    missing = made.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert all(name.endswith(".bias") for name in missing), missing
    with torch.no_grad():
        for name in missing:
            made.get_parameter(name).zero_()
    made.generation_config = model.generation_config
    return made.eval()


def _text(model: PreTrainedModel) -> Any:
    return base_of(model).config.get_text_config()


def _biases(block: nn.Module, *, width: int) -> Mapping[str, nn.Parameter]:
    """Parameters of the block that add something of the hidden size, last one first: [D], or [experts, D]."""
    named = [(name, p) for name, p in block.named_parameters() if name.endswith("bias") and p.shape[-1] == width]
    return dict(reversed(named))


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Compute in float32 inside; each tensor then has its own type again, which is exact."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    model.float()
    try:
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.data = tensor.data.to(dtypes[name])


@torch.no_grad()
def _is_added_at_the_end(model: PreTrainedModel, bias: nn.Parameter, *, block: int) -> bool:
    """Whether what is added to `bias` is added to the block's output: tried with a vector as long as the output's."""
    plain = _output(model, block)  # [1, T, D]
    noise = torch.randn(plain.shape[-1], generator=torch.Generator().manual_seed(block))
    added = noise * plain.norm(dim=-1).mean() / noise.norm()  # [D]
    before = bias.clone()
    bias.add_(added)
    found, expected = _output(model, block), plain + added
    bias.copy_(before)
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def _output(model: PreTrainedModel, block: int) -> Tensor:
    """Of one block, [1, T, D], for tokens that differ."""
    ids = (torch.arange(TRIED_TOKENS) * 7 + 1).unsqueeze(0) % _text(model).vocab_size
    outputs: dict[int, Tensor] = {}
    with captured(decoder_blocks(model), outputs.__setitem__):
        model(input_ids=ids, use_cache=False)
    return outputs[block]
