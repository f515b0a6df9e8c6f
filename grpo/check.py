"""`grpo check`: what follows from a config before anything runs: batch arithmetic, sizes, memory, problems, disk.

The memory is that of the tensors whose sizes are known beforehand. The activations of a forward pass are not among
them: they grow with train.tokens_per_micro_batch and shrink with model.activation_checkpointing."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from curricula.refill import MOST_PER_WAVE
from grpo.config import ModelConfig, RunConfig
from grpo.data import load_problem_sets
from grpo.disk import disk
from grpo.distributed.deepspeed_config import resolved
from grpo.distributed.world import BUCKET_ELEMENTS
from grpo.errors import ConfigError, DataError, HubError
from grpo.evaluation_sets import load_sets
from grpo.final_evaluation import check_names
from grpo.folder import RunFolder
from grpo.logprobs import CHUNK_ELEMENTS, CHUNK_OF_HEAD
from grpo.model import Float32Head, base_of, load_tokenizer, max_positions, skeleton
from grpo.optim import muon_names
from grpo.persona.vectors import load as load_vectors
from grpo.practice import needs_profile, reward_spec
from grpo.recipe import phases_of, stages_of
from grpo.types import Stage
from rewards import RewardSpec

GIB = 2**30
FLOAT32_BYTES = 4
# Of one row and token of the vocabulary while a token is drawn: float32 logits and noise, and two int64 in the noise.
DECODE_BYTES = 24
# Of one logit of a chunk in the backward pass: itself, its log-prob and its gradient, in float32.
CHUNK_BYTES = 12
ALLREDUCE_ELEMENTS = 500_000_000  # of one message of DeepSpeed's engine
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of a model without its weights. Bytes follow from the type of each weight."""

    num_parameters: int
    num_trainable: int
    weight_bytes: int
    trainable_bytes: int
    num_copied: int  # trainable weights below float32, which the optimizer copies
    num_muon: int  # trainable weights that optim.kind = muon steps by Muon
    largest: int  # elements of the largest trainable weight
    head_copy_bytes: int  # of the copy that model.float32_head makes in each call
    head_gradient_bytes: int  # of the sum in float32 that a micro-batch makes before the optimizer takes it
    cache_bytes_per_token: int
    vocabulary: int
    context_tokens: int | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank by part. What is held is there all the time; sampling and training come in turn."""

    held: Mapping[str, int]
    sampling: Mapping[str, int]
    training: Mapping[str, int]
    host: Mapping[str, int]  # in the host's memory, by offloading

    @property
    def least(self) -> int:
        """The peak on the device, were it not for activations."""
        return sum(self.held.values()) + max(sum(self.sampling.values()), sum(self.training.values()))


def derived(config: RunConfig, *, num_ranks: int = 1) -> dict[str, object]:
    """Everything that follows from `config` on `num_ranks` ranks, by name, in the order in which it is read.

    What lies elsewhere and cannot be read (a hub's model, its rows) is "unknown" with the reason. Raises ConfigError
    for a model, a tokenizer, a reward or a checkpoint that the config itself gets wrong, DataError for rows that are
    here, or would be, and cannot be problems."""
    check_names(config, RunFolder.followed(config, rank=0), is_fresh=False)
    reward = reward_spec(config.reward)
    sizes = _sizes_or_reason(config.model)
    context_tokens = sizes.context_tokens if isinstance(sizes, Sizes) else None
    found: dict[str, object] = {"phases": ", ".join(phases_of(config)), "reward": reward.title}
    found |= _steps(config, longest_tokens=longest_tokens(config, context_tokens))
    found |= _model(config, sizes, num_ranks=num_ranks)
    found |= _steering(config)
    problems, num_profiled = _problems(config, reward)
    return found | problems | (_disk(config, sizes, num_profiled) if isinstance(sizes, Sizes) else {})


def deepspeed_json(config: RunConfig, *, num_ranks: int) -> str:
    """The config that DeepSpeed is started with, for a strategy of ZeRO. Raises ConfigError for the user's JSON."""
    return json.dumps(resolved(config, world_size=num_ranks), indent=2)


def sizes_of(model: nn.Module) -> Sizes:
    """Counted from the weights themselves; they may be on the meta device."""
    parameters = dict(model.named_parameters())
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    base = base_of(model)
    text = base.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    head = base.get_output_embeddings()
    copies_head = isinstance(head, Float32Head) and head.weight.dtype != torch.float32
    return Sizes(
        num_parameters=sum(p.numel() for p in parameters.values()),
        num_trainable=sum(p.numel() for p in trainable.values()),
        weight_bytes=sum(p.nbytes for p in parameters.values()),
        trainable_bytes=sum(p.nbytes for p in trainable.values()),
        num_copied=sum(p.numel() for p in trainable.values() if p.dtype != torch.float32),
        num_muon=sum(trainable[name].numel() for name in muon_names(model)),
        largest=max(p.numel() for p in trainable.values()),
        head_copy_bytes=head.weight.numel() * FLOAT32_BYTES if copies_head else 0,
        head_gradient_bytes=sum(p.numel() * FLOAT32_BYTES for p in head.parameters() if p.requires_grad),
        cache_bytes_per_token=2 * text.num_hidden_layers * heads * head_size * base.dtype.itemsize,
        vocabulary=int(head.weight.shape[0]),
        context_tokens=max_positions(model),
    )


def memory(config: RunConfig, sizes: Sizes, *, strategy: str, num_ranks: int) -> Memory:
    """Bytes of one rank of `num_ranks` under `strategy`, whatever the strategy of `config`."""
    tokens = longest_tokens(config, sizes.context_tokens)
    on_gpu = config.run.device != "cpu" and torch.cuda.is_available()
    chunk_elements = CHUNK_ELEMENTS["cuda" if on_gpu else "cpu"]
    if strategy != "zero3":
        chunk_elements = max(chunk_elements, sizes.head_gradient_bytes // FLOAT32_BYTES // CHUNK_OF_HEAD)
    chunk_tokens = min(max(1, chunk_elements // sizes.vocabulary), max(tokens, config.train.tokens_per_micro_batch))
    sampling = {
        "keys and values": config.sampling.max_rows * tokens * sizes.cache_bytes_per_token,
        "logits of a draw": config.sampling.max_rows * sizes.vocabulary * DECODE_BYTES + sizes.head_copy_bytes,
    }
    training = {"logits of a chunk": chunk_tokens * sizes.vocabulary * CHUNK_BYTES + sizes.head_copy_bytes}
    if strategy != "zero3":  # there the head's weights are gathered for each call, and its gradient is torch's own
        training["gradient of the head"] = sizes.head_gradient_bytes
    if strategy == "ddp":
        return _replicated(config, sizes, num_ranks, sampling=sampling, training=training)
    return _sharded(config, sizes, num_ranks, strategy=strategy, sampling=sampling, training=training)


def _replicated(
    config: RunConfig, sizes: Sizes, num_ranks: int, *, sampling: Mapping[str, int], training: Mapping[str, int]
) -> Memory:
    num_muon = sizes.num_muon if config.optim.kind == "muon" else 0
    message = max(min(sizes.num_trainable, BUCKET_ELEMENTS), sizes.largest) if num_ranks > 1 else 0
    return Memory(
        held={
            "weights": sizes.weight_bytes,
            "float32 copies": sizes.num_copied * FLOAT32_BYTES,
            "moments": (2 * (sizes.num_trainable - num_muon) + num_muon) * FLOAT32_BYTES,
        },
        sampling=sampling,
        training={"gradients": sizes.num_trainable * FLOAT32_BYTES, "messages": message * FLOAT32_BYTES, **training},
        host={},
    )


def _sharded(
    config: RunConfig,
    sizes: Sizes,
    num_ranks: int,
    *,
    strategy: str,
    sampling: Mapping[str, int],
    training: Mapping[str, int],
) -> Memory:
    """What DeepSpeed 0.19 holds, as read in its runtime and measured: bf16_optimizer.py (zero1 of bfloat16),
    zero/stage_1_and_2.py and zero/stage3.py."""
    zero = _zero_fields(config, strategy, num_ranks=num_ranks)
    number, shard = sizes.num_trainable, -(-sizes.num_trainable // num_ranks)
    width = sizes.trainable_bytes // number  # of adapters it is float32, whatever the base is
    is_low, offloads = width < FLOAT32_BYTES, config.distributed.offload_optimizer
    weights, bucket = sizes.weight_bytes, zero["reduce_bucket_size"]
    # Float32 weights are copied as well.
    optimizer = {"float32 copies": shard * FLOAT32_BYTES, "moments": 2 * shard * FLOAT32_BYTES}
    held: dict[str, int] = {}
    host: dict[str, int] = {}
    own_sampling: dict[str, int] = {}
    if strategy == "zero1" and is_low and config.model.dtype == "bfloat16" and not offloads:
        # An optimizer of its own: the whole sum stays, the last micro-batch's gradient lies beside it, and what is sent
        # is a copy.
        held = {"gradients": number * FLOAT32_BYTES}
        own_training = {"gradients": number * width, "messages": min(number, ALLREDUCE_ELEMENTS) * FLOAT32_BYTES}
    elif strategy == "zero1":
        own_training = {"gradients": number * FLOAT32_BYTES, "messages": bucket * FLOAT32_BYTES}
    elif strategy == "zero2":
        # A bucket is filled in the weights' type and sent in float32; float32 shards are added up from two lists.
        sent = min(number, bucket) * FLOAT32_BYTES if is_low else 0
        gradients = 0 if offloads else (1 if is_low else 2) * shard * FLOAT32_BYTES
        own_training = {"gradients": gradients, "messages": bucket * (1 + zero["overlap_comm"]) * width + sent}
    else:
        # A weight stays after its first use while the live ones are below the limit, which is through the backward
        # pass; what is fetched ahead is gathered into memory of its own.
        live = min(weights, zero["stage3_max_live_parameters"] * width)
        own_training = {"gathered weights": live + min(weights, zero["stage3_prefetch_bucket_size"] * width)}
        whole = sizes.largest * width if config.sampling.engine == "vllm" else weights
        own_sampling = {"gathered weights": live if config.distributed.zero3_sampling == "layers" else whole}
        weights = -(-weights // num_ranks)
        held = {"gradients": 0 if offloads else shard * FLOAT32_BYTES, "messages": bucket * FLOAT32_BYTES}
    if offloads:
        # zero3 has the shard's gradient twice there: as summed, and as stepped.
        twice = 2 if strategy == "zero3" else 1
        host = {**optimizer, "gradients": twice * shard * FLOAT32_BYTES}
        host |= {} if strategy == "zero3" else {"updated weights": shard * width}
    else:
        held = optimizer | held
    if strategy == "zero3" and config.distributed.offload_parameters:
        host, weights = {"weights": weights, **host}, 0
    return Memory(
        held={"weights": weights, **held},
        sampling={**own_sampling, **sampling},
        training={**own_training, **training},
        host=host,
    )


def _zero_fields(config: RunConfig, strategy: str, *, num_ranks: int) -> dict[str, int]:
    """DeepSpeed's own defaults where neither the run nor the user's JSON says otherwise.

    The JSON belongs to the strategy of the config; what it tunes is taken for the others too."""
    distributed = config.distributed.model_copy(update={"strategy": strategy, "deepspeed_config": None})
    fields = resolved(config.model_copy(update={"distributed": distributed}), world_size=num_ranks)["zero_optimization"]
    if config.distributed.strategy != "ddp":
        fields = fields | resolved(config, world_size=num_ranks)["zero_optimization"]
    return {
        "reduce_bucket_size": int(fields["reduce_bucket_size"]),
        # DeepSpeed's default, where the field is not set: on for zero3 alone, whose bucket is one all the same.
        "overlap_comm": int(bool(fields.get("overlap_comm")) and strategy != "zero3"),
        "stage3_max_live_parameters": int(fields.get("stage3_max_live_parameters", 1e9)),
        "stage3_prefetch_bucket_size": int(fields.get("stage3_prefetch_bucket_size", 5e7)),
    }


def longest_tokens(config: RunConfig, context_tokens: int | None) -> int:
    """Most tokens of a rollout with its prompt."""
    tokens = config.data.max_prompt_tokens + config.sampling.max_completion_tokens
    return tokens if context_tokens is None else min(tokens, context_tokens)


def _steps(config: RunConfig, *, longest_tokens: int) -> dict[str, object]:
    train = config.train
    stages = stages_of(config)
    names = [stage.name for stage in config.curriculum.stages] if config.curriculum.kind == "two_stages" else [""]
    found: dict[str, object] = {"tokens of the longest rollout": longest_tokens}
    for name, stage in zip(names, stages, strict=True):
        of_stage = f"stage {name}: " if name else ""
        found |= {of_stage + what: number for what, number in _step(config, stage, longest_tokens).items()}
    found["optimizer updates of the run, at most"] = train.steps * train.minibatches_per_step * train.epochs_per_step
    at_most = "" if _is_exact(config) else ", at most"
    found[f"rollouts of the run{at_most}, without refills"] = _run_rollouts(config, stages)
    return found


def _step(config: RunConfig, stage: Stage, longest_tokens: int) -> dict[str, int]:
    train = config.train
    rollouts = stage.problems_per_step * stage.group_size
    most = 1 + MOST_PER_WAVE * config.curriculum.max_refill_waves  # times the problems of a step
    groups_of_update = -(-stage.problems_per_step // train.minibatches_per_step)
    rows_of_micro_batch = max(1, train.tokens_per_micro_batch // longest_tokens)
    micro_batches = -(-groups_of_update * stage.group_size // rows_of_micro_batch)
    updates = train.minibatches_per_step * train.epochs_per_step
    at_most = ", at most" if _has_small_groups(config) else ""
    return {
        f"rollouts a step{at_most}": rollouts,
        "rollouts a step with refills, at most": rollouts * most,
        "tokens sampled a step, at most": rollouts * most * stage.max_completion_tokens,
        "optimizer updates a step, at most": updates,
        "micro-batches a step, at most": updates * micro_batches,
    }


def _has_small_groups(config: RunConfig) -> bool:
    """Whether some groups are smaller than the group size: a problem's first one, for kind online."""
    curriculum = config.curriculum
    return curriculum.kind == "online" and (curriculum.first_group_size or math.inf) < config.train.group_size


def _ends_by_outcomes(config: RunConfig) -> bool:
    """Whether it is the outcomes that end a stage."""
    stages = config.curriculum.stages if config.curriculum.kind == "two_stages" else []
    return any(stage.until_plateau or stage.until_trivial_fraction is not None for stage in stages)


def _is_exact(config: RunConfig) -> bool:
    """Whether every step, its stage and the sizes of its groups are known beforehand."""
    ends_early = config.train.max_tokens is not None or config.evaluation.patience is not None
    return not (ends_early or _ends_by_outcomes(config) or _has_small_groups(config))


def _run_rollouts(config: RunConfig, stages: list[Stage]) -> int:
    """The rollouts of all steps, or the most that they can be."""
    steps = config.train.steps
    per_step = [stage.problems_per_step * stage.group_size for stage in stages]
    if config.curriculum.kind != "two_stages" or _ends_by_outcomes(config):
        return steps * max(per_step)
    total = 0
    for stage, rollouts in zip(config.curriculum.stages, per_step, strict=True):
        of_stage = min(steps, stage.steps or steps)
        total += of_stage * rollouts
        steps -= of_stage
    return total


def _sizes_or_reason(config: ModelConfig) -> Sizes | str:
    try:
        return sizes_of(skeleton(config, tokenizer=load_tokenizer(config)))
    except ConfigError as error:
        elsewhere = [name for name in (config.path, config.tokenizer) if name is not None and not Path(name).exists()]
        if all(name.startswith("task:") for name in elsewhere):
            raise
        return f"unknown ({' '.join(str(error).split())})"


def _model(config: RunConfig, sizes: Sizes | str, *, num_ranks: int) -> dict[str, object]:
    if isinstance(sizes, str):
        return {"parameters": sizes}
    return {
        "parameters": sizes.num_parameters,
        "trainable parameters": sizes.num_trainable,
        "tokens of the model's context": sizes.context_tokens or "unlimited",
    } | _memory_table(config, sizes, num_ranks=num_ranks)


def _memory_table(config: RunConfig, sizes: Sizes, *, num_ranks: int) -> dict[str, object]:
    """Rows of GiB by part, with a column for each strategy."""
    strategies = STRATEGIES if config.optim.kind == "adamw" else ("ddp",)
    columns = [memory(config, sizes, strategy=strategy, num_ranks=num_ranks) for strategy in strategies]
    marked = [f"[{name}]" if name == config.distributed.strategy else name for name in strategies]
    ranks = f"{num_ranks} ranks" if num_ranks > 1 else "1 rank"
    table: dict[str, object] = {f"GiB of each of {ranks}, by strategy": "".join(f"{name:>10}" for name in marked)}
    titles = {"held": "", "sampling": ", sampling", "training": ", training", "host": ", on the host"}
    for when, title in titles.items():
        parts: list[Mapping[str, int]] = [getattr(column, when) for column in columns]
        names = dict.fromkeys(name for of_column in parts for name in of_column)
        table |= {f"  {name}{title}": _row(of_column.get(name, 0) for of_column in parts) for name in names}
    return table | {"  at least, without activations": _row(column.least for column in columns)}


def _row(values: Iterable[int]) -> str:
    return "".join(f"{value / GIB:>10,.3f}" if value else f"{'-':>10}" for value in values)


def _steering(config: RunConfig) -> dict[str, object]:
    """What steers, from each file of vectors. One that is not there yet is "unknown": it is extracted on the way."""
    sections = {"steering": config.steering, "sft.steering": None if config.sft is None else config.sft.steering}
    found: dict[str, object] = {}
    for field, applied in sections.items():
        if applied is None:
            continue
        try:
            vectors = load_vectors(Path(applied.vectors))
        except DataError as error:
            found[field] = f"unknown ({error})"
            continue
        blocks = [vectors.default_block] if applied.blocks is None else applied.blocks
        try:
            vectors.vectors(blocks, over=applied.over, increments=applied.increments)
        except ConfigError as error:
            raise ConfigError(f"{field}: {error}") from error
        where = ", ".join(map(str, sorted(blocks)))
        control = "a random direction for " if applied.random_control else ""
        found[field] = (
            f"{applied.kind} {applied.coefficient:g} times {control}{vectors.origin.trait} at block {where} of "
            f"{vectors.origin.num_blocks}, {applied.positions}"
        )
    return found


def _disk(config: RunConfig, sizes: Sizes, num_profiled: int | None) -> dict[str, object]:
    """GiB of the run's folder by part."""
    num_muon = sizes.num_muon if config.optim.kind == "muon" else 0
    moments = sizes.num_copied + 2 * sizes.num_trainable - num_muon
    parts = disk(
        config,
        stages_of(config),
        weight_bytes=sizes.trainable_bytes,
        optimizer_bytes=moments * FLOAT32_BYTES,
        num_profiled=num_profiled,
    )
    rows = {f"GiB of the run's folder, {name}, at most": _row([size]).strip() for name, size in parts.items()}
    return {**rows, "GiB of the run's folder, at most": _row([sum(parts.values())]).strip()}


def _problems(config: RunConfig, reward: RewardSpec) -> tuple[dict[str, object], int | None]:
    """What is known of the problems, and how many of them are profiled."""
    try:
        sets = load_problem_sets(config.data, reward=reward, seed=config.run.seed)
    except HubError as error:
        return {"problems": f"unknown ({error})"}, config.profile.max_problems
    found: dict[str, object] = {
        "problems to practise": len(sets.train),
        "problems of validation": len(sets.validation),
        "problems held out": len(sets.heldout),
    }
    found |= {f"rows dropped, {reason}": count for reason, count in sets.dropped.items()}
    profiled = min(len(sets.train), config.profile.max_problems or len(sets.train))
    if needs_profile(config):
        found["rollouts of the profile, at least"] = profiled * config.profile.first_rollouts
        found["rollouts of the profile, at most"] = profiled * config.profile.max_rollouts
    evaluated = len(sets.heldout)
    try:
        for name, problems in load_sets(config, dropped={}).items():
            found[f"problems of evaluation.sets.{name}"] = len(problems)
            evaluated += len(problems)
    except HubError as error:
        found["problems of evaluation.sets"] = f"unknown ({error})"
    policies = len(config.evaluation.checkpoints) * (2 if config.evaluation.steered else 1)
    rollouts = config.evaluation.rollouts_per_problem
    found["rollouts of the evaluation"] = policies * evaluated * rollouts
    if config.evaluation.by_tier:
        found["rollouts of its tiers, at least"] = len(sets.heldout) * config.profile.first_rollouts
        found["rollouts of its tiers, at most"] = len(sets.heldout) * config.profile.max_rollouts
    return found, profiled
