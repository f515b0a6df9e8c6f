"""Evaluations as tables, for the terminal and for the page: one a set of problems, a column a policy.

Owns which numbers stand in which row, and how they are written. What is no number, or is missing, is an empty cell:
the files may be of an earlier form, or of someone else."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curricula import Tier
from grpo.tracking.recorded_run import Row, is_number

LARGE = 10.0
"""Numbers from here on are lengths, and are written with one decimal; shares have three."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An estimate with its interval, or a difference between two."""

    value: float
    low: float | None
    high: float | None
    is_difference: bool = False

    @property
    def number(self) -> str:
        """The value alone."""
        digits = 1 if abs(self.value) >= LARGE else 3
        return f"{self.value:{'+' if self.is_difference else ''},.{digits}f}"

    @property
    def interval(self) -> str:
        """From where to where; empty where there is no interval."""
        if self.low is None or self.high is None:
            return ""
        digits = 1 if max(abs(self.value), abs(self.high)) >= LARGE else 3
        sign = "+" if self.is_difference else ""
        return f"{self.low:{sign},.{digits}f} to {self.high:{sign},.{digits}f}"

    @property
    def is_share(self) -> bool:
        """Whether a line from 0 to 1 can show it."""
        numbers = (self.value, self.low, self.high)
        return not self.is_difference and all(number is not None and 0 <= number <= 1 for number in numbers)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table: what it tells, and a cell or a text for each policy; None where there is nothing to tell."""

    name: str
    cells: tuple[Cell | str | None, ...]

    @property
    def is_difference(self) -> bool:
        """Whether the line tells differences from another policy."""
        return any(isinstance(cell, Cell) and cell.is_difference for cell in self.cells)


@dataclass(frozen=True, slots=True)
class SetTable:
    """All evaluations of one set: the policies, their scores, what sets them apart from the first, and the parts."""

    name: str
    policies: tuple[Row, ...]  # name, step, temperature, num_problems, num_rollouts
    scores: tuple[Line, ...]
    against: str  # the policy that the others are compared with; empty where none is
    differences: tuple[Line, ...]
    parts: tuple[tuple[str, tuple[Line, ...]], ...]  # by tier, by a column


def in_order(evaluations: Iterable[Row]) -> list[Row]:
    """The start first, then by step, and the last policy last."""

    def place(evaluation: Row) -> tuple[bool, bool, float, str]:
        step, name = evaluation.get("step"), str(evaluation.get("name"))
        return name == "last", name != "start", float(step) if is_number(step) else -1.0, name

    return sorted(evaluations, key=place)


def set_tables(evaluations: Sequence[Row]) -> list[SetTable]:
    """A table for each set that an evaluation names, its policies in the order of `evaluations`."""
    names = dict.fromkeys(name for evaluation in evaluations for name in _mapping(evaluation.get("sets")))
    return [_table(name, [e for e in evaluations if name in _mapping(e.get("sets"))]) for name in names]


def _table(name: str, evaluations: Sequence[Row]) -> SetTable:
    contents = [_mapping(_mapping(evaluation["sets"])[name]) for evaluation in evaluations]
    compared = [_mapping(content.get("against")) for content in contents]
    firsts = list(dict.fromkeys(str(other["name"]) for other in compared if "name" in other))
    differences = [*_lines([_mapping(other.get("metrics")) for other in compared], is_difference=True)]
    if any(other for other in compared):
        differences.append(Line("problems better / worse / alike", tuple(_wins(other) for other in compared)))
    if len(firsts) > 1:
        differences.insert(0, Line("difference from", tuple(str(o["name"]) if o else None for o in compared)))
    return SetTable(
        name=name,
        policies=tuple(_policy(e, content) for e, content in zip(evaluations, contents, strict=True)),
        scores=(
            *_lines([_mapping(content.get("metrics")) for content in contents], is_difference=False),
            Line("rollouts without a value", tuple(_lost(content) for content in contents)),
        ),
        against=", ".join(firsts),
        differences=tuple(differences),
        parts=tuple(_parts(contents, compared)),
    )


def _policy(evaluation: Row, content: Row) -> Row:
    counts = {key: content.get(key) for key in ("num_problems", "num_rollouts")}
    return {key: evaluation.get(key) for key in ("name", "step", "temperature")} | counts


def _parts(contents: Sequence[Row], compared: Sequence[Row]) -> Iterator[tuple[str, tuple[Line, ...]]]:
    """For each way to split the set its parts, with their numbers of problems, their pass@k and the differences."""
    keys = dict.fromkeys(key for content in contents for key in content if key.startswith("by_") and content[key])
    for key in keys:
        lines: list[Line] = []
        found_parts = dict.fromkeys(part for content in contents for part in _mapping(content.get(key)))
        for part in sorted(found_parts, key=_place_of_tier) if key == "by_tier" else found_parts:
            of_part = [_mapping(_mapping(content.get(key)).get(part)) for content in contents]
            others = [_mapping(_mapping(other.get(key)).get(part)) for other in compared]
            number = next((table["num_problems"] for table in of_part if is_number(table.get("num_problems"))), None)
            title = f"{part} ({number:,})" if number is not None else part
            for tables, is_difference in ((of_part, False), (others, True)):
                metrics = [_mapping(table.get("metrics", table)) for table in tables]
                found = _lines([_passes(of) for of in metrics], is_difference=is_difference)
                lines += [Line(f"{title} {line.name}", line.cells) for line in found]
        yield key.removeprefix("by_"), tuple(lines)


def _place_of_tier(name: str) -> int:
    """From the easiest to the unsolved; what is no tier behind them, as it comes."""
    tiers = [str(tier) for tier in Tier]
    return tiers.index(name) if name in tiers else len(tiers)


def _passes(metrics: Row) -> Row:
    return {name: metric for name, metric in metrics.items() if name.startswith("pass@")}


def _lines(tables: Sequence[Row], *, is_difference: bool) -> list[Line]:
    """A line for each metric that one of the tables has."""
    lines = []
    for name in dict.fromkeys(name for table in tables for name in table):
        cells = tuple(_cell(table.get(name), is_difference=is_difference) for table in tables)
        if any(cell is not None for cell in cells):
            lines.append(Line(name, cells))
    return lines


def _cell(metric: Any, *, is_difference: bool) -> Cell | None:
    value, low, high = (_mapping(metric).get(key) for key in ("value", "low", "high"))
    if not is_number(value):
        return None
    if not (is_number(low) and is_number(high)):
        return Cell(float(value), None, None, is_difference)
    return Cell(float(value), float(low), float(high), is_difference)


def _wins(compared: Row) -> str | None:
    counts = [compared.get(key) for key in ("wins", "losses", "ties")]
    return " / ".join(f"{count:,}" for count in counts if is_number(count)) or None


def _lost(content: Row) -> str | None:
    lost = {status: count for status, count in _mapping(content.get("lost")).items() if is_number(count)}
    if "lost" not in content:
        return None
    return ", ".join(f"{count:,} {status}" for status, count in lost.items() if count) or "0"


def _mapping(value: Any) -> Row:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}
