"""The script that compares curricula: its arithmetic by hand, and one arm of a miniature run from end to end."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "compare_curricula"


@pytest.fixture
def script(monkeypatch):
    """The script's modules, which import each other as the ones of a folder that is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("arms", "jobs", "tables")})
    for name in ("arms", "jobs", "tables"):
        del sys.modules[name]


def result_of(points: list[tuple[float, float]], *, arm: str = "uniform", budget: float = 100.0) -> dict:
    curve = [{"tokens": tokens, "pass@1": value} for tokens, value in points]
    ledger = {"tokens/kept": 30.0, "sampling/tokens": 59.0, "profile": 20.0}
    return {"arm": arm, "budget": budget, "steps": 7, "curve": curve, "final": curve[-1], "ledger": ledger}


def test_the_area_counts_the_start_until_the_profile_is_paid_and_the_end_up_to_the_budget(script):
    assert script.tables.area(result_of([(0, 0.2), (100, 0.4)])) == pytest.approx(0.3)
    # 0.2 for the 50 tokens of a profile, 0.3 on average over the next 40, 0.4 for the last 10.
    assert script.tables.area(result_of([(50, 0.2), (90, 0.4)])) == pytest.approx(0.5 * 0.2 + 0.4 * 0.3 + 0.1 * 0.4)
    assert script.tables.area(result_of([(0, 0.2), (120, 0.4)])) == pytest.approx(
        0.3
    )  # the last step may pass the budget


def test_runs_that_share_a_profile_begin_practice_sooner_by_what_they_do_not_pay(script):
    result = result_of([(20, 0.2), (100, 0.4)])  # 20 tokens of profile
    assert script.tables.area(result) == pytest.approx(0.2 * 0.2 + 0.8 * 0.3)
    # Two runs: 10 tokens each, and the last score for the 10 that are left over.
    assert script.tables.area(result, num_runs=2) == pytest.approx(0.1 * 0.2 + 0.8 * 0.3 + 0.1 * 0.4)


def test_the_isotonic_regression_pools_what_falls(script):
    assert script.tables.isotonic([1.0, 3.0, 2.0, 2.0, 4.0]).tolist() == pytest.approx([1, 7 / 3, 7 / 3, 7 / 3, 4])
    assert script.tables.isotonic([3.0, 2.0, 1.0]).tolist() == [2.0, 2.0, 2.0]


def test_tokens_to_reach_are_read_off_the_mean_of_the_seeds_curves(script):
    seeds = [result_of([(0, 0.2), (100, 0.4)]), result_of([(0, 0.2), (100, 0.6)])]
    assert script.tables.tokens_to_reach(seeds, 0.35) == pytest.approx(50)
    assert script.tables.tokens_to_reach(seeds, 0.2) == 0
    assert script.tables.tokens_to_reach(seeds, 0.51) == float("inf")
    paid_first = [result_of([(50, 0.2), (100, 0.4)])]  # a profile that took half of the budget
    assert script.tables.tokens_to_reach(paid_first, 0.3) == pytest.approx(75)


def test_an_arm_against_itself_takes_as_many_tokens_and_one_that_is_twice_as_fast_half_of_them(script):
    random = np.random.Generator(np.random.PCG64(0))
    noise = random.normal(0, 0.01, size=(10, 6))
    marks = np.linspace(0, 100, 6)

    def seeds(speed: float) -> list[dict]:
        scores = 0.3 + 0.2 * (1 - np.exp(-speed * marks / 50)) + noise
        return [result_of(list(zip(marks, of_seed, strict=True))) for of_seed in scores]

    assert script.tables.tokens_ratio(seeds(1.0), seeds(1.0)) == (1.0, 1.0, 1.0)
    ratio, low, high = script.tables.tokens_ratio(seeds(2.0), seeds(1.0))
    assert low < ratio < high
    assert ratio == pytest.approx(0.5, abs=0.07)
    assert script.tables.tokens_ratio(seeds(0.5), seeds(1.0))[0] == float("inf")


def test_an_arm_is_compared_with_the_reference_seed_by_seed(script):
    reference = [result_of([(0, 0.2), (100, 0.4)]), result_of([(0, 0.2), (100, 0.5)])]
    others = [result_of([(0, 0.2), (100, 0.6)], arm="online"), result_of([(0, 0.2), (100, 0.8)], arm="online")]
    cells = script.tables.row_of("online", others, reference)
    assert cells[0] == "online"
    assert cells[1] == "0.700 ± 0.141"
    assert cells[6].startswith("+0.250 [")
    assert cells[7].startswith("0.50 [")  # on average 0.45 is reached after 50 of 100 tokens
    assert script.tables.row_of("uniform", reference, reference)[6:] == ["–", "–"]
    short = [result_of([(0, 0.2), (100, 0.3)], arm="online")] * 2
    assert script.tables.row_of("online", short, reference)[7] == "inf [inf, inf]"


def test_a_pools_table_has_its_arms_and_their_corrected_differences(script, tmp_path, capsys):
    gains = {1: 0.1, 2: 0.12, 3: 0.11}
    for seed, gain in gains.items():
        for arm, end in (("uniform", 0.4), ("online", 0.4 + gain)):
            path = script.arms.result_path(seed, "hopeless", arm, folder=tmp_path)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(result_of([(0, 0.2), (100, end)], arm=arm)))
    jobs = [(seed, "hopeless", arm) for seed in (1, 2, 3, 4) for arm in ("uniform", "online", "tiers")]
    script.tables.print_table("hopeless", jobs, folder=tmp_path)
    shown = capsys.readouterr().out
    assert "### hopeless: 3 paired seeds" in shown
    assert "| online | 0.510 ± 0.010 |" in shown
    assert "pass@1, uniform: 0.400 ± 0.000\n- online: +0.110 [+0.085, +0.135], corrected p = 0.003" in shown
    assert "area, uniform: 0.300 ± 0.000\n- online: +0.055 [+0.043, +0.067], corrected p = 0.003" in shown
    assert "tiers" not in shown


def test_every_pool_and_arm_is_a_config_that_loads(script, tmp_path):
    for name, pool in script.arms.POOLS.items():
        assert pool.reference in pool.arms
        for arm in pool.arms:
            fields = script.jobs.fields_of(1, name, "run", folder=tmp_path, rows_seed=1)
            config = script.jobs.load(ROOT / script.arms.CONFIG, [*fields, *script.arms.ARMS[arm].changes])
            assert config.train.max_tokens is not None
    script.jobs.load(ROOT / script.arms.COLD_START, list(script.arms.START))
    script.jobs.load(ROOT / script.arms.CONFIG, list(script.arms.STAGE_ONE))


@pytest.mark.slow
def test_a_miniature_comparison_runs_and_is_not_run_again(script, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    short = ("sft.gate_pass_at_1=null", "sft.max_steps=5")
    monkeypatch.setattr(script.jobs, "START", (*script.arms.START, *short))
    script.jobs.make_start(3, folder=tmp_path)
    changes = ["train.max_tokens=30000", "data.validation_problems=8", "data.heldout_problems=16"]
    for arm in ("uniform", "online"):
        script.jobs.run_arm(3, "mild", arm, folder=tmp_path, changes=changes)
        result = json.loads(script.arms.result_path(3, "mild", arm, folder=tmp_path).read_text())
        assert result["curve"][-1]["tokens"] >= 30000
        assert result["ledger"]["sampling/tokens"] > 0
        assert set(result["final"]) >= {"pass@1", "operations_2", "operations_5"}
    path = script.arms.result_path(3, "mild", "online", folder=tmp_path)
    before = path.stat().st_mtime_ns
    arguments = ["--seeds", "3", "--pools", "mild", "--arms", "uniform", "online", "--folder", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, str(FOLDER), *arguments], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert path.stat().st_mtime_ns == before
    assert "### mild: 1 paired seeds" in run.stdout
