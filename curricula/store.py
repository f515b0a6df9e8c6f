"""The profile store, an append-only JSONL file that survives a kill, and the tier labels read from it.

The first line is a header with the fingerprint of what was profiled (policy, temperature, limits, ...); every other
line is the outcome of consecutive attempts at one problem. A line is complete or it is not there: a torn last line is
cut off on opening, and whoever profiles draws those attempts again."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from curricula.attempts import RIGHT, Attempts
from curricula.estimates import clopper_pearson, first_success_interval, no_success_interval, pass_at_k
from curricula.types import Tier

FORMAT = 1
RECORDS_PER_SYNC = 64

StoppingRule = Literal["fixed", "first_success", "exhausted"]


@dataclass(frozen=True, slots=True)
class Record:
    """Outcomes of attempts first_attempt, first_attempt + 1, ... at one problem; None: the verifier gave no value."""

    problem_id: str
    first_attempt: int
    correct: tuple[bool | None, ...]
    num_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TierRow:
    """One problem's label and the statistics that its stopping rule allows.

    num_rollouts, num_correct   rollouts with a value that the stopping rule counts, and the right ones among them: the
                                first ones; those up to the first success; all. So a row depends on the attempts alone
                                and not on how waves were cut, or where a profile was killed
    first_success_attempt       attempt index (from 0) of the lowest right attempt, or None
    stopping_rule               fixed: a success among the first ones, all of which were drawn anyway;
                                first_success: none there, one later; exhausted: none at all
    estimate                    unbiased pass rate, from the first (8) rollouts only: c/n after stopping is biased
    low, high                   fixed: Clopper-Pearson on the first ones; first_success: inverse binomial;
                                exhausted: one-sided, 0 of num_rollouts
    mean_tokens                 over the attempts up to the last counted one, those without a value too
    pass_at_1, pass_at_8        from the first rollouts; the latter None where there are too few of them"""

    problem_id: str
    num_rollouts: int
    num_correct: int
    first_success_attempt: int | None
    stopping_rule: StoppingRule
    tier: Tier
    estimate: float
    low: float
    high: float
    mean_tokens: float
    pass_at_1: float
    pass_at_8: float | None


class ProfileStore:
    """Append-only outcomes of one profile. One process writes at a time; open with `ProfileStore.open`."""

    def __init__(self, path: Path, *, fingerprint: Mapping[str, Any], size_bytes: int) -> None:
        self.path = path
        self.fingerprint = dict(fingerprint)
        self._file = path.open("r+b", buffering=0)
        self._size_bytes = size_bytes
        self._unsynced_records = 0

    @classmethod
    def open(cls, path: str | Path, *, fingerprint: Mapping[str, Any]) -> "ProfileStore":
        """Open the store for writing, or begin it. The fingerprint must be JSON-able and equal to the stored one.

        Raises ValueError when the fingerprint differs (naming the fields), when the file is no profile store, and when
        a line before the last one cannot be read."""
        path = Path(path)
        fingerprint = json.loads(json.dumps(dict(fingerprint)))
        header = _line({"profile_store": FORMAT, "fingerprint": fingerprint})
        path.parent.mkdir(parents=True, exist_ok=True)
        size_bytes = _complete_bytes(path, header=header)
        if size_bytes == 0:
            _begin(path, header=header)
            return cls(path, fingerprint=fingerprint, size_bytes=len(header))
        stored = _read_header(path)
        _check_fingerprint(path, stored=stored, given=fingerprint)
        os.truncate(path, size_bytes)
        return cls(path, fingerprint=fingerprint, size_bytes=size_bytes)

    def append(self, records: Sequence[Record]) -> None:
        """Write the records after the last one. They survive a kill of the process at once, and a power cut after
        every 64 records, `sync` or `close`.

        Raises OSError (a full disk) with the file cut back to what it held before the call."""
        data = b"".join(_line(_as_row(record)) for record in records)
        try:
            self._file.seek(self._size_bytes)
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            os.ftruncate(self._file.fileno(), self._size_bytes)
            raise
        self._size_bytes += len(data)
        self._unsynced_records += len(records)
        if self._unsynced_records >= RECORDS_PER_SYNC:
            self.sync()

    def sync(self) -> None:
        """Wait until what was appended is on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced_records = 0

    def records(self) -> Iterator[Record]:
        """All records, in the order in which they were appended. Raises ValueError naming a line that is none."""
        with self.path.open("rb") as lines:
            position = len(next(lines))
            for number, line in enumerate(lines, start=2):
                position += len(line)
                if position > self._size_bytes:
                    return
                yield _record(line, where=f"{self.path}:{number}")

    def attempts(self) -> dict[str, Attempts]:
        """Everything that is known, by problem. Raises ValueError when an attempt is recorded twice."""
        known: dict[str, Attempts] = {}
        for record in self.records():
            try:
                known.setdefault(record.problem_id, Attempts()).add(
                    record.first_attempt, record.correct, record.num_tokens
                )
            except ValueError as error:
                raise ValueError(f"{self.path}: problem {record.problem_id!r}: {error}") from error
        return known

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tier_table(
    store: ProfileStore,
    *,
    first_rollouts: int = 8,
    relabel_rollouts: int = 32,
    trivial_rate: float = 1.0,
    confidence: float = 0.95,
) -> list[TierRow]:
    """A row for each problem in the store of which a rollout has a value, sorted by id.

    While a profile is unfinished its rows say what is known so far: `num_rollouts` tells how much that is.
    Raises ValueError as `label`."""
    rows = (
        label(
            problem_id,
            attempts,
            first_rollouts=first_rollouts,
            relabel_rollouts=relabel_rollouts,
            trivial_rate=trivial_rate,
            confidence=confidence,
        )
        for problem_id, attempts in sorted(store.attempts().items())
    )
    return [row for row in rows if row is not None]


def label(
    problem_id: str,
    attempts: Attempts,
    *,
    first_rollouts: int = 8,
    relabel_rollouts: int = 32,
    trivial_rate: float = 1.0,
    confidence: float = 0.95,
) -> TierRow | None:
    """Tier and statistics of one problem; None where no rollout has a value: nothing says how hard it is.

    trivial: a share of at least `trivial_rate` of the first rollouts is right; moderate: some of them are, or the first
    success comes at rollout <= relabel_rollouts (p = 0.1 fails 8 times in 43 % of cases, 32 times in 3.4 %);
    extreme: a later success; unsolved: none. Rollouts are counted among those with a value, in attempt order.
    Each interval is exact for its own stopping rule; since the exhausted one spends all of 1 - confidence on one side,
    a profile as a whole may miss up to 1.5 times that at the least favourable pass rate.
    Raises ValueError on a trivial_rate outside (0, 1] or relabel_rollouts < first_rollouts."""
    if not 0.0 < trivial_rate <= 1.0:
        raise ValueError(f"trivial_rate = {trivial_rate}: must lie in (0, 1] (1 means all of the first rollouts)")
    if not 1 <= first_rollouts <= relabel_rollouts:
        raise ValueError(
            f"labels need 1 <= first_rollouts <= relabel_rollouts; got {first_rollouts} and {relabel_rollouts}"
        )
    outcomes = attempts.settled()
    if not outcomes:
        return None
    num_first = min(len(outcomes), first_rollouts)
    num_first_correct = outcomes[:num_first].count(RIGHT)
    num_until_success = outcomes.find(RIGHT) + 1  # 0: no success
    rule: StoppingRule
    if num_first_correct:
        rule, num_counted = "fixed", num_first
        tier = Tier.trivial if num_first_correct >= trivial_rate * num_first else Tier.moderate
        low, high = clopper_pearson(num_first_correct, num_first, confidence=confidence)
    elif num_until_success:
        rule, num_counted = "first_success", num_until_success
        tier = Tier.moderate if num_until_success <= relabel_rollouts else Tier.extreme
        low, high = first_success_interval(num_until_success, confidence=confidence)
    else:
        rule, num_counted, tier = "exhausted", len(outcomes), Tier.unsolved
        low, high = no_success_interval(num_counted, confidence=confidence)
    num_attempts = attempts.first_unseen if rule == "exhausted" else attempts.attempts_until(num_counted)
    return TierRow(
        problem_id=problem_id,
        num_rollouts=num_counted,
        num_correct=outcomes[:num_counted].count(RIGHT),
        first_success_attempt=attempts.attempts_until(num_until_success) - 1 if num_until_success else None,
        stopping_rule=rule,
        tier=tier,
        estimate=num_first_correct / num_first,
        low=low,
        high=high,
        mean_tokens=sum(attempts.num_tokens[:num_attempts]) / num_attempts,
        pass_at_1=pass_at_k(num_first, num_first_correct, 1),
        pass_at_8=pass_at_k(num_first, num_first_correct, 8) if num_first >= 8 else None,
    )


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _as_row(record: Record) -> dict[str, Any]:
    return {
        "problem_id": record.problem_id,
        "first_attempt": record.first_attempt,
        "correct": list(record.correct),
        "num_tokens": list(record.num_tokens),
    }


def _record(line: bytes, *, where: str) -> Record:
    try:
        row = json.loads(line)
        return Record(
            problem_id=row["problem_id"],
            first_attempt=row["first_attempt"],
            correct=tuple(row["correct"]),
            num_tokens=tuple(row["num_tokens"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: is not a profile record ({error}); restore the file or start a fresh one"
        ) from error


def _complete_bytes(path: Path, *, header: bytes) -> int:
    """Length of the file up to its last complete line; 0 when there is none and the file may be begun anew."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    size_bytes = data.rfind(b"\n") + 1
    if size_bytes == 0 and not header.startswith(data):
        raise ValueError(f"{path}: is not a profile store (no header line); name another file")
    # After a power cut the last line can have its length and not its content.
    last_start = data.rfind(b"\n", 0, max(size_bytes - 1, 0)) + 1
    if last_start and not _is_json(data[last_start:size_bytes]):
        return last_start
    return size_bytes


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _begin(path: Path, *, header: bytes) -> None:
    with path.open("wb") as file:
        file.write(header)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as lines:
        first = lines.readline()
    header = json.loads(first) if _is_json(first) else None
    if not isinstance(header, dict) or "fingerprint" not in header:
        raise ValueError(f"{path}: is not a profile store (its first line is no header); name another file")
    if header["profile_store"] != FORMAT:
        raise ValueError(f"{path}: has format {header['profile_store']}, this program reads {FORMAT}; profile afresh")
    return dict(header["fingerprint"])


def _check_fingerprint(path: Path, *, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    absent = "(absent)"
    differing = [
        f"{field}: stored {stored.get(field, absent)!r}, given {given.get(field, absent)!r}"
        for field in sorted(stored.keys() | given.keys())
        if stored.get(field, absent) != given.get(field, absent)
    ]
    if differing:
        raise ValueError(
            f"{path}: was profiled under another fingerprint ({'; '.join(differing)}); "
            "restore those values, or profile into another file"
        )
