"""Fields of the section evaluation before a run: names of policies that will be there, and what a folder rests on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import ConfigError, RunFolderError
from tests.runs import grpo, small_run_file
from tests.test_final_evaluation import SHORT

LOOKS: dict[str, Any] = SHORT | {"evaluation.every_steps": 2}  # 4 steps, a checkpoint every 2, 3 of them kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two finished trainings: one without an evaluation on the way, and one with two."""
    folder = tmp_path_factory.mktemp("trained")
    for name, fields in (("plain", SHORT), ("looks", LOOKS)):
        assert grpo("train", small_run_file(folder / name, **fields)) == 0
    return folder


def copied(trained: Path, folder: Path, name: str, fields: dict[str, Any]) -> Path:
    shutil.copytree(trained / name / "runs", folder / "runs")
    return small_run_file(folder, **fields)


# --- names of policies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ({}, "strt", "there is no strt/manifest.json"),
        ({}, "runs/other", "there is no runs/other/manifest.json"),
        ({}, "step_2", "that step is called step_000002"),
        ({}, "step_000003", "steps are saved every 2, by checkpoint.every_steps, and the last one"),
        ({}, "step_000000", "training has the steps 1 to 8, by train.steps"),
        ({}, "step_000010", "training has the steps 1 to 8, by train.steps"),
        # 2, 4, 6, 8 are saved, and 3 of them kept.
        ({}, "step_000002", "leaves checkpoint.keep_last = 3: raise that to 4)"),
        ({"train.steps": 7}, "step_000002", "leaves checkpoint.keep_last = 3: raise that to 4)"),
        ({"train.steps": 7, "train.max_tokens": 10_000}, "step_000007", "steps are saved every 2"),
    ],
)
@pytest.mark.parametrize("command", ["check", "recipe"])
def test_a_policy_that_training_will_not_leave_is_refused_before_anything(
    tmp_path, capsys, command, changes, name, expected
):
    file = small_run_file(tmp_path, **{"evaluation.checkpoints": ["start", name]}, **changes)
    assert grpo(command, file) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert f"evaluation.checkpoints: {name!r} will be no checkpoint" in said
    assert expected in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "step_000004"),
        ({}, "step_000008"),
        ({"train.steps": 7}, "step_000007"),
        ({}, "best"),
        ({"checkpoint.keep_last": 4}, "step_000002"),
        ({"train.max_tokens": 10_000}, "step_000002"),  # which may be where it ends
        ({"evaluation.patience": 1}, "step_000002"),
    ],
)
def test_a_policy_that_training_may_leave_is_taken(tmp_path, changes, name):
    file = small_run_file(tmp_path, **{"evaluation.checkpoints": ["start", name]}, **changes)
    assert grpo("check", file) == 0


def test_what_a_finished_training_has_left_can_be_named_and_what_fresh_deletes_cannot(trained, tmp_path, capsys):
    config = copied(trained, tmp_path, "plain", SHORT | {"evaluation.checkpoints": ["start", "step_000003"]})
    steps = tmp_path / "runs" / "small" / "checkpoints"
    shutil.copytree(steps / "step_000002", steps / "step_000003")  # as a run that was stopped there leaves it
    assert grpo("check", config) == 0
    assert grpo("recipe", config, "--fresh") == ConfigError.exit_code
    assert "'step_000003' will be no checkpoint (steps are saved every 2" in capsys.readouterr().err
    assert (steps / "step_000003").is_dir()
    assert grpo("recipe", config, "--resume") == 0
    assert sorted(path.stem for path in (tmp_path / "runs" / "small" / "evals").iterdir()) == ["start", "step_000003"]


def test_the_folder_of_a_checkpoint_can_be_named_before_the_run_is(trained, tmp_path):
    other = trained / "plain" / "runs" / "small" / "checkpoints" / "step_000002"
    file = small_run_file(tmp_path, **SHORT, **{"evaluation.checkpoints": ["start", str(other)]})
    assert grpo("check", file) == 0


# --- what a folder rests on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override", ["evaluation.temperature=0.5", "evaluation.k=[1, 2]", "evaluation.validation_rollouts=3"]
)
def test_a_final_evaluation_can_be_asked_otherwise_where_training_never_looked(trained, tmp_path, override):
    config = copied(trained, tmp_path, "plain", SHORT)
    assert grpo("eval", config) == 0
    assert grpo("eval", config, "--fresh", override) == 0
    report = json.loads((tmp_path / "runs" / "small" / "evals" / "last.json").read_text())
    assert report["temperature"] == (0.5 if "temperature" in override else 1.0)


def test_what_k_an_evaluation_is_told_for_decides_nothing_of_a_training_that_looked(trained, tmp_path):
    config = copied(trained, tmp_path, "looks", LOOKS)
    assert grpo("eval", config, "evaluation.k=[2]") == 0


@pytest.mark.parametrize("override", ["evaluation.temperature=0.5", "evaluation.validation_rollouts=3"])
def test_what_training_looked_by_stays_and_no_remedy_deletes_the_training(trained, tmp_path, capsys, override):
    config = copied(trained, tmp_path, "looks", LOOKS)
    assert grpo("eval", config, "--fresh", override) == RunFolderError.exit_code
    said = capsys.readouterr().err
    assert f"differs in {override.partition('=')[0]}" in said
    assert "train looked at the validation problems by them: restore them, or set another run.name" in said
    assert "--fresh" not in said
    # The remedy: another run, of this one's checkpoints.
    steps = tmp_path / "runs" / "small" / "checkpoints"
    named = f"evaluation.checkpoints=['{steps / 'step_000002'}', '{steps / 'step_000004'}']"
    assert grpo("eval", config, override, "run.name=other", named) == 0


def test_scores_at_another_temperature_are_for_a_fresh_evaluation_and_not_for_a_fresh_recipe(trained, tmp_path, capsys):
    config = copied(trained, tmp_path, "plain", SHORT)
    assert grpo("eval", config) == 0
    assert grpo("eval", config, "--resume", "evaluation.temperature=0.5") == RunFolderError.exit_code
    said = capsys.readouterr().err
    assert "or `grpo eval --fresh` scores every policy again with these" in said
    assert "recipe" not in said
