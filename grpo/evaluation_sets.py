"""The sets of problems that the config names for evaluation beside the held-out ones: who judges them, and their rows.

The pool of verifiers is the run's; limits of calls and processes are set in the section reward, for every set."""

from collections.abc import Iterable

from grpo import published
from grpo.config import EvaluationSet, RewardConfig, RunConfig
from grpo.data import load_problems
from grpo.errors import ConfigError
from grpo.practice import reward_spec
from grpo.types import Problem

OF_THE_POOL = ("timeout_seconds", "memory_limit_mb", "workers")


def judge_of(config: RunConfig, name: str) -> RewardConfig:
    """Who judges a set: its own reward, the judge of its source's format, or the run's.

    Raises ConfigError where its own reward sets a limit of the pool, which the section reward sets for all."""
    pool = {field: getattr(config.reward, field) for field in OF_THE_POOL}
    chosen = config.evaluation.sets.get(name)
    if chosen is None or (chosen.reward is None and chosen.source.format == "rows"):
        return config.reward
    if chosen.reward is None:
        spec = published.FORMATS[chosen.source.format].judge
        lost = config.reward.max_error_fraction
        return RewardConfig(name=spec.name, options=spec.options, max_error_fraction=lost, **pool)
    _check_pool(chosen.reward, pool, name=name)
    return chosen.reward.model_copy(update=pool)


def load_sets(config: RunConfig, *, dropped: dict[str, dict[str, int]]) -> dict[str, list[Problem]]:
    """The problems of each of evaluation.sets. `dropped` takes the rows left out of each, by reason.

    Raises ConfigError for a judge that cannot be built, DataError for rows."""
    return {name: _load(config, chosen, name, dropped) for name, chosen in config.evaluation.sets.items()}


def num_practised(problems: Iterable[Problem], practised: Iterable[Problem]) -> int:
    """How many of `problems` ask a question of the `practised` ones."""
    asked = {problem.question for problem in practised}
    return sum(problem.question in asked for problem in problems)


def _load(config: RunConfig, chosen: EvaluationSet, name: str, dropped: dict[str, dict[str, int]]) -> list[Problem]:
    field = f"evaluation.sets.{name}"
    try:
        reward = reward_spec(judge_of(config, name))
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error
    seed = config.run.seed
    counts = dropped.setdefault(name, {})
    return load_problems(chosen.source, field=f"{field}.source", reward=reward, seed=seed, dropped=counts)


def _check_pool(reward: RewardConfig, pool: dict[str, object], *, name: str) -> None:
    for field, value in pool.items():
        own, default = getattr(reward, field), RewardConfig.model_fields[field].default
        if own not in (value, default):
            raise ConfigError(
                f"evaluation.sets.{name}.reward.{field} = {own}: one pool judges every set, with reward.{field} = "
                f"{value}; set it there, or drop it here"
            )
