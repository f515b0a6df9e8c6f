r"""How large the numbers of an answer would become, so that towers of powers are seen and not met.

Twice: in the text, for what the grammar computes while it reads (intervals, sets, binomials), and in the expression."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_DIGITS = 1_000
MAX_NODES = 2_000
MAX_NESTING = 12
"""Brackets in brackets: the grammar's time doubles with every few levels."""
MAX_SEPARATORS = 100
MAX_EXPONENT_DIGITS = 3
MAX_BINOMIAL_DIGITS = 4

_UNBOUNDED = frozenset({"Sum", "Product", "Integral", "Limit"})
_GROWING = frozenset(
    {"factorial", "factorial2", "gamma", "binomial", "subfactorial", "RisingFactorial", "FallingFactorial"}
)


def refusal_of(text: str) -> str:
    """Why a text is not given to the grammar; empty when it is."""
    if _nesting(text) > MAX_NESTING:
        return f"brackets nested more than {MAX_NESTING} deep"
    if _LONG_NUMBER.search(text):
        return f"a number of more than {MAX_DIGITS} digits"
    if len(_SEPARATOR.findall(text)) > MAX_SEPARATORS:
        return f"more than {MAX_SEPARATORS} pieces"
    if _has_large_binomial(text) or (_COMPARED.search(text) and _has_large_power(text)):
        return f"{text[:100]!r} is not computed: huge numbers"
    return ""


_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_SEPARATOR = re.compile(r"[,;]|\\cup|\\cap|\\setminus")
_COMPARED = re.compile(r"[,;]|\\in(?![a-z])|\\[lr](?:floor|ceil)|\\(?:max|min|gcd|lcm|bmod|pmod|mod|det)(?![a-z])")
_BINOMIAL = re.compile(r"binom|choose")


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")}]":
            depth -= 1
    return deepest


def _group(text: str, start: int) -> str:
    """What stands in the braces that begin at or after start; the next few characters where none does."""
    text = text[start:].lstrip()
    if not text.startswith("{"):
        return text[:1]
    depth = 0
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:position]
    return text


def _has_large_binomial(text: str) -> bool:
    """Whether a binomial is of long numbers or of binomials: the grammar computes it at once."""
    if _BINOMIAL.search(text) is None:
        return False
    if "choose" in text or re.search(rf"[0-9]{{{MAX_BINOMIAL_DIGITS + 1}}}", text):
        return True
    return any(_BINOMIAL.search(_group(text, match.end())) for match in _BINOMIAL.finditer(text))


def _has_large_power(text: str) -> bool:
    """Whether a power has an exponent of many digits, or of powers, or a factorial is of a long number.

    Numbers that are compared, as the ends of an interval are, are computed while they are read."""
    text = text.replace("**", "^")
    num_digits = 0
    for match in re.finditer(r"\^", text):
        exponent = _group(text, match.end())
        digits = len(re.findall("[0-9]", exponent))
        if digits > MAX_EXPONENT_DIGITS or "^" in exponent or "!" in exponent:
            return True
        if text[: match.start()].rstrip()[-1:] in (")", "}", "]"):
            num_digits += digits
    return num_digits > 2 * MAX_EXPONENT_DIGITS or re.search(r"[0-9]{4,}\s*!|[)}\]!]\s*!", text) is not None


def is_too_large(expression: Any) -> bool:
    """Whether evaluating a sympy expression would need numbers of more than MAX_DIGITS digits, or no bound is known."""
    budget = [MAX_NODES]
    return _digits(expression, budget) > MAX_DIGITS


def is_unbounded(expression: Any) -> bool:
    """Whether a sum, a product, an integral or a limit is in it, which may take any time to evaluate."""
    stack = [expression]
    while stack:
        part = stack.pop()
        if type(part).__name__ in _UNBOUNDED:
            return True
        stack.extend(getattr(part, "args", ()))
    return False


def _digits(expression: Any, budget: list[int]) -> float:
    """An upper estimate of log10 |value|, a symbol counting as 10; infinite beyond what a float holds."""
    budget[0] -= 1
    if budget[0] < 0:
        return math.inf
    name = type(expression).__name__
    if name in _UNBOUNDED:
        return math.inf
    if getattr(expression, "is_Rational", False):
        return max(_length(expression.p), _length(expression.q))
    if getattr(expression, "is_Float", False):
        return _float_digits(expression)
    is_explicit_matrix = getattr(expression, "is_Matrix", False) and not getattr(expression, "is_MatrixExpr", False)
    children = expression.flat() if is_explicit_matrix else getattr(expression, "args", ())
    sizes = [_digits(child, budget) for child in children]
    if not sizes:
        return 1.0
    grows = name in _GROWING or name in ("Pow", "exp")
    if grows and getattr(expression.args[-1], "free_symbols", None):
        return max(sizes) + 1  # stays symbolic
    if name == "Pow":
        return max(sizes[0], 0.1) * _size(expression.args[1], sizes[1])
    if name == "exp":
        return _power(0.5, sizes[0])
    if grows:
        return _power(max(sizes), max(sizes))
    if name == "Mul":
        return sum(sizes)
    return max(sizes) + math.log10(len(sizes))


def _size(exponent: Any, digits: float) -> float:
    """An upper estimate of |exponent|: its value where that is cheap to have."""
    if digits > 12:
        return math.inf
    try:
        return abs(complex(exponent.evalf(15)))
    except (TypeError, ValueError, OverflowError):
        return 10.0**digits


def _power(base_digits: float, exponent_digits: float) -> float:
    if exponent_digits > 12:
        return math.inf
    return max(base_digits, 0.1) * 10**exponent_digits


def _float_digits(number: Any) -> float:
    value = abs(float(number))
    if not math.isfinite(value):
        return math.inf
    return abs(math.log10(value)) if value else 1.0


def _length(number: int) -> float:
    return math.log10(abs(number)) if 0 < abs(number).bit_length() < 1000 else abs(number).bit_length() * 0.30103
