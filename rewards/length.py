"""The length reward: DAPO's soft overlong penalty, for whoever wants it in the value.

Knows no tokenizer: the number of tokens is the trainer's to know, and it takes the same penalty itself where
`loss.truncated` asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rewards.types import Reward, Verifier


@dataclass(frozen=True)
class LengthOptions:
    """Lengths are free up to `limit` - `buffer`; from `limit` on the penalty is whole. Both are in `unit`s.

    `tokens` are read from problem["num_tokens"]; `words` are what white space separates; `characters` are code
    points."""

    limit: int
    buffer: int
    unit: Literal["tokens", "words", "characters"] = "tokens"

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.limit:
            raise ValueError(f"limit = {self.limit}, buffer = {self.buffer}: must be 0 < buffer <= limit")


def build_length(options: LengthOptions) -> Verifier:
    """The verifier: 0.0 for a length within limit - buffer, falling linearly to -1.0 at the limit, -1.0 beyond it.

    The part `length` is the length in `unit`s. With tokens, a problem without a usable num_tokens is an error."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        length: Any  # what the row holds
        if options.unit == "tokens":
            length = problem.get("num_tokens")
            if type(length) is not int or length < 0:
                return Reward.error(
                    f"problem['num_tokens'] = {length!r}: must be the completion's number of tokens, at least 0; "
                    f"hand it over, or set the option unit to words or characters"
                )
        else:
            length = len(completion.split()) if options.unit == "words" else len(completion)
        penalty = soft_overlong_penalty(length, limit_tokens=options.limit, buffer_tokens=options.buffer)
        return Reward.scored(
            penalty, parts={"length": length}, detail=f"{length} {options.unit} (limit {options.limit})"
        )

    return verifier


def soft_overlong_penalty(num_tokens: int, *, limit_tokens: int, buffer_tokens: int) -> float:
    """0 up to limit - buffer, then falling linearly to -1 at the limit, and -1 beyond it.

    Source: Yu et al. (2025), DAPO, arXiv 2503.14476, eq. 13. Raises ValueError unless
    0 < buffer_tokens <= limit_tokens and num_tokens >= 0."""
    if not 0 < buffer_tokens <= limit_tokens:
        raise ValueError(
            f"the overlong penalty needs 0 < buffer_tokens <= limit_tokens; got buffer_tokens={buffer_tokens}, "
            f"limit_tokens={limit_tokens}"
        )
    if num_tokens < 0:
        raise ValueError(f"num_tokens = {num_tokens}: must be at least 0")
    free_tokens = limit_tokens - buffer_tokens
    if num_tokens <= free_tokens:
        return 0.0
    return max(-1.0, (free_tokens - num_tokens) / buffer_tokens)
