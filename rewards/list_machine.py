"""The list machine: its interpreter and its reward.

A prompt is a program of one to nine one-letter operations and a list of five digits (`>lr?>13431`). The completion
echoes each operation and the list after it (`l34311r11343`); only the last list is judged. The reward is hard to guess,
cheap to compute and exact, which makes the task a test bed for everything else.

Every list stands behind a mark, the first one behind `>` as the program does: so each step of the machine is the same
lookup, the mark of the last list in the program and what follows it there, whatever the length of the program."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rewards.types import Reward, Verifier

LIST_LENGTH = 5
MAX_OPERATIONS = 9

OPERATIONS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "r": lambda digits: digits[::-1],
        "l": lambda digits: digits[1:] + digits[0],
        "t": lambda digits: digits[-1] + digits[:-1],
        "s": lambda digits: "".join(sorted(digits)),
        "d": lambda digits: "".join(sorted(digits, reverse=True)),
        "x": lambda digits: digits[-1] + digits[1:-1] + digits[0],
        "i": lambda digits: "".join(str((int(digit) + 1) % 10) for digit in digits),
        "m": lambda digits: "".join(str(9 - int(digit)) for digit in digits),
        "z": lambda digits: digits[1] + digits[0] + digits[3] + digits[2] + digits[4],
        "e": lambda digits: "".join(sorted(digits, key=lambda digit: int(digit) % 2)),  # stable: order kept within
    }
)
"""r reverse, l rotate left, t rotate right, s sort up, d sort down, x exchange first and last, i increment mod 10,
m nine minus each, z swap pairs (0,1) and (2,3), e even digits first."""

_PROMPT = re.compile(rf">([{''.join(OPERATIONS)}]{{1,{MAX_OPERATIONS}}})\?>([0-9]{{{LIST_LENGTH}}})")
_LAST_LIST = re.compile(rf"[0-9]{{{LIST_LENGTH}}}\Z")


def prompt_of(digits: str, operations: str) -> str:
    """The prompt that asks for `operations` on `digits`."""
    return f">{operations}?>{digits}"


def parse_prompt(prompt: str) -> tuple[str, str]:
    """Digits and operations of a prompt: `>lr?>13431` gives ("13431", "lr"). Raises ValueError for any other."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(
            f"list machine prompt {prompt!r}: must be 1 to {MAX_OPERATIONS} operations out of {''.join(OPERATIONS)} "
            f"and {LIST_LENGTH} digits, written as in >lr?>13431"
        )
    return match[2], match[1]


def run(digits: str, operations: str) -> list[str]:
    """The list after each operation, in order. Raises ValueError for what `parse_prompt` would refuse."""
    parse_prompt(prompt_of(digits, operations))
    lists = []
    for operation in operations:
        digits = OPERATIONS[operation](digits)
        lists.append(digits)
    return lists


def trace(digits: str, operations: str) -> str:
    """The right completion: each operation and the list after it."""
    return "".join(operation + after for operation, after in zip(operations, run(digits, operations), strict=True))


@dataclass(frozen=True)
class ListMachineOptions:
    """The list machine's reward has no options."""


def build_list_machine(options: ListMachineOptions) -> Verifier:
    """The verifier: 1.0 when the last five characters are the right list and the completion finished, else 0.0.

    Reads problem["prompt"] and problem["finished"] (taken for True where it is missing). The end token is not part of
    the completion's text."""
    return _score


def _score(completion: str, problem: Mapping[str, Any], /) -> Reward:
    digits, operations = parse_prompt(problem["prompt"])
    expected = run(digits, operations)[-1]
    match = _LAST_LIST.search(completion)
    last = match[0] if match else None
    finished = bool(problem.get("finished", True))
    return Reward.scored(
        float(last == expected and finished),
        parts={"correct": float(last == expected), "finished": float(finished)},
        detail=f"last list {last or 'missing'}, expected {expected}{'' if finished else ', not finished'}",
        answer=last,
    )
