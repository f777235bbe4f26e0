"""Documents -> ids with a loss mask -> batches, padded or packed.

Both ways give inputs and targets as `data.tokens` does, targets one token ahead, with -100 for one that does not count:

    padded            packed                  packed, document mask
    a a a a . .       a a a a $ b             a a a a b b       "." is padding, "$" the end of a document
    b b . . . .       b $ c c c $             c c c d d .
    c c c . . .       d d $ . . .

Padded: a row is one document. Packed: the documents follow one another and rows are cut from them, so nothing is
wasted; but a document sees those before it in its row, and may be cut in two. With a document mask, whole documents
share a row without seeing each other (`training.document_mask`): this gives the loss of padded rows, with hardly any
padding.

Batch i of an epoch is a pure function of (seed, epoch, i), so that a resumed run goes on exactly. B rows, T tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import Count, Seed
from minigpt.data.documents import Document, generator, most_turns
from minigpt.data.tokens import IGNORED, Ids
from minigpt.errors import ConfigError, DataError, InputError, brief, counted, either, named
from minigpt.fields import Bounds, check_ids, checked
from minigpt.tokenizers import WITHOUT_THEM, IdArray, Tokenizer

POOL = 50  # so many batches of documents are sorted by length together; a larger pool has less padding, but mixes less

Indices = npt.NDArray[np.int64]
Item = TypeVar("Item")
EpochNumber = Annotated[int, Bounds(0, 10**15)]


@dataclass(frozen=True)
class Encoded:
    """Documents as ids, one after the other.

    Attributes:
        ids: uint16 or uint32 (number of tokens,).
        loss_mask: bool (number of tokens,), whether a token counts as a target.
        starts: int64 (number of documents,), where each document begins.
        stops: int64 (number of documents,), where it ends: the index after its last token.
        eos_id: the token that closes a document.
        truncated: number of documents that were cut to `max_length` tokens.
        shortened: number of those of dialogues whose prompt lost its oldest turns, so that they fit.
        left_out: number of those of dialogues that are not there, because one turn before the reply is too long.
    """

    ids: IdArray
    loss_mask: npt.NDArray[np.bool_]
    starts: Indices
    stops: Indices
    eos_id: int
    truncated: int
    shortened: int = 0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def lengths(self) -> Indices:
        """Number of inputs of each document, int64 (number of documents,): its last token is only a target."""
        return self.stops - self.starts - 1

    def example(self, document: int) -> tuple[IdArray, Ids]:
        """Inputs (T,) and targets (T,) of one document, with -100 for a target that does not count."""
        ids = self.ids[self.starts[document] : self.stops[document]]
        mask = self.loss_mask[self.starts[document] : self.stops[document]]
        return ids[:-1], np.where(mask, ids.astype(np.int64), IGNORED)[1:]

    def prompt(self, document: int) -> list[int]:
        """The ids of one document before the first that is learned."""
        start = int(self.starts[document])
        ids: list[int] = self.ids[start : start + int(self.loss_mask[start:].argmax())].tolist()
        return ids


@checked
def encode(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    eos_id: int,
    max_length: int,
    block_size: int,
    earlier: bool = False,
) -> Encoded:
    """Documents as ids: prompt, text and EOS.

    Tokens beyond `max_length` are dropped. A document that is cut, here or before, gets no EOS, because it has not
    ended. All tokens count as targets except those of prompts; the EOS counts too. Prompt and text are encoded
    separately, because a prompt is encoded alone when the model is to continue it. Before the reply of a dialogue is
    cut, its prompt loses turns, all but the last; if that one leaves no room for a reply, the example is left out.

    Args:
        documents: at least one.
        tokenizer: the model's.
        eos_id: the token that closes a document: `tokenizer.eos_token_id`, or a substitute if that is None.
        max_length: the most tokens of a document, its EOS included.
        block_size: the model's context.
        earlier: whether replies in the prompt count as targets too.

    Raises:
        ConfigError: if `max_length` is above `block_size` or below 2, or `eos_id` is not in the vocabulary; or if
            `earlier` replies count, and the tokenizer ends a document with a token that does not end them.
        DataError: if a document leaves nothing to learn: its prompt fills `max_length`, or it has only one token.
        InputError: if a document cannot be encoded.
    """
    if not 2 <= max_length <= block_size:
        raise ConfigError(
            f"{named('max_length', max_length)} does not lie between 2 and {named('block_size', block_size)}",
            f"choose {named('max_length')} from 2 to {block_size}: the model has no positions beyond",
        )
    check_ids([eos_id], tokenizer.vocab_size, "eos_id", ConfigError)
    if earlier and tokenizer.eos_token_id is not None:
        raise ConfigError(
            f"{named('learned', 'replies')} is for models of characters: there a blank line ends each turn, and here "
            f"{tokenizer.decode([eos_id], skip_special=False)!r} ends only the last",
            f"choose {named('learned', 'reply')}",
        )
    rows, masks, truncated, shortened, left_out = [], [], 0, 0, 0
    strange = []  # documents that cannot be encoded
    for document in documents:
        try:
            prompt, text = tokenizer.encode_array(document.prompt), tokenizer.encode_array(document.text)
        except InputError:
            strange.append(document)
            continue
        end = np.array([eos_id] if document.whole else [], dtype=text.dtype)
        turns = len(document.turns)
        room = max_length - len(text) - len(end)
        if len(prompt) > room and turns > 1:
            fits = partial(_fits, document, tokenizer, room)
            document = document.with_last_turns(most_turns(turns, fits))
            prompt = tokenizer.encode_array(document.prompt)
        row = np.concatenate([prompt, text, end])
        mask = np.arange(min(len(row), max_length)) >= len(prompt)
        if not mask[1:].any() and turns:
            left_out += 1
            continue
        if not mask[1:].any():
            raise DataError(
                f"the document with the text {brief(document.text)} leaves nothing to learn: "
                f"{counted(len(row), 'token')}, {len(prompt)} of them its prompt, and "
                f"{named('max_length', max_length)}",
                f"shorten its prompt, choose a larger {named('max_length')}, or leave it out",
            )
        for span in document.replies if earlier else ():
            begin, end_of_span = (len(tokenizer.encode_array(document.prompt[:place])) for place in span)
            mask[begin:end_of_span] = True
        rows.append(row[:max_length])
        masks.append(mask)
        truncated += len(row) > max_length
        shortened += len(document.turns) < turns
    if strange:
        raise _refused(strange, len(documents), tokenizer)
    if not rows:
        raise DataError(
            f"of all {left_out:,} replies, the turn before leaves no room in {named('max_length', max_length)} tokens",
            f"choose a larger {named('max_length')}, or a model with a longer context",
        )
    stops = np.cumsum([len(row) for row in rows])
    starts = np.concatenate([[0], stops[:-1]])
    return Encoded(np.concatenate(rows), np.concatenate(masks), starts, stops, eos_id, truncated, shortened, left_out)


def _fits(document: Document, tokenizer: Tokenizer, room: int, turns: int) -> bool:
    """Whether the prompt of a document with so many of its turns has at most `room` tokens."""
    return len(tokenizer.encode_array(document.with_last_turns(turns).prompt)) <= room


def _refused(strange: Sequence[Document], count: int, tokenizer: Tokenizer) -> InputError:
    """One error for all documents that cannot be encoded, with everything that the tokenizer does not know."""
    what = "they cannot be encoded"
    try:
        tokenizer.encode_array("".join(document.prompt + document.text for document in strange))
    except InputError as error:
        what = error.what
    return InputError(
        f"{len(strange):,} of {counted(count, 'document')}, such as the one that begins {strange[0].text[:30]!r}: "
        f"{what}",
        either("remove these documents", *WITHOUT_THEM),
    )


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads.

    Attributes:
        inputs: int64 (B, T).
        targets: int64 (B, T), one token ahead; -100 where a target does not count.
        positions: with a document mask, int64 (B, T): each token's position in its document. They start again at 0
            where a document begins, and attention needs to know no more than this. None if each row has the positions
            0 to T - 1.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor | None = None

    def halved(self) -> "Batch":
        """Each window as two of half its length, of which none sees the other: (B, T) -> (2B, T / 2)."""
        half = self.inputs.size(1) // 2
        return Batch(self.inputs.reshape(-1, half), self.targets.reshape(-1, half))


# One row without targets, for a process that has no row of its own in a step that the others take.
NOTHING = Batch(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), IGNORED))


@dataclass(frozen=True)
class Epoch:
    """All documents, read once. Batches are made on demand: `epoch[i]`, or a loop over all.

    Attributes:
        encoded: the documents.
        batches: of rows of documents, by their numbers.
        document_mask: whether batches have positions.
    """

    encoded: Encoded = field(repr=False)
    batches: list[list[list[int]]] = field(repr=False)
    document_mask: bool = False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        return self._batch(self.batches[index])

    @cached_property
    def rows(self) -> list[list[int]]:
        """All rows of documents in the order of the batches, except that the short one comes last."""
        return [row for batch in sorted(self.batches, key=len, reverse=True) for row in batch]

    def batch(self, first: int, count: int) -> Batch:
        """Rows `first` to `first + count - 1` of `rows`, however `batches` has cut them."""
        return self._batch(self.rows[first : first + count])

    def _batch(self, rows: list[list[int]]) -> Batch:
        shape = len(rows), self._width(rows)
        # Right padding needs no attention mask: a causal model looks only to the left, where there is no padding, and
        # the padding itself has no targets.
        inputs, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        targets = torch.full(shape, IGNORED)
        for row, documents in enumerate(rows):
            start = 0
            for x, y in map(self.encoded.example, documents):
                place = row, slice(start, start + len(x))
                inputs[place] = torch.from_numpy(x.astype(np.int64))
                targets[place] = torch.from_numpy(y)
                positions[place] = torch.arange(len(x))
                start += len(x)
        return Batch(inputs, targets, positions if self.document_mask else None)

    @property
    def padding(self) -> float:
        """The share of padding in all inputs, which the epoch computes in vain."""
        places = sum(len(rows) * self._width(rows) for rows in self.batches)
        return 1 - int(self.encoded.lengths.sum()) / places

    def _width(self, rows: list[list[int]]) -> int:
        """T: the length of the longest row; 1 if there is none."""
        lengths = self.encoded.lengths
        return max((int(lengths[row].sum()) for row in rows), default=1)


@checked
def padded(encoded: Encoded, batch_size: Count, seed: Seed, epoch: EpochNumber) -> Epoch:
    """One document a row, padded on the right, in batches of documents of similar length.

    The documents are shuffled, sorted by length within pools of `POOL` batches, and cut into batches, which are
    shuffled again. One batch may have fewer rows than the others.

    Args:
        encoded: the documents.
        batch_size: rows of a batch, B; T is the length of the longest of them.
        seed: of the run.
        epoch: from 0; each has an order of its own.
    """
    chance = generator(seed, stream=1 + epoch)
    order = chance.permutation(len(encoded)).tolist()
    by_length: list[int] = []
    for pool in batched(order, POOL * batch_size):
        by_length += sorted(pool, key=lambda document: encoded.lengths[document])
    batches = batched([[document] for document in by_length], batch_size)
    return Epoch(encoded, [batches[place] for place in chance.permutation(len(batches))])


@checked
def packed(
    encoded: Encoded, batch_size: Count, block_size: Count, seed: Seed, epoch: EpochNumber, document_mask: bool = False
) -> Epoch:
    """Several documents a row, one after another.

    Without a document mask, the documents are joined in shuffled order, with an EOS between them, and rows are cut from
    this text. Only the last row has padding; every token that counts, except the first of all, is a target once an
    epoch. The token after an EOS is a target too, so the model learns how a document begins.

    With a document mask, whole documents are put into rows, the longest first, each into the row where it leaves the
    least room (best-fit decreasing; Johnson, 1974); then the rows are shuffled. The loss is that of `padded`: an EOS is
    a target, but never an input.

    Args:
        encoded: the documents.
        batch_size: rows, B; fewer in the last batch.
        block_size: the length of a row, T, at most the model's; with a document mask, rows may be shorter.
        seed: of the run.
        epoch: from 0; each has an order of its own.
        document_mask: whether a token sees only its own document; the model must then run within
            `training.document_mask`.

    Raises:
        ConfigError: if there is a document mask, and a document is longer than a row.
    """
    chance = generator(seed, stream=1 + epoch)
    order = chance.permutation(len(encoded)).tolist()
    if not document_mask:
        windows = _windows(encoded, order, block_size)
        rows = [[window] for window in range(len(windows))]
        return Epoch(windows, batched(rows, batch_size))
    longest = int(encoded.lengths.max())
    if longest > block_size:
        raise ConfigError(
            f"a document makes {longest} inputs, and a row holds {named('block_size', block_size)}",
            f"choose {named('max_length')} up to {block_size + 1}, or a larger {named('block_size')}",
        )
    rows = _fitted(order, encoded.lengths.tolist(), block_size)
    return Epoch(encoded, batched([rows[place] for place in chance.permutation(len(rows))], batch_size), document_mask)


def _windows(encoded: Encoded, order: list[int], block_size: int) -> Encoded:
    """The documents joined to one text with an EOS between them; its windows take the place of documents."""
    ids, masks = [], []
    for document in order:
        span = slice(encoded.starts[document], encoded.stops[document])
        ids.append(encoded.ids[span])
        masks.append(encoded.loss_mask[span])
        if ids[-1][-1] != encoded.eos_id:  # it was cut: put an EOS before the next document, but not as a target
            ids.append(np.array([encoded.eos_id], dtype=encoded.ids.dtype))
            masks.append(np.zeros(1, dtype=np.bool_))
    text = np.concatenate(ids)
    starts = np.arange(0, len(text) - 1, block_size)
    stops = np.minimum(starts + block_size + 1, len(text))  # the last target of a window is the first input of the next
    return replace(encoded, ids=text, loss_mask=np.concatenate(masks), starts=starts, stops=stops)


def _fitted(order: list[int], lengths: list[int], capacity: int) -> list[list[int]]:
    """Rows of documents, none longer than `capacity`. Their number depends on the lengths only, not on the order."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is free in a row, the row), sorted
    for document in sorted(order, key=lambda document: -lengths[document]):
        tightest = bisect_left(room, (lengths[document], 0))
        if tightest == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(tightest)
        rows[row].append(document)
        insort(room, (free - lengths[document], row))
    return rows


def batched(items: list[Item], size: int) -> list[list[Item]]:
    """A list in pieces of one size; the last may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]
