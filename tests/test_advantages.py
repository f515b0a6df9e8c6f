"""Baselines and scales by hand, and what holds for any rewards."""

import math
from itertools import pairwise
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.advantages import BASELINES, SCALES, group_advantages


def advantages(*groups: list[float], baseline: str = "mean", scale: str = "none") -> list[list[float]]:
    return group_advantages(groups, baseline=baseline, scale=scale)


@pytest.mark.parametrize(
    ("baseline", "scale", "expected"),
    [
        ("mean", "none", [-0.25, -0.25, -0.25, 0.75]),
        ("mean", "group_std", [-0.5, -0.5, -0.5, 1.5]),  # the deviation is √((3/16 + 9/16)/3) = 1/2
        ("leave_one_out", "none", [-1 / 3, -1 / 3, -1 / 3, 1.0]),  # the others' mean is 1/3, and 0 for the success
        ("leave_one_out", "group_std", [-0.5, -0.5, -0.5, 1.5]),  # 4/3 of the centred ones, and so is the deviation
        ("mean", "batch_std", [-1 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3), math.sqrt(3)]),
    ],
)
def test_one_success_of_four_by_hand(baseline, scale, expected):
    assert advantages([0, 0, 0, 1], baseline=baseline, scale=scale) == [pytest.approx(expected)]


def test_one_success_of_512_weighs_22_6_with_the_groups_deviation_and_0_998_without():
    rare = [1.0] + [0.0] * 511
    assert advantages(rare)[0][0] == pytest.approx(0.998, abs=1e-4)
    assert advantages(rare, scale="group_std")[0][0] == pytest.approx(22.6, abs=0.05)
    assert advantages(rare, baseline="leave_one_out")[0][0] == pytest.approx(1.0)


def test_the_batch_deviation_is_shared_and_the_groups_is_not():
    # Centred: ±1 and ±3; the root mean square of all four is √5.
    narrow, wide = [1.0, 3.0], [0.0, 6.0]
    assert advantages(narrow, wide, scale="batch_std") == [
        pytest.approx([-1 / math.sqrt(5), 1 / math.sqrt(5)]),
        pytest.approx([-3 / math.sqrt(5), 3 / math.sqrt(5)]),
    ]
    # Each over its own deviation, √2 and √18.
    assert advantages(narrow, wide, scale="group_std") == [pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])] * 2


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 0.0], [0.1, 0.1], [1.0], []])
def test_a_group_that_teaches_nothing_is_refused_by_number_and_values(values):
    with pytest.raises(ValueError, match=r"group 1 teaches nothing .*drop it"):
        advantages([0.0, 1.0], values)


def test_a_group_whose_deviation_is_small_but_not_zero_is_not_refused():
    # Degenerate is max == min, not a small floating-point deviation.
    assert advantages([1.0, 1.0 + 1e-9], scale="group_std")[0] == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_groups_keep_their_order_and_size():
    found = advantages([0, 1], [1, 0, 0], [0, 0, 0, 2])
    assert [len(group) for group in found] == [2, 3, 4]
    assert [group.index(max(group)) for group in found] == [1, 0, 3]


# Rewards on a grid: sums of a few binary fractions have no rounding that would hide a fault.
values = st.lists(st.integers(-64, 64).map(lambda n: n / 16), min_size=2, max_size=20).filter(lambda v: len(set(v)) > 1)
groups = st.lists(values, min_size=1, max_size=5)
choices = pytest.mark.parametrize(("baseline", "scale"), [(b, s) for b in BASELINES for s in SCALES])


@choices
@settings(max_examples=40, deadline=None)
@given(groups=groups)
def test_every_group_sums_to_zero(baseline, scale, groups):
    for of_group in group_advantages(groups, baseline=baseline, scale=scale):
        assert fmean(of_group) == pytest.approx(0, abs=1e-9)


@choices
@settings(max_examples=40, deadline=None)
@given(groups=groups, shift=st.integers(-100, 100))
def test_a_constant_added_to_every_reward_changes_nothing(baseline, scale, groups, shift):
    shifted = [[value + shift for value in group] for group in groups]
    found = group_advantages(shifted, baseline=baseline, scale=scale)
    for one, two in zip(group_advantages(groups, baseline=baseline, scale=scale), found, strict=True):
        assert one == pytest.approx(two, abs=1e-9)


@choices
@settings(max_examples=40, deadline=None)
@given(groups=groups, factor=st.sampled_from([0.01, 0.5, 3.0, 1000.0]))
def test_a_factor_on_every_reward_scales_the_advantages_only_where_nothing_is_divided(baseline, scale, groups, factor):
    scaled = [[value * factor for value in group] for group in groups]
    found = group_advantages(scaled, baseline=baseline, scale=scale)
    for one, two in zip(group_advantages(groups, baseline=baseline, scale=scale), found, strict=True):
        expected = [a * factor for a in one] if scale == "none" else one
        assert two == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(group=values)
def test_with_the_groups_deviation_every_group_has_deviation_one(group):
    for baseline in BASELINES:
        assert stdev(advantages(group, baseline=baseline, scale="group_std")[0]) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(groups=groups)
def test_with_the_batch_deviation_the_steps_mean_square_is_one(groups):
    every = [a for group in advantages(*groups, scale="batch_std") for a in group]
    assert fmean(a * a for a in every) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(group=values)
def test_leave_one_out_is_the_centred_advantage_times_n_over_n_minus_one(group):
    n = len(group)
    expected = [a * n / (n - 1) for a in advantages(group)[0]]
    assert advantages(group, baseline="leave_one_out")[0] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(group=values)
def test_a_better_reward_never_has_a_lower_advantage(group):
    for baseline in BASELINES:
        for scale in SCALES:
            (found,) = advantages(group, baseline=baseline, scale=scale)
            ordered = sorted(range(len(group)), key=lambda i: group[i])
            assert all(found[i] <= found[j] + 1e-9 for i, j in pairwise(ordered))
