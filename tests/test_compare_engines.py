"""The script that trains one start by both engines: its curves and its table by hand."""

import json
from pathlib import Path

import pytest

from scripts.compare_engines import curve, table


def write_run(folder: Path, name: str, rewards: list[float]) -> None:
    (folder / name).mkdir()
    rows = [{"step": n, "reward/mean": r, "policy/sampler_logprob_gap_max": 1e-6 * n} for n, r in enumerate(rewards, 1)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": len(rows), "eval/pass@1": 0.5}])
    (folder / name / "metrics.jsonl").write_text(text, encoding="utf-8")


def test_a_curve_has_the_mean_of_each_fifth_of_the_steps():
    rows = [{"reward/mean": float(n)} for n in range(10)]
    assert curve(rows, num_steps=10) == [0.5, 2.5, 4.5, 6.5, 8.5]


def test_the_table_has_finished_runs_alone_and_pairs_the_engines_by_seed(tmp_path):
    for engine, ends in (("native", (0.5, 0.7)), ("vllm", (0.6, 0.7))):
        for seed, end in enumerate(ends):
            write_run(tmp_path, f"{engine}_{seed}", [0.0, 0.1, 0.2, 0.3, end])
    write_run(tmp_path, "native_2", [0.0, 0.1])
    lines = table(tmp_path, seeds=[0, 1, 2], num_steps=5).splitlines()
    assert lines[0].startswith("| engine | seed | steps 1-1 | steps 2-2 |")
    assert lines[2] == "| native | 0 | 0.000 | 0.100 | 0.200 | 0.300 | 0.500 | 5.0e-06 |"
    # Of .5 and .7 the deviation is .2 / sqrt(2).
    assert lines[4].endswith("| 0.300 ± 0.000 | 0.600 ± 0.141 | |")
    assert not any("| 2 |" in line for line in lines)
    # Differences .1 and 0: mean .05, half of the interval 12.706 · .05 = .635.
    assert lines[-1] == (
        "vLLM less native in the last fifth, paired by seed: +0.050, 95 % over 2 seeds [-0.585, +0.685]"
    )


def test_without_a_finished_run_there_is_no_line(tmp_path):
    assert len(table(tmp_path, seeds=[0], num_steps=5).splitlines()) == 2


@pytest.mark.parametrize("num_steps", [5, 7, 60])
def test_every_step_is_in_one_part(num_steps):
    assert len(curve([{"reward/mean": 1.0}] * num_steps, num_steps=num_steps)) == 5
