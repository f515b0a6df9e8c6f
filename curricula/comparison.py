"""Which temperature costs too much? Held-out scores at several temperatures, compared problem by problem."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Guard:
    """How far a temperature's held-out score may lie below the reference's, and how sure that must be.

    drop                 largest drop: GLM-4.5's 1 %
    unit                 relative: drop and max_standard_error are shares of the reference's mean score;
                         absolute: they are in the score's own unit. The report does not say which it means
    reference            current: the temperature in use. best: the grid's best, the literal reading, which picks the
                         coldest temperature wherever sampling hotter costs accuracy
    max_standard_error   a paired difference that is less sure than this is undecided and admits nothing

    Raises ValueError on negative numbers and unknown words."""

    drop: float = 0.01
    unit: Literal["relative", "absolute"] = "relative"
    reference: Literal["current", "best"] = "current"
    max_standard_error: float = 0.005

    def __post_init__(self) -> None:
        if self.drop < 0.0 or self.max_standard_error < 0.0:
            raise ValueError(
                f"guard: drop = {self.drop} and max_standard_error = {self.max_standard_error} must not be negative"
            )
        if self.unit not in ("relative", "absolute"):
            raise ValueError(f"guard: unit = {self.unit!r}: must be 'relative' or 'absolute'")
        if self.reference not in ("current", "best"):
            raise ValueError(f"guard: reference = {self.reference!r}: must be 'current' or 'best'")


@dataclass(frozen=True, slots=True)
class Reading:
    """One temperature on the held-out problems; difference and standard error are paired, against the reference."""

    temperature: float
    mean: float
    difference: float
    standard_error: float
    decided: bool
    admissible: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen and every number that led there; `dataclasses.asdict` makes it JSON-able.

    drop_allowed and standard_error_allowed are in the score's own unit."""

    step: int
    current: float
    chosen: float
    reference: float
    num_problems: int
    drop_allowed: float
    standard_error_allowed: float
    readings: tuple[Reading, ...]
    reason: str

    @property
    def changed(self) -> bool:
        return self.chosen != self.current

    @property
    def undecided(self) -> tuple[float, ...]:
        """Temperatures whose difference is not sure enough yet: more draws may settle them."""
        return tuple(reading.temperature for reading in self.readings if not reading.decided)


def compare_temperatures(
    scores: Mapping[float, Mapping[str, float]], *, step: int, current: float, guard: Guard
) -> Decision:
    """The highest temperature whose mean score is at most the guard's drop below the reference's.

    `scores` holds, at each temperature, the mean score of each problem; problems are the unit, and differences are
    paired, so that their spread in difficulty cancels. A temperature whose paired standard error is too large is
    undecided and not admissible. If the temperature in use is itself undecided against the reference "best", it is
    kept rather than lowered. Pure: call it on partial draws to see whether more are needed.
    Raises ValueError unless the temperature in use was scored, on the same two or more problems as every other."""
    problem_ids = _common_problems(scores, current=current)
    means = {t: math.fsum(scores[t][name] for name in problem_ids) / len(problem_ids) for t in sorted(scores)}
    # Of equally good ones the hottest: a tie is no reason to cool down.
    reference = current if guard.reference == "current" else max(means, key=lambda t: (means[t], t))
    scale = abs(means[reference]) if guard.unit == "relative" else 1.0
    drop_allowed, standard_error_allowed = guard.drop * scale, guard.max_standard_error * scale
    readings = []
    for temperature, mean in means.items():
        differences = [scores[temperature][name] - scores[reference][name] for name in problem_ids]
        difference, standard_error = _mean_and_error(differences)
        decided = temperature == reference or standard_error <= standard_error_allowed
        admissible = decided and difference >= -drop_allowed
        readings.append(Reading(temperature, mean, difference, standard_error, decided, admissible))
    chosen, reason = _choose(readings, current=current, reference=reference, scale=scale)
    return Decision(
        step=step,
        current=current,
        chosen=chosen,
        reference=reference,
        num_problems=len(problem_ids),
        drop_allowed=drop_allowed,
        standard_error_allowed=standard_error_allowed,
        readings=tuple(readings),
        reason=reason,
    )


def _choose(readings: list[Reading], *, current: float, reference: float, scale: float) -> tuple[float, str]:
    if scale == 0.0:
        return (
            current,
            f"kept {current}: the score at {reference} is 0, of which no share can be taken; use unit: absolute",
        )
    highest = max(reading.temperature for reading in readings if reading.admissible)
    in_use = next(reading for reading in readings if reading.temperature == current)
    hotter_undecided = [
        reading.temperature for reading in readings if reading.temperature > highest and not reading.decided
    ]
    doubt = f"; undecided: {', '.join(map(str, hotter_undecided))}" if hotter_undecided else ""
    if highest < current and not in_use.decided:
        return current, f"kept {current}: its difference to {reference} is undecided{doubt}"
    if highest == current:
        return current, f"kept {current}: no hotter temperature is admissible{doubt}"
    verb = "raised" if highest > current else "lowered"
    return highest, f"{verb} to {highest}, the highest admissible temperature against {reference}{doubt}"


def _common_problems(scores: Mapping[float, Mapping[str, float]], *, current: float) -> list[str]:
    if current not in scores:
        raise ValueError(f"scores lack the temperature in use, {current}; got {sorted(scores)}")
    problem_ids = sorted(scores[current])
    if len(problem_ids) < 2:
        raise ValueError(f"comparing temperatures needs at least 2 problems, better hundreds; got {len(problem_ids)}")
    for temperature in scores:
        if scores[temperature].keys() != scores[current].keys():
            raise ValueError(
                f"temperature {temperature} was scored on {len(scores[temperature])} problems, {current} on "
                f"{len(problem_ids)}, and they are not the same ones; score every temperature on the same problems"
            )
        if not all(math.isfinite(score) for score in scores[temperature].values()):
            raise ValueError(f"a score at temperature {temperature} is not finite; leave that problem out everywhere")
    return problem_ids


def _mean_and_error(differences: list[float]) -> tuple[float, float]:
    count = len(differences)
    mean = math.fsum(differences) / count
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    return mean, math.sqrt(variance / count)
