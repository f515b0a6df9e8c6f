"""Policies are scored plain and, where that is asked for, steered too: each with a file and a name of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.config import load
from grpo.errors import ConfigError
from grpo.final_evaluation import is_evaluated, run_eval
from grpo.recipe import run_train
from grpo.starts import Run
from tests.runs import FIELDS, opened_run
from tests.test_steerer import config_of, opened_for


@pytest.fixture
def config(tmp_path):
    opinionated = {"model.architecture": FIELDS["model"]["architecture"] | {"initializer_range": 0.5}}
    changes = {"train.steps": 1, "evaluation.steered": True, "steering.coefficient": 6.0, "reward.function": "coin"}
    config = config_of(tmp_path, **opinionated, **changes)
    with opened_run(config) as run:
        run_train(run)
    return config


def evaluated(config, *, start: str = "resume") -> dict[str, Any]:
    with opened_for(config, phases=("eval",), start=start) as run:
        run_eval(run)
        assert is_evaluated(run)
    return files(run)


def files(run: Run) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(run.folder.evals.glob("*.json"))}


def steered(config, **changes: Any):
    return config.model_copy(update={"steering": config.steering.model_copy(update=changes)})


def test_each_policy_has_a_plain_and_a_steered_score_that_differ(config):
    found = evaluated(config)
    assert list(found) == ["last", "last_steered", "start", "start_steered"]
    for name in ("start", "last"):
        plain, moved = (found[of]["sets"]["heldout"] for of in (name, f"{name}_steered"))
        assert plain["problems"] != moved["problems"]
        assert plain["rests_on"] == moved["rests_on"]
    assert found["start_steered"]["sets"]["heldout"]["against"]["name"] == "start"
    without = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"steered": False})})
    assert evaluated(without, start="fresh") == {name: found[name] for name in ("last", "start")}


def test_what_is_steered_otherwise_is_scored_again_and_plain_scores_stay(config, monkeypatch):
    before = evaluated(config)
    scored = []
    monkeypatch.setattr("grpo.final_evaluation.load_policy", lambda run, policy: scored.append(policy.name))
    with opened_for(config, phases=("eval",), start="resume") as run:
        run_eval(run)
        assert scored == []
        run.steerer._config = run.steerer._config.model_copy(update={"coefficient": 1.0})
        run_eval(run)
    assert scored == ["start_steered", "last_steered"]
    after = files(run)
    assert after["start"] == before["start"]
    assert after["start_steered"]["policy"] != before["start_steered"]["policy"]


def test_steered_scores_without_a_section_that_says_how_are_refused(tmp_path):
    path = Path(tmp_path / "config.yaml")
    path.write_text((Path(__file__).parents[1] / "configs" / "quickstart.yaml").read_text())
    with pytest.raises(ConfigError, match=r"there is no section steering to say how; add it"):
        load(path, ["evaluation.steered=true"])
