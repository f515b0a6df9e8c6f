"""The built-in rewards by name, and a verifier from a name or a spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rewards.format import FormatOptions, build_format
from rewards.guard import guard
from rewards.list_machine import ListMachineOptions, build_list_machine
from rewards.math_answer import MathAnswerOptions, build_math_answer, prepare_math_answer
from rewards.options import nearest, read_options
from rewards.spec import RewardSpec
from rewards.types import Verifier
from rewards.user import load_function


class BuiltIn(NamedTuple):
    """A built-in reward: its options, what makes the verifier from them, and what imports the packages it needs.

    Options and verifier are made without those packages, so that a config is checked in no time."""

    options_type: type
    make: Callable[[Any], Verifier]
    prepare: Callable[[], object] | None


BUILT_IN: Mapping[str, BuiltIn] = MappingProxyType(
    {
        "math_answer": BuiltIn(MathAnswerOptions, build_math_answer, prepare_math_answer),
        "format": BuiltIn(FormatOptions, build_format, None),
        "list_machine": BuiltIn(ListMachineOptions, build_list_machine, None),
    }
)

REWARD_NAMES = tuple(BUILT_IN)


def build(name: str, options: Mapping[str, Any]) -> Verifier:
    """The built-in verifier of that name; it never raises. Raises ValueError for an unknown name or a bad option."""
    if name not in BUILT_IN:
        raise ValueError(
            f"{name!r} is not a reward{nearest(name, list(BUILT_IN))} (rewards: {', '.join(BUILT_IN)}; or name a file "
            f"and a function of your own)"
        )
    built_in = BUILT_IN[name]
    return guard(built_in.make(read_options(built_in.options_type, options, reward=name)), title=name)


def build_spec(spec: RewardSpec) -> Verifier:
    """The verifier that a spec names. Raises ValueError as `build` and `load_function` do."""
    if spec.name:
        return build(spec.name, spec.options)
    assert spec.file is not None, "RewardSpec lets nothing else through"
    assert spec.function is not None
    return load_function(spec.file, spec.function, spec.options)


def prepare_spec(spec: RewardSpec) -> None:
    """Import what the verifier of a spec would otherwise import in its first call."""
    built_in = BUILT_IN.get(spec.name)
    if built_in is not None and built_in.prepare is not None:
        built_in.prepare()
