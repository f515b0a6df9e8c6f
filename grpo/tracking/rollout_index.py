"""The rollouts that a run keeps on disk: an index of all of them, what one looks for in it, and the rows themselves.

Owns which of a row's fields are shown and how much of each: 100,000 rollouts are a gigabyte, so the index reads the
beginning of each line alone, and a row is read where it is asked for. Everything in a row may be hostile text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo.tracking.recorded_run import Row, is_number, parsed, unreadable_note

MAX_TEXT_CHARACTERS = 8000
MAX_TOKENS = 2048
MAX_SEARCHED = 20_000
"""Rows whose texts one search reads, of those that match otherwise."""

FIELDS = (
    *("step", "problem_id", "attempt", "stage", "tier", "prompt", "completion", "answer", "reward", "status", "parts"),
    *("detail", "advantage", "stop_reason", "temperature", "policy_step", "reused", "num_tokens"),
)
SEARCHED_FIELDS = ("prompt", "completion", "answer", "detail", "problem_id")
EXCERPT_CHARACTERS = 160
# A line's long lists stand behind everything else: what comes before them is the row without its tokens. Inside of a
# JSON string the quotes of these bytes would be escaped, so they are found in no completion.
_TOKENS = b', "token_ids": ['


class Entry(NamedTuple):
    """One rollout as the index knows it, and where its line lies."""

    step: Any
    problem_id: Any
    attempt: Any
    stage: Any
    tier: Any
    status: Any
    reward: Any
    advantage: Any
    num_tokens: Any
    stop_reason: Any
    excerpt: str
    path: Path
    offset: int
    num_bytes: int

    @property
    def key(self) -> str:
        """A name that the entry has in its run's folder."""
        return f"{self.path.name}:{self.offset}"

    def summary(self) -> Row:
        """What a list of rollouts shows of it."""
        return {"key": self.key} | {name: embeddable(getattr(self, name)) for name in self._fields[:11]}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one looks for; an empty text or None asks for nothing. Numbers are inclusive."""

    step: str = ""
    tier: str = ""
    status: str = ""
    stage: str = ""
    least: float | None = None
    most: float | None = None
    shortest: float | None = None
    longest: float | None = None
    text: str = ""

    def fits(self, entry: Entry) -> bool:
        """Whether everything but the text fits."""
        named = (("step", self.step), ("tier", self.tier), ("status", self.status), ("stage", self.stage))
        return (
            all(not value or str(getattr(entry, name)) == value for name, value in named)
            and _between(entry.reward, self.least, self.most)
            and _between(entry.num_tokens, self.shortest, self.longest)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What fits, and how many rows a search for a text has left unread."""

    entries: Sequence[Entry]
    num_unread: int


class RolloutIndex:
    """The entries of all files in a folder, in order. A file is read once, and again where it has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, tuple[tuple[int, int], list[Entry]]] = {}
        self._unreadable: dict[Path, list[int]] = {}

    def refresh(self) -> None:
        """Take in what was written since, and forget files that are gone."""
        paths = sorted(self._folder.glob("*.jsonl"))
        files: dict[Path, tuple[tuple[int, int], list[Entry]]] = {}
        for path in paths:
            with suppress(FileNotFoundError):  # a run keeps its newest files alone
                stat = path.stat()
                state = (stat.st_size, stat.st_mtime_ns)
                known = self._files.get(path)
                files[path] = known if known is not None and known[0] == state else (state, self._read(path))
        self._files = files

    @property
    def entries(self) -> list[Entry]:
        """Of all files, in the order of their steps."""
        return [entry for _, of_file in self._files.values() for entry in of_file]

    @property
    def by_file(self) -> list[list[Entry]]:
        """The entries of each file."""
        return [of_file for _, of_file in self._files.values()]

    def notes(self) -> list[str]:
        """A sentence for each file with lines that are none."""
        return [unreadable_note(path.name, self._unreadable[path]) for path in self._files if self._unreadable[path]]

    def _read(self, path: Path) -> list[Entry]:
        entries, offset = [], 0
        self._unreadable[path] = []
        with path.open("rb") as file:
            for number, line in enumerate(file):
                row = _head(line)
                if row is not None:
                    entries.append(_entry(row, path=path, offset=offset, num_bytes=len(line)))
                elif line.strip():
                    self._unreadable[path].append(number + 1)
                offset += len(line)
        return entries


def find(entries: Iterable[Entry], wanted: Wanted) -> Found:
    """The entries that fit. The texts of at most MAX_SEARCHED rows are read, the latest first."""
    fitting = [entry for entry in entries if wanted.fits(entry)]
    if not wanted.text:
        return Found(fitting, 0)
    needle, searched = wanted.text.lower(), fitting[-MAX_SEARCHED:]
    return Found([entry for entry in searched if _holds(entry, needle)], len(fitting) - len(searched))


def read_row(entry: Entry) -> Row | None:
    """The whole row, as a page may hold it, with its tokens; None where the file was written again meanwhile."""
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            row = parsed(file.read(entry.num_bytes))
    except FileNotFoundError:
        return None
    if row is None:
        return None
    shown = {name: embeddable(row.get(name)) for name in FIELDS} | {"key": entry.key, **_tokens(row)}
    if shown["num_tokens"] is None and isinstance(row.get("token_ids"), list):
        shown["num_tokens"] = len(row["token_ids"])
    return shown


def choices(entries: Sequence[Entry]) -> Row:
    """The values that one can filter by."""
    return {name: _distinct(getattr(entry, name) for entry in entries) for name in ("step", "stage", "tier", "status")}


def embeddable(value: Any) -> Any:
    """A value as JSON that a browser reads: text kept short, lists and mappings as text, no NaN."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if is_number(value) else str(value)
    if isinstance(value, dict) and all(is_number(part) for part in value.values()):
        return value
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def shortened(text: str) -> str:
    """The text, or where it is very long its beginning and its end. Half a surrogate pair becomes a question mark."""
    if len(text) > MAX_TEXT_CHARACTERS:
        half = MAX_TEXT_CHARACTERS // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _head(line: bytes) -> Row | None:
    """The row without its tokens, which are most of a line, and are not parsed where it was written by us."""
    end = line.find(_TOKENS)
    row = parsed(line[:end] + b"}") if end > 0 and line.endswith(b"}\n") else None
    return parsed(line) if row is None else row


def _entry(row: Row, *, path: Path, offset: int, num_bytes: int) -> Entry:
    num_tokens = row.get("num_tokens")
    if num_tokens is None and isinstance(row.get("token_ids"), list):
        num_tokens = len(row["token_ids"])
    completion = str(row.get("completion") or "")
    return Entry(
        step=row.get("step"),
        problem_id=row.get("problem_id"),
        attempt=row.get("attempt"),
        stage=row.get("stage"),
        tier=row.get("tier"),
        status=row.get("status"),
        reward=row.get("reward"),
        advantage=row.get("advantage"),
        num_tokens=num_tokens,
        stop_reason=row.get("stop_reason"),
        excerpt=" ".join(completion[:EXCERPT_CHARACTERS].split()),
        path=path,
        offset=offset,
        num_bytes=num_bytes,
    )


def _tokens(row: Row) -> Row:
    """Ids and log-probs of the first tokens, where they are numbers in two lists of one length."""
    ids, logprobs = row.get("token_ids"), row.get("logprobs")
    if not (isinstance(ids, list) and isinstance(logprobs, list) and len(ids) == len(logprobs)):
        return {}
    if not all(is_number(number) for number in (*ids, *logprobs)):
        return {}
    return {"token_ids": ids[:MAX_TOKENS], "logprobs": [round(value, 4) for value in logprobs[:MAX_TOKENS]]}


def _holds(entry: Entry, needle: str) -> bool:
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            row = _head(file.read(entry.num_bytes))
    except FileNotFoundError:
        return False
    return row is not None and any(needle in str(row.get(name, "")).lower() for name in SEARCHED_FIELDS)


def _between(value: Any, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return is_number(value) and (low is None or value >= low) and (high is None or value <= high)


def _distinct(values: Iterator[Any]) -> list[Any]:
    """The values that occur, numbers first and in their order."""
    found = {str(value): embeddable(value) for value in values if value is not None}
    return sorted(found.values(), key=lambda v: (not is_number(v), v if is_number(v) else 0, str(v)))
