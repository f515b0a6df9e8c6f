"""Options of a reward: a frozen dataclass states names, types and defaults; this file checks a mapping against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


def nearest(name: str, names: list[str]) -> str:
    """The known name that a misspelt one most resembles, as a half sentence; empty when none is near."""
    matches = get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def read_options(options_type: type[Options], options: Mapping[str, Any], *, reward: str) -> Options:
    """The options as an `options_type`, a frozen dataclass.

    Its fields are str, bool, int, float, Literal of strings, Any, one of these or None, tuple[T, ...] (given as a
    list) and dict[str, T]. Raises ValueError for an unknown option, a missing one, a value of the wrong type, or one
    that the dataclass itself refuses."""
    hints = get_type_hints(options_type)
    names = [entry.name for entry in fields(options_type)]  # type: ignore[arg-type]  # any dataclass
    values = {}
    for name, value in options.items():
        if name not in names:
            raise ValueError(
                f"reward {reward}: {name!r} is not an option{nearest(str(name), names)} "
                f"(options: {', '.join(names) or 'none'})"
            )
        try:
            values[name] = _read_value(value, hints[name])
        except _WrongTypeError:
            raise ValueError(f"reward {reward}: option {name} = {value!r}: must be {_describe(hints[name])}") from None
    for entry in fields(options_type):  # type: ignore[arg-type]
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"reward {reward}: option {entry.name} is missing; it is {_describe(hints[entry.name])}")
    try:
        return options_type(**values)
    except ValueError as error:
        raise ValueError(f"reward {reward}: {error}") from error


class _WrongTypeError(ValueError):
    """A value is not of its field's type."""


def _read_value(value: Any, hint: Any) -> Any:
    """The value in the type of its field: a list becomes a tuple, an int a float; a bool is never an int."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is UnionType:
        (other,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _read_value(value, other)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_read_value(entry, arguments[0]) for entry in value)
    if origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _read_value(entry, arguments[1]) for key, entry in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise _WrongTypeError


def _describe(hint: Any) -> str:
    """What a value of the type is called in a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        (other,) = (argument for argument in arguments if argument is not NoneType)
        return f"{_describe(other)} or null"
    if origin is Literal:
        return f"one of {list(arguments)}"
    if origin is tuple:
        return f"a list of {_PLURALS.get(arguments[0], 'values')}"
    if origin is dict:
        values = f" to {_PLURALS[arguments[1]]}" if arguments[1] in _PLURALS else ""
        return f"a mapping from names{values}"
    return f"a {hint.__name__}"


_PLURALS = {str: "strings", int: "ints", float: "floats", bool: "bools"}
