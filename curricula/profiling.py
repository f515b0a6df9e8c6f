"""Sequential profiling: which problem to roll out next, so that a tier costs as few rollouts as it can.

Every problem gets its first rollouts (8); one without a success among them goes on, wave by wave, up to the most (512),
and ends with the wave that holds its first success. What is drawn next is a pure function of what the store holds, so a
profile that was killed goes on where it stopped. Knows no model: the caller draws the rollouts and reports them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from curricula.attempts import RIGHT, Attempts
from curricula.store import ProfileStore, Record, label
from curricula.types import TIERS, Draw, Tier

JEFFREYS = (0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Expected:
    """Rollouts still to be drawn: `typical` on average under the prior, `most` if no problem is ever solved.

    Neither counts redraws of attempts without a value."""

    typical: float
    most: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a profile is. Tiers count finished problems only; rollouts count every attempt.

    `num_without_tier` are the finished problems of which no rollout has a value."""

    num_problems: int
    num_finished: int
    num_rollouts: int
    num_without_value: int
    most_rollouts_left: int
    tiers: dict[Tier, int]
    num_without_tier: int


def wave_boundaries(first_rollouts: int, *, max_rollouts: int, wave_growth: int) -> tuple[int, ...]:
    """Rollouts of a problem after each wave: first, first·growth, first·growth², ..., max_rollouts.

    Growth 2 gives 8/16/32/.../512; growth 4 gives 8/32/128/512, that is waves of 8, 24, 96 and 384. Raises ValueError
    unless 1 <= first_rollouts <= max_rollouts and wave_growth >= 2."""
    if not 1 <= first_rollouts <= max_rollouts:
        raise ValueError(
            f"profiling needs 1 <= first_rollouts <= max_rollouts; got {first_rollouts} and {max_rollouts}"
        )
    if wave_growth < 2:
        raise ValueError(f"wave_growth = {wave_growth}: must be at least 2 (each wave ends at twice the rollouts)")
    boundaries = [first_rollouts]
    while boundaries[-1] < max_rollouts:
        boundaries.append(min(boundaries[-1] * wave_growth, max_rollouts))
    return tuple(boundaries)


def expected_rollouts(pass_rate: float, *, boundaries: Sequence[int]) -> float:
    """Expected rollouts of a problem with this pass rate: b₀ + Σ (bᵢ₊₁ - bᵢ) q^bᵢ with q = 1 - pass_rate.

    A wave is drawn whole once it began. Boundaries 8, 9, 10, ..., 512 give 8 + q⁸(1 - q⁵⁰⁴)/p, the least that the
    stopping rule allows. Raises ValueError unless 0 <= pass_rate <= 1."""
    if not 0.0 <= pass_rate <= 1.0:
        raise ValueError(f"pass_rate = {pass_rate}: must lie in [0, 1]")
    failure = 1.0 - pass_rate
    return boundaries[0] + sum((after - before) * failure**before for before, after in pairwise(boundaries))


def expected_rollouts_left(
    num_failures: int, *, boundaries: Sequence[int], prior: tuple[float, float] = JEFFREYS
) -> float:
    """Expected further rollouts of a problem that failed `num_failures` times and was never right, pass rate ~ Beta.

    By the posterior Beta(a, b + num_failures), the chance of no success up to rollout m is
    B(a, b + m) / B(a, b + num_failures). The default is Jeffreys' prior, U-shaped as pass rates are; (1, 1) is uniform.
    Raises ValueError unless both parameters are positive."""
    if min(prior) <= 0.0:
        raise ValueError(f"prior = {prior}: both parameters of the Beta prior must be positive")
    left, reached = 0.0, num_failures
    for boundary in boundaries:
        if boundary > reached:
            left += (boundary - reached) * math.exp(_log_beta(prior, reached) - _log_beta(prior, num_failures))
            reached = boundary
    return left


class SequentialProfile:
    """Decides what to sample next, keeps what was seen in the store, and ends each problem with its first success.

    A wave that began is drawn to its end: what a profile draws in all depends neither on `max_draws_rollouts` nor on
    kills. Waves end at first_rollouts·wave_growthⁱ: growth 2 wastes fewer rollouts past a success than growth 4 and, as
    waves of many problems share one call, costs no empty sampler. A rollout without a value is not counted: it is drawn
    again under a later attempt index. A problem that would need more than `max_redraws` of them is finished as it is.
    Raises ValueError on an empty or repeated id, and as `wave_boundaries`."""

    def __init__(
        self,
        problem_ids: Sequence[str],
        *,
        first_rollouts: int = 8,
        max_rollouts: int = 512,
        wave_growth: int = 2,
        max_redraws: int = 16,
        store: ProfileStore,
    ) -> None:
        self.problem_ids = tuple(problem_ids)
        self.boundaries = wave_boundaries(first_rollouts, max_rollouts=max_rollouts, wave_growth=wave_growth)
        self.max_redraws = max_redraws
        self.store = store
        self._index = {problem_id: index for index, problem_id in enumerate(self.problem_ids)}
        if not self._index or "" in self._index or len(self._index) != len(self.problem_ids):
            raise ValueError(
                f"a profile needs problems with distinct, non-empty ids; got {len(self.problem_ids)} ids, "
                f"{len(self._index)} distinct"
            )
        if max_redraws < 0:
            raise ValueError(f"max_redraws = {max_redraws}: must not be negative (0 never draws again)")
        known = store.attempts()
        self._attempts = [known.get(problem_id) or Attempts() for problem_id in self.problem_ids]
        # Where each problem's current wave ends; 0 once it is finished.
        self._targets = np.array([self._target(attempts) for attempts in self._attempts], dtype=np.int32)

    def next_wave(self, max_draws_rollouts: int) -> list[Draw]:
        """What to roll out next, at most this many rollouts together; [] when every problem is finished.

        Problems in their earliest wave come first, each wave in the order of `problem_ids`, at most one draw a problem.
        Asking again without reporting gives the same answer: report a wave before asking for the next one.
        Raises ValueError unless max_draws_rollouts >= 1."""
        if max_draws_rollouts < 1:
            raise ValueError(f"max_draws_rollouts = {max_draws_rollouts}: must be at least 1")
        draws: list[Draw] = []
        room = max_draws_rollouts
        for boundary in self.boundaries:
            for index in np.flatnonzero(self._targets == boundary):
                if room == 0:
                    return draws
                draw = self._draw(int(index), boundary=boundary, room=room)
                draws.append(draw)
                room -= draw.num_rollouts
        return draws

    def observe(
        self, problem_id: str, first_attempt: int, correct: Sequence[bool | None], num_tokens: Sequence[int]
    ) -> None:
        """Report attempts first_attempt, first_attempt + 1, ...; None: the verifier gave no value. Stored at once.

        Parts of a draw may be reported apart and in any order: success means the lowest right attempt index, never the
        first to finish. Raises ValueError on an unknown id, on an attempt that was reported before and on lengths that
        differ."""
        index = self._index.get(problem_id)
        if index is None:
            raise ValueError(f"problem {problem_id!r} is not being profiled: report only what next_wave asked for")
        attempts = self._attempts[index]
        try:
            attempts.add(first_attempt, correct, num_tokens)
        except ValueError as error:
            raise ValueError(f"problem {problem_id!r}: {error}") from error
        self.store.append([Record(problem_id, first_attempt, tuple(correct), tuple(num_tokens))])
        self._targets[index] = self._target(attempts)

    def expected_rollouts(self, *, prior: tuple[float, float] = JEFFREYS) -> Expected:
        """What is still to be drawn, given what the store holds; before the first wave: the whole bill."""
        typical, most = 0.0, 0
        for (num_settled, wave_end), count in self._open_problems().items():
            most += count * ((wave_end or self.boundaries[-1]) - num_settled)
            typical += count * (
                wave_end - num_settled
                if wave_end
                else expected_rollouts_left(num_settled, boundaries=self.boundaries, prior=prior)
            )
        return Expected(typical=typical, most=most)

    def progress(self, *, relabel_rollouts: int = 32, trivial_rate: float = 1.0) -> Progress:
        """Counts so far; finished problems are labelled as `tier_table` would by the same rules.

        Raises ValueError on a trivial_rate outside (0, 1]."""
        finished = np.flatnonzero(self._targets == 0)
        first_rollouts = self.boundaries[0]
        rows = [
            label(
                self.problem_ids[index],
                self._attempts[index],
                first_rollouts=first_rollouts,
                relabel_rollouts=max(relabel_rollouts, first_rollouts),
                trivial_rate=trivial_rate,
            )
            for index in finished
        ]
        labels = Counter(row.tier for row in rows if row is not None)
        num_rollouts = sum(attempts.num_recorded for attempts in self._attempts)
        return Progress(
            num_problems=len(self.problem_ids),
            num_finished=len(finished),
            num_rollouts=num_rollouts,
            num_without_value=sum(attempts.num_without_value for attempts in self._attempts),
            most_rollouts_left=self.expected_rollouts().most,
            tiers={tier: labels[tier] for tier in TIERS},
            num_without_tier=rows.count(None),
        )

    def _target(self, attempts: Attempts) -> int:
        """Where this problem's current wave ends, counted in rollouts with a value; 0 when it is finished."""
        outcomes = attempts.settled()
        # A wave that began is drawn to its end, so that what is drawn in all depends on the attempts alone and neither
        # on how draws were cut to fit a sampler nor on where a profile was killed.
        num_needed = outcomes.find(RIGHT) + 1 or len(outcomes) + 1
        target = next((boundary for boundary in self.boundaries if boundary >= num_needed), 0)
        if len(outcomes) >= target:
            return 0
        # A gap is always filled; past it, every attempt beyond the target is a redraw.
        if attempts.gap_length is None and attempts.first_unseen >= target + self.max_redraws:
            return 0
        return target

    def _draw(self, index: int, *, boundary: int, room: int) -> Draw:
        attempts = self._attempts[index]
        first_attempt = attempts.first_unseen
        gap = attempts.gap_length
        wanted = boundary - len(attempts.settled())
        allowed = boundary + self.max_redraws - first_attempt if gap is None else gap
        return Draw(self.problem_ids[index], first_attempt, min(wanted, allowed, room))

    def _open_problems(self) -> Counter[tuple[int, int]]:
        """How many unfinished problems have so many settled rollouts, and the end of the wave that is their last.

        The end is known (not 0) where the problem is solved already and its wave is not drawn to the end."""
        counts: Counter[tuple[int, int]] = Counter()
        for index in np.flatnonzero(self._targets):
            outcomes = self._attempts[index].settled()
            counts[len(outcomes), int(self._targets[index]) if RIGHT in outcomes else 0] += 1
        return counts


def _log_beta(prior: tuple[float, float], num_failures: int) -> float:
    a, b = prior[0], prior[1] + num_failures
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
