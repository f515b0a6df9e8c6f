"""One program in its box, seen from the host: its output is drained, its time is kept, its end is brought about.

Believes nothing that comes out of the box: no more than a number and as many bytes as the limits allow."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rewards.sandbox.bubblewrap import SandboxUnavailableError
from rewards.sandbox.limits import Limits

KILL_SECONDS = 5.0
"""How long the kernel may take to end a killed box before the whole supervisor is given up."""
PIECE_BYTES = 65536


class Ended(StrEnum):
    """What ended a program."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    DEADLINE = "deadline"
    OUTPUT_LIMIT = "output_limit"
    KILLED = "killed"


@dataclass(frozen=True)
class Finished:
    """How a program ended. `exit_code` is there when it exited, `signal` when a signal ended it (a limit, often);
    `stdout` and `stderr` together hold no more than the limit; `seconds` is wall-clock time from the start."""

    ended: Ended
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


class Box:
    """A program that `Sandbox.start` started. `wait` or `kill` must be called, or the Sandbox closed."""

    def __init__(
        self,
        leash: socket.socket,
        outputs: Sequence[int],
        *,
        limits: Limits,
        start_seconds: float,
        is_supervised: Callable[[], bool],
        on_end: Callable[[Box, bool], None],
    ) -> None:
        """`leash`: to the box's keeper; `outputs`: pipes from stdout and stderr, or none; `is_supervised` tells whether
        the supervisor lives; `on_end` is told of the box's end and whether it came in time."""
        self._leash = leash
        self._outputs = {descriptor: bytearray() for descriptor in outputs}
        self._limits = limits
        self._start_seconds = start_seconds
        self._is_supervised = is_supervised
        self._on_end = on_end
        self._finished: Finished | None = None
        self._gone = False
        self._words = ""
        self._poll = select.poll()
        for descriptor in (leash.fileno(), *outputs):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)

    def wait(self) -> Finished:
        """Until the program and all that it started are gone, which the deadline sees to.

        Raises SandboxUnavailableError when the sandbox fails, not the program."""
        if not self._gone:
            self._finished = self._end(self._watch())
        if self._finished is None:
            raise SandboxUnavailableError("a box failed, and has been asked before how it ended")
        return self._finished

    def kill(self) -> None:
        """End the program and all that it started; returns when they are gone. Nothing if they are already."""
        if not self._gone:
            self._finished = self._end(Ended.KILLED)

    def _watch(self) -> Ended | None:
        """Drain the pipes until the box is gone (None), or until there is a reason to end it."""
        deadline_seconds = self._start_seconds + self._limits.wall_seconds
        while True:
            ready = self._wait_for(self._poll, deadline_seconds)
            if not ready:
                return Ended.DEADLINE
            if self._leash.fileno() in ready and self._listen():
                return None
            for descriptor in ready & self._outputs.keys():
                if not self._drain(descriptor):
                    self._poll.unregister(descriptor)  # closed by the program: poll would report it for ever
            if self._num_spare_bytes() < 0:
                return Ended.OUTPUT_LIMIT

    def _end(self, reason: Ended | None) -> Finished:
        """Kill the box if there is a reason to, see it gone, take what is left in the pipes, say how it ended."""
        self._gone = True
        in_time = reason is None or self._let_go()
        for descriptor in self._outputs:
            while self._num_spare_bytes() >= 0 and self._drain(descriptor):
                pass
            os.close(descriptor)
        self._leash.close()
        words = self._words
        if not words and reason is None:
            # The keeper was killed: with its supervisor, or, if that lives, for what the program did.
            killed = f"{Ended.SIGNALLED} {signal.SIGKILL:d} {time.monotonic()}"
            words = killed if self._is_supervised() else "failed it vanished with its supervisor"
        self._on_end(self, in_time)
        return self._judge(words, reason)

    def _let_go(self) -> bool:
        """The keeper's sign to kill everything; whether it did."""
        self._leash.shutdown(socket.SHUT_WR)
        poll, deadline_seconds = select.poll(), time.monotonic() + KILL_SECONDS
        poll.register(self._leash, select.POLLIN)
        while self._wait_for(poll, deadline_seconds):
            if self._listen():
                return True
        return False

    def _judge(self, words: str, reason: Ended | None) -> Finished:
        word, _, rest = words.partition(" ")
        if word == "failed":
            raise SandboxUnavailableError(f"a box failed: {rest}")
        ended, number, end_seconds = reason or Ended.DEADLINE, None, time.monotonic()
        if word in (Ended.EXITED, Ended.SIGNALLED):
            ended, number, end_seconds = Ended(word), int(rest.split()[0]), float(rest.split()[1])
        if self._num_spare_bytes() < 0:
            ended = Ended.OUTPUT_LIMIT
        outputs = [bytes(output) for output in self._outputs.values()] or [b"", b""]
        num_bytes = self._limits.output_kb * 1024
        stdout = outputs[0][:num_bytes]
        return Finished(
            ended=ended,
            exit_code=number if ended is Ended.EXITED else None,
            signal=number if ended is Ended.SIGNALLED else None,
            stdout=stdout,
            stderr=outputs[1][: num_bytes - len(stdout)],
            seconds=end_seconds - self._start_seconds,
        )

    def _wait_for(self, poll: select.poll, deadline_seconds: float) -> set[int]:
        left_seconds = max(0.0, deadline_seconds - time.monotonic())
        return {descriptor for descriptor, _ in poll.poll(left_seconds * 1000)}

    def _listen(self) -> bool:
        """Take what the keeper says; True when it is gone, and with it everything in the box."""
        try:
            words = self._leash.recv(4096)
        except ConnectionResetError:
            return True
        self._words = self._words or words.decode(errors="replace")
        return not words

    def _drain(self, descriptor: int) -> bool:
        """Take some output; False when there is none."""
        try:
            piece = os.read(descriptor, PIECE_BYTES)
        except BlockingIOError:
            return False
        self._outputs[descriptor] += piece
        return bool(piece)

    def _num_spare_bytes(self) -> int:
        return self._limits.output_kb * 1024 - sum(len(output) for output in self._outputs.values())
