"""The phase eval: every policy that the config names, on the held-out problems and the other sets."""

from pathlib import Path

from grpo import checkpoint
from grpo.errors import CheckpointError, Interrupted
from grpo.evaluation import evaluate
from grpo.folder import named_disk_errors, write_json
from grpo.starts import CPU, Run, load_start, newest_checkpoint


def run_eval(run: Run) -> None:
    """Evaluate each of evaluation.checkpoints, one file in evals/ each."""
    run.folder.mark("eval", finished=False)
    run.tracker.forget_events("evaluation")
    config = run.config.evaluation
    for name in config.checkpoints:
        if run.should_stop():
            raise Interrupted("stopped during the evaluation, which begins again: add --resume")
        step = load_checkpoint(run, name)
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


def load_checkpoint(run: Run, name: str) -> int:
    """Put the policy that evaluation.checkpoints calls `name` in place; returns its step, 0 before training."""
    if name == "start":
        load_start(run)
        return 0
    newest = newest_checkpoint(run, "eval")
    if newest is None:
        run.console.say("eval: no checkpoint of a training, so the final policy is the one that training starts from")
        load_start(run)
        return 0
    path = run.world.broadcast(_best(run) or newest) if name == "best" else newest
    weights, _, _ = checkpoint.load(path, device=CPU)
    run.strategy.load_weights(weights)
    run.rollouts.load_weights()
    run.console.say(f"eval: the final policy is {path}")
    return int(path.name.split("_")[1])


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
