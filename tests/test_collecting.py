"""The groups of a step: refilled while they teach nothing, taken from the stock where it has them, billed by token."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from curricula import Uniform
from grpo.collecting import Collected, Collector
from grpo.distributed.world import World
from grpo.rollout import Attempts, Sampled
from grpo.stock import Stock, StockWriter
from grpo.types import Group, Message, Problem, Rollout, Stage, StepStats, StopReason
from rewards import Reward, RewardSpec

TOKENS = 3


def problem_of(name: str) -> Problem:
    return Problem(id=name, messages=(Message("user", name),), answer="1", reward=RewardSpec(name="list_machine"))


def group_of(problem: Problem, *, first_attempt: int, size: int, varied: bool) -> Group:
    rollouts = tuple(
        Rollout(
            problem_id=problem.id,
            attempt=first_attempt + index,
            token_ids=(1,) * (TOKENS + 1),
            action_mask=(False,) + (True,) * TOKENS,
            logprobs=(0.0,) * (TOKENS + 1),
            kept=None,
            stop_reason=StopReason.END_TOKEN,
            temperature=1.0,
            policy_step=0,
        )
        for index in range(size)
    )
    rewards = tuple(Reward.scored(float(varied and index == 0)) for index in range(size))
    return Group(problem, rollouts, ("",) * size, rewards, success_threshold=1.0)


class Drawing:
    """Stands for Rollouts: a problem whose name begins with `good` has variance."""

    def __init__(self) -> None:
        self.calls: list[list[Attempts]] = []

    def run(self, attempts: Sequence[Attempts], **asked) -> Sampled:
        assert (asked["phase"], asked["step"], asked["temperature"]) == ("train", 2, 1.0)
        assert asked["limit_tokens"] == 50
        self.calls.append(list(attempts))
        groups = tuple(
            group_of(a.problem, first_attempt=a.first_attempt, size=a.num_rollouts, varied=a.problem.id[0] == "g")
            for a in attempts
        )
        num_tokens = sum(group.num_tokens for group in groups)
        return Sampled(groups=groups, sampling_seconds=1.0, reward_seconds=0.5, num_tokens=num_tokens)


STAGE = Stage(problems_per_step=4, group_size=2, max_completion_tokens=50, learning_rate=1e-3)


def collector_of(names: Sequence[str], *, refills: int = 2, stock: Stock | None = None) -> tuple[Collector, Drawing]:
    drawing = Drawing()
    collector = Collector(
        drawing,  # type: ignore[arg-type]
        Uniform(names, seed=0),
        stock or Stock.empty(),
        problems={name: problem_of(name) for name in names},
        stages=[STAGE],
        max_refill_waves=refills,
        reuse_steps=20,
        success_threshold=1.0,
        max_error_fraction=0.1,
        world=World.alone(),
    )
    return collector, drawing


def counted(collected: Collected) -> dict[str, float]:
    stats = StepStats()
    collected.count(stats)
    return stats.reduce()


def test_a_step_is_refilled_by_what_is_missing_and_goes_on_with_what_it_has():
    collector, drawing = collector_of([f"bad {i}" for i in range(30)] + ["good 1"], refills=3)
    collected = collector.collect(step=2, temperature=1.0)
    missing = 4 - len(collected.kept)
    assert [len(call) for call in drawing.calls] == [4, 4, 4, 4] or missing < 4
    assert collected.num_waves == 4
    assert collected.num_missing == missing
    metrics = counted(collected)
    assert metrics["group/missing"] == missing
    assert metrics["sampling/waves"] == 4
    assert metrics["sampling/tokens"] == 2 * TOKENS * len(collected.groups)
    assert metrics["tokens/refill"] == 2 * TOKENS * (len(collected.groups) - 4)


def test_nothing_is_refilled_where_every_group_teaches():
    collector, drawing = collector_of([f"good {i}" for i in range(8)])
    collected = collector.collect(step=2, temperature=1.0)
    assert [len(call) for call in drawing.calls] == [4]
    assert (collected.num_missing, collected.num_waves, len(collected.kept)) == (0, 1, 4)
    assert counted(collected)["tokens/kept"] == collected.sampled_tokens == 4 * 2 * TOKENS


def test_a_problem_that_comes_twice_in_a_step_has_attempts_of_its_own():
    collector, drawing = collector_of(["good 1", "good 2"])
    collector.collect(step=2, temperature=1.0)
    (call,) = drawing.calls
    assert sorted((a.problem.id, a.first_attempt) for a in call) == [
        ("good 1", 0),
        ("good 1", 2),
        ("good 2", 0),
        ("good 2", 2),
    ]


@pytest.mark.parametrize("stocked", [1, 4])
def test_groups_of_the_stock_cost_no_token_and_come_once(tmp_path, stocked):
    names = [f"good {i}" for i in range(4)]
    writer = StockWriter(tmp_path, first_rollouts=2)
    for name in names[:stocked]:
        writer.add(group_of(problem_of(name), first_attempt=0, size=2, varied=True))
    stock = Stock.opened(tmp_path)
    collector, drawing = collector_of(names, stock=stock)
    collected = collector.collect(step=2, temperature=1.0)
    assert len(collected.kept) == 4
    metrics = counted(collected)
    assert metrics["tokens/reused"] == stocked * 2 * TOKENS
    assert metrics["sampling/tokens"] == metrics["tokens/kept"] == (4 - stocked) * 2 * TOKENS
    assert collected.reused_ids == set(names[:stocked])
    # What was chosen by its outcome, and by an earlier policy, is in no statistic of the step, and not told again.
    assert ("reward/mean" in metrics) == (stocked < 4)
    assert [group.problem.id for group in collected.drawn] == [a.problem.id for call in drawing.calls for a in call]
    drawn = [a.problem.id for call in drawing.calls for a in call]
    assert sorted(drawn) == names[stocked:]
    stock.end_step(collected.reused_ids)
    assert not any(collector.collect(step=2, temperature=1.0).reused)


def test_past_the_steps_of_reuse_every_group_is_drawn(tmp_path):
    StockWriter(tmp_path, first_rollouts=2).add(group_of(problem_of("good 0"), first_attempt=0, size=2, varied=True))
    collector, drawing = collector_of([f"good {i}" for i in range(4)], stock=Stock.opened(tmp_path))
    collector._reuse_steps = 2
    assert not any(collector.collect(step=2, temperature=1.0).reused)
    assert len(drawing.calls[0]) == 4


def test_kept_groups_stand_in_the_order_in_which_their_problems_were_given(tmp_path):
    names = [f"good {i}" for i in range(8)]
    StockWriter(tmp_path, first_rollouts=2).add(group_of(problem_of("good 5"), first_attempt=0, size=2, varied=True))
    plain, _ = collector_of(names)
    reusing, _ = collector_of(names, stock=Stock.opened(tmp_path))
    for step in range(2):
        assert step in (0, 1)
        of_plain = [group.problem.id for group in plain.collect(step=2, temperature=1.0).kept]
        assert [group.problem.id for group in reusing.collect(step=2, temperature=1.0).kept] == of_plain


def test_the_stage_sets_the_sizes():
    collector, drawing = collector_of([f"good {i}" for i in range(8)])
    collector._stages = [replace(STAGE, group_size=3, problems_per_step=2)]
    collected = collector.collect(step=2, temperature=1.0)
    assert [(len(call), call[0].num_rollouts) for call in drawing.calls] == [(2, 3)]
    assert len(collected.kept) == 2


def test_tokens_that_are_kept_are_those_of_drawn_groups_within_the_steps_number(tmp_path):
    """One good problem is drawn, five are in the stock: four groups are kept, whichever these are."""
    names = [f"good {i}" for i in range(6)]
    writer = StockWriter(tmp_path, first_rollouts=2)
    for name in names[1:]:
        writer.add(group_of(problem_of(name), first_attempt=0, size=2, varied=True))
    collector, _ = collector_of([*names, *(f"bad {i}" for i in range(4))], refills=3, stock=Stock.opened(tmp_path))
    collected = collector.collect(step=2, temperature=1.0)
    metrics = counted(collected)
    assert metrics["tokens/kept"] + metrics["tokens/reused"] == 4 * 2 * TOKENS
    drawn_and_kept = [g for g in collected.kept if g.problem.id == "good 0"]
    assert metrics["tokens/kept"] == len(drawn_and_kept) * 2 * TOKENS
    assert len(collected.reused_ids) == 4 - len(drawn_and_kept)


def test_the_curriculum_is_told_of_every_group_that_was_drawn_and_of_no_other(tmp_path):
    StockWriter(tmp_path, first_rollouts=2).add(group_of(problem_of("good 0"), first_attempt=0, size=2, varied=True))
    collector, _ = collector_of([f"good {i}" for i in range(4)], stock=Stock.opened(tmp_path))
    told = []
    collector._curriculum.observe = told.extend
    collector.collect(step=2, temperature=1.0)
    assert sorted(outcome.problem_id for outcome in told) == ["good 1", "good 2", "good 3"]


def test_a_step_that_loses_too_many_verdicts_is_not_refilled():
    collector, drawing = collector_of([f"bad {i}" for i in range(20)])
    run = drawing.run

    def losing(attempts, **asked):
        sampled = run(attempts, **asked)
        lost = (Reward.error("broken"), *sampled.groups[0].rewards[1:])
        return replace(sampled, groups=(replace(sampled.groups[0], rewards=lost), *sampled.groups[1:]))

    drawing.run = losing
    collected = collector.collect(step=2, temperature=1.0)
    assert len(drawing.calls) == 1  # one of eight verdicts is lost, and a tenth may be
    assert collected.num_missing == 4
