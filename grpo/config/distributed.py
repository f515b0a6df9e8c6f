"""How a run uses several processes, and how long it waits for one that makes no progress."""

from typing import Literal, Self

from pydantic import Field, model_validator

from grpo.config.base import Section


class DistributedConfig(Section):
    """How the policy lies on the ranks that a launcher (torchrun, deepspeed) started. One process is one rank."""

    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """ddp: weights, gradients and moments whole on every rank; zero1 shards the moments over the ranks, zero2 the
    gradients too, zero3 the weights too (DeepSpeed; Rajbhandari et al. 2020, arXiv 1910.02054)."""
    offload_optimizer: bool = False
    """Hold moments and float32 copies in the host's memory, and update them there; for zero1, zero2 and zero3."""
    offload_parameters: bool = False
    """Hold the sharded weights in the host's memory; for zero3."""
    zero3_sampling: Literal["auto", "gather", "layers"] = "auto"
    """How zero3 samples: gather the whole weights once for each sampling phase, or layer by layer in every forward;
    auto gathers where the weights fit beside what is held, and says what it chose."""
    deepspeed_config: str | None = None
    """A JSON file for DeepSpeed whose fields are laid over the generated ones (`grpo check` prints them); a field that
    contradicts the run is an error."""
    deterministic: bool = True
    """Share groups out by a plan that is fixed before sampling; false lets a rank that is done take groups of others,
    which is faster where lengths differ and repeats only to rounding."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.strategy == "ddp":
            names = ("offload_optimizer", "offload_parameters", "deepspeed_config")
            self.refuse_unread(*names, because="strategy is ddp", remedy="set strategy: zero1, zero2 or zero3")
        if self.strategy != "zero3":
            of_zero3 = ("offload_parameters", "zero3_sampling")
            self.refuse_unread(*of_zero3, because=f"strategy is {self.strategy}", remedy="set strategy: zero3")
        return self


class WatchdogConfig(Section):
    """What ends a run that hangs."""

    seconds: float = Field(600.0, gt=0)
    """A phase without progress for this long ends every rank with exit code 75 and the stacks of all threads in its
    log. Progress is a decoded token, a verdict, a micro-batch, a file: set it above the longest single one of them,
    such as loading the model or writing a checkpoint."""


class GuardConfig(Section):
    """Bounds that tell a run that diverges: each step above one is warned of, several in a row end the run."""

    max_ratio: float | None = Field(None, gt=1)
    """Largest probability ratio of a step (policy/ratio_max); null is off."""
    max_sampler_gap: float | None = Field(None, gt=0)
    """Largest gap between the sampler's log-probs and the policy's, in nats (policy/sampler_logprob_gap_max); null is
    off."""
    max_steps_in_a_row: int = Field(5, ge=1)
    """Steps in a row above a bound that end the run."""
