"""Completions made from BFCL's rows: right ones written from the label, and wrong ones made by one change each.

A wrong completion is wrong by construction, without asking the reward: its change touches a field that the label
fixes. Every choice is drawn from the row's own id, so the cases are the same each time. Knows no reward."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from grpo import published
from rewards import read_jsonl_rows

Calls = list[dict[str, Any]]  # {"name": …, "arguments": {…}}

LABELLED = ("simple_python", "multiple", "parallel")


class Case(NamedTuple):
    """A completion of a row, whether it is right, and its calls as data where it is well formed."""

    kind: str
    problem: dict[str, Any]
    completion: str
    is_right: bool
    calls: Calls | None


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of BFCL's files as problems: id, functions, possible_answers (empty for irrelevance)."""
    paths = [folder / f"BFCL_v4_{category}.json" for category in (*LABELLED, "irrelevance")]
    return [
        {"id": row["id"], **published.bfcl(row).columns}
        for path in paths
        for row in published.with_bfcl_answers([r for r in read_jsonl_rows(path) if isinstance(r, dict)], path)
    ]


# --- the three formats ---


def as_glm(calls: Calls) -> str:
    """GLM-4.5's tags: strings as they are, everything else as JSON."""
    blocks = []
    for call in calls:
        lines = [f"<tool_call>{call['name']}"]
        for key, value in call["arguments"].items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines += [f"<arg_key>{key}</arg_key>", f"<arg_value>{text}</arg_value>"]
        blocks.append("\n".join([*lines, "</tool_call>"]))
    return "\n".join(blocks)


def as_hermes(calls: Calls) -> str:
    """Hermes' and Qwen's tags around JSON."""
    return "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls)


def as_json(calls: Calls) -> str:
    """One object, or a list of several in a fence."""
    if len(calls) == 1:
        return json.dumps(calls[0])
    return f"```json\n{json.dumps(calls, indent=2)}\n```"


FORMATS = {"glm": as_glm, "hermes": as_hermes, "json": as_json}


# --- right ---


def right_cases(problem: dict[str, Any]) -> Iterator[Case]:
    """The label written out in each format: first values, drawn values, without what may be left out, shuffled."""
    draw = random.Random(problem["id"])
    if not problem["possible_answers"]:
        for text in ("", "None of the functions at hand can do that.", "<think>\nNo function fits.\n</think>\n\n42."):
            yield Case("no call", problem, text, True, None)
        return
    shuffled = fill(problem, lambda values: values[0])
    draw.shuffle(shuffled)
    variants = {
        "first values": fill(problem, lambda values: values[0]),
        "drawn values": fill(problem, draw.choice),
        "optional ones left out": fill(problem, lambda values: values[-1], leave_out=True),
        "in another order": shuffled,
    }
    for kind, calls in variants.items():
        for name, write in FORMATS.items():
            before = draw.choice(["", "<think>\nThis needs a call.\n</think>\n", "I will look it up.\n\n"])
            yield Case(f"{kind}, {name}", problem, before + write(calls), True, calls)


def fill(problem: Mapping[str, Any], choose: Any, *, leave_out: bool = False) -> Calls:
    """Calls as the label allows them; `choose` picks from a list of allowed values."""
    required = {entry["name"]: entry["parameters"].get("required", []) for entry in problem["functions"]}
    calls = []
    for entry in problem["possible_answers"]:
        ((name, parameters),) = entry.items()
        arguments = {}
        for key, values in parameters.items():
            given = [value for value in values if value != ""]
            may_go = "" in values and key not in required[name]
            if not given or (leave_out and may_go):
                continue
            arguments[key] = _fill_value(choose(given), choose)
        calls.append({"name": name, "arguments": arguments})
    return calls


def _fill_value(value: Any, choose: Any) -> Any:
    """Within a dictionary each key has a list of allowed values again."""
    if isinstance(value, dict):
        given = {key: [option for option in values if option != ""] for key, values in value.items()}
        return {key: _fill_value(choose(values), choose) for key, values in given.items() if values}
    if isinstance(value, list):
        return [_fill_value(entry, choose) for entry in value]
    return value


# --- wrong ---


def wrong_cases(problem: dict[str, Any]) -> Iterator[Case]:
    """The label with one fault, in each format."""
    draw = random.Random(problem["id"])
    if not problem["possible_answers"]:
        yield from _needless_calls(problem)
        return
    right = fill(problem, lambda values: values[0])
    for kind, calls in _wrong_calls(problem, right, draw):
        for name, write in FORMATS.items():
            yield Case(f"{kind}, {name}", problem, write(calls), False, calls)
    for kind, completion in _broken_texts(right):
        yield Case(kind, problem, completion, False, None)


def _needless_calls(problem: dict[str, Any]) -> Iterator[Case]:
    function = problem["functions"][0]
    properties = function["parameters"]["properties"]
    calls = [{"name": function["name"], "arguments": dict.fromkeys(properties, 1)}]
    for name, write in FORMATS.items():
        text = write(calls)
        yield Case(f"call where none is needed, {name}", problem, text, False, None)
        yield Case(f"broken call where none is needed, {name}", problem, text[: len(text) - 9], False, None)
        yield Case(
            f"unknown function where none is needed, {name}", problem, write([calls[0] | {"name": "f"}]), False, None
        )


def _wrong_calls(problem: Mapping[str, Any], right: Calls, draw: random.Random) -> Iterator[tuple[str, Calls]]:
    at = draw.randrange(len(right))
    ((name, allowed),) = problem["possible_answers"][at].items()
    function = next(entry for entry in problem["functions"] if entry["name"] == name)
    others = [entry["name"] for entry in problem["functions"] if entry["name"] != name]

    def changed(**changes: Any) -> Calls:
        return [*right[:at], right[at] | changes, *right[at + 1 :]]

    arguments = right[at]["arguments"]
    yield "wrong function", changed(name=draw.choice(others) if others else name + "_all")
    yield "name in other letters", changed(name=name.swapcase())
    yield "parameter too many", changed(arguments=arguments | {"parameter_too_many": 1})
    yield "call too many", [*right, right[at]]
    yield "call too few", [*right[:at], *right[at + 1 :]]
    for key in draw.sample(function["parameters"].get("required", []), k=1):
        yield "required one missing", changed(arguments={k: v for k, v in arguments.items() if k != key})
    key = draw.choice(sorted(arguments))
    yield "parameter renamed", changed(arguments={(f"{k}_" if k == key else k): v for k, v in arguments.items()})
    value = arguments[key]
    yield "wrong value", changed(arguments=arguments | {key: other_value(value, allowed[key])})
    yield "wrong type", changed(arguments=arguments | {key: value[0] if isinstance(value, list) and value else [value]})
    yield "object for a value", changed(arguments=arguments | {key: {"value": value}})
    swapped = copy.deepcopy(right)
    for index, entry in enumerate(problem["possible_answers"]):
        if _excludes(entry, right[at]):
            swapped[index] = right[at]
            yield "one call twice for another", swapped
            break


def other_value(value: Any, allowed: list[Any]) -> Any:
    """A value of the same type that is none of the allowed ones, by construction."""
    if isinstance(value, bool):
        return not value if (not value) not in [entry for entry in allowed if isinstance(entry, bool)] else None
    if isinstance(value, (int, float)):
        numbers = [entry for entry in allowed if isinstance(entry, (int, float))]
        return max(numbers) + 7
    if isinstance(value, str):
        return "q" * (1 + max(len(entry) for entry in allowed if isinstance(entry, str)))
    if isinstance(value, list):
        longest = max(len(entry) for entry in allowed if isinstance(entry, list))
        return value + [value[-1] if value else 1] * (longest + 1 - len(value))
    if isinstance(value, dict):
        return value | {"key_too_many": 1}
    return "nothing of the kind"


def _excludes(entry: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    """Whether a number in the call is none that the expected call allows, or the functions differ."""
    ((name, allowed),) = entry.items()
    if name != call["name"]:
        return True
    return any(
        isinstance(value, (int, float)) and value not in allowed[key] for key, value in call["arguments"].items()
    )


def _broken_texts(right: Calls) -> Iterator[tuple[str, str]]:
    glm, hermes, plain = as_glm(right), as_hermes(right), as_json(right)
    yield "unclosed tag, glm", glm.removesuffix("</tool_call>")
    yield "unclosed value, glm", glm[: glm.rindex("</arg_value>")] + "\n</tool_call>"
    yield "value without key, glm", glm.replace("<arg_key>", "", 1)
    yield "unopened tag, glm", glm.replace("<tool_call>", "", 1)
    yield "text after the call, glm", glm + "\nDone."
    yield "unclosed tag, hermes", hermes.removesuffix("</tool_call>")
    yield "broken JSON, hermes", hermes.replace("}\n</tool_call>", "\n</tool_call>", 1)
    yield "trailing comma, hermes", hermes.replace("}\n</tool_call>", ",}\n</tool_call>", 1)
    yield "unopened tag, hermes", hermes.replace("<tool_call>", "", 1)
    yield "text after the call, hermes", hermes + "\nDone."
    yield "unclosed thought, hermes", "<think>" + hermes
    yield "broken JSON, json", plain[: plain.rindex("}")] + plain[plain.rindex("}") + 1 :]
    yield "cut off, json", plain[: len(plain) // 2]
    yield "single quotes, json", str(right)
    yield "text after the call, json", plain + "\nDone."
    yield "no call, json", "I will not do that."
