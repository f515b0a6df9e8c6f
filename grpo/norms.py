"""Root-mean-square norms in fewer passes over memory, where a CPU trains in float32.

y = x · r · w with r = 1 / √(mean(x²) + ε) (Zhang and Sennrich 2019, arXiv 1910.07467). Written out step by step, as
architectures do, it is five passes forward and some ten backward; here the sums are products of rows, and the backward
is its formula. Without a gradient a module computes as it did, so that what the sampler draws from does not change by
a bit."""

from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5
SHIFTS = (0.0, 1.0)
"""What is added to the weight: Gemma's norms hold the weight less 1."""


def quicken_norms(model: nn.Module) -> int:
    """Let every norm of `model` whose outputs say that it is a root-mean-square norm train faster; returns how many.

    What a module computes is asked of the module: its class gets a subclass, and parameters and names stay."""
    kinds: dict[type[nn.Module], type[nn.Module] | None] = {}
    number = 0
    for module in model.modules():
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = _quick_kind(module)
        quick = kinds[kind]
        if quick is not None:
            module.__class__ = quick
            number += 1
    return number


def _quick_kind(module: nn.Module) -> type[nn.Module] | None:
    """A subclass of the module's class that trains faster; None where it is no such norm."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    found = [vars(module)[name] for name in ("variance_epsilon", "eps") if isinstance(vars(module).get(name), float)]
    if names != ["weight"] or len(found) != 1 or next(module.children(), None) is not None:
        return None
    weight, epsilon = module.weight, found[0]
    if not isinstance(weight, Tensor) or weight.dim() != 1 or weight.device.type != "cpu":
        return None
    inputs = torch.linspace(-2, 3, 5 * len(weight)).view(5, -1)  # [5, D]
    with torch.no_grad():
        expected = module(inputs.to(weight.dtype)).float()
        for shift in SHIFTS:
            gap = (_Norm.apply(inputs, weight.float(), epsilon, shift) - expected).abs().max()
            if weight.dtype == torch.float32 and gap <= TOLERANCE * expected.abs().max():
                return _subclass(type(module), epsilon=epsilon, shift=shift)
    return None


def _subclass(kind: type[nn.Module], *, epsilon: float, shift: float) -> type[nn.Module]:
    def forward(self: nn.Module, hidden: Tensor) -> Tensor:
        weight: Any = self.weight
        trains = torch.is_grad_enabled() and hidden.dtype == weight.dtype == torch.float32
        if not trains or hidden.device.type != "cpu":
            slow: Tensor = kind.forward(self, hidden)
            return slow
        flat = hidden.reshape(-1, hidden.shape[-1])  # [N, D]
        normed: Tensor = _Norm.apply(flat, weight, epsilon, shift)
        return normed.view(hidden.shape)

    return type(f"Quick{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})


class _Norm(torch.autograd.Function):
    """x [N, D] and w [D] to y [N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, shift: float) -> Tensor:
        scale = weight if shift == 0 else weight + shift  # [D]
        inverse = torch.rsqrt(torch.einsum("nd,nd->n", x, x) / x.shape[1] + epsilon).unsqueeze(1)  # [N, 1]
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse = ctx.saved_tensors
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = inverse.squeeze(1) @ (gradient * x)  # [D]
        # With g = gradient · w: dL/dx = r g − x r³ (g · x) / D
        scaled = gradient * scale  # [N, D]
        along = torch.einsum("nd,nd->n", scaled, x).unsqueeze(1) * inverse.pow(3) / x.shape[1]  # [N, 1]
        return scaled.mul_(inverse).addcmul_(x, along, value=-1), to_weight, None, None
