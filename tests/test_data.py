"""Rows of any source become the same problems, counted, named by content, and split without overlap."""

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pytest

from grpo.config import DataConfig, Source
from grpo.data import ProblemSets, load_problem_sets, load_problems, trace_text
from grpo.errors import DataError
from grpo.tracking.console import Console
from grpo.types import Problem
from grpo.wiring import load_traces
from rewards import RewardSpec
from tests.runs import small_run_config

GSM8K = Path(__file__).with_name("data") / "gsm8k_rows.jsonl"
GSM8K_SOURCE = {
    "path": str(GSM8K),
    "prompt_column": "question",
    "answer_pattern": r"(?P<solution>.*)\n#### (?P<answer>.+)",
    "drop_pattern": r"<<[^>]*>>|,(?=\d{3})",
}
REWARD = RewardSpec("list_machine")
ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n), "level": n % 3} for n in range(20)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """datasets keeps what it read; here it keeps it in the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


GOLD = {"answer_column": "gold"}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems_of(source: Mapping[str, Any], *, dropped: dict[str, int] | None = None, seed: int = 0) -> list[Problem]:
    counts = {} if dropped is None else dropped
    source = Source.model_validate(source)
    return load_problems(source, field="data.train", reward=REWARD, seed=seed, dropped=counts)


def sets_of(train: Mapping[str, Any], *, seed: int = 0, **fields: Any) -> ProblemSets:
    config = DataConfig.model_validate({"train": train, **fields})
    return load_problem_sets(config, reward=REWARD, seed=seed)


def refusal(source: Mapping[str, Any]) -> str:
    with pytest.raises(DataError) as error:
        problems_of(source)
    return str(error.value)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["jsonl", "json", "parquet", "saved folder", "saved splits", "folder of jsonl"])
def source(request, tmp_path) -> dict[str, Any]:
    """The same rows in each form that a source can have."""
    table = datasets.Dataset.from_list(ROWS)
    path = tmp_path / "rows"
    if request.param == "jsonl":
        return {"path": write_jsonl(tmp_path / "rows.jsonl", ROWS)}
    if request.param == "json":
        (tmp_path / "rows.json").write_text(json.dumps(ROWS))
        return {"path": str(tmp_path / "rows.json")}
    if request.param == "parquet":
        table.to_parquet(tmp_path / "rows.parquet")
        return {"path": str(tmp_path / "rows.parquet")}
    if request.param == "saved folder":
        table.save_to_disk(path)
        return {"path": str(path)}
    if request.param == "saved splits":
        datasets.DatasetDict({"train": table.select(range(1)), "test": table}).save_to_disk(path)
        return {"path": str(path), "split": "test"}
    write_jsonl(path / "train.jsonl", ROWS[:1])
    write_jsonl(path / "test.jsonl", ROWS)
    return {"path": str(path), "split": "test"}


def test_every_form_of_a_source_gives_the_same_problems_in_the_order_of_its_rows(source, tmp_path):
    problems = problems_of(source)
    assert [(p.prompt, p.answer) for p in problems] == [(row["prompt"], row["answer"]) for row in ROWS]
    assert [p.meta["level"] for p in problems] == [row["level"] for row in ROWS]
    again = problems_of({"path": write_jsonl(tmp_path / "again.jsonl", ROWS)})
    assert [p.id for p in problems] == [p.id for p in again]


def test_a_task_makes_its_own_rows_as_a_function_of_options_and_seed():
    source = {"path": "task:list_machine", "options": {"num_rows": 30, "operations": {2: 1}}}
    first, again, other = problems_of(source), problems_of(source), problems_of(source, seed=1)
    assert [p.id for p in first] == [p.id for p in again]
    assert {p.id for p in first}.isdisjoint(p.id for p in other)
    assert {p.meta["num_operations"] for p in first} == {2}


def test_no_operation_stands_twice_in_a_program_of_the_list_machine():
    programs = [problem.prompt.split("?")[0] for problem in problems_of({"path": "task:list_machine"})]
    assert len(programs) == 1000
    assert all(len(set(program)) == len(program) for program in programs)


def test_columns_are_those_that_the_config_names(tmp_path):
    rows = [{"task": "a", "gold": "1", "prompt": "no", "answer": "no"}, {"task": "b", "gold": "2"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = problems_of({"path": path, "prompt_column": "task", "answer_column": "gold"})
    assert [(p.prompt, p.answer) for p in found] == [("a", "1"), ("b", "2")]
    assert found[0].meta["prompt"] == "no"
    assert "gold" not in found[0].meta


def test_messages_are_taken_as_they_stand_and_the_suffix_goes_to_the_last(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"turns": turns, "answer": "2"}])
    (problem,) = problems_of({"path": path, "messages_column": "turns", "prompt_suffix": " Box it."})
    assert [(m.role, m.content) for m in problem.messages] == [
        ("system", "Be brief."),
        ("user", "What is 1 + 1? Box it."),
    ]
    assert problem.prompt == "What is 1 + 1? Box it."


def test_the_suffix_goes_to_the_last_user_message_whatever_comes_after_it(tmp_path):
    turns = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "<think>"}]
    source = {"messages_column": "turns", "prompt_suffix": " Box it."}
    (problem,) = problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", [{"turns": turns, "answer": "2"}])} | source)
    assert [m.content for m in problem.messages] == ["What is 1 + 1? Box it.", "<think>"]
    row = {"turns": turns[1:], "answer": "2"}
    message = refusal({"path": write_jsonl(tmp_path / "other.jsonl", [row])} | source)
    assert "data.train, row 1: prompt_suffix = ' Box it.' goes to the last user message, and there is none" in message


def test_a_verifier_sees_the_row_with_its_answer_its_prompt_and_its_messages(tmp_path):
    (problem,) = problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])})
    assert problem.reward == REWARD
    assert problem.for_verifier(finished=False, num_tokens=7) == {
        "id": problem.id,
        "prompt": "What is 0 + 0?",
        "messages": [{"role": "user", "content": "What is 0 + 0?"}],
        "answer": "0",
        "level": 0,
        "finished": False,
        "num_tokens": 7,
    }


def test_what_is_nested_in_a_json_row_is_not_given_the_keys_of_other_rows(tmp_path):
    rows = [{"prompt": "a", "wanted": {"f": {"x": [1]}}}, {"prompt": "b", "wanted": {"g": {"y": [None, "2"]}}}]
    lines = problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", rows), "answer_column": None})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    listed = problems_of({"path": str(tmp_path / "rows.json"), "answer_column": None})
    assert [problem.meta["wanted"] for problem in lines] == [row["wanted"] for row in rows]
    assert lines == listed


@pytest.mark.parametrize("answer", [["0.5", "one half"], 3, 2.5])
def test_a_verifier_sees_an_answer_that_is_no_text_as_it_stands(tmp_path, answer):
    (problem,) = problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "gold": answer}])} | GOLD)
    assert problem.for_verifier(finished=True, num_tokens=1)["answer"] == answer
    assert problem.answer == json.dumps(answer)


def test_without_an_answer_column_a_verifier_sees_the_rows_own_answer_and_rows_differ_by_all_they_hold(tmp_path):
    rows = [{"prompt": "a", "answer": "x", "tests": [1]}, {"prompt": "a", "answer": "x", "tests": [2]}]
    first, second = problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", rows), "answer_column": None})
    assert first.for_verifier(finished=True, num_tokens=1)["answer"] == "x"
    assert (first.meta["tests"], second.meta["tests"]) == ([1], [2])


def test_rows_need_no_answer_where_the_reward_reads_other_columns(tmp_path):
    rows = [{"prompt": "a", "tests": {"type": "stdin"}}, {"prompt": "b", "tests": None, "answer": "kept as it is"}]
    dropped: dict[str, int] = {}
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    first, second = problems_of({"path": path, "answer_column": None}, dropped=dropped)
    assert (first.answer, first.meta["tests"], second.answer) == ("", {"type": "stdin"}, "")
    assert dropped == {}


# --- GSM8K -----------------------------------------------------------------------------------------------------------


def test_gsm8k_rows_give_the_number_as_answer_and_the_solution_without_annotations():
    problems = problems_of(GSM8K_SOURCE)
    assert len(problems) == 40
    assert problems[0].answer == "72"
    assert problems[0].meta["solution"] == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."
    )
    assert all(p.answer.lstrip("-").isdigit() for p in problems)
    assert not any("<<" in p.meta["solution"] or "####" in p.meta["solution"] for p in problems)


def test_a_comma_within_a_number_is_dropped_and_one_in_a_sentence_stays(tmp_path):
    rows = [{"question": "q", "answer": "First, 1,000 and 2,000.\n#### 1,234,567"}]
    (problem,) = problems_of(GSM8K_SOURCE | {"path": write_jsonl(tmp_path / "rows.jsonl", rows)})
    assert problem.answer == "1234567"
    assert problem.meta["solution"] == "First, 1000 and 2000."


def test_a_row_that_the_pattern_does_not_fit_is_named_with_its_text(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"question": "q", "answer": "a\n#### 1"}, {"question": "r", "answer": "2"}]
    )
    message = refusal(GSM8K_SOURCE | {"path": path})
    assert message.startswith("data.train, row 2: answer_pattern = ")
    assert message.endswith("finds nothing in '2'; change the pattern or drop the row")


@pytest.mark.parametrize("blank", ["", " \n", None])
def test_a_blank_text_is_an_empty_answer_and_is_never_asked_for_its_pattern(tmp_path, blank):
    rows = [{"question": "q", "answer": "a\n#### 1"}, {"question": "r", "answer": blank}]
    dropped: dict[str, int] = {}
    found = problems_of(GSM8K_SOURCE | {"path": write_jsonl(tmp_path / "rows.jsonl", rows)}, dropped=dropped)
    assert [p.answer for p in found] == ["1"]
    assert dropped == {"empty answer": 1}


# --- identity, duplicates, answers -----------------------------------------------------------------------------------


def test_an_id_is_the_hash_of_messages_and_answer_and_of_nothing_else(tmp_path):
    def ids(*rows: dict[str, Any]) -> list[str]:
        return [p.id for p in problems_of({"path": write_jsonl(tmp_path / f"{len(rows)}.jsonl", list(rows))})]

    (plain,) = ids({"prompt": "a", "answer": "1"})
    first, other_answer = ids({"prompt": "a", "answer": "1", "level": 9}, {"prompt": "a", "answer": "2"})
    assert first == plain
    assert other_answer != plain
    assert len(plain) == 16


def test_an_id_is_the_same_in_every_process(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "ü — 你好", "answer": "é"}])
    code = f"""
from grpo.config import Source
from grpo.data import load_problems
from rewards import RewardSpec
source = Source(path={path!r})
print(load_problems(source, field="x", reward=RewardSpec("list_machine"), seed=5, dropped={{}})[0].id)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == problems_of({"path": path})[0].id


def test_duplicates_and_empty_answers_are_dropped_and_counted(tmp_path):
    rows = [
        {"prompt": "a", "answer": "1"},
        {"prompt": "a", "answer": " 1 "},  # an answer is stripped
        {"prompt": "a", "answer": "2"},  # another answer is another problem
        {"prompt": "b", "answer": ""},
        {"prompt": "c", "answer": None},
        {"prompt": "d"},
        {"prompt": "e", "answer": "  \n"},
        {"prompt": "a", "answer": "1"},
    ]
    dropped: dict[str, int] = {}
    found = problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", rows)}, dropped=dropped)
    assert [(p.prompt, p.answer) for p in found] == [("a", "1"), ("a", "2")]
    assert dropped == {"duplicate": 2, "empty answer": 4}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (72, "72"),
        (-0.5, "-0.5"),
        (True, "true"),
        (0, "0"),
        (["a", "ü"], '["a", "ü"]'),
        ({"name": "f", "count": 2}, '{"name": "f", "count": 2}'),
        ("72", "72"),
        ("你好 🙂", "你好 🙂"),
        ("\u0435\u0301", "\u0435\u0301"),  # combined characters stay as they are
    ],
)
def test_an_answer_that_is_no_text_is_as_json_writes_it(tmp_path, answer, text):
    (problem,) = problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": answer}])})
    assert problem.answer == text


@pytest.mark.parametrize("answer", [date(2024, 1, 31), Decimal("1.5"), b"raw"])
def test_an_answer_that_json_cannot_write_is_named_with_the_remedy(tmp_path, answer):
    datasets.Dataset.from_list([{"prompt": "a", "answer": answer}]).to_parquet(tmp_path / "rows.parquet")
    message = refusal({"path": str(tmp_path / "rows.parquet")})
    assert f"data.train, row 1: answer = {answer!r}: an answer must be a text, a number" in message


def test_an_answer_that_looks_like_a_date_is_never_altered_in_silence(tmp_path):
    rows = [{"prompt": "a", "answer": "2024-01-31"}]
    assert problems_of({"path": write_jsonl(tmp_path / "rows.jsonl", rows)})[0].answer == "2024-01-31"
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert problems_of({"path": str(tmp_path / "rows.parquet")})[0].answer == "2024-01-31"


def test_max_problems_takes_a_choice_that_follows_from_the_seed(tmp_path):
    source = {"path": write_jsonl(tmp_path / "rows.jsonl", ROWS), "max_problems": 5}
    first, again, other = (problems_of(source, seed=seed) for seed in (0, 0, 1))
    assert [p.id for p in first] == [p.id for p in again]
    assert {p.id for p in first} != {p.id for p in other}
    assert len(first) == len(other) == 5
    order = [row["prompt"] for row in ROWS]
    assert [p.prompt for p in first] == sorted((p.prompt for p in first), key=order.index)
    assert len(problems_of(source | {"max_problems": 500})) == 20


# --- splits ----------------------------------------------------------------------------------------------------------


def contents(problems: tuple[Problem, ...]) -> set[str]:
    return {" ".join(problem.prompt.split()) for problem in problems}


def test_held_out_and_validation_problems_are_split_off_and_the_rest_is_practised(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    sets = sets_of({"path": path}, heldout_problems=4, validation_problems=3)
    assert [len(part) for part in (sets.train, sets.validation, sets.heldout)] == [13, 3, 4]
    assert contents(sets.train) | contents(sets.validation) | contents(sets.heldout) == {r["prompt"] for r in ROWS}
    assert sets.dropped == {}
    again = sets_of({"path": path}, heldout_problems=4, validation_problems=3)
    assert again == sets
    assert sets_of({"path": path}, heldout_problems=4, validation_problems=3, seed=1).heldout != sets.heldout


def test_a_prompt_in_two_sets_is_known_by_its_words_whatever_its_answer_and_white_space(tmp_path):
    twins = [{"prompt": f"What  is {n} +\n{n}? ", "answer": f"{2 * n}.0", "level": 0} for n in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, *twins])
    sets = sets_of({"path": path}, heldout_problems=4, validation_problems=3)
    train, validation, heldout = contents(sets.train), contents(sets.validation), contents(sets.heldout)
    assert train.isdisjoint(heldout)
    assert train.isdisjoint(validation)
    assert validation.isdisjoint(heldout)
    assert len({p.id for p in sets.heldout}) == 4
    assert sets.dropped["in the held-out or validation set"] == 40 - 4 - 3 - len(sets.train)


def test_a_held_out_source_that_overlaps_takes_its_problems_out_of_training(tmp_path):
    train = {"path": write_jsonl(tmp_path / "train.jsonl", ROWS)}
    others = [{"prompt": f"Other {n}", "answer": "1"} for n in range(3)]
    heldout = write_jsonl(tmp_path / "test.jsonl", [*(r | {"prompt": f" {r['prompt']}"} for r in ROWS[:6]), *others])
    sets = sets_of(train, heldout={"path": heldout}, heldout_problems=100, validation_problems=2)
    assert len(sets.heldout) == 9
    assert contents(sets.heldout).isdisjoint(contents(sets.train) | contents(sets.validation))
    assert len(sets.train) + len(sets.validation) == 14
    assert sets.dropped["in the held-out or validation set"] == 18 - len(sets.train)


ASKED_OTHERWISE = {
    "suffix": ({"prompt_suffix": " Box the answer."}, lambda text: {"prompt": text}),
    "system turn": (
        {"messages_column": "turns"},
        lambda text: {"turns": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]},
    ),
    "suffix and begun answer": (
        {"messages_column": "turns", "prompt_suffix": "\nBox it."},
        lambda text: {"turns": [{"role": "user", "content": text}, {"role": "assistant", "content": "<think>"}]},
    ),
}


@pytest.fixture(params=sorted(ASKED_OTHERWISE))
def asked_otherwise(request, tmp_path) -> dict[str, Any]:
    """A source with the questions of the first six rows, asked in another way."""
    fields, row_of = ASKED_OTHERWISE[request.param]
    rows = [row_of(row["prompt"]) | {"answer": row["answer"]} for row in ROWS[:6]]
    return {"path": write_jsonl(tmp_path / "otherwise.jsonl", rows)} | fields


def test_a_held_out_question_that_is_asked_otherwise_is_not_practised(tmp_path, asked_otherwise):
    train = {"path": write_jsonl(tmp_path / "train.jsonl", ROWS), "prompt_suffix": " Think first."}
    sets = sets_of(train, heldout=asked_otherwise, heldout_problems=100, validation_problems=2)
    assert len(sets.heldout) == 6
    practised = {p.question for p in (*sets.train, *sets.validation)}
    assert practised == {row["prompt"] for row in ROWS[6:]}


def test_traces_of_held_out_questions_that_are_asked_otherwise_are_left_out_and_counted(
    tmp_path, capsys, asked_otherwise
):
    rows = write_jsonl(tmp_path / "train.jsonl", ROWS)
    config = small_run_config(
        tmp_path,
        **{
            "data": {"train": {"path": rows}, "heldout_problems": 6, "validation_problems": 5},
            "sft": {"traces": asked_otherwise, "max_steps": 1},
        },
    )
    sets = load_problem_sets(config.data, reward=REWARD, seed=config.run.seed)
    traces = load_traces(config, sets, reward=REWARD, console=Console(num_steps=1))
    unseen = {row["prompt"] for row in ROWS[:6]} - {p.question for p in (*sets.heldout, *sets.validation)}
    assert {p.question for p in traces} == unseen
    assert 0 < len(unseen) < 6
    said = f"{len(unseen)} traces to learn from; {6 - len(unseen)} dropped: in the held-out or validation set"
    assert said in capsys.readouterr().out


def test_several_traces_of_one_problem_are_all_learned_and_the_same_trace_once(tmp_path, capsys):
    rows = [
        {"prompt": "What is 1 + 1?", "answer": "2", "solution": "count", "source": 1},
        {"prompt": "What is 1 + 1?", "answer": "2", "solution": "add", "source": 2},
        {"prompt": "What is 1 + 1?", "answer": "2", "solution": "count", "source": 3},
        {"prompt": "What is 1 + 2?", "answer": "", "solution": "add", "source": 4},
    ]
    config = small_run_config(
        tmp_path,
        **{
            "data": {"train": {"path": write_jsonl(tmp_path / "train.jsonl", ROWS[10:])}, "validation_problems": 3},
            "data.heldout_problems": 3,
            "sft": {"traces": {"path": write_jsonl(tmp_path / "traces.jsonl", rows)}, "max_steps": 1},
            "sft.completion": "{solution}: {answer}",
        },
    )
    sets = load_problem_sets(config.data, reward=REWARD, seed=config.run.seed)
    traces = load_traces(config, sets, reward=REWARD, console=Console(num_steps=1))
    assert [trace_text(trace, "{solution}") for trace in traces] == ["count", "add"]
    assert "2 traces to learn from; 1 dropped: duplicate; 1 dropped: empty answer" in capsys.readouterr().out


def test_a_held_out_source_is_cut_to_the_number_asked_for_by_the_seed(tmp_path):
    train = {"path": write_jsonl(tmp_path / "train.jsonl", ROWS)}
    heldout = {"path": write_jsonl(tmp_path / "test.jsonl", [{"prompt": f"o{n}", "answer": "1"} for n in range(9)])}
    chosen = [
        sets_of(train, heldout=heldout, heldout_problems=4, validation_problems=2, seed=s).heldout for s in (0, 1)
    ]
    assert [len(part) for part in chosen] == [4, 4]
    assert chosen[0] != chosen[1]


def test_held_out_rows_that_are_the_training_rows_leave_nothing_to_practise(tmp_path):
    train = {"path": write_jsonl(tmp_path / "train.jsonl", ROWS)}
    with pytest.raises(DataError, match=r"held-out set as well; name another source for one of them"):
        sets_of(train, heldout=train, validation_problems=2)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"validation_problems": 20}, "data.validation_problems = 20, but data.train has 20 problems left"),
        ({"validation_problems": 4}, "data.heldout_problems = 256, but data.train has 16 problems left"),
        (
            {"validation_problems": 4, "heldout_problems": 16},
            "data.heldout_problems = 16, but data.train has 16 problems left to take them from, so none would be left "
            "to practise; lower it or add problems",
        ),
    ],
)
def test_a_split_that_leaves_nothing_to_practise_is_refused_with_the_numbers(tmp_path, fields, expected):
    with pytest.raises(DataError) as error:
        sets_of({"path": write_jsonl(tmp_path / "train.jsonl", ROWS)}, **fields)
    assert expected in str(error.value)


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "source", "expected"),
    [
        (
            [{"question": "a", "answer": "1"}],
            {"prompt_column": "qestion"},
            "no column 'qestion' (prompt_column); did you",
        ),
        (
            [{"q": "a", "answer": "1"}],
            {},
            "row 1: there is no column 'prompt' (prompt_column); set prompt_column to one",
        ),
        (
            [{"prompt": "a", "gold": "1"}],
            {},
            "no column 'answer' (answer_column); set answer_column to one of 'prompt'",
        ),
        ([{"prompt": "a", "answer": "1"}], {"messages_column": "turns"}, "no column 'turns' (messages_column)"),
        ([{"prompt": 5, "answer": "1"}], {}, "data.train, row 1: a prompt must be a text; got"),
        ([{"prompt": "a", "answer": "1"}, {"answer": "1"}], {}, "data.train, row 2: a prompt must be a text; got"),
        (
            [{"prompt": "hi", "answer": "1"}],
            {"messages_column": "prompt"},
            "messages must be a list of {role, content}",
        ),
        ([{"prompt": [], "answer": "1"}], {"messages_column": "prompt"}, "a prompt must be a text; got []"),
        (
            [{"prompt": [{"content": "x"}], "answer": "1"}],
            {"messages_column": "prompt"},
            "messages must be a list of {role, content}; got [{'content': 'x'}]",
        ),
        (
            [{"prompt": [{"role": None, "content": "x"}], "answer": "1"}],
            {"messages_column": "prompt"},
            "data.train, row 1: every message needs a role, such as user; got [{'role': None, 'content': 'x'}]",
        ),
        (
            [{"prompt": "a", "answer": ""}],
            {},
            "no problem is left (1 with empty answer); check the file and the columns",
        ),
    ],
)
def test_a_row_that_is_no_problem_is_named_by_field_and_number(tmp_path, rows, source, expected):
    assert expected in refusal({"path": write_jsonl(tmp_path / "rows.jsonl", rows)} | source)


def test_the_rows_left_out_of_one_source_are_no_reason_of_another(tmp_path):
    train = {"path": write_jsonl(tmp_path / "train.jsonl", [*ROWS, ROWS[0]])}
    heldout = {"path": write_jsonl(tmp_path / "test.jsonl", [{"prompt": "a", "answer": ""}])}
    with pytest.raises(DataError, match=r"data.heldout.path = .*: no problem is left \(1 with empty answer\)"):
        sets_of(train, heldout=heldout, validation_problems=2)


def test_a_missing_file_is_named_with_the_place_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal({"path": "rows/none.jsonl"})
    assert message == f"data.train.path = 'rows/none.jsonl': no such file (looked in {tmp_path}); check the path"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty; give one with rows"),
        ('{"prompt": "a", "answer": "1"}\n{broken\n', "line 2 is not JSON: Expecting property name"),
        ("plain text\n", "check that every line is whole"),
        ('{"prompt": "a", "answer": "1"}\n[1]\n', "line 2 holds a list; a row is a JSON object"),
    ],
)
def test_a_file_without_rows_is_a_data_error_that_names_it_and_the_reason(tmp_path, text, expected):
    (tmp_path / "rows.jsonl").write_text(text)
    message = refusal({"path": str(tmp_path / "rows.jsonl")})
    assert message.startswith(f"data.train.path = '{tmp_path / 'rows.jsonl'}': ")
    assert expected in message


def test_a_split_that_a_folder_has_not_is_named(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "rows")
    message = refusal({"path": str(tmp_path / "rows"), "split": "validation"})
    assert "this folder could not be read (KeyError: 'validation'); check the path and the split" in message


def test_a_hub_id_that_cannot_be_reached_is_a_data_error(monkeypatch):
    def no_network(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    message = refusal({"path": "someone/rows"})
    assert "this hub id could not be read (ConnectionError: no route to the hub); check the path, the split" in message
    assert "(there is no folder of this name in " in message


@pytest.mark.parametrize("name", ["rows.csv", "data/rows.csv", "rows.txt", "rows.csv.gz"])
def test_a_file_of_another_kind_is_named_as_one_with_the_kinds_that_are_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = refusal({"path": name})
    expected = "no file of this kind is read; convert it to one of .jsonl, .jsonl.gz, .json, .parquet"
    assert message == f"data.train.path = {name!r}: {expected}"


@pytest.mark.parametrize("name", ["./rows", "../rows", "/nowhere/rows", "~/rows", "data/sets/rows"])
def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert f"data.train.path = {name!r}: no such folder (looked in {tmp_path})" in refusal({"path": name})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"path": "task:lst_machine"}, "data.train: task:lst_machine: there is no task 'lst_machine'; the tasks are"),
        ({"path": "task:list_machine", "options": {"rows": 3}}, "data.train: task:list_machine has no option 'rows'"),
        ({"path": "task:list_machine", "options": {"num_rows": 0}}, "num_rows must be from 1 to 500,000; got 0"),
        ({"path": "task:list_machine", "options": {"operations": {0: 1}}}, "maps 1..9 to weights above 0; got {0: 1}"),
        ({"path": "task:list_machine", "options": {"operations": [1, 2]}}, "maps 1..9 to weights above 0; got [1, 2]"),
        ({"path": "task:list_machine", "options": {"operations": {"x": 1}}}, "to weights above 0; got {'x': 1}"),
        ({"path": "task:list_machine", "options": {"num_rows": True}}, "num_rows must be from 1 to 500,000; got True"),
        ({"path": str(GSM8K), "options": {"a": 1}}, "data.train.options are for task:NAME sources"),
    ],
)
def test_a_task_that_cannot_make_rows_says_why(source, expected):
    assert expected in refusal(source)
