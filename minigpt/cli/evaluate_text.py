"""`minigpt evaluate-text`."""

import os
import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minigpt.cli.models import load
from minigpt.cli.settings import MEMORISED, EvaluateText
from minigpt.cli.streams import SEND_UTF8, STDIN, check_stdin_once, print_json
from minigpt.cli.texts import check_field, framed, has_fields, training_documents
from minigpt.config import DocumentsConfig
from minigpt.data.corpora import RECORD_SUFFIXES, read_plain_text
from minigpt.data.documents import ONE_FIELD, holds_records, read_documents, text_documents
from minigpt.errors import DataError, TextNote, counted, first_line
from minigpt.evaluation.diversity import WORD_MEANING, distinct_n, repeated_n, words
from minigpt.evaluation.loss import Evaluation, evaluate
from minigpt.evaluation.overlap import copied_share, overlaps
from minigpt.evaluation.references import nearness
from minigpt.system import terminal
from minigpt.system.files import parsed_json, plain_text, read_json
from minigpt.tokenizers import read

_FILES_PER_TABLE = 4
_LONGEST_QUOTE = 480  # characters of a copied span that are printed
_JSON = re.compile(r'\s*\[?\s*\{\s*["}]')  # how answers and records begin


@dataclass(frozen=True)
class Texts:
    """The texts of one file.

    Attributes:
        name: the file.
        items: the texts; none is blank.
        numbers: of each, which of all texts in the file it is, from 1.
        blank: number of blank texts, which are left out.
    """

    name: str
    items: list[str]
    numbers: list[int]
    blank: int

    @classmethod
    def without_blanks(cls, name: str, texts: Sequence[str]) -> "Texts":
        """Those of all texts that are not blank."""
        numbers = [number for number, text in enumerate(texts, 1) if text.strip()]
        return cls(name, [texts[number - 1] for number in numbers], numbers, len(texts) - len(numbers))


def answer(settings: EvaluateText) -> None:
    """Measure each file and print the table."""
    check_stdin_once([*settings.file, settings.reference or ""])
    records = [file for file in (*settings.file, settings.reference or "") if _has_records(file)]
    check_field(settings.text_field, records, settings.training_data)
    columns = [read_texts(file, settings.text_field) for file in settings.file]
    training = training_documents(settings.training_data, settings.text_field) if settings.training_data else None
    results = [_variety(texts) for texts in columns]
    if settings.reference:
        references = read_texts(settings.reference, settings.text_field)
        for texts, result in zip(columns, results, strict=True):
            result |= _nearness(texts, references)
    if training is not None:
        for texts, result in zip(columns, results, strict=True):
            result["copied"] = _copied(texts, training)
    for spec in settings.model:
        perplexity = _perplexity_under(spec, settings)
        for texts, result in zip(columns, results, strict=True):
            result["models"].append({"model": spec, **perplexity(texts)})
    if settings.json:
        print_json({"files": results, "word": WORD_MEANING})
    else:
        _show(results)


def read_texts(file: str, field: str | None) -> Texts:
    """The texts of a file of documents, of the JSON that `generate` prints, or of standard input.

    Raises:
        MiniGPTError: if there is no such file, or no text in it.
    """
    if file == STDIN:
        return _from_stdin()
    records = _has_records(file)
    if Path(file).suffix.lower() == ".json" and not records:
        return _completions(file, read_json(Path(file)))
    found = read_documents(file, DocumentsConfig(text_field=field or "") if records else ONE_FIELD)
    if os.path.isdir(file):
        warnings.warn(TextNote(found.described), stacklevel=2)  # what of it is not read
    return Texts(file, [document.text for document in found.items], found.numbers, found.blank)


def _has_records(file: str) -> bool:
    """Whether the texts of a file may be a field of records; in .json is also what `generate` prints.

    Raises:
        DataError: of a .json, as `read_plain_text`.
    """
    path = Path(os.path.expanduser(file))
    if path.suffix.lower() == ".json" and path.is_file():
        return holds_records(read_plain_text(path))
    return has_fields(file, RECORD_SUFFIXES)


def _from_stdin() -> Texts:
    name = "standard input"
    content = plain_text(sys.stdin.buffer.read(), name, SEND_UTF8)
    if _JSON.match(content):
        try:
            answer = parsed_json(content)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{name} begins as JSON does, and is not one JSON object: {first_line(error, 200)}",
                "send one answer of minigpt generate --json, or save this as .jsonl, or as .txt if it is text",
            ) from None
        return _completions(name, answer)
    texts = Texts.without_blanks(name, [document.text for document in text_documents(content)[0]])
    if not texts.items:
        raise DataError(f"there are no documents in {name}: it is blank", SEND_UTF8)
    return texts


def _completions(name: str, content: object) -> Texts:
    """The completions in what `generate --json` printed."""
    rows = content.get("completions") if isinstance(content, dict) else None
    rows = rows if isinstance(rows, list) else []
    found = [row.get("completion") for row in rows if isinstance(row, dict)]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(rows):
        raise DataError(
            f'{name} has no list "completions" of objects that each have a text "completion"',
            "give what minigpt generate --json prints, or texts as .txt or .jsonl",
        )
    found_texts = Texts.without_blanks(name, texts)
    if not found_texts.items:
        raise DataError(f"all {len(texts)} completions in {name} are blank", "let the model write some text first")
    return found_texts


def _variety(texts: Texts) -> dict[str, Any]:
    in_words = [words(text) for text in texts.items]
    return {
        "file": texts.name,
        "texts": len(texts.items),
        "blank": texts.blank,
        "words_per_text": sum(map(len, in_words)) / len(in_words),
        "characters_per_text": sum(map(len, texts.items)) / len(in_words),
        **{f"distinct_{n}": distinct_n(in_words, n) for n in (1, 2, 3)},
        "repeated_4": repeated_n(in_words, 4),
        "models": [],
    }


def _nearness(texts: Texts, references: Texts) -> dict[str, Any]:
    for each in (texts, references):
        if each.blank:
            raise DataError(
                f"{each.blank} of the texts in {each.name} are blank, and without them texts and references are no "
                "longer pairs",
                "take these pairs out of both files",
            )
    found = nearness(texts.items, references.items)
    return {"bleu": found.bleu, "chrf": found.chrf, "signatures": list(found.signatures)}


def _copied(texts: Texts, training: Sequence[str]) -> dict[str, Any]:
    found = overlaps(_bar(texts.items, "text"), _bar(training, "document"))
    # If there are several, the first.
    number, longest = max(zip(texts.numbers, found, strict=True), key=lambda one: one[1].longest)
    return {
        "share_8": copied_share(found, 8),
        "share_13": copied_share(found, 13),
        "longest_words": longest.longest,
        "longest_characters": len(longest.longest_text),
        "longest_text": longest.longest_text,
        "longest_in": number,
        "whole": sum(overlap.longest == len(overlap.lengths) for overlap in found),
        "mean_longest_words": sum(overlap.longest for overlap in found) / len(found),
    }


def _bar(items: Sequence[str], unit: str) -> "tqdm[str]":
    """The same items, with a progress bar where they take more than a second."""
    return tqdm(items, unit=unit, leave=False, disable=None, delay=1)


def _perplexity_under(spec: str, settings: EvaluateText) -> Callable[[Texts], dict[str, Any]]:
    """Load a model; returns a function that computes the perplexity of texts, each alone, after BOS if there is one."""
    model, tokenizer = load(settings, spec)
    has_bos = tokenizer.bos_token_id is not None

    def measure(texts: Texts) -> dict[str, Any]:
        total, tokens, characters = 0.0, 0, 0
        for text in _bar(texts.items, "text"):
            ids = framed(read(tokenizer, text), tokenizer, bos=has_bos)
            if len(ids) > 1:  # otherwise there is nothing to predict
                result = evaluate(model, np.array(ids), vocab_size=tokenizer.vocab_size)
                total += result.loss * result.tokens
                tokens += result.tokens
                characters += len(tokenizer.decode(ids[1:]))
        if not tokens:
            raise DataError(
                f"no text in {texts.name} has a second token for {spec} to predict", "give texts of several characters"
            )
        pooled = Evaluation(total / tokens, tokens)
        return {
            "perplexity": pooled.perplexity, "bits_per_character": pooled.bits_per_character(characters),
            "tokens": tokens,
        }  # fmt: skip

    return measure


def _show(results: Sequence[dict[str, Any]]) -> None:
    names = Counter(Path(result["file"]).name for result in results)
    for start in range(0, len(results), _FILES_PER_TABLE):
        columns = [_cells(result, names) for result in results[start : start + _FILES_PER_TABLE]]
        for label in columns[0]:
            numbers = (" " + terminal.fitted(cells[label], 12, right=True) for cells in columns)
            print(terminal.fitted(label, 27) + "".join(numbers))
        print()
    for result in results:
        if result.get("copied", {}).get("longest_words"):
            _show_copy(result)
    for label, measured in zip(_model_labels(results[0]), results[0]["models"], strict=True):
        print(f"perplexity{label}: under {measured['model']}")
    for signature in results[0].get("signatures", ()):
        print(signature)
    print(textwrap.fill(WORD_MEANING, terminal.WIDTH))


def _show_copy(result: dict[str, Any]) -> None:
    copied = result["copied"]
    verdict = ": memorised" if copied["longest_words"] >= MEMORISED else ""
    heading = (
        f"{result['file']}, text {copied['longest_in']}, copies {counted(copied['longest_words'], 'word')}{verdict}:"
    )
    quote = terminal.cut(" ".join(copied["longest_text"].split()), _LONGEST_QUOTE)
    print(f"{heading}\n{textwrap.indent(textwrap.fill(quote, 76), '    ')}\n")


def _cells(result: dict[str, Any], names: Counter[str]) -> dict[str, str]:
    """The column of a file: label -> number. All files have the same labels; `names` has all of theirs."""
    name = Path(result["file"]).name
    cells = {
        "": name if names[name] == 1 else result["file"],
        "texts": f"{result['texts']:,}",
        "blank, left out": f"{result['blank']:,}",
        "words a text": f"{result['words_per_text']:.1f}",
        "characters a text": f"{result['characters_per_text']:.1f}",
        **{f"distinct-{n}": terminal.decimals(result[f"distinct_{n}"], 3) for n in (1, 2, 3)},
        "repeated 4-grams": terminal.decimals(result["repeated_4"], 3),
    }
    for label, measured in zip(_model_labels(result), result["models"], strict=True):
        cells[f"perplexity{label}"] = terminal.decimals(measured["perplexity"], 2)
        cells[f"bits per character{label}"] = terminal.decimals(measured["bits_per_character"], 3)
    if copied := result.get("copied"):
        cells["8-grams copied"] = terminal.decimals(copied["share_8"], 3)
        cells["13-grams copied"] = terminal.decimals(copied["share_13"], 3)
        cells["texts copied whole"] = f"{copied['whole']:,}"
        cells["longest copy, words"] = f"{copied['longest_words']:,}"
        cells["longest copy, characters"] = f"{copied['longest_characters']:,}"
        cells["mean longest copy, words"] = f"{copied['mean_longest_words']:.1f}"
    if "bleu" in result:
        cells |= {"BLEU": terminal.decimals(result["bleu"], 2), "chrF": terminal.decimals(result["chrf"], 2)}
    return cells


def _model_labels(result: dict[str, Any]) -> list[str]:
    return [f", {place}" if len(result["models"]) > 1 else "" for place, _ in enumerate(result["models"], 1)]
