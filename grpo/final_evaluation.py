"""The phase eval: every policy that the config names, on the held-out problems and the other sets.

Each pair of a policy and a set is scored once and kept in evals/<policy>.json with what it rests on; asked again, the
phase scores what is not there yet, and what rests on something else. So a killed evaluation goes on, and one that is
asked for another checkpoint or set adds it. At the end every policy in evals/ is compared with the first that is asked
for."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo import checkpoint
from grpo.config import RunConfig
from grpo.errors import CheckpointError, ConfigError, Interrupted
from grpo.evaluation import Groupings, ProblemScore, by_column, compare, evaluate
from grpo.evaluation_sets import judge_of
from grpo.fingerprints import judge_print
from grpo.folder import RunFolder, named_disk_errors, write_json
from grpo.persona.applied import switched
from grpo.persona.steerer import Steerer
from grpo.practice import first_temperature
from grpo.starts import CPU, Run, load_start, newest_checkpoint, profile_policy
from grpo.steering import Steering
from grpo.tracking.evaluations import in_order

STEERED = "_steered"
"""Ends the name of a policy that was scored under the section steering."""
NOT_TIERED = "without a tier"
PHASE_OF_TIERS = "evaluation profile"
"""Of the noise key of the rollouts that sort held-out problems into tiers: no score is made of them."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A policy to evaluate: the name of its file in evals/, where it lies (None: where training starts from)."""

    name: str
    path: Path | None
    step: int
    policy: str  # the checksum of its weights
    is_steered: bool = False


def run_eval(run: Run) -> None:
    """Evaluate each of evaluation.checkpoints on each set, one file in evals/ a policy."""
    policies = find_policies(run)
    policies += [_steered(run, policy) for policy in policies if run.config.evaluation.steered]
    run.folder.mark("eval", finished=False)
    groupings = _groupings(run)
    recorded = [_recorded(run, policy) for policy in policies]
    for policy, report in zip(policies, recorded, strict=True):
        _evaluate(run, policy, report, groupings=groupings)
    if run.world.is_main:
        _compare_all(run, recorded[0], groupings=groupings)
    _log(run)
    run.folder.mark("eval", finished=True)


def is_evaluated(run: Run) -> bool:
    """Whether evals/ has a file of every policy that the config names, with every set as the config asks for it and
    its difference from the first policy. For the main rank.

    Whether a policy is still the one that was scored is not asked: training that goes on takes the phase's mark."""
    names = [file_name(name) for name in run.config.evaluation.checkpoints]
    names += [name + STEERED for name in names if run.config.evaluation.steered]
    files = [run.folder.evals / f"{name}.json" for name in names]
    if not all(file.is_file() for file in files):
        return False
    wanted = {set_name: _rests_on(run, set_name) for set_name in run.sets}
    for name, file in zip(names, files, strict=True):
        held = _read(file)["sets"]
        for set_name, digest in wanted.items():
            of_set = held.get(set_name, {})
            reference = of_set.get("against", {}).get("name")
            if of_set.get("rests_on") != digest or reference != (None if name == names[0] else names[0]):
                return False
    return True


def file_name(name: str) -> str:
    """What the file in evals/ is called, without its ending: a step's or a policy's name is its own.

    A path becomes the names of its run and its checkpoint, and a hash of the whole, so that no two are one."""
    if _is_own(name):
        return name
    path = Path(name).resolve()
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", f"{path.parent.parent.name}-{path.name}").lstrip(".-")
    return f"{readable}-{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"


def check_names(config: RunConfig, folder: RunFolder, *, is_fresh: bool) -> None:
    """Raises ConfigError for one of evaluation.checkpoints that the end of the run's training will not leave.

    It is for who has the training before them. Where that is finished, what `folder` holds can be named as well;
    `is_fresh` says that it will be deleted."""
    is_trained = folder.begun().get("train", False) and not is_fresh
    for name in config.evaluation.checkpoints:
        path = folder.checkpoints / name if _is_own(name) else Path(name)
        if name in ("start", "last", "best") or (
            (path / checkpoint.MANIFEST).is_file() and (is_trained or not _is_own(name))
        ):
            continue
        fault = _fault_of_step(config, name) if _is_own(name) else f"there is no {path / checkpoint.MANIFEST}"
        if fault:
            last = checkpoint.step_path(folder.checkpoints, config.train.steps).name
            raise ConfigError(
                f"evaluation.checkpoints: {name!r} will be no checkpoint ({fault}); name start, last, best, a step "
                f"such as {last} or the folder of a checkpoint"
            )


def _fault_of_step(config: RunConfig, name: str) -> str:
    """What keeps a step from being among the run's checkpoints when its training ends; empty when nothing does."""
    step, steps, every = int(name.removeprefix("step_")), config.train.steps, config.checkpoint.every_steps
    canonical = checkpoint.step_path(Path(), step).name
    if name != canonical:
        return f"that step is called {canonical}"
    if not 1 <= step <= steps:
        return f"training has the steps 1 to {steps}, by train.steps"
    ends_early = _may_end_early(config)
    if step % every and (step != steps or ends_early):
        return f"steps are saved every {every}, by checkpoint.every_steps, and the last one"
    saved = sorted({*range(every, steps + 1, every), steps})
    if step not in saved[-config.checkpoint.keep_last :] and not ends_early:
        return (
            f"it is deleted before training ends, which leaves checkpoint.keep_last = {config.checkpoint.keep_last}: "
            f"raise that to {len(saved) - saved.index(step)}"
        )
    return ""


def _may_end_early(config: RunConfig) -> bool:
    """Whether the last step may be another than train.steps."""
    stages = config.curriculum.stages if config.curriculum.kind == "two_stages" else []
    curriculum_ends = any(
        stage.steps is not None or stage.until_plateau or stage.until_trivial_fraction is not None
        for stage in stages[-1:]
    )
    return curriculum_ends or config.train.max_tokens is not None or config.evaluation.patience is not None


def find_policies(run: Run, names: Sequence[str] = (), *, field: str = "evaluation.checkpoints") -> list[Evaluated]:
    """What `names`, or evaluation.checkpoints, names, all of it, before any is scored. The main rank looks, for all.

    Raises CheckpointError, with `field`, for a name that is none, and a folder that is no checkpoint."""
    names = names or run.config.evaluation.checkpoints
    newest = newest_checkpoint(run, "eval") if {"last", "best"} & set(names) else None
    found, fault = run.world.broadcast(_found(run, names, newest, field) if run.world.is_main else ([], ""))
    if fault:
        raise CheckpointError(fault)
    policies: list[Evaluated] = found
    return policies


def _is_own(name: str) -> bool:
    return name in ("start", "last", "best") or re.fullmatch(r"step_\d+", name) is not None


def _found(run: Run, names: Sequence[str], newest: Path | None, field: str) -> tuple[list[Evaluated], str]:
    try:
        return [_policy(run, name, newest, field) for name in names], ""
    except CheckpointError as error:
        return [], str(error)


def _policy(run: Run, name: str, newest: Path | None, field: str) -> Evaluated:
    path = _path(run, name, newest, field)
    if path is None:
        is_made = run.config.sft is not None and (run.cold_start_path / checkpoint.MANIFEST).is_file()
        return Evaluated(name, path=None, step=0, policy=_weights_sum(run.cold_start_path) if is_made else "base")
    step = re.search(r"_(\d+)$", path.name)
    return Evaluated(file_name(name), path, step=int(step[1]) if step else 0, policy=_weights_sum(path))


def _weights_sum(path: Path) -> str:
    """The checksum of a checkpoint's weights, as it stands in there. Raises CheckpointError."""
    try:
        return str(json.loads((path / checkpoint.MANIFEST).read_bytes())[checkpoint.WEIGHTS])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: {checkpoint.MANIFEST} was altered after it was written; name another"
        ) from error


def _path(run: Run, name: str, newest: Path | None, field: str) -> Path | None:
    """The checkpoint's folder; None for the policy that training starts from."""
    if name == "start":
        return None
    if name in ("last", "best"):
        if newest is None:
            run.console.say(f"eval: no checkpoint of a training, so {name} is the policy that training starts from")
        return (_best(run) or newest) if name == "best" else newest
    path = run.folder.checkpoints / name if _is_own(name) else Path(name)
    if not (path / checkpoint.MANIFEST).is_file():
        steps = ", ".join(step.name for _, step in checkpoint.steps(run.folder.checkpoints)) or "none"
        raise CheckpointError(
            f"{field}: {name!r} is no checkpoint (there is no {path / checkpoint.MANIFEST}); name "
            f"start, last, best, a step that is kept ({steps}; checkpoint.keep_last) or the folder of one"
        )
    return path


def _steered(run: Run, policy: Evaluated) -> Evaluated:
    """The policy as it acts under the section steering: another one, with a file of its own."""
    steering = _steering(run)
    vectors = {block: vector.tolist() for block, vector in steering.vectors.items()}
    how = _digest(json.dumps([vectors, steering.coefficient, steering.kind, steering.positions]).encode())
    return replace(policy, name=policy.name + STEERED, policy=f"{policy.policy}, steered {how}", is_steered=True)


def _steering(run: Run) -> Steering:
    assert isinstance(run.steerer, Steerer)  # evaluation.steered has the section read
    return run.steerer.steering_of_evaluation()


def _best(run: Run) -> Path | None:
    """The best policy's checkpoint, where it is whole; says where it is not."""
    found = sorted(run.folder.checkpoints.glob("best_*"))
    if not found:
        return None
    try:
        checkpoint.check(found[-1])
    except CheckpointError as error:
        run.console.say(f"eval: {error}; the newest step is evaluated instead")
        return None
    return found[-1]


def load_policy(run: Run, policy: Evaluated, *, field: str = "evaluation.checkpoints", speaker: str = "eval") -> None:
    """Put the policy in place, and say which it is. Raises CheckpointError, with `field`, where it is torn, or of
    another model."""
    if policy.path is None:
        load_start(run)
        return
    weights, _, _ = checkpoint.load(policy.path, device=CPU)
    try:
        run.strategy.load_weights(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{field}, {policy.path}: {error}") from error
    run.rollouts.load_weights()
    run.console.say(f"{speaker}: {policy.name} is {policy.path}")


def _groupings(run: Run) -> dict[str, Groupings]:
    """For each set the ways in which its tables are split. A set whose rows have no such column is not split by it."""
    config = run.config.evaluation
    found: dict[str, dict[str, Mapping[str, str]]] = {name: {} for name in run.sets}
    for name, problems in run.sets.items():
        if config.by_column is not None and any(config.by_column in problem.meta for problem in problems):
            found[name][config.by_column] = by_column(problems, config.by_column)
    if config.by_tier:
        found["heldout"]["tier"] = _tiers(run)
    return {name: dict(of_set) for name, of_set in found.items()}


def _tiers(run: Run) -> dict[str, str]:
    """Each held-out problem's tier for the policy that training starts from, by a profile with noise of its own.

    Labels made of the rollouts that are scored would flatter whoever was lucky in them."""
    load_start(run)
    run.console.say("eval: profiling the held-out problems for evaluation.by_tier")
    folder = run.folder.profile / "heldout"
    result = profile_policy(
        run,
        run.heldout,
        folder=folder,
        store_folder=folder,
        temperature=first_temperature(run.config),
        on_group=lambda group: None,
        phase=PHASE_OF_TIERS,
    )
    return {problem.id: str(result.tiers.get(problem.id, NOT_TIERED)) for problem in run.heldout}


def _recorded(run: Run, policy: Evaluated) -> dict[str, Any]:
    """What evals/ holds of the policy already, on every rank; nothing where its file is of another one."""
    file = run.folder.evals / f"{policy.name}.json"
    empty = {"name": policy.name, "step": policy.step, "policy": policy.policy, "sets": {}}
    held = _read(file) if run.world.is_main and file.is_file() else empty
    recorded: dict[str, Any] = run.world.broadcast(held if held.get("policy") == policy.policy else empty)
    return recorded


def _evaluate(run: Run, policy: Evaluated, report: dict[str, Any], *, groupings: Mapping[str, Groupings]) -> None:
    """Score the policy on the sets that `report` lacks, or has otherwise, and write it after each."""
    config = run.config.evaluation
    wanted = {name: _rests_on(run, name) for name in run.sets}
    missing = [name for name in run.sets if report["sets"].get(name, {}).get("rests_on") != wanted[name]]
    if len(missing) < len(wanted):
        kept = ", ".join(name for name in wanted if name not in missing)
        run.console.say(f"eval: {policy.name} on {kept}: scored before, in {run.folder.evals}")
    for number, name in enumerate(missing):
        if run.should_stop():
            raise Interrupted(
                f"stopped during the evaluation; what is scored is in {run.folder.evals}: add --resume to go on"
            )
        if number == 0:
            load_policy(run, policy)
        judge = judge_of(run.config, name)
        with switched(run.rollouts.steer, _steering(run) if policy.is_steered else None):
            result = evaluate(
                run.rollouts,
                run.sets[name],
                num_rollouts=config.rollouts_per_problem,
                temperature=config.temperature,
                k=config.k,
                max_error_fraction=judge.max_error_fraction,
                success_threshold=judge.success_threshold,
                groupings=groupings[name],
                place=f"evaluation of {policy.name} on {name}",
            )
        report["temperature"] = result.temperature
        report["sets"][name] = result.report() | {"rests_on": wanted[name]}
        names = dict.fromkeys([*run.sets, *report["sets"]])
        report["sets"] = {known: report["sets"][known] for known in names if known in report["sets"]}
        report["num_tokens"] = sum(of_set["num_tokens"] for of_set in report["sets"].values())
        _write(run, policy, report)


def _rests_on(run: Run, name: str) -> str:
    """A hash of all that a set's scores and tables follow from, the policy aside."""
    config, evaluation, problems = run.config, run.config.evaluation, run.sets[name]
    parts = {
        # Rows with their columns: a judge may read any, and tables are split by one.
        "problems": [[problem.id, problem.answer, problem.meta] for problem in problems],
        "judge": judge_print(judge_of(config, name)),
        "rollouts": [evaluation.rollouts_per_problem, evaluation.temperature, evaluation.k],
        "sampling": config.sampling.model_dump(mode="json", exclude={"max_rows", "prefill_tokens", "vllm"}),
        "seed": config.run.seed,
        "column": evaluation.by_column if any(evaluation.by_column in problem.meta for problem in problems) else None,
        "tiers": _tiers_rest_on(run) if evaluation.by_tier and name == "heldout" else None,
    }
    return _digest(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))


def _tiers_rest_on(run: Run) -> list[Any]:
    """What labels of held-out problems follow from, the policy that training starts from and the judge aside."""
    rules = {"first_rollouts", "max_rollouts", "relabel_rollouts", "trivial_rate"}
    return [run.config.profile.model_dump(mode="json", include=rules), first_temperature(run.config)]


def _compare_all(run: Run, first: Mapping[str, Any], *, groupings: Mapping[str, Groupings]) -> None:
    """Put into every file of evals/ by how much each set's scores differ from those of the first policy.

    A set that this evaluation was not asked for, or that the first policy was scored on otherwise, has no difference:
    one from an earlier reference would stand beside these and look like them."""
    config = run.config.evaluation
    for path in sorted(run.folder.evals.glob("*.json")):
        report = _read(path)
        for name, of_set in report["sets"].items():
            of_set.pop("against", None)
            if name not in run.sets or report["name"] == first["name"]:
                continue
            other = first["sets"][name]
            if of_set.get("rests_on") != other["rests_on"]:
                continue
            compared = compare(
                _problem_scores(of_set),
                _problem_scores(other),
                num_rollouts=config.rollouts_per_problem,
                k=config.k,
                groupings=groupings[name],
            )
            of_set["against"] = {"name": first["name"], **compared}
        write_json(path, report)


def _problem_scores(of_set: Mapping[str, Any]) -> dict[str, ProblemScore]:
    return {problem_id: ProblemScore(**fields) for problem_id, fields in of_set["problems"].items()}


def _write(run: Run, policy: Evaluated, report: Mapping[str, Any]) -> None:
    if run.world.is_main:
        with named_disk_errors(run.folder.evals):
            run.folder.evals.mkdir(exist_ok=True)
        write_json(run.folder.evals / f"{policy.name}.json", report)


def _log(run: Run) -> None:
    """The scores of all that evals/ holds as events, in the place of those of an earlier evaluation."""
    if not run.world.is_main:
        return
    run.tracker.forget_events("evaluation")
    for report in in_order([_read(path) for path in sorted(run.folder.evals.glob("*.json"))]):
        scores = {
            f"eval/{name}/{metric}": estimate["value"]
            for name, of_set in report["sets"].items()
            for metric, estimate in of_set["metrics"].items()
        }
        run.tracker.event(report["step"], "evaluation", {"name": report["name"], **scores})


def _read(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
