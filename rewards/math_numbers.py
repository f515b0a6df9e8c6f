"""Plain numbers, exactly: separators, currencies, percent, fractions, units. No package is needed for most answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 400
ABSOLUTE_TOLERANCE = Fraction(5, 10**7)
RELATIVE_TOLERANCE = Fraction(1, 10**5)

NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?:(?<![\w)\]}])[-+−]\s?)?(?:\\?\$|[€£])?(?:(?<=[$€£])[-−])?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:(?<=[0-9])\.[0-9]+|(?<=[0-9])|\.[0-9]+)"
    r"(?:\s?/\s?[0-9]+)?(?:\s?\\?%)?"
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
    if units and units[0] in _MULTIPLIERS:
        value *= _MULTIPLIERS[units[0]]
    if "-" in (match["sign"] or "") + (match["inner_sign"] or ""):
        value = -value
    if match["currency"]:
        units = (*units, _CURRENCIES[match["currency"]])
    body = match["body"]
    return PlainNumber(value, "." in body or "e" in body.lower(), percent, tuple(dict.fromkeys(units)))


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
    """The number without its units, for a parser of LaTeX."""
    if number.is_decimal:
        latex = f"{float(number.value):.12f}"
    else:
        sign = "-" if number.value < 0 else ""
        latex = rf"{sign}\frac{{{abs(number.value.numerator)}}}{{{number.value.denominator}}}"
        if number.value.denominator == 1:
            latex = str(number.value.numerator)
    return latex + (r"\%" if number.is_percent else "")


def clean(text: str) -> str:
    """The text without what only sets it: delimiters, text commands, thin spaces, bold marks, a final full stop."""
    text = text.strip().strip("`").strip().removeprefix("**").removesuffix("**")
    text = _SIZES.sub("", _PYTHON_POWER.sub("^", text.replace("−", "-")))
    text = text.replace(r"\!", "").replace("{,}", ",").replace(r"\,", " ").replace(r"\;", " ").replace("~", " ")
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\%", "%")
    text = _DEGREES.sub(" degrees", _TEXT_COMMAND.sub(r" \1 ", text))
    if text.startswith(r"\(") and text.endswith(r"\)"):
        text = text[2:-2]
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    return text.strip().removesuffix(".").strip()


def is_function_word(word: str) -> bool:
    """Whether a word in a formula is mathematics, not language."""
    return word in _FUNCTION_WORDS


_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|textit|operatorname)\s?\{([^{}]*)\}")
_PYTHON_POWER = re.compile(r"(?<=[\w)}])\s?\*\*\s?(?=[\w({-])")
_SIZES = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg)(?![A-Za-z])")
_DEGREES = re.compile(r"\^\{?\\circ\}?|\\degree|°")
_PLAIN = re.compile(
    r"(?P<sign>[-+])?\s?(?:\\?(?P<currency>[$€£])\s?(?P<inner_sign>[-+])?)?"
    r"(?P<body>[0-9]+\s*\\frac\{[0-9]+\}\{[0-9]+\}|\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]+\s+[0-9]+\s?/\s?[0-9]+"
    r"|[0-9]+\s?/\s?[0-9]+"
    r"|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?:\s[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?"
    r"|\.[0-9]+)(?P<rest>[^0-9].*)?\Z",
    re.DOTALL,
)
_FRACTION = re.compile(r"(?:(?P<whole>[0-9]+)\s*)?(?:\\frac\{|\b)(?P<over>[0-9]+)(?:\}\{|\s?/\s?)(?P<under>[0-9]+)\}?")

_FUNCTION_WORDS = frozenset(
    ("sqrt", "frac", "pi", "sin", "cos", "tan", "log", "ln", "exp", "infty", "infinity", "inf", "cdot", "times")
)
_NO_UNITS = _FUNCTION_WORDS | {"or", "and", "not", "to", "but", "maybe", "perhaps", "either", "plus", "minus", "versus"}
_MULTIPLIERS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound"}
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


def _read_rest(rest: str | None) -> tuple[bool, tuple[str, ...] | None]:
    """Whether what follows the digits says percent, and its units; None for units when it is neither.

    A unit follows a space or is a known one, so that 5x stays a product."""
    rest = rest or ""
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
    fraction = _FRACTION.fullmatch(body)
    if fraction is not None:
        under = int(fraction["under"])
        return int(fraction["whole"] or 0) + Fraction(int(fraction["over"]), under) if under else None
    return Fraction(re.sub(r"[,\s]", "", body).rstrip(".") or "0")


def _is_close(gold: Fraction, answer: Fraction, *, rounded: bool) -> bool:
    if not rounded:
        return gold == answer
    gap = abs(gold - answer)
    return gap <= ABSOLUTE_TOLERANCE and gap <= RELATIVE_TOLERANCE * abs(gold)
