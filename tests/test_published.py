"""Benchmarks in their published form: what is asked, what is right, who judges, and how a broken row is named."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from grpo import published
from grpo.config import Source
from grpo.data import load_problems
from grpo.errors import DataError
from grpo.types import Problem
from rewards import RewardSpec, build_spec

DATA = Path(__file__).parent / "data"
SHARED = Path(os.environ.get("GRPO_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
FEW = {
    "gsm8k": DATA / "gsm8k_rows.jsonl",
    "mbpp": DATA / "mbpp_rows.jsonl",
    "humaneval": DATA / "humaneval_rows.jsonl",
    "ifeval": DATA / "ifeval_rows.jsonl",
    "bfcl": DATA / "bfcl_published" / "BFCL_v4_simple_python.json",
}
WHOLE = {
    "gsm8k": ("gsm8k/test.jsonl", 1319),
    "mbpp": ("mbpp/mbpp.jsonl", 500),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", 164),
    "ifeval": ("ifeval/input_data.jsonl", 541),
    "bfcl": ("bfcl/BFCL_v4_multiple.json", 200),
}


def problems_of(name: str, path: Path, **fields: Any) -> list[Problem]:
    if name == "mbpp":
        fields = {"split": "train+validation+test+prompt"} | fields
    source = Source(path=str(path), format=name, **fields)
    return load_problems(source, field="data.train", reward=published.FORMATS[name].judge, seed=0, dropped={})


def first_row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(FEW[name].read_text(encoding="utf-8").splitlines()[0])
    return row


def verdict(problem: Problem, completion: str) -> float | None:
    view = problem.for_verifier(finished=True, num_tokens=9)
    reward = build_spec(problem.reward)(completion, view)
    assert reward.value is not None, reward.detail
    return reward.value


def refusal(name: str, path: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        problems_of(name, path, **fields)
    return str(caught.value)


@pytest.mark.parametrize("name", FEW)
def test_every_row_of_a_file_in_its_published_form_is_a_problem(name):
    num_rows = len(FEW[name].read_text(encoding="utf-8").splitlines())
    problems = problems_of(name, FEW[name])
    assert len(problems) == num_rows
    assert all(problem.reward == published.FORMATS[name].judge for problem in problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_every_row_of_the_whole_set_is_a_problem_that_its_judge_can_use(name):
    path, number = SHARED / WHOLE[name][0], WHOLE[name][1]
    if not path.is_file():
        pytest.skip(f"the rows are not at {path}; GRPO_SHARED_DATA names the folder")
    assert len(problems_of(name, path, **({"split": "test"} if name == "mbpp" else {}))) == number


def test_gsm8k_asks_for_a_box_and_its_answer_is_the_number():
    problem = problems_of("gsm8k", FEW["gsm8k"])[0]
    assert problem.prompt.endswith("April and May?\nReason step by step, and put the final answer within \\boxed{}.")
    assert problem.answer == "72"
    assert problem.meta["solution"].startswith("Natalia sold 48/2 = 24 clips in May.")
    assert "<<" not in problem.meta["solution"]
    assert (verdict(problem, r"\boxed{72}"), verdict(problem, r"\boxed{73}")) == (1.0, 0.0)


def test_gsm8k_is_what_the_columns_of_its_rows_would_make_of_it():
    fields = {
        "prompt_column": "question",
        "answer_pattern": r"(?P<solution>.*)\n#### (?P<answer>.+)",
        "drop_pattern": r"<<[^>]*>>|,(?=\d{3})",
        "prompt_suffix": published.MATHS_INSTRUCTION,
    }
    spelled = Source(path=str(FEW["gsm8k"]), **fields)
    by_columns = load_problems(spelled, field="x", reward=RewardSpec("math_answer"), seed=0, dropped={})
    assert [problem.id for problem in by_columns] == [problem.id for problem in problems_of("gsm8k", FEW["gsm8k"])]


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_the_solution_of_a_code_row_is_right_and_another_function_is_not(name):
    for problem in problems_of(name, FEW[name])[:3]:
        assert "```python" in problem.prompt
        assert verdict(problem, f"```python\n{problem.meta['solution']}\n```") == 1.0
        assert verdict(problem, "```python\ndef other():\n    pass\n```") == 0.0


def test_mbpp_shows_its_three_tests_and_is_judged_by_them_alone():
    row = first_row("mbpp") | {"challenge_test_list": ["assert False"]}
    problem = published.mbpp(row)
    assert problem.columns["tests"]["asserts"] == row["test_list"]
    assert all(test in problem.instruction for test in row["test_list"])
    assert problem.messages[0].content == row["text"]


def test_the_sanitized_form_of_mbpp_is_read_as_well(tmp_path):
    row = first_row("mbpp")
    sanitized = {
        "task_id": row["task_id"],
        "prompt": row["text"],
        "code": row["code"],
        "test_imports": ["import math"],
        "test_list": row["test_list"],
    }
    path = tmp_path / "sanitized-mbpp.json"
    path.write_text(json.dumps([sanitized]))
    (problem,) = problems_of("mbpp", path)
    assert problem.question == problems_of("mbpp", FEW["mbpp"])[0].question
    assert problem.meta["tests"]["setup"] == "import math"


def test_mbpps_one_file_is_split_by_its_task_ids(tmp_path):
    row = first_row("mbpp")
    path = tmp_path / "mbpp.jsonl"
    ids = {10: "prompt", 11: "test", 510: "test", 511: "validation", 600: "validation", 601: "train", 974: "train"}
    path.write_text("".join(json.dumps(row | {"task_id": i, "text": f"Task {i}"}) + "\n" for i in ids))
    for split in ("prompt", "test", "validation", "train", "train+validation"):
        wanted = [i for i, of in ids.items() if of in split.split("+")]
        assert [problem.meta["task_id"] for problem in problems_of("mbpp", path, split=split)] == wanted
    assert "split = 'dev': must be of prompt, test, validation, train" in refusal("mbpp", path, split="dev")


def test_humaneval_is_read_as_it_is_packed(tmp_path):
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(FEW["humaneval"].read_bytes()))
    assert problems_of("humaneval", packed) == problems_of("humaneval", FEW["humaneval"])


def test_ifeval_is_asked_as_it_stands_and_nulls_among_its_arguments_are_none(tmp_path):
    problem = problems_of("ifeval", FEW["ifeval"])[0]
    row = first_row("ifeval")
    assert (problem.prompt, problem.prompt_suffix) == (row["prompt"], "")
    wide = row | {"kwargs": [arguments | {"num_bullets": None} for arguments in row["kwargs"]]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(wide))
    assert verdict(problems_of("ifeval", path)[0], "x") == verdict(problem, "x") == 0.0


@pytest.mark.parametrize(
    ("task_id", "expected"),
    [(None, "row 2: task_id = None"), ("eleven", "row 2: task_id = 'eleven'"), (1.5, "row 2: task_id = 1.5")],
)
def test_a_row_of_mbpp_that_belongs_to_no_split_is_named_with_what_to_do(tmp_path, task_id, expected):
    first, *_ = FEW["mbpp"].read_text(encoding="utf-8").splitlines()
    path = tmp_path / "mbpp.jsonl"
    path.write_text(first + "\n" + json.dumps(json.loads(first) | {"task_id": task_id}) + "\n")
    said = refusal("mbpp", path)
    assert expected in said
    assert "give a file in its published form, or set format: rows" in said


def test_bfcl_tells_the_functions_and_takes_the_answers_from_their_own_file():
    problem = problems_of("bfcl", FEW["bfcl"])[0]
    assert [message.role for message in problem.messages] == ["system", "user"]
    assert '"name": "calculate_triangle_area"' in problem.messages[0].content
    call = '<tool_call>\n{"name": "calculate_triangle_area", "arguments": {"base": 10, "height": 5}}\n</tool_call>'
    assert (verdict(problem, call), verdict(problem, call.replace("10", "11"))) == (1.0, 0.0)
    (irrelevant,) = problems_of("bfcl", FEW["bfcl"].with_name("BFCL_v4_irrelevance.json"))
    assert (verdict(irrelevant, "None of them can."), verdict(irrelevant, call)) == (1.0, 0.0)


def test_a_bfcl_file_without_its_answers_says_where_they_were_looked_for(tmp_path):
    path = tmp_path / "BFCL_v4_simple_python.json"
    path.write_bytes(FEW["bfcl"].read_bytes())
    assert f"{tmp_path / 'possible_answer' / path.name} is not there" in refusal("bfcl", path)
    answers = tmp_path / "possible_answer" / path.name
    answers.parent.mkdir()
    answers.write_text(json.dumps({"id": "simple_python_0", "ground_truth": []}))
    assert f"{answers} has no answer for simple_python_1 (1 such rows)" in refusal("bfcl", path)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("gsm8k", {"answer": "It is 72."}, "ends in no #### and a number"),
        ("gsm8k", {"question": ""}, "the question is ''"),
        ("mbpp", {"test_list": []}, "test_list = []: must be a list of at least one"),
        ("mbpp", {"code": "x = 1"}, "test_list uses none of the functions of code (it has none)"),
        ("mbpp", {"code": "def f(:"}, "no row of mbpp"),
        ("humaneval", {"test": "def check(candidate:"}, "humaneval's judge cannot use it"),
        ("ifeval", {"instruction_id_list": ["keywords:nonsense"], "kwargs": [{}]}, "ifeval's judge cannot use it"),
        ("bfcl", {"question": [[], []]}, "question has 2 turns"),
        ("bfcl", {"function": [{"name": 5}]}, "bfcl's judge cannot use it"),
    ],
)
def test_a_row_that_its_judge_cannot_use_is_named_by_file_and_number(name, change, expected, tmp_path):
    row = first_row(name)
    if name == "bfcl":
        row |= {"ground_truth": [{"calculate_triangle_area": {"base": [10], "height": [5]}}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (row, row | change)))
    said = refusal(name, path)
    assert f"data.train, row 2 of {path}: " in said
    assert expected in said


def test_a_file_of_another_form_is_told_by_the_columns_that_are_missing():
    said = refusal("humaneval", FEW["mbpp"])
    assert f"data.train, row 1 of {FEW['mbpp']}: there is no column 'entry_point'" in said
    assert "give a file in its published form, or set format: rows" in said


def test_a_column_that_a_published_form_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"answer_column = 'gold' is not read where format is gsm8k"):
        Source(path="x.jsonl", format="gsm8k", answer_column="gold")
