"""The repetition reward: loops and repeated n-grams are found, honest text is left alone, and time stays linear."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import build
from rewards.repetition import MAX_WORDS, find_loops, repeated_fraction, split_words

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
VERIFIER = build("repetition", {})

PARAGRAPH = (
    "Natalia sold 48 clips in April and half as many in May, so that she sold 24 clips in May. Together these are "
    "72 clips, which is what the question asks for."
)

# A solution is from GSM8K (openai/grade-school-math, MIT), a function from MBPP (google-research, CC-BY-4.0).
HONEST = {
    "nothing": "",
    "a word": "72",
    "a solution": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    "a long solution": "Twenty minutes is 20/60 = <<20/60=0.33>>0.33 of an hour.\nThe bacteria double 12 times: "
    "2*2*2*2 = 16 times after 80 minutes.\n#### 16",
    "code": "def find_char_long(text):\n  return (re.findall(r'\\b\\w{4,}\\b', text))\n\n"
    "for i in range(n):\n    for j in range(n):\n        if a[i][j] == b[i][j]:\n            count += 1\n"
    "        else:\n            count -= 1\n",
    "a table": "| x | y | x + y |\n|---|---|-------|\n| 1 | 2 | 3 |\n| 2 | 4 | 6 |\n| 3 | 8 | 11 |\n| 4 | 16 | 20 |\n",
    "a list": "\n".join(
        f"- Item {number}: {name} costs {number * 3} dollars" for number, name in enumerate("abcdefgh")
    ),
    "rulers": ("=" * 200 + "\nFirst part\n" + "-" * 200 + "\nsecond part follows here\n") + "*" * 80,
    "a matrix": "The identity matrix of size three is [[1, 0, 0], [0, 1, 0], [0, 0, 1]], and so its trace is 3.",
    "a decimal": "One third is 0.333333333333333333333333333333 and one seventh 0.142857142857142857142857142857.",
    "a refrain": "Row, row, row your boat, gently down the stream, "
    "merrily, merrily, merrily, merrily, life is but a dream.",
    "laughter": "hahahahahahahahahaha, that is very very very very funny indeed",
    "chinese": "娜塔莉亚在四月份卖出了四十八个发夹,五月份卖出的数量是四月份的一半,所以两个月一共卖出七十二个发夹。",
    "thai": "นาตาลีขายกิ๊บสี่สิบแปดตัวในเดือนเมษายน และครึ่งหนึ่งของจำนวนนั้นในเดือนพฤษภาคม",
}

LOOPS = {
    "one word": "the " * 40,
    "two words": "no, yes, " * 20,
    "a sentence": "Wait, let me check that again. " * 10,
    "a sentence with other marks around": PARAGRAPH + "\n\n" + "Wait, let me check that again!\n" * 10,
    "a paragraph three times": "\n\n".join([PARAGRAPH] * 3),
    "a paragraph three times and a stop": "\n\n".join([PARAGRAPH] * 3) + " Done.",
    "in capitals now and then": "so it goes on AND ON and so it goes ON and on " * 6,
    "numbers": "1 2 3 4 5 6 7 " * 10,
    "digits without spaces": "142857" * 100,
    "a letter": "a" * 500,
    "laughter": "ha" * 400,
    "a mark": "!" * 5_000,
    "underscores": "_" * 5_000,
    "two marks": "-_" * 200,
    "emojis": "😀😂" * 60,
    "chinese": "我们再检查一遍。" * 10,
    "japanese": "もう一度確認します。" * 8,
    "thai": "ตรวจสอบอีกครั้ง" * 8,
    "code": "    x = x + 1\n" * 30,
    "closing tags": "</answer>" * 40,
    "a box": r"\boxed{7} " * 30,
    "lines that end in a loop inside the loop": ("one one one one one one two " * 12),
    "a loop, then the answer": "so we try once more to add the two of them " * 20 + "<answer>7</answer>",
}


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_honest_text_has_no_penalty(text):
    reward = VERIFIER(text, {})
    assert reward.value == 0.0, reward.detail
    assert str(reward.value) == "0.0"  # not -0.0


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_loop_has_the_whole_penalty(text):
    assert VERIFIER(text, {}).value == -1.0


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9), period=st.integers(1, 60), repeats=st.integers(4, 40), before=st.integers(0, 30))
def test_a_loop_of_any_period_is_found_wherever_it_begins(seed, period, repeats, before):
    draw = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(draw.choice([2, 5, 500]))]
    unit = [draw.choice(vocabulary) for _ in range(period)]
    text = " ".join([f"b{number}" for number in range(before)] + unit * repeats)
    reward = VERIFIER(text, {})
    num_repeated = period * (repeats - 1)
    if num_repeated >= max(20, 0.25 * (before + period * repeats)):
        assert reward.value == -1.0, (text, reward.detail)
    assert reward.parts["loop"] >= 0.9 * num_repeated / (before + period * repeats) or num_repeated < 20


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=300))
def test_words_that_are_all_different_have_no_penalty_and_no_parts(words):
    reward = VERIFIER(" ".join(f"w{word}" for word in words), {})
    assert (reward.value, dict(reward.parts)) == (0.0, {"repeated": 0.0, "loop": 0.0})


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=400))
def test_any_text_gets_a_penalty_from_minus_one_to_zero(text):
    assert -1.0 <= VERIFIER(text, {}).value <= 0.0


@pytest.mark.parametrize(
    ("words", "ngram_words", "fraction"),
    [("abcabc", 3, 1 / 4), ("aaaa", 1, 3 / 4), ("aaaa", 2, 2 / 3), ("abcd", 2, 0.0), ("aaaa", 4, 0.0), ("", 1, 0.0)],
)
def test_the_share_of_repeated_ngrams_matches_counting_by_hand(words, ngram_words, fraction):
    assert repeated_fraction(words, ngram_words=ngram_words) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("words", "loops"),
    [
        ("abcdefgh", []),
        ("abcabcabc", [(0, 9, 3)]),
        ("xyzabcdabcdabcdw", [(3, 15, 4)]),
        ("aaaaaa", [(0, 6, 1)]),
        ("abcdabcd", [(0, 8, 4)]),
        ("abcabc", []),  # three words in a row again: fewer than the anchor
    ],
)
def test_loops_are_where_the_eye_sees_them(words, loops):
    assert [(loop.start, loop.stop, loop.period) for loop in find_loops(words, anchor_words=4)] == loops


def test_a_longer_anchor_is_not_misled_by_what_a_loop_says_twice():
    assert [(loop.start, loop.stop, loop.period) for loop in find_loops("aabaabcd" * 5, anchor_words=16)] == [
        (0, 40, 8)
    ]


@pytest.mark.parametrize(
    ("text", "num_words"),
    [
        ("Two words.", 3),
        ("---- ====", 2),
        ("!" * 250, 3),
        ("_" * 250, 3),
        ("snake_case __init__", 2),
        ("你好 world", 3),
        ("a" * 100, 1),
        ("a" * 101, 101),
        ("don't", 3),
        (" \n\t", 0),
        ("a " * (MAX_WORDS + 5), MAX_WORDS),
    ],
)
def test_words_are_words_marks_and_characters_of_scripts_without_spaces(text, num_words):
    assert len(split_words(text)) == num_words


@pytest.mark.parametrize(("share", "penalty"), [(0.5, 0.0), (0.75, 0.5), (1.0, 1.0)])
def test_the_penalty_for_repeated_ngrams_grows_from_the_threshold_on(share, penalty):
    """Each block comes again, but never twice in a row: much is repeated and nothing is a loop."""
    draw = random.Random(1)
    num_copies = {0.5: 2, 0.75: 4, 1.0: 400}[share]
    blocks = [f"{block} " + " ".join(f"w{block}x{place}" for place in range(40)) for block in range(10)]
    order = [block for _ in range(num_copies) for block in draw.sample(blocks, len(blocks))]
    value = VERIFIER(" ".join(order), {}).value
    assert value == pytest.approx(-penalty, abs=0.25)


def test_a_loop_at_the_end_of_a_cut_completion_counts_however_long_the_text_before():
    text = " ".join(f"w{number}" for number in range(1_000)) + " and so on" * 20
    assert VERIFIER(text, {"finished": True}).value == 0.0
    assert VERIFIER(text, {"finished": False}).value == -1.0
    assert VERIFIER(text + " that was all of it", {"finished": False}).value == 0.0


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({"min_loop_words": 100}, "the " * 40 + " ".join(map(str, range(80))), 0.0),
        ({"min_loop_fraction": 0.9}, "the " * 40 + " ".join(map(str, range(80))), 0.0),
        ({"min_loop_fraction": 0.3}, "the " * 40 + " ".join(map(str, range(80))), -1.0),
        ({"min_loop_repeats": 4, "max_repeated_fraction": 0.9}, "\n".join([PARAGRAPH] * 3), 0.0),
        ({"min_loop_repeats": 2}, "\n".join([PARAGRAPH] * 2), -1.0),
        ({"ngram_words": 2, "max_repeated_fraction": 0.0}, "a b c a b", -0.25),
    ],
)
def test_the_options_say_what_is_still_normal(options, text, value):
    assert build("repetition", options)(text, {}).value == pytest.approx(value)


@pytest.mark.parametrize(
    "options",
    [
        *({"ngram_words": 0}, {"max_repeated_fraction": 1.0}, {"max_repeated_fraction": -0.1}),
        *({"min_loop_repeats": 1}, {"min_loop_words": 0}, {"min_loop_fraction": 1.1}),
    ],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=f"reward repetition: {next(iter(options))} = "):
        build("repetition", options)


MEGABYTES = {
    "a letter": "a" * 10**6,
    "words": " ".join(str(number * number % 100_003) for number in range(170_000)),
    "a loop": "the cat sat on a mat. " * 45_000,
    "chinese": "你好世界" * 250_000,
    "blank": "\n" * 10**6,
    "nested loops": ("ab " * 40 + "c ") * 8_000,
    "two letters at random": "".join(random.Random(0).choices("ab ", k=10**6)),
    "marks": "".join(random.Random(0).choices("([{<", k=10**6)),
}


@pytest.mark.parametrize("text", MEGABYTES.values(), ids=MEGABYTES)
def test_a_megabyte_takes_about_a_second_at_most(text):
    start_seconds = time.process_time()
    VERIFIER(text, {})
    assert time.process_time() - start_seconds < 2.0


def shared_rows(path):
    if not (SHARED / path).is_file():
        pytest.skip(f"needs {path} in the shared data")
    return [json.loads(line) for line in (SHARED / path).open(encoding="utf-8")]


@pytest.mark.parametrize(
    ("path", "column", "max_num_wrong"),
    [
        ("gsm8k/train.jsonl", "answer", 0),
        ("gsm8k/test.jsonl", "answer", 0),
        ("mbpp/mbpp.jsonl", "code", 1),  # one holds the same forty words four times in a row
        ("ifeval/input_data.jsonl", "prompt", 0),
        ("ifbench/IFBench_test.jsonl", "prompt", 0),
    ],
)
def test_real_solutions_code_and_prose_are_left_alone(path, column, max_num_wrong):
    penalties = [VERIFIER(row[column], {}).value for row in shared_rows(path)]
    assert sum(value < 0 for value in penalties) <= max_num_wrong


def test_real_solutions_that_fall_into_a_loop_are_found():
    draw = random.Random(0)
    found = []
    for row in shared_rows("gsm8k/test.jsonl")[:300]:
        words = row["answer"].split()
        start = draw.randrange(len(words))
        unit = words[start : start + draw.randint(1, 30)]
        repeats = max(draw.randint(4, 20), -(-(len(words) + 60) // len(unit)))
        found.append(VERIFIER(" ".join(words[: start + len(unit)] + unit * repeats), {}).value == -1.0)
    assert sum(found) == len(found)
