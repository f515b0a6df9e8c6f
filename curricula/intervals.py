"""Intervals of means over problems: what a set of problems says about a policy, where the set may be small.

The unit is the problem: rollouts of one problem are no independent evidence about a set. Every function is pure."""

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import NamedTuple

from curricula.distributions import student_quantile


class Interval(NamedTuple):
    """A mean over problems with its two-sided interval."""

    value: float
    low: float
    high: float


def share_interval(per_problem_values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of values from 0 to 1, one a problem (its pass@k, its avg@k), with a score interval.

    Wilson's (1927), for as many problems as would have this spread if each were all right or all wrong:
    m (1 - m) / s² of them for each problem at hand, never fewer than there are, with Student's quantile for his normal
    one. It is the effective sample size of surveys (Korn and Graubard 1998). Where nothing is solved, or everything,
    it still has the width that the number of problems leaves it.

    Nominal 95 %, simulated with 8 rollouts a problem, problems drawn anew each time (tests/test_intervals.py):
    problems   pass rates                       share_interval   Student's t   percentile bootstrap
    30         spread evenly over 0 to 1        .95              .95           .93
    30         nine of ten hopeless             .91              .83           .82
    30         97 of 100 hopeless               .96              .51           .51
    300        spread evenly over 0 to 1        .95              .95           .95
    300        97 of 100 hopeless               .95              .90           .91
    pass@8 of these .95 to .97, where the other two fall to .55 (97 of 100 hopeless, 30 problems).
    Problems are taken for a draw from all problems of their kind; about these very problems, the interval is wide.
    Raises ValueError on no value, a value outside [0, 1] and a confidence outside (0, 1)."""
    mean, spread = _mean_and_variance(per_problem_values, confidence)
    number = len(per_problem_values)
    if not all(0.0 <= value <= 1.0 for value in per_problem_values):
        raise ValueError("share_interval needs values from 0 to 1; take mean_interval for others")
    if number == 1:
        return Interval(mean, 0.0, 1.0)
    inner = mean * (1.0 - mean)
    if spread == 0.0 and inner > 0.0:
        return Interval(mean, mean, mean)
    effective = number * max(1.0, inner / spread) if spread else float(number)
    quantile = student_quantile(0.5 + confidence / 2.0, degrees=number - 1)
    return Interval(mean, *_wilson(mean, effective, quantile))


def mean_interval(per_problem_values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of values of any range, one a problem (tokens, graded rewards, differences), with Student's t interval.

    Exact for values that are normal; for others it covers less where a few problems make the mean: see
    `share_interval` for shares. One problem alone has no spread to see, and its interval is its value.
    Raises ValueError on no value, a value that is not finite and a confidence outside (0, 1)."""
    mean, spread = _mean_and_variance(per_problem_values, confidence)
    number = len(per_problem_values)
    if number == 1:
        return Interval(mean, mean, mean)
    half = student_quantile(0.5 + confidence / 2.0, degrees=number - 1) * math.sqrt(spread / number)
    return Interval(mean, mean - half, mean + half)


def difference_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of a - b over problems, `mean_interval` of the differences; a[i] and b[i] belong to the same problem.

    What makes one problem harder than another cancels. Raises ValueError when the lengths differ, and as
    `mean_interval`."""
    return mean_interval(_differences(a, b), confidence=confidence)


def share_difference_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of a - b over problems, where a[i] and b[i], of the same problem, are from 0 to 1.

    Gains and losses are shares of as many problems as would have the differences' spread if each were wholly better,
    wholly worse or alike: (g + l - (g - l)²) / s² of them for each problem at hand, never fewer than there are, as in
    `share_interval`. Each share has Wilson's interval for that number; their distances are squared and added (Newcombe
    1998, method 10; Zou and Donner 2008), with the covariance that no problem gains and loses. The number is one for
    both: with a number for each, a loss that is small among few would count as known better than no loss at all. A tie
    that turns into a loss makes no difference significant that was not (tests/test_intervals.py, by search).

    Where few problems differ, Student's t is too sure: of 30 problems spread evenly over 0 to 1 and a policy .7 logits
    better, its interval of pass@8 holds the truth in 89 % of draws and this one in over 99 %, at pass@1 95 and 96 %;
    where nine of ten problems are hopeless, at pass@8, 24 and over 99 %. Where no problem differs it still has a width.
    Raises ValueError when the lengths differ, and as `share_interval`."""
    differences = _differences(a, b)
    value, spread = _mean_and_variance(differences, confidence)
    number = len(differences)
    if not all(-1.0 <= difference <= 1.0 for difference in differences):
        raise ValueError("share_difference_interval needs values from 0 to 1; take difference_interval for others")
    if number == 1:
        return Interval(value, -1.0, 1.0)
    gain = fmean(max(difference, 0.0) for difference in differences)
    loss = fmean(max(-difference, 0.0) for difference in differences)
    # Differences that are all alike show no spread to count by: they are as many as there are.
    effective = number * max(1.0, (gain + loss - value * value) / spread) if spread else float(number)
    quantile = student_quantile(0.5 + confidence / 2.0, degrees=number - 1)
    gain_low, gain_high = _wilson(gain, effective, quantile)
    loss_low, loss_high = _wilson(loss, effective, quantile)
    others = (1.0 - gain) * (1.0 - loss)
    correlation = -math.sqrt(gain * loss / others) if others else 0.0
    below = _added(gain - gain_low, loss_high - loss, correlation)
    above = _added(gain_high - gain, loss - loss_low, correlation)
    return Interval(value, max(-1.0, value - below), min(1.0, value + above))


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same problems on both sides; got {len(a)} and {len(b)} values")
    return [left - right for left, right in zip(a, b, strict=True)]


def _wilson(share: float, number: float, quantile: float) -> tuple[float, float]:
    """Wilson's bounds of a share of `number`, which need be no whole one, for a quantile of any distribution."""
    squared = quantile * quantile / number
    centre = (share + squared / 2.0) / (1.0 + squared)
    half = quantile * math.sqrt(share * (1.0 - share) / number + squared / (4.0 * number)) / (1.0 + squared)
    low = 0.0 if share == 0.0 else max(0.0, centre - half)
    return low, 1.0 if share == 1.0 else min(1.0, centre + half)


def _added(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one * one - 2.0 * correlation * one * other + other * other))


def _mean_and_variance(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Mean and unbiased variance; the variance of one value, or of equal ones, is 0."""
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("an interval needs one finite value a problem; leave problems without one out and count them")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}: must lie strictly between 0 and 1 (0.95 is usual)")
    if min(values) == max(values):
        return float(values[0]), 0.0
    return fmean(values), variance(values)
