r"""The mathematics reward: is the final answer of a completion the gold answer?

Plain numbers and words are compared exactly and at once; everything else is read as LaTeX by math-verify, which is
imported here and nowhere else. Its own time limits use signals and are switched off: the pool's hold. Nothing in a
completion is evaluated as Python, and what would take the age of the universe to compute is refused before it is."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.math_extract import EXTRACTORS, MAX_ANSWER_CHARACTERS, boxed, extract, hashes
from rewards.math_magnitude import MAX_DIGITS, is_too_large
from rewards.math_numbers import as_latex, clean, is_function_word, read_number, same_number
from rewards.types import Reward, Verifier

MAX_NESTING = 12
"""Brackets in brackets: the grammar's time doubles with every few levels."""

MAX_PIECES = 16


class UnreadableError(ValueError):
    """A text that is no mathematics, or more of it than is worth computing."""


@dataclass(frozen=True)
class MathAnswerOptions:
    """Where to look for the answer, in order (the first that the completion uses decides), and the gold's key."""

    extract: tuple[str, ...] = ("boxed", "hash", "phrase", "number")
    answer_key: str = "answer"

    def __post_init__(self) -> None:
        unknown = [source for source in self.extract if source not in EXTRACTORS]
        if unknown or not self.extract or len(set(self.extract)) != len(self.extract):
            raise ValueError(f"extract = {list(self.extract)}: must be some of {list(EXTRACTORS)}, each once")


def build_math_answer(options: MathAnswerOptions) -> Verifier:
    """The verifier: 1.0 when the final answer equals problem[answer_key], else 0.0.

    A completion that leaves its answer open (two different boxes side by side, "3 or 4") is right only when each of
    its answers is, or when all of them together are the gold. A gold that cannot be read is an error."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        try:
            gold = _read_gold(problem, key=options.answer_key)
        except UnreadableError as error:
            return Reward.error(f"the gold answer cannot be used: {error}")
        found = extract(completion, options.extract)
        if found is None:
            return Reward.scored(0.0, parts={"correct": 0.0, "boxed": 0.0}, detail=f"no answer found; gold {gold.text}")
        correct, remark = _is_right(gold, found.answers)
        return Reward.scored(
            float(correct),
            parts={"correct": float(correct), "boxed": float(found.source == "boxed")},
            detail=f"{found.source}: {' | '.join(found.answers)[:200]}; gold {gold.text}{remark}",
        )

    return verifier


def prepare_math_answer() -> None:
    """Import math-verify and have its parser warm: a second's work that no call should pay for."""
    _parse(r"\frac{1}{2}")


class _Gold(NamedTuple):
    text: str
    expression: Callable[[], Any]  # read when a comparison needs it


def _read_gold(problem: Mapping[str, Any], *, key: str) -> _Gold:
    """The gold answer: the last box or the #### line of a worked solution, else the whole text."""
    if key not in problem:
        raise UnreadableError(f"problem has no {key!r}; its keys are {sorted(map(str, problem))} (option answer_key)")
    value = problem[key]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UnreadableError(f"problem[{key!r}] = {value!r} is a {type(value).__name__}; it must be text or a number")
    text = str(value)
    if r"\boxed" in text or "####" in text:
        text = (boxed(text) or hashes(text) or [""])[-1]
    text = text.strip()
    if not text or len(text) > MAX_ANSWER_CHARACTERS:
        raise UnreadableError(
            f"problem[{key!r}] holds {len(text)} characters; 1 to {MAX_ANSWER_CHARACTERS} can be used"
        )
    if read_number(text) is None and not _is_words(text):
        _parse_cached(text)  # here, so that a gold that cannot be read is told from an answer that cannot
    return _Gold(text=text, expression=functools.partial(_parse_cached, text))


def _is_right(gold: _Gold, answers: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the answers are the gold, and why not where that needs a word."""
    pieces = [piece for answer in answers for piece in _alternatives(answer)]
    if len(pieces) > MAX_PIECES:
        return False, f"; more than {MAX_PIECES} answers"
    try:
        if all(_is_same(gold, piece) for piece in pieces):
            return True, ""
        if len(pieces) > 1:
            together = _is_same(gold, ", ".join(pieces))
            return together, "" if together else "; several answers"
    except UnreadableError as error:
        return False, f"; {error}"
    return False, ""


_OR = re.compile(r"\\(?:text|mathrm|mbox)\s?\{[^{}]*(?<![A-Za-z])or(?![A-Za-z])[^{}]*\}|(?<![A-Za-z\\])or(?![A-Za-z])")


def _alternatives(answer: str) -> list[str]:
    """The pieces of an answer that an "or" holds apart, so that what stands with it is not dropped as if a unit."""
    if _is_words(answer):
        return [answer]
    pieces = _OR.split(answer)
    if len(pieces) == 1:
        return pieces
    stripped = [piece.strip(" $,") for piece in pieces]
    return [piece if piece.count("(") == piece.count(")") else piece.strip("()") for piece in stripped]


def _is_same(gold: _Gold, answer: str) -> bool:
    """Whether one answer equals the gold. Raises UnreadableError for an answer that is no mathematics."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        raise UnreadableError(f"longer than {MAX_ANSWER_CHARACTERS} characters")
    if "=" not in gold.text:
        answer = _ASSIGNMENT.sub("", answer)
    gold_number, number = read_number(gold.text), read_number(answer)
    if gold_number is not None and number is not None:
        return same_number(gold_number, number)
    if _is_words(gold.text):
        return _words(gold.text) == _words(answer)
    if clean(gold.text) == clean(answer):
        return True
    if not clean(answer):
        return False
    return _verify(gold.expression(), _parse(answer))


_ASSIGNMENT = re.compile(r"\A\s*\$?\s*[A-Za-z](?:_\{?[A-Za-z0-9]\}?)?\s*=(?=[^=]*\Z)")
_SETTING = re.compile(r"[\s${}()]+")


def _words(text: str) -> str:
    """The text for a comparison as words: without case, spaces and what only sets it."""
    return _SETTING.sub("", clean(text)).casefold()


def _is_words(text: str) -> bool:
    """Whether the text is language (Tuesday, not possible, B), which is compared letter by letter."""
    words = re.sub(r"[(){}'-]", " ", clean(text)).split()
    if not words or not all(word.isalpha() and not is_function_word(word) for word in words):
        return False
    return len(words) > 1 or len(words[0]) > 3 or words[0].isupper() or words[0].lower() in {"yes", "no", "odd"}


@functools.lru_cache(maxsize=64)
def _parse_cached(text: str) -> Any:
    """A gold is parsed once for its group."""
    return _parse(text)


def _parse(text: str) -> Any:
    """The text as a sympy object, unevaluated. Raises UnreadableError when it is no mathematics or too much of it."""
    if _nesting(text) > MAX_NESTING:
        raise UnreadableError(f"brackets nested more than {MAX_NESTING} deep")
    if _LONG_NUMBER.search(text):
        raise UnreadableError(f"a number of more than {MAX_DIGITS} digits")
    engine = _engine()
    number = read_number(text)
    try:
        expression = engine.parse(engine.normalize(clean(text) if number is None else as_latex(number)))
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the grammar raises bare Exception for what it does not know
        raise UnreadableError(f"{text[:100]!r} cannot be read as mathematics") from error
    if expression is None or is_too_large(expression):
        raise UnreadableError(f"{text[:100]!r} is not computed: huge numbers, sums, integrals")
    return expression


_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")}]":
            depth -= 1
    return deepest


def _verify(gold: Any, answer: Any) -> bool:
    """math-verify's comparison, gold first: it is not symmetric.

    What it cannot compare (a matrix with an interval) it says by raising, and that is not the same."""
    try:
        return bool(_engine().verify(gold, answer, timeout_seconds=None, raise_on_error=True))
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        raise UnreadableError(f"cannot be compared ({type(error).__name__})") from error


class _Engine(NamedTuple):
    normalize: Callable[[str], str]
    parse: Callable[[str], Any]
    verify: Callable[..., bool]


@functools.cache
def _engine() -> _Engine:
    """math-verify's normaliser, LaTeX parser and comparison. Its expression parser is left out: that one evaluates."""
    from latex2sympy2_extended.math_normalization import normalize_latex
    from math_verify import verify
    from math_verify.parser import LatexExtractionConfig, parse_latex_cached

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    config = LatexExtractionConfig().normalization_config
    return _Engine(functools.partial(normalize_latex, config=config), parse_latex_cached, verify)
