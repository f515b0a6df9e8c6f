"""The phases of a run, each a function of the same `Run`, and the recipe that goes through them all.

Every rank goes through the phases together; what the folder holds is the main rank's to say.

cold start → profile → train (stage one, stage two) → evaluate → report. A phase that is finished is read back from the
folder instead of being done again; one that was begun goes on from what it saved."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curricula import Tier
from grpo import checkpoint, practice
from grpo.chat import Chat
from grpo.config import RunConfig
from grpo.data import at_most
from grpo.distributed.strategy import Strategy
from grpo.distributed.world import World
from grpo.errors import CheckpointError, DataError, Interrupted
from grpo.evaluation import Evaluation, evaluate
from grpo.folder import COLD_START, Phase, RunFolder, named_disk_errors, write_json
from grpo.policy import Policy
from grpo.profiling import TIERS_FILE, profile
from grpo.rollout import Rollouts
from grpo.seeds import torch_seed
from grpo.sft import cold_start
from grpo.tracking.console import Console
from grpo.tracking.report import write_report
from grpo.tracking.tracker import Tracker
from grpo.trainer import Parts, Stage, Trainer
from grpo.types import Problem

CPU = torch.device("cpu")
"""Where checkpoints are read to: the device's memory has no room for a second copy of weights and moments."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is ready to go: its config, its folder, and the parts that every phase uses."""

    config: RunConfig
    world: World
    folder: RunFolder
    policy: Policy
    strategy: Strategy
    initial_weights: Callable[[], Mapping[str, Tensor]]  # what the config alone gives, before any phase
    chat: Chat
    rollouts: Rollouts
    train: Sequence[Problem]
    validation: Sequence[Problem]
    heldout: Sequence[Problem]
    traces: Sequence[Problem]
    tracker: Tracker
    console: Console
    should_stop: Callable[[], bool]  # says the same on every rank, which all ask together

    @property
    def cold_start_path(self) -> Path:
        """Where the policy after the cold start lies."""
        return self.folder.checkpoints / COLD_START


def phases_of(config: RunConfig) -> tuple[Phase, ...]:
    """The phases that the recipe goes through."""
    chosen: list[tuple[Phase, bool]] = [
        ("sft", config.sft is not None),
        ("profile", practice.needs_profile(config)),
        ("train", True),
        ("eval", True),
        ("report", True),
    ]
    return tuple(phase for phase, wanted in chosen if wanted)


def stages_of(config: RunConfig) -> list[Stage]:
    """The sizes of a step in each stage of the curriculum; one stage where it knows none."""
    default = config.train
    if config.curriculum.kind != "two_stages":
        return [Stage(problems_per_step=default.problems_per_step, group_size=default.group_size)]
    return [
        Stage(
            problems_per_step=stage.problems_per_step or default.problems_per_step,
            group_size=stage.group_size or default.group_size,
        )
        for stage in config.curriculum.stages
    ]


def recipe(run: Run) -> None:
    """All phases in order."""
    for phase in phases_of(run.config):
        if run.should_stop():
            raise Interrupted(f"stopped before the phase {phase}: add --resume to go on")
        if is_finished(run, phase) and phase != "report":
            run.console.say(f"{phase}: finished before, in {run.folder.path}")
        else:
            PHASE_FUNCTIONS[phase](run)


def run_sft(run: Run) -> None:
    """Cold start from the initial weights, until the gate; the policy is saved as checkpoints/cold_start."""
    config = run.config.sft
    if config is None:
        raise DataError("the config has no section sft, so there is no cold start to run; add one with its traces")
    if run.world.broadcast(run.folder.begun().get("sft")):
        run.console.say(f"cold start: finished before, in {run.cold_start_path}; --fresh begins it again")
        return
    run.world.progress("cold start")
    run.folder.mark("sft", finished=False)
    run.strategy.load_weights(run.initial_weights())
    run.console.say(f"cold start: {len(run.traces)} traces, at most {config.max_steps} steps")

    def on_look(step: int, value: float) -> None:
        run.console.say(f"cold start: step {step}, pass@1 {value:.3f} (gate {config.gate_pass_at_1})")

    policy = run.strategy.whole_policy()

    def pass_at_1() -> float:
        take_over()
        return _validation(run, num_rollouts=config.gate_rollouts).overall.metrics["pass@1"].value

    def take_over() -> None:
        if policy is not run.policy:
            run.strategy.load_weights(checkpoint.weights_of(policy.model))

    result = cold_start(
        policy,
        chat=run.chat,
        traces=run.traces,
        config=config,
        pass_at_1=pass_at_1,
        should_stop=run.should_stop,
        on_look=on_look,
        seed=run.config.run.seed,
        folder=run.folder.path / "sft",
        world=run.world,
    )
    take_over()
    looks = [{"step": step, "pass@1": value} for step, value in result.looks]
    state = {"steps": result.steps, "looks": looks}
    weights = run.strategy.weights()
    if run.world.is_main:
        checkpoint.save(run.cold_start_path, weights=weights, optimizer=None, state=state)
    run.folder.mark("sft", finished=True)


def run_profile(run: Run) -> None:
    """Profile the training problems with the policy that training starts from."""
    run.folder.mark("profile", finished=False)
    start = load_start(run)
    config = run.config
    result = profile(
        run.rollouts,
        at_most(
            run.train,
            config.profile.max_problems or len(run.train),
            seed=torch_seed(config.run.seed, "profiled problems"),
        ),
        config=config.profile,
        folder=run.folder.profile,
        fingerprint={
            "policy": start,
            "temperature": config.temperature.value,
            "sampling": config.sampling.model_dump(mode="json", exclude={"max_rows", "prefill_tokens"}),
            "seed": config.run.seed,
        },
        temperature=config.temperature.value,
        max_rows=config.sampling.max_rows,
        max_error_fraction=config.reward.max_error_fraction,
        should_stop=run.should_stop,
        on_progress=run.console.profile_progress,
        world=run.world,
    )
    counts = ", ".join(f"{tier} {count}" for tier, count in result.counts.items())
    run.console.say(f"profile: {counts}; {result.num_rollouts} rollouts")
    if result.num_without_tier:
        run.console.say(
            f"profile: {result.num_without_tier} problems got no verdict with a value and so no tier; they are not "
            "practised by tier (try the reward with `grpo score`; `grpo profile --fresh` asks it again)"
        )
    run.folder.mark("profile", finished=True)


def run_train(run: Run) -> None:
    """The loop, from the start policy or from the newest whole checkpoint."""
    config, folder = run.config, run.folder
    trainer = trainer_of(run)
    load_start(run)
    newest = newest_checkpoint(run, "train")
    if newest is not None:
        before = take_up(trainer, newest)
        ranks = {"number": run.world.size, "strategy": config.distributed.strategy}
        if before != ranks:
            run.console.say(
                f"train: the checkpoint is of {layout(before)}, and goes on with {layout(ranks)}: the same problems, "
                "the same noise, but sums may round differently"
            )
        run.console.say(f"train: going on from {newest}")
    else:
        run.tracker.load_state_dict({"metrics": 0, "events": 0})
        for look in _cold_start_state(run).get("looks", []):
            run.tracker.event(0, "gate", {"pass@1": look["pass@1"], "sft_steps": look["step"]})
    folder.mark("train", finished=False)
    trainer.run()
    run.console.say(f"train: {trainer.end_reason}")
    if run.world.is_main:
        write_json(folder.trained, {"asked_steps": config.train.steps})
    folder.mark("train", finished=True)


def run_eval(run: Run) -> None:
    """The final policy, and the one that training started from, on the held-out problems."""
    run.folder.mark("eval", finished=False)
    run.tracker.forget_events("evaluation")
    config = run.config.evaluation
    for name in ("start", "final") if config.baseline else ("final",):
        if run.should_stop():
            raise Interrupted("stopped during the evaluation, which begins again: add --resume")
        step = load_final(run) if name == "final" else 0
        if name == "start":
            load_start(run)
        result = evaluate(
            run.rollouts,
            run.heldout,
            num_rollouts=config.rollouts_per_problem,
            temperature=config.temperature,
            k=config.k,
            seed=run.config.run.seed,
            max_error_fraction=run.config.reward.max_error_fraction,
            by_column=config.by_column,
        )
        if run.world.is_main:
            with named_disk_errors(run.folder.evals):
                run.folder.evals.mkdir(exist_ok=True)
            write_json(run.folder.evals / f"{name}.json", result.report(name=name, step=step))
        scores = {f"eval/heldout/{metric}": estimate.value for metric, estimate in result.overall.metrics.items()}
        run.tracker.event(step, "evaluation", {"name": name, **scores})
    run.folder.mark("eval", finished=True)


def run_report(run: Run) -> None:
    """One self-contained HTML file."""
    if run.world.is_main:
        with named_disk_errors(run.folder.report):
            write_report(run.folder.path)
    run.folder.mark("report", finished=True)


PHASE_FUNCTIONS: dict[Phase, Callable[[Run], object]] = {
    "sft": run_sft,
    "profile": run_profile,
    "train": run_train,
    "eval": run_eval,
    "report": run_report,
}


def is_finished(run: Run, phase: Phase) -> bool:
    """Whether there is nothing left of a phase. Training that is asked for more steps than before goes on.

    It may have ended before the steps it was asked for: by its patience, or with its curriculum."""
    return run.world.broadcast(_is_finished(run, phase))


def _is_finished(run: Run, phase: Phase) -> bool:
    if not run.folder.begun().get(phase):
        return False
    if phase != "train":
        return True
    asked_steps: int = json.loads(run.folder.trained.read_text(encoding="utf-8"))["asked_steps"]
    return run.config.train.steps <= asked_steps


def trainer_of(run: Run, *, writer: checkpoint.Writer | None = None) -> Trainer:
    """The loop at its first step; which weights it begins with is the caller's to say.

    `writer` writes its checkpoints; None is one of its own."""
    config = run.config
    rows = read_tiers(run) if practice.needs_profile(config) else {}
    tiers = {problem_id: Tier(row["tier"]) for problem_id, row in rows.items()}
    run.rollouts.lengths.forget()
    run.rollouts.lengths.observe({problem_id: row["mean_tokens"] for problem_id, row in rows.items()})
    parts = Parts(
        world=run.world,
        strategy=run.strategy,
        rollouts=run.rollouts,
        curriculum=practice.build_curriculum(config, [problem.id for problem in run.train], tiers),
        temperature=practice.build_temperature(config.temperature, num_steps=config.train.steps),
        stages=stages_of(config),
        problems={problem.id: problem for problem in run.train},
        tiers={problem_id: str(tier) for problem_id, tier in tiers.items()},
        validation=run.validation,
        tracker=run.tracker,
        folder=run.folder,
        console=run.console,
    )
    return Trainer(parts, config, should_stop=run.should_stop, writer=writer)


def newest_checkpoint(run: Run, phase: Phase) -> Path | None:
    """The newest whole checkpoint of the training, after a word on each newer one that is not; None without any.

    Raises CheckpointError when there are some and none is whole."""
    folder = run.folder.checkpoints
    if run.world.is_main:
        checkpoint.recover(folder)
    newest, faults = run.world.broadcast(checkpoint.newest_whole(folder) if run.world.is_main else (None, []))
    for fault in faults:
        run.console.say(f"{phase}: {fault}")
    if newest is None and faults:
        raise CheckpointError(
            f"{folder}: none of {len(faults)} checkpoints is whole ({faults[0]}); restore one, or `grpo train --fresh` "
            "starts the training again"
        )
    return newest


def load_start(run: Run) -> str:
    """Put the policy that training starts from in place: the cold start's, or the config's own. Returns its name."""
    if run.config.sft is None:
        run.strategy.load_weights(run.initial_weights())
        run.rollouts.load_weights()
        return "base"
    if not run.world.broadcast(run.cold_start_path.is_dir()):
        raise CheckpointError(f"{run.cold_start_path}: no cold start yet; run `grpo sft` or `grpo recipe` first")
    weights, _, _ = checkpoint.load(run.cold_start_path, device=CPU)
    run.strategy.load_weights(weights)
    run.rollouts.load_weights()
    return (run.cold_start_path / checkpoint.MANIFEST).read_text(encoding="utf-8")


def load_final(run: Run) -> int:
    """Put the policy of the final evaluation in place; returns its step (0: the one that training started from)."""
    newest = newest_checkpoint(run, "eval")
    if newest is None:
        run.console.say("eval: no checkpoint of a training, so the final policy is the one that training starts from")
        load_start(run)
        return 0
    path = run.world.broadcast(_best(run) or newest)
    weights, _, _ = checkpoint.load(path, device=CPU)
    run.strategy.load_weights(weights)
    run.rollouts.load_weights()
    run.console.say(f"eval: the final policy is {path}")
    return int(path.name.split("_")[1])


def _best(run: Run) -> Path | None:
    """The best policy's checkpoint, where the config asks for it and it is whole; says where it is not."""
    found = sorted(run.folder.checkpoints.glob("best_*"))
    if run.config.evaluation.checkpoint != "best" or not found:
        return None
    try:
        checkpoint.check(found[-1])
    except CheckpointError as error:
        run.console.say(f"eval: {error}; the newest step is evaluated instead")
        return None
    return found[-1]


def read_tiers(run: Run) -> dict[str, dict[str, Any]]:
    """The profile in the run's folder: each problem's row of the tier table. Raises DataError where there is none."""
    path = run.folder.profile / TIERS_FILE
    if not run.world.broadcast(path.is_file()):
        raise DataError(
            f"{path}: no profile, and curriculum.kind = {run.config.curriculum.kind!r} practises by tier; run "
            "`grpo profile` (or `grpo recipe`) with this config first, or set curriculum.kind=uniform"
        )
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["problem_id"]: row for row in rows}


def take_up(trainer: Trainer, path: Path) -> dict[str, Any]:
    """Hand a checkpoint to the trainer; returns the ranks that wrote it, as `layout` tells them.

    No weight of it outlives the call: beside the run there is no second copy."""
    weights, optimizer, state = checkpoint.load(path, device=CPU)
    if optimizer is None:
        raise CheckpointError(f"{path}: holds no optimizer state; `grpo train --fresh` starts the training again")
    trainer.load(weights, optimizer, state)
    ranks: dict[str, Any] = state["ranks"]
    return ranks


def layout(ranks: Mapping[str, Any]) -> str:
    """The number of ranks and their strategy, for people to read."""
    return f"{ranks['number']} rank{'s' if ranks['number'] > 1 else ''} ({ranks['strategy']})"


def _cold_start_state(run: Run) -> dict[str, Any]:
    if run.config.sft is None:
        return {}
    _, _, state = checkpoint.load(run.cold_start_path, device=CPU)
    return state


def _validation(run: Run, *, num_rollouts: int) -> Evaluation:
    run.rollouts.load_weights()  # the cold start has moved them
    return evaluate(
        run.rollouts,
        run.validation,
        num_rollouts=num_rollouts,
        temperature=run.config.evaluation.temperature,
        k=[1],
        seed=run.config.run.seed,
        max_error_fraction=run.config.reward.max_error_fraction,
    )
