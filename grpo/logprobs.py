"""Log-probs of chosen tokens, and a loss of them, from hidden states, in chunks: no [A, V] tensor outlives its chunk.

The distribution is softmax(logits / temperature), restricted to the kept set where top-k, top-p or min-p left one.
The head comes as a callable, so that this file knows no model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.types import KeptSets

Head = Callable[[Tensor], Tensor]  # [A, D] -> logits [A, V]
LossOf = Callable[[Tensor, slice], Tensor]
"""The loss, a sum over tokens, of the log-probs [C] of the tokens that the slice names."""

LEAST = torch.finfo(torch.float32).min
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Logits of one chunk: 8 MiB in float32 where a cache is to hold them, 256 MiB where few rows leave a GPU idle."""
CHUNK_OF_HEAD = 8
"""Where the head is trained a chunk has at least its weights' elements over this: each adds a pass over them."""


def tempered(logits: Tensor, *, temperature: Tensor, kept: Tensor | None = None) -> Tensor:
    """Logits of the distribution drawn from, float32 [A, V]: divided by `temperature` [A], −inf off `kept` [A, V]."""
    scaled = logits.float() / temperature.unsqueeze(-1)
    return scaled if kept is None else scaled.masked_fill(~kept, -torch.inf)


def kept_mask(kept: KeptSets, *, vocabulary: int, device: torch.device) -> Tensor:
    """The kept ids of A tokens as a bool mask [A, V]; an empty set keeps everything."""
    sizes = torch.from_numpy(np.asarray(kept.offsets)).diff().to(device)  # [A]
    listed = torch.from_numpy(np.asarray(kept.ids)).to(device).long()  # 4 bytes an id go to the device, not 8
    mask = (sizes == 0).unsqueeze(1).repeat(1, vocabulary)  # [A, V]
    mask[torch.arange(len(kept), device=device).repeat_interleave(sizes), listed] = True
    return mask


@dataclass(frozen=True, slots=True)
class Choices:
    """A tokens that were chosen, and what they were chosen from."""

    hidden: Tensor  # [A, D], of the positions before them
    targets: Tensor  # [A]
    temperature: Tensor  # [A]
    kept: KeptSets | None  # of A tokens
    vocabulary: int

    def chunks(self, *, most_tokens: int, least_elements: int = 0) -> Iterator[tuple[slice, "Choices"]]:
        """Parts whose logits fit a chunk, which is of `least_elements` where these are more, and where each lies.

        As many as `most_tokens` would need, of no token where there are less: where the head's weights are sharded,
        each call gathers them, and every rank must take part."""
        device = "cpu" if self.hidden.device.type == "cpu" else "cuda"
        size = max(1, max(CHUNK_ELEMENTS[device], least_elements) // self.vocabulary)
        for start in range(0, max(1, len(self.targets), most_tokens), size):
            part = slice(start, start + size)
            yield (
                part,
                Choices(
                    hidden=self.hidden[part],
                    targets=self.targets[part],
                    temperature=self.temperature[part],
                    kept=None if self.kept is None else self.kept.part(part.start, part.stop),
                    vocabulary=self.vocabulary,
                ),
            )

    def logprobs(self, logits: Tensor) -> Tensor:
        """Of every token that could have been chosen, float32 [A, V], from `logits` [A, V]."""
        # The mask is made here, from ids, since checkpointing holds a chunk's arguments until the backward pass.
        kept = None if self.kept is None else kept_mask(self.kept, vocabulary=self.vocabulary, device=logits.device)
        return tempered(logits, temperature=self.temperature, kept=kept).log_softmax(dim=-1)

    def chosen(self, logprobs: Tensor) -> Tensor:
        """[A] of [A, V]."""
        return logprobs.gather(-1, self.targets.unsqueeze(-1)).squeeze(-1)


def entropy_of(finite_logprobs: Tensor, probabilities: Tensor) -> Tensor:
    """Entropy in nats [A] of distributions [A, V], whose log-probs of −inf have been brought to LEAST: they count as
    0 · LEAST = 0, the limit of p log p."""
    return -torch.einsum("av,av->a", probabilities, finite_logprobs)  # makes no third tensor of [A, V]


def chunked_logprobs(
    choices: Choices, *, head: Head, with_entropy: bool, most_tokens: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each target and, where asked for, entropy of its distribution: [A] float32 in nats.

    The entropy has no gradient. With one, a chunk's logits are computed again in the backward pass instead of being
    held."""

    def of_chunk(chunk: Choices, hidden: Tensor) -> Tensor:
        logprobs = chunk.logprobs(head(hidden))  # [C, V]
        chosen = chunk.chosen(logprobs)  # [C]
        if not with_entropy:
            return chosen.unsqueeze(0)
        with torch.no_grad():
            entropy = entropy_of(logprobs.clamp_min(LEAST), logprobs.exp())  # [C]
        return torch.stack([chosen, entropy])  # [2, C]

    pieces = []
    for _, chunk in choices.chunks(most_tokens=most_tokens):
        if torch.is_grad_enabled():
            pieces.append(checkpoint(of_chunk, chunk, chunk.hidden, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(of_chunk(chunk, chunk.hidden))
    found = torch.cat(pieces, dim=1)  # [1 or 2, A]
    return found[0], found[1] if with_entropy else None


def chunked_loss(
    choices: Choices,
    loss_of: LossOf,
    *,
    head: Head,
    head_weights: Sequence[Tensor],
    token_by_token: bool,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss [] with its gradient, and without one the log-probs [A] and, where asked for, the entropies, in nats.

    Each chunk's gradient is computed while its logits are there, so the head runs once forward and once backward and no
    logits are held or computed again. `head_weights` are what is trained of the head. `token_by_token` says that a
    token's loss is a function of its own log-prob; where it is not, the log-probs are computed in a pass before."""
    if not token_by_token:
        with torch.no_grad():
            logprobs, _ = chunked_logprobs(choices, head=head, with_entropy=False)
        whole = logprobs.requires_grad_()
        with torch.enable_grad():
            value = loss_of(whole, slice(0, len(whole)))
        (slopes,) = torch.autograd.grad(value, whole)

        def linear(part_logprobs: Tensor, part: slice) -> Tensor:
            return (slopes[part] * part_logprobs).sum()

        loss, logprobs, entropy = _Loss.apply(choices, linear, head, with_entropy, choices.hidden, *head_weights)
        # The value is that of the loss, the gradient that of its tangent.
        return loss - loss.detach() + value.detach(), logprobs, entropy
    loss, logprobs, entropy = _Loss.apply(choices, loss_of, head, with_entropy, choices.hidden, *head_weights)
    return loss, logprobs, entropy


class _Loss(torch.autograd.Function):
    """Loss, log-probs and entropies, from the hidden states and the head's trained weights."""

    @staticmethod
    def forward(
        ctx: Any, choices: Choices, loss_of: LossOf, head: Head, with_entropy: bool, hidden: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        loss = hidden.new_zeros((), dtype=torch.float32)
        to_hidden = torch.empty_like(hidden, dtype=torch.float32)  # [A, D]
        to_weights = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        # Written in place: small tensors that outlive a chunk would lie between the large ones of the next, and the
        # allocator could not give those the same memory again.
        everything = hidden.new_empty(len(choices.targets), dtype=torch.float32)  # [A]
        entropy = torch.empty_like(everything) if with_entropy else None  # [A]
        least = sum(weight.numel() for weight in weights) // CHUNK_OF_HEAD
        for part, chunk in choices.chunks(most_tokens=0, least_elements=least):
            with torch.enable_grad():
                of_chunk = chunk.hidden.detach().requires_grad_()
                logits = head(of_chunk)  # [C, V]
            logprobs = chunk.logprobs(logits.detach())  # [C, V]
            chosen = chunk.chosen(logprobs)  # [C]
            with torch.enable_grad():
                leaf = chosen.detach().requires_grad_()
                of_loss = loss_of(leaf, part)
            (slope,) = torch.autograd.grad(of_loss, leaf)  # [C]
            probabilities = logprobs.exp()  # [C, V]
            if entropy is not None:
                entropy[part] = entropy_of(logprobs.clamp_min_(LEAST), probabilities)
            del logprobs
            # d log p(target) / d logit = (1{target} − p) / temperature
            slope = slope / chunk.temperature
            scale = _lifting(slope, dtype=logits.dtype)
            slope = (slope * scale).unsqueeze(-1)
            to_logits = probabilities.mul_(-slope).scatter_add_(-1, chunk.targets.unsqueeze(-1), slope)  # [C, V]
            found = torch.autograd.grad(logits, [of_chunk, *weights], to_logits.to(logits.dtype))
            to_hidden[part] = found[0].float() / scale
            for place, target in enumerate(to_weights, start=1):
                target.addcmul_(found[place], 1 / scale)  # without a third tensor of the head's size
            del logits, to_logits, probabilities, found  # before the next chunk's are made
            loss += of_loss.detach()
            everything[part] = chosen
        ctx.save_for_backward(to_hidden, *to_weights)
        ctx.dtypes = [tensor.dtype for tensor in (hidden, *weights)]
        ctx.mark_non_differentiable(everything, *([entropy] if entropy is not None else []))
        return loss, everything, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        found = (
            (saved * gradient).to(dtype) for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )  # float32 until here, so that a loss scale lifts what float16 would have lost
        return None, None, None, None, *found


def _lifting(slope: Tensor, *, dtype: torch.dtype) -> Tensor:
    """A power of two that brings the largest slope near 1 for products in float16, which has no number below 6e-8."""
    if dtype != torch.float16 or not len(slope):
        return slope.new_ones(())
    largest = slope.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.exp2(-largest.log2().floor())
