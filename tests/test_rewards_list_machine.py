"""The list machine's interpreter and reward."""

from __future__ import annotations

import pytest

from rewards import Reward, build
from rewards.list_machine import OPERATIONS, parse_prompt, run, trace

VERIFIER = build("list_machine", {})


@pytest.mark.parametrize(
    ("operation", "digits", "after"),
    [
        ("r", "13542", "24531"),
        ("l", "13431", "34311"),
        ("t", "13542", "21354"),
        ("s", "90514", "01459"),
        ("d", "90514", "95410"),
        ("x", "13542", "23541"),
        ("i", "09189", "10290"),
        ("m", "09145", "90854"),
        ("z", "12345", "21435"),
        ("e", "13542", "42135"),
        ("e", "98706", "80697"),
    ],
)
def test_each_operation_does_what_its_name_says(operation, digits, after):
    assert OPERATIONS[operation](digits) == after


def test_there_are_ten_operations():
    assert sorted(OPERATIONS) == sorted("rltsdximze")


def test_the_example_of_the_documentation_holds():
    assert parse_prompt(">lr?>13431") == ("13431", "lr")
    assert run("13431", "lr") == ["34311", "11343"]
    assert trace("13431", "lr") == "l34311r11343"
    assert trace("13431", "ltx") == "l34311t13431x13431"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        ">?>13431",
        ">lr?>1343",
        ">lr?>134310",
        ">lr>13431",
        ">lq?>13431",
        ">" + "r" * 10 + "?>13431",
        ">lr?>1343١",
        ">lr?>13431\n",
    ],
)
def test_a_prompt_of_another_form_is_refused_and_scored_as_an_error(prompt):
    with pytest.raises(ValueError, match="list machine prompt"):
        parse_prompt(prompt)
    reward = VERIFIER("l34311r11343", {"prompt": prompt})
    assert reward.status == "error"
    assert "list machine prompt" in reward.detail


def test_run_refuses_what_is_no_list_or_no_operation():
    for digits, operations in [("1343", "r"), ("13431", ""), ("13431", "q")]:
        with pytest.raises(ValueError, match="list machine prompt"):
            run(digits, operations)


@pytest.mark.parametrize(
    ("completion", "finished", "value"),
    [
        ("l34311r11343", True, 1.0),
        ("l34311r11343", None, 1.0),
        ("l34311r11343", False, 0.0),
        ("11343", True, 1.0),
        ("l00000r11343", True, 1.0),
        ("l34311r1134", True, 0.0),
        ("l34311r11343 ", True, 0.0),
        ("l34311r11343\n", True, 0.0),
        ("l34311r11344", True, 0.0),
        ("l34311r１１３４３", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_only_the_last_five_characters_and_the_end_count(completion, finished, value):
    problem = {"prompt": ">lr?>13431"} if finished is None else {"prompt": ">lr?>13431", "finished": finished}
    reward = VERIFIER(completion, problem)
    assert reward.value == value
    assert set(reward.parts) == {"correct", "finished"}


def test_a_right_list_that_did_not_finish_is_correct_in_its_parts_only():
    reward = VERIFIER("l34311r11343", {"prompt": ">lr?>13431", "finished": False})
    assert reward == Reward.scored(
        0.0,
        parts={"correct": 1.0, "finished": 0.0},
        detail="last list 11343, expected 11343, not finished",
        answer="11343",
    )
