"""Which problems are practised next, judged by outcomes alone: no model, no tensor, no trainer.

Standalone use, with any function `solve(problem_id, attempt) -> bool` of yours:

    from curricula import Outcome, ProfileStore, Record, SequentialProfile, StageRule, Tier, TwoStages, tier_table

    store = ProfileStore("profile", fingerprint={"policy": "v1", "temperature": 1.0})
    with store.shard() as shard:
        profile = SequentialProfile(problem_ids, max_rollouts=512, known=store.attempts())
        while draws := profile.next_wave(4096):
            for draw in draws:
                attempts = range(draw.first_attempt, draw.first_attempt + draw.num_rollouts)
                correct = [solve(draw.problem_id, attempt) for attempt in attempts]
                shard.append([Record(draw.problem_id, draw.first_attempt, tuple(correct), (1,) * draw.num_rollouts)])
                profile.observe(draw.problem_id, draw.first_attempt, correct, [1] * draw.num_rollouts)
    tiers = {row.problem_id: row.tier for row in tier_table(profile.attempts)}
    stages = [StageRule("moderate", (Tier.moderate,), steps=100), StageRule("extreme", (Tier.extreme,))]
    curriculum = TwoStages(tiers, stages=stages, seed=0)
    for problem_id in curriculum.next(32):
        curriculum.observe([Outcome(problem_id, 16, sum(solve(problem_id, attempt) for attempt in range(16)))])
    curriculum.end_step()
"""

from curricula.comparison import Decision, Guard, Measured, Reading, compare_temperatures, unbiased_signal
from curricula.counterfactual import ReweightedGroup, ReweightedWindow, reweight
from curricula.curriculum import Curriculum, Uniform
from curricula.diversity import Diversity, distinct_fraction
from curricula.estimates import (
    avg_at_k,
    best_of_k,
    clopper_pearson,
    clustered_bootstrap,
    equivalent,
    first_success_interval,
    holm,
    majority_at_k,
    no_success_interval,
    paired_difference,
    paired_t_interval,
    pass_at_k,
    pass_hat_k,
    ratio_interval,
    wilson,
)
from curricula.label_errors import LabelRules, expected_confusion, label_errors, tier_intervals
from curricula.mixture import Mixture
from curricula.online import Online
from curricula.plateau import Plateau, PlateauRule, detect_plateau
from curricula.profiling import (
    Expected,
    Progress,
    SequentialProfile,
    expected_rollouts,
    expected_rollouts_left,
    wave_boundaries,
)
from curricula.refill import next_wave
from curricula.shards import Record
from curricula.stages import StageRule, TwoStages
from curricula.store import ProfileStore, TierRow, tier_table
from curricula.temperature import Adaptive, Constant, Cosine, Linear, Steps, TemperatureSchedule
from curricula.tiers import MoveRule
from curricula.types import TIERS, Draw, Outcome, Tier
from curricula.weighted import Weighted

__all__ = [
    "TIERS",
    "Adaptive",
    "Constant",
    "Cosine",
    "Curriculum",
    "Decision",
    "Diversity",
    "Draw",
    "Expected",
    "Guard",
    "LabelRules",
    "Linear",
    "Measured",
    "Mixture",
    "MoveRule",
    "Online",
    "Outcome",
    "Plateau",
    "PlateauRule",
    "ProfileStore",
    "Progress",
    "Reading",
    "Record",
    "ReweightedGroup",
    "ReweightedWindow",
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
    "best_of_k",
    "clopper_pearson",
    "clustered_bootstrap",
    "compare_temperatures",
    "detect_plateau",
    "distinct_fraction",
    "equivalent",
    "expected_confusion",
    "expected_rollouts",
    "expected_rollouts_left",
    "first_success_interval",
    "holm",
    "label_errors",
    "majority_at_k",
    "next_wave",
    "no_success_interval",
    "paired_difference",
    "paired_t_interval",
    "pass_at_k",
    "pass_hat_k",
    "ratio_interval",
    "reweight",
    "tier_intervals",
    "tier_table",
    "unbiased_signal",
    "wave_boundaries",
    "wilson",
]
