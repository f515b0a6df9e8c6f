"""`grpo persona ...`: its arguments, and what each command reads, does and prints. docs/persona.md is the manual.

Needs no torch before a command has a run: a typo should not cost the seconds that its import takes."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.config import RunConfig, load
from grpo.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from grpo.starts import Run

AddConfig = Callable[[argparse.ArgumentParser], None]


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", *, add_config: AddConfig) -> None:
    """Add the group `persona` to the commands. `add_config` adds the config's own arguments."""
    group = commands.add_parser("persona", help="vectors of traits: extract, sweep, screen, project, draft")
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    extract = actions.add_parser("extract", help="a trait's vectors from contrastive rollouts")
    add_config(extract)
    extract.add_argument("--trait", required=True, help="a shipped trait's name, or a YAML file")
    _add_checkpoint(extract)
    extract.add_argument("--output", type=Path, help="the file to write (persona/TRAIT.safetensors of the run)")
    extract.add_argument("--fresh", action="store_true", help="extract again where the output is of another policy")
    sweep = actions.add_parser("sweep", help="what steering does, by block and coefficient, and which to take")
    add_config(sweep)
    _add_vectors(sweep)
    sweep.add_argument("--blocks", type=int, nargs="+", default=(), help="blocks to try (all, or 8 evenly spaced)")
    sweep.add_argument(
        "--coefficients", type=float, nargs="+", default=(), help="of the unnormalised vector (-4 -2 -1 1 2 4)"
    )
    sweep.add_argument(
        "--problems", type=int, default=64, help="validation problems that accuracy is taken on; 0 leaves it out (64)"
    )
    screen = actions.add_parser("screen", help="rank a data set's rows by how far they would push the policy")
    add_config(screen)
    _add_vectors(screen)
    _add_block(screen)
    screen.add_argument("--data", required=True, help="sft (the config's traces), a file, a folder or a hub id")
    screen.add_argument("--completion", help="a row's answer, a template of its columns such as '{trace}'")
    screen.add_argument("--flag-fraction", type=float, default=0.1, help="share of the rows that is flagged (0.1)")
    screen.add_argument("--own-rollouts", type=int, default=4, help="answers of the policy to each prompt (4)")
    screen.add_argument("--score", action="store_true", help="have the trait's scorer judge the rows' answers as well")
    project = actions.add_parser("project", help="projections of a file of conversations")
    # Not add_config: an optional config would leave its place to the file.
    project.add_argument("config", type=Path, help="the run's YAML file")
    project.add_argument("file", type=Path, help='JSON lines: {"messages": [...]}')
    project.add_argument("overrides", nargs="*", metavar="section.key=value", help="fields to change, in YAML")
    _add_vectors(project)
    _add_block(project)
    project.add_argument("--output", type=Path, help="the file to write (persona/VECTORS_on_FILE.jsonl of the run)")
    draft = actions.add_parser("draft", help="a new trait's file, written by the judge's model")
    draft.add_argument("name", help="of the trait: small letters, digits and _")
    draft.add_argument("description", help="what the trait is, in a sentence or two")
    draft.add_argument("--output", type=Path, required=True, help="the YAML file to write; not there yet")
    draft.add_argument("--config", type=Path, help="a run's YAML file, whose persona.judge is asked")
    draft.add_argument("--judge", default="{}", help="options of the judge, as JSON, over those of --config")


def needs_run(arguments: argparse.Namespace) -> bool:
    """Whether the command has a config, and so a run."""
    return str(arguments.action) != "draft"


def check(arguments: argparse.Namespace, config: RunConfig) -> None:
    """Raises ConfigError for a trait or a scorer that cannot be had, and for draws that the engine cannot steer, before
    a model is loaded."""
    is_steered = arguments.action == "sweep" or (arguments.action != "extract" and arguments.allow_other_model)
    if is_steered and config.sampling.engine == "vllm":
        what = "grpo persona sweep" if arguments.action == "sweep" else "--allow-other-model"
        raise ConfigError(
            f"sampling.engine = 'vllm' and {what}, which steers what it draws: vLLM steers no draws; add "
            "run.name=ANOTHER sampling.engine=native 'sampling.vllm={}' behind the config and name the policy by "
            "--checkpoint PATH"
        )
    if arguments.action == "extract":
        from grpo.persona.asking import judge_of
        from grpo.persona.traits import load_trait

        judge_of(load_trait(arguments.trait), config)


def run_alone(arguments: argparse.Namespace) -> None:
    """A command without a run. Raises ConfigError for options that are none, and as the command."""
    from grpo.persona_commands.draft import run_draft

    try:
        options = json.loads(arguments.judge)
    except ValueError as error:
        raise ConfigError(f"--judge = {arguments.judge!r}: must be a JSON object ({error})") from error
    if not isinstance(options, dict):
        raise ConfigError(f"--judge = {arguments.judge!r}: must be a JSON object")
    of_config = {} if arguments.config is None else load(arguments.config).persona.judge
    run_draft(
        arguments.name,
        arguments.description,
        output=arguments.output,
        judge={**of_config, **options},
        say=lambda text: print(text, flush=True),
    )


def run_in(run: "Run", arguments: argparse.Namespace) -> None:
    """A command in its run; what one that is stopped in the middle of sampling says is said here."""
    from grpo.rollout import GaveUp

    try:
        _ACTIONS[arguments.action](run, arguments)
    except GaveUp:
        raise Interrupted(
            "stopped in the middle of sampling; what was written before is kept: give the same command again to go on"
        ) from None


def _extract(run: "Run", arguments: argparse.Namespace) -> None:
    from grpo.persona.traits import load_trait
    from grpo.persona_commands.extract import run_extract

    run_extract(
        run,
        load_trait(arguments.trait),
        checkpoint=arguments.checkpoint,
        output=arguments.output,
        is_fresh=arguments.fresh,
    )


def _sweep(run: "Run", arguments: argparse.Namespace) -> None:
    from grpo.persona_commands.sweep import run_sweep

    run_sweep(
        run,
        arguments.vectors,
        checkpoint=arguments.checkpoint,
        blocks=arguments.blocks,
        coefficients=arguments.coefficients,
        over=arguments.over,
        num_problems=arguments.problems,
        allow_other=arguments.allow_other_model,
    )


def _screen(run: "Run", arguments: argparse.Namespace) -> None:
    from grpo.persona_commands.screen import Screening, run_screen

    run_screen(
        run,
        arguments.vectors,
        arguments.data,
        completion=arguments.completion,
        checkpoint=arguments.checkpoint,
        block=arguments.block,
        screening=Screening(
            block=0,
            over=arguments.over,
            flag_fraction=arguments.flag_fraction,
            own_rollouts=arguments.own_rollouts,
            scores=arguments.score,
        ),
        allow_other=arguments.allow_other_model,
    )


def _project(run: "Run", arguments: argparse.Namespace) -> None:
    from grpo.persona_commands.project import run_project

    run_project(
        run,
        arguments.vectors,
        arguments.file,
        checkpoint=arguments.checkpoint,
        block=arguments.block,
        over=arguments.over,
        allow_other=arguments.allow_other_model,
        output=arguments.output,
    )


def _add_block(command: argparse.ArgumentParser) -> None:
    command.add_argument("--block", type=int, help="the block to read at (the sweep's, or that at 0.55 of the depth)")


def _add_vectors(command: argparse.ArgumentParser) -> None:
    command.add_argument("--vectors", required=True, help="a file of vectors, or its name in the run's persona folder")
    command.add_argument(
        "--over", choices=("response", "prompt", "last_prompt"), default="response", help="which of its vectors"
    )
    command.add_argument(
        "--allow-other-model",
        action="store_true",
        help="take vectors of another policy of the same shape, and measure how far they carry",
    )
    _add_checkpoint(command)


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", default="start", help="the policy: start, last, best, step_000100 or a checkpoint's folder"
    )


_ACTIONS: dict[str, Callable[["Run", argparse.Namespace], None]] = {
    "extract": _extract,
    "sweep": _sweep,
    "screen": _screen,
    "project": _project,
}
