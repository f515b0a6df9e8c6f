"""Gumbel noise from a counter: a pure function of (key, position, number), with no generator and no state.

argmax(log p + Gumbel) is a draw from p (Gumbel-max). The noise of a rollout's token never depends on which rows are
decoded beside it, on how many processes there are, or on where a run was resumed, and a rounding error of δ in the
logits changes a token only when the two best sums lie within δ of one another."""

import torch
from torch import Tensor

# SplitMix64: Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators", as signed 64-bit numbers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def gumbel(keys: Tensor, positions: Tensor, *, count: int) -> Tensor:
    """Standard Gumbel noise, float32 [R, N], for `keys` [R] and `positions` [R] (both int64): N = `count` numbers."""
    stream = _mixed(keys + (positions + 1) * _GAMMA)  # [R], a stream of its own for each row and position
    steps = torch.arange(1, count + 1, device=keys.device) * _GAMMA  # [N]
    bits = _mixed(stream.unsqueeze(1) + steps)  # [R, N]
    # 40 of the 64 bits, so that small uniforms keep their full relative precision: they decide the largest noise.
    uniform = (_shifted(bits, 24).float() + 0.5) * 2.0**-40  # [R, N], in (0, 1]
    exponential = -torch.log1p(-uniform.clamp_(max=1 - 2.0**-24))  # [R, N]
    return -torch.log(exponential)


def signed(key: int) -> int:
    """A 64-bit key as the signed number that an int64 tensor holds."""
    return key - 2**64 if key >= 2**63 else key


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _MIX_1
    state = (state ^ _shifted(state, 27)) * _MIX_2
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask takes the copies of the sign bit away again.
    return (state >> bits) & (2 ** (64 - bits) - 1)
