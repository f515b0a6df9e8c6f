"""The rubric of the reward `judge`: a template with placeholders, filled in one pass. Knows no network.

What is filled in is never looked at again, so braces in a completion stay braces; a brace that holds no bare name
(`{"score": 1}`) is text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from rewards.options import nearest

COMPLETION_NAMES = ("completion", "answer")
PROMPT_NAMES = ("prompt", "question")
FENCE_CHARACTERS = 16

_NAME = r"(?:row\.)?[A-Za-z_][A-Za-z0-9_]*"
_PLACEHOLDER = re.compile(rf"\{{\{{(?P<literal>{_NAME})\}}\}}|\{{(?P<name>{_NAME})\}}")


class RowError(ValueError):
    """A row of data lacks what the rubric asks for."""


class Rubric:
    """A template that knows its placeholders.

    `{completion}` or `{answer}` is the completion, `{prompt}` or `{question}` is problem["prompt"], `{fence}` is a mark
    that the completion cannot hold (it is the completion's own hash), `{row.NAME}` is the column NAME of the row, and
    so is `{NAME}` where `columns` lists it. `{{NAME}}` stands for the text `{NAME}`. Raises ValueError for any other
    name, for a rubric that leaves the completion out, and for one that holds both {completion} and {answer}."""

    def __init__(self, template: str, *, columns: tuple[str, ...] = ()) -> None:
        self._template = template
        reserved = (*COMPLETION_NAMES, *PROMPT_NAMES, "fence")
        taken = [column for column in columns if column in reserved]
        if taken:
            raise ValueError(f"columns = {list(columns)}: {taken} mean something else; write {{row.{taken[0]}}}")
        names = [match["name"] for match in _PLACEHOLDER.finditer(template) if match["name"]]
        for name in names:
            if not name.startswith("row.") and name not in reserved and name not in columns:
                raise ValueError(
                    f"rubric: {{{name}}} is not a placeholder{nearest(name, [*reserved, *columns])} (placeholders: "
                    f"{', '.join(reserved)}; a column of the row is {{row.{name}}}, or is listed in columns; "
                    f"{{{{{name}}}}} is the text itself)"
                )
        if not set(names) & set(COMPLETION_NAMES):
            raise ValueError("rubric: the completion is not in it; put {completion} where it belongs")
        if set(COMPLETION_NAMES) <= set(names):
            raise ValueError(
                "rubric: {answer} is another name for {completion} and both are in it; the row's own answer is "
                "{row.answer}"
            )

    def fill(self, completion: str, problem: Mapping[str, Any]) -> str:
        """The text for the judge. Raises RowError when the row lacks a column, or has null there."""

        def replace(match: re.Match[str]) -> str:
            name = match["name"]
            if name is None:
                return f"{{{match['literal']}}}"
            if name in COMPLETION_NAMES:
                return completion
            if name == "fence":
                return fence(completion)
            return _column(problem, "prompt" if name in PROMPT_NAMES else name.removeprefix("row."))

        return _PLACEHOLDER.sub(replace, self._template)


def fence(completion: str) -> str:
    """A mark to put around a completion: its hash, which no completion can be written to contain."""
    return hashlib.sha256(completion.encode("utf-8", "surrogatepass")).hexdigest()[:FENCE_CHARACTERS]


def _column(problem: Mapping[str, Any], name: str) -> str:
    value = problem.get(name)
    if value is None:
        raise RowError(
            f"the rubric wants problem[{name!r}], which is {'null' if name in problem else 'missing'}; its keys are "
            f"{sorted(map(str, problem))}"
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
