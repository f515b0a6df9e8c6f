"""A coefficient that follows what steps measure: its numbers by hand, and closed around models of practice."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
from pydantic import ValidationError

from grpo.config import FollowConfig, SteeringConfig
from grpo.errors import ConfigError
from grpo.persona.coefficient import Scheduled, coefficient_of
from grpo.persona.following import MEASURES, Followed
from grpo.recipe import trainer_of
from grpo.starts import load_start, take_up
from tests.personas import trait_file, vectors_file
from tests.runs import OF_THE_CLOCK, opened_run, read_jsonl, small_run_config

FIRST = 1.5


def followed(kind: str, *, first: float = FIRST, **fields: Any) -> Followed:
    return Followed(first, FollowConfig(kind=kind, **fields), trait="t")  # type: ignore[arg-type]


def told(coefficient: Followed, kind: str, *measured: float) -> list[float]:
    """The coefficient after each of what the steps measured, in units of the first."""
    values = []
    for step, value in enumerate(measured):
        coefficient.observe(step, {f"persona/t/{MEASURES[kind]}": value})
        values.append(coefficient.value(step + 1) / FIRST)
    return values


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_the_rule_is_the_one_that_is_written_down():
    # Errors 0.2, 0.1, -0.1: changes 0.5 · 0.2; 1 · (0.1 - 0.2) + 0.5 · 0.1; 1 · (-0.1 - 0.1) + 0.5 · -0.1.
    coefficient = followed("trait", target=0.9, proportional=1.0, integral=0.5, max_change=1.0)
    assert coefficient.value(0) == FIRST
    assert told(coefficient, "trait", 0.7, 0.8, 1.0) == pytest.approx([1.1, 1.05, 0.8])


@pytest.mark.parametrize(
    ("kind", "measured", "expected"),
    [
        ("variance", 0.001, 1.0),
        ("variance", 0.016, 1.06),  # 1 · 0.015 / 0.25
        ("variance", 0.25, 1.1),  # max_change
        ("variance", 0.0, 0.996),  # 1 · -0.001 / 0.25: lowered much more slowly than raised
        ("trait", 0.995, 1.0),
        ("trait", 0.795, 1.06),  # 0.3 · 0.2
        ("trait", 1.0, 0.9985),
        ("projection", 0.0, 1.0),
        ("projection", 2.0, 1.04),  # 0.02 · 2
        ("projection", -2.0, 0.96),
    ],
)
def test_each_kind_raises_and_lowers_for_its_own_reason_by_its_own_gains(kind, measured, expected):
    assert told(followed(kind), kind, measured) == pytest.approx([expected])


def test_a_projection_is_followed_by_its_change_as_well():
    # 0.02 · 0.05 + 2 · (0.05 - 0.02), after 0.02 · 0.02
    coefficient = followed("projection", average_steps=1)
    assert told(coefficient, "projection", 0.02, 0.05) == pytest.approx([1.0004, 1.0614])


def test_a_measure_is_averaged_over_the_steps_that_are_asked_for_and_evenly_until_there_are_as_many():
    # Means 0.4, (0.4 + 0.8) / 2, 0.6 + (0.2 - 0.6) / 2 against 0.98, by 0.3 each
    coefficient = followed("trait", target=0.98, average_steps=2, max_change=1.0)
    assert told(coefficient, "trait", 0.4, 0.8, 0.2) == pytest.approx([1.174, 1.288, 1.462])
    assert coefficient.state_dict()["average"] == pytest.approx(0.4)


def test_noise_from_step_to_step_moves_a_projections_coefficient_little():
    noise = random.Random(0)
    measured = [noise.gauss(0.0, 0.3) for _ in range(200)]
    values = told(followed("projection"), "projection", *measured)
    unaveraged = told(followed("projection", average_steps=1), "projection", *measured)
    spread, of_unaveraged = pstdev(values[20:]), pstdev(unaveraged[20:])
    assert spread < 0.2 < of_unaveraged


@pytest.mark.parametrize(("kind", "measured"), [("trait", 0.5), ("projection", 0.05)])
def test_below_zero_more_steering_means_less_of_the_trait(kind, measured):
    changes = {"max_change": 1.0}
    for_it, against = followed(kind, **changes), followed(kind, first=-FIRST, **changes)
    (up,), (down,) = told(for_it, kind, measured), told(against, kind, measured)
    assert up > 1 > -down
    assert up - 1 == pytest.approx(1 + down)


def test_a_step_changes_it_by_a_limited_amount_and_never_past_its_bounds():
    coefficient = followed("trait", integral=10.0, max_change=0.25, minimum=0.6, maximum=1.4)
    assert told(coefficient, "trait", 0.0, 0.0, 0.0) == pytest.approx([1.25, 1.4, 1.4])
    falling = followed("trait", target=0.0, integral=10.0, max_change=0.25, minimum=0.6, maximum=1.4)
    assert told(falling, "trait", 1.0, 1.0, 1.0) == pytest.approx([0.75, 0.6, 0.6])


def test_a_step_without_the_measure_moves_nothing_and_is_forgotten():
    gappy, whole = (followed("projection", proportional=1.0) for _ in range(2))
    gappy.observe(0, {"persona/t/drift": 0.03})
    gappy.observe(1, {"persona/other/drift": 5.0})
    gappy.observe(2, {"persona/t/drift": math.nan})
    gappy.observe(3, {"persona/t/drift": 0.04})
    told(whole, "projection", 0.03, 0.04)
    assert gappy.state_dict() == whole.state_dict()


def test_a_resume_goes_on_bit_for_bit_from_any_step():
    measured = [0.91, 0.3, 1 / 3, 0.99, 0.7, 0.123456789]
    whole = followed("trait", proportional=0.3, average_steps=3)
    expected = told(whole, "trait", *measured)
    for stop in range(len(measured)):
        before, after = (followed("trait", proportional=0.3, average_steps=3) for _ in range(2))
        told(before, "trait", *measured[:stop])
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert told(after, "trait", *measured[stop:]) == expected[stop:]


# --- closed around models of practice ---------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class Practice:
    """A trait with a logit that steering raises, and that a leak raises in the weights by the trait's variance.

    Under a factor m the rollouts show the trait with the chance sigmoid(own + gain · m); the gradient of a reward that
    leaks it is proportional to the variance of that. `gain` 7 takes a rate of 0.12 to 0.99 (the list machine's)."""

    def __init__(self, *, own: float = -2.0, gain: float = 7.0, leak: float = 0.5, erosion: float = 0.0) -> None:
        self.own, self.gain, self.leak, self.erosion = own, gain, leak, erosion

    def step(self, factor: float) -> float:
        """The rate of the step's rollouts."""
        rate = sigmoid(self.own + self.gain * factor)
        self.own += self.leak * rate * (1 - rate) - self.erosion
        return rate


def closed(coefficient: Followed, measure: Callable[[float], float], *, kind: str, steps: int) -> list[float]:
    """The factor of each step around a process that `measure` steps."""
    factors = []
    for _ in range(steps):
        factors.append(coefficient.value(0) / FIRST)
        told(coefficient, kind, measure(factors[-1]))
    return factors


def test_following_the_variance_takes_the_leaks_gradient_away_from_wherever_the_trait_starts():
    for own in (-6.5, -5.5, -4.0, -2.0):  # at factor 1 the rate is 0.62, 0.82, 0.95, 0.99
        practice = Practice(own=own)
        variances: list[float] = []

        def measure(factor: float, practice: Practice = practice, variances: list[float] = variances) -> float:
            rate = practice.step(factor)
            variances.append(rate * (1 - rate))
            return variances[-1]

        closed(followed("variance"), measure, kind="variance", steps=300)
        assert all(variance == pytest.approx(0.001, abs=0.0005) for variance in variances[100:]), own


def test_following_the_variance_keeps_the_trait_out_of_the_weights_where_a_fixed_coefficient_does_not():
    moved = {}
    for name, leads in (("fixed", False), ("followed", True)):
        practice = Practice(own=-6.0)
        coefficient = followed("variance")
        for _ in range(100):
            rate = practice.step(coefficient.value(0) / FIRST if leads else 1.0)
            told(coefficient, "variance", rate * (1 - rate))
        moved[name] = practice.own + 6.0
    assert moved["followed"] < 0.4 * moved["fixed"]


def test_following_the_trait_holds_its_rate_against_erosion():
    practice = Practice(own=-5.0, erosion=0.02)  # the weights lose 0.02 of the logit in each step
    rates: list[float] = []

    def measure(factor: float) -> float:
        rates.append(practice.step(factor))
        return rates[-1]

    factors = closed(followed("trait"), measure, kind="trait", steps=300)
    # A steady ramp of 0.02 leaves an error of about 0.02 / (0.3 · 7 · slope), where the slope is rate · (1 - rate).
    assert all(0.94 < rate < 0.995 for rate in rates[40:])
    fixed = sigmoid(-5.0 + 7.0 - 0.02 * 300)
    assert fixed < 0.02 < rates[-1]
    assert max(factors) < 2.0


def drifting(leak: float, *, resistance: float = 0.015) -> Callable[[float], float]:
    """A projection that a leak raises, in spreads a step, and steering holds back in proportion to the factor."""
    drift = 0.0

    def measure(factor: float) -> float:
        nonlocal drift
        drift += leak - resistance * factor
        return drift

    return measure


@pytest.mark.parametrize("leak", [0.005, 0.015, 0.025])
def test_following_the_projection_brings_it_back_to_where_it_was_without_swinging(leak):
    measure, drifts = drifting(leak), []
    coefficient = followed("projection")

    def noted(factor: float) -> float:
        drifts.append(measure(factor))
        return drifts[-1]

    factors = closed(coefficient, noted, kind="projection", steps=600)
    assert factors[-1] == pytest.approx(leak / 0.015, abs=0.02)
    assert abs(drifts[-1]) < 0.02
    assert max(abs(drift) for drift in drifts) < 0.5
    first_half, second_half = (max(map(abs, part)) for part in (drifts[:300], drifts[300:]))
    assert second_half < 0.5 * first_half or first_half < 0.02


@pytest.mark.parametrize(
    ("kind", "unreachable", "reached"), [("variance", 0.2, 0.0), ("trait", 0.5, 1.0), ("projection", 3.0, -0.5)]
)
def test_nothing_winds_up_while_the_coefficient_lies_at_its_bound(kind, unreachable, reached):
    coefficient = followed(kind)
    values = told(coefficient, kind, *[unreachable] * 500)
    assert values[-1] == values[-100] == 2.0
    assert told(coefficient, kind, reached)[0] < 2.0


# --- what a config says -----------------------------------------------------------------------------------------------


def test_a_config_with_follow_is_followed_and_takes_the_steered_traits_measures():
    config = SteeringConfig(vectors="v", coefficient=FIRST, follow={"kind": "trait"})  # type: ignore[arg-type]
    coefficient = coefficient_of(config, trait="t")
    assert told(coefficient, "trait", 0.795) == pytest.approx([1.06])  # type: ignore[arg-type]
    assert isinstance(coefficient_of(SteeringConfig(vectors="v", coefficient=FIRST), trait="t"), Scheduled)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"follow": {"kind": "trait", "minimum": 1.5}}, "1 must lie between them"),
        ({"follow": {"kind": "trait", "minimum": 1.0, "maximum": 1.0}}, "nothing can follow"),
        ({"follow": {"kind": "variance", "target": 0.5}}, r"the measure of variance lies between 0 and 0\.25"),
        ({"follow": {"kind": "trait", "integral": 0.0}}, "the coefficient never moves"),
        ({"follow": {"kind": "trait"}, "coefficient": 0.0}, "begin elsewhere"),
        ({"follow": {"kind": "trait"}, "mode": "train_only"}, "follows what steered rollouts show"),
        (
            {"follow": {"kind": "trait"}, "schedule": "linear", "final_coefficient": 0.0, "schedule_steps": 3},
            "both say what the coefficient is",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(fields, expected):
    with pytest.raises(ValidationError, match=expected):
        SteeringConfig.model_validate({"vectors": "v", "coefficient": FIRST, **fields})


# --- in a run ---------------------------------------------------------------------------------------------------------


def run_fields(folder: Path, *, kind: str, watch: dict[str, Any] | None = None, **steering: Any) -> dict[str, Any]:
    vectors = str(vectors_file(folder))
    watched = {"vectors": vectors, "trait": str(trait_file(folder)), "measure": True} if watch is None else watch
    fields = {"vectors": vectors, "coefficient": 0.5, "blocks": [1], "allow_other_model": True}
    return {
        "sft": None,
        "curriculum": {"kind": "uniform", "max_refill_waves": 0},
        "evaluation.every_steps": 0,
        "persona": {"watch": [{"vectors": vectors} | watched] if watched else []},
        "steering": {**fields, "follow": {"kind": kind, "max_change": 0.5}, **steering},
    }


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(OF_THE_CLOCK)} for row in rows]


@pytest.mark.parametrize("kind", ["variance", "trait", "projection"])
def test_each_step_is_steered_by_what_those_before_it_measured_and_a_resume_goes_on(tmp_path, kind):
    config = small_run_config(tmp_path / "whole", **run_fields(tmp_path, kind=kind))
    with opened_run(config) as run:
        load_start(run)
        trainer_of(run).run()
        whole = rows_of(run.folder.path)
    expected = Followed(0.5, FollowConfig(kind=kind, max_change=0.5), trait="ones")  # type: ignore[arg-type]
    for step, row in enumerate(whole):
        assert row["persona/ones/coefficient"] == expected.value(step)
        expected.observe(step, row)
    assert len({row["persona/ones/coefficient"] for row in whole}) > 2
    again = small_run_config(tmp_path / "killed", **run_fields(tmp_path, kind=kind))
    with opened_run(again) as run:
        load_start(run)
        trainer = trainer_of(run)
        for _ in range(4):
            trainer.step()
        trainer.save()
        trainer._writer.wait()
        trainer.step()  # whose numbers the resume takes back
    with opened_run(again, start="resume") as run:
        load_start(run)
        trainer = trainer_of(run)
        take_up(trainer, run.folder.checkpoints / "step_000004")
        trainer.run()
        assert rows_of(run.folder.path) == whole


@pytest.mark.parametrize(
    ("kind", "watch", "steering", "expected"),
    [
        ("trait", {"measure": False, "trait": None}, {}, "ones is not measured; set measure: true"),
        ("trait", {"name": "another"}, {}, r"reads persona/ones/\.\.\., and persona\.watch has no trait of that name"),
        ("projection", {"block": 1}, {"blocks": [0, 1]}, "block 1, where it is watched, comes after block 0"),
    ],
)
def test_a_coefficient_that_follows_what_is_not_watched_is_refused_before_anything_starts(
    tmp_path, kind, watch, steering, expected
):
    config = small_run_config(tmp_path, **run_fields(tmp_path, kind=kind, watch=watch, **steering))
    with pytest.raises(ConfigError, match=expected), opened_run(config):
        pass


def test_a_steered_trait_is_watched_at_the_first_block_that_is_steered(tmp_path):
    watch = {"measure": True, "trait": str(trait_file(tmp_path))}
    config = small_run_config(tmp_path, **run_fields(tmp_path, kind="projection", watch=watch, blocks=[0, 1]))
    with opened_run(config) as run:
        assert [trait.block for trait in run.watched] == [0]


def test_a_stage_that_is_not_steered_teaches_the_coefficient_nothing(tmp_path):
    config = small_run_config(tmp_path, **run_fields(tmp_path, kind="trait"))
    stages = config.steering.model_copy(update={"stages": ["two"]})  # type: ignore[union-attr]
    with opened_run(config.model_copy(update={"steering": stages})) as run:
        run.steerer.observe(0, "one", {"persona/ones/rate": 0.0})
        assert run.steerer.steering_of_training(1, "two").coefficient == 0.5  # type: ignore[union-attr]
        run.steerer.observe(1, "two", {"persona/ones/rate": 0.0})
        assert run.steerer.steering_of_training(2, "two").coefficient > 0.5  # type: ignore[union-attr]
