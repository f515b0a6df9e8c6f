"""`grpo score`: completions from a file through any reward, as training would judge them. Needs no torch.

What a row becomes is `rewards.score`'s work; here are the command's arguments, its output and its progress."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from grpo.errors import ConfigError, DataError
from grpo.folder import named_disk_errors
from rewards import Pool, RewardSpec, build_spec, longest_seconds
from rewards.score import read_jsonl_rows, score_rows

SHOWN_DETAILS = 3


def score_file(
    reward: str,
    file: Path,
    *,
    output: Path | None,
    options_json: str,
    workers: int,
    timeout_seconds: float,
    memory_limit_mb: int,
) -> None:
    """Score the rows of `file` with `reward` (a name, or FILE.py:FUNCTION), one for one and in order, as JSON lines.

    They go to `output`, or to standard output; progress and a summary go to standard error. A row that cannot be
    scored is a row with status error. `file` is read once and may be a pipe. Raises ConfigError for a reward, options
    or limits that cannot be, DataError when the file cannot be read, DiskError when the output cannot be written."""
    spec = named_reward(reward, options_json)
    if workers < 0 or not timeout_seconds > 0 or memory_limit_mb < 0:
        raise ConfigError(
            f"--workers = {workers}, --timeout-seconds = {timeout_seconds}, --memory-limit-mb = {memory_limit_mb}: "
            "workers must be at least 0, seconds above 0, megabytes at least 0 (0 has no limit)"
        )
    if workers and longest_seconds(spec) >= timeout_seconds:
        raise ConfigError(
            f"--timeout-seconds = {timeout_seconds:g}: {spec.title} may take {longest_seconds(spec):g} s by its own "
            "options; set it above that, or lower the options"
        )
    if output is not None and output.resolve() == file.resolve():
        raise ConfigError(f"--output = {str(output)!r} is the file that is read; name another one")
    try:
        # A pipe can be read once only, and nobody knows how much is in it.
        num_rows = sum(1 for _ in read_jsonl_rows(file)) if file.is_file() else None
        rows = read_jsonl_rows(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); give a file of JSON lines") from error
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    statuses: Counter[str] = Counter()
    details: Counter[str] = Counter()
    values: list[float] = []
    with (
        _opened(output) as out,
        Pool(workers=workers, timeout_seconds=timeout_seconds, memory_limit_mb=memory_limit_mb) as pool,
        _progress(console) as progress,
    ):
        task = progress.add_task("scored", total=num_rows)
        for row in score_rows(spec, rows, pool=pool):
            out.write(json.dumps(row) + "\n")
            progress.advance(task)
            statuses[row["status"]] += 1
            if row["reward"] is not None:
                values.append(row["reward"])
            elif row["detail"]:
                details[row["detail"]] += 1
    console.print(_summary(spec.title, statuses=statuses, values=values), markup=False)
    for detail, count in details.most_common(SHOWN_DETAILS):
        console.print(f"  {count} times: {detail}", markup=False)


def named_reward(reward: str, options_json: str) -> RewardSpec:
    """The reward of a name, or of FILE.py:FUNCTION, that can be built with these options. Raises ConfigError."""
    try:
        options: Any = json.loads(options_json)
    except ValueError as error:
        raise ConfigError(f"--options = {options_json!r}: must be a JSON object ({error})") from error
    if not isinstance(options, Mapping):
        raise ConfigError(f"--options = {options_json!r}: must be a JSON object, such as {{}}")
    file, colon, function = reward.rpartition(":")
    if not colon and reward.endswith(".py"):
        raise ConfigError(f"{reward!r} is a file; name its function too: {reward}:FUNCTION")
    try:
        spec = (
            RewardSpec(file=file, function=function, options=options) if colon else RewardSpec(reward, options=options)
        )
        build_spec(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return spec


def _summary(title: str, *, statuses: Mapping[str, int], values: list[float]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "no rows"
    mean = f"; mean reward {fmean(values):.4f}" if values else ""
    return f"{title}: {sum(statuses.values())} rows: {counts}{mean}"


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with named_disk_errors(output, then="and score again"), output.open("w", encoding="utf-8") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(
            f"--output = {str(output)!r}: {error.strerror}; name a file in a folder that is there"
        ) from error


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
