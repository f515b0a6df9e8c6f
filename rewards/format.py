"""The format reward: a thought and an answer between tags, each once, in order, with nothing outside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.types import Reward, Verifier

_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class FormatOptions:
    """Names of the two tags, and whether the prompt already ends with the opening tag of the thought."""

    think_tag: str = "think"
    answer_tag: str = "answer"
    opened_by_prompt: bool = False

    def __post_init__(self) -> None:
        for name in ("think_tag", "answer_tag"):
            if not _TAG.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be a tag's bare name, such as think")
        if self.think_tag == self.answer_tag:
            raise ValueError(f"think_tag and answer_tag are both {self.think_tag!r}: they must differ")


def build_format(options: FormatOptions) -> Verifier:
    """The verifier: 1.0 for `<think>…</think><answer>…</answer>`, each part with some text, and finished; else 0.0.

    White space between and around the parts is free; text is what can be seen. Reads problem["finished"] (taken for
    True where it is missing); one that is neither true nor false is an error."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        finished = problem.get("finished", True)
        if not isinstance(finished, bool):
            return Reward.error(
                f"problem['finished'] = {finished!r}: must be true when the completion ended by itself, false when the "
                f"limit cut it; leave it out where that is not known"
            )
        fault = _fault(completion, options)
        return Reward.scored(
            float(not fault and finished),
            parts={"tags": float(not fault), "finished": float(finished)},
            detail=fault or ("well formed" if finished else "not finished"),
        )

    return verifier


def _fault(completion: str, options: FormatOptions) -> str:
    """The first thing that is wrong with the format, in words; empty when nothing is."""
    tags = [f"<{options.think_tag}>", f"</{options.think_tag}>", f"<{options.answer_tag}>", f"</{options.answer_tag}>"]
    text = tags[0] + completion if options.opened_by_prompt else completion
    for tag in tags:
        if text.count(tag) != 1:
            return f"{tag} stands there {text.count(tag)} times instead of once"
    places = [text.index(tag) for tag in tags]
    if places != sorted(places):
        return f"the tags are not in the order {' '.join(tags)}"
    ends = [place + len(tag) for place, tag in zip(places, tags, strict=True)]
    before, thought, between, answer, after = (
        text[start:stop].strip() for start, stop in zip([0, *ends], [*places, len(text)], strict=True)
    )
    if before or between or after:
        return f"text outside the tags: {(before or between or after)[:40]!r}"
    for tag, content in ((tags[0], thought), (tags[2], answer)):
        if not any(character.isprintable() for character in content):  # zero-width characters are not
            return f"nothing inside {tag}"
    return ""
