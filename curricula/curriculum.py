"""What every curriculum can do, and the plainest of them: all problems alike, reshuffled every epoch.

A curriculum decides which problems are practised next. It sees ids and counts of right rollouts, never a model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from curricula.pool import EpochWalk, Pool
from curricula.types import Outcome


class Curriculum(Protocol):
    """One step of the loop: `next` (once, and again for each refill), `observe` (after each), `end_step` (once).

    What `next` gives is a pure function of the seed and of what was observed, before and after a trip of `state_dict`
    through JSON into `load_state_dict` of a curriculum that was built alike."""

    @property
    def stage(self) -> int:
        """Index from 0 of what is being practised."""

    @property
    def stage_name(self) -> str: ...

    @property
    def finished(self) -> bool:
        """True once the last stage has ended; `next` goes on giving problems of it."""

    @property
    def switch_reason(self) -> str:
        """Why the stage before this one, or the last stage, ended; empty while none has."""

    def next(self, num_problems: int) -> list[str]:
        """Ids of the problems to practise. No problem twice in one step while there are others left."""

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """What the rollouts said, also of groups that are dropped afterwards."""

    def end_step(self) -> None:
        """One optimisation step is over: stages switch here and nowhere else."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the state is of another kind of curriculum or of other problems."""

    def metrics(self) -> dict[str, float]:
        """`curriculum/...` numbers of the step so far."""


class Uniform:
    """Every problem once an epoch, in an order that is a pure function of seed and epoch. Never finishes."""

    stage = 0
    stage_name = "uniform"
    finished = False
    switch_reason = ""

    def __init__(self, problem_ids: Iterable[str], *, seed: int) -> None:
        self._pool = Pool(problem_ids)
        self._walk = EpochWalk(len(self._pool), seed=seed)
        self._everyone = np.ones(len(self._pool), dtype=np.bool_)
        self._step = GivenThisStep()

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        taken = self._walk.take(num_problems, eligible=self._everyone, given=self._step.given)
        self._step.add(taken)
        return [self._pool.ids[index] for index in taken]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._pool.position(outcome)

    def end_step(self) -> None:
        self._step.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "uniform",
            "pool": self._pool.fingerprint,
            "walk": self._walk.state_dict(),
            "step": self._step.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pool.check_state(state, kind="uniform")
        self._walk.load_state_dict(state["walk"])
        self._step.load_state_dict(state["step"])

    def metrics(self) -> dict[str, float]:
        return {
            "curriculum/stage": 0.0,
            "curriculum/epoch": float(self._walk.epoch),
            "curriculum/repeated_problems": float(self._step.num_repeats),
        }


class GivenThisStep:
    """The problems that the step under way was given, and how often one was given again.

    Metrics are read after `end_step`, so the number of repeats stands until the next step begins."""

    def __init__(self) -> None:
        self.given: set[int] = set()
        self.num_repeats = 0
        self._ended = True

    def add(self, indices: Sequence[int]) -> None:
        if self._ended:
            self.num_repeats = 0
            self._ended = False
        for index in indices:
            self.num_repeats += index in self.given
            self.given.add(index)

    def clear(self) -> None:
        self.given = set()
        self._ended = True

    def state_dict(self) -> dict[str, Any]:
        return {"given": sorted(self.given), "num_repeats": self.num_repeats, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.given = set(state["given"])
        self.num_repeats = state["num_repeats"]
        self._ended = state["ended"]


def check_count(num_problems: int) -> None:
    """Raises ValueError unless at least one problem is asked for."""
    if num_problems < 1:
        raise ValueError(f"num_problems = {num_problems}: ask for at least one problem")
