"""A bar chart as SVG, for a picture that is a file of its own, and numbers as a person writes them.

Owns geometry: scales and ticks. Knows no run folder and no colour but those of a file: fills are CSS classes."""

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 360, 176
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 12, 150
MAX_BAR_LABELS = 16
FILE_STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--soft:#636875;--line:#e4e6ea;--accent:#2f5fd0;--rest:#c9ccd3}"
    "@media(prefers-color-scheme:dark){:root{--paper:#14161a;--soft:#9aa0ad;--line:#2b2f37;--accent:#84a7ff;"
    "--rest:#4a4f5a}}.paper{fill:var(--paper)}text{font:9px system-ui,sans-serif;fill:var(--soft)}"
    ".grid{stroke:var(--line)}.layer{fill:var(--rest)}.layer-0{fill:var(--accent);opacity:.3}"
    ".layer-1{fill:var(--accent);opacity:.6}.layer-2{fill:var(--accent)}"
)
"""Its colours, light and dark."""


def bar_chart(labels: Sequence[str], layers: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """Counts by category: one (name, one value a category) a layer, stacked in each bar, the first at the bottom.

    Each piece says its numbers when the pointer rests on it. Raises ValueError without categories or layers, and where
    a layer has not one value a category."""
    if not labels or not layers:
        raise ValueError(f"a bar chart needs categories and layers; got {len(labels)} and {len(layers)}")
    for name, values in layers:
        if len(values) != len(labels):
            raise ValueError(f"a layer holds one value a category; {name} has {len(values)} for {len(labels)}")
    tops = [sum(column) for column in zip(*(values for _, values in layers), strict=True)]
    highest = max(max(tops), 0.0) * 1.06 or 1.0  # with a little air
    parts = [_levels(highest)]
    width = (RIGHT - LEFT) / len(labels)
    every = -(-len(labels) // MAX_BAR_LABELS)  # where there are many, not each has room for its label
    lower = [0.0] * len(labels)
    for index, (name, values) in enumerate(layers):
        for place, (label, value) in enumerate(zip(labels, values, strict=True)):
            if not value:
                continue
            bottom, top = (_y(number, highest) for number in (lower[place], lower[place] + value))
            parts.append(
                Markup(
                    '<rect class="layer layer-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}, {}: {}</title></rect>"
                ).format(
                    *(index, LEFT + (place + 0.1) * width, top, 0.8 * width, bottom - top),
                    *(name, label, format_number(value)),
                )
            )
            lower[place] += value
    parts.extend(
        Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            LEFT + (place + 0.5) * width, BOTTOM + 14, label
        )
        for place, label in enumerate(labels)
        if place % every == 0 or place == len(labels) - 1
    )
    return Markup(
        '<svg class="bar-chart" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, WIDTH, HEIGHT, ", ".join(name for name, _ in layers), Markup("").join(parts))


def standalone(drawing: Markup, *, names: Sequence[str]) -> str:
    """A drawing as a file of its own: with a legend of its layers and the page's colours, light and dark."""
    legend = Markup("").join(
        Markup('<rect class="layer layer-{}" x="{}" y="{}" width="9" height="9"/><text x="{}" y="{}">{}</text>').format(
            index, LEFT + 74 * index, HEIGHT + 2, LEFT + 74 * index + 13, HEIGHT + 10, name
        )
        for index, name in enumerate(names)
    )
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}"><style>{}</style>'
            '<rect class="paper" width="100%" height="100%"/>{}{}</svg>\n'
        ).format(WIDTH, HEIGHT + 18, 2 * WIDTH, Markup(FILE_STYLE), drawing, legend)
    )


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9)
    return [multiple * gap for multiple in range(first, last + 1)]


def format_number(value: float) -> str:
    """Three significant digits as a person writes them: 0.412, 1,280, 3.4 M, 2e-05."""
    size = abs(value)
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    for floor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= floor:
            return f"{value / floor:.3g} {letter}" if size < 1e15 else f"{value:.2e}"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _y(value: float, highest: float) -> float:
    return BOTTOM - value / highest * (BOTTOM - TOP)


def _levels(highest: float) -> Markup:
    """Hairlines at round values with their numbers."""
    parts = []
    for value in ticks(0.0, highest, count=3):
        y = _y(value, highest)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(LEFT, y, RIGHT, y, LEFT - 6, y + 3.5, format_number(_rounded(value)))
        )
    return Markup("").join(parts)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
