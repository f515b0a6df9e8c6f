"""Every rollout of a run can be drawn again as it was recorded, and a row that was altered is told from it."""

import dataclasses
import fcntl
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo import checkpoint
from grpo.distributed.world import World
from grpo.errors import CheckpointError, ConfigError, DataError, ReplayError, RunFolderError
from grpo.folder import RunFolder
from grpo.replay import MARKER, Replayed, find, lines, replay
from grpo.tracking.console import Console
from grpo.trainer import Trainer
from grpo.wiring import looked_at
from tests.runs import grpo, read_jsonl, small_run_file

ADAPTIVE: dict[str, Any] = {
    "temperature": {
        "kind": "adaptive",
        "grid": [0.8, 1.2],
        "window_steps": 4,
        "cooldown_steps": 2,
        "guard": 1.0,  # every temperature is admissible, so a decision changes what is sampled afterwards
        "guard_kind": "absolute",
        "max_standard_error": 1.0,
        "rollouts_per_problem": 2,
    },
    "reward.function": "judge_from_100",
    "reward.success_threshold": 101.0,
    "sft.max_steps": 5,
    "train.steps": 10,  # the temperature is decided after the eighth
    "checkpoint.keep_last": 4,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run with a cold start, refill waves, two stages and a temperature that rises on the way."""
    config = small_run_file(tmp_path_factory.mktemp("finished"), **ADAPTIVE)
    assert grpo("recipe", config) == 0
    return config.parent / "runs" / "small"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the run, to be damaged."""
    shutil.copytree(finished, tmp_path / "small")
    return tmp_path / "small"


def rows_of(run: Path, step: int) -> list[dict[str, Any]]:
    return read_jsonl(rollout_file(run, step))


def rollout_file(run: Path, step: int) -> Path:
    return run / "rollouts" / f"step_{step:06d}.jsonl"


def replayed(run: Path, step: int, problem: str, attempt: int, *, said: list[str] | None = None) -> Replayed:
    """What the command does, in this process and with `said` for standard error."""
    folder, say = RunFolder(run), (said if said is not None else []).append
    config = folder.read_config()
    asked = find(folder, step=step, problem=problem, attempt=attempt, say=say)
    console = Console(num_steps=config.train.steps)
    console.be_quiet()
    with looked_at(config, run, world=World.alone(), console=console) as opened:
        return replay(opened, asked, say=say)


def altered(run: Path, step: int, number: int, **changes: Any) -> dict[str, Any]:
    """Change one recorded row; returns it as it was."""
    rows = rows_of(run, step)
    before = dict(rows[number])
    rows[number] |= changes
    rollout_file(run, step).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return before


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes, and every folder, with the time of the last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def drawn_groups(monkeypatch) -> list[Any]:
    """The groups of each replayed step, as the trainer drew them."""
    groups: list[Any] = []
    draw = Trainer.draw

    def kept(self: Trainer) -> Any:
        groups.append(draw(self))
        return groups[-1]

    monkeypatch.setattr(Trainer, "draw", kept)
    return groups


# --- the same ---------------------------------------------------------------------------------------------------------


def test_the_run_of_these_tests_has_refill_waves_two_stages_and_two_temperatures(finished):
    rows = [row for step in range(1, 11) for row in rows_of(finished, step)]
    assert len({row["stage"] for row in rows}) == 2
    assert {row["temperature"] for row in rows} == {1.0, 1.2}
    assert max(row["sampling/waves"] for row in read_jsonl(finished / "metrics.jsonl")) > 1


@pytest.mark.parametrize("step", range(1, 11))
def test_every_rollout_of_a_step_is_drawn_again_as_it_was_recorded(finished, drawn_groups, step):
    rows = rows_of(finished, step)
    row = random.Random(step).choice(rows)
    found = replayed(finished, step, row["problem_id"], row["attempt"])
    assert found.differences == ()
    assert found.logprob_gap == 0.0
    ((*groups,),) = drawn_groups
    drawn = [
        (r.problem_id, r.attempt, list(r.token_ids)[-r.num_actions :], list(r.logprobs)[-r.num_actions :], w.value)
        for group in groups
        for r, w in zip(group.rollouts, group.rewards, strict=True)
    ]
    fields = ("problem_id", "attempt", "token_ids", "logprobs", "reward")
    assert drawn == [tuple(row[name] for name in fields) for row in rows]


def test_a_checkpoint_before_the_step_leaves_no_step_to_do_again_and_without_one_they_are_done(copied):
    row = rows_of(copied, 7)[3]
    near = replayed(copied, 7, row["problem_id"], row["attempt"])
    assert (near.source.checkpoint, near.source.num_redone_steps) == (copied / "checkpoints" / "step_000006", 0)
    shutil.rmtree(copied / "checkpoints" / "step_000006")
    said: list[str] = []
    farther = replayed(copied, 7, row["problem_id"], row["attempt"], said=said)
    assert farther.source.checkpoint == copied / "checkpoints" / "step_000004"
    assert said == ["doing step 5 again (1 of 2)", "doing step 6 again (2 of 2)", "drawing step 7"]
    assert farther.row == near.row


def test_without_a_checkpoint_every_step_is_done_again_from_the_cold_start(copied):
    for path in (copied / "checkpoints").glob("step_*"):
        shutil.rmtree(path)
    row = rows_of(copied, 10)[-1]
    found = replayed(copied, 10, row["problem_id"], row["attempt"])
    assert (found.source.checkpoint, found.source.num_redone_steps) == (None, 9)
    assert found.row["temperature"] > rows_of(copied, 8)[0]["temperature"]
    assert (found.differences, found.logprob_gap) == ((), 0.0)


def test_torn_checkpoints_are_told_of_and_passed_over(copied):
    for name in ("step_000004", "step_000006"):
        (copied / "checkpoints" / name / checkpoint.WEIGHTS).write_bytes(b"torn")
    row = rows_of(copied, 7)[0]
    said: list[str] = []
    found = replayed(copied, 7, row["problem_id"], row["attempt"], said=said)
    assert [line.split(":")[0] for line in said[:2]] == ["passed over", "passed over"]
    assert (found.source.num_redone_steps, found.differences) == (6, ())


def test_a_run_without_cold_start_and_profile_is_replayed_from_the_weights_of_its_config(tmp_path):
    loop = {"sft": None, "curriculum": {"kind": "uniform", "max_refill_waves": 1}, "train.steps": 2}
    assert grpo("train", small_run_file(tmp_path, **loop, **{"checkpoint.keep_last": 1})) == 0
    run = tmp_path / "runs" / "small"
    row = rows_of(run, 2)[5]
    found = replayed(run, 2, row["problem_id"], row["attempt"])
    assert (found.source.num_redone_steps, found.differences, found.logprob_gap) == (1, (), 0.0)


def test_the_ranks_of_the_run_are_told_of_where_they_were_several(copied):
    path = copied / "checkpoints" / "step_000006"
    weights, optimizer, state = checkpoint.load(path, device=torch.device("cpu"))
    checkpoint.save(
        path, weights=weights, optimizer=optimizer, state=state | {"ranks": {"number": 4, "strategy": "zero2"}}
    )
    row = rows_of(copied, 7)[0]
    found = replayed(copied, 7, row["problem_id"], row["attempt"])
    assert found.differences == ()
    assert any("4 ranks (zero2)" in line and "round differently" in line for line in lines(found))


@contextmanager
def in_use(run: Path) -> Iterator[None]:
    """The run's lock is held, as it is by a process that goes on with it."""
    with (run / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_nothing_in_the_folder_changes_though_steps_are_done_again_and_the_run_is_in_use(copied, capsys):
    shutil.rmtree(copied / "checkpoints" / "step_000006")
    row = rows_of(copied, 8)[2]
    before = files_of(copied)
    with in_use(copied):
        assert grpo("replay", copied, "8", row["problem_id"][:10], str(row["attempt"])) == 0
    assert files_of(copied) == before
    output = capsys.readouterr()
    assert "the same, token for token; log-probs differ by at most 0 nats" in output.out
    assert "reward the same" in output.out
    assert "doing step 7 again (3 of 3)" in output.err


def test_the_prompt_the_completion_and_every_token_are_printed_without_what_a_terminal_obeys(copied):
    row = rows_of(copied, 1)[0]
    found = replayed(copied, 1, row["problem_id"], row["attempt"])
    printed = list(lines(found))
    assert f"  {row['prompt']}" in printed
    assert f"  {row['completion']}" in printed
    tokens = [line.split()[:3] for line in printed[-2 - row["num_tokens"] : -2]]
    pairs = enumerate(zip(row["token_ids"], row["logprobs"], strict=True), start=1)
    assert tokens == [[str(n), str(token), f"{logprob:.6f}"] for n, (token, logprob) in pairs]
    hostile = dataclasses.replace(found, prompt="\x1b[2Jgone\nnext")
    assert list(lines(hostile))[4:6] == ["  \\x1b[2Jgone", "  next"]


# --- what differs -----------------------------------------------------------------------------------------------------


def test_a_token_that_differs_is_shown_with_its_place_and_both_log_probs_and_exits_11(copied, capsys):
    row = rows_of(copied, 5)[1]
    ids, logprobs = list(row["token_ids"]), list(row["logprobs"])
    ids[2], logprobs[2] = (ids[2] + 1) % 90, -1.25
    altered(copied, 5, 1, token_ids=ids, logprobs=logprobs)
    assert grpo("replay", copied, "5", row["problem_id"], str(row["attempt"])) == ReplayError.exit_code == 11
    output = capsys.readouterr()
    *_, verdict, recorded, drawn, reward = output.out.splitlines()
    assert verdict.endswith("token 3 differs; before it log-probs differ by at most 0 nats")
    assert recorded.split()[:3] == ["recorded", str(ids[2]), "-1.250000"]
    assert drawn.split()[:4] == ["drawn", "again", str(row["token_ids"][2]), f"{row['logprobs'][2]:.6f}"]
    assert reward == "  reward the same"
    assert f"  {row['completion'][:2]}{MARKER}{row['completion'][2:]}" in output.out
    assert output.err.splitlines()[-1].endswith("it differs in token 3")


def test_a_rollout_that_was_recorded_shorter_ends_where_it_differs(copied):
    row = rows_of(copied, 5)[0]
    altered(copied, 5, 0, token_ids=row["token_ids"][:4], logprobs=row["logprobs"][:4])
    found = replayed(copied, 5, row["problem_id"], row["attempt"])
    assert (found.first_difference, found.differences) == (4, ("token 5",))
    assert "  recorded     no token: it ended after 4" in list(lines(found))


@pytest.mark.parametrize(
    ("field", "value"), [("reward", 7.5), ("status", "timeout"), ("parts", {"format": 1.0}), ("temperature", 3.0)]
)
def test_a_field_that_differs_is_shown_as_it_was_recorded_and_as_it_was_drawn_again(copied, field, value):
    row = altered(copied, 5, 2, **{field: value})
    found = replayed(copied, 5, row["problem_id"], row["attempt"])
    assert (found.first_difference, found.differences) == (None, (field,))
    assert f"  {field}: recorded {value}, drawn again {row[field]}" in list(lines(found))
    with pytest.raises(ReplayError, match=f"differs in {field}"):
        found.check()


def test_a_log_prob_that_differs_is_measured_and_no_error(copied):
    row = rows_of(copied, 5)[2]
    altered(copied, 5, 2, logprobs=[row["logprobs"][0] + 0.125, *row["logprobs"][1:]])
    found = replayed(copied, 5, row["problem_id"], row["attempt"])
    assert found.logprob_gap == pytest.approx(0.125)
    found.check()


def test_a_recorded_problem_that_the_step_does_not_draw_again_is_an_error_that_names_those_it_does(copied):
    row = altered(copied, 5, 0, problem_id="elsewhere")
    with pytest.raises(ReplayError, match=f"no rollout 0 of problem elsewhere; its problems are {row['problem_id']}"):
        replayed(copied, 5, "elsewhere", 0)


# --- nothing to compare with, and what there is not -------------------------------------------------------------------


def test_without_a_recorded_row_the_rollout_is_drawn_and_there_is_nothing_to_compare_with(copied, capsys):
    row = rows_of(copied, 5)[1]
    rollout_file(copied, 5).unlink()
    assert grpo("replay", copied, "5", row["problem_id"][:10], str(row["attempt"])) == 0
    output = capsys.readouterr().out
    assert f"  {row['completion']}" in output
    assert "nothing to compare with" in output.splitlines()[-1]
    assert "tracking.rollout_files" in output.splitlines()[-1]


def test_without_recorded_rows_what_the_step_has_not_is_refused_all_the_same(copied):
    row = rows_of(copied, 5)[1]
    rollout_file(copied, 5).unlink()
    with pytest.raises(ConfigError, match=r"data\.train has no such problem"):
        replayed(copied, 5, "zz", 0)
    with pytest.raises(ConfigError, match="INDEX 99: step 5 has rollouts 0 to"):
        replayed(copied, 5, row["problem_id"], 99)


def test_a_folder_that_is_none_a_run_without_steps_and_a_step_beyond_it_are_refused(copied, tmp_path, capsys):
    assert grpo("replay", tmp_path, "1", "a", "0") == ConfigError.exit_code
    assert "no folder of a run" in capsys.readouterr().err
    for step in (0, 11):
        with pytest.raises(ConfigError, match=f"STEP {step}: .* has done steps 1 to 10"):
            replayed(copied, step, "a", 0)
    (tmp_path / "begun").mkdir()
    shutil.copy(copied / "config.yaml", tmp_path / "begun")
    with pytest.raises(ConfigError, match="no step of a training is recorded"):
        replayed(tmp_path / "begun", 1, "a", 0)


def test_a_problem_that_the_step_has_not_and_a_beginning_of_several_are_refused_with_the_ids_there_are(copied):
    ids = list(dict.fromkeys(row["problem_id"] for row in rows_of(copied, 5)))
    with pytest.raises(ConfigError, match=f"PROBLEM zz: step 5 has no such problem; it has {ids[0]}, {ids[1]}, "):
        replayed(copied, 5, "zz", 0)
    with pytest.raises(ConfigError, match=f"PROBLEM : begins {len(ids)} problems of step 5: {ids[0]}, "):
        replayed(copied, 5, "", 0)
    with pytest.raises(ConfigError, match=f"INDEX -1: step 5 has rollouts 0 to .* of problem {ids[0]}"):
        replayed(copied, 5, ids[0], -1)


def test_a_row_without_what_is_compared_and_a_torn_line_are_named(copied):
    said: list[str] = []
    path = rollout_file(copied, 5)
    row = rows_of(copied, 5)[0]
    path.write_text(path.read_text() + '{"step": 5, "probl')
    assert find(RunFolder(copied), step=5, problem=row["problem_id"], attempt=0, say=said.append).recorded == row
    assert "unreadable line" in said[0]
    path.write_text('{"step": 5}\n')
    with pytest.raises(DataError, match="a row has no temperature"):
        find(RunFolder(copied), step=5, problem="a", attempt=0, say=said.append)


def test_a_run_whose_checkpoints_are_all_torn_the_cold_start_too_has_no_policy_to_draw_with(copied):
    for path in (copied / "checkpoints").iterdir():
        (path / checkpoint.WEIGHTS).write_bytes(b"torn")
    row = rows_of(copied, 7)[0]
    with pytest.raises(CheckpointError, match=r"cold_start: policy\.safetensors was altered"):
        replayed(copied, 7, row["problem_id"], row["attempt"])


def test_a_folder_whose_config_was_changed_is_refused_and_what_a_resume_may_change_is_not(copied, capsys):
    row = rows_of(copied, 7)[0]
    wanted = ("7", row["problem_id"], str(row["attempt"]))
    assert grpo("replay", copied, *wanted, "optim.learning_rate=1.0") == RunFolderError.exit_code
    assert "it differs in optim.learning_rate" in capsys.readouterr().err
    assert grpo("replay", copied, *wanted, "run.threads=1") == 0


def test_a_launcher_of_several_processes_is_refused(copied, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert grpo("replay", copied, "1", "a", "0") == ConfigError.exit_code
    assert "replay is for one process" in capsys.readouterr().err
