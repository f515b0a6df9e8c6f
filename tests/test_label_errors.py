"""How sure labels are: label probabilities, the tiers' intervals, and the chance that a label is wrong."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricula.attempts import Attempts
from curricula.label_errors import (
    GRID,
    HARDEST_FIRST,
    LabelRules,
    expected_confusion,
    fit_pass_rates,
    label_errors,
    label_probabilities,
    right_tiers,
    tier_intervals,
)
from curricula.store import label
from curricula.types import TIERS, Tier
from scripts.simulate_profiles import row_of, simulate

RULES = LabelRules()
DEFAULTS = {"first_rollouts": 8, "relabel_rollouts": 32, "max_rollouts": 512, "trivial_rate": 1.0}


def test_a_problem_of_one_in_ten_gets_past_8_and_32_rollouts_as_often_as_the_issue_says():
    early = label_probabilities([0.1], rules=LabelRules(8, 8, 512))[0]
    assert early[TIERS.index(Tier.extreme)] == pytest.approx(0.43, abs=5e-3)
    default = label_probabilities([0.1], rules=RULES)[0]
    assert default[TIERS.index(Tier.extreme)] == pytest.approx(0.034, abs=5e-4)


@pytest.mark.parametrize(
    "rules",
    [LabelRules(2, 3, 6), LabelRules(3, 3, 6, 0.5), LabelRules(1, 2, 5), LabelRules(2, 9, 5), LabelRules(4, 4, 4)],
)
@pytest.mark.parametrize("p", [0.0, 0.07, 0.4, 0.9, 1.0])
def test_label_probabilities_are_what_all_attempt_records_together_are_labelled(rules, p):
    expected = dict.fromkeys(TIERS, 0.0)
    for outcomes in product([False, True], repeat=rules.max_rollouts):
        attempts = Attempts()
        attempts.add(0, outcomes, [1] * len(outcomes))
        row = label(
            "a",
            attempts,
            first_rollouts=rules.first_rollouts,
            relabel_rollouts=rules.relabel_rollouts,
            trivial_rate=rules.trivial_rate,
        )
        expected[row.tier] += p ** sum(outcomes) * (1 - p) ** (len(outcomes) - sum(outcomes))
    assert label_probabilities([p], rules=rules)[0] == pytest.approx(list(expected.values()), abs=1e-12)


def test_the_default_intervals_have_the_stated_bounds():
    intervals = tier_intervals(RULES)
    assert intervals[Tier.unsolved] == (0.0, pytest.approx(1 - 2 ** (-1 / 512)))
    assert intervals[Tier.extreme][1] == pytest.approx(1 - 2 ** (-1 / 32))
    assert intervals[Tier.moderate][1] == pytest.approx(2 ** (-1 / 8))
    assert intervals[Tier.trivial][1] == 1.0


@given(st.integers(1, 12), st.integers(1, 60), st.integers(1, 600), st.floats(0.05, 1.0))
def test_at_each_bound_half_of_all_labels_are_on_either_side(first, relabel, most, trivial_rate):
    rules = LabelRules(first, max(first, relabel), max(first, most), trivial_rate)
    intervals = tier_intervals(rules)
    assert [intervals[tier][1] for tier in HARDEST_FIRST[:-1]] == [intervals[tier][0] for tier in HARDEST_FIRST[1:]]
    for index, tier in enumerate(HARDEST_FIRST[:-1]):
        low, bound = intervals[tier]
        assert low <= bound
        if low < bound:
            labels = label_probabilities([bound], rules=rules)[0]
            harder = sum(labels[TIERS.index(other)] for other in HARDEST_FIRST[: index + 1])
            assert harder == pytest.approx(0.5, abs=1e-8)


def test_the_right_tier_is_the_likeliest_label_but_for_a_hair_above_one_bound():
    rates = np.concatenate([np.geomspace(1e-5, 0.5, 2000), np.linspace(0.5, 1.0, 500)])
    likeliest = label_probabilities(rates, rules=RULES).argmax(axis=1)
    differing = rates[likeliest != right_tiers(rates, rules=RULES)]
    assert differing.min() > 0.00135
    assert differing.max() < 0.00145


def test_a_tier_that_is_nowhere_the_likeliest_label_keeps_its_interval():
    rules = LabelRules(8, 32, 64)
    rates = np.linspace(0.0, 1.0, 10_001)
    assert TIERS.index(Tier.extreme) not in label_probabilities(rates, rules=rules).argmax(axis=1)
    low, high = tier_intervals(rules)[Tier.extreme]
    assert (low, high) == (pytest.approx(0.0108, abs=5e-5), pytest.approx(0.0214, abs=5e-5))


def test_no_label_is_extreme_where_every_late_success_is_moderate():
    low, high = tier_intervals(LabelRules(8, 32, 32))[Tier.extreme]
    assert low == high
    assert label_probabilities([0.01], rules=LabelRules(8, 32, 32))[0, TIERS.index(Tier.extreme)] == 0.0


def test_a_pass_rate_on_a_bound_belongs_to_the_easier_tier():
    bounds = [tier_intervals(RULES)[tier][0] for tier in HARDEST_FIRST]
    assert [TIERS[code] for code in right_tiers([*bounds, 1.0], rules=RULES)] == [*HARDEST_FIRST, Tier.trivial]


def test_confusion_weighs_pass_rates_and_leaves_empty_tiers_out():
    table = expected_confusion([0.1, 0.5], rules=RULES, weights=[3.0, 1.0])
    one, other = label_probabilities([0.1, 0.5], rules=RULES)
    assert list(table) == [Tier.moderate]
    assert list(table[Tier.moderate].values()) == pytest.approx((0.75 * one + 0.25 * other).tolist())
    with pytest.raises(ValueError, match="a weight >= 0 for each of 2"):
        expected_confusion([0.1, 0.5], rules=RULES, weights=[1.0])


@pytest.mark.parametrize("wrong", [(0, 32, 512, 1.0), (9, 8, 512, 1.0), (8, 32, 7, 1.0), (8, 32, 512, 0.0)])
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=r"labels need|trivial_rate"):
        LabelRules(*wrong)


@pytest.fixture(scope="module")
def uniform():
    generator = np.random.Generator(np.random.PCG64(1))
    profile = simulate(generator.random(60_000), rules=RULES, generator=generator)
    return profile, label_errors(profile.rows, **DEFAULTS)


def test_label_errors_of_evenly_spread_pass_rates_are_the_tails_of_the_beta_posterior(uniform):
    profile, errors = uniform
    found = {(row.num_rollouts, row.num_correct): error for row, error in zip(profile.rows, errors, strict=True)}
    # Under a uniform prior c of n leave Beta(c + 1, n - c + 1). Eight rollouts fix no more than eight moments of the
    # distribution, and so low a pass rate as the last one has a hundred problems: hence the tolerances.
    high, low = 2 ** (-1 / 8), 1 - 2 ** (-1 / 512)
    assert found[8, 8] == pytest.approx(high**9, abs=0.05)
    assert found[8, 7] == pytest.approx(1 - (9 * high**8 - 8 * high**9), abs=0.05)
    assert found[8, 4] == pytest.approx(0.0, abs=0.002)
    assert found[512, 0] == pytest.approx((1 - low) ** 513, abs=0.15)


def test_the_mean_label_error_is_the_share_of_wrong_labels(uniform):
    profile, errors = uniform
    wrong = profile.labels != right_tiers(profile.rates, rules=RULES)
    standard_error = wrong.std() / len(errors) ** 0.5
    assert np.mean(errors) == pytest.approx(wrong.mean(), abs=4 * standard_error + 0.005)


def test_the_fitted_distribution_has_the_mean_of_the_pass_rates(uniform):
    weights = fit_pass_rates(uniform[0].rows)
    assert weights.sum() == pytest.approx(1.0)
    assert weights @ GRID == pytest.approx(0.5, abs=0.01)


def test_hopeless_problems_are_told_from_rare_ones():
    generator = np.random.Generator(np.random.PCG64(2))
    rates = np.repeat([0.0, 0.5], 2_000)
    profile = simulate(rates, rules=RULES, generator=generator)
    errors = np.array(label_errors(profile.rows, **DEFAULTS))
    assert errors[rates == 0.0].max() < 0.02


def test_a_label_is_less_sure_the_less_is_known():
    rows = [row_of(num_rollouts, 0, rules=RULES) for num_rollouts in (8, 16, 64, 256, 512)]
    errors = label_errors(rows, **DEFAULTS)
    assert all(before > after for before, after in pairwise(errors))
    assert 0.0 < min(errors) < max(errors) < 1.0


def test_label_errors_come_in_the_order_of_the_rows_and_depend_on_no_order(uniform):
    rows = uniform[0].rows[:500]
    errors = label_errors(rows, **DEFAULTS)
    assert label_errors(rows[::-1], **DEFAULTS) == errors[::-1]
    assert label_errors([], **DEFAULTS) == []
    with pytest.raises(ValueError, match="at least one row"):
        fit_pass_rates([])


def test_labels_of_thousands_of_first_rollouts_have_a_likelihood():
    rules = LabelRules(2_000, 2_000, 2_000)
    errors = label_errors(
        [row_of(2_000, num_correct, rules=rules) for num_correct in (1_000, 2_000)],
        first_rollouts=2_000,
        relabel_rollouts=2_000,
        max_rollouts=2_000,
        trivial_rate=1.0,
    )
    assert errors[0] == pytest.approx(0.0, abs=1e-6)
    assert 0.0 < errors[1] < 0.5
