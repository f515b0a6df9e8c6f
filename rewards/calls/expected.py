"""The calls that a row expects: for each parameter the values that are right, and whether it may be left out.

Two shapes are read: BFCL's possible answers (`{"name": {"parameter": [allowed, …]}}`, "" among the allowed values for
a parameter that may be left out) and a plain reference call (`{"name": …, "arguments": {…}}`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.calls.schema import BrokenRowError, Function, Schema, decoded, fits


@dataclass(frozen=True, slots=True)
class Allowed:
    """The right values of a parameter or of a key of a dictionary.

    A value is a string, a number, a boolean, None, a tuple of values (a list), or a dict from keys to Allowed."""

    values: tuple[Any, ...]
    may_be_left_out: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """One expected call: its function, and what is right for each parameter that may stand in it."""

    function: Function
    parameters: Mapping[str, Allowed]


_Read = Callable[[Any, str], Allowed]


def read_expected(value: Any, functions: Mapping[str, Function], *, key: str) -> tuple[Expected, ...]:
    """The calls that problem[key] expects, none when it is empty. The value is a list, or JSON text of one.

    Raises BrokenRowError for another shape, and for calls that contradict the functions: one that is not there, a
    parameter it does not have, a required one that is missing, a parameter with no value of its type."""
    entries = decoded(value, key=key)
    if not isinstance(entries, (list, tuple)):
        raise BrokenRowError(
            f"problem[{key!r}] = {str(entries)[:100]}: must be a list of calls, [] where none is needed"
        )
    return tuple(_read_entry(entry, functions, f"problem[{key!r}][{index}]") for index, entry in enumerate(entries))


def _read_entry(entry: Any, functions: Mapping[str, Function], where: str) -> Expected:
    if isinstance(entry, Mapping) and set(entry) == {"name", "arguments"} and isinstance(entry["name"], str):
        name, arguments = entry["name"], decoded(entry["arguments"], key="arguments")
        read: _Read = _exactly
    elif isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        read = _one_of
    else:
        raise BrokenRowError(f'{where} = {str(entry)[:100]}: must be {{"name": {{"parameter": [allowed values]}}}}')
    if not isinstance(arguments, Mapping):
        raise BrokenRowError(f"{where}: what stands under {name!r} must be an object from parameters to values")
    if name not in functions:
        raise BrokenRowError(f"{where}: {name!r} is none of the functions {sorted(functions)}; give it to the row")
    function = functions[name]
    parameters = {}
    for parameter, values in arguments.items():
        place = f"{where}[{name!r}][{parameter!r}]"
        if parameter not in function.properties and not function.is_open:
            raise BrokenRowError(f"{place}: the function has no such parameter, only {sorted(function.properties)}")
        parameters[parameter] = _of_declared_type(
            read(values, place),
            function.properties.get(parameter, {}),
            is_required=parameter in function.required,
            place=place,
        )
    missing = sorted(function.required - set(parameters))
    if missing:
        raise BrokenRowError(
            f"{where}: {missing[0]!r} is required by {name!r} and has no value; add it or require less"
        )
    return Expected(function, parameters)


def _of_declared_type(allowed: Allowed, schema: Schema, *, is_required: bool, place: str) -> Allowed:
    """The allowed values as the function's declaration leaves them.

    A required parameter stays required whatever the values say, as in BFCL, and "" is a value only where a string can
    stand. Some value has to be of the declared type, unless the parameter can be left out."""
    values = tuple(value for value in allowed.values if value != "" or fits("", schema))
    may_be_left_out = allowed.may_be_left_out and not is_required
    if not may_be_left_out and not any(_can_stand(value, schema) for value in values):
        raise BrokenRowError(f"{place}: no value fits the declared type {schema.get('type')!r}; correct one of the two")
    return Allowed(values, may_be_left_out)


def _can_stand(value: Any, schema: Schema) -> bool:
    enum = schema.get("enum")
    if isinstance(value, str) and isinstance(enum, (list, tuple)) and enum:
        return value.casefold() in {str(entry).casefold() for entry in enum}
    return fits(value, schema)


def _one_of(values: Any, place: str) -> Allowed:
    """BFCL's list of allowed values; within a dictionary each key has such a list again."""
    if not isinstance(values, (list, tuple)) or not values:
        raise BrokenRowError(f"{place} = {str(values)[:100]}: must be a list of at least one allowed value")
    return Allowed(tuple(_value(value, _one_of, place) for value in values), may_be_left_out="" in values)


def _exactly(value: Any, place: str) -> Allowed:
    """The one right value of a plain reference call."""
    return Allowed((_value(value, _exactly, place),), may_be_left_out=False)


def _value(value: Any, read: _Read, place: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): read(inner, f"{place}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_value(inner, read, place) for inner in value)
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise BrokenRowError(f"{place} = {value!r}: a value must be what JSON can hold")
