"""Stages: which problems they practise, when they end, how problems move; refill; weights and shares."""

import math
from collections import Counter

import numpy as np
import pytest

from curricula.curriculum import Uniform
from curricula.mixture import Mixture
from curricula.online import Online
from curricula.plateau import PlateauRule
from curricula.refill import next_wave
from curricula.stages import StageRule, TwoStages
from curricula.tiers import MoveRule, RunningRates, moved_tier
from curricula.types import Outcome, Tier
from curricula.weighted import Weighted

MODERATE, EXTREME = (Tier.moderate,), (Tier.extreme,)


def tiers(*, trivial=0, moderate=0, extreme=0, unsolved=0):
    counts = {Tier.trivial: trivial, Tier.moderate: moderate, Tier.extreme: extreme, Tier.unsolved: unsolved}
    return {f"{tier}{index}": tier for tier, count in counts.items() for index in range(count)}


def step(curriculum, *, problems=4, right=4, of=8):
    chosen = curriculum.next(problems)
    curriculum.observe([Outcome(name, of, right(name) if callable(right) else right) for name in chosen])
    curriculum.end_step()
    return chosen


def test_stages_switch_at_their_steps_and_the_last_end_finishes():
    pool = tiers(trivial=5, moderate=8, extreme=8, unsolved=5)
    stages = [StageRule("one", MODERATE, steps=3), StageRule("two", EXTREME, steps=2)]
    curriculum = TwoStages(pool, stages=stages, seed=0)
    practised = []
    for expected_stage in (0, 0, 0, 1, 1):
        assert (curriculum.stage, curriculum.finished) == (expected_stage, False)
        practised.append({pool[name] for name in step(curriculum)})
    assert practised == [{Tier.moderate}] * 3 + [{Tier.extreme}] * 2
    assert curriculum.finished
    assert curriculum.switch_reason == "2 steps"
    assert {pool[name] for name in curriculum.next(4)} == {Tier.extreme}


def test_a_stage_ends_when_its_pass_rate_is_flat_and_not_while_it_rises():
    rule = PlateauRule(window_steps=10, confidence=0.9, improvement_fraction=0.05)
    generator = np.random.Generator(np.random.PCG64(0))
    ended = {}
    for name, slope in (("rising", 0.02), ("flat", 0.0)):
        stages = [StageRule("one", MODERATE, plateau=rule), StageRule("two", EXTREME)]
        curriculum = TwoStages(tiers(moderate=50, extreme=5), stages=stages, seed=0)
        for number in range(30):
            rate = 0.2 + slope * number
            step(curriculum, problems=16, right=lambda _, rate=rate: int(generator.binomial(64, rate)), of=64)
            if curriculum.stage:
                ended[name] = number
                break
    assert "rising" not in ended
    assert 9 <= ended["flat"] < 30


def test_a_stage_ends_when_a_share_of_its_problems_is_trivial():
    stages = [StageRule("one", MODERATE, trivial_fraction=0.5), StageRule("two", EXTREME)]
    curriculum = TwoStages(tiers(moderate=8, extreme=4), stages=stages, seed=0)
    while curriculum.stage == 0:
        step(curriculum, right=lambda name: 8 if int(name[-1]) < 4 else 2)
    assert curriculum.tier_counts[Tier.trivial] == 4
    assert curriculum.switch_reason == "50.0% of its problems trivial"


def test_a_last_stage_whose_problems_are_all_trivial_is_finished_and_still_gives_problems():
    curriculum = TwoStages(tiers(moderate=4), stages=[StageRule("one", MODERATE)], seed=0)
    for _ in range(2):
        step(curriculum, right=8)
    assert curriculum.finished
    assert len(set(curriculum.next(4))) == 4


def test_an_empty_tier_is_refused_with_every_count_and_a_remedy():
    with pytest.raises(
        ValueError, match=r"'two'.*extreme hold no problem \(trivial 1, moderate 3, extreme 0, unsolved 2"
    ):
        TwoStages(
            tiers(trivial=1, moderate=3, unsolved=2),
            stages=[StageRule("one", MODERATE, steps=1), StageRule("two", EXTREME)],
            seed=0,
        )


def test_a_stage_without_an_end_before_another_is_refused():
    with pytest.raises(ValueError, match="never ends"):
        TwoStages(tiers(moderate=1, extreme=1), stages=[StageRule("one", MODERATE), StageRule("two", EXTREME)], seed=0)


def test_a_tier_smaller_than_a_step_repeats_its_problems_and_says_so():
    curriculum = TwoStages(tiers(moderate=3), stages=[StageRule("one", MODERATE)], seed=0)
    chosen = step(curriculum, problems=8)
    assert sorted(Counter(chosen).values()) == [2, 3, 3]
    assert curriculum.metrics()["curriculum/repeated_problems"] == 5
    step(curriculum, problems=3)
    assert curriculum.metrics()["curriculum/repeated_problems"] == 0


def test_mix_tiers_fill_a_step_that_the_stage_cannot():
    pool = tiers(moderate=20, extreme=3)
    stages = [StageRule("two", EXTREME, mix_tiers=MODERATE)]
    curriculum = TwoStages(pool, stages=stages, seed=0)
    chosen = curriculum.next(8)
    assert len(set(chosen)) == 8
    assert Counter(pool[name] for name in chosen) == {Tier.extreme: 3, Tier.moderate: 5}


def test_the_mixed_share_is_met_over_the_run_however_small_the_calls():
    pool = tiers(moderate=200, extreme=200)
    stages = [StageRule("two", EXTREME, mix_tiers=MODERATE, mix_fraction=0.25)]
    curriculum = TwoStages(pool, stages=stages, seed=0)
    chosen = [name for _ in range(200) for name in step(curriculum, problems=1, right=1)]
    assert Counter(pool[name] for name in chosen) == {Tier.extreme: 150, Tier.moderate: 50}


def test_extreme_problems_that_begin_to_be_solved_stay_in_practice_until_trivial():
    curriculum = TwoStages(tiers(extreme=4), stages=[StageRule("two", EXTREME)], seed=0)
    for _ in range(3):
        assert len(set(step(curriculum, right=3))) == 4
    assert curriculum.tier_counts == {Tier.trivial: 0, Tier.moderate: 4, Tier.extreme: 0, Tier.unsolved: 0}
    assert len(set(step(curriculum, right=3))) == 4


def test_a_stage_may_follow_moves_instead():
    curriculum = TwoStages(tiers(extreme=8), stages=[StageRule("two", EXTREME, follow_moves=True)], seed=0)
    for _ in range(4):
        step(curriculum, problems=8, right=lambda name: 3 if name == "extreme0" else 0)
    assert "extreme0" not in {name for _ in range(4) for name in step(curriculum, problems=7, right=0)}


def test_one_group_alone_moves_nobody():
    curriculum = TwoStages(tiers(moderate=4), stages=[StageRule("one", MODERATE)], seed=0)
    step(curriculum, right=8)
    assert curriculum.tier_counts[Tier.trivial] == 0
    step(curriculum, right=8)
    assert curriculum.tier_counts[Tier.trivial] == 4


def test_a_retired_problem_rests_and_comes_back_for_a_check():
    moves = MoveRule(check_every_epochs=3)
    curriculum = TwoStages(tiers(moderate=4), stages=[StageRule("one", MODERATE)], seed=0, moves=moves)
    seen = [set(step(curriculum, problems=3, right=lambda name: 8 if name == "moderate0" else 4)) for _ in range(24)]
    appearances = [number for number, names in enumerate(seen) if "moderate0" in names]
    assert len(appearances) >= 3  # twice to retire, then at least one check
    assert max(np.diff(appearances)) >= 3
    never = TwoStages(
        tiers(moderate=4), stages=[StageRule("one", MODERATE)], seed=0, moves=MoveRule(check_every_epochs=None)
    )
    seen = [set(step(never, problems=3, right=lambda name: 8 if name == "moderate0" else 4)) for _ in range(24)]
    assert sum("moderate0" in names for names in seen) == 2


def test_a_retired_problem_that_fails_its_check_is_practised_again():
    assert moved_tier(Tier.trivial, 0.5, rule=MoveRule()) is Tier.moderate
    assert moved_tier(Tier.moderate, 0.0, rule=MoveRule()) is Tier.moderate
    assert moved_tier(Tier.extreme, 0.05, rule=MoveRule()) is Tier.extreme
    assert moved_tier(Tier.extreme, 0.2, rule=MoveRule()) is Tier.moderate
    assert moved_tier(Tier.unsolved, 0.05, rule=MoveRule()) is Tier.extreme
    assert moved_tier(Tier.extreme, 0.95, rule=MoveRule()) is Tier.trivial


def test_a_group_weighs_half_as_much_a_half_life_later():
    rates = RunningRates(1, half_life_observations=2.0)
    rates.observe(0, Outcome("a", 8, 8))
    for _ in range(2):
        rates.observe(0, Outcome("a", 8, 0))
    assert rates.rate(0) == pytest.approx(4 / (4 + 8 * 0.5**0.5 + 8))
    before = rates.rate(0)
    rates.observe(0, Outcome("a", 0, 0))
    assert rates.rate(0) == before


def wave_size(kept: int, asked: int, waves: int, *, most: int = 3) -> int:
    """Problems of the next wave of a step of 32 that has kept so many groups of those asked for."""
    curriculum = Uniform([f"p{index}" for index in range(1000)], seed=0)
    tried = [(name, place < kept) for place, name in enumerate(curriculum.next(asked) if asked else [])]
    return len(next_wave(curriculum, num_wanted=32, tried=tried, waves_done=waves, max_waves=most))


def test_a_refill_asks_for_what_should_hold_the_missing_groups_until_its_waves_are_used_up():
    assert wave_size(0, 0, 0) == 32
    assert wave_size(20, 32, 1) == math.ceil(12 * 34 / 21) == 20  # 12 are missing, and 21 of 34 teach
    assert wave_size(31, 32, 1) == 2
    assert wave_size(4, 32, 1) == 4 * 32  # 28 · 34 / 5 = 191 would be a guess at most
    assert wave_size(0, 32, 1) == 4 * 32
    assert (wave_size(32, 32, 1), wave_size(33, 40, 1)) == (0, 0)
    assert (wave_size(30, 60, 3), wave_size(20, 32, 1, most=1)) == (0, 0)
    for wrong in ({"num_wanted": 0}, {"max_waves": 0}, {"waves_done": -1}):
        with pytest.raises(ValueError, match="a wave needs"):
            next_wave(
                Uniform(["a"], seed=0), **({"num_wanted": 32, "tried": [], "waves_done": 0, "max_waves": 1} | wrong)
            )


def test_a_refill_is_sized_by_those_it_is_drawn_from():
    names = [f"p{index:03d}" for index in range(100)]
    curriculum = Online(names, seed=0, moves=MoveRule(min_observations=1, check_every_epochs=1))
    # Half of the problems teach; the others are trivial, and after an epoch all of these are due at once.
    outcomes = [Outcome(name, 8, 4 if index < 50 else 8) for index, name in enumerate(names)]
    for told in (outcomes, outcomes[:50]):
        curriculum.next(100)
        curriculum.observe(told)
        curriculum.end_step()
    first = next_wave(curriculum, num_wanted=16, tried=[], waves_done=0, max_waves=2)
    tried = [(name, int(name[1:]) < 50) for name in first]
    assert sum(varied for _, varied in tried) == 8  # half of the first request looks at those that rested
    refill = next_wave(curriculum, num_wanted=16, tried=tried, waves_done=1, max_waves=2)
    # 8 are missing and 9 of 10 moderate ones teach, so 9 should do; all 16 groups alike would ask for 16.
    assert len(refill) == 9
    assert all(int(name[1:]) < 50 for name in refill)


@pytest.mark.parametrize(("share", "most_missing"), [(0.1, 0.2), (0.3, 0.05), (0.8, 0.05)])
def test_two_refills_fill_nearly_every_step_whatever_share_of_groups_teaches(share, most_missing):
    random = np.random.Generator(np.random.PCG64(0))
    curriculum = Uniform([f"p{index}" for index in range(1000)], seed=0)
    missing = 0
    for _ in range(400):
        tried: list[tuple[str, bool]] = []
        waves = 0
        while wave := next_wave(curriculum, num_wanted=16, tried=tried, waves_done=waves, max_waves=3):
            tried += [(name, bool(random.random() < share)) for name in wave]
            waves += 1
        curriculum.end_step()
        missing += max(0, 16 - sum(varied for _, varied in tried))
    assert missing / (400 * 16) < most_missing


def test_weights_follow_the_spread_of_the_outcomes():
    names = [f"p{index}" for index in range(40)]
    curriculum = Weighted(names, seed=0)
    curriculum.observe([Outcome(name, 64, 32 if index < 10 else 64) for index, name in enumerate(names)] * 3)
    drawn = Counter()
    for _ in range(300):
        drawn.update(curriculum.next(4))
        curriculum.end_step()
    # Ten problems at p(1-p) = 1/4 against thirty at the floor 0.01: 2.5 / 2.8 of the first draw of each step.
    share = sum(drawn[name] for name in names[:10]) / sum(drawn.values())
    assert 0.8 < share < 0.92
    assert all(drawn[name] for name in names)


def test_mixture_meets_its_shares_and_follows_present_tiers():
    pool = tiers(moderate=40, extreme=40)
    curriculum = Mixture(pool, shares={Tier.moderate: 0.75, Tier.extreme: 0.25}, seed=0)
    chosen = [name for _ in range(40) for name in step(curriculum, problems=5, right=0)]
    assert Counter(pool[name] for name in chosen) == {Tier.moderate: 150, Tier.extreme: 50}
    curriculum = Mixture(pool, shares={Tier.moderate: 0.75, Tier.extreme: 0.25}, seed=0)
    for _ in range(25):  # 125 groups: two for each moderate problem, the rest for extreme ones
        step(curriculum, problems=5, right=8)
    assert curriculum.metrics()["curriculum/tier_moderate"] == 0
    assert {pool[name] for name in curriculum.next(5)} == {Tier.extreme}
    with pytest.raises(ValueError, match="unsolved holds no problem"):
        Mixture(pool, shares={Tier.unsolved: 1.0}, seed=0)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"tiers": ()}, "at least one tier"),
        ({"tiers": MODERATE, "steps": 0}, "steps = 0"),
        ({"tiers": MODERATE, "trivial_fraction": 1.5}, "trivial_fraction"),
        ({"tiers": MODERATE, "mix_fraction": 0.5}, "needs mix_tiers"),
        ({"tiers": MODERATE, "mix_tiers": MODERATE}, "repeat tiers"),
    ],
)
def test_impossible_stages_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        StageRule("one", **fields)
