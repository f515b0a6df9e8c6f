"""The format reward."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewards import Status, build

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
        ("<think>a</think>\u200b<answer>b</answer>", 0.0),
        ("<think>\u200b\u2060</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>\x00\ufeff</answer>", 0.0),
        ("<think>a</think><answer>?</answer>", 1.0),
        ("<think>a</think><answer>😀</answer>", 1.0),
        ("<think>a</think><answer>b</answer><answer>", 0.0),
        ("<think>a</think><answer>b</answer></think>", 0.0),
        ("<think>say <answer>c</answer></think><answer>b</answer>", 0.0),
        ("<think>a<b>bold</b> < 3 <thinking></think><answer>b</answer>", 1.0),
        ("<think >a</think><answer>b</answer>", 0.0),
        ("＜think＞a＜/think＞＜answer＞b＜/answer＞", 0.0),
        ("```\n<think>a</think><answer>b</answer>\n```", 0.0),
        ("<think>a</think><answer>b</answer><|im_end|>", 0.0),
        ("&lt;think&gt;a&lt;/think&gt;&lt;answer&gt;b&lt;/answer&gt;", 0.0),
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


@pytest.mark.parametrize("finished", [None, "false", 0, 1, []])
def test_a_row_that_does_not_say_whether_it_finished_is_an_error(finished):
    reward = build("format", {})(GOOD, {"finished": finished})
    assert (reward.status, reward.value) == (Status.ERROR, None)
    assert f"problem['finished'] = {finished!r}" in reward.detail


@given(thought=st.text(max_size=50), answer=st.text(max_size=50))
def test_the_text_inside_is_free_as_long_as_it_can_be_seen_and_holds_no_tag(thought, answer):
    assume(not any(tag in thought + answer for tag in ("<think>", "</think>", "<answer>", "</answer>")))
    can_be_seen = all(any(mark.isprintable() for mark in text.strip()) for text in (thought, answer))
    value = build("format", {})(f"<think>{thought}</think><answer>{answer}</answer>", {}).value
    assert value == float(can_be_seen)


def test_a_megabyte_of_tags_is_judged_at_once():
    start_seconds = time.process_time()
    assert build("format", {})("<think>" * 150_000, {}).value == 0.0
    assert time.process_time() - start_seconds < 1.0
