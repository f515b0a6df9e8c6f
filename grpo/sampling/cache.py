"""Keys and values of the rows being decoded, in slots that rows enter and leave while others go on.

transformers' own caches grow all rows in step; here every row has a length of its own, so a row that finishes
makes room for one that waits. A long prompt lies in a bank of `grpo.sampling.prefixes`, not in the slots."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from grpo.sampling.prefixes import PrefixBank, states_of


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [R, heads, capacity, head size]; `written` says where a step's tokens go."""

    is_sliding = False
    keys: Tensor
    values: Tensor
    written: Tensor  # [R · heads], places in [R · heads · capacity]

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.width = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the slots exist from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token a row and return the first `width` positions (the signature is transformers')."""
        for slots, states in ((self.keys, key_states), (self.values, value_states)):
            slots.view(-1, slots.shape[-1]).index_copy_(0, self.written, states.reshape(-1, slots.shape[-1]))
        return self.keys.narrow(2, 0, self.width), self.values.narrow(2, 0, self.width)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query sees, and their offset. Unused where the mask is given, as the native sampler does."""
        return self.width, 0

    def get_seq_length(self) -> int:
        """Positions in use, the one being written included."""
        return self.width

    def get_max_length(self) -> int:
        """No limit: `resize` makes room."""
        return -1


class SlotCache(Cache):
    """All layers' slots, and the banks of prompts. Made from the first prefill, whose shapes it takes over."""

    def __init__(
        self, prefix: DynamicCache, *, num_rows: int, capacity_tokens: int, query_heads: int, dtype: torch.dtype
    ) -> None:
        """Masks are of `dtype`."""
        super().__init__(
            layers=[
                SlotLayer(*(_slots(states, num_rows, capacity_tokens) for states in states_of(layer)))
                for layer in prefix.layers
            ]
        )
        self._dtype = dtype
        self._shares = max(1, query_heads // self.slots[0].keys.shape[1])  # query heads that read one head of keys
        self._banks: dict[int, PrefixBank] = {}  # by padded length
        self._places: list[tuple[int, int] | None] = [None] * num_rows  # bank and place of each row's prompt
        self._is_seated = True
        self._written: dict[int, Tensor] = {}  # by heads of a layer: where a step's tokens go, in one memory throughout
        self.banks: list[PrefixBank] = []  # that rows sit in
        self.recorded: Any = None
        """What a decoder has recorded of decodes over this memory; forgotten where any of it moves."""

    @property
    def slots(self) -> list[SlotLayer]:
        """The layers, by their own type."""
        return self.layers  # type: ignore[return-value]

    @property
    def capacity_tokens(self) -> int:
        """Positions of a slot."""
        return int(self.slots[0].keys.shape[2])

    def write_at(self, positions: Tensor, *, width: int) -> None:
        """Where in its slot the next token of each row goes, [R], and how many positions attention sees."""
        if not self._is_seated:
            self._seat()
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)  # [R, 1]
        for heads in dict.fromkeys(layer.keys.shape[1] for layer in self.slots):
            of_heads = rows * heads + torch.arange(heads, device=positions.device)  # [R, heads]
            places = (of_heads * self.capacity_tokens + positions.unsqueeze(1)).flatten()
            if heads in self._written and self._written[heads].shape == places.shape:
                self._written[heads].copy_(places)
            else:
                self._written[heads] = places
        for layer in self.slots:
            layer.written, layer.width = self._written[layer.keys.shape[1]], width

    def enter(self, rows: Sequence[int], prefix: DynamicCache, *, source: int, length: int) -> None:
        """Copy the first `length` positions of row `source` of a prefill into slots `rows`."""
        for layer, filled in zip(self.slots, prefix.layers, strict=True):
            for slots, states in zip((layer.keys, layer.values), states_of(filled), strict=True):
                slots[rows, :, :length] = states[source, :, :length]
        self._is_seated = False  # a row may still have the seat of the one that left it

    def share(
        self, rows: Sequence[int], prefix: DynamicCache, *, source: int, length: int, padded: int, request: int
    ) -> None:
        """Let `rows` read the first `length` positions of row `source` of a prefill, kept once for the request."""
        if padded not in self._banks:
            self._banks[padded] = PrefixBank(prefix, padded=padded, dtype=self._dtype)
        place = self._banks[padded].add(prefix, source=source, length=length, request=request)
        for row in rows:
            self._places[row] = (padded, place)
        self._is_seated = False

    def leave(self, row: int) -> None:
        """`row` reads no prompt any more."""
        # Its seat stays until another row enters or moves: a seat nobody looks at costs less than seating all again.
        self._places[row] = None

    def resize(self, capacity_tokens: int) -> None:
        """Give every slot room for `capacity_tokens` positions; what lies beyond them is dropped."""
        self.recorded = None
        missing = capacity_tokens - self.capacity_tokens
        for layer in self.slots:
            # A negative number cuts. Either way what is left lies densely, in memory of its own.
            layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, 0, missing))
            layer.values = torch.nn.functional.pad(layer.values, (0, 0, 0, missing))

    def widen(self, num_rows: int) -> None:
        """Have `num_rows` slots."""
        self.recorded = None
        missing = num_rows - len(self._places)
        for layer in self.slots:
            layer.keys, layer.values = (
                torch.cat([states, states.new_zeros(missing, *states.shape[1:])]) for states in states_of(layer)
            )
        self._places += [None] * missing
        self._is_seated = False

    def pack(self, rows: Sequence[int], *, length: int) -> None:
        """Keep the slots `rows`, in that order, of which the first `length` positions are in use.

        A row goes to no later slot than it has, so that slots are copied only where one moves."""
        self.recorded = None
        moved = [(row, slot) for slot, row in enumerate(rows) if row != slot]
        source, target = ([pair[side] for pair in moved] for side in (0, 1))
        for layer in self.slots:
            for slots in states_of(layer):
                if moved:
                    slots[target, :, :length] = slots[source, :, :length]
            layer.keys, layer.values = layer.keys[: len(rows)], layer.values[: len(rows)]
        self._places = [self._places[row] for row in rows]
        self._is_seated = False

    def _seat(self) -> None:
        if self._banks:
            self.recorded = None
        for padded, bank in list(self._banks.items()):
            places = [at[1] if at is not None and at[0] == padded else None for at in self._places]
            if any(place is not None for place in places):
                bank.seat(places, shares=self._shares)
            else:
                del self._banks[padded]
        self.banks = list(self._banks.values())
        self._is_seated = True


def _slots(states: Tensor, num_rows: int, capacity_tokens: int) -> Tensor:
    # Zeros, not empty memory: a masked position has weight 0, and 0 · NaN would be NaN.
    _, heads, _, size = states.shape
    return states.new_zeros(num_rows, heads, capacity_tokens, size)
