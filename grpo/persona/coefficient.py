"""How strongly the policy is steered in each step.

A coefficient is a number for each step, and may learn from what earlier steps measured; it knows no model and no
vector."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from grpo.config import SteeringConfig
from grpo.persona.following import Followed


class Coefficient(Protocol):
    """The factor of the vectors, step by step. The same on every rank, which all observe the same measures."""

    def value(self, step: int) -> float:
        """Of step `step`, counted from 0; what `observe` is told of a step changes later ones alone."""

    def observe(self, step: int, measures: Mapping[str, float]) -> None:
        """The metrics of step `step`, once it is done."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""


class Scheduled:
    """A coefficient that is known beforehand: constant, or on its way to a last value, which then stays."""

    def __init__(
        self,
        first: float,
        *,
        kind: Literal["constant", "linear", "cosine"] = "constant",
        last: float = 0.0,
        steps: int = 1,
    ) -> None:
        """`last` is reached after `steps` steps; a constant one reads neither."""
        self._first, self._kind, self._last, self._steps = first, kind, last, steps

    def value(self, step: int) -> float:
        """first + (last − first) · way; the way is step / steps or (1 − cos(π · step / steps)) / 2, from 0 to 1."""
        if self._kind == "constant":
            return self._first
        share = min(1.0, step / self._steps)
        way = share if self._kind == "linear" else (1 - math.cos(math.pi * share)) / 2
        return self._first + (self._last - self._first) * way

    def observe(self, step: int, measures: Mapping[str, float]) -> None:
        """Nothing is learned from it."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to take up."""


def coefficient_of(config: SteeringConfig, *, trait: str) -> Coefficient:
    """The coefficient that the section steering describes, at its first step; `trait` is what is steered."""
    if config.follow is not None:
        return Followed(config.coefficient, config.follow, trait=config.follow.trait or trait)
    if config.final_coefficient is None or config.schedule_steps is None:
        return Scheduled(config.coefficient)
    return Scheduled(
        config.coefficient, kind=config.schedule, last=config.final_coefficient, steps=config.schedule_steps
    )
