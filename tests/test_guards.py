import math

import pytest

from grpo.config import GuardConfig
from grpo.errors import DivergenceError
from grpo.guards import Guards
from grpo.types import StepStats
from tests.runs import grpo, read_jsonl, small_run_file

BOUNDS = GuardConfig(max_ratio=2.0, max_sampler_gap=0.1, max_steps_in_a_row=3)
CALM = {"policy/ratio_max": 1.9, "policy/sampler_logprob_gap_max": 0.01}


def test_a_step_within_the_bounds_is_not_spoken_of():
    assert Guards(BOUNDS).observe(1, CALM) == ""


@pytest.mark.parametrize("value", [2.5, math.inf, math.nan])
def test_a_step_above_a_bound_is_warned_of_with_metric_value_and_field(value):
    said = Guards(BOUNDS).observe(1, CALM | {"policy/ratio_max": value})
    assert said.startswith(f"policy/ratio_max = {value:.4g} is above guard.max_ratio = 2.0")


def test_a_bound_that_is_off_and_a_metric_that_is_missing_warn_of_nothing():
    assert Guards(GuardConfig()).observe(1, {"policy/ratio_max": 1e9}) == ""
    assert Guards(BOUNDS).observe(1, {}) == ""


def test_steps_above_a_bound_end_the_run_when_enough_of_them_are_in_a_row_also_over_a_resume():
    high = {"policy/sampler_logprob_gap_max": 0.2}
    guards = Guards(BOUNDS)
    for metrics in (high, high, CALM, high, high):
        guards.observe(1, metrics)
    again = Guards(BOUNDS)
    again.load_state_dict(guards.state_dict())
    with pytest.raises(DivergenceError, match=r"step 6: policy/sampler_logprob_gap_max = 0.2 .* for 3 steps in a row"):
        again.observe(6, high)


def test_a_run_above_a_bound_warns_in_its_events_and_ends_with_the_code_of_divergence(tmp_path, capsys):
    config = small_run_file(
        tmp_path,
        **{
            "sft": None,
            "curriculum": {"kind": "uniform"},
            "reward.function": "coin",
            "train.old_logprobs": "policy",
            "guard": {"max_sampler_gap": 1e-12, "max_steps_in_a_row": 2},
        },
    )
    assert grpo("train", config) == DivergenceError.exit_code
    assert "guard.max_sampler_gap = 1e-12, for 2 steps in a row" in capsys.readouterr().err
    run = tmp_path / "runs" / "small"
    assert [event["step"] for event in read_jsonl(run / "events.jsonl") if event["event"] == "guard"] == [1]
    assert len(read_jsonl(run / "metrics.jsonl")) == 2


def test_a_ratio_that_is_no_number_reaches_the_guard_whatever_comes_after_it():
    stats = StepStats()
    for value in (1.0, math.nan, 2.0):
        stats.add_max("policy/ratio_max", value)
    assert math.isnan(stats.reduce()["policy/ratio_max"])
