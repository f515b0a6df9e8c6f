"""Plain numbers, exactly: separators, currencies, percent, fractions, units. No package is needed for most answers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.maths.text import FUNCTION_WORDS, LINKING_WORDS, clean

MAX_DIGITS = 400
ABSOLUTE_TOLERANCE = Fraction(5, 10**7)
RELATIVE_TOLERANCE = Fraction(1, 10**5)

NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?:(?<![\w)\]}])[-+−]\s?)?(?:\\?\$|[€£])?(?:(?<=[$€£])[-−])?"
    r"(?:[0-9]{1,9}[ ][0-9]{1,9}/[0-9]{1,9}"
    r"|(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+(?:,[0-9]{1,2}(?![0-9,]))?)?"
    r"(?:(?<=[0-9])\.[0-9]+|(?<=[0-9])|\.[0-9]+)(?:\s?/\s?[0-9]+)?)(?:\s?\\?%)?"
)
"""A number in running text."""


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number as it was written: its value as it stands (50 for 50 %), and what stands with it."""

    value: Fraction
    is_decimal: bool
    is_percent: bool
    units: tuple[str, ...]


def read_number(text: str) -> PlainNumber | None:
    """The number that the whole text is, such as `-$1,234.50`, `3/4`, `\\frac{3}{4}`, `1.5e3`, `12\\%`, `5 cm`.

    None for anything else, and for numbers of more than MAX_DIGITS digits."""
    match = _PLAIN.match(clean(text))
    if match is None or len(match["body"]) > MAX_DIGITS:
        return None
    percent, units = _read_rest(match["rest"])
    value = _read_body(match["body"])
    if units is None or value is None:
        return None
    if match["power"]:
        value *= Fraction(10) ** int(_INTEGER.findall(match["power"].replace("+", ""))[-1])
    if units and units[0] in _MULTIPLIERS:
        value *= _MULTIPLIERS[units[0]]
    if "-" in (match["sign"] or "") + (match["inner_sign"] or ""):
        value = -value
    if match["currency"]:
        units = (*units, _CURRENCIES[match["currency"]])
    return PlainNumber(value, "." in match["body"] or bool(match["power"]), percent, tuple(dict.fromkeys(units)))


def read_decimal_comma(text: str) -> PlainNumber | None:
    """The number of a text that writes its decimals behind a comma: 2,74 and 0,125, not 1,000."""
    text = clean(text)
    return read_number(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text) else None


def same_number(gold: PlainNumber, answer: PlainNumber) -> bool:
    """Whether the answer says what the gold says.

    Whole numbers and fractions must be equal; where one is a decimal, to six places and to one part in 10^5. A percent
    sign on one side only may be meant or left out (50 % for 50 and for 0.5). A unit may be left out; two known units
    that differ are two answers."""
    gold_units, answer_units = _known_units(gold.units), _known_units(answer.units)
    if gold_units and answer_units and gold_units != answer_units:
        return False
    golds, answers = [gold.value], [answer.value]
    if gold.is_percent and not answer.is_percent:
        golds.append(gold.value / 100)
    if answer.is_percent and not gold.is_percent:
        answers.append(answer.value / 100)
    rounded = gold.is_decimal or answer.is_decimal
    return any(_is_close(one, other, rounded=rounded) for one in golds for other in answers)


def as_latex(number: PlainNumber) -> str:
    """The number without its units, for a parser of LaTeX; a decimal keeps its point, so that it is known for one."""
    value = number.value
    if number.is_decimal:
        decimal = float(value) if abs(value) < 10**300 else math.inf  # which no grammar reads
        mantissa, exponent = f"{decimal:.15e}".partition("e")[::2]
        short = f"{decimal:.15g}"
        latex = (
            rf"{mantissa} \cdot 10^{{{int(exponent or 0)}}}" if "e" in short else short + ("" if "." in short else ".0")
        )
    else:
        latex = str(value.numerator)
        if value.denominator != 1:
            latex = rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    return latex + (r"\%" if number.is_percent else "")


_BRACED = r"\{\s?-?[0-9]+\s?\}"
_PLAIN = re.compile(
    r"(?P<sign>[-+])?\s?(?:\\?(?P<currency>[$€£])\s?(?P<inner_sign>[-+])?)?"
    rf"(?P<body>(?:[0-9]+\s*)?\\frac{_BRACED}{_BRACED}|(?:[0-9]+(?:[ ][0-9]{{3}})*[ ]+)?[0-9]+\s?/\s?[0-9]+"
    r"|(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[1-9][0-9]{0,2}(?:[ ][0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?:\.[0-9]*)?|\.[0-9]+)(?P<power>[eE][-+]?[0-9]{1,3}|\s?(?:\\times|\\cdot|\*)\s?10\s?\^\s?(?:\{\s?[-+]?[0-9]{1,3}\s?\}|[0-9]))?"
    r"(?P<rest>[^0-9].*)?\Z",
    re.DOTALL,
)
_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|[-+]?0,[0-9]+")

_NO_UNITS = FUNCTION_WORDS | LINKING_WORDS
_MULTIPLIERS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound"}
_CURRENCY_SIGN = re.compile(r"\A\s?\\?([$€£])")
_UNIT_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "mg": "mg milligram",
    "g": "g gram",
    "kg": "kg kilogram",
    "pound": "lb lbs pound",
    "ounce": "oz ounce",
    "ton": "ton tonne",
    "second": "s sec second",
    "minute": "min minute",
    "hour": "h hr hrs hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "yr year",
    "ml": "ml milliliter millilitre",
    "liter": "l liter litre",
    "gallon": "gal gallon",
    "dollar": "dollar usd buck",
    "cent": "cent",
    "euro": "euro eur",
    "degree": "degree deg",
    "mph": "mph",
    "kmh": "kmh kph",
}
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in names.split()}
KNOWN_UNITS = frozenset(_UNIT_NAMES)
_SPEEDS = {frozenset({"mile", "hour"}): frozenset({"mph"}), frozenset({"km", "hour"}): frozenset({"kmh"})}


_TRAILING_UNIT = re.compile(r"(?<=[0-9})])\s+([a-z]{2,12})(?:\s?\^\s?\{?[0-9]\}?)?\s*\Z")


def without_unit(formula: str) -> str:
    """The formula without a known unit at its end; one of one letter is taken for a symbol."""
    match = _TRAILING_UNIT.search(formula)
    known = match is not None and _canonical((match[1],))[0] in KNOWN_UNITS
    return formula[: match.start()] if match and known else formula


def _read_rest(rest: str | None) -> tuple[bool, tuple[str, ...] | None]:
    """Whether what follows the digits says percent, and its units; None for units when it is neither.

    A unit follows a space or is a known one, so that 5x stays a product."""
    rest = _CURRENCY_SIGN.sub(lambda match: " " + _CURRENCIES[match[1]], rest or "")
    text = re.sub(r"(?<=[A-Za-z])\s?(?:\^\{?[23]\}?|[²³])", "", rest)
    percent = bool(re.match(r"\s*(?:%|per\s?cent(?:age)?\b|pct\b)", text))
    if percent:
        text = re.sub(r"\A\s*(?:%|per\s?cent(?:age)?\b|pct\b)", "", text)
    tokens = [token for token in re.split(r"[\s/.*-]+", text) if token]
    if len(tokens) > 4 or any(not token.isalpha() or token.lower() in _NO_UNITS for token in tokens):
        return percent, None
    attached = not rest[:1].isspace() and not percent
    units = tuple(token.lower() for token in tokens)
    for position, unit in enumerate(_canonical(units)):
        if unit not in KNOWN_UNITS and (len(unit) < 3 or (attached and position == 0)):
            return percent, None
    return percent, units


def _known_units(units: tuple[str, ...]) -> frozenset[str]:
    known = frozenset(_canonical(units)) & KNOWN_UNITS
    return _SPEEDS.get(known, known)


def _canonical(units: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_UNITS.get(unit, _UNITS.get(unit.removesuffix("s"), unit)) for unit in units)


def _read_body(body: str) -> Fraction | None:
    if "/" not in body and "frac" not in body:
        return Fraction(re.sub(r"[,\s]", "", body).rstrip(".") or "0")
    *whole, over, under = _INTEGER.findall(body)
    if int(under) == 0 or (whole and not 0 <= int(over) < int(under)):
        return None
    return int("".join(whole) or 0) + Fraction(int(over), int(under))


def _is_close(gold: Fraction, answer: Fraction, *, rounded: bool) -> bool:
    if not rounded:
        return gold == answer
    gap = abs(gold - answer)
    return gap <= ABSOLUTE_TOLERANCE and gap <= RELATIVE_TOLERANCE * abs(gold)
