"""Running pass rates, and how problems move between tiers while they are practised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.pool import Pool
from curricula.types import TIERS, Outcome, Tier

_CODES = {tier: code for code, tier in enumerate(TIERS)}
_TRIVIAL = _CODES[Tier.trivial]


@dataclass(frozen=True, slots=True)
class MoveRule:
    """When a problem changes its tier. The report is silent; retiring at 0.9 is ScaleRL's, the rest is ours.

    retire_rate              running pass rate from which a problem is trivial
    promote_rate             running pass rate from which an extreme or unsolved problem is moderate (1 right of 8)
    half_life_observations   groups after which a group weighs half as much in the running pass rate
    min_observations         groups before a problem may move: never by its last group alone
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
        if self.min_observations < 2:
            raise ValueError(f"min_observations = {self.min_observations}: must be at least 2 (one group is noise)")
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

    def state_dict(self) -> dict[str, Any]:
        seen = np.flatnonzero(self.num_observations)
        return {
            "indices": seen.tolist(),
            "rollouts": self.rollouts[seen].tolist(),
            "correct": self.correct[seen].tolist(),
            "num_observations": self.num_observations[seen].tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        seen = np.array(state["indices"], dtype=np.int64)
        self.rollouts[:] = self.correct[:] = self.num_observations[:] = 0
        self.rollouts[seen] = state["rollouts"]
        self.correct[seen] = state["correct"]
        self.num_observations[seen] = state["num_observations"]


class TierBook:
    """Each problem's home tier (by the profile), its present tier (by practice), and when it retired."""

    def __init__(self, tiers: Mapping[str, Tier], *, rule: MoveRule) -> None:
        self.pool = Pool(tiers, tiers=tiers)
        self.rule = rule
        self.home = np.array([_CODES[Tier(tiers[problem_id])] for problem_id in self.pool.ids], dtype=np.int8)  # [P]
        self.present = self.home.copy()  # [P]
        self.rates = RunningRates(len(self.pool), half_life_observations=rule.half_life_observations)
        self._last_check_epoch = np.zeros(len(self.pool), dtype=np.int32)  # [P], of retired problems

    def observe(self, outcomes: Sequence[Outcome], *, epoch: int) -> None:
        """Update the running rates and move problems. Raises ValueError on a problem that is not in the pool."""
        positions = [self.pool.position(outcome) for outcome in outcomes]
        for index, outcome in zip(positions, outcomes, strict=True):
            self.rates.observe(index, outcome)
            if self.rates.num_observations[index] < self.rule.min_observations:
                continue
            tier = moved_tier(TIERS[self.present[index]], self.rates.rate(index), rule=self.rule)
            self.present[index] = _CODES[tier]
            if tier is Tier.trivial:
                self._last_check_epoch[index] = epoch

    def members(self, tiers: Sequence[Tier], *, present: bool) -> NDArray[np.bool_]:
        """Who belongs to one of these tiers, by home or by present tier. [P]"""
        wanted = np.zeros(len(TIERS), dtype=np.bool_)
        wanted[[_CODES[tier] for tier in tiers]] = True
        return wanted[self.present if present else self.home]

    def retired(self) -> NDArray[np.bool_]:
        """Who is trivial at present. [P]"""
        return self.present == _TRIVIAL

    def resting(self, *, epoch: int) -> NDArray[np.bool_]:
        """Who is trivial at present and not due for a check. [P]"""
        every = self.rule.check_every_epochs
        if every is None:
            return self.retired()
        return self.retired() & (epoch < self._last_check_epoch + every)

    def counts(self) -> dict[Tier, int]:
        """Problems by present tier."""
        totals = np.bincount(self.present, minlength=len(TIERS))
        return {tier: int(totals[code]) for tier, code in _CODES.items()}

    def metrics(self) -> dict[str, float]:
        return {f"curriculum/tier_{tier}": float(count) for tier, count in self.counts().items()}

    def state_dict(self) -> dict[str, Any]:
        moved = np.flatnonzero(self.present != self.home)
        checked = np.flatnonzero(self._last_check_epoch)
        return {
            "rates": self.rates.state_dict(),
            "moved": {"indices": moved.tolist(), "tiers": [str(TIERS[code]) for code in self.present[moved]]},
            "checked": {"indices": checked.tolist(), "epochs": self._last_check_epoch[checked].tolist()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rates.load_state_dict(state["rates"])
        self.present[:] = self.home
        for index, tier in zip(state["moved"]["indices"], state["moved"]["tiers"], strict=True):
            self.present[index] = _CODES[Tier(tier)]
        self._last_check_epoch[:] = 0
        self._last_check_epoch[state["checked"]["indices"]] = state["checked"]["epochs"]
