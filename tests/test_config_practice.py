"""Practice in which something could never happen is refused before it starts: nothing hotter, no extreme problem."""

from pathlib import Path
from typing import Any

import pytest

from grpo.config import TemperatureConfig, load
from grpo.errors import ConfigError
from tests.runs import small_run_config, small_run_file

FIRST = {"name": "first", "tiers": ["moderate"], "steps": 3}
SECOND = {"name": "second", "tiers": ["extreme"]}


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(small_run_file(folder, **changes))
    return str(error.value)


def heating(value: float, grid: list[float], *own: float | None, kind: str = "adaptive", **fields: Any) -> Any:
    stages = [{**stage, "temperature": t} for stage, t in zip((FIRST, SECOND), own or (None, None), strict=True)]
    return {
        "temperature": {"kind": kind, "value": value, "grid": grid, **fields},
        "curriculum": {"kind": "two_stages", "stages": stages},
    }


@pytest.mark.parametrize(
    ("changes", "coolest"),
    [
        (heating(1.4, [0.8, 1.4]), 1.4),
        (heating(1.4, [0.8, 1.4], kind="diversity"), 1.4),
        (heating(1.0, [0.8, 1.2], 1.2, 1.3), 1.2),  # 1.0 is never sampled at
        (heating(1.3, [0.8, 1.2], None, 1.2), 1.2),
        ({**heating(1.0, [0.8, 1.0]), "curriculum": {"kind": "uniform"}}, 1.0),
    ],
)
def test_a_grid_without_anything_hotter_than_where_sampling_begins_is_refused(tmp_path, changes, coolest):
    message = refusal(tmp_path, **changes)
    assert f"has nothing above {coolest}, at which sampling begins" in message
    assert "only heats" in message


@pytest.mark.parametrize(
    "changes",
    [
        heating(1.4, [0.8, 1.5]),
        heating(1.4, [0.8, 1.4], reference="best"),  # may cool down
        heating(1.0, [0.8, 1.2], None, 1.3),  # the first stage may heat
        heating(1.4, [1.3], None, 1.2),  # the second may
    ],
)
def test_a_grid_of_which_a_stage_can_choose_is_taken(tmp_path, changes):
    assert small_run_config(tmp_path, **changes)


def test_a_grid_names_each_temperature_once():
    with pytest.raises(ValueError, match=r"grid = \[1.0, 1.2, 1.2\]: must name each temperature once"):
        TemperatureConfig(kind="adaptive", grid=[1.0, 1.2, 1.2])


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            [FIRST, {**SECOND, "name": "first"}],
            "stages are called ['first', 'first']: each needs a name of its own",
        ),
        (
            [{**FIRST, "tiers": ["moderate", "moderate"]}, SECOND],
            "tiers = ['moderate', 'moderate']: must name each tier once",
        ),
        (
            [FIRST, {**SECOND, "mix_tiers": ["trivial", "trivial"], "mix_fraction": 0.5}],
            "mix_tiers = ['trivial', 'trivial']: must name each tier once",
        ),
        (
            [FIRST, {**SECOND, "group_size": 8, "failures_per_group": 8}],
            "curriculum.stages.1.failures_per_group = 8: must be below the stage's group size, 8",
        ),
        (
            [{**FIRST, "failures_per_group": 99}, SECOND],
            "curriculum.stages.0.failures_per_group = 99: must be below the stage's group size",
        ),
    ],
)
def test_stages_that_repeat_or_leave_nothing_out_are_refused(tmp_path, stages, expected):
    assert expected in refusal(tmp_path, **{"curriculum": {"kind": "two_stages", "stages": stages}})


@pytest.mark.parametrize(
    ("rules", "tiers", "refused"),
    [
        ({"max_rollouts": 16, "relabel_rollouts": 16}, ["extreme"], True),
        ({"max_rollouts": 16, "relabel_rollouts": 32}, ["extreme"], True),
        ({"first_rollouts": 16, "max_rollouts": 16, "relabel_rollouts": 8}, ["extreme"], True),
        ({"max_rollouts": 17, "relabel_rollouts": 16}, ["extreme"], False),
        ({"max_rollouts": 16, "relabel_rollouts": 16}, ["extreme", "unsolved"], False),
    ],
)
def test_a_stage_of_extreme_problems_alone_needs_rules_by_which_there_are_some(tmp_path, rules, tiers, refused):
    changes = {"profile": rules, "curriculum": {"kind": "two_stages", "stages": [FIRST, {**SECOND, "tiers": tiers}]}}
    if refused:
        assert "curriculum.stages.1 practises extreme problems alone" in refusal(tmp_path, **changes)
    else:
        assert small_run_config(tmp_path, **changes)
