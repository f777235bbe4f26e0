"""Dropout from random words: which values stay, how often, whether they hang together; and attention that drops."""

import itertools
import math
import struct

import pytest
import torch

import minigpt.dropout
from minigpt.config import GPTConfig
from minigpt.dropout import Dropout, draw, tiled_attention
from minigpt.model import GPT, explicit_attention, fused_attention

# p -> the share of values that is dropped: the nearest step of 1/256, but neither none nor all of them
SHARES = {0.0001: 1 / 256, 0.1: 26 / 256, 0.2: 51 / 256, 0.5: 0.5, 0.9999: 255 / 256}


def words_of(count: int) -> list[int]:
    return torch.empty(count, dtype=torch.int64).random_(-(2**63), None).tolist()


@pytest.mark.parametrize("p", SHARES)
@pytest.mark.parametrize("shape", [(2, 3, 13), (1,), (8,), (0, 5)])
def test_a_byte_of_a_random_word_decides_over_each_value(p, shape):
    x = torch.randn(shape)
    torch.manual_seed(3)
    y = Dropout(p)(x)
    torch.manual_seed(3)
    drawn = b"".join(struct.pack("=q", word) for word in words_of(math.ceil(math.prod(shape) / 8)))
    expected = [
        value / (1 - SHARES[p]) if byte >= SHARES[p] * 256 else 0.0
        for value, byte in zip(x.flatten().tolist(), drawn, strict=False)
    ]
    assert y.shape == x.shape
    assert y.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_passes_where_the_value_stays(dtype):
    x = torch.randn(7, 31, dtype=dtype, requires_grad=True)
    y = Dropout(0.3)(x)
    y.backward(torch.full_like(y, 3.0))
    assert y.dtype == x.grad.dtype == dtype
    scale = 256 / (256 - 77)
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.allclose(x.grad[y != 0].double(), torch.tensor(3 * scale, dtype=torch.float64), rtol=1e-2)
    assert torch.allclose(y[y != 0], x[y != 0] * scale, rtol=1e-2)


def test_without_dropout_nothing_is_drawn():
    x = torch.randn(3, 5)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", SHARES)
def test_the_share_is_the_same_in_each_byte_of_a_word(p):
    torch.manual_seed(5)
    count, share = 100_000, SHARES[p]
    stays, scale = draw((count, 8), p)
    dropped = (stays == 0).sum(0)  # (8,)
    assert ((dropped - count * share).abs() < 5 * math.sqrt(count * share * (1 - share))).all()
    assert scale * (1 - share) == pytest.approx(1)
    assert stays.max() <= 1


@pytest.mark.parametrize("core", [explicit_attention, fused_attention])
def test_the_masks_of_layers_rows_and_steps_know_nothing_of_each_other(monkeypatch, core):
    """Every mask of two training steps, row by row: no two of them hang together, nor any with itself, shifted."""
    config = GPTConfig(vocab_size=23, block_size=67, n_layer=2, n_head=3, n_embd=3 * 11, dropout=0.2)
    torch.manual_seed(7)
    model, masks = GPT(config).train(), []

    def recorded(shape, p):
        stays, scale = draw(shape, p)
        masks.append(stays)
        return stays, scale

    monkeypatch.setattr(minigpt.dropout, "draw", recorded)
    for block in model.h:
        block.attn.core = core
    for _ in range(2):
        model(torch.randint(23, (5, 67)))
    hidden, patterns = (5, 67, 33), (5, 3, 67, 67)
    assert [tuple(mask.shape) for mask in masks] == 2 * [hidden, *2 * [patterns, hidden, hidden]]
    for shape in (hidden, patterns):
        rows = torch.cat([mask.flatten(1).double() for mask in masks if mask.shape == shape])  # (rows, values)
        rows = (rows - rows.mean()) / rows.std()
        n = rows.size(1)
        between = (rows @ rows.T / n).fill_diagonal_(0)
        shifted = torch.stack([(rows[:, lag:] * rows[:, :-lag]).mean(1) for lag in (1, 2, 7, 8, 16, 67)])
        assert between.abs().max() < 5 / math.sqrt(n)
        assert shifted.abs().max() < 5 / math.sqrt(n - 67)


def attended(q, k, v, mask, stays, p):
    """Attention by its formula, in float64, with a mask of dropout."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.size(-1))
    pattern = torch.softmax(torch.where(mask, scores, -math.inf), dim=-1)
    return torch.einsum("bhts,bhsd->bhtd", pattern * stays.double() / (1 - SHARES[p]), v)


def causal(T):
    return torch.ones(T, T, dtype=torch.bool).tril()


def of_documents(T):
    """Row b of three holds documents of 5 + 7 b tokens."""
    document = torch.stack([torch.arange(T) // (5 + 7 * b) for b in range(3)])
    return ((document[:, :, None] == document[:, None, :]) & causal(T))[:, None]  # (3, 1, T, T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask_of", [causal, of_documents])
@pytest.mark.parametrize(("T", "weights"), [(1, 2**16), (7, 1), (61, 2**14), (64, 1), (67, 2**16), (131, 2**14)])
def test_tiled_attention_and_its_gradients_equal_the_formula_in_float64(monkeypatch, dtype, mask_of, T, weights):
    monkeypatch.setattr(minigpt.dropout, "WEIGHTS", weights)  # the number of rows in a tile follows from it
    B, H, D, p = 3, 5, 7, 0.2
    torch.manual_seed(T)
    # as the model makes them: (B, T, 3C), cut and turned
    c_attn = torch.randn(B, T, 3 * H * D).to(dtype).requires_grad_()
    dy, mask, state = torch.randn(B, H, T, D).to(dtype), mask_of(T), torch.get_rng_state()
    parts = [part.view(B, T, H, D).transpose(1, 2) for part in c_attn.split(H * D, dim=2)]
    y = tiled_attention(*parts, mask, p)
    y.backward(dy)
    torch.set_rng_state(state)
    stays, _ = draw((B, H, T, T), p)
    ours, c_attn.grad = c_attn.grad, None
    expected = attended(*(part.clone() for part in parts), mask, stays, p)
    expected.backward(dy.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    assert y.dtype == dtype
    assert torch.allclose(y.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(ours.double(), c_attn.grad.double(), rtol=tolerance, atol=tolerance)


def test_all_cores_drop_the_same_weights_after_the_same_seed():
    config = GPTConfig(vocab_size=23, block_size=67, n_layer=2, n_head=3, n_embd=15, dropout=0.2)
    torch.manual_seed(1)
    model, idx = GPT(config).double().train(), torch.randint(23, (2, 67))
    outputs = {}
    for core in (explicit_attention, fused_attention):
        for block in model.h:
            block.attn.core = core
        torch.manual_seed(11)
        logits = model(idx)
        logits.square().mean().backward()
        outputs[core] = [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        model.zero_grad()
    for one, other in zip(*outputs.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


def test_steps_differ_and_repeat_with_their_random_state():
    config = GPTConfig(vocab_size=23, block_size=13, n_layer=2, n_head=3, n_embd=15, dropout=0.2)
    model, idx = GPT(config).train(), torch.randint(23, (2, 13))
    states, logits = [], []
    for _ in range(3):
        states.append(torch.get_rng_state())
        logits.append(model(idx))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(logits, 2))
    for state, expected in zip(states, logits, strict=True):
        torch.set_rng_state(state)
        assert torch.equal(model(idx), expected)
