"""Commands beside a run's phases that vLLM cannot serve are refused by name before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest

from grpo import checkpoint, replay
from grpo.config import dump
from tests.runs import grpo, small_run_config, small_run_file

SERVER = {"mode": "server", "urls": ["http://one:8000"], "exchange_folder": "/tmp/exchange"}
NO_MODEL = {"model.architecture": None, "model.initial_embedding_std": None, "model.path": "/no/such/model"}
VLLM: dict[str, Any] = {"sampling.engine": "vllm", **NO_MODEL}


def run_folder(folder: Path, **changes: Any) -> Path:
    """A folder as a run leaves it, without a step."""
    run = folder / "runs" / "small"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(small_run_config(folder, **VLLM | changes)), encoding="utf-8")
    return run


def said_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command that is refused says; a model that was looked for would be missed first."""
    assert grpo(*arguments) == 2
    said = capsys.readouterr().err
    assert "/no/such/model" not in said
    return said


@pytest.mark.parametrize("mode", [{}, SERVER], ids=["colocated", "server"])
def test_a_sweep_is_refused_and_says_how_to_sweep(tmp_path, capsys, mode):
    config = small_run_file(tmp_path, **VLLM | {"sampling.vllm": mode})
    said = said_of(capsys, "persona", "sweep", config, "--vectors", "v")
    assert "sampling.engine = 'vllm' and grpo persona sweep, which steers what it draws" in said
    assert (
        "sampling.engine=native 'sampling.vllm={}' behind the config and name the policy by --checkpoint PATH" in said
    )


def test_so_are_vectors_of_another_model_which_are_tried_by_steering(tmp_path, capsys):
    config = small_run_file(tmp_path, **VLLM)
    said = said_of(capsys, "persona", "screen", config, "--vectors", "v", "--data", "sft", "--allow-other-model")
    assert "sampling.engine = 'vllm' and --allow-other-model, which steers what it draws" in said


def test_time_is_not_measured_on_servers(tmp_path, capsys):
    said = said_of(capsys, "check", small_run_file(tmp_path, **VLLM | {"sampling.vllm": SERVER}), "--time")
    assert "sampling.vllm.mode = 'server' and --time, which would hand weights to servers" in said
    assert "add 'sampling.vllm={}', for an engine in this process" in said


def test_a_replay_hands_no_weights_to_servers_that_nobody_named(tmp_path, capsys):
    run = run_folder(tmp_path, **{"sampling.vllm": SERVER})
    said = said_of(capsys, "replay", run, "1", "p", "0")
    assert "sampling.vllm.urls = ['http://one:8000']: a replay hands its weights to the servers" in said
    assert "behind INDEX, as sampling.vllm.urls=[http://HOST:PORT]" in said
    said = said_of(capsys, "replay", run, "1", "p", "0", "sampling.vllm.urls=[http://two:8000]")
    assert "no step of a training is recorded there" in said  # it goes on to look for the step


def test_a_replay_is_refused_where_a_servers_own_generator_drew(tmp_path, capsys):
    run = run_folder(tmp_path, **{"sampling.vllm": SERVER | {"seeds": "engine"}})
    said = said_of(capsys, "replay", run, "1", "p", "0", "sampling.vllm.urls=[http://two:8000]")
    assert "the server's own generator drew, and nothing draws its tokens again; what was recorded is in" in said


def test_a_replay_is_refused_where_several_ranks_had_a_generator_each(tmp_path, capsys, monkeypatch):
    run = run_folder(tmp_path, **{"sampling.vllm": {"seeds": "engine"}})
    assert "no step of a training" in said_of(capsys, "replay", run, "1", "p", "0")
    step = run / "checkpoints" / "step_000001"
    step.mkdir(parents=True)
    (step / checkpoint.STATE).write_text('{"ranks": {"number": 2, "strategy": "ddp"}}', encoding="utf-8")
    monkeypatch.setattr(replay.checkpoint, "newest_whole", lambda folder: (step, []))
    said = said_of(capsys, "replay", run, "1", "p", "0")
    assert "sampling.vllm.seeds = 'engine' on 2 ranks: each drew its share from a generator of its own" in said
