"""Every config that is ready to launch runs: all of its phases, two steps, with a tiny stand-in for its model and a few
rows for its data. What it says in its head is checked for being there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo.config import load
from tests.chatml import chatml_tokenizer
from tests.launch import launched
from tests.personas import vectors_file
from tests.runs import grpo, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
# What a script or `grpo persona` starts from, and no run of `grpo recipe`; each has tests of its own.
OF_OTHERS = ("check_learning", "curricula", "persona_list_machine")
READY = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem not in OF_OTHERS)

HEADS = ("# Purpose: ", "# Hardware: ", "# Time: ", "# Number to expect: ", "# Start it")
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
EXPERTS = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}


def is_sharded(path: Path) -> bool:
    """Whether it takes several ranks, which take their time to start."""
    return load(path).distributed.strategy != "ddp"


def rows_for(folder: Path, source: dict[str, Any], number: int) -> dict[str, Any]:
    """A few rows of the source's form, in a file of their own, and the fields of the source that read them.

    `number` tells apart what must not be the same: rows of practice and of each evaluation."""
    form = source.get("format", "rows")
    if source["path"].startswith("task:"):
        return source | {"options": source["options"] | {"num_rows": 48 + number}}
    if form == "mbpp":
        first = read_jsonl(DATA / "mbpp_rows.jsonl")[0]
        # One file holds both splits, by number; who reads which is the test of it.
        numbered = [(begin + n, f"Task {begin + n}") for begin in (20, 700) for n in range(24)]
        rows = [first | {"task_id": task, "text": text} for task, text in numbered]
    elif form == "humaneval":
        rows = read_jsonl(DATA / "humaneval_rows.jsonl")[:6]
    elif form == "ifeval":
        rows = [
            row | {"prompt": f"{row['prompt']} ({n})"}
            for row in read_jsonl(DATA / "ifeval_rows.jsonl")
            for n in range(6)
        ]
    elif form == "bfcl":
        name = "BFCL_v4_simple_python.json"
        answers = {row["id"]: row for row in read_jsonl(DATA / "bfcl_published" / "possible_answer" / name)}
        rows = [row | answers[row["id"]] for row in read_jsonl(DATA / "bfcl_published" / name)]
        rows = [asked(row, n + 20 * number) for row in rows for n in range(12)]
    else:
        sums = [n + 100 * number for n in range(30)]
        before = "One more.\n#### " if "answer_pattern" in source else ""
        rows = [{source["prompt_column"]: f"What is {n} + 1?", "answer": f"{before}{n + 1}"} for n in sums]
    path = folder / f"rows_{form}_{number}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return source | {"path": str(path)}


def asked(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with another question."""
    (turns,) = row["question"]
    return row | {"question": [[*turns[:-1], turns[-1] | {"content": f"{turns[-1]['content']} ({number})"}]]}


def small(path: Path, folder: Path, **changes: Any) -> list[str]:
    """The command line that runs the config at miniature size, by overrides alone."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load(path)
    data = {"train": rows_for(folder, raw["data"]["train"], 1), "validation_problems": 4, "heldout_problems": 4}
    if "heldout" in raw["data"]:
        data["heldout"] = rows_for(folder, raw["data"]["heldout"], 2)
    overrides: dict[str, Any] = {
        "run": {"name": path.stem, "folder": str(folder), "threads": 1, "device": "cpu"},
        "data": data | {"max_prompt_tokens": 4000},
        "sampling.max_completion_tokens": 16,
        "sampling.max_rows": 64,
        # An untrained model seldom draws the end token, and what the limit cuts may be left out of the loss.
        "sampling.stop_strings": ["e", "t"],
        "profile": {"first_rollouts": 2, "max_rollouts": 4, "relabel_rollouts": 2},
        "train.steps": 2,
        "train.problems_per_step": 4,
        "train.group_size": 4,
        "train.minibatches_per_step": 2,
        "curriculum.max_refill_waves": 1,
        "optim.learning_rate": 1e-3,
        "evaluation.rollouts_per_problem": 2,
        "evaluation.k": [1, 2],
        "evaluation.every_steps": 2,
        "evaluation.validation_rollouts": 1,
        "tracking.wandb": "off",
    }
    overrides["reward"] = {
        "file": str(ROOT / "tests" / "stand_in_reward.py"),
        "function": "judge",
        "options": {"name": config.reward.name, "options": config.reward.options},
        "timeout_seconds": config.reward.timeout_seconds,
        "workers": 0,
    }
    if config.model.path is not None:
        texts = [json.dumps(row) for row in read_jsonl(DATA / "gsm8k_rows.jsonl")]
        chatml_tokenizer(texts, vocab_size=400).save_pretrained(folder / "tokenizer")
        kind = "glm4_moe" if "glm" in path.stem else "qwen3"
        overrides["model.path"] = None
        overrides["model.architecture"] = {"model_type": kind} | TINY | (EXPERTS if kind == "glm4_moe" else {})
        overrides |= {"model.tokenizer": str(folder / "tokenizer"), "model.initial_embedding_std": 1.0}
        overrides |= {"model.dtype": "float32"}
    if config.curriculum.kind == "two_stages":
        tiers = ["trivial", "moderate", "extreme", "unsolved"]
        for index, stage in enumerate(config.curriculum.stages):
            overrides[f"curriculum.stages.{index}.tiers"] = tiers
            overrides |= {f"curriculum.stages.{index}.steps": 1} if index == 0 else {}
            overrides |= {f"curriculum.stages.{index}.problems_per_step": 2} if stage.problems_per_step else {}
            overrides |= {f"curriculum.stages.{index}.group_size": 6} if stage.group_size else {}
    if config.sft is not None:
        overrides["sft.traces"] = rows_for(folder, raw["sft"]["traces"], 1)
        overrides |= {"sft.gate_pass_at_1": None, "sft.max_steps": 2, "sft.batch_size": 4, "sft.micro_batch_size": 4}
    if config.steering is not None:
        vectors = str(vectors_file(folder, num_blocks=TINY["num_hidden_layers"], hidden_size=TINY["hidden_size"]))
        overrides |= {"steering.vectors": vectors, "steering.allow_other_model": True}
        overrides["persona.watch"] = [{"vectors": vectors}]
    for name, chosen in raw["evaluation"].get("sets", {}).items():
        overrides[f"evaluation.sets.{name}.source"] = rows_for(folder, chosen["source"], 3)
    return [str(path), *(f"{name}={json.dumps(value)}" for name, value in (overrides | changes).items())]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_shipped_config_says_what_it_is_for_and_what_it_takes(path):
    head = [line for line in path.read_text(encoding="utf-8").split("\nrun:\n")[0].splitlines() if line]
    for begins in HEADS:
        assert [line for line in head if line.startswith(begins)], f"{path.name} has no line {begins!r}"
    assert path.name in head[-1]


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=pytest.mark.slow if is_sharded(path) else ()) for path in READY]
)
def test_a_shipped_config_makes_two_steps_with_a_tiny_model_on_a_few_rows(path, tmp_path):
    config = load(path)
    if config.reward.name == "code_tests" and shutil.which("bwrap") is None:
        pytest.skip("the sandbox of code_tests needs bubblewrap")
    ranks = 2 if is_sharded(path) else 1
    if ranks > 1:
        pytest.importorskip("deepspeed", reason="distributed.strategy needs DeepSpeed")
    arguments = small(path, tmp_path)
    if ranks == 1:
        assert grpo("recipe", *arguments) == 0
    else:
        launched("scripts/recipe.py", *arguments, ranks=ranks)
    run = tmp_path / path.stem
    metrics = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(row.get("reward/errors", 0) == 0 for row in metrics)
    assert any(row.get("optim/grad_norm", 0) > 0 for row in metrics)
    assert (run / "report.html").is_file()
    last = json.loads((run / "evals" / "last.json").read_text())
    assert set(last["sets"]) == {"heldout", *config.evaluation.sets}
    assert load(run / "config.yaml").distributed.strategy == config.distributed.strategy
