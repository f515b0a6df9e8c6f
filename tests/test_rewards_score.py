"""Rows in, the same rows with their rewards out."""

from __future__ import annotations

import json

import pytest

from rewards import Pool, RewardSpec
from rewards.score import BrokenLine, read_jsonl_rows, score_rows


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_come_back_in_order_one_for_one_with_what_they_held(workers):
    rows = [{"id": n, "completion": rf"\boxed{{{n}}}", "answer": str(n - n % 3 % 2)} for n in range(2500)]
    with Pool(workers) as pool:
        scored = list(score_rows(RewardSpec("math_answer"), iter(rows), pool=pool))
    assert [row["id"] for row in scored] == list(range(2500))
    assert [row["reward"] for row in scored] == [0.0 if n % 3 == 1 else 1.0 for n in range(2500)]
    assert all(row["status"] == "scored" and row["parts"]["boxed"] == 1.0 for row in scored)
    assert all({**row, **original} == row for row, original in zip(scored, rows, strict=True))


@pytest.mark.parametrize("row", [{}, {"completion": None}, {"completion": 3}])
def test_a_row_without_a_completion_is_an_error_that_names_its_number(row):
    with Pool(0) as pool:
        good = {"completion": "#### 1", "answer": "1"}
        scored = list(score_rows(RewardSpec("math_answer"), [good, row, good], pool=pool))
    assert [row["status"] for row in scored] == ["scored", "error", "scored"]
    assert scored[1]["reward"] is None
    assert scored[1]["detail"].startswith("row 2: completion")


def test_a_broken_line_is_a_row_with_its_number_and_does_not_end_the_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    good = json.dumps({"completion": "#### 1", "answer": "1"}).encode()
    file.write_bytes(good + b"\n{broken\n\n[1]\n\xff\n" + b"[" * 100_000 + b"\n" + good)
    rows = list(read_jsonl_rows(file))
    assert [row.line for row in rows if isinstance(row, BrokenLine)] == [2, 4, 5, 6]
    with Pool(0) as pool:
        scored = list(score_rows(RewardSpec("math_answer"), rows, pool=pool))
    assert [row["status"] for row in scored] == ["scored", "error", "error", "error", "error", "scored"]
    assert scored[1]["line"] == 2
    assert "line 2 is not JSON" in scored[1]["detail"]
    assert "a list; a row is a JSON object" in scored[2]["detail"]
    json.dumps(scored)


def test_a_file_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_jsonl_rows(tmp_path / "missing.jsonl")
