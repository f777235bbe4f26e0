"""Arrays -> pictures. matplotlib is imported only when a picture is drawn.

Every function gives a figure, which `system.figures.save_figure` writes. Amounts are shown in viridis, numbers with a
sign from blue through white to red; both scales can be read with any kind of colour vision. A picture that cannot name
or show all tokens leaves some out, and says so.
"""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minigpt.errors import counted
from minigpt.system.figures import BLUE, GREEN, GREY, ORANGE, drawable, new_figure
from minigpt.system.terminal import cut, pooled, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.text import Annotation

AMOUNT, SIGNED, HIDDEN = "viridis", "RdBu_r", "#EEEEEE"  # two colour maps, and the colour of cells without a number
SMALL, TINY = 8, 6.5  # points: labels, and numbers inside cells
POINTS = 72  # an inch
BESIDE: dict[str, Any] = {"textcoords": "offset points", "xytext": (3, 0), "va": "center", "fontsize": TINY}  # a bar

Array = npt.NDArray[Any]


def heat_map(
    values: npt.ArrayLike,
    rows: Sequence[str],
    names: Sequence[str],
    what: str,
    title: str = "",
    texts: Sequence[Sequence[str]] | None = None,
    signed: bool = False,
    xlabel: str = "",
    ylabel: str = "",
) -> "Figure":
    """A matrix (R, N) as colours, with numbers or texts inside its cells where these are large enough to be read.

    Args:
        values: the matrix; NaN stays grey.
        rows: names of the R rows, the first on top.
        names: of the N columns, which may be tokens.
        what: what a colour means, beside the scale.
        title: one line above.
        texts: what to write into the cells instead of the numbers, (R, N); cut if a cell is too narrow.
        signed: a scale from blue through white at 0 to red.
        xlabel: what the columns are.
        ylabel: what the rows are.
    """
    matrix = np.asarray(values, dtype=float)
    R, N = matrix.shape
    across = 11 if N <= 80 else 8  # inches; above 80 columns there is no room to name each of them anyway
    cell = min(0.5 if texts is None else 0.8, across / N)
    columns, lines = [drawable(name) for name in names], [drawable(row, spaces=False) for row in rows]
    below = 0.08 * max(map(len, columns))  # inches, for names written vertically
    figure = new_figure(max(4.5, 2.2 + cell * N), min(9.5, 1.8 + below + max(0.2, min(cell, 0.4)) * R))
    axes = figure.subplots()
    top = float(np.nanmax(np.abs(matrix), initial=0.0)) or 1.0
    limits = (-top, top) if signed else (min(0.0, float(np.nanmin(matrix))), max(top, 1e-12))
    left_out = []
    if cell < 0.34:
        left_out = ["too many columns to write into the cells"] if texts is not None else []
        cells = None
    elif texts is None:
        digits = 2 if top < 10 else 1 if top < 100 else 0
        cells = [[f"{value:z.{digits}f}" for value in row] for row in matrix]
    else:
        letters = int(cell * POINTS / (0.62 * TINY))
        cells = [[cut(drawable(text), letters) for text in row] for row in texts]
    _draw_map(axes, matrix, limits, SIGNED if signed else AMOUNT, cells)
    left_out += _name_places(axes, columns, lines, figure)
    _scale(figure, axes, axes.images[0], what)
    axes.set(xlabel=drawable(xlabel, spaces=False), ylabel=drawable(ylabel, spaces=False))
    return _said(figure, title, left_out)


def attention_head(pattern: npt.ArrayLike, tokens: Sequence[str], title: str = "") -> "Figure":
    """One head's pattern, large: how much each query, a row, takes from each key, a column.

    Args:
        pattern: (T, T), each row's sum 1; the future is not drawn.
        tokens: the texts of the T tokens.
        title: one line above.
    """
    matrix = _past(np.asarray(pattern, dtype=float))
    T = len(matrix)
    texts = [[_share(value) for value in row] for row in matrix.data] if T <= 20 else None
    side = max(4.5, 2 + 0.36 * T) if texts else min(9.5, 2 + 0.24 * T)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    _draw_map(axes, matrix, (0, 1), AMOUNT, texts)
    names = [drawable(token) for token in tokens]
    left_out = _name_places(axes, names, names, figure)
    _scale(figure, axes, axes.images[0], "attention")
    axes.set(xlabel="key: the token that is looked at", ylabel="query: the token that looks")
    return _said(figure, title, left_out)


def attention_grid(patterns: npt.ArrayLike, layers: Sequence[int], tokens: Sequence[str], title: str = "") -> "Figure":
    """Every head as a thumbnail, one row of thumbnails a layer.

    Args:
        patterns: (L, H, T, T).
        layers: the numbers of the L layers.
        tokens: the texts of the T tokens, named below the thumbnails.
        title: one line above.
    """
    stack = np.asarray(patterns, dtype=float)
    L, H, T, _ = stack.shape
    side = min(1.6, 11 / H)
    figure = new_figure(max(4.5, side * H + 1.6), (side + 0.2) * L + 0.9)
    rows = figure.subplots(L, H, squeeze=False)
    n = 1
    for layer, row, heads in zip(layers, rows, stack, strict=True):
        for head, (axes, pattern) in enumerate(zip(row, heads, strict=True)):
            cells, n = pooled(_past(pattern).filled(0.0), 100)
            _draw_map(axes, _past(cells), (0, 1), AMOUNT)
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.set_title(f"{layer}.{head}", fontsize=SMALL, pad=2)
    _scale(figure, list(rows.flat), rows[0, 0].images[0], "attention")
    smaller = [f"each dot is the largest of {n} x {n} values"] if n > 1 else []
    names = f"{counted(T, 'token')}: {' '.join(map(visible, tokens))}"
    most = int(figure.get_figwidth() * 10)  # letters in a line
    names = names if len(names) <= most else names[: most - 1] + "…"
    return _said(figure, title, ["rows: queries, columns: keys", names, *smaller])


def head_scoreboard(scores: Mapping[str, npt.ArrayLike], title: str = "") -> "Figure":
    """One map for each score, layers from top to bottom, heads from left to right.

    Args:
        scores: kind -> (L, H), from 0 to 1.
        title: one line above.
    """
    maps = {kind: np.asarray(values, dtype=float) for kind, values in scores.items()}
    L, H = next(iter(maps.values())).shape
    across = min(3, len(maps))
    down = -(-len(maps) // across)
    figure = new_figure(across * max(2.2, 0.3 * H + 0.4) + 0.8, down * max(1.6, 0.26 * L + 0.9) + 0.4)
    panels = figure.subplots(down, across, squeeze=False)
    used, unused = panels.flat[: len(maps)], panels.flat[len(maps) :]
    for axes in unused:
        axes.remove()
    for axes, (kind, values) in zip(used, maps.items(), strict=True):
        texts = [[_share(value) for value in row] for row in values]
        _draw_map(axes, values, (0, 1), AMOUNT, texts if H <= 16 else None)
        axes.set_xticks(range(0, H, 1 if H <= 16 else 4))
        axes.set_yticks(range(0, L, 1 if L <= 24 else 4))
        axes.tick_params(labelsize=TINY, length=2)
        axes.set_title(kind, fontsize=SMALL + 1)
    figure.supxlabel("head", fontsize=SMALL)
    figure.supylabel("layer", fontsize=SMALL)
    _scale(figure, list(used), used[0].images[0], "score")
    return _said(figure, title, [])


def waterfall(parts: Sequence[tuple[str, float]], total: float, what: str, title: str = "") -> "Figure":
    """How parts add up to a number, from top to bottom: each bar begins where the one above ends.

    Args:
        parts: (name, value), whose sum is `total`.
        total: the last bar.
        what: what the numbers are.
        title: one line above.
    """
    names, values = [name for name, _ in parts], np.array([value for _, value in parts])
    ends = values.cumsum()
    figure = new_figure(8, 1.5 + 0.24 * len(parts))
    axes = figure.subplots()
    places = np.arange(len(parts))
    colours = np.where(values >= 0, ORANGE, BLUE)
    axes.barh(places, values, left=ends - values, color=colours, height=0.7)
    axes.barh(len(parts), total, color=GREY, height=0.7)
    low, high = min(0.0, total, *ends, *(ends - values)), max(0.0, total, *ends, *(ends - values))
    room = 0.12 * ((high - low) or 1.0)
    axes.set_xlim(low - (room if low < 0 else 0), high + room)
    for place, (end, value) in enumerate([*zip(ends, values, strict=True), (total, total)]):
        right = max(end, end - value)
        axes.annotate(f"{value:+.3f}", (right, place), **BESIDE)
    labels = [drawable(name, spaces=False) for name in names]
    axes.set_yticks([*places, len(parts)], [*labels, "together"], fontsize=SMALL)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(drawable(what, spaces=False), fontsize=SMALL)
    return _said(figure, title, [])


def loss_strip(tokens: Sequence[str], losses: Sequence[float], title: str = "") -> "Figure":
    """A text, wrapped like a page, with the loss of each token as its background colour.

    Args:
        tokens: the texts of the T tokens.
        losses: in nats, of the tokens from the second on: (T - 1,).
        title: one line above.
    """
    labels = [drawable(token) for token in tokens]
    widest = min(10, max(map(len, labels)))
    across = max(8, 64 // (widest + 1))
    shown = [label if len(label) <= widest else label[: widest - 1] + "…" for label in labels]
    R = -(-len(tokens) // across)
    across = min(across, len(tokens))
    cells = np.full(R * across, np.nan)
    cells[1 : len(tokens)] = losses
    figure = new_figure(max(4.5, (0.2 + 0.08 * widest) * across + 1.2), 1.3 + 0.42 * R)
    axes = figure.subplots()
    top = max(1.0, float(np.nanmax(cells, initial=0.0)))
    image = _draw_map(axes, cells.reshape(R, across), (0, top), AMOUNT)
    for place, (label, value) in enumerate(zip(shown, cells, strict=False)):
        y, x = divmod(place, across)
        colour = "black" if np.isnan(value) or value > 0.55 * top else "white"
        axes.text(x, y - 0.12, label, ha="center", va="center", fontsize=SMALL, color=colour)
        if not np.isnan(value):
            axes.text(x, y + 0.28, f"{value:.1f}", ha="center", va="center", fontsize=5.5, color=colour)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("auto")
    _scale(figure, axes, image, "loss (nats)")
    return _said(figure, title, ["read from left to right; the first token has nothing before it, and no loss"])


def size_chart(modules: Sequence[str], quantities: Mapping[str, Sequence[float]], title: str = "") -> "Figure":
    """What each kind of module costs, as its share of the whole: one panel a quantity, three side by side.

    Args:
        modules: names.
        quantities: what is counted -> a number for each module.
        title: one line above.
    """
    across = min(3, len(quantities))
    down = -(-len(quantities) // across)
    figure = new_figure(2.5 * across + 1.4, down * (0.4 + 0.26 * len(modules)) + 0.6)
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, (what, numbers) in zip(panels.flat, quantities.items(), strict=False):
        whole = sum(numbers) or 1.0
        bars = axes.barh([*modules], [100 * number / whole for number in numbers], color=BLUE)
        labels = [f"{100 * number / whole:.1f}" if number else "" for number in numbers]
        axes.bar_label(bars, labels, padding=2, fontsize=TINY)
        axes.set(xlim=(0, 125), xticks=[0, 50, 100])
        axes.set_title(what, fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
    for axes in panels.flat[len(quantities) :]:
        axes.remove()
    panels[0, 0].invert_yaxis()
    figure.supxlabel("% of the whole", fontsize=SMALL)
    return _said(figure, title, [])


def cuts_chart(tokens: Sequence[str], stages: Sequence[tuple[str, Sequence[float], int]], title: str = "") -> "Figure":
    """What each option of sampling leaves of the same tokens, from left to right in the order in which they act.

    Args:
        tokens: the texts of the N likeliest tokens, the best first.
        stages: (what was done, the N probabilities after it, how many tokens of the whole vocabulary are left).
        title: one line above.
    """
    panels = [(f"{name}\n{left:,} left", probabilities) for name, probabilities, left in stages]
    return bars_side_by_side(tokens, panels, title, zero="× cut")


def bars_side_by_side(
    names: Sequence[str], panels: Sequence[tuple[str, Sequence[float]]], title: str = "", zero: str = "0.000"
) -> "Figure":
    """Several distributions over the same things, each a panel of bars, on one scale.

    Args:
        names: of the N things, from the top down.
        panels: (heading, N probabilities), from left to right.
        title: one line above.
        zero: what stands beside a probability of exactly 0.
    """
    figure = new_figure(1.9 * len(panels) + 1.2, 1.5 + 0.22 * len(names))
    across = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    most = max(max(probabilities) for _, probabilities in panels)
    places = range(len(names))
    for axes, (heading, probabilities) in zip(across, panels, strict=True):
        axes.barh(places, probabilities, color=BLUE)
        for place, value in enumerate(probabilities):
            text, colour = (f"{value:.3f}", "black") if value else (zero, ORANGE)
            axes.annotate(text, (value, place), **BESIDE, color=colour)
        axes.set_title(heading, fontsize=SMALL)
        axes.set_xlim(0, 1.35 * most)
        axes.set_xticks([0, most], ["0", f"{most:.2g}"], fontsize=TINY)
    across[0].set_yticks(places, [*map(drawable, names)], fontsize=SMALL)
    across[0].invert_yaxis()
    figure.supxlabel("probability", fontsize=SMALL)
    return _said(figure, title, [])


class Branch(NamedTuple):
    """A token that a beam search considered.

    Attributes:
        parent: the number of the branch that it continues; None at the first step.
        text: the token's.
        total: the sum of log-probabilities up to it.
        kept: whether the search went on with it, or counted it as finished.
        best: whether it belongs to the result.
    """

    parent: int | None
    text: str
    total: float
    kept: bool
    best: bool


def beam_tree(branches: Sequence[Branch], root: str, title: str = "") -> "Figure":
    """A beam search from left to right, a column a step: the result thick, what was dropped dotted and grey.

    Args:
        branches: parents before their children, best first.
        root: what the search begins with.
        title: one line above.
    """
    dropped = len(branches) > 160
    shown = [number for number, branch in enumerate(branches) if branch.kept or not dropped]
    places = _lay_out(branches, shown)
    steps, lines = max(x for x, _ in places.values()), 1 + max(y for _, y in places.values())
    texts = {number: f"{drawable(branches[number].text)} {branches[number].total:.2f}" for number in shown}
    column = 0.4 + 0.075 * max(map(len, texts.values()))  # inches
    figure = new_figure(min(60, 2.2 + column * steps), min(60, 1.2 + 0.22 * lines))
    axes = figure.subplots()
    for number in shown:
        branch, (x, y), (_, from_y) = branches[number], places[number], places[branches[number].parent]
        colour, width, style = (
            ("black", 1.8, "-") if branch.best else (BLUE, 1.0, "-") if branch.kept else (GREY, 0.8, ":")
        )
        begin = x - 1 if branch.parent is not None else 0.68  # behind the parent's text, which covers it
        corners = [begin, x - 0.18, x - 0.18, x], [from_y, from_y, y, y]
        axes.plot(*corners, color=colour, linewidth=width, linestyle=style, zorder=1 + branch.kept + branch.best)
        axes.text(
            x, y, texts[number], fontsize=SMALL if branch.best else TINY, va="center",
            color=colour if branch.kept else "#666666", weight="bold" if branch.best else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=4,
        )  # fmt: skip
    axes.text(0.66, 0, drawable(root[-16:]), fontsize=SMALL, ha="right", va="center")
    axes.set(xlim=(0, steps + 0.8), ylim=(lines - 0.4, -0.6))
    axes.axis("off")
    legend = "numbers: sums of log-probabilities; thick: the result; dotted: dropped"
    return _said(figure, title, [legend, *(["what was dropped is left out: it is too much"] if dropped else [])])


def scatter(points: npt.ArrayLike, names: Sequence[str], explained: Sequence[float], title: str = "") -> "Figure":
    """Points in the plane of the first two principal components; names that would cover another are left out.

    Args:
        points: (N, 2).
        names: of the N points.
        explained: the shares of the variance that the two axes have.
        title: one line above.
    """
    plane = np.asarray(points, dtype=float)
    figure = new_figure(7.5, 6.5)
    axes = figure.subplots()
    axes.scatter(plane[:, 0], plane[:, 1], s=8 if len(names) <= 300 else 1, color=GREY)
    n = -(-len(names) // 300)
    texts = [
        axes.annotate(drawable(name), (x, y), textcoords="offset points", xytext=(2, 2), fontsize=SMALL)
        for (x, y), name in list(zip(plane, names, strict=True))[::n]
    ]
    axes.set_xlabel(f"first component: {explained[0]:.0%} of the variance", fontsize=SMALL)
    axes.set_ylabel(f"second component: {explained[1]:.0%}", fontsize=SMALL)
    axes.axhline(0, color=HIDDEN, zorder=0)
    axes.axvline(0, color=HIDDEN, zorder=0)
    _said(figure, title, [f"{len(names):,} points"])  # one line, as below, so that no name moves after it is measured
    kept = _uncovered(figure, texts)
    return _said(figure, title, [f"{kept:,} of {len(names):,} points have their names"])


def block_diagram(stages: Sequence[tuple[str, str, bool]], title: str = "") -> "Figure":
    """A model from top to bottom: boxes, and between them what flows.

    Args:
        stages: (name, shape of what comes out, whether it stands on a branch beside the residual stream).
        title: one line above.
    """
    figure = new_figure(5.5, 0.9 + 0.32 * len(stages))
    axes = figure.subplots()
    for place, (name, shape, aside) in enumerate(stages):
        x = 0.5 if aside else 0.0
        axes.text(
            x, -place, drawable(name, spaces=False), fontsize=SMALL + 1, va="center", ha="left",
            bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": BLUE if aside else "black"},
        )  # fmt: skip
        axes.text(2.2, -place, shape, fontsize=SMALL, va="center", color="#444444", family="monospace")
    axes.annotate(
        "", (-0.18, -len(stages) + 0.7), (-0.18, 0.3), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.5}
    )
    axes.set(xlim=(-0.4, 3.2), ylim=(-len(stages) + 0.5, 0.6))
    axes.axis("off")
    return _said(figure, title, ["blue: reads the stream and adds to it at the next +"])


def _said(figure: "Figure", title: str, notes: Sequence[str]) -> "Figure":
    """The figure, with the title above it, and below the title the notes that are needed to read it, a line each."""
    letters = int(figure.get_figwidth() * 12)  # in a line
    lines = [part for line in (title, *notes) for part in textwrap.wrap(drawable(line, spaces=False), letters)]
    figure.suptitle("\n".join(lines), fontsize=SMALL + 1)
    return figure


def _scale(figure: "Figure", axes: "Axes | Sequence[Axes]", image: Any, what: str) -> None:
    """Put a colour scale beside the axes, with its meaning, in lines that fit their height."""
    letters = max(12, int(figure.get_figheight() * 7))
    figure.colorbar(image, ax=axes, fraction=0.05).set_label(
        "\n".join(textwrap.wrap(drawable(what, spaces=False), letters)), fontsize=SMALL
    )


def _draw_map(
    axes: "Axes",
    matrix: Array,
    limits: tuple[float, float],
    colours: str,
    texts: Sequence[Sequence[str]] | None = None,
) -> Any:
    """Draw a matrix as colours, with drawable texts inside its cells; a masked cell, or NaN, has neither."""
    from matplotlib import colormaps

    image = axes.imshow(
        matrix, cmap=colormaps[colours].with_extremes(bad=HIDDEN), vmin=limits[0], vmax=limits[1], aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    if texts is not None:
        hidden = np.ma.getmaskarray(np.ma.masked_invalid(matrix))
        for (y, x), value in np.ndenumerate(np.ma.getdata(matrix)):
            if not hidden[y, x]:
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                colour = "white" if dark else "black"
                axes.text(x, y, texts[y][x], ha="center", va="center", fontsize=TINY, color=colour)
    return image


def _share(value: float) -> str:
    """A number from 0 to 1 in three characters; "" for .00, because an empty cell draws less attention."""
    return f"{value:.2f}".lstrip("0") if value >= 0.005 else ""


def _past(pattern: Array) -> "np.ma.MaskedArray[Any, Any]":
    """A pattern (T, T) whose future cells, which are always 0, are masked."""
    return np.ma.masked_array(pattern, mask=np.triu(np.ones(pattern.shape, dtype=bool), k=1))


def _name_places(axes: "Axes", names: Sequence[str], rows: Sequence[str], figure: "Figure") -> list[str]:
    """Name the columns and rows of a map, or every n-th of them if more would overlap; n is 1, 2, 5, 10, 20 and so on.

    The names are drawable. Returns notes that say which names are left out.
    """
    width, height = (figure.get_size_inches() - (2.0, 1.5)) * POINTS  # without scale, title and names
    left_out: dict[int, list[str]] = {}
    for labels, room, kind, axis in ((names, width, "columns", axes.xaxis), (rows, height, "rows", axes.yaxis)):
        least = len(labels) * (SMALL + 2) / room
        n = next(m * 10**k for k in itertools.count() for m in (1, 2, 5) if m * 10**k >= least)
        axis.set_ticks(range(0, len(labels), n), labels[::n], fontsize=SMALL)
        if n > 1:
            left_out.setdefault(n, []).append(kind)
    if any(len(name) > 2 for name in names):
        axes.tick_params(axis="x", rotation=90)
    return [f"one in {n} {' and '.join(kinds)} has its name" for n, kinds in left_out.items()]


def _uncovered(figure: "Figure", texts: "Sequence[Annotation]") -> int:
    """Remove the texts that would cover an earlier one, and return how many are left."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # otherwise removing some would move all others
    kept: list[Any] = []  # their boxes
    for text in texts:
        box = text.get_window_extent()
        if box.count_overlaps(kept):
            text.remove()
        else:
            kept.append(box)
    return len(kept)


def _lay_out(branches: Sequence[Branch], shown: Sequence[int]) -> dict[int | None, tuple[int, int]]:
    """Places (step, line) of these branches and of the root, None: a branch stands on the line of its first child."""
    lines: dict[int | None, int] = {None: 0, **dict.fromkeys(shown, 0)}  # height of a branch with all its children
    for number in reversed(shown):
        lines[number] = lines[number] or 1
        lines[branches[number].parent] += lines[number]
    places: dict[int | None, tuple[int, int]] = {None: (0, 0)}
    free: dict[int | None, int] = {None: 0}  # the line for the next child of a branch
    for number in shown:
        parent = branches[number].parent
        places[number] = (places[parent][0] + 1, free[parent])
        free[number] = free[parent]
        free[parent] += lines[number]
    return places


def dialogue_panels(
    coherence: Sequence[Mapping[str, Any]], failures: Mapping[str, Mapping[str, float]], title: str = ""
) -> "Figure":
    """What histories tell a model, and below how often replies fail.

    Args:
        coherence: of each history, `Coherence.to_dict()`; none leaves the upper panels out.
        failures: arm -> mode -> the share of its replies; the first arm is the true replies.
        title: one line above.
    """
    arms, modes = list(failures), list(next(iter(failures.values())))
    lower = 0.9 + 0.09 * (len(arms) + 1) * len(modes)
    figure = new_figure(9, lower + (3.0 if coherence else 0))
    parts = figure.subfigures(2, 1, height_ratios=(2.8, lower), squeeze=False)[:, 0] if coherence else [figure]
    if coherence:
        n = coherence[0]["candidates"]
        turns = [str(one["turns"]) for one in coherence]
        left, middle, right = parts[0].subplots(1, 3)
        known = [one["perplexity"] for one in coherence if one["perplexity"] is not None]
        left.plot(
            turns, [math.nan if one["perplexity"] is None else one["perplexity"] for one in coherence], "o-", color=BLUE
        )
        if known:  # a change of a few thousandths does not look like a leap
            left.set_ylim(min(0.95 * max(known), min(known) - 0.2), max(1.05 * min(known), max(known) + 0.2))
        left.set_title("perplexity of the true replies", fontsize=SMALL + 1)
        _with_intervals(middle, turns, [one["gain"] for one in coherence], GREEN, "than after none")
        _with_intervals(middle, turns, [one["drop"] for one in coherence], BLUE, "than after another's")
        middle.set_title("likelier by, nats a token", fontsize=SMALL + 1)
        middle.axhline(0, color=GREY, linewidth=1)
        _with_intervals(right, turns, [one["first"] for one in coherence], BLUE, "the true reply")
        right.axhline(1 / n, color=GREY, linewidth=1, label="a guess")
        right.set(ylim=(0, 1), yticks=np.arange(0, 1.1, 0.2))
        right.set_title(f"first of {n} replies", fontsize=SMALL + 1)
        for axes in (left, middle, right):
            axes.set_xlabel("turns of the history", fontsize=SMALL)
            axes.tick_params(labelsize=SMALL)
            axes.grid(alpha=0.3)
        for axes in (middle, right):
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.35 * (high - low))  # room for the legend, above the intervals
            axes.legend(fontsize=TINY, loc="upper right")
    axes = parts[-1].subplots()
    from matplotlib import colormaps

    colours = [GREY, *(colormaps[AMOUNT](place / max(1, len(arms) - 1)) for place in range(len(arms) - 1))]
    height = 1 / (len(arms) + 1)
    for number, (arm, colour) in enumerate(zip(arms, colours, strict=True)):
        places = np.arange(len(modes)) + number * height
        bars = axes.barh(places, [100 * failures[arm][mode] for mode in modes], height, color=colour, label=arm)
        labels = [f"{100 * failures[arm][mode]:.0f}" if failures[arm][mode] else "" for mode in modes]
        axes.bar_label(bars, labels, padding=2, fontsize=TINY)
    axes.set_yticks(np.arange(len(modes)) + height * (len(arms) - 1) / 2, modes, fontsize=SMALL)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.grid(alpha=0.3, axis="x")
    axes.set_xlabel("% of the replies that a rule finds fault with", fontsize=SMALL)
    axes.legend(fontsize=TINY + 1)
    return _said(figure, title, [])


def _with_intervals(
    axes: "Axes", places: Sequence[str], intervals: Sequence[Mapping[str, float | None]], colour: str, label: str
) -> None:
    """Draw means as a line, with an upright for each interval that is known."""
    means = [math.nan if one["mean"] is None else one["mean"] for one in intervals]
    axes.plot(places, means, "o-", color=colour, label=label)
    for place, one in zip(places, intervals, strict=True):
        if (low := one["low"]) is not None and (high := one["high"]) is not None:
            axes.vlines(place, low, high, color=colour, linewidth=1.5)


def interval_dots(
    panels: Sequence[tuple[str, Sequence[tuple[float, float, float]]]], labels: Sequence[str], title: str = ""
) -> "Figure":
    """Means with their intervals: one panel for each measure, in it one line for each label.

    Args:
        panels: (measure, its (mean, low, high) for each label), from left to right; NaN is not drawn.
        labels: what was measured, from the top down; a grey line marks the mean of the first, for comparison.
        title: one line above.
    """
    figure = new_figure(3 + 1.7 * len(panels), 1.3 + 0.3 * len(labels))
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    heights = range(len(labels))
    for axes, (name, intervals) in zip(row, panels, strict=True):
        means, lows, highs = zip(*intervals, strict=True)
        axes.axvline(means[0], color=GREY, linewidth=1)
        axes.hlines(heights, lows, highs, color=BLUE, linewidth=2)
        axes.plot(means, heights, "o", color=BLUE, markersize=5)
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(alpha=0.3, axis="x")
    row[0].set_yticks(heights, labels)
    row[0].invert_yaxis()
    figure.suptitle(drawable(title, spaces=False), fontsize=10)
    return figure
