"""The format reward."""

from __future__ import annotations

import pytest

from rewards import build

GOOD = "<think>a</think><answer>b</answer>"


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (GOOD, 1.0),
        (" \n<think>\na < b\n</think>\n\n<answer>\nb\n</answer>\n", 1.0),
        ("x" + GOOD, 0.0),
        (GOOD + "x", 0.0),
        ("<think>a</think>x<answer>b</answer>", 0.0),
        (GOOD + GOOD, 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think></think><answer>b</answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("a</think><answer>b</answer>", 0.0),
        ("<THINK>a</THINK><answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_only_one_thought_and_one_answer_in_order_with_nothing_outside_are_well_formed(completion, value):
    assert build("format", {})(completion, {}).value == value


def test_what_the_limit_has_cut_is_not_well_formed():
    reward = build("format", {})(GOOD, {"finished": False})
    assert reward.value == 0.0
    assert reward.parts == {"tags": 1.0, "finished": 0.0}


def test_the_tags_have_the_names_of_the_options():
    verifier = build("format", {"think_tag": "plan", "answer_tag": "final-answer"})
    assert verifier("<plan>a</plan><final-answer>b</final-answer>", {}).value == 1.0
    assert verifier(GOOD, {}).value == 0.0


def test_a_thought_that_the_prompt_opens_is_not_opened_again():
    verifier = build("format", {"opened_by_prompt": True})
    assert verifier("a</think><answer>b</answer>", {}).value == 1.0
    assert verifier(GOOD, {}).value == 0.0


@pytest.mark.parametrize("options", [{"think_tag": "<think>"}, {"answer_tag": "think"}, {"think_tag": ""}])
def test_tags_that_are_no_names_are_refused(options):
    with pytest.raises(ValueError, match=r"reward format: .*tag"):
        build("format", options)
