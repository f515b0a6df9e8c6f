"""Rollouts on disk: an index of all of them, filters, and rows that are read one at a time; and who moved where."""

import json
import random
import time
from pathlib import Path

import pytest

from grpo.chat import Chat
from grpo.config import ChatConfig
from grpo.manifest import MANIFEST_FILE, write_manifest
from grpo.model import load_tokenizer
from grpo.tracking import rollout_index
from grpo.tracking.config_changes import config_rows
from grpo.tracking.recorded_run import read_run
from grpo.tracking.rollout_index import MAX_TOKENS, RolloutIndex, Wanted, choices, find, read_row
from grpo.tracking.tier_moves import tier_moves
from tests.conftest import tiny_config
from tests.recorded import HOSTILE, rollout_row, write_jsonl
from tests.runs import grpo, small_run_file
from tests.tier_manifest import profiled


def row(step: int, attempt: int, **changes):
    return rollout_row(step, attempt, random.Random(attempt)) | changes


@pytest.fixture
def folder(tmp_path) -> Path:
    first = [
        row(1, 0, reward=1.0, status="scored", tier="moderate", num_tokens=10, completion="The answer is 42."),
        row(1, 1, reward=0.0, status="scored", tier="moderate", num_tokens=20, completion="No idea."),
        row(1, 2, reward=None, status="timeout", tier="extreme", num_tokens=30, completion=HOSTILE),
    ]
    second = [row(2, 0, reward=0.5, status="scored", tier="extreme", num_tokens=40, answer="42!", completion="x")]
    write_jsonl(tmp_path / "step_000001.jsonl", first)
    write_jsonl(tmp_path / "step_000002.jsonl", second)
    return tmp_path


def indexed(folder: Path) -> RolloutIndex:
    index = RolloutIndex(folder)
    index.refresh()
    return index


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [10, 20, 30, 40]),
        ({"step": "1"}, [10, 20, 30]),
        ({"tier": "extreme"}, [30, 40]),
        ({"status": "timeout"}, [30]),
        ({"least": 0.5}, [10, 40]),
        ({"least": 0.0, "most": 0.5}, [20, 40]),
        ({"shortest": 20, "longest": 30}, [20, 30]),
        ({"text": "THE ANSWER"}, [10]),
        ({"text": "42!"}, [40]),
        ({"text": "window.hacked"}, [30]),
        ({"text": "42", "step": "2"}, [40]),
        ({"text": "token_ids"}, []),
    ],
)
def test_each_filter_keeps_what_fits(folder, wanted, expected):
    found = find(indexed(folder).entries, Wanted(**wanted))
    assert [entry.num_tokens for entry in found.entries] == expected


def test_a_search_reads_the_latest_rows_and_counts_those_it_left(folder, monkeypatch):
    monkeypatch.setattr(rollout_index, "MAX_SEARCHED", 1)
    found = find(indexed(folder).entries, Wanted(text="42"))
    assert ([entry.step for entry in found.entries], found.num_unread) == ([2], 3)


def test_an_entry_leads_to_its_whole_row_and_no_other(folder):
    entries = indexed(folder).entries
    assert len({entry.key for entry in entries}) == 4
    assert [read_row(entry)["num_tokens"] for entry in entries] == [10, 20, 30, 40]
    assert read_row(entries[2])["completion"] == HOSTILE.replace("\ud800", "?")
    assert read_row(entries[0])["token_ids"] == [1, 2, 3]


def test_a_completion_that_holds_the_bytes_of_the_index_does_not_confuse_it(tmp_path):
    text = '", "token_ids": [1], "logprobs": []}\n{"step": 9'
    write_jsonl(tmp_path / "step_000001.jsonl", [row(1, 0, completion=text, parts={"x": 1.0, "token_ids": 2.0})])
    (entry,) = indexed(tmp_path).entries
    assert (entry.step, read_row(entry)["completion"]) == (1, text)


def test_only_files_that_are_new_or_changed_are_read_again(folder, monkeypatch):
    index, read = indexed(folder), []
    monkeypatch.setattr(index, "_read", lambda path: read.append(path.name) or [])
    index.refresh()
    assert read == []
    write_jsonl(folder / "step_000003.jsonl", [row(3, 0)])
    write_jsonl(folder / "step_000002.jsonl", [row(2, 0), row(2, 1)])
    (folder / "step_000001.jsonl").unlink()
    index.refresh()
    assert read == ["step_000002.jsonl", "step_000003.jsonl"]
    assert len(index.by_file) == 2


def test_a_file_that_goes_while_the_folder_is_looked_at_is_left_out(folder, monkeypatch):
    listed = sorted(folder.glob("*.jsonl"))
    listed[0].unlink()
    monkeypatch.setattr(Path, "glob", lambda self, pattern: listed)
    assert [entry.step for entry in indexed(folder).entries] == [2]


def test_the_choices_are_what_occurs_with_numbers_in_order(folder):
    write_jsonl(folder / "step_000010.jsonl", [row(10, 0, tier=None)])
    found = choices(indexed(folder).entries)
    assert found["step"] == [1, 2, 10]
    assert set(found["status"]) >= {"scored", "timeout"}


@pytest.mark.parametrize(
    ("ids", "logprobs", "expected"),
    [
        ([5] * (MAX_TOKENS + 9), [-1.0] * (MAX_TOKENS + 9), MAX_TOKENS),
        ([5, 6], [-1.0], None),
        ("56", [-1.0], None),
        ([5, "<b>"], [-1.0, -1.0], None),
        ([5], [float("nan")], None),
    ],
)
def test_tokens_are_taken_where_ids_and_logprobs_are_numbers_and_at_most_so_many(tmp_path, ids, logprobs, expected):
    write_jsonl(tmp_path / "step_000001.jsonl", [row(1, 0, token_ids=ids, logprobs=logprobs)])
    (entry,) = indexed(tmp_path).entries
    assert len(read_row(entry).get("token_ids", [])) == (expected or 0)


def test_a_hundred_thousand_rollouts_are_indexed_and_filtered_in_seconds(tmp_path):
    line = json.dumps(row(1, 0, reward=1.0, token_ids=[7] * 30, logprobs=[-0.123456789] * 30)) + "\n"
    for step in range(100):
        (tmp_path / f"step_{step:06d}.jsonl").write_text(line * 1000)
    begun = time.process_time()
    index = indexed(tmp_path)
    assert len(find(index.entries, Wanted(least=1.0)).entries) == 100_000
    assert time.process_time() - begun < 30


def test_the_texts_of_tokens_keep_their_spaces():
    tokenizer = load_tokenizer(tiny_config("llama"))
    chat = Chat(tokenizer, ChatConfig(style="plain"), end_token_ids=(tokenizer.eos_token_id,))
    texts = chat.token_texts()
    assert len(texts) == len(tokenizer)
    assert "".join(texts[token] for token in tokenizer.encode("> 12a", add_special_tokens=False)) == "> 12a"


def test_the_tokens_of_a_real_run_read_as_its_completions(tmp_path):
    alone = {"sft": None, "curriculum": {"kind": "uniform"}, "train.steps": 2, "evaluation.every_steps": 0}
    assert grpo("train", small_run_file(tmp_path, **alone)) == 0
    run = tmp_path / "runs" / "small"
    texts = json.loads((run / "vocabulary.json").read_text())
    rows = [read_row(entry) for entry in indexed(run / "rollouts").entries]
    assert len(rows) >= 2 * 4 * 4
    for found in rows:
        read = "".join(texts[token] for token in found["token_ids"])
        assert read.removesuffix("<end>") == found["completion"]


def test_a_run_that_keeps_no_rollouts_writes_no_vocabulary(tmp_path):
    alone = {"sft": None, "curriculum": {"kind": "uniform"}, "train.steps": 1, "evaluation.every_steps": 0}
    assert grpo("train", small_run_file(tmp_path, **alone, **{"tracking.rollout_files": 0})) == 0
    assert not (tmp_path / "runs" / "small" / "vocabulary.json").exists()


# --- who moved where -------------------------------------------------------------------------------------------------


def labelled(path: Path, tiers: dict[str, int]) -> None:
    path.mkdir(parents=True)
    write_manifest(path / MANIFEST_FILE, profiled(tiers))


@pytest.fixture
def moving(tmp_path) -> Path:
    """Problems extreme-0 to -2 and moderate-0: a profile, another one at step 5, and practice before and after."""
    (tmp_path / "config.yaml").write_text("run: {name: moving}")
    labelled(tmp_path / "profile", {"moderate": 1, "extreme": 3})
    labelled(tmp_path / "profile" / "step_000005", {"moderate": 1, "extreme": 3})
    practised = [
        (4, "extreme-0", "trivial"),
        (6, "extreme-1", "moderate"),
        (8, "extreme-1", "trivial"),
        (6, "moderate-0", "extreme"),
    ]
    for index, (step, problem, tier) in enumerate(practised):
        write_jsonl(tmp_path / "rollouts" / f"{index}.jsonl", [row(step, 0, problem_id=problem, tier=tier)] * 2)
    return tmp_path


def test_moves_are_counted_from_the_profile_to_the_last_practice_and_step_by_step(moving):
    moves = tier_moves(read_run(moving), indexed(moving / "rollouts").entries)
    assert moves["labellings"] == ["profile", "after step 5", "in practice"]
    assert moves["tiers"] == ["trivial", "moderate", "extreme"]
    whole = moves["tables"][0]
    # extreme-0 was trivial in practice at step 4, before it was labelled extreme again: that does not count.
    assert whole["counts"] == [[0, 0, 0], [0, 0, 1], [1, 0, 2]]
    assert (whole["num_moved"], whole["num_problems"]) == (2, 4)
    assert [(table["from"], table["to"], table["num_moved"]) for table in moves["tables"]] == [
        ("profile", "in practice", 2),
        ("profile", "after step 5", 0),
        ("after step 5", "in practice", 2),
    ]


def test_the_problems_that_moved_are_listed_the_harder_ones_first(moving):
    moves = tier_moves(read_run(moving), indexed(moving / "rollouts").entries)
    assert moves["problems"] == [
        ["moderate-0", ["moderate", "moderate", "extreme"]],
        ["extreme-1", ["extreme", "extreme", "trivial"]],
    ]


def test_one_labelling_alone_is_no_move(moving):
    assert tier_moves(read_run(moving), []) is not None
    for path in (moving / "profile" / "step_000005").iterdir():
        path.unlink()
    assert tier_moves(read_run(moving), []) is None


# --- the config against its defaults ---------------------------------------------------------------------------------


def test_a_field_is_changed_where_it_is_not_its_default():
    config = {
        "run": {"name": "x", "folder": "runs"},
        "train": {"steps": 5, "group_size": 8},
        "sft": {"warmup_steps": 7},
        "optim": {"betas": [0.9, 0.99]},
        "of_another_version": {"field": 1},
    }
    rows = {row["name"]: (row["value"], row["default"], row["is_changed"]) for row in config_rows(config)}
    assert rows == {
        "run.name": ("x", None, True),
        "run.folder": ("runs", "runs", False),
        "train.steps": ("5", None, True),
        "train.group_size": ("8", "8", False),
        "sft.warmup_steps": ("7", "0", True),
        "optim.betas": ("[0.9, 0.99]", "[0.9, 0.98]", True),
        "of_another_version.field": ("1", None, True),
    }
