"""The tool_call reward against BFCL's own labels: right calls written from them, and provably wrong ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rewards import build
from scripts.reward_accuracy.calls_cases import FORMATS, fill, other_value, read_rows, right_cases, wrong_cases

ROOT = Path(__file__).resolve().parents[1]
BFCL = Path(os.environ.get("GRPO_SHARED_DATA") or ROOT.parent / "shared" / "data") / "bfcl"
FEW = [json.loads(line) for line in (ROOT / "tests/data/bfcl_rows.jsonl").read_text(encoding="utf-8").splitlines()]
BY_ID = {row["id"]: row for row in FEW}


def misjudged(rows) -> list[tuple[str, str, str]]:
    """Row, kind and detail of every case that the reward judges otherwise than it was made."""
    verifiers = {name: build("tool_call", {"format": name}) for name in ("any", *FORMATS)}
    found = []
    for row in rows:
        for case in (*right_cases(row), *wrong_cases(row)):
            for name, verifier in verifiers.items():
                if name == "any" or case.kind.endswith(f", {name}"):
                    reward = verifier(case.completion, row)
                    if reward.value != float(case.is_right):
                        found.append((row["id"], f"{case.kind} (format {name})", reward.detail))
    return found


@pytest.mark.parametrize("row", FEW, ids=BY_ID)
def test_a_few_rows_are_judged_as_their_labels_say(row):
    assert misjudged([row]) == []


@pytest.mark.slow
@pytest.mark.skipif(not BFCL.is_dir(), reason="the rows of BFCL are not in shared/data (GRPO_SHARED_DATA)")
def test_every_row_is_judged_as_its_label_says():
    rows = read_rows(BFCL)
    assert len(rows) == 1_040
    assert misjudged(rows) == []


def test_each_row_is_changed_in_at_least_five_ways():
    for row in FEW:
        assert len({case.kind.split(",")[0] for case in wrong_cases(row)}) >= (5 if row["possible_answers"] else 3)


@pytest.mark.parametrize(
    ("value", "allowed"),
    [(5, [5, 12]), (0.5, [0.5]), (True, [True]), ("a", ["a", "qq"]), ([1], [[1], [1, 1]]), (None, [None])],
)
def test_another_value_is_none_of_the_allowed_ones(value, allowed):
    other = other_value(value, allowed)
    assert other not in allowed
    assert value is None or type(other) is type(value)


@pytest.mark.parametrize(
    ("row", "change", "value"),
    [
        # A parameter that the schema requires stays required, though its label lets it go.
        ("simple_python_17", {"formatted": None}, 0.0),
        # A label may hold a value of another type than declared: it is right as the label has it.
        ("simple_python_307", {"venue": True}, 1.0),
        ("parallel_152", {}, 1.0),
        # Case, spaces and some punctuation do not count, as in BFCL.
        ("multiple_76", {"material": "bron-ze"}, 1.0),
        # The order of a list counts, an int is a float.
        ("simple_python_83", {"coord1": [-112.074, 33.4484]}, 0.0),
        ("simple_python_337", {}, 1.0),
    ],
)
def test_what_is_special_in_some_rows(row, change, value):
    problem = BY_ID[row]
    calls = fill(problem, lambda values: values[0])
    arguments = {
        key: kept for key, kept in (calls[0]["arguments"] | change).items() if kept is not None or key not in change
    }
    calls[0]["arguments"] = arguments
    for write in FORMATS.values():
        reward = build("tool_call", {})(write(calls), problem)
        assert reward.value == value, reward.detail


def test_bfcls_own_names_of_the_columns_are_an_option():
    row = BY_ID["simple_python_0"]
    renamed = {"function": row["functions"], "ground_truth": row["possible_answers"]}
    verifier = build("tool_call", {"functions_key": "function", "answers_key": "ground_truth"})
    text = '{"name": "calculate_triangle_area", "arguments": {"base": 10, "height": 5}}'
    assert verifier(text, renamed).value == 1.0
