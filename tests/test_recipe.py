"""The whole of it through the command line: every phase, every artefact, on the list machine and on real rows."""

import gc
import json
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo import checkpoint
from grpo.config import load
from grpo.manifest import MANIFEST_FILE, read_manifest
from grpo.model import base_of, load_model, load_tokenizer
from grpo.trainer import Trainer
from tests.chatml import chatml_tokenizer
from tests.runs import assert_same_outcome, grpo, read_jsonl, small_run_file

ROOT = Path(__file__).resolve().parents[1]
GSM8K = ROOT / "configs" / "gsm8k_qwen3_0.6b.yaml"
LOOP: dict[str, Any] = {"sft": None, "curriculum": {"kind": "uniform", "max_refill_waves": 1}}


def finite_rows(path: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    assert rows
    assert all(isinstance(value, (int, float)) for row in rows for value in row.values())
    return rows


# --- the list machine -------------------------------------------------------------------------------------------------


def test_the_recipe_leaves_every_artefact_of_a_run(tmp_path, capsys):
    assert grpo("recipe", small_run_file(tmp_path)) == 0
    run = tmp_path / "runs" / "small"
    said = capsys.readouterr().out
    assert f"report: {run / 'report.html'}" in said
    assert "pass@1" in said
    assert load(run / "config.yaml").run.name == "small"
    assert json.loads((run / "phases.json").read_text()) == dict.fromkeys(
        ("sft", "profile", "train", "eval", "report"), True
    )
    assert [row["step"] for row in finite_rows(run / "metrics.jsonl")] == list(range(1, 9))
    assert sorted(path.name for path in (run / "rollouts").iterdir()) == [f"step_{n:06d}.jsonl" for n in range(1, 9)]
    tiers = read_manifest(run / "profile" / MANIFEST_FILE)
    assert len(tiers.rows) == sum(tiers.counts.values()) == 40
    assert sum(row["num_rollouts"] for row in tiers.rows) <= tiers.num_rollouts
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"cold_start", "step_000004", "step_000006", "step_000008"} <= names
    for name, step in (("start", 0), ("last", 8)):
        evaluation = json.loads((run / "evals" / f"{name}.json").read_text())
        assert evaluation["step"] == step
        heldout = evaluation["sets"]["heldout"]
        assert len(heldout["problems"]) == heldout["num_problems"] == 12
    assert {event["event"] for event in read_jsonl(run / "events.jsonl")} >= {"stage", "best", "evaluation"}
    report = (run / "report.html").read_text()
    assert "reward/mean" in report
    assert not re.search(r'(src|href)="(?!#|data:)', report)  # one file, nothing beside it


def test_a_finished_recipe_is_refused_and_with_resume_read_back(tmp_path, capsys):
    config = small_run_file(tmp_path, **{"train.steps": 1})
    assert grpo("recipe", config) == 0
    before = (tmp_path / "runs" / "small" / "metrics.jsonl").read_bytes()
    assert grpo("recipe", config) == 4
    capsys.readouterr()
    assert grpo("recipe", config, "--resume") == 0
    assert capsys.readouterr().out.count("finished before") == 4
    assert (tmp_path / "runs" / "small" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "model",
    [{}, {"model.dtype": "bfloat16"}, {"model.dtype": "bfloat16", "model.lora": {"rank": 4}}],
    ids=["float32", "bfloat16", "bfloat16-lora"],
)
def test_phases_that_are_run_one_by_one_end_as_the_recipe_does(tmp_path, model):
    changes = model | {"train.steps": 3, "checkpoint.every_steps": 1, "evaluation.every_steps": 1}
    whole = small_run_file(tmp_path / "whole", **changes)
    parts = small_run_file(tmp_path / "parts", **changes)
    assert grpo("recipe", whole) == 0
    for command in ("sft", "profile", "train", "eval"):
        assert grpo(command, parts) == 0
    assert_same_outcome(tmp_path / "parts" / "runs" / "small", tmp_path / "whole" / "runs" / "small")


def heldout_events(run: Path) -> list[dict[str, Any]]:
    return [event for event in read_jsonl(run / "events.jsonl") if event["event"] == "evaluation"]


def test_the_scores_on_held_out_problems_are_events_and_those_of_an_evaluation_done_again_are_replaced(tmp_path):
    config = small_run_file(tmp_path, **LOOP, **{"train.steps": 1})
    run = tmp_path / "runs" / "small"
    assert grpo("recipe", config) == 0
    for arguments in ([], ["--fresh"]):
        assert not arguments or grpo("eval", config, *arguments) == 0
        events = heldout_events(run)
        assert [(event["name"], event["step"]) for event in events] == [("start", 0), ("last", 1)]
        for event in events:
            metrics = json.loads((run / "evals" / f"{event['name']}.json").read_text())["sets"]["heldout"]["metrics"]
            assert set(metrics) == {"pass@1", "pass@4", "pass^4", "avg@4", "mean_tokens", "truncated_fraction"}
            assert all(event[f"eval/heldout/{name}"] == metric["value"] for name, metric in metrics.items())


def test_a_finished_recipe_that_is_asked_for_more_steps_ends_as_if_it_had_been_asked_for_them_at_once(tmp_path, capsys):
    whole, more = small_run_file(tmp_path / "whole", sft=None), small_run_file(tmp_path / "more", sft=None)
    assert grpo("recipe", whole) == 0
    assert grpo("recipe", more, "train.steps=6") == 0
    capsys.readouterr()
    assert grpo("recipe", more, "--resume") == 0
    said = capsys.readouterr().out
    assert "profile: finished before" in said
    assert "train: going on from" in said
    assert "eval: finished before" not in said
    runs = [tmp_path / name / "runs" / "small" for name in ("more", "whole")]
    for run in runs:
        events = (run / "events.jsonl").read_text().splitlines(keepends=True)
        # That the first of the two has ended twice is true.
        (run / "events.jsonl").write_text("".join(line for line in events if '"event": "end"' not in line))
    assert_same_outcome(*runs)


def test_training_that_ended_before_its_last_step_is_finished_all_the_same(tmp_path, capsys):
    judge = tmp_path / "judge.py"
    judge.write_text("def judge(completion, problem):\n    return 0.0\n")
    changes = {"reward.file": str(judge), "evaluation.every_steps": 1, "evaluation.patience": 1}
    config = small_run_file(tmp_path, **LOOP, **changes)
    assert grpo("recipe", config) == 0
    assert len(read_jsonl(tmp_path / "runs" / "small" / "metrics.jsonl")) == 2
    assert "train: stopped early after step 2 of 8" in capsys.readouterr().out
    assert grpo("recipe", config, "--resume") == 0
    said = capsys.readouterr().out
    assert "train: finished before" in said
    assert "eval: finished before" in said


def test_a_resume_reads_checkpoints_to_the_cpu_and_keeps_no_second_copy_of_them(tmp_path, monkeypatch):
    config = small_run_file(tmp_path, **LOOP, **{"train.steps": 1})
    assert grpo("train", config) == 0
    load_checkpoint, step = checkpoint.load, Trainer.step
    loaded: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched_load(path: Path, *, device: torch.device) -> Any:
        assert device == torch.device("cpu")
        weights, optimizer, state = load_checkpoint(path, device=device)
        loaded.extend(weakref.ref(tensor) for tensor in weights.values())
        return weights, optimizer, state

    def watched_step(self: Trainer) -> None:
        gc.collect()
        alive.append(sum(reference() is not None for reference in loaded))
        step(self)

    monkeypatch.setattr(checkpoint, "load", watched_load)
    monkeypatch.setattr(Trainer, "step", watched_step)
    assert grpo("train", config, "--resume", "train.steps=2") == 0
    assert loaded
    assert alive == [0]


# --- real rows --------------------------------------------------------------------------------------------------------

# An untrained model solves nothing: every problem would be unsolved and no step would make an update. So the cold
# start learns the traces of a handful of short rows nearly by heart, which gives real boxed answers, some right and
# some wrong, tiers on both sides, and updates; the stages name every tier, because how many problems have each of
# them depends on the machine's rounding.
SHORT_ROWS = 14
STAGES = [
    {"name": "moderate", "tiers": ["trivial", "moderate", "unsolved"], "steps": 1},
    {"name": "extreme", "tiers": ["trivial", "moderate", "extreme", "unsolved"], "group_size": 8},
]
TINY_QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


def gsm8k(folder: Path, data: Path, **changes: Any) -> list[str]:
    """The arguments that run the shipped config on the rows in `data`, at miniature size, by overrides alone."""
    overrides: dict[str, Any] = {
        "run.folder": str(folder / "runs"),
        "run.threads": 1,
        "run.device": "cpu",
        "model.dtype": "float32",
        "data.train.path": str(data / "rows.jsonl"),
        "data.heldout": None,
        "data.heldout_problems": 3,
        "data.validation_problems": 3,
        "sampling.max_completion_tokens": 80,
        "sampling.max_rows": 64,
        "sft.traces.path": str(data / "rows.jsonl"),
        "sft.gate_pass_at_1": None,
        "sft.batch_size": 8,
        "profile.first_rollouts": 4,
        "profile.max_rollouts": 8,
        "profile.relabel_rollouts": 4,
        "curriculum.stages": STAGES,
        "train.steps": 2,
        "train.problems_per_step": 4,
        "train.group_size": 4,
        "optim.learning_rate": 1e-4,
        "evaluation.rollouts_per_problem": 2,
        "evaluation.k": [1, 2],
        "evaluation.every_steps": 1,
        "evaluation.validation_rollouts": 1,
        "tracking.wandb": "off",
    }
    return [str(GSM8K), *(f"{name}={json.dumps(value)}" for name, value in (overrides | changes).items())]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A folder with the shortest of the GSM8K rows and a ChatML tokenizer."""
    folder = tmp_path_factory.mktemp("gsm8k")
    every = read_jsonl(ROOT / "tests" / "data" / "gsm8k_rows.jsonl")
    shortest = sorted(every, key=lambda row: len(row["answer"]))[:SHORT_ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shortest))
    texts = [row["question"] + row["answer"] for row in shortest]
    chatml_tokenizer(texts).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def memorised(rows, tmp_path_factory) -> Path:
    """The run of the recipe with a tiny Qwen3 drawn from the seed, which learns its traces nearly by heart."""
    folder = tmp_path_factory.mktemp("memorised")
    torch.set_num_threads(1)
    changes = {
        "model.path": None,
        "model.architecture": TINY_QWEN3,
        "model.initial_embedding_std": 0.3,
        "model.tokenizer": str(rows / "tokenizer"),
        "model.activation_checkpointing": False,
        "sft.max_steps": 70,
        "sft.learning_rate": 5e-3,
    }
    assert grpo("recipe", *gsm8k(folder, rows, **changes)) == 0
    return folder / "runs" / "gsm8k_qwen3_0.6b"


@pytest.fixture(scope="module")
def pretrained(memorised, tmp_path_factory) -> Path:
    """The policy of that run's cold start as a folder of transformers: what model.path of the config names."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = load(memorised / "config.yaml").model
    tokenizer = load_tokenizer(config)
    model = load_model(config, tokenizer=tokenizer, seed=0, device=torch.device("cpu"))
    held, _, _ = checkpoint.load(memorised / "checkpoints" / "cold_start", device=torch.device("cpu"))
    checkpoint.load_weights(model, held)
    base_of(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def assert_real_steps(run: Path) -> None:
    """Two steps, at least one of which updated, with boxed answers judged by the maths reward."""
    metrics = finite_rows(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert [row["curriculum/stage"] for row in metrics] == [0, 1]
    assert any(row.get("optim/grad_norm", 0) > 0 for row in metrics)
    # A step whose groups are all the profile's has no reward of its own.
    assert all(row["reward/errors"] == 0 for row in metrics if row["sampling/tokens"])
    assert any(row["sampling/tokens"] for row in metrics)
    rollouts = [row for step in (1, 2) for row in read_jsonl(run / "rollouts" / f"step_{step:06d}.jsonl")]
    assert all(row["prompt"].endswith("put the final answer within \\boxed{}.") for row in rollouts)
    right = [row for row in rollouts if row["reward"] == 1]
    assert {row["reward"] for row in rollouts} == {0, 1}
    assert all("\\boxed{" in row["completion"] and row["answer"] in row["completion"] for row in right)
    assert all("<<" not in row["completion"] for row in right)  # drop_pattern took the calculator's marks away
    for name in ("start", "last"):
        assert json.loads((run / "evals" / f"{name}.json").read_text())["sets"]["heldout"]["num_problems"] == 3
    assert (run / "report.html").is_file()


def test_the_gsm8k_config_runs_all_stages_on_real_rows(memorised):
    assert_real_steps(memorised)
    assert set(json.loads((memorised / "phases.json").read_text())) == {"sft", "profile", "train", "eval", "report"}
    tiers = read_manifest(memorised / "profile" / MANIFEST_FILE)
    assert len(tiers.rows) == SHORT_ROWS - 6
    assert tiers.counts["trivial"] + tiers.counts["moderate"] > 0
    (stage,) = [e for e in read_jsonl(memorised / "events.jsonl") if e["event"] == "stage"]
    assert (stage["step"], stage["name"]) == (1, "extreme")


def test_the_prompt_is_the_chat_template_and_ends_where_the_assistant_begins(memorised, rows):
    from grpo.chat import Chat
    from grpo.config import ChatConfig
    from grpo.types import Message, Problem
    from rewards import RewardSpec

    tokenizer = load_tokenizer(load(memorised / "config.yaml").model)
    chat = Chat(tokenizer, ChatConfig(), end_token_ids=[tokenizer.eos_token_id])
    problem = Problem(id="1", messages=(Message("user", "What is 2+2?"),), answer="4", reward=RewardSpec("math_answer"))
    text = tokenizer.decode(chat.prompt_ids(problem))
    assert text == "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    ids, learned = chat.trace_ids(problem, "It is \\boxed{4}.")
    assert tokenizer.decode(ids) == text + "It is \\boxed{4}.<|im_end|>"
    assert tokenizer.decode([token for token, learn in zip(ids, learned, strict=True) if learn]).startswith("It is")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model.lora": {"rank": 8}, "optim.learning_rate": 1e-3, "sft.learning_rate": 1e-3},
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "model.lora": {"rank": 8}},
    ],
    ids=["lora", "bfloat16", "bfloat16-lora"],
)
def test_the_gsm8k_config_runs_on_a_pretrained_folder(tmp_path, rows, pretrained, changes):
    arguments = gsm8k(tmp_path, rows, **{"model.path": str(pretrained), "sft.max_steps": 2}, **changes)
    assert grpo("recipe", *arguments) == 0
    run = tmp_path / "runs" / "gsm8k_qwen3_0.6b"
    assert_real_steps(run)
    held, _, _ = checkpoint.load(run / "checkpoints" / "step_000002", device=torch.device("cpu"))
    assert all("lora_" in name for name in held) == ("model.lora" in changes)
    metrics = read_jsonl(run / "metrics.jsonl")
    limit = 1e-3 if "model.dtype" not in changes else 0.3  # bfloat16 logits differ in the third digit
    assert all(row.get("policy/sampler_logprob_gap_max", 0) < limit for row in metrics)
