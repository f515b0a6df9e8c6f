"""What a run says in the terminal: lines, a bar while something long is counted, and the table at the end.

On a terminal the bars move in place; in a log file they are plain lines, one now and then. Every line that stays is in
the run's own log too, once its folder is known."""

import json
import math
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from curricula import Progress as ProfileProgress
from grpo.folder import named_disk_errors

SECONDS_BETWEEN_LINES = 10.0


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
        self._spoke = 0.0
        self._line_is_open = False  # a line that moves in place stands on the terminal, without its end
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
        self._end_line()
        elapsed = time.monotonic() - self._started
        self._rich.print(f"[dim]{elapsed:6.0f} s[/dim]  {escape(line)}", markup=True)
        self._keep(line)

    def profile_progress(self, progress: ProfileProgress) -> None:
        """How far the profile is, with the tiers so far."""
        tiers = ", ".join(f"{tier} {count}" for tier, count in progress.tiers.items())
        tiers += f", {progress.num_without_tier} without a tier" if progress.num_without_tier else ""
        self._now_and_then(
            f"profile: {progress.num_finished}/{progress.num_problems} problems, {progress.num_rollouts} rollouts "
            f"(at most {progress.most_rollouts_left} left); {tiers}",
            last=progress.num_finished == progress.num_problems,
        )

    def step(self, metrics: Mapping[str, float]) -> None:
        """One step of training: where it is, what it earns, how long is left."""
        step = int(metrics["step"])
        if self._first_step is None:
            self._first_step, self._step_started = step, time.monotonic() - metrics["time/step"]
        done = step - self._first_step + 1
        left = (time.monotonic() - self._step_started) / done * (self._num_steps - step)
        entropy = f", entropy {metrics['policy/entropy']:.3f}" if "policy/entropy" in metrics else ""
        pass_rate = metrics.get("reward/pass_rate", math.nan)  # absent when no verdict of the step had a value
        validation = metrics.get("eval/validation/pass@1")
        self._now_and_then(
            f"train: step {step}/{self._num_steps}, stage {metrics['curriculum/stage']:.0f}, "
            f"pass rate {pass_rate:.3f}, temperature {metrics['sampling/temperature']:.2f}{entropy}, "
            f"length {metrics['completion/length_mean']:.1f}, "
            f"{metrics['throughput/sampled_tokens_per_second']:,.0f} tokens/s, {left:.0f} s left"
            + (f", validation pass@1 {validation:.3f}" if validation is not None else ""),
            last=step == self._num_steps,
        )

    def results(self, evals: Path, *, report: Path) -> None:
        """The table of the evaluations in a run's folder, and where the report is."""
        if self._is_quiet:
            return
        table = Table("", title="held-out problems", title_justify="left")
        read = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(evals.glob("*.json"), reverse=True)}
        for name, evaluation in read.items():
            table.add_column(f"{name} (step {evaluation['step']})", justify="right")
        rows: dict[str, dict[str, Any]] = {}
        for name, evaluation in read.items():
            heldout = evaluation["sets"]["heldout"]
            for group, of_group in {"": heldout, **heldout["by_group"]}.items():
                for metric, estimate in of_group["metrics"].items():
                    if not group or metric == "pass@1":
                        rows.setdefault(f"{metric} {'· ' + group if group else ''}", {})[name] = estimate
        for label, cells in rows.items():
            shown = [cells.get(name) for name in read]
            table.add_row(label, *(f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" if c else "–" for c in shown))
        self._rich.print(table)
        self._rich.print(f"report: {report}")

    def _now_and_then(self, line: str, *, last: bool) -> None:
        due = last or time.monotonic() - self._spoke >= SECONDS_BETWEEN_LINES
        if due:
            self._spoke = time.monotonic()
        if self._is_quiet or not self._rich.is_terminal:
            if due:
                self.say(line)
            return
        # Past rich, which strips the return to the line's beginning; a longer line would wrap and stay.
        self._rich.file.write(f"\r\x1b[2K{line[: self._rich.width - 1]}")
        self._rich.file.flush()
        self._line_is_open = True
        if due:
            self._keep(line)
        if last:
            self._end_line()

    def _keep(self, line: str) -> None:
        with self._lock:
            self._unlogged.append(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {line}\n")
            self._append_to_log()

    def _append_to_log(self) -> None:
        if self._log is not None:
            with named_disk_errors(self._log), self._log.open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(self._unlogged)
            self._unlogged.clear()

    def _end_line(self) -> None:
        if self._line_is_open:
            self._rich.file.write("\n")
            self._line_is_open = False
