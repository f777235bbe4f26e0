"""Text -> token files -> batches.

A token file is a corpus's split as numbers, ready to be mapped into memory:

    8 bytes   the magic "MGPTTOKS"
    4 bytes   length of the header, little-endian
    header    JSON: dtype, vocabulary size, number of tokens, the tokenizer's fingerprint
    padding   to a multiple of 64 bytes
    tokens    uint16 if the vocabulary fits, else uint32

Batch i of a run is a pure function of (seed, i): no loader to save, nothing to lose when a run is resumed.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import DataConfig
from minigpt.data.corpora import Corpus
from minigpt.errors import DataError, MissingFileError
from minigpt.files import atomic_write
from minigpt.tokenizers import Tokenizer

MAGIC = b"MGPTTOKS"
ALIGNMENT = 64
IGNORED = -100  # a target that is no part of the loss

Ids = npt.NDArray[np.integer]  # (number of tokens,)


@dataclass(frozen=True)
class TokenFile:
    """One split, mapped from disk.

    Attributes:
        path: the file.
        ids: uint16 or uint32 (number of tokens,), read only.
        vocab_size: every id lies below it.
        fingerprint: of the tokenizer that made the ids.
    """

    path: Path
    ids: npt.NDArray[np.unsignedinteger]
    vocab_size: int
    fingerprint: str


def write_tokens(path: Path, ids: Ids, vocab_size: int, fingerprint: str) -> None:
    """Write ids (number of tokens,) as a token file, whole or not at all.

    Raises:
        DataError: if an id is outside the vocabulary; it would wrap around silently otherwise.
    """
    _check_ids(path, ids, vocab_size)
    dtype = np.dtype("<u2" if vocab_size < 2**16 else "<u4")
    header = json.dumps(
        {"dtype": dtype.str, "vocab_size": vocab_size, "num_tokens": len(ids), "fingerprint": fingerprint}
    ).encode("utf-8")
    with atomic_write(path) as file:
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
        header = json.loads(header_bytes)
        dtype, vocab_size, num_tokens = np.dtype(header["dtype"]), header["vocab_size"], header["num_tokens"]
        fingerprint = header["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not a token file, or its header is damaged", again) from None
    if dtype.str not in ("<u2", "<u4"):
        raise DataError(f"{path} says its tokens are {dtype}; token files hold uint16 or uint32", again)
    offset = len(start) + len(header_bytes)
    offset += -offset % ALIGNMENT
    size, expected = path.stat().st_size, offset + num_tokens * dtype.itemsize
    if size != expected:
        raise DataError(f"{path} has {size:,} bytes where its header promises {expected:,}", again)
    ids = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(num_tokens,))
    _check_ids(path, ids, vocab_size)
    return TokenFile(path, ids, vocab_size, fingerprint)


def _check_ids(path: Path, ids: Ids, vocab_size: int) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        position = int(np.argmax((ids < 0) | (ids >= vocab_size)))
        raise DataError(
            f"{path}: token id {ids[position]} at position {position} is outside a vocabulary of {vocab_size}",
            "the text was encoded with another tokenizer: delete the file, and it is prepared again",
        )


def prepare(corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, folder: Path) -> tuple[TokenFile, TokenFile]:
    """The (training, validation) splits of a corpus; the last `val_fraction` of its characters is for validation.

    The files land in `folder/<corpus>-<key>/{train,val}.bin` and are taken from there the next time. The key covers
    text, tokenizer and split: files of another text, or of an older tokenizer, can never be taken for these.

    Raises:
        DataError: if files that lie there are damaged.
    """
    key = hashlib.sha256(corpus.text.encode("utf-8"))
    key.update(f"{tokenizer.fingerprint()} {config.val_fraction}".encode())
    home = folder / f"{corpus.name}-{key.hexdigest()[:12]}"
    border = split_at(corpus, config)
    for name, text in (("train", corpus.text[:border]), ("val", corpus.text[border:])):
        if not (home / f"{name}.bin").is_file():
            ids = tokenizer.encode_array(text)
            write_tokens(home / f"{name}.bin", ids, tokenizer.vocab_size, tokenizer.fingerprint())
    return open_tokens(home / "train.bin"), open_tokens(home / "val.bin")


def split_at(corpus: Corpus, config: DataConfig) -> int:
    """The character of the corpus at which validation begins."""
    return int(len(corpus.text) * (1 - config.val_fraction))


def check_length(tokens: TokenFile, block_size: int) -> None:
    """Refuse a split from which not one window can be cut.

    Raises:
        DataError: with the number of tokens needed and found.
    """
    if len(tokens.ids) < block_size + 1:
        raise DataError(
            f"{tokens.path.stem} split: {len(tokens.ids)} tokens, but block_size = {block_size} needs {block_size + 1}",
            f"use --model.block_size {max(1, (len(tokens.ids) - 1) // 2)}, a longer text, or another --val-fraction",
        )


def random_batch(tokens: TokenFile, batch_size: int, block_size: int, seed: int, index: int) -> tuple[Tensor, Tensor]:
    """Batch `index` of the run `seed`: inputs and targets, int64 (B, T), targets one token ahead.

    The split is read epoch by epoch: cut into windows side by side, at a new offset each time, and shuffled. Windows
    drawn independently would leave 37 % of the text unread after as many tokens as it has. A batch may reach over the
    border of two epochs.
    """
    num_windows = max(1, (len(tokens.ids) - block_size) // block_size)  # one less than fits: room for the offset
    epochs, places = np.divmod(np.arange(index * batch_size, (index + 1) * batch_size), num_windows)
    starts = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order, offset = _epoch(seed, int(epoch), num_windows, len(tokens.ids) - num_windows * block_size)
        here = epochs == epoch
        starts[here] = offset + order[places[here]] * block_size
    windows = tokens.ids[starts[:, None] + np.arange(block_size + 1)]  # (B, T + 1)
    batch = torch.from_numpy(windows.astype(np.int64))
    return batch[:, :-1], batch[:, 1:]


@lru_cache(maxsize=2)  # a batch needs the epoch it is in, and at a border the next
def _epoch(seed: int, epoch: int, num_windows: int, num_offsets: int) -> tuple[npt.NDArray[np.int64], int]:
    """The order of the windows in an epoch, and where the first begins.

    The generator is counter-based (Philox; Salmon et al., 2011) with (seed, epoch) as its key: any epoch can be had
    without those before it.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    return generator.permutation(num_windows), int(generator.integers(num_offsets))


def windows_in_order(ids: Ids, batch_size: int, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All ids once, in order: windows side by side, so that every token but the first is a target once.

    Yields:
        Inputs and targets, int64 (B, T). The last, shorter window is filled up with targets of -100.
    """
    num_targets = len(ids) - 1
    num_windows = -(-num_targets // block_size)
    for first in range(0, num_windows, batch_size):
        count = min(batch_size, num_windows - first)
        piece = ids[first * block_size : (first + count) * block_size + 1].astype(np.int64)
        missing = count * block_size + 1 - len(piece)
        x = np.pad(piece[:-1], (0, missing))
        y = np.pad(piece[1:], (0, missing), constant_values=IGNORED)
        yield torch.from_numpy(x.reshape(count, block_size)), torch.from_numpy(y.reshape(count, block_size))
