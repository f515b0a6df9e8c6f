"""Attention over a packed row is attention over the sequences in it, one by one: values and gradients, on every way."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from grpo import attention
from grpo.attention import attend, attend_backward
from grpo.batch import micro_batches
from grpo.config import LossConfig
from grpo.packing import Layout, Segment
from grpo.policy import Policy, Wanted
from grpo.steering import Steering
from tests.conftest import ARCHITECTURES, SIZES, tiny_policy
from tests.test_batch import gradients_of, largest_difference, loss_of, random_groups, tolerance

CPU = torch.device("cpu")
SEGMENTS = (Segment(5, (3, 7, 4)), Segment(0, (6, 2)), Segment(9, (1,)), Segment(12, (8, 8, 30, 2)), Segment(4, (2,)))
HEADS, KEY_HEADS, SIZE = 4, 2, 16
SCALE = 0.3


def sees(*, window: int | None) -> Tensor:
    """Which of the row's tokens each token sees, [T, T], by the meaning of a segment."""
    layout = Layout(SEGMENTS, device=CPU)
    mask = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    at = 0
    for segment in SEGMENTS:
        prompt = slice(at, at + segment.prefix_tokens)
        mask[prompt, prompt] = True
        at += segment.prefix_tokens
        for length in segment.row_tokens:
            own = slice(at, at + length)
            mask[own, prompt] = mask[own, own] = True
            at += length
    behind = layout.position_ids.unsqueeze(1) - layout.position_ids
    return mask & (behind >= 0) & (behind < (window or layout.num_tokens))


def states(*, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_tokens = sum(segment.num_tokens for segment in SEGMENTS)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    made = [torch.randn(num_tokens, number, SIZE, generator=generator).to(dtype) for number in heads]
    return [tensor.requires_grad_() for tensor in made]


def dense(query: Tensor, key: Tensor, value: Tensor, *, window: int | None) -> Tensor:
    """[T, H, d], by a product of all with all."""
    keys, values = (t.repeat_interleave(HEADS // KEY_HEADS, dim=1).double() for t in (key, value))
    scores = torch.einsum("thd,shd->hts", query.double(), keys) * SCALE
    weights = scores.masked_fill(~sees(window=window), -math.inf).softmax(dim=-1)
    return torch.einsum("hts,shd->thd", weights, values)


@pytest.mark.parametrize("kernel", ["torch's", "products"])
@pytest.mark.parametrize("window", [None, 4, 9, 1000])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 0.05)])
def test_a_packed_row_is_attended_to_as_its_sequences(monkeypatch, kernel, window, dtype, bound):
    if kernel == "products":
        monkeypatch.setattr(attention, "_kernel", lambda query, value, mask: "")
    inputs = states(dtype=dtype)
    layout = Layout(SEGMENTS, device=CPU)
    found = attention._PackedAttention.apply(*inputs, layout, SCALE, window)
    expected = dense(*inputs, window=window)
    assert_close(found.double(), expected, rtol=0, atol=bound)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    of_found = torch.autograd.grad(found, inputs, gradient.to(dtype))
    of_expected = torch.autograd.grad(expected, inputs, gradient.double())
    for one, two in zip(of_found, of_expected, strict=True):
        assert_close(one, two, rtol=0, atol=2 * bound)


def test_a_token_that_is_seen_from_another_rollout_would_be_noticed():
    query, key, value = (t.detach() for t in states(dtype=torch.float32))
    layout = Layout(SEGMENTS, device=CPU)
    before = attention._PackedAttention.apply(query, key, value, layout, SCALE, None)
    changed = value.clone()
    changed[5 + 3] += 1.0  # the first token of the second rollout of the first segment
    moved = (attention._PackedAttention.apply(query, key, changed, layout, SCALE, None) - before).abs().amax((1, 2))
    assert moved.nonzero().flatten().tolist() == list(range(8, 15))  # that rollout alone


@pytest.mark.parametrize("causal", [True, False])
def test_products_and_kernel_agree_on_output_log_sum_exp_and_gradient(monkeypatch, causal):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, HEADS, 6, SIZE, generator=generator)
    key, value = (torch.randn(2, KEY_HEADS, 6, SIZE, generator=generator) for _ in range(2))
    gradient = torch.randn(query.shape, generator=generator)
    found = []
    for way in ("cpu", ""):
        monkeypatch.setattr(attention, "_kernel", lambda query, value, mask, way=way: way)
        output, lse = attend(query, key, value, scale=SCALE, causal=causal, mask=None)
        # Over more keys than are given: the weights sum to less than one.
        parts = attend_backward(gradient, query, key, value, output, lse + 0.5, scale=SCALE, causal=causal, mask=None)
        found.append((output, lse, *parts))
    for one, two in zip(*found, strict=True):
        assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_kernel_with_a_wrong_gradient_is_noticed_at_the_start(monkeypatch, dtype):
    sizes = {"heads": 4, "key_heads": 2, "size": 16, "dtype": dtype, "device": CPU}
    attention.check_gradient(**sizes)
    original = attention.attend_backward

    def scaled(*arguments: Tensor, scale: float, **options: object) -> tuple[Tensor, Tensor, Tensor]:
        return original(*arguments, scale=1.1 * scale, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "attend_backward", scaled)
    with pytest.raises(ValueError, match="the gradient of a query is off by"):
        attention.check_gradient(**sizes)
    policy = tiny_policy("llama")
    assert (policy.packs, "gradient of a query" in policy.why_not_packed) == (False, True)


# --- through models ---------------------------------------------------------------------------------------------------


def gradient(policy: Policy, *, packs: bool) -> dict[str, Tensor]:
    """Of an update of random groups, packed with shared prompts, or padded."""
    groups = random_groups(policy)
    policy.packs = packs
    policy.zero_grad(set_to_none=True)
    for batch in micro_batches(
        groups, tokens_per_micro_batch=120, limit_tokens=30, aggregation="group", device=CPU, shares_prompts=packs
    ):
        assert bool(batch.layout.prefixes) == packs
        loss, *_ = policy(batch, Wanted(loss_of=loss_of(batch, LossConfig())))
        loss.backward()
    return gradients_of(policy)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packing_and_sharing_prompts_change_no_gradient(name):
    policy = tiny_policy(name)
    assert (policy.packs, policy.why_not_packed) == (True, "")
    padded = gradient(policy, packs=False)
    assert largest_difference(padded, gradient(policy, packs=True)) < tolerance(policy)


def test_a_model_whose_attention_is_not_known_is_padded():
    policy = tiny_policy("gemma3", architecture=SIZES | {"model_type": "gemma2", "head_dim": 16}, attention="eager")
    assert not policy.packs
    assert "softcap" in policy.why_not_packed


@pytest.mark.parametrize("is_steered", [False, True])
@pytest.mark.parametrize("packs", [True, False])
def test_what_is_computed_again_is_what_was_computed(is_steered, packs):
    """Activation checkpointing runs the blocks once more in the backward pass, when the forward is over."""
    found = []
    for checkpointing in (False, True):
        policy = tiny_policy("qwen3", activation_checkpointing=checkpointing)
        if is_steered:
            vector = torch.randn(policy.hidden_size, generator=torch.Generator().manual_seed(0))
            policy.steer(Steering(vectors={0: vector}, coefficient=2.0))
        found.append(gradient(policy, packs=packs))
    assert largest_difference(*found) < 1e-6


def test_steering_reaches_only_positions_that_predict_an_action_in_a_packed_row():
    policy = tiny_policy("llama")
    policy.steer(Steering(vectors={1: torch.ones(policy.hidden_size)}, coefficient=0.5))
    padded = gradient(policy, packs=False)
    assert largest_difference(padded, gradient(policy, packs=True)) < tolerance(policy)
    policy.steer(None)
    assert largest_difference(padded, gradient(policy, packs=True)) > 1e-3


def test_packed_attention_is_put_away_after_a_forward_that_fails():
    policy = tiny_policy("llama")
    layout = Layout([Segment(2, (3, 3))], device=CPU)
    with pytest.raises(IndexError):
        policy.hidden(torch.zeros(1, 7, dtype=torch.long), layout=layout)  # one token less than the layout has
    assert policy._text_config._attn_implementation == "sdpa"
