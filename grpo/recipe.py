"""The phases of a run, each a function of the same `Run`, and the recipe that goes through them all.

Every rank goes through the phases together; what the folder holds is the main rank's to say.

cold start → profile → train (stage one, stage two) → evaluate → report. A phase that is finished is read back from the
folder instead of being done again; one that was begun goes on from what it saved."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from curricula import ProfileStore, Tier
from grpo import checkpoint, practice
from grpo.config import RunConfig
from grpo.data import at_most
from grpo.errors import ConfigError, DataError, Interrupted
from grpo.evaluation import Evaluation, evaluate
from grpo.final_evaluation import is_evaluated, run_eval
from grpo.folder import Phase, named_disk_errors, write_json
from grpo.manifest import MANIFEST_FILE, by_tier, read_manifest
from grpo.persona.steerer import Steerer
from grpo.persona.traits import Trait
from grpo.persona.vectors import PersonaVectors
from grpo.persona.watching import Watching
from grpo.persona_commands.extract import extract
from grpo.profiling import Profile
from grpo.seeds import torch_seed
from grpo.sft import cold_start
from grpo.starts import CPU, Run, layout, load_start, newest_checkpoint, print_of, profile_policy, read_tiers, take_up
from grpo.stock import Stock
from grpo.tracking.report import write_report
from grpo.trainer import Parts, Trainer
from grpo.types import Problem, Stage


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
    train = config.train
    default = Stage(
        problems_per_step=train.problems_per_step,
        group_size=train.group_size,
        max_completion_tokens=config.sampling.max_completion_tokens,
        learning_rate=config.optim.learning_rate,
        failures_per_group=train.failures_per_group,
    )
    if config.curriculum.kind != "two_stages":
        return [default]
    return [
        Stage(
            problems_per_step=stage.problems_per_step or default.problems_per_step,
            group_size=stage.group_size or default.group_size,
            max_completion_tokens=stage.max_completion_tokens or default.max_completion_tokens,
            learning_rate=stage.learning_rate or default.learning_rate,
            failures_per_group=stage.failures_per_group or default.failures_per_group,
            temperature=stage.temperature,
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
    if run.sft_steering is not None:
        run.console.say(run.sft_steering.check_start(print_of(run)))
    run.console.say(f"cold start: {len(run.traces)} traces, at most {config.max_steps} steps")

    def on_look(step: int, value: float) -> None:
        run.console.say(f"cold start: step {step}, pass@1 {value:.3f} (gate {config.gate_pass_at_1})")

    policy = run.strategy.whole_policy()
    tokens: list[int] = []  # of each look

    def pass_at_1() -> float:
        take_over()
        result = _validation(run, num_rollouts=config.gate_rollouts)
        tokens.append(result.num_tokens)
        return result.overall.metrics["pass@1"].value

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
        on_step=lambda step: run.console.cold_start_progress(step, most_steps=config.max_steps),
        seed=run.config.run.seed,
        folder=run.folder.path / "sft",
        world=run.world,
        steering=None if run.sft_steering is None else run.sft_steering.at(run.sft_steering.config.coefficient),
    )
    take_over()
    looks = [
        {"pass@1": value, "sft_steps": step, "tokens": spent}
        for (step, value), spent in zip(result.looks, tokens, strict=True)
    ]
    state = {"steps": result.steps, "looks": looks}
    weights = run.strategy.weights()
    if run.world.is_main:
        checkpoint.save(run.cold_start_path, weights=weights, optimizer=None, state=state)
    run.folder.mark("sft", finished=True)


def run_profile(run: Run) -> None:
    """Profile the training problems with the policy that training starts from."""
    run.folder.mark("profile", finished=False)
    load_start(run)
    config = run.config
    result = profile_policy(
        run,
        _profiled(run),
        folder=run.folder.profile,
        store_folder=Path(config.profile.folder or run.folder.profile),
        temperature=practice.first_temperature(config),
    )
    if run.world.is_main:
        run.console.tiers(by_tier(read_manifest(run.folder.profile / MANIFEST_FILE).rows))
    counts = ", ".join(f"{tier} {count:,}" for tier, count in result.counts.items())
    run.console.say(
        f"profile: {counts}; {result.num_rollouts:,} rollouts, of which {result.drawn_rollouts:,} were drawn now"
    )
    if result.num_without_tier:
        run.console.say(
            f"profile: {result.num_without_tier:,} problems got no verdict with a value and so no tier; they are not "
            "practised by tier (try the reward with `grpo score`; `grpo profile --fresh` asks it again)"
        )
    run.folder.mark("profile", finished=True)


def run_train(run: Run) -> None:
    """The loop, from the start policy or from the newest whole checkpoint."""
    config, folder = run.config, run.folder
    trainer = trainer_of(run)
    load_start(run)
    if isinstance(run.steerer, Steerer):
        run.console.say(run.steerer.check_start(print_of(run)))
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
            run.tracker.event(0, "gate", look)
    if newest is None and trainer.end_reason:
        raise ConfigError(
            f"train.max_tokens = {config.train.max_tokens}: there is no step to train, since {trainer.end_reason}; "
            "raise it, or profile fewer problems or rollouts"
        )
    folder.mark("train", finished=False)
    trainer.run()
    run.console.say(f"train: {trainer.end_reason}")
    if run.world.is_main:
        write_json(folder.trained, {"asked_steps": config.train.steps, "asked_tokens": config.train.max_tokens})
    folder.mark("train", finished=True)


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
    if phase == "eval":
        return is_evaluated(run)
    if phase != "train":
        return True
    asked: dict[str, Any] = json.loads(run.folder.trained.read_text(encoding="utf-8"))
    wanted = run.config.train
    more_tokens = asked["asked_tokens"] is not None and (
        wanted.max_tokens is None or wanted.max_tokens > asked["asked_tokens"]
    )
    return wanted.steps <= asked["asked_steps"] and not more_tokens


def trainer_of(
    run: Run,
    *,
    writer: checkpoint.Writer | None = None,
    reprofile: Callable[[int, float], Profile] | None = None,
) -> Trainer:
    """The loop at its first step; which weights it begins with is the caller's to say.

    `writer` writes its checkpoints; None is one of its own. `reprofile` labels the pool again; None draws for that."""
    config = run.config
    rows = read_tiers(run) if practice.needs_profile(config) else {}
    tiers = {problem_id: Tier(row["tier"]) for problem_id, row in rows.items()}
    run.rollouts.lengths.forget()
    run.rollouts.lengths.expect({problem_id: row["mean_tokens"] for problem_id, row in rows.items()})
    parts = Parts(
        world=run.world,
        strategy=run.strategy,
        rollouts=run.rollouts,
        curriculum=practice.build_curriculum(config, [problem.id for problem in run.train], tiers),
        temperature=practice.build_temperature(config.temperature, num_steps=config.train.steps),
        stages=stages_of(config),
        problems={problem.id: problem for problem in run.train},
        profile_tokens=_profile_tokens(run),
        stock=_stock(run),
        reprofile=reprofile or partial(_reprofile, run),
        validation=run.validation,
        tracker=run.tracker,
        folder=run.folder,
        console=run.console,
        steerer=run.steerer,
        watching=watching_of(run),
    )
    return Trainer(parts, config, should_stop=run.should_stop, writer=writer)


def watching_of(run: Run) -> Watching:
    """What training watches, which the policy projects on from here on."""
    steerer, renews = run.steerer, run.config.persona.reextract_steers
    return Watching(
        run.watched,
        run.config.persona,
        policy=run.policy,
        pool=run.pool,
        world=run.world,
        seed=run.config.run.seed,
        max_error_fraction=run.config.reward.max_error_fraction,
        folder=run.folder.path / "persona",
        reextract=partial(_reextract, run),
        on_event=run.tracker.event,
        on_vectors=steerer.renew if renews and isinstance(steerer, Steerer) else lambda newest: None,
    )


def _profile_tokens(run: Run) -> int:
    """What the labels of the profile cost, problems without one included; 0 where no profile is asked for.

    Raises DataError where they are for another temperature than the one that practice begins with."""
    if not practice.needs_profile(run.config):
        return 0
    path, wanted = run.folder.profile / MANIFEST_FILE, practice.first_temperature(run.config)
    manifest = read_manifest(path, columns=[]) if run.world.is_main else None
    num_tokens, temperature = run.world.broadcast(
        (0, wanted) if manifest is None else (manifest.num_tokens, manifest.fingerprint["temperature"])
    )
    if temperature != wanted:
        raise DataError(
            f"{path}: its tiers are for the temperature {temperature}, and practice begins at {wanted}; "
            "`grpo profile --fresh` labels the problems again, or restore that temperature"
        )
    return num_tokens


def _stock(run: Run) -> Stock:
    """Groups that the profile drew, where there is one and training may take them."""
    if not practice.needs_profile(run.config) or not run.config.profile.reuse_steps or not run.world.is_main:
        return Stock.empty()
    manifest = read_manifest(run.folder.profile / MANIFEST_FILE, columns=[])
    root = Path(run.config.profile.folder or run.folder.profile)
    return Stock.opened(ProfileStore(root, fingerprint=manifest.fingerprint).folder)


def _profiled(run: Run) -> list[Problem]:
    """The training problems that have a tier."""
    config = run.config
    seed = torch_seed(config.run.seed, "profiled problems")
    return at_most(run.train, config.profile.max_problems or len(run.train), seed=seed)


def _reprofile(run: Run, step: int, temperature: float) -> Profile:
    """Tiers of the pool for the policy as it stands after `step` steps of training."""
    labelled = read_tiers(run)
    folder = run.folder.profile / f"step_{step:06d}"
    return profile_policy(
        run,
        [problem for problem in _profiled(run) if problem.id in labelled],  # others are not in the curriculum's pool
        folder=folder,
        store_folder=Path(run.config.profile.folder or folder),
        temperature=temperature,
        phase="reprofile",
        step=step,
        on_group=lambda group: None,
        # Asked to end, the run gives up what is being drawn, as in sampling, and saves what the last step left.
        may_stop=False,
    )


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
        max_error_fraction=run.config.reward.max_error_fraction,
    )


def _reextract(run: Run, trait: Trait, step: int) -> tuple[PersonaVectors, int]:
    """A trait's vectors with the policy as it stands after `step` steps, and the tokens drawn for them."""
    found = extract(run, trait, checkpoint=checkpoint.step_path(run.folder.checkpoints, step).name, step=step)
    return found, found.origin.num_tokens
