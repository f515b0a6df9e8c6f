"""What ends a run that hangs: a thread that knows when something was last done, and says what was being done.

Every rank has one. It ends the process where the main thread gets nothing done, where another rank does not or has
failed, and where one is gone or silent; the first failure of the run is the last line of every rank's log. Two things
it cannot do: run while the main thread is inside C code that keeps Python's lock (the other ranks then see a silent
one), and tell a rank that waits inside somebody else's collective from one that hangs (see `waiting`)."""

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, Timer
from time import monotonic
from types import TracebackType

from grpo.errors import Interrupted, RunError, StalledError
from grpo.heartbeat import NO_RANK, Beat, Failure, Heard, Line, State, own_process, place

INTERVAL_SECONDS = 0.5
"""Between two looks, and two beats: launchers end the other ranks of one that failed, so its name must travel fast."""
SILENT_BEATS = 4
"""A rank that missed as many is named as the one that another waits for, where something is wrong anyway."""
LOST_SECONDS = 1.0
"""How long a lost store waits for a better explanation: that the process which held it is gone."""
BLAME_SECONDS = 3.0
"""How long an error without a name waits for the one that it may be the consequence of (a connection that broke)."""
GRACE_SECONDS = 5.0
"""How long the main thread may take to end by itself of another rank's failure, with all that closing entails."""
KNOWN_SECONDS = 3.0
"""How long a rank that ends stays for the others to hear of it: it may hold the store."""
LAST_RESORT_SECONDS = 15.0
"""How long a process that has failed may take to end."""
MAX_NAMED = 8
"""Ranks that a message lists."""
MAX_CHARACTERS = 2000
"""Of an error's message that the other ranks are told."""
HOW_TO_GO_ON = "--resume goes on from the last checkpoint"


@dataclass(frozen=True, slots=True)
class Situation:
    """What a rank knows at one moment, for `found`. Ages in seconds."""

    rank: int
    size: int
    where: str
    """Phase and step of this rank."""
    idle_seconds: float
    waits: bool
    exchange_age: float
    """Since the store answered last."""
    lost: str | None
    """Why the store cannot be reached."""
    store_holder: str
    """Who holds it, in words."""
    holder_rank: int
    """`NO_RANK` where the launcher holds it."""
    heard: Mapping[int, Heard]
    silence: Mapping[int, float]
    """Of every rank that was heard."""


def found(now: Situation, *, seconds: float, silent_seconds: float) -> Failure | None:
    """What is wrong, if anything: a rank that is gone, the store, a silent rank, this rank itself; in this order.

    `seconds` is watchdog.seconds; `silent_seconds` makes a silent rank the cause of what is wrong with this one."""
    others = {rank: heard.beat for rank, heard in now.heard.items() if heard.beat.state != "left"}
    for rank, beat in others.items():
        if beat.is_gone:
            return _stalled(rank, f"is gone: its process {beat.pid} ended without a word (killed?) in {beat.place}")
    all_done = len(now.heard) == now.size - 1 and all(beat.state == "done" for beat in others.values())
    if now.lost is not None and now.exchange_age > LOST_SECONDS and not all_done:
        return _gone_holder(now)
    if now.size > 1 and now.exchange_age > seconds:
        return _silent_holder(now)
    longest = max(others, key=lambda rank: now.silence[rank], default=None)
    if longest is not None and now.silence[longest] > seconds:
        return _silent(longest, now)
    # Whoever waits for others leaves the word to one that hangs, if there is one.
    limit = seconds + silent_seconds if now.waits else seconds
    if now.idle_seconds <= limit:
        return None
    if now.size > 1 and now.exchange_age > silent_seconds:
        return _silent_holder(now)
    if longest is not None and now.silence[longest] > silent_seconds:
        return _silent(longest, now)
    missing = [rank for rank in range(now.size) if rank != now.rank and rank not in now.heard]
    if missing:
        return _stalled(missing[0], f"was never heard of; rank {now.rank} waits for it in {now.where}", is_stall=True)
    if now.waits and any(beat.idle_seconds <= seconds for beat in others.values()):
        return None
    return _stalled(
        now.rank,
        f"made no progress for {now.idle_seconds:.0f} s (watchdog.seconds = {seconds:g}) in {now.where}"
        + _elsewhere(others, where=now.where),
        is_stall=True,
    )


class Watchdog:
    """The watch over one rank, while the context lasts. One that fails tells the others why."""

    def __init__(self, *, rank: int, size: int, seconds: float) -> None:
        """`seconds` is watchdog.seconds. With `size` above 1 the launcher's variables name the store."""
        self._rank, self._size, self._seconds = rank, size, seconds
        self._interval_seconds = min(INTERVAL_SECONDS, seconds / 8)
        self._silent_seconds = SILENT_BEATS * self._interval_seconds
        self._latest: tuple[float, str, int | None] = (monotonic(), "start", None)  # one write, so never half of one
        self._waits = False
        self._state: State = "runs"
        self._log: int | None = None  # file descriptor
        self._own: Failure | None = None
        self._closed, self._leaving = Event(), Event()
        self._machine, self._pid, self._started = own_process()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
        self._line: Line | None = None
        if size > 1:
            self._line = Line(rank=rank, size=size, interval_seconds=self._interval_seconds, beat=self._beat)

    def progress(self, phase: str, *, step: int | None = None) -> None:
        """Something got done in `phase`; `step` where it is another one than before."""
        self._latest = (monotonic(), phase, self._latest[2] if step is None else step)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While every rank waits for the last one: idle, but only as long as some other rank gets something done."""
        self._waits = True
        try:
            yield
        finally:
            _, phase, step = self._latest
            self._latest = (monotonic(), phase, step)
            self._waits = False

    def log_to(self, path: Path) -> None:
        """Where this rank's last words go, beside standard error. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def __enter__(self) -> "Watchdog":
        self._latest = (monotonic(), *self._latest[1:])
        if self._line is not None:
            self._line.open()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the other ranks what this one failed of; raises what another one failed of first.

        Without an error it waits until every rank has come here. Raises StalledError, with the exit code of the first
        failure, unless this rank's own error has a name: ranks often raise the same one together."""
        if isinstance(error, SystemExit) and not error.code:
            error = None
        first = self._all_done() if error is None else self._first_failure(error)
        self._closed.set()
        self._thread.join(KNOWN_SECONDS)  # what it has to say stands before the last line
        if first is None:
            self._close()
            return
        is_own = first == self._own
        replaces = not is_own and (error is None or (isinstance(error, Exception) and not isinstance(error, RunError)))
        self._start_last_resort(first.exit_code if replaces or error is None else _exit_code(error))
        if error is not None and not isinstance(error, RunError):
            self._write("".join(traceback.format_exception(error)), to_stderr=False)
        self._let_others_know()
        self._write(f"{self._last_line(first)}\n", to_stderr=False)
        self._close()
        if replaces:
            stalled = StalledError(self._last_line(first))
            stalled.exit_code = first.exit_code
            raise stalled from error

    # --- the watching thread --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        before = monotonic()
        while not self._closed.is_set():
            first = self._pause()
            now = monotonic()
            if now - before > max(self._seconds / 2, self._silent_seconds):
                # Nothing here ran meanwhile, this thread included: the process was stopped and went on.
                self._latest = (now, *self._latest[1:])
                if self._line is not None:
                    self._line.forgive()
            before = now
            is_found_here = first is None
            if first is None:
                first = found(self._situation(), seconds=self._seconds, silent_seconds=self._silent_seconds)
                if first is not None and self._line is not None:
                    first = self._line.claim(first)
            if first is not None:
                self._end_of(first, hangs=is_found_here and first.rank == self._rank)
                return

    def _pause(self) -> Failure | None:
        """Until the next look, or until a failure is known: that one."""
        line = self._line
        if line is None:
            self._closed.wait(self._interval_seconds)
            return None
        line.until(lambda: line.failure is not None, seconds=self._interval_seconds)
        return line.failure

    def _end_of(self, first: Failure, *, hangs: bool) -> None:
        """End the process, unless the main thread does so within its grace; one that hangs has none."""
        report = f"rank {self._rank} in {self._where()}, the stacks of its threads:\n{_stacks()}"
        if first.is_stall:
            self._write(report, to_stderr=True)
            self._kill_silent(first.rank)
        if not hangs and self._leaving.wait(GRACE_SECONDS):
            return
        self._start_last_resort(first.exit_code)
        if not first.is_stall:
            self._write(report, to_stderr=False)
        self._let_others_know()
        self._write(f"grpo: {self._last_line(first)}\n", to_stderr=True)
        os._exit(first.exit_code)

    def _situation(self) -> Situation:
        now, (at, phase, step), line = monotonic(), self._latest, self._line
        heard = {} if line is None else dict(line.heard)
        agent_holds = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address = os.environ.get("MASTER_ADDR", "this machine")
        return Situation(
            rank=self._rank,
            size=self._size,
            where=place(phase, step),
            idle_seconds=0.0 if self._leaving.is_set() else now - at,
            waits=self._waits,
            exchange_age=0.0 if line is None else now - line.exchanged,
            lost=None if line is None else line.lost,
            store_holder=f"torchrun's agent on {address}" if agent_holds else f"rank 0 on {address}",
            holder_rank=NO_RANK if agent_holds else 0,
            heard=heard,
            silence={} if line is None else {rank: line.exchanged - heard[rank].since for rank in heard},
        )

    def _beat(self, number: int) -> Beat:
        at, phase, step = self._latest
        return Beat(
            number=number,
            phase=phase,
            step=step,
            idle_seconds=monotonic() - at,
            waits=self._waits,
            state=self._state,
            knows_failure=self._line is not None and self._line.failure is not None,
            machine=self._machine,
            pid=self._pid,
            started=self._started,
        )

    def _kill_silent(self, rank: int) -> None:
        """End a silent rank of this machine, which cannot do so itself, and would keep its memory and its GPU."""
        heard = None if self._line is None else self._line.heard.get(rank)
        if heard is not None and (heard.beat.is_stopped or monotonic() - heard.since > self._seconds):
            heard.beat.kill()

    # --- the end --------------------------------------------------------------------------------------------------

    def _all_done(self) -> Failure | None:
        """Wait until no rank has work left, so that none is missed by another; or for what ends the run instead."""
        line = self._line
        if line is None:
            return None
        self._waits, self._state = True, "done"

        def all_done() -> bool:
            beats = [heard.beat for heard in line.heard.values()]
            return len(beats) == self._size - 1 and all(beat.state != "runs" for beat in beats)

        # Bounded by the watching thread, which finds what is wrong where this takes too long.
        while not line.until(lambda: line.failure is not None or all_done(), seconds=1.0):
            pass
        self._leaving.set()
        return line.failure

    def _first_failure(self, error: BaseException) -> Failure:
        """The failure that the run ends of: this rank's, unless another one's came first or is the cause of it."""
        self._leaving.set()
        name = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_CHARACTERS]
        line = self._line
        if line is None:
            self._own = Failure(rank=self._rank, text=name, exit_code=_exit_code(error))
            return self._own
        if isinstance(error, RuntimeError):
            # Such as a connection that broke. Who broke it has said so, or is found gone, or misses its beats.
            line.until(lambda: line.failure is not None, seconds=BLAME_SECONDS)
            now = self._situation()
            longest = max(now.silence, key=lambda rank: now.silence[rank], default=None)
            if longest is not None and now.silence[longest] > self._silent_seconds:
                return line.claim(_silent(longest, now))
        # A bug of this rank is none of the others: for them it is a run that ended early.
        exit_code = StalledError.exit_code if _exit_code(error) == 1 else _exit_code(error)
        self._own = Failure(rank=self._rank, text=f"rank {self._rank} failed first: {name}", exit_code=exit_code)
        return line.claim(self._own)

    def _let_others_know(self) -> None:
        line = self._line
        if line is not None:
            line.until(
                lambda: line.lost is not None or all(heard.beat.knows_failure for heard in line.heard.values()),
                seconds=KNOWN_SECONDS,
            )

    def _close(self) -> None:
        line = self._line
        if line is not None:
            self._state = "left"
            if self._rank == 0 and line.failure is None:
                # It may hold the store, which the others need until they have left.
                line.until(
                    lambda: line.lost is not None or all(heard.beat.state == "left" for heard in line.heard.values()),
                    seconds=KNOWN_SECONDS,
                )
            line.close(seconds=KNOWN_SECONDS)
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _start_last_resort(self, exit_code: int) -> None:
        """End the process for certain: a thread that nobody joins or a library's teardown may hang for ever."""
        if self._size == 1:
            return  # nobody waits for it, and who started it may go on after the failure

        def end() -> None:
            self._write(f"grpo: rank {self._rank} did not end by itself; {HOW_TO_GO_ON}\n", to_stderr=True)
            os._exit(exit_code)

        timer = Timer(LAST_RESORT_SECONDS, end)
        timer.daemon = True
        timer.start()

    def _last_line(self, first: Failure) -> str:
        if first == self._own:
            return first.text
        where = "" if f"rank {self._rank} " in first.text else f" (rank {self._rank} was in {self._where()})"
        return f"{first.text}{where}; {HOW_TO_GO_ON}"

    def _where(self) -> str:
        return place(*self._latest[1:])

    def _write(self, text: str, *, to_stderr: bool) -> None:
        """Straight to the descriptors: Python's buffers may be locked by the thread that hangs."""
        for descriptor in ([2] if to_stderr else []) + ([] if self._log is None else [self._log]):
            with suppress(OSError):  # a full disk or a closed pipe must not keep the process from ending
                os.write(descriptor, text.encode())


# --- what is wrong, in words ------------------------------------------------------------------------------------------


def _stalled(rank: int, what: str, *, is_stall: bool = False) -> Failure:
    return Failure(rank=rank, text=f"rank {rank} {what}", exit_code=StalledError.exit_code, is_stall=is_stall)


def _silent(rank: int, now: Situation) -> Failure:
    text = (
        f"rank {now.rank} waits in {now.where} for rank {rank}, which was last heard of {now.silence[rank]:.0f} s ago "
        f"in {now.heard[rank].beat.place}"
    )
    return Failure(rank=rank, text=text, exit_code=StalledError.exit_code, is_stall=True)


def _of_holder(now: Situation, what: str, *, is_stall: bool) -> Failure:
    known = now.heard.get(now.holder_rank)
    where = "" if known is None else f", last heard of in {known.beat.place}"
    text = f"{now.store_holder}, which holds the store where the ranks meet, {what}{where}"
    return Failure(rank=now.holder_rank, text=text, exit_code=StalledError.exit_code, is_stall=is_stall)


def _gone_holder(now: Situation) -> Failure:
    return _of_holder(now, f"is gone ({now.lost})", is_stall=False)


def _silent_holder(now: Situation) -> Failure:
    return _of_holder(now, f"has not answered for {now.exchange_age:.0f} s", is_stall=True)


def _elsewhere(others: Mapping[int, Beat], *, where: str) -> str:
    """Where the ranks are that are not where this one is."""
    apart = [f"rank {rank} is in {beat.place}" for rank, beat in others.items() if beat.place != where]
    return "".join(f"; {text}" for text in apart[:MAX_NAMED]) + (" ..." if len(apart) > MAX_NAMED else "")


def _exit_code(error: BaseException) -> int:
    if isinstance(error, RunError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def _stacks() -> str:
    """The Python stacks of all threads."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"thread {names.get(ident, ident)!r}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
