"""The multiple-choice reward: does the completion settle on the one right choice?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.choice.reading import settle
from rewards.choice.text import Choice, core_of, normalize
from rewards.types import Reward, Verifier

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _BrokenRowError(ValueError):
    """The answer or the choices of a row cannot be used."""


@dataclass(frozen=True)
class MultipleChoiceOptions:
    """The keys of the row, what its answer is (auto: whatever fits; two that differ are an error), its first index."""

    answer_key: str = "answer"
    choices_key: str = "choices"
    answer_is: Literal["auto", "label", "index", "text"] = "auto"
    first_index: int = 0

    def __post_init__(self) -> None:
        for name in ("answer_key", "choices_key"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: must be the name of a key of the row")
        if self.first_index not in (0, 1):
            raise ValueError(f"first_index = {self.first_index}: must be 0 or 1, the index of the first choice")


def build_multiple_choice(options: MultipleChoiceOptions) -> Verifier:
    """The verifier: 1.0 when the completion names the right choice, by label or text, and no other; else 0.0.

    Reads problem[choices_key]: a list of texts (labelled A, B, …), a mapping from labels to texts, or a mapping with
    the lists `label` and `text`; and problem[answer_key]: a label, an index, or a text."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        try:
            choices = _read_choices(_column(problem, options.choices_key, "choices_key"), key=options.choices_key)
            gold = _read_gold(_column(problem, options.answer_key, "answer_key"), choices, options)
        except _BrokenRowError as error:
            return Reward.error(str(error))
        settled = settle(completion, choices)
        correct = settled.named == {gold}
        named = ", ".join(choices[number].label for number in sorted(settled.named)) or "no choice"
        return Reward.scored(
            float(correct),
            parts={
                "correct": float(correct),
                "answered": float(len(settled.named) == 1),
                "ambiguous": float(len(settled.named) > 1),
            },
            detail=f"{settled.source}: {named}; gold {choices[gold].label}",
            answer=named if len(settled.named) == 1 else None,
        )

    return verifier


def _column(problem: Mapping[str, Any], key: str, option: str) -> Any:
    if key not in problem:
        raise _BrokenRowError(f"problem has no {key!r}; its keys are {sorted(map(str, problem))} (option {option})")
    return problem[key]


# --- the choices ---

_LABEL = re.compile(r"[\W_]*(\w{1,4})[\W_]*")


def _read_choices(value: Any, *, key: str) -> tuple[Choice, ...]:
    """The choices with their labels. Raises _BrokenRowError for another shape, too few, too many, and equal labels."""
    if isinstance(value, Mapping) and set(value) == {"label", "text"} and isinstance(value["text"], (list, tuple)):
        if not isinstance(value["label"], (list, tuple)) or len(value["label"]) != len(value["text"]):
            raise _BrokenRowError(f"problem[{key!r}]: label and text must be lists of the same length")
        pairs = list(zip(value["label"], value["text"], strict=True))
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = list(zip(LETTERS, _without_own_labels(value), strict=False)) if len(value) <= len(LETTERS) else []
    else:
        raise _BrokenRowError(f"problem[{key!r}] = {str(value)[:100]!r}: must be a list or a mapping of choices")
    if not 2 <= len(pairs) <= len(LETTERS):
        raise _BrokenRowError(f"problem[{key!r}] holds {len(value)} choices; 2 to {len(LETTERS)} can be used")
    choices = tuple(_read_choice(label, text, key=key) for label, text in pairs)
    if len({choice.label.casefold() for choice in choices}) < len(choices):
        raise _BrokenRowError(f"problem[{key!r}]: labels {[choice.label for choice in choices]} must differ")
    return choices


def _read_choice(label: Any, text: Any, *, key: str) -> Choice:
    match = _LABEL.fullmatch(normalize(str(label)))
    if match is None:
        raise _BrokenRowError(
            f"problem[{key!r}]: {label!r} is no label; use a letter or a number of up to 4 characters"
        )
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise _BrokenRowError(f"problem[{key!r}]: choice {label!r} = {text!r}: must be text or a number")
    return Choice(match[1], str(text))


_OWN_LABEL = re.compile(r"\s*\(?([A-Z])[).:]\s*(?=\S)")


def _without_own_labels(texts: Sequence[Any]) -> list[Any]:
    """The texts without the labels that they bring along ("A. Paris"), when all of them bring the right one."""
    matches = [_OWN_LABEL.match(text) if isinstance(text, str) else None for text in texts]
    if all(match is not None and match[1] == letter for match, letter in zip(matches, LETTERS, strict=False)):
        return [text[match.end() :] for text, match in zip(texts, matches, strict=True) if match is not None]
    return list(texts)


# --- the gold ---


def _read_gold(value: Any, choices: Sequence[Choice], options: MultipleChoiceOptions) -> int:
    """The number of the right choice. Raises _BrokenRowError when the answer fits none, or different ones."""
    where = f"problem[{options.answer_key!r}] = {str(value)[:100]!r}"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _BrokenRowError(f"{where} ({type(value).__name__}): must be a label, an index or a text")
    fits = {
        "label": _by_label(value, choices),
        "text": _by_text(value, choices),
        "index": _by_index(value, len(choices), options.first_index),
    }
    if options.answer_is == "auto":
        # A string of digits is an index only where it is nothing else; a number may be any of the three.
        if isinstance(value, str) and (fits["label"] or fits["text"]):
            fits["index"] = set()
        numbers = fits["label"] | fits["text"] | fits["index"]
    else:
        numbers = fits[options.answer_is]
    if len(numbers) != 1:
        fault = (
            "fits none of the choices" if not numbers else "can mean different choices; set answer_is, or correct it"
        )
        raise _BrokenRowError(f"{where}: {fault} (labels {[choice.label for choice in choices]})")
    return numbers.pop()


def _by_label(value: str | int | float, choices: Sequence[Choice]) -> set[int]:
    match = _LABEL.fullmatch(normalize(str(value)))
    label = match[1].casefold() if match else None
    return {number for number, choice in enumerate(choices) if choice.label.casefold() == label}


def _by_text(value: str | int | float, choices: Sequence[Choice]) -> set[int]:
    text = str(value).strip()
    exact = {number for number, choice in enumerate(choices) if choice.text.strip() == text}
    with_label = _OWN_LABEL.match(text)
    return (
        exact
        or {number for number, choice in enumerate(choices) if core_of(choice.text) == core_of(text)}
        or {
            number
            for number, choice in enumerate(choices)
            if with_label
            and choice.label == with_label[1]
            and core_of(choice.text) == core_of(text[with_label.end() :])
        }
    )


def _by_index(value: str | int | float, count: int, first_index: int) -> set[int]:
    if isinstance(value, float) or not str(value).strip().isdecimal():
        return set()
    number = int(value) - first_index
    return {number} if 0 <= number < count else set()
