"""Documents that share a row: the numbers of documents that do not."""

import contextlib
import copy
import functools
import itertools
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from minigpt.data.batches import encode, packed, padded
from minigpt.data.documents import Document
from minigpt.evaluation.loss import next_token_loss
from minigpt.model import explicit_attention, fused_attention
from minigpt.tokenizers import CharTokenizer
from minigpt.training.document_mask import document_mask

LETTERS = CharTokenizer("abcdefghijklmnopqrstuv$")  # 23 characters, the tiny model's vocabulary
EOS = 22
DOCUMENTS = [
    Document("fedcba"), Document("abc", "vu"), Document("gh"), Document("ijklmnopqrst"), Document("q", "tttt"),
    Document("mnopqrstuvab"), Document("ba", whole=False), Document("ccc"), Document("hgfe", "d"), Document("k"),
    Document("lll"),
]  # fmt: skip


@pytest.fixture
def encoded():
    return encode(DOCUMENTS, LETTERS, EOS, max_length=11, block_size=13)


def by_loop(model):
    """Sum of -log p over the targets that count, and their number: each document alone, letter by letter."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for document in DOCUMENTS:
        text = (document.prompt + document.text + "$" * document.whole)[:11]
        logits = model(torch.tensor([[LETTERS.encode(letter)[0] for letter in text]]))[0]
        for place in range(max(1, len(document.prompt)), len(text)):
            scores = logits[place - 1]
            total = total + scores.exp().sum().log() - scores[LETTERS.encode(text[place])[0]]
            count += 1
    return total, count


def totals(model, epoch):
    """The sum over all batches, its gradient taken batch by batch as training takes it, and the number of targets."""
    total, count = 0.0, 0
    model.zero_grad()
    for batch in epoch:
        targets = int((batch.targets != -100).sum())
        if batch.positions is None:
            loss = next_token_loss(model(batch.inputs), batch.targets) * targets
            loss.backward()
        else:
            with document_mask(model, batch.positions) as cache:
                loss = next_token_loss(model(batch.inputs, cache), batch.targets) * targets
                loss.backward()
        total, count = total + loss.item(), count + targets
    return total, count


@pytest.mark.parametrize("layout", ["one batch", "bucketed", "packed-masked", "packed-masked, long rows"])
def test_every_layout_has_the_loss_and_gradient_of_documents_alone(tiny_model, encoded, layout):
    exact = copy.deepcopy(tiny_model).double()
    expected, expected_count = by_loop(exact)
    expected.backward()
    epoch = {
        "one batch": lambda: padded(encoded, 11, seed=0, epoch=0),
        "bucketed": lambda: padded(encoded, 3, seed=0, epoch=0),
        "packed-masked": lambda: packed(encoded, 2, 13, seed=0, epoch=0, document_mask=True),
        "packed-masked, long rows": lambda: packed(
            encoded, 2, 31, seed=0, epoch=0, document_mask=True
        ),  # above block_size
    }[layout]()
    total, count = totals(tiny_model, epoch)
    assert count == expected_count == 6 + 4 + 2 + 10 + 2 + 10 + 1 + 3 + 5 + 1 + 3
    assert total / count == pytest.approx(expected.item() / count, abs=1e-5)
    for mine, theirs in zip(tiny_model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double() / count, theirs.grad / count, rtol=1e-5, atol=1e-5)


def test_a_document_sees_nothing_of_the_others(tiny_model, encoded):
    (batch,) = packed(encoded, 11, 31, seed=0, epoch=0, document_mask=True)
    document = (batch.positions == 0).cumsum(1)  # (B, T)
    with torch.no_grad(), document_mask(tiny_model, batch.positions) as cache:
        logits = tiny_model(batch.inputs, cache)
        for row, number in itertools.product(range(len(document)), range(1, int(document.max()) + 1)):
            inside = torch.zeros_like(document, dtype=torch.bool)
            inside[row] = document[row] == number
            if not inside.any():
                continue
            changed = tiny_model(torch.where(inside, (batch.inputs + 1) % 23, batch.inputs), cache)
            assert torch.equal(changed[~inside], logits[~inside])
            assert (changed[inside] != logits[inside]).any(-1).all()


def test_nothing_flows_back_either(tiny_model, encoded):
    """Causality within a document: a token that changes leaves the logits before it bit-equal."""
    batch = packed(encoded, 1, 13, seed=0, epoch=0, document_mask=True)[0]
    with torch.no_grad(), document_mask(tiny_model, batch.positions) as cache:
        logits = tiny_model(batch.inputs, cache)
        for place in range(batch.inputs.size(1)):
            inputs = batch.inputs.clone()
            inputs[0, place] = (inputs[0, place] + 1) % 23
            assert torch.equal(tiny_model(inputs, cache)[0, :place], logits[0, :place])


def test_the_model_is_as_before_afterwards(tiny_model, encoded):
    batch = packed(encoded, 2, 13, seed=0, epoch=0, document_mask=True)[0]
    tiny_model.h[0].attn.core = explicit_attention
    before = tiny_model(batch.inputs)
    with contextlib.suppress(ZeroDivisionError), document_mask(tiny_model, batch.positions) as cache:
        assert not torch.allclose(tiny_model(batch.inputs, cache), before)
        raise ZeroDivisionError
    assert [block.attn.core for block in tiny_model.h] == [explicit_attention, fused_attention]
    assert torch.equal(tiny_model(batch.inputs), before)


def test_gradients_are_right_where_activations_are_computed_anew(tiny_model, encoded):
    epoch = packed(encoded, 2, 13, seed=0, epoch=0, document_mask=True)
    totals(tiny_model, epoch)
    expected = [parameter.grad.clone() for parameter in tiny_model.parameters()]
    for block in tiny_model.h:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    totals(tiny_model, epoch)
    for parameter, gradient in zip(tiny_model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_dropout_reaches_the_pattern(tiny_model, encoded):
    batch = packed(encoded, 2, 13, seed=0, epoch=0, document_mask=True)[0]
    for block in tiny_model.h:
        block.attn.dropout = 0.5  # of the pattern alone; the layers' own stays 0
    tiny_model.train()
    with document_mask(tiny_model, batch.positions) as cache:
        losses = {next_token_loss(tiny_model(batch.inputs, cache), batch.targets).item() for _ in range(5)}
        tiny_model.eval()
        calm = {next_token_loss(tiny_model(batch.inputs, cache), batch.targets).item() for _ in range(5)}
    assert len(losses) == 5
    assert len(calm) == 1
    assert all(map(math.isfinite, losses))
