"""Projections of texts on a trait's vector and on random directions of the same width, shared by the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import torch

from grpo.persona.means import Text, averages, with_random
from grpo.persona.vectors import Over
from grpo.starts import Run


@dataclass(frozen=True, slots=True)
class Projected:
    """(a · v) / ‖v‖ of an average a of the residual stream, along the vector and along each random direction."""

    own: float
    random: tuple[float, ...]

    def as_row(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"projection": self.own, "random_mean": fmean(self.random), "random_std": pstdev(self.random)}


@dataclass(frozen=True, slots=True)
class Direction:
    """A trait's vector at a block, as unit vectors [1 + R, D] with random ones beside it."""

    block: int
    units: torch.Tensor

    @classmethod
    def of(cls, vector: torch.Tensor, *, block: int) -> "Direction":
        """Of a vector [D] at a block. The random directions are the block's own, and so the same for every vector."""
        (units,) = with_random(vector.unsqueeze(0), seed=1000 * block)
        return cls(block=block, units=units)


def project(
    run: Run, texts: Sequence[Text], direction: Direction, *, parts: Sequence[Over]
) -> list[dict[Over, Projected]]:
    """Projections of the averages of `parts` of each text, in order, the same on every rank.

    Source: arXiv 2507.21509 (monitoring and screening); the random directions are a replication's advice."""
    world = run.world
    own_places = range(world.rank, len(texts), world.size)
    found: dict[int, dict[Over, Projected]] = {}
    with run.strategy.sampling_policy() as policy:
        own = [texts[place] for place in own_places]
        for places, of_parts in averages(policy, own, budget_tokens=run.config.train.tokens_per_micro_batch):
            along = {over: of_parts[over][:, direction.block] @ direction.units.T for over in parts}  # [S, 1 + R]
            for row, place in enumerate(places):
                numbers = {over: along[over][row].tolist() for over in parts}
                found[own_places[place]] = {over: Projected(n[0], tuple(n[1:])) for over, n in numbers.items()}
            world.progress("projections")
    of_all = {place: of_text for of_rank in world.gather(found) for place, of_text in of_rank.items()}
    return [of_all[place] for place in range(len(texts))]
