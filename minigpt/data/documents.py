"""A user's files -> documents, for fine-tuning.

A corpus is one long text; documents are many short ones, each with an end that a model should learn. Here they are
read, cleaned and split at random by a seed, and get a line of keywords if that is wanted. `data.batches` makes batches
of them.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minigpt.config import DocumentsConfig, Seed
from minigpt.data.corpora import (
    NAMED_RECORD_SUFFIXES,
    NAMED_SOURCES,
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    Corpus,
    files_below,
    left_out,
    read_plain_text,
)
from minigpt.errors import ConfigError, DataError, MissingFileError, counted, either, first_line, named
from minigpt.fields import checked
from minigpt.system.files import json_items, listed, named_path, parsed_json, with_line_feeds

ONE_FIELD = DocumentsConfig()  # whole texts, of records the field that holds text, of any length
SEPARATORS = {".csv": ",", ".tsv": "\t"}  # between the cells of a row
_LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit of 131,072 is too small for a novel
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # a surrogate without its other half, which JSON can contain
_NO_NAME = re.compile(r"^\s*[-+]?[\d.,]+\s*$|[.!?]\s*$|(?:\S+\s+){5}|.{61}", re.DOTALL)  # a number, or a sentence
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters of any script, and apostrophes between them


@dataclass(frozen=True)
class Document:
    """One text to learn from.

    Attributes:
        text: the part that is learned.
        prompt: the part before it, which is given and not learned. Nothing is put between the two: a space or a line
            feed that belongs there must be in one of them.
        whole: whether the text ends where its author ended it. A text that was cut gets no EOS.
        dialogue: the checksum of the dialogue that it is an example of, or of one that begins alike: those of one
            dialogue train or validate together; "" for a document of its own.
        turns: where in the prompt its turns begin. Of a prompt that is too long, whole turns are left out, the oldest
            first; what stands before the first of them is kept.
        replies: where in the prompt what was said in these turns begins and ends, of those that are replies.
    """

    text: str
    prompt: str = ""
    whole: bool = True
    dialogue: str = field(default="", compare=False, repr=False)
    turns: tuple[int, ...] = field(default=(), compare=False, repr=False)
    replies: tuple[tuple[int, int], ...] = field(default=(), compare=False, repr=False)

    def with_last_turns(self, count: int) -> "Document":
        """The same with at most so many of the turns in its prompt, the last of them, at least one."""
        if count >= len(self.turns):
            return self
        border = self.turns[-count]
        gone = border - self.turns[0]
        turns = tuple(start - gone for start in self.turns[-count:])
        replies = tuple((start - gone, stop - gone) for start, stop in self.replies if start > border)
        return replace(self, prompt=self.prompt[: turns[0]] + self.prompt[border:], turns=turns, replies=replies)


def most_turns(turns: int, fits: Callable[[int], bool]) -> int:
    """The most of so many turns, the last of them, with which a prompt fits; 1 also where that does not.

    Fewer turns have fewer tokens, so a few tries find it: a talk may have thousands, and to leave them out one by one
    would mean to encode the rest thousands of times.
    """
    return turns if fits(turns) else max(1, bisect_left(range(1, turns), True, key=lambda count: not fits(count)))


@dataclass(frozen=True)
class Documents:
    """The documents of a file or folder.

    Attributes:
        items: the documents, in the order of the files.
        described: one line: how many there are, what was taken as one document, what was left out.
        blank: number of documents left out because their text was blank.
        cut: number of documents cut to `max_characters`.
        validation: the validation documents, if they have a file of their own.
        numbers: of each of the items, which of all documents that were read it is, from 1.
    """

    items: list[Document] = field(repr=False)
    described: str
    blank: int
    cut: int
    validation: list[Document] | None = field(default=None, repr=False)
    numbers: list[int] = field(default_factory=list, repr=False)

    @property
    def texts(self) -> list[str]:
        """All that is read: the prompt and the text of each document, those to validate too."""
        return [text for one in (*self.items, *(self.validation or ())) for text in (one.prompt, one.text)]


# --- Files -> documents -----------------------------------------------------------------------------------------------


@checked
def read_documents(path: str | Path, settings: DocumentsConfig = ONE_FIELD) -> Documents:
    """Read documents from a text file, a `.jsonl`, a `.json`, a `.csv`, or a folder of these.

    One document is:

        .jsonl, .ndjson    each line, a JSON object
        .json              each object of an array, or each line, an object; in a folder, it is not read
        .csv, .tsv         each row below the header; with commas or tabs, and double quotes, line ends inside quotes
        one text file      the parts between blank lines; where no line is blank, each line
        a folder           each text file (`corpora.TEXT_SUFFIXES`) as a whole, each record of the others; in the
                           order of their paths, subfolders included; records alone if a field is named

    Files are UTF-8, with or without a byte order mark. Line ends become LF, blanks around a text are removed, and blank
    documents are left out. Prompts and completions keep their blanks, because those between the two matter.

    Args:
        path: the file or folder; never changed.
        settings: which fields of a record are read, and what becomes of longer texts. Prompts are never cut.

    Raises:
        MissingFileError: if there is no such path.
        DataError: if the text is of another encoding; on a line or a record that is no JSON object, a CSV row of
            another length than the header, or a record without the field or with half a character in it, with its
            number; if a CSV is parted by semicolons or tabs, names two columns alike, or begins with a row; if several
            fields could be the text; if all documents are blank, or longer than is allowed.
    """
    path = named_path(path, "path")
    learned, most = settings.text_field or settings.completion_field, settings.max_characters
    files = _fitting_files(path, RECORD_SUFFIXES if learned else (*TEXT_SUFFIXES, *RECORD_SUFFIXES))
    found: list[Document] = []
    units: list[str] = []  # what was taken as a document
    unused: dict[str, None] = {}  # fields that are not read
    for file in files:
        if file.suffix.lower() in NAMED_RECORD_SUFFIXES:
            documents, unit, others = _from_records(file, learned, settings.prompt_field)
            unused |= dict.fromkeys(others)
        else:
            text = read_plain_text(file)
            documents, unit = text_documents(text) if file == path else ([Document(text.strip())], "a file")
        found += documents
        units.append(unit)
    items = {number: _cut(document, most) for number, document in enumerate(found, 1) if document.text.strip()}
    if not items:
        raise DataError(
            f"there are no documents in {path}: all {len(found)} are blank" if found else f"{path} has no records",
            "name a file with text in it, or another field",
        )
    blank, cut = len(found) - len(items), sum(not document.whole for document in items.values())
    if settings.longer == "drop" and cut:
        items, dropped, cut = {number: document for number, document in items.items() if document.whole}, cut, 0
    else:
        dropped = 0
    if not items:
        raise DataError(
            f"all {dropped:,} documents in {path} are longer than {named('max_characters', most)}",
            "allow more characters, or cut what is longer",
        )
    described = f"{path}: {counted(len(items), 'document')}, each {' or '.join(dict.fromkeys(units))}"
    for number, what in (
        (blank, "blank and left out"),
        (cut, f"cut to {most} characters"),
        (dropped, f"longer than {most} characters left out"),
    ):
        described += f"; {number:,} {what}" if number else ""
    described += f"; fields not read: {listed(list(unused))}" if unused else ""
    return Documents([*items.values()], described + left_out(path, files), blank, cut, numbers=[*items])


def with_validation(documents: Documents, validation: Documents) -> Documents:
    """Training documents, together with validation documents from a file of their own."""
    return replace(
        documents,
        described=f"{documents.described}; to validate, {validation.described}",
        validation=validation.items,
    )


def data_checksum(data: Corpus | Documents) -> str:
    """The sha256 of a text, or of all documents."""
    digest = hashlib.sha256()
    if isinstance(data, Corpus):
        digest.update(data.text.encode("utf-8"))
        if data.val_start is not None:
            digest.update(f"{data.val_start} to learn from".encode())
    else:
        for document in [*data.items, *(data.validation or ())]:
            digest.update(repr(document).encode("utf-8"))
        if data.validation is not None:
            digest.update(f"{len(data.validation)} validate".encode())
    return digest.hexdigest()


def _fitting_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file, or those below the folder, that end in one of the suffixes."""
    if not path.exists():
        what, how = f"there is no file or folder {path}", "check the path of the documents"
        if str(path) in NAMED_SOURCES:
            how = f"name one in its place: the corpus {path} is not made of documents"
        raise MissingFileError(what, how)
    if not path.is_dir():
        suffixes = tuple(dict.fromkeys((*suffixes, *NAMED_RECORD_SUFFIXES)))
    found = files_below(path, suffixes) if path.is_dir() else [path]
    fitting = [file for file in found if file.name.lower().endswith(suffixes)]
    if not fitting:
        what = f"{path} has no file that ends" if path.is_dir() else f"{path} does not end"
        raise DataError(
            f"{what} in {' or '.join(suffixes)}",
            "documents are read only from these; only files of records have fields",
        )
    return fitting


def text_documents(text: str) -> tuple[list[Document], str]:
    """The documents of a text alone, and what was taken as one: the parts between blank lines, or else its lines."""
    text = text.strip()
    if re.search(r"\n\s*\n", text):
        parts, unit = re.split(r"\n\s*\n", text), "a part between blank lines"
    else:
        parts, unit = text.split("\n"), "a line"
    return [Document(part.strip()) for part in parts], unit


def _from_records(file: Path, learned: str, prompt: str) -> tuple[list[Document], str, list[str]]:
    """The documents of a file of records, what was taken as one document, and the fields that were not read."""
    ending = file.suffix.lower()
    read = _csv_records if ending in SEPARATORS else json_records if ending == ".json" else line_records
    records = read(file)
    others = list(dict.fromkeys(name for record in records.values() for name in record))
    if not learned:
        learned = _text_field(file, list(records.values()))
    texts = [_field_of(record, learned, place) for place, record in records.items()]
    others = [name for name in others if name not in (learned, prompt)]
    if not prompt:
        return [Document(text.strip()) for text in texts], f"the field {learned!r} of a record", others
    prompts = [_field_of(record, prompt, place) for place, record in records.items()]
    pairs = [Document(*pair) for pair in zip(texts, prompts, strict=True)]
    return pairs, f"the fields {prompt!r} and {learned!r}", others


def line_records(file: Path) -> dict[str, dict[str, object]]:
    """The objects of a JSONL file by place: the file's path and the line's number."""
    records = {}
    # Only at line feeds: a JSON string may contain the other characters at which `splitlines` would cut.
    for number, line in enumerate(read_plain_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            found = parsed_json(line)
        except (ValueError, RecursionError) as error:
            reason = first_line(error, 200).partition(": line 1")[0]  # always 1: the line is parsed alone
            raise DataError(f"{place} is not JSON: {reason}", "mend that line: each is one JSON object") from None
        records[place] = _record(found, place)
    return records


def holds_records(text: str) -> bool:
    """Whether a JSON text is an array, or an object in each line, as other libraries write under that name too."""
    first, _, rest = text.strip().partition("\n")
    lines = first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{")
    return lines or first.startswith("[")


def json_records(file: Path) -> dict[str, dict[str, object]]:
    """The records of a JSON file by place: the file's path and the number of the object in its array, or the line's."""
    text, records = read_plain_text(file), {}
    if not holds_records(text):
        raise DataError(f"{file} holds no array of records", 'write [{"text": "..."}, ...], or save them as .jsonl')
    if not text.lstrip().startswith("["):
        return line_records(file)
    items = json_items(text)
    for number in itertools.count(1):
        place = f"{file}, record {number}"
        try:
            found = next(items)
        except StopIteration:
            break
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is not JSON: {first_line(error, 200)}", "each is one JSON object") from None
        records[place] = _record(found, place)
    return records


def _record(found: object, place: str) -> dict[str, object]:
    if not isinstance(found, dict):
        raise DataError(f"{place} holds a JSON {type(found).__name__}, and no object", "write each as an object, {...}")
    return found


def _csv_records(file: Path) -> dict[str, dict[str, object]]:
    """The rows of a CSV file, below its header, by place: the file's path and the number of the row's last line."""
    records: dict[str, dict[str, object]] = {}
    separator, text = SEPARATORS[file.suffix.lower()], read_plain_text(file)
    told = re.match("sep=([,;|\t])\n", text)  # a line with which Excel is told what separates the cells
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=told[1] if told else separator, strict=True)
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        header = next(itertools.islice(reader, bool(told), None), [])
        _check_header(header, file)
        for row in reader:
            if row and len(row) != len(header):  # an empty row is a blank line
                raise DataError(
                    f"{file}, line {reader.line_num} has {len(row)} cells where the header has {len(header)}",
                    'put a text that holds commas or line ends into double quotes, and write " inside as ""',
                )
            if row:
                records[f"{file}, line {reader.line_num}"] = dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num} is not CSV: {first_line(error, 200)}",
            'look for a double quote that is not closed; inside a quoted text, " is written ""',
        ) from None
    finally:
        csv.field_size_limit(limit)
    return records


def _check_header(header: list[str], file: Path) -> None:
    """Raise if the columns are probably not what the user means: they would be read silently as other texts."""
    if len(header) == 1 and (separator := re.search("[;\t]", header[0])):
        raise DataError(
            f"{file} has one column, {header[0]!r:.60}: its cells seem to be separated by {separator[0]!r}",
            "save it as CSV with commas, or rename that column if it is one",
        )
    numbers = [*map(str, range(len(header)))]  # how pandas calls columns that nobody has named
    for name, number in Counter(header).items():
        if name and number > 1:
            raise DataError(f"{file} has {number} columns called {name!r}", "give each column a name of its own")
        if _NO_NAME.search(name) and header not in (numbers, ["", *numbers[:-1]]):  # the latter with its index
            raise DataError(
                f"{file} begins with a row, {name!r:.60}, where the names of its columns should stand",
                "write them above it, such as text,label: the first row would be lost",
            )


def _text_field(file: Path, records: Sequence[dict[str, object]]) -> str:
    """The field that holds the text, if the user has named none."""
    fields = dict.fromkeys(name for record in records for name in record)
    if "text" in fields or not fields:
        return "text"
    candidates = [name for name in fields if any(_is_prose(record.get(name)) for record in records)]
    if len(candidates) != 1:
        raise DataError(
            f"{file} has no field 'text', and {len(candidates)} others that hold text; its fields: "
            f"{listed(list(fields))}",
            either(
                f"name one of them as {named('text_field')}",
                f"train on pairs with {named('prompt_field')} and {named('completion_field')}",
            )
            if candidates
            else "write the texts into a field of that name",
        )
    return candidates[0]


def _is_prose(value: object) -> bool:
    """Whether a cell holds text: neither nothing nor a number written as text."""
    if not isinstance(value, str) or not value.strip():
        return False
    with suppress(ValueError):
        float(value)
        return False
    return True


def _field_of(record: dict[str, object], name: str, place: str) -> str:
    if name not in record:
        raise DataError(
            f"{place} has no field {name!r}; its fields: {listed(list(record)) or 'none'}",
            "name a field that every record has, or mend that one",
        )
    value = record[name]
    if not isinstance(value, str):
        raise DataError(
            f"{place}: the field {name!r} holds {json.dumps(value)[:60]}, and no text",
            "write it as a string, or remove that record",
        )
    if half := HALF_CHARACTER.search(value):
        raise DataError(
            f"{place}: the field {name!r} holds half a character, {half[0]!r} at {half.start()}",
            "the text was cut inside an emoji or the like: remove that half",
        )
    return with_line_feeds(value)


def _cut(document: Document, max_characters: int) -> Document:
    if not 0 < max_characters < len(document.text):
        return document
    return replace(document, text=document.text[:max_characters], whole=False)


# --- Documents -> documents -------------------------------------------------------------------------------------------


@checked
def split(
    documents: Sequence[Document],
    train_size: int | None,
    val_size: int | None,
    seed: Seed,
    validation: Sequence[Document] | None = None,
) -> tuple[list[Document], list[Document]]:
    """Choose documents for training and others for validation, at random, without replacement.

    The choice is the same on every machine. The validation documents are drawn first, so they do not depend on
    `train_size`, and a smaller training set is the beginning of a larger one. Equal documents count as one, so that no
    validation document has been trained on. The examples of a dialogue stay together, and count as one.

    Args:
        documents: all documents.
        train_size: number of training documents, or dialogues; None for all the rest.
        val_size: number of validation documents, or dialogues; None for a tenth, at least one, or for all of
            `validation`.
        seed: of the choice.
        validation: validation documents from a file of their own. Documents that are equal to one of these are not
            trained on.

    Raises:
        DataError: if a size is below 1, or there are not enough documents.
    """
    what = "dialogues" if any(document.dialogue for document in documents) else "documents"
    units = _together(documents)
    if validation is not None:
        held_out, candidates = set(validation), len(units)
        kept_out = {document.dialogue for document in validation if document.dialogue}
        units = _together(d for d in documents if d not in held_out and d.dialogue not in kept_out)
        if candidates and not units:
            raise DataError(
                f"all {candidates:,} {what} to train on are in {named('val_data')} too",
                f"give other {what} to train on, or leave {named('val_data')} out: then some of them are held out",
            )
        validating = _together(validation)
        return (
            _chosen(units, len(units) if train_size is None else train_size, seed, "train_size", what),
            _chosen(validating, len(validating) if val_size is None else val_size, seed, "val_size", what),
        )
    if len(units) < 2:
        parting = " (in a chat log, a blank line ends each)" if what == "dialogues" else ""
        raise DataError(
            f"there are fewer than 2 {what} that differ: one is to train on, and one to validate with",
            f"give more {what}{parting}, or others to validate with as {named('val_data')}",
        )
    if val_size is None:
        val_size = max(1, len(units) // 10)
    if train_size is None and val_size >= len(units):
        raise DataError(
            f"{named('val_size', val_size)} leaves none of {len(units):,} {what} to train on",
            f"choose a smaller {named('val_size')}, or give more {what}",
        )
    if train_size is None:
        train_size = len(units) - val_size
    for name, size in (("train_size", train_size), ("val_size", val_size)):
        if size < 1:
            raise DataError(f"{named(name, size)} is too small", f"{named(name)} must be at least 1")
    if train_size + val_size > len(units):
        raise DataError(
            f"{named('train_size', train_size)} and {named('val_size', val_size)} need {train_size + val_size:,} "
            f"{what}, and there are {len(units):,} that differ",
            f"choose smaller sizes, or give more {what}",
        )
    order = generator(seed, stream=0).permutation(len(units)).tolist()
    return (
        _joined(units[place] for place in order[val_size : val_size + train_size]),
        _joined(units[place] for place in order[:val_size]),
    )


def parted(documents: Documents, d: DocumentsConfig, seed: Seed) -> tuple[list[Document], list[Document]]:
    """The documents of a run with these settings: those that are learned, and those that validate. See `split`."""
    return split(documents.items, d.train_size or None, d.val_size or None, seed, documents.validation)


def _together(documents: Iterable[Document]) -> list[list[Document]]:
    """What is chosen as one: the examples of a dialogue, or a document of its own. Of equal documents, the first."""
    units: dict[str | int, list[Document]] = {}
    for number, document in enumerate(dict.fromkeys(documents)):
        units.setdefault(document.dialogue or number, []).append(document)
    return list(units.values())


def _joined(units: Iterable[list[Document]]) -> list[Document]:
    return [document for unit in units for document in unit]


def _chosen(units: list[list[Document]], size: int, seed: int, name: str, what: str) -> list[Document]:
    """The documents of `size` units in the random order of a seed."""
    if not 1 <= size <= len(units):
        raise DataError(
            f"{named(name, size)}, and there are {len(units):,} {what} that differ",
            f"choose a smaller size of at least 1, or give more {what}; 0 takes all",
        )
    order = generator(seed, stream=0).permutation(len(units)).tolist()
    return _joined(units[place] for place in order[:size])


def generator(seed: int, stream: int) -> np.random.Generator:
    """A random generator for each (seed, stream): stream 0 is for the split, stream 1 + e for epoch e of the batches.

    Of one text, which has no split, stream e is for epoch e.

    It is counter-based (Philox; Salmon et al., 2011), so that no stream depends on the draws of another, or on the
    machine.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


@checked
def keyword_line(words: Sequence[str]) -> str:
    r"""The line before a document with these keywords, in training and in a prompt: "keywords: a, b\n"."""
    return f"keywords: {', '.join(words)}\n"


@checked
def with_keywords(documents: Sequence[Document], k: int, training: Sequence[Document]) -> list[Document]:
    """Put the `keyword_line` of its k most telling words before each document, as the beginning of its prompt.

    A word is telling if it is frequent in the document and few other documents have it. This is tf-idf: its count times
    ln((1 + N) / (1 + n)), where n of the N training documents have it (Sparck Jones, 1972; the 1 is for words that no
    training document has). Of equally telling words, the earlier comes first. Case is ignored.

    Args:
        documents: the documents to put keywords before.
        k: number of words; fewer if a document has fewer.
        training: the training documents. Words are counted only in these, so that nothing of the validation documents
            enters the training.

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
