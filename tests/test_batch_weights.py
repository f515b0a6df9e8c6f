"""Some of a group's failures stand for all of them without bias, and what an earlier policy drew is told apart."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.batch import micro_batches, trained_rollouts
from grpo.losses import LossTerms
from grpo.tracking.metrics import loss_metrics, sampler_metrics
from grpo.types import Group, Message, Problem, Rollout, StepStats, StopReason
from rewards import Reward, RewardSpec

CPU = torch.device("cpu")
LIMIT_TOKENS = 24
AGGREGATIONS = ["token", "sequence", "group", "constant"]


def group_of(lengths: list[int], *, num_correct: int, policy_step: int = 0, name: str = "p") -> Group:
    """A group of which the first `num_correct` rollouts are right, with completions of the given lengths."""
    problem = Problem(id=name, messages=(Message("user", "?"),), answer="1", reward=RewardSpec(name="list_machine"))
    rollouts = [
        Rollout(
            problem_id=name,
            attempt=index,
            token_ids=(0, *range(1, length + 1)),
            action_mask=(False,) + (True,) * length,
            logprobs=(0.0,) + (-float(index + 1),) * length,
            kept=None,
            stop_reason=StopReason.END_TOKEN,
            temperature=1.0,
            policy_step=policy_step,
        )
        for index, length in enumerate(lengths)
    ]
    return Group(
        problem=problem,
        rollouts=tuple(rollouts),
        completions=("",) * len(lengths),
        rewards=tuple(Reward.scored(float(index < num_correct)) for index in range(len(lengths))),
        success_threshold=1.0,
    )


def weight_by_rollout(trained, *, aggregation: str) -> dict[int, float]:
    """What one token of each rollout weighs in the loss, by attempt."""
    batches = micro_batches(
        trained, tokens_per_micro_batch=30, limit_tokens=LIMIT_TOKENS, aggregation=aggregation, device=CPU
    )
    found = {}
    for batch in batches:
        for row, of_row in enumerate(batch.rollouts):
            found[of_row.rollout.attempt] = float(batch.weights[batch.rollout_index == row][0])
    return found


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_over_all_draws_the_failures_that_are_trained_on_weigh_as_all_of_them_would(aggregation):
    group, advantages = group_of([3, 5, 2, 7, 4], num_correct=1), [[0.8, -0.2, -0.2, -0.2, -0.2]]
    whole = weight_by_rollout(trained_rollouts([group], advantages, mask_truncated=False), aggregation=aggregation)
    sums: dict[int, float] = dict.fromkeys(range(5), 0.0)
    drawn_sets = set()
    num_steps = 3000
    for step in range(num_steps):
        trained = trained_rollouts([group], advantages, mask_truncated=False, failures_per_group=2, seed=7, step=step)
        weights = weight_by_rollout(trained, aggregation=aggregation)
        assert len(weights) == 3
        assert weights[0] == pytest.approx(whole[0])  # the success weighs what it always does
        drawn_sets.add(tuple(sorted(weights)))
        for attempt, weight in weights.items():
            sums[attempt] += weight
    assert drawn_sets == {(0, *pair) for pair in itertools.combinations(range(1, 5), 2)}
    for attempt in range(1, 5):
        # A failure is in half of the draws with twice its weight: over 3,000 its mean has a standard error of 1.8 %.
        assert sums[attempt] / num_steps == pytest.approx(whole[attempt], rel=0.08)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_denominators_count_all_that_enter_whichever_failures_are_drawn(aggregation, data):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=9))
    num_correct = data.draw(st.integers(1, len(lengths) - 1))
    most = data.draw(st.integers(1, 9))
    group = group_of(lengths, num_correct=num_correct)
    advantages = [[0.0] * len(lengths)]
    whole = weight_by_rollout(trained_rollouts([group], advantages, mask_truncated=False), aggregation=aggregation)
    drawn = weight_by_rollout(
        trained_rollouts([group], advantages, mask_truncated=False, failures_per_group=most, seed=1, step=2),
        aggregation=aggregation,
    )
    num_failures = len(lengths) - num_correct
    factor = max(1.0, num_failures / most)
    assert len(drawn) == num_correct + min(num_failures, most)
    for attempt, weight in drawn.items():
        assert weight == pytest.approx(whole[attempt] * (factor if attempt >= num_correct else 1.0))


def test_the_draw_is_a_function_of_seed_step_and_problem():
    def drawn(**changes):
        given = {"seed": 1, "step": 5, "name": "p"} | changes
        group = group_of([1] * 40, num_correct=1, name=given.pop("name"))
        (of_group,) = trained_rollouts([group], [[0.0] * 40], mask_truncated=False, failures_per_group=4, **given)
        return [trained.rollout.attempt for trained in of_group]

    assert drawn() == drawn()
    assert len({tuple(drawn(**change)) for change in ({}, {"seed": 2}, {"step": 6}, {"name": "q"})}) == 4


def test_masked_rollouts_are_no_failures_to_draw_from():
    group = group_of([2, 3, 4], num_correct=1)
    cut = replace(group.rollouts[1], stop_reason=StopReason.LIMIT)
    group = replace(group, rollouts=(group.rollouts[0], cut, group.rollouts[2]))
    (trained,) = trained_rollouts([group], [[0.6, -0.3, -0.3]], mask_truncated=True, failures_per_group=1)
    assert [(t.rollout.attempt, t.weight, t.group_tokens, t.group_rollouts) for t in trained] == [
        (0, 1.0, 6, 2),
        (2, 1.0, 6, 2),
    ]


def test_what_an_earlier_policy_drew_is_stale_and_leaves_the_comparison_with_the_sampler():
    groups = [group_of([2, 2], num_correct=1, policy_step=0), group_of([3, 1], num_correct=1, policy_step=4)]
    trained = trained_rollouts(groups, [[0.5, -0.5]] * 2, mask_truncated=False, step=4)
    (batch,) = micro_batches(
        trained, tokens_per_micro_batch=1000, limit_tokens=LIMIT_TOKENS, aggregation="token", device=CPU
    )
    assert int(batch.stale.sum()) == 4
    stats = StepStats()
    # Off by 1 nat where it is stale, and by 0.25 where it is not: only the latter counts.
    policy = batch.sampler_logprobs + torch.where(batch.stale, 1.0, 0.25)
    sampler_metrics(stats, batch, policy_logprobs=policy)
    assert stats.reduce()["policy/sampler_logprob_gap_max"] == pytest.approx(0.25)
    none = replace(batch, stale=torch.ones_like(batch.stale))
    empty = StepStats()
    sampler_metrics(empty, none, policy_logprobs=policy)
    assert empty.reduce() == {}


def test_the_metrics_of_a_filler_are_left_out():
    stats = StepStats()
    nothing = torch.zeros(0)
    terms = LossTerms(
        loss=torch.zeros(()), ratio=nothing, clipped_low=nothing, clipped_high=nothing, correction=nothing
    )
    loss_metrics(stats, terms, entropy=nothing)
    assert stats.reduce() == {}
