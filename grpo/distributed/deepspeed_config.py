"""The DeepSpeed config that follows from a run's, and a user's JSON laid over it. Needs neither torch nor DeepSpeed.

A field of the JSON may tune how DeepSpeed works (buckets, overlap, pinned memory, NVMe), and may repeat what the run
says; one that says something else is an error that names both."""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo.config import RunConfig
from grpo.errors import ConfigError

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
AUTO = "auto"  # transformers' word for a value that the trainer fills in
REDUCE_BUCKET_ELEMENTS = 50_000_000
"""Gradients of one message. A buffer of that size is held through the backward pass; larger ones gain little."""

# Of DeepSpeed 0.19; transformers' and accelerate's own keys are not among them.
TOP_LEVEL = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("managed_gradient_accumulation", "steps_per_print", "dump_state", "disable_python_gc", "disable_allgather"),
    *("communication_data_type", "seq_parallel_communication_data_type", "prescale_gradients"),
    *("gradient_predivide_factor", "gradient_allreduce_op", "zero_optimization", "activation_checkpointing"),
    *("comms_logger", "tensorboard", "wandb", "csv_monitor", "comet", "gradient_clipping", "fp16", "bf16", "bfloat16"),
    *("torch_autocast", "amp", "optimizer", "scheduler", "zero_allow_untested_optimizer"),
    *("zero_force_ds_cpu_optimizer", "flops_profiler", "wall_clock_breakdown", "memory_breakdown", "autotuning"),
    *("use_data_before_expert_parallelism", "hybrid_engine", "pipeline", "data_efficiency", "checkpoint"),
    *("data_types", "aio", "dataloader_drop_last", "log_level", "weight_quantization", "compile", "timers"),
    *("tensor_parallel", "expert_parallel", "elasticity", "compression_training", "curriculum_learning"),
    *("sparse_gradients", "sequence_parallel_size", "vocabulary_size", "datastates_ckpt"),
)

# What is not in the generated config and yet is decided by the run: dotted name, the only value, and why.
FIXED: tuple[tuple[str, Any, str], ...] = (
    ("managed_gradient_accumulation", True, "the trainer marks an update's last micro-batch"),
    ("gradient_allreduce_op", "mean", "the trainer scales losses so that the mean is the sum over the ranks"),
    ("data_types.param_dtype", None, "the precision is model.dtype"),
    ("torch_autocast.enabled", False, "the precision is model.dtype, in sampling as in training"),
    ("amp.enabled", False, "the precision is model.dtype, in sampling as in training"),
    ("fp16.auto_cast", False, "the precision is model.dtype, in sampling as in training"),
    ("bf16.bf16_master_weights_and_grads", False, "weights below float32 are trained through float32 copies"),
    ("fp16.fp16_master_weights_and_grads", False, "weights below float32 are trained through float32 copies"),
    ("zero_optimization.compute_grad_norm", True, "the norm clips, and tells a gradient that is not finite"),
    ("zero_optimization.zenflow", None, "an update is whole before the next one begins"),
    ("zero_optimization.zero_hpz_partition_size", 1, "weights are sharded over all ranks"),
    ("data_efficiency.enabled", False, "the curriculum is the run's own"),
    ("curriculum_learning.enabled", False, "the curriculum is the run's own"),
    ("elasticity.enabled", False, "the number of ranks is the launcher's"),
    ("autotuning.enabled", False, "it starts runs of its own"),
    ("hybrid_engine.enabled", False, "sampling is distributed.zero3_sampling"),
    ("compression_training", None, "weights are trained as they are"),
    ("tensor_parallel.autotp_size", 0, "every rank has micro-batches of its own"),
    ("sequence_parallel_size", 1, "every rank has micro-batches of its own"),
    ("checkpoint.load_universal", False, "checkpoints are the run's own"),
)

# Where a generated value comes from.
SOURCES = {
    "train_batch_size": "one micro-batch on each rank",
    "train_micro_batch_size_per_gpu": "micro-batches are made by train.tokens_per_micro_batch",
    "gradient_accumulation_steps": "micro-batches are made by train.tokens_per_micro_batch, and differ in number",
    "gradient_clipping": "optim.max_grad_norm",
    "bf16.enabled": "model.dtype",
    "fp16": "model.dtype and the run's own loss scale",
    "data_types.grad_accum_dtype": "gradients are summed in float32",
    "zero_optimization.stage": "distributed.strategy",
    "zero_optimization.offload_optimizer.device": "distributed.offload_optimizer",
    "zero_optimization.offload_param.device": "distributed.offload_parameters",
    "optimizer.type": "optim.kind",
    "optimizer.params.lr": "optim.learning_rate",
    "optimizer.params.betas": "optim.betas",
    "optimizer.params.eps": "optim.eps",
    "optimizer.params.weight_decay": "optim.weight_decay",
    "optimizer.params": "AdamW with decoupled decay",
}

# Generated, and the user's to change: none of it changes what is computed beyond rounding.
TUNABLE = (
    "communication_data_type",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "steps_per_print",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.offload_optimizer.pin_memory",
    "zero_optimization.offload_param.pin_memory",
)


def generated(config: RunConfig, *, world_size: int) -> dict[str, Any]:
    """What DeepSpeed is started with where the user names no JSON, for `world_size` ranks and a strategy of ZeRO."""
    distributed, optim = config.distributed, config.optim
    zero: dict[str, Any] = {
        "stage": STAGES[distributed.strategy],
        "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
        "offload_optimizer": _offload(to_host=distributed.offload_optimizer),
    }
    if distributed.strategy == "zero3":
        zero["offload_param"] = _offload(to_host=distributed.offload_parameters)
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        # The number of micro-batches varies: the trainer marks the last one through the engine.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm,
        "zero_optimization": zero,
        # DeepSpeed would cast adapters, which are float32 beside any base, to the type that is enabled.
        "bf16": {"enabled": config.model.dtype == "bfloat16" and config.model.lora is None},
        "fp16": _fp16(enabled=config.model.dtype == "float16" and config.model.lora is None),
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optim.learning_rate,
                "betas": list(optim.betas),
                "eps": optim.eps,
                "weight_decay": optim.weight_decay,
                "adam_w_mode": True,
                "bias_correction": True,
                "amsgrad": False,
            },
        },
        # Offloaded moments are stepped by torch's AdamW on the host, which needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def resolved(config: RunConfig, *, world_size: int) -> dict[str, Any]:
    """The generated config with the user's JSON laid over it. Raises ConfigError, a line for each fault of the file."""
    ours = generated(config, world_size=world_size)
    if config.distributed.deepspeed_config is None:
        return ours
    path = Path(config.distributed.deepspeed_config)
    theirs = _read(path)
    faults = [*_unknown(theirs), *_contradictions(theirs, ours)]
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    return _laid_over(ours, theirs)


def _offload(*, to_host: bool) -> dict[str, Any]:
    return {"device": "cpu", "pin_memory": True} if to_host else {"device": "none"}


def _fp16(*, enabled: bool) -> dict[str, Any]:
    """DeepSpeed's words for `grpo.optim.LossScale`, which is what scales in every strategy."""
    if not enabled:
        return {"enabled": False}
    scale = {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 2000, "hysteresis": 1}
    return {"enabled": True, **scale, "min_loss_scale": 1}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"distributed.deepspeed_config = '{path}': no such file; name a JSON file, or null for none")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"distributed.deepspeed_config = '{path}': not valid JSON: {error}; correct it") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"distributed.deepspeed_config = '{path}': must be a mapping of DeepSpeed's fields; got "
            f"{type(found).__name__}"
        )
    # DeepSpeed's older name of the section.
    return {("bf16" if name == "bfloat16" else name): value for name, value in found.items()}


def _unknown(theirs: Mapping[str, Any]) -> Iterator[str]:
    for name in theirs:
        if name not in TOP_LEVEL:
            match = difflib.get_close_matches(name, TOP_LEVEL, n=1, cutoff=0.6)
            hint = f"; did you mean {match[0]}?" if match else "; see https://www.deepspeed.ai/docs/config-json"
            yield f"{name} is not a field of DeepSpeed{hint}"


def _contradictions(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    if theirs.get("scheduler") not in (None, {}, AUTO):
        yield (
            f"scheduler = {_text(theirs['scheduler'])}, but the rate of each step is optim.schedule's; drop it and set "
            "optim.schedule, optim.warmup_steps and optim.final_fraction"
        )
    own = dict(_flat(ours, ""))
    fixed = {name: (value, why) for name, value, why in FIXED}
    for name, value in _flat(theirs, ""):
        if value == AUTO or name in TUNABLE:
            continue
        if name in own:
            if not _same(name, value, own[name]):
                source = _source(name)
                yield f"{name} = {_text(value)}, but the run has {_text(own[name])} ({source}); drop it or change one"
        elif name in fixed:
            if value != fixed[name][0]:
                yield f"{name} = {_text(value)}, but it must be {_text(fixed[name][0])}: {fixed[name][1]}; drop it"
        else:
            parent = next((f for f in fixed if name.startswith(f + ".") and fixed[f][0] is None), None)
            if parent is not None:
                yield f"{name} = {_text(value)}, but {parent} must be left out: {fixed[parent][1]}; drop it"
            elif name.startswith("optimizer.params.") and not name.endswith(".torch_adam"):
                yield f"{name} = {_text(value)}, but the run's optimizer has no such field ({_source(name)}); drop it"


def _source(name: str) -> str:
    if name in SOURCES:
        return SOURCES[name]
    return SOURCES.get(name.rpartition(".")[0], "the run's own")


def _same(name: str, theirs: Any, ours: Any) -> bool:
    if name == "optimizer.type":
        # DeepSpeed's Adam decays as AdamW does unless adam_w_mode, compared apart, says otherwise.
        return str(theirs).lower() in ("adam", "adamw")
    if name.endswith(".device") and ours == "cpu":
        return theirs in ("cpu", "nvme")  # both hold it outside of the GPU
    if name.endswith(".device"):
        return theirs in ("none", None)
    return bool(theirs == ours)


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _laid_over(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    laid = dict(ours)
    for name, value in theirs.items():
        if value == AUTO or name == "scheduler":
            continue
        if isinstance(value, dict) and isinstance(laid.get(name), dict):
            laid[name] = _laid_over(laid[name], value)
        elif isinstance(value, dict):
            laid[name] = _laid_over({}, value)
        else:
            laid[name] = value
    return laid


def _text(value: Any) -> str:
    return json.dumps(value)
