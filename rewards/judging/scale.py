"""From a judge's answer to a score: the expected value over its first token, or the number in its text.

Knows the form of an OpenAI-compatible chat completion; no network, no disk, no clock."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_TEXT_CHARACTERS = 20_000
MAX_MASS = 1.01  # rounding of twenty log-probs stays far below it
_LEAST_LOGPROB = -1e4  # servers write -9999, or -inf, for no chance at all

_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")
_NUMBER = re.compile(r"(?<![\w.,])([+-]?[0-9]+(?:[.,][0-9]+)?)(?:\s*(?:/|out of)\s*([0-9]+))?(?!\w)", re.ASCII)


class NoAnswerError(ValueError):
    """What came back is no answer to the question; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the judge model wrote, and the alternatives to its first token with their log-probs in nats.

    `alternatives`, and `tokens`, the first two that were written, are empty where no log-probs were asked for."""

    text: str
    alternatives: tuple[tuple[str, float], ...] = ()
    tokens: tuple[str, ...] = ()

    def to_json(self) -> str:
        """What the cache keeps."""
        return json.dumps([self.text, self.alternatives, self.tokens])

    @classmethod
    def from_json(cls, stored: str) -> Answer:
        """Raises ValueError for what `to_json` has not written."""
        try:
            text, alternatives, tokens = json.loads(stored)
            read = tuple(_alternative({"token": token, "logprob": logprob}) for token, logprob in alternatives)
            return cls(str(text), read, tuple(str(token) for token in tokens))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not an answer: {stored[:40]!r}") from error


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score on the judge's scale, or None when it gave none; `mass` is the probability that numbers hold together,
    None where the score was read from text; `detail` is for a person to read."""

    score: float | None
    mass: float | None
    detail: str


def parse_answer(reply: Any, *, logprobs: bool) -> Answer:
    """The answer in a decoded chat completion. Raises NoAnswerError, naming the field at fault."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NoAnswerError("it has no choices[0]")
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not logprobs:
        if not isinstance(text, str) or not text.strip():
            raise NoAnswerError("choices[0].message.content holds no text")
        if choices[0].get("finish_reason") == "length":
            raise NoAnswerError("the judge was cut off before its score; raise max_answer_tokens")
        return Answer(text=text[-MAX_TEXT_CHARACTERS:])
    held = choices[0].get("logprobs")
    tokens = held.get("content") if isinstance(held, dict) else None
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, dict) for token in tokens):
        raise NoAnswerError("choices[0].logprobs.content is empty: the server gives no log-probs; set read: text")
    alternatives = tokens[0].get("top_logprobs")
    if not isinstance(alternatives, list) or not alternatives:
        raise NoAnswerError("choices[0].logprobs.content[0].top_logprobs is empty; set read: text")
    return Answer(
        text=text[-MAX_TEXT_CHARACTERS:] if isinstance(text, str) else "",
        alternatives=tuple(_alternative(entry) for entry in alternatives),
        tokens=tuple(str(token.get("token", "")) for token in tokens[:2]),
    )


def score_of_logprobs(answer: Answer, *, lowest: int, highest: int, minimum_mass: float) -> Verdict:
    """The expected value over the whole numbers from lowest to highest among the first token's alternatives.

    Forms of one number (" 85", "85") add up, the mass of all is made one; None where it is below `minimum_mass`.
    Source: persona vectors, arXiv 2507.21509. Raises NoAnswerError when numbers are written in several tokens, of which
    the first says little, and for log-probs that are none."""
    mass_of: dict[int, float] = {}
    for token, logprob in answer.alternatives:
        bare = token.strip(" \t\r\n\u2581\u0120")  # sentencepiece and byte-level BPE write a space as one of these
        if _WHOLE_NUMBER.fullmatch(bare) and lowest <= int(bare) <= highest:
            mass_of[int(bare)] = mass_of.get(int(bare), 0.0) + math.exp(logprob)
    total = math.fsum(math.exp(logprob) for _, logprob in answer.alternatives)
    if total > MAX_MASS:
        raise NoAnswerError(f"its top log-probs are none: their probabilities add up to {total:.3g}")
    if len(answer.tokens) == 2 and answer.tokens[0][-1:].isdigit() and answer.tokens[1][:1].isdigit():
        raise NoAnswerError(
            f"the judge writes {''.join(answer.tokens).strip()!r} in several tokens, so its first token is no score; "
            "use a scale of one digit (lowest: 0, highest: 9) or read: text"
        )
    mass = math.fsum(mass_of.values())
    shown = ", ".join(f"{token!r} {math.exp(logprob):.2f}" for token, logprob in _most_likely(answer.alternatives))
    detail = f"numbers from {lowest} to {highest} hold {mass:.2f} of the mass ({shown})"
    if mass < minimum_mass or mass == 0.0:
        return Verdict(None, mass, f"{detail}; {minimum_mass:g} are needed")
    score = math.fsum(number * share for number, share in mass_of.items()) / mass
    return Verdict(min(max(score, float(lowest)), float(highest)), mass, f"score {score:.4g}; {detail}")


def score_of_text(answer: Answer, *, lowest: int, highest: int, pattern: str = "") -> Verdict:
    """The last number in the text, or what the last match of `pattern` holds; None where it is not on the scale.

    A thought before `</think>` is not read. "85/100" is 85 on a scale up to 100 and nothing on any other."""
    text = answer.text.rpartition("</think>")[2]
    shown = " ".join(text.split())[-80:]
    matches = list(re.finditer(pattern, text) if pattern else _NUMBER.finditer(text))
    if not matches:
        return Verdict(None, None, f"no {'match of the pattern' if pattern else 'number'} in the answer {shown!r}")
    last = matches[-1]
    written = last[1] if last.re.groups else last[0]
    try:
        score = float((written or "").replace(",", "."))  # 7,5 is seven and a half in half of the world
    except ValueError:
        return Verdict(None, None, f"{written!r} is no number, in the answer {shown!r}")
    if not pattern and last[2] is not None and int(last[2][:9]) != highest:
        return Verdict(None, None, f"{last[0]!r} is not on the scale up to {highest}, in the answer {shown!r}")
    if not lowest <= score <= highest:
        return Verdict(None, None, f"{written} is not on the scale {lowest} to {highest}, in the answer {shown!r}")
    return Verdict(score, None, f"score {score:.4g}; read in {shown!r}")


def _alternative(entry: Any) -> tuple[str, float]:
    token, logprob = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
    is_number = not isinstance(logprob, bool)
    # 0.01: the log-prob of a certain token comes out of some servers a rounding above 0. NaN is not below it.
    if isinstance(token, str) and isinstance(logprob, (int, float)) and is_number and logprob <= 0.01:
        return token, min(float(max(logprob, _LEAST_LOGPROB)), 0.0)
    raise NoAnswerError(f"top_logprobs holds {str(entry)[:80]}, which is no token with a log-prob")


def _most_likely(alternatives: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(alternatives, key=lambda pair: -pair[1])[:3]
