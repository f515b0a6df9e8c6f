"""Norms that train in fewer passes: the same values and gradients as the modules that they stand for."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from grpo.norms import quicken_norms
from tests.conftest import tiny_policy

WIDTH = 48


def norm(kind: type[nn.Module]) -> nn.Module:
    module = kind(WIDTH, eps=1e-5)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2.0, WIDTH))
    return module


def gradients(module: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """The output, and what arrives at the input and the weight of Σ output · slope."""
    leaf = inputs.clone().requires_grad_()
    output = module(leaf)
    slopes = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * slopes).sum(), [leaf, module.weight])]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("shape", [(1, 7, WIDTH), (2, 3, 5, WIDTH)])
def test_values_and_gradients_are_those_of_the_module(kind, shape):
    module = norm(kind)
    quick = nn.Sequential(copy.deepcopy(module))
    assert quicken_norms(quick) == 1
    assert type(quick[0]) is not kind
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(gradients(quick[0], inputs), gradients(module, inputs), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_without_a_gradient_the_bits_are_the_modules():
    module = norm(LlamaRMSNorm)
    quick = nn.Sequential(copy.deepcopy(module))
    quicken_norms(quick)
    inputs = torch.randn(9, WIDTH)
    with torch.no_grad():
        assert torch.equal(quick(inputs), module(inputs))


def test_what_is_no_such_norm_stays_as_it_is():
    others = nn.ModuleList([nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Embedding(3, WIDTH)])
    assert quicken_norms(others) == 0
    assert type(others[0]) is nn.LayerNorm


def test_half_precision_is_left_to_the_module():
    assert quicken_norms(nn.Sequential(norm(LlamaRMSNorm).to(torch.bfloat16))) == 0


@pytest.mark.parametrize(("name", "number"), [("llama", 5), ("qwen3", 9), ("gemma3", 13), ("gpt2", 0)])
def test_every_norm_of_a_loaded_model_is_found(name, number):
    quick = [m for m in tiny_policy(name).model.modules() if re.fullmatch("Quick.*Norm", type(m).__name__)]
    assert len(quick) == number


def test_names_of_weights_and_a_copy_of_the_model_stay():
    policy = tiny_policy("qwen3")
    assert "model.norm.weight" in dict(policy.model.named_parameters())
    again = copy.deepcopy(policy.model)
    again.model.norm.weight.data.zero_()
    assert float(policy.model.model.norm.weight.detach().abs().sum()) > 0
