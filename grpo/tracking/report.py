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

from grpo.tracking.charts import Mark, format_number, interval_bar, line_chart, stacked_chart
from grpo.tracking.recorded_run import RecordedRun, Row, choose_rollouts, is_number, num_lines, read_jsonl, read_run

MAX_ROLLOUTS = 2000
MAX_TEXT_CHARACTERS = 8000
MAX_EVENTS = 200
MAX_DECISIONS = 60
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
    name = run.config.get("run", {}).get("name") if isinstance(run.config.get("run"), dict) else None
    return {
        "title": str(name or run.folder.resolve().name),
        "folder": run.folder.resolve().name,
        "headline": _headline(run),
        "evaluations": [_evaluation(evaluation) for evaluation in run.evaluations],
        "evaluation_charts": _charts(run, [n for n in _metric_names(run) if n.startswith("eval/")]),
        "curves": _curves(run),
        "tiers": _tiers(run),
        "tier_chart": _tier_chart(run),
        "temperature_chart": next(iter(_charts(run, ["sampling/temperature"])), None),
        **_decisions(run),
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
    for evaluated in [_evaluation(e) for e in run.evaluations[-1:]]:
        for evaluated_set in evaluated["sets"]:
            for metric in evaluated_set["metrics"]:
                if metric["name"] == "pass@1":
                    under = metric["interval"] + _gain(run, evaluated_set["name"], metric)
                    label = f"pass@1 {evaluated['name']}, {evaluated_set['name']}"
                    cells.append(
                        {"label": label, "value": metric["value"], "under": under.removeprefix(" · "), "key": True}
                    )
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


def _gain(run: RecordedRun, set_name: str, metric: Row) -> str:
    """What the last evaluation has over the first one, on the same set; the gate was on other problems."""
    first = _evaluation(run.evaluations[0])
    for evaluated_set in first["sets"] if len(run.evaluations) > 1 else []:
        for before in evaluated_set["metrics"]:
            if evaluated_set["name"] == set_name and before["name"] == metric["name"]:
                return f" · {metric['number'] - before['number']:+.3g} over the {first['name']}"
    return ""


def _evaluation(evaluation: Row) -> Row:
    """One file of evals/ as tables: the sets' metrics, and under each set its breakdowns."""
    sets = []
    for name, content in _mapping(evaluation.get("sets")).items():
        content = _mapping(content)
        breakdowns = [
            _breakdown(key.removeprefix("by_"), groups)
            for key, groups in content.items()
            if key.startswith("by_") and groups
        ]
        counts = {key: content.get(key) for key in ("num_problems", "num_rollouts")}
        sets.append({"name": name, **counts, "metrics": _metrics(content.get("metrics")), "breakdowns": breakdowns})
    keys = ("name", "step", "temperature")
    others = [(key.replace("_", " "), v) for key, v in evaluation.items() if key not in keys and is_number(v)]
    return {**{key: evaluation.get(key) for key in keys}, "sets": sets, "others": others}


def _breakdown(name: str, groups: Any) -> Row:
    """One set's metrics by tier or group: a row a group, a column a metric."""
    rows = []
    for group, values in _mapping(groups).items():
        content = _mapping(values)
        metrics = {metric["name"]: metric for metric in _metrics(content.get("metrics", content))}
        rows.append((group, content.get("num_problems"), metrics))
    columns = list(dict.fromkeys(column for _, _, metrics in rows for column in metrics))
    return {"name": name, "columns": columns, "rows": rows}


def _metrics(values: Any) -> list[Row]:
    """Name → {value, low, high} as rows that can be printed; what is no such mapping is no metric."""
    rows = []
    for name, metric in _mapping(values).items():
        value, low, high = (_mapping(metric).get(key) for key in ("value", "low", "high"))
        if not is_number(value):
            continue
        interval, bar = "", Markup("")
        if is_number(low) and is_number(high):
            interval, bar = f"{low:.3f} to {high:.3f}", interval_bar(float(value), low=float(low), high=float(high))
        rows.append({"name": name, "number": value, "value": f"{value:.3f}", "interval": interval, "bar": bar})
    return rows


def _marks(run: RecordedRun) -> list[Mark]:
    return [Mark(step, name) for step, name in run.stages]


def _metric_names(run: RecordedRun) -> list[str]:
    """In the order in which they were first logged."""
    return list(dict.fromkeys(n for row in run.metrics for n in row if n != "step" and is_number(row[n])))


def _charts(run: RecordedRun, names: Sequence[str]) -> list[Row]:
    charts = []
    for name in names:
        points = run.curve(name)
        if not points:
            continue
        missing = sum(name in row and not is_number(row[name]) for row in run.metrics)
        drawing = line_chart(points, name=name, steps=run.steps, marks=_marks(run), stepped=name in SET_NOT_MEASURED)
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
    """The profile's tiers as bars."""
    if run.profile is None:
        return None
    counts = {str(k): v for k, v in _mapping(run.profile.get("tiers")).items() if is_number(v)}
    total = sum(counts.values())
    bars = [
        {"name": name, "count": counts[name], "percent": 100 * counts[name] / total if total else 0.0}
        for name in _in_tier_order(iter(counts))
    ]
    keys = ("num_rollouts", "temperature")
    return {"bars": bars, "total": total, **{key: run.profile.get(key) for key in keys}}


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


def _decisions(run: RecordedRun) -> Row:
    """The temperature controller's decisions, the latest first."""
    events = [e for e in run.events if e.get("event") == "temperature"]
    decisions = []
    for event in reversed(events[-MAX_DECISIONS:]):
        decision = _mapping(event.get("decision"))
        candidates = [c for c in decision.get("readings") or [] if isinstance(c, dict)]
        keys = ("chosen", "current", "reason")
        decisions.append({"step": event.get("step"), "rows": candidates, **{key: decision.get(key) for key in keys}})
    return {"decisions": decisions, "num_decisions": len(events)}


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
