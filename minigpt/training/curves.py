"""Pictures of the losses of a run, or of several."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt.evaluation.loss import perplexity
from minigpt.system.figures import BLUE, GREEN, GREY, ORANGE, drawable, new_figure

if TYPE_CHECKING:
    from minigpt.system.figures import Figure

SMALL = 8  # points: labels


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
    figure = new_figure(8, 5.5)
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
    losses.set_title(drawable(title, spaces=False))
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


def perplexity_curve(epochs: Sequence[tuple[float, float, float]], title: str = "") -> "Figure":
    """Perplexity by epoch: where the validation curve begins to rise, fine-tuning has gone on for too long.

    Args:
        epochs: (epoch, mean training loss since the one before, validation loss), losses in nats per token.
        title: one line above.
    """
    figure = new_figure(7, 4)
    axes = figure.subplots()
    places, training, validation = zip(*epochs, strict=True)
    for losses, colour, label in ((training, BLUE, "training"), (validation, ORANGE, "validation")):
        perplexities = [perplexity(loss) for loss in losses]
        axes.plot(places, perplexities, color=colour, marker="o", markersize=4, label=label)
        axes.annotate(f"{perplexities[-1]:.1f}", (places[-1], perplexities[-1]), textcoords="offset points",
                      xytext=(6, 0), va="center", color=colour)  # fmt: skip
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.margins(x=0.1)
    axes.set_xlabel("epoch")
    axes.set_ylabel("perplexity")
    axes.set_title(drawable(title, spaces=False))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def runs_compared(runs: Sequence[tuple[str, Sequence[tuple[int, float]], Sequence[tuple[int, float]]]]) -> "Figure":
    """The losses of several runs over their steps: thin lines in training, marks on the validation split.

    Args:
        runs: (name, (step, training loss) as recorded and not smoothed, (step, validation loss)) of each run.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    colours, marks = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "black"), "os^Dv"
    for number, (name, train, validation) in enumerate(runs):
        colour, mark = colours[number % len(colours)], marks[number % len(marks)]
        axes.plot([step for step, _ in train], [loss for _, loss in train], color=colour, linewidth=0.8, alpha=0.5)
        best = f", best {min(loss for _, loss in validation):.3f}" if validation else ""
        steps, losses = [step for step, _ in validation], [loss for _, loss in validation]
        axes.plot(steps, losses, color=colour, marker=mark, label=drawable(name) + best)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title("losses: thin lines in training, as recorded; marks on the validation split", fontsize=SMALL)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=SMALL)
    return figure
