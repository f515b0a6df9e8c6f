"""Where the tokens of a micro-batch lie: in one row without padding, a prompt that several rollouts share only once.

Everything but attention looks at each token by itself, so that a row of T tokens costs what T tokens cost. Attention
takes the row apart again: `grpo.attention`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEP_TOKENS = 64
LONG_TOKENS = 1024
"""A row of LONG_TOKENS and more has a multiple of STEP_TOKENS, so that products come in few sizes."""
LEAST_FILLED = 0.7
"""Rows are attended to together where the shortest has this share of the longest's tokens, so that little is padded."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A prompt and the rows that continue it, in tokens: the prompt's come first, then those of each row in turn.

    A row attends to the prompt and to itself. Without a prompt it is a sequence of its own."""

    prefix_tokens: int
    row_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Of the prompt, once, and of all rows."""
        return self.prefix_tokens + sum(self.row_tokens)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Places of a prompt, `start` to `stop`, and of the rows that see it, `stop` to `end`."""

    start: int
    stop: int
    end: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of about one length, as places among the T tokens; a padding place repeats the row's first."""

    places: Tensor  # [B, L]
    real: Tensor  # [B, L] bool


def missing_tokens(num_tokens: int) -> int:
    """How many fill a row of so many tokens up."""
    return -num_tokens % STEP_TOKENS if num_tokens >= LONG_TOKENS else 0


class Layout:
    """Segments one after another, and how attention takes them apart. A prompt counts as a row that sees itself."""

    def __init__(self, segments: Sequence[Segment], *, device: torch.device) -> None:
        self.segments = tuple(segments)
        self.num_tokens = sum(segment.num_tokens for segment in segments)
        rows: list[tuple[int, int]] = []  # place of the first token, and tokens
        positions: list[Tensor] = []
        prefixes: list[Prefix] = []
        at = 0
        for segment in segments:
            stop, end = at + segment.prefix_tokens, at + segment.num_tokens
            if segment.prefix_tokens:
                prefixes.append(Prefix(start=at, stop=stop, end=end))
                rows.append((at, segment.prefix_tokens))
                positions.append(torch.arange(segment.prefix_tokens))
            at = stop
            for length in segment.row_tokens:
                rows.append((at, length))
                positions.append(torch.arange(segment.prefix_tokens, segment.prefix_tokens + length))
                at += length
        self.position_ids = torch.cat(positions).to(device)  # [T]
        self.prefixes = tuple(prefixes)
        self.buckets = tuple(_buckets(rows, device=device))
        self.longest_tokens = max(s.prefix_tokens + max(s.row_tokens, default=0) for s in segments)
        self._masks: dict[object, Tensor | None] = {}

    def row_mask(self, bucket: Bucket, *, window: int, dtype: torch.dtype) -> Tensor:
        """What a row's tokens see of it where they see `window` tokens, their own included: [1, 1, L, L], 0 or −inf."""
        length = bucket.places.shape[1]
        key = ("row", length, window, dtype)
        if key not in self._masks:
            at = torch.arange(length, device=bucket.places.device)
            behind = at.unsqueeze(1) - at  # [L, L]
            self._masks[key] = _additive((behind >= 0) & (behind < window), dtype=dtype)
        found = self._masks[key]
        assert found is not None
        return found

    def prefix_mask(self, prefix: Prefix, *, window: int, dtype: torch.dtype) -> Tensor | None:
        """What the N tokens of a prompt's rows see of its P, [1, 1, N, P], 0 or −inf; None where they see all of it."""
        key = (prefix, window, dtype)
        if key not in self._masks:
            positions = self.position_ids[prefix.stop : prefix.end].unsqueeze(1)  # [N, 1]
            sees = positions - torch.arange(prefix.stop - prefix.start, device=positions.device) < window  # [N, P]
            self._masks[key] = None if self.longest_tokens <= window else _additive(sees, dtype=dtype)
        return self._masks[key]

    def padded(self) -> tuple[Tensor, Tensor]:
        """Places of the rows' tokens as [B, L], in order, and which are real, for models that take no packed row.

        Raises ValueError where a prompt is shared: its rows alone are no sequences."""
        if self.prefixes:
            raise ValueError("a layout with shared prompts cannot be padded; make it of rows alone")
        lengths = [length for segment in self.segments for length in segment.row_tokens]
        starts = [sum(lengths[:row]) for row in range(len(lengths))]
        return _padded(list(zip(starts, lengths, strict=True)), device=self.position_ids.device)


def _buckets(rows: Iterable[tuple[int, int]], *, device: torch.device) -> Iterable[Bucket]:
    """Rows sorted by length, cut where one is shorter than LEAST_FILLED of its bucket's first."""
    alike: list[tuple[int, int]] = []
    for row in sorted((row for row in rows if row[1]), key=lambda row: -row[1]):
        if alike and row[1] < LEAST_FILLED * alike[0][1]:
            yield Bucket(*_padded(alike, device=device))
            alike = []
        alike.append(row)
    if alike:
        yield Bucket(*_padded(alike, device=device))


def _padded(rows: Sequence[tuple[int, int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    starts = torch.tensor([start for start, _ in rows]).unsqueeze(1)  # [B, 1]
    lengths = torch.tensor([length for _, length in rows]).unsqueeze(1)  # [B, 1]
    at = torch.arange(int(lengths.max()))  # [L]
    real = at < lengths  # [B, L]
    return torch.where(real, starts + at, starts).to(device), real.to(device)


def _additive(sees: Tensor, *, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)
    return mask[None, None]  # for all rows and heads
