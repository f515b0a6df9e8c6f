"""Linear layers whose large products are oneDNN's, where a CPU trains in float32.

torch multiplies float32 matrices by MKL, which on some processors takes a tenth more time over the same product. For
each number of tokens oneDNN builds a kernel and keeps it: half a millisecond, and memory between large tensors, which
leaves the heap in pieces. Hence only numbers of tokens that come again (`grpo.packing.STEP_TOKENS`) and large products;
the others stay with MKL, and so does the gradient of the weights, in which it is the faster one. Without a gradient a
layer computes as it did, so that draws do not change by a bit."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grpo.packing import STEP_TOKENS

LEAST_PRODUCT = 2**27
"""Multiplications from which a product is worth a kernel of its own: about 3 ms of a core."""


def quicken_linears(model: nn.Module) -> int:
    """Let every plain linear layer of `model` train faster; returns how many. Parameters and names stay."""
    if not torch.backends.mkldnn.is_available():
        return 0
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = QuickLinear
    return len(layers)


class QuickLinear(nn.Linear):
    """A linear layer that trains by oneDNN where its product is large, and of a size that comes again."""

    def forward(self, hidden: Tensor) -> Tensor:
        """As `nn.Linear.forward`."""
        weight = self.weight
        trains = torch.is_grad_enabled() and hidden.dtype == weight.dtype == torch.float32
        is_large = hidden.numel() * self.out_features >= LEAST_PRODUCT
        comes_again = hidden.numel() // self.in_features % STEP_TOKENS == 0
        on_cpu = hidden.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not (trains and is_large and comes_again and on_cpu):
            return super().forward(hidden)
        flat = hidden.reshape(-1, self.in_features)  # [T, K]
        product: Tensor = _Linear.apply(flat, weight, self.bias)
        return product.view(*hidden.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    """x [T, K], w [N, K] and b [N] or None to [T, N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(gradient.contiguous(), weight.T) if to_x else None,
            gradient.T @ x if to_weight else None,
            gradient.sum(dim=0) if to_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
