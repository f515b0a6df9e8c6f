"""How many more problems a step asks for after groups without variance were dropped."""


def refill_deficit(num_wanted: int, kept: int, waves_done: int, *, max_waves: int) -> int:
    """Problems to ask for in the next wave of this step; 0: train on what is kept.

    The first wave counts as one: with nothing kept and no wave done the deficit is num_wanted, and max_waves = 1 never
    refills. A wave is as large as the deficit and is sampled whole, so what a step trains on depends on the order of
    problems and not on which rollout finished first. The trainer keeps the first num_wanted groups by that order.
    Raises ValueError unless num_wanted >= 1, kept >= 0, waves_done >= 0 and max_waves >= 1."""
    if num_wanted < 1 or kept < 0 or waves_done < 0 or max_waves < 1:
        raise ValueError(
            "refill needs num_wanted >= 1, kept >= 0, waves_done >= 0 and max_waves >= 1; "
            f"got num_wanted={num_wanted}, kept={kept}, waves_done={waves_done}, max_waves={max_waves}"
        )
    return 0 if waves_done >= max_waves else max(0, num_wanted - kept)
