"""Whatever a user, a file or a machine gets wrong ends a run by name: exit code, place, value, rule and remedy.

And nothing is lost by it: what is wrong from the start is found before a folder is made, and what goes wrong on the way
leaves everything that was saved."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForSequenceClassification

from grpo import commands
from grpo.distributed.world import World
from grpo.errors import ConfigError
from grpo.sampling import native
from grpo.sampling.native import NativeSampler
from grpo.sft import cold_start
from tests.chatml import chatml_tokenizer
from tests.runs import grpo, opened_run, read_jsonl, small_run_config, small_run_fields

# The loop and nothing else: two steps, each of them saved.
LOOP: dict[str, Any] = {
    "sft": None,
    "curriculum": {"kind": "uniform", "max_refill_waves": 1},
    "train.steps": 2,
    "data.validation_problems": 4,
    "data.heldout_problems": 4,
    "evaluation": {"rollouts_per_problem": 2, "k": [1], "checkpoints": ["last"]},
    "checkpoint": {"every_steps": 1},
}
REWARDS = """
import time
from pathlib import Path
import numpy as np

def raises(completion, problem):
    return problem["missing"]

def raises_now_and_then(completion, problem):
    first = ord(completion[:1] or "!")
    if first % 3 == 0:
        raise RuntimeError("not this one")
    return float(first % 2)

def returns_a_list(completion, problem):
    return [1.0, 0.0]

def returns_an_array(completion, problem):
    return np.zeros((2, 1))

def returns_nan(completion, problem):
    return float("nan")

def hangs_once(completion, problem, flag):
    if not Path(flag).exists():
        Path(flag).touch()
        time.sleep(60)
    return 1.0
"""


@pytest.fixture
def config(tmp_path):
    """Writes the config of a small run, with changes by dotted name, and returns its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(small_run_fields(tmp_path, **(LOOP | changes))), encoding="utf-8")
        return path

    return write


@pytest.fixture
def refused(config, tmp_path, capsys):
    """Runs a command on a changed config; returns what it said, once code and form are right and nothing was made."""

    def run(code: int, *, command: str = "train", **changes: Any) -> str:
        assert grpo(command, config(**changes)) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        said = said[said.index(f"grpo {command}") :]
        assert not (tmp_path / "runs").exists()
        return said

    return run


@pytest.fixture
def rewards_file(tmp_path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(REWARDS)
    return str(path)


def own_reward(file: str, function: str, **fields: Any) -> dict[str, Any]:
    return {"reward": {"file": file, "function": function, "workers": 0} | fields}


# --- the config and what it names ------------------------------------------------------------------------------------


def test_a_missing_config_is_named(tmp_path, capsys):
    assert grpo("recipe", tmp_path / "none.yaml") == 2
    assert f"{tmp_path / 'none.yaml'}: no such file; give the path of a run's YAML config" in capsys.readouterr().err
    assert grpo("train") == 2
    assert "name the run's YAML file, such as configs/quickstart.yaml" in capsys.readouterr().err


def test_a_group_of_one_is_refused_with_the_rule_and_why(refused, tmp_path):
    expected = (
        f"{tmp_path / 'config.yaml'}: train.group_size = 1: must be at least 2 (Rollouts per problem (G). A group"
    )
    assert expected in refused(2, **{"train.group_size": 1})


@pytest.mark.parametrize("command", ["recipe", "sft", "profile", "train", "eval", "check"])
def test_every_command_refuses_a_typo_with_the_nearest_name(refused, command):
    said = refused(2, command=command, **{"train.grop_size": 4})
    assert "train.grop_size is not a field; did you mean train.group_size?" in said


def test_options_that_no_command_has_are_refused(config, capsys):
    with pytest.raises(SystemExit) as error:
        grpo("train", config(), "--resme")
    assert error.value.code == 2
    with pytest.raises(SystemExit):
        grpo("train", config(), "--resume", "--fresh")
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ({"name": "lst_machine"}, "reward: 'lst_machine' is not a reward; did you mean 'list_machine'?"),
        ({"name": "list_machine", "options": {"a": 1}}, "reward list_machine: 'a' is not an option (options: none)"),
        ({"file": "none.py", "function": "f"}, "reward: reward file 'none.py': no such file"),
    ],
)
def test_a_reward_that_cannot_be_built_is_refused_with_the_remedy(refused, reward, expected):
    assert expected in refused(2, reward=reward)


def test_a_function_that_the_reward_file_has_not_is_refused_with_those_it_has(refused, rewards_file):
    said = refused(2, **own_reward(rewards_file, "raise"))
    assert "defines no 'raise'; it defines raises, raises_now_and_then" in said
    assert "did you mean 'raises'?" in said


def test_an_option_that_the_reward_function_has_not_is_refused_with_its_signature(refused, rewards_file):
    said = refused(2, **own_reward(rewards_file, "hangs_once", options={"flga": "x"}))
    assert "it is hangs_once(completion, problem, flag)" in said


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "source", "expected"),
    [
        (None, {}, "no such file (looked in"),
        ([], {}, "the file is empty; give one with rows"),
        (
            [{"prompt": "1", "answer": ""}],
            {},
            "no problem is left (1 with empty answer); check the file and the columns",
        ),
        (
            [{"question": "1", "answer": "1"}],
            {"prompt_column": "qestion"},
            "there is no column 'qestion' (prompt_column)",
        ),
        (
            [{"prompt": "1", "gold": "1"}],
            {},
            "there is no column 'answer' (answer_column); set answer_column to one of",
        ),
        ([{"prompt": "1", "answer": "1"}], {}, "data.validation_problems = 4, but data.train has 1 problems left"),
    ],
)
def test_rows_that_are_no_problems_are_refused_with_the_remedy(refused, tmp_path, rows, source, expected):
    path = tmp_path / "rows.jsonl"
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(3, **{"data.train": {"path": str(path)} | source})
    assert said.startswith("grpo train: data.")
    assert expected in said


def test_no_problem_left_to_hold_out_is_refused_with_the_numbers(refused):
    said = refused(3, **{"data.heldout_problems": 56})
    assert "data.heldout_problems = 56, but data.train has 56 problems left to take them from" in said
    assert "lower it or add problems" in said


def test_a_column_to_split_the_tables_by_that_no_row_has_is_refused_with_the_columns(refused):
    said = refused(2, **{"evaluation.by_column": "difficulty"})
    assert (
        "evaluation.by_column = 'difficulty': the held-out rows have no such column; they have num_operations" in said
    )


def test_a_prompt_longer_than_the_context_is_refused_with_every_number(refused):
    said = refused(3, **{"sampling.max_completion_tokens": 60})
    assert "tokens, but only 4 fit (data.max_prompt_tokens = 2048, and the model's context of 64 less " in said
    assert (
        "sampling.max_completion_tokens = 60); raise the first, lower the last, or set data.overlong_prompts=drop"
        in said
    )
    said = refused(3, **{"sampling.max_completion_tokens": 64})
    assert "sampling.max_completion_tokens = 64 leaves no room for a prompt in the model's context of 64 tokens" in said


def test_dropping_every_prompt_is_refused(refused):
    said = refused(2, **{"data.max_prompt_tokens": 3, "data.overlong_prompts": "drop"})
    assert "data.max_prompt_tokens = 3: every prompt of the train set is too long; raise it" in said


def test_a_trace_longer_than_the_context_is_refused_before_the_first_step(config, capsys):
    sft = {"traces": {"path": "task:list_machine", "options": {"num_rows": 8, "operations": {9: 1}}}, "max_steps": 1}
    assert grpo("sft", config(sft=sft | {"completion": "{trace}"})) == 3
    assert "more than the model's context of 64; shorten or drop the row" in capsys.readouterr().err


def test_a_trace_with_a_field_that_no_row_has_is_refused_with_the_fields(config, capsys):
    sft = {
        "traces": {"path": "task:list_machine", "options": {"num_rows": 8}},
        "completion": "{solution}",
        "max_steps": 1,
    }
    assert grpo("sft", config(sft=sft)) == 2
    said = capsys.readouterr().err
    assert "sft.completion = '{solution}': cannot be filled (KeyError: 'solution')" in said
    assert "answer, num_operations, prompt, trace" in said


# --- the model -------------------------------------------------------------------------------------------------------


def test_a_model_without_a_chat_template_is_refused_with_both_remedies(refused):
    said = refused(2, chat={"style": "template"})
    assert "has no chat template; set chat.template_file to a Jinja file, or chat.style: plain for a base model" in said


def test_a_template_that_refuses_its_messages_is_refused_with_the_problem(refused, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ raise_exception('only poems') }}")
    said = refused(3, chat={"template_file": str(tmp_path / "mine.jinja")})
    assert "the chat template refuses its messages: only poems" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.architecture.model_type": "lama"}, "model.architecture: transformers takes no such config: "),
        ({"model.architecture.hidden_size": 33}, "(33) is not a multiple of the number of attention heads (2)"),
        ({"model.architecture.hidden_size": "wide"}, "model.architecture: transformers takes no such config: "),
        ({"model.architecture.num_attention_heads": 0}, "model.architecture: transformers"),
        ({"model.architecture.model_type": "t5"}, "model.architecture: transformers cannot build it: Unrecognized"),
        (
            {"model.architecture.model_type": "rwkv", "model.attention": "eager"},
            "model: RwkvForCausalLM's layers (recurrent) keep a state that the native sampler cannot hold",
        ),
        (
            {"model.architecture": {"model_type": "falcon_h1", "num_hidden_layers": 1, "hidden_size": 32}},
            "model: FalconH1ForCausalLM's layers (hybrid) keep a state that the native sampler cannot hold",
        ),
        (
            {"model.architecture.vocab_size": 10},
            "model: 10 embeddings for a tokenizer of 96 tokens; set model.tokenizer",
        ),
        ({"model": {"path": "{folder}"}}, "no tokenizer could be loaded from it"),
        ({"model.tokenizer": "task:lst_machine"}, "there is no task 'lst_machine'; the tasks are list_machine"),
        ({"model.lora": {"target_modules": ["q_porj"]}}, "model.lora.target_modules = ['q_porj']: "),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_by_its_field(refused, tmp_path, changes, expected):
    if changes.get("model"):
        changes = {"model": {"path": str(tmp_path)}}
    assert expected in refused(2, **changes)


def test_a_folder_that_holds_a_tokenizer_and_no_model_is_refused(refused, tmp_path):
    chatml_tokenizer(["a text"]).save_pretrained(tmp_path / "model")
    said = refused(2, model={"path": str(tmp_path / "model")})
    assert f"model.path = '{tmp_path / 'model'}': no causal language model could be loaded: " in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_the_remedy(refused):
    said = refused(2, **{"run.device": "cuda"})
    assert "run.device = 'cuda', but torch finds no GPU; install a CUDA build of torch, or set auto" in said


def test_several_ranks_without_a_launcher_are_refused_by_the_variables_that_are_missing(refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    said = refused(2)
    assert "WORLD_SIZE = 2, but the launcher did not set LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in said
    assert "start with torchrun or deepspeed" in said


def test_a_rank_with_another_config_or_model_is_refused_by_what_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "gather", lambda self, value: [value, value | {next(iter(value)): "other"}])
    with (
        pytest.raises(ConfigError, match=r"rank 1 has not what rank 0 has \(config: run\); give every node the same"),
        opened_run(small_run_config(tmp_path)),
    ):
        pass


def test_a_cold_start_whose_batch_the_ranks_do_not_divide_is_refused_with_both_numbers(tmp_path):
    config = small_run_config(tmp_path)
    with (
        opened_run(config) as run,
        pytest.raises(ConfigError, match=r"sft.batch_size = 8: must be a multiple of the 3 "),
    ):
        cold_start(
            run.policy,
            chat=run.chat,
            traces=run.traces,
            config=config.sft,
            pass_at_1=lambda: 0.0,
            should_stop=lambda: False,
            on_look=lambda step, value: None,
            on_step=lambda step: None,
            seed=0,
            folder=tmp_path,
            world=World(rank=0, size=3, device=run.world.device),
        )


# --- rewards that fail on the way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("raises", "raises raised KeyError: 'missing' (line 7 of mine.py, in raises)"),
        ("returns_a_list", "returns_a_list returned [1.0, 0.0] (list); a reward function returns a finite float"),
        ("returns_an_array", "(ndarray); a reward function returns a finite float"),
        ("returns_nan", "returns_nan returned nan (float); a reward function returns a finite float"),
    ],
)
def test_a_reward_that_fails_ends_the_run_with_the_reason_and_never_counts_as_zero(
    config, rewards_file, tmp_path, capsys, function, expected
):
    assert grpo("train", config(**own_reward(rewards_file, function))) == 6
    said = capsys.readouterr().err
    assert "step 1: 16 of 16 verdicts were lost, more than reward.max_error_fraction = 0.05" in said
    assert expected in said
    assert "Try the reward with `grpo score`, mend it and add --resume, or raise the limit" in said
    assert read_jsonl(tmp_path / "runs" / "small" / "metrics.jsonl") == []


def test_a_verdict_that_hangs_is_ended_and_counted_as_lost(config, rewards_file, tmp_path, capsys):
    options = {"flag": str(tmp_path / "flag")}
    reward = own_reward(
        rewards_file, "hangs_once", options=options, workers=1, timeout_seconds=0.3, max_error_fraction=0.0
    )
    assert grpo("train", config(**reward)) == 6
    said = capsys.readouterr().err
    assert "1 of 16 verdicts were lost, more than reward.max_error_fraction = 0.0; 1 times: " in said
    assert "took more than 0.3 s; its worker was killed" in said


def test_below_the_limit_lost_verdicts_are_counted_and_the_run_goes_on(config, rewards_file, tmp_path):
    reward = own_reward(rewards_file, "raises_now_and_then", max_error_fraction=0.99)
    assert grpo("recipe", config(**reward)) == 0
    run = tmp_path / "runs" / "small"
    for row in read_jsonl(run / "metrics.jsonl"):
        rollouts = read_jsonl(run / "rollouts" / f"step_{row['step']:06d}.jsonl")
        lost = [rollout for rollout in rollouts if rollout["status"] == "error"]
        assert 0 < row["reward/errors"] == len(lost) < len(rollouts)
        assert all(rollout["reward"] is None and rollout["advantage"] is None for rollout in lost)
        valued = [rollout["reward"] for rollout in rollouts if rollout["status"] == "scored"]
        assert row["reward/mean"] == pytest.approx(sum(valued) / len(valued))
    evaluated = json.loads((run / "evals" / "last.json").read_text())["sets"]["heldout"]
    assert evaluated["lost"]["error"] > 0


def test_with_every_verdict_lost_and_allowed_no_step_makes_an_update_and_the_evaluation_says_why(
    config, rewards_file, tmp_path, capsys
):
    path = config(**own_reward(rewards_file, "raises", max_error_fraction=1.0))
    assert grpo("train", path) == 0
    run = tmp_path / "runs" / "small"
    assert [row["reward/errors"] for row in read_jsonl(run / "metrics.jsonl")] == [80, 80]
    assert [event["event"] for event in read_jsonl(run / "events.jsonl")] == ["no_update", "no_update", "end"]
    assert grpo("eval", path) == 6
    said = capsys.readouterr().err
    assert "on heldout: none of 4 problems got a verdict with a value; 8 times: raises raised" in said


# --- the cold start and the profile -----------------------------------------------------------------------------------


def test_a_gate_that_is_not_reached_ends_the_run_with_what_was_reached(config, tmp_path, capsys):
    sft = {
        "traces": {"path": "task:list_machine", "options": {"num_rows": 16}},
        "completion": "{trace}",
        "max_steps": 2,
        "batch_size": 4,
        "gate_pass_at_1": 1.0,
        "gate_rollouts": 1,
        "gate_every_steps": 1,
    }
    assert grpo("recipe", config(sft=sft)) == 5
    said = capsys.readouterr().err
    assert "sft.gate_pass_at_1 = 1.0 was not reached in sft.max_steps = 2 (pass@1 0." in said
    assert "at step 1, 0." in said
    assert "raise max_steps, add traces, or lower the gate, and begin it again with --fresh" in said
    assert not (tmp_path / "runs" / "small" / "checkpoints").exists()


def test_training_by_tier_without_a_profile_is_refused_with_both_remedies(config, tmp_path, capsys):
    path = config(**{"curriculum.kind": "two_stages"})
    assert grpo("train", path) == 3
    said = capsys.readouterr().err
    assert "tiers.parquet: no profile, and curriculum.kind = 'two_stages' practises by tier; run `grpo profile`" in said
    assert grpo("train", path, "curriculum.kind=uniform") == 0  # as the message says


def test_a_cold_start_without_traces_is_refused(config, capsys):
    assert grpo("sft", config()) == 3
    assert "the config has no section sft, so there is no cold start to run; add one" in capsys.readouterr().err


# --- folders and checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of runs that holds a finished run of the loop."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(small_run_fields(folder, **LOOP)), encoding="utf-8")
    assert grpo("train", path) == 0
    return folder / "runs"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs" / "small"


def files_of(run: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock"
    }


def write_additions(path: Path, numbers: range) -> None:
    rows = [{"prompt": f"{n}+{n}?", "answer": str(2 * n), "num_operations": 1} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_folder_below_a_file_is_refused_before_anything_is_loaded(config, tmp_path, capsys):
    (tmp_path / "notes").write_text("a file")
    for folder, name in ((tmp_path / "notes" / "runs", "small"), (tmp_path, "notes")):
        assert grpo("train", config(**{"run.folder": str(folder), "run.name": name})) == 2
        said = capsys.readouterr().err
        expected = (
            f"run.folder, run.name: {tmp_path / 'notes'} is a file, so {folder / name} cannot be a folder; set others"
        )
        assert expected in said


def test_a_phase_that_is_there_is_neither_overwritten_nor_gone_on_with_unasked(config, run, capsys):
    before = files_of(run)
    assert grpo("train", config()) == 4
    said = capsys.readouterr().err
    assert f"{run} already holds the phase train; add --resume to go on with it, --fresh to delete it" in said
    assert "or set another run.name" in said
    assert files_of(run) == before


@pytest.mark.parametrize(("command", "start"), [("train", "--resume"), ("eval", None), ("eval", "--fresh")])
@pytest.mark.parametrize("changed", ["data.train", "data.heldout"])
def test_rows_that_changed_under_the_same_name_are_refused_by_their_source(
    config, tmp_path, capsys, command, start, changed
):
    for name, first in (("data.train", 0), ("data.heldout", 100)):
        write_additions(tmp_path / f"{name}.jsonl", range(first, first + 20))
    sources = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("data.train", "data.heldout")}
    path = config(**sources)
    assert grpo("train", path, "train.steps=1") == 0
    run = tmp_path / "runs" / "small"
    before = files_of(run)
    write_additions(tmp_path / f"{changed}.jsonl", range(50, 70))
    assert grpo(command, path, *([start] if start else [])) == 4
    said = capsys.readouterr().err
    rows = "data.train, data.validation" if changed == "data.train" else changed
    assert f"{run} holds train of other problems: the rows of {rows} have changed since; restore them" in said
    assert files_of(run) == before


@pytest.mark.parametrize("start", ["--resume", "--fresh"])
def test_a_folder_of_another_config_is_refused_by_its_fields_and_stays_as_it_is(config, run, capsys, start):
    assert grpo("eval", config()) == 0
    before = files_of(run)
    assert grpo("eval", config(**{"optim.eps": 1e-7, "train.group_size": 5}), start) == 4
    said = capsys.readouterr().err
    assert "of another config; it differs in optim.eps, train.group_size" in said
    assert "set another run.name, or `grpo recipe --fresh` to delete them" in said
    assert files_of(run) == before


def test_the_recipe_with_fresh_replaces_a_run_of_another_config(config, run):
    assert grpo("recipe", config(**{"train.group_size": 5}), "--fresh") == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["group_size"] == 5
    assert {len(read_jsonl(path)) % 5 for path in (run / "rollouts").iterdir()} == {0}


def test_a_checkpoint_of_another_model_is_refused_by_the_weight_that_differs(config, run, trained, capsys):
    changes = {"run.name": "wide", "model.architecture.intermediate_size": 96}
    assert grpo("train", config(**changes)) == 0
    wide = run.parent / "wide"
    shutil.rmtree(wide / "checkpoints")
    shutil.copytree(run / "checkpoints", wide / "checkpoints")
    assert grpo("train", config(**changes, **{"train.steps": 3}), "--resume") == 10
    said = capsys.readouterr().err
    assert "the checkpoint is of another model: model.layers.0.mlp" in said
    assert (wide / "checkpoints" / "step_000002").is_dir()


def altered(run: Path, *steps: int) -> list[Path]:
    """Checkpoints of these steps, whose state is altered."""
    paths = [run / "checkpoints" / f"step_{step:06d}" for step in steps]
    for path in paths:
        (path / "state.json").write_text("{}")
    return paths


def test_an_evaluation_names_the_damaged_checkpoint_and_the_one_that_it_uses(config, run, capsys):
    (damaged,) = altered(run, 2)
    assert grpo("eval", config()) == 0
    said = capsys.readouterr().out
    assert f"eval: {damaged}: state.json was altered after it was written" in said
    assert f"last is {run / 'checkpoints' / 'step_000001'}" in said
    assert json.loads((run / "evals" / "last.json").read_text())["step"] == 1


def test_an_evaluation_with_every_checkpoint_damaged_is_refused_and_takes_no_other_policy(config, run, capsys):
    altered(run, 1, 2)
    assert grpo("eval", config()) == 10
    captured = capsys.readouterr()
    assert captured.out.count("state.json was altered after it was written") == 2
    assert "none of 2 checkpoints is whole" in captured.err
    assert not (run / "evals").exists()


def test_an_evaluation_without_a_training_says_which_policy_it_takes(config, capsys):
    assert grpo("eval", config()) == 0
    expected = "eval: no checkpoint of a training, so last is the policy that training starts from"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("name", ["evals", "rollouts", ".lock"])
def test_a_disk_that_refuses_a_folder_or_a_lock_is_named(config, tmp_path, monkeypatch, capsys, name):
    make, open_file = Path.mkdir, os.open
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / name))

    def refusing_mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == name:
            raise read_only
        make(self, *arguments, **options)

    def refusing_open(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(name):
            raise read_only
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refusing_mkdir)
    monkeypatch.setattr(os, "open", refusing_open)
    assert grpo("recipe", config(**{"train.steps": 1})) == 9
    said = capsys.readouterr().err
    assert "Read-only file system; make room or give permission, then add --resume" in said
    assert str(tmp_path) in said


def test_a_disk_error_that_nobody_named_closer_names_the_file_itself(config, monkeypatch, capsys):
    def full(self: NativeSampler, requests: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/file")

    monkeypatch.setattr(NativeSampler, "sample", full)
    assert grpo("train", config()) == 9
    assert "grpo train: /cache/file: No space left on device; make room" in capsys.readouterr().err


def test_a_report_that_finds_no_room_is_named(run, monkeypatch, capsys):
    write = Path.write_text

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        if ".report.html" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert grpo("report", run) == 9
    said = capsys.readouterr().err
    assert f"grpo report: {run}/.report.html." in said
    assert "No space left on device; make room or give permission, and try again" in said
    assert "--resume" not in said


# --- readers and keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "report", "score"])
def test_a_command_that_keeps_nothing_promises_no_resume_when_it_is_stopped(monkeypatch, capsys, command):
    def stopped(arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, command, stopped)
    assert grpo(command, *["list_machine", "rows.jsonl"][: 2 if command == "score" else 1]) == 130
    assert capsys.readouterr().err == f"grpo {command}: stopped at once\n"


def in_a_shell(command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_check_whose_reader_has_seen_enough_ends_without_a_word(config):
    done = in_a_shell(f"{sys.executable} -m grpo.cli check {config()} | true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_run_whose_reader_is_gone_says_how_to_go_on(config):
    done = in_a_shell(f"{sys.executable} -m grpo.cli train {config()} | true")
    assert done.returncode == 130
    assert done.stderr.endswith("grpo train: nobody reads what it says; --resume goes on from the last checkpoint\n")
    assert "Traceback" not in done.stderr


# --- memory ----------------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
def test_running_out_of_memory_names_what_to_lower_and_a_resume_may_lower_it(
    config, tmp_path, monkeypatch, capsys, error
):
    sample, calls = NativeSampler.sample, []

    def sample_once(self: NativeSampler, requests: Any) -> Any:
        calls.append(requests)
        if len(calls) > 2:  # a step has two waves here
            raise error
        return sample(self, requests)

    monkeypatch.setattr(NativeSampler, "sample", sample_once)
    assert grpo("train", config(**{"sampling.max_rows": 32})) == 8
    said = capsys.readouterr().err
    assert f"out of memory ({str(error)[:60] or 'MemoryError'}" in said
    assert (
        "While sampling, lower sampling.max_rows (32); while training, lower train.tokens_per_micro_batch (256)" in said
    )
    assert "set model.activation_checkpointing=true" in said
    assert "Then add --resume" in said
    monkeypatch.undo()
    assert grpo("train", config(**{"sampling.max_rows": 16}), "--resume") == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "runs" / "small" / "metrics.jsonl")] == [1, 2]


def test_another_runtime_error_is_a_bug_of_ours_and_keeps_its_traceback(config, monkeypatch):
    def broken(self: NativeSampler, requests: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(NativeSampler, "sample", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        grpo("train", config())


# --- what the sampler cannot decode -----------------------------------------------------------------------------------


def test_a_model_with_local_attention_is_refused_before_a_folder_is_made(refused):
    architecture = {
        "model_type": "gpt_neo",
        "attention_types": [[["global", "local"], 1]],
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
    }
    said = refused(2, **{"model.architecture": architecture, "model.attention": "eager"})
    assert "model: GPTNeoForCausalLM has local attention layers, whose window the native sampler does not know" in said


def test_a_model_that_is_decoded_wrongly_is_refused_before_a_folder_is_made(refused, monkeypatch):
    logits = native.Rows.logits
    monkeypatch.setattr(native.Rows, "logits", lambda rows: logits(rows).roll(1, dims=-1))
    assert "model: LlamaForCausalLM is decoded wrongly by the native sampler (logits off by " in refused(2)


def test_a_folder_of_another_kind_of_model_is_refused_by_the_weight_it_lacks(refused, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=96, **sizes)).save_pretrained(tmp_path / "model")
    said = refused(2, model={"path": str(tmp_path / "model"), "tokenizer": "task:list_machine"})
    assert "the checkpoint does not fill LlamaForCausalLM: lm_head.weight (missing)" in said


def test_a_run_of_an_earlier_version_goes_on_where_a_field_that_it_had_not_is_at_its_default(config, run, capsys):
    assert grpo("eval", config()) == 0
    prints, own = run / "fingerprint.json", run / "config.yaml"
    fields = yaml.safe_load(own.read_text())
    del fields["loss"]["correction"], fields["optim"]["eps"]
    own.write_text(yaml.safe_dump(fields))
    earlier = json.loads(prints.read_text())
    del earlier["loss.correction"], earlier["optim.eps"]
    earlier["persona.watch"] = "of a list whose entries had a field less"
    prints.write_text(json.dumps(earlier))
    assert grpo("eval", config(), "--resume") == 0
    capsys.readouterr()
    assert grpo("eval", config(**{"optim.eps": 1e-7}), "--resume") == 4
    assert "it differs in optim.eps (" in capsys.readouterr().err
