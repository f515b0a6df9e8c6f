"""The loss as four independent choices: ratio × surrogate × correction × aggregation. Pure functions on flat tensors.

Everything is [A]: one entry for each action token of a micro-batch, `rollout_index` saying which rollout it is of.
The loss is a sum over tokens of token_loss · weight, and the weights carry the update's global denominators, so
that summing over micro-batches, in any split, gives the loss of the whole update. There is no KL term."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.config import LossConfig


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A micro-batch's loss (a scalar that sums over micro-batches) and what metrics need, each [A] without gradient."""

    loss: Tensor  # []
    ratio: Tensor  # [A], as the surrogate saw it
    clipped_low: Tensor  # [A] bool
    clipped_high: Tensor  # [A] bool
    correction: Tensor  # [A], 1 where there is none


def rollout_mean(values: Tensor, rollout_index: Tensor) -> Tensor:
    """Each token's rollout's mean of `values`, [A] from [A]. Every rollout's action tokens are in one micro-batch."""
    num_rollouts = int(rollout_index.max()) + 1 if len(rollout_index) else 0
    sums = values.new_zeros(num_rollouts).index_add(0, rollout_index, values)  # [B]
    counts = torch.bincount(rollout_index, minlength=num_rollouts)  # [B]
    return (sums / counts.clamp_min(1))[rollout_index]  # [A]


# --- ratio: π / π_old ---------------------------------------------------------------------------------------------


def token_ratio(log_ratio: Tensor, rollout_index: Tensor) -> Tensor:
    """π/π_old of each token. Source: Schulman et al. (2017), arXiv 1707.06347."""
    return log_ratio.exp()


def sequence_ratio(log_ratio: Tensor, rollout_index: Tensor) -> Tensor:
    """(π/π_old)^(1/|y|) of the rollout, the same for each of its tokens.

    Source: Zheng et al. (2025), arXiv 2507.18071 (GSPO)."""
    return rollout_mean(log_ratio, rollout_index).exp()


# --- surrogate: what is minimised for one token -------------------------------------------------------------------


def clipped_ratio(ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    """−min(r·A, clip(r, 1 − low, 1 + high)·A); with `dual_clip` c, r counts as at most c.

    Sources: PPO; DAPO (arXiv 2503.14476) for the two sides; Ye et al. (2020), arXiv 1912.09729, for the dual bound:
    since c > 1 + high it changes the result only where A < 0, to −c·A."""
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    free = ratio if config.dual_clip is None else ratio.clamp(max=config.dual_clip)
    return -torch.minimum(free * advantages, bounded * advantages)


def clipped_weight(ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    """−sg(min(r, cispo_max_weight))·A·log π. Source: MiniMax (2025), arXiv 2506.13585 (CISPO).

    The bound is absolute (5.0 means a weight of 5), as in TRL; other code clamps at 1 + ε_high."""
    return -ratio.detach().clamp(max=config.cispo_max_weight) * advantages * logprobs


# --- correction: π_old / π_sampler --------------------------------------------------------------------------------


def no_correction(ratio: Tensor, config: LossConfig) -> Tensor:
    """1 for every token."""
    return torch.ones_like(ratio)


def truncated_weight(ratio: Tensor, config: LossConfig) -> Tensor:
    """clamp(π_old/π_sampler, low, high), low being 0 unless it is set.

    Source: Yao et al. (2025), truncated importance sampling: an upper bound alone, of 2. A lower one is ours."""
    return ratio.clamp(config.lowest_correction, config.correction_high)


def icepop_mask(ratio: Tensor, config: LossConfig) -> Tensor:
    """π_old/π_sampler inside [low, high], 0 outside. Source: GLM-5, arXiv 2602.15763, with [1/2, 2]."""
    return torch.where((ratio >= config.lowest_correction) & (ratio <= config.correction_high), ratio, 0.0)


RATIOS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"token": token_ratio, "sequence": sequence_ratio}
SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, LossConfig], Tensor]] = {
    "clip": clipped_ratio,
    "cispo": clipped_weight,
}
CORRECTIONS: dict[str, Callable[[Tensor, LossConfig], Tensor]] = {
    "none": no_correction,
    "truncated": truncated_weight,
    "icepop": icepop_mask,
}


def policy_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    rollout_index: Tensor,
    weights: Tensor,
    config: LossConfig,
) -> LossTerms:
    """The loss of one micro-batch. All inputs are [A], log-probs in nats; only `logprobs` carries a gradient.

    `weights` come from `token_weights`: aggregation and the update's global denominators."""
    ratio = RATIOS[config.ratio](logprobs - old_logprobs, rollout_index)
    token_losses = SURROGATES[config.surrogate](ratio, logprobs, advantages, config)
    correction = CORRECTIONS[config.correction]((old_logprobs - sampler_logprobs).exp(), config)
    with torch.no_grad():
        upper = 1 + config.clip_high if config.surrogate == "clip" else config.cispo_max_weight
        low = (ratio < 1 - config.clip_low) & (advantages < 0) & (config.surrogate == "clip")
        high = (ratio > upper) & ((advantages > 0) | (config.surrogate == "cispo"))
    return LossTerms(
        loss=(token_losses * correction * weights).sum(),
        ratio=ratio.detach(),
        clipped_low=low,
        clipped_high=high,
        correction=correction,
    )


# --- aggregation: the weight of a token ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Denominators:
    """Counts over one whole optimizer update: all its micro-batches, all ranks. Never a micro-batch's own."""

    num_tokens: int
    num_rollouts: int
    num_groups: int
    limit_tokens: int


def token_weights(
    rollout_tokens: Tensor, group_tokens: Tensor, *, denominators: Denominators, aggregation: str
) -> Tensor:
    """Weight of one action token in the loss, for each rollout: [B] from its own and its group's action tokens [B].

    token: 1/N over the update's tokens (TRL's `dapo`); sequence: 1/(B·|o_i|) (GRPO);
    group: 1/(P·Σ|o_i| of the group) (DAPO as published, Magistral); constant: 1/(B·limit) (Dr. GRPO)."""
    d = denominators
    if aggregation == "token":
        return torch.full_like(rollout_tokens, 1 / d.num_tokens, dtype=torch.float32)
    if aggregation == "sequence":
        return 1 / (d.num_rollouts * rollout_tokens.float())
    if aggregation == "group":
        return 1 / (d.num_groups * group_tokens.float())
    if aggregation == "constant":
        return torch.full_like(rollout_tokens, 1 / (d.num_rollouts * d.limit_tokens), dtype=torch.float32)
    raise ValueError(f"aggregation {aggregation!r} is not one of token, sequence, group, constant")
