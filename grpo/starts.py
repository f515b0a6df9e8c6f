"""A run that is ready to go, and the policies that its phases begin with: read from the folder, put in place.

Every rank asks together; what the folder holds is the main rank's to say."""

import json
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
from grpo.folder import COLD_START, Phase, RunFolder
from grpo.policy import Policy
from grpo.profiling import TIERS_FILE
from grpo.rollout import Rollouts
from grpo.tracking.console import Console
from grpo.tracking.tracker import Tracker
from grpo.trainer import Trainer
from grpo.types import Problem

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
    train: Sequence[Problem]
    validation: Sequence[Problem]
    heldout: Sequence[Problem]
    traces: Sequence[Problem]
    tracker: Tracker
    console: Console
    should_stop: Callable[[], bool]  # says the same on every rank, which all ask together

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


def read_tiers(run: Run) -> dict[str, dict[str, Any]]:
    """The profile in the run's folder: each problem's row of the tier table. Raises DataError where there is none."""
    path = run.folder.profile / TIERS_FILE
    if not run.world.broadcast(path.is_file()):
        raise DataError(
            f"{path}: no profile, and curriculum.kind = {run.config.curriculum.kind!r} practises by tier; run "
            "`grpo profile` (or `grpo recipe`) with this config first, or set curriculum.kind=uniform"
        )
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["problem_id"]: row for row in rows}


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
