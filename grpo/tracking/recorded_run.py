"""What a run recorded in its folder, read: metrics, events, profile, evaluations, and the rollouts that one asks for.

Owns the tolerance: a file that is absent is empty, a line that is torn is left out and noted, a step that was logged
twice counts as it was logged last. Knows nothing of how any of it is shown."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from grpo.errors import DataError
from grpo.manifest import MANIFEST_FILE, Manifest, read_manifest

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What the folder holds, read once. `notes` are sentences about what could not be read."""

    folder: Path
    config: Row
    metrics: list[Row]
    events: list[Row]
    profile: Manifest | None
    evaluations: list[Row]
    phases: Row = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> tuple[float, float]:
        """The first and last step of the charts' common axis."""
        steps = [row["step"] for row in self.metrics]
        return (min(steps), max(steps)) if steps else (0.0, 1.0)

    @property
    def stages(self) -> list[tuple[float, str]]:
        """The step and name of each stage but the one that begins the run."""
        begun = [e for e in self.events if e.get("event") == "stage" and is_number(e.get("step"))]
        return [(e["step"], str(e.get("name", e.get("stage", "")))) for e in begun if e["step"] > self.steps[0]]

    def curve(self, name: str) -> list[tuple[float, float]]:
        """One metric as (step, value), where it is a finite number."""
        return [(row["step"], float(row[name])) for row in self.metrics if is_number(row.get(name))]


def read_run(run_dir: Path) -> RecordedRun:
    """Everything but the rollouts, which are read where they are chosen: they can outweigh the memory."""
    notes: list[str] = []
    return RecordedRun(
        folder=run_dir,
        config=read_config(run_dir),
        metrics=by_step(read_jsonl(run_dir / "metrics.jsonl", notes=notes)),
        events=read_jsonl(run_dir / "events.jsonl", notes=notes),
        profile=read_profile(run_dir / "profile" / MANIFEST_FILE, notes=notes),
        evaluations=read_evaluations(run_dir, notes=notes),
        phases=read_json(run_dir / "phases.json", notes=notes) or {},
        notes=notes,
    )


def read_config(run_dir: Path) -> Row:
    """The run's config. Raises FileNotFoundError where there is none, ValueError where it is no mapping."""
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        raise FileNotFoundError(f"{run_dir} is not a run's folder: it has no config.yaml. Give the folder of one run.")
    try:
        config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config_path} is not readable YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{config_path} must hold a mapping of sections; got {type(config).__name__}")
    return config


def by_step(rows: Iterable[Row]) -> list[Row]:
    """One row a step, in order. A resumed run logs a step again: the last word counts."""
    merged: dict[float, Row] = {}
    for row in rows:
        if is_number(row.get("step")):
            merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def read_evaluations(run_dir: Path, *, notes: list[str]) -> list[Row]:
    """The evaluations that can be read."""
    evaluations = [read_json(path, notes=notes) for path in sorted((run_dir / "evals").glob("*.json"))]
    return [evaluation for evaluation in evaluations if evaluation is not None]


def read_jsonl(path: Path, *, notes: list[str]) -> list[Row]:
    """The file's objects in order.

    An absent file holds none. A line that is no JSON object is left out and noted."""
    if not path.is_file():
        return []
    rows, unreadable = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            row = parsed(line)
            if row is None:
                unreadable.append(number + 1)
            else:
                rows.append(row)
    if unreadable:
        notes.append(unreadable_note(path.name, unreadable))
    return rows


def unreadable_note(name: str, lines: Sequence[int]) -> str:
    """What to say of a file with lines that are no JSON objects, counted from 1."""
    where = ", ".join(map(str, lines[:5])) + (", …" if len(lines) > 5 else "")
    return (
        f"{name}: {len(lines)} unreadable line(s) left out (line {where}). "
        "A run that was killed, or is still writing, leaves a torn last line."
    )


def read_json(path: Path, *, notes: list[str]) -> Row | None:
    """The file's object; None where there is no file, and None with a note where it is no JSON object."""
    if not path.is_file():
        return None
    row = parsed(path.read_bytes())
    if row is None:
        notes.append(f"{path.parent.name}/{path.name} is not a readable JSON object and was left out.")
    return row


def read_json_list(path: Path) -> list[Any]:
    """The file's list; an empty one where there is no file, or it is of something else."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def read_profile(path: Path, *, notes: list[str]) -> Manifest | None:
    """The profile's manifest; None where there is no file, and None with a note where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return read_manifest(path)
    except DataError as error:
        notes.append(f"{path.parent.name}/{path.name} is not a readable tier manifest and was left out ({error}).")
        return None


def choose_rollouts(counts: Sequence[int], *, limit: int) -> list[list[int]]:
    """Which lines of each file to show, given the files' line counts: at most `limit`, evenly over files and lines.

    A file with fewer lines than its share leaves the rest to the others."""
    num_files = min(len(counts), limit)
    files = [index * len(counts) // num_files for index in range(num_files)]
    shares = [0] * len(counts)
    smallest_first = sorted(files, key=lambda index: counts[index])
    for position, index in enumerate(smallest_first):
        left = limit - sum(shares)
        shares[index] = min(counts[index], left // (len(smallest_first) - position))
    return [
        [(2 * i + 1) * count // (2 * share) for i in range(share)] for count, share in zip(counts, shares, strict=True)
    ]


def is_number(value: Any) -> TypeGuard[float]:
    """A number that can be drawn: finite, and no bool. The bound leaves room for a chart's own arithmetic."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def parsed(line: bytes) -> Row | None:
    """The JSON object in these bytes; None where they hold none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
