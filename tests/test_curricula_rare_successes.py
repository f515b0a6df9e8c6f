"""How often a temperature that costs too much is admitted where right rollouts or differences are rare, by simulation.

Hot sampling only loses right rollouts, one by one, and shares its noise with the temperature in use: the fewest
differences that a cost can show. `docs/temperature.md` has the table of `simulated`."""

import math

import numpy as np
import pytest

from curricula.comparison import Guard, Measured, compare_temperatures, read_temperatures, rollouts_wanted
from curricula.counterfactual import ReweightedWindow, reweight
from curricula.paired import paired, paired_scores
from curricula.types import Outcome

NUM_PROBLEMS = 128
POOLS = {
    "four solvable": lambda generator: np.array([0.5] * 4 + [0.0] * (NUM_PROBLEMS - 4)),
    "all rare": lambda generator: np.full(NUM_PROBLEMS, 0.02),
    "mostly rare": lambda generator: generator.beta(0.3, 6.0, size=NUM_PROBLEMS),
    "even": lambda generator: generator.uniform(size=NUM_PROBLEMS),
    "always right": lambda generator: np.ones(NUM_PROBLEMS),
}
pools = pytest.mark.parametrize("pool", POOLS)


def measured_of(right, num_rollouts):
    outcomes = [Outcome(f"p{index}", num_rollouts, int(count)) for index, count in enumerate(right)]
    return Measured.of(outcomes, num_rollouts=num_rollouts)


def admitted(rates, *, cost, budget, generator, gain=0.0):
    """One decision on 1.2 against 1.0: of right rollouts `cost` + `gain` are lost, and `gain` as many are won."""
    right, drawn = {1.0: np.zeros(len(rates), dtype=int), 1.2: np.zeros(len(rates), dtype=int)}, 0
    won = np.clip(gain * rates / np.maximum(1 - rates, 1e-9), 0, 1)
    measured = {}
    while wanted := rollouts_wanted(measured, current=1.0, candidates={1.2}, guard=Guard(), first=16, budget=budget):
        solved = generator.binomial(wanted[1.0], rates)
        right[1.0] += solved
        right[1.2] += solved - generator.binomial(solved, cost + gain) + generator.binomial(wanted[1.0] - solved, won)
        drawn += wanted[1.0]
        measured = {t: measured_of(of_t, drawn) for t, of_t in right.items()}
    return compare_temperatures(measured, step=0, current=1.0, guard=Guard()).changed


def simulated(pool, *, cost, budget, trials=400, gain=0.0):
    """Share of decisions that admit."""
    generator = np.random.Generator(np.random.PCG64(7))
    rates = [POOLS[pool](generator) for _ in range(trials)]
    return sum(admitted(r, cost=cost, budget=budget, generator=generator, gain=gain) for r in rates) / trials


def at_most(share, trials):
    return share + 2 * math.sqrt(share * (1 - share) / trials)


def test_a_few_problems_that_lose_two_percent_are_seldom_admitted_and_an_even_pool_that_loses_none_is():
    assert simulated("four solvable", cost=0.02, budget=64, trials=60) <= at_most(0.1, 60)
    assert simulated("even", cost=0.0, budget=64, trials=60) > 0.9
    assert simulated("always right", cost=0.0, budget=64, trials=20) > 0.9


@pytest.mark.slow
@pools
@pytest.mark.parametrize("budget", [64, 256])
def test_a_cost_beyond_the_guard_is_admitted_as_often_as_stated_or_less(pool, budget):
    for cost in (0.0101, 0.02, 0.03):
        assert simulated(pool, cost=cost, budget=budget) <= at_most(0.1, 400)


@pytest.mark.slow
@pools
def test_so_it_is_where_some_right_rollouts_are_won(pool):
    assert simulated(pool, cost=0.0101, budget=256, gain=0.01) <= at_most(0.1, 400)


# --- in the window ----------------------------------------------------------------------------------------------------


def window_admitted(rates, *, cost, generator, num_tokens=8, group_size=64):
    """Completions of 8 tokens, right where all are token 0. The hotter temperature is the one of that cost over all."""
    solvable = rates > 0
    per_token = np.where(solvable, rates, 0.5) ** (1 / num_tokens)
    gaps = np.log(per_token / (1 - per_token))
    hotter, hottest = 1.0, 3.0
    for _ in range(50):  # bisection: the pool's score falls with the temperature
        middle = 0.5 * (hotter + hottest)
        score = ((1 / (1 + np.exp(-gaps / middle))) ** num_tokens)[solvable].sum()
        hotter, hottest = (middle, hottest) if score > (1 - cost) * rates.sum() else (hotter, middle)
    groups = []
    for index, (gap, solves) in enumerate(zip(gaps, solvable, strict=True)):
        wrong = generator.binomial(num_tokens, 1 - per_token[index], size=group_size)
        at = [
            -wrong * np.logaddexp(0, gap / t) - (num_tokens - wrong) * np.logaddexp(0, -gap / t) for t in (1.0, hotter)
        ]
        right = [bool(solves and count == 0) for count in wrong]
        groups.append(reweight(f"p{index}", right, np.stack(at, axis=1).tolist(), grid=(1.0, hotter), drawn_at=1.0))
    window = ReweightedWindow(4)
    window.observe(groups)
    readings = read_temperatures(window.measured(), current=1.0, guard=Guard(), min_effective_fraction=0.5)
    return readings[1].admissible


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["four solvable", "all rare", "mostly rare", "even", "nearly always right"])
def test_the_window_too_admits_a_costly_temperature_as_often_as_stated_or_less(pool):
    generator = np.random.Generator(np.random.PCG64(8))
    rates = POOLS.get(pool, lambda _: np.full(NUM_PROBLEMS, 0.998))
    count = sum(window_admitted(rates(generator), cost=0.02, generator=generator) for _ in range(100))
    assert count / 100 <= at_most(0.1, 100)


# --- the bound by hand ------------------------------------------------------------------------------------------------


def bound(scores, others, *, rollouts, drop):
    names = [f"p{index}" for index in range(len(scores))]
    return paired_scores(
        dict(zip(names, scores, strict=True)),
        dict(zip(names, others, strict=True)),
        names,
        rollouts=dict.fromkeys(names, rollouts),
        drop=drop,
        confidence=0.9,
    )


def test_where_nothing_was_lost_the_bound_is_that_of_a_poisson_number_of_losses_at_the_drop():
    """Two problems of 10,000 rollouts, all right: a drop of 0.02 is 400 of 20,000, 20 rollouts either way.

    t of 1 degree of freedom at 0.9 is 3.0777."""
    found = bound([1.0, 1.0], [1.0, 1.0], rollouts=10_000, drop=0.02)
    assert (found.mean, found.standard_error) == (0.0, pytest.approx(20 / 20_000))
    assert found.lower == pytest.approx(-(3.0777 * 20 + 0.5) / 20_000, rel=1e-4)
    assert found.upper == -found.lower


def test_problems_that_nobody_solved_are_not_among_those_that_the_spread_is_over():
    few = bound([0.4, 0.6], [0.5, 0.5], rollouts=10**9, drop=1e-12)
    many = bound([0.4, 0.6, *[0.0] * 8], [0.5, 0.5, *[0.0] * 8], rollouts=10**9, drop=1e-12)
    assert few.standard_error == pytest.approx(0.1)  # differences -.1 and .1
    assert many.standard_error == pytest.approx(0.1 * 2 / 10)
    assert many.upper - many.mean == pytest.approx(3.0777 * 0.02, rel=1e-4)


@pytest.mark.parametrize(("scores", "error"), [((0.0, 0.5), 0.25), ((0.0, 0.0), 0.0)])
def test_a_single_problem_may_lose_its_whole_score(scores, error):
    assert bound(scores, scores, rollouts=10**9, drop=1e-12).standard_error == pytest.approx(error, abs=1e-8)


def test_with_many_differences_the_bounds_are_students():
    generator = np.random.Generator(np.random.PCG64(2))
    others = generator.uniform(0.2, 0.8, size=50)
    scores = others + 0.1 * generator.standard_normal(50)
    names = [f"p{index}" for index in range(50)]
    plain = paired(dict(zip(names, scores, strict=True)), dict(zip(names, others, strict=True)), names, confidence=0.9)
    found = bound(scores, others, rollouts=10**9, drop=0.005)
    assert (found.standard_error, found.lower) == pytest.approx((plain.standard_error, plain.lower))


def test_a_score_without_its_number_of_rollouts_is_refused():
    of_t = Measured({"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="num_rollouts or judged"):
        compare_temperatures({1.0: of_t, 1.2: of_t}, step=0, current=1.0, guard=Guard())


def test_problems_count_by_the_rollouts_that_were_judged_of_each():
    outcomes = [Outcome("a", 3, 1), Outcome("b", 4, 4)]
    measured = Measured.of(outcomes, num_rollouts=4)
    assert [measured.rollouts(name) for name in "ab"] == [3, 4]
    assert {r.total_rollouts for r in read_temperatures({1.0: measured}, current=1.0, guard=Guard())} == {7}
