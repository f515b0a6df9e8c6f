"""Which temperature costs too much? Scores at several temperatures, compared problem by problem.

Pure: what to draw and what to choose follow from what was drawn. `compare_temperatures` says what is guaranteed."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Literal

from curricula.paired import PairedDifference, paired_scores
from curricula.plateau import Plateau
from curricula.types import Outcome

Choice = Literal["highest", "signal"]


@dataclass(frozen=True, slots=True)
class Guard:
    """How far a temperature's score may lie below the reference's, and how sure that must be.

    drop                 largest drop: GLM-4.5's 1 %
    unit                 relative: drop and max_standard_error are shares of the reference's mean score;
                         absolute: they are in the score's own unit. The report does not say which it means
    reference            current: the temperature in use. best: the grid's best, the literal reading, which picks the
                         coldest temperature wherever sampling hotter costs accuracy, as it does in small models
    max_standard_error   a paired difference that is less sure than this is undecided and admits nothing
    confidence           one-sided, of the bounds below; the report names no test, so this one is ours

    Raises ValueError on negative numbers, unknown words and a confidence outside [0.5, 1)."""

    drop: float = 0.01
    unit: Literal["relative", "absolute"] = "relative"
    reference: Literal["current", "best"] = "current"
    max_standard_error: float = 0.005
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
class Measured:
    """One temperature's rollouts, summed up by problem id.

    scores               share of right rollouts
    signal               p(1 - p), estimated without bias by `unbiased_signal`; of problems with two rollouts or more
    diversity            share of distinct n-grams (`curricula.diversity`) in a draw of the same size for all
    num_rollouts         drawn of each problem; 0 where they differ
    judged               rollouts that each problem's score rests on; {}: num_rollouts of each
    effective_fraction   of reweighted rollouts (`curricula.counterfactual`), the share that counts; None: drawn"""

    scores: Mapping[str, float]
    signal: Mapping[str, float] = field(default_factory=dict)
    diversity: Mapping[str, float] = field(default_factory=dict)
    num_rollouts: int = 0
    judged: Mapping[str, int] = field(default_factory=dict)
    effective_fraction: float | None = None

    @classmethod
    def of(
        cls, outcomes: Iterable[Outcome], *, num_rollouts: int, diversity: Mapping[str, float] | None = None
    ) -> "Measured":
        """From one outcome a problem; those without a rollout that was judged have no score."""
        judged = [outcome for outcome in outcomes if outcome.num_rollouts]
        return cls(
            scores={o.problem_id: o.num_correct / o.num_rollouts for o in judged},
            signal={o.problem_id: unbiased_signal(o) for o in judged if o.num_rollouts >= 2},
            diversity=diversity or {},
            num_rollouts=num_rollouts,
            judged={o.problem_id: o.num_rollouts for o in judged},
        )

    def rollouts(self, problem_id: str) -> int:
        """How many rollouts the problem's score rests on. Raises ValueError where neither field says."""
        count = self.judged.get(problem_id, self.num_rollouts)
        if count < 1:
            raise ValueError(f"{problem_id} has a score of {count} rollouts; say in num_rollouts or judged how many")
        return count


@dataclass(frozen=True, slots=True)
class Reading:
    """One temperature against the reference, in the measure's own unit. Each bound is one-sided.

    source               validation: rollouts drawn at it; window: rollouts of practice, reweighted
    total_rollouts       with a verdict, of all problems
    difference           mean over problems of the paired difference, with its standard error and bounds, all of
                         `paired_scores`, or where diversity is compared of `paired`
    sure                 its standard error is at most standard_error_allowed (and its rollouts count)
    admissible           sure, and the lower bound is within drop_allowed
    failed               the upper bound is below -drop_allowed, sure or not
    signal_difference    of p(1 - p) against the reference; None where it was not measured
    diversity            mean over problems; None where it was not measured"""

    temperature: float
    reference: float
    source: Literal["validation", "window"]
    num_problems: int
    total_rollouts: int
    mean: float
    difference: float
    standard_error: float
    difference_lower: float
    difference_upper: float
    drop_allowed: float
    standard_error_allowed: float
    sure: bool
    admissible: bool
    failed: bool
    signal: float | None = None
    signal_difference: float | None = None
    diversity: float | None = None
    effective_fraction: float | None = None

    @property
    def decided(self) -> bool:
        """Nothing more has to be known of it."""
        return self.sure or self.failed


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen and every number that led there; `dataclasses.asdict` makes it JSON-able.

    There are no readings where fewer than two problems had a score. `plateau` is the slope test that asked for the
    decision; `compared` says of what the readings' differences are."""

    step: int
    current: float
    chosen: float
    reference: float
    readings: tuple[Reading, ...]
    reason: str
    compared: Literal["score", "diversity"] = "score"
    plateau: Plateau | None = None

    @property
    def changed(self) -> bool:
        return self.chosen != self.current

    @property
    def undecided(self) -> tuple[float, ...]:
        """Temperatures whose difference is not sure enough: more rollouts may settle them."""
        settled = {reading.temperature for reading in self.readings if reading.decided}
        open_ones = (r.temperature for r in self.readings if r.temperature not in {*settled, r.reference})
        return tuple(dict.fromkeys(open_ones))


def unbiased_signal(outcome: Outcome) -> float:
    """p(1 - p) of a problem, without bias: c(n - c) / (n(n - 1)) of n rollouts with c right.

    The plug-in c/n (1 - c/n) is short of it by a factor 1 - 1/n. Raises ValueError for fewer than two rollouts."""
    n, c = outcome.num_rollouts, outcome.num_correct
    if n < 2:
        raise ValueError(f"p(1 - p) needs two rollouts of a problem; {outcome.problem_id} has {n}")
    return c * (n - c) / (n * (n - 1))


def read_temperatures(
    measured: Mapping[float, Measured], *, current: float, guard: Guard, min_effective_fraction: float = 0.0
) -> tuple[Reading, ...]:
    """Every temperature against the guard's reference, in ascending order; () with fewer than two problems.

    Problems are the unit, and differences are paired, so that their spread in difficulty cancels. Reweighted rollouts
    of which less than `min_effective_fraction` counts make nothing sure, and nothing failed.
    Raises ValueError unless the temperature in use was scored, on the same problems as every other."""
    problem_ids = _common_problems(measured, current=current)
    if len(problem_ids) < 2:
        return ()
    means = {t: _mean(measured[t].scores, problem_ids) for t in sorted(measured)}
    # Of equally good ones the hottest: a tie is no reason to cool down.
    reference = current if guard.reference == "current" else max(means, key=lambda t: (means[t], t))
    scale = abs(means[reference]) if guard.unit == "relative" else 1.0
    drop_allowed, standard_error_allowed = guard.drop * scale, guard.max_standard_error * scale
    readings = []
    for temperature, mean in means.items():
        of_t, of_reference = measured[temperature], measured[reference]
        against = PairedDifference(0.0, 0.0, 0.0, 0.0)
        if temperature != reference:
            against = paired_scores(
                of_t.scores,
                of_reference.scores,
                problem_ids,
                rollouts={name: _counting(name, of_t, of_reference) for name in problem_ids},
                drop=drop_allowed,
                confidence=guard.confidence,
            )
        counts = of_t.effective_fraction is None or of_t.effective_fraction >= min_effective_fraction
        sure = counts and scale > 0.0 and against.standard_error <= standard_error_allowed
        with_signal = sorted(of_t.signal.keys() & of_reference.signal.keys())
        signal = _mean(of_t.signal, with_signal) if with_signal else None
        readings.append(
            Reading(
                temperature=temperature,
                reference=reference,
                source="validation" if of_t.effective_fraction is None else "window",
                num_problems=len(problem_ids),
                total_rollouts=sum(of_t.rollouts(name) for name in problem_ids),
                mean=mean,
                difference=against.mean,
                standard_error=against.standard_error,
                difference_lower=against.lower,
                difference_upper=against.upper,
                drop_allowed=drop_allowed,
                standard_error_allowed=standard_error_allowed,
                sure=sure,
                admissible=sure and against.lower >= -drop_allowed,
                failed=counts and against.upper < -drop_allowed,
                signal=signal,
                signal_difference=None if signal is None else signal - _mean(of_reference.signal, with_signal),
                diversity=_mean(of_t.diversity, sorted(of_t.diversity)) if of_t.diversity else None,
                effective_fraction=of_t.effective_fraction,
            )
        )
    return tuple(readings)


def compare_temperatures(
    measured: Mapping[float, Measured],
    *,
    step: int,
    current: float,
    guard: Guard,
    choose: Choice = "highest",
    window: Sequence[Reading] = (),
    plateau: Plateau | None = None,
) -> Decision:
    """The highest temperature that is admitted, as are all between it and the reference; by choose="signal" the one of
    them all, the reference included, with the most p(1 - p).

    `measured` holds rollouts drawn at each temperature, and is empty where `window`, readings of reweighted rollouts,
    settles all. Of a temperature that the window settles (`settled_by`) the window's reading counts; against the grid's
    best it counts only where it settles all, since the best may be any of them.

    The guarantee: a temperature that truly costs more than guard.drop is admitted in at most 1 - guard.confidence of
    decisions, however many there are. Temperatures above the reference are tested upwards, each by the lower bound of
    its paired difference, and the first that is not admitted ends the test (a fixed-sequence test; Maurer, Hothorn and
    Lehmacher 1995). It rests on the bounds of `paired_scores`, so on costs that are spread over problems, holds for
    each decision by itself and not for all decisions of a run together, and is for the reference "current" alone: the
    grid's best is chosen by the same scores that it is then compared by. The choice by signal has no test; it moves
    among admitted ones only.

    With fewer than two problems nothing can be compared, and the temperature in use is kept; so it is where it may be
    admissible against the reference "best". Raises ValueError as `read_temperatures`."""
    readings = read_temperatures(measured, current=current, guard=guard) if measured else ()
    ladder = {reading.temperature: reading for reading in readings}
    if guard.reference == "current" or not measured:
        ladder |= {reading.temperature: reading for reading in settled_by(window)}
    if not ladder:
        num_problems = len(measured[current].scores) if measured else 0
        chosen, reference = current, current
        reason = (
            f"kept {current}: undecided, since {num_problems} problems have a score at every temperature and a "
            "comparison needs 2, better hundreds"
        )
    else:
        reference = min(ladder.values(), key=lambda reading: reading.temperature).reference
        chosen, reason = _choose(ladder, current=current, reference=reference, choose=choose, unit=guard.unit)
    return Decision(
        step=step,
        current=current,
        chosen=chosen,
        reference=reference,
        readings=(*window, *readings),
        reason=reason,
        plateau=plateau,
    )


def settled_by(window: Sequence[Reading]) -> tuple[Reading, ...]:
    """The readings of reweighted rollouts that stand, and are not judged again by rollouts drawn for the purpose.

    A reading stands when enough rollouts count and its standard error is small enough, which says nothing of which way
    it went, or when it has failed. So no temperature has a second chance to be admitted wrongly."""
    return tuple(reading for reading in window if reading.decided)


def rollouts_wanted(
    measured: Mapping[float, Measured],
    *,
    current: float,
    candidates: Collection[float],
    guard: Guard,
    window: Sequence[Reading] = (),
    first: int,
    budget: int,
) -> dict[float, int]:
    """Rollouts of each problem to draw next, by temperature; {} when what was drawn is enough.

    At first `first` at every candidate that may be reached and at the temperature in use; then as many again as there
    are, `budget` at most, at those that are undecided, at the one in use and at the reference.

    Growth is stopped by the standard error, never by a difference that looks good: who draws until the bound clears
    the guard, and looks after every draw, admits a temperature that costs too much far more often than 1 - confidence.
    A difference that looks bad may stop it, since that can only make an admission rarer: what has failed, and all above
    it, which cannot be reached any more, is drawn no further. Undecided at `budget`, a temperature is not admitted, so
    nothing above it is drawn either."""
    readings = {r.temperature: r for r in read_temperatures(measured, current=current, guard=guard)} if measured else {}
    if measured and not readings:
        return {}
    of_window = {r.temperature: r for r in settled_by(window)}
    if guard.reference == "best":
        settled = {reading.temperature for reading in window if reading.sure}
        if not measured and settled >= {*candidates, current}:
            return {}
        of_window = {}
        # Of noisy scores the best is too good, so that others fail against it too easily: only what is sure is settled.
        readings = {t: replace(reading, failed=reading.failed and reading.sure) for t, reading in readings.items()}
    reference = next(iter(readings.values())).reference if readings else current
    if readings and guard.unit == "relative" and readings[reference].mean == 0.0:
        return {}  # of no score no share can be taken
    wanted: set[float] = set()
    for temperature in sorted({*candidates, current} - {reference} if readings else candidates):
        if readings and temperature < reference:
            continue
        reading = of_window.get(temperature) or readings.get(temperature)
        if reading is None:
            wanted.add(temperature)
        elif reading.decided:
            if not reading.admissible:
                break
        elif measured[temperature].num_rollouts < budget:
            wanted.add(temperature)
        else:
            break
    if not wanted:
        return {}
    amounts = {}
    for temperature in sorted({*wanted, current, reference}):
        drawn = measured[temperature].num_rollouts if temperature in measured else 0
        amounts[temperature] = min(drawn or first, budget - drawn)
    return {temperature: amount for temperature, amount in amounts.items() if amount > 0}


def _choose(
    ladder: Mapping[float, Reading], *, current: float, reference: float, choose: Choice, unit: str
) -> tuple[float, str]:
    if unit == "relative" and ladder[reference].mean == 0.0:
        return (
            current,
            f"kept {current}: the score at {reference} is 0, of which no share can be taken; use unit: absolute",
        )
    hotter = [ladder[temperature] for temperature in sorted(ladder) if temperature > reference]
    admitted = [reference, *(r.temperature for r in takewhile(lambda r: r.admissible, hotter))]
    highest = admitted[-1]
    undecided = [r.temperature for r in hotter if r.temperature > highest and not r.decided]
    doubt = f"; undecided: {', '.join(map(str, undecided))}" if undecided else ""
    if highest < current and not (ladder[current].sure and ladder[current].failed):
        return current, f"kept {current}: that it costs too much against {reference} is undecided{doubt}"
    chosen, which = highest, "the highest admissible temperature"
    if choose == "signal":
        # Of equal ones the hottest, as for the reference.
        chosen = max(admitted, key=lambda t: (_signal_difference(ladder[t]), t))
        which = "the admissible temperature with the most p(1 - p)"
    if chosen == current:
        why = "no hotter temperature is admissible" if highest == current else f"it is {which}"
        return current, f"kept {current}: {why}{doubt}"
    verb = "raised" if chosen > current else "lowered"
    return chosen, f"{verb} to {chosen}, {which} against {reference}{doubt}"


def _counting(problem_id: str, of_t: Measured, of_reference: Measured) -> float:
    """Rollouts of the problem that a difference rests on: of reweighted ones the share that counts."""
    share = 1.0 if of_t.effective_fraction is None else of_t.effective_fraction
    return min(of_t.rollouts(problem_id) * share, of_reference.rollouts(problem_id))


def _signal_difference(reading: Reading) -> float:
    return -math.inf if reading.signal_difference is None else reading.signal_difference


def _mean(of_problems: Mapping[str, float], problem_ids: Sequence[str]) -> float:
    return math.fsum(of_problems[name] for name in problem_ids) / len(problem_ids)


def _common_problems(measured: Mapping[float, Measured], *, current: float) -> list[str]:
    if current not in measured:
        raise ValueError(f"scores lack the temperature in use, {current}; got {sorted(measured)}")
    problem_ids = sorted(measured[current].scores)
    for temperature, of_t in measured.items():
        if of_t.scores.keys() != measured[current].scores.keys():
            raise ValueError(
                f"temperature {temperature} was scored on {len(of_t.scores)} problems, {current} on "
                f"{len(problem_ids)}, and they are not the same ones; score every temperature on the same problems"
            )
        if not all(math.isfinite(score) for score in of_t.scores.values()):
            raise ValueError(f"a score at temperature {temperature} is not finite; leave that problem out everywhere")
    return problem_ids
