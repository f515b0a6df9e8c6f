"""How often `math_answer` agrees with the labels of public test suites and with GSM8K's answers, beside math-verify.

The suites' rows are tests/data/math_cases.jsonl; where a label is wrong by mathematics or by what this reward means,
the row says so in `note` and is counted as its source labels it, and once more in a line of its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from table import Score

from grpo import published
from rewards import build, read_jsonl_rows

ANCHOR = "math-verify's parse and verify"
ROWS = Path(__file__).resolve().parents[2] / "tests" / "data" / "math_cases.jsonl"
FORMS = (r"So it is $\boxed{{{}}}$.", "So it is so.\n#### {}", "The final answer is ${}.", "That makes {} in all.")
MARKS = ("$", r"\boxed", r"\(", r"\[")


class Case(NamedTuple):
    """A completion, the gold it is held against, and whether it is right."""

    gold: str
    completion: str
    is_right: bool
    is_disputed: bool = False


def measure() -> list[Score]:
    """The suites' rows, in two halves too (the second opened after the reward was fitted to the first), and GSM8K's.

    Raises OSError without GSM8K's rows."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    cases = [Case(_wrapped(row), row["completion"], bool(row["expected"]), "note" in row) for row in rows]
    halves = [is_in_second_half(row["gold"], row["completion"]) for row in rows]
    own, neighbours = gsm8k_cases()
    return [
        _score("maths, test suites", cases),
        _score("maths, test suites, first half", [case for case, held in zip(cases, halves, strict=True) if not held]),
        _score("maths, test suites, second half", [case for case, held in zip(cases, halves, strict=True) if held]),
        _score("maths, test suites, rows in dispute", [case for case in cases if case.is_disputed]),
        _score("maths, GSM8K's own answers", own),
        _score("maths, GSM8K's answers and one", neighbours),
    ]


def is_in_second_half(gold: str, completion: str) -> bool:
    """Whether a row is in the half that was opened last, by a hash of the row."""
    return hashlib.sha256(f"{gold}\0{completion}".encode()).digest()[0] % 2 == 1


def gsm8k_cases() -> tuple[list[Case], list[Case]]:
    """GSM8K's test answers in the ways that a completion states them, and each answer plus one in the same ways."""
    shared = os.environ.get("GRPO_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    rows = read_jsonl_rows(Path(shared) / "gsm8k" / "test.jsonl")
    golds = [published.gsm8k_answer(row) for row in rows if isinstance(row, dict)]
    own = [Case(gold, form.format(gold), is_right=True) for gold in golds for form in FORMS]
    plus_one = [(gold, f"{int(gold.replace(',', '')) + 1:,}") for gold in golds]
    return own, [Case(gold, form.format(other), is_right=False) for gold, other in plus_one for form in FORMS]


def _wrapped(row: dict[str, str]) -> str:
    """The gold as the anchor can read it: math-verify's own rows as they are, a bare formula of others' in dollars."""
    gold = row["gold"]
    return gold if row["source"].startswith("math-verify") or any(mark in gold for mark in MARKS) else f"${gold}$"


def _score(name: str, cases: Sequence[Case]) -> Score:
    verifier = build("math_answer", {})
    right = sum((verifier(case.completion, {"answer": case.gold}).value == 1.0) == case.is_right for case in cases)
    judge = anchor()
    anchor_right = sum(judge(case.gold, case.completion) == case.is_right for case in cases)
    return Score(name, len(cases), right, ANCHOR, anchor_right)


def anchor() -> Callable[[str, str], bool]:
    """math-verify with its defaults, time limits included: they are signals, so this is for the main thread."""
    from math_verify import parse, verify

    def judge(gold: str, completion: str) -> bool:
        try:
            return bool(verify(parse(gold), parse(completion)))
        except Exception:
            return False

    return judge
