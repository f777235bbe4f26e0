"""What a run reads, by the number of the row: the same rows for any number of processes, each once an epoch."""

import json

import numpy as np
import pytest
import torch

from minigpt.config import RunConfig, updated
from minigpt.data.corpora import Corpus
from minigpt.data.dialogues import Dialogue, examples
from minigpt.data.documents import Document, Documents, parted
from minigpt.data.loaders import DocumentLoader, document_loader, text_loader
from minigpt.data.tokens import IGNORED, prepare
from minigpt.errors import ConfigError, DataError, InputError
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer

TEXTS = [f"{'abcdefg'[i % 7] * (1 + i % 5)}{i}" for i in range(31)]
TOKENIZER = CharTokenizer.from_text("\n" + "".join(TEXTS) + "keywords: ,")


def loader(tokenizer: CharTokenizer = TOKENIZER, **settings) -> DocumentLoader:
    batch_size = settings.pop("batch_size", 4)
    config = updated(
        RunConfig(),
        {"model": {"block_size": 13}, "train": {"batch_size": batch_size}, "documents": {"val_size": 5, **settings}},
    )
    documents = Documents([Document(text) for text in TEXTS], "31 texts", 0, 0)
    return document_loader(documents, "texts", config, tokenizer)


def learned(batch) -> list[str]:
    """What the rows of a batch have as targets, as text."""
    return [TOKENIZER.decode([t for t in row.tolist() if t != IGNORED]) for row in batch.targets]


@pytest.mark.parametrize("batching", ["padded", "packed-masked"])
def test_every_document_is_read_once_an_epoch(batching):
    source = loader(batching=batching)
    for epoch in range(3):
        first = epoch * source.rows_per_epoch
        rows = [row for i in range(source.rows_per_epoch) for row in learned(source.batch(first + i, 1))]
        # Of each document its first character is no target, and the line end behind it is one.
        validated = sum(int((batch.targets != IGNORED).sum()) for batch in source.validation())
        assert sum(map(len, rows)) + validated == sum(map(len, TEXTS))
        ends = sorted("".join(rows).split("\n"))
        assert len(ends) == 26 + 1
        assert all(any(text.endswith(end) for text in TEXTS) for end in ends)


def test_processes_share_a_batch_by_rows():
    """4 rows in one piece are the 2 + 2 rows of two processes."""
    source = loader(batch_size=4)
    assert source.rows_per_epoch == 26
    for epoch in (0, 26):
        for first in range(epoch, epoch + 24, 4):
            parts = [learned(source.batch(first + row, 2)) for row in (0, 2)]
            assert parts[0] + parts[1] == learned(source.batch(first, 4))


def test_batches_of_the_size_that_documents_are_laid_out_for_are_those_of_the_plan():
    """So a run without interruption pads little; the short batch is the last, wherever the plan has it."""
    source = loader(batch_size=4)
    number, plan = next((n, plan) for n in range(9) if len((plan := [*map(learned, source.read(n))])[-1]) == 4)
    found = [learned(source.batch(26 * number + first, min(4, 26 - first))) for first in range(0, 26, 4)]
    assert found == [batch for batch in plan if len(batch) == 4] + [batch for batch in plan if len(batch) == 2]


def test_any_row_can_be_had_without_those_before_it():
    one, other = loader(), loader()
    late = one.batch(5 * one.rows_per_epoch + 8, 4)
    for first in range(0, 3 * other.rows_per_epoch, 4):
        other.batch(first, 4)
    again = other.batch(5 * other.rows_per_epoch + 8, 4)
    assert torch.equal(late.inputs, again.inputs)
    assert torch.equal(late.targets, again.targets)


def test_settings_that_contradict_the_model_or_the_documents():
    with pytest.raises(ConfigError, match="max_length = 14 does not lie between 2 and block_size = 13"):
        loader(max_length=14)
    with pytest.raises(DataError, match="train_size"):
        loader(train_size=30)


@pytest.mark.parametrize("length", [5, 8])
def test_documents_that_are_equal_as_far_as_they_are_read_are_counted(length):
    texts = [f"aaaaa{i}" if i % 3 else f"{i}aaaaa" for i in range(10, 31)]  # 14 begin alike, and 7 differ at once
    changes = {"model": {"block_size": 13}, "documents": {"val_size": 5, "max_length": length}}
    documents = Documents([Document(text) for text in texts], "21 texts", 0, 0)
    found = document_loader(documents, "texts", updated(RunConfig(), changes), TOKENIZER)
    train = {line for i in range(found.rows_per_epoch) for line in learned(found.batch(i, 1))}
    alike = sum(line in train for batch in found.validation() for line in learned(batch))
    assert (alike > 0) == (length == 5)
    said = f", {alike} that validate are learned too, because up to there they are equal to others"
    assert (said in found.described[1]) == (length == 5)
    assert ("learned too" in found.described[1]) == (length == 5)


@pytest.mark.parametrize("window", [2, 6, 12])
def test_replies_that_are_learned_from_records_of_the_same_talk_are_counted(window):
    """Of one talk in each record, and of pairs that are all there is of an exchange, nothing is learned twice."""
    talks = [[f"{'abcdefg'[turn % 7]}{talk}{turn}" for turn in range(12)] for talk in range(10, 20)]
    found = []
    for talk in talks:
        for stop in range(window, 13, 2):
            messages = [{"role": ("user", "assistant")[n % 2], "content": talk[n]} for n in range(stop - window, stop)]
            found += examples(Dialogue(tuple(messages)), turns=4)
    tokenizer = CharTokenizer.from_text("".join(one.prompt + one.text for one in found))
    config = updated(RunConfig(), {"model": {"block_size": 199}})
    documents = Documents(found, "talks", 0, 0)
    learning, validating = parted(documents, config.documents, config.seed)
    known = sum(one.text in {other.text for other in learning} for one in validating)  # no two say the same here
    said = "that validate are learned from other dialogues too, after the same turn"
    line = document_loader(documents, "talks", config, tokenizer).described[1]
    assert (known > 0) == (said in line) == (window == 6)
    assert window != 6 or f", {known} {said}" in line


def test_copies_are_left_out_and_said():
    config = updated(RunConfig(), {"model": {"block_size": 13}, "train": {"batch_size": 4}})
    documents = Documents([Document(text) for text in [*TEXTS, *TEXTS[:7]]], "38 texts", 0, 0)
    source = document_loader(documents, "texts", config, TOKENIZER)
    assert source.described[0] == "documents  38 texts; 7 copies of others left out"
    assert source.described[1].startswith("tokens     28 documents to train on, 3 to validate; ")


@pytest.mark.parametrize("setting", ["char", "gpt2"])
def test_a_floor_for_each_character_needs_tokens_that_are_characters(tmp_path, setting):
    """A model to start from brings its tokenizer, whatever the settings say of new ones."""
    corpus = Corpus("counting", "0123456789" * 40, "made up", floor=lambda start, stop: stop - start)
    config = updated(RunConfig(), {"model": {"block_size": 7}, "data": {"tokenizer": setting}})
    for tokenizer, floor in ((CharTokenizer.from_text(corpus.text), 40), (GPT2Tokenizer(["0 1"]), None)):
        train, val = prepare(corpus, tokenizer, config.data, 7, tmp_path)
        assert text_loader(corpus, config, tokenizer, train, val).floor == floor


def test_a_text_is_read_in_windows(tmp_path):
    corpus = Corpus("counting", "0123456789" * 40, "made up")
    config = updated(RunConfig(), {"model": {"block_size": 7}, "seed": 3})
    tokenizer = CharTokenizer.from_text(corpus.text)
    train, val = prepare(corpus, tokenizer, config.data, 7, tmp_path)
    source = text_loader(corpus, config, tokenizer, train, val)
    batch = source.batch(2, 5)
    assert batch.inputs.shape == batch.targets.shape == (5, 7)
    assert torch.equal((batch.inputs + 1) % 10, batch.targets)
    assert batch.positions is None
    assert source.rows_per_epoch == (360 - 7) // 7
    targets = np.concatenate([b.targets[b.targets != IGNORED].numpy() for b in source.validation()])
    assert np.array_equal(targets, val.ids[1:])
    assert json.dumps(source.described)


def test_a_line_of_keywords_that_cannot_be_encoded_is_no_fault_of_the_documents():
    unknown = CharTokenizer.from_text("\n" + "".join(TEXTS) + "keywords ,")
    with pytest.raises(InputError, match=r"':' \(U\+003A\)\nleave keywords out, if only its lines .*, or take a model"):
        loader(unknown, keywords=2)
    with pytest.raises(InputError, match=r"\nremove these documents"):
        loader(CharTokenizer("\n" + TEXTS[0]))
