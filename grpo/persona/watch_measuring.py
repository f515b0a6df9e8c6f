"""How much of a trait the step's completions show, as the trait's own scorer says: asked while the update runs."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from random import Random

from grpo import seeds
from grpo.distributed.world import World
from grpo.rollout import check_lost, lost
from grpo.types import Group, StepStats
from rewards import Pool, Reward, RewardSpec, Status

Place = tuple[int, int]
"""A group of the step and a rollout of it, by their places."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Verdicts of one rank's share, by trait and place, as they come in."""

    verdicts: Mapping[str, Mapping[Place, Future[Reward]]]


def measured_places(groups: Sequence[Group], *, most: int | None, seed: int, step: int) -> list[Place]:
    """Which rollouts are scored for a trait: all, or at most `most`, group by group in an order drawn by `seed` and
    `step`, since a group's variance needs its members. The last group may be cut."""
    order = list(range(len(groups)))
    if most is not None:
        Random(seeds.key(seed, "measured groups", step)).shuffle(order)
    places = [(place, member) for place in order for member in range(len(groups[place].rollouts))]
    return places[:most]


class Measuring:
    """Asks the traits' scorers through the pool that rewards go through, each rank for its share."""

    def __init__(
        self, scorers: Mapping[str, RewardSpec], *, pool: Pool, world: World, max_error_fraction: float
    ) -> None:
        """`scorers` by the trait's name."""
        self._scorers, self._pool, self._world = scorers, pool, world
        self._max_error_fraction = max_error_fraction

    def ask(self, groups: Sequence[Group], places: Sequence[Place]) -> Asked:
        """Submit this rank's share of the verdicts; nothing is waited for."""
        own = places[self._world.rank :: self._world.size]
        verdicts: dict[str, dict[Place, Future[Reward]]] = {name: {} for name in self._scorers}
        for name, scorer in self._scorers.items():
            for place, member in own:
                group = groups[place]
                rollout = group.rollouts[member]
                view = group.problem.for_verifier(finished=rollout.finished, num_tokens=rollout.num_actions)
                verdicts[name][place, member] = self._pool.submit(scorer, group.completions[member], view)
        return Asked(verdicts)

    def count(self, asked: Asked, stats: StepStats, *, step: int) -> None:
        """Wait for the verdicts of all ranks and add what they say of each trait. `step` counts from 1.

        A verdict that is lost has no value and is counted. Raises RewardError where more than the allowed share is."""
        own: dict[str, dict[Place, Reward]] = {}
        for name, futures in asked.verdicts.items():
            own[name] = {}
            for place, verdict in futures.items():
                own[name][place] = verdict.result()
                self._world.progress()
        of_ranks = self._world.gather(own)
        for name in self._scorers:
            found = {place: reward for of_rank in of_ranks for place, reward in of_rank[name].items()}
            self._count_trait(name, [found[place] for place in sorted(found)], sorted(found), stats, step=step)

    def _count_trait(
        self, name: str, rewards: Sequence[Reward], places: Sequence[Place], stats: StepStats, *, step: int
    ) -> None:
        check_lost(
            lost(rewards),
            num_verdicts=len(rewards),
            max_error_fraction=self._max_error_fraction,
            place=f"step {step}, scoring the trait {name}",
        )
        of_groups: dict[int, list[float]] = {}
        for (place, _), reward in zip(places, rewards, strict=True):
            if reward.value is not None:
                of_groups.setdefault(place, []).append(reward.value)
        stats.add_values(f"persona/{name}/rate", [value for of_group in of_groups.values() for value in of_group])
        several = [of_group for of_group in of_groups.values() if len(of_group) > 1]
        stats.add_values(f"persona/{name}/group_variance", [_variance(of_group) for of_group in several])
        stats.add_count(f"persona/{name}/measured", len(rewards))
        stats.add_count(f"persona/{name}/lost", sum(r.status in (Status.ERROR, Status.TIMEOUT) for r in rewards))


def _variance(values: Sequence[float]) -> float:
    """Of the population, as the standard deviation that an advantage is divided by is."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)
