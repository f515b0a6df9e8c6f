"""A decode with few calls: for models so small that calls, norms and the reading of keys take longer than products.

Each block's weights are copied into four products: queries, keys and values in one, gate and up in one, norms before
them folded in, adapters merged. A row has one query for each head, so attention is two batched products over keys that
lie densely. The same arithmetic as the model's own layers up to rounding, for the families in `FAMILIES`; every other
model, and one that is large or lies on a GPU, is decoded by its own layers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from grpo.linears import QuickLinear
from grpo.model import base_of
from grpo.policy import Policy
from grpo.sampling.cache import SlotLayer
from grpo.sampling.decoder import Inputs
from grpo.sampling.prefixes import PrefixBank, with_prompts

MOST_WEIGHTS = 2**26
"""Of all blocks: copies take 256 MiB at most. Above it products take nearly all of the time, whoever calls them."""
FEW_SHARES = 3
"""Query heads that read one key head, up to which a product over positions adds them up in one order, however many."""
ORDERED_TOKENS = {True: 1024, False: 192}
"""Positions of which that holds, where there are few shares and where not: longer products are cut."""


@dataclass(frozen=True, slots=True)
class Family:
    """What sets a family's block apart: its norms by name, None where it has none there."""

    before_attention: str | None = None
    after_attention: str | None = None
    before_mlp: str | None = None
    after_mlp: str | None = None
    norms_heads: bool = False  # queries and keys are normed, each head by itself
    norm_offset: float = 0.0  # added to a norm's weight
    angles_by_type: bool = False  # each type of layer has rotary angles of its own
    rotates: Callable[[Any], bool] = lambda attention: True


_LLAMA = Family(before_attention="input_layernorm", before_mlp="post_attention_layernorm")
_PLACE = "transformers.models."
FAMILIES = {
    _PLACE + "llama.modeling_llama.LlamaDecoderLayer": _LLAMA,
    _PLACE + "mistral.modeling_mistral.MistralDecoderLayer": _LLAMA,
    _PLACE + "qwen2.modeling_qwen2.Qwen2DecoderLayer": _LLAMA,
    _PLACE + "qwen3.modeling_qwen3.Qwen3DecoderLayer": replace(_LLAMA, norms_heads=True),
    _PLACE + "smollm3.modeling_smollm3.SmolLM3DecoderLayer": replace(
        _LLAMA, rotates=lambda attention: bool(attention.use_rope)
    ),
    _PLACE + "exaone4.modeling_exaone4.Exaone4DecoderLayer": Family(
        after_attention="post_attention_layernorm",
        after_mlp="post_feedforward_layernorm",
        norms_heads=True,
        # In a model with windows, layers that see everything have no positions.
        rotates=lambda attention: attention.sliding_window is None or attention.is_sliding,
    ),
    _PLACE + "gemma3.modeling_gemma3.Gemma3DecoderLayer": Family(
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
        norms_heads=True,
        norm_offset=1.0,
        angles_by_type=True,
    ),
}
"""By the class of a block: the families whose arithmetic this module knows."""


def why_not_fused(policy: Policy) -> str:
    """Why this policy is decoded by its model's own layers; empty where it need not be."""
    blocks = policy.blocks
    kinds = {_name(block) for block in blocks}
    foreign = sorted(kinds - set(FAMILIES))
    num_weights = sum(weight.numel() for weight in blocks.parameters())
    if policy.device.type != "cpu":
        return f"on {policy.device.type}, copies of the weights would take its memory"
    if policy.dtype != torch.float32:
        return f"in {str(policy.dtype).removeprefix('torch.')}, fused products would be rounded otherwise"
    if type(policy) is not Policy:
        return "its weights are gathered for sampling alone"
    if foreign or len(kinds) != 1:
        return f"{', '.join(name.rpartition('.')[2] for name in foreign or sorted(kinds))} is not one of its families"
    if num_weights > MOST_WEIGHTS:
        return f"{num_weights:,} weights in blocks, and more than {MOST_WEIGHTS:,} are not copied"
    return ""


class FusedDecoder:
    """Decodes from copies of the blocks' weights, made when they are loaded. As `grpo.sampling.decoder.Decoder`."""

    what = "fused products, from a copy of the blocks' weights"

    def __init__(self, policy: Policy) -> None:
        """Of a policy that `why_not_fused` has nothing to say on."""
        self.load_weights(policy)

    @torch.no_grad()
    def load_weights(self, policy: Policy) -> None:
        """Copy this policy's weights as they stand."""
        base: Any = base_of(policy.model)
        backbone, blocks = base.base_model, policy.blocks
        config = base.config.get_text_config()
        self._family = FAMILIES[_name(blocks[0])]
        self._policy = policy
        self._embed, self._rotary = backbone.embed_tokens, backbone.rotary_emb
        self._types: list[str] = getattr(config, "layer_types", None) or [""] * len(blocks)  # of each block
        self._eps = float(config.rms_norm_eps)
        self._last_norm = _after_normed(backbone.norm, self._family)  # [D]
        self._blocks = [_Block(block, self._family, eps=self._eps) for block in blocks]
        half = self._blocks[0].head_size // 2
        # Turned by half a head, the first half of it is what the model subtracts.
        self._sign = torch.tensor([-1.0] * half + [1.0] * half)  # [d]

    def hidden(self, inputs: Inputs) -> Tensor:
        """Final hidden states [R, D]."""
        steering, banks = self._policy.steering, inputs.cache.banks
        hidden: Tensor = self._embed(inputs.token_ids)  # [R, D]
        shared = self._shared(inputs, hidden)
        for number, (block, slots) in enumerate(zip(self._blocks, inputs.cache.slots, strict=True)):
            hidden = block(hidden, slots, shared[self._types[number]], banks=banks, layer=number)
            if steering is not None and inputs.steer_at is not None:
                hidden = steering.moved(hidden, block=number, at=inputs.steer_at)
        return _normed(hidden, eps=self._eps) * self._last_norm

    def _shared(self, inputs: Inputs, hidden: Tensor) -> dict[str, "_Shared"]:
        """What layers share, by their type."""
        found: dict[str, _Shared] = {}
        cos = sin = hidden  # of the type before, where there is one
        for kind in dict.fromkeys(self._types):
            if not found or self._family.angles_by_type:
                options = (kind,) if self._family.angles_by_type else ()
                cos, sin = self._rotary(hidden, inputs.position_ids.unsqueeze(1), *options)  # [R, 1, d]
                sin = sin * self._sign
            mask = inputs.masks if isinstance(inputs.masks, Tensor) else inputs.masks[kind]
            mask = mask.expand(-1, self._blocks[0].key_heads, -1, -1).flatten(0, 1)
            found[kind] = _Shared(cos=cos, sin=sin, mask=mask)
        return found


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the layers of one type share in a decode."""

    cos: Tensor  # [R, 1, d]
    sin: Tensor  # its first half negated
    mask: Tensor  # [R · H', 1, W], added to the scores of a row and key head


class _Block:
    """One block's weights, copied: H query heads and H' key heads of size d."""

    def __init__(self, block: Any, family: Family, *, eps: float) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.head_size = size = int(attention.head_dim)
        self._eps = eps
        self._act = mlp.act_fn
        self._rotates = family.rotates(attention)

        def norm(name: str | None) -> Tensor | None:
            return None if name is None else _after_normed(getattr(block, name), family)  # [D]

        self._norms_attention, self._norms_mlp = family.before_attention is not None, family.before_mlp is not None
        self._after_attention, self._after_mlp = norm(family.after_attention), norm(family.after_mlp)
        query, key, value = (_affine(layer) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        self._heads, self.key_heads = query.weight.shape[0] // size, key.weight.shape[0] // size
        scale = float(attention.scaling)
        self._head_weights: Tensor | None = None
        if family.norms_heads:
            of_query, of_key = (_after_normed(layer, family) for layer in (attention.q_norm, attention.k_norm))
            each = [of_query * scale] * self._heads + [of_key] * self.key_heads
            self._head_weights = torch.stack(each)  # [H + H', d]
        else:
            query = query.scaled(scale)
        self._project = _Product([query, key, value], norm=norm(family.before_attention))
        self._output = _Product([_affine(attention.o_proj)], norm=None)
        gate, up = _affine(mlp.gate_proj), _affine(mlp.up_proj)
        self._gate_up = _Product([gate, up], norm=norm(family.before_mlp))
        self._down = _Product([_affine(mlp.down_proj)], norm=None)

    def __call__(
        self, hidden: Tensor, slots: SlotLayer, shared: _Shared, *, banks: list[PrefixBank], layer: int
    ) -> Tensor:
        """The block's output [R, D] of its input."""
        eps = self._eps
        inner = _normed(hidden, eps=eps) if self._norms_attention else hidden
        read = self._attended(inner, slots, shared, banks=banks, layer=layer)
        hidden = _added(hidden, self._output, read, norm=self._after_attention, eps=eps)
        inner = _normed(hidden, eps=eps) if self._norms_mlp else hidden
        gate, up = self._gate_up(inner).chunk(2, dim=1)  # [R, F] each
        inner = self._act(gate).mul_(up)
        return _added(hidden, self._down, inner, norm=self._after_mlp, eps=eps)

    def _attended(
        self, inner: Tensor, slots: SlotLayer, shared: _Shared, *, banks: list[PrefixBank], layer: int
    ) -> Tensor:
        rows, heads, key_heads, size = inner.shape[0], self._heads, self.key_heads, self.head_size
        projected = self._project(inner).view(rows, -1, size)  # [R, H + 2 H', d]
        turned, value = projected.split((heads + key_heads, key_heads), dim=1)
        if self._head_weights is not None:
            turned = _normed(turned, eps=self._eps).mul_(self._head_weights)
        if self._rotates:
            turned = (turned * shared.cos).addcmul_(turned.roll(size // 2, -1), shared.sin)
        query, key = turned.split((heads, key_heads), dim=1)
        keys, values = (states.flatten(0, 1) for states in slots.update(key, value))  # [R · H', W, d]
        query = query.reshape(rows * key_heads, -1, size)  # [R · H', S, d]
        scores = torch.baddbmm(shared.mask, query, keys.transpose(1, 2))  # [R · H', S, W]
        read = _read(scores.softmax(dim=-1), values)  # [R · H', S, d]
        if banks:
            by_row = (rows, key_heads, -1, size)
            query, read = query.view(by_row), read.view(by_row)
            total = scores.logsumexp(dim=-1).view(rows, key_heads, -1)
            read = with_prompts(banks, query, read, total, layer=layer, scale=1.0)
        return read.reshape(rows, -1)  # [R, H · d]


def _read(weights: Tensor, values: Tensor) -> Tensor:
    """Sums [B, S, d] of `values` [B, W, d] by `weights` [B, S, W], whose order W does not change."""
    step = ORDERED_TOKENS[weights.shape[1] <= FEW_SHARES]
    if values.shape[1] <= step:
        return torch.bmm(weights, values)
    read = torch.bmm(weights[:, :, :step], values[:, :step])
    for start in range(step, values.shape[1], step):
        part = slice(start, start + step)
        read.baddbmm_(weights[:, :, part], values[:, part])
    return read


def _added(hidden: Tensor, product: "_Product", x: Tensor, *, norm: Tensor | None, eps: float) -> Tensor:
    """`hidden` [R, D] and a product of `x`, normed where the family does so."""
    if norm is None:
        return product(x, plus=hidden)
    return torch.addcmul(hidden, _normed(product(x), eps=eps), norm)


def _normed(x: Tensor, *, eps: float) -> Tensor:
    """x / √(Σ x² + N · eps) of `x` [..., N]: its root mean square norm over √N, which the weights that follow hold."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * norm.mul_(norm).add_(eps * x.shape[-1]).rsqrt_()


def _after_normed(layer: nn.Module, family: Family) -> Tensor:
    """What a norm multiplies `_normed` by, [N]."""
    of_norm: Any = layer
    weight: Tensor = of_norm.weight + family.norm_offset
    return weight * len(weight) ** 0.5


@dataclass(frozen=True, slots=True)
class _Affine:
    """A linear map: `weight` [N, K] and `bias` [N]."""

    weight: Tensor
    bias: Tensor | None

    def scaled(self, scale: float) -> "_Affine":
        """Of outputs times `scale`."""
        return _Affine(self.weight * scale, None if self.bias is None else self.bias * scale)


def _affine(layer: nn.Module) -> _Affine:
    """What a linear layer computes, adapters and all."""
    if isinstance(layer, nn.Linear) and type(layer) in (nn.Linear, QuickLinear):
        return _Affine(layer.weight, layer.bias)
    # Of any other layer, by what it makes of unit vectors: products with ones and zeros are exact.
    of_layer: Any = layer
    weight = of_layer.weight
    zero = weight.new_zeros(1, weight.shape[1])
    bias = of_layer(zero)  # [1, N]
    unit = of_layer(torch.eye(weight.shape[1], dtype=weight.dtype))  # [K, N]
    return _Affine((unit - bias).T, bias[0])


class _Product:
    """Several linear maps of one input in one product, a norm's weight folded in."""

    def __init__(self, maps: list[_Affine], *, norm: Tensor | None) -> None:
        weight = torch.cat([of_map.weight for of_map in maps])  # [N, K]
        if norm is not None:
            weight = weight * norm
        biases = [
            of_map.bias if of_map.bias is not None else of_map.weight.new_zeros(len(of_map.weight)) for of_map in maps
        ]
        self._bias = torch.cat(biases) if any(of_map.bias is not None for of_map in maps) else None
        self._by_onednn = torch.backends.mkldnn.is_available()
        # In the layout that oneDNN reads: with few rows, reading the weights is what a product costs.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._by_onednn else weight

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """[R, N] of `x` [R, K], and `plus` [R, N]."""
        product: Tensor
        if not self._by_onednn:
            product = nn.functional.linear(x, self._weight, self._bias)
            return product if plus is None else product.add_(plus)
        onednn = torch.ops.mkldnn._linear_pointwise
        if plus is None:
            product = onednn(x, self._weight, self._bias, "none", [], "")
        else:
            product = onednn.binary(x, plus, self._weight, self._bias, "add")
        return product


def _name(block: nn.Module) -> str:
    kind = type(block)
    return f"{kind.__module__}.{kind.__qualname__}"
