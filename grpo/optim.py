"""AdamW over the policy's trainable weights, its schedule, and the guard that skips a non-finite update.

Weights below float32 are trained through float32 copies: at a learning rate of 1e-6 a bfloat16 weight of 0.02 would
never move, since its neighbours are 1e-4 away. Their gradients are summed in float32 too: each rounding of a bfloat16
sum loses what lies below 2^-9 of it, and a step adds hundreds of micro-batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grpo.config import OptimConfig
from grpo.errors import CheckpointError

ADAMW_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW with decoupled weight decay on matrices only. Source: Loshchilov & Hutter (2019), arXiv 1711.05101.

    A weight that got no gradient counts as one whose gradient is zero: with several ranks, whether it got one may
    differ from rank to rank."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        """Names are those of `model.named_parameters()`: tied weights are one."""
        self._max_grad_norm = config.max_grad_norm
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._masters = {n: w if w.dtype == torch.float32 else w.detach().float() for n, w in self._weights.items()}
        self._adamw = _adamw(self._masters.values(), config)
        self.lowered_scale = False
        """Whether the last update was skipped for a loss scale that was too high."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, one micro-batch's share of an update."""
        with self._summed_in_float32():
            loss.backward()

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
        if math.isfinite(norm):
            for group in self._adamw.param_groups:
                group["lr"] = rate
            self._adamw.step()
            for name, master in self._copies():
                self._weights[name].data.copy_(master)
        self._adamw.zero_grad(set_to_none=True)
        return norm

    def metrics(self) -> dict[str, float]:
        """What the optimizer has to say about the last update."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """By the weight's name: the float32 copies where there are any, and the moments once there are any.

        The tensors lie on the CPU in memory of their own, so that they can be written while training goes on."""
        moments = {name: self._adamw.state[master] for name, master in self._masters.items()}
        return {
            "masters": {name: _snapshot(master) for name, master in self._copies()},
            "moments": {
                name: {field: _snapshot(tensor) for field, tensor in of_weight.items()}
                for name, of_weight in moments.items()
                if of_weight
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave; the weights themselves are loaded apart. Raises CheckpointError for other names."""
        _check_names(state, ("masters", "moments"), what="parts")
        masters, moments = state["masters"], state["moments"]
        _check_names(masters, dict(self._copies()), what="float32 copies")
        _check_names(moments, self._masters if moments else (), what="moments")
        for name, of_weight in moments.items():
            _check_names(of_weight, ADAMW_MOMENTS, what=f"moments of {name}")
        for name, master in self._copies():
            master.copy_(masters[name])
        for name, master in self._masters.items():
            held = moments.get(name, {})
            # The count of steps stays on the CPU, where AdamW made it.
            self._adamw.state[master] = {
                field: tensor.to("cpu" if field == "step" else master.device, copy=True)
                for field, tensor in held.items()
            }

    @contextmanager
    def _summed_in_float32(self) -> Iterator[None]:
        """Let each gradient of a weight that has a copy go to the copy, and be freed, as soon as it is whole."""
        handles = [
            self._weights[name].register_post_accumulate_grad_hook(_moves_gradient_to(master))
            for name, master in self._copies()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _copies(self) -> Iterator[tuple[str, Tensor]]:
        """The float32 copies, by the name of the weight."""
        return ((name, m) for name, m in self._masters.items() if m is not self._weights[name])


def _adamw(weights: Iterable[Tensor], config: OptimConfig) -> torch.optim.AdamW:
    held = list(weights)
    groups = [
        {"params": [w for w in held if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in held if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def _snapshot(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _check_names(found: Iterable[str], expected: Iterable[str], *, what: str) -> None:
    differing = sorted(set(found) ^ set(expected))
    if differing:
        raise CheckpointError(
            f"the checkpoint's optimizer state is of another model or optimizer: {what}: {differing[0]} differs "
            f"({len(differing)} in all); resume with the config that wrote it, or --fresh to start again"
        )


def _moves_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    return move


def learning_rate(step: int, *, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of step `step` (from 0) of `num_steps`: linear warm-up, then the schedule down to the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps))
    low = config.final_fraction
    share = {
        "constant": 1.0,
        "linear": 1 - (1 - low) * progress,
        "cosine": low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2,
    }[config.schedule]
    return config.learning_rate * share
