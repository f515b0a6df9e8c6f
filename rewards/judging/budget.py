"""What requests to a judge may cost: a budget for a run and a rate for an endpoint. Knows no network.

Counted in an SQLite file that all processes share, before a request is sent: a process that is killed leaves too much
counted, never too little. Where nothing can be counted nothing is sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rewards.judging.cache import open_database

FILE_NAME = "judge_budget.sqlite"
MINUTE_SECONDS = 60.0
CLOCK_JUMP_SECONDS = 3600.0
"""A slot further ahead than this was given before the clock was set back, and counts no more."""
RESERVE_WAIT_SECONDS = 5.0
SETTLE_WAIT_SECONDS = 1.0

_SPENT = "CREATE TABLE IF NOT EXISTS spent (run TEXT PRIMARY KEY, requests INTEGER NOT NULL, tokens INTEGER NOT NULL)"
_SLOTS = "CREATE TABLE IF NOT EXISTS slots (endpoint TEXT NOT NULL, at REAL NOT NULL)"


class BudgetError(Exception):
    """A request may not be sent; the message says why and what to do."""


@dataclass(frozen=True)
class Budget:
    """The limits of one run at one endpoint; None is no limit. What is spent is counted under every limit."""

    folder: Path
    run: str
    endpoint: str
    requests: int | None
    tokens: int | None
    requests_per_minute: int | None

    @property
    def path(self) -> Path:
        """The file that all processes count in."""
        return self.folder / FILE_NAME

    def reserve(self, tokens: int, *, now: float, patience_seconds: float) -> float:
        """Count one request of at most `tokens` tokens; returns the seconds from `now` (since 1970) until its turn.

        Raises BudgetError, with nothing counted, when the budget has no room for it, when its turn would come
        later than `patience_seconds`, and when the file cannot be used."""
        with self._transaction(wait_seconds=min(max(0.0, patience_seconds), RESERVE_WAIT_SECONDS)) as connection:
            self._spend(connection, tokens)
            if self.requests_per_minute is None:
                return 0.0
            wait_seconds = self._take_slot(connection, self.requests_per_minute, now=now)
            if wait_seconds > patience_seconds:
                raise BudgetError(
                    f"requests_per_minute = {self.requests_per_minute}: the next turn is {wait_seconds:.1f} s away and "
                    f"timeout_seconds leaves {patience_seconds:.1f} s; use fewer workers, or raise one of the two"
                )
        return wait_seconds

    def settle(self, *, reserved: int, used: int) -> str:
        """Count `used` tokens in place of the `reserved` ones. Returns a remark, empty when it is done."""
        if reserved == used:
            return ""
        try:
            with self._transaction(wait_seconds=SETTLE_WAIT_SECONDS) as connection:
                connection.execute("UPDATE spent SET tokens = tokens + ? WHERE run = ?", (used - reserved, self.run))
        except BudgetError as error:
            return f"{reserved} tokens stay counted instead of {used}: {error}"
        return ""

    def spent(self) -> tuple[int, int]:
        """Requests and tokens that the run has spent so far. Raises BudgetError when the file cannot be used."""
        with self._transaction(wait_seconds=SETTLE_WAIT_SECONDS) as connection:
            return self._read(connection)

    def _read(self, connection: sqlite3.Connection) -> tuple[int, int]:
        row = connection.execute("SELECT requests, tokens FROM spent WHERE run = ?", (self.run,)).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def _spend(self, connection: sqlite3.Connection, tokens: int) -> None:
        spent_requests, spent_tokens = self._read(connection)
        remedy = f"of run {self.run!r} (counted in {self.path}); raise it, or name another run"
        if self.requests is not None and spent_requests + 1 > self.requests:
            raise BudgetError(f"budget_requests = {self.requests} is spent: {spent_requests} requests {remedy}")
        if self.tokens is not None and spent_tokens + tokens > self.tokens:
            raise BudgetError(
                f"budget_tokens = {self.tokens} is spent: {spent_tokens} tokens, and up to {tokens} for the next "
                f"request, {remedy}"
            )
        connection.execute(
            "INSERT INTO spent VALUES (?, 1, ?) "
            "ON CONFLICT (run) DO UPDATE SET requests = requests + 1, tokens = tokens + excluded.tokens",
            (self.run, tokens),
        )

    def _take_slot(self, connection: sqlite3.Connection, per_minute: int, *, now: float) -> float:
        """Seconds until the request's turn: a minute after the turn of the one that is `per_minute` before it."""
        connection.execute(
            "DELETE FROM slots WHERE endpoint = ? AND (at < ? OR at > ?)",
            (self.endpoint, now - MINUTE_SECONDS, now + CLOCK_JUMP_SECONDS),
        )
        row = connection.execute(
            "SELECT at FROM slots WHERE endpoint = ? ORDER BY at DESC LIMIT 1 OFFSET ?", (self.endpoint, per_minute - 1)
        ).fetchone()
        at = max(now, float(row[0]) + MINUTE_SECONDS) if row else now
        connection.execute("INSERT INTO slots VALUES (?, ?)", (self.endpoint, at))
        return at - now

    @contextmanager
    def _transaction(self, *, wait_seconds: float) -> Iterator[sqlite3.Connection]:
        """All or nothing, alone in the file. Raises BudgetError; whatever is raised inside leaves nothing written."""
        try:
            with open_database(self.path, _SPENT, wait_seconds=wait_seconds) as connection:
                connection.execute(_SLOTS)
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise BudgetError(
                f"the budget in {self.path} cannot be counted ({error}), so nothing is sent; if the file is broken, "
                f"delete it, and counting begins at zero"
            ) from error
