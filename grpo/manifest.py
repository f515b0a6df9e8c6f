"""The tier manifest: one Parquet file with a row a problem, which `datasets` opens, and what its rows say together.

Owns the columns, their types and the file; labels and intervals are `curricula`'s. Knows no run and no policy: what
was profiled comes as values."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curricula import TIERS, Tier, TierRow, pass_at_k
from curricula.attempts import Attempts
from curricula.label_errors import label_errors
from grpo.config import ProfileConfig
from grpo.errors import DataError
from grpo.folder import named_disk_errors

MANIFEST_FILE = "tiers.parquet"
FORMAT = b"1"
CONFIDENCE = 0.95
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A row a labelled problem, sorted by id, and what the file says of the whole.

    num_problems    that were profiled, those without a tier included: no rollout of those has a value
    num_rollouts    attempts that the store holds of them, those without a value and those past a row's count included
    num_tokens      of these attempts
    fingerprint     what outcomes depend on, as the store spells it out"""

    rows: tuple[Row, ...]
    num_problems: int
    num_rollouts: int
    num_tokens: int
    fingerprint: Mapping[str, Any]

    @property
    def num_without_tier(self) -> int:
        """Problems of which no rollout has a value."""
        return self.num_problems - len(self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Problems of each tier, the easiest first."""
        return {str(tier): sum(row["tier"] == tier for row in self.rows) for tier in TIERS}


@dataclass(frozen=True, slots=True)
class TierSummary:
    """What the rows of one tier say together. `num_wrong` is the expected number of wrong labels among them."""

    tier: str
    num_problems: int
    share: float  # of the labelled problems
    mean_rollouts: float  # attempts a problem, NaN in an empty tier as all that follows
    mean_tokens: float
    mean_label_error: float
    num_wrong: float


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`."""
    return [2**power for power in range(limit.bit_length())]


def manifest_of(
    rows: Sequence[TierRow],
    attempts: Mapping[str, Attempts],
    *,
    config: ProfileConfig,
    policy: str,
    temperature: float,
    fingerprint: Mapping[str, Any],
) -> Manifest:
    """The manifest of `rows`, which `curricula.tier_table` made of `attempts` by the rules of `config`."""
    errors = label_errors(
        rows,
        first_rollouts=config.first_rollouts,
        relabel_rollouts=max(config.relabel_rollouts, config.first_rollouts),
        max_rollouts=config.max_rollouts,
        trivial_rate=config.trivial_rate,
    )
    common = {
        "policy": policy,
        "temperature": temperature,
        "first_rollouts": config.first_rollouts,
        "relabel_rollouts": max(config.relabel_rollouts, config.first_rollouts),
        "max_rollouts": config.max_rollouts,
        "trivial_rate": config.trivial_rate,
    }
    return Manifest(
        rows=tuple(
            _row(row, attempts[row.problem_id], label_error=error, first_rollouts=config.first_rollouts) | common
            for row, error in zip(rows, errors, strict=True)
        ),
        num_problems=len(attempts),
        num_rollouts=sum(of_problem.num_recorded for of_problem in attempts.values()),
        num_tokens=sum(of_problem.total_tokens for of_problem in attempts.values()),
        fingerprint=fingerprint,
    )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the file at `path` as a whole or not at all. The same manifest makes the same bytes. Raises DiskError."""
    import pyarrow
    import pyarrow.parquet

    first_rollouts = max((row["first_rollouts"] for row in manifest.rows), default=1)
    columns = _columns(powers_of_two(first_rollouts))
    whole = {
        "grpo_manifest": FORMAT,
        "num_problems": str(manifest.num_problems).encode(),
        "num_rollouts": str(manifest.num_rollouts).encode(),
        "num_tokens": str(manifest.num_tokens).encode(),
        "fingerprint": json.dumps(manifest.fingerprint, sort_keys=True).encode(),
    }
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in columns.items()], metadata=whole)
    table = pyarrow.Table.from_pylist([{name: row[name] for name in columns} for row in manifest.rows], schema=schema)
    with named_disk_errors(path):
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            pyarrow.parquet.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def read_manifest(path: Path, *, columns: Sequence[str] | None = None) -> Manifest:
    """What `write_manifest` wrote, or only these columns of it. Raises DataError where the file is none of its."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        whole = schema.metadata or {}
        if whole.get(b"grpo_manifest") != FORMAT:
            raise ValueError(f"its format is {whole.get(b'grpo_manifest')!r}, this program reads {FORMAT!r}")
        missing = _columns([1]).keys() - schema.names
        if missing:
            raise ValueError(f"it lacks the columns {', '.join(sorted(missing))}")
        table = pyarrow.parquet.read_table(path, columns=None if columns is None else list(columns))
        return Manifest(
            rows=tuple(table.to_pylist()),
            num_problems=int(whole[b"num_problems"]),
            num_rollouts=int(whole[b"num_rollouts"]),
            num_tokens=int(whole[b"num_tokens"]),
            fingerprint=json.loads(whole[b"fingerprint"]),
        )
    except (pyarrow.ArrowException, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: is no tier manifest ({error}); run `grpo profile --resume` to write it again"
        ) from error


def by_tier(rows: Sequence[Row]) -> list[TierSummary]:
    """A summary of each tier, the easiest first."""
    return [_summary(tier, [row for row in rows if row["tier"] == tier], num_rows=len(rows)) for tier in TIERS]


def difficulty_histogram(rows: Sequence[Row]) -> tuple[list[str], dict[str, list[int]]]:
    """Problems by how hard they were, the easiest on the left: the bars' labels, and each tier's count in each bar.

    First by the share of right ones among the first rollouts, then by the rollout of the first success (up to 16, 32,
    ..., each bar twice as wide as the one before), and those that were never solved."""
    first = max((row["first_rollouts"] for row in rows), default=8)
    most = max((row["max_rollouts"] for row in rows), default=512)
    ends = [first]
    while ends[-1] < most:
        ends.append(min(2 * ends[-1], most))
    shares = [f"{correct}/{first}" for correct in range(first, 0, -1)]
    labels = [*shares, *(f"≤{end}" for end in ends[1:]), "none"]
    counts = {str(tier): [0] * len(labels) for tier in TIERS}
    for row in rows:
        counts.setdefault(row["tier"], [0] * len(labels))[_place(row, shares=len(shares), ends=ends)] += 1
    return labels, counts


def _place(row: Row, *, shares: int, ends: Sequence[int]) -> int:
    if row["stopping_rule"] == "fixed":
        return max(0, shares - max(1, round(row["estimate"] * shares)))
    if row["stopping_rule"] == "first_success":
        return shares + next((i for i, end in enumerate(ends[1:]) if row["num_rollouts"] <= end), len(ends) - 2)
    return shares + len(ends) - 1


def _summary(tier: Tier, rows: Sequence[Row], *, num_rows: int) -> TierSummary:
    number = len(rows)

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / number if number else float("nan")

    return TierSummary(
        tier=str(tier),
        num_problems=number,
        share=number / num_rows if num_rows else 0.0,
        mean_rollouts=mean("num_attempts"),
        mean_tokens=mean("mean_tokens"),
        mean_label_error=mean("label_error"),
        num_wrong=sum(row["label_error"] for row in rows),
    )


def _row(row: TierRow, attempts: Attempts, *, label_error: float, first_rollouts: int) -> Row:
    num_first = min(row.num_rollouts, first_rollouts)
    num_first_correct = row.num_correct if row.stopping_rule == "fixed" else 0
    return {
        "id": row.problem_id,
        "num_rollouts": row.num_rollouts,
        "num_correct": row.num_correct,
        "stopping_rule": row.stopping_rule,
        "tier": str(row.tier),
        "estimate": row.estimate,
        "low": row.low,
        "high": row.high,
        "confidence": CONFIDENCE,
        "label_error": label_error,
        **{
            f"pass@{k}": pass_at_k(num_first, num_first_correct, k) if k <= num_first else None
            for k in powers_of_two(first_rollouts)
        },
        "first_success_attempt": row.first_success_attempt,
        "mean_tokens": row.mean_tokens,
        "num_attempts": attempts.num_recorded,
        "num_without_value": attempts.num_without_value,
        "total_tokens": attempts.total_tokens,
    }


def _columns(sizes: Sequence[int]) -> dict[str, str]:
    """Arrow's type of each column, in their order; pass@k for each k of `sizes`."""
    return {
        "id": "string",
        "num_rollouts": "int64",
        "num_correct": "int64",
        "stopping_rule": "string",
        "tier": "string",
        "estimate": "float64",
        "low": "float64",
        "high": "float64",
        "confidence": "float64",
        "label_error": "float64",
        **{f"pass@{k}": "float64" for k in sizes},
        "first_success_attempt": "int64",
        "mean_tokens": "float64",
        "num_attempts": "int64",
        "num_without_value": "int64",
        "total_tokens": "int64",
        "policy": "string",
        "temperature": "float64",
        "first_rollouts": "int64",
        "relabel_rollouts": "int64",
        "max_rollouts": "int64",
        "trivial_rate": "float64",
    }
