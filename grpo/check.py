"""`grpo check`: what follows from a config before anything runs: batch arithmetic, sizes, memory, problems.

The memory is that of the tensors whose sizes are known beforehand. The activations of a forward pass are not among
them: they grow with train.tokens_per_micro_batch and shrink with model.activation_checkpointing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from grpo.config import ModelConfig, RunConfig
from grpo.data import load_problem_sets
from grpo.errors import ConfigError, DataError
from grpo.logprobs import CHUNK_ELEMENTS
from grpo.model import base_of, load_tokenizer, max_positions, skeleton
from grpo.practice import needs_profile, reward_spec
from grpo.recipe import phases_of, stages_of
from grpo.trainer import Stage
from rewards import RewardSpec

GIB = 2**30
FLOAT32_BYTES = 4
# Of one row and token of the vocabulary while a token is drawn: float32 logits and noise, and two int64 in the noise.
DECODE_BYTES = 24
# Of one logit of a chunk in the backward pass: itself, its log-prob and its gradient, in float32.
CHUNK_BYTES = 12


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of a model without its weights. Bytes follow from the type of each weight."""

    num_parameters: int
    num_trainable: int
    weight_bytes: int
    num_copied: int  # trainable weights below float32, which the optimizer copies
    cache_bytes_per_token: int
    vocabulary: int
    context_tokens: int | None


def derived(config: RunConfig) -> dict[str, object]:
    """Everything that follows from `config`, by name, in the order in which it is read.

    What lies elsewhere and cannot be read (a hub's model, a file of rows) is "unknown" with the reason. Raises
    ConfigError for a model, a tokenizer or a reward that the config itself gets wrong."""
    reward = reward_spec(config.reward)
    sizes = _sizes_or_reason(config.model)
    context_tokens = sizes.context_tokens if isinstance(sizes, Sizes) else None
    found: dict[str, object] = {"phases": ", ".join(phases_of(config)), "reward": reward.title}
    found |= _steps(config, longest_tokens=_longest_tokens(config, context_tokens))
    found |= _model(config, sizes)
    return found | _problems(config, reward)


def sizes_of(model: nn.Module) -> Sizes:
    """Counted from the weights themselves; they may be on the meta device."""
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    base = base_of(model)
    text = base.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Sizes(
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in trainable),
        weight_bytes=sum(p.nbytes for p in parameters),
        num_copied=sum(p.numel() for p in trainable if p.dtype != torch.float32),
        cache_bytes_per_token=2 * text.num_hidden_layers * heads * head_size * base.dtype.itemsize,
        vocabulary=int(base.get_output_embeddings().weight.shape[0]),
        context_tokens=max_positions(model),
    )


def memory_bytes(config: RunConfig, sizes: Sizes) -> dict[str, int]:
    """Bytes by part. The parts up to the moments are held all the time, those of sampling and training in turn."""
    tokens = _longest_tokens(config, sizes.context_tokens)
    chunk_tokens = min(max(1, CHUNK_ELEMENTS // sizes.vocabulary), max(tokens, config.train.tokens_per_micro_batch))
    held = {
        "weights": sizes.weight_bytes,
        "float32 copies": sizes.num_copied * FLOAT32_BYTES,
        "AdamW moments": 2 * sizes.num_trainable * FLOAT32_BYTES,
    }
    sampling = {
        "keys and values": config.sampling.max_rows * tokens * sizes.cache_bytes_per_token,
        "logits of a draw": config.sampling.max_rows * sizes.vocabulary * DECODE_BYTES,
    }
    training = {
        "gradients": sizes.num_trainable * FLOAT32_BYTES,
        "logits of a chunk": chunk_tokens * sizes.vocabulary * CHUNK_BYTES,
    }
    peak = sum(held.values()) + max(sum(sampling.values()), sum(training.values()))
    return {
        **held,
        **{f"{name}, sampling": value for name, value in sampling.items()},
        **{f"{name}, training": value for name, value in training.items()},
        "at least, without activations": peak,
    }


def _longest_tokens(config: RunConfig, context_tokens: int | None) -> int:
    """Most tokens of a rollout with its prompt."""
    tokens = config.data.max_prompt_tokens + config.sampling.max_completion_tokens
    return tokens if context_tokens is None else min(tokens, context_tokens)


def _steps(config: RunConfig, *, longest_tokens: int) -> dict[str, object]:
    train = config.train
    stages = stages_of(config)
    names = [stage.name for stage in config.curriculum.stages] if needs_profile(config) else [""]
    found: dict[str, object] = {"tokens of the longest rollout": longest_tokens}
    for name, stage in zip(names, stages, strict=True):
        of_stage = f"stage {name}: " if name else ""
        found |= {of_stage + what: number for what, number in _step(config, stage, longest_tokens).items()}
    found["optimizer updates of the run, at most"] = train.steps * train.minibatches_per_step * train.epochs_per_step
    exact, rollouts = _run_rollouts(config, stages)
    found["rollouts of the run, without refills" if exact else "rollouts of the run, at most, without refills"] = (
        rollouts
    )
    return found


def _step(config: RunConfig, stage: Stage, longest_tokens: int) -> dict[str, int]:
    train = config.train
    rollouts = stage.problems_per_step * stage.group_size
    waves = 1 + config.curriculum.max_refill_waves
    groups_of_update = -(-stage.problems_per_step // train.minibatches_per_step)
    rows_of_micro_batch = max(1, train.tokens_per_micro_batch // longest_tokens)
    micro_batches = -(-groups_of_update * stage.group_size // rows_of_micro_batch)
    updates = train.minibatches_per_step * train.epochs_per_step
    return {
        "rollouts a step": rollouts,
        "rollouts a step with refills, at most": rollouts * waves,
        "tokens sampled a step, at most": rollouts * waves * config.sampling.max_completion_tokens,
        "optimizer updates a step, at most": updates,
        "micro-batches a step, at most": updates * micro_batches,
    }


def _run_rollouts(config: RunConfig, stages: list[Stage]) -> tuple[bool, int]:
    """Whether it is known which step is in which stage, and the rollouts of all steps: exact, or the most."""
    steps = config.train.steps
    per_step = [stage.problems_per_step * stage.group_size for stage in stages]
    if not needs_profile(config):
        return True, steps * per_step[0]
    planned = config.curriculum.stages
    if any(stage.until_plateau for stage in planned):
        return False, steps * max(per_step)
    total = 0
    for stage, rollouts in zip(planned, per_step, strict=True):
        of_stage = min(steps, stage.steps or steps)
        total += of_stage * rollouts
        steps -= of_stage
    return True, total


def _sizes_or_reason(config: ModelConfig) -> Sizes | str:
    try:
        return sizes_of(skeleton(config, tokenizer=load_tokenizer(config)))
    except ConfigError as error:
        elsewhere = [name for name in (config.path, config.tokenizer) if name is not None and not Path(name).exists()]
        if all(name.startswith("task:") for name in elsewhere):
            raise
        return f"unknown ({' '.join(str(error).split())})"


def _model(config: RunConfig, sizes: Sizes | str) -> dict[str, object]:
    if isinstance(sizes, str):
        return {"parameters": sizes}
    parts: Mapping[str, int] = memory_bytes(config, sizes)
    return {
        "parameters": sizes.num_parameters,
        "trainable parameters": sizes.num_trainable,
        "tokens of the model's context": sizes.context_tokens or "unlimited",
    } | {f"GiB, {name}": value / GIB for name, value in parts.items()}


def _problems(config: RunConfig, reward: RewardSpec) -> dict[str, object]:
    try:
        sets = load_problem_sets(config.data, reward=reward, seed=config.run.seed)
    except DataError as error:
        return {"problems": f"unknown ({error})"}
    found: dict[str, object] = {
        "problems to practise": len(sets.train),
        "problems of validation": len(sets.validation),
        "problems held out": len(sets.heldout),
    }
    found |= {f"rows dropped, {reason}": count for reason, count in sets.dropped.items()}
    if needs_profile(config):
        profiled = min(len(sets.train), config.profile.max_problems or len(sets.train))
        found["rollouts of the profile, at least"] = profiled * config.profile.first_rollouts
        found["rollouts of the profile, at most"] = profiled * config.profile.max_rollouts
    policies = 1 + config.evaluation.baseline
    found["rollouts of the evaluation"] = policies * len(sets.heldout) * config.evaluation.rollouts_per_problem
    return found
