"""Paired differences over problems, with their bounds: plain, and of shares of right rollouts where losses are rare."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curricula.distributions import student_quantile


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A mean difference over problems with its standard error, and its bounds, each one-sided."""

    mean: float
    standard_error: float
    lower: float
    upper: float


def paired(
    scores: Mapping[str, float], others: Mapping[str, float], problem_ids: Sequence[str], *, confidence: float
) -> PairedDifference:
    """Mean over two problems or more of scores - others, by Student's t."""
    differences = [scores[name] - others[name] for name in problem_ids]
    mean, standard_error = _mean_and_error(differences)
    width = student_quantile(confidence, degrees=len(differences) - 1) * standard_error
    return PairedDifference(mean, standard_error, mean - width, mean + width)


def paired_scores(
    scores: Mapping[str, float],
    others: Mapping[str, float],
    problem_ids: Sequence[str],
    *,
    rollouts: Mapping[str, float],
    drop: float,
    confidence: float,
) -> PairedDifference:
    """Mean over problems of scores - others, both shares of right rollouts, to be tested against a loss of `drop`.

    `rollouts` is how many rollouts of each problem its score rests on, `drop` in the unit of the scores. Student's t is
    wrong where differences are rare: of 128 right rollouts a share of 2 % is lost without a trace in 8 % of cases, and
    the spread of all those zeros is 0. So

    - the standard error and the degrees of freedom are of the problems that a rollout solved under either: the others
      cannot differ;
    - the variance is at least what it would be if `drop` were true, and nothing but single right rollouts were lost:
      a Poisson number of them, expected drop / one and at least 1, where `one` is what a lost rollout takes from the
      mean. So a score interval takes its variance under the hypothesis (Wilson 1927). It does not depend on how many
      were lost, which growing draws rely on;
    - the bounds are half a rollout further out, the correction for continuity.

    Of a single such problem the standard error is its whole score. What is lost by few problems and all of it there is
    not bounded: where a share f of problems loses everything, K such problems show nothing in (1 - f)^K of cases."""
    solved = [name for name in problem_ids if scores[name] or others[name]]
    if len(solved) > 1:
        _, spread = _mean_and_error([scores[name] - others[name] for name in solved])
    else:
        spread = max((max(scores[name], others[name]) for name in solved), default=0.0)
    one = _one_rollout(others, problem_ids, rollouts=rollouts)
    standard_error = max(spread * len(solved) / len(problem_ids), one * math.sqrt(max(drop / one, 1.0)))
    mean = math.fsum(scores[name] - others[name] for name in problem_ids) / len(problem_ids)
    width = student_quantile(confidence, degrees=max(1, len(solved) - 1)) * standard_error + 0.5 * one
    return PairedDifference(mean, standard_error, mean - width, mean + width)


def _one_rollout(others: Mapping[str, float], problem_ids: Sequence[str], *, rollouts: Mapping[str, float]) -> float:
    """What one right rollout more or less moves the mean over problems by: the mean over right rollouts."""
    right = {name: max(others[name], 0.0) for name in problem_ids}
    weights = right if any(right.values()) else dict.fromkeys(problem_ids, 1.0)
    moved = math.fsum(weight / rollouts[name] for name, weight in weights.items())
    return moved / math.fsum(weights.values()) / len(problem_ids)


def _mean_and_error(differences: Sequence[float]) -> tuple[float, float]:
    count = len(differences)
    mean = math.fsum(differences) / count
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    return mean, math.sqrt(variance / count)
