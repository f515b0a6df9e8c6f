"""Draws of a decision that grow: what is drawn next, when it ends, and how often a costly temperature is admitted."""

import math

import numpy as np
import pytest

from curricula.comparison import (
    Guard,
    Measured,
    compare_temperatures,
    read_temperatures,
    rollouts_wanted,
    unbiased_signal,
)
from curricula.plateau import PlateauRule
from curricula.temperature import Adaptive
from curricula.types import Outcome

GUARD = Guard(max_standard_error=0.015)  # of the score: what 128 problems with 64 rollouts each give


class Rates:
    """Problems of known pass rates at each temperature; rollouts are drawn and pooled as they are asked for."""

    def __init__(self, rates, *, generator):
        self.rates = rates  # [P] at each temperature
        self.generator = generator
        self.right = {t: np.zeros(len(of_t), dtype=int) for t, of_t in rates.items()}
        self.drawn = dict.fromkeys(rates, 0)

    def draw(self, wanted):
        for temperature, number in wanted.items():
            self.right[temperature] += self.generator.binomial(number, self.rates[temperature])
            self.drawn[temperature] += number

    def measured(self):
        return {
            t: Measured.of(
                [Outcome(f"p{index}", drawn, int(right)) for index, right in enumerate(self.right[t])],
                num_rollouts=drawn,
            )
            for t, drawn in self.drawn.items()
            if drawn
        }


def costing(*drops, generator, problems=128):
    """Pass rates spread over 0 to 1 at 1.0, and shrunk by each of the drops at 1.1, 1.2, ..."""
    rates = generator.uniform(size=problems)
    hotter = {round(1.1 + 0.1 * number, 1): rates * (1 - drop) for number, drop in enumerate(drops)}
    return Rates({1.0: rates, **hotter}, generator=generator)


def grown(rates, *, guard=GUARD, first=16, budget=256):
    """The decision, and the rounds of draws that led to it."""
    candidates, rounds = set(rates.rates) - {1.0}, []
    while wanted := rollouts_wanted(
        rates.measured(), current=1.0, candidates=candidates, guard=guard, first=first, budget=budget
    ):
        rates.draw(wanted)
        rounds.append(wanted)
    return compare_temperatures(rates.measured(), step=0, current=1.0, guard=guard), rounds


def raised_fraction(*drops, trials=400, seed=0):
    generator = np.random.Generator(np.random.PCG64(seed))
    return sum(grown(costing(*drops, generator=generator))[0].changed for _ in range(trials)) / trials


def test_a_temperature_that_costs_as_much_as_the_guard_allows_is_admitted_as_often_as_stated_or_less():
    assert raised_fraction(0.01, trials=200) <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 200)


@pytest.mark.slow
def test_so_it_is_with_several_of_them_and_with_ones_that_cost_more():
    assert raised_fraction(0.01) <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 400)
    assert raised_fraction(0.01, 0.01, 0.01, trials=1200) <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 1200)
    assert raised_fraction(0.03) <= 0.01
    assert 0.2 < raised_fraction(0.0) < 0.5  # 64 rollouts are seldom sure of a free one: late, not wrongly


@pytest.mark.slow
def test_stopping_as_soon_as_a_difference_looks_good_would_admit_more_than_stated():
    generator = np.random.Generator(np.random.PCG64(3))
    guard, raised = Guard(max_standard_error=1.0), 0
    for _ in range(400):
        rates = costing(0.01, generator=generator)
        for number in (8, 8, 16, 32, 64, 128, 256):
            rates.draw({1.0: number, 1.1: number})
            if compare_temperatures(rates.measured(), step=0, current=1.0, guard=guard).changed:
                raised += 1
                break
    assert raised / 400 > 0.2


def test_draws_double_until_the_difference_is_sure_and_no_further():
    generator = np.random.Generator(np.random.PCG64(1))
    decision, rounds = grown(costing(0.0, generator=generator))
    assert rounds == [{1.0: 16, 1.1: 16}, {1.0: 16, 1.1: 16}, {1.0: 32, 1.1: 32}]
    hotter = decision.readings[1]
    assert (hotter.total_rollouts, hotter.sure) == (64 * 128, True)
    assert hotter.standard_error <= hotter.standard_error_allowed == pytest.approx(0.015 * decision.readings[0].mean)


def test_the_budget_is_not_exceeded_and_what_is_undecided_then_keeps_the_temperature():
    generator = np.random.Generator(np.random.PCG64(1))
    decision, rounds = grown(costing(0.0, generator=generator), budget=40)
    assert rounds == [{1.0: 16, 1.1: 16}, {1.0: 16, 1.1: 16}, {1.0: 8, 1.1: 8}]
    assert (decision.chosen, decision.undecided) == (1.0, (1.1,))


def test_a_temperature_that_has_failed_is_drawn_no_further_nor_is_any_above_it():
    generator = np.random.Generator(np.random.PCG64(1))
    decision, rounds = grown(costing(0.0, 0.5, 0.0, generator=generator))
    assert rounds == [{1.0: 16, 1.1: 16, 1.2: 16, 1.3: 16}, {1.0: 16, 1.1: 16}, {1.0: 32, 1.1: 32}]
    assert decision.readings[2].failed
    assert not decision.readings[2].sure


def test_only_those_that_are_unsure_are_drawn_again_and_the_one_in_use_with_them():
    sharp = {f"p{index}": 0.5 for index in range(50)}
    blurred = {f"p{index}": 0.5 + 0.1 * (-1) ** index for index in range(50)}
    measured = {1.0: Measured(sharp, num_rollouts=16), 1.1: Measured(sharp, num_rollouts=16)}
    measured[1.2] = Measured(blurred, num_rollouts=16)
    wanted = rollouts_wanted(measured, current=1.0, candidates={1.1, 1.2}, guard=Guard(), first=16, budget=64)
    assert wanted == {1.0: 16, 1.2: 16}


def test_of_no_score_at_all_no_more_is_drawn():
    nothing = Measured({"a": 0.0, "b": 0.0}, num_rollouts=16)
    measured = {1.0: nothing, 1.2: nothing}
    assert rollouts_wanted(measured, current=1.0, candidates={1.2}, guard=Guard(), first=16, budget=64) == {}


def test_against_the_best_the_best_and_the_one_in_use_are_drawn_until_sure():
    def blurred(mean):
        return Measured({f"p{i}": mean + 0.1 * math.sin(17 * i + 100 * mean) for i in range(50)}, num_rollouts=16)

    guard = Guard(reference="best")
    measured = {0.8: blurred(0.6), 1.0: blurred(0.55), 1.2: blurred(0.3)}
    wanted = rollouts_wanted(measured, current=1.0, candidates={0.8, 1.2}, guard=guard, first=16, budget=64)
    assert wanted == {0.8: 16, 1.0: 16, 1.2: 16}


# --- the choice by signal ---------------------------------------------------------------------------------------------


def test_the_signal_of_a_problem_is_unbiased():
    for rate in (0.05, 0.3, 0.5):
        expected = sum(
            math.comb(6, c) * rate**c * (1 - rate) ** (6 - c) * unbiased_signal(Outcome("a", 6, c)) for c in range(7)
        )
        assert expected == pytest.approx(rate * (1 - rate), abs=1e-12)
    with pytest.raises(ValueError, match="two rollouts"):
        unbiased_signal(Outcome("a", 1, 1))


def with_signal(mean, signal):
    names = [f"p{index}" for index in range(50)]
    return Measured(dict.fromkeys(names, mean), signal=dict.fromkeys(names, signal), num_rollouts=160)


@pytest.mark.parametrize(
    ("signals", "highest", "by_signal"),
    [
        ((0.10, 0.20, 0.15, 0.9), 1.2, 1.1),  # 1.3 costs too much, however much it teaches
        ((0.10, 0.05, 0.08, 0.9), 1.2, 1.0),
        ((0.10, 0.10, 0.10, 0.9), 1.2, 1.2),  # of equal ones the hottest
    ],
)
def test_by_signal_the_admissible_temperature_with_the_most_is_taken(signals, highest, by_signal):
    means = {1.0: 0.5, 1.1: 0.5, 1.2: 0.5, 1.3: 0.4}
    measured = {t: with_signal(mean, signal) for (t, mean), signal in zip(means.items(), signals, strict=True)}
    decision = compare_temperatures(measured, step=0, current=1.0, guard=Guard())
    assert decision.chosen == highest
    decision = compare_temperatures(measured, step=0, current=1.0, guard=Guard(), choose="signal")
    assert decision.chosen == by_signal
    assert decision.readings[1].signal_difference == pytest.approx(signals[1] - signals[0])


# --- what the window's own rollouts settle ----------------------------------------------------------------------------


def window(means, shares, *, guard=GUARD, noise=0.0):
    measured = {
        t: Measured(
            {f"p{i}": mean + noise * place * (-1) ** i for i in range(200)},
            num_rollouts=160,
            effective_fraction=shares[place],
        )
        for place, (t, mean) in enumerate(means.items())
    }
    return read_temperatures(measured, current=1.0, guard=guard, min_effective_fraction=0.5)


def wanted_after(readings):
    return rollouts_wanted({}, current=1.0, candidates={1.1, 1.2}, guard=GUARD, window=readings, first=16, budget=64)


def test_a_window_that_settles_every_temperature_needs_no_rollout():
    readings = window({1.0: 0.5, 1.1: 0.499, 1.2: 0.4}, (1.0, 0.9, 0.8))
    assert wanted_after(readings) == {}
    decision = compare_temperatures({}, step=0, current=1.0, guard=GUARD, window=readings)
    assert (decision.chosen, decision.undecided) == (1.1, ())


def test_a_temperature_at_which_too_few_count_is_not_known_from_the_window_and_is_drawn():
    readings = window({1.0: 0.5, 1.1: 0.499, 1.2: 0.4}, (1.0, 0.9, 0.3))
    assert not readings[2].failed
    assert wanted_after(readings) == {1.0: 16, 1.2: 16}
    drawn = {t: Measured({f"v{i}": 0.3 for i in range(100)}, num_rollouts=160) for t in (1.0, 1.2)}
    decision = compare_temperatures(drawn, step=0, current=1.0, guard=GUARD, window=readings)
    assert decision.chosen == 1.2  # 1.1 by the window, 1.2 by what was drawn
    assert [(r.temperature, r.source) for r in decision.readings] == [
        *((t, "window") for t in (1.0, 1.1, 1.2)),
        *((t, "validation") for t in (1.0, 1.2)),
    ]


def test_above_a_temperature_that_failed_in_the_window_nothing_is_drawn():
    assert wanted_after(window({1.0: 0.5, 1.1: 0.4, 1.2: 0.4}, (1.0, 0.9, 0.1))) == {}


def test_an_unsure_window_settles_nothing():
    assert wanted_after(window({1.0: 0.5, 1.1: 0.5, 1.2: 0.5}, (1.0, 0.9, 0.9), noise=0.2)) == {
        1.0: 16,
        1.1: 16,
        1.2: 16,
    }


def test_against_the_best_the_window_settles_all_or_nothing():
    def asked(shares):
        guard = Guard(reference="best", max_standard_error=0.015)
        readings = window({0.8: 0.6, 1.0: 0.5, 1.2: 0.4}, shares, guard=guard)
        wanted = rollouts_wanted(
            {}, current=1.0, candidates={0.8, 1.2}, guard=guard, window=readings, first=16, budget=64
        )
        return wanted, compare_temperatures({}, step=0, current=1.0, guard=guard, window=readings).chosen

    assert asked((0.9, 1.0, 0.9)) == ({}, 0.8)
    assert asked((0.9, 1.0, 0.1))[0] == {0.8: 16, 1.0: 16, 1.2: 16}


def test_the_first_draw_must_fit_the_budget():
    with pytest.raises(ValueError, match="from 1 to max_rollouts_per_problem = 8"):
        Adaptive(1.0, grid=(1.2,), rollouts_per_problem=16, max_rollouts_per_problem=8)


def test_a_stage_with_a_temperature_of_its_own_is_sampled_at_it_and_the_window_begins_anew():
    schedule = Adaptive(1.0, grid=(1.0, 1.2, 1.4), plateau=PlateauRule(window_steps=4))
    for step in range(4):
        schedule.observe(step, 0.5)
    assert schedule.wants_decision(3)
    schedule.begin_stage(1.2)
    assert schedule.value(4) == 1.2
    assert not schedule.wants_decision(4)
    schedule.begin_stage()
    assert schedule.value(5) == 1.2
