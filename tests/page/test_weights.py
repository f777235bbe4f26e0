"""The weights as the page reads them: the bytes, and the numbers that JavaScript makes of them."""

import base64
import zlib

import numpy as np
import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.errors import InputError
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.source import open_source
from minigpt.lora import LoRAConfig, add_lora, merged
from minigpt.packed import pack
from minigpt.page.weights import mapped_weights, page_weights, rounded
from minigpt.parameters import own_tensors
from tests.conftest import random_model
from tests.page.conftest import TOKENIZER

PRECISIONS = ["float32", "float16", "int8"]
SHAPES = [
    GPTConfig(vocab_size=23, block_size=13, n_layer=2, n_head=3, n_embd=15, bias=bias, tie_weights=tied)
    for bias in (True, False)
    for tied in (True, False)
]


def whole(weights) -> bytes:
    return b"".join(weights.pieces())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_javascript_makes_the_numbers_that_python_measures(node, shape, precision):
    """To the bit, for the loss that is said of a file is that of what it computes with."""
    model = random_model(shape, 3)
    weights = page_weights(model, precision)
    content = whole(weights)
    (found,) = node([("weights", {"tensors": weights.table, "base64": base64.b64encode(content).decode()})])
    expected = own_tensors(rounded(model, precision))
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert torch.equal(found[name], values.reshape(-1)), name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_rounded_is_near(tiny_model, precision):
    """By half a step of the format: of 11 bits, or of 127 steps to the largest of a row."""
    for (name, exact), near in zip(
        own_tensors(tiny_model).items(), own_tensors(rounded(tiny_model, precision)).values(), strict=True
    ):
        if precision == "float32" or (precision == "int8" and exact.ndim < 2):
            assert torch.equal(exact, near), name
        else:
            step = exact.abs() * 2**-10 + 2**-24 if precision == "float16" else exact.abs().amax(1, keepdim=True) / 127
            assert ((exact - near).abs() <= step / 2 * 1.001).all(), name


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_the_bytes_are_as_many_as_the_table_says(tiny_model, precision, size):
    weights = page_weights(tiny_model, precision)
    content, end = whole(weights), 0
    for entry, tensor in zip(weights.table, own_tensors(tiny_model).values(), strict=True):
        matrix = tensor.ndim == 2
        assert entry["offset"] % 4 == 0
        assert entry["offset"] - end in range(4)
        assert entry["length"] == tensor.numel() * (4 if precision == "int8" and not matrix else size)
        end = entry["offset"] + entry["length"]
        if precision == "int8" and matrix:
            assert entry["scales"] % 4 == 0
            assert entry["scales"] - end in range(4)
            end = entry["scales"] + 4 * len(tensor)
    assert len(content) - end in range(4)
    assert len(content) == weights.size


def test_a_row_of_zeros_stays_one(tiny_model):
    with torch.no_grad():
        tiny_model.wte.weight[3] = 0
    assert not rounded(tiny_model, "int8").wte.weight[3].any()


def test_halves_are_those_of_numpy(node):
    """All of them: normal, subnormal, zeros, infinities and what is no number."""
    bits = np.arange(2**16, dtype=np.uint16)
    (found,) = node([("halves", {"bits": bits.tolist()})])
    expected = bits.view(np.float16).astype(np.float32)
    assert np.array_equal(found.numpy(), expected, equal_nan=True)
    assert np.array_equal(np.signbit(found.numpy()[~np.isnan(expected)]), np.signbit(expected[~np.isnan(expected)]))


def test_the_checksum_is_that_of_zlib(node):
    content = bytes(range(256)) * 5 + b"tail"
    pieces = [base64.b64encode(part).decode() for part in (content[:7], content[7:700], b"", content[700:])]
    assert node([("checksum", {"pieces": pieces}), ("checksum", {"pieces": []})]) == [zlib.crc32(content), 0]


def test_a_run_is_mapped_and_not_read(run, tiny_model):
    weights = mapped_weights(open_source(run.path))
    assert weights is not None
    assert whole(weights) == whole(page_weights(tiny_model))
    assert weights.table == page_weights(tiny_model).table
    assert all(part.obj is not None and type(part.obj).__name__ == "mmap" for part in weights.parts)


def test_what_has_another_layout_is_not_mapped(tiny_model, tmp_path):
    save_hf(tiny_model, TOKENIZER, tmp_path / "theirs")  # other names, matrices the other way round
    assert mapped_weights(open_source(tmp_path / "theirs")) is None


def test_a_run_in_half_precision_is_not_mapped(run, tiny_model):
    from minigpt.formats.weights import write_safetensors

    write_safetensors(run.best_weights, own_tensors(tiny_model), dtype=torch.float16)
    assert mapped_weights(open_source(run.path)) is None
    model, _ = load_model(run.path)
    assert page_weights(model).table[0]["dtype"] == "float32"


def test_an_adapter_in_use_is_merged_and_the_model_left_alone(tiny_model):
    add_lora(tiny_model, LoRAConfig(rank=2, alpha=3.0), seed=1)
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    before = {name: parameter.clone() for name, parameter in tiny_model.named_parameters()}
    assert whole(page_weights(tiny_model)) == whole(page_weights(merged(tiny_model)))
    assert all(torch.equal(before[name], parameter) for name, parameter in tiny_model.named_parameters())


def test_a_packed_model_is_refused_in_two_lines(tiny_model):
    with pytest.raises(InputError, match=r"this model's were packed\nload it again; or take the model that pack was"):
        page_weights(pack(tiny_model, "float32", keep=False))


def test_a_weight_that_float16_cannot_hold_is_named(tiny_model):
    with torch.no_grad():
        tiny_model.h[1].mlp.c_fc.weight[2, 3] = 1e5
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc\.weight has a weight of 1e\+05, and float16 holds 65504"):
        page_weights(tiny_model, "float16")
    assert page_weights(tiny_model, "int8").precision == "int8"
