"""The thermostat: what of a step its schedule sees, and the rollouts that a decision draws."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from curricula import Decision, Measured
from grpo.config import RunConfig, TemperatureConfig
from grpo.errors import RewardError
from grpo.rollout import Attempts, Sampled
from grpo.thermostat import Thermostat
from grpo.types import Group, Message, Problem, Rollout, StopReason
from rewards import Reward, RewardSpec, Status
from tests.runs import OF_THE_CLOCK, small_run_config, small_run_fields, small_run_file
from tests.runs import grpo as command
from tests.test_practice import adaptive, staged_run
from tests.test_trainer import COIN, LOOP, events_of, judged_by, metrics_of, rollouts_of, trained

SPEC = RewardSpec("exact")


def problem(name: str) -> Problem:
    return Problem(id=name, messages=(Message("user", name),), answer="", reward=SPEC)


def group_of(name: str, rewards: Sequence[float | None], *, step: int = 0, first: int = 0, **fields: Any) -> Group:
    """Completions of five tokens, the last the rollout's own number; None is a verdict that was lost."""
    rollouts = tuple(
        Rollout(
            problem_id=name,
            attempt=first + index,
            token_ids=(9, 1, 2, 3, 4, 10 + index),
            action_mask=(False, *[True] * 5),
            logprobs=(0.0,) * 6,
            kept=None,
            stop_reason=StopReason.END_TOKEN,
            temperature=1.0,
            policy_step=step,
            **fields,
        )
        for index in range(len(rewards))
    )
    verdicts = tuple(Reward(r, Status.SCORED) if r is not None else Reward(None, Status.ERROR) for r in rewards)
    return Group(
        problem=problem(name),
        rollouts=rollouts,
        completions=("",) * len(rewards),
        rewards=verdicts,
        success_threshold=1.0,
    )


@dataclass
class Recorded:
    """A schedule that notes what it is told and asks for what a test hands it."""

    wanted: list[dict[float, int]]
    grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.seen: list[Any] = []
        self.measured: Mapping[float, Measured] = {}

    def value(self, step: int) -> float:
        return 1.0

    def reweighted_at(self) -> tuple[float, ...]:
        return self.grid

    def observe(self, step: int, reward_mean: float, **more: Any) -> None:
        self.seen.append((step, reward_mean, more))

    def begin_stage(self, temperature: float | None = None) -> None:
        self.seen.append(temperature)

    def wants_decision(self, step: int) -> bool:
        return bool(self.wanted)

    def wants_rollouts(self, measured: Mapping[float, Measured]) -> dict[float, int]:
        return self.wanted.pop(0) if self.wanted else {}

    def decide(self, step: int, measured: Mapping[float, Measured]) -> Decision:
        self.measured = measured
        return Decision(step=step, current=1.0, chosen=1.0, reference=1.0, readings=(), reason="")


class Sampler:
    """In the place of `Rollouts`: rewards by problem, temperature and attempt."""

    def __init__(self, reward: Any) -> None:
        self.reward = reward
        self.asked: list[tuple[float, int, int, str, int]] = []

    def run(self, attempts: Sequence[Attempts], *, temperature: float, phase: str, step: int) -> Sampled:
        groups = []
        for a in attempts:
            self.asked.append((temperature, a.first_attempt, a.num_rollouts, phase, step))
            numbers = range(a.first_attempt, a.first_attempt + a.num_rollouts)
            rewards = [self.reward(a.problem.id, temperature, number) for number in numbers]
            groups.append(group_of(a.problem.id, rewards, first=a.first_attempt))
        return Sampled(tuple(groups), 0.0, 0.0, num_tokens=sum(group.num_tokens for group in groups))


def thermostat(schedule: Any, sampler: Any, **fields: Any) -> tuple[Thermostat, list[Any]]:
    decisions: list[Any] = []
    config = TemperatureConfig.model_validate({"kind": "adaptive"} | fields)
    made = Thermostat(
        schedule,
        config,
        rollouts=sampler,
        problems=[problem("a"), problem("b")],
        max_error_fraction=0.3,
        on_decision=lambda step, decision: decisions.append((step, decision)),
    )
    return made, decisions


def test_draws_of_a_decision_go_on_where_the_last_ended_and_are_pooled():
    schedule = Recorded(wanted=[{1.0: 4, 1.2: 4}, {1.0: 4}])
    sampler = Sampler(lambda name, temperature, number: float(number % 4 == 0 and name == "a"))
    found, decisions = thermostat(schedule, sampler)
    metrics = found.decide(7)
    assert sampler.asked[::2] == [
        (1.0, 0, 4, "evaluation", 0),
        (1.2, 0, 4, "evaluation", 0),
        (1.0, 4, 4, "evaluation", 0),
    ]
    assert {t: m.num_rollouts for t, m in schedule.measured.items()} == {1.0: 8, 1.2: 4}
    assert schedule.measured[1.0].scores == {"a": 2 / 8, "b": 0.0}
    assert schedule.measured[1.0].signal == {"a": pytest.approx(2 * 6 / (8 * 7)), "b": 0.0}
    # Of the first draw, at both temperatures: 1234 four times, 234x each its own.
    assert schedule.measured[1.0].diversity == schedule.measured[1.2].diversity == {"a": 5 / 8, "b": 5 / 8}
    assert metrics["tokens/temperature"] == 5 * 4 * 2 * 3
    assert [step for step, _ in decisions] == [7]
    json.dumps(decisions, allow_nan=False)


def test_a_problem_without_a_verdict_at_one_temperature_is_compared_at_none():
    schedule = Recorded(wanted=[{1.0: 2, 1.2: 2}])
    sampler = Sampler(lambda name, temperature, number: None if (name, temperature) == ("a", 1.2) else 1.0)
    found, _ = thermostat(schedule, sampler)
    found._max_error_fraction = 1.0
    found.decide(1)
    assert [set(m.scores) for m in schedule.measured.values()] == [{"b"}, {"b"}]
    assert [set(m.diversity) for m in schedule.measured.values()] == [{"b"}, {"b"}]


def test_too_many_lost_verdicts_end_the_run():
    found, _ = thermostat(Recorded(wanted=[{1.0: 2}]), Sampler(lambda name, *_: None if name == "a" else 1.0))
    with pytest.raises(RewardError, match="the validation problems at temperature"):
        found.decide(1)


def test_without_a_decision_nothing_is_drawn():
    found, decisions = thermostat(Recorded(wanted=[]), Sampler(None))
    assert (found.decide(1), decisions) == ({}, [])


def test_a_schedule_sees_the_rollouts_of_the_steps_own_policy_alone():
    schedule = Recorded(wanted=[])
    found, _ = thermostat(schedule, Sampler(None))
    found.observe(5, [group_of("a", [1.0, 0.0], step=5), group_of("b", [1.0, 1.0], step=0)])
    found.observe(6, [group_of("b", [1.0, 1.0], step=0)])
    found.observe(7, [group_of("a", [None, None], step=7)])
    assert [(step, mean) for step, mean, _ in schedule.seen] == [(5, 0.5)]
    assert schedule.seen[0][2] == {"groups": [], "diversity": None}


def test_groups_are_reweighted_by_their_judged_rollouts_and_diversity_is_measured_where_it_is_asked():
    schedule = Recorded(wanted=[], grid=(1.0, 1.2))
    found, _ = thermostat(schedule, Sampler(None), kind="diversity")
    with_grid = {"grid_logprobs": (-1.0, -1.5)}
    found.observe(0, [group_of("a", [1.0, 0.0, None], **with_grid), group_of("b", [1.0, None], **with_grid)])
    ((_, _, more),) = schedule.seen
    (group,) = more["groups"]
    assert (group.problem_id, group.num_rollouts, group.scores) == ("a", 2, (0.5, 0.5))
    assert more["diversity"] == pytest.approx((4 / 6 + 3 / 4) / 2)


# --- in a run ---------------------------------------------------------------------------------------------------------

COUNTERFACTUAL = {"counterfactual": True, "min_effective_fraction": 0.3, "rollouts_per_problem": 2}


def test_a_counterfactual_run_draws_the_same_rollouts_and_decides_from_its_window(tmp_path):
    """A reward that is always 1 costs nothing anywhere, and a guard of 20 % needs few rollouts to say so."""
    changes = judged_by(tmp_path, "1.0") | {"train.steps": 6}
    fields = adaptive(window_steps=4, rollouts_per_problem=2, guard=0.2, max_standard_error=0.1).model_dump(mode="json")
    plain = trained(tmp_path / "plain", **changes, temperature=fields)
    found = trained(tmp_path / "counterfactual", **changes, temperature=fields | COUNTERFACTUAL)
    for step in (1, 2, 3, 4):
        assert rollouts_of(found, step=step) == rollouts_of(plain, step=step)
    (event,) = events_of(found, "temperature")
    readings = event["decision"]["readings"]
    assert {reading["source"] for reading in readings} == {"window"}
    assert event["decision"]["chosen"] == 1.1
    assert event["decision"]["plateau"]["steady"] is True
    assert all(0 < reading["effective_fraction"] <= 1 for reading in readings)
    num_rollouts = sum(len(rollouts_of(found, step=step)) for step in (1, 2, 3, 4))
    assert [reading["total_rollouts"] for reading in readings] == [num_rollouts] * len(readings)
    assert metrics_of(found)[4]["tokens/temperature"] == 0
    assert metrics_of(plain)[4]["tokens/temperature"] > 0


def test_a_run_with_diversity_looks_after_its_first_step_and_every_cooldown(tmp_path):
    fields = {"kind": "diversity", "grid": [1.0, 1.2], "cooldown_steps": 3, "rollouts_per_problem": 2}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **{"temperature": fields, "train.steps": 6})
    assert [event["step"] for event in events_of(run, "temperature")] == [1, 4]
    assert all(0 < row["temperature/diversity"] <= 1 for row in metrics_of(run))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["counterfactual", "diversity"])
def test_a_run_that_is_resumed_decides_as_one_that_never_stopped(tmp_path, kind):
    """Cut after a step in which neither decides: the last step of a run has nothing left to decide."""
    fields = {
        "counterfactual": adaptive(window_steps=4, window_rise=9.0, **COUNTERFACTUAL).model_dump(mode="json"),
        "diversity": {"kind": "diversity", "grid": [1.0, 1.2], "cooldown_steps": 2, "rollouts_per_problem": 2},
    }[kind]
    changes = judged_by(tmp_path, COIN) | {"temperature": fields, "sft": None, "curriculum": {"kind": "uniform"}}
    runs = {}
    for name, parts in (("whole", ([],)), ("parts", (["train.steps=6"], ["--resume"]))):
        config = small_run_file(tmp_path / name, **changes)
        for arguments in parts:
            assert command("train", config, *arguments) == 0
        run = tmp_path / name / "runs" / "small"
        rows = [{k: v for k, v in row.items() if not k.startswith(OF_THE_CLOCK)} for row in metrics_of(run)]
        runs[name] = (rows, events_of(run, "temperature"))
    assert runs["parts"] == runs["whole"]
    assert runs["whole"][1]


def test_counterfactual_is_refused_where_tokens_are_left_out(tmp_path):
    fields = small_run_fields(tmp_path, temperature={"kind": "adaptive", "counterfactual": True})
    RunConfig.model_validate(fields)
    fields["sampling"]["top_p"] = 0.9
    with pytest.raises(ValueError, match="set counterfactual: false"):
        RunConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"kind": "constant", "value": 0.9}, [1.3] * 3 + [0.9] * 2),
        ({"kind": "adaptive", "value": 0.9, "grid": [1.5]}, [1.3] * 5),
        ({"kind": "diversity", "value": 0.9, "grid": [1.5], "rollouts_per_problem": 2}, [1.3] * 5),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_stages_temperature_holds_from_its_first_step_on(tmp_path, kind, expected):
    stages = [
        {"name": "one", "tiers": ["moderate"], "steps": 3, "temperature": 1.3},
        {"name": "two", "tiers": ["extreme"]},
    ]
    changes = {
        "curriculum": {"kind": "two_stages", "stages": stages, "max_refill_waves": 0},
        "temperature": kind,
        "train.steps": 5,
    }
    run, _ = staged_run(small_run_config(tmp_path, **(LOOP | judged_by(tmp_path, COIN) | changes)))
    assert [row["sampling/temperature"] for row in metrics_of(run)] == expected
