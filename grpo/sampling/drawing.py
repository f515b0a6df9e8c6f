"""One token a row from its logits, by Gumbel-max in two rounds: first a block of tokens, then a token of the block.

Noise for every token of the vocabulary would cost many times the softmax that a log-prob needs anyway; blocks and the
tokens of one block are few. Both rounds draw with counter noise."""

import torch
from torch import Tensor

from grpo.sampling.noise import gumbel

BLOCK_TOKENS = 128
BLOCKS_STEP = 32
"""Blocks are a multiple of it: a logarithm rounds otherwise in what is left over of a vector register."""


def draw_tokens(logits: Tensor, *, keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [R] drawn from tempered `logits` [R, V], float32, and their log-probs [R], nats.

    P(block) · P(token | block) is P(token), whatever the blocks are. A rounding error of δ in the logits moves the sums
    of either round by δ at most, so that it changes a token only where the best two of a round lie within 2δ."""
    vocabulary = logits.shape[-1]
    if vocabulary <= BLOCK_TOKENS:  # one block, so that the first round would draw it for sure
        return _drawn_of_few(logits, keys=keys, positions=positions)
    probabilities = logits.softmax(dim=-1)  # [R, V]
    masses = block_masses(probabilities)  # [R, K]
    # The tokens' noise comes first, so that a block's does not depend on the size of the vocabulary either.
    noise = gumbel(keys, positions, count=BLOCK_TOKENS + masses.shape[1])  # [R, N + K]
    blocks = (masses.log() + noise[:, BLOCK_TOKENS:]).argmax(dim=-1, keepdim=True)  # [R, 1]
    ids = torch.arange(BLOCK_TOKENS, device=logits.device) + blocks * BLOCK_TOKENS  # [R, N]
    weights = probabilities.gather(1, ids.clamp(max=vocabulary - 1)).log()  # [R, N]
    if vocabulary % BLOCK_TOKENS:
        weights = weights.masked_fill(ids >= vocabulary, -torch.inf)  # the last block reaches beyond the vocabulary
    places = (weights + noise[:, :BLOCK_TOKENS]).argmax(dim=-1, keepdim=True)  # [R, 1]
    return ids.gather(1, places).squeeze(1), weights.gather(1, places).squeeze(1)


def _drawn_of_few(logits: Tensor, *, keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    weights = logits.log_softmax(dim=-1)  # [R, V]
    vocabulary = logits.shape[-1]
    noise = gumbel(keys, positions, count=-(-vocabulary // BLOCKS_STEP) * BLOCKS_STEP)[:, :vocabulary]
    tokens = (weights + noise).argmax(dim=-1, keepdim=True)  # [R, 1]
    return tokens.squeeze(1), weights.gather(1, tokens).squeeze(1)


def block_masses(probabilities: Tensor) -> Tensor:
    """Sums of `probabilities` [R, V] over blocks of BLOCK_TOKENS, [R, K]; empty blocks fill K up to a multiple."""
    whole = probabilities.shape[1] // BLOCK_TOKENS  # blocks; what is left is one more
    masses = probabilities.new_zeros(len(probabilities), (whole + BLOCKS_STEP) // BLOCKS_STEP * BLOCKS_STEP)
    if whole:
        parts = probabilities[:, : whole * BLOCK_TOKENS].unflatten(1, (-1, BLOCK_TOKENS))
        masses[:, :whole] = parts.sum(dim=-1)
    masses[:, whole] = probabilities[:, whole * BLOCK_TOKENS :].sum(dim=-1)
    return masses
