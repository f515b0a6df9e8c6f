"""One shard of a profile store: an append-only JSONL file of one writer, which survives a kill at any byte.

The first line is a header with the fingerprint of what was profiled (policy, temperature, limits, ...); every other
line is the outcome of consecutive attempts at one problem. A line is complete or it is not there: who reads a shard
leaves a torn last line out, and its next writer cuts it off."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FORMAT = 1
RECORDS_PER_SYNC = 64


@dataclass(frozen=True, slots=True)
class Record:
    """Outcomes of attempts first_attempt, first_attempt + 1, ... at one problem; None: the verifier gave no value."""

    problem_id: str
    first_attempt: int
    correct: tuple[bool | None, ...]
    num_tokens: tuple[int, ...]


class Shard:
    """Appends to one shard, which is locked for as long. Open with `Shard.open`."""

    def __init__(self, path: Path, *, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self._size_bytes = size_bytes
        self._unsynced_records = 0

    @classmethod
    def open(cls, path: str | Path, *, fingerprint: Mapping[str, Any]) -> "Shard":
        """Open the shard for writing, or begin it. The fingerprint must be JSON-able and equal to the stored one.

        Raises ValueError when the fingerprint differs (naming the fields), when the file is no shard of a profile
        store, and when another process writes to it."""
        path = Path(path)
        header = _header(fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock(descriptor, path=path, holder="another process writes to it")
            size_bytes = _complete_bytes(path, path.read_bytes(), header=header)
            if size_bytes == 0:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, header)
                os.fsync(descriptor)
                _sync_folder(path.parent)
                size_bytes = len(header)
            else:
                _check_header(path, fingerprint=fingerprint)
                os.ftruncate(descriptor, size_bytes)
            return cls(path, descriptor=descriptor, size_bytes=size_bytes)
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, records: Sequence[Record]) -> None:
        """Write the records after the last one. They survive a kill of the process at once, and a power cut after
        every 64 records, `sync` or `close`.

        Raises OSError (a full disk) with the file cut back to what it held before the call."""
        data = b"".join(_line(_as_row(record)) for record in records)
        try:
            self._file.seek(self._size_bytes)
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            os.ftruncate(self._file.fileno(), self._size_bytes)
            raise
        self._size_bytes += len(data)
        self._unsynced_records += len(records)
        if self._unsynced_records >= RECORDS_PER_SYNC:
            self.sync()

    def sync(self) -> None:
        """Wait until what was appended is on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced_records = 0

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_shard(path: Path, *, fingerprint: Mapping[str, Any]) -> Iterator[tuple[int, Record]]:
    """The shard's records with the number of their line, in the order in which they were appended.

    A torn last line is left out. Raises ValueError when the fingerprint differs, when the file is no shard and when a
    line before the last one cannot be read."""
    data = path.read_bytes()
    size_bytes = _complete_bytes(path, data, header=_header(fingerprint))
    if size_bytes == 0:
        return  # killed while the header was written
    _check_header(path, fingerprint=fingerprint)
    for number, line in enumerate(data[:size_bytes].splitlines()[1:], start=2):
        yield number, _record(line, where=f"{path}:{number}")


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What the shard's header says was profiled. Raises ValueError where it has none."""
    with path.open("rb") as lines:
        first = lines.readline()
    header = json.loads(first) if _is_json(first) else None
    if not isinstance(header, dict) or "fingerprint" not in header:
        raise ValueError(f"{path}: is not a profile store (its first line is no header); name another folder")
    if header["profile_store"] != FORMAT:
        raise ValueError(f"{path}: has format {header['profile_store']}, this program reads {FORMAT}; profile afresh")
    return dict(header["fingerprint"])


def as_json(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint as it comes back from a file: tuples are lists there."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(fingerprint)))
    return plain


def differing_fields(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """A clause for each field in which two fingerprints differ, sorted by field."""
    absent = "(absent)"
    return [
        f"{field}: stored {stored.get(field, absent)!r}, given {given.get(field, absent)!r}"
        for field in sorted(stored.keys() | given.keys())
        if stored.get(field, absent) != given.get(field, absent)
    ]


def lock(descriptor: int, *, path: Path, holder: str) -> None:
    """Lock an open file until it is closed. Raises ValueError saying `holder`, or that there are no locks there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{path}: {holder}; wait for it or stop it") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be locked ({error.strerror}); take a file system that has flock") from error


def _header(fingerprint: Mapping[str, Any]) -> bytes:
    return _line({"profile_store": FORMAT, "fingerprint": as_json(fingerprint)})


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _as_row(record: Record) -> dict[str, Any]:
    return {
        "problem_id": record.problem_id,
        "first_attempt": record.first_attempt,
        "correct": list(record.correct),
        "num_tokens": list(record.num_tokens),
    }


def _record(line: bytes, *, where: str) -> Record:
    try:
        row = json.loads(line)
        return Record(
            problem_id=row["problem_id"],
            first_attempt=row["first_attempt"],
            correct=tuple(row["correct"]),
            num_tokens=tuple(row["num_tokens"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: is not a profile record ({error}); restore the file or start a fresh one"
        ) from error


def _complete_bytes(path: Path, data: bytes, *, header: bytes) -> int:
    """Length of the file up to its last complete line; 0 when there is none and the file may be begun anew."""
    size_bytes = data.rfind(b"\n") + 1
    if size_bytes == 0 and not header.startswith(data):
        raise ValueError(f"{path}: is not a profile store (no header line); name another folder")
    # After a power cut the last line can have its length and not its content.
    last_start = data.rfind(b"\n", 0, max(size_bytes - 1, 0)) + 1
    if last_start and not _is_json(data[last_start:size_bytes]):
        return last_start
    return size_bytes


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _check_header(path: Path, *, fingerprint: Mapping[str, Any]) -> None:
    differing = differing_fields(read_fingerprint(path), as_json(fingerprint))
    if differing:
        raise ValueError(
            f"{path}: was profiled under another fingerprint ({'; '.join(differing)}); "
            "restore those values, or profile into another folder"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
