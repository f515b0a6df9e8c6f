"""Groups that the profile drew come back whole, once, and a step that is given up has used none of them."""

import json

import pytest

from grpo.errors import RunFolderError
from grpo.stock import BLOCK_BYTES, GROUPS, TRACES, Stock, StockWriter
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
    stock.end_step(["a"])
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


@pytest.mark.parametrize("size", [0, 1, 7, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
@pytest.mark.parametrize("whole", [b"", b"{}\n", b"x" * 2 * BLOCK_BYTES + b"\n"])
def test_what_follows_the_last_whole_line_is_cut_off_however_long_either_is(tmp_path, whole, size):
    path = tmp_path / TRACES.format(0)
    path.write_bytes(whole + b"y" * size)
    StockWriter(tmp_path, first_rollouts=2)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["a", 'with "quotes", and \\', "ü", "line\nbreak", ""])
def test_a_problem_of_any_name_is_found(tmp_path, name):
    StockWriter(tmp_path, first_rollouts=2).add(group_of(name, [True, False]))
    assert Stock.opened(tmp_path).take(problem_of(name), success_threshold=1.0) == group_of(name, [True, False])


def test_only_the_group_that_is_taken_is_read_as_json(tmp_path, monkeypatch):
    writer = StockWriter(tmp_path, first_rollouts=2)
    for name in ("a", "b", "c"):
        writer.add(group_of(name, [True, False]))
    loads, read = json.loads, []

    def watched(text: bytes) -> object:
        read.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", watched)
    stock = Stock.opened(tmp_path)
    assert read == []
    assert stock.take(problem_of("b"), success_threshold=1.0) is not None
    assert len(read) == 1


def test_a_folder_that_is_gone_is_an_error_when_a_group_is_asked_for(tmp_path):
    stock = Stock.opened(tmp_path / "gone")
    assert stock.state_dict() == {"used": []}
    with pytest.raises(
        RunFolderError, match=r"gone: the folder of the profile's groups is gone.*profile.reuse_steps=0"
    ):
        stock.take(problem_of("a"), success_threshold=1.0)


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


def test_a_group_that_a_step_took_and_did_not_train_on_stays(tmp_path):
    StockWriter(tmp_path, first_rollouts=2).add(group_of("a", [True, False]))
    stock = Stock.opened(tmp_path)
    assert stock.take(problem_of("a"), success_threshold=1.0) is not None
    stock.end_step([])
    assert stock.take(problem_of("a"), success_threshold=1.0) is not None
