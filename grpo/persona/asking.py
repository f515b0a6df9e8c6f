"""What a trait's questions are as problems: under its instructions or without, with its scorer as their judge."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo.config import RewardConfig, RunConfig, Source
from grpo.data import load_problems, without
from grpo.errors import ConfigError
from grpo.persona.traits import Trait
from grpo.practice import reward_spec
from grpo.types import Message, Problem
from rewards import Reward, RewardSpec

OF_THE_POOL = ("timeout_seconds", "memory_limit_mb", "workers")
COHERENCE = "coherence"
"""The part of a verdict that says how coherent a completion is."""


@dataclass(frozen=True, slots=True)
class Questions:
    """A trait's questions as problems without instructions; none is in both."""

    extract: tuple[Problem, ...]
    evaluate: tuple[Problem, ...]


def judge_of(trait: Trait, config: RunConfig) -> RewardConfig:
    """Who scores a completion: its value is how much of the trait it shows, its part `coherence` how coherent it is.

    The options of every judge are filled up from persona.judge; limits of calls are those of the section reward, whose
    pool judges. Raises ConfigError for a scorer that cannot be built."""
    pool = {field: getattr(config.reward, field) for field in OF_THE_POOL}
    scorer = _filled(trait.scorer, config)
    if trait.coherence is not None:
        coherence = _filled(trait.coherence, config)
        parts = {"trait": _component(scorer), COHERENCE: {**_component(coherence), "weight": 0}}
        scorer = RewardConfig(name="compose", options={"rewards": parts})
    chosen = scorer.model_copy(update={**pool, "max_error_fraction": trait.scorer.max_error_fraction})
    try:
        reward_spec(chosen)
    except ConfigError as error:
        hint = ""
        if "judge" in (trait.scorer.name, trait.coherence.name if trait.coherence else None):
            hint = "\nA judge's endpoint stands in the section persona: judge: {base_url: ..., model: ...}"
        raise ConfigError(f"trait {trait.name}: {error}{hint}") from error
    return chosen


def spec_of(judge: RewardConfig) -> RewardSpec:
    """A judge as a problem's reward."""
    return RewardSpec(judge.name or "", file=judge.file, function=judge.function, options=judge.options)


def questions_of(trait: Trait, config: RunConfig) -> Questions:
    """The trait's questions, judged by its scorer. Raises ConfigError and DataError."""
    spec = spec_of(judge_of(trait, config))
    asked = {
        name: _problems(of, f"trait {trait.name}: questions.{name}", reward=spec, seed=config.run.seed)
        for name, of in (("extract", trait.questions.extract), ("evaluate", trait.questions.evaluate))
    }
    return Questions(
        extract=tuple(without(asked["extract"], asked["evaluate"])),
        evaluate=tuple(asked["evaluate"]),
    )


def under(problem: Problem, instruction: str, *, name: str, role: str) -> Problem:
    """The question under an instruction, in place of a system turn of its own, or before the question itself.

    `name` makes it another problem with noise of its own."""
    turns = [message for message in problem.messages if message.role != "system"]
    if role == "system":
        turns.insert(0, Message(role="system", content=instruction))
    else:
        first = next(place for place, message in enumerate(turns) if message.role == "user")
        turns[first] = replace(turns[first], content=f"{instruction}\n\n{turns[first].content}")
    return replace(problem, id=f"{name}/{problem.id}", messages=tuple(turns))


def coherence_of(reward: Reward) -> float:
    """How coherent the completion is; 1 where nobody was asked."""
    return reward.parts.get(COHERENCE, 1.0)


def _filled(scorer: RewardConfig, config: RunConfig) -> RewardConfig:
    if scorer.name != "judge":
        return scorer
    return scorer.model_copy(update={"options": {**config.persona.judge, **scorer.options}})


def _component(scorer: RewardConfig) -> Mapping[str, Any]:
    fields = {"name": scorer.name, "file": scorer.file, "function": scorer.function, "options": scorer.options}
    return {field: value for field, value in fields.items() if value is not None}


def _problems(questions: list[str] | Source, field: str, *, reward: RewardSpec, seed: int) -> Sequence[Problem]:
    if isinstance(questions, Source):
        return load_problems(questions, field=field, reward=reward, seed=seed, dropped={})
    return [
        Problem(
            id=hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
            messages=(Message(role="user", content=text),),
            answer="",
            reward=reward,
        )
        for text in dict.fromkeys(questions)
    ]
