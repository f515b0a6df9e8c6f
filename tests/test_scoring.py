"""`grpo score`: rows of a file in, the same rows with their rewards out, in order, one for one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo import scoring
from grpo.config import RewardConfig
from rewards import Pool
from rewards.list_machine import prompt_of
from tests.runs import grpo, read_jsonl

LIST_ROWS = [
    {"completion": "l34311r11343", "prompt": prompt_of("13431", "lr"), "answer": "11343", "source": "é"},
    {"completion": "l34311r11344", "prompt": prompt_of("13431", "lr"), "answer": "11343"},
    {"completion": "", "prompt": prompt_of("13431", "lr"), "answer": "11343"},
]
OWN = """
import os, time
def length(completion, problem, scale=1.0):
    if completion == "crash":
        raise KeyError("no such thing")
    if completion == "die":
        os._exit(3)
    if completion == "hang":
        time.sleep(60)
    if completion == "abstain":
        return None
    return scale * len(completion) / problem["answer"]
"""


@pytest.fixture
def file_of(tmp_path):
    """Writes rows, or lines as they stand, to a file and returns its path."""

    def write(*rows: dict[str, Any] | str) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def own_reward(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(OWN)
    return f"{tmp_path / 'mine.py'}:length"


def test_rows_come_out_on_standard_output_as_they_went_in_with_four_fields_more(file_of, capsys):
    assert grpo("score", "list_machine", file_of(*LIST_ROWS), "--workers", "1") == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [{name: row[name] for name in given} for row, given in zip(rows, LIST_ROWS, strict=True)] == LIST_ROWS
    assert [row["reward"] for row in rows] == [1.0, 0.0, 0.0]
    assert [row["status"] for row in rows] == ["scored"] * 3
    assert rows[1]["parts"] == {"correct": 0.0, "finished": 1.0}
    assert rows[2]["detail"] == "last list missing, expected 11343"
    assert "list_machine: 3 rows: 3 scored; mean reward 0.3333" in captured.err


def test_output_goes_to_a_file_where_one_is_named(file_of, tmp_path, capsys):
    assert grpo("score", "list_machine", file_of(*LIST_ROWS), "--output", tmp_path / "out.jsonl", "--workers", 0) == 0
    assert [row["reward"] for row in read_jsonl(tmp_path / "out.jsonl")] == [1.0, 0.0, 0.0]
    assert capsys.readouterr().out == ""


def test_a_row_that_cannot_be_scored_is_a_row_with_status_error_and_the_others_keep_their_places(
    file_of, own_reward, tmp_path, capsys
):
    file = file_of(
        {"completion": "four", "answer": 4},
        "{broken",
        '["a", "list"]',
        {"completion": 5, "answer": 1},
        {"answer": 1},
        "",
        {"completion": "crash", "answer": 1},
        {"completion": "die", "answer": 1},
        {"completion": "hang", "answer": 1},
        {"completion": "abstain", "answer": 1},
        {"completion": "ab", "answer": 1},
    )
    options = ("--options", '{"scale": 10}', "--timeout-seconds", "0.5", "--workers", "1")
    assert grpo("score", own_reward, file, "--output", tmp_path / "out.jsonl", *options) == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [(row.get("completion"), row["reward"], row["status"]) for row in rows] == [
        ("four", 10.0, "scored"),
        (None, None, "error"),
        (None, None, "error"),
        (5, None, "error"),
        (None, None, "error"),
        ("crash", None, "error"),
        ("die", None, "error"),
        ("hang", None, "timeout"),
        ("abstain", None, "abstained"),
        ("ab", 20.0, "scored"),
    ]
    assert "line 2 is not JSON" in rows[1]["detail"]
    assert rows[1]["line"] == 2
    assert "KeyError: 'no such thing' (line 5 of mine.py, in length)" in rows[5]["detail"]
    said = capsys.readouterr().err
    assert "10 rows: 1 abstained, 6 error, 2 scored, 1 timeout; mean reward 15.0000" in said
    assert "1 times: row 4: completion = 5: must be a string" in said


def test_an_empty_file_gives_no_rows_and_success(file_of, capsys):
    assert grpo("score", "list_machine", file_of(), "--workers", "0") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "0 rows: no rows" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["lst_machine"], 2, "'lst_machine' is not a reward; did you mean 'list_machine'?"),
        (["none.py:judge"], 2, "reward file 'none.py': no such file"),
        (["{own}s"], 2, "it defines length; did you mean 'length'?"),
        (["{own}", "--options", '{"scael": 2}'], 2, "length(completion, problem, scale=1.0)"),
        (["list_machine", "--options", "{'a'}"], 2, "must be a JSON object"),
        (["list_machine", "--options", "[1]"], 2, "must be a JSON object, such as {}"),
        (["list_machine", "--workers", "-1"], 2, "workers must be at least 0"),
        (["list_machine", "--timeout-seconds", "0"], 2, "seconds above 0"),
        (["list_machine", "--memory-limit-mb", "-1"], 2, "--memory-limit-mb = -1"),
        (["list_machine", "--output", "{file}"], 2, "is the file that is read; name another one"),
        (["list_machine", "--output", "{folder}/none/out.jsonl"], 2, "name a file in a folder that is there"),
        (["list_machine", "--output", "/dev/full"], 9, "No space left on device; make room"),
    ],
)
def test_what_is_wrong_with_the_command_is_named_and_nothing_is_written(
    file_of, own_reward, tmp_path, capsys, arguments, code, expected
):
    file = file_of(*LIST_ROWS)
    before = sorted(tmp_path.iterdir())
    reward, *options = [a.replace("{own}", own_reward).replace("{file}", str(file)) for a in arguments]
    options = [option.replace("{folder}", str(tmp_path)) for option in options]
    assert grpo("score", reward, file, *options) == code
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before
    assert read_jsonl(file) == LIST_ROWS


def test_a_file_that_cannot_be_read_is_a_data_error(tmp_path, capsys):
    assert grpo("score", "list_machine", tmp_path / "none.jsonl") == 3
    assert "cannot be read (No such file or directory); give a file of JSON lines" in capsys.readouterr().err
    assert grpo("score", "list_machine", tmp_path) == 3
    assert "cannot be read (Is a directory)" in capsys.readouterr().err


def test_rows_from_a_pipe_are_scored(file_of):
    file = file_of(*LIST_ROWS)
    command = f"{sys.executable} -m grpo.cli score list_machine <(cat {file}) --workers 0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert [json.loads(line)["reward"] for line in done.stdout.splitlines()] == [1.0, 0.0, 0.0]
    assert "3 rows: 3 scored" in done.stderr


def test_a_verifier_has_the_limits_that_training_gives_it_unless_others_are_asked_for(file_of, monkeypatch):
    made: list[dict[str, Any]] = []

    def pool(**limits: Any) -> Pool:
        made.append(limits)
        return Pool(**limits | {"workers": 0})

    monkeypatch.setattr(scoring, "Pool", pool)
    assert grpo("score", "list_machine", file_of(*LIST_ROWS)) == 0
    asked = ("--workers", 1, "--timeout-seconds", 2.5, "--memory-limit-mb", 0)
    assert grpo("score", "list_machine", file_of(*LIST_ROWS), *map(str, asked)) == 0
    training = RewardConfig(name="list_machine").model_dump(include={"workers", "timeout_seconds", "memory_limit_mb"})
    assert made == [training, {"workers": 1, "timeout_seconds": 2.5, "memory_limit_mb": 0}]


def test_a_full_disk_behind_standard_output_is_named(file_of):
    command = f"{sys.executable} -m grpo.cli score list_machine {file_of(*LIST_ROWS)} --workers 0 > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 9
    assert "No space left on device; make room or give permission, and try again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_traceback(file_of):
    file = file_of(*LIST_ROWS * 2000)
    command = f"{sys.executable} -m grpo.cli score list_machine {file} --workers 0 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reward"] == 1.0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_scoring_needs_no_torch(file_of):
    code = f"""
import sys
from grpo.cli import main
assert main(["score", "list_machine", {str(file_of(*LIST_ROWS))!r}, "--workers", "0"]) == 0
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
