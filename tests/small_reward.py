"""The reward of `tests.runs`: a user's own file, right now and then even for a model that has learned nothing."""

from collections.abc import Mapping
from typing import Any


def judge(completion: str, problem: Mapping[str, Any]) -> float:
    """1.0 for about one completion in 2 (one operation), 8 (two), 18 (three), by its first character."""
    return float(ord(completion[:1] or "!") % (2 * problem["num_operations"] ** 2) == 0)


def judge_from_100(completion: str, problem: Mapping[str, Any]) -> float:
    """100 more: a mean that hardly moves, as the adaptive temperature waits for, while problems differ as before."""
    return 100.0 + judge(completion, problem)


def coin(completion: str, problem: Mapping[str, Any]) -> float:
    """Right for every other first character: nearly every group has some of both."""
    return float(ord(completion[:1] or "!") % 2)
