"""The problems a curriculum chooses from, and the walk that goes through all of them before any comes back."""

import hashlib
from collections.abc import Iterable, Mapping, Set
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.types import Outcome, Tier

_SCAN = 1024


class Pool:
    """Problem ids, sorted, so that nothing drawn depends on the order in which they were handed over.

    A saved state carries the fingerprint of ids and tiers.
    Raises ValueError on no id, an empty id or a repeated one."""

    def __init__(self, problem_ids: Iterable[str], *, tiers: Mapping[str, Tier] | None = None) -> None:
        self.ids: tuple[str, ...] = tuple(sorted(problem_ids))
        self.index = {problem_id: index for index, problem_id in enumerate(self.ids)}
        if not self.ids or not self.ids[0]:
            raise ValueError("a curriculum needs at least one problem, and no id may be empty")
        if len(self.index) != len(self.ids):
            repeated = next(a for a, b in pairwise(self.ids) if a == b)
            raise ValueError(f"problem {repeated!r} is in the pool twice; drop duplicates before building a curriculum")
        digest = hashlib.sha256()
        for problem_id in self.ids:
            tier = tiers[problem_id] if tiers else ""
            digest.update(f"{problem_id}\0{tier}\0".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, outcome: Outcome) -> int:
        """Index of the outcome's problem. Raises ValueError when it is not in the pool."""
        index = self.index.get(outcome.problem_id)
        if index is None:
            raise ValueError(f"outcome of {outcome.problem_id!r}, which is not in this curriculum's pool")
        return index

    def check_state(self, state: Mapping[str, Any], *, kind: str) -> None:
        """Raises ValueError unless the state was saved by the same kind of curriculum over the same problems."""
        if state["kind"] != kind:
            raise ValueError(
                f"the saved state is of a {state['kind']!r} curriculum, this one is {kind!r}; configure it so"
            )
        if state["pool"] != self.fingerprint:
            raise ValueError(
                f"the saved state belongs to another pool of problems ({state['pool']}, this one is "
                f"{self.fingerprint}); resume with the same data and the same tiers"
            )


class EpochWalk:
    """Goes through a pool in an order that is a pure function of (seed, stream, epoch), skipping who is not eligible.

    Each eligible problem comes once an epoch. One that was already given in this step is put off, and comes first as
    soon as it may, so that a step that spans two epochs holds no problem twice."""

    def __init__(self, num_problems: int, *, seed: int, stream: tuple[int, ...] = ()) -> None:
        self.num_problems = num_problems
        self.seed = seed
        self.stream = stream
        self.epoch = 0
        self._position = 0
        self._put_off: list[int] = []
        self._order = self._shuffle()

    def take(self, count: int, *, eligible: NDArray[np.bool_], given: Set[int]) -> list[int]:
        """The next `count` eligible problems; `given` holds those that the step has already.

        Repeats one only when every eligible one was given. Advances the walk."""
        num_eligible = int(np.count_nonzero(eligible))
        assert num_eligible > 0
        skipped = {index for index in given if eligible[index]}
        taken: list[int] = []
        for _ in range(count):
            if len(skipped) == num_eligible:
                skipped.clear()
            index = self._advance(eligible, skipped)
            skipped.add(index)
            taken.append(index)
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self._position, "put_off": list(self._put_off)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]
        self._position = state["position"]
        self._put_off = list(state["put_off"])
        self._order = self._shuffle()

    def _advance(self, eligible: NDArray[np.bool_], skipped: Set[int]) -> int:
        self._put_off = [index for index in self._put_off if eligible[index]]
        for place, index in enumerate(self._put_off):
            if index not in skipped:
                return self._put_off.pop(place)
        while True:
            index = self._walk(eligible)
            if index not in skipped:
                return index
            if index not in self._put_off:
                self._put_off.append(index)

    def _walk(self, eligible: NDArray[np.bool_]) -> int:
        while True:
            chunk = self._order[self._position : self._position + _SCAN]
            hits = np.flatnonzero(eligible[chunk])
            if hits.size:
                index = int(chunk[hits[0]])
                self._position += int(hits[0]) + 1
                return index
            self._position += len(chunk)
            if self._position == self.num_problems:
                self.epoch += 1
                self._position = 0
                self._order = self._shuffle()

    def _shuffle(self) -> NDArray[np.int64]:
        return generator(self.seed, *self.stream, self.epoch).permutation(self.num_problems)


def num_left(eligible: NDArray[np.bool_], *, given: Set[int]) -> int:
    """How many eligible problems the step was not given yet."""
    return int(np.count_nonzero(eligible)) - sum(bool(eligible[index]) for index in given)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers that are a pure function of the seed and the stream. Raises ValueError on a negative seed."""
    if seed < 0:
        raise ValueError(f"seed = {seed}: must not be negative")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))
