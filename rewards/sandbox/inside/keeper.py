"""One box from inside: the keeper, process 1 of its namespaces, makes the box and forks the program into it.

The keeper holds the leash, a socket to the host: a word comes up it when the program ends, and when the host lets go
of it everything in the box is killed. When the keeper ends, nothing else is left. Knows no task, reads no payload."""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import ending
import namespaces
import seccomp

PATIENCE_SECONDS = 1.0
"""How much later than the host, which enforces the deadline, the keeper does so itself."""
NUM_KEEPERS = 1  # counted by RLIMIT_NPROC besides the program's own processes
MB = 1024 * 1024
HIGHEST_DESCRIPTOR = 65536


@dataclass(frozen=True)
class Request:
    """What the host asks for. The descriptors are its; the payload stays unread until the program reads it."""

    main: Callable[..., None]
    limits: dict[str, Any]
    confined: bool
    user: int
    group: int
    system_call_filter: bytes
    leash: socket.socket
    payload: int
    stdin: int
    stdout: int
    stderr: int
    cgroups: list[int]
    pipes: list[int]


def keep(request: Request) -> NoReturn:
    """Make the box, watch over the program, kill what is left, end."""
    words, folder = "", ""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the program's exit code with it
        if request.confined:
            processes = _enter(request)
        else:
            processes = -1
            folder = tempfile.mkdtemp(prefix="unsafe-")
            namespaces.prctl(namespaces.PR_SET_CHILD_SUBREAPER, 1)
        for process_file in request.cgroups:
            os.write(process_file, b"0")
        program = os.fork()
        if program == 0:
            _be_program(request, folder=folder or "/tmp", processes=processes)
        words = _watch(program, request)
    except BaseException as error:
        words = f"failed {type(error).__name__}: {error}"
    finally:
        try:
            _kill_everything(confined=request.confined)
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            request.leash.send(words.encode())
        finally:
            os._exit(0)  # where the host let go, nobody is there to be told


def _enter(request: Request) -> int:
    """Furnish the fresh namespaces and leave every privilege there; returns the /proc that is covered by then."""
    namespaces.settle(user=request.user, group=request.group)
    processes = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    namespaces.mount_scratch(
        scratch_mb=request.limits["scratch_mb"], scratch_files=request.limits["scratch_files"], stdin=request.stdin
    )
    namespaces.drop_capabilities()
    namespaces.prctl(namespaces.PR_SET_DUMPABLE, 0)
    return processes


def _watch(program: int, request: Request) -> str:
    """Reap whatever ends until the program does, the host lets go or the time is long over; says which."""
    wakes, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    _close_all_but({request.leash.fileno(), wakes, wake})
    poll = select.poll()
    for descriptor in (request.leash.fileno(), wakes):
        poll.register(descriptor, select.POLLIN)
    deadline_seconds = time.monotonic() + request.limits["wall_seconds"] + PATIENCE_SECONDS
    ready: set[int] = set()
    while request.leash.fileno() not in ready:
        process, status = _reap()
        while process > 0:
            if process == program:
                code = os.waitstatus_to_exitcode(status)
                return f"{'exited' if code >= 0 else 'signalled'} {abs(code)} {time.monotonic()}"
            process, status = _reap()
        left_seconds = max(0.0, deadline_seconds - time.monotonic())
        ready = {descriptor for descriptor, _ in poll.poll(left_seconds * 1000)}
        if not ready:
            return "deadline"
        if wakes in ready:
            os.read(wakes, 4096)
    return "killed"


def _reap() -> tuple[int, int]:
    return os.waitpid(-1, os.WNOHANG)


def _kill_everything(*, confined: bool) -> None:
    """Kill and reap until this process has no child: orphans come to it, in a pid namespace and without one."""
    while True:
        try:
            if confined and os.getpid() == 1:
                os.kill(-1, signal.SIGKILL)
            else:
                with open(f"/proc/self/task/{os.getpid()}/children") as file:
                    for process in file.read().split():
                        os.kill(int(process), signal.SIGKILL)
            os.wait()
        except (ProcessLookupError, ChildProcessError):
            return


def _be_program(request: Request, *, folder: str, processes: int) -> NoReturn:
    """Become what the limits allow and hand over to the task."""
    try:
        os.setsid()
        if request.confined:
            _be_spent_first(processes)
        for target, descriptor in enumerate((request.stdin, request.stdout, request.stderr)):
            os.dup2(descriptor, target)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", LANG="C.UTF-8", HOME=folder, TMPDIR=folder)
        _close_all_but({0, 1, 2, request.leash.fileno(), request.payload, *request.pipes})
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it
        _set_limits(request)
        with os.fdopen(request.payload, "rb") as file:
            payload = file.read()
        if request.confined:
            seccomp.install(request.system_call_filter)
    except BaseException as error:
        request.leash.send(f"failed {type(error).__name__}: {error}".encode())
        os._exit(127)
    request.leash.close()  # from here on the code is not ours
    ending.run_and_exit(lambda: request.main(payload, *request.pipes))
    os._exit(127)


def _be_spent_first(processes: int) -> None:
    """When memory runs out on the machine, let the kernel take the program and nobody else."""
    namespaces.prctl(namespaces.PR_SET_DUMPABLE, 1)  # or the file is root's
    score = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=processes)
    os.write(score, b"1000")
    namespaces.prctl(namespaces.PR_SET_DUMPABLE, 0)


def _close_all_but(kept: set[int]) -> None:
    start = 0
    for descriptor in [*sorted(kept), HIGHEST_DESCRIPTOR]:
        if start < descriptor:  # an empty range would be taken for every descriptor
            os.closerange(start, descriptor)
        start = descriptor + 1


def _set_limits(request: Request) -> None:
    """Never above what the host's own limits leave."""
    limits = request.limits
    num_bytes, file_bytes = limits["memory_mb"] * MB, limits["file_mb"] * MB
    num_processes, num_files = limits["processes"] + NUM_KEEPERS, limits["open_files"]
    wanted = [
        (resource.RLIMIT_AS, num_bytes, num_bytes),
        (resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1),  # SIGXCPU first, then SIGKILL
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_NOFILE, num_files, num_files),
        (resource.RLIMIT_STACK, 8 * MB, resource.RLIM_INFINITY),  # a program may raise it: RLIMIT_AS holds its stack
        (resource.RLIMIT_CORE, 1, 1),  # at 0 the kernel would still start a machine's own handler of core dumps
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 256, 256),
    ]
    if request.confined:  # elsewhere it would count every process of the user
        wanted.append((resource.RLIMIT_NPROC, num_processes, num_processes))
    for what, soft, hard in wanted:
        most = resource.getrlimit(what)[1]
        hard = _lower(hard, most)
        resource.setrlimit(what, (_lower(soft, hard), hard))


def _lower(one: int, other: int) -> int:
    """The lower of two limits, either of which may be none."""
    if resource.RLIM_INFINITY in (one, other):
        return other if one == resource.RLIM_INFINITY else one
    return min(one, other)
