"""Tiers from practice alone: an online filter that remembers, without a profile."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from curricula.curriculum import StepUnderWay, check_count, no_labels
from curricula.packed import pack_members, pack_numbers, unpack_members, unpack_numbers
from curricula.pool import Eligible, EpochWalk, Pool
from curricula.tiers import MoveRule, RunningRates
from curricula.types import Outcome, Tier

_UNSEEN = 0
_TIERS = {Tier.trivial: 1, Tier.moderate: 2, Tier.unsolved: 3}
_NEVER = np.iinfo(np.int64).max
_QUEUES = ("unseen", "due", "moderate", "anyone")


class Online:
    """Looks at every problem once, practises those whose groups have variance, and rests the others.

    A problem's first group is its profile, and every later one corrects it:

    unseen      no group yet
    trivial     running rate >= retire_rate: rests, and returns for one group after check_every_epochs
    moderate    everything between: practised
    unsolved    no success in its first min_observations groups, or in as many in a row later (at least 2): rests for
                1, 2, 4, … up to max_wait_epochs epochs, twice as long with every group that fails too; one success
                ends it. There is no tier extreme: a group has no more to say

    Unseen problems come first, in a step's first request and in its refills. So the look at the pool is a profile
    that costs nothing beside practice: what it finds is trained on at once, in steps that the refills make full, and
    no problem is repeated while others are unknown. (Refilling with the few that are known to teach would practise
    those over and over at the start.) Once all were seen, the first request takes those whose rest is over, for half
    of it where there are moderate ones, then moderate ones; refills take moderate ones first, all of them before any
    comes again. In a mild pool all of this is a walk through it.

    An epoch is as many groups as the pool has problems, whoever they are given to. A clock that counted walks through
    the eligible would run ever faster as fewer are, and spend the run on checks: with 10 problems of 1,000 left, 95 %
    of all groups at check_every_epochs = 5. On this one, checks take at most one group in check_every_epochs, and
    problems that are never solved at most one in max_wait_epochs in the long run.

    Never finishes. Outcomes of a profile may be observed, and a step ended, beforehand. The rules are ours; ScaleRL
    retires for good, DAPO refills without a memory.

    A first group may be smaller than others (`first_group_size`): enough to see whether the problem teaches.
    Raises ValueError unless max_wait_epochs >= 1 and first_group_size >= 2."""

    stage = 0
    stage_name = "online"
    finished = False
    switch_reason = ""

    def __init__(
        self,
        problem_ids: Iterable[str],
        *,
        seed: int,
        moves: MoveRule | None = None,
        max_wait_epochs: int = 16,
        first_group_size: int | None = None,
    ) -> None:
        if max_wait_epochs < 1:
            raise ValueError(f"max_wait_epochs = {max_wait_epochs}: must be at least 1")
        if first_group_size is not None and first_group_size < 2:
            raise ValueError(f"first_group_size = {first_group_size}: must be at least 2, or a group has no baseline")
        self._first_group_size = first_group_size
        self._pool = Pool(problem_ids)
        self._rule = moves or MoveRule(min_observations=1)
        self._max_wait_epochs = max_wait_epochs
        num_problems = len(self._pool)
        self._rates = RunningRates(num_problems, half_life_observations=self._rule.half_life_observations)
        self._code = np.full(num_problems, _UNSEEN, dtype=np.int8)  # [P]
        self._due = np.full(num_problems, _NEVER, dtype=np.int64)  # [P], in groups given since the start
        self._num_failed = np.zeros(num_problems, dtype=np.int32)  # [P], groups in a row without a success
        self._num_given = 0
        self._walks = {name: EpochWalk(num_problems, seed=seed, stream=(at,)) for at, name in enumerate(_QUEUES)}
        self._everyone = Eligible.everyone(num_problems)
        self._count()
        self._begin_step()
        self._metrics = self._measure()

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        taken: list[int] = []
        given = set(self._step.given)
        while len(taken) < num_problems:
            if len(given) == len(self._pool):
                given = set()
            for queue, limit in self._queues(num_problems, given=given):
                count = min(limit, num_problems - len(taken), self._eligible[queue].num_left(given=given))
                if count:
                    drawn = self._walks[queue].take(count, eligible=self._eligible[queue], given=given)
                    taken += drawn
                    given |= set(drawn)
        self._step.give(taken)
        return self._pool.names(taken)

    def tier_of(self, problem_id: str) -> Tier | None:
        code = int(self._code[self._pool.find(problem_id)])
        return next((tier for tier, of_tier in _TIERS.items() if of_tier == code), None)

    def group_size(self, problem_id: str, *, of_stage: int) -> int:
        is_unseen = self._code[self._pool.find(problem_id)] == _UNSEEN
        return of_stage if self._first_group_size is None or not is_unseen else min(self._first_group_size, of_stage)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._step.tell(outcomes, pool=self._pool)

    def end_step(self) -> None:
        self._num_given += self._step.num_given
        for index, outcome in self._step.told:
            # A group without a verdict moves no rate, and is a look that found nothing: the problem rests.
            self._rates.observe(index, outcome)
            self._num_failed[index] = 0 if outcome.num_correct else self._num_failed[index] + 1
            self._move(index)
        for walk in self._walks.values():
            walk.mark()
        num_repeats = self._step.num_repeats
        self._begin_step()
        self._metrics = self._measure(num_repeats)

    def relabel(self, tiers: Mapping[str, Tier]) -> None:
        raise no_labels(self.stage_name, tiers)

    def state_dict(self) -> dict[str, Any]:
        seen = np.flatnonzero(self._code != _UNSEEN)
        return {
            "kind": "online",
            "pool": self._pool.fingerprint,
            "num_given": self._num_given,
            "rates": self._rates.state_dict(),
            "seen": pack_members(seen, num_problems=len(self._pool)),
            "codes": pack_numbers(self._code[seen]),
            "due": pack_numbers(self._due[seen]),
            "num_failed": pack_numbers(self._num_failed[seen]),
            "walks": {name: walk.state_dict() for name, walk in self._walks.items()},
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pool.check_state(state, kind="online")
        self._num_given = state["num_given"]
        self._rates.load_state_dict(state["rates"])
        seen = unpack_members(state["seen"], num_problems=len(self._pool))
        self._code[:], self._due[:], self._num_failed[:] = _UNSEEN, _NEVER, 0
        self._code[seen] = unpack_numbers(state["codes"], dtype=np.int8)
        self._due[seen] = unpack_numbers(state["due"], dtype=np.int64)
        self._num_failed[seen] = unpack_numbers(state["num_failed"], dtype=np.int32)
        self._count()
        for name, walk in self._walks.items():
            walk.load_state_dict(state["walks"][name])
        self._metrics = dict(state["metrics"])
        self._begin_step()

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)

    @property
    def tier_counts(self) -> dict[Tier, int]:
        """Problems that were seen, by tier."""
        return {tier: self._counts[code] for tier, code in _TIERS.items()}

    def _move(self, index: int) -> None:
        """The problem's tier after one more group, and when its rest ends."""
        rule, num_judged = self._rule, int(self._rates.num_observations[index])
        was_solved = bool(self._rates.correct[index] > 0.0)
        # A problem that was solved once is given up on by its last group alone only if the rule would move any so.
        num_needed = max(2, rule.min_observations) if was_solved else rule.min_observations
        num_failed = int(self._num_failed[index])
        if num_judged and self._rates.rate(index) >= rule.retire_rate:
            tier, wait = Tier.trivial, rule.check_every_epochs
        elif num_failed >= num_needed or not was_solved:
            tier, wait = Tier.unsolved, min(2 ** min(max(0, num_failed - num_needed), 62), self._max_wait_epochs)
        else:
            tier, wait = Tier.moderate, None
        if tier is not Tier.moderate and max(num_judged, num_failed) < rule.min_observations:
            wait = 0  # too early to rest: it is looked at again
        self._counts[int(self._code[index])] -= 1
        self._counts[_TIERS[tier]] += 1
        self._code[index] = _TIERS[tier]
        self._due[index] = _NEVER if wait is None else self._num_given + wait * len(self._pool)

    def _queues(self, num_problems: int, *, given: set[int]) -> list[tuple[str, int]]:
        """Whom a request takes, in order, and how many of its problems at most."""
        everyone = num_problems
        if self._step.num_given:
            return [("unseen", everyone), ("moderate", everyone), ("due", everyone), ("anyone", everyone)]
        practises = self._eligible["moderate"].num_left(given=given) > 0
        num_due = -(-num_problems // 2) if practises else num_problems
        order = [("unseen", everyone), ("due", num_due), ("moderate", everyone)]
        return [*order, ("due", everyone), ("anyone", everyone)]

    def _begin_step(self) -> None:
        self._step = StepUnderWay()
        moderate = _TIERS[Tier.moderate]
        self._eligible = {
            "unseen": Eligible(self._code == _UNSEEN, self._counts[_UNSEEN]),
            "due": Eligible.of(self._due <= self._num_given),
            "moderate": Eligible(self._code == moderate, self._counts[moderate]),
            "anyone": self._everyone,
        }

    def _count(self) -> None:
        self._counts = {code: int(np.count_nonzero(self._code == code)) for code in (_UNSEEN, *_TIERS.values())}

    def _measure(self, num_repeats: int = 0) -> dict[str, float]:
        counts = self.tier_counts
        num_resting = counts[Tier.trivial] + counts[Tier.unsolved] - self._eligible["due"].number
        return {
            "curriculum/stage": 0.0,
            "curriculum/epoch": float(self._num_given // len(self._pool)),
            "curriculum/repeated_problems": float(num_repeats),
            "curriculum/unseen_problems": float(self._counts[_UNSEEN]),
            "curriculum/resting_problems": float(num_resting),
            **{f"curriculum/tier_{tier}": float(count) for tier, count in counts.items()},
        }
