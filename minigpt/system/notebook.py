"""Tables, bars, maps and curves as HTML that a notebook shows: no script, nothing that is loaded, any background.

A colour is laid thinly over what is below it, and texts keep the notebook's own colour, so that all can be read on a
light page and on a dark one. A text may come from anybody: every text is escaped here.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Points = Sequence[tuple[float, float]]
Mark = tuple[str, float]

_MOST_ROWS, _MOST_COLUMNS = 40, 24
_MORE, _LESS = "31,119,180", "230,110,20"  # blue and orange, which all people can tell apart
_STRONGEST = 0.45  # opacity of a colour below a text
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 520, 240, 48, 34, 10  # of a curve
_CELL = "padding:1px 6px;text-align:{side};white-space:pre;border:none"


def shown(title: str, *parts: str) -> str:
    """A result: its title in bold, and its parts, which are HTML already."""
    return f'<div class="minigpt" style="overflow-x:auto"><p><b>{escape(title)}</b></p>{"".join(parts)}</div>'


def note(text: str) -> str:
    """A line of text."""
    return f"<p>{escape(text)}</p>"


def text_block(text: str) -> str:
    """A text whose line ends stay."""
    return f'<pre style="white-space:pre-wrap">{escape(text)}</pre>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """A table; of a long one its beginning, and how much is left out."""
    return _table(columns, [[_cell(value) for value in row] for row in rows[:_MOST_ROWS]], caption, len(rows))


def bars(names: Sequence[str], values: Sequence[float], caption: str = "", what: str = "value") -> str:
    """A value and a bar for each name; bars of negative values have the other colour."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0
    pairs = list(zip(names, values, strict=True))[:_MOST_ROWS]
    cells = [[_cell(name), _cell(value), _bar(value / largest)] for name, value in pairs]
    return _table(["", what, ""], cells, caption, len(names))


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Any, caption: str = "") -> str:
    """A table of numbers whose cells are coloured by them; negative ones have the other colour.

    Args:
        rows: their names.
        columns: their names.
        values: (rows, columns): an array, a tensor, or lists.
        caption: a line above.
    """
    part = [[float(value) for value in row[:_MOST_COLUMNS]] for row in values[:_MOST_ROWS]]
    largest = max((abs(value) for row in part for value in row if math.isfinite(value)), default=0.0) or 1.0
    named = zip(rows[:_MOST_ROWS], part, strict=True)
    cells = [[_cell(name), *(_cell(value, value / largest) for value in row)] for name, row in named]
    return _table(["", *columns[:_MOST_COLUMNS]], cells, caption, len(rows), len(columns))


def marked(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Mark]], caption: str = "") -> str:
    """A table of texts, each with a share from 0 to 1 that colours its cell."""
    made = [
        [_cell(name), *(_cell(text, share) for text, share in row[:_MOST_COLUMNS])]
        for name, row in list(zip(rows, cells, strict=True))[:_MOST_ROWS]
    ]
    return _table(["", *columns[:_MOST_COLUMNS]], made, caption, len(rows), len(columns))


def curves(series: Mapping[str, Points], x: str, y: str) -> str:
    """Lines over one axis, as SVG: name -> (x, y) of its points. The first is a plain line, further ones are dashed."""
    points = [point for line in series.values() for point in line if all(map(math.isfinite, point))]
    if not points:
        return note("no point yet")
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))

    def placed(point: tuple[float, float]) -> str:
        across = (point[0] - left) / ((right - left) or 1) * (_WIDTH - _LEFT - _EDGE) + _LEFT
        up = (point[1] - low) / ((high - low) or 1) * (_HEIGHT - _BOTTOM - 2 * _EDGE)
        return f"{across:.1f},{_HEIGHT - _BOTTOM - _EDGE - up:.1f}"

    parts = []
    for number, (name, line) in enumerate(series.items()):
        colour, dash = (_LESS, ' stroke-dasharray="6 3"') if number else (_MORE, "")
        path = " ".join(placed(point) for point in line if all(map(math.isfinite, point)))
        stroke, height = f'stroke="rgb({colour})" stroke-width="2"{dash}', 14 + 18 * number
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        parts.append(f'<line x1="{_WIDTH - 150}" x2="{_WIDTH - 126}" y1="{height}" y2="{height}" {stroke}/>')
        parts.append(_label(_WIDTH - 120, height + 4, name))
    base = _HEIGHT - _BOTTOM
    parts += [_label(_LEFT - 4, _EDGE + 8, f"{high:.4g}", "end"), _label(_LEFT - 4, base - _EDGE, f"{low:.4g}", "end")]
    parts += [_label(_LEFT, base + 14, f"{left:g}"), _label(_WIDTH - _EDGE, base + 14, f"{right:g}", "end")]
    parts += [_label((_WIDTH + _LEFT) / 2, base + 28, x, "middle"), _label(4, _HEIGHT / 2, y)]
    axes = (
        f'<path d="M{_LEFT} {_EDGE}V{base}H{_WIDTH - _EDGE}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>'
    )
    said = escape(f"{y} over {x}: from {points[0][1]:.4g} to {points[-1][1]:.4g}")
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}">{axes}{"".join(parts)}</svg>'


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="12" fill="currentColor">{escape(text)}</text>'


def _table(columns: Sequence[str], cells: list[list[str]], caption: str, num_rows: int, num_columns: int = 0) -> str:
    """A table of finished cells, and how many rows and columns it leaves out."""
    head = "".join(f'<th scope="col" style="{_CELL.format(side="right")}">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    left_out = [
        f"{count - most:,} more {what}"
        for count, most, what in ((num_rows, _MOST_ROWS, "rows"), (num_columns, _MOST_COLUMNS, "columns"))
        if count > most
    ]
    said = "; ".join([*filter(None, [caption]), *left_out])
    above = f'<caption style="text-align:left;color:inherit">{escape(said)}</caption>' if said else ""
    style = "border-collapse:collapse;color:inherit;background:none"
    return f'<table style="{style}">{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(value: object, share: float | None = None) -> str:
    """A cell of a table, coloured by a share from -1 to 1."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    style = _CELL.format(side="right" if is_number or share is not None else "left")
    if share is not None and math.isfinite(share):
        strength = min(1.0, abs(share)) * _STRONGEST
        style += f";background:rgba({_LESS if share < 0 else _MORE},{strength:.3f})"
    return f'<td style="{style}">{escape(_spelled(value))}</td>'


def _bar(share: float) -> str:
    """A cell with a bar, of a share from -1 to 1."""
    width = round(100 * min(1.0, abs(share))) if math.isfinite(share) else 0
    style = f"width:{width}px;height:0.8em;background:rgb({_LESS if share < 0 else _MORE})"
    return f'<td style="{_CELL.format(side="left")}"><div style="{style}"></div></td>'


def _spelled(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
