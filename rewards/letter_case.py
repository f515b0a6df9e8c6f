"""The letter_case reward: how much of a completion's letters is in one case.

A style that a program can tell, for small models: to measure it, to reward it, or to leak it into another reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rewards.types import Reward, Verifier


@dataclass(frozen=True)
class LetterCaseOptions:
    """`case`: upper or lower. Letters without a case, as most scripts have them, and digits do not count."""

    case: Literal["upper", "lower"] = "upper"


def build_letter_case(options: LetterCaseOptions) -> Verifier:
    """The verifier: the share of cased letters that are in `case`, and 0.0 where there are none."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        upper = sum(character.isupper() for character in completion)
        lower = sum(character.islower() for character in completion)
        wanted = upper if options.case == "upper" else lower
        return Reward.scored(
            wanted / (upper + lower) if upper + lower else 0.0, detail=f"{wanted} of {upper + lower} letters"
        )

    return verifier
