"""How stages end and what they say of it; moves, rests, metrics; memory of many problems."""

import tracemalloc

import pytest

from curricula.mixture import Mixture
from curricula.online import Online
from curricula.plateau import PlateauRule
from curricula.stages import StageRule, TwoStages
from curricula.tiers import MoveRule
from curricula.types import Outcome, Tier
from curricula.weighted import Weighted

MODERATE, EXTREME = (Tier.moderate,), (Tier.extreme,)


def pool(*, moderate=0, extreme=0):
    return {f"moderate{index}": Tier.moderate for index in range(moderate)} | {
        f"extreme{index}": Tier.extreme for index in range(extreme)
    }


def step(curriculum, *, problems=4, right=4, of=8):
    chosen = curriculum.next(problems)
    curriculum.observe([Outcome(name, of, right(name) if callable(right) else right) for name in chosen])
    curriculum.end_step()
    return chosen


@pytest.mark.parametrize(
    ("steps", "right", "reason", "ended_after"),
    [
        (3, 4, "3 steps", 3),
        (90, 4, "pass rate flat at 0.5000: rises by at most 0.0000 in 8 steps", 8),
        (90, 8, "100.0% of its problems trivial", 4),
    ],
)
def test_a_stage_ends_at_whichever_of_its_ends_comes_first_and_says_which(steps, right, reason, ended_after):
    rule = StageRule("one", MODERATE, steps=steps, plateau=PlateauRule(window_steps=8), trivial_fraction=0.9)
    curriculum = TwoStages(pool(moderate=8, extreme=2), stages=[rule, StageRule("two", EXTREME)], seed=0)
    number = 0
    while curriculum.stage == 0:
        step(curriculum, right=right)
        number += 1
    assert (curriculum.switch_reason, number) == (reason, ended_after)


def test_metrics_are_of_the_step_that_ended_also_where_it_ended_its_stage():
    stages = [StageRule("one", MODERATE, steps=2, trivial_fraction=1.0), StageRule("two", EXTREME)]
    curriculum = TwoStages(pool(moderate=8, extreme=2), stages=stages, seed=0)
    read = []
    for _ in range(4):
        step(curriculum, problems=2, right=8)
        metrics = curriculum.metrics()
        names = ("stage", "stage_steps", "practised_problems", "tier_trivial", "stage_share_trivial")
        read.append([metrics[f"curriculum/{name}"] for name in names])
    # Two groups make the moves: the two extreme problems are trivial, hence resting, after step 4, and then practised
    # all the same, since the stage has no others.
    assert read == [[0, 1, 8, 0, 0.0], [0, 2, 8, 0, 0.0], [1, 1, 2, 0, 0.0], [1, 2, 2, 2, 1.0]]


def test_the_share_of_trivial_problems_can_be_watched_as_it_nears_the_switch():
    stages = [StageRule("one", MODERATE, trivial_fraction=0.75), StageRule("two", EXTREME)]
    curriculum = TwoStages(pool(moderate=8, extreme=2), stages=stages, seed=0)
    shares = []
    while curriculum.stage == 0:
        step(curriculum, problems=2, right=8)
        shares.append(curriculum.metrics()["curriculum/stage_share_trivial"])
    assert shares[-1] == 0.75
    assert shares == sorted(shares)


def test_the_plateau_looks_at_the_stages_own_problems_alone():
    rule = StageRule("two", EXTREME, mix_tiers=MODERATE, mix_fraction=0.5, plateau=PlateauRule(window_steps=4))
    curriculum = TwoStages(pool(moderate=50, extreme=50), stages=[rule], seed=0)
    rises = iter(range(100))
    for _ in range(4):
        number = next(rises)  # the mixed ones get better with every step, the extreme ones do not
        step(curriculum, problems=8, right=lambda name, number=number: 1 if name[0] == "e" else 2 * number)
    assert curriculum.finished
    assert curriculum.switch_reason.startswith("pass rate flat at 0.1250")


def test_a_stage_that_follows_moves_draws_those_that_left_it_through_its_mix():
    rule = StageRule("two", EXTREME, mix_tiers=MODERATE, mix_fraction=0.25, follow_moves=True)
    curriculum = TwoStages(pool(extreme=8, moderate=1), stages=[rule], seed=0)
    for _ in range(6):
        step(curriculum, problems=8, right=lambda name: 3 if name in ("extreme0", "moderate0") else 0)
    assert curriculum.tier_counts[Tier.moderate] == 2
    chosen = curriculum.next(8)
    assert {"extreme0", "moderate0"} <= set(chosen)
    assert len(set(chosen)) == 8


@pytest.mark.parametrize("kind", ["two_stages", "mixture"])
def test_checks_of_solved_problems_take_at_most_a_group_in_so_many_epochs(kind):
    tiers, moves = pool(moderate=200), MoveRule(check_every_epochs=4)
    curriculum = (
        TwoStages(tiers, stages=[StageRule("one", MODERATE)], seed=0, moves=moves)
        if kind == "two_stages"
        else Mixture(tiers, shares={Tier.moderate: 1}, seed=0, moves=moves)
    )

    def right(name):
        return 4 if name in ("moderate0", "moderate1") else 8

    curriculum.observe([Outcome(name, 8, right(name)) for name in [*tiers, *tiers]])
    curriculum.end_step()
    chosen = [name for _ in range(2000) for name in step(curriculum, problems=2, right=right)]  # 20 epochs of 200
    checks = [name for name in chosen if right(name) == 8]
    assert len(checks) == 198 * 4  # at epochs 4, 8, 12 and 16, and from 20 on again
    assert len(checks) / len(chosen) <= 1 / 4


def test_tiers_with_labels_refuse_a_rule_that_moves_by_one_group():
    moves = MoveRule(min_observations=1)
    with pytest.raises(ValueError, match="min_observations = 1: must be at least 2"):
        TwoStages(pool(moderate=1), stages=[StageRule("one", MODERATE)], seed=0, moves=moves)
    with pytest.raises(ValueError, match="min_observations = 1: must be at least 2"):
        Mixture(pool(moderate=1), shares={Tier.moderate: 1}, seed=0, moves=moves)


@pytest.mark.parametrize("kind", ["two_stages", "mixture", "weighted", "online"])
def test_a_problem_takes_less_than_a_hundred_bytes(kind):
    number = 20_000
    tiers = pool(moderate=number)
    tracemalloc.start()
    curriculum = {
        "two_stages": lambda: TwoStages(tiers, stages=[StageRule("one", MODERATE)], seed=0),
        "mixture": lambda: Mixture(tiers, shares={Tier.moderate: 1}, seed=0),
        "weighted": lambda: Weighted(tiers, seed=0),
        "online": lambda: Online(tiers, seed=0),
    }[kind]()
    for _ in range(3):
        step(curriculum)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / number < 100
