"""Attention over a packed row: each rollout sees its prompt and itself, and the prompt is computed once for all.

softmax over two sets of keys is the mean of the softmax over each, weighted by the sums of exponentials; so a row's own
tokens and its prompt are attended to apart and merged by their log-sum-exps, with no key copied. The gradient of each
part is that of attention whose output and log-sum-exp are the merged ones: exp(score − lse) is then the weight in the
whole. Sources: Milakov & Gimelshein (2018), arXiv 1805.02867 (the merge); Dao et al. (2022), arXiv 2205.14135 (the
gradient from output and log-sum-exp); Juravsky et al. (2024), arXiv 2402.05099 (shared prefixes, for inference)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from grpo.packing import Bucket, Layout, Segment

NAME = "grpo_packed"
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias")
"""What some models ask of attention and this one does not have."""

GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Share of a gradient's spread by which a kernel's may differ: above rounding, far below what a wrong one is off by."""

_active: ContextVar[Layout | None] = ContextVar("layout of the row under way", default=None)


@contextmanager
def packed(config: PreTrainedConfig, layout: Layout) -> Iterator[None]:
    """Within, the model of this config takes its input for one row [1, T] of that layout."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    token = _active.set(layout)
    try:
        yield
    finally:
        _active.reset(token)
        config._attn_implementation = before


def _attention_of_packed_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,  # what models hand to every attention function, in transformers' signature
) -> tuple[Tensor, None]:
    """`query` [1, H, T, d], `key` and `value` [1, H', T, d]; returns [1, T, H, d]."""
    unknown = [name for name in UNKNOWN_OPTIONS if options.get(name) is not None]
    if unknown:
        raise ValueError(f"attention with {', '.join(unknown)} cannot be packed")
    layout = _active.get()
    assert layout is not None
    output: Tensor = _PackedAttention.apply(
        *(states[0].transpose(0, 1) for states in (query, key, value)),
        layout,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window,
    )
    return output.unsqueeze(0), None


AttentionInterface.register(NAME, _attention_of_packed_row)


class _PackedAttention(torch.autograd.Function):
    """`query` [T, H, d], `key` and `value` [T, H', d] to [T, H, d]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
    ) -> Tensor:
        window = None if window is None or window >= layout.longest_tokens else window
        output = query.new_empty(*query.shape[:2], value.shape[-1])  # [T, H, d]
        lse = query.new_empty(query.shape[:2], dtype=torch.float32)  # [T, H]
        for bucket in layout.buckets:
            mask = None if window is None else layout.row_mask(bucket, window=window, dtype=query.dtype)
            queries, keys, values = (_rows(states, bucket) for states in (query, key, value))
            # [B, H, L, d], [B, H, L]
            of_rows, of_lse = attend(queries, keys, values, scale=scale, causal=True, mask=mask)
            _put(output, bucket, of_rows.transpose(1, 2))
            _put(lse, bucket, of_lse.transpose(1, 2))
        for prefix in layout.prefixes:
            mask = None if window is None else layout.prefix_mask(prefix, window=window, dtype=query.dtype)
            continuing = slice(prefix.stop, prefix.end)
            queries = _as_batch(query[continuing])
            keys, values = (_as_batch(states[prefix.start : prefix.stop]) for states in (key, value))
            of_prompt, prompt_lse = attend(queries, keys, values, scale=scale, causal=False, mask=mask)
            if mask is not None:  # a window that the prompt has left
                prompt_lse = prompt_lse.masked_fill(mask.amax(dim=-1) == -torch.inf, -torch.inf)
            merged = torch.logaddexp(lse[continuing], prompt_lse[0].T)  # [N, H]
            own_share = (lse[continuing] - merged).exp().unsqueeze(-1)
            prompt_share = (prompt_lse[0].T - merged).exp().unsqueeze(-1)
            output[continuing] = output[continuing] * own_share + of_prompt[0].transpose(0, 1) * prompt_share
            lse[continuing] = merged
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, scale, window = ctx.layout, ctx.scale, ctx.window
        to_query, to_key, to_value = (torch.empty_like(states) for states in (query, key, value))
        for bucket in layout.buckets:
            mask = None if window is None else layout.row_mask(bucket, window=window, dtype=query.dtype)
            # A padding place has no gradient, and the weight exp(score − ∞) = 0.
            of_rows = _rows(gradient, bucket) * bucket.real[:, None, :, None]
            row_lse = lse[bucket.places].masked_fill(~bucket.real.unsqueeze(-1), torch.inf).transpose(1, 2)
            queries, keys, values, outputs = (_rows(states, bucket) for states in (query, key, value, output))
            found = attend_backward(
                of_rows, queries, keys, values, outputs, row_lse, scale=scale, causal=True, mask=mask
            )
            for target, part in zip((to_query, to_key, to_value), found, strict=True):
                _put(target, bucket, part.transpose(1, 2))
        for prefix in layout.prefixes:
            mask = None if window is None else layout.prefix_mask(prefix, window=window, dtype=query.dtype)
            continuing, prompt = slice(prefix.stop, prefix.end), slice(prefix.start, prefix.stop)
            of_query, of_key, of_value = attend_backward(
                _as_batch(gradient[continuing]),
                _as_batch(query[continuing]),
                _as_batch(key[prompt]),
                _as_batch(value[prompt]),
                _as_batch(output[continuing]),
                lse[continuing].T.unsqueeze(0),
                scale=scale,
                causal=False,
                mask=mask,
            )
            to_query[continuing] += of_query[0].transpose(0, 1)
            to_key[prompt] += of_key[0].transpose(0, 1)
            to_value[prompt] += of_value[0].transpose(0, 1)
        return to_query, to_key, to_value, None, None, None


def check_gradient(*, heads: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError where the gradient of a packed row is not that of all its scores, written out.

    Kernels differ by device and type, and by what they take; a wrong gradient would be seen nowhere else."""
    layout = Layout([Segment(3, (4, 2)), Segment(0, (5,))], device=device)
    generator = torch.Generator().manual_seed(0)  # on the CPU: the same numbers for every device
    drawn = [torch.randn(layout.num_tokens, number, size, generator=generator) for number in (heads, *[key_heads] * 2)]
    gradient = torch.randn(layout.num_tokens, heads, size, generator=generator).to(device, dtype)
    inputs = [states.to(device, dtype).requires_grad_() for states in drawn]
    with torch.enable_grad():
        output = _PackedAttention.apply(*inputs, layout, size**-0.5, None)
        found = torch.autograd.grad(output, inputs, gradient)
        query, key, value = (states.detach().float().requires_grad_() for states in inputs)
        keys, values = (states.repeat_interleave(heads // key_heads, dim=1) for states in (key, value))
        scores = torch.einsum("thd,shd->hts", query, keys) * size**-0.5  # [H, T, T]
        weights = scores.masked_fill(~_sees(layout), -torch.inf).softmax(dim=-1)
        whole = torch.einsum("hts,shd->thd", weights, values)
        expected = torch.autograd.grad(whole, [query, key, value], gradient.float())
    for name, one, two in zip(("query", "key", "value"), found, expected, strict=True):
        gap, spread = float((one.float() - two).square().mean().sqrt()), float(two.std())
        if not gap <= GRADIENT_TOLERANCE[dtype] * spread:
            raise ValueError(f"the gradient of a {name} is off by {gap:.2g}, where they spread by {spread:.2g}")


def _sees(layout: Layout) -> Tensor:
    """Which tokens of the row each token sees, [T, T] bool."""
    mask = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    at = 0
    for segment in layout.segments:
        prompt = slice(at, at + segment.prefix_tokens)
        mask[prompt, prompt] = True
        at += segment.prefix_tokens
        for length in segment.row_tokens:
            mask[at : at + length, prompt] = mask[at : at + length, at : at + length] = True
            at += length
    return mask.tril().to(layout.position_ids.device)


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of `query` [B, H, L, d] over `key` and `value` [B, H', K, d], H a multiple of H': [B, H, L, d].

    With it the log-sum-exp of the scores, float32 [B, H, L]. `mask`, of a shape that [B, H, L, K] takes, is added to
    the scores and takes the place of `causal`; what a query reads that it hides every key from says nothing."""
    kernel = _kernel(query, value, mask)
    if kernel == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal and mask is None, attn_mask=mask, scale=scale
        )
        return output, lse
    if kernel == "cuda":
        output, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, False, scale=scale
        )
        return output, lse
    scores = _scores(query, key, scale=scale, causal=causal, mask=mask)  # [B, H, L, K]
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse.unsqueeze(-1)).exp().nan_to_num_(0.0).to(value.dtype)
    return weights @ _for_each_query_head(value, query), lse


def attend_on_gpu(query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `attend` with a mask, by the one kernel of a GPU that takes a mask and gives the log-sum-exps. No gradient."""
    batch, heads, length, _ = query.shape
    mask = mask.expand(batch, heads, length, key.shape[2])
    output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, 0.0, False, scale=scale
    )
    return output, lse.narrow(2, 0, length)  # it comes padded


def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    *,
    scale: float,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, where `output` and `lse` may be those over more keys than are given."""
    kernel = _kernel(query, value, mask)
    lse = lse.contiguous()
    if kernel == "cpu":
        of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient,
            query,
            key,
            value,
            output,
            lse,
            0.0,
            causal and mask is None,
            attn_mask=mask,
            scale=scale,
        )
        return of_query, of_key, of_value
    if kernel == "cuda":
        # No dropout, so that the state of the generator, an argument of the kernel, is never looked at.
        state = torch.zeros(2, dtype=torch.uint64, device=query.device)
        unused = torch.zeros((), dtype=torch.uint64, device=query.device)
        of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient.contiguous(),
            *(query, key, value, output, lse, None, None, query.shape[2], key.shape[2], 0.0, causal, state, unused),
            scale=scale,
        )
        return of_query, of_key, of_value
    weights = (_scores(query, key, scale=scale, causal=causal, mask=mask) - lse.unsqueeze(-1)).exp()  # [B, H, L, K]
    weights = weights.nan_to_num_(0.0)
    # float32 throughout: this is the way for what no kernel takes.
    out_gradient = gradient.float()
    inner = (out_gradient * output.float()).sum(dim=-1, keepdim=True)  # [B, H, L, 1]
    to_scores = weights * (out_gradient @ _for_each_query_head(value, query).float().transpose(-1, -2) - inner) * scale
    to_query = to_scores @ _for_each_query_head(key, query).float()
    of_heads = (key.shape[0], key.shape[1], -1, *key.shape[2:])
    to_key = (to_scores.transpose(-1, -2) @ query.float()).view(of_heads).sum(dim=2)
    to_value = (weights.transpose(-1, -2) @ out_gradient).view(of_heads).sum(dim=2)
    return to_query.to(query.dtype), to_key.to(key.dtype), to_value.to(value.dtype)


def _kernel(query: Tensor, value: Tensor, mask: Tensor | None) -> str:
    """Which of torch's kernels takes these: cpu, cuda, or none."""
    if query.shape[-1] != value.shape[-1]:
        return ""
    if query.device.type == "cpu":
        return "cpu"
    in_half = query.dtype in (torch.bfloat16, torch.float16)
    takes_size = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return "cuda" if query.device.type == "cuda" and in_half and takes_size and mask is None else ""


def _scores(query: Tensor, key: Tensor, *, scale: float, causal: bool, mask: Tensor | None) -> Tensor:
    scores = (query @ _for_each_query_head(key, query).transpose(-1, -2)).float() * scale  # [B, H, L, K]
    if mask is not None:
        return scores + mask
    if not causal:
        return scores
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)


def _for_each_query_head(states: Tensor, query: Tensor) -> Tensor:
    shares = query.shape[1] // states.shape[1]
    return states if shares == 1 else states.repeat_interleave(shares, dim=1)


def _rows(states: Tensor, bucket: Bucket) -> Tensor:
    """[T, H, d] to [B, H, L, d]."""
    num_rows, length = bucket.places.shape
    taken = states.index_select(0, bucket.places.flatten())
    return taken.view(num_rows, length, *states.shape[1:]).transpose(1, 2)


def _put(target: Tensor, bucket: Bucket, rows: Tensor) -> None:
    """[B, L, ...] into the places [T, ...] of its real tokens."""
    target[bucket.places[bucket.real]] = rows[bucket.real]


def _as_batch(states: Tensor) -> Tensor:
    """[N, H, d] to [1, H, N, d]."""
    return states.transpose(0, 1).unsqueeze(0)
