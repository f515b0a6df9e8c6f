"""From the config to curriculum and temperature, kind by kind: as built, and as a run of two layers follows them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from curricula import Constant, Curriculum, Measured, Outcome, Tier, TwoStages, Uniform, Weighted
from grpo.config import RunConfig, TemperatureConfig
from grpo.errors import DataError
from grpo.practice import build_curriculum, build_temperature, needs_profile
from tests.runs import opened_run, small_run_config, trainer_of
from tests.test_trainer import COIN, LOOP, events_of, judged_by, metrics_of, rollouts_of, trained

IDS = [f"p{index:02d}" for index in range(12)]
TIERS = {problem_id: (Tier.moderate, Tier.extreme)[index % 2] for index, problem_id in enumerate(IDS)}
PLATEAU = [
    {"name": "until flat", "tiers": ["moderate"], "until_plateau": True},
    {"name": "after", "tiers": ["extreme"], "steps": 2},
]


# --- the curriculum ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected", "profiled"),
    [("uniform", Uniform, False), ("weighted", Weighted, False), ("two_stages", TwoStages, True)],
)
def test_each_kind_is_built_from_the_runs_seed_and_only_stages_ask_for_a_profile(tmp_path, kind, expected, profiled):
    def first_problems(seed: int, *, ids: list[str] = IDS) -> list[str]:
        stages = {} if profiled else {"curriculum.stages": None}
        config = small_run_config(tmp_path, **{"curriculum.kind": kind, "run.seed": seed, **stages})
        assert needs_profile(config) is profiled
        curriculum = build_curriculum(config, ids, TIERS if profiled else {})
        assert isinstance(curriculum, expected)
        return curriculum.next(5)

    assert first_problems(3) == first_problems(3, ids=IDS[::-1])
    assert len({tuple(first_problems(seed)) for seed in range(5)}) > 1


def test_stages_are_built_with_their_names_tiers_and_ends(tmp_path):
    config = small_run_config(tmp_path, **{"curriculum.stages": PLATEAU, "curriculum.plateau_window_steps": 7})
    curriculum = build_curriculum(config, IDS, TIERS)
    assert isinstance(curriculum, TwoStages)
    first, second = curriculum.stages
    assert (first.name, first.tiers, first.steps) == ("until flat", (Tier.moderate,), None)
    assert first.plateau is not None
    assert first.plateau.window_steps == 7
    assert (second.name, second.tiers, second.steps, second.plateau) == ("after", (Tier.extreme,), 2, None)
    assert {TIERS[problem_id] for problem_id in curriculum.next(6)} == {Tier.moderate}


def test_a_stage_without_a_problem_is_an_error_that_names_the_section_and_the_counts(tmp_path):
    config = small_run_config(tmp_path, **{"curriculum.stages": PLATEAU})
    with pytest.raises(DataError, match=r"curriculum.stages: stage 'after'.*moderate 12, extreme 0"):
        build_curriculum(config, IDS, dict.fromkeys(IDS, Tier.moderate))


# --- the temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "constant"}, [1.2, 1.2, 1.2, 1.2, 1.2]),
        ({"kind": "linear", "final": 0.8}, [1.2, 1.1, 1.0, 0.9, 0.8]),
        ({"kind": "cosine", "final": 0.8}, [1.2, 1.0 + 0.2 * math.sqrt(0.5), 1.0, 1.0 - 0.2 * math.sqrt(0.5), 0.8]),
        ({"kind": "steps", "milestones": {3: 1.4, 1: 1.3}}, [1.2, 1.3, 1.3, 1.4, 1.4]),
    ],
)
def test_each_planned_temperature_runs_from_value_at_the_first_to_final_at_the_last_of_five_steps(fields, expected):
    schedule = build_temperature(TemperatureConfig(value=1.2, **fields), num_steps=5)
    assert [schedule.value(step) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_run_of_one_step_has_a_temperature(kind):
    assert build_temperature(TemperatureConfig(kind=kind, value=1.2, final=0.8), num_steps=1).value(0) == 1.2


def adaptive(**fields: Any) -> TemperatureConfig:
    """Asks after 4 steps, every 3, for temperatures around 1."""
    defaults = {"kind": "adaptive", "grid": [0.9, 1.0, 1.1], "window_steps": 4, "cooldown_steps": 3}
    return TemperatureConfig.model_validate(defaults | fields)


def decided(config: TemperatureConfig, means: Mapping[float, float], *, spread: float = 0.0) -> float:
    """The temperature after one decision on 400 problems with these mean scores, alternately `spread` off."""
    schedule = build_temperature(config, num_steps=50)
    for step in range(4):
        schedule.observe(step, 0.5)
    measured = {
        t: Measured(
            {f"p{index}": mean + spread * (-1) ** (index + number) for index in range(400)}, num_rollouts=16_000
        )
        for number, (t, mean) in enumerate(means.items())
    }
    schedule.decide(3, measured)
    return schedule.value(4)


def test_the_adaptive_temperature_asks_after_its_window_and_again_after_its_cooldown():
    schedule = build_temperature(adaptive(), num_steps=50)
    asked = []
    for step in range(9):
        schedule.observe(step, 0.5)
        if schedule.wants_decision(step):
            wanted = schedule.wants_rollouts({})
            assert wanted == {1.0: 16, 1.1: 16}
            asked.append(step)
            measured = {t: Measured({f"p{index}": 1.5 - t for index in range(20)}, num_rollouts=16) for t in wanted}
            schedule.decide(step, measured)
    assert asked == [3, 6]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1.0),  # 2 % lower
        ({"guard": 0.03}, 1.1),
        ({"guard": 0.011, "guard_kind": "absolute"}, 1.1),
        ({"reference": "best"}, 0.9),
        ({"guard": 0.03, "max_standard_error": 1e-9}, 1.0),  # nothing is as sure as that
    ],
)
def test_guard_reference_and_certainty_of_the_adaptive_temperature_are_those_of_the_config(fields, expected):
    means = {0.9: 0.6, 1.0: 0.5, 1.1: 0.49} if "reference" in fields else {1.0: 0.5, 1.1: 0.49}
    assert decided(adaptive(**fields), means, spread=1e-4) == expected


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        ({"kind": "constant", "value": 1.3}, [1.3] * 5),
        ({"kind": "linear", "value": 1.0, "final": 1.4}, [1.0, 1.1, 1.2, 1.3, 1.4]),
        (
            {"kind": "cosine", "value": 1.4, "final": 1.0},
            [1.4, 1.2 + 0.2 * math.sqrt(0.5), 1.2, 1.2 - 0.2 * math.sqrt(0.5), 1.0],
        ),
        ({"kind": "steps", "value": 1.0, "milestones": {2: 1.3, 4: 0.9}}, [1.0, 1.0, 1.3, 1.3, 0.9]),
        # A reward that never moves has stabilised after 4 steps, and no temperature costs it anything.
        (adaptive(window_steps=4, rollouts_per_problem=1).model_dump(mode="json"), [1.0] * 4 + [1.1]),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_rollouts_and_metrics_of_each_step_have_the_temperature_of_their_kind(tmp_path, temperature, expected):
    run = trained(tmp_path, **judged_by(tmp_path, "1.0"), **{"temperature": temperature, "train.steps": 5})
    for step, wanted in enumerate(expected, start=1):
        assert metrics_of(run)[step - 1]["sampling/temperature"] == pytest.approx(wanted)
        (of_rollouts,) = {row["temperature"] for row in rollouts_of(run, step=step)}
        assert of_rollouts == metrics_of(run)[step - 1]["sampling/temperature"]
    assert len(events_of(run, "temperature")) == (temperature["kind"] == "adaptive")


def test_a_weighted_run_practises_what_its_own_outcomes_weigh_and_rests_what_is_always_right(tmp_path):
    judge = f"1.0 if problem['num_operations'] == 1 else {COIN}"
    curriculum = {"kind": "weighted", "max_refill_waves": 0}
    changes = judged_by(tmp_path, judge) | {"train.steps": 30, "train.group_size": 16, "optim.learning_rate": 1e-5}
    run = trained(tmp_path, **changes, curriculum=curriculum)
    config = small_run_config(tmp_path, **(LOOP | changes | {"curriculum": curriculum, "run.name": "alike"}))
    with opened_run(config) as opened:
        problems = {problem.id: problem for problem in opened.train}
    alike = build_curriculum(config, list(problems), {})
    easy = []
    for step in range(1, 31):
        rows = rollouts_of(run, step=step)
        practised = list(dict.fromkeys(row["problem_id"] for row in rows))
        assert practised == alike.next(4)
        assert metrics_of(run)[step - 1]["curriculum/repeated_problems"] == 0
        right = {p: sum(row["reward"] == 1 for row in rows if row["problem_id"] == p) for p in practised}
        alike.observe([Outcome(p, 16, right[p]) for p in practised])
        alike.end_step()
        easy += [problems[p].meta["num_operations"] == 1 for p in practised]
    share = sum(problem.meta["num_operations"] == 1 for problem in problems.values()) / len(problems)
    assert sum(easy[-60:]) / 60 < share / 2
    assert events_of(run, "stage") == []


def staged_run(config: RunConfig) -> tuple[Path, Curriculum]:
    """Train with tiers that are given instead of profiled: moderate and extreme in turn."""
    with opened_run(config) as run:
        ids = [problem.id for problem in run.train]
        loop = trainer_of(run, config, tiers={p: (Tier.moderate, Tier.extreme)[n % 2] for n, p in enumerate(ids)})
        loop.run()
        return run.folder.path, loop._parts.curriculum


def test_a_stage_until_plateau_switches_says_why_and_the_last_stages_end_ends_the_run(tmp_path):
    """A pass rate that stays 0 is flat once its window of 4 steps is full; the second stage has 2 of the 20 steps."""
    changes = {
        "curriculum": {"kind": "two_stages", "stages": PLATEAU, "plateau_window_steps": 4, "max_refill_waves": 0},
        "train.steps": 20,
    }
    config = small_run_config(tmp_path, **(LOOP | judged_by(tmp_path, "0.0") | changes))
    run, curriculum = staged_run(config)
    assert [row["curriculum/stage"] for row in metrics_of(run)] == [0] * 4 + [1] * 2
    (stage,) = events_of(run, "stage")
    assert (stage["step"], stage["stage"], stage["name"]) == (4, 1, "after")
    assert stage["reason"].startswith("pass rate flat at 0.0000")
    assert [{row["tier"] for row in rollouts_of(run, step=step)} for step in (4, 5)] == [{"moderate"}, {"extreme"}]
    (end,) = events_of(run, "end")
    assert end["step"] == 6
    assert end["reason"] == (
        "the curriculum has ended after step 6 of 20: its last stage, after, ended with " + curriculum.switch_reason
    )
    assert curriculum.switch_reason == "2 steps"


def test_a_run_of_all_its_steps_ends_with_that_reason(tmp_path):
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **{"train.steps": 2})
    assert [(event["step"], event["reason"]) for event in events_of(run, "end")] == [(2, "all 2 steps are done")]


def test_rewards_of_one_stage_are_no_plateau_of_the_next(tmp_path):
    """Stage one ends after 3 steps: the window of 4 is full after step 7, not after step 4."""
    stages = [{"name": "one", "tiers": ["moderate"], "steps": 3}, {"name": "two", "tiers": ["extreme"]}]
    changes = {
        "curriculum": {"kind": "two_stages", "stages": stages, "max_refill_waves": 0},
        "temperature": adaptive(rollouts_per_problem=1).model_dump(mode="json"),
        "train.steps": 9,
    }
    config = small_run_config(tmp_path, **(LOOP | judged_by(tmp_path, "0.5") | changes))
    run, _ = staged_run(config)
    assert [event["step"] for event in events_of(run, "temperature")] == [7]


def test_the_default_temperature_is_constant():
    assert isinstance(build_temperature(TemperatureConfig(), num_steps=3), Constant)
