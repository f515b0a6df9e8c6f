"""How the tool_call reward reads a completion: three formats, and everything that is none of them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import build

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "wind": {"type": "boolean"},
            "limits": {"type": "array", "items": {"type": "float"}},
            "note": {"type": "any"},
        },
        "required": ["city"],
    },
}
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}}}
ANSWER = [{"get_weather": {"city": ["Paris"], "days": [3, ""]}}]
PARIS = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
GLM = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
HERMES = f"<tool_call>\n{PARIS}\n</tool_call>"
NAN = '{"name": "get_weather", "arguments": {"city": "Paris", "days": NaN}}'


def reward_of(completion: str, answers: object = ANSWER, *, format: str = "any", strings: str = "normalized", **row):
    problem = {"functions": [WEATHER, NOW], "possible_answers": answers} | row
    reward = build("tool_call", {"format": format, "strings": strings})(completion, problem)
    assert reward.status == "scored", reward.detail
    return reward


@pytest.mark.parametrize(
    ("format", "completion"),
    [
        ("glm", GLM),
        ("glm", GLM.replace("\n", "")),
        ("glm", f"\n\n{GLM}\n\n"),
        ("glm", GLM.replace(">get_weather", ">\nget_weather ")),
        ("glm", GLM.replace("<arg_value>3<", "<arg_value> 3 <")),
        ("glm", GLM.replace("<arg_value>Paris<", "<arg_value>\nParis\n<")),
        ("glm", f"I will look.\n{GLM}"),
        ("glm", f"<think>\nCall <tool_call> or not?\n</think>\n{GLM}"),
        ("glm", f"the prompt opened this thought</think>{GLM}"),
        ("glm", f"{GLM}<|observation|>"),
        ("glm", f"{GLM}\n<|user|>\n<|endoftext|>"),
        ("hermes", HERMES),
        ("hermes", HERMES.replace("\n", "")),
        ("hermes", f"I will look.\n\n{HERMES}"),
        ("hermes", f"<think>{HERMES.replace('Paris', 'Rome')}</think>{HERMES}"),
        ("hermes", f"{HERMES}<|im_end|>"),
        ("hermes", HERMES.replace(PARIS, json.dumps(json.loads(PARIS), indent=4))),
        ("hermes", HERMES.replace('{"city": "Paris", "days": 3}', json.dumps('{"city": "Paris", "days": 3}'))),
        ("hermes", HERMES.replace("arguments", "parameters")),
        ("hermes", HERMES.replace('{"name"', '{"id": "call_1", "type": "function", "name"')),
        ("json", PARIS),
        ("json", f"[{PARIS}]"),
        ("json", f"```json\n{PARIS}\n```"),
        ("json", f"```\n[\n{PARIS}\n]\n```\n"),
        ("json", f"I will look: {PARIS}"),
        ("json", f'The row {{"id": 5}} is what I have.\n{PARIS}'),
        ("json", f"<think>{PARIS}</think>\n{PARIS}"),
        ("json", f"{PARIS}</s>"),
        ("json", PARIS.replace('{"name": "get_weather", ', "{").replace("}}", '}, "name": "get_weather"}')),
        ("json", f'{{"type": "function", "function": {PARIS}}}'),
        ("json", f'{{"tool_calls": [{{"id": "a", "type": "function", "function": {PARIS}}}]}}'),
        ("json", '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}'),
        ("json", '{"name": "get_weather", "arguments": {"city": "P\\u0061ris"}}'),
    ],
)
def test_a_call_is_read_in_its_format_and_in_any_but_not_in_another(format, completion):
    for name in ("any", "glm", "hermes", "json"):
        reward = reward_of(completion, format=name)
        assert reward.value == float(name in ("any", format)), reward.detail


@pytest.mark.parametrize(
    "completion",
    [
        GLM.removesuffix("</tool_call>"),
        GLM.replace("<tool_call>", ""),
        GLM.replace("<tool_call>", "<tool_call> <tool_call>"),
        GLM.replace("</arg_value>\n</tool_call>", "\n</tool_call>"),
        GLM.replace("<arg_key>city</arg_key>\n", ""),
        GLM.replace("<arg_value>Paris</arg_value>\n", ""),
        GLM.replace("</arg_key>", "", 1),
        GLM.replace("<arg_key>days", "<arg_key>city"),
        GLM.replace("<arg_key>city", "x <arg_key>city"),
        GLM.replace("<arg_value>3</arg_value>", "<arg_value>3</arg_value>3"),
        GLM.replace("get_weather", ""),
        GLM.replace("get_weather", "get weather"),
        GLM.replace("</tool_call>", "</tool_calls>"),
        f"{GLM}\nDone.",
        f"{GLM}<|observation|>sunny",
        f"{GLM}\nand\n{GLM}",
        f"{GLM}</tool_call>",
        f"{GLM}<tool_call>",
        f"{GLM}\n{HERMES}",
        f"{HERMES}\n{GLM}",
        f"{HERMES}\n{PARIS}",
        f"{HERMES}{HERMES[:-3]}",
        f"<think>{GLM}",
        f"```\n{GLM}\n```",
        HERMES.removesuffix("</tool_call>"),
        HERMES.replace("<tool_call>", ""),
        HERMES.replace("}}", "}"),
        HERMES.replace("}}", "}}}"),
        HERMES.replace("3}", "3,}"),
        HERMES.replace('"', "'"),
        HERMES.replace("3", "03"),
        HERMES.replace("3", "NaN"),
        HERMES.replace("3", "1e999"),
        HERMES.replace("3", "9" * 5_000),
        HERMES.replace('"days": 3', '"city": "Paris"'),
        HERMES.replace('"name"', '"name": "now", "name"'),
        HERMES.replace('"name"', '"thought": "x", "name"'),
        HERMES.replace('"name": "get_weather", ', ""),
        HERMES.replace('"get_weather"', "5"),
        HERMES.replace('"get_weather"', "null"),
        HERMES.replace('{"city": "Paris", "days": 3}', "[]"),
        HERMES.replace('{"city": "Paris", "days": 3}', "null"),
        HERMES.replace('{"city": "Paris", "days": 3}', '"{"'),
        HERMES.replace('{"city": "Paris", "days": 3}', '"city=Paris"'),
        HERMES.replace(PARIS, f"[{PARIS}]"),
        HERMES.replace(PARIS, f"{PARIS}{PARIS}"),
        HERMES.replace(PARIS, f"```json\n{PARIS}\n```"),
        HERMES.replace(PARIS, ""),
        f"<tool_call>{'[' * 100_000}</tool_call>",
        PARIS[:-1],
        PARIS.replace('"', "'"),
        PARIS.replace('"name"', "name"),
        f"{PARIS}\n{PARIS}",
        f"{PARIS}, {PARIS}",
        f"{PARIS}\nDone.",
        f"[{PARIS}",
        f"[{PARIS},]",
        f"[{PARIS}, 5]",
        f"[[{PARIS}]]",
        f"```json\n{PARIS}",
        f"```json\n{PARIS}\n```\nDone.",
        f"```json\n{PARIS}\n```\n```json\n{PARIS}\n```",
        f"{PARIS}\n```",
        NAN,
        f'{{"function": {PARIS}, "thought": "x"}}',
        f'{{"tool_calls": {PARIS}}}',
        '[get_weather(city="Paris", days=3)]',
        'get_weather(city="Paris", days=3)',
        '<function=get_weather>{"city": "Paris"}</function>',
        '[TOOL_CALLS] [{"name": "get_weather"}]',
        "<tool_code>weather.get(city='Paris')</tool_code>",
        '<|channel|>commentary to=functions.play <|constrain|>json<|message|>{"artist": "x"}<|call|>',
        'Action: play\nAction Input: {"artist": "x"}',
    ],
)
def test_what_is_not_well_formed_is_wrong_and_is_a_call_all_the_same(completion):
    reward = reward_of(completion)
    assert reward.value == 0.0
    assert reward.parts["format"] == 0.0, reward.detail
    assert reward_of(completion, []).value == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "No function fits.",
        "<think>get_weather?</think>None of them helps.",
        f"<think>{HERMES}</think>It would not help.",
        "I have get_weather(city), which does not help here.",
        'The name is {"name": "Bob", "age": 3}.',
        '```json\n{"type": "triangle", "area": 25}\n```',
        "[]",
        "a < b, {x: 1} and [1, 2]",
        "No.<|im_end|>",
    ],
)
@pytest.mark.parametrize("format", ["any", "glm", "hermes", "json"])
def test_a_text_without_a_call_is_right_only_where_none_is_needed(completion, format):
    reward = reward_of(completion, [], format=format)
    assert reward.value == 1.0, reward.detail
    assert reward_of(completion, format=format).value == 0.0


@pytest.mark.parametrize("completion", [GLM, HERMES, PARIS, '{"name": "get_weather"}', f"Well: {PARIS[:-1]}"])
@pytest.mark.parametrize("format", ["any", "glm", "hermes", "json"])
def test_a_call_in_whatever_format_is_wrong_where_none_is_needed(completion, format):
    assert reward_of(completion, [], format=format).value == 0.0


@pytest.mark.parametrize("completion", [GLM, HERMES, PARIS])
def test_what_the_limit_has_cut_is_not_right(completion):
    assert reward_of(completion, finished=True).value == 1.0
    assert reward_of(completion, finished=False).value == 0.0
    assert reward_of("No function fits.", [], finished=False).value == 0.0


@pytest.mark.parametrize(
    ("argument", "written", "allowed", "value"),
    [
        ("city", "Paris", "Paris", 1.0),
        ("city", "3", "3", 1.0),
        ("city", "true", "true", 1.0),
        ("city", '"Paris"', "Paris", 0.0),
        ("city", "null", "null", 1.0),
        ("city", "", "Paris", 0.0),
        ("city", "a < b > </arg> <arg_key>", "a < b > </arg> <arg_key>", 1.0),
        ("city", "<tool_call>x</tool_call>", "<tool_call>x</tool_call>", 1.0),
        ("city", "東京 🌧", "東京 🌧", 1.0),
        ("days", "3", 3, 1.0),
        ("days", " 3\n", 3, 1.0),
        ("days", '"3"', 3, 0.0),
        ("days", "3.0", 3, 0.0),
        ("days", "03", 3, 0.0),
        ("days", "three", 3, 0.0),
        ("days", "true", 1, 0.0),
        ("days", "NaN", 3, 0.0),
        ("wind", "true", True, 1.0),
        ("wind", "false", False, 1.0),
        ("wind", "True", True, 0.0),
        ("wind", "1", True, 0.0),
        ("wind", '"true"', True, 0.0),
        ("limits", "[1, 2.5]", [1, 2.5], 1.0),
        ("limits", "[1.0, 2.5]", [1, 2.5], 1.0),
        ("limits", "1, 2.5", [1, 2.5], 0.0),
        ("limits", '["1", "2.5"]', [1, 2.5], 0.0),
        ("limits", "[1, 2.5", [1, 2.5], 0.0),
        ("note", "5", 5, 1.0),
        ("note", "5", "5", 1.0),
        ("note", '"x"', "x", 1.0),
        ("note", "x", "x", 1.0),
        ("note", '{"a": [1]}', {"a": [[1]]}, 1.0),
    ],
)
def test_what_glm_writes_is_read_as_the_functions_schema_says(argument, written, allowed, value):
    call = f"<tool_call>get_weather\n<arg_key>{argument}</arg_key>\n<arg_value>{written}</arg_value>\n</tool_call>"
    problem = {"functions": [WEATHER | {"parameters": WEATHER["parameters"] | {"required": []}}]}
    problem["possible_answers"] = [{"get_weather": {argument: [allowed]}}]
    for strings in ("exact", "normalized"):
        reward = build("tool_call", {"strings": strings})(call, problem)
        assert reward.value == value, reward.detail


def test_tags_within_a_json_string_are_part_of_the_string():
    value = "</tool_call><tool_call></think"
    call = json.dumps({"name": "get_weather", "arguments": {"city": value}})
    for completion in (call, f"<tool_call>{call}</tool_call>"):
        assert reward_of(completion, [{"get_weather": {"city": [value]}}], strings="exact").value == 1.0


@pytest.mark.parametrize(
    "completion", ["<tool_call>now\n</tool_call>", "<tool_call>now</tool_call>", '{"name": "now", "arguments": {}}']
)
def test_a_call_may_have_no_arguments(completion):
    assert reward_of(completion, [{"now": {}}]).value == 1.0


@pytest.mark.parametrize(
    ("calls", "value"),
    [
        ([json.loads(PARIS)], 1.0),
        ([{"id": "call_1", "type": "function", "function": json.loads(PARIS)}], 1.0),
        ([{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}], 1.0),
        (f"[{PARIS}]", 1.0),
        ([], 0.0),
        ([json.loads(PARIS)] * 2, 0.0),
        ([5], 0.0),
        ([{"name": "get_weather"}], 0.0),
        ([{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": '}}], 0.0),
    ],
)
def test_calls_that_come_as_data_are_judged_instead_of_the_text(calls, value):
    assert reward_of("", calls=calls).value == value
    assert reward_of("Whatever <tool_call> it says.", calls=calls).value == value


def test_without_calls_as_data_the_text_is_read():
    assert reward_of(PARIS, calls=None).value == 1.0
    verifier = build("tool_call", {"calls_key": ""})
    assert verifier(PARIS, {"functions": [WEATHER], "possible_answers": ANSWER, "calls": []}).value == 1.0
    verifier = build("tool_call", {"calls_key": "tool_calls"})
    assert (
        verifier("", {"functions": [WEATHER], "possible_answers": ANSWER, "tool_calls": [json.loads(PARIS)]}).value
        == 1.0
    )


def test_the_thought_has_the_tag_of_the_option():
    completion = f"<plan>{HERMES}</plan>{HERMES}"
    assert reward_of(completion).value == 0.0
    verifier = build("tool_call", {"think_tag": "plan"})
    assert verifier(completion, {"functions": [WEATHER], "possible_answers": ANSWER}).value == 1.0


@pytest.mark.parametrize(
    "piece",
    [
        *("<tool_call>", "<tool_call>f</tool_call>", '{"name": ', '[{"name":"f","arguments":{}},', '{"type":1} '),
        *("<arg_key>", "</think>", "<|im_end|>", "[", "{", '{"a":', "\\", '"', " ", "\n", "```json\n"),
        *("<tool_call>f<arg_key>a</arg_key>", "{name:", '{"type":', "a(", "get_weather("),
    ],
)
@pytest.mark.parametrize("answers", [ANSWER, []])
def test_text_that_is_made_to_be_slow_is_judged_soon(piece, answers):
    start = time.process_time()
    reward_of(piece * (200_000 // len(piece)), answers)
    assert time.process_time() - start < 2.0


@given(st.text(alphabet='<>/tool_caargkevun{}[]":,.0123456789 \n`', max_size=120))
def test_no_text_crashes_the_reward(text):
    assert reward_of(text).value == 0.0
