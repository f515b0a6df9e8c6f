"""Tasks that make their own rows and tokenizer, for machines without a hub. Named in a config as ``task:NAME``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo.tasks import list_machine

PREFIX = "task:"


@dataclass(frozen=True, slots=True)
class Task:
    """What a task offers: rows from options and a seed, and a tokenizer that reads them."""

    rows: Callable[[Mapping[str, Any], int], list[dict[str, Any]]]
    tokenizer: Callable[[], PreTrainedTokenizerBase]


TASKS = {"list_machine": Task(rows=list_machine.rows, tokenizer=list_machine.tokenizer)}


def find(path: str) -> Task | None:
    """The task that `path` names; None for a file, a folder or a hub id. Raises ValueError where there is none."""
    if not path.startswith(PREFIX):
        return None
    name = path.removeprefix(PREFIX)
    if name not in TASKS:
        raise ValueError(f"{path}: there is no task {name!r}; the tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name]
