"""Calls that hang, die, eat memory or cannot travel cost themselves alone; nothing is lost, nothing mixed up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rewards import Pool, Reward, RewardSpec

REPOSITORY = Path(__file__).resolve().parent.parent

HOSTILE = """
import ctypes, os, re, signal, subprocess, sys, time
from rewards import Reward

def echo(completion, problem):
    return float(completion)

def misbehave(completion, problem):
    kind, number = completion.split(":")
    if kind == "spin":
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
    if kind == "regex":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if kind == "power":
        9**9**9
    if kind == "sleep":
        time.sleep(3600)
    if kind == "exit":
        os._exit(7)
    if kind == "sys_exit":
        sys.exit(3)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "memory":
        return len([bytearray(1 << 20) for _ in range(1 << 20)])
    if kind == "print":
        print("x" * 100_000)
        os.write(1, b"y" * 1000)
        return float(sys.stdin.read() == "")
    if kind == "fork":
        os.fork()
        return float(number)
    if kind == "orphan":
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(1)
    if kind == "close":
        os.closerange(3, 20)
    if kind == "detail":
        return Reward.scored(1.0, detail=None)
    if kind in ("parts", "forged"):
        reward = Reward.scored(1.0, parts={"x": 1.0})
        if kind == "parts":
            reward.parts["x"] = float("nan")
        object.__setattr__(reward, "parts", {"x": float("nan")})
        return reward
    return float(number)

def parent(completion, problem):
    return os.getppid()

def child(completion, problem):
    return subprocess.Popen(["sleep", "600"]).pid

def leave_group(completion, problem):
    os.setpgid(0, os.getpgid(os.getppid()))
    time.sleep(60)

def real_time_signal(completion, problem):
    os.kill(os.getpid(), 40)
    time.sleep(60)

def count_pipes(completion, problem):
    listed = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout
    own = [f"/proc/self/fd/{number}" for number in range(64) if os.path.lexists(f"/proc/self/fd/{number}")]
    mine = {os.readlink(path) for path in own}
    pipes = {link for link in mine if link.startswith(("pipe:", "socket:"))} - {os.readlink("/proc/self/fd/2")}
    return float(sum(link in listed for link in pipes))

def slow_build(completion, problem):
    return 1.0

def pid(completion, problem):
    return float(os.getpid())
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "hostile.py"
    path.write_text(HOSTILE)
    return str(path)


def spec_of(file: str, function: str) -> RewardSpec:
    return RewardSpec(file=file, function=function)


def test_results_come_back_in_order(hostile):
    calls = [(spec_of(hostile, "echo"), str(number), {}) for number in range(3000)]
    with Pool(3) as pool:
        assert [reward.value for reward in pool.score_all(calls)] == [float(number) for number in range(3000)]


@pytest.mark.slow
def test_ten_thousand_calls_with_a_hang_in_twenty_lose_and_mix_up_nothing(hostile):
    spec = spec_of(hostile, "misbehave")
    hangs = ["spin", "sleep", "regex", "power"]
    kinds = [hangs[number // 20 % 4] if number % 20 == 7 else "fine" for number in range(10_000)]
    with Pool(8, timeout_seconds=0.2) as pool:
        rewards = pool.score_all([(spec, f"{kind}:{number}", {}) for number, kind in enumerate(kinds)])
    hung = [reward for reward, kind in zip(rewards, kinds, strict=True) if kind != "fine"]
    fine = {number: rewards[number] for number, kind in enumerate(kinds) if kind == "fine"}
    assert len(hung) == 500
    assert all(reward.status == "timeout" for reward in hung)
    # The limit is of the clock on the wall: beside eight processes that spin, a call may not get a core for 0.2 s.
    late = [number for number, reward in fine.items() if reward.status == "timeout"]
    assert len(late) <= len(fine) / 500
    assert all(reward.value == number for number, reward in fine.items() if number not in late)


@pytest.mark.parametrize("kind", ["spin", "regex", "power", "sleep"])
def test_a_call_that_cannot_be_interrupted_is_killed_at_its_limit_and_its_neighbours_are_not(hostile, kind):
    spec = spec_of(hostile, "misbehave")
    with Pool(1, timeout_seconds=0.3) as pool:
        pool.score_all([(spec, "fine:0", {})] * 200)
        start = time.monotonic()
        before, hung, after = pool.score_all([(spec, f"{name}:1", {}) for name in ("fine", kind, "fine")])
        seconds = time.monotonic() - start
    assert (before.value, after.value) == (1.0, 1.0)
    assert hung.status == "timeout"
    assert "more than 0.3 s" in hung.detail
    assert 0.3 <= seconds < 5.0


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("exit", "exit code 7"),
        ("segfault", "SIGSEGV"),
        ("kill", "SIGKILL"),
        ("orphan", "exit code 1"),
        ("close", "exit code 1"),
    ],
)
def test_a_worker_that_dies_is_the_error_of_its_own_call_alone(hostile, kind, told):
    spec = spec_of(hostile, "misbehave")
    with Pool(1) as pool:
        pool.score_all([(spec, "fine:0", {})] * 200)
        rewards = pool.score_all([(spec, f"{name}:{n}", {}) for n, name in enumerate(["fine", kind, "fine", "fine"])])
    assert [reward.value for reward in rewards] == [0.0, None, 2.0, 3.0]
    assert rewards[1].status == "error"
    assert told in rewards[1].detail


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("detail", "Reward.detail = None: must be a text"),
        ("parts", "does not support item assignment"),
        ("forged", "Reward.parts['x'] = nan: a part is a name with a finite number"),
    ],
)
def test_an_answer_that_is_no_reward_is_the_error_of_its_own_call_and_nobody_waits_for_ever(
    hostile, kind, told, workers
):
    spec = spec_of(hostile, "misbehave")
    with Pool(workers) as pool:
        pool.score_all([(spec, "fine:0", {})] * 200)
        names = ["fine", kind, "fine", kind, "fine", "fine"]
        futures = [pool.submit(spec, f"{name}:{n}", {}) for n, name in enumerate(names)]
        rewards = [future.result(timeout=30) for future in futures]
    assert [reward.value for reward in rewards] == [0.0, None, 2.0, None, 4.0, 5.0]
    assert all(rewards[n].status == "error" and told in rewards[n].detail for n in (1, 3))


def test_a_worker_that_cannot_be_made_at_all_is_the_error_of_the_calls_that_wait(hostile, monkeypatch):
    def unmade(nursery: object, **options: int) -> None:
        raise RuntimeError("no more threads")

    monkeypatch.setattr("rewards.pool.WorkerProcess", unmade)
    with Pool(1) as pool:
        futures = [pool.submit(spec_of(hostile, "echo"), "1", {}) for _ in range(3)]
        rewards = [future.result(timeout=30) for future in futures]
    assert all("could not start: no more threads" in reward.detail for reward in rewards)


def test_sys_exit_in_a_verifier_is_an_error_and_spares_the_worker(hostile):
    with Pool(1) as pool:
        first = pool.submit(spec_of(hostile, "pid"), "", {}).result()
        reward = pool.submit(spec_of(hostile, "misbehave"), "sys_exit:0", {}).result()
        assert pool.submit(spec_of(hostile, "pid"), "", {}).result() == first
    assert reward.status == "error"
    assert "SystemExit" in reward.detail


def test_a_memory_bomb_is_an_error_and_the_next_call_has_its_memory_again(hostile):
    spec = spec_of(hostile, "misbehave")
    with Pool(1, memory_limit_mb=256) as pool:
        rewards = pool.score_all([(spec, "memory:0", {}), (spec, "fine:5", {})])
    assert rewards[0].status == "error"
    assert "MemoryError" in rewards[0].detail
    assert rewards[1].value == 5.0


def test_what_a_verifier_prints_and_reads_does_not_touch_the_protocol(hostile, capfd):
    spec = spec_of(hostile, "misbehave")
    with Pool(1) as pool:
        assert [reward.value for reward in pool.score_all([(spec, "print:1", {}), (spec, "fine:2", {})])] == [1.0, 2.0]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("x") >= 100_000
    assert captured.err.count("y") >= 1000


def test_a_verifier_that_forks_and_returns_twice_is_answered_once(hostile):
    spec = spec_of(hostile, "misbehave")
    with Pool(1) as pool:
        rewards = pool.score_all([(spec, f"{'fork' if n == 3 else 'fine'}:{n}", {}) for n in range(20)])
    assert [reward.value for reward in rewards] == [float(n) for n in range(20)]


def test_a_problem_that_cannot_travel_is_an_error_that_names_its_key(hostile):
    spec = spec_of(hostile, "echo")
    with Pool(1) as pool:
        bad, good = pool.score_all([(spec, "1", {"id": "a", "hook": lambda: 1}), (spec, "2", {"id": "b"})])
    assert bad.status == "error"
    assert "['hook']" in bad.detail
    assert good.value == 2.0


def test_text_with_nul_bytes_and_lone_surrogates_travels_both_ways(tmp_path):
    file = tmp_path / "say.py"
    file.write_text("def say(completion, problem):\n    raise ValueError(completion + problem['answer'])\n")
    with Pool(1) as pool:
        reward = pool.submit(spec_of(str(file), "say"), "a\x00\ud800", {"answer": "b\udfff"}).result()
    assert "a\x00\ud800b\udfff" in reward.detail


def test_building_a_verifier_does_not_count_against_the_limit_of_a_call(tmp_path):
    file = tmp_path / "slow.py"
    file.write_text("import time\ntime.sleep(0.8)\ndef judge(completion, problem):\n    return 1.0\n")
    with Pool(1, timeout_seconds=0.3) as pool:
        assert pool.submit(spec_of(str(file), "judge"), "", {}).result() == Reward.scored(1.0)


def test_a_verifier_whose_building_hangs_is_given_up_once_for_all(tmp_path):
    file = tmp_path / "stuck.py"
    file.write_text("while True:\n    pass\n")
    start = time.monotonic()
    with Pool(1, build_timeout_seconds=0.5) as pool:
        rewards = pool.score_all([(spec_of(str(file), "judge"), "", {})] * 50)
    assert rewards[0].status == "timeout"
    assert "building" in rewards[0].detail
    assert all(reward.status == "error" and "not tried again" in reward.detail for reward in rewards[1:])
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_that_cannot_be_built_is_an_error_of_each_call(workers):
    with Pool(workers) as pool:
        rewards = pool.score_all([(RewardSpec("list_machin"), "", {})] * 3)
    assert all(reward.status == "error" and "did you mean 'list_machine'" in reward.detail for reward in rewards)


def test_without_workers_calls_run_in_this_process(hostile):
    with Pool(0) as pool:
        assert pool.submit(spec_of(hostile, "pid"), "", {}).result().value == os.getpid()


def test_a_big_completion_travels_while_others_are_answered(hostile):
    file = spec_of(hostile, "echo")
    with Pool(2) as pool:
        rewards = pool.score_all([(file, f"{n}.{'0' * 300_000}", {}) for n in range(60)])
    assert [reward.value for reward in rewards] == [float(n) for n in range(60)]


def test_closing_the_pool_ends_running_and_waiting_calls_as_errors(hostile):
    pool = Pool(1, timeout_seconds=60)
    futures = [pool.submit(spec_of(hostile, "misbehave"), "sleep:0", {}) for _ in range(3)]
    time.sleep(0.5)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5
    assert all("closed" in future.result(timeout=1).detail for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(spec_of(hostile, "echo"), "1", {})


@pytest.mark.parametrize("arguments", [{"workers": -1}, {"timeout_seconds": 0.0}, {"build_timeout_seconds": -1.0}])
def test_impossible_limits_are_refused(arguments):
    with pytest.raises(ValueError, match="pool"):
        Pool(**arguments)


def test_a_worker_imports_neither_torch_nor_the_trainer_nor_a_mathematics_package(tmp_path):
    file = tmp_path / "loaded.py"
    file.write_text(
        "import sys\ndef loaded(completion, problem):\n"
        "    return float(not {'torch', 'transformers', 'grpo', 'sympy', 'math_verify', 'numpy'} & set(sys.modules))\n"
    )
    with Pool(1) as pool:
        assert pool.submit(spec_of(str(file), "loaded"), "", {}).result().value == 1.0


@pytest.mark.slow
def test_what_a_built_in_reward_imports_is_imported_once_for_all_workers(tmp_path):
    """A worker killed at a call of math-verify would otherwise cost a second's imports."""
    file = tmp_path / "loaded.py"
    file.write_text("import sys\ndef loaded(completion, problem):\n    return float('math_verify' in sys.modules)\n")
    with Pool(1) as pool:
        assert pool.submit(RewardSpec("math_answer"), r"\boxed{2}", {"answer": "2"}).result().value == 1.0
    with Pool(1) as pool:
        pool.submit(RewardSpec("math_answer"), r"\boxed{2}", {"answer": "2"}).result()
        pool.submit(spec_of(str(file), "loaded"), "", {}).result()
        pool._nursery.close()  # the next worker comes from another nursery, which is told what to import again
        died = pool.submit(spec_of(str(file), "loaded"), "", {}).result()
        assert died.value in (None, 1.0)
        assert pool.submit(spec_of(str(file), "loaded"), "", {}).result().value == 1.0


def test_a_nursery_that_is_killed_costs_the_running_calls_and_no_later_one(hostile):
    parent = spec_of(hostile, "parent")
    with Pool(2, timeout_seconds=30) as pool:
        nursery = int(pool.submit(parent, "", {}).result().value)
        assert nursery != os.getpid()
        running = pool.submit(spec_of(hostile, "misbehave"), "sleep:0", {})
        time.sleep(0.3)
        os.kill(nursery, signal.SIGKILL)
        assert "died with the process that workers are forked from" in running.result(timeout=20).detail
        rewards = pool.score_all([(spec_of(hostile, "echo"), str(number), {}) for number in range(50)])
        assert [reward.value for reward in rewards if reward.value is not None] == sorted(
            set(range(50)) - lost(rewards)
        )
        assert len(lost(rewards)) <= 1  # the idle worker's death may show with one call
        assert pool.submit(parent, "", {}).result().value != nursery
    assert not is_alive(nursery)


def lost(rewards: list[Reward]) -> set[float]:
    return {float(number) for number, reward in enumerate(rewards) if reward.value is None}


@pytest.mark.parametrize("function", ["leave_group", "real_time_signal"])
def test_a_worker_that_leaves_its_group_or_dies_of_an_odd_signal_holds_nobody_up(hostile, function):
    with Pool(1, timeout_seconds=0.5) as pool:
        assert pool.submit(spec_of(hostile, function), "", {}).result(timeout=20).value is None
        assert pool.submit(spec_of(hostile, "echo"), "1", {}).result(timeout=20).value == 1.0
        start = time.monotonic()
    assert time.monotonic() - start < 2


def test_what_a_verifier_executes_has_none_of_the_pool_s_pipes(hostile):
    with Pool(1) as pool:
        assert pool.submit(spec_of(hostile, "count_pipes"), "", {}).result().value == 0.0


def test_a_nursery_that_dies_while_a_reward_is_built_does_not_ban_that_reward(tmp_path, hostile):
    file = tmp_path / "slow.py"
    file.write_text("import time\ntime.sleep(1.5)\ndef judge(completion, problem):\n    return 1.0\n")
    with Pool(1) as pool:
        nursery = int(pool.submit(spec_of(hostile, "parent"), "", {}).result().value)
        building = pool.submit(spec_of(str(file), "judge"), "", {})
        time.sleep(0.5)
        os.kill(nursery, signal.SIGKILL)
        assert building.result(timeout=30).value == 1.0


def test_a_fork_of_the_process_that_made_a_pool_is_told_to_make_its_own(hostile):
    with Pool(1) as pool:
        spec = spec_of(hostile, "echo")
        assert pool.submit(spec, "1", {}).result().value == 1.0
        child = os.fork()
        if child == 0:
            try:
                pool.submit(spec, "2", {})
            except RuntimeError as error:
                pool.close()
                os._exit(7 if "make one in each process" in str(error) else 1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert pool.submit(spec, "3", {}).result().value == 3.0


def test_what_a_verifier_has_started_ends_with_its_worker(hostile):
    with Pool(1, timeout_seconds=0.3) as pool:
        child = int(pool.submit(spec_of(hostile, "child"), "", {}).result().value)
        assert is_alive(child)
        assert pool.submit(spec_of(hostile, "misbehave"), "sleep:0", {}).result().status == "timeout"
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


PARENT = """
import sys, time
from rewards import Pool, RewardSpec

pool = Pool(2, timeout_seconds=600)
spec = RewardSpec(file=sys.argv[1], function="pid")
pids = {pool.submit(spec, "", {}).result().value for _ in range(40)}
pool.score_all([(spec, "", {})] * 500)
pids |= {reward.value for reward in pool.score_all([(spec, "", {})] * 500)}
for _ in range(2):
    pool.submit(RewardSpec(file=sys.argv[1], function="misbehave"), "spin:0", {})
time.sleep(0.5)
print(*(int(pid) for pid in pids), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal and /proc")
def test_workers_die_with_a_parent_that_is_killed_even_while_they_spin(hostile, tmp_path):
    script = tmp_path / "parent.py"  # no __main__ guard: a worker must not run it again
    script.write_text(textwrap.dedent(PARENT))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, str(script), hostile], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        assert all(is_alive(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not any(is_alive(pid) for pid in pids)


def test_closing_leaves_no_worker_behind(hostile):
    with Pool(2) as pool:
        pids = {int(reward.value) for reward in pool.score_all([(spec_of(hostile, "pid"), "", {})] * 200)}
        assert all(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)


def test_five_hundred_small_calls_cost_little_once_the_workers_are_warm(hostile):
    calls = [(RewardSpec("list_machine"), "l34311r11343", {"prompt": ">lr?>13431"})] * 512
    with Pool(2) as pool:
        pool.score_all(calls)
        seconds = []
        for _ in range(10):
            start = time.monotonic()
            rewards = pool.score_all(calls)
            seconds.append(time.monotonic() - start)
    assert all(reward.value == 1.0 for reward in rewards)
    assert min(seconds) < 0.1  # about 0.02 on an idle core; the bound leaves room for a busy machine
