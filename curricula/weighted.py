"""Curricula without stages: problems weighted by how much they can teach, and fixed shares of the tiers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.curriculum import GivenThisStep, check_count
from curricula.pool import EpochWalk, Pool, generator, num_left
from curricula.tiers import MoveRule, RunningRates, TierBook
from curricula.types import TIERS, Outcome, Tier


class Weighted:
    """Draws problems with probability ∝ max(p(1-p), floor), p the running pass rate; never twice in a step.

    p(1-p) is the variance of a right-or-wrong reward, hence the expected size of a group's signal. p is
    (weighted right + 1) / (weighted rollouts + 2), so a problem that was never seen counts as p = 1/2 and is tried
    early. Outcomes of a profile may be observed beforehand. Never finishes; an "epoch" is as many draws as problems.
    Sources: draws without replacement by Efraimidis and Spirakis (2006). Raises ValueError unless 0 < floor <= 1/4."""

    stage = 0
    stage_name = "weighted"
    finished = False
    switch_reason = ""

    def __init__(
        self, problem_ids: Iterable[str], *, seed: int, half_life_observations: float = 2.0, floor: float = 0.01
    ) -> None:
        if not 0.0 < floor <= 0.25:
            raise ValueError(f"floor = {floor}: must lie in (0, 0.25], or problems at 0 or 1 never come back")
        self._pool = Pool(problem_ids)
        self._rates = RunningRates(len(self._pool), half_life_observations=half_life_observations)
        self._seed = seed
        self._floor = floor
        self._num_calls = 0
        self._num_given = 0
        self._step = GivenThisStep()
        generator(seed)

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        taken: list[int] = []
        given = set(self._step.given)
        while len(taken) < num_problems:
            if len(given) == len(self._pool):
                given = set()
            wanted = min(num_problems - len(taken), len(self._pool) - len(given))
            drawn = self._draw(wanted, given=given)
            taken += drawn
            given |= set(drawn)
        self._num_given += num_problems
        self._step.add(taken)
        return [self._pool.ids[index] for index in taken]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        positions = [self._pool.position(outcome) for outcome in outcomes]
        for index, outcome in zip(positions, outcomes, strict=True):
            self._rates.observe(index, outcome)

    def end_step(self) -> None:
        self._step.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "weighted",
            "pool": self._pool.fingerprint,
            "rates": self._rates.state_dict(),
            "num_calls": self._num_calls,
            "num_given": self._num_given,
            "step": self._step.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pool.check_state(state, kind="weighted")
        self._rates.load_state_dict(state["rates"])
        self._num_calls = state["num_calls"]
        self._num_given = state["num_given"]
        self._step.load_state_dict(state["step"])

    def metrics(self) -> dict[str, float]:
        weights = self._weights()
        return {
            "curriculum/stage": 0.0,
            "curriculum/epoch": float(self._num_given // len(self._pool)),
            "curriculum/seen_problems": float(np.count_nonzero(self._rates.num_observations)),
            "curriculum/effective_problems": float(weights.sum() ** 2 / (weights**2).sum()),
            "curriculum/repeated_problems": float(self._step.num_repeats),
        }

    def _weights(self) -> NDArray[np.float64]:
        rates = (self._rates.correct + 1.0) / (self._rates.rollouts + 2.0)  # [P]
        return np.maximum(rates * (1.0 - rates), self._floor)

    def _draw(self, count: int, *, given: set[int]) -> list[int]:
        uniform = generator(self._seed, self._num_calls).random(len(self._pool))  # [P]
        self._num_calls += 1
        # The smallest of independent exponential waiting times with these rates: a draw without replacement.
        waits = -np.log1p(-uniform) / self._weights()
        waits[list(given)] = np.inf
        first = np.argpartition(waits, count - 1)[:count]
        return [int(index) for index in first[np.lexsort((first, waits[first]))]]


class Mixture:
    """A fixed share of every step from each tier, at the problem's present tier; each tier is walked by epochs.

    Shares are met over the run by largest arrears, so a share of 0.1 counts also when a step asks for four problems. A
    tier that has become empty, or is used up within the step, leaves its turn to the others. A problem that moves to a
    tier without a share is not practised any more, and has no check. Never finishes.
    Raises ValueError unless the shares are positive, and their tiers hold problems at the start."""

    stage = 0
    stage_name = "mixture"
    finished = False
    switch_reason = ""

    def __init__(
        self, tiers: Mapping[str, Tier], *, shares: Mapping[Tier, float], seed: int, moves: MoveRule | None = None
    ) -> None:
        self._book = TierBook(tiers, rule=moves or MoveRule())
        counts = self._book.counts()
        if not shares or min(shares.values()) <= 0.0:
            raise ValueError(f"shares = {dict(shares)}: name at least one tier, and leave out those with share 0")
        for tier in shares:
            if not counts[Tier(tier)]:
                listed = ", ".join(f"{name} {counts[name]}" for name in TIERS)
                raise ValueError(f"shares: tier {tier} holds no problem ({listed}); leave it out of the shares")
        total = sum(shares.values())
        self._shares = {tier: shares[tier] / total for tier in TIERS if tier in shares}
        self._walks = {
            tier: EpochWalk(len(self._book.pool), seed=seed, stream=(TIERS.index(tier),)) for tier in self._shares
        }
        self._num_given = dict.fromkeys(self._shares, 0)
        self._step = GivenThisStep()

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        eligible = {tier: self._book.members([tier], present=True) for tier in self._shares}
        if not any(members.any() for members in eligible.values()):
            eligible = {tier: self._book.members([tier], present=False) for tier in self._shares}
        left = {tier: num_left(members, given=self._step.given) for tier, members in eligible.items()}
        taken: list[int] = []
        for _ in range(num_problems):
            # With every problem given once in this step, the tiers that hold any start over.
            tiers = [tier for tier in left if left[tier] > 0] or [tier for tier in left if eligible[tier].any()]
            tier = self._most_in_arrears(tiers)
            taken += self._walks[tier].take(1, eligible=eligible[tier], given=self._step.given.union(taken))
            self._num_given[tier] += 1
            left[tier] -= 1
        self._step.add(taken)
        return [self._book.pool.ids[index] for index in taken]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._book.observe(outcomes, epoch=self._epoch)

    def end_step(self) -> None:
        self._step.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "mixture",
            "pool": self._book.pool.fingerprint,
            "num_given": {str(tier): count for tier, count in self._num_given.items()},
            "walks": {str(tier): walk.state_dict() for tier, walk in self._walks.items()},
            "step": self._step.state_dict(),
            "book": self._book.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._book.pool.check_state(state, kind="mixture")
        if set(state["walks"]) != {str(tier) for tier in self._walks}:
            raise ValueError(f"the saved state mixes {sorted(state['walks'])}; resume with shares of the same tiers")
        for tier, walk in self._walks.items():
            walk.load_state_dict(state["walks"][tier])
            self._num_given[tier] = state["num_given"][tier]
        self._step.load_state_dict(state["step"])
        self._book.load_state_dict(state["book"])

    def metrics(self) -> dict[str, float]:
        return {
            "curriculum/stage": 0.0,
            "curriculum/epoch": float(self._epoch),
            "curriculum/repeated_problems": float(self._step.num_repeats),
            **self._book.metrics(),
        }

    @property
    def _epoch(self) -> int:
        """Epochs of the tier that was walked through least often."""
        return min(walk.epoch for walk in self._walks.values())

    def _most_in_arrears(self, tiers: Sequence[Tier]) -> Tier:
        total = sum(self._num_given.values()) + 1
        return max(tiers, key=lambda tier: self._shares[tier] * total - self._num_given[tier])
