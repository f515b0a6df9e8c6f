"""Averages of the residual stream at every block's output over the parts of a sequence, and what is summed up of them.

Everything is read in one teacher-forced pass a sequence, through the hooks that steer. Sums are float64 and of fixed
size, so that memory does not grow with the number of sequences.

Letters: S sequences of a batch, T tokens, L blocks, D hidden size, R random directions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from grpo.persona.vectors import OVERS, Over, random_like
from grpo.policy import Policy
from grpo.steering import captured

NUM_RANDOM = 8
"""Random directions beside each vector: one alone is a draw, and says little about what to expect of another."""


class Text(NamedTuple):
    """A sequence in token ids: prompt, then completion, of one token at least each."""

    token_ids: tuple[int, ...]
    num_prompt: int


@torch.no_grad()
def averages(
    policy: Policy, texts: Sequence[Text], *, budget_tokens: int
) -> Iterator[tuple[list[int], dict[Over, Tensor]]]:
    """For each batch the places of its texts in `texts`, and of each part of them the averages [S, L, D], float32.

    Batches hold texts of like length, padded, of at most `budget_tokens` tokens; a longer one is alone. `policy` is
    steered by nothing here, whatever it carries: no position is named to steer at."""
    for places in _batches([len(text.token_ids) for text in texts], budget_tokens=budget_tokens):
        batch = [texts[place] for place in places]
        ids, weights = _laid_out(batch, device=policy.device)  # [S, T], by part [S, T]
        averaged = _Averaged(weights)
        with captured(policy.blocks, averaged.take):
            policy.hidden(ids)
        yield places, {over: torch.stack(of_blocks, dim=1).cpu() for over, of_blocks in averaged.found.items()}


class _Averaged:
    """What the hooks of one forward add up, block by block."""

    def __init__(self, weights: dict[Over, Tensor]) -> None:
        self._weights = weights  # [S, T] each
        self.found: dict[Over, list[Tensor]] = {over: [] for over in OVERS}

    def take(self, block: int, hidden: Tensor) -> None:
        assert block == len(self.found["response"]), "blocks come in order"
        for over in OVERS:
            self.found[over].append(torch.einsum("st,std->sd", self._weights[over], hidden.float()))  # [S, D]


class Sums:
    """Of the averages of one side's texts: their sum by part [L, D], the sum of the norms of response averages, and
    how many there are."""

    def __init__(self, num_blocks: int, hidden_size: int) -> None:
        shape = (num_blocks, hidden_size)
        self.totals: dict[Over, Tensor] = {over: torch.zeros(shape, dtype=torch.float64) for over in OVERS}
        self.norms = torch.zeros(num_blocks, dtype=torch.float64)
        self.count = 0

    def add(self, of_parts: dict[Over, Tensor]) -> None:
        """Averages [S, L, D] of some texts."""
        for over, of_texts in of_parts.items():
            self.totals[over] += of_texts.double().sum(dim=0)
        self.norms += of_parts["response"].double().norm(dim=-1).sum(dim=0)
        self.count += len(of_parts["response"])

    def merge(self, other: "Sums") -> None:
        """What another rank or half has summed up."""
        for over in OVERS:
            self.totals[over] += other.totals[over]
        self.norms += other.norms
        self.count += other.count

    def mean(self, over: Over) -> Tensor:
        """[L, D], float64."""
        return self.totals[over] / self.count


class Spread:
    """First and second moments of the projections of one side's response averages on some directions."""

    def __init__(self, directions: Tensor) -> None:
        """`directions` [L, 1 + R, D] are unit vectors."""
        self._directions = directions.double()
        self.sums = torch.zeros(2, *directions.shape[:2], dtype=torch.float64)  # [2, L, 1 + R]
        self.count = 0

    def add(self, of_parts: dict[Over, Tensor]) -> None:
        """Averages [S, L, D] of some texts."""
        along = torch.einsum("sld,lrd->slr", of_parts["response"].double(), self._directions)  # [S, L, 1 + R]
        self.sums += torch.stack([along.sum(dim=0), along.square().sum(dim=0)])
        self.count += len(along)

    def merge(self, other: "Spread") -> None:
        """What another rank has counted."""
        self.sums += other.sums
        self.count += other.count

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, each [L, 1 + R]."""
        mean, square = self.sums / self.count
        return mean, (square - mean.square()).clamp_min(0.0)


@dataclass(frozen=True, slots=True)
class Separation:
    """How far apart two sides are along directions, in units of their spread within a side."""

    own: Tensor  # [L], along the vector
    random: Tensor  # [L], the mean size along random directions


def separation(positive: Spread, negative: Spread) -> Separation:
    """(mean⁺ − mean⁻) / sqrt((var⁺ + var⁻) / 2) along each direction; nan where a side is empty or does not vary."""
    if not positive.count or not negative.count:
        nothing = positive.sums.new_full((positive.sums.shape[1],), torch.nan)
        return Separation(own=nothing, random=nothing)
    (mean, variance), (other_mean, other_variance) = positive.moments, negative.moments
    spread = ((variance + other_variance) / 2).sqrt()
    apart = torch.where(spread > 0, (mean - other_mean) / spread, torch.nan)  # [L, 1 + R]
    return Separation(own=apart[:, 0], random=apart[:, 1:].abs().mean(dim=-1))


def with_random(vectors: Tensor, *, seed: int) -> Tensor:
    """[L, 1 + R, D]: the unit vectors of `vectors` [L, D], and beside each R random ones, by seed."""
    rows = []
    for block, vector in enumerate(vectors.float()):
        others = [random_like(vector, seed=seed + NUM_RANDOM * block + place) for place in range(NUM_RANDOM)]
        rows.append(torch.stack([vector, *others]))
    directions = torch.stack(rows)
    return directions / directions.norm(dim=-1, keepdim=True)


def _batches(lengths: Sequence[int], *, budget_tokens: int) -> list[list[int]]:
    """Places by length, longest first, in batches that are within the budget when padded."""
    batches: list[list[int]] = []
    longest = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batches and (len(batches[-1]) + 1) * longest <= budget_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
            longest = lengths[place]
    return batches


def _laid_out(batch: Sequence[Text], *, device: torch.device) -> tuple[Tensor, dict[Over, Tensor]]:
    """Ids [S, T], padded on the right, and of each part the weights [S, T] that make an average of a sum."""
    longest = max(len(text.token_ids) for text in batch)
    ids = torch.tensor([text.token_ids + (0,) * (longest - len(text.token_ids)) for text in batch])
    weights = {over: torch.zeros(ids.shape) for over in OVERS}
    for row, text in enumerate(batch):
        end, num_prompt = len(text.token_ids), text.num_prompt
        weights["response"][row, num_prompt:end] = 1 / (end - num_prompt)
        weights["prompt"][row, :num_prompt] = 1 / num_prompt
        weights["last_prompt"][row, num_prompt - 1] = 1
    return ids.to(device), {over: of_part.to(device) for over, of_part in weights.items()}
