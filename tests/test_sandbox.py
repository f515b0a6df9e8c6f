"""What the sandbox promises its user: programs run as Python would run them, end in time, and are told apart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.sandbox import Ended, Finished, Limits, Sandbox, SandboxUnavailableError, bubblewrap
from tests.test_sandbox_attacks import descendants, leftovers

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
pytestmark = needs_bubblewrap
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def output(finished: Finished) -> str:
    assert finished.ended is Ended.EXITED, finished
    assert finished.stderr == b"", finished.stderr
    return finished.stdout.decode()


def test_two_sandboxes_judge_alike_what_depends_on_hashes() -> None:
    source = "print(hash('a'), list({'a', 'b', 'c', 'd'}))"
    with Sandbox() as one, Sandbox() as other:
        assert output(one.run(source)) == output(other.run(source))


def test_random_numbers_differ_from_run_to_run(sandbox: Sandbox) -> None:
    source = "import random; print(random.random())"
    assert output(sandbox.run(source)) != output(sandbox.run(source))


def test_great_stdin_is_read_whole_and_unread_stdin_stops_nobody(sandbox: Sandbox) -> None:
    stdin = b"x" * 5_000_000
    assert output(sandbox.run("import sys; print(len(sys.stdin.read()))", stdin=stdin)) == "5000000\n"
    assert output(sandbox.run("print(len(open('/dev/stdin').read()))", stdin=stdin)) == "5000000\n"
    assert output(sandbox.run("print(1)", stdin=stdin)) == "1\n"
    assert output(sandbox.run("import sys; print(repr(sys.stdin.read()))", stdin=b"\xff\n")) == "'\\udcff\\n'\n"


def test_both_outputs_are_kept_up_to_the_limit_together(sandbox: Sandbox) -> None:
    limits = Limits(output_kb=100)
    whole = sandbox.run("import os; os.write(1, b'o' * 51200); os.write(2, b'e' * 51200)", limits=limits)
    assert (whole.ended, len(whole.stdout), len(whole.stderr)) == (Ended.EXITED, 51200, 51200)
    more = sandbox.run("import os; os.write(1, b'o' * 51200); os.write(2, b'e' * 51201)", limits=limits)
    assert more.ended is Ended.OUTPUT_LIMIT
    assert len(more.stdout) + len(more.stderr) <= 102400


def test_deadline_counts_from_the_start_and_is_kept(sandbox: Sandbox) -> None:
    box = sandbox.start("script", b"print('a', flush=True)\nwhile True: pass", limits=Limits(wall_seconds=1.0))
    time.sleep(0.5)
    finished = box.wait()
    assert finished.ended is Ended.DEADLINE
    assert finished.stdout == b"a\n"
    assert 0.9 < finished.seconds < 2.0


def test_box_that_ended_in_time_did_so_though_nobody_looked(sandbox: Sandbox) -> None:
    box = sandbox.start("script", b"print('a')", limits=Limits(wall_seconds=1.0))
    time.sleep(1.2)
    finished = box.wait()
    assert (finished.ended, finished.stdout) == (Ended.EXITED, b"a\n")
    assert finished.seconds < 1.0


def test_deadline_holds_for_a_box_that_nobody_waits_for(sandbox: Sandbox) -> None:
    box = sandbox.start("script", b"while True: pass", limits=Limits(wall_seconds=0.2))
    time.sleep(2.0)
    started = time.monotonic()
    assert box.wait().ended is Ended.DEADLINE
    assert time.monotonic() - started < 0.2


def test_killed_box_says_so_and_waiting_twice_gives_the_same(sandbox: Sandbox) -> None:
    before = descendants()
    box = sandbox.start("script", b"while True: pass", limits=Limits())
    box.kill()
    assert leftovers(before) == set()
    assert box.wait().ended is Ended.KILLED
    assert box.wait() is box.wait()
    box.kill()
    ended = sandbox.start("script", b"", limits=Limits())
    finished = ended.wait()
    ended.kill()
    assert ended.wait() is finished


def test_boxes_run_side_by_side_and_know_nothing_of_each_other(sandbox: Sandbox) -> None:
    serve = (
        b"import socket, time; s = socket.socket(1); s.bind('\\0name'); s.listen(); print(1, flush=True); time.sleep(2)"
    )
    connect = (
        b"import os, socket, time\ntime.sleep(0.5)\nprint(sorted(os.listdir('/tmp')), os.getpid())\n"
        b"try: socket.socket(1).connect('\\0name'); print('connected')\nexcept OSError as error: print(error.errno)"
    )
    one = sandbox.start("script", b"open('/tmp/mine', 'w')\n" + serve, limits=Limits())
    other = sandbox.start("script", connect, limits=Limits())
    assert output(other.wait()) == "[] 2\n111\n"
    one.kill()


def test_programs_speak_through_the_pipes_they_are_given(sandbox: Sandbox) -> None:
    there, back = os.pipe(), os.pipe()
    talk = b"import os, sys; os.write(int(sys.argv[2]), os.read(int(sys.argv[1]), 9) * 2)"
    box = sandbox.start("script", talk, limits=Limits(), pipes=(there[0], back[1]))
    os.close(back[1])
    os.write(there[1], b"ab")
    assert os.read(back[0], 9) == b"abab"
    assert box.wait().exit_code == 0
    assert os.read(back[0], 9) == b""  # nobody else holds the other end
    for descriptor in (*there, back[0]):
        os.close(descriptor)


def test_nothing_but_pipes_goes_into_a_box(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ValueError, match="is no pipe"):
        sandbox.start("script", b"", limits=Limits(), pipes=(folder,))
    os.close(folder)


def test_output_that_is_not_captured_goes_nowhere_and_has_no_limit(sandbox: Sandbox) -> None:
    box = sandbox.start("script", b"for _ in range(999): print('x' * 9999)", limits=Limits(output_kb=1), capture=False)
    finished = box.wait()
    assert (finished.ended, finished.stdout, finished.stderr) == (Ended.EXITED, b"", b"")


@pytest.mark.parametrize("task", ["nothing", "../script", "", "a b"])
def test_unknown_task_is_refused(task: str, sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="must be the name of a module"):
        sandbox.start(task, b"", limits=Limits())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wall_seconds", 0.0),
        ("wall_seconds", float("nan")),
        ("wall_seconds", float("inf")),
        ("wall_seconds", True),
        ("wall_seconds", "1"),
        ("cpu_seconds", 0),
        ("cpu_seconds", 1.5),
        ("memory_mb", 1),
        ("processes", 0),
        ("open_files", 3),
        ("file_mb", -1),
        ("scratch_mb", 0),
        ("scratch_files", 1),
        ("output_kb", 0),
        ("output_kb", 2**31),
    ],
)
def test_limit_that_cannot_be_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} = "):
        Limits(**{name: value})  # type: ignore[arg-type]


# A box begins with the memory of its supervisor: what the supervisor had read, a program could find.
SCAN = """
import ctypes, gc, re
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
def is_there(address):
    return libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(4096), ctypes.create_string_buffer(1)) == 0
places = {id(one) >> 20 for one in gc.get_objects()} | {(libc.sbrk(0) >> 20) - n for n in range(64)}
pages = [page for place in places for page in range(place << 20, place + 1 << 20, 4096) if is_there(page)]
patterns = [re.compile(b"Serve until the host hangs u[p]"), re.compile(b"NEEDLENEEDL[E]")]
print([sum(len(pattern.findall(ctypes.string_at(page, 4096))) for page in pages) for pattern in patterns])
"""


def test_memory_of_a_box_holds_nothing_of_the_programs_before(sandbox: Sandbox) -> None:
    sandbox.run("secret = '" + "NEEDLE" * 2000 + "'; print(input())", stdin=b"NEEDLE" * 2000)
    supervisors_own, secret = json.loads(output(sandbox.run(SCAN, limits=Limits(memory_mb=1024))))
    assert supervisors_own >= 1  # the scan finds what is there
    assert secret == 0


def test_memory_of_all_processes_of_a_program_is_bounded_where_cgroups_are(sandbox: Sandbox) -> None:
    if not sandbox.has_cgroups:
        pytest.skip("cgroups cannot be written to")
    limits = Limits(memory_mb=128, scratch_mb=16, processes=8, wall_seconds=20.0)
    source = """
import os, time
left = set()
for number in range(6):
    child = os.fork()
    if child == 0:
        held = b"x" * (80 << 20)
        time.sleep(30)
        os._exit(0)
    left.add(child)
end = time.monotonic() + 15
while len(left) > 2 and time.monotonic() < end:  # the kernel kills some only as they fill their memory
    left -= {child for child in left if os.waitpid(child, os.WNOHANG)[0]}
    time.sleep(0.05)
print(len(left))
"""
    assert int(output(sandbox.run(source, limits=limits))) <= 2
    assert output(sandbox.run("print(1)", limits=limits)) == "1\n"


def test_nothing_is_left_when_a_sandbox_is_closed() -> None:
    before, descriptors = descendants(), os.listdir("/proc/self/fd")
    sandbox = Sandbox()
    for _ in range(3):
        sandbox.run("print(1)")
    sandbox.start("script", b"while True: pass", limits=Limits())
    cgroups = sandbox._cgroups
    mark = f"-{id(cgroups):x}-"
    sandbox.close()
    sandbox.close()
    assert leftovers(before) == set()
    assert os.listdir("/proc/self/fd") == descriptors
    assert not [folder for parent in cgroups.parents for folder in parent.glob(f"*{mark}*")] if cgroups else True
    with pytest.raises(ValueError, match="closed"):
        sandbox.run("")


def test_many_programs_leave_no_descriptor_open_and_no_process(sandbox: Sandbox) -> None:
    sandbox.run("")
    before, descriptors = descendants(), len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        sandbox.run("print(1)")
    assert leftovers(before) == set()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_supervisor_that_was_killed_is_replaced_and_its_boxes_are_errors() -> None:
    before = descendants()
    with Sandbox() as sandbox:
        box = sandbox.start("script", b"while True: pass", limits=Limits())
        _, supervisor, *_ = sorted(descendants() - before)  # after bubblewrap's outer process, before the box
        os.kill(supervisor, signal.SIGKILL)
        with pytest.raises(SandboxUnavailableError, match="vanished"):
            box.wait()
        assert output(sandbox.run("print(1)")) == "1\n"
    assert leftovers(before) == set()


def test_keeper_that_was_killed_counts_as_the_programs_end(sandbox: Sandbox) -> None:
    before = descendants()
    box = sandbox.start("script", b"print(1, flush=True)\nwhile True: pass", limits=Limits())
    for _ in range(100):
        started = sorted(descendants() - before)
        if len(started) == 2:
            break
        time.sleep(0.05)
    os.kill(started[0], signal.SIGKILL)
    finished = box.wait()
    assert (finished.ended, finished.signal) == (Ended.SIGNALLED, signal.SIGKILL)
    assert leftovers(before) == set()


HOST = """
import os, sys, time
from rewards.sandbox import Limits, Sandbox
sandbox = Sandbox()
box = sandbox.start("script", b"import os; os.fork(); os.system('sleep 60')", limits=Limits(wall_seconds=60.0))
time.sleep(0.5)
print("started", flush=True)
box.wait()
"""


def test_everything_ends_when_the_host_process_is_killed() -> None:
    before = descendants()
    host = subprocess.Popen([sys.executable, "-c", HOST], cwd=ROOT, stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"started\n"
    started = descendants() - before
    assert len(started) >= 6  # the host, bubblewrap, the supervisor, the keeper and two processes of the program
    host.kill()
    host.wait()
    host.stdout.close()
    for _ in range(100):
        left = [process for process in started if is_running(process)]
        if not left:
            break
        time.sleep(0.05)
    assert left == []


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sandbox_works_in_a_process_of_limited_memory() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from rewards.sandbox import Limits, Sandbox\n"
        "with Sandbox() as sandbox: print(sandbox.run('print(1)', limits=Limits(memory_mb=4096)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "stdout=b'1\\n'" in done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_sandbox_works_for_an_ordinary_user_and_bounds_processes() -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("no Python that other users may read")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        shutil.copytree(ROOT / "rewards", folder / "rewards")
        script = (
            "import os; from rewards.sandbox import Sandbox\n"
            "with Sandbox() as sandbox:\n"
            "  print(os.getuid(), sandbox.run('import os; print(os.getuid(), os.getpid())').stdout)\n"
            "  print(sandbox.run('import os\\nwhile True: os.fork()').ended)\n"
        )
        done = subprocess.run(
            [python, "-B", "-c", script],
            cwd=folder,
            user=1234,
            group=1234,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "1234 b'65534 2\\n'\nexited\n", done.stderr
    finally:
        shutil.rmtree(folder)


def test_without_bubblewrap_it_refuses_and_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match="apt-get install bubblewrap"):
        Sandbox()
    with Sandbox(unsafe=True) as sandbox:
        assert output(sandbox.run("print(1)")) == "1\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions to create"),
        ("exit 0", "bubblewrap ended"),
        ("exec sleep 60", "bubblewrap does not start"),
    ],
)
def test_bubblewrap_that_does_not_work_is_quoted(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(f"#!/bin/sh\n{script}\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(bubblewrap, "START_SECONDS", 0.5)
    monkeypatch.setattr(bubblewrap, "END_SECONDS", 0.5)
    before = descendants()
    with pytest.raises(SandboxUnavailableError, match=words) as raised:
        Sandbox()
    assert "Remedy: " in str(raised.value)
    assert leftovers(before) == set()


def test_old_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap.platform, "release", lambda: "5.4.0-generic")
    with pytest.raises(SandboxUnavailableError, match=r"Linux 5\.14 or newer"):
        Sandbox()


def test_unsafe_sandbox_keeps_time_and_clears_away_what_it_can() -> None:
    before = descendants()
    with Sandbox(unsafe=True) as sandbox:
        started = descendants()
        source = "import os, time\nif os.fork() == 0: os.setsid()\nprint(os.getcwd(), flush=True)\ntime.sleep(9)"
        finished = sandbox.run(source, limits=Limits(wall_seconds=0.5))
        assert finished.ended is Ended.DEADLINE
        assert not Path(finished.stdout.split()[0].decode()).exists()
        assert leftovers(started) == set()
        assert sandbox.run("import os; print(os.environ.get('USER'))").stdout == b"None\n"
    assert leftovers(before) == set()
