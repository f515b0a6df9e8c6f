"""Curricula against each other at an equal budget of tokens: same start, paired seeds, held-out problems.

    python scripts/compare_curricula.py --seeds 1 2 3 4 5 6 7 8 9 10 --pools hopeless mild --workers 2

For each seed one policy is cold-started as the quick start does and exported; for each pool its problems are written
once. Every arm of a pair begins with both, has the same noise keys and the same held-out problems, and ends when its
budget is spent: profile, practice, refills, evaluations of temperatures and new profiles all count. A seed, pool and
arm that is finished is not run again and one that was killed goes on, so the script can be stopped and started; the
tables are printed from what is finished (`--table-only` prints them alone)."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from curricula import paired_t_interval, ratio_interval
from grpo import cli, starts
from grpo import recipe as phases
from grpo.config import RunConfig, load
from grpo.distributed.world import World
from grpo.evaluation import evaluate
from grpo.folder import write_json
from grpo.tasks import list_machine
from grpo.tracking.console import Console
from grpo.wiring import opened

CONFIG = Path("configs/curricula.yaml")
COLD_START = Path("configs/quickstart.yaml")
START = (
    # Traces of every length that is practised: what is compared is how practice is chosen, not how far it reaches.
    "sft.traces.options={num_rows: 4000, operations: {1: 3, 2: 3, 3: 3, 4: 2, 5: 1}}",
    "data.train.options={num_rows: 1000, operations: {2: 1, 3: 1, 4: 1, 5: 1}}",
    "reward.workers=0",
)
POOLS: Mapping[str, Mapping[str, Any]] = {
    # One problem in ten is worth practising; the others are soon solved every time (1 operation), or never, since 7 to
    # 9 operations need more tokens than a completion may have.
    "hopeless": {"num_rows": 2128, "operations": {1: 15, 2: 2.5, 3: 2.5, 4: 2.5, 5: 2.5, 7: 25, 8: 25, 9: 25}},
    "mild": {"num_rows": 2128, "operations": {2: 1, 3: 1, 4: 1, 5: 1}},
}
MODERATE = "{name: moderate, tiers: [moderate], follow_moves: true}"
ARMS: Mapping[str, Sequence[str]] = {
    "uniform": (),
    "uniform, no refill": ("curriculum.max_refill_waves=0",),
    "weighted": ("curriculum.kind=weighted",),
    "online": ("curriculum.kind=online",),
    "tiers": ("curriculum.kind=two_stages", f"curriculum.stages=[{MODERATE}]"),
}
CURVE_POINTS = 6
CURVE_ROLLOUTS = 2


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--pools", nargs="+", choices=list(POOLS), default=list(POOLS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--folder", type=Path, default=Path("runs/curricula"))
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="section.key=value", help="fields to change in all arms"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes at once, one thread each")
    parser.add_argument("--reference", default="uniform", help="the arm that the others are compared with")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--job", nargs=3, metavar=("SEED", "POOL", "ARM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        seed, pool, arm = arguments.job
        run_arm(int(seed), pool, arm, folder=arguments.folder, changes=arguments.set)
        return
    if not arguments.table_only:
        for seed in arguments.seeds:
            make_start(seed, folder=arguments.folder)
        jobs = [(s, pool, arm) for s in arguments.seeds for pool in arguments.pools for arm in arguments.arms]
        missing = [job for job in jobs if not result_path(*job, folder=arguments.folder).is_file()]
        with ThreadPoolExecutor(arguments.workers) as pool_of_workers:
            list(pool_of_workers.map(lambda job: in_a_process(job, arguments), missing))
    for pool in arguments.pools:
        print_table(pool, arguments)


def in_a_process(job: tuple[int, str, str], arguments: argparse.Namespace) -> None:
    """Run one job by itself, so that a fault or a kill costs it alone."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--seeds", "0", "--folder", str(arguments.folder)]
    command += ["--job", *map(str, job), "--set", *arguments.set]
    path = log_path(*job, folder=arguments.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    outcome = f"{time.monotonic() - started:.0f} s" if code == 0 else f"exit {code}, see {path}"
    print(f"seed {job[0]}, {job[1]}, {job[2]}: {outcome}", flush=True)


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


def run_arm(seed: int, pool: str, arm: str, *, folder: Path, changes: Sequence[str]) -> None:
    """Practise until the budget is spent, evaluate the checkpoints on the way, and write the result."""
    rows_path = folder / f"pool_{pool}_{seed}.jsonl"
    if not rows_path.is_file():
        rows = list_machine.rows(POOLS[pool], seed)
        rows_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    name = f"{pool}_{arm}_{seed}".replace(" ", "_").replace(",", "")
    config = load(
        CONFIG,
        [
            f"run.name={name}",
            f"run.folder={folder}",
            f"run.seed={seed}",
            f"model.path={start_path(seed, folder=folder)}",
            f"data.train.path={rows_path}",
            "checkpoint.every_steps=5",
            "checkpoint.keep_last=10000",
            *changes,
            *ARMS[arm],
        ],
    )
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
        result = evaluated(run, config)
    spent = {"cpu_seconds": trained - begun, "evaluation_cpu_seconds": time.process_time() - trained}
    (folder / "results").mkdir(exist_ok=True)
    shutil.rmtree(folder / name / "checkpoints")  # their scores are all that is wanted of them
    write_json(result_path(seed, pool, arm, folder=folder), {"seed": seed, "pool": pool, "arm": arm, **spent, **result})


def evaluated(run: starts.Run, config: RunConfig) -> dict[str, Any]:
    """Held-out scores over the tokens that were spent, and what these were spent on."""
    rows = [json.loads(line) for line in run.folder.metrics.read_text(encoding="utf-8").splitlines()]
    spent_by_step = {0: rows[0]["tokens/total"] - rows[0]["sampling/tokens"]}
    spent_by_step |= {row["step"]: row["tokens/total"] for row in rows}
    saved = sorted(int(path.name.split("_")[1]) for path in run.folder.checkpoints.glob("step_*"))
    budget = config.train.max_tokens or rows[-1]["tokens/total"]
    marks = [budget * (place + 1) / CURVE_POINTS for place in range(CURVE_POINTS - 1)]
    steps = {0, *(min([0, *saved], key=lambda step: abs(spent_by_step[step] - mark)) for mark in marks)}
    curve = []
    for step in sorted(steps - {saved[-1]}):
        curve.append({"tokens": spent_by_step[step], **scores(run, step, num_rollouts=CURVE_ROLLOUTS)})
    final = scores(run, saved[-1], num_rollouts=config.evaluation.rollouts_per_problem)
    curve.append({"tokens": spent_by_step[saved[-1]], **final})
    purposes = ("sampling/tokens", "tokens/kept", "tokens/reused", "tokens/temperature", "tokens/reprofile")
    ledger = {purpose: sum(row.get(purpose, 0.0) for row in rows) for purpose in purposes}
    ledger["profile"] = spent_by_step[0]
    return {"budget": budget, "steps": saved[-1], "curve": curve, "final": final, "ledger": ledger}


def scores(run: starts.Run, step: int, *, num_rollouts: int) -> dict[str, Any]:
    """pass@1 over all held-out problems and by number of operations, of the policy after `step` steps."""
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
    by_operations: dict[str, list[float]] = {}
    for problem in run.heldout:
        by_operations.setdefault(str(problem.meta["num_operations"]), []).append(result.scores[problem.id])
    of_each = {f"operations_{count}": fmean(values) for count, values in sorted(by_operations.items())}
    return {"step": step, "pass@1": fmean(result.scores.values()), **of_each}


def area(result: Mapping[str, Any]) -> float:
    """Mean pass@1 over the budget: the area under the curve by the trapezoidal rule, the start's until it moves."""
    points = [(0.0, result["curve"][0]["pass@1"])]
    points += [(min(p["tokens"], result["budget"]), p["pass@1"]) for p in result["curve"]]
    points.append((result["budget"], points[-1][1]))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)) / float(result["budget"])


def tokens_to_reach(result: Mapping[str, Any], value: float) -> float | None:
    """Tokens at which the curve first reaches `value`, on straight lines between points; None where it does not."""
    before = None
    for point in result["curve"]:
        if point["pass@1"] >= value:
            if before is None or point["pass@1"] == before["pass@1"]:
                return float(point["tokens"])
            share = (value - before["pass@1"]) / (point["pass@1"] - before["pass@1"])
            return float(before["tokens"] + share * (point["tokens"] - before["tokens"]))
        before = point
    return None


def print_table(pool: str, arguments: argparse.Namespace) -> None:
    """Means over the seeds that every arm has finished, and each arm's paired difference from the reference."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in arguments.arms:
        for seed in arguments.seeds:
            path = result_path(seed, pool, arm, folder=arguments.folder)
            if path.is_file():
                found.setdefault(arm, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    seeds = sorted(set.intersection(*(set(of_arm) for of_arm in found.values()))) if found else []
    if not seeds:
        return
    print(f"\n### {pool}: {len(seeds)} paired seeds\n")
    print("| arm | final pass@1 | area | steps | profile, tokens | kept, share | final − reference | tokens ratio |")
    print("|---|---|---|---|---|---|---|---|")
    reference = [found[arguments.reference][seed] for seed in seeds] if arguments.reference in found else []
    for arm, of_arm in found.items():
        results = [of_arm[seed] for seed in seeds]
        print("| " + " | ".join(row_of(arm, results, reference)) + " |")


def row_of(arm: str, results: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of one arm."""
    final = [result["final"]["pass@1"] for result in results]
    kept = [result["ledger"]["tokens/kept"] / (result["ledger"]["sampling/tokens"] + 1) for result in results]
    cells = [
        arm,
        with_spread(final),
        with_spread([area(result) for result in results]),
        f"{fmean(result['steps'] for result in results):.0f}",
        f"{fmean(result['ledger']['profile'] for result in results):,.0f}",
        f"{fmean(kept):.2f}",
    ]
    if not reference or len(results) < 2 or results[0]["arm"] == reference[0]["arm"]:
        return [*cells, "–", "–"]
    mean, low, high = paired_t_interval([a - r["final"]["pass@1"] for a, r in zip(final, reference, strict=True)])
    cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    reached = [tokens_to_reach(a, r["final"]["pass@1"]) for a, r in zip(results, reference, strict=True)]
    if any(tokens is None for tokens in reached):
        return [*cells, f"not reached in {sum(t is None for t in reached)} of {len(reached)}"]
    spent = [r["curve"][-1]["tokens"] for r in reference]
    ratio, ratio_low, ratio_high = ratio_interval([t for t in reached if t is not None], spent)
    return [*cells, f"{ratio:.2f} [{ratio_low:.2f}, {ratio_high:.2f}]"]


def with_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def start_path(seed: int, *, folder: Path) -> Path:
    return folder / f"start_{seed}"


def result_path(seed: int, pool: str, arm: str, *, folder: Path) -> Path:
    return folder / "results" / f"{pool}_{arm}_{seed}.json".replace(" ", "_").replace(",", "")


def log_path(seed: int, pool: str, arm: str, *, folder: Path) -> Path:
    return folder / "logs" / f"{pool}_{arm}_{seed}.log".replace(" ", "_").replace(",", "")


if __name__ == "__main__":
    main()
