"""Reward that rollouts lose by how far they lie along a trait: its numbers by hand, in an update, and in whole runs."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from grpo.advantages import group_advantages
from grpo.persona.watching import Watching
from grpo.recipe import stages_of, trainer_of
from grpo.starts import load_start
from grpo.types import StepStats
from grpo.update import Updater
from rewards import Reward
from tests.launch import launched
from tests.personas import vectors_file
from tests.runs import opened_run, small_run_config, small_run_file
from tests.test_persona_watch import (
    PRACTICE,
    batches_of,
    columns_of,
    drawn_by,
    rows_of,
    trained_in,
    watched_trait,
    watching_of,
)

PENALTY = "reward/trait_penalty"
REWARDS = tuple(Reward.scored(float(index % 3 == 0), parts={}, detail="") for index in range(16))


def penalised(**penalties: float) -> Watching:
    """Watches traits of these names at block 1, with these penalties."""
    pairs = enumerate(penalties.items())
    return watching_of(*(replace(watched_trait(name, seed=seed), penalty=value) for seed, (name, value) in pairs))


def test_a_rollout_loses_the_penalty_for_each_length_of_the_vector_that_its_completion_projects_to():
    watching = penalised(ones=0.5)
    length = float(watched_trait("ones").vectors.of["response"][1].norm())
    (batch,) = batches_of([drawn_by("p", 2, 2)])
    # Completion means 1 and -3; the last prompt tokens, 7 and 9, are of no completion.
    lost = watching.penalties(batch, columns_of([7, 1, 9, -3]))
    assert lost == {("p", 0): pytest.approx(0.5 / length), ("p", 1): pytest.approx(-1.5 / length)}


def test_penalties_of_several_traits_add_up_and_one_that_is_only_watched_costs_nothing():
    watching = penalised(ones=0.5, twos=-1.0, threes=0.0)
    lengths = [float(watched_trait("x", seed=seed).vectors.of["response"][1].norm()) for seed in range(2)]
    (batch,) = batches_of([drawn_by("p", 2)])
    projections = torch.zeros(2, 3 * 2 + 8)
    projections[1, :6] = torch.tensor([2.0, 100.0, 3.0, 100.0, 50.0, 100.0])  # newest and first of each trait
    lost = watching.penalties(batch, projections)
    assert lost == {("p", 0): pytest.approx(0.5 * 2 / lengths[0] - 3 / lengths[1])}
    assert watching.penalises
    assert not penalised(ones=0.0).penalises


def test_a_completion_of_one_token_projects_to_nothing_and_a_filler_has_no_rollouts():
    watching = penalised(ones=1.0)
    (batch,) = batches_of([drawn_by("p", 1, 2)])
    assert set(watching.penalties(batch, columns_of([5, 6, 7]))) == {("p", 1)}
    assert watching.penalties(batch, None) == {}


@pytest.mark.parametrize("scale", ["none", "group_std"])
def test_an_update_takes_the_baseline_of_what_is_left_of_the_rewards(tmp_path, scale):
    config = small_run_config(tmp_path, **PRACTICE, **{"advantage.scale": scale})
    with opened_run(config) as run:
        load_start(run)
        trainer = trainer_of(run)
        groups = [replace(group, rewards=REWARDS[: len(group.rollouts)]) for group in trainer.draw()]
        # Attempt 0 is not read, as one is not whose completion has one token.
        own = {
            (group.problem.id, rollout.attempt): 0.1 * rollout.attempt + 0.01 * place
            for place, group in enumerate(groups)
            for rollout in group.rollouts
            if rollout.attempt
        }
        read: list[tuple[str, int]] = []

        def penalties(batch, projections):
            keys = [(t.rollout.problem_id, t.rollout.attempt) for t in batch.rollouts]
            read.extend(keys)
            return {key: own[key] for key in keys if key in own}

        stats = StepStats()
        updater = Updater(run.strategy, config, world=run.world, penalties=penalties)
        trained = updater.update(groups, stage=stages_of(config)[0], step=0, stats=stats)
    assert sorted(read) == sorted((g.problem.id, r.attempt) for g in groups for r in g.rollouts)
    expected = []
    for group in groups:
        lost = [own.get((group.problem.id, rollout.attempt)) for rollout in group.rollouts]
        mean = fmean(value for value in lost if value is not None)
        rewards = [reward.value for reward in group.rewards]
        expected.append([v - (mean if loss is None else loss) for v, loss in zip(rewards, lost, strict=True)])
    advantages = group_advantages(expected, baseline=config.advantage.baseline, scale=scale)
    for of_group, by_hand in zip(trained, advantages, strict=True):
        assert [t.advantage for t in of_group] == pytest.approx(by_hand)
    assert stats.reduce()[PENALTY] == pytest.approx(fmean(own.values()))


def watched(folder, penalty: float) -> dict:
    return {"persona": {"watch": [{"vectors": str(vectors_file(folder)), "penalty": penalty}]}}


def test_a_penalty_of_nothing_changes_nothing_and_one_of_something_trains_otherwise(tmp_path):
    plain, weights = trained_in(tmp_path / "plain", **watched(tmp_path, 0.0))
    assert not any(PENALTY in row for row in plain)
    rows, moved = trained_in(tmp_path / "penalised", **watched(tmp_path, 1.0))
    trained = [row for row in rows if "optim/tokens" in row]
    assert trained
    assert all(PENALTY in row for row in trained)
    first, of_plain = trained[0], next(row for row in plain if "optim/tokens" in row)
    assert first["reward/mean"] == of_plain["reward/mean"]  # the metric is of the verifiers' rewards
    assert first[PENALTY] != 0
    assert any(not torch.equal(weights[name], moved[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_two_ranks_take_what_one_does(tmp_path, strategy):
    fields = {**PRACTICE, **watched(tmp_path, 1.0), "train.steps": 3}
    launched("scripts/train.py", small_run_file(tmp_path / "one", **fields), ranks=1)
    two = small_run_file(tmp_path / "two", **fields, **{"distributed.strategy": strategy})
    launched("scripts/train.py", two, ranks=2)
    alone, together = (rows_of(tmp_path / name / "runs" / "small") for name in ("one", "two"))
    assert [PENALTY in row for row in alone] == [PENALTY in row for row in together]
    assert any(PENALTY in row for row in alone)
    for row, other in zip(alone, together, strict=True):
        if PENALTY in row:
            assert other[PENALTY] == pytest.approx(row[PENALTY], rel=1e-3, abs=1e-4)
