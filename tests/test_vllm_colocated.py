"""The engine in this process: comparisons of what it holds, its refusals, and one on each rank."""

import pytest
import torch

from grpo.errors import ConfigError
from grpo.model import base_of
from grpo.sampling import handover
from grpo.sampling.agreement import check_agreement
from grpo.sampling.handover import WeightsDifferError
from grpo.sampling.protocol import Request
from grpo.steering import Steering
from tests.engines import found_by_ranks, made_vllm, needs_vllm, small_policy


@needs_vllm
def test_what_the_engine_holds_is_compared_with_the_policy():
    sampler = made_vllm(small_policy())
    assert "11 of its 19 weights are in a form that can be compared, and are the policy's" in sampler.describe()
    digests = sampler._engine.collective_rpc("compute_weight_checksums")[0]
    other = small_policy()
    with torch.no_grad():
        base_of(other.model).get_output_embeddings().weight[5, 7] += 1e-6
    with pytest.raises(WeightsDifferError, match=r"holds another lm_head.weight than the policy \(1 of 11"):
        handover.check_held(digests, handover.expected_digests(other), holder="the engine")


@needs_vllm
def test_an_engine_of_another_policy_is_found_out_at_the_start():
    sampler = made_vllm(small_policy())
    with pytest.raises(ConfigError, match="has other log-probs than the policy"):
        check_agreement(sampler, small_policy(seed=1), engine="vLLM")


@needs_vllm
def test_steering_and_grids_are_refused():
    sampler = made_vllm(small_policy())
    with pytest.raises(ConfigError, match="steers no draws"):
        sampler.steer(Steering(vectors={0: torch.ones(32)}, coefficient=1.0))
    sampler.steer(None)
    with pytest.raises(ValueError, match="at the temperature of the draw alone"):
        list(sampler.sample([Request((1,), (1,), 1.0, grid=(0.5,))]))


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("case", ["ddp", "zero3", "zero3-lora"])
def test_each_rank_of_a_launcher_has_an_engine_of_its_own_with_the_whole_weights(case):
    found = found_by_ranks(case)
    assert [of_rank["drawn"] for of_rank in found] == [[6, 6], [8, 8]]
    for of_rank in found:
        assert max(of_rank["gaps"]) < 1e-4
        assert of_rank["gap_of_updated"] > 1e-3  # an update that is not handed over would be seen
        assert "are the policy's" in of_rank["compared"]
        if case != "ddp":
            assert 0 < of_rank["most_whole"] <= of_rank["largest"]  # one weight at a time
