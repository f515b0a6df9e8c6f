"""Which of the choices a completion settles on: text in, the numbers of the choices that its last word names out.

A completion settles by a box, an answer tag or "the answer is"; else by less formal words; else by a line that is
nothing but a choice. The first of these that it uses decides, its last place counts, and what is joined to that place
counts with it. Nothing is guessed: an answer that is left open names several choices or none."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rewards.choice.phrases import (
    ANSWER_BARE,
    ANSWER_IS,
    BECAUSE,
    BETWEEN,
    CONDITION,
    CORRECTION,
    DENIED_AFTER,
    DENIED_BEFORE,
    FILLER,
    INSTEAD,
    IS_CORRECT,
    JOINT,
    NEGATION,
    NO_CHOICE,
    RETRACTION,
    SENTENCE_ENDS,
    SUPPOSED,
    WEAK,
)
from rewards.choice.text import CLOSE, OPEN, Choice, Named, label_mentions, normalize, text_mentions

TAIL_CHARACTERS = 10_000
MAX_FILLERS = 40
MAX_JOINED = 30

NOTHING: Named = frozenset()


class Settled(NamedTuple):
    """What the completion settles on, and by which kind of words: formal, informal, line or none."""

    named: Named
    source: str


class _Statement(NamedTuple):
    """Words that name choices, from start to end: as the answer, as not it (denied), or as its correction."""

    start: int
    end: int
    named: Named
    denied: bool = False
    corrects: bool = False


def settle(completion: str, choices: Sequence[Choice]) -> Settled:
    """The choices that the completion's last word names: one when it is clear, several or none when it is not."""
    reader = _Reader(_after_thought(completion)[-TAIL_CHARACTERS:], choices)
    formal, informal = reader.formal(), reader.informal()
    for source, statements in (("formal", formal), ("informal", informal), ("line", reader.lines())):
        if any(not statement.denied for statement in statements):
            named = reader.last_word(statements, informal)
            denied = NOTHING.union(*(statement.named for statement in formal if statement.denied))
            # Within the formal statements their order decides; what is less formal cannot bring back what they deny.
            return Settled(NOTHING if source != "formal" and named & denied else named, source)
    return Settled(NOTHING, "none")


def _after_thought(completion: str) -> str:
    """What follows the thought; nothing when it never ends."""
    _, closed, rest = completion.rpartition("</think>")
    if closed:
        return rest
    return "" if completion.lstrip().startswith("<think>") else completion


_PAIR = re.compile(r"\s*[).:,\]=-]*\s*")
_APPOSITION = re.compile(r"\s*[,:-]*\s*")
_STOPS = re.compile(rf"[\s)\]}}>\"'.,;:!。」{CLOSE}]*")
_STOPS_IN_LINE = re.compile(rf"[^\S\n]*[)\]}}>\"'.,;:!。」{CLOSE}]*[^\S\n]*(?=\n|\Z)")
_EXPLAINED = re.compile(r"\s*[).:\]-]")
_LISTED = re.compile(r"\s*[):-]")
_QUESTION = re.compile(r"[)\]\"'\s]*\?")
_AS_PRONOUN = re.compile(r"\s+(?!is\b|or\b|and\b|because\b|since\b)[a-z]|'")
_ENCLOSED = re.compile(rf"{OPEN}([^{OPEN}{CLOSE}]*)({CLOSE}|\Z)")


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern that may be empty ends, matched at a place."""
    match = pattern.match(text, at)
    return at if match is None else match.end()


class _Reader:
    """The mentions in one text, and the statements that its words make of them."""

    def __init__(self, completion: str, choices: Sequence[Choice]) -> None:
        self.text = normalize(completion)
        self.texts = text_mentions(self.text, choices)
        self.labels = label_mentions(self.text, [choice.label for choice in choices])
        self.starts = sorted({*self.texts, *self.labels})

    # --- items: a label, the text of a choice, or both; and what is joined to them ---

    def item(self, at: int) -> tuple[Named, int] | None:
        """What is named at this very place, and where that ends."""
        label, text = self.labels.get(at), self.texts.get(at)
        if label is not None and self.text[at : label.end] == "I" and _AS_PRONOUN.match(self.text, label.end):
            label = None
        if label is None or (text is not None and text.end > label.end):
            return None if text is None else self._with_label(text.named, text.end)
        named = label.named | text.named if text is not None and text.end == label.end else label.named
        return self._with_text(named, at, label.end)

    def _with_text(self, named: Named, at: int, end: int) -> tuple[Named, int]:
        """A label, together with the text of a choice that stands after it, as in "B) Paris"."""
        gap = _end(_PAIR, self.text, end)
        text = self.texts.get(gap)
        if text is None:
            return named, end
        if text.named & named:
            return text.named & named, text.end
        between = self.text[end:gap]
        if self.text[at:end] == "A" and between == " ":
            return text.named, text.end  # the article
        if ("." in between or "\n" in between) and not SENTENCE_ENDS.match(self.text, text.end):
            return named, end  # the next sentence
        return named | text.named, text.end

    def _with_label(self, named: Named, end: int) -> tuple[Named, int] | None:
        """The text of a choice, with the label that stands after it; None when the text is the beginning of another."""
        gap = _end(_APPOSITION, self.text, end)
        label = self.labels.get(gap)
        if label is not None and (self.text[end:gap].strip() or self.text[gap] in "(["):
            return named & label.named or named | label.named, label.end
        if BECAUSE.match(self.text, end) or DENIED_AFTER.match(self.text, end) or self._joined(end) is not None:
            return named, end
        return None

    def _joined(self, end: int) -> int | None:
        """Where the next mention begins, when nothing but an "or" or its like lies between."""
        number = bisect_left(self.starts, end)
        if number == len(self.starts) or self.starts[number] > _end(JOINT, self.text, end):
            return None
        start = self.starts[number]
        between = self.text[end:start]
        if between.isspace() and "\n" not in between and start not in self.labels:
            return None
        if "\n" in between and not self._fills_line(start):
            return None
        return start

    def _fills_line(self, start: int) -> bool:
        """Whether the label, the text, or the pair of them that begins here ends its line."""
        text, label = self.texts.get(start), self.labels.get(start)
        ends = [text.end] if text is not None else []
        if label is not None:
            ends.append(self._with_text(label.named, start, label.end)[1])
        return any(_STOPS_IN_LINE.match(self.text, end) for end in ends)

    def items(self, at: int) -> tuple[Named, int] | None:
        """What is named here, together with all that is joined to it, and where it ends."""
        first = self.item(at)
        if first is None:
            return None
        named, end = first
        for _ in range(MAX_JOINED):
            start = self._joined(end)
            further = None if start is None else self.item(start)
            if further is None or DENIED_AFTER.match(self.text, further[1]):
                break
            named, end = named | further[0], further[1]
        return named, end

    # --- statements ---

    def stated(self, start: int, at: int) -> _Statement | None:
        """The statement whose answer follows `at`, over words that say nothing; None when no answer follows."""
        denied = False
        for _ in range(MAX_FILLERS):
            if (found := self.item(at) if denied else self.items(at)) is not None:
                break
            if NO_CHOICE.match(self.text, at):
                return _Statement(start, at, NOTHING)
            skipped = NEGATION.match(self.text, at) or FILLER.match(self.text, at)
            if skipped is None:
                return None
            denied |= skipped.re is NEGATION
            at = skipped.end()
        else:
            return None
        named, end = found
        ruled_out = DENIED_AFTER.match(self.text, end)
        if denied or ruled_out:
            after = ruled_out.end() if ruled_out else end
            gap = _end(INSTEAD, self.text, after)
            # "not A, B" goes on ruling out; "not A but B" does not.
            instead = self.items(gap) if ruled_out or self.text[after:gap].strip(" ,;.:-\n") else None
            if instead is None:
                return _Statement(start, end, named, denied=True)
            named, end = instead
        if _QUESTION.match(self.text, end):
            return None
        return _Statement(start, end, NOTHING if CONDITION.match(self.text, end) else named)

    def formal(self) -> list[_Statement]:
        """What boxes, answer tags and "the answer is" state."""
        found = []
        for match in ANSWER_IS.finditer(self.text):
            if not SUPPOSED.search(self.text[max(0, match.start() - 30) : match.start()]):
                found.append(self.stated(match.start(), match.end()))
        for match in ANSWER_BARE.finditer(self.text):
            item = self.items(match.end())
            if item is not None and (match.end() in self.labels or self._fills_line(match.end())):
                found.append(self.stated(match.start(), match.end()))
        spoken = [statement for statement in found if statement is not None]
        for match in _ENCLOSED.finditer(self.text):
            if not any(match.start() < statement.start < match.end() for statement in spoken):
                found.append(self._enclosed(match))
        if spoken:
            found.append(self._closing_line())
        return [statement for statement in found if statement is not None]

    def _enclosed(self, match: re.Match[str]) -> _Statement:
        """A box or tag: it states what it holds, when that is all it holds."""
        statement = self.stated(match.start(), match.start(1))
        if statement is None or not match[2] or statement.denied or statement.end > match.end(1):
            return _Statement(match.start(), match.end(), NOTHING)
        rest = _end(_STOPS, self.text, statement.end)
        is_explained = bool(_EXPLAINED.match(self.text, statement.end)) and not any(
            statement.end <= start < match.end(1) for start in self.starts
        )
        named = statement.named if rest >= match.end(1) or is_explained else NOTHING
        return _Statement(match.start(), match.end(), named)

    def informal(self) -> list[_Statement]:
        """What "so B.", "I'd go with B." and "B is correct." state: the answer has to end its sentence."""
        found = []
        for pattern in (WEAK, CORRECTION, RETRACTION):
            for match in pattern.finditer(self.text):
                statement = self.stated(match.start(), match.end())
                if statement and not statement.denied and SENTENCE_ENDS.match(self.text, statement.end):
                    found.append(statement._replace(corrects=pattern is not WEAK))
        starts = {item[1]: start for start in reversed(self.starts) if (item := self.item(start)) is not None}
        for match in IS_CORRECT.finditer(self.text):
            statement = self._said_before(match.start(), starts)
            if statement and SENTENCE_ENDS.match(self.text, match.end()):
                found.append(statement._replace(end=match.end()))
        return found

    def _said_before(self, end: int, starts: Mapping[int, int]) -> _Statement | None:
        """The item that ends where "is correct" begins, with those joined to it. `starts` of items, by their ends."""
        if end not in starts:
            return None
        start, named = starts[end], NOTHING
        for _ in range(MAX_JOINED):
            item = self.item(start)
            named |= item[0] if item else NOTHING
            number = bisect_left(self.starts, start) - 1
            before = self.item(self.starts[number]) if number >= 0 else None
            if before is None or self._joined(before[1]) != start:
                break
            start = self.starts[number]
        if DENIED_BEFORE.search(self.text[max(0, start - 30) : start]):
            return None
        return _Statement(start, end, named)

    def _closing_line(self) -> _Statement | None:
        """The last line where it is nothing but a choice, unless it is the end of a list."""
        head, _, last = self.text.rstrip().rpartition("\n")
        before = head.rstrip()
        statement = self._line(len(head) + 1) if last and before and not before.endswith(":") else None
        return None if statement is None or self._line(before.rfind("\n") + 1) is not None else statement

    def _line(self, start: int) -> _Statement | None:
        """The statement of a line that is nothing but a choice."""
        statement = self.stated(start, start)
        if statement is None or statement.denied or not _STOPS_IN_LINE.match(self.text, statement.end):
            return None
        return statement

    def lines(self) -> list[_Statement]:
        """What the first or the last line states by being nothing but a choice; both, where they differ."""
        lines = [match.span() for match in re.finditer(r"[^\n]*\S[^\n]*", self.text)]
        found = []
        for start, _ in {*lines[:1], *lines[-1:]}:
            statement = self._line(start)
            if statement is None and self._is_only_labelled_line(start, lines):
                statement = self.stated(start, start)
            if statement is not None and not statement.denied:
                found.append(statement)
        named = NOTHING.union(*(statement.named for statement in found))
        return [statement._replace(named=named) for statement in sorted(found)[-1:]]

    def _is_only_labelled_line(self, start: int, lines: Sequence[tuple[int, int]]) -> bool:
        """Whether no other line begins with a label and no other is in the line: else choices are gone through."""
        first = bisect_left(self.starts, start)
        in_line = [at for at in self.starts[first + 1 :] if at in self.labels and "\n" not in self.text[start:at]]
        return (
            self._begins_with_label(start)
            and not any(self._begins_with_label(other) for other, _ in lines if other != start)
            and not any(_LISTED.match(self.text, self.labels[at].end) for at in in_line)
        )

    def _begins_with_label(self, start: int) -> bool:
        at = _end(re.compile(r"[\s#>*-]*"), self.text, start)
        return at in self.labels and _EXPLAINED.match(self.text, self.labels[at].end) is not None

    # --- the last word ---

    def last_word(self, statements: Sequence[_Statement], informal: Sequence[_Statement]) -> Named:
        """What the last statement names, with those that are made in one breath with it; what it takes back is gone."""
        ordered = sorted(statements)
        kept = [statement for statement in ordered if not statement.denied]
        last = kept.pop()
        if not last.named:
            return NOTHING
        corrections = [statement for statement in informal if statement.corrects and statement.start >= last.end]
        if corrections:
            return max(corrections).named
        taken_back = RETRACTION.search(self.text, last.end)
        if taken_back:
            later = [statement for statement in informal if statement.start >= taken_back.end()]
            return max(later).named if later else NOTHING
        denied = [statement.named for statement in ordered if statement.denied and statement.start >= last.end]
        if any(named & last.named for named in denied):
            return NOTHING
        breath = [last]
        for earlier in reversed(kept):
            if earlier.end <= breath[-1].start and not BETWEEN.fullmatch(self.text, earlier.end, breath[-1].start):
                break
            breath.append(earlier)
        breath += [statement for statement in informal if statement.start >= last.end]
        return NOTHING.union(*(statement.named for statement in breath)) if all(s.named for s in breath) else NOTHING
