r"""The mathematics reward: is the final answer of a completion the gold answer?

Plain numbers, lists of them and words are compared exactly and at once; everything else is read as LaTeX by
math-verify, which is imported here and nowhere else. Its own time limits use signals and are switched off: the pool's
hold. Nothing is evaluated as Python, and what would take the age of the universe to compute is refused before it is."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.maths.compare import form_of, same_relation, same_value, same_values
from rewards.maths.extract import EXTRACTORS, MAX_ANSWER_CHARACTERS, boxed, extract, hashes, phrase
from rewards.maths.magnitude import is_too_large, is_unbounded, refusal_of
from rewards.maths.numbers import PlainNumber, as_latex, read_decimal_comma, read_number, same_number, without_unit
from rewards.maths.structure import structure_of
from rewards.maths.text import as_formula, choice_of, clean, is_prose, is_words, words_of
from rewards.types import Reward, Verifier

MAX_PIECES = 16
MAX_GOLDS = 64


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
    """The verifier: 1.0 when the final answer equals problem[answer_key], or one of them where it is a list, else 0.0.

    A completion that leaves its answer open (two different boxes side by side, "3 or 4") is right only when each of
    its answers is, or when all of them together are the gold. A gold that cannot be read is an error."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        try:
            golds = _read_golds(problem, key=options.answer_key)
        except UnreadableError as error:
            return Reward.error(f"the gold answer cannot be used: {error}")
        shown = " / ".join(gold.text for gold in golds)[:200]
        found = extract(completion, options.extract)
        if found is None:
            return Reward.scored(0.0, parts={"correct": 0.0, "boxed": 0.0}, detail=f"no answer found; gold {shown}")
        correct, remark = False, ""
        for gold in golds:
            correct, remark = _is_right(gold, found.answers)
            if correct:
                break
        return Reward.scored(
            float(correct),
            parts={"correct": float(correct), "boxed": float(found.source == "boxed")},
            detail=f"{found.source}: {' | '.join(found.answers)[:200]}; gold {shown}{remark}",
            answer=canonical_answer(found.answers),
        )

    return verifier


def canonical_answer(answers: Sequence[str]) -> str | None:
    """The answers of a completion as one text, for majority votes: equal ones are equal texts where that is cheap.

    Numbers are exact fractions without their units (1,200, $1200.00 and 1200 apples are one answer, and so are 0.5 and
    \\frac{1}{2}); words are even in case and space; a formula is the text that it is, without what only sets it, so
    that x+1 and 1+x are two answers. None where nothing stands there."""
    return ", ".join(_canonical(answer) for answer in answers) or None


def _canonical(answer: str) -> str:
    answer = _ASSIGNMENT.sub("", answer)
    number = read_number(answer)
    if number is not None:
        return f"{number.value}{'%' if number.is_percent else ''}"
    return (words_of(answer) if is_words(answer) else None) or clean(answer)


def prepare_math_answer() -> None:
    """Import math-verify and have its parser and comparison warm: seconds of work that no call should pay for."""
    for text in _WARMING:
        _is_same_expression(_parse(text), _parse(text))


_WARMING = (
    *(
        r"\frac{x+1}{2}",
        r"-\frac{7}{2}+3\sqrt{2}",
        r"\frac{\sqrt{3}}{2}",
        r"\sqrt[3]{2}",
        r"2\pi",
        "3+4i",
        "x^2-3x+2",
        "2^{10}",
    ),
    *(
        "(x-1)(x+2)",
        "5!",
        r"\binom{5}{2}",
        r"\log_{2}(8)",
        "e^{2x}",
        r"\sin(x)",
        r"\frac{a}{b+c}",
        "|x-1|",
        r"k\pi",
        "y=2x-1",
    ),
    *("x > 2", r"-\infty", "[0,1)", "(1,2)", r"\{1,2\}"),
)
"""What the grammar remembers having read, it reads several times as fast."""


class _Gold(NamedTuple):
    """A gold answer, or a piece of one, read as far as comparisons need it again and again."""

    text: str
    cleaned: str
    number: PlainNumber | None
    words: str | None
    choice: str | None
    kind: str  # of the structure that its parts are in; empty for a single piece
    in_order: bool
    parts: tuple[_Gold, ...]


def _read_golds(problem: Mapping[str, Any], *, key: str) -> tuple[_Gold, ...]:
    """The gold answers: problem[key] is one, or a list of some of which any will do."""
    if key not in problem:
        raise UnreadableError(f"problem has no {key!r}; its keys are {sorted(map(str, problem))} (option answer_key)")
    values = problem[key]
    if not isinstance(values, (list, tuple)):
        return (_read_gold(values, name=f"problem[{key!r}]"),)
    if not 0 < len(values) <= MAX_GOLDS:
        raise UnreadableError(f"problem[{key!r}] is a list of {len(values)}; 1 to {MAX_GOLDS} answers can be used")
    return tuple(_read_gold(value, name=f"problem[{key!r}][{index}]") for index, value in enumerate(values))


def _read_gold(value: Any, *, name: str) -> _Gold:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UnreadableError(f"{name} = {value!r} is a {type(value).__name__}; it must be text or a number")
    text = _gold_text(str(value))
    if not text or len(text) > MAX_ANSWER_CHARACTERS:
        raise UnreadableError(f"{name} holds {len(text)} characters; 1 to {MAX_ANSWER_CHARACTERS} can be used")
    return _understand(text)


def _gold_text(text: str) -> str:
    """The last boxes, the #### line or the final-answer phrase of a worked solution, else the whole text."""
    if r"\boxed" in text or "####" in text:
        return ", ".join(dict.fromkeys(boxed(text) or hashes(text))).strip()
    answers = phrase(text) if is_prose(text) else []
    return ", ".join(answers or [text]).strip()


@functools.lru_cache(maxsize=1024)
def _understand(text: str) -> _Gold:
    """The gold, read once for its group. Raises UnreadableError where nothing could be compared with it."""
    number = read_number(text)
    words = words_of(text) if number is None and is_words(text) else None
    choice = choice_of(text)
    kind, in_order = "", True
    parts: tuple[_Gold, ...] = ()
    if number is None and words is None:
        structure = structure_of(text)
        if structure is not None:
            kind, in_order, parts = structure.kind, structure.in_order, tuple(map(_understand, structure.pieces))
        elif choice is None:
            _parse(text)  # here, so that a gold that cannot be read is told from an answer that cannot
    return _Gold(text, clean(text), number, words, choice, kind, in_order, parts)


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
    if "or" not in answer or is_words(answer):
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
    number = read_number(answer)
    if gold.number is not None and number is not None:
        return same_number(gold.number, number)
    verdict = _same_decimal_comma(gold, number, answer)
    if verdict is not None:
        return verdict
    if gold.choice is not None and (choice := choice_of(answer)) is not None:
        return gold.choice == choice
    if gold.words is not None:
        return gold.words == words_of(answer)
    cleaned = clean(answer)
    if not cleaned or cleaned == gold.cleaned:
        return bool(cleaned)
    if gold.parts or "," in answer or ";" in answer:
        verdict = _same_structure(gold, answer)
        if verdict is not None:
            return verdict
    return _is_same_expression(_parse(gold.text), _parse(answer))


def _same_structure(gold: _Gold, answer: str) -> bool | None:
    """Whether the answer has the gold's pieces, in order or in any; None where one is put together otherwise."""
    structure = structure_of(answer)
    if structure is None and not gold.kind:
        return None
    kind, pieces = structure or ("", (answer,))
    parts = gold.parts or (gold,)
    if gold.kind != kind and not {gold.kind, kind} <= {"", ","}:
        return None
    if len(pieces) != len(parts):
        return None if _NESTED.search(answer + gold.text) else False
    if gold.in_order and gold.kind:
        return all(map(_is_same, parts, pieces))
    left = list(pieces)
    for part in parts:
        same = next((index for index, piece in enumerate(left) if _is_same(part, piece)), None)
        if same is None:
            return False
        del left[same]
    return True


_NESTED = re.compile(r"\\in(?![a-z])|\\cup|\\pm|\\[lg]e|[<>(\[]")
_ASSIGNMENT = re.compile(
    r"\A\s*\$?\s*(?:[A-Za-z](?:_\{?[A-Za-z0-9]\}?)?|\(\s?[a-z](?:\s?,\s?[a-z]){1,4}\s?\))\s*=(?=[^=]*\Z)"
)


def _same_decimal_comma(gold: _Gold, number: PlainNumber | None, answer: str) -> bool | None:
    """Whether 2,74 is 2.74; None unless one side is written with a point and the other with a comma."""
    if gold.number is not None and gold.number.is_decimal and number is None:
        other = read_decimal_comma(answer)
        return same_number(gold.number, other) if other else None
    if gold.number is None and number is not None and number.is_decimal:
        other = read_decimal_comma(gold.text)
        return same_number(other, number) if other else None
    return None


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Any:
    """The text as a sympy object, unevaluated. Raises UnreadableError when it is no mathematics or too much of it."""
    refusal = refusal_of(text)
    if refusal:
        raise UnreadableError(refusal)
    engine = _engine()
    number = read_number(text)
    formula = without_unit(as_formula(text)) if number is None else as_latex(number)
    if _NUMBERS_APART.search(formula):
        raise UnreadableError(f"{text[:100]!r} is two numbers with nothing between them")
    try:
        expression = engine.parse(engine.normalize(formula))
    except Exception as error:  # the grammar raises bare Exception for what it does not know
        raise UnreadableError(f"{text[:100]!r} cannot be read as mathematics ({type(error).__name__})") from error
    if expression is None or (not is_unbounded(expression) and is_too_large(expression)):
        raise UnreadableError(f"{text[:100]!r} is not computed: huge numbers")
    return expression.as_immutable() if engine.is_matrix(expression) else expression


_NUMBERS_APART = re.compile(r"(?<![_^0-9])[0-9]+\s+[0-9]")


def _is_same_expression(gold: Any, answer: Any) -> bool:
    """Whether two expressions are equal. Raises UnreadableError for a matrix with an interval, and their like."""
    if is_unbounded(gold) or is_unbounded(answer):
        return form_of(gold) == form_of(answer)  # not computed: the same as it stands, or not the same
    try:
        verdict = _by_value(gold, answer)
        # Gold first: its comparison is not symmetric.
        return _engine().verify(gold, answer, timeout_seconds=None, raise_on_error=True) if verdict is None else verdict
    except Exception as error:  # sympy raises what it likes
        raise UnreadableError(f"cannot be compared ({type(error).__name__})") from error


def _by_value(gold: Any, answer: Any) -> bool | None:
    """Whether scalars, finite sets of scalars, equations and inequalities are equal; None for everything else."""
    is_scalar, is_equation, is_set = _engine().is_scalar, _engine().is_equation, _engine().is_set
    if is_equation(answer) and is_scalar(gold):
        if answer.lhs.is_Add and answer.lhs.free_symbols:
            return False  # x + y = 5 does not say 5
        answer = answer.rhs
    elif (
        is_equation(gold)
        and is_scalar(answer)
        and (gold.lhs.is_Function or (gold.lhs.is_Atom and not gold.lhs.is_Number))
    ):
        gold = gold.rhs
    if is_scalar(gold) and is_scalar(answer):
        return same_value(gold, answer)
    if is_set(gold) and is_set(answer) and all(map(is_scalar, (*gold.args, *answer.args))):
        return same_values(gold.args, answer.args)
    if _engine().is_matrix(gold) and _engine().is_matrix(answer):
        return gold.shape == answer.shape and all(map(same_value, gold.flat(), answer.flat()))
    if gold.is_Relational and answer.is_Relational and all(map(is_scalar, (*gold.args, *answer.args))):
        return same_relation(gold, answer)
    return None


class _Engine(NamedTuple):
    normalize: Callable[[str], str]
    parse: Callable[[str], Any]
    verify: Callable[..., bool]
    is_scalar: Callable[[Any], bool]
    is_equation: Callable[[Any], bool]
    is_set: Callable[[Any], bool]
    is_matrix: Callable[[Any], bool]


@functools.cache
def _engine() -> _Engine:
    """math-verify's normaliser, LaTeX parser and comparison. Its expression parser is left out: that one evaluates."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
    from math_verify import verify
    from math_verify.parser import parse_latex_cached
    from sympy import Eq, Expr, FiniteSet, MatrixBase

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    config = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    return _Engine(
        normalize=functools.partial(normalize_latex, config=config),
        parse=parse_latex_cached,
        verify=verify,
        is_scalar=lambda expression: isinstance(expression, Expr) and not expression.is_Matrix,
        is_equation=lambda expression: isinstance(expression, Eq),
        is_set=lambda expression: isinstance(expression, FiniteSet),
        is_matrix=lambda expression: isinstance(expression, MatrixBase),
    )
