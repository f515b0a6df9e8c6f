"""Running pass rates, and how problems move between tiers while they are practised."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.packed import pack_members, pack_numbers, unpack_members, unpack_numbers
from curricula.pool import Pool
from curricula.types import TIERS, Outcome, Tier

_CODES = {tier: code for code, tier in enumerate(TIERS)}
_TRIVIAL = _CODES[Tier.trivial]
NEVER = np.iinfo(np.int32).max
"""An epoch that does not come."""


@dataclass(frozen=True, slots=True)
class MoveRule:
    """When a problem changes its tier. The report is silent; retiring at 0.9 is ScaleRL's, the rest is ours.

    retire_rate              running pass rate from which a problem is trivial
    promote_rate             running pass rate from which an extreme or unsolved problem is moderate (1 right of 8)
    half_life_observations   groups after which a group weighs half as much in the running pass rate
    min_observations         groups before a problem may move. At 1 a single group may move it, which is noise where
                             the problem has a label: only `Online`, whose problems have none, takes it
    check_every_epochs       a retired problem comes back for one group after so many epochs; None: never

    Raises ValueError on values outside their range."""

    retire_rate: float = 0.9
    promote_rate: float = 0.125
    half_life_observations: float = 2.0
    min_observations: int = 2
    check_every_epochs: int | None = 5

    def __post_init__(self) -> None:
        if not 0.0 < self.promote_rate <= self.retire_rate <= 1.0:
            raise ValueError(
                "tiers need 0 < promote_rate <= retire_rate <= 1; "
                f"got promote_rate={self.promote_rate}, retire_rate={self.retire_rate}"
            )
        if self.half_life_observations <= 0.0:
            raise ValueError(f"half_life_observations = {self.half_life_observations}: must be positive")
        if self.min_observations < 1:
            raise ValueError(f"min_observations = {self.min_observations}: must be at least 1")
        if self.check_every_epochs is not None and self.check_every_epochs < 1:
            raise ValueError(f"check_every_epochs = {self.check_every_epochs}: must be at least 1, or null for never")


def moved_tier(tier: Tier, pass_rate: float, *, rule: MoveRule) -> Tier:
    """Where a problem of this tier belongs by its running pass rate.

    A retired problem that fails its check is moderate; an unsolved one that is solved now and then is extreme. A
    moderate problem stays moderate however low it falls: practice that made it harder is no reason to stop it."""
    if pass_rate >= rule.retire_rate:
        return Tier.trivial
    if tier is Tier.trivial or (tier in (Tier.extreme, Tier.unsolved) and pass_rate >= rule.promote_rate):
        return Tier.moderate
    if tier is Tier.unsolved and pass_rate > 0.0:
        return Tier.extreme
    return tier


class RunningRates:
    """Exponentially weighted pass rates of a pool: a group weighs half as much `half_life` groups later."""

    def __init__(self, num_problems: int, *, half_life_observations: float) -> None:
        if half_life_observations <= 0.0:
            raise ValueError(f"half_life_observations = {half_life_observations}: must be positive")
        self._decay = 0.5 ** (1.0 / half_life_observations)
        self.rollouts = np.zeros(num_problems)  # [P], weighted
        self.correct = np.zeros(num_problems)  # [P], weighted
        self.num_observations = np.zeros(num_problems, dtype=np.int32)  # [P]

    def observe(self, index: int, outcome: Outcome) -> None:
        """Take one group in; a group of which no rollout has a value says nothing."""
        if outcome.num_rollouts == 0:
            return
        self.rollouts[index] = self.rollouts[index] * self._decay + outcome.num_rollouts
        self.correct[index] = self.correct[index] * self._decay + outcome.num_correct
        self.num_observations[index] += 1

    def rate(self, index: int) -> float:
        """Pass rate of a problem that was observed at least once."""
        return float(self.correct[index] / self.rollouts[index])

    def forget(self, indices: Sequence[int]) -> None:
        """The problems' rates start anew."""
        for array in (self.rollouts, self.correct, self.num_observations):
            array[indices] = 0

    def state_dict(self) -> dict[str, Any]:
        seen = np.flatnonzero(self.num_observations)
        return {
            "seen": pack_members(seen, num_problems=len(self.rollouts)),
            "rollouts": pack_numbers(self.rollouts[seen]),
            "correct": pack_numbers(self.correct[seen]),
            "num_observations": pack_numbers(self.num_observations[seen]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        seen = unpack_members(state["seen"], num_problems=len(self.rollouts))
        for name, array in (
            ("rollouts", self.rollouts),
            ("correct", self.correct),
            ("num_observations", self.num_observations),
        ):
            array[:] = 0
            array[seen] = unpack_numbers(state[name], dtype=array.dtype.type)


class TierBook:
    """Each problem's home tier (by the profile), its present tier (by practice), and when its rest ends.

    Raises ValueError where the rule lets a single group move a problem."""

    def __init__(self, tiers: Mapping[str, Tier], *, rule: MoveRule) -> None:
        if rule.min_observations < 2:
            raise ValueError(
                f"min_observations = {rule.min_observations}: must be at least 2 where problems have a tier already: "
                "one group is noise"
            )
        self.pool = Pool(tiers, tiers=tiers)
        self.rule = rule
        self._first_home = np.array([_CODES[Tier(tiers[name])] for name in self.pool.ids], dtype=np.int8)  # [P]
        self.home = self._first_home.copy()  # [P]
        self.present = self.home.copy()  # [P]
        self.rates = RunningRates(len(self.pool), half_life_observations=rule.half_life_observations)
        self._check_epoch = np.zeros(len(self.pool), dtype=np.int32)  # [P], from which a retired problem may come
        self._count()

    def observe(self, told: Iterable[tuple[int, Outcome]], *, epoch: int) -> None:
        """Update the running rates and move problems, each given by its index."""
        for index, outcome in told:
            self.rates.observe(index, outcome)
            if outcome.num_rollouts == 0 or self.rates.num_observations[index] < self.rule.min_observations:
                continue
            before = TIERS[self.present[index]]
            tier = moved_tier(before, self.rates.rate(index), rule=self.rule)
            self.present[index] = _CODES[tier]
            self._counts[before] -= 1
            self._counts[tier] += 1
            if tier is Tier.trivial:
                self._check_epoch[index] = self._next_check(epoch)

    def relabel(self, tiers: Mapping[str, Tier], *, epoch: int) -> None:
        """Give the problems these tiers; their running rates start anew.

        One that is trivial by its label keeps its home and is retired, just as if practice had said so: it counts
        among the solved problems of its stage and returns for its check. Raises ValueError, and changes nothing, on a
        problem that is not in the pool."""
        indices = [self.pool.find(problem_id, what="label") for problem_id in tiers]
        codes = [_CODES[Tier(tier)] for tier in tiers.values()]
        for index, code in zip(indices, codes, strict=True):
            self.present[index] = code
            if code == _TRIVIAL:
                self._check_epoch[index] = self._next_check(epoch)
            else:
                self.home[index] = code
        self.rates.forget(indices)
        self._count()

    def tier_of(self, problem_id: str) -> Tier:
        """The problem's present tier. Raises ValueError on one that is not in the pool."""
        return TIERS[self.present[self.pool.find(problem_id)]]

    def members(self, tiers: Iterable[Tier], *, present: bool) -> NDArray[np.bool_]:
        """Who belongs to one of these tiers, of which there is one at least, by home or by present tier. [P]"""
        of_problem = self.present if present else self.home
        first, *others = tiers
        found: NDArray[np.bool_] = of_problem == _CODES[first]
        for tier in others:
            found |= of_problem == _CODES[tier]
        return found

    def retired(self) -> NDArray[np.bool_]:
        """Who is trivial at present. [P]"""
        return self.present == _TRIVIAL

    def resting(self, *, epoch: int) -> NDArray[np.bool_]:
        """Who is trivial at present and not due for a check. [P]"""
        return self.retired() & (self._check_epoch > epoch)

    def counts(self) -> dict[Tier, int]:
        """Problems by present tier."""
        return dict(self._counts)

    def metrics(self) -> dict[str, float]:
        return {f"curriculum/tier_{tier}": float(count) for tier, count in self.counts().items()}

    def state_dict(self) -> dict[str, Any]:
        relabelled = np.flatnonzero(self.home != self._first_home)
        moved = np.flatnonzero(self.present != self.home)
        checked = np.flatnonzero(self._check_epoch)
        return {
            "rates": self.rates.state_dict(),
            "relabelled": self._packed(relabelled, self.home),
            "moved": self._packed(moved, self.present),
            "checked": self._packed(checked, self._check_epoch),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rates.load_state_dict(state["rates"])
        self.home[:] = self._first_home
        self._unpack(state["relabelled"], self.home)
        self.present[:] = self.home
        self._unpack(state["moved"], self.present)
        self._check_epoch[:] = 0
        self._unpack(state["checked"], self._check_epoch)
        self._count()

    def _count(self) -> None:
        self._counts = {tier: int(np.count_nonzero(self.present == code)) for tier, code in _CODES.items()}

    def _next_check(self, epoch: int) -> int:
        every = self.rule.check_every_epochs
        return NEVER if every is None else epoch + every

    def _packed(self, indices: NDArray[np.intp], array: NDArray[Any]) -> dict[str, str]:
        members = pack_members(indices, num_problems=len(self.pool))
        return {"members": members, "values": pack_numbers(array[indices])}

    def _unpack(self, packed: Mapping[str, str], array: NDArray[Any]) -> None:
        members = unpack_members(packed["members"], num_problems=len(self.pool))
        array[members] = unpack_numbers(packed["values"], dtype=array.dtype.type)
