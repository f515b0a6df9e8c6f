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
from grpo.errors import CheckpointError, ConfigError
from grpo.optim import FIRST_LOSS_SCALE, UPDATES_TO_DOUBLE, LossScale, Optimizer, learning_rate, muon_names
from tests.conftest import ARCHITECTURES, SIZES, tiny_policy
from tests.runs import small_run_config


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


# --- muon ---------------------------------------------------------------------------------------------------------


def linear_update(model: nn.Module, optimizer: Optimizer, *, seed: int, rate: float) -> float:
    """One update on the gradient, drawn from `seed`, of a loss that is linear in every trained weight; its norm."""
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    slopes = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in trained]
    optimizer.backward(torch.stack([(p * slope).float().sum() for p, slope in zip(trained, slopes, strict=True)]).sum())
    norm = math.sqrt(sum(float(slope.double().square().sum()) for slope in slopes))
    found = optimizer.update(rate=rate)
    assert found == pytest.approx(norm, rel=1e-5)
    return found


def update_rms(model: nn.Module, *, kind: str) -> dict[str, float]:
    """Root mean square, over a rate of 1, of the 60th update of each of the model's trained weights."""
    optimizer = optimizer_of(model, kind=kind)
    for seed in range(59):
        linear_update(model, optimizer, seed=seed, rate=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    linear_update(model, optimizer, seed=59, rate=1e-3)
    return {
        name: float((p.detach() - before[name]).square().mean().sqrt()) / 1e-3
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize(("name", "lora"), [("qwen3", None), ("gpt2", None), ("qwen3", {"rank": 4})])
def test_an_update_of_muon_is_as_large_as_one_of_adamw_on_the_same_gradients(name, lora):
    """0.2 for singular values of 1; five steps of Newton-Schulz leave them between 0.7 and 1.2, and mostly below 1.

    AdamW's, on gradients that are independent, is the root of (1 - 0.9) / (1 + 0.9), or 0.229."""
    muon, adamw = (update_rms(tiny_policy(name, lora=lora).model, kind=kind) for kind in ("muon", "adamw"))
    model = tiny_policy(name, lora=lora).model
    names = muon_names(model)
    assert len({tuple(p.shape) for n, p in model.named_parameters() if n in names}) >= 3
    for weight in names:
        assert 0.2 * 0.75 < muon[weight] < 0.2 * 1.1, weight
        assert 0.229 * 0.75 < adamw[weight] < 0.229 * 1.25, weight  # 128 numbers are few
    for weight in muon.keys() - names:
        assert muon[weight] == pytest.approx(adamw[weight], rel=1e-3), weight


@pytest.mark.parametrize("tied", [False, True])
def test_muon_steps_the_matrices_of_the_blocks_and_adamw_embeddings_head_norms_and_biases(tied):
    architecture = ARCHITECTURES["llama"] | SIZES | {"attention_bias": True, "tie_word_embeddings": tied}
    model = tiny_policy("llama", architecture=architecture).model
    optimizer = optimizer_of(model, kind="muon")
    linear_update(model, optimizer, seed=0, rate=1e-3)
    moments = optimizer.state_dict()["moments"]
    by_muon = {name for name, of_weight in moments.items() if set(of_weight) == {"momentum_buffer"}}
    assert by_muon == {name for name in moments if ".layers." in name and "proj.weight" in name}
    assert len(by_muon) == 2 * 7
    by_adamw = {name for name, of_weight in moments.items() if set(of_weight) == {"step", "exp_avg", "exp_avg_sq"}}
    assert by_adamw == moments.keys() - by_muon
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"} <= by_adamw
    assert ("lm_head.weight" in by_adamw) != tied


def test_experts_in_one_tensor_of_three_dimensions_are_adamws_and_the_router_is_muons():
    fields = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "model_type": "qwen3_moe"}
    model = tiny_policy("qwen3", architecture=SIZES | {"head_dim": 16} | fields).model
    experts = {name for name, p in model.named_parameters() if p.ndim == 3}
    assert experts
    assert not experts & muon_names(model)
    assert any("gate.weight" in name for name in muon_names(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_norm_is_that_of_the_raw_gradient_over_all_weights_and_clips_it_before_either_steps(kind, dtype):
    """linear_update compares it with a sum by hand. Ten times the gradient, clipped, is the same update twice over."""
    found = []
    for factor in (1.0, 10.0):
        model = tiny_policy("qwen3", dtype=dtype).model
        optimizer = optimizer_of(model, kind=kind, max_grad_norm=0.25)
        norm = linear_update(model, optimizer, seed=0, rate=1e-3)
        optimizer.backward(torch.stack([(p.float() * factor).sum() for p in model.parameters()]).sum())
        num_weights = sum(p.numel() for p in model.parameters())
        assert optimizer.update(rate=1e-3) == pytest.approx(factor * math.sqrt(num_weights), rel=1e-4)
        found.append(copies(model))
    assert norm > 10  # so both are clipped
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_decay_of_muons_weights_is_that_of_adamws_matrices():
    model = tiny_policy("gpt2").model
    before = copies(model)
    optimizer = optimizer_of(model, kind="muon", weight_decay=0.5)
    optimizer.update(rate=0.1)  # no gradient: decay alone
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        factor = 1.0 if "bias" in name or ".ln_" in name else 0.95
        torch.testing.assert_close(parameter.detach(), old * factor, msg=name)


@pytest.mark.parametrize("momentum", [0.5, 0.95])
def test_muons_momentum_is_the_configured_one(momentum):
    model = tiny_policy("llama").model
    optimizer = optimizer_of(model, kind="muon", muon_momentum=momentum, max_grad_norm=1e9)
    name = "model.layers.0.mlp.up_proj.weight"
    expected = torch.zeros(64, 32)
    for slope in (1.0, -2.0):
        optimizer.backward((dict(model.named_parameters())[name] * slope).sum())
        optimizer.update(rate=1e-3)
        expected = momentum * expected + (1 - momentum) * slope
    torch.testing.assert_close(optimizer.state_dict()["moments"][name]["momentum_buffer"], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_state_of_muon_continues_bit_for_bit(dtype):
    whole, resumed = (tiny_policy("qwen3", seed=seed, dtype=dtype).model for seed in (0, 1))
    optimizer, second = (optimizer_of(model, kind="muon", weight_decay=0.1) for model in (whole, resumed))
    for seed in range(3):
        linear_update(whole, optimizer, seed=seed, rate=1e-3)
    checkpoint.load_weights(resumed, checkpoint.weights_of(whole))
    second.load_state_dict(optimizer.state_dict())
    for seed in range(3, 6):
        linear_update(whole, optimizer, seed=seed, rate=1e-3)
        linear_update(resumed, second, seed=seed, rate=1e-3)
    assert same(copies(whole), copies(resumed))
    assert same_state(optimizer.state_dict(), second.state_dict())


def test_the_state_of_adamw_is_refused_by_muon():
    model = tiny_policy("llama").model
    adamw = optimizer_of(model)
    linear_update(model, adamw, seed=0, rate=1e-3)
    with pytest.raises(CheckpointError, match=r"moments of model.layers.0.\S+: exp_avg differs \(4 in all\)"):
        optimizer_of(model, kind="muon").load_state_dict(adamw.state_dict())


def test_a_torch_without_muon_is_refused_with_the_version_that_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"optim.kind = 'muon': torch \S+ has no Muon; install torch 2.9 or later"):
        optimizer_of(Weights(), kind="muon")
    optimizer_of(Weights())


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_muon_is_refused_where_deepspeed_would_step_it(tmp_path, strategy):
    changes = {"optim.kind": "muon", "distributed.strategy": strategy}
    with pytest.raises(ValueError, match=f"optim.kind = 'muon' and distributed.strategy = '{strategy}': .*ddp or kind"):
        small_run_config(tmp_path, **changes)
    small_run_config(tmp_path, **changes | {"distributed.strategy": "ddp"})


# --- float16 ------------------------------------------------------------------------------------------------------


def scale_of(optimizer: Optimizer) -> float:
    return optimizer.metrics()["optim/loss_scale"]


def test_the_scale_halves_at_a_gradient_that_is_not_finite_and_doubles_after_two_thousand_that_are():
    scale = LossScale()
    assert scale.value == FIRST_LOSS_SCALE == 2.0**16
    assert scale.adjust(finite=False)
    assert scale.value == 2.0**15
    for _ in range(UPDATES_TO_DOUBLE - 1):
        assert not scale.adjust(finite=True)
    assert scale.adjust(finite=False)  # in which the count begins again
    found = []
    for _ in range(UPDATES_TO_DOUBLE):
        found.append(scale.value)
        scale.adjust(finite=True)
    assert set(found) == {2.0**14}
    assert scale.value == 2.0**15


def test_the_scale_ends_at_one_where_a_gradient_that_is_not_finite_is_the_runs_own():
    scale = LossScale()
    assert [scale.adjust(finite=False) for _ in range(18)] == [True] * 16 + [False] * 2
    assert scale.value == 1.0


def test_only_float16_weights_have_a_scale_frozen_ones_included():
    assert [optimizer_of(Weights(dtype=d)).metrics() for d in (torch.float32, torch.bfloat16)] == [{}, {}]
    weights = Weights(dtype=torch.float16)
    assert optimizer_of(weights).metrics() == {"optim/loss_scale": 2.0**16}
    weights.bias = nn.Parameter(weights.bias.detach().float())
    weights.matrix.requires_grad_(False)
    assert optimizer_of(weights).metrics() == {"optim/loss_scale": 2.0**16}


def test_a_gradient_below_float16_reaches_the_copy_and_without_the_scale_it_would_be_zero():
    weights = Weights(dtype=torch.float16)
    optimizer = optimizer_of(weights, max_grad_norm=1e9)
    slope = 2.0**-27  # a quarter of float16's smallest number above 0
    (weights.matrix.float() * slope).sum().backward()
    assert weights.matrix.grad is not None
    assert weights.matrix.grad.abs().max() == 0
    weights.matrix.grad = None
    for _ in range(3):
        optimizer.backward((weights.matrix.float() * slope).sum())
        assert weights.matrix.grad is None
    assert [(name, g.dtype, g.unique().tolist()) for name, g in optimizer.gradients()] == [
        ("matrix", torch.float32, [3 * slope]),
        ("bias", torch.float32, [0.0]),
    ]
    assert optimizer.update(rate=0.0) == pytest.approx(3 * slope * 4)


def test_a_scale_that_is_too_high_is_lowered_until_it_fits_and_the_update_is_then_as_without_one():
    weights, plain = Weights(dtype=torch.float16), Weights(dtype=torch.float16)
    plain.float()  # the same values, and no scale
    optimizers = [optimizer_of(w, max_grad_norm=1.0) for w in (weights, plain)]
    before = copies(weights)
    found = []
    for _ in range(3):  # 3 * 2**14 = 49152 is the first below 65504
        add_gradient(optimizers[0], weights, 3.0)
        norm = optimizers[0].update(rate=0.01)
        found.append((math.isfinite(norm), optimizers[0].lowered_scale, scale_of(optimizers[0])))
        if not math.isfinite(norm):
            assert same(copies(weights), before)
    assert found == [(False, True, 2.0**15), (False, True, 2.0**14), (True, False, 2.0**14)]
    assert norm == pytest.approx(3.0 * math.sqrt(20))
    add_gradient(optimizers[1], plain, 3.0)
    assert optimizers[1].update(rate=0.01) == norm
    assert not optimizers[1].lowered_scale
    masters = optimizers[0].state_dict()["masters"]
    assert same([masters["matrix"], masters["bias"]], copies(plain))
    assert same(copies(weights), [tensor.half() for tensor in copies(plain)])


def test_a_gradient_that_no_scale_makes_finite_is_the_runs_own_fault_once_the_scale_is_at_its_end():
    weights = Weights(dtype=torch.float16)
    optimizer = optimizer_of(weights)
    found = []
    for _ in range(18):
        add_gradient(optimizer, weights, math.nan)
        assert not math.isfinite(optimizer.update(rate=0.01))
        found.append(optimizer.lowered_scale)
    assert found == [True] * 16 + [False] * 2
    assert same(copies(weights), copies(Weights(dtype=torch.float16)))


def test_float32_adapters_beside_float16_weights_get_their_gradients_without_the_scale():
    weights = Weights(dtype=torch.float16)
    weights.bias = nn.Parameter(weights.bias.detach().float())
    weights.matrix.requires_grad_(False)
    optimizer = optimizer_of(weights)
    for slope in (1.0, 2.0):
        optimizer.backward(((weights.bias.half() * slope).float() * 1e-4).sum())
    ((name, gradient),) = optimizer.gradients()
    assert (name, gradient.dtype) == ("bias", torch.float32)
    torch.testing.assert_close(gradient, torch.full((4,), 3e-4), rtol=1e-3, atol=0)
    optimizer.update(rate=0.01)
    (weights.bias * 1.0).sum().backward()  # a backward that is not the optimizer's is left as it is
    assert weights.bias.grad is not None
    assert weights.bias.grad.tolist() == [1.0] * 4


def test_a_loaded_state_of_float16_continues_with_its_copies_and_its_scale():
    whole, resumed = Weights(dtype=torch.float16), Weights(dtype=torch.float16, value=9.0)
    optimizer, second = optimizer_of(whole), optimizer_of(resumed)
    for _ in range(4):  # the scale has fallen to 2**14 then, and been good for two updates
        add_gradient(optimizer, whole, 3.0)
        optimizer.update(rate=1e-5)
    state = optimizer.state_dict()
    assert state["loss_scale"] == {"value": 2.0**14, "good_updates": 2}
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    second.load_state_dict(state)
    for weights, o in ((whole, optimizer), (resumed, second)):
        add_gradient(o, weights, 0.5)
        o.update(rate=1e-5)
    assert same(copies(whole), copies(resumed))
    assert same_state(optimizer.state_dict(), second.state_dict())
    with pytest.raises(CheckpointError, match=r"parts: loss_scale differs \(1 in all\)"):
        optimizer_of(Weights()).load_state_dict(state)
