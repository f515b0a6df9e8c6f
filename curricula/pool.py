"""The problems a curriculum chooses from, and the walk that goes through all of them before any comes back."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curricula.packed import pack_members, unpack_members
from curricula.types import Tier

_SCAN = 1024


class Pool:
    """Problem ids, sorted, so that nothing drawn depends on the order in which they were handed over.

    A saved state carries the fingerprint of ids and tiers.
    Raises ValueError on no id, an empty id or a repeated one."""

    def __init__(self, problem_ids: Iterable[str], *, tiers: Mapping[str, Tier] | None = None) -> None:
        self.ids: tuple[str, ...] = tuple(sorted(problem_ids))
        if not self.ids or not self.ids[0]:
            raise ValueError("a curriculum needs at least one problem, and no id may be empty")
        repeated = next((a for a, b in pairwise(self.ids) if a == b), None)
        if repeated is not None:
            raise ValueError(f"problem {repeated!r} is in the pool twice; drop duplicates before building a curriculum")
        digest = hashlib.sha256()
        for problem_id in self.ids:
            tier = tiers[problem_id] if tiers else ""
            digest.update(f"{problem_id}\0{tier}\0".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, problem_id: str, *, what: str = "outcome") -> int:
        """Index of the problem. Raises ValueError when it is not in the pool."""
        # The ids are sorted anyway: halving finds one in 2.4 µs, and a dict of a million of them is 59 MB more.
        index = bisect_left(self.ids, problem_id)
        if index == len(self.ids) or self.ids[index] != problem_id:
            raise ValueError(f"{what} of {problem_id!r}, which is not in this curriculum's pool")
        return index

    def names(self, indices: Iterable[int]) -> list[str]:
        return [self.ids[index] for index in indices]

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


@dataclass(frozen=True, slots=True)
class Eligible:
    """Who may be practised, [P], and how many that is: counted once a step, since a million take their time."""

    among: NDArray[np.bool_]
    number: int

    @classmethod
    def of(cls, among: NDArray[np.bool_]) -> "Eligible":
        return cls(among, int(np.count_nonzero(among)))

    @classmethod
    def everyone(cls, num_problems: int) -> "Eligible":
        return cls(np.ones(num_problems, dtype=np.bool_), num_problems)

    @classmethod
    def nobody(cls, num_problems: int) -> "Eligible":
        return cls(np.zeros(num_problems, dtype=np.bool_), 0)

    def num_left(self, *, given: Set[int]) -> int:
        """How many of them the step was not given yet."""
        return self.number - sum(bool(self.among[index]) for index in given)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a walk stands. `order` is None before the first problem of an epoch is asked for."""

    epoch: int
    position: int
    put_off: tuple[int, ...]
    order: NDArray[np.int32] | None  # [eligible problems when the epoch began]


class EpochWalk:
    """Goes through whoever is eligible, in an order that is a pure function of (seed, stream, epoch, who that is).

    The order of an epoch is laid out over the problems that are eligible when it begins, so that a few of a million
    cost what a few cost. One that becomes eligible later joins in the next epoch; one that is no longer eligible is
    passed over. One that was already given in this step is put off, and comes first as soon as it may, so that a step
    that spans two epochs holds no problem twice.
    The saved state is the place at the last `mark`, not that within a step."""

    def __init__(self, num_problems: int, *, seed: int, stream: tuple[int, ...] = ()) -> None:
        self.num_problems = num_problems
        self.seed = seed
        self.stream = stream
        generator(seed)
        self._put_off: list[int] = []
        self._marked = _Place(epoch=0, position=0, put_off=(), order=None)
        self._go_to(self._marked)

    def take(self, count: int, *, eligible: Eligible, given: Set[int]) -> list[int]:
        """The next `count` problems of `eligible`; `given` holds those that the step has already.

        Repeats one only when every eligible one was given. Advances the walk. At least one has to be eligible."""
        assert eligible.number > 0
        among = eligible.among
        skipped = {index for index in given if among[index]}
        self._put_off = [index for index in self._put_off if among[index]]
        taken: list[int] = []
        for _ in range(count):
            if len(skipped) == eligible.number:
                skipped.clear()
            index = self._advance(among, skipped)
            skipped.add(index)
            taken.append(index)
        return taken

    def mark(self) -> None:
        """Remember this place: a state that is saved from here on is of it."""
        self._marked = _Place(self.epoch, self._position, tuple(self._put_off), self._order)

    def begin_anew(self) -> None:
        """Lay out an order over whoever is eligible when the next problem is asked for, as at the end of an epoch."""
        self._marked = _Place(self.epoch + (self._order is not None), 0, (), None)
        self._go_to(self._marked)

    def state_dict(self) -> dict[str, Any]:
        place = self._marked
        order = None if place.order is None else pack_members(place.order, num_problems=self.num_problems)
        return {"epoch": place.epoch, "position": place.position, "put_off": list(place.put_off), "order": order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        packed = state["order"]
        members = None if packed is None else unpack_members(packed, num_problems=self.num_problems)
        order = None if members is None else self._shuffle(members, epoch=state["epoch"])
        self._marked = _Place(state["epoch"], state["position"], tuple(state["put_off"]), order)
        self._go_to(self._marked)

    def _go_to(self, place: _Place) -> None:
        self.epoch = place.epoch
        self._position = place.position
        self._put_off = list(place.put_off)
        self._order = place.order

    def _advance(self, among: NDArray[np.bool_], skipped: Set[int]) -> int:
        for place, index in enumerate(self._put_off):
            if index not in skipped:
                return self._put_off.pop(place)
        while True:
            index = self._walk(among)
            if index not in skipped:
                return index
            if index not in self._put_off:
                self._put_off.append(index)

    def _walk(self, among: NDArray[np.bool_]) -> int:
        order = self._order
        while True:
            if order is None:
                members = np.flatnonzero(among).astype(np.int32)
                order = self._order = self._shuffle(members, epoch=self.epoch)
            chunk = order[self._position : self._position + _SCAN]
            hits = np.flatnonzero(among[chunk])
            if hits.size:
                index = int(chunk[hits[0]])
                self._position += int(hits[0]) + 1
                return index
            self._position += len(chunk)
            if self._position == len(order):
                self.epoch += 1
                self._position = 0
                order = None

    def _shuffle(self, members: NDArray[np.int32], *, epoch: int) -> NDArray[np.int32]:
        return generator(self.seed, *self.stream, epoch).permutation(members)


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers that are a pure function of the seed and the stream. Raises ValueError on a negative seed."""
    if seed < 0:
        raise ValueError(f"seed = {seed}: must not be negative")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))
