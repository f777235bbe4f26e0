"""A model for inference, whose weights are laid out once for this processor's kernels: the same text, sooner.

For a few rows, `F.linear` on a CPU spends more time on laying out the weight than on the product, at every call. A
weight that will not change can be laid out once, and kept in fewer bits:

    float32  the same numbers within rounding
    float16  half the bytes; the sums stay in float32
    int8     a quarter of the bytes: whole numbers from -127 to 127 and a scale for each row. What goes into a layer is
             rounded too, to 7 bits, at each call
    auto     for each shape of a layer whichever is fastest here of what loses nothing, measured once and remembered

A `PackedGPT` is a `GPT` whose linear layers, the head too, are `PackedLinear`; `model.py` knows nothing of it. The
operators are torch's own, but not all of them are documented, and not every torch and processor has them. So each layer
is compared with the plain product before it is trusted, and takes a wider kind where it is missing or wrong.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from minigpt.errors import InputError, MiniGPTError
from minigpt.fields import checked
from minigpt.lora import LoRALinear
from minigpt.model import GPT
from minigpt.parameters import without_random_values
from minigpt.system.device import processor
from minigpt.system.downloads import cache_dir
from minigpt.system.files import read_json, write_text

Weights = Literal["float32", "float16", "int8", "auto"]

# x (..., in) -> (..., out), of one layer.
Product = Callable[[Tensor], Tensor]

PROBED_ROWS = 3
TIMED_ROWS = (1, 8)  # what `auto` decides by: one sequence, and a batch or beams


def _plain(weight: Tensor, bias: Tensor | None) -> Product:
    return lambda x: F.linear(x, weight, bias)


def _transposed(weight: Tensor, bias: Tensor | None) -> Product:
    columns = weight.t().contiguous()  # (in, out): what a product of one row reads is side by side
    if bias is None:
        return lambda x: x @ columns
    return lambda x: torch.addmm(bias, x.reshape(-1, x.size(-1)), columns).view(*x.shape[:-1], -1)


def _float32(weight: Tensor, bias: Tensor | None) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, max(TIMED_ROWS))
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")


def _float16(weight: Tensor, bias: Tensor | None) -> Product:
    packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    multiply = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: multiply(x, packed)


def _int8(weight: Tensor, bias: Tensor | None) -> Product:
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-12).double()  # (out,); a row of zeros has a scale too
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with _engine("fbgemm"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that quantized tensors will go, one day
        whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(whole, bias)
    multiply = torch.ops.quantized.linear_dynamic
    # Inputs in 7 bits: where 16-bit sums are all there is (AVX2), two products of 8 bits would not fit.
    return lambda x: multiply(x, packed, reduce_range=True)


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """Torch lays out whole numbers for one engine at a time, named in a global setting."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@dataclass(frozen=True)
class Kind:
    """A way to keep a weight.

    Attributes:
        make: lays out a weight (out, in) and a bias (out,), both float32.
        error: the largest relative error, norm of the difference / norm of the plain product, with which it is trusted.
        wider: the kind in whose favour it stands back where it cannot be trusted.
    """

    make: Callable[[Tensor, Tensor | None], Product]
    error: float
    wider: str = "plain"


KINDS = {
    "plain": Kind(_plain, 0.0),
    "transposed": Kind(_transposed, 1e-5),
    "float32": Kind(_float32, 1e-5),
    "float16": Kind(_float16, 1e-3, "float32"),
    "int8": Kind(_int8, 3e-2, "float16"),
}
LOSSLESS = ("plain", "transposed", "float32")


class PackedLinear(nn.Module):
    """A linear layer whose weight cannot be read or changed any more.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        kind: how to keep it: a key of `KINDS`.

    Attributes:
        kind: how it is kept, which is a wider kind than was asked for where that one cannot be trusted.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.kind, self._product = _trusted(weight, bias, kind)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self._product(x)

    def extra_repr(self) -> str:
        """What `print(model)` says of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"


class PackedGPT(GPT):
    """A GPT for inference. It is made by `pack`, and has neither gradients nor readable weights in its linear layers.

    Attributes:
        weights: what was asked for.
    """

    def __init__(self, model: GPT, weights: Weights, keep: bool) -> None:
        with without_random_values():
            super().__init__(model.config)
        self.weights = weights
        self._num_parameters = model.num_parameters()
        copied = partial(_detached, copy=keep)
        chosen = cache(fastest)  # the layers of all blocks have the same few shapes
        for name, own in [*self.named_modules()]:
            theirs = model.get_submodule(name)
            if isinstance(own, nn.Embedding | nn.LayerNorm):
                for part, values in theirs.named_parameters(recurse=False):
                    setattr(own, part, nn.Parameter(copied(values), requires_grad=False))
            elif isinstance(own, nn.Linear) and isinstance(theirs, nn.Linear):
                weight = theirs.merged_weight() if isinstance(theirs, LoRALinear) else theirs.weight
                tied = own is self.lm_head and model.config.tie_weights
                weight = self.wte.weight.detach() if tied else copied(weight)
                kind = chosen(*weight.shape) if weights == "auto" else weights
                bias = None if theirs.bias is None else copied(theirs.bias)
                self.set_submodule(name, PackedLinear(weight, bias, kind))
                if not keep and not tied:
                    theirs.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        super().train(False)

    def train(self, mode: bool = True) -> "PackedGPT":
        """Stay in evaluation mode.

        Raises:
            InputError: if it is to learn.
        """
        if mode:
            raise InputError("a packed model cannot learn: its weights are laid out once", "train the plain model")
        super().train(False)
        return self

    def num_parameters(self) -> int:
        """Number of parameters of the plain model; a tied head counts once."""
        return self._num_parameters

    def kinds(self) -> dict[str, str]:
        """How each linear layer is kept, by name."""
        return {name: part.kind for name, part in self.named_modules() if isinstance(part, PackedLinear)}


@checked
def pack(model: GPT, weights: Weights = "auto", *, keep: bool = True) -> PackedGPT:
    """The same model for inference on a CPU, with weights laid out once for its kernels.

    Args:
        model: on the CPU. An adapter in use is added to the weights.
        weights: "float32" (the same numbers within rounding), "float16", "int8", or "auto": for each layer whichever is
            fastest here of what loses nothing. `docs/decoding-speed.md` says what each kind costs.
        keep: whether `model` can be used afterwards; without, the memory of its weights is given back as they are
            laid out, and it is empty.

    Raises:
        InputError: if it is no model, is packed already, or does not lie on the CPU; or there is no such kind.
    """
    if isinstance(model, PackedGPT):
        raise InputError(f"the model is packed already, as {model.weights}", "pack the plain model")
    if model.wte.weight.device.type != "cpu":
        raise InputError(
            f"the model lies on {model.wte.weight.device}, and packed weights are for a CPU", 'use model.to("cpu")'
        )
    return PackedGPT(model, weights, keep)


def _detached(values: Tensor, copy: bool) -> Tensor:
    """Values in float32, without gradients."""
    return values.detach().to(torch.float32, copy=copy)


def _trusted(weight: Tensor, bias: Tensor | None, kind: str) -> tuple[str, Product]:
    """The product of the wanted kind, or of the next wider one that agrees with the plain product."""
    # Drawn by a generator of our own: packing a model moves nobody's random numbers.
    x = torch.randn(PROBED_ROWS, weight.size(1), generator=torch.Generator().manual_seed(0))
    expected = F.linear(x, weight, bias)
    while kind != "plain":
        with suppress(RuntimeError, AttributeError, NotImplementedError), torch.no_grad():
            product = KINDS[kind].make(weight, bias)
            if (product(x) - expected).norm() <= KINDS[kind].error * expected.norm():
                return kind, product
        kind = KINDS[kind].wider
    return kind, _plain(weight, bias)


# --- which is fastest here


def fastest(num_out: int, num_in: int) -> str:
    """The fastest kind, of those that lose nothing, for a layer of this shape on this processor and so many threads.

    It is measured in some hundredths of a second, and remembered in the cache folder, if that can be written.
    """
    file = cache_dir() / "packed.json"
    key = f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {num_out} x {num_in}"
    known: dict[str, object] = {}
    with suppress(MiniGPTError, OSError):
        known = read_json(file)
    if (kind := known.get(key)) in LOSSLESS:
        return str(kind)
    seconds = {kind: [measured(num_out, num_in, rows, kind) for rows in TIMED_ROWS] for kind in LOSSLESS}
    best = min(seconds, key=lambda kind: statistics.geometric_mean(seconds[kind]))
    with suppress(MiniGPTError, OSError):  # a cache that cannot be written costs time, and nothing else
        write_text(file, json.dumps({**known, key: best}, indent=1))
    return best


@torch.no_grad()
def measured(num_out: int, num_in: int, rows: int, kind: str) -> float:
    """Median seconds of one product; infinite where the kind cannot be trusted here."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_out, num_in, generator=generator) * 0.02
    bias, x = torch.zeros(num_out), torch.randn(rows, num_in, generator=generator)
    found, product = _trusted(weight, bias, kind)
    if found != kind:
        return float("inf")
    seconds: list[float] = []
    until = time.perf_counter() + 0.01
    while len(seconds) < 5 or time.perf_counter() < until:
        start = time.perf_counter()
        product(x)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
