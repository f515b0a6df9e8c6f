"""Difficulty profiling of problems: pass@8, then up to pass@512 where needed, into tiers.

Which attempts are drawn next is `curricula.SequentialProfile`'s decision, made on the main rank. They are drawn in
waves by all ranks, and each rank adds a group to its own shard of the store as soon as its last verdict is in: a killed
profile loses what was being drawn, and draws that again with the same noise. docs/profiling.md is the manual."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from curricula import Draw, ProfileStore, SequentialProfile, Tier, tier_table
from curricula import Progress as ProfileProgress
from curricula.attempts import Attempts as KnownAttempts
from curricula.shards import Record, Shard
from grpo.config import ProfileConfig
from grpo.distributed.world import World
from grpo.errors import Interrupted, RunFolderError
from grpo.folder import named_disk_errors, write_text
from grpo.manifest import CONFIDENCE, MANIFEST_FILE, Manifest, difficulty_histogram, manifest_of, write_manifest
from grpo.profile_meter import Meter
from grpo.rollout import Attempts, Rollouts, check_lost, lost_verdicts
from grpo.tracking.charts import bar_chart, standalone
from grpo.types import Group, Problem

T = TypeVar("T")
PICTURE_FILE = "tiers.svg"
BATCHES_PER_WAVE = 2
"""Sampler batches of each rank in a wave: rows that finish are replaced and only the last ones run half empty, while a
Ctrl-C waits for no more than this."""
VISIBLE_SECONDS = 10.0
"""Until what one node wrote is seen on another: network file systems remember for a while what they saw."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Labels of the profiled problems, and what they cost.

    A problem of which no rollout has a verdict with a value has no tier; `num_without_tier` counts them.
    num_rollouts, num_tokens        all that the store holds of these problems: the same however often it was killed
    drawn_rollouts, drawn_tokens    drawn by this call, the rest was known"""

    tiers: dict[str, Tier]
    mean_tokens: dict[str, float]
    counts: dict[str, int]
    num_without_tier: int
    num_rollouts: int
    num_tokens: int
    drawn_rollouts: int
    drawn_tokens: int


def profile(
    rollouts: Rollouts,
    problems: Sequence[Problem],
    *,
    config: ProfileConfig,
    folder: Path,
    store_folder: Path,
    fingerprint: Mapping[str, Any],
    temperature: float,
    max_rows: int,
    max_error_fraction: float,
    should_stop: Callable[[], bool],
    on_progress: Callable[[ProfileProgress], None],
    on_group: Callable[[Group], None],
    say: Callable[[str], None],
    world: World,
    phase: str = "profile",
    step: int = 0,
) -> Profile:
    """Profile `problems` at `temperature`, going on from what `store_folder` holds, and write manifest and picture.

    These go to `folder`, the manifest beside the store's shards too. `fingerprint` (`grpo.fingerprints`) names all that
    an outcome depends on; `phase` and `step` are part of every noise key and so of it.

    `on_group` is called on the rank that drew a group, just before it is stored: whatever is in the store was handed
    over. After a kill in between the same group comes again. A group that lost a verdict is stored, and handed over, at
    the end of its wave; a wave that loses more than allowed leaves no such group in the store: mended, the reward
    judges them again. Raises Interrupted when `should_stop` says so, RewardError when more verdicts are lost than
    allowed, RunFolderError when the store is in use, cannot be read, or is not seen by every rank."""
    by_id = {problem.id: problem for problem in problems}
    store = ProfileStore(store_folder, fingerprint=fingerprint)
    with ExitStack() as stack:
        stack.enter_context(named_disk_errors(store_folder))
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)  # `on_group` may want to write there
        shard = _opened(store, world, stack)
        known = _together(world, lambda: store.attempts() if world.is_main else {})
        sequence = _sequence(list(by_id), config, known) if world.is_main else None
        keeper, meter = _Keeper(shard, on_group), Meter(store, world, say=say)
        if sequence is not None:
            meter.announce(sequence.expected_rollouts(), num_known=sum(p in known for p in by_id))
            on_progress(_progress(sequence, config))
        lost, num_verdicts = Counter[str](), 0
        wave_rollouts = max_rows * world.size  # the first wave is a small one: it tells the speed
        while draws := world.broadcast([] if sequence is None else sequence.next_wave(wave_rollouts)):
            wave_rollouts = BATCHES_PER_WAVE * max_rows * world.size
            attempts = [_attempts(draw, by_id) for draw in draws]
            with meter:
                sampled = rollouts.run(attempts, temperature=temperature, phase=phase, step=step, on_group=keeper.keep)
            lost += lost_verdicts(sampled.groups)
            num_verdicts += sum(len(group.rewards) for group in sampled.groups)
            # Before these are stored: a verdict that a broken reward lost would count as drawn for ever.
            check_lost(lost, num_verdicts=num_verdicts, max_error_fraction=max_error_fraction, place=phase)
            keeper.keep_waiting()
            meter.count(sampled)
            if sequence is not None:
                for group in sampled.groups:
                    sequence.observe(group.problem.id, *_outcomes(group))
                meter.say_time(sequence.expected_rollouts())
                on_progress(_progress(sequence, config))
            if should_stop():
                meter.keep()
                raise Interrupted(f"stopped while profiling; every verdict is in {store.folder}: add --resume to go on")
        meter.keep()
        result = None
        if sequence is not None:
            manifest = _manifest(sequence, config, temperature=temperature, fingerprint=store.fingerprint)
            _write(manifest, folder=folder, store=store)
            result = _result(manifest, meter)
    profiled = world.broadcast(result)
    assert profiled is not None  # the main rank has one
    return profiled


class _Keeper:
    """Stores the groups that this rank drew. Those that lost a verdict wait for the check of their wave."""

    def __init__(self, shard: Shard, on_group: Callable[[Group], None]) -> None:
        self._shard, self._on_group = shard, on_group
        self._waiting: list[Group] = []

    def keep(self, group: Group) -> None:
        if lost_verdicts([group]):
            self._waiting.append(group)
        else:
            self._store(group)

    def keep_waiting(self) -> None:
        for group in self._waiting:
            self._store(group)
        self._waiting.clear()

    def _store(self, group: Group) -> None:
        self._on_group(group)
        first_attempt, correct, num_tokens = _outcomes(group)
        self._shard.append([Record(group.problem.id, first_attempt, tuple(correct), tuple(num_tokens))])


def _opened(store: ProfileStore, world: World, stack: ExitStack) -> Shard:
    """This rank's shard of the store, which the main rank has locked. Raises RunFolderError, the same on every rank."""
    note = f"{socket.gethostname()} {time.time_ns()}"
    _together(world, lambda: stack.enter_context(store.locked(note=note)) if world.is_main else None)
    # Before any rank begins a shard: on a disk of its own it would be lost to the main rank.
    sees = _sees(store.lock_path, note=world.broadcast(note))
    blind = [str(rank) for rank, of_rank in enumerate(world.gather(sees)) if not of_rank]
    if blind:
        raise RunFolderError(
            f"{store.folder}: rank {', '.join(blind)} does not see what rank 0 writes there, so that it lies on a disk "
            "of one node; set profile.folder (null: run.folder) to a folder that every node mounts"
        )
    return stack.enter_context(_together(world, lambda: store.shard(world.rank)))


def _sees(path: Path, *, note: str) -> bool:
    """Whether the file holds the note, at once or a little later."""
    limit = time.monotonic() + VISIBLE_SECONDS
    while not (path.is_file() and path.read_text(encoding="utf-8").endswith(note)):
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def _together(world: World, act: Callable[[], T]) -> T:
    """What `act` returns; where it raises ValueError on any rank, every rank raises RunFolderError with the first."""
    fault, result = "", list[T]()
    try:
        result.append(act())
    except ValueError as error:
        fault = str(error)
    for of_rank in world.gather(fault):
        if of_rank:
            raise RunFolderError(of_rank)
    return result[0]


def _sequence(problem_ids: list[str], config: ProfileConfig, known: Mapping[str, KnownAttempts]) -> SequentialProfile:
    return SequentialProfile(
        problem_ids, first_rollouts=config.first_rollouts, max_rollouts=config.max_rollouts, known=known
    )


def _attempts(draw: Draw, by_id: Mapping[str, Problem]) -> Attempts:
    return Attempts(problem=by_id[draw.problem_id], first_attempt=draw.first_attempt, num_rollouts=draw.num_rollouts)


def _outcomes(group: Group) -> tuple[int, Sequence[bool | None], list[int]]:
    """First attempt, outcomes and lengths of a group, as the store and the sequence want them."""
    return group.rollouts[0].attempt, group.correct, [rollout.num_actions for rollout in group.rollouts]


def _progress(sequence: SequentialProfile, config: ProfileConfig) -> ProfileProgress:
    return sequence.progress(relabel_rollouts=config.relabel_rollouts, trivial_rate=config.trivial_rate)


def _manifest(
    sequence: SequentialProfile, config: ProfileConfig, *, temperature: float, fingerprint: Mapping[str, Any]
) -> Manifest:
    attempts = sequence.attempts
    rows = tier_table(
        attempts,
        first_rollouts=config.first_rollouts,
        relabel_rollouts=max(config.relabel_rollouts, config.first_rollouts),
        max_rollouts=config.max_rollouts,
        trivial_rate=config.trivial_rate,
        confidence=CONFIDENCE,
    )
    return manifest_of(
        rows,
        attempts,
        config=config,
        policy=str(fingerprint["policy"]),
        temperature=temperature,
        fingerprint=fingerprint,
    )


def _write(manifest: Manifest, *, folder: Path, store: ProfileStore) -> None:
    write_manifest(store.folder / MANIFEST_FILE, manifest)
    write_manifest(folder / MANIFEST_FILE, manifest)
    labels, counts = difficulty_histogram(manifest.rows)
    picture = standalone(bar_chart(labels, list(counts.items())), names=list(counts))
    write_text(folder / PICTURE_FILE, picture)


def _result(manifest: Manifest, meter: Meter) -> Profile:
    return Profile(
        tiers={row["id"]: Tier(row["tier"]) for row in manifest.rows},
        mean_tokens={row["id"]: row["mean_tokens"] for row in manifest.rows},
        counts=manifest.counts,
        num_without_tier=manifest.num_without_tier,
        num_rollouts=manifest.num_rollouts,
        num_tokens=manifest.num_tokens,
        drawn_rollouts=meter.num_rollouts,
        drawn_tokens=meter.num_tokens,
    )
