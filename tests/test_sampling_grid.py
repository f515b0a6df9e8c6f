"""Log-probs at other temperatures, limits of single requests, and temperatures mixed in one batch."""

import random
from dataclasses import replace

import pytest
import torch

from grpo.batch import TrainedRollout, micro_batches
from grpo.sampling.protocol import Request
from grpo.types import StopReason
from tests.conftest import tiny_policy
from tests.test_sampling import END, drawn, requests_of, rollouts_of, sampler_of

GRID = (0.7, 1.0, 1.6)


def test_a_grid_changes_neither_a_token_nor_a_bit_of_its_log_prob(policy):
    requests = requests_of(8, rollouts=5, temperature=0.9)
    plain = drawn(sampler_of(policy), requests)
    found = drawn(sampler_of(policy), [replace(request, grid=GRID) for request in requests])
    assert {k: replace(c, grid_logprobs=None) for k, c in found.items()} == plain
    assert all(c.grid_logprobs is None for c in plain.values())


def test_log_probs_of_the_grid_are_those_of_the_model_at_each_temperature():
    policy = tiny_policy("qwen3")
    requests = [replace(request, grid=GRID) for request in requests_of(5, rollouts=3, temperature=1.0)]
    for completion in sampler_of(policy).sample(requests):
        prompt = requests[completion.request].prompt_ids
        ids = torch.tensor([prompt + completion.token_ids])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()  # [A, V]
        targets = ids[0, len(prompt) :].unsqueeze(1)
        expected = [(logits / t).log_softmax(dim=-1).gather(1, targets).sum().item() for t in GRID]
        assert completion.grid_logprobs == pytest.approx(expected, abs=2e-4)
        assert completion.grid_logprobs[1] == pytest.approx(sum(completion.logprobs), abs=1e-4)


@pytest.mark.parametrize("max_rows", [8, 64])
def test_they_do_not_depend_on_what_is_drawn_beside_and_only_who_asked_has_them(max_rows):
    policy = tiny_policy("llama")
    requests = [replace(request, grid=GRID) for request in requests_of(12, rollouts=6)]
    expected = drawn(sampler_of(policy), requests)
    shuffled = [
        replace(r, keys=(k,), grid=GRID if place % 3 else ()) for place, r in enumerate(requests) for k in r.keys
    ]
    random.Random(1).shuffle(shuffled)
    found = drawn(sampler_of(policy, max_rows=max_rows), shuffled)
    asked = {key for request in shuffled if request.grid for key in request.keys}
    for key, completion in found.items():
        assert completion.token_ids == expected[key].token_ids
        assert completion.grid_logprobs == (expected[key].grid_logprobs if key in asked else None)


@pytest.mark.parametrize("restriction", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}])
def test_a_grid_is_refused_where_tokens_are_left_out(restriction):
    request = Request((1, 2), (1,), 1.0, grid=GRID)
    with pytest.raises(ValueError, match="switch them off"):
        list(sampler_of(tiny_policy("llama"), **restriction).sample([request]))


def test_two_grids_of_unlike_length_are_refused():
    requests = [Request((1, 2), (1,), 1.0, grid=GRID), Request((1, 2), (2,), 1.0, grid=(1.0,))]
    with pytest.raises(ValueError, match="give all as many"):
        list(sampler_of(tiny_policy("llama")).sample(requests))


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [8, 64])
def test_rows_of_different_limits_share_a_batch_and_draw_what_they_draw_alone(max_rows):
    policy = tiny_policy("llama")
    requests = [replace(r, limit_tokens=(3, 7, None)[n % 3]) for n, r in enumerate(requests_of(9, rollouts=4))]
    together = drawn(sampler_of(policy, max_rows=max_rows), requests)
    for request in requests:
        limit = request.limit_tokens or 24
        for key, completion in drawn(sampler_of(policy), [replace(request, limit_tokens=None)]).items():
            cut = together[key]
            assert cut.token_ids == completion.token_ids[:limit]
            assert cut.logprobs == completion.logprobs[:limit]
            ended = END in cut.token_ids
            assert cut.stop_reason is (StopReason.END_TOKEN if ended else StopReason.LIMIT)
            assert ended or len(cut.token_ids) == limit


# --- temperatures mixed in one batch ----------------------------------------------------------------------------------


def test_a_batch_of_mixed_temperatures_is_scored_as_each_rollout_alone_by_the_model(policy):
    temperatures = (0.5, 1.0, 1.7)
    requests = [replace(r, temperature=temperatures[n % 3]) for n, r in enumerate(requests_of(6, rollouts=2))]
    rollouts = rollouts_of(requests, list(sampler_of(policy).sample(requests)))
    trained = [TrainedRollout(rollout=r, advantage=1.0, group_tokens=r.num_actions, group_rollouts=1) for r in rollouts]
    (batch,) = micro_batches(
        [trained], tokens_per_micro_batch=10_000, limit_tokens=24, aggregation="token", device=torch.device("cpu")
    )
    assert sorted(set(batch.temperature.tolist())) == pytest.approx(temperatures)
    with torch.no_grad():
        found = policy(batch)[1]  # [A]
    for row, of_row in enumerate(batch.rollouts):
        rollout = of_row.rollout
        ids = torch.tensor([rollout.token_ids])
        first = len(rollout.token_ids) - rollout.num_actions
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, first - 1 : -1].double() / rollout.temperature  # [A, V]
        alone = logits.log_softmax(dim=-1).gather(1, ids[0, first:].unsqueeze(1)).squeeze(1)
        own = found[batch.rollout_index == row].double()
        assert own.tolist() == pytest.approx(
            alone.tolist(), abs=5e-5 / rollout.temperature * max(1.0, float(logits.std()))
        )
