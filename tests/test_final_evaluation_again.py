"""What a finished evaluation is asked for again: what has changed is scored, and every difference has one reference."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo.evaluation import ProblemScore, compare
from tests.runs import grpo, small_run_file
from tests.test_final_evaluation import MACHINE, SHORT, counted, evals

ROWS = [{"prompt": f">r?>{n:05d}", "answer": f"r{n:05d}", "kind": n % 2} for n in range(4)]
JUDGE = "def judge(completion, problem):\n    return float(ord(completion[:1] or '!') % {} == 0)\n"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """A finished recipe with a set of its own rows and its own judge."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_inputs(folder)
    assert grpo("recipe", small_run_file(folder, **SHORT, **sets(folder))) == 0
    return folder


@pytest.fixture
def config(evaluated, tmp_path) -> Path:
    shutil.copytree(evaluated / "runs", tmp_path / "runs")
    shutil.copytree(evaluated / "inputs", tmp_path / "inputs")
    return small_run_file(tmp_path, **SHORT, **sets(tmp_path))


def write_inputs(folder: Path) -> None:
    (folder / "inputs").mkdir()
    (folder / "inputs" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "inputs" / "judge.py").write_text(JUDGE.format(8))


def sets(folder: Path) -> dict[str, Any]:
    own = {
        "source": {"path": str(folder / "inputs" / "rows.jsonl")},
        "reward": {"file": str(folder / "inputs" / "judge.py"), "function": "judge"},
    }
    return {"evaluation.sets": {"own": own}}


def scored_again(config: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[str]:
    scored = counted(monkeypatch)
    assert grpo("recipe", config, "--resume", *overrides) == 0
    return [place for place in scored if place.startswith("start")]  # and the last policy alike


# --- what is scored again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tracking.rollout_files=3", []),
        ("evaluation.by_column=num_operations", ["start on heldout"]),
        ("evaluation.by_tier=true", ["start on heldout"]),
        ("evaluation.sets.own.reward.success_threshold=0.5", ["start on own"]),
        ("evaluation.sets.own.source.max_problems=3", ["start on own"]),
        ("evaluation.sets.own.source.prompt_suffix=x", ["start on own"]),
    ],
)
def test_a_finished_recipe_scores_again_what_has_changed_and_nothing_else(config, monkeypatch, override, expected):
    assert scored_again(config, monkeypatch, override) == expected
    assert scored_again(config, monkeypatch, override) == []


def test_an_edited_judge_of_a_set_is_asked_again(config, monkeypatch):
    (config.parent / "inputs" / "judge.py").write_text(JUDGE.format(3))
    assert scored_again(config, monkeypatch) == ["start on own"]


@pytest.mark.parametrize("column", ["answer", "kind"])
def test_an_edited_row_of_a_set_is_scored_again(config, monkeypatch, column):
    rows = [ROWS[0] | {column: 5}, *ROWS[1:]]
    (config.parent / "inputs" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scored_again(config, monkeypatch) == ["start on own"]


def test_tiers_by_other_rules_split_the_held_out_problems_anew(config, monkeypatch):
    assert scored_again(config, monkeypatch, "evaluation.by_tier=true") == ["start on heldout"]
    rules = ("evaluation.by_tier=true", "profile.max_rollouts=32")
    assert scored_again(config, monkeypatch, *rules) == ["start on heldout"]


# --- one reference ----------------------------------------------------------------------------------------------------


def references(config: Path) -> dict[str, dict[str, str | None]]:
    """For each file and set the policy that it is compared with."""
    return {
        name: {of: table.get("against", {}).get("name") for of, table in report["sets"].items()}
        for name, report in evals(config).items()
    }


def test_another_first_policy_is_the_reference_of_every_file(config, monkeypatch):
    before = evals(config)
    assert references(config) == {
        "last": dict.fromkeys(("heldout", "own"), "start"),
        "start": dict.fromkeys(("heldout", "own")),
    }
    assert scored_again(config, monkeypatch, "evaluation.checkpoints=[last, start]") == []
    assert references(config) == {
        "last": dict.fromkeys(("heldout", "own")),
        "start": dict.fromkeys(("heldout", "own"), "last"),
    }
    against = evals(config)["start"]["sets"]["heldout"]["against"]
    own, other = (
        {name: ProblemScore(**score) for name, score in before[which]["sets"]["heldout"]["problems"].items()}
        for which in ("start", "last")
    )
    assert against == {"name": "last", **compare(own, other, num_rollouts=4, k=[1, 4])}
    assert scored_again(config, monkeypatch, "evaluation.checkpoints=[start, last]") == []
    assert evals(config) == before


def test_fewer_policies_and_another_first_one_leave_no_difference_from_two_references(config):
    assert grpo("eval", config, "--resume", "evaluation.checkpoints=[start, step_000002, last]") == 0
    assert grpo("eval", config, "--resume", "evaluation.checkpoints=[step_000002]") == 0
    found = {reference for of_file in references(config).values() for reference in of_file.values()}
    assert found == {None, "step_000002"}
    assert references(config)["step_000002"] == {"heldout": None, "own": None}


def test_a_set_that_the_reference_was_scored_on_otherwise_has_no_difference_from_it(config):
    changed = "evaluation.sets.own.reward.success_threshold=0.5"
    assert grpo("eval", config, "--resume", "evaluation.checkpoints=[start]", changed) == 0
    assert references(config)["last"] == {"heldout": "start", "own": None}


def test_a_set_that_is_not_asked_for_has_no_difference_of_an_earlier_evaluation(config):
    machine = f"evaluation.sets={json.dumps({'machine': MACHINE})}"
    assert grpo("eval", config, "--resume", machine) == 0
    assert references(config)["last"] == {"heldout": "start", "machine": "start", "own": None}
