"""A run's config beside the defaults: every field by its dotted name, with what it is where nobody sets it.

Knows the schema alone; a field that the schema does not have (of another version, or a mapping's own key) is shown and
has no default."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from grpo.config import schema

Row = dict[str, Any]


def config_rows(config: Mapping[Any, Any]) -> list[Row]:
    """One row a field, in the config's order: name, value, default (None: it has none), and whether it was changed."""
    found = schema()
    rows = []
    for name, value, default in _fields(config, found, found, prefix=""):
        has_default = default is not _NONE
        rows.append(
            {
                "name": name,
                "value": _written(value),
                "default": _written(default) if has_default else None,
                "is_changed": not has_default or json.loads(json.dumps(value, default=str)) != default,
            }
        )
    return rows


class _Nothing:
    """The default of a field without one."""


_NONE = _Nothing()


def _fields(config: Mapping[Any, Any], section: Row, found: Row, *, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Every leaf with its default. `section` is the schema of `config`, `found` the whole that its references name."""
    properties = section.get("properties", {})
    for key, value in config.items():
        name, of_field = f"{prefix}{key}", properties.get(str(key), {})
        inner = _section(of_field, found)
        if isinstance(value, dict) and value and (inner is not None or "default" not in of_field):
            yield from _fields(value, inner or {}, found, prefix=f"{name}.")
        else:
            yield name, value, of_field.get("default", _NONE)


def _section(of_field: Row, found: Row) -> Row | None:
    """The schema of a field that is a section, or may be one."""
    for option in (of_field, *of_field.get("anyOf", ()), *of_field.get("allOf", ())):
        if "$ref" in option:
            named: Row = found["$defs"][option["$ref"].removeprefix("#/$defs/")]
            if "properties" in named:
                return named
    return None


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
