"""The section steering: what is refused before a file is opened, and that a resume looks at what the file holds."""

from typing import Any

import pytest

from grpo.config import load
from grpo.errors import ConfigError, RunFolderError
from grpo.folder import RunFolder
from tests.runs import small_run_config, small_run_file

STEERING: dict[str, Any] = {"vectors": "v.safetensors", "coefficient": 1.0}
OFF_POLICY = STEERING | {"mode": "train_only"}
DRAWN_AFRESH = {"profile.reuse_steps": 0}


def refusal(folder, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(small_run_file(folder, **DRAWN_AFRESH | changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"coefficient": None}, "steering.coefficient is missing"),
        ({"blocks": [1, 1]}, "steering: blocks = [1, 1]: names 1 twice"),
        ({"blocks": [-1]}, "are counted from 0"),
        ({"blocks": []}, "must have at least 1 entries"),
        ({"increments": True, "blocks": [1]}, "a difference between blocks needs two"),
        ({"schedule": "linear", "schedule_steps": 4}, "schedule = 'linear' needs final_coefficient"),
        ({"final_coefficient": 0.0}, "final_coefficient = 0.0 is not read where schedule is constant"),
        ({"mode": "train_only"}, "steering.mode = 'train_only' samples from another policy than it trains"),
        ({"mode": "sample_only"}, "set loss.correction: truncated or icepop, or train.old_logprobs: sampler"),
        ({"allow_off_policy": True}, "is not read where mode is preventative"),
        ({"stages": ["late"]}, "steering.stages names 'late', but the curriculum has moderate, extreme"),
        ({"stages": ["extreme", "extreme"]}, "must name each stage once"),
        ({"positions": "prompt"}, "must be one of 'choosing', 'start', 'completion' or 'all'"),
    ],
)
def test_a_fault_of_the_section_is_an_error_that_says_what_to_do(tmp_path, changes, said):
    fields = {name: value for name, value in (STEERING | changes).items() if value is not None}
    assert said in refusal(tmp_path, steering=fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"steering": OFF_POLICY, "loss": {"correction": "truncated"}},
        {"steering": OFF_POLICY, "train.old_logprobs": "sampler"},
        {"steering": OFF_POLICY | {"allow_off_policy": True}},
    ],
)
def test_an_off_policy_mode_is_taken_with_a_correction_or_by_option(tmp_path, changes):
    assert small_run_config(tmp_path, **DRAWN_AFRESH | changes)


def test_groups_of_the_profile_are_not_mixed_with_steered_ones(tmp_path):
    assert "drawn without steering" in refusal(tmp_path, steering=STEERING, **{"profile.reuse_steps": 20})
    assert small_run_config(tmp_path, steering=STEERING, curriculum={"kind": "uniform"})  # which reads no profile


def test_temperatures_are_not_chosen_by_steered_rollouts(tmp_path):
    adaptive = {"kind": "adaptive", "counterfactual": True}
    assert "temperature.counterfactual decides" in refusal(tmp_path, steering=STEERING, temperature=adaptive)


def test_stages_are_refused_where_the_curriculum_has_none(tmp_path):
    fields = {"steering": STEERING | {"stages": ["extreme"]}, "curriculum": {"kind": "online"}, "profile": None}
    assert "the curriculum of kind 'online' has no stages" in refusal(tmp_path, **fields)


@pytest.mark.parametrize(
    ("phase", "field", "section"),
    [("train", "steering.vectors", "steering"), ("sft", "sft.steering.vectors", "sft.steering")],
)
def test_a_resume_refuses_another_content_of_the_same_vectors_file(tmp_path, phase, field, section):
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"one")
    config = small_run_config(tmp_path, **DRAWN_AFRESH | {section: STEERING | {"vectors": str(path)}})
    with RunFolder.opened(config, problem_ids={}, start="new", phases=(phase,)) as folder:
        folder.mark(phase, finished=False)
    with RunFolder.opened(config, problem_ids={}, start="resume", phases=(phase,)):
        pass
    path.write_bytes(b"two")
    with pytest.raises(RunFolderError, match=rf"differs in {field}\.content"):
        RunFolder.check(config, problem_ids={}, start="resume", phases=(phase,))
    path.unlink()
    with pytest.raises(RunFolderError, match=rf"differs in {field}\.content"):
        RunFolder.check(config, problem_ids={}, start="resume", phases=(phase,))
