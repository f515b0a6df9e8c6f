"""Prompts stored once for their rows: the same draws as from slots, in any company, and nothing left switched on."""

import random
from collections.abc import Sequence

import pytest
import torch
from transformers import DynamicCache

from grpo.attention import attend
from grpo.config import SamplingConfig
from grpo.model import base_of
from grpo.policy import Policy
from grpo.sampling import prefixes, rows, trials
from grpo.sampling.decoder import ModelDecoder
from grpo.sampling.native import NativeSampler
from grpo.sampling.prefixes import SHARED_TOKENS, PrefixBank, attending, shares_prefixes
from grpo.sampling.protocol import Completion, Request
from grpo.seeds import key
from grpo.steering import Steering
from grpo.tasks.list_machine import tokenizer
from tests.conftest import SIZES, tiny_policy
from tests.test_sampling import largest_gap

END = 95
SHARING = ("gpt2", "llama", "qwen3")


def sampler_of(policy: Policy, **changes: object) -> NativeSampler:
    config = SamplingConfig.model_validate({"max_completion_tokens": 24, "max_rows": 16} | changes)
    return NativeSampler(policy, config, end_token_ids=(END,), tokenizer=tokenizer())


def requests_of(lengths: Sequence[int], *, rollouts: int) -> list[Request]:
    rng = random.Random(0)
    return [
        Request(
            prompt_ids=tuple(rng.randrange(95) for _ in range(length)),
            keys=tuple(key("prefixes", index, attempt) for attempt in range(rollouts)),
            temperature=1.0,
        )
        for index, length in enumerate(lengths)
    ]


def bits(policy: Policy, requests: Sequence[Request], **changes: object) -> dict[int, tuple[object, ...]]:
    """By noise key: tokens and the bits of log-probs."""
    found = list(sampler_of(policy, **changes).sample(requests))
    return {
        requests[c.request].keys[c.index]: (c.token_ids, torch.tensor(c.logprobs).view(torch.int32).tolist())
        for c in found
    }


@pytest.mark.parametrize("name", SHARING)
def test_rows_that_read_a_shared_prompt_draw_what_rows_with_a_copy_of_it_draw(name, monkeypatch):
    policy = tiny_policy(name)
    requests = requests_of((100, 130, 40), rollouts=6)
    shared: dict[int, Completion] = {requests[c.request].keys[c.index]: c for c in sampler_of(policy).sample(requests)}
    assert largest_gap(policy, requests, list(shared.values())) < 1
    monkeypatch.setattr(rows, "SHARED_TOKENS", 10**9)
    for c in sampler_of(policy).sample(requests):
        other = shared[requests[c.request].keys[c.index]]
        assert c.token_ids == other.token_ids
        assert c.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHARING)
def test_neither_the_size_of_a_group_nor_its_neighbours_change_a_bit(name, dtype):
    policy = tiny_policy(name).to(dtype)
    requests = requests_of((97, 98, 127, 129, 130, 180, 20, 96), rollouts=9)
    expected = bits(policy, requests, max_rows=512)
    singles = [Request(r.prompt_ids, (k,), r.temperature) for r in requests for k in r.keys]
    random.Random(1).shuffle(singles)
    assert bits(policy, singles, max_rows=13) == expected
    assert bits(policy, requests[::-1], max_rows=11) == expected
    for request in requests:
        assert bits(policy, [request]).items() <= expected.items()


def test_a_neighbour_changes_no_bit_of_long_completions_where_four_heads_read_one_key_head(monkeypatch):
    monkeypatch.setattr(trials, "why_not_fused", lambda policy: "a test of the model's own layers")
    heads = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
    policy = tiny_policy("llama", architecture=SIZES | heads)
    config = SamplingConfig(max_completion_tokens=320, max_rows=16)
    sampler = NativeSampler(policy, config, end_token_ids=(policy.vocabulary,), tokenizer=tokenizer())  # draws no end
    shared, in_slots = requests_of((100, 90), rollouts=4)
    alone = {c.index: (c.token_ids, c.logprobs) for c in sampler.sample([shared])}
    beside = {c.index: (c.token_ids, c.logprobs) for c in sampler.sample([shared, in_slots]) if c.request == 0}
    assert alone == beside


def test_steered_rows_with_a_shared_prompt_are_scored_alike():
    policy = tiny_policy("qwen3")
    requests = requests_of((100, 120), rollouts=4)
    sampler = sampler_of(policy)
    vector = torch.randn(policy.hidden_size, generator=torch.Generator().manual_seed(0))
    sampler.steer(Steering(vectors={0: vector}, coefficient=2.0))
    completions = list(sampler.sample(requests))
    assert largest_gap(policy, requests, completions) < 1
    sampler.steer(None)
    assert largest_gap(policy, requests, completions) > 100


def test_a_prompt_is_kept_once_for_all_its_rows(monkeypatch):
    kept: list[int] = []
    original = PrefixBank.add

    def noting(self: PrefixBank, prefix: DynamicCache, *, source: int, length: int, request: int) -> int:
        kept.append(request)
        return original(self, prefix, source=source, length=length, request=request)

    sampler = sampler_of(tiny_policy("llama"), max_rows=64)
    monkeypatch.setattr(PrefixBank, "add", noting)
    widths: set[int] = set()
    monkeypatch.setattr(rows, "_stepped", lambda tokens, of=rows._stepped: widths.add(tokens) or of(tokens))
    list(sampler.sample(requests_of((100, 200), rollouts=20)))
    assert sorted(kept) == [0, 1]
    # A slot holds what its row has drawn, and no prompt.
    assert max(widths) < SHARED_TOKENS


@pytest.mark.parametrize(("name", "attention_of_it"), [("gemma3", "sdpa"), ("mistral", "sdpa"), ("llama", "eager")])
def test_a_window_and_eager_attention_keep_prompts_in_slots(name, attention_of_it):
    policy = tiny_policy(name, attention=attention_of_it)
    assert not shares_prefixes(policy)
    requests = requests_of((100, 120), rollouts=3)
    assert largest_gap(policy, requests, list(sampler_of(policy).sample(requests))) < 1


def test_the_models_own_attention_is_back_after_a_decode_that_fails():
    policy = tiny_policy("llama")
    config = base_of(policy.model).config
    batch = rows.Rows(8, config=SamplingConfig(), policy=policy, decoder=ModelDecoder(policy))
    cache = batch.prefill([[1] * 64])
    bank = PrefixBank(cache, padded=64, dtype=torch.float32)
    seen: list[str] = []

    def fail() -> None:
        with attending(policy, [bank]):
            seen.append(config._attn_implementation)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert seen == [prefixes.ATTENTION_NAME]
    assert config._attn_implementation == "sdpa"
    assert prefixes.ATTENTION_NAME not in prefixes.ALL_ATTENTION_FUNCTIONS


def test_both_ways_to_attend_agree_with_softmax_over_all_scores():
    generator = torch.Generator().manual_seed(0)
    query, key_states, value = (torch.randn(3, 2, n, 16, generator=generator) for n in (8, 64, 64))
    mask = torch.zeros(3, 1, 1, 64)
    mask[1, ..., 40:] = torch.finfo(torch.float32).min
    scores = query @ key_states.transpose(-1, -2) * 0.3 + mask
    for values in (value, torch.cat([value, value], dim=-1)):  # values of another size than keys take the other way
        read, total = attend(query, key_states, values, scale=0.3, causal=False, mask=mask)
        assert torch.allclose(read, scores.softmax(dim=-1) @ values, atol=1e-5)
        assert torch.allclose(total, scores.logsumexp(dim=-1), atol=1e-5)
