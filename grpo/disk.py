"""What a run's folder will take on the disk: checkpoints, rollouts and the profile, from the sizes of the config.

Checkpoints are arithmetic; the text of a rollout is an estimate from runs of this project, with every completion at its
limit and every refill taken, so that it is what a run may take and seldom does."""

from collections.abc import Sequence

from curricula.refill import MOST_PER_WAVE
from grpo.config import RunConfig
from grpo.practice import needs_profile
from grpo.types import Stage

ROLLOUT_BYTES = 600
"""Of a rollout as JSON, its text and tokens aside."""
TOKEN_BYTES = 32
"""Of one token of a rollout: id, log-prob and text."""
ATTEMPT_BYTES = 20
"""Of one rollout in the profile's store."""


def disk(
    config: RunConfig,
    stages: Sequence[Stage],
    *,
    weight_bytes: int,
    optimizer_bytes: int,
    num_profiled: int | None,
) -> dict[str, int]:
    """Bytes by part, at most.

    `weight_bytes` and `optimizer_bytes` are those of the weights that are trained and of their moments and float32
    copies; `num_profiled` problems are profiled at the start, None where nobody knows."""
    checkpoint = config.checkpoint
    # One is written before the oldest goes; the best policy and the cold start are weights alone.
    weights_alone = (1 if config.evaluation.every_steps else 0) + (1 if config.sft is not None else 0)
    parts = {
        "checkpoints": (checkpoint.keep_last + 1) * (weight_bytes + optimizer_bytes) + weights_alone * weight_bytes
    }
    per_step = max(
        stage.problems_per_step * stage.group_size * _rollout_bytes(stage.max_completion_tokens) for stage in stages
    )
    refilled = 1 + MOST_PER_WAVE * config.curriculum.max_refill_waves
    parts["rollouts"] = min(config.tracking.rollout_files, config.train.steps) * refilled * per_step
    if needs_profile(config) and num_profiled is not None:
        profile = config.profile
        groups = num_profiled * profile.first_rollouts * _rollout_bytes(config.sampling.max_completion_tokens)
        kept = groups if profile.reuse_steps else 0
        parts["profile"] = num_profiled * profile.max_rollouts * ATTEMPT_BYTES + kept
    return parts


def _rollout_bytes(tokens: int) -> int:
    return ROLLOUT_BYTES + TOKEN_BYTES * tokens
