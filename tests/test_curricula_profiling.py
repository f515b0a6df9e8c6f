"""Sequential profiling: what it asks for, when it stops, what it costs, and what its labels mean."""

import math

import numpy as np
import pytest

from curricula.profiling import (
    Expected,
    SequentialProfile,
    expected_rollouts,
    expected_rollouts_left,
    wave_boundaries,
)
from curricula.store import ProfileStore, tier_table
from curricula.types import Draw, Tier

FINGERPRINT = {"policy": "abc", "temperature": 1.0}


@pytest.fixture
def store(tmp_path):
    with ProfileStore.open(tmp_path / "profile.jsonl", fingerprint=FINGERPRINT) as store:
        yield store


class Solver:
    """Attempt a of problem i is right with probability rates[i], a pure function of (i, a)."""

    def __init__(self, rates, *, num_attempts, seed=0, none_rate=0.0):
        generator = np.random.Generator(np.random.PCG64(seed))
        self.right = generator.random((len(rates), num_attempts)) < np.asarray(rates)[:, None]
        self.without_value = generator.random((len(rates), num_attempts)) < none_rate

    def correct(self, draw):
        row, attempts = int(draw.problem_id), range(draw.first_attempt, draw.first_attempt + draw.num_rollouts)
        return [None if self.without_value[row, a] else bool(self.right[row, a]) for a in attempts]


def run(profile, solver, *, wave=4096, max_waves=None):
    waves = 0
    while (max_waves is None or waves < max_waves) and (draws := profile.next_wave(wave)):
        for draw in draws:
            profile.observe(draw.problem_id, draw.first_attempt, solver.correct(draw), [5] * draw.num_rollouts)
        waves += 1
    return waves


def ids(count):
    return [f"{index:05d}" for index in range(count)]


def test_waves_grow_by_their_factor_and_end_at_the_most():
    assert wave_boundaries(8, max_rollouts=512, wave_growth=2) == (8, 16, 32, 64, 128, 256, 512)
    assert wave_boundaries(8, max_rollouts=512, wave_growth=4) == (8, 32, 128, 512)
    assert wave_boundaries(8, max_rollouts=100, wave_growth=4) == (8, 32, 100)
    assert wave_boundaries(8, max_rollouts=8, wave_growth=2) == (8,)


@pytest.mark.parametrize(("p", "expected"), [(0.001, 463), (0.005, 315), (0.02, 108), (0.1, 21.6)])
def test_expected_rollouts_in_waves_of_8_24_96_384(p, expected):
    boundaries = wave_boundaries(8, max_rollouts=512, wave_growth=4)
    assert expected_rollouts(p, boundaries=boundaries) == pytest.approx(expected, rel=5e-3)


def test_expected_rollouts_one_at_a_time_is_the_closed_form():
    p, q = 0.1, 0.9
    closed = 8 + q**8 * (1 - q**504) / p
    assert expected_rollouts(p, boundaries=range(8, 513)) == pytest.approx(closed)
    assert closed == pytest.approx(12.3, abs=0.01)


def test_expected_rollouts_under_a_uniform_prior_is_one_over_rollouts_plus_one():
    expected = 8 + 8 / 9 + 16 / 17 + 32 / 33
    assert expected_rollouts_left(0, boundaries=(8, 16, 32, 64), prior=(1.0, 1.0)) == pytest.approx(expected)


def test_waves_fill_the_sampler_exactly_and_in_problem_order(store):
    profile = SequentialProfile(["b", "a", "c"], max_rollouts=16, store=store)
    assert profile.next_wave(20) == [Draw("b", 0, 8), Draw("a", 0, 8), Draw("c", 0, 4)]
    assert profile.next_wave(20) == profile.next_wave(20)
    profile.observe("b", 0, [False] * 8, [1] * 8)
    profile.observe("a", 0, [True] + [False] * 7, [1] * 8)
    assert profile.next_wave(20) == [Draw("c", 0, 8), Draw("b", 8, 8)]


def test_a_success_in_the_first_rollouts_ends_a_problem_once_all_of_them_are_drawn(store):
    profile = SequentialProfile(["a"], store=store)
    profile.observe("a", 0, [True, False, True], [1, 2, 3])
    assert profile.next_wave(100) == [Draw("a", 3, 5)]
    profile.observe("a", 3, [False] * 5, [1] * 5)
    assert profile.next_wave(100) == []


def test_a_wave_that_began_is_drawn_to_its_end(store):
    profile = SequentialProfile(["a"], store=store)
    profile.observe("a", 0, [False] * 8, [1] * 8)
    profile.observe("a", 8, [False, True], [1] * 2)
    assert profile.next_wave(100) == [Draw("a", 10, 6)]
    assert profile.expected_rollouts() == Expected(typical=6, most=6)
    profile.observe("a", 10, [False] * 6, [1] * 6)
    assert profile.next_wave(100) == []


def test_first_success_is_the_lowest_attempt_and_not_the_first_reported(store):
    profile = SequentialProfile(["a"], store=store)
    profile.observe("a", 0, [False] * 8, [1] * 8)
    profile.observe("a", 12, [True] + [False] * 3, [1] * 4)
    assert profile.next_wave(100) == [Draw("a", 8, 4)]  # the gap could hold an earlier success
    profile.observe("a", 8, [False, False, True, False], [1] * 4)
    assert profile.next_wave(100) == []
    (row,) = tier_table(store)
    assert (row.first_success_attempt, row.stopping_rule, row.tier) == (10, "first_success", Tier.moderate)


def test_rollouts_without_a_value_are_drawn_again_and_never_counted(store):
    profile = SequentialProfile(["a"], max_rollouts=8, store=store)
    profile.observe("a", 0, [False, None, True, None] + [False] * 4, [1] * 8)
    assert profile.next_wave(100) == [Draw("a", 8, 2)]
    profile.observe("a", 8, [True, False], [1, 1])
    (row,) = tier_table(store)
    assert (row.num_rollouts, row.num_correct, row.estimate) == (8, 2, 2 / 8)
    assert profile.progress().num_without_value == 2


def test_a_verifier_that_never_gives_a_value_ends_the_problem_at_the_cap_without_a_tier(store):
    profile = SequentialProfile(["a", "b"], max_redraws=5, store=store)
    while draws := profile.next_wave(64):
        for draw in draws:
            profile.observe(draw.problem_id, draw.first_attempt, [None] * draw.num_rollouts, [1] * draw.num_rollouts)
    assert tier_table(store) == []
    progress = profile.progress()
    assert progress.num_rollouts == 2 * (8 + 5)
    assert (progress.num_finished, progress.num_without_tier, sum(progress.tiers.values())) == (2, 2, 0)


def test_progress_counts_tiers_by_the_rules_it_is_given(store):
    profile = SequentialProfile(["a", "b"], store=store)
    profile.observe("a", 0, [True] * 7 + [False], [1] * 8)
    profile.observe("b", 0, [False] * 8, [1] * 8)
    profile.observe("b", 8, [False] * 7 + [True], [1] * 8)
    assert profile.progress().tiers == {Tier.trivial: 0, Tier.moderate: 2, Tier.extreme: 0, Tier.unsolved: 0}
    asked = profile.progress(relabel_rollouts=8, trivial_rate=0.8).tiers
    assert asked == {Tier.trivial: 1, Tier.moderate: 0, Tier.extreme: 1, Tier.unsolved: 0}
    table = tier_table(store, relabel_rollouts=8, trivial_rate=0.8)
    assert [row.tier for row in table] == [Tier.trivial, Tier.extreme]


def test_a_killed_profile_goes_on_where_it_stopped_and_ends_with_the_same_table_and_bill(tmp_path):
    rates = np.random.Generator(np.random.PCG64(3)).beta(0.2, 0.8, size=60)
    solver = Solver(rates, num_attempts=600, seed=4, none_rate=0.01)
    tables = []
    for name, stops in (("whole", [None]), ("killed", [1, 2, 1, 3, None])):
        for max_waves in stops:
            with ProfileStore.open(tmp_path / name, fingerprint=FINGERPRINT) as store:
                profile = SequentialProfile([str(i) for i in range(60)], store=store)
                run(profile, solver, wave=300, max_waves=max_waves)
                if max_waves is not None:  # and one draw of the wave is reported in part
                    draw = profile.next_wave(300)[0]
                    half = Draw(draw.problem_id, draw.first_attempt, max(1, draw.num_rollouts // 2))
                    profile.observe(half.problem_id, half.first_attempt, solver.correct(half), [5] * half.num_rollouts)
                else:
                    assert profile.next_wave(300) == []
                    tables.append((tier_table(store), profile.progress()))
    assert tables[0] == tables[1]


def test_extending_a_profile_draws_only_what_is_missing(tmp_path):
    solver = Solver([0.0, 1.0], num_attempts=64)
    for max_rollouts, expected in ((16, 16 + 8), (64, 48), (64, 0)):
        with ProfileStore.open(tmp_path / "p", fingerprint=FINGERPRINT) as store:
            profile = SequentialProfile(["0", "1"], max_rollouts=max_rollouts, store=store)
            before = profile.progress().num_rollouts
            run(profile, solver)
            assert profile.progress().num_rollouts - before == expected


def test_the_bill_before_the_start_is_what_the_prior_says_and_never_more_than_the_most(store):
    rates = np.random.Generator(np.random.PCG64(1)).beta(0.5, 0.5, size=2000)
    profile = SequentialProfile(ids(2000), store=store)
    bill = profile.expected_rollouts()
    assert bill.most == 2000 * 512
    run(profile, Solver(rates, num_attempts=512, seed=2))
    progress = profile.progress()
    assert progress.num_rollouts == pytest.approx(bill.typical, rel=0.2)
    assert progress.num_finished == progress.num_problems == 2000
    assert progress.most_rollouts_left == 0
    assert sum(progress.tiers.values()) == 2000


@pytest.mark.parametrize("p", [0.004, 0.02, 0.1])
def test_labels_have_the_probabilities_of_the_stopping_rule_and_intervals_cover(tmp_path, p):
    count = 3000
    with ProfileStore.open(tmp_path / "p", fingerprint=FINGERPRINT) as store:
        run(SequentialProfile(ids(count), store=store), Solver([p] * count, num_attempts=512, seed=7), wave=10**7)
        rows = tier_table(store, relabel_rollouts=8)
        relabelled = tier_table(store)
    q = 1 - p
    expected = {Tier.trivial: p**8, Tier.moderate: 1 - q**8 - p**8, Tier.extreme: q**8 - q**512, Tier.unsolved: q**512}
    for tier, probability in expected.items():
        share = sum(row.tier is tier for row in rows) / count
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / count) + 1e-9
    extreme = sum(row.tier is Tier.extreme for row in relabelled) / count
    probability = q**32 - q**512
    assert abs(extreme - probability) <= 4 * math.sqrt(probability * (1 - probability) / count)
    covered = sum(row.low <= p <= row.high for row in relabelled) / count
    assert covered >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / count)


def test_the_estimate_is_unbiased_although_sampling_stops_at_a_success(tmp_path):
    count, p = 4000, 0.05
    with ProfileStore.open(tmp_path / "p", fingerprint=FINGERPRINT) as store:
        run(SequentialProfile(ids(count), store=store), Solver([p] * count, num_attempts=512, seed=9), wave=10**7)
        rows = tier_table(store)
    mean = float(np.mean([row.estimate for row in rows]))
    assert abs(mean - p) <= 3 * math.sqrt(p * (1 - p) / 8 / count)
    assert np.mean([row.num_correct / row.num_rollouts for row in rows]) > 1.3 * p


def test_what_was_not_asked_for_is_refused(store):
    profile = SequentialProfile(["a"], store=store)
    profile.observe("a", 0, [False] * 4, [1] * 4)
    with pytest.raises(ValueError, match="recorded before"):
        profile.observe("a", 3, [False] * 2, [1] * 2)
    with pytest.raises(ValueError, match="one of each"):
        profile.observe("a", 4, [False] * 2, [1])
    with pytest.raises(ValueError, match="not being profiled"):
        profile.observe("b", 0, [False], [1])
    assert profile.next_wave(100) == [Draw("a", 4, 4)]
    with pytest.raises(ValueError, match="distinct"):
        SequentialProfile(["a", "a"], store=store)
