"""Checkers of a user's own: `function(completion, **arguments) -> bool` in a Python file, by a name of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewards.guard import describe_exception
from rewards.instructions.registry import CHECKERS, Checker
from rewards.user import find_function

REMEDY = "write it as FILE.py:FUNCTION, with def FUNCTION(completion, its arguments) -> bool in the file"


def load_checkers(checkers: Mapping[str, str]) -> dict[str, Checker]:
    """The user's checkers by name.

    Raises ValueError for a name that is taken or empty, and for a place that holds no function."""
    loaded = {}
    for name, place in checkers.items():
        if name in CHECKERS or not name.strip():
            raise ValueError(f"checkers: {name!r}: must be a name of your own, which no built-in checker has")
        file, _, function = place.rpartition(":")
        if not file or not function:
            raise ValueError(f"checkers: {name} = {place!r}: {REMEDY}")
        try:
            found = find_function(file, function, remedy=REMEDY)
        except ValueError as error:
            raise ValueError(f"checkers: {name} = {place!r}: {error}") from error
        loaded[name] = _own_checker(found, place=place, file=file)
    return loaded


def _own_checker(function: Callable[..., Any], *, place: str, file: str) -> Checker:
    signature = inspect.signature(function)

    def read(given: Mapping[str, Any]) -> dict[str, Any]:
        arguments = {name: value for name, value in given.items() if value is not None}
        try:
            signature.bind("", **arguments)
        except TypeError as error:
            raise ValueError(f"{place} cannot be called with {arguments!r}: {error}") from None
        return arguments

    def complaint(text: str, **arguments: Any) -> str:
        try:
            followed = function(text, **arguments)
        except Exception as error:
            where = describe_exception(error, file=str(Path(file).resolve()))
            raise ValueError(f"{place} raised {where}") from error
        if not isinstance(followed, bool):
            raise ValueError(f"{place} returned {followed!r}: must return True or False")
        return "" if followed else f"{place} says no"

    return Checker(complaint, read)
