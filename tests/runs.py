"""A whole run at miniature size: cold start, profile, two stages, evaluation and report in a few seconds.

The rows and the tokenizer are the list machine's; the reward is a file of its own, because an untrained model solves
no list machine, and a test of tiers, updates and resumes needs problems of every difficulty from the first step."""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from curricula import Tier
from grpo import practice
from grpo.cli import main
from grpo.config import RunConfig
from grpo.distributed.world import World
from grpo.folder import Start
from grpo.manifest import MANIFEST_FILE, read_manifest
from grpo.profiling import Profile
from grpo.recipe import stages_of, watching_of
from grpo.starts import Run
from grpo.stock import Stock
from grpo.tracking.console import Console
from grpo.trainer import Parts, Trainer
from grpo.wiring import opened

OF_THE_CLOCK = ("time/", "throughput/")
FIELDS: dict[str, Any] = {
    "run": {"name": "small", "seed": 3, "threads": 1, "device": "cpu"},
    "model": {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
        "tokenizer": "task:list_machine",
        "dtype": "float32",
        "initial_embedding_std": 1.0,
    },
    "chat": {"style": "plain"},
    "data": {
        "train": {"path": "task:list_machine", "options": {"num_rows": 60, "operations": {1: 1, 2: 1, 3: 1}}},
        "heldout_problems": 12,
        "validation_problems": 8,
    },
    "sampling": {"max_completion_tokens": 8, "max_rows": 64},
    "reward": {"file": str(Path(__file__).with_name("small_reward.py")), "function": "judge", "workers": 0},
    "sft": {
        "traces": {"path": "task:list_machine", "options": {"num_rows": 64, "operations": {1: 1, 2: 1}}},
        "completion": "{trace}",
        "max_steps": 10,
        "batch_size": 8,
        "learning_rate": 1e-3,
    },
    "profile": {"first_rollouts": 4, "max_rollouts": 16, "relabel_rollouts": 8},
    "curriculum": {
        "kind": "two_stages",
        "stages": [
            {"name": "moderate", "tiers": ["moderate"], "steps": 4},
            {"name": "extreme", "tiers": ["moderate", "extreme"], "group_size": 8},
        ],
        "max_refill_waves": 1,
    },
    "train": {
        "steps": 8,
        "problems_per_step": 4,
        "group_size": 4,
        "minibatches_per_step": 2,
        "tokens_per_micro_batch": 256,
    },
    "optim": {"learning_rate": 3e-3, "warmup_steps": 2},
    "evaluation": {"rollouts_per_problem": 4, "k": [1, 4], "every_steps": 4, "validation_rollouts": 2},
    "checkpoint": {"every_steps": 2, "keep_last": 3},
}


def small_run_fields(folder: Path, **changes: Any) -> dict[str, Any]:
    """The fields of a small run in `folder`. `changes` are dotted: ``**{"train.steps": 3}``.

    A change to None takes the field, or the whole section, away."""
    fields = copy.deepcopy(FIELDS)
    fields["run"]["folder"] = str(folder / "runs")
    for name, value in changes.items():
        *parents, last = name.split(".")
        section = fields
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = copy.deepcopy(value)
    return fields


def small_run_config(folder: Path, **changes: Any) -> RunConfig:
    """`small_run_fields` as a checked config."""
    return RunConfig.model_validate(small_run_fields(folder, **changes))


def small_run_file(folder: Path, **changes: Any) -> Path:
    """`small_run_fields` as a YAML file, which is what the command line takes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(small_run_fields(folder, **changes)), encoding="utf-8")
    return path


@contextmanager
def opened_run(config: RunConfig, *, world: World | None = None, start: Start = "fresh") -> Iterator[Run]:
    """A run opened for training, in this process."""
    with opened(
        config,
        world=world or World.alone(),
        start=start,
        phases=("train",),
        console=Console(num_steps=config.train.steps),
        should_stop=lambda: False,
        must_stop=lambda: False,
    ) as run:
        yield run


def no_reprofile(step: int) -> Profile:
    raise AssertionError(f"nothing was to be profiled again at step {step}")


def trainer_of(run: Run, config: RunConfig, *, tiers: Mapping[str, Tier] | None = None) -> Trainer:
    """A trainer at step 0, on the initial weights. `tiers` stand for a profile where the curriculum has stages."""
    tiers = tiers or {}
    run.strategy.load_weights(run.initial_weights())
    run.rollouts.load_weights()
    parts = Parts(
        world=run.world,
        strategy=run.strategy,
        rollouts=run.rollouts,
        curriculum=practice.build_curriculum(config, [problem.id for problem in run.train], tiers),
        temperature=practice.build_temperature(config.temperature, num_steps=config.train.steps),
        stages=stages_of(config),
        problems={problem.id: problem for problem in run.train},
        profile_tokens=0,
        stock=Stock.empty(),
        reprofile=no_reprofile,
        validation=run.validation,
        tracker=run.tracker,
        folder=run.folder,
        console=run.console,
        watching=watching_of(run),
    )
    return Trainer(parts, config, should_stop=lambda: False)


def grpo(*arguments: str | Path) -> int:
    """The command line, in this process; returns the exit code."""
    return main([str(argument) for argument in arguments])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def shard_lines(run: Path) -> list[bytes]:
    """The complete lines of all shards of the profile's store, headers included."""
    shards = sorted((run / "profile").glob("*/attempts_rank_*.jsonl"))
    return [line for shard in shards for line in shard.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def tiers_of(run: Path) -> list[dict[str, Any]]:
    """The rows of the profile's manifest but for the policy, which a sum in another order changes."""
    return [row | {"policy": ""} for row in read_manifest(run / "profile" / MANIFEST_FILE).rows]


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves behind but for what a clock measured, in a form that `==` compares bit for bit."""
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    rows = read_jsonl(run / "metrics.jsonl")
    found: dict[str, Any] = {
        "metrics": [{k: v for k, v in row.items() if not k.startswith(OF_THE_CLOCK)} for row in rows],
        "events": (run / "events.jsonl").read_bytes(),
        "tiers": (run / "profile" / MANIFEST_FILE).read_bytes(),
        "temporary": sorted(path.name for path in (run / "checkpoints").glob(".*")),
    }
    for path in sorted([*(run / "rollouts").iterdir(), *(run / "evals").iterdir()]):
        found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    for path in (newest, *sorted((run / "checkpoints").glob("best_*"))):
        weights = load_file(path / "policy.safetensors")
        found[path.name] = {name: tensor.float().numpy().tobytes() for name, tensor in weights.items()}
    moments = torch.load(newest / "optimizer.pt", weights_only=True)["moments"]
    found["moments"] = {
        name: {field: tensor.float().numpy().tobytes() for field, tensor in of_weight.items()}
        for name, of_weight in moments.items()
    }
    return found


def assert_same_outcome(run: Path, expected: Path) -> None:
    found, wanted = outcome(run), outcome(expected)
    assert [name for name in wanted if found.get(name) != wanted[name]] == []
    assert found.keys() == wanted.keys()
