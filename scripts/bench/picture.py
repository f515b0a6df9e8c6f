"""Bars of ratios as an SVG file: numbers in, markup out. Logarithmic, so that twice and half are as far from 1."""

import math
from collections.abc import Iterable
from html import escape

from arithmetic import Spread

WIDTH, LEFT, RIGHT, ROW, TOP = 720, 170, 690, 26, 26
STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--ink:#20242c;--soft:#636875;--line:#e4e6ea;--accent:#2f5fd0}"
    "@media(prefers-color-scheme:dark){:root{--paper:#14161a;--ink:#e6e8ec;--soft:#9aa0ad;--line:#2b2f37;"
    "--accent:#84a7ff}}.paper{fill:var(--paper)}text{font:12px system-ui,sans-serif;fill:var(--ink)}"
    ".tick{fill:var(--soft)}.grid{stroke:var(--line)}.bar{fill:var(--accent);opacity:.75}"
    ".spread{stroke:var(--ink)}.goal{stroke:var(--soft);stroke-width:2;stroke-dasharray:3 2}"
)


def bars(rows: Iterable[tuple[str, Spread, float | None]]) -> str:
    """A bar for each (label, ratio with its spread, goal or None): dashed where the goal is, a line for the spread."""
    listed = list(rows)
    values = [value for _, spread, goal in listed for value in (spread.low, spread.high, goal or 1.0)]
    low, high = math.floor(math.log2(min([1.0, *values]))), math.ceil(math.log2(max([2.0, *values])))

    def x(ratio: float) -> float:
        return LEFT + (math.log2(ratio) - low) / (high - low) * (RIGHT - LEFT)

    bottom = TOP + ROW * len(listed)
    parts = [f'<rect class="paper" width="{WIDTH}" height="{bottom + 10}"/>']
    for power in range(low, high + 1):
        at = x(2.0**power)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP - 4}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{TOP - 10}" text-anchor="middle">{2.0**power:g}×</text>')
    for place, (label, spread, goal) in enumerate(listed):
        y = TOP + ROW * place
        begin, end = sorted((x(1.0), x(spread.middle)))
        title = f"{label}: {spread.middle:.2f} ({spread.low:.2f} to {spread.high:.2f})"
        title += "" if goal is None else f", goal {goal:g}"
        parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        parts.append(
            f'<rect class="bar" x="{begin:.1f}" y="{y + 3}" width="{end - begin:.1f}" height="{ROW - 9}">'
            f"<title>{escape(title)}</title></rect>"
        )
        middle = y + 3 + (ROW - 9) / 2
        parts.append(
            f'<line class="spread" x1="{x(spread.low):.1f}" y1="{middle}" x2="{x(spread.high):.1f}" y2="{middle}"/>'
        )
        if goal is not None:
            parts.append(f'<line class="goal" x1="{x(goal):.1f}" y1="{y}" x2="{x(goal):.1f}" y2="{y + ROW - 3}"/>')
    label = "Tokens a second of a whole step, ours over theirs"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 10}" width="{WIDTH}" role="img" '
        f'aria-label="{label}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )
