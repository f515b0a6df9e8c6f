"""Kills, signals, torn files, full disks: a run that went through any of them ends as one that did not, bit for bit."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import DiskError, Interrupted
from grpo.rollout import Rollouts
from grpo.tracking.console import Console
from tests.runs import assert_same_outcome, grpo, read_jsonl, shard_lines, small_run_file

ROOT = Path(__file__).resolve().parents[1]
ADAPTIVE = {
    "temperature": {
        "kind": "adaptive",
        "grid": [0.8, 1.2],
        "window_steps": 4,
        "cooldown_steps": 3,
        "guard": 1.0,  # every temperature is admissible, so a decision changes what is sampled afterwards
        "guard_kind": "absolute",
        "max_standard_error": 1.0,
        "rollouts_per_problem": 2,
    },
    "reward.function": "judge_from_100",
    "reward.success_threshold": 101.0,
    "sft.gate_pass_at_1": 0.05,
    "sft.gate_every_steps": 5,
    "sft.max_steps": 40,
    "train.steps": 10,
}


# --- kills of a process of its own ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """SIGKILL once `when` holds of the run's folder, after a random part of `within_seconds`."""

    name: str
    when: Callable[[Path], bool]
    within_seconds: float = 0.0


def phase_began(phase: str) -> Callable[[Path], bool]:
    def began(run: Path) -> bool:
        path = run / "phases.json"
        return path.is_file() and phase in json.loads(path.read_text() or "{}")

    return began


def has_lines(name: str, number: int) -> Callable[[Path], bool]:
    return lambda run: (run / name).is_file() and (run / name).read_bytes().count(b"\n") >= number


def writes(name: str) -> Callable[[Path], bool]:
    # Or has just written: the moment may be shorter than this process sleeps on a busy machine.
    return lambda run: any((run / "checkpoints" / path).is_dir() for path in (f".{name}.tmp", name))


def starts(config: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """The recipe in a process of its own; what it says goes to a file beside the config."""
    command = [sys.executable, "-m", "grpo.cli", "recipe", str(config), *arguments]
    with (config.parent / "output.txt").open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def killed(config: Path, kill: Kill, *, rng: random.Random, resume: bool) -> bool:
    """Start or resume the recipe, and kill it; False when it was over before the moment came."""
    run = config.parent / "runs" / "small"
    process = starts(config, *(["--resume"] if resume else []))
    try:
        while process.poll() is None and not kill.when(run):
            time.sleep(0.0005)
        time.sleep(rng.random() * kill.within_seconds)
    finally:
        process.kill()
    hit = process.wait() == -signal.SIGKILL
    phases = (run / "phases.json").read_text() if (run / "phases.json").is_file() else "none"
    steps = len(read_lines(run / "metrics.jsonl"))
    print(f"{'killed' if hit else 'too late'}: {kill.name}; {steps} steps logged; phases {phases}")
    return hit


def read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def run_with_kills(folder: Path, kills: list[Kill], changes: dict[str, Any], *, seed: int) -> tuple[Path, list[bool]]:
    """A run that was killed at each of `kills` and resumed after each; its folder, and which kills hit."""
    config = small_run_file(folder, **changes)
    rng = random.Random(seed)
    hits = [killed(config, kill, rng=rng, resume=number > 0) for number, kill in enumerate(kills)]
    assert starts(config, "--resume").wait() == 0, (folder / "output.txt").read_text()
    return folder / "runs" / "small", hits


def run_without_kills(folder: Path, changes: dict[str, Any]) -> Path:
    assert grpo("recipe", small_run_file(folder, **changes)) == 0
    return folder / "runs" / "small"


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_and_in_one_ends_as_if_it_never_was(tmp_path, finished):
    kills = [
        Kill("after the third step", has_lines("metrics.jsonl", 3)),
        Kill("while the checkpoint of step 6 is written", writes("step_000006")),
    ]
    run, hits = run_with_kills(tmp_path, kills, {}, seed=0)
    assert hits == [True, True]
    assert_same_outcome(run, finished)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("changes", [{}, ADAPTIVE], ids=["plain", "adaptive-and-gate"])
def test_a_run_killed_in_every_phase_ends_as_if_it_never_was(tmp_path, changes):
    kills = [
        Kill("start", lambda run: (run / ".lock").is_file()),
        Kill("cold start, its imports", phase_began("sft"), within_seconds=1),
        Kill("cold start, its steps", phase_began("sft"), within_seconds=6),
        Kill("checkpoint of the cold start", writes("cold_start")),
        Kill("profile, first wave", lambda run: len(shard_lines(run)) >= 20),
        Kill("profile, later", lambda run: len(shard_lines(run)) >= 60),
        Kill("first step", phase_began("train"), within_seconds=0.1),
        Kill("sampling or update", has_lines("metrics.jsonl", 1), within_seconds=0.1),
        Kill("checkpoint of step 2", writes("step_000002")),
        Kill("sampling or update", has_lines("metrics.jsonl", 3), within_seconds=0.1),
        Kill("best checkpoint in an evaluation", writes("best_000004")),
        Kill("sampling or update", has_lines("metrics.jsonl", 5), within_seconds=0.1),
        Kill("checkpoint of step 8", writes("step_000008")),
        Kill("final evaluation", phase_began("eval"), within_seconds=0.1),
        Kill("report", phase_began("report")),
    ]
    if changes:  # what differs is the gate, the window of rewards and the decisions: every other moment meets them all
        kills = kills[2::2]
    expected = run_without_kills(tmp_path / "whole", changes)
    run, hits = run_with_kills(tmp_path / "killed", kills, changes, seed=1)
    assert sum(hits) > len(kills) / 2
    assert_same_outcome(run, expected)
    if changes:
        decisions = [e["decision"] for e in read_jsonl(run / "events.jsonl") if e["event"] == "temperature"]
        assert [d["chosen"] for d in decisions if d["chosen"] != d["current"]]


def grown(lines_of: Callable[[Path], list[bytes]]) -> Callable[[Path], bool]:
    """Whether a file has more lines than when this was asked first: a resume cuts it to its checkpoint at first."""
    least: list[int] = []

    def longer(run: Path) -> bool:
        number = len(lines_of(run))
        least.append(min([number, *least[-1:]]))
        return number > least[-1]

    return longer


def either(*moments: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda run: any(moment(run) for moment in moments)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_twenty_times_at_random_moments_ends_as_if_it_never_was(tmp_path):
    changes = {"train.steps": 60}
    expected = run_without_kills(tmp_path / "whole", changes)
    config = small_run_file(tmp_path / "killed", **changes)
    run, rng = tmp_path / "killed" / "runs" / "small", random.Random(2)
    early = [
        Kill("start", lambda run: (run / ".lock").is_file(), within_seconds=1),
        *(Kill("cold start", phase_began("sft"), within_seconds=5) for _ in range(2)),
        *(Kill("profile", either(grown(shard_lines), phase_began("train")), within_seconds=0.2) for _ in range(3)),
    ]
    num_hits, num_started = 0, 0
    while num_hits < 20:
        in_training = Kill(
            "training", grown(lambda run: read_lines(run / "metrics.jsonl")), within_seconds=0.3 * rng.random()
        )
        kill = early[num_started] if num_started < len(early) else in_training
        num_hits += killed(config, kill, rng=rng, resume=num_started > 0)
        num_started += 1
        assert num_started < 40, "the run ended before it was killed twenty times"
    assert starts(config, "--resume").wait() == 0, (tmp_path / "killed" / "output.txt").read_text()
    assert_same_outcome(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signalled_process_exits_130_and_says_how_to_go_on(tmp_path, finished, number):
    config = small_run_file(tmp_path)
    run = tmp_path / "runs" / "small"
    process = starts(config)
    while process.poll() is None and not has_lines("metrics.jsonl", 1)(run):
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait() == 130
    assert "add --resume to go on" in (tmp_path / "output.txt").read_text()
    assert starts(config, "--resume").wait() == 0
    assert_same_outcome(run, finished)


# --- the same in this process, from a run that was stopped in the middle ---------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    return run_without_kills(tmp_path_factory.mktemp("finished"), {})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder, config beside it, of a run that a SIGTERM ended after its fifth step."""
    folder = tmp_path_factory.mktemp("stopped")
    with signalled(signal.SIGTERM, during="step", when=lambda metrics: metrics["step"] == 5):
        assert grpo("recipe", small_run_file(folder)) == Interrupted.exit_code
    return folder


@contextmanager
def signalled(number: signal.Signals, *, during: str, when: Callable[[Any], bool], times: int = 1) -> Iterator[None]:
    """Send this process a signal while the run tells its console so: at the call of `during` whose argument fits."""
    original = getattr(Console, during)
    sent: list[int] = []

    def tells(self: Console, told: Any, **options: Any) -> None:
        original(self, told, **options)
        if when(told) and not sent:
            sent.append(number)
            for _ in range(times):
                os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Console, during, tells)
        yield
    assert sent


@pytest.fixture
def copied(stopped, tmp_path) -> Path:
    """A copy of the stopped run, to be damaged."""
    shutil.copytree(stopped / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "small"


def resumed(copied: Path, *arguments: str) -> int:
    return grpo("recipe", small_run_file(copied.parents[1]), "--resume", *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_says_how_to_go_on(tmp_path, finished, capsys, number):
    run = tmp_path / "runs" / "small"
    with signalled(number, during="step", when=lambda metrics: metrics["step"] == 5):
        assert grpo("recipe", small_run_file(tmp_path)) == 130
    assert (run / "checkpoints" / "step_000005").is_dir()
    assert "stopped after step 5" in (said := capsys.readouterr().err)
    assert "add --resume to go on" in said
    assert resumed(run) == 0
    assert_same_outcome(run, finished)


def test_the_log_tells_how_long_each_checkpoint_held_up_the_loop(finished):
    log = (finished / "logs" / "rank_0.log").read_text()
    told = re.findall(r"checkpoint: step_0000(\d\d); the loop stood still for \d+\.\d+ s, written in \d+\.\d+ s", log)
    assert told == ["02", "04", "06", "08"]


def test_a_second_signal_stops_at_once_and_loses_no_more_than_a_kill(tmp_path, finished, capsys):
    run = tmp_path / "runs" / "small"
    with signalled(signal.SIGINT, during="step", when=lambda metrics: metrics["step"] == 5, times=2):
        assert grpo("recipe", small_run_file(tmp_path)) == 130
    assert "stopped at once" in capsys.readouterr().err
    assert not (run / "checkpoints" / "step_000005").exists()
    assert resumed(run) == 0
    assert_same_outcome(run, finished)


def test_a_step_that_outlasts_the_grace_is_given_up_and_saved_as_it_began(tmp_path, finished, capsys, monkeypatch):
    original = Rollouts._share

    def interrupted(self: Rollouts, *arguments: Any, phase: str, step: int, **options: Any) -> Any:
        if (phase, step) == ("train", 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, phase=phase, step=step, **options)

    run = tmp_path / "runs" / "small"
    with monkeypatch.context() as patch:
        patch.setattr(Rollouts, "_share", interrupted)
        assert grpo("recipe", small_run_file(tmp_path), "checkpoint.grace_seconds=0") == 130
    assert "stopped in the middle of step 6, which --resume begins again" in capsys.readouterr().err
    assert (run / "checkpoints" / "step_000005").is_dir()
    assert not (run / "rollouts" / "step_000006.jsonl").exists()
    assert resumed(run) == 0
    assert_same_outcome(run, finished)


def test_a_signal_in_the_last_step_stops_before_the_evaluation(tmp_path, finished, capsys):
    run = tmp_path / "runs" / "small"
    with signalled(signal.SIGTERM, during="step", when=lambda metrics: metrics["step"] == 8):
        assert grpo("recipe", small_run_file(tmp_path)) == 130
    assert "stopped before the phase eval: add --resume" in capsys.readouterr().err
    assert not (run / "evals").exists()
    assert resumed(run) == 0
    assert_same_outcome(run, finished)


def test_a_signal_while_profiling_keeps_every_verdict(tmp_path, finished, capsys):
    run = tmp_path / "runs" / "small"
    with signalled(signal.SIGTERM, during="profile_progress", when=lambda progress: progress.num_rollouts > 0):
        assert grpo("recipe", small_run_file(tmp_path)) == 130
    assert "stopped while profiling" in capsys.readouterr().err
    before = shard_lines(run)
    assert resumed(run) == 0
    assert shard_lines(run)[: len(before)] == before
    assert_same_outcome(run, finished)


def test_an_unfinished_cold_start_begins_again_from_its_seed(tmp_path, finished, capsys):
    run = tmp_path / "runs" / "small"
    with signalled(signal.SIGTERM, during="say", when=lambda line: line.startswith("cold start")):
        assert grpo("recipe", small_run_file(tmp_path)) == 130
    assert "begins again from its seed" in capsys.readouterr().err
    assert not (run / "checkpoints").exists()
    assert resumed(run) == 0
    assert_same_outcome(run, finished)


@pytest.mark.parametrize("damage", ["altered", "cut", "missing", "no manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(copied, finished, capsys, damage):
    newest = copied / "checkpoints" / "step_000005"
    weights = newest / "policy.safetensors"
    data = weights.read_bytes()
    if damage == "altered":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        (newest / "optimizer.pt").unlink()
    else:
        (newest / "manifest.json").unlink()
    assert resumed(copied) == 0
    said = capsys.readouterr().out
    assert str(newest) in said
    assert "going on from" in said.split(str(newest))[-1]
    assert "step_000004" in said
    assert_same_outcome(copied, finished)


def test_with_every_checkpoint_damaged_nothing_is_overwritten_unless_asked(copied, capsys):
    metrics = (copied / "metrics.jsonl").read_bytes()
    for path in (copied / "checkpoints").glob("step_*"):
        (path / "state.json").write_text("{}")
    assert resumed(copied) == 10
    assert "--fresh" in capsys.readouterr().err
    assert (copied / "metrics.jsonl").read_bytes() == metrics


def test_a_stale_temporary_folder_is_ignored_and_cleaned(copied, finished):
    for name in (".step_000006.tmp", ".step_000003.tmp", ".best_000001.tmp"):
        stale = copied / "checkpoints" / name
        stale.mkdir()
        (stale / "policy.safetensors").write_bytes(b"torn")
    assert resumed(copied) == 0
    assert_same_outcome(copied, finished)


def test_fresh_deletes_what_was_there(copied, finished, capsys):
    config = small_run_file(copied.parents[1])
    assert grpo("recipe", config) == 4
    assert "--resume" in (said := capsys.readouterr().err)
    assert "--fresh" in said
    (copied / "rollouts" / "step_000099.jsonl").write_text("{}")
    (copied / "checkpoints" / "best_000099").mkdir()
    assert grpo("recipe", config, "--fresh") == 0
    assert_same_outcome(copied, finished)


def test_what_a_message_asks_to_lower_may_differ_when_the_run_goes_on(copied, finished):
    lower = ["sampling.max_rows=16", "sampling.prefill_tokens=64", "train.tokens_per_micro_batch=32"]
    lower += ["model.activation_checkpointing=true", "sft.micro_batch_size=2", "reward.max_error_fraction=0.5"]
    assert resumed(copied, *lower) == 0
    found, expected = (read_jsonl(run / "metrics.jsonl")[-1] for run in (copied, finished))
    assert found["optim/grad_norm"] == pytest.approx(expected["optim/grad_norm"], rel=1e-3)


def test_another_config_is_refused_by_the_field_that_differs(copied, capsys):
    assert resumed(copied, "optim.learning_rate=1.0") == 4
    assert "optim.learning_rate" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_until_its_owner_is_gone(copied, finished, capsys):
    code = "import fcntl, os, sys, time; f = os.open(sys.argv[1], os.O_RDWR); fcntl.flock(f, fcntl.LOCK_EX); "
    code += (
        "os.ftruncate(f, 0); os.pwrite(f, str(os.getpid()).encode(), 0); print('locked', flush=True); time.sleep(99)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(copied / ".lock")], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"locked\n"
    assert resumed(copied) == 4
    assert f"in use by process {owner.pid}" in capsys.readouterr().err
    owner.kill()
    owner.communicate()
    assert resumed(copied) == 0


# --- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, *, but_bytes: int) -> Path:
    """Leave `but_bytes` free, in one file to be deleted."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - but_bytes)))
    return filler


@pytest.mark.parametrize(
    ("free_bytes", "named"),
    [
        (0, "fingerprint.json"),
        (20_000, "rollouts/step_000006.jsonl"),
        (150_000, "checkpoints/step_000006"),  # the weights do not fit
        (300_000, "checkpoints/step_000006"),  # the optimizer's moments do not fit
    ],
)
def test_a_disk_that_fills_up_ends_the_run_by_name_and_loses_nothing(
    small_disk, stopped, finished, tmp_path, capsys, free_bytes, named
):
    shutil.copytree(stopped / "runs", small_disk / "runs")
    run = small_disk / "runs" / "small"
    config = small_run_file(tmp_path, **{"run.folder": str(small_disk / "runs")})
    filler = fill(small_disk, but_bytes=free_bytes)
    assert grpo("recipe", config, "--resume") == DiskError.exit_code
    said = capsys.readouterr().err
    assert f"{run}/{named}: No space left on device" in said
    assert "make room" in said
    assert "--resume" in said
    filler.unlink()
    assert grpo("recipe", config, "--resume") == 0
    assert_same_outcome(run, finished)


def test_metrics_that_find_no_room_end_the_run_by_name_and_lose_nothing(copied, finished, capsys):
    metrics, aside = copied / "metrics.jsonl", copied / "metrics.aside"
    metrics.rename(aside)
    metrics.symlink_to("/dev/full")  # every write to it finds no space left
    assert resumed(copied) == DiskError.exit_code
    assert f"{metrics}: No space left on device" in capsys.readouterr().err
    aside.rename(metrics)
    assert resumed(copied) == 0
    assert_same_outcome(copied, finished)
