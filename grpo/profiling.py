"""Difficulty profiling of the training problems: pass@8, then up to pass@512 where needed, into tiers.

Which attempts are drawn next is `curricula.SequentialProfile`'s decision; what was drawn is in its store at once, so a
killed profile goes on where it was, with the same attempts and the same noise."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curricula import TIERS, ProfileStore, SequentialProfile, Tier, TierRow, tier_table
from curricula import Progress as ProfileProgress
from grpo.config import ProfileConfig
from grpo.errors import Interrupted, RunFolderError
from grpo.folder import named_disk_errors, write_json
from grpo.rollout import Attempts, Rollouts, check_lost, lost_verdicts
from grpo.types import Problem

STORE, TIERS_FILE = "attempts.jsonl", "tiers.json"


@dataclass(frozen=True, slots=True)
class Profile:
    """Labels of the profiled problems, and what they cost."""

    tiers: dict[str, Tier]
    num_rollouts: int
    counts: dict[str, int]


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
) -> Profile:
    """Profile `problems` at `temperature`, going on from what `folder` holds, and write the tier table.

    Raises Interrupted when `should_stop` says so, RewardError when more verdicts are lost than allowed, RunFolderError
    when the store is of another policy or setting (`fingerprint`) or cannot be read."""
    by_id = {problem.id: problem for problem in problems}
    with named_disk_errors(folder), _opened(folder / STORE, fingerprint=fingerprint) as store:
        sequence = SequentialProfile(
            list(by_id), first_rollouts=config.first_rollouts, max_rollouts=config.max_rollouts, store=store
        )
        on_progress(sequence.progress())
        lost, num_verdicts = Counter[str](), 0
        # Several sampler batches a wave: rows that finish are replaced, and only the last few run half empty.
        while draws := sequence.next_wave(8 * max_rows):
            attempts = [
                Attempts(problem=by_id[d.problem_id], first_attempt=d.first_attempt, num_rollouts=d.num_rollouts)
                for d in draws
            ]
            groups = rollouts.run(attempts, temperature=temperature, phase="profile", step=0).groups
            lost += lost_verdicts(groups)
            num_verdicts += sum(len(group.rewards) for group in groups)
            for group in groups:
                sequence.observe(
                    group.problem.id,
                    group.rollouts[0].attempt,
                    group.correct,
                    [rollout.num_actions for rollout in group.rollouts],
                )
            on_progress(sequence.progress())
            check_lost(lost, num_verdicts=num_verdicts, max_error_fraction=max_error_fraction, place="profile")
            if should_stop():
                raise Interrupted(
                    f"stopped while profiling; every verdict is in {folder / STORE}: add --resume to go on"
                )
        rows = [row for row in _table(store, config) if row.problem_id in by_id]
        num_rollouts = sequence.progress().num_rollouts
    counts = Counter(row.tier for row in rows)
    result = Profile(
        tiers={row.problem_id: row.tier for row in rows},
        num_rollouts=num_rollouts,
        counts={str(tier): counts[tier] for tier in TIERS},
    )
    table = {"tiers": result.counts, "num_rollouts": num_rollouts, "temperature": temperature}
    write_json(folder / TIERS_FILE, table | {"rows": [asdict(row) for row in rows]})
    return result


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
