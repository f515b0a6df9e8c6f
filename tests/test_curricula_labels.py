"""Tier labels follow the stopping rule that each problem was drawn by."""

import pytest

from curricula.attempts import Attempts
from curricula.estimates import clopper_pearson, first_success_interval, no_success_interval
from curricula.store import tier_table
from curricula.types import Tier


def known(**of_problems):
    """Attempts by problem, from (first attempt, outcomes, tokens)."""
    found = {}
    for problem_id, (first_attempt, correct, num_tokens) in of_problems.items():
        found[problem_id] = Attempts()
        found[problem_id].add(first_attempt, correct, num_tokens)
    return found


@pytest.mark.parametrize(
    ("correct", "tier", "rule", "first_success", "interval"),
    [
        ([True] * 8, Tier.trivial, "fixed", 0, clopper_pearson(8, 8)),
        ([False] * 5 + [True] * 3, Tier.moderate, "fixed", 5, clopper_pearson(3, 8)),
        ([False] * 31 + [True] + [False] * 8, Tier.moderate, "first_success", 31, first_success_interval(32)),
        ([False] * 32 + [True] * 2, Tier.extreme, "first_success", 32, first_success_interval(33)),
        ([None] + [False] * 32 + [True], Tier.extreme, "first_success", 33, first_success_interval(33)),
        ([False] * 512, Tier.unsolved, "exhausted", None, no_success_interval(512, confidence=0.975)),
    ],
)
def test_labels_and_intervals_follow_the_stopping_rule(correct, tier, rule, first_success, interval):
    (row,) = tier_table(known(a=(0, correct, range(len(correct)))))
    assert (row.tier, row.stopping_rule, row.first_success_attempt) == (tier, rule, first_success)
    assert (row.low, row.high) == interval
    num_counted = {"fixed": 8, "exhausted": 512}.get(rule, (first_success or 0) + 1)
    first = [right for right in correct if right is not None][:8]
    assert row.estimate == sum(first) / 8
    assert row.mean_tokens == pytest.approx((num_counted - 1) / 2)


@pytest.mark.parametrize("first_attempt", [0, 4])
def test_a_problem_of_which_nothing_is_known_has_no_tier(first_attempt):
    correct = (None, None) if first_attempt == 0 else (True, False)  # behind a gap nothing is settled
    rows = tier_table(known(b=(0, [False], [1]), a=(first_attempt, correct, [1, 1])))
    assert [(row.problem_id, row.tier) for row in rows] == [("b", Tier.unsolved)]


def test_the_trivial_rate_is_an_option():
    attempts = known(a=(0, [True] * 7 + [False], [1] * 8))
    assert tier_table(attempts)[0].tier is Tier.moderate
    assert tier_table(attempts, trivial_rate=0.85)[0].tier is Tier.trivial
    with pytest.raises(ValueError, match="trivial_rate"):
        tier_table(attempts, trivial_rate=0.0)
    with pytest.raises(ValueError, match="max_rollouts = 4: must be at least first_rollouts = 8"):
        tier_table(attempts, max_rollouts=4)


@pytest.mark.parametrize(
    ("max_rollouts", "expected"),
    [(8, (Tier.unsolved, 8, 1.0)), (39, (Tier.unsolved, 39, 1.0)), (40, (Tier.extreme, 40, 1.0 + 39 / 41))],
)
def test_a_label_looks_at_no_more_rollouts_than_its_rules_allow(max_rollouts, expected):
    # Attempt 3 has no value; the success is attempt 40, which is the 40th rollout with a value.
    correct = [False, False, False, None, *[False] * 36, True, False]
    (row,) = tier_table(known(a=(0, correct, [1] * 40 + [40, 9])), max_rollouts=max_rollouts)
    assert (row.tier, row.num_rollouts, row.mean_tokens) == (expected[0], expected[1], pytest.approx(expected[2]))
