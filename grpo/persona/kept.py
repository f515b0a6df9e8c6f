"""Results in a file as they come: for people to read, and to go on from after a kill.

JSON lines: first what they rest on, then a result a line. What follows the last whole line is cut off, and a file that
rests on something else is begun anew. One process opens it: several would write into each other's lines."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.folder import named_disk_errors
from grpo.persona.contrast import Scored, Unit

Side = tuple[Unit, bool]
"""A unit under its positive (True) or its negative instruction."""
THEN = "then give the same command again, which goes on from there"


class KeptRows:
    """Rows of a file, each at its place."""

    def __init__(self, path: Path, *, rests_on: Mapping[str, Any]) -> None:
        """Raises DiskError."""
        self.path = path
        self._header = {"rests_on": json.loads(json.dumps(rests_on, default=str))}
        with named_disk_errors(path, then=THEN):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._is_own():
                path.write_text(json.dumps(self._header) + "\n", encoding="utf-8")

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Where each row begins in the file, and the row."""
        with self.path.open("rb") as file:
            place = len(file.readline())
            for line in file:
                yield place, json.loads(line)
                place += len(line)

    def at(self, places: Iterable[int]) -> list[dict[str, Any]]:
        """The rows that begin there."""
        with self.path.open("rb") as file:
            found = []
            for place in places:
                file.seek(place)
                found.append(json.loads(file.readline()))
        return found

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows down. Raises DiskError."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with named_disk_errors(self.path, then=THEN), self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _is_own(self) -> bool:
        """Whether there is a file that can be gone on with; its torn last line goes."""
        if not self.path.is_file():
            return False
        end = 0
        with self.path.open("r+b") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                if number == 0 and _json(line) != self._header:
                    return False
                end += len(line)
            file.truncate(end)
        return end > 0


class KeptCompletions:
    """The completions of an extraction."""

    def __init__(self, path: Path, *, rests_on: Mapping[str, Any], per_side: int) -> None:
        """A side counts as there when all `per_side` of its completions are."""
        self._rows, self._per_side = KeptRows(path, rests_on=rests_on), per_side
        self._places: dict[Side, dict[int, int]] = {}  # where the line of each attempt of a side begins
        for place, row in self._rows:
            side = (Unit(row["question"], row["instructions"]), bool(row["shows"]))
            # An attempt that a kill cut off from its side is drawn again, and is the same.
            self._places.setdefault(side, {})[row["attempt"]] = place

    @property
    def sides(self) -> frozenset[Side]:
        """Those that are there."""
        return frozenset(side for side, places in self._places.items() if len(places) == self._per_side)

    def of(self, side: Side) -> list[Scored]:
        """The completions of a side that is there."""
        return [Scored.from_row(row) for row in self._rows.at(place for _, place in sorted(self._places[side].items()))]

    def add(self, scored: Iterable[Scored]) -> None:
        """Write completions down. Raises DiskError."""
        self._rows.add(completion.as_row() for completion in scored)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def without_verdict(scored: Sequence[Scored]) -> bool:
    """Whether a scorer that failed may do better the next time: such a side is not written down."""
    return any(completion.trait is None for completion in scored)
