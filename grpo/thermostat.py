"""Between the loop and its temperature schedule: what the schedule sees of a step, and the rollouts it asks for.

The schedule (`curricula.temperature`) decides and knows no model; this file draws the rollouts that it decides on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from curricula import Measured, Outcome, ReweightedGroup, TemperatureSchedule, distinct_fraction, reweight
from grpo.config import TemperatureConfig
from grpo.rollout import Attempts, Rollouts, Sampled, check_lost, lost_verdicts
from grpo.types import Group, Problem, Rollout


class Thermostat:
    """The temperature of each step, and who moves it. The same on every rank."""

    def __init__(
        self,
        schedule: TemperatureSchedule,
        config: TemperatureConfig,
        *,
        rollouts: Rollouts,
        problems: Sequence[Problem],
        max_error_fraction: float,
        on_decision: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """Decisions rest on `rollouts` of `problems`, which are never practised.

        `on_decision` is given the step and the decision with all its numbers, as JSON can hold it."""
        self._schedule, self._config = schedule, config
        self._rollouts, self._problems = rollouts, problems
        self._max_error_fraction = max_error_fraction
        self._on_decision = on_decision

    def value(self, step: int) -> float:
        """Temperature of this step's rollouts."""
        return self._schedule.value(step)

    def grid(self) -> tuple[float, ...]:
        """Temperatures at which the step's rollouts are to carry their log-probs; () for none."""
        return self._schedule.reweighted_at()

    def observe(self, step: int, groups: Sequence[Group]) -> None:
        """The step's groups, before any is dropped.

        Rollouts of another step's policy (a profile's) are left out: they say nothing of what this one earns, and those
        that are taken over were chosen by their outcome."""
        own = [group for group in groups if all(rollout.policy_step == step for rollout in group.rollouts)]
        values = [value for group in own for value in group.values]
        if not values:  # none where no verdict of the step had a value
            return
        grid, drawn_at = self.grid(), self.value(step)
        reweighted = [_reweighted(group, grid=grid, drawn_at=drawn_at) for group in own] if grid else []
        self._schedule.observe(
            step,
            sum(values) / len(values),
            groups=[group for group in reweighted if group is not None],
            diversity=fmean(_diversity(group) for group in own) if self._config.kind == "diversity" else None,
        )

    def begin_stage(self, temperature: float | None = None) -> None:
        """Other problems are practised from the next step on, at the stage's own temperature where it has one."""
        self._schedule.begin_stage(temperature)

    def decide(self, step: int) -> dict[str, float]:
        """Let the schedule have the rollouts it wants; returns the metrics of that, none where it decides nothing.

        All of it happens between two steps: a run that is killed meanwhile goes on from its checkpoint and draws the
        same rollouts again, since noise is counted. Raises RewardError where more verdicts are lost than allowed."""
        if not self._schedule.wants_decision(step):
            return {}
        started = time.perf_counter()
        drawn = _Drawn()
        while wanted := self._schedule.wants_rollouts(drawn.measured()):
            for temperature, num_rollouts in sorted(wanted.items()):
                first_attempt = drawn.num_rollouts(temperature)  # the attempts go on: fresh noise, fresh rollouts
                sampled = self._draw(temperature, num_rollouts=num_rollouts, first_attempt=first_attempt)
                drawn.add(sampled, temperature=temperature, num_rollouts=num_rollouts)
        decision = self._schedule.decide(step, drawn.measured())
        self._on_decision(step, {"decision": asdict(decision)})
        return {
            "time/temperature": time.perf_counter() - started,
            "tokens/temperature": float(drawn.num_tokens),
        }

    def _draw(self, temperature: float, *, num_rollouts: int, first_attempt: int) -> Sampled:
        """Rollouts with the noise of evaluations: an attempt has the same at every temperature, which pairs them."""
        attempts = [Attempts(problem, first_attempt, num_rollouts) for problem in self._problems]
        sampled = self._rollouts.run(attempts, temperature=temperature, phase="evaluation", step=0)
        check_lost(
            lost_verdicts(sampled.groups),
            num_verdicts=num_rollouts * len(attempts),
            max_error_fraction=self._max_error_fraction,
            place=f"the validation problems at temperature {temperature}",
        )
        return sampled

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON can hold it."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._schedule.load_state_dict(state)

    def metrics(self) -> dict[str, float]:
        """`temperature/...` numbers."""
        return self._schedule.metrics()


class _Drawn:
    """The rollouts of one decision: the draws at each temperature pooled, outcome by outcome."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._num_rollouts: dict[float, int] = {}
        self._outcomes: dict[float, dict[str, Outcome]] = {}
        self._diversity: dict[float, dict[str, float]] = {}

    def num_rollouts(self, temperature: float) -> int:
        """Rollouts of each problem so far."""
        return self._num_rollouts.get(temperature, 0)

    def add(self, sampled: Sampled, *, temperature: float, num_rollouts: int) -> None:
        """One draw of `num_rollouts` rollouts more of each problem. Those without a verdict are left out."""
        self.num_tokens += sampled.num_tokens
        self._num_rollouts[temperature] = self.num_rollouts(temperature) + num_rollouts
        judged = [group for group in sampled.groups if group.outcome.num_rollouts]
        pooled = self._outcomes.setdefault(temperature, {})
        for group in judged:
            problem_id = group.problem.id
            drawn, before = group.outcome, pooled.get(problem_id, Outcome(problem_id, 0, 0))
            pooled[problem_id] = Outcome(
                problem_id,
                num_rollouts=drawn.num_rollouts + before.num_rollouts,
                num_correct=drawn.num_correct + before.num_correct,
            )
        # Of the first draw alone: it is as large at every temperature, and diversity falls with size.
        if temperature not in self._diversity:
            self._diversity[temperature] = {group.problem.id: _diversity(group) for group in judged}

    def measured(self) -> dict[float, Measured]:
        """What was drawn at each temperature, on the problems that have a verdict at all of them."""
        common = set.intersection(*(set(of_t) for of_t in self._outcomes.values())) if self._outcomes else set()
        return {
            temperature: Measured.of(
                (outcome for problem_id, outcome in of_t.items() if problem_id in common),
                num_rollouts=self._num_rollouts[temperature],
                diversity={p: share for p, share in self._diversity[temperature].items() if p in common},
            )
            for temperature, of_t in self._outcomes.items()
        }


def _completion(rollout: Rollout) -> list[int]:
    return [token for token, action in zip(rollout.token_ids, rollout.action_mask, strict=True) if action]


def _diversity(group: Group) -> float:
    return distinct_fraction([_completion(rollout) for rollout in group.rollouts])


def _reweighted(group: Group, *, grid: tuple[float, ...], drawn_at: float) -> ReweightedGroup | None:
    """The group at every temperature of the grid, by its rollouts that have a verdict; None where there are not two."""
    judged = [
        (rollout.grid_logprobs, correct)
        for rollout, correct in zip(group.rollouts, group.correct, strict=True)
        if correct is not None and rollout.grid_logprobs is not None
    ]
    if len(judged) < 2:
        return None
    correct = [of_rollout for _, of_rollout in judged]
    return reweight(group.problem.id, correct, [logprobs for logprobs, _ in judged], grid=grid, drawn_at=drawn_at)
