"""One worker process seen from the pool: start it, hand it frames, wait for its answers, kill it.

It knows nothing of calls, limits or order. The process is a plain Python with the module `rewards.worker` as its main
program, so nothing of the parent's own main program is imported again."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rewards.frames import pack, unpack

START_LIMIT_SECONDS = 60.0
SEND_LIMIT_SECONDS = 60.0
EXIT_WAIT_SECONDS = 2.0
READ_BYTES = 1 << 16


class WorkerDiedError(Exception):
    """The worker's end of the pipe is closed; the message tells how its process ended."""


class WorkerProcess:
    """A worker in a process group of its own, ready for frames when the constructor returns.

    `memory_limit_mb` bounds its address space; 0 sets no bound. Raises WorkerDiedError when it cannot start."""

    def __init__(self, *, memory_limit_mb: int) -> None:
        self._buffer = bytearray()
        self._reaping = threading.Lock()
        # A session of its own keeps Ctrl-C away from the start on, and lets a kill reach what a verifier has started.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env=_environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._readable = select.poll()
        self._readable.register(self._answers, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(self._requests, select.POLLOUT)
        settings = {
            "parent_pid": os.getpid(),
            "sys_path": [os.path.abspath(entry) for entry in sys.path],
            "memory_limit_mb": memory_limit_mb,
        }
        try:
            self.send(pickle.dumps(settings))
            if self.receive(limit_seconds=START_LIMIT_SECONDS) is None:
                raise WorkerDiedError(f"did not start within {START_LIMIT_SECONDS:g} s")
        except WorkerDiedError:
            self.kill()
            raise

    def send(self, body: bytes) -> None:
        """Hand over one frame. A worker that is gone shows when its answer is awaited, not here."""
        frame = memoryview(pack(body))
        deadline = monotonic() + SEND_LIMIT_SECONDS
        while frame:
            if not self._writable.poll(_milliseconds(deadline - monotonic())):
                raise WorkerDiedError(f"took no request for {SEND_LIMIT_SECONDS:g} s")
            try:
                frame = frame[os.write(self._requests, frame) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return

    def receive(self, *, limit_seconds: float) -> list[Any] | None:
        """The next answer, or None when there is none within the limit. Raises WorkerDiedError."""
        deadline = monotonic() + limit_seconds
        while True:
            body = unpack(self._buffer)
            if body is not None:
                answer: list[Any] = json.loads(body)
                return answer
            # Poll before looking at the clock: an answer that is there counts, however late this thread gets to it.
            if not self._readable.poll(_milliseconds(deadline - monotonic())):
                return None
            chunk = os.read(self._answers, READ_BYTES)
            if not chunk:
                raise WorkerDiedError(self._how_it_ended())
            self._buffer += chunk

    def kill(self) -> None:
        """End the process and whatever it has started in its group, and leave no zombie. Safe to call twice."""
        self._kill_and_reap()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def interrupt(self) -> None:
        """Kill it from another thread: the one that waits for an answer sees the pipe end and cleans up."""
        with self._reaping:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _kill_and_reap(self) -> int:
        with self._reaping:  # so that nobody signals a process id that is free again
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            return self._process.returncode

    def _how_it_ended(self) -> str:
        exited = None
        deadline = monotonic() + EXIT_WAIT_SECONDS
        while exited is None and monotonic() < deadline:
            # WNOWAIT leaves the process id taken, so that its group can still be killed.
            exited = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if exited is None:
                sleep(0.002)
        code = self._kill_and_reap()
        if exited is None:
            return "closed its pipe"
        if code < 0:
            memory = ", perhaps by the kernel for want of memory" if code == -signal.SIGKILL else ""
            return f"died with signal {-code} ({signal.Signals(-code).name}){memory}"
        return f"died with exit code {code}"


def _environment() -> dict[str, str]:
    """The parent's, with the way to this package, and one thread for each worker: a pool is parallel already."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(entry for entry in (root, os.environ.get("PYTHONPATH")) if entry)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": path}


def _milliseconds(seconds: float) -> int:
    return max(0, int(seconds * 1000) + 1) if seconds > 0 else 0
