"""Arrays -> lines of 80 columns, without colours: tables, grids of numbers, heat maps, bars."""

import dataclasses
import math
import reprlib
import textwrap
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, dataclass_transform

import numpy as np
import numpy.typing as npt

from minigpt.system import WIDTH as WIDTH

SHADES = " ░▒▓█"
STEPS = (0.06, 0.25, 0.5, 0.75)  # at these shares of the largest value, the next shade begins
Array = npt.NDArray[Any]

_NAMES = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """The text, its spaces and line breaks shown as symbols and other characters that do not print as escapes."""
    return "".join(_NAMES.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def number(value: float, form: str) -> str:
    """A number in a format; from 1e12 on as a power of ten, because so many digits cannot be read."""
    return f"{value:{form}}" if not 1e12 <= abs(value) < math.inf else f"{value:.3g}"


def decimals(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: an East Asian character two, a combining accent none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """The text in at most `width` columns; a "…" stands for what is left out."""
    used = [*accumulate(map(columns, text))]
    return text if not text or used[-1] <= width else text[: bisect_right(used, width - 1)] + "…"


def fitted(text: str, width: int, right: bool = False) -> str:
    """The text in exactly `width` columns: filled up with spaces, or cut."""
    text = cut(text, width)
    spaces = " " * (width - columns(text))
    return spaces + text if right else text + spaces


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (0,),
    pieces: Sequence[Sequence[str]] = (),
) -> list[str]:
    """Columns as wide as their content, two spaces apart; numbers are aligned to the right.

    Args:
        headings: one for each column.
        rows: the cells.
        left: which columns are text, aligned to the left.
        pieces: for each row, the texts of a last column: as many of them are shown as fit into 80 columns.
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
    """Numbers (R, N) under their columns' names, in several parts if they do not fit into 80 columns.

    Args:
        values: the numbers; NaN is shown as a dash.
        rows: names of the R rows.
        names: of the N columns.
        form: the format of a number.
        title: what a column is, written above the names of the rows.
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
    """A matrix (R, N), reduced to at most `most` rows and columns; each cell is the largest of n x n. Returns n too.

    The largest, not the mean, because a thin line such as a previous-token head's would fade away.
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


def shaded(values: npt.ArrayLike, rows: Sequence[str], top: float = 1.0) -> list[str]:
    """A matrix (R, N) of numbers from 0 to `top` as shades, each row after its name, and a line that explains them.

    A map too wide for 80 columns is made smaller: then a character stands for the largest of several values, and the
    last line says how many.
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
    """As many of the texts as fit, two spaces apart; the first in any case, cut if it does not fit."""
    line, *others = texts
    for text in others:
        if columns(line) + 2 + columns(text) > width:
            break
        line += "  " + text
    return cut(line, width)


def bar(share: float, width: int = 20) -> str:
    """A bar for a number from 0 to 1."""
    return "█" * round(width * min(1.0, max(0.0, share)))


@dataclass_transform(frozen_default=True, eq_default=False)
class Brief:
    """Makes every child a frozen dataclass, equal to itself alone; its repr has shapes of arrays, and cuts lists."""

    def __init_subclass__(cls, kw_only: bool = False) -> None:
        dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=kw_only)(cls)

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
