"""Rows become problems: read from JSON or through `datasets`, named by content, deduplicated, split without overlap."""

import difflib
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from grpo import published, tasks
from grpo.config import DataConfig, Source
from grpo.errors import ConfigError, DataError, HubError
from grpo.seeds import torch_seed
from grpo.types import Message, Problem
from rewards import BrokenLine, RewardSpec, read_jsonl_rows

JSON_FILES = (".jsonl", ".jsonl.gz", ".json")
FILE_FORMATS = (*JSON_FILES, ".parquet")
# Endings of files that are not read here: a path that has one is no hub id.
OTHER_FILES = (".csv", ".tsv", ".txt", ".arrow", ".xlsx", ".yaml", ".yml", ".gz", ".zip", ".zst")


@dataclass(frozen=True, slots=True)
class ProblemSets:
    """What is practised, what choices are made on, what is held out for the end, and what was left out on the way."""

    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    heldout: tuple[Problem, ...]
    dropped: Mapping[str, int]  # reason -> rows


def load_problem_sets(config: DataConfig, *, reward: RewardSpec, seed: int) -> ProblemSets:
    """Problems of the run: duplicates and empty answers dropped and counted, and no question in two of the sets.

    Raises DataError that names the field, the value and the remedy."""
    dropped: dict[str, int] = {}
    train = load_problems(config.train, field="data.train", reward=reward, seed=seed, dropped=dropped)
    train, validation = _split(train, config.validation_problems, field="data.validation_problems", seed=seed)
    if config.heldout is None:
        train, heldout = _split(train, config.heldout_problems, field="data.heldout_problems", seed=seed)
    else:
        heldout = load_problems(config.heldout, field="data.heldout", reward=reward, seed=seed, dropped=dropped)
        heldout = at_most(heldout, config.heldout_problems, seed=torch_seed(seed, "heldout"))
    # By question, not by id: the same question with another spelling of its answer must not be practised either.
    validation = without(validation, heldout)
    unseen = without(train, (*heldout, *validation))
    dropped["in the held-out or validation set"] = len(train) - len(unseen)
    if not unseen or not validation:
        raise DataError("data.train: its problems are in the held-out set as well; name another source for one of them")
    return ProblemSets(
        train=tuple(unseen),
        validation=tuple(validation),
        heldout=tuple(heldout),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def without(problems: Iterable[Problem], others: Iterable[Problem]) -> list[Problem]:
    """The problems whose questions are none of the others'."""
    asked = {problem.question for problem in others}
    return [problem for problem in problems if problem.question not in asked]


def trace_text(problem: Problem, template: str) -> str:
    """A row's trace, from `sft.completion` and its fields. Raises ConfigError for a field that it has not."""
    fields = {**problem.meta, "prompt": problem.prompt, "answer": problem.answer}
    try:
        return template.format_map(fields)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"sft.completion = {template!r}: cannot be filled ({type(error).__name__}: {error}); the rows have the "
            f"fields {', '.join(sorted(fields))} (a brace of the text itself is written twice)"
        ) from error


def load_problems(
    source: Source,
    *,
    field: str,
    reward: RewardSpec,
    seed: int,
    dropped: dict[str, int],
    key: Callable[[Problem], Hashable] = attrgetter("id"),
) -> list[Problem]:
    """Problems of one source; of those with the same `key` the first. `dropped` counts the rows left out, by reason.

    Raises DataError."""
    rows = load_rows(source, field=field, seed=seed)
    read = _problem if source.format == "rows" else _published_problem
    numbered = list(enumerate(rows, start=1)) if source.format == "rows" else _published_rows(rows, source, field=field)
    problems: dict[Hashable, Problem] = {}
    counts: Counter[str] = Counter()
    for number, row in numbered:
        problem = read(row, source, reward=reward, place=f"{field}, row {number}")
        if problem is None:
            counts["empty answer"] += 1
        elif key(problem) in problems:
            counts["duplicate"] += 1
        else:
            problems[key(problem)] = problem
    for reason, count in counts.items():
        dropped[reason] = dropped.get(reason, 0) + count
    if not problems:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in counts.items()) or "it has no rows"
        raise DataError(
            f"{field}.path = {source.path!r}: no problem is left ({reasons}); check the file and the columns"
        )
    if source.max_problems is None:
        return list(problems.values())
    return at_most(list(problems.values()), source.max_problems, seed=torch_seed(seed, field))


def load_rows(source: Source, *, field: str, seed: int) -> Sequence[Mapping[str, Any]]:
    """Raw rows of a source: a task, a .jsonl or .parquet file, a folder, or a hub id. Raises DataError."""
    try:
        task = tasks.find(source.path)
        if task is not None:
            return task.rows(source.options, torch_seed(seed, field))
    except ValueError as error:
        raise DataError(f"{field}: {error}") from error
    if source.options:
        raise DataError(f"{field}.options are for task:NAME sources; {source.path!r} is none: drop them")
    path = Path(source.path)
    kind = _kind(source.path, field=field)
    if _ending(path) in JSON_FILES and kind == "file":
        return _json_rows(path, place=f"{field}.path = {source.path!r}")
    # Imported here: datasets takes two seconds, and a run on a task's or a JSON file's rows never needs it.
    import datasets

    try:
        if kind == "file":
            read = datasets.load_dataset("parquet", data_files=str(path), split="train")
        elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            read = datasets.load_from_disk(str(path))
            read = read[source.split] if isinstance(read, datasets.DatasetDict) else read
        else:
            read = datasets.load_dataset(source.path, name=source.subset, split=source.split)
    except Exception as error:  # datasets has a family of its own for files, hubs and networks; all end the run by name
        remedies = {
            "file": "check that every line is whole",
            "folder": "check the path and the split",
            "hub id": f"check the path, the split and the network (there is no folder of this name in {Path.cwd()})",
        }
        raise (HubError if kind == "hub id" else DataError)(
            f"{field}.path = {source.path!r}: this {kind} could not be read ({_reason(error)}); {remedies[kind]}"
        ) from error
    return read


def to_dataset(columns: Mapping[str, list[Any]]) -> Any:
    """Columns as a `datasets.Dataset`, for the cold start's SFTTrainer."""
    import datasets

    return datasets.Dataset.from_dict(dict(columns))


def _kind(name: str, *, field: str) -> Literal["file", "folder", "hub id"]:
    """What a path names. Raises DataError for a file or folder that is not there or is of no form that is read."""
    path, place = Path(name), f"{field}.path = {name!r}"
    if _ending(path) in FILE_FORMATS and not path.is_dir():
        if not path.is_file():
            raise DataError(f"{place}: no such file (looked in {Path.cwd()}); check the path")
        if path.stat().st_size == 0:
            raise DataError(f"{place}: the file is empty; give one with rows")
        return "file"
    if path.is_dir():
        return "folder"
    if path.is_file() or path.suffix in OTHER_FILES:
        raise DataError(f"{place}: no file of this kind is read; convert it to one of {', '.join(FILE_FORMATS)}")
    if name.startswith((".", "/", "~")) or len(path.parts) > 2:
        raise DataError(f"{place}: no such folder (looked in {Path.cwd()}), and no hub id either; check the path")
    return "hub id"


def _ending(path: Path) -> str:
    return ".jsonl.gz" if path.name.endswith(".jsonl.gz") else path.suffix


def _json_rows(path: Path, *, place: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, or of one list, each with every column of the file, None where it has none.

    What is nested stays as it was written. (`datasets` keeps columns as Arrow does, which gives every mapping in a
    column the keys of all of them: a reward would be told of arguments that no row mentions.)"""
    try:
        rows = _json_list(path) if path.suffix == ".json" else None
        rows = list(read_jsonl_rows(path)) if rows is None else rows
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: this file could not be read ({error}); check that it is whole") from error
    for number, row in enumerate(rows, start=1):
        if isinstance(row, BrokenLine):
            raise DataError(f"{place}: this file could not be read ({row.detail}); check that every line is whole")
        if not isinstance(row, dict):
            raise DataError(f"{place}: entry {number} is a {type(row).__name__}; a row is a JSON object")
    columns = dict.fromkeys(name for row in rows for name in row)
    return [columns | row for row in rows]


def _json_list(path: Path) -> list[Any] | None:
    """The entries of a file that is one JSON list; None where it is lines."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return None
    rows = json.loads(text)
    assert isinstance(rows, list), "what begins with a bracket is a list"
    return rows


def _published_rows(
    rows: Sequence[Mapping[str, Any]], source: Source, *, field: str
) -> list[tuple[int, Mapping[str, Any]]]:
    """The rows of a benchmark with their numbers: MBPP's of its split, BFCL's with their answers. Raises DataError."""
    place = f"{field}.path = {source.path!r}"
    is_file = _kind(source.path, field=field) == "file"
    try:
        if source.format == "mbpp" and is_file:
            return published.in_split(rows, source.split)
        if source.format == "bfcl" and is_file:
            rows = published.with_bfcl_answers(rows, Path(source.path))
    except (KeyError, ValueError) as error:
        missing = (
            f"there is no column {error}, which format = {source.format!r} reads; give a file in its published form, "
            "or set format: rows"
        )
        raise DataError(f"{place}: {missing if isinstance(error, KeyError) else error}") from error
    return list(enumerate(rows, start=1))


def _published_problem(row: Mapping[str, Any], source: Source, *, reward: RewardSpec, place: str) -> Problem:
    """A benchmark's row, which its own judge can use. Raises DataError."""
    place = f"{place} of {source.path}"
    try:
        read = published.FORMATS[source.format].problem(row)
        fault = published.fault_of(source.format, read)
    except KeyError as error:
        raise DataError(
            f"{place}: there is no column {error}, which format = {source.format!r} reads; it has "
            f"{', '.join(map(str, row))}: give a file in its published form, or set format: rows"
        ) from error
    except (AttributeError, IndexError, SyntaxError, TypeError, ValueError) as error:
        raise DataError(f"{place}: no row of {source.format} ({error}); restore it, or leave it out") from error
    if fault:
        raise DataError(f"{place}: {source.format}'s judge cannot use it ({fault}); restore it, or leave it out")
    meta = {name: value for name, value in row.items() if name != "answer"} | dict(read.columns)
    if read.solution is not None:
        meta["solution"] = read.solution
    source = source.model_copy(update={"prompt_suffix": read.instruction + source.prompt_suffix})
    messages = _with_suffix(list(read.messages), source.prompt_suffix, place=place)
    identity = (
        json.dumps(read.columns, sort_keys=True, ensure_ascii=False, default=str) if read.columns else read.answer
    )
    return _named(messages, read.answer, source=source, reward=reward, meta=meta, identity=identity)


def _problem(row: Mapping[str, Any], source: Source, *, reward: RewardSpec, place: str) -> Problem | None:
    messages = messages_of(row, source, place=place)
    if source.answer_column is None:
        # The reward reads other columns: rows with the same prompt are two problems where these differ.
        others = json.dumps(dict(row), sort_keys=True, ensure_ascii=False, default=str)
        return _named(messages, "", source=source, reward=reward, meta=dict(row), identity=others)
    if source.answer_column not in row:
        raise DataError(_no_column(place, "answer_column", source.answer_column, row))
    text = _answer_text(row[source.answer_column], place=place, column=source.answer_column)
    if not text.strip():
        return None
    meta = {name: value for name, value in row.items() if name != source.answer_column}
    if source.answer_pattern is None and not isinstance(row[source.answer_column], str):
        meta["answer"] = row[source.answer_column]  # as it stands: to a verifier a list is not its text
    if source.answer_pattern is not None:
        match = re.search(source.answer_pattern, text, flags=re.DOTALL)
        if match is None:
            raise DataError(
                f"{place}: answer_pattern = {source.answer_pattern!r} finds nothing in {text[:200]!r}; change the "
                "pattern or drop the row"
            )
        groups = {name: value or "" for name, value in match.groupdict().items()}
        if source.drop_pattern is not None:
            groups = {name: re.sub(source.drop_pattern, "", value) for name, value in groups.items()}
        text = groups.pop("answer")
        meta |= groups
    text = text.strip()
    if not text:
        return None
    return _named(messages, text, source=source, reward=reward, meta=meta, identity=text)


def _named(
    messages: tuple[Message, ...],
    answer: str,
    *,
    source: Source,
    reward: RewardSpec,
    meta: dict[str, Any],
    identity: str,
) -> Problem:
    """The problem, whose id is made of its messages and `identity`."""
    content = json.dumps([[m.role, m.content] for m in messages] + [identity], ensure_ascii=False)
    name = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Problem(
        id=name, messages=messages, answer=answer, reward=reward, meta=meta, prompt_suffix=source.prompt_suffix
    )


def _answer_text(answer: Any, *, place: str, column: str) -> str:
    """A text as it stands, nothing as an empty text, and anything else as JSON writes it."""
    if answer is None or isinstance(answer, str):
        return answer or ""
    try:
        return json.dumps(answer, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{place}: {column} = {answer!r}: an answer must be a text, a number or a list of them; write dates and "
            "the like as texts"
        ) from error


def messages_of(row: Mapping[str, Any], source: Source, *, place: str) -> tuple[Message, ...]:
    """A row's prompt as turns. Raises DataError, which begins with `place`."""
    if source.messages_column is None:
        if source.prompt_column not in row:
            raise DataError(_no_column(place, "prompt_column", source.prompt_column, row))
        turns: Any = [{"role": "user", "content": row[source.prompt_column]}]
    else:
        if source.messages_column not in row:
            raise DataError(_no_column(place, "messages_column", source.messages_column, row))
        turns = row[source.messages_column]
    try:
        messages = [Message(role=turn["role"], content=turn["content"]) for turn in turns]
    except (TypeError, KeyError) as error:
        raise DataError(f"{place}: messages must be a list of {{role, content}}; got {turns!r}") from error
    if not messages or not all(isinstance(message.content, str) for message in messages):
        raise DataError(f"{place}: a prompt must be a text; got {turns!r}")
    if not all(isinstance(message.role, str) and message.role for message in messages):
        raise DataError(f"{place}: every message needs a role, such as user; got {turns!r}")
    return _with_suffix(messages, source.prompt_suffix, place=place)


def _with_suffix(messages: list[Message], suffix: str, *, place: str) -> tuple[Message, ...]:
    """The messages with `suffix` at the end of the last user message. Raises DataError where there is none."""
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    if suffix and not users:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        raise DataError(
            f"{place}: prompt_suffix = {suffix!r} goes to the last user message, and there is none in {turns!r}; drop "
            "it or give the row a message of the role user"
        )
    if suffix:
        asked = messages[users[-1]]
        messages[users[-1]] = Message(role=asked.role, content=asked.content + suffix)
    return tuple(messages)


def _split(problems: Sequence[Problem], number: int, *, field: str, seed: int) -> tuple[list[Problem], list[Problem]]:
    """The problems but for `number` of them, and those."""
    if len(problems) <= number:
        raise DataError(
            f"{field} = {number}, but data.train has {len(problems)} problems left to take them from, so none would be "
            "left to practise; lower it or add problems"
        )
    chosen = set(random.Random(torch_seed(seed, field)).sample(range(len(problems)), number))
    rest = [problem for index, problem in enumerate(problems) if index not in chosen]
    return rest, [problem for index, problem in enumerate(problems) if index in chosen]


def _reason(error: BaseException) -> str:
    """What was raised, and what was behind it: datasets often says no more than that it failed."""
    first = last = error
    while last.__cause__ is not None:
        last = last.__cause__
    return " from ".join(dict.fromkeys(f"{type(e).__name__}: {e}" for e in (first, last)))


def _no_column(place: str, field: str, column: str, row: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(column, list(row), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; set {field} to one of {', '.join(map(repr, row))}"
    return f"{place}: there is no column {column!r} ({field}){hint}"


def at_most(problems: Iterable[Problem], limit: int, *, seed: int) -> list[Problem]:
    """`limit` of the problems, chosen by the seed, in their order; all of them where there are fewer."""
    every = list(problems)
    if len(every) <= limit:
        return every
    chosen = sorted(random.Random(seed).sample(range(len(every)), limit))
    return [every[index] for index in chosen]
