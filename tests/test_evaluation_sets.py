"""Sets of problems beside the held-out ones: their judges, their rows, and what is said of them before a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.config import EvaluationSet, RunConfig, load
from grpo.errors import ConfigError, DataError
from grpo.evaluation_sets import judge_of, load_sets, num_practised
from rewards import RewardSpec
from tests.runs import grpo, opened_run, small_run_config, small_run_file

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).resolve().parents[1]
MATHS = {"source": {"path": str(DATA / "gsm8k_rows.jsonl"), "format": "gsm8k", "max_problems": 5}}
LOOP: dict[str, Any] = {"sft": None, "curriculum": {"kind": "uniform"}}


def with_sets(folder: Path, **sets: Any) -> RunConfig:
    return small_run_config(folder, **{"evaluation.sets": sets})


def test_a_published_set_is_judged_by_its_formats_judge_and_other_rows_by_the_runs(tmp_path):
    rows = {"source": {"path": "task:list_machine", "options": {"num_rows": 4, "operations": {1: 1}}}}
    config = with_sets(tmp_path, maths=MATHS, rows=rows)
    sets = load_sets(config, dropped={})
    assert {name: len(problems) for name, problems in sets.items()} == {"maths": 5, "rows": 4}
    assert {problem.reward for problem in sets["maths"]} == {RewardSpec("math_answer")}
    assert {problem.reward.function for problem in sets["rows"]} == {"judge"}
    assert judge_of(config, "heldout") == judge_of(config, "rows") == config.reward
    assert judge_of(config, "maths").success_threshold == 1.0


def test_a_set_may_bring_a_judge_with_options_and_a_threshold_and_shares_the_pool(tmp_path):
    own = {"name": "math_answer", "options": {"extract": ["hash"]}, "success_threshold": 0.5}
    config = with_sets(tmp_path, maths=MATHS | {"reward": own})
    judge = judge_of(config, "maths")
    assert (judge.name, judge.success_threshold, judge.workers) == ("math_answer", 0.5, config.reward.workers)
    (problem, *_) = load_sets(config, dropped={})["maths"]
    assert problem.reward == RewardSpec("math_answer", options={"extract": ["hash"]})


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ({"name": "math_anser"}, r"evaluation\.sets\.maths: reward: .*math_answer"),
        ({"name": "math_answer", "workers": 7}, r"evaluation\.sets\.maths\.reward\.workers = 7: one pool judges every"),
    ],
)
def test_a_judge_that_cannot_be_is_named_with_its_set(reward, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        load_sets(with_sets(tmp_path, maths=MATHS | {"reward": reward}), dropped={})


def test_a_broken_row_is_named_by_set_file_and_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "2 + 2?", "answer": "#### 4"}\n{"question": "3 + 3?", "answer": "6"}\n')
    config = with_sets(tmp_path, maths={"source": {"path": str(path), "format": "gsm8k"}})
    with pytest.raises(DataError, match=rf"evaluation\.sets\.maths\.source, row 2 of {path}: no row of gsm8k"):
        load_sets(config, dropped={})


def test_check_counts_the_sets_and_names_a_broken_row(tmp_path, capsys):
    file = small_run_file(tmp_path, **LOOP, **{"evaluation.sets": {"maths": MATHS}, "evaluation.by_tier": True})
    assert grpo("check", file) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "problems of evaluation.sets.maths 5" in said
    assert "rollouts of the evaluation 136" in said  # 2 policies, 12 + 5 problems, 4 rollouts
    assert "rollouts of its tiers, at least 48" in said
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "3 + 3?", "answer": "6"}\n')
    assert grpo("check", file, f"evaluation.sets.maths.source.path={path}") == DataError.exit_code
    assert f"evaluation.sets.maths.source, row 1 of {path}: no row of gsm8k" in capsys.readouterr().err


def test_a_set_that_asks_what_is_practised_says_so_and_changes_nothing_that_is(tmp_path, capsys):
    rows = [{"prompt": f">r?>{n:05d}", "answer": "", "num_operations": 1} for n in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(path), "answer_column": None}
    file = small_run_file(
        tmp_path,
        **LOOP,
        **{"data.train": source, "train.steps": 1, "evaluation.sets": {"again": {"source": source}}},
    )
    assert grpo("train", file) == 0
    assert "40 problems of evaluation.sets.again; 20 of them ask what is practised too" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_set_by_the_name_of_the_runs_own_problems_would_not_stand_in_for_them(tmp_path, name):
    plain = small_run_config(tmp_path / "plain", **LOOP)
    source = {"path": "task:list_machine", "options": {"num_rows": 4, "operations": {2: 1}}}
    sets = {name: EvaluationSet.model_validate({"source": source})}
    named = plain.model_copy(  # past the check of the names
        update={
            "evaluation": plain.evaluation.model_copy(update={"sets": sets}),
            "run": plain.run.model_copy(update={"folder": str(tmp_path / "named")}),
        }
    )
    with opened_run(plain) as expected, opened_run(named) as found:
        for own in ("train", "validation"):
            ids = [[problem.id for problem in getattr(run, own)] for run in (found, expected)]
            assert ids[0] == ids[1]
        assert [len(problems) for problems in found.sets.values()] == [12, 4]


def test_questions_in_common_are_counted_whatever_is_added_to_them(tmp_path):
    config = with_sets(tmp_path, maths=MATHS, more={"source": MATHS["source"] | {"prompt_suffix": " Be brief."}})
    sets = load_sets(config, dropped={})
    assert {problem.id for problem in sets["maths"]}.isdisjoint(problem.id for problem in sets["more"])
    shared = num_practised(sets["maths"], sets["more"])
    assert shared == len({p.question for p in sets["maths"]} & {p.question for p in sets["more"]})


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (
            {"maths": {"source": {"path": "x", "formt": "gsm8k"}}},
            "evaluation.sets.maths.source.formt is not a field; did you mean evaluation.sets.maths.source.format?",
        ),
        (
            {"source": {"source": {"path": "x", "max_problems": 0}}},
            "evaluation.sets.source.source.max_problems = 0: must be at least 1 (Take at most this many rows",
        ),
        ({"maths": {"reward": {"name": "x"}}}, "evaluation.sets.maths.source is missing; set it (Its rows: any"),
        ({"heldout": MATHS}, "sets: heldout is the name of problems of the section data"),
        ({"train": MATHS}, "sets: train is the name of problems of the section data"),
        ({"validation": MATHS}, "sets: validation is the name of problems of the section data"),
    ],
)
def test_a_fault_in_a_set_is_named_with_the_sets_own_name(sets, expected, tmp_path):
    file = small_run_file(tmp_path, **{"evaluation.sets": sets})
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert expected in str(caught.value)


def test_a_field_of_a_set_can_be_set_from_the_command_line(tmp_path):
    file = small_run_file(tmp_path, **{"evaluation.sets": {"maths": MATHS}})
    config = load(file, ["evaluation.sets.maths.source.max_problems=2", "evaluation.sets.more.source.path=x.jsonl"])
    assert config.evaluation.sets["maths"].source.max_problems == 2
    assert config.evaluation.sets["more"].source.path == "x.jsonl"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("mbpp_*.yaml")), ids=lambda path: path.stem)
def test_the_code_config_practises_and_evaluates_on_mbpps_own_splits(file, tmp_path, capsys):
    rows = DATA / "mbpp_rows.jsonl"  # two tasks of the split train, eight of test
    packed = tmp_path / "mbpp.jsonl"
    first = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    more = [first | {"task_id": 700 + n, "text": f"Task {n}"} for n in range(200)]
    packed.write_text(rows.read_text(encoding="utf-8") + "".join(json.dumps(row) + "\n" for row in more))
    humaneval = DATA / "humaneval_rows.jsonl"
    overrides = [
        *(f"data.{name}.path={packed}" for name in ("train", "heldout")),
        f"evaluation.sets.humaneval.source.path={humaneval}",
        "model={architecture: {model_type: llama, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 1, num_key_value_heads: 1}, tokenizer: 'task:list_machine'}",
    ]
    assert grpo("check", file, *overrides) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "problems held out 8" in said
    assert "problems of evaluation.sets.humaneval 14" in said
