"""Who does what, decided before anything is done: a pure function of what every rank knows. Needs no torch."""

from collections.abc import Sequence


def shares(costs: Sequence[float], *, num_ranks: int) -> list[list[int]]:
    """For each rank the places in `costs` that are its own, in order: the costliest first to who has least so far.

    No rank's sum is above 4/3 of the best possible (Graham 1969, longest processing time first). Ties go to the lower
    rank, so that the plan depends on the costs alone."""
    sums = [0.0] * num_ranks
    own: list[list[int]] = [[] for _ in range(num_ranks)]
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        # A rank without anything first, whatever things cost: nobody stands by while another has two.
        rank = min(range(num_ranks), key=lambda rank: (sums[rank], len(own[rank]), rank))
        sums[rank] += costs[place]
        own[rank].append(place)
    return [sorted(places) for places in own]
