"""The soft overlong penalty, as a function and as a reward."""

from __future__ import annotations

import pytest

from rewards import Status, build, soft_overlong_penalty


@pytest.mark.parametrize(
    ("num_tokens", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (95, -0.75), (100, -1.0), (101, -1.0), (1000, -1.0)],
)
def test_the_penalty_falls_linearly_over_the_buffer(num_tokens, penalty):
    assert soft_overlong_penalty(num_tokens, limit_tokens=100, buffer_tokens=20) == pytest.approx(penalty)


@pytest.mark.parametrize(("num_tokens", "limit", "buffer"), [(1, 100, 0), (1, 100, 101), (1, 0, 0), (-1, 100, 10)])
def test_impossible_lengths_are_refused(num_tokens, limit, buffer):
    with pytest.raises(ValueError, match="tokens"):
        soft_overlong_penalty(num_tokens, limit_tokens=limit, buffer_tokens=buffer)


TOKENS = {"limit": 100, "buffer": 20}


@pytest.mark.parametrize(("num_tokens", "penalty"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (1000, -1.0)])
def test_tokens_are_read_from_the_row_whatever_the_text(num_tokens, penalty):
    reward = build("length", TOKENS)("one two", {"num_tokens": num_tokens})
    assert reward.value == pytest.approx(penalty)
    assert reward.parts == {"length": num_tokens}


@pytest.mark.parametrize("row", [{}, *({"num_tokens": value} for value in (None, -1, 7.0, "7", True, [7]))])
def test_a_row_without_a_usable_number_of_tokens_is_an_error(row):
    reward = build("length", TOKENS)("one two", row)
    assert (reward.status, reward.value) == (Status.ERROR, None)
    assert "num_tokens" in reward.detail
    assert "words or characters" in reward.detail


@pytest.mark.parametrize(
    ("unit", "completion", "length", "penalty"),
    [
        ("words", "", 0, 0.0),
        ("words", " one  two\nthree ", 3, 0.0),
        ("words", "w " * 8, 8, 0.0),
        ("words", "w " * 9, 9, -0.5),
        ("words", "w " * 10, 10, -1.0),
        ("words", "你好世界你好世界你好", 1, 0.0),
        ("characters", "12345678", 8, 0.0),
        ("characters", "123456789", 9, -0.5),
        ("characters", "        \n\n", 10, -1.0),
        ("characters", "😀" * 9, 9, -0.5),
        ("characters", "\ud800" * 11, 11, -1.0),
    ],
)
def test_words_and_characters_are_counted_in_the_text(unit, completion, length, penalty):
    reward = build("length", {"limit": 10, "buffer": 2, "unit": unit})(completion, {"num_tokens": 1})
    assert (reward.value, reward.parts["length"]) == (pytest.approx(penalty), length)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "option limit is missing"),
        ({"limit": 10}, "option buffer is missing"),
        ({"limit": 10, "buffer": 0}, "limit = 10, buffer = 0"),
        ({"limit": 10, "buffer": 11}, "limit = 10, buffer = 11"),
        ({"limit": 10, "buffer": 2, "unit": "letters"}, "must be one of"),
        ({"limit": 10.0, "buffer": 2}, "option limit = 10.0: must be a int"),
    ],
)
def test_limits_that_mean_nothing_are_refused(options, told):
    with pytest.raises(ValueError, match=f"reward length: .*{told}"):
        build("length", options)
