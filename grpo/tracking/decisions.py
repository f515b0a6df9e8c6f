"""The temperature's decisions as the report's tables: every number that led to one, in words and columns.

Reads events of a run's folder, which may hold anything; knows no schedule."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo.tracking.charts import format_number
from grpo.tracking.recorded_run import RecordedRun, Row, is_number
from grpo.tracking.rollout_index import embeddable

MAX_DECISIONS = 60

# Field of a reading, heading, and what it is, for those who hover over the heading. A column without a value is left
# out of its table.
COLUMNS = (
    ("temperature", "Temperature", ""),
    ("source", "From", "validation: rollouts drawn at it; window: rollouts of practice, reweighted"),
    ("num_problems", "Problems", ""),
    ("total_rollouts", "Rollouts", "with a verdict, of all problems"),
    ("mean", "Score", "share of right rollouts, mean over problems"),
    ("difference", "Difference", "mean over problems of the paired difference"),
    ("standard_error", "s.e.", "standard error of the difference, at least that of a loss of the allowed drop"),
    ("difference_lower", "Lower", "one-sided bound of the difference"),
    ("difference_upper", "Upper", "one-sided bound of the difference"),
    ("drop_allowed", "Allowed drop", "how far the lower bound may lie below 0"),
    ("signal", "p(1 − p)", "expected signal, mean over problems"),
    ("diversity", "Diversity", "share of distinct 4-grams in a problem's rollouts"),
    ("effective_fraction", "Counts", "effective share of the reweighted rollouts"),
)


def decisions(run: RecordedRun) -> Row:
    """The decisions, the latest first, and how many there are."""
    events = _events(run)
    shown = [_decision(event) for event in reversed(events[-MAX_DECISIONS:])]
    return {"decisions": shown, "num_decisions": len(events)}


def _events(run: RecordedRun) -> list[Row]:
    return [event for event in run.events if event.get("event") == "temperature"]


def _decision(event: Row) -> Row:
    decision = _mapping(event.get("decision"))
    listed = decision.get("readings")
    readings = [reading for reading in listed if isinstance(reading, dict)] if isinstance(listed, list) else []
    columns = [column for column in COLUMNS if any(_has(reading, column[0]) for reading in readings)]
    rows = [
        {
            "chosen": reading.get("temperature") == decision.get("chosen"),
            "cells": [embeddable(reading.get(name)) if _has(reading, name) else None for name, _, _ in columns],
            "verdict": _verdict(reading),
        }
        for reading in readings
    ]
    return {
        "step": embeddable(event.get("step")),
        **{key: embeddable(decision.get(key)) for key in ("chosen", "current", "reason")},
        "compared": embeddable(decision.get("compared")) or "score",
        "columns": [[heading, what] for _, heading, what in columns],
        "rows": rows,
        "plateau": _plateau(_mapping(decision.get("plateau"))),
    }


def _has(reading: Row, name: str) -> bool:
    return reading.get(name) is not None


def _verdict(reading: Row) -> str:
    if reading.get("temperature") == reading.get("reference") and is_number(reading.get("temperature")):
        return "reference"
    if reading.get("admissible"):
        return "admissible"
    if reading.get("failed"):
        return "fails"
    return "sure of neither" if reading.get("sure") else "undecided"


def _plateau(plateau: Mapping[str, Any]) -> str:
    names = ("mean", "num_steps", "rise", "rise_lower", "rise_upper", "allowed_rise")
    numbers: Sequence[Any] = [plateau.get(name) for name in names]
    if not all(is_number(number) for number in numbers):
        return ""
    mean, steps, rise, lower, upper, allowed = (format_number(number) for number in numbers)
    return (
        f"Over the {steps} steps before it the mean reward was {mean} and its rise {rise}, between {lower} and "
        f"{upper}; within ±{allowed} it counts as stable."
    )


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}
