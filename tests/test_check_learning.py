"""The script that asks whether training learns what it can: whom it practises, its table by hand, and a short run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo.manifest import MANIFEST_FILE, read_manifest
from grpo.types import Message, Problem
from rewards import RewardSpec
from scripts.check_learning import in_band, result_path, run_seed, table
from tests.runs import read_jsonl, small_run_config

MINIATURE: dict[str, Any] = {
    "curriculum": {"kind": "uniform", "max_refill_waves": 0},
    "profile": {"first_rollouts": 16, "max_rollouts": 16, "relabel_rollouts": 16},
    "sft.max_steps": 2,
    "train.steps": 3,
    "checkpoint.every_steps": 1,
    "evaluation": {"rollouts_per_problem": 64, "k": [1]},
}


def problem(name: str) -> Problem:
    return Problem(name, (Message("user", name),), answer=name, reward=RewardSpec("list_machine"), meta={})


def estimate(value: float, *, above: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.01, "above_goal_fraction": above}


def seed_file(folder: Path, seed: int, *, end: float) -> Path:
    path = result_path(seed, folder=folder)
    scores = {
        "start": {"chosen": estimate(0.5), "heldout": estimate(0.3)},
        "end": {"chosen": estimate(end, above=0.75), "heldout": estimate(0.6)},
    }
    path.write_text(json.dumps({"seed": seed, "num_chosen": 40, "cpu_seconds": 123.4, **scores}), encoding="utf-8")
    return path


def test_problems_in_the_band_are_chosen_its_bounds_included_and_those_without_a_profile_are_not():
    counts = {"never": 0, "below": 6, "lowest": 2, "middle": 5, "highest": 8, "above": 26}
    rollouts = {"below": 32, "above": 32}
    profile = {name: {"num_correct": right, "num_rollouts": rollouts.get(name, 10)} for name, right in counts.items()}
    problems = [problem(name) for name in (*counts, "without a verdict")]
    assert [chosen.id for chosen in in_band(problems, profile)] == ["lowest", "middle", "highest"]


def test_the_table_has_a_line_a_seed_and_the_spread_between_seeds(tmp_path):
    lines = table([seed_file(tmp_path, seed, end=end) for seed, end in ((1, 0.96), (2, 0.98))]).splitlines()
    assert lines[2] == (
        "| 1 | 40 | 0.500 [0.480, 0.510] | 0.960 [0.940, 0.970] | 75% | 0.300 [0.280, 0.310] | 0.600 [0.580, 0.610] "
        "| 123 |"
    )
    # Deviation .02 / sqrt(2) = .014; half of the interval 12.706 · .01 = .127.
    assert lines[4] == ("| mean ± deviation | | 0.500 ± 0.000 | 0.970 ± 0.014 | | 0.300 ± 0.000 | 0.600 ± 0.000 | |")
    assert lines[-1] == "end: 0.970, 95 % over seeds [0.843, 1.097]; the goal of 0.95 is reached in every seed"


def test_a_seed_that_misses_the_goal_is_said(tmp_path):
    paths = [seed_file(tmp_path, seed, end=end) for seed, end in ((1, 0.99), (2, 0.95), (3, 0.97))]
    assert table(paths).endswith("the goal of 0.95 is missed in 1 of 3 seeds")


@pytest.mark.slow
def test_a_miniature_run_practises_the_chosen_problems_alone_and_scores_both_policies_on_them(tmp_path):
    config = small_run_config(tmp_path, **MINIATURE)
    result = run_seed(config)
    folder = tmp_path / "runs" / "small"
    profile = read_manifest(folder / "profile" / MANIFEST_FILE, columns=["id", "num_rollouts", "num_correct"]).rows
    chosen = {row["id"] for row in profile if 0.2 <= row["num_correct"] / row["num_rollouts"] <= 0.8}
    rows = [row for path in sorted((folder / "rollouts").iterdir()) for row in read_jsonl(path)]
    assert {row["problem_id"] for row in rows} <= chosen
    assert result["num_chosen"] == len(chosen) < len(profile)
    assert result["steps"] == 3
    assert result["train_cpu_seconds"] < result["cpu_seconds"]
    assert result["start"]["chosen"]["value"] > result["start"]["heldout"]["value"]
    assert result["start"] != result["end"]
    shutil.rmtree(folder / "checkpoints" / "step_000003")  # as a run that was killed before its last step
    again = run_seed(config)
    assert [again[when] for when in ("start", "end")] == [result[when] for when in ("start", "end")]


def test_a_run_without_a_problem_in_the_band_says_so(tmp_path):
    config = small_run_config(
        tmp_path,
        **{**MINIATURE, "data.train": {"path": "task:list_machine", "options": {"num_rows": 40, "operations": {3: 1}}}},
    )
    with pytest.raises(SystemExit, match="seed 3: no problem is solved in 20% to 80% of rollouts"):
        run_seed(config)
