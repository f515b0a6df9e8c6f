"""Which problems changed their tier, from where to where: one labelling of the pool after another.

The labellings are the profile, each profile on the way, and what the curriculum held of each problem when it was
practised last. Reads what a run recorded; knows no curriculum."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from grpo.manifest import MANIFEST_FILE
from grpo.tracking.recorded_run import RecordedRun, Row, is_number, read_profile
from grpo.tracking.rollout_index import Entry, embeddable

TIERS = ("trivial", "moderate", "extreme", "unsolved")
MAX_LISTED = 200
NO_TIER = "no tier"


def tier_moves(run: RecordedRun, entries: Iterable[Entry]) -> Row | None:
    """Moves between each labelling and the next, and from the first to the last; None where there are not two.

    A move is counted for the problems that both labellings know. `problems` lists those that moved at all, the ones
    that became harder first."""
    profiles = [*_profiles(run)]
    labellings = [("profile" if step == 0 else f"after step {step}", tiers) for step, tiers in profiles]
    labelled_at, labels = profiles[-1] if profiles else (0, {})
    practised = _practised(entries, since=labelled_at)
    if practised:
        labellings.append(("in practice", {**labels, **practised}))
    if len(labellings) < 2:
        return None
    pairs = [*pairwise(labellings)]
    if len(pairs) > 1:
        pairs.insert(0, (labellings[0], labellings[-1]))
    names = _in_order({tier for _, tiers in labellings for tier in tiers.values()})
    paths = _paths([tiers for _, tiers in labellings])
    paths.sort(key=lambda path: (-_rise(path[1]), path[0]))
    return {
        "tiers": names,
        "labellings": [name for name, _ in labellings],
        "tables": [_table(first, last, names) for first, last in pairs],
        "problems": [[embeddable(problem), path] for problem, path in paths[:MAX_LISTED]],
        "num_moved": len(paths),
    }


def _profiles(run: RecordedRun) -> Iterable[tuple[int, Mapping[str, str]]]:
    """After which step, 0 for the first, and each problem's tier."""
    if run.profile is not None:
        yield 0, {row["id"]: row["tier"] for row in run.profile.rows}
    for path in sorted((run.folder / "profile").glob("step_*")):
        profile = read_profile(path / MANIFEST_FILE, notes=run.notes)
        if re.fullmatch(r"step_\d+", path.name) and profile is not None:
            yield int(path.name.removeprefix("step_")), {row["id"]: row["tier"] for row in profile.rows}


def _practised(entries: Iterable[Entry], *, since: int) -> dict[str, str]:
    """Each problem's tier in the last step that practised it, of steps after `since`."""
    last: dict[str, tuple[float, str]] = {}
    for entry in entries:
        if not (isinstance(entry.problem_id, str) and isinstance(entry.tier, str) and is_number(entry.step)):
            continue
        if entry.step > since and (entry.problem_id not in last or last[entry.problem_id][0] <= entry.step):
            last[entry.problem_id] = (entry.step, entry.tier)
    return {problem: tier for problem, (_, tier) in last.items()}


def _paths(labellings: list[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """The tiers, one labelling after another, of each problem that has more than one."""
    problems = {problem for tiers in labellings for problem in tiers}
    paths = [(problem, [tiers.get(problem, NO_TIER) for tiers in labellings]) for problem in problems]
    return [(problem, path) for problem, path in paths if len(set(path) - {NO_TIER}) > 1]


def _table(first: tuple[str, Mapping[str, str]], last: tuple[str, Mapping[str, str]], names: list[str]) -> Row:
    """How many problems went from a tier (row) to a tier (column)."""
    counts = Counter((tier, last[1][problem]) for problem, tier in first[1].items() if problem in last[1])
    return {
        "from": first[0],
        "to": last[0],
        "counts": [[counts[row, column] for column in names] for row in names],
        "num_moved": sum(number for (row, column), number in counts.items() if row != column),
        "num_problems": sum(counts.values()),
    }


def _rise(path: list[str]) -> int:
    """By how many tiers a problem is harder at the end than at the beginning."""
    known = [TIERS.index(tier) for tier in path if tier in TIERS]
    return known[-1] - known[0] if known else 0


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (TIERS.index(name) if name in TIERS else len(TIERS), name))
