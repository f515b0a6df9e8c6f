"""From the values of a step's groups to advantages: a baseline, then a scale. Plain arithmetic on lists of floats.

A value is a reward (with a length penalty, where one is configured) of a rollout that has one; rollouts without a
value never reach this file."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev


def centred_on_mean(values: Sequence[float]) -> list[float]:
    """r − mean of the group. Source: Shao et al. (2024), arXiv 2402.03300, without the division."""
    mean = fmean(values)
    return [value - mean for value in values]


def centred_on_others(values: Sequence[float]) -> list[float]:
    """r − mean of the group's other rollouts. Source: Ahmadian et al. (2024), arXiv 2402.14740 (RLOO)."""
    total = sum(values)
    return [value - (total - value) / (len(values) - 1) for value in values]


def unscaled(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """Advantages as they are. Source: Liu et al. (2025), arXiv 2503.20783 (Dr. GRPO)."""
    return [list(advantages) for advantages in groups]


def scaled_by_group_std(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each group divided by its own standard deviation (n − 1, as in TRL and verl; centring leaves it as it was)."""
    return [[advantage / stdev(advantages) for advantage in advantages] for advantages in groups]


def scaled_by_batch_std(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """All divided by the root mean square of the step's advantages. Source: Magistral, arXiv 2506.10910, section 2."""
    every = [advantage for advantages in groups for advantage in advantages]
    root_mean_square = math.sqrt(fmean(advantage * advantage for advantage in every))
    return [[advantage / root_mean_square for advantage in advantages] for advantages in groups]


BASELINES: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "mean": centred_on_mean,
    "leave_one_out": centred_on_others,
}
SCALES: dict[str, Callable[[Sequence[Sequence[float]]], list[list[float]]]] = {
    "none": unscaled,
    "group_std": scaled_by_group_std,
    "batch_std": scaled_by_batch_std,
}


def group_advantages(groups: Sequence[Sequence[float]], *, baseline: str, scale: str) -> list[list[float]]:
    """Advantages of the step's groups, each a list of values, in the same shape.

    A group without variance (max == min) is the caller's to drop: it has no advantage and no scale.
    Raises ValueError for one, or for a group of fewer than two values."""
    for index, values in enumerate(groups):
        if len(values) < 2 or max(values) == min(values):
            raise ValueError(
                f"group {index} teaches nothing (values {list(values)}); drop it before asking for advantages"
            )
    return SCALES[scale]([BASELINES[baseline](values) for values in groups])
