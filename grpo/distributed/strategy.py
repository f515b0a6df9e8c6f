"""Where the policy's weights, gradients and moments lie, and how all ranks make one update of them.

What leaves a strategy is whole and named as in `checkpoint.weights_of(policy.model)`, and so is what it is handed: a
checkpoint of one strategy and number of ranks is one of every other."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from grpo.batch import MicroBatch
from grpo.policy import SCORES, Policy, Scored, Wanted
from grpo.steering import Steering


class Strategy(Protocol):
    """Every method is called by every rank, in the same order."""

    def describe(self) -> str:
        """How the policy lies on the ranks and how it is sampled from, for people to read."""

    @property
    def packs(self) -> bool:
        """Whether the policy takes packed rows, in which a group's prompt is shared."""

    def sampling_policy(self) -> AbstractContextManager[Policy]:
        """The policy as it stands, to sample from while the context lasts; always the same object."""

    def handed_over(self) -> AbstractContextManager[Policy]:
        """The policy as it stands, for an engine that holds a copy: its weights are whole through `Policy.gathered`,
        one at a time, and every rank makes the same calls of it while the context lasts."""

    def whole_policy(self) -> Policy:
        """A policy with whole weights on every rank for another trainer, before the first update; the strategy's own
        policy, or a copy that `load_weights` is to take what was trained from."""

    def steer(self, steering: Steering | None) -> None:
        """Steer every forward from here on, or none: by whoever samples from this policy as well."""

    def forward(self, batch: MicroBatch, wanted: Wanted = SCORES) -> Scored:
        """As `Policy.forward`, of this rank's own micro-batch."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch's share of the update's loss; `last` says that it is the update's last.

        The update's gradient is the sum over micro-batches and ranks: nothing is averaged."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Name and gradient of each trained weight, whole and in float32, after the last `backward` of an update."""

    def update(self, *, rate: float) -> float:
        """Clip, step and clear; returns the gradient's norm before clipping. Not finite: nothing was stepped."""

    @property
    def lowered_scale(self) -> bool:
        """Whether the last update was skipped for a loss scale that was too high, and is lower now (float16 alone)."""

    def metrics(self) -> dict[str, float]:
        """What the strategy has to say about the last update, such as its loss scale."""

    def weights(self) -> dict[str, Tensor]:
        """What training changes, on the CPU in memory of its own: on the main rank whole, on others nothing."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put what `weights` gave in place, on every rank, and begin with moments of zero. Raises CheckpointError."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, as `Optimizer.state_dict`, on the CPU: on the main rank whole, on others empty."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, on every rank."""
