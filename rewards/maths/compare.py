"""Whether two expressions have the same value, found by evaluating both. Works on sympy's objects and imports none.

Equal at every one of a few points is taken for equal everywhere: two different answers that meet at all of them would
have to be made for it, and a completion does not know the gold. Different at one point is different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

DIGITS = 30
SAME = Fraction(1, 10**20)
ABSOLUTE_TOLERANCE = 5e-7
RELATIVE_TOLERANCE = 1e-5

_POINTS = (
    (Fraction(7, 5), Fraction(11, 13), Fraction(17, 7), Fraction(19, 23), Fraction(29, 11), Fraction(31, 37)),
    (Fraction(-13, 9), Fraction(23, 17), Fraction(-5, 8), Fraction(37, 29), Fraction(-41, 19), Fraction(43, 31)),
    (Fraction(3, 11), Fraction(-47, 21), Fraction(53, 9), Fraction(-2, 15), Fraction(59, 14), Fraction(-61, 22)),
)
"""Values for up to six symbols, in the order of their names; of both signs, so that |x| is told from x."""


def same_value(gold: Any, answer: Any) -> bool | None:
    """Whether two scalar expressions are equal; None when that cannot be told by evaluating them.

    Where one of them holds a decimal, to six places and to one part in 10^5; else to 20 digits."""
    names = sorted({str(symbol) for symbol in (*gold.free_symbols, *answer.free_symbols)})
    if len(names) > len(_POINTS[0]):
        return None
    rounded = _has_decimal(gold) or _has_decimal(answer)
    num_points = 0
    for point in _POINTS if names else _POINTS[:1]:
        values = dict(zip(names, point, strict=False))
        pair = _evaluate(gold, values), _evaluate(answer, values)
        if pair[0] is None or pair[1] is None:
            continue
        if not _is_close(pair[0], pair[1], rounded=rounded):
            return False
        num_points += 1
    return True if num_points > (1 if names else 0) else None


def same_values(golds: Iterable[Any], answers: Iterable[Any]) -> bool | None:
    """Whether the expressions are the same in whatever order, each as often; None when that cannot be told."""
    golds, left = list(golds), list(answers)
    if len(golds) != len(left):
        return False
    for gold in golds:
        verdicts = [same_value(gold, answer) for answer in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            return None
        else:
            return False
    return True


def same_relation(gold: Any, answer: Any) -> bool | None:
    """Whether two equations or inequalities say the same; None where that is not told by what is cheap.

    y = f and y = g do when f is g. Else f = 0 and g = 0 do when f / g is one number wherever it is evaluated, and
    inequalities do not when one holds at a point where the other does not."""
    both_equal = gold.is_Equality and answer.is_Equality
    if both_equal and gold.lhs.is_Symbol and answer.lhs.is_Symbol:
        return same_value(gold.rhs, answer.rhs) if str(gold.lhs) == str(answer.lhs) else False
    one, other = gold.lhs - gold.rhs, answer.lhs - answer.rhs
    names = sorted({str(symbol) for symbol in (*one.free_symbols, *other.free_symbols)})
    if not names or len(names) > len(_POINTS[0]):
        return None
    points = [dict(zip(names, point, strict=False)) for point in _POINTS]
    pairs = [(_evaluate(one, values), _evaluate(other, values)) for values in points]
    ratios = [first / second for first, second in pairs if first is not None and second not in (None, 0)]
    if len(ratios) < len(points):
        return None
    if ratios[0] != 0 and all(_is_close(ratios[0], ratio, rounded=False) for ratio in ratios[1:]):
        flipped = ratios[0].is_real and ratios[0] < 0
        same = gold.rel_op == (answer.reversed if flipped and not both_equal else answer).rel_op
        return bool(same)
    if both_equal or len(names) > 1:
        return None if both_equal else False
    return None if all(_holds(gold, x) == _holds(answer, x) for x in _PROBES) else False


_PROBES = tuple(Fraction(number, 6) for number in (-600, -97, -25, -11, -5, -1, 0, 1, 4, 7, 13, 20, 31, 59, 83, 600))


def _holds(relation: Any, x: Fraction) -> bool | None:
    """Whether a relation of one symbol holds where that symbol is x; None where it cannot be told."""
    gap = _evaluate(relation.lhs - relation.rhs, {str(symbol): x for symbol in relation.free_symbols})
    if gap is None or not gap.is_real:
        return None
    return {"<": gap < 0, "<=": gap <= 0, ">": gap > 0, ">=": gap >= 0, "!=": gap != 0}.get(relation.rel_op)


def form_of(expression: Any) -> str:
    """The expression as it is written, terms and factors in a fixed order: equal for what differs in that only."""
    parts = [form_of(part) for part in expression.args]
    name = type(expression).__name__
    if not parts:
        return str(expression)
    return f"{name}({', '.join(sorted(parts) if name in ('Add', 'Mul') else parts)})"


def _has_decimal(expression: Any) -> bool:
    return any(getattr(part, "is_Float", False) for part in _parts(expression))


def _parts(expression: Any) -> Iterable[Any]:
    stack = [expression]
    while stack:
        part = stack.pop()
        yield part
        stack.extend(part.args)


def _evaluate(expression: Any, values: Mapping[str, Fraction]) -> Any:
    """The value as a number of sympy's, real or complex; None where there is none or it is not finite."""
    substitutes = {symbol: _rational(expression, values[str(symbol)]) for symbol in expression.free_symbols}
    try:
        value = expression.xreplace(substitutes).doit().evalf(DIGITS, maxn=200)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy raises what it likes for what it cannot evaluate
        return None
    parts = value.as_real_imag() if getattr(value, "is_number", False) else ()
    return value if parts and all(part.is_Number and part.is_finite for part in parts) else None


def _rational(expression: Any, value: Fraction) -> Any:
    """The fraction as a number of the expression's own package."""
    one = next(iter(expression.free_symbols)) ** 0
    return one * value.numerator / value.denominator


def _is_close(gold: Any, answer: Any, *, rounded: bool) -> bool:
    gap, size = abs(gold - answer), max(abs(gold), abs(answer))
    if rounded:
        return bool(gap <= ABSOLUTE_TOLERANCE and gap <= RELATIVE_TOLERANCE * size)
    return bool(gap <= size / 10**20)
