"""AdamW over the policy's trainable weights, its schedule, and the guard that skips a non-finite update.

Weights below float32 are trained through float32 copies: at a learning rate of 1e-6 a bfloat16 weight of 0.02 would
never move, since its neighbours are 1e-4 away. Their gradients are summed in float32 too: each rounding of a bfloat16
sum loses what lies below 2^-9 of it, and a step adds hundreds of micro-batches."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grpo.config import OptimConfig


class Optimizer:
    """AdamW with decoupled weight decay on matrices only. Source: Loshchilov & Hutter (2019), arXiv 1711.05101."""

    def __init__(self, policy: nn.Module, config: OptimConfig) -> None:
        self._max_grad_norm = config.max_grad_norm
        self._weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self._weights]
        groups = [
            {"params": [m for m in self._masters if m.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [m for m in self._masters if m.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, one micro-batch's share of an update."""
        with self._summed_in_float32():
            loss.backward()

    def update(self, *, rate: float) -> float:
        """Clip, step and clear what `backward` summed; returns its norm before clipping, over all weights.

        A norm that is not finite means that loss or gradient was not: then nothing is stepped."""
        norm = float(nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm))
        if math.isfinite(norm):
            for group in self._adamw.param_groups:
                group["lr"] = rate
            self._adamw.step()
            for weight, master in self._pairs():
                weight.data.copy_(master)
        self._adamw.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Moments, and the float32 copies where there are any."""
        return {"adamw": self._adamw.state_dict(), "masters": [master for _, master in self._pairs()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave; the weights themselves are loaded apart."""
        self._adamw.load_state_dict(state["adamw"])
        for (_, master), saved in zip(self._pairs(), state["masters"], strict=True):
            master.copy_(saved)

    @contextmanager
    def _summed_in_float32(self) -> Iterator[None]:
        """Let each gradient of a weight that has a copy go to the copy, and be freed, as soon as it is whole."""
        handles = [w.register_post_accumulate_grad_hook(_moves_gradient_to(m)) for w, m in self._pairs()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Weights with a float32 copy of their own, and the copies."""
        return [(w, m) for w, m in zip(self._weights, self._masters, strict=True) if w is not m]


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
