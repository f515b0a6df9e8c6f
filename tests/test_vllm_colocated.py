"""The engine in this process: adapters, comparisons of what it holds, and its refusals."""

import json

import pytest
import torch

from grpo.errors import ConfigError
from grpo.model import base_of
from grpo.sampling import handover
from grpo.sampling.agreement import check_agreement
from grpo.sampling.handover import WeightsDifferError
from grpo.sampling.protocol import Request
from grpo.steering import Steering
from tests.engines import engine, largest_gap, needs_vllm, requests_of, small_policy, vllm_engine
from tests.launch import launched


@needs_vllm
def test_adapters_alone_are_handed_over_and_drawn_from():
    policy = small_policy(lora={"rank": 4})
    sampler = vllm_engine(policy)
    requests = requests_of(4, rollouts=3)
    for seed in (0, 1):
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(seed))
        before = list(sampler.sample(requests))
        assert largest_gap(policy, requests, before) > 1e-2  # not yet loaded
        sampler.load_weights(policy)
        assert largest_gap(policy, requests, list(sampler.sample(requests))) < 2e-5


@needs_vllm
def test_what_the_engine_holds_is_compared_with_the_policy():
    sampler = engine("vllm", small_policy())
    assert "11 of its 19 weights are in a form that can be compared, and are the policy's" in sampler.describe()
    digests = sampler._engine.collective_rpc("compute_weight_checksums")[0]
    other = small_policy()
    with torch.no_grad():
        base_of(other.model).get_output_embeddings().weight[5, 7] += 1e-6
    with pytest.raises(WeightsDifferError, match=r"holds another lm_head.weight than the policy \(1 of 11"):
        handover.check_held(digests, other.model, holder="the engine")


@needs_vllm
def test_an_engine_of_another_policy_is_found_out_at_the_start():
    sampler = engine("vllm", small_policy())
    with pytest.raises(ConfigError, match="has other log-probs than the policy"):
        check_agreement(sampler, small_policy(seed=1), engine="vLLM")


@needs_vllm
def test_steering_and_grids_are_refused():
    sampler = engine("vllm", small_policy())
    with pytest.raises(ConfigError, match="steers no draws"):
        sampler.steer(Steering(vectors={0: torch.ones(32)}, coefficient=1.0))
    sampler.steer(None)
    with pytest.raises(ValueError, match="at the temperature of the draw alone"):
        list(sampler.sample([Request((1,), (1,), 1.0, grid=(0.5,))]))


@needs_vllm
@pytest.mark.slow
def test_each_rank_of_a_launcher_has_an_engine_of_its_own():
    said = launched("tests/workers/vllm_worker.py", ranks=2)
    found = json.loads(next(line for line in said.splitlines() if line.startswith("found ")).removeprefix("found "))
    assert [of_rank["drawn"] for of_rank in found] == [6, 8]
    assert all(of_rank["gap"] < 1e-4 for of_rank in found)
