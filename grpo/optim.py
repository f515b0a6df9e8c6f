"""The optimizers of the policy's trainable weights, their schedule, and the guard that skips a non-finite update.

Weights below float32 are trained through float32 copies: at a learning rate of 1e-6 a bfloat16 weight of 0.02 would
never move, since its neighbours are 1e-4 away. Their gradients are summed in float32 too: each rounding of a bfloat16
sum loses what lies below 2^-9 of it, and a step adds hundreds of micro-batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grpo.config import OptimConfig
from grpo.errors import CheckpointError, ConfigError
from grpo.model import base_of
from grpo.steering import decoder_blocks

NEWTON_SCHULZ_STEPS = 5
FIRST_LOSS_SCALE = 2.0**16
LOWEST_LOSS_SCALE = 1.0
UPDATES_TO_DOUBLE = 2000
ADAMW_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)


class LossScale:
    """Factor of the loss in float16, whose numbers end at 6e-8: without it most gradients would be zero.

    As large as gradients allow: a non-finite one halves it, and a long run of finite ones doubles it.
    Source: Micikevicius et al. (2018), arXiv 1710.03740."""

    def __init__(self) -> None:
        self.value = FIRST_LOSS_SCALE
        self._good_updates = 0

    def adjust(self, *, finite: bool) -> bool:
        """Take note of whether an update's gradient was finite; returns whether the scale is lower for it."""
        if finite:
            self._good_updates += 1
            if self._good_updates == UPDATES_TO_DOUBLE:
                self.value, self._good_updates = 2 * self.value, 0
            return False
        before, self._good_updates = self.value, 0
        self.value = max(LOWEST_LOSS_SCALE, self.value / 2)
        return self.value < before

    def state_dict(self) -> dict[str, Any]:
        """The scale, and how long it has been good."""
        return {"value": self.value, "good_updates": self._good_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.value, self._good_updates = state["value"], state["good_updates"]


class Optimizer:
    """AdamW with decoupled weight decay on matrices only; with kind muon, Muon for the matrices of the blocks.

    Muon's update has the root mean square 0.2 · rate, near AdamW's own, so both take the same rate and decay.
    A weight that got no gradient counts as one whose gradient is zero: with several ranks, whether it got one may
    differ from rank to rank. Sources: Loshchilov & Hutter (2019), arXiv 1711.05101; Liu et al. (2025), arXiv
    2502.16982."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        """Names are those of `model.named_parameters()`: tied weights are one. Raises ConfigError as `check` does."""
        check(config)
        self._max_grad_norm = config.max_grad_norm
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._masters = {n: w if w.dtype == torch.float32 else w.detach().float() for n, w in self._weights.items()}
        self._by_muon = muon_names(model) if config.kind == "muon" else frozenset()
        self._steppers = [_adamw([m for name, m in self._masters.items() if name not in self._by_muon], config)]
        if self._by_muon:
            self._steppers.append(_muon([m for name, m in self._masters.items() if name in self._by_muon], config))
        in_float16 = any(weight.dtype == torch.float16 for weight in model.parameters())
        self._loss_scale = LossScale() if in_float16 else None
        self.lowered_scale = False
        """Whether the last update was skipped for a loss scale that was too high, and is lower now (float16 alone)."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, one micro-batch's share of an update."""
        with self._summed_in_float32():
            (loss * self._scale).backward()

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Name and float32 gradient of each weight as summed so far: the tensors themselves, to be changed in place."""
        for name, master in self._masters.items():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            yield name, master.grad

    def update(self, *, rate: float) -> float:
        """Clip, step and clear what `backward` summed; returns its norm before clipping, over all weights.

        A norm that is not finite means that loss or gradient was not: then nothing is stepped."""
        for _ in self.gradients():
            pass  # so that none is missing
        norm = float(nn.utils.clip_grad_norm_(self._masters.values(), self._max_grad_norm))
        finite = math.isfinite(norm)
        self.lowered_scale = self._loss_scale is not None and self._loss_scale.adjust(finite=finite)
        if finite:
            for stepper in self._steppers:
                for group in stepper.param_groups:
                    group["lr"] = rate
                stepper.step()
            for name, master in self._copies():
                self._weights[name].data.copy_(master)
        for master in self._masters.values():
            master.grad = None
        return norm

    def metrics(self) -> dict[str, float]:
        """What the optimizer has to say about its next update."""
        return {} if self._loss_scale is None else {"optim/loss_scale": self._loss_scale.value}

    def state_dict(self) -> dict[str, Any]:
        """By the weight's name: the float32 copies where there are any, and the moments once there are any.

        The tensors lie on the CPU in memory of their own, so that they can be written while training goes on."""
        scale = {} if self._loss_scale is None else {"loss_scale": self._loss_scale.state_dict()}
        moments = {name: self._state_of(name) for name in self._masters}
        return scale | {
            "masters": {name: _snapshot(master) for name, master in self._copies()},
            "moments": {
                name: {field: _snapshot(tensor) for field, tensor in of_weight.items()}
                for name, of_weight in moments.items()
                if of_weight
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave; the weights themselves are loaded apart. Raises CheckpointError for other names."""
        _check_names(state, ("masters", "moments") + (("loss_scale",) if self._loss_scale else ()), what="parts")
        masters, moments = state["masters"], state["moments"]
        _check_names(masters, dict(self._copies()), what="float32 copies")
        _check_names(moments, self._masters if moments else (), what="moments")
        for name, of_weight in moments.items():
            expected = MUON_MOMENTS if name in self._by_muon else ADAMW_MOMENTS
            _check_names(of_weight, expected, what=f"moments of {name}")
        for name, master in self._copies():
            master.copy_(masters[name])
        for name, master in self._masters.items():
            held = self._state_of(name)
            held.clear()
            for field, tensor in moments.get(name, {}).items():
                # AdamW's count of steps stays on the CPU, where AdamW made it.
                held[field] = tensor.to("cpu" if field == "step" else master.device, copy=True)
        if self._loss_scale is not None:
            self._loss_scale.load_state_dict(state["loss_scale"])

    @property
    def _scale(self) -> float:
        return 1.0 if self._loss_scale is None else self._loss_scale.value

    @contextmanager
    def _summed_in_float32(self) -> Iterator[None]:
        """Take the scale out of gradients, and let that of a weight that has a copy go there as soon as it is whole."""
        scale, handles = self._scale, []
        for name, weight in self._weights.items():
            if weight is not self._masters[name]:
                move = _moves_gradient_to(self._masters[name], scale=scale)
                handles.append(weight.register_post_accumulate_grad_hook(move))
            elif scale != 1:  # float32 adapters beside float16 weights
                handles.append(weight.register_hook(lambda gradient: gradient / scale))  # before it enters the sum
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _state_of(self, name: str) -> dict[str, Tensor]:
        """The moments of a weight, as the optimizer that steps it holds them."""
        stepper = self._steppers[1 if name in self._by_muon else 0]
        moments: dict[str, Tensor] = stepper.state[self._masters[name]]
        return moments

    def _copies(self) -> Iterator[tuple[str, Tensor]]:
        """The float32 copies, by the name of the weight."""
        return ((name, m) for name, m in self._masters.items() if m is not self._weights[name])


def check(config: OptimConfig) -> None:
    """Raises ConfigError where the installed torch lacks the optimizer."""
    if config.kind == "muon" and "Muon" not in vars(torch.optim):
        raise ConfigError(
            f"optim.kind = 'muon': torch {torch.__version__} has no Muon; install torch 2.9 or later, or set kind: "
            "adamw"
        )


def muon_names(model: nn.Module) -> frozenset[str]:
    """The weights that optim.kind = muon gives to Muon: what is trained of the blocks and has two dimensions.

    Adapters of the blocks are among them. Embeddings, head, norms, biases and experts in one tensor stay with AdamW."""
    of_blocks = {id(weight) for weight in decoder_blocks(base_of(model)).parameters()}
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    return frozenset(name for name, weight in trained if weight.ndim == 2 and id(weight) in of_blocks)


def _adamw(weights: Sequence[Tensor], config: OptimConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def _muon(weights: Sequence[Tensor], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        weights,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        ns_steps=NEWTON_SCHULZ_STEPS,
        adjust_lr_fn="match_rms_adamw",
    )


def _snapshot(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _check_names(found: Iterable[str], expected: Iterable[str], *, what: str) -> None:
    differing = sorted(set(found) ^ set(expected))
    if differing:
        raise CheckpointError(
            f"the checkpoint's optimizer state is of another model or optimizer: {what}: {differing[0]} differs "
            f"({len(differing)} in all); resume with the config that wrote it, or --fresh to start again"
        )


def _moves_gradient_to(master: Tensor, *, scale: float) -> Callable[[Tensor], None]:
    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float().div_(scale)  # first float32: what the scale lifted would be zero again
        else:
            master.grad.add_(weight.grad, alpha=1 / scale)
        weight.grad = None

    return move


def learning_rate(step: int, *, num_steps: int, config: OptimConfig, peak: float | None = None) -> float:
    """Learning rate of step `step` (from 0) of `num_steps`: linear warm-up, then the schedule down to the last step.

    `peak` is the rate between the two, of a stage that has its own; None takes the config's."""
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps))
    low = config.final_fraction
    share = {
        "constant": 1.0,
        "linear": 1 - (1 - low) * progress,
        "cosine": low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2,
    }[config.schedule]
    return peak * share
