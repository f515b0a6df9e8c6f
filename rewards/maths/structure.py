"""How an answer is put together: a list, a pair or interval, a union, a matrix. Text in, pieces out; compares none.

Pieces are compared one by one, which is quicker than having the grammar read the whole, and tells {1, 1} from {1}."""

from __future__ import annotations

import re
from typing import NamedTuple

from rewards.maths.text import as_formula

MAX_PARTS = 64


class Structure(NamedTuple):
    """What holds the pieces together (`,` for a list, `(]` for an interval, `cup`, `2x3` for a matrix), and they."""

    kind: str
    pieces: tuple[str, ...]

    @property
    def in_order(self) -> bool:
        return self.kind not in (",", "cup")


def structure_of(text: str) -> Structure | None:
    """The structure of an answer; None for one that is a single piece or is put together in another way."""
    text = as_formula(text)
    if "matrix" in text:
        return _matrix(text)
    if r"\cup" in text:
        return _limited("cup", text.split(r"\cup"))
    if text.startswith((r"\{", "{")) and text.endswith("}") and len(inner := split_list(text.strip("\\{}"))) > 1:
        return _limited(",", _both_signs(inner))
    pieces = _both_signs(split_list(text, ";") if ";" in text else split_list(text))
    if len(pieces) > 1:
        return _limited(",", pieces)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        pieces = split_list(text[1:-1])
        if len(pieces) > 1:
            return _limited(text[0] + text[-1], pieces)
    return None


def split_list(text: str, separator: str = ",;") -> list[str]:
    """The pieces of a text between its commas or semicolons, those inside brackets not counted.

    The whole text where its brackets do not close; as in `1) and (2`, which is no pair."""
    pieces, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
            if depth < 0:
                return [text]
        elif character in separator and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces] if depth == 0 and all(map(str.strip, pieces)) else [text]


_MATRIX = re.compile(r"\(?\s*\\begin\{[pbvBV]?matrix\}(.*)\\end\{[pbvBV]?matrix\}\s*\)?", re.DOTALL)


def _matrix(text: str) -> Structure | None:
    match = _MATRIX.fullmatch(text)
    if match is None or "begin" in match[1]:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", match[1]) if row.strip()]
    if len({len(row) for row in rows}) != 1 or "vmatrix" in text.lower():
        return None
    return _limited(f"{len(rows)}x{len(rows[0])}", [entry.strip() for row in rows for entry in row])


def _both_signs(pieces: list[str]) -> list[str]:
    """The pieces, each that holds one plus-minus sign as two."""
    written = []
    for piece in pieces:
        signs = ("+", "-") if piece.count(r"\pm") == 1 else (r"\pm",)
        written += [piece.replace(r"\pm", sign) for sign in signs]
    return written


def _limited(kind: str, pieces: list[str]) -> Structure | None:
    return Structure(kind, tuple(pieces)) if len(pieces) <= MAX_PARTS else None
