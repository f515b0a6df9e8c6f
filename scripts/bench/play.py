"""The sides of a case beside one another: a process each, which take turns until all have had so many.

Imports no torch: tables and help come at once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cases import Case

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured: steps to warm up, turns of each side, and steps of a turn."""

    warmup_steps: int
    turns: int
    steps: int


class SideError(RuntimeError):
    """A side's process ended before its time."""


def reason_to_skip(case: Case) -> str:
    """Why this case cannot be measured here; empty where it can."""
    if case.device == "cuda":
        probe = "import torch; print(torch.cuda.is_available())"
        found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
        if found.strip() != "True":
            return "torch finds no GPU"
    missing = [side for side in case.sides if side in ("trl", "vllm") and find_spec(side) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def play(case: Case, *, threads: int, pace: Pace, folder: Path) -> dict[str, Any]:
    """Measure a case: for each side its steps, turn by turn, and the machine's limits at each turn."""
    found: dict[str, list[Any]] = {side: [] for side in (*case.sides, "machine")}
    with ExitStack() as stack:
        processes = {}
        for side in found:
            processes[side] = stack.enter_context(_started(side, case, threads=threads, pace=pace, folder=folder))
            processes[side].hear(side)  # is ready: each warms up while the others wait
        for turn in range(pace.turns):
            # To and fro: a machine that gets slower or faster meanwhile favours no side.
            order = list(found) if turn % 2 == 0 else list(reversed(found))
            for side in order:
                found[side].append(processes[side].turn(side, num_messages=1 if side == "machine" else pace.steps))
    limits = [of_turn[0] for of_turn in found.pop("machine")]
    return {
        "case": case.name,
        "threads": threads,
        "warmup_steps": pace.warmup_steps,
        "sides": found,
        "machine": limits,
    }


@dataclass(frozen=True, slots=True)
class _Process:
    child: "subprocess.Popen[str]"
    log: Path

    def hear(self, side: str) -> dict[str, Any]:
        """The side's next message. Raises SideError where none comes."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise SideError(f"{side} ended with code {self.child.wait()}; see {self.log}")
        message: dict[str, Any] = json.loads(line)
        return message

    def turn(self, side: str, *, num_messages: int) -> list[dict[str, Any]]:
        """Let the side work until it has said so much."""
        assert self.child.stdin is not None
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        return [self.hear(side) for _ in range(num_messages)]


@contextmanager
def _started(side: str, case: Case, *, threads: int, pace: Pace, folder: Path) -> Iterator[_Process]:
    """The process of a side; it is ended with the context, wherever it is: what it measured has been heard."""
    log = folder / "logs" / f"{case.name}_threads_{threads}_{side}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent), *_arguments(side, case, threads, pace, folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=environment,
        )
        try:
            yield _Process(child, log)
        finally:
            child.kill()
            child.communicate()


def _arguments(side: str, case: Case, threads: int, pace: Pace, folder: Path) -> Sequence[str]:
    numbers = (threads, pace.warmup_steps, pace.turns, pace.steps)
    return ["--job", side, case.name, *map(str, numbers), "--folder", str(folder.resolve())]
