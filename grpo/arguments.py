"""The arguments of `grpo COMMAND CONFIG.yaml [section.key=value ...]`: what can be typed, and what help says of it."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from grpo import persona_cli
from grpo.config import RewardConfig

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


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="grpo",
        description="KL-free GRPO with difficulty tiers, driven by one YAML file a run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in RUN_COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        _add_config(command)
        start = command.add_mutually_exclusive_group()
        start.add_argument("--resume", action="store_true", help="go on with what the run's folder holds")
        start.add_argument("--fresh", action="store_true", help="delete this phase and later ones, and start again")
        # The deepspeed launcher adds it; LOCAL_RANK, which it sets as well, is what is read.
        command.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    _add_check(commands.add_parser("check", help="validate a config and print everything derived from it"))
    _add_init(commands.add_parser("init", help="write a commented config for a model, rows and a reward, checked"))
    _add_export(commands.add_parser("export", help="write a checkpoint as a Hugging Face folder"))
    _add_replay(
        commands.add_parser(
            "replay", help="draw a rollout of a run again, and show where it differs from the recorded one"
        )
    )
    persona_cli.add(commands, add_config=_add_config)
    _add_talk(commands.add_parser("talk", help="talk to a checkpoint in a terminal, steered if wished"))
    _add_report(commands.add_parser("report", help="write one self-contained HTML file about a run, or about several"))
    _add_dashboard(commands.add_parser("dashboard", help="serve the same page while runs go on"))
    _add_score(
        commands.add_parser("score", help="score completions from a file with any reward, before spending a GPU hour")
    )
    return made


def _add_check(command: argparse.ArgumentParser) -> None:
    _add_config(command)
    command.add_argument("--schema", action="store_true", help="print the JSON schema of a config instead, for editors")
    command.add_argument(
        "--ranks",
        type=_positive(int),
        default=int(os.environ.get("WORLD_SIZE", "1")),
        help="ranks of the memory estimate (WORLD_SIZE of the launcher, or 1)",
    )
    command.add_argument(
        "--probe", action="store_true", help="find the train.tokens_per_micro_batch that fits, by training with it"
    )
    command.add_argument(
        "--time", action="store_true", help="measure this machine for some seconds, and tell the time of a step"
    )
    command.add_argument(
        "--memory-gib", type=_positive(float), help="memory that a probe may take (all that the device has left)"
    )


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, help="a run's folder, such as runs/quickstart")
    command.add_argument("--output", type=Path, required=True, help="the folder to write; not there yet, or empty")
    command.add_argument("--checkpoint", help="best, cold_start, step_000100 or a path (the newest whole step)")
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--merged", action="store_const", const="merged", dest="form", help="add adapters into the model (the default)"
    )
    form.add_argument(
        "--adapter", action="store_const", const="adapter", dest="form", help="write adapters alone, for peft"
    )
    command.add_argument(
        "--steer",
        type=Path,
        metavar="VECTORS",
        help="fold a trait's vector into the weights: steering at all positions",
    )
    command.add_argument("--coefficient", type=float, help="signed factor of the vector (what a sweep recommended)")
    command.add_argument("--block", type=int, help="the block whose output it is added to (what a sweep recommended)")


def _add_replay(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, help="a run's folder, such as runs/quickstart; nothing is written there")
    command.add_argument("step", type=int, help="as in rollouts/step_N.jsonl, from 1")
    command.add_argument("problem", help="a problem_id of that step, or enough of its beginning")
    command.add_argument("index", type=int, help="the attempt of the rollout, from 0")
    command.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="fields that a resume may change, such as run.threads"
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, such as runs/quickstart")
    command.add_argument(
        "--output", type=Path, help="the file (report.html in the run's folder; comparison.html beside several)"
    )


def _add_dashboard(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="a folder of runs, such as runs")
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1); any but a loopback one asks for a token"
    )
    command.add_argument("--port", type=int, default=8686, help="port to listen on, 0 for a free one (8686)")


def _add_score(command: argparse.ArgumentParser) -> None:
    command.add_argument("reward", help="a reward's name, such as math_answer, or FILE.py:FUNCTION")
    command.add_argument("file", type=Path, help='JSON lines: {"completion": ..., "answer": ..., ...}')
    command.add_argument("--output", type=Path, help="write the scored rows here instead of standard output")
    command.add_argument("--options", default="{}", help="options of the reward, as JSON")
    _add_limits(command)


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
