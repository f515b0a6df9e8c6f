"""The loop. `Trainer.step` is the page to read: problems, groups, outcomes, batch, update, and what is told to whom.

The trainer owns the order of things and the state that survives a restart; every decision belongs to a part that it
was handed. Every rank runs this loop on the same groups and comes to the same decisions; the tracker and the folder of
the main rank are the ones that write."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from curricula import Curriculum, TemperatureSchedule, refill_deficit
from grpo import checkpoint
from grpo.batch import TrainedRollout
from grpo.config import RunConfig
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.errors import Interrupted, RewardError
from grpo.evaluation import Evaluation, evaluate
from grpo.folder import RunFolder
from grpo.guards import Guards
from grpo.rollout import Attempts, GaveUp, Rollouts, check_lost, lost_verdicts
from grpo.thermostat import Thermostat
from grpo.tracking.console import Console
from grpo.tracking.metrics import group_metrics, rollout_rows
from grpo.tracking.tracker import Tracker
from grpo.types import Group, Problem, StepStats
from grpo.update import Updater


@dataclass(frozen=True, slots=True)
class Stage:
    """The sizes of a step in one stage of the curriculum."""

    problems_per_step: int
    group_size: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What the trainer is handed: each owns the decisions that its name says."""

    world: World
    strategy: Strategy
    rollouts: Rollouts
    curriculum: Curriculum
    temperature: TemperatureSchedule
    stages: Sequence[Stage]
    problems: Mapping[str, Problem]
    tiers: Mapping[str, str]  # label of each profiled problem, for readers of rollouts
    validation: Sequence[Problem]
    tracker: Tracker
    folder: RunFolder
    console: Console


@dataclass(slots=True)
class Progress:
    """Where the run is: what a checkpoint holds beside the states of the parts."""

    step: int = 0
    sampled_tokens: int = 0
    best_value: float = -math.inf
    best_step: int = -1
    evaluations_since_best: int = 0


class Trainer:
    """Runs the loop from wherever its state is to the last step."""

    def __init__(
        self,
        parts: Parts,
        config: RunConfig,
        *,
        should_stop: Callable[[], bool],
        writer: checkpoint.Writer | None = None,
    ) -> None:
        """`should_stop` is asked after each step and says the same on every rank: True saves and raises Interrupted.

        `writer` is what checkpoints are written with: one of its own, or of who wants none to be written."""
        self._parts, self._config = parts, config
        self._should_stop = should_stop
        self._updater = Updater(parts.strategy, config, world=parts.world, on_skipped=parts.tracker.skipped)
        self._guards = Guards(config.guard)
        self._thermostat = Thermostat(
            parts.temperature,
            config.temperature,
            evaluate=lambda temperature, num: self._evaluation(temperature=temperature, num_rollouts=num),
            on_decision=lambda step, decision: parts.tracker.event(step, "temperature", decision),
        )
        self._progress = Progress()
        self._writer = checkpoint.Writer() if writer is None else writer
        self._step_start = ""  # the state at the beginning of the step under way
        self._is_sampling = False

    def run(self) -> None:
        """Step until the run's last step, the curriculum's end or an early stop; the last state is always saved."""
        with self._writer:
            while not self.end_reason:
                self._writer.check()
                try:
                    self.step()
                except GaveUp:
                    raise self._given_up() from None
                reason = self.end_reason
                stop = self._should_stop() and not reason
                if reason:
                    self._parts.tracker.event(self._progress.step, "end", {"reason": reason})
                if reason or stop or self._progress.step % self._config.checkpoint.every_steps == 0:
                    self.save()
                if stop:
                    self._wait_for_writer()
                    raise Interrupted(
                        f"stopped after step {self._progress.step}; saved in {self._parts.folder.checkpoints}: "
                        "add --resume to go on"
                    )

    @property
    def end_reason(self) -> str:
        """Why training is over, for people to read; empty while it is not."""
        progress, curriculum, patience = self._progress, self._parts.curriculum, self._config.evaluation.patience
        if progress.step >= self._config.train.steps:
            return f"all {progress.step} steps are done"
        if curriculum.finished:
            return (
                f"the curriculum has ended after step {progress.step} of {self._config.train.steps}: its last stage, "
                f"{curriculum.stage_name}, ended with {curriculum.switch_reason}"
            )
        if patience is not None and progress.evaluations_since_best >= patience:
            return (
                f"stopped early after step {progress.step} of {self._config.train.steps}: "
                f"{progress.evaluations_since_best} evaluations without a better pass@1 than {progress.best_value:.4f} "
                f"at step {progress.best_step} (evaluation.patience = {patience})"
            )
        return ""

    def step(self) -> None:
        """One turn of the loop."""
        parts, progress, stats = self._parts, self._progress, StepStats()
        started = time.perf_counter()
        parts.world.progress("step", step=progress.step + 1)
        self._step_start = self._state()
        temperature = self._thermostat.value(progress.step)
        stage = parts.curriculum.stage
        self._is_sampling = True
        groups = self._sample(temperature, stats)
        self._is_sampling = False
        self._check_verdicts(groups)
        kept = [group for group in groups if not group.degenerate][: parts.stages[stage].problems_per_step]
        trained = self._updater.update(kept, step=progress.step, stats=stats)
        if any(trained):
            parts.rollouts.load_weights()
        self._log_rollouts(groups, trained)
        practised = parts.curriculum.metrics()  # of the stage that the step was in: its end may begin the next one
        parts.curriculum.end_step()
        metrics = stats.reduce()
        self._thermostat.observe(progress.step, groups)
        progress.step += 1
        metrics |= practised | self._thermostat.metrics() | self._evaluate()
        if not any(trained):
            parts.tracker.event(progress.step, "no_update", {"reason": _why_no_update(kept)})
        if parts.curriculum.stage != stage:
            self._begin_stage()
        if not self.end_reason:  # after the last step there is nothing left to sample
            metrics |= self._thermostat.decide(progress.step)
        metrics |= {"sampling/temperature": temperature, "sampling/tokens_total": float(progress.sampled_tokens)}
        metrics["time/step"] = time.perf_counter() - started
        metrics |= _throughput(metrics)
        parts.tracker.log(progress.step, metrics)
        parts.console.step({"step": progress.step, **metrics})
        self._watch(metrics)

    def draw(self) -> list[Group]:
        """The groups of the next step, however many verdicts are lost. The trainer is not to be gone on with."""
        return self._sample(self._thermostat.value(self._progress.step), StepStats())

    def _watch(self, metrics: Mapping[str, float]) -> None:
        """Warn where the step is above a bound. Raises DivergenceError where too many in a row are."""
        above = self._guards.observe(self._progress.step, metrics)
        if above:
            self._parts.console.say(f"train: step {self._progress.step}: {above}")
            self._parts.tracker.event(self._progress.step, "guard", {"above": above})

    def _given_up(self) -> Interrupted:
        """Save what a step that was ended in the middle leaves, and say so."""
        progress = Progress(**json.loads(self._step_start)["progress"])
        if not self._is_sampling:  # the weights have moved, and the numbers of the step are not written
            return Interrupted(
                f"stopped while evaluating in step {progress.step + 1}: --resume does the steps since the "
                "last checkpoint again"
            )
        self._progress = progress
        folder = self._parts.folder.checkpoints
        saved = self._parts.world.is_main and checkpoint.is_whole(checkpoint.step_path(folder, progress.step))
        if progress.step and not self._parts.world.broadcast(saved):
            self._save(self._step_start)
        self._wait_for_writer()
        return Interrupted(f"stopped in the middle of step {progress.step + 1}, which --resume begins again")

    def _wait_for_writer(self) -> None:
        """Until what a message promises is there, on every rank: one that ended before would end the main rank too."""
        self._writer.wait()
        self._parts.world.any(False)

    # --- sampling -------------------------------------------------------------------------------------------------

    def _sample(self, temperature: float, stats: StepStats) -> list[Group]:
        """Groups of the step in the order in which the curriculum gave their problems, refill waves included."""
        parts, progress = self._parts, self._progress
        stage = parts.stages[parts.curriculum.stage]
        waves = self._config.curriculum.max_refill_waves + 1
        groups: list[Group] = []
        given: Counter[str] = Counter()
        for wave in range(waves):
            num_kept = sum(not group.degenerate for group in groups)
            deficit = refill_deficit(stage.problems_per_step, num_kept, wave, max_waves=waves)
            if deficit == 0:
                break
            attempts = []
            for problem_id in parts.curriculum.next(deficit):
                # A small pool gives a problem again within a step; these attempts have numbers and noise of their own.
                first = given[problem_id] * stage.group_size
                problem = parts.problems[problem_id]
                attempts.append(Attempts(problem=problem, first_attempt=first, num_rollouts=stage.group_size))
                given[problem_id] += 1
            sampled = parts.rollouts.run(attempts, temperature=temperature, phase="train", step=progress.step)
            parts.curriculum.observe([group.outcome for group in sampled.groups if group.outcome.num_rollouts])
            groups += sampled.groups
            progress.sampled_tokens += sampled.num_tokens
            stats.add_count("time/sampling", sampled.sampling_seconds)
            stats.add_count("time/reward", sampled.reward_seconds)
            stats.add_count("sampling/waves", 1)
        group_metrics(stats, groups, num_wanted=stage.problems_per_step)
        return groups

    def _check_verdicts(self, groups: Sequence[Group]) -> None:
        """Raises RewardError past the allowed share of lost verdicts, once the rollouts that tell why are written."""
        try:
            check_lost(
                lost_verdicts(groups),
                num_verdicts=sum(len(group.rewards) for group in groups),
                max_error_fraction=self._config.reward.max_error_fraction,
                place=f"step {self._progress.step + 1}",
            )
        except RewardError:
            self._log_rollouts(groups, trained=[])
            raise

    # --- evaluation, best checkpoint, temperature -----------------------------------------------------------------

    def _evaluate(self) -> dict[str, float]:
        """Validation metrics where they are due; keeps the best policy so far."""
        config, progress = self._config.evaluation, self._progress
        if config.every_steps == 0 or progress.step % config.every_steps:
            return {}
        started = time.perf_counter()
        result = self._evaluation(temperature=config.temperature, num_rollouts=config.validation_rollouts)
        value = result.overall.metrics["pass@1"].value
        if value > progress.best_value:
            progress.best_value, progress.best_step, progress.evaluations_since_best = value, progress.step, 0
            self._save_weights_as_best()
            self._parts.tracker.event(progress.step, "best", {"metric": "eval/validation/pass@1", "value": value})
        else:
            progress.evaluations_since_best += 1
        scores = {f"eval/validation/{name}": estimate.value for name, estimate in result.overall.metrics.items()}
        tokens = {"tokens/validation": float(result.num_tokens)}
        return scores | tokens | {"time/evaluation": time.perf_counter() - started}

    def _evaluation(self, *, temperature: float, num_rollouts: int) -> Evaluation:
        k = sorted({1, *(k for k in self._config.evaluation.k if k <= num_rollouts)})
        return evaluate(
            self._parts.rollouts,
            self._parts.validation,
            num_rollouts=num_rollouts,
            temperature=temperature,
            k=k,
            seed=self._config.run.seed,
            max_error_fraction=self._config.reward.max_error_fraction,
        )

    def _begin_stage(self) -> None:
        """Say that the curriculum has switched, and why, to whom it concerns."""
        curriculum = self._parts.curriculum
        self._thermostat.begin_stage()
        details = {"stage": curriculum.stage, "name": curriculum.stage_name, "reason": curriculum.switch_reason}
        self._parts.tracker.event(self._progress.step, "stage", details)

    # --- what survives --------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and delete those that are too old. The loop waits for a copy of the state alone."""
        self._save(self._state())

    def _save(self, state_json: str) -> None:
        started = time.perf_counter()
        parts, folder, progress = self._parts, self._parts.folder.checkpoints, self._progress
        self._writer.wait()
        weights, optimizer = parts.strategy.weights(), self._updater.state_dict()
        state = {**json.loads(state_json), "tracker": parts.tracker.state_dict()}
        path, last_step = checkpoint.step_path(folder, progress.step), progress.step
        best = checkpoint.best_path(folder, progress.best_step) if progress.best_step >= 0 else None
        keep_last = self._config.checkpoint.keep_last
        stopped_seconds = time.perf_counter() - started

        def write() -> None:
            begun = time.perf_counter()
            checkpoint.save(path, weights=weights, optimizer=optimizer, state=state)
            checkpoint.prune(folder, last_step=last_step, keep_last=keep_last, best=best)
            parts.console.note(
                f"checkpoint: {path.name}; the loop stood still for {stopped_seconds:.3f} s, written in "
                f"{time.perf_counter() - begun:.3f} s"
            )

        if parts.world.is_main:
            self._writer.write(write)
        parts.world.progress("checkpoint")

    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Take up a checkpoint: the run goes on as if it had never stopped."""
        self._parts.strategy.load_weights(weights)
        self._updater.load_state_dict(optimizer)
        self._progress = Progress(**state["progress"])
        self._parts.curriculum.load_state_dict(state["curriculum"])
        self._thermostat.load_state_dict(state["temperature"])
        self._parts.rollouts.lengths.load_state_dict(state["lengths"])
        self._guards.load_state_dict(state["guards"])
        self._parts.tracker.load_state_dict(state["tracker"])
        self._parts.rollouts.load_weights()

    def _state(self) -> str:
        """Everything but weights, optimizer and the tracker's files, as JSON: a copy that no later step changes.

        The same on every rank. Noise needs no state: it is counted, not drawn."""
        parts = self._parts
        state = {
            "progress": {name: getattr(self._progress, name) for name in Progress.__dataclass_fields__},
            "curriculum": parts.curriculum.state_dict(),
            "temperature": self._thermostat.state_dict(),
            "lengths": parts.rollouts.lengths.state_dict(),
            "guards": self._guards.state_dict(),
            "ranks": {"number": parts.world.size, "strategy": self._config.distributed.strategy},
        }
        return json.dumps(state)

    def _save_weights_as_best(self) -> None:
        weights = self._parts.strategy.weights()
        path = checkpoint.best_path(self._parts.folder.checkpoints, self._progress.step)
        state = {"step": self._progress.step, "value": self._progress.best_value}
        if self._parts.world.is_main:
            self._writer.write(lambda: checkpoint.save(path, weights=weights, optimizer=None, state=state))

    def _log_rollouts(self, groups: Sequence[Group], trained: Sequence[list[TrainedRollout]]) -> None:
        advantages = {(t.rollout.problem_id, t.rollout.attempt): t.advantage for of_group in trained for t in of_group}
        stage, tiers = self._parts.curriculum.stage_name, self._parts.tiers
        step = self._progress.step + 1
        rows = rollout_rows(groups, step=step, stage=stage, tiers=tiers, advantages=advantages)
        self._parts.tracker.rollouts(step, rows)


def _why_no_update(kept: Sequence[Group]) -> str:
    if not kept:
        return "no group of the step had any variance"
    return "of the groups with variance, loss.truncated left no rollout to train on"


def _throughput(metrics: Mapping[str, float]) -> dict[str, float]:
    """Tokens a second of sampling and of training, from the step's own counts."""
    sampled, trained = metrics["sampling/tokens"], metrics.get("optim/tokens", 0.0)
    return {
        "throughput/sampled_tokens_per_second": sampled / max(metrics["time/sampling"], 1e-9),
        "throughput/trained_tokens_per_second": trained / max(metrics["time/train"], 1e-9),
    }
