"""How the judge's options are checked, its rubric filled and its answers read: no network."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.judging.http import EXCERPT_CHARACTERS, excerpt
from rewards.judging.options import SETTLE_SECONDS, JudgeOptions, worst_case_seconds
from rewards.judging.rubric import RowError, Rubric, fence
from rewards.judging.scale import (
    Answer,
    NoAnswerError,
    parse_answer,
    score_of_logprobs,
    score_of_text,
)
from tests.judge_server import completion, text_completion


def verdict(tokens, *, lowest=0, highest=100, minimum_mass=0.25, written=()):
    alternatives = tuple((token, math.log(share)) for token, share in tokens)
    answer = Answer(text="", alternatives=alternatives, tokens=written)
    return score_of_logprobs(answer, lowest=lowest, highest=highest, minimum_mass=minimum_mass)


@pytest.mark.parametrize(
    ("tokens", "score", "mass"),
    [
        ([("80", 0.5), ("90", 0.5)], 85.0, 1.0),
        ([("80", 0.25), ("90", 0.25), ("I", 0.5)], 85.0, 0.5),
        ([("80", 0.2), (" 80", 0.2), ("\u258180", 0.1), ("\u012080", 0.1), ("20", 0.4)], 56.0, 1.0),
        ([("0", 0.5), ("100", 0.5)], 50.0, 1.0),
        ([("100", 0.5), ("101", 0.5)], 100.0, 0.5),
        ([("50", 0.5), ("-1", 0.2), ("5.5", 0.1), ("050", 0.1), ("5\u00b2", 0.05), ("\uff15", 0.05)], 50.0, 0.5),
        ([("50", 0.25), ("no", 0.75)], 50.0, 0.25),
        ([("50", 0.2499), ("no", 0.75)], None, 0.2499),
        ([("no", 1.0)], None, 0.0),
    ],
)
def test_the_score_is_the_expected_value_over_whole_numbers_on_the_scale(tokens, score, mass):
    found = verdict(tokens)
    assert found.mass == pytest.approx(mass)
    assert found.score == (None if score is None else pytest.approx(score))


def test_numbers_outside_another_scale_do_not_count():
    found = verdict([("0", 0.25), ("1", 0.25), ("9", 0.25), ("10", 0.25)], lowest=1, highest=9)
    assert found.score == pytest.approx(5.0)
    assert found.mass == pytest.approx(0.5)


def test_a_number_written_in_several_tokens_is_no_score_of_its_first_digit():
    with pytest.raises(NoAnswerError, match=r"'85' in several tokens.*highest: 9"):
        verdict([("8", 0.9), ("9", 0.1)], written=("8", "5"))
    assert verdict([("85", 1.0)], written=("85", "\n")).score == pytest.approx(85.0)
    assert verdict([("85", 1.0)], written=("85",)).score == pytest.approx(85.0)


def test_probabilities_that_add_up_to_more_than_one_are_refused():
    with pytest.raises(NoAnswerError, match="add up to 2"):
        verdict([("85", 1.0), ("86", 1.0)])


@given(st.lists(st.tuples(st.integers(-5, 120).map(str) | st.text(max_size=3), st.floats(0.001, 1.0)), min_size=1))
def test_a_score_is_on_the_scale_whatever_the_tokens(tokens):
    total = sum(share for _, share in tokens)
    found = verdict([(token, share / total) for token, share in tokens])
    assert found.score is None or 0.0 <= found.score <= 100.0


@pytest.mark.parametrize("logprob", [math.inf, math.nan, None, "0", True, 0.5, 10**400, [0.0]])
def test_what_is_no_logprob_is_refused(logprob):
    reply = json.loads(completion({"85": 1.0}))
    reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = logprob
    with pytest.raises(NoAnswerError, match="no token with a log-prob"):
        parse_answer(reply, logprobs=True)


@pytest.mark.parametrize("logprob", [-math.inf, -(10**400), -9999, -9999.0])
def test_a_logprob_of_no_chance_at_all_is_a_share_of_zero(logprob):
    reply = json.loads(completion({"85": 1.0, "10": 0.5}))
    reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1]["logprob"] = logprob
    answer = parse_answer(reply, logprobs=True)
    assert score_of_logprobs(answer, lowest=0, highest=100, minimum_mass=0.25).score == pytest.approx(85.0)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [],
        {},
        {"choices": []},
        {"choices": {}},
        {"choices": ["85"]},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": None}}]},
        {"choices": [{"logprobs": {"content": []}}]},
        {"choices": [{"logprobs": {"content": [None]}}]},
        {"choices": [{"logprobs": {"content": [{}]}}]},
        {"choices": [{"logprobs": {"content": [{"top_logprobs": []}]}}]},
        {"choices": [{"logprobs": {"content": [{"top_logprobs": [{}]}]}}]},
        {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": 85, "logprob": 0}]}]}}]},
        {"choices": [{"logprobs": {"tokens": ["85"], "top_logprobs": [{"85": 0}]}}]},
    ],
)
def test_an_answer_without_its_fields_is_none(reply):
    with pytest.raises(NoAnswerError):
        parse_answer(reply, logprobs=True)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("85", 85.0),
        ("I saw 3 faults.\nScore: 85", 85.0),
        ("Score: **85**.", 85.0),
        ("85/100", 85.0),
        ("85 / 100.", 85.0),
        ("85 out of 100", 85.0),
        ("8/10", None),
        ("7.5", 7.5),
        ("101", None),
        ("-5", None),
        ("about 80-85", 85.0),
        ("<think>90? No, 95.</think> 40", 40.0),
        ("good", None),
        ("score_85", None),
        ("the 3rd", None),
        ("\u0668\u0665", None),
        ("9" * 5000, None),
    ],
)
def test_text_is_read_for_its_last_number(text, score):
    assert score_of_text(Answer(text), lowest=0, highest=100).score == score


@pytest.mark.parametrize(
    ("pattern", "text", "score"),
    [
        (r"Score: (\d+)", "Score: 20. Score: 30, of 100", 30.0),
        (r"\d+", "20, then 30", 30.0),
        (r"Score: (\d+)", "30", None),
        (r"Score: (\w+)", "Score: nan", None),
        (r"Score: (\w+)?", "Score: ", None),
    ],
)
def test_a_pattern_says_where_the_number_stands(pattern, text, score):
    assert score_of_text(Answer(text), lowest=0, highest=100, pattern=pattern).score == score


@pytest.mark.parametrize(
    "reply", [text_completion(None), text_completion(" "), text_completion("9", finish_reason="length")]
)
def test_text_that_is_empty_or_cut_off_is_no_answer(reply):
    with pytest.raises(NoAnswerError):
        parse_answer(json.loads(reply), logprobs=False)


@given(
    st.builds(
        Answer,
        st.text(),
        st.lists(st.tuples(st.text(), st.floats(-1e4, 0))).map(tuple),
        st.lists(st.text(), max_size=2).map(tuple),
    )
)
def test_an_answer_comes_out_of_the_cache_as_it_went_in(answer):
    assert Answer.from_json(answer.to_json()) == answer


@pytest.mark.parametrize(
    "stored", ["", "null", "[]", "[1,2,3]", '["a", [["b", NaN]], []]', '["a", [["b", 3]], []]', "[" * 10**5]
)
def test_what_is_no_answer_does_not_come_out_of_the_cache(stored):
    with pytest.raises(ValueError):  # noqa: PT011  # json's, or NoAnswerError: each of them is a miss
        Answer.from_json(stored)


ROW = {"prompt": "2+2?", "answer": "4", "steps": [1, "\u00e9"], "empty": None}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{prompt}|{completion}", "2+2?|C"),
        ("{question}|{answer}", "2+2?|C"),
        ("{completion}|{row.answer}", "C|4"),
        ("{completion} {row.steps}", 'C [1, "\u00e9"]'),
        (
            '{completion} as {"score": {"n": 1}} or {} or { prompt } or {0}',
            'C as {"score": {"n": 1}} or {} or { prompt } or {0}',
        ),
        ("{completion} {{prompt}} {{row.x}} }} {{", "C {prompt} {row.x} }} {{"),
        ("{completion}{completion}", "CC"),
    ],
)
def test_a_rubric_is_filled(template, filled):
    assert Rubric(template).fill("C", ROW) == filled


@pytest.mark.parametrize(
    "completion", ["{prompt}", "{{prompt}}", "{row.answer}", "{", "}{0}", r"\g<name> \1 \n", "{completion}"]
)
def test_a_completion_with_braces_or_backslashes_stays_as_it_is(completion):
    assert Rubric("{completion}|{prompt}").fill(completion, ROW) == f"{completion}|2+2?"
    assert Rubric("{completion}|{prompt}").fill("C", {"prompt": completion}) == f"C|{completion}"


def test_a_column_can_be_named_without_row_where_it_is_listed():
    assert Rubric("{completion} {steps}", columns=("steps",)).fill("C", {"steps": 3}) == "C 3"


@pytest.mark.parametrize(
    ("template", "columns", "message"),
    [
        ("{complation}", (), r"\{complation\} is not a placeholder; did you mean 'completion'"),
        ("{completion} {steps}", (), r"\{row.steps\}"),
        ("{prompt}", (), "the completion is not in it"),
        ("", (), "the completion is not in it"),
        ("{completion} gold {answer}", (), r"both are in it; the row's own answer is \{row.answer\}"),
        ("{completion}", ("answer",), r"write \{row.answer\}"),
    ],
)
def test_a_rubric_that_cannot_be_meant_is_refused(template, columns, message):
    with pytest.raises(ValueError, match=message):
        Rubric(template, columns=columns)


@pytest.mark.parametrize(("name", "how"), [("missing", "missing"), ("empty", "null")])
def test_a_row_without_what_the_rubric_wants_is_named(name, how):
    with pytest.raises(RowError, match=rf"problem\['{name}'\], which is {how}"):
        Rubric(f"{{completion}} {{row.{name}}}").fill("C", ROW)


@given(st.text())
def test_no_completion_holds_its_own_fence(completion):
    filled = Rubric("{fence}\n{completion}\n{fence}").fill(completion, {})
    assert filled.split(fence(completion)) == ["", f"\n{completion}\n", ""]


def test_even_a_completion_that_knows_another_ones_fence_gets_its_own():
    assert fence(fence("a")) != fence("a")
    assert fence("\ud800")  # a lone surrogate has one as well


GOOD = {"base_url": "http://localhost:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "ftp://host/v1"}, "http:// or https://"),
        ({"base_url": "http:///v1"}, "a host"),
        ({"base_url": "http://host:99999/v1"}, "no address"),
        ({"base_url": "http://host/v 1"}, "plain ASCII"),
        ({"base_url": "http://host/v1?a=b"}, r"without \? and #"),
        ({"base_url": "http://host/v1/chat/completions"}, "must stop before"),
        ({"model": ""}, "model"),
        ({"run": ""}, "run"),
        ({"lowest": 5, "highest": 5}, "lowest < highest"),
        ({"lowest": -1}, "0 <= lowest"),
        ({"highest": 1000}, "<= 999"),
        ({"minimum_mass": 0.0}, "minimum_mass"),
        ({"minimum_mass": math.nan}, "minimum_mass"),
        ({"pattern": r"(\d)"}, "is for read = 'text'"),
        ({"pattern": "(", "read": "text"}, "no regular expression"),
        ({"pattern": "(a)(b)", "read": "text"}, "has 2 groups"),
        ({"extra": {"model": "other"}}, r"\['model'\] are set by other options"),
        ({"extra": {"stream": True}}, "stream"),
        ({"extra": {"seed": math.nan}}, "plain JSON"),
        ({"extra": {"seed": {1}}}, "plain JSON"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"timeout_seconds": math.inf}, "timeout_seconds"),
        ({"request_timeout_seconds": math.nan}, "request_timeout_seconds"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_answer_tokens": 0}, "max_answer_tokens"),
        ({"requests_per_minute": 0, "cache_folder": "c"}, "requests_per_minute = 0"),
        ({"budget_requests": -1, "cache_folder": "c"}, "budget_requests = -1"),
        ({"budget_tokens": 5}, "needs cache_folder"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JudgeOptions(**{**GOOD, **options})


@pytest.mark.parametrize(
    "options",
    [{"api_key_env": "sk-secret123"}, {"api_key_env": "gsk_secret123"}, {"base_url": "http://user:secret123@host/v1"}],
)
def test_a_secret_in_the_wrong_place_is_refused_without_repeating_it(options):
    with pytest.raises(ValueError, match=r"api_key_env|base_url") as caught:
        JudgeOptions(**{**GOOD, **options})
    assert "secret123" not in str(caught.value)


def test_the_worst_case_is_the_timeout_and_what_is_written_down_after_it():
    assert worst_case_seconds(JudgeOptions(**GOOD, timeout_seconds=7.0)) == 7.0 + SETTLE_SECONDS


def test_the_rubric_is_text_or_a_file_and_not_both(tmp_path):
    file = tmp_path / "rubric.txt"
    file.write_text("{completion}\u00e9", encoding="utf-8")
    assert JudgeOptions(**GOOD, rubric_file=str(file)).read_rubric() == "{completion}\u00e9"
    assert JudgeOptions(**GOOD, rubric="R").read_rubric() == "R"
    file.write_bytes(b"\xff\xfe\xff")
    bad = [{}, {"rubric": "R", "rubric_file": "f"}, {"rubric_file": "nowhere"}, {"rubric_file": str(file)}]
    for options in bad:
        with pytest.raises(ValueError, match="rubric"):
            JudgeOptions(**GOOD, **options).read_rubric()


@given(st.text())
def test_an_excerpt_is_one_short_printable_line(body):
    text = excerpt(body)
    assert text.isprintable()
    assert len(text) <= 2 * EXCERPT_CHARACTERS + 2  # repr may write a quote or a backslash as two
