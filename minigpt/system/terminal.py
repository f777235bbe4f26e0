"""Arrays -> lines of 80 columns, in characters that need no colour: tables, grids of numbers, heat maps, bars."""

import dataclasses
import math
import reprlib
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

WIDTH = 80  # columns of a terminal
SHADES = " ░▒▓█"
STEPS = (0.06, 0.25, 0.5, 0.75)  # from these shares of the largest value on, the next shade
Array = npt.NDArray[Any]

_NAMES = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """The text with its spaces and line breaks as signs, and all else that does not print as an escape."""
    return "".join(_NAMES.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def number(value: float, form: str) -> str:
    """A number in a format, or as a power of ten where that would write digits that nobody can read."""
    return f"{value:{form}}" if not 1e12 <= abs(value) < math.inf else f"{value:.3g}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: an East Asian sign two, an accent of its own none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """The text in at most so many columns; a "…" stands for what is left out."""
    if columns(text) <= width:
        return text
    while columns(text) > width - 1:
        text = text[:-1]
    return text + "…"


def fitted(text: str, width: int, right: bool = False) -> str:
    """The text in exactly so many columns: filled up with spaces, or cut."""
    text = cut(text, width)
    spaces = " " * (width - columns(text))
    return spaces + text if right else text + spaces


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (0,),
    pieces: Sequence[Sequence[str]] = (),
) -> list[str]:
    """Columns as wide as what is in them, two spaces apart; numbers are set to the right.

    Args:
        headings: one a column.
        rows: the cells.
        left: which columns are text, set to the left.
        pieces: of a last column, the texts of each row: as many of them are shown as 80 columns have room for.
    """
    if pieces:
        used = sum(2 + max(map(columns, cells)) for cells in zip(headings[:-1], *rows, strict=True))
        rows = [(*row, joined(texts, WIDTH - used)) for row, texts in zip(rows, pieces, strict=True)]
    widths = [max(map(columns, cells)) for cells in zip(headings, *rows, strict=True)]
    return [
        "  ".join(
            fitted(cell, width, right=number not in left)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headings, *rows)
    ]


def grid(
    values: npt.ArrayLike, rows: Sequence[str], names: Sequence[str], form: str = "{:.2f}", title: str = ""
) -> list[str]:
    """Numbers (R, N) under their columns' names; where they are too many for 80 columns, in several parts.

    Args:
        values: the numbers; what is not a number is shown as a dash.
        rows: names of the R rows.
        names: of the N columns.
        form: of a number.
        title: what a column is, above the side of the table.
    """
    cells = [["–" if np.isnan(x) else form.format(x) for x in row] for row in np.asarray(values, dtype=float)]
    width = 1 + max(columns(cell) for row in (*cells, names) for cell in row)
    side = max(map(columns, [*rows, title]))
    at_once = max(1, (WIDTH - side) // width)
    lines = []
    for first in range(0, len(names), at_once):
        part = range(first, min(first + at_once, len(names)))
        lines.append(fitted(title, side) + "".join(fitted(names[n], width, right=True) for n in part))
        for name, row in zip(rows, cells, strict=True):
            lines.append(fitted(name, side) + "".join(fitted(row[n], width, right=True) for n in part))
    return lines


def pooled(values: npt.ArrayLike, most: int) -> tuple[Array, int]:
    """A matrix (R, N) with at most so many rows and columns, and n: a cell is the largest of n x n.

    The largest and not the mean, or a thin line such as a previous-token head's would fade away.
    """
    matrix = np.asarray(values, dtype=float)
    n = -(-max(matrix.shape) // most)
    rows, columns = (-(-size // n) for size in matrix.shape)
    padded = np.full((rows * n, columns * n), -np.inf)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.reshape(rows, n, columns, n).max((1, 3)), n


def shade(value: float, top: float) -> str:
    """The character for a share of the largest value."""
    return SHADES[sum(value >= step * top for step in STEPS)] if value > 0 else SHADES[0]


def heat_map(values: npt.ArrayLike, rows: Sequence[str], top: float = 1.0) -> list[str]:
    """A matrix (R, N) of numbers from 0 to `top` as shades, each row behind its name, and a line that explains them.

    A map too wide for 80 columns is made smaller: a character is then the largest of several values, and its last line
    says of how many.
    """
    side = min(12, max(map(columns, rows)))
    cells, n = pooled(values, WIDTH - side - 3)
    wide = 2 if 2 * cells.shape[1] + side + 3 <= WIDTH else 1
    lines = [
        f"{fitted(rows[number * n], side, right=True)} |" + "".join(shade(x, top) * wide for x in row) + "|"
        for number, row in enumerate(cells)
    ]
    return [*lines, legend(top) + (f"; each sign is the largest of {n} x {n} values" if n > 1 else "")]


def legend(top: float, unit: str = "") -> str:
    """What the shades mean."""
    marks = ", ".join(f"{sign} {step * top:.2g}" for sign, step in zip(SHADES[1:], STEPS, strict=True))
    return f"{marks} {unit}".rstrip() + " and more"


def joined(texts: Sequence[str], width: int) -> str:
    """As many of the texts as fit, two spaces apart; the first in any case, and cut if it must be."""
    line, *others = texts
    for text in others:
        if columns(line) + 2 + columns(text) > width:
            break
        line += "  " + text
    return cut(line, width)


def bar(share: float, width: int = 20) -> str:
    """A bar for a number from 0 to 1."""
    return "█" * round(width * min(1.0, max(0.0, share)))


class Brief:
    """A dataclass that shows itself in a few lines: of arrays the shape, of long lists the beginning.

    Its children are made with `repr=False`, because a dataclass would show every number.
    """

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        shown = ", ".join(f"{field.name}={_brief(getattr(self, field.name))}" for field in fields)
        return textwrap.fill(f"{type(self).__name__}({shown})", WIDTH, subsequent_indent="  ")


def _brief(value: object) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_brief(one)}" for key, one in value.items()) + "}"
    return reprlib.repr(value)
