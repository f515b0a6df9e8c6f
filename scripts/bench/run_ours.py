"""This package's side: `grpo train` on a config, with a clock around its sampling and its update."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cases import LEARNING_RATE, Case, policy_path, rows_path
from turns import Turns, watch

from grpo.config import RunConfig
from grpo.distributed.world import World
from grpo.recipe import run_train
from grpo.rollout import Rollouts, Sampled
from grpo.tracking.console import Console
from grpo.update import Updater
from grpo.wiring import opened


def judge(completion: str, problem: Mapping[str, Any]) -> float:
    """A number from 0 to 1 that hardly two completions share: no group is without variance."""
    return zlib.crc32(completion.encode()) / 2**32


def fields(case: Case, *, folder: Path, threads: int, num_steps: int) -> dict[str, Any]:
    """The config of a run: the trainer's defaults wherever the case does not say otherwise."""
    train = {
        "steps": num_steps,
        "problems_per_step": case.num_problems,
        "group_size": case.group_size,
        "tokens_per_micro_batch": case.our_micro_batch_tokens,
    }
    model: dict[str, Any] = {"path": str(policy_path(case, folder=folder)), "dtype": case.shape.dtype}
    if case.lora_rank is not None:
        model["lora"] = {"rank": case.lora_rank, "alpha": 2.0 * case.lora_rank}
    return {
        "run": {
            "name": f"{case.name}_threads_{threads}",
            "folder": str(folder / "runs"),
            "threads": threads,
            "device": case.device,
        },
        "model": model,
        "chat": {"style": "plain"},
        "data": {
            "train": {"path": str(rows_path(case, folder=folder))},
            "heldout_problems": 1,
            "validation_problems": 2,
        },
        "sampling": {"max_completion_tokens": case.limit_tokens},
        "reward": {"file": str(Path(__file__).resolve()), "function": "judge", "workers": 0},
        "curriculum": {"kind": "uniform", "max_refill_waves": 0},
        "train": train,
        "optim": {"learning_rate": LEARNING_RATE},
        "checkpoint": {"every_steps": num_steps + 1},  # one is written after the last step, which no clock sees
    }


class Metronome(Console):
    """A console that hears the end of each step."""

    def __init__(self, turns: Turns, *, num_steps: int) -> None:
        super().__init__(num_steps=num_steps)
        self._turns = turns

    def step(self, metrics: Mapping[str, float], *, is_last: bool) -> None:
        """What the trainer calls when everything of a step is done and written."""
        super().step(metrics, is_last=is_last)
        self._turns.step.trained_tokens = int(metrics["optim/tokens"])
        self._turns.step_done()


def run(case: Case, turns: Turns, *, folder: Path, threads: int, num_steps: int) -> None:
    """Train for so many steps, in turns."""
    config = RunConfig.model_validate(fields(case, folder=folder, threads=threads, num_steps=num_steps))

    def note_lengths(sampled: Sampled) -> None:
        for group in sampled.groups:
            of_group = [rollout.num_actions for rollout in group.rollouts]
            turns.step.lengths.append(of_group)
            turns.step.prompt_lengths.append(len(group.rollouts[0].token_ids) - of_group[0])

    watch(Rollouts, "run", during=lambda: turns.phase("sampling"), then=note_lengths)
    watch(Updater, "update", during=lambda: turns.phase("training"))
    with opened(
        config,
        world=World.alone(),
        start="fresh",
        phases=("train",),
        console=Metronome(turns, num_steps=num_steps),
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as opened_run:
        turns.begin()
        run_train(opened_run)
