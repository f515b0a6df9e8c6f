"""What moves at the bottom of a terminal: lines that are written over, bars, and the view of a training under way.

Knows how a terminal is drawn on, and nothing of when."""

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR_CHARACTERS = 24
TREND_STEPS = 32
LEVELS = "▁▂▃▄▅▆▇█"
TIER = "curriculum/tier_"


class Region:
    """Lines at the end of a terminal that the next `show` replaces. Nothing else moves: no thread, no hidden cursor."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._height = 0

    def show(self, content: RenderableType) -> None:
        """Put `content` where the lines before it were, broken at the terminal's width: their number must be known."""
        with self._console.capture() as captured:
            self._console.print(content, soft_wrap=False)
        text = captured.get()
        # Past rich, which strips what moves the cursor. One write, so that nobody's line comes in between.
        self._console.file.write(self._up() + text)
        self._console.file.flush()
        self._height = text.count("\n")

    def clear(self) -> None:
        """Take the lines away, so that one that stays can be printed in their place."""
        if self._height:
            self._console.file.write(self._up())
            self._height = 0

    def leave(self) -> None:
        """Let the lines stand as they are."""
        self._height = 0

    def _up(self) -> str:
        return f"\r\x1b[{self._height}A\x1b[J" if self._height else ""


def bar_line(line: str, done: float) -> RenderableType:
    """A bar that is full for `done` of its length, and `line` beside it."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=1.0, completed=min(max(done, 0.0), 1.0), width=BAR_CHARACTERS), Text(line))
    return grid


def train_view(
    metrics: Mapping[str, float], *, num_steps: int, left: str, pass_rates: Sequence[float], below: str = ""
) -> RenderableType:
    """The training after a step: where it is, how hot, what it earns, how long it writes, who has moved.

    `left` is the time to the end in words, `pass_rates` those of the steps so far, NaN where a step had none, and
    `below` a line on what goes on at present."""
    step = int(metrics["step"])
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_row("train", bar_line(f"step {step:,}/{num_steps:,}, {step / num_steps:.0%}{left}", step / num_steps))
    rows = {
        "stage": _listed(
            (f"{metrics['curriculum/stage'] + 1:.0f}", f"temperature {metrics['sampling/temperature']:.2f}")
        ),
        "reward": _rewards(metrics, pass_rates),
        "lengths": _lengths(metrics),
        "tiers": _listed(
            f"{name.removeprefix(TIER)} {metrics[name]:,.0f}" for name in metrics if name.startswith(TIER)
        ),
        "speed": _speed(metrics),
    }
    for name, text in rows.items():
        if text:
            grid.add_row(name, Text(text))
    return Group(grid, Text(below, style="dim")) if below else grid


def duration(seconds: float) -> str:
    """A time in the unit that one would say it in; nothing where it is not known."""
    if not math.isfinite(seconds):
        return ""
    for unit, unit_seconds, enough in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < enough * unit_seconds:
            number = seconds / unit_seconds
            return f"{number:.1f} {unit}" if unit == "h" and number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def trend(values: Sequence[float]) -> str:
    """The last values as a line of blocks between their lowest and highest; a gap where there is none."""
    shown = list(values[-TREND_STEPS:])
    known = [value for value in shown if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, span = min(known), max(known) - min(known)
    levels = [round((value - low) / span * (len(LEVELS) - 1)) if span else 0 for value in known]
    blocks = iter(LEVELS[level] for level in levels)
    return "".join(next(blocks) if math.isfinite(value) else " " for value in shown)


def _rewards(metrics: Mapping[str, float], pass_rates: Sequence[float]) -> str:
    parts = []
    for title, name in (("mean", "reward/mean"), ("pass rate", "reward/pass_rate"), ("entropy", "policy/entropy")):
        if math.isfinite(metrics.get(name, math.nan)):
            parts.append(f"{title} {metrics[name]:.3f}")
    if "eval/validation/pass@1" in metrics:
        parts.append(f"validation pass@1 {metrics['eval/validation/pass@1']:.3f}")
    curve = trend(pass_rates)
    return _listed(parts) + (f"  {curve}" if curve else "")


def _lengths(metrics: Mapping[str, float]) -> str:
    if "completion/length_mean" not in metrics:  # every group of the step was the profile's
        return ""
    return _listed(
        (
            f"mean {metrics['completion/length_mean']:,.1f} tokens",
            f"longest {metrics['completion/length_max']:,.0f}",
            f"cut by the limit {metrics['completion/truncated_fraction']:.1%}",
        )
    )


def _speed(metrics: Mapping[str, float]) -> str:
    trained = metrics.get("throughput/trained_tokens_per_second", 0.0)
    return _listed(
        (
            f"{metrics['throughput/sampled_tokens_per_second']:,.0f} tokens a second sampled",
            *([f"{trained:,.0f} trained"] if trained else []),
            f"{metrics['time/step']:,.1f} s a step",
        )
    )


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
