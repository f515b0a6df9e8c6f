"""What the terminal says while a run goes on: each number as it is read, and the last step's line wherever it ends."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from curricula import Expected, Progress
from grpo.tracking.console import Console
from grpo.tracking.live import duration, trend
from tests.runs import grpo, small_run_file
from tests.terminal import screen

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


# --- what moves on a terminal -----------------------------------------------------------------------------------------

FULL_STEP = STEP | {
    "reward/mean": 0.25,
    "reward/pass_rate": 0.25,
    "policy/entropy": 0.5,
    "completion/length_mean": 1234.5,
    "completion/length_max": 2048,
    "completion/truncated_fraction": 0.125,
    "curriculum/tier_trivial": 1200,
    "curriculum/tier_extreme": 7,
    "throughput/trained_tokens_per_second": 20.0,
}


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("grpo.tracking.console.time", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("grpo.tracking.console._RichConsole.is_terminal", True)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (6000, "1.7 h"),
        (36_000, "10 h"),
        (172_800, "2.0 days"),
        (math.nan, ""),
        (math.inf, ""),
    ],
)
def test_a_time_is_told_in_the_unit_that_one_would_say_it_in(seconds, expected):
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.5, 1], "▁▅█"), ([1, 1], "▁▁"), ([0, math.nan, 1], "▁ █"), ([0.3], ""), ([], ""), ([*range(40)], None)],
)
def test_a_trend_is_one_block_a_step_from_its_lowest_to_its_highest(values, expected):
    found = trend(values)
    assert found == expected if expected is not None else (len(found), found[0], found[-1]) == (32, "▁", "█")


def test_the_view_of_a_training_replaces_itself_and_a_line_that_stays_stands_above_it(terminal, clock, capsys):
    console = Console(num_steps=4)
    console.step(FULL_STEP | {"step": 1}, is_last=False)
    clock.seconds += 5
    console.say("a line that stays")
    console.step(FULL_STEP | {"step": 2, "reward/pass_rate": 0.75, "eval/validation/pass@1": 0.5}, is_last=False)
    lines = screen(capsys.readouterr().out)
    assert lines[0].split() == ["5", "s", "a", "line", "that", "stays"]
    assert lines[1].startswith("train ")
    assert lines[1].endswith("step 2/4, 50%, 5 s left")
    assert [line.split(None, 1) for line in lines[2:7]] == [
        ["stage", "1, temperature 1.00"],
        ["reward", "mean 0.250, pass rate 0.750, entropy 0.500, validation pass@1 0.500  ▁█"],
        ["lengths", "mean 1,234.5 tokens, longest 2,048, cut by the limit 12.5%"],
        ["tiers", "trivial 1,200, extreme 7"],
        ["speed", "10 tokens a second sampled, 20 trained, 0.1 s a step"],
    ]
    assert lines[7:] == [""]


def test_the_sampling_of_the_next_step_is_a_line_below_the_view(terminal, clock, capsys):
    console = Console(num_steps=4)
    console.step(FULL_STEP, is_last=False)
    console.sampling_progress("train", 0, 8)
    clock.seconds += 3
    console.sampling_progress("train", 2, 8)
    assert screen(capsys.readouterr().out)[-2:] == ["sampling: 2/8 rollouts, about 9 s left", ""]


def test_a_view_that_is_wider_than_the_terminal_is_broken_and_replaced_whole(terminal, clock, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    console = Console(num_steps=4)
    for step in (1, 2, 3):
        clock.seconds += 1
        console.step(FULL_STEP | {"step": step}, is_last=False)
    lines = screen(capsys.readouterr().out)
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")].count("train") == 1
    assert max(map(len, lines)) <= 40
    assert "step 3/4" in " ".join(lines)


def test_views_are_drawn_a_few_times_a_second_and_the_last_one_always(terminal, clock, capsys):
    console = Console(num_steps=100)
    for step in range(1, 51):
        clock.seconds += 0.01
        console.step(FULL_STEP | {"step": step}, is_last=step == 50)
    written = capsys.readouterr().out
    assert 5 <= written.count("tiers") <= 8
    assert "step 50/100" in screen(written)[0]


# --- plain lines ------------------------------------------------------------------------------------------------------


def test_a_cold_start_and_an_evaluation_have_a_line_every_ten_seconds_with_the_time_that_is_left(clock, capsys):
    console = Console(num_steps=1)
    for step in range(1, 32):
        console.cold_start_progress(step, most_steps=100)
        clock.seconds += 1
    console.sampling_progress("evaluation", 0, 50)
    for done in range(1, 26):
        clock.seconds += 1
        console.sampling_progress("evaluation", done, 50)
    lines = [line.split(None, 2)[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "cold start: step 11/100, at most 89 s left",
        "cold start: step 21/100, at most 79 s left",
        "cold start: step 31/100, at most 69 s left",
        "evaluation: 10/50 rollouts, about 40 s left",
        "evaluation: 20/50 rollouts, about 30 s left",
    ]


def test_every_long_phase_of_a_recipe_tells_its_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("grpo.tracking.console.SECONDS_BETWEEN_LINES", 0.0)
    assert grpo("recipe", small_run_file(tmp_path, **{"train.steps": 2, "evaluation.every_steps": 0})) == 0
    said = capsys.readouterr().out
    counts = {"cold start: step 10/10": 1, "evaluation: 48/48 rollouts": 2, "train: step 2/2": 1}
    assert {text: said.count(text) for text in counts} == counts
    assert "profile: 40/40 problems" in said
