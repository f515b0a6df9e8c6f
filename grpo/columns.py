"""What the rows of a file are for: a benchmark in its published form, or columns with a prompt and an answer, and a
reward that can judge them. `grpo init` asks; nothing here decides for a run.

A guess rests on the rows themselves: a format is one whose reader takes every row, and maths is what the maths reward
says of the rows' own answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from grpo import tasks
from grpo.config import Source
from grpo.data import load_problems, load_rows
from grpo.errors import DataError, HubError
from grpo.published import FORMATS, MATHS_INSTRUCTION
from rewards import build

LOOKED_AT = 200
"""Rows whose columns are looked at, from the first."""
PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input", "text")
ANSWERS = ("answer", "final_answer", "expected_answer", "gold", "target", "label", "answerKey", "solution", "output")
CONVERSATIONS = ("messages", "prompt", "conversations", "conversation")
# Columns that a published format has and no other rows are likely to have; its reader has the last word.
SIGNS: Mapping[str, frozenset[str]] = {
    "ifeval": frozenset({"prompt", "instruction_id_list", "kwargs"}),
    "humaneval": frozenset({"prompt", "entry_point", "canonical_solution", "test"}),
    "mbpp": frozenset({"task_id", "code", "test_list"}),
    "bfcl": frozenset({"question", "function"}),
    "gsm8k": frozenset({"question", "answer"}),
}
# Columns that a reward reads instead of an answer, or beside it.
JUDGES: Mapping[str, frozenset[str]] = {
    "code_tests": frozenset({"tests"}),
    "instructions": frozenset({"instruction_id_list", "kwargs"}),
    "tool_call": frozenset({"functions", "possible_answers"}),
    "generated": frozenset({"question", "answer", "metadata"}),
    "multiple_choice": frozenset({"choices"}),
}
WITHOUT_ANSWER = ("code_tests", "instructions", "tool_call")
BEHIND_MARKS = r"(?P<solution>.*)####\s*(?P<answer>.+)"
MOSTLY = 0.9
"""Share of the rows' own answers that the maths reward has to take for right."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows are to be read, the name of a reward that judges them (empty: none is known), and why."""

    source: Source
    reward: str
    notes: tuple[str, ...]


def read_columns(source: Source, *, prompt_column: str | None = None, answer_column: str | None = None) -> Reading:
    """The reading of the rows that `source` names by path, subset, split and format; a column that is named is taken.

    Raises DataError where the rows cannot be read, or no column is a prompt."""
    task = tasks.find(source.path)
    if task is not None:
        name = source.path.removeprefix("task:")
        return Reading(source, reward=name, notes=(f"{source.path} makes its own rows and has a reward of its name",))
    rows = [dict(row) for row in islice(load_rows(source, field="data.train", seed=0), LOOKED_AT)]
    if not rows:
        raise DataError(f"data.train.path = {source.path!r}: it has no rows; check the file and the split")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    said = f"{source.path}: columns {', '.join(columns)}"
    if prompt_column is None and answer_column is None:
        found = source.format if source.format != "rows" else _format(source, columns)
        if found is not None:
            judge = FORMATS[found].judge.name
            return Reading(_of_format(source, found), reward=judge, notes=(said, f"rows of {found}, judged by {judge}"))
    return _of_columns(source, rows, columns, said, prompt_column=prompt_column, answer_column=answer_column)


def _format(source: Source, columns: Sequence[str]) -> str | None:
    """The published format whose reader takes the rows."""
    for name, signs in SIGNS.items():
        if not signs <= set(columns):
            continue
        try:
            load_problems(_of_format(source, name), field="data.train", reward=FORMATS[name].judge, seed=0, dropped={})
        except HubError:
            raise
        except DataError:
            continue
        return name
    return None


def _of_format(source: Source, name: str) -> Source:
    """MBPP's one file holds all of its splits, of which two are to practise."""
    in_one_file = name == "mbpp" and Path(source.path).is_file() and source.split == "train"
    return source.model_copy(update={"format": name} | ({"split": "train+validation"} if in_one_file else {}))


def _of_columns(
    source: Source,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    said: str,
    *,
    prompt_column: str | None,
    answer_column: str | None,
) -> Reading:
    fields, what = _prompt(rows, columns, prompt_column, path=source.path)
    judge = next((name for name, read in JUDGES.items() if read <= set(columns)), "")
    notes = [said, what]
    if judge in WITHOUT_ANSWER and answer_column is None:
        fields["answer_column"] = None
        notes.append(f"no answer column: {judge} reads {', '.join(sorted(JUDGES[judge]))}")
        return Reading(source.model_copy(update=fields), reward=judge, notes=tuple(notes))
    prompt = fields.get("prompt_column", fields.get("messages_column"))
    answer = _named("--answer-column", answer_column, columns, path=source.path) or next(
        (name for name in ANSWERS if name in columns and name != prompt), None
    )
    fields["answer_column"] = answer
    if answer is None:
        notes.append("no answer column was found: name one with --answer-column, or a reward that reads other columns")
        return Reading(source.model_copy(update=fields), reward=judge, notes=tuple(notes))
    notes.append(f"answer: the column {answer}")
    texts = [str(row[answer]) for row in rows if row.get(answer) not in (None, "")]
    if texts and all("####" in text for text in texts):
        fields["answer_pattern"] = BEHIND_MARKS
        notes.append("every answer is a solution that ends in #### and the answer itself")
        texts = [text.rpartition("####")[2].strip() for text in texts]
    if not judge and texts:
        right = _right_maths(texts)
        if right >= MOSTLY * len(texts):
            judge, fields["prompt_suffix"] = "math_answer", MATHS_INSTRUCTION
            notes.append(f"math_answer takes {right} of {len(texts)} of the rows' own answers for right")
    return Reading(source.model_copy(update=fields), reward=judge, notes=tuple(notes))


def _prompt(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], named: str | None, *, path: str
) -> tuple[dict[str, Any], str]:
    """The fields of a source that say where the prompt is, and the same in words."""
    named = _named("--prompt-column", named, columns, path=path)
    for name in [named] if named else [*CONVERSATIONS, *PROMPTS]:
        if name in columns and all(_is_conversation(row[name]) for row in rows):
            return {"messages_column": name}, f"prompt: the messages in the column {name}"
    for name in [named] if named else PROMPTS:
        if name in columns and all(isinstance(row[name], str) for row in rows):
            return {"prompt_column": name}, f"prompt: the column {name}"
    if named is not None:
        raise DataError(
            f"--prompt-column = {named!r}: holds neither texts nor lists of {{role, content}}, as in "
            f"{str(rows[0][named])[:80]!r}; name another of {', '.join(columns)}"
        )
    raise DataError(
        f"data.train.path = {path!r}: none of its columns ({', '.join(columns)}) is known for a prompt; name it with "
        "--prompt-column"
    )


def _named(flag: str, column: str | None, columns: Sequence[str], *, path: str) -> str | None:
    if column is not None and column not in columns:
        raise DataError(f"{flag} = {column!r}: {path} has no such column; it has {', '.join(columns)}")
    return column


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in value)
    )


def _right_maths(answers: Sequence[str]) -> int:
    """Answers that hold a digit or a command of LaTeX, and that the maths reward takes for right.

    It takes words that are the same for right as well, which does not make them maths."""
    verifier = build("math_answer", {})
    maths = [text for text in answers if any(character.isdigit() or character == "\\" for character in text)]
    return sum(verifier(f"\\boxed{{{text}}}", {"answer": text}).value == 1.0 for text in maths)
