"""The script that holds counterfactual temperatures against real ones: its sums by hand, and a short run of it all."""

import math
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from curricula import Measured, reweight
from grpo.recipe import run_train
from grpo.types import Message, Problem
from rewards import RewardSpec
from scripts import counterfactual_figure
from scripts.counterfactual_figure import by_length, picture, report, row_of, values_of, window
from tests.runs import opened_run, small_run_config

GRID = (0.8, 1.0, 1.2)
SVG = "{http://www.w3.org/2000/svg}"
# One in two completions is right, whatever the temperature: a character is even or odd.
COIN: dict[str, Any] = {
    "reward.function": "coin",
    "curriculum": {"kind": "uniform", "max_refill_waves": 0},
    "sft": None,
    "train.steps": 1,
    "evaluation": {"rollouts_per_problem": 4, "k": [1]},
}


def problem(name: str, *, operations: int) -> Problem:
    reward = RewardSpec("list_machine")
    return Problem(name, (Message("user", name),), answer=name, reward=reward, meta={"num_operations": operations})


def measured(scores: dict[str, float], *, effective_fraction: float | None = None) -> Measured:
    signal = {name: score * (1 - score) for name, score in scores.items()}
    return Measured(scores=scores, signal=signal, effective_fraction=effective_fraction)


def values(
    *, at_1: dict[str, float], at_12: dict[str, float], effective_fraction: float | None = None
) -> dict[str, Any]:
    """What is said of the temperature 1.2 of problems drawn at 1.0."""
    both = {1.0: measured(at_1), 1.2: measured(at_12, effective_fraction=effective_fraction)}
    return values_of(both, drawn_at=1.0)[1.2]


def test_a_row_has_what_windows_are_off_by_over_problems_in_pairs():
    real = values(at_1={"a": 0.6, "b": 0.8}, at_12={"a": 0.5, "b": 0.7})
    windows = [
        values(at_1={"a": 0.6, "b": 0.8}, at_12={"a": 0.6, "b": 0.7}, effective_fraction=0.9),
        values(at_1={"a": 0.7, "b": 0.9}, at_12={"a": 0.6, "b": 0.9}, effective_fraction=0.7),
        values(at_1={"a": 0.6, "b": 0.8}, at_12={"a": 0.51, "b": 0.75}, effective_fraction=0.8),
    ]
    row = row_of(windows, real)
    assert row["effective_fraction"] == pytest.approx(0.8)
    scores, change = row["scores"], row["change"]
    assert scores["real"] == pytest.approx((0.6, 0.1))
    # Differences to the truth: (.1, 0), (.1, .2), (.01, .05); the standard error of two is half of their distance.
    assert scores["first_off"] == pytest.approx((0.05, 0.05))
    assert scores["off"] == pytest.approx(((0.07 + 0.25 / 3) / 2, (0.25 / 3 - 0.07) / 2))
    assert scores["error"] == pytest.approx((0.05 + 0.05 + 0.02) / 3)
    assert scores["within"] == 2  # .05 ± .05 and .03 ± .02 are, .15 ± .05 is not
    assert row["signal"]["real"][0] == pytest.approx((0.25 + 0.21) / 2)
    # Both truths fall by .1; the windows change by (0, -.1), (-.1, 0), (-.09, -.05).
    assert change["real"] == pytest.approx((-0.1, 0.0))
    assert change["off"][0] == pytest.approx(0.1 - (0.05 + 0.05 + 0.07) / 3)


def test_the_share_that_counts_is_told_apart_by_length():
    problems = [problem("short", operations=2), problem("long", operations=5)]
    level, tilted = [(-1.0, -1.0)] * 2, [(-1.0, -1.0), (-1.0, -1.0 + math.log(3))]
    groups = [
        reweight("short", [True, False], level, grid=(1.0, 1.2), drawn_at=1.0),
        reweight("long", [True, False], tilted, grid=(1.0, 1.2), drawn_at=1.0),
    ]
    short, long = by_length(problems, [groups, groups])
    assert (short["num_operations"], long["num_operations"]) == (2, 5)
    assert short["effective_fractions"] == pytest.approx({"1.0": 1.0, "1.2": 1.0})
    assert long["effective_fractions"] == pytest.approx({"1.0": 1.0, "1.2": 16 / 20})  # (1 + 3)² / (2 · (1 + 9))


def test_rollouts_read_at_their_own_temperature_are_their_plain_mean_and_at_another_nearly_what_is_drawn_there(
    tmp_path,
):
    config = small_run_config(tmp_path, **COIN)
    with opened_run(config) as run:
        problems = run.heldout
        read = [window(run, problems, number, drawn_at=1.0, grid=GRID, group_size=8) for number in range(4)]
        again = window(run, problems, 0, drawn_at=1.0, grid=GRID, group_size=8)
        real = {t: counterfactual_figure.really(run, problems, temperature=t, num_rollouts=32) for t in GRID}
    assert again == read[0] != read[1]
    for groups in read:
        assert [group.problem_id for group in groups] == [problem.id for problem in problems]
        assert all((group.scores[1] * 8) % 1 == pytest.approx(0.0, abs=1e-5) for group in groups)
        assert any(group.scores[2] != group.scores[1] for group in groups)
    for place, temperature in enumerate(GRID):
        mean = sum(group.scores[place] for groups in read for group in groups) / (4 * len(problems))
        truth = sum(real[temperature].scores.values()) / len(problems)
        assert mean == pytest.approx(truth, abs=4 * math.sqrt(0.25 / (4 * 8 * len(problems))))


@pytest.mark.slow
def test_the_script_reads_a_run_prints_its_tables_and_draws_them_again_without_sampling(tmp_path, monkeypatch, capsys):
    with opened_run(small_run_config(tmp_path, **COIN)) as run:
        run_train(run)
        folder = run.folder.path
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    drawing = tmp_path / "picture.svg"
    sizes = ["--problems", "6", "--windows", "2", "--group-size", "4", "--real-rollouts", "4"]
    arguments = [str(folder), "--drawn-at", "1.0", "1.2", "--grid", "0.9", *sizes, "--picture", str(drawing)]
    monkeypatch.setattr(sys, "argv", ["counterfactual_figure.py", *arguments])
    counterfactual_figure.main()
    shown = capsys.readouterr().out
    assert "6 problems, 2 windows of 4 rollouts each, 4 rollouts a temperature; policy of step 1" in shown
    assert shown.count("| 1.2 | 0.9 |") == 1
    assert "| 1 | 1 | 1.00 |" in shown
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setattr(counterfactual_figure, "measured", None)
    monkeypatch.setattr(sys, "argv", ["counterfactual_figure.py", *arguments, "--table-only"])
    counterfactual_figure.main()
    assert capsys.readouterr().out in shown + "\n"
    circles = ElementTree.parse(drawing).getroot().iter(f"{SVG}circle")
    assert len(list(circles)) == 2 * 2 * 3 + 1  # two panels, two starts, three temperatures, and one in the legend


def test_the_tables_name_every_row_and_the_picture_keeps_within_its_panels():
    real = values(at_1={"a": 0.6, "b": 0.8}, at_12={"a": 0.5, "b": 0.7})
    windows = [
        values(at_1={"a": 0.6, "b": 0.8}, at_12={"a": 0.6, "b": 0.7}, effective_fraction=0.5),
        values(at_1={"a": 0.6, "b": 0.8}, at_12={"a": 0.4, "b": 0.9}, effective_fraction=0.5),
    ]
    rows = [{"drawn_at": 1.0, "temperature": t, **row_of(windows, real)} for t in GRID]
    lengths = [{"drawn_at": 1.0, "num_operations": 2, "effective_fractions": {"0.8": 0.5, "1.0": 1.0, "1.2": 0.7}}]
    sizes = {"num_problems": 2, "windows": 2, "group_size": 4, "real_rollouts": 8, "step": 3}
    shown = report({**sizes, "rows": rows, "lengths": lengths})
    (line,) = [line for line in shown.splitlines() if line.startswith("| 1 | 1.2 | 0.50 |")]
    scores, change = "0.600 ± 0.100 | +0.050 ± 0.050 | 2", "+0.050 ± 0.050 | 0.100 | 2"
    assert line.startswith(f"| 1 | 1.2 | 0.50 | {scores} | 0.230 ± 0.020 | ")
    assert line.endswith(f" | {change} |")
    assert "| drawn at | operations | 0.8 | 1.0 | 1.2 |\n|---|---|---|---|---|\n| 1 | 2 | 0.50 | 1.00 | 0.70 |" in shown
    root = ElementTree.fromstring(picture(rows))
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < 760
        assert 0 < float(circle.attrib["cy"]) < 250
