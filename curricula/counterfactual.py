"""What rollouts drawn at one temperature say about another: importance weights from log-probs that the sampler kept.

A rollout of log-prob L(T0), drawn at T0, stands for w = exp(L(T) - L(T0)) rollouts at T. Owns the estimates of one
group and the window of groups that a decision reads; knows no sampler and decides nothing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.comparison import Measured

Array = NDArray[np.float64]
DECIMALS = 7


@dataclass(frozen=True, slots=True)
class ReweightedGroup:
    """The rollouts of one problem, read at each temperature of a grid.

    scores, signals                  estimates of p and of p(1 - p)
    log_weights, log_squared_weights   log of the sum of the weights and of their squares, natural logarithm"""

    problem_id: str
    num_rollouts: int
    grid: tuple[float, ...]
    scores: tuple[float, ...]
    signals: tuple[float, ...]
    log_weights: tuple[float, ...]
    log_squared_weights: tuple[float, ...]


def reweight(
    problem_id: str,
    correct: Sequence[bool],
    grid_logprobs: Sequence[Sequence[float]],
    *,
    grid: Sequence[float],
    drawn_at: float,
) -> ReweightedGroup:
    """Read a group of n >= 2 rollouts, drawn at the temperature `drawn_at`, at every temperature of `grid`.

    `grid_logprobs` has, for each rollout, the log-prob of the whole completion at each temperature, in nats. The score
    is the self-normalised mean, sum(w r) / sum(w); p(1 - p) is the sum over i != j of w_i w_j r_i (1 - r_j), over that
    of w_i w_j. Ratios lean towards what was drawn, in groups of 8 by some 15 % of a difference: the jackknife
    (Quenouille 1956) takes the part of that bias that falls as 1/n, so that 2 % are left where half of the rollouts
    count, and an estimate may lie a little outside [0, 1]. At `drawn_at` they are c/n and c(n - c)/(n(n - 1)), without
    bias. Source of the weights: Owen, Monte Carlo theory, methods and examples, 9.2.
    Raises ValueError unless there are two rollouts, `drawn_at` is in the grid, and there is one finite log-prob a
    rollout and temperature."""
    right = np.asarray(correct, dtype=np.float64)  # [n]
    logprobs = np.asarray(grid_logprobs, dtype=np.float64)  # [n, K]
    if right.size < 2 or logprobs.shape != (right.size, len(grid)) or not np.isfinite(logprobs).all():
        raise ValueError(
            f"problem {problem_id}: reweighting needs two rollouts and a finite log-prob of each at {len(grid)} "
            f"temperatures; got {right.size} rollouts and log-probs of shape {logprobs.shape}"
        )
    if drawn_at not in grid:
        raise ValueError(f"problem {problem_id}: drawn at {drawn_at}, which the grid {list(grid)} lacks")
    log_ratio = logprobs - logprobs[:, [list(grid).index(drawn_at)]]  # [n, K]
    largest = log_ratio.max(axis=0)  # [K]
    weights = np.exp(log_ratio - largest)  # [n, K], up to a factor a temperature, which cancels; the largest is 1
    right_weights = weights * right[:, None]  # [n, K]
    sums, pairs = weights.sum(axis=0), 2.0 * (weights * _before(weights)).sum(axis=0)  # [K]
    right_sums, wrong_sums = right_weights.sum(axis=0), (weights - right_weights).sum(axis=0)  # [K]
    sums_without, pairs_without = _without_each(weights)  # [n, K]
    right_without, _ = _without_each(right_weights)  # [n, K]
    wrong_without, _ = _without_each(weights - right_weights)  # [n, K]
    scores = _jackknife(_ratio(right_sums, sums), _ratio(right_without, sums_without))  # [K]
    signals = _ratio(right_sums * wrong_sums, pairs)  # [K]
    if right.size > 2:
        signals = _jackknife(signals, _ratio(right_without * wrong_without, pairs_without))
    return ReweightedGroup(
        problem_id=problem_id,
        num_rollouts=int(right.size),
        grid=tuple(grid),
        scores=_rounded(scores),
        signals=_rounded(signals),
        log_weights=_rounded(np.log(sums) + largest),
        log_squared_weights=_rounded(np.log((weights**2).sum(axis=0)) + 2.0 * largest),
    )


class ReweightedWindow:
    """The reweighted groups of the latest steps, `window_steps` at most: what a decision needs of them and no more.

    Every group counts, also those that teach nothing and leave the loss. The policy moves within the window, and each
    group was drawn from the policy of its own step: so the window's differences are averages over the policies that it
    saw, each problem compared with itself under one and the same policy."""

    def __init__(self, window_steps: int) -> None:
        self._window_steps = window_steps
        self._grid: tuple[float, ...] = ()
        # A step: rollouts, sums of weights and squares by temperature; and of each group its problem, its rollouts, and
        # its scores and signals by temperature.
        self._steps: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget everything: the temperature or the problems are others."""
        self._grid, self._steps = (), []

    def observe(self, groups: Sequence[ReweightedGroup]) -> None:
        """A step's groups, all of one grid; where it is not that of the steps before, the window begins anew.

        Raises ValueError where the groups have several grids."""
        grids = {group.grid for group in groups}
        if len(grids) > 1:
            raise ValueError(f"a step's groups have one grid; got {sorted(grids)}")
        if groups:
            if groups[0].grid != self._grid:
                self.clear()
            self._grid = groups[0].grid
            self._steps.append(
                {
                    "num_rollouts": sum(group.num_rollouts for group in groups),
                    "log_weights": _summed(np.array([group.log_weights for group in groups])),
                    "log_squared_weights": _summed(np.array([group.log_squared_weights for group in groups])),
                    "groups": [
                        [group.problem_id, group.num_rollouts, list(group.scores), list(group.signals)]
                        for group in groups
                    ],
                }
            )
        del self._steps[: -self._window_steps]

    def measured(self) -> dict[float, Measured]:
        """The window at each temperature, by problem: the mean over its groups. {} where nothing was observed.

        The effective share is (sum w)² / (n sum w²) over all n rollouts of the window (Kong 1992): the expected weight
        is 1 for every rollout of every problem, so that all weights are alike."""
        shares = self.effective_fractions()
        by_problem: dict[str, list[tuple[list[float], list[float]]]] = {}
        num_rollouts: dict[str, int] = {}
        for step in self._steps:
            for problem_id, of_group, scores, signals in step["groups"]:
                by_problem.setdefault(problem_id, []).append((scores, signals))
                num_rollouts[problem_id] = num_rollouts.get(problem_id, 0) + of_group
        found = {}
        for place, temperature in enumerate(self._grid):
            found[temperature] = Measured(
                scores={p: _average(scores[place] for scores, _ in of_p) for p, of_p in by_problem.items()},
                signal={p: _average(signals[place] for _, signals in of_p) for p, of_p in by_problem.items()},
                judged=num_rollouts,
                effective_fraction=shares[temperature],
            )
        return found

    def effective_fractions(self) -> dict[float, float]:
        """The share of the window's rollouts that counts at each temperature; {} where nothing was observed."""
        return {temperature: self._effective_fraction(place) for place, temperature in enumerate(self._grid)}

    def _effective_fraction(self, place: int) -> float:
        log_sum = _log_sum(np.array([step["log_weights"][place] for step in self._steps]))
        log_squares = _log_sum(np.array([step["log_squared_weights"][place] for step in self._steps]))
        num_rollouts = sum(step["num_rollouts"] for step in self._steps)
        return min(1.0, math.exp(2.0 * log_sum - log_squares) / num_rollouts)  # above 1 by rounding alone

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""
        return {"grid": list(self._grid), "steps": list(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._grid, self._steps = tuple(state["grid"]), list(state["steps"])


def _before(values: Array) -> Array:
    """For each row of [n, K] the sum of the rows before it."""
    return np.asarray(np.concatenate([np.zeros_like(values[:1]), values.cumsum(axis=0)[:-1]]))


def _without_each(values: Array) -> tuple[Array, Array]:
    """For each row of [n, K], of the other rows: their sum, and the sum of products over ordered pairs of two of them.

    Sums from both ends and no differences, which would keep no digit where one row is nearly all of a sum."""
    before, after = _before(values), _before(values[::-1])[::-1]
    pairs_before, pairs_after = _before(values * before), _before((values * after)[::-1])[::-1]
    return before + after, 2.0 * (pairs_before + pairs_after + before * after)


def _ratio(part: Array, whole: Array) -> Array:
    # A whole that is 0 is one beside which all others underflow; its part is 0 too.
    return np.asarray(part / np.maximum(whole, 1e-300))


def _jackknife(estimate: Array, without_one: Array) -> Array:
    """An estimate [K] less its bias of the order 1/n, from what it is without each of the n rows [n, K]."""
    n = len(without_one)
    return np.asarray(n * estimate - (n - 1) * without_one.mean(axis=0))


def _summed(logs: Array) -> list[float]:
    """Log of the sum over rows of exp(logs), [rows, K] → [K]."""
    return list(_rounded(np.array([_log_sum(column) for column in logs.T])))


def _log_sum(logs: Array) -> float:
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).sum()))


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _rounded(values: Array) -> tuple[float, ...]:
    # A checkpoint holds thousands of these; beyond seven digits there is nothing but noise.
    return tuple(float(value) for value in np.round(values, DECIMALS))
