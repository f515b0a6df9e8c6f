"""Stages that practise one tier after another: GLM-4.5's moderate problems first, then the extreme ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.curriculum import StepUnderWay, check_count
from curricula.plateau import Plateau, PlateauRule, detect_plateau
from curricula.pool import Eligible, EpochWalk
from curricula.tiers import MoveRule, TierBook
from curricula.types import TIERS, Outcome, Tier


@dataclass(frozen=True, slots=True)
class StageRule:
    """What a stage practises and when it ends: at whichever of the given ends comes first.

    name               shown in logs
    tiers              the tiers that it practises
    steps              end after so many steps
    plateau            end when the pass rate of the rollouts of its own problems has stopped rising. Solved problems
                       rest, so this says that what is left gets no easier, not that the policy has stopped learning
    trivial_fraction   end when this share of the stage's problems is trivial
    mix_tiers          tiers that may stand in: for mix_fraction of every step's problems, and for whatever the stage's
                       own problems cannot fill without giving one twice in a step; empty: they are given twice
    mix_fraction       share of the problems that always comes from mix_tiers
    follow_moves       False: the stage keeps the problems that had its tiers at the start until they are trivial, so
                       extreme problems that begin to be solved stay in practice. True: it practises whatever has its
                       tiers at present

    Raises ValueError on values outside their range."""

    name: str
    tiers: tuple[Tier, ...]
    steps: int | None = None
    plateau: PlateauRule | None = None
    trivial_fraction: float | None = None
    mix_tiers: tuple[Tier, ...] = ()
    mix_fraction: float = 0.0
    follow_moves: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.tiers:
            raise ValueError(f"stage {self.name!r} practises {self.tiers}: give it a name and at least one tier")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"stage {self.name!r}: steps = {self.steps}: must be at least 1")
        if self.trivial_fraction is not None and not 0.0 < self.trivial_fraction <= 1.0:
            raise ValueError(f"stage {self.name!r}: trivial_fraction = {self.trivial_fraction}: must lie in (0, 1]")
        if not 0.0 <= self.mix_fraction < 1.0:
            raise ValueError(f"stage {self.name!r}: mix_fraction = {self.mix_fraction}: must lie in [0, 1)")
        if self.mix_fraction > 0.0 and not self.mix_tiers:
            raise ValueError(f"stage {self.name!r}: mix_fraction = {self.mix_fraction} needs mix_tiers to draw from")
        if set(self.mix_tiers) & set(self.tiers):
            raise ValueError(f"stage {self.name!r}: mix_tiers {self.mix_tiers} repeat tiers that it practises anyway")

    @property
    def ends(self) -> bool:
        return self.steps is not None or self.plateau is not None or self.trivial_fraction is not None


class TwoStages:
    """Practises the tiers of one stage after another; two in the report, any number here.

    Source: GLM-4.5 (arXiv 2508.06471), section on reasoning RL: moderate problems until the reward stabilises, then
    problems with pass@8 = 0 and pass@512 > 0 from a pool with verified answers. How problems move is `MoveRule`;
    trivial ones rest and return for a check. An epoch, by which rests are counted, is as many groups of the stage's
    own problems as there are of them, whoever they are given to: so checks take at most one group in
    check_every_epochs, however few problems are still practised.
    A stage also ends when each of its problems is trivial, and when labels leave it none: at once where it is being
    practised, and where it would come next it is passed over. After the last end `finished` is True and `next` goes
    on with that stage, or with the whole pool where it has no problem.

    Raises ValueError when a stage's tiers hold no problem (naming the counts), or when a stage before the last has no
    end."""

    def __init__(
        self,
        tiers: Mapping[str, Tier],
        *,
        stages: Sequence[StageRule],
        seed: int,
        moves: MoveRule | None = None,
    ) -> None:
        self.stages = tuple(stages)
        self._switch_reason = ""
        self._book = TierBook(tiers, rule=moves or MoveRule())
        self._seed = seed
        self._check_stages()
        self._stage = 0
        self._finished = False
        self._epochs_before = 0
        self._begin_stage()
        self._begin_step()
        self._metrics = self._measure()

    @property
    def stage(self) -> int:
        return self._stage

    @property
    def stage_name(self) -> str:
        return self._rule.name

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def switch_reason(self) -> str:
        """Why the stage before this one, or the last stage, ended; empty while none has."""
        return self._switch_reason

    @property
    def tier_counts(self) -> dict[Tier, int]:
        """Problems by their present tier."""
        return self._book.counts()

    @property
    def plateau(self) -> Plateau | None:
        """The stage's slope test as it stands; None without a plateau rule or while the window is not full."""
        if self._rule.plateau is None:
            return None
        return detect_plateau(self._pass_rates, rule=self._rule.plateau)

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        given = self._step.given
        num_asked = self._num_asked + self._step.num_given + num_problems
        num_mixed = math.floor(num_asked * self._rule.mix_fraction) - self._num_mixed - self._step_mixed
        if self._rule.mix_tiers:
            num_mixed = max(num_mixed, num_problems - self._own.num_left(given=given))
        num_mixed = min(num_mixed, num_problems, self._mixed.num_left(given=given))
        taken: list[int] = []
        if num_mixed < num_problems:
            taken += self._walk.take(num_problems - num_mixed, eligible=self._own, given=given)
        if num_mixed:
            taken += self._mix_walk.take(num_mixed, eligible=self._mixed, given=given)
        self._step_mixed += num_mixed
        self._step.give(taken)
        return self._book.pool.names(taken)

    def tier_of(self, problem_id: str) -> Tier | None:
        return self._book.tier_of(problem_id)

    def group_size(self, problem_id: str, *, of_stage: int) -> int:
        return of_stage

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._step.tell(outcomes, pool=self._book.pool)

    def end_step(self) -> None:
        self._stage_steps += 1
        self._num_asked += self._step.num_given
        self._num_mixed += self._step_mixed
        self._book.observe(self._step.told, epoch=self._epoch)
        self._note_pass_rate()
        self._walk.mark()
        self._mix_walk.mark()
        self._look()
        self._metrics = self._measure()
        if not self._finished:
            self._switch(self._end_reason())
        self._begin_step()

    def relabel(self, tiers: Mapping[str, Tier]) -> None:
        """As `Curriculum.relabel`. A problem labelled trivial stays with its stage as a solved one, to rest and to be
        checked; walks lay out their orders anew, and the plateau's window begins again, since other problems have
        other pass rates."""
        self._step.check_between_steps("relabel")
        epoch = self._epoch
        self._book.relabel(tiers, epoch=epoch)
        # The length of an epoch follows the number of the stage's problems: the one under way begins again.
        self._epochs_before, self._num_asked, self._num_mixed = epoch, 0, 0
        self._walk.begin_anew()
        self._mix_walk.begin_anew()
        self._pass_rates.clear()
        self._look()
        if not self._finished:
            self._switch(self._emptiness() or self._solved())
        self._begin_step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "two_stages",
            "pool": self._book.pool.fingerprint,
            "stage": self._stage,
            "stage_name": self.stage_name,
            "finished": self._finished,
            "switch_reason": self._switch_reason,
            "epochs_before": self._epochs_before,
            "stage_steps": self._stage_steps,
            "pass_rates": list(self._pass_rates),
            "num_asked": self._num_asked,
            "num_mixed": self._num_mixed,
            "walk": self._walk.state_dict(),
            "mix_walk": self._mix_walk.state_dict(),
            "book": self._book.state_dict(),
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._book.pool.check_state(state, kind="two_stages")
        names = [rule.name for rule in self.stages]
        if not (state["stage"] < len(names) and names[state["stage"]] == state["stage_name"]):
            raise ValueError(
                f"the saved state is in stage {state['stage']} ({state['stage_name']!r}), the configured stages are "
                f"{names}; resume with the same stages"
            )
        self._stage = state["stage"]
        self._book.load_state_dict(state["book"])
        self._begin_stage()
        self._finished = state["finished"]
        self._switch_reason = state["switch_reason"]
        self._epochs_before = state["epochs_before"]
        self._stage_steps = state["stage_steps"]
        self._pass_rates[:] = state["pass_rates"]
        self._num_asked = state["num_asked"]
        self._num_mixed = state["num_mixed"]
        self._walk.load_state_dict(state["walk"])
        self._mix_walk.load_state_dict(state["mix_walk"])
        self._metrics = dict(state["metrics"])
        self._look()
        self._begin_step()

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)

    @property
    def _rule(self) -> StageRule:
        return self.stages[self._stage]

    @property
    def _epoch(self) -> int:
        return self._epochs_before + (self._num_asked - self._num_mixed) // max(1, self._home.number)

    def _begin_stage(self) -> None:
        num_problems = len(self._book.pool)
        self._walk = EpochWalk(num_problems, seed=self._seed, stream=(self._stage, 0))
        self._mix_walk = EpochWalk(num_problems, seed=self._seed, stream=(self._stage, 1))
        self._stage_steps = 0
        self._num_asked = 0
        self._num_mixed = 0
        self._pass_rates: list[float] = []
        self._look()

    def _begin_step(self) -> None:
        self._step = StepUnderWay()
        self._step_mixed = 0

    def _look(self) -> None:
        """Who belongs to the stage, which of them are solved, and who may be practised until the next boundary."""
        # A million problems are gone through here and nowhere else.
        num_problems = len(self._book.pool)
        self._home = Eligible.of(self._book.members(self._rule.tiers, present=False))
        solved = self._home.among & self._book.retired()
        self._share_trivial = int(np.count_nonzero(solved)) / max(1, self._home.number)
        self._own = Eligible.of(self._find_own(solved))
        if not self._own.number:
            self._own = self._home if self._home.number else Eligible.everyone(num_problems)
        self._mixed = Eligible.of(self._find_mixed()) if self._rule.mix_tiers else Eligible.nobody(num_problems)

    def _find_own(self, solved: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Who may be practised as this stage's own problem, nobody where every one rests. [P]"""
        own = self._home.among
        if self._rule.follow_moves:
            # A problem that moved to trivial has left the stage, yet returns to it for its check.
            own = self._book.members(self._rule.tiers, present=True) | solved
        if Tier.trivial in self._rule.tiers:
            return own
        return own & ~self._book.resting(epoch=self._epoch)

    def _find_mixed(self) -> NDArray[np.bool_]:
        """Who may stand in for the stage's own problems. [P]"""
        mixed = self._book.members(self._rule.mix_tiers, present=True) & ~self._own.among
        return mixed if self._rule.follow_moves else mixed & ~self._home.among

    def _note_pass_rate(self) -> None:
        """Take the step's pass rate of the stage's own problems into the plateau's window."""
        if self._rule.plateau is None:
            return
        own = [outcome for index, outcome in self._step.told if self._own.among[index]]
        num_rollouts = sum(outcome.num_rollouts for outcome in own)
        if num_rollouts:
            self._pass_rates.append(sum(outcome.num_correct for outcome in own) / num_rollouts)
            del self._pass_rates[: -self._rule.plateau.window_steps]

    def _switch(self, reason: str) -> None:
        """End the stage where there is a reason to, and pass over those after it that have nothing to practise."""
        while reason:
            self._switch_reason = reason
            if self._stage + 1 == len(self.stages):
                self._finished = True
                return
            self._epochs_before = self._epoch
            self._stage += 1
            self._begin_stage()
            nothing = self._emptiness() or (self._solved() if self._share_trivial == 1.0 else "")
            reason = f"{reason}; {self.stage_name} had {nothing}" if nothing else ""

    def _end_reason(self) -> str:
        """Why the stage ends with this step; empty while it does not."""
        if self._rule.steps is not None and self._stage_steps >= self._rule.steps:
            return f"{self._stage_steps} steps"
        solved = self._solved()
        if solved:
            return solved
        plateau = self.plateau
        if plateau is not None and plateau.flat:
            return (
                f"pass rate flat at {plateau.mean:.4f}: rises by at most {plateau.rise_upper:.4f} in "
                f"{plateau.num_steps} steps"
            )
        return ""

    def _solved(self) -> str:
        """The reason, where enough of the stage's problems are trivial."""
        needed = 1.0 if self._rule.trivial_fraction is None else self._rule.trivial_fraction
        if self._share_trivial < needed or Tier.trivial in self._rule.tiers:
            return ""
        return f"{self._share_trivial:.1%} of its problems trivial"

    def _emptiness(self) -> str:
        """The reason, where labels have left the stage no problem."""
        if self._home.number:
            return ""
        return f"no problem in its tiers ({', '.join(self._rule.tiers)}) after they were profiled again"

    def _measure(self) -> dict[str, float]:
        numbers = {
            "curriculum/stage": float(self._stage),
            "curriculum/stage_steps": float(self._stage_steps),
            "curriculum/stage_share_trivial": self._share_trivial,
            "curriculum/epoch": float(self._epoch),
            "curriculum/practised_problems": float(self._own.number),
            "curriculum/repeated_problems": float(self._step.num_repeats),
            **self._book.metrics(),
        }
        plateau = self.plateau
        if plateau is not None:
            numbers["curriculum/plateau_rise"] = plateau.rise
            numbers["curriculum/plateau_rise_upper"] = plateau.rise_upper
            numbers["curriculum/plateau_allowed_rise"] = plateau.allowed_rise
        return numbers

    def _check_stages(self) -> None:
        if not self.stages:
            raise ValueError("TwoStages needs at least one StageRule")
        counts = self._book.counts()
        listed = ", ".join(f"{tier} {counts[tier]}" for tier in TIERS)
        for place, rule in enumerate(self.stages):
            for field, tiers in (("tiers", rule.tiers), ("mix_tiers", rule.mix_tiers)):
                if tiers and not sum(counts[tier] for tier in tiers):
                    raise ValueError(
                        f"stage {rule.name!r}: {field} {'+'.join(tiers)} hold no problem ({listed}); profile with more "
                        "rollouts, add problems of that tier, or leave the stage out"
                    )
            if not rule.ends and place + 1 < len(self.stages):
                raise ValueError(
                    f"stage {rule.name!r} never ends, and {self.stages[place + 1].name!r} comes after it; give it "
                    "steps, plateau or trivial_fraction"
                )
