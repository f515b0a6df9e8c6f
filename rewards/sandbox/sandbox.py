"""Programs of unknown intent, each in a box of its own: what rewards that run code stand on.

Knows how boxes are made and what they may use; knows nothing of rewards."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from rewards.sandbox.box import Box, Finished
from rewards.sandbox.bubblewrap import INSIDE, SandboxUnavailableError, Supervisor, unavailable
from rewards.sandbox.cgroup import Cgroups, find_cgroups
from rewards.sandbox.limits import Limits

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
DEFAULT_LIMITS = Limits()


class Sandbox:
    """One supervisor process that makes a box for each program: a context manager, used by the thread that made it.

    In a box there is no network, no process but the program's own, no file of a user, nothing to write but a small
    folder that ends with it, no environment, no privilege, and no system call that leads out. Programs know nothing of
    each other. `unsafe=True` runs them as plain child processes with limits and nothing else: they can read and write
    what this user can.

    Raises SandboxUnavailableError, with the cause and the remedy, where bubblewrap or namespaces are not there."""

    def __init__(self, *, unsafe: bool = False) -> None:
        self.unsafe = unsafe
        self._supervisor: Supervisor | None = Supervisor(unsafe=unsafe)
        self._cgroups: Cgroups | None = None
        self._live: set[Box] = set()
        self._closed = False
        try:
            self._try_out()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def has_cgroups(self) -> bool:
        """Whether a cgroup bounds what all processes of a program hold together."""
        return self._cgroups is not None

    def close(self) -> None:
        """End every box and the supervisor; no process, no zombie and no cgroup is left. May be called twice."""
        self._closed = True
        for box in list(self._live):
            box.kill()
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        if self._cgroups is not None:
            self._cgroups.close()

    def run(self, source: str, *, stdin: bytes = b"", limits: Limits = DEFAULT_LIMITS) -> Finished:
        """Run a program, as `python main.py` would, until it and all that it started are gone.

        Raises SandboxUnavailableError when the sandbox fails, which says nothing about the program."""
        return self.start("script", source.encode(errors="surrogatepass"), stdin=stdin, limits=limits).wait()

    def start(
        self,
        task: str,
        payload: bytes,
        *,
        limits: Limits,
        stdin: bytes = b"",
        pipes: Sequence[int] = (),
        capture: bool = True,
    ) -> Box:
        """Start a module of rewards/sandbox/inside/, whose `main(payload, *pipes)` runs in a box of its own.

        `pipes` are this process's ends of pipes, which stay open here and are open inside, under numbers of their own.
        stdin is whole before the program begins. With capture=False its output goes nowhere. The time begins here."""
        self._check(task, pipes)
        start_seconds = time.monotonic()
        with ExitStack() as on_failure, ExitStack() as after:
            cgroup = self._cgroups.take(limits) if self._cgroups is not None else None
            if cgroup is not None and self._cgroups is not None:
                on_failure.callback(self._cgroups.give_back, cgroup)
            leash, keepers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            on_failure.callback(leash.close)
            after.callback(keepers_end.close)
            outputs: list[int] = []
            passed = [keepers_end.fileno()]
            for content in (payload, stdin):
                passed.append(_sealed_file(content))
                after.callback(os.close, passed[-1])
            for _ in range(2 if capture else 0):
                read, write = os.pipe()
                outputs.append(read)
                on_failure.callback(os.close, read)
                passed.append(write)
                after.callback(os.close, write)
            process_files = cgroup.process_files if cgroup is not None else []
            request = {
                "task": task,
                "limits": limits.as_numbers(),
                "capture": capture,
                "num_cgroups": len(process_files),
            }
            supervisor = self._ask(request, [*passed, *process_files, *pipes])
            on_failure.pop_all()

        def on_end(box: Box, in_time: bool) -> None:
            self._live.discard(box)
            if not in_time:
                self._give_up()
            if cgroup is not None and self._cgroups is not None:
                self._cgroups.give_back(cgroup)

        box = Box(
            leash,
            outputs,
            limits=limits,
            start_seconds=start_seconds,
            is_supervised=supervisor.is_alive,
            on_end=on_end,
        )
        self._live.add(box)
        return box

    def _try_out(self) -> None:
        """What forbids boxes shows here and not at the first program; cgroups are left alone where they do not work."""
        if not self.unsafe:
            self._cgroups = find_cgroups(
                mounts=Path("/proc/self/mountinfo").read_text(), memberships=Path("/proc/self/cgroup").read_text()
            )
        try:
            self._run_first()
        except (SandboxUnavailableError, OSError):
            if self._cgroups is not None:
                self._cgroups.close()
                self._cgroups = None
            try:
                self._run_first()
            except SandboxUnavailableError as error:
                raise unavailable(str(error)) from None

    def _run_first(self) -> None:
        """A program that reads one of Python's own modules from disk, as it will be for every program."""
        finished = self.run("import colorsys")
        if finished.exit_code != 0:
            words = finished.stderr.decode(errors="replace").strip()
            raise SandboxUnavailableError(f"a program cannot use this Python ({finished.ended}: {words})")

    def _ask(self, request: dict[str, object], descriptors: list[int]) -> Supervisor:
        """Send a request, to another supervisor when the one there was is gone; returns whose the box is."""
        for _ in range(2):
            if self._supervisor is None:
                self._supervisor = Supervisor(unsafe=self.unsafe)
            try:
                self._supervisor.send(request, descriptors)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                self._give_up()
            else:
                return self._supervisor
        raise SandboxUnavailableError("no sandbox: its supervisor ends again and again")

    def _give_up(self) -> None:
        """Kill the supervisor with every box that it has; the next program gets another."""
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor = None

    def _check(self, task: str, pipes: Sequence[int]) -> None:
        if self._closed:
            raise ValueError("the sandbox is closed; start programs inside its with block")
        if not task.isidentifier() or not (INSIDE / f"{task}.py").exists():
            raise ValueError(f"task = {task!r}: must be the name of a module in {INSIDE}")
        for descriptor in pipes:
            if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                raise ValueError(
                    f"pipes: descriptor {descriptor} is no pipe; whatever else it is could lead out of a box"
                )


def _sealed_file(content: bytes) -> int:
    """A file in memory that nobody can change, at its beginning."""
    descriptor = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
