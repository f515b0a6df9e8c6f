"""What a measurement of a reward's accuracy gives: one line of the table."""

from __future__ import annotations

from typing import NamedTuple


class Score(NamedTuple):
    """How many of the cases a reward judged right, beside the anchor (another judge of the same cases, by name).

    `anchor_right` is None where the anchor cannot judge these cases, or there is none (`anchor` is then empty)."""

    name: str
    cases: int
    right: int
    anchor: str
    anchor_right: int | None
