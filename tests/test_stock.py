"""Groups that the profile drew come back whole, once, and a step that is given up has used none of them."""

import json

import pytest

from grpo.stock import GROUPS, TRACES, Stock, StockWriter
from grpo.types import Group, KeptSets, Message, Problem, Rollout, StopReason
from rewards import Reward, RewardSpec


def problem_of(name: str) -> Problem:
    return Problem(id=name, messages=(Message("user", f"{name}?"),), answer="1", reward=RewardSpec(name="list_machine"))


def group_of(name: str, correct: list[bool], *, first_attempt: int = 0, kept: KeptSets | None = None) -> Group:
    rollouts = [
        Rollout(
            problem_id=name,
            attempt=first_attempt + index,
            token_ids=(5, 6, 7 + index),
            action_mask=(False, True, True),
            logprobs=(0.0, -0.1 * (index + 1), -1.0 / 3.0),
            kept=kept,
            stop_reason=StopReason.LIMIT if index else StopReason.END_TOKEN,
            temperature=1.3,
            policy_step=0,
        )
        for index in range(len(correct))
    ]
    rewards = [Reward.scored(float(right), parts={"right": float(right)}, detail="as asked") for right in correct]
    return Group(
        problem=problem_of(name),
        rollouts=tuple(rollouts),
        completions=tuple(f"text {index}" for index in range(len(correct))),
        rewards=tuple(rewards),
        success_threshold=1.0,
    )


@pytest.mark.parametrize("kept", [None, KeptSets.of([(1, 2), ()])])
def test_a_group_comes_back_bit_for_bit(tmp_path, kept):
    group = group_of("a", [True, False], kept=kept)
    StockWriter(tmp_path, first_rollouts=2).add(group)
    found = Stock.opened(tmp_path).take(problem_of("a"), success_threshold=1.0)
    assert found == group


def test_only_first_groups_with_variance_are_kept_and_later_successes_are_traces(tmp_path):
    writer = StockWriter(tmp_path, first_rollouts=2)
    writer.add(group_of("solved", [True, True]))
    writer.add(group_of("unsolved", [False, False]))
    writer.add(group_of("unsolved", [False, True, True], first_attempt=2))
    writer.add(group_of("part of a first group", [True, False, True]))
    writer.add(group_of("varied", [True, False]))
    stock = Stock.opened(tmp_path)
    names = ("solved", "unsolved", "part of a first group", "varied")
    found = {name: stock.take(problem_of(name), success_threshold=1.0) is not None for name in names}
    assert found == {"solved": False, "unsolved": False, "part of a first group": False, "varied": True}
    traces = [json.loads(line) for line in (tmp_path / TRACES.format(0)).read_text().splitlines()]
    assert [(row["problem_id"], row["attempt"], row["trace"]) for row in traces] == [
        ("unsolved", 3, "text 1"),
        ("unsolved", 4, "text 2"),
    ]
    assert traces[0]["messages"] == [{"role": "user", "content": "unsolved?"}]


def test_a_group_is_taken_once_and_a_step_that_is_given_up_has_taken_none(tmp_path):
    writer = StockWriter(tmp_path, first_rollouts=2)
    for name in ("a", "b"):
        writer.add(group_of(name, [True, False]))
    stock = Stock.opened(tmp_path)
    assert stock.take(problem_of("a"), success_threshold=1.0) is not None
    assert stock.take(problem_of("a"), success_threshold=1.0) is None
    before = json.loads(json.dumps(stock.state_dict()))
    stock.end_step()
    after = json.loads(json.dumps(stock.state_dict()))
    for state, expected in ((before, True), (after, False)):
        resumed = Stock.opened(tmp_path)
        resumed.load_state_dict(state)
        assert (resumed.take(problem_of("a"), success_threshold=1.0) is not None) is expected
        assert resumed.take(problem_of("b"), success_threshold=1.0) is not None


def test_a_line_that_was_torn_is_left_out_and_one_that_stands_twice_counts_once(tmp_path):
    writer = StockWriter(tmp_path, first_rollouts=2)
    for name in ("a", "a", "b"):
        writer.add(group_of(name, [True, False]))
    path = tmp_path / GROUPS.format(0)
    path.write_bytes(path.read_bytes()[:-10])
    stock = Stock.opened(tmp_path)
    assert stock.take(problem_of("a"), success_threshold=1.0) is not None
    assert stock.take(problem_of("a"), success_threshold=1.0) is None
    assert stock.take(problem_of("b"), success_threshold=1.0) is None


def test_a_line_after_a_torn_one_is_whole(tmp_path):
    writer = StockWriter(tmp_path, first_rollouts=2)
    writer.add(group_of("a", [True, False]))
    path = tmp_path / GROUPS.format(0)
    path.write_bytes(path.read_bytes()[:-10])
    StockWriter(tmp_path, first_rollouts=2).add(group_of("b", [True, False]))
    assert Stock.opened(tmp_path).take(problem_of("b"), success_threshold=1.0) is not None


def test_where_no_profile_left_anything_there_is_nothing(tmp_path):
    assert Stock.opened(tmp_path).take(problem_of("a"), success_threshold=1.0) is None
    assert Stock.empty().take(problem_of("a"), success_threshold=1.0) is None


def test_groups_of_all_ranks_are_found_and_one_that_two_have_counts_once(tmp_path):
    for rank, names in enumerate((("a", "b"), ("b", "c"))):
        writer = StockWriter(tmp_path, first_rollouts=2, rank=rank)
        for name in names:
            writer.add(group_of(name, [True, False]))
    stock = Stock.opened(tmp_path)
    taken = [stock.take(problem_of(name), success_threshold=1.0) is not None for name in ("a", "b", "b", "c")]
    assert taken == [True, True, False, True]
