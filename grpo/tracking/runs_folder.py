"""All runs in a folder, for the dashboard: which there are, what is asked of one, and nothing outside of the folder.

A run is asked for by the name that the list gave it and a rollout by its key, so that no path comes from a request. A
run with a link that leads out of the folder is listed and not read."""

import threading
from collections.abc import Iterator
from pathlib import Path

from grpo.tracking.followed_run import FollowedRun
from grpo.tracking.health import state
from grpo.tracking.page_data import columns, run_data, summary
from grpo.tracking.recorded_run import Row, is_number, read_json_list
from grpo.tracking.rollout_index import Wanted, choices, find, read_row

MAX_DEPTH = 3
PAGE_ROWS = 25
READ_PATTERNS = (
    *("config.yaml", "metrics.jsonl", "events.jsonl", "phases.json", "vocabulary.json", "evals/*.json", "logs/*.log"),
    *("profile/*.parquet", "profile/*/*.parquet", "rollouts/*.jsonl"),
)
"""What is read of a run."""
ORDERS = {
    "newest": (lambda entry: entry.step, True),
    "oldest": (lambda entry: entry.step, False),
    "best": (lambda entry: entry.reward, True),
    "worst": (lambda entry: entry.reward, False),
    "longest": (lambda entry: entry.num_tokens, True),
    "shortest": (lambda entry: entry.num_tokens, False),
}


class UnknownRunError(Exception):
    """No run of this name is in the folder, or none that may be read."""


class RunsFolder:
    """A folder of runs, or one run's own. Safe to be asked from several threads."""

    def __init__(self, root: Path) -> None:
        """Raises FileNotFoundError unless `root` is a folder."""
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder; give one that holds runs, such as runs")
        self._root = root.resolve()
        self._lock = threading.RLock()
        self._followed: dict[str, FollowedRun] = {}

    def runs(self) -> list[Row]:
        """A row for each run, the one that was written to last first."""
        with self._lock:
            found = [self._listed(name, path) for name, path in self._paths()]
        return sorted(found, key=lambda row: -row["written"])

    def data(self, name: str) -> Row:
        """Everything about a run but its rollouts, and the cursor that `news` goes on from."""
        with self._lock:
            followed = self._find(name)
            run = followed.look()
            followed.rollouts.refresh()
            run.notes.extend(followed.rollouts.notes())
            data = run_data(run, followed.rollouts.entries, silent_seconds=followed.silent_seconds())
            return {"id": name, **data, "rollouts": {"total": len(followed.rollouts.entries)}, **_cursor(followed)}

    def news(self, name: str, *, cursor: str) -> Row:
        """What changed since `cursor`: the new rows and the summary, or that all is to be read again."""
        with self._lock:
            followed = self._find(name)
            run = followed.look()
            generation, _, number = cursor.partition(".")
            current = _cursor(followed)
            if generation != str(followed.generation) or not number.isdecimal() or int(number) > len(followed.rows):
                return {"id": name, "again": True}
            rows = followed.rows_since(int(number))
            news = {"id": name, "again": False, "metrics": columns(rows), **current}
            return {**news, **summary(run, silent_seconds=followed.silent_seconds())}

    def rollouts(self, name: str, wanted: Wanted, *, order: str, page: int) -> Row:
        """One page of the rollouts that fit, of all that are on disk."""
        with self._lock:
            followed = self._find(name)
            followed.rollouts.refresh()
            entries = followed.rollouts.entries
        found = find(entries, wanted)
        value_of, is_falling = ORDERS.get(order, ORDERS["newest"])
        sign = -1 if is_falling else 1
        fitting = sorted(
            found.entries,
            key=lambda entry: sign * value_of(entry) if is_number(value_of(entry)) else float("inf"),
        )
        shown = fitting[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
        return {
            "rows": [entry.summary() for entry in shown],
            "found": len(fitting),
            "total": len(entries),
            "unread": found.num_unread,
            "choices": choices(entries),
        }

    def rollout(self, name: str, key: str) -> Row:
        """One rollout with its tokens and their texts. Raises UnknownRunError where there is none of this key."""
        with self._lock:
            followed = self._find(name)
            entries = followed.rollouts.entries
        entry = next((entry for entry in entries if entry.key == key), None)
        row = read_row(entry) if entry is not None else None
        if row is None:
            raise UnknownRunError(f"{name} has no rollout {key[:80]} any more")
        texts = read_json_list(followed.folder / "vocabulary.json")
        used = {token for token in row.get("token_ids", ()) if isinstance(token, int) and 0 <= token < len(texts)}
        return {"row": row, "vocabulary": {token: str(texts[token]) for token in sorted(used)}}

    def _paths(self) -> Iterator[tuple[str, Path]]:
        """Name and folder of each run; a folder that leads out of the root is none."""
        if (self._root / "config.yaml").is_file():
            yield ".", self._root
            return
        for depth in range(1, MAX_DEPTH + 1):
            for config in sorted(self._root.glob("/".join(["*"] * depth) + "/config.yaml")):
                if config.parent.resolve().is_relative_to(self._root):
                    yield config.parent.relative_to(self._root).as_posix(), config.parent

    def _find(self, name: str) -> FollowedRun:
        path = dict(self._paths()).get(name)
        if path is None:
            raise UnknownRunError(f"no run {name[:80]} is in {self._root.name}")
        outside = self._leads_outside(path)
        if outside is not None:
            raise UnknownRunError(f"{name}: {outside} leads out of {self._root.name}, and is not read")
        return self._followed.setdefault(name, FollowedRun(path))

    def _leads_outside(self, path: Path) -> str | None:
        """A file of the run that lies outside of the root."""
        files = (file for pattern in READ_PATTERNS for file in path.glob(pattern))
        outside = (file for file in files if not file.resolve().is_relative_to(self._root))
        return next((file.relative_to(path).as_posix() for file in outside), None)

    def _listed(self, name: str, path: Path) -> Row:
        metrics = path / "metrics.jsonl"
        written = max(file.stat().st_mtime for file in (metrics, path / "config.yaml") if file.is_file())
        listed: Row = {"id": name, "written": written, "fault": None, "step": None, "word": "", "is_over": False}
        try:
            run = self._find(name).look()
        except (UnknownRunError, ValueError, FileNotFoundError) as error:
            return {**listed, "fault": str(error)}
        of_run = state(run)
        return {**listed, **{key: of_run[key] for key in ("step", "planned", "word", "is_over")}}


def _cursor(followed: FollowedRun) -> Row:
    return {"cursor": f"{followed.generation}.{len(followed.rows)}", "stamp": followed.stamp()}
