"""JSON as RFC 8259 has it and nothing beyond: no NaN, no key twice in an object, no number that overflows."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


class MalformedError(ValueError):
    """What a completion wrote cannot be read; the message says why."""


def read_json(text: str, *, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start` exactly, and the position after it. Raises MalformedError."""
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise MalformedError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"the JSON cannot be read: {error}") from None


def read_whole_json(text: str) -> Any:
    """The text as one JSON value with nothing but white space around it. Raises MalformedError."""
    stripped = text.strip()
    value, end = read_json(stripped)
    if end != len(stripped):
        raise MalformedError(f"the JSON ends at character {end}, but text follows")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} overflows")
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)
