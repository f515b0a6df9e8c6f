"""The multiple-choice reward: labels and texts, rows and options, and text that is made to be slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import build

VERIFIER = build("multiple_choice", {})
CITIES = ["London", "Paris", "Rome", "Madrid"]


def value_of(completion: str, *, choices: object = CITIES, answer: object = "B") -> float | None:
    reward = VERIFIER(completion, {"answer": answer, "choices": choices})
    assert reward.status == "scored", reward.detail
    return reward.value


def detail_of(completion: str, *, choices: object = CITIES, answer: object = "B") -> str:
    return VERIFIER(completion, {"answer": answer, "choices": choices}).detail


NESTED = ["York", "New York", "New York City", "City"]
DOGS = ["cat", "dog", "a bird", "the cow"]
LETTERS = {"A": "B", "B": "A", "C": "D", "D": "C"}
BOTH = ["alpha", "beta", "Both A and B", "None of the above"]
CODE = ["Java", "C++", "Python", "Go"]
FORMULAS = [r"$\frac{1}{2}$", r"$\frac{1}{3}$", "$x^2$", "$x_1$"]
NUMBERED = {"1": "red", "2": "green", "3": "blue"}
CYRILLIC = {"А": "Лондон", "Б": "Париж", "В": "Рим"}
KANA = {"ア": "東京", "イ": "京都"}
ARABIC = {"أ": "لندن", "ب": "باريس"}
HAN = ["北京", "上海", "广州"]


@pytest.mark.parametrize(
    ("choices", "completion", "label"),
    [
        (NESTED, "The answer is York.", "A"),
        (NESTED, "The answer is New York.", "B"),
        (NESTED, "New York City", "C"),
        (NESTED, r"\boxed{\text{City}}", "D"),
        (NESTED, "The answer is New Yorkshire.", None),
        (DOGS, "A dog", "B"),
        (DOGS, "The answer is a dog.", "B"),
        (DOGS, "Answer: A bird", "C"),
        (DOGS, "cow", "D"),
        (DOGS, "The answer is A.", "A"),
        (DOGS, "A) cat", "A"),
        (BOTH, "Both A and B", "C"),
        (BOTH, "The answer is both A and B.", "C"),
        (BOTH, "The answer is none of the above.", "D"),
        (BOTH, "The answer is A and B.", None),
        (CODE, "The answer is C++.", "B"),
        (CODE, "C", "C"),
        (CODE, "C) Python", "C"),
        (FORMULAS, r"\boxed{\dfrac{1}{2}}", "A"),
        (FORMULAS, r"The answer is $x^{2}$.", "C"),
        (FORMULAS, "x_1", "D"),
        (["1", "2", "3", "12"], "The answer is 2.", "B"),
        (["1", "2", "3", "12"], "B", "B"),
        (["1", "2", "3", "12"], r"\boxed{12}", "D"),
        (["1", "2", "3", "12"], "The answer is 2.5", None),
        (["1", "2", "3", "12"], "The answer is -2", None),
        (["1", "2", "3", "12"], "The answer is 2%", None),
        (["1", "2", "3", "12"], "The answer is 1/2", None),
        (NUMBERED, "The answer is 2.", "2"),
        (NUMBERED, "(2)", "2"),
        (NUMBERED, "②", "2"),
        (NUMBERED, "2) green", "2"),
        (NUMBERED, "green", "2"),
        (NUMBERED, "Answer: 20", None),
        (CYRILLIC, "Ответ: Б", "Б"),
        (CYRILLIC, "Правильный ответ — б) Париж", "Б"),
        (CYRILLIC, "Париж", "Б"),
        (KANA, "答えはイです", "イ"),
        (KANA, "答えは京都です。", "イ"),
        (ARABIC, "الإجابة: ب", "ب"),
        (ARABIC, "باريس", "ب"),
        (HAN, "答案是上海", "B"),
        (HAN, "答案：B（上海）", "B"),
        (HAN, "答案是B. 上海。", "B"),
        (HAN, "答案是B. 北京。", None),
    ],
)
def test_texts_and_labels_are_told_apart_whatever_they_are(choices, completion, label):
    for answer in choices if isinstance(choices, dict) else "ABCDEFGH"[: len(choices)]:
        is_right = value_of(completion, choices=choices, answer=answer) == 1.0
        assert is_right == (answer == label), detail_of(completion, choices=choices, answer=answer)


@pytest.mark.parametrize(("completion", "number"), [("B) A", 1), ("A) B", 0), ("option B", 1), ("(D)", 3), ("B", None)])
def test_where_texts_are_letters_only_what_shows_which_is_meant_counts(completion, number):
    for index in range(4):
        reward = VERIFIER(completion, {"answer": index, "choices": list(LETTERS.values())})
        assert reward.value == float(index == number), reward.detail


def test_each_of_twenty_six_choices_has_its_letter():
    choices = [f"thing {number}" for number in range(26)]
    for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        for written in (
            letter,
            f"Answer: {letter.lower()}",
            f"\\boxed{{{letter}}}",
            f"The answer is {letter}.",
            f"({letter})",
        ):
            assert value_of(written, choices=choices, answer=letter) == 1.0
            assert value_of(written, choices=choices, answer="A" if number else "B") == 0.0


def test_the_pronoun_is_no_answer():
    choices = [f"thing {number}" for number in range(9)]
    assert value_of("The answer is: I do not know.", choices=choices, answer="I") == 0.0
    assert value_of("I think it's C.", choices=choices, answer="C") == 1.0


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (CITIES, "B"),
        (CITIES, "b"),
        (CITIES, "(B)"),
        (CITIES, "B."),
        (CITIES, 1),
        (CITIES, "1"),
        (CITIES, "Paris"),
        (CITIES, "paris"),
        (CITIES, "B. Paris"),
        (tuple(CITIES), "B"),
        (dict(zip("ABCD", CITIES, strict=True)), "B"),
        (dict(zip("abcd", CITIES, strict=True)), "B"),
        ({"(A)": "London", "(B)": "Paris"}, "B"),
        ({"label": list("ABCD"), "text": CITIES}, "B"),
        ({"text": CITIES, "label": list("ABCD")}, 1),
        (["A. London", "B. Paris", "C. Rome"], "B"),
        (["(A) London", "(B) Paris"], "Paris"),
        (["London", "Paris", "Paris"], "B"),
    ],
)
def test_a_row_may_hold_its_answer_and_choices_in_many_ways(choices, answer):
    assert value_of("B", choices=choices, answer=answer) == 1.0
    assert value_of("The answer is A.", choices=choices, answer=answer) == 0.0


def test_an_index_counts_from_zero_unless_the_option_says_one():
    row = {"answer": 1, "choices": CITIES}
    assert VERIFIER("B", row).value == 1.0
    assert build("multiple_choice", {"first_index": 1})("A", row).value == 1.0


def test_the_option_decides_what_an_answer_is_that_could_be_two_things():
    row = {"answer": 2, "choices": ["1", "2", "3", "4"]}
    assert VERIFIER("B", row).status == "error"
    assert build("multiple_choice", {"answer_is": "index"})("C) 3", row).value == 1.0
    assert build("multiple_choice", {"answer_is": "text"})("B) 2", row).value == 1.0


def test_the_keys_have_the_names_of_the_options():
    verifier = build("multiple_choice", {"answer_key": "answerKey", "choices_key": "options"})
    assert verifier("B", {"answerKey": "B", "options": CITIES}).value == 1.0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"choices": CITIES}, "no 'answer'"),
        ({"answer": "B"}, "no 'choices'"),
        ({"answer": "E", "choices": CITIES}, "fits none"),
        ({"answer": 4, "choices": CITIES}, "fits none"),
        ({"answer": -1, "choices": CITIES}, "fits none"),
        ({"answer": "", "choices": CITIES}, "fits none"),
        ({"answer": "Berlin", "choices": CITIES}, "fits none"),
        ({"answer": True, "choices": CITIES}, "bool"),
        ({"answer": None, "choices": CITIES}, "NoneType"),
        ({"answer": ["B"], "choices": CITIES}, "list"),
        ({"answer": "B", "choices": ["B", "A"]}, "different choices"),
        ({"answer": "x", "choices": ["x", "x"]}, "different choices"),
        ({"answer": "A", "choices": ["x"]}, "1 choices"),
        ({"answer": "A", "choices": []}, "0 choices"),
        ({"answer": "A", "choices": ["x"] * 27}, "27 choices"),
        ({"answer": "A", "choices": "xy"}, "list or a mapping"),
        ({"answer": "A", "choices": ["x", None]}, "text or a number"),
        ({"answer": "A", "choices": {"A": "x", "a": "y"}}, "must differ"),
        ({"answer": "A", "choices": {"first": "x", "second": "y"}}, "no label"),
        ({"answer": "A", "choices": {"label": ["A"], "text": ["x", "y"]}}, "same length"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_that_says_why(row, words):
    reward = VERIFIER("A", row)
    assert reward.status == "error"
    assert words in reward.detail
    assert "raised" not in reward.detail


def test_the_parts_tell_a_wrong_answer_from_none_and_from_two():
    row = {"answer": "B", "choices": CITIES}
    assert VERIFIER("B", row).parts == {"correct": 1.0, "answered": 1.0, "ambiguous": 0.0}
    assert VERIFIER("A", row).parts == {"correct": 0.0, "answered": 1.0, "ambiguous": 0.0}
    assert VERIFIER("A or B", row).parts == {"correct": 0.0, "answered": 0.0, "ambiguous": 1.0}
    assert VERIFIER("Hm.", row).parts == {"correct": 0.0, "answered": 0.0, "ambiguous": 0.0}


@pytest.mark.parametrize(
    "options", [{"first_index": 2}, {"answer_is": "number"}, {"anwser_key": "x"}, {"answer_key": 3}, {"answer_key": ""}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="reward multiple_choice"):
        build("multiple_choice", options)


@pytest.mark.parametrize(
    "piece",
    [
        *(r"\boxed{", "answer ", "The answer is (", "answer is not ", "B ", "B or ", "答案", "A) London\n", "[", "~~"),
        *(
            "<answer>",
            "wait, ",
            "so ",
            "B is correct. ",
            "London or ",
            "London or\n",
            "not ",
            "{",
            "是",
            "é",
            " ",
            "\n",
        ),
        *("x", "answer é ", "\n.", " -", "- ", "\t\n", "...", "n't "),
    ],
)
def test_text_that_is_made_to_be_slow_is_judged_soon(piece):
    start = time.process_time()
    reward = VERIFIER("answer " + piece * (60_000 // len(piece)), {"answer": "B", "choices": CITIES})
    assert reward.status == "scored", reward.detail
    assert time.process_time() - start < 2.0


@given(st.text(alphabet="ABCDabcd()[]{}*.:,;?!\n '-\\$<>orntaeswi答案是是はイ", max_size=80))
def test_no_text_is_right_for_two_answers_and_none_crashes(text):
    rewards = [VERIFIER(text, {"answer": answer, "choices": CITIES}) for answer in "ABCD"]
    assert {reward.status for reward in rewards} == {"scored"}
    assert sum(reward.value for reward in rewards) <= 1.0
