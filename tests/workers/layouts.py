"""Sample a step and compute its gradient with the real trainer, in one layout after another; rank 0 writes what came.

A layout is a JSON object: `name`, `changes` of the miniature run's fields, and `order` of the groups. What comes of it
is a file NAME.pt: the step's tokens and the gradient of each update, by weight."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo.distributed import world as ranks
from grpo.distributed.world import World
from grpo.recipe import stages_of
from grpo.types import StepStats
from grpo.update import Updater
from tests.runs import opened_run, small_run_config, trainer_of

BASE: dict[str, Any] = {
    "sft": None,
    "curriculum": {"kind": "uniform", "max_refill_waves": 0},
    "evaluation.every_steps": 0,
    "train.minibatches_per_step": 1,
    "train.problems_per_step": 6,
    "advantage.scale": "group_std",
    "reward.function": "coin",
}


def compute(folder: Path, layout: dict[str, Any], world: World) -> dict[str, Any]:
    """Tokens of the first step's rollouts, gradients by update and weight, and the norms that were reported."""
    config = small_run_config(folder / layout["name"], **(BASE | layout.get("changes", {})))
    gradients: list[dict[str, Tensor]] = []
    norms: list[float] = []
    with opened_run(config, world=world) as run:
        groups = trainer_of(run, config).draw()
        tokens = [rollout.token_ids for group in groups for rollout in group.rollouts]
        strategy = run.strategy
        step = strategy.update

        def noted(*, rate: float) -> float:
            gradients.append({name: gradient.clone() for name, gradient in strategy.gradients()})
            norms.append(step(rate=rate))
            return norms[-1]

        strategy.update = noted  # type: ignore[method-assign]
        kept = [group for group in groups if not group.degenerate]
        assert len(kept) > 2, "the step has too few groups to say anything"
        random.Random(layout.get("order", 0)).shuffle(kept)
        (stage,) = stages_of(config)
        Updater(strategy, config, world=world).update(kept, stage=stage, step=0, stats=StepStats())
    return {"tokens": tokens, "gradients": gradients, "norms": norms}


def main(folder: Path, layouts: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    with ranks.opened("cpu", watchdog_seconds=120) as world:
        for layout in layouts:
            found = compute(folder, layout, world)
            if world.is_main:
                torch.save(found, folder / f"{layout['name']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
