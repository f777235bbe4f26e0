"""The KV-cache: what attention has computed for earlier tokens, and need not compute again.

A decoder gives the model one new token at a time. Its query needs the keys and values of every earlier token, and those
never change, so they are kept. The cache belongs to the caller: a model holds nothing of it, and `None` in its place
means "no memory", as in training.

The layout is one rule: **column = absolute position**. Rows are left-aligned and each row has its own length, so

    row 0   t0 t1 t2 t3 t4  .  .  .      length 5
    row 1   t0 t1  .  .  .  .  .  .      length 2      "." is dead: never attended to, overwritten when reached

prompts of several lengths share a batch, and no token sees padding; the last tokens of a row are taken back by
shortening it. GPT-2's positions are learned and absolute, and enter before the first layer: a cache can grow, shrink
and be copied between rows, but it can never slide.

B batch rows, T new tokens, S columns in use, H heads, D head size.
"""

import reprlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from minigpt.config import GPTConfig, Size
from minigpt.errors import InputError, counted, named
from minigpt.fields import Bounds, Form, check_place, checked

_MAKE_ONE = "make one for these rows and this model: KVCache(model.config, batch_size=len(idx))"


def _is_here(device: torch.device | str) -> bool:
    """Whether a tensor can live there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter without CUDA
        return False
    return True


Device = Annotated[torch.device | str, Form('a device that is here, such as "cpu" or "cuda:1"', _is_here)]
_Rows = Annotated[int, Bounds(1, 2**24, below="rows hold nothing")]
_Tokens = Annotated[int, Bounds(0, 2**24)]


def _check_numbers(numbers: Tensor, name: str, count: int | None = None) -> None:
    """See that a tensor holds as many whole numbers as wanted; by default, at least one. Raises InputError."""
    if numbers.dtype != torch.int64 or numbers.ndim != 1 or len(numbers) != (count or max(1, len(numbers))):
        found = f"{str(numbers.dtype).removeprefix('torch.')} {tuple(numbers.shape)}"
        raise InputError(f"{named(name)} is a tensor {found}", f"give int64 ({count or 'one or more'},)")


@runtime_checkable
class Cache(Protocol):
    """What a model asks of a cache: a `KVCache`, or anything else that knows where the new tokens stand."""

    def positions(self, num_new: int, rows: int | None = None, block_size: int | None = None) -> Tensor:
        """The positions of the next tokens: int64 (T,) if all rows agree, else (B, T).

        The model says how many rows it reads, and how many positions it has.
        """

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take a layer's new keys and values (B, H, T, D), give all that a query may look back on (B, H, S, D)."""

    def advance(self, num_new: int) -> None:
        """Every layer has written these tokens."""


class Column(NamedTuple):
    """Where one more token of every row stands.

    Attributes:
        positions: a number if all rows agree, else int64 (B,).
        places: for each layer a view of the cache, to write into: if all rows agree, of the new column alone,
            (B, 2, H, 1, D); else of everything, (2 * B * H * max_length, D), to be indexed by `flat`.
        seen: keys, then values, for each layer: 2 n_layer of (B, H, S, D).
        flat: if rows differ, where in `places` the keys and values of each head go: int64 (B, 2, H).
        mask: what is added to the scores if rows differ, 0 or -inf: (B, 1, 1, S).
    """

    positions: int | Tensor
    places: Sequence[Tensor]
    seen: Sequence[Tensor]
    flat: Tensor | None = None
    mask: Tensor | None = None


class KVCache:
    """Keys and values of every layer, preallocated.

    Args:
        config: the model's shape.
        batch_size: number of rows B.
        max_length: columns per row; at most `config.block_size`, which is the default.
        dtype: of the stored keys and values; use the model's, or a smaller one to save memory.
        device: where they live; use the model's.

    Attributes:
        max_length: columns per row.
        uniform: the number of valid columns while all rows agree, else None. It is known on the host, so nothing waits
            for a device.

    Raises:
        InputError: if `max_length` does not lie in 1 .. `block_size`, or `batch_size` is below 1; or one is no number.
    """

    @checked
    def __init__(
        self,
        config: GPTConfig,
        batch_size: _Rows,
        max_length: Size | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
    ) -> None:
        max_length = config.block_size if max_length is None else max_length
        if max_length > config.block_size:
            raise InputError(
                f"a cache of {max_length} columns does not fit a block_size of {config.block_size}",
                f"choose max_length from 1 to {config.block_size}: there is no position beyond it",
            )
        # Zeros, not empty: a masked column has weight 0, and 0 * NaN of uninitialised memory would be NaN.
        shape = (config.n_layer, 2, batch_size, config.n_head, max_length, config.n_embd // config.n_head)
        self._set(torch.zeros(shape, dtype=dtype, device=device))
        self.max_length = max_length
        self.uniform: int | None = 0
        self._length = torch.zeros(batch_size, dtype=torch.int64, device=device)  # read it where rows differ, only
        self._longest = 0  # the largest length as a Python int, so that nothing waits for a device
        self._columns = torch.arange(max_length, device=device)
        self._hidden, self._shown = self._kv.new_tensor([-torch.inf, 0]).unbind()

    def __repr__(self) -> str:
        layers, _, _, heads, _, size = self._kv.shape
        lengths = self.uniform if self.uniform is not None else reprlib.repr(self.length.tolist())
        dtype = str(self._kv.dtype).removeprefix("torch.")
        return (
            f"KVCache({counted(self.batch_size, 'row')}, {lengths} of {self.max_length} columns in use, "
            f"{counted(layers, 'layer')}, {counted(heads, 'head')} of {size}, {dtype} on {self._kv.device}, "
            f"{self._kv.nbytes:,} bytes)"
        )

    @property
    def kv(self) -> Tensor:
        """All keys and values, in this order in memory: (n_layer, 2, B, H, max_length, D)."""
        return self._kv

    @property
    def k(self) -> Tensor:
        """All keys: (n_layer, B, H, max_length, D)."""
        return self._kv[:, 0]

    @property
    def v(self) -> Tensor:
        """All values: (n_layer, B, H, max_length, D)."""
        return self._kv[:, 1]

    @property
    def length(self) -> Tensor:
        """The number of valid columns of each row: int64 (B,)."""
        return self._length if self.uniform is None else torch.full_like(self._length, self.uniform)

    @property
    def batch_size(self) -> int:
        """Number of rows B."""
        return self._kv.size(2)

    @property
    def longest(self) -> int:
        """The length of the longest row, known on the host."""
        return self._longest

    def positions(self, num_new: int, rows: int | None = None, block_size: int | None = None) -> Tensor:
        """Absolute positions of the next `num_new` tokens: int64 (T,) if all rows agree, else (B, T).

        Args:
            num_new: tokens of each row.
            rows: how many rows of them there are; None if the caller knows that there are B.
            block_size: the model's, which may be less than that of the model that the cache was made for.

        Raises:
            InputError: if the number of rows is another, or they do not fit; nothing has been written then.
        """
        if rows not in (None, self.batch_size):
            raise InputError(f"{self!r} does not fit {counted(rows, 'row')}", _MAKE_ONE)
        self.check_room(num_new, block_size)
        if self.uniform is not None:
            return torch.arange(self.uniform, self.uniform + num_new, device=self._kv.device)  # (T,)
        return self._length[:, None] + torch.arange(num_new, device=self._kv.device)  # (B, T)

    def check_room(self, num_new: int, block_size: int | None) -> None:
        """Refuse tokens that do not fit the cache, or a model's block. Raises InputError."""
        most = min(self.max_length, block_size or self.max_length)
        if self._longest + num_new > most:
            whose = f"cache's {most} columns" if most == self.max_length else f"model's {most} positions"
            raise InputError(
                f"{num_new} more tokens do not fit: {self._longest} of the {whose} are taken",
                "make a cache with a larger max_length (at most the model's block_size), or feed fewer tokens",
            )

    def check_fits(self, layer: int, rows: int, heads: int, size: int) -> None:
        """Refuse a layer, or keys and values of so many rows and heads of a size, that have no place here.

        Raises:
            InputError: if the cache was made for other rows, or for another model.
        """
        layers, _, own_rows, own_heads, _, own_size = self._kv.shape
        if layer >= layers or (rows, heads, size) != (own_rows, own_heads, own_size):
            raise InputError(
                f"{self!r} does not fit {rows} rows and {heads} heads of {size} in layer {layer}", _MAKE_ONE
            )

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, H, T, D) of one layer; return all of that layer's, (B, H, S, D).

        `positions` are those that `positions()` gave. The lengths move only with `advance`, once every layer has
        written, so that all layers of one forward pass see the same past.

        Raises:
            InputError: if the cache was made for other rows, or for another model.
        """
        rows, heads, num_new, size = k.shape
        self.check_fits(layer, rows, heads, size)
        stop = self._longest + num_new
        own_k, own_v = self._kv[layer, 0], self._kv[layer, 1]  # 2 x (B, H, max_length, D)
        if self.uniform is not None:
            own_k[:, :, self.uniform : stop] = k
            own_v[:, :, self.uniform : stop] = v
        else:
            row = torch.arange(rows, device=k.device)[:, None]  # (B, 1), against positions (B, T)
            # (B, max_length, H, D) <- (B, T, H, D)
            own_k.transpose(1, 2)[row, positions] = k.transpose(1, 2).to(own_k.dtype)
            own_v.transpose(1, 2)[row, positions] = v.transpose(1, 2).to(own_v.dtype)
        return own_k[:, :, :stop].to(k.dtype), own_v[:, :, :stop].to(v.dtype)  # (B, H, S, D)

    def advance(self, num_new: int) -> None:
        """Count `num_new` columns of every row as valid."""
        self._longest += num_new
        if self.uniform is None:
            self._length += num_new
        else:
            self.uniform += num_new

    def _set(self, kv: Tensor) -> None:
        """Keep these keys and values (n_layer, 2, B, H, max_length, D), and what each step needs of them."""
        self._kv = kv
        self._by_layer = kv.flatten(0, 1)  # keys, then values, for each layer: (2 n_layer, B, H, max_length, D)
        self._by_row = kv.transpose(1, 2)  # (n_layer, B, 2, H, max_length, D)
        _, _, rows, heads, columns, _ = kv.shape
        # Of all columns of a layer, in the order of memory, the numbers of those at position 0: (B, 2, H).
        first = torch.arange(0, 2 * rows * heads * columns, columns, device=kv.device)
        self._first_columns = first.view(2, rows, heads).transpose(0, 1)

    def column(self, block_size: int) -> Column:
        """The next column of every row, for `put` to fill; `advance` counts it. Raises as `positions`, of one token."""
        self.check_room(1, block_size)
        seen = self._by_layer.narrow(-2, 0, self._longest + 1).unbind()  # 2 n_layer x (B, H, S, D)
        if self.uniform is not None:
            return Column(self.uniform, self._by_row.narrow(-2, self.uniform, 1).unbind(), seen)
        unseen = self._columns[: self._longest + 1] > self._length[:, None]  # (B, S)
        mask = torch.where(unseen, self._hidden, self._shown)[:, None, None]  # (B, 1, 1, S)
        # One index is several times faster than one for each dimension.
        flat = self._first_columns + self._length[:, None, None]  # (B, 2, H)
        return Column(self._length, self._kv.flatten(1, 4).unbind(), seen, flat, mask)

    def put(self, layer: int, column: Column, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values (B, 2, H, 1, D) of one token.

        Returns:
            All that it looks back on, itself included: keys and values, 2 x (B, H, S, D).
        """
        if column.flat is None:
            column.places[layer].copy_(kv)
        else:
            column.places[layer][column.flat] = kv.squeeze(3)  # (B, 2, H, D)
        return column.seen[2 * layer], column.seen[2 * layer + 1]

    @checked
    def rollback(self, num_tokens: _Tokens | Tensor) -> None:
        """Take back the last `num_tokens` of each row: a number, or int64 (B,). Nothing is moved or cleared.

        This is also how prompts of several lengths are read at once: pad them on the right, then take the padding back.

        Raises:
            InputError: if a row would become shorter than empty, or there are not as many whole numbers as rows.
        """
        if isinstance(num_tokens, Tensor):
            _check_numbers(num_tokens, "num_tokens", self.batch_size)
        if isinstance(num_tokens, int) and self.uniform is not None:
            lengths = [self.uniform - num_tokens]
        else:
            lengths = (self.length - num_tokens).tolist()
        if min(lengths) < 0 or max(lengths) > self._longest:
            raise InputError(
                f"cannot take back {num_tokens} tokens from rows of {self.length.tolist()}",
                "roll back between 0 and the row's length",
            )
        self._set_lengths(lengths)

    @checked
    def gather(self, rows: Tensor, first_column: _Tokens = 0) -> None:
        """Replace row i by a copy of row `rows[i]`: int64 (B',). The number of rows may change.

        With as many rows as before, the columns before `first_column` stay as they are. Beams only replace beams of
        their own prompt, whose columns are equal, so there it may be the length of the shortest prompt.

        Raises:
            InputError: if `rows` holds none, or one that is not there.
        """
        _check_numbers(rows, "rows")
        parents = rows.tolist()
        for parent in (min(parents), max(parents)):
            check_place(parent, self.batch_size, "row", "the cache has")
        if len(rows) == self.batch_size:
            self.copy_rows(parents, first_column)
            return
        self._set(self._kv.index_select(2, rows))
        self._length = self._length[rows]
        if self.uniform is None:
            self._set_lengths(self._length.tolist())

    def copy_rows(self, parents: Sequence[int], first_column: int = 0) -> None:
        """As `gather` of as many rows as before, for whoever knows that they are there.

        It copies row by row, which is several times faster on a CPU than to index all at once; and most rows stay.
        """
        own = self._kv.narrow(-2, first_column, self._longest - first_column)
        each = own.unbind(2)  # B x (n_layer, 2, H, columns, D)
        moved = {row: parent for row, parent in enumerate(parents) if row != parent}
        # What is written over, and read by another row, is copied before.
        sources = [each[parent].clone() if parent in moved else each[parent] for parent in moved.values()]
        for row, source in zip(moved, sources, strict=True):
            each[row].copy_(source)
        if self.uniform is None:
            lengths = self._length.tolist()
            self._set_lengths([lengths[parent] for parent in parents])

    @checked
    def expand(self, num_copies: _Rows) -> None:
        """Repeat each row `num_copies` times, copies side by side: prefill a prompt once, then fan out."""
        rows = torch.arange(self.batch_size, device=self._kv.device)
        self.gather(rows.repeat_interleave(num_copies))

    @checked
    def replace(self, row: int, other: "KVCache", other_row: int) -> None:
        """Row `row` becomes a copy of row `other_row` of another cache of the same model.

        Raises:
            InputError: if there is no such row, the cache is another model's, or the row is longer than this cache.
        """
        for one, place in ((self, row), (other, other_row)):
            check_place(place, one.batch_size, "row", "the cache has")
        shapes = [(*kv.shape[:2], kv.size(3), kv.size(5)) for kv in (self._kv, other._kv)]
        if shapes[0] != shapes[1] or other.longest > self.max_length:
            raise InputError(f"a row of {other!r} does not fit {self!r}", _MAKE_ONE)
        lengths = self.length.tolist()
        lengths[row] = length = other.length.tolist()[other_row]
        self._kv[:, :, row, :, :length] = other._kv[:, :, other_row, :, :length]
        self._set_lengths(lengths)

    def _set_lengths(self, lengths: list[int]) -> None:
        """Set how many columns are valid: a number for each row, or a list of one, for all rows."""
        self._longest = max(lengths)
        self.uniform = lengths[0] if min(lengths) == max(lengths) else None
        if self.uniform is None:
            self._length.copy_(torch.tensor(lengths))
