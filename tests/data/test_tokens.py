"""Token files and batches."""

import json
import os
from contextlib import suppress

import numpy as np
import pytest

from minigpt.config import DataConfig
from minigpt.data.corpora import Corpus
from minigpt.data.tokens import (
    open_tokens,
    prepare,
    random_batch,
    split_at,
    windows_in_order,
    write_tokens,
)
from minigpt.errors import DataError, MissingFileError
from minigpt.tokenizers import CharTokenizer


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2, "<u2"), (65535, "<u2"), (65536, "<u4"), (100_003, "<u4")])
def test_the_vocabulary_decides_the_dtype_and_nothing_wraps(tmp_path, vocab_size, dtype):
    """65,537 stored as uint16 would come back as 1."""
    ids = np.array([0, 1, vocab_size - 1])
    write_tokens(tmp_path / "t.bin", ids, vocab_size, "print")
    tokens = open_tokens(tmp_path / "t.bin")
    assert tokens.ids.tolist() == ids.tolist()
    assert tokens.ids.dtype.str == dtype
    assert (tokens.vocab_size, tokens.fingerprint) == (vocab_size, "print")


@pytest.mark.parametrize("bad", [-1, 7, 65_537])
def test_an_id_outside_the_vocabulary_is_refused_with_its_place(tmp_path, bad):
    with pytest.raises(DataError, match=rf"t.bin: id {bad} at position 2 is outside the vocabulary of 7"):
        write_tokens(tmp_path / "t.bin", np.array([1, 6, bad, 2]), 7, "print")
    assert not list(tmp_path.iterdir())


def test_an_id_that_was_damaged_later_is_found(tmp_path):
    path = tmp_path / "t.bin"
    write_tokens(path, np.array([1, 2, 3]), 7, "print")
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\xff")
    with pytest.raises(DataError, match=r"t\.bin: id 65535 at position 2"):
        open_tokens(path)


def test_files_that_are_no_token_files(tmp_path):
    path = tmp_path / "t.bin"
    with pytest.raises(MissingFileError):
        open_tokens(path)
    write_tokens(path, np.arange(5), 7, "print")
    content = path.read_bytes()
    for damaged in (b"", content[:5], content[:20], b"\x80\x04pickle", content.replace(b'"dtype"', b'"dtypo"')):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a token file"):
            open_tokens(path)
    path.write_bytes(content.replace(b"<u2", b"<f2"))
    with pytest.raises(DataError, match="<f2"):
        open_tokens(path)
    for damaged in (content[:-1], content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="bytes where its header promises"):
            open_tokens(path)


def test_a_corpus_is_split_and_prepared_once(tmp_path):
    corpus = Corpus("tiny", "abcdefghij" * 10, "here")
    tokenizer = CharTokenizer.from_text(corpus.text)
    train, val = prepare(corpus, tokenizer, DataConfig(val_fraction=0.25), 5, tmp_path)
    assert tokenizer.decode(train.ids.tolist()) == corpus.text[:75]
    assert tokenizer.decode(val.ids.tolist()) == corpus.text[75:]
    assert split_at(corpus, DataConfig(val_fraction=0.25)) == 75
    stamp = train.path.stat().st_mtime_ns
    assert prepare(corpus, tokenizer, DataConfig(val_fraction=0.25), 5, tmp_path)[0].path.stat().st_mtime_ns == stamp


def test_another_text_tokenizer_or_split_is_never_taken_for_this_one(tmp_path):
    """Such as a character set of the same size, of another text under the same name."""
    config = DataConfig()
    folders = set()
    for text, characters, split in (("ab" * 9, "ab", config), ("bc" * 9, "bc", config), ("ab" * 9, "ba", config),
                                    ("ab" * 9, "ab", DataConfig(val_fraction=0.5))):  # fmt: skip
        folders.add(prepare(Corpus("same", text, ""), CharTokenizer(characters), split, 1, tmp_path)[0].path.parent)
    assert len(folders) == 4


def test_a_split_that_is_too_short_says_what_it_needs(tmp_path):
    """And nothing is written."""
    corpus = Corpus("short", "abcdef" * 10, "")
    tokenizer = CharTokenizer.from_text(corpus.text)
    with pytest.raises(DataError, match=r"val split: 6 tokens, but block_size = 6 needs 7\nuse block_size = 2"):
        prepare(corpus, tokenizer, DataConfig(), 6, tmp_path)
    with pytest.raises(DataError, match="val split: 1 token, but"):
        prepare(Corpus("short", "abcdef", ""), tokenizer, DataConfig(), 2, tmp_path)
    assert not list(tmp_path.iterdir())
    prepare(corpus, tokenizer, DataConfig(), 5, tmp_path)
    for block_size in (6, 60):  # the files are there now, and still too short; the shorter one says what fits
        with pytest.raises(
            DataError, match=rf"val split: 6 tokens, but block_size = {block_size} .*\nuse block_size = 2"
        ):
            prepare(corpus, tokenizer, DataConfig(), block_size, tmp_path)


def test_a_file_of_another_tokenizer_in_this_place_is_refused(tmp_path):
    corpus = Corpus("text", "abcdef" * 10, "")
    train, _ = prepare(corpus, CharTokenizer("abcdef"), DataConfig(), 2, tmp_path)
    write_tokens(train.path, np.arange(6), 6, CharTokenizer("fedcba").fingerprint())
    with pytest.raises(DataError, match="made by another tokenizer"):
        prepare(corpus, CharTokenizer("abcdef"), DataConfig(), 2, tmp_path)


@pytest.fixture
def counting(tmp_path):
    write_tokens(tmp_path / "train.bin", np.arange(101), 101, "print")
    return open_tokens(tmp_path / "train.bin")


def test_a_batch_is_a_pure_function_of_seed_and_index(counting):
    first = [random_batch(counting, 3, 5, seed=11, first=3 * i) for i in range(20)]
    again = [random_batch(counting, 3, 5, seed=11, first=3 * i) for i in reversed(range(20))]
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(first, reversed(again), strict=True))
    starts = {tuple(x[:, 0].tolist()) for x, _ in first}
    assert len(starts) == 20
    other = [tuple(random_batch(counting, 3, 5, seed=12, first=3 * i)[0][:, 0].tolist()) for i in range(20)]
    assert not starts & set(other)


def test_targets_are_the_inputs_one_later(counting):
    x, y = random_batch(counting, 7, 5, seed=0, first=0)
    assert x.shape == y.shape == (7, 5)
    assert (y == x + 1).all()
    assert (x[:, 1:] == x[:, :-1] + 1).all()


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_an_epoch_reads_every_window_once(counting, batch_size):
    """101 tokens make 19 windows of 5 with room for an offset. Every epoch: 19 starts, one remainder, no repetition."""
    num_batches = -(-3 * 19 // batch_size)
    starts = np.concatenate(
        [
            random_batch(counting, batch_size, 5, seed=3, first=batch_size * i)[0][:, 0].numpy()
            for i in range(num_batches)
        ]
    )
    epochs = [starts[19 * epoch : 19 * (epoch + 1)] for epoch in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 19
        assert len(set((epoch % 5).tolist())) == 1
    assert epochs[0].tolist() != epochs[1].tolist()


def test_an_epoch_begins_anywhere(counting):
    """19 windows leave six places for the first of them. Over 100 epochs, chi-square with 5 degrees of freedom stays
    below 20.5 in 99.9 % of all seeds."""
    epochs = [random_batch(counting, 19, 5, seed=3, first=19 * i) for i in range(100)]
    counts = np.bincount([int(x.min()) for x, _ in epochs], minlength=6)
    assert len(counts) == 6
    assert ((counts - 100 / 6) ** 2 / (100 / 6)).sum() < 20.5
    assert max(int(y.max()) for _, y in epochs) == 100  # the last token is read too


@pytest.mark.parametrize("num_tokens", [6, 7, 9, 10, 11, 12])
def test_the_shortest_splits_still_give_batches(tmp_path, num_tokens):
    write_tokens(tmp_path / "train.bin", np.arange(num_tokens), 101, "print")
    tokens = open_tokens(tmp_path / "train.bin")
    seen = {int(t) for i in range(200) for t in random_batch(tokens, 2, 5, 0, 2 * i)[1].flatten()}
    assert seen == set(range(1, num_tokens))


@pytest.mark.parametrize("num_tokens", [2, 5, 6, 7, 11, 12, 31])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_windows_in_order_hold_every_target_once(num_tokens, batch_size):
    ids = np.arange(num_tokens)
    targets = [int(t) for _, y in windows_in_order(ids, batch_size, 5) for t in y.flatten() if t != -100]
    assert targets == list(range(1, num_tokens))
    for x, y in windows_in_order(ids, batch_size, 5):
        assert x.shape == y.shape
        assert x.shape[1] == 5
        assert x.shape[0] <= batch_size
        assert ((y == x + 1) | (y == -100)).all()


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("num_tokens", [2, 5, 6, 7, 8, 11, 31])
def test_overlapping_windows_hold_every_target_once_with_more_context(num_tokens, stride):
    """By definition: target j > 5 counts in the first window that reaches it, after at least 5 - stride tokens more."""
    found = {}
    for x, y in windows_in_order(np.arange(num_tokens), 3, 5, stride):
        for inputs, targets in zip(x.tolist(), y.tolist(), strict=True):
            for place, target in enumerate(targets):
                if target != -100:
                    assert target not in found
                    assert inputs[place] == target - 1
                    found[target] = place + 1  # tokens seen
    assert sorted(found) == list(range(1, num_tokens))
    assert all(seen == target if target <= 5 else seen >= 5 - stride + 1 for target, seen in found.items())


@pytest.mark.parametrize("key", ["dtype", "vocab_size", "num_tokens", "fingerprint"])
def test_a_header_may_say_anything(tmp_path, key):
    path = tmp_path / "a.bin"
    write_tokens(path, np.arange(5), 7, "abc")
    content = path.read_bytes()
    header = json.loads(content[12 : 12 + int.from_bytes(content[8:12], "little")])
    for odd in (None, True, -5, 1.5, 10**30, "7", "<u2" * 99, [], [5], {}, float("nan")):
        text = json.dumps({**header, key: odd}).encode()
        start = content[:8] + len(text).to_bytes(4, "little") + text
        path.write_bytes(start + bytes(-len(start) % 64) + content[-10:])
        with suppress(DataError):
            assert open_tokens(path).ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("case", ["a file", "a link out of it", "both cannot be written"])
def test_a_folder_for_tokens_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch, case):
    """They lie in the cache then, or nowhere; and no link below is followed."""
    corpus, tokenizer = Corpus("same", "abcdefghijk" * 7, ""), CharTokenizer("abcdefghijk")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    usual = prepare(corpus, tokenizer, DataConfig(), 3, tmp_path / "usual")
    folder = tmp_path / "tokens"
    if case == "a link out of it":
        (tmp_path / "outside").mkdir()
        folder.mkdir()
        (folder / usual[0].path.parent.name).symlink_to(tmp_path / "outside")
    else:
        folder.write_text("in the way")
    if case == "both cannot be written":
        (tmp_path / "cache").write_text("in the way")
    for _ in range(2):
        splits = prepare(corpus, tokenizer, DataConfig(), 3, folder)
        for found, expected in zip(splits, usual, strict=True):
            assert found.ids.tolist() == expected.ids.tolist()
            assert (found.ids.dtype, found.vocab_size, found.fingerprint) == (
                expected.ids.dtype, expected.vocab_size, expected.fingerprint,
            )  # fmt: skip
            assert found.path.is_relative_to(tmp_path / "cache") == (case != "both cannot be written")
    if case == "a link out of it":
        assert not list((tmp_path / "outside").iterdir())


def test_tokens_that_another_user_has_closed_are_made_again(tmp_path, monkeypatch):
    corpus, tokenizer = Corpus("same", "abcdefghijk" * 7, ""), CharTokenizer("abcdefghijk")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    usual = prepare(corpus, tokenizer, DataConfig(), 3, tmp_path / "closed")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, who runs tests in containers, may read all
    again = prepare(corpus, tokenizer, DataConfig(), 3, tmp_path / "other")
    assert [split.ids.tolist() for split in again] == [split.ids.tolist() for split in usual]
    monkeypatch.setattr("minigpt.data.tokens.write_tokens", pulled)
    again = prepare(corpus, tokenizer, DataConfig(), 3, tmp_path / "closed")
    assert [split.path.name for split in again] == ["train", "val"]  # they stay in memory
    assert [split.ids.tolist() for split in again] == [split.ids.tolist() for split in usual]


def pulled(*arguments):
    raise PermissionError(13, "Permission denied")
