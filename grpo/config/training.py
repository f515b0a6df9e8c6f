"""How a policy is trained: cold start, sizes of the loop, loss and optimizer.

Where a paper is silent the default is ours, and the sentence under the field says so."""

from typing import Literal, Self

from pydantic import Field, model_validator

from grpo.config.base import Section
from grpo.config.inputs import Source
from grpo.config.steering import AppliedVectors

# Clips of the ratio of a rollout lie this close to 1: it is a mean over tokens, and moves far less than one token's.
MAX_SEQUENCE_CLIP = 0.05


class TrainConfig(Section):
    """The loop's sizes. Three batch numbers; the rest is derived, and `grpo check` prints it."""

    steps: int = Field(ge=1)
    """Steps of the run, all stages together."""
    max_tokens: int | None = Field(None, ge=1)
    """End the run after the step in which so many tokens are spent: sampled by the profile, in training and for every
    decision on the way. null has no such bound; with it, schedules still run over steps."""
    problems_per_step: int = Field(32, ge=1)
    """Problems sampled in a step, over all processes."""
    group_size: int = Field(8, ge=2)
    """Rollouts per problem (G). A group needs two rollouts to have a baseline."""
    failures_per_group: int | None = Field(None, ge=1)
    """Train on every success of a group and on this many of its failures, drawn evenly and weighted for the others, so
    that the gradient stays unbiased: a large group with one success costs little to train on. null takes all."""
    tokens_per_micro_batch: int = Field(16384, ge=1)
    """Tokens of one forward and backward pass; a longer rollout goes alone. A group's prompt counts once, and there is
    no padding, but for a model whose attention cannot be packed (the start says so). Lower it when training runs out of
    memory."""
    minibatches_per_step: int = Field(1, ge=1)
    """Optimizer updates in a pass over the step's groups."""
    epochs_per_step: int = Field(1, ge=1)
    """Passes over the step's groups."""
    old_logprobs: Literal["policy", "sampler"] = "policy"
    """What the ratio compares with: log-probs of the policy before the step's first update, or the sampler's own."""


class AdvantageConfig(Section):
    """How rewards become advantages."""

    baseline: Literal["mean", "leave_one_out"] = "mean"
    """mean of the group, or of the group's other rollouts (RLOO)."""
    scale: Literal["none", "group_std", "batch_std"] = "none"
    """Divide by the standard deviation of the group (GRPO) or of the step's centred rewards (Magistral), or not at all
    (Dr. GRPO)."""


class LossConfig(Section):
    """Four independent choices: ratio, surrogate, correction, aggregation. No KL term and no reference model."""

    ratio: Literal["token", "sequence"] = "token"
    """token: one ratio a token; sequence: the geometric mean over the rollout (GSPO)."""
    surrogate: Literal["clip", "cispo"] = "clip"
    """clip: PPO's pessimistic clip; cispo: a clipped, detached weight on the log-prob."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    """Lower side of the clip: the ratio below 1 - clip_low. With ratio sequence it must be set, below 0.05."""
    clip_high: float = Field(0.28, ge=0)
    """Upper side of the clip: the ratio above 1 + clip_high (clip-higher of DAPO). With ratio sequence it must be set,
    below 0.05: GSPO uses 3e-4 and 4e-4."""
    dual_clip: float | None = Field(None, gt=1)
    """Largest ratio that counts where the advantage is negative; null is off."""
    cispo_max_weight: float = Field(5.0, gt=0)
    """Largest weight of cispo: an absolute bound on the ratio, not a distance from 1."""
    correction: Literal["none", "truncated", "icepop"] = "none"
    """For policy log-probs that differ from the sampler's: truncated importance weights, or IcePop's mask."""
    correction_low: float | None = Field(None, ge=0)
    """Lower bound of the weight: IcePop drops tokens below it, truncated raises the weight to it; null is 0.5 for
    IcePop and 0, which is none, for truncated, as published."""
    correction_high: float = Field(2.0, gt=0)
    """Upper bound of the weight: IcePop drops tokens above it; truncated lowers the weight to it."""
    aggregation: Literal["token", "sequence", "group", "constant"] = "token"
    """Mean over the update's tokens; over its rollouts' means (GRPO); over each group's tokens (DAPO as published,
    Magistral); or tokens divided by rollouts times the limit (Dr. GRPO)."""
    truncated: Literal["keep", "mask", "penalty"] = "keep"
    """Completions cut by the limit: kept, left out of the loss, or penalised softly as they near it (DAPO)."""
    penalty_buffer_tokens: int = Field(0, ge=0)
    """Tokens before the limit over which penalty grows from 0 to 1."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if (self.truncated == "penalty") != (self.penalty_buffer_tokens > 0):
            raise ValueError(
                f"truncated = {self.truncated!r} and penalty_buffer_tokens = {self.penalty_buffer_tokens}: penalty and "
                "a buffer above 0 go together; set both or neither"
            )
        if self.dual_clip is not None and self.surrogate != "clip":
            raise ValueError(f"dual_clip = {self.dual_clip} is for surrogate clip; drop it or set surrogate: clip")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(
                f"dual_clip = {self.dual_clip}: must be above 1 + clip_high = {1 + self.clip_high}, else it hides the "
                "upper clip; raise it"
            )
        low = self.lowest_correction
        if low >= self.correction_high:
            raise ValueError(
                f"correction_low = {low}: must be below correction_high = {self.correction_high}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Self:
        if self.surrogate == "cispo":
            self.refuse_unread("clip_low", "clip_high", because="surrogate is cispo", remedy="set surrogate: clip")
        if self.surrogate == "clip":
            self.refuse_unread("cispo_max_weight", because="surrogate is clip", remedy="set surrogate: cispo")
        if self.correction == "none":
            names = ("correction_low", "correction_high")
            self.refuse_unread(*names, because="correction is none", remedy="set correction: truncated or icepop")
        return self

    @model_validator(mode="after")
    def _clip_of_the_ratio(self) -> Self:
        widest = max(self.clip_low, self.clip_high)
        if self.ratio == "sequence" and self.surrogate == "clip" and widest >= MAX_SEQUENCE_CLIP:
            raise ValueError(
                f"clip_low = {self.clip_low}, clip_high = {self.clip_high}: both must be below {MAX_SEQUENCE_CLIP} "
                "with ratio sequence, a mean over a rollout's tokens that hardly moves, else nothing is clipped; set "
                "clip_low: 3.0e-4 and clip_high: 4.0e-4, as GSPO does"
            )
        return self

    @property
    def lowest_correction(self) -> float:
        """The lower bound of the correction's weight: correction_low, or what null stands for."""
        default = 0.5 if self.correction == "icepop" else 0.0
        return default if self.correction_low is None else self.correction_low


class OptimConfig(Section):
    """The optimizer and its schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised momentum for the matrices of the blocks, its update's RMS scaled to AdamW's (arXiv
    2502.16982), so that one learning rate does for both; AdamW for embeddings, head, norms and biases."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of muon (0.95 in arXiv 2508.06471)."""
    learning_rate: float = Field(1e-6, gt=0)
    """Learning rate after warm-up (1e-6 is what GLM-4.5's team uses for RL, in their code)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up, until the run's last step."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """Share of learning_rate at the last step, for linear and cosine."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_skipped_updates: int = Field(5, ge=0)
    """Updates in a row that may be skipped for a non-finite loss or gradient before the run ends."""

    @model_validator(mode="after")
    def _betas_decay(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)}: each must be at least 0 and below 1")
        return self

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Self:
        if self.kind != "muon":
            self.refuse_unread("muon_momentum", because=f"kind is {self.kind}", remedy="set kind: muon")
        if self.schedule == "constant":
            because, remedy = "schedule is constant", "set schedule: linear or cosine"
            self.refuse_unread("final_fraction", because=because, remedy=remedy)
        return self


class SftConfig(Section):
    """Cold start: supervised steps on traces until a gate on pass@1, by TRL's SFTTrainer."""

    traces: Source
    """Rows with a prompt and a trace to learn from."""
    completion: str = "{answer}"
    """The trace as a text, with fields of the row in braces."""
    gate_pass_at_1: float | None = Field(None, gt=0, le=1)
    """Stop when pass@1 on the validation problems reaches it; null trains for max_steps."""
    gate_rollouts: int = Field(4, ge=1)
    """Rollouts of each validation problem at a look at the gate."""
    gate_every_steps: int = Field(50, ge=1)
    """Supervised steps between two looks at the gate."""
    max_steps: int = Field(ge=1)
    """Most supervised steps; with a gate, ending here without reaching it is an error."""
    batch_size: int = Field(64, ge=1)
    """Traces a step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Traces of one forward and backward pass; null takes batch_size."""
    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate of AdamW, after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    steering: AppliedVectors | None = None
    """Steer the policy while it learns from the traces, and not at the looks at the gate nor afterwards (preventative
    steering in supervised finetuning, arXiv 2507.21509); null never does."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size}: must be a multiple of micro_batch_size = {self.micro_batch_size}; "
                "change one of them"
            )
        return self
