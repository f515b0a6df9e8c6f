"""What `grpo check` says of the disk, beside what a run leaves there, and of time, by hand and from a measurement."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.check import derived, sizes_of
from grpo.disk import disk
from grpo.model import load_tokenizer, skeleton
from grpo.pace import Pace, measured, step_seconds
from grpo.recipe import stages_of
from tests.runs import grpo, small_run_config, small_run_file

LOOP: dict[str, Any] = {"sft": None, "curriculum": {"kind": "uniform", "max_refill_waves": 1}}
OVERHEAD_BYTES = 40_000
"""Of names, headers and alignment in the files of a checkpoint, and of its state."""


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dtype": "bfloat16"},
        {"model.lora": {"rank": 4}},
        {"optim.kind": "muon"},
    ],
    ids=["float32", "bfloat16", "lora", "muon"],
)
def test_checkpoints_take_what_is_said_of_them(tmp_path, changes):
    steps = {"train.steps": 4, "evaluation.every_steps": 1, "checkpoint": {"every_steps": 1, "keep_last": 2}}
    changes = LOOP | steps | changes
    assert grpo("train", small_run_file(tmp_path, **changes)) == 0
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    sizes = [folder_bytes(path) for path in checkpoints.glob("step_*")]
    (best,) = [folder_bytes(path) for path in checkpoints.glob("best_*")]
    assert len(sizes) == 2
    config = small_run_config(tmp_path, **changes)
    said = derived(config)["GiB of the run's folder, checkpoints, at most"]
    parts = parts_of(config)
    assert said == f"{parts['checkpoints'] / 2**30:,.3f}"
    # While the third is written, beside the best one.
    at_most = 3 * max(sizes) + best
    assert 0 <= at_most - parts["checkpoints"] < 4 * OVERHEAD_BYTES


def parts_of(config: Any, *, num_profiled: int = 0) -> dict[str, int]:
    sizes = sizes_of(skeleton(config.model, tokenizer=load_tokenizer(config.model)))
    num_muon = sizes.num_muon if config.optim.kind == "muon" else 0
    return disk(
        config,
        stages_of(config),
        weight_bytes=sizes.trainable_bytes,
        optimizer_bytes=4 * (sizes.num_copied + 2 * sizes.num_trainable - num_muon),
        num_profiled=num_profiled,
    )


def test_rollouts_and_the_profile_are_counted_as_by_hand(tmp_path):
    changes = {"train.steps": 100, "tracking.rollout_files": 30, "sampling.max_completion_tokens": 10}
    config = small_run_config(tmp_path, **changes)
    parts = parts_of(config, num_profiled=40)
    # The second stage has the larger groups: 4 × 8 rollouts, and a refill of up to four times as many.
    assert parts["rollouts"] == 30 * 5 * 32 * (600 + 32 * 10)
    assert parts["profile"] == 40 * 16 * 20 + 40 * 4 * (600 + 32 * 10)
    changes |= {"tracking.rollout_files": 0, "profile.reuse_steps": 0}
    parts = parts_of(small_run_config(tmp_path, **changes), num_profiled=40)
    assert (parts["rollouts"], parts["profile"]) == (0, 40 * 16 * 20)


def test_a_run_takes_no_more_than_was_said(tmp_path):
    file = small_run_file(tmp_path, **{"evaluation.every_steps": 2})
    assert grpo("recipe", file) == 0
    run = tmp_path / "runs" / "small"
    parts = parts_of(small_run_config(tmp_path, **{"evaluation.every_steps": 2}), num_profiled=40)
    assert folder_bytes(run / "rollouts") <= parts["rollouts"]
    assert sum(path.stat().st_size for path in (run / "profile").rglob("*.jsonl")) <= parts["profile"]


def test_a_model_that_is_not_here_leaves_the_disk_untold(tmp_path, monkeypatch):
    def no_network(name: str) -> None:
        raise OSError(f"no connection for {name}")

    monkeypatch.setattr("grpo.model.AutoTokenizer.from_pretrained", no_network)
    found = derived(small_run_config(tmp_path, model={"path": "someone/some-model"}))
    assert not [name for name in found if "run's folder" in name]


# --- time -------------------------------------------------------------------------------------------------------------

PACE = Pace(num_rows=8, decode_seconds=0.5, train_seconds_per_token=0.01, update_seconds=3.0)


@pytest.mark.parametrize(
    ("changes", "num_ranks", "expected"),
    [
        # 16 rollouts: two rounds of eight rows, five tokens each; 80 tokens to train on, and one update.
        ({"train.minibatches_per_step": 1}, 1, (5.0, 0.8 + 3.0)),
        # A second update needs the old log-probs: a third more.
        ({"train.minibatches_per_step": 2}, 1, (5.0, 0.8 * 4 / 3 + 6.0)),
        ({"train.minibatches_per_step": 2, "train.old_logprobs": "sampler"}, 1, (5.0, 0.8 + 6.0)),
        ({"train.minibatches_per_step": 1, "train.epochs_per_step": 2}, 1, (5.0, 1.6 + 0.8 / 3 + 6.0)),
        # Four rollouts a rank fill half of its rows, and a token of them takes as long.
        ({"train.minibatches_per_step": 1}, 4, (2.5, 0.2 + 3.0)),
    ],
)
def test_the_time_of_a_step_is_counted_as_by_hand(tmp_path, changes, num_ranks, expected):
    config = small_run_config(tmp_path, **LOOP, **changes)
    (stage,) = stages_of(config)
    assert step_seconds(config, stage, PACE, mean_tokens=5, num_ranks=num_ranks) == pytest.approx(expected)


def test_a_measurement_draws_as_many_rows_as_a_run_does(tmp_path):
    config = small_run_config(tmp_path, **LOOP, **{"sampling.max_rows": 12, "sampling.stop_strings": ["a"]})
    pace = measured(config, device=torch.device("cpu"), num_ranks=1)
    assert pace.num_rows == 12
    assert min(pace.decode_seconds, pace.train_seconds_per_token, pace.update_seconds) > 0
    assert measured(config, device=torch.device("cpu"), num_ranks=4).num_rows == 4


def test_the_command_tells_the_time_of_a_step_for_each_stage_and_length(tmp_path, capsys):
    assert grpo("check", small_run_file(tmp_path), "--time") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.match(
        r"measured on cpu: 32 rows decode a token in [\d.]+ ms, training takes [\d,]+ tokens a second", first
    )
    told = re.compile(r"stage (\d), completions of (\d) tokens in the mean: a step of (\d+) rollouts takes [\d.]+ s")
    found = [told.match(line) for line in lines[:-1]]
    assert [match.groups() for match in found if match] == [
        (stage, tokens, rollouts) for stage, rollouts in (("1", "16"), ("2", "32")) for tokens in ("8", "4", "2")
    ]
