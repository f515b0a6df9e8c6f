"""Fixed shares of the tiers in every step, without stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from curricula.curriculum import StepUnderWay, check_count
from curricula.pool import Eligible, EpochWalk
from curricula.tiers import MoveRule, TierBook
from curricula.types import TIERS, Outcome, Tier


class Mixture:
    """A fixed share of every step from each tier, at the problem's present tier; each tier is walked by epochs.

    Shares are met over the run by largest arrears, so a share of 0.1 counts also when a step asks for four problems. A
    tier that has become empty, or is used up within the step, leaves its turn to the others. A problem that moves to a
    tier without a share is not practised any more; where trivial has none, a problem that has become trivial rests and
    returns for its check among the problems of its home tier. An epoch, by which rests are counted, is as many groups
    as the tiers held problems at the start, whoever they were given to. Never finishes.
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
        self._epoch_groups = sum(counts[tier] for tier in self._shares)
        self._walks = {
            tier: EpochWalk(len(self._book.pool), seed=seed, stream=(TIERS.index(tier),)) for tier in self._shares
        }
        self._num_given = dict.fromkeys(self._shares, 0)
        self._begin_step()
        self._metrics = self._measure()

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        left = {tier: members.num_left(given=self._step.given) for tier, members in self._eligible.items()}
        turns: list[Tier] = []
        for _ in range(num_problems):
            # With every problem given once in this step, the tiers that hold any start over.
            tiers = [tier for tier in left if left[tier] > 0] or [tier for tier in left if self._eligible[tier].number]
            tier = self._most_in_arrears(tiers)
            turns.append(tier)
            self._step_given[tier] += 1
            left[tier] -= 1
        chosen = {tier: iter(self._take(tier, turns.count(tier))) for tier in self._shares if tier in turns}
        taken = [next(chosen[tier]) for tier in turns]
        self._step.give(taken)
        return self._book.pool.names(taken)

    def tier_of(self, problem_id: str) -> Tier | None:
        return self._book.tier_of(problem_id)

    def group_size(self, problem_id: str, *, of_stage: int) -> int:
        return of_stage

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._step.tell(outcomes, pool=self._book.pool)

    def end_step(self) -> None:
        for tier, count in self._step_given.items():
            self._num_given[tier] += count
            self._walks[tier].mark()
        self._book.observe(self._step.told, epoch=self._epoch)
        self._metrics = self._measure()
        self._begin_step()

    def relabel(self, tiers: Mapping[str, Tier]) -> None:
        """As `Curriculum.relabel`. A problem labelled trivial, where trivial has no share, rests and is checked among
        the problems of its home tier; a tier that is left empty leaves its turn to the others."""
        self._step.check_between_steps("relabel")
        self._book.relabel(tiers, epoch=self._epoch)
        for walk in self._walks.values():
            walk.begin_anew()
        self._begin_step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "mixture",
            "pool": self._book.pool.fingerprint,
            "num_given": {str(tier): count for tier, count in self._num_given.items()},
            "walks": {str(tier): walk.state_dict() for tier, walk in self._walks.items()},
            "book": self._book.state_dict(),
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._book.pool.check_state(state, kind="mixture")
        if set(state["walks"]) != {str(tier) for tier in self._walks}:
            raise ValueError(f"the saved state mixes {sorted(state['walks'])}; resume with shares of the same tiers")
        for tier, walk in self._walks.items():
            walk.load_state_dict(state["walks"][tier])
            self._num_given[tier] = state["num_given"][tier]
        self._book.load_state_dict(state["book"])
        self._metrics = dict(state["metrics"])
        self._begin_step()

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)

    @property
    def _epoch(self) -> int:
        return sum(self._num_given.values()) // self._epoch_groups

    def _begin_step(self) -> None:
        self._step = StepUnderWay()
        self._step_given = dict.fromkeys(self._shares, 0)
        self._eligible = self._find_eligible()
        # Everything rests, or has moved to where no share is: practise what the shares began with.
        if not any(members.number for members in self._eligible.values()):
            home = {tier: self._book.members([tier], present=False) for tier in self._shares}
            self._eligible = {tier: Eligible.of(members) for tier, members in home.items()}
        if not any(members.number for members in self._eligible.values()):
            first, *others = self._shares
            num_problems = len(self._book.pool)
            self._eligible = {tier: Eligible.nobody(num_problems) for tier in others}
            self._eligible[first] = Eligible.everyone(num_problems)

    def _find_eligible(self) -> dict[Tier, Eligible]:
        """Who is practised in each tier's share: its present members, and its own that are due for a check."""
        counts = self._book.counts()
        present = {tier: self._book.members([tier], present=True) for tier in self._shares}
        if Tier.trivial in self._shares or not counts[Tier.trivial]:
            return {tier: Eligible(members, counts[tier]) for tier, members in present.items()}
        due = self._book.retired() & ~self._book.resting(epoch=self._epoch)
        return {
            tier: Eligible.of(members | (due & self._book.members([tier], present=False)))
            for tier, members in present.items()
        }

    def _take(self, tier: Tier, count: int) -> list[int]:
        return self._walks[tier].take(count, eligible=self._eligible[tier], given=self._step.given)

    def _most_in_arrears(self, tiers: Sequence[Tier]) -> Tier:
        given = {tier: self._num_given[tier] + self._step_given[tier] for tier in self._shares}
        total = sum(given.values()) + 1
        return max(tiers, key=lambda tier: self._shares[tier] * total - given[tier])

    def _measure(self) -> dict[str, float]:
        return {
            "curriculum/stage": 0.0,
            "curriculum/epoch": float(self._epoch),
            "curriculum/repeated_problems": float(self._step.num_repeats),
            **self._book.metrics(),
        }
