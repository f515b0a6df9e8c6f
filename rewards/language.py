"""The reward `language`: is the prose of a completion in the wanted language, all of it?

First by script, which is exact: a Chinese word in an English thought is seen whatever stands around it. Then by
langdetect in windows, which tells languages of one script apart where there is enough text to tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from rewards.prose.detection import LANGUAGES, codes_of, language_probabilities, prepare_detection
from rewards.prose.words import count_words, prose_of
from rewards.types import Reward, Verifier

WINDOW_CHARACTERS = 200
MAX_WINDOWS = 12
"""A longer text has larger windows, of which langdetect sees the first MAX_SEEN_CHARACTERS."""
MAX_SEEN_CHARACTERS = 1_000

SCRIPTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {code: frozenset({"LATIN"}) for code in LANGUAGES}
    | {code: frozenset({"ARABIC"}) for code in ("ar", "fa", "ur")}
    | {code: frozenset({"CYRILLIC"}) for code in ("bg", "mk", "ru", "uk")}
    | {code: frozenset({"DEVANAGARI"}) for code in ("hi", "mr", "ne")}
    | {code: frozenset({"CJK"}) for code in ("zh-cn", "zh-tw")}
    | {"ja": frozenset({"HIRAGANA", "KATAKANA", "CJK"}), "ko": frozenset({"HANGUL"}), "th": frozenset({"THAI"})}
    | {"bn": frozenset({"BENGALI"}), "el": frozenset({"GREEK"}), "gu": frozenset({"GUJARATI"})}
    | {"he": frozenset({"HEBREW"}), "kn": frozenset({"KANNADA"}), "ml": frozenset({"MALAYALAM"})}
    | {"pa": frozenset({"GURMUKHI"}), "ta": frozenset({"TAMIL"}), "te": frozenset({"TELUGU"})}
)
"""The scripts that a language is written in, by langdetect's codes."""


@dataclass(frozen=True)
class LanguageOptions:
    """The wanted language, or the problem's key that names it, and how much else is let pass.

    `borrowed_fraction`: share of words in Latin letters (names, terms) that a language of another script may have.
    `answer_after`: only what follows its first occurrence is judged. `too_short`: what fewer than `min_words` words of
    prose are."""

    language: str | None = None
    language_key: str = "language"
    score: Literal["all", "fraction"] = "all"
    min_script_fraction: float = 0.98
    min_language_fraction: float = 0.8
    borrowed_fraction: float = 0.25
    min_words: int = 12
    too_short: Literal["abstain", "pass", "fail"] = "abstain"
    answer_after: str | None = None

    def __post_init__(self) -> None:
        if self.language is not None and not codes_of(self.language):
            raise ValueError(f"language = {self.language!r}: must be one of {', '.join(sorted(LANGUAGES))}, zh")
        for name in ("min_script_fraction", "min_language_fraction", "borrowed_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be from 0 to 1")
        if self.min_words < 1:
            raise ValueError(f"min_words = {self.min_words!r}: must be 1 or more")
        if self.answer_after == "":
            raise ValueError("answer_after = '': must be a text such as </think>; leave it out to judge everything")


def build_language(options: LanguageOptions) -> Verifier:
    """The verifier: with score `all` 1.0 when both shares are large enough, with `fraction` the smaller of the two.

    Reads problem[language_key] where the option `language` is left out. Parts: `script`, the share of words in the
    wanted script; `language`, the share of the text that langdetect finds in the wanted language (left out where the
    script decides already); `prose`, the share of the words that were judged."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        wanted = problem.get(options.language_key) if options.language is None else options.language
        codes = codes_of(wanted) if isinstance(wanted, str) else frozenset[str]()
        if not codes:
            return Reward.error(
                f"problem[{options.language_key!r}] = {wanted!r:.80}: must be a language code of langdetect's, such "
                f"as en, de or zh; or set the option language"
            )
        judged = completion if options.answer_after is None else completion.partition(options.answer_after)[2]
        if not judged.strip():
            return Reward.scored(0.0, detail="nothing to judge")
        prose = prose_of(judged)
        words = count_words(prose)
        if words.total() < options.min_words:
            return _too_short(words.total(), options)
        return _judge(prose, words, codes, num_words=count_words(judged).total(), options=options)

    return verifier


def prepare_language() -> None:
    """Load langdetect's profiles."""
    prepare_detection()


def _too_short(num_words: int, options: LanguageOptions) -> Reward:
    detail = f"{num_words} words of prose, judged from {options.min_words} on"
    if options.too_short == "abstain":
        return Reward.abstained(detail)
    return Reward.scored(float(options.too_short == "pass"), detail=detail)


def _judge(
    prose: str, words: Counter[str], codes: frozenset[str], *, num_words: int, options: LanguageOptions
) -> Reward:
    script = script_fraction(words, codes, borrowed_fraction=options.borrowed_fraction)
    parts = {"script": script, "prose": min(1.0, words.total() / num_words)}
    detail = f"wanted {' or '.join(sorted(codes))}; words by script: {dict(words.most_common(3))}"
    if options.score == "all" and script < options.min_script_fraction:
        return Reward.scored(0.0, parts=parts, detail=detail)
    language = language_fraction(prose, codes)
    detail += f"; {language:.0%} of the text in the language"
    enough = script >= options.min_script_fraction and language >= options.min_language_fraction
    return Reward.scored(
        min(script, language) if options.score == "fraction" else float(enough),
        parts={**parts, "language": language},
        detail=detail,
    )


def script_fraction(words: Counter[str], codes: frozenset[str], *, borrowed_fraction: float) -> float:
    """The share of words in the scripts of the languages, 0 to 1.

    Words in Latin letters, to a language that is not written in them, count only beyond the share it may borrow."""
    scripts = _scripts_of(codes)
    wanted = sum(words[script] for script in scripts)
    foreign = float(words.total() - wanted)
    if "LATIN" not in scripts:
        foreign -= min(words["LATIN"], borrowed_fraction * words.total())
    return wanted / (wanted + foreign) if wanted else 0.0


def language_fraction(text: str, codes: frozenset[str]) -> float:
    """The share of the text, window by window, that is in one of the languages, 0 to 1.

    A window that is mostly in other scripts is not. Where no other language could be written as it is (Greek, Thai,
    Chinese as such) it is; where one could, langdetect's probability is what it counts for."""
    scripts = _scripts_of(codes)
    rivals = frozenset(code for code in LANGUAGES - codes if SCRIPTS[code] <= scripts)
    total = 0.0
    for window in _windows(text):
        seen = window[:MAX_SEEN_CHARACTERS]
        words = count_words(seen)
        if 2 * sum(words[script] for script in scripts) < words.total():
            continue
        probabilities = language_probabilities(seen, among=codes | rivals) if rivals else {}
        total += len(window) * (sum(probabilities.get(code, 0.0) for code in codes) if rivals else 1.0)
    return min(1.0, total / len(text))


def _scripts_of(codes: frozenset[str]) -> frozenset[str]:
    return frozenset[str]().union(*(SCRIPTS[code] for code in codes))


def _windows(text: str) -> list[str]:
    """The text in pieces of one size; what is left at the end, when it is too short to tell, goes with the last."""
    size = max(WINDOW_CHARACTERS, -(-len(text) // MAX_WINDOWS))
    starts = list(range(0, len(text), size))
    if len(starts) > 1 and len(text) - starts[-1] < size / 2:
        starts.pop()
    return [text[start:stop] for start, stop in zip(starts, [*starts[1:], len(text)], strict=True)]
