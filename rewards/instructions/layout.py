"""Checkers of form: lists, sections, titles, wrappings, beginnings and ends.

Each returns its complaint, empty when the instruction is followed. No pattern here takes more than one look at a
character from each place it can begin at, so a hostile text costs no more than a long one."""

from __future__ import annotations

import json
import re

POSSIBLE_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_JSON_FENCES = ("```json", "```Json", "```JSON", "```")


def number_bullet_lists(text: str, *, num_bullets: int) -> str:
    """Exactly so many lines that begin with `-`, or with `*` and not `**`."""
    lines = (line.lstrip() for line in text.split("\n"))
    num_found = sum(line.startswith("-") or (line.startswith("*") and line[1:2] != "*") for line in lines)
    return "" if num_found == num_bullets else f"{num_found} bullet points, wanted {num_bullets}"


_HIGHLIGHT = re.compile(r"\*([^\n*]*)\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*")


def number_highlighted_sections(text: str, *, num_highlights: int) -> str:
    """At least so many `*highlights*` or `**highlights**` with some text."""
    num_found = sum(map(bool, map(str.strip, _HIGHLIGHT.findall(text))))
    num_found += sum(map(bool, map(str.strip, _DOUBLE_HIGHLIGHT.findall(text))))
    return "" if num_found >= num_highlights else f"{num_found} highlights, wanted at least {num_highlights}"


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> str:
    """At least so many section heads: the word, written just so, and a number."""
    num_found = len(re.findall(rf"{re.escape(section_spliter)}\s?\d", text))
    if num_found >= num_sections:
        return ""
    return f"{num_found} times {section_spliter!r} with a number, wanted at least {num_sections}"


def number_placeholders(text: str, *, num_placeholders: int) -> str:
    """At least so many `[placeholders]`, each on one line."""
    num_found = 0
    for line in text.split("\n"):
        end = 0
        while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1) > 0:
            num_found += 1
    return "" if num_found >= num_placeholders else f"{num_found} placeholders, wanted at least {num_placeholders}"


def postscript(text: str, *, postscript_marker: str) -> str:
    """The marker stands somewhere, in any case; `P.S.` and `P.P.S` also with a space after each period."""
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = spaced.get(postscript_marker, re.escape(postscript_marker.lower()))
    return "" if re.search(pattern, text.lower()) else f"without {postscript_marker!r}"


def title(text: str) -> str:
    """A `<<title>>` on one line, with some text."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].lstrip("<").rstrip(">").strip():
            return ""
    return "without a <<title>>"


def json_format(text: str) -> str:
    """All of it is one JSON value, bare or in a code fence."""
    body = text.strip()
    for fence in _JSON_FENCES:
        body = body.removeprefix(fence)
    body = body.removesuffix("```").strip()
    try:
        # Numbers are not needed: len spares an error for those that are too long for Python.
        json.loads(body, parse_int=len, parse_float=len, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({str(error)[:80]})"
    return ""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def constrained_response(text: str) -> str:
    """One of the three possible answers stands there."""
    return "" if any(answer in text for answer in POSSIBLE_ANSWERS) else f"none of {', '.join(POSSIBLE_ANSWERS)}"


def two_responses(text: str) -> str:
    """Two answers that differ, between dividers `******`, with nothing empty but before and after them."""
    answers = [answer.strip() for answer in text.split("******")]
    if not all(answers[1:-1]):
        return "nothing between two dividers"
    answers = [answer for answer in answers if answer]
    if len(answers) != 2:
        return f"{len(answers)} answers between ******, wanted 2"
    return "" if answers[0] != answers[1] else "twice the same answer"


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> str:
    """Begins with the prompt, in any case."""
    wanted = prompt_to_repeat.lower()
    return "" if text.strip().lower().startswith(wanted) else f"begins with {text.strip()[:40]!r}"


def end_checker(text: str, *, end_phrase: str) -> str:
    """Ends with the phrase, in any case; quotes around the whole may follow."""
    ending = text.strip().lower()
    followed = ending.endswith(end_phrase.lower()) or ending.strip('"').endswith(end_phrase.lower())
    return "" if followed else f"ends with {text.strip()[-40:]!r}"


def quotation(text: str) -> str:
    """Wrapped in straight double quotation marks."""
    body = text.strip()
    return "" if len(body) > 1 and body[0] == body[-1] == '"' else "not between double quotation marks"
