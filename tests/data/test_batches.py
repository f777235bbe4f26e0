"""Batches of documents: which targets count, who is where, and that nobody is read twice or not at all."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings, strategies

from minigpt.data import batches
from minigpt.data.batches import encode, packed, padded
from minigpt.data.documents import Document, read_documents, split
from minigpt.errors import ConfigError, DataError
from minigpt.tokenizers import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopqrstuv$")  # 23 characters
EOS = 22


def spell(ids):
    """Ids as text, "." for a target that does not count."""
    return "".join("." if token == -100 else LETTERS.decode([token]) for token in ids.tolist())


def ids_of(documents, max_length=13):
    return encode(documents, LETTERS, EOS, max_length, block_size=13)


def many(number, longest=12, seed=0):
    """Documents of random lengths, each another text."""
    draw = random.Random(seed)
    return [
        Document("".join(draw.choices("abcdefghijklmnopqrstuv", k=draw.randint(2, longest)))) for _ in range(number)
    ]


# --- Encoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "max_length", "inputs", "targets"),
    [
        (Document("abc"), 13, "abc", "bc$"),
        (Document("cd", "ab"), 13, "abcd", ".cd$"),
        (Document("a", "bcd"), 13, "bcda", "..a$"),
        (Document("abc"), 4, "abc", "bc$"),
        (Document("abc"), 3, "ab", "bc"),  # only the EOS is lost: it is cut as well
        (Document("abcdefg", "uv"), 5, "uvab", ".abc"),
        (Document("abc", whole=False), 13, "ab", "bc"),
        (Document("a"), 2, "a", "$"),
    ],
)
def test_the_loss_is_on_the_text_and_its_end_alone(document, max_length, inputs, targets):
    encoded = ids_of([document], max_length)
    (batch,) = padded(encoded, 1, seed=0, epoch=0)
    assert (batch.inputs.dtype, batch.targets.dtype, batch.positions) == (torch.int64, torch.int64, None)
    assert (spell(batch.inputs[0]), spell(batch.targets[0])) == (inputs, targets)
    assert encoded.truncated == (len(document.prompt + document.text) + document.whole > max_length)


@pytest.mark.parametrize(
    ("document", "settings", "error", "what"),
    [
        (
            Document("c", "abcd"),
            (EOS, 4, 13),
            DataError,
            "the text 'c' leaves nothing to learn: 6 tokens, 4 of them its prompt, and max_length = 4",
        ),
        (Document("c", "abcde"), (EOS, 4, 13), DataError, "7 tokens, 5 of them its prompt, and max_length = 4"),
        (Document("a", whole=False), (EOS, 4, 13), DataError, "'a' leaves nothing to learn: 1 token, 0 of them"),
        (Document("a"), (EOS, 14, 13), ConfigError, "max_length = 14 does not lie between 2 and block_size = 13"),
        (Document("a"), (EOS, 1, 13), ConfigError, "max_length = 1 "),
        (Document("a"), (23, 4, 13), ConfigError, "eos_id: id 23 at position 0 is outside the vocabulary of 23"),
    ],
)
def test_bad_input_is_named_in_two_lines(document, settings, error, what):
    with pytest.raises(error, match=what) as caught:
        encode([Document("fine"), document], LETTERS, *settings)
    assert len(str(caught.value).split("\n")) == 2


# --- Epochs -----------------------------------------------------------------------------------------------------------


def read_padded(epoch):
    """The documents of an epoch, by their targets: each begins with the input before its first one."""
    for batch in epoch:
        for x, y in zip(batch.inputs, batch.targets, strict=True):
            yield spell(x)[0] + spell(y).rstrip(".")


def read_confined(epoch):
    for batch in epoch:
        for x, y, positions in zip(batch.inputs, batch.targets, batch.positions, strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
            for start, stop in itertools.pairwise(starts):
                if y[start] != -100:  # else it is padding
                    assert positions[start:stop].tolist() == list(range(stop - start))
                    assert (x[start + 1 : stop] == y[start : stop - 1]).all()
                    yield spell(x[start : start + 1]) + spell(y[start:stop])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 101])
def test_every_document_once_an_epoch(batch_size):
    documents = many(41)
    expected = sorted(document.text + "$" for document in documents)
    encoded = ids_of(documents)
    for number in range(3):
        epoch = padded(encoded, batch_size, seed=5, epoch=number)
        assert len(epoch) == -(-41 // batch_size)
        assert sorted(read_padded(epoch)) == expected
        epoch = packed(encoded, batch_size, 13, seed=5, epoch=number, document_mask=True)
        assert sorted(read_confined(epoch)) == expected


@pytest.mark.parametrize("layout", [padded, packed, "packed-masked"])
def test_a_batch_is_a_pure_function_of_seed_epoch_and_index(layout):
    encoded = ids_of(many(41))

    def read(seed, epoch, order):
        if layout is padded:
            plan = padded(encoded, 3, seed, epoch)
        else:
            plan = packed(encoded, 3, 13, seed, epoch, document_mask=layout == "packed-masked")
        found = {index: plan[index] for index in order(range(len(plan)))}
        return [(found[index].inputs.tolist(), found[index].targets.tolist()) for index in sorted(found)]

    first = read(5, 2, iter)
    assert read(5, 2, reversed) == first
    assert len(first) > 5
    assert read(5, 3, iter) != first
    assert read(6, 2, iter) != first


@pytest.mark.parametrize("block_size", [5, 7, 13])
def test_packed_rows_are_windows_of_one_text(block_size):
    """A loop over characters: every one but the first is a target once, if it counts."""
    documents = [*many(17), Document("cd", "ab"), Document("uvuvuvuvuvuvuvuv"), Document("vu", whole=False)]
    x, y = [], []
    for batch in packed(ids_of(documents), 3, block_size, seed=5, epoch=0):
        assert batch.inputs.shape[1] == block_size or len(batch.inputs) == 1
        assert batch.positions is None
        x += [spell(row) for row in batch.inputs]
        y += [spell(row) for row in batch.targets]
    whole = "".join(x)
    targets = "".join(y)
    length = len("".join(document.prompt + document.text[:13] for document in documents)) + len(documents)
    assert len(whole) - length < block_size, "no padding but in the last row"
    assert targets[length - 1 :].strip(".") == ""
    text = whole[:1] + "".join(a if t == "." else t for a, t in zip(whole[1:], targets, strict=False))
    text = text[: length - 1] + "$"
    parts = text.split("$")[:-1]
    assert sorted(parts) == sorted(document.prompt + document.text[:13] for document in documents)
    silent = {"abcd$": "..cd$", "u" + "vu" * 6 + "$": "u" + "vu" * 6 + ".", "vu$": "vu."}
    expected = "".join(silent.get(f"{part}$", f"{part}$") for part in parts)
    assert targets[: length - 1] == expected[1:]


def test_length_buckets_waste_little_and_padding_is_counted(monkeypatch):
    encoded = ids_of(many(237))  # one pool

    def counted(epoch):
        """By the batches themselves: without prompts, what has no target is padding."""
        assert all(batch.inputs.shape == batch.targets.shape for batch in epoch)
        silent = sum(int((batch.targets == -100).sum()) for batch in epoch)
        return silent / sum(batch.targets.numel() for batch in epoch)

    bucketed = padded(encoded, 5, seed=0, epoch=0)
    assert bucketed.padding == pytest.approx(counted(bucketed), abs=1e-12)
    assert {len(batch.inputs) for batch in bucketed} == {5, 2}
    masked = packed(encoded, 5, 13, seed=0, epoch=0, document_mask=True)
    assert masked.padding == pytest.approx(counted(masked), abs=1e-12)
    text = packed(encoded, 5, 13, seed=0, epoch=0)
    assert text.padding == pytest.approx(counted(text), abs=1e-12)
    monkeypatch.setattr(batches, "POOL", 1)  # no buckets: a batch is sorted within itself
    shuffled = padded(encoded, 5, seed=0, epoch=0)
    assert bucketed.padding < 0.1 < 0.2 < shuffled.padding
    assert masked.padding < 0.05
    widths = [batch.inputs.shape[1] for batch in bucketed]
    assert widths != sorted(widths), "batches are shuffled after they were sorted"
    longest = [int(row.max()) for batch in masked for row in batch.positions]
    assert longest != sorted(longest, reverse=True), "and so are rows after they were fitted"


@settings(max_examples=60)
@given(
    strategies.lists(strategies.integers(1, 12), min_size=1, max_size=40), strategies.integers(12, 29),
    strategies.integers(0, 3),
)  # fmt: skip
def test_confined_rows_hold_whole_documents_and_no_two_would_fit_into_one(lengths, block_size, epoch):
    documents = [Document("a" * length) for length in lengths]
    encoded = ids_of(documents)
    plan = packed(encoded, 1, block_size, seed=0, epoch=epoch, document_mask=True)
    assert sorted(document for ((row,),) in zip(plan.batches, strict=True) for document in row) == list(
        range(len(lengths))
    )
    sizes = [batch.inputs.shape[1] for batch in plan]
    assert sum(sizes) == sum(lengths)
    assert max(sizes) <= block_size
    assert all(a + b > block_size for a, b in itertools.combinations(sizes, 2))
    assert len(plan) == len(packed(encoded, 1, block_size, seed=7, epoch=0, document_mask=True)), (
        "steps an epoch are fixed"
    )


def test_a_document_that_no_confined_row_holds_is_refused():
    encoded = ids_of([Document("abcdefgh")])
    packed(encoded, 1, 8, seed=0, epoch=0, document_mask=True)
    with pytest.raises(ConfigError, match="a document makes 8 inputs, and a row holds block_size = 7"):
        packed(encoded, 1, 7, seed=0, epoch=0, document_mask=True)
    assert len(packed(encoded, 1, 7, seed=0, epoch=0)) == 2


@pytest.mark.shared
def test_real_reviews(shared_cache):
    path = shared_cache / "movie-reviews" / "pos.txt"
    if not path.is_file():
        pytest.skip("needs MINIGPT_CACHE to name a folder that holds movie-reviews/{pos,neg}.txt")
    train, _ = split(read_documents(path).items, 3000, 500, seed=0)
    tokenizer = CharTokenizer.from_text("\n".join(document.text for document in train))
    encoded = encode(train, tokenizer, tokenizer.encode("\n")[0], max_length=128, block_size=512)
    texts = [document.text for document in train]
    assert encoded.truncated == sum(len(text) + 1 > 128 for text in texts)
    num_targets = sum(min(len(text), 127) for text in texts)
    lengths = [min(len(text), 127) for text in texts]
    in_order = 1 - num_targets / sum(4 * max(lengths[first : first + 4]) for first in range(0, 3000, 4))
    assert in_order > 0.1
    for epoch in (padded(encoded, 4, 0, 0), packed(encoded, 4, 512, 0, 0, document_mask=True)):
        assert sum(int((batch.targets != -100).sum()) for batch in epoch) == num_targets
        assert epoch.padding < in_order / 10
