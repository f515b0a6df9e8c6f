"""The tables: means over paired seeds, areas under curves, tokens to reach a score, and corrected differences."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from arms import POOLS, result_path

from curricula import equivalent, holm, paired_t_interval, ratio_interval
from curricula.distributions import student_p_value


def area(result: Mapping[str, Any]) -> float:
    """Mean pass@1 over the budget: the area under the curve by the trapezoidal rule, the start's until it moves."""
    points = [(0.0, result["curve"][0]["pass@1"])]
    points += [(min(p["tokens"], result["budget"]), p["pass@1"]) for p in result["curve"]]
    points.append((result["budget"], points[-1][1]))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)) / float(result["budget"])


def tokens_to_reach(result: Mapping[str, Any], value: float) -> float | None:
    """Tokens at which the curve first reaches `value`, on straight lines between points; None where it does not."""
    before = None
    for point in result["curve"]:
        if point["pass@1"] >= value:
            if before is None or point["pass@1"] == before["pass@1"]:
                return float(point["tokens"])
            share = (value - before["pass@1"]) / (point["pass@1"] - before["pass@1"])
            return float(before["tokens"] + share * (point["tokens"] - before["tokens"]))
        before = point
    return None


def print_table(pool: str, jobs: Sequence[tuple[int, str, str]], *, folder: Path) -> None:
    """Means over the seeds that every arm has finished, and each arm's paired difference from the reference."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed, of_pool, arm in jobs:
        path = result_path(seed, of_pool, arm, folder=folder)
        if of_pool == pool and path.is_file():
            found.setdefault(arm, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    seeds = sorted(set.intersection(*(set(of_arm) for of_arm in found.values()))) if found else []
    if not seeds:
        return
    reference = [found[POOLS[pool].reference][seed] for seed in seeds] if POOLS[pool].reference in found else []
    print(f"\n### {pool}: {len(seeds)} paired seeds\n")
    print("| arm | final pass@1 | area | steps | profile, tokens | kept, share | final − reference | tokens ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for arm, of_arm in found.items():
        results = [of_arm[seed] for seed in seeds]
        print("| " + " | ".join(row_of(arm, results, reference)) + " |")
    measures = ["pass@1", *(["tier_extreme", "tier_unsolved"] if POOLS[pool].after_stage_one else [])]
    for measure in measures:
        print_differences(measure, found, seeds, reference=POOLS[pool].reference)


def print_differences(
    measure: str, found: Mapping[str, Mapping[int, Mapping[str, Any]]], seeds: Sequence[int], *, reference: str
) -> None:
    """Every arm's difference from the reference at the end, with p-values corrected for their number (Holm)."""
    others = [arm for arm in found if arm != reference]
    if reference not in found or not others or len(seeds) < 2:
        return
    values = {
        arm: [of_arm[seed]["final"].get(measure, float("nan")) for seed in seeds] for arm, of_arm in found.items()
    }
    gains = {arm: [a - b for a, b in zip(values[arm], values[reference], strict=True)] for arm in others}
    corrected = holm([p_value(gains[arm]) for arm in others])
    print(f"\n{measure}, {reference}: {with_spread(values[reference])}")
    for arm, p in zip(others, corrected, strict=True):
        mean, low, high = paired_t_interval(gains[arm])
        same = "; the same within .02 (two one-sided tests at 5 %)" if equivalent(gains[arm], margin=0.02) else ""
        print(f"- {arm}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], corrected p = {p:.3f}{same}")


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference of 0, by Student's t."""
    error = stdev(differences) / len(differences) ** 0.5
    return student_p_value(fmean(differences) / error, degrees=len(differences) - 1) if error else 1.0


def row_of(arm: str, results: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of one arm."""
    final = [result["final"]["pass@1"] for result in results]
    kept = [result["ledger"]["tokens/kept"] / (result["ledger"]["sampling/tokens"] + 1) for result in results]
    cells = [
        arm,
        with_spread(final),
        with_spread([area(result) for result in results]),
        f"{fmean(result['steps'] for result in results):.0f}",
        f"{fmean(result['ledger']['profile'] for result in results):,.0f}",
        f"{fmean(kept):.2f}",
    ]
    if not reference or len(results) < 2 or results[0]["arm"] == reference[0]["arm"]:
        return [*cells, "–", "–"]
    mean, low, high = paired_t_interval([a - r["final"]["pass@1"] for a, r in zip(final, reference, strict=True)])
    cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    reached = [tokens_to_reach(a, r["final"]["pass@1"]) for a, r in zip(results, reference, strict=True)]
    if any(tokens is None for tokens in reached):
        return [*cells, f"not reached in {sum(t is None for t in reached)} of {len(reached)}"]
    spent = [r["curve"][-1]["tokens"] for r in reference]
    ratio, ratio_low, ratio_high = ratio_interval([t for t in reached if t is not None], spent)
    return [*cells, f"{ratio:.2f} [{ratio_low:.2f}, {ratio_high:.2f}]"]


def with_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"
