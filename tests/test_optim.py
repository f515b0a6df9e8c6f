"""The learning rate by hand, and an update that is guarded, honest about its norm, and moves weights in bfloat16."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grpo import checkpoint
from grpo.config import OptimConfig
from grpo.errors import CheckpointError
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


def same_state(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether two optimizer states hold the same tensors under the same names, bit for bit."""
    flat = [dict(_leaves(state)) for state in (one, two)]
    return flat[0].keys() == flat[1].keys() and all(torch.equal(t, flat[1][place]) for place, t in flat[0].items())


def _leaves(state: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{place}/{name}")
        else:
            yield f"{place}/{name}", torch.as_tensor(value)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_without_a_gradient_is_updated_as_one_whose_gradient_is_zero(dtype):
    weights, given_zeros = Weights(dtype=dtype), Weights(dtype=dtype)
    optimizers = [optimizer_of(w, weight_decay=0.5) for w in (weights, given_zeros)]
    for of_bias in (1.0, 0.0):
        add_gradient(optimizers[1], given_zeros, [torch.zeros(4, 4), torch.full((4,), of_bias)])
        optimizers[0].backward((weights.bias * of_bias).sum())
        for optimizer in optimizers:
            optimizer.update(rate=0.1)
    assert same(copies(weights), copies(given_zeros))
    assert same_state(*(optimizer.state_dict() for optimizer in optimizers))
    assert not torch.equal(weights.matrix.detach(), Weights(dtype=dtype).matrix.detach())  # it decayed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_that_the_update_takes_and_can_be_summed_in_place(dtype):
    weights, doubled = Weights(dtype=dtype), Weights(dtype=dtype)
    optimizers = [optimizer_of(w) for w in (weights, doubled)]
    optimizers[0].backward((weights.matrix * 3.0).sum())
    optimizers[1].backward((doubled.matrix * 1.5).sum())
    for _, gradient in optimizers[1].gradients():
        gradient += gradient.clone()
    assert [(name, gradient.unique().tolist()) for name, gradient in optimizers[1].gradients()] == [
        ("matrix", [3.0]),
        ("bias", [0.0]),
    ]
    assert {gradient.dtype for _, gradient in optimizers[1].gradients()} == {torch.float32}
    norms = [optimizer.update(rate=0.1) for optimizer in optimizers]
    assert norms == [pytest.approx(3.0 * 4)] * 2
    assert same(copies(weights), copies(doubled))


def test_names_are_the_models_own_and_a_tied_weight_is_named_once():
    model = tiny_policy("gemma3").model
    named = [name for name, _ in Optimizer(model, OptimConfig()).gradients()]
    assert named == [name for name in checkpoint.weights_of(model) if name in dict(model.named_parameters())]
    assert sum("embed_tokens" in name or "lm_head" in name for name in named) == 1


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
    found = dict(optimizer.gradients())["matrix"]
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
    assert same_state(optimizer.state_dict(), second.state_dict())
    assert set(second.state_dict()["masters"]) == ({"matrix", "bias"} if dtype == torch.bfloat16 else set())


def test_forgetting_the_float32_copies_would_be_seen():
    weights = Weights(dtype=torch.bfloat16)
    optimizer = optimizer_of(weights)
    for _ in range(30):
        add_gradient(optimizer, weights, 0.01)
        optimizer.update(rate=1e-6)
    assert not torch.equal(optimizer.state_dict()["masters"]["matrix"], weights.matrix.detach().float())


def test_the_state_is_a_snapshot_that_training_on_does_not_change():
    weights = Weights(dtype=torch.bfloat16)
    optimizer = optimizer_of(weights)
    for _ in range(2):
        add_gradient(optimizer, weights, 0.5)
        optimizer.update(rate=0.1)
        state = optimizer.state_dict()
        held = copy.deepcopy(state)
    add_gradient(optimizer, weights, 0.25)
    optimizer.update(rate=0.1)
    assert same_state(state, held)
    assert not same_state(state, optimizer.state_dict())
    assert {name: sorted(of) for name, of in state["moments"].items()} == {
        "matrix": ["exp_avg", "exp_avg_sq", "step"],
        "bias": ["exp_avg", "exp_avg_sq", "step"],
    }


def test_a_state_knows_no_order():
    weights, again = Weights(dtype=torch.bfloat16), Weights(dtype=torch.bfloat16)
    optimizer, second = optimizer_of(weights), optimizer_of(again)
    add_gradient(optimizer, weights, 0.5)
    optimizer.update(rate=0.1)
    state = optimizer.state_dict()
    second.load_state_dict({part: dict(reversed(of.items())) for part, of in reversed(state.items())})
    assert same_state(second.state_dict(), state)


def test_a_state_from_before_the_first_update_has_no_moments_and_takes_them_away():
    weights = Weights()
    optimizer = optimizer_of(weights)
    fresh = optimizer.state_dict()
    assert fresh == {"masters": {}, "moments": {}}
    add_gradient(optimizer, weights, 0.5)
    optimizer.update(rate=0.1)
    optimizer.load_state_dict(fresh)
    assert optimizer.state_dict() == fresh


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state["masters"].pop("bias"), "float32 copies: bias differs (1 in all)"),
        (lambda state: state["moments"].pop("matrix"), "moments: matrix differs (1 in all)"),
        (lambda state: state["moments"].update(other={}), "moments: other differs (1 in all)"),
        (lambda state: state["moments"]["bias"].pop("step"), "moments of bias: step differs (1 in all)"),
        (lambda state: state.update(adamw=state.pop("moments")), "parts: adamw differs (2 in all)"),
    ],
    ids=["copy missing", "moments missing", "moments too many", "a moment missing", "another part"],
)
def test_a_state_of_other_names_is_refused_by_the_first_that_differs_and_changes_nothing(change, expected):
    weights = Weights(dtype=torch.bfloat16)
    optimizer = optimizer_of(weights)
    add_gradient(optimizer, weights, 0.5)
    optimizer.update(rate=0.1)
    before = optimizer.state_dict()
    changed = copy.deepcopy(before)
    for tensor in (*changed["masters"].values(), *changed["moments"]["matrix"].values()):
        tensor += 1
    change(changed)
    with pytest.raises(CheckpointError) as error:
        optimizer.load_state_dict(changed)
    assert expected in str(error.value)
    assert same_state(optimizer.state_dict(), before)
