"""Problems weighted by how much they can teach, without tiers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.curriculum import StepUnderWay, check_count, no_labels
from curricula.pool import Pool, generator
from curricula.tiers import RunningRates
from curricula.types import Outcome, Tier

_MAX_WEIGHT = 0.25
_BLOCK = 256
_MAX_BLOCKS = 64


class Weighted:
    """Draws problems with probability ∝ max(p(1-p), floor), p the running pass rate; never twice in a step.

    p(1-p) is the variance of a right-or-wrong reward, hence the expected size of a group's signal. p is
    (weighted right + 1) / (weighted rollouts + 2), so a problem that was never seen counts as p = 1/2 and is tried
    early. Outcomes of a profile may be observed beforehand. Never finishes; an "epoch" is as many draws as problems.
    Each draw is exactly ∝ the weights of the problems that the step has not had (successive sampling), by rejection:
    a problem proposed evenly is taken with chance weight / (1/4). Where that takes too long, because nearly all
    weights are at the floor, the rest is drawn by exponential waiting times (Efraimidis and Spirakis 2006), which is
    the same distribution: how long a draw has waited says nothing about what it will be.
    Raises ValueError unless 0 < floor <= 1/4."""

    stage = 0
    stage_name = "weighted"
    finished = False
    switch_reason = ""

    def __init__(
        self, problem_ids: Iterable[str], *, seed: int, half_life_observations: float = 2.0, floor: float = 0.01
    ) -> None:
        if not 0.0 < floor <= _MAX_WEIGHT:
            raise ValueError(f"floor = {floor}: must lie in (0, 0.25], or problems at 0 or 1 never come back")
        self._pool = Pool(problem_ids)
        self._rates = RunningRates(len(self._pool), half_life_observations=half_life_observations)
        self._seed = seed
        self._floor = floor
        self._num_steps = 0
        self._num_given = 0
        self._num_seen = 0
        self._weight_sum = _MAX_WEIGHT * len(self._pool)
        self._square_sum = _MAX_WEIGHT**2 * len(self._pool)
        self._begin_step()
        self._metrics = self._measure()
        generator(seed)

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        random = generator(self._seed, self._num_steps, self._num_calls)
        self._num_calls += 1
        taken: list[int] = []
        given = set(self._step.given)
        while len(taken) < num_problems:
            if len(given) == len(self._pool):
                given = set()
            wanted = min(num_problems - len(taken), len(self._pool) - len(given))
            drawn = self._draw(wanted, given=given, random=random)
            taken += drawn
            given |= set(drawn)
        self._step.give(taken)
        return self._pool.names(taken)

    def tier_of(self, problem_id: str) -> Tier | None:
        return None

    def group_size(self, problem_id: str, *, of_stage: int) -> int:
        return of_stage

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._step.tell(outcomes, pool=self._pool)

    def end_step(self) -> None:
        for index, outcome in self._step.told:
            before = self._weight(index)
            self._num_seen += bool(outcome.num_rollouts) and not self._rates.num_observations[index]
            self._rates.observe(index, outcome)
            after = self._weight(index)
            self._weight_sum += after - before
            self._square_sum += after**2 - before**2
        self._num_steps += 1
        self._num_given += self._step.num_given
        self._metrics = self._measure()
        self._begin_step()

    def relabel(self, tiers: Mapping[str, Tier]) -> None:
        raise no_labels(self.stage_name, tiers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "weighted",
            "pool": self._pool.fingerprint,
            "rates": self._rates.state_dict(),
            "num_steps": self._num_steps,
            "num_given": self._num_given,
            # Sums that were kept by adding differ in the last bit from sums made anew.
            "weight_sum": self._weight_sum,
            "square_sum": self._square_sum,
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pool.check_state(state, kind="weighted")
        self._rates.load_state_dict(state["rates"])
        self._num_seen = int(np.count_nonzero(self._rates.num_observations))
        self._num_steps = state["num_steps"]
        self._num_given = state["num_given"]
        self._weight_sum = state["weight_sum"]
        self._square_sum = state["square_sum"]
        self._metrics = dict(state["metrics"])
        self._begin_step()

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)

    def _begin_step(self) -> None:
        self._step = StepUnderWay()
        self._num_calls = 0

    def _measure(self) -> dict[str, float]:
        return {
            "curriculum/stage": 0.0,
            "curriculum/epoch": float(self._num_given // len(self._pool)),
            "curriculum/seen_problems": float(self._num_seen),
            "curriculum/effective_problems": self._weight_sum**2 / self._square_sum,
            "curriculum/repeated_problems": float(self._step.num_repeats),
        }

    def _weights(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        rates = (self._rates.correct[indices] + 1.0) / (self._rates.rollouts[indices] + 2.0)  # [indices]
        return np.maximum(rates * (1.0 - rates), self._floor)

    def _weight(self, index: int) -> float:
        rate = (float(self._rates.correct[index]) + 1.0) / (float(self._rates.rollouts[index]) + 2.0)
        return max(rate * (1.0 - rate), self._floor)

    def _draw(self, count: int, *, given: set[int], random: np.random.Generator) -> list[int]:
        taken: list[int] = []
        gone = set(given)
        for _ in range(_MAX_BLOCKS):
            proposed = random.integers(len(self._pool), size=_BLOCK)
            accepted = random.random(_BLOCK) * _MAX_WEIGHT < self._weights(proposed)
            for index in proposed[accepted].tolist():
                if index not in gone:
                    gone.add(index)
                    taken.append(index)
                    if len(taken) == count:
                        return taken
        return taken + self._draw_rest(count - len(taken), gone=gone, random=random)

    def _draw_rest(self, count: int, *, gone: set[int], random: np.random.Generator) -> list[int]:
        # The smallest of independent exponential waiting times with these rates: a draw without replacement.
        everyone = np.arange(len(self._pool))
        waits = random.exponential(size=len(self._pool)) / self._weights(everyone)  # [P]
        waits[list(gone)] = np.inf
        first = np.argpartition(waits, count - 1)[:count]
        return [int(index) for index in first[np.lexsort((first, waits[first]))]]
