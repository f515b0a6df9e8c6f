"""Steered sampling and steered scoring are one function: the same positions, blocks, coefficient and temperature.

The bound on the gap between their log-probs is 1e-5 · max(1, 1/T) · max(1, standard deviation of the logits) in
float32. The negative controls score what was sampled in another way, and are off by a hundred bounds at least."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from grpo.batch import MicroBatch, TrainedRollout, micro_batches
from grpo.policy import Policy, Scored, Wanted
from grpo.sampling.prefixes import SHARED_TOKENS, shares_prefixes
from grpo.sampling.protocol import Request
from grpo.sampling.trials import check_decoding
from grpo.seeds import key
from grpo.steering import Steering
from tests.conftest import ARCHITECTURES, tiny_policy
from tests.test_sampling import rollouts_of, sampler_of

OF_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16}
# Gemma multiplies its embeddings by √D: with wide ones a token follows itself, whatever is added to the stream.
SMALL_EMBEDDINGS = {"initial_embedding_std": 0.2}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {"architecture": {"model_type": "qwen2"}},
    "qwen3": {},
    "gemma2": {"architecture": {"model_type": "gemma2", "sliding_window": 8}, "attention": "eager", **SMALL_EMBEDDINGS},
    "gemma3": {**SMALL_EMBEDDINGS},
    "mistral": {},
    "glm4": {"architecture": {"model_type": "glm4"}},
    "glm4_moe": {"architecture": {"model_type": "glm4_moe", "first_k_dense_replace": 1, **OF_EXPERTS}},
    "gpt_oss": {
        "architecture": {
            "model_type": "gpt_oss",
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
        },
        "attention": "eager",
    },
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
POSITIONS = ("choosing", "start", "completion", "all")
TEMPERATURES = (0.2, 0.7, 1.0, 2.0)


def policy_of(family: str, *, seed: int = 0, **changes: object) -> Policy:
    fields = FAMILIES[family] | changes
    own = fields.pop("architecture", ARCHITECTURES.get(family))
    assert isinstance(own, dict)
    layers = (
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]} if "layer_types" in own else {}
    )
    return tiny_policy("llama", seed=seed, architecture={**SIZES, **own, **layers}, **fields)


def vector(seed: int, *, size: float = 1.0, width: int = 32) -> torch.Tensor:
    """A random direction [D] of about the size of the hidden states, or `size` times that."""
    return size * torch.randn(width, generator=torch.Generator().manual_seed(seed))


def steering_of(blocks: Sequence[int], coefficient: float, **fields: object) -> Steering:
    return Steering({block: vector(block) for block in blocks}, coefficient=coefficient, **fields)


def requests_of(lengths: Sequence[int], *, temperature: float, rollouts: int = 3) -> list[Request]:
    """A group for each length of a prompt."""
    rng = random.Random(len(lengths))
    return [
        Request(
            prompt_ids=tuple(rng.randrange(95) for _ in range(length)),
            keys=tuple(key(0, "test", index, attempt) for attempt in range(rollouts)),
            temperature=temperature,
        )
        for index, length in enumerate(lengths)
    ]


def sampled(policy: Policy, requests: Sequence[Request]) -> list[list[TrainedRollout]]:
    """What the policy draws, steered as it is, a list of rollouts for each request."""
    completions = sorted(
        sampler_of(policy, max_completion_tokens=12).sample(requests), key=lambda c: (c.request, c.index)
    )
    groups: list[list[TrainedRollout]] = [[] for _ in requests]
    for rollout in rollouts_of(requests, completions):
        trained = TrainedRollout(rollout=rollout, advantage=1.0, group_tokens=1, group_rollouts=1)
        groups[int(rollout.problem_id)].append(trained)
    return groups


def batches_of(policy: Policy, groups: Sequence[list[TrainedRollout]]) -> list[MicroBatch]:
    return micro_batches(
        groups,
        tokens_per_micro_batch=200,
        limit_tokens=12,
        aggregation="token",
        device=torch.device("cpu"),
        shares_prompts=policy.packs,
    )


@torch.no_grad()
def gap(policy: Policy, groups: Sequence[list[TrainedRollout]], *, temperature: float | None = None) -> float:
    """Largest gap between the sampler's log-probs and the trainer's (at `temperature`, or the right one), in bounds."""
    gaps = []
    for batch in batches_of(policy, groups):
        scored_at = batch if temperature is None else replace(batch, temperature=0 * batch.temperature + temperature)
        std = float(policy.head(policy.action_hidden(batch)[0]).std())
        bound = 1e-5 * max(1.0, 1 / float(batch.temperature.min())) * max(1.0, std)
        gaps.append(float((policy(scored_at)[1] - batch.sampler_logprobs).abs().max()) / bound)
    return max(gaps)


LENGTHS = (1, 5, 19)
CASES: tuple[tuple[list[int], float, str], ...] = (
    ([1], 4.0, "add"),
    ([2], -30.0, "add"),
    ([0, 1, 2], 0.7, "add"),
    ([2, 0], 1.0, "ablate"),
)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_steered_log_probs_of_sampler_and_trainer_agree_to_rounding(family, positions):
    policy = policy_of(family)
    for (blocks, coefficient, kind), temperature in zip(CASES, TEMPERATURES, strict=True):
        policy.steer(steering_of(blocks, coefficient, kind=kind, positions=positions))
        assert gap(policy, sampled(policy, requests_of(LENGTHS, temperature=temperature))) < 1, (blocks, temperature)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_they_agree_with_any_blocks_coefficient_and_kind_at_any_temperature(family, positions, temperature):
    policy = policy_of(family, seed=1)
    for blocks in ([0], [2], [0, 2]):
        for coefficient, kind in ((-100.0, "add"), (0.1, "add"), (20.0, "add"), (2.0, "ablate")):
            policy.steer(steering_of(blocks, coefficient, kind=kind, positions=positions))
            groups = sampled(policy, requests_of(LENGTHS, temperature=temperature))
            assert gap(policy, groups) < 1, (blocks, coefficient, kind)


# --- negative controls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_under_another_mask_or_none_or_at_another_temperature_is_off_by_a_hundred_bounds(family):
    policy = policy_of(family)
    for positions in POSITIONS:
        steering = steering_of([1], 4.0, positions=positions)
        policy.steer(steering)
        groups = sampled(policy, requests_of(LENGTHS, temperature=0.7))
        others = [replace(steering, positions=other) for other in POSITIONS if other != positions]
        for other in (*others, replace(steering, coefficient=4.4), replace(steering, vectors={0: vector(1)}), None):
            policy.steer(other)
            assert gap(policy, groups) > 100
        policy.steer(steering)
        assert gap(policy, groups, temperature=1.0) > 100


# --- under adapters, recomputed activations, packed and padded rows, shared prompts -----------------------------------

LONG = (SHARED_TOKENS + 4, 3, SHARED_TOKENS + 30)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "glm4", "glm4_moe"])
def test_they_agree_where_a_prompt_is_stored_and_computed_once_for_its_group(family, positions):
    policy = policy_of(family)
    assert shares_prefixes(policy)
    assert policy.packs
    policy.steer(steering_of([0, 2], -3.0, positions=positions))
    groups = sampled(policy, requests_of(LONG, temperature=0.7))
    assert any(
        len(segment.row_tokens) > 1 and segment.prefix_tokens > 90
        for b in batches_of(policy, groups)
        for segment in b.layout.segments
    )
    assert gap(policy, groups) < 1
    for other in set(POSITIONS) - {positions}:
        policy.steer(steering_of([0, 2], -3.0, positions=other))
        assert gap(policy, groups) > 100
    policy.steer(steering_of([0, 2], -3.0, positions=positions))
    policy.packs = False  # each rollout with its own prompt, padded
    assert gap(policy, groups) < 1


@pytest.mark.parametrize("positions", POSITIONS)
def test_they_agree_under_adapters(positions):
    policy = policy_of("qwen3", lora={"rank": 3})
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.ones_like(parameter).cumsum(0).sin())
    policy.steer(steering_of([1], 5.0, positions=positions))
    groups = sampled(policy, requests_of(LENGTHS, temperature=0.7))
    assert gap(policy, groups) < 1
    policy.steer(None)
    assert gap(policy, groups) > 100


def gradients(policy: Policy, batches: Sequence[MicroBatch]) -> dict[str, torch.Tensor]:
    """Of the summed log-probs of what was drawn, which also have to be the sampler's."""
    policy.zero_grad()
    for batch in batches:
        scored = Scored(*policy(batch, Wanted(loss_of=lambda logprobs, part: logprobs.sum())))
        assert scored.loss is not None
        scored.loss.backward()
        assert float((scored.logprobs - batch.sampler_logprobs).abs().max()) < 1e-4
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "glm4_moe"])
def test_recomputed_activations_are_steered_as_the_first_time(family, positions):
    plain, recomputing = policy_of(family), policy_of(family, activation_checkpointing=True)
    for policy in (plain, recomputing):
        policy.steer(steering_of([0, 1], 2.0, positions=positions))
    batches = batches_of(plain, sampled(plain, requests_of(LENGTHS, temperature=1.0)))
    expected, found = gradients(plain, batches), gradients(recomputing, batches)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name
    plain.steer(None)
    with pytest.raises(AssertionError):
        gradients(plain, batches)


def test_the_check_of_the_decode_holds_for_a_steered_policy():
    policy = policy_of("llama")
    for positions in POSITIONS:
        policy.steer(steering_of([1], 4.0, positions=positions))
        check_decoding(policy)
