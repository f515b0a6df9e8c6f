"""The profile store, a folder of append-only shards that any number of writers fill, and the tier labels read from it.

What one policy drew under one set of settings lies in a folder of its own, named by the hash of that fingerprint, so
several policies lie side by side and none is taken for another. Each writer (a rank) has a shard there; whoever reads
merges them all."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curricula.attempts import RIGHT, Attempts
from curricula.estimates import clopper_pearson, first_success_interval, no_success_interval
from curricula.shards import FORMAT, Record, Shard, as_json, lock, read_fingerprint, read_shard
from curricula.types import Tier

StoppingRule = Literal["fixed", "first_success", "exhausted"]


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
                                exhausted: 0 to the bound of 0 of num_rollouts
    mean_tokens                 over the attempts up to the last counted one, those without a value too"""

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


class ProfileStore:
    """The shards of one fingerprint, in `root`/<its hash>. The fingerprint must be JSON-able and say all that an
    outcome depends on: policy, temperature, limits, reward, seed, prompt."""

    def __init__(self, root: str | Path, *, fingerprint: Mapping[str, Any]) -> None:
        self.root = Path(root)
        self.fingerprint = as_json(fingerprint)
        self.folder = self.root / fingerprint_hash(fingerprint)

    @contextmanager
    def locked(self, *, note: str = "") -> Iterator[None]:
        """Keep other profiles of this fingerprint out for as long. `note` follows the process id in the lock's file.

        Raises ValueError naming the process that holds it."""
        path = self.lock_path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            holder = path.read_text(encoding="utf-8").partition(" ")[0] or "unknown"
            lock(descriptor, path=self.folder, holder=f"process {holder} is profiling into it")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {note}".encode(), 0)
            os.fsync(descriptor)
            yield
        finally:
            os.close(descriptor)

    @property
    def lock_path(self) -> Path:
        """The file whose lock `locked` takes."""
        return self.folder / ".lock"

    def shard(self, writer: int = 0) -> Shard:
        """The shard of one writer, such as a rank, opened or begun. Raises ValueError as `Shard.open`."""
        return Shard.open(self.folder / f"attempts_rank_{writer:04d}.jsonl", fingerprint=self.fingerprint)

    def records(self) -> Iterator[tuple[str, Record]]:
        """Every record with its place (file:line), shard by shard. Raises ValueError as `read_shard`."""
        for path in sorted(self.folder.glob("attempts_rank_*.jsonl")):
            for number, record in read_shard(path, fingerprint=self.fingerprint):
                yield f"{path}:{number}", record

    def attempts(self) -> dict[str, Attempts]:
        """Everything that is known, by problem, in the order of ids. An attempt that stands in several places counts
        once.

        Raises ValueError as `read_shard`, and naming both places where two contradict each other."""
        known: dict[str, Attempts] = {}
        for place, record in self.records():
            try:
                of_problem = known.setdefault(record.problem_id, Attempts())
                of_problem.merge(record.first_attempt, record.correct, record.num_tokens)
            except ValueError as error:
                others = [found for found in self._places_of(record) if found != place]
                raise ValueError(
                    f"{place}: problem {record.problem_id!r}: {error} (see {', '.join(others)}); attempts are a pure "
                    "function of the fingerprint, so one of the shards is of something else: delete it"
                ) from error
        return dict(sorted(known.items()))

    def others(self) -> list[tuple[Path, dict[str, Any]]]:
        """Folders of other fingerprints in the same root, the newest last, each with its fingerprint.

        What cannot be read is left out: it is in nobody's way."""
        shards = sorted(self.root.glob("*/attempts_rank_*.jsonl"), key=lambda path: (path.stat().st_mtime, str(path)))
        newest: dict[Path, Path] = {}
        for path in shards:
            if path.parent != self.folder and _has_header(path):
                newest.pop(path.parent, None)  # so that a folder stands where its newest shard does
                newest[path.parent] = path
        return [(folder, read_fingerprint(path)) for folder, path in newest.items()]

    def _places_of(self, wanted: Record) -> list[str]:
        """Where records of the same attempts stand."""
        attempts = range(wanted.first_attempt, wanted.first_attempt + len(wanted.correct))
        return [
            place
            for place, record in self.records()
            if record.problem_id == wanted.problem_id
            and record.first_attempt < attempts.stop
            and attempts.start < record.first_attempt + len(record.correct)
        ]


def fingerprint_hash(fingerprint: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name the fingerprint's folder."""
    text = json.dumps(as_json(fingerprint), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tier_table(
    known: Mapping[str, Attempts],
    *,
    first_rollouts: int = 8,
    relabel_rollouts: int = 32,
    max_rollouts: int | None = None,
    trivial_rate: float = 1.0,
    confidence: float = 0.95,
) -> list[TierRow]:
    """A row for each problem of which a rollout has a value, sorted by id; `known` as `ProfileStore.attempts` gives it.

    While a profile is unfinished its rows say what is known so far: `num_rollouts` tells how much that is.
    Raises ValueError as `label`."""
    rows = (
        label(
            problem_id,
            attempts,
            first_rollouts=first_rollouts,
            relabel_rollouts=relabel_rollouts,
            max_rollouts=max_rollouts,
            trivial_rate=trivial_rate,
            confidence=confidence,
        )
        for problem_id, attempts in sorted(known.items())
    )
    return [row for row in rows if row is not None]


def label(
    problem_id: str,
    attempts: Attempts,
    *,
    first_rollouts: int = 8,
    relabel_rollouts: int = 32,
    max_rollouts: int | None = None,
    trivial_rate: float = 1.0,
    confidence: float = 0.95,
) -> TierRow | None:
    """Tier and statistics of one problem; None where no rollout has a value: nothing says how hard it is.

    Only the first `max_rollouts` with a value are looked at, so that a store in which more is known gives the label of
    a profile that stopped there; None looks at all.
    trivial: a share of at least `trivial_rate` of the first rollouts is right; moderate: some of them are, or the first
    success comes at rollout <= relabel_rollouts (p = 0.1 fails 8 times in 43 % of cases, 32 times in 3.4 %);
    extreme: a later success; unsolved: none. Rollouts are counted among those with a value, in attempt order.
    Each interval is exact for its own stopping rule and misses at most half of 1 - confidence on a side, so that
    whichever rule ends a problem its pass rate is covered with at least `confidence`.
    Raises ValueError on a trivial_rate outside (0, 1], relabel_rollouts < first_rollouts or
    max_rollouts < first_rollouts."""
    _check_rules(first_rollouts, relabel_rollouts, max_rollouts, trivial_rate)
    settled = attempts.settled()
    outcomes = settled[:max_rollouts]
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
        # Half of what may be missed, as on each side of the others, since which rule ends a profile is by chance too.
        low, high = no_success_interval(num_counted, confidence=0.5 * (1.0 + confidence))
    is_all = rule == "exhausted" and num_counted == len(settled)  # then those without a value at the end count too
    num_attempts = attempts.first_unseen if is_all else attempts.attempts_until(num_counted)
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
    )


def _check_rules(first_rollouts: int, relabel_rollouts: int, max_rollouts: int | None, trivial_rate: float) -> None:
    if not 0.0 < trivial_rate <= 1.0:
        raise ValueError(f"trivial_rate = {trivial_rate}: must lie in (0, 1] (1 means all of the first rollouts)")
    if not 1 <= first_rollouts <= relabel_rollouts:
        raise ValueError(
            f"labels need 1 <= first_rollouts <= relabel_rollouts; got {first_rollouts} and {relabel_rollouts}"
        )
    if max_rollouts is not None and max_rollouts < first_rollouts:
        raise ValueError(f"max_rollouts = {max_rollouts}: must be at least first_rollouts = {first_rollouts}")


def _has_header(path: Path) -> bool:
    with path.open("rb") as lines:
        first = lines.readline()
    return first.startswith(b'{"fingerprint":{') and first.endswith(f'"profile_store":{FORMAT}}}\n'.encode())
