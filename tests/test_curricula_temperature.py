"""Temperature: planned schedules by hand, the slope test against simulated noise, the guard against known scores."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curricula.comparison import Guard, Measured, compare_temperatures
from curricula.diversity import Diversity
from curricula.plateau import PlateauRule, detect_plateau
from curricula.temperature import Adaptive, Constant, Cosine, Linear, Steps

RULE = PlateauRule(window_steps=8, improvement_fraction=0.1)
MEMBERS = {
    "constant": lambda: Constant(1.0),
    "linear": lambda: Linear(1.0, end=1.5, steps=10),
    "cosine": lambda: Cosine(1.5, end=1.0, steps=10),
    "steps": lambda: Steps(1.0, changes={5: 1.2, 15: 1.4}),
    "adaptive": lambda: Adaptive(1.0, grid=(0.8, 1.0, 1.2, 1.4), plateau=RULE, cooldown_steps=3),
    "diversity": lambda: Diversity(1.0, grid=(0.8, 1.0, 1.2, 1.4), cooldown_steps=3),
}
members = pytest.mark.parametrize("build", MEMBERS.values(), ids=MEMBERS.keys())


def scores(means, *, problems=400, noise=0.0, seed=0):
    """Problems of spread difficulty, at each temperature the same up to a shift: paired differences are sharp."""
    generator = np.random.Generator(np.random.PCG64(seed))
    base = generator.uniform(-0.3, 0.3, size=problems)
    base -= base.mean()
    return {
        t: measured({f"p{i}": float(mean + base[i] + noise * generator.standard_normal()) for i in range(problems)})
        for t, mean in means.items()
    }


def measured(of_problems):
    """Scores at one temperature, known as from rollouts without number, and for a diversity the same numbers."""
    return Measured(scores=of_problems, diversity=of_problems, num_rollouts=10**9)


def decided(schedule, step, drawn):
    """Let the schedule have what it asks for, out of what `drawn` has at every temperature."""
    given = {}
    while asked := schedule.wants_rollouts(given):
        if not asked.keys() - given.keys():
            break  # more of the same would change nothing here
        given |= {t: drawn[t] for t in asked}
    return schedule.decide(step, given)


def play(schedule, *, first_step, steps):
    seen = []
    for step in range(first_step, first_step + steps):
        seen.append(schedule.value(step))
        schedule.observe(step, 0.5 + 0.001 * np.random.Generator(np.random.PCG64(step)).standard_normal())
        if step % 13 == 12:
            schedule.begin_stage()
        if schedule.wants_decision(step):
            drawn = scores({t: 0.6 - 0.001 * t - 0.01 * (step > 20) for t in (0.8, 1.0, 1.2, 1.4)}, noise=1e-4)
            seen.append(asdict(decided(schedule, step, drawn)))
    return seen


@members
@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 40))
def test_a_state_through_json_goes_on_exactly_as_if_nothing_had_happened(build, cut):
    whole, first, second = build(), build(), build()
    expected = play(whole, first_step=0, steps=40)
    seen = play(first, first_step=0, steps=cut)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    seen += play(second, first_step=cut, steps=40 - cut)
    assert seen == expected
    assert second.metrics() == whole.metrics()


@members
def test_a_state_of_another_kind_is_refused(build):
    with pytest.raises(ValueError, match="configure it so"):
        build().load_state_dict({"kind": "nonsense"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 1.25, 1.5, 1.5]),
        ("cosine", [1.5, 1.25, 1.0, 1.0]),
        ("steps", [1.0, 1.2, 1.2, 1.4]),
    ],
)
def test_planned_schedules_match_values_by_hand(name, expected):
    schedule = MEMBERS[name]()
    assert [schedule.value(step) for step in (0, 5, 10, 20)] == pytest.approx(expected)
    assert not schedule.wants_decision(5)
    assert (schedule.wants_rollouts({}), schedule.reweighted_at()) == ({}, ())
    with pytest.raises(ValueError, match="never asks"):
        schedule.decide(5, {})


@pytest.mark.parametrize("name", ["linear", "cosine", "steps"])
def test_a_schedule_that_plans_every_step_refuses_a_stages_temperature(name):
    schedule = MEMBERS[name]()
    schedule.begin_stage()
    with pytest.raises(ValueError, match="plans every step"):
        schedule.begin_stage(1.3)


def test_a_constant_temperature_is_a_stages_own_for_that_stage_alone():
    schedule, other = Constant(1.0), Constant(1.0)
    schedule.begin_stage(1.3)
    other.load_state_dict(schedule.state_dict())
    assert (schedule.value(5), other.value(5)) == (1.3, 1.3)
    schedule.begin_stage()
    assert schedule.value(6) == 1.0


def test_the_slope_test_matches_least_squares_by_hand():
    plateau = detect_plateau([0.0, 1.0, 1.0, 2.0], rule=PlateauRule(window_steps=4, improvement_fraction=0.0))
    assert plateau is not None
    assert plateau.slope_per_step == pytest.approx(0.6)
    assert plateau.standard_error == pytest.approx((0.2 / 2 / 5) ** 0.5)  # residuals -.1, .3, -.3, .1
    assert plateau.rise == pytest.approx(2.4)
    assert not plateau.flat


@pytest.mark.slow
def test_a_curve_that_rises_by_more_is_called_flat_at_most_as_often_as_stated():
    rule = PlateauRule(window_steps=40, confidence=0.9, improvement_fraction=0.1)
    generator = np.random.Generator(np.random.PCG64(1))
    called = {"rising by the limit": 0, "flat": 0, "drifting noise": 0, "falling by the limit": 0, "steady": 0}
    trials = 1500
    for _ in range(trials):
        noise = 0.02 * generator.standard_normal(40)
        line = 0.5 + 0.05 * (np.arange(40) - 19.5) / 40
        called["rising by the limit"] += _flat(line + noise, rule)
        called["flat"] += _flat(0.5 + noise, rule)
        called["falling by the limit"] += _plateau(1.0 - line + noise, rule).steady
        called["steady"] += _plateau(0.5 + noise, rule).steady
        drift = np.zeros(40)
        for place in range(1, 40):
            drift[place] = 0.5 * drift[place - 1] + noise[place]
        called["drifting noise"] += _flat(line + drift, rule)
    assert called["rising by the limit"] / trials <= 0.1 + 2 * (0.1 * 0.9 / trials) ** 0.5
    assert called["drifting noise"] / trials <= 0.1 + 0.06  # the estimated autocorrelation is short of the true one
    assert called["flat"] / trials >= 0.9
    assert called["falling by the limit"] / trials <= 0.1 + 2 * (0.1 * 0.9 / trials) ** 0.5
    assert called["steady"] / trials >= 0.9


def test_a_falling_curve_is_flat_for_a_stage_and_not_steady_for_the_temperature():
    falling = [0.6] * 15 + [0.1] * 5
    plateau = detect_plateau(falling, rule=PlateauRule(window_steps=20))
    assert plateau is not None
    assert (plateau.flat, plateau.steady) == (True, False)
    assert plateau.rise_lower < plateau.rise < -plateau.allowed_rise
    schedule = Adaptive(1.0, grid=(1.0, 1.2), plateau=PlateauRule(window_steps=20))
    for step, reward in enumerate(falling):
        schedule.observe(step, reward)
        assert not schedule.wants_decision(step)


@pytest.mark.parametrize(("window_steps", "limit"), [(20, 0.097), (40, 0.140)])
def test_a_curve_of_more_scatter_than_the_docstring_says_is_never_steady(window_steps, limit):
    rule = PlateauRule(window_steps=window_steps)
    noise = np.random.Generator(np.random.PCG64(3)).standard_normal(window_steps)
    places = np.arange(window_steps) - (window_steps - 1) / 2
    noise -= noise.mean()
    noise -= places * (noise @ places) / (places @ places)  # a slope of exactly zero: the best case
    assert noise[1:] @ noise[:-1] < 0  # or the standard error would be widened
    noise /= np.sqrt(noise @ noise / (window_steps - 2))
    assert _plateau(1 + 0.95 * limit * noise, rule).steady
    assert not _plateau(1 + 1.05 * limit * noise, rule).steady


def test_the_window_of_the_slope_test_does_not_span_a_stage():
    schedule = MEMBERS["adaptive"]()
    for step in range(7):
        schedule.observe(step, 0.5)
    schedule.begin_stage()
    for step in range(7, 14):
        schedule.observe(step, 0.1)
        assert not schedule.wants_decision(step)
        assert schedule.plateau is None
    schedule.observe(14, 0.1)
    assert schedule.wants_decision(14)


def test_only_temperatures_that_can_be_chosen_are_asked_for():
    def steady(**fields):
        schedule = Adaptive(plateau=RULE, **fields)
        for step in range(8):
            schedule.observe(step, 0.5)
        assert schedule.wants_decision(7) == bool(schedule._candidates())
        return tuple(schedule.wants_rollouts({}))

    grid = (0.8, 1.0, 1.2, 1.4)
    assert steady(start=1.1, grid=grid) == (1.1, 1.2, 1.4)
    assert steady(start=1.4, grid=grid) == ()
    assert steady(start=1.4, grid=grid, guard=Guard(reference="best")) == (0.8, 1.0, 1.2, 1.4)
    assert steady(start=1.4, grid=(1.4,), guard=Guard(reference="best")) == ()


def test_a_window_that_is_not_full_says_nothing_and_zeros_are_flat():
    assert detect_plateau([0.0] * 39, rule=PlateauRule()) is None
    plateau = detect_plateau([0.0] * 40, rule=PlateauRule(block_steps=4))
    assert plateau is not None
    assert plateau.flat
    with pytest.raises(ValueError, match="at least 4 blocks"):
        PlateauRule(window_steps=40, block_steps=20)


def test_the_highest_temperature_within_one_percent_of_the_one_in_use_is_taken():
    readings = scores({0.8: 0.60, 1.0: 0.50, 1.2: 0.4951, 1.4: 0.4949}, noise=1e-4)
    decision = compare_temperatures(readings, step=3, current=1.0, guard=Guard())
    assert (decision.chosen, decision.reference) == (1.2, 1.0)
    assert decision.readings[2].drop_allowed == pytest.approx(0.005, rel=1e-3)
    assert [reading.admissible for reading in decision.readings] == [True, True, True, False]
    assert decision.reason.startswith("raised to 1.2")
    assert json.loads(json.dumps(asdict(decision)))["readings"][2]["difference"] == pytest.approx(-0.0049, abs=5e-5)


def test_the_literal_reading_guards_against_the_best_and_cools_down():
    readings = scores({0.8: 0.60, 1.0: 0.50, 1.2: 0.4951}, noise=1e-4)
    decision = compare_temperatures(readings, step=3, current=1.0, guard=Guard(reference="best"))
    assert (decision.chosen, decision.reference) == (0.8, 0.8)


def test_a_temperature_above_one_that_is_not_admitted_is_not_taken():
    readings = scores({1.0: 0.50, 1.2: 0.45, 1.4: 0.50}, noise=1e-4)
    decision = compare_temperatures(readings, step=0, current=1.0, guard=Guard())
    assert [reading.admissible for reading in decision.readings] == [True, False, True]
    assert decision.chosen == 1.0


@pytest.mark.parametrize("num_problems", [0, 1])
def test_fewer_than_two_problems_decide_nothing(num_problems):
    of_problems = measured({f"p{index}": 1.0 for index in range(num_problems)})
    decision = compare_temperatures({1.0: of_problems, 1.2: of_problems}, step=3, current=1.0, guard=Guard())
    assert (decision.chosen, decision.readings) == (1.0, ())
    assert f"{num_problems} problems" in decision.reason
    assert "undecided" in decision.reason
    json.dumps(asdict(decision), allow_nan=False)


def test_an_undecided_difference_keeps_the_temperature():
    readings = scores({1.0: 0.5, 1.2: 0.5}, problems=100, noise=0.2)
    decision = compare_temperatures(readings, step=0, current=1.0, guard=Guard())
    assert decision.chosen == 1.0
    assert decision.undecided == (1.2,)
    assert "undecided: 1.2" in decision.reason
    hot = scores({0.8: 0.5, 1.0: 0.45}, problems=100, noise=0.2)
    assert compare_temperatures(hot, step=0, current=1.0, guard=Guard(reference="best")).chosen == 1.0


def test_the_guard_may_be_absolute_and_differences_are_paired():
    readings = scores({1.0: 0.1, 1.2: 0.095}, noise=1e-4)
    assert compare_temperatures(readings, step=0, current=1.0, guard=Guard()).chosen == 1.0
    assert compare_temperatures(readings, step=0, current=1.0, guard=Guard(unit="absolute")).chosen == 1.2
    assert compare_temperatures(readings, step=0, current=1.0, guard=Guard()).readings[1].standard_error < 1e-5


def test_a_score_of_zero_keeps_the_temperature_and_says_why():
    readings = dict.fromkeys((1.0, 1.4), measured({"a": 0.0, "b": 0.0}))
    decision = compare_temperatures(readings, step=0, current=1.0, guard=Guard())
    assert decision.chosen == 1.0
    assert "unit: absolute" in decision.reason


def test_adaptive_asks_on_a_plateau_only_and_cools_down_after_a_decision():
    schedule = MEMBERS["adaptive"]()
    for step in range(8):
        schedule.observe(step, 0.1 * step)
        assert not schedule.wants_decision(step)
    for step in range(8, 16):
        schedule.observe(step, 0.5)
    assert schedule.wants_decision(15)
    assert tuple(schedule.wants_rollouts({})) == (1.0, 1.2, 1.4)
    kept = schedule.decide(15, scores({1.0: 0.5, 1.2: 0.3, 1.4: 0.1}))
    assert not kept.changed
    assert [schedule.wants_decision(step) for step in (15, 16, 17, 18)] == [False, False, False, True]
    raised = schedule.decide(18, scores({1.0: 0.5, 1.2: 0.5, 1.4: 0.1}))
    assert (raised.chosen, schedule.value(19)) == (1.2, 1.2)
    assert not schedule.wants_decision(30)  # the window begins anew at the new temperature


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="lack the temperature in use"):
        compare_temperatures({1.2: measured({"a": 1.0})}, step=0, current=1.0, guard=Guard())
    unlike = {1.0: measured({"a": 1.0, "b": 0.0}), 1.2: measured({"a": 1.0})}
    with pytest.raises(ValueError, match="not the same ones"):
        compare_temperatures(unlike, step=0, current=1.0, guard=Guard())
    with pytest.raises(ValueError, match="not finite"):
        compare_temperatures({1.0: measured({"a": float("nan"), "b": 0.0})}, step=0, current=1.0, guard=Guard())
    with pytest.raises(ValueError, match="nothing was scored"):
        MEMBERS["adaptive"]().observe(0, float("nan"))
    with pytest.raises(ValueError, match="must be positive"):
        Constant(0.0)
    with pytest.raises(ValueError, match="confidence = 1"):
        Guard(confidence=1.0)


def _plateau(values, rule):
    plateau = detect_plateau(values.tolist(), rule=rule)
    assert plateau is not None
    return plateau


def _flat(values, rule):
    return _plateau(values, rule).flat
