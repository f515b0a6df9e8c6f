"""The invariants of a Reward and of a RewardSpec."""

from __future__ import annotations

import copy
import math
import pickle

import pytest

from rewards import Reward, RewardSpec, Status


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1, True, "1"])
def test_a_scored_reward_refuses_whatever_is_no_finite_float(value):
    with pytest.raises(ValueError, match="finite float"):
        Reward(value=value, status=Status.SCORED)


@pytest.mark.parametrize("status", [Status.ABSTAINED, Status.TIMEOUT, Status.ERROR])
def test_a_reward_without_a_score_refuses_a_value(status):
    with pytest.raises(ValueError, match="must be None"):
        Reward(value=0.0, status=status)
    assert Reward(value=None, status=status).value is None


def test_a_status_that_is_a_bare_string_is_refused():
    with pytest.raises(ValueError, match=r"Reward\.status"):
        Reward(value=1.0, status="scored")


@pytest.mark.parametrize("part", [math.nan, math.inf, "1", None])
def test_a_part_that_is_no_finite_number_is_refused(part):
    with pytest.raises(ValueError, match="parts"):
        Reward.scored(1.0, parts={"correct": part})


@pytest.mark.parametrize("detail", [None, 5, b"bytes", ["a"]])
def test_a_detail_that_is_no_text_is_refused(detail):
    with pytest.raises(ValueError, match=r"Reward\.detail"):
        Reward.scored(1.0, detail=detail)


def test_parts_are_a_copy_that_cannot_be_written_to():
    given = {"correct": 1.0}
    reward = Reward.scored(1.0, parts=given)
    given["correct"] = math.nan
    assert reward.parts == {"correct": 1.0}
    with pytest.raises(TypeError, match="does not support item assignment"):
        reward.parts["correct"] = math.nan


def test_a_reward_survives_pickling_and_copying():
    reward = Reward.scored(0.5, parts={"correct": 1.0}, detail="half")
    assert reward == pickle.loads(pickle.dumps(reward)) == copy.deepcopy(reward)


def test_each_constructor_gives_its_own_status():
    assert Reward.scored(True) == Reward(value=1.0, status=Status.SCORED)
    assert Reward.error("e").status == "error"
    assert Reward.timeout("t").status == "timeout"
    assert Reward.abstained().status == "abstained"


def test_a_spec_survives_pickling_and_is_equal_whatever_the_order_of_its_options():
    one = RewardSpec("format", options={"b": 1, "a": [1, 2]})
    other = RewardSpec("format", options={"a": [1, 2], "b": 1})
    assert one == other == pickle.loads(pickle.dumps(one))
    assert len({one, other}) == 1
    assert one.options == {"a": [1, 2], "b": 1}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"name": "format", "file": "a.py", "function": "f"}, {"file": "a.py"}, {"function": "f"}],
)
def test_a_spec_is_either_a_name_or_a_file_with_a_function(arguments):
    with pytest.raises(ValueError, match="either a built-in name or a file"):
        RewardSpec(**arguments)


@pytest.mark.parametrize("options", [{"a": object()}, {"a": math.nan}, {1: 2}, "a=1"])
def test_options_that_json_cannot_hold_are_refused(options):
    with pytest.raises(ValueError, match="reward format: options"):
        RewardSpec("format", options=options)
