"""The compose reward: sum, gate, penalties, bounds, parts, and what becomes of a component without a value."""

from __future__ import annotations

import importlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Pool, Reward, RewardSpec, Status, build, build_spec
from rewards.build import BUILT_IN, prepare_spec
from rewards.compose import ComposeOptions, build_compose

GOOD = "<think>3 + 4</think><answer>\\boxed{7}</answer>"
WRONG = "<think>3 + 4</think><answer>\\boxed{8}</answer>"
BARE = "\\boxed{7}"
ROW = {"answer": "7"}

CORRECT_AND_FORMAT = {
    "rewards": {"correct": {"name": "math_answer"}, "format": {"name": "format", "weight": 0.2}},
    "gate": {"format": 1.0},
}

OWN = """
from rewards import Reward

def give(completion, problem, *, key):
    kind = problem[key]
    made = {"abstain": Reward.abstained("no idea"), "error": Reward.error("broken"), "timeout": Reward.timeout("slow"),
            "parts": Reward.scored(0.5, parts={"inner": 2.0}), "none": None}
    if kind == "raise":
        raise RuntimeError("oh")
    return made[kind] if isinstance(kind, str) else kind

def spoil(completion, problem):
    problem.clear()
    return 1.0

def count(completion, problem):
    problem["calls"].append("judge")
    return 1.0
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)

    def component(key, **fields):
        return {"file": str(path), "function": "give", "options": {"key": key}, **fields}

    component.file = str(path)
    return component


@pytest.mark.parametrize(
    ("completion", "value"), [(GOOD, 1.2), (WRONG, 0.2), (BARE, 0.0), ("", 0.0), (GOOD + GOOD, 0.0)]
)
def test_there_is_no_correctness_without_format(completion, value):
    assert build("compose", CORRECT_AND_FORMAT)(completion, ROW).value == pytest.approx(value)


def test_without_a_gate_it_is_a_weighted_sum():
    verifier = build("compose", {"rewards": CORRECT_AND_FORMAT["rewards"]})
    assert [verifier(text, ROW).value for text in (GOOD, WRONG, BARE)] == pytest.approx([1.2, 0.2, 1.0])


@pytest.mark.parametrize(
    ("threshold", "value_of_gate", "expected"), [(0.5, 0.4, 0.4), (0.5, 0.5, 1.5), (0.5, 0.6, 1.6), (-1.0, -0.5, 0.5)]
)
def test_the_gate_opens_at_its_threshold(own, threshold, value_of_gate, expected):
    options = {"rewards": {"gate": own("g"), "rest": own("r")}, "gate": {"gate": threshold}}
    assert build("compose", options)("", {"g": value_of_gate, "r": 1.0}).value == pytest.approx(expected)


def test_one_closed_gate_of_two_is_enough_and_the_other_still_counts(own):
    options = {"rewards": {"a": own("a"), "b": own("b"), "c": own("c")}, "gate": {"a": 1.0, "b": 1.0}}
    reward = build("compose", options)("", {"a": 0, "b": 1, "c": 1})
    assert reward.value == 1.0
    assert reward.parts == {"a": 0.0, "b": 1.0}
    assert "the gate is closed by a" in reward.detail


def test_what_the_gate_shuts_out_is_not_called(own):
    options = {
        "rewards": {"format": {"name": "format"}, "judge": {"file": own.file, "function": "count"}},
        "gate": {"format": 1.0},
    }
    verifier, calls = build("compose", options), []
    assert verifier(BARE, {"calls": calls}).value == 0.0
    assert calls == []
    assert verifier(GOOD, {"calls": calls}).value == 2.0
    assert calls == ["judge"]


@pytest.mark.parametrize(
    ("weight", "value", "expected"), [(0.5, -1, 0.5), (-0.5, 1, 0.5), (0.5, 0, 1.0), (0.5, 1, 1.0), (-0.5, -1, 1.0)]
)
def test_a_penalty_takes_off_and_never_adds(own, weight, value, expected):
    options = {"rewards": {"a": own("a")}, "penalties": {"p": own("p", weight=weight)}}
    reward = build("compose", options)("", {"a": 1, "p": value})
    assert reward.value == expected
    assert reward.parts["p"] == value


def test_breaking_the_format_is_no_way_around_a_penalty():
    options = CORRECT_AND_FORMAT | {"penalties": {"loop": {"name": "repetition"}}}
    assert build("compose", options)("the cat sat " * 50, ROW).value == -1.0


@pytest.mark.parametrize(("bounds", "expected"), [({}, 5.0), ({"highest": 1.0}, 1.0), ({"highest": 9.0}, 5.0)])
def test_the_sum_is_cut_at_the_highest(own, bounds, expected):
    options = {"rewards": {"a": own("a", weight=5)}, **bounds}
    assert build("compose", options)("", {"a": 1}).value == expected


@pytest.mark.parametrize(("lowest", "expected"), [(-2.0, -2.0), (-9.0, -5.0), (0.0, 0.0)])
def test_the_sum_is_cut_at_the_lowest_after_the_penalties(own, lowest, expected):
    options = {"rewards": {"a": own("a")}, "penalties": {"p": own("p", weight=5)}, "lowest": lowest, "highest": 1}
    assert build("compose", options)("", {"a": 0, "p": -1}).value == expected


def test_every_component_is_a_part_and_keeps_its_own_parts_under_its_name(own):
    options = {"rewards": {"a": own("a", weight=2), "watched": own("b", weight=0)}}
    reward = build("compose", options)("", {"a": "parts", "b": 0.25})
    assert reward.value == 1.0
    assert reward.parts == {"a": 0.5, "a/inner": 2.0, "watched": 0.25}


@pytest.mark.parametrize(
    ("kind", "status", "told"),
    [
        ("abstain", Status.ABSTAINED, "b: no idea"),
        ("none", Status.ABSTAINED, "b: give returned None"),
        ("timeout", Status.TIMEOUT, "b: slow"),
        ("error", Status.ERROR, "b: broken"),
        ("raise", Status.ERROR, "b: give raised RuntimeError: oh"),
        (math.nan, Status.ERROR, "b: give returned nan"),
    ],
)
@pytest.mark.parametrize("place", ["rewards", "penalties", "gate"])
def test_a_component_without_a_value_leaves_the_whole_without_one_and_is_named(own, kind, status, told, place):
    options = {"rewards": {"a": own("a")}}
    options |= {"penalties": {"b": own("b")}} if place == "penalties" else {}
    options["rewards"] |= {} if place == "penalties" else {"b": own("b")}
    options |= {"gate": {"b": 1.0}} if place == "gate" else {}
    reward = build("compose", options)("", {"a": 1, "b": kind})
    assert (reward.status, reward.value) == (status, None)
    assert reward.detail.startswith(told)


@pytest.mark.parametrize("kind", ["abstain", "none"])
def test_a_stand_in_counts_where_a_component_abstains_and_its_part_stays_away(own, kind):
    options = {"rewards": {"a": own("a"), "b": own("b", weight=2, abstained=0.25)}}
    reward = build("compose", options)("", {"a": 1, "b": kind})
    assert (reward.value, reward.parts) == (1.5, {"a": 1.0})


@pytest.mark.parametrize(("kind", "status"), [("error", Status.ERROR), ("raise", Status.ERROR), ("timeout", "timeout")])
def test_nothing_stands_in_for_a_crash(own, kind, status):
    options = {"rewards": {"a": own("a"), "b": own("b", abstained=0.0)}}
    assert build("compose", options)("", {"a": 1, "b": kind}).status == status


@pytest.mark.parametrize(("stand_in", "value"), [(1.0, 2.0), (0.0, 0.0)])
def test_a_gate_that_abstains_is_open_or_closed_by_its_stand_in(own, stand_in, value):
    options = {"rewards": {"a": own("a"), "g": own("g", abstained=stand_in)}, "gate": {"g": 1.0}}
    assert build("compose", options)("", {"a": 1, "g": "abstain"}).value == value


def test_what_one_component_does_to_the_row_is_not_seen_by_the_next(own):
    row = {"b": 0.5}
    options = {"rewards": {"a": {"file": own.file, "function": "spoil"}, "b": own("b")}}
    assert build("compose", options)("", row).value == 1.5
    assert row == {"b": 0.5}


def test_a_sum_that_is_no_number_is_an_error(own):
    options = {"rewards": {"a": own("a", weight=1e308)}}
    assert build("compose", options)("", {"a": 1e308}).status is Status.ERROR


@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=5),
    weights=st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    bounds=st.tuples(st.floats(-4, 4), st.floats(-4, 4)).map(sorted),
)
def test_the_value_is_the_bounded_sum_whatever_the_order(values, weights, bounds):
    def verifier_of(spec):
        return lambda completion, problem: Reward.scored(problem[spec.function])

    entries = {
        f"c{place}": {"file": "f.py", "function": f"c{place}", "weight": weights[place]} for place in range(len(values))
    }
    row = {f"c{place}": value for place, value in enumerate(values)}
    expected = math.fsum(weight * value for weight, value in zip(weights, values, strict=False))
    for order in (list(entries), list(reversed(entries))):
        options = ComposeOptions(rewards={name: entries[name] for name in order}, lowest=bounds[0], highest=bounds[1])
        value = build_compose(options, build=verifier_of)("", row).value
        assert value == min(max(expected, bounds[0]), bounds[1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "option rewards is missing"),
        ({"rewards": {}}, "rewards = {}: must name at least one"),
        ({"rewards": {"a": 1.0}}, "rewards.a = 1.0: must be a mapping"),
        ({"rewards": {"a": {}}}, "rewards.a: a reward is either a built-in name or a file"),
        ({"rewards": {"a": {"nam": "format"}}}, "rewards.a: 'nam' is not an option; did you mean 'name'"),
        ({"rewards": {"a": {"name": "formt"}}}, "rewards.a: 'formt' is not a reward; did you mean 'format'"),
        ({"rewards": {"a": {"name": "format", "options": {"tag": "x"}}}}, "rewards.a: reward format: 'tag' is not"),
        ({"rewards": {"a": {"name": "format", "weight": "1"}}}, "rewards.a: option weight = '1': must be a float"),
        ({"rewards": {"a": {"name": "format", "weight": math.inf}}}, "rewards.a: weight = inf: must be a finite"),
        ({"rewards": {"a": {"name": "format", "abstained": math.nan}}}, "rewards.a: abstained = nan"),
        ({"rewards": {"a": {"name": "format", "file": "a.py", "function": "f"}}}, "rewards.a: a reward is either"),
        ({"rewards": {"a": {"file": "/no/such.py", "function": "f"}}}, "rewards.a: reward file '/no/such.py'"),
        ({"rewards": {"a": {"name": "compose"}}}, "rewards.a: name = 'compose'"),
        ({"rewards": {"a/b": {"name": "format"}}}, "'a/b' is not a name for a part"),
        ({"rewards": {"": {"name": "format"}}}, "'' is not a name for a part"),
        ({"rewards": {"a": {"name": "format"}}, "penalties": {"a": {"name": "format"}}}, "penalties.a: rewards.a has"),
        ({"rewards": {"a": {"name": "format"}}, "penalties": {"p": {"name": "x"}}}, "penalties.p: 'x' is not a reward"),
        ({"rewards": {"format": {"name": "format"}}, "gate": {"fromat": 1}}, "gate.fromat: not one.*mean 'format'"),
        ({"rewards": {"a": {"name": "format"}}, "penalties": {"p": {"name": "format"}}, "gate": {"p": 1}}, "gate.p"),
        (
            {"rewards": {"a": {"name": "format"}}, "gate": ["a"]},
            "option gate = .*must be a mapping from names to floats",
        ),
        ({"rewards": {"a": {"name": "format"}}, "gate": {"a": math.nan}}, "gate.a = nan: must be a finite"),
        ({"rewards": {"a": {"name": "format"}}, "lowest": 1, "highest": 0}, "lowest = 1.0 is above highest = 0.0"),
        ({"rewards": {"a": {"name": "format"}}, "highest": math.inf}, "highest = inf"),
        ({"rewards": {"a": {"name": "format"}}, "cap": 1}, "'cap' is not an option"),
    ],
)
def test_what_is_wrong_with_the_options_is_told_with_its_path(options, told):
    with pytest.raises(ValueError, match=f"reward compose: .*{told}"):
        build("compose", options)


def test_the_packages_of_its_components_are_imported_before_the_first_call(monkeypatch):
    prepared = []
    module = importlib.import_module("rewards.build")  # rewards.build is the function of that name
    known = {name: it._replace(prepare=lambda name=name: prepared.append(name)) for name, it in BUILT_IN.items()}
    monkeypatch.setattr(module, "BUILT_IN", known)
    penalties = {"loop": {"name": "repetition"}}
    prepare_spec(RewardSpec("compose", options=CORRECT_AND_FORMAT | {"penalties": penalties}))
    assert sorted(prepared) == ["compose", "format", "math_answer", "repetition"]


def test_its_spec_survives_the_way_to_a_worker_with_a_function_of_ones_own(own):
    options = CORRECT_AND_FORMAT | {"penalties": {"brief": own("long", weight=-0.1)}}
    spec = RewardSpec("compose", options=json.loads(json.dumps(options)))
    row = {"answer": "7", "long": 1}
    assert build_spec(spec)(GOOD, row).value == pytest.approx(1.1)
    with Pool(workers=1) as pool:
        rewards = pool.score_all([(spec, GOOD, row), (spec, BARE, row), (spec, GOOD, {"answer": "7"})])
    assert [reward.value for reward in rewards] == pytest.approx([1.1, -0.1, None])
    assert rewards[2].status is Status.ERROR
    assert rewards[2].detail.startswith("brief: give raised KeyError: 'long'")
