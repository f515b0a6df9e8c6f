"""How a completion writes its calls: GLM's tags, Hermes' and Qwen's tags around JSON, plain JSON.

Every format is read from its first mark to the end of the text, so a call is read as it would be executed and nothing
is guessed. Knows no schema: a value that GLM writes without saying its type stays an `Untyped`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.calls.strict_json import MalformedError, read_json, read_whole_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it was written: arguments are JSON values, or Untyped where the format leaves the type open."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Untyped:
    """An argument whose text may be itself or JSON: only the function's schema can tell."""

    text: str


def read_calls(completion: str, *, format: str, think_tag: str, names: Collection[str]) -> tuple[Call, ...]:
    """The calls of a completion, in order; empty when it makes none. `names` are those of the row's functions.

    `format` is glm, hermes, json or any. Raises MalformedError for a call that is begun and cannot be read, for text
    after a call, and for a thought that never ends."""
    text = _without_end_tokens(_after_thought(completion, think_tag))
    begins = text.find(OPEN)
    if format in ("json", "any"):
        found = _find_json_call(text, names)
        if found is not None and (format == "json" or not 0 <= begins < found.start):
            return _read_json_calls(text, found)
    if format != "json" and begins >= 0:
        return _read_tagged(text, begins, format)
    _refuse_leftovers(text, names)
    return ()


def read_listed_calls(listed: list[Any]) -> tuple[Call, ...]:
    """Calls that come as data: OpenAI's `tool_calls`, or objects with name and arguments. Raises MalformedError."""
    return tuple(_as_call(entry) for entry in listed)


def _after_thought(completion: str, tag: str) -> str:
    """What follows the thought. The first closing tag ends it, as it does for the servers that split thoughts off."""
    thought, closed, rest = completion.partition(f"</{tag}>")
    if closed:
        return rest
    if thought.lstrip().startswith(f"<{tag}>"):
        raise MalformedError(f"<{tag}> is never closed")
    return completion


_END_TOKEN = re.compile(r"(?:<\|\w{1,30}\|>|</s>)\Z")


def _without_end_tokens(text: str) -> str:
    """The text without the special tokens that a decoder may leave at its end."""
    text = text.rstrip()
    while _END_TOKEN.search(text, max(0, len(text) - 40)):
        text = text[: text.rindex("<")].rstrip()
    return text


# --- between tags ---


def _read_tagged(text: str, begins: int, format: str) -> tuple[Call, ...]:
    """The calls from the first opening tag to the end of the text; the first one shows which format it is."""
    if format == "any":
        format = "hermes" if text.startswith("{", _skip_space(text, begins + len(OPEN))) else "glm"
    read = _read_hermes if format == "hermes" else _read_glm
    calls, at = [], begins
    while at < len(text):
        if not text.startswith(OPEN, at):
            raise MalformedError(f"text after a call: {text[at : at + 40]!r}")
        call, at = read(text, at + len(OPEN))
        calls.append(call)
        at = _skip_space(text, at)
    return tuple(calls)


def _read_hermes(text: str, at: int) -> tuple[Call, int]:
    """The call whose JSON begins at `at`, and the position after its closing tag."""
    value, at = read_json(text, start=_skip_space(text, at))
    return _as_call(value), _expect(CLOSE, text, _skip_space(text, at))


_NAME = re.compile(r"[^\s<>{}()\[\]\"']+")


def _read_glm(text: str, at: int) -> tuple[Call, int]:
    """The call whose name begins at `at`, and the position after its closing tag."""
    stops = [stop for stop in (text.find("<arg_key>", at), text.find(CLOSE, at)) if stop >= 0]
    if not stops:
        raise MalformedError(f"{OPEN} is never closed")
    name, at = text[at : min(stops)].strip(), min(stops)
    if not _NAME.fullmatch(name):
        raise MalformedError(f"{name[:40]!r} is no function name")
    arguments: dict[str, Untyped] = {}
    while not text.startswith(CLOSE, at):
        key, at = _enclosed("arg_key", text, at)
        value, at = _enclosed("arg_value", text, _skip_space(text, at))
        key = key.strip()
        if key in arguments or not key or "<" in key:
            raise MalformedError(f"the argument {key[:40]!r} stands twice or is no name")
        arguments[key] = Untyped(value)
        at = _skip_space(text, at)
    return Call(name, arguments), at + len(CLOSE)


def _enclosed(tag: str, text: str, at: int) -> tuple[str, int]:
    """What stands between the tag at `at` and the next closing one, and the position after that."""
    begin = _expect(f"<{tag}>", text, at)
    end = text.find(f"</{tag}>", begin)
    if end < 0:
        raise MalformedError(f"<{tag}> is never closed")
    return text[begin:end], end + len(tag) + 3


def _expect(literal: str, text: str, at: int) -> int:
    if not text.startswith(literal, at):
        raise MalformedError(f"{literal} is missing before {text[at : at + 40]!r}")
    return at + len(literal)


_SPACE = re.compile(r"\s*")


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None, "it matches nothing as well"
    return match.end()


# --- plain JSON ---


@dataclass(frozen=True, slots=True)
class _Found:
    start: int
    end: int
    value: Any


# Also with the quotes that JSON does not know: what a call was meant to be and is not must not pass for plain text.
_JSON_START = re.compile(r"""(?:\[\s*)?\{\s*["']?(?:name|arguments|parameters|function|type|id|tool_calls)["']?\s*:""")
_NAME_KEY = re.compile(r"""["']?\bname["']?\s*:\s*["']?([\w.-]*)""")
_ARGUMENTS_KEY = re.compile(r"""["']?\b(?:arguments|parameters)["']?\s*:""")


def _find_json_call(text: str, names: Collection[str]) -> _Found | None:
    """The first JSON value that is a call or a list of calls; other JSON is text. None where there is none.

    Raises MalformedError for JSON that breaks off where a call may have been meant."""
    at = 0
    while match := _JSON_START.search(text, at):
        try:
            value, at = read_json(text, start=match.start())
        except MalformedError:
            if OPEN not in text[: match.start()] and _may_be_call(text[match.start() :], names):
                raise
            return None
        if _is_call(value, names):
            return _Found(match.start(), at, value)
    return None


def _may_be_call(text: str, names: Collection[str]) -> bool:
    written = {match[1] for match in _NAME_KEY.finditer(text)}
    return bool(written and (_ARGUMENTS_KEY.search(text) or not written.isdisjoint(names)))


def _is_call(value: Any, names: Collection[str]) -> bool:
    """Whether the value is meant as a call: whether it is a right one is for `_as_call` to say."""
    if isinstance(value, list):
        return any(_is_call(entry, names) for entry in value if isinstance(entry, dict))
    if "tool_calls" in value or isinstance(value.get("function"), dict):
        return True
    if "name" not in value:
        return False
    name = value["name"]
    return "arguments" in value or "parameters" in value or (isinstance(name, str) and name in names)


_FENCE_OPENS = re.compile(r"```[\w+-]{0,20}\s*\Z")
_FENCE_CLOSES = re.compile(r"\s*```\s*\Z")


def _read_json_calls(text: str, found: _Found) -> tuple[Call, ...]:
    """The calls of the value found. Text may stand before it, nothing after it but the end of its own fence."""
    before, after = text[: found.start], text[found.end :]
    if any(mark in before for mark in _TAGS):
        raise MalformedError("a tag of a tool call stands before the JSON")
    if _FENCE_OPENS.search(before.rstrip()[-30:]):
        if not _FENCE_CLOSES.match(after):
            raise MalformedError(f"the fence is not closed right after the call: {after[:40]!r}")
    elif after.strip():
        raise MalformedError(f"text after a call: {after.strip()[:40]!r}")
    value = found.value
    if isinstance(value, dict) and "tool_calls" in value:
        value = value["tool_calls"]
        if not isinstance(value, list):
            raise MalformedError("tool_calls is no list")
    return tuple(_as_call(entry) for entry in (value if isinstance(value, list) else [value]))


def _as_call(entry: Any) -> Call:
    """A call from its object: name and arguments (an object, or JSON text of one), in OpenAI's wrapper or bare."""
    if isinstance(entry, Mapping) and isinstance(entry.get("function"), Mapping):
        _refuse_keys(entry, {"id", "type", "index", "function"})
        entry = entry["function"]
    if not isinstance(entry, Mapping):
        raise MalformedError(f"a call is an object with name and arguments, not a {type(entry).__name__}")
    key = "parameters" if "parameters" in entry and "arguments" not in entry else "arguments"
    _refuse_keys(entry, {"id", "type", "index", "name", key})
    name, arguments = entry.get("name"), entry.get(key)
    if isinstance(arguments, str):
        arguments = read_whole_json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise MalformedError("a call needs a name, which is text, and arguments, which are an object")
    return Call(name, arguments)


def _refuse_keys(entry: Mapping[str, Any], known: set[str]) -> None:
    unknown = [key for key in entry if key not in known]
    if unknown:
        raise MalformedError(f"{str(unknown[0])[:40]!r} is no part of a call")


# --- what is neither a call nor plain text ---

_TAGS = ("<tool_call", "</tool_call", "<arg_key", "<arg_value")
_OTHER_FORMATS = (
    *("[TOOL_CALLS]", "<|python_tag|>", "<function=", "<function_call", "<invoke", "<|tool_call", "<｜tool"),
    *("<tool_code", "to=functions.", "Action Input:"),
)


def _refuse_leftovers(text: str, names: Collection[str]) -> None:
    """Raise MalformedError when a text without a call in its format was still meant to make one."""
    for mark in (*_TAGS, *_OTHER_FORMATS):
        if mark in text:
            raise MalformedError(f"{mark} stands there without a call in the format")
    if _find_json_call(text, names) is not None or _is_python_call(text, names):
        raise MalformedError("the call is in another format")


_PYTHON_CALL = re.compile(r"(?:```\w{0,20}\s*)?\[?\s*([\w.]+)\(")


def _is_python_call(text: str, names: Collection[str]) -> bool:
    """Whether the whole text is `name(…)` or a list of them: a function that is merely mentioned is no call."""
    match = _PYTHON_CALL.match(text.lstrip())
    return match is not None and match[1] in names and text.rstrip("`] \n").endswith(")")
