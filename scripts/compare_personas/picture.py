"""How the arms went, as an SVG of small panels: the trait in practice, the trait afterwards, and the projection."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from arms import TRAIT, result_path

DRAWN = (
    *("no leak", "plain", "at the start", "penalty by projection"),
    *("suppressed at the start", "instruction against", "inoculation", "penalty"),
)
"""The arms that are told apart by colour; more would not be."""
WIDTH, PANEL, GAP, LEFT, TOP, BOTTOM, HEIGHT = 900, 250, 46, 40, 30, 210, 290
STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--soft:#636875;--line:#e4e6ea;--c0:#636875;--c1:#c0392b;--c2:#2f5fd0;"
    "--c3:#d6336c;--c4:#8e44ad;--c5:#b7791f;--c6:#0f8a7e;--c7:#2e7d32}"
    "@media(prefers-color-scheme:dark){:root{--paper:#14161a;--soft:#9aa0ad;--line:#2b2f37;--c0:#9aa0ad;--c1:#ff8a7a;"
    "--c2:#84a7ff;--c3:#ff7aa8;--c4:#d39bf0;--c5:#e8b65a;--c6:#5fd3c6;--c7:#86d08a}}"
    ".paper{fill:var(--paper)}text{font:11px system-ui,sans-serif;fill:var(--soft)}.grid{stroke:var(--line)}"
    ".line{fill:none;stroke-width:1.6}.control{fill:none;stroke-width:1;stroke-dasharray:2 3}"
    + "".join(f".s{place}{{stroke:var(--c{place})}}" for place in range(len(DRAWN)))
    + ".s0,.s7{stroke-dasharray:6 3}"
)
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """What is drawn over steps: a metric of training, or a score of the held-out problems."""

    title: str
    metric: str | None = None  # of the trait; the score `trait` of evaluations where there is none
    control: str | None = None


PANELS = (
    Panel("trait rate of the rollouts, as practised", metric="rate"),
    Panel("trait rate afterwards, unsteered, held out"),
    Panel("drift of the projection; dotted: random", metric="drift", control="drift_random"),
)


def picture(seeds: Sequence[int], *, folder: Path) -> str | None:
    """An SVG of the arms' means over the seeds that each has finished; None where none has finished any."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for arm in DRAWN:
        paths = [result_path(seed, arm, folder=folder) for seed in seeds]
        results = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
        if results:
            found[arm] = results
    if not found:
        return None
    parts = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>']
    for place, panel in enumerate(PANELS):
        parts += _panel(panel, found, left=LEFT + place * (PANEL + GAP))
    for index, arm in enumerate(found):
        x, y = LEFT + (index % 4) * 215, BOTTOM + 42 + 20 * (index // 4)
        parts.append(f'<path class="key s{DRAWN.index(arm)}" d="M{x} {y}h24"/>')
        parts.append(f'<text x="{x + 30}" y="{y + 4}">{arm}</text>')
    label = "Trait rates and projections of the compared arms over steps"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{label}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def points_of(results: Sequence[Mapping[str, Any]], metric: str | None) -> Points:
    """Steps and the mean over seeds of a metric or, without one, of the trait at evaluations."""
    if metric is None:
        curves = [result["curve"] for result in results]
        return [(points[0]["step"], fmean(point["trait"] for point in points)) for points in zip(*curves, strict=True)]
    columns = zip(*(result["metrics"][f"persona/{TRAIT}/{metric}"] for result in results), strict=True)
    means = [[value for value in values if value is not None] for values in columns]
    return [(step, fmean(values)) for step, values in enumerate(means, start=1) if values]


def _panel(panel: Panel, found: Mapping[str, Sequence[Mapping[str, Any]]], *, left: float) -> list[str]:
    lines = {arm: points_of(results, panel.metric) for arm, results in found.items()}
    controls = {arm: points_of(results, panel.control) for arm, results in found.items() if panel.control}
    drawn = [*lines.values(), *controls.values()]
    last = max(step for points in drawn for step, _ in points)
    values = [value for points in drawn for _, value in points]
    low, high = min(0.0, math.floor(min(values))), max(1.0, math.ceil(max(values)))

    def path(points: Points, kind: str) -> str:
        places = (
            f"{left + step / last * PANEL:.1f} {BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP):.1f}"
            for step, value in points
        )
        return f'<path class="{kind}" d="M{"L".join(places)}"/>'

    parts = [f'<text x="{left}" y="{TOP - 12}">{panel.title}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = BOTTOM - share * (BOTTOM - TOP)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{PANEL}"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{low + share * (high - low):.3g}</text>')
    for share in (0.0, 0.5, 1.0):
        x = left + share * PANEL
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{share * last:g}</text>')
    parts += [path(points, f"control s{DRAWN.index(arm)}") for arm, points in controls.items()]
    parts += [path(points, f"line s{DRAWN.index(arm)}") for arm, points in lines.items()]
    return parts
