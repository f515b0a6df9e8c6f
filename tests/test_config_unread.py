"""Fields of practice that nothing reads are refused, with the section that they stand in, and defaults may stand."""

from pathlib import Path
from typing import Any

import pytest

from grpo.config import RunConfig, dump, load
from grpo.errors import ConfigError
from tests.runs import small_run_config, small_run_file

STAGES = [{"name": "first", "tiers": ["moderate"], "steps": 3}, {"name": "second", "tiers": ["extreme"]}]


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(small_run_file(folder, **changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"temperature": {"kind": "adaptive", "min_effective_fraction": 0.3}},
            "temperature: min_effective_fraction = 0.3 is not read where counterfactual is false; drop it or set",
        ),
        (
            {"curriculum": {"kind": "uniform", "moves": {"retire_rate": 0.8}}},
            "curriculum: moves.retire_rate = 0.8 is not read where kind is uniform; drop it or set kind: two_stages,",
        ),
        (
            {"curriculum": {"kind": "weighted", "moves": {"check_every_epochs": None}}},
            "curriculum: moves.check_every_epochs = None is not read where kind is weighted",
        ),
        (
            {"curriculum.moves": {"max_wait_epochs": 3}},
            "curriculum: moves.max_wait_epochs = 3 is not read where kind is two_stages; drop it or set kind: online",
        ),
        (
            {"curriculum.plateau_window_steps": 9},
            "curriculum: plateau_window_steps = 9 is not read where no stage of two_stages is until_plateau",
        ),
        (
            {"curriculum": {"kind": "online", "plateau_rise": 0.2}},
            "curriculum: plateau_rise = 0.2 is not read where no stage of two_stages is until_plateau",
        ),
        (
            {"curriculum": {"kind": "online", "stages": STAGES}},
            "curriculum: stages (first, second) are not read where kind is online; drop them or set kind: two_stages",
        ),
        (
            {"curriculum": {"kind": "uniform"}, "profile": {"reuse_steps": 5}},
            "profile.reuse_steps = 5 is not read where kind is uniform; drop it or set curriculum.kind: two_stages or",
        ),
    ],
)
def test_a_field_of_practice_that_nothing_reads_is_refused(tmp_path, changes, expected):
    assert expected in refusal(tmp_path, **changes)


def test_the_remedy_for_stages_on_the_command_line_is_taken(tmp_path):
    config = small_run_file(tmp_path)
    with pytest.raises(ConfigError, match=r"curriculum=\{kind: uniform\} drops the file's"):
        load(config, ["curriculum.kind=uniform"])
    assert load(config, ["curriculum={kind: uniform}"]).curriculum.kind == "uniform"
    assert load(config, ["curriculum={kind: uniform, stages: []}"]).curriculum.stages == []


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": {"kind": "adaptive", "counterfactual": True, "min_effective_fraction": 0.3}},
        {"curriculum": {"kind": "online", "moves": {"max_wait_epochs": 3, "retire_rate": 0.8}}},
        {"curriculum": {"kind": "mixture", "shares": {"moderate": 1}, "moves": {"retire_rate": 0.8}}},
        {"curriculum.moves": {"retire_rate": 0.8}, "profile.reuse_steps": 5},
        {"curriculum.stages": [{**STAGES[0], "until_plateau": True}], "curriculum.plateau_rise": 0.2},
        # `grpo profile` reads its section whatever is practised.
        {"curriculum": {"kind": "uniform"}, "profile": {"max_rollouts": 64, "max_problems": 10}},
    ],
)
def test_fields_that_are_read_are_taken(tmp_path, changes):
    assert small_run_config(tmp_path, **changes)


@pytest.mark.parametrize("kind", ["two_stages", "mixture", "uniform", "weighted", "online"])
def test_a_resolved_config_of_every_kind_loads_again(tmp_path, kind):
    shares = {"shares": {"moderate": 1.0}} if kind == "mixture" else {}
    config = small_run_config(tmp_path, **{"curriculum": {"kind": kind, **shares}})
    (tmp_path / "resolved.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "resolved.yaml") == config


# --- the soft penalty's buffer ----------------------------------------------------------------------------------------


def penalised(folder: Path, *, buffer_tokens: int, limit: int | None) -> RunConfig:
    stages = [STAGES[0], {**STAGES[1], "max_completion_tokens": limit}]
    loss = {"truncated": "penalty", "penalty_buffer_tokens": buffer_tokens}
    return load(small_run_file(folder, **{"curriculum.stages": stages, "loss": loss}))


def test_a_buffer_above_the_limit_of_any_stage_is_refused_by_the_stage(tmp_path):
    with pytest.raises(ConfigError) as error:
        penalised(tmp_path, buffer_tokens=6, limit=5)
    assert (
        "loss.penalty_buffer_tokens = 6 is above curriculum.stages.1.max_completion_tokens = 5; lower it, or raise that"
    ) in str(error.value)


@pytest.mark.parametrize(("buffer_tokens", "limit"), [(5, 5), (8, None), (4, 5)])
def test_a_buffer_within_every_limit_is_taken(tmp_path, buffer_tokens, limit):
    assert penalised(tmp_path, buffer_tokens=buffer_tokens, limit=limit).loss.penalty_buffer_tokens == buffer_tokens
