"""Best-of-k and majority@k against exact fractions, every draw counted, and draws at random."""

from collections import Counter
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricula.estimates import best_of_k, majority_at_k, pass_at_k


def test_best_of_k_matches_counting_by_hand():
    assert best_of_k([3.0, 1.0, 2.0], 1) == pytest.approx(2.0)
    assert best_of_k([3.0, 1.0, 2.0], 2) == pytest.approx((2 + 3 + 3) / 3)
    assert best_of_k([3.0, 1.0, 2.0], 3) == 3.0
    assert best_of_k([0.7], 1) == 0.7


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.data())
def test_best_of_k_weighs_the_order_statistics_exactly(values, data):
    n, k = len(values), data.draw(st.integers(1, len(values)))
    exact = sum(Fraction(comb(i, k - 1), comb(n, k)) * value for i, value in enumerate(sorted(values)))
    assert best_of_k(values, k) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 64, 5_000, 9_999, 10_000])
@pytest.mark.parametrize("c", [0, 1, 37, 9_999, 10_000])
def test_best_of_k_of_right_or_wrong_is_pass_at_k_also_for_ten_thousand(c, k):
    assert best_of_k([1.0] * c + [0.0] * (10_000 - c), k) == pytest.approx(pass_at_k(10_000, c, k), abs=1e-12)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [[1.0]]])
def test_best_of_k_refuses_values_that_are_none(values):
    with pytest.raises(ValueError, match="best-of-k needs"):
        best_of_k(values, 1)


def test_majority_matches_counting_by_hand():
    assert majority_at_k(["a", "a", "b"], [True, True, False], 3) == pytest.approx(1.0)
    assert majority_at_k(["a", "a", "b"], [True, True, False], 1) == pytest.approx(2 / 3)
    # Pairs: aa wins, ab and ab are ties.
    assert majority_at_k(["a", "a", "b"], [True, True, False], 2) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_a_rollout_without_an_answer_never_wins_but_takes_up_a_draw():
    assert majority_at_k([None, None, "a"], [False, False, True], 3) == pytest.approx(1.0)
    assert majority_at_k([None, None, "a"], [False, False, True], 1) == pytest.approx(1 / 3)
    assert majority_at_k([None, None], [False, False], 2) == 0.0


def test_two_right_answers_stay_two():
    # 1/2 and 0.5 are both right and split the vote against the wrong one.
    assert majority_at_k(["1/2", "0.5", "3", "3"], [True, True, False, False], 4) == 0.0
    assert majority_at_k(["1/2", "0.5", "3"], [True, True, False], 3) == pytest.approx(2 / 3)


@st.composite
def votes(draw, most_rollouts):
    texts = draw(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=most_rollouts))
    right = {text: draw(st.booleans()) for text in "abcd"} | {None: False}
    return texts, [right[text] for text in texts], draw(st.integers(1, len(texts)))


@given(votes(8))
def test_majority_is_the_share_of_all_draws_that_a_right_answer_wins(case):
    answers, correct, k = case
    assert majority_at_k(answers, correct, k) == pytest.approx(float(share_of_draws(answers, correct, k)), abs=1e-12)


def share_of_draws(answers, correct, k):
    right, won = dict(zip(answers, correct, strict=True)), Fraction(0)
    for drawn in combinations(answers, k):
        counts = Counter(answer for answer in drawn if answer is not None)
        tied = [answer for answer, count in counts.items() if count == max(counts.values())]
        won += Fraction(sum(right[answer] for answer in tied), max(1, len(tied)))
    return won / comb(len(answers), k)


@pytest.mark.parametrize(("num_rollouts", "k", "num_texts"), [(64, 32, 20), (64, 9, 3), (200, 50, 12)])
def test_majority_of_many_agrees_with_draws_at_random(num_rollouts, k, num_texts):
    generator = np.random.Generator(np.random.PCG64(num_rollouts))
    texts = generator.zipf(1.3, size=num_rollouts) % (num_texts + 1)  # 0: no answer
    answers = [f"{text}" if text else None for text in texts]
    correct = [bool(text) and text % 3 == 1 for text in texts]
    drawn = generator.permuted(np.tile(texts, (20_000, 1)), axis=1)[:, :k]
    counts = np.stack([(drawn == text).sum(axis=1) for text in range(1, num_texts + 1)], axis=1)
    # A random part of one breaks ties evenly; the largest count is at least 1 wherever anything was answered.
    winner = (counts + generator.random(counts.shape)).argmax(axis=1) + 1
    won = (counts.max(axis=1) > 0) & (winner % 3 == 1)
    standard_error = (won.mean() * (1 - won.mean()) / won.size) ** 0.5
    assert majority_at_k(answers, correct, k) == pytest.approx(won.mean(), abs=4.5 * standard_error)


def test_majority_of_thousands_is_the_hypergeometric_chance():
    n, c, k = 3_000, 1_600, 11
    exact = Fraction(sum(comb(c, i) * comb(n - c, k - i) for i in range(6, k + 1)), comb(n, k))
    chance = majority_at_k(["right"] * c + ["wrong"] * (n - c), [True] * c + [False] * (n - c), k)
    assert chance == pytest.approx(float(exact), abs=1e-12)


def test_majority_refuses_answers_that_contradict_each_other():
    with pytest.raises(ValueError, match="'a' is right in one rollout and wrong in another"):
        majority_at_k(["a", "a"], [True, False], 1)
    with pytest.raises(ValueError, match="one `correct` a rollout"):
        majority_at_k(["a"], [True, False], 1)
    with pytest.raises(ValueError, match="1 <= k <= num_rollouts"):
        majority_at_k(["a"], [True], 2)
