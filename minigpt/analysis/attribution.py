"""Why this token: a logit as the sum of what each part of the model has added to it.

Direct logit attribution (Elhage et al., 2021, "A Mathematical Framework for Transformer Circuits"). The residual stream
is a sum, the last norm divides it by one number a position, and the output head is linear. With that number held fixed,

    logit = bias + sum over parts of part . read,    read = centred(weight of ln_f * row of lm_head) / scale

exactly. This is what a part adds to the logit directly; what it does through later parts is not counted.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from minigpt.analysis.checks import Check, measured
from minigpt.analysis.recording import Trace, allowed, weight_in_use
from minigpt.config import Count
from minigpt.errors import InputError
from minigpt.fields import check_place, checked
from minigpt.system import notebook
from minigpt.system.terminal import Brief


class Attribution(Brief):
    """The parts of a logit, or of the difference of two.

    Attributes:
        target: the token's id.
        against: the id of the token whose logit is subtracted, or None.
        by: how fine the parts are.
        row: the row of the batch.
        position: the absolute position.
        labels: the parts: "embed", "pos_embed", and, depending on `by`, "3" (a layer), "3.attn", "3.mlp", "3.7" (a
            head), "3.mlp.611" (a neuron).
        values: float64, what each part adds.
        constants: what the biases add, by the names of the parameters. It depends on the text only through the last
            norm's scale.
        logit: the model's own logit of the target, minus that of `against`.
        dtypes: of the model and of the trace.
    """

    target: int
    against: int | None
    by: str
    row: int
    position: int
    labels: list[str]
    values: Tensor
    constants: dict[str, float]
    logit: float
    dtypes: tuple[torch.dtype, ...]

    @property
    def total(self) -> float:
        """The sum of all parts and constants."""
        return float(self.values.sum()) + sum(self.constants.values())

    @property
    def remainder(self) -> float:
        """The logit minus `total`: what rounding in the model's pass has changed."""
        return self.logit - self.total

    @checked
    def top(self, k: Count | None = None) -> list[tuple[str, float]]:
        """The k parts of the largest absolute value, with their values, the largest first; all by default."""
        order = self.values.abs().argsort(descending=True, stable=True)[:k].tolist()
        return [(self.labels[place], float(self.values[place])) for place in order]

    def _repr_html_(self) -> str:
        names, values = zip(*self.top(), strict=True)
        what = f"{self.target}" if self.against is None else f"{self.target} minus that of {self.against}"
        sums = f"constants {sum(self.constants.values()):+.4f}, remainder {self.remainder:+.2e}, logit {self.logit:.4f}"
        return notebook.shown(
            f"Logit of token {what}, at position {self.position}, by {self.by}",
            notebook.bars(names, values, "the largest parts first", "adds"),
            notebook.note(f"parts {float(self.values.sum()):+.4f}, {sums}"),
        )

    @property
    def checks(self) -> list[Check]:
        """The check that no part is missing."""
        name = "the logit" if self.against is None else "the difference of the logits"
        size = float(self.values.abs().sum())
        return [
            measured(
                f"{len(self.labels)} parts + {len(self.constants)} constants = {name}",
                abs(self.remainder),
                allowed(1e-4, size, *self.dtypes),
            )
        ]


@checked
@torch.no_grad()
def attribute(
    t: Trace,
    target: int,
    against: int | None = None,
    by: Literal["component", "layer", "head", "neuron"] = "component",
    position: int = -1,
    row: int = 0,
) -> Attribution:
    """Split the logit of a token into what each part of the model has added to it.

    A head's part contains its share of the value bias: the rows of the pattern sum to 1, so the bias passes unchanged.

    Args:
        t: a trace of the whole pass, with the embeddings, the outputs of the sublayers (for "head": z; for "neuron":
            mlp.post), the last norm's scale and the logits. The weights are those that the model has now.
        target: the token's id.
        against: another token: then the difference of the two logits is split, in which everything that raises both by
            the same amount cancels.
        by: how fine. "component": the embeddings, and attention and MLP of each layer with their biases; "layer": the
            two together; "head": attention as heads and a bias; "neuron": the MLP as neurons and a bias.
        position: the position whose next token is meant: absolute, or from the end of the recording if negative.
        row: the row of the batch.

    Raises:
        PointError: if a point was not recorded.
        InputError: if there is no such split, token, position or row.
    """
    _check_choice(t, [token for token in (target, against) if token is not None], row)
    place = _place(t, position)
    weights = t.model.lm_head.weight
    direction = weights[target].double() - (0 if against is None else weights[against].double())  # (C,)
    parts = _Parts(t, row, place, direction)
    parts.add_all(_SPLITS[by])
    logits = t["logits"][row, t.positions("logits").index(place)].double()  # (V,)
    logit = float(logits[target]) - (0.0 if against is None else float(logits[against]))
    values, dtypes = torch.cat(parts.values).cpu(), (t.model.wte.weight.dtype, t["logits"].dtype)
    return Attribution(target, against, by, row, place, parts.labels, values, parts.constants, logit, dtypes)


# How fine -> the kinds of parts that each layer has.
_SPLITS = {
    "component": ("attn", "mlp"),
    "layer": ("layer",),
    "head": ("heads", "mlp"),
    "neuron": ("attn", "neurons"),
}


class _Parts:
    """The parts of a logit that have been worked out so far.

    Attributes:
        t: the trace.
        read: (C,) in float64; its product with what a part wrote is that part's share of the logit.
        labels: of the parts.
        values: their shares, as tensors to concatenate.
        constants: the shares of the biases.
    """

    def __init__(self, t: Trace, row: int, place: int, direction: Tensor) -> None:
        """`direction` (C,): the target's row of the output head, minus that of `against`."""
        self.t = t
        self.labels: list[str] = []
        self.values: list[Tensor] = []
        self.constants: dict[str, float] = {}
        self._row, self._place = row, place
        self._parameters = dict(t.model.named_parameters())
        scaled = self._parameters["ln_f.weight"].double() * direction
        self.read = (scaled - scaled.mean()) / self.vector("ln_f.scale")
        self.constant("ln_f.bias", direction)

    def vector(self, point: str) -> Tensor:
        """The point's values at the place, float64: (C,), (4C,), (H, D) or (1,)."""
        x = self.t[point][..., self.t.positions(point).index(self._place), :]  # (B, [H,] T, ...) -> (B, [H,] ...)
        x = x if point == "pos_embed" else x[self._row]
        return x.to(self.t.model.wte.weight.device, torch.float64)

    def constant(self, parameter: str, read: Tensor) -> None:
        """Add a bias, if the model has it."""
        if parameter in self._parameters:
            self.constants[parameter] = float(self._parameters[parameter].double() @ read)

    def add(self, label: str, *points: str) -> None:
        """Add the sum of some points as one part."""
        self.labels.append(label)
        self.values.append(torch.stack([self.vector(point) for point in points]).sum(0)[None] @ self.read)  # (1,)

    def add_inside(self, layer: int, point: str, part: str) -> None:
        """Add every head or neuron of a layer, `point`, and the bias that they share; `part` names them."""
        x = self.vector(f"blocks.{layer}.{point}")  # (H, D) or (4C,)
        projection = f"h.{layer}.{point.partition('.')[0]}.c_proj"
        back = weight_in_use(self.t.model, projection).double().T @ self.read  # (H * D,) or (4C,)
        shares = (x * back.view_as(x)).reshape(len(x), -1).sum(-1)  # (H,) or (4C,)
        self.labels += [f"{layer}.{part}{number}" for number in range(len(x))]
        self.values.append(shares)
        self.constant(f"{projection}.bias", self.read)

    def add_all(self, kinds: Sequence[str]) -> None:
        """Add the embeddings, and these kinds of parts for every layer."""
        self.add("embed", "embed")
        self.add("pos_embed", "pos_embed")
        for layer in range(self.t.config.n_layer):
            for kind in kinds:
                match kind:
                    case "heads":
                        self.add_inside(layer, "attn.z", "")
                    case "neurons":
                        self.add_inside(layer, "mlp.post", "mlp.")
                    case "layer":
                        self.add(f"{layer}", f"blocks.{layer}.attn.out", f"blocks.{layer}.mlp.out")
                    case _:
                        self.add(f"{layer}.{kind}", f"blocks.{layer}.{kind}.out")


def _check_choice(t: Trace, tokens: list[int], row: int) -> None:
    for token in tokens:
        check_place(token, t.config.vocab_size, "token")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"token {tokens[0]} against itself differs by 0 whatever the model", "choose two tokens")
    check_place(row, len(t["logits"]), "row", "the trace has")


def _place(t: Trace, position: int) -> int:
    """The absolute position."""
    recorded = t.positions("logits")
    if -len(recorded) <= position < 0:
        return recorded[position]
    if position not in recorded:
        raise InputError(
            f"the logits of position {position} were not recorded",
            f"choose one from {recorded[0]} to {recorded[-1]}, or from -1 backwards for the last ones",
        )
    return position
