"""Texts as language: what in them is prose, sentences and words, which language they are in."""
