"""Online tiers: who is practised, who rests and for how long, and what a step's requests are for."""

from collections import Counter

import numpy as np
import pytest

from curricula.curriculum import Uniform
from curricula.online import Online
from curricula.tiers import MoveRule
from curricula.types import Outcome, Tier


def ids(number):
    return [f"p{index:04d}" for index in range(number)]


def play(curriculum, *, steps, right, problems=4, waves=1, of=8):
    """Play steps; a request after the first replaces groups without variance. Returns each step's problems."""
    history = []
    for _ in range(steps):
        step, kept = [], 0
        for _ in range(waves):
            if kept >= problems:
                break
            chosen = curriculum.next(problems - kept)
            outcomes = [Outcome(name, of, right(name)) for name in chosen]
            kept += sum(0 < outcome.num_correct < of for outcome in outcomes)
            curriculum.observe(outcomes)
            step += chosen
        curriculum.end_step()
        history.append(step)
    return history


def groups_of(history, name):
    """Places, counted in groups, at which the problem was practised."""
    return [place for place, given in enumerate(name for step in history for name in step) if given == name]


def test_every_problem_is_seen_once_before_any_first_request_repeats_one():
    curriculum = Online(ids(20), seed=0)
    history = play(curriculum, steps=5, right=lambda name: 4)
    assert sorted(name for step in history for name in step) == ids(20)
    assert curriculum.metrics()["curriculum/unseen_problems"] == 0
    assert curriculum.metrics()["curriculum/epoch"] == 1
    assert curriculum.tier_counts == {Tier.trivial: 0, Tier.moderate: 20, Tier.unsolved: 0}


def test_the_first_group_settles_the_tier_and_later_ones_correct_it():
    curriculum = Online(ids(3), seed=0)
    right = dict(zip(ids(3), (8, 3, 0), strict=True))
    play(curriculum, steps=1, problems=3, right=right.get)
    assert curriculum.tier_counts == {Tier.trivial: 1, Tier.moderate: 1, Tier.unsolved: 1}
    # The trivial one fails a group outright, running rate .41; the unsolved one is solved once of eight.
    curriculum.observe([Outcome("p0000", 8, 0), Outcome("p0002", 8, 1)])
    curriculum.end_step()
    assert curriculum.tier_counts == {Tier.trivial: 0, Tier.moderate: 3, Tier.unsolved: 0}


def test_rests_double_with_every_group_without_a_success_up_to_the_longest():
    curriculum = Online(ids(40), seed=0, max_wait_epochs=4)
    # One problem is never solved, the others always have variance: 40 groups are an epoch.
    history = play(curriculum, steps=400, right=lambda name: 0 if name == "p0007" else 4)
    gaps = np.diff(groups_of(history, "p0007"))
    assert len(gaps) >= 6
    for gap, epochs in zip(gaps, [1, 2, 4, 4, 4, 4], strict=False):
        # It is due at the boundary after its step and so many epochs, and comes with the next step at the latest.
        assert 40 * epochs - 4 < gap <= 40 * epochs + 8


def test_one_success_ends_a_rest_for_good():
    curriculum = Online(ids(40), seed=0)
    tries = Counter()

    def right(name):
        tries[name] += 1
        return 4 if name != "p0007" else int(tries[name] >= 3)  # 0, 0, then 1 of 8 again and again

    history = play(curriculum, steps=200, right=right)
    gaps = np.diff(groups_of(history, "p0007"))
    assert gaps[1] > 70  # the rest of two epochs
    assert max(gaps[3:]) < 2 * 40  # one walk through the moderate problems, and where in the next one it stands


def test_a_trivial_problem_returns_for_a_check_and_never_where_there_is_none():
    def gaps(every):
        curriculum = Online(ids(40), seed=0, moves=MoveRule(min_observations=1, check_every_epochs=every))
        history = play(curriculum, steps=200, right=lambda name: 8 if name == "p0007" else 4)  # 20 epochs
        return np.diff(groups_of(history, "p0007")).tolist()

    assert len(gaps(3)) >= 5
    assert all(3 * 40 - 4 < gap <= 3 * 40 + 8 for gap in gaps(3))
    assert gaps(None) == []


def test_a_problem_that_was_solved_before_is_given_up_on_by_two_groups_in_a_row_not_by_one():
    curriculum = Online(ids(4), seed=0)
    for right, tier in ((2, Tier.moderate), (0, Tier.moderate), (0, Tier.unsolved), (1, Tier.moderate)):
        curriculum.observe([Outcome("p0000", 8, right)])
        curriculum.end_step()
        assert curriculum.tier_counts[tier] == 1


def test_with_two_groups_needed_nobody_rests_after_the_first():
    curriculum = Online(ids(4), seed=0, moves=MoveRule(min_observations=2))
    history = play(curriculum, steps=2, right=lambda name: 0)
    assert [sorted(step) for step in history] == [ids(4), ids(4)]
    assert curriculum.metrics()["curriculum/resting_problems"] == 4


def test_unseen_problems_come_first_also_in_refills_and_then_refills_practise_what_is_known_to_teach():
    teaching = {f"p{index:04d}" for index in range(0, 200, 10)}
    curriculum = Online(ids(200), seed=0)
    play(curriculum, steps=5, problems=20, right=lambda name: 4 if name in teaching else 0)  # half the pool is seen
    first, refill = curriculum.next(20), curriculum.next(5)
    assert all(curriculum.tier_of(name) is None for name in [*first, *refill])
    assert len({*first, *refill}) == 25
    curriculum.end_step()
    assert curriculum.metrics()["curriculum/unseen_problems"] == 100  # given, and not told of: as if never given
    play(curriculum, steps=5, problems=20, right=lambda name: 4 if name in teaching else 0)
    assert curriculum.metrics()["curriculum/unseen_problems"] == 0
    curriculum.next(20)
    assert set(curriculum.next(5)) <= teaching


@pytest.mark.parametrize(("first_group_size", "expected"), [(None, 16), (8, 8), (32, 16)])
def test_a_first_group_may_be_smaller_than_others(first_group_size, expected):
    curriculum = Online(ids(4), seed=0, first_group_size=first_group_size)
    assert curriculum.group_size("p0000", of_stage=16) == expected
    curriculum.observe([Outcome("p0000", 8, 4)])
    curriculum.end_step()
    assert curriculum.group_size("p0000", of_stage=16) == 16
    assert curriculum.group_size("p0001", of_stage=16) == expected


def test_a_first_group_of_one_is_refused():
    with pytest.raises(ValueError, match="first_group_size = 1"):
        Online(ids(4), seed=0, first_group_size=1)


def test_problems_whose_rest_is_over_take_half_of_a_request_while_others_can_be_practised():
    curriculum = Online(ids(40), seed=0)
    play(curriculum, steps=10, right=lambda name: 4 if name < "p0010" else 0)
    assert curriculum.metrics()["curriculum/unseen_problems"] == 0
    play(curriculum, steps=10, right=lambda name: 4 if name < "p0010" else 0)
    step = curriculum.next(8)
    assert Counter(name < "p0010" for name in step) == {True: 4, False: 4}


def test_a_pool_of_which_nobody_is_due_is_practised_all_the_same():
    curriculum = Online(ids(12), seed=0, moves=MoveRule(min_observations=1, check_every_epochs=None))
    history = play(curriculum, steps=12, problems=4, right=lambda name: 8)
    assert all(len(set(step)) == 4 for step in history)
    assert curriculum.metrics()["curriculum/resting_problems"] == 12
    assert set(Counter(name for step in history for name in step).values()) == {4}


def test_a_profile_observed_beforehand_is_its_first_look():
    curriculum = Online(ids(30), seed=0)
    curriculum.observe([Outcome(name, 8, 8 if name < "p0010" else 0) for name in ids(20)])
    curriculum.end_step()
    assert set(curriculum.next(10)) == set(ids(30)[20:])


def test_checks_and_retries_take_a_bounded_share_however_few_problems_teach():
    # 990 of 1,000 problems are trivial, and 20 epochs hold three checks of each at epochs 5, 10 and 15.
    curriculum = Online(ids(1000), seed=0)
    curriculum.observe([Outcome(name, 8, 8 if name >= "p0010" else 4) for name in ids(1000)])
    curriculum.end_step()
    history = play(curriculum, steps=2000, problems=10, right=lambda name: 8 if name >= "p0010" else 4)
    checks = Counter(name for step in history for name in step if name >= "p0010")
    assert set(checks.values()) == {3}


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_on_a_pool_that_is_mostly_hopeless_it_finds_more_groups_with_variance_than_uniform(share):
    def yield_of(curriculum):
        random = np.random.Generator(np.random.PCG64(0))
        rates = dict(zip(ids(600), np.where(np.arange(600) < 600 * share, 0.4, 0.0), strict=True))
        useful = total = 0
        for _ in range(60):
            kept = 0
            for _ in range(3):
                chosen = curriculum.next(max(1, 16 - kept))
                right = [int(random.binomial(8, rates[name])) for name in chosen]
                curriculum.observe([Outcome(name, 8, r) for name, r in zip(chosen, right, strict=True)])
                kept += sum(0 < r < 8 for r in right)
                total += len(chosen)
            useful += kept
            curriculum.end_step()
        return useful / total

    assert yield_of(Online(ids(600), seed=0)) > 2 * yield_of(Uniform(ids(600), seed=0))


def test_on_a_pool_where_everything_teaches_it_is_a_walk_through_the_pool():
    curriculum = Online(ids(100), seed=0)
    history = play(curriculum, steps=100, problems=10, waves=3, right=lambda name: 4)
    counts = Counter(name for step in history for name in step)
    assert set(counts.values()) == {10}


def test_an_impossible_wait_is_refused():
    with pytest.raises(ValueError, match="max_wait_epochs = 0"):
        Online(["a"], seed=0, max_wait_epochs=0)
    with pytest.raises(ValueError, match="min_observations = 0"):
        MoveRule(min_observations=0)


def test_a_problem_without_a_verdict_rests_like_one_without_a_success():
    names = ids(20)
    silent = set(names[:8])
    curriculum = Online(names, seed=0, max_wait_epochs=4)
    given = []
    for _ in range(60):
        step = curriculum.next(5)
        given.append(step)
        curriculum.observe([Outcome(name, 0 if name in silent else 8, 0 if name in silent else 4) for name in step])
        curriculum.end_step()
    times = Counter(name for step in given[8:] for name in step)  # after the first look at everything
    # 260 groups are 13 epochs: a silent one comes once in 4 in the long run, and moderate ones share the rest.
    assert max(times[name] for name in silent) <= 5
    assert min(times[name] for name in names if name not in silent) >= 15
