"""Weights to and from files, tensor by tensor: no code is run, a tied tensor is stored once, errors name each mismatch.

An open file is a table from names to tensors whose shapes are known and whose values are not read yet. Values are read
in pieces, directly into the model, so that loading holds only the model and one piece in memory.

    *.safetensors                     the length of the header (8 bytes), the header (JSON), the values
    *.safetensors.index.json          which of several .safetensors files holds which tensor
    pytorch_model.bin, ckpt.pt        written by torch.save; read with weights_only=True, so no code in it is run
    pytorch_model.bin.index.json      which of several .bin files holds which tensor
"""

import dataclasses
import hashlib
import json
import math
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from minigpt.errors import CheckpointError, InputError, MissingFileError, first_line
from minigpt.model import GPT
from minigpt.parameters import own_tensors
from minigpt.system.files import (
    FETCH_AGAIN,
    atomic_write,
    described,
    first_bytes,
    listed,
    named_path,
    parsed_json,
    read_json,
)

# The number formats of a .safetensors file that torch has too.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CHECKSUM = "sha256"  # the key in the header
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_LAYER = re.compile(r"\.(\d+)\.")
# What a pickle of tensors asks to import, and torch allows.
_HARMLESS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch(\.storage)?\.\w+Storage|torch\.(u?int|b?float)\d+"
)
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors library has the same limit
_PIECE = 2**23  # bytes read at once


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: its shape.
        dtype: its number format in the file; reading converts it.
        read_rows: (start, stop) -> these rows, a tensor (stop - start, *shape[1:]).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read_rows: Callable[[int, int], Tensor]

    def pieces(self) -> Iterator[Tensor]:
        """The values, a few megabytes of whole rows at a time."""
        row_size = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _PIECE // max(1, row_size))
        for start in range(0, self.shape[0], step):
            yield self.read_rows(start, min(start + step, self.shape[0]))

    def copy_to(self, target: Tensor) -> None:
        """Write the values into a tensor of this shape, of any dtype and any strides.

        Raises:
            ArithmeticError: at the first piece with a value that is infinite or NaN in the target's dtype.
        """
        start = 0
        for piece in self.pieces():
            values = piece.to(target.dtype)
            if not _all_finite(values):
                raise ArithmeticError("infinite, or not a number")
            target[start : start + len(values)].copy_(values)
            start += len(values)

    def equals(self, other: "StoredTensor") -> bool:
        """Whether both have the same shape, dtype and values; NaN counts as equal to NaN."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        pieces = zip(self.pieces(), other.pieces(), strict=True)
        return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pieces)

    def read(self) -> Tensor:
        """The whole tensor, in its own shape and dtype."""
        return self.read_rows(0, self.shape[0] if self.shape else 1).view(self.shape)

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """The tensor of some of its rows."""
        read_rows = self.read_rows
        return dataclasses.replace(
            self, shape=(stop - start, *self.shape[1:]), read_rows=lambda a, b: read_rows(start + a, start + b)
        )


def _all_finite(values: Tensor) -> bool:
    return not values.numel() or all(bool(extreme.isfinite()) for extreme in values.aminmax())  # NaN if any is


def open_weights(path: Path | str) -> dict[str, StoredTensor]:
    """The tensors of a weights file, or of the files that an index names, by their names there.

    Raises:
        MissingFileError: if a file does not exist.
        CheckpointError: if a file is damaged, is not a weights file, or contains code; the code is not run.
    """
    path = named_path(path, "path")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return stored_tensors(load_torch_file(path), path)


def save_weights(model: GPT, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's weights under its own names, in its own dtype, completely or not at all.

    Raises:
        InputError: if one of them is not finite, or the model is packed.
    """
    write_safetensors(named_path(path, "path"), own_tensors(model), metadata=metadata, finite=True)


def fill(targets: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], path: Path, how: str) -> None:
    """Read every stored tensor into the target of its name. Names and shapes are checked before a value is written.

    Args:
        targets: the tensors to write into, in place, so that tied tensors stay tied.
        stored: the tensors of a file.
        path: the file, for errors.
        how: the second line of an error about names or shapes: what to do.

    Raises:
        CheckpointError: if a name is missing or unknown, or a shape or a dtype differs; the error names all of these.
            Also if a tensor has a value that is not finite; then the tensors before it have been written.
    """
    check_table(targets, stored, path, how)
    for name, target in targets.items():
        read_into(target, name, stored[name], path)


def check_table(expected: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], path: Path, how: str) -> None:
    """Refuse tensors of other names, shapes or dtypes than those of a model; see `fill`."""
    if problems := mismatches(expected, stored):
        raise CheckpointError(f"{path} does not hold this model's weights: {listed(problems, '; ')}", how)


@torch.no_grad()
def read_into(target: Tensor, name: str, stored: StoredTensor, path: Path) -> None:
    """Read one stored tensor into a target of its shape; see `fill`."""
    try:
        stored.copy_to(target)
    except ArithmeticError as error:
        raise CheckpointError(
            f"{path} has values in {name} that are {error}: no model can compute with them",
            "take earlier weights, from before training diverged, or copy the file again",
        ) from None


def mismatches(expected: Mapping[str, Tensor], found: Mapping[str, StoredTensor]) -> list[str]:
    """The differences in names, shapes and types between two sets of tensors, each as a phrase; empty if none."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the model" for name in found if name not in expected]
    for name in [name for name in expected if name in found]:
        shape, wanted = found[name].shape, tuple(expected[name].shape)
        if shape != wanted:
            transposed = ", looks transposed" if shape == wanted[::-1] else ""
            problems.append(f"{name} has shape {shape}, expected {wanted}{transposed}")
        elif not found[name].dtype.is_floating_point:
            problems.append(f"{name} holds {str(found[name].dtype)[6:]}, expected floating point")
    return _once_for_all_layers(problems)


def _once_for_all_layers(problems: list[str]) -> list[str]:
    """Say a problem that many layers have only once: otherwise a wrong file would give an error of a thousand words."""
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(_LAYER.sub(".N.", problem, count=1), []).append(problem)
    return [texts[0] if len(texts) == 1 else f"{text} ({_layers(texts)})" for text, texts in alike.items()]


def _layers(problems: list[str]) -> str:
    """The layers that have these problems, as a phrase."""
    numbers = [int(match[1]) for problem in problems if (match := _LAYER.search(problem))]
    return f"in {len(numbers)} layers: N from {min(numbers)} to {max(numbers)}"


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    finite: bool = False,
) -> None:
    """Write tensors of any strides and on any device as one `.safetensors` file, completely or not at all.

    Only one tensor at a time is copied or converted.

    Args:
        path: the file.
        tensors: its content, by name.
        dtype: of all tensors in the file; by default each keeps its own.
        metadata: texts for the header, which `read_metadata` gives back.
        finite: whether they are a model's weights, which nothing would read again if they were not finite.

    Raises:
        InputError: if `finite`, and a value in the file would be infinite or NaN.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in tensors.items():
        kind = dtype or tensor.dtype
        begin, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[kind], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)  # so that the values are aligned
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            values = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
            if finite and not _all_finite(values):
                raise InputError(
                    f"{name} has values that are infinite, or not a number, in {str(values.dtype)[6:]}",
                    "write earlier weights, from before training diverged, or mend these: no model computes with them",
                )
            file.write(values.view(-1).view(torch.uint8).numpy().data)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a `.safetensors` file.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, or not a `.safetensors` file.
    """
    header, _ = _read_header(path)
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def with_checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Texts for a header, with a SHA-256 of them and of the tensors, which `check_values` compares."""
    return {**metadata, _CHECKSUM: _checksum(metadata, tensors.items())}


def check_values(path: Path) -> None:
    """Raise if the checksum in a file's header is wrong. A file without one, such as an imported one, is accepted.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged.
    """
    stored, metadata = open_weights(path), read_metadata(path)
    promised, said = metadata.pop(_CHECKSUM, None), {name: metadata[name] for name in metadata if name != "format"}
    if promised and promised != _checksum(said, ((name, tensor.read()) for name, tensor in stored.items())):
        raise CheckpointError(f"{described(path)} is damaged: it does not have its checksum", FETCH_AGAIN)


def _checksum(metadata: Mapping[str, str], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The SHA-256 of texts and tensors; only one tensor at a time is copied."""
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    header, start = _read_header(path)
    try:
        return _parsed(header, path, start, path.stat().st_size)
    except ValueError as error:
        raise _damaged(path, "safetensors file", f": {first_line(error, 200)}") from None


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a `.safetensors` file, and the offset at which its values begin."""
    beginning, size = _first_bytes(path), path.stat().st_size
    if beginning.startswith(b"PK"):
        raise CheckpointError(
            f"{path} ({size:,} bytes) is a zip archive, such as torch.save writes, and no safetensors file",
            "give it a name that ends in .bin, or download the .safetensors file again",
        )
    try:
        length = int.from_bytes(beginning[:8], "little")
        if length > min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"its header should have {length:,} bytes")
        with path.open("rb") as file:
            file.seek(8)
            header = parsed_json(file.read(length).decode("utf-8"))
        metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its header is not a table of tensors")
        return header, 8 + length
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "safetensors file", f": {first_line(error, 200)}") from None


def _parsed(header: dict[str, Any], path: Path, start: int, size: int) -> dict[str, StoredTensor]:
    """The tensors that a header describes. ValueError unless their values fill the file from `start` to its end."""
    entries = [_entry(name, entry) for name, entry in header.items() if name != "__metadata__"]
    stored, end = {}, 0
    for (begin, stop), name, dtype, shape in sorted(entries, key=lambda e: e[0]):
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} cannot lie at bytes {begin:,} to {stop:,}: the header contradicts itself")
        stored[name] = StoredTensor(shape, dtype, partial(_read_rows, path, start + begin, dtype, shape[1:]))
        end = stop
    if start + end != size:
        raise ValueError(f"{start + end:,} bytes were expected")
    return stored


def _entry(name: str, entry: Any) -> tuple[tuple[int, int], str, torch.dtype, tuple[int, ...]]:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(stop)]} if (
            dtype in DTYPES
            and name.isprintable()  # half a surrogate is not
            and all(type(length) is int and length >= 0 for length in shape)
            and math.prod(max(1, length) for length in shape) < 2**63  # also for an empty tensor
        ):
            return (begin, stop), name, DTYPES[dtype], tuple(shape)
    raise ValueError(f"its header describes {name!a:.80} as {json.dumps(entry)[:80]}")


def _read_rows(path: Path, offset: int, dtype: torch.dtype, row: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Rows of a tensor whose values begin at `offset`: (stop - start, *row)."""
    row_size = math.prod(row) * dtype.itemsize
    buffer = bytearray((stop - start) * row_size)
    if not buffer:
        return torch.empty(stop - start, *row, dtype=dtype)
    with path.open("rb") as file:
        file.seek(offset + start * row_size)
        if file.readinto(buffer) < len(buffer):
            raise CheckpointError(f"{path} became shorter while it was read", FETCH_AGAIN)
    return torch.frombuffer(buffer, dtype=dtype).view(stop - start, *row)


def _open_shards(path: Path) -> dict[str, StoredTensor]:
    match read_json(path):
        case {"weight_map": dict(shard_of)} if all(_is_file_name(shard) for shard in shard_of.values()):
            pass
        case _:
            raise CheckpointError(f"{path} does not say which file beside it holds which tensor", FETCH_AGAIN)
    shards = sorted(set(shard_of.values()))
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise MissingFileError(
            f"{path.parent} lacks {len(missing)} of {len(shards)} weights files: {listed(missing)}",
            "download or copy them into that folder too",
        )
    tables = {shard: open_weights(path.parent / shard) for shard in shards}
    astray = [f"{name} is not in {shard}" for name, shard in shard_of.items() if name not in tables[shard]]
    astray += [
        f"{name} is in {shard}, which it does not say"
        for shard, table in tables.items()
        for name in table
        if shard_of.get(name) != shard
    ]
    if astray:
        raise CheckpointError(f"{path} contradicts the files beside it: {listed(astray, '; ')}", FETCH_AGAIN)
    return {name: tables[shard][name] for name, shard in shard_of.items()}


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value == Path(value).name and value.endswith((".safetensors", ".bin"))


def load_torch_file(path: Path) -> Any:
    """The object that `torch.save` wrote, its tensors on the CPU.

    In a zip archive, torch's format since 1.6, the values of the tensors are not read here: `stored_tensors` reads them
    from the file.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, or asks to run code, which is never done.
    """
    _first_bytes(path)
    try:
        with warnings.catch_warnings(), FakeTensorMode() if _values_lie_open(path) else nullcontext():
            warnings.simplefilter("ignore")  # torch comments on how a file was written, which does not matter here
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # torch, zipfile and the unpickler raise many kinds
        if asked_for := _code_in(path):
            raise CheckpointError(
                f"{path} is not a safe checkpoint: to read it, one would have to run {asked_for}",
                "nothing of it was run; ask for a .safetensors file, which cannot hold code",
            ) from None
        raise _damaged(path, "torch checkpoint") from None  # torch's own error text advises to run the code


def _values_lie_open(path: Path) -> bool:
    """Whether the file is a zip archive in which nothing is compressed, as torch writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _code_in(path: Path) -> str | None:
    """The first name of code that reading a checkpoint would run, if any is found. Nothing of it is run."""
    names: list[str] = []
    # Errors end the search: torch has refused the file, so it may be anything.
    with suppress(Exception), _pickles_of(path) as file:
        while True:  # torch's old format is several pickles, one after another
            names.extend(_imported(file))
    return next((name for name in names if not _HARMLESS.fullmatch(name)), None)


@contextmanager
def _pickles_of(path: Path) -> Iterator[IO[bytes]]:
    """The pickles of a file that torch wrote: an entry of the zip archive, or the file itself."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(entry) as file:
            yield file


def _imported(file: IO[bytes]) -> Iterator[str]:
    """The names that one pickle would import, found in its operations without running them."""
    texts: list[str] = []  # the strings put on the stack, in order: the last two are what STACK_GLOBAL takes
    memo: dict[object, str] = {}
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif operation.name.endswith("PUT"):
            memo[argument] = texts[-1] if texts else ""
        elif operation.name.endswith("GET"):
            texts.append(memo[argument])
        elif isinstance(argument, str):
            texts.append(argument)


def stored_tensors(state: Any, path: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict in memory, as `StoredTensor`s.

    Raises:
        CheckpointError: if it is no dictionary of plain tensors.
    """
    if not isinstance(state, dict):
        kind = "Tensor" if isinstance(state, Tensor) else type(state).__name__
        raise CheckpointError(f"{path} holds a {kind}, and no weights by name", FETCH_AGAIN)
    strangers = [
        str(name)
        for name, tensor in state.items()
        if not (
            isinstance(name, str)
            and isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and not tensor.is_neg()  # a view whose values are the stored ones with the other sign
            and tensor.device.type == "cpu"  # not "meta": those have no values at all
        )
    ]
    if strangers:
        raise CheckpointError(
            f"{path} holds more than plain tensors: {listed(strangers)}",
            "save the model's state_dict() alone, or name a checkpoint of nanoGPT",
        )
    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, _reader(tensor, path)) for name, tensor in state.items()
    }


def _reader(tensor: Tensor, path: Path) -> Callable[[int, int], Tensor]:
    """A function that reads rows of a tensor: from memory, or from the file if its values were not read."""
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)  # of the storage in the file, in bytes
    if offset is None:
        return lambda start, stop: tensor[start:stop]
    if tensor.is_contiguous():
        first = offset + tensor.storage_offset() * tensor.dtype.itemsize
        return partial(_read_rows, path, first, tensor.dtype, tuple(tensor.shape[1:]))
    return partial(_read_strided, path, offset, tensor)


def _read_strided(path: Path, offset: int, tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a tensor that is a view, such as a transposed one; its storage is read up to the view's last value."""
    size = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    values = _read_rows(path, offset, tensor.dtype, (), 0, int(tensor.storage_offset() + size))
    return values.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())[start:stop]


def _first_bytes(path: Path) -> bytes:
    """The first bytes of a weights file. Raises the errors of `first_bytes`, and CheckpointError on a line of text."""
    beginning, size = first_bytes(path), path.stat().st_size
    if 8 < size == len(beginning) and beginning.isascii() and beginning.decode("ascii").strip().isprintable():
        raise CheckpointError(
            f"{described(path)} holds a line of text, {beginning.decode('ascii').strip()!r}: a server's answer was "
            "saved instead of the file",
            "download it again, and read what that line says",
        )
    return beginning


def _damaged(path: Path, kind: str, reason: str = "") -> CheckpointError:
    return CheckpointError(f"{described(path)} is damaged or no {kind}{reason}", FETCH_AGAIN)
