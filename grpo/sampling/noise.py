"""Gumbel noise from a counter: a pure function of (key, position, number), with no generator and no state.

argmax(log p + Gumbel) is a draw from p (Gumbel-max). The noise of a rollout's token never depends on which rows are
decoded beside it, on how many processes there are, or on where a run was resumed, and a rounding error of δ in the
logits changes a token only when the two best sums lie within δ of one another."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# SplitMix64: Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators", as signed 64-bit numbers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def gumbel(keys: Tensor, positions: Tensor, *, count: int) -> Tensor:
    """Standard Gumbel noise, float32 [R, N], for `keys` [R] and `positions` [R] (both int64): N = `count` numbers."""
    bits = _bits_of_cpu(keys, positions, count) if keys.device.type == "cpu" else _bits(keys, positions, count)
    uniform = bits.float().add_(0.5).mul_(2.0**-40).clamp_(max=1 - 2.0**-24)  # [R, N], in (0, 1)
    exponential = uniform.neg_().log1p_().neg_()
    return exponential.log_().neg_()


def signed(key: int) -> int:
    """A 64-bit key as the signed number that an int64 tensor holds."""
    return key - 2**64 if key >= 2**63 else key


def _bits(keys: Tensor, positions: Tensor, count: int) -> Tensor:
    """The upper 40 of 64 bits, int64 [R, N]: as many, so that small uniforms keep their full relative precision. They
    decide the largest noise."""
    stream = _mixed(keys + (positions + 1) * _GAMMA)  # [R], a stream of its own for each row and position
    steps = torch.arange(1, count + 1, device=keys.device) * _GAMMA  # [N]
    return _shifted(_mixed(stream.unsqueeze(1) + steps), 24)


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _MIX_1
    state = (state ^ _shifted(state, 27)) * _MIX_2
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask takes the copies of the sign bit away again.
    return (state >> bits) & (2 ** (64 - bits) - 1)


def _bits_of_cpu(keys: Tensor, positions: Tensor, count: int) -> Tensor:
    """As `_bits`, in half the time: numpy has unsigned numbers, whose shifts need no mask."""
    stream = keys.numpy().view(np.uint64) + (positions.numpy() + 1).view(np.uint64) * _unsigned(_GAMMA)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _unsigned(_GAMMA)
    mixed = _mixed_in_place(_mixed_in_place(stream)[:, None] + steps)
    mixed >>= np.uint64(24)
    return torch.from_numpy(mixed.view(np.int64))


def _mixed_in_place(state: "np.ndarray[Any, np.dtype[np.uint64]]") -> "np.ndarray[Any, np.dtype[np.uint64]]":
    shifted = np.empty_like(state)
    for bits, factor in ((30, _MIX_1), (27, _MIX_2), (31, None)):
        np.right_shift(state, np.uint64(bits), out=shifted)
        state ^= shifted
        if factor is not None:
            state *= _unsigned(factor)
    return state


def _unsigned(number: int) -> np.uint64:
    return np.uint64(number % 2**64)
