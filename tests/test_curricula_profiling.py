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
from curricula.shards import Record
from curricula.store import ProfileStore, tier_table
from curricula.types import Draw, Tier


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


def test_waves_come_in_problem_order_and_cut_no_first_group():
    profile = SequentialProfile(["b", "a", "c"], max_rollouts=16)
    assert profile.next_wave(20) == [Draw("b", 0, 8), Draw("a", 0, 8)]
    assert profile.next_wave(20) == profile.next_wave(20)
    profile.observe("b", 0, [False] * 8, [1] * 8)
    profile.observe("a", 0, [True] + [False] * 7, [1] * 8)
    assert profile.next_wave(20) == [Draw("c", 0, 8), Draw("b", 8, 8)]
    assert profile.next_wave(12) == [Draw("c", 0, 8), Draw("b", 8, 4)]  # a later wave fills what is left
    assert profile.next_wave(3) == [Draw("c", 0, 8)]


def test_the_first_rollouts_of_every_problem_are_one_draw_whatever_the_waves_and_the_kills():
    for wave in (3, 8, 20, 50):
        profile, first = SequentialProfile(ids(20), max_rollouts=32), []
        while draws := profile.next_wave(wave):
            for draw in draws[: len(draws) // 2 + 1]:
                profile.observe(
                    draw.problem_id, draw.first_attempt, [False] * draw.num_rollouts, [1] * draw.num_rollouts
                )
                first += [draw] if draw.first_attempt == 0 else []
        assert sorted(draw.problem_id for draw in first) == ids(20)
        assert {draw.num_rollouts for draw in first} == {8}


def test_a_success_in_the_first_rollouts_ends_a_problem_once_all_of_them_are_drawn():
    profile = SequentialProfile(["a"])
    profile.observe("a", 0, [True, False, True], [1, 2, 3])
    assert profile.next_wave(100) == [Draw("a", 3, 5)]
    profile.observe("a", 3, [False] * 5, [1] * 5)
    assert profile.next_wave(100) == []


def test_a_wave_that_began_is_drawn_to_its_end():
    profile = SequentialProfile(["a"])
    profile.observe("a", 0, [False] * 8, [1] * 8)
    profile.observe("a", 8, [False, True], [1] * 2)
    assert profile.next_wave(100) == [Draw("a", 10, 6)]
    assert profile.expected_rollouts() == Expected(typical=6, most=6)
    profile.observe("a", 10, [False] * 6, [1] * 6)
    assert profile.next_wave(100) == []


def test_first_success_is_the_lowest_attempt_and_not_the_first_reported():
    profile = SequentialProfile(["a"])
    profile.observe("a", 0, [False] * 8, [1] * 8)
    profile.observe("a", 12, [True] + [False] * 3, [1] * 4)
    assert profile.next_wave(100) == [Draw("a", 8, 4)]  # the gap could hold an earlier success
    profile.observe("a", 8, [False, False, True, False], [1] * 4)
    assert profile.next_wave(100) == []
    (row,) = tier_table(profile.attempts)
    assert (row.first_success_attempt, row.stopping_rule, row.tier) == (10, "first_success", Tier.moderate)


def test_rollouts_without_a_value_are_drawn_again_and_never_counted():
    profile = SequentialProfile(["a"], max_rollouts=8)
    profile.observe("a", 0, [False, None, True, None] + [False] * 4, [1] * 8)
    assert profile.next_wave(100) == [Draw("a", 8, 2)]
    profile.observe("a", 8, [True, False], [1, 1])
    (row,) = tier_table(profile.attempts)
    assert (row.num_rollouts, row.num_correct, row.estimate) == (8, 2, 2 / 8)
    assert profile.progress().num_without_value == 2


def test_a_verifier_that_never_gives_a_value_ends_the_problem_at_the_cap_without_a_tier():
    profile = SequentialProfile(["a", "b"], max_redraws=5)
    while draws := profile.next_wave(64):
        for draw in draws:
            profile.observe(draw.problem_id, draw.first_attempt, [None] * draw.num_rollouts, [1] * draw.num_rollouts)
    assert tier_table(profile.attempts) == []
    progress = profile.progress()
    assert progress.num_rollouts == 2 * (8 + 5)
    assert (progress.num_finished, progress.num_without_tier, sum(progress.tiers.values())) == (2, 2, 0)


def test_progress_counts_tiers_by_the_rules_it_is_given():
    profile = SequentialProfile(["a", "b"])
    profile.observe("a", 0, [True] * 7 + [False], [1] * 8)
    profile.observe("b", 0, [False] * 8, [1] * 8)
    profile.observe("b", 8, [False] * 7 + [True], [1] * 8)
    assert profile.progress().tiers == {Tier.trivial: 0, Tier.moderate: 2, Tier.extreme: 0, Tier.unsolved: 0}
    asked = profile.progress(relabel_rollouts=8, trivial_rate=0.8).tiers
    assert asked == {Tier.trivial: 1, Tier.moderate: 0, Tier.extreme: 1, Tier.unsolved: 0}
    table = tier_table(profile.attempts, relabel_rollouts=8, trivial_rate=0.8)
    assert [row.tier for row in table] == [Tier.trivial, Tier.extreme]


def stored_run(folder, solver, *, problem_ids, max_waves=None, wave=300, **sizes):
    """A profile whose records go to a store; it ends in the middle of a wave where `max_waves` says so."""
    store = ProfileStore(folder, fingerprint={"policy": "abc"})
    with store.shard() as shard:
        profile = SequentialProfile(problem_ids, known=store.attempts(), **sizes)
        waves = 0
        while draws := profile.next_wave(wave):
            for draw in draws if waves != max_waves else draws[::2]:  # of the last wave every other draw is in
                correct, num_tokens = solver.correct(draw), [5] * draw.num_rollouts
                shard.append([Record(draw.problem_id, draw.first_attempt, tuple(correct), tuple(num_tokens))])
                profile.observe(draw.problem_id, draw.first_attempt, correct, num_tokens)
            waves += 1
            if max_waves is not None and waves > max_waves:
                return profile
    return profile


def test_a_killed_profile_goes_on_where_it_stopped_and_ends_with_the_same_table_and_bill(tmp_path):
    rates = np.random.Generator(np.random.PCG64(3)).beta(0.2, 0.8, size=60)
    solver = Solver(rates, num_attempts=600, seed=4, none_rate=0.01)
    found = []
    for name, stops in (("whole", [None]), ("killed", [1, 2, 1, 3, None])):
        for max_waves in stops:
            problem_ids = [str(i) for i in range(60)]
            profile = stored_run(tmp_path / name, solver, problem_ids=problem_ids, max_waves=max_waves)
        assert profile.next_wave(300) == []
        found.append((tier_table(profile.attempts), profile.progress()))
    assert found[0] == found[1]


def test_extending_a_profile_draws_only_what_is_missing(tmp_path):
    solver = Solver([0.0, 1.0, 0.0], num_attempts=64)
    before = 0
    for max_rollouts, problem_ids, expected in (
        *((16, ["0", "1"], 16 + 8), (64, ["0", "1"], 48), (64, ["0", "1"], 0), (64, ["1", "2", "0"], 64)),
        (16, ["0", "1", "2"], 0),
    ):
        profile = stored_run(tmp_path, solver, problem_ids=problem_ids, max_rollouts=max_rollouts)
        total = sum(
            attempts.num_recorded
            for attempts in ProfileStore(tmp_path, fingerprint={"policy": "abc"}).attempts().values()
        )
        assert total - before == expected
        before = total
    assert profile.progress().num_finished == 3


def test_a_label_is_that_of_its_rules_however_much_more_the_store_holds():
    profile = SequentialProfile(["a"])
    profile.observe("a", 0, [False] * 40 + [True], [1] * 41)
    (row,) = tier_table(profile.attempts, max_rollouts=16)
    assert (row.tier, row.num_rollouts, row.stopping_rule) == (Tier.unsolved, 16, "exhausted")
    assert SequentialProfile(["a"], max_rollouts=16, known=profile.attempts).progress().tiers[Tier.unsolved] == 1
    (row,) = tier_table(profile.attempts, max_rollouts=64)
    assert (row.tier, row.num_rollouts) == (Tier.extreme, 41)


def test_the_bill_before_the_start_is_what_the_prior_says_and_never_more_than_the_most():
    rates = np.random.Generator(np.random.PCG64(1)).beta(0.5, 0.5, size=2000)
    profile = SequentialProfile(ids(2000))
    bill = profile.expected_rollouts()
    assert bill.most == 2000 * 512
    run(profile, Solver(rates, num_attempts=512, seed=2))
    progress = profile.progress()
    assert progress.num_rollouts == pytest.approx(bill.typical, rel=0.2)
    assert progress.num_finished == progress.num_problems == 2000
    assert progress.left == Expected(typical=0.0, most=0)
    assert progress.num_tokens == 5 * progress.num_rollouts
    assert sum(progress.tiers.values()) == 2000


@pytest.mark.parametrize("p", [0.004, 0.02, 0.1])
def test_labels_have_the_probabilities_of_the_stopping_rule_and_intervals_cover(p):
    count = 3000
    profile = SequentialProfile(ids(count))
    run(profile, Solver([p] * count, num_attempts=512, seed=7), wave=10**7)
    rows = tier_table(profile.attempts, relabel_rollouts=8)
    relabelled = tier_table(profile.attempts)
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


def test_the_estimate_is_unbiased_although_sampling_stops_at_a_success():
    count, p = 4000, 0.05
    profile = SequentialProfile(ids(count))
    run(profile, Solver([p] * count, num_attempts=512, seed=9), wave=10**7)
    rows = tier_table(profile.attempts)
    mean = float(np.mean([row.estimate for row in rows]))
    assert abs(mean - p) <= 3 * math.sqrt(p * (1 - p) / 8 / count)
    assert np.mean([row.num_correct / row.num_rollouts for row in rows]) > 1.3 * p


def test_what_was_not_asked_for_is_refused():
    profile = SequentialProfile(["a"])
    profile.observe("a", 0, [False] * 4, [1] * 4)
    with pytest.raises(ValueError, match="recorded before"):
        profile.observe("a", 3, [False] * 2, [1] * 2)
    with pytest.raises(ValueError, match="one of each"):
        profile.observe("a", 4, [False] * 2, [1])
    with pytest.raises(ValueError, match="not being profiled"):
        profile.observe("b", 0, [False], [1])
    assert profile.next_wave(100) == [Draw("a", 4, 4)]
    with pytest.raises(ValueError, match="distinct"):
        SequentialProfile(["a", "a"])


@pytest.mark.parametrize("hopeless", [0.1, 0.5, 0.8])
def test_the_bill_is_fitted_to_what_was_seen_whatever_share_of_the_problems_is_hopeless(hopeless):
    """After the first rollouts of all the rest of the bill is known to a third: eight failures do not tell a hopeless
    problem from one of p = 0.03."""
    random = np.random.Generator(np.random.PCG64(3))
    rates = np.where(random.random(1500) < hopeless, 0.0, random.beta(2, 3, 1500))
    ids = [f"p{index:04d}" for index in range(len(rates))]
    profile = SequentialProfile(ids, max_rollouts=128)
    said = None
    while draws := profile.next_wave(4000):
        if said is None and all(draw.first_attempt for draw in draws):
            said, drawn_before = profile.expected_rollouts().typical, profile.progress().num_rollouts
        for draw in draws:
            correct = (random.random(draw.num_rollouts) < rates[int(draw.problem_id[1:])]).tolist()
            profile.observe(draw.problem_id, draw.first_attempt, correct, [1] * draw.num_rollouts)
    assert profile.progress().num_rollouts - drawn_before == pytest.approx(said, rel=0.33)
