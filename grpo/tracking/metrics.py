"""What is counted in a step, under the names that docs/metrics.md explains. Reads what flowed; changes nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import pstdev
from typing import Any

from torch import Tensor

from grpo.batch import MicroBatch
from grpo.losses import LossTerms
from grpo.types import Group, StepStats
from rewards import Status


def group_metrics(stats: StepStats, groups: Sequence[Group]) -> None:
    """Rewards, outcomes and lengths of every group of the step, dropped ones included."""
    rewards = [reward for group in groups for reward in group.rewards]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    valued = [group for group in groups if group.values]
    stats.add_values("reward/mean", [reward.value for reward in rewards if reward.value is not None])
    stats.add_values("reward/std", [pstdev(group.values) for group in valued])
    stats.add_values("reward/pass_rate", [float(c) for group in groups for c in group.correct if c is not None])
    stats.add_count("reward/errors", sum(reward.status in (Status.ERROR, Status.TIMEOUT) for reward in rewards))
    stats.add_count("reward/abstained", sum(reward.status is Status.ABSTAINED for reward in rewards))
    for reward in rewards:
        for part, value in reward.parts.items():
            stats.add(f"reward/{part}/mean", total=value, count=1)
    stats.add_values("group/zero_std_fraction", [float(group.degenerate) for group in groups])
    stats.add_values("group/solved_all", [float(group.pass_rate == 1) for group in valued])
    stats.add_values("group/solved_none", [float(group.pass_rate == 0) for group in valued])
    stats.add_values("completion/length_mean", [float(rollout.num_actions) for rollout in rollouts])
    stats.add_max("completion/length_max", max(rollout.num_actions for rollout in rollouts))
    stats.add_values("completion/truncated_fraction", [float(not rollout.finished) for rollout in rollouts])


def loss_metrics(stats: StepStats, terms: LossTerms, *, entropy: Tensor | None) -> None:
    """Clipping and correction of one micro-batch, a mean over the tokens of all of the step's updates; entropy, where
    it was computed."""
    count = len(terms.ratio)
    if count == 0:  # a filler
        return
    if entropy is not None:
        stats.add("policy/entropy", total=float(entropy.sum()), count=count)
    stats.add("policy/ratio_mean", total=float(terms.ratio.sum()), count=count)
    stats.add_max("policy/ratio_max", float(terms.ratio.max()))
    stats.add("policy/clip_fraction_low", total=float(terms.clipped_low.sum()), count=count)
    stats.add("policy/clip_fraction_high", total=float(terms.clipped_high.sum()), count=count)
    stats.add("policy/correction_mean", total=float(terms.correction.sum()), count=count)
    stats.add_count("optim/tokens", count)


def sampler_metrics(stats: StepStats, batch: MicroBatch, *, policy_logprobs: Tensor) -> None:
    """How far the sampler's log-probs are from the policy's [A] before the step's first update.

    `policy/sampler_kl` is KL(sampler || policy) by Schulman's k3, whose tokens were drawn from the sampler. What an
    earlier policy drew says nothing about it and does not count."""
    log_ratio = (policy_logprobs - batch.sampler_logprobs)[~batch.stale]
    if len(log_ratio) == 0:  # a filler
        return
    # expm1: near 0, where the two agree, exp(x) − 1 − x would be rounding and little else.
    stats.add("policy/sampler_kl", total=float((log_ratio.expm1() - log_ratio).sum()), count=len(log_ratio))
    stats.add_max("policy/sampler_logprob_gap_max", float(log_ratio.abs().max()))


def rollout_rows(
    groups: Sequence[Group],
    *,
    step: int,
    stage: str,
    tier_of: Callable[[str], str | None],
    advantages: Mapping[tuple[str, int], float],
    reused: Sequence[bool],
) -> Iterator[dict[str, Any]]:
    """One row a rollout for rollouts/step_N.jsonl; the advantage is null for one that did not enter the loss.

    `reused` says of each group whether the profile drew it."""
    for group, is_reused in zip(groups, reused, strict=True):
        for rollout, text, reward in zip(group.rollouts, group.completions, group.rewards, strict=True):
            drawn = [index for index, action in enumerate(rollout.action_mask) if action]
            yield {
                "step": step,
                "problem_id": rollout.problem_id,
                "attempt": rollout.attempt,
                "stage": stage,
                "tier": tier_of(rollout.problem_id),
                "prompt": group.problem.prompt,
                "completion": text,
                "answer": group.problem.answer,
                "reward": reward.value,
                "status": str(reward.status),
                "parts": dict(reward.parts),
                "detail": reward.detail,
                "advantage": advantages.get((rollout.problem_id, rollout.attempt)),
                "stop_reason": str(rollout.stop_reason),
                "temperature": rollout.temperature,
                "policy_step": rollout.policy_step,
                "reused": is_reused,
                "num_tokens": len(drawn),
                "token_ids": [rollout.token_ids[index] for index in drawn],
                "logprobs": [rollout.logprobs[index] for index in drawn],
            }
