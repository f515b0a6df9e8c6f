"""Evaluations as tables: a set each, a column a policy, and what is missing or foreign an empty cell."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from grpo.tracking.console import Console
from grpo.tracking.evaluations import Cell, in_order, set_tables


def metric(value: float, *, half: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def evaluated(name: str, step: int, sets: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "step": step, "temperature": 1.0, "sets": sets}


def of_set(value: float, **more: Any) -> dict[str, Any]:
    return {"num_problems": 40, "num_rollouts": 8, "metrics": {"pass@1": metric(value)}, **more}


START = evaluated("start", 0, {"heldout": of_set(0.3), "extra": of_set(0.1)})
LAST = evaluated(
    "last",
    200,
    {
        "heldout": of_set(
            0.5,
            by_tier={"moderate": {"num_problems": 30, "metrics": {"pass@1": metric(0.6), "mean_tokens": metric(90)}}},
            lost={"error": 0, "timeout": 4, "abstained": 0},
            against={
                "name": "start",
                "metrics": {"pass@1": metric(0.2)},
                "wins": 20,
                "losses": 5,
                "ties": 15,
                "by_tier": {"moderate": {"num_problems": 30, "metrics": {"pass@1": metric(0.25)}}},
            },
        )
    },
)


def test_the_start_is_first_and_the_last_policy_last_whatever_their_files_are_called():
    names = [("last", 50), ("step_000100", 100), ("start", 0), ("best", 20), ("other-step_000050-1a2b", 50)]
    ordered = in_order([evaluated(name, step, {}) for name, step in names])
    assert [evaluation["name"] for evaluation in ordered] == [
        *("start", "best", "other-step_000050-1a2b", "step_000100", "last")
    ]


def test_a_set_is_a_table_with_a_column_for_each_policy_that_was_scored_on_it():
    heldout, extra = set_tables([START, LAST])
    assert (heldout.name, [policy["name"] for policy in heldout.policies]) == ("heldout", ["start", "last"])
    assert (extra.name, [policy["name"] for policy in extra.policies]) == ("extra", ["start"])
    (passed, lost) = heldout.scores
    assert [cell.number for cell in passed.cells if isinstance(cell, Cell)] == ["0.300", "0.500"]
    assert lost.cells == (None, "4 timeout")


def test_differences_have_a_sign_and_are_of_the_policies_that_have_them():
    heldout = set_tables([START, LAST])[0]
    assert heldout.against == "start"
    passed, counts = heldout.differences
    assert passed.cells[0] is None
    assert isinstance(passed.cells[1], Cell)
    assert (passed.cells[1].number, passed.cells[1].interval) == ("+0.200", "+0.100 to +0.300")
    assert not passed.cells[1].is_share
    assert counts.cells == (None, "20 / 5 / 15")
    assert set_tables([START, LAST])[1].differences == ()


def test_a_part_tells_its_number_of_problems_its_passes_and_their_difference():
    ((name, lines),) = set_tables([START, LAST])[0].parts
    assert name == "tier"
    assert [(line.name, line.is_difference) for line in lines] == [
        ("moderate (30) pass@1", False),
        ("moderate (30) pass@1", True),
    ]


def test_policies_that_were_compared_with_different_ones_say_with_whom():
    other = json.loads(json.dumps(LAST))
    other["name"], other["sets"]["heldout"]["against"]["name"] = "step_000100", "best"
    table = set_tables([START, other, LAST])[0]
    assert table.differences[0].name == "difference from"
    assert table.differences[0].cells == (None, "best", "start")


def test_lengths_have_one_decimal_and_shares_three():
    assert (Cell(123.456, 100.0, 150.0).number, Cell(123.456, 100.0, 150.0).interval) == ("123.5", "100.0 to 150.0")
    assert (Cell(0.1234, 0.1, 0.2).number, Cell(0.1234, None, None).interval) == ("0.123", "")


@pytest.mark.parametrize("content", [None, 5, [], {}, {"metrics": 3}, {"metrics": {"pass@1": "high"}, "by_x": [1]}])
def test_what_is_no_evaluation_is_an_empty_table(content):
    (table,) = set_tables([evaluated("x", 1, {"heldout": content})])
    assert [cell for line in table.scores for cell in line.cells] == [None]
    assert table.differences == ()


def test_parts_by_tier_go_from_the_easiest_to_the_unsolved_and_others_as_they_come():
    tiers = ["extreme", "moderate", "trivial", "unsolved", "without a tier"]  # as names are sorted
    parts = {name: {"num_problems": 2, "metrics": {"pass@1": metric(0.5)}} for name in tiers}
    (table,) = set_tables([evaluated("start", 0, {"heldout": of_set(0.3, by_tier=parts, by_kind=parts)})])
    shown = {name: [line.name.removesuffix(" (2) pass@1") for line in lines] for name, lines in table.parts}
    assert shown == {"tier": ["trivial", "moderate", "extreme", "unsolved", "without a tier"], "kind": tiers}


def shown_in(width: int, evaluations: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the tables on a terminal of this width."""
    for evaluation in evaluations:
        (folder / f"{evaluation['name']}.json").write_text(json.dumps(evaluation))
    said = io.StringIO()
    console = Console(num_steps=1)
    monkeypatch.setattr(console, "_rich", RichConsole(file=said, width=width, highlight=False, soft_wrap=True))
    console.results(folder, report=folder / "report.html")
    return said.getvalue().splitlines()


def test_three_policies_in_80_columns_have_whole_intervals_below_their_numbers(tmp_path, monkeypatch):
    step = json.loads(json.dumps(LAST)) | {"name": "step_000100", "step": 100}
    lines = shown_in(80, [START, step, LAST], tmp_path, monkeypatch)
    assert max(len(line) for line in lines[:-1]) <= 80
    rows = [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in lines]
    place = rows.index("pass@1 0.300 0.500 0.500")
    assert rows[place + 1] == "[0.200, 0.400] [0.400, 0.600] [0.400, 0.600]"
    place = rows.index("pass@1 − start – +0.200 +0.200")
    assert rows[place + 1] == "[+0.100, +0.300] [+0.100, +0.300]"
    assert "(step 0) (step 100) (step 200)" in rows


def test_where_policies_do_not_fit_at_all_no_digit_is_left_out(tmp_path, monkeypatch):
    steps = [json.loads(json.dumps(LAST)) | {"name": f"step_{n:06d}", "step": n} for n in range(100, 106)]
    text = "".join(shown_in(80, [START, *steps], tmp_path, monkeypatch))
    assert "…" not in text
    assert "report.html" in text


def test_a_number_without_an_interval_stands_alone(tmp_path, monkeypatch):
    alone = evaluated("start", 0, {"heldout": {"metrics": {"pass@1": {"value": 0.25}}}})
    lines = shown_in(80, [alone], tmp_path, monkeypatch)
    assert any(line.replace("│", " ").split() == ["pass@1", "0.250"] for line in lines)


def test_the_terminal_shows_scores_differences_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for evaluation in (START, LAST):
        (tmp_path / f"{evaluation['name']}.json").write_text(json.dumps(evaluation))
    said = io.StringIO()
    console = Console(num_steps=1)
    monkeypatch.setattr(console, "_rich", RichConsole(file=said, width=120))
    console.results(tmp_path, report=tmp_path / "report.html")
    lines = [" ".join(line.replace("│", " ").split()) for line in said.getvalue().splitlines()]
    assert "heldout: 40 problems × 8 rollouts" in lines
    assert "pass@1 0.300 [0.200, 0.400] 0.500 [0.400, 0.600]" in lines
    assert "pass@1 − start – +0.200 [+0.100, +0.300]" in lines
    assert "tier moderate (30) pass@1 – 0.600 [0.500, 0.700]" in lines
    assert "tier moderate (30) pass@1 − start – +0.250 [+0.150, +0.350]" in lines
