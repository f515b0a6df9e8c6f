"""One seed, pool and arm: the policy it starts from, practice until the budget is spent, and held-out scores."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from arms import (
    ARMS,
    COLD_START,
    CONFIG,
    FOLLOWING,
    POOLS,
    STAGE_ONE,
    START,
    TO_64,
    file_name,
    result_path,
    start_path,
    tiers_path,
)

from grpo import cli, starts
from grpo import recipe as phases
from grpo.config import RunConfig, load
from grpo.distributed.world import World
from grpo.evaluation import evaluate
from grpo.folder import write_json
from grpo.tasks import list_machine
from grpo.tracking.console import Console
from grpo.wiring import opened

CURVE_POINTS = 6
CURVE_ROLLOUTS = 2048  # of all held-out problems together


def make_start(seed: int, *, folder: Path) -> None:
    """The policy that every arm of a seed starts from, as a Hugging Face folder."""
    target = start_path(seed, folder=folder)
    if (target / "config.json").is_file():
        return
    name = f"cold_{seed}"
    changes = [f"run.seed={seed}", f"run.name={name}", f"run.folder={folder}", *START]
    if cli.main(["sft", str(COLD_START), *changes, "--fresh"]):
        raise SystemExit(f"the cold start of seed {seed} failed; see {folder / name / 'logs'}")
    cli.main(["export", str(folder / name), "--checkpoint", "cold_start", "--output", str(target)])


def make_stage_one(seed: int, *, folder: Path, changes: Sequence[str]) -> None:
    """The policy after a stage of moderate problems, as a Hugging Face folder."""
    target = start_path(seed, folder=folder, after_stage_one=True)
    if (target / "config.json").is_file():
        return
    name = f"stage_one_{seed}"
    fields = [*fields_of(seed, "mild", name, folder=folder, rows_seed=seed), *changes, *STAGE_ONE]
    for phase in ("profile", "train"):
        if cli.main([phase, str(CONFIG), *fields, "--fresh"]):
            raise SystemExit(f"stage one of seed {seed} failed; see {folder / name / 'logs'}")
    cli.main(["export", str(folder / name), "--output", str(target)])


def fields_of(seed: int, pool: str, name: str, *, folder: Path, rows_seed: int) -> list[str]:
    """What a run named `name` on this pool changes in the common config; its rows are written where they are not."""
    path = folder / f"pool_{file_name(pool)}_{rows_seed}.jsonl"
    if not path.is_file():
        rows = list_machine.rows(POOLS[pool].rows, rows_seed)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    start = start_path(seed, folder=folder, after_stage_one=POOLS[pool].after_stage_one)
    own = [f"run.name={name}", f"run.folder={folder}", f"run.seed={seed}"]
    return [*own, f"model.path={start}", f"data.train.path={path}", *POOLS[pool].changes]


def run_arm(seed: int, pool: str, arm: str, *, folder: Path, changes: Sequence[str]) -> None:
    """Practise until the budget is spent, evaluate the checkpoints on the way, and write the result."""
    name = file_name(f"{pool}_{arm}_{seed}")
    # A seed that no other pair has: its rows are new to every policy.
    rows_seed = seed + 1_000_000 if ARMS[arm].other_rows else seed
    fields = fields_of(seed, pool, name, folder=folder, rows_seed=rows_seed)
    saving = ["checkpoint.every_steps=5", "checkpoint.keep_last=10000"]
    config = load(CONFIG, [*fields, *saving, *changes, *ARMS[arm].changes])
    wanted = tuple(phase for phase in phases.phases_of(config) if phase in ("profile", "train"))
    begun = time.process_time()
    with opened(
        config,
        world=World.alone(),
        start="resume" if (folder / name).is_dir() else "new",
        phases=wanted,
        console=Console(num_steps=config.train.steps),
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        for phase in wanted:
            phases.PHASE_FUNCTIONS[phase](run)
        trained = time.process_time()
        labels = tiers_path(seed, folder=folder)
        tiers = json.loads(labels.read_text(encoding="utf-8")) if POOLS[pool].after_stage_one else {}
        result = evaluated(run, config, tiers=tiers)
    spent = {"cpu_seconds": trained - begun, "evaluation_cpu_seconds": time.process_time() - trained}
    (folder / "results").mkdir(exist_ok=True)
    shutil.rmtree(folder / name / "checkpoints")  # their scores are all that is wanted of them
    write_json(result_path(seed, pool, arm, folder=folder), {"seed": seed, "pool": pool, "arm": arm, **spent, **result})


def label_heldout(seed: int, pool: str, *, folder: Path, changes: Sequence[str]) -> None:
    """Write the tiers of the held-out problems for the policy that the arms start from, on draws of their own.

    Every arm is measured by the same labels, of up to 64 rollouts, whatever it profiles itself."""
    fields = fields_of(seed, pool, f"labels_{seed}", folder=folder, rows_seed=seed)
    config = load(CONFIG, [*fields, *changes, "curriculum.kind=two_stages", FOLLOWING, *TO_64])
    with opened(
        config,
        world=World.alone(),
        start="resume" if (folder / f"labels_{seed}").is_dir() else "new",
        phases=("profile",),
        console=Console(num_steps=1),
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        starts.load_start(run)
        profiled = starts.profile_policy(
            run,
            run.heldout,
            folder=run.folder.path / "heldout",
            store_folder=run.folder.path / "heldout",
            temperature=config.evaluation.temperature,
            phase="tiers of held-out problems",
            on_group=lambda group: None,
        )
    write_json(tiers_path(seed, folder=folder), profiled.tiers)


def evaluated(run: starts.Run, config: RunConfig, *, tiers: Mapping[str, str]) -> dict[str, Any]:
    """Held-out scores over the tokens that were spent, and what these were spent on."""
    rows = [json.loads(line) for line in run.folder.metrics.read_text(encoding="utf-8").splitlines()]
    spent_by_step = {0: rows[0]["tokens/total"] - rows[0]["sampling/tokens"]}
    spent_by_step |= {row["step"]: row["tokens/total"] for row in rows}
    saved = sorted(int(path.name.split("_")[1]) for path in run.folder.checkpoints.glob("step_*"))
    budget = config.train.max_tokens or rows[-1]["tokens/total"]
    marks = [budget * (place + 1) / CURVE_POINTS for place in range(CURVE_POINTS - 1)]
    steps = {0, *(min([0, *saved], key=lambda step: abs(spent_by_step[step] - mark)) for mark in marks)}
    curve = []
    on_the_way = max(1, CURVE_ROLLOUTS // len(run.heldout))
    for step in sorted(steps - {saved[-1]}):
        curve.append({"tokens": spent_by_step[step], **scores(run, step, num_rollouts=on_the_way, tiers=tiers)})
    final = scores(run, saved[-1], num_rollouts=config.evaluation.rollouts_per_problem, tiers=tiers)
    curve.append({"tokens": spent_by_step[saved[-1]], **final})
    purposes = ("sampling/tokens", "tokens/kept", "tokens/reused", "tokens/temperature", "tokens/reprofile")
    ledger = {purpose: sum(row.get(purpose, 0.0) for row in rows) for purpose in purposes}
    ledger["profile"] = spent_by_step[0]
    return {"budget": budget, "steps": saved[-1], "curve": curve, "final": final, "ledger": ledger}


def scores(run: starts.Run, step: int, *, num_rollouts: int, tiers: Mapping[str, str]) -> dict[str, Any]:
    """pass@1 over all held-out problems, by number of operations and by tier, of the policy after `step` steps."""
    if step == 0:
        starts.load_start(run)
    else:
        starts.load_step(run, step)
    result = evaluate(
        run.rollouts,
        run.heldout,
        num_rollouts=num_rollouts,
        temperature=run.config.evaluation.temperature,
        k=[1],
        max_error_fraction=0.0,
    )
    parts: dict[str, list[float]] = {}
    for problem in run.heldout:
        score = result.scores[problem.id]
        parts.setdefault(f"operations_{problem.meta['num_operations']}", []).append(score)
        if problem.id in tiers:
            parts.setdefault(f"tier_{tiers[problem.id]}", []).append(score)
    sizes = {f"num_{name}": len(values) for name, values in parts.items() if name.startswith("tier_")}
    means = {name: fmean(values) for name, values in sorted(parts.items())}
    return {"step": step, "pass@1": fmean(result.scores.values()), **means, **sizes}
