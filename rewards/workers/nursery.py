"""The process that a pool's workers are forked from, so that a fresh one is there in milliseconds.

What a worker would import for built-in rewards (math-verify takes a second) is imported here once and shared by all. No
verifier runs here and no user's file is loaded: this process has one thread, and what it forks is clean.

Started as `python -m rewards.workers.nursery` with a stream socket on stdin. Requests: b"p" and a frame with a pickled
RewardSpec, whose packages are imported; b"w" with three descriptors, for a worker's requests, its answers and its
lifeline. Whoever closes or shuts the lifeline has the worker killed with its process group; when the worker has ended,
however it did, its exit code (negative: a signal) is written there as four bytes."""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field

from rewards.build import prepare_spec
from rewards.workers import worker
from rewards.workers.frames import EXIT_CODE, PREPARE, read_frame

PARENT_CHECK_MILLISECONDS = 1_000


def main() -> None:
    """Serve until the pool closes the socket or is gone; a fork of this process goes on as a worker instead."""
    with socket.socket(fileno=os.dup(0)) as control:
        path = read_frame(control.fileno())
        if path is None:
            return
        sys.path[:] = pickle.loads(path)
        nursery = _Nursery(control=control, own_pid=os.getpid(), parent_pid=os.getppid())
        pipes = nursery.serve()
    if pipes is not None:
        worker.main(*pipes, parent_pid=nursery.own_pid)


@dataclass
class _Nursery:
    control: socket.socket
    own_pid: int
    parent_pid: int
    lifelines: dict[int, socket.socket] = field(default_factory=dict)  # by the worker's process id

    def serve(self) -> tuple[int, int] | None:
        """Serve the pool. Returns None at the end, and in a fork the worker's two pipes."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        while os.getppid() == self.parent_pid:
            poll = select.poll()
            for descriptor in (self.control.fileno(), woken):
                poll.register(descriptor, select.POLLIN)
            for lifeline in self.lifelines.values():
                poll.register(lifeline.fileno(), select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(PARENT_CHECK_MILLISECONDS)}
            if woken in ready:
                with suppress(BlockingIOError):
                    os.read(woken, 4096)
                self._collect()
            for pid, lifeline in list(self.lifelines.items()):
                if lifeline.fileno() in ready:  # nothing is ever written to it: this is its end
                    self._end(pid)
            if self.control.fileno() in ready:
                kind, descriptors, _, _ = socket.recv_fds(self.control, 1, 3)
                if not kind:
                    break
                if kind == PREPARE:
                    self._prepare()
                elif (pipes := self._fork(descriptors)) is not None:
                    os.close(woken)
                    os.close(wake)
                    return pipes
        for pid in list(self.lifelines):
            self._end(pid)
        return None

    def _prepare(self) -> None:
        """Import what a built-in reward needs. A failure is told by the worker that tries again."""
        spec = read_frame(self.control.fileno())
        if spec is None:
            return
        with suppress(Exception):
            prepare_spec(pickle.loads(spec))
        gc.collect()
        gc.freeze()  # the forks' collections leave these pages shared

    def _fork(self, descriptors: list[int]) -> tuple[int, int] | None:
        """Fork a worker. Returns its two pipes in the fork."""
        try:
            requests, answers, lifeline = descriptors
            pid = os.fork()
        except (ValueError, OSError):  # no descriptors or no process left: the pool sees the pipes of this one end
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        if pid:
            with suppress(PermissionError, ProcessLookupError):  # the child does the same; whoever comes first
                os.setpgid(pid, pid)
            os.close(requests)
            os.close(answers)
            self.lifelines[pid] = socket.socket(fileno=lifeline)
            return None
        os.setpgid(0, 0)  # so that a kill reaches what a verifier has started
        # As they came over the socket, a program that a verifier executes would have them too.
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(lifeline)
        for other in self.lifelines.values():
            other.close()
        return requests, answers

    def _end(self, pid: int) -> None:
        """Kill a worker with its group, and tell how it ended."""
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)  # a verifier may have left its group; not reaped yet, the number is still its own
        _, status = os.waitpid(pid, 0)
        self._tell(pid, status)

    def _collect(self) -> None:
        """Tell of every worker that has ended by itself; what it has started ends with it."""
        for pid in list(self.lifelines):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._end(pid)  # not reaped until then, so that its number is still its own

    def _tell(self, pid: int, status: int) -> None:
        with self.lifelines.pop(pid) as lifeline, suppress(OSError):
            lifeline.send(EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main()
