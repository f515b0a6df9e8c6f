"""Sentences and words of English text."""

from __future__ import annotations

import pytest

from rewards.prose.sentences import count_capital_words, count_sentences


@pytest.mark.parametrize(
    ("text", "num_sentences"),
    [
        ("", 0),
        (" \n ", 0),
        ("One", 1),
        ("One. Two? Three! Four", 4),
        ("Dr. Smith met Mr. Jones at 5 p.m. on Jan. 3 in the U.S. capital.", 1),
        ("He works at Acme Inc. The firm is old.", 2),
        ("It is 3.5 m long. 4.2 would do.", 2),
        ("Wait... what? No.", 2),
        ('"Stop!" he said. She did not.', 3),
        ("(It was late.) We left.", 2),
        ("See fig. 3, e.g. the left one, i.e. the first.", 1),
        ("Nuts, seeds, etc. are sold here. The shop is big.", 2),
        ("First line\nsecond line. Third\n\nfourth", 2),
        ("Visit example.com. It is good.", 2),
        ("No. Yes.", 2),
        ("He sat. Then he left.", 2),
        ("a.b.c", 1),
    ],
)
def test_sentences_are_counted_as_a_reader_counts_them(text, num_sentences):
    assert count_sentences(text) == num_sentences


def test_a_long_text_has_as_many_sentences_as_its_parts():
    assert count_sentences("Mr. Smith sat down. " * 500) == 500
    assert count_sentences("The cat sat down. " * 5000) == 5000


@pytest.mark.parametrize(
    ("text", "num_words"),
    [
        ("", 0),
        ("NASA AND THE U.S. Army", 4),
        ("WELL-KNOWN A1 1A 11", 3),
        ("(YES) 'NO' \"SO\"", 3),
        ("Iphone iOS", 0),
        ("ÜBER ΑΒΓ", 2),
    ],
)
def test_words_in_capitals_are_counted(text, num_words):
    assert count_capital_words(text) == num_words
    assert count_capital_words(f"{text} " + "x " * 50_000) == num_words
