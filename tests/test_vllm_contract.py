"""What every sampling engine promises, asked of both: the same tests on the native one and on vLLM."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from grpo.model import base_of
from grpo.sampling.protocol import Request
from grpo.seeds import key
from grpo.tasks.list_machine import tokenizer
from grpo.types import StopReason
from tests.engines import END, LIMIT, engine, largest_gap, needs_vllm, requests_of, small_policy

BOTH = pytest.mark.parametrize("name", ["native", pytest.param("vllm", marks=needs_vllm)])
ROUNDING = 1e-5
"""Nats, in float32; times the standard deviation of the logits over the temperature."""


@BOTH
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_log_probs_of_the_drawn_tokens_are_those_that_training_computes(name, temperature):
    policy = small_policy()
    requests = requests_of(6, rollouts=4, temperature=temperature)
    completions = list(engine(name, policy).sample(requests))
    assert len(completions) == 24
    assert largest_gap(policy, requests, completions) < ROUNDING * max(1, 1 / temperature) * 4
    others = [replace(request, temperature=temperature * 1.1) for request in requests]
    assert largest_gap(policy, others, completions) > 100 * ROUNDING


@BOTH
def test_every_key_of_every_request_is_answered_once(name):
    requests = requests_of(7, rollouts=3)
    completions = list(engine(name, small_policy()).sample(requests))
    assert sorted((c.request, c.index) for c in completions) == list(itertools.product(range(7), range(3)))


@BOTH
def test_weights_that_change_are_drawn_from_once_they_are_loaded(name):
    requests = requests_of(5, rollouts=4)
    policy, other = small_policy(), small_policy(seed=1)
    sampler = engine(name, policy)
    before = list(sampler.sample(requests))
    assert largest_gap(policy, requests, before) < 1e-4
    sampler.load_weights(other)
    after = list(sampler.sample(requests))  # of the same prompts, which an engine may remember
    assert largest_gap(other, requests, after) < 1e-4
    assert largest_gap(policy, requests, after) > 0.1


@BOTH
def test_nothing_of_a_long_prompt_is_remembered_over_a_change_of_weights(name):
    requests = [Request(tuple(n % 95 for n in range(200)), (key("a"), key("b")), 1.0)]  # more than a block of a cache
    other = small_policy(seed=1)
    sampler = engine(name, small_policy())
    list(sampler.sample(requests))
    sampler.load_weights(other)
    assert largest_gap(other, requests, list(sampler.sample(requests))) < 1e-4


@BOTH
def test_weights_that_are_changed_in_place_are_drawn_from_too(name):
    requests = requests_of(5, rollouts=4)
    policy = small_policy()
    sampler = engine(name, policy)
    list(sampler.sample(requests))
    with torch.no_grad():
        for parameter in base_of(policy.model).parameters():
            parameter *= 1.05
    sampler.load_weights(policy)
    assert largest_gap(policy, requests, list(sampler.sample(requests))) < 1e-4


@BOTH
def test_tokens_come_as_often_as_their_probability_says(name):
    policy, prompt = small_policy(), (7, 3, 11)
    number = 6000
    request = Request(prompt, tuple(key("frequency", index) for index in range(number)), 1.0, limit_tokens=1)
    counts = torch.zeros(96)
    for completion in engine(name, policy).sample([request]):
        counts[completion.token_ids[0]] += 1
    with torch.no_grad():
        expected = number * policy.head(policy.hidden(torch.tensor([prompt]))[0, -1:])[0].softmax(-1)
    common = expected > 5
    # 95 degrees of freedom at most: above 160 has a chance below 1e-4.
    assert float(((counts - expected)[common] ** 2 / expected[common]).sum()) < 160


@BOTH
def test_end_token_stop_string_and_limit_are_told_apart(name):
    requests = requests_of(8, rollouts=16)
    completions = list(engine(name, small_policy(), stop=True).sample(requests))
    text = tokenizer()
    assert {c.stop_reason for c in completions} == set(StopReason)
    for c in completions:
        decoded = text.decode(c.token_ids)
        assert (c.stop_reason is StopReason.END_TOKEN) == (c.token_ids[-1] == END)
        assert (c.stop_reason is StopReason.STOP_STRING) == decoded.endswith(("7", "ab"))
        assert "7" not in decoded[:-1]
        assert len(c.token_ids) == len(c.logprobs) <= LIMIT
        assert c.stop_reason is not StopReason.LIMIT or len(c.token_ids) == LIMIT


@BOTH
def test_a_limit_of_the_request_is_kept(name):
    request = Request((1, 2, 3), (key("a"), key("b")), 1.0, limit_tokens=2)
    assert all(len(c.token_ids) <= 2 for c in engine(name, small_policy()).sample([request]))


@BOTH
@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request((), (1,), 1.0), "no tokens"),
        (Request((1,), (1,), 1.0, limit_tokens=LIMIT + 1), "limit_tokens = 25: must be from 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, request_, said):
    sampler = engine(name, small_policy())
    with pytest.raises(ValueError, match=said):
        list(sampler.sample([request_]))
    assert len(list(sampler.sample(requests_of(2, rollouts=2)))) == 4  # and nothing of it is left


@BOTH
def test_requests_that_come_one_by_one_are_not_all_taken_at_once(name):
    taken: list[int] = []

    def slowly() -> Iterator[Request]:
        for number, request in enumerate(requests_of(30, rollouts=4)):
            taken.append(number)
            yield request

    completions = engine(name, small_policy()).sample(slowly())
    next(completions)
    assert len(taken) < 30
    rest = list(completions)
    assert len(rest) == 119
    assert taken == list(range(30))


@BOTH
def test_who_stops_in_the_middle_leaves_nothing_behind(name):
    sampler, requests = engine(name, small_policy()), requests_of(10, rollouts=4)
    begun = sampler.sample(requests)
    next(begun)
    begun.close()
    found = list(sampler.sample(requests[:2]))
    assert sorted((c.request, c.index) for c in found) == list(itertools.product(range(2), range(4)))


@BOTH
def test_the_same_call_draws_the_same_tokens(name):
    sampler, requests = engine(name, small_policy()), requests_of(6, rollouts=4)
    first, second = ({(c.request, c.index): c.token_ids for c in sampler.sample(requests)} for _ in range(2))
    assert first == second
    others = [replace(r, keys=tuple(k + 1 for k in r.keys)) for r in requests]
    assert {(c.request, c.index): c.token_ids for c in sampler.sample(others)} != first


@BOTH
def test_sampling_leaves_torchs_own_generator_and_threads_alone(name):
    sampler = engine(name, small_policy())
    torch.set_num_threads(1)
    state = torch.get_rng_state()
    list(sampler.sample(requests_of(3, rollouts=2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1
