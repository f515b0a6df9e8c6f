"""The verifier of `instructions`: which of a problem's instructions a completion follows, strictly or loosely."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rewards.instructions.own import load_checkers
from rewards.instructions.registry import CHECKERS, Checker
from rewards.options import nearest
from rewards.prose.detection import prepare_detection
from rewards.prose.sentences import prepare_sentences
from rewards.types import Reward, Verifier


@dataclass(frozen=True)
class InstructionsOptions:
    """How strictly instructions are read, what a share of them is worth, what is judged, and checkers of one's own.

    `answer_after`: only what follows its first occurrence is judged, `</think>` for one; a completion without it
    follows nothing. `checkers`: names to FILE.py:FUNCTION."""

    mode: Literal["strict", "loose"] = "strict"
    score: Literal["all", "fraction"] = "all"
    answer_after: str | None = None
    checkers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.answer_after == "":
            raise ValueError("answer_after = '': must be a text such as </think>; leave it out to judge everything")

    @property
    def files(self) -> tuple[str, ...]:
        """The user's own files that are read, by the names of their checkers."""
        return tuple(place.rpartition(":")[0] for _, place in sorted(self.checkers.items()))


class Instruction(NamedTuple):
    """One instruction of a problem, ready to be checked."""

    name: str
    checker: Checker
    arguments: dict[str, Any]


def build_instructions(options: InstructionsOptions) -> Verifier:
    """The verifier: with score `all` 1.0 when every instruction is followed, with `fraction` the share that is.

    Reads problem["instruction_id_list"], a list of names, and problem["kwargs"], a list of as many mappings. A row
    that cannot be read is an error, and so is a checker of the user's that fails. Raises ValueError for a checker of
    the user's that cannot be loaded."""
    checkers = {**CHECKERS, **load_checkers(options.checkers)}

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        try:
            instructions = read_instructions(problem, checkers)
            texts = list(_texts(completion, options))
            complaints = [_complaint(instruction, texts) for instruction in instructions]
        except _UnusableError as error:
            return Reward.error(str(error))
        return _reward([instruction.name for instruction in instructions], complaints, score=options.score)

    return verifier


def prepare_instructions() -> None:
    """Import nltk and load langdetect's profiles."""
    prepare_sentences()
    prepare_detection()


class _UnusableError(ValueError):
    """A row or a user's checker is at fault, not the completion."""


def read_instructions(problem: Mapping[str, Any], checkers: Mapping[str, Checker]) -> list[Instruction]:
    """The instructions of a row. Raises _UnusableError, naming what is wrong with it."""
    names, all_given = problem.get("instruction_id_list"), problem.get("kwargs")
    if not isinstance(names, (list, tuple)) or not names:
        raise _UnusableError(f'problem["instruction_id_list"] = {names!r:.200}: must be a list of instruction names')
    if not isinstance(all_given, (list, tuple)) or len(all_given) != len(names):
        raise _UnusableError(
            f'problem["kwargs"] = {all_given!r:.200}: must be a list of {len(names)} mappings, one each'
        )
    instructions = []
    for name, given in zip(names, all_given, strict=True):
        if not isinstance(name, str) or name not in checkers:
            raise _UnusableError(
                f'problem["instruction_id_list"] names {name!r:.80}, which is no instruction'
                f"{nearest(str(name), list(checkers))}; add one of your own with the option checkers"
            )
        if not isinstance(given, Mapping | None):
            raise _UnusableError(f'problem["kwargs"] has {given!r:.80} for {name}: must be a mapping of its arguments')
        try:
            instructions.append(Instruction(name, checkers[name], checkers[name].read(given or {})))
        except ValueError as error:
            raise _UnusableError(f'problem["kwargs"] of {name}: {error}') from error
    return instructions


def _texts(completion: str, options: InstructionsOptions) -> Iterator[str]:
    """The texts of which one must follow an instruction: the answer itself, and in loose mode seven of its relatives.

    These are the answer without its first line, its last or both, and all four without asterisks."""
    answer = completion
    if options.answer_after is not None:
        answer = completion.partition(options.answer_after)[2]
    answer = answer.replace("\r\n", "\n")
    lines = answer.split("\n")
    relatives = [lines[1:], lines[:-1], lines[1:-1]] if options.mode == "loose" else []
    texts = [answer, *("\n".join(relative).strip() for relative in relatives)]
    if options.mode == "loose":
        texts += [text.replace("*", "") for text in texts]
    yield from filter(str.strip, dict.fromkeys(texts))


def _complaint(instruction: Instruction, texts: list[str]) -> str:
    """Empty when one of the texts follows the instruction; else what is wrong with the first."""
    first = "nothing to judge"
    for place, text in enumerate(texts):
        try:
            complaint = instruction.checker.complaint(text, **instruction.arguments)
        except ValueError as error:
            raise _UnusableError(f"{instruction.name}: {error}") from error
        if not complaint:
            return ""
        if place == 0:
            first = complaint
    return first


def _reward(names: list[str], complaints: list[str], *, score: str) -> Reward:
    families = defaultdict(list)
    for name, complaint in zip(names, complaints, strict=True):
        families[name.split(":", 1)[0]].append(not complaint)
    followed = complaints.count("")
    fraction = followed / len(names)
    wrong = [f"{name} ({complaint})" for name, complaint in zip(names, complaints, strict=True) if complaint]
    return Reward.scored(
        fraction if score == "fraction" else float(fraction == 1.0),
        parts={**{family: sum(kept) / len(kept) for family, kept in families.items()}, "followed": fraction},
        detail=f"{followed} of {len(names)} followed{'; not ' if wrong else ''}{', '.join(wrong)}",
    )
