"""New labels on the way: made when they are due, survived by a resume, and never of problems outside the pool."""

import json

import pytest

from grpo.config import RunConfig
from tests.runs import assert_same_outcome, grpo, read_jsonl, small_run_config, small_run_file

EVERY_3 = {"curriculum.reprofile_every_steps": 3, "evaluation.every_steps": 0}


def events_of(run, kind):
    return [event for event in read_jsonl(run / "events.jsonl") if event["event"] == kind]


def test_the_pool_is_labelled_again_before_the_steps_that_are_due_and_billed_to_them(tmp_path):
    assert grpo("recipe", small_run_file(tmp_path, **EVERY_3)) == 0
    run = tmp_path / "runs" / "small"
    events = events_of(run, "reprofile")
    assert [event["step"] for event in events] == [3, 6]
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("tokens/reprofile")] == [4, 7]
    assert [row["tokens/reprofile"] for row in rows if row.get("tokens/reprofile")] == [e["tokens"] for e in events]
    assert all((run / "profile" / f"step_{event['step']:06d}" / "tiers.parquet").is_file() for event in events)
    assert all(sum(event["tiers"].values()) > 0 for event in events)


def test_a_run_that_is_asked_for_more_steps_decides_as_one_that_was_asked_for_them_at_once(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert grpo("recipe", small_run_file(whole, **EVERY_3)) == 0
    config = small_run_file(parts, **EVERY_3)
    assert grpo("recipe", config, "train.steps=6") == 0
    assert grpo("recipe", config, "--resume") == 0
    of_whole, of_parts = (
        [event for event in read_jsonl(folder / "runs" / "small" / "events.jsonl") if event["event"] == "reprofile"]
        for folder in (whole, parts)
    )
    assert of_whole == of_parts
    steps = [
        [row.get("tokens/reprofile") for row in read_jsonl(folder / "runs" / "small" / "metrics.jsonl")]
        for folder in (whole, parts)
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_a_resume_in_the_middle_of_a_period_ends_as_a_run_that_never_stopped(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert grpo("recipe", small_run_file(whole, **EVERY_3)) == 0
    config = small_run_file(killed, **EVERY_3)
    from grpo.trainer import Trainer

    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: 1 / 0 if self._progress.step == 5 else step(self))
    with pytest.raises(ZeroDivisionError):
        grpo("recipe", config)
    monkeypatch.setattr(Trainer, "step", step)
    assert grpo("recipe", config, "--resume") == 0
    assert_same_outcome(killed / "runs" / "small", whole / "runs" / "small")


def test_labels_for_another_temperature_are_refused_by_both_numbers(tmp_path, capsys):
    stages = [
        {"name": "moderate", "tiers": ["moderate"], "steps": 4, "temperature": 1.2},
        {"name": "extreme", "tiers": ["moderate", "extreme"]},
    ]
    config = small_run_file(tmp_path, **{"curriculum.stages": stages})
    assert grpo("sft", config) == 0
    assert grpo("profile", config) == 0
    capsys.readouterr()
    assert grpo("train", config, "curriculum.stages.0.temperature=0.9") != 0
    said = capsys.readouterr().err
    assert "its tiers are for the temperature 1.2, and practice begins at 0.9" in said


def test_new_labels_are_refused_where_there_are_none_to_replace(tmp_path):
    with pytest.raises(ValueError, match="reprofile_every_steps = 3 is not read where kind is online"):
        small_run_config(tmp_path, **{"curriculum": {"kind": "online", "reprofile_every_steps": 3}})
    assert isinstance(small_run_config(tmp_path, **EVERY_3), RunConfig)
    assert json.dumps(small_run_config(tmp_path, **EVERY_3).model_dump(mode="json"))
