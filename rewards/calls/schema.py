"""A row's functions: their names, parameters and declared types, as BFCL and as OpenAI's `tools` write them.

Of JSON Schema this reads what says which type a value has (type, anyOf, oneOf, items, properties, enum, required,
additionalProperties). What it does not know declares nothing and so allows every type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Schema = Mapping[str, Any]

_KIND_NAMES = {
    "string": ("string", "str", "String", "char"),
    "integer": ("integer", "int", "Integer", "byte", "short", "long", "Bigint"),
    "number": ("number", "float", "double", "Number"),
    "boolean": ("boolean", "bool", "Boolean"),
    "array": ("array", "list", "tuple", "Array", "ArrayList", "Queue", "Stack", "set", "Set"),
    "object": ("object", "dict", "Object", "HashMap", "Hashtable"),
    "null": ("null",),
}
_KINDS: Mapping[str, str] = MappingProxyType({name: kind for kind, names in _KIND_NAMES.items() for name in names})

_UNDECLARED: Schema = MappingProxyType({})


class BrokenRowError(ValueError):
    """A key of the problem cannot be used; the message names it, the value, the rule, the remedy."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called. `is_open`: it takes parameters beyond those it declares."""

    name: str
    properties: Mapping[str, Schema]
    required: frozenset[str]
    is_open: bool


def read_functions(value: Any, *, key: str) -> dict[str, Function]:
    """The functions of problem[key] by name. The value is a list, or JSON text of one. Raises BrokenRowError."""
    entries = decoded(value, key=key)
    if not isinstance(entries, (list, tuple)):
        raise BrokenRowError(f"problem[{key!r}] = {str(entries)[:100]}: must be a list of functions")
    functions: dict[str, Function] = {}
    for index, entry in enumerate(entries):
        function = _read_function(entry, where=f"problem[{key!r}][{index}]")
        if function.name in functions:
            raise BrokenRowError(f"problem[{key!r}][{index}]: two functions are called {function.name!r}; rename one")
        functions[function.name] = function
    return functions


def decoded(value: Any, *, key: str) -> Any:
    """The value, or what its JSON text holds: a column of a table cannot hold values of mixed types otherwise."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BrokenRowError(f"problem[{key!r}] = {value[:100]!r}: text must be JSON ({error})") from None


def _read_function(entry: Any, *, where: str) -> Function:
    if isinstance(entry, Mapping) and isinstance(entry.get("function"), Mapping):
        entry = entry["function"]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise BrokenRowError(f"{where} = {str(entry)[:100]}: a function is an object with a name and parameters")
    parameters = entry.get("parameters") or {}
    properties = parameters.get("properties") or {} if isinstance(parameters, Mapping) else None
    required = parameters.get("required") or [] if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping) or not isinstance(required, (list, tuple)):
        raise BrokenRowError(
            f"{where}: parameters of {entry['name']!r} must be an object with properties and a list required"
        )
    return Function(
        name=entry["name"],
        properties={
            name: schema if isinstance(schema, Mapping) else _UNDECLARED for name, schema in properties.items()
        },
        required=frozenset(str(name) for name in required),
        is_open=bool(parameters.get("additionalProperties", False)),
    )


def fits(value: Any, schema: Schema) -> bool:
    """Whether the value is of a declared type, looking no deeper: an integer is a number, a boolean is neither."""
    kinds = declared_kinds(schema)
    if kinds is None:
        return True
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int):
        return "integer" in kinds or "number" in kinds
    return _KIND_OF_TYPE.get(type(value), "") in kinds


_KIND_OF_TYPE = {str: "string", float: "number", list: "array", tuple: "array", dict: "object", type(None): "null"}


def declared_kinds(schema: Schema) -> frozenset[str] | None:
    """The declared types under JSON Schema's names; None where any type may stand."""
    kinds: set[str] = {"null"} if schema.get("nullable") is True else set()
    branches = _branches(schema)
    if branches:
        for branch in branches:
            inner = declared_kinds(branch)
            if inner is None:
                return None
            kinds |= inner
        return frozenset(kinds)
    names = schema.get("type")
    for name in names if isinstance(names, (list, tuple)) else [names]:
        if not isinstance(name, str) or name not in _KINDS:
            return None
        kinds.add(_KINDS[name])
    return frozenset(kinds)


def _branches(schema: Schema) -> list[Schema]:
    listed = schema.get("anyOf") or schema.get("oneOf") or []
    return [branch for branch in listed if isinstance(branch, Mapping)] if isinstance(listed, (list, tuple)) else []


def schema_of_entry(schema: Schema, key: str | int) -> Schema:
    """What an object declares of its property `key`, or a list of its element number `key`; empty when nothing."""
    for branch in (schema, *_branches(schema)):
        inner = branch.get("properties") if isinstance(key, str) else branch.get("items")
        if isinstance(key, str):
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        elif isinstance(inner, (list, tuple)):
            inner = inner[key] if key < len(inner) else None
        if isinstance(inner, Mapping):
            return inner
    return _UNDECLARED
