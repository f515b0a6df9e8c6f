"""`grpo init`: what it finds in rows, what it writes, that this loads and runs, and what it refuses."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grpo.columns import read_columns
from grpo.config import RunConfig, Source, load, schema
from grpo.errors import ConfigError, DataError
from grpo.init import Wanted, init, render
from grpo.model import base_of, load_model
from rewards import RewardSpec, longest_seconds
from tests.chatml import chatml_tokenizer
from tests.conftest import tiny_config
from tests.runs import grpo, read_jsonl

DATA = Path(__file__).parent / "data"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODEL = "nobody/has-this-model"


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(number: int = 40) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(number)]


def begun(folder: Path, *arguments: str | Path, output: str = "mine.yaml") -> Path:
    """What `grpo init` writes, by flags alone."""
    path = folder / output
    assert grpo("init", path, "--model", MODEL, *arguments) == 0
    return path


# --- what is found in rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("gsm8k_rows.jsonl", ("gsm8k", "math_answer")),
        ("mbpp_rows.jsonl", ("mbpp", "code_tests")),
        ("humaneval_rows.jsonl", ("humaneval", "code_tests")),
        ("ifeval_rows.jsonl", ("ifeval", "instructions")),
        ("bfcl_published/BFCL_v4_simple_python.json", ("bfcl", "tool_call")),
    ],
)
def test_rows_in_published_form_are_known_by_their_own_reader(file, expected):
    reading = read_columns(Source(path=str(DATA / file)))
    assert (reading.source.format, reading.reward) == expected


def test_rows_that_only_look_like_gsm8k_are_read_by_columns(tmp_path):
    reading = read_columns(Source(path=str(written(tmp_path, sums()))))
    assert (reading.source.format, reading.source.prompt_column, reading.source.answer_column) == (
        *("rows", "question", "answer"),
    )
    assert reading.reward == "math_answer"
    assert reading.source.prompt_suffix.endswith("\\boxed{}.")
    assert "math_answer takes 40 of 40 of the rows' own answers for right" in reading.notes


@pytest.mark.parametrize(
    ("row", "columns", "reward"),
    [
        ({"problem": "2 + 2?", "solution": "Two and two. #### 4"}, ("problem", "solution"), "math_answer"),
        ({"input": "Which?", "answer": "B", "choices": ["a", "b"]}, ("input", "answer"), "multiple_choice"),
        ({"prompt": "Say hello.", "target": "in a friendly way, at length"}, ("prompt", "target"), ""),
        ({"instruction": "Write f.", "tests": {"type": "assert", "asserts": []}}, ("instruction", None), "code_tests"),
    ],
)
def test_columns_are_found_by_name_and_by_what_they_hold(tmp_path, row, columns, reward):
    reading = read_columns(Source(path=str(written(tmp_path, [row] * 5))))
    assert (reading.source.prompt_column, reading.source.answer_column) == columns
    assert reading.reward == reward


def test_a_prompt_of_messages_is_a_messages_column(tmp_path):
    row = {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    assert read_columns(Source(path=str(written(tmp_path, [row])))).source.messages_column == "prompt"


def test_a_column_that_is_named_is_taken_and_one_that_is_not_there_is_refused(tmp_path):
    path = str(written(tmp_path, [{"question": "q", "ask": "2 + 2?", "answer": "5", "right": "4"}] * 3))
    reading = read_columns(Source(path=path), prompt_column="ask", answer_column="right")
    assert (reading.source.prompt_column, reading.source.answer_column) == ("ask", "right")
    with pytest.raises(DataError, match=r"--answer-column = 'rite': .* has no such column; it has question, ask"):
        read_columns(Source(path=path), answer_column="rite")
    numbers = str(written(tmp_path, [{"number": 3, "answer": "3"}], "numbers.jsonl"))
    with pytest.raises(DataError, match="holds neither texts nor lists of"):
        read_columns(Source(path=numbers), prompt_column="number")
    with pytest.raises(DataError, match=r"none of its columns \(number, answer\) is known for a prompt"):
        read_columns(Source(path=numbers))


# --- what is written --------------------------------------------------------------------------------------------------


def test_all_flags_given_it_asks_nothing_and_writes_what_grpo_check_takes(tmp_path, capsys):
    path = begun(tmp_path, "--data", written(tmp_path, sums()), "--reward", "math_answer", "--name", "first")
    said = capsys.readouterr()
    assert f"{path} is written; grpo check {path}" in said.out
    assert "problems to practise: 28" in said.err
    config = load(path)
    assert (config.run.name, config.model.path, config.reward.name) == ("first", MODEL, "math_answer")
    assert (config.data.validation_problems, config.data.heldout_problems) == (4, 8)
    assert config.data.train.answer_column == "answer"
    assert config.train.problems_per_step == 28
    assert grpo("check", path) == 0
    assert (tmp_path / "grpo.schema.json").read_text() == (CONFIGS / "grpo.schema.json").read_text()


def test_every_field_stands_below_its_own_sentence(tmp_path):
    lines = begun(tmp_path, "--data", written(tmp_path, sums())).read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=grpo.schema.json"
    at = lines.index("  group_size: 16")
    assert lines[at - 1] == "  # Rollouts per problem (G). A group needs two rollouts to have a baseline."
    fields = [at for at, line in enumerate(lines) if re.match(r" +\w+:", line)]
    assert len(fields) > 30
    assert [lines[at] for at in fields if not lines[at - 1].lstrip().startswith("#")] == []


def test_a_reward_of_ones_own_is_written_with_its_file_and_options(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def brief(completion, problem, *, limit):\n    return len(completion) < limit\n")
    rows = written(tmp_path, sums())
    path = begun(tmp_path, "--data", rows, "--reward", f"{mine}:brief", "--options", '{"limit": 9}', "--lora")
    config = load(path)
    assert (config.reward.file, config.reward.function, config.reward.options) == (str(mine), "brief", {"limit": 9})
    assert config.model.lora is not None
    assert config.optim.learning_rate == 1e-5


def test_a_reward_that_keeps_its_own_time_has_a_limit_above_it(tmp_path):
    rows = read_jsonl(DATA / "mbpp_rows.jsonl")
    more = [rows[0] | {"task_id": 700 + n, "text": f"Task {n}"} for n in range(20)]
    config = load(begun(tmp_path, "--data", written(tmp_path, rows + more)))
    assert (config.data.train.split, config.data.heldout.split) == ("train+validation", "test")
    assert config.reward.name == "code_tests"
    assert config.reward.timeout_seconds > longest_seconds(RewardSpec("code_tests")) > 0


def test_the_test_split_that_lies_beside_is_held_out(tmp_path):
    train = written(tmp_path, sums(), "train.jsonl")
    test = written(tmp_path, [{"question": f"{n} - 1?", "answer": str(n - 1)} for n in range(9)], "test.jsonl")
    other = written(tmp_path, [{"question": "1 - 1?", "answer": "0"}], "other.jsonl")
    assert load(begun(tmp_path, "--data", train)).data.heldout.path == str(test)
    named = begun(tmp_path, "--data", train, "--heldout", other, output="named.yaml")
    assert (load(named).data.heldout.path, load(named).data.heldout.split) == (str(other), "train")


def test_odd_texts_come_back_as_they_were():
    fields: dict[str, Any] = {
        "run": {"name": "a"},
        "data": {
            "train": {
                "path": "yes",
                "prompt_suffix": "\n: # \u2028 \x85 𝔘 \\boxed{}",
                "answer_pattern": "(?P<answer>.*)",
            }
        },
        "reward": {"name": "null", "options": {"a": [1, "off", None], "b": {"c: ": 0.5}}},
    }
    assert yaml.safe_load(render(fields, start="grpo recipe x")) == fields


def test_the_written_config_trains(tmp_path, monkeypatch):
    """With a model in a folder: its template is seen, its prompts are measured, and two steps are made."""
    rows = written(tmp_path, sums())
    tokenizer = chatml_tokenizer([row["question"] for row in sums()], vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "model")
    config = tiny_config("qwen3", tokenizer=str(tmp_path / "model"))
    model = load_model(config, tokenizer=tokenizer, seed=0, device=torch.device("cpu"))
    base_of(model).save_pretrained(tmp_path / "model")
    judge = tmp_path / "judge.py"
    judge.write_text("def judge(completion, problem):\n    return float(len(completion) % 2)\n")
    said: list[str] = []
    wanted = Wanted(
        output=tmp_path / "mine.yaml", model=str(tmp_path / "model"), data=str(rows), reward=f"{judge}:judge"
    )
    path = init(wanted, ask=None, say=said.append)
    assert "chat: the template of the tokenizer" in said
    longest = next(int(line.split()[-2]) for line in said if "prompts has" in line)
    ids = [
        len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["question"] + load(path).data.train.prompt_suffix}],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        for row in sums()
    ]
    assert longest == max(ids)
    small = ["train.steps=2", "train.problems_per_step=4", "train.group_size=4", "sampling.max_completion_tokens=8"]
    small += ["evaluation.every_steps=0", "model.dtype=float32", "data.max_prompt_tokens=128", "run.threads=1"]
    assert grpo("train", path, f"run.folder={tmp_path}", *small) == 0
    metrics = read_jsonl(tmp_path / "mine" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(row["reward/errors"] == 0 and row["optim/grad_norm"] > 0 for row in metrics)


# --- what is asked and what is refused --------------------------------------------------------------------------------


def test_what_is_missing_is_asked_for_in_a_terminal_with_what_was_found_as_the_default(tmp_path):
    rows, asked = written(tmp_path, sums()), []

    def ask(question: str, default: str) -> str:
        asked.append((question.split(" (")[0], default))
        return {"config to write": str(tmp_path / "x.yaml"), "rows to practise": str(rows)}.get(asked[-1][0], default)

    path = init(Wanted(output=None, model=None, data=None, reward=None), ask=ask, say=lambda line: None)
    assert asked == [
        ("config to write", ""),
        ("rows to practise", ""),
        ("model", "Qwen/Qwen3-0.6B"),
        ("reward", "math_answer"),
    ]
    assert load(path).model.path == "Qwen/Qwen3-0.6B"
    asked.clear()
    given = Wanted(output=tmp_path / "y.yaml", model=MODEL, data=str(rows), reward="math_answer")
    init(given, ask=ask, say=lambda line: None)
    assert asked == []


def test_the_command_line_asks_on_standard_error_and_reads_the_answers(tmp_path, monkeypatch, capsys):
    rows = written(tmp_path, sums())

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"{MODEL}\n\n"))
    monkeypatch.setattr("sys.stderr", err := Terminal())
    assert grpo("init", tmp_path / "x.yaml", "--data", rows) == 0
    assert "model (hub id or folder) [Qwen/Qwen3-0.6B]: " in err.getvalue()
    assert "[math_answer]: " in err.getvalue()
    assert load(tmp_path / "x.yaml").model.path == MODEL


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "grpo init needs the config to write, such as my_run.yaml; nobody is at a terminal"),
        (["OUT"], "grpo init needs --data (rows to practise"),
        (["OUT", "--data", "ROWS"], "grpo init needs --model (model"),
        (["OUT", "--data", "ROWS", "--model", MODEL, "--reward", "maths"], "'maths' is not a reward"),
        (["OUT", "--data", "WORDS", "--model", MODEL], "no reward is known for these columns; name one with --reward"),
        (["ROWS", "--data", "ROWS", "--model", MODEL], "is there already, and is not written over"),
        (["x/y.yaml", "--data", "ROWS", "--model", MODEL], "must be a .yaml file in a folder that is there"),
    ],
)
def test_what_is_missing_or_wrong_is_named_and_nothing_is_written(tmp_path, capsys, arguments, expected):
    places = {
        "OUT": str(tmp_path / "mine.yaml"),
        "ROWS": str(written(tmp_path, sums())),
        "WORDS": str(
            written(
                tmp_path,
                [{"prompt": f"Say {n}.", "answer": "as you like, but briefly"} for n in range(9)],
                "words.jsonl",
            )
        ),
    }
    before = sorted(tmp_path.iterdir())
    assert grpo("init", *(places.get(argument, argument) for argument in arguments)) == ConfigError.exit_code
    assert expected in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_reward_that_can_judge_none_of_the_rows_is_refused_and_one_that_can_judge_some_is_told_of(tmp_path, capsys):
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def judge(completion, problem, *, least):\n    return 1 / max(0, int(problem['answer']) - least)\n"
    )
    arguments = ["--model", MODEL, "--data", written(tmp_path, sums()), "--reward", f"{judge}:judge"]
    assert grpo("init", tmp_path / "a.yaml", *arguments, "--options", '{"least": 99}') == ConfigError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot judge 16 of 16 problems" in said
    assert "ZeroDivisionError" in said
    assert not (tmp_path / "a.yaml").exists()
    assert grpo("init", tmp_path / "a.yaml", *arguments, "--options", '{"least": 4}') == 0
    assert "cannot judge 3 of 16 problems" in capsys.readouterr().err  # those of 0, 2 and 4
    # Instructions of another benchmark have the columns of IFEval, and no instruction that the reward knows.
    row = {"prompt": "p", "instruction_id_list": ["count:none"], "kwargs": [{}]}
    other = written(tmp_path, [row | {"prompt": f"p{n}"} for n in range(40)], "other.jsonl")
    assert grpo("init", tmp_path / "b.yaml", "--model", MODEL, "--data", other) == ConfigError.exit_code
    assert "instructions cannot judge 16 of 16 problems" in capsys.readouterr().err


def test_the_longest_prompt_may_be_a_held_out_one(tmp_path):
    train = written(tmp_path, sums(), "train.jsonl")
    long = {"question": "What is 1 + 1? " + "Think. " * 400, "answer": "2"}
    written(tmp_path, [long], "test.jsonl")
    assert load(begun(tmp_path, "--data", train)).data.max_prompt_tokens == 1024


def test_too_few_rows_and_a_file_that_is_not_there_are_errors_of_data(tmp_path, capsys):
    few = ["--model", MODEL, "--data", written(tmp_path, sums(3))]
    assert grpo("init", tmp_path / "a.yaml", *few) == DataError.exit_code
    assert "3 problems are too few to practise, to decide on and to hold out" in capsys.readouterr().err
    assert grpo("init", tmp_path / "a.yaml", "--model", MODEL, "--data", "no.jsonl") == DataError.exit_code
    assert "data.train.path = 'no.jsonl': no such file" in capsys.readouterr().err
    assert not (tmp_path / "a.yaml").exists()


# --- the schema -------------------------------------------------------------------------------------------------------


def test_the_shipped_schema_is_what_the_fields_say():
    assert json.loads((CONFIGS / "grpo.schema.json").read_text(encoding="utf-8")) == schema()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_names_the_schema_and_holds_nothing_that_it_lacks(path):
    assert path.read_text(encoding="utf-8").splitlines()[0] == "# yaml-language-server: $schema=grpo.schema.json"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert unknown(raw, schema(), schema()["$defs"]) == []


def unknown(value: Any, of: dict[str, Any], defs: dict[str, Any], place: str = "") -> list[str]:
    """Keys of a config for which an editor with the schema would show an error."""
    options = [defs[o["$ref"].rsplit("/", 1)[1]] if "$ref" in o else o for o in [of, *of.get("anyOf", [])]]
    if isinstance(value, list):
        items = next((o["items"] for o in options if "items" in o), {})
        return [found for n, each in enumerate(value) for found in unknown(each, items, defs, f"{place}.{n}")]
    known = next((o["properties"] for o in options if "properties" in o), None)
    if not isinstance(value, dict) or known is None:
        more = next((o["additionalProperties"] for o in options if isinstance(o.get("additionalProperties"), dict)), {})
        each = value.items() if isinstance(value, dict) else []
        return [found for name, child in each for found in unknown(child, more, defs, f"{place}.{name}")]
    wrong = [f"{place}.{name}" for name in value if name not in known]
    return wrong + [
        found for name in value if name in known for found in unknown(value[name], known[name], defs, f"{place}.{name}")
    ]


def test_the_check_of_keys_finds_a_wrong_one_at_any_depth():
    raw = {"curriculum": {"stages": [{"name": "a", "teirs": []}]}, "data": {"train": {"pth": 1}}, "rn": {}}
    assert unknown(raw, schema(), schema()["$defs"]) == [".rn", ".curriculum.stages.0.teirs", ".data.train.pth"]
    assert set(schema()["properties"]) == set(RunConfig.model_fields)
