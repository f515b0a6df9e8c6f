"""What flows between a trainer and the curricula: ids, counts and requests. No model, no text, no tensor."""

from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """How hard a problem is for one policy at one temperature.

    The cut "pass@8 = 0 and pass@512 > 0" for `extreme` is GLM-4.5's (arXiv 2508.06471); the report does not define
    the others, so their rules are ours (`curricula.store.label`)."""

    trivial = "trivial"
    moderate = "moderate"
    extreme = "extreme"
    unsolved = "unsolved"


TIERS: tuple[Tier, ...] = tuple(Tier)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one group of rollouts says about its problem. Rollouts without a value are not among `num_rollouts`.

    Raises ValueError unless 0 <= num_correct <= num_rollouts. A group of which no rollout has a value is 0 of 0: it
    says nothing and is ignored by every estimate."""

    problem_id: str
    num_rollouts: int
    num_correct: int

    def __post_init__(self) -> None:
        if not self.problem_id:
            raise ValueError("Outcome.problem_id is empty: give the id that the curriculum handed out")
        if not 0 <= self.num_correct <= self.num_rollouts:
            raise ValueError(
                f"Outcome of {self.problem_id!r} needs 0 <= num_correct <= num_rollouts; "
                f"got num_correct={self.num_correct}, num_rollouts={self.num_rollouts}"
            )


@dataclass(frozen=True, slots=True)
class Draw:
    """A request: roll `problem_id` out with attempt indices first_attempt .. first_attempt + num_rollouts - 1."""

    problem_id: str
    first_attempt: int
    num_rollouts: int

    def __post_init__(self) -> None:
        if self.first_attempt < 0 or self.num_rollouts < 1:
            raise ValueError(
                f"Draw of {self.problem_id!r} needs first_attempt >= 0 and num_rollouts >= 1; "
                f"got first_attempt={self.first_attempt}, num_rollouts={self.num_rollouts}"
            )
