"""What of a completion is prose, and how many words of it are in which script. Text in, text and counts out.

Code, mathematics, tags, addresses and names of programs are taken out. Every step is linear in the text's length."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

_FENCES = ("```", "~~~")
_ENCLOSED = ((r"\begin{", r"\end{"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"))
_INLINE = re.compile(
    r"`[^`\n]{1,300}`"
    r"|\$(?!\s)[^$\n]{1,300}(?<!\s)\$(?!\d)"  # a price is no formula: a formula hugs its dollars, no digit follows
    r"|</?[A-Za-z][^<>\n]{0,100}>"
    r"|(?:https?://|www\.)[!-~]+"
    r"|\\[A-Za-z]+\*?"
)
_ASCII_RUN = re.compile(r"[!-~]+")
_TECHNICAL = re.compile(r"[@_\\=/{}|<>0-9]|[a-z][A-Z]|\w\.\w")
"""What no word of prose has inside: addresses, paths, identifiers, numbers with units, equations."""

UNSPACED_SCRIPTS = frozenset({"CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR"})
CHARACTERS_PER_UNSPACED_WORD = 2
_OTHER_NAMES = {"IDEOGRAPHIC": "CJK", "MATHEMATICAL": "LATIN"}


def prose_of(text: str) -> str:
    """The text without code, mathematics, tags, addresses and identifiers, each of which leaves a space."""
    text = _without_fences(unicodedata.normalize("NFC", text))
    for opening, closing in _ENCLOSED:
        text = _without_enclosed(text, opening, closing)
    text = _INLINE.sub(" ", text)
    return _ASCII_RUN.sub(lambda run: " " if _TECHNICAL.search(run[0]) else run[0], text)


def count_words(text: str) -> Counter[str]:
    """How many words the text has in each script, by the script's name in Unicode (LATIN, CJK, …).

    A word is a run of letters of one script; in scripts without spaces, two characters. A letter alone counts for
    nothing outside those: it is a symbol or a list's letter more often than a word."""
    scripts = {character: script_of(character) for character in set(text)}
    # One private character a script: runs of it are found without a look at each letter in Python.
    signs = {script: chr(0xE000 + place) for place, script in enumerate(sorted(set(scripts.values())))}
    signed = text.translate({ord(character): signs[script] for character, script in scripts.items()})
    counts: Counter[str] = Counter()
    for script, sign in signs.items():
        if script in UNSPACED_SCRIPTS:
            counts[script] = -(-signed.count(sign) // CHARACTERS_PER_UNSPACED_WORD)
        elif script:
            counts[script] = len(re.findall(f"{sign}{{2,}}", signed))
    return +counts  # without the zeros


@cache  # as large as Unicode at most
def script_of(character: str) -> str:
    """The script of a letter or of a mark on one; empty for everything else."""
    if not character.isalpha() and unicodedata.category(character) not in ("Mn", "Mc"):
        return ""
    words = re.split("[ -]", unicodedata.name(character, ""))
    if words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words.pop(0)
    return "" if words[0] in ("COMBINING", "MODIFIER", "VARIATION") else _OTHER_NAMES.get(words[0], words[0])


def _without_fences(text: str) -> str:
    """Without fenced blocks; one that is never closed goes to the end."""
    kept, fence = [], ""
    for line in text.split("\n"):
        mark = line.lstrip()[:3]
        if fence:
            fence = "" if mark == fence else fence
        elif mark in _FENCES:
            fence = mark
        else:
            kept.append(line)
    return "\n".join(kept)


def _without_enclosed(text: str, opening: str, closing: str) -> str:
    """Without what stands between the two; an opening that is never closed stays."""
    kept, place = [], 0
    while (start := text.find(opening, place)) >= 0:
        stop = text.find(closing, start + len(opening))
        if stop < 0:
            break
        kept.append(text[place:start])
        place = stop + len(closing)
    return " ".join([*kept, text[place:]])
