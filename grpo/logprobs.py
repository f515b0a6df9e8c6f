"""Log-probs of chosen tokens from hidden states, in chunks: no [A, V] tensor outlives its chunk, forward or backward.

The distribution is softmax(logits / temperature), restricted to the kept set where top-k, top-p or min-p left one.
The head comes as a callable, so that this file knows no model."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.types import KeptSets

Head = Callable[[Tensor], Tensor]  # [A, D] -> logits [A, V]

CHUNK_ELEMENTS = 2**24  # logits of one chunk: 64 MiB in float32


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


def chunked_logprobs(
    hidden: Tensor,
    targets: Tensor,
    *,
    head: Head,
    temperature: Tensor,
    vocabulary: int,
    kept: KeptSets | None = None,
    most_tokens: int = 0,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of its distribution, both [A] float32 in nats; the entropy has no gradient.

    `hidden` [A, D] predicts `targets` [A]; `temperature` [A]; `kept` is of A tokens or None.
    With a gradient, a chunk's logits are computed again in the backward pass instead of being held. The head is called
    as often as `most_tokens` would need, with no token where there are less: where its weights are sharded, each call
    gathers them, and every rank must take part."""

    def of_chunk(
        chunk_hidden: Tensor,
        chunk_targets: Tensor,
        chunk_temperature: Tensor,
        chunk_kept: KeptSets | None,
    ) -> Tensor:
        # The mask is made here, from ids, since checkpointing holds a chunk's arguments until the backward pass.
        mask = None if chunk_kept is None else kept_mask(chunk_kept, vocabulary=vocabulary, device=hidden.device)
        logits = tempered(head(chunk_hidden), temperature=chunk_temperature, kept=mask)  # [C, V]
        logprobs = logits.log_softmax(dim=-1)  # [C, V]
        chosen = logprobs.gather(-1, chunk_targets.unsqueeze(-1)).squeeze(-1)  # [C]
        with torch.no_grad():
            # 0 · −inf off the kept set counts as 0, which is its limit.
            entropy = -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(dim=-1)  # [C]
        return torch.stack([chosen, entropy])  # [2, C]

    size = max(1, CHUNK_ELEMENTS // vocabulary)
    pieces = []
    for start in range(0, max(1, len(targets), most_tokens), size):
        stop = start + size
        chunk_kept = None if kept is None else kept.part(start, stop)
        arguments = (hidden[start:stop], targets[start:stop], temperature[start:stop], chunk_kept)
        if torch.is_grad_enabled():
            pieces.append(checkpoint(of_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(of_chunk(*arguments))
    logprobs, entropy = torch.cat(pieces, dim=1)  # [A], [A]
    return logprobs, entropy
