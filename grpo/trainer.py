"""The loop. `Trainer.step` is the page to read: problems, groups, outcomes, batch, update, and what is told to whom.

The trainer owns the order of things and the state that survives a restart; every decision belongs to a part that it
was handed. Every rank runs this loop on the same groups and comes to the same decisions; the tracker and the folder of
the main rank are the ones that write."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from curricula import Curriculum, TemperatureSchedule
from grpo import checkpoint
from grpo.batch import TrainedRollout
from grpo.collecting import Collected, Collector
from grpo.config import RunConfig
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.errors import Interrupted, RewardError
from grpo.evaluation import Evaluation, evaluate
from grpo.folder import RunFolder
from grpo.guards import Guards
from grpo.persona.applied import switched
from grpo.persona.steerer import Steerer, Unsteered
from grpo.persona.watching import Watching
from grpo.profiling import Profile
from grpo.rollout import GaveUp, Rollouts, check_lost, lost_verdicts
from grpo.stock import Stock
from grpo.thermostat import Thermostat
from grpo.tracking.console import Console
from grpo.tracking.metrics import rollout_rows
from grpo.tracking.tracker import Tracker
from grpo.types import Group, Problem, Stage, StepStats
from grpo.update import Updater

DECISIONS = ("validation", "temperature", "reprofile", "persona")
"""What tokens are drawn for beside practice, each billed as the metric tokens/<name>."""


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
    profile_tokens: int  # spent on the labels
    stock: Stock  # groups that the profile drew
    reprofile: Callable[[int, float], Profile]  # of the pool, after so many steps and at a temperature
    validation: Sequence[Problem]
    tracker: Tracker
    folder: RunFolder
    console: Console
    watching: Watching  # of traits
    steerer: Steerer | Unsteered = field(default_factory=Unsteered)


@dataclass(slots=True)
class Progress:
    """Where the run is: what a checkpoint holds beside the states of the parts."""

    step: int = 0
    spent_tokens: int = 0  # by the profile, in training and for every decision on the way
    decided: dict[str, Any] = field(default_factory=dict)  # before which step, and the metrics of what was due
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
        self._updater = Updater(
            parts.strategy,
            config,
            world=parts.world,
            on_skipped=parts.tracker.skipped,
            on_projections=parts.watching.read,
            penalties=parts.watching.penalties if parts.watching.penalises else None,
        )
        self._guards = Guards(config.guard)
        self._thermostat = Thermostat(
            parts.temperature,
            config.temperature,
            rollouts=parts.rollouts,
            problems=parts.validation,
            max_error_fraction=config.reward.max_error_fraction,
            on_decision=lambda step, decision: parts.tracker.event(step, "temperature", decision),
        )
        self._progress = Progress(spent_tokens=parts.profile_tokens)
        self._writer = checkpoint.Writer() if writer is None else writer
        self._collector = Collector(
            parts.rollouts,
            parts.curriculum,
            parts.stock,
            problems=parts.problems,
            stages=parts.stages,
            max_refill_waves=config.curriculum.max_refill_waves,
            reuse_steps=config.profile.reuse_steps,
            success_threshold=config.reward.success_threshold,
            max_error_fraction=config.reward.max_error_fraction,
            world=parts.world,
        )
        self._thermostat.begin_stage(self._collector.stage.temperature)
        self._is_at_boundary = False  # of steps, in no part of one that changes a weight or a curriculum

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
        most_tokens = self._config.train.max_tokens
        if progress.step >= self._config.train.steps:
            return f"all {progress.step} steps are done"
        if most_tokens is not None and progress.spent_tokens >= most_tokens:
            return f"{progress.spent_tokens} tokens are spent (train.max_tokens = {most_tokens})"
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
        self._is_at_boundary = True
        decided = self._decide()
        temperature = self._thermostat.value(progress.step)
        stage = parts.curriculum.stage
        grid = self._thermostat.grid()
        steer_key = progress.step, parts.curriculum.stage_name
        with switched(parts.rollouts.steer, parts.steerer.steering_of_sampling(*steer_key)):
            collected = self._collector.collect(step=progress.step, temperature=temperature, grid=grid)
        self._is_at_boundary = False
        self._check_verdicts(collected)
        collected.count(stats)
        asked = parts.watching.ask(collected.drawn, step=progress.step + 1)
        with switched(parts.strategy.steer, parts.steerer.steering_of_training(*steer_key)):
            trained = self._updater.update(collected.kept, stage=self._collector.stage, step=progress.step, stats=stats)
        if any(trained):
            parts.rollouts.load_weights()
        parts.watching.end_step(asked, trained, stats, step=progress.step + 1)
        self._log_rollouts(collected, trained)
        self._end_step(collected)
        metrics = stats.reduce() | decided | parts.steerer.metrics(*steer_key)
        metrics |= parts.curriculum.metrics() | self._thermostat.metrics() | self._evaluate()
        if not any(trained):
            parts.tracker.event(progress.step, "no_update", {"reason": _why_no_update(collected.kept)})
        if parts.curriculum.stage != stage:
            self._begin_stage()
        progress.spent_tokens += sum(int(metrics.get(f"tokens/{purpose}", 0)) for purpose in DECISIONS)
        metrics |= {"sampling/temperature": temperature, "tokens/total": float(progress.spent_tokens)}
        metrics["time/step"] = time.perf_counter() - started
        metrics |= _throughput(metrics)
        parts.steerer.observe(*steer_key, metrics)
        parts.tracker.log(progress.step, metrics)
        parts.console.step({"step": progress.step, **metrics}, is_last=bool(self.end_reason))
        self._watch(metrics)

    def draw(self) -> list[Group]:
        """The groups of the next step, however many verdicts are lost. The trainer is not to be gone on with."""
        self._decide()
        parts, step = self._parts, self._progress.step
        steering = parts.steerer.steering_of_sampling(step, parts.curriculum.stage_name)
        with switched(parts.rollouts.steer, steering):
            return list(self._collector.collect(step=step, temperature=self._thermostat.value(step)).groups)

    def _decide(self) -> dict[str, float]:
        """What is due before a step: the temperature, new labels, new vectors of traits; returns the metrics of that.

        Before the step and not after the last one, so that a run that is asked for more steps later decides as one that
        was asked for them at once."""
        step = self._progress.step
        if not step:
            return {}
        if self._progress.decided.get("step") != step:
            self._progress.decided = {"step": step}
        decided = self._progress.decided
        for what, decide in (
            ("temperature", self._thermostat.decide),
            ("labels", self._reprofile),
            ("vectors", self._parts.watching.renew),
        ):
            if what not in decided:  # a step that is begun again, by a resume, does not decide again
                decided[what] = decide(step)
        return {**decided["temperature"], **decided["labels"], **decided["vectors"]}

    def _end_step(self, collected: Collected) -> None:
        """What the step's groups say takes effect, everywhere at once: no state is between two steps."""
        parts, progress = self._parts, self._progress
        parts.curriculum.end_step()
        parts.stock.end_step(collected.reused_ids)
        parts.rollouts.lengths.observe(collected.drawn)
        self._thermostat.observe(progress.step, collected.drawn)
        progress.spent_tokens += collected.sampled_tokens
        progress.step += 1

    def _watch(self, metrics: Mapping[str, float]) -> None:
        """Warn where the step is above a bound, or a trait has drifted. Raises DivergenceError where too many steps in
        a row are."""
        above = self._guards.observe(self._progress.step, metrics)
        if above:
            self._parts.console.say(f"train: step {self._progress.step}: {above}")
            self._parts.tracker.event(self._progress.step, "guard", {"above": above})
        drifted = self._parts.watching.alarms(self._progress.step, metrics)
        if drifted:
            self._parts.console.say(f"train: step {self._progress.step}: {drifted}")
            self._parts.tracker.event(self._progress.step, "drift", {"above": drifted})

    def _given_up(self) -> Interrupted:
        """Save what a step that was ended in the middle leaves, and say so."""
        progress = self._progress
        if not self._is_at_boundary:  # the weights have moved, and the numbers of the step are not written
            return Interrupted(
                f"stopped while evaluating in step {progress.step}: --resume does the steps since the "
                "last checkpoint again"
            )
        folder = self._parts.folder.checkpoints
        saved = self._parts.world.is_main and checkpoint.is_whole(checkpoint.step_path(folder, progress.step))
        if progress.step and not self._parts.world.broadcast(saved):
            self.save()  # the step under way is in no state
        self._wait_for_writer()
        return Interrupted(f"stopped in the middle of step {progress.step + 1}, which --resume begins again")

    def _wait_for_writer(self) -> None:
        """Until what a message promises is there, on every rank: one that ended before would end the main rank too."""
        self._writer.wait()
        self._parts.world.any(False)

    # --- sampling -------------------------------------------------------------------------------------------------

    def _check_verdicts(self, collected: Collected) -> None:
        """Raises RewardError past the allowed share of lost verdicts, once the rollouts that tell why are written."""
        groups = collected.drawn
        try:
            check_lost(
                lost_verdicts(groups),
                num_verdicts=sum(len(group.rewards) for group in groups),
                max_error_fraction=self._config.reward.max_error_fraction,
                place=f"step {self._progress.step + 1}",
            )
        except RewardError:
            self._log_rollouts(collected, trained=[])
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
            max_error_fraction=self._config.reward.max_error_fraction,
        )

    def _begin_stage(self) -> None:
        """Say that the curriculum has switched, and why, to whom it concerns."""
        curriculum = self._parts.curriculum
        self._thermostat.begin_stage(self._collector.stage.temperature)
        details = {"stage": curriculum.stage, "name": curriculum.stage_name, "reason": curriculum.switch_reason}
        self._parts.console.say(
            f"train: step {self._progress.step}: the stage {curriculum.stage_name} begins ({curriculum.switch_reason})"
        )
        self._parts.tracker.event(self._progress.step, "stage", details)

    def _reprofile(self, step: int) -> dict[str, float]:
        """Label the pool again with the policy as it stands, where that is due; returns the metrics of that."""
        every = self._config.curriculum.reprofile_every_steps
        if every is None or step % every:
            return {}
        started = time.perf_counter()
        self._parts.console.say(f"train: step {step}: labelling the pool again")
        curriculum = self._parts.curriculum
        stage = curriculum.stage
        profiled = self._parts.reprofile(step, self._thermostat.value(step))
        self._parts.rollouts.lengths.expect(profiled.mean_tokens)
        curriculum.relabel(profiled.tiers)
        details = {"tiers": profiled.counts, "rollouts": profiled.num_rollouts, "tokens": profiled.num_tokens}
        self._parts.tracker.event(step, "reprofile", details)
        if curriculum.stage != stage:
            self._begin_stage()
        return {"time/reprofile": time.perf_counter() - started, "tokens/reprofile": float(profiled.num_tokens)}

    # --- what survives --------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and delete those that are too old. The loop waits for a copy of the state alone."""
        started = time.perf_counter()
        parts, folder, progress = self._parts, self._parts.folder.checkpoints, self._progress
        self._writer.wait()
        weights, optimizer = parts.strategy.weights(), self._updater.state_dict()
        state = {**json.loads(self._state()), "tracker": parts.tracker.state_dict()}
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
        self._parts.stock.load_state_dict(state["stock"])
        self._parts.rollouts.lengths.load_state_dict(state["lengths"])
        self._parts.steerer.load_state_dict(state["steering"])
        self._guards.load_state_dict(state["guards"])
        self._parts.watching.load_state_dict(state["watching"])
        self._parts.tracker.load_state_dict(state["tracker"])
        self._parts.rollouts.load_weights()

    def _state(self) -> str:
        """Everything but weights, optimizer and the tracker's files, as JSON: a copy that no later step changes.

        The same on every rank but for the stock, which is the main rank's. Noise needs no state: it is counted."""
        parts = self._parts
        state = {
            "progress": {name: getattr(self._progress, name) for name in Progress.__dataclass_fields__},
            "curriculum": parts.curriculum.state_dict(),
            "temperature": self._thermostat.state_dict(),
            "stock": parts.stock.state_dict(),
            "lengths": parts.rollouts.lengths.state_dict(),
            "steering": parts.steerer.state_dict(),
            "guards": self._guards.state_dict(),
            "watching": parts.watching.state_dict(),
            "ranks": {"number": parts.world.size, "strategy": self._config.distributed.strategy},
        }
        return json.dumps(state)

    def _save_weights_as_best(self) -> None:
        weights = self._parts.strategy.weights()
        path = checkpoint.best_path(self._parts.folder.checkpoints, self._progress.step)
        state = {"step": self._progress.step, "value": self._progress.best_value}
        if self._parts.world.is_main:
            self._writer.write(lambda: checkpoint.save(path, weights=weights, optimizer=None, state=state))

    def _log_rollouts(self, collected: Collected, trained: Sequence[list[TrainedRollout]]) -> None:
        advantages = {(t.rollout.problem_id, t.rollout.attempt): t.advantage for of_group in trained for t in of_group}
        curriculum, step = self._parts.curriculum, self._progress.step + 1
        rows = rollout_rows(
            collected.groups,
            step=step,
            stage=curriculum.stage_name,
            tier_of=curriculum.tier_of,
            advantages=advantages,
            reused=collected.reused,
        )
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
