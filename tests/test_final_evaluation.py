"""`grpo eval`: any policy of the run or of another, any set, each pair scored once, and compared with the first."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo import final_evaluation
from grpo.evaluation import ProblemScore, compare
from grpo.final_evaluation import file_name
from tests.runs import grpo, read_jsonl, small_run_file

LOOP: dict[str, Any] = {"sft": None, "curriculum": {"kind": "uniform", "max_refill_waves": 1}}
SHORT: dict[str, Any] = LOOP | {"train.steps": 4, "evaluation.every_steps": 0}
MACHINE = {
    "source": {"path": "task:list_machine", "options": {"num_rows": 6, "operations": {"2": 1}}},
    "reward": {"name": "list_machine"},
}
TWO = "evaluation.checkpoints=[start, step_000002]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert grpo("train", small_run_file(folder, **SHORT)) == 0
    return folder


@pytest.fixture
def config(trained, tmp_path) -> Path:
    """A trained run without an evaluation, and its config."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return small_run_file(tmp_path, **SHORT)


def evals(config: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((config.parent / "runs" / "small" / "evals").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is scored from here on."""
    places: list[str] = []
    evaluate = final_evaluation.evaluate

    def watched(*arguments: Any, place: str, **options: Any) -> Any:
        places.append(place.removeprefix("evaluation of "))
        return evaluate(*arguments, place=place, **options)

    monkeypatch.setattr(final_evaluation, "evaluate", watched)
    return places


def test_a_policy_is_compared_with_the_first_on_the_same_problems(config):
    assert grpo("eval", config) == 0
    found = evals(config)
    assert list(found) == ["last", "start"]
    assert "against" not in found["start"]["sets"]["heldout"]
    against = found["last"]["sets"]["heldout"]["against"]
    own, other = (
        {name: ProblemScore(**score) for name, score in found[which]["sets"]["heldout"]["problems"].items()}
        for which in ("last", "start")
    )
    assert against == {"name": "start", **compare(own, other, num_rollouts=4, k=[1, 4])}
    assert against["wins"] + against["losses"] + against["ties"] == against["num_problems"] == 12


def test_other_checkpoints_and_sets_are_added_and_what_is_there_is_not_scored_again(config, monkeypatch, capsys):
    assert grpo("eval", config) == 0
    before = evals(config)
    scored = counted(monkeypatch)
    assert grpo("eval", config, "--resume", TWO) == 0
    assert scored == ["step_000002 on heldout"]
    found = evals(config)
    assert {name: found[name] for name in before} == before
    assert (found["step_000002"]["step"], found["step_000002"]["sets"]["heldout"]["against"]["name"]) == (2, "start")
    assert "start on heldout: scored before" in capsys.readouterr().out
    assert grpo("eval", config, "--resume", TWO, f"evaluation.sets={json.dumps({'machine': MACHINE})}") == 0
    assert scored[1:] == ["start on machine", "step_000002 on machine"]
    found = evals(config)
    assert list(found["start"]["sets"]) == ["heldout", "machine"]
    assert found["start"]["sets"]["heldout"] == before["start"]["sets"]["heldout"]
    assert found["step_000002"]["sets"]["machine"]["num_problems"] == 6
    events = [e for e in read_jsonl(config.parent / "runs/small/events.jsonl") if e["event"] == "evaluation"]
    assert [event["name"] for event in events] == ["start", "step_000002", "last"]
    assert "eval/machine/pass@1" in events[0]


def test_a_finished_evaluation_is_refused_without_a_flag_and_done_again_with_fresh(config, monkeypatch, capsys):
    assert grpo("eval", config) == 0
    before = evals(config)
    assert grpo("eval", config, TWO) == 4
    assert "already holds the phase eval; add --resume to go on with it" in capsys.readouterr().err
    scored = counted(monkeypatch)
    assert grpo("eval", config, "--fresh") == 0
    assert scored == ["start on heldout", "last on heldout"]
    assert evals(config) == before


def test_scores_at_another_temperature_are_not_mixed_with_those_that_are_there(config, capsys):
    assert grpo("eval", config) == 0
    assert grpo("eval", config, "--resume", "evaluation.temperature=0.5") == 4
    assert "differs in evaluation.temperature" in capsys.readouterr().err


def test_a_table_that_is_split_otherwise_is_made_again_of_the_same_scores(config, monkeypatch):
    assert grpo("eval", config) == 0
    before = evals(config)
    assert grpo("eval", config, "--resume", "evaluation.by_column=num_operations") == 0
    found = evals(config)
    for name in before:
        heldout = found[name]["sets"]["heldout"]
        assert heldout["problems"] == before[name]["sets"]["heldout"]["problems"]
        assert sum(part["num_problems"] for part in heldout["by_num_operations"].values()) == 12
    by = found["last"]["sets"]["heldout"]["against"]["by_num_operations"]
    assert set(by) == set(found["last"]["sets"]["heldout"]["by_num_operations"])


def test_an_evaluation_that_is_stopped_goes_on_and_ends_as_one_that_was_not(config, monkeypatch):
    evaluate = final_evaluation.evaluate

    def killed(*arguments: Any, place: str, **options: Any) -> Any:
        if "last" in place:
            raise KeyboardInterrupt
        return evaluate(*arguments, place=place, **options)

    monkeypatch.setattr(final_evaluation, "evaluate", killed)
    assert grpo("eval", config) == 130
    assert list(evals(config)) == ["start"]
    monkeypatch.setattr(final_evaluation, "evaluate", evaluate)
    scored = counted(monkeypatch)
    assert grpo("eval", config, "--resume") == 0
    assert scored == ["last on heldout"]
    resumed = evals(config)
    assert grpo("eval", config, "--fresh") == 0
    assert evals(config) == resumed


def test_a_last_policy_that_has_trained_on_is_scored_again(config, monkeypatch):
    assert grpo("eval", config) == 0
    assert grpo("train", config, "--resume", "train.steps=5") == 0
    scored = counted(monkeypatch)
    assert grpo("eval", config, "--resume", "train.steps=5") == 0
    assert scored == ["last on heldout"]
    assert evals(config)["last"]["step"] == 5


def test_a_finished_recipe_that_is_asked_for_another_checkpoint_evaluates_it(config, monkeypatch, capsys):
    assert grpo("recipe", config, "--resume") == 0
    scored = counted(monkeypatch)
    assert grpo("recipe", config, "--resume") == 0
    assert "eval: finished before" in capsys.readouterr().out
    assert scored == []
    assert grpo("recipe", config, "--resume", TWO) == 0
    assert scored == ["step_000002 on heldout"]


def test_the_folder_of_a_checkpoint_of_another_run_is_a_policy_with_a_safe_name(config, trained):
    other = trained / "runs" / "small" / "checkpoints" / "step_000004"
    assert grpo("eval", config, f"evaluation.checkpoints=[start, last, '{other}']") == 0
    found = evals(config)
    (name,) = set(found) - {"start", "last"}
    assert name == file_name(str(other))
    assert name.startswith("checkpoints-step_000004-") or name.startswith("small-step_000004-")
    assert found[name]["step"] == 4
    assert found[name]["sets"] == found["last"]["sets"]


def test_names_of_files_are_safe_and_no_two_paths_are_one(tmp_path):
    names = [file_name(f"{tmp_path}/{run}/checkpoints/step_000004") for run in ("a b", "a/b", ".", "ä")]
    assert len(set(names)) == 4
    assert all(name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name.isascii() for name in names)
    assert [file_name(name) for name in ("start", "last", "best", "step_000100")] == [
        *("start", "last", "best", "step_000100")
    ]


@pytest.mark.parametrize("name", ["step_000003", "stpe_000002", "runs/small"])
def test_a_name_that_is_no_checkpoint_is_refused_before_anything_is_scored(config, name, monkeypatch, capsys):
    scored = counted(monkeypatch)
    assert grpo("eval", config, f"evaluation.checkpoints=[start, {name}]") == 10
    said = capsys.readouterr().err
    assert f"evaluation.checkpoints: {name!r} is no checkpoint" in said
    assert "a step that is kept (step_000002, step_000004; checkpoint.keep_last)" in said
    assert scored == []


def test_a_checkpoint_of_another_model_is_refused_by_its_path(config, tmp_path, capsys):
    wide = small_run_file(tmp_path / "wide", **(SHORT | {"model.architecture.hidden_size": 64, "train.steps": 1}))
    assert grpo("train", wide) == 0
    other = tmp_path / "wide" / "runs" / "small" / "checkpoints" / "step_000001"
    assert grpo("eval", config, f"evaluation.checkpoints=['{other}']") == 10
    said = capsys.readouterr().err
    assert f"evaluation.checkpoints, {other}: the checkpoint is of another model" in said


def test_tiers_are_made_of_draws_that_no_score_is_made_of_and_of_the_policy_before_training(config, monkeypatch):
    profiled: list[dict[str, Any]] = []
    profile_policy = final_evaluation.profile_policy

    def watched(*arguments: Any, **options: Any) -> Any:
        result = profile_policy(*arguments, **options)
        profiled.append({**options, "tiers": result.tiers})
        return result

    monkeypatch.setattr(final_evaluation, "profile_policy", watched)
    assert grpo("eval", config, "evaluation.by_tier=true") == 0
    (made,) = profiled
    assert made["phase"] == "evaluation profile"
    found = evals(config)
    for name in ("start", "last"):
        by_tier = found[name]["sets"]["heldout"]["by_tier"]
        assert {tier: table["num_problems"] for tier, table in by_tier.items()} == {
            str(tier): list(made["tiers"].values()).count(tier) for tier in set(made["tiers"].values())
        }
    assert set(found["last"]["sets"]["heldout"]["against"]["by_tier"]) == set(by_tier)


def test_the_table_in_the_terminal_has_a_column_a_policy_and_the_differences(config, capsys):
    assert grpo("eval", config, "evaluation.checkpoints=[start, last]") == 0
    said = capsys.readouterr().out
    assert "heldout: 12 problems × 4 rollouts" in said
    assert "pass@1 − start" in said
    assert "problems better" in said
