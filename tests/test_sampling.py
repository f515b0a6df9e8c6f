"""The native sampler: what it draws depends on noise keys alone, and the trainer scores it alike."""

import random
from collections.abc import Sequence

import pytest
import torch

from grpo.batch import TrainedRollout, micro_batches
from grpo.config import SamplingConfig
from grpo.model import load_tokenizer
from grpo.policy import Policy
from grpo.sampling.cache import SlotCache
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Completion, Request
from grpo.seeds import key
from grpo.steering import Steering
from grpo.tasks.list_machine import tokenizer
from grpo.types import Rollout, StopReason
from tests.conftest import tiny_config, tiny_policy

END = 95


def sampler_of(policy: Policy, **changes: object) -> NativeSampler:
    config = SamplingConfig.model_validate({"max_completion_tokens": 24, "max_rows": 16} | changes)
    return NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer())


def requests_of(number: int, *, rollouts: int, temperature: float = 1.0) -> list[Request]:
    rng = random.Random(number)
    return [
        Request(
            prompt_ids=tuple(rng.randrange(95) for _ in range(rng.randrange(1, 20))),
            keys=tuple(key(0, "test", index, attempt) for attempt in range(rollouts)),
            temperature=temperature,
        )
        for index in range(number)
    ]


def drawn(sampler: NativeSampler, requests: Sequence[Request]) -> dict[int, Completion]:
    """Completions by noise key."""
    return {requests[c.request].keys[c.index]: c for c in sampler.sample(requests)}


def rollouts_of(requests: Sequence[Request], completions: Sequence[Completion]) -> list[Rollout]:
    rollouts = []
    for c in completions:
        prompt = requests[c.request].prompt_ids
        zeros = (0.0,) * len(prompt)
        rollouts.append(
            Rollout(
                problem_id=str(c.request),
                attempt=c.index,
                token_ids=prompt + c.token_ids,
                action_mask=(False,) * len(prompt) + (True,) * len(c.token_ids),
                logprobs=zeros + c.logprobs,
                kept=None if c.kept is None else ((),) * len(prompt) + c.kept,
                stop_reason=c.stop_reason,
                temperature=requests[c.request].temperature,
                policy_step=0,
            )
        )
    return rollouts


def largest_gap(policy: Policy, requests: Sequence[Request], completions: Sequence[Completion]) -> float:
    """Largest difference between the sampler's and the trainer's log-probs, over the bound of the design."""
    trained = [
        TrainedRollout(rollout=r, advantage=1.0, group_tokens=r.num_actions) for r in rollouts_of(requests, completions)
    ]
    batches = micro_batches(
        [trained], tokens_per_micro_batch=400, limit_tokens=24, aggregation="token", device=torch.device("cpu")
    )
    gaps = []
    with torch.no_grad():
        for batch in batches:
            std = float(policy.head(policy.hidden(batch.input_ids)[batch.predicts_action]).std())
            temperature = requests[0].temperature
            bound = 1e-5 * max(1.0, 1 / temperature) * max(1.0, std)
            gaps.append(float((policy(batch)[0] - batch.sampler_logprobs).abs().max()) / bound)
    return max(gaps)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.0])
def test_sampler_and_trainer_log_probs_agree_to_rounding(policy, temperature):
    requests = requests_of(6, rollouts=5, temperature=temperature)
    completions = list(sampler_of(policy).sample(requests))
    assert len(completions) == 30
    assert largest_gap(policy, requests, completions) < 1


@pytest.mark.parametrize(
    "restriction", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}]
)
def test_log_probs_agree_under_a_restriction_and_the_token_is_in_its_kept_set(restriction):
    policy = tiny_policy("qwen3")
    requests = requests_of(6, rollouts=4, temperature=0.8)
    completions = list(sampler_of(policy, **restriction).sample(requests))
    assert all(token in kept or not kept for c in completions for token, kept in zip(c.token_ids, c.kept, strict=True))
    assert any(0 < len(kept) < 96 for c in completions for kept in c.kept)
    assert largest_gap(policy, requests, completions) < 1


def test_leaving_the_temperature_out_would_be_seen():
    policy = tiny_policy("qwen3")
    requests = requests_of(4, rollouts=4, temperature=0.7)
    completions = list(sampler_of(policy).sample(requests))
    hotter = [Request(r.prompt_ids, r.keys, 0.8) for r in requests]
    assert largest_gap(policy, hotter, completions) > 100


@pytest.mark.parametrize("max_rows", [8, 16, 64, 512])
def test_any_order_and_any_grouping_draw_the_same_tokens(policy, max_rows):
    requests = requests_of(12, rollouts=6)
    expected = drawn(sampler_of(policy), requests)
    shuffled = [Request(r.prompt_ids, (k,), r.temperature) for r in requests for k in r.keys]
    random.Random(1).shuffle(shuffled)
    found = drawn(sampler_of(policy, max_rows=max_rows), shuffled)
    assert {k: c.token_ids for k, c in found.items()} == {k: c.token_ids for k, c in expected.items()}


def test_other_keys_draw_other_tokens():
    policy = tiny_policy("llama")
    one, two = (drawn(sampler_of(policy), [Request((1, 2), (k,), 1.0)])[k].token_ids for k in (key("a"), key("b")))
    assert one != two


def test_tokens_come_as_often_as_their_probability_says():
    policy = tiny_policy("llama")
    prompt = (7, 3, 11)
    request = Request(prompt, tuple(key("frequency", index) for index in range(20_000)), 1.0)
    sampler = sampler_of(policy, max_completion_tokens=1, max_rows=4096)
    counts = torch.zeros(96)
    for completion in sampler.sample([request]):
        counts[completion.token_ids[0]] += 1
    with torch.no_grad():
        expected = 20_000 * policy.head(policy.hidden(torch.tensor([prompt]))[0, -1:])[0].softmax(-1)
    common = expected > 5
    chi_square = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    # 95 degrees of freedom at most: above 160 has a chance below 1e-4.
    assert chi_square < 160


def test_end_token_stop_string_and_limit_are_told_apart():
    policy = tiny_policy("llama")
    requests = requests_of(8, rollouts=16)
    completions = list(sampler_of(policy, stop_strings=["7", "ab"]).sample(requests))
    text = tokenizer()
    reasons = {c.stop_reason for c in completions}
    assert reasons == set(StopReason)
    for c in completions:
        decoded = text.decode(c.token_ids)
        assert (c.stop_reason is StopReason.END_TOKEN) == (c.token_ids[-1] == END)
        assert (c.stop_reason is StopReason.STOP_STRING) == decoded.endswith(("7", "ab"))
        assert "7" not in decoded[:-1]
        assert c.stop_reason is not StopReason.LIMIT or len(c.token_ids) == 24


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_steered_sampling_is_scored_alike_and_differs_from_unsteered(name):
    policy = tiny_policy(name)
    requests = requests_of(6, rollouts=4)
    plain = drawn(sampler_of(policy), requests)
    vector = torch.randn(policy.hidden_size, generator=torch.Generator().manual_seed(0))
    sampler = sampler_of(policy)
    sampler.steer(Steering(vectors={0: vector}, coefficient=2.0))
    completions = list(sampler.sample(requests))
    assert largest_gap(policy, requests, completions) < 1
    assert any(plain[requests[c.request].keys[c.index]].token_ids != c.token_ids for c in completions)
    sampler.steer(None)
    assert largest_gap(policy, requests, completions) > 100
    assert drawn(sampler, requests) == plain


def test_a_vector_of_another_width_or_block_is_refused():
    policy = tiny_policy("llama")
    with pytest.raises(ValueError, match="the model's is"):
        policy.steer(Steering(vectors={0: torch.zeros(5)}, coefficient=1.0))
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        policy.steer(Steering(vectors={2: torch.zeros(32)}, coefficient=1.0))


def test_eager_attention_samples_what_sdpa_samples():
    requests = requests_of(6, rollouts=4)
    one, two = (drawn(sampler_of(tiny_policy("gemma3", attention=a)), requests) for a in ("sdpa", "eager"))
    assert {k: c.token_ids for k, c in one.items()} == {k: c.token_ids for k, c in two.items()}


def test_lora_samples_from_the_adapted_model():
    policy = tiny_policy("qwen3", lora={"rank": 4})
    requests = requests_of(6, rollouts=4)
    before = drawn(sampler_of(policy), requests)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    completions = list(sampler_of(policy).sample(requests))
    assert largest_gap(policy, requests, completions) < 1
    assert {c.token_ids for c in completions} != {c.token_ids for c in before.values()}


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        list(sampler_of(tiny_policy("llama")).sample([Request((), (1,), 1.0)]))


def test_the_tokenizer_of_the_list_machine_has_96_tokens_and_loses_nothing():
    text = load_tokenizer(tiny_config("llama"))
    assert len(text) == 96
    assert text.decode(text.encode(">lr?>13431 l34311")) == ">lr?>13431 l34311"


@pytest.mark.parametrize("max_rows", [8, 10, 13, 200])
def test_each_prompt_is_prefilled_once_even_where_a_group_is_cut_by_the_rows(max_rows, monkeypatch):
    policy = tiny_policy("llama")
    prefilled: list[int] = []
    original = Policy.hidden

    def counting(self: Policy, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        if options.get("position_ids") is None:  # a prefill; a decode names the position of each row
            prefilled.append(len(input_ids))
        return original(self, input_ids, **options)  # type: ignore[arg-type]

    requests = requests_of(3, rollouts=20)
    expected = drawn(sampler_of(policy, max_rows=512), requests)
    monkeypatch.setattr(Policy, "hidden", counting)
    assert drawn(sampler_of(policy, max_rows=max_rows), requests).keys() == expected.keys()
    assert sum(prefilled) == 3


def test_attention_looks_no_further_than_the_longest_row_however_many_have_gone_through(monkeypatch):
    policy = tiny_policy("llama")
    widths: list[int] = []
    original = SlotCache.write_at

    def noted(self: SlotCache, positions: torch.Tensor, *, width: int) -> None:
        widths.append(width)
        original(self, positions, width=width)

    monkeypatch.setattr(SlotCache, "write_at", noted)
    requests = requests_of(20, rollouts=8)
    list(sampler_of(policy, max_rows=8).sample(requests))
    longest = max(len(request.prompt_ids) for request in requests)
    assert max(widths) <= longest + 24
