"""Counterfactual temperatures against a toy policy whose scores are known exactly at every temperature.

The toy draws tokens one by one from fixed logits; a completion is right when it holds token 0 often enough. So its pass
rate at any temperature is a binomial tail, and the log-prob of a completion a sum over its tokens."""

import json
import math

import numpy as np
import pytest

from curricula.comparison import Guard, read_temperatures
from curricula.counterfactual import ReweightedWindow, reweight

GRID = (1.0, 1.2, 1.5)


class Toy:
    """One problem: `length` tokens from `logits`, right with at least `needed` tokens 0."""

    def __init__(self, *, generator, length=8, vocabulary=5):
        self.logits = generator.normal(size=vocabulary)
        self.length = length
        self.needed = int(generator.integers(1, max(2, length // 2)))

    def logprobs(self, temperature):
        scaled = self.logits / temperature
        return scaled - np.log(np.exp(scaled).sum())

    def pass_rate(self, temperature):
        p = math.exp(self.logprobs(temperature)[0])
        return sum(
            math.comb(self.length, k) * p**k * (1 - p) ** (self.length - k) for k in range(self.needed, self.length + 1)
        )

    def group(self, problem_id, number, *, generator, drawn_at=1.0, grid=GRID):
        tokens = generator.choice(len(self.logits), p=np.exp(self.logprobs(drawn_at)), size=(number, self.length))
        right = (tokens == 0).sum(axis=1) >= self.needed
        at = np.stack([self.logprobs(t)[tokens].sum(axis=1) for t in grid], axis=1)
        return reweight(problem_id, right.tolist(), at.tolist(), grid=grid, drawn_at=drawn_at)


def seeded(seed):
    return np.random.Generator(np.random.PCG64(seed))


def test_at_the_temperature_that_was_drawn_at_nothing_is_reweighted():
    group = Toy(generator=seeded(0)).group("a", 16, generator=seeded(1))
    right = round(16 * group.scores[0])
    assert group.scores[0] == pytest.approx(right / 16, abs=1e-7)
    assert group.signals[0] == pytest.approx(right * (16 - right) / (16 * 15), abs=1e-7)
    assert group.log_weights[0] == pytest.approx(math.log(16), abs=1e-7)


def test_two_rollouts_are_weighted_as_by_hand():
    """Weights 1 and 3: mean 3/4, each alone 0 or 1, so 2 · 3/4 - 1/2 = 1; signal 1 · 3 / (2 · 1 · 3)."""
    logprobs = [[-2.0, -2.0], [-2.0, -2.0 + math.log(3)]]
    group = reweight("a", [False, True], logprobs, grid=(1.0, 1.2), drawn_at=1.0)
    assert group.scores == pytest.approx((0.5, 1.0))
    assert group.signals == pytest.approx((0.5, 0.5))
    assert group.log_weights == pytest.approx((math.log(2), math.log(4)))
    assert group.log_squared_weights == pytest.approx((math.log(2), math.log(10)))
    window = ReweightedWindow(4)
    window.observe([group])
    assert window.measured()[1.2].effective_fraction == pytest.approx(16 / 20)


@pytest.mark.parametrize("seed", [1, 5])  # of which 0.77 and 0.56 count at 1.5
def test_the_mean_over_groups_is_the_pass_rate_at_the_other_temperature_and_so_is_the_signal(seed):
    toy, generator = Toy(generator=seeded(seed)), seeded(10 + seed)
    groups = [toy.group("a", 8, generator=generator) for _ in range(4000)]
    for place, temperature in enumerate(GRID):
        scores = np.array([group.scores[place] for group in groups])
        error = scores.std() / math.sqrt(len(groups))
        rate = toy.pass_rate(temperature)
        assert abs(scores.mean() - rate) < 3 * error + 0.05 * abs(rate - toy.pass_rate(1.0))
        signals = np.array([group.signals[place] for group in groups])
        assert signals.mean() == pytest.approx(rate * (1 - rate), abs=0.005)


@pytest.mark.slow
def test_the_jackknife_takes_most_of_the_bias_of_a_self_normalised_mean():
    """Without it a drop looks smaller than it is: the mean leans towards what was drawn."""
    toy, generator = Toy(generator=seeded(5)), seeded(5)
    shift = toy.pass_rate(1.5) - toy.pass_rate(1.0)
    plain, corrected = [], []
    for _ in range(10_000):
        tokens = generator.choice(len(toy.logits), p=np.exp(toy.logprobs(1.0)), size=(8, toy.length))
        right = (tokens == 0).sum(axis=1) >= toy.needed
        at = np.stack([toy.logprobs(t)[tokens].sum(axis=1) for t in (1.0, 1.5)], axis=1)
        weights = np.exp(at[:, 1] - at[:, 0])
        plain.append(weights @ right / weights.sum())
        corrected.append(reweight("a", right.tolist(), at.tolist(), grid=(1.0, 1.5), drawn_at=1.0).scores[1])
    bias = {
        name: (toy.pass_rate(1.5) - np.mean(of)) / shift for name, of in (("plain", plain), ("jackknife", corrected))
    }
    assert bias["plain"] > 0.1
    assert abs(bias["jackknife"]) < bias["plain"] / 3


@pytest.mark.slow
def test_bounds_of_the_windows_differences_cover_the_truth_at_their_rate():
    generator = seeded(7)
    truth = np.mean([toy.pass_rate(1.2) - toy.pass_rate(1.0) for toy in toys(20_000, generator)])
    above = below = 0
    for _ in range(200):
        window = ReweightedWindow(4)
        window.observe([toy.group(f"p{n}", 8, generator=generator) for n, toy in enumerate(toys(150, generator))])
        reading = read_temperatures(window.measured(), current=1.0, guard=Guard())[1]
        above += truth > reading.difference_upper
        below += truth < reading.difference_lower
    for missed in (above, below):  # each bound holds with 90 %
        assert missed / 200 <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 200)
        assert missed > 0


def toys(number, generator):
    return [Toy(generator=generator) for _ in range(number)]


def window_of(length, *, problems=100, seed=0):
    generator = seeded(seed)
    window = ReweightedWindow(40)
    window.observe(
        [Toy(generator=generator, length=length).group(f"p{n}", 8, generator=generator) for n in range(problems)]
    )
    return window


def test_the_effective_share_falls_with_length_until_nothing_is_known():
    shares = [window_of(length).measured()[1.2].effective_fraction for length in (4, 40, 400, 4000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9
    assert shares[-1] < 0.05
    readings = read_temperatures(
        window_of(4000).measured(), current=1.0, guard=Guard(max_standard_error=9.0), min_effective_fraction=0.5
    )
    assert [(r.sure, r.failed) for r in readings] == [(True, False), (False, False), (False, False)]


def test_weights_beyond_what_a_float_holds_are_no_error():
    group = reweight("a", [True, False], [[-5000.0, -2000.0], [-5000.0, -9000.0]], grid=(1.0, 0.5), drawn_at=1.0)
    assert all(map(math.isfinite, (*group.scores, *group.signals, *group.log_weights)))
    assert group.log_weights[1] == pytest.approx(3000.0)


def test_groups_of_one_problem_are_averaged_and_old_steps_leave():
    window = ReweightedWindow(2)
    certain = {
        right: reweight("a", [right] * 2, [[-1.0], [-1.0]], grid=(1.0,), drawn_at=1.0) for right in (True, False)
    }
    for right in (False, True, True, False):
        window.observe([certain[right]])
    assert window.measured()[1.0].scores == {"a": 0.5}
    window.observe([])
    window.observe([certain[False]])
    assert window.measured()[1.0].scores == {"a": 0.0}
    window.clear()
    assert window.measured() == {}


def test_a_window_through_json_is_the_same_and_small():
    window, other = ReweightedWindow(40), ReweightedWindow(40)
    generator = seeded(0)
    for step in range(40):
        toy = Toy(generator=generator)
        window.observe([toy.group(f"{step} {n}", 16, generator=generator) for n in range(64)])
    text = json.dumps(window.state_dict(), allow_nan=False)
    other.load_state_dict(json.loads(text))
    assert other.measured() == window.measured()
    assert len(text) < 400_000


def test_what_cannot_be_reweighted_is_refused():
    with pytest.raises(ValueError, match="two rollouts"):
        reweight("a", [True], [[-1.0]], grid=(1.0,), drawn_at=1.0)
    with pytest.raises(ValueError, match="finite log-prob"):
        reweight("a", [True, True], [[-1.0], [-math.inf]], grid=(1.0,), drawn_at=1.0)
    with pytest.raises(ValueError, match="lacks"):
        reweight("a", [True, True], [[-1.0], [-1.0]], grid=(1.2,), drawn_at=1.0)
    at = [reweight("a", [True, True], [[-1.0], [-1.0]], grid=(t,), drawn_at=t) for t in (1.0, 1.2)]
    with pytest.raises(ValueError, match="one grid"):
        ReweightedWindow(4).observe(at)


def test_with_another_grid_the_window_begins_anew():
    window = window_of(4)
    window.observe([reweight("a", [True, True], [[-1.0], [-1.0]], grid=(1.3,), drawn_at=1.3)])
    assert window.measured().keys() == {1.3}
    assert window.effective_fractions() == {1.3: pytest.approx(1.0)}
