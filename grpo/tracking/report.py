"""One run's folder as one HTML file: what a person looks at to decide about the run.

Owns which of the folder's files become which part of the page, in numbers and words that the template only places.
Knows no tensor, no config schema and no trainer. A file that is missing costs its section, and the page says so.
Everything in the folder may be hostile (rollouts are): jinja escapes it, and the page's policy lets only its own
script run and nothing be fetched."""

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grpo.manifest import by_tier, difficulty_histogram
from grpo.tracking.charts import Mark, bar_chart, format_number, interval_bar, line_chart, stacked_chart
from grpo.tracking.decisions import decision_marks, decisions
from grpo.tracking.evaluations import Cell, Line, SetTable, in_order, set_tables
from grpo.tracking.ledger import ledger
from grpo.tracking.recorded_run import RecordedRun, Row, choose_rollouts, is_number, num_lines, read_jsonl, read_run

MAX_ROLLOUTS = 2000
MAX_TEXT_CHARACTERS = 8000
MAX_EVENTS = 200
PREFIXES = (
    "reward",
    "group",
    "policy",
    "completion",
    "sampling",
    "curriculum",
    "persona",
    "optim",
    "time",
    "throughput",
)
TIERS = ("trivial", "moderate", "extreme", "unsolved")
SET_NOT_MEASURED = ("sampling/temperature", "curriculum/stage", "optim/lr")
"""Metrics that are decided and not measured: drawn as stairs, never smoothed."""

ROLLOUT_FIELDS = (
    *("step", "problem_id", "attempt", "stage", "tier", "completion", "answer", "reward", "status", "parts", "detail"),
    *("advantage", "stop_reason", "temperature", "num_tokens"),
)


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html, whole or not at all, and return its path.

    Raises FileNotFoundError where run_dir has no config.yaml, and ValueError where that file holds no mapping."""
    run = read_run(run_dir)
    environment = Environment(
        loader=PackageLoader("grpo.tracking", package_path="."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _shown
    environment.filters["sha256"] = _content_hash
    page = environment.get_template("report.html.jinja").render(_page(run))
    target = run_dir / "report.html"
    unfinished = run_dir / f".report.html.{os.getpid()}.tmp"
    try:
        unfinished.write_text(page, encoding="utf-8", errors="replace")  # names can hold half a surrogate pair
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _page(run: RecordedRun) -> Row:
    """Everything the template shows. A section without its file is None, and the template says which file it needs."""
    rollouts = _rollouts(run)  # first: it may add notes
    bills = ledger(run)
    name = run.config.get("run", {}).get("name") if isinstance(run.config.get("run"), dict) else None
    return {
        "title": str(name or run.folder.resolve().name),
        "folder": run.folder.resolve().name,
        "headline": _headline(run),
        "evaluations": _evaluations(run),
        "evaluation_charts": _charts(run, [n for n in _metric_names(run) if n.startswith("eval/")]),
        "curves": _curves(run),
        "tiers": _tiers(run),
        "tier_chart": _tier_chart(run),
        "ledger": bills,
        "ledger_total": sum(bill.tokens for bill in bills),
        "temperature_chart": next(iter(_charts(run, ["sampling/temperature"], marks=decision_marks(run))), None),
        **decisions(run),
        "rollouts": rollouts,
        "events": [_event(e) for e in run.events if e.get("event") != "temperature"][:MAX_EVENTS],
        "num_events": sum(e.get("event") != "temperature" for e in run.events),
        "config": _config(run.config),
        "notes": run.notes,
    }


def _headline(run: RecordedRun) -> list[Row]:
    """The few numbers that say what came out: label, value, under it what it rests on; the result itself is `key`."""
    gate: Row = next((e for e in reversed(run.events) if e.get("event") == "gate"), {})
    best: Row = next((e for e in reversed(run.events) if e.get("event") == "best"), {})
    cells: list[Row] = []
    if is_number(gate.get("pass@1")):
        under = f"after {_shown(gate['sft_steps'])} supervised steps" if "sft_steps" in gate else ""
        cells.append({"label": "pass@1 at the gate", "value": _shown(gate["pass@1"]), "under": under})
    for of_set in set_tables(in_order(run.evaluations)):
        passed = next((line.cells[-1] for line in of_set.scores if line.name == "pass@1"), None)
        if isinstance(passed, Cell):
            label = f"pass@1 {_shown(of_set.policies[-1]['name'])}, {of_set.name}"
            under = " · ".join(part for part in (passed.interval, _gain(of_set)) if part)
            cells.append({"label": label, "value": passed.number, "under": under, "key": True})
    if is_number(best.get("value")):
        under = f"{best.get('metric', '')} at step {_shown(best.get('step'))}"
        cells.append({"label": "best while training", "value": _shown(best["value"]), "under": under})
    if run.metrics:
        stages = len({s for _, s in run.curve("curriculum/stage")})
        under = f"in {stages} stages" if stages > 1 else ""
        cells.append({"label": "steps", "value": _shown(run.steps[1]), "under": under})
    if tokens := sum(tokens for _, tokens in run.curve("sampling/tokens")):
        cells.append({"label": "tokens sampled", "value": format_number(tokens), "under": "while training"})
    if seconds := sum(seconds for _, seconds in run.curve("time/step")):
        cells.append({"label": "training time", "value": _duration(seconds), "under": "the steps' sum"})
    return [{"key": False, **cell} for cell in cells]


def _gain(of_set: SetTable) -> str:
    """What the last policy has over the first one, problem by problem; the gate was on other problems."""
    gained = next((line.cells[-1] for line in of_set.differences if line.name == "pass@1"), None)
    return f"{gained.number} over the {of_set.against} ({gained.interval})" if isinstance(gained, Cell) else ""


def _evaluations(run: RecordedRun) -> list[Row]:
    """The evaluations as tables: a set each, with blocks of lines under one another."""
    found = []
    for of_set in set_tables(in_order(run.evaluations)):
        blocks = [("", of_set.scores), (f"Difference from {of_set.against}", of_set.differences)]
        blocks += [(f"By {name}", lines) for name, lines in of_set.parts]
        shown = [
            {"title": title, "lines": [_line(line, against=of_set.against) for line in lines]}
            for title, lines in blocks
            if lines
        ]
        found.append({"name": of_set.name, "policies": of_set.policies, "blocks": shown})
    return found


def _line(line: Line, *, against: str) -> Row:
    """A line whose cells can be printed: a number, its interval, and a bar where it is a share."""
    cells = []
    for cell in line.cells:
        if isinstance(cell, Cell):
            bar = Markup("")
            if cell.is_share and cell.low is not None and cell.high is not None:
                bar = interval_bar(cell.value, low=cell.low, high=cell.high)
            cells.append({"value": cell.number, "interval": cell.interval, "bar": bar})
        else:
            cells.append({"value": cell or "–", "interval": "", "bar": Markup("")})
    return {"name": line.name + (f" − {against}" if line.is_difference else ""), "cells": cells}


def _marks(run: RecordedRun) -> list[Mark]:
    return [Mark(step, name) for step, name in run.stages]


def _metric_names(run: RecordedRun) -> list[str]:
    """In the order in which they were first logged."""
    return list(dict.fromkeys(n for row in run.metrics for n in row if n != "step" and is_number(row[n])))


def _charts(run: RecordedRun, names: Sequence[str], *, marks: Sequence[Mark] = ()) -> list[Row]:
    """`marks` beside those of the stages."""
    charts = []
    for name in names:
        points = run.curve(name)
        if not points:
            continue
        missing = sum(name in row and not is_number(row[name]) for row in run.metrics)
        stepped = name in SET_NOT_MEASURED
        drawing = line_chart(points, name=name, steps=run.steps, marks=[*_marks(run), *marks], stepped=stepped)
        charts.append({"name": name, "last": points[-1][1], "missing": missing, "svg": drawing})
    return charts


def _curves(run: RecordedRun) -> list[tuple[str, list[Row]]]:
    """Charts by prefix. What has a section of its own (evaluation, tiers) is drawn there."""
    by_prefix: dict[str, list[str]] = {}
    for name in _metric_names(run):
        if not name.startswith(("eval/", "curriculum/tier_")):
            by_prefix.setdefault(name.partition("/")[0], []).append(name)
    others = [prefix for prefix in by_prefix if prefix not in PREFIXES]
    groups = [(prefix, _charts(run, by_prefix.get(prefix, []))) for prefix in (*PREFIXES, *others)]
    return [(prefix, charts) for prefix, charts in groups if charts]


def _in_tier_order(names: Iterator[str]) -> list[str]:
    return sorted(names, key=lambda name: (TIERS.index(name) if name in TIERS else len(TIERS), name))


def _tiers(run: RecordedRun) -> Row | None:
    """The profile's tiers: a row each with its share and how sure its labels are, and the picture of difficulty."""
    if run.profile is None:
        return None
    profile = run.profile
    labels, counts = difficulty_histogram(profile.rows)
    return {
        "summaries": by_tier(profile.rows),
        "total": len(profile.rows),
        "without_tier": profile.num_without_tier,
        "num_rollouts": profile.num_rollouts,
        "num_tokens": profile.num_tokens,
        "temperature": profile.rows[0]["temperature"] if profile.rows else None,
        "names": list(counts),
        "svg": bar_chart(labels, list(counts.items())),
    }


def _tier_chart(run: RecordedRun) -> Row | None:
    """The tiers' sizes while training, stacked; a step that lacks one of them is not drawn."""
    prefix = "curriculum/tier_"
    names = _in_tier_order(n.removeprefix(prefix) for n in _metric_names(run) if n.startswith(prefix))
    curves = [dict(run.curve(prefix + name)) for name in names]
    steps = [row["step"] for row in run.metrics if curves and all(row["step"] in curve for curve in curves)]
    if len(steps) < 2:
        return None
    layers = [(name, [curve[step] for step in steps]) for name, curve in zip(names, curves, strict=True)]
    return {"names": names, "svg": stacked_chart(steps, layers, marks=_marks(run))}


def _event(event: Row) -> Row:
    rest = {key: value for key, value in event.items() if key not in ("step", "event")}
    text = ", ".join(f"{key}: {_shown(value)}" for key, value in rest.items())
    return {"step": event.get("step"), "event": event.get("event"), "text": _shortened(text)}


def _rollouts(run: RecordedRun) -> Row | None:
    """At most MAX_ROLLOUTS, spread over the files. A group's prompt is stored once: rows hold its number."""
    paths = sorted((run.folder / "rollouts").glob("*.jsonl"))
    counts = [num_lines(path) for path in paths]
    if not sum(counts):
        return None
    prompts: dict[str, int] = {}
    rows = []
    for path, lines in zip(paths, choose_rollouts(counts, limit=MAX_ROLLOUTS), strict=True):
        for rollout in read_jsonl(path, notes=run.notes, lines=frozenset(lines)):
            row = {key: _embeddable(rollout.get(key)) for key in ROLLOUT_FIELDS}
            if row["num_tokens"] is None and isinstance(rollout.get("token_ids"), list):
                row["num_tokens"] = len(rollout["token_ids"])
            prompt = str(_embeddable(rollout.get("prompt") or ""))
            row["prompt"] = prompts.setdefault(prompt, len(prompts))
            rows.append(row)
    choices = {key: _distinct(row[key] for row in rows) for key in ("step", "status", "tier")}
    data = {"prompts": list(prompts), "rows": rows}
    return {"data": data, "choices": choices, "shown": len(rows), "total": sum(counts), "num_files": len(paths)}


def _distinct(values: Iterator[Any]) -> list[Any]:
    """The values that occur, numbers first and in their order."""
    found = {str(value): value for value in values if value is not None}
    return sorted(found.values(), key=lambda v: (not is_number(v), v if is_number(v) else 0, str(v)))


def _embeddable(value: Any) -> Any:
    """A value as JSON that a browser reads: text kept short, lists and mappings as text, no NaN."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value if is_number(value) else str(value)
    if isinstance(value, dict) and all(is_number(part) for part in value.values()):
        return value
    return _shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _shortened(text: str) -> str:
    """The text, or where it is very long its beginning and its end. Half a surrogate pair becomes a question mark."""
    if len(text) > MAX_TEXT_CHARACTERS:
        half = MAX_TEXT_CHARACTERS // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _config(config: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config by section, each value under its dotted name, as one writes it in an override."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, value in _flattened(config, prefix=""):
        sections.setdefault(name.partition(".")[0], []).append((name, value))
    return list(sections.items())


def _flattened(mapping: Mapping[Any, Any], *, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flattened(value, prefix=f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _mapping(value: Any) -> Row:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    """A value in running text: numbers short, nothing as a dash, the rest as it is."""
    if value is None:
        return "–"
    if is_number(value):
        return format_number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _content_hash(script: Markup) -> str:
    """A script as a content security policy names it, so that the browser runs that text and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
