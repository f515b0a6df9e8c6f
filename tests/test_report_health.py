"""The first screen's alarms: what sets one off, what does not, and what the run is said to be doing."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.tracking.health import RECENT_STEPS, alarms, duration, headline, state
from grpo.tracking.recorded_run import read_run
from tests.recorded import evaluation, write_jsonl


def recorded(folder: Path, rows: list[dict[str, Any]], *, events: tuple[dict[str, Any], ...] = (), **phases: bool):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("run: {name: watched}\ntrain: {steps: 100}\n")
    write_jsonl(folder / "metrics.jsonl", [{"step": step, **row} for step, row in enumerate(rows, start=1)])
    write_jsonl(folder / "events.jsonl", list(events))
    (folder / "phases.json").write_text(json.dumps(phases))
    return read_run(folder)


def metrics_of(run, **options: Any) -> dict[str, str]:
    return {alarm["metric"]: alarm["level"] for alarm in alarms(run, **options)}


HEALTHY = {
    "completion/truncated_fraction": 0.02,
    "group/zero_std_fraction": 0.4,
    "group/solved_all": 0.2,
    "group/solved_none": 0.2,
    "policy/sampler_kl": 1e-9,
    "policy/sampler_logprob_gap_max": 1e-5,
    "policy/entropy": 0.5,
    "reward/errors": 0,
    "optim/skipped_updates": 0,
    "time/step": 2.0,
}


def test_a_healthy_run_sets_off_no_alarm(tmp_path):
    assert alarms(recorded(tmp_path, [HEALTHY] * 50)) == []


@pytest.mark.parametrize(
    ("metric", "value", "level"),
    [
        ("completion/truncated_fraction", 0.2, "warn"),
        ("completion/truncated_fraction", 0.4, "bad"),
        ("group/zero_std_fraction", 0.6, "warn"),
        ("group/zero_std_fraction", 0.95, "bad"),
        ("group/solved_all", 0.6, "warn"),
        ("group/solved_none", 0.6, "warn"),
        ("policy/sampler_kl", 0.02, "bad"),
        ("policy/sampler_logprob_gap_max", 0.5, "bad"),
        ("policy/entropy", 0.04, "warn"),
        ("reward/errors", 1, "warn"),
        ("optim/skipped_updates", 1, "bad"),
    ],
)
def test_an_alarm_is_about_the_latest_steps_and_names_its_metric(tmp_path, metric, value, level):
    ill = HEALTHY | {metric: value}
    assert metrics_of(recorded(tmp_path / "ill", [HEALTHY] * 30 + [ill] * RECENT_STEPS)) == {metric: level}
    assert metrics_of(recorded(tmp_path / "over", [ill] * 5 + [HEALTHY] * RECENT_STEPS)) == {}


def test_faults_stand_before_warnings_and_say_how_many(tmp_path):
    ill = HEALTHY | {"reward/errors": 2, "optim/skipped_updates": 1}
    found = alarms(recorded(tmp_path, [HEALTHY] * 30 + [ill] * 3))
    assert [alarm["level"] for alarm in found] == ["bad", "warn"]
    assert found[1]["text"].startswith("6 verdicts were lost")


def test_a_number_that_is_not_finite_is_a_fault(tmp_path):
    found = alarms(recorded(tmp_path, [HEALTHY, HEALTHY | {"optim/grad_norm": None}]))
    assert found[0]["text"] == "not finite in the last 20 steps: optim/grad_norm"


def test_guards_and_idle_steps_count_while_they_are_recent(tmp_path):
    events = [{"step": 45, "event": "guard", "above": "policy/ratio_max = 9"}, {"step": 46, "event": "no_update"}]
    levels = [alarm["level"] for alarm in alarms(recorded(tmp_path / "now", [HEALTHY] * 50, events=tuple(events)))]
    assert levels == ["bad", "warn"]
    (drift,) = alarms(
        recorded(tmp_path / "drift", [HEALTHY] * 50, events=({"step": 50, "event": "drift", "above": "x"},))
    )
    assert drift["text"] == "a trait drifted past its bound in 1 of the last 20 steps"
    assert alarms(recorded(tmp_path / "past", [HEALTHY] * 90, events=tuple(events))) == []


@pytest.mark.parametrize(("gained", "expected"), [(-0.1, 1), (-0.02, 0), (0.3, 0)])
def test_a_policy_that_is_surely_worse_than_at_the_start_is_a_fault(tmp_path, gained, expected):
    recorded(tmp_path, [HEALTHY] * 3)
    (tmp_path / "evals").mkdir()
    # Half the width of the interval is 0.04.
    (tmp_path / "evals" / "last.json").write_text(json.dumps(evaluation("last", 3, 0.3, gained=gained)))
    assert len(alarms(read_run(tmp_path))) == expected


def test_a_run_that_trains_and_writes_nothing_for_long_is_silent(tmp_path):
    training = recorded(tmp_path / "training", [HEALTHY] * 3, train=False)
    assert alarms(training, silent_seconds=59.0) == []
    (alarm,) = alarms(training, silent_seconds=61.0)
    assert alarm["text"] == "nothing was written for 61 s, and a step takes 2 s"
    assert alarms(recorded(tmp_path / "done", [HEALTHY] * 3, train=True), silent_seconds=1e6) == []
    slow = recorded(tmp_path / "slow", [HEALTHY | {"time/step": 300.0}] * 3, train=False)
    assert alarms(slow, silent_seconds=2900.0) == []  # within ten of its steps


@pytest.mark.parametrize(
    ("phases", "word", "is_over"),
    [
        ({"sft": False}, "cold start", False),
        ({"sft": True, "profile": False}, "profiling the problems", False),
        ({"sft": True, "profile": True}, "between phases", False),
        ({"profile": True, "train": False}, "training", False),
        ({"train": True, "eval": False}, "evaluating", False),
        ({"train": True, "eval": True}, "finished", True),
        ({}, "no phase recorded", False),
    ],
)
def test_the_state_is_the_phase_under_way(tmp_path, phases, word, is_over):
    found = state(recorded(tmp_path, [HEALTHY] * 10, **phases))
    assert (found["word"], found["is_over"], found["step"], found["planned"]) == (word, is_over, 10, 100)
    assert found["left"] == ("3 min" if word == "training" else None)  # 90 steps of 2 s


def test_the_headline_has_the_result_as_its_key_figure(tmp_path):
    recorded(tmp_path, [HEALTHY] * 3)
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "last.json").write_text(json.dumps(evaluation("last", 3, 0.593, gained=0.322)))
    cells = headline(read_run(tmp_path))
    (key,) = [cell for cell in cells if cell["key"]]
    assert (key["label"], key["value"]) == ("pass@1 last, heldout", "0.593")
    assert key["under"] == "0.553 to 0.633 · +0.322 over the start (+0.282 to +0.362)"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.52, "0.5 s"), (9.0, "9 s"), (61, "61 s"), (150, "2 min"), (7190, "2 h 00 min"), (9000, "2 h 30 min")],
)
def test_durations_are_written_for_people(seconds, expected):
    assert duration(seconds) == expected
