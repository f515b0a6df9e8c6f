"""Distinct n-grams by hand, and the schedule that keeps the diversity of the start."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricula.comparison import Measured
from curricula.diversity import Diversity, distinct_fraction

GRID = (0.8, 1.0, 1.2, 1.4)


@pytest.mark.parametrize(
    ("completions", "expected"),
    [
        ([[1, 2, 3, 4, 5]], 1.0),
        ([[1, 1, 1, 1, 1, 1]], 1 / 3),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 0.5),
        ([[1, 2, 3, 4, 5], [0, 1, 2, 3, 4]], 3 / 4),  # 1234 2345 0123 1234
        ([[7], [7], [8]], 2 / 3),  # shorter than four tokens: one gram each
        ([[7], [], [8]], 1.0),
    ],
)
def test_the_share_of_distinct_four_grams_matches_counting_by_hand(completions, expected):
    assert distinct_fraction(completions) == pytest.approx(expected)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 5))
def test_the_share_is_that_of_a_plain_count(completions, n):
    grams = []
    for completion in completions:
        last = len(completion) - n
        grams += [tuple(completion[i : i + n]) for i in range(last + 1)] if last >= 0 else [tuple(completion)]
    assert distinct_fraction(completions, n=n) == len(set(grams)) / len(grams)


def test_a_group_without_a_token_has_no_diversity():
    with pytest.raises(ValueError, match="without one"):
        distinct_fraction([[], []])


class World:
    """Held-out problems whose diversity rises with the temperature, and falls as training goes on."""

    def __init__(self):
        self.lost = 0.0
        self.drawn = []

    def measured(self, temperature):
        of = {f"p{i}": 0.3 + 0.2 * temperature - self.lost + 0.001 * (i % 7) for i in range(64)}
        shift = round(1e4 * self.lost)
        noisy = {name: of[name] + 0.004 * ((31 * i + shift) % 11 - 5) for i, name in enumerate(of)}
        return Measured(scores=dict.fromkeys(of, 0.5), diversity=noisy, num_rollouts=16)


def look(schedule, world, step):
    assert schedule.wants_decision(step)
    measured = {}
    while wanted := schedule.wants_rollouts(measured):
        world.drawn.append(wanted)
        measured |= {t: world.measured(t) for t in wanted}
    return schedule.decide(step, measured)


def test_the_first_look_measures_what_is_to_be_kept_at_the_temperature_in_use_alone():
    schedule, world = Diversity(1.0, grid=GRID), World()
    decision = look(schedule, world, 1)
    assert (decision.chosen, world.drawn) == (1.0, [{1.0: 16}])
    assert "is what is to be kept" in decision.reason


def test_a_diversity_that_has_not_fallen_keeps_the_temperature_and_asks_for_no_other():
    schedule, world = Diversity(1.0, grid=GRID, cooldown_steps=10), World()
    look(schedule, world, 1)
    assert [schedule.wants_decision(step) for step in (2, 10, 11)] == [False, False, True]
    decision = look(schedule, world, 11)
    assert (decision.chosen, world.drawn[1:]) == (1.0, [{1.0: 16}])


def test_a_diversity_that_has_fallen_raises_to_the_lowest_temperature_that_has_it_again():
    schedule, world = Diversity(1.0, grid=GRID, cooldown_steps=10), World()
    look(schedule, world, 1)
    world.lost = 0.03  # 0.2 of temperature make up for 0.04
    decision = look(schedule, world, 11)
    assert (decision.chosen, schedule.value(12)) == (1.2, 1.2)
    assert world.drawn[1:] == [{1.0: 16}, {1.2: 16}]
    assert [reading.admissible for reading in decision.readings] == [False, True]
    assert decision.compared == "diversity"


def test_where_no_temperature_has_it_again_the_hottest_is_taken_and_then_nothing_is_asked():
    schedule, world = Diversity(1.0, grid=GRID, cooldown_steps=10), World()
    look(schedule, world, 1)
    world.lost = 0.5
    assert look(schedule, world, 11).chosen == 1.4
    assert not schedule.wants_decision(50)


def test_it_never_cools_but_for_a_stage_that_sets_its_temperature_and_a_stage_looks_at_once():
    schedule, world = Diversity(1.2, grid=GRID, cooldown_steps=10), World()
    look(schedule, world, 1)
    world.lost = -0.5
    assert look(schedule, world, 11).chosen == 1.2
    schedule.begin_stage()
    assert schedule.wants_decision(12)
    schedule.begin_stage(0.8)
    assert schedule.value(12) == 0.8


def test_noise_around_an_unchanged_diversity_hardly_ever_raises_the_temperature():
    generator = np.random.Generator(np.random.PCG64(0))
    raised = 0
    for _ in range(400):
        schedule = Diversity(1.0, grid=GRID, cooldown_steps=10)
        for step in (1, 11):
            noisy = {f"p{i}": float(value) for i, value in enumerate(generator.normal(0.5, 0.05, size=64))}
            of_t = Measured(scores=dict.fromkeys(noisy, 0.5), diversity=noisy, num_rollouts=16)
            decision = schedule.decide(step, {1.0: of_t, 1.2: of_t})
        raised += decision.changed
    assert raised / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_metrics_tell_the_diversity_of_practice_and_that_of_the_first_steps():
    schedule = Diversity(1.0, grid=GRID, cooldown_steps=2)
    for step, diversity in enumerate((0.8, 0.6, 0.4)):
        schedule.observe(step, 0.5, diversity=diversity)
    assert schedule.metrics() == {
        "temperature/decisions": 0.0,
        "temperature/changes": 0.0,
        "temperature/diversity": 0.4,
        "temperature/diversity_at_start": pytest.approx(0.7),
    }


def test_a_look_goes_on_after_a_trip_through_json():
    schedule, other, world = Diversity(1.0, grid=GRID), Diversity(1.0, grid=GRID), World()
    look(schedule, world, 1)
    other.load_state_dict(json.loads(json.dumps(schedule.state_dict(), allow_nan=False)))
    world.lost = 0.03
    assert look(other, world, 30) == look(schedule, world, 30)
    assert other.state_dict() == schedule.state_dict()


def test_one_rollout_a_problem_has_no_diversity():
    with pytest.raises(ValueError, match="take 2 or more"):
        Diversity(1.0, grid=GRID, rollouts_per_problem=1)
    with pytest.raises(ValueError, match="was not measured"):
        Diversity(1.0, grid=GRID).decide(1, {})
