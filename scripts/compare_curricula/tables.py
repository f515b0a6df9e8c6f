"""The tables: means over paired seeds, areas under curves, tokens to reach a score, and corrected differences."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from arms import POOLS, result_path
from numpy.typing import NDArray

from curricula import equivalent, holm, paired_t_interval
from curricula.distributions import student_p_value

Array = NDArray[np.float64]
GRID_POINTS = 201
SHARED_BY = (1, 2, 3, 4, 8, 16)


def area(result: Mapping[str, Any], *, num_runs: int = 1) -> float:
    """Mean pass@1 over the budget: the area under the curve by the trapezoidal rule, the start's until it moves.

    With `num_runs` that share a profile each of them pays its part of it, and begins practice sooner by the rest; what
    it would still learn at the end is left out, so that the area is the least it can be."""
    saved = result["ledger"]["profile"] * (1 - 1 / num_runs)
    points = [(0.0, result["curve"][0]["pass@1"])]
    points += [(min(p["tokens"] - saved, result["budget"]), p["pass@1"]) for p in result["curve"]]
    points.append((result["budget"], points[-1][1]))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)) / float(result["budget"])


def mean_curve(results: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """Tokens, and the seeds' mean pass@1 after so many, which never falls: its isotonic regression.

    Before its first point a curve is at the start's score: the tokens of a profile buy no step. One seed's curve would
    cross any score by noise alone sooner than its mean does."""
    tokens = np.linspace(0.0, results[0]["budget"], GRID_POINTS)
    curves = [
        np.interp(tokens, [p["tokens"] for p in result["curve"]], [p["pass@1"] for p in result["curve"]])
        for result in results
    ]
    return tokens, isotonic(np.mean(curves, axis=0))


def isotonic(values: Array) -> Array:
    """The nearest sequence that never falls, by least squares: pooled adjacent violators (Ayer et al. 1955)."""
    blocks: list[tuple[float, int]] = []  # mean and length
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (left, num_left), (right, num_right) = blocks[-2:]
            number = num_left + num_right
            blocks[-2:] = [((left * num_left + right * num_right) / number, number)]
    return np.repeat([mean for mean, _ in blocks], [number for _, number in blocks])


def tokens_to_reach(results: Sequence[Mapping[str, Any]], value: float) -> float:
    """Tokens after which the seeds' mean curve first reaches `value`; infinite where it does not within the budget."""
    tokens, curve = mean_curve(results)
    reached = np.flatnonzero(curve >= value)
    if not len(reached):
        return math.inf
    first = int(reached[0])
    if first == 0:
        return float(tokens[0])
    share = (value - curve[first - 1]) / (curve[first] - curve[first - 1])
    return float(tokens[first - 1] + share * (tokens[first] - tokens[first - 1]))


def tokens_ratio(
    results: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], *, num_resamples: int = 2000
) -> tuple[float, float, float]:
    """Tokens to reach the reference's final mean score, over those that the reference took, with a 95 % interval.

    Both are read off mean curves in the same way, so an arm against itself has the ratio 1. Seeds are resampled in
    pairs for the interval (percentiles); a resample in which the arm does not get there has an infinite ratio."""

    def ratio(chosen: Sequence[int]) -> float:
        of_reference = [reference[place] for place in chosen]
        target = float(mean_curve(of_reference)[1][-1])
        return tokens_to_reach([results[place] for place in chosen], target) / tokens_to_reach(of_reference, target)

    generator = np.random.Generator(np.random.PCG64(0))
    number = len(results)
    found = np.sort([ratio(generator.integers(number, size=number).tolist()) for _ in range(num_resamples)])
    low, high = found[int(0.025 * num_resamples)], found[int(0.975 * num_resamples)]
    return ratio(range(number)), float(low), float(high)


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
    for arm, of_arm in found.items():
        results = [of_arm[seed] for seed in seeds]
        if all(result["ledger"]["profile"] for result in results):
            areas = (f"{n}: {fmean(area(result, num_runs=n) for result in results):.3f}" for n in SHARED_BY)
            print(f"\n{arm}: area where so many runs share its profile: {', '.join(areas)}")
    measures = ["area", "pass@1", *(["tier_extreme", "tier_unsolved"] if POOLS[pool].after_stage_one else [])]
    for measure in measures:
        values = {arm: [measured(of_arm[seed], measure) for seed in seeds] for arm, of_arm in found.items()}
        print_differences(measure, values, reference=POOLS[pool].reference)


def measured(result: Mapping[str, Any], measure: str) -> float:
    """The area under the curve, or a score at the end; NaN where no held-out problem was of that kind."""
    return area(result) if measure == "area" else float(result["final"].get(measure, math.nan))


def print_differences(measure: str, values: Mapping[str, Sequence[float]], *, reference: str) -> None:
    """Every arm's difference from the reference, with p-values corrected for their number (Holm)."""
    others = [arm for arm in values if arm != reference]
    by_seed = list(zip(*values.values(), strict=True))
    places = [place for place, of_seed in enumerate(by_seed) if all(map(math.isfinite, of_seed))]
    if reference not in values or not others or len(places) < 2:
        return
    gains = {arm: [values[arm][place] - values[reference][place] for place in places] for arm in others}
    corrected = holm([p_value(gains[arm]) for arm in others])
    print(f"\n{measure}, {reference}: {with_spread([values[reference][place] for place in places])}")
    for arm, p in zip(others, corrected, strict=True):
        mean, low, high = paired_t_interval(gains[arm])
        same = "; the same within .02 (two one-sided tests at 5 %)" if equivalent(gains[arm], margin=0.02) else ""
        print(f"- {arm}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], corrected p = {p:.3f}{same}")


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference of 0, by Student's t."""
    mean, error = fmean(differences), stdev(differences) / len(differences) ** 0.5
    if error == 0.0:
        return float(mean == 0.0)  # all seeds differ by the same
    return student_p_value(mean / error, degrees=len(differences) - 1)


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
    ratio, ratio_low, ratio_high = tokens_ratio(results, reference)
    return [*cells, f"{ratio:.2f} [{ratio_low:.2f}, {ratio_high:.2f}]"]


def with_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"
