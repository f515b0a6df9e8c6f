"""A run that is looked at while it goes: what was written since, read from where the last look ended.

Owns the growing files: of metrics.jsonl and events.jsonl only new whole lines are read, and a file that was cut, as a
resume cuts it, is read again from its beginning. Reads only; knows no page."""

import time
from pathlib import Path

from grpo.manifest import MANIFEST_FILE, Manifest
from grpo.tracking.recorded_run import (
    RecordedRun,
    Row,
    by_step,
    is_number,
    parsed,
    read_config,
    read_evaluations,
    read_json,
    read_profile,
)
from grpo.tracking.rollout_index import RolloutIndex

CHECKED_BYTES = 256


class GrowingFile:
    """The rows of a JSONL file that somebody appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._before = b""  # the last bytes in front of the offset: others mean that the file was cut and grew again

    def read(self) -> tuple[list[Row], bool]:
        """Rows of the whole lines since the last call, and whether they begin anew, at the file's beginning."""
        if not self._path.is_file():
            restarted = self._offset > 0
            self._offset, self._before = 0, b""
            return [], restarted
        with self._path.open("rb") as file:
            start = self._offset - len(self._before)
            file.seek(start)
            restarted = file.read(len(self._before)) != self._before
            if restarted:
                self._offset, self._before = 0, b""
                file.seek(0)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._before = (self._before + whole)[-CHECKED_BYTES:]
        rows = [row for row in map(parsed, whole.splitlines()) if row is not None]
        return rows, restarted


class FollowedRun:
    """One run's folder, as it stood when it was looked at last.

    `generation` goes up where what was read before is no longer the beginning of what there is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generation = 0
        self.rollouts = RolloutIndex(folder / "rollouts")
        self.rows: list[Row] = []  # of metrics.jsonl, as they were written
        self._events: list[Row] = []
        self._metrics_file = GrowingFile(folder / "metrics.jsonl")
        self._events_file = GrowingFile(folder / "events.jsonl")
        self._profile: tuple[object, Manifest | None] = (None, None)

    def look(self) -> RecordedRun:
        """Take in what was written since. Raises FileNotFoundError and ValueError as `read_config` does."""
        config = read_config(self.folder)
        rows, restarted = self._metrics_file.read()
        self.rows = rows if restarted else [*self.rows, *rows]
        events, begun_again = self._events_file.read()
        self._events = events if begun_again else [*self._events, *events]
        self.generation += restarted
        notes: list[str] = []
        return RecordedRun(
            folder=self.folder,
            config=config,
            metrics=by_step(self.rows),
            events=list(self._events),
            profile=self._read_profile(notes),
            evaluations=read_evaluations(self.folder, notes=notes),
            phases=read_json(self.folder / "phases.json", notes=notes) or {},
            notes=notes,
        )

    def rows_since(self, number: int) -> list[Row]:
        """The rows after the first `number` ones, one a step."""
        return by_step(row for row in self.rows[number:] if is_number(row.get("step")))

    def stamp(self) -> str:
        """Changes where evaluations or profiles are written: what a page does not get with the steps."""
        paths = [*(self.folder / "evals").glob("*.json"), *(self.folder / "profile").glob(f"**/{MANIFEST_FILE}")]
        return "|".join(f"{path.name}:{path.stat().st_mtime_ns}" for path in sorted(paths))

    def silent_seconds(self) -> float | None:
        """How long ago something was written last; None where nothing was."""
        paths = [self.folder / name for name in ("metrics.jsonl", "events.jsonl", "phases.json")]
        times = [path.stat().st_mtime for path in (*paths, *(self.folder / "logs").glob("*.log")) if path.is_file()]
        return max(0.0, time.time() - max(times)) if times else None

    def _read_profile(self, notes: list[str]) -> Manifest | None:
        path = self.folder / "profile" / MANIFEST_FILE
        state = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
        if state is None or state != self._profile[0]:
            self._profile = (state, read_profile(path, notes=notes))
        return self._profile[1]
