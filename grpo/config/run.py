"""A run as a whole: how it is evaluated, kept and watched, and the rules between its sections."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from curricula import Tier
from grpo.config.base import Section
from grpo.config.distributed import DistributedConfig, GuardConfig, WatchdogConfig
from grpo.config.inputs import (
    VLLM_LEAST_TEMPERATURE,
    ChatConfig,
    DataConfig,
    ModelConfig,
    RewardConfig,
    RunSection,
    SamplingConfig,
    Source,
)
from grpo.config.persona import PersonaConfig
from grpo.config.practice import (
    CurriculumConfig,
    ProfileConfig,
    TemperatureConfig,
)
from grpo.config.steering import SteeringConfig
from grpo.config.training import (
    AdvantageConfig,
    LossConfig,
    OptimConfig,
    SftConfig,
    TrainConfig,
)


class EvaluationSet(Section):
    """A set of problems to evaluate on."""

    source: Source
    """Its rows: any problems file or hub data set, or a benchmark's file in its published form (source.format)."""
    reward: RewardConfig | None = None
    """Who judges; null takes the judge of the source's format, or the run's own."""


class EvaluationConfig(Section):
    """Scores on the held-out problems, with seeds of their own."""

    rollouts_per_problem: int = Field(8, ge=1)
    """Rollouts of each held-out problem."""
    k: list[int] = Field([1, 8], min_length=1)
    """pass@k is reported for each."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of evaluation, whatever training uses."""
    every_steps: int = Field(0, ge=0)
    """Training steps between evaluations on the validation problems; 0 has none."""
    validation_rollouts: int = Field(4, ge=1)
    """Rollouts of each validation problem in the evaluations during training."""
    checkpoints: list[str] = ["start", "last"]
    """Policies of the final evaluation: start (before training), last, best (on the validation problems), a step such
    as step_000100, or the path of a checkpoint. Each is compared with the first, problem by problem."""
    patience: int | None = Field(None, ge=1)
    """Evaluations without a better pass@1 after which the run stops early; null never does."""
    steered: bool = False
    """Score each policy of the final evaluation a second time, as NAME_steered: under the vectors and the coefficient
    of the section steering, whatever a schedule made of it."""
    by_column: str | None = None
    """A column of the held-out rows by whose values the tables are split."""
    by_tier: bool = False
    """Split the tables of the held-out problems by tier as well: the policy that training starts from profiles them,
    on draws that no score is made of."""
    sets: dict[str, EvaluationSet] = {}
    """More sets to evaluate on, by name, beside the held-out problems (heldout)."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if any(not 1 <= k <= self.rollouts_per_problem for k in self.k):
            raise ValueError(
                f"k = {self.k}: each must be from 1 to rollouts_per_problem = {self.rollouts_per_problem}; raise "
                "rollouts_per_problem or lower k"
            )
        if self.every_steps == 0 and (self.patience is not None or "best" in self.checkpoints):
            raise ValueError(
                f"every_steps = 0, but patience = {self.patience} and checkpoints = {self.checkpoints} (best) need "
                "evaluations during training; set every_steps above 0"
            )
        if not self.checkpoints or len(set(self.checkpoints)) < len(self.checkpoints):
            raise ValueError(f"checkpoints = {self.checkpoints}: name at least one, and each once")
        for name in ("heldout", "train", "validation"):
            if name in self.sets:
                raise ValueError(f"sets: {name} is the name of problems of the section data; give this set another one")
        return self


class CheckpointConfig(Section):
    """What survives a restart."""

    every_steps: int = Field(10, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints kept, the newest ones; the best one is kept beside them."""
    grace_seconds: float = Field(20.0, ge=0)
    """Time that a step has to end after SIGTERM or Ctrl-C; a step that still samples is then given up, and the state
    at its beginning is saved. Launchers kill some 30 seconds after SIGTERM."""


class TrackingConfig(Section):
    """What is written for people to look at."""

    wandb: Literal["off", "offline", "online", "auto"] = "off"
    """auto is online where a wandb key is found and offline otherwise."""
    wandb_project: str = "grpo"
    """Project in wandb, and in trackio."""
    tensorboard: bool = False
    """Write TensorBoard's files into the folder tensorboard/ of the run (pip install 'grpo-trainer[tensorboard]')."""
    trackio: bool = False
    """Write to trackio's local store as well (pip install 'grpo-trainer[trackio]')."""
    shown_rollouts: int = Field(32, ge=0)
    """Rollouts of a step, in whole groups, in the tables of wandb and the like; 0 sends none. All are in rollouts/."""
    shown_every_steps: int = Field(10, ge=1)
    """Steps between two such tables."""
    rollout_files: int = Field(200, ge=0)
    """Newest steps whose rollouts are kept as JSONL; 0 keeps none."""

    @field_validator("wandb", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        # YAML reads a bare off as false.
        return "off" if value is False else value


class RunConfig(Section):
    """The whole of a run, as one YAML file."""

    run: RunSection
    model: ModelConfig
    chat: ChatConfig = ChatConfig()
    data: DataConfig
    sampling: SamplingConfig = SamplingConfig()
    temperature: TemperatureConfig = TemperatureConfig()
    reward: RewardConfig
    sft: SftConfig | None = None
    profile: ProfileConfig = ProfileConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    train: TrainConfig
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    steering: SteeringConfig | None = None
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()
    distributed: DistributedConfig = DistributedConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    persona: PersonaConfig = PersonaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.loss.correction != "none" and self.train.old_logprobs == "sampler":
            raise ValueError(
                "loss.correction compares the policy with the sampler, but train.old_logprobs is sampler, so there is "
                "nothing to correct; set old_logprobs: policy or correction: none"
            )
        if self.loss.penalty_buffer_tokens > self.sampling.max_completion_tokens:
            raise ValueError(
                f"loss.penalty_buffer_tokens = {self.loss.penalty_buffer_tokens} is above "
                f"sampling.max_completion_tokens = {self.sampling.max_completion_tokens}; lower it"
            )
        self._check_optimizer()
        if self.sampling.engine == "vllm":
            self._check_vllm()
        problems = {"train.problems_per_step": self.train.problems_per_step}
        if self.curriculum.kind == "two_stages":
            problems |= {
                f"curriculum.stages.{index}.problems_per_step": stage.problems_per_step or self.train.problems_per_step
                for index, stage in enumerate(self.curriculum.stages)
            }
        for name, number in problems.items():
            if self.train.minibatches_per_step > number:
                raise ValueError(
                    f"train.minibatches_per_step = {self.train.minibatches_per_step} is above {name} = {number}; a "
                    "minibatch needs a group: lower it"
                )
        restricted = self.sampling.top_k or self.sampling.top_p < 1 or self.sampling.min_p
        if self.temperature.counterfactual and restricted:
            raise ValueError(
                "temperature.counterfactual reweights what was drawn, but what sampling.top_k, top_p and min_p leave "
                "differs by temperature; switch them off or set counterfactual: false"
            )
        self._check_stages()
        if self.steering is None:
            self.persona.refuse_unread(
                "reextract_steers",
                because="nothing is steered",
                remedy="add the section steering",
                section="persona",
            )
        else:
            self._check_steering(self.steering)
        if self.steering is None and self.evaluation.steered:
            raise ValueError("evaluation.steered = true, and there is no section steering to say how; add it")
        return self

    def _check_stages(self) -> None:
        stages = self.curriculum.stages if self.curriculum.kind == "two_stages" else []
        first = stages[0].temperature if stages else None
        own = [stage.temperature for stage in stages[1:] if stage.temperature is not None]
        self.temperature.check_something_is_hotter([self.temperature.value if first is None else first, *own])
        if not self.curriculum.by_tier:
            kind, remedy = self.curriculum.kind, "set curriculum.kind: two_stages or mixture"
            self.profile.refuse_unread("reuse_steps", because=f"kind is {kind}", remedy=remedy, section="profile")
        if self.curriculum.kind != "two_stages":
            return
        planned = self.temperature.kind in ("linear", "cosine", "steps")
        for index, stage in enumerate(self.curriculum.stages):
            if stage.temperature is not None and planned:
                raise ValueError(
                    f"curriculum.stages.{index}.temperature = {stage.temperature} and temperature.kind = "
                    f"{self.temperature.kind!r}, which plans every step: drop one of them"
                )
            group_size = stage.group_size or self.train.group_size
            if (stage.failures_per_group or 0) >= group_size:
                raise ValueError(
                    f"curriculum.stages.{index}.failures_per_group = {stage.failures_per_group}: must be below the "
                    f"stage's group size, {group_size}, or no failure is ever left out; lower it or drop it"
                )
            moderate_to = max(self.profile.relabel_rollouts, self.profile.first_rollouts)
            if stage.tiers == [Tier.extreme] and moderate_to >= self.profile.max_rollouts:
                raise ValueError(
                    f"curriculum.stages.{index} practises extreme problems alone, but there are none: by profile's "
                    f"relabel_rollouts and first_rollouts a first success up to rollout {moderate_to} is moderate, and "
                    f"max_rollouts = {self.profile.max_rollouts} draws no later one; lower those or raise this"
                )
            if (stage.max_completion_tokens or 0) > self.sampling.max_completion_tokens:
                raise ValueError(
                    f"curriculum.stages.{index}.max_completion_tokens = {stage.max_completion_tokens} is above "
                    f"sampling.max_completion_tokens = {self.sampling.max_completion_tokens}, the limit of profiles "
                    "and evaluations; raise that or lower this"
                )
            if self.loss.penalty_buffer_tokens > (stage.max_completion_tokens or self.sampling.max_completion_tokens):
                raise ValueError(
                    f"loss.penalty_buffer_tokens = {self.loss.penalty_buffer_tokens} is above "
                    f"curriculum.stages.{index}.max_completion_tokens = {stage.max_completion_tokens}; lower it, or "
                    "raise that"
                )

    def _check_steering(self, steering: SteeringConfig) -> None:
        is_corrected = self.loss.correction != "none" or self.train.old_logprobs == "sampler"
        if steering.mode != "preventative" and not is_corrected and not steering.allow_off_policy:
            raise ValueError(
                f"steering.mode = {steering.mode!r} samples from another policy than it trains, and nothing corrects "
                "for that; set loss.correction: truncated or icepop, or train.old_logprobs: sampler, or "
                "steering.allow_off_policy: true to go on without"
            )
        if steering.mode == "preventative" and self.curriculum.by_tier and self.profile.reuse_steps:
            raise ValueError(
                f"profile.reuse_steps = {self.profile.reuse_steps}: the profile's groups were drawn without steering, "
                "and steering.mode = 'preventative' trains on what was drawn with it; set reuse_steps: 0"
            )
        if steering.mode != "train_only" and self.temperature.counterfactual:
            raise ValueError(
                "temperature.counterfactual decides by the steps' own rollouts, which steering.mode = "
                f"{steering.mode!r} steers, while a temperature is chosen for the policy without; set it to false"
            )
        known = [stage.name for stage in self.curriculum.stages] if self.curriculum.kind == "two_stages" else []
        unknown = [name for name in steering.stages if name not in known]
        if unknown:
            has = f"has {', '.join(known)}" if known else f"of kind {self.curriculum.kind!r} has no stages"
            raise ValueError(f"steering.stages names {unknown[0]!r}, but the curriculum {has}; leave it out")

    def _check_optimizer(self) -> None:
        strategy = self.distributed.strategy
        if self.optim.kind == "muon" and strategy != "ddp":
            raise ValueError(
                f"optim.kind = 'muon' and distributed.strategy = {strategy!r}: DeepSpeed's Muon orthogonalises "
                "gradients before it measures and clips their norm, and scales its updates to no RMS; set strategy: "
                "ddp or kind: adamw"
            )

    def _check_vllm(self) -> None:
        """What vLLM does not draw as training scores it, or not at all, is refused here: it is seen in the config."""
        zero3 = self.distributed.strategy == "zero3"
        refused = (
            (self.model.float32_head, "model.float32_head = true", "it computes logits in model.dtype", "false"),
            (
                self.temperature.counterfactual,
                "temperature.counterfactual = true",
                "it tells log-probs at the temperature of the draw alone",
                "false",
            ),
            (
                self.steering is not None and self.steering.mode != "train_only",
                f"steering.mode = {self.steering.mode if self.steering else None!r}",
                "it steers no draws",
                "train_only, or sampling.engine: native",
            ),
            (self.evaluation.steered, "evaluation.steered = true", "it steers no draws", "false"),
            (
                zero3 and self.distributed.zero3_sampling != "gather",
                f"distributed.zero3_sampling = {self.distributed.zero3_sampling!r}",
                "it is handed whole weights",
                "gather",
            ),
        )
        for is_set, field, why, remedy in refused:
            if is_set:
                raise ValueError(f"{field} and sampling.engine = 'vllm': {why}; set {field.split(' ')[0]}: {remedy}")
        for field, value in self._temperatures():
            if value < VLLM_LEAST_TEMPERATURE:
                raise ValueError(
                    f"{field} = {value:g} and sampling.engine = 'vllm': it draws at {VLLM_LEAST_TEMPERATURE} where "
                    f"less is asked for; set {field}: {VLLM_LEAST_TEMPERATURE}, or sampling.engine: native"
                )

    def _temperatures(self) -> Iterator[tuple[str, float]]:
        """Every temperature that the run draws at, by its field."""
        own = self.temperature
        yield "temperature.value", own.value
        if own.final is not None:
            yield "temperature.final", own.final
        yield from ((f"temperature.milestones.{step}", value) for step, value in own.milestones.items())
        if own.kind in ("adaptive", "diversity"):
            yield from ((f"temperature.grid.{place}", value) for place, value in enumerate(own.grid))
        for place, stage in enumerate(self.curriculum.stages if self.curriculum.kind == "two_stages" else []):
            if stage.temperature is not None:
                yield f"curriculum.stages.{place}.temperature", stage.temperature
        yield "evaluation.temperature", self.evaluation.temperature
        yield "persona.temperature", self.persona.temperature
