"""The command line: `grpo COMMAND CONFIG.yaml [section.key=value ...]`. Parses, runs, and gives every failure its name.

Exit codes are those of `grpo.errors`, 0 for success and 1 for a bug of ours (with its traceback)."""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from grpo import persona_cli
from grpo.config import DistributedConfig, RewardConfig, RunConfig, load, schema
from grpo.errors import ConfigError, Interrupted, OutOfMemoryError, RunError, says_out_of_memory
from grpo.folder import PHASES, RESUME, Phase, RunFolder, Start, named_disk_errors

if TYPE_CHECKING:
    from grpo.starts import Run

RUN_COMMANDS = {
    "recipe": "the whole of it: cold start, profile, two-stage training, evaluation, report",
    "sft": "the cold start alone: supervised steps on traces until the gate on pass@1",
    "profile": "pass@8, then up to pass@512 where needed, into tiers; goes on where it was killed",
    "train": "the loop alone, from the cold start or the model of the config",
    "eval": "pass@k and avg@k with intervals on the held-out problems",
}
INIT_OPTIONS = {
    "model": "hub id or folder of a pretrained model",
    "data": "rows to practise: hub id, folder, .jsonl, .parquet or task:NAME",
    "reward": "a reward's name, such as math_answer, or FILE.py:FUNCTION",
    "options": "options of the reward, as JSON",
    "heldout": "rows of the final evaluation (the test split beside, or some of --data)",
    "subset": "name of the configuration of a hub data set that has several",
    "split": "split to practise (train)",
    "heldout_split": "split of the final evaluation",
    "prompt_column": "column with the prompt, as text or as messages",
    "answer_column": "column with the right answer",
    "name": "name of the run's folder (that of the config)",
}
SAME_SIGNAL_SECONDS = 1.0
EPILOG = """exit codes:
  0 success                  5 the cold start missed its gate      9 disk full or not writable
  1 a bug of ours            6 too many verifier failures         10 no usable checkpoint
  2 config or command line   7 too many non-finite updates        11 a replayed rollout differs
  3 data                     8 out of memory                      75 a rank hung or died: try --resume
  4 run folder in use, or it holds another run                   130 interrupted, saved

examples:
  grpo init my_run.yaml --model Qwen/Qwen3-0.6B --data problems.jsonl --reward math_answer
  grpo recipe configs/quickstart.yaml
  grpo recipe configs/quickstart.yaml run.name=hot temperature.value=1.2
  grpo train configs/gsm8k_qwen3_0.6b.yaml --resume
  grpo check configs/gsm8k_qwen3_0.6b.yaml
  grpo check configs/gsm8k_qwen3_0.6b.yaml --ranks 8
  grpo check configs/gsm8k_qwen3_0.6b.yaml --probe --time
  grpo export runs/gsm8k_qwen3_0.6b --checkpoint best --output exported
  grpo replay runs/gsm8k_qwen3_0.6b 120 3fa2 0
  grpo talk runs/gsm8k_qwen3_0.6b --steer sycophancy=-1
  grpo score math_answer completions.jsonl
  grpo persona extract configs/persona_list_machine.yaml --trait upper_case
  grpo report runs/quickstart runs/hot
  grpo dashboard runs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    arguments, others = parser.parse_known_args(argv)
    # argparse takes positionals in one place only; overrides may stand behind an option too.
    foreign = [other for other in others if other.startswith("-") or "=" not in other or "overrides" not in arguments]
    if foreign:
        parser.error(f"unrecognized arguments: {' '.join(foreign)}")
    if others:
        arguments.overrides += others
    # What transformers and trl will rename one day is no business of who starts a run.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    try:
        with named_disk_errors(then=RESUME if arguments.command in RUN_COMMANDS else "and try again"):
            _COMMANDS[arguments.command](arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grpo",
        description="KL-free GRPO with difficulty tiers, driven by one YAML file a run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in RUN_COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        _add_config(command)
        start = command.add_mutually_exclusive_group()
        start.add_argument("--resume", action="store_true", help="go on with what the run's folder holds")
        start.add_argument("--fresh", action="store_true", help="delete this phase and later ones, and start again")
        # The deepspeed launcher adds it; LOCAL_RANK, which it sets as well, is what is read.
        command.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    check = commands.add_parser("check", help="validate a config and print everything derived from it")
    _add_config(check)
    check.add_argument("--schema", action="store_true", help="print the JSON schema of a config instead, for editors")
    check.add_argument(
        "--ranks",
        type=_positive(int),
        default=int(os.environ.get("WORLD_SIZE", "1")),
        help="ranks of the memory estimate (WORLD_SIZE of the launcher, or 1)",
    )
    check.add_argument(
        "--probe", action="store_true", help="find the train.tokens_per_micro_batch that fits, by training with it"
    )
    check.add_argument(
        "--time", action="store_true", help="measure this machine for some seconds, and tell the time of a step"
    )
    check.add_argument(
        "--memory-gib", type=_positive(float), help="memory that a probe may take (all that the device has left)"
    )
    _add_init(commands.add_parser("init", help="write a commented config for a model, rows and a reward, checked"))
    export = commands.add_parser("export", help="write a checkpoint as a Hugging Face folder")
    export.add_argument("run", type=Path, help="a run's folder, such as runs/quickstart")
    export.add_argument("--output", type=Path, required=True, help="the folder to write; not there yet, or empty")
    export.add_argument("--checkpoint", help="best, cold_start, step_000100 or a path (the newest whole step)")
    form = export.add_mutually_exclusive_group()
    form.add_argument(
        "--merged", action="store_const", const="merged", dest="form", help="add adapters into the model (the default)"
    )
    form.add_argument(
        "--adapter", action="store_const", const="adapter", dest="form", help="write adapters alone, for peft"
    )
    export.add_argument(
        "--steer",
        type=Path,
        metavar="VECTORS",
        help="fold a trait's vector into the weights: steering at all positions",
    )
    export.add_argument("--coefficient", type=float, help="signed factor of the vector (what a sweep recommended)")
    export.add_argument("--block", type=int, help="the block whose output it is added to (what a sweep recommended)")
    replay = commands.add_parser(
        "replay", help="draw a rollout of a run again, and show where it differs from the recorded one"
    )
    replay.add_argument("run", type=Path, help="a run's folder, such as runs/quickstart; nothing is written there")
    replay.add_argument("step", type=int, help="as in rollouts/step_N.jsonl, from 1")
    replay.add_argument("problem", help="a problem_id of that step, or enough of its beginning")
    replay.add_argument("index", type=int, help="the attempt of the rollout, from 0")
    replay.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="fields that a resume may change, such as run.threads"
    )
    persona_cli.add(commands, add_config=_add_config)
    _add_talk(commands.add_parser("talk", help="talk to a checkpoint in a terminal, steered if wished"))
    report = commands.add_parser("report", help="write one self-contained HTML file about a run, or about several")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, such as runs/quickstart")
    report.add_argument(
        "--output", type=Path, help="the file (report.html in the run's folder; comparison.html beside several)"
    )
    dashboard = commands.add_parser("dashboard", help="serve the same page while runs go on")
    dashboard.add_argument("folder", type=Path, help="a folder of runs, such as runs")
    dashboard.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1); any but a loopback one asks for a token"
    )
    dashboard.add_argument("--port", type=int, default=8686, help="port to listen on, 0 for a free one (8686)")
    score = commands.add_parser(
        "score", help="score completions from a file with any reward, before spending a GPU hour"
    )
    score.add_argument("reward", help="a reward's name, such as math_answer, or FILE.py:FUNCTION")
    score.add_argument("file", type=Path, help='JSON lines: {"completion": ..., "answer": ..., ...}')
    score.add_argument("--output", type=Path, help="write the scored rows here instead of standard output")
    score.add_argument("--options", default="{}", help="options of the reward, as JSON")
    _add_limits(score)
    return parser


def _add_init(command: argparse.ArgumentParser) -> None:
    """What is not given is asked for in a terminal, or found out from the rows."""
    command.add_argument("output", type=Path, nargs="?", help="the config to write, such as my_run.yaml; not there yet")
    for field, text in INIT_OPTIONS.items():
        command.add_argument(f"--{field.replace('_', '-')}", help=text)
    command.add_argument("--lora", action="store_true", help="train low-rank adapters instead of every weight")


def _add_talk(talk: argparse.ArgumentParser) -> None:
    talk.add_argument("folder", type=Path, help="a run's folder, or a model's such as export writes")
    talk.add_argument("--checkpoint", help="start, cold_start, best, step_000100 or a path (the newest whole step)")
    talk.add_argument(
        "--steer",
        nargs="+",
        default=[],
        metavar="TRAIT=FACTOR",
        help="traits with vectors in the run's folder persona, or files of vectors",
    )
    talk.add_argument("--temperature", type=_positive(float), default=1.0, help="of the answers (1)")
    talk.add_argument("--max-tokens", type=_positive(int), help="of an answer (sampling.max_completion_tokens)")
    talk.add_argument("--seed", type=int, default=0, help="of the answers: the same lines get the same ones (0)")


def _positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def parsed(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: must be above 0")
        return value

    return parsed


def _add_limits(score: argparse.ArgumentParser) -> None:
    """What bounds a verifier, as in training: the defaults are those of the section reward."""
    limits = (
        ("workers", int, "verifier processes"),
        ("timeout_seconds", float, "limit of one verdict"),
        ("memory_limit_mb", int, "address space of a verifier process; 0 has no limit"),
    )
    for field, kind, text in limits:
        default = RewardConfig.model_fields[field].default
        score.add_argument(f"--{field.replace('_', '-')}", type=kind, default=default, help=f"{text} ({default})")


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, nargs="?", help="the run's YAML file")
    command.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="fields to change, the value in YAML"
    )


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
    from grpo.replay import find, lines, replay
    from grpo.tracking.console import Console
    from grpo.wiring import looked_at

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


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
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


if __name__ == "__main__":
    sys.exit(main())
