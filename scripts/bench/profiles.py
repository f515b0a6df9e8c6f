"""Where a step's time goes: torch's profiler over the last of three steps of ours, by kind of work.

An operation counts for itself, without those it calls. What no operation accounts for is the interpreter's: Python,
dispatch, and whatever runs without torch. Seconds are the wall's, as the profiler's are: read the shares. The profiler
slows every operation a little, so short ones look longer than they are."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cases import Case
from run_ours import run
from torch.profiler import ProfilerActivity, profile
from turns import PHASES, Turns

KINDS = {
    "products of matrices": r"(add)?mm|(badd)?bmm|mkldnn_.*|linear.*|matmul|mv|dot",
    "attention": r"scaled_dot_product.*",
    "softmax": r"(log_)?softmax.*|logsumexp",
    "copies": r"copy_|to_copy|cat|stack|clone|contiguous|index_copy.*|repeat.*",
    "indexing": r"index.*|gather.*|scatter.*|embedding.*|masked_.*|nonzero.*|slice.*|select.*|(arg)?sort|topk",
    "integers and bits": r"bitwise_.*|_(and|or|xor|[lr]shift)__|remainder|arange",
    "optimizer": r"foreach_.*|fused_adam.*|lerp.*|addcdiv.*|addcmul.*|linalg_vector_norm",
}
"""Kinds of operations, by their names without library and leading underscore; the first that fits counts."""
OTHER, INTERPRETER = "other elementwise and reductions", "the interpreter"
NUM_STEPS = 3
NUM_LONGEST = 8


def kind_of(operation: str) -> str:
    """The kind of an operation of torch, by its name."""
    name = operation.rpartition("::")[2].removeprefix("_")
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)), OTHER)


def shares(operation_seconds: Mapping[str, float], *, phase_seconds: float) -> list[tuple[str, float]]:
    """Share of each kind in a phase's time, the largest first; the interpreter's is what is left."""
    found: defaultdict[str, float] = defaultdict(float)
    for operation, seconds in operation_seconds.items():
        found[kind_of(operation)] += seconds
    found[INTERPRETER] = max(0.0, phase_seconds - sum(found.values()))
    return sorted(((kind, seconds / phase_seconds) for kind, seconds in found.items()), key=lambda pair: -pair[1])


def profiled(case: Case, *, folder: Path) -> str:
    """Tables of a step's phases: kinds of work, and the longest operations."""
    torch.set_num_threads(1)
    turns = _ProfiledTurns(case)
    run(case, turns, folder=folder, threads=1, num_steps=NUM_STEPS)
    lines = [f"**{case.name}**: {case.what}."]
    for phase in PHASES:
        seconds, operations = turns.seconds[phase], turns.operations[phase]
        lines += ["", f"| {phase}, {seconds:.2f} seconds | share |", "|---|---|"]
        lines += [f"| {kind} | {share:.0%} |" for kind, share in shares(operations, phase_seconds=seconds)]
        longest = sorted(operations.items(), key=lambda pair: -pair[1])[:NUM_LONGEST]
        lines += ["", "Longest: " + ", ".join(f"{name} {value / seconds:.0%}" for name, value in longest)]
    return "\n".join(lines)


class _Silent:
    """A pipe of a side that is alone: it is always its turn."""

    def send(self, message: dict[str, Any]) -> None:
        """Nobody listens."""

    def wait(self) -> None:
        """No other side has a turn."""


class _ProfiledTurns(Turns):
    """Profiles the phases of the last step; the first ones warm up."""

    def __init__(self, case: Case) -> None:
        super().__init__(_Silent(), case, warmup_steps=NUM_STEPS, steps_per_turn=1)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.operations: dict[str, dict[str, float]] = {name: {} for name in PHASES}
        self._num_phases: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As without a profile, with one where it is the last step's."""
        self._num_phases[name] += 1
        with super().phase(name):
            if self._num_phases[name] < NUM_STEPS:
                yield
                return
            began = time.perf_counter()
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                yield
                # Inside, since closing the profiler takes time of its own.
                self.seconds[name] = time.perf_counter() - began
        events = profiler.key_averages()
        self.operations[name] = {event.key: event.self_cpu_time_total / 1e6 for event in events}
