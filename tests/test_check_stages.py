"""What `grpo check` says of each kind of curriculum: a number where it is known beforehand, else the most it can be."""

from typing import Any

import pytest

from grpo.check import derived
from tests.runs import grpo, small_run_config, small_run_file

EXACT, AT_MOST = "rollouts of the run, without refills", "rollouts of the run, at most, without refills"
FIRST = {"name": "first", "tiers": ["moderate"], "steps": 3}
STAGED = {"curriculum.kind": "two_stages"}
SECOND = {"name": "second", "tiers": ["extreme"], "group_size": 16, "problems_per_step": 2}


def of_curriculum(folder: Any, **changes: Any) -> dict[str, object]:
    return derived(small_run_config(folder, **{"curriculum": None, **changes}))


@pytest.mark.parametrize(
    ("kind", "changes"), [("mixture", {"curriculum.shares": {"moderate": 0.75, "extreme": 0.25}}), ("weighted", {})]
)
def test_a_curriculum_without_stages_is_one_row_of_numbers(tmp_path, kind, changes):
    found = of_curriculum(tmp_path, **{"curriculum.kind": kind, **changes})
    assert (found["rollouts a step"], found[EXACT]) == (16, 8 * 16)
    assert not any(name.startswith("stage") for name in found)
    assert ("rollouts of the profile, at least" in found) == (kind == "mixture")


def test_the_command_checks_a_mixture(tmp_path, capsys):
    changes = {"curriculum": {"kind": "mixture", "shares": {"moderate": 1.0}}}
    assert grpo("check", small_run_file(tmp_path, **changes)) == 0
    assert "rollouts a step" in capsys.readouterr().out


@pytest.mark.parametrize("ends", [{"until_plateau": True}, {"until_trivial_fraction": 0.5}])
@pytest.mark.parametrize("steps", [None, 3])
def test_a_stage_that_ends_by_its_outcomes_gives_a_bound(tmp_path, ends, steps):
    stages = [{**FIRST, **ends, "steps": steps}, SECOND]
    found = of_curriculum(tmp_path, **STAGED, **{"curriculum.stages": stages})
    assert EXACT not in found
    assert found[AT_MOST] == 8 * 32


def test_a_last_stage_with_steps_ends_the_count(tmp_path):
    both = {"curriculum.stages": [FIRST, {**SECOND, "steps": 2}]}
    assert of_curriculum(tmp_path, **STAGED, **both)[EXACT] == 3 * 16 + 2 * 32
    assert of_curriculum(tmp_path, **STAGED, **{"curriculum.stages": [FIRST]})[EXACT] == 3 * 16


@pytest.mark.parametrize(
    "changes", [{"train.max_tokens": 1000}, {"evaluation.every_steps": 2, "evaluation.patience": 1}]
)
def test_a_run_that_may_end_before_its_last_step_gives_a_bound(tmp_path, changes):
    found = of_curriculum(tmp_path, **{"curriculum.kind": "uniform", **changes})
    assert found[AT_MOST] == 8 * 16


@pytest.mark.parametrize(("first_group_size", "exact"), [(2, False), (4, True), (None, True)])
def test_smaller_first_groups_of_the_online_curriculum_make_its_counts_bounds(tmp_path, first_group_size, exact):
    config = small_run_config(tmp_path, **{"curriculum": {"kind": "online", "first_group_size": first_group_size}})
    found = derived(config)
    assert (EXACT in found, AT_MOST in found) == (exact, not exact)
    assert found["rollouts a step" if exact else "rollouts a step, at most"] == 16


def test_tokens_of_a_step_are_those_of_its_stage(tmp_path):
    stages = [{**FIRST, "max_completion_tokens": 5}, SECOND]
    found = of_curriculum(tmp_path, **STAGED, **{"curriculum.stages": stages, "curriculum.max_refill_waves": 0})
    assert found["stage first: tokens sampled a step, at most"] == 16 * 5
    assert found["stage second: tokens sampled a step, at most"] == 32 * 8
