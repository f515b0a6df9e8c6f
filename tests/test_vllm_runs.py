"""Runs that vLLM samples for."""

import pytest

from grpo.errors import ConfigError
from tests.engines import LEARNING, needs_vllm
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
