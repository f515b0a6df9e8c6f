"""A side's half of the measurement: it works when it is its turn, and reports each step in CPU- and wall-seconds.

The script holds the other end of the pipe. Sides take turns step by step, in processes of their own, so that what else
the machine does meets them all alike; a side that waits costs nothing."""

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from cases import Case
from torch.nn import functional

PHASES = ("sampling", "training")


class Reporter(Protocol):
    """Whom a side reports to."""

    def send(self, message: dict[str, Any]) -> None:
        """Say what a step was."""

    def wait(self) -> None:
        """Until it is this side's turn."""


class Pipe:
    """The way to the script: one JSON object a line. Everything else that is printed goes to the log (stderr)."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def wait(self) -> None:
        """Until it is this side's turn. Ends the process where the script is gone."""
        if not sys.stdin.readline():
            raise SystemExit("the script that this side reports to is gone")


@dataclass(slots=True)
class Spent:
    """Time of a phase, positions that went through the embedding meanwhile, and memory at its start and peak."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    positions: int = 0
    start_bytes: int = 0
    peak_bytes: int = 0


@dataclass(slots=True)
class Step:
    """What one step was: its phases, and of each group the prompt's and the completions' lengths in tokens."""

    phases: dict[str, Spent] = field(default_factory=lambda: {name: Spent() for name in PHASES})
    prompt_lengths: list[int] = field(default_factory=list)  # of each group
    lengths: list[list[int]] = field(default_factory=list)  # of each group's completions
    trained_tokens: int = 0


class Turns:
    """The clock of a side. Steps begin and end where `step_done` is called."""

    def __init__(self, pipe: Reporter, case: Case, *, warmup_steps: int, steps_per_turn: int) -> None:
        self._pipe, self._warmup_steps, self._steps_per_turn = pipe, warmup_steps, steps_per_turn
        self._memory: Memory = CudaMemory() if case.device == "cuda" else CpuMemory(trim=case.is_exact_memory)
        self.step = Step()
        self._phase: str | None = None
        self._num_done = 0
        self._base_bytes = 0
        self._began = self._phase_began = (0.0, 0.0)
        self._count_embedded()

    def begin(self) -> None:
        """Before the first step: everything that memory is compared with is loaded."""
        self._base_bytes = self._memory.now()
        self._began = self._clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens within is this phase's."""
        self.begin_phase(name)
        try:
            yield
        finally:
            self.end_phase()

    def begin_phase(self, name: str) -> None:
        """What happens from here on is this phase's. A step may have several parts of one."""
        assert self._phase is None
        spent = self.step.phases[name]
        self._memory.reset()
        spent.start_bytes = spent.start_bytes or self._memory.now()
        self._phase, self._phase_began = name, self._clock()

    def end_phase(self) -> None:
        """The phase is over."""
        assert self._phase is not None
        spent, (wall, cpu) = self.step.phases[self._phase], self._clock()
        spent.wall_seconds += wall - self._phase_began[0]
        spent.cpu_seconds += cpu - self._phase_began[1]
        spent.peak_bytes = max(spent.peak_bytes, self._memory.peak())
        self._phase = None

    def step_done(self) -> None:
        """The step is over: report it, wait for the next turn where this one is over, and begin the next step."""
        wall, cpu = (after - before for after, before in zip(self._clock(), self._began, strict=True))
        self._num_done += 1
        num_measured = self._num_done - self._warmup_steps
        if num_measured > 0:
            self._pipe.send(self._report(wall_seconds=wall, cpu_seconds=cpu))
        if num_measured == 0:
            self._pipe.send({"ready": True})
        if num_measured >= 0 and num_measured % self._steps_per_turn == 0:
            self._pipe.wait()
        self.step = Step()
        self._began = self._clock()

    def _report(self, *, wall_seconds: float, cpu_seconds: float) -> dict[str, Any]:
        step = self.step
        phases = {
            name: {
                "cpu_seconds": spent.cpu_seconds,
                "wall_seconds": spent.wall_seconds,
                "positions": spent.positions,
                "peak_bytes": spent.peak_bytes - self._base_bytes,
                "extra_bytes": spent.peak_bytes - spent.start_bytes,
            }
            for name, spent in step.phases.items()
        }
        return {
            "wall_seconds": wall_seconds,
            "cpu_seconds": cpu_seconds,
            "prompt_lengths": step.prompt_lengths,
            "lengths": step.lengths,
            "trained_tokens": step.trained_tokens,
            **phases,
        }

    def _clock(self) -> tuple[float, float]:
        self._memory.wait_for_device()
        return time.perf_counter(), time.process_time()

    def _count_embedded(self) -> None:
        embedding = functional.embedding

        def counted(input: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            if self._phase is not None:
                self.step.phases[self._phase].positions += input.numel()
            return embedding(input, *arguments, **named)

        functional.embedding = counted


class CpuMemory:
    """Resident memory of this process, by Linux.

    With `trim` freed blocks that glibc keeps for later are given back at a reset, so that what is resident is held;
    without, they are left where they are, since touching them again takes time."""

    def __init__(self, *, trim: bool) -> None:
        self._trim = ctypes.CDLL("libc.so.6").malloc_trim if trim else lambda pad: None

    def now(self) -> int:
        return self._read("VmRSS")

    def peak(self) -> int:
        """Since the last reset."""
        return self._read("VmHWM")

    def reset(self) -> None:
        """Measure the peak from here on."""
        self._trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def wait_for_device(self) -> None:
        """Nothing runs behind the program's back."""

    def _read(self, name: str) -> int:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise OSError(f"/proc/self/status has no {name}; memory is measured on Linux alone")


class CudaMemory:
    """Memory of the GPU that torch's allocator has handed out."""

    def now(self) -> int:
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Since the last reset."""
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        """Measure the peak from here on."""
        torch.cuda.reset_peak_memory_stats()

    def wait_for_device(self) -> None:
        torch.cuda.synchronize()


Memory = CpuMemory | CudaMemory


def watch(
    owner: Any,
    name: str,
    *,
    during: Callable[[], AbstractContextManager[None]] = nullcontext,
    then: Callable[[Any], None] = lambda found: None,
) -> None:
    """Have `owner.name` run within the context that `during` gives, and hand what it returned to `then`."""
    function = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        with during():
            found = function(*arguments, **named)
        then(found)
        return found

    setattr(owner, name, watched)
