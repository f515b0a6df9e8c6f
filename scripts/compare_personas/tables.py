"""The table: trait rate and accuracy of each arm, unsteered, and paired differences from the run without the leak."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from arms import FAMILIES, result_path

from curricula import paired_t_interval

CONFIDENCE = 0.9
TRAIT_GOAL, ACCURACY_GOAL = 0.2, 0.03


def print_tables(seeds: Sequence[int], arms: Sequence[str], *, folder: Path) -> None:
    """One of practice and one of finetuning, each over the seeds that every one of its arms has finished."""
    for reference, family in FAMILIES.items():
        found: dict[str, dict[int, Mapping[str, Any]]] = {}
        for arm in (arm for arm in family if arm in arms):
            paths = {seed: result_path(seed, arm, folder=folder) for seed in seeds}
            finished = {s: json.loads(path.read_text(encoding="utf-8")) for s, path in paths.items() if path.is_file()}
            if finished:
                found[arm] = finished
        if found:
            _print_table(found, reference=reference)


def _print_table(found: Mapping[str, Mapping[int, Mapping[str, Any]]], *, reference: str) -> None:
    common = sorted(set.intersection(*(set(of_arm) for of_arm in found.values())))
    if not common:
        return
    print(f"\n{len(common)} paired seeds: {', '.join(map(str, common))}\n")
    print(f"| arm | trait rate | by seed | accuracy | accuracy − {reference}, 90 % | goal |")
    print("|---|---|---|---|---|---|")
    for arm, of_arm in found.items():
        results = [of_arm[seed] for seed in common]
        traits = [result["final"]["trait"] for result in results]
        accuracies = [result["final"]["accuracy"] for result in results]
        cells = [arm, with_spread(traits), ", ".join(f"{t:.2f}" for t in traits), with_spread(accuracies)]
        if arm == reference or reference not in found or len(common) < 2:
            print("| " + " | ".join([*cells, "–", "–"]) + " |")
            continue
        gaps = [a - found[reference][s]["final"]["accuracy"] for a, s in zip(accuracies, common, strict=True)]
        mean, low, high = paired_t_interval(gaps, confidence=CONFIDENCE)
        met = fmean(traits) <= TRAIT_GOAL and low >= -ACCURACY_GOAL
        in_mean = fmean(traits) <= TRAIT_GOAL and mean >= -ACCURACY_GOAL
        verdict = "met" if met else "met in the mean" if in_mean else "missed"
        print("| " + " | ".join([*cells, f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]", verdict]) + " |")


def with_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
