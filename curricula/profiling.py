"""Sequential profiling: which problem to roll out next, so that a tier costs as few rollouts as it can.

Every problem gets its first rollouts (8); one without a success among them goes on, wave by wave, up to the most (512),
and ends with the wave that holds its first success. What is drawn next is a pure function of what is known, so that a
profile that was killed goes on where it stopped. Knows no model and no file: the caller draws the rollouts, stores
and reports them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curricula.attempts import RIGHT, Attempts
from curricula.label_errors import GRID, fit_evidence
from curricula.store import label
from curricula.types import TIERS, Draw, Tier

JEFFREYS = (0.5, 0.5)
MIN_FITTED_PROBLEMS = 30
"""Problems that were rolled out before the spread of their pass rates says more than a prior does."""


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
    num_tokens: int
    left: Expected
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


def fitted_rollouts_left(num_failures: int, *, boundaries: Sequence[int], weights: NDArray[np.float64]) -> float:
    """Expected further rollouts of a problem that failed `num_failures` times and was never right.

    `weights` is the distribution of pass rates over `label_errors.GRID`, [201], as `fit_evidence` gives it."""
    failure = 1.0 - GRID  # [201]
    posterior = weights * failure**num_failures
    posterior = posterior / posterior.sum()
    left, reached = 0.0, num_failures
    for boundary in boundaries:
        if boundary > reached:
            left += (boundary - reached) * float(posterior @ failure ** (reached - num_failures))
            reached = boundary
    return left


class SequentialProfile:
    """Decides what to sample next from what was seen, and ends each problem with its first success.

    `known` is what was seen before, as `ProfileStore.attempts` gives it; it is taken over, and reports are added to it.
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
        known: Mapping[str, Attempts] | None = None,
    ) -> None:
        self.problem_ids = tuple(problem_ids)
        self.boundaries = wave_boundaries(first_rollouts, max_rollouts=max_rollouts, wave_growth=wave_growth)
        self.max_redraws = max_redraws
        self._index = {problem_id: index for index, problem_id in enumerate(self.problem_ids)}
        if not self._index or "" in self._index or len(self._index) != len(self.problem_ids):
            raise ValueError(
                f"a profile needs problems with distinct, non-empty ids; got {len(self.problem_ids)} ids, "
                f"{len(self._index)} distinct"
            )
        if max_redraws < 0:
            raise ValueError(f"max_redraws = {max_redraws}: must not be negative (0 never draws again)")
        known = known or {}
        self._attempts = [known.get(problem_id) or Attempts() for problem_id in self.problem_ids]
        count = len(self.problem_ids)
        # Of each problem: where its current wave ends (0 once it is finished), its settled rollouts, and the right ones
        # among them. They follow from the attempts; a profile of 100,000 problems asks for them too often to count.
        self._targets = np.zeros(count, dtype=np.int32)
        self._num_settled = np.zeros(count, dtype=np.int32)
        self._num_right = np.zeros(count, dtype=np.int32)
        for index in range(count):
            self._follow(index)
        self._totals = np.array([_totals(attempts) for attempts in self._attempts], dtype=np.int64).sum(
            axis=0
        )  # [3]: rollouts, those without a value, tokens
        self._labels: dict[tuple[int, float], _Labels] = {}  # by the rules

    @property
    def attempts(self) -> dict[str, Attempts]:
        """What is known of each problem that is profiled, by id."""
        return dict(zip(self.problem_ids, self._attempts, strict=True))

    def next_wave(self, max_draws_rollouts: int) -> list[Draw]:
        """What to roll out next, at most this many rollouts together; [] when every problem is finished.

        Problems in their earliest wave come first, each wave in the order of `problem_ids`, at most one draw a problem.
        A problem's first rollouts are never cut in two, so that they are one group however a profile was killed: where
        they alone are more than the limit, they are asked for all the same. Later waves are cut to fit.
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
                if self._is_first(int(index)):
                    if draws and room < boundary:
                        return draws
                    room = max(room, boundary)
                draw = self._draw(int(index), boundary=boundary, room=room)
                draws.append(draw)
                room -= draw.num_rollouts
        return draws

    def observe(
        self, problem_id: str, first_attempt: int, correct: Sequence[bool | None], num_tokens: Sequence[int]
    ) -> None:
        """Report attempts first_attempt, first_attempt + 1, ...; None: the verifier gave no value.

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
        self._totals += (len(correct), correct.count(None), sum(num_tokens))
        self._follow(index)

    def expected_rollouts(self) -> Expected:
        """What is still to be drawn, given what is known; before the first wave: the whole bill.

        Pass rates are taken to be spread as those of the problems that were rolled out are, once there are
        MIN_FITTED_PROBLEMS of them, and by Jeffreys' prior before."""
        seen = self._num_settled > 0
        weights = None
        if np.count_nonzero(seen) >= MIN_FITTED_PROBLEMS:
            pairs = zip(self._num_settled[seen].tolist(), self._num_right[seen].tolist(), strict=True)
            weights = fit_evidence(Counter(pairs))
        typical, most = 0.0, 0
        for (num_settled, wave_end), count in self._open_problems().items():
            most += count * ((wave_end or self.boundaries[-1]) - num_settled)
            if wave_end:
                typical += count * (wave_end - num_settled)
            elif weights is None:
                typical += count * expected_rollouts_left(num_settled, boundaries=self.boundaries)
            else:
                typical += count * fitted_rollouts_left(num_settled, boundaries=self.boundaries, weights=weights)
        return Expected(typical=typical, most=most)

    def progress(self, *, relabel_rollouts: int = 32, trivial_rate: float = 1.0) -> Progress:
        """Counts so far; finished problems are labelled as `tier_table` would by the same rules.

        Raises ValueError on a trivial_rate outside (0, 1]."""
        first_rollouts = self.boundaries[0]
        rules = (max(relabel_rollouts, first_rollouts), trivial_rate)
        labels = self._labels.setdefault(rules, _Labels(self._targets.shape[0]))
        finished = self._targets == 0
        for index in np.flatnonzero(finished & ~labels.is_counted):
            row = label(
                self.problem_ids[index],
                self._attempts[index],
                first_rollouts=first_rollouts,
                relabel_rollouts=rules[0],
                max_rollouts=self.boundaries[-1],
                trivial_rate=trivial_rate,
            )
            labels.counts[row.tier if row is not None else None] += 1
            labels.is_counted[index] = True
        num_rollouts, num_without_value, num_tokens = self._totals.tolist()
        return Progress(
            num_problems=len(self.problem_ids),
            num_finished=int(finished.sum()),
            num_rollouts=num_rollouts,
            num_without_value=num_without_value,
            num_tokens=num_tokens,
            left=self.expected_rollouts(),
            tiers={tier: labels.counts[tier] for tier in TIERS},
            num_without_tier=labels.counts[None],
        )

    def _follow(self, index: int) -> None:
        """Bring what follows from a problem's attempts up to date."""
        outcomes = self._attempts[index].settled()
        self._targets[index] = self._target(self._attempts[index], outcomes)
        self._num_settled[index] = len(outcomes)
        self._num_right[index] = outcomes.count(RIGHT)

    def _target(self, attempts: Attempts, outcomes: bytes) -> int:
        """Where this problem's current wave ends, counted in rollouts with a value; 0 when it is finished."""
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

    def _is_first(self, index: int) -> bool:
        """Whether nothing is known of the problem."""
        return not self._attempts[index].codes

    def _draw(self, index: int, *, boundary: int, room: int) -> Draw:
        attempts = self._attempts[index]
        first_attempt = attempts.first_unseen
        gap = attempts.gap_length
        wanted = boundary - int(self._num_settled[index])
        allowed = boundary + self.max_redraws - first_attempt if gap is None else gap
        return Draw(self.problem_ids[index], first_attempt, min(wanted, allowed, room))

    def _open_problems(self) -> Counter[tuple[int, int]]:
        """How many unfinished problems have so many settled rollouts, and the end of the wave that is their last.

        The end is known (not 0) where the problem is solved already and its wave is not drawn to the end."""
        is_open = self._targets > 0
        wave_ends = np.where(self._num_right > 0, self._targets, 0)[is_open]
        # Both in one number, for one quick pass over all problems.
        base = self.boundaries[-1] + 1
        codes, counts = np.unique(self._num_settled[is_open].astype(np.int64) * base + wave_ends, return_counts=True)
        pairs = (divmod(code, base) for code in codes.tolist())
        return Counter(dict(zip(pairs, counts.tolist(), strict=True)))


class _Labels:
    """How many finished problems have each tier (None: none), and which problems are among them."""

    def __init__(self, num_problems: int) -> None:
        self.counts: Counter[Tier | None] = Counter()
        self.is_counted = np.zeros(num_problems, dtype=bool)


def _totals(attempts: Attempts) -> tuple[int, int, int]:
    """Attempts that are recorded, those without a value among them, and their tokens."""
    return attempts.num_recorded, attempts.num_without_value, attempts.total_tokens


def _log_beta(prior: tuple[float, float], num_failures: int) -> float:
    a, b = prior[0], prior[1] + num_failures
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
