"""Prompts made of examples: a model that only continues text is shown the pattern that it shall continue.

    instruction                  Translate English to French.

    examples, each an            English: sea
    input and its output         French: mer

    the query, and the           English: bread
    place for its output         French:

This is in-context learning (Brown et al., 2020): no weight changes. A model goes on after its answer, with an example
of its own, so decoding stops at the separator: `generate(..., stop=separator)`.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt.data.corpora import read_plain_text
from minigpt.data.documents import HALF_CHARACTER, line_records
from minigpt.errors import DataError, InputError, MissingFileError, TextNote, brief
from minigpt.system.files import listed, named_path

SEPARATOR = "\n\n"
PAIRS = (("input", "output"), ("prompt", "completion"), ("question", "answer"))  # what people call the two texts


def read_examples(path: str | Path) -> list[tuple[str, str]]:
    """Pairs (input, output) from a file of examples, one a line; blank lines are left out.

        .jsonl, .ndjson    a JSON object with the fields of one of `PAIRS`: {"input": "sea", "output": "mer"}
        .tsv, .txt         the input, a tab and the output; a first line that has the names of `PAIRS` is a heading

    Blanks around a text are removed. In a table, quotation marks are text.

    Args:
        path: the file; UTF-8.

    Warns:
        TextNote: of the other fields of a JSON object, which are not read.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is a folder, ends otherwise, is not UTF-8, or has no pair; or on a line that is no pair of
            texts which `few_shot_prompt` can use, with its number.
    """
    file = named_path(path, "path")
    forms = 'give one pair a line: .jsonl, {"input": "sea", "output": "mer"}; or .tsv, a tab between the two'
    if not file.exists():
        raise MissingFileError(f"there is no file {file}", forms)
    ending = file.suffix.lower()
    if file.is_dir() or ending not in (".jsonl", ".ndjson", ".tsv", ".txt"):
        raise DataError(f"{file} is {'a folder' if file.is_dir() else 'no .jsonl and no .tsv'}", forms)
    found: dict[str, Sequence[object]]  # by place
    if ending in (".jsonl", ".ndjson"):
        records = line_records(file)
        found = {place: [record.pop(name) for name in _fields(record, place)] for place, record in records.items()}
        if unused := dict.fromkeys(name for record in records.values() for name in record):
            warnings.warn(TextNote(f"{file}: fields not read: {listed([*unused])}"), stacklevel=2)
    else:
        lines = [line.split("\t") for line in read_plain_text(file).split("\n")]
        rows = [(number, cells) for number, cells in enumerate(lines, start=1) if "".join(cells).strip()]
        heading = bool(rows) and tuple(name.strip().lower() for name in rows[0][1]) in PAIRS
        found = {f"{file}, line {number}": cells for number, cells in rows[heading:]}
    if not found:
        raise DataError(f"{file} has no example", forms)
    return [_pair(cells, place) for place, cells in found.items()]


def _fields(record: Mapping[str, object], place: str) -> tuple[str, str]:
    """The names of the two texts of a JSON object."""
    for names in PAIRS:
        if all(name in record for name in names):
            return names
    known = "; ".join(" and ".join(names) for names in PAIRS)
    raise DataError(
        f"{place} has the fields {listed(list(record)) or '(none)'}, and no pair", f"call the two texts {known}"
    )


def _pair(cells: Sequence[object], place: str) -> tuple[str, str]:
    if len(cells) != 2:
        tabs = {1: "no tab", 2: "1 tab"}.get(len(cells), f"{len(cells) - 1} tabs")
        raise DataError(f"{place} has {tabs}", "put one tab between the input and the output")
    texts = []
    for what, text in zip(PAIRS[0], cells, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place}: its {what} is {brief(text)}", f"give the {what} as a text that is not blank")
        if half := HALF_CHARACTER.search(text):
            raise DataError(f"{place}: its {what} holds half a character, {half[0]!r}", "remove that half")
        if SEPARATOR in text.strip():
            raise DataError(
                f"{place}: its {what} has an empty line: what comes after it would look like another example",
                "take the empty line out",
            )
        texts.append(text.strip())
    return texts[0], texts[1]


def few_shot_prompt(
    examples: Sequence[tuple[str, str]],
    query: str,
    *,
    instruction: str = "",
    input_label: str = "Input:",
    output_label: str = "Output:",
    separator: str = SEPARATOR,
) -> str:
    """A prompt that shows what to do by examples, and ends where the answer to `query` begins.

    It ends with the output label and no space, for to GPT-2 a space is the beginning of the word after it.

    Args:
        examples: pairs (input, output); none makes a prompt of the instruction and the query alone.
        query: the input whose output is wanted.
        instruction: what stands above the examples; nothing if empty.
        input_label: what comes before each input, on its line.
        output_label: what comes before each output, on the next line.
        separator: what comes after the instruction and each example. It is also the string to stop at.

    Raises:
        InputError: if the separator or a label is empty, something is not a text, an example is not a pair of texts,
            or a text holds the separator, which would end it too early.
    """
    must_be_there = {"separator": separator, "input_label": input_label, "output_label": output_label}
    for name, text in {"instruction": instruction, "query": query, **must_be_there}.items():
        if not isinstance(text, str):
            raise InputError(f"{name} is {brief(text)}, not a text", 'give it as a string: "..."')
        if not text and name in must_be_there:
            raise InputError(f"{name} is empty", "give it at least one character, or leave it out")
    if not isinstance(examples, Sequence):
        raise InputError(f"examples = {brief(examples)} cannot be used", "give a list of pairs (input, output)")
    parts = [instruction] if instruction else []
    for number, example in enumerate(examples):
        pair = isinstance(example, list | tuple) and len(example) == 2
        if not pair or not all(isinstance(text, str) for text in example):
            raise InputError(
                f"example {number} is {brief(example)}, not a pair of texts", "give each example as (input, output)"
            )
        parts.append(f"{input_label} {example[0]}\n{output_label} {example[1]}")
    parts.append(f"{input_label} {query}\n{output_label}")
    for part in parts:
        if separator in part:
            raise InputError(
                f"{part[:60]!r} holds the separator {separator!r}: what comes after it would look like another example",
                "take it out of the text, or choose a separator that occurs in none",
            )
    return separator.join(parts)
