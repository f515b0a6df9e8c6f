"""Which temperature costs too much? Held-out scores at several temperatures, compared problem by problem."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from curricula.distributions import student_quantile


@dataclass(frozen=True, slots=True)
class Guard:
    """How far a temperature's held-out score may lie below the reference's, and how sure that must be.

    drop                 largest drop: GLM-4.5's 1 %
    unit                 relative: drop and max_standard_error are shares of the reference's mean score;
                         absolute: they are in the score's own unit. The report does not say which it means
    reference            current: the temperature in use. best: the grid's best, the literal reading, which picks the
                         coldest temperature wherever sampling hotter costs accuracy
    max_standard_error   a paired difference that is less sure than this is undecided and admits nothing
    confidence           one-sided, of the bounds below; the report names no test, so this one is ours

    A temperature is admitted when the lower bound of its paired difference is within the drop: one that truly costs
    more than the drop is admitted in at most 1 - confidence of decisions. With right-or-wrong scores of 128 problems of
    pass rates spread evenly over 0 to 1 and 16 rollouts each, drawn independently, the standard error is 2.6 % of the
    score, and a true drop of 0, 1, 2, 3 % is admitted in 18, 10, 5, 2 % of decisions; with 64 rollouts in 31, 10, 2,
    0.3 %; with 256 in 64, 10, 0.5, 0 %. So few rollouts raise the temperature late, not wrongly.

    Raises ValueError on negative numbers, unknown words and a confidence outside [0.5, 1)."""

    drop: float = 0.01
    unit: Literal["relative", "absolute"] = "relative"
    reference: Literal["current", "best"] = "current"
    max_standard_error: float = 0.03
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if self.drop < 0.0 or self.max_standard_error < 0.0:
            raise ValueError(
                f"guard: drop = {self.drop} and max_standard_error = {self.max_standard_error} must not be negative"
            )
        if self.unit not in ("relative", "absolute"):
            raise ValueError(f"guard: unit = {self.unit!r}: must be 'relative' or 'absolute'")
        if self.reference not in ("current", "best"):
            raise ValueError(f"guard: reference = {self.reference!r}: must be 'current' or 'best'")
        if not 0.5 <= self.confidence < 1.0:
            raise ValueError(f"guard: confidence = {self.confidence}: must lie in [0.5, 1); 0.5 takes the mean alone")


@dataclass(frozen=True, slots=True)
class Reading:
    """One temperature on the held-out problems. Difference, its standard error and its bounds are paired, against the
    reference; each bound is one-sided. Decided: admissible, or below the allowed drop with the same confidence."""

    temperature: float
    mean: float
    difference: float
    standard_error: float
    difference_lower: float
    difference_upper: float
    decided: bool
    admissible: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen and every number that led there; `dataclasses.asdict` makes it JSON-able.

    drop_allowed and standard_error_allowed are in the score's own unit; there are no readings where fewer than two
    problems had a score."""

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
        """Temperatures whose difference is not sure enough: more rollouts may settle them."""
        return tuple(reading.temperature for reading in self.readings if not reading.decided)


def compare_temperatures(
    scores: Mapping[float, Mapping[str, float]], *, step: int, current: float, guard: Guard
) -> Decision:
    """The highest temperature that is admitted, as are all between it and the reference.

    `scores` holds, at each temperature, the mean score of each problem; problems are the unit, and differences are
    paired, so that their spread in difficulty cancels. Temperatures above the reference are tested upwards, and the
    first that is not admitted ends the test: so the chance of admitting any that costs more than the drop stays
    1 - guard.confidence, however many there are (a fixed-sequence test; Maurer, Hothorn and Lehmacher 1995). With fewer
    than two problems nothing can be compared, and the temperature in use is kept; so it is where it may be admissible
    against the reference "best". Pure: call it on partial draws to see whether more are needed.
    Raises ValueError unless the temperature in use was scored, on the same problems as every other."""
    problem_ids = _common_problems(scores, current=current)
    if len(problem_ids) < 2:
        return _not_comparable(len(problem_ids), step=step, current=current)
    means = {t: math.fsum(scores[t][name] for name in problem_ids) / len(problem_ids) for t in sorted(scores)}
    # Of equally good ones the hottest: a tie is no reason to cool down.
    reference = current if guard.reference == "current" else max(means, key=lambda t: (means[t], t))
    scale = abs(means[reference]) if guard.unit == "relative" else 1.0
    drop_allowed, standard_error_allowed = guard.drop * scale, guard.max_standard_error * scale
    quantile = student_quantile(guard.confidence, degrees=len(problem_ids) - 1)
    readings = []
    for temperature, mean in means.items():
        difference, standard_error = _mean_and_error(
            [scores[temperature][name] - scores[reference][name] for name in problem_ids]
        )
        lower, upper = difference - quantile * standard_error, difference + quantile * standard_error
        sure = standard_error <= standard_error_allowed
        admissible = sure and lower >= -drop_allowed
        readings.append(
            Reading(
                temperature=temperature,
                mean=mean,
                difference=difference,
                standard_error=standard_error,
                difference_lower=lower,
                difference_upper=upper,
                decided=admissible or (sure and upper < -drop_allowed),
                admissible=admissible,
            )
        )
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
    hotter = [reading for reading in readings if reading.temperature > reference]
    admitted = [reading.temperature for reading in takewhile(lambda reading: reading.admissible, hotter)]
    highest = max([reference, *admitted])
    in_use = next(reading for reading in readings if reading.temperature == current)
    undecided = [reading.temperature for reading in hotter if reading.temperature > highest and not reading.decided]
    doubt = f"; undecided: {', '.join(map(str, undecided))}" if undecided else ""
    if highest < current and (in_use.admissible or not in_use.decided):
        return current, f"kept {current}: that it costs too much against {reference} is undecided{doubt}"
    if highest == current:
        return current, f"kept {current}: no hotter temperature is admissible{doubt}"
    verb = "raised" if highest > current else "lowered"
    return highest, f"{verb} to {highest}, the highest admissible temperature against {reference}{doubt}"


def _not_comparable(num_problems: int, *, step: int, current: float) -> Decision:
    return Decision(
        step=step,
        current=current,
        chosen=current,
        reference=current,
        num_problems=num_problems,
        drop_allowed=0.0,
        standard_error_allowed=0.0,
        readings=(),
        reason=f"kept {current}: undecided, since {num_problems} problems have a score at every temperature and a "
        "comparison needs 2, better hundreds",
    )


def _common_problems(scores: Mapping[float, Mapping[str, float]], *, current: float) -> list[str]:
    if current not in scores:
        raise ValueError(f"scores lack the temperature in use, {current}; got {sorted(scores)}")
    problem_ids = sorted(scores[current])
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
