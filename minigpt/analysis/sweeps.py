"""Change one part of a model after the other and measure each time: which parts matter for what it does here.

`ablation_sweep` removes each part in turn. `patching_sweep` puts each part of a clean pass into a corrupt one (Meng et
al., 2022, "causal tracing"; Wang et al., 2022). The metric is a function of the logits (B, T, V), and gives a number,
which may be a tensor of one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from minigpt.analysis.checks import Check, measured
from minigpt.analysis.edits import Edit, Mode, ablate, patch
from minigpt.analysis.recording import Trace
from minigpt.analysis.tracing import edit, trace
from minigpt.config import Seed, VocabSize
from minigpt.decoding.sampling import check_prompts
from minigpt.errors import InputError, brief
from minigpt.evaluation.loss import next_token_loss
from minigpt.fields import Bounds, check_ids, checked, ordered, whole_ids
from minigpt.model import GPT
from minigpt.parameters import evaluating, with_text
from minigpt.system import notebook
from minigpt.system.terminal import Brief

Metric = Callable[[Tensor], float]  # of logits (B, T, V)


class Sweep(Brief):
    """A metric, measured after each change of a grid of changes.

    Attributes:
        rows: names of the rows: the layers' numbers.
        columns: names of the columns: heads, positions, or the one kind of part that is changed.
        values: float64 (rows, columns), the metric with that one change.
        baseline: the metric without a change.
        checks: identities, observed along the way.
    """

    rows: list[str]
    columns: list[str]
    values: Tensor
    baseline: float
    checks: tuple[Check, ...]

    @property
    def labels(self) -> list[list[str]]:
        """The name of each value, such as "9.6"."""
        return [[f"{row}.{column}" for column in self.columns] for row in self.rows]

    @property
    def effects(self) -> Tensor:
        """By how much each change raises the metric, (rows, columns)."""
        return self.values - self.baseline

    def _repr_html_(self) -> str:
        caption = f"by how much each change raises the metric, which is {self.baseline:.4g} without it"
        return notebook.shown("Sweep", notebook.heat_map(self.rows, self.columns, self.effects, caption))

    @checked
    def top(self, k: Annotated[int, Bounds(1, 2**31)] | None = None) -> list[tuple[str, float]]:
        """The k changes with the largest effects, up or down, the largest first; all by default."""
        labels, effects = [label for row in self.labels for label in row], self.effects.flatten()
        order = effects.abs().argsort(descending=True, stable=True)[:k].tolist()
        return [(labels[place], float(effects[place])) for place in order]


class PatchingSweep(Sweep):
    """A sweep whose baseline is the corrupt pass.

    Attributes:
        clean: the metric of the clean pass.
    """

    clean: float

    @property
    def normalised(self) -> Tensor:
        """How much of the way from the corrupt pass (0) to the clean one (1) each patch goes, (rows, columns)."""
        return self.effects / (self.clean - self.baseline)


# --- what is measured


@checked
def logit_difference(target: int | Sequence[int], against: int | Sequence[int], position: int = -1) -> Metric:
    """The metric logit(target) - logit(against) at a position, averaged over the rows.

    `target` and `against` are one token for all rows, or one for each. The metric raises InputError if there is no such
    token, row or position.

    Raises:
        InputError: if one of the three is no whole number, nor several.
    """
    wanted, other = _tokens(target), _tokens(against)

    def metric(logits: Tensor) -> float:
        if not -logits.size(1) <= position < logits.size(1):
            raise InputError(f"there is no position {position}: the logits have {logits.size(1)}", "choose one of them")
        chosen = logits[:, position].double()  # (B, T, V) -> (B, V)
        return float((_of_each_row(chosen, wanted) - _of_each_row(chosen, other)).mean())

    return metric


def loss_of(ids: Sequence[Sequence[int]] | Tensor, vocab_size: VocabSize | None = None) -> Metric:
    """The metric: mean loss in nats of these tokens (B, T), each predicted from those before it.

    Args:
        ids: the tokens; -100 is not predicted.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Raises:
        InputError: if they are no rows of one length; and by the metric, if an id is outside the vocabulary.
    """
    try:
        targets = torch.tensor([whole_ids(row) for row in ordered(ids)])[:, 1:]
    except (TypeError, ValueError, IndexError, RuntimeError):  # no ids; rows of other lengths; no rows; huge ids
        raise InputError(f"{brief(ids)} are no rows of tokens", "give rows of one length, each a list of ids") from None
    return lambda logits: next_token_loss(with_text(logits[:, :-1], vocab_size), targets.to(logits.device)).item()


def _tokens(given: Any) -> list[int]:
    """One token, or several, as a list."""
    try:
        return whole_ids(given if isinstance(given, Iterable) and getattr(given, "ndim", True) else [given])
    except TypeError:
        raise InputError(f"{brief(given)} is no token", "give one id, or a list with one for each row") from None


def _of_each_row(logits: Tensor, tokens: list[int]) -> Tensor:
    """One logit a row: (B, V) -> (B,)."""
    B, V = logits.shape
    check_ids(tokens, V)
    if len(tokens) not in (1, B):
        raise InputError(f"{len(tokens)} tokens for {B} rows", "give one, or one for each row")
    return logits.gather(1, torch.tensor(tokens, device=logits.device).expand(B)[:, None])[:, 0]


# --- the sweeps

Parts = Literal["heads", "mlps", "layers"]
PatchedPoint = Literal["resid_pre", "attn.out", "mlp.out", "attn.z"]


@checked
def ablation_sweep(
    model: GPT,
    ids: Sequence[Sequence[int]] | Tensor,
    metric: Metric,
    mode: Mode = "zero",
    reference: Trace | None = None,
    what: Parts = "heads",
    seed: Seed = 0,
) -> Sweep:
    """Remove each part in turn, at all positions, and measure.

    The effects are total effects (see `total_effects`). A part whose loss later parts make up for seems to matter
    little.

    Args:
        model: used in evaluation mode.
        ids: rows of one length (B, T).
        metric: of the logits.
        mode: what replaces the part, as for `ablate`.
        reference: for "mean" and "resample": a trace of other rows that has recorded the parts.
        what: "heads" (n_layer, n_head), "mlps" (n_layer, 1), or "layers" (n_layer, 1), attention and MLP together.
        seed: of the rows that "resample" draws, which are the same for every part.

    Raises:
        PointError: if the reference lacks a part.
        InputError: if the rows, the mode or the kind of part cannot be used.
    """
    layers = range(model.config.n_layer)
    columns = [str(head) for head in range(model.config.n_head)] if what == "heads" else [what.removesuffix("s")]

    def edits(layer: int, column: str) -> list[Edit]:
        parts = ["attn", "mlp"] if what == "layers" else [column]
        return [ablate(f"{layer}.{part}", mode, reference, seed=seed) for part in parts]

    with _measuring(model, ids, metric) as (idx, measure):
        baseline = measure()
        with trace(model, "blocks.0.attn.z") as t:
            model(idx)
        itself = measure(patch("blocks.0.attn.z", t))
        values = [[measure(*edits(layer, column)) for column in columns] for layer in layers]
    unchanged = measured("a patch of layer 0's heads with themselves changes nothing", abs(itself - baseline), 0.0)
    return Sweep([*map(str, layers)], columns, torch.tensor(values, dtype=torch.float64), baseline, (unchanged,))


@checked
def total_effects(
    model: GPT, ids: Sequence[Sequence[int]] | Tensor, metric: Metric, parts: Sequence[str]
) -> dict[str, float]:
    """By how much a metric falls without each part: its effect, both directly and through all later parts.

    The direct effect alone is what `attribute` gives. The two can differ widely: an early head may add nothing to a
    logit, and yet all later parts may depend on what it has found.

    Args:
        model: used in evaluation mode.
        ids: rows of one length (B, T).
        metric: of the logits.
        parts: as `ablate` takes them; zeros replace them, at all positions.

    Raises:
        PointError: if there is no such part.
        InputError: if the rows cannot be used.
    """
    with _measuring(model, ids, metric) as (_, measure):
        whole = measure()
        return {part: whole - measure(ablate(part)) for part in parts}


@checked
def patching_sweep(
    model: GPT,
    clean: Sequence[Sequence[int]] | Tensor,
    corrupt: Sequence[Sequence[int]] | Tensor,
    metric: Metric,
    point: PatchedPoint = "resid_pre",
) -> PatchingSweep:
    """Run the corrupt rows with one part of the clean pass at a time, and measure.

    Args:
        model: used in evaluation mode.
        clean: rows (B, T) on which the model does what is studied.
        corrupt: as many rows, of the same length, on which it does not.
        metric: of the logits.
        point: "resid_pre", "attn.out" or "mlp.out", one position at a time: (n_layer, T); or "attn.z", one head at a
            time and all positions: (n_layer, n_head).

    Raises:
        InputError: if the rows cannot be used or do not match, the metric is the same for both, or there is no such
            sweep.
    """
    first = "blocks.0.resid_pre"
    with _measuring(model, clean, metric) as (idx, measure), trace(model, [f"blocks.*.{point}", first]) as t:
        expected = measure()
    with _measuring(model, corrupt, metric) as (other, measure):
        if other.shape != idx.shape:
            raise InputError(
                f"the clean rows are {tuple(idx.shape)} tokens and the corrupt ones {tuple(other.shape)}",
                "give as many rows of the same length: a patch goes from a position to the same position",
            )
        baseline = measure()
        if baseline == expected:
            raise InputError(
                f"the metric is {baseline:g} for the clean rows and for the corrupt ones: it cannot tell them apart",
                "choose other rows, or another metric",
            )
        whole = measure(patch(first, t))
        layers = range(model.config.n_layer)
        place, places = ("head", range(model.config.n_head)) if point == "attn.z" else ("at", range(idx.size(1)))
        values = [[measure(patch(f"blocks.{layer}.{point}", t, **{place: n})) for n in places] for layer in layers]
    same = measured(f"{first} patched at all positions gives the clean metric", abs(whole - expected), 0.0)
    rows, columns = [*map(str, layers)], [*map(str, places)]
    return PatchingSweep(rows, columns, torch.tensor(values, dtype=torch.float64), baseline, (same,), expected)


@contextmanager
def _measuring(
    model: GPT, ids: Sequence[Sequence[int]] | Tensor, metric: Metric
) -> Iterator[tuple[Tensor, Callable[..., float]]]:
    """The rows as a tensor (B, T), and the metric of their logits as a function of edits."""
    rows = check_prompts(ids, model.config.vocab_size)  # type: ignore[arg-type]
    if len({len(row) for row in rows}) != 1:
        raise InputError(
            f"the rows have {', '.join(str(len(row)) for row in rows) or 'no'} tokens",
            "give at least one row, and rows of one length",
        )
    idx = torch.tensor(rows, device=model.wte.weight.device)

    def measure(*edits: Edit) -> float:
        with edit(model, *edits):
            return float(metric(model(idx)))

    with evaluating(model), torch.no_grad(), edit(model):  # the outer `with` keeps the hooks from pass to pass
        yield idx, measure
