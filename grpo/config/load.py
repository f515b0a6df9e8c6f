"""From a YAML file and `a.b=c` overrides to a `RunConfig`, or to one error that lists everything wrong in the file."""

import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from grpo.config.run import RunConfig
from grpo.errors import ConfigError

# What may differ when a run is resumed: none of it changes a token that is sampled or a weight that is trained. Of
# train.steps this holds as long as no schedule ends with the run; of a verifier's limits, as long as none is met.
FREE_FIELDS = (
    "run.folder",
    "run.threads",
    "tracking",
    "checkpoint",
    "reward.workers",
    "reward.timeout_seconds",
    "reward.memory_limit_mb",
    "reward.max_error_fraction",
    "train.steps",
    "train.max_tokens",
    # How work is cut to fit a memory: rounding alone, so that a run that ran out of it can go on with less.
    "sampling.max_rows",
    "sampling.prefill_tokens",
    # Where the engine runs and what it may hold; which engine it is stays.
    "sampling.vllm",
    "train.tokens_per_micro_batch",
    "model.activation_checkpointing",
    "sft.micro_batch_size",
    # Who computes what: sums round differently, and nothing else changes.
    "distributed",
    "watchdog",
    "guard",
)

SCHEMA_FILE = "grpo.schema.json"
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_RULES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "string_pattern_mismatch": "must match {pattern}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a section, a mapping of its fields",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "finite_number": "must be a finite number",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
}


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply `overrides` (each ``section.key=value``, the value in YAML), and check every field.

    Raises ConfigError that names the file, the field, the value, the rule and the remedy, one line a fault."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the path of a run's YAML config (see configs/)")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of sections (run, model, data, ...); got {type(raw).__name__}")
    raw = _plain(raw)
    for override in overrides:
        _apply(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_message(path, detail) for detail in _ordered(error))) from error


def dump(config: RunConfig) -> str:
    """The resolved config as YAML, every default spelled out."""
    return yaml.dump(_plain(config.model_dump()), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors."""
    return {"$schema": SCHEMA_DIALECT, **RunConfig.model_json_schema()}


def write_schema(folder: Path) -> Path:
    """Write the schema into `folder`, where the first line of a config beside it names it. Returns its path."""
    path = folder / SCHEMA_FILE
    path.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    return path


def sections_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of a section that are one section themselves, with its type."""
    return {
        name: section
        for name, field in model.model_fields.items()
        for section in _sections(field.annotation)
        if not _holds_several(field.annotation)
    }


def fingerprint(config: RunConfig) -> dict[str, str]:
    """A short hash of every field that must not change when a run is resumed, by dotted name."""
    flat = dict(_flatten(config.model_dump(mode="json"), ""))
    ends_with_run = config.optim.schedule != "constant" or config.temperature.kind in ("linear", "cosine")
    free_fields = [name for name in FREE_FIELDS if not (ends_with_run and name == "train.steps")]
    return {
        name: hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
        for name, value in flat.items()
        if not any(name == free or name.startswith(free + ".") for free in free_fields)
    }


class _UniqueKeyLoader(yaml.SafeLoader):
    """Holds YAML's own rule that a key stands once, which PyYAML lets pass, and reads numbers as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """Puts a text that the loader would take for a number into quotes."""


# PyYAML follows YAML 1.1, where 1e-6 is a text for want of a dot, and 1.0e6 for want of a sign.
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
for _of in (_UniqueKeyLoader, _Dumper):
    _of.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [key.value for key, _ in node.value]
    for index, name in enumerate(names):
        if name in names[:index]:
            problem = f"the key {name!r} stands twice; keep one of them"
            raise yaml.constructor.ConstructorError(None, None, problem, node.value[index][0].start_mark)
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _apply(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override {override!r}: must read section.key=value, such as optim.learning_rate=2e-6")
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
    *parents, last = name.split(".")
    section: Any = raw
    for depth, parent in enumerate(parents):
        if isinstance(section, list) and parent.isdigit() and int(parent) < len(section):
            section = section[int(parent)]
            continue
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[:depth])} is not a section")
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
    if isinstance(section, list) and last.isdigit() and int(last) < len(section):
        section[int(last)] = value
    elif isinstance(section, dict):
        section[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is not a section")


def _plain(value: Any) -> Any:
    """A copy in YAML's own types. Nothing in it is shared, so that an override of one field is none of its anchor."""
    if isinstance(value, dict):
        return {_plain(name): _plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return str(value) if isinstance(value, Enum) else value


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _flatten(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


def _ordered(error: ValidationError) -> list[ErrorDetails]:
    return sorted(error.errors(include_url=False), key=lambda detail: [str(part) for part in detail["loc"]])


def _message(path: Path, detail: ErrorDetails) -> str:
    # pydantic names the member of a union and the key of a mapping in brackets; a reader knows neither.
    name = ".".join(str(part) for part in detail["loc"] if "[" not in str(part))
    if detail["type"] == "extra_forbidden":
        return f"{path}: {name} is not a field" + _nearest(name)
    description = _description(detail["loc"])
    explained = f" ({description})" if description else ""
    if detail["type"] == "missing":
        return f"{path}: {name} is missing; set it{explained}"
    if detail["type"] == "value_error":
        return f"{path}: {name + ': ' if name else ''}{detail['ctx']['error']}"
    rule = _RULES.get(detail["type"])
    text = rule.format(**detail.get("ctx", {})) if rule else detail["msg"]
    return f"{path}: {name} = {detail['input']!r}: {text}{explained}"


def _nearest(name: str) -> str:
    parts = name.split(".")
    places = {depth for depth, (_, is_place) in enumerate(_walked(parts)) if is_place}
    without_places = ".".join(part for depth, part in enumerate(parts) if depth not in places)
    match = difflib.get_close_matches(without_places, list(_field_names(RunConfig, "")), n=1, cutoff=0.6)
    if not match:
        return "; `grpo check --schema` lists every field"
    found = match[0].split(".")
    for depth in sorted(places):  # curriculum.stages.0.step: the place in a list goes back where it was
        if found[:depth] == parts[:depth]:
            found.insert(depth, parts[depth])
    return f"; did you mean {'.'.join(found)}?"


def _walked(parts: Iterable[int | str]) -> Iterator[tuple[FieldInfo | None, bool]]:
    """For each part of a dotted name the field that it names, if any, and whether it is a place in one instead: an
    index of a list of sections, a key of a mapping of them."""
    model: type[BaseModel] | None = RunConfig
    is_place = False
    for part in parts:
        field = None if is_place or model is None else model.model_fields.get(str(part))
        yield field, is_place
        if is_place:
            is_place = False
            continue
        model = next(_sections(field.annotation), None) if field is not None else None
        is_place = model is not None and field is not None and _holds_several(field.annotation)


def _holds_several(annotation: Any) -> bool:
    """Whether the sections of a field are in a list or a mapping."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return any(_holds_several(argument) for argument in typing.get_args(annotation))
    return typing.get_origin(annotation) in (list, dict)


def _field_names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from _field_names(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (types.UnionType, typing.Union, list, dict):
        for argument in typing.get_args(annotation):
            yield from _sections(argument)


def _description(location: tuple[int | str, ...]) -> str:
    text = ""
    for field, _ in _walked(location):
        if field is not None:
            section = next(_sections(field.annotation), None)
            text = field.description or (section.__doc__ if section is not None else None) or ""
    return " ".join(text.split())
