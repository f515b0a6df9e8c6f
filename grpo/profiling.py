"""Difficulty profiling of problems: pass@8, then up to pass@512 where needed, into tiers.

Which attempts are drawn next is `curricula.SequentialProfile`'s decision, made on the main rank. They are drawn in
waves by all ranks, and each rank adds a group to its own shard of the store as soon as its last verdict is in: a killed
profile loses what was being drawn, and draws that again with the same noise. docs/profiling.md is the manual."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from curricula import Draw, ProfileStore, SequentialProfile, Tier, clopper_pearson, tier_table
from curricula import Progress as ProfileProgress
from curricula.attempts import Attempts as KnownAttempts
from curricula.shards import Record, Shard
from grpo.config import ProfileConfig
from grpo.distributed.world import World
from grpo.errors import ConfigError, Interrupted, RunFolderError
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
WAVE_CONFIDENCE = 0.999
"""Of the interval of a wave's share of lost verdicts, with half of what it misses on each side."""
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
    make_on_group: Callable[[Path], Callable[[Group], None]],
    say: Callable[[str], None],
    world: World,
    phase: str = "profile",
    step: int = 0,
) -> Profile:
    """Profile `problems` at `temperature`, going on from what `store_folder` holds, and write manifest and picture.

    These go to `folder`, the manifest beside the store's shards too. `fingerprint` (`grpo.fingerprints`) names all that
    an outcome depends on; `phase` and `step` are part of every noise key and so of it.

    `make_on_group` is given the folder of the store's shards once it is locked, so that files there may be mended, and
    makes what is called on the rank that drew a group, just before it is stored: whatever is in the store was handed
    over. After a kill in between the same group comes again. A group that lost a verdict is stored, and handed over, at
    the end of its wave; a wave that loses more than allowed leaves no such group in the store: mended, the reward
    judges them again. Raises Interrupted when `should_stop` says so, RewardError when more verdicts are lost than
    allowed, of all that this call drew or of one wave, RunFolderError when the store is in use, cannot be read, or is
    not seen by every rank."""
    store = ProfileStore(store_folder, fingerprint=fingerprint)
    with ExitStack() as stack:
        stack.enter_context(named_disk_errors(store_folder))
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)  # who is handed groups may want to write there
        shard = _opened(store, world, stack)
        keeper, meter = _Keeper(shard, make_on_group(store.folder)), Meter(store, world, say=say)
        plan = _Plan(problems, config=config, store=store, world=world, on_progress=on_progress)
        plan.announce(meter)
        losses = _Losses(max_error_fraction=max_error_fraction, place=phase)
        wave_rollouts = max_rows * world.size  # the first wave is a small one: it tells the speed
        while attempts := plan.next_wave(wave_rollouts):
            wave_rollouts = BATCHES_PER_WAVE * max_rows * world.size
            with meter:
                sampled = rollouts.run(attempts, temperature=temperature, phase=phase, step=step, on_group=keeper.keep)
            # Before these are stored: a verdict that a broken reward lost would count as drawn for ever.
            losses.check(sampled.groups)
            keeper.keep_waiting()
            meter.count(sampled)
            plan.observe(sampled.groups, meter)
            if should_stop():
                meter.keep()
                raise Interrupted(f"stopped while profiling; every verdict is in {store.folder}: add --resume to go on")
        meter.keep()
        return plan.finish(meter, folder=folder, temperature=temperature)


class _Plan:
    """What is drawn next: decided on the main rank, which alone knows what was drawn before, and told to the others."""

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        config: ProfileConfig,
        store: ProfileStore,
        world: World,
        on_progress: Callable[[ProfileProgress], None],
    ) -> None:
        """Raises RunFolderError, on every rank, where the store cannot be read."""
        self._by_id = {problem.id: problem for problem in problems}
        self._config, self._store, self._world, self._on_progress = config, store, world, on_progress
        known = _together(world, lambda: store.attempts() if world.is_main else {})
        self._num_known = sum(problem_id in known for problem_id in self._by_id)
        self._sequence = _sequence(list(self._by_id), config, known) if world.is_main else None

    def announce(self, meter: Meter) -> None:
        """Say how much is to be drawn."""
        if self._sequence is not None:
            meter.announce(self._sequence.expected_rollouts(), num_known=self._num_known)
            self._on_progress(_progress(self._sequence, self._config))

    def next_wave(self, num_rollouts: int) -> list[Attempts]:
        """About so many attempts, the same on every rank; none at the end."""
        draws: list[Draw] = [] if self._sequence is None else self._sequence.next_wave(num_rollouts)
        return [_attempts(draw, self._by_id) for draw in self._world.broadcast(draws)]

    def observe(self, groups: Sequence[Group], meter: Meter) -> None:
        """Take up the outcomes of a wave, and say how far the profile is."""
        if self._sequence is not None:
            for group in groups:
                self._sequence.observe(group.problem.id, *_outcomes(group))
            meter.say_time(self._sequence.expected_rollouts())
            self._on_progress(_progress(self._sequence, self._config))

    def finish(self, meter: Meter, *, folder: Path, temperature: float) -> Profile:
        """Write manifest and picture; what they say, on every rank."""
        result = None
        if self._sequence is not None:
            fingerprint = self._store.fingerprint
            manifest = _manifest(self._sequence, self._config, temperature=temperature, fingerprint=fingerprint)
            _write(manifest, folder=folder, store=self._store)
            result = profile_of(manifest, drawn_rollouts=meter.num_rollouts, drawn_tokens=meter.num_tokens)
        profiled = self._world.broadcast(result)
        assert profiled is not None  # the main rank has one
        return profiled


class _Losses:
    """Verdicts that were lost, of all that this call drew and of each wave: a judge that dies late loses few of all.

    Of a wave, which may be a handful of verdicts, so many must be lost that chance does not explain it: the lower bound
    of their share (Clopper-Pearson at WAVE_CONFIDENCE) is above the allowed share. Where that is 0.05 it takes 3 of 3,
    4 of 8, 8 of 32 or 44 of 512. A judge that loses just the allowed share ends fewer than one wave in 2,000."""

    def __init__(self, *, max_error_fraction: float, place: str) -> None:
        self._max_error_fraction, self._place = max_error_fraction, place
        self._lost, self._num_verdicts = Counter[str](), 0

    def check(self, groups: Sequence[Group]) -> None:
        """Count a wave. Raises RewardError."""
        of_wave, num_verdicts = lost_verdicts(groups), sum(len(group.rewards) for group in groups)
        self._lost += of_wave
        self._num_verdicts += num_verdicts
        limit = self._max_error_fraction
        check_lost(self._lost, num_verdicts=self._num_verdicts, max_error_fraction=limit, place=self._place)
        low, _ = clopper_pearson(of_wave.total(), num_verdicts, confidence=WAVE_CONFIDENCE)
        if low > limit:
            place = f"{self._place}, its last wave"
            check_lost(of_wave, num_verdicts=num_verdicts, max_error_fraction=limit, place=place)


def check_store_folder(path: Path) -> None:
    """Make the folder of a shared store where it is not there. Raises ConfigError where that or writing fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"profile.folder = {str(path)!r}: no folder that can be written to ({error.strerror}); name another one, "
            "or null for the run's own"
        ) from error


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


def profile_of(manifest: Manifest, *, drawn_rollouts: int = 0, drawn_tokens: int = 0) -> Profile:
    """What a manifest says, of which so much was drawn now."""
    return Profile(
        tiers={row["id"]: Tier(row["tier"]) for row in manifest.rows},
        mean_tokens={row["id"]: row["mean_tokens"] for row in manifest.rows},
        counts=manifest.counts,
        num_without_tier=manifest.num_without_tier,
        num_rollouts=manifest.num_rollouts,
        num_tokens=manifest.num_tokens,
        drawn_rollouts=drawn_rollouts,
        drawn_tokens=drawn_tokens,
    )
