"""Whether a program printed what was expected. Text in, a bool out."""

from __future__ import annotations

import math
import re

COMPARISONS = ("lines", "tokens", "exact")

# No underscores, no nan, no inf: float() would take these too.
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")
_INTEGER = re.compile(r"[-+]?[0-9]+")


def same_output(actual: str, expected: str, *, compare: str, float_tolerance: float | None) -> bool:
    """Whether two outputs are the same in the eyes of a comparison.

    "lines": line for line, white space within a line and at its ends counts as one blank, blank lines at the end do
    not count. "tokens": word for word, wherever the lines break. "exact": character for character. With a tolerance,
    words that are numbers, not both integers, are the same when they differ by at most the tolerance, absolutely or
    relative to the expected one; "exact" takes none."""
    if compare == "exact":
        return actual == expected
    if compare == "tokens":
        return _same_words(actual.split(), expected.split(), float_tolerance=float_tolerance)
    lines, expected_lines = _lines(actual), _lines(expected)
    return len(lines) == len(expected_lines) and all(
        _same_words(words, expected_words, float_tolerance=float_tolerance)
        for words, expected_words in zip(lines, expected_lines, strict=True)
    )


def _lines(text: str) -> list[list[str]]:
    lines = [line.split() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_words(words: list[str], expected: list[str], *, float_tolerance: float | None) -> bool:
    if float_tolerance is None:
        return words == expected
    return len(words) == len(expected) and all(
        word == other or _is_close(word, other, tolerance=float_tolerance)
        for word, other in zip(words, expected, strict=True)
    )


def _is_close(word: str, expected: str, *, tolerance: float) -> bool:
    if not _NUMBER.fullmatch(word) or not _NUMBER.fullmatch(expected):
        return False
    if _INTEGER.fullmatch(word) and _INTEGER.fullmatch(expected):
        return word.lstrip("+") == expected.lstrip("+")
    value, target = float(word), float(expected)
    return math.isfinite(value) and math.isclose(value, target, rel_tol=0.0, abs_tol=tolerance * max(1.0, abs(target)))
