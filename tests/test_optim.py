"""The learning rate by hand, and an update that is guarded, honest about its norm, and moves weights in bfloat16."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from grpo.config import OptimConfig
from grpo.optim import Optimizer, learning_rate
from tests.conftest import tiny_policy


class Weights(nn.Module):
    """A matrix and a bias of one value each."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, value: float = 0.02) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.full((4, 4), value, dtype=dtype))
        self.bias = nn.Parameter(torch.full((4,), value, dtype=dtype))


def optimizer_of(weights: nn.Module, **fields: object) -> Optimizer:
    return Optimizer(weights, OptimConfig.model_validate({"learning_rate": 0.1} | fields))


def add_gradient(optimizer: Optimizer, weights: nn.Module, value: float | Sequence[Tensor]) -> None:
    """Let the optimizer see a loss whose gradient is `value`, of every weight or weight by weight."""
    parameters = list(weights.parameters())
    gradients = [torch.full_like(p, value) for p in parameters] if isinstance(value, float) else value
    products = [(p * gradient).sum() for p, gradient in zip(parameters, gradients, strict=True) if p.requires_grad]
    optimizer.backward(torch.stack(products).sum())


def copies(weights: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in weights.parameters()]


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# --- learning rate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Two steps of warm-up, then five from all to a fifth of it, which the last step has.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.5, 1.0, 1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2]),
    ],
)
def test_warm_up_and_schedule_by_hand(schedule, expected):
    final_fraction = 0.1 if schedule == "constant" else 0.2  # constant reads none, and takes the default alone
    config = OptimConfig(learning_rate=3.0, warmup_steps=2, schedule=schedule, final_fraction=final_fraction)
    found = [learning_rate(step, num_steps=7, config=config) for step in range(7)]
    assert found == pytest.approx([3.0 * share for share in expected])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_ends_at_its_final_fraction_and_stays_there(schedule):
    config = OptimConfig(learning_rate=1.0, schedule=schedule, final_fraction=0.1)
    assert learning_rate(0, num_steps=50, config=config) == 1.0
    assert [learning_rate(step, num_steps=50, config=config) for step in (49, 50, 99)] == pytest.approx([0.1] * 3)


def test_a_run_of_one_step_or_all_warm_up_has_a_rate():
    assert learning_rate(0, num_steps=1, config=OptimConfig(learning_rate=1.0, schedule="cosine")) == 1.0
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, schedule="linear")
    assert [learning_rate(step, num_steps=4, config=config) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


# --- one update ---------------------------------------------------------------------------------------------------


def test_the_first_step_of_adam_moves_every_weight_by_the_rate_it_is_given():
    weights = Weights()
    optimizer = optimizer_of(weights, learning_rate=123.0)
    add_gradient(optimizer, weights, 0.1)
    optimizer.update(rate=0.01)
    for parameter in weights.parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 0.01), rtol=1e-5, atol=0)
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_that_is_returned_is_that_of_the_gradient_before_clipping(dtype):
    weights = Weights(dtype=dtype)
    optimizer = optimizer_of(weights, max_grad_norm=0.5)
    add_gradient(optimizer, weights, 3.0)
    assert optimizer.update(rate=0.0) == pytest.approx(3.0 * math.sqrt(20))


def test_a_large_gradient_counts_as_one_of_the_largest_norm():
    """Two steps tell: Adam's first hides any factor, its second sees how large the first was."""
    found = []
    for first in (1000.0, 1.0 / math.sqrt(20)):
        weights = Weights()
        optimizer = optimizer_of(weights, max_grad_norm=1.0)
        for value in (first, 0.01):
            add_gradient(optimizer, weights, value)
            optimizer.update(rate=0.01)
        found.append(weights.matrix.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_steps_nothing_and_leaves_no_trace(value, dtype):
    weights, untouched = Weights(dtype=dtype), Weights(dtype=dtype)
    optimizers = [optimizer_of(w, weight_decay=0.1) for w in (weights, untouched)]
    for step in range(4):
        if step == 2:
            gradients = [torch.full_like(parameter, 0.5) for parameter in weights.parameters()]
            gradients[0][1, 2] = value
            add_gradient(optimizers[0], weights, gradients)
            before = copies(weights)
            assert not math.isfinite(optimizers[0].update(rate=0.01))
            assert same(copies(weights), before)
            assert weights.matrix.grad is None
        for w, optimizer in zip((weights, untouched), optimizers, strict=True):
            add_gradient(optimizer, w, 0.5 - step)
            optimizer.update(rate=0.01)
    assert same(copies(weights), copies(untouched))


def test_weights_without_a_gradient_stay_where_they_are():
    weights = Weights()
    optimizer = optimizer_of(weights, weight_decay=0.5)
    weights.matrix.grad = torch.ones_like(weights.matrix)
    optimizer.update(rate=0.01)
    assert torch.equal(weights.bias.detach(), Weights().bias.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_matrices_decay(dtype):
    weights = Weights(dtype=dtype, value=1.0)
    optimizer = optimizer_of(weights, weight_decay=0.5)
    add_gradient(optimizer, weights, 0.0)
    optimizer.update(rate=0.5)
    assert weights.matrix.unique().tolist() == [0.75]  # 1 − 0.5 · 0.5
    assert weights.bias.unique().tolist() == [1.0]


def test_norms_and_biases_of_a_real_policy_do_not_decay_and_its_matrices_do():
    policy = tiny_policy("gpt2")
    before = dict(zip(dict(policy.named_parameters()), copies(policy), strict=True))
    optimizer = optimizer_of(policy, weight_decay=0.5)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.update(rate=0.1)
    for name, parameter in policy.named_parameters():
        factor = 1.0 if "bias" in name or ".ln_" in name else 0.95
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_frozen_weights_are_not_trained():
    weights = Weights()
    weights.matrix.requires_grad_(False)
    optimizer = optimizer_of(weights, weight_decay=0.5)
    weights.bias.grad = torch.ones_like(weights.bias)
    optimizer.update(rate=0.01)
    assert torch.equal(weights.matrix.detach(), Weights().matrix.detach())
    assert not torch.equal(weights.bias.detach(), Weights().bias.detach())


# --- bfloat16 -----------------------------------------------------------------------------------------------------


def test_bfloat16_weights_move_at_a_rate_of_1e_6_over_200_steps():
    """Adam moves a float32 weight of 0.02 by 200 · 1e-6 = 2e-4; bfloat16 numbers there are 1.2e-4 apart."""
    weights = Weights(dtype=torch.bfloat16)
    optimizer = optimizer_of(weights)
    start = float(weights.matrix.detach()[0, 0])
    for _ in range(200):
        add_gradient(optimizer, weights, 0.01)
        optimizer.update(rate=1e-6)
    assert weights.matrix.dtype == torch.bfloat16
    assert start - float(weights.matrix.detach()[0, 0]) == pytest.approx(2e-4, abs=0.7e-4)


def test_torchs_adamw_on_bfloat16_weights_would_not_move_them():
    weights = Weights(dtype=torch.bfloat16)
    before = copies(weights)
    plain = torch.optim.AdamW(weights.parameters(), lr=1e-6, weight_decay=0.0)
    for _ in range(200):
        for parameter in weights.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        plain.step()
    assert same(copies(weights), before)


def test_splitting_an_update_into_hundreds_of_micro_batches_loses_no_gradient_of_bfloat16_weights():
    """A sum in bfloat16 would be up to 5 % off: past 256 it moves in steps of 2, and the parts are about 1."""
    generator = torch.Generator().manual_seed(0)
    parts = (1 + 0.3 * torch.randn(400, 4, 4, generator=generator)).to(torch.bfloat16)
    weights = Weights(dtype=torch.bfloat16)
    optimizer = optimizer_of(weights)
    for part in parts:
        add_gradient(optimizer, weights, [part, torch.zeros(4, dtype=torch.bfloat16)])
        assert weights.matrix.grad is None
    (found, _) = (master.grad for master in optimizer.state_dict()["masters"])
    torch.testing.assert_close(found.double(), parts.double().sum(dim=0), rtol=1e-5, atol=0)
    plain = torch.zeros(4, 4, dtype=torch.bfloat16)
    for part in parts:
        plain += part
    assert (plain.double() / parts.double().sum(dim=0) - 1).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_optimizer_of_the_same_weights_gets_its_own_gradients(dtype):
    weights = Weights(dtype=dtype)
    optimizers = [optimizer_of(weights) for _ in range(2)]
    for optimizer in (*optimizers, optimizers[0]):
        add_gradient(optimizer, weights, 3.0)
        assert optimizer.update(rate=0.0) == pytest.approx(3.0 * math.sqrt(20))


# --- what survives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_continues_bit_for_bit(dtype):
    def step(weights: Weights, optimizer: Optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        gradients = [torch.randn(p.shape, generator=generator).to(dtype) for p in weights.parameters()]
        add_gradient(optimizer, weights, gradients)
        optimizer.update(rate=1e-3 / (number + 1))

    whole = Weights(dtype=dtype)
    optimizer = optimizer_of(whole, weight_decay=0.1)
    for number in range(5):
        step(whole, optimizer, number)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    for number in range(5, 10):
        step(whole, optimizer, number)

    resumed = Weights(dtype=dtype, value=9.0)
    second = optimizer_of(resumed, weight_decay=0.1)
    resumed.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    for number in range(5, 10):
        step(resumed, second, number)
    assert same(copies(whole), copies(resumed))
    assert same(optimizer.state_dict()["masters"], second.state_dict()["masters"])
    assert len(second.state_dict()["masters"]) == (2 if dtype == torch.bfloat16 else 0)


def test_forgetting_the_float32_copies_would_be_seen():
    weights = Weights(dtype=torch.bfloat16)
    optimizer = optimizer_of(weights)
    for _ in range(30):
        add_gradient(optimizer, weights, 0.01)
        optimizer.update(rate=1e-6)
    (master, _) = optimizer.state_dict()["masters"]
    assert not torch.equal(master, weights.matrix.detach().float())
