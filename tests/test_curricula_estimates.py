"""Estimators and intervals against numbers that can be checked by hand, and against exact tail sums."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricula.distributions import beta_quantile, incomplete_beta, student_p_value, student_quantile
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


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 0.25),
        (4, 1, 4, 1.0),
        (4, 0, 2, 0.0),
        (10, 3, 5, 11 / 12),
        (512, 1, 8, 0.015625),
        (512, 5, 8, 0.0760096),
        (200, 1, 100, 0.5),
    ],
)
def test_pass_at_k_matches_counting_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=5e-8)


def near_an_end(most):
    """Whole numbers up to `most`, where products are long (an end) as often as anywhere."""
    return st.one_of(st.integers(0, most), st.integers(0, min(3, most)), st.integers(max(0, most - 3), most))


@given(st.data(), st.one_of(st.integers(1, 10_000), st.just(10_000)))
def test_pass_at_k_and_pass_hat_k_are_exact_to_1e_12_up_to_ten_thousand(data, n):
    c = data.draw(near_an_end(n))
    k = data.draw(near_an_end(n - 1)) + 1
    assert_exact(n, c, k)


@pytest.mark.parametrize("n", [1, 2, 10_000])
def test_pass_at_k_is_exact_at_every_end_of_its_range(n):
    for c in {0, 1, n // 2, n - 1, n}:
        for k in {1, 2, 5_000, n - 1, n} & set(range(1, n + 1)):
            assert_exact(n, c, k)


def test_pass_at_k_is_exact_where_its_product_is_longest():
    for c, k in [(5_000, 5_000), (5_000, 4_999), (100, 100), (70, 100), (9_999, 5_000), (9_990, 700)]:
        assert_exact(10_000, c, k)


def assert_exact(n, c, k):
    all_wrong, all_right = Fraction(comb(n - c, k), comb(n, k)), Fraction(comb(c, k), comb(n, k))
    assert abs(Fraction(pass_at_k(n, c, k)) - (1 - all_wrong)) < Fraction(1, 10**12)
    assert abs(Fraction(pass_hat_k(n, c, k)) - all_right) < Fraction(1, 10**12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5), (0, 0, 1)])
@pytest.mark.parametrize("estimate", [pass_at_k, pass_hat_k, avg_at_k])
def test_impossible_counts_are_refused(estimate, n, c, k):
    with pytest.raises(ValueError, match="needs"):
        estimate(n, c, k)


@pytest.mark.parametrize("odd", [2.0, 1.5, True, "2", None, float("nan"), np.float64(2), np.bool_(True)])
@pytest.mark.parametrize("estimate", [pass_at_k, pass_hat_k, avg_at_k])
def test_what_is_no_whole_number_is_refused_and_not_rounded(estimate, odd):
    for counts in [(odd, 1, 1), (4, odd, 1), (4, 1, odd)]:
        with pytest.raises(ValueError, match="whole numbers"):
            estimate(*counts)


def test_numpy_integers_are_whole_numbers():
    estimate = pass_at_k(np.int64(10), np.int32(3), np.uint8(5))
    assert estimate == pytest.approx(11 / 12)
    assert type(estimate) is float


def test_pass_hat_k_and_avg_at_k_match_counting_by_hand():
    assert pass_hat_k(4, 2, 2) == pytest.approx(1 / 6)
    assert pass_hat_k(4, 1, 2) == 0.0
    assert avg_at_k(8, 3, 4) == 3 / 8


@pytest.mark.parametrize(("c", "n"), [(0, 8), (1, 8), (4, 8), (8, 8), (3, 512), (500, 10_000)])
def test_clopper_pearson_bounds_leave_the_stated_tails(c, n):
    low, high = clopper_pearson(c, n)
    if c > 0:
        assert _upper_tail(c, n, low) == pytest.approx(0.025, rel=1e-6)
    if c < n:
        assert 1 - _upper_tail(c + 1, n, high) == pytest.approx(0.025, rel=1e-6)
    assert (low == 0.0) == (c == 0)
    assert (high == 1.0) == (c == n)


def test_no_success_gives_the_upper_bounds_of_the_rule_of_three():
    assert no_success_interval(8)[1] == pytest.approx(0.3123, abs=5e-5)
    assert no_success_interval(512)[1] == pytest.approx(0.005834, abs=5e-7)


def test_first_success_interval_leaves_half_the_error_on_each_side():
    low, high = first_success_interval(40)
    assert 1 - (1 - low) ** 40 == pytest.approx(0.025)
    assert (1 - high) ** 39 == pytest.approx(0.025)
    assert first_success_interval(1)[1] == 1.0


def test_wilson_matches_the_published_example():
    low, high = wilson(15, 148)  # Newcombe (1998), table I, method 3
    assert (low, high) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("n", [8, 32])
def test_clopper_pearson_covers_at_least_nominally(p, n):
    covered = sum(
        comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1) if _holds(clopper_pearson(c, n, confidence=0.9), p)
    )
    assert covered >= 0.9


@pytest.mark.parametrize("p", [0.004, 0.03, 0.4])
def test_first_success_interval_covers_at_least_nominally(p):
    covered = sum(p * (1 - p) ** (n - 1) for n in range(1, 5000) if _holds(first_success_interval(n), p))
    assert covered >= 0.95


@pytest.mark.parametrize(
    ("t", "degrees", "expected"),
    [(2.228139, 10, 0.05), (-4.062128, 9, 0.002832890), (1.0, 1, 0.5), (0.0, 5, 1.0), (31.5991, 2, 0.001)],
)
def test_student_p_values_match_printed_ones_and_are_two_sided(t, degrees, expected):
    assert student_p_value(t, degrees=degrees) == pytest.approx(expected, rel=1e-5)
    assert student_p_value(-t, degrees=degrees) == student_p_value(t, degrees=degrees)


@given(st.floats(-30, 30), st.integers(1, 400))
def test_the_p_value_of_a_quantile_is_twice_its_tail(t, degrees):
    p_value = student_p_value(t, degrees=degrees)
    if 1e-6 < p_value < 1 - 1e-6:
        assert student_quantile(1 - p_value / 2, degrees=degrees) == pytest.approx(abs(t), rel=1e-6, abs=1e-6)


def test_an_infinite_t_has_no_chance_and_a_t_that_is_none_is_refused():
    assert student_p_value(float("inf"), degrees=3) == 0.0
    with pytest.raises(ValueError, match="degrees >= 1"):
        student_p_value(1.0, degrees=0)
    with pytest.raises(ValueError, match="a number"):
        student_p_value(float("nan"), degrees=3)


def test_student_quantiles_match_the_printed_table():
    assert student_quantile(0.975, degrees=10) == pytest.approx(2.228139, abs=1e-6)
    assert student_quantile(0.9, degrees=38) == pytest.approx(1.304230, abs=1e-6)
    assert student_quantile(0.25, degrees=1) == pytest.approx(-1.0, abs=1e-9)


@given(st.floats(0.001, 0.999), st.floats(0.5, 500), st.floats(0.5, 500))
def test_beta_quantile_inverts_the_incomplete_beta(probability, a, b):
    x = beta_quantile(probability, a=a, b=b)
    assert incomplete_beta(x, a=a, b=b) == pytest.approx(probability, abs=1e-8)


def test_clustered_bootstrap_covers_the_mean_of_the_problems():
    generator = np.random.Generator(np.random.PCG64(5))
    covered = 0
    for trial in range(400):
        values = generator.beta(0.5, 0.5, size=100)
        _, low, high = clustered_bootstrap(values.tolist(), num_resamples=400, seed=trial)
        covered += low <= 0.5 <= high
    assert covered / 400 >= 0.95 - 2 * (0.95 * 0.05 / 400) ** 0.5 - 0.01  # the percentile interval is 1 % short at 100


def test_bootstrap_is_a_function_of_its_seed_and_pairs_by_problem():
    values = [0.03, 0.11, 0.25, 0.47, 0.61, 0.83, 0.97, 1.0]
    assert clustered_bootstrap(values, seed=1) == clustered_bootstrap(values, seed=1)
    assert clustered_bootstrap(values, seed=1) != clustered_bootstrap(values, seed=2)
    mean, low, high = paired_difference([v + 0.1 for v in values], values, seed=0)
    assert (mean, low, high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    with pytest.raises(ValueError, match="same problems"):
        paired_difference([1.0], [1.0, 0.0], seed=0)
    with pytest.raises(ValueError, match="finite"):
        clustered_bootstrap([0.0, float("nan")], seed=0)


def _upper_tail(c: int, n: int, p: float) -> float:
    exact = Fraction(p)
    if n <= 600:
        return float(sum(comb(n, i) * exact**i * (1 - exact) ** (n - i) for i in range(c, n + 1)))
    log_terms = np.cumsum([np.log(n - i) - np.log(i + 1) + np.log(p) - np.log1p(-p) for i in range(n)])
    terms = np.exp(n * np.log1p(-p) + np.concatenate([[0.0], log_terms]))
    return float(terms[c:].sum())


def _holds(interval: tuple[float, float], p: float) -> bool:
    return interval[0] <= p <= interval[1]
