"""The script that compares curricula: its arithmetic by hand, and one arm of a miniature run from end to end."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_curricula", ROOT / "scripts" / "compare_curricula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result_of(points: list[tuple[float, float]], *, arm: str = "uniform", budget: float = 100.0) -> dict:
    curve = [{"tokens": tokens, "pass@1": value} for tokens, value in points]
    ledger = {"tokens/kept": 30.0, "sampling/tokens": 59.0, "profile": 20.0}
    return {"arm": arm, "budget": budget, "steps": 7, "curve": curve, "final": curve[-1], "ledger": ledger}


def test_the_area_counts_the_start_until_the_profile_is_paid_and_the_end_up_to_the_budget(script):
    assert script.area(result_of([(0, 0.2), (100, 0.4)])) == pytest.approx(0.3)
    # 0.2 for the 50 tokens of a profile, 0.3 on average over the next 40, 0.4 for the last 10.
    assert script.area(result_of([(50, 0.2), (90, 0.4)])) == pytest.approx(0.5 * 0.2 + 0.4 * 0.3 + 0.1 * 0.4)
    assert script.area(result_of([(0, 0.2), (120, 0.4)])) == pytest.approx(0.3)  # the last step may pass the budget


def test_tokens_to_reach_are_read_off_the_line_between_two_points(script):
    result = result_of([(10, 0.2), (30, 0.4), (50, 0.3), (90, 0.5)])
    assert script.tokens_to_reach(result, 0.3) == pytest.approx(20)
    assert script.tokens_to_reach(result, 0.2) == 10
    assert script.tokens_to_reach(result, 0.45) == pytest.approx(80)
    assert script.tokens_to_reach(result, 0.6) is None


def test_an_arm_is_compared_with_the_reference_seed_by_seed(script):
    reference = [result_of([(0, 0.2), (100, 0.4)]), result_of([(0, 0.2), (100, 0.5)])]
    others = [result_of([(0, 0.2), (100, 0.6)], arm="online"), result_of([(0, 0.2), (100, 0.8)], arm="online")]
    cells = script.row_of("online", others, reference)
    assert cells[0] == "online"
    assert cells[1] == "0.700 ± 0.141"
    assert cells[6].startswith("+0.250 [")
    assert cells[7].startswith("0.50 [")  # 0.4 and 0.5 are reached after 50 of 100 tokens in both seeds
    assert script.row_of("uniform", reference, reference)[6:] == ["–", "–"]
    short = [result_of([(0, 0.2), (100, 0.3)], arm="online")] * 2
    assert script.row_of("online", short, reference)[7] == "not reached in 2 of 2"


def test_every_arm_and_the_start_are_configs_that_load(script, tmp_path):
    for changes in script.ARMS.values():
        config = script.load(ROOT / script.CONFIG, [f"run.folder={tmp_path}", *changes])
        assert config.train.max_tokens is not None
    script.load(ROOT / script.COLD_START, list(script.START))


@pytest.mark.slow
def test_a_miniature_comparison_runs_and_is_not_run_again(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(script, "START", (*script.START, "sft.gate_pass_at_1=null", "sft.max_steps=5"))
    small = {name: {**pool, "num_rows": 160} for name, pool in script.POOLS.items()}
    monkeypatch.setattr(script, "POOLS", small)
    script.make_start(3, folder=tmp_path)
    changes = ["train.max_tokens=30000", "data.validation_problems=8", "data.heldout_problems=16"]
    for arm in ("uniform", "online"):
        script.run_arm(3, "mild", arm, folder=tmp_path, changes=changes)
        result = json.loads(script.result_path(3, "mild", arm, folder=tmp_path).read_text())
        assert result["curve"][-1]["tokens"] >= 30000
        assert result["ledger"]["sampling/tokens"] > 0
        assert set(result["final"]) >= {"pass@1", "operations_2", "operations_5"}
    before = script.result_path(3, "mild", "online", folder=tmp_path).stat().st_mtime_ns
    arguments = ["--seeds", "3", "--pools", "mild", "--arms", "uniform", "online", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare_curricula.py", *arguments])
    script.main()
    assert script.result_path(3, "mild", "online", folder=tmp_path).stat().st_mtime_ns == before
    assert "### mild: 1 paired seeds" in capsys.readouterr().out
