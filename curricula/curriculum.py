"""What every curriculum can do, and the plainest of them: all problems alike, reshuffled every epoch.

A curriculum decides which problems are practised next. It sees ids and counts of right rollouts, never a model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from curricula.pool import Eligible, EpochWalk, Pool
from curricula.types import Outcome, Tier


class Curriculum(Protocol):
    """One step of the loop: `next` (once, and again for each refill), `observe` (after each), `end_step` (once).

    What `observe` is told takes effect in `end_step` and nowhere else, so within a step nothing moves. What `next`
    gives is a pure function of the seed, of what was told in earlier steps and of what the step was asked for so far,
    before and after a trip of `state_dict` through JSON into `load_state_dict` of a curriculum that was built alike.

    A state is always that of the last step boundary: construction, `end_step`, `relabel` or `load_state_dict`. It can
    be saved at any time; whoever loads one that was saved in the middle of a step begins that step again, and is
    given the same problems."""

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
        """Ids of the problems to practise. No problem twice in one step while there are others left.

        Raises ValueError unless num_problems >= 1."""

    def tier_of(self, problem_id: str) -> Tier | None:
        """The problem's tier as the step began; None where it has none. Raises ValueError on a foreign problem where
        there are tiers."""

    def group_size(self, problem_id: str, *, of_stage: int) -> int:
        """Rollouts of the problem's group in this step; `of_stage` is what the stage has for a group."""

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """What the rollouts said, also of groups that are dropped afterwards. Outcomes known from elsewhere may be
        told as well, before the first step, with an `end_step` after them.

        Raises ValueError on a problem that is not in the pool, and takes none of the outcomes then."""

    def end_step(self) -> None:
        """One optimisation step is over: what was told takes effect, problems move, stages switch."""

    def relabel(self, tiers: Mapping[str, Tier]) -> None:
        """The problems named have these tiers from here on: they were profiled again. Between steps only; a stage
        that has nothing left to practise ends here.

        Raises ValueError in the middle of a step, on a problem that is not in the pool, and where the curriculum
        knows no labels."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the state is of another kind of curriculum or of other problems."""

    def metrics(self) -> dict[str, float]:
        """`curriculum/...` numbers of the step that was ended last, in the stage that it was in; before the first,
        those at the start."""


class StepUnderWay:
    """What the step under way was given and told. A saved state holds nothing of it."""

    def __init__(self) -> None:
        self.given: set[int] = set()
        self.num_given = 0
        self.num_repeats = 0
        self.told: list[tuple[int, Outcome]] = []

    def give(self, indices: Sequence[int]) -> None:
        self.num_given += len(indices)
        for index in indices:
            self.num_repeats += index in self.given
            self.given.add(index)

    def tell(self, outcomes: Sequence[Outcome], *, pool: Pool) -> None:
        """Keep the outcomes for the end of the step. Raises ValueError, keeping none, on one of another pool."""
        self.told += [(pool.find(outcome.problem_id), outcome) for outcome in outcomes]

    def check_between_steps(self, what: str) -> None:
        """Raises ValueError where the step has begun."""
        if self.num_given or self.told:
            raise ValueError(
                f"{what} in the middle of a step, which was given {self.num_given} problems and told "
                f"{len(self.told)} outcomes; call end_step first"
            )


class Uniform:
    """Every problem once an epoch, in an order that is a pure function of seed and epoch. Never finishes."""

    stage = 0
    stage_name = "uniform"
    finished = False
    switch_reason = ""

    def __init__(self, problem_ids: Iterable[str], *, seed: int) -> None:
        self._pool = Pool(problem_ids)
        self._walk = EpochWalk(len(self._pool), seed=seed)
        self._everyone = Eligible.everyone(len(self._pool))
        self._step = StepUnderWay()
        self._metrics = self._measure()

    def next(self, num_problems: int) -> list[str]:
        check_count(num_problems)
        taken = self._walk.take(num_problems, eligible=self._everyone, given=self._step.given)
        self._step.give(taken)
        return self._pool.names(taken)

    def tier_of(self, problem_id: str) -> Tier | None:
        return None

    def group_size(self, problem_id: str, *, of_stage: int) -> int:
        return of_stage

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._step.tell(outcomes, pool=self._pool)

    def end_step(self) -> None:
        self._metrics = self._measure()
        self._walk.mark()
        self._step = StepUnderWay()

    def relabel(self, tiers: Mapping[str, Tier]) -> None:
        raise no_labels(self.stage_name, tiers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "uniform",
            "pool": self._pool.fingerprint,
            "walk": self._walk.state_dict(),
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pool.check_state(state, kind="uniform")
        self._walk.load_state_dict(state["walk"])
        self._metrics = dict(state["metrics"])
        self._step = StepUnderWay()

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)

    def _measure(self) -> dict[str, float]:
        return {
            "curriculum/stage": 0.0,
            "curriculum/epoch": float(self._walk.epoch),
            "curriculum/repeated_problems": float(self._step.num_repeats),
        }


def check_count(num_problems: int) -> None:
    """Raises ValueError unless at least one problem is asked for."""
    if num_problems < 1:
        raise ValueError(f"num_problems = {num_problems}: ask for at least one problem")


def no_labels(kind: str, tiers: Mapping[str, Tier]) -> ValueError:
    """The error of a curriculum that practises without labels and is handed some."""
    return ValueError(
        f"relabel of {len(tiers)} problems: a {kind} curriculum has no labels; use two_stages or mixture, or do not "
        "profile again"
    )
