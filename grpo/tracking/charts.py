"""Charts as inline SVG: numbers in, markup out.

Owns geometry: scales, ticks, smoothing, thinning, paths. Knows no run folder, no metric name and no colour: strokes and
fills are CSS classes of the page that the markup is put in, and so is dark mode. Every `<svg>` carries its numbers as
JSON in `data-chart`, which the page's script reads to show the value under the pointer."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
"""(step, value) in ascending step; every number finite."""

WIDTH, HEIGHT = 360, 176
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 12, 150
MAX_POINTS = 400
MIN_POINTS_TO_SMOOTH = 16
SMOOTHING_SHARE = 0.1
"""The smoothing span as a share of a line's points: a tenth shows the trend and keeps the turns."""


MAX_BAR_LABELS = 16
FILE_STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--soft:#636875;--line:#e4e6ea;--accent:#2f5fd0;--rest:#c9ccd3}"
    "@media(prefers-color-scheme:dark){:root{--paper:#14161a;--soft:#9aa0ad;--line:#2b2f37;--accent:#84a7ff;"
    "--rest:#4a4f5a}}.paper{fill:var(--paper)}text{font:9px system-ui,sans-serif;fill:var(--soft)}"
    ".grid{stroke:var(--line)}.layer{fill:var(--rest)}.layer-0{fill:var(--accent);opacity:.3}"
    ".layer-1{fill:var(--accent);opacity:.6}.layer-2{fill:var(--accent)}"
)
"""The page's colours for a drawing that is a file of its own."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a step, with a word beside it."""

    step: float
    label: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The data's ranges, and their place in the drawing's pixels."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def x(self, step: float) -> float:
        return LEFT + (step - self.x_min) / (self.x_max - self.x_min) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.y_min) / (self.y_max - self.y_min) * (BOTTOM - TOP)


def line_chart(
    points: Points, *, name: str, steps: tuple[float, float], marks: Sequence[Mark], stepped: bool
) -> Markup:
    """One metric over steps: raw values faint, their moving average on top.

    `steps` is the first and last step of the axis, so that charts side by side share it. A short line is drawn with
    dots and unsmoothed; a `stepped` one holds each value until the next, for quantities that are set and not measured.
    Raises ValueError without points."""
    if not points:
        raise ValueError(f"a chart needs at least one point; {name} has none")
    frame = _frame(steps, [value for _, value in points])
    thin = thinned(points, limit=MAX_POINTS)
    parts = [_axes(frame), _marks(frame, marks)]
    if stepped:
        parts.append(_path("line", _staircase(thin), frame))
    elif len(points) >= MIN_POINTS_TO_SMOOTH:
        average = smoothed([value for _, value in points], span=max(4.0, SMOOTHING_SHARE * len(points)))
        trend = [(step, value) for (step, _), value in zip(points, average, strict=True)]
        parts.append(_path("raw", thin, frame))
        parts.append(_path("line", thinned(trend, limit=MAX_POINTS), frame))
    else:
        parts.append(_path("line", thin, frame))
        parts.extend(
            Markup('<circle class="point" cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(frame.x(step), frame.y(value))
            for step, value in thin
        )
    label = f"{name}: {format_number(points[-1][1])} at step {format_number(points[-1][0])}"
    return _svg(parts, frame=frame, label=label, names=[name], xs=[x for x, _ in thin], ys=[[y for _, y in thin]])


def stacked_chart(
    steps: Sequence[float], layers: Sequence[tuple[str, Sequence[float]]], *, marks: Sequence[Mark]
) -> Markup:
    """Counts that add up to a whole, over steps: one (name, one value a step) a layer, the first at the bottom.

    Raises ValueError without steps or layers, and where a layer is not as long as `steps`."""
    if not steps or not layers:
        raise ValueError(f"a stacked chart needs steps and layers; got {len(steps)} and {len(layers)}")
    for name, values in layers:
        if len(values) != len(steps):
            raise ValueError(f"a layer holds one value a step; {name} has {len(values)} for {len(steps)} steps")
    keep = sorted({round(i * (len(steps) - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)})
    xs = [steps[i] for i in keep]
    ys = [[values[i] for i in keep] for _, values in layers]
    totals = [sum(column) for column in zip(*ys, strict=True)]
    frame = _frame((steps[0], steps[-1]), [0.0, *totals])
    parts = [_axes(frame)]
    lower = [0.0] * len(xs)
    for index, values in enumerate(ys):
        upper = [low + value for low, value in zip(lower, values, strict=True)]
        outline = [*zip(xs, upper, strict=True), *reversed(list(zip(xs, lower, strict=True)))]
        parts.append(_path(f"layer layer-{index}", outline, frame))
        lower = upper
    parts.append(_marks(frame, marks))
    names = [name for name, _ in layers]
    return _svg(parts, frame=frame, label=f"{', '.join(names)} over steps", names=names, xs=xs, ys=ys)


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
    frame = replace(_frame((0, len(labels)), [0.0, *tops]), x_min=0, x_max=len(labels))
    parts = [_levels(frame)]
    every = -(-len(labels) // MAX_BAR_LABELS)  # where there are many, not each has room for its label
    lower = [0.0] * len(labels)
    for index, (name, values) in enumerate(layers):
        for place, (label, value) in enumerate(zip(labels, values, strict=True)):
            if not value:
                continue
            top = frame.y(lower[place] + value)
            parts.append(
                Markup(
                    '<rect class="layer layer-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}, {}: {}</title></rect>"
                ).format(
                    *(index, frame.x(place + 0.1), top, frame.x(0.8) - frame.x(0), frame.y(lower[place]) - top),
                    *(name, label, format_number(value)),
                )
            )
            lower[place] += value
    parts.extend(
        Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            frame.x(place + 0.5), BOTTOM + 14, label
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


def interval_bar(value: float, *, low: float, high: float) -> Markup:
    """A value between 0 and 1 with its interval, as one small line: to be compared down a table's column."""
    left, middle, right = (4 + 112 * min(max(number, 0.0), 1.0) for number in (low, value, high))
    return Markup(
        '<svg class="interval" viewBox="0 0 120 14" role="img" aria-label="{} between {} and {}">'
        '<line class="track" x1="4" y1="7" x2="116" y2="7"/><line class="range" x1="{:.1f}" y1="7" x2="{:.1f}" y2="7"/>'
        '<circle class="point" cx="{:.1f}" cy="7" r="3.5"/></svg>'
    ).format(format_number(value), format_number(low), format_number(high), left, right, middle)


def smoothed(values: Sequence[float], *, span: float) -> list[float]:
    """Exponential moving average of that span, without the start's pull towards zero (Kingma & Ba 2015, section 3)."""
    decay = 1 - 2 / (span + 1)
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(average / weight)
    return result


def thinned(points: Points, *, limit: int) -> list[tuple[float, float]]:
    """At most `limit` of the points, in order: the lowest and the highest of each of limit/2 stretches, so that no
    spike is lost. All of them where they are no more."""
    if len(points) <= limit:
        return list(points)
    num_stretches = limit // 2
    result: list[tuple[float, float]] = []
    for index in range(num_stretches):
        stretch = points[index * len(points) // num_stretches : (index + 1) * len(points) // num_stretches]
        result.extend(sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}))
    return result


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


def _frame(steps: tuple[float, float], values: Sequence[float]) -> Frame:
    """The ranges with a little air; from zero where zero is near, and never empty."""
    low, high = min(values), max(values)
    if 0 < low < 0.4 * high:
        low = 0.0
    if 0.85 < high < 1.0 and low >= 0:
        high = 1.0
    if low == high == 0:
        high = 1.0
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
        air = abs(high) * 0.1 or 1.0
        low, high = low - air, high + air
    air = (high - low) * 0.06
    first, last = steps
    return Frame(
        x_min=first,
        x_max=last if last > first else first + 1,
        y_min=low if low == 0 else low - air,
        y_max=high + air,
    )


def _levels(frame: Frame) -> Markup:
    """Hairlines at round values with their numbers."""
    parts = []
    for value in ticks(frame.y_min, frame.y_max, count=3):
        y = frame.y(value)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(LEFT, y, RIGHT, y, LEFT - 6, y + 3.5, format_number(_rounded(value)))
        )
    return Markup("").join(parts)


def _axes(frame: Frame) -> Markup:
    """Hairlines at round values with their numbers, and the first and last round steps."""
    parts = [_levels(frame)]
    for value in ticks(frame.x_min, frame.x_max, count=4):
        if value == int(value):
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    frame.x(value), BOTTOM + 17, format_number(value)
                )
            )
    return Markup("").join(parts)


def _marks(frame: Frame, marks: Sequence[Mark]) -> Markup:
    parts = []
    for mark in marks:
        if not frame.x_min <= mark.step <= frame.x_max:
            continue
        x = frame.x(mark.step)
        beside, anchor = (x + 4, "start") if x < (LEFT + RIGHT) / 2 else (x - 4, "end")
        parts.append(
            Markup(
                '<line class="mark" x1="{:.1f}" y1="{}" x2="{:.1f}" y2="{}"/>'
                '<text class="mark-label" x="{:.1f}" y="{}" text-anchor="{}">{}</text>'
            ).format(x, TOP - 4, x, BOTTOM, beside, TOP + 3, anchor, mark.label)
        )
    return Markup("").join(parts)


def _path(css_class: str, points: Points, frame: Frame) -> Markup:
    line = "L".join(f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in points)
    return Markup('<path class="{}" d="M{}"/>').format(css_class, line)


def _staircase(points: Points) -> list[tuple[float, float]]:
    """The points with a corner before each change, so that a line through them holds each value until the next."""
    corners = [(step, value) for (_, value), (step, _) in pairwise(points)]  # a value, carried to the next one's step
    return [point for pair in zip(points, [*corners, points[-1]], strict=True) for point in pair]


def _svg(
    parts: Sequence[Markup],
    *,
    frame: Frame,
    label: str,
    names: Sequence[str],
    xs: Sequence[float],
    ys: Sequence[Sequence[float]],
) -> Markup:
    """The drawing with its numbers for the pointer: `domain` are the data's ranges, `box` the pixels they fill."""
    numbers = {
        "names": list(names),
        "x": [_rounded(x) for x in xs],
        "y": [[_rounded(y) for y in line] for line in ys],
        "domain": [frame.x_min, frame.x_max, frame.y_min, frame.y_max],
        "box": [LEFT, RIGHT, TOP, BOTTOM],
    }
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}">{}'
        '<line class="guide" y1="{}" y2="{}"/><circle class="dot" r="3"/></svg>'
    ).format(WIDTH, HEIGHT, label, escape(json.dumps(numbers)), Markup("").join(parts), TOP, BOTTOM)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
