"""A model for inference, whose weights are laid out once for this processor's kernels: the same text, sooner.

For a few rows, `F.linear` on a CPU spends more time on laying out the weight than on the product, at every call. A
weight that will not change can be laid out once, and kept in fewer bits:

    float32  the same numbers within rounding
    float16  half the bytes; the sums stay in float32
    int8     a quarter of the bytes: whole numbers from -127 to 127 and a scale for each row
    auto     for each shape of a layer, the fastest lossless kind on this machine, measured once and remembered

Their product is written out in `products.c`, which the machine's compiler makes ready. Where there is none, operators
of torch stand in, which are not all documented, and which not every torch and processor has. So each layer is compared
with the plain product before it is trusted, and takes another kind where it is missing or wrong.

A `PackedGPT` is a `GPT` whose linear layers, the head too, are `PackedLinear`; `model.py` knows nothing of it.
"""

import copy
import ctypes
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from minigpt.config import GPTConfig, Weights
from minigpt.errors import InputError, MiniGPTError, first_line
from minigpt.fields import checked
from minigpt.kv_cache import KVCache
from minigpt.lora import KNOWN, LoRALinear
from minigpt.model import GPT, Block
from minigpt.parameters import as_built, check_not_packed, shapes_alone
from minigpt.system.compiler import shared_library
from minigpt.system.device import processor, returning_freed_memory, undisturbed
from minigpt.system.downloads import cache_dir
from minigpt.system.files import read_json, write_text

# x (..., in) -> (..., out), of one layer.
Product = Callable[[Tensor], Tensor]

_MISSING = (RuntimeError, AttributeError, NotImplementedError)  # what a torch without an operator raises
_SMALLEST = 1e-12  # a row of zeros has a scale too
PROBED_ROWS = 32  # compared with the plain product
_HEAD_PIECE = 2**23  # weights of the head that are laid out at once
_BEYOND_CACHES = 2**24  # weights that no processor's caches hold
TIMED_ROWS = (1, 1, 8)  # what `auto` decides by: one sequence, which counts twice, and a batch or beams
SHOWN_ROWS = (1, 2, 8, 32)
_IN_ONE_CALL = 0.8  # of its time takes a pass whose products are all in C, about: see decoding/one_call.py
_PIECE_ROWS = 192  # about so many rows of a weight are multiplied at a time


def _plain(weight: Tensor, bias: Tensor | None) -> Product:
    return lambda x: F.linear(x, weight, bias)


def _transposed(weight: Tensor, bias: Tensor | None) -> Product:
    columns = weight.t().contiguous()  # (in, out): what a product of one row reads is side by side
    if bias is None:
        return lambda x: x @ columns
    return lambda x: torch.addmm(bias, x.reshape(-1, x.size(-1)), columns).view(*x.shape[:-1], -1)


def _in_pieces(weight: Tensor, bias: Tensor | None) -> Product:
    """The weight as it is, some of its rows at a time, in one batched product, of which each thread takes its share.

    With one row, `F.linear` may leave all of it to one thread. Nothing is copied: a tied head stays the embedding.
    """
    threads = torch.get_num_threads()
    num_pieces = threads * math.ceil(len(weight) / (_PIECE_ROWS * threads))
    rows = len(weight) // num_pieces
    fit = num_pieces * rows
    weight = weight.contiguous()
    pieces = weight[:fit].view(num_pieces, rows, weight.size(1)).transpose(1, 2)  # (pieces, in, rows)
    rest = weight[fit:]  # fewer rows than there are pieces

    def product(x: Tensor) -> Tensor:
        flat = x.reshape(1, -1, x.size(-1)).expand(num_pieces, -1, -1)
        y = torch.bmm(flat, pieces).transpose(0, 1).contiguous().view(*x.shape[:-1], fit)
        y = torch.cat((y, F.linear(x, rest)), dim=-1) if len(rest) else y
        return y if bias is None else y.add_(bias)

    return product


@cache
def compiled_library() -> ctypes.CDLL | str:
    """`products.c` and what is made of it, ready to be called; or why it is not."""
    try:
        library = shared_library(Path(__file__).with_name("one_token.c"))
    except RuntimeError as problem:
        return str(problem)
    address, size, number = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
    library.linear.argtypes = [address, address, address, size, number, CompiledRoom]
    library.gelu.argtypes = [address, address, size, number]
    library.linear.restype = library.gelu.restype = None
    return library


class CompiledLinear(ctypes.Structure):
    """`Linear` of `products.c`: where a layer's numbers are."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("w", "scale", "bias")),
        *((name, ctypes.c_ssize_t) for name in ("num_in", "num_out")),
        ("kind", ctypes.c_int),
    ]


class CompiledRoom(ctypes.Structure):
    """`Rounded` of `products.c`: where rows of whole numbers and their factors go."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("numbers", "factors")]


class CompiledProduct:
    """The product of `products.c`, which says how a weight is laid out.

    Args:
        weight: (out, in), numbers that `dtype` holds.
        bias: (out,), float32, or None.
        dtype: to keep the weight in: float32, float16 or int8.
        scale: (out,), float32, what the products of each row of the weight are multiplied by, or None.

    Attributes:
        layer: what the library is given. It is good as long as this object is.

    Raises:
        RuntimeError: if there is no library, or it lacks this kind.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, scale: Tensor | None = None) -> None:
        library = compiled_library()
        if isinstance(library, str):
            raise RuntimeError(library)
        name = str(dtype).removeprefix("torch.")
        try:
            kind = ctypes.c_int.in_dll(library, name).value
        except ValueError:
            raise RuntimeError(f"products.c has no {name} for this processor") from None
        self._multiply = library.linear
        width = ctypes.c_int.in_dll(library, "panel").value
        self._num_out, self._num_in = num_out, num_in = weight.shape
        self._rounds = dtype == torch.int8
        together = 2 if self._rounds else 1  # inputs that are multiplied in one step
        self._wide = math.ceil(num_in / width) * width if self._rounds else num_in
        panels = weight.new_zeros(math.ceil(num_out / width), self._wide // together, width, together, dtype=dtype)
        outputs = panels.permute(0, 2, 1, 3)  # (panels, width, steps, together)
        for number, rows in enumerate(weight.split(width)):
            padded = F.pad(rows, (0, self._wide - num_in))
            outputs[number, : len(rows)] = padded.view(len(rows), -1, together)
        scale = weight.new_ones(num_out) if scale is None else scale
        bias = weight.new_zeros(num_out) if bias is None else bias.contiguous()
        self._kept = panels, scale, bias  # what follows sees nothing but addresses
        self.layer = CompiledLinear(*(part.data_ptr() for part in self._kept), num_in, num_out, kind)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, self._num_in).to(torch.float32).contiguous()
        if rows.device.type != "cpu":
            raise InputError(f"a packed layer is for the CPU, and reads from {rows.device}", 'give it x.to("cpu")')
        y = rows.new_empty(len(rows), self._num_out)  # of its type and device, whatever torch's defaults are
        room = CompiledRoom()
        if self._rounds:
            numbers, factors = rows.new_empty(len(rows), self._wide, dtype=torch.int16), rows.new_empty(len(rows))
            room = CompiledRoom(numbers.data_ptr(), factors.data_ptr())
        layer = ctypes.byref(self.layer)
        self._multiply(layer, rows.data_ptr(), y.data_ptr(), len(rows), torch.get_num_threads(), room)
        return y.view(*x.shape[:-1], self._num_out)

    def __deepcopy__(self, memo: object) -> "CompiledProduct":
        """Itself, because nothing changes it."""
        return self


def _float32(weight: Tensor, bias: Tensor | None) -> Product:
    return CompiledProduct(weight, bias, torch.float32)


def _float16(weight: Tensor, bias: Tensor | None) -> Product:
    _check_float16(weight)
    return CompiledProduct(weight, bias, torch.float16)


def _int8(weight: Tensor, bias: Tensor | None) -> Product:
    if _multiplies_bytes():
        raise RuntimeError("this processor multiplies bytes, as fbgemm8 does")
    scale = (weight.abs().amax(1) / 127).clamp_(min=_SMALLEST)
    return CompiledProduct((weight / scale[:, None]).round_(), bias, torch.int8, scale)


def _check_float16(weight: Tensor) -> None:
    lowest, highest = weight.aminmax()
    if torch.maximum(-lowest, highest) > torch.finfo(torch.float16).max:
        raise OverflowError("a weight is too large for float16")


def _onednn(weight: Tensor, bias: Tensor | None) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, max(TIMED_ROWS))
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")


def _fbgemm16(weight: Tensor, bias: Tensor | None) -> Product:
    _check_float16(weight)  # the operator would change the weight itself
    packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    multiply = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: multiply(x, packed)


def _fbgemm8(weight: Tensor, bias: Tensor | None) -> Product:
    lowest, highest = weight.aminmax(dim=1)
    packed = _in_8_bits(weight, torch.maximum(-lowest, highest))
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    steps, zero = _input_steps()

    def product(x: Tensor) -> Tensor:
        # Each row has a scale of its own, so that it depends on no other row, and none is lost beside a large one.
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST)
        y: Tensor = multiply(x / largest, 1 / steps, zero, packed).mul_(largest)
        return y if bias is None else y.add_(bias)

    return product


def _in_8_bits(weight: Tensor, largest: Tensor) -> torch.ScriptObject:
    """A weight (out, in) laid out in whole numbers, of which 127 is the `largest` (out,) of each row."""
    scales = (largest / 127).clamp(min=_SMALLEST).double()
    with _engine("fbgemm"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that quantized tensors will go, one day
        whole = torch.quantize_per_channel(weight, scales, torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(whole, None)
    return packed


@cache
@undisturbed()
def _input_steps() -> tuple[int, int]:
    """Into how many steps the largest input is divided, and which whole number is zero.

    127; or 63 where two of the largest products, added in 16 bits as AVX2 does, overflow with 127.
    """
    packed = _in_8_bits(torch.ones(16, 64), torch.ones(16))
    y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(torch.ones(2, 64), 1 / 127, 128, packed)
    return (127, 128) if torch.allclose(y, torch.tensor(64.0)) else (63, 64)


@cache
def _multiplies_bytes() -> bool:
    """Whether fbgemm adds products of whole numbers without an intermediate sum in 16 bits, in instructions for it."""
    try:
        return _input_steps()[0] == 127
    except _MISSING:
        return False


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
        other: the kind to try next where this one is missing, or its error is too large.
    """

    make: Callable[[Tensor, Tensor | None], Product]
    error: float
    other: str = "plain"


KINDS = {
    "plain": Kind(_plain, 1e-5),
    "transposed": Kind(_transposed, 1e-5),
    "pieces": Kind(_in_pieces, 1e-5),
    "onednn": Kind(_onednn, 1e-5),
    "float32": Kind(_float32, 1e-5, "onednn"),
    "fbgemm16": Kind(_fbgemm16, 1e-3, "float32"),
    "float16": Kind(_float16, 1e-3, "fbgemm16"),
    "fbgemm8": Kind(_fbgemm8, 3e-2, "float16"),
    "int8": Kind(_int8, 3e-2, "fbgemm8"),
}
LOSSLESS = ("plain", "transposed", "pieces", "onednn", "float32")


class PackedLinear(nn.Module):
    """A linear layer whose weight cannot be read or changed any more.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        kind: how to keep it: a key of `KINDS`.
        x: what the layer reads, (..., in), to compare the kinds with; random numbers by default.

    Attributes:
        kind: how it is kept, which is another kind than was asked for where that one cannot be trusted.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str, x: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.kind, self._product = _trusted(weight, bias, kind, _random_inputs(weight) if x is None else x)

    @property
    def compiled(self) -> CompiledProduct | None:
        """The product of `products.c`, if that is what it takes."""
        return self._product if isinstance(self._product, CompiledProduct) else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self._product(x) if x.dim() > 1 else self._product(x[None])[0]

    def __deepcopy__(self, memo: dict[int, object]) -> "PackedLinear":
        """One with parts of its own and the same layout of the weight, which nothing changes."""
        twin = PackedLinear.__new__(PackedLinear)
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Where pickle begins. Raises InputError: the layout belongs to the operators of this process."""
        raise InputError(
            "a packed model cannot be pickled, and so not sent to another process",
            "send the plain model, and pack it there; or load it there, with weights= of load_model",
        )

    def extra_repr(self) -> str:
        """What `print(model)` says of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"


class PackedGELU(nn.GELU):
    """tanh-GELU by `one_token.c`, for a model whose products are all in C."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        library = compiled_library()
        if isinstance(library, str) or x.dtype != torch.float32 or x.device.type != "cpu":  # somebody's hook made it so
            return super().forward(x)
        x = x.contiguous()
        y = torch.empty_like(x)
        library.gelu(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
        return y


class PackedHead(nn.Module):
    """The output head, cut into layers with some of its rows each: no second plain copy of it is ever whole in memory.

    Args:
        pieces: layers of the same inputs, whose outputs stand side by side.
    """

    def __init__(self, pieces: Iterable[PackedLinear]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)
        self.kind = " and ".join(dict.fromkeys(piece.kind for piece in self._layers()))
        self.out_features = sum(piece.out_features for piece in self._layers())

    def _layers(self) -> Iterator[PackedLinear]:
        return (piece for piece in self.pieces if isinstance(piece, PackedLinear))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y, start = x.new_empty(*x.shape[:-1], self.out_features), 0
        for piece in self._layers():
            y[..., start : start + piece.out_features] = piece(x)
            start += piece.out_features
        return y


class EmptyLinear(nn.Linear):
    """A linear layer of a model that was packed and not kept."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to compute, to be copied, and to be written. Raises InputError."""
        raise InputError(
            "the model was packed with keep=False, and its weights were given back",
            "use the model that pack returned, or load this one again",
        )

    _save_to_state_dict = __reduce_ex__ = forward


class _Unread(nn.Module):
    """Stands where a linear layer will be, and makes it when it is first used: then it is known what the layer reads.

    Args:
        pieces: (weight (out, in), bias) of the layer; the output head has several, each with its next rows.
        kind: how to keep it.
    """

    def __init__(self, pieces: Iterable[tuple[Tensor, Tensor | None]], kind: str) -> None:
        super().__init__()
        self.pieces, self.kind, self.made = pieces, kind, list[PackedLinear]()

    def forward(self, x: Tensor) -> Tensor:
        """Pack each piece, compared on this x, and return the plain product of the last; of a layer, that is all."""
        for weight, bias in self.pieces:
            self.made.append(PackedLinear(weight, bias, self.kind, x))
            y = F.linear(x, weight, bias)
        return y

    def packed(self) -> PackedLinear | PackedHead:
        """What was made."""
        return self.made[0] if len(self.made) == 1 else PackedHead(self.made)


# The tensors of a part of a model by their names there, in float32: the path of the part, which of its rows -> weight
# (rows, in) and bias (rows,).
Read = Callable[[str, slice], Mapping[str, Tensor]]


class CompiledParts(NamedTuple):
    """What a pass of a model in C is made of: of each block, the products in the order of a pass; those of the head."""

    blocks: list[list[CompiledProduct]]
    head: list[CompiledProduct]


class PackedGPT(GPT):
    """A GPT for inference. It has neither gradients nor readable weights in its linear layers.

    Args:
        config: the model's shape.
        weights: how to keep the linear layers.
        read: gives the plain weights: called once for each part; for the output head once for each piece of its rows;
            for a tied head never, because its weight is that of `wte`.

    Attributes:
        weights: what was asked for.
        rounds_keys: whether keys and values may be kept in float16; see `cache_dtype`.
    """

    def __init__(self, config: GPTConfig, weights: Weights, read: Read) -> None:
        with shapes_alone():
            super().__init__(config)
        self.weights = weights
        self._num_parameters = super().num_parameters()
        super().train(False)

        step, chosen = _head_rows(config), _chosen(self) if weights == "auto" else {}

        def layer(name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
            tensors = read(name, slice(None))
            yield tensors["weight"], tensors.get("bias")

        def head() -> Iterator[tuple[Tensor, None]]:
            for start in range(0, config.vocab_size, step):
                rows = slice(start, min(start + step, config.vocab_size))
                tied = config.tie_weights
                yield self.wte.weight[rows].detach() if tied else read("lm_head", rows)["weight"], None

        with returning_freed_memory(), undisturbed(), torch.no_grad():
            for name, part in [*self.named_modules()]:
                if isinstance(part, nn.Embedding | nn.LayerNorm):
                    for key, values in read(name, slice(None)).items():
                        setattr(part, key, nn.Parameter(values.contiguous(), requires_grad=False))
                elif part is self.lm_head:
                    self.set_submodule(name, _Unread(head(), chosen.get((step, config.n_embd), weights)))
                elif isinstance(part, nn.Linear):
                    kind = chosen.get((part.out_features, part.in_features), weights)
                    self.set_submodule(name, _Unread(layer(name), kind))
            ids = torch.randint(config.vocab_size, (1, min(config.block_size, PROBED_ROWS)), generator=_generator())
            self(ids)  # this makes the layers: each `_Unread` packs its weights, and compares them on its own inputs
            for name, part in [*self.named_modules()]:
                if isinstance(part, _Unread):
                    self.set_submodule(name, part.packed())
            self.rounds_keys = False
            if self.compiled() is None:
                return
            for name, part in [*self.named_modules()]:
                if isinstance(part, nn.GELU):
                    self.set_submodule(name, PackedGELU(approximate="tanh"))
            if weights in ("float16", "int8"):
                self(ids, seen := KVCache(config, 1, ids.size(1)))
                most = torch.finfo(torch.float16).max / 16  # other ids may give larger ones
                self.rounds_keys = bool(seen.kv.abs().max() < most)

    def train(self, mode: bool = True) -> "PackedGPT":
        """Stay in evaluation mode.

        Raises:
            InputError: if it is to learn.
        """
        if mode:
            raise InputError("a packed model cannot be trained: its weights are fixed", "train the plain model")
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedGPT":
        """Where `to`, `half` and the like end: what would move a packed model or change its dtype is refused."""
        found = fn(torch.empty(0))
        if (found.device.type, found.dtype) != ("cpu", torch.float32):
            raise InputError(
                f"a packed model is for the CPU in float32, not for {found.device} in {str(found.dtype)[6:]}",
                "move the plain model, and pack it there if it is a CPU",
            )
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """What would be written to a file. Raises InputError: the linear layers would not be in it."""
        check_not_packed(self, "a state dict")
        raise AssertionError

    def num_parameters(self) -> int:
        """Number of parameters of the plain model; a tied head counts once."""
        return self._num_parameters

    def compiled(self) -> CompiledParts | None:
        """The products of the linear layers, if all of these are in `products.c`, and all parts are as they were made.

        None too where a part was exchanged or wrapped, or its weight is not as C reads it, in float32 and dense.
        """
        head: nn.Module = self.lm_head
        layers: list[list[nn.Module]] = []
        plain = [(self.wte, nn.Embedding), (self.wpe, nn.Embedding), (self.ln_f, nn.LayerNorm)]
        for block in self.h:
            if not isinstance(block, Block):
                return None
            layers.append([block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj])
            plain += [(block.ln_1, nn.LayerNorm), (block.ln_2, nn.LayerNorm)]
        layers.append([*head.pieces] if type(head) is PackedHead else [head])
        found = [
            [product for layer in some if type(layer) is PackedLinear and (product := layer.compiled)]
            for some in layers
        ]
        if [*map(len, found)] != [*map(len, layers)] or not all(type(part) is kind for part, kind in plain):
            return None
        weights = [weight for part, _ in plain for weight in part.parameters(recurse=False)]
        if not all(w.dtype == torch.float32 and w.device.type == "cpu" and w.is_contiguous() for w in weights):
            return None
        return CompiledParts(found[:-1], found[-1])

    def kinds(self) -> dict[str, str]:
        """How each linear layer is kept, by name."""
        kinds = {name: part.kind for name, part in self.named_modules() if isinstance(part, PackedLinear | PackedHead)}
        return {name: kind for name, kind in kinds.items() if ".pieces." not in name}


@checked
def pack(model: GPT, weights: Weights = "auto", *, keep: bool = True) -> PackedGPT:
    """The same model for inference on a CPU, with weights laid out once for its kernels.

    Args:
        model: on the CPU. An adapter in use is added to the weights.
        weights: "float32" (the same numbers within rounding), "float16", "int8", or "auto": for each layer the
            fastest lossless kind on this machine, by a clock: the last digits may differ between two calls unless the
            cache folder keeps the choice. `docs/decoding-speed.md` says what each kind costs.
        keep: whether `model` can be used afterwards; without, the memory of its weights is given back as they are
            laid out, and it is empty.

    Raises:
        InputError: if it is no model, is packed already, does not lie on the CPU, or has other parts than a GPT and
            adapters (see `parameters.as_built`); or there is no such kind.
    """
    check_not_packed(model, "packing")
    model = as_built(model, KNOWN)
    if model.wte.weight.device.type != "cpu":
        raise InputError(
            f"the model lies on {model.wte.weight.device}, and packed weights are for a CPU", 'use model.to("cpu")'
        )

    def read(name: str, rows: slice) -> dict[str, Tensor]:
        part = model.get_submodule(name)
        tensors = {key: values.detach() for key, values in part.named_parameters(recurse=False)}
        if isinstance(part, LoRALinear):
            tensors["weight"] = part.merged_weight().detach()
        if isinstance(part, nn.Linear) and not keep and rows.stop in (None, part.out_features):
            part.weight = nn.Parameter(part.weight.new_empty(0), requires_grad=False)
            part.__class__ = EmptyLinear
        return {key: values[rows].to(torch.float32, copy=keep) for key, values in tensors.items()}

    packed = PackedGPT(model.config, weights, read)
    if not keep:
        model.lm_head.__class__ = EmptyLinear  # a tied one too, which is not read
    return packed


def cache_dtype(model: GPT) -> torch.dtype:
    """In which a decoder keeps the model's keys and values: its own dtype.

    Of a packed model whose weights are rounded to float16 or int8, and whose layers are all those of `products.c`, it
    is float16, if they are not too large: half as much is read then for each token, and kept.
    """
    if not isinstance(model, PackedGPT):
        return model.wte.weight.dtype
    return torch.float16 if model.rounds_keys and model.compiled() is not None else torch.float32


def new_cache(model: GPT, batch_size: int, max_length: int | None = None) -> KVCache:
    """An empty cache, as a decoder makes it for this model."""
    return KVCache(model.config, batch_size, max_length, cache_dtype(model), model.wte.weight.device)


def _generator() -> torch.Generator:
    """One of our own: packing a model moves nobody's random numbers."""
    return torch.Generator().manual_seed(0)


def _random_inputs(weight: Tensor) -> Tensor:
    return torch.randn(PROBED_ROWS, weight.size(1), generator=_generator())


def _trusted(weight: Tensor, bias: Tensor | None, kind: str, x: Tensor) -> tuple[str, Product]:
    """The product of the wanted kind, or of the next one that agrees with the plain product."""
    while kind != "plain":
        product = tried(weight, bias, kind, x)
        if not isinstance(product, str):
            return kind, product
        kind = KINDS[kind].other
    return kind, _plain(weight, bias)


@torch.no_grad()
def tried(weight: Tensor, bias: Tensor | None, kind: str, x: Tensor) -> Product | str:
    """The product of one kind, or why it cannot be trusted. It is compared with the plain one, in one row and in many.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        kind: a key of `KINDS`.
        x: what goes in, (..., in).
    """
    x = x.reshape(-1, x.size(-1))
    expected = F.linear(x, weight, bias)
    try:
        product = KINDS[kind].make(weight, bias)
        error = max(_error(product(rows), expected[: len(rows)]) for rows in (x[:1], x))
    except (*_MISSING, OverflowError) as problem:
        return first_line(problem)
    # A comparison that a NaN fails too.
    return product if error <= KINDS[kind].error else f"{error:.1e} from the plain product"


def _error(found: Tensor, expected: Tensor) -> float:
    """How far rows are from the right ones: the mean of norm of the difference / norm of the row."""
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=_SMALLEST)).mean().item()


# --- which is fastest here


def fastest(num_out: int, num_in: int, num_parameters: int) -> str:
    """The fastest kind, of those that lose nothing, for a layer of this shape on this processor and so many threads.

    It is measured in some tenths of a second, and remembered in the cache folder, if that can be written.

    Args:
        num_out: outputs.
        num_in: inputs.
        num_parameters: of the whole model, because weights that come from memory and those that stay in the
            processor's cache differ in what is fastest.
    """
    copies = copies_of(num_out * num_in, num_parameters)
    file = cache_dir() / "packed.json"
    here = f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    key = f"{here}, {num_out} x {num_in}, {copies} in turn, of {', '.join(LOSSLESS)} x {_IN_ONE_CALL}"
    known: dict[str, object] = {}
    with suppress(MiniGPTError, OSError):
        known = read_json(file)
    if (kind := known.get(key)) in LOSSLESS:
        return str(kind)
    timed = kind_seconds(num_out, num_in, LOSSLESS, copies, TIMED_ROWS)
    means = {kind: statistics.geometric_mean(times) for kind, times in timed.items() if not isinstance(times, str)}
    if "float32" in means:
        means["float32"] *= _IN_ONE_CALL
    best = min(means, key=means.__getitem__)
    with suppress(MiniGPTError, OSError):  # a cache that cannot be written costs time, and nothing else
        write_text(file, json.dumps({**known, key: best}, indent=1))
    return best


def _chosen(model: GPT) -> dict[tuple[int, int], str]:
    """What `auto` takes for each shape of layer (out, in) of a model, of whose head a piece is one.

    The fastest; but float32 for all, if it is that for most of the weights: then a pass of one token is one call.
    """
    shapes = [(part.out_features, part.in_features) for part in model.h.modules() if isinstance(part, nn.Linear)]
    step, size = _head_rows(model.config), model.num_parameters()
    shapes += [(step, model.config.n_embd)] * math.ceil(model.config.vocab_size / step)
    chosen = {shape: fastest(*shape, size) for shape in dict.fromkeys(shapes)}
    weights = {kind: sum(math.prod(shape) for shape in shapes if chosen[shape] == kind) for kind in chosen.values()}
    return dict.fromkeys(chosen, "float32") if 2 * weights.get("float32", 0) > sum(weights.values()) else chosen


def _head_rows(config: GPTConfig) -> int:
    """Rows of the head that are laid out at once: pieces of one size, the last of which may be a little smaller."""
    return math.ceil(config.vocab_size / math.ceil(config.vocab_size * config.n_embd / _HEAD_PIECE))


def copies_of(size: int, num_parameters: int) -> int:
    """How many weights of so many numbers to use in turn, to time them as they are used in a model of that size."""
    return math.ceil(min(num_parameters, _BEYOND_CACHES) / size)


@torch.no_grad()
def kind_seconds(
    num_out: int, num_in: int, kinds: Iterable[str], copies: int, rows: Sequence[int]
) -> dict[str, list[float] | str]:
    """For each kind, the least seconds of one product for each number of rows; or why it cannot be trusted.

    The kinds take turns, each with so many weights, and the least counts: what else a machine does at the moment slows
    all of them, and makes none faster.
    """
    rows_drawn = torch.randn(min(num_out, 64), num_in, generator=_generator())  # all of a large weight would take long
    weight = 0.02 * rows_drawn[torch.arange(num_out) % 64]
    bias = torch.zeros(num_out)
    left_out: dict[str, str] = {}
    products: dict[str, list[Product]] = {}
    for kind in kinds:
        first = tried(weight, bias, kind, _random_inputs(weight))
        if isinstance(first, str):
            left_out[kind] = first
        else:
            products[kind] = [first, *(KINDS[kind].make(weight.clone(), bias) for _ in range(copies - 1))]
    by_rows = [_least_seconds(products, torch.randn(n, num_in, generator=_generator())) for n in rows]
    return {**left_out, **{kind: [seconds[kind] for seconds in by_rows] for kind in products}}


def _least_seconds(products: Mapping[str, Sequence[Product]], x: Tensor) -> dict[str, float]:
    seconds: dict[str, list[float]] = {kind: [] for kind in products}
    until = time.perf_counter() + 0.02 * len(products)
    while time.perf_counter() < until or min(map(len, seconds.values())) < 5:
        for kind, of_this_kind in products.items():
            for product in of_this_kind:
                start = time.perf_counter()
                product(x)
                seconds[kind].append(time.perf_counter() - start)
    return {kind: min(times) for kind, times in seconds.items()}


@dataclass(frozen=True)
class LayerTimes:
    """How fast each kind is for one shape of layer on this machine.

    Attributes:
        name: of the layer in its block.
        num_out: outputs.
        num_in: inputs.
        seconds: kind -> the least time of one product for each of `SHOWN_ROWS`.
        left_out: kind -> why it cannot be trusted here.
        fastest: what `auto` takes.
    """

    name: str
    num_out: int
    num_in: int
    seconds: dict[str, list[float]]
    left_out: dict[str, str]
    fastest: str


def layer_times(config: GPTConfig) -> list[LayerTimes]:
    """All kinds, on this machine, for every shape of layer of a model of this shape; of a large head for a piece."""
    with shapes_alone():
        model = GPT(config)
    size, chosen, found = model.num_parameters(), _chosen(model), []
    for name, part in [*model.h[0].named_modules(), ("lm_head", model.lm_head)]:
        if isinstance(part, nn.Linear):
            num_out = _head_rows(config) if part is model.lm_head else part.out_features
            shape, copies = (num_out, part.in_features), copies_of(num_out * part.in_features, size)
            timed = kind_seconds(*shape, KINDS, copies, SHOWN_ROWS)
            seconds = {kind: times for kind, times in timed.items() if not isinstance(times, str)}
            left_out = {kind: reason for kind, reason in timed.items() if isinstance(reason, str)}
            found.append(LayerTimes(name, *shape, seconds, left_out, chosen[shape]))
    return found
