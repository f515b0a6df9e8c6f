"""Scores of one policy on a set of problems, and of two policies on the same one, with intervals whose unit is the
problem.

The noise keys name the phase "evaluation" and no step, so two policies of a run are compared on the same noise, and no
rollout of training shares it. docs/evaluation.md says what each number means."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from curricula import best_of_k, majority_at_k, pass_at_k, pass_hat_k
from curricula.intervals import (
    Interval,
    difference_interval,
    mean_interval,
    share_difference_interval,
    share_interval,
)
from grpo.errors import RewardError
from grpo.rollout import Attempts, Rollouts, check_lost, lost_verdicts
from grpo.types import Group, Problem
from rewards import Status

Groupings = Mapping[str, Mapping[str, str]]
"""Ways to split a set, by name: each problem's part, by its id. A problem that is not named is in no part."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Table:
    """Scores of one set of problems."""

    num_problems: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class ProblemScore:
    """What one problem's rollouts came to: those with a value, those at the success threshold, their mean reward."""

    num_rollouts: int
    num_correct: int
    mean_reward: float

    @property
    def pass_rate(self) -> float:
        """Share of correct rollouts."""
        return self.num_correct / self.num_rollouts


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy on one set of problems. `lost` counts the rollouts without a value, by how their verdict ended."""

    temperature: float
    num_rollouts: int
    overall: Table
    parts: dict[str, dict[str, Table]]  # by the name of a grouping, then by part
    problems: dict[str, ProblemScore]
    lost: dict[str, int]
    truncated_fraction: float
    mean_tokens: float
    num_tokens: int

    @property
    def scores(self) -> dict[str, float]:
        """Each problem's share of correct rollouts."""
        return {problem_id: score.pass_rate for problem_id, score in self.problems.items()}

    @property
    def without_value(self) -> int:
        """Rollouts whose verifier gave no value."""
        return sum(self.lost.values())

    def report(self) -> dict[str, Any]:
        """As JSON can hold it; what `compare` needs is under `problems`."""
        return {
            **asdict(self.overall),
            "num_rollouts": self.num_rollouts,
            **{f"by_{name}": {part: asdict(table) for part, table in of.items()} for name, of in self.parts.items()},
            "num_tokens": self.num_tokens,
            "lost": self.lost,
            "problems": {problem_id: asdict(score) for problem_id, score in self.problems.items()},
        }


def evaluate(
    rollouts: Rollouts,
    problems: Sequence[Problem],
    *,
    num_rollouts: int,
    temperature: float,
    k: Sequence[int],
    max_error_fraction: float,
    first_attempt: int = 0,
    success_threshold: float | None = None,
    groupings: Groupings | None = None,
    place: str = "evaluation",
) -> Evaluation:
    """Score `problems` with `num_rollouts` each. Rollouts whose verifier gave no value are left out and counted.

    A problem of which no rollout has a value is left out too. What takes k rollouts is averaged over the problems that
    kept at least k. Attempts are counted from `first_attempt`: others are other draws. `success_threshold` is that of
    the problems' own judge, None that of the run's. Raises RewardError, which begins with `place`, when no problem has
    a value, or when more verdicts are lost than allowed."""
    attempts = [
        Attempts(problem=problem, first_attempt=first_attempt, num_rollouts=num_rollouts) for problem in problems
    ]
    groups: Sequence[Group] = rollouts.run(attempts, temperature=temperature, phase="evaluation", step=0).groups
    if success_threshold is not None:
        groups = [replace(group, success_threshold=success_threshold) for group in groups]
    verdicts = sum(len(group.rewards) for group in groups)
    check_lost(lost_verdicts(groups), num_verdicts=verdicts, max_error_fraction=max_error_fraction, place=place)
    judged = [group for group in groups if group.outcome.num_rollouts]
    if not judged:
        details = Counter(reward.detail for group in groups for reward in group.rewards).most_common(1)
        raise RewardError(
            f"{place}: none of {len(groups)} problems got a verdict with a value; {details[0][1]} times: "
            f"{details[0][0] or 'the reward abstained'}\nTry the reward with `grpo score`, mend it and add --resume"
        )
    every = [rollout for group in groups for rollout in group.rollouts]
    statuses = Counter(reward.status for group in groups for reward in group.rewards)
    return Evaluation(
        temperature=temperature,
        num_rollouts=num_rollouts,
        overall=_table(judged, k=k, num_rollouts=num_rollouts),
        parts={
            name: {part: _table(of, k=k, num_rollouts=num_rollouts) for part, of in _split(judged, parts)}
            for name, parts in (groupings or {}).items()
        },
        problems={group.problem.id: _score(group) for group in judged},
        lost={str(status): statuses[status] for status in (Status.ERROR, Status.TIMEOUT, Status.ABSTAINED)},
        truncated_fraction=fmean(not rollout.finished for rollout in every),
        mean_tokens=fmean(rollout.num_actions for rollout in every),
        num_tokens=sum(rollout.num_actions for rollout in every),
    )


def compare(
    scores: Mapping[str, ProblemScore],
    others: Mapping[str, ProblemScore],
    *,
    num_rollouts: int,
    k: Sequence[int],
    groupings: Groupings | None = None,
) -> dict[str, Any]:
    """By how much one policy's `scores` are above the `others`, on the problems that both have; as JSON can hold it.

    Differences are taken problem by problem, of avg@n and of each pass@k, with an interval over problems. Wins, losses
    and ties count problems by their share of correct rollouts; chance alone makes many of either."""
    common = [problem_id for problem_id in scores if problem_id in others]
    rates = [(scores[problem_id].pass_rate, others[problem_id].pass_rate) for problem_id in common]
    pairs = {problem_id: (scores[problem_id], others[problem_id]) for problem_id in common}
    table = {
        **_differences(list(pairs.values()), num_rollouts=num_rollouts, k=k),
        "wins": sum(own > other for own, other in rates),
        "losses": sum(own < other for own, other in rates),
        "ties": sum(own == other for own, other in rates),
    }
    for name, parts in (groupings or {}).items():
        table[f"by_{name}"] = {
            part: _differences([pairs[problem_id] for problem_id in members], num_rollouts=num_rollouts, k=k)
            for part, members in _parts(common, parts)
        }
    return table


def by_column(problems: Iterable[Problem], column: str) -> dict[str, str]:
    """Each problem's value in a column of its row, as a text."""
    return {problem.id: str(problem.meta.get(column)) for problem in problems}


def _table(groups: Sequence[Group], *, k: Sequence[int], num_rollouts: int) -> Table:
    metrics: dict[str, Interval] = {}
    binary = all(value in (0.0, 1.0) for group in groups for value in group.values)
    averages = [fmean(group.values) for group in groups]
    metrics[f"avg@{num_rollouts}"] = share_interval(averages) if _are_shares(averages) else mean_interval(averages)
    for size in k:
        full = [group for group in groups if group.outcome.num_rollouts >= size]
        if full:
            metrics[f"pass@{size}"] = share_interval([_of_counts(pass_at_k, group, size) for group in full])
    for size in (size for size in k if size > 1):
        full = [group for group in groups if group.outcome.num_rollouts >= size]
        if full:
            metrics |= _of_several(full, size, binary=binary)
    every = [[(rollout.num_actions, not rollout.finished) for rollout in group.rollouts] for group in groups]
    tokens = mean_interval([fmean(tokens for tokens, _ in of) for of in every])
    metrics["mean_tokens"] = tokens._replace(low=max(0.0, tokens.low))  # no completion is shorter than that
    metrics["truncated_fraction"] = share_interval([fmean(cut for _, cut in of) for of in every])
    return Table(num_problems=len(groups), metrics={name: Estimate(*interval) for name, interval in metrics.items()})


def _of_several(groups: Sequence[Group], size: int, *, binary: bool) -> dict[str, Interval]:
    """What `size` rollouts come to together: all right, the plurality right, the best of them."""
    found = {f"pass^{size}": share_interval([_of_counts(pass_hat_k, group, size) for group in groups])}
    if any(reward.answer is not None for group in groups for reward in group.rewards):
        found[f"majority@{size}"] = share_interval([_majority(group, size) for group in groups])
    if not binary:
        found[f"best@{size}"] = mean_interval([best_of_k(group.values, size) for group in groups])
    return found


def _of_counts(estimator: Callable[[int, int, int], float], group: Group, size: int) -> float:
    return estimator(group.outcome.num_rollouts, group.outcome.num_correct, size)


def _majority(group: Group, size: int) -> float:
    """majority@size. An answer is right where most of the rollouts that gave it are: one was cut, or was too long."""
    votes = [(r.answer, c) for r, c in zip(group.rewards, group.correct, strict=True) if c is not None]
    verdicts: dict[str | None, list[bool]] = {}
    for answer, correct in votes:
        verdicts.setdefault(answer, []).append(correct)
    is_right = {answer: 2 * sum(of_answer) >= len(of_answer) for answer, of_answer in verdicts.items()}
    return majority_at_k([answer for answer, _ in votes], [is_right[answer] for answer, _ in votes], size)


def _are_shares(values: Sequence[float]) -> bool:
    return all(0.0 <= value <= 1.0 for value in values)


def _score(group: Group) -> ProblemScore:
    outcome = group.outcome
    return ProblemScore(
        num_rollouts=outcome.num_rollouts, num_correct=outcome.num_correct, mean_reward=fmean(group.values)
    )


def _differences(
    pairs: Sequence[tuple[ProblemScore, ProblemScore]], *, num_rollouts: int, k: Sequence[int]
) -> dict[str, Any]:
    metrics: dict[str, Interval] = {}
    if pairs:
        own, others = [own.mean_reward for own, _ in pairs], [other.mean_reward for _, other in pairs]
        difference = share_difference_interval if _are_shares([*own, *others]) else difference_interval
        metrics[f"avg@{num_rollouts}"] = difference(own, others)
    for size in k:
        full = [pair for pair in pairs if min(score.num_rollouts for score in pair) >= size]
        if full:
            passes = [[pass_at_k(s.num_rollouts, s.num_correct, size) for s in pair] for pair in full]
            own, others = [own for own, _ in passes], [other for _, other in passes]
            metrics[f"pass@{size}"] = share_difference_interval(own, others)
    return {"num_problems": len(pairs), "metrics": {name: interval._asdict() for name, interval in metrics.items()}}


def _split(groups: Sequence[Group], parts: Mapping[str, str]) -> list[tuple[str, list[Group]]]:
    by_id = {group.problem.id: group for group in groups}
    return [(part, [by_id[problem_id] for problem_id in members]) for part, members in _parts(list(by_id), parts)]


def _parts(problem_ids: Sequence[str], parts: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """The parts in the order of their names, with the ids of each."""
    members: dict[str, list[str]] = {}
    for problem_id in problem_ids:
        if problem_id in parts:
            members.setdefault(parts[problem_id], []).append(problem_id)
    return sorted(members.items())
