"""From groups with advantages to the micro-batches of an optimizer update, with the update's global denominators.

Who owns a denominator: this file, from the counts of the whole update, over all ranks. A micro-batch never divides by
its own. Every rank makes the same plan from the same groups and takes its own part of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from grpo import seeds
from grpo.losses import Denominators, token_weights
from grpo.types import Group, KeptSets, Rollout


@dataclass(frozen=True, slots=True)
class TrainedRollout:
    """A rollout that is trained on, with its advantage, and what it stands for.

    `group_tokens` and `group_rollouts` count all of its group that enter the loss; where only some of the failures are
    trained on, each has the `weight` of as many, so that the sum is what all of them would give on average.
    `stale` says that an earlier policy than the step's drew it: its ratio is taken against the sampler's log-probs."""

    rollout: Rollout
    advantage: float
    group_tokens: int
    group_rollouts: int
    weight: float = 1.0
    stale: bool = False


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
    stale: Tensor  # [A] bool: drawn by an earlier policy than the step's
    kept: KeptSets | None  # of A tokens, or None where no rollout was restricted
    rollouts: tuple[TrainedRollout, ...]  # B, in row order; none in a filler, whose one row has no action token
    most_actions: int  # the largest A of the micro-batches that other ranks have at the same time


def trained_rollouts(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]],
    *,
    mask_truncated: bool,
    failures_per_group: int | None = None,
    seed: int = 0,
    step: int = 0,
) -> list[list[TrainedRollout]]:
    """The rollouts of each group that are trained on: those with a value, and not cut by the limit where that is asked.

    `advantages` has, for each group, one number for each rollout that has a value. Of more failures than
    `failures_per_group` so many are drawn, evenly and by seed, step and problem; each weighs for all / drawn of them,
    which leaves the expected gradient as it is (Horvitz and Thompson 1952)."""
    trained = []
    for group, of_group in zip(groups, advantages, strict=True):
        members = zip(group.rollouts, group.correct, strict=True)
        valued = [(rollout, correct) for rollout, correct in members if correct is not None]
        entering = [
            (rollout, advantage, correct)
            for (rollout, correct), advantage in zip(valued, of_group, strict=True)
            if rollout.finished or not mask_truncated
        ]
        failed = [place for place, (_, _, correct) in enumerate(entering) if not correct]
        drawn, weight = set(failed), 1.0
        if failures_per_group is not None and len(failed) > failures_per_group:
            noise = random.Random(seeds.key(seed, "failures", step, group.problem.id, group.rollouts[0].attempt))
            drawn, weight = set(noise.sample(failed, failures_per_group)), len(failed) / failures_per_group
        tokens = sum(rollout.num_actions for rollout, _, _ in entering)
        trained.append(
            [
                TrainedRollout(
                    rollout=rollout,
                    advantage=advantage,
                    group_tokens=tokens,
                    group_rollouts=len(entering),
                    weight=1.0 if correct else weight,
                    stale=rollout.policy_step < step,
                )
                for place, (rollout, advantage, correct) in enumerate(entering)
                if correct or place in drawn
            ]
        )
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
    rank: int = 0,
    num_ranks: int = 1,
) -> list[MicroBatch]:
    """The part of `rank` of one update's groups, in micro-batches of at most `tokens_per_micro_batch` padded tokens.

    A rollout longer than that goes alone. Every rank has the same number of micro-batches, and those that the ranks
    have at the same time are about equally large; the layout is a function of the groups alone."""
    rollouts = [rollout for group in groups for rollout in group]
    denominators = Denominators(
        num_tokens=sum(group[0].group_tokens for group in groups if group),
        num_rollouts=sum(group[0].group_rollouts for group in groups if group),
        num_groups=sum(bool(group) for group in groups),
        limit_tokens=limit_tokens,
    )
    packed = _evened(_packed(rollouts, budget_tokens=tokens_per_micro_batch), num_ranks=num_ranks)
    batches = []
    for number, start in enumerate(range(0, len(packed), num_ranks)):
        at_once = packed[start : start + num_ranks]
        # To and fro: who had the largest of one turn has the smallest of the next.
        own = at_once[rank if number % 2 == 0 else num_ranks - 1 - rank]
        most_actions = max(sum(r.rollout.num_actions for r in of_rank) for of_rank in at_once)
        batches.append(
            _collate(own, denominators=denominators, aggregation=aggregation, device=device, most_actions=most_actions)
        )
    return batches


def _packed(rollouts: Sequence[TrainedRollout], *, budget_tokens: int) -> list[list[TrainedRollout]]:
    """Rollouts of like length together, so that little is padded; sorting is stable."""
    batches: list[list[TrainedRollout]] = []
    for rollout in sorted(rollouts, key=lambda r: -len(r.rollout.token_ids)):
        # Sorted by length: the first of a batch is its longest, so it sets the padded length of all.
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].rollout.token_ids) <= budget_tokens:
            batches[-1].append(rollout)
        else:
            batches.append([rollout])
    return batches


def _evened(batches: list[list[TrainedRollout]], *, num_ranks: int) -> list[list[TrainedRollout]]:
    """As many batches as fill the ranks' last turn, the largest first: some are halved, and where none can be, empty
    ones are added. A rank that had one less would leave the others waiting for its part of a sum."""
    evened = list(batches)
    while len(evened) % num_ranks:
        largest = max((batch for batch in evened if len(batch) > 1), key=_padded_tokens, default=None)
        if largest is None:
            evened.append([])
            continue
        half = len(largest) // 2
        evened[evened.index(largest)] = largest[:half]
        evened.append(largest[half:])
    return sorted(evened, key=lambda batch: -_padded_tokens(batch)) if num_ranks > 1 else evened


def _padded_tokens(batch: Sequence[TrainedRollout]) -> int:
    return len(batch) * max((len(r.rollout.token_ids) for r in batch), default=0)


def _collate(
    rollouts: Sequence[TrainedRollout],
    *,
    denominators: Denominators,
    aggregation: str,
    device: torch.device,
    most_actions: int,
) -> MicroBatch:
    # A filler has one row of one token: models take no empty batch.
    num_rows, longest = max(1, len(rollouts)), max((len(r.rollout.token_ids) for r in rollouts), default=1)
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
    own_tokens = actions.sum(dim=1)[: len(rollouts)]  # [B]
    group_tokens = torch.tensor([r.group_tokens for r in rollouts], dtype=torch.long)  # [B]
    weights = token_weights(own_tokens, group_tokens, denominators=denominators, aggregation=aggregation)  # [B]
    weights = weights * torch.tensor([r.weight for r in rollouts], dtype=torch.float32)  # [B]
    stale = torch.tensor([r.stale for r in rollouts], dtype=torch.bool)  # [B]
    temperature = torch.tensor([r.rollout.temperature for r in rollouts], dtype=torch.float32)  # [B]
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
        stale=stale[rollout_index].to(device),
        kept=_kept(rollouts),
        rollouts=tuple(rollouts),
        most_actions=most_actions,
    )


def _kept(rollouts: Sequence[TrainedRollout]) -> KeptSets | None:
    if all(r.rollout.kept is None for r in rollouts):
        return None
    return KeptSets.joined(r.rollout.kept or KeptSets.of([()] * r.rollout.num_actions) for r in rollouts)
