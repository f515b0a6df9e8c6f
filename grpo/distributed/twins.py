"""What is sampled from where a policy's weights are sharded: a whole copy for a while, or the shards, in lock step.

Both are policies that are steered as the original is. This file knows no DeepSpeed: gathering comes as a callable."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from grpo.distributed.world import World
from grpo.packing import Layout
from grpo.policy import Policy
from grpo.steering import Readings, Steering

DONE, HIDDEN, HEAD = 0, 1, 2  # what a rank that samples layer by layer wants next; the ranks do the largest


class _Twin(Policy):
    """A policy that is steered as another one is; made from it by copying, and never by its constructor."""

    _original: tuple[Policy]  # in a tuple: a module attribute would register its weights a second time

    @property
    def steering(self) -> Steering | None:
        return self._original[0].steering

    @steering.setter
    def steering(self, steering: Steering | None) -> None:
        self._original[0].steering = steering

    def steer(self, steering: Steering | None) -> None:
        """Steer both."""
        self._original[0].steer(steering)


class Gathered(_Twin):
    """Whole weights while a sampling phase lasts, none in between."""

    @torch.no_grad()
    def fill(self, gathered: Callable[[Tensor], Any]) -> None:
        """Copy the original's weights, one at a time."""
        for own, shard in zip(self.parameters(), self._original[0].parameters(), strict=True):
            with gathered(shard) as whole:
                own.data = whole.detach().clone()
        for own_buffer, buffer in zip(self.buffers(), self._original[0].buffers(), strict=True):
            own_buffer.copy_(buffer)

    def free(self) -> None:
        """Let go of the weights."""
        for own in self.parameters():
            own.data = own.data.new_empty(0)


class LayerByLayer(_Twin):
    """The sharded modules themselves, whose every forward gathers weights: all ranks make the same calls.

    Before each call the ranks agree on one, and who wants another one, or none, makes it with one row of no meaning."""

    in_lock_step = True
    _world: World
    _forget_order: Callable[[], None]
    _gather: Callable[[Tensor], AbstractContextManager[Tensor]]

    def gathered(self, weight: Tensor) -> AbstractContextManager[Tensor]:
        """As `Policy.gathered`."""
        return self._gather(weight)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        cache: Cache | None = None,
        steer_at: Tensor | None = None,
        readings: Readings | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """As `Policy.hidden`."""
        self._wait_for(HIDDEN)
        return super().hidden(
            input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            cache=cache,
            steer_at=steer_at,
            readings=readings,
            layout=layout,
        )

    def head(self, hidden: Tensor) -> Tensor:
        """As `Policy.head`."""
        self._wait_for(HEAD)
        return super().head(hidden)

    def serve(self) -> None:
        """Take part in the calls of others until all are done."""
        self._wait_for(DONE)

    @torch.no_grad()
    def _wait_for(self, wanted: int) -> None:
        while (chosen := self._world.largest(wanted)) != wanted:
            if chosen == HIDDEN:
                super().hidden(torch.zeros(1, 1, dtype=torch.long, device=self.device))
            else:
                super().head(torch.zeros(1, self.hidden_size, dtype=self.dtype, device=self.device))
        self._forget_order()


def unfilled_twin(policy: Policy) -> Gathered:
    """A copy of `policy` whose weights have no elements."""
    empty = {id(p): nn.Parameter(p.detach().new_empty(0), requires_grad=False) for p in policy.parameters()}
    twin: Any = copy.deepcopy(policy, empty)
    twin.__class__ = Gathered
    twin._original = (policy,)
    made: Gathered = twin
    return made


def layer_by_layer(
    policy: Policy,
    world: World,
    *,
    forget_order: Callable[[], None],
    gather: Callable[[Tensor], AbstractContextManager[Tensor]],
) -> LayerByLayer:
    twin: Any = copy.copy(policy)  # the same modules
    twin.__class__ = LayerByLayer
    twin._original, twin._world = (policy,), world
    twin._forget_order, twin._gather = forget_order, gather
    made: LayerByLayer = twin
    return made
