"""Projections of conversations, and data sets that are screened by them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.config import Source
from grpo.errors import DataError, Interrupted
from grpo.persona.conversations import read_conversations, text_of
from grpo.persona.means import NUM_RANDOM
from grpo.persona_commands.projecting import Direction, project
from grpo.persona_commands.screen import ScreenedRow, Screening, flagged_rows, screen, summary_of
from rewards import RewardSpec
from tests.launch import launched
from tests.runs import grpo, read_jsonl
from tests.test_persona_sweep import command, run_of, vectors_of, written

REWARD = RewardSpec(file=str(Path(__file__).with_name("persona_scorer.py")), function="says_a")
ANSWERS = ("aaaa", "bbbb", "abab", "cccc", "aaab", "dddd")


def rows_file(folder: Path, answers: tuple[str, ...] = ANSWERS) -> Path:
    path = folder / "rows.jsonl"
    rows = [
        {
            "messages": [{"role": "user", "content": f">l?>1343{n}"}, {"role": "assistant", "content": answer}],
            "source": n,
        }
        for n, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conversations_of(path: Path, completion: str | None = None) -> list[Any]:
    return read_conversations(
        Source(path=str(path), answer_column=None), field="--data", completion=completion, reward=REWARD, seed=0
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_last_turn_of_the_assistant_is_the_answer_and_a_template_makes_any_other(tmp_path):
    (first, *_) = conversations_of(rows_file(tmp_path))
    assert (first.answer, first.problem.prompt) == ("aaaa", ">l?>13430")
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "why?", "reply": "because"}\n', encoding="utf-8")
    (row,) = conversations_of(plain, "{reply}!")
    assert row.answer == "because!"
    assert conversations_of(plain)[0].answer is None


def test_a_row_with_an_answer_alone_is_refused_by_its_number(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "hi"}]}\n', encoding="utf-8")
    with pytest.raises(DataError, match="--data, row 1: an answer without a question"):
        conversations_of(path)


# --- projections ------------------------------------------------------------------------------------------------------


def test_a_projection_is_that_of_a_computation_by_hand(tmp_path):
    with run_of(tmp_path) as run:
        conversation = conversations_of(rows_file(tmp_path))[0]
        text = text_of(run.chat, conversation)
        vector = torch.randn(run.policy.hidden_size)
        (found,) = project(run, [text], Direction.of(vector, block=0), parts=("response", "last_prompt"))
        ids = torch.tensor([text.token_ids])
        states = run.policy.model(ids, output_hidden_states=True).hidden_states[1][0].detach()  # of block 0
    assert len(text.token_ids) - text.num_prompt == 5  # four letters and the end token
    unit = vector / vector.norm()
    assert found["response"].own == pytest.approx(float(states[text.num_prompt :].mean(0) @ unit), abs=1e-5)
    assert found["last_prompt"].own == pytest.approx(float(states[text.num_prompt - 1] @ unit), abs=1e-5)
    assert len(found["response"].random) == NUM_RANDOM


def test_the_command_projects_every_row_of_a_file(tmp_path, capsys):
    path = written(tmp_path)
    file = rows_file(tmp_path)
    with file.open("a", encoding="utf-8") as more:
        more.write('{"messages": [{"role": "user", "content": ">l?>13431"}]}\n')
    assert grpo(*command(tmp_path, str(file), "--block", "1", action="project")) == 0
    rows = read_jsonl(path.parent / "says_a_on_rows.jsonl")
    assert [row["row"] for row in rows] == list(range(1, 8))
    assert rows[6]["response"] is None
    assert set(rows[0]["response"]) == {"projection", "random_mean", "random_std"}
    assert "7 rows at block 1" in capsys.readouterr().out


def test_an_output_that_is_the_input_is_refused(tmp_path, capsys):
    written(tmp_path)
    file = rows_file(tmp_path)
    assert grpo(*command(tmp_path, str(file), "--output", str(file), action="project")) == 2
    assert "is the file that is read" in capsys.readouterr().err


# --- screening --------------------------------------------------------------------------------------------------------


def screened(number: int, difference: float, *, random: tuple[float, ...], score: float) -> ScreenedRow:
    return ScreenedRow(number=number, answer=difference, own=0.0, random=random, score=score)


def test_the_rows_with_the_largest_differences_are_flagged_and_random_directions_stand_beside_them():
    rows = [
        screened(1, 0.5, random=(3.0, 0.0), score=0.0),
        screened(2, 2.0, random=(0.0, 1.0), score=1.0),
        screened(3, -1.0, random=(1.0, 3.0), score=0.2),
        screened(4, 1.0, random=(2.0, 2.0), score=0.8),
    ]
    flagged = flagged_rows(rows, flag_fraction=0.5)
    assert [row.number for row in flagged] == [2, 4]
    said = " ".join(summary_of(rows, flagged))
    assert "0.900 of the 2 flagged rows, 0.100 of the rest" in said
    # The first random direction flags rows 1 and 4, the second rows 3 and 4.
    assert "that a random direction flags 0.450 (at most 0.500)" in said


def test_a_difference_is_the_answers_projection_less_that_of_the_policys_own_answers(tmp_path):
    screening = Screening(block=1, over="response", flag_fraction=0.3, own_rollouts=2, scores=True)
    with run_of(tmp_path) as run:
        conversations = conversations_of(rows_file(tmp_path))
        vectors = vectors_of(run)
        rows = screen(run, vectors, conversations, screening, keep_in=tmp_path / "s.jsonl")
        direction = Direction.of(vectors.of["response"][1], block=1)
        answers = project(run, [text_of(run.chat, c) for c in conversations], direction, parts=("response",))
    assert [row.answer for row in rows] == pytest.approx([of["response"].own for of in answers], abs=1e-5)
    assert [row.score for row in rows] == [1.0, 0.0, 0.5, 0.0, 0.75, 0.0]
    assert all(row.difference == row.answer - row.own for row in rows)
    assert len({row.own for row in rows}) > 1


def test_a_stopped_screening_goes_on_with_the_rows_that_are_missing(tmp_path):
    screening = Screening(block=1, over="response", flag_fraction=0.3, own_rollouts=64, scores=False)
    kept = tmp_path / "s.jsonl"
    with run_of(tmp_path) as run:
        conversations, vectors = conversations_of(rows_file(tmp_path)), vectors_of(run)
        asked = iter([False, True])
        with pytest.raises(Interrupted, match="give the same command again"):
            screen(replace(run, should_stop=lambda: next(asked)), vectors, conversations, screening, keep_in=kept)
        assert [row["row"] for row in read_jsonl(kept)[1:]] == [1, 2]  # a wave of 128 rollouts
        found = screen(run, vectors, conversations, screening, keep_in=kept)
        expected = screen(run, vectors, conversations, screening, keep_in=tmp_path / "other.jsonl")
    assert [row["row"] for row in read_jsonl(kept)[1:]] == list(range(1, 7))
    assert [row.difference for row in found] == pytest.approx([row.difference for row in expected], abs=1e-5)


def test_the_command_writes_a_filtered_set_and_the_flagged_rows(tmp_path, capsys):
    path = written(tmp_path)
    file = rows_file(tmp_path)
    more = ("--data", str(file), "--flag-fraction", "0.34", "--own-rollouts", "2", "--score")
    assert grpo(*command(tmp_path, *more, action="screen")) == 0
    kept, flagged = (read_jsonl(path.parent / f"says_a_on_rows_{name}.jsonl") for name in ("kept", "flagged"))
    assert (len(kept), len(flagged)) == (4, 2)
    originals = read_jsonl(file)
    assert all(row in originals for row in (*kept, *flagged))
    assert "that a random direction flags" in capsys.readouterr().out
    assert json.loads((path.parent / "says_a_on_rows_screen.json").read_text())["num_rows"] == 6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--flag-fraction", "1.0"), "--flag-fraction = 1: must be above 0 and below 1"),
        (("--own-rollouts", "0"), "--own-rollouts = 0"),
        (("--block", "7"), "block 7"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, more, said):
    written(tmp_path)
    assert grpo(*command(tmp_path, "--data", str(rows_file(tmp_path)), *more, action="screen")) == 2
    assert said in capsys.readouterr().err


def test_rows_without_an_answer_are_refused_with_the_remedy(tmp_path, capsys):
    written(tmp_path)
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": ">l?>13431", "reply": "l34311"}\n', encoding="utf-8")
    assert grpo(*command(tmp_path, "--data", str(plain), action="screen")) == 2
    assert "row 1: has no answer; end its messages" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_screen_as_one_does(tmp_path):
    path = written(tmp_path)
    arguments = command(tmp_path, "--data", str(rows_file(tmp_path)), "--own-rollouts", "2", action="screen")
    assert grpo(*arguments) == 0
    rows_path = path.parent / "says_a_on_rows_screen.jsonl"
    alone = read_jsonl(rows_path)[1:]
    rows_path.unlink()
    launched("-m", "grpo.cli", *arguments, ranks=2)
    both = read_jsonl(rows_path)[1:]
    assert [row["difference"] for row in both] == pytest.approx([row["difference"] for row in alone], abs=1e-4)
