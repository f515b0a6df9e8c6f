"""A run that is ready to go, and the policies that its phases begin with: read from the folder, put in place.

Every rank asks together; what the folder holds is the main rank's to say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo import checkpoint
from grpo.chat import Chat
from grpo.config import RunConfig
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.errors import CheckpointError, DataError
from grpo.fingerprints import PolicyPrint, policy_print, profile_fingerprint
from grpo.folder import COLD_START, Phase, RunFolder
from grpo.manifest import MANIFEST_FILE, Row, read_manifest
from grpo.persona.applied import Applied
from grpo.persona.steerer import Steerer, Unsteered
from grpo.persona.watched import WatchedTrait
from grpo.policy import Policy
from grpo.profiling import Profile, profile
from grpo.rollout import Rollouts
from grpo.stock import StockWriter
from grpo.tracking.console import Console
from grpo.tracking.tracker import Tracker
from grpo.trainer import Trainer
from grpo.types import Group, Problem
from rewards import Pool

TIER_COLUMNS = ("id", "tier", "estimate", "num_rollouts", "num_correct", "mean_tokens", "total_tokens")
CPU = torch.device("cpu")
"""Where checkpoints are read to: the device's memory has no room for a second copy of weights and moments."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is ready to go: its config, its folder, and the parts that every phase uses."""

    config: RunConfig
    world: World
    folder: RunFolder
    policy: Policy
    strategy: Strategy
    initial_weights: Callable[[], Mapping[str, Tensor]]  # what the config alone gives, before any phase
    chat: Chat
    rollouts: Rollouts
    pool: Pool  # that the rewards of `rollouts` go through
    watched: Sequence[WatchedTrait]  # in training
    train: Sequence[Problem]
    validation: Sequence[Problem]
    sets: Mapping[str, Sequence[Problem]]  # what is evaluated on, by name: heldout first, then evaluation.sets
    traces: Sequence[Problem]
    tracker: Tracker
    console: Console
    should_stop: Callable[[], bool]  # says the same on every rank, which all ask together
    steerer: Steerer | Unsteered
    sft_steering: Applied | None  # of the cold start

    @property
    def heldout(self) -> Sequence[Problem]:
        """The problems that nothing is learned from or decided on."""
        return self.sets["heldout"]

    @property
    def cold_start_path(self) -> Path:
        """Where the policy after the cold start lies."""
        return self.folder.checkpoints / COLD_START


def load_start(run: Run) -> str:
    """Put the policy that training starts from in place: the cold start's, or the config's own. Returns its name."""
    if run.config.sft is None:
        run.strategy.load_weights(run.initial_weights())
        run.rollouts.load_weights()
        return "base"
    if not run.world.broadcast(run.cold_start_path.is_dir()):
        raise CheckpointError(f"{run.cold_start_path}: no cold start yet; run `grpo sft` or `grpo recipe` first")
    weights, _, _ = checkpoint.load(run.cold_start_path, device=CPU)
    run.strategy.load_weights(weights)
    run.rollouts.load_weights()
    return (run.cold_start_path / checkpoint.MANIFEST).read_text(encoding="utf-8")


def load_step(run: Run, step: int) -> None:
    """Put the policy after `step` steps of training in place. Raises CheckpointError where it is not saved whole."""
    weights, _, _ = checkpoint.load(checkpoint.step_path(run.folder.checkpoints, step), device=CPU)
    run.strategy.load_weights(weights)
    run.rollouts.load_weights()


def print_of(run: Run) -> PolicyPrint:
    """Of the policy as it stands, the same on every rank."""
    weights = run.strategy.weights()
    policy = run.world.broadcast(policy_print(weights) if run.world.is_main else None)
    assert policy is not None  # the main rank has one
    return policy


def newest_checkpoint(run: Run, phase: Phase) -> Path | None:
    """The newest whole checkpoint of the training, after a word on each newer one that is not; None without any.

    Raises CheckpointError when there are some and none is whole."""
    folder = run.folder.checkpoints
    if run.world.is_main:
        checkpoint.recover(folder)
    newest, faults = run.world.broadcast(checkpoint.newest_whole(folder) if run.world.is_main else (None, []))
    for fault in faults:
        run.console.say(f"{phase}: {fault}")
    if newest is None and faults:
        raise CheckpointError(
            f"{folder}: none of {len(faults)} checkpoints is whole ({faults[0]}); restore one, or `grpo train --fresh` "
            "starts the training again"
        )
    return newest


def profile_policy(
    run: Run,
    problems: Sequence[Problem],
    *,
    folder: Path,
    store_folder: Path,
    temperature: float,
    phase: str = "profile",
    step: int = 0,
    on_group: Callable[[Group], None] | None = None,
    may_stop: bool = True,
) -> Profile:
    """Profile `problems` with the policy as it stands, as `grpo.profiling.profile` does; raises what it raises.

    `on_group` is called with each group as there; None keeps what training can use of them beside the shards
    (`grpo.stock`). With `may_stop` it ends between two waves where the run was asked to."""
    config = run.config
    policy = print_of(run)
    fingerprint = profile_fingerprint(config, run.chat, policy=policy, temperature=temperature, phase=phase, step=step)

    def keep(beside: Path) -> Callable[[Group], None]:
        return StockWriter(beside, first_rollouts=config.profile.first_rollouts, rank=run.world.rank).add

    return profile(
        run.rollouts,
        problems,
        config=config.profile,
        folder=folder,
        store_folder=store_folder,
        fingerprint=fingerprint,
        temperature=temperature,
        max_rows=config.sampling.max_rows,
        max_error_fraction=config.reward.max_error_fraction,
        should_stop=run.should_stop if may_stop else lambda: False,
        on_progress=run.console.profile_progress,
        make_on_group=keep if on_group is None else lambda _: on_group,
        say=run.console.say,
        world=run.world,
        phase=phase,
        step=step,
    )


def read_tiers(run: Run) -> dict[str, Row]:
    """The profile in the run's folder: some columns of each problem's row of the manifest, by problem.

    The main rank reads it and tells the others: on another node a file that it has just written may not be seen yet.
    Raises DataError where there is none, or one that cannot be read."""
    rows, fault = run.world.broadcast(_tier_rows(run) if run.world.is_main else ({}, ""))
    if fault:
        raise DataError(fault)
    return rows


def _tier_rows(run: Run) -> tuple[dict[str, Row], str]:
    """The rows by problem, or what is wrong."""
    path = run.folder.profile / MANIFEST_FILE
    if not path.is_file():
        return {}, (
            f"{path}: no profile, and curriculum.kind = {run.config.curriculum.kind!r} practises by tier; run "
            "`grpo profile` (or `grpo recipe`) with this config first, or set curriculum={kind: uniform}"
        )
    try:
        return {row["id"]: row for row in read_manifest(path, columns=TIER_COLUMNS).rows}, ""
    except DataError as error:
        return {}, str(error)


def take_up(trainer: Trainer, path: Path) -> dict[str, Any]:
    """Hand a checkpoint to the trainer; returns the ranks that wrote it, as `layout` tells them.

    No weight of it outlives the call: beside the run there is no second copy."""
    weights, optimizer, state = checkpoint.load(path, device=CPU)
    if optimizer is None:
        raise CheckpointError(f"{path}: holds no optimizer state; `grpo train --fresh` starts the training again")
    trainer.load(weights, optimizer, state)
    ranks: dict[str, Any] = state["ranks"]
    return ranks


def layout(ranks: Mapping[str, Any]) -> str:
    """The number of ranks and their strategy, for people to read."""
    return f"{ranks['number']} rank{'s' if ranks['number'] > 1 else ''} ({ranks['strategy']})"
