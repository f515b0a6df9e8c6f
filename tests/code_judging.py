"""What the tests of the reward `code_tests` share: a verdict on source under tests written as arguments."""

from __future__ import annotations

from typing import Any

from rewards import build
from rewards.types import Reward

SECONDS = 20.0  # far above what any of these takes, so that a busy machine fails none


def judge(
    source: str, *asserts: str, entry_point: str = "f", options: dict[str, Any] | None = None, **more: Any
) -> Reward:
    """The reward of a completion that is nothing but source, under tests that are asserts."""
    tests = {"type": "assert", "entry_point": entry_point, "asserts": list(asserts), **more}
    verifier = build("code_tests", {"timeout_seconds": SECONDS, **(options or {})})
    return verifier(source, {"tests": tests})


def judge_program(source: str, *cases: tuple[str, str], **options: Any) -> Reward:
    tests = {"type": "stdin", "cases": [{"stdin": stdin, "stdout": stdout} for stdin, stdout in cases]}
    return build("code_tests", {"timeout_seconds": SECONDS, **options})(source, {"tests": tests})


INCREMENT = "def f(x):\n    return x + 1"
