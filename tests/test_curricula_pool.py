"""The pool, its walk, packed arrays, and draws by weight: the parts that carry a million problems."""

import json
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curricula.packed import pack_members, pack_numbers, unpack_members, unpack_numbers
from curricula.pool import Eligible, EpochWalk, Pool
from curricula.types import Outcome
from curricula.weighted import Weighted


@given(indices=st.sets(st.integers(0, 70)), size=st.integers(71, 90))
def test_a_packed_set_of_problems_comes_back_as_it_was(indices, size):
    text = pack_members(np.array(sorted(indices), dtype=np.int64), num_problems=size)
    assert unpack_members(json.loads(json.dumps(text)), num_problems=size).tolist() == sorted(indices)


@given(numbers=st.lists(st.floats(allow_nan=False), max_size=20))
def test_packed_numbers_come_back_to_the_last_bit(numbers):
    array = np.array(numbers, dtype=np.float64)
    assert unpack_numbers(pack_numbers(array), dtype=np.float64).tobytes() == array.tobytes()
    assert unpack_numbers(pack_numbers(array.astype(">f8")), dtype=np.float64).tobytes() == array.tobytes()


def test_a_few_of_a_million_take_little_room():
    assert len(pack_members(np.array([5, 999_999]), num_problems=1_000_000)) < 1000


def test_a_pool_finds_its_problems_and_no_others():
    pool = Pool(["b", "d", "a"])
    assert [pool.find(name) for name in ("a", "b", "d")] == [0, 1, 2]
    for name in ("", "A", "c", "e", "dd"):
        with pytest.raises(ValueError, match="not in this curriculum's pool"):
            pool.find(name)


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_a_walk_gives_everyone_eligible_once_an_epoch_and_nobody_else(data, size, seed):
    among = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any)))
    walk = EpochWalk(size, seed=seed)
    for epoch in range(3):
        taken = [walk.take(1, eligible=Eligible.of(among), given=set())[0] for _ in range(int(among.sum()))]
        assert sorted(taken) == np.flatnonzero(among).tolist()
        assert walk.epoch == epoch


def test_a_walk_over_few_of_many_lays_out_the_few_alone():
    among = np.zeros(10_000, dtype=np.bool_)
    among[[3, 5000, 9999]] = True
    walk = EpochWalk(10_000, seed=0)
    assert Counter(walk.take(7, eligible=Eligible.of(among), given=set())).keys() == {3, 5000, 9999}
    walk.mark()
    assert len(json.dumps(walk.state_dict())) < 300


def test_one_that_becomes_eligible_joins_in_the_next_epoch():
    walk = EpochWalk(4, seed=0)
    before, after = Eligible.of(np.array([True, True, True, False])), Eligible.everyone(4)
    first = walk.take(1, eligible=before, given=set())
    assert sorted(first + walk.take(2, eligible=after, given=set())) == [0, 1, 2]
    assert sorted(walk.take(4, eligible=after, given=set())) == [0, 1, 2, 3]


def test_a_walk_begun_anew_is_laid_out_over_whoever_is_eligible_then():
    walk = EpochWalk(4, seed=0)
    walk.take(1, eligible=Eligible.of(np.array([True, True, True, False])), given=set())
    walk.begin_anew()
    assert sorted(walk.take(2, eligible=Eligible.of(np.array([False, False, True, True])), given=set())) == [2, 3]
    assert walk.epoch == 1


def successive(weights, chosen):
    """Chance of drawing `chosen` in this order, each draw ∝ the weights of those that are left."""
    chance, left = 1.0, sum(weights)
    for index in chosen:
        chance *= weights[index] / left
        left -= weights[index]
    return chance


@pytest.mark.parametrize("floor", [0.05, 1e-9])
def test_draws_by_weight_have_the_chances_of_successive_sampling(floor):
    # With a floor of 1e-9 most draws cannot be met by proposals, and fall back on waiting times.
    names = ["a", "b", "c", "d"]
    told = [Outcome("a", 8, 4), Outcome("b", 8, 8), Outcome("c", 98, 98)]
    drawn = Counter()
    rounds = 4000 if floor == 0.05 else 800
    for seed in range(rounds):
        curriculum = Weighted(names, seed=seed, floor=floor)
        curriculum.observe(told)
        curriculum.end_step()
        drawn[tuple(names.index(name) for name in curriculum.next(2))] += 1
    rates = [5 / 10, 9 / 10, 99 / 100, 1 / 2]
    weights = [max(rate * (1 - rate), floor) for rate in rates]
    for chosen in permutations(range(4), 2):
        chance = successive(weights, chosen)
        error = (chance * (1 - chance) / rounds) ** 0.5
        assert drawn[chosen] / rounds == pytest.approx(chance, abs=4.5 * error)


def test_problems_at_the_floor_are_drawn_by_waiting_times_with_equal_chances():
    names = [f"p{index}" for index in range(30)]
    drawn = Counter()
    for seed in range(600):
        curriculum = Weighted(names, seed=seed, floor=1e-7)
        curriculum.observe([Outcome(name, 10**8, 10**8) for name in names])
        curriculum.end_step()
        drawn.update(curriculum.next(3))
    assert min(drawn[name] for name in names) > 60 - 4.5 * 60**0.5
    assert max(drawn[name] for name in names) < 60 + 4.5 * 60**0.5


def test_the_number_of_effective_problems_is_kept_as_if_it_were_summed_anew():
    names = [f"p{index:02d}" for index in range(50)]
    curriculum = Weighted(names, seed=0)
    random = np.random.Generator(np.random.PCG64(0))
    told = {}
    for _ in range(300):
        chosen = curriculum.next(8)
        for name in chosen:
            right, rollouts = told.get(name, (0.0, 0.0))
            correct = int(random.binomial(8, 0.7))
            curriculum.observe([Outcome(name, 8, correct)])
            told[name] = (right * 0.5**0.5 + correct, rollouts * 0.5**0.5 + 8)
        curriculum.end_step()
    rates = np.array([(told.get(name, (0, 0))[0] + 1) / (told.get(name, (0, 0))[1] + 2) for name in names])
    weights = np.maximum(rates * (1 - rates), 0.01)
    metric = curriculum.metrics()["curriculum/effective_problems"]
    assert metric == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-9)
