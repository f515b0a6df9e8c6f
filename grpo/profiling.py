"""Difficulty profiling of the training problems: pass@8, then up to pass@512 where needed, into tiers.

Which attempts are drawn next is `curricula.SequentialProfile`'s decision, made on the main rank, which holds the store.
They are drawn in waves by all ranks, and a wave is in its store once it is drawn and judged: a killed profile loses the
wave that it was at, at most twice `max_rows` rollouts a rank, and draws it again with the same noise."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curricula import TIERS, Draw, ProfileStore, SequentialProfile, Tier, TierRow, tier_table
from curricula import Progress as ProfileProgress
from grpo.config import ProfileConfig
from grpo.distributed.world import World
from grpo.errors import Interrupted, RunFolderError
from grpo.folder import named_disk_errors, write_json
from grpo.rollout import Attempts, Rollouts, check_lost, lost_verdicts
from grpo.types import Group, Problem

STORE, TIERS_FILE = "attempts.jsonl", "tiers.json"
BATCHES_PER_WAVE = 2
"""Sampler batches of each rank in a wave: rows that finish are replaced and only the last ones run half empty, while a
kill or a Ctrl-C costs no more than this."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Labels of the profiled problems, and what they cost.

    A problem of which no rollout has a verdict with a value has no tier; `num_without_tier` counts them."""

    tiers: dict[str, Tier]
    num_rollouts: int
    counts: dict[str, int]
    num_without_tier: int


def profile(
    rollouts: Rollouts,
    problems: Sequence[Problem],
    *,
    config: ProfileConfig,
    folder: Path,
    fingerprint: Mapping[str, Any],
    temperature: float,
    max_rows: int,
    max_error_fraction: float,
    should_stop: Callable[[], bool],
    on_progress: Callable[[ProfileProgress], None],
    world: World,
) -> Profile:
    """Profile `problems` at `temperature`, going on from what `folder` holds, and write the tier table.

    A wave that loses more verdicts than allowed leaves nothing in the store: mended, the reward judges it again.
    Raises Interrupted when `should_stop` says so, RewardError when more verdicts are lost than allowed, RunFolderError
    when the store is of another policy or setting (`fingerprint`) or cannot be read."""
    by_id = {problem.id: problem for problem in problems}
    with ExitStack() as stack:
        stack.enter_context(named_disk_errors(folder))
        store = stack.enter_context(_opened(folder / STORE, fingerprint=fingerprint)) if world.is_main else None
        sequence = None if store is None else _sequence(list(by_id), config, store)
        if sequence is not None:
            on_progress(_progress(sequence, config))
        lost, num_verdicts = Counter[str](), 0
        wave_rollouts = BATCHES_PER_WAVE * max_rows * world.size
        while draws := world.broadcast([] if sequence is None else sequence.next_wave(wave_rollouts)):
            attempts = [_attempts(draw, by_id) for draw in draws]
            groups = rollouts.run(attempts, temperature=temperature, phase="profile", step=0).groups
            lost += lost_verdicts(groups)
            num_verdicts += sum(len(group.rewards) for group in groups)
            # Before the wave is stored: a verdict that a broken reward lost would count as drawn for ever.
            check_lost(lost, num_verdicts=num_verdicts, max_error_fraction=max_error_fraction, place="profile")
            if sequence is not None:
                for group in groups:
                    _observe(sequence, group)
                on_progress(_progress(sequence, config))
            if should_stop():
                raise Interrupted(
                    f"stopped while profiling; every verdict is in {folder / STORE}: add --resume to go on"
                )
        result = None
        if store is not None and sequence is not None:
            rows = [row for row in _table(store, config) if row.problem_id in by_id]
            result = _result(rows, num_problems=len(by_id), num_rollouts=sequence.progress().num_rollouts)
            _write(folder / TIERS_FILE, result, rows, temperature=temperature)
    profiled = world.broadcast(result)
    assert profiled is not None  # the main rank has one
    return profiled


def _sequence(problem_ids: list[str], config: ProfileConfig, store: ProfileStore) -> SequentialProfile:
    return SequentialProfile(
        problem_ids, first_rollouts=config.first_rollouts, max_rollouts=config.max_rollouts, store=store
    )


def _result(rows: Sequence[TierRow], *, num_problems: int, num_rollouts: int) -> Profile:
    counts = Counter(row.tier for row in rows)
    return Profile(
        tiers={row.problem_id: row.tier for row in rows},
        num_rollouts=num_rollouts,
        counts={str(tier): counts[tier] for tier in TIERS},
        num_without_tier=num_problems - len(rows),
    )


def _write(path: Path, result: Profile, rows: Sequence[TierRow], *, temperature: float) -> None:
    table = {
        "tiers": result.counts,
        "num_without_tier": result.num_without_tier,
        "num_rollouts": result.num_rollouts,
        "temperature": temperature,
        "rows": [asdict(row) for row in rows],
    }
    write_json(path, table)


def _attempts(draw: Draw, by_id: Mapping[str, Problem]) -> Attempts:
    return Attempts(problem=by_id[draw.problem_id], first_attempt=draw.first_attempt, num_rollouts=draw.num_rollouts)


def _observe(sequence: SequentialProfile, group: Group) -> None:
    sequence.observe(
        group.problem.id,
        group.rollouts[0].attempt,
        group.correct,
        [rollout.num_actions for rollout in group.rollouts],
    )


def _progress(sequence: SequentialProfile, config: ProfileConfig) -> ProfileProgress:
    return sequence.progress(relabel_rollouts=config.relabel_rollouts, trivial_rate=config.trivial_rate)


def _opened(path: Path, *, fingerprint: Mapping[str, Any]) -> ProfileStore:
    try:
        return ProfileStore.open(path, fingerprint=fingerprint)
    except ValueError as error:
        raise RunFolderError(f"{error}; `grpo profile` with --fresh deletes it and starts again") from error


def _table(store: ProfileStore, config: ProfileConfig) -> list[TierRow]:
    return tier_table(
        store,
        first_rollouts=config.first_rollouts,
        relabel_rollouts=max(config.relabel_rollouts, config.first_rollouts),
        trivial_rate=config.trivial_rate,
    )
