"""What the reward `judge` keeps on disk: answers that need not be asked for again. Knows no network and no rubric.

An SQLite file that many processes share and that survives a SIGKILL at any moment. It is a help and no more: whatever
is wrong with it is named and costs a request, never a verdict."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import time_ns

WAIT_SECONDS = 0.5
"""How long one access waits for other processes that write."""
FILE_NAME = "judge_answers.sqlite"

# Not a database, a damaged one, or one with other tables. Anything else (locked, full) is no fault of the file.
_BROKEN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)

_logger = logging.getLogger(__name__)


@contextmanager
def open_database(path: Path, schema: str, *, wait_seconds: float) -> Iterator[sqlite3.Connection]:
    """A connection for one access, closed at its end, so that nothing is held across calls, forks and deletions.

    In autocommit: what must hold together stands between BEGIN IMMEDIATE and COMMIT. Raises sqlite3.Error."""
    with closing(sqlite3.connect(path, timeout=wait_seconds, isolation_level=None)) as connection:
        # A killed process leaves no half transaction even so. Only a power cut may, and to wait for the disk against it
        # takes ten milliseconds a write, for which every other process would have to wait too.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(schema)
        yield connection


class AnswerCache:
    """Answers by key, in a file of `folder`. No method raises; a remark says what went wrong, else it is empty."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._lock_path = folder / "judge_answers.lock"

    def get(self, key: str) -> tuple[str | None, str]:
        """The answer kept for the key, or None, and a remark."""
        rows, remark = self._execute("SELECT answer FROM answers WHERE key = ?", (key,))
        answer = rows[0][0] if rows else None
        return (answer if isinstance(answer, str) else None), remark

    def put(self, key: str, answer: str) -> str:
        """Keep an answer; returns a remark."""
        return self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))[1]

    def _execute(self, statement: str, values: tuple[str, ...]) -> tuple[list[tuple[object, ...]], str]:
        schema = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
        broken_inode = 0
        try:
            with self._locked(fcntl.LOCK_SH):
                try:
                    with open_database(self.path, schema, wait_seconds=WAIT_SECONDS) as connection:
                        return connection.execute(statement, values).fetchall(), ""
                except sqlite3.Error as error:
                    fault = str(error)
                    # The low byte is the kind of error, the rest its detail.
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN:
                        broken_inode = os.stat(self.path).st_ino
            if broken_inode:
                return [], self._set_aside(broken_inode, fault)
        except OSError as error:
            fault = str(error)
        return [], f"the cache {self.path} could not be used: {fault}"

    def _set_aside(self, inode: int, fault: str) -> str:
        """Rename a broken file, with its journal, so that the next access begins a fresh one.

        Nobody has it open meanwhile; `inode` tells it from the fresh one that another process may have begun."""
        aside = self.path.with_name(f"{self.path.stem}.broken-{time_ns()}.sqlite")
        with self._locked(fcntl.LOCK_EX):
            if not self.path.exists() or os.stat(self.path).st_ino != inode:
                return ""
            # The journal goes first: left beside a fresh file, it would be played back into it.
            for suffix in ("-journal", "-wal", "-shm", ""):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.rename(aside.with_name(aside.name + suffix))
        remark = f"the cache {self.path} was broken ({fault}) and is set aside as {aside.name}"
        _logger.warning(remark)
        return remark

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the lock of the file's name: shared to use the file, exclusive to rename it. A kill releases it."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)
