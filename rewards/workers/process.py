"""Worker processes seen from the pool: the nursery that forks them, and one worker: hand it frames, wait for its
answers, kill it.

It knows nothing of calls, limits or order. The nursery is a plain Python with the module `rewards.workers.nursery` as
its main program, so nothing of the parent's own main program is imported again."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from rewards.spec import RewardSpec
from rewards.workers.frames import EXIT_CODE, FORK, PREPARE, pack, unpack

START_LIMIT_SECONDS = 60.0
SEND_LIMIT_SECONDS = 60.0
EXIT_WAIT_SECONDS = 2.0
READ_BYTES = 1 << 16


class WorkerDiedError(Exception):
    """The worker's end of the pipe is closed; the message tells how its process ended."""


class NurseryDiedError(WorkerDiedError):
    """The worker died with the process that it was forked from, which says nothing about what it did."""


class Nursery:
    """The process that workers are forked from; another takes its place when it has died. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prepared: list[RewardSpec] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def prepare(self, spec: RewardSpec) -> None:
        """Have every worker born from here on with the packages of a built-in reward imported. Does not wait."""
        with self._lock:
            self._prepared.append(spec)
            if self._control is not None:
                self._send(self._control, PREPARE + pack(pickle.dumps(spec)))

    def fork(self, descriptors: list[int]) -> None:
        """Fork a worker with these three descriptors: its requests, its answers, its lifeline.

        Raises WorkerDiedError when no nursery can be started."""
        with self._lock:
            for _ in range(2):  # the second time with a fresh one, when the first turns out to be dead
                if self._control is None:
                    self._start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [FORK], descriptors)
                    return
                except OSError:
                    self._stop()
            raise WorkerDiedError("has no process to be forked from: it died twice")

    def close(self) -> None:
        """End it, and every worker that is left."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        here, there = socket.socketpair()
        try:
            with there:
                # A session of its own keeps Ctrl-C away from the start on.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "rewards.workers.nursery"],
                    stdin=there.fileno(),
                    stdout=2,
                    start_new_session=True,
                    env=_environment(),
                )
        except OSError as error:
            here.close()
            raise WorkerDiedError(f"has no process to be forked from: {error}") from error
        here.settimeout(SEND_LIMIT_SECONDS)
        self._control = here
        path = [os.path.abspath(entry) for entry in sys.path]
        self._send(here, pack(pickle.dumps(path)))
        for spec in self._prepared:
            self._send(here, PREPARE + pack(pickle.dumps(spec)))

    def _stop(self) -> None:
        if self._control is not None:
            # Its sign to kill its workers and end; shut, because a fork of this process may hold it open.
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=EXIT_WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None

    def _send(self, control: socket.socket, message: bytes) -> None:
        """A nursery that is gone shows when it is asked for a worker."""
        try:
            control.sendall(message)
        except OSError:
            return


class WorkerProcess:
    """A worker in a process group of its own, ready for frames when the constructor returns.

    `memory_limit_mb` bounds its address space; 0 sets no bound. Raises WorkerDiedError when it cannot start."""

    def __init__(self, nursery: Nursery, *, memory_limit_mb: int) -> None:
        self._buffer = bytearray()
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._lifeline, lifeline = socket.socketpair()
        try:
            with lifeline:
                nursery.fork([requests, answers, lifeline.fileno()])
        except BaseException:
            self._close()
            raise
        finally:
            os.close(requests)
            os.close(answers)
        os.set_blocking(self._requests, False)
        self._readable = select.poll()
        self._readable.register(self._answers, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(self._requests, select.POLLOUT)
        try:
            self.send(pickle.dumps(memory_limit_mb << 20))
            if self.receive(limit_seconds=START_LIMIT_SECONDS) is None:
                raise WorkerDiedError(f"did not start within {START_LIMIT_SECONDS:g} s")
        except BaseException:
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
                raise self._how_it_ended()
            self._buffer += chunk

    def kill(self) -> None:
        """End the process and whatever it has started in its group, and wait until it is gone."""
        self.interrupt()
        self._told()
        self._close()

    def interrupt(self) -> None:
        """Kill it from another thread: the one that waits for an answer sees the pipe end and cleans up."""
        try:
            self._lifeline.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it has ended, or the thread that owns it was quicker

    def _told(self) -> bytes | None:
        """What the nursery says of the process's end; nothing when it is gone itself, None when it says none."""
        self._lifeline.settimeout(EXIT_WAIT_SECONDS)
        try:
            return self._lifeline.recv(EXIT_CODE.size)
        except TimeoutError:
            return None
        except OSError:
            return b""

    def _how_it_ended(self) -> WorkerDiedError:
        told = self._told()
        if told is None:
            return WorkerDiedError("closed its pipe")
        if not told:
            return NurseryDiedError("died with the process that workers are forked from")
        (code,) = EXIT_CODE.unpack(told)
        if code >= 0:
            return WorkerDiedError(f"died with exit code {code}")
        known = {int(number): number.name for number in signal.Signals}
        memory = ", perhaps by the kernel for want of memory" if code == -signal.SIGKILL else ""
        return WorkerDiedError(f"died with signal {-code} ({known.get(-code, 'a real-time signal')}){memory}")

    def _close(self) -> None:
        os.close(self._requests)
        os.close(self._answers)
        self._lifeline.close()


def _environment() -> dict[str, str]:
    """The parent's, with the way to this package, and one thread for each worker: a pool is parallel already."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(entry for entry in (root, os.environ.get("PYTHONPATH")) if entry)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": path}


def _milliseconds(seconds: float) -> int:
    return max(0, int(seconds * 1000) + 1) if seconds > 0 else 0
