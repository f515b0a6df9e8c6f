"""A steering coefficient that follows what the steps measure. Needs no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from grpo.config.base import Section

TARGETS = {"variance": 0.001, "trait": 0.995, "projection": 0.0}
PROPORTIONAL = {"variance": 0.0, "trait": 0.0, "projection": 2.0}
INTEGRAL = {"variance": 1.0, "trait": 0.3, "projection": 0.02}
AVERAGED = {"variance": 1, "trait": 1, "projection": 10}
LARGEST_VARIANCE = 0.25
"""Of a score between 0 and 1."""


class FollowConfig(Section):
    """A closed loop: after each step the coefficient is raised or lowered by how far a measure of it is from a target.
    Gains and bounds are in units of steering.coefficient, where it begins."""

    kind: Literal["variance", "trait", "projection"]
    """What is held at the target. variance: the variance of the trait's score within groups, by which a leak has a
    gradient; more of it raises. trait: the score of steered practice; less of it raises. projection: the trait's
    drift at the start of what is steered, in spreads; more of it raises."""
    trait: str | None = None
    """Whose measures are followed: a name of persona.watch; null takes the trait that is steered."""
    target: float | None = None
    """Value that the measure is held at; null takes 0.001 for variance, 0.995 for trait, 0 for
    projection."""
    proportional: float | None = Field(None, ge=0)
    """Change for a change of the error by 1; null takes 0, and 2 for projection. Errors are of scores between 0 and 1,
    of variances in units of the largest, 0.25, and of drifts in spreads."""
    integral: float | None = Field(None, ge=0)
    """Change in each step for an error of 1; null takes 1 for variance, 0.3 for trait, 0.02 for
    projection."""
    average_steps: int | None = Field(None, ge=1)
    """Steps over which the measure is averaged before it is compared, the newest counting most; null takes 1, and 10
    for projection, which differs from step to step by the problems that are practised."""
    max_change: float = Field(0.1, gt=0)
    """Largest change in a step."""
    minimum: float = Field(0.0, ge=0)
    """Lower bound."""
    maximum: float = Field(2.0, gt=0)
    """Upper bound."""

    @property
    def held_at(self) -> float:
        """The target, whether it is written down or the kind's own."""
        return TARGETS[self.kind] if self.target is None else self.target

    @property
    def gains(self) -> tuple[float, float]:
        """Proportional and integral, whether they are written down or the kind's own."""
        return (
            PROPORTIONAL[self.kind] if self.proportional is None else self.proportional,
            INTEGRAL[self.kind] if self.integral is None else self.integral,
        )

    @property
    def averaged(self) -> int:
        """The steps that are averaged over, whether they are written down or the kind's own."""
        return AVERAGED[self.kind] if self.average_steps is None else self.average_steps

    @model_validator(mode="after")
    def _can_be_held(self) -> Self:
        if not self.minimum <= 1 <= self.maximum:
            raise ValueError(
                f"minimum = {self.minimum:g} and maximum = {self.maximum:g} are in units of the coefficient that the "
                "loop begins with, so 1 must lie between them"
            )
        if self.minimum == self.maximum:
            raise ValueError(f"minimum and maximum are both {self.minimum:g}: nothing can follow; move one of them")
        highest = {"variance": LARGEST_VARIANCE, "trait": 1.0}.get(self.kind)
        if highest is not None and not 0 <= self.held_at <= highest:
            raise ValueError(f"target = {self.held_at:g}: the measure of {self.kind} lies between 0 and {highest:g}")
        if self.gains == (0.0, 0.0):
            raise ValueError("proportional and integral are both 0, so the coefficient never moves; set one")
        return self
