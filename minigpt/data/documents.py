"""Files of one's own -> documents, for fine-tuning.

A corpus is one long text; here are many short ones, each with an end that a model should learn. They are read, cleaned,
split by seeded choice, and on request opened with their keywords; `data.batches` makes batches of them.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minigpt.data.corpora import TEXT_SUFFIXES, files_below, read_text, with_line_feeds
from minigpt.errors import ConfigError, DataError, MissingFileError, first_line
from minigpt.files import listed

RECORD_SUFFIXES = (".jsonl", ".csv")

_LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072, and a novel is longer
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can spell a surrogate without its other half
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters of any script, and apostrophes between them


@dataclass(frozen=True)
class Document:
    """One text to learn from.

    Attributes:
        text: what the loss counts.
        prompt: what stands before it and is given, not learned. Nothing is put between the two: a space or a line feed
            that belongs there must be in one of them.
        whole: whether the text ends where its author ended it. One that was cut off is not followed by an EOS.
    """

    text: str
    prompt: str = ""
    whole: bool = True


@dataclass(frozen=True)
class Documents:
    """What was read.

    Attributes:
        items: the documents, in the order of the files.
        described: one line for people: how many there are, what was taken for one, what was left out.
        blank: number of those left out because their text was blank.
        cut: number of those cut to the largest number of characters.
    """

    items: list[Document] = field(repr=False)
    described: str
    blank: int
    cut: int


# --- Files -> documents -----------------------------------------------------------------------------------------------


def read_documents(
    path: str | Path,
    *,
    text_field: str | None = None,
    prompt_field: str | None = None,
    completion_field: str | None = None,
    max_characters: int | None = None,
) -> Documents:
    """Read documents from a text file, a `.jsonl`, a `.csv`, or a folder of these.

    What is one document:

        .jsonl             each line, a JSON object
        .csv               each row below the header; with commas and double quotes, line ends inside quotes
        one text file      the parts between blank lines; where no line is blank, each line
        a folder           each text file (`corpora.TEXT_SUFFIXES`) as a whole, each record of the other two; in the
                           order of their paths, subfolders included; records alone if a field is named

    Files are UTF-8, with or without a byte order mark. Line ends become LF, blanks around a text go, and blank
    documents are left out. Prompts and completions keep their blanks: those between the two matter.

    Args:
        path: the file or folder; never changed.
        text_field: the field of a record that is its text. If it is not named it is `text`, else the only one that
            holds text, and no numbers alone.
        prompt_field: for pairs instead, the field that is given.
        completion_field: the field that is learned.
        max_characters: the longest text; what is longer is cut. Prompts are never cut.

    Raises:
        MissingFileError: if there is no such path.
        ConfigError: if the fields contradict each other, or `max_characters` is below 1.
        DataError: if the text is of another encoding; on a line that is no JSON object, a CSV row of another length
            than the header, or a record without the field or with half a character in it, with the line's number; if
            a CSV is parted by semicolons or tabs, or names two columns alike; if several fields could be the text; if
            all documents are blank.
    """
    path = Path(path)
    _check_settings(text_field, prompt_field, completion_field, max_characters)
    learned = text_field or completion_field
    files = _fitting_files(path, RECORD_SUFFIXES if learned else (*TEXT_SUFFIXES, *RECORD_SUFFIXES))
    found: list[Document] = []
    units = []  # what was taken for a document
    for file in files:
        if file.suffix.lower() in RECORD_SUFFIXES:
            documents, unit = _from_records(file, learned, prompt_field)
        else:
            documents, unit = _from_text(file, is_single=file == path)
        found += documents
        units.append(unit)
    kept = [document for document in found if document.text.strip()]
    if not kept:
        raise DataError(
            f"there are no documents in {path}: all {len(found)} are blank" if found else f"{path} has no records",
            "name a file with text in it, or another field",
        )
    items = [_cut(document, max_characters) for document in kept]
    blank, cut = len(found) - len(kept), sum(not document.whole for document in items)
    described = f"{path}: {len(items):,} documents, each {' or '.join(dict.fromkeys(units))}"
    described += f"; {blank:,} blank ones left out" if blank else ""
    described += f"; {cut:,} cut to {max_characters} characters" if cut else ""
    return Documents(items, described, blank, cut)


def _check_settings(
    text_field: str | None, prompt_field: str | None, completion_field: str | None, max_characters: int | None
) -> None:
    if (prompt_field is None) != (completion_field is None):
        raise ConfigError(
            f"prompt_field = {prompt_field!r} and completion_field = {completion_field!r} are no pair",
            "name both, or text_field alone",
        )
    if text_field is not None and completion_field is not None:
        raise ConfigError(
            f"text_field = {text_field!r} contradicts completion_field = {completion_field!r}",
            "name text_field for whole texts, or the other two for pairs",
        )
    if max_characters is not None and max_characters < 1:
        raise ConfigError(f"max_characters = {max_characters} leaves no text", "max_characters must be at least 1")


def _fitting_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file, or those below the folder, that end in one of the suffixes."""
    if not path.exists():
        raise MissingFileError(f"there is no file or folder {path}", "check the path of the documents")
    found = files_below(path, suffixes, lambda folder: folder.startswith(".")) if path.is_dir() else [path]
    fitting = [file for file in found if file.name.lower().endswith(suffixes)]
    if not fitting:
        what = f"{path} has no file that ends" if path.is_dir() else f"{path} does not end"
        raise DataError(
            f"{what} in {' or '.join(suffixes)}",
            "documents are read from these; a field can be named for .jsonl and .csv alone",
        )
    return fitting


def _from_text(file: Path, is_single: bool) -> tuple[list[Document], str]:
    """The documents of a text file, and what was taken for one."""
    text = read_text(file).strip()
    if not is_single:
        parts, unit = [text], "a file"
    elif re.search(r"\n\s*\n", text):
        parts, unit = re.split(r"\n\s*\n", text), "a part between blank lines"
    else:
        parts, unit = text.split("\n"), "a line"
    return [Document(part.strip()) for part in parts], unit


def _from_records(file: Path, learned: str | None, prompt: str | None) -> tuple[list[Document], str]:
    """The documents of a file of records, and what was taken for one."""
    records = _json_records(file) if file.suffix.lower() == ".jsonl" else _csv_records(file)
    if learned is None:
        learned = _text_field(file, list(records.values()))
    texts = [_field_of(record, learned, f"{file}, line {line}") for line, record in records.items()]
    if prompt is None:
        return [Document(text.strip()) for text in texts], f"the field {learned!r} of a record"
    prompts = [_field_of(record, prompt, f"{file}, line {line}") for line, record in records.items()]
    return [Document(*pair) for pair in zip(texts, prompts, strict=True)], f"the fields {prompt!r} and {learned!r}"


def _json_records(file: Path) -> dict[int, dict[str, object]]:
    """The objects of a JSONL file by the number of their line."""
    records = {}
    # At line feeds alone: a JSON string may hold the other characters that end a line for `splitlines`.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = first_line(error, 200).partition(": line 1")[0]  # always 1, of this line
            raise DataError(
                f"{file}, line {number} is not JSON: {reason}", "mend that line: each is one JSON object"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f"{file}, line {number} holds a JSON {type(record).__name__}, and no object",
                'write each line as {"text": "..."}',
            )
        records[number] = record
    return records


def _csv_records(file: Path) -> dict[int, dict[str, object]]:
    """The rows of a CSV file, below its header, by the number of the line on which they end."""
    records: dict[int, dict[str, object]] = {}
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        header = next(reader, [])
        _check_header(header, file)
        for row in reader:
            if row and len(row) != len(header):  # one that is empty is a blank line
                raise DataError(
                    f"{file}, line {reader.line_num} has {len(row)} cells where the header has {len(header)}",
                    'put a text that holds commas or line ends into double quotes, and write " inside as ""',
                )
            if row:
                records[reader.line_num] = dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num} is not CSV: {first_line(error, 200)}",
            'look for a double quote that is not closed; inside a quoted text, " is written ""',
        ) from None
    finally:
        csv.field_size_limit(limit)
    return records


def _check_header(header: list[str], file: Path) -> None:
    """Refuse what would be read without a word as other texts than are meant."""
    if len(header) == 1 and (separator := re.search("[;\t]", header[0])):
        raise DataError(
            f"{file} has one column, {header[0]!r:.60}: its cells seem to be parted by {separator[0]!r}",
            "save it as CSV with commas, or rename that column if it is one",
        )
    for name, number in Counter(header).items():
        if name and number > 1:
            raise DataError(f"{file} has {number} columns called {name!r}", "give each column a name of its own")


def _text_field(file: Path, records: Sequence[dict[str, object]]) -> str:
    """The field that holds the text, where nobody has named it."""
    fields = dict.fromkeys(name for record in records for name in record)
    if "text" in fields or not fields:
        return "text"
    candidates = [name for name in fields if any(_is_prose(record.get(name)) for record in records)]
    if len(candidates) != 1:
        raise DataError(
            f"{file} has no field 'text', and {len(candidates)} others that hold text; its fields: "
            f"{listed(list(fields))}",
            "name one of them as text_field, or two as prompt_field and completion_field",
        )
    return candidates[0]


def _is_prose(value: object) -> bool:
    """Whether a cell holds text, and not a number written as text, or nothing."""
    if not isinstance(value, str) or not value.strip():
        return False
    with suppress(ValueError):
        float(value)
        return False
    return True


def _field_of(record: dict[str, object], name: str, place: str) -> str:
    if name not in record:
        raise DataError(
            f"{place} has no field {name!r}; its fields: {listed(list(record))}",
            "name a field that every record has, or mend that line",
        )
    value = record[name]
    if not isinstance(value, str):
        raise DataError(
            f"{place}: the field {name!r} holds {json.dumps(value)[:60]}, and no text",
            "write it as a string, or remove that line",
        )
    if half := _HALF_CHARACTER.search(value):
        raise DataError(
            f"{place}: the field {name!r} holds half a character, {half[0]!r} at {half.start()}",
            "the text was cut inside an emoji or the like: remove that half",
        )
    return with_line_feeds(value)


def _cut(document: Document, max_characters: int | None) -> Document:
    if max_characters is None or len(document.text) <= max_characters:
        return document
    return replace(document, text=document.text[:max_characters], whole=False)


# --- Documents -> documents -------------------------------------------------------------------------------------------


def split(
    documents: Sequence[Document], train_size: int | None, val_size: int | None, seed: int
) -> tuple[list[Document], list[Document]]:
    """Choose documents to train on and others to validate, without replacement.

    The choice is the same on every machine. Validation is drawn first: with another `train_size` it stays what it was,
    and the smaller training set is the beginning of the larger. Of equal documents one alone is chosen, so that none
    validates what has been learned.

    Args:
        documents: all there are.
        train_size: number to train on; None for all the rest.
        val_size: number to validate; None for a tenth, at least one.
        seed: another seed, another choice.

    Raises:
        DataError: if a size is below 1, or there are not enough documents.
    """
    documents = list(dict.fromkeys(documents))
    if val_size is None:
        val_size = max(1, len(documents) // 10)
    if train_size is None:
        train_size = max(1, len(documents) - val_size)
    for name, size in (("train_size", train_size), ("val_size", val_size)):
        if size < 1:
            raise DataError(f"{name} = {size} is too small", f"{name} must be at least 1")
    if train_size + val_size > len(documents):
        raise DataError(
            f"train_size = {train_size:,} and val_size = {val_size:,} need {train_size + val_size:,} documents, "
            f"and there are {len(documents):,} that differ",
            "choose smaller sizes, or give more documents; --documents.train_size 0 takes all that do not validate",
        )
    order = generator(seed, stream=0).permutation(len(documents)).tolist()
    chosen = [documents[place] for place in order[: val_size + train_size]]
    return chosen[val_size:], chosen[:val_size]


def generator(seed: int, stream: int) -> np.random.Generator:
    """A source of chance of its own for each (seed, stream): 0 is the split, 1 + e epoch e of the batches.

    It is counter-based (Philox; Salmon et al., 2011), so that none depends on what was drawn from another, or on the
    machine.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def keyword_line(words: Sequence[str]) -> str:
    r"""What opens a document about these words, in training and as a prompt: "keywords: a, b\n"."""
    return f"keywords: {', '.join(words)}\n"


def with_keywords(documents: Sequence[Document], k: int, training: Sequence[Document]) -> list[Document]:
    """Put the `keyword_line` of its k most telling words before each document, as part of what is given.

    A word tells much of a document if it is frequent there and few others have it: tf-idf, that is, its count times
    ln((1 + N) / (1 + n)), where n of the N training documents have it (Sparck Jones, 1972; plus one for words that none
    has). Of equals, the earlier word comes first. Upper and lower case are one.

    Args:
        documents: those to condition.
        k: number of words; fewer where a document has fewer.
        training: the documents that the model learns from. Counting in them alone keeps what validates out of them.

    Raises:
        ConfigError: if k is below 1.
    """
    if k < 1:
        raise ConfigError(f"k = {k} keywords say nothing", "k must be at least 1")
    having = Counter(word for document in training for word in set(_words(document.text)))

    def telling(word_and_count: tuple[str, int]) -> float:
        word, count = word_and_count
        return count * math.log((1 + len(training)) / (1 + having[word]))

    def keywords(document: Document) -> list[str]:
        counts = Counter(_words(document.text))  # in the order of the text, and sorting keeps it
        return [word for word, _ in sorted(counts.items(), key=telling, reverse=True)[:k]]

    return [replace(document, prompt=keyword_line(keywords(document)) + document.prompt) for document in documents]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
