"""Keys and values of the rows being decoded, in slots that rows enter and leave while others go on.

transformers' own caches grow all rows in step; here every row has a length of its own, so a row that finishes
makes room for one that waits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [R, heads, capacity, head size]. Row r's next token is written at `positions[r]`."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.positions = torch.zeros(keys.shape[0], dtype=torch.long, device=keys.device)
        self.width = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the slots exist from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token a row and return the first `width` positions (the signature is transformers')."""
        rows = torch.arange(len(self.positions), device=self.positions.device)
        self.keys[rows, :, self.positions] = key_states[:, :, 0]
        self.values[rows, :, self.positions] = value_states[:, :, 0]
        return self.keys[:, :, : self.width], self.values[:, :, : self.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query sees, and their offset. Unused where the mask is given, as the native sampler does."""
        return self.width, 0

    def get_seq_length(self) -> int:
        """Positions in use, the one being written included."""
        return self.width

    def get_max_length(self) -> int:
        """No limit: `grow` makes room."""
        return -1


class SlotCache(Cache):
    """All layers' slots. Made from the first prefill, whose shapes it takes over."""

    def __init__(self, prefix: DynamicCache, *, num_rows: int, capacity_tokens: int) -> None:
        super().__init__(
            layers=[
                SlotLayer(*(_slots(states, num_rows, capacity_tokens) for states in _states(layer)))
                for layer in prefix.layers
            ]
        )

    @property
    def slots(self) -> list[SlotLayer]:
        """The layers, by their own type."""
        return self.layers  # type: ignore[return-value]

    @property
    def capacity_tokens(self) -> int:
        """Positions of a slot."""
        return int(self.slots[0].keys.shape[2])

    def write_at(self, positions: Tensor, *, width: int) -> None:
        """Where the next token of each row goes, [R], and how many positions attention sees."""
        for layer in self.slots:
            layer.positions, layer.width = positions, width

    def enter(self, rows: Sequence[int], prefix: DynamicCache, *, source: int, length: int) -> None:
        """Copy the first `length` positions of row `source` of a prefill into slots `rows`."""
        for layer, filled in zip(self.slots, prefix.layers, strict=True):
            for slots, states in zip((layer.keys, layer.values), _states(filled), strict=True):
                slots[rows, :, :length] = states[source, :, :length]

    def grow(self, capacity_tokens: int) -> None:
        """Give every slot room for `capacity_tokens` positions."""
        for layer in self.slots:
            missing = capacity_tokens - layer.keys.shape[2]
            layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, 0, missing))
            layer.values = torch.nn.functional.pad(layer.values, (0, 0, 0, missing))

    def select(self, rows: Tensor) -> None:
        """Keep only the slots `rows`, [R'], in that order."""
        for layer in self.slots:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]


def _states(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _slots(states: Tensor, num_rows: int, capacity_tokens: int) -> Tensor:
    # Zeros, not empty memory: a masked position has weight 0, and 0 · NaN would be NaN.
    _, heads, _, size = states.shape
    return states.new_zeros(num_rows, heads, capacity_tokens, size)
