"""What a run says in the terminal: lines, a view of what is under way with the time that is left, and the tables.

On a terminal the view moves in place; in a log file it is plain lines, one now and then. Every line that stays is in
the run's own log too, once its folder is known."""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from curricula import Progress as ProfileProgress
from grpo.folder import named_disk_errors
from grpo.manifest import TierSummary
from grpo.tracking.evaluations import Cell, Line, SetTable, in_order, set_tables
from grpo.tracking.live import Region, bar_line, duration, train_view

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_VIEWS = 0.1


class _RichConsole(RichConsole):
    def on_broken_pipe(self) -> None:
        """rich's hook for a reader that is gone (it would end the process without a word): `grpo.cli` has the word."""
        raise


class Console:
    """Speaks for one run. Says each step on a terminal's last line, and every few seconds in a log."""

    def __init__(self, *, num_steps: int) -> None:
        self._is_quiet = False
        self._lock = threading.Lock()  # a checkpoint that is written beside the loop has something to note
        self._rich = _RichConsole(highlight=False, soft_wrap=True)
        self._num_steps = num_steps
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._profile_began: tuple[float, int] | None = None  # when, and the rollouts that were known by then
        self._spoke = 0.0
        self._drew = 0.0
        self._region = Region(self._rich)
        self._sampling_began: tuple[str, float] | None = None  # what, and when
        self._cold_start_began: float | None = None
        self._last_step: Mapping[str, float] = {}
        self._pass_rates: list[float] = []
        self._left_seconds = 0.0
        self._log: Path | None = None
        self._unlogged: list[str] = []  # said before there was a log

    def log_to(self, path: Path) -> None:
        """Add every line to the file at `path`, those that were said before included. Raises DiskError."""
        with named_disk_errors(path):
            path.parent.mkdir(exist_ok=True)
        with self._lock:
            self._log = path
            self._append_to_log()

    def be_quiet(self) -> None:
        """Leave the terminal to the main rank; what is said stands in this rank's log alone."""
        self._is_quiet = True

    def note(self, line: str) -> None:
        """One line for the log alone."""
        self._keep(line)

    def say(self, line: str) -> None:
        """One line that stays."""
        if self._is_quiet:
            self._keep(line)
            return
        self._region.clear()
        elapsed = time.monotonic() - self._started
        self._rich.print(f"[dim]{elapsed:6.0f} s[/dim]  {escape(line)}", markup=True)
        self._keep(line)

    def print(self, table: Table) -> None:
        """A table, on the terminal alone."""
        if not self._is_quiet:
            self._region.clear()
            self._rich.print(table)

    def profile_progress(self, progress: ProfileProgress) -> None:
        """How far the profile is, with the tiers so far and the time that is left."""
        if self._profile_began is None:
            self._profile_began = (time.monotonic(), progress.num_rollouts)
        began, known_rollouts = self._profile_began
        drawn, left = progress.num_rollouts - known_rollouts, progress.left.typical
        tiers = ", ".join(f"{tier} {count:,}" for tier, count in progress.tiers.items())
        tiers += f", {progress.num_without_tier:,} without a tier" if progress.num_without_tier else ""
        seconds_left = (time.monotonic() - began) / drawn * left if drawn else math.nan
        when = f", about {duration(seconds_left)} left" if left and drawn else ""
        is_last = progress.num_finished == progress.num_problems
        line = (
            f"profile: {progress.num_finished:,}/{progress.num_problems:,} problems, {progress.num_rollouts:,} "
            f"rollouts (about {left:,.0f} left, at most {progress.left.most:,}){when}; {tiers}"
        )
        done = progress.num_rollouts / max(progress.num_rollouts + left, 1.0)
        self._now_and_then(line, bar_line(line, done), last=is_last)
        if is_last:
            self._profile_began = None  # the next one has a clock of its own

    def tiers(self, summaries: Sequence[TierSummary]) -> None:
        """The table of a finished profile."""
        if self._is_quiet:
            return
        table = Table("tier", title="tiers", title_justify="left")
        for name in ("problems", "share", "rollouts a problem", "tokens a rollout", "label wrong", "wrong labels"):
            table.add_column(name, justify="right")
        for row in summaries:
            means = (
                (f"{row.mean_rollouts:.1f}", f"{row.mean_tokens:.1f}", f"{row.mean_label_error:.1%}")
                if row.num_problems
                else ("–", "–", "–")
            )
            table.add_row(row.tier, f"{row.num_problems:,}", f"{row.share:.1%}", *means, f"{row.num_wrong:.1f}")
        self._region.clear()
        self._rich.print(table)

    def cold_start_progress(self, step: int, *, most_steps: int) -> None:
        """How far the cold start is, after its supervised step `step`; its gate may open before the last."""
        if self._cold_start_began is None:
            self._cold_start_began = time.monotonic()
        each = (time.monotonic() - self._cold_start_began) / max(step - 1, 1)
        left = f", at most {duration(each * (most_steps - step))} left" if step > 1 else ""
        line = f"cold start: step {step:,}/{most_steps:,}{left}"
        self._now_and_then(line, bar_line(line, step / most_steps), last=False, began=self._cold_start_began)

    def sampling_progress(self, phase: str, done: int, total: int) -> None:
        """How many completions of a phase of sampling are drawn on this rank."""
        now = time.monotonic()
        if done == 0 or self._sampling_began is None or self._sampling_began[0] != phase:
            self._sampling_began = (phase, now)
        if done == 0:
            return
        left = duration((now - self._sampling_began[1]) / done * (total - done))
        line = f"{'sampling' if phase == 'train' else phase}: {done:,}/{total:,} rollouts, about {left} left"
        if self._is_live and done == total:
            self._region.clear()  # what comes of it is told elsewhere
        elif self._is_live and self._last_step:
            self._draw(lambda: self._view(below=line), last=False)
        elif phase == "evaluation":
            self._now_and_then(line, bar_line(line, done / total), last=False, began=self._sampling_began[1])

    def step(self, metrics: Mapping[str, float], *, is_last: bool) -> None:
        """One step of training: where it is, what it earns, how long is left. `is_last` where training ends with it,
        which it may before the steps that it was asked for."""
        step = int(metrics["step"])
        if self._first_step is None:
            self._first_step, self._step_started = step, time.monotonic() - metrics["time/step"]
        done = step - self._first_step + 1
        left = (time.monotonic() - self._step_started) / done * (self._num_steps - step)
        entropy = f", entropy {metrics['policy/entropy']:.3f}" if "policy/entropy" in metrics else ""
        # Absent when no verdict of the step had a value, as when every group of it is the profile's.
        pass_rate = metrics.get("reward/pass_rate", math.nan)
        num_missing = int(metrics.get("group/missing", 0))
        num_reused = int(metrics.get("group/reused", 0))
        reused = f", {num_reused} group{'s' if num_reused > 1 else ''} of the profile" if num_reused else ""
        missing = f", {num_missing} group{'s' if num_missing > 1 else ''} missing" if num_missing else ""
        validation = metrics.get("eval/validation/pass@1")
        self._last_step, self._left_seconds = {**self._last_step, **metrics}, left
        self._pass_rates.append(pass_rate)
        self._now_and_then(
            f"train: step {step}/{self._num_steps}, stage {metrics['curriculum/stage']:.0f}, "
            f"pass rate {pass_rate:.3f}, temperature {metrics['sampling/temperature']:.2f}{entropy}, "
            f"length {metrics.get('completion/length_mean', math.nan):.1f}, "
            f"{metrics['throughput/sampled_tokens_per_second']:,.0f} tokens/s, {duration(left)} left{reused}{missing}"
            + (f", validation pass@1 {validation:.3f}" if validation is not None else ""),
            self._view(),
            last=is_last,
        )
        if is_last:
            self._last_step = {}  # what is sampled from here on is no step's

    def results(self, evals: Path, *, report: Path) -> None:
        """The tables of the evaluations in a run's folder, one a set, and where the report is."""
        if self._is_quiet:
            return
        self._region.clear()
        read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(evals.glob("*.json"))]
        for of_set in set_tables(in_order(read)):
            self._rich.print(_fitting(of_set, self._rich))
        self._rich.print(f"report: {report}")

    def _now_and_then(self, line: str, view: RenderableType, *, last: bool, began: float = 0.0) -> None:
        """Progress: `view` in place on a terminal, `line` now and then elsewhere and in the log.

        What is done within seconds of when it `began` needs no line."""
        due = last or time.monotonic() - max(self._spoke, began) >= SECONDS_BETWEEN_LINES
        if due:
            self._spoke = time.monotonic()
        if not self._is_live:
            if due:
                self.say(line)
            return
        self._draw(lambda: view, last=last)
        if due:
            self._keep(line)

    @property
    def _is_live(self) -> bool:
        return not self._is_quiet and self._rich.is_terminal

    def _draw(self, make: Callable[[], RenderableType], *, last: bool) -> None:
        """Show what `make` gives in the place of what was shown before; `last` leaves it there for good."""
        if not last and time.monotonic() - self._drew < SECONDS_BETWEEN_VIEWS:
            return
        self._region.show(make())
        self._drew = time.monotonic()
        if last:
            self._region.leave()

    def _view(self, *, below: str = "") -> RenderableType:
        left = f", {duration(self._left_seconds)} left" if self._left_seconds > 0 else ""
        return train_view(
            self._last_step, num_steps=self._num_steps, left=left, pass_rates=self._pass_rates, below=below
        )

    def _keep(self, line: str) -> None:
        with self._lock:
            self._unlogged.append(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {line}\n")
            self._append_to_log()

    def _append_to_log(self) -> None:
        if self._log is not None:
            with named_disk_errors(self._log), self._log.open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(self._unlogged)
            self._unlogged.clear()


def _fitting(of_set: SetTable, console: RichConsole) -> Table:
    """A set's table, with intervals below their numbers where it would be too wide beside them."""
    table = _results(of_set, separator=" ")
    if table.__rich_measure__(console, console.options).maximum <= console.width:
        return table
    table = _results(of_set, separator="\n")
    for column in table.columns[1:]:
        column.no_wrap = True
    if table.__rich_measure__(console, console.options).minimum > console.width:
        for column in table.columns:  # too many policies for that: a number is rather broken than left out
            column.no_wrap, column.overflow = False, "fold"
    return table


def _results(of_set: SetTable, *, separator: str) -> Table:
    """A set's scores, what sets each policy apart from the first, and pass@1 of its parts.

    `separator` stands between a number and its interval."""
    policies = of_set.policies
    number, rollouts = policies[0]["num_problems"], policies[0]["num_rollouts"]
    table = Table("", title=f"{of_set.name}: {number} problems × {rollouts} rollouts", title_justify="left")
    for policy in policies:
        table.add_column(f"{policy['name']}{separator}(step {policy['step']})", justify="right")
    _add(table, of_set.scores, separator=separator)
    if of_set.differences:
        table.add_section()
        _add(table, of_set.differences, separator=separator, suffix=f" − {of_set.against}")
    for name, lines in of_set.parts:
        table.add_section()
        of_passes = [line for line in lines if "pass@1" in line.name.split()]
        _add(table, of_passes, separator=separator, prefix=f"{name} ", suffix=f" − {of_set.against}")
    return table


def _add(table: Table, lines: Sequence[Line], *, separator: str, prefix: str = "", suffix: str = "") -> None:
    for line in lines:
        shown = [_shown(cell, separator) if isinstance(cell, Cell) else cell for cell in line.cells]
        name = escape(f"{prefix}{line.name}{suffix if line.is_difference else ''}")
        table.add_row(name, *(escape(cell or "–") for cell in shown))


def _shown(cell: Cell, separator: str) -> str:
    return f"{cell.number}{separator}[{cell.interval.replace(' to ', ', ')}]" if cell.interval else cell.number
