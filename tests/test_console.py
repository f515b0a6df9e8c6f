"""What the terminal says while a run goes on: each number as it is read, and the last step's line wherever it ends."""

import re
from pathlib import Path
from typing import Any

import pytest

from curricula import Expected, Progress
from grpo.tracking.console import Console
from tests.runs import grpo, small_run_file

LOOP: dict[str, Any] = {"sft": None, "curriculum": {"kind": "uniform"}, "evaluation.every_steps": 0}
STEP = {
    "step": 1,
    "time/step": 0.1,
    "curriculum/stage": 0,
    "sampling/temperature": 1.0,
    "throughput/sampled_tokens_per_second": 10.0,
}


def steps_said(output: str) -> list[int]:
    return [int(step) for step in re.findall(r"train: step (\d+)/", output)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.steps": 3}, 3),
        ({"train.steps": 50, "train.max_tokens": 1500}, None),  # where that is follows from what is sampled
        (
            {
                "train.steps": 50,
                "curriculum": {"kind": "two_stages", "stages": [{"name": "only", "tiers": ["moderate"], "steps": 3}]},
            },
            3,
        ),
    ],
    ids=["steps", "max_tokens", "curriculum"],
)
def test_the_last_step_has_its_line_whatever_ended_the_run(tmp_path: Path, capsys, changes, expected):
    file = small_run_file(tmp_path, **(LOOP | changes))
    if "curriculum" in changes:
        assert grpo("profile", file) == 0
    assert grpo("train", file) == 0
    said = capsys.readouterr().out
    last = max(int(path.stem.removeprefix("step_")) for path in (tmp_path / "runs/small/rollouts").iterdir())
    assert last == (expected or last) < 51
    assert steps_said(said)[-1] == last > 1
    assert len(steps_said(said)) == 2  # the first as well, and no other within ten seconds


@pytest.mark.parametrize(("number", "expected"), [(0, None), (1, "1 group missing"), (2, "2 groups missing")])
def test_missing_groups_are_told_in_words_that_fit_their_number(capsys, number, expected):
    Console(num_steps=2).step(STEP | {"group/missing": number}, is_last=True)
    said = capsys.readouterr().out
    assert (expected in said) if expected else ("missing" not in said)


def test_counts_of_a_profile_have_separators_between_thousands(capsys):
    Console(num_steps=1).profile_progress(
        Progress(
            num_problems=12_000,
            num_finished=4_500,
            num_rollouts=1_234_567,
            num_without_value=0,
            num_tokens=0,
            num_without_tier=1_000,
            tiers={"moderate": 3_500},
            left=Expected(typical=98_765.4, most=3_840_000),
        )
    )
    said = capsys.readouterr().out
    assert "4,500/12,000 problems, 1,234,567 rollouts (about 98,765 left, at most 3,840,000)" in said
    assert "moderate 3,500, 1,000 without a tier" in said
