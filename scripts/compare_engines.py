"""Does a policy learn alike whichever engine draws? The same cold start, practised with each of them.

    bash scripts/test_vllm.sh tests/test_handover.py    # makes the environment .venv-vllm
    .venv-vllm/bin/python scripts/compare_engines.py configs/quickstart.yaml --seeds 0 1 2 --steps 60

For each seed one policy is cold-started, and practised on all problems by the native engine and by vLLM in the same
process, each in a run of its own. The table has the mean reward of each fifth of the steps. A run that is finished is
not done again and one that was killed goes on; `--table-only` prints what there is."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from curricula.intervals import mean_interval

ENGINES: dict[str, list[str]] = {
    "native": [],
    "vllm": [
        "sampling.engine=vllm",
        "sampling.vllm={eager: true, seeds: engine, cache_gib: 0.25}",
        "sampling.max_rows=256",
        "sampling.prefill_tokens=2048",
    ],
}
PRACTICE = (
    "sft=null",
    "model.architecture=null",
    "model.initial_embedding_std=null",
    "curriculum={kind: uniform, max_refill_waves: 0}",
    "temperature={kind: constant, value: 1.0}",
    "evaluation.every_steps=0",
    "evaluation.by_column=null",
)
NUM_PARTS = 5


def main() -> None:
    """Do the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("runs/engines"))
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    for seed in [] if arguments.table_only else arguments.seeds:
        model = _start(arguments.config, seed=seed, folder=arguments.folder)
        for engine, own in ENGINES.items():
            rows = metrics(arguments.folder, engine, seed)
            if len(rows) >= arguments.steps:
                continue
            changes = [*PRACTICE, f"model.path={model}", f"train.steps={arguments.steps}", *own]
            _grpo("train", arguments.config, name=f"{engine}_{seed}", seed=seed, folder=arguments.folder, more=changes)
    print(table(arguments.folder, seeds=arguments.seeds, num_steps=arguments.steps))


def metrics(folder: Path, engine: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a run's steps; none where it has not begun."""
    path = folder / f"{engine}_{seed}" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return [row for row in rows if "reward/mean" in row]


def curve(rows: Sequence[dict[str, Any]], *, num_steps: int) -> list[float]:
    """Mean reward of each part of the steps, [NUM_PARTS]."""
    bounds = [round(part * num_steps / NUM_PARTS) for part in range(NUM_PARTS + 1)]
    return [mean(row["reward/mean"] for row in rows[first:last]) for first, last in pairwise(bounds)]


def table(folder: Path, *, seeds: Sequence[int], num_steps: int) -> str:
    """The curves of the finished runs in Markdown, and the paired difference of the engines at the end."""
    return "\n".join(_lines(folder, seeds=seeds, num_steps=num_steps))


def _lines(folder: Path, *, seeds: Sequence[int], num_steps: int) -> Iterator[str]:
    bounds = [round(part * num_steps / NUM_PARTS) for part in range(NUM_PARTS + 1)]
    parts = [f"steps {first + 1}-{last}" for first, last in pairwise(bounds)]
    yield f"| engine | seed | {' | '.join(parts)} | largest gap, nats |"
    yield "|---|---|" + "---|" * (NUM_PARTS + 1)
    curves: dict[str, dict[int, list[float]]] = {engine: {} for engine in ENGINES}
    for engine, of_seeds in curves.items():
        for seed in seeds:
            rows = metrics(folder, engine, seed)
            if len(rows) < num_steps:
                continue
            of_seeds[seed] = curve(rows, num_steps=num_steps)
            gap = max(row["policy/sampler_logprob_gap_max"] for row in rows)
            yield f"| {engine} | {seed} | {' | '.join(f'{value:.3f}' for value in of_seeds[seed])} | {gap:.1e} |"
        if len(of_seeds) > 1:
            columns = list(zip(*of_seeds.values(), strict=True))
            spread = " | ".join(f"{mean(column):.3f} ± {stdev(column):.3f}" for column in columns)
            yield f"| {engine} | mean ± deviation | {spread} | |"
    both = [seed for seed in seeds if all(seed in of_seeds for of_seeds in curves.values())]
    if len(both) > 1:
        found = mean_interval([curves["vllm"][seed][-1] - curves["native"][seed][-1] for seed in both])
        yield (
            f"\nvLLM less native in the last fifth, paired by seed: {found.value:+.3f}, 95 % over {len(both)} seeds "
            f"[{found.low:+.3f}, {found.high:+.3f}]"
        )


def _start(config: Path, *, seed: int, folder: Path) -> Path:
    """The folder of the seed's cold-started model, which is made where it is missing."""
    model, run = folder / f"model_{seed}", folder / f"start_{seed}"
    if not (model / "config.json").is_file():
        _grpo("sft", config, name=run.name, seed=seed, folder=folder, more=[])
        _called("export", str(run), "--checkpoint", "cold_start", "--output", str(model))
    return model.absolute()


def _grpo(phase: str, config: Path, *, name: str, seed: int, folder: Path, more: Sequence[str]) -> None:
    start = ["--resume"] if (folder / name).is_dir() else []
    own = [f"run.name={name}", f"run.seed={seed}", f"run.folder={folder}"]
    _called(phase, str(config), *own, *more, *start)


def _called(*arguments: str) -> None:
    """A command in a process of its own: an engine of vLLM lives as long as its process."""
    subprocess.run([sys.executable, "-m", "grpo.cli", *arguments], check=True)


if __name__ == "__main__":
    main()
