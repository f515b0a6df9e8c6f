"""Has a noisy curve stopped rising, or moving? A slope test with a stated confidence, not a threshold on noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from curricula.distributions import student_quantile


@dataclass(frozen=True, slots=True)
class PlateauRule:
    """When a curve counts as flat. The report says only "when the reward has stabilised" (arXiv 2508.06471); every
    number here is a default of ours.

    window_steps           the latest steps that are looked at
    block_steps            steps averaged into one point first (smoothing that leaves the points independent)
    confidence             one-sided: a curve that rises by more is called flat with at most 1 - confidence
    improvement_fraction   a rise over the window that is still flat, as a share of the window's mean

    The noise sets what can be seen: with steps that scatter by 10 % of the mean, 40 of them bound the rise to about
    ±5 %, so an improvement_fraction of 0.01 would never be met. At the defaults a curve whose steps scatter by more
    than 14 % of the mean is never called steady; with 20 steps that is so from 10 % on. A test at every step errs more
    often than one test.
    Raises ValueError on values outside their range."""

    window_steps: int = 40
    block_steps: int = 1
    confidence: float = 0.9
    improvement_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.block_steps < 1 or self.window_steps < 4 * self.block_steps:
            raise ValueError(
                f"plateau: window_steps = {self.window_steps} must hold at least 4 blocks of block_steps = "
                f"{self.block_steps} steps: a slope and its error need as many points"
            )
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"plateau: confidence = {self.confidence}: must lie strictly between 0 and 1")
        if self.improvement_fraction < 0.0:
            raise ValueError(f"plateau: improvement_fraction = {self.improvement_fraction}: must not be negative")


@dataclass(frozen=True, slots=True)
class Plateau:
    """The verdicts with their numbers, all in the curve's own unit.

    flat                     it does not rise any more; it may fall
    steady                   it neither rises nor falls
    rise                     slope × window, with its one-sided bounds rise_lower and rise_upper"""

    flat: bool
    steady: bool
    num_steps: int
    mean: float
    slope_per_step: float
    standard_error: float
    rise: float
    rise_lower: float
    rise_upper: float
    allowed_rise: float


def detect_plateau(values: Sequence[float], *, rule: PlateauRule) -> Plateau | None:
    """Test the last `rule.window_steps` values, one a step; None while there are fewer.

    Least squares on block means; the slope's standard error is widened by sqrt((1+r)/(1-r)) for a lag-one
    autocorrelation r > 0 of the residuals (an AR(1) noise; Bartlett 1946), and t-distributed. Flat when the upper
    confidence bound of slope × window is at most improvement_fraction × |mean|; steady when the lower bound is also at
    least minus that (two one-sided tests; Schuirmann 1987), so that a curve that moves by more either way is called
    steady with at most 1 - confidence."""
    if len(values) < rule.window_steps:
        return None
    num_points = rule.window_steps // rule.block_steps
    used = [float(value) for value in values[-num_points * rule.block_steps :]]
    points = [
        math.fsum(used[start : start + rule.block_steps]) / rule.block_steps
        for start in range(0, len(used), rule.block_steps)
    ]
    mean = math.fsum(points) / num_points
    centre = (num_points - 1) / 2.0
    spread = math.fsum((place - centre) ** 2 for place in range(num_points))
    slope = math.fsum((place - centre) * (point - mean) for place, point in enumerate(points)) / spread
    residuals = [point - mean - slope * (place - centre) for place, point in enumerate(points)]
    degrees = num_points - 2
    noise = math.fsum(residual**2 for residual in residuals)
    standard_error = math.sqrt(noise / degrees / spread) * _autocorrelation_factor(residuals)
    width = student_quantile(rule.confidence, degrees=degrees) * standard_error
    upper, lower = (slope + width) * num_points, (slope - width) * num_points
    allowed_rise = rule.improvement_fraction * abs(mean)
    return Plateau(
        flat=upper <= allowed_rise,
        steady=upper <= allowed_rise and lower >= -allowed_rise,
        num_steps=len(used),
        mean=mean,
        slope_per_step=slope / rule.block_steps,
        standard_error=standard_error / rule.block_steps,
        rise=slope * num_points,
        rise_lower=lower,
        rise_upper=upper,
        allowed_rise=allowed_rise,
    )


def _autocorrelation_factor(residuals: Sequence[float]) -> float:
    variance = math.fsum(residual**2 for residual in residuals)
    if variance == 0.0:
        return 1.0
    lagged = math.fsum(a * b for a, b in pairwise(residuals)) / variance
    correlation = min(max(lagged, 0.0), 0.9)
    return math.sqrt((1.0 + correlation) / (1.0 - correlation))
