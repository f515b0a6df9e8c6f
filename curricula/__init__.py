"""Which problems are practised next, judged by outcomes alone: no model, no tensor, no trainer.

Standalone use, with any function `solve(problem_id, attempt) -> bool` of yours:

    from curricula import Outcome, ProfileStore, SequentialProfile, StageRule, Tier, TwoStages, tier_table

    with ProfileStore.open("profile.jsonl", fingerprint={"policy": "v1", "temperature": 1.0}) as store:
        profile = SequentialProfile(problem_ids, max_rollouts=512, store=store)
        while draws := profile.next_wave(4096):
            for draw in draws:
                attempts = range(draw.first_attempt, draw.first_attempt + draw.num_rollouts)
                correct = [solve(draw.problem_id, attempt) for attempt in attempts]
                profile.observe(draw.problem_id, draw.first_attempt, correct, [1] * draw.num_rollouts)
        tiers = {row.problem_id: row.tier for row in tier_table(store)}
    stages = [StageRule("moderate", (Tier.moderate,), steps=100), StageRule("extreme", (Tier.extreme,))]
    curriculum = TwoStages(tiers, stages=stages, seed=0)
    for problem_id in curriculum.next(32):
        curriculum.observe([Outcome(problem_id, 16, sum(solve(problem_id, attempt) for attempt in range(16)))])
    curriculum.end_step()
"""

from curricula.comparison import Decision, Guard, Reading, compare_temperatures
from curricula.curriculum import Curriculum, Uniform
from curricula.estimates import (
    avg_at_k,
    clopper_pearson,
    clustered_bootstrap,
    first_success_interval,
    no_success_interval,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    wilson,
)
from curricula.plateau import Plateau, PlateauRule, detect_plateau
from curricula.profiling import (
    Expected,
    Progress,
    SequentialProfile,
    expected_rollouts,
    expected_rollouts_left,
    wave_boundaries,
)
from curricula.refill import refill_deficit
from curricula.stages import StageRule, TwoStages
from curricula.store import ProfileStore, Record, TierRow, tier_table
from curricula.temperature import Adaptive, Constant, Cosine, Linear, Steps, TemperatureSchedule
from curricula.tiers import MoveRule
from curricula.types import TIERS, Draw, Outcome, Tier
from curricula.weighted import Mixture, Weighted

__all__ = [
    "TIERS",
    "Adaptive",
    "Constant",
    "Cosine",
    "Curriculum",
    "Decision",
    "Draw",
    "Expected",
    "Guard",
    "Linear",
    "Mixture",
    "MoveRule",
    "Outcome",
    "Plateau",
    "PlateauRule",
    "ProfileStore",
    "Progress",
    "Reading",
    "Record",
    "SequentialProfile",
    "StageRule",
    "Steps",
    "TemperatureSchedule",
    "Tier",
    "TierRow",
    "TwoStages",
    "Uniform",
    "Weighted",
    "avg_at_k",
    "clopper_pearson",
    "clustered_bootstrap",
    "compare_temperatures",
    "detect_plateau",
    "expected_rollouts",
    "expected_rollouts_left",
    "first_success_interval",
    "no_success_interval",
    "paired_difference",
    "pass_at_k",
    "pass_hat_k",
    "refill_deficit",
    "tier_table",
    "wave_boundaries",
    "wilson",
]
