"""One seed and arm: the policy it starts from, its trait's vectors, practice, and what becomes of the policy."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from arms import ARMS, CONFIG, EVENLY, NO_LEAK, TRAIT, UNSCALED, random_path, result_path, start_path, vectors_path

from grpo import checkpoint, cli, starts
from grpo.config import load
from grpo.distributed.world import World
from grpo.folder import write_json
from grpo.persona.vectors import load as load_vectors
from grpo.persona.vectors import random_like
from grpo.persona.vectors import save as save_vectors
from grpo.rollout import Attempts
from grpo.seeds import torch_seed
from grpo.tracking.console import Console
from grpo.wiring import opened

HELDOUT = "data.heldout={path: 'task:list_machine', options: {num_rows: 1024, operations: {1: 1, 2: 1, 3: 1, 4: 1}}}"
HELDOUT_PROBLEMS = 1024
CURVE_ROLLOUTS, FINAL_ROLLOUTS = 1, 8
CURVE_STEPS = (20, 40)


def make_start(seed: int, *, folder: Path) -> None:
    """The cold-started policy of a seed as a Hugging Face folder, and the trait's vectors in it."""
    target, vectors = start_path(seed, folder=folder), vectors_path(seed, folder=folder)
    changes = [f"run.seed={seed}", f"run.name=cold_{seed}", f"run.folder={folder}"]
    if not (target / "config.json").is_file():
        command(["sft", str(CONFIG), *changes, EVENLY, "--fresh"])
        command(["export", str(folder / f"cold_{seed}"), "--checkpoint", "cold_start", "--output", str(target)])
    if not vectors.is_file():
        changes = [f"run.seed={seed}", f"run.name=vectors_{seed}", f"run.folder={folder}", *from_start(target)]
        command(["persona", "extract", str(CONFIG), *changes, "--trait", TRAIT, "--output", str(vectors), "--fresh"])
    random = random_path(seed, folder=folder)
    if not random.is_file():
        of = load_vectors(vectors)
        drawn = [random_like(v, seed=torch_seed(seed, "random control", n)) for n, v in enumerate(of.of["response"])]
        save_vectors(replace(of, of={**of.of, "response": torch.stack(drawn)}), random)


def command(arguments: Sequence[str]) -> None:
    """One command of grpo. Raises SystemExit where it fails."""
    code = cli.main(arguments)
    if code:
        raise SystemExit(f"grpo {' '.join(arguments)} ended with code {code}")


def from_start(path: Path) -> list[str]:
    """Start from a policy as it lies there."""
    return ["sft=null", f"model={{path: {path}, dtype: float32}}"]


def run_arm(seed: int, arm: str, *, folder: Path, changes: Sequence[str]) -> None:
    """Practise, then measure the policy at some steps, and write the result."""
    name = f"{arm.replace(' ', '_').replace(',', '')}_{seed}"
    vectors = str(vectors_path(seed, folder=folder))
    common = [f"run.seed={seed}", f"run.folder={folder}", *from_start(start_path(seed, folder=folder))]
    watched = f"persona.watch=[{{vectors: {vectors}, measure: true}}]"
    files = {"{vectors}": vectors, "{random}": str(random_path(seed, folder=folder))}
    own = [with_files(change, files) for change in ARMS[arm].changes]
    begun = time.process_time()
    # Every checkpoint that is measured is kept.
    kept = ["checkpoint.every_steps=20", "checkpoint.keep_last=1000"]
    is_practice = ARMS[arm].phase == "train"
    fields = [*common, UNSCALED, f"run.name={name}", *([watched] if is_practice else []), *kept, *changes, *own]
    command([ARMS[arm].phase, str(CONFIG), *fields, *(["--resume"] if (folder / name).is_dir() else [])])
    trained = time.process_time()
    # Without the arm's instruction and steering, and with both scores of every rollout.
    plain = [*common, f"run.name=evaluated_{name}", NO_LEAK, HELDOUT, f"data.heldout_problems={HELDOUT_PROBLEMS}"]
    last = load(CONFIG, changes).train.steps
    names = {step: f"step_{step:06d}" for step in (*CURVE_STEPS, last) if step <= last}
    checkpoints = names if is_practice else {last: "cold_start"}
    curve = measured(plain, {step: folder / name / "checkpoints" / at for step, at in checkpoints.items()})
    metrics = folder / name / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if is_practice else []
    rows = [json.loads(line) for line in lines]
    persona = {
        key: [row.get(key) for row in rows] for key in sorted({k for row in rows for k in row if "persona/" in k})
    }
    spent = {"cpu_seconds": trained - begun, "evaluation_cpu_seconds": time.process_time() - trained}
    result = {"seed": seed, "arm": arm, **spent, "curve": curve, "final": curve[-1], "metrics": persona}
    result_path(seed, arm, folder=folder).parent.mkdir(exist_ok=True)
    write_json(result_path(seed, arm, folder=folder), result)


def with_files(change: str, files: Mapping[str, str]) -> str:
    """A change with the names of files in their places."""
    for place, path in files.items():
        change = change.replace(place, path)
    return change


def measured(fields: Sequence[str], checkpoints: Mapping[int, Path]) -> list[dict[str, float]]:
    """Accuracy and trait rate of the held-out problems, unsteered and without instruction, at the start and after so
    many steps; the last one most exactly."""
    config = load(CONFIG, list(fields))
    with opened(
        config,
        world=World.alone(),
        start="fresh",
        phases=("train",),
        console=Console(num_steps=1),
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        found = []
        for step in (0, *checkpoints):
            if step:
                load_policy(run, checkpoints[step])
            number = FINAL_ROLLOUTS if step == max(checkpoints) else CURVE_ROLLOUTS
            attempts = [Attempts(problem=problem, first_attempt=0, num_rollouts=number) for problem in run.heldout]
            groups = run.rollouts.run(attempts, temperature=1.0, phase="evaluation", step=0).groups
            found.append({"step": step, **scores([reward.parts for group in groups for reward in group.rewards])})
    return found


def load_policy(run: starts.Run, path: Path) -> None:
    """Put a checkpoint's weights in place."""
    weights, _, _ = checkpoint.load(path, device=starts.CPU)
    run.strategy.load_weights(weights)
    run.rollouts.load_weights()


def scores(parts: Sequence[Any]) -> dict[str, float]:
    """Means over rollouts of what is right and of the share of letters in upper case."""
    return {"accuracy": fmean(part["correct"] for part in parts), "trait": fmean(part["style"] for part in parts)}
