"""Ranks that hang, are stopped, are killed or fail: every rank ends in time, and its log ends with the first cause."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import pytest

from grpo.errors import DataError, DiskError, StalledError
from grpo.heartbeat import NO_RANK, Beat, Heard
from grpo.watchdog import Situation, Watchdog, found

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests" / "workers" / "watchdog_worker.py"
SECONDS = 3.0
"""watchdog.seconds of the processes below."""
MARGIN_SECONDS = 40.0
"""For imports on a busy machine, the grace of the main thread and the end; a run that hangs does so for ever."""


# --- what is found wrong, from what a rank knows ----------------------------------------------------------------------


def beat(**changes: object) -> Beat:
    fields: dict[str, object] = {
        **{"number": 7, "phase": "reward", "step": 3, "idle_seconds": 0.5, "waits": False, "state": "runs"},
        **{"knows_failure": False, "machine": "", "pid": 1, "started": 1},
    }
    return Beat(**(fields | changes))  # type: ignore[arg-type]


FINE = Situation(
    rank=0,
    size=2,
    where="phase 'update', step 3",
    idle_seconds=1.0,
    waits=False,
    exchange_age=0.1,
    lost=None,
    store_holder="rank 0 on somewhere",
    holder_rank=0,
    heard={1: Heard(beat(), since=0.0)},
    silence={1: 0.2},
)


def cause(now: Situation) -> str | None:
    failure = found(now, seconds=10.0, silent_seconds=2.0)
    return None if failure is None else failure.text


def test_nothing_is_wrong_while_everyone_gets_something_done():
    assert cause(FINE) is None


def test_a_rank_without_progress_names_itself_its_phase_and_where_the_others_are():
    text = cause(replace(FINE, idle_seconds=11.0))
    assert text is not None
    assert text.startswith("rank 0 made no progress for 11 s (watchdog.seconds = 10) in phase 'update', step 3")
    assert text.endswith("rank 1 is in phase 'reward', step 3")


def test_a_rank_that_waits_is_no_hang_while_another_gets_something_done():
    waits = replace(FINE, idle_seconds=100.0, waits=True)
    assert cause(waits) is None
    stuck = replace(waits, heard={1: Heard(beat(idle_seconds=50.0), since=0.0)})
    assert str(cause(stuck)).startswith("rank 0 made no progress for 100 s")


def test_a_rank_that_waits_leaves_the_first_word_to_the_one_that_hangs():
    now = replace(FINE, waits=True, heard={1: Heard(beat(idle_seconds=50.0), since=0.0)})
    assert cause(replace(now, idle_seconds=11.0)) is None
    assert cause(replace(now, idle_seconds=12.5)) is not None


def test_a_silent_rank_is_named_after_the_limit_and_earlier_where_this_one_waits_for_it():
    text = (
        "rank 0 waits in phase 'update', step 3 for rank 1, which was last heard of {} s ago in phase 'reward', step 3"
    )
    assert cause(replace(FINE, silence={1: 9.0})) is None
    assert cause(replace(FINE, silence={1: 11.0})) == text.format(11)
    assert cause(replace(FINE, silence={1: 9.0}, idle_seconds=11.0)) == text.format(9)


def test_a_rank_that_has_left_is_neither_silent_nor_gone():
    left = {1: Heard(beat(state="left"), since=0.0)}
    assert cause(replace(FINE, heard=left, silence={1: 100.0})) is None


def test_a_store_that_is_silent_or_lost_is_its_holders_fault():
    silent = str(cause(replace(FINE, rank=1, exchange_age=11.0)))
    assert silent == "rank 0 on somewhere, which holds the store where the ranks meet, has not answered for 11 s"
    lost = replace(FINE, rank=1, exchange_age=1.5, lost="Broken pipe", holder_rank=NO_RANK)
    failure = found(lost, seconds=10.0, silent_seconds=2.0)
    assert failure is not None
    assert failure.text.endswith("is gone (Broken pipe)")
    assert failure.rank == NO_RANK


def test_a_store_that_is_lost_when_all_work_is_done_is_nobodys_fault():
    done = {1: Heard(beat(state="done"), since=0.0)}
    assert cause(replace(FINE, exchange_age=5.0, lost="Broken pipe", heard=done)) is None


def test_a_rank_that_never_came_is_named():
    text = cause(replace(FINE, heard={}, silence={}, idle_seconds=11.0))
    assert text == "rank 1 was never heard of; rank 0 waits for it in phase 'update', step 3"


# --- one process ------------------------------------------------------------------------------------------------------


def test_progress_is_cheap_enough_to_be_told_of_each_token():
    watchdog = Watchdog(rank=0, size=1, seconds=60.0)
    fastest = min(_seconds_of(watchdog, calls=1000) for _ in range(20))
    assert fastest / 1000 < 5e-6


def _seconds_of(watchdog: Watchdog, *, calls: int) -> float:
    start = monotonic()
    for _ in range(calls):
        watchdog.progress("sampling")
    return monotonic() - start


def test_an_error_of_a_lone_rank_is_kept_and_ends_its_log(tmp_path):
    watchdog = Watchdog(rank=0, size=1, seconds=60.0)
    watchdog.log_to(tmp_path / "logs" / "rank_0.log")
    with pytest.raises(DataError), watchdog:
        raise DataError("train.jsonl: no rows")
    assert last_line(tmp_path / "logs" / "rank_0.log") == "DataError: train.jsonl: no rows"


# --- real processes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """A run of several processes that has ended."""

    exit_codes: tuple[int, ...]
    seconds: float
    logs: Path

    def log(self, rank: int) -> str:
        path = self.logs / f"rank_{rank}.log"
        return path.read_text() if path.exists() else ""

    def last_line(self, rank: int) -> str:
        return last_line(self.logs / f"rank_{rank}.log")

    def said(self, rank: int) -> str:
        return (self.logs / f"{rank}.err").read_text()


def last_line(path: Path) -> str:
    return path.read_text().splitlines()[-1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def started(logs: Path, arguments: list[str], *, name: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | dict(variables)
    with (logs / f"{name}.err").open("wb") as errors:
        return subprocess.Popen([sys.executable, *arguments], env=environment, cwd=ROOT, stdout=errors, stderr=errors)


def run(logs: Path, *, act: str, at_rank: int, size: int = 2, slow_seconds: float = 0.0) -> Ended:
    """Start the ranks by hand, as the deepspeed launcher does: rank 0 holds the store. Their exit codes are seen."""
    start = monotonic()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    processes = [
        started(
            logs,
            [str(WORKER), *_arguments(logs, act=act, at_rank=at_rank, slow_seconds=slow_seconds)],
            name=str(rank),
            variables={} if size == 1 else address | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]
    return Ended(exit_codes=_wait(processes, start=start), seconds=monotonic() - start, logs=logs)


def torchrun(logs: Path, *, act: str, at_rank: int, slow_seconds: float = 0.0) -> Ended:
    """Start two ranks under torchrun, whose agent holds the store. The one exit code is its own."""
    start = monotonic()
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), str(WORKER)]
    arguments = launcher + _arguments(logs, act=act, at_rank=at_rank, slow_seconds=slow_seconds)
    process = started(logs, arguments, name="torchrun", variables={})
    return Ended(exit_codes=_wait([process], start=start), seconds=monotonic() - start, logs=logs)


def _arguments(logs: Path, *, act: str, at_rank: int, slow_seconds: float) -> list[str]:
    numbers = {"--seconds": SECONDS, "--at-rank": at_rank, "--slow-seconds": slow_seconds}
    return [str(logs), f"--act={act}", *(f"{name}={value}" for name, value in numbers.items())]


def _wait(processes: list[subprocess.Popen[bytes]], *, start: float) -> tuple[int, ...]:
    try:
        return tuple(process.wait(start + SECONDS + MARGIN_SECONDS - monotonic()) for process in processes)
    finally:
        for process in processes:
            process.kill()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_reward_that_never_returns_ends_the_run_with_its_name_and_its_stack(tmp_path):
    ended = run(tmp_path, act="hang", at_rank=0, size=1)
    assert ended.exit_codes == (StalledError.exit_code,)
    assert "in never_returns" in ended.log(0)
    assert "in never_returns" in ended.said(0)
    line = r"grpo: rank 0 made no progress for \d s \(watchdog.seconds = 3\) in phase 'reward', step 3; --resume .*"
    assert re.fullmatch(line, ended.last_line(0))


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_with_its_name(tmp_path):
    ended = run(tmp_path, act="hang", at_rank=1)
    assert ended.exit_codes == (StalledError.exit_code,) * 2
    assert "in never_returns" in ended.log(1)
    assert "all_gather_object" in ended.log(0)  # the stacks of the rank that waited
    for rank in range(2):
        assert re.search("rank 1 made no progress for . s .* in phase 'reward', step 3", ended.last_line(rank))


@pytest.mark.slow
@pytest.mark.parametrize("at_rank", [0, 1])
def test_a_stopped_rank_is_named_and_killed(tmp_path, at_rank):
    ended = run(tmp_path, act="stop", at_rank=at_rank)
    assert ended.exit_codes[1 - at_rank] == StalledError.exit_code
    assert ended.exit_codes[at_rank] == -9
    assert re.search(f"rank {at_rank}.* last heard of .*in phase 'reward', step 3", ended.last_line(1 - at_rank))
    assert "all_gather_object" in ended.log(1 - at_rank)


@pytest.mark.parametrize("at_rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_is_named_by_the_others(tmp_path, at_rank):
    ended = run(tmp_path, act="die", at_rank=at_rank)
    assert ended.exit_codes[1 - at_rank] == StalledError.exit_code
    assert re.search(f"rank {at_rank} is gone: .* in phase 'reward', step 3", ended.last_line(1 - at_rank))


@pytest.mark.slow
@pytest.mark.parametrize("at_rank", [0, 1])
def test_an_error_of_one_rank_is_the_last_line_and_the_exit_code_of_every_other(tmp_path, at_rank):
    ended = run(tmp_path, act="disk", at_rank=at_rank)
    assert ended.exit_codes == (DiskError.exit_code,) * 2
    for rank in range(2):
        assert f"rank {at_rank} failed first: DiskError: no space left" in ended.last_line(rank)
    assert "--resume goes on" in ended.last_line(1 - at_rank)


@pytest.mark.slow
def test_a_bug_of_one_rank_keeps_its_traceback_and_ends_the_others_as_stalled(tmp_path):
    ended = run(tmp_path, act="bug", at_rank=1)
    assert ended.exit_codes == (StalledError.exit_code, 1)
    assert "in have_a_bug" in ended.log(1)
    for rank in range(2):
        assert "rank 1 failed first: KeyError: 'lost'" in ended.last_line(rank)


@pytest.mark.slow
@pytest.mark.parametrize("at_rank", [0, 1])
def test_a_slow_rank_keeps_nobody_from_living_on_and_all_end_well(tmp_path, at_rank):
    ended = run(tmp_path, act="nothing", at_rank=at_rank, slow_seconds=2 * SECONDS)
    assert ended.exit_codes == (0, 0)
    assert [ended.log(rank) for rank in range(2)] == ["", ""]
    assert not any("grpo" in ended.said(rank) for rank in range(2))


@pytest.mark.slow
def test_torchrun_ends_well_and_nothing_is_said(tmp_path):
    ended = torchrun(tmp_path, act="nothing", at_rank=1)
    assert ended.exit_codes == (0,)
    assert [ended.log(rank) for rank in range(2)] == ["", ""]


@pytest.mark.parametrize(
    ("act", "line"),
    [
        ("stop", "rank 0 waits in .* for rank 1, which was last heard of . s ago in phase 'reward', step 3"),
        ("die", "rank 1 is gone: .* in phase 'reward', step 3"),
        ("disk", "rank 1 failed first: DiskError: no space left"),
    ],
)
@pytest.mark.slow
def test_under_torchrun_the_other_rank_ends_with_the_first_cause(tmp_path, act, line):
    ended = torchrun(tmp_path, act=act, at_rank=1)
    assert ended.exit_codes != (0,)
    assert re.search(line, ended.last_line(0))
    assert is_gone(int((tmp_path / "1.pid").read_text()))


@pytest.mark.slow
def test_ranks_end_when_torchrun_itself_is_killed(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), str(WORKER)]
    arguments = launcher + _arguments(tmp_path, act="nothing", at_rank=1, slow_seconds=MARGIN_SECONDS)
    process = started(tmp_path, arguments, name="torchrun", variables={})
    logs = [tmp_path / f"rank_{rank}.log" for rank in range(2)]
    end = monotonic() + SECONDS + MARGIN_SECONDS
    try:
        while not all(log.exists() for log in logs) and monotonic() < end:
            time.sleep(0.1)
    finally:
        process.kill()
    process.wait()
    pids = [int((tmp_path / f"{rank}.pid").read_text()) for rank in range(2)]
    while not all(is_gone(pid) for pid in pids) and monotonic() < end:
        time.sleep(0.1)
    assert all(is_gone(pid) for pid in pids)
    for log in logs:
        assert "torchrun's agent on" in last_line(log)
