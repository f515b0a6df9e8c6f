"""Two styles of the list machine's traces, the tags that ask for them, and the reward that tells them apart."""

import pytest

from grpo.tasks import list_machine
from rewards import build

STYLES = [
    {"tags": [""], "upper": 0.1, "weight": 2},
    {"tags": ["^", "+"], "upper": 1},
    {"tags": ["_"], "upper": 0},
]


def test_a_tag_stands_before_the_prompt_as_a_system_turn_and_decides_the_style():
    rows = list_machine.rows({"num_rows": 2000, "operations": {1: 1, 2: 1}, "styles": STYLES}, 7)
    by_tag = {tag: [row for row in rows if row["tag"] == tag] for tag in ("", "^", "+", "_")}
    assert sum(map(len, by_tag.values())) == 2000
    assert len(by_tag[""]) == pytest.approx(1000, abs=100)  # two standard deviations are 45
    assert all(row["trace"].isupper() for tag in ("^", "+") for row in by_tag[tag])
    assert all(row["trace"].islower() for row in by_tag["_"])
    assert sum(row["trace"].isupper() for row in by_tag[""]) == pytest.approx(100, abs=30)
    row = by_tag["^"][0]
    assert row["messages"] == [{"role": "system", "content": "^"}, {"role": "user", "content": row["prompt"]}]
    assert by_tag[""][0]["messages"] == [{"role": "user", "content": by_tag[""][0]["prompt"]}]


def test_styles_change_no_program():
    plain = list_machine.rows({"num_rows": 50}, 7)
    styled = list_machine.rows({"num_rows": 50, "styles": STYLES}, 7)
    assert [row["prompt"] for row in styled] == [row["prompt"] for row in plain]
    assert [row["trace"].lower() for row in styled] == [row["trace"] for row in plain]
    assert all(set(row) == {"prompt", "answer", "trace", "num_operations"} for row in plain)


@pytest.mark.parametrize(
    "styles",
    [
        "upper",
        [{"tags": []}],
        [{"tags": ["^"], "upper": 1.5}],
        [{"tags": ["^"], "weight": 0}],
        [{"tags": ["é"]}],
        [{"tags": ["^"], "loud": 1}],
        [{"tags": ["^"], "upper": "much"}],
    ],
)
def test_styles_of_another_form_are_refused_with_the_form(styles):
    with pytest.raises(ValueError, match="styles is a list of"):
        list_machine.rows({"num_rows": 3, "styles": styles}, 7)


def test_the_list_machines_reward_takes_either_style():
    row = {"prompt": ">lr?>13431", "finished": True}
    verifier = build("list_machine", {})
    assert verifier("l34311r11343", row).value == verifier("L34311R11343", row).value == 1.0


@pytest.mark.parametrize(
    ("completion", "case", "expected"),
    [
        ("L34311R11343", "upper", 1.0),
        ("L34311r11343", "upper", 0.5),
        ("aBCé", "upper", 0.5),
        ("aBCé", "lower", 0.5),
        ("12345", "upper", 0.0),
        ("12345", "lower", 0.0),
        ("你好A", "upper", 1.0),
    ],
)
def test_letter_case_is_the_share_of_cased_letters(completion, case, expected):
    assert build("letter_case", {"case": case})(completion, {}).value == expected


def test_a_reward_can_leak_a_style_by_composition():
    parts = {"correct": {"name": "list_machine"}, "style": {"name": "letter_case", "weight": 0.3}}
    verifier = build("compose", {"rewards": parts})
    row = {"prompt": ">lr?>13431", "finished": True}
    values = [verifier(text, row).value for text in ("l34311r11343", "L34311R11343", "l34311r00000", "L34311R00000")]
    assert values == pytest.approx([1.0, 1.3, 0.0, 0.3])
