"""A recorder for CPUs that keeps and breaks what a CUDA graph does: kernels and addresses are those of the recording,
whatever Python would do now, and nothing may wait for the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select")
"""Operations whose result, or its shape, the host has to know."""


class NoWaiting(TorchDispatchMode):
    """Refuses every operation for which a host waits for its device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"{func.overloadpacket.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


class Tape(NoWaiting):
    """Every operation inside, with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.num_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        # What has memory of its own; a view's, and what is written in place, is another's.
        fresh = [value for value, kind in zip(_each(found), func._schema.returns, strict=False) if not kind.alias_info]
        self._operations.append((func, args, kwargs or {}, [value for value in fresh if isinstance(value, Tensor)]))
        return found

    def replay(self) -> None:
        """Run the operations again, each on the memory that it had."""
        self.num_replays += 1
        for func, args, kwargs, fresh in self._operations:
            found = [value for value in _each(func(*args, **kwargs)) if isinstance(value, Tensor)]
            for own, value in zip(fresh, found, strict=False):
                own.copy_(value)


class Recorder:
    """As `grpo.sampling.graphs.cuda_graph`, for a CPU; its tapes are kept, so that a test can see what was replayed."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tape = Tape()
        with tape:
            output = compute()
        # A graph's recording runs nothing, so nothing may be taken for done.
        output.fill_(torch.nan)
        self.tapes.append(tape)

        def replay() -> Tensor:
            tape.replay()
            return output

        return replay

    @property
    def num_replays(self) -> int:
        """Over all recordings."""
        return sum(tape.num_replays for tape in self.tapes)


def _each(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else tree_leaves(found)
