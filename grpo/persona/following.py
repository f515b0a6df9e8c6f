"""A steering coefficient that follows what the steps measure: a closed loop around practice.

With e the error, in the units that `error_of` says, and m the coefficient over the one that it begins with,

    m ← clip(m + clip(K_p · (e − e') + K_i · e, ±max_change), minimum, maximum)

after each step whose measure is there, where e' is the error of the last such step and e that of the measure's running
mean, x̄ ← x̄ + (x − x̄) / min(n, average_steps) in the n-th such step: a controller of proportional and
integral action in its incremental form (Åström and Hägglund 1995, PID Controllers, chapter 3). What
it has summed up is m itself, and m is within its bounds, so nothing winds up while it lies at one. The laws and their
gains are ours: the papers on persona vectors have fixed coefficients."""

import math
from collections.abc import Mapping
from typing import Any

from grpo.config import FollowConfig
from grpo.config.following import LARGEST_VARIANCE

MEASURES = {"variance": "group_variance", "trait": "rate", "projection": "drift"}
"""The metric persona/<trait>/... of each kind."""


class Followed:
    """A coefficient that begins at `first` and follows the measures of `trait`, a name of persona.watch."""

    def __init__(self, first: float, config: FollowConfig, *, trait: str) -> None:
        self._first, self._config = first, config
        self._measure = f"persona/{trait}/{MEASURES[config.kind]}"
        self._factor = 1.0  # m
        self._average, self._num_observed = 0.0, 0
        self._last_error: float | None = None

    def value(self, step: int) -> float:
        """Of the step after the last one that was observed, whatever its number."""
        return self._first * self._factor

    def observe(self, step: int, measures: Mapping[str, float]) -> None:
        """Move by what a step measured; a step without the measure, or one that is not finite, moves nothing."""
        measured = measures.get(self._measure, math.nan)
        if not math.isfinite(measured):
            return
        config = self._config
        self._num_observed += 1
        self._average += (measured - self._average) / min(self._num_observed, config.averaged)
        error = error_of(config, self._average, first=self._first)
        before = error if self._last_error is None else self._last_error
        proportional, integral = config.gains
        change = proportional * (error - before) + integral * error
        change = min(config.max_change, max(-config.max_change, change))
        self._factor = min(config.maximum, max(config.minimum, self._factor + change))
        self._last_error = error

    def state_dict(self) -> dict[str, Any]:
        """The factor, the running mean, and the error of the last step that had one."""
        return {
            "factor": self._factor,
            "average": self._average,
            "num_observed": self._num_observed,
            "last_error": self._last_error,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._factor, self._last_error = state["factor"], state["last_error"]
        self._average, self._num_observed = state["average"], state["num_observed"]


def error_of(config: FollowConfig, measured: float, *, first: float) -> float:
    """How much stronger the steering should be: above 0 raises it.

    variance: (v − target) / 0.25, from −1 to 1: while the trait varies within groups, a reward that leaks it has a
    gradient, and enough steering takes both away. trait: target − rate. projection: drift − target, in spreads. The
    last two are negated for a coefficient below 0, under which more steering means less of the trait."""
    if config.kind == "variance":
        return (measured - config.held_at) / LARGEST_VARIANCE
    sign = math.copysign(1.0, first)
    return sign * (config.held_at - measured if config.kind == "trait" else measured - config.held_at)
