"""Where a completion states its final answer: text in, answers as text out. Nothing is read as mathematics here.

Every search is bounded: boxes are looked for from the end, phrases and numbers in the last characters only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rewards.math_numbers import NUMBER, is_function_word

MAX_ANSWER_CHARACTERS = 1_000
TAIL_CHARACTERS = 4_000
MAX_BOXES = 8
MAX_GAP_CHARACTERS = 70


@dataclass(frozen=True, slots=True)
class Extracted:
    """The final answer: one text, or several when the completion leaves it open or gives it in pieces."""

    source: str
    answers: tuple[str, ...]


def extract(completion: str, sources: Sequence[str]) -> Extracted | None:
    """The answer from the first of the sources (keys of EXTRACTORS) that the completion uses; None when it uses none.

    A source that is used decides, whether its answer is right or not."""
    for source in sources:
        answers = EXTRACTORS[source](completion)
        if answers:
            return Extracted(source=source, answers=tuple(dict.fromkeys(answers)))
    return None


_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,10}")
_UNBRACED = re.compile(r"[-+]?[0-9.,]+|[A-Za-z]")
_GAP = re.compile(
    r"(?:[\s$*,;:.()\[\]{}\\&~=/-]|and|or|maybe|perhaps|possibly|alternatively|either|also|quad|qquad|text|[A-Za-z](?=\s*=))*",
    re.IGNORECASE,
)


def boxed(completion: str) -> list[str]:
    r"""The last \boxed or \fbox, together with those that nothing but separators joins to it.

    `\boxed{3} or \boxed{4}` are two answers, `\boxed{3}, so the sum is \boxed{4}` is one. A last box that is never
    closed, or not within MAX_ANSWER_CHARACTERS, holds an empty answer, which is never right."""
    answers: list[str] = []
    end = len(completion)
    while len(answers) < MAX_BOXES:
        start = max(completion.rfind(r"\boxed", 0, end), completion.rfind(r"\fbox", 0, end))
        if start < 0:
            break
        content, stop = _read_box(completion, start)
        if answers and (content is None or not _is_gap(completion[stop:end])):
            break
        answers.insert(0, content or "")
        end = start
    return answers


def _read_box(text: str, start: int) -> tuple[str | None, int]:
    """The content of the box that begins at start, and where the box ends; None when it is not closed."""
    match = _BOX.match(text, start)
    if match is None:
        return None, start
    begin = match.end()
    if text[begin : begin + 1] != "{":
        bare = _UNBRACED.match(text, begin, begin + MAX_ANSWER_CHARACTERS)
        return (bare[0], bare.end()) if bare else (None, begin)
    depth, position = 0, begin
    stop = min(len(text), begin + MAX_ANSWER_CHARACTERS + 2)
    while position < stop:
        character = text[position]
        if character == "\\":
            position += 1  # \{ and \} are characters of a set, not braces
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[begin + 1 : position].strip(), position + 1
        position += 1
    return None, stop


def _is_gap(text: str) -> bool:
    return len(text) <= MAX_GAP_CHARACTERS and _GAP.fullmatch(text) is not None


def hashes(completion: str) -> list[str]:
    """What follows the last `####` on its line, as in GSM8K."""
    start = completion.rfind("####")
    if start < 0:
        return []
    line = completion[start + 4 : start + 4 + MAX_ANSWER_CHARACTERS + 1].split("\n", 1)[0].strip()
    return [line] if line else []


_PHRASE = re.compile(
    r"\b(?:final\s{1,5})?answers?\b[\s*]{0,5}(?::|=|is\b|are\b|equals\b|would\s+be\b|must\s+be\b)[\s*:]{0,5}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|\b(?:because|since|so that|which is why)\b")
_ENVIRONMENT = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"(?<!\\)\b[A-Za-z]{2,}\b")


def phrase(completion: str) -> list[str]:
    """What follows the last "answer is", "answer:" and their like, up to the end of the sentence."""
    tail = completion[-TAIL_CHARACTERS:]
    starts = [match.end() for match in _PHRASE.finditer(tail)]
    if not starts:
        return []
    sentence = _SENTENCE_END.split(tail[starts[-1] :].lstrip(), maxsplit=1)[0].strip(" *`\t")
    return _answers_in(sentence)


def _answers_in(sentence: str) -> list[str]:
    """The formulas of a sentence, else itself when it has no words, else its numbers, else itself."""
    formulas = [next(filter(None, groups)).strip() for groups in _ENVIRONMENT.findall(sentence)]
    if formulas:
        return formulas
    if all(is_function_word(word) for word in _WORD.findall(sentence)):
        return [sentence] if sentence else []
    matches = list(NUMBER.finditer(sentence))
    if len(matches) == 1 and matches[0].start() == 0 and len(sentence.split()) <= 3:
        return [sentence]  # with the words that follow, which may be its unit
    return [match[0] for match in matches] or [sentence]


_LAST_NUMBER = re.compile(rf"{NUMBER.pattern}(?:[\s,$*]{{0,8}}\bor\b[\s$*]{{0,8}}{NUMBER.pattern})*")


def number(completion: str) -> list[str]:
    """The last number, together with those that an "or" joins to it."""
    last = None
    for match in _LAST_NUMBER.finditer(completion[-TAIL_CHARACTERS:]):
        last = match[0]
    return [] if last is None else [match[0] for match in NUMBER.finditer(last)]


EXTRACTORS: Mapping[str, Callable[[str], list[str]]] = MappingProxyType(
    {"boxed": boxed, "hash": hashes, "phrase": phrase, "number": number}
)
