"""Weights return bit for bit, a tied tensor is stored once, and a bad file changes nothing."""

import dataclasses

import pytest
import safetensors.torch
import torch

from minigpt.errors import CheckpointError, MissingFileError
from minigpt.model import GPT
from minigpt.weights import load_weights, save_weights


@pytest.mark.parametrize("tie_weights", [True, False])
def test_round_trip_is_bit_exact(tiny_config, tmp_path, tie_weights):
    config = dataclasses.replace(tiny_config, tie_weights=tie_weights)
    model, other = GPT(config), GPT(config)
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert (other.lm_head.weight is other.wte.weight) is tie_weights
    stored = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert ("lm_head.weight" in stored) is not tie_weights
    assert not any("tril" in name for name in stored)


def test_all_differences_are_named_and_the_model_stays(tiny_model, tmp_path):
    state = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items() if name != "lm_head.weight"}
    state["h.1.mlp.c_fc.weight"] = state["h.1.mlp.c_fc.weight"].T.contiguous()
    state["extra"] = torch.zeros(1)
    del state["wpe.weight"]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    before = [parameter.clone() for parameter in tiny_model.parameters()]
    with pytest.raises(CheckpointError) as raised:
        load_weights(tiny_model, tmp_path / "w.safetensors")
    for part in ("wpe.weight is missing", "extra is not part of the model",
                 "h.1.mlp.c_fc.weight has shape (15, 60), expected (60, 15)"):  # fmt: skip
        assert part in str(raised.value)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_model.parameters(), strict=True))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(tiny_model, tmp_path, keep):
    path = tmp_path / "w.safetensors"
    save_weights(tiny_model, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match=r"w\.safetensors .* is damaged"):
        load_weights(tiny_model, path)


def test_a_missing_file(tiny_model, tmp_path):
    with pytest.raises(MissingFileError, match="no weights at"):
        load_weights(tiny_model, tmp_path / "w.safetensors")
