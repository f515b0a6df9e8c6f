"""The line between the ranks of a run: each says what it does, and the first failure is known to all.

A thread of its own talks to the store where the ranks met. An operation there blocks for as long as the store's host is
stopped, so nothing else touches it; whoever wants something says so here, waits for a bounded time, and goes on."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from threading import Condition, Event, Thread
from time import monotonic
from typing import Any, Literal

State = Literal["runs", "done", "left"]
"""What a rank is at: its work, waiting for the others to be done with theirs, or past looking at the store."""
CONNECT_SECONDS = 30.0
MEETING_SECONDS = 0.05
"""Between two looks while not every rank has come."""
ANSWER_SECONDS = 2.0
"""The longest that a claim waits for the store; past it, this rank goes by what it knows itself."""
FAILURE = "failure"
NO_RANK = -1
"""The rank of what failed where it is none of them: the launcher."""
NOBODY = "nobody"
"""What stands under `FAILURE` until a rank fails. Not empty: an empty value means a missing key to the store."""
_opened = count()
"""Of this process: a store that outlives a line must not hand its last words to the next one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the run ends."""

    rank: int
    """Which failed, not who says so; `NO_RANK` where it was the launcher."""
    text: str
    """One line that names the rank."""
    exit_code: int
    """Of every rank that ends of it."""
    is_stall: bool = False
    """Whether a rank hangs or is silent: then the stacks of the others say what they wait for."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank says of itself, several times a second or two."""

    number: int
    phase: str
    step: int | None
    idle_seconds: float
    """Since it got something done."""
    waits: bool
    """For other ranks, so that being idle is not its own fault."""
    state: State
    knows_failure: bool
    machine: str
    """Empty where processes cannot be told apart (no /proc)."""
    pid: int
    started: int
    """When its process started, in the kernel's ticks: with `pid` it names one process."""

    @property
    def place(self) -> str:
        """Where in the run it is, for a message."""
        return place(self.phase, self.step)

    @property
    def process_state(self) -> str:
        """The kernel's letter for its process (proc(5)); X where it is gone, ? where it is not on this machine."""
        if not self.machine or self.machine != _machine():
            return "?"
        letter, started = _process(self.pid)
        return letter if started == self.started else "X"

    @property
    def is_gone(self) -> bool:
        """Whether its process has ended, as far as this machine can tell."""
        return self.process_state in "XZ"

    @property
    def is_stopped(self) -> bool:
        """Whether its process was stopped by a signal or a debugger."""
        return self.process_state in "Tt"

    def kill(self) -> None:
        """End its process where it is one of this machine: a stopped one cannot end itself, and holds its GPU."""
        if self.process_state not in "?XZ":
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Heard:
    """The last beat of another rank, and when it came in."""

    beat: Beat
    since: float
    """monotonic, seconds."""


def place(phase: str, step: int | None) -> str:
    """Where in a run, for a message."""
    return f"phase {phase!r}" + ("" if step is None else f", step {step}")


def own_process() -> tuple[str, int, int]:
    """This process as a beat names it: machine, process id, and when it started."""
    return _machine(), os.getpid(), _process(os.getpid())[1]


class Line:
    """One rank's line to the others. Its attributes may be read at any time, from any thread."""

    def __init__(self, *, rank: int, size: int, interval_seconds: float, beat: Callable[[int], Beat]) -> None:
        """`beat` makes this rank's next one, given its number."""
        self.failure: Failure | None = None
        """The first of the run, once it is known here."""
        self.heard: Mapping[int, Heard] = {}
        """The other ranks that have said something, by rank."""
        self.exchanged = monotonic()
        """When the store answered last."""
        self.lost: str | None = None
        """Why the store can no longer be reached."""
        self._rank, self._size, self._interval_seconds, self._beat = rank, size, interval_seconds, beat
        self._claim: Failure | None = None
        self._is_claimed = False
        self._news = Condition()
        self._wake = Event()
        self._closing = False
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"grpo/heartbeat/{restart}/{next(_opened)}"
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def open(self) -> None:
        """Start talking, and wait for the first word of every rank: one that is not known cannot be named or ended."""
        self.exchanged = monotonic()
        self._thread.start()
        self.until(
            lambda: self._all_heard() or self.failure is not None or self.lost is not None, seconds=CONNECT_SECONDS
        )

    def close(self, *, seconds: float) -> None:
        """Say the last beat, and end the thread unless the store blocks it."""
        self._closing = True
        self._wake.set()
        self._thread.join(seconds)

    def claim(self, failure: Failure) -> Failure:
        """Tell the others of a failure; returns the first one of the run, which may be another one."""
        with self._news:
            self._claim = self._claim or failure
        self._wake.set()
        self.until(lambda: self.failure is not None or self.lost is not None, seconds=ANSWER_SECONDS)
        with self._news:
            self.failure = self.failure or self._claim
            self._news.notify_all()
            return self.failure

    def until(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        """Wait until something that comes over the line makes `condition` so; returns whether it is."""
        with self._news:
            return self._news.wait_for(condition, seconds)

    def forgive(self) -> None:
        """Count nobody's silence before this moment: this process itself was stopped meanwhile."""
        now = monotonic()
        self.heard = {rank: replace(heard, since=now) for rank, heard in self.heard.items()}
        self.exchanged = now

    def _all_heard(self) -> bool:
        return len(self.heard) == self._size - 1

    def _run(self) -> None:
        try:
            store = self._connect()
            for number in count():
                # Before the exchange, so that one comes after it whatever it is set in the middle of.
                last = self._closing
                self._wake.clear()
                self._exchange(store, number)
                if last:
                    return
                self._wake.wait(self._interval_seconds if self._all_heard() else MEETING_SECONDS)
        except RuntimeError as error:  # torch.distributed.DistError is one
            with self._news:
                self.lost = str(error).splitlines()[0]
                self._news.notify_all()

    def _connect(self) -> Any:
        from torch.distributed import PrefixStore, TCPStore

        # A connection of its own: an operation that blocks holds up every other one of the same connection.
        connection = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=CONNECT_SECONDS),
            wait_for_workers=False,
        )
        store = PrefixStore(self._prefix, connection)
        store.compare_set(FAILURE, "", NOBODY)  # sets it only where it is missing
        return store

    def _exchange(self, store: Any, number: int) -> None:
        first = None
        if self._claim is not None and not self._is_claimed:
            # Whoever comes first replaces NOBODY; everyone else reads what stands there.
            first = store.compare_set(FAILURE, NOBODY, json.dumps(asdict(self._claim)))
            self._is_claimed = True
        store.set(f"beat/{self._rank}", json.dumps(asdict(self._beat(number))))
        ranks = [rank for rank in range(self._size) if rank != self._rank]
        if not self._all_heard():
            ranks = [rank for rank in ranks if store.check([f"beat/{rank}"])]  # reading a missing key would block
        failure, *beats = store.multi_get([FAILURE, *(f"beat/{rank}" for rank in ranks)])
        first = first or failure
        now = monotonic()
        heard = {}
        for rank, raw in zip(ranks, beats, strict=True):
            beat, before = Beat(**json.loads(raw)), self.heard.get(rank)
            same = before is not None and before.beat.number == beat.number
            heard[rank] = Heard(beat, since=before.since if before is not None and same else now)
        with self._news:
            self.heard, self.exchanged = heard, now
            if self.failure is None and first != NOBODY.encode():
                self.failure = Failure(**json.loads(first))
            self._news.notify_all()


@cache
def _machine() -> str:
    """Names the kernel and the process namespace in which a process id means one process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: ranks are then only told apart by what they say
        return ""


def _process(pid: int) -> tuple[str, int]:
    """State letter and start time, in ticks, of a process; ("X", 0) where there is none. Source: proc(5)."""
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0], int(fields[19])
