r"""The text of an answer as LaTeX with nothing in it that only sets it. Decides what is language; knows no number."""

from __future__ import annotations

import re

FUNCTION_WORDS = frozenset(
    (
        *(
            "sqrt",
            "frac",
            "dfrac",
            "tfrac",
            "pi",
            "sin",
            "cos",
            "tan",
            "cot",
            "sec",
            "csc",
            "log",
            "ln",
            "exp",
            "infty",
        ),
        *("infinity", "inf", "cdot", "times", "max", "min", "gcd", "lcm", "mod"),
    )
)
LINKING_WORDS = frozenset(
    (
        "or",
        "and",
        "not",
        "to",
        "but",
        "maybe",
        "perhaps",
        "either",
        "plus",
        "minus",
        "versus",
        "possibly",
        "alternatively",
    )
)


def clean(text: str) -> str:
    """The text without delimiters, text commands, thin spaces, bold marks, invisible characters, a final full stop."""
    if not text.isascii():
        text = _plain_letters(text)
    text = text.strip().strip("`").strip().removeprefix("**").removesuffix("**")
    text = _SIZES.sub("", _PYTHON_POWER.sub("^", text))
    text = _THOUSANDS.sub(",", text)
    text = text.replace(r"\!", "").replace(r"\,", " ").replace(r"\;", " ").replace("~", " ")
    text = _BACKSLASH_SPACE.sub(" ", text)
    text = (
        text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\cfrac", r"\frac").replace(r"\%", "%")
    )
    text = _FRACTION_FROM_BRACES.sub(r"\\frac{\1}{\2\3}", _FRACTION_FROM_DIGITS.sub(r"\\frac{\1}", text))
    text = _DEGREES.sub(" degrees", _TEXT_COMMAND.sub(r" \1 ", text))
    if "begin" not in text:
        text = _DOUBLE_BACKSLASH.sub(r"\\", text)
    for start, end in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(start) and text.endswith(end):
            text = text[2:-2]
    if text.startswith("$"):
        text = _WRAPPED.sub(r"\1", text)
    return text.strip().removesuffix(".").rstrip(" \\")


def as_formula(text: str) -> str:
    r"""The text with what its writer meant by sqrt(2), 2pi, sin x or $3$ and $4$ in LaTeX, and without a unit."""
    text = _UNIT_COMMAND.sub(_keep_linking, text.strip())
    text = clean(_DEGREES.sub("", text)).replace("$", " ")
    text = _BARE_FUNCTION.sub(r"\\\1 ", text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    text = _INDEX.sub(r"_{\1}", text)
    return _LINK.sub(", ", _BRACE_SPACE.sub("", text))


def words_of(text: str) -> str:
    """The text for a comparison as words: without case, spaces and what only sets it."""
    return _SETTING.sub("", clean(text)).casefold()


def is_words(text: str) -> bool:
    """Whether the text is language (Tuesday, not possible, B), which is compared letter by letter."""
    words = re.sub(r"[(){}'-]", " ", clean(text)).split()
    if not words or not all(word.isalpha() and not is_function_word(word) for word in words):
        return False
    return len(words) > 1 or len(words[0]) > 3 or words[0].isupper() or words[0].lower() in {"yes", "no", "odd"}


def is_function_word(word: str) -> bool:
    """Whether a word in a formula is mathematics, not language."""
    return word in FUNCTION_WORDS


def choice_of(text: str) -> str | None:
    """The letter of an answer to a multiple choice: C for `C`, `(C)`, `C. 42`, `(C) 42`; None where there is none."""
    match = _CHOICE.match(clean(text))
    return match[1] if match else None


def is_prose(text: str) -> bool:
    """Whether a text holds words that a formula does not: several letters in lower case with a space beside them."""
    return any(
        not (is_function_word(word) or word in LINKING_WORDS) for word in _PROSE_WORD.findall(_NO_PROSE.sub(" ", text))
    )


_TEXT_COMMAND = re.compile(r"\\(?:text[a-z]{0,6}|math(?:rm|bf|it|sf|tt)|mbox|hbox|operatorname)\s?\{([^{}]*)\}")
_UNIT_COMMAND = re.compile(
    r"(?<=[^\s$])\s*\\(?:text[a-z]{0,6}|mathrm|mbox|hbox)\s?\{([A-Za-z\s./~-]*)\}(?:\^\{?[0-9]\}?)?\s*(?=[.$]*\s*\Z)"
)
_PYTHON_POWER = re.compile(r"(?<=[\w)}])\s?\*\*\s?(?=[\w({-])")
_SIZES = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle)(?![A-Za-z])|\\q?quad")
_THOUSANDS = re.compile(r"\s*\{\s*,\s*\}\s*(?=[0-9])|,\\!\s*(?=[0-9]{3})")
_FRACTION_FROM_DIGITS = re.compile(r"\\frac\s*([0-9])\s*(?=[0-9{])")
_FRACTION_FROM_BRACES = re.compile(r"\\frac\s*\{([^{}]*)\}\s*(?:([0-9])|\{([^{}]*)\})")
_DEGREES = re.compile(r"\^\{?\s?\\circ\s?\}?|\\degree|°")
_WRAPPED = re.compile(r"\A\${1,2}\s*([^$]*?)\s*\${1,2}(?=[\s%.]|\Z)")
_BACKSLASH_SPACE = re.compile(r"(?<!\\)\\(?=\s)")
_DOUBLE_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z{}%])")
_BARE_FUNCTION = re.compile(r"(?<![A-Za-z\\])(sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![A-Za-z])")
_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_INDEX = re.compile(r"_\{\s?\\([a-z]+)\s?\}")
_LINK = re.compile(r"\s*(?:,\s*)?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*(?:,\s*)?")
_BRACE_SPACE = re.compile(r"(?<=[{(])\s+|\s+(?=[})])")
_SETTING = re.compile(r"[\s${}()]+")
_CHOICE = re.compile(r"\(?([A-J])(?:\)?\s*\Z|\)|[.:]\s)")
_NO_PROSE = re.compile(rf"{_TEXT_COMMAND.pattern}|\\(?:begin|end)\s?{{[a-z]*\*?}}(?:{{[a-z|]*}})?")
_PROSE_WORD = re.compile(
    r"(?<![A-Za-z\\])[a-z]{2,}(?=\s)|(?<=\s)[a-z]{2,}(?![A-Za-z])|(?<![A-Za-z\\])[A-Z]?[a-z]{4,}(?![A-Za-z({])"
)

_LETTERS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full width
        **dict.fromkeys(map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF))),
        **dict.fromkeys("\u00a0\u2009\u202f\u3000", " "),
        **dict.fromkeys("−–‐‑", "-"),
        **{"π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "≤": r"\leq ", "≥": r"\geq "},
        **{"≠": r"\neq ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "≈": r"\approx ", "√": r"\sqrt "},
        **{"²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "∅": r"\emptyset "},
        **{"θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda "},
    }
)


def _plain_letters(text: str) -> str:
    """The text with LaTeX for signs, narrow letters for wide ones, and nothing that cannot be seen."""
    return text.translate(_LETTERS)


def _keep_linking(match: re.Match[str]) -> str:
    """Nothing in place of a unit; the text itself where it is a word that joins or denies."""
    return match[0] if LINKING_WORDS.intersection(match[1].lower().split()) else " "
