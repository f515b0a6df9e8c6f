"""Between the loop and its temperature schedule: what the schedule sees of a step, and the evaluations it asks for.

The schedule (`curricula.temperature`) decides and knows no model; this file draws the rollouts that it decides on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from curricula import TemperatureSchedule
from grpo.config import TemperatureConfig
from grpo.evaluation import Evaluation
from grpo.types import Group


class Thermostat:
    """The temperature of each step, and who moves it. The same on every rank."""

    def __init__(
        self,
        schedule: TemperatureSchedule,
        config: TemperatureConfig,
        *,
        evaluate: Callable[[float, int], Evaluation],
        on_decision: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """`evaluate` draws rollouts of the validation problems at a temperature: so many of each.

        `on_decision` is given the step and the decision with all its numbers, as JSON can hold it."""
        self._schedule, self._config = schedule, config
        self._evaluate, self._on_decision = evaluate, on_decision

    def value(self, step: int) -> float:
        """Temperature of this step's rollouts."""
        return self._schedule.value(step)

    def observe(self, step: int, groups: Sequence[Group]) -> None:
        """The step's groups, before any is dropped."""
        values = [value for group in groups for value in group.values]
        if values:  # none where no verdict of the step had a value
            self._schedule.observe(step, sum(values) / len(values))

    def begin_stage(self) -> None:
        """Other problems are practised from the next step on."""
        self._schedule.begin_stage()

    def decide(self, step: int) -> dict[str, float]:
        """Let the schedule have what it wants evaluated; returns the metrics of that, none where it wants nothing."""
        grid = self._schedule.wants_evaluation(step)
        if not grid:
            return {}
        started = time.perf_counter()
        evaluated = {t: self._evaluate(t, self._config.rollouts_per_problem) for t in grid}
        # A problem whose verdicts were all lost at one temperature cannot be compared at any.
        common = set.intersection(*(set(of_t.scores) for of_t in evaluated.values()))
        scores = {t: {p: score for p, score in of_t.scores.items() if p in common} for t, of_t in evaluated.items()}
        decision = self._schedule.decide(step, scores)
        self._on_decision(step, {"decision": asdict(decision)})
        return {
            "time/temperature": time.perf_counter() - started,
            "tokens/temperature": float(sum(of_t.num_tokens for of_t in evaluated.values())),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._schedule.load_state_dict(state)

    def metrics(self) -> dict[str, float]:
        """`temperature/...` numbers."""
        return self._schedule.metrics()
