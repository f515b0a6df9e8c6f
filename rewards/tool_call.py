"""The reward for function calls by abstract syntax: 1 when the format and every field are right.

Source: the step-wise function calling reward of GLM-4.5 (arXiv 2508.06471), with the labels and the comparison of
values of the Berkeley Function Calling Leaderboard (BFCL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rewards.calls.expected import read_expected
from rewards.calls.matching import SAME_TEXT, fault_of_calls
from rewards.calls.schema import BrokenRowError, Function, decoded, read_functions
from rewards.calls.strict_json import MalformedError
from rewards.calls.written import Call, read_calls, read_listed_calls
from rewards.types import Reward, Verifier


@dataclass(frozen=True)
class ToolCallOptions:
    """The format of the calls, how strings are compared, the thought's tag, and the keys of the row.

    `calls_key` names a key that may hold the completion's calls as data; "" looks for none."""

    format: Literal["any", "glm", "hermes", "json"] = "any"
    strings: Literal["normalized", "exact"] = "normalized"
    think_tag: str = "think"
    functions_key: str = "functions"
    answers_key: str = "possible_answers"
    calls_key: str = "calls"

    def __post_init__(self) -> None:
        for name in ("think_tag", "functions_key", "answers_key"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: must be a name, such as {getattr(ToolCallOptions, name)}")


def build_tool_call(options: ToolCallOptions) -> Verifier:
    """The verifier: 1.0 when the completion's calls are the expected ones, each once, in any order; else 0.0.

    Expected calls are those of problem[answers_key]; where that is empty, a completion without any call is right. What
    begins a call and cannot be read is 0.0, and so is a completion that has not finished (problem["finished"], taken
    for True where it is missing). Where problem[calls_key] is a list, it is judged instead of the text."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        try:
            functions = read_functions(
                _column(problem, options.functions_key, "functions_key"), key=options.functions_key
            )
            answers = _column(problem, options.answers_key, "answers_key")
            expected = read_expected(answers, functions, key=options.answers_key)
            listed = _listed_calls(problem, options.calls_key)
        except BrokenRowError as error:
            return Reward.error(str(error))
        try:
            calls = _calls(completion, listed, options, functions)
        except MalformedError as error:
            return _scored(format=False, names=False, detail=str(error))
        names = sorted(call.name for call in calls) == sorted(wanted.function.name for wanted in expected)
        if not problem.get("finished", True):
            return _scored(format=False, names=names, detail="not finished")
        fault = fault_of_calls(calls, expected, same_text=SAME_TEXT[options.strings])
        return _scored(format=True, names=names, correct=not fault, detail=fault or f"{len(calls)} calls, as expected")

    return verifier


def _column(problem: Mapping[str, Any], key: str, option: str) -> Any:
    if key not in problem:
        raise BrokenRowError(f"problem has no {key!r}; its keys are {sorted(map(str, problem))} (option {option})")
    return problem[key]


def _listed_calls(problem: Mapping[str, Any], key: str) -> list[Any] | None:
    """The calls that came as data; None when the completion's text is to be read."""
    if not key or problem.get(key) is None:
        return None
    listed = decoded(problem[key], key=key)
    if not isinstance(listed, (list, tuple)):
        raise BrokenRowError(f"problem[{key!r}] = {str(listed)[:100]}: must be a list of calls (option calls_key)")
    return list(listed)


def _calls(
    completion: str, listed: list[Any] | None, options: ToolCallOptions, functions: Mapping[str, Function]
) -> tuple[Call, ...]:
    if listed is not None:
        return read_listed_calls(listed)
    return read_calls(completion, format=options.format, think_tag=options.think_tag, names=functions)


def _scored(*, format: bool, names: bool, correct: bool = False, detail: str) -> Reward:
    return Reward.scored(
        float(correct),
        parts={"format": float(format), "names": float(names), "correct": float(correct)},
        detail=detail,
    )
