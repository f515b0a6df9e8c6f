"""What a verifier gives back, and what a verifier is. Knows no tensor, no file, no process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol


class Status(StrEnum):
    """How a verifier's call ended. Only a scored call has a value; the others are counted, never taken for a zero."""

    SCORED = "scored"
    ABSTAINED = "abstained"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Reward:
    """The judgement of one completion: a finite value exactly when its status is scored.

    `parts` are named numbers that go to the metrics (`reward/<part>/mean`), a read-only copy of what was given;
    `detail` is for a person to read. `answer` is the answer that the verifier read, for majority votes, in a form in
    which equal answers are equal texts; None where it read none, or does not tell. Raises ValueError when value and
    status contradict each other, when a part is not a finite number and when the detail or the answer is no text."""

    value: float | None
    status: Status
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    answer: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.status, Status):
            raise ValueError(f"Reward.status = {self.status!r}: must be one of {[str(status) for status in Status]}")
        if self.status is Status.SCORED:
            if not isinstance(self.value, float) or not math.isfinite(self.value):
                raise ValueError(f"Reward.value = {self.value!r}: a scored reward needs a finite float")
        elif self.value is not None:
            raise ValueError(f"Reward.value = {self.value!r}: must be None when the status is {self.status}")
        for name, part in self.parts.items():
            if not isinstance(name, str) or not isinstance(part, (int, float)) or not math.isfinite(part):
                raise ValueError(f"Reward.parts[{name!r}] = {part!r}: a part is a name with a finite number")
        if not isinstance(self.detail, str):
            raise ValueError(f"Reward.detail = {self.detail!r}: must be a text; leave it out where there is none")
        if self.answer is not None and not isinstance(self.answer, str):
            raise ValueError(f"Reward.answer = {self.answer!r}: must be a text, or None where there is none")
        # A copy that nobody can write to: what was checked stays what it is.
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))

    def __reduce__(self) -> tuple[type[Reward], tuple[object, ...]]:
        """How pickle and copy make it again; a read-only mapping does not travel."""
        return type(self), (self.value, self.status, dict(self.parts), self.detail, self.answer)

    @classmethod
    def scored(
        cls, value: float, *, parts: Mapping[str, float] | None = None, detail: str = "", answer: str | None = None
    ) -> Reward:
        """A judgement with a value; ints and bools become floats."""
        return cls(value=float(value), status=Status.SCORED, parts=parts or {}, detail=detail, answer=answer)

    @classmethod
    def abstained(cls, detail: str = "") -> Reward:
        """The verifier has no opinion on this completion."""
        return cls(value=None, status=Status.ABSTAINED, detail=detail)

    @classmethod
    def timeout(cls, detail: str) -> Reward:
        """The call passed its limit and was stopped."""
        return cls(value=None, status=Status.TIMEOUT, detail=detail)

    @classmethod
    def error(cls, detail: str) -> Reward:
        """The verifier failed, which says nothing about the completion."""
        return cls(value=None, status=Status.ERROR, detail=detail)


class Verifier(Protocol):
    """Judges one completion of one problem.

    `problem` holds at least id, answer, prompt (text), messages and every meta column of its row; it may hold
    `finished`: True when the completion ended with an end token or stop string, False when the limit cut it, and
    `num_tokens`: how many tokens the policy drew for it, an end token included."""

    def __call__(self, completion: str, problem: Mapping[str, Any], /) -> Reward: ...
