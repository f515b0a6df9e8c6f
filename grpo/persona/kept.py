"""The completions of an extraction, in a file as they come: for people to read, and to go on from after a kill.

JSON lines: first what they rest on, then a completion a line. What follows the last whole line is cut off, and a file
that rests on something else is begun anew."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.folder import named_disk_errors
from grpo.persona.contrast import Scored, Unit

Side = tuple[Unit, bool]
"""A unit under its positive (True) or its negative instruction."""
THEN = "then give the same command again, which goes on from there"


class KeptCompletions:
    """One process opens it; several at once would write into each other's lines."""

    def __init__(self, path: Path, *, rests_on: Mapping[str, Any], per_side: int) -> None:
        """A side counts as there when all `per_side` of its completions are."""
        self._path, self._per_side = path, per_side
        self._places: dict[Side, dict[int, int]] = {}  # where the line of each attempt of a side begins
        self._header = {"rests_on": json.loads(json.dumps(rests_on, default=str))}
        with named_disk_errors(path, then=THEN):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._read():
                path.write_text(json.dumps(self._header) + "\n", encoding="utf-8")

    @property
    def sides(self) -> frozenset[Side]:
        """Those that are there."""
        return frozenset(side for side, places in self._places.items() if len(places) == self._per_side)

    def of(self, side: Side) -> list[Scored]:
        """The completions of a side that is there."""
        with self._path.open("rb") as file:
            found = []
            for _, place in sorted(self._places[side].items()):
                file.seek(place)
                found.append(Scored.from_row(json.loads(file.readline())))
        return found

    def add(self, scored: Iterable[Scored]) -> None:
        """Write completions down. Raises DiskError."""
        text = "".join(json.dumps(completion.as_row(), ensure_ascii=False) + "\n" for completion in scored)
        with named_disk_errors(self._path, then=THEN), self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _read(self) -> bool:
        """Whether there is a file that can be gone on with; its torn last line goes."""
        if not self._path.is_file():
            return False
        end = 0
        with self._path.open("r+b") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                if number == 0 and _json(line) != self._header:
                    return False
                if number:
                    row = json.loads(line)
                    side = (Unit(row["question"], row["instructions"]), bool(row["shows"]))
                    # An attempt that a kill cut off from its side is drawn again, and is the same.
                    self._places.setdefault(side, {})[row["attempt"]] = end
                end += len(line)
            file.truncate(end)
        return end > 0


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def without_verdict(scored: Sequence[Scored]) -> bool:
    """Whether a scorer that failed may do better the next time: such a side is not written down."""
    return any(completion.trait is None for completion in scored)
