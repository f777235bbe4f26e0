"""What a trace keeps, and how many bytes that takes.

Letters as in `model.py`, and P for the positions that a value has.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

import minigpt.analysis.taps as taps
from minigpt.analysis.accounting import check_pass
from minigpt.analysis.positions import At, check_fixed, check_in_context, chosen, counts_from_end, normal
from minigpt.analysis.taps import PointError
from minigpt.config import GPTConfig, Size
from minigpt.errors import InputError
from minigpt.fields import checked
from minigpt.model import GPT
from minigpt.system import notebook
from minigpt.system.files import atomic_write, named_path
from minigpt.system.terminal import table


class Trace(Mapping[str, Tensor]):
    """What a trace has recorded: a mapping from the names of `taps.points`, or their aliases, to tensors.

    The tensors are copies that nobody else holds, so their memory is what `plan` says. `head_out` is worked out when
    it is read, from z and the weights at that time.

    Attributes:
        model: the model that is traced; for a compiled one, its original.
        config: its shape.
        points: the points whose values are stored.
        attention: "explicit" if some layer computed attention with the explicit core, else "fused". Scores and patterns
            need the explicit core, which gives the same numbers up to rounding.
    """

    def __init__(
        self,
        model: GPT,
        points: str | Sequence[str],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        positions: At,
        grad: bool,
    ) -> None:
        if grad and not (device is None and dtype is None and positions is None):
            raise InputError(
                "grad=True keeps the tensors of the pass themselves, and neither device, dtype nor positions apply",
                "leave them out, and convert or cut what you read",
            )
        self.model = model
        self.config = model.config
        self.attention: Literal["explicit", "fused"] = "fused"
        self.points = frozenset(stored(taps.resolve(points, model.config)))
        self._device, self._dtype, self._grad = device, dtype, grad
        self._at = normal(positions)
        check_in_context(self._at, model.config)
        self._chunks: dict[str, list[tuple[list[int], Tensor]]] = {}  # point -> (positions, values) of each pass
        self._num_passes = 0

    @checked
    def __getitem__(self, name: str) -> Tensor:
        """The recorded tensor, of the shape that `taps.TAPS` says; axis -2 stands for `positions(name)`.

        Raises:
            PointError: if there is no such point, or it was not recorded.
        """
        name = taps.find(name, self.config)
        if name.endswith(".head_out"):
            return self._head_out(name)
        self._check_recorded(name)
        chunks = self._chunks[name]
        if len(chunks) > 1:  # a later pass sees more keys: its rows are longer
            S = max(values.size(-1) for _, values in chunks)
            hidden = -math.inf if name.endswith(".scores") else 0.0
            padded = [F.pad(values, (0, S - values.size(-1)), value=hidden) for _, values in chunks]
            chunks[:] = [([place for places, _ in chunks for place in places], torch.cat(padded, dim=-2))]
        return chunks[0][1]

    def __repr__(self) -> str:
        if not self._chunks:
            return f"Trace(nothing of {len(self.points)} points: no pass was run inside the `with` yet)"
        first, last = (f"{name} {tuple(self[name].shape)}" for name in (self.names[0], self.names[-1]))
        return f"Trace({len(self)} points from {first} to {last}, {self.attention} attention, {self.nbytes:,} bytes)"

    def _repr_html_(self) -> str:
        rows = []
        for name in self._chunks:
            values = self[name].detach().float()
            seen = values[values.isfinite()]  # a score that the mask hides is -inf
            numbers = (float(seen.min()), float(seen.mean()), float(seen.max())) if seen.numel() else ("", "", "")
            rows.append((name, " x ".join(map(str, values.shape)), *numbers))
        columns = ["point", "shape", "smallest", "mean", "largest"]
        return notebook.shown(repr(self), notebook.table(columns, rows))

    def __iter__(self) -> Iterator[str]:
        return (name for name in taps.points(self.config) if stored([name])[0] in self._chunks)

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def names(self) -> list[str]:
        """The points that can be read, in the order of the forward pass."""
        return list(self)

    @property
    def nbytes(self) -> int:
        """Bytes of all recorded tensors."""
        return sum(self[name].nbytes for name in self._chunks)

    @checked
    def positions(self, name: str) -> list[int]:
        """The absolute positions that axis -2 of a point stands for.

        They begin at 0 without gaps, unless `positions` has chosen some, the trace was opened late, or the point is
        `logits` and the head was asked for the last ones only, as `generate` does.

        Raises:
            PointError: as for reading the point.
        """
        (name,) = stored([taps.find(name, self.config)])
        self._check_recorded(name)
        return [place for places, _ in self._chunks[name] for place in places]

    @checked
    def shared_positions(self, names: Sequence[str]) -> list[int]:
        """The absolute positions at which all of these points were recorded together.

        Raises:
            PointError: as for reading the points.
            InputError: if they were recorded at different positions, or there are none.
        """
        if not names:
            raise InputError("no point is named", "name at least one")
        first, *others = names
        for name in others:
            if self.positions(name) != self.positions(first):
                raise InputError(
                    f"{first} was recorded at {len(self.positions(first))} positions, and {name} at"
                    f" {len(self.positions(name))} or at others",
                    "record them together, in one pass of the model",
                )
        return self.positions(first)

    def save(self, path: str | Path) -> None:
        """Write the recorded tensors as an .npz file, whole or not at all; bfloat16 becomes float32.

        `about` among the arrays is a JSON text: the configuration, the attention, the positions of each point.

        Raises:
            OSError: if the file cannot be written.
        """
        about = {
            "config": dataclasses.asdict(self.config),
            "attention": self.attention,
            "positions": {name: self.positions(name) for name in self._chunks},
        }
        arrays = {name: as_numpy(self[name]) for name in self._chunks}
        with atomic_write(named_path(path, "path")) as file:
            np.savez(file, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)

    def begin(self, first: int, attention: Literal["explicit", "fused"]) -> None:
        """A pass begins at this position: drop what was recorded from there on."""
        self._num_passes += 1
        self.attention = attention
        for name in list(self._chunks):
            self._forget(name, first)

    def keep(self, name: str, values: Tensor, positions: range, continued: bool) -> None:
        """Keep the values of a point at these positions, if it is asked for."""
        if name not in self.points:
            return
        check_fixed(counts_from_end(self._at), continued, f"positions = {self._at}")
        places = chosen(self._at, positions)
        if not places:
            return
        if not self._grad:
            # A tensor that was made in inference mode could never take part in a computation with gradients.
            with torch.inference_mode(False), torch.no_grad():
                if len(places) < len(positions):
                    values = values[..., [place - positions.start for place in places], :]
                values = values.to(device=self._device, dtype=self._dtype, copy=True)
        self._forget(name, positions.start)  # every pass gives all keys and values so far: keep the newest
        chunks = self._chunks.setdefault(name, [])
        if chunks and chunks[0][1].shape[:-2] != values.shape[:-2]:
            raise InputError(
                f"the leading sizes of {name} changed from {tuple(chunks[0][1].shape[:-2])} to"
                f" {tuple(values.shape[:-2])} at position {positions.start}: the rows of the batch changed",
                "trace one prompt at a time, without beams and without further sequences",
            )
        chunks.append((places, values))

    def _forget(self, name: str, first: int) -> None:
        """Drop what is recorded from position `first` on."""
        kept = [(sum(place < first for place in places), places, x) for places, x in self._chunks.pop(name, [])]
        if chunks := [(places[:n], x[..., :n, :]) for n, places, x in kept if n]:
            self._chunks[name] = chunks

    def _check_recorded(self, name: str) -> None:
        if name in self._chunks:
            return
        if name not in self.points:
            raise PointError(f"{name} was not recorded", f'ask for it: trace(model, [..., "{name}"])')
        if not self._num_passes:
            raise PointError(
                f"{name} was not recorded: no pass of the model was run inside the `with`",
                "call the model in it, in the same thread; if it is compiled, call the trace's `model`, its original",
            )
        raise PointError(
            f"{name} was not recorded: no pass computed it at the positions asked for",
            "check `positions`; logits are recorded where lm_head reads the pass's own final hidden states",
        )

    def _head_out(self, name: str) -> Tensor:
        z = self[name.replace("head_out", "z")]  # (B, H, T, D)
        weight = weight_in_use(self.model, taps.module_path(name))  # (C, H * D)
        weight = (weight if self._grad else weight.detach()).to(device=z.device, dtype=z.dtype)
        return z @ weight.view(len(weight), *z.shape[1::2]).permute(1, 2, 0)  # (B, H, T, D) @ (H, D, C) -> (B, H, T, C)


@dataclass(frozen=True)
class TraceSize:
    """The memory of a trace of one pass.

    Attributes:
        config: the model's shape.
        batch_size: rows B.
        tokens: tokens a row T.
        dtype: of what is recorded.
        nbytes: bytes of each point that is stored, in the order of the forward pass.
    """

    config: GPTConfig
    batch_size: int
    tokens: int
    dtype: torch.dtype
    nbytes: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return sum(self.nbytes.values())

    def _repr_html_(self) -> str:
        return notebook.shown(f"A trace of {self.total:,} bytes", notebook.text_block(str(self)))

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {}
        for name in self.nbytes:
            groups.setdefault(taps.tap(name).name, []).append(name)
        rows = []
        for row, names in groups.items():
            shape = taps.shape(names[0], self.config, self.batch_size, self.tokens, self.tokens)
            size = self.nbytes[names[0]]
            rows.append((row, str(shape), str(len(names)), f"{size:,}", f"{size * len(names):,}"))
        rows.append(("all points", "", str(len(self.nbytes)), "", f"{self.total:,}"))
        return "\n".join(table(("point", "shape", "count", "bytes each", "bytes"), rows, left=(0, 1)))


@checked
def plan(
    config: GPTConfig,
    batch_size: Size,
    tokens: Size,
    points: str | Sequence[str] = "*",
    dtype: torch.dtype = torch.float32,
) -> TraceSize:
    """How many bytes a trace of one pass takes, from the model's shape alone: exactly the trace's `nbytes`.

    Raises:
        PointError: if there is no such point.
        InputError: if the batch is empty, or its rows do not fit the context.
    """
    check_pass(config, batch_size, tokens)
    nbytes = {}
    for name in stored(taps.resolve(points, config)):
        nbytes[name] = math.prod(taps.shape(name, config, batch_size, tokens, tokens)) * dtype.itemsize
    return TraceSize(config, batch_size, tokens, dtype, nbytes)


def stored(names: Sequence[str]) -> list[str]:
    """The points whose values must be stored for these: z for head_out, the others themselves."""
    return [re.sub(r"head_out$", "z", name) for name in names]


def allowed(usual: float, size: float, *dtypes: torch.dtype) -> float:
    """How far apart two ways to one number may be: eight roundings of the coarsest dtype.

    Args:
        usual: what is allowed instead where no dtype is coarser than float32, unless it is 0.
        size: how large the numbers are.
        dtypes: in which the model computed, and the trace kept.
    """
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    return usual if usual and eps <= torch.finfo(torch.float32).eps else 8 * size * eps


def weight_in_use(model: GPT, path: str) -> Tensor:
    """The weight (out, in) that a linear layer computes with; if it has an adapter, the sum of both."""
    layer = model.get_submodule(path)
    merged: Callable[[], Tensor] | None = getattr(layer, "merged_weight", None)  # a LoRALinear's
    return cast(nn.Linear, layer).weight if merged is None else merged()


def as_numpy(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """As a NumPy array; bfloat16 becomes float32, because NumPy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
