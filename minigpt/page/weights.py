"""A model's tensors as the page reads them: one block of bytes, and a table that says where in it each tensor lies.

    float32   little-endian, the tensors one after another in the model's order, as a run's own file has them
    float16   half the bytes
    int8      a quarter: a matrix is whole numbers from -127 to 127, then a float32 scale for each of its rows; what is
              no matrix stays float32

Every tensor begins at a multiple of four bytes, so that JavaScript can look at it in place.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from minigpt.errors import InputError
from minigpt.formats.run_directory import run_weights
from minigpt.formats.source import Source
from minigpt.formats.weights import open_weights
from minigpt.lora import without_adapters
from minigpt.model import GPT
from minigpt.parameters import empty_model, own_tensors, shapes_alone

Array = npt.NDArray[Any]
Precision = Literal["float32", "float16", "int8"]

_PIECE = 2**20  # bytes that are handed on at once
_SMALLEST = 1e-12  # a row of zeros has a scale too


@dataclass(frozen=True)
class PageWeights:
    """The weights of a model in one block.

    Attributes:
        precision: how its matrices are kept.
        table: for each tensor its name, shape and dtype, where its bytes begin and how many they are; of a matrix in
            int8 also where its scales begin.
        parts: the bytes, in order.
    """

    precision: Precision
    table: list[dict[str, Any]]
    parts: list[memoryview]

    @property
    def size(self) -> int:
        """The number of all bytes."""
        return sum(map(len, self.parts))

    def pieces(self, size: int = _PIECE) -> Iterator[memoryview]:
        """The bytes in order, at most `size` of them at a time; nothing is copied."""
        for part in self.parts:
            yield from (part[start : start + size] for start in range(0, len(part), size))


def page_weights(model: GPT, precision: Precision = "float32") -> PageWeights:
    """The weights of a model as `precision` keeps them. An adapter in use is merged into them, not into the model.

    Raises:
        InputError: if the model is packed, has other parts than a GPT, or a weight that float16 cannot hold.
    """
    table: list[dict[str, Any]] = []
    parts: list[memoryview] = []

    def placed(array: Array) -> int:
        """Put an array behind those before it; returns where its bytes begin."""
        begin = sum(map(len, parts))
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        parts.append(little.reshape(-1).view(np.uint8).data)
        parts.append(memoryview(bytes(-little.nbytes % 4)))
        return begin

    for name, tensor in own_tensors(without_adapters(model)).items():
        values, *scales = _kept(name, tensor.cpu().float().numpy(), precision)
        entry = {"name": name, "shape": list(values.shape), "dtype": values.dtype.name, "length": values.nbytes}
        table.append({**entry, "offset": placed(values)} | ({"scales": placed(scales[0])} if scales else {}))
    return PageWeights(precision, table, parts)


def mapped_weights(source: Source) -> PageWeights | None:
    """The weights of a run in float32, mapped from its file; None where no file has them in the page's layout.

    Only what is being read takes memory. Training replaces the file by another one, so what is mapped stays the model
    that it was.

    Raises:
        MiniGPTError: as `Source.load`.
    """
    if not source.run or source.adapter:
        return None
    path = run_weights(source.run, source.folder)
    stored = open_weights(path)
    with shapes_alone():
        expected = {name: tuple(tensor.shape) for name, tensor in own_tensors(GPT(source.config)).items()}
    found = {name: tensor.shape for name, tensor in stored.items() if tensor.dtype == torch.float32}
    if list(found.items()) != list(expected.items()):
        return None
    table: list[dict[str, Any]] = []
    end = 0
    for name, shape in found.items():
        length = 4 * math.prod(shape)
        table.append({"name": name, "shape": list(shape), "offset": end, "dtype": "float32", "length": length})
        end += length
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return PageWeights("float32", table, [whole[len(whole) - end :]])  # the values fill a file to its end


@torch.no_grad()
def rounded(model: GPT, precision: Precision) -> GPT:
    """A model with the weights that the page computes with, when they were kept in this precision.

    Raises:
        InputError: as `page_weights`.
    """
    copy = empty_model(model.config)
    own = own_tensors(without_adapters(model))
    for name, target in own_tensors(copy).items():
        values, *scales = _kept(name, own[name].cpu().float().numpy(), precision)
        whole = values.astype(np.float32)
        target.copy_(torch.from_numpy(whole * scales[0][:, None] if scales else whole))
    return copy.eval()


def _kept(name: str, values: Array, precision: Precision) -> tuple[Array, ...]:
    """The values of a tensor, float32, as they are kept; behind those of a matrix in int8 the scales of its rows."""
    if precision == "float16":
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise InputError(
                f"{name} has a weight of {np.abs(values).max():.3g}, and float16 holds {np.finfo(np.float16).max:.0f} "
                "at most",
                "keep the weights in float32 or int8",
            )
        return (values.astype(np.float16),)
    if precision == "int8" and values.ndim == 2:
        scales = np.maximum(np.abs(values).max(axis=1) / np.float32(127), np.float32(_SMALLEST))  # (rows,)
        return np.rint(values / scales[:, None]).astype(np.int8), scales
    return (values,)
