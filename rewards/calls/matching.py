"""Whether written calls are the expected ones: names and every argument by value and type, calls in any order."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rewards.calls.expected import Allowed, Expected
from rewards.calls.schema import Schema, declared_kinds, fits, schema_of_entry
from rewards.calls.strict_json import MalformedError, read_whole_json
from rewards.calls.written import Call, Untyped

SameText = Callable[[str, str], bool]

_IGNORED = re.compile(r"[ ,./\-_*^]")


def same_normalized(written: str, allowed: str) -> bool:
    """BFCL's rule: case, spaces and the characters , . / - _ * ^ do not count, and ' is the same as "."""
    return _normalized(written) == _normalized(allowed)


def same_exactly(written: str, allowed: str) -> bool:
    """Letter by letter."""
    return written == allowed


SAME_TEXT: Mapping[str, SameText] = MappingProxyType({"normalized": same_normalized, "exact": same_exactly})


def _normalized(text: str) -> str:
    return _IGNORED.sub("", unicodedata.normalize("NFC", text)).lower().replace("'", '"')


def fault_of_calls(calls: Sequence[Call], expected: Sequence[Expected], *, same_text: SameText) -> str:
    """Why the calls are not the expected ones, in words; empty when they are, each one once, in whatever order."""
    if len(calls) != len(expected):
        return f"{len(calls)} calls instead of {len(expected)}"
    if len(calls) == 1:
        return fault_of_call(calls[0], expected[0], same_text=same_text)
    fitting = [
        [index for index, call in enumerate(calls) if not fault_of_call(call, wanted, same_text=same_text)]
        for wanted in expected
    ]
    lonely = _unmatched(fitting)
    return "" if lonely is None else f"no call is left that fits expected call {lonely + 1} of {len(expected)}"


def _unmatched(fitting: Sequence[Sequence[int]]) -> int | None:
    """The first expected call that gets no call of its own, with fitting[i] the calls that fit i; None when all do.

    A call may fit several, so that taking the first that fits can fail where another choice does not (augmenting
    paths find it)."""
    taken_by: dict[int, int] = {}

    def find(wanted: int, seen: set[int]) -> bool:
        for call in fitting[wanted]:
            if call not in seen:
                seen.add(call)
                if call not in taken_by or find(taken_by[call], seen):
                    taken_by[call] = wanted
                    return True
        return False

    return next((wanted for wanted in range(len(fitting)) if not find(wanted, set())), None)


def fault_of_call(call: Call, expected: Expected, *, same_text: SameText) -> str:
    """Why one call is not the expected one, in words; empty when it is."""
    if call.name != expected.function.name:
        return f"function {call.name[:60]!r} instead of {expected.function.name!r}"
    for name, allowed in expected.parameters.items():
        if name not in call.arguments and not allowed.may_be_left_out:
            return f"parameter {name!r} is missing"
    for name, value in call.arguments.items():
        if name not in expected.parameters:
            return f"parameter {name[:60]!r} is not expected"
        schema = expected.function.properties.get(name, {})
        if not any(
            _is_allowed(reading, expected.parameters[name], schema, same_text) for reading in _readings(value, schema)
        ):
            written = value.text if isinstance(value, Untyped) else value
            return f"parameter {name!r} has the wrong value {reprlib.repr(written)}"
    return ""


def _readings(value: Any, schema: Schema) -> list[Any]:
    """What an argument may mean: itself, or for untyped text that text (as it is, and without a margin) and its JSON.

    Where a string is declared, quotes are part of it."""
    if not isinstance(value, Untyped):
        return [value]
    readings: list[Any] = [value.text, value.text.strip()]
    try:
        read = read_whole_json(value.text)
    except MalformedError:
        return readings
    if not (isinstance(read, str) and declared_kinds(schema) == {"string"}):
        readings.append(read)
    return readings


def _is_allowed(value: Any, allowed: Allowed, schema: Schema, same_text: SameText) -> bool:
    return any(_is_same(value, option, schema, same_text) for option in allowed.values)


def _is_same(value: Any, option: Any, schema: Schema, same_text: SameText) -> bool:
    """Whether a value is an allowed one, and of the declared type or else of the allowed value's own."""
    if option is None or isinstance(option, bool):
        return value is option
    if isinstance(option, str):
        return isinstance(value, str) and same_text(value, option)
    if isinstance(option, (int, float)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != option:
            return False
        return fits(value, schema) or type(value) is type(option)
    if isinstance(option, tuple):
        return (
            isinstance(value, list)
            and len(value) == len(option)
            and all(
                _is_same(inner, wanted, schema_of_entry(schema, index), same_text)
                for index, (inner, wanted) in enumerate(zip(value, option, strict=True))
            )
        )
    assert isinstance(option, dict), "read_expected lets nothing else through"
    return (
        isinstance(value, Mapping)
        and all(key in option for key in value)
        and all(key in value or inner.may_be_left_out for key, inner in option.items())
        and all(
            _is_allowed(inner, option[key], schema_of_entry(schema, key), same_text) for key, inner in value.items()
        )
    )
