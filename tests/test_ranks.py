"""The recipe on two ranks, as real processes: the run of one rank, and what survives when a rank does not."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.launch import by_deepspeed, launched, started
from tests.runs import assert_same_outcome, grpo, outcome, read_jsonl, shard_lines, small_run_file, tiers_of

pytestmark = pytest.mark.slow

SCRIPT = "scripts/recipe.py"
LIMIT_SECONDS = 15.0  # watchdog.seconds of runs that are to hang
HANGS: dict[str, Any] = {"watchdog.seconds": LIMIT_SECONDS, "train.steps": 40, "sft": None}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one rank."""
    folder = tmp_path_factory.mktemp("one")
    assert grpo("recipe", small_run_file(folder)) == 0
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run on two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("two")
    launched(SCRIPT, small_run_file(folder), ranks=2)
    return folder / "runs" / "small"


def processes_of(config: Path) -> dict[int, int]:
    """Process ids by rank of a run that is under way."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = dict(v.split(b"=", 1) for v in (process / "environ").read_bytes().split(b"\0") if b"=" in v)
        except (OSError, ValueError):
            continue
        if str(config).encode() in words and b"RANK" in variables:
            found[int(variables[b"RANK"])] = int(process.name)
    return found


def last_line(run: Path, *, rank: int) -> str:
    return (run / "logs" / f"rank_{rank}.log").read_text().splitlines()[-1]


def when(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", output: Path) -> None:
    """Wait until it is so; the run must be under way."""
    while not condition():
        assert process.poll() is None, output.read_text()[-4000:]
        time.sleep(0.002)


def ends(config: Path, process: "subprocess.Popen[bytes]", *, within_seconds: float) -> int:
    """The launcher's exit code; it and every rank are gone within the limit."""
    started_at = time.monotonic()
    code = process.wait(timeout=within_seconds)
    while processes_of(config):
        assert time.monotonic() - started_at < within_seconds, f"still there: {processes_of(config)}"
        time.sleep(0.05)
    return code


def first_step(run: Path) -> list[dict[str, Any]]:
    """The rollouts of the first step but for their log-probs: a cold start of other ranks sums in another order."""
    rows = read_jsonl(run / "rollouts" / "step_000001.jsonl")
    return [{name: value for name, value in row.items() if name != "logprobs"} for row in rows]


# --- the same run ---------------------------------------------------------------------------------------------------


def test_two_ranks_draw_the_tokens_of_one_and_come_to_the_same_tiers(one_rank, two_ranks):
    assert tiers_of(two_ranks) == tiers_of(one_rank)
    assert first_step(two_ranks) == first_step(one_rank)
    practised = [
        [[row["problem_id"] for row in read_jsonl(path)] for path in sorted((run / "rollouts").iterdir())]
        for run in (one_rank, two_ranks)
    ]
    assert practised[0] == practised[1]
    for alone, together in zip(*(read_jsonl(run / "metrics.jsonl") for run in (one_rank, two_ranks)), strict=True):
        assert together.keys() == alone.keys()
        names = {"optim/grad_norm", "policy/entropy", "optim/tokens", "reward/mean", "group/dropped_fraction"}
        for name in names & alone.keys():  # a step whose groups are all the profile's has no reward of its own
            assert together[name] == pytest.approx(alone[name], rel=1e-3), name


def test_every_rank_has_a_log_and_one_of_them_speaks(two_ranks):
    logs = sorted(path.name for path in (two_ranks / "logs").iterdir())
    assert logs == ["rank_0.log", "rank_1.log"]
    assert "eval: last is" in (two_ranks / "logs" / "rank_1.log").read_text()


def test_a_rank_that_takes_groups_as_it_is_free_draws_the_same_tokens(tmp_path, one_rank):
    launched(SCRIPT, small_run_file(tmp_path, **{"distributed.deterministic": False}), ranks=2)
    run = tmp_path / "runs" / "small"
    assert first_step(run) == first_step(one_rank)
    assert tiers_of(run) == tiers_of(one_rank)


def test_each_phase_alone_by_the_deepspeed_launcher_comes_to_the_whole_recipe(tmp_path, one_rank):
    config = small_run_file(tmp_path, **{"distributed.strategy": "zero2"})
    for phase in ("sft", "profile_tiers", "train", "eval"):
        launched(f"scripts/{phase}.py", config, ranks=2, launcher=by_deepspeed)
    run = tmp_path / "runs" / "small"
    assert tiers_of(run) == tiers_of(one_rank)
    assert first_step(run) == first_step(one_rank)
    names = [sorted(path.name for path in (folder / "evals").iterdir()) for folder in (run, one_rank)]
    assert names[0] == names[1]


# --- kills and signals ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_run_of_two_ranks_killed_in_every_phase_ends_as_if_it_never_was(tmp_path, two_ranks):
    config, output = small_run_file(tmp_path), tmp_path / "output.txt"
    run = tmp_path / "runs" / "small"

    def lines(name: str, number: int) -> Callable[[], bool]:
        return lambda: (run / name).is_file() and (run / name).read_bytes().count(b"\n") >= number

    def began(phase: str) -> Callable[[], bool]:
        return lambda: (run / "phases.json").is_file() and phase in json.loads((run / "phases.json").read_text())

    moments = [
        (0, began("sft")),
        (1, lambda: len(shard_lines(run)) >= 20),
        (1, lines("metrics.jsonl", 1)),
        (0, lines("metrics.jsonl", 4)),
        (1, began("eval")),
    ]
    for number, (rank, moment) in enumerate(moments):
        process = started(SCRIPT, config, *(["--resume"] if number else []), ranks=2, output=output)
        when(moment, process, output)
        os.kill(processes_of(config)[rank], signal.SIGKILL)
        assert ends(config, process, within_seconds=60) != 0
    launched(SCRIPT, config, "--resume", ranks=2)
    assert_same_outcome(run, two_ranks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_on_all_ranks_and_the_run_goes_on(tmp_path, two_ranks, number):
    config, output = small_run_file(tmp_path), tmp_path / "output.txt"
    run = tmp_path / "runs" / "small"
    process = started(SCRIPT, config, ranks=2, output=output)
    when(lambda: (run / "metrics.jsonl").is_file(), process, output)
    process.send_signal(number)
    assert ends(config, process, within_seconds=60) != 0
    assert "add --resume to go on" in output.read_text()
    launched(SCRIPT, config, "--resume", ranks=2)
    assert_same_outcome(run, two_ranks)


@pytest.mark.timeout(600)
def test_a_killed_run_of_sharded_weights_ends_as_if_it_never_was_and_goes_on_replicated(tmp_path):
    changes = {
        "distributed.strategy": "zero3",
        "sft": None,
        "curriculum": {"kind": "uniform"},
        "reward.function": "coin",
    }
    launched("scripts/train.py", small_run_file(tmp_path / "whole", **changes), ranks=2)
    config, output = small_run_file(tmp_path / "killed", **changes), tmp_path / "output.txt"
    run, expected = (tmp_path / name / "runs" / "small" for name in ("killed", "whole"))
    process = started("scripts/train.py", config, ranks=2, output=output)
    when(lambda: (run / "checkpoints" / "step_000004").is_dir(), process, output)
    os.kill(processes_of(config)[1], signal.SIGKILL)
    ends(config, process, within_seconds=60)
    launched("scripts/train.py", config, "--resume", ranks=2)
    for name in ("policy.safetensors", "optimizer.pt"):
        step = Path("checkpoints", "step_000008", name)
        assert (run / step).read_bytes() == (expected / step).read_bytes(), name
    assert [row.get("reward/mean") for row in read_jsonl(run / "metrics.jsonl")] == [
        row.get("reward/mean") for row in read_jsonl(expected / "metrics.jsonl")
    ]
    more = small_run_file(tmp_path / "killed", **changes, **{"train.steps": 9})
    assert grpo("train", more, "--resume", "distributed.strategy=ddp") == 0
    assert "of 2 ranks (zero3), and goes on with 1 rank (ddp)" in (run / "logs" / "rank_0.log").read_text()


def test_another_number_of_ranks_goes_on_with_the_same_problems_and_says_that_sums_may_differ(tmp_path, two_ranks):
    shutil.copytree(two_ranks.parent, tmp_path / "runs")
    run = tmp_path / "runs" / "small"
    shutil.rmtree(run / "checkpoints" / "step_000008")
    (run / "phases.json").write_text(json.dumps({"sft": True, "profile": True, "train": False}))
    assert grpo("recipe", small_run_file(tmp_path), "--resume") == 0
    said = (run / "logs" / "rank_0.log").read_text()
    assert "the checkpoint is of 2 ranks (ddp), and goes on with 1 rank (ddp)" in said
    found, expected = outcome(run), outcome(two_ranks)
    assert [row["problem_id"] for row in read_jsonl(run / "rollouts" / "step_000008.jsonl")] == [
        row["problem_id"] for row in read_jsonl(two_ranks / "rollouts" / "step_000008.jsonl")
    ]
    assert found["rollouts/step_000007.jsonl"] == expected["rollouts/step_000007.jsonl"]


# --- hangs and deaths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_takes_the_run_down_by_name_and_the_run_resumes(tmp_path, rank):
    config, output = small_run_file(tmp_path, **HANGS), tmp_path / "output.txt"
    run = tmp_path / "runs" / "small"
    process = started(SCRIPT, config, ranks=2, output=output)
    when(lambda: (run / "metrics.jsonl").is_file(), process, output)
    os.kill(processes_of(config)[rank], signal.SIGSTOP)
    assert ends(config, process, within_seconds=LIMIT_SECONDS + 40) != 0
    assert f"rank {rank}" in last_line(run, rank=1 - rank)
    launched(SCRIPT, config, "--resume", ranks=2)


def test_a_killed_rank_is_named_in_the_last_line_of_the_others_log(tmp_path):
    config, output = small_run_file(tmp_path, **HANGS), tmp_path / "output.txt"
    run = tmp_path / "runs" / "small"
    process = started(SCRIPT, config, ranks=2, output=output)
    when(lambda: (run / "metrics.jsonl").is_file(), process, output)
    os.kill(processes_of(config)[1], signal.SIGKILL)
    assert ends(config, process, within_seconds=LIMIT_SECONDS + 40) != 0
    assert "rank 1" in last_line(run, rank=0)


def test_a_reward_that_never_returns_ends_every_rank_with_the_stack_that_it_hangs_in(tmp_path):
    reward = tmp_path / "hangs.py"
    reward.write_text(
        "import os, time\n\ndef hangs_for_ever():\n    time.sleep(10**6)\n\n"
        "def judge(completion, problem):\n    return hangs_for_ever() if os.environ['RANK'] == '1' else 0.0\n"
    )
    config = small_run_file(tmp_path, **HANGS, **{"reward.file": str(reward), "reward.function": "judge"})
    run, output = tmp_path / "runs" / "small", tmp_path / "output.txt"
    process = started(SCRIPT, config, ranks=2, output=output)
    assert ends(config, process, within_seconds=LIMIT_SECONDS + 60) != 0
    assert "hangs_for_ever" in (run / "logs" / "rank_1.log").read_text()
    assert "exitcode  : 75" in output.read_text()
    for rank in (0, 1):
        assert "rank 1" in last_line(run, rank=rank)
        assert "sampling (profile)" in last_line(run, rank=rank)


def test_a_full_disk_on_the_main_rank_is_the_last_word_of_every_log(tmp_path):
    config, output = small_run_file(tmp_path, **{"sft": None}), tmp_path / "output.txt"
    run = tmp_path / "runs" / "small"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").symlink_to("/dev/full")  # every write to it finds no space left
    process = started(SCRIPT, config, ranks=2, output=output)
    assert ends(config, process, within_seconds=LIMIT_SECONDS + 60) != 0
    assert "exitcode  : 9" in output.read_text()
    for rank in (0, 1):
        assert "metrics.jsonl: No space left on device" in last_line(run, rank=rank)
    (run / "metrics.jsonl").unlink()
    launched(SCRIPT, config, "--resume", ranks=2)


# --- GPUs -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_recipe_runs_on_gpus_and_sampler_and_trainer_agree(tmp_path, strategy, dtype):
    changes = {"run.device": "cuda", "model.dtype": dtype, "distributed.strategy": strategy}
    launched(
        SCRIPT,
        small_run_file(tmp_path, **changes),
        ranks=min(2, torch.cuda.device_count()),
        accelerator="cuda",
    )
    rows = read_jsonl(tmp_path / "runs" / "small" / "metrics.jsonl")
    assert len(rows) == 8
    assert all(row["policy/sampler_logprob_gap_max"] < 0.2 for row in rows if "policy/sampler_logprob_gap_max" in row)
