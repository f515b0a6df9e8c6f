"""Benchmarks in their published form: rows of GSM8K, MBPP, HumanEval, IFEval and BFCL, and what a problem is made of.

Owns, for each format, how one asks (the messages and the instruction that ends the last one), what is right, the
columns that the judge reads, and the judge. Knows no file but BFCL's second one, which holds the answers."""

import ast
import functools
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.types import Message
from rewards import RewardSpec, Status, Verifier, build_spec, read_jsonl_rows

Row = Mapping[str, Any]

MATHS_INSTRUCTION = "\nReason step by step, and put the final answer within \\boxed{}."
CODE_INSTRUCTION = "\nWrite the whole function in one ```python block."
CALL_INSTRUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{functions}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>

If none of the functions can help, say so and call none."""
# MBPP's own split of its one file, by task_id (Austin et al. 2021, section 2.1).
MBPP_SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
BFCL_ANSWERS = "possible_answer"
BFCL_WITHOUT_CALLS = "irrelevance"


@dataclass(frozen=True, slots=True)
class PublishedProblem:
    """What a row says: the messages, what to add to the last one, the answer where it is a text, the judge's columns.

    `solution` is the row's own, where it has one; a column of this name holds it, for the traces of a cold start."""

    messages: tuple[Message, ...]
    instruction: str = ""
    answer: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    solution: str | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """How the rows of a benchmark are read, and who judges."""

    problem: Callable[[Row], PublishedProblem]  # raises ValueError or KeyError for a row that is of another form
    judge: RewardSpec


def gsm8k_answer(row: Row) -> str:
    """What follows #### in the solution, as it is written there. Raises ValueError where nothing does."""
    _, marks, answer = str(row["answer"]).rpartition("####")
    if not marks or not answer.strip():
        raise ValueError(f"answer = {str(row['answer'])[-80:]!r}: ends in no #### and a number")
    return answer.strip()


def gsm8k(row: Row) -> PublishedProblem:
    """question and answer, a solution with the number behind ####. Its <<annotations>> and thousands' commas go."""
    solution, _, _ = str(row["answer"]).rpartition("####")
    return PublishedProblem(
        messages=_asked(row["question"]),
        instruction=MATHS_INSTRUCTION,
        answer=re.sub(r",(?=\d{3})", "", gsm8k_answer(row)),
        solution=re.sub(r"<<[^>]*>>", "", solution).strip(),
    )


def mbpp(row: Row) -> PublishedProblem:
    """text (prompt in the sanitized form), code, test_list, test_setup_code (or test_imports), and task_id.

    The tests are shown, as in the paper: they alone say what the function is called. Those of challenge_test_list are
    no part of the published score, and judge nothing."""
    asserts = [str(test) for test in _listed(row, "test_list")]
    setup = str(row.get("test_setup_code") or "\n".join(row.get("test_imports") or []))
    shown = "\n".join(asserts)
    return PublishedProblem(
        messages=_asked(row["text"] if row.get("text") else row["prompt"]),
        instruction=f"\nYour code should pass these tests:\n{shown}{CODE_INSTRUCTION}",
        columns={
            "tests": {
                "type": "assert",
                "entry_point": _called(row["code"], asserts),
                "asserts": asserts,
                "setup": setup,
            }
        },
        solution=row["code"],
    )


def humaneval(row: Row) -> PublishedProblem:
    """prompt, entry_point, test and canonical_solution.

    The test's function `check` and its call are one test; the prompt, whose helpers some tests use, is the setup."""
    entry_point = str(row["entry_point"])
    check = f"{row['test']}\ncheck({entry_point})"
    return PublishedProblem(
        messages=_asked(f"Complete this Python function:\n```python\n{str(row['prompt']).rstrip()}\n```"),
        instruction=CODE_INSTRUCTION,
        columns={
            "tests": {"type": "assert", "entry_point": entry_point, "asserts": [check], "setup": str(row["prompt"])}
        },
        solution=str(row["prompt"]) + str(row["canonical_solution"]),
    )


def ifeval(row: Row) -> PublishedProblem:
    """prompt, instruction_id_list and kwargs. The prompt says what is to be followed, so nothing is added to it."""
    return PublishedProblem(
        messages=_asked(row["prompt"]), columns={name: _listed(row, name) for name in ("instruction_id_list", "kwargs")}
    )


def bfcl(row: Row) -> PublishedProblem:
    """question (one turn), function, and ground_truth, which `with_bfcl_answers` adds from the file of answers.

    The functions are told in a system message, in the words of Qwen's chat template; `tool_call` reads other formats
    too."""
    turns = row["question"]
    if len(turns) != 1:
        raise ValueError(f"question has {len(turns)} turns; those of one turn can be judged by their calls alone")
    messages = [Message(role=turn["role"], content=turn["content"]) for turn in turns[0]]
    functions = "\n".join(json.dumps({"type": "function", "function": each}) for each in row["function"])
    told = CALL_INSTRUCTION.format(functions=functions)
    if messages[0].role == "system":
        told = f"{messages.pop(0).content}\n\n{told}"
    return PublishedProblem(
        messages=(Message(role="system", content=told), *messages),
        columns={"functions": row["function"], "possible_answers": row["ground_truth"]},
    )


FORMATS: Mapping[str, Format] = {
    "gsm8k": Format(gsm8k, RewardSpec("math_answer")),
    "mbpp": Format(mbpp, RewardSpec("code_tests")),
    "humaneval": Format(humaneval, RewardSpec("code_tests")),
    "ifeval": Format(ifeval, RewardSpec("instructions")),
    "bfcl": Format(bfcl, RewardSpec("tool_call")),
}


def fault_of(name: str, problem: PublishedProblem) -> str:
    """What keeps the format's judge from judging the row, in words; empty when nothing does.

    The judge is asked about an empty completion, which is wrong and costs nothing; a row that it cannot use is an
    error."""
    reward = _judge(name)("", {"answer": problem.answer, **problem.columns})
    return reward.detail if reward.status is Status.ERROR else ""


@functools.cache
def _judge(name: str) -> Verifier:
    return build_spec(FORMATS[name].judge)


def in_split(rows: Sequence[Row], split: str) -> list[tuple[int, Row]]:
    """MBPP's rows of a split (train, validation, test, prompt, or several with a plus between), with their numbers.

    Raises ValueError for another split, and for a row whose task_id is no whole number."""
    unknown = [name for name in split.split("+") if name not in MBPP_SPLITS]
    if unknown:
        raise ValueError(f"split = {split!r}: must be of {', '.join(MBPP_SPLITS)}, or several such as train+validation")
    wanted = [MBPP_SPLITS[name] for name in split.split("+")]
    numbered = list(enumerate(rows, start=1))
    for number, row in numbered:
        task = row.get("task_id")
        if not (isinstance(task, int) or (isinstance(task, str) and task.isdecimal())):
            have = f"task_id = {task!r}" if "task_id" in row else f"no column 'task_id'; it has {', '.join(row)}"
            raise ValueError(
                f"row {number}: {have}, and split = {split!r} goes by the number that mbpp's rows have there; give a "
                "file in its published form, or set format: rows"
            )
    return [(number, row) for number, row in numbered if any(int(row["task_id"]) in tasks for tasks in wanted)]


def with_bfcl_answers(rows: Sequence[Row], path: Path) -> list[Row]:
    """BFCL's rows with their ground_truth, read from the file of the same name in possible_answer/ beside `path`.

    Rows that have one keep it; those of the irrelevance files have none, for no call is right there. Raises ValueError
    where the file of answers, or a row's in it, is missing."""
    if all(row.get("ground_truth") is not None for row in rows):
        return list(rows)
    if BFCL_WITHOUT_CALLS in path.name:
        return [{**row, "ground_truth": []} for row in rows]
    beside = path.parent / BFCL_ANSWERS / path.name
    if not beside.is_file():
        raise ValueError(f"BFCL keeps the answers in a file of their own, and {beside} is not there; put it there")
    answers = {row["id"]: row["ground_truth"] for row in read_jsonl_rows(beside) if isinstance(row, dict)}
    missing = [row["id"] for row in rows if row["id"] not in answers]
    if missing:
        raise ValueError(
            f"{beside} has no answer for {missing[0]} ({len(missing)} such rows); take both of one version"
        )
    return [{**row, "ground_truth": answers[row["id"]]} for row in rows]


def _asked(text: Any) -> tuple[Message, ...]:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the question is {text!r}: must be a text")
    return (Message(role="user", content=text),)


def _listed(row: Row, name: str) -> Sequence[Any]:
    if not isinstance(row[name], Sequence) or isinstance(row[name], str) or not row[name]:
        raise ValueError(f"{name} = {str(row[name])[:80]}: must be a list of at least one")
    entries: Sequence[Any] = row[name]
    return entries


def _called(code: str, asserts: Sequence[str]) -> str:
    """The first of the solution's functions that the tests use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python only warns of
        used = {node.id for node in ast.walk(ast.parse("\n".join(asserts))) if isinstance(node, ast.Name)}
        functions = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    found = next((name for name in functions if name in used), None)
    if found is None:
        raise ValueError(f"test_list uses none of the functions of code ({', '.join(functions) or 'it has none'})")
    return found
