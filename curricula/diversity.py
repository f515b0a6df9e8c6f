"""How unlike each other the rollouts of a problem are, and POLARIS's rule: a temperature that keeps the first stage's.

Knows token ids and no text; decides on problems that are not practised."""

from collections.abc import Mapping, Sequence
from typing import Any

from curricula.comparison import Decision, Measured, Reading
from curricula.counterfactual import ReweightedGroup
from curricula.paired import paired
from curricula.temperature import check_kind, checked_grid, positive

CONFIDENCE = 0.95


def distinct_fraction(completions: Sequence[Sequence[int]], *, n: int = 4) -> float:
    """Share of distinct ones among all n-grams of tokens of a group's completions, 0 < share <= 1.

    1 where no n-gram comes twice, near 1/G where G completions are the same. A completion shorter than n tokens counts
    as one gram. It falls with the number of completions and with their length, so compare groups of the same size.
    Source: Li et al. (2016), distinct-n, there with n = 1 and 2. Raises ValueError where no completion has a token."""
    grams: list[tuple[int, ...]] = []
    for completion in completions:
        if len(completion) >= n:
            grams.extend(zip(*(completion[start:] for start in range(n)), strict=False))
        elif completion:
            grams.append(tuple(completion))
    if not grams:
        raise ValueError(f"diversity needs a token; got {len(completions)} completions without one")
    return len(set(grams)) / len(grams)


class Diversity:
    """Raises the temperature when the rollouts of a problem have become more alike than they were at the start.

    Source: POLARIS (An et al. 2025, hkunlp.github.io/blog/2025/Polaris), whose stages sample at temperatures that keep
    the diversity of the first one (1.4, 1.45, 1.5), chosen by hand. Ours: what is measured and where, and the test.

    start                  the temperature before any decision
    grid                   temperatures to choose from
    rollouts_per_problem   of each validation problem and temperature
    cooldown_steps         steps after a look before the next one; a stage that begins has one at once

    The first look, after the first step, measures what is to be kept: `distinct_fraction` on the validation problems,
    one number a problem. Every later look draws the same problems with as many rollouts at the temperature in use. When
    the mean over problems of the paired difference is below 0 with 95 % confidence (so a look at an unchanged diversity
    raises the temperature in at most 5 % of cases; the looks of a run together do so more often), hotter ones are drawn
    upwards, and the first whose mean is not below is taken, or the hottest of the grid. It never cools, but for a stage
    that sets its own temperature.

    The diversity of practice is a metric only: groups of other problems, another size or another length cannot be
    compared. Completions that grow longer look less diverse, on the validation problems too.
    Raises ValueError unless every temperature is positive, the grid is not empty, cooldown_steps >= 0 and
    rollouts_per_problem >= 2."""

    kind = "diversity"

    def __init__(
        self, start: float, *, grid: Sequence[float], rollouts_per_problem: int = 16, cooldown_steps: int = 20
    ) -> None:
        if rollouts_per_problem < 2:
            raise ValueError(
                f"diversity temperature: rollouts_per_problem = {rollouts_per_problem}: one rollout is like no other; "
                "take 2 or more"
            )
        self._current = positive("start", start)
        self._grid = checked_grid(grid, cooldown_steps=cooldown_steps)
        self._num_rollouts = rollouts_per_problem
        self._cooldown_steps = cooldown_steps
        self._target: dict[str, float] = {}  # diversity of each validation problem at the start
        self._target_temperature = self._current
        self._is_due = True
        self._last_step = 0
        self._first_steps: list[float] = []  # diversity of practice in the first steps
        self._latest: float | None = None
        self._num_decisions = 0
        self._num_changes = 0

    def value(self, step: int) -> float:
        return self._current

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
        if diversity is None:
            return
        self._latest = diversity
        if len(self._first_steps) < max(1, self._cooldown_steps):
            self._first_steps.append(diversity)

    def begin_stage(self, temperature: float | None = None) -> None:
        """A stage without a temperature goes on with the one in use; a look is due in either case."""
        if temperature is not None:
            self._current = positive("the stage's", temperature)
        self._is_due = True

    def wants_decision(self, step: int) -> bool:
        due = self._is_due or step >= self._last_step + max(1, self._cooldown_steps)
        return due and (not self._target or bool(self._hotter()))

    def wants_rollouts(self, measured: Mapping[float, Measured]) -> dict[float, int]:
        if self._current not in measured:
            return {self._current: self._num_rollouts}
        readings = {reading.temperature: reading for reading in self._readings(measured)}
        if not self._target or not readings or not readings[self._current].failed:
            return {}
        for temperature in self._hotter():
            if temperature not in readings:
                return {temperature: self._num_rollouts}
            if readings[temperature].admissible:
                break
        return {}

    def decide(self, step: int, measured: Mapping[float, Measured]) -> Decision:
        """Raises ValueError where the temperature in use was not measured."""
        if self._current not in measured:
            raise ValueError(f"the temperature in use, {self._current}, was not measured; got {sorted(measured)}")
        if not self._target:
            self._target = dict(measured[self._current].diversity)
            self._target_temperature = self._current
            reason = f"kept {self._current}: its diversity on {len(self._target)} problems is what is to be kept"
            readings, chosen = self._readings(measured), self._current
        else:
            readings = self._readings(measured)
            chosen, reason = self._choose(readings)
        decision = Decision(
            step=step,
            current=self._current,
            chosen=chosen,
            reference=self._target_temperature,
            readings=readings,
            reason=reason,
            compared="diversity",
        )
        self._current, self._last_step, self._is_due = chosen, step, False
        self._num_decisions += 1
        self._num_changes += decision.changed
        return decision

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "current": self._current,
            "target": dict(self._target),
            "target_temperature": self._target_temperature,
            "is_due": self._is_due,
            "last_step": self._last_step,
            "first_steps": list(self._first_steps),
            "latest": self._latest,
            "num_decisions": self._num_decisions,
            "num_changes": self._num_changes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_kind(state, kind=self.kind)
        self._current = state["current"]
        self._target = dict(state["target"])
        self._target_temperature = state["target_temperature"]
        self._is_due, self._last_step = state["is_due"], state["last_step"]
        self._first_steps, self._latest = list(state["first_steps"]), state["latest"]
        self._num_decisions, self._num_changes = state["num_decisions"], state["num_changes"]

    def metrics(self) -> dict[str, float]:
        numbers = {
            "temperature/decisions": float(self._num_decisions),
            "temperature/changes": float(self._num_changes),
        }
        if self._latest is not None:
            numbers["temperature/diversity"] = self._latest
            numbers["temperature/diversity_at_start"] = sum(self._first_steps) / len(self._first_steps)
        return numbers

    def _hotter(self) -> list[float]:
        return sorted({temperature for temperature in self._grid if temperature > self._current})

    def _readings(self, measured: Mapping[float, Measured]) -> tuple[Reading, ...]:
        """Each temperature's diversity against what is to be kept; () where fewer than two problems have both."""
        known = [set(of_t.diversity) & set(of_t.scores) for of_t in measured.values()]
        problem_ids = sorted(set(self._target).intersection(*known))
        if len(problem_ids) < 2:
            return ()
        readings = []
        for temperature, of_t in sorted(measured.items()):
            against = paired(of_t.diversity, self._target, problem_ids, confidence=CONFIDENCE)
            readings.append(
                Reading(
                    temperature=temperature,
                    reference=self._target_temperature,
                    source="validation",
                    num_problems=len(problem_ids),
                    total_rollouts=sum(of_t.rollouts(name) for name in problem_ids),
                    mean=sum(of_t.scores[name] for name in problem_ids) / len(problem_ids),
                    difference=against.mean,
                    standard_error=against.standard_error,
                    difference_lower=against.lower,
                    difference_upper=against.upper,
                    drop_allowed=0.0,
                    standard_error_allowed=against.standard_error,
                    sure=True,
                    admissible=against.mean >= 0.0,
                    failed=against.upper < 0.0,
                    diversity=sum(of_t.diversity[name] for name in problem_ids) / len(problem_ids),
                )
            )
        return tuple(readings)

    def _choose(self, readings: Sequence[Reading]) -> tuple[float, str]:
        if not readings:
            return self._current, f"kept {self._current}: fewer than 2 problems could be compared"
        of = {reading.temperature: reading for reading in readings}
        if not of[self._current].failed:
            return self._current, f"kept {self._current}: its diversity is not surely below that of the start"
        hotter = [temperature for temperature in self._hotter() if temperature in of]
        if not hotter:
            return self._current, f"kept {self._current}: no hotter temperature was measured"
        for temperature in hotter:
            if of[temperature].admissible:
                return temperature, f"raised to {temperature}, the lowest temperature with the diversity of the start"
        return hotter[
            -1
        ], f"raised to {hotter[-1]}, the hottest: no temperature of the grid has the diversity of the start"
