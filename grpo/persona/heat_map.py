"""A table of numbers from 0 to 1 as a picture: a cell for each row and column, darker where the number is larger."""

from collections.abc import Sequence

from markupsafe import Markup

CELL_WIDTH, CELL_HEIGHT = 58, 30
LEFT, TOP, GAP = 64, 44, 46
LIGHT, DARK = (247, 251, 255), (8, 48, 107)
STYLE = "text{font:11px sans-serif;fill:#222}.title{font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}"

Cells = Sequence[Sequence[float | None]]
"""Numbers by row and column; None leaves a cell empty."""


def heat_map(
    panels: Sequence[tuple[str, Cells]], *, rows: Sequence[str], columns: Sequence[str], marked: tuple[int, int] | None
) -> str:
    """An SVG file of panels side by side, each with its title. `marked` is the cell, in the first one, with a frame."""
    wide = LEFT + CELL_WIDTH * len(columns) + GAP
    height = TOP + CELL_HEIGHT * len(rows) + 26
    drawn = Markup("").join(
        _panel(title, cells, rows=rows, columns=columns, left=wide * place, marked=marked if place == 0 else None)
        for place, (title, cells) in enumerate(panels)
    )
    width = wide * len(panels)
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}"><style>{}</style>'
            '<rect width="100%" height="100%" fill="#fff"/>{}</svg>\n'
        ).format(width, height, width, Markup(STYLE), drawn)
    )


def _panel(
    title: str, cells: Cells, *, rows: Sequence[str], columns: Sequence[str], left: int, marked: tuple[int, int] | None
) -> Markup:
    parts = [_text(left + LEFT, 16, title, "title")]
    for column, name in enumerate(columns):
        parts.append(_text(left + LEFT + CELL_WIDTH * column + CELL_WIDTH / 2, TOP - 8, name, "middle"))
    for row, (name, of_row) in enumerate(zip(rows, cells, strict=True)):
        top = TOP + CELL_HEIGHT * row
        parts.append(_text(left + LEFT - 6, top + 19, name, "end"))
        for column, number in enumerate(of_row):
            if number is not None:
                parts.append(_cell(left + LEFT + CELL_WIDTH * column, top, number, framed=(row, column) == marked))
    return Markup("").join(parts)


def _cell(left: float, top: float, number: float, *, framed: bool) -> Markup:
    share = min(max(number, 0.0), 1.0)
    colour = "#" + "".join(
        f"{round(light + share * (dark - light)):02x}" for light, dark in zip(LIGHT, DARK, strict=True)
    )
    frame = "#d62728" if framed else "#fff"
    return Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" fill="{}" stroke="{}" stroke-width="{}"/>'
        '<text class="middle" x="{}" y="{}" style="fill:{}">{}</text>'
    ).format(
        left + 1,
        top + 1,
        CELL_WIDTH - 2,
        CELL_HEIGHT - 2,
        colour,
        frame,
        2 if framed else 1,
        left + CELL_WIDTH / 2,
        top + 19,
        "#fff" if share > 0.5 else "#222",
        f"{number:.2f}",
    )


def _text(x: float, y: float, text: str, css_class: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(css_class, x, y, text)
