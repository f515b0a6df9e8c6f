"""The arithmetic of scripts/bench_scaling.py on metrics made by hand, and one real, very short comparison."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.config import RunConfig
from scripts import bench_scaling
from scripts.bench_scaling import DifferentWorkError, Step, check_same_work, ratio, read_steps, result, table
from tests.launch import ROOT, environment


def step(seconds: float, *, sampled_tokens: int = 60, trained_tokens: int = 40) -> Step:
    """Half of it sampling, a quarter training, an eighth waiting for rewards."""
    parts = {"sampling": seconds / 2, "reward": seconds / 8, "train": seconds / 4}
    return Step(sampled_tokens=sampled_tokens, trained_tokens=trained_tokens, seconds=seconds, parts=parts)


def metrics_file(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_step_is_what_its_line_of_metrics_says(tmp_path):
    times = {"time/step": 2.0, "time/sampling": 1.0, "time/reward": 0.25, "time/train": 0.5}
    rows = [
        {"step": 1, "sampling/tokens": 60.0, "optim/tokens": 40.0, **times},
        {"step": 2, "sampling/tokens": 60.0, **times},  # no group had any variance
    ]
    assert read_steps(metrics_file(tmp_path, rows)) == [step(2.0), step(2.0, trained_tokens=0)]


def test_warm_up_steps_count_neither_as_tokens_nor_as_time():
    found = result([step(100.0), step(50.0), step(1.0), step(3.0)], warmup_steps=2)
    assert found.tokens_per_second == (100 + 100) / (1.0 + 3.0)
    assert found.step_seconds == 2.0
    assert found.part_seconds == {"sampling": 1.0, "reward": 0.25, "train": 0.5, "other": 0.25}


def test_a_run_of_warm_up_steps_alone_has_no_result():
    with pytest.raises(ValueError, match="2 steps with 2 to warm up leave none"):
        result([step(1.0), step(1.0)], warmup_steps=2)


def test_the_ratio_is_that_of_the_medians():
    one = [result([step(seconds)], warmup_steps=0) for seconds in (1.0, 2.0, 100.0)]
    two = [result([step(seconds)], warmup_steps=0) for seconds in (0.1, 1.25, 1.25)]
    assert ratio({1: one, 2: two}, ranks=2, base=1) == pytest.approx(2.0 / 1.25)
    last = table({1: one, 2: two}, goal=1.6)[-1]
    assert last == "2 ranks / 1: 1.60 (of single repeats 1.60 to 80.00; the goal is 1.6 on two idle cores)"


def test_equal_work_at_other_speeds_passes():
    check_same_work({1: [[step(1.0), step(2.0)], [step(3.0), step(1.0)]], 2: [[step(0.5), step(1.0)]]})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([step(1.0), step(1.0, sampled_tokens=61)], "61 and 60 sampled_tokens in step 2"),
        ([step(1.0, trained_tokens=39), step(1.0)], "39 and 40 trained_tokens in step 1"),
        # The same sum of tokens in other steps is other work.
        ([step(1.0, sampled_tokens=59), step(1.0, sampled_tokens=61)], "59 and 60 sampled_tokens in step 1"),
        ([step(1.0)], "1 and 2 steps"),
    ],
)
def test_work_that_differs_is_an_error_that_names_the_step(changed, message):
    with pytest.raises(DifferentWorkError, match=rf"2 ranks \(repeat 0\) and 1 ranks \(repeat 0\).*{message}"):
        check_same_work({1: [[step(1.0), step(1.0)]], 2: [changed]})


@pytest.mark.parametrize("name", bench_scaling.MODELS)
def test_the_config_of_each_model_is_one_that_the_product_takes(tmp_path, name):
    work = bench_scaling.MODELS[name]
    config = RunConfig.model_validate(bench_scaling.fields(work, "one", tmp_path, steps=3))
    assert config.reward.workers == 0
    assert config.train.problems_per_step * config.train.group_size == 4 * config.sampling.max_rows
    assert config != RunConfig.model_validate(
        bench_scaling.fields(replace(work, group_size=3), "one", tmp_path, steps=3)
    )


@pytest.mark.slow
def test_a_short_comparison_of_one_rank_and_two_prints_a_ratio(tmp_path):
    sizes = ["--problems-per-step", "4", "--group-size", "4", "--completion-tokens", "6", "--max-rows", "8"]
    times = ["--models", "0.2M", "--repeats", "1", "--steps", "2", "--warmup-steps", "1", "--folder", tmp_path]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench_scaling.py", *map(str, times), *sizes],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ranks / 1: " in done.stdout
    steps = [read_steps(tmp_path / f"0.2M_ranks_{ranks}_repeat_0" / "metrics.jsonl") for ranks in (1, 2)]
    assert [len(of_run) for of_run in steps] == [2, 2]
    assert steps[0][0].trained_tokens > 0
