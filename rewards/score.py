"""Score completions that lie in rows, before any training: rows in, the same rows with their rewards out."""

from __future__ import annotations

import gzip
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.pool import Pool
from rewards.spec import RewardSpec
from rewards.types import Reward

MAX_ROWS_AHEAD = 1_024
"""Rows in flight, so that a file of any length needs little memory and a slow row does not leave workers idle."""


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line of a file that holds no row, and why."""

    line: int
    detail: str


def read_jsonl_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any] | BrokenLine]:
    """The objects of a JSON-lines file, in order; a line that holds none becomes a BrokenLine. Blank lines are no rows.

    A file whose name ends in .gz is unpacked. Raises OSError at once when the file cannot be read."""
    path = Path(path)
    file = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115  # closed by the generator

    def rows() -> Iterator[dict[str, Any] | BrokenLine]:
        with file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _read_line(line, number=number)

    return rows()


def score_rows(
    spec: RewardSpec, rows: Iterable[Mapping[str, Any] | BrokenLine], *, pool: Pool
) -> Iterator[dict[str, Any]]:
    """Each row with `reward`, `parts`, `status` and `detail` added, in order, one for one.

    The row is the problem too, under the names the reward reads. A row whose `completion` is no string has status
    error; where there are `calls` (made already, for tool_call) none is needed, and an empty one is judged. A
    BrokenLine becomes a row with its `line` and status error."""
    waiting: deque[tuple[Mapping[str, Any], Future[Reward] | Reward]] = deque()
    for number, row in enumerate(rows, start=1):
        if len(waiting) >= MAX_ROWS_AHEAD:
            yield _scored_row(*waiting.popleft())
        if isinstance(row, BrokenLine):
            waiting.append(({"line": row.line}, Reward.error(row.detail)))
            continue
        completion = row.get("completion", "" if "calls" in row else None)
        if isinstance(completion, str):
            waiting.append((row, pool.submit(spec, completion, row)))
        else:
            detail = f"row {number}: completion = {completion!r}: must be a string"
            waiting.append((row, Reward.error(detail[:500])))
    while waiting:
        yield _scored_row(*waiting.popleft())


def _scored_row(row: Mapping[str, Any], outcome: Future[Reward] | Reward) -> dict[str, Any]:
    reward = outcome if isinstance(outcome, Reward) else outcome.result()
    added = {
        "reward": reward.value,
        "parts": dict(reward.parts),
        "status": str(reward.status),
        "detail": reward.detail,
    }
    return {**row, **added}


def _read_line(line: bytes, *, number: int) -> dict[str, Any] | BrokenLine:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BrokenLine(line=number, detail=f"line {number} is not JSON: {error}")
    if not isinstance(row, dict):
        return BrokenLine(line=number, detail=f"line {number} holds a {type(row).__name__}; a row is a JSON object")
    return row
