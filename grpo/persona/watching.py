"""Watching traits while training: projections of the step's rollouts, their drift, and the traits as they are scored.

Projections come from forwards that run anyway, by the policy before the step's first update. They are of the rollouts
that are trained on: the groups with variance. What an earlier policy drew says nothing about this one and is left
out. Rows travel by rollout, so that means and variances within groups are exact however the step was split into
micro-batches and over ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grpo.batch import MicroBatch, TrainedRollout
from grpo.config import PersonaConfig
from grpo.distributed.world import World
from grpo.errors import DivergenceError
from grpo.persona.traits import Trait
from grpo.persona.vectors import PersonaVectors, load, save
from grpo.persona.watch_measuring import Asked, Measuring, measured_places
from grpo.persona.watched import Directions, WatchedTrait, of_rollouts
from grpo.policy import Policy
from grpo.types import Group, StepStats
from rewards import Pool

_Key = tuple[str, int]
"""A rollout of the step: problem and attempt."""
NEWEST, FIRST, RANDOM = 0, 1, slice(2, None)
"""Columns of a trait: along its newest direction, its first one, and random ones."""


Reextract = Callable[[Trait, int], tuple[PersonaVectors, int]]
"""Extracts a trait with the policy as it stands after so many steps; returns the tokens that were drawn for it too."""


class _Row(NamedTuple):
    """Projections of one rollout on all that is watched, [W] each."""

    completion: list[float]  # mean over its tokens; NaN where it has one token alone
    last_prompt: list[float]


class Watching:
    """What is watched of each step. Its state is what the first step was like, alarms, and the newest vectors."""

    def __init__(
        self,
        traits: Sequence[WatchedTrait],
        config: PersonaConfig,
        *,
        policy: Policy,
        pool: Pool,
        world: World,
        seed: int,
        max_error_fraction: float,
        folder: Path,
        reextract: Reextract,
        on_event: Callable[[int, str, Mapping[str, Any]], None],
        on_vectors: Callable[[PersonaVectors], None] = lambda newest: None,
    ) -> None:
        """`policy` is the one that is trained; vectors that are extracted again are written into `folder`. `on_event`
        is told what happens, after which step; `on_vectors` is given each trait's newest vectors. Without traits
        nothing is done."""
        self._traits = {trait.name: trait for trait in traits}
        self._config, self._policy, self._world, self._seed = config, policy, world, seed
        self._folder = folder
        self._reextract, self._on_event, self._on_vectors = reextract, on_event, on_vectors
        scorers = {trait.name: trait.scorer for trait in traits if trait.scorer is not None}
        self._measuring = Measuring(scorers, pool=pool, world=world, max_error_fraction=max_error_fraction)
        self._is_measured = bool(scorers)
        self._rows: dict[_Key, _Row] = {}  # of this rank's rollouts, in the step under way
        self._start: dict[str, dict[str, list[float]]] = {}  # mean and spread of the first step, by trait and column
        self._above: dict[str, int] = {}  # steps in a row above the alarm
        self._newest: dict[str, str] = {}  # name of the file of the newest vectors, by trait, once extracted again
        self._watch()

    # --- during a step --------------------------------------------------------------------------------------------

    def read(self, batch: MicroBatch, projections: Tensor | None) -> None:
        """Keep what a forward of the policy before the step's first update read, [A, W]."""
        if projections is None or not batch.rollouts:  # nothing is watched, or a filler
            return
        found = of_rollouts(batch, projections).tolist()
        for trained, (completion, last_prompt) in zip(batch.rollouts, found, strict=True):
            if not trained.stale:
                self._rows[_key(trained)] = _Row(completion, last_prompt)

    @property
    def penalises(self) -> bool:
        """Whether projections cost reward."""
        return any(trait.penalty for trait in self._traits.values())

    def penalties(self, batch: MicroBatch, projections: Tensor | None) -> dict[_Key, float]:
        """Reward that each rollout of a batch loses by its completion's projections, [A, W], in units of the vectors'
        length. A completion of one token projects to nothing and is left out."""
        if projections is None or not batch.rollouts:
            return {}
        found = of_rollouts(batch, projections)[:, 0].double()  # [B, W]
        lost = torch.zeros(len(found), dtype=torch.float64)
        for trait in self._traits.values():
            if trait.penalty:
                lost += trait.penalty * found[:, self._directions.columns(trait.name)[NEWEST]] / trait.length
        pairs = zip(batch.rollouts, lost.tolist(), strict=True)
        return {_key(trained): value for trained, value in pairs if not math.isnan(value)}

    def ask(self, groups: Sequence[Group], *, step: int) -> Asked | None:
        """Have the traits scored on the groups that the policy drew, while other work goes on. `step` from 1."""
        if not self._is_measured or not groups:
            return None
        most = self._config.measure_rollouts_per_step
        return self._measuring.ask(groups, measured_places(groups, most=most, seed=self._seed, step=step))

    def end_step(
        self, asked: Asked | None, trained: Sequence[Sequence[TrainedRollout]], stats: StepStats, *, step: int
    ) -> None:
        """Add what the step showed, `step` from 1, to its metrics: the same on every rank."""
        if asked is not None:
            self._measuring.count(asked, stats, step=step)
        if not self._traits:
            return
        rows = {key: row for of_rank in self._world.gather(self._rows) for key, row in of_rank.items()}
        self._rows = {}
        groups = [[t for t in of_group if _key(t) in rows] for of_group in trained]
        groups = [of_group for of_group in groups if of_group]
        if not groups:
            return
        weights = [torch.tensor([t.weight for t in of_group], dtype=torch.float64) for of_group in groups]
        completion, last_prompt = (
            [torch.tensor([pick(rows[_key(t)]) for t in of_group], dtype=torch.float64) for of_group in groups]
            for pick in (lambda row: row.completion, lambda row: row.last_prompt)
        )
        for name in self._traits:
            columns = self._directions.columns(name)
            self._count(
                name,
                [of_group[:, columns] for of_group in completion],
                [of_group[:, columns[NEWEST]] for of_group in last_prompt],
                weights,
                stats,
            )

    def alarms(self, step: int, metrics: Mapping[str, float]) -> str:
        """Which traits drifted past the alarm in `step`, for people to read; empty where none did.

        Raises DivergenceError after drift_alarm_steps such steps in a row, where that is set."""
        bound, most = self._config.drift_alarm, self._config.drift_alarm_steps
        if bound is None:
            return ""
        told = []
        for name in self._traits:
            drift = metrics.get(f"persona/{name}/drift")
            if drift is None:
                continue
            self._above[name] = 0 if abs(drift) <= bound else self._above.get(name, 0) + 1
            if self._above[name]:
                told.append(
                    f"persona/{name}/drift = {drift:.2f} is past persona.drift_alarm = {bound:g} "
                    f"(random directions: {metrics[f'persona/{name}/drift_random']:.2f})"
                )
            if most is not None and self._above[name] >= most:
                raise DivergenceError(
                    f"step {step}: {told[-1]}, for {self._above[name]} steps in a row (persona.drift_alarm_steps = "
                    f"{most}); steer against it or mend the reward under another run.name, or raise the bound and add "
                    "--resume"
                )
        return "; ".join(told)

    # --- between steps --------------------------------------------------------------------------------------------

    def renew(self, step: int) -> dict[str, float]:
        """Extract the watched vectors with the policy as it stands, where that is due after `step` steps; returns the
        metrics of that. Each trait is extracted once, whatever it is watched by."""
        every = self._config.reextract_every_steps
        if every is None or step % every:
            return {}
        metrics: dict[str, float] = {"tokens/persona": 0.0}
        definitions = {d.name: d for trait in self._traits.values() if (d := trait.definition) is not None}
        for definition in definitions.values():
            newest, num_tokens = self._reextract(definition, step)
            metrics["tokens/persona"] += num_tokens
            path = self._folder / f"{definition.name}_step_{step:06d}.safetensors"
            if self._world.is_main:
                save(newest, path)
            of_trait = [n for n, t in self._traits.items() if t.vectors.origin.trait == definition.name]
            for name in of_trait:
                metrics |= self._renewed(name, newest, path=path, step=step)
            self._on_vectors(newest)
        self._watch()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What the first step was like, steps in a row above the alarm, and the files of the newest vectors."""
        return {"start": self._start, "above": self._above, "newest": self._newest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave. Raises DataError where the file of re-extracted vectors is gone."""
        self._start = {name: dict(of_trait) for name, of_trait in state["start"].items()}
        self._above, self._newest = dict(state["above"]), dict(state["newest"])
        renewed = {file: load(self._folder / file) for file in sorted(set(self._newest.values()))}
        for name, file in self._newest.items():
            self._traits[name] = replace(self._traits[name], vectors=renewed[file])
        for newest in renewed.values():
            self._on_vectors(newest)
        self._watch()

    # --- parts ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._directions = Directions(list(self._traits.values()), seed=self._seed, device=self._policy.device)
        self._policy.watch(self._directions.watched)

    def _renewed(self, name: str, newest: PersonaVectors, *, path: Path, step: int) -> dict[str, float]:
        """Go on with the newest vectors; how far they turned from those before them, and from the first."""
        before = self._traits[name]
        after = replace(before, vectors=newest)
        self._traits[name], self._newest[name] = after, path.name
        cosine = float(after.direction @ before.direction)
        to_first = float(after.direction @ after.first)
        of_blocks = torch.cosine_similarity(newest.of[after.over], before.vectors.of[before.over], dim=-1)  # [L]
        details = {"trait": name, "file": path.name, "block": after.block, "cosines": of_blocks.tolist()}
        self._on_event(step, "reextract", details | {"cosine_to_first": to_first})
        return {f"persona/{name}/cosine": cosine, f"persona/{name}/cosine_to_first": to_first}

    def _count(
        self,
        name: str,
        completion: Sequence[Tensor],
        last_prompt: Sequence[Tensor],
        weights: Sequence[Tensor],
        stats: StepStats,
    ) -> None:
        """Of one trait and each group: projections of its N rollouts [N, C] and [N], and what each stands for [N]."""
        prefix = f"persona/{name}"
        prompts, weight = torch.cat(list(last_prompt)), torch.cat(list(weights))
        stats.add(f"{prefix}/last_prompt", total=float(prompts @ weight), count=float(weight.sum()))
        has_mean = [~of_group[:, NEWEST].isnan() for of_group in completion]
        kept = [of_group[has] for of_group, has in zip(completion, has_mean, strict=True)]
        kept_weights = [of_group[has] for of_group, has in zip(weights, has_mean, strict=True)]
        for of_group, own in zip(kept, kept_weights, strict=True):
            if len(own) > 1:
                _, spread = _mean_and_spread(of_group[:, NEWEST : NEWEST + 1], own)
                stats.add(f"{prefix}/projection_group_variance", total=float(spread) ** 2, count=1)
        values, weight = torch.cat(kept), torch.cat(kept_weights)  # [N, C], [N]
        if len(weight) == 0:
            return
        mean, spread = _mean_and_spread(values, weight)  # [C] each
        stats.add(f"{prefix}/projection", total=float(values[:, NEWEST] @ weight), count=float(weight.sum()))
        stats.add(f"{prefix}/projection_std", total=float(spread[NEWEST]), count=1)
        stats.add(f"{prefix}/projection_random", total=float(mean[RANDOM].abs().mean()), count=1)
        if name not in self._start and len(weight) > 1 and float(spread[FIRST]) > 0:
            self._start[name] = {"mean": mean.tolist(), "spread": spread.tolist()}
        if name in self._start:
            shift = _shift(mean, self._start[name])  # [C]
            stats.add(f"{prefix}/drift", total=float(shift[FIRST]), count=1)
            stats.add(f"{prefix}/drift_random", total=float(shift[RANDOM].square().mean().sqrt()), count=1)
            stats.add_max(f"{prefix}/drift_random_max", float(shift[RANDOM].abs().max()))


def _key(trained: TrainedRollout) -> _Key:
    return trained.rollout.problem_id, trained.rollout.attempt


def _mean_and_spread(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over N rollouts, [C] each, of [N, C] with weights [N]."""
    share = weights / weights.sum()
    mean = share @ values
    return mean, (share @ (values - mean).square()).sqrt()


def _shift(mean: Tensor, start: Mapping[str, list[float]]) -> Tensor:
    """How far each column is from the first step's, in the first step's spread over rollouts, [C]; 0 where nothing
    spread and nothing moved."""
    moved = mean - torch.tensor(start["mean"], dtype=torch.float64)
    spread = torch.tensor(start["spread"], dtype=torch.float64)
    return torch.where(spread > 0, moved / spread, torch.where(moved == 0, 0.0, math.inf))
