"""Checkers of words, letters, case and language. Each returns its complaint, empty when the instruction is followed."""

from __future__ import annotations

import re

from rewards.instructions.counting import compare
from rewards.prose.detection import detect_language
from rewards.prose.sentences import count_capital_words

ENGLISH = frozenset({"en"})


def existence(text: str, *, keywords: tuple[str, ...]) -> str:
    """Every keyword stands somewhere, in any case, if only as a part of a word."""
    missing = [keyword for keyword in keywords if not re.search(re.escape(keyword), text, re.IGNORECASE)]
    return f"without {', '.join(map(repr, missing))}" if missing else ""


def forbidden_words(text: str, *, forbidden_words: tuple[str, ...]) -> str:
    """None of the words stands there as a word of its own, in any case."""
    found = [word for word in forbidden_words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)]
    return f"with {', '.join(map(repr, found))}" if found else ""


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> str:
    """How often a keyword stands there, in any case, parts of words included."""
    num_found = len(re.findall(re.escape(keyword), text, re.IGNORECASE))
    return compare(num_found, relation, frequency, f"times {keyword!r}")


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> str:
    """How often a character stands there, in any case."""
    return compare(text.lower().count(letter.lower()), let_relation, let_frequency, f"times {letter!r}")


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> str:
    """How many words are in capitals."""
    return compare(count_capital_words(text), capital_relation, capital_frequency, "words in capitals")


def english_capital(text: str) -> str:
    """English, all in capitals."""
    return response_language(text, language=ENGLISH) if text.isupper() else _first_wrong_case(text, "islower")


def english_lowercase(text: str) -> str:
    """English, all in small letters."""
    return response_language(text, language=ENGLISH) if text.islower() else _first_wrong_case(text, "isupper")


def response_language(text: str, *, language: frozenset[str]) -> str:
    """The most likely language of the whole is the wanted one; a text of no language is in none."""
    detected = detect_language(text)
    if detected in language:
        return ""
    return f"in {detected or 'no language that can be told'}, wanted {' or '.join(sorted(language))}"


def no_comma(text: str) -> str:
    """Not one comma."""
    return f"{text.count(',')} commas" if "," in text else ""


def _first_wrong_case(text: str, wrong: str) -> str:
    """The first word with a letter of the wrong case; titlecase letters and texts without letters have none."""
    for word in text.split():
        if any(getattr(character, wrong)() for character in word):
            return f"with {word[:40]!r}"
    return "without letters in the wanted case"
