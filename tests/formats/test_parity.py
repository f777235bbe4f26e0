"""The comparison with the reference library: what it says of equal models, and of damaged ones."""

import sys
from pathlib import Path

import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.errors import CheckpointError, ConfigError, InputError
from minigpt.formats import parity
from minigpt.formats.parity import LayerParity, compare_with_transformers
from minigpt.model import GPT

SHAPE = {"vocab_size": 31, "n_layer": 3, "n_head": 5, "n_embd": 5 * 7}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 30, 0, 5, 8, 9, 7]])


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A folder that the reference library wrote: random weights, biases and norms too, far from their first values."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("reference")
    config = transformers.GPT2Config(n_positions=13, bos_token_id=None, eos_token_id=None, **SHAPE)
    torch.manual_seed(11)
    theirs = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def ours(reference) -> GPT:
    """The same weights in a model of ours."""
    from safetensors.torch import load_file

    weights = {name.removeprefix("transformer."): w for name, w in load_file(reference / "model.safetensors").items()}
    for name, weight in weights.items():
        if name.startswith("h.") and weight.dim() == 2:  # its matrices in the blocks are (in, out)
            weights[name] = weight.T
    model = GPT(GPTConfig(block_size=13, **SHAPE)).eval()
    model.load_state_dict({**weights, "lm_head.weight": weights["wte.weight"]})
    return model


def test_equal_models(reference, ours):
    report = compare_with_transformers(ours, reference, IDS)
    assert [layer.name for layer in report.layers] == [
        "embedding", "block 0", "block 1", "block 2", "final norm", "logits",
    ]  # fmt: skip
    assert (report.tokens, report.same_argmax) == (14, 14)
    assert report.first_difference is None
    assert max(layer.difference for layer in report.layers) < 1e-5
    embedded = [ours.wte.weight[token] + ours.wpe.weight[t] for row in IDS for t, token in enumerate(row)]
    assert report.layers[0].size == max(x.abs().max().item() for x in embedded)


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("wte.weight", "embedding"),
        ("wpe.weight", "embedding"),
        ("h.0.mlp.c_proj.bias", "block 0"),
        ("h.1.attn.c_attn.weight", "block 1"),
        ("h.2.mlp.c_fc.weight", "block 2"),
        ("ln_f.bias", "final norm"),
    ],
)
def test_a_damaged_model_differs_from_there_on(reference, ours, path, first):
    with torch.no_grad():
        ours.get_parameter(path).view(-1)[3] += 0.5
    report = compare_with_transformers(ours, reference, IDS)
    assert report.first_difference.name == first
    names = [layer.name for layer in report.layers]
    assert not any(layer.agrees for layer in report.layers[names.index(first) :])


def test_the_numbers_of_a_known_damage(reference, ours):
    """Every logit moved by the same amount: the most probable token stays."""
    ours.lm_head.weight = torch.nn.Parameter(ours.wte.weight.detach().clone())
    ours.lm_head.register_forward_hook(lambda module, args, output: output + 0.25)
    report = compare_with_transformers(ours, reference, IDS)
    assert report.first_difference.name == "logits"
    assert report.first_difference.difference == pytest.approx(0.25, abs=1e-4)
    assert report.same_argmax == 14


def test_other_best_tokens_are_counted(reference, ours):
    logits = ours(IDS)
    ours.lm_head.register_forward_hook(lambda module, args, output: -output)
    assert compare_with_transformers(ours, reference, IDS).same_argmax == int(
        (logits.argmax(-1) == logits.argmin(-1)).sum()
    )


def test_the_erf_form_of_gelu_is_seen(reference, ours):
    """The commonest mistake with these weights."""
    for block in ours.h:
        block.mlp.gelu = torch.nn.GELU()
    assert compare_with_transformers(ours, reference, IDS).first_difference is not None


def test_what_rounding_explains():
    assert LayerParity("x", 1e-3, 5.0).agrees
    assert not LayerParity("x", 1.1e-3, 5.0).agrees
    assert LayerParity("x", 2.9e-2, 3000.0).agrees  # float32 keeps seven digits
    assert not LayerParity("x", 3.1e-2, 3000.0).agrees
    assert not LayerParity("x", float("nan"), 5.0).agrees


def test_nothing_stays_behind(reference, ours):
    compare_with_transformers(ours, reference, IDS)
    with pytest.raises(InputError, match="not all in the vocabulary"):
        compare_with_transformers(ours, reference, torch.tensor([[31]]))
    assert not any(module._forward_hooks for module in ours.modules())


def test_no_gradients_are_kept(reference, ours):
    kept = []
    ours.ln_f.register_forward_hook(lambda module, args, output: kept.append(output.requires_grad))
    compare_with_transformers(ours, reference, IDS)
    assert kept == [False]


def test_the_reference_library_is_asked_in_silence(reference, ours, capfd):
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        capfd.readouterr()
        compare_with_transformers(ours, reference, IDS)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(verbosity)


def test_without_the_reference_library(monkeypatch, ours):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="not installed") as raised:
        compare_with_transformers(ours, Path("folder"), IDS)
    assert "pip install" in raised.value.how
    with pytest.raises(ConfigError):
        parity.require_transformers()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_that_the_reference_cannot_read(reference, ours, tmp_path, prefix):
    """It would go on with random weights, and the two models would rightly differ."""
    from safetensors.torch import load_file, save_file

    state = {prefix + name: weight for name, weight in load_file(reference / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((reference / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"cannot read the names in .* more\ncompare with an export"):
        compare_with_transformers(ours, tmp_path, IDS)


def test_a_folder_that_the_reference_cannot_read(ours):
    Path("folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot read folder"):
        compare_with_transformers(ours, Path("folder"), IDS)
