"""ZeRO by DeepSpeed: moments (zero1), gradients (zero2) and weights (zero3) sharded over the ranks.

Source: Rajbhandari et al. (2020), arXiv 1910.02054. DeepSpeed is imported here alone. What leaves this file is whole,
float32 where the state is, and named as without shards; what is gathered is gathered one weight at a time."""

import contextlib
import copy
import importlib.util
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from grpo import checkpoint
from grpo.batch import MicroBatch
from grpo.config import RunConfig
from grpo.distributed.deepspeed_config import STAGES, resolved
from grpo.distributed.twins import Gathered, LayerByLayer, layer_by_layer, unfilled_twin
from grpo.distributed.world import World
from grpo.errors import CheckpointError, ConfigError
from grpo.optim import ADAMW_MOMENTS, LossScale
from grpo.policy import SCORES, Policy, Scored, Wanted
from grpo.steering import Steering

LARGEST_SHARE = 0.5
"""Of the free memory that gathered weights may take: what samples needs room for its cache and logits too."""
BYTES_OF_MOMENTS = 8  # a weight: two in float32


class Zero:
    """`distributed.strategy: zero1`, `zero2`, `zero3`. zero1 and zero2 make their shards at the first update."""

    def __init__(self, policy: Policy, world: World, config: RunConfig) -> None:
        """`policy` holds whole weights, the same on every rank; zero3 leaves each rank its shard of them.

        Raises ConfigError without DeepSpeed, and as `deepspeed_config.resolved`."""
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigError(
                f"distributed.strategy = {config.distributed.strategy!r} needs DeepSpeed, which is not installed; "
                "pip install 'grpo-trainer[deepspeed]', or set strategy: ddp"
            )
        self._policy, self._world, self._config = policy, world, config
        self._stage = STAGES[config.distributed.strategy]
        self._deepspeed_config = resolved(config, world_size=world.size)
        self._shapes = {name: t.shape for name, t in checkpoint.weights_of(policy.model).items()}
        self._trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        in_float16 = any(p.dtype == torch.float16 for p in policy.model.parameters())
        self._loss_scale = LossScale() if in_float16 else None
        self.lowered_scale = False
        """Whether the last update was skipped for a loss scale that was too high, and is lower now (float16 alone)."""
        self._made: Any = None
        self._in_update = False
        self._sampled, self._sampling = policy, "the weights are whole on every rank"
        self._unfilled: Gathered | None = None
        self._by_weight: LayerByLayer | None = None
        if self._stage == 3:
            policy.shards_head = True
            self._unfilled = unfilled_twin(policy)
            assert self._engine is not None
            self._sampled, self._sampling = self._sampler_of(self._unfilled)

    def describe(self) -> str:
        """How the policy lies and how it is sampled from, with the reason."""
        return f"{self._config.distributed.strategy} on {self._world.size} ranks: {self._sampling}"

    def whole_policy(self) -> Policy:
        if self._unfilled is None:
            assert self._made is None, "shards of zero1 and zero2 are views of the policy's weights"
            return self._policy
        whole = copy.deepcopy(self._unfilled, {id(self._policy): self._policy})
        whole.fill(self._gathered)
        for own, shard in zip(whole.parameters(), self._policy.parameters(), strict=True):
            own.requires_grad_(shard.requires_grad)
        return whole

    @property
    def packs(self) -> bool:
        return self._policy.packs

    @contextmanager
    def sampling_policy(self) -> Iterator[Policy]:
        sampled = self._sampled
        if isinstance(sampled, Gathered):
            sampled.fill(self._gathered)
            try:
                yield sampled
            finally:
                sampled.free()
        elif isinstance(sampled, LayerByLayer):
            yield sampled
            # Not where an error ended it: others may have ended too, and the ranks tell one another by the watchdog.
            sampled.serve()
        else:
            yield sampled

    @contextmanager
    def handed_over(self) -> Iterator[Policy]:
        if self._stage < 3:
            yield self._policy
            return
        if self._by_weight is None:
            self._by_weight = self._layer_by_layer()
        yield self._by_weight
        self._by_weight.serve()

    def steer(self, steering: Steering | None) -> None:
        self._policy.steer(steering)

    def forward(self, batch: MicroBatch, wanted: Wanted = SCORES) -> Scored:
        by_engine = self._stage == 3 or torch.is_grad_enabled()
        return Scored(*(self._engine if by_engine else self._policy)(batch, wanted))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if not self._in_update:
            self._begin_update()
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed means over the ranks what is to be a sum.
        self._engine.backward(loss * self._world.size)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self._trained.items():
            gradient = safe_get_full_grad(parameter)
            yield name, gradient.float().view(self._shapes[name]) / self._scale

    def update(self, *, rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        self._in_update = False
        # Every kind of optimizer of DeepSpeed's steps nothing where the norm is not finite, and then calls it inf.
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm) and self._stage < 3 and self._config.distributed.offload_optimizer:
            # DeepSpeed 0.19 keeps the sums of a skipped update here, and adds the next one's to them.
            self._engine.optimizer.averaged_gradients.clear()
        if self._loss_scale is not None:
            self.lowered_scale = self._loss_scale.adjust(finite=math.isfinite(norm))
        return norm

    def metrics(self) -> dict[str, float]:
        return {} if self._loss_scale is None else {"optim/loss_scale": self._loss_scale.value}

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        tensors = {name: t for name, t in self._policy.model.state_dict(keep_vars=True).items() if name in self._shapes}
        for name in self._shapes:
            with self._gathered(tensors[name]) as whole:
                if self._world.is_main:
                    found[name] = whole.detach().to("cpu", copy=True)
            self._world.progress("gather weights")
        return found

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        if self._stage < 3:
            checkpoint.load_weights(self._policy.model, weights)
        else:
            self._load_shards(weights)
        if self._made is not None:
            self._engine.optimizer.refresh_fp32_params()
            for of_shard in self._adamw.state.values():
                for moment in of_shard.values():
                    moment.zero_()
        if self._loss_scale is not None:
            self._loss_scale = LossScale()

    def state_dict(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        masters: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        steps = self._steps() if self._made is not None else 0.0
        for name, parameter in self._trained.items() if self._made is not None else ():
            if parameter.dtype != torch.float32:
                self._keep(masters, name, safe_get_full_fp32_param(parameter))
            if steps:
                held: dict[str, Tensor] = {"step": torch.tensor(steps)} if self._world.is_main else {}
                for field in ADAMW_MOMENTS[1:]:
                    self._keep(held, field, safe_get_full_optimizer_state(parameter, field), shape=self._shapes[name])
                moments[name] = held
            self._world.progress("gather moments")
        if not self._world.is_main:
            return {}
        if self._made is None:
            masters = {n: p.detach().float().cpu() for n, p in self._trained.items() if p.dtype != torch.float32}
        scale = {} if self._loss_scale is None else {"loss_scale": self._loss_scale.state_dict()}
        return scale | {"masters": masters, "moments": moments}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check(state)
        masters, moments = state["masters"], state["moments"]
        for name, master in masters.items():
            self._put(self._trained[name], master, moment=None)
        steps = max((float(of_weight["step"]) for of_weight in moments.values()), default=0.0)
        if steps or self._steps():
            self._make_moments()
            for name, parameter in self._trained.items():
                for field in ADAMW_MOMENTS[1:]:
                    held = moments.get(name, {}).get(field, torch.zeros(()).expand(self._shapes[name]))
                    self._put(parameter, held, moment=field)
            for of_shard in self._adamw.state.values():
                of_shard["step"].fill_(steps)
        if self._loss_scale is not None:
            self._loss_scale.load_state_dict(state["loss_scale"])

    @property
    def _engine(self) -> Any:
        if self._made is None:
            self._made = self._initialized()
            if self._stage < 3:
                # DeepSpeed looks for moments at the step of the first group, before those of the second are made.
                self._make_moments()
        return self._made

    @property
    def _adamw(self) -> torch.optim.AdamW:
        """Of this rank's shards."""
        adamw: torch.optim.AdamW = self._engine.optimizer.optimizer
        return adamw

    @property
    def _scale(self) -> float:
        return 1.0 if self._loss_scale is None else self._loss_scale.value

    def _initialized(self) -> Any:
        on_cpu, optim = self._world.device.type == "cpu", self._config.optim
        # Read when DeepSpeed is imported, which would take a GPU where there is one, whatever the run's device is.
        os.environ["DS_ACCELERATOR"] = self._world.device.type
        os.environ.setdefault("LOCAL_RANK", "0")
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.ERROR)  # a skipped update is told of by the run
        # Of names that DeepSpeed calls, and torch has others for.
        warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
        if on_cpu:
            # None of its compiled operations is needed here, and each would be compiled for minutes.
            vars(deepspeed.ops)["__compatible_ops__"] = {}
        if not dist.is_initialized():
            dist.init_process_group("gloo" if on_cpu else "nccl", store=dist.HashStore(), rank=0, world_size=1)
        trained = list(self._trained.values())
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        # Fused where there is much to step: a shard is one tensor, of which the plain loop makes several copies.
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=optim.learning_rate,
            betas=optim.betas,
            eps=optim.eps,
            fused=self._config.distributed.offload_optimizer or not on_cpu,
        )
        # It prints its memory, with no way to switch that off.
        with contextlib.redirect_stdout(io.StringIO()):
            engine, *_ = deepspeed.initialize(
                model=self._policy, optimizer=adamw, config=self._started_with(on_cpu=on_cpu), dist_init_required=False
            )
        return engine

    def _started_with(self, *, on_cpu: bool) -> dict[str, Any]:
        """The resolved config without what this file does itself: the optimizer and the loss scale."""
        config = copy.deepcopy(self._deepspeed_config)
        del config["optimizer"]
        if config["fp16"]["enabled"]:
            config["fp16"] = {"enabled": True, "loss_scale": 1.0}
        for name in ("offload_optimizer", "offload_param"):
            if on_cpu and "pin_memory" in config["zero_optimization"].get(name, {}):
                config["zero_optimization"][name]["pin_memory"] = False
        return config

    def _begin_update(self) -> None:
        self._in_update = True
        if self._loss_scale is not None:
            self._engine.optimizer.override_loss_scale(self._scale)
        if self._stage == 3:
            # A weight that gets no gradient would keep the one of the update before.
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()

    def _sampler_of(self, unfilled: Gathered) -> tuple[Gathered | LayerByLayer, str]:
        """What is sampled from, as the config or the memory says, and why."""
        if self._config.sampling.engine == "vllm":
            return unfilled, "handed to vLLM one weight at a time"
        wanted = self._config.distributed.zero3_sampling
        size = sum(shape.numel() * dtype.itemsize for shape, dtype in self._whole)
        why = f"distributed.zero3_sampling = {wanted}"
        if wanted == "auto":
            free = self._free_bytes()
            fits = not self._world.any(size > LARGEST_SHARE * free)
            wanted = "gather" if fits else "layers"
            why = f"the weights take {size / 2**30:.3g} of {free / 2**30:.3g} GiB that are free beside the shards"
        if wanted == "gather":
            return unfilled, f"sampled from weights that are gathered for each sampling phase ({why})"
        return self._layer_by_layer(), f"sampled from layer by layer, all ranks in step ({why})"

    def _layer_by_layer(self) -> LayerByLayer:
        coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
        return layer_by_layer(
            self._policy, self._world, forget_order=lambda: _forget_order(coordinator), gather=self._gathered
        )

    @property
    def _whole(self) -> Iterator[tuple[torch.Size, torch.dtype]]:
        """Shape and type of every weight, frozen ones too."""
        for parameter in self._policy.parameters():
            yield torch.Size(vars(parameter).get("ds_shape", parameter.shape)), parameter.dtype

    def _free_bytes(self) -> int:
        """Memory that is left to this rank once the moments are there."""
        trained = sum(self._shapes[name].numel() for name in self._trained)
        moments = 0 if self._config.distributed.offload_optimizer else trained * BYTES_OF_MOMENTS // self._world.size
        if self._world.device.type == "cuda":
            cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return torch.cuda.mem_get_info()[0] + cached - moments
        import psutil  # DeepSpeed needs it too

        # The variables of torchrun and of deepspeed.
        named = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))
        ranks_here = int(next((size for size in named if size is not None), self._world.size))
        return int(psutil.virtual_memory().available) // ranks_here - moments

    @contextmanager
    def _gathered(self, tensor: Tensor) -> Iterator[Tensor]:
        """The whole of a weight while the context lasts, on every rank."""
        if self._stage < 3 or not isinstance(tensor, nn.Parameter):
            yield tensor
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor.data

    def _load_shards(self, weights: Mapping[str, Tensor]) -> None:
        import deepspeed

        _check_names(weights, self._shapes, what="weights")
        for name, shape in self._shapes.items():
            if weights[name].shape != shape:
                raise _foreign(f"{name} has shape {list(weights[name].shape)}, not {list(shape)}")
        for name, tensor in self._policy.model.state_dict(keep_vars=True).items():
            if name not in self._shapes:
                continue
            if isinstance(tensor, nn.Parameter):
                with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
                    tensor.data.copy_(weights[name])
            else:
                tensor.copy_(weights[name])

    def _keep(self, into: dict[str, Tensor], name: str, gathered: Tensor, *, shape: torch.Size | None = None) -> None:
        if self._world.is_main:
            whole = gathered if shape is None else gathered.view(shape)
            into[name] = whole.detach().float().to("cpu", copy=True)

    def _put(self, parameter: Tensor, value: Tensor, *, moment: str | None) -> None:
        """Into this rank's shard of the float32 weight, or of a moment."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        assert self._engine is not None
        value = value.to(torch.float32)
        if self._stage < 3:
            if moment is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)
            return
        own = _shard_of(value, size=vars(parameter)["ds_tensor"].numel(), rank=self._world.rank)
        if moment is None:
            safe_set_local_fp32_param(parameter, own)
        else:
            safe_set_local_optimizer_state(parameter, own, moment)

    def _steps(self) -> float:
        """Updates that the moments are made of."""
        if self._made is None:
            return 0.0
        return max((float(of_shard["step"]) for of_shard in self._adamw.state.values() if of_shard), default=0.0)

    def _make_moments(self) -> None:
        """Moments of zero where there are none: AdamW makes them in its first step only."""
        optimizer = self._engine.optimizer
        shards = _shards(optimizer, stage=self._stage)
        on_device = self._adamw.defaults["fused"]
        for shard in shards:
            if not self._adamw.state[shard]:
                step = torch.zeros((), device=shard.device if on_device else "cpu")
                zeros = {field: torch.zeros_like(shard.data) for field in ADAMW_MOMENTS[1:]}
                self._adamw.state[shard] = {"step": step, **zeros}
        if self._stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()

    def _check(self, state: Mapping[str, Any]) -> None:
        parts = ("masters", "moments") + (("loss_scale",) if self._loss_scale is not None else ())
        _check_names(state, parts, what="parts of the optimizer's state")
        copied = [name for name, parameter in self._trained.items() if parameter.dtype != torch.float32]
        _check_names(state["masters"], copied, what="float32 copies")
        _check_names(state["moments"], self._trained if state["moments"] else (), what="moments")
        for name, of_weight in state["moments"].items():
            _check_names(of_weight, ADAMW_MOMENTS, what=f"moments of {name}")


def _forget_order(coordinator: Any) -> None:
    """DeepSpeed fetches ahead by the order that modules were called in, which is that of training."""
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


def _shards(optimizer: Any, *, stage: int) -> list[Tensor]:
    """The flat float32 shards that this rank's AdamW steps."""
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    return [shard for group in optimizer.param_groups for shard in group["params"]]


def _shard_of(value: Tensor, *, size: int, rank: int) -> Tensor:
    """Elements [rank · size, (rank + 1) · size) of the flat tensor, zeros behind its end."""
    part = value.reshape(-1)[rank * size : (rank + 1) * size]
    return nn.functional.pad(part, (0, size - part.numel()))


def _check_names(found: Mapping[str, Any], expected: Any, *, what: str) -> None:
    differing = sorted(set(found) ^ set(expected))
    if differing:
        raise _foreign(f"{what}: {differing[0]} differs ({len(differing)} in all)")


def _foreign(difference: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is of another model or optimizer: {difference}; resume with the config that wrote it, or "
        "--fresh to start again"
    )
