"""The simulation of profiles: it stops as the class does, and what it reports is what can be summed exactly."""

import numpy as np
import pytest

from curricula.label_errors import LabelRules, expected_confusion, right_tiers
from curricula.profiling import SequentialProfile, expected_rollouts, wave_boundaries
from curricula.store import tier_table
from curricula.types import TIERS
from scripts.simulate_profiles import (
    MIXTURES,
    RULES,
    main,
    mean_stopped_share,
    miss_probability,
    pass_rates,
    rows_of,
    simulate,
    stop,
)


def generator(seed):
    return np.random.Generator(np.random.PCG64(seed))


def profile_of(name, *, num_problems=20_000):
    draws = generator(7)
    rates = pass_rates(MIXTURES[name][1], num_problems=num_problems, generator=draws)
    return simulate(rates, rules=RULES, generator=draws)


@pytest.mark.parametrize("wave_growth", [2, 4])
@pytest.mark.parametrize("rules", [RULES, LabelRules(4, 8, 100, 0.75)])
def test_the_stopping_rule_on_arrays_is_that_of_the_class_rollout_for_rollout(rules, wave_growth):
    draws = generator(1)
    rates = np.concatenate([pass_rates(MIXTURES[n][1], num_problems=400, generator=draws) for n in MIXTURES])
    right = draws.random((rates.size, rules.max_rollouts)) < rates[:, None]
    names = [f"{index:05d}" for index in range(rates.size)]
    profile = SequentialProfile(
        names, first_rollouts=rules.first_rollouts, max_rollouts=rules.max_rollouts, wave_growth=wave_growth
    )
    while draws_wanted := profile.next_wave(100_000):
        for draw in draws_wanted:
            attempts = slice(draw.first_attempt, draw.first_attempt + draw.num_rollouts)
            correct = right[int(draw.problem_id), attempts].tolist()
            profile.observe(draw.problem_id, draw.first_attempt, correct, [1] * len(correct))
    table = tier_table(
        profile.attempts,
        first_rollouts=rules.first_rollouts,
        relabel_rollouts=rules.relabel_rollouts,
        trivial_rate=rules.trivial_rate,
    )
    stopped = stop(right, rules=rules)
    assert [numbers(row) for row in rows_of(stopped, rules=rules)] == [numbers(row) for row in table]
    boundaries = wave_boundaries(rules.first_rollouts, max_rollouts=rules.max_rollouts, wave_growth=wave_growth)
    drawn = [profile.attempts[name].num_recorded for name in names]
    assert stopped.num_drawn(boundaries).tolist() == drawn


def numbers(row):
    return (row.num_rollouts, row.num_correct, row.stopping_rule, row.tier, row.estimate, row.low, row.high)


@pytest.mark.parametrize("rate", [0.001, 0.0059, 0.05, 0.6])
def test_the_summed_chance_of_a_miss_is_the_share_of_simulated_ones(rate):
    profile = simulate(np.full(20_000, rate), rules=RULES, generator=generator(2))
    missed = 1.0 - profile.covered.mean()
    (exact,) = miss_probability(np.array([rate]), rules=RULES)
    assert missed == pytest.approx(exact, abs=4.5 * (exact * (1 - exact) / 20_000) ** 0.5)


@pytest.mark.parametrize("name", MIXTURES)
def test_intervals_cover_at_their_nominal_rate_over_each_mixture(name):
    covered = profile_of(name).covered
    assert covered.mean() >= 0.95


@pytest.mark.parametrize("name", MIXTURES)
def test_labels_are_confused_as_computed(name):
    profile = profile_of(name)
    right = right_tiers(profile.rates, rules=RULES)
    for tier, computed in expected_confusion(profile.rates.tolist(), rules=RULES).items():
        labels = profile.labels[right == TIERS.index(tier)]
        for code, label in enumerate(TIERS):
            p = computed[label]
            allowed = 4.5 * (p * (1 - p) / labels.size) ** 0.5 + 2 / labels.size
            assert (labels == code).mean() == pytest.approx(p, abs=allowed), (tier, label)


def test_a_share_after_stopping_is_too_high_and_the_first_rollouts_are_not():
    assert mean_stopped_share(0.02, rules=RULES) / 0.02 == pytest.approx(2.4, abs=0.05)
    profile = simulate(np.full(50_000, 0.02), rules=RULES, generator=generator(3))
    num_rollouts, num_correct = profile.stopped.evidence(RULES)
    shares = num_correct / num_rollouts
    assert shares.mean() == pytest.approx(mean_stopped_share(0.02, rules=RULES), abs=4 * shares.std() / 50_000**0.5)
    estimates = np.array([row.estimate for row in profile.rows])
    assert estimates.mean() == pytest.approx(0.02, abs=4 * estimates.std() / 50_000**0.5)


@pytest.mark.parametrize("wave_growth", [2, 4])
def test_where_80_percent_are_solvable_a_profile_takes_at_least_4_times_fewer_rollouts(wave_growth):
    boundaries = wave_boundaries(8, max_rollouts=512, wave_growth=wave_growth)
    profile = profile_of("80 % solvable")
    assert (profile.rates > 0.02).mean() == pytest.approx(0.8, abs=0.02)
    drawn = profile.stopped.num_drawn(boundaries)
    assert drawn.mean() <= 512 / 4
    expected = np.mean([expected_rollouts(float(rate), boundaries=boundaries) for rate in profile.rates])
    assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / drawn.size**0.5)


def test_the_command_prints_a_table_for_each_question(capsys):
    assert main(["--problems", "1000", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n### ") == 11
    for name in MIXTURES:
        assert printed.count(f"\n| {name} | ") >= 8
