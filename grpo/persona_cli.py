"""`grpo persona ...`: its arguments, and what each command reads, does and prints. docs/persona.md is the manual.

Needs no torch before a command has a run: a typo should not cost the seconds that its import takes."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.errors import Interrupted

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


def needs_run(arguments: argparse.Namespace) -> bool:
    """Whether the command has a config, and so a run."""
    return str(arguments.action) != "draft"


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError or DataError for files that cannot be read, before anything is loaded."""
    if arguments.action == "extract":
        from grpo.persona.traits import load_trait

        load_trait(arguments.trait)


def run_alone(arguments: argparse.Namespace) -> None:
    """A command without a run."""
    raise AssertionError(arguments.action)


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


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", default="start", help="the policy: start, last, best, step_000100 or a checkpoint's folder"
    )


_ACTIONS: dict[str, Callable[["Run", argparse.Namespace], None]] = {"extract": _extract}
