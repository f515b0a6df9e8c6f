"""Real processes: a program on several ranks, as a launcher starts it."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Launcher = Callable[..., list[str]]
ROOT = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """For processes that share two cores and no network."""
    fixed = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return os.environ | fixed | more


def command(*arguments: str | Path, ranks: int) -> list[str]:
    """torchrun with `ranks` processes of a program."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", "0"]
    # Standalone: an address of its own, so that tests beside one another do not meet.
    return [*launcher, "--standalone", *map(str, arguments)]


def by_deepspeed(*arguments: str | Path, ranks: int) -> list[str]:
    """The deepspeed launcher with `ranks` processes of a program."""
    launcher = Path(sys.executable).with_name("deepspeed")
    return [
        sys.executable,
        str(launcher),
        "--num_gpus",
        str(ranks),
        "--master_port",
        str(free_port()),
        *map(str, arguments),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def started(*arguments: str | Path, ranks: int, output: Path) -> "subprocess.Popen[bytes]":
    """Start a program on several ranks; what it says goes to `output`."""
    with output.open("ab") as file:
        return subprocess.Popen(command(*arguments, ranks=ranks), cwd=ROOT, env=environment(), stdout=file, stderr=file)


def launched(
    *arguments: str | Path,
    ranks: int,
    limit_seconds: float = 240,
    launcher: Launcher = command,
    accelerator: str = "cpu",
) -> str:
    """What a program says on several ranks that all end well."""
    done = subprocess.run(
        launcher(*arguments, ranks=ranks),
        cwd=ROOT,
        env=environment(DS_ACCELERATOR=accelerator),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
