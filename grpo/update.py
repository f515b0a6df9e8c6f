"""The step's update: kept groups become advantages, micro-batches, gradients and one or several optimizer steps.

Every rank is handed the same groups, makes the same plan, and computes its own part of it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo.advantages import group_advantages
from grpo.batch import MicroBatch, TrainedRollout, micro_batches, minibatches, trained_rollouts
from grpo.config import RunConfig
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.errors import DivergenceError
from grpo.losses import LossTerms, policy_loss
from grpo.optim import learning_rate
from grpo.policy import Wanted
from grpo.tracking.metrics import loss_metrics, sampler_metrics
from grpo.types import Group, Stage, StepStats
from rewards import soft_overlong_penalty

Penalties = Callable[[MicroBatch, Tensor | None], Mapping[tuple[str, int], float]]
"""From a batch and its projections [A, W] to the reward that a rollout loses, by problem and attempt."""


class Updater:
    """Makes updates of groups that teach something, and decides nothing that the config does not."""

    def __init__(
        self,
        strategy: Strategy,
        config: RunConfig,
        *,
        world: World,
        on_skipped: Callable[[int, Iterator[dict[str, Any]]], None] = lambda step, rows: None,
        on_projections: Callable[[MicroBatch, Tensor | None], None] = lambda batch, projections: None,
        penalties: Penalties | None = None,
    ) -> None:
        """`on_skipped` is given the step (from 1) and, as JSON can hold it, the rollouts of an update whose gradient
        was not finite; `on_projections` what the policy before the step's first update projects to on what it watches,
        [A, W], where a forward asks it; `penalties` makes of the same, before the update, what rollouts lose by it."""
        self._strategy, self._config, self._world = strategy, config, world
        self._on_skipped, self._on_projections = on_skipped, on_projections
        self._penalties = penalties
        self._skipped_in_a_row = 0

    def update(
        self, groups: Sequence[Group], *, stage: Stage, step: int, stats: StepStats
    ) -> list[list[TrainedRollout]]:
        """Train on `groups` and return the rollouts of each that entered the loss. `step` counts from 0.

        `stage` has the sizes of the step. Raises DivergenceError when too many updates in a row had a gradient that is
        not finite."""
        started = time.perf_counter()
        trained = self._with_advantages(groups, stage=stage, step=step, lost={})
        if self._penalties is not None and any(trained):
            lost = self._lost(trained, self._penalties, stage=stage)
            stats.add("reward/trait_penalty", total=math.fsum(lost.values()), count=len(lost))
            trained = self._with_advantages(groups, stage=stage, step=step, lost=lost)
        own = StepStats()  # of this rank's micro-batches
        self._train(trained, stage=stage, step=step, own=own, stats=stats)
        for of_rank in self._world.gather(own):
            stats.merge(of_rank)
        stats.add_count("time/train", time.perf_counter() - started)
        return trained

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, on the main rank, and how many updates in a row were skipped."""
        return {**self._strategy.state_dict(), "skipped_in_a_row": self._skipped_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        of_strategy = dict(state)
        self._skipped_in_a_row = of_strategy.pop("skipped_in_a_row")
        self._strategy.load_state_dict(of_strategy)

    def _with_advantages(
        self, groups: Sequence[Group], *, stage: Stage, step: int, lost: Mapping[tuple[str, int], float]
    ) -> list[list[TrainedRollout]]:
        if not groups:
            return []
        advantage, loss = self._config.advantage, self._config.loss
        values = [self._shaped_values(group, limit_tokens=stage.max_completion_tokens, lost=lost) for group in groups]
        varied = [
            (group, of_group) for group, of_group in zip(groups, values, strict=True) if max(of_group) > min(of_group)
        ]
        if not varied:
            return []
        advantages = group_advantages([v for _, v in varied], baseline=advantage.baseline, scale=advantage.scale)
        return trained_rollouts(
            [group for group, _ in varied],
            advantages,
            mask_truncated=loss.truncated == "mask",
            failures_per_group=stage.failures_per_group,
            seed=self._config.run.seed,
            step=step,
        )

    def _shaped_values(self, group: Group, *, limit_tokens: int, lost: Mapping[tuple[str, int], float]) -> list[float]:
        """Values of the rollouts that have one, less what they lost and the soft penalty for length where it is
        configured. No projection is read of what does not enter the loss: it loses as much as its group on average."""
        config = self._config
        pairs = zip(group.rollouts, group.rewards, strict=True)
        valued = [(rollout, reward.value) for rollout, reward in pairs if reward.value is not None]
        own = [lost.get((rollout.problem_id, rollout.attempt)) for rollout, _ in valued]
        known = [value for value in own if value is not None]
        mean = math.fsum(known) / len(known) if known else 0.0
        values = [value - (mean if loss is None else loss) for (_, value), loss in zip(valued, own, strict=True)]
        if config.loss.truncated != "penalty":
            return values
        return [
            value
            + soft_overlong_penalty(
                rollout.num_actions,
                limit_tokens=limit_tokens,
                buffer_tokens=config.loss.penalty_buffer_tokens,
            )
            for (rollout, _), value in zip(valued, values, strict=True)
        ]

    @torch.no_grad()
    def _lost(
        self, trained: Sequence[list[TrainedRollout]], penalties: Penalties, *, stage: Stage
    ) -> dict[tuple[str, int], float]:
        """What each rollout loses by its projections under the policy before the update; the same on every rank."""
        own: dict[tuple[str, int], float] = {}
        for batch in self._micro_batches([group for group in trained if group], stage=stage):
            own |= penalties(batch, self._strategy.forward(batch, Wanted(entropy=False)).projections)
            self._world.progress()
        return {key: value for of_rank in self._world.gather(own) for key, value in of_rank.items()}

    def _micro_batches(self, groups: Sequence[list[TrainedRollout]], *, stage: Stage) -> list[MicroBatch]:
        """This rank's micro-batches of an update on these groups."""
        return micro_batches(
            groups,
            tokens_per_micro_batch=self._config.train.tokens_per_micro_batch,
            limit_tokens=stage.max_completion_tokens,
            aggregation=self._config.loss.aggregation,
            device=self._world.device,
            shares_prompts=self._strategy.packs,
            rank=self._world.rank,
            num_ranks=self._world.size,
        )

    def _train(
        self, trained: Sequence[list[TrainedRollout]], *, stage: Stage, step: int, own: StepStats, stats: StepStats
    ) -> None:
        """One or several optimizer updates on the step's groups."""
        config, world = self._config, self._world
        world.progress("update")
        parts = minibatches(trained, number=config.train.minibatches_per_step)
        updates = [self._micro_batches(minibatch, stage=stage) for minibatch in parts]
        old = [
            self._old_logprobs(update, of_first_update=number == 0, own=own) for number, update in enumerate(updates)
        ]
        for epoch in range(config.train.epochs_per_step):
            for number, update in enumerate(updates):
                before_step = epoch == number == 0
                for place, batch in enumerate(update):
                    old[number][place] = self._backward(
                        batch,
                        old[number][place],
                        before_step=before_step,
                        with_entropy=epoch == 0,
                        last=place + 1 == len(update),
                        own=own,
                    )
                    world.progress()
                self._apply(parts[number], stage=stage, step=step, stats=stats)

    def _old_logprobs(
        self, update: Sequence[MicroBatch], *, of_first_update: bool, own: StepStats
    ) -> list[Tensor | None]:
        """What each micro-batch's ratio is taken against, [A]; None where its own first forward gives it."""
        if self._config.train.old_logprobs == "sampler":
            return [batch.sampler_logprobs for batch in update]
        # The first update's own forward is still by the policy before the step, so only later ones are scored apart.
        return [None if of_first_update else self._score(batch, own) for batch in update]

    @torch.no_grad()
    def _score(self, batch: MicroBatch, own: StepStats) -> Tensor:
        """The policy's log-probs [A] before the step's first update."""
        _, logprobs, _, projections = self._strategy.forward(batch, Wanted(entropy=False))
        sampler_metrics(own, batch, policy_logprobs=logprobs)
        self._on_projections(batch, projections)
        self._world.progress()
        return torch.where(batch.stale, batch.sampler_logprobs, logprobs)

    def _backward(
        self,
        batch: MicroBatch,
        old_logprobs: Tensor | None,
        *,
        before_step: bool,
        with_entropy: bool,
        last: bool,
        own: StepStats,
    ) -> Tensor:
        """Add one micro-batch's gradient; returns the old log-probs [A], which are its own where none are given."""

        def terms_of(logprobs: Tensor, part: slice) -> LossTerms:
            sampler_logprobs = batch.sampler_logprobs[part]
            if old_logprobs is None:
                # What an earlier policy drew is off this one: the ratio, and its clip, are to the policy that drew it.
                old = torch.where(batch.stale[part], sampler_logprobs, logprobs.detach())
            else:
                old = old_logprobs[part]
            return policy_loss(
                logprobs,
                old_logprobs=old,
                sampler_logprobs=sampler_logprobs,
                advantages=batch.advantages[part],
                rollout_index=batch.rollout_index[part],
                weights=batch.weights[part],
                config=self._config.loss,
            )

        scored = self._strategy.forward(
            batch,
            Wanted(
                loss_of=lambda logprobs, part: terms_of(logprobs, part).loss,
                token_by_token=self._config.loss.ratio == "token",
                entropy=with_entropy,
                projections=before_step,
            ),
        )
        assert scored.loss is not None
        self._strategy.backward(scored.loss, last=last)
        logprobs = scored.logprobs
        loss_metrics(own, terms_of(logprobs, slice(0, len(logprobs))), entropy=scored.entropy)
        if before_step:
            sampler_metrics(own, batch, policy_logprobs=logprobs)
            self._on_projections(batch, scored.projections)
        return torch.where(batch.stale, batch.sampler_logprobs, logprobs) if old_logprobs is None else old_logprobs

    def _apply(self, minibatch: Sequence[list[TrainedRollout]], *, stage: Stage, step: int, stats: StepStats) -> None:
        config = self._config.optim
        rate = learning_rate(step, num_steps=self._config.train.steps, config=config, peak=stage.learning_rate)
        norm = self._strategy.update(rate=rate)
        finite = math.isfinite(norm)
        stats.add_count("optim/skipped_updates", not finite)
        stats.add("optim/lr", total=rate, count=1)
        for name, value in self._strategy.metrics().items():
            stats.add(name, total=value, count=1)
        if finite:
            stats.add("optim/grad_norm", total=norm, count=1)
            self._skipped_in_a_row = 0
        elif not self._strategy.lowered_scale:
            self._skipped_in_a_row += 1
            self._on_skipped(step + 1, _rows(minibatch))
        if self._skipped_in_a_row > config.max_skipped_updates:
            raise DivergenceError(
                f"step {step + 1}: {self._skipped_in_a_row} updates in a row had a non-finite loss or gradient "
                f"(optim.max_skipped_updates = {config.max_skipped_updates}); their rollouts are in the run's folder "
                "skipped; lower optim.learning_rate, under another run.name or with --fresh"
            )


def _rows(minibatch: Sequence[list[TrainedRollout]]) -> Iterator[dict[str, Any]]:
    """All that the loss was made of, a rollout a row."""
    for of_group in minibatch:
        for trained in of_group:
            rollout = trained.rollout
            yield {
                "problem_id": rollout.problem_id,
                "attempt": rollout.attempt,
                "policy_step": rollout.policy_step,
                "temperature": rollout.temperature,
                "advantage": trained.advantage,
                "group_tokens": trained.group_tokens,
                "weight": trained.weight,
                "token_ids": list(rollout.token_ids),
                "action_mask": [int(action) for action in rollout.action_mask],
                "logprobs": list(rollout.logprobs),
            }
