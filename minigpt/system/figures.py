"""New pictures, the texts in them, and writing them to a file. No display is needed.

matplotlib is imported only when a picture is drawn.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.system.files import atomic_write, named_path
from minigpt.system.terminal import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure

# Okabe and Ito's colours, which can be told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches; it belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as PNG or SVG, depending on the path's ending, completely or not at all."""
    path = named_path(path, "path")
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.lower().lstrip(".") or "png", dpi=150)


def drawable(text: str, spaces: bool = True) -> str:
    """A text for a picture: spaces visible, characters that the font lacks as escapes, and no formula begun by "$"."""
    shown = visible(text) if spaces else text
    known = (c if ord(c) in _known_signs() or c == "\n" else c.encode("unicode_escape").decode() for c in shown)
    return "".join(known).replace("$", "\\$")


@cache
def _known_signs() -> frozenset[int]:
    """The code points that the font can draw."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
