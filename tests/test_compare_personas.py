"""The script that compares ways to keep a trait out: its table by hand, its arms' configs, and its picture."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "compare_personas"
MODULES = ("arms", "jobs", "tables", "picture")


@pytest.fixture
def script(monkeypatch):
    """The script's modules, which import each other as the ones of a folder that is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


def write(script, folder: Path, arm: str, finals: list[tuple[float, float]]) -> None:
    """Results of seeds 1, 2, ... that end at (trait, accuracy), and drift half as far along a random direction."""
    for seed, (trait, accuracy) in enumerate(finals, start=1):
        curve = [
            {"step": 0, "trait": 0.1, "accuracy": 0.5},
            {"step": 60, "trait": trait, "accuracy": accuracy},
        ]
        metrics = {
            f"persona/{script.arms.TRAIT}/{name}": [0.0, scale * trait, None]
            for name, scale in (("rate", 1.0), ("drift", 2.0), ("drift_random", 1.0))
        }
        path = script.arms.result_path(seed, arm, folder=folder)
        path.parent.mkdir(exist_ok=True)
        result = {"seed": seed, "arm": arm, "curve": curve, "final": curve[-1], "metrics": metrics}
        path.write_text(json.dumps(result))


def test_an_arm_meets_the_goal_by_the_lower_bound_of_its_paired_difference(script, tmp_path, capsys):
    write(script, tmp_path, "no leak", [(0.01, 0.60), (0.01, 0.64), (0.01, 0.62)])
    write(script, tmp_path, "plain", [(1.0, 0.60), (0.99, 0.64), (1.0, 0.62)])
    write(script, tmp_path, "penalty", [(0.0, 0.59), (0.1, 0.63), (0.2, 0.61)])  # .01 below in each
    write(script, tmp_path, "inoculation", [(0.1, 0.60), (0.1, 0.60), (0.1, 0.60)])  # .02 below, and spread
    write(script, tmp_path, "suppressed at the start", [(0.1, 0.40), (0.1, 0.44), (0.1, 0.42)])
    script.tables.print_tables([1, 2, 3, 4], list(script.arms.ARMS), folder=tmp_path)
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines() if " | " in line}
    assert "0.010 ± 0.000 | 0.01, 0.01, 0.01 | 0.620 ± 0.020 | – | –" in rows["no leak"]
    assert "+0.000 [+0.000, +0.000] | missed" in rows["plain"]
    assert "-0.010 [-0.010, -0.010] | met" in rows["penalty"]
    # Differences 0, -.04 and -.02: their deviation is .02, and t of 2 degrees at 95 % is 2.920.
    half = 2.920 * 0.02 / 3**0.5
    assert f"-0.020 [{-0.02 - half:+.3f}, {-0.02 + half:+.3f}] | met in the mean" in rows["inoculation"]
    assert "-0.200 [-0.200, -0.200] | missed" in rows["suppressed at the start"]


def test_a_table_is_of_the_seeds_that_every_arm_has_finished(script, tmp_path, capsys):
    script.tables.print_tables([1, 2], ["no leak"], folder=tmp_path)
    assert capsys.readouterr().out == ""
    write(script, tmp_path, "no leak", [(0.01, 0.6), (0.01, 0.6)])
    write(script, tmp_path, "plain", [(1.0, 0.6)])
    script.tables.print_tables([1, 2], ["no leak", "plain"], folder=tmp_path)
    shown = capsys.readouterr().out
    assert "1 paired seeds: 1\n" in shown
    assert "| plain | 1.000 | 1.00 | 0.600 | – | – |" in shown


def test_every_arm_is_a_config_that_loads_and_steers_where_it_says(script):
    for name, arm in script.arms.ARMS.items():
        files = {"{vectors}": "v.safetensors", "{random}": "r.safetensors"}
        fields = [script.jobs.with_files(change, files) for change in arm.changes]
        config = script.jobs.load(ROOT / script.arms.CONFIG, [*script.jobs.from_start(Path("start")), *fields])
        assert (config.steering is not None) == (arm.phase == "train" and arm.is_steered), name
        assert (config.sft is not None) == (arm.phase == "sft"), name
        assert (config.sft is not None and config.sft.steering is not None) == (arm.phase == "sft" and arm.is_steered)
        if config.sft is not None:
            assert config.sft.traces.messages_column == "messages"
    cold_start = script.jobs.load(ROOT / script.arms.CONFIG, [script.arms.EVENLY]).sft
    assert cold_start.traces.messages_column == "messages"
    shown = [(style["upper"], style["weight"]) for style in cold_start.traces.options["styles"]]
    total = sum(weight for _, weight in shown)
    assert sum(upper * weight for upper, weight in shown) / total == pytest.approx(0.5)
    for reference, family in script.arms.FAMILIES.items():
        assert reference in family
    assert set(script.picture.DRAWN) <= set(script.arms.PRACTICE)


def test_the_picture_has_a_line_for_each_arm_that_is_there_and_the_random_control(script, tmp_path):
    assert script.picture.picture([1, 2], folder=tmp_path) is None
    write(script, tmp_path, "no leak", [(0.0, 0.6), (0.0, 0.6)])
    write(script, tmp_path, "plain", [(1.0, 0.6), (1.0, 0.6)])
    drawn = script.picture.picture([1, 2], folder=tmp_path)
    assert drawn.count('class="line s') == 2 * len(script.picture.PANELS)
    assert drawn.count('class="control') == 2  # drift along random directions, one an arm
    assert ">plain<" in drawn
    assert ">penalty<" not in drawn
