"""The generated reward, and the audit of every scorer of reasoning-gym that it trusts."""

from __future__ import annotations

import inspect
import json
import re
import sys
from contextlib import contextmanager

import pytest
import reasoning_gym
from reasoning_gym.factory import CURRICULA, DATASETS

from rewards import Pool, RewardSpec, Status, build, generated
from rewards.generated import MAX_ANSWER_CHARACTERS
from rewards.generated_tasks import ALLOWED_TASKS, LEFT_OUT_TASKS

WHOLE = build("generated", {"answer_in": "whole"})

# Texts that answer nothing. One that holds a row's answer by chance is no junk for that row.
JUNK = (
    *("", " ", "\n\n", "\t", "0", "-1", "1", "7", "1e9", "nan", "NaN", "inf", "-inf", "None", "null", "true", "1/0"),
    *("[]", "{}", "[[]]", "[[0]]", "()", '""', "[NaN, NaN, NaN]", "[0, 0, 0]", '{"a": 1}', ",", "=", "?", "-", "j"),
    *("1 2 3 4", "1,2,3,4", "1 2 3 4 5 6 7 8 9", "A", "a b c d e f", "A=1", "x", "# # #", "yes", "no", "True", "False"),
    *("asdf qwer zxcv", "The quick brown fox jumps over the lazy dog.", "I don't know.", "R U R' U'", "UDLR"),
    *("<answer></answer>", "<b>bold</b> & <i>x</i>", "\\boxed{}", "$x$", "def f(): return 1", "你好,世界", "😀😀😀"),
    *("\x00", "\ud800", "lorem ipsum dolor sit amet " * 50, "a" * 3_000, "9" * 6_000, "[" * 6_000, "UDLR" * 2_500),
)
QUICK_TASKS = ("chain_sum", "syllogism", "word_sequence_reversal", "shortest_path", "number_format", "kakurasu")

# Rows of each task in the whole audit; some take a second each to be made.
NUM_ROWS = 100
NUM_SLOW_ROWS = {"sokoban": 10, "zebra_puzzles": 30}


def rows_of(task, *, num_rows):
    """Rows of a task as a JSON-lines file gives them back, from several seeds."""
    rows = []
    for seed in range(-(-num_rows // 10)):
        dataset = reasoning_gym.create_dataset(task, seed=1_000 * seed + 7, size=10)
        rows += [json.loads(json.dumps(dataset[index])) for index in range(10)]
    return rows[:num_rows]


def assert_scorer_can_be_trusted(task, *, num_rows):
    raw = reasoning_gym.get_score_answer_fn(task)
    rows = rows_of(task, num_rows=num_rows)
    for place, row in enumerate(rows):
        gold = row["answer"].strip()
        assert WHOLE(f" {row['answer']}\n", row).value == 1.0, row
        for junk in JUNK:
            if gold.lower() in junk.lower() or gold in junk.replace(",", ""):
                continue
            reward = WHOLE(junk, row)
            assert reward.value == reward.parts["score"] == 0.0, (junk, row, reward.detail)
        assert WHOLE(row["question"], row).value == 0.0, row
        if gold not in row["question"]:
            assert raw(row["question"], row) == 0.0, row
        if place < 3:
            assert raw("", row) == raw(" ", row) == raw("\n", row) == 0.0, row
        assert_no_near_miss_is_right(row, gold)
        assert_answers_of_others_are_wrong(task, row, rows)


def assert_no_near_miss_is_right(row, gold):
    for wrong in (
        re.sub(r"-?\d+(\.\d+)?", "NaN", gold),
        re.sub(r"-?\d+(\.\d+)?", "nan", gold),
        re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), gold),
        gold[: len(gold) // 2],
    ):
        if wrong.strip().lower() != gold.lower() and not same_number(wrong, gold):
            assert WHOLE(wrong, row).value == 0.0, (wrong, row)


def same_number(text, gold):
    """Whether the texts are numbers that are the same up to the hundredth that number_format lets pass."""
    try:
        return abs(float(text.replace(",", "")) - float(gold.replace(",", ""))) < 0.01
    except ValueError:
        return False


# More than one answer may be right: another shortest path, other moves that solve the puzzle as well.
HAS_MANY_ANSWERS = ("shortest_path", "sokoban")


def assert_answers_of_others_are_wrong(task, row, rows):
    for other in rows[:10]:
        if task not in HAS_MANY_ANSWERS and other["answer"].lower() != row["answer"].lower():
            assert WHOLE(other["answer"], row).value == 0.0, (other["answer"], row)


@pytest.mark.parametrize("task", QUICK_TASKS)
def test_a_scorer_gives_its_own_answer_all_and_junk_nothing(task):
    assert_scorer_can_be_trusted(task, num_rows=10)


@pytest.mark.slow
@pytest.mark.parametrize("task", ALLOWED_TASKS)
def test_every_allowed_scorer_gives_its_own_answer_all_and_junk_nothing(task):
    assert_scorer_can_be_trusted(task, num_rows=NUM_SLOW_ROWS.get(task, NUM_ROWS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", sorted((set(ALLOWED_TASKS) & set(CURRICULA)) - {"sokoban"})
)  # its easiest level takes minutes
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_verdict_does_not_hang_on_the_settings_that_made_the_row(task, level):
    curriculum = CURRICULA[task]()
    for name, attribute in curriculum.attributes.items():
        curriculum.set_attr_level(name, min(level, len(attribute.levels) - 1))
    config = curriculum.generate_configuration()
    config.seed, config.size = 3, 5
    try:
        dataset = DATASETS[task][0](config)
    except AssertionError as error:
        pytest.skip(f"reasoning-gym refuses its own level: {error}")
    for index in range(5):
        row = json.loads(json.dumps(dataset[index]))
        assert WHOLE(row["answer"], row).value == 1.0, row


def test_every_task_of_reasoning_gym_is_either_allowed_or_left_out_for_a_reason():
    assert set(ALLOWED_TASKS) & set(LEFT_OUT_TASKS) == set()
    assert set(DATASETS) == set(ALLOWED_TASKS) | set(LEFT_OUT_TASKS), "audit the tasks that are in one set only"
    assert len(ALLOWED_TASKS) == len(set(ALLOWED_TASKS))
    assert all(LEFT_OUT_TASKS.values())


@pytest.mark.parametrize("task", ALLOWED_TASKS)
def test_no_allowed_scorer_reads_the_settings_of_its_dataset(task):
    assert "self.config" not in inspect.getsource(DATASETS[task][0].score_answer)


@pytest.mark.parametrize("task", QUICK_TASKS)
def test_a_scorer_neither_runs_text_as_python_nor_leaves_the_process(task, watched):
    assert_scorer_only_computes(task, watched)


@pytest.mark.slow
@pytest.mark.parametrize("task", ALLOWED_TASKS)
def test_no_allowed_scorer_runs_text_as_python_or_leaves_the_process(task, watched):
    assert_scorer_only_computes(task, watched)


@pytest.mark.parametrize("task", ["bitwise_arithmetic", "n_queens", "puzzle24"])
def test_a_scorer_that_runs_text_as_python_is_noticed(task, watched):
    raw, row = reasoning_gym.get_score_answer_fn(task), rows_of(task, num_rows=1)[0]
    with watched() as events:
        raw("1 + 1", row)
    assert "compile" in events


def assert_scorer_only_computes(task, watched):
    row = rows_of(task, num_rows=1)[0]
    texts = (row["answer"], row["question"], "1 + 1", "__import__('os').getpid()", "[[1, 2], [3, 4]]")
    for text in texts:
        WHOLE(text, row)  # what is imported at the first call is none of the scorer's doings
    with watched() as events:
        for text in texts:
            WHOLE(text, row)
    assert set(events) <= {"object.__getattr__", "sys._getframe", "builtins.id"}, set(events)


_WATCHERS = []


def _audit(event, arguments):
    for events in _WATCHERS:
        events.append(event)


@pytest.fixture(scope="session")
def watched():
    """A context that lists the interpreter's audit events: compile, exec, open, socket.connect and their like."""
    sys.addaudithook(_audit)

    @contextmanager
    def watch():
        events = []
        _WATCHERS.append(events)
        try:
            yield events
        finally:
            _WATCHERS.clear()

    return watch


LEFT_OUT_FOR_WHAT_THEY_DO = [
    ("game_of_life_halting", "junk", 0.9),
    ("complex_arithmetic", "nan", 0.9),
    ("coin_flip", "0", 0.9),
    ("tsumego", "junk", 0.0),
    ("tower_of_hanoi", " ", 0.0),
    ("group_anagrams", "[]", 0.0),
    ("mini_sudoku", "1 2 3 4", 0.0),
]


@pytest.mark.parametrize(("task", "junk", "above"), LEFT_OUT_FOR_WHAT_THEY_DO)
def test_what_is_left_out_gives_junk_a_score_indeed(task, junk, above):
    raw = reasoning_gym.get_score_answer_fn(task)
    assert max(raw(junk, row) for row in rows_of(task, num_rows=20)) > above


def test_an_own_answer_that_is_empty_is_why_ab_is_left_out():
    assert any(row["answer"] == "" for row in rows_of("ab", num_rows=100))


@pytest.fixture(scope="module")
def row():
    dataset = reasoning_gym.create_dataset("chain_sum", seed=1, size=1)
    return json.loads(json.dumps(dataset[0])) | {"answer": "426"}


@pytest.mark.parametrize(
    ("answer_in", "completion", "value"),
    [
        ("whole", "426", 1.0),
        ("whole", " +0426.0\n", 1.0),
        ("whole", "It is 426", 0.0),
        ("whole", "", 0.0),
        ("tags", "<think>425?</think><answer> 426 </answer>", 1.0),
        ("tags", "<answer>425</answer> no, <answer>426</answer>", 1.0),
        ("tags", "<answer>426</answer> no, <answer>425</answer>", 0.0),
        ("tags", "<answer>426</answer> no, <answer>425", 0.0),
        ("tags", "<answer><answer>426</answer></answer>", 1.0),
        ("tags", "<answer>425 or 426</answer>", 0.0),
        ("tags", "<answer></answer>426", 0.0),
        ("tags", "426</answer>", 0.0),
        ("tags", "426", 0.0),
        ("box", r"first \boxed{425}, so it must be \boxed{426}.", 1.0),
        ("box", r"\boxed{425} or \boxed{426}", 0.0),
        ("box", r"\boxed{426", 0.0),
        ("box", "426", 0.0),
    ],
)
def test_the_answer_is_taken_from_where_the_option_says(row, answer_in, completion, value):
    reward = build("generated", {"answer_in": answer_in})(completion, row)
    assert (reward.status, reward.value) == (Status.SCORED, value)


def test_the_tag_has_the_name_of_the_option(row):
    assert build("generated", {"answer_tag": "final"})("<final>426</final>", row).value == 1.0


@pytest.mark.parametrize("tag", ["", "<answer>", "a b", "/answer"])
def test_a_tag_that_is_no_name_is_refused(tag):
    with pytest.raises(ValueError, match="reward generated: answer_tag"):
        build("generated", {"answer_tag": tag})


def test_a_part_of_the_score_is_told_but_counts_nothing(row):
    reward = WHOLE("426 or so", row)
    assert reward.value == 0.0
    assert reward.parts["score"] == pytest.approx(3 / 9)


def test_an_answer_that_is_far_too_long_is_wrong_without_being_read(row):
    reward = WHOLE("0" * MAX_ANSWER_CHARACTERS + "426", row)
    assert (reward.value, reward.detail) == (0.0, f"an answer of {MAX_ANSWER_CHARACTERS + 3} characters")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": None}, r"problem\['answer'\] = None"),
        ({"answer": " "}, r"problem\['answer'\] = ' '"),
        ({"answer": 426}, r"problem\['answer'\] = 426"),
        ({"metadata": None}, r"problem\['metadata'\] = 'None'"),
        ({"metadata": '{"source_dataset": "gcd"}'}, "JSON text must be decoded"),
        ({"metadata": {}}, "source_dataset'] = None: not a task"),
        ({"metadata": {"source_dataset": ["gcd"]}}, "not a task"),
        ({"metadata": {"source_dataset": "no_such_task"}}, "not a task"),
        ({"metadata": {"source_dataset": "countdown"}}, "parse_expr"),
        ({"metadata": {"source_dataset": "kakurasu"}}, "no entry of kakurasu.*KeyError"),
        ({"metadata": {"source_dataset": "number_format", "solution": 5.0}}, "'426' scores 0, not 1"),
    ],
)
def test_a_row_that_cannot_be_judged_is_an_error_and_never_a_zero(row, change, told):
    reward = WHOLE("426", row | change)
    assert (reward.status, reward.value) == (Status.ERROR, None)
    assert re.search(told, reward.detail.replace("\\", "")), reward.detail


@pytest.mark.parametrize(("raised", "status"), [(ValueError, Status.SCORED), (MemoryError, Status.ERROR)])
def test_a_scorer_that_chokes_on_a_text_calls_it_wrong_and_one_that_fails_is_an_error(row, raised, status, monkeypatch):
    def scorer(answer, entry):
        if answer != entry["answer"]:
            raise raised("no")
        return 1

    monkeypatch.setattr(generated, "_scorer", lambda task: scorer)
    assert WHOLE("426", row).value == 1.0
    assert (WHOLE("425", row).status, WHOLE("425", row).value) == (status, 0.0 if status is Status.SCORED else None)


def test_judging_leaves_the_row_as_it_was():
    survo = rows_of("survo", num_rows=1)[0]
    before = json.dumps(survo)
    WHOLE("UDLR", survo)
    assert json.dumps(survo) == before


def test_rows_of_a_composite_are_scored_as_the_tasks_that_made_them():
    specs = [reasoning_gym.composite.DatasetSpec(name=name, weight=1, config={}) for name in ("gcd", "lcm")]
    dataset = reasoning_gym.create_dataset("composite", seed=1, size=6, datasets=specs)
    for index in range(6):
        row = json.loads(json.dumps(dataset[index], default=str))
        assert WHOLE(row["answer"], row).value == 1.0, row


@pytest.mark.slow
def test_it_works_in_a_worker_within_the_default_limits(row):
    with Pool(workers=1, timeout_seconds=5.0) as pool:
        calls = [(RewardSpec("generated", options={"answer_in": "whole"}), text, row) for text in ("426", "425")]
        assert [reward.value for reward in pool.score_all(calls)] == [1.0, 0.0]
