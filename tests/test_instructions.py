"""The reward `instructions`: its checkers one by one, its rows, its modes, hostile completions."""

from __future__ import annotations

import time

import pytest

from rewards import build
from rewards.instructions.registry import CHECKERS

LESS, LEAST = "less than", "at least"


def follow(name, completion, kwargs, **options):
    """The Reward for one instruction."""
    problem = {"instruction_id_list": [name], "kwargs": [kwargs]}
    return build("instructions", options)(completion, problem)


RELATION = {"relation": LEAST}
USABLE = {
    "keywords:existence": {"keywords": ["cat", "Mona Lisa"]},
    "keywords:frequency": {"keyword": "cat", "frequency": 2, "relation": LEAST},
    "keywords:forbidden_words": {"forbidden_words": ["cat", "dog"]},
    "keywords:letter_frequency": {"letter": "c", "let_frequency": 3, "let_relation": LEAST},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": LEAST},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {"num_words": 3, "relation": LEAST},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "cat"},
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "detectable_format:multiple_sections": {"section_spliter": "SECTION", "num_sections": 2},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Write a poem.\nMake it short."},
    "startend:end_checker": {"end_phrase": "The end."},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": LEAST},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}

# name, completions that follow USABLE[name], completions that do not
TABLE = [
    ("keywords:existence", ["mona lisa and the CATS", "concatenate Mona Lisa"], ["a cat", "mona  lisa cat", "c at"]),
    ("keywords:frequency", ["cat Cat", "catcat", "concat cats"], ["cat", "c a t cat"]),
    ("keywords:forbidden_words", ["cats and dogs", "catdog", "ca t"], ["a cat", "DOG!", "the cat-flap", "(dog)"]),
    ("keywords:letter_frequency", ["ccc", "Cc xc"], ["cc", "ccç", "сcc"]),  # the last begins with a Cyrillic letter
    (
        "language:response_language",
        ["Das Wetter ist heute schön und wir gehen spazieren."],
        ["It is warm today.", "42"],
    ),
    (
        "length_constraints:number_sentences",
        ["One. Two.", "What?! Yes", "He left. 5 came."],
        ["One", "Dr. Smith came", "..."],
    ),
    (
        "length_constraints:number_paragraphs",
        ["a***b", "***\na\n***\nb\n***", "a *** b"],
        ["a", "a***b***c", "a******b"],
    ),
    ("length_constraints:number_words", ["a b c", "don't go", "a_b c d", "मेरा नाम राम"], ["a b", "a - b", "हूँ राम"]),
    (
        "length_constraints:nth_paragraph_first_word",
        ["a\n\ncat", "a\n\n'Cat' b", 'a\n\n"CAT, b', "a\n\n\n\ncat", "\n\na\n \ncat\n\ncat"],
        ["cat\n\nb", "a\ncat", "a\n\ncat\n\nb", "a\n\ncats", "a\n\n**cat**", "a\n\n“cat”"],
    ),
    (
        "detectable_content:number_placeholders",
        ["[a][b]", "[a] [", "[] [x]][y]"][::2],
        ["[a]", "[a\nb] [c]", "]a[ [b]"],
    ),
    (
        "detectable_content:postscript",
        ["Bye. P.S. Hi", "p. s. hi", "x p.s.", "P.P.S. x"][:3],
        ["PS hi", "P.  S.", "P.S"],
    ),
    (
        "detectable_format:number_bullet_lists",
        ["* a\n- b", "  *a\n\n\t-b", "*\n* b"],
        ["* a", "** a\n* b", "a * b\n- c"],
    ),
    (
        "detectable_format:constrained_response",
        ["My answer is no.", "So: My answer is maybe. Ok"],
        ["my answer is no.", "no"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        ["*a* *b*", "**a** and *b*", "**a** **b**"],
        ["*a*", "**a**", "*a\nb* *c*", "** ** * *"],
    ),
    (
        "detectable_format:multiple_sections",
        ["SECTION 1\na\nSECTION 2", "SECTION1 SECTION\n2"],
        ["Section 1 Section 2", ""],
    ),
    (
        "detectable_format:json_format",
        ['{"a": 1}', "```json\n[1]\n```", "```\n{}```", '"a"'],
        ["{'a': 1}", "{} {}", "x {}"],
    ),
    ("detectable_format:title", ["<<a>>", "x <<a b>> y", "<<<a>>>"], ["<a>", "<< >>", "<<a\nb>>", "<<>>", ">>a<<"]),
    (
        "combination:two_responses",
        ["a\n******\nb", "******a******b******"],
        ["a", "a******a", "a************b", "a***b"],
    ),
    (
        "combination:repeat_prompt",
        ["Write a poem.\nMake it short.\nRoses", " write A POEM.\r\nmake it short."],
        ["Sure! Write a poem.\nMake it short.", "Write a poem. Make it short."],
    ),
    ("startend:end_checker", ["x the END.", 'x "The end."\n', "The end."], ["The end. x", "The end", "“The end.”"]),
    ("startend:quotation", ['"a"', '\n"a" b "c"\n', '""'], ['"', '"a', "'a'", "“a”"]),
    (
        "change_case:capital_word_frequency",
        ["NASA AND x", "WELL-KNOWN I", "CAN'T"],
        ["NASA and", "Well KNOWN", "1 2 3"],
    ),
    (
        "change_case:english_capital",
        ["THE CAT SAT ON THE MAT, AND IT WAS 5 O'CLOCK."],
        ["THE CAT sAT ON THE MAT.", "DAS WETTER IST HEUTE SCHÖN UND WIR GEHEN SPAZIEREN.", "42", "我们"],
    ),
    (
        "change_case:english_lowercase",
        ["the cat sat on the mat, and it was 5 o'clock."],
        ["the cat Sat on the mat.", "das wetter ist heute schön und wir gehen spazieren.", "42", "the ǅ cat sat on it"],
    ),
    ("punctuation:no_comma", ["a; b", "a， b"], ["a, b", ","]),
]
CASES = [
    (name, completion, followed)
    for name, right, wrong in TABLE
    for followed, completions in ((True, right), (False, wrong))
    for completion in completions
]


def test_every_checker_has_a_row_in_the_table():
    assert [name for name, _, _ in TABLE] == list(USABLE)
    assert set(USABLE) == set(CHECKERS)
    assert len(CHECKERS) == 25


@pytest.mark.parametrize(("name", "completion", "followed"), CASES)
def test_a_checker_tells_what_follows_its_instruction_from_what_does_not(name, completion, followed):
    reward = follow(name, completion, USABLE[name])
    assert reward.value == float(followed), reward.detail


@pytest.mark.parametrize(
    ("number", "relation", "followed"),
    [(2, LEAST, False), (3, LEAST, True), (3, LESS, False), (2, LESS, True), (0, LESS, True)],
)
def test_less_than_is_strict_and_at_least_is_not(number, relation, followed):
    reward = follow("length_constraints:number_words", "a " * number + ".", {"num_words": 3, "relation": relation})
    assert reward.value == float(followed)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("completion", ["", "   ", "\n\r\n\t", "\u3000"])
def test_an_empty_completion_follows_nothing_not_even_to_have_no_comma(name, completion):
    for mode in ("strict", "loose"):
        assert follow(name, completion, USABLE[name], mode=mode).value == 0.0


HOSTILE = [
    *(
        "\0",
        "\ud800\udfff\ud83d",
        "\u202e\u200b\ufeff",
        "a\r\nb\r\n\r\nc",
        "İıſßǅ",
        "\x1b[31m",
        "𝕳𝖊𝖑𝖑𝖔",
        "e\u0301" * 50,
    ),
    *("%s%n{0}{", "\\", "(?i)(a+)+$", "${jndi:x}", "<<" * 50, "[" * 5000, '{"a":' * 5000, "\N{EM SPACE}x"),
]


@pytest.mark.parametrize("completion", HOSTILE)
def test_a_hostile_completion_is_judged_like_any_other(completion):
    problem = {"instruction_id_list": list(USABLE), "kwargs": list(USABLE.values())}
    for mode in ("strict", "loose"):
        reward = build("instructions", {"mode": mode})(completion, problem)
        assert reward.value == 0.0, reward.detail
        assert "\0" not in reward.detail


HUGE = [
    "a",
    "A ",
    ". ",
    "\t.",
    "?!",
    "*",
    "* ",
    "[",
    "[]",
    "<<",
    ">><<",
    '{"',
    "\n",
    " ",
    " \n",
    "-\n",
    "P.",
    "a@",
    "`$",
    "İ ",
    "我",
]


@pytest.mark.slow
@pytest.mark.parametrize("piece", HUGE)
def test_a_million_characters_cost_no_checker_a_second(piece):
    completion = piece * (1_000_000 // len(piece)) + "x"
    verifier = build("instructions", {})
    follow("language:response_language", "the profiles are loaded by now", {"language": "en"})
    for name, kwargs in USABLE.items():
        start = time.process_time()
        assert verifier(completion, {"instruction_id_list": [name], "kwargs": [kwargs]}).value is not None
        assert time.process_time() - start < 1.0, name


# Rows


def test_a_table_with_a_column_for_every_argument_is_read():
    every = {name: None for kwargs in USABLE.values() for name in kwargs}
    for name, kwargs in USABLE.items():
        assert follow(name, "x", {**every, **kwargs}).value is not None


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({}, ["instruction_id_list", "None"]),
        ({"instruction_id_list": [], "kwargs": []}, ["instruction_id_list", "[]"]),
        ({"instruction_id_list": "punctuation:no_comma", "kwargs": [{}]}, ["instruction_id_list", "list"]),
        ({"instruction_id_list": ["punctuation:no_comma"]}, ["kwargs", "None", "1 mappings"]),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, ["kwargs", "[]"]),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": "{}"}, ["kwargs", "'{}'"]),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}, ["punctuation:no_comma", "3"]),
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, ["no_coma", "did you mean", "no_comma'"]),
        ({"instruction_id_list": [None], "kwargs": [{}]}, ["None", "no instruction"]),
        ({"instruction_id_list": [["x"]], "kwargs": [{}]}, ["['x']", "no instruction"]),
    ],
)
def test_a_row_that_cannot_be_read_is_an_error_that_names_what_is_wrong(problem, words):
    reward = build("instructions", {})("some text", problem)
    assert reward.status == "error"
    assert [word for word in words if word not in reward.detail] == [], reward.detail


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("punctuation:no_comma", {"letter": "a"}, ["letter", "'a'", "no argument"]),
        ("keywords:frequency", {"relation": None}, ["relation", "missing"]),
        ("keywords:frequency", {"relation": "at most"}, ["'at most'", "at least, less than"]),
        ("keywords:frequency", {"frequency": -1}, ["-1", "0 or more"]),
        ("keywords:frequency", {"frequency": "2"}, ["'2'", "whole number"]),
        ("keywords:frequency", {"frequency": True}, ["True", "whole number"]),
        ("keywords:frequency", {"frequency": 2.5}, ["2.5", "whole number"]),
        ("keywords:frequency", {"frequency": float("nan")}, ["nan", "whole number"]),
        ("keywords:frequency", {"frequency": float("inf")}, ["inf", "whole number"]),
        ("keywords:frequency", {"keyword": " "}, ["keyword", "' '"]),
        ("keywords:existence", {"keywords": "cat"}, ["'cat'", "list"]),
        ("keywords:existence", {"keywords": []}, ["[]", "list"]),
        ("keywords:existence", {"keywords": ["a", ""]}, ["['a', '']"]),
        ("keywords:letter_frequency", {"letter": "ab"}, ["'ab'", "single"]),
        ("keywords:letter_frequency", {"letter": " "}, ["' '", "single"]),
        ("language:response_language", {"language": "German"}, ["'German'", "langdetect"]),
        ("length_constraints:nth_paragraph_first_word", {"nth_paragraph": 3}, ["3", "at most num_paragraphs, 2"]),
        ("length_constraints:nth_paragraph_first_word", {"nth_paragraph": 0}, ["0", "1 or more"]),
    ],
)
def test_an_argument_that_cannot_be_used_is_an_error_that_names_it(name, change, words):
    reward = follow(name, "some text", {**USABLE[name], **change})
    assert reward.status == "error"
    assert [word for word in [name, *words] if word not in reward.detail] == [], reward.detail


def test_a_float_that_a_table_made_of_a_whole_number_is_one():
    assert follow("length_constraints:number_words", "a b", {"num_words": 2.0, **RELATION}).value == 1.0


# Modes, scores, parts

TWO = {
    "instruction_id_list": ["punctuation:no_comma", "startend:quotation", "startend:end_checker"],
    "kwargs": [{}, None, {"end_phrase": "bye"}],
}


@pytest.mark.parametrize(
    ("score", "completion", "value"), [("all", '"a bye"', 1.0), ("all", "a bye", 0.0), ("fraction", "a bye", 2 / 3)]
)
def test_all_wants_every_instruction_and_fraction_pays_for_some(score, completion, value):
    assert build("instructions", {"score": score})(completion, TWO).value == pytest.approx(value)


def test_parts_are_by_family_and_the_detail_says_which_failed_and_why():
    reward = build("instructions", {})("a, bye", TWO)
    assert dict(reward.parts) == {"punctuation": 0.0, "startend": 0.5, "followed": pytest.approx(1 / 3)}
    assert reward.detail == (
        "1 of 3 followed; not punctuation:no_comma (1 commas), startend:quotation (not between double quotation marks)"
    )


@pytest.mark.parametrize(
    ("completion", "loose"),
    [
        ('Here you are:\n"a"', 1.0),
        ('"a"\nI hope that helps!', 1.0),
        ('Here:\n"a"\nBye!', 1.0),
        ('**"a"**', 1.0),
        ('Here:\n**"a"**\nBye!', 1.0),
        ('Here:\nit is\n"a"', 0.0),
        ('a "b"', 0.0),
    ],
)
def test_loose_forgives_a_first_line_a_last_line_and_asterisks(completion, loose):
    assert follow("startend:quotation", completion, {}, mode="loose").value == loose
    assert follow("startend:quotation", completion, {}).value == 0.0


def test_only_the_answer_is_judged_where_the_option_says_what_it_follows():
    options = {"answer_after": "</think>"}
    assert follow("punctuation:no_comma", "well, so</think>yes", {}, **options).value == 1.0
    assert follow("punctuation:no_comma", "well, so</think>yes", {}).value == 0.0
    assert follow("punctuation:no_comma", "a</think>well, so</think>yes", {}, **options).value == 0.0
    assert follow("punctuation:no_comma", "no thought ends here", {}, **options).value == 0.0


@pytest.mark.parametrize("options", [{"mode": "lose"}, {"score": "any"}, {"answer_after": ""}, {"checkers": {"a": 1}}])
def test_options_that_say_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        build("instructions", options)
