"""How often `tool_call` agrees with BFCL's labels: on right calls written from them, and on provably wrong ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from calls_cases import Case, read_rows, right_cases, wrong_cases
from table import Score

from rewards import build

ANCHOR = "BFCL's ast_checker (bfcl-eval 2026.3.23)"
# Counted on the calls of these very cases, as data: it reads no text, so broken texts and needless calls are not its.
ANCHOR_RIGHT = {"right calls": 9_600, "wrong calls": 24_366}


def bfcl_folder() -> Path:
    """Where the rows lie: GRPO_SHARED_DATA, else shared/data beside the repository."""
    shared = os.environ.get("GRPO_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(shared) / "bfcl"


def measure() -> list[Score]:
    """One score for what must be right and for what must be wrong, in each format. Raises OSError without the rows."""
    rows = read_rows(bfcl_folder())
    labelled = [row for row in rows if row["possible_answers"]]
    irrelevant = [row for row in rows if not row["possible_answers"]]
    return [
        _score("right calls", labelled, right_cases, lambda case: True),
        _score("wrong calls", labelled, wrong_cases, lambda case: case.calls is not None),
        _score("broken texts", labelled, wrong_cases, lambda case: case.calls is None),
        _score("no call needed, none made", irrelevant, right_cases, lambda case: True),
        _score("no call needed, one made", irrelevant, wrong_cases, lambda case: True),
    ]


def _score(
    title: str,
    rows: list[dict],
    cases_of: Callable[[dict], Iterable[Case]],
    is_meant: Callable[[Case], bool],
) -> Score:
    verifier = build("tool_call", {})
    cases = [case for row in rows for case in cases_of(row) if is_meant(case)]
    right = sum(verifier(case.completion, case.problem).value == float(case.is_right) for case in cases)
    return Score(f"tool_call: {title}", len(cases), right, ANCHOR, ANCHOR_RIGHT.get(title))
