"""Rewards by name, and a user's own from a file."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewards import REWARD_NAMES, Reward, RewardSpec, build, build_spec, load_function
from rewards.guard import guard

OWN = """
import math
from rewards import Reward

NUMBER = 3

class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

def give(completion, problem, *, what="float"):
    return {"float": 0.5, "int": 1, "bool": True, "none": None, "reward": Reward.scored(2, parts={"a": 1}),
            "nan": math.nan, "inf": -math.inf, "list": [1.0], "text": "1.0", "huge": 10**400}[what]

def array(completion, problem):
    import numpy
    return numpy.ones(3)

def fail(completion, problem):
    helper()

def helper():
    return 1 / 0

def unprintable(completion, problem):
    raise Unprintable

def leave(completion, problem):
    raise SystemExit(3)

def bad_parts(completion, problem):
    return Reward.scored(1.0, parts={"a": math.nan})

def stop(completion, problem):
    raise KeyboardInterrupt
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


NEEDED = {
    "compose": {"rewards": {"format": {"name": "format"}}},
    "length": {"limit": 10, "buffer": 5},
    "judge": {"base_url": "http://127.0.0.1:9/v1", "model": "none", "rubric": "{completion}", "max_retries": 0},
}
"""Options of the rewards that have some without a default; nobody listens at that port."""


@pytest.mark.parametrize("name", REWARD_NAMES)
def test_every_built_in_gives_a_reward_and_never_raises_whatever_it_is_asked(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the judge keeps a folder
    verifier = build(name, NEEDED.get(name, {}))
    for completion in ("", "\x00\ud800", "x" * 10_000):
        for problem in ({}, {"answer": None, "prompt": None}, {"answer": "1", "prompt": ">lr?>13431"}):
            assert isinstance(verifier(completion, problem), Reward)


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(ValueError, match="did you mean 'math_answer'") as caught:
        build("math_anwser", {})
    assert all(name in str(caught.value) for name in REWARD_NAMES)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"extrct": ["boxed"]}, "did you mean 'extract'"),
        ({"extract": "boxed"}, "must be a list of strings"),
        ({"extract": [1]}, "must be a list of strings"),
        ({"answer_key": 1}, "must be a str"),
    ],
)
def test_an_option_that_is_unknown_or_of_the_wrong_type_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        build("math_answer", options)


def test_a_bool_is_not_taken_for_text_nor_text_for_a_bool():
    with pytest.raises(ValueError, match="must be a bool"):
        build("format", {"opened_by_prompt": "yes"})


@pytest.mark.parametrize(
    ("what", "reward"),
    [
        ("float", Reward.scored(0.5)),
        ("int", Reward.scored(1.0)),
        ("bool", Reward.scored(1.0)),
        ("none", Reward.abstained("give returned None")),
        ("reward", Reward.scored(2.0, parts={"a": 1})),
    ],
)
def test_a_function_may_return_a_number_a_reward_or_none(own, what, reward):
    assert load_function(own, "give", {"what": what})("", {}) == reward


@pytest.mark.parametrize("what", ["nan", "inf", "list", "text", "huge"])
def test_whatever_else_it_returns_is_an_error_that_names_function_value_and_rule(own, what):
    reward = load_function(own, "give", {"what": what})("", {})
    assert reward.status == "error"
    assert reward.detail.startswith("give returned")
    assert "a reward function returns a finite float" in reward.detail


def test_an_array_is_an_error(own):
    assert "ndarray" in load_function(own, "array", {})("", {}).detail


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("fail", "fail raised ZeroDivisionError: division by zero (line 23 of own.py, in helper)"),
        ("unprintable", "Unprintable"),
        ("leave", "SystemExit: 3"),
        ("bad_parts", "ValueError: Reward.parts['a'] = nan"),
    ],
)
def test_what_it_raises_is_an_error_with_type_message_and_line(own, function, told):
    reward = load_function(own, function, {})("", {})
    assert reward.status == "error"
    assert told in reward.detail


def test_a_keyboard_interrupt_is_the_users_and_goes_through(own):
    with pytest.raises(KeyboardInterrupt):
        load_function(own, "stop", {})("", {})


@pytest.mark.parametrize(
    ("function", "options", "told"),
    [
        ("giv", {}, "did you mean 'give'"),
        ("NUMBER", {}, "is a int, not a function"),
        ("give", {"wat": 1}, "unexpected keyword argument 'wat'"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_with_its_file_and_the_remedy(own, function, options, told):
    with pytest.raises(ValueError, match=told) as caught:
        load_function(own, function, options)
    assert "own.py" in str(caught.value)
    assert function in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1 / 0\n", r"ZeroDivisionError: division by zero \(line 1"),
        ("def f(:\n", "SyntaxError"),
        ("exit()", "Exit"),
    ],
)
def test_a_file_that_fails_when_it_is_run_is_refused_with_the_line(tmp_path, text, told):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        load_function(str(path), "f", {})


def test_a_missing_file_is_refused_by_its_name(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_function(str(tmp_path / "missing.py"), "f", {})


def test_a_file_that_is_no_python_file_is_refused(tmp_path):
    (tmp_path / "own.txt").write_text("")
    with pytest.raises(ValueError, match=r"\.py"):
        load_function(str(tmp_path / "own.txt"), "f", {})


def test_a_spec_builds_what_it_names(own):
    assert build_spec(RewardSpec(file=own, function="give", options={"what": "int"}))("", {}).value == 1.0
    assert build_spec(RewardSpec("format"))("", {}).value == 0.0


def test_a_returned_number_is_a_plain_float(own):
    value = load_function(own, "give", {})("", {}).value
    assert type(value) is float
    assert math.isfinite(value)


@pytest.mark.parametrize("returned", [True, 1, 1.0, np.float32(1.0), np.float64(1.0), np.int64(1)])
def test_a_number_of_any_kind_is_a_value(returned):
    assert guard(lambda completion, problem: returned, title="mine")("", {}) == Reward.scored(1.0)
