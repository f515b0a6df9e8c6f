"""Rewards of the package inside the trainer: their parts become metrics, and their own time limits are held to."""

import json

import pytest

from tests.runs import grpo, read_jsonl, small_run_file

COMPOSED = {
    "name": "compose",
    "options": {
        "rewards": {"correct": {"file": "FILE", "function": "judge"}, "shape": {"name": "list_machine", "weight": 0.5}},
        "penalties": {"brief": {"name": "length", "options": {"limit": 8, "buffer": 4, "unit": "tokens"}}},
    },
    "success_threshold": 1.0,
    "workers": 0,
}
TRAIN = {"curriculum": {"kind": "uniform"}, "sft": None, "train.steps": 2}


def test_the_parts_of_a_composition_and_its_count_of_tokens_come_from_the_rollouts(tmp_path):
    reward = json.loads(json.dumps(COMPOSED).replace("FILE", str(small_run_file(tmp_path).parent / "judge.py")))
    (tmp_path / "judge.py").write_text("def judge(completion, problem):\n    return len(set(completion)) / 10\n")
    assert grpo("train", small_run_file(tmp_path, reward=reward, **TRAIN)) == 0
    rows = read_jsonl(tmp_path / "runs" / "small" / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert row["reward/errors"] == 0
        assert {"reward/correct/mean", "reward/shape/mean", "reward/brief/mean"} <= row.keys()
        total = row["reward/correct/mean"] + 0.5 * row["reward/shape/mean"] + row["reward/brief/mean"]
        assert row["reward/mean"] == pytest.approx(total)
        # Of at most 8 tokens: 4 cost nothing, and each one more a quarter.
        assert -1 <= row["reward/brief/mean"] < 0


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ({"name": "code_tests", "options": {"timeout_seconds": 9.0}}, "code_tests may take 10.5 s by its own options"),
        (
            {"name": "compose", "options": {"rewards": {"code": {"name": "code_tests"}}}, "timeout_seconds": 4.0},
            "reward.timeout_seconds = 4: compose may take 4.5 s by its own options",
        ),
    ],
)
def test_a_limit_that_would_kill_a_reward_before_its_own_is_refused_before_anything_starts(
    tmp_path, capsys, reward, told
):
    config = small_run_file(tmp_path, reward=reward | {"workers": 1}, **TRAIN)
    assert grpo("train", config) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_scoring_a_file_holds_to_the_same_rule(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    options = json.dumps({"timeout_seconds": 30.0})
    assert grpo("score", "code_tests", rows, "--options", options) != 0
    assert "code_tests may take 31.5 s by its own options" in capsys.readouterr().err
