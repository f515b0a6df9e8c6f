"""A second profile in the middle of a run: labels change between two steps, and stages follow."""

import json
from collections import Counter

from curricula.mixture import Mixture
from curricula.plateau import PlateauRule
from curricula.stages import StageRule, TwoStages
from curricula.tiers import MoveRule
from curricula.types import Outcome, Tier

MODERATE, EXTREME = (Tier.moderate,), (Tier.extreme,)


def pool(*, moderate=8, extreme=8, unsolved=4):
    counts = {Tier.moderate: moderate, Tier.extreme: extreme, Tier.unsolved: unsolved}
    return {f"{tier}{index}": tier for tier, count in counts.items() for index in range(count)}


def two_stages(tiers, *, first=None, second=None, moves=None):
    stages = [first or StageRule("one", MODERATE, steps=50), second or StageRule("two", EXTREME)]
    return TwoStages(tiers, stages=stages, seed=0, moves=moves)


def step(curriculum, *, problems=4, right=4):
    chosen = curriculum.next(problems)
    curriculum.observe([Outcome(name, 8, right) for name in chosen])
    curriculum.end_step()
    return chosen


def test_a_stage_practises_by_the_labels_that_it_has_since():
    tiers = pool()
    curriculum = two_stages(tiers)
    step(curriculum)
    easier = {name: Tier.moderate for name in tiers if name.startswith("extreme")}
    harder = {f"moderate{index}": Tier.extreme for index in range(6)}
    curriculum.relabel(easier | harder)
    expected = {"moderate6", "moderate7", *easier}
    assert set(step(curriculum, problems=10)) == expected
    assert curriculum.tier_counts == {Tier.trivial: 0, Tier.moderate: 10, Tier.extreme: 6, Tier.unsolved: 4}


def test_running_rates_start_anew_for_those_that_were_labelled_and_go_on_for_the_others():
    curriculum = two_stages(pool(moderate=4))
    step(curriculum, right=8)
    curriculum.relabel({"moderate0": Tier.moderate})
    step(curriculum, right=8)  # the second group of all four, and the first since its label of moderate0
    assert curriculum.tier_counts[Tier.trivial] == 3
    step(curriculum, problems=1, right=8)
    assert curriculum.tier_counts[Tier.trivial] == 4


def test_a_problem_labelled_trivial_rests_and_counts_among_the_solved_of_its_stage():
    first = StageRule("one", MODERATE, trivial_fraction=0.5)
    curriculum = two_stages(pool(moderate=8), first=first, moves=MoveRule(check_every_epochs=2))
    step(curriculum)
    curriculum.relabel({f"moderate{index}": Tier.trivial for index in range(3)})
    assert curriculum.stage == 0
    seen = Counter(name for _ in range(3) for name in step(curriculum, problems=5, right=4))
    assert set(seen) == {f"moderate{index}" for index in range(3, 8)}
    assert curriculum.metrics()["curriculum/stage_share_trivial"] == 3 / 8
    step(curriculum, problems=5)  # 4 + 4 × 5 groups: epoch 3 of 8, so the three are due for their check
    checked = Counter(name for _ in range(3) for name in step(curriculum, problems=5, right=4))
    assert {"moderate0", "moderate1", "moderate2"} < set(checked)
    curriculum.relabel({"moderate3": Tier.trivial, "moderate4": Tier.trivial, "moderate5": Tier.trivial})
    curriculum.relabel({"moderate6": Tier.trivial})
    assert (curriculum.stage_name, curriculum.switch_reason) == ("two", "50.0% of its problems trivial")


def test_a_stage_that_is_left_no_problem_ends_at_once_and_says_why():
    curriculum = two_stages(pool())
    step(curriculum)
    curriculum.relabel({f"moderate{index}": Tier.extreme for index in range(8)})
    assert (curriculum.stage, curriculum.finished) == (1, False)
    assert curriculum.switch_reason == "no problem in its tiers (moderate) after they were profiled again"
    assert curriculum.metrics()["curriculum/stage"] == 0  # of the step that was ended last
    assert len(set(step(curriculum, problems=16))) == 16


def test_a_stage_that_would_come_next_and_has_no_problem_is_passed_over():
    curriculum = two_stages(pool(), first=StageRule("one", MODERATE, steps=2))
    step(curriculum)
    curriculum.relabel({f"extreme{index}": Tier.moderate for index in range(8)})
    assert curriculum.stage == 0
    step(curriculum)
    assert (curriculum.stage, curriculum.finished) == (1, True)
    reason = "2 steps; two had no problem in its tiers (extreme) after they were profiled again"
    assert curriculum.switch_reason == reason
    assert len(set(curriculum.next(20))) == 20  # it goes on with the whole pool


def test_a_stage_whose_problems_were_all_solved_before_it_began_is_passed_over():
    last = StageRule("three", (Tier.unsolved,))
    stages = [StageRule("one", MODERATE, steps=2), StageRule("two", EXTREME, steps=5), last]
    curriculum = TwoStages(pool(), stages=stages, seed=0)
    step(curriculum)
    curriculum.relabel({f"extreme{index}": Tier.trivial for index in range(8)})
    step(curriculum)
    assert (curriculum.stage_name, curriculum.finished) == ("three", False)
    assert curriculum.switch_reason == "2 steps; two had 100.0% of its problems trivial"


def test_the_plateau_looks_at_steps_since_the_labels_alone():
    first = StageRule("one", MODERATE, plateau=PlateauRule(window_steps=4))
    curriculum = two_stages(pool(), first=first)
    for _ in range(3):
        step(curriculum)
    curriculum.relabel({"extreme0": Tier.moderate})
    for _ in range(3):
        step(curriculum)
        assert curriculum.stage == 0
    step(curriculum)
    assert curriculum.switch_reason.startswith("pass rate flat at 0.5000")


def test_epochs_go_on_counting_across_labels():
    curriculum = two_stages(pool(moderate=8))
    epochs = []
    for number in range(12):
        step(curriculum)
        epochs.append(curriculum.metrics()["curriculum/epoch"])
        if number == 5:
            curriculum.relabel({f"extreme{index}": Tier.moderate for index in range(8)})
    assert epochs == [0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4]  # of 8 problems, then of 16


def test_labels_are_in_the_state_and_the_pool_is_known_by_those_it_was_built_with():
    tiers = pool()
    first = two_stages(tiers)
    step(first)
    first.relabel({"extreme0": Tier.moderate, "moderate0": Tier.unsolved, "moderate1": Tier.trivial})
    second = two_stages(tiers)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.tier_counts == first.tier_counts
    second.relabel({"extreme0": Tier.extreme, "moderate0": Tier.moderate, "moderate1": Tier.moderate})
    assert second.tier_counts == two_stages(tiers).tier_counts


def test_a_mixture_follows_labels_and_an_empty_tier_leaves_its_turn():
    curriculum = Mixture(pool(), shares={Tier.moderate: 1, Tier.extreme: 1}, seed=0)
    step(curriculum)
    curriculum.relabel({f"moderate{index}": Tier.unsolved for index in range(8)} | {"extreme0": Tier.trivial})
    assert set(step(curriculum, problems=7)) == {f"extreme{index}" for index in range(1, 8)}
    curriculum.relabel({f"extreme{index}": Tier.unsolved for index in range(8)})
    assert len(set(step(curriculum, problems=20))) == 20  # nothing has a share any more: all that there is
