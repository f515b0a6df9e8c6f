"""Nothing that a verifier does reaches its caller as an exception or as a number that is none."""

from __future__ import annotations

import math
import numbers
import reprlib
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewards.types import Reward, Verifier

RULE = "a reward function returns a finite float, an int, a bool, a Reward, or None to abstain"


def guard(function: Callable[[str, Mapping[str, Any]], Any], *, title: str, file: str = "") -> Verifier:
    """The function as a verifier that never raises (a keyboard interrupt excepted).

    Whatever it raises, SystemExit included, becomes a Reward with status error that names the exception and the line,
    in `file` where the traceback passes through it; so does a return value that is no reward."""

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        try:
            return as_reward(function(completion, problem), title=title)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Reward.error(f"{title} raised {describe_exception(error, file=file)}")

    return verifier


def as_reward(returned: Any, *, title: str) -> Reward:
    """The Reward that a function's return value stands for; status error when it stands for none."""
    if isinstance(returned, Reward):
        return returned
    if returned is None:
        return Reward.abstained(f"{title} returned None")
    if isinstance(returned, numbers.Real):  # bools, and the scalars of numpy too
        try:
            value = float(returned)
        except OverflowError:
            return Reward.error(f"{title} returned an int too large for a float; {RULE}")
        if math.isfinite(value):
            return Reward.scored(value)
    return Reward.error(f"{title} returned {reprlib.repr(returned)} ({type(returned).__name__}); {RULE}")


def describe_exception(error: BaseException, *, file: str = "") -> str:
    """Type, message and line of an exception: the innermost line in `file`, else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    where = f" (line {own[-1].lineno} of {Path(own[-1].filename).name}, in {own[-1].name})" if own else ""
    if isinstance(error, SyntaxError):
        where = f" (line {error.lineno})"
    # format_exception_only survives an exception whose own __str__ raises.
    return f"{traceback.format_exception_only(error)[-1].strip()[:500]}{where}"
