"""Does training learn what it can? Problems that the start solves in 20 to 80 % of rollouts, before and after practice.

    python scripts/check_learning.py configs/check_learning.yaml --seeds 31 32 33 --folder runs/check_learning

For each seed a policy is cold-started and profiles the problems; those in the band are practised, and their pass rate
is then measured on rollouts that neither chose nor taught anything, of the start and of the last policy with the same
noise; so are the held-out problems. A seed that is finished is not run again and one that was killed goes on, so the
script can be stopped and started; the table is printed from all finished seeds (`--table-only` prints it alone)."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from curricula.intervals import mean_interval
from grpo import recipe as phases
from grpo import starts
from grpo.config import RunConfig, load
from grpo.distributed.world import World
from grpo.evaluation import evaluate
from grpo.folder import Phase, write_json
from grpo.tracking.console import Console
from grpo.types import Problem
from grpo.wiring import opened

BAND = (0.2, 0.8)
GOAL = 0.95
SETS = ("chosen", "heldout")


def main() -> None:
    """Run the seeds that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/check_learning"))
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="fields to change")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    for seed in [] if arguments.table_only else arguments.seeds:
        path = result_path(seed, folder=arguments.folder)
        if not path.is_file():
            own = [f"run.seed={seed}", f"run.name=seed_{seed}", f"run.folder={arguments.folder}"]
            write_json(path, run_seed(load(arguments.config, [*own, *arguments.set])))
    print(table([path for seed in arguments.seeds if (path := result_path(seed, folder=arguments.folder)).is_file()]))


def result_path(seed: int, *, folder: Path) -> Path:
    """Where the scores of a seed are written once it is finished."""
    return folder / f"seed_{seed}.json"


def run_seed(config: RunConfig) -> dict[str, Any]:
    """Scores of the start and of the last policy of one seed, on both sets of problems, and what they took.

    The CPU-seconds are those of the process that finished the seed."""
    before: tuple[Phase, ...] = ("sft", "profile") if config.sft is not None else ("profile",)
    started = time.process_time()
    with opened(
        config,
        world=World.alone(),
        start="resume" if (Path(config.run.folder) / config.run.name).is_dir() else "new",
        phases=(*before, "train"),
        console=Console(num_steps=config.train.steps),
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        for phase in before:
            if not phases.is_finished(run, phase):
                phases.PHASE_FUNCTIONS[phase](run)
        chosen = in_band(run.train, starts.read_tiers(run))
        if not chosen:
            raise SystemExit(
                f"seed {config.run.seed}: no problem is solved in {BAND[0]:.0%} to {BAND[1]:.0%} of rollouts"
            )
        run.console.say(
            f"{len(chosen)} of {len(run.train)} problems are solved in {BAND[0]:.0%} to {BAND[1]:.0%} of rollouts"
        )
        run = replace(run, train=chosen)
        starts.load_start(run)
        scores = {"start": scores_of(run)}
        begun = time.process_time()
        phases.run_train(run)  # from its newest checkpoint, and with no step where it is finished
        trained = time.process_time()
        scores["end"] = scores_of(run)
    spent = {"train_cpu_seconds": trained - begun, "cpu_seconds": time.process_time() - started}
    return {"seed": config.run.seed, "num_chosen": len(chosen), "steps": config.train.steps, **spent, **scores}


def in_band(problems: Sequence[Problem], profile: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """The problems of which the profile's rollouts were right in a share within the band."""
    rates = {name: row["num_correct"] / row["num_rollouts"] for name, row in profile.items()}
    return [problem for problem in problems if problem.id in rates and BAND[0] <= rates[problem.id] <= BAND[1]]


def scores_of(run: starts.Run) -> dict[str, Any]:
    """pass@1 of the policy as it stands on the chosen and on the held-out problems, with 95 % intervals over problems.

    The noise is that of evaluations, which neither the profile nor practice has."""
    scores = {}
    for name, problems in zip(SETS, (run.train, run.heldout), strict=True):
        result = evaluate(
            run.rollouts,
            problems,
            num_rollouts=run.config.evaluation.rollouts_per_problem,
            temperature=run.config.evaluation.temperature,
            k=[1],
            max_error_fraction=run.config.reward.max_error_fraction,
        )
        reached = sum(score > GOAL for score in result.scores.values()) / len(problems)
        scores[name] = asdict(result.overall.metrics["pass@1"]) | {"above_goal_fraction": reached}
    return scores


def table(paths: Sequence[Path]) -> str:
    """A line a seed, and one of the mean over seeds with its spread, in Markdown."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    lines = [
        "| seed | problems | start | end | problems above .95 | held out, start | held out, end | CPU-seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (start, heldout_start), (end, heldout_end) = ([row[when][name] for name in SETS] for when in ("start", "end"))
        cells = [_with_interval(start), _with_interval(end), f"{end['above_goal_fraction']:.0%}"]
        cells += [_with_interval(heldout_start), _with_interval(heldout_end)]
        lines.append(f"| {row['seed']} | {row['num_chosen']} | {' | '.join(cells)} | {row['cpu_seconds']:.0f} |")
    if len(rows) > 1:
        means = [_over_seeds([row[when][name]["value"] for row in rows]) for name in SETS for when in ("start", "end")]
        lines.append(f"| mean ± deviation | | {means[0]} | {means[1]} | | {means[2]} | {means[3]} | |")
        ends = [row["end"]["chosen"]["value"] for row in rows]
        interval = mean_interval(ends)
        verdict = (
            "reached in every seed"
            if min(ends) > GOAL
            else f"missed in {sum(end <= GOAL for end in ends)} of {len(ends)} seeds"
        )
        lines.append(
            f"\nend: {interval.value:.3f}, 95 % over seeds [{interval.low:.3f}, {interval.high:.3f}]; "
            f"the goal of {GOAL} is {verdict}"
        )
    return "\n".join(lines)


def _with_interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _over_seeds(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f} ± {stdev(values):.3f}"


if __name__ == "__main__":
    main()
