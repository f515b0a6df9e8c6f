"""The text of a completion in one spelling, and where the labels and the texts of the choices stand in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rewards.choice.phrases import OPTION_WORDS


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the choices: the label it goes by and its text."""

    label: str
    text: str


OPEN, CLOSE = "\ue000", "\ue001"  # around what a box or an answer tag encloses
_DROPPED = re.compile(r"~~[^~\n]{1,200}~~|<\|\w{1,30}\|>|</s>")  # struck out, or a special token
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,5}(?:\{|(?=[A-Za-z0-9(]))")
_SETTING = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mbox|bf|rm|left|right|displaystyle)\b\s?"
)
_MARKS = re.compile(
    r"[*`$]|\\[()\[\],;! ]|(?<![^\W_])_+(?=[^\W_(])|(?<=[^\W_)])_+(?![^\W_])|[\u200b-\u200f\u202a-\u202e\ufeff]"
)
_BRACED = re.compile(r"(?<![\\\w}])\{([^{}]*)\}")


_ONE_SPELLING = str.maketrans({"’": "'", "‘": "'", "−": "-", "–": "-", "—": "-"} | dict.fromkeys('"“”„«»「」『』'))


def normalize(text: str) -> str:
    """The text in one spelling: compatibility forms unified, without what only sets it in Markdown or LaTeX."""
    text = unicodedata.normalize("NFKC", text.replace(OPEN, " ").replace(CLOSE, " "))
    text = text.translate(_ONE_SPELLING).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    text = _TAG.sub(lambda match: CLOSE if match[1] else OPEN, _DROPPED.sub("", text))
    if text.rfind(OPEN) > text.rfind(CLOSE):
        text += CLOSE  # the closing tag may have been the stop string
    text = _MARKS.sub("", _SETTING.sub("", _mark_boxes(text)))
    text = _BRACED.sub(r"\1", _BRACED.sub(r"\1", text))
    # No long runs of white space: a pattern that may begin with one would be tried at each of its characters.
    return re.sub(r"\s+", lambda run: "\n" * min(2, run[0].count("\n")) or " ", text)


def _mark_boxes(text: str) -> str:
    r"""The text with \boxed{…} as OPEN … CLOSE. A box that is never closed is an OPEN alone."""
    closing = _closing_braces(text)
    marks: dict[int, tuple[int, str]] = {}  # where the mark stands, where the text goes on, the mark
    for match in _BOX.finditer(text):
        marks[match.start()] = (match.end(), OPEN)
        if not match[0].endswith("{"):
            marks[match.end() + 1] = (match.end() + 1, CLOSE)
        elif match.end() - 1 in closing:
            end = closing[match.end() - 1]
            marks[end] = (end + 1, CLOSE)
    pieces, done = [], 0
    for start in sorted(marks):
        after, mark = marks[start]
        pieces += [text[done:start], mark]
        done = after
    return "".join([*pieces, text[done:]])


def _closing_braces(text: str) -> dict[int, int]:
    """For each opening brace that is closed, where."""
    closing, opened = {}, []
    for match in re.finditer(r"[{}]", text):
        if match[0] == "{":
            opened.append(match.start())
        elif opened:
            closing[opened.pop()] = match.start()
    return closing


Named = frozenset[int]
"""Numbers of choices, from 0; more than one where the words fit several."""


class Mention(NamedTuple):
    """Where the label or the text of a choice ends, and which choices it may mean."""

    end: int
    named: Named


_LETTERS = "0-9A-Za-z_\u00aa-\u052f\u1e00-\u1eff"  # of scripts that hold words apart by spaces
_BEFORE = rf"(?<![{_LETTERS}])(?<![{_LETTERS}]['.-])"
_AFTER = rf"(?![{_LETTERS}]|'(?![td][iıuü]r)[A-Za-z]|-[{_LETTERS}])"
_ARTICLE = re.compile(r"(?:a|an|the)\s+", re.IGNORECASE)


def core_of(text: str) -> str:
    """The text of a choice as it is compared: one spelling, no article, no full stop, no case."""
    stripped = normalize(text).strip(" \n.,;:\"'").casefold()
    bare = _ARTICLE.sub("", stripped, count=1) if _ARTICLE.match(stripped) else stripped
    return re.sub(r"\s+", " ", bare) or stripped


def text_mentions(text: str, choices: Sequence[Choice]) -> dict[int, Mention]:
    """Where the text of a choice stands; of several that begin at a place the longest."""
    named: dict[str, set[int]] = {}
    for number, choice in enumerate(choices):
        core = core_of(choice.text)
        if core:
            named.setdefault(core, set()).add(number)
    if not named:
        return {}
    patterns = []
    for core in sorted(named, key=len, reverse=True):
        before = (
            rf"{_BEFORE}(?<![+/^.,-])" if core[0].isdigit() else _BEFORE if re.match(rf"[{_LETTERS}]", core) else ""
        )
        after = (
            rf"{_AFTER}(?![%°^/]|[.,:][0-9])"
            if core[-1].isdigit()
            else _AFTER
            if re.search(rf"[{_LETTERS}]\Z", core)
            else ""
        )
        patterns.append(before + r"\s+".join(map(re.escape, core.split(" "))) + after)
    pattern = re.compile(rf"(?:{_BEFORE}(?:a|an|the)\s+)?(?P<core>{'|'.join(patterns)})", re.IGNORECASE)
    found = {}
    for match in pattern.finditer(text):
        numbers = named.get(re.sub(r"\s+", " ", match["core"]).casefold())
        if numbers:
            found[match.start()] = Mention(match.end(), frozenset(numbers))
    return found


def label_mentions(text: str, labels: Sequence[str]) -> dict[int, Mention]:
    """Where a label stands: in brackets, after a word such as option, alone, or in lower case before a mark."""
    numbers = {label.casefold(): number for number, label in enumerate(labels)}
    exact = "|".join(re.escape(label) for label in dict.fromkeys([*labels, *map(str.upper, labels)]))
    lower = "|".join(map(re.escape, numbers))
    pattern = re.compile(
        rf"(?i:[(\[{{]\s*(?:{OPTION_WORDS}\s*)?({exact})\s*[)\]}}])"
        rf"|(?i:{OPTION_WORDS}\s*[:#]?\s*[(\[]?\s*({exact})(?:\s*[)\]])?{_AFTER})"
        rf"|{_BEFORE}({exact}){_AFTER}(?![+#]|\.[A-Z](?![a-z])|%|[.,][0-9])"
        rf"|{_BEFORE}({lower})(?=\s*(?:[).:,;\]]|\n|\Z|{CLOSE}))(?![.,][0-9])"
    )
    found = {}
    for match in pattern.finditer(text):
        label = next(group for group in match.groups() if group is not None).casefold()
        found[match.start()] = Mention(match.end(), frozenset({numbers[label]}))
    return found
