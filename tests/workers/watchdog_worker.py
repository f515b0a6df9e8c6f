"""One rank under the watchdog: works in step with the others, and at one moment does what a test wants of it.

Started by tests/test_watchdog.py: RANK, WORLD_SIZE and the address in the environment, as a launcher sets them."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from grpo.distributed.world import World, opened
from grpo.errors import DiskError, RunError

STEPS = 4
BEATS_SECONDS = 1.0
"""Long enough for a beat, so that the others have heard of step 3."""


def never_returns() -> None:
    """What a reward that hangs looks like."""
    while True:
        time.sleep(0.1)


def fill_the_disk() -> None:
    raise DiskError("no space left for checkpoints/step_000003")


def have_a_bug() -> None:
    raise KeyError("lost")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ACTS: dict[str, Callable[[], None]] = {
    "hang": never_returns,
    "disk": fill_the_disk,
    "bug": have_a_bug,
    "stop": stop,
    "die": die,
    "nothing": lambda: None,
}


def work(world: World, *, act: str, at_rank: int, slow_seconds: float) -> None:
    """Steps of a reward and an exchange; `at_rank` does `act` in step 3, and is slow in step 2 and at the end."""
    for step in range(STEPS):
        world.progress("reward", step=step)
        if world.rank == at_rank and step == 2:
            be_slow(world, seconds=slow_seconds)
        if world.rank == at_rank and step == 3:
            time.sleep(BEATS_SECONDS)
            ACTS[act]()
        world.gather(world.rank)
        world.progress("update")
    if world.rank == at_rank:
        be_slow(world, seconds=slow_seconds)


def be_slow(world: World, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        world.progress("reward")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("logs", type=Path)  # first: torchrun takes a --logs for its own
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--act", choices=ACTS, required=True)
    parser.add_argument("--at-rank", type=int, default=0)
    parser.add_argument("--slow-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # as grpo.cli: the step ends first
    rank = int(os.environ.get("RANK", "0"))
    (arguments.logs / f"{rank}.pid").write_text(str(os.getpid()))
    try:
        with opened("cpu", watchdog_seconds=arguments.seconds) as world:
            assert world.watchdog is not None
            world.watchdog.log_to(arguments.logs / f"rank_{world.rank}.log")
            work(world, act=arguments.act, at_rank=arguments.at_rank, slow_seconds=arguments.slow_seconds)
    except RunError as error:
        print(f"grpo: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
