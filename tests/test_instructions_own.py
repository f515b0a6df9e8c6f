"""Checkers of a user's own in the reward `instructions`."""

from __future__ import annotations

import pytest

from rewards import Pool, RewardSpec, build


def follow(name, completion, kwargs, **options):
    """The Reward for one instruction."""
    return build("instructions", options)(completion, {"instruction_id_list": [name], "kwargs": [kwargs]})


OWN = """
def rhymes(completion, *, ending, times=1):
    return completion.count(ending) >= times

def number(completion):
    return 1

def crash(completion):
    return 1 / 0

def refuse(completion):
    raise ValueError("not today")
"""


@pytest.fixture
def own(tmp_path):
    """The option `checkers` with one name for each function of OWN."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return {"checkers": {f"verse:{name}": f"{path}:{name}" for name in ("rhymes", "number", "crash", "refuse")}}


@pytest.mark.parametrize(
    ("kwargs", "value"),
    [({"ending": "at"}, 1.0), ({"ending": "at", "times": 3}, 0.0), ({"ending": "at", "times": None}, 1.0)],
)
def test_a_checker_of_the_users_gets_the_arguments_of_the_row(own, kwargs, value):
    reward = follow("verse:rhymes", "cat hat", kwargs, **own)
    assert reward.value == value
    assert set(reward.parts) == {"verse", "followed"}


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("verse:rhymes", {}, "missing a required argument: 'ending'"),
        ("verse:rhymes", {"ending": "at", "time": 2}, "unexpected keyword argument 'time'"),
        ("verse:number", {}, "returned 1: must return True or False"),
        ("verse:crash", {}, "ZeroDivisionError: division by zero (line 9"),
        ("verse:refuse", {}, "ValueError: not today (line 12"),
    ],
)
def test_a_checker_of_the_users_that_fails_is_an_error_and_not_a_zero(own, name, kwargs, words):
    reward = follow(name, "cat hat", kwargs, **own)
    assert reward.status == "error"
    assert name in reward.detail
    assert words in reward.detail


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("punctuation:no_comma", "own.py:number", "name of your own"),
        (" ", "own.py:number", "name of your own"),
        ("mine", "own.py", "FILE.py:FUNCTION"),
        ("mine", "own.py:", "FILE.py:FUNCTION"),
        ("mine", "other.py:number", "no such file"),
        ("mine", "own.py:nothing", "defines no 'nothing'"),
        ("mine", "broken.py:number", "NameError"),
        ("mine", "ends.py:number", "SystemExit"),
    ],
)
def test_a_checker_of_the_users_that_cannot_be_had_is_refused(tmp_path, monkeypatch, name, place, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("undefined")
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match=words):
        build("instructions", {"checkers": {name: place}})


def test_a_pool_judges_as_this_process_does(own):
    names = ["verse:rhymes", "length_constraints:number_sentences", "change_case:english_capital", "startend:quotation"]
    kwargs = [{"ending": "AT"}, {"num_sentences": 2, "relation": "at least"}, {}, {}]
    problem = {"instruction_id_list": names, "kwargs": kwargs}
    with Pool(workers=1) as pool:
        there = pool.submit(RewardSpec("instructions", options=own), "THE CAT SAT. IT DID.", problem).result()
    assert there == build("instructions", own)("THE CAT SAT. IT DID.", problem)
    assert there.parts["followed"] == 0.75
