"""The repetition reward: a penalty for text that goes in circles, 0 where there is none and down to -1.

It looks at the text alone: at the share of n-grams that were there before, and at loops, stretches that repeat the
same words again and again. A few passes, whatever the length of the period."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.types import Reward, Verifier

MAX_WORD_CHARACTERS = 100
"""A longer run of letters is taken apart into its characters, so that a loop without spaces is found as well."""
MAX_WORDS = 50_000
"""Of a longer text only the last so many are looked at."""
ANCHORS_WORDS = (4, 16)
"""Words that must come again in a row before a repetition is followed as a loop: few find the short loops, many are not
misled by what a long one says twice in a period."""
MAX_LOOK_BACK_WORDS = 200

# Scripts that do without spaces: Thai, Lao, Burmese, Khmer, and kana, Han and their neighbours. There, one character
# stands for a word.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# A ruler such as ----- or _____ is one word, up to a hundred marks of it.
_WORD = re.compile(rf"[{_UNSPACED}]|_{{4,100}}|[^\W{_UNSPACED}]+|([^\w\s])\1{{0,99}}")


@dataclass(frozen=True)
class RepetitionOptions:
    """What is still normal. Words are words, marks, and single characters of scripts without spaces.

    `ngram_words`: length of the n-grams. `max_repeated_fraction`: share of them that may have been there before; the
    penalty grows from 0 there to 1 where all of them have. `min_loop_repeats` and `min_loop_words`: how often in a row
    the same words must come, and how many words they must add to the first time, to be a loop. `min_loop_fraction`:
    share of the text that these must be; a loop that goes on where the limit cut the completion counts in any case."""

    ngram_words: int = 8
    max_repeated_fraction: float = 0.5
    min_loop_repeats: int = 3
    min_loop_words: int = 20
    min_loop_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name, least in (("ngram_words", 1), ("min_loop_repeats", 2), ("min_loop_words", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")
        if not 0 <= self.max_repeated_fraction < 1:
            raise ValueError(f"max_repeated_fraction = {self.max_repeated_fraction}: must be at least 0 and below 1")
        if not 0 <= self.min_loop_fraction <= 1:
            raise ValueError(f"min_loop_fraction = {self.min_loop_fraction}: must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Loop:
    """Words `start` to `stop` (exclusive) in which each word is the one `period` words before it, the first `period`
    words excepted."""

    start: int
    stop: int
    period: int

    @property
    def num_repeated(self) -> int:
        """Words that only say again what the first period said."""
        return self.stop - self.start - self.period

    @property
    def num_repeats(self) -> float:
        """How often the period stands there."""
        return (self.stop - self.start) / self.period


def build_repetition(options: RepetitionOptions) -> Verifier:
    """The verifier: -1.0 for a loop, else minus the excess of repeated n-grams, else 0.0; a penalty, never above 0.

    Parts: `repeated`, the share of n-grams that were there before, and `loop`, the share of words in the longest loop
    after its first period. Reads problem["finished"] (taken for True where it is missing)."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        words = split_words(completion)
        repeated = repeated_fraction(words, ngram_words=options.ngram_words)
        loops = [
            loop
            for anchor_words in ANCHORS_WORDS
            for loop in find_loops(words, anchor_words=anchor_words)
            if loop.num_repeats >= options.min_loop_repeats
        ]
        longest = max((loop.num_repeated for loop in loops), default=0)
        is_cut = problem.get("finished", True) is False
        faults = [
            loop
            for loop in loops
            if loop.num_repeated >= options.min_loop_words
            if loop.num_repeated >= options.min_loop_fraction * len(words) or (is_cut and loop.stop == len(words))
        ]
        excess = max(0.0, repeated - options.max_repeated_fraction) / (1 - options.max_repeated_fraction)
        parts = {"repeated": repeated, "loop": longest / len(words) if words else 0.0}
        if faults:
            worst = max(faults, key=lambda loop: loop.num_repeated)
            detail = f"a loop: {worst.period} words {worst.num_repeats:.1f} times"
            return Reward.scored(-1.0, parts=parts, detail=detail)
        return Reward.scored(
            0.0 - excess, parts=parts, detail=f"{repeated:.0%} of the {options.ngram_words}-grams repeat"
        )

    return verifier


def split_words(text: str) -> str:
    """The last MAX_WORDS words of a text as one code point each, the same for the same word; case does not matter.

    Code points make an n-gram a slice."""
    words: list[str] = []
    for match in _WORD.finditer(text.casefold()):
        word = match[0]
        if len(word) > MAX_WORD_CHARACTERS and word[0].isalnum():
            words.extend(word)
        else:
            words.append(word)
    codes: dict[str, str] = {}
    return "".join(codes.setdefault(word, chr(len(codes))) for word in words[-MAX_WORDS:])


def repeated_fraction(words: str, *, ngram_words: int) -> float:
    """The share of n-grams that stand further ahead as well; 0 for a text that has fewer than two."""
    num_ngrams = len(words) - ngram_words + 1
    if num_ngrams < 2:
        return 0.0
    return 1 - len({words[start : start + ngram_words] for start in range(num_ngrams)}) / num_ngrams


def find_loops(words: str, *, anchor_words: int) -> list[Loop]:
    """Stretches that repeat what stands a fixed distance before, at least `anchor_words` of it, in order.

    One pass: a word that is the same as the one `period` before continues the loop; where none goes on, the last time
    that the `anchor_words` up to here stood there gives the next period to follow."""
    loops = []
    last_seen: dict[str, int] = {}
    start = period = 0  # no loop while period is 0
    for position, word in enumerate(words):
        if period and word != words[position - period]:
            loops.append(Loop(start=start, stop=position, period=period))
            period = 0
        anchor = words[position - anchor_words + 1 : position + 1] if position >= anchor_words - 1 else ""
        if anchor:
            if not period and anchor in last_seen:
                period = position - last_seen[anchor]
                start = _first_of(words, start=position - anchor_words + 1 - period, period=period)
            last_seen[anchor] = position
    if period:
        loops.append(Loop(start=start, stop=len(words), period=period))
    return loops


def _first_of(words: str, *, start: int, period: int) -> int:
    """How far back a loop reaches that is known from `start` on: another period may have hidden its beginning."""
    first = max(0, start - MAX_LOOK_BACK_WORDS)
    while start > first and words[start - 1] == words[start - 1 + period]:
        start -= 1
    return start
