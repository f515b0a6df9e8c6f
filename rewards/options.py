"""Options of a reward: a frozen dataclass states names, types and defaults; this file checks a mapping against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


def nearest(name: str, names: list[str]) -> str:
    """The known name that a misspelt one most resembles, as a half sentence; empty when none is near."""
    matches = get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def read_options(options_type: type[Options], options: Mapping[str, Any], *, reward: str) -> Options:
    """The options as an `options_type`, a frozen dataclass whose fields are str, bool, int, float or tuple[str, ...].

    Raises ValueError for an unknown option, a value of the wrong type, or one that the dataclass itself refuses."""
    hints = get_type_hints(options_type)
    names = [entry.name for entry in fields(options_type)]  # type: ignore[arg-type]  # any dataclass
    values = {}
    for name, value in options.items():
        if name not in names:
            raise ValueError(
                f"reward {reward}: {name!r} is not an option{nearest(str(name), names)} "
                f"(options: {', '.join(names) or 'none'})"
            )
        values[name] = _read_value(value, hints[name], name=name, reward=reward)
    try:
        return options_type(**values)
    except ValueError as error:
        raise ValueError(f"reward {reward}: {error}") from error


def _read_value(value: Any, hint: Any, *, name: str, reward: str) -> Any:
    """The value in the type of its field: a list of strings becomes a tuple, an int a float; a bool is never an int."""
    if get_origin(hint) is tuple and get_args(hint) == (str, ...):
        if isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        expected = "a list of strings"
    else:
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is hint:
            return value
        expected = f"a {hint.__name__}"
    raise ValueError(f"reward {reward}: option {name} = {value!r}: must be {expected}")
