"""Intervals over problems: by hand, at their ends, and by simulation of how often they hold the truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curricula import wilson
from curricula.distributions import student_quantile
from curricula.intervals import (
    difference_interval,
    mean_interval,
    share_difference_interval,
    share_interval,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]
ROLLOUTS = 8


def hopeless(fraction: float) -> Draw:
    """Pass rates of a pool in which this share of problems has none; the others' are spread evenly."""
    return lambda rng, size: np.where(rng.uniform(size=size) < fraction, 0.0, rng.uniform(size=size))


POOLS: dict[str, Draw] = {
    "even": lambda rng, size: rng.uniform(size=size),
    "both ends": lambda rng, size: rng.beta(0.3, 0.3, size=size),
    "hard": lambda rng, size: rng.beta(0.3, 2.0, size=size),
    "nine of ten hopeless": hopeless(0.9),
    "97 of 100 hopeless": hopeless(0.97),
}


def shifted(rates: np.ndarray, logits: float) -> np.ndarray:
    odds = rates / (1.0 - np.minimum(rates, 1.0 - 1e-9)) * math.exp(logits)
    return odds / (1.0 + odds)


def of_k(rates: np.ndarray, k: int) -> np.ndarray:
    return rates if k == 1 else 1.0 - (1.0 - rates) ** k


def drawn(rng: np.random.Generator, rates: np.ndarray, k: int) -> list[float]:
    """pass@1 or pass@8 of each problem, of 8 rollouts."""
    correct = rng.binomial(ROLLOUTS, rates)
    values: list[float] = (correct / ROLLOUTS if k == 1 else (correct > 0).astype(float)).tolist()
    return values


def test_a_mean_is_between_students_bounds():
    # 1, 2, 3: mean 2, s = 1, and t of 2 degrees is 4.303: 2 +- 4.303 / sqrt(3).
    value, low, high = mean_interval([1.0, 2.0, 3.0])
    assert value == 2.0
    assert (low, high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)


def test_a_share_of_problems_that_are_right_or_wrong_is_wilsons_with_students_quantile():
    values = [1.0] * 7 + [0.0] * 13
    # Wilson's interval of 7 in 20 at the confidence at which the normal quantile is Student's of 19 degrees.
    quantile = student_quantile(0.975, degrees=19)
    confidence = math.erf(quantile / math.sqrt(2))
    low, high = wilson(7, 20, confidence=confidence)
    # Unbiased variance makes 20 problems of 0 and 1 worth 19; never fewer than there are.
    assert tuple(share_interval(values)) == pytest.approx((0.35, low, high))


def test_of_many_problems_a_share_has_the_interval_of_a_mean():
    rng = np.random.default_rng(0)
    values = drawn(rng, rng.uniform(size=20_000), 1)
    assert tuple(share_interval(values)) == pytest.approx(tuple(mean_interval(values)), abs=2e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_nothing_or_everything_is_solved_the_width_is_what_the_number_of_problems_leaves(value):
    few, many = share_interval([value] * 10), share_interval([value] * 1000)
    for interval in (few, many):
        assert value in (interval.low, interval.high)
    assert few.high - few.low > 0.3
    assert many.high - many.low == pytest.approx(1.96**2 / 1000, rel=0.02)


def test_one_problem_says_nothing_about_others():
    assert tuple(share_interval([0.5])) == (0.5, 0.0, 1.0)
    assert tuple(share_difference_interval([0.5], [0.25])) == (0.25, -1.0, 1.0)
    assert tuple(mean_interval([3.0])) == (3.0, 3.0, 3.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_a_difference_is_within_its_interval_and_turns_its_sign_with_the_policies(pairs):
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    one, other = share_difference_interval(a, b), share_difference_interval(b, a)
    assert -1.0 <= one.low <= one.value + 1e-12
    assert one.value <= one.high + 1e-12 <= 1.0 + 2e-12
    assert tuple(one) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-9)
    assert one.value == pytest.approx(sum(x - y for x, y in pairs) / len(pairs), abs=1e-9)


def test_differences_that_are_whole_have_newcombes_interval_with_students_quantile():
    # 6 of 20 better, 2 worse: Wilson's intervals of both shares, put together by the multinomial's correlation.
    a, b = [1.0] * 6 + [0.0] * 14, [0.0] * 6 + [1.0] * 2 + [0.0] * 12
    confidence = math.erf(student_quantile(0.975, degrees=19) / math.sqrt(2))
    (gain_low, gain_high), (loss_low, loss_high) = (wilson(n, 20, confidence=confidence) for n in (6, 2))
    correlation = -math.sqrt(0.3 * 0.1 / (0.7 * 0.9))
    below, above = (
        math.sqrt(x * x - 2 * correlation * x * y + y * y)
        for x, y in ((0.3 - gain_low, loss_high - 0.1), (gain_high - 0.3, 0.1 - loss_low))
    )
    # Their unbiased variance is 20/19 of (g + l - v²): never fewer problems than there are.
    assert tuple(share_difference_interval(a, b)) == pytest.approx((0.2, 0.2 - below, 0.2 + above))


def test_of_many_problems_a_difference_of_shares_has_the_interval_of_a_mean():
    rng = np.random.default_rng(0)
    rates = rng.uniform(size=20_000)
    pair = drawn(rng, shifted(rates, 0.7), 1), drawn(rng, rates, 1)
    assert tuple(share_difference_interval(*pair)) == pytest.approx(tuple(difference_interval(*pair)), abs=2e-5)


def with_one_more(differences: list[float], change: float) -> tuple[list[float], list[float]]:
    every = [*differences, change]
    return [max(d, 0.0) for d in every], [max(-d, 0.0) for d in every]


@pytest.mark.parametrize("size", [0.01, 0.125, 0.25, 1.0])
def test_a_small_loss_says_no_more_for_a_policy_than_no_loss(size):
    differences = [0.25] * 11 + [0.0] * 48
    none, one = (share_difference_interval(*with_one_more(differences, -each)) for each in (0.0, size))
    assert one.value < none.value
    assert one.low < none.low


def test_a_loss_next_to_nothing_leaves_the_interval_as_it_is():
    differences = [0.25] * 11 + [0.0] * 48
    none, one = (share_difference_interval(*with_one_more(differences, -each)) for each in (0.0, 1e-6))
    assert tuple(one) == pytest.approx(tuple(none), abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(
    changed=st.lists(st.sampled_from([n / 8 for n in range(-4, 9)]) | st.floats(-1, 1), min_size=1, max_size=20),
    most_ties=st.integers(0, 80),
    loss=st.sampled_from([1e-4, 0.01, 0.125, 0.25, 0.5, 1.0]),
)
def test_a_tie_that_turns_into_a_loss_makes_no_difference_significant(changed, most_ties, loss):
    # As many ties as make the difference just insignificant: where a bound that rises would show.
    for num_ties in range(most_ties + 1):
        differences = [*changed, *[0.0] * num_ties]
        if share_difference_interval(*with_one_more(differences, 0.0)).low <= 0.0:
            assert share_difference_interval(*with_one_more(differences, -loss)).low <= 0.0
            break


def test_a_shift_that_is_the_same_everywhere_is_known_exactly_by_pairing():
    difference = difference_interval([12.0, 30.0, 51.0], [10.0, 28.0, 49.0])
    assert tuple(difference) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.inf]])
def test_a_value_that_is_none_is_refused(values):
    with pytest.raises(ValueError, match="one finite value a problem"):
        mean_interval(values)


def test_what_is_no_share_and_what_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        share_interval([0.5, 1.5])
    with pytest.raises(ValueError, match="got 2 and 1 values"):
        difference_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        share_difference_interval([1.5], [0.0])
    with pytest.raises(ValueError, match="confidence = 1"):
        mean_interval([1.0], confidence=1)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, ROLLOUTS])
@pytest.mark.parametrize("num_problems", [30, 300])
@pytest.mark.parametrize("pool", POOLS)
def test_the_interval_of_a_share_holds_the_truth_about_as_often_as_it_says(pool, num_problems, k):
    rng, draw = np.random.default_rng(1), POOLS[pool]
    truth = of_k(draw(rng, 400_000), k).mean()
    held = [
        interval.low <= truth <= interval.high
        for _ in range(1500)
        for interval in [share_interval(drawn(rng, draw(rng, num_problems), k))]
    ]
    # 0.95 less what the docstring owns up to, less three standard errors of 1,500 draws (0.017).
    assert np.mean(held) >= (0.90 if pool == "nine of ten hopeless" else 0.94) - 0.017


@pytest.mark.slow
@pytest.mark.parametrize("logits", [0.0, 0.7])
@pytest.mark.parametrize("k", [1, ROLLOUTS])
@pytest.mark.parametrize("num_problems", [30, 300])
@pytest.mark.parametrize("pool", ["even", "hard", "nine of ten hopeless"])
def test_the_interval_of_a_paired_difference_holds_the_truth_about_as_often_as_it_says(pool, num_problems, k, logits):
    rng, draw = np.random.default_rng(2), POOLS[pool]
    rates = draw(rng, 400_000)
    truth = (of_k(shifted(rates, logits), k) - of_k(rates, k)).mean()
    held = []
    for _ in range(1000):
        rates = draw(rng, num_problems)
        better, worse = drawn(rng, shifted(rates, logits), k), drawn(rng, rates, k)
        interval = share_difference_interval(better, worse)
        held.append(interval.low <= truth <= interval.high)
    assert np.mean(held) >= 0.94 - 0.021


def test_students_interval_of_a_difference_is_too_sure_where_few_problems_differ_and_the_one_of_shares_is_not():
    rng, draw = np.random.default_rng(3), POOLS["nine of ten hopeless"]
    rates = draw(rng, 400_000)
    truth = (of_k(shifted(rates, 0.7), 8) - of_k(rates, 8)).mean()
    held = {"t": 0, "shares": 0}
    for _ in range(300):
        rates = draw(rng, 30)
        pair = drawn(rng, shifted(rates, 0.7), 8), drawn(rng, rates, 8)
        for name, interval in (("t", difference_interval(*pair)), ("shares", share_difference_interval(*pair))):
            held[name] += interval.low <= truth <= interval.high
    assert held["t"] < 150
    assert held["shares"] > 285
