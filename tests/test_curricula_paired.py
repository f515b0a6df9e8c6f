"""Paired comparisons of a few seeds against published examples, and their error rates by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricula.distributions import student_p_value
from curricula.estimates import equivalent, holm, paired_t_interval, ratio_interval

# Student's own example (1908): hours of sleep that two drugs gave ten patients.
DEXTRO = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
LAEVO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP = [a - b for a, b in zip(DEXTRO, LAEVO, strict=True)]


def test_the_t_interval_of_students_sleep_data_is_the_published_one():
    assert paired_t_interval(SLEEP) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=1e-7)
    assert paired_t_interval(SLEEP, confidence=0.9)[1:] == pytest.approx((-2.2930053, -0.8669947), abs=1e-7)


@pytest.mark.parametrize("differences", [[], [1.0], [1.0, float("nan")]])
def test_a_t_interval_needs_two_finite_differences(differences):
    with pytest.raises(ValueError, match="needs"):
        paired_t_interval(differences)


def test_equal_differences_have_no_spread():
    assert paired_t_interval([0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25)


def test_equivalence_is_the_narrower_interval_within_the_margin():
    assert equivalent(SLEEP, margin=2.2931)
    assert not equivalent(SLEEP, margin=2.2929)
    assert not equivalent([-d for d in SLEEP], margin=2.2929)


@pytest.mark.parametrize(("margin", "confidence"), [(0.0, 0.95), (-1.0, 0.95), (1.0, 0.5), (1.0, 1.0)])
def test_equivalence_refuses_margins_and_confidences_that_say_nothing(margin, confidence):
    with pytest.raises(ValueError, match="equivalence needs"):
        equivalent(SLEEP, margin=margin, confidence=confidence)


def test_a_true_difference_of_the_margin_is_called_equivalent_as_often_as_stated():
    generator = np.random.Generator(np.random.PCG64(3))
    trials = 0.02 + generator.normal(scale=0.01, size=(4_000, 10))
    share = np.mean([equivalent(trial.tolist(), margin=0.02) for trial in trials])
    assert share == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 4_000) ** 0.5)


def test_a_ratio_is_of_geometric_means_and_its_interval_that_of_the_logarithms():
    ratio, low, high = ratio_interval([2.0, 8.0], [1.0, 1.0])
    assert ratio == pytest.approx(4.0)
    half = 12.706205 * math.log(2.0)  # t of one degree of freedom, times the standard error of log 2 and log 8
    assert (low, high) == (pytest.approx(4 * math.exp(-half), rel=1e-6), pytest.approx(4 * math.exp(half), rel=1e-6))


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=10))
def test_turning_a_ratio_over_turns_its_interval_over(pairs):
    a, b = zip(*pairs, strict=True)
    ratio, low, high = ratio_interval(a, b)
    assert ratio_interval(b, a) == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_a_ratio_covers_the_truth_as_often_as_stated():
    generator = np.random.Generator(np.random.PCG64(4))
    seeds = np.exp(generator.normal(scale=0.5, size=(3_000, 10)))  # shared by both runs of a pair
    noise = np.exp(generator.normal(scale=0.1, size=(3_000, 10)))
    bounds = [ratio_interval((0.8 * s * e).tolist(), s.tolist())[1:] for s, e in zip(seeds, noise, strict=True)]
    covered = np.mean([low <= 0.8 <= high for low, high in bounds])
    assert covered == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 3_000) ** 0.5)


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [-1.0, 1.0])])
def test_a_ratio_refuses_what_has_no_logarithm_or_no_partner(a, b):
    with pytest.raises(ValueError, match="positive values in pairs"):
        ratio_interval(a, b)


def test_holm_matches_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1.0 for p, c in zip(p_values, corrected, strict=True))
    by_size = [corrected[i] for i in sorted(range(len(p_values)), key=p_values.__getitem__)]
    assert by_size == sorted(by_size)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="p-values in"):
        holm([0.5, 1.5])


def test_holm_rejects_a_true_hypothesis_in_at_most_the_stated_share_of_families():
    generator = np.random.Generator(np.random.PCG64(5))
    shared = generator.normal(size=(2_000, 10, 1))  # tests of one family depend on each other
    noise = (shared + generator.normal(size=(2_000, 10, 4))) / 2**0.5
    t = noise.mean(axis=1) / (noise.std(axis=1, ddof=1) / 10**0.5)
    rejected = np.mean([min(holm([student_p_value(float(v), degrees=9) for v in family])) <= 0.05 for family in t])
    assert rejected <= 0.05 + 3 * (0.05 * 0.95 / 2_000) ** 0.5
