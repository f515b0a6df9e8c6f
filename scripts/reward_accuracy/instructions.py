"""How often `instructions` gives the verdict that IFEval's authors published, and the right one where theirs errs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from table import Score

from rewards import build
from rewards.types import Reward, Status

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
ANCHOR = "IFEval's own checkers (as in lm-eval 0.4.13)"
# Counted by running them on these very cases, seeded: `#` as a letter and arguments out of range came later.
ANCHOR_RIGHT_OF_PUBLISHED = 100


def measure() -> list[Score]:
    """One score for the values of the published tests, one for the faults of the published checkers."""
    published, faults = _read("ifeval_cases.jsonl"), _read("instructions_faults.jsonl")
    return [
        Score("instructions: published values", len(published), _right(published), ANCHOR, ANCHOR_RIGHT_OF_PUBLISHED),
        Score(
            "instructions: faults of the reference",
            len(faults),
            _right(faults),
            ANCHOR,
            sum(case["reference"] == case["followed"] for case in faults),
        ),
    ]


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def _right(cases: list[dict[str, Any]]) -> int:
    verifier = build("instructions", {})
    return sum(_is_right(case, verifier(case["completion"], _problem(case))) for case in cases)


def _problem(case: dict[str, Any]) -> dict[str, Any]:
    return {"instruction_id_list": [case["instruction"]], "kwargs": [case["kwargs"]]}


def _is_right(case: dict[str, Any], reward: Reward) -> bool:
    """A case whose `followed` is null has arguments that must be refused."""
    if case["followed"] is None:
        return reward.status is Status.ERROR
    return reward.value == float(case["followed"])
