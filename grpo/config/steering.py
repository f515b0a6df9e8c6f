"""Persona vectors in training: which vectors steer the policy, how much, where, and in which halves of a step.

What the vectors are and what is added where is `grpo.persona`'s and `grpo.steering`'s to say (arXiv 2507.21509)."""

from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from grpo.config.base import Section
from grpo.config.following import FollowConfig


class AppliedVectors(Section):
    """A trait's vectors, and what they do to the policy wherever it is steered."""

    vectors: str
    """File of the trait's vectors, from `grpo persona extract`. A resume refuses another content under the same
    name."""
    over: Literal["response", "prompt", "last_prompt"] = "response"
    """Which of the file's vectors: of the completion's tokens (the best in arXiv 2507.21509), of the prompt's, or of
    the last prompt token."""
    blocks: list[int] | None = Field(None, min_length=1)
    """Decoder blocks at whose output the policy is steered, from 0; null takes the one that the file recommends, or
    that at 0.55 of the depth."""
    increments: bool = False
    """Steer each block by its vector less that of the block before it in blocks: together they come to the last one's
    vector (the variant of arXiv 2507.21509 for several layers)."""
    kind: Literal["add", "ablate"] = "add"
    """add: h + coefficient · v; ablate: h less coefficient times its part along v, which at 1 takes the direction
    out."""
    coefficient: float
    """Signed factor. Vectors are not normalised: 1 moves by the whole difference between completions with and without
    the trait."""
    positions: Literal["choosing", "start", "completion", "all"] = "choosing"
    """choosing: the last prompt token and the completion, which is what a decode with a cache steers; start: the last
    prompt token alone, for a trait that a first token decides; completion: not the last prompt token; all: the prompt
    too. Sampling and training steer the same ones under each."""
    random_control: bool = False
    """Replace each vector by a random direction of the same norm, drawn by the run's seed: the control that an effect
    of the trait's own has to be held against."""
    allow_other_model: bool = False
    """Take vectors that were extracted from other weights of the same shape."""

    @model_validator(mode="after")
    def _blocks_are_blocks(self) -> Self:
        twice = [block for block, count in Counter(self.blocks or []).items() if count > 1]
        if twice:
            raise ValueError(f"blocks = {self.blocks}: names {twice[0]} twice; drop one")
        if self.blocks is not None and min(self.blocks) < 0:
            raise ValueError(f"blocks = {self.blocks}: are counted from 0; name none below")
        if self.increments and len(self.blocks or []) < 2:
            raise ValueError(
                f"increments = true and blocks = {self.blocks}: a difference between blocks needs two; name more "
                "blocks or set increments: false"
            )
        return self


class SteeringConfig(AppliedVectors):
    """Steering by persona vectors in the training loop; profile and evaluations are never steered."""

    mode: Literal["preventative", "train_only", "sample_only"] = "preventative"
    """preventative: on while a step samples and while it trains, so that the ratio is exact. train_only and sample_only
    steer one half of a step, which is off-policy from its first update."""
    stages: list[str] = []
    """Names of the curriculum's stages in which the policy is steered; empty: all."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the coefficient goes from coefficient to final_coefficient."""
    final_coefficient: float | None = None
    """Coefficient after schedule_steps, for linear and cosine."""
    schedule_steps: int | None = Field(None, ge=1)
    """Steps until final_coefficient is reached, which then stays, for linear and cosine."""
    follow: FollowConfig | None = None
    """Let the coefficient follow what the steps measure, from coefficient on; null leaves it to schedule."""
    allow_off_policy: bool = False
    """Let train_only and sample_only run without a correction for what the sampler's steering changes."""

    @model_validator(mode="after")
    def _schedule_has_its_fields(self) -> Self:
        fields = {"final_coefficient": self.final_coefficient, "schedule_steps": self.schedule_steps}
        for name, value in fields.items():
            if self.schedule == "constant" and value is not None:
                raise ValueError(
                    f"{name} = {value} is not read where schedule is constant; drop it or set schedule: linear or "
                    "cosine"
                )
            if self.schedule != "constant" and value is None:
                raise ValueError(f"schedule = {self.schedule!r} needs {name}; set it, or schedule: constant")
        return self

    @model_validator(mode="after")
    def _can_follow(self) -> Self:
        follow = self.follow
        if follow is None:
            return self
        if self.schedule != "constant":
            raise ValueError(
                f"schedule = {self.schedule!r} and follow both say what the coefficient is; drop one of them"
            )
        if self.coefficient == 0:
            raise ValueError("coefficient = 0, and follow moves it in units of where it begins; begin elsewhere")
        if follow.kind != "projection" and self.mode == "train_only":
            raise ValueError(
                f"follow.kind = {follow.kind!r} follows what steered rollouts show, and mode = 'train_only' draws "
                "none; set mode: preventative, or follow.kind: projection"
            )
        return self

    @model_validator(mode="after")
    def _stages_stand_once(self) -> Self:
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages = {self.stages}: must name each stage once; drop the second")
        if self.mode == "preventative" and self.allow_off_policy:
            raise ValueError(
                "allow_off_policy = true is not read where mode is preventative, which is on-policy; drop it or set "
                "mode: train_only or sample_only"
            )
        return self
