"""Counterfactual temperatures against real ones: what a trained policy's rollouts say about others, and what is true.

    python scripts/counterfactual_figure.py runs/check_learning/seed_31 --picture docs/counterfactual.svg

The last policy of a run draws windows of its held-out problems at one temperature, one group a problem, and each is
read at every temperature of the grid as the adaptive schedule reads it (`curricula.counterfactual`). The same problems
are then drawn at each temperature for real. Prints Markdown tables of both, of the effective share and of how it falls
with length, and writes the picture. What was drawn is kept beside the run's other files: `--table-only` prints it."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from curricula import Measured, ReweightedGroup, ReweightedWindow, reweight
from grpo import starts
from grpo.distributed.world import World
from grpo.folder import RunFolder, write_json
from grpo.rollout import Attempts
from grpo.tracking.console import Console
from grpo.types import Problem
from grpo.wiring import looked_at

DRAWN = {"scores": "reward", "signal": "p(1 − p)"}  # the panels of the picture
MEASURES = (*DRAWN, "change")
GRID = (0.8, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0)
LENGTH_COLUMN = "num_operations"
WITHIN = 2.0  # standard errors that a window may be off


def main() -> None:
    """Draw what is missing, print the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that is trained")
    parser.add_argument("--drawn-at", type=float, nargs="+", default=[1.0, 1.3])
    parser.add_argument("--grid", type=float, nargs="+", default=list(GRID))
    parser.add_argument("--problems", type=int, default=256, help="held-out problems, the first ones")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--group-size", type=int, default=16, help="rollouts of a problem in a window")
    parser.add_argument("--real-rollouts", type=int, default=64, help="of each problem and temperature")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    path = arguments.run / "counterfactual.json"
    if not arguments.table_only:
        write_json(path, measured(arguments))
    found = json.loads(path.read_text(encoding="utf-8"))
    print(report(found))
    if arguments.picture is not None:
        arguments.picture.write_text(picture(found["rows"]), encoding="utf-8")


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that the tables show, as JSON can hold it."""
    folder = RunFolder(arguments.run)
    config = folder.read_config([])
    grid = tuple(sorted({*arguments.grid, *arguments.drawn_at}))
    with looked_at(config, folder.path, world=World.alone(), console=Console(num_steps=config.train.steps)) as run:
        steps = [int(path.name.split("_")[1]) for path in folder.checkpoints.glob("step_*")]
        starts.load_step(run, max(steps))
        problems = run.heldout[: arguments.problems]
        real = {t: really(run, problems, temperature=t, num_rollouts=arguments.real_rollouts) for t in grid}
        rows, lengths = [], []
        for drawn_at in arguments.drawn_at:
            windows = [
                window(run, problems, number, drawn_at=drawn_at, grid=grid, group_size=arguments.group_size)
                for number in range(arguments.windows)
            ]
            readings = [values_of(_read(groups), drawn_at=drawn_at) for groups in windows]
            truths = values_of(real, drawn_at=drawn_at)
            for temperature in grid:
                row = row_of([of[temperature] for of in readings], truths[temperature])
                rows.append({"drawn_at": drawn_at, "temperature": temperature, **row})
            lengths += [{"drawn_at": drawn_at, **row} for row in by_length(problems, windows)]
    sizes = {name: getattr(arguments, name) for name in ("windows", "group_size", "real_rollouts")}
    return {"step": max(steps), "num_problems": len(problems), **sizes, "rows": rows, "lengths": lengths}


def really(run: starts.Run, problems: Sequence[Problem], *, temperature: float, num_rollouts: int) -> Measured:
    """The problems drawn at the temperature itself, with the noise of evaluations."""
    attempts = [Attempts(problem, 0, num_rollouts) for problem in problems]
    groups = run.rollouts.run(attempts, temperature=temperature, phase="evaluation", step=0).groups
    return Measured.of((group.outcome for group in groups), num_rollouts=num_rollouts)


def window(
    run: starts.Run,
    problems: Sequence[Problem],
    number: int,
    *,
    drawn_at: float,
    grid: tuple[float, ...],
    group_size: int,
) -> list[ReweightedGroup]:
    """A group of each problem, drawn at one temperature and read at all; another `number` is other noise."""
    attempts = [Attempts(problem, 0, group_size) for problem in problems]
    groups = run.rollouts.run(attempts, temperature=drawn_at, phase="window", step=number, grid=grid).groups
    read = []
    for group in groups:
        logprobs = [rollout.grid_logprobs or () for rollout in group.rollouts]
        correct = [bool(of_rollout) for of_rollout in group.correct]
        read.append(reweight(group.problem.id, correct, logprobs, grid=grid, drawn_at=drawn_at))
    return read


def _read(groups: Sequence[ReweightedGroup]) -> dict[float, Measured]:
    read = ReweightedWindow(1)
    read.observe(groups)
    return read.measured()


def values_of(measured: Mapping[float, Measured], *, drawn_at: float) -> dict[float, dict[str, Any]]:
    """By temperature: each measure by problem, and the share of the rollouts that counts.

    The change is the reward less that at `drawn_at`, which is what a decision is about."""
    reference = measured[drawn_at].scores
    return {
        temperature: {
            "scores": of.scores,
            "signal": of.signal,
            "change": {name: score - reference[name] for name, score in of.scores.items()},
            "effective_fraction": of.effective_fraction,
        }
        for temperature, of in measured.items()
    }


def row_of(windows: Sequence[Mapping[str, Any]], real: Mapping[str, Any]) -> dict[str, Any]:
    """One temperature, as the windows have it and as it is; every difference is over problems, paired.

    Of each measure: the real mean; what the mean of the windows and the first of them are off by, each with its
    standard error; a window's mean standard error; and how many windows are within `WITHIN` of their own."""
    row: dict[str, Any] = {"effective_fraction": fmean(window["effective_fraction"] for window in windows)}
    for measure in MEASURES:
        truth, values = real[measure], [window[measure] for window in windows]
        each = [difference([of[name] - truth[name] for name in truth]) for of in values]
        row[measure] = {
            "real": difference(list(truth.values())),
            "off": difference([fmean(of[name] for of in values) - truth[name] for name in truth]),
            "first_off": each[0],
            "error": fmean(error for _, error in each),
            "within": sum(abs(value) <= WITHIN * error for value, error in each),
        }
    return row


def difference(values: Sequence[float]) -> tuple[float, float]:
    """Mean over problems and its standard error."""
    return fmean(values), stdev(values) / math.sqrt(len(values))


def by_length(problems: Sequence[Problem], windows: Sequence[Sequence[ReweightedGroup]]) -> list[dict[str, Any]]:
    """The effective share at each temperature of problems of one number of operations, over all windows."""
    part_of = {problem.id: problem.meta[LENGTH_COLUMN] for problem in problems}
    rows = []
    for part in sorted(set(part_of.values())):
        read = ReweightedWindow(len(windows))
        for groups in windows:
            read.observe([group for group in groups if part_of[group.problem_id] == part])
        shares = read.effective_fractions()
        rows.append({LENGTH_COLUMN: part, "effective_fractions": {str(t): share for t, share in shares.items()}})
    return rows


def report(found: Mapping[str, Any]) -> str:
    """The tables, in Markdown: what the mean window is off by, and how many are within two of their own errors."""
    lines = [
        f"{found['num_problems']} problems, {found['windows']} windows of {found['group_size']} rollouts each, "
        f"{found['real_rollouts']} rollouts a temperature; policy of step {found['step']}"
    ]
    lines += [
        "",
        "| drawn at | read at | share that counts | reward | off by | within | p(1 − p) | off by | within "
        "| change off by | error of one | within |",
        "|---" * 12 + "|",
    ]
    for row in found["rows"]:
        cells = [f"{row['drawn_at']:g}", f"{row['temperature']:g}", f"{row['effective_fraction']:.2f}"]
        for measure in DRAWN:
            of = row[measure]
            cells += [_pair(of["real"], sign=""), _pair(of["off"]), str(of["within"])]
        of = row["change"]
        cells += [_pair(of["off"]), f"{of['error']:.3f}", str(of["within"])]
        lines.append(f"| {' | '.join(cells)} |")
    temperatures = list(found["lengths"][0]["effective_fractions"])
    lines += ["", f"| drawn at | operations | {' | '.join(temperatures)} |", "|---" * (2 + len(temperatures)) + "|"]
    for row in found["lengths"]:
        shares = " | ".join(f"{row['effective_fractions'][t]:.2f}" for t in temperatures)
        lines.append(f"| {row['drawn_at']:g} | {row[LENGTH_COLUMN]} | {shares} |")
    return "\n".join(lines)


def _pair(pair: Sequence[float], *, sign: str = "+") -> str:
    return f"{pair[0]:{sign}.3f} ± {pair[1]:.3f}"


WIDTH, HEIGHT, LEFT, TOP, BOTTOM, PANEL = 760, 250, 48, 28, 210, 300
GAP = 2 * LEFT + PANEL
STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--soft:#636875;--line:#e4e6ea;--a:#2f5fd0;--b:#c2571a}"
    "@media(prefers-color-scheme:dark){:root{--paper:#14161a;--soft:#9aa0ad;--line:#2b2f37;--a:#84a7ff;--b:#f0a06a}}"
    ".paper{fill:var(--paper)}text{font:11px system-ui,sans-serif;fill:var(--soft)}.grid{stroke:var(--line)}"
    ".real{fill:var(--paper);stroke:var(--soft)}.s0{stroke:var(--a);fill:none}.s1{stroke:var(--b);fill:none}"
)


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of two panels: the reward and p(1 - p), each real (circles) and by the first window of two starts."""
    parts = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>']
    for place, (measure, name) in enumerate(DRAWN.items()):
        parts += _panel(rows, measure, name, left=LEFT + place * GAP)
    for place, drawn_at in enumerate(sorted({row["drawn_at"] for row in rows})[:2]):
        x = LEFT + 10 + 210 * place
        parts.append(f'<path class="s{place}" d="M{x} 240h24"/>')
        parts.append(f'<text x="{x + 30}" y="244">first window, drawn at {drawn_at:g}</text>')
    x = LEFT + 10 + 210 * 2
    parts.append(f'<circle class="real" cx="{x}" cy="240" r="3.5"/><text x="{x + 10}" y="244">drawn for real</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _panel(rows: Sequence[Mapping[str, Any]], measure: str, name: str, *, left: float) -> list[str]:
    """One measure over temperature; bars are two standard errors of the difference between a window and the truth."""
    temperatures = [row["temperature"] for row in rows]
    estimates = [row[measure]["real"][0] + row[measure]["first_off"][0] for row in rows]
    values = [*estimates, *(row[measure]["real"][0] for row in rows)]
    low, high = math.floor(min(values) * 20) / 20, math.ceil(max(values) * 20) / 20

    def x(temperature: float) -> float:
        share = (temperature - min(temperatures)) / (max(temperatures) - min(temperatures))
        return left + 12 + share * (PANEL - 24)

    def y(value: float) -> float:
        return BOTTOM - (min(max(value, low), high) - low) / (high - low) * (BOTTOM - TOP)

    parts = [f'<text x="{left}" y="{TOP - 12}">{name}</text>']
    for step in range(5):
        level = low + step * (high - low) / 4
        parts.append(f'<path class="grid" d="M{left} {y(level):.1f}h{PANEL}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.3g}</text>')
    for temperature in sorted(set(temperatures)):
        label = f'<text x="{x(temperature):.1f}" y="{BOTTOM + 15}" text-anchor="middle">{temperature:g}</text>'
        parts.append(label)
    for place, drawn_at in enumerate(sorted({row["drawn_at"] for row in rows})[:2]):
        own = [(row, value) for row, value in zip(rows, estimates, strict=True) if row["drawn_at"] == drawn_at]
        line = "L".join(f"{x(row['temperature']):.1f} {y(value):.1f}" for row, value in own)
        parts.append(f'<path class="s{place}" d="M{line}"/>')
        for row, value in own:
            error, at = WITHIN * row[measure]["first_off"][1], x(row["temperature"]) + 3 * (2 * place - 1)
            parts.append(f'<path class="s{place}" d="M{at:.1f} {y(value - error):.1f}V{y(value + error):.1f}"/>')
    for row in rows:
        parts.append(
            f'<circle class="real" cx="{x(row["temperature"]):.1f}" cy="{y(row[measure]["real"][0]):.1f}" r="3.5"/>'
        )
    return parts


if __name__ == "__main__":
    main()
