"""Whom a step asks after groups without variance were dropped, and how many."""

import math
from collections import Counter
from collections.abc import Sequence

from curricula.curriculum import Curriculum
from curricula.types import Tier

MOST_PER_WAVE = 4
"""A refill asks for at most so many times the problems of a step: where hardly a group teaches, a guess at how many
others would is no better than another wave."""


def next_wave(
    curriculum: Curriculum, *, num_wanted: int, tried: Sequence[tuple[str, bool]], waves_done: int, max_waves: int
) -> list[str]:
    """Ids of the problems of the next wave of this step, from the curriculum; none: train on what is kept.

    tried       the problems of the waves so far, in order, and whether the group of each has variance
    waves_done  waves so far; the first one is no refill, so max_waves = 1 never refills

    The first wave asks for num_wanted. A refill asks for as many as should hold the groups that are missing: of the
    problems of a tier, (kept + 1) / (asked + 2) of those that this step has tried. By tier, since a refill is drawn
    from others than the first wave: where `online` looks at resting problems first and refills with moderate ones, the
    yield of the look would ask for too many of these. So a step is full after one or two refills, each large enough to
    fill a sampler, whatever the yield is. A wave is sampled whole: what a step trains on depends on the order of
    problems, and not on which rollout finished first. The trainer keeps the first num_wanted groups by that order.
    Raises ValueError unless num_wanted >= 1, waves_done >= 0 and max_waves >= 1."""
    if num_wanted < 1 or waves_done < 0 or max_waves < 1:
        raise ValueError(
            "a wave needs num_wanted >= 1, waves_done >= 0 and max_waves >= 1; "
            f"got num_wanted={num_wanted}, waves_done={waves_done}, max_waves={max_waves}"
        )
    num_missing = num_wanted - sum(varied for _, varied in tried)
    if waves_done >= max_waves or num_missing <= 0:
        return []
    if waves_done == 0:
        return curriculum.next(num_wanted)
    asked: Counter[Tier | None] = Counter()
    kept: Counter[Tier | None] = Counter()
    for problem_id, varied in tried:
        tier = curriculum.tier_of(problem_id)
        asked[tier] += 1
        kept[tier] += varied
    wave: list[str] = []
    still_missing = float(num_missing)
    most = MOST_PER_WAVE * num_wanted
    while still_missing > 1e-9 and len(wave) < most:  # each problem holds at most one group: no request is too large
        more = curriculum.next(min(math.ceil(still_missing), most - len(wave)))
        tiers = [curriculum.tier_of(problem_id) for problem_id in more]
        still_missing -= sum((kept[tier] + 1) / (asked[tier] + 2) for tier in tiers)
        wave += more
    return wave
