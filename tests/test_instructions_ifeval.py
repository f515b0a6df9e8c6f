"""The reward `instructions` on what IFEval's authors published: the values of their tests, and all of their rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rewards import build

DATA = Path(__file__).resolve().parent / "data"
SHARED = Path(os.environ.get("GRPO_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
ROWS = SHARED / "ifeval" / "input_data.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judge(case, **options):
    problem = {"instruction_id_list": [case["instruction"]], "kwargs": [case["kwargs"]]}
    return build("instructions", options)(case["completion"], problem)


def title(case):
    return case["instruction"] if isinstance(case, dict) else None


@pytest.mark.parametrize("case", read(DATA / "ifeval_cases.jsonl"), ids=title)
def test_a_published_value_is_ours(case):
    reward = judge(case)
    if case["followed"] is None:  # the published test wants an exception: the arguments cannot be used
        assert reward.status == "error"
    else:
        assert reward.value == float(case["followed"]), reward.detail


@pytest.mark.parametrize("case", read(DATA / "instructions_faults.jsonl"), ids=title)
def test_a_fault_of_the_published_checkers_is_not_ours(case):
    reward = judge(case)
    assert reward.value == float(case["followed"]), f"{case['why']}: {reward.detail}"


@pytest.fixture(scope="module")
def rows():
    if not ROWS.is_file():
        pytest.skip(f"IFEval's rows are not at {ROWS}; GRPO_SHARED_DATA names the folder that holds ifeval/")
    return read(ROWS)


def test_every_published_row_can_be_judged(rows):
    assert len(rows) == 541
    for mode in ("strict", "loose"):
        verifier = build("instructions", {"mode": mode})
        rewards = [verifier("My answer is no.", row) for row in rows]
        assert [reward.detail for reward in rewards if reward.value is None] == []
        assert {row["instruction_id_list"][0] for row, reward in zip(rows, rewards, strict=True) if reward.value} >= {
            "detectable_format:constrained_response",
            "punctuation:no_comma",
        }


def test_what_is_followed_strictly_is_followed_loosely(rows):
    strict, loose = (build("instructions", {"mode": mode, "score": "fraction"}) for mode in ("strict", "loose"))
    for row in rows[::5]:
        text = f"{row['prompt']}\n\n* one *point*\n- [two]\n\nP.S. That is *all*, SIR.\n{row['prompt'].lower()}"
        assert strict(text, row).value <= loose(text, row).value
