"""The loop on real models of two layers: what enters the loss, what is refilled and counted, and that it learns."""

import copy
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from curricula import next_wave
from grpo import checkpoint, practice, trainer, update
from grpo.batch import MicroBatch
from grpo.config import RunConfig
from grpo.errors import DivergenceError, RewardError
from grpo.evaluation import Estimate, evaluate
from grpo.optim import Optimizer
from grpo.policy import Policy
from grpo.recipe import stages_of
from grpo.rollout import Rollouts
from grpo.sampling.native import NativeSampler
from grpo.starts import Run
from grpo.types import StepStats
from rewards import Reward, soft_overlong_penalty
from tests.runs import grpo, opened_run, outcome, read_jsonl, small_run_config, small_run_file, trainer_of

LOOP = {"sft": None, "curriculum": {"kind": "uniform", "max_refill_waves": 1}, "evaluation.every_steps": 0}
DIGITS = {"sampling.stop_strings": list("0123456789")}  # ends some completions of a model that has learned nothing
NATIVE_INIT, NATIVE_LOAD = NativeSampler.__init__, NativeSampler.load_weights
COIN = "float(ord(completion[:1] or '!') % 2)"  # right for every other first character


def judged_by(folder: Path, expression: str) -> dict[str, Any]:
    """Changes that make `expression`, of completion and problem, the reward."""
    path = folder / "judge.py"
    path.write_text(f"def judge(completion, problem):\n    return {expression}\n", encoding="utf-8")
    return {"reward.file": str(path), "reward.function": "judge"}


def trained(folder: Path, **changes: Any) -> Path:
    """The folder of a run after `grpo train`, which succeeded."""
    assert grpo("train", small_run_file(folder, **(LOOP | changes))) == 0
    return folder / "runs" / "small"


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return read_jsonl(run / "metrics.jsonl")


def rollouts_of(run: Path, *, step: int) -> list[dict[str, Any]]:
    return read_jsonl(run / "rollouts" / f"step_{step:06d}.jsonl")


def groups_of(rows: list[dict[str, Any]], *, size: int) -> list[list[dict[str, Any]]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def events_of(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_jsonl(run / "events.jsonl") if event["event"] == name]


def newest_weights(run: Path) -> dict[str, torch.Tensor]:
    newest, _ = checkpoint.newest_whole(run / "checkpoints")
    assert newest is not None
    return checkpoint.load(newest, device=torch.device("cpu"))[0]


# --- updates ----------------------------------------------------------------------------------------------------------


def test_with_one_update_a_step_every_ratio_is_exactly_one_and_nothing_is_clipped(tmp_path):
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **{"train.minibatches_per_step": 1, "train.steps": 3})
    for row in metrics_of(run):
        assert row["policy/ratio_mean"] == 1.0
        assert row["policy/ratio_max"] == 1.0
        assert row["policy/clip_fraction_low"] == row["policy/clip_fraction_high"] == 0.0
        assert row["optim/grad_norm"] > 0


def test_each_epoch_updates_once_a_minibatch_and_the_first_ratio_is_exactly_one(tmp_path, monkeypatch):
    ratios: list[list[float]] = [[]]
    original_metrics, original_update = update.loss_metrics, Optimizer.update

    def noted_metrics(stats: Any, terms: Any, *, entropy: torch.Tensor) -> None:
        ratios[-1] += terms.ratio.tolist()
        original_metrics(stats, terms, entropy=entropy)

    def noted_update(self: Optimizer, *, rate: float) -> float:
        ratios.append([])
        return original_update(self, rate=rate)

    monkeypatch.setattr(update, "loss_metrics", noted_metrics)
    monkeypatch.setattr(Optimizer, "update", noted_update)
    changes = {"train.minibatches_per_step": 2, "train.epochs_per_step": 3, "train.steps": 1, "optim.warmup_steps": 0}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes)
    first, *later, nothing = ratios
    assert len(later) == 5
    assert nothing == []
    assert set(first) == {1.0}
    assert all(set(of_update) != {1.0} for of_update in later)
    (row,) = metrics_of(run)
    assert row["policy/ratio_max"] > 1
    assert row["optim/tokens"] == sum(map(len, ratios))


@pytest.mark.parametrize(("old", "num_scored"), [("policy", 2), ("sampler", 0)])
def test_only_later_updates_are_scored_apart_and_none_where_the_old_log_probs_are_the_samplers(
    tmp_path, monkeypatch, old, num_scored
):
    changes = {"train.old_logprobs": old, "train.minibatches_per_step": 3, "train.tokens_per_micro_batch": 4096}
    config = small_run_config(tmp_path, **LOOP, **judged_by(tmp_path, COIN), **changes, **{"train.epochs_per_step": 2})
    scored: list[MicroBatch] = []
    trained_on: list[MicroBatch] = []
    original = Policy.forward

    def noted(self: Policy, batch: MicroBatch, *arguments: Any, **options: Any) -> Any:
        (trained_on if torch.is_grad_enabled() else scored).append(batch)
        return original(self, batch, *arguments, **options)

    monkeypatch.setattr(Policy, "forward", noted)
    with opened_run(config) as run:
        trainer_of(run, config).step()
    assert len(scored) == num_scored
    assert len(trained_on) == 2 * 3
    assert not any(batch is trained_on[0] for batch in scored)


def test_with_the_samplers_old_log_probs_the_ratio_is_to_them_and_the_gap_is_of_the_first_update(tmp_path, monkeypatch):
    """Sampler log-probs are moved by −0.1 nats: each ratio of the first update is exp(0.1), the KL exp(0.1) − 1.1."""
    changes = {"train.old_logprobs": "sampler", "train.minibatches_per_step": 2, "optim.warmup_steps": 0}
    ratios: list[Tensor] = []
    logprobs: list[tuple[Tensor, Tensor]] = []
    collate, loss = update.micro_batches, update.policy_loss

    def perturbed(*arguments: Any, **options: Any) -> list[MicroBatch]:
        batches = collate(*arguments, **options)
        return [replace(batch, sampler_logprobs=batch.sampler_logprobs - 0.1) for batch in batches]

    def noted_loss(policy_logprobs: Tensor, **options: Any) -> Any:
        terms = loss(policy_logprobs, **options)
        logprobs.append((policy_logprobs.detach(), options["sampler_logprobs"]))
        ratios.append(terms.ratio)
        return terms

    monkeypatch.setattr(update, "micro_batches", perturbed)
    monkeypatch.setattr(update, "policy_loss", noted_loss)
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes, **{"train.steps": 1})
    for ratio, (of_policy, of_sampler) in zip(ratios, logprobs, strict=True):
        torch.testing.assert_close(ratio, (of_policy - of_sampler).exp())
    torch.testing.assert_close(ratios[0], torch.full_like(ratios[0], math.exp(0.1)), rtol=1e-4, atol=0)
    assert (ratios[-1] - math.exp(0.1)).abs().max() > 1e-2  # the first update has moved the policy
    (row,) = metrics_of(run)
    assert row["policy/sampler_kl"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-3)
    assert row["policy/sampler_logprob_gap_max"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.005)])
def test_splitting_a_step_into_480_micro_batches_changes_its_gradient_by_rounding_alone(
    tmp_path, monkeypatch, dtype, bound
):
    """Sums in bfloat16 would be 2.5 % off; rounding each micro-batch's own gradient costs 0.2 %."""
    changes = {"model.dtype": dtype, "train.problems_per_step": 30, "train.group_size": 16}
    changes |= {"train.minibatches_per_step": 1}
    config = small_run_config(tmp_path, **LOOP, **judged_by(tmp_path, COIN), **changes)
    gradients: list[Tensor] = []

    def noted_update(self: Optimizer, *, rate: float) -> float:
        gradients.append(torch.cat([gradient.flatten() for _, gradient in self.gradients()]).double())
        for _, gradient in self.gradients():
            gradient.zero_()
        return 1.0

    monkeypatch.setattr(Optimizer, "update", noted_update)
    with opened_run(config) as run:
        groups = trainer_of(run, config).draw()
        for tokens in (1, 100_000):
            split = config.train.model_copy(update={"tokens_per_micro_batch": tokens})
            updater = update.Updater(run.strategy, config.model_copy(update={"train": split}), world=run.world)
            (stage,) = stages_of(config)
            kept = [group for group in groups if not group.degenerate]
            updater.update(kept, stage=stage, step=0, stats=StepStats())
    alone, together = gradients
    assert float((alone - together).norm() / together.norm()) < bound


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_sampler_is_as_near_the_trainer_as_rounding_allows(tmp_path, temperature):
    changes = {"temperature": {"value": temperature}, "train.steps": 3, "train.minibatches_per_step": 2}
    config = small_run_config(tmp_path, **LOOP, **judged_by(tmp_path, COIN), **changes)
    with opened_run(config) as run:
        loop = trainer_of(run, config)
        loop.run()
        with torch.no_grad():
            prompts = torch.tensor([run.chat.prompt_ids(p)[:6] for p in run.train])
            std = float(run.policy.head(run.policy.hidden(prompts)).std())
    bound = 1e-5 * max(1, 1 / temperature) * max(1, std)
    rows = metrics_of(run.folder.path)
    assert [row["policy/sampler_logprob_gap_max"] < bound for row in rows] == [True] * 3
    assert all(0 <= row["policy/sampler_kl"] < bound for row in rows)


def test_updates_that_are_not_finite_are_skipped_counted_and_end_the_run_by_name(tmp_path, monkeypatch):
    changes = {"train.steps": 9, "train.minibatches_per_step": 1, "optim.max_skipped_updates": 2}
    config = small_run_config(tmp_path, **LOOP, **judged_by(tmp_path, COIN), **changes)
    original = update.policy_loss
    poisoned = True

    def sometimes_nan(*arguments: Any, **options: Any) -> Any:
        terms = original(*arguments, **options)
        return replace(terms, loss=terms.loss * math.nan) if poisoned else terms

    monkeypatch.setattr(update, "policy_loss", sometimes_nan)
    with opened_run(config) as run:
        loop = trainer_of(run, config)
        loop.step()
        loop.step()
        held, initial = checkpoint.weights_of(run.policy.model), run.initial_weights()
        assert all(torch.equal(held[name], initial[name]) for name in held)
        poisoned = False
        loop.step()  # a finite one in between begins the count again
        assert any(not torch.equal(held[name], initial[name]) for name in held)
        poisoned = True
        loop.step()
        loop.step()
        with pytest.raises(DivergenceError, match="step 6: 3 updates in a row"):
            loop.step()
    rows = metrics_of(run.folder.path)
    assert [row["optim/skipped_updates"] for row in rows] == [1, 1, 0, 1, 1]
    assert ["optim/grad_norm" in row for row in rows] == [False, False, True, False, False]
    skipped = sorted(path.name for path in run.folder.skipped.iterdir())
    assert skipped == [f"step_00000{step}_0.jsonl" for step in (1, 2, 4, 5, 6)]
    kept = read_jsonl(run.folder.skipped / skipped[0])
    of_step = {(row["problem_id"], row["attempt"]): row for row in rollouts_of(run.folder.path, step=1)}
    assert kept
    assert all(
        of_step[row["problem_id"], row["attempt"]]["advantage"] == row["advantage"]
        and row["token_ids"][-of_step[row["problem_id"], row["attempt"]]["num_tokens"] :]
        == of_step[row["problem_id"], row["attempt"]]["token_ids"]
        for row in kept
    )


def test_a_gradient_that_is_not_finite_leaves_the_optimizer_as_it_was(tmp_path):
    config = small_run_config(tmp_path, **LOOP, **judged_by(tmp_path, COIN))
    with opened_run(config) as run:
        optimizer = Optimizer(run.policy.model, config.optim)
        before = str(optimizer.state_dict())
        for parameter in run.policy.parameters():
            parameter.grad = torch.full_like(parameter, math.inf)
        assert not math.isfinite(optimizer.update(rate=1.0))
        assert str(optimizer.state_dict()) == before
        assert all(parameter.grad is None for parameter in run.policy.parameters())


# --- groups that teach nothing ----------------------------------------------------------------------------------------


def test_degenerate_groups_are_replaced_in_fixed_waves_in_problem_order(tmp_path):
    # Problems of one operation are always right, so their groups teach nothing.
    judge = f"1.0 if problem['num_operations'] == 1 else {COIN}"
    changes = {"train.steps": 4, "train.group_size": 8, "curriculum.max_refill_waves": 2}
    run = trained(tmp_path, **judged_by(tmp_path, judge), **changes)
    config = small_run_config(tmp_path, **(LOOP | judged_by(tmp_path, judge) | changes), **{"run.name": "alike"})
    with opened_run(config) as alike:
        curriculum = practice.build_curriculum(config, [problem.id for problem in alike.train], {})
    waves_seen = set()
    for step in range(1, 5):
        groups = groups_of(rollouts_of(run, step=step), size=8)
        asked, tried = [], []
        waves = 0
        while wave := next_wave(curriculum, num_wanted=4, tried=tried, waves_done=waves, max_waves=3):
            asked += wave
            waves += 1
            varied = [len({row["reward"] for row in group}) > 1 for group in groups[: len(asked)]]
            tried = list(zip(asked, varied, strict=True))
        curriculum.end_step()
        waves_seen.add(waves)
        assert [group[0]["problem_id"] for group in groups] == asked
        teaching = [group for group, is_varied in zip(groups, varied, strict=True) if is_varied]
        for group in groups:
            # The first four that teach something, in problem order, are trained on.
            assert all((row["advantage"] is not None) == (group in teaching[:4]) for row in group)
        row = metrics_of(run)[step - 1]
        assert row["sampling/waves"] == waves
        assert row["group/zero_std_fraction"] == pytest.approx(1 - sum(varied) / len(groups))
    assert max(waves_seen) > 1


@pytest.mark.parametrize("max_refill_waves", [0, 3])
def test_a_step_without_variance_makes_no_update_and_says_so(tmp_path, max_refill_waves):
    changes = {"curriculum.max_refill_waves": max_refill_waves, "train.steps": 2}
    run = trained(tmp_path, **judged_by(tmp_path, "0.0"), **changes)
    assert [row["sampling/waves"] for row in metrics_of(run)] == [1 + max_refill_waves] * 2
    assert all("optim/grad_norm" not in row and "policy/entropy" not in row for row in metrics_of(run))
    assert [event["step"] for event in events_of(run, "no_update")] == [1, 2]
    config = small_run_config(tmp_path, **LOOP, **judged_by(tmp_path, "0.0"), **{"run.name": "alike"})
    after = newest_weights(run)
    with opened_run(config) as alike:
        assert all(torch.equal(after[name], tensor) for name, tensor in alike.initial_weights().items())


def test_a_problem_given_twice_in_a_step_gets_other_rollouts(tmp_path):
    changes = {"data.train.max_problems": 22, "train.steps": 1, "curriculum.max_refill_waves": 0}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes)  # 22 rows less 12 held out and 8: two problems
    rows = rollouts_of(run, step=1)
    assert len({row["problem_id"] for row in rows}) == 2
    for problem_id in {row["problem_id"] for row in rows}:
        attempts = [row for row in rows if row["problem_id"] == problem_id]
        assert [row["attempt"] for row in attempts] == list(range(8))
        assert len({row["completion"] for row in attempts}) == 8
    assert metrics_of(run)[0]["curriculum/repeated_problems"] == 2


# --- what enters the loss ---------------------------------------------------------------------------------------------


def test_masked_truncated_rollouts_count_for_the_baseline_but_not_for_the_loss(tmp_path):
    changes = DIGITS | {"loss.truncated": "mask", "train.steps": 1, "train.minibatches_per_step": 1}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes)
    trained_tokens = 0
    for group in groups_of(rollouts_of(run, step=1), size=4):
        mean = sum(row["reward"] for row in group) / 4
        for row in group:
            enters = row["stop_reason"] != "limit" and mean not in (0, 1)
            assert row["advantage"] == (pytest.approx(row["reward"] - mean) if enters else None)
            trained_tokens += row["num_tokens"] if enters else 0
    assert metrics_of(run)[0]["optim/tokens"] == trained_tokens > 0


def test_a_step_whose_rollouts_are_all_cut_makes_no_update_under_mask_and_says_why(tmp_path):
    changes = {"loss.truncated": "mask", "sampling.max_completion_tokens": 1, "train.steps": 1}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes)
    assert metrics_of(run)[0]["completion/truncated_fraction"] == 1
    (event,) = events_of(run, "no_update")
    assert "loss.truncated" in event["reason"]


def test_the_penalty_for_length_moves_advantages_and_not_rewards(tmp_path):
    changes = DIGITS | {"loss.truncated": "penalty", "loss.penalty_buffer_tokens": 4, "train.steps": 1}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes)
    rows = rollouts_of(run, step=1)
    assert {row["reward"] for row in rows} == {0.0, 1.0}
    found = 0
    for group in groups_of(rows, size=4):
        if group[0]["advantage"] is None:
            continue
        values = [
            row["reward"] + soft_overlong_penalty(row["num_tokens"], limit_tokens=8, buffer_tokens=4) for row in group
        ]
        mean = sum(values) / 4
        assert [row["advantage"] for row in group] == pytest.approx([value - mean for value in values])
        found += 1
    assert found


def test_rollouts_without_a_value_leave_group_baseline_and_pass_rate_and_are_counted(tmp_path):
    judge = f"None if ord(completion[:1] or '!') % 3 == 0 else {COIN}"
    changes = {"train.steps": 2, "train.group_size": 8, "train.minibatches_per_step": 1}
    run = trained(tmp_path, **judged_by(tmp_path, judge), **changes)
    for step in (1, 2):
        rows, metrics = rollouts_of(run, step=step), metrics_of(run)[step - 1]
        valued = [row["reward"] for row in rows if row["reward"] is not None]
        assert 0 < len(valued) < len(rows)
        assert metrics["reward/abstained"] == len(rows) - len(valued)
        assert metrics["reward/mean"] == metrics["reward/pass_rate"] == pytest.approx(sum(valued) / len(valued))
        for group in groups_of(rows, size=8):
            values = [row["reward"] for row in group if row["reward"] is not None]
            mean = sum(values) / len(values)
            for row in group:
                enters = row["reward"] is not None and len(set(values)) > 1
                assert row["advantage"] == (pytest.approx(row["reward"] - mean) if enters else None)


def test_a_step_without_any_verdict_goes_on_and_has_no_reward(tmp_path):
    run = trained(tmp_path, **judged_by(tmp_path, "None"), **{"train.steps": 2})
    for row in metrics_of(run):
        assert "reward/mean" not in row
        assert "reward/pass_rate" not in row
        assert row["reward/abstained"] == 4 * 4 + 16 * 4  # a refill asks for four times the step's problems at most
    assert len(events_of(run, "no_update")) == 2


def test_lost_verdicts_are_counted_and_end_the_run_past_their_share(tmp_path, capsys):
    judge = f"1 / 0 if ord(completion[:1] or '!') % 4 == 0 else {COIN}"
    run = trained(tmp_path, **judged_by(tmp_path, judge), **{"reward.max_error_fraction": 1.0, "train.steps": 2})
    for step in (1, 2):
        lost = [row for row in rollouts_of(run, step=step) if row["status"] == "error"]
        assert metrics_of(run)[step - 1]["reward/errors"] == len(lost) > 0
        assert all(row["reward"] is None and "ZeroDivisionError" in row["detail"] for row in lost)
    capsys.readouterr()
    assert grpo("train", small_run_file(tmp_path, **LOOP, **judged_by(tmp_path, judge)), "--fresh") == 6
    said = capsys.readouterr().err
    assert "reward.max_error_fraction = 0.05" in said
    assert "ZeroDivisionError" in said
    assert "step 1: " in said
    rows = rollouts_of(run, step=1)
    assert len(rows) >= 4 * 4
    assert {row["advantage"] for row in rows} == {None}
    assert any("ZeroDivisionError" in row["detail"] for row in rows)
    assert RewardError.exit_code == 6


def test_a_graded_reward_succeeds_from_its_threshold_on(tmp_path):
    judge = "ord(completion[:1] or '!') % 5 / 4"
    changes = {"reward.success_threshold": 0.5, "train.steps": 1}
    run = trained(tmp_path, **judged_by(tmp_path, judge), **changes)
    values = [row["reward"] for row in rollouts_of(run, step=1)]
    (row,) = metrics_of(run)
    assert {0.0, 1.0} < set(values) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert row["reward/mean"] == pytest.approx(sum(values) / len(values))
    assert row["reward/pass_rate"] == pytest.approx(sum(value >= 0.5 for value in values) / len(values))


# --- every loss -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss_run(tmp_path_factory) -> Iterator[tuple[Run, RunConfig]]:
    folder = tmp_path_factory.mktemp("losses")
    torch.set_num_threads(1)
    changes = judged_by(folder, COIN) | {"tracking.rollout_files": 0, "train.steps": 1000, "optim.warmup_steps": 0}
    config = small_run_config(folder, **LOOP, **changes)
    with opened_run(config) as run:
        yield run, config


COMBINATIONS = [
    combination
    for combination in itertools.product(
        ("token", "sequence"),
        ("clip", "cispo"),
        ("none", "truncated", "icepop"),
        ("token", "sequence", "group", "constant"),
        ("none", "group_std", "batch_std"),
        ("policy", "sampler"),
    )
    if (combination[2], combination[5])
    not in {("truncated", "sampler"), ("icepop", "sampler")}  # refused as a conflict
]


@pytest.mark.parametrize(("ratio", "surrogate", "correction", "aggregation", "scale", "old"), COMBINATIONS)
def test_every_combination_of_loss_options_updates_on_finite_numbers(
    loss_run, ratio, surrogate, correction, aggregation, scale, old
):
    run, config = loss_run
    chosen = {"ratio": ratio, "surrogate": surrogate, "correction": correction, "aggregation": aggregation}
    config = config.model_copy(
        update={
            "loss": config.loss.model_copy(update=chosen),
            "advantage": config.advantage.model_copy(update={"scale": scale}),
            "train": config.train.model_copy(update={"old_logprobs": old}),
        }
    )
    loop = trainer_of(run, config)
    loop.step()
    row = metrics_of(run.folder.path)[-1]
    assert row["optim/skipped_updates"] == 0
    assert row["optim/grad_norm"] > 0
    assert all(isinstance(value, (int, float)) for value in row.values())  # NaN and infinity are written as null
    assert {"policy/entropy", "policy/ratio_mean", "policy/correction_mean", "policy/sampler_kl"} <= row.keys()
    held = checkpoint.weights_of(run.policy.model)
    assert any(not torch.equal(held[name], tensor) for name, tensor in run.initial_weights().items())


# --- evaluation, best checkpoint, temperature -------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, values: Mapping[int, float]) -> None:
    """Let pass@1 in training be `values` by evaluation, counted from 1."""
    count = itertools.count(1)

    def fake(*arguments: Any, **options: Any) -> Any:
        result = evaluate(*arguments, **options)
        value = values[next(count)]
        metrics = result.overall.metrics | {"pass@1": Estimate(value=value, low=value, high=value)}
        return replace(result, overall=replace(result.overall, metrics=metrics))

    monkeypatch.setattr(trainer, "evaluate", fake)


def test_training_stops_after_so_many_evaluations_without_a_better_one_and_says_so(tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: 0.9})
    changes = {"evaluation.every_steps": 1, "evaluation.patience": 2, "train.steps": 8}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes)
    assert [row["eval/validation/pass@1"] for row in metrics_of(run)] == [0.2, 0.5, 0.5, 0.4]
    assert (run / "checkpoints" / "step_000004").is_dir()
    assert grpo("train", tmp_path / "config.yaml", "--resume") == 0
    assert len(metrics_of(run)) == 4
    (event,) = events_of(run, "end")
    assert event["step"] == 4
    assert "2 evaluations without a better pass@1 than 0.5000 at step 2" in event["reason"]
    assert event["reason"] in capsys.readouterr().out.replace("\n", " ")


def test_the_best_policy_is_kept_and_evaluated_where_that_is_asked(tmp_path, monkeypatch):
    scripted(monkeypatch, {1: 0.2, 2: 0.6, 3: 0.6, 4: 0.1})
    changes = {"evaluation.every_steps": 2, "evaluation.checkpoints": ["best"], "checkpoint.keep_last": 1}
    run = trained(tmp_path, **judged_by(tmp_path, COIN), **changes)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best_000004", "step_000008"]
    assert [(event["step"], event["value"]) for event in events_of(run, "best")] == [(2, 0.2), (4, 0.6)]
    assert grpo("eval", tmp_path / "config.yaml") == 0
    final = json.loads((run / "evals" / "best.json").read_text())
    assert final["step"] == 4
    held = checkpoint.load(run / "checkpoints" / "best_000004", device=torch.device("cpu"))[0]
    config = small_run_config(tmp_path, **(LOOP | judged_by(tmp_path, COIN) | changes), **{"run.name": "alike"})
    with opened_run(config) as alike:
        checkpoint.load_weights(alike.policy.model, held)
        found = evaluate(alike.rollouts, alike.heldout, num_rollouts=4, temperature=1.0, k=[1], max_error_fraction=0.05)
    scored = final["sets"]["heldout"]["problems"]
    assert found.scores == {name: score["num_correct"] / score["num_rollouts"] for name, score in scored.items()}
    assert any(not torch.equal(held[name], tensor) for name, tensor in newest_weights(run).items())


def test_an_adaptive_temperature_is_logged_and_is_what_later_rollouts_carry(tmp_path):
    adaptive = {"kind": "adaptive", "value": 1.0, "grid": [0.8, 1.0, 1.3], "window_steps": 4, "rollouts_per_problem": 2}
    # A reward that never moves is a plateau, and costs no temperature anything.
    run = trained(tmp_path, **judged_by(tmp_path, "1.0"), **{"temperature": adaptive, "train.steps": 6})
    (event,) = events_of(run, "temperature")
    assert event["step"] == 4
    assert (event["decision"]["current"], event["decision"]["chosen"]) == (1.0, 1.3)
    assert [reading["temperature"] for reading in event["decision"]["readings"]] == [1.0, 1.3]
    # A decision is made before the step that it is for, and billed to it.
    assert [row.get("time/temperature", 0) > 0 for row in metrics_of(run)] == [False] * 4 + [True, False]
    fifth = metrics_of(run)[4]
    assert fifth["time/step"] > fifth["time/temperature"] + fifth["time/sampling"]
    assert [row["sampling/temperature"] for row in metrics_of(run)] == [1.0] * 4 + [1.3] * 2
    for step in range(1, 7):
        assert {row["temperature"] for row in rollouts_of(run, step=step)} == {1.0 if step <= 4 else 1.3}


def test_a_temperature_is_chosen_on_the_problems_that_have_a_verdict_at_every_temperature(tmp_path):
    draws = {"rollouts_per_problem": 1, "max_rollouts_per_problem": 1}
    adaptive = {"kind": "adaptive", "grid": [1.0, 1.3], "window_steps": 4, **draws}
    judge = "None if ord(completion[:1] or '!') % 4 == 0 else 1.0"
    run = trained(tmp_path, **judged_by(tmp_path, judge), **{"temperature": adaptive, "train.steps": 5})
    (event,) = events_of(run, "temperature")
    (num_problems,) = {reading["num_problems"] for reading in event["decision"]["readings"]}
    assert 2 <= num_problems < 8


def test_no_temperature_is_evaluated_after_the_last_step(tmp_path):
    adaptive = {"kind": "adaptive", "grid": [1.0, 1.3], "window_steps": 4, "rollouts_per_problem": 1}
    run = trained(tmp_path, **judged_by(tmp_path, "1.0"), **{"temperature": adaptive, "train.steps": 4})
    assert events_of(run, "temperature") == []
    assert not any("time/temperature" in row for row in metrics_of(run))


def test_a_temperature_stays_where_no_two_problems_have_a_verdict(tmp_path, monkeypatch):
    adaptive = {"kind": "adaptive", "grid": [1.0, 1.3], "window_steps": 4, "rollouts_per_problem": 1}
    run_as_it_is = Rollouts.run

    def without_verdicts(self: Rollouts, attempts: Any, *, phase: str, **options: Any) -> Any:
        sampled = run_as_it_is(self, attempts, phase=phase, **options)
        if phase != "evaluation":
            return sampled
        none = tuple(
            replace(group, rewards=tuple(Reward.abstained() for _ in group.rewards)) for group in sampled.groups
        )
        return replace(sampled, groups=none)

    monkeypatch.setattr(Rollouts, "run", without_verdicts)
    run = trained(tmp_path, **judged_by(tmp_path, "1.0"), **{"temperature": adaptive, "train.steps": 6})
    (event,) = events_of(run, "temperature")
    assert (event["decision"]["chosen"], event["decision"]["readings"]) == (1.0, [])
    assert "undecided" in event["decision"]["reason"]
    assert [row["sampling/temperature"] for row in metrics_of(run)] == [1.0] * 6


# --- the sampler's weights --------------------------------------------------------------------------------------------


LOOKS = {"sft.gate_pass_at_1": 1e-3, "sft.gate_every_steps": 5, "sft.gate_rollouts": 16, "sft.learning_rate": 0.03}


@pytest.mark.parametrize("start", [LOOKS, {"sft": None}], ids=["cold start", "base"])
def test_an_engine_that_copies_the_weights_gets_them_wherever_they_change(tmp_path, monkeypatch, start):
    """Looks at the cold start's gate, profile, training, a resume from a checkpoint, and both evaluations."""
    changes = start | {"train.steps": 4, "optim.warmup_steps": 0}
    outcomes = []
    for name in ("shared", "copied"):
        if name == "copied":
            monkeypatch.setattr(NativeSampler, "__init__", _copies_at_first)
            monkeypatch.setattr(NativeSampler, "load_weights", _copies_weights)
        config = small_run_file(tmp_path / name, **changes)
        run = tmp_path / name / "runs" / "small"
        assert grpo("recipe", config) == 0
        shutil.rmtree(run / "checkpoints" / "step_000004")
        assert grpo("train", config, "--resume") == 0
        outcomes.append(outcome(run))
    assert outcomes[0] == outcomes[1]


def _copies_at_first(self: NativeSampler, policy: Policy, *arguments: Any, **options: Any) -> None:
    NATIVE_INIT(self, copy.deepcopy(policy), *arguments, **options)


def _copies_weights(self: NativeSampler, policy: Policy) -> None:
    NATIVE_LOAD(self, copy.deepcopy(policy))


# --- it learns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_an_easy_reward_is_learned_within_a_few_dozen_steps(tmp_path, seed):
    changes = {
        "run.seed": seed,
        "sampling.max_completion_tokens": 3,
        "train": {"steps": 40, "problems_per_step": 8, "group_size": 8, "tokens_per_micro_batch": 4096},
        "optim": {"learning_rate": 1e-2},
        "checkpoint.every_steps": 100,
        "tracking.rollout_files": 0,
    }
    run = trained(tmp_path, **judged_by(tmp_path, "float(completion[:1].isdigit())"), **changes)
    rates = [row["reward/pass_rate"] for row in metrics_of(run)]
    assert rates[0] < 0.4
    assert sum(rates[-3:]) / 3 > 0.9
