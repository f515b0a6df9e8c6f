"""How many more problems a step asks for after groups without variance were dropped."""

import math

MOST_PER_WAVE = 4
"""A refill asks for at most so many times the problems of a step: where hardly a group teaches, a guess at how many
others would is no better than another wave."""


def refill_size(num_wanted: int, *, kept: int, asked: int, waves_done: int, max_waves: int) -> int:
    """Problems to ask for in the next wave of this step; 0: train on what is kept.

    kept        groups with variance so far, out of `asked`
    waves_done  waves so far; the first one is no refill, so max_waves = 1 never refills

    The first wave asks for num_wanted. A refill asks for as many as should hold the groups that are missing, at the
    share (kept + 1) / (asked + 2) that was seen in this step, so that a step is full after one or two refills, each
    large enough to fill a sampler, whatever the share is. It is sampled whole: what a step trains on depends on the
    order of problems, and not on which rollout finished first. The trainer keeps the first num_wanted groups by that
    order.
    Raises ValueError unless num_wanted >= 1, 0 <= kept <= asked, waves_done >= 0 and max_waves >= 1."""
    if num_wanted < 1 or not 0 <= kept <= asked or waves_done < 0 or max_waves < 1:
        raise ValueError(
            "refill needs num_wanted >= 1, 0 <= kept <= asked, waves_done >= 0 and max_waves >= 1; "
            f"got num_wanted={num_wanted}, kept={kept}, asked={asked}, waves_done={waves_done}, max_waves={max_waves}"
        )
    if waves_done >= max_waves or kept >= num_wanted:
        return 0
    if waves_done == 0:
        return num_wanted
    share = (kept + 1) / (asked + 2)
    return min(math.ceil((num_wanted - kept) / share), MOST_PER_WAVE * num_wanted)
