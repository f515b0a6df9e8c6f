"""Checkers of how long a completion is. Each returns its complaint, empty when the instruction is followed."""

from __future__ import annotations

import re
import unicodedata

from rewards.prose.sentences import count_sentences

_WORD = re.compile(r"\w+")
_ENDS_FIRST_WORD = re.compile(r"[.,?!'\"]")


def compare(number: int, relation: str, wanted: int, what: str) -> str:
    """The complaint of a number that is not as wanted; empty when it is."""
    followed = number < wanted if relation == "less than" else number >= wanted
    return "" if followed else f"{number} {what}, wanted {relation} {wanted}"


def number_words(text: str, *, num_words: int, relation: str) -> str:
    """Runs of letters, digits and underscores: a word with a hyphen is two, `don't` is two."""
    # A vowel sign is a part of its word in the scripts of India, which Python's own \w does not know.
    signs = {ord(character): "_" for character in set(text) if unicodedata.category(character) in ("Mn", "Mc")}
    return compare(len(_WORD.findall(text.translate(signs))), relation, num_words, "words")


def number_sentences(text: str, *, num_sentences: int, relation: str) -> str:
    """Sentences by Punkt."""
    return compare(count_sentences(text), relation, num_sentences, "sentences")


def number_paragraphs(text: str, *, num_paragraphs: int) -> str:
    """Paragraphs between dividers `***`: exactly so many, none empty but before the first and after the last."""
    paragraphs = [paragraph.strip() for paragraph in text.split("***")]
    num_found = sum(map(bool, paragraphs))
    if not all(paragraphs[1:-1]):
        return "nothing between two dividers"
    return "" if num_found == num_paragraphs else f"{num_found} paragraphs between ***, wanted {num_paragraphs}"


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> str:
    """Exactly so many paragraphs between empty lines, of which the nth begins with the word.

    What is counted is what is numbered: the paragraphs with some text. The word is compared without case, without
    quotes before it, up to the first mark in it."""
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) != num_paragraphs:
        return f"{len(paragraphs)} paragraphs between empty lines, wanted {num_paragraphs}"
    word = paragraphs[nth_paragraph - 1].split(maxsplit=1)[0].lstrip("'").lstrip('"')
    word = _ENDS_FIRST_WORD.split(word, maxsplit=1)[0].lower()
    return "" if word == first_word.lower() else f"paragraph {nth_paragraph} begins with {word[:40]!r}"
