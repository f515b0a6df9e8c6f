"""The built-in rewards by name, and a verifier from a name or a spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rewards.code_tests import CodeTestsOptions, build_code_tests
from rewards.code_tests import worst_case_seconds as code_tests_seconds
from rewards.compose import ComposeOptions, build_compose
from rewards.format import FormatOptions, build_format
from rewards.generated import GeneratedOptions, build_generated, prepare_generated
from rewards.guard import guard
from rewards.instructions import InstructionsOptions, build_instructions, prepare_instructions
from rewards.judge import JudgeOptions, build_judge, prepare_judge
from rewards.judge import worst_case_seconds as judge_seconds
from rewards.language import LanguageOptions, build_language, prepare_language
from rewards.length import LengthOptions, build_length
from rewards.letter_case import LetterCaseOptions, build_letter_case
from rewards.list_machine import ListMachineOptions, build_list_machine
from rewards.math_answer import MathAnswerOptions, build_math_answer, prepare_math_answer
from rewards.multiple_choice import MultipleChoiceOptions, build_multiple_choice
from rewards.options import nearest, read_options
from rewards.repetition import RepetitionOptions, build_repetition
from rewards.spec import RewardSpec
from rewards.tool_call import ToolCallOptions, build_tool_call
from rewards.types import Verifier
from rewards.user import load_function


class BuiltIn(NamedTuple):
    """A built-in reward: its options, what makes the verifier from them, what imports the packages it needs, how many
    seconds a call may take by its own options, where it keeps a limit of its own, and the user's files that it reads.

    Options and verifier are made without those packages, so that a config is checked in no time."""

    options_type: type
    make: Callable[[Any], Verifier]
    prepare: Callable[[], object] | None = None
    longest_seconds: Callable[[Any], float] | None = None
    files: Callable[[Any], tuple[str, ...]] | None = None


BUILT_IN: Mapping[str, BuiltIn] = MappingProxyType(
    {
        "math_answer": BuiltIn(MathAnswerOptions, build_math_answer, prepare_math_answer),
        "format": BuiltIn(FormatOptions, build_format),
        "compose": BuiltIn(ComposeOptions, lambda options: build_compose(options, build=build_spec)),
        "generated": BuiltIn(GeneratedOptions, build_generated, prepare_generated),
        "multiple_choice": BuiltIn(MultipleChoiceOptions, build_multiple_choice),
        "tool_call": BuiltIn(ToolCallOptions, build_tool_call),
        "judge": BuiltIn(JudgeOptions, build_judge, prepare_judge, judge_seconds, lambda options: options.files),
        "instructions": BuiltIn(
            InstructionsOptions, build_instructions, prepare_instructions, files=lambda options: options.files
        ),
        "language": BuiltIn(LanguageOptions, build_language, prepare_language),
        "length": BuiltIn(LengthOptions, build_length),
        "letter_case": BuiltIn(LetterCaseOptions, build_letter_case),
        "repetition": BuiltIn(RepetitionOptions, build_repetition),
        "list_machine": BuiltIn(ListMachineOptions, build_list_machine),
        "code_tests": BuiltIn(CodeTestsOptions, build_code_tests, longest_seconds=code_tests_seconds),
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
    if spec.name == "compose":
        for component in read_options(ComposeOptions, spec.options, reward=spec.name).components.values():
            prepare_spec(component.spec)
    built_in = BUILT_IN.get(spec.name)
    if built_in is not None and built_in.prepare is not None:
        built_in.prepare()


def files_of(spec: RewardSpec) -> tuple[str, ...]:
    """The user's own files that the verifier of a spec is made of, in an order that follows from the spec.

    What such a file imports or opens itself is not among them. Raises ValueError for bad options."""
    if spec.file is not None:
        return (spec.file,)
    if spec.name == "compose":
        components = read_options(ComposeOptions, spec.options, reward=spec.name).components.values()
        return tuple(file for component in components for file in files_of(component.spec))
    built_in = BUILT_IN.get(spec.name)
    if built_in is None or built_in.files is None:
        return ()
    return built_in.files(read_options(built_in.options_type, spec.options, reward=spec.name))


def longest_seconds(spec: RewardSpec) -> float:
    """How long one call of the reward may take by its own options: a pool's limit must be above it. 0: not bounded.

    Raises ValueError for bad options."""
    if spec.name == "compose":
        components = read_options(ComposeOptions, spec.options, reward=spec.name).components.values()
        return sum(longest_seconds(component.spec) for component in components)
    built_in = BUILT_IN.get(spec.name)
    if built_in is None or built_in.longest_seconds is None:
        return 0.0
    return built_in.longest_seconds(read_options(built_in.options_type, spec.options, reward=spec.name))
