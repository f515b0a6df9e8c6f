"""What each command of the command line does: a config becomes a run, a file a report, and a failure keeps its name.

`COMMANDS` is the table; `grpo.arguments` says what can be typed."""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from grpo import persona_cli
from grpo.arguments import RUN_COMMANDS
from grpo.config import DistributedConfig, RunConfig, load, schema
from grpo.errors import ConfigError, OutOfMemoryError, says_out_of_memory
from grpo.folder import PHASES, Phase, RunFolder, Start

if TYPE_CHECKING:
    from grpo.starts import Run

SAME_SIGNAL_SECONDS = 1.0


def _run_phases(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    # The recipe answers for the whole folder: --fresh leaves no phase that this config has not.
    wanted = PHASES if arguments.command == "recipe" else (arguments.command,)
    start: Start = "resume" if arguments.resume else "fresh" if arguments.fresh else "new"
    with _opened(config, start=start, phases=wanted) as run:
        from grpo import recipe as phases

        if arguments.command == "recipe":
            phases.recipe(run)
        else:
            phases.PHASE_FUNCTIONS[arguments.command](run)
        if arguments.command == "eval":
            phases.run_report(run)
        if arguments.command in ("recipe", "eval"):
            run.console.results(run.folder.evals, report=run.folder.report)


def _persona(arguments: argparse.Namespace) -> None:
    if not persona_cli.needs_run(arguments):
        persona_cli.run_alone(arguments)
        return
    config = _config(arguments)
    persona_cli.check(arguments, config)
    # A second command beside the phases: it goes on with whatever the folder holds.
    with _opened(config, start="resume", phases=()) as run:
        persona_cli.run_in(run, arguments)


@contextmanager
def _opened(config: RunConfig, *, start: Start, phases: tuple[Phase, ...]) -> Iterator["Run"]:
    """The run of `config` on the ranks of the launcher, which a signal ends in order."""
    # Imported here, after the config is known to be good: torch takes seconds, and a typo should not cost them.
    from grpo.distributed import world as ranks
    from grpo.tracking.console import Console
    from grpo.wiring import opened

    with (
        _named_memory_errors(config),
        _stop_on_signals() as stop,
        ranks.opened(config.run.device, watchdog_seconds=config.watchdog.seconds) as world,
        opened(
            config,
            world=world,
            start=start,
            phases=phases,
            console=Console(num_steps=config.train.steps),
            should_stop=stop.is_asked,
            must_stop=lambda: stop.is_overdue(config.checkpoint.grace_seconds),
        ) as run,
    ):
        yield run


def _check(arguments: argparse.Namespace) -> None:
    if arguments.schema:
        print(json.dumps(schema(), indent=2))
        return
    if arguments.memory_gib is not None and not arguments.probe:
        raise ConfigError(f"--memory-gib {arguments.memory_gib:g}: bounds a probe; add --probe, or leave it out")
    config = _config(arguments)
    if arguments.probe:
        from grpo.probe import probe

        for line in probe(config, memory_gib=arguments.memory_gib):
            print(line, flush=True)  # each takes a while
    if arguments.time:
        if config.sampling.engine == "vllm" and config.sampling.vllm.mode == "server":
            raise ConfigError(
                "sampling.vllm.mode = 'server' and --time, which would hand weights to servers that may be in use; add "
                "'sampling.vllm={}', for an engine in this process, behind the config"
            )
        from grpo.pace import pace_lines

        for line in pace_lines(config, num_ranks=arguments.ranks):
            print(line, flush=True)
    if arguments.probe or arguments.time:
        return
    from grpo.check import deepspeed_json, derived

    for name, value in derived(config, num_ranks=arguments.ranks).items():
        print(f"{name:<58} {_shown(value)}")
    if config.distributed.strategy != "ddp":
        print(f"DeepSpeed's config:\n{deepspeed_json(config, num_ranks=arguments.ranks)}")


def _init(arguments: argparse.Namespace) -> None:
    from grpo.init import Wanted, init

    def ask(question: str, default: str) -> str:
        print(f"{question}{f' [{default}]' if default else ''}: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip() or default

    wanted = Wanted(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Wanted)})
    is_answered = sys.stdin.isatty() and sys.stderr.isatty()
    path = init(wanted, ask=ask if is_answered else None, say=lambda line: print(line, file=sys.stderr))
    print(f"{path} is written; grpo check {path} says what follows from it, grpo recipe {path} starts it")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _report(arguments: argparse.Namespace) -> None:
    from grpo.tracking.report import write_report

    try:
        print(write_report(*arguments.runs, output=arguments.output))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _dashboard(arguments: argparse.Namespace) -> None:
    from grpo.tracking.dashboard import serve

    serve(
        arguments.folder,
        host=arguments.host,
        port=arguments.port,
        say=lambda address: print(f"open {address} (Ctrl-C ends it)", flush=True),
    )


def _export(arguments: argparse.Namespace) -> None:
    if arguments.steer is None and (arguments.coefficient is not None or arguments.block is not None):
        raise ConfigError("--coefficient and --block are of --steer; name its file, or leave them out")
    from grpo.export import export
    from grpo.persona.folding import fold_of

    fold = None
    if arguments.steer is not None:
        fold = fold_of(arguments.steer, coefficient=arguments.coefficient, block=arguments.block)
    source = export(
        arguments.run,
        output=arguments.output,
        checkpoint_name=arguments.checkpoint,
        form=arguments.form,
        say=lambda text: print(text, file=sys.stderr),
        change=None if fold is None else fold.into,
    )
    if fold is not None:
        print(fold.said, file=sys.stderr)
    print(f"{source} is in {arguments.output}")


def _talk(arguments: argparse.Namespace) -> None:
    config = RunFolder(arguments.folder).config
    device = load(config).run.device if config.is_file() else "auto"

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    from grpo.distributed.world import device_of
    from grpo.talk import Conversation, converse, speaker_of

    speaker = speaker_of(arguments.folder, checkpoint_name=arguments.checkpoint, device=device_of(device), say=note)
    conversation = Conversation(
        speaker, temperature=arguments.temperature, seed=arguments.seed, limit_tokens=arguments.max_tokens
    )
    note(f"{speaker.name}, {conversation.steer(arguments.steer)}")
    note(
        "/help lists the commands"
        if speaker.remembers
        else "each line is a prompt of its own; /help lists the commands"
    )
    converse(conversation, _typed_lines(), say=lambda text: print(text, flush=True))


def _typed_lines() -> Iterator[str]:
    """Lines of standard input, with a prompt where a person types them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _replay(arguments: argparse.Namespace) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("replay is for one process, whatever the number of ranks of the run; start it by itself")
    folder = RunFolder(arguments.run)
    # What a rank computes is the same under every strategy, up to rounding.
    config = folder.read_config(arguments.overrides).model_copy(update={"distributed": DistributedConfig()})

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    from grpo.distributed import world as ranks
    from grpo.replay import check_engine, find, lines, replay
    from grpo.tracking.console import Console
    from grpo.wiring import looked_at

    check_engine(config, folder, overrides=arguments.overrides)
    asked = find(folder, step=arguments.step, problem=arguments.problem, attempt=arguments.index, say=say)
    console = Console(num_steps=config.train.steps)
    console.be_quiet()
    with (
        _named_memory_errors(config, then="Then replay with it behind INDEX"),
        ranks.opened(config.run.device, watchdog_seconds=config.watchdog.seconds) as world,
        looked_at(config, folder.path, world=world, console=console) as run,
    ):
        replayed = replay(run, asked, say=say)
    for line in lines(replayed):
        print(line)
    replayed.check()


def _score(arguments: argparse.Namespace) -> None:
    from grpo.scoring import score_file

    score_file(
        arguments.reward,
        arguments.file,
        output=arguments.output,
        options_json=arguments.options,
        workers=arguments.workers,
        timeout_seconds=arguments.timeout_seconds,
        memory_limit_mb=arguments.memory_limit_mb,
    )


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    **dict.fromkeys(RUN_COMMANDS, _run_phases),
    "check": _check,
    "dashboard": _dashboard,
    "export": _export,
    "init": _init,
    "persona": _persona,
    "replay": _replay,
    "report": _report,
    "score": _score,
    "talk": _talk,
}


def _config(arguments: argparse.Namespace) -> RunConfig:
    if arguments.config is None:
        raise ConfigError("name the run's YAML file, such as configs/quickstart.yaml")
    return load(arguments.config, arguments.overrides)


class _Stop:
    """Whether a signal has asked this process to end, and since when."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def ask(self) -> None:
        self._asked_at = time.monotonic()

    def is_asked(self) -> bool:
        return self._asked_at is not None

    def is_overdue(self, grace_seconds: float) -> bool:
        return self._asked_at is not None and time.monotonic() - self._asked_at >= grace_seconds


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """Let the first Ctrl-C or SIGTERM end the step and save; a second Ctrl-C ends at once.

    A second SIGTERM does not, nor, under a launcher, does a Ctrl-C that comes with the first: launchers hand on to
    their processes what a cluster or a terminal has sent them already."""
    stop = _Stop()
    same_seconds = 0.0 if os.environ.get("WORLD_SIZE", "1") == "1" else SAME_SIGNAL_SECONDS

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_asked():
            if number == signal.SIGINT and stop.is_overdue(same_seconds):
                raise KeyboardInterrupt
            return
        stop.ask()
        # Not print: a signal may arrive in the middle of one, and a buffer is not written to twice at once.
        os.write(2, b"\nstopping after this step, and saving; press Ctrl-C again to stop at once\n")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _named_memory_errors(config: RunConfig, *, then: str = "Then add --resume") -> Iterator[None]:
    """Give running out of memory its name and the numbers to lower; torch has many ways of saying it."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or says_out_of_memory(error)):
            raise
        raise OutOfMemoryError(
            f"out of memory ({str(error)[:200] or type(error).__name__}). While sampling, lower sampling.max_rows "
            f"({config.sampling.max_rows}); while training, lower train.tokens_per_micro_batch "
            f"({config.train.tokens_per_micro_batch}) or set model.activation_checkpointing=true; in the cold start, "
            f"lower sft.micro_batch_size. {then}"
        ) from error
