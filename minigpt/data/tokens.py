"""Text -> token files -> batches.

A token file holds the ids of one split of a corpus, and can be mapped into memory:

    8 bytes   the magic "MGPTTOKS"
    4 bytes   length of the header, little-endian
    header    JSON: dtype, vocabulary size, number of tokens, the tokenizer's fingerprint
    padding   to a multiple of 64 bytes
    tokens    uint16 if the vocabulary fits, else uint32

Window i of a run is a pure function of (seed, i), so a checkpoint need not hold the state of a loader.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import DataConfig
from minigpt.data.corpora import Corpus
from minigpt.data.documents import generator
from minigpt.errors import DataError, MissingFileError, brief, counted, named
from minigpt.fields import Form, check_ids
from minigpt.system.downloads import cache_dir
from minigpt.system.files import atomic_write, parsed_json
from minigpt.tokenizers import Tokenizer

MAGIC = b"MGPTTOKS"
ALIGNMENT = 64
IGNORED = -100  # a target that is no part of the loss
TOKENS_PER_BATCH = 8192  # in evaluation: it limits the memory of the logits, and is large enough to be fast

_KINDS = ("<u2", "<u4")  # of numbers in a token file, as NumPy writes it: uint16 and uint32

# Token ids of a text, (number of tokens,).
Ids = Annotated[
    npt.NDArray[np.integer],
    Form(
        "whole numbers in one dimension: np.array(tokenizer.encode(text))",
        lambda ids: ids.ndim == 1 and issubclass(ids.dtype.type, np.integer),
    ),
]


@dataclass(frozen=True)
class TokenFile:
    """One split, mapped into memory.

    Attributes:
        path: the file.
        ids: uint16 or uint32 (number of tokens,), read only.
        vocab_size: every id is below it.
        fingerprint: of the tokenizer that made the ids.
    """

    path: Path
    ids: npt.NDArray[np.unsignedinteger]
    vocab_size: int
    fingerprint: str


def write_tokens(path: Path, ids: Ids, vocab_size: int, fingerprint: str) -> None:
    """Write ids (number of tokens,) as a token file, completely or not at all.

    Raises:
        DataError: if an id is outside the vocabulary; otherwise it would silently become another id.
    """
    _check_ids(path, ids, vocab_size)
    dtype = _dtype(vocab_size)
    header = json.dumps(
        {"dtype": dtype.str, "vocab_size": vocab_size, "num_tokens": len(ids), "fingerprint": fingerprint}
    ).encode("utf-8")
    with atomic_write(path, path.parent.parent) as file:  # the file's folder is made here, and must not be a link
        file.write(MAGIC + len(header).to_bytes(4, "little") + header)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        file.write(ids.astype(dtype).tobytes())


def open_tokens(path: Path) -> TokenFile:
    """Map a token file into memory.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is no token file, is truncated, or holds an id outside its vocabulary.
    """
    again = "delete it: training prepares it again"
    if not path.is_file():
        raise MissingFileError(f"no token file {path}", "training prepares it from the corpus")
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + 4)
        header_bytes = file.read(int.from_bytes(start[len(MAGIC) :], "little")) if start.startswith(MAGIC) else b""
    try:
        header = parsed_json(header_bytes)
    except (ValueError, RecursionError):
        header = None
    match header:
        case {
            "dtype": str(kind),
            "vocab_size": int(vocab_size),
            "num_tokens": int(num_tokens),
            "fingerprint": str(name),
        }:
            fingerprint = name
        case _:
            raise DataError(f"{path} is not a token file, or its header is damaged", again)
    if kind not in _KINDS:
        raise DataError(f"{path} says its tokens are {brief(kind)}; they are one of {', '.join(_KINDS)}", again)
    dtype = np.dtype(kind)
    offset = len(start) + len(header_bytes)
    offset += -offset % ALIGNMENT
    size, expected = path.stat().st_size, offset + num_tokens * dtype.itemsize
    if size != expected or num_tokens < 1:
        raise DataError(f"{path} has {size:,} bytes where its header promises {expected:,}", again)
    ids = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(num_tokens,))
    _check_ids(path, ids, vocab_size)
    return TokenFile(path, ids, vocab_size, fingerprint)


def _check_ids(path: Path, ids: Ids, vocab_size: int) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:  # fast; only then find which one
        again = "the text was encoded with another tokenizer: delete the file, and it is prepared again"
        check_ids(map(int, ids), vocab_size, str(path), DataError, again)


def prepare(
    corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, block_size: int, folder: Path
) -> tuple[TokenFile, TokenFile]:
    """The (training, validation) splits of a corpus; see `split_at`.

    The files are written to `folder/<corpus>-<key>/{train,val}.bin` and read from there the next time. The key depends
    on text, tokenizer and split, so the files of another text or tokenizer are never confused with these. If that
    folder cannot be written, they go to the folder of downloads. If that one cannot be written either, the ids stay in
    memory, and the text is encoded again the next time.

    Raises:
        DataError: if a split is shorter than one window of `block_size` (then nothing has been written), or if existing
            files are damaged or were made by another tokenizer.
    """
    key = hashlib.sha256(corpus.text.encode("utf-8"))
    key.update(f"{tokenizer.fingerprint()} {config.val_fraction}".encode())
    key.update(f" {corpus.val_start}".encode() if corpus.val_start is not None else b"")
    homes = [where / f"{corpus.name}-{key.hexdigest()[:12]}" for where in (folder, cache_dir() / "tokens")]
    border = split_at(corpus, config)
    texts = {"train": corpus.text[:border], "val": corpus.text[border:]}
    home = next((home for home in homes if all(_can_be_read(home / f"{name}.bin") for name in texts)), None)
    if home is None:
        ids = {name: tokenizer.encode_array(text) for name, text in texts.items()}
        shorter = min(ids, key=lambda name: len(ids[name]))  # which decides what block_size is small enough
        check_length(shorter, len(ids[shorter]), block_size, config)
        home = _written(homes, ids, tokenizer)
        if home is None:
            kind, about = _dtype(tokenizer.vocab_size), (tokenizer.vocab_size, tokenizer.fingerprint())
            train, val = (TokenFile(Path(name), ids[name].astype(kind), *about) for name in texts)
            return train, val
    train, val = (open_tokens(home / f"{name}.bin") for name in texts)
    for tokens in sorted((train, val), key=lambda split: len(split.ids)):  # the shorter one first, as above
        check_length(tokens.path.stem, len(tokens.ids), block_size, config)
        if (tokens.vocab_size, tokens.fingerprint) != (tokenizer.vocab_size, tokenizer.fingerprint()):
            raise DataError(
                f"{tokens.path} was made by another tokenizer, with a vocabulary of {tokens.vocab_size}",
                "delete its folder: training prepares it again",
            )
    return train, val


def _can_be_read(path: Path) -> bool:
    """Whether this is a file, and no other user has closed it, or its folder."""
    return os.path.isfile(path) and os.access(path, os.R_OK)


def _written(homes: list[Path], ids: Mapping[str, Ids], tokenizer: Tokenizer) -> Path | None:
    """Write the splits to the first of the folders that can be written; returns it, or None."""
    for home in homes:
        with suppress(OSError):
            for name, tokens in ids.items():
                write_tokens(home / f"{name}.bin", tokens, tokenizer.vocab_size, tokenizer.fingerprint())
            return home
    return None


def _dtype(vocab_size: int) -> "np.dtype[np.unsignedinteger]":
    """The number format of a token file."""
    return np.dtype("<u2" if vocab_size < 2**16 else "<u4")


def split_at(corpus: Corpus, config: DataConfig) -> int:
    """The character at which validation begins: of its own text, or of the last `val_fraction` of a corpus."""
    return int(len(corpus.text) * (1 - config.val_fraction)) if corpus.val_start is None else corpus.val_start


def check_length(split: str, num_tokens: int, block_size: int, config: DataConfig) -> None:
    """Check that at least one window can be cut from a split.

    Raises:
        DataError: if not; it says how many tokens are needed, and how many there are.
    """
    if num_tokens < block_size + 1:
        ways = [named("block_size", (num_tokens - 1) // 2)] if num_tokens > 2 else []
        ways += [f"a longer {named('val_data')}" if config.val_data and split == "val" else "a longer text"]
        ways += [] if config.val_data else [f"another {named('val_fraction')}"]
        needed = f"{named('block_size', block_size)} needs {block_size + 1}"
        raise DataError(f"{split} split: {counted(num_tokens, 'token')}, but {needed}", f"use {', or '.join(ways)}")


def random_batch(tokens: TokenFile, batch_size: int, block_size: int, seed: int, first: int) -> tuple[Tensor, Tensor]:
    """Windows `first` to `first + B - 1` of the run `seed`: inputs and targets, int64 (B, T), targets one token ahead.

    In each epoch, the split is cut into adjacent windows, beginning at a random offset, and these are shuffled. If
    windows were drawn independently, 37 % of the text would be unread after one epoch's number of tokens. A batch may
    contain windows of two epochs, and the grouping into batches does not change the windows.
    """
    num_windows = windows_per_epoch(tokens, block_size)
    epochs, places = np.divmod(np.arange(first, first + batch_size), num_windows)
    starts = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order, offset = _epoch(seed, int(epoch), num_windows, len(tokens.ids) - num_windows * block_size)
        here = epochs == epoch
        starts[here] = offset + order[places[here]] * block_size
    windows = tokens.ids[starts[:, None] + np.arange(block_size + 1)]  # (B, T + 1)
    batch = torch.from_numpy(windows.astype(np.int64))
    return batch[:, :-1], batch[:, 1:]


def windows_per_epoch(tokens: TokenFile, block_size: int) -> int:
    """Number of windows in an epoch of `random_batch`: one less than fits, so that there is room for the offset."""
    return max(1, (len(tokens.ids) - block_size) // block_size)


def rows_at_once(block_size: int) -> int:
    """Number of windows in a batch of an evaluation."""
    return max(1, TOKENS_PER_BATCH // block_size)


@lru_cache(maxsize=2)  # a batch needs its own epoch, and at an epoch's end the next one too
def _epoch(seed: int, epoch: int, num_windows: int, num_offsets: int) -> tuple[npt.NDArray[np.int64], int]:
    """The order of the windows in an epoch, and the offset of the first."""
    chance = generator(seed, stream=epoch)  # so any epoch can be drawn without those before it
    return chance.permutation(num_windows), int(chance.integers(num_offsets))


def windows_in_order(
    ids: Ids, batch_size: int, block_size: int, stride: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """All ids once, in order, so that every token except the first is a target exactly once.

    Args:
        ids: the text.
        batch_size: windows a batch, B.
        block_size: tokens a window, T.
        stride: from the start of one window to the start of the next. With T, the default, windows do not overlap, and
            a token is predicted from 1 to T tokens before it. With a smaller stride they overlap, and only the last
            `stride` targets of each window count, so that all tokens, except those at the beginning of the text, are
            predicted from at least T - stride + 1: more work, a lower loss.

    Yields:
        Inputs and targets, int64 (B, T). A target that does not count, or is beyond the end, is -100.
    """
    stride = stride or block_size
    num_windows = 1 + max(0, -(-(len(ids) - 1 - block_size) // stride))
    for first in range(0, num_windows, batch_size):
        starts = np.arange(first, min(first + batch_size, num_windows)) * stride
        places = starts[:, None] + np.arange(block_size + 1)  # (B, T + 1)
        windows = ids[np.minimum(places, len(ids) - 1)].astype(np.int64)
        counted_before = (starts[:, None] > 0) & (np.arange(block_size) < block_size - stride)
        y = np.where(counted_before | (places[:, 1:] >= len(ids)), IGNORED, windows[:, 1:])
        yield torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(y)
