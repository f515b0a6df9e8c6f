"""How hot the policy samples: planned schedules, and GLM-4.5's rule that raises the temperature when reward is flat.

A schedule sees mean rewards and per-problem scores, never a model. The sampler takes `value(step)`; the loss divides
the logits by the temperature that each rollout carries."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from curricula.comparison import Decision, Guard, compare_temperatures
from curricula.plateau import Plateau, PlateauRule, detect_plateau


class TemperatureSchedule(Protocol):
    """One step of the loop: `value`, then `observe`, `begin_stage` where the curriculum's stage switches; when
    `wants_evaluation` names temperatures, `decide`.

    The same before and after a trip of `state_dict` through JSON into `load_state_dict` of a schedule built alike."""

    def value(self, step: int) -> float:
        """Temperature of this step's rollouts."""

    def observe(self, step: int, reward_mean: float) -> None:
        """Mean reward of the step's rollouts, before any group is dropped."""

    def begin_stage(self) -> None:
        """Other problems are practised from the next step on: rewards so far say nothing about theirs."""

    def wants_evaluation(self, step: int) -> tuple[float, ...]:
        """Temperatures to evaluate on held-out problems now, the one in use included; () for none."""

    def decide(self, step: int, scores: Mapping[float, Mapping[str, float]]) -> Decision:
        """Take in what `wants_evaluation` asked for: at each temperature the mean score of each problem."""

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

    def observe(self, step: int, reward_mean: float) -> None:
        pass

    def begin_stage(self) -> None:
        pass

    def wants_evaluation(self, step: int) -> tuple[float, ...]:
        return ()

    def decide(self, step: int, scores: Mapping[float, Mapping[str, float]]) -> Decision:
        """Raises ValueError: a planned schedule asks for no evaluation."""
        raise ValueError(f"a {self.kind} temperature decides nothing: it never asks for an evaluation")

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _check_kind(state, kind=self.kind)

    def metrics(self) -> dict[str, float]:
        return {}


class Constant(Planned):
    """One temperature throughout. Raises ValueError unless it is positive."""

    kind = "constant"

    def __init__(self, temperature: float) -> None:
        self._temperature = _positive("temperature", temperature)

    def value(self, step: int) -> float:
        return self._temperature


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
        self._start = _positive("start", start)
        self._changes = {step: _positive(f"changes[{step}]", changes[step]) for step in sorted(changes)}

    def value(self, step: int) -> float:
        reached = [temperature for change, temperature in self._changes.items() if change <= step]
        return reached[-1] if reached else self._start


class Adaptive:
    """Raises the temperature when the reward has stabilised, as far as held-out scores allow.

    Source: GLM-4.5 (arXiv 2508.06471): when the average rollout reward has stabilised, evaluate a held-out set over a
    range of temperatures and take "the maximum value that does not cause a performance drop of more than 1% from the
    current optimum". Silent there, and ours: the slope test (`PlateauRule`), the paired comparison (`Guard`), the
    reading of "current optimum" as the temperature in use (`Guard.reference`), and the cooldown.

    start            the temperature before any decision
    grid             temperatures to choose from; the one in use is always evaluated with them. Against the one in use
                     the temperature cannot fall, so only hotter ones are evaluated, and none where there is none
    cooldown_steps   steps without another evaluation after a decision

    A new temperature and a new stage shift the reward, so the window starts empty after either. A falling reward has
    not stabilised: the slope test is two-sided (`Plateau.steady`).
    Raises ValueError unless every temperature is positive, the grid is not empty and cooldown_steps >= 0."""

    kind = "adaptive"

    def __init__(
        self,
        start: float,
        *,
        grid: Sequence[float],
        plateau: PlateauRule | None = None,
        guard: Guard | None = None,
        cooldown_steps: int = 20,
    ) -> None:
        if not grid:
            raise ValueError("adaptive temperature: grid is empty; name the temperatures to choose from")
        if cooldown_steps < 0:
            raise ValueError(f"adaptive temperature: cooldown_steps = {cooldown_steps}: must not be negative")
        self._current = _positive("start", start)
        self._grid = tuple(_positive("grid", temperature) for temperature in grid)
        self._plateau_rule = plateau or PlateauRule()
        self._guard = guard or Guard()
        self._cooldown_steps = cooldown_steps
        self._rewards: list[float] = []
        self._last_decision_step: int | None = None
        self._num_decisions = 0
        self._num_changes = 0

    @property
    def plateau(self) -> Plateau | None:
        """The slope test as it stands; None while the window is not full."""
        return detect_plateau(self._rewards, rule=self._plateau_rule)

    def value(self, step: int) -> float:
        return self._current

    def observe(self, step: int, reward_mean: float) -> None:
        """Raises ValueError on a mean that is not finite: a step without a reward is not observed."""
        if not math.isfinite(reward_mean):
            raise ValueError(f"reward_mean = {reward_mean} at step {step}: leave out steps in which nothing was scored")
        self._rewards.append(float(reward_mean))
        del self._rewards[: -self._plateau_rule.window_steps]

    def begin_stage(self) -> None:
        self._rewards.clear()

    def wants_evaluation(self, step: int) -> tuple[float, ...]:
        candidates = self._candidates()
        cooling = self._last_decision_step is not None and step < self._last_decision_step + self._cooldown_steps
        plateau = self.plateau
        if not candidates or cooling or plateau is None or not plateau.steady:
            return ()
        return tuple(sorted({*candidates, self._current}))

    def decide(self, step: int, scores: Mapping[float, Mapping[str, float]]) -> Decision:
        """Choose by `compare_temperatures`, whose errors it raises; the choice holds from the next `value` on."""
        decision = compare_temperatures(scores, step=step, current=self._current, guard=self._guard)
        self._last_decision_step = step
        self._num_decisions += 1
        if decision.changed:
            self._current = decision.chosen
            self._num_changes += 1
            self._rewards.clear()
        return decision

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "current": self._current,
            "rewards": list(self._rewards),
            "last_decision_step": self._last_decision_step,
            "num_decisions": self._num_decisions,
            "num_changes": self._num_changes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _check_kind(state, kind=self.kind)
        self._current = state["current"]
        self._rewards = list(state["rewards"])
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
        return numbers

    def _candidates(self) -> set[float]:
        """Temperatures other than the one in use that a decision could choose."""
        return {t for t in self._grid if t > self._current or (t < self._current and self._guard.reference == "best")}


def _ramp(start: float, end: float, steps: int) -> tuple[float, float, int]:
    if steps < 1:
        raise ValueError(f"temperature: steps = {steps}: must be at least 1")
    return _positive("start", start), _positive("end", end), steps


def _positive(field: str, temperature: float) -> float:
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(
            f"temperature: {field} = {temperature}: must be positive and finite (greedy is for evaluation)"
        )
    return float(temperature)


def _check_kind(state: Mapping[str, Any], *, kind: str) -> None:
    if state["kind"] != kind:
        raise ValueError(
            f"the saved state is of a {state['kind']!r} temperature, this one is {kind!r}; configure it so"
        )
