"""Arrays -> pictures. The only room that imports matplotlib, and only when a picture is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def loss_curve(
    train: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    learning_rate: Sequence[tuple[int, float]],
    floor: float | None = None,
    title: str = "",
) -> "Figure":
    """Loss over the steps of a run, with its learning rate below on the same axis of steps.

    Args:
        train: (step, loss in nats per token) of the training batches.
        validation: (step, loss) over the whole validation split.
        learning_rate: (step, learning rate).
        floor: the corpus's own entropy, where it is known: no model gets below it.
        title: one line above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    if train:
        losses.plot(*zip(*train, strict=True), color=BLUE, linewidth=1, alpha=0.8, label="training")
    if validation:
        steps, values = zip(*validation, strict=True)
        losses.plot(steps, values, color=ORANGE, marker="o", markersize=4, label="validation, whole split")
        losses.annotate(
            f"{values[-1]:.3f}", (steps[-1], values[-1]), textcoords="offset points", xytext=(0, 8), ha="right",
            color=ORANGE, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    if floor is not None:
        losses.axhline(floor, color=GREEN, linestyle="--", linewidth=1, label=f"entropy of the corpus, {floor:.3f}")
    losses.set_ylabel("loss (nats per token)")
    losses.set_title(title)
    losses.grid(alpha=0.3)
    if losses.get_legend_handles_labels()[0]:  # a run that ended before its first record has nothing to explain
        losses.legend()
    if learning_rate:
        rates.plot(*zip(*learning_rate, strict=True), color=GREY, linewidth=1)
    rates.set_ylim(bottom=0)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    rates.grid(alpha=0.3)
    return figure


def probability_bars(
    panels: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], xlabel: str = "token", title: str = ""
) -> "Figure":
    """The same tokens under several distributions, side by side on one scale.

    Args:
        panels: (what it is, its probabilities), from left to right.
        labels: of the tokens.
        xlabel: what the labels are.
        title: one line above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 * len(panels), 2.8), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, probabilities) in zip(row, panels, strict=True):
        bars = axes.bar(labels, probabilities, color=BLUE)
        axes.bar_label(bars, [f"{value:.2f}" if value >= 0.005 else "~0" for value in probabilities], fontsize=7)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(0, 1.1)
        axes.tick_params(labelsize=8)
    row[0].set_ylabel("probability")
    figure.supxlabel(xlabel, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's ending, whole or not at all. Needs no display."""
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=150)
