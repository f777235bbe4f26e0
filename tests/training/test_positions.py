"""What a run has read is known by counting documents and windows, whatever was changed when it was resumed."""

import math
import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch

from minigpt.config import GPTConfig, RunConfig, TrainConfig, updated
from minigpt.data.corpora import Corpus
from minigpt.data.documents import Document, Documents
from minigpt.data.tokens import IGNORED
from minigpt.errors import CheckpointError, ConfigError, Interrupted
from minigpt.formats.hub import OTHER_NAME
from minigpt.formats.run_directory import RunDirectory
from minigpt.training import loop
from minigpt.training.checkpoint import changes, open_checkpoint
from minigpt.training.distributed import Processes
from minigpt.training.log import epochs_of, read_records
from minigpt.training.loop import train
from minigpt.training.run import in_steps, set_up

pytestmark = pytest.mark.usefixtures("no_plots")

# 29 documents, each of a letter of its own; 6 validate and 23 are learned.
LETTERS = "abcdefghijklmnopqrstuvwxyzABC"
TEXTS = {letter: letter * (2 + number % 5) for number, letter in enumerate(LETTERS)}
DOCUMENTS = Documents([Document(text) for text in TEXTS.values()], "29 texts", 0, 0)
# 190 characters, no two alike: 171 to train on are 33 windows of 5 an epoch, with room for an offset.
TEXT = Corpus("ideograms", "".join(chr(0x4E00 + number) for number in range(190)), "made up for tests")
WINDOWS = 33
CONFIG = RunConfig(
    model=GPTConfig(block_size=11, n_layer=1, n_head=1, n_embd=6),
    train=TrainConfig(max_steps=19, batch_size=4, warmup_steps=1, eval_interval=5, save_interval=3),
    device="cpu",
    dtype="float32",
)
SOURCES = {
    **{
        batching: (updated(CONFIG, {"documents": {"val_size": 6, "batching": batching}}), DOCUMENTS)
        for batching in ("padded", "packed-masked", "packed")
    },
    "text": (updated(CONFIG, {"model": {"block_size": 5}}), TEXT),
}
CHANGES = {
    "nothing": {},
    "a smaller batch": {"train": {"batch_size": 1}},
    "an odd batch": {"train": {"batch_size": 3}},
    "a larger batch": {"train": {"batch_size": 7, "accumulation_steps": 2}},
    "more accumulation": {"train": {"accumulation_steps": 3}},
    "a batch of everything": {"train": {"batch_size": 97}},
    "intervals": {"train": {"eval_interval": 2, "save_interval": 1, "patience": 50}},
    "rates": {"train": {"learning_rate": 0.5, "weight_decay": 0.0}, "model": {"dropout": 0.3}},
}


def quiet(line: str) -> None:
    pass


class Steps(list):
    """What each step has learned from: its rows, each as its targets, its loss, and its number of targets."""

    stop_after = 0


@pytest.fixture
def steps(monkeypatch):
    steps, real = Steps(), loop.gradients

    def gradients(run, taken, first, processes):
        batches = list(run.micro_batches(taken, first, Processes()))
        rows = [
            "".join(run.tokenizer.decode([t for t in row.tolist() if t != IGNORED]))
            for b in batches
            for row in b.targets
        ]
        loss, num_tokens = real(run, taken, first, processes)
        steps.append(([row for row in rows if row], loss.item(), num_tokens))
        if len(steps) == steps.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss, num_tokens

    monkeypatch.setattr(loop, "gradients", gradients)
    return steps


def in_two_parts(config, source, change, out, steps, stop_after):
    """A run that is asked to stop after some steps, and is resumed with something changed."""
    steps.stop_after = stop_after
    with pytest.raises(Interrupted):
        train(config, source, out, quiet)
    train(updated(config, change), source, out, quiet, resume=True)
    assert len(steps) > stop_after


def epochs_read(kind, steps):
    """The rows of each epoch, the last one perhaps begun, found by counting what the data holds by hand."""
    if kind == "text":
        rows = [row for rows, _, _ in steps for row in rows]
        return [rows[first : first + WINDOWS] for first in range(0, len(rows), WINDOWS)]
    learned = set("".join(row for rows, _, _ in steps for row in rows)) - {"\n"}
    # Of a document, all but its first character are targets, and the line end; packed, the first ones too, but one.
    size = sum(len(TEXTS[letter]) + (kind == "packed") for letter in learned) - (kind == "packed")
    epochs, rows = [], []
    for read, _, _ in steps:
        rows += read
        if sum(map(len, rows)) >= size:  # no step goes over the end of an epoch, so this is the end itself
            epochs, rows = [*epochs, rows], []
    return [*epochs, rows] if rows else epochs


def check_whole(kind, rows):
    """An epoch has every document, or windows side by side from one place on, exactly once."""
    if kind == "text":
        places = sorted(TEXT.text.index(row) for row in rows)
        assert places == [*range(places[0], places[0] + 5 * WINDOWS, 5)]
        assert all(len(row) == 5 for row in rows)
        return
    read = Counter("".join(rows))
    assert read.pop("\n") == 23 == len(read)
    missing = Counter({letter: len(TEXTS[letter]) for letter in read}) - read
    assert sum(missing.values()) == (1 if kind == "packed" else 23)
    assert all(count <= len(TEXTS[letter]) for letter, count in read.items())


@pytest.mark.parametrize("epochs", [3, 0])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", SOURCES)
def test_every_row_is_read_once_an_epoch(tmp_path, steps, kind, change, epochs):
    """Interrupted in the middle of the second epoch."""
    config, source = SOURCES[kind]
    config = updated(config, {"train": {"epochs": float(epochs)}})
    in_epoch = 3 if kind == "packed-masked" else 5  # 23 documents in fewer rows, and windows in 9 steps
    in_two_parts(config, source, CHANGES[change], tmp_path / "run", steps, in_epoch + 2 + 5 * (kind == "text"))
    found = epochs_read(kind, steps)
    whole = found if epochs else found[:-1]
    assert len(whole) >= 1
    for rows in whole:
        check_whole(kind, rows)
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    evaluated = [record for record in records if "val_loss" in record]
    if epochs:
        assert len(found) == 3
        assert [record["epoch"] for record in evaluated] == [1, 2, 3]
        assert open_checkpoint(tmp_path / "run" / "last").progress.step == len(steps) == records[-1]["step"]
    for record in evaluated:  # the share that was read is the share that is said
        read = sum(len(rows) for rows, _, _ in steps[: record["step"]])
        assert record["epoch"] == pytest.approx(read / len(found[0]))
    check_losses(records, steps)


def check_losses(records, steps):
    """Each recorded loss is the mean over the steps since the one before it that had something to learn."""
    before = 0
    for record in records:
        if "train_loss" in record:
            losses = [loss for _, loss, count in steps[before : record["step"]] if count]
            assert record["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
            before = record["step"]


def test_rows_without_a_target_are_in_no_mean(tmp_path, steps):
    """24 documents, each cut at 11 tokens: the last of 24 * 12 - 1 targets has a row alone, and is no end to learn."""
    texts = [Document(letter * 20) for letter in LETTERS + "D"]
    config = updated(SOURCES["packed"][0], {"train": {"batch_size": 1, "epochs": 2.0}})
    train(config, Documents(texts, "30 texts", 0, 0), tmp_path / "run", quiet)
    assert [place for place, (_, _, count) in enumerate(steps) if count == 0] == [26, 53]
    check_losses(read_records(tmp_path / "run" / "metrics.jsonl"), steps)


@pytest.mark.parametrize(
    ("documents", "batch", "accumulation"), [(9, 2, 2), (7, 2, 2), (11, 4, 1), (5, 1, 7), (8, 4, 2)]
)
def test_epochs_end_at_epochs(tmp_path, steps, documents, batch, accumulation):
    texts = [Document(text) for text in list(TEXTS.values())[: documents + 6]]
    t = {"epochs": 4.0, "batch_size": batch, "accumulation_steps": accumulation}
    config = updated(SOURCES["padded"][0], {"train": t})
    result = train(config, Documents(texts, "", 0, 0), tmp_path / "run", quiet)
    size = batch * accumulation
    assert [len(rows) for rows, _, _ in steps] == 4 * [min(size, documents - row) for row in range(0, documents, size)]
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [epoch for epoch, _, _ in epochs_of(records)] == [1, 2, 3, 4]
    assert result.step == len(steps)
    check_losses(records, steps)


@pytest.mark.parametrize("epochs", [5.0, 0.5, 1.7])
def test_a_text_too(tmp_path, steps, epochs):
    config = updated(SOURCES["text"][0], {"train": {"epochs": epochs, "batch_size": 7}})
    train(config, TEXT, tmp_path / "run", quiet)
    assert sum(len(rows) for rows, _, _ in steps) == math.ceil(round(epochs * WINDOWS, 6))
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    ends = [*range(1, int(epochs) + 1), *([epochs] if epochs % 1 else [])]
    assert [epoch for epoch, _, _ in epochs_of(records)] == pytest.approx(ends, abs=1 / WINDOWS)
    for rows in epochs_read("text", steps)[: int(epochs)]:
        check_whole("text", rows)


@pytest.mark.parametrize("size", [1, 4, 7, 40])
@pytest.mark.parametrize("rows", [23, 28, 1])
@pytest.mark.parametrize("epochs", [3.0, 0.5, 2.3, 1.0])
def test_steps_are_counted_by_taking_them(size, rows, epochs):
    """From any row on: the steps that are foreseen are those that a loop takes."""
    wanted = math.ceil(round(epochs * rows, 6))
    for first in range(wanted + 1):
        row, step = first, 10
        while row < wanted:
            row += min(size, rows - row % rows, wanted - row)
            step += 1
        t = in_steps(TrainConfig(epochs=epochs, batch_size=size), rows, step=10, rows=first)
        assert t.max_steps == step, first


def test_fewer_epochs_than_are_read_are_refused(tmp_path):
    config, source = SOURCES["text"]
    train(updated(config, {"train": {"epochs": 2.0}}), source, tmp_path / "run", quiet)
    with pytest.raises(ConfigError, match=r"has taken 2 epochs, more than the 1 asked for\nchoose a larger epochs"):
        train(updated(config, {"train": {"epochs": 1.0}}), source, tmp_path / "run", quiet, resume=True)


def test_another_seed_is_refused(tmp_path):
    """It would choose other documents to validate, and other windows to be left."""
    config, source = SOURCES["padded"]
    train(config, source, tmp_path / "run", quiet)
    with pytest.raises(CheckpointError, match="seed is 0 in the run and 1 now"):
        train(updated(config, {"seed": 1, "train": {"max_steps": 30}}), source, tmp_path / "run", quiet, resume=True)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize(("before", "now"), OTHER_NAME.items())
def test_a_base_with_two_names_is_no_other_base(before, now, rank):
    run = RunConfig(init_from=before, train=TrainConfig(lora_rank=rank))
    assert changes(run, replace(run, init_from=now)) == {}


@pytest.mark.parametrize("now", ["gpt2-medium", "/home/gpt2", ""])
def test_another_base_is_another(now):
    run = RunConfig(init_from="gpt2")
    with pytest.raises(CheckpointError, match=f"init_from is gpt2 in the run and {now or 'none'} now"):
        changes(run, replace(run, init_from=now))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("shared", ["batches", "rows"])
def test_processes_share_every_row_of_a_smaller_step(tmp_path, kind, processes, shared):
    """Each takes as many micro-batches as the others, of which those without a row count for nothing."""
    config, source = SOURCES[kind]
    sizes = {"batches": (5, processes), "rows": (2 * processes, 1)}[shared]
    config = updated(config, {"train": {"epochs": 2.0, "batch_size": sizes[0], "accumulation_steps": sizes[1]}})
    run = set_up(config, source, RunDirectory(tmp_path), Processes(), torch.device("cpu"), quiet, None)
    first = 0
    while first < run.rows_to_read:
        count = run.rows_of_step(first)
        parts = [[*run.micro_batches(0, first, Processes(rank, processes))] for rank in range(processes)]
        assert len({len(part) for part in parts}) == 1
        assert all(len(batch.inputs) for part in parts for batch in part)
        learned = [row for part in parts for batch in part for row in batch.targets.tolist() if set(row) != {IGNORED}]
        assert len(learned) == count
        alone = [row for batch in run.micro_batches(0, first, Processes()) for row in batch.targets.tolist()]
        assert sorted(trimmed(learned)) == sorted(trimmed(alone))
        first += count
    assert first == run.rows_to_read


def trimmed(rows):
    """Rows without what pads them to the width of their batch."""
    return [[target for target in row if target != IGNORED] for row in rows]


@pytest.mark.parametrize(("end", "change"), [(17, {"max_steps": 29}), (15, {"max_steps": 29, "eval_interval": 7})])
def test_the_last_evaluation_of_a_run_that_goes_on_is_not_forgotten(tmp_path, end, change):
    """The log is cut to the checkpoint of the last step, which is written before its evaluation."""
    config, source = SOURCES["text"]
    run = RunDirectory(tmp_path / "run")
    train(updated(config, {"train": {"max_steps": end}}), source, run.path, quiet)

    def evaluated():
        return [(record["step"], record["val_loss"]) for record in read_records(run.metrics) if "val_loss" in record]

    before, samples = evaluated(), run.samples.read_text("utf-8")
    assert before[-1][0] == end
    train(updated(config, {"train": change}), source, run.path, quiet, resume=True)
    assert evaluated()[: len(before)] == before
    assert run.samples.read_text("utf-8").startswith(samples)
