"""From the config to what decides about practice: the reward, the curriculum and the temperature schedule."""

from collections.abc import Mapping, Sequence

from curricula import (
    Adaptive,
    Constant,
    Cosine,
    Curriculum,
    Diversity,
    Guard,
    Linear,
    Mixture,
    MoveRule,
    Online,
    PlateauRule,
    StageRule,
    Steps,
    TemperatureSchedule,
    Tier,
    TwoStages,
    Uniform,
    Weighted,
)
from grpo.config import CurriculumConfig, RewardConfig, RunConfig, TemperatureConfig
from grpo.errors import ConfigError, DataError
from grpo.seeds import torch_seed
from rewards import RewardSpec, build_spec, longest_seconds


def reward_spec(config: RewardConfig) -> RewardSpec:
    """The run's reward, built once here so that a wrong name, file or option is an error before anything starts."""
    try:
        spec = RewardSpec(config.name or "", file=config.file, function=config.function, options=config.options)
        build_spec(spec)
        seconds = longest_seconds(spec)
    except ValueError as error:
        raise ConfigError(f"reward: {error}") from error
    if config.workers and seconds >= config.timeout_seconds:
        raise ConfigError(
            f"reward.timeout_seconds = {config.timeout_seconds:g}: {spec.title} may take {seconds:g} s by its own "
            f"options, and a call that is killed before is no verdict; set it above {seconds:g}, or lower the options"
        )
    return spec


_SECTIONS = {"two_stages": "stages", "mixture": "shares"}


def needs_profile(config: RunConfig) -> bool:
    """Whether the curriculum asks for tiers."""
    return config.curriculum.by_tier


def build_curriculum(config: RunConfig, problem_ids: Sequence[str], tiers: Mapping[str, Tier]) -> Curriculum:
    """The curriculum over `problem_ids`; `tiers` labels the profiled ones. Raises DataError for an empty tier."""
    seed = torch_seed(config.run.seed, "curriculum")
    if config.curriculum.kind == "uniform":
        return Uniform(problem_ids, seed=seed)
    if config.curriculum.kind == "weighted":
        return Weighted(problem_ids, seed=seed)
    moves = _moves(config.curriculum)
    if config.curriculum.kind == "online":
        return Online(
            problem_ids,
            seed=seed,
            moves=moves,
            max_wait_epochs=config.curriculum.moves.max_wait_epochs,
            first_group_size=config.curriculum.first_group_size,
        )
    try:
        if config.curriculum.kind == "mixture":
            return Mixture(tiers, shares=config.curriculum.shares, seed=seed, moves=moves)
        return TwoStages(tiers, stages=_stage_rules(config.curriculum), seed=seed, moves=moves)
    except ValueError as error:
        raise DataError(f"curriculum.{_SECTIONS[config.curriculum.kind]}: {error}") from error


def _moves(config: CurriculumConfig) -> MoveRule:
    moves = config.moves
    return MoveRule(
        retire_rate=moves.retire_rate,
        promote_rate=moves.promote_rate,
        half_life_observations=moves.half_life_groups,
        min_observations=config.min_groups,
        check_every_epochs=moves.check_every_epochs,
    )


def _stage_rules(config: CurriculumConfig) -> list[StageRule]:
    plateau = PlateauRule(window_steps=config.plateau_window_steps, improvement_fraction=config.plateau_rise)
    return [
        StageRule(
            name=stage.name,
            tiers=tuple(stage.tiers),
            steps=stage.steps,
            plateau=plateau if stage.until_plateau else None,
            trivial_fraction=stage.until_trivial_fraction,
            mix_tiers=tuple(stage.mix_tiers),
            mix_fraction=stage.mix_fraction,
            follow_moves=stage.follow_moves,
        )
        for stage in config.stages
    ]


def first_temperature(config: RunConfig) -> float:
    """The temperature of practice at its beginning, which labels are for: the first stage's own, or the schedule's."""
    stages = config.curriculum.stages if config.curriculum.kind == "two_stages" else []
    return next((stage.temperature for stage in stages[:1] if stage.temperature is not None), config.temperature.value)


def build_temperature(config: TemperatureConfig, *, num_steps: int) -> TemperatureSchedule:
    """The schedule over the run's steps."""
    if config.kind == "linear" and config.final is not None:
        return Linear(config.value, end=config.final, steps=max(1, num_steps - 1))
    if config.kind == "cosine" and config.final is not None:
        return Cosine(config.value, end=config.final, steps=max(1, num_steps - 1))
    if config.kind == "steps":
        return Steps(config.value, changes=config.milestones)
    if config.kind == "adaptive":
        return Adaptive(
            config.value,
            grid=config.grid,
            plateau=PlateauRule(window_steps=config.window_steps, improvement_fraction=config.window_rise),
            guard=Guard(
                drop=config.guard,
                unit=config.guard_kind,
                reference=config.reference,
                max_standard_error=config.max_standard_error,
            ),
            choose=config.choose,
            rollouts_per_problem=config.rollouts_per_problem,
            max_rollouts_per_problem=config.max_rollouts_per_problem,
            min_effective_fraction=config.min_effective_fraction if config.counterfactual else None,
            cooldown_steps=config.cooldown_steps,
        )
    if config.kind == "diversity":
        return Diversity(
            config.value,
            grid=config.grid,
            rollouts_per_problem=config.rollouts_per_problem,
            cooldown_steps=config.cooldown_steps,
        )
    return Constant(config.value)
