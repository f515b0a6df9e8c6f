"""A run's folder as JSON: what the page draws, for the report that embeds it and the dashboard that serves it.

Owns which of the folder's files become which part of the page. Knows no tensor and no trainer. A file that is missing
costs its part, which is then None or empty, and the page says so."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from grpo.manifest import by_tier, difficulty_histogram
from grpo.tracking.config_changes import config_rows
from grpo.tracking.decisions import decisions
from grpo.tracking.evaluations import Cell, Line, in_order, set_tables
from grpo.tracking.health import alarms, headline, shown, state
from grpo.tracking.ledger import ledger
from grpo.tracking.recorded_run import RecordedRun, Row, is_number
from grpo.tracking.rollout_index import Entry, embeddable, shortened
from grpo.tracking.tier_moves import tier_moves

MAX_EVENTS = 200
MAX_POINTS = 20_000
"""Steps that a page holds; of a longer run the lowest and the highest value of each stretch."""
MAX_NAME_CHARACTERS = 200


def run_data(run: RecordedRun, entries: Sequence[Entry], *, silent_seconds: float | None = None) -> Row:
    """Everything about a run but its rollouts, of which `entries` says who was practised as what."""
    return {
        **summary(run, silent_seconds=silent_seconds),
        "metrics": columns(run.metrics),
        "evaluations": _evaluations(run),
        "tiers": _tiers(run),
        "moves": tier_moves(run, entries),
        "config": [{**row, "value": shortened(row["value"])} for row in config_rows(run.config)],
        "notes": [shortened(note) for note in run.notes],
    }


def summary(run: RecordedRun, *, silent_seconds: float | None) -> Row:
    """What changes with every step, and is small: names, state, alarms, headline, bills, decisions, events."""
    name = run.config.get("run", {}).get("name") if isinstance(run.config.get("run"), dict) else None
    events = [event for event in run.events if event.get("event") != "temperature"]
    return {
        "name": shortened(str(name or run.folder.resolve().name)),
        "folder": shortened(run.folder.resolve().name),
        "state": state(run),
        "alarms": [_short(alarm) for alarm in alarms(run, silent_seconds=silent_seconds)],
        "headline": [_short(cell) for cell in headline(run)],
        "ledger": [{"purpose": bill.purpose, "tokens": bill.tokens, "note": bill.note} for bill in ledger(run)],
        "stages": [[step, shortened(name)] for step, name in run.stages],
        **decisions(run),
        "events": [_event(event) for event in events[-MAX_EVENTS:]],
        "num_events": len(events),
    }


def columns(rows: Sequence[Row]) -> Row:
    """Rows of metrics.jsonl by column: the steps, and for each name a value or None a step.

    `not_finite` counts, for each name, the steps at which it was logged and was no finite number."""
    names = [*dict.fromkeys(name for row in rows for name in row if name != "step" and is_number(row[name]))]
    steps = [row["step"] for row in rows]
    values = {name: [_rounded(row.get(name)) for row in rows] for name in names}
    lost = {name: sum(name in row and not is_number(row[name]) for row in rows) for name in names}
    if len(steps) > MAX_POINTS:
        stretches = _stretches(len(steps))
        values = {name: _extremes(column, stretches) for name, column in values.items()}
        steps = [steps[index] for first, end in stretches for index in (first, end - 1)]
    return {
        "steps": steps,
        "columns": {name[:MAX_NAME_CHARACTERS]: column for name, column in values.items()},
        "not_finite": {name[:MAX_NAME_CHARACTERS]: number for name, number in lost.items() if number},
        "num_steps": len(rows),
    }


def _stretches(length: int) -> list[tuple[int, int]]:
    number = MAX_POINTS // 2
    return [(index * length // number, (index + 1) * length // number) for index in range(number)]


def _extremes(column: Sequence[float | None], stretches: Iterable[tuple[int, int]]) -> list[float | None]:
    """The lowest and the highest value of each stretch, in the order in which they come: no spike is lost."""
    result: list[float | None] = []
    for first, end in stretches:
        known = [index for index in range(first, end) if column[index] is not None]
        low = min(known, key=lambda index: column[index] or 0.0, default=first)
        high = max(known, key=lambda index: column[index] or 0.0, default=first)
        result += [column[min(low, high)], column[max(low, high)]]
    return result


def _rounded(value: Any) -> float | int | None:
    """Six significant digits: what a chart can show, in few bytes. None where it is no finite number."""
    if not is_number(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _evaluations(run: RecordedRun) -> list[Row]:
    """The evaluations as tables: a set each, with blocks of lines under one another."""
    found = []
    for of_set in set_tables(in_order(run.evaluations)):
        blocks = [("", of_set.scores), (f"Difference from {of_set.against}", of_set.differences)]
        blocks += [(f"By {name}", lines) for name, lines in of_set.parts]
        found.append(
            {
                "name": shortened(of_set.name),
                "policies": [{key: embeddable(value) for key, value in of.items()} for of in of_set.policies],
                "blocks": [
                    {"title": shortened(title), "lines": [_line(line, against=of_set.against) for line in lines]}
                    for title, lines in blocks
                    if lines
                ],
            }
        )
    return found


def _line(line: Line, *, against: str) -> Row:
    """A line whose cells can be shown: a number, its interval, and where it is a share the interval to be drawn."""
    cells = []
    for cell in line.cells:
        if isinstance(cell, Cell):
            drawn = [cell.low, cell.value, cell.high] if cell.is_share else None
            cells.append({"value": cell.number, "interval": cell.interval, "drawn": drawn})
        else:
            cells.append({"value": shortened(cell or "–"), "interval": "", "drawn": None})
    return {"name": shortened(line.name + (f" − {against}" if line.is_difference else "")), "cells": cells}


def _tiers(run: RecordedRun) -> Row | None:
    """The profile's tiers: a row each with its share and how sure its labels are, and the counts by difficulty."""
    if run.profile is None:
        return None
    profile = run.profile
    labels, counts = difficulty_histogram(profile.rows)
    return {
        "summaries": [
            {
                name: None if isinstance(value := getattr(of_tier, name), float) and math.isnan(value) else value
                for name in of_tier.__dataclass_fields__
            }
            for of_tier in by_tier(profile.rows)
        ],
        "total": len(profile.rows),
        "without_tier": profile.num_without_tier,
        "num_rollouts": profile.num_rollouts,
        "num_tokens": profile.num_tokens,
        "temperature": embeddable(profile.rows[0]["temperature"]) if profile.rows else None,
        "labels": labels,
        "counts": [[name, numbers] for name, numbers in counts.items()],
    }


def _event(event: Row) -> Row:
    rest = {key: value for key, value in event.items() if key not in ("step", "event")}
    text = ", ".join(f"{key}: {shown(value)}" for key, value in rest.items())
    return {
        "step": embeddable(event.get("step")),
        "event": embeddable(event.get("event")),
        "text": shortened(text),
    }


def _short(row: Row) -> Row:
    return {key: shortened(value) if isinstance(value, str) else value for key, value in row.items()}
