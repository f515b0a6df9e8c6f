"""Two ranks against one on the same work: tokens a second, their ratio, and where each step's time goes.

    python scripts/bench_scaling.py --ranks 1 2 --repeats 3

The product itself is measured: for each number of ranks `torchrun scripts/train.py` trains a policy drawn from the
seed, one thread a rank, and what it wrote to metrics.jsonl is read. The rate is too small to move a weight, so that
every step of every run samples from one policy, and the runs take turns, so that what else the machine does meets them
all alike. The reward is the function `judge` below and runs inside the trainer (reward.workers: 0): verifier processes
would take cores that the ranks are to have. Tokens a second are all tokens sampled and trained on in the steps after
the warm-up, over the time of these steps; starting, saving and writing metrics are outside of it. Where the runs did
not do the same work, step by step, there is no number but an error."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
MOVES_NOTHING = 1e-12
"""A learning rate: no float32 weight of a usual size has a neighbour as near as a step of it."""
PARTS = {"sampling": "time/sampling", "reward": "time/reward", "train": "time/train"}


class DifferentWorkError(ValueError):
    """Two runs did not do the same, so that their times cannot be compared."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one run does, whatever its number of ranks."""

    hidden_size: int
    num_layers: int
    num_heads: int
    problems_per_step: int
    group_size: int
    completion_tokens: int  # limit
    max_rows: int
    """Of each rank: a quarter of a step's rollouts, so that batches of one and of two ranks have the same rows."""
    tokens_per_micro_batch: int
    goal: float  # of the ratio of two ranks to one, on two idle cores


MODELS = {
    "0.2M": Work(
        hidden_size=64,
        num_layers=3,
        num_heads=2,
        problems_per_step=64,
        group_size=16,
        completion_tokens=40,
        max_rows=256,
        tokens_per_micro_batch=4096,
        goal=1.6,
    ),
    "4M": Work(
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        problems_per_step=32,
        group_size=8,
        completion_tokens=40,
        max_rows=64,
        tokens_per_micro_batch=1024,
        goal=1.85,
    ),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What one line of metrics.jsonl says. Seconds."""

    sampled_tokens: int
    trained_tokens: int
    seconds: float
    parts: Mapping[str, float]  # by the names of PARTS


@dataclass(frozen=True, slots=True)
class Result:
    """One run, without its warm-up."""

    tokens_per_second: float
    step_seconds: float
    part_seconds: Mapping[str, float]  # of a step; `other` is what no part covers


def judge(completion: str, problem: Mapping[str, Any]) -> float:
    """Right for every other first character: nearly every group has some of both, whatever the policy knows."""
    return float(ord(completion[:1] or "!") % 2)


def main() -> int:
    """Run what is asked for, and print a table for each model."""
    arguments = _arguments()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f} before the first run", flush=True)
    for name in arguments.models:
        work = _with_changes(MODELS[name], arguments)
        runs: dict[int, list[list[Step]]] = {ranks: [] for ranks in arguments.ranks}
        for repeat in range(arguments.repeats):
            # To and fro: a machine that gets slower or faster meanwhile favours neither.
            for ranks in arguments.ranks if repeat % 2 == 0 else reversed(arguments.ranks):
                run = f"{name}_ranks_{ranks}_repeat_{repeat}"
                runs[ranks].append(trained(work, run, arguments.folder, ranks=ranks, steps=arguments.steps))
        try:
            check_same_work(runs)
        except DifferentWorkError as error:
            print(f"bench_scaling: {name}: {error}", file=sys.stderr)
            return 1
        results = {r: [result(steps, warmup_steps=arguments.warmup_steps) for steps in runs[r]] for r in runs}
        print(
            f"\n{name}: {work.problems_per_step} problems x {work.group_size} rollouts of at most "
            f"{work.completion_tokens} tokens, {arguments.steps} steps, the first {arguments.warmup_steps} not counted"
        )
        print("\n".join(table(results, goal=work.goal)), flush=True)
    return 0


def fields(work: Work, name: str, folder: Path, *, steps: int) -> dict[str, Any]:
    """The config of a run: the same for every number of ranks."""
    return {
        "run": {"name": name, "folder": str(folder), "seed": 0, "threads": 1, "device": "cpu"},
        "model": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": work.hidden_size,
                "intermediate_size": 4 * work.hidden_size,
                "num_hidden_layers": work.num_layers,
                "num_attention_heads": work.num_heads,
                "num_key_value_heads": work.num_heads,
                "max_position_embeddings": 128,
                "tie_word_embeddings": False,
            },
            "tokenizer": "task:list_machine",
            "dtype": "float32",
            "initial_embedding_std": 1.0,
        },
        "chat": {"style": "plain"},
        "data": {
            "train": {
                "path": "task:list_machine",
                "options": {"num_rows": 4 * work.problems_per_step + 16, "operations": {2: 1, 3: 1, 4: 1, 5: 1}},
            },
            "heldout_problems": 4,
            "validation_problems": 4,
        },
        "sampling": {"max_completion_tokens": work.completion_tokens, "max_rows": work.max_rows},
        "reward": {"file": str(Path(__file__).resolve()), "function": "judge", "workers": 0},
        "curriculum": {"kind": "uniform", "max_refill_waves": 0},
        "train": {
            "steps": steps,
            "problems_per_step": work.problems_per_step,
            "group_size": work.group_size,
            "tokens_per_micro_batch": work.tokens_per_micro_batch,
        },
        "optim": {"learning_rate": MOVES_NOTHING},
        "checkpoint": {"every_steps": steps},
    }


def trained(work: Work, name: str, folder: Path, *, ranks: int, steps: int) -> list[Step]:
    """Run the training on `ranks` ranks; what its steps were. Raises RuntimeError where it does not end well."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(fields(work, name, folder.resolve(), steps=steps)), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launcher, str(ROOT / "scripts" / "train.py"), str(config.resolve()), "--fresh"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: torchrun ended with code {done.returncode}:\n{done.stdout[-4000:]}")
    return read_steps(folder / name / "metrics.jsonl")


def read_steps(path: Path) -> list[Step]:
    """The steps that a run wrote down, in order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Step(
            sampled_tokens=int(row["sampling/tokens"]),
            trained_tokens=int(row.get("optim/tokens", 0)),
            seconds=row["time/step"],
            parts={part: row[metric] for part, metric in PARTS.items()},
        )
        for row in rows
    ]


def check_same_work(runs: Mapping[int, Sequence[Sequence[Step]]]) -> None:
    """Raises DifferentWorkError unless all runs sampled and trained on as many tokens, step by step.

    `runs` are, for each number of ranks, those of each repeat."""
    each = [(ranks, repeat, steps) for ranks, of_ranks in runs.items() for repeat, steps in enumerate(of_ranks)]
    first_ranks, first_repeat, expected = each[0]
    for ranks, repeat, steps in each[1:]:
        who = f"{ranks} ranks (repeat {repeat}) and {first_ranks} ranks (repeat {first_repeat})"
        if len(steps) != len(expected):
            raise DifferentWorkError(f"{who} made {len(steps)} and {len(expected)} steps; start all runs anew")
        for number, (found, wanted) in enumerate(zip(steps, expected, strict=True), start=1):
            for what in ("sampled_tokens", "trained_tokens"):
                counts = getattr(found, what), getattr(wanted, what)
                if counts[0] != counts[1]:
                    raise DifferentWorkError(
                        f"{who} have {counts[0]} and {counts[1]} {what} in step {number}: not the same work, so no "
                        "ratio; find out which token differs in the runs' folders rollouts"
                    )


def result(steps: Sequence[Step], *, warmup_steps: int) -> Result:
    """Throughput and the time of a step's parts. Raises ValueError where only warm-up steps are left."""
    counted = steps[warmup_steps:]
    if not counted:
        raise ValueError(f"{len(steps)} steps with {warmup_steps} to warm up leave none to count; make more steps")
    seconds = sum(step.seconds for step in counted)
    parts = {part: sum(step.parts[part] for step in counted) / len(counted) for part in PARTS}
    return Result(
        tokens_per_second=sum(step.sampled_tokens + step.trained_tokens for step in counted) / seconds,
        step_seconds=seconds / len(counted),
        part_seconds=parts | {"other": seconds / len(counted) - sum(parts.values())},
    )


def ratio(results: Mapping[int, Sequence[Result]], *, ranks: int, base: int) -> float:
    """Median throughput of `ranks` ranks in that of `base` ranks."""
    medians = {r: median(one.tokens_per_second for one in results[r]) for r in (ranks, base)}
    return medians[ranks] / medians[base]


def table(results: Mapping[int, Sequence[Result]], *, goal: float) -> list[str]:
    """Lines for people: medians over repeats, and the ratio of each number of ranks to the first."""
    names = [*PARTS, "other"]
    lines = ["ranks  tokens/s    lowest   highest  s/step" + "".join(f"{name:>10}" for name in names)]
    for ranks, of_ranks in results.items():
        speeds = [one.tokens_per_second for one in of_ranks]
        parts = "".join(f"{median(one.part_seconds[name] for one in of_ranks):>10.3f}" for name in names)
        lines.append(
            f"{ranks:>5}{median(speeds):>10,.0f}{min(speeds):>10,.0f}{max(speeds):>10,.0f}"
            f"{median(one.step_seconds for one in of_ranks):>8.3f}{parts}"
        )
    base, *others = results
    for ranks in others:
        pairs = zip(results[ranks], results[base], strict=True)
        of_repeats = [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]
        found = ratio(results, ranks=ranks, base=base)
        wanted = f"; the goal is {goal} on two idle cores" if (base, ranks) == (1, 2) else ""
        lines.append(
            f"{ranks} ranks / {base}: {found:.2f} (of single repeats {min(of_repeats):.2f} to {max(of_repeats):.2f}"
            f"{wanted})"
        )
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="the first is what others are compared to")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps that do not count")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_scaling"))
    changes = parser.add_argument_group("changes to a model's work")
    changes.add_argument("--problems-per-step", type=int)
    changes.add_argument("--group-size", type=int)
    changes.add_argument("--completion-tokens", type=int)
    changes.add_argument("--max-rows", type=int)
    arguments = parser.parse_args()
    if arguments.steps <= arguments.warmup_steps:
        parser.error(f"--steps {arguments.steps}: must be above --warmup-steps {arguments.warmup_steps}")
    return arguments


def _with_changes(work: Work, arguments: argparse.Namespace) -> Work:
    names = ("problems_per_step", "group_size", "completion_tokens", "max_rows")
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return replace(work, **changes)


if __name__ == "__main__":
    sys.exit(main())
