"""What every sampling engine promises: the same tests on the native one, on vLLM in this process, and on its server."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grpo.model import base_of
from grpo.policy import Policy
from grpo.sampling.protocol import Request
from grpo.seeds import key
from grpo.tasks.list_machine import tokenizer
from grpo.types import StopReason
from tests.engines import (
    END,
    LIMIT,
    PROGRESS,
    Maker,
    StoppedError,
    largest_gap,
    made_by_servers,
    made_native,
    made_vllm,
    needs_vllm,
    requests_of,
    small_policy,
)

BY_SERVER = pytest.param("server", marks=[needs_vllm, pytest.mark.slow, pytest.mark.timeout(900)])
ENGINES = ["native", pytest.param("vllm", marks=needs_vllm), BY_SERVER]
ROUNDING = 1e-5
"""Nats, in float32; times the standard deviation of the logits over the temperature."""


@pytest.fixture(scope="module")
def by_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    with made_by_servers(Path(tmp_path_factory.mktemp("servers"))) as made:
        yield made


@pytest.fixture(params=ENGINES)
def made(request: pytest.FixtureRequest) -> Maker:
    """Makes a sampler of the engine that is tested."""
    found: Maker = {
        "native": lambda: made_native,
        "vllm": lambda: made_vllm,
        "server": lambda: request.getfixturevalue("by_servers"),
    }[request.param]()
    return found


def first_logits(policy: Policy, prompt: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return policy.head(policy.hidden(torch.tensor([prompt]))[0, -1:])[0]  # [V]


# --- log-probs and draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.3, 0.7, 1.0, 2.0])
def test_log_probs_of_the_drawn_tokens_are_those_that_training_computes(made, temperature):
    policy = small_policy()
    requests = requests_of(6, rollouts=4, temperature=temperature)
    completions = list(made(policy).sample(requests))
    assert len(completions) == 24
    assert largest_gap(policy, requests, completions) < ROUNDING * max(1, 1 / temperature) * 4
    others = [replace(request, temperature=temperature * 1.1) for request in requests]
    if temperature > 0.01:  # where every drawn token has all of the probability, whatever is divided by
        assert largest_gap(policy, others, completions) > 100 * ROUNDING


def test_each_request_of_a_call_has_its_own_temperature_and_limit(made):
    policy = small_policy()
    settings = list(itertools.product((0.5, 1.0, 1.7), (3, 7, None)))
    requests = [
        replace(request, temperature=temperature, limit_tokens=limit)
        for request, (temperature, limit) in zip(requests_of(9, rollouts=6), settings, strict=True)
    ]
    requests[1] = replace(requests[1], prompt_ids=requests[0].prompt_ids)  # one prompt in two requests
    completions = list(made(policy).sample(requests))
    assert len(completions) == 54
    assert largest_gap(policy, requests, completions) < 8 * ROUNDING
    for c in completions:
        limit = requests[c.request].limit_tokens or LIMIT
        assert len(c.token_ids) == len(c.logprobs) <= limit
        assert c.stop_reason is (StopReason.END_TOKEN if c.token_ids[-1] == END else StopReason.LIMIT)
        assert c.stop_reason is StopReason.END_TOKEN or len(c.token_ids) == limit
    assert {len(c.token_ids) for c in completions} >= {3, 7, LIMIT}


def test_prompts_of_one_token_and_of_many_are_drawn_for_side_by_side(made):
    policy = small_policy()
    lengths = (1, 2, 16, 17, 33, 200)
    requests = [
        Request(tuple((7 * n + length) % 95 for n in range(length)), (key("a", length), key("b", length)), 1.0)
        for length in lengths
    ]
    completions = list(made(policy).sample(requests))
    assert sorted((c.request, c.index) for c in completions) == list(itertools.product(range(6), range(2)))
    assert largest_gap(policy, requests, completions) < 4 * ROUNDING


def test_tokens_come_as_often_as_their_probability_at_the_temperature_says(made):
    policy, prompt, temperature, number = small_policy(), (7, 3, 11), 0.7, 5000
    request = Request(prompt, tuple(key("frequency", n) for n in range(number)), temperature, limit_tokens=1)
    counts = torch.zeros(96)
    for completion in made(policy).sample([request]):
        counts[completion.token_ids[0]] += 1
    logits = first_logits(policy, prompt)

    def chi_square(at: float) -> float:
        expected = number * (logits / at).softmax(-1)
        common = expected > 5
        return float(((counts - expected)[common] ** 2 / expected[common]).sum())

    # 95 degrees of freedom at most: above 160 has a chance below 1e-4.
    assert chi_square(temperature) < 160 < chi_square(1.2 * temperature)


def test_near_temperature_zero_the_likeliest_token_is_drawn(made):
    policy = small_policy()
    requests = [replace(request, limit_tokens=1) for request in requests_of(20, rollouts=1, temperature=0.01)]
    for completion in made(policy).sample(requests):
        logits = first_logits(policy, requests[completion.request].prompt_ids)
        assert float(logits.max() - logits[completion.token_ids[0]]) < 0.15  # 15 temperatures


# --- who is answered --------------------------------------------------------------------------------------------------


def test_every_key_of_every_request_is_answered_once(made):
    requests = requests_of(7, rollouts=3)
    completions = list(made(small_policy()).sample(requests))
    assert sorted((c.request, c.index) for c in completions) == list(itertools.product(range(7), range(3)))


def test_a_call_without_requests_or_with_one_without_keys_draws_nothing_for_it(made):
    sampler = made(small_policy())
    assert list(sampler.sample([])) == []
    assert list(sampler.sample(iter(()))) == []
    asked = [Request((1, 2), (), 1.0), Request((1, 2), (key("a"),), 1.0), Request((3,), (), 1.0)]
    assert [(c.request, c.index) for c in sampler.sample(asked)] == [(1, 0)]


def test_requests_that_come_one_by_one_are_not_all_taken_at_once(made):
    taken: list[int] = []

    def slowly() -> Iterator[Request]:
        for number, request in enumerate(requests_of(30, rollouts=4)):
            taken.append(number)
            yield request

    completions = made(small_policy()).sample(slowly())
    next(completions)
    assert len(taken) < 30
    rest = list(completions)
    assert len(rest) == 119
    assert taken == list(range(30))


# --- why a completion ends --------------------------------------------------------------------------------------------


def test_end_token_stop_string_and_limit_are_told_apart(made):
    policy, requests = small_policy(), requests_of(8, rollouts=16)
    completions = list(made(policy, stop=True).sample(requests))
    text = tokenizer()
    assert {c.stop_reason for c in completions} == set(StopReason)
    for c in completions:
        decoded = text.decode(c.token_ids)
        assert (c.stop_reason is StopReason.END_TOKEN) == (c.token_ids[-1] == END)
        assert (c.stop_reason is StopReason.STOP_STRING) == decoded.endswith(("7", "ab"))
        assert "7" not in decoded[:-1]
        assert END not in c.token_ids[:-1]
        assert len(c.token_ids) == len(c.logprobs) <= LIMIT
        assert c.stop_reason is not StopReason.LIMIT or len(c.token_ids) == LIMIT
    assert largest_gap(policy, requests, completions) < 4 * ROUNDING  # the token that ends it has its own, too


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Request((), (1,), 1.0), "no tokens"),
        (Request((1,), (1,), 1.0, limit_tokens=0), r"limit_tokens = 0: must be from 1 to sampling\.max_completion_"),
        (Request((1,), (1,), 1.0, limit_tokens=LIMIT + 1), "limit_tokens = 25: must be from 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made, asked, said):
    sampler = made(small_policy())
    with pytest.raises(ValueError, match=said):
        list(sampler.sample([asked]))
    assert len(list(sampler.sample(requests_of(2, rollouts=2)))) == 4  # and nothing of it is left


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_that_change_are_drawn_from_once_they_are_loaded(made):
    requests = requests_of(5, rollouts=4)
    policy, other = small_policy(), small_policy(seed=1)
    sampler = made(policy)
    before = list(sampler.sample(requests))
    assert largest_gap(policy, requests, before) < 1e-4
    sampler.load_weights(other)
    after = list(sampler.sample(requests))  # of the same prompts, which an engine may remember
    assert largest_gap(other, requests, after) < 1e-4
    assert largest_gap(policy, requests, after) > 0.1


def test_nothing_of_a_long_prompt_is_remembered_over_a_change_of_weights(made):
    requests = [Request(tuple(n % 95 for n in range(200)), (key("a"), key("b")), 1.0)]  # more than a block of a cache
    other = small_policy(seed=1)
    sampler = made(small_policy())
    list(sampler.sample(requests))
    sampler.load_weights(other)
    assert largest_gap(other, requests, list(sampler.sample(requests))) < 1e-4


def test_weights_that_are_changed_in_place_are_drawn_from_too(made):
    requests = requests_of(5, rollouts=4)
    policy = small_policy()
    sampler = made(policy)
    list(sampler.sample(requests))
    with torch.no_grad():
        for parameter in base_of(policy.model).parameters():
            parameter *= 1.05
    sampler.load_weights(policy)
    assert largest_gap(policy, requests, list(sampler.sample(requests))) < 1e-4


def test_adapters_that_change_are_drawn_from_once_they_are_loaded(made):
    policy, requests = small_policy(lora={"rank": 4}), requests_of(4, rollouts=3)
    sampler, drawn = made(policy), []
    for seed in (0, 1):
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(seed))
        sampler.load_weights(policy)
        drawn.append(list(sampler.sample(requests)))
        assert largest_gap(policy, requests, drawn[-1]) < 1e-4
    assert largest_gap(policy, requests, drawn[0]) > 1e-2  # they are what decides


# --- one call and the next --------------------------------------------------------------------------------------------


def test_who_stops_in_the_middle_leaves_nothing_behind(made):
    sampler, requests = made(small_policy()), requests_of(10, rollouts=4)
    begun = sampler.sample(requests)
    next(begun)
    begun.close()
    found = list(sampler.sample(requests[:2]))
    assert sorted((c.request, c.index) for c in found) == list(itertools.product(range(2), range(4)))


def test_what_is_raised_between_two_decodes_ends_the_sampling_and_leaves_nothing_behind(made, monkeypatch):
    sampler, requests = made(small_policy()), requests_of(10, rollouts=4)
    monkeypatch.setattr(PROGRESS, "left", 5)
    with pytest.raises(StoppedError):
        list(sampler.sample(requests))
    monkeypatch.setattr(PROGRESS, "left", None)
    found = list(sampler.sample(requests[:2]))
    assert sorted((c.request, c.index) for c in found) == list(itertools.product(range(2), range(4)))


@pytest.mark.parametrize("make", [made_native, pytest.param(made_vllm, marks=needs_vllm)])
def test_the_same_call_in_the_same_process_draws_the_same_tokens_in_the_same_order(make):
    sampler, requests = make(small_policy()), requests_of(6, rollouts=4)
    first, second = ([(c.request, c.index, c.token_ids) for c in sampler.sample(requests)] for _ in range(2))
    assert first == second
    others = [replace(r, keys=tuple(k + 1 for k in r.keys)) for r in requests]
    assert sorted((c.request, c.index, c.token_ids) for c in sampler.sample(others)) != sorted(first)


def test_sampling_leaves_torchs_own_generator_and_threads_alone(made):
    sampler = made(small_policy())
    torch.set_num_threads(1)
    state = torch.get_rng_state()
    list(sampler.sample(requests_of(3, rollouts=2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1
