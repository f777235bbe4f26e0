"""The texts that a command reads: prompts, corpora; and the texts that stand for single tokens."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minigpt.cli.settings import Prompts
from minigpt.cli.streams import print_note, with_stdin
from minigpt.config import DocumentsConfig, RunConfig, updated
from minigpt.data.corpora import (
    NAMED_RECORD_SUFFIXES,
    NAMED_SOURCES,
    RECORD_SUFFIXES,
    Corpus,
    left_out,
    load_corpus,
    read_plain_text,
    texts_below,
)
from minigpt.data.dialogue_files import holds_dialogues, read_dialogues
from minigpt.data.dialogues import rendered
from minigpt.data.documents import Documents, read_documents
from minigpt.data.sources import load_data
from minigpt.errors import DataError, InputError, MissingFileError, TextNote, counted
from minigpt.system.files import named_path
from minigpt.tokenizers import Tokenizer, encode_prompt

Encode = Callable[[Tokenizer, str], list[int]]


def prompt_texts(settings: Prompts) -> list[tuple[str, str]]:
    """The prompts of the command line, then those of a file: (name for errors, text) of each; an empty one if none is.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is a folder, is not UTF-8, or has no text.
        InputError: if two prompts are "-", or standard input is not UTF-8.
    """
    prompts, file = settings.given, settings.prompts_file
    texts = [(f"prompt {number}", text) for number, text in enumerate(with_stdin(*prompts))]
    if file is None:
        return texts if len(texts) > 1 else [("the prompt", text) for _, text in texts or [("", "")]]
    advice = "name a text file with one prompt a line"
    path = named_path(file, "prompts_file")
    if path.is_dir() or file.lower().endswith(NAMED_RECORD_SUFFIXES):
        raise DataError(f"{file} is a {'folder' if path.is_dir() else 'file of records'}", advice)
    if not path.exists():
        raise MissingFileError(f"there is no file {file}", advice)
    lines = [
        (f"line {n} of {file}", line) for n, line in enumerate(read_plain_text(path).split("\n"), 1) if line.strip()
    ]
    if not lines:
        raise DataError(f"there is no prompt in {file}", advice)
    return texts + lines


def ids_of(tokenizer: Tokenizer, name: str, text: str, encode: Encode = encode_prompt) -> list[int]:
    """Ids of a text; an error begins with the text's name."""
    try:
        return encode(tokenizer, text)
    except InputError as error:
        what, how = error.renamed({})
        raise InputError(what if name == "the prompt" else f"{name}: {what}", how) from error


def framed(ids: list[int], tokenizer: Tokenizer, bos: bool, eos: bool = False) -> list[int]:
    """`ids` with the token that opens a document in front, and the one that closes it at the end, if they are wanted.

    Raises:
        InputError: if the tokenizer has no such token.
    """
    front = [_border(tokenizer, tokenizer.bos_token_id, "bos")] if bos else []
    return front + ids + ([_border(tokenizer, tokenizer.eos_token_id, "eos")] if eos else [])


def _border(tokenizer: Tokenizer, token_id: int | None, end: str) -> int:
    flag = f"--{end}"
    if token_id is None and tokenizer.special_id(f"{end}_token") is not None:
        raise InputError(
            f"{flag} asks for a token of the vocabulary, and this model's was added behind it: it is no text",
            f"leave {flag} out",
        )
    if token_id is None:
        raise InputError(
            f"{flag} asks for a token that this model's tokenizer does not have",
            f"leave {flag} out; for a model of characters, a line break in the text is the nearest thing",
        )
    return token_id


def check_fits(num_tokens: int, block_size: int, what: str, how: str = "", more: int = 0) -> None:
    """Raise if a text has more tokens than the model can read, or leaves no room for `more` tokens.

    Raises:
        InputError: with the advice `how`; by default, to make the text shorter.
    """
    if num_tokens + more > block_size:
        rest = f", and {more} more do not fit" if more else ", more than"
        raise InputError(
            f"{what} has {counted(num_tokens, 'token')}{rest} block_size = {block_size}",
            how or f"shorten it to at most {counted(block_size, 'token')}",
        )


def token_text(tokenizer: Tokenizer | None, token_id: int, errors: str = "replace") -> str:
    """The text of a token, or the name of a special one; for an id without text or name, or a tokenizer, its number.

    A part of a character becomes U+FFFD, or with "backslashreplace" for `errors` an escape.
    """
    if tokenizer is None or token_id >= tokenizer.vocab_size + len(tokenizer.added):
        return f"#{token_id}"
    return tokenizer.token_bytes(token_id).decode("utf-8", errors)


def check_field(field: str | None, records: Sequence[str], training_data: str | None) -> None:
    """Refuse the name of a field where no records are read: not in the files that may have them, nor to compare with.

    Raises:
        InputError: if a field is named for nothing.
    """
    if field is not None and not records and not has_fields(training_data or "", NAMED_RECORD_SUFFIXES):
        raise InputError(
            f"--text-field {field} is a field of records, and none are read here",
            "leave --text-field out, or name a file of records",
        )


def has_fields(source: str, suffixes: tuple[str, ...]) -> bool:
    """Whether the texts of a file that ends in one of these, or of a folder, may be a field of records."""
    return source.lower().endswith(suffixes) or (source not in NAMED_SOURCES and os.path.isdir(source))


def training_documents(source: str, field: str | None) -> list[str]:
    """The training set, all that can be learned there: a corpus, documents of records, dialogues; a folder of these.

    Warns:
        TextNote: of what is not read in a folder.

    Raises:
        MissingFileError: if there is no such corpus or path.
        DataError: if it has no text.
    """
    path = Path(source)
    if source in NAMED_SOURCES or not os.path.isdir(path):
        return _learned(source, field)
    files = texts_below(path)
    if rest := left_out(path, files):
        warnings.warn(TextNote(f"{path}{rest}"), stacklevel=2)
    texts: list[str] = []
    for file in files:
        records = has_fields(str(file), RECORD_SUFFIXES)
        texts += _learned(str(file), field) if records else [read_plain_text(file)]  # which may be blank
    return texts if any(map(str.strip, texts)) else [load_corpus(source).text]  # which says what is missing


def _learned(source: str, field: str | None) -> list[str]:
    """The same of a named corpus or a file."""
    if field is None and holds_dialogues(source):
        return ["".join(map(rendered, dialogue.messages)) for dialogue in read_dialogues(source).items]
    if source.lower().endswith(NAMED_RECORD_SUFFIXES):
        return [document.text for document in read_documents(source, DocumentsConfig(text_field=field or "")).items]
    return [load_corpus(source).text]


def data_of_run(config: RunConfig) -> Corpus | Documents:
    """The data that a run was trained on.

    Raises:
        MiniGPTError: where `load_data` raises one; if a path does not exist any more, the error asks for the new one.
    """
    with says_how_to_name_data():
        return load_data(config)


@contextmanager
def says_how_to_name_data() -> Iterator[None]:
    """A block that reads a run's own data: for what does not exist any more, the error asks for the new place."""
    try:
        yield
    except MissingFileError as error:
        raise MissingFileError(error.what, "name where it lies now: --data, or --val-data") from None


def with_val_data(config: RunConfig, val_data: str | None) -> RunConfig:
    """The settings of a run with the new place of its validation data, if one is given.

    Raises:
        InputError: if its validation data had no file of their own.
    """
    if val_data and not config.data.val_data:
        raise InputError(
            f"--val-data {val_data} is for a run whose validation data had a file of their own", "leave --val-data out"
        )
    return updated(config, {"data": {"val_data": val_data}}) if val_data else config


def val_data_beside(config: RunConfig, data: str) -> str:
    """A run's validation data beside `data`; "" if they do not exist any more, and a note says what that means."""
    val_data = config.data.val_data
    if val_data in NAMED_SOURCES or Path(val_data).exists():
        return val_data
    print_note(
        f"{val_data}, this run's validation data, does not exist any more: all of {data} is measured, even what this "
        "run was trained on; --val-data names its new place"
    )
    return ""
