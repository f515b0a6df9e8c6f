import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.distributed.plan import shares
from grpo.rollout import ExpectedLengths


@pytest.mark.parametrize(
    ("costs", "num_ranks", "expected"),
    [
        ([5, 4, 3, 2], 2, [[0, 3], [1, 2]]),
        ([1, 1, 1, 1], 2, [[0, 2], [1, 3]]),
        ([7], 3, [[0], [], []]),
        ([], 2, [[], []]),
        ([0, 0, 0], 3, [[0], [1], [2]]),
    ],
)
def test_the_costliest_goes_to_who_has_least_as_by_hand(costs, num_ranks, expected):
    assert shares(costs, num_ranks=num_ranks) == expected


@given(costs=st.lists(st.floats(0, 1e6), max_size=40), num_ranks=st.integers(1, 9))
def test_everything_is_done_once_and_no_rank_has_more_than_its_part_and_one(costs, num_ranks):
    own = shares(costs, num_ranks=num_ranks)
    assert sorted(place for places in own for place in places) == list(range(len(costs)))
    sums = [sum(costs[place] for place in places) for places in own]
    assert max(sums) <= sum(costs) / num_ranks + max(costs, default=0) + 1e-6


def test_an_unknown_length_is_the_mean_of_the_known_ones():
    lengths = ExpectedLengths()
    assert lengths.of("a") == 1.0
    lengths.expect({"a": 10.0, "b": 20.0})
    lengths.expect({"a": 30.0})
    assert (lengths.of("a"), lengths.of("b"), lengths.of("c")) == (30.0, 20.0, 25.0)
    again = ExpectedLengths()
    again.load_state_dict(lengths.state_dict())
    assert [again.of(name) for name in "abc"] == [30.0, 20.0, 25.0]
