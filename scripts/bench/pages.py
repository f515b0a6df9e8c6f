"""What was measured, for people (Markdown), for docs/performance.md, and for a machine (JSON)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from arithmetic import (
    MEASURES,
    Result,
    Spread,
    best_limits,
    clock_of,
    full_logits_bytes,
    head_bytes,
    length_gap,
    limit_fraction,
    mean_length,
    peak_bytes,
    sampled_tokens,
    speed_ratio,
    steps_of,
    tokens_per_second,
    unique_tokens,
)
from cases import Case, Goal, choice_of, profile_path, result_path
from picture import bars
from play import reason_to_skip

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PICTURE = "performance.svg"
MEGABYTE = 2**20
MOST_ERRORS = 4.0
"""Standard errors between two mean lengths: by chance more than that in one of 16,000."""
PARTS = ("sampling", "training", "step")
NAMES = {"ours": "ours", "trl": "TRL", "vllm": "vLLM"}


def results_of(cases: Sequence[Case], *, folder: Path) -> list[tuple[Case, Result]]:
    """What is measured of these cases, in order."""
    found = []
    for case in cases:
        for threads in case.threads:
            path = result_path(case, threads=threads, folder=folder)
            if path.is_file():
                found.append((case, json.loads(path.read_text(encoding="utf-8"))))
    return found


def report(cases: Sequence[Case], *, folder: Path) -> str:
    """All tables as Markdown."""
    results = results_of(cases, folder=folder)
    by_group: dict[str, list[tuple[Case, Result]]] = {}
    for case, result in results:
        by_group.setdefault(case.group, []).append((case, result))
    rivals = [pair for group in ("step", "sampler") for pair in by_group.get(group, [])]
    sections = [
        ("Against goals", _goals(results)),
        ("Not the same work", _unlike(results)),
        ("Speed", _ratios(rivals)),
        ("Each side", _sides(rivals)),
        ("Memory of the head", _memory(by_group.get("memory", []))),
        ("Cost against size", _scaling(by_group.get("scaling", []))),
        ("Where the time goes", _profiles(cases, folder=folder)),
        ("The machine", _machine([pair for pair in results if pair[0].group != "scaling"])),
        ("Not measured", _missing(cases, results)),
    ]
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in sections if lines)


def as_json(cases: Sequence[Case], *, folder: Path) -> dict[str, Any]:
    """The same numbers by name."""
    measured = []
    for case, result in results_of(cases, folder=folder):
        sides = {side: _numbers(case, result, side) for side in result["sides"]}
        goals = [(goal, _measured(goal, case, result)) for goal in case.goals]
        measured.append(
            {
                "case": case.name,
                "what": case.what,
                "threads": result["threads"],
                "clock": clock_of(case, threads=result["threads"]),
                "sides": sides,
                "ratios": _ratio_numbers(case, result),
                "goals": {goal.measure: {"goal": goal.factor, **_spread(found)} for goal, found in goals if found},
                "machine": best_limits(result),
            }
        )
    return {"cases": measured, "skipped": _skipped(cases)}


def write_docs(cases: Sequence[Case], *, folder: Path, docs: Path = DOCS) -> None:
    """Put the tables between the markers of docs/performance.md, and the picture beside it."""
    page = docs / "performance.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    drawing = bars(_bar_rows(results_of(cases, folder=folder)))
    (docs / PICTURE).write_text(drawing, encoding="utf-8")
    image = f"![Tokens a second, ours over theirs]({PICTURE})"
    measured = report(cases, folder=folder).replace("### ", "## ")
    page.write_text(f"{before}{BEGIN}\n\n{image}\n\n{measured}\n\n{END}{after}", encoding="utf-8")


def _goals(results: Sequence[tuple[Case, Result]]) -> list[str]:
    lines = []
    for case, result in results:
        for goal in case.goals:
            found = _measured(goal, case, result)
            if found is None:
                continue
            met = "yes" if found.middle >= goal.factor else "**no**"
            lines.append(
                f"| {case.name} | {result['threads']} | {goal.measure.replace('_', ' ')} | {_range(found)} "
                f"| {goal.factor:g} | {met} |"
            )
    return _table("case | threads | measure | measured (lowest to highest) | goal | met", lines)


def _measured(goal: Goal, case: Case, result: Result) -> Spread | None:
    """None where it is not defined: one thread's share of a limit says nothing of two that wait for one another."""
    if goal.measure == "matrix_fraction" and result["threads"] != 1:
        return None
    return MEASURES[goal.measure](result, case)


def _ratios(results: Sequence[tuple[Case, Result]]) -> list[str]:
    lines = []
    for case, result in results:
        rival = case.sides[1] if len(case.sides) > 1 else ""
        if not rival:
            continue
        parts = ("sampling",) if rival == "vllm" else PARTS
        cells = [_range(_ratio(case, result, part)) if part in parts else "–" for part in PARTS]
        names = f"| {case.name} | {case.what} | {result['threads']} | {NAMES[rival]} | {_clock(case, result)} |"
        lines.append(f"{names} {' | '.join(cells)} |")
    return _table("case | work of a step | threads | against | seconds | sampling | training | whole step", lines)


def _ratio(case: Case, result: Result, part: str) -> Spread:
    return speed_ratio(result, part, clock=clock_of(case, threads=result["threads"]), over=case.sides[1])


def _ratio_numbers(case: Case, result: Result) -> dict[str, Any]:
    if len(case.sides) < 2 or case.group == "memory":
        return {}
    parts = ("sampling",) if "vllm" in case.sides else PARTS
    return {
        part: {clock: _spread(speed_ratio(result, part, clock=clock, over=case.sides[1])) for clock in ("cpu", "wall")}
        for part in parts
    }


def _clock(case: Case, result: Result) -> str:
    return {"cpu": "CPU", "wall": "wall"}[clock_of(case, threads=result["threads"])]


def _unlike(results: Sequence[tuple[Case, Result]]) -> list[str]:
    """Where sides did not do the same: lengths that differ beyond chance, or rollouts that were not trained on."""
    lines = []
    for case, result in results:
        name = f"- {case.name}, threads {result['threads']}"
        steps = {side: steps_of(result, side) for side in result["sides"]}
        for side in case.sides[1:]:
            gap = length_gap(steps["ours"], steps[side])
            if gap > MOST_ERRORS:
                means = f"{mean_length(steps['ours']):.1f} and {mean_length(steps[side]):.1f}"
                lines.append(f"{name}: mean lengths of {means} tokens are {gap:.1f} standard errors apart")
        for side, of_side in steps.items():
            left = sum(sampled_tokens(step) - step["trained_tokens"] for step in of_side)
            if left and side != "vllm":
                lines.append(f"{name}: {NAMES[side]} did not train on {left} of its tokens")
    return lines


def _sides(results: Sequence[tuple[Case, Result]]) -> list[str]:
    lines = []
    for case, result in results:
        for side in result["sides"]:
            numbers = _numbers(case, result, side)
            speeds = [_speed(numbers["tokens_per_second"][clock], numbers) for clock in ("cpu", "wall")]
            cells = [
                *(case.name, str(result["threads"]), NAMES[side]),
                f"{numbers['mean_length']:.1f}",
                *speeds,
                *(f"{numbers['computed'][part]:.2f}" if numbers["computed"][part] else "–" for part in PARTS[:2]),
                f"{numbers['peak_bytes'] / MEGABYTE:,.0f}",
                *(f"{share:.0%}" if share else "–" for share in numbers["limit_fraction"].values()),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return _table(
        "case | threads | side | mean length | tokens a CPU-second: sampling / training / step | tokens a wall-second: "
        "sampling / training / step | computed / useful, sampling | computed / useful, training | peak MiB | sampling, "
        "of the limit | training, of the matrix rate",
        lines,
    )


def _speed(of_parts: dict[str, float], numbers: dict[str, Any]) -> str:
    return " / ".join(f"{of_parts[part]:,.0f}" if part in of_parts else "–" for part in PARTS)


def _numbers(case: Case, result: Result, side: str) -> dict[str, Any]:
    """What one side did."""
    steps = steps_of(result, side)
    parts = ("sampling",) if side == "vllm" else PARTS
    positions = {part: median(step[part]["positions"] for step in steps) for part in PARTS[:2]}
    useful = median(unique_tokens(step) for step in steps)
    return {
        "steps": len(steps),
        "mean_length": mean_length(steps),
        "sampled_tokens": median(map(sampled_tokens, steps)),
        "trained_tokens": median(step["trained_tokens"] for step in steps),
        "useful_tokens": useful,
        "computed_tokens": positions,
        "computed": {part: positions[part] / useful for part in positions},
        "tokens_per_second": {
            clock: {part: median(tokens_per_second(step, part, clock=clock) for step in steps) for part in parts}
            for clock in ("cpu", "wall")
        },
        "seconds": {clock: median(step[f"{clock}_seconds"] for step in steps) for clock in ("cpu", "wall")},
        "peak_bytes": peak_bytes(steps),
        "training_extra_bytes": head_bytes(steps),
        "limit_fraction": {
            part: limit_fraction(result, case, side, part=part) if part in parts else None for part in PARTS[:2]
        },
    }


def _memory(results: Sequence[tuple[Case, Result]]) -> list[str]:
    lines = []
    for case, result in results:
        ours, trl = (head_bytes(steps_of(result, side)) for side in ("ours", "trl"))
        full = fmean(full_logits_bytes(step, case.shape) for step in steps_of(result, "ours"))
        lines.append(
            f"| {case.what} | {full / MEGABYTE:,.0f} | {trl / MEGABYTE:,.0f} | {ours / MEGABYTE:,.0f} "
            f"| {full / ours:.1f} | {trl / ours:.1f} |"
        )
    return _table(
        "work of a step | float32 logits of all tokens, MiB | TRL, MiB | ours, MiB | full logits / ours | TRL / ours",
        lines,
    )


def _scaling(results: Sequence[tuple[Case, Result]]) -> list[str]:
    measured = {case.name: (case, result) for case, result in results}
    first = measured.get("scaling-problems-1")
    if first is None:
        return []
    base = _microseconds(first[1])
    lines = []
    for axis in ("problems", "group", "length"):
        for factor in (1, 2, 4, 8, 16):
            found = first if factor == 1 else measured.get(f"scaling-{axis}-{factor}")
            if found is None:
                continue
            case, result = found
            steps, cost = steps_of(result, "ours"), _microseconds(result)
            tokens = median(map(unique_tokens, steps))
            cells = (axis, f"{factor}×", case.what, f"{tokens:,.0f}", f"{cost * tokens / 1e6:.2f}", f"{cost:.0f}")
            lines.append(f"| {' | '.join(cells)} | {cost / base:.2f} |")
    return _table("what grows | by | work of a step | useful tokens | CPU-seconds | µs a useful token | of 1×", lines)


def _microseconds(result: Result) -> float:
    """Of CPU for a useful token, the whole step counted."""
    return median(1e6 * step["cpu_seconds"] / unique_tokens(step) for step in steps_of(result, "ours"))


def _profiles(cases: Sequence[Case], *, folder: Path) -> list[str]:
    paths = [profile_path(case, folder=folder) for case in cases]
    return "\n\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file()).splitlines()


def _machine(results: Sequence[tuple[Case, Result]]) -> list[str]:
    lines = []
    for case, result in results:
        limits = best_limits(result)
        cells = [
            f"{limits[f'{name}_flops_per_second'] / 1e9:,.0f}" for name in ("float32", "float32_model", "bfloat16")
        ]
        copied = f"{limits['copied_bytes_per_second'] / 1e9:,.1f}"
        lines.append(f"| {case.name} | {result['threads']} | {' | '.join(cells)} | {copied} |")
    head = "case | threads | float32, GFLOP/s | float32, of the model's size | bfloat16, GFLOP/s | copied, GB/s"
    return _table(head, lines)


def _missing(cases: Sequence[Case], results: Sequence[tuple[Case, Result]]) -> list[str]:
    measured = {case.name for case, _ in results}
    skipped = _skipped(cases)
    begun = {choice_of(case) for case in cases if case.name in measured}
    reasons = {
        name: "has not been run in all of its sizes" if name in begun else skipped.get(case.name, "has not been run")
        for name, case in ((choice_of(case), case) for case in cases if case.name not in measured)
    }
    return [f"- {name}: {reason}" for name, reason in reasons.items()]


def _skipped(cases: Sequence[Case]) -> dict[str, str]:
    reasons = {case.name: reason_to_skip(case) for case in cases}
    return {name: reason for name, reason in reasons.items() if reason}


def _bar_rows(results: Sequence[tuple[Case, Result]]) -> Iterator[tuple[str, Spread, float | None]]:
    """Label, ratio of the whole step with its spread, and the goal."""
    for case, result in results:
        if case.group != "step":
            continue
        goal = next((goal.factor for goal in case.goals if goal.measure == "step"), None)
        threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
        yield f"{case.name}, {threads}", _ratio(case, result, "step"), goal


def _table(head: str, lines: Sequence[str]) -> list[str]:
    """With a heading where there are lines."""
    if not lines:
        return []
    return [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *lines]


def _range(spread: Spread) -> str:
    return f"{spread.middle:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _spread(spread: Spread) -> dict[str, float]:
    return {"median": spread.middle, "low": spread.low, "high": spread.high}
