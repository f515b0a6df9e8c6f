"""The step's update: kept groups become advantages, micro-batches, gradients and one or several optimizer steps."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo.advantages import group_advantages
from grpo.batch import MicroBatch, TrainedRollout, micro_batches, minibatches, trained_rollouts
from grpo.config import RunConfig
from grpo.errors import DivergenceError
from grpo.losses import policy_loss
from grpo.optim import Optimizer, learning_rate
from grpo.policy import Policy
from grpo.tracking.metrics import loss_metrics, sampler_metrics
from grpo.types import Group, StepStats
from rewards import soft_overlong_penalty


class Updater:
    """Owns the optimizer. It is handed groups that teach something, and decides nothing that the config does not."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        self._policy, self._config = policy, config
        self._optimizer = Optimizer(policy, config.optim)
        self._skipped_in_a_row = 0

    def update(self, groups: Sequence[Group], *, step: int, stats: StepStats) -> list[list[TrainedRollout]]:
        """Train on `groups` and return the rollouts of each that entered the loss. `step` counts from 0.

        Raises DivergenceError when too many updates in a row had a gradient that is not finite."""
        started = time.perf_counter()
        trained = self._with_advantages(groups)
        self._train(trained, step=step, stats=stats)
        stats.add_count("time/train", time.perf_counter() - started)
        return trained

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and how many updates in a row were skipped."""
        return {**self._optimizer.state_dict(), "skipped_in_a_row": self._skipped_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._optimizer.load_state_dict(state)
        self._skipped_in_a_row = state["skipped_in_a_row"]

    def _with_advantages(self, groups: Sequence[Group]) -> list[list[TrainedRollout]]:
        if not groups:
            return []
        advantage, loss = self._config.advantage, self._config.loss
        values = [self._shaped_values(group) for group in groups]
        varied = [
            (group, of_group) for group, of_group in zip(groups, values, strict=True) if max(of_group) > min(of_group)
        ]
        if not varied:
            return []
        advantages = group_advantages([v for _, v in varied], baseline=advantage.baseline, scale=advantage.scale)
        return trained_rollouts([g for g, _ in varied], advantages, mask_truncated=loss.truncated == "mask")

    def _shaped_values(self, group: Group) -> list[float]:
        """Values of the rollouts that have one, less the soft penalty for length where it is configured."""
        config = self._config
        pairs = zip(group.rollouts, group.rewards, strict=True)
        valued = [(rollout, reward.value) for rollout, reward in pairs if reward.value is not None]
        if config.loss.truncated != "penalty":
            return [value for _, value in valued]
        return [
            value
            + soft_overlong_penalty(
                rollout.num_actions,
                limit_tokens=config.sampling.max_completion_tokens,
                buffer_tokens=config.loss.penalty_buffer_tokens,
            )
            for rollout, value in valued
        ]

    def _train(self, trained: Sequence[list[TrainedRollout]], *, step: int, stats: StepStats) -> None:
        """One or several optimizer updates on the step's groups."""
        config = self._config
        updates = [
            micro_batches(
                minibatch,
                tokens_per_micro_batch=config.train.tokens_per_micro_batch,
                limit_tokens=config.sampling.max_completion_tokens,
                aggregation=config.loss.aggregation,
                device=self._policy.device,
            )
            for minibatch in minibatches(trained, number=config.train.minibatches_per_step)
        ]
        old = [
            self._old_logprobs(update, of_first_update=number == 0, stats=stats)
            for number, update in enumerate(updates)
        ]
        for epoch in range(config.train.epochs_per_step):
            for number, update in enumerate(updates):
                before_step = epoch == number == 0
                for place, batch in enumerate(update):
                    old[number][place] = self._backward(batch, old[number][place], before_step=before_step, stats=stats)
                self._apply(step=step, stats=stats)

    def _old_logprobs(
        self, update: Sequence[MicroBatch], *, of_first_update: bool, stats: StepStats
    ) -> list[Tensor | None]:
        """What each micro-batch's ratio is taken against, [A]; None where its own first forward gives it."""
        if self._config.train.old_logprobs == "sampler":
            return [batch.sampler_logprobs for batch in update]
        # The first update's own forward is still by the policy before the step, so only later ones are scored apart.
        return [None if of_first_update else self._score(batch, stats) for batch in update]

    @torch.no_grad()
    def _score(self, batch: MicroBatch, stats: StepStats) -> Tensor:
        """The policy's log-probs [A] before the step's first update."""
        logprobs, _ = self._policy(batch)
        sampler_metrics(stats, policy_logprobs=logprobs, sampler_logprobs=batch.sampler_logprobs)
        return logprobs

    def _backward(
        self, batch: MicroBatch, old_logprobs: Tensor | None, *, before_step: bool, stats: StepStats
    ) -> Tensor:
        """Add one micro-batch's gradient; returns the old log-probs [A], which are its own where none are given."""
        logprobs, entropy = self._policy(batch)  # [A], [A]
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        terms = policy_loss(
            logprobs,
            old_logprobs=old,
            sampler_logprobs=batch.sampler_logprobs,
            advantages=batch.advantages,
            rollout_index=batch.rollout_index,
            weights=batch.weights,
            config=self._config.loss,
        )
        self._optimizer.backward(terms.loss)
        loss_metrics(stats, terms, entropy=entropy.detach())
        if before_step:
            sampler_metrics(stats, policy_logprobs=logprobs.detach(), sampler_logprobs=batch.sampler_logprobs)
        return old

    def _apply(self, *, step: int, stats: StepStats) -> None:
        config = self._config.optim
        rate = learning_rate(step, num_steps=self._config.train.steps, config=config)
        norm = self._optimizer.update(rate=rate)
        finite = math.isfinite(norm)
        stats.add_count("optim/skipped_updates", not finite)
        stats.add("optim/lr", total=rate, count=1)
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if finite:
            stats.add("optim/grad_norm", total=norm, count=1)
        if self._skipped_in_a_row > config.max_skipped_updates:
            raise DivergenceError(
                f"step {step + 1}: {self._skipped_in_a_row} updates in a row had a non-finite loss or gradient "
                f"(optim.max_skipped_updates = {config.max_skipped_updates}); lower optim.learning_rate, under another "
                "run.name or with --fresh"
            )
