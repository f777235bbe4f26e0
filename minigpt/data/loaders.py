"""What a run reads: a text cut into windows, or documents, as one endless, numbered sequence of rows.

Row i is a pure function of the seed and i. So a run needs to remember only how many rows it has read, whatever the
batches were, and processes that share a batch take their rows by number. Row i is in epoch i // rows_per_epoch, and in
each epoch every row of the data is read once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from minigpt.config import RunConfig
from minigpt.data.batches import Batch, Encoded, Epoch, batched, encode, packed, padded
from minigpt.data.corpora import Corpus
from minigpt.data.dialogues import END_OF_TURN
from minigpt.data.documents import Document, Documents, parted, with_keywords
from minigpt.data.tokens import TokenFile, random_batch, rows_at_once, split_at, windows_in_order, windows_per_epoch
from minigpt.errors import ConfigError, InputError, counted, either, named, passed
from minigpt.tokenizers import CharTokenizer, Tokenizer


@dataclass(frozen=True, kw_only=True)
class _Loader:
    """What a run knows of its data, whatever they are.

    Attributes:
        name: of the corpus or the file, for titles.
        described: two lines: where the data come from, and how much there is.
        floor: entropy of the validation split in nats per token; None if it is not known.
        prompt: ids that samples begin with.
        eos_token_id: the token that ends a document, and a sample; None if no single token ends it, or nothing.
        stop: what ends a sample then, if anything does.
    """

    name: str
    described: list[str]
    floor: float | None = None
    prompt: list[int]
    eos_token_id: int | None = None
    stop: str | None = None


@dataclass(frozen=True, kw_only=True)
class TextLoader(_Loader):
    """A text: windows of the training split in shuffled epochs, the whole validation split in order. Nothing ends it.

    Attributes:
        train: the training split.
        val: the validation split.
        block_size: tokens of a window.
        seed: of the run.
    """

    train: TokenFile
    val: TokenFile
    block_size: int
    seed: int

    @property
    def rows_per_epoch(self) -> int:
        """Number of windows in an epoch."""
        return windows_per_epoch(self.train, self.block_size)

    def batch(self, first: int, count: int) -> Batch:
        """Rows `first` to `first + count - 1` of the run; see `data.tokens.random_batch`."""
        return Batch(*random_batch(self.train, count, self.block_size, self.seed, first))

    def validation(self) -> Iterator[Batch]:
        """See `data.tokens.windows_in_order`."""
        windows = windows_in_order(self.val.ids, rows_at_once(self.block_size), self.block_size)
        return (Batch(x, y) for x, y in windows)


@dataclass(frozen=True, kw_only=True)
class DocumentLoader(_Loader):
    """Documents, in batches of similar length or packed; see `data.batches`.

    Samples begin with the token that ends a document, after which a new one begins; those of dialogues with what stands
    before a held-out reply, the shortest.

    Attributes:
        read: a function from the number of an epoch to the epoch.
        val: the validation documents.
        batch_size: rows of a validation batch.
    """

    read: Callable[[int], Epoch]
    val: Encoded
    batch_size: int
    _epochs: dict[int, Epoch] = field(default_factory=dict, repr=False)

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows in an epoch: of documents, or of the rows into which they are packed."""
        return len(self._epoch(0).rows)

    def batch(self, first: int, count: int) -> Batch:
        """Rows `first` to `first + count - 1` of the run, all in one epoch; as wide as the longest of them."""
        epoch, place = divmod(first, self.rows_per_epoch)
        return self._epoch(epoch).batch(place, count)

    def validation(self) -> Iterator[Batch]:
        """The validation documents, each in a row of its own."""
        return iter(padded(self.val, self.batch_size, seed=0, epoch=0))

    def _epoch(self, number: int) -> Epoch:
        if number not in self._epochs:
            if len(self._epochs) > 1:  # keep the first: all epochs have its length
                self._epochs.popitem()
            self._epochs[number] = self.read(number)
        return self._epochs[number]


Loader = TextLoader | DocumentLoader


def text_loader(
    corpus: Corpus, config: RunConfig, tokenizer: Tokenizer, train: TokenFile, val: TokenFile
) -> TextLoader:
    """The loader of a corpus, whose tokens are `train` and `val`."""
    start = tokenizer.start_token_id
    floor = None
    if corpus.floor is not None and isinstance(tokenizer, CharTokenizer):  # a token is a character
        floor = corpus.floor(split_at(corpus, config.data), len(corpus.text))
    num_tokens = f"{len(train.ids):,} to train on, {len(val.ids):,} to validate"
    return TextLoader(
        name=corpus.name,
        described=[f"corpus     {corpus.origin}", f"tokens     {num_tokens}, vocabulary {tokenizer.vocab_size:,}"],
        floor=floor,
        prompt=[int(val.ids[0]) if start is None else start],
        train=train,
        val=val,
        block_size=config.model.block_size,
        seed=config.seed,
    )


def document_loader(
    documents: Documents, name: str, config: RunConfig, tokenizer: Tokenizer, order_batch_size: int | None = None
) -> DocumentLoader:
    """The loader of documents, split, encoded and batched as the settings say.

    Args:
        documents: all of them.
        name: of the file, for titles.
        config: the settings; `model.block_size` is the model's.
        tokenizer: the model's.
        order_batch_size: the documents are ordered so that batches of this size have documents of similar length. A run
            keeps the size that it began with: another order would make it lose its place in the epoch.

    Raises:
        ConfigError: if a setting of `documents` contradicts the model or another.
        DataError: if there are too few documents, or one of them leaves nothing to learn.
        InputError: if the tokenizer cannot encode one.
    """
    d, block_size = config.documents, config.model.block_size
    chosen, validating = parted(documents, d, config.seed)
    eos_id = end_of_document(tokenizer)
    train = encoded(chosen, config, tokenizer, chosen, earlier=d.learned == "replies")
    val = encoded(validating, config, tokenizer, chosen)
    batch_size, seed = config.train.batch_size, config.seed
    read: Callable[[int], Epoch] = partial(padded, train, order_batch_size or batch_size, seed)
    if d.batching != "padded":
        read = partial(
            packed, train, batch_size, d.max_length or block_size, seed, document_mask=d.batching == "packed-masked"
        )
    epoch = read(0)
    padding = replace(epoch, batches=batched(epoch.rows, batch_size)).padding
    differing = set(documents.items).difference(documents.validation or ())
    copies = len(documents.items) - len(differing)
    held_out = {document.dialogue for document in documents.validation or () if document.dialogue}
    told_again = sum(document.dialogue in held_out for document in differing)  # such as from the other's side
    spoken = bool(validating[0].dialogue)  # examples of dialogues
    learned = counted(len(train), "reply", "replies") if spoken else counted(len(train), "document")
    counts = f"{learned} to train on, {len(val):,} to validate"
    cut = f"{train.truncated + val.truncated:,} cut at {counted(d.max_length or block_size, 'token')}"
    if again := _in_both(train, val):
        cut += f", {again:,} that validate are learned too, because up to there they are equal to others"
    if known := _learned_elsewhere(chosen, validating) if spoken else 0:
        cut += f", {known:,} that validate are learned from other dialogues too, after the same turn"
    if shortened := train.shortened + val.shortened:
        cut += f", {shortened:,} with fewer turns before them so that they fit"
    if left := train.left_out + val.left_out:
        cut += f", {left:,} left out because the turn before them does not"
    return DocumentLoader(
        name=name,
        described=[
            f"documents  {documents.described}"
            + (f"; {counted(copies, 'copy', 'copies')} of others left out" if copies else "")
            + (f"; {told_again:,} of dialogues that validate left out" if told_again else ""),
            f"tokens     {counts}; {cut}, {padding:.1%} padding",
        ],
        prompt=min(map(val.prompt, range(len(val))), key=len) if spoken else [eos_id],
        # A line end closes documents of characters, but not speeches, which may have several lines.
        eos_token_id=tokenizer.eos_token_id if spoken else eos_id,
        stop=END_OF_TURN if spoken and tokenizer.eos_token_id is None else None,
        read=read,
        val=val,
        batch_size=batch_size,
    )


def _in_both(train: Encoded, val: Encoded) -> int:
    """How many validation documents are learned, because what tells them from others was cut off."""
    if not (train.truncated and val.truncated):
        return 0

    def rows(found: Encoded) -> Iterator[tuple[bytes, bytes]]:
        return ((ids.tobytes(), targets.tobytes()) for ids, targets in map(found.example, range(len(found))))

    held_out = set(rows(val))
    learned = held_out.intersection(rows(train))
    return sum(row in learned for row in rows(val))


def _learned_elsewhere(learned: Sequence[Document], validating: Sequence[Document]) -> int:
    """How many replies that validate are learned after the same turn, as where records hold a talk in windows."""

    def exchange(document: Document) -> tuple[str, str]:
        return document.prompt[document.turns[-1] :], document.text

    known = set(map(exchange, learned))
    return sum(exchange(document) in known for document in validating)


def encoded(
    documents: Sequence[Document],
    config: RunConfig,
    tokenizer: Tokenizer,
    training: Sequence[Document],
    earlier: bool = False,
) -> Encoded:
    """Documents as ids, with keywords if the settings want them, cut to the largest number of tokens.

    Words are counted in the `training` documents to find keywords. For `earlier`, see `encode`.

    Raises:
        ConfigError, DataError, InputError: where `document_loader` raises them.
    """
    d, block_size = config.documents, config.model.block_size
    documents = with_keywords(documents, d.keywords, training) if d.keywords else documents
    try:
        return encode(documents, tokenizer, end_of_document(tokenizer), d.max_length or block_size, block_size, earlier)
    except InputError as error:
        if not d.keywords:
            raise
        out = f"leave {named('keywords')} out, if only its lines have such characters"
        raise InputError(error.renamed({})[0], either(out, "take a model that knows them")) from None


def end_of_document(tokenizer: Tokenizer) -> int:
    """The token that closes a document: EOS, or the line end if the tokenizer has no EOS.

    Raises:
        ConfigError: if it has neither.
    """
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    try:
        return tokenizer.encode("\n")[0]
    except InputError:
        raise ConfigError(
            f"nothing can end a document: the tokenizer's {tokenizer.vocab_size} tokens are neither EOS nor a line end",
            f"start from a model that knows the line end, or read one text with {passed('separate', 'off')}",
        ) from None
