"""Prompts stored once for all the rows that continue them, and the attention that reads them.

A row attends to its prompt and to its own slot apart, and the two are merged by their log-sum-exps: what softmax over
both together gives. A prompt of G rows is read and stored once, not G times, and its scores are one matrix product."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grpo.attention import attend, attend_on_gpu
from grpo.model import base_of
from grpo.policy import Policy

SHARED_TOKENS = 96
"""Least length of a prompt, less its last token, that is stored apart. The rule looks at nothing else, so that a row
is computed alike in any group."""
QUERIES_STEP = 8
"""Queries of a prompt are padded to a multiple of it: with a few left over, a product takes another code path."""
LANES = 32
ATTENTION_NAME = "grpo_shared_prefixes"


class PrefixBank:
    """Prompts of one padded length P, in places: keys and values [S, heads, P, size] a layer. Rows sit at a place."""

    def __init__(self, prefix: DynamicCache, *, padded: int, dtype: torch.dtype) -> None:
        """Empty, for prompts like those of `prefix`."""
        self._padded, self._dtype = padded, dtype
        keys, values = zip(*map(states_of, prefix.layers), strict=True)
        self._keys = [_empty(states, padded) for states in keys]  # L times [S, heads, P, size]
        self._values = [_empty(states, padded) for states in values]
        self._lengths: list[int] = []  # of each place's prompt
        self._requests: list[int | None] = []  # that each place's prompt is of; None: the place is free
        self._mask: Tensor  # [S, 1, 1, P], added to the scores
        self._reading: Tensor  # [S · M], the row of each seat, any row at an empty one
        self._seats: Tensor  # [R], the seat of each row, the first one for rows that have none
        self._outside: Tensor  # [R, 1, 1], −inf for rows that have none, else 0

    def add(self, prefix: DynamicCache, *, source: int, length: int, request: int) -> int:
        """Keep the prompt in row `source` of a prefill; returns its place. One that is here already is not copied."""
        if request in self._requests:
            return self._requests.index(request)
        if None not in self._requests:
            self._make_room()
        place = self._requests.index(None)
        self._requests[place], self._lengths[place] = request, length
        for layer, kept in zip(prefix.layers, zip(self._keys, self._values, strict=True), strict=True):
            for states, filled in zip(kept, states_of(layer), strict=True):
                states[place, :, :length] = filled[source, :, :length]
        return place

    def seat(self, places: Sequence[int | None], *, shares: int) -> None:
        """Say where each row sits, [R]; places without a row are freed. `shares` query heads read one key head."""
        device = self._keys[0].device
        by_place: list[list[int]] = [[] for _ in self._requests]
        for row, place in enumerate(places):
            if place is not None:
                by_place[place].append(row)
        self._requests = [r if rows else None for r, rows in zip(self._requests, by_place, strict=True)]
        used = 1 + max((place for place, rows in enumerate(by_place) if rows), default=0)
        step = QUERIES_STEP // gcd(QUERIES_STEP, shares)
        seats = -(-max(1, *map(len, by_place)) // step) * step  # M
        reading, sits = [0] * (used * seats), [0] * len(places)
        for place, rows in enumerate(by_place[:used]):
            for number, row in enumerate(rows):
                sits[row] = place * seats + number
                reading[sits[row]] = row
        self._reading, self._seats = torch.tensor(reading, device=device), torch.tensor(sits, device=device)
        outside = torch.tensor([place is None for place in places], device=device)
        self._outside = torch.zeros(len(places), device=device).masked_fill(outside, -torch.inf)[:, None, None]
        lengths = torch.tensor(self._lengths[:used], device=device)
        beyond = torch.arange(self._padded, device=device) >= lengths.unsqueeze(1)  # [S, P]
        least = torch.finfo(self._dtype).min
        mask = torch.zeros(beyond.shape, dtype=self._dtype, device=device).masked_fill(beyond, least)
        self._mask = mask[:, None, None]

    def attend(self, query: Tensor, *, layer: int, scale: float) -> tuple[Tensor, Tensor]:
        """What `query` [R, heads, shares, size] reads of its prompt, and the log-sum-exp of its scores.

        −inf, and any reading, for rows that have no prompt here."""
        _, heads, shares, size = query.shape
        used = self._mask.shape[0]
        seated = query.index_select(0, self._reading).view(used, -1, heads, shares, size)  # [S, M, ...]
        seated = seated.transpose(1, 2).reshape(used, heads, -1, size)  # [S, heads, M · shares, size]
        keys, values = self._keys[layer][:used], self._values[layer][:used]
        read, total = attend(seated, keys, values, scale=scale, causal=False, mask=self._mask)
        read = read.view(used, heads, -1, shares, read.shape[-1]).transpose(1, 2).flatten(0, 1)  # [S · M, ...]
        total = total.reshape(used, heads, -1, shares).transpose(1, 2).flatten(0, 1)  # [S · M, heads, shares]
        return read.index_select(0, self._seats), total.index_select(0, self._seats) + self._outside

    def _make_room(self) -> None:
        more = max(1, len(self._requests))
        self._requests += [None] * more
        # A free place has a prompt of one zero: what is read there is never looked at, and has to be a number.
        self._lengths += [1] * more
        self._keys = [torch.cat([keys, keys.new_zeros(more, *keys.shape[1:])]) for keys in self._keys]
        self._values = [torch.cat([values, values.new_zeros(more, *values.shape[1:])]) for values in self._values]


def shares_prefixes(policy: Policy) -> bool:
    """Whether this model's rows can attend to a prompt apart: its attention can be replaced, and every layer sees all.

    A window would mask a prompt for each row otherwise."""
    config = base_of(policy.model).config.get_text_config()
    return (
        takes_attention(policy)
        and getattr(config, "sliding_window", None) is None
        and set(getattr(config, "layer_types", None) or []) <= {"full_attention"}
    )


def takes_attention(policy: Policy) -> bool:
    """Whether this model's attention can be replaced, as `attending` does. Eager attention may do more than attend
    (Gemma 2's softcap)."""
    base = base_of(policy.model)
    return bool(base._supports_attention_backend) and base.config.get_text_config()._attn_implementation == "sdpa"


@contextmanager
def attending(policy: Policy, banks: Sequence[PrefixBank], *, on_gpu: bool = False) -> Iterator[None]:
    """Let every attention of the policy's model read `banks` beside the keys that it is given.

    `on_gpu`: query heads of one key head read it together, by `attend_on_gpu`, banks or none. Earlier releases of
    transformers copy each key for each of them, which takes several times as long as to read it."""
    if not banks and not on_gpu:
        yield
        return
    config = base_of(policy.model).config.get_text_config()
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] = _reading(banks, on_gpu=on_gpu)
    config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]


def _reading(banks: Sequence[PrefixBank], *, on_gpu: bool) -> Callable[..., tuple[Tensor, None]]:
    def attend_with_banks(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        *,
        scaling: float | None = None,
        **options: Any,  # transformers' own, such as dropout, which is off
    ) -> tuple[Tensor, None]:
        rows, heads, _, size = query.shape
        # A row has one query for each head; those that read the same keys lie side by side.
        packed = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
        scale = size**-0.5 if scaling is None else scaling
        layer: Any = module.layer_idx
        if on_gpu:
            own, total = attend_on_gpu(packed, key, value, scale=scale, mask=attention_mask)
        else:
            # One query at a time on a CPU: its kernel adds up four and more in an order that the width decides.
            queries = query if query.device.type == "cpu" else packed
            own, total = attend(queries, key, value, scale=scale, causal=False, mask=attention_mask)
        own, total = own.reshape(*packed.shape[:3], -1), total.reshape(packed.shape[:3])
        read = with_prompts(banks, packed, own, total, layer=layer, scale=scale)
        return read.reshape(rows, 1, heads, read.shape[-1]), None

    return attend_with_banks


def with_prompts(
    banks: Sequence[PrefixBank], query: Tensor, own: Tensor, total: Tensor, *, layer: int, scale: float
) -> Tensor:
    """What `query` [R, H', S, d] reads of its slot, `own`, merged with what it reads of its prompt in a bank.

    `total` [R, H', S] is the log-sum-exp of the slot's scores. Of a row that has no prompt here, `own` to the bit."""
    for bank in banks:
        # A row sits in one bank at most: in the others its weight is 0.
        read, of_prefix = bank.attend(query, layer=layer, scale=scale)
        own = own.lerp(read, _sigmoid(of_prefix - total).unsqueeze(-1).to(own.dtype))
    return own


def states_of(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a cache's layer."""
    return layer.keys, layer.values


def _sigmoid(x: Tensor) -> Tensor:
    # Over a multiple of two vector registers: what is left over of them is rounded otherwise.
    flat = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % LANES))
    return flat.sigmoid()[: x.numel()].view(x.shape)


def _empty(states: Tensor, padded: int) -> Tensor:
    return states.new_zeros(0, states.shape[1], padded, states.shape[3])
