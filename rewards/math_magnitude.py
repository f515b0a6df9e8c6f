"""How large the numbers of an unevaluated expression would become, so that towers of powers are seen and not met."""

from __future__ import annotations

import math
from typing import Any

MAX_DIGITS = 1_000
MAX_NODES = 2_000

_UNBOUNDED = frozenset({"Sum", "Product", "Integral", "Limit"})
_GROWING = frozenset(
    {"factorial", "factorial2", "gamma", "binomial", "subfactorial", "RisingFactorial", "FallingFactorial"}
)


def is_too_large(expression: Any) -> bool:
    """Whether evaluating a sympy expression would need numbers of more than MAX_DIGITS digits, or no bound is known.

    Sums, products, integrals and limits have none."""
    budget = [MAX_NODES]
    return _digits(expression, budget) > MAX_DIGITS


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
    children = expression.flat() if getattr(expression, "is_Matrix", False) else getattr(expression, "args", ())
    sizes = [_digits(child, budget) for child in children]
    if not sizes:
        return 1.0
    grows = name in _GROWING or name in ("Pow", "exp")
    if grows and getattr(expression.args[-1], "free_symbols", None):
        return max(sizes) + 1  # stays symbolic
    if name == "Pow":
        return _power(sizes[0], sizes[1])
    if name == "exp":
        return _power(0.5, sizes[0])
    if grows:
        return _power(max(sizes), max(sizes))
    if name == "Mul":
        return sum(sizes)
    return max(sizes) + math.log10(len(sizes))


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
