"""Write docs/config.md and configs/grpo.schema.json from the config's own fields: `python
scripts/write_config_docs.py`. Tests hold both current."""

import sys
from pathlib import Path
from typing import Any

from grpo.config import schema, write_schema

INTRO = """# Every field of a config

A run is one YAML file of these sections; `grpo CONFIG.yaml section.key=value` changes a field from the command line.
Unknown keys, values out of range and fields that contradict each other are errors that name the field and the remedy.
This page is written by `python scripts/write_config_docs.py` from the fields themselves, and so is
`configs/grpo.schema.json`, from which an editor completes and checks a config whose first line names it:
`# yaml-language-server: $schema=grpo.schema.json`.
"""
USED_BY_OTHERS = (
    "AppliedVectors",
    "EvaluationSet",
    "LoraConfig",
    "MovesConfig",
    "Source",
    "StageConfig",
    "VllmConfig",
    "WatchConfig",
)


def page() -> str:
    """The page as Markdown."""
    document = schema()
    sections = document["$defs"]
    parts = [INTRO]
    for name, field in document["properties"].items():
        definition = _definition(field, sections)
        parts.append(_section(name, definition, optional=name not in document["required"]))
    for name, definition in sorted(sections.items()):
        if name in USED_BY_OTHERS:
            parts.append(_section(f"{name} (used by other sections)", definition, optional=True))
    return "\n".join(parts)


def _section(name: str, definition: dict[str, Any], *, optional: bool) -> str:
    rows = [f"## {name}", "", _one_line(definition.get("description", "")) + ("" if optional else " Required."), ""]
    rows += ["| field | type | default | meaning |", "|---|---|---|---|"]
    required = definition.get("required", [])
    for field, description in definition.get("properties", {}).items():
        default = "required" if field in required else f"`{_shown(description.get('default'))}`"
        meaning = _one_line(description.get("description", "")).replace("|", "\\|")
        rows.append(f"| `{field}` | {_kind(description)} | {default} | {meaning} |")
    return "\n".join([*rows, ""])


def _definition(field: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    options = [field, *field.get("anyOf", [])]
    reference = next(option["$ref"] for option in options if "$ref" in option)
    found: dict[str, Any] = sections[reference.rsplit("/", 1)[1]]
    return found


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[1]
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"])
    limits = [f"{sign} {field[key]:g}" for key, sign in _LIMITS.items() if key in field]
    held = field.get("items") or field.get("additionalProperties")
    items = f" of {_kind(held)}" if isinstance(held, dict) and held else ""
    return str(field.get("type", "any")) + items + (f", {', '.join(limits)}" if limits else "")


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    target = root / "docs" / "config.md"
    target.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{target}\n{write_schema(root / 'configs')}\n")
