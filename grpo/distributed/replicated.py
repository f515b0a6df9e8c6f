"""Data parallelism with whole weights on every rank: gradients are summed once an update, everything else is local.

The sum is made of the float32 sums over a rank's own micro-batches, and not micro-batch by micro-batch as torch's
DistributedDataParallel makes it: so the number of micro-batches costs no message, and bfloat16 gradients are rounded
nowhere on the way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from grpo import checkpoint, optim
from grpo.batch import MicroBatch
from grpo.config import OptimConfig
from grpo.distributed.world import World
from grpo.optim import Optimizer
from grpo.policy import SCORES, Policy, Scored, Wanted
from grpo.steering import Steering


class Replicated:
    """`distributed.strategy: ddp`. The optimizer, whose copies take memory, is made by the first update.

    Raises ConfigError where the installed torch lacks the optimizer."""

    def __init__(self, policy: Policy, world: World, config: OptimConfig) -> None:
        optim.check(config)
        self._policy, self._world, self._config = policy, world, config
        self._made: Optimizer | None = None
        self._is_summed = False

    def describe(self) -> str:
        size = self._world.size
        return f"ddp on {size} rank{'s' if size > 1 else ''}: the weights are whole on every rank"

    @property
    def packs(self) -> bool:
        return self._policy.packs

    @contextmanager
    def sampling_policy(self) -> Iterator[Policy]:
        yield self._policy

    @contextmanager
    def handed_over(self) -> Iterator[Policy]:
        yield self._policy

    def whole_policy(self) -> Policy:
        return self._policy

    def steer(self, steering: Steering | None) -> None:
        self._policy.steer(steering)

    def forward(self, batch: MicroBatch, wanted: Wanted = SCORES) -> Scored:
        return Scored(*self._policy(batch, wanted))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._optimizer.backward(loss)
        if last:
            self._world.sum_in_place([gradient for _, gradient in self._optimizer.gradients()])

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._optimizer.gradients()

    def update(self, *, rate: float) -> float:
        return self._optimizer.update(rate=rate)

    @property
    def lowered_scale(self) -> bool:
        return self._optimizer.lowered_scale

    def metrics(self) -> dict[str, float]:
        return self._optimizer.metrics()

    def weights(self) -> dict[str, Tensor]:
        if not self._world.is_main:
            return {}
        return {name: tensor.to("cpu", copy=True) for name, tensor in checkpoint.weights_of(self._policy.model).items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        checkpoint.load_weights(self._policy.model, weights)
        self._made = None  # it holds copies and moments of other weights

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict() if self._world.is_main else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state)

    @property
    def _optimizer(self) -> Optimizer:
        if self._made is None:
            self._made = Optimizer(self._policy.model, self._config)
        return self._made
