"""From groups with advantages to the micro-batches of an optimizer update, with the update's global denominators.

Who owns a denominator: this file, from the counts of the whole update. A micro-batch never divides by its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from grpo.losses import Denominators, token_weights
from grpo.types import Group, KeptSets, Rollout


@dataclass(frozen=True, slots=True)
class TrainedRollout:
    """A rollout that enters the loss: its advantage, and the action tokens of its group's rollouts that enter too."""

    rollout: Rollout
    advantage: float
    group_tokens: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rollouts of one forward and backward pass, padded on the right to the longest of them."""

    input_ids: Tensor  # [B, T]
    predicts_action: Tensor  # [B, T] bool: positions whose next token the policy chose; A of them
    targets: Tensor  # [A], the chosen tokens, in row order
    rollout_index: Tensor  # [A], row of each action token
    temperature: Tensor  # [A]
    advantages: Tensor  # [A]
    sampler_logprobs: Tensor  # [A], nats
    weights: Tensor  # [A], share of each token in the update's loss
    kept: KeptSets | None  # of A tokens, or None where no rollout was restricted
    rollouts: tuple[TrainedRollout, ...]  # B, in row order


def trained_rollouts(
    groups: Sequence[Group], advantages: Sequence[Sequence[float]], *, mask_truncated: bool
) -> list[list[TrainedRollout]]:
    """The rollouts of each group that enter the loss: those with a value, and not cut by the limit where that is asked.

    `advantages` has, for each group, one number for each rollout that has a value."""
    trained = []
    for group, of_group in zip(groups, advantages, strict=True):
        valued = [r for r, reward in zip(group.rollouts, group.rewards, strict=True) if reward.value is not None]
        pairs = list(zip(valued, of_group, strict=True))
        entering = [(r, a) for r, a in pairs if r.finished or not mask_truncated]
        tokens = sum(r.num_actions for r, _ in entering)
        trained.append([TrainedRollout(rollout=r, advantage=a, group_tokens=tokens) for r, a in entering])
    return trained


def minibatches(groups: Sequence[list[TrainedRollout]], *, number: int) -> list[list[list[TrainedRollout]]]:
    """Split groups, in order, into at most `number` near-equal parts, one optimizer update each; none is empty."""
    filled = [group for group in groups if group]
    parts = min(number, len(filled))
    bounds = [round(index * len(filled) / parts) for index in range(parts + 1)] if parts else [0]
    return [filled[start:stop] for start, stop in pairwise(bounds)]


def micro_batches(
    groups: Sequence[list[TrainedRollout]],
    *,
    tokens_per_micro_batch: int,
    limit_tokens: int,
    aggregation: str,
    device: torch.device,
) -> list[MicroBatch]:
    """One update's groups as micro-batches of at most `tokens_per_micro_batch` padded tokens.

    A rollout longer than that goes alone. Rollouts of like length share a micro-batch, so that little is padded;
    sorting is stable, so the layout is a function of the groups alone."""
    rollouts = [rollout for group in groups for rollout in group]
    denominators = Denominators(
        num_tokens=sum(r.rollout.num_actions for r in rollouts),
        num_rollouts=len(rollouts),
        num_groups=sum(bool(group) for group in groups),
        limit_tokens=limit_tokens,
    )
    by_length = sorted(rollouts, key=lambda r: -len(r.rollout.token_ids))
    batches: list[list[TrainedRollout]] = []
    for rollout in by_length:
        # Sorted by length: the first of a batch is its longest, so it sets the padded length of all.
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].rollout.token_ids) <= tokens_per_micro_batch:
            batches[-1].append(rollout)
        else:
            batches.append([rollout])
    return [_collate(batch, denominators=denominators, aggregation=aggregation, device=device) for batch in batches]


def _collate(
    rollouts: Sequence[TrainedRollout], *, denominators: Denominators, aggregation: str, device: torch.device
) -> MicroBatch:
    num_rows, longest = len(rollouts), max(len(r.rollout.token_ids) for r in rollouts)
    input_ids = torch.zeros(num_rows, longest, dtype=torch.long)  # [B, T]; padding is never attended to nor scored
    actions = torch.zeros(num_rows, longest, dtype=torch.bool)  # [B, T]
    logprobs = torch.zeros(num_rows, longest)  # [B, T]
    for row, trained in enumerate(rollouts):
        length = len(trained.rollout.token_ids)
        input_ids[row, :length] = torch.tensor(trained.rollout.token_ids)
        actions[row, :length] = torch.tensor(trained.rollout.action_mask)
        logprobs[row, :length] = torch.tensor(trained.rollout.logprobs)
    predicts = torch.zeros_like(actions)
    predicts[:, :-1] = actions[:, 1:]
    rollout_index = actions.nonzero()[:, 0]  # [A]
    own_tokens = actions.sum(dim=1)  # [B]
    group_tokens = torch.tensor([r.group_tokens for r in rollouts])  # [B]
    weights = token_weights(own_tokens, group_tokens, denominators=denominators, aggregation=aggregation)  # [B]
    temperature = torch.tensor([r.rollout.temperature for r in rollouts])  # [B]
    advantages = torch.tensor([r.advantage for r in rollouts], dtype=torch.float32)  # [B]
    return MicroBatch(
        input_ids=input_ids.to(device),
        predicts_action=predicts.to(device),
        targets=input_ids[actions].to(device),
        rollout_index=rollout_index.to(device),
        temperature=temperature[rollout_index].to(device),
        advantages=advantages[rollout_index].to(device),
        sampler_logprobs=logprobs[actions].to(device),
        weights=weights[rollout_index].to(device),
        kept=_kept(rollouts),
        rollouts=tuple(rollouts),
    )


def _kept(rollouts: Sequence[TrainedRollout]) -> KeptSets | None:
    if all(r.rollout.kept is None for r in rollouts):
        return None
    return KeptSets.joined(r.rollout.kept or KeptSets.of([()] * r.rollout.num_actions) for r in rollouts)
