"""What an instruction's arguments may be: one function a kind, which returns the value or says what it must be.

Raises ValueError with the rule alone; the reader of the row adds the instruction, the name and the value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rewards.prose.detection import codes_of

RELATIONS = ("at least", "less than")

Kind = Callable[[Any], Any]


def read_arguments(kinds: Mapping[str, Kind], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the types of their kinds.

    A null is taken for missing: tables that give every row every column are full of them. Raises ValueError, naming
    the argument, for one that is missing, one too many, or one that its kind refuses."""
    present = {name: value for name, value in given.items() if value is not None}
    for name in present:
        if name not in kinds:
            raise ValueError(f"{name} = {present[name]!r} is no argument of it ({', '.join(kinds) or 'it has none'})")
    arguments = {}
    for name, kind in kinds.items():
        if name not in present:
            raise ValueError(f"its argument {name} is missing")
        try:
            arguments[name] = kind(present[name])
        except ValueError as rule:
            raise ValueError(f"{name} = {present[name]!r}: must be {rule}") from None
    return arguments


def count(value: Any) -> int:
    """A whole number, 0 or more; 3.0 is taken for 3, which is what a table with nulls makes of it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and value == value // 1:
        return int(value)
    raise ValueError("a whole number, 0 or more")


def ordinal(value: Any) -> int:
    """A whole number, 1 or more."""
    try:
        if (number := count(value)) >= 1:
            return number
    except ValueError:
        pass
    raise ValueError("a whole number, 1 or more")


def relation(value: Any) -> str:
    """How a count compares."""
    if isinstance(value, str) and value in RELATIONS:
        return value
    raise ValueError(f"one of {', '.join(RELATIONS)}")


def text(value: Any) -> str:
    """A text with more than white space, which is taken off its ends."""
    if isinstance(value, str) and value.strip():
        return value.strip().replace("\r\n", "\n")
    raise ValueError("a text that is not empty")


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts, none of them empty."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, str) and entry.strip() for entry in value):
        return tuple(value)
    raise ValueError("a list of texts, none of them empty")


def letter(value: Any) -> str:
    """A single character: a letter, a digit or a mark such as `#`."""
    if isinstance(value, str) and len(value.strip()) == 1:
        return value.strip()
    raise ValueError("a single character, not a space")


def language(value: Any) -> frozenset[str]:
    """A language that detection knows, as the codes that stand for it."""
    if isinstance(value, str) and (codes := codes_of(value)):
        return codes
    raise ValueError("a language code that langdetect knows, such as en, de or zh-cn")
