"""The decode batch: rows that completions enter and leave, and the prefills that they come from.

Token ids and log-probs of a rollout do not depend, bit for bit, on what is decoded beside it, wherever a matrix product
rounds its rows alike in all the shapes that occur here: on CPUs with one thread. `grpo.sampling.invariance` asks
the device. What it takes, as measured on an x86 CPU with AVX2, in float32 and bfloat16:
- eight rows of a matrix product at least: fewer take other code paths;
- attention over a multiple of WIDTH_STEP_TOKENS positions: masked ones add exact zeros, but what is left over of a
  vector register is added in another order; and over LEAST_WIDTH_TOKENS at least, since the product of a small head and
  few positions takes another code path;
- a prefill padded by the prompt's own length: unlike the number of prompts, the padded length is one that products are
  cut up by;
- a rule by the prompt's own length for where its keys and values lie: one of SHARED_TOKENS and more is stored once for
  the rows that continue it, where the model allows it (`shares_prefixes`), and any other in each row's own slot."""

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from grpo.config import SamplingConfig
from grpo.logprobs import tempered
from grpo.model import base_of, max_positions
from grpo.policy import Policy
from grpo.sampling.cache import SlotCache
from grpo.sampling.decoder import Decoder, Inputs, Masks
from grpo.sampling.drawing import draw_tokens
from grpo.sampling.noise import signed
from grpo.sampling.prefixes import SHARED_TOKENS, shares_prefixes
from grpo.sampling.protocol import Completion, Request
from grpo.sampling.restrict import kept_tokens
from grpo.types import KeptSets, StopReason

MIN_ROWS = 8
ROWS_STEP = 8
"""Rows are dropped by as many: each number of rows is a shape of its own, which a library prepares for."""
MOST_KEPT = {"cpu": 1.0, "cuda": 0.75}
"""Share of the rows above which free ones are not dropped yet. On a CPU a free row costs what any other does; on a GPU
it costs next to nothing, while decodes of another number of rows are recorded anew."""
WIDTH_STEP_TOKENS = 32
LEAST_WIDTH_TOKENS = 64
SPARE_TOKENS = {"cpu": 0, "cuda": 128}
"""Positions of a slot beyond the width of attention. A CPU reads keys twice as fast where nothing lies between those
of one row and of the next, which is worth a copy each WIDTH_STEP_TOKENS decodes; a GPU's allocator would be left with
pieces of every size."""
SHORTEST_PREFILL_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Prefix:
    """A request's prompt, prefilled: row `source` of a cache of several."""

    request: int
    cache: DynamicCache
    source: int


class Rows:
    """The decode batch: per row where it is, what it has drawn, and whose it is. Tensors are [R]."""

    def __init__(self, num_rows: int, *, config: SamplingConfig, policy: Policy, decoder: Decoder) -> None:
        """`num_rows` free rows, MIN_ROWS at least, decoded by `decoder` with the policy's weights."""
        self._policy, self._config, self._decoder = policy, config, decoder
        device = policy.device
        self.is_owned = torch.zeros(num_rows, dtype=torch.bool, device=device)  # has a rollout, if a finished one
        self.active = torch.zeros(num_rows, dtype=torch.bool, device=device)  # draws on
        self.num_drawn = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._length = torch.zeros(num_rows, dtype=torch.long, device=device)  # tokens in the slot
        self._offset = torch.zeros(num_rows, dtype=torch.long, device=device)  # tokens before them, stored apart
        self._next_input = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._keys = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._temperature = torch.ones(num_rows, device=device)
        self.limit_tokens = torch.full((num_rows,), config.max_completion_tokens, device=device)
        self._drawn = torch.zeros(num_rows, config.max_completion_tokens, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(num_rows, config.max_completion_tokens, device=device)
        self._kept: list[list[array[int]]] = [[] for _ in range(num_rows)]
        self._owner: list[tuple[int, int] | None] = [None] * num_rows  # request and index
        self._grids: list[tuple[float, ...]] = [()] * num_rows
        # Both are [R, K] once a request with a grid of K temperatures has come; float64, since log-probs add up.
        self._grid: Tensor | None = None
        self._grid_logprobs: Tensor | None = None
        self.num_active = 0
        self._longest = 0  # slot, in tokens, known without asking the device
        self._cache: SlotCache | None = None
        model_config = base_of(policy.model).config.get_text_config()
        self._window: int | None = getattr(model_config, "sliding_window", None)
        self._layer_types = set(getattr(model_config, "layer_types", None) or [])
        self._context_tokens = max_positions(policy.model)
        kind = "cpu" if device.type == "cpu" else "cuda"
        self._spare_tokens, self._most_kept = SPARE_TOKENS[kind], MOST_KEPT[kind]
        self._query_heads = int(model_config.num_attention_heads)
        self._shares_prefixes = shares_prefixes(policy)

    @property
    def num_free(self) -> int:
        """Rows without one."""
        return len(self._owner) - self.num_active

    def token_ids(self, row: int) -> list[int]:
        """What `row` has drawn."""
        return list(self._drawn[row, : int(self.num_drawn[row])].tolist())

    def last_token(self, row: int) -> int:
        """What `row` has drawn last."""
        return int(self._drawn[row, int(self.num_drawn[row]) - 1])

    def prefill(self, prefixes: Sequence[Sequence[int]]) -> DynamicCache:
        """Keys and values of prompts without their last token, in one forward, padded on the right.

        All of one `padded_tokens`: a prompt is computed in the same length, whichever others there are."""
        (padded,) = {self.padded_tokens(len(prefix)) for prefix in prefixes}
        ids = torch.zeros(len(prefixes), padded, dtype=torch.long)  # [P, T]
        for row, prefix in enumerate(prefixes):
            ids[row, : len(prefix)] = torch.tensor(prefix, dtype=torch.long)
        # Without a config the cache keeps every position of sliding layers too; short rows need what padding displaced.
        cache = DynamicCache()
        ids = ids.to(self._policy.device)
        nothing = torch.zeros_like(ids, dtype=torch.bool)  # of a prompt before its last token is the policy's
        self._policy.hidden(ids, cache=cache, steer_at=self._policy.steered_at(chooses=nothing, chosen=nothing))
        return cache

    def padded_tokens(self, length: int) -> int:
        """Of a prefill of `length` tokens: 16, 24, 32, 48, 64, 96 and so on, within the model's context."""
        power = SHORTEST_PREFILL_TOKENS
        while power < length:
            power *= 2
        padded = power * 3 // 4 if power > SHORTEST_PREFILL_TOKENS and length <= power * 3 // 4 else power
        return padded if self._context_tokens is None else max(length, min(padded, self._context_tokens))

    def prefill_batches(
        self, prompts: Sequence[int], requests: Sequence[Request], *, budget_tokens: int
    ) -> Iterator[list[int]]:
        """Split `prompts`, places in `requests`, into prefills of one padded length, longest first.

        A prefill has at most `budget_tokens`, padding included; a longer prompt goes alone."""
        by_length: dict[int, list[int]] = {}
        for request in prompts:
            by_length.setdefault(self.padded_tokens(len(requests[request].prompt_ids) - 1), []).append(request)
        for padded, alike in sorted(by_length.items(), reverse=True):
            size = max(1, budget_tokens // padded)
            yield from (alike[start : start + size] for start in range(0, len(alike), size))

    def enter(self, indices: Sequence[int], wanted: Request, *, prefix: Prefix) -> None:
        """Put rollouts `indices` of the prefix's request, `wanted`, into free rows."""
        length = len(wanted.prompt_ids) - 1
        free = [row for row, owner in enumerate(self._owner) if owner is None][: len(indices)]
        rows = torch.tensor(free, dtype=torch.long, device=self.active.device)
        self._store(free, rows, prefix, length=length)
        self.is_owned[rows] = self.active[rows] = True
        self.num_drawn[rows] = 0
        self._next_input[rows] = wanted.prompt_ids[-1]
        self._keys[rows] = torch.tensor([signed(wanted.keys[i]) for i in indices], device=rows.device)
        self._temperature[rows] = wanted.temperature
        self.limit_tokens[rows] = wanted.limit_tokens or self._config.max_completion_tokens
        if wanted.grid:
            self._enter_grid(rows, wanted.grid)
        for row, index in zip(free, indices, strict=True):
            self._owner[row] = (prefix.request, index)
            self._grids[row] = wanted.grid
            self._kept[row] = []
        self.num_active += len(free)

    def logits(self) -> Tensor:
        """Read each row's next input into the cache; returns the logits of what follows it, [R, V]."""
        assert self._cache is not None
        self._longest += 1
        self._make_room(self._longest)
        width = _stepped(self._longest)  # W
        self._cache.write_at(self._length, width=width)
        inputs = Inputs(
            token_ids=self._next_input,
            position_ids=self._offset + self._length,
            # A row's first input is the prompt's last token: the policy chooses what follows and did not choose it.
            steer_at=self._policy.steered_at(chooses=self.active, chosen=self.active & (self.num_drawn > 0)),
            masks=self._masks(width),
            cache=self._cache,
        )
        return self._policy.head(self._decoder.hidden(inputs))

    def draw(self, logits: Tensor) -> Tensor:
        """Draw one token for every active row from `logits` [R, V]; returns the tokens [R] (any in free rows)."""
        untempered = None if self._grid is None else logits  # or it would outlive its use
        logits = tempered(logits, temperature=self._temperature)  # [R, V]
        config = self._config
        kept = kept_tokens(logits, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
        if kept is not None:
            logits = logits.masked_fill(~kept, -torch.inf)
            self._note_kept(kept)
        tokens, chosen = draw_tokens(logits, keys=self._keys, positions=self.num_drawn)  # [R], [R]
        at = self.num_drawn.clamp(max=config.max_completion_tokens - 1).unsqueeze(1)
        self._drawn.scatter_(1, at, tokens.unsqueeze(1))
        self.logprobs.scatter_(1, at, chosen.unsqueeze(1))
        if untempered is not None:
            self._add_grid_logprobs(untempered, tokens)
        # Free rows stay where they are, or they would outgrow their slots.
        self.num_drawn += self.active
        self._length += self.active
        self._next_input = tokens
        return tokens

    def end(self, ended: Tensor) -> None:
        """Draw no more in rows that have `ended` [R] or reached their limit. The host is not asked, nor told."""
        self.active &= ~(ended | (self.num_drawn >= self.limit_tokens))

    def ended(self) -> list[int]:
        """Rows whose rollout is done and still here. Waits for the device."""
        return list((self.is_owned & ~self.active).nonzero().flatten().tolist())

    def leave(self, row: int, stop_reason: StopReason) -> Completion:
        """Take the finished rollout out of `row` and free it."""
        owner = self._owner[row]
        assert owner is not None
        count = int(self.num_drawn[row])
        completion = Completion(
            request=owner[0],
            index=owner[1],
            token_ids=tuple(self._drawn[row, :count].tolist()),
            logprobs=tuple(self.logprobs[row, :count].tolist()),
            # Between two looks at which rows are done, sets are noted that no token was drawn from.
            kept=KeptSets.of(self._kept[row][:count]) if self._kept[row] else None,
            stop_reason=stop_reason,
            grid_logprobs=self._grid_logprobs_of(row),
        )
        self._owner[row] = None
        self._grids[row] = ()
        self.num_active -= 1
        self.is_owned[row] = self.active[row] = False
        self._length[row] = self._offset[row] = 0
        assert self._cache is not None
        self._cache.leave(row)
        return completion

    def narrow(self) -> None:
        """Forget the length of rows that have left: attention looks at no more than the longest row has."""
        self._longest = int(self._length.max())
        capacity_tokens = _stepped(self._longest + 1) + self._spare_tokens
        if self._cache is not None and not self._spare_tokens and capacity_tokens < self._cache.capacity_tokens:
            self._cache.resize(capacity_tokens)

    def widen(self, num_rows: int) -> None:
        """Have `num_rows` rows at least."""
        missing = num_rows - len(self._owner)
        if missing > 0:
            if self._cache is not None:
                self._cache.widen(num_rows)
            self._take(range(len(self._owner)), num_free=missing)

    def pack(self) -> None:
        """Drop free rows, so that the last rollouts do not drag an empty batch along."""
        target = max(MIN_ROWS, -(-self.num_active // ROWS_STEP) * ROWS_STEP)
        if not self.num_active or target > self._most_kept * len(self._owner) or target == len(self._owner):
            return
        # The last ones fill the gaps; the others stay where they are.
        late = deque(row for row in range(target, len(self._owner)) if self._owner[row] is not None)
        rows = [late.popleft() if self._owner[row] is None and late else row for row in range(target)]
        assert self._cache is not None
        self._cache.pack(rows, length=min(self._longest, self._cache.capacity_tokens))
        self._take(rows, num_free=0)
        self.narrow()

    def _store(self, free: Sequence[int], rows: Tensor, prefix: Prefix, *, length: int) -> None:
        """Put a prefix of `length` tokens where the rows `free`, also given as a tensor, will read it."""
        is_shared = self._shares_prefixes and length >= SHARED_TOKENS
        in_slot = 0 if is_shared else length
        self._longest = max(self._longest, in_slot)
        if self._cache is None:
            self._cache = SlotCache(
                prefix.cache,
                num_rows=len(self._owner),
                capacity_tokens=_stepped(self._longest + 1) + self._spare_tokens,
                query_heads=self._query_heads,
                dtype=self._policy.dtype,
            )
        self._make_room(self._longest + 1)
        self._length[rows] = in_slot
        self._offset[rows] = length - in_slot
        of_prefix: dict[str, Any] = {"source": prefix.source, "length": length}
        if is_shared:
            padded = self.padded_tokens(length)
            self._cache.share(free, prefix.cache, padded=padded, request=prefix.request, **of_prefix)
        else:
            self._cache.enter(free, prefix.cache, **of_prefix)

    def _take(self, kept: Sequence[int], *, num_free: int) -> None:
        """Go on with the rows `kept`, in that order, and `num_free` free ones after them."""
        # A free row holds a copy of another one, which is never looked at.
        rows = torch.tensor([*kept, *[0] * num_free], device=self.active.device)
        names = ("_length", "_offset", "_next_input", "_keys", "_temperature", "limit_tokens")
        for name in ("is_owned", "active", "num_drawn", *names):
            setattr(self, name, getattr(self, name)[rows])
        self._drawn, self.logprobs = self._drawn[rows], self.logprobs[rows]
        if self._grid is not None and self._grid_logprobs is not None:
            self._grid, self._grid_logprobs = self._grid[rows], self._grid_logprobs[rows]
        self.is_owned[len(kept) :] = self.active[len(kept) :] = False
        self._length[len(kept) :] = self._offset[len(kept) :] = 0
        self._owner = [*(self._owner[row] for row in kept), *[None] * num_free]
        self._grids = [*(self._grids[row] for row in kept), *[()] * num_free]
        self._kept = [*(self._kept[row] for row in kept), *([] for _ in range(num_free))]

    def _enter_grid(self, rows: Tensor, grid: tuple[float, ...]) -> None:
        if self._grid is None or self._grid_logprobs is None:
            shape = (len(self._owner), len(grid))
            self._grid = torch.ones(shape, device=rows.device)
            self._grid_logprobs = torch.zeros(shape, dtype=torch.float64, device=rows.device)
        if self._grid.shape[1] != len(grid):
            raise ValueError(
                f"grid = {list(grid)}: another request has {self._grid.shape[1]} temperatures; give all as many"
            )
        self._grid[rows] = torch.tensor(grid, device=rows.device)
        self._grid_logprobs[rows] = 0.0

    def _add_grid_logprobs(self, logits: Tensor, tokens: Tensor) -> None:
        """Add the log-prob of `tokens` [R] at each temperature of the rows' grids, from untempered `logits` [R, V]."""
        if self._grid is None or self._grid_logprobs is None or not any(self._grids):
            return
        for number in range(self._grid.shape[1]):  # one at a time: [R, K, V] would be K times the logits
            scaled = tempered(logits, temperature=self._grid[:, number])  # [R, V]
            chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(dim=-1)  # [R]
            self._grid_logprobs[:, number] += torch.where(self.active, chosen, 0.0)

    def _grid_logprobs_of(self, row: int) -> tuple[float, ...] | None:
        if not self._grids[row] or self._grid_logprobs is None:
            return None
        return tuple(self._grid_logprobs[row].tolist())

    def _make_room(self, tokens: int) -> None:
        assert self._cache is not None
        if self._cache.capacity_tokens < _stepped(tokens):
            self._cache.resize(_stepped(tokens) + self._spare_tokens)

    def _masks(self, width: int) -> Masks:
        """What each row's token sees, [R, 1, 1, W]: its own past, in sliding layers no more than a window of it."""
        at = torch.arange(width, device=self._length.device)  # [W]
        last = self._length.unsqueeze(1)  # [R, 1], the position being written
        full = at <= last  # [R, W]
        if self._window is None:
            return self._for_attention(full)
        sliding = full & (at > last - self._window)
        if not self._layer_types:  # one window for every layer, as in Mistral
            return self._for_attention(sliding)
        masks = {"full_attention": full, "sliding_attention": sliding}
        return {name: self._for_attention(mask) for name, mask in masks.items()}

    def _for_attention(self, mask: Tensor) -> Tensor:
        # Added to the scores, of one shape for all layers: from a mask of booleans each layer would make its own.
        mask, dtype = mask[:, None, None], self._policy.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    def _note_kept(self, kept: Tensor) -> None:
        ids = array("i", kept.nonzero()[:, 1].int().cpu().numpy().tobytes())
        stop = 0
        for row, size in enumerate(kept.sum(dim=1).tolist()):
            start, stop = stop, stop + size
            if self._owner[row] is not None:
                # An empty set stands for the whole vocabulary.
                self._kept[row].append(ids[start:stop] if size < kept.shape[1] else array("i"))


def _stepped(tokens: int) -> int:
    """The least width of attention that holds `tokens`."""
    return max(LEAST_WIDTH_TOKENS, -(-tokens // WIDTH_STEP_TOKENS) * WIDTH_STEP_TOKENS)
