"""The tool_call reward: which calls are the expected ones, and which rows can be used."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Pool, RewardSpec, build

TRIP = {
    "name": "book",
    "description": "Books a trip.",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "budget": {"type": "float"},
            "direct": {"type": "boolean"},
            "stops": {"type": "array", "items": {"type": "string"}},
            "point": {"type": "tuple", "items": {"type": "float"}},
            "guest": {"type": "dict", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}},
            "rooms": {"type": "array", "items": {"type": "dict", "properties": {"beds": {"type": "integer"}}}},
            "extra": {"type": "any"},
            "class": {"type": "string", "enum": ["First", "Second"]},
        },
        "required": ["city"],
    },
}
CANCEL = {
    "name": "trips.cancel",
    "parameters": {"type": "dict", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
}
FUNCTIONS = [TRIP, CANCEL]


def judged(calls: object, answers: object, *, functions: object = FUNCTIONS, **options: str):
    problem = {"functions": functions, "possible_answers": answers}
    return build("tool_call", options)(json.dumps(calls), problem)


def call(name: str = "book", /, **arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("parameter", "allowed", "right", "wrong"),
    [
        ("nights", [3], [3], [4, 3.0, "3", True, None, [3], {"a": 3}, -3]),
        ("nights", [1], [1], [True, 1.0, "1"]),
        ("nights", [0], [0], [False, None, "", "0"]),
        ("nights", [3, 5], [3, 5], [4, 8, [3, 5]]),
        ("budget", [100], [100, 100.0], [100.5, "100", True, [100]]),
        ("budget", [0.1], [0.1, 1e-1], [0.1000001, 0.3, "0.1"]),
        ("budget", [1], [1, 1.0], [True]),
        ("direct", [True], [True], [False, 1, "true", "True", None]),
        ("direct", [True, False], [True, False], [0, 1]),
        (
            "city",
            ["Paris"],
            ["Paris", "paris", "PARIS", " Paris", "P-a.r_i*s"],
            ["Pari", "Rome", "", None, ["Paris"], "París"],
        ),
        ("city", ["St. John's"], ["St John's", 'st john"s'], ["St Johns", "Saint John's"]),
        ("city", ["New York, NY", "NYC"], ["new york ny", "nyc"], ["New York", "NY"]),
        ("city", ["5"], ["5"], [5, 5.0]),
        ("city", ["é"], ["é", "e\u0301", "É"], ["e"]),
        ("class", ["First"], ["First", "first"], ["Second"]),
        (
            "stops",
            [["Lyon", "Nice"]],
            [["Lyon", "Nice"], ["lyon", "NICE"]],
            [["Nice", "Lyon"], ["Lyon"], ["Lyon", "Nice", "Nice"]],
        ),
        ("stops", [["Lyon"], []], [["Lyon"], []], ["Lyon", [["Lyon"]], [None], {}]),
        ("point", [[1.5, 2]], [[1.5, 2], [1.5, 2.0]], [[2, 1.5], [1.5], "1.5, 2", [1.5, "2"], [1.5, True]]),
        (
            "guest",
            [{"name": ["Ann", "Anna"], "age": [30, ""]}],
            [{"name": "Ann", "age": 30}, {"name": "anna"}, {"age": 30, "name": "Anna"}],
            [
                {"age": 30},
                {"name": "Ann", "age": 31},
                {"name": "Ann", "age": "30"},
                {"name": "Ann", "x": 1},
                {},
                [],
                "Ann",
                {"name": "Ann", "age": 30.0},
                {"name": ["Ann"]},
                {"name": "Ann", "age": True},
            ],
        ),
        (
            "rooms",
            [[{"beds": [1]}, {"beds": [2, 3]}]],
            [[{"beds": 1}, {"beds": 2}], [{"beds": 1}, {"beds": 3}]],
            [[{"beds": 2}, {"beds": 1}], [{"beds": 1}], {"beds": 1}, [1, 2], [{"beds": [1]}, {"beds": [2]}]],
        ),
        ("extra", [5], [5, 5.0], ["5", True]),
        ("extra", ["data"], ["data"], [["data"], {"data": 1}]),
        ("extra", [None], [None], ["null", "None", 0, False, ""]),
        (
            "extra",
            [{"a": [{"b": [[1, 2]]}]}],
            [{"a": {"b": [1, 2]}}],
            [{"a": {"b": [2, 1]}}, {"a": {}}, {"a": {"b": 1}}],
        ),
    ],
)
def test_a_value_is_right_when_it_is_an_allowed_one_of_the_declared_type(parameter, allowed, right, wrong):
    answers = [{"book": {"city": ["Paris"], parameter: allowed}}]
    for value in right:
        reward = judged([call(**{"city": "Paris", parameter: value})], answers)
        assert reward.value == 1.0, (value, reward.detail)
    for value in wrong:
        reward = judged([call(**{"city": "Paris", parameter: value})], answers)
        assert reward.value == 0.0, value


@pytest.mark.parametrize("written", ["paris", " Paris", "Paris.", "Par-is"])
def test_strings_compared_exactly_have_every_letter(written):
    answers = [{"book": {"city": ["Paris"]}}]
    assert judged(call(city=written), answers).value == 1.0
    assert judged(call(city=written), answers, strings="exact").value == 0.0
    assert judged(call(city="Paris"), answers, strings="exact").value == 1.0


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"city": "Paris", "nights": 3}, 1.0),
        ({"city": "Paris"}, 1.0),
        ({"nights": 3}, 0.0),
        ({}, 0.0),
        ({"city": "Paris", "nights": 4}, 0.0),
        ({"city": "Paris", "nights": ""}, 0.0),
        ({"city": "Paris", "nights": None}, 0.0),
        ({"city": "Paris", "budget": 100}, 0.0),
        ({"city": "Paris", "unheard": 1}, 0.0),
        ({"City": "Paris"}, 0.0),
    ],
)
def test_only_what_the_label_lets_go_may_be_left_out_and_nothing_may_be_added(arguments, value):
    assert judged(call(**arguments), [{"book": {"city": ["Paris"], "nights": [3, ""]}}]).value == value


def test_what_the_schema_requires_stays_required_whatever_the_label_says():
    answers = [{"book": {"city": ["Paris", ""]}}]
    assert judged(call(), answers).value == 0.0
    assert judged(call(city="Paris"), answers).value == 1.0


@pytest.mark.parametrize("name", ["Book", "book ", "bookings", "trips.book", "trips.cancel", "", "trips_cancel"])
def test_the_functions_name_is_compared_letter_by_letter(name):
    assert judged(call(name, city="Paris"), [{"book": {"city": ["Paris"]}}]).value == 0.0


THREE = [{"book": {"city": ["Rome"]}}, {"book": {"city": ["Paris"]}}, {"trips.cancel": {"id": [7]}}]
THREE_CALLS = [call(city="Rome"), call(city="Paris"), call("trips.cancel", id=7)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parallel_calls_may_stand_in_any_order(order):
    assert judged([THREE_CALLS[index] for index in order], THREE).value == 1.0


@pytest.mark.parametrize(
    "calls",
    [
        [],
        THREE_CALLS[:2],
        [*THREE_CALLS, THREE_CALLS[0]],
        [THREE_CALLS[0], THREE_CALLS[0], THREE_CALLS[2]],
        [THREE_CALLS[0], THREE_CALLS[1], call("trips.cancel", id=8)],
        [THREE_CALLS[0], THREE_CALLS[1], call(city="Rome")],
    ],
)
def test_each_expected_call_has_to_be_made_once(calls):
    assert judged(calls, THREE).value == 0.0


def test_a_call_that_fits_several_leaves_the_right_one_for_the_others():
    # Taking the first that fits would give Rome to the first expected call and leave nothing for the second.
    answers = [{"book": {"city": ["Rome", "Paris"]}}, {"book": {"city": ["Rome"]}}]
    assert judged([call(city="Rome"), call(city="Paris")], answers).value == 1.0
    assert judged([call(city="Paris"), call(city="Rome")], answers).value == 1.0
    assert judged([call(city="Paris"), call(city="Paris")], answers).value == 0.0


@given(st.data())
def test_calls_are_matched_as_trying_every_order_would_match_them(data):
    cities = st.sampled_from("abc")
    size = data.draw(st.integers(1, 4))
    answers = data.draw(st.lists(st.lists(cities, min_size=1, unique=True), min_size=size, max_size=size))
    made = data.draw(st.lists(cities, min_size=size, max_size=size))
    reward = judged([call(city=city) for city in made], [{"book": {"city": allowed}} for allowed in answers])
    by_hand = any(
        all(city in allowed for city, allowed in zip(order, answers, strict=True))
        for order in itertools.permutations(made)
    )
    assert reward.value == float(by_hand)


def test_many_parallel_calls_are_matched_soon():
    answers = [{"book": {"city": [f"c{index}", f"c{index + 1}"]}} for index in range(100)]
    assert judged([call(city=f"c{index + 1}") for index in reversed(range(100))], answers).value == 1.0


def test_the_parts_tell_a_broken_format_from_a_wrong_function_and_a_wrong_value():
    problem = {"functions": FUNCTIONS, "possible_answers": [{"book": {"city": ["Paris"]}}]}
    verifier = build("tool_call", {})

    def parts(text: str) -> tuple[float, ...]:
        return tuple(verifier(text, problem).parts[name] for name in ("format", "names", "correct"))

    assert parts(json.dumps(call(city="Paris"))) == (1.0, 1.0, 1.0)
    assert parts(json.dumps(call(city="Rome"))) == (1.0, 1.0, 0.0)
    assert parts(json.dumps(call("trips.cancel", id=7))) == (1.0, 0.0, 0.0)
    assert parts(json.dumps(call(city="Paris"))[:-1]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("answers", "calls", "words"),
    [
        ([{"book": {"city": ["Paris"]}}], [call("f")], "function 'f' instead of 'book'"),
        ([{"book": {"city": ["Paris"]}}], [call()], "parameter 'city' is missing"),
        ([{"book": {"city": ["Paris"]}}], [call(city="Rome")], "parameter 'city' has the wrong value 'Rome'"),
        ([{"book": {"city": ["Paris"]}}], [call(city="Paris", x=1)], "parameter 'x' is not expected"),
        ([{"book": {"city": ["Paris"]}}], [call(city="Paris")] * 2, "2 calls instead of 1"),
        (THREE, [*THREE_CALLS[:2], call()], "fits expected call 3 of 3"),
        ([], [call(city="Paris")], "1 calls instead of 0"),
    ],
)
def test_the_detail_says_what_is_wrong(answers, calls, words):
    assert words in judged(calls, answers).detail


@pytest.mark.parametrize(
    "functions",
    [
        [{"type": "function", "function": TRIP}],
        json.dumps([TRIP]),
        (TRIP,),
        [TRIP | {"parameters": TRIP["parameters"] | {"type": "object"}, "strict": True}],
    ],
)
def test_functions_may_be_bfcls_or_openais_or_their_json(functions):
    answers = [{"book": {"city": ["Paris"], "nights": [3]}}]
    assert judged(call(city="Paris", nights=3), answers, functions=functions).value == 1.0
    assert judged(call(city="Paris", nights="3"), answers, functions=functions).value == 0.0


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer"}, [5], [5.0, "5"]),
        ({"type": "number"}, [5, 5.0], ["5"]),
        ({"type": ["integer", "null"]}, [5], [5.0]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, [5], [5.0]),
        ({"oneOf": [{"type": "number"}, {"type": "string"}]}, [5, 5.0], ["5"]),
        ({"type": "integer", "nullable": True}, [5], [5.0]),
        ({"$ref": "#/x"}, [5, 5.0], ["5"]),
        ({"type": "Optional[int]"}, [5, 5.0], ["5"]),
        ({}, [5, 5.0], ["5", True]),
        ("integer", [5, 5.0], ["5"]),
    ],
)
def test_types_may_be_declared_in_many_ways_and_what_is_unknown_declares_nothing(schema, right, wrong):
    functions = [{"name": "f", "parameters": {"type": "object", "properties": {"n": schema}, "required": ["n"]}}]
    for value in right:
        assert judged(call("f", n=value), [{"f": {"n": [5]}}], functions=functions).value == 1.0, value
    for value in wrong:
        assert judged(call("f", n=value), [{"f": {"n": [5]}}], functions=functions).value == 0.0, value


def test_a_function_may_take_parameters_that_it_does_not_declare():
    functions = [{"name": "f", "parameters": {"type": "object", "additionalProperties": True}}]
    assert judged(call("f", n=5), [{"f": {"n": [5]}}], functions=functions).value == 1.0


@pytest.mark.parametrize(
    "reference",
    [
        {"name": "book", "arguments": {"city": "Paris", "guest": {"name": "Ann"}, "stops": ["Lyon"]}},
        {"name": "book", "arguments": '{"city": "Paris", "guest": {"name": "Ann"}, "stops": ["Lyon"]}'},
    ],
)
def test_a_plain_reference_call_is_a_label_too(reference):
    right = call(city="Paris", guest={"name": "Ann"}, stops=["Lyon"])
    assert judged(right, [reference]).value == 1.0
    assert judged(call(city="Paris", guest={"name": "Ann"}), [reference]).value == 0.0
    assert judged(call(city="Paris", guest={"name": "Bob"}, stops=["Lyon"]), [reference]).value == 0.0


def test_an_empty_text_in_a_plain_reference_call_has_to_be_written():
    reference = {"name": "book", "arguments": {"city": ""}}
    assert judged(call(city=""), [reference]).value == 1.0
    assert judged(call(), [reference]).value == 0.0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"possible_answers": []}, "no 'functions'"),
        ({"functions": FUNCTIONS}, "no 'possible_answers'"),
        ({"possible_answers": None}, "must be a list of calls"),
        ({"possible_answers": {}}, "must be a list of calls"),
        ({"possible_answers": "[{"}, "text must be JSON"),
        ({"possible_answers": ["book"]}, "must be {"),
        ({"possible_answers": [{}]}, "must be {"),
        ({"possible_answers": [{"book": {}, "trips.cancel": {}}]}, "must be {"),
        ({"possible_answers": [{"book": ["Paris"]}]}, "must be an object from parameters"),
        ({"possible_answers": [{"hotel": {}}]}, "none of the functions"),
        ({"possible_answers": [{"book": {"city": ["Paris"], "town": ["x"]}}]}, "no such parameter"),
        ({"possible_answers": [{"book": {"nights": [3]}}]}, "is required"),
        ({"possible_answers": [{"book": {"city": "Paris"}}]}, "at least one allowed value"),
        ({"possible_answers": [{"book": {"city": []}}]}, "at least one allowed value"),
        (
            {"possible_answers": [{"book": {"city": ["Paris"], "guest": [{"name": "Ann"}]}}]},
            "at least one allowed value",
        ),
        ({"possible_answers": [{"book": {"city": ["Paris"], "nights": ["3"]}}]}, "declared type"),
        ({"possible_answers": [{"book": {"city": [5]}}]}, "declared type"),
        ({"possible_answers": [{"book": {"city": ["Paris"], "nights": [True]}}]}, "declared type"),
        ({"possible_answers": [{"book": {"city": ["Paris"], "class": ["Third"]}}]}, "declared type"),
        ({"possible_answers": [{"book": {"city": ["Paris"], "budget": [float("nan")]}}]}, "what JSON can hold"),
        ({"possible_answers": [{"book": {"city": [{1, 2}]}}]}, "what JSON can hold"),
        ({"functions": None, "possible_answers": []}, "must be a list of functions"),
        ({"functions": "{", "possible_answers": []}, "text must be JSON"),
        ({"functions": ["book"], "possible_answers": []}, "a function is an object"),
        ({"functions": [{"name": ""}], "possible_answers": []}, "a function is an object"),
        ({"functions": [{"name": "f", "parameters": ["x"]}], "possible_answers": []}, "parameters of 'f'"),
        ({"functions": [{"name": "f", "parameters": {"required": "x"}}], "possible_answers": []}, "parameters of 'f'"),
        ({"functions": [TRIP, TRIP], "possible_answers": []}, "two functions are called"),
        ({"possible_answers": [], "calls": "none"}, "text must be JSON"),
        ({"possible_answers": [], "calls": {"name": "f"}}, "must be a list of calls"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_that_says_why(row, words):
    problem = row if "no 'functions'" in words else {"functions": FUNCTIONS} | row
    reward = build("tool_call", {})("", problem)
    assert reward.status == "error"
    assert words in reward.detail
    assert "raised" not in reward.detail


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"strings": "loose"},
        {"formats": "glm"},
        {"functions_key": ""},
        {"answers_key": ""},
        {"think_tag": ""},
        {"format": None},
        {"calls_key": None},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="reward tool_call"):
        build("tool_call", options)


def test_it_runs_in_the_pool():
    problem = {"functions": FUNCTIONS, "possible_answers": [{"book": {"city": ["Paris"]}}]}
    with Pool(workers=1, timeout_seconds=20.0) as pool:
        reward = pool.submit(RewardSpec("tool_call"), json.dumps(call(city="\ud800")), problem).result()
    assert reward.value == 0.0
