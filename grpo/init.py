"""`grpo init`: a commented config for a model, rows and a reward, looked at and checked before it is written.

Every comment is the field's own sentence from `grpo.config`, so that the file says what docs/config.md says."""

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml
from pydantic import BaseModel

from grpo.columns import Reading, read_columns
from grpo.config import RunConfig, Source, load, sections_of, write_schema
from grpo.data import load_problems
from grpo.errors import ConfigError, DataError
from grpo.folder import named_disk_errors
from grpo.scoring import named_reward
from grpo.types import Problem
from rewards import Pool, RewardSpec, Status, longest_seconds

WIDTH = 100
PROMPT_STEP_TOKENS = 256
"""data.max_prompt_tokens is the longest prompt, rounded up to a multiple of this."""
CHARACTERS_A_TOKEN = 3
"""Where no tokenizer can be read: English text has about four."""
MOST_HELDOUT, MOST_VALIDATION = 256, 128
LINE_ENDS = {"\x85": "\\x85", "\u2028": "\\u2028", "\u2029": "\\u2029", "\ufeff": "\\ufeff"}
"""What ends a line to YAML and not to JSON, as both escape it."""
JUDGED = 16
"""Problems that the reward is asked about, before anything is written."""
ASK_SERVERS = ("judge", "compose")
SECONDS_ABOVE = 3.0
"""A pool's limit above what a reward that keeps its own may take."""

Ask = Callable[[str, str], str]
"""A question and what is taken where the answer is empty: the answer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says; None is asked for in a terminal, or found out."""

    output: Path | None
    model: str | None
    data: str | None
    reward: str | None
    options: str | None = None  # of the reward, as JSON
    heldout: str | None = None
    subset: str | None = None
    split: str | None = None
    heldout_split: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    name: str | None = None
    lora: bool = False


def init(wanted: Wanted, *, ask: Ask | None, say: Callable[[str], None]) -> Path:
    """Look at the rows and the model, write the config, and return its path. `ask` is None where nobody can answer.

    Nothing is written unless the config loads and `grpo check` takes it. Raises ConfigError for what is missing on the
    command line, for a file that is there already and as `grpo check`; DataError for rows."""
    output = Path(_asked(ask, "--output", "config to write", str(wanted.output or ""), ""))
    if output.exists():
        raise ConfigError(f"{output}: is there already, and is not written over; name another file, or move it")
    if output.suffix not in (".yaml", ".yml") or not output.parent.is_dir():
        raise ConfigError(f"{output}: must be a .yaml file in a folder that is there")
    data = _asked(ask, "--data", "rows to practise (hub id, folder, .jsonl, .parquet)", wanted.data, "")
    model = _asked(ask, "--model", "model (hub id or folder)", wanted.model, "Qwen/Qwen3-0.6B")
    source = Source(path=data, subset=wanted.subset, split=wanted.split or "train")
    reading = read_columns(source, prompt_column=wanted.prompt_column, answer_column=wanted.answer_column)
    for note in reading.notes:
        say(note)
    reward = named_reward(_reward(ask, wanted.reward, reading), wanted.options or "{}")
    heldout = _heldout(wanted, reading, say)
    fields = _fields(wanted, output=output, model=model, reading=reading, reward=reward, heldout=heldout, say=say)
    text = render(fields, start=f"grpo recipe {output}")
    _check(text, say)
    with named_disk_errors(output, then="and begin again"):
        write_schema(output.parent)
        output.write_text(text, encoding="utf-8")
    return output


def render(fields: Mapping[str, Any], *, start: str) -> str:
    """The sections as YAML, each field below its own sentence; `start` is the command that runs it."""
    lines = [
        "# yaml-language-server: $schema=grpo.schema.json",
        "# Written by `grpo init`. Fields that are not here have the defaults of docs/config.md.",
        f"# Look at what follows from it: {start.replace('recipe', 'check')}",
        f"# Start it: {start}",
    ]
    for name, section in sections_of(RunConfig).items():
        if name in fields:
            lines += ["", *_comment(section.__doc__ or "", indent=""), f"{name}:", *_section(section, fields[name])]
    return "\n".join(lines) + "\n"


def _section(section: type[BaseModel], fields: Mapping[str, Any], *, depth: int = 1) -> Iterator[str]:
    indent, inner = "  " * depth, sections_of(section)
    for name, value in fields.items():
        yield from _comment(section.model_fields[name].description or "", indent=indent)
        if name in inner and isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from _section(inner[name], value, depth=depth + 1)
        else:
            yield f"{indent}{name}: {_value(value)}"


def _comment(text: str, *, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(" ".join(text.split()), width=WIDTH)]


def _value(value: Any) -> str:
    """JSON, which YAML reads as it is; a plain word goes without its quotes."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./~][\w./:-]*", value) and not value.endswith(":")
    if is_plain and yaml.safe_load(value) == value:
        return str(value)
    return "".join(LINE_ENDS.get(c, c) for c in json.dumps(value, ensure_ascii=False))


def _asked(ask: Ask | None, flag: str, question: str, given: str | None, default: str) -> str:
    answer = given or (ask(question, default) if ask is not None else "")
    if not answer:
        what = "the config to write, such as my_run.yaml" if flag == "--output" else f"{flag} ({question})"
        raise ConfigError(f"grpo init needs {what}; nobody is at a terminal to be asked" if ask is None else what)
    return answer


def _reward(ask: Ask | None, given: str | None, reading: Reading) -> str:
    if given is None and ask is not None:
        given = ask("reward (a name of docs/rewards.md, or FILE.py:FUNCTION)", reading.reward)
    chosen = given or reading.reward
    if not chosen:
        raise ConfigError(
            "no reward is known for these columns; name one with --reward: a name of docs/rewards.md, or "
            "FILE.py:FUNCTION, a file of yours"
        )
    return chosen


def _heldout(wanted: Wanted, reading: Reading, say: Callable[[str], None]) -> Source | None:
    """Rows for the final evaluation: those that are named, the test split beside, or None: some of the rows."""
    source, path = reading.source, Path(reading.source.path)
    beside = path.with_name(path.name.replace("train", "test"))
    if wanted.heldout is not None or wanted.heldout_split is not None:
        named = wanted.heldout or source.path
        # Of a file there is one split, whatever it is called.
        split = wanted.heldout_split or (source.split if Path(named).is_file() else "test")
        return source.model_copy(update={"path": named, "split": split})
    if source.format == "mbpp" and source.split == "train+validation":
        say("held out: the split test of the same file")
        return source.model_copy(update={"split": "test"})
    if path.is_file() and beside != path and beside.is_file():
        say(f"held out: {beside}, which lies beside")
        return source.model_copy(update={"path": str(beside)})
    return None


def _fields(
    wanted: Wanted,
    *,
    output: Path,
    model: str,
    reading: Reading,
    reward: RewardSpec,
    heldout: Source | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The sections and their fields, those that a newcomer will want to see and change."""
    problems = load_problems(reading.source, field="data.train", reward=reward, seed=0, dropped={})
    num_validation = max(2, min(MOST_VALIDATION, len(problems) // 10))
    num_heldout = max(1, min(MOST_HELDOUT, len(problems) // 5)) if heldout is None else MOST_HELDOUT
    others = load_problems(heldout, field="data.heldout", reward=reward, seed=0, dropped={}) if heldout else []
    num_practised = len(problems) - num_validation - (num_heldout if heldout is None else 0)
    if num_practised < 1:
        raise DataError(
            f"data.train.path = {reading.source.path!r}: {len(problems)} problems are too few to practise, to decide "
            "on and to hold out; name more rows"
        )
    _check_reward(reward, problems, say)
    style, prompt_tokens = _prompts(model, [*problems, *others], say)
    data: dict[str, Any] = {"train": _given(reading.source)} | ({"heldout": _given(heldout)} if heldout else {})
    data |= {"heldout_problems": num_heldout, "validation_problems": num_validation, "max_prompt_tokens": prompt_tokens}
    fields: dict[str, Any] = {
        "run": {"name": wanted.name or re.sub(r"[^A-Za-z0-9._-]+", "_", output.stem).strip("._-") or "run", "seed": 0},
        "model": {"path": model, "dtype": "bfloat16", "activation_checkpointing": True},
        "chat": {"style": style},
        "data": data,
        "sampling": {"max_completion_tokens": 1024, "max_rows": 64},
        "reward": _reward_fields(reward),
        "temperature": {"kind": "constant", "value": 1.0},
        "curriculum": {"kind": "online"},
        "train": {
            "steps": 200,
            "problems_per_step": min(32, num_practised),
            "group_size": 16,
            "tokens_per_micro_batch": 16384,
        },
        "optim": {"learning_rate": 1e-5 if wanted.lora else 1e-6, "warmup_steps": 10},
        "evaluation": {
            "rollouts_per_problem": 8,
            "k": [1, 8],
            "every_steps": 20,
            "validation_rollouts": 4,
            "checkpoints": ["start", "last"],
        },
        "checkpoint": {"every_steps": 10, "keep_last": 2},
        "tracking": {"wandb": "off"},
    }
    if wanted.lora:
        fields["model"]["lora"] = {"rank": 16, "alpha": 32.0}
    return fields


def _given(source: Source) -> dict[str, Any]:
    """The fields of a source that are not their defaults, and the columns."""
    named = ("prompt_column", "answer_column") if source.format == "rows" and source.messages_column is None else ()
    is_task = source.path.startswith("task:")
    return {
        name: value
        for name, value in source.model_dump().items()
        if value != type(source).model_fields[name].default or (name in named and not is_task)
    }


def _reward_fields(reward: RewardSpec) -> dict[str, Any]:
    named = {"name": reward.name} if reward.name else {"file": reward.file, "function": reward.function}
    fields: dict[str, Any] = named | ({"options": reward.options} if reward.options else {})
    own = longest_seconds(reward)
    return fields | ({"timeout_seconds": math.ceil(own + SECONDS_ABOVE)} if own else {})


def _check_reward(reward: RewardSpec, problems: Sequence[Problem], say: Callable[[str], None]) -> None:
    """Ask the reward about an empty completion of some problems, which is wrong and costs nothing.

    Raises ConfigError where it can judge none of them. One that asks a server, or holds one that does, is not asked."""
    if reward.name in ASK_SERVERS:
        return
    asked = problems[:JUDGED]
    with Pool(workers=1, timeout_seconds=longest_seconds(reward) + SECONDS_ABOVE) as pool:
        verdicts = pool.score_all(
            [(reward, "", problem.for_verifier(finished=True, num_tokens=0)) for problem in asked]
        )
    lost = [verdict for verdict in verdicts if verdict.status in (Status.ERROR, Status.TIMEOUT)]
    if lost:
        fault = (
            f"{reward.title} cannot judge {len(lost)} of {len(asked)} problems (an empty completion was asked about): "
            f"{lost[0].detail}"
        )
        if len(lost) == len(asked):
            raise ConfigError(f"{fault}; name another reward with --reward, or the columns that it reads")
        say(fault)


def _prompts(model: str, problems: Sequence[Problem], say: Callable[[str], None]) -> tuple[str, int]:
    """chat.style and data.max_prompt_tokens, by the model's own tokenizer where it can be read."""
    # Imported here: torch takes seconds, and a wrong path should not cost them.
    from grpo.chat import Chat
    from grpo.config import ChatConfig, ModelConfig
    from grpo.model import load_tokenizer

    try:
        tokenizer = load_tokenizer(ModelConfig(path=model))
    except ConfigError as error:
        longest = max(len(problem.prompt) for problem in problems) // CHARACTERS_A_TOKEN
        say(" ".join(str(error).split())[:160])
        say(f"so its chat template is taken for granted, and the longest prompt for {longest:,} tokens")
        return "template", _rounded(longest)
    style = "template" if tokenizer.chat_template else "plain"
    chat = Chat(tokenizer, ChatConfig.model_validate({"style": style}), end_token_ids=())
    longest = max(len(chat.prompt_ids(problem)) for problem in problems)
    say(f"chat: {'the template of the tokenizer' if style == 'template' else 'plain text, since it has no template'}")
    say(f"the longest of {len(problems):,} prompts has {longest:,} tokens")
    return style, _rounded(longest)


def _rounded(tokens: int) -> int:
    return PROMPT_STEP_TOKENS * max(1, math.ceil(tokens / PROMPT_STEP_TOKENS))


def _check(text: str, say: Callable[[str], None]) -> None:
    """What `grpo check` does with the file; raises what it raises."""
    from grpo.check import derived

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        found = derived(load(path))
    for name, value in found.items():
        if isinstance(value, int) and name.startswith(("parameters", "problems", "rollouts a step", "rows dropped")):
            say(f"{name}: {value:,}")
