"""The ranks of a run: who this process is, and what the ranks tell one another.

A launcher (torchrun, deepspeed) starts the processes and names them in its environment variables; without one there is
one rank, and every exchange is the identity. Numbers on the device travel through NCCL on GPUs and gloo on the CPU,
Python objects always through gloo."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpo.errors import ConfigError, StalledError
from grpo.watchdog import Watchdog

T = TypeVar("T")
BUCKET_ELEMENTS = 2**25
"""Of one message of a sum: large enough to fill a link, small beside the gradient."""
COLLECTIVE_TIMEOUT = timedelta(days=7)
"""Never reached: ranks may wait long for one that works, and what hangs is ended by the watchdog, with its name."""
JOIN_SECONDS = 60.0
"""At least, for every rank to come: imports take longer on one machine than on another."""
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World:
    """This process among the ranks. Every method but `progress` is called by every rank, in the same order."""

    def __init__(
        self, *, rank: int, size: int, device: torch.device, watchdog: Watchdog | None = None, objects: Any = None
    ) -> None:
        """Made by `opened`, or by `alone`. `objects` is the group that Python objects travel in."""
        self.rank, self.size, self.device = rank, size, device
        self.watchdog = watchdog
        self._objects = objects
        self._phase = "start"

    @classmethod
    def alone(cls, device: torch.device | None = None) -> "World":
        """One process without a launcher, and without a watchdog."""
        return cls(rank=0, size=1, device=device or torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def progress(self, phase: str = "", *, step: int | None = None) -> None:
        """Tell the watchdog that something got done, in `phase` from here on or in the same phase as before.

        Cheap: to be called for every token and micro-batch."""
        self._phase = phase or self._phase
        if self.watchdog is not None:
            self.watchdog.progress(self._phase, step=step)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value, group=self._objects)
        return values

    def broadcast(self, value: T) -> T:
        """The main rank's value. What other ranks hand in is not looked at."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        with self._waiting():
            dist.broadcast_object_list(values, src=0, group=self._objects)
        received: T = values[0]
        return received

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.largest(int(flag)) == 1

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        with self._waiting():
            dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._objects)
        return int(value)

    def _waiting(self) -> AbstractContextManager[None]:
        """Ranks that wait for one that still works are no sign of a hang."""
        return nullcontext() if self.watchdog is None else self.watchdog.waiting()

    def next_turn(self, name: str) -> int:
        """How often any rank has asked for a turn of this name before: each number is given once, as ranks ask."""
        turn: int = dist.distributed_c10d._get_default_store().add(f"turns of {name}", 1) - 1
        return turn

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in messages of `BUCKET_ELEMENTS`. All of one type."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for place, tensor in enumerate(tensors):
            bucket.append(tensor)
            is_last = place + 1 == len(tensors)
            if is_last or sum(t.numel() for t in bucket) + tensors[place + 1].numel() > BUCKET_ELEMENTS:
                flat = torch.cat([t.reshape(-1) for t in bucket])
                with self._waiting():
                    dist.all_reduce(flat)
                    if flat.is_cuda:
                        torch.cuda.current_stream().synchronize()  # NCCL only queues it: the wait would be elsewhere
                for t, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    t.copy_(summed.view_as(t))
                bucket = []
                self.progress()


@contextmanager
def opened(device: str, *, watchdog_seconds: float) -> Iterator[World]:
    """The ranks that the launcher started, connected; alone where there is no launcher.

    `device` is run.device. Raises ConfigError where it cannot be had, StalledError where not every rank comes, and as
    the end of a run of which another rank failed first."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    own = device_of(device, local_rank=local_rank)
    if own.type == "cpu":
        # DeepSpeed, which accelerate imports where it is installed, would look for a GPU and warn that it found none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if size == 1:
        with Watchdog(rank=0, size=1, seconds=watchdog_seconds) as watchdog:
            yield World(rank=0, size=1, device=own, watchdog=watchdog)
        return
    _join(own, seconds=watchdog_seconds, rank=rank, size=size)
    objects = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if own.type == "cuda" else None
    with Watchdog(rank=rank, size=size, seconds=watchdog_seconds) as watchdog:
        yield World(rank=rank, size=size, device=own, watchdog=watchdog, objects=objects)
    # Where something failed other ranks may be gone, and would be waited for.
    dist.destroy_process_group()


def _join(device: torch.device, *, seconds: float, rank: int, size: int) -> None:
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {size}, but the launcher did not set {', '.join(missing)}; start with torchrun or deepspeed"
        )
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=max(seconds, JOIN_SECONDS))
        )
        dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise StalledError(
            f"rank {rank} of {size} could not join the others at {address} ({error}); start every node, with the same "
            "address and port"
        ) from error


def device_of(name: str, *, local_rank: int = 0) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device = 'cuda', but torch finds no GPU; install a CUDA build of torch, or set auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"the launcher started local rank {local_rank}, but there are {torch.cuda.device_count()} GPUs; start one "
            "process a GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
