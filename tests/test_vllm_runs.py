"""Runs that vLLM samples for."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.errors import ConfigError
from grpo.sampling.protocol import Completion, Request
from grpo.sampling.vllm import VllmSampler
from tests.engines import LEARNING, needs_vllm
from tests.personas import vectors_file
from tests.runs import grpo, opened_run, read_jsonl, small_run_config, small_run_file

ENGINE = {"eager": True, "seeds": "engine", "cache_gib": 0.1, "check_every_syncs": 2}
HEADS = {"model.architecture.head_dim": 32}
VLLM = {"sampling.engine": "vllm", "sampling.vllm": ENGINE, "sampling.prefill_tokens": 512, **HEADS}


@needs_vllm
def test_a_recipe_is_sampled_by_vllm_from_the_cold_start_to_the_final_evaluation(tmp_path):
    assert grpo("recipe", small_run_file(tmp_path, **VLLM)) == 0
    rows = read_jsonl(tmp_path / "runs" / "small" / "metrics.jsonl")
    gaps = [row["policy/sampler_logprob_gap_max"] for row in rows if "policy/sampler_logprob_gap_max" in row]
    assert len(gaps) >= 4  # of the steps that drew groups of their own, beside the profile's
    assert 0 < max(gaps) < 1e-5  # rounding alone: weights of the step before would be 1e-3 off


@pytest.mark.parametrize("changes", [{}, pytest.param(VLLM, marks=needs_vllm)], ids=["native", "vllm"])
def test_a_policy_learns_whichever_engine_draws(tmp_path, changes):
    assert grpo("train", small_run_file(tmp_path, **changes | LEARNING)) == 0
    rewards = [row["reward/mean"] for row in read_jsonl(tmp_path / "runs" / "small" / "metrics.jsonl")]
    assert sum(rewards[:5]) / 5 < 0.6
    assert sum(rewards[-5:]) / 5 > 0.8


@needs_vllm
def test_without_a_seed_of_the_engine_a_cpu_is_refused(tmp_path):
    config = small_run_config(tmp_path, **VLLM | {"sampling.vllm": ENGINE | {"seeds": "request"}})
    with pytest.raises(ConfigError, match=r"set sampling\.vllm\.seeds: engine"), opened_run(config):
        pass


@needs_vllm
def test_a_model_that_vllm_cannot_run_is_refused_before_a_step(tmp_path):
    config = small_run_config(tmp_path, **VLLM | {"model.architecture.head_dim": 16})
    with pytest.raises(ConfigError, match="fails at this model's first token"), opened_run(config):
        pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run of three steps that vLLM drew for."""
    changes = LEARNING | VLLM | {"train.steps": 3, "checkpoint.every_steps": 2}
    config = small_run_file(tmp_path_factory.mktemp("trained"), **changes)
    assert grpo("train", config) == 0
    return config


@needs_vllm
def test_a_replay_draws_again_what_vllm_drew_on_one_rank(trained, capsys):
    run = trained.parent / "runs" / "small"
    for step in (2, 3):
        row = read_jsonl(run / "rollouts" / f"step_{step:06d}.jsonl")[5]
        assert grpo("replay", run, str(step), row["problem_id"], str(row["attempt"])) == 0
        assert "the same, token for token" in capsys.readouterr().out


@needs_vllm
def test_a_checkpoint_that_vllm_drew_for_can_be_talked_to(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(">lr?>13431\n"))
    assert grpo("talk", trained.parent / "runs" / "small", "--max-tokens", "4") == 0
    assert capsys.readouterr().out.strip()


@needs_vllm
def test_the_time_of_a_step_is_measured_by_vllms_own_decodes(trained, capsys, monkeypatch):
    drawn: list[int] = []
    original = VllmSampler.sample

    def counting(self: VllmSampler, requests: list[Request]) -> Iterator[Completion]:
        drawn.extend(len(request.keys) for request in requests)
        return original(self, requests)

    monkeypatch.setattr(VllmSampler, "sample", counting)
    assert grpo("check", trained, "--time") == 0
    assert "64 rows decode a token in" in capsys.readouterr().out
    assert drawn[-3:] == [64, 64, 64]  # to warm up, short and long


@needs_vllm
def test_what_the_refusal_of_a_sweep_says_to_add_opens_the_policy_natively(trained, tmp_path, capsys):
    vectors = vectors_file(tmp_path)
    checkpoint = trained.parent / "runs" / "small" / "checkpoints" / "step_000003"
    added = ["run.name=another", "sampling.engine=native", "sampling.vllm={}"]
    assert grpo("persona", "sweep", trained, *added, "--vectors", vectors, "--checkpoint", checkpoint) == 2
    found = capsys.readouterr()
    assert "sampling: decoded by" in found.out
    assert "of another policy" in found.err  # the vectors of this test, which nobody extracted
