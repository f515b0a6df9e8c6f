"""From groups with advantages to the micro-batches of an optimizer update, with the update's global denominators.

Who owns a denominator: this file, from the counts of the whole update, over all ranks. A micro-batch never divides by
its own. Every rank makes the same plan from the same groups and takes its own part of it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from grpo import seeds
from grpo.losses import Denominators, token_weights
from grpo.packing import Layout, Segment, missing_tokens
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
    """Rollouts of one forward and backward pass: T tokens in one row, without padding.

    What no position needs is not there: the last token of a rollout predicts nothing, and a prompt that several of the
    rollouts share stands before them once, but for its last token, whose next one each of them chose for itself."""

    input_ids: Tensor  # [T]
    layout: Layout  # of the T tokens
    predicts_action: Tensor  # [T] bool: positions whose next token the policy chose; A of them
    is_action: Tensor  # [T] bool: positions whose own token the policy chose
    targets: Tensor  # [A], the chosen tokens, in row order
    rollout_index: Tensor  # [A], place among `rollouts` of each action token
    temperature: Tensor  # [A]
    advantages: Tensor  # [A]
    sampler_logprobs: Tensor  # [A], nats
    weights: Tensor  # [A], share of each token in the update's loss
    stale: Tensor  # [A] bool: drawn by an earlier policy than the step's
    kept: KeptSets | None  # of A tokens, or None where no rollout was restricted
    rollouts: tuple[TrainedRollout, ...]  # B, in row order; none in a filler, whose one token predicts nothing
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
    shares_prompts: bool = True,
    rank: int = 0,
    num_ranks: int = 1,
) -> list[MicroBatch]:
    """The part of `rank` of one update's groups, in micro-batches of at most `tokens_per_micro_batch` tokens; long ones
    are filled up as `grpo.packing.missing_tokens` says.

    Without `shares_prompts`, for a model that takes no packed row, every rollout has its prompt, those of like length
    are together, and padding counts. A rollout longer than the budget goes alone. Every rank has the same number of
    micro-batches, and those that the ranks have at the same time are about equally large; the layout is a function of
    the groups alone."""
    denominators = Denominators(
        num_tokens=sum(group[0].group_tokens for group in groups if group),
        num_rollouts=sum(group[0].group_rollouts for group in groups if group),
        num_groups=sum(bool(group) for group in groups),
        limit_tokens=limit_tokens,
    )
    rows = _rows(groups)
    size_of = _packed_tokens if shares_prompts else _padded_tokens
    filled = _filled(rows, shares_prompts=shares_prompts, budget_tokens=tokens_per_micro_batch)
    packed = _evened(filled, size_of=size_of, num_ranks=num_ranks)
    batches = []
    for number, start in enumerate(range(0, len(packed), num_ranks)):
        at_once = packed[start : start + num_ranks]
        # To and fro: who had the largest of one turn has the smallest of the next.
        own = at_once[rank if number % 2 == 0 else num_ranks - 1 - rank]
        most_actions = max(sum(row.num_actions for row in of_rank) for of_rank in at_once)
        batches.append(
            _collate(
                own,
                shares_prompts=shares_prompts,
                denominators=denominators,
                aggregation=aggregation,
                device=device,
                most_actions=most_actions,
            )
        )
    return batches


@dataclass(frozen=True, slots=True)
class _Row:
    """A rollout to be laid out."""

    trained: TrainedRollout
    prompt: int  # a number for those of one group that have the same
    num_prompt: int  # tokens before the first whose next one the policy chose
    num_tokens: int  # all that have a next one which the loss may ask for: none after the last such
    num_actions: int


def _rows(groups: Sequence[list[TrainedRollout]]) -> list[_Row]:
    rows: list[_Row] = []
    prompts: dict[tuple[int, tuple[int, ...]], int] = {}
    for place, group in enumerate(groups):
        for trained in group:
            ids, mask = trained.rollout.token_ids, trained.rollout.action_mask
            first, last = mask.index(True), len(mask) - 1 - mask[::-1].index(True)
            prompt = prompts.setdefault((place, ids[:first]), len(prompts))
            rows.append(_Row(trained, prompt, num_prompt=first - 1, num_tokens=last, num_actions=sum(mask)))
    return rows


def _filled(rows: Sequence[_Row], *, shares_prompts: bool, budget_tokens: int) -> list[list[_Row]]:
    """Batches of at most `budget_tokens`, filled in order: where prompts are shared, one prompt after another and the
    one with most tokens first, else rollouts by length.

    No more batches than the budget asks for, but the smallest such: the last one is not what happened to be left
    over."""
    of_prompt = Counter[int]()
    for row in rows:
        of_prompt[row.prompt] += row.num_tokens - row.num_prompt

    def turn(row: _Row) -> tuple[int, ...]:
        return (-of_prompt[row.prompt], row.prompt, -row.num_tokens) if shares_prompts else (-row.num_tokens,)

    ordered = sorted(rows, key=turn)
    most = len(_cut(ordered, shares_prompts=shares_prompts, budget_tokens=budget_tokens))
    too_small, fitting = 0, budget_tokens
    while fitting - too_small > 1:
        middle = (too_small + fitting) // 2
        if len(_cut(ordered, shares_prompts=shares_prompts, budget_tokens=middle)) <= most:
            fitting = middle
        else:
            too_small = middle
    return _cut(ordered, shares_prompts=shares_prompts, budget_tokens=fitting)


def _cut(ordered: Sequence[_Row], *, shares_prompts: bool, budget_tokens: int) -> list[list[_Row]]:
    """Rows in order, a batch going on while the next one fits."""
    batches: list[list[_Row]] = []
    filled = 0
    for row in ordered:
        more = row.num_tokens
        if batches and shares_prompts:
            more -= row.num_prompt if batches[-1][-1].prompt == row.prompt else 0
        elif batches:
            more = batches[-1][0].num_tokens  # by length: the first of a batch sets the padded length of all
        if batches and filled + more <= budget_tokens:
            batches[-1].append(row)
            filled += more
        else:
            batches.append([row])
            filled = row.num_tokens
    return batches


def _evened(batches: list[list[_Row]], *, size_of: Callable[[Sequence[_Row]], int], num_ranks: int) -> list[list[_Row]]:
    """As many batches as fill the ranks' last turn, the largest first: some are halved, and where none can be, empty
    ones are added. A rank that had one less would leave the others waiting for its part of a sum."""
    evened = list(batches)
    while len(evened) % num_ranks:
        largest = max((batch for batch in evened if len(batch) > 1), key=size_of, default=None)
        if largest is None:
            evened.append([])
            continue
        half = len(largest) // 2
        evened[evened.index(largest)] = largest[:half]
        evened.append(largest[half:])
    return sorted(evened, key=lambda batch: -size_of(batch)) if num_ranks > 1 else evened


def _padded_tokens(batch: Sequence[_Row]) -> int:
    return len(batch) * max((row.num_tokens for row in batch), default=0)


def _packed_tokens(batch: Sequence[_Row]) -> int:
    prompts = {row.prompt: row.num_prompt for row in batch}
    return sum(prompts.values()) + sum(row.num_tokens - row.num_prompt for row in batch)


def _collate(
    rows: Sequence[_Row],
    *,
    shares_prompts: bool,
    denominators: Denominators,
    aggregation: str,
    device: torch.device,
    most_actions: int,
) -> MicroBatch:
    ids: list[int] = []
    predicts: list[bool] = []
    actions: list[bool] = []
    targets: list[int] = []
    logprobs: list[float] = []
    segments: list[tuple[int, list[int]]] = []
    members = Counter(row.prompt for row in rows)
    shared: int | None = None  # the prompt of the segment under way
    for row in rows:
        rollout = row.trained.rollout
        # One rollout alone is a plain sequence.
        num_prefix = row.num_prompt if shares_prompts and members[row.prompt] > 1 else 0
        if num_prefix == 0 or row.prompt != shared:
            segments.append((num_prefix, []))
            ids += rollout.token_ids[:num_prefix]
            predicts += [False] * num_prefix
            actions += [False] * num_prefix
        shared = row.prompt
        segments[-1][1].append(row.num_tokens - num_prefix)
        ids += rollout.token_ids[num_prefix : row.num_tokens]
        predicts += rollout.action_mask[num_prefix + 1 : row.num_tokens + 1]
        actions += rollout.action_mask[num_prefix : row.num_tokens]
        chosen = [place for place, action in enumerate(rollout.action_mask) if action]
        targets += [rollout.token_ids[place] for place in chosen]
        logprobs += [rollout.logprobs[place] for place in chosen]
    if not rows:  # a filler has one token: models take no empty batch
        ids, predicts, actions, segments = [0], [False], [False], [(0, [1])]
    missing = missing_tokens(len(ids)) if shares_prompts else 0
    if missing:  # a sequence of its own, which nothing is asked of
        segments.append((0, [missing]))
        ids += [0] * missing
        predicts += [False] * missing
        actions += [False] * missing
    trained = [row.trained for row in rows]
    own_tokens = torch.tensor([row.num_actions for row in rows], dtype=torch.long)  # [B]
    group_tokens = torch.tensor([t.group_tokens for t in trained], dtype=torch.long)  # [B]
    weights = token_weights(own_tokens, group_tokens, denominators=denominators, aggregation=aggregation)  # [B]
    weights = weights * torch.tensor([t.weight for t in trained], dtype=torch.float32)  # [B]
    rollout_index = torch.arange(len(rows)).repeat_interleave(own_tokens)  # [A]

    def of_tokens(of_rollouts: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(of_rollouts, dtype=dtype)[rollout_index].to(device)  # [B] to [A]

    return MicroBatch(
        input_ids=torch.tensor(ids).to(device),
        layout=Layout([Segment(prefix, tuple(lengths)) for prefix, lengths in segments], device=device),
        predicts_action=torch.tensor(predicts).to(device),
        is_action=torch.tensor(actions).to(device),
        targets=torch.tensor(targets, dtype=torch.long).to(device),
        rollout_index=rollout_index.to(device),
        temperature=of_tokens([t.rollout.temperature for t in trained], torch.float32),
        advantages=of_tokens([t.advantage for t in trained], torch.float32),
        sampler_logprobs=torch.tensor(logprobs, dtype=torch.float32).to(device),
        weights=weights[rollout_index].to(device),
        stale=of_tokens([t.stale for t in trained], torch.bool),
        kept=_kept(trained),
        rollouts=tuple(trained),
        most_actions=most_actions,
    )


def _kept(rollouts: Sequence[TrainedRollout]) -> KeptSets | None:
    if all(r.rollout.kept is None for r in rollouts):
        return None
    return KeptSets.joined(r.rollout.kept or KeptSets.of([()] * r.rollout.num_actions) for r in rollouts)
