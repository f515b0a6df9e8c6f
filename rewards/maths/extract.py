"""Where a completion states its final answer: text in, answers as text out. Nothing is read as mathematics here.

Every search is bounded: boxes are looked for from the end, phrases and numbers in the last characters only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rewards.maths.numbers import NUMBER, read_number
from rewards.maths.text import is_prose, is_words

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
    r"(?:[\s$*,;:.()\[\]{}\\&~=/+-]|\b(?:[a-z]{2,}\s+)?(?:and|or)\b|\b(?:for|part|also|either|quad|qquad|text|textbf)\b"
    r"|[a-z](?:_\{?\w\}?)?(?=\s*=)|(?<![a-z])[a-h](?=\)))*"
)
_HEDGE = re.compile(r"(?<![A-Za-z])(?:or|maybe|perhaps|possibly|alternatively)(?![A-Za-z])", re.IGNORECASE)


def boxed(completion: str) -> list[str]:
    r"""The last \boxed or \fbox, together with those that nothing but separators joins to it.

    `\boxed{3} or \boxed{4}` are two answers, `\boxed{3}, so the sum is \boxed{4}` is one. A last box that is never
    closed, or not within MAX_ANSWER_CHARACTERS, holds an empty answer, which is never right."""
    found: list[tuple[int, str]] = []  # where each begins, from the last
    end = len(completion)
    while len(found) < MAX_BOXES:
        start = max(completion.rfind(r"\boxed", 0, end), completion.rfind(r"\fbox", 0, end))
        if start < 0:
            break
        content, stop = _read_box(completion, start)
        if found and content is not None and stop > end:  # a box around boxes is one answer
            found = [box for box in found if box[0] > stop]
            content = _BOX.sub("", content)
        elif found and (content is None or not _is_gap(completion[stop:end])):
            break
        found.append((start, content or ""))
        end = start
    return [content for _, content in reversed(found)]


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
    """Whether the text between two answers leaves both of them standing."""
    if len(text) > MAX_GAP_CHARACTERS:
        return False
    return _GAP.fullmatch(text.lower()) is not None or _HEDGE.search(text) is not None


def hashes(completion: str) -> list[str]:
    """What follows the last `####` on its line, as in GSM8K."""
    start = completion.rfind("####")
    if start < 0:
        return []
    line = completion[start + 4 : start + 4 + MAX_ANSWER_CHARACTERS + 1].split("\n", 1)[0].strip()
    return [line] if line else []


_PHRASE = re.compile(
    r"\b(?:final\s{1,5})?answers?\b[\s*]{0,5}(?::|=|is\b|are\b|equals\b|would\s+be\b|must\s+be\b)(?!\s+not\b)[\s*:]{0,5}"
    r"|(?:答案|答え)[\s*]{0,5}(?:[是为為は:：])[\s*:：]{0,5}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\*|$)|[。！\n]|です|\s[—–]\s|\b(?:because|since|so that|which is why)\b")
_WORKING = re.compile(r"\s\([^()=]{1,60}=[^()=]{1,60}\)\s*\Z")


def phrase(completion: str) -> list[str]:
    """What follows the last "answer is", "answer:" and their like, up to the end of the sentence."""
    tail = completion[-TAIL_CHARACTERS:]
    starts = [match.end() for match in _PHRASE.finditer(tail)]
    if not starts:
        return []
    rest = tail[starts[-1] :].lstrip()
    formula = _FORMULA.match(rest)
    start = formula.end() if formula else 0
    sentence = rest[:start] + _SENTENCE_END.split(rest[start:], maxsplit=1)[0]
    sentence = _WORKING.sub("", sentence.strip(" *").rstrip(" *("))  # 18 (6*3 = 18), 18 (because
    return _answers_in(sentence.strip(' *`\t\n"'))


def _answers_in(sentence: str) -> list[str]:
    """Itself when it has no words but a unit, else the formula or number that it starts with, else ends with."""
    if not is_prose(sentence) or read_number(sentence) is not None:
        formula = _FORMULA.fullmatch(sentence)
        return [_content(formula)] if formula else [sentence] if sentence else []
    items = _items(sentence)
    if not items or is_words(sentence):
        return [sentence]
    starts = items[0][1] == 0 and "=" not in sentence[items[0][2] :]
    return _run(items, sentence) if starts else _run(items[::-1], sentence)


_FORMULA = re.compile(
    r"(?<!\\)\$\$(?P<a>.{1,1000}?)\$\$|(?<![\\$])\$(?P<b>(?:\\.|[^$\\\n]){1,1000})\$(?![0-9])"
    r"|\\\((?P<c>.{1,1000}?)\\\)|\\\[(?P<d>.{1,1000}?)\\\]",
    re.DOTALL,
)
_ITEM_GAP = re.compile(r"[\s,;*$]*(?:\b(?:and|or)\b[\s,;*$]*|(?<=\$)[\s,;]*(?=\$))")
_ITEM = re.compile(rf"{_FORMULA.pattern}|{NUMBER.pattern}", re.DOTALL)


def _content(formula: re.Match[str]) -> str:
    return next(filter(None, formula.group("a", "b", "c", "d")), "").strip()


def _items(text: str) -> list[tuple[str, int, int]]:
    """The formulas and the numbers outside them, each with where it starts and ends."""
    items, position = [], 0
    while match := _ITEM.search(text, position):
        content = _content(match)
        if content and is_prose(content):
            position = match.start() + 1  # $5 a day and $
            continue
        items.append((content or match[0], match.start(), match.end()))
        position = match.end()
    return items


def _run(items: list[tuple[str, int, int]], text: str) -> list[str]:
    """The first of the items and those that "and" or "or" joins to it; items may run backwards."""
    run = [items[0]]
    for item in items[1:]:
        before, after = sorted((run[-1], item), key=lambda one: one[1])
        gap = text[before[2] : after[1]]
        if len(gap) > MAX_GAP_CHARACTERS or not (_ITEM_GAP.fullmatch(gap) or _HEDGE.search(gap)):
            break
        run.append(item)
    return [text for text, _, _ in sorted(run, key=lambda one: one[1])]


def number(completion: str) -> list[str]:
    """The last number, or the formula that it stands in, with those that an "or" joins to it; a bare answer whole.

    None where the text takes the last number back: "not 18", "18 is wrong"."""
    bare = completion.strip()
    if len(bare) <= MAX_ANSWER_CHARACTERS and "\n" not in bare:
        formula = _FORMULA.fullmatch(bare)
        if formula:
            return [_content(formula)]
        if "$" not in bare.strip("$") and (not is_prose(bare) or read_number(bare) is not None):
            return [bare] if bare else []
        if len(bare) < MAX_NAME_CHARACTERS and is_words(bare.strip("*.` ")):
            return [bare.strip("*.` ")]
    tail = completion[-TAIL_CHARACTERS:]
    items = _items(tail)
    if not items or _BEFORE_REFUSED.search(tail[: items[-1][1]]) or _BEHIND_REFUSED.match(tail, items[-1][2]):
        return []
    items[-1] = _with_its_formula(items[-1], tail)
    return _run(items[::-1], tail)


MAX_NAME_CHARACTERS = 40
_BEFORE_REFUSED = re.compile(r"\b(?:not|never|n't)\s{1,5}[*$`\\(]{0,4}\Z")
_BEHIND_REFUSED = re.compile(r"[*$`\\)\s]{0,5}\bis\s(?:wrong|incorrect|false|not)\b")
_OF_A_FORMULA = re.compile(r"[\^\\]|[A-Za-z)}]/[0-9]")
_AROUND = "*_`\"'.,;:!?"


def _with_its_formula(item: tuple[str, int, int], text: str) -> tuple[str, int, int]:
    """The item, or the whole of an undelimited formula that its number is a digit of: x^2, \\frac{1}{2}."""
    start = max(text.rfind(space, 0, item[1]) for space in " \n\t") + 1
    stop = min(end if (end := text.find(space, item[2])) >= 0 else len(text) for space in " \n\t")
    word = text[start:stop].strip(_AROUND)
    if len(word) > MAX_ANSWER_CHARACTERS or "$" in word or not _OF_A_FORMULA.search(word):
        return item
    return word, start, stop


def tag(completion: str) -> list[str]:
    """What stands in the last `<answer>…</answer>`: the box or phrase in it, else all of it."""
    start = completion.rfind("<answer>")
    if start < 0:
        return []
    inside = completion[start + len("<answer>") :].split("</answer>", 1)[0].strip()
    return boxed(inside) or phrase(inside) or _answers_in(inside.strip('*` \t\n"')[: MAX_ANSWER_CHARACTERS + 1]) or [""]


EXTRACTORS: Mapping[str, Callable[[str], list[str]]] = MappingProxyType(
    {"boxed": boxed, "hash": hashes, "phrase": phrase, "number": number, "tag": tag}
)
