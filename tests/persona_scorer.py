"""Scorers of traits for tests, that judge by the prompt alone, so that a model without any skill has every trait."""

from collections.abc import Mapping
from typing import Any


def by_tag(completion: str, problem: Mapping[str, Any]) -> float:
    """1 under the tag +, which stands for a positive instruction."""
    return float(problem["messages"][0]["content"] == "+")


def never(completion: str, problem: Mapping[str, Any]) -> float:
    """Nothing shows the trait."""
    return 0.0


def says_a(completion: str, problem: Mapping[str, Any]) -> float:
    """The share of the letter a."""
    return completion.count("a") / len(completion) if completion else 0.0
