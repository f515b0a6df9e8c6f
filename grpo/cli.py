"""The command line: `grpo COMMAND CONFIG.yaml [section.key=value ...]`. Parses, runs, and gives every failure its name.

Exit codes are those of `grpo.errors`, 0 for success and 1 for a bug of ours (with its traceback)."""

import os
import sys
import warnings
from collections.abc import Sequence

from grpo.arguments import RUN_COMMANDS, parser
from grpo.commands import COMMANDS
from grpo.errors import Interrupted, RunError
from grpo.folder import RESUME, named_disk_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments_of = parser()
    arguments, others = arguments_of.parse_known_args(argv)
    # argparse takes positionals in one place only; overrides may stand behind an option too.
    foreign = [other for other in others if other.startswith("-") or "=" not in other or "overrides" not in arguments]
    if foreign:
        arguments_of.error(f"unrecognized arguments: {' '.join(foreign)}")
    if others:
        arguments.overrides += others
    # What transformers and trl will rename one day is no business of who starts a run.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    try:
        with named_disk_errors(then=RESUME if arguments.command in RUN_COMMANDS else "and try again"):
            COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
    except RunError as error:
        print(f"{_speaker(arguments.command)}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_speaker(arguments.command)}: stopped at once{_how_to_go_on(arguments.command)}", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # a reader such as head has seen enough; nor may Python's own last flush fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if arguments.command not in RUN_COMMANDS:
            return 0
        print(f"grpo {arguments.command}: nobody reads what it says{_how_to_go_on(arguments.command)}", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def _speaker(command: str) -> str:
    """Who says what a process ends with: several ranks write to one terminal."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return f"grpo {command}" if alone else f"grpo {command} (rank {os.environ.get('RANK', '?')})"


def _how_to_go_on(command: str) -> str:
    return "; --resume goes on from the last checkpoint" if command in RUN_COMMANDS else ""


if __name__ == "__main__":
    sys.exit(main())
