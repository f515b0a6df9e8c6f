"""How hot the policy samples: planned schedules, and GLM-4.5's rule that raises the temperature when reward is flat.

A schedule sees mean rewards and what rollouts came to by problem, never a model. The sampler takes `value(step)`; the
loss divides the logits by the temperature that each rollout carries. `curricula.diversity` has one more schedule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from curricula.comparison import (
    Choice,
    Decision,
    Guard,
    Measured,
    Reading,
    compare_temperatures,
    read_temperatures,
    rollouts_wanted,
)
from curricula.counterfactual import ReweightedGroup, ReweightedWindow
from curricula.plateau import Plateau, PlateauRule, detect_plateau


class TemperatureSchedule(Protocol):
    """One step of the loop: `value`, then `observe`, `begin_stage` where the curriculum's stage switches; where
    `wants_decision`, rollouts of validation problems as long as `wants_rollouts` names some, then `decide`.

    The same before and after a trip of `state_dict` through JSON into `load_state_dict` of a schedule built alike. A
    decision is made between two steps, and nothing of it is state before it is made."""

    def value(self, step: int) -> float:
        """Temperature of this step's rollouts."""

    def reweighted_at(self) -> tuple[float, ...]:
        """Temperatures, the one in use among them, at which the next rollouts are to be read too; () for none."""

    def observe(
        self,
        step: int,
        reward_mean: float,
        *,
        groups: Sequence[ReweightedGroup] = (),
        diversity: float | None = None,
    ) -> None:
        """The step's rollouts, before any group is dropped: their mean reward, their groups reweighted where
        `reweighted_at` asked for it, and their mean diversity where it was measured."""

    def begin_stage(self, temperature: float | None = None) -> None:
        """Other problems are practised from the next step on: rewards so far say nothing about theirs.

        `temperature` is the stage's own; None leaves it to the schedule."""

    def wants_decision(self, step: int) -> bool:
        """Whether a decision is due."""

    def wants_rollouts(self, measured: Mapping[float, Measured]) -> dict[float, int]:
        """Rollouts of each validation problem to draw next, by temperature, after those in `measured`; {}: decide."""

    def decide(self, step: int, measured: Mapping[float, Measured]) -> Decision:
        """Take in what was drawn; what is chosen holds from the next `value` on."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the state is of another kind of schedule."""

    def metrics(self) -> dict[str, float]:
        """`temperature/...` numbers; the temperature itself is logged by the trainer as `sampling/temperature`."""


class Planned:
    """A schedule that is a function of the step alone: nothing to observe, to decide or to remember."""

    kind = ""

    def value(self, step: int) -> float:
        raise NotImplementedError

    def reweighted_at(self) -> tuple[float, ...]:
        return ()

    def observe(
        self,
        step: int,
        reward_mean: float,
        *,
        groups: Sequence[ReweightedGroup] = (),
        diversity: float | None = None,
    ) -> None:
        pass

    def begin_stage(self, temperature: float | None = None) -> None:
        """Raises ValueError where the stage has a temperature of its own: every step is planned."""
        if temperature is not None:
            raise ValueError(f"a {self.kind} temperature plans every step; a stage cannot set {temperature}")

    def wants_decision(self, step: int) -> bool:
        return False

    def wants_rollouts(self, measured: Mapping[float, Measured]) -> dict[float, int]:
        return {}

    def decide(self, step: int, measured: Mapping[float, Measured]) -> Decision:
        """Raises ValueError: a planned schedule asks for no decision."""
        raise ValueError(f"a {self.kind} temperature decides nothing: it never asks for a decision")

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_kind(state, kind=self.kind)

    def metrics(self) -> dict[str, float]:
        return {}


class Constant(Planned):
    """One temperature throughout, but for stages that have their own. Raises ValueError unless it is positive."""

    kind = "constant"

    def __init__(self, temperature: float) -> None:
        self._temperature = positive("temperature", temperature)
        self._current = self._temperature

    def value(self, step: int) -> float:
        return self._current

    def begin_stage(self, temperature: float | None = None) -> None:
        """A stage without a temperature has the schedule's, whatever the stage before had."""
        self._current = self._temperature if temperature is None else positive("the stage's", temperature)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "current": self._current}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_kind(state, kind=self.kind)
        self._current = state["current"]


class Linear(Planned):
    """From `start` at step 0 on a straight line to `end` at step `steps`, then constant.

    Raises ValueError unless both temperatures are positive and steps >= 1."""

    kind = "linear"

    def __init__(self, start: float, *, end: float, steps: int) -> None:
        self._start, self._end, self._steps = _ramp(start, end, steps)

    def value(self, step: int) -> float:
        done = min(max(step / self._steps, 0.0), 1.0)
        return self._start + (self._end - self._start) * done


class Cosine(Planned):
    """From `start` at step 0 on half a cosine to `end` at step `steps`, then constant; errors as `Linear`."""

    kind = "cosine"

    def __init__(self, start: float, *, end: float, steps: int) -> None:
        self._start, self._end, self._steps = _ramp(start, end, steps)

    def value(self, step: int) -> float:
        done = min(max(step / self._steps, 0.0), 1.0)
        return self._end + (self._start - self._end) * 0.5 * (1.0 + math.cos(math.pi * done))


class Steps(Planned):
    """`start`, and from each of the given steps on another temperature: {100: 1.2, 200: 1.4}.

    Raises ValueError unless every temperature is positive and every step at least 1."""

    kind = "steps"

    def __init__(self, start: float, *, changes: Mapping[int, float]) -> None:
        if any(step < 1 for step in changes):
            raise ValueError(f"temperature changes at steps {sorted(changes)}: the first change is at step 1 or later")
        self._start = positive("start", start)
        self._changes = {step: positive(f"changes[{step}]", changes[step]) for step in sorted(changes)}

    def value(self, step: int) -> float:
        reached = [temperature for change, temperature in self._changes.items() if change <= step]
        return reached[-1] if reached else self._start


class Adaptive:
    """Raises the temperature when the reward has stabilised, as far as validation scores allow.

    Source: GLM-4.5 (arXiv 2508.06471): when the average rollout reward has stabilised, evaluate a held-out set over a
    range of temperatures and take "the maximum value that does not cause a performance drop of more than 1% from the
    current optimum". Silent there, and ours: the slope test (`PlateauRule`), the paired comparison and what it
    guarantees (`compare_temperatures`), draws that grow (`rollouts_wanted`), the reading of "current optimum" as the
    temperature in use (`Guard.reference`), and the cooldown.

    start                      the temperature before any decision
    grid                       temperatures to choose from; the one in use is always evaluated with them. Against the
                               one in use the temperature cannot fall, so only hotter ones are evaluated, and none
                               where there is none
    choose                     which of the admissible ones: the highest, or that with the most p(1 - p)
    rollouts_per_problem       of each validation problem and temperature, in the first draw of a decision
    max_rollouts_per_problem   draws grow up to this while a difference is unsure
    min_effective_fraction     read the window's own rollouts first, reweighted, and let a temperature be settled by
                               them where at least this share counts; None draws rollouts for every decision
    cooldown_steps             steps without another decision after one

    A new temperature and a new stage shift the reward, so the window starts empty after either. A falling reward has
    not stabilised: the slope test is two-sided (`Plateau.steady`).
    Raises ValueError unless every temperature is positive, the grid is not empty, cooldown_steps >= 0 and
    1 <= rollouts_per_problem <= max_rollouts_per_problem."""

    kind = "adaptive"

    def __init__(
        self,
        start: float,
        *,
        grid: Sequence[float],
        plateau: PlateauRule | None = None,
        guard: Guard | None = None,
        choose: Choice = "highest",
        rollouts_per_problem: int = 16,
        max_rollouts_per_problem: int = 64,
        min_effective_fraction: float | None = None,
        cooldown_steps: int = 20,
    ) -> None:
        if not 1 <= rollouts_per_problem <= max_rollouts_per_problem:
            raise ValueError(
                f"adaptive temperature: rollouts_per_problem = {rollouts_per_problem} must be from 1 to "
                f"max_rollouts_per_problem = {max_rollouts_per_problem}"
            )
        self._current = positive("start", start)
        self._grid = checked_grid(grid, cooldown_steps=cooldown_steps)
        self._plateau_rule = plateau or PlateauRule()
        self._guard = guard or Guard()
        self._choose: Choice = choose
        self._first, self._budget = rollouts_per_problem, max_rollouts_per_problem
        self._min_effective_fraction = min_effective_fraction
        self._cooldown_steps = cooldown_steps
        self._rewards: list[float] = []
        self._window = ReweightedWindow(self._plateau_rule.window_steps)
        self._last_decision_step: int | None = None
        self._num_decisions = 0
        self._num_changes = 0

    @property
    def plateau(self) -> Plateau | None:
        """The slope test as it stands; None while the window is not full."""
        return detect_plateau(self._rewards, rule=self._plateau_rule)

    def value(self, step: int) -> float:
        return self._current

    def reweighted_at(self) -> tuple[float, ...]:
        candidates = self._candidates()
        counts = self._min_effective_fraction is not None and candidates
        return tuple(sorted({*candidates, self._current})) if counts else ()

    def observe(
        self,
        step: int,
        reward_mean: float,
        *,
        groups: Sequence[ReweightedGroup] = (),
        diversity: float | None = None,
    ) -> None:
        """Raises ValueError on a mean that is not finite: a step without a reward is not observed."""
        if not math.isfinite(reward_mean):
            raise ValueError(f"reward_mean = {reward_mean} at step {step}: leave out steps in which nothing was scored")
        self._rewards.append(float(reward_mean))
        del self._rewards[: -self._plateau_rule.window_steps]
        self._window.observe(groups)

    def begin_stage(self, temperature: float | None = None) -> None:
        """A stage without a temperature goes on with the one in use."""
        self._begin_at(self._current if temperature is None else positive("the stage's", temperature))

    def wants_decision(self, step: int) -> bool:
        cooling = self._last_decision_step is not None and step < self._last_decision_step + self._cooldown_steps
        plateau = self.plateau
        return bool(self._candidates()) and not cooling and plateau is not None and plateau.steady

    def wants_rollouts(self, measured: Mapping[float, Measured]) -> dict[float, int]:
        return rollouts_wanted(
            measured,
            current=self._current,
            candidates=self._candidates(),
            guard=self._guard,
            window=self._window_readings(),
            first=self._first,
            budget=self._budget,
        )

    def decide(self, step: int, measured: Mapping[float, Measured]) -> Decision:
        """Choose by `compare_temperatures`, whose errors it raises."""
        decision = compare_temperatures(
            measured,
            step=step,
            current=self._current,
            guard=self._guard,
            choose=self._choose,
            window=self._window_readings(),
            plateau=self.plateau,
        )
        self._last_decision_step = step
        self._num_decisions += 1
        if decision.changed:
            self._num_changes += 1
            self._begin_at(decision.chosen)
        return decision

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "current": self._current,
            "rewards": list(self._rewards),
            "window": self._window.state_dict(),
            "last_decision_step": self._last_decision_step,
            "num_decisions": self._num_decisions,
            "num_changes": self._num_changes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_kind(state, kind=self.kind)
        self._current = state["current"]
        self._rewards = list(state["rewards"])
        self._window.load_state_dict(state["window"])
        self._last_decision_step = state["last_decision_step"]
        self._num_decisions = state["num_decisions"]
        self._num_changes = state["num_changes"]

    def metrics(self) -> dict[str, float]:
        numbers = {
            "temperature/decisions": float(self._num_decisions),
            "temperature/changes": float(self._num_changes),
        }
        plateau = self.plateau
        if plateau is not None:
            numbers["temperature/plateau_rise"] = plateau.rise
            numbers["temperature/plateau_rise_lower"] = plateau.rise_lower
            numbers["temperature/plateau_rise_upper"] = plateau.rise_upper
            numbers["temperature/plateau_allowed_rise"] = plateau.allowed_rise
        if shares := self._window.effective_fractions():
            numbers["temperature/effective_fraction_min"] = min(shares.values())
        return numbers

    def _begin_at(self, temperature: float) -> None:
        self._current = temperature
        self._rewards.clear()
        self._window.clear()

    def _window_readings(self) -> tuple[Reading, ...]:
        """The window's rollouts at each temperature that a decision could choose; () where they are not reweighted."""
        measured = self._window.measured()
        if self._min_effective_fraction is None or self._current not in measured:
            return ()
        return read_temperatures(
            measured,
            current=self._current,
            guard=self._guard,
            min_effective_fraction=self._min_effective_fraction,
        )

    def _candidates(self) -> set[float]:
        """Temperatures other than the one in use that a decision could choose."""
        return {t for t in self._grid if t > self._current or (t < self._current and self._guard.reference == "best")}


def checked_grid(grid: Sequence[float], *, cooldown_steps: int) -> tuple[float, ...]:
    """The temperatures to choose from. Raises ValueError on none, one that is not positive, or a negative cooldown."""
    if not grid:
        raise ValueError("temperature: grid is empty; name the temperatures to choose from")
    if cooldown_steps < 0:
        raise ValueError(f"temperature: cooldown_steps = {cooldown_steps}: must not be negative")
    return tuple(positive("grid", temperature) for temperature in grid)


def _ramp(start: float, end: float, steps: int) -> tuple[float, float, int]:
    if steps < 1:
        raise ValueError(f"temperature: steps = {steps}: must be at least 1")
    return positive("start", start), positive("end", end), steps


def positive(field: str, temperature: float) -> float:
    """The temperature as a float. Raises ValueError unless it is positive and finite."""
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(
            f"temperature: {field} = {temperature}: must be positive and finite (greedy is for evaluation)"
        )
    return float(temperature)


def check_kind(state: Mapping[str, Any], *, kind: str) -> None:
    """Raises ValueError when the state is of another kind of schedule."""
    if state["kind"] != kind:
        raise ValueError(
            f"the saved state is of a {state['kind']!r} temperature, this one is {kind!r}; configure it so"
        )
