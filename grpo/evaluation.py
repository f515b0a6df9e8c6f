"""pass@k and avg@k on held-out problems, with intervals whose unit is the problem, and noise keys of their own.

The keys name the phase "evaluation" and no step, so two policies of a run are compared on the same noise, and no
rollout of training shares it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from curricula import clustered_bootstrap, pass_at_k
from grpo.errors import RewardError
from grpo.rollout import Attempts, Rollouts, check_lost, lost_verdicts
from grpo.seeds import torch_seed
from grpo.types import Group, Problem


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
class Evaluation:
    """One policy on the held-out problems. `scores` is each problem's share of correct rollouts."""

    temperature: float
    num_rollouts: int
    overall: Table
    by_group: dict[str, Table]
    scores: dict[str, float]
    truncated_fraction: float
    mean_tokens: float
    num_tokens: int
    without_value: int

    def report(self, *, name: str, step: int) -> dict[str, Any]:
        """As a JSON file of the run's folder."""
        table = asdict(self.overall) | {"num_rollouts": self.num_rollouts}
        table["by_group"] = {group: asdict(of_group) for group, of_group in self.by_group.items()}
        return {
            "name": name,
            "step": step,
            "temperature": self.temperature,
            "sets": {"heldout": table},
            "truncated_fraction": self.truncated_fraction,
            "mean_tokens": self.mean_tokens,
            "num_tokens": self.num_tokens,
            "without_value": self.without_value,
            "scores": self.scores,
        }


def evaluate(
    rollouts: Rollouts,
    problems: Sequence[Problem],
    *,
    num_rollouts: int,
    temperature: float,
    k: Sequence[int],
    seed: int,
    max_error_fraction: float,
    by_column: str | None = None,
) -> Evaluation:
    """Score `problems` with `num_rollouts` each. Rollouts whose verifier gave no value are left out and counted.

    A problem of which no rollout has a value is left out too. pass@k is averaged over the problems that kept at least
    k rollouts. Raises RewardError when no problem has a value, or when more verdicts are lost than allowed."""
    attempts = [Attempts(problem=problem, first_attempt=0, num_rollouts=num_rollouts) for problem in problems]
    groups = rollouts.run(attempts, temperature=temperature, phase="evaluation", step=0).groups
    verdicts = sum(len(group.rewards) for group in groups)
    check_lost(lost_verdicts(groups), num_verdicts=verdicts, max_error_fraction=max_error_fraction, place="evaluation")
    judged = [group for group in groups if group.outcome.num_rollouts]
    if not judged:
        details = Counter(reward.detail for group in groups for reward in group.rewards).most_common(1)
        raise RewardError(
            f"evaluation: none of {len(groups)} problems got a verdict with a value; {details[0][1]} times: "
            f"{details[0][0] or 'the reward abstained'}\nTry the reward with `grpo score`, mend it and add --resume"
        )
    every = [rollout for group in groups for rollout in group.rollouts]
    by_group: dict[str, list[Group]] = {}
    if by_column is not None:
        for group in judged:
            by_group.setdefault(str(group.problem.meta.get(by_column)), []).append(group)
    return Evaluation(
        temperature=temperature,
        num_rollouts=num_rollouts,
        overall=_table(judged, k=k, num_rollouts=num_rollouts, seed=seed),
        by_group={n: _table(g, k=k, num_rollouts=num_rollouts, seed=seed) for n, g in sorted(by_group.items())},
        scores={group.problem.id: group.pass_rate for group in judged},
        truncated_fraction=fmean(not rollout.finished for rollout in every),
        mean_tokens=fmean(rollout.num_actions for rollout in every),
        num_tokens=sum(rollout.num_actions for rollout in every),
        without_value=sum(reward.value is None for group in groups for reward in group.rewards),
    )


def _table(groups: Sequence[Group], *, k: Sequence[int], num_rollouts: int, seed: int) -> Table:
    outcomes = [group.outcome for group in groups]
    values = {f"avg@{num_rollouts}": [fmean(group.values) for group in groups]}
    for size in k:
        full = [outcome for outcome in outcomes if outcome.num_rollouts >= size]
        if full:
            values[f"pass@{size}"] = [pass_at_k(o.num_rollouts, o.num_correct, size) for o in full]
    return Table(
        num_problems=len(groups),
        metrics={name: _estimate(of_problems, seed=seed) for name, of_problems in values.items()},
    )


def _estimate(values: Sequence[float], *, seed: int) -> Estimate:
    mean, low, high = clustered_bootstrap(values, seed=torch_seed(seed, "bootstrap"))
    return Estimate(value=mean, low=low, high=high)
