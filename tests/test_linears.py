"""Linear layers that train by oneDNN's products: values and gradients of the layers that they stand for."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from grpo import linears
from grpo.linears import QuickLinear, quicken_linears
from grpo.sampling.fused import _affine
from tests.conftest import tiny_policy

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(autouse=True)
def whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products of every size are oneDNN's; how many inputs they had."""
    monkeypatch.setattr(linears, "LEAST_PRODUCT", 0)
    monkeypatch.setattr(linears, "STEP_TOKENS", 1)
    rows: list[int] = []
    product = linears._product
    monkeypatch.setattr(linears, "_product", lambda x, *others: rows.append(len(x)) or product(x, *others))
    return rows


def twins(*, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias)
    quick = nn.Sequential(copy.deepcopy(plain))
    assert quicken_linears(quick) == 1
    return plain, quick[0]


def gradients(layer: nn.Linear, inputs: torch.Tensor, slopes: torch.Tensor) -> list[torch.Tensor]:
    """The output, and what arrives at the input and the weights of Σ output · slope."""
    leaf = inputs.clone().requires_grad_()
    output = layer(leaf)
    return [output.detach(), *torch.autograd.grad((output * slopes).sum(), [leaf, *layer.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 300), (2, 3, 5)])
def test_values_and_gradients_are_those_of_the_layer(bias, shape, whatever_its_size):
    plain, quick = twins(bias=bias)
    inputs = torch.randn(*shape, 48, generator=torch.Generator().manual_seed(1))
    # Slopes of one row for all: a gradient that lies in memory once.
    for slopes in (torch.randn(*shape, 80, generator=torch.Generator().manual_seed(2)), torch.linspace(-1, 1, 80)):
        for found, expected in zip(gradients(quick, inputs, slopes), gradients(plain, inputs, slopes), strict=True):
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert len(whatever_its_size) == 4


def test_inputs_and_gradients_of_any_strides_are_taken():
    plain, quick = twins(bias=True)
    inputs = torch.randn(48, 9, generator=torch.Generator().manual_seed(1)).T
    for layer_output in (lambda layer, x: layer(x).sum(), lambda layer, x: layer(x).T.flatten().cumsum(0).sum()):
        found, expected = (torch.autograd.grad(layer_output(x, inputs), list(x.parameters())) for x in (quick, plain))
        assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(found, expected, strict=True))


def test_without_a_gradient_the_bits_are_the_layers(whatever_its_size):
    plain, quick = twins(bias=True)
    inputs = torch.randn(33, 48)
    with torch.no_grad():
        assert torch.equal(quick(inputs), plain(inputs))
    assert whatever_its_size == []


def test_small_products_and_other_types_stay_with_the_layer(monkeypatch, whatever_its_size):
    _, quick = twins(bias=True)
    monkeypatch.setattr(linears, "LEAST_PRODUCT", 10 * 48 * 80)
    quick(torch.randn(9, 48))
    assert whatever_its_size == []
    quick(torch.randn(10, 48))
    assert whatever_its_size == [10]
    monkeypatch.setattr(linears, "STEP_TOKENS", 4)
    quick(torch.randn(11, 48))  # a number of tokens that may never come again
    assert whatever_its_size == [10]
    quick.bfloat16()(torch.randn(12, 48, dtype=torch.bfloat16))
    assert whatever_its_size == [10]


def test_under_autocast_the_layer_computes_as_it_did(whatever_its_size):
    _, quick = twins(bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert quick(torch.randn(10, 48)).dtype == torch.bfloat16
    assert whatever_its_size == []


def test_a_frozen_layer_keeps_no_input():
    _, quick = twins(bias=False)
    quick.requires_grad_(False)
    kept = []
    inputs = torch.randn(12, 48, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        quick(inputs)
    assert kept == [(80, 48)]


def test_a_second_derivative_is_refused():
    _, quick = twins(bias=False)
    inputs = torch.randn(3, 48, requires_grad=True)
    (first,) = torch.autograd.grad((quick(inputs) ** 2).sum(), [inputs], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_frozen_weights_beneath_adapters_get_no_gradient_and_the_adapters_theirs(whatever_its_size):
    plain, quick = (get_peft_model(nn.Sequential(x), LoraConfig(r=4, target_modules=["0"])) for x in twins(bias=False))
    inputs = torch.randn(12, 48, requires_grad=True)
    found, expected = [], []
    for model, grads in ((quick, found), (plain, expected)):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora" in name:
                    weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        grads += torch.autograd.grad((model(inputs) ** 2).sum(), [inputs, *trained])
    assert len(found) == 3
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-3) for pair in zip(found, expected, strict=True))
    assert whatever_its_size


@pytest.mark.parametrize(("name", "number"), [("llama", 15), ("qwen3", 15), ("gpt2", 1)])
def test_every_linear_layer_of_a_loaded_model_is_one_and_is_read_as_one(name, number):
    found = [m for m in tiny_policy(name).model.modules() if isinstance(m, nn.Linear)]
    assert [type(layer) for layer in found] == [QuickLinear] * number
    assert _affine(found[0]).weight is found[0].weight
