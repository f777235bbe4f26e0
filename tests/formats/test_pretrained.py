"""Weights come in from every common form, compute what the reference library computes, and go out again unchanged."""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from torch.nn import functional as F  # noqa: N812

from minigpt.config import GPTConfig, RunConfig, preset, updated
from minigpt.decoding.generate import generate
from minigpt.decoding.sampling import next_token_table
from minigpt.errors import CheckpointError, ConfigError, InputError, MiniGPTError, MissingFileError, ModelNote
from minigpt.evaluation.loss import evaluate, next_token_loss, sequence_log_prob
from minigpt.formats import config_json, pretrained, source, tokenizer_files
from minigpt.formats.gpt2_names import transformers_views
from minigpt.formats.hub import OTHER_NAME
from minigpt.formats.lora_files import load_adapter, save_adapter
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.run_directory import RunDirectory, save_run, start_run
from minigpt.formats.source import AssumedHeads, open_source
from minigpt.formats.tokenizer_files import named_tokenizer
from minigpt.formats.weights import fill, open_weights, save_weights, stored_tensors
from minigpt.lora import LoRAConfig, add_lora
from minigpt.model import GPT, explicit_attention
from minigpt.parameters import empty_model, own_tensors
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, check_vocabulary
from tests.conftest import random_model

GOLDEN = os.environ.get("MINIGPT_GOLDEN") and Path(os.environ["MINIGPT_GOLDEN"]).resolve()
CHARACTERS = "".join(map(chr, range(ord("A"), ord("A") + 23)))  # 23 of them, the vocabulary of the tiny models
CHAR = CharTokenizer(CHARACTERS)


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    """A local model is loaded without a single socket; tests marked `network` may have theirs."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    if not request.node.get_closest_marker("network"):
        monkeypatch.setattr(socket, "socket", refuse)


def reference_model(dtype=torch.float32, spread=0.3, **changes) -> transformers.GPT2LMHeadModel:
    """The reference library's model with weights far from their first values, biases and norms too."""
    shape = {"vocab_size": 23, "n_positions": 13, "n_embd": 15, "n_layer": 2, "n_head": 3}
    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(**{**shape, **rates, **ends, **changes})
    torch.manual_seed(11)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.to(dtype)


def reference_folder(theirs: transformers.GPT2LMHeadModel, folder: Path = Path("reference"), **save) -> Path:
    """What the reference library writes of its model, and a tokenizer of characters."""
    theirs.save_pretrained(folder, **save)
    CHAR.save(folder / "tokenizer.json")
    return folder


def renamed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors with `transformer.` replaced by another prefix, copied so that no two share memory."""
    return {
        (name.replace("transformer.", prefix) if prefix != "transformer." else name): tensor.clone()
        for name, tensor in state.items()
    }


def tokens(batch: int, length: int, vocab_size: int = 23) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(3))


def change_config(folder: Path, **changes) -> None:
    """Rewrite config.json with other values; None takes a key out."""
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def same_weights(a: GPT, b: GPT) -> bool:
    return a.config == b.config and all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def stored(path: Path, config: GPTConfig) -> GPT:
    """The model whose weights are in a file under our own names."""
    model = GPT(config)
    fill(own_tensors(model), open_weights(path), path, "")
    return model


# --- in: the reference is the oracle


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_head": 1},
        {"tie_word_embeddings": False},
        {"n_embd": 35, "n_head": 5, "n_layer": 3, "vocab_size": 23, "n_positions": 17},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu_fast"},
        {"n_inner": 60},
    ],
)
def test_logits_are_the_references(dtype, bound, changes):
    theirs = reference_model(**changes)
    model, _ = load_model(reference_folder(theirs))
    idx = tokens(5, 13)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (model.lm_head.weight is model.wte.weight) is changes.get("tie_word_embeddings", True)
    with torch.no_grad():
        difference = model.to(dtype)(idx) - theirs.to(dtype)(idx).logits
    assert difference.abs().max() < bound


def test_loss_perplexity_and_log_probability_are_the_references():
    theirs = reference_model()
    model, _ = load_model(reference_folder(theirs))
    idx = tokens(3, 11)
    with torch.no_grad():
        loss = theirs(idx, labels=idx).loss.item()  # the mean over the batch of -log p of every id but the first
        assert next_token_loss(model(idx)[:, :-1], idx[:, 1:]).item() == pytest.approx(loss, abs=1e-5)
        log_p = theirs.double()(idx).logits.log_softmax(-1)  # (B, T, V)
    sums = log_p[:, :-1].gather(2, idx[:, 1:, None]).sum((1, 2))
    assert sequence_log_prob(model.double(), idx) == pytest.approx(sums.tolist(), abs=1e-10)
    assert evaluate(model, idx[0].numpy()).perplexity == pytest.approx(np.exp(-sums[0].item() / 10), abs=1e-8)


def test_greedy_continuations_are_the_references():
    theirs = reference_model()
    model, _ = load_model(reference_folder(theirs))
    prompt = tokens(1, 3)
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=9)
    assert generate(model, prompt.tolist(), max_new_tokens=9, strategy="greedy").sequences == expected.tolist()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["single", "shards", "bin", "old bin", "bin shards"])
@pytest.mark.parametrize("prefix", ["transformer.", "", "_orig_mod.transformer.", "module._orig_mod.transformer."])
def test_every_form_holds_the_same_weights(monkeypatch, tied, kind, prefix):
    theirs = reference_model(tie_word_embeddings=tied)
    folder = reference_folder(theirs)
    expected, _ = load_model(folder)
    state = renamed(theirs.state_dict(), prefix)
    if tied and prefix == "":
        del state["lm_head.weight"]  # it may be there, and it may be left out
    (folder / "model.safetensors").unlink()
    halves = [dict(list(state.items())[:9]), dict(list(state.items())[9:])]
    match kind:
        case "single":
            safetensors.torch.save_file(state, folder / "model.safetensors")
        case "bin" | "old bin":
            torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
        case "shards" | "bin shards":
            stem, suffix = ("model", "safetensors") if kind == "shards" else ("pytorch_model", "bin")
            files = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
            for file, half in zip(files, halves, strict=True):
                save = safetensors.torch.save_file if kind == "shards" else torch.save
                save(half, folder / file)
            weight_map = {name: file for file, half in zip(files, halves, strict=True) for name in half}
            (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    before = contents(folder)
    assert same_weights(load_model(folder)[0], expected)
    assert contents(folder) == before  # nothing was converted, moved or deleted


def test_the_references_own_shards():
    theirs = reference_model()
    folder = reference_folder(theirs, max_shard_size="9KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    with torch.no_grad():
        assert torch.allclose(load_model(folder)[0](tokens(2, 5)), theirs(tokens(2, 5)).logits, atol=1e-5)


def test_masks_of_old_files_are_ignored_and_biases_are_not():
    theirs = reference_model()
    folder = reference_folder(theirs)
    state = renamed(theirs.transformer.state_dict(), "")
    for layer in range(2):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 13, 13, dtype=torch.uint8).tril()
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    model, _ = load_model(folder)
    assert torch.equal(model.h[1].attn.c_attn.bias, theirs.transformer.h[1].attn.c_attn.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_become_float32(dtype):
    theirs = reference_model(dtype)
    model, _ = load_model(reference_folder(theirs))
    with torch.no_grad():
        assert torch.allclose(model(tokens(2, 5)), theirs.float()(tokens(2, 5)).logits, atol=1e-5)


def test_formats_are_preferred_in_order():
    """The .bin beside a .safetensors file is not opened: it could be anything."""
    folder = reference_folder(reference_model())
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    (folder / "model.safetensors.index.json").write_bytes(b"junk")
    load_model(folder)


def test_a_file_is_loaded_with_the_config_beside_it():
    folder = reference_folder(reference_model())
    assert same_weights(load_model(folder / "model.safetensors")[0], load_model(folder)[0])
    torch.save(reference_model().state_dict(), folder / "other.bin")
    assert same_weights(load_model(str(folder / "other.bin"))[0], load_model(folder)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_a_lone_file_tells_its_shape_where_heads_are_64_wide(tied):
    theirs = reference_model(n_embd=128, n_head=2, tie_word_embeddings=tied)
    folder = reference_folder(theirs)
    expected, _ = load_model(folder)
    (folder / "config.json").unlink()
    with pytest.warns(AssumedHeads, match=r"no config\.json beside it: 2 heads, each 64 wide, were assumed"):
        assert same_weights(load_model(folder / "model.safetensors")[0], expected)
    with pytest.raises(MissingFileError, match=r"neither config\.yaml \(of a run\) nor config\.json"):
        load_model(folder)


@pytest.mark.parametrize("with_config", [False, True])
def test_a_tied_matrix_may_have_the_name_of_the_head(with_config):
    """As safetensors' own `save_model` writes it, and transformers reads it; an untied model lacks its embedding."""
    theirs = reference_model(n_embd=128, n_head=2)
    folder = reference_folder(theirs)
    expected, _ = load_model(folder)
    safetensors.torch.save_model(theirs, str(folder / "model.safetensors"))
    assert not any("wte" in name for name in safetensors.torch.load_file(folder / "model.safetensors"))
    if with_config:
        assert same_weights(load_model(folder)[0], expected)
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": False}))
        with pytest.raises(CheckpointError, match=r"lacks the matrices wte\.weight"):
            load_model(folder)
    else:
        (folder / "config.json").unlink()
        with pytest.warns(AssumedHeads):
            assert same_weights(load_model(folder / "model.safetensors")[0], expected)


@pytest.mark.parametrize(("kind", "words"), [("link", "a link that leads to no file"), ("folder", "no regular file")])
def test_a_config_that_cannot_be_read_is_no_reason_to_guess(kind, words):
    folder = reference_folder(reference_model(n_embd=128, n_head=4))
    (folder / "config.json").unlink()
    if kind == "link":
        (folder / "config.json").symlink_to("elsewhere.json")
    else:
        (folder / "config.json").mkdir()
    for spec in (folder, folder / "model.safetensors"):
        with pytest.raises(MissingFileError, match=rf"reference/config\.json is {words}"):
            load_model(spec)


def test_a_lone_file_without_such_heads_asks_for_its_config():
    folder = reference_folder(reference_model())
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"n_embd = 15 is no multiple of 64\nput the config\.json"):
        load_model(folder / "model.safetensors")
    safetensors.torch.save_file({"encoder.layer": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"weights of a GPT-2: .* it has encoder\.layer"):
        load_model(folder / "model.safetensors")


# --- nanoGPT


def nanogpt_checkpoint(gpt: GPT, path: Path, prefix: str = "", **changes) -> None:
    """In the form of nanoGPT's train.py: nn.Linear's orientation, the head always there, masks in old versions."""
    state = {f"{prefix}transformer.{name}": value for name, value in gpt.state_dict().items() if "lm_head" not in name}
    state[f"{prefix}lm_head.weight"] = gpt.lm_head.weight.detach()
    for layer in range(gpt.config.n_layer):
        state[f"{prefix}transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 13, 13).tril()
    arguments = dataclasses.asdict(gpt.config)
    del arguments["tie_weights"]
    checkpoint = {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.95)}]},
        "model_args": arguments,
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "compile": True},
    }
    torch.save(checkpoint | changes, path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_nanogpt(tiny_config, bias, tied, prefix):
    model = GPT(dataclasses.replace(tiny_config, bias=bias, tie_weights=tied, dropout=0.2)).eval()
    nanogpt_checkpoint(model, Path("ckpt.pt"), prefix)
    Path("input.txt").write_text(CHARACTERS[::-1] * 3)
    with pytest.warns(ModelNote, match="erf form of GELU, this model the tanh form"):
        loaded, tokenizer = load_model("ckpt.pt", tokenizer="input.txt")
    assert same_weights(loaded, model)
    assert (loaded.lm_head.weight is loaded.wte.weight) is tied
    assert tokenizer.fingerprint() == CHAR.fingerprint()


def test_the_folder_of_nanogpts_checkpoint_means_that_file(tiny_model):
    Path("out").mkdir()
    nanogpt_checkpoint(tiny_model, Path("out/ckpt.pt"))
    Path("out/meta.pkl").write_bytes(b"")
    Path("input.txt").write_text(CHARACTERS)
    with pytest.warns(ModelNote, match="erf"):
        loaded, _ = load_model("out", tokenizer="input.txt")
    assert same_weights(loaded, tiny_model)
    Path("out/older.pt").write_bytes(b"")
    with pytest.raises(MissingFileError, match=r"but ckpt.pt, meta.pkl, older.pt\n.* or one weights file"):
        load_model("out")
    Path("out/older.pt").rename("out/config.json")
    with pytest.raises(MissingFileError, match=r"neither model.safetensors nor "):
        load_model("out")


def test_of_a_trainers_checkpoints_the_newest_is_named():
    for number in (5, 10, 9):
        Path(f"out/checkpoint-{number}").mkdir(parents=True)
    with pytest.raises(MissingFileError) as refused:
        load_model("out")
    assert str(refused.value).splitlines()[1] == f"name its newest checkpoint, {Path('out/checkpoint-10')}"


@pytest.mark.parametrize("said", [(), ("dropout",), ("bias",)])
def test_an_old_checkpoint_of_nanogpt_has_its_defaults(tiny_model, said):
    """That there may be no biases came a month after the first."""
    arguments = {name: getattr(tiny_model.config, name) for name in
                 ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", *said)}  # fmt: skip
    nanogpt_checkpoint(tiny_model, Path("ckpt.pt"), model_args=arguments)
    Path("input.txt").write_text(CHARACTERS)
    with pytest.warns(ModelNote, match="erf"):
        assert same_weights(load_model("ckpt.pt", tokenizer="input.txt")[0], tiny_model)


def test_nanogpts_padded_vocabulary(monkeypatch):
    model = GPT(GPTConfig(vocab_size=50304, block_size=7, n_layer=1, n_head=1, n_embd=2))
    nanogpt_checkpoint(model, Path("ckpt.pt"))
    gpt2 = GPT2Tokenizer(["a b"])
    gpt2.vocab_size = 50257
    monkeypatch.setattr(source, "GPT2Tokenizer", lambda: gpt2)
    with pytest.warns(ModelNote):
        loaded, tokenizer = load_model("ckpt.pt")
    assert tokenizer is gpt2
    assert loaded.config.vocab_size == 50304


@pytest.mark.parametrize(
    "changes",
    [{"model_args": {"n_layer": 2}}, {"model_args": None}, {"model": torch.zeros(1)}, {"model_args": {"n_layer": "2"}}],
)
def test_a_checkpoint_that_is_not_nanogpts(tiny_model, changes):
    nanogpt_checkpoint(tiny_model, Path("ckpt.pt"), **changes)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
        load_model("ckpt.pt", tokenizer="gpt2")


def test_model_args_that_contradict_the_tensors(tiny_model):
    arguments = dataclasses.asdict(tiny_model.config) | {"n_layer": 3, "n_embd": 6}
    del arguments["tie_weights"]
    nanogpt_checkpoint(tiny_model, Path("ckpt.pt"), model_args=arguments)
    with pytest.raises(CheckpointError, match="n_embd = 6 there, 15 here; n_layer = 3 there, 2 here"):
        load_model("ckpt.pt")


def test_model_args_of_a_fork_of_nanogpt_are_refused(tiny_model):
    """Its tensors fit, and what they mean is not known."""
    arguments = dataclasses.asdict(tiny_model.config) | {"rope": True, "window": 7}
    del arguments["tie_weights"]
    nanogpt_checkpoint(tiny_model, Path("ckpt.pt"), model_args=arguments)
    with pytest.raises(CheckpointError, match=r"rope = True; window = 7, which nanoGPT does not know") as refused:
        load_model("ckpt.pt")
    assert "take them out of its model_args" in refused.value.how


# --- run directories


@pytest.fixture
def run(tiny_model) -> RunDirectory:
    """A run whose newest weights differ from its best."""
    directory = RunDirectory(Path("checkpoints/tiny"))
    start_run(directory, RunConfig(model=tiny_model.config), CHAR)
    save_weights(tiny_model, directory.best_weights)
    with torch.no_grad():
        tiny_model.wte.weight.add_(1)
    save_weights(tiny_model, directory.last_weights)
    return directory


def test_a_run_is_loaded_by_its_folder_or_by_its_file(run):
    best, tokenizer = load_model(run.path)
    assert tokenizer.fingerprint() == CHAR.fingerprint()
    assert same_weights(best, stored(run.best_weights, best.config))
    assert same_weights(best, load_model(str(run.best_weights))[0])
    last, _ = load_model(run.path / "last")
    assert same_weights(last, stored(run.last_weights, last.config))
    assert same_weights(last, load_model(run.last_weights)[0])
    assert torch.equal(last.wte.weight, best.wte.weight + 1)


def test_loading_leaves_the_random_state_alone(run):
    before = torch.get_rng_state()
    load_model(run.path)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_tokenizer_than_a_runs_own_is_refused(run):
    """A character set of equal size gives the same shapes, and nonsense."""
    other = CharTokenizer(CHARACTERS.lower())
    other.save(Path("other.json"))
    CHAR.save(Path("same.json"))
    with pytest.raises(CheckpointError) as raised:
        load_model(run.path, tokenizer="other.json")
    for tokenizer in (CHAR, other):
        assert tokenizer.fingerprint()[:12] in raised.value.what
    load_model(run.path, tokenizer="same.json")


def test_another_tokenizer_than_the_folders_own_is_refused():
    folder = reference_folder(reference_model())
    other = CharTokenizer(CHARACTERS.lower())
    other.save(Path("other/tokenizer.json"))
    for named in ("other", "other/tokenizer.json"):
        for spec in (folder, folder / "model.safetensors"):
            with pytest.raises(CheckpointError) as raised:
                load_model(spec, tokenizer=named)
            for tokenizer in (CHAR, other):
                assert tokenizer.fingerprint()[:12] in raised.value.what
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unigram"}}')  # not one of ours
    assert load_model(folder, tokenizer="other")[1].fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("vocab_size", "fits"), [(22, False), (23, True), (24, True), (25, False), (144, True), (152, False)]
)
def test_a_vocabulary_may_be_padded_and_no_more(vocab_size, fits):
    folder = reference_folder(reference_model(vocab_size=vocab_size))
    with (
        contextlib.nullcontext()
        if fits
        else pytest.raises(CheckpointError, match=f"the tokenizer has 23 tokens, the model {vocab_size}")
    ):
        model, _ = load_model(folder)
        assert model.config.vocab_size == vocab_size


# --- arguments


@pytest.mark.parametrize("source", ["reference", "run"])
def test_a_shorter_context_has_the_first_positions(run, source):
    path = run.path if source == "run" else reference_folder(reference_model())
    full, _ = load_model(path)
    short, _ = load_model(path, block_size=7, dropout=0.25)
    assert (short.config.block_size, short.config.dropout) == (7, 0.25)
    assert short.wpe.weight.shape == (7, 15)
    assert short.h[0].attn.tril.shape == (7, 7)
    assert torch.equal(short(tokens(2, 7)), full(tokens(2, 7)))
    with pytest.raises(ConfigError, match="block_size = 14 is more than the model's 13"):
        load_model(path, block_size=14)
    with pytest.raises(ConfigError, match="block_size = 0 is out of range"):
        load_model(path, block_size=0)
    with pytest.raises(ConfigError, match="dropout = 1 is out of range"):
        load_model(path, dropout=1)


def test_tokenizers_by_name():
    folder = reference_folder(reference_model())
    with pytest.raises(MissingFileError, match="there is no tokenizer 'gtp2'\ngive gpt2, a tok"):
        load_model(folder, tokenizer="gtp2")
    Path("text.txt").write_text(CHARACTERS[5:] + CHARACTERS[:9])
    for named in ("text.txt", Path("text.txt"), folder / "tokenizer.json", folder):
        assert load_model(folder, tokenizer=named)[1].fingerprint() == CHAR.fingerprint()


# --- without a tokenizer, and with more ids than text can give

SMALL = GPT2Tokenizer(["t h", "th e", "Ġ the", "e r"])  # 261 tokens
PADDED = [262, 263, 264, 283, 384, 389, 523]  # resized to one more, to any number, to a multiple of 8 and of 128


@pytest.mark.parametrize("vocab_size", [23, 50257, 50258, 50304, 50432])
def test_weights_and_a_config_suffice(monkeypatch, vocab_size):
    """What save_pretrained writes of a model alone. GPT-2's tokenizer is taken where it is sure to be meant."""
    monkeypatch.setattr(source, "GPT2Tokenizer", lambda: gpt2)
    gpt2 = GPT2Tokenizer(["a b"])
    gpt2.vocab_size = 50257
    theirs = reference_model(vocab_size=vocab_size, n_embd=3, n_head=1)
    theirs.save_pretrained("bare")
    is_gpt2 = vocab_size in (50257, 50304)
    for spec in ("bare", "bare/model.safetensors"):
        with pytest.warns(ModelNote) as notes:
            model, tokenizer = load_model(spec)
        assert tokenizer is (gpt2 if is_gpt2 else None)
        (note,) = [str(note.message) for note in notes]
        assert "\n" not in note
        assert "comes without a tokenizer" in note
        assert ("GPT-2's is used" in note) is is_gpt2
        assert ("--tokenizer" in note) is not is_gpt2
        with torch.no_grad():
            assert (model(tokens(2, 7, vocab_size)) - theirs(tokens(2, 7, vocab_size)).logits).abs().max() < 1e-5
        if not is_gpt2:
            with pytest.raises(InputError, match=rf"no tokenizer is known for {spec}.*\nname one with tokenizer:"):
                open_source(spec).load_for_text()
    Path("bare/tokenizer_config.json").write_text("{}")  # of SentencePiece, say
    with pytest.warns(ModelNote, match="comes without a tokenizer, and with settings of one;"):
        assert load_model("bare")[1] is None
    Path("bare/vocab.json").write_text("{}")  # half a tokenizer is a mistake
    with pytest.raises(MissingFileError, match=r"merges\.txt not found"):
        load_model("bare")


def added_word(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(folder)


def other_kind(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unigram"}}')


def other_class(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


def end_of_text_first(folder: Path) -> None:
    """As transformers' own trainer of tokenizers numbers it."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {name: (number + 1) % len(vocab) for name, number in vocab.items()}
    content["added_tokens"][0]["id"] = 0
    (folder / "tokenizer.json").write_text(json.dumps(content))


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("vocab_size", [SMALL.vocab_size, 50257])
@pytest.mark.parametrize("changed", [added_word, other_kind, other_class, end_of_text_first])
def test_a_tokenizer_that_is_not_reproduced_leaves_the_model_without_one(changed, vocab_size):
    """Never with GPT-2's, and never with nothing said: its ids go in and out, and an export is that of a bare model."""
    theirs = reference_model(vocab_size=vocab_size)
    save_hf(GPT(GPTConfig(SMALL.vocab_size, 13, 2, 3, 15)), SMALL, "reference")
    theirs.save_pretrained("reference")
    changed(Path("reference"))
    SMALL.save(Path("small.json"))
    for spec in ("reference", "reference/model.safetensors"):
        with any_notes() as notes:
            model, tokenizer = load_model(spec)
        assert tokenizer is None
        (note,) = [str(note.message) for note in notes]
        assert "the tokenizer in reference is none that minigpt can reproduce exactly: " in note
        assert "only ids go in and out (--tokenizer" in note
        with torch.no_grad():
            assert (model(tokens(2, 7, 261)) - theirs(tokens(2, 7, 261)).logits).abs().max() < 1e-5
        with pytest.raises(CheckpointError, match=r"reproduce exactly: .*\n.*name another with --tokenizer"):
            open_source(spec).load_for_text()
        with any_notes():
            assert load_model(spec, tokenizer="small.json")[1].fingerprint() == SMALL.fingerprint()
    with any_notes(), pytest.raises(CheckpointError, match="reproduce exactly"):
        load_model("reference", tokenizer="reference")


def test_a_tokenizer_that_does_not_fit_its_model_can_be_replaced():
    """Its own was refused because it is too large, and any other because it is not its own."""
    folder = reference_folder(reference_model(vocab_size=22))
    with pytest.raises(CheckpointError, match="the tokenizer has 23 tokens, the model 22"):
        load_model(folder)
    fitting = CharTokenizer(CHARACTERS[:22])
    fitting.save(Path("fitting.json"))
    assert load_model(folder, tokenizer="fitting.json")[1].fingerprint() == fitting.fingerprint()


def test_a_tokenizer_that_is_named_brings_its_special_tokens():
    """The model's own gives the same ids for a text, and knows no [PAD]; or knows it, where the named one does not."""
    resized(263, ["[PAD]", "<user>"])
    SMALL.save(Path("small.json"))
    for spec, named, expected in (
        ("plain", "reference", ["[PAD]", "<user>"]),
        ("reference", "small.json", ["[PAD]", "<user>"]),
        ("reference", None, ["[PAD]", "<user>"]),
        ("plain", "small.json", []),
    ):
        with any_notes():
            tokenizer = load_model(spec, tokenizer=named)[1]
        assert [token.content for token in tokenizer.added] == expected


@pytest.mark.parametrize("name", sorted(OTHER_NAME))
def test_a_name_that_brings_a_tokenizer_names_it_too(monkeypatch, name):
    gpt2 = GPT2Tokenizer(["a b"])
    for module in (source, tokenizer_files):
        monkeypatch.setattr(module, "GPT2Tokenizer", lambda: gpt2)
    assert named_tokenizer(name) is open_source(name).tokenizer() is gpt2


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_without_a_tokenizer_goes_out_and_comes_back(tiny_config, bias):
    model = GPT(dataclasses.replace(tiny_config, bias=bias)).eval()
    save_hf(model, None, "out")
    assert sorted(path.name for path in Path("out").iterdir()) == ["config.json", "model.safetensors"]
    theirs = load_there(Path("out"))
    assert theirs.config.bos_token_id is theirs.config.eos_token_id is None
    with pytest.warns(ModelNote, match="comes without a tokenizer"):
        back, tokenizer = load_model("out")
    assert tokenizer is None
    with torch.no_grad():
        for logits in (theirs(tokens(5, 13)).logits, back(tokens(5, 13))):
            assert (logits - model(tokens(5, 13))).abs().max() < 1e-5


def test_a_run_has_a_tokenizer(tiny_model):
    with pytest.raises(InputError, match=r"tokenizer = None .*\ntokenizer must be .* name one: load_model"):
        save_run(tiny_model, None, Path("run"))
    assert not Path("run").exists()


def test_a_run_is_written_over_nothing():
    tokenizer = CharTokenizer("abc")
    with pytest.raises(CheckpointError, match="the tokenizer has 3 tokens, the model 2"):
        save_run(GPT(GPTConfig(2, 13, 1, 1, 3)), tokenizer, "run")
    assert not Path("run").exists()
    Path("run").mkdir()
    Path("run/config.yaml").write_text("a trained run's")
    for taken in ("run", "run/config.yaml"):
        with pytest.raises(CheckpointError, match=r"is not empty|is a file"):
            save_run(GPT(GPTConfig(3, 13, 1, 1, 3)), tokenizer, taken)
    assert [path.read_text() for path in Path("run").iterdir()] == ["a trained run's"]


def resized(vocab_size: int, added: list[str]) -> tuple[transformers.GPT2LMHeadModel, Path]:
    """A model of byte pairs of the reference, resized there, with special tokens added there."""
    theirs = reference_model(vocab_size=SMALL.vocab_size, n_embd=15)
    save_hf(GPT(GPTConfig(SMALL.vocab_size, 13, 2, 3, 15)), SMALL, "plain")
    tokenizer = transformers.AutoTokenizer.from_pretrained("plain")
    for name in added:
        tokenizer.add_special_tokens({"pad_token": name} if name == "[PAD]" else {"extra_special_tokens": [name]},
                                     replace_extra_special_tokens=False)  # fmt: skip
    theirs.resize_token_embeddings(vocab_size, mean_resizing=False)
    theirs.config.pad_token_id = tokenizer.pad_token_id
    theirs.save_pretrained("reference")
    tokenizer.save_pretrained("reference")
    assert theirs.config.vocab_size == vocab_size
    return theirs.eval(), Path("reference")


WAYS = ["folder", "file", "bin", "two files", "run", "export", "nanogpt", "named"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("vocab_size", "added"),
    [
        *((size, []) for size in PADDED),
        (262, ["[PAD]"]),
        (263, ["[PAD]", "<user>"]),
        (389, ["[PAD]"]),
        (261, ["[PAD]"]),
    ],
)
def test_every_way_in_takes_ids_without_text(vocab_size, added, way):
    theirs, folder = resized(vocab_size, added)
    spec, named = folder, None
    match way:
        case "file":
            spec = folder / "model.safetensors"
        case "bin":
            torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        case "two files":
            for name in ("vocab.json", "merges.txt"):
                (folder / name).write_bytes(Path("plain", name).read_bytes())
            (folder / "tokenizer.json").unlink()
            ids = {name: SMALL.vocab_size + place for place, name in enumerate(added)}
            (folder / "added_tokens.json").write_text(json.dumps(ids))
        case "run" | "export" | "nanogpt":
            with any_notes():
                model, tokenizer = load_model(folder)
            spec = Path("written")
            if way == "nanogpt":
                nanogpt_checkpoint(model, Path("ckpt.pt"))
                spec, named = Path("ckpt.pt"), folder
            else:
                with any_notes():  # the config.json may name a [PAD] that is no id of the model
                    (save_run if way == "run" else save_hf)(model, tokenizer, spec)
        case "named":
            for path in folder.glob("*token*"):
                path.unlink()
            spec, named = folder, "plain"
    with any_notes() as notes:
        model, tokenizer = load_model(spec, tokenizer=named)
    assert model.config.vocab_size == vocab_size
    assert tokenizer.vocab_size == SMALL.vocab_size
    assert tokenizer.fingerprint() == SMALL.fingerprint()
    assert [token.content for token in tokenizer.added] == (added if way != "named" else [])
    with torch.no_grad():
        difference = model(tokens(2, 11, vocab_size)) - theirs(tokens(2, 11, vocab_size)).logits
    assert difference.abs().max() < 1e-5
    said = [str(note.message) for note in notes if "stand for no text" in str(note.message)]
    spare = vocab_size - SMALL.vocab_size
    unknown = spare and (spare >= 128 or vocab_size % 8 or (added and way != "named"))
    assert len(said) == bool(unknown and way != "run")  # of which it was said at the import
    assert all(
        f"{spare} of the {vocab_size} ids of {spec}" in note and "stand for no text" in note and "\n" not in note
        for note in said
    )
    assert all(repr(name) in note for name in added for note in said if way != "named")


@contextlib.contextmanager
def any_notes():
    """What is said of a model, kept."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        yield notes


@pytest.mark.parametrize("added", [[], ["[PAD]"], ["[PAD]", "<user>"]])
def test_special_tokens_go_out_with_the_model(added):
    theirs, folder = resized(263, added)
    with any_notes():
        model, tokenizer = load_model(folder)
    save_hf(model, tokenizer, "out")
    back = load_there(Path("out"))
    assert back.config.pad_token_id == theirs.config.pad_token_id
    assert (back.config.vocab_size, back.config.eos_token_id) == (263, SMALL.eos_token_id)
    there, before = (transformers.AutoTokenizer.from_pretrained(name) for name in ("out", folder))
    assert there.added_tokens_decoder == before.added_tokens_decoder
    assert there.pad_token_id == theirs.config.pad_token_id
    assert len(there) == SMALL.vocab_size + len(added)


@pytest.mark.parametrize("roles", [{"eos_token": "<eos>"}, {"bos_token": "<bos>", "eos_token": "<eos>"}])
def test_an_end_of_the_tokenizers_own_is_written_beside_the_one_that_is_learned(roles):
    """A training here ends documents with <|endoftext|>, which the note says, whatever was added."""
    save_hf(GPT(GPTConfig(SMALL.vocab_size, 13, 2, 3, 15)), SMALL, "plain")
    tokenizer = transformers.AutoTokenizer.from_pretrained("plain")
    tokenizer.add_special_tokens(roles)
    theirs = transformers.AutoModelForCausalLM.from_pretrained("plain")
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = None  # so the tokenizer alone says it
    theirs.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    theirs.save_pretrained("reference")
    tokenizer.save_pretrained("reference")
    Path("reference/generation_config.json").unlink()
    names = " and ".join(f"'{name}'" for name in roles.values())
    with pytest.warns(ModelNote, match=rf"; documents begin and end with <\|endoftext\|>, not with {names}$"):
        model, ours = load_model("reference")
    save_hf(model, ours, "out")
    assert load_there(Path("out")).generation_config.eos_token_id == [tokenizer.eos_token_id, SMALL.eos_token_id]
    assert SMALL.eos_token_id in ours.end_ids


def test_a_token_that_the_model_was_never_made_large_enough_for():
    """People add [PAD] and forget to resize: it is a name, and no id of the model."""
    _, folder = resized(261, ["[PAD]"])
    model, tokenizer = load_model(folder)
    with pytest.warns(ModelNote, match="pad_token_id = 261"):
        save_hf(model, tokenizer, "out")
    assert load_there(Path("out")).config.pad_token_id is None
    assert transformers.AutoTokenizer.from_pretrained("out").pad_token == "[PAD]"


@pytest.mark.parametrize("size", [260, 23])
def test_a_model_with_fewer_ids_than_its_text_needs(size):
    with pytest.raises(CheckpointError, match=f"the tokenizer has 261 tokens, the model {size}"):
        check_vocabulary(SMALL, size, Path("model"))


@pytest.mark.parametrize("size", [50257, 50304, 65 + 126, 71])
def test_characters_of_another_text_are_refused(size):
    with pytest.raises(CheckpointError, match=f"the tokenizer has 65 tokens, the model {size}"):
        check_vocabulary(CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 65)))), size, Path("model"))


def test_a_character_model_with_an_added_token():
    """Exported, given a [PAD] there, resized, and back."""
    save_hf(GPT(GPTConfig(23, 13, 2, 3, 15)), CHAR, "plain")
    tokenizer = transformers.AutoTokenizer.from_pretrained("plain")
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "eos_token": "<end>"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained("plain")
    theirs.resize_token_embeddings(25, mean_resizing=False)
    theirs.save_pretrained("reference")
    tokenizer.save_pretrained("reference")
    with pytest.warns(ModelNote, match=r"2 of the 25 ids of .* stand for no text \('\[PAD\]', '<end>'\)"):
        model, ours = load_model("reference")
    assert (model.config.vocab_size, ours.vocab_size) == (25, 23)


# --- specs that lead nowhere


@pytest.mark.parametrize(
    "spec",
    ["./typo", "../typo", "/typo", "~/typo", "typo\\gpt2", "gpt2.safetensors", "org/name.bin", "ckpt.pt",
     "checkpoints/typo", Path("gpt2"), Path("org/name")],
)  # fmt: skip
def test_what_looks_like_a_path_is_never_asked_of_the_hub(monkeypatch, spec):
    monkeypatch.setattr(source, "fetch_model", lambda name: pytest.fail(f"the hub was asked for {name}"))
    with pytest.raises(MissingFileError, match="does not exist"):
        load_model(spec)


@pytest.mark.parametrize("spec", ["gtp2", "", "gpt2 medium", "org/name/part", "org/", "/", "org/.."])
def test_other_words_are_no_model(monkeypatch, spec):
    monkeypatch.setattr(source, "fetch_model", lambda name: pytest.fail(f"the hub was asked for {name}"))
    with pytest.raises(MiniGPTError) as raised:
        load_model(spec)
    if spec == "gtp2":
        assert raised.value.what == "there is no model 'gtp2'"
        assert raised.value.how.startswith(
            "did you mean gpt2? known: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2; others on the hub are ORG/"
        )


@pytest.mark.parametrize("spec", ["gpt2", "distilgpt2", "gpt2-xl", "org/name", "Org-1/na.me_2"])
def test_names_of_the_hub(monkeypatch, spec):
    folder = reference_folder(reference_model())
    asked = []
    monkeypatch.setattr(source, "fetch_model", lambda name: asked.append(name) or folder)
    load_model(spec)
    assert asked == [spec]
    reference_folder(reference_model(), Path(spec))  # but a path that exists is that path
    load_model(spec)
    assert asked == [spec]


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ([], r"neither config\.yaml \(of a run\) nor config\.json, but nothing"),
        (["model.safetensors"], r"nor config\.json, but model\.safetensors"),
        (["config.json", "tf_model.h5"], r"neither model\.safetensors nor .* but config\.json, tf_model\.h5"),
    ],
)
def test_a_folder_that_lacks_something(files, what):
    Path("folder").mkdir()
    for name in files:
        (Path("folder") / name).write_text("{}")
    with pytest.raises(MissingFileError, match=what):
        load_model("folder")


@pytest.fixture
def adapted() -> GPT:
    """The base of adapters as PEFT writes them: of the name "default", of another name, and beside a tokenizer."""
    model = GPT(GPTConfig(23, 13, 2, 3, 15))
    base_of_all = copy.deepcopy(model)
    add_lora(model, LoRAConfig(rank=2), seed=0)
    for name, base in {"plain": "org/base", "named/reviews": None, "beside": "org/base"}.items():
        save_adapter(model, name, base=base)
    CHAR.save(Path("beside/tokenizer.json"))
    return base_of_all


@pytest.mark.parametrize(
    ("spec", "base", "adapter"),
    [
        ("plain", "org/base", "plain"),
        ("plain/adapter_model.safetensors", "org/base", "plain"),
        ("plain/adapter_config.json", "org/base", "plain"),
        ("named", "MODEL", "named/reviews"),
        ("named/reviews", "MODEL", "named/reviews"),
        ("beside", "org/base", "beside"),
    ],
)
def test_an_adapter_is_told_from_a_model(adapted, spec, base, adapter):
    for ask in (load_model, lambda spec: open_source(spec).config):
        with pytest.raises(CheckpointError) as raised:
            ask(spec)
        assert raised.value.what == f"{spec} holds an adapter, and no model"
        assert f"--model {base} --adapter {adapter}; or in Python, load_adapter(model, '{adapter}')" in raised.value.how


@pytest.mark.parametrize("name", ["plain", "plain/adapter_config.json", "plain/adapter_model.safetensors"])
def test_an_adapter_is_its_folder_or_a_file_in_it(adapted, name):
    assert load_adapter(adapted, name) == ["h.0.attn.c_attn", "h.1.attn.c_attn"]


OTHER = CharTokenizer(CHARACTERS.lower())


def test_an_adapter_of_another_base_is_told_so_whatever_its_tokenizer(adapted):
    save_run(random_model(adapted.config, 7), OTHER, "other")
    with pytest.raises(CheckpointError, match="beside adapts another base"):
        load_model("other", adapter="beside")
    save_run(adapted, OTHER, "base")
    with pytest.raises(CheckpointError, match="base comes with the tokenizer"):
        load_model("base", adapter="beside")


@pytest.mark.parametrize("named", [{"spec": "run"}, {"spec": "base", "adapter": "run/adapter"}])
def test_another_tokenizer_than_a_run_trained_its_adapter_with_is_refused(adapted, named):
    """Its base has none of its own, to be compared with."""
    save_hf(adapted, None, "base")
    run = RunDirectory(Path("run"))
    start_run(run, updated(RunConfig(), {"init_from": "base", "train": {"lora_rank": 2}}), CHAR)
    shutil.copytree("plain", run.adapter)
    OTHER.save(Path("other.json"))
    with pytest.raises(CheckpointError, match=r"run comes with the tokenizer .*other\.json.*\nleave tokenizer out"):
        load_model(**named, tokenizer="other.json")
    run.tokenizer.write_text("{")
    load_model(**named, tokenizer="other.json")  # in the place of one that is damaged


def test_a_folder_with_adapters_names_them(adapted):
    shutil.copytree("plain", "named/news")
    shutil.copytree("plain", "named/.hidden")
    with pytest.raises(MissingFileError) as raised:
        load_adapter(adapted, "named")
    assert raised.value.what == "named is a folder with adapters in it, and no adapter"
    assert raised.value.how == "name the adapter in it: named/news or named/reviews"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_of_a_model_are_loaded_by_their_index_and_named_by_their_folder(kind):
    """An index means the whole; one part alone means its folder, and so does what is no weights at all."""
    theirs = reference_model()
    folder = reference_folder(theirs)
    (folder / "model.safetensors").unlink()
    state = renamed(theirs.state_dict(), "transformer.")
    state.pop("lm_head.weight")
    stem, write = {"safetensors": ("model", safetensors.torch.save_file), "bin": ("pytorch_model", torch.save)}[kind]
    files = [f"{stem}-{number:05}-of-00002.{kind}" for number in (1, 2)]
    where = {name: files[place % 2] for place, name in enumerate(state)}
    for file in files:
        write({name: state[name] for name in state if where[name] == file}, folder / file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert same_weights(load_model(index)[0], load_model(folder)[0])
    assert load_model(index)[1].fingerprint() == CHAR.fingerprint()
    for file in files:
        with pytest.raises(CheckpointError, match=rf"is one of 2 parts of a model\nname its folder: {folder}"):
            load_model(folder / file)
    for file in ("config.json", "tokenizer.json"):
        with pytest.raises(CheckpointError, match=f"is no model\nname its folder, {folder}, or a file"):
            load_model(folder / file)


@pytest.mark.parametrize(
    "kind", ["GPT2ForSequenceClassification", "GPT2DoubleHeadsModel", "GPT2ForTokenClassification"]
)
def test_a_model_with_further_parts_is_called_by_its_name(kind):
    """And the advice can be followed."""
    CHAR.save(Path("whole/tokenizer.json"))
    getattr(transformers, kind)(reference_model().config).save_pretrained("whole")
    with pytest.raises(CheckpointError, match=rf"\n.*config\.json calls it a {kind}: .* GPT2LMHeadModel, and save"):
        load_model("whole")
    theirs = transformers.GPT2LMHeadModel.from_pretrained("whole").eval()
    reference_folder(theirs, Path("alone"))
    with torch.no_grad():
        assert (load_model("alone")[0](tokens(2, 7)) - theirs(tokens(2, 7)).logits).abs().max() < 1e-5


def test_a_file_of_another_kind():
    Path("notes.txt").write_text("text")
    with pytest.raises(CheckpointError, match=r"notes\.txt is no model"):
        load_model("notes.txt")


# --- what does not fit


def test_all_mismatches_are_named():
    """And not only the first one."""
    theirs = reference_model()
    folder = reference_folder(theirs)
    state = renamed(theirs.state_dict(), "transformer.")
    del state["transformer.ln_f.bias"], state["lm_head.weight"]
    state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].T.contiguous()
    state["transformer.h.1.ln_1.weight"] = torch.ones(19)
    state["score.weight"] = torch.ones(2, 15)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    for part in ("ln_f.bias is missing", "score.weight is not part of the model",
                 "h.0.mlp.c_fc.weight has shape (60, 15), expected (15, 60), looks transposed",
                 "h.1.ln_1.weight has shape (19,), expected (15,)"):  # fmt: skip
        assert part in raised.value.what
    assert str(raised.value).count("\n") == 1


def test_one_weight_under_two_prefixes():
    folder = reference_folder(reference_model())
    state = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(state | {"module.wte.weight": torch.zeros(23, 15)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has wte\.weight twice"):
        load_model(folder)


def test_linear_weights_where_the_references_are_expected(tiny_model):
    """Projections that are square cannot show it, so it matters that the others do."""
    folder = reference_folder(reference_model())
    save_weights(tiny_model, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"h\.N\.attn\.c_attn\.weight has shape .* looks transposed \(in 2 layers: "
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"n_layer": 3}, "n_layer = 3 there, 2 here"),
        ({"n_embd": 6}, "n_embd = 6 there, 15 here"),
        ({"vocab_size": 10**7, "n_positions": 10**7}, "vocab_size = 10000000 there, 23 here; block_size"),
    ],
)
def test_a_config_that_contradicts_the_tensors_shows_both(changes, what):
    folder = reference_folder(reference_model())
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=what):
        load_model(folder)


def test_a_config_that_says_tied_where_the_head_differs():
    folder = reference_folder(reference_model(tie_word_embeddings=False))
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from wte\.weight"):
        load_model(folder)


def test_a_config_that_says_untied_where_there_is_no_head():
    folder = reference_folder(reference_model())
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load_model(folder)


REFUSED = {
    "model_type": "gpt_neo",
    "activation_function": "gelu",
    "layer_norm_epsilon": 1e-6,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "add_cross_attention": True,
    "quantization_config": {"quant_method": "gptq"},
    "n_inner": 30,
    "pruned_heads": {"1": [0]},
    "num_hidden_layers": 3,
    "hidden_size": 30,
    "num_attention_heads": 5,
    "max_position_embeddings": 26,
    "hidden_act": "relu",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_config_asks_for_is_never_ignored(key):
    folder = reference_folder(reference_model())
    change_config(folder, **{key: REFUSED[key]})
    with pytest.raises(CheckpointError, match=key) as raised:
        load_model(folder)
    problems = raised.value.what.partition(" compute: ")[2].split("; ")
    assert len(problems) == 1
    assert [other for other in REFUSED if other in problems[0].partition(" but ")[0]] == [key]


def test_what_a_config_says_twice_and_alike_is_no_problem():
    folder = reference_folder(reference_model())
    change_config(folder, num_hidden_layers=2, hidden_size=15, num_attention_heads=3, max_position_embeddings=13,
                  hidden_act="gelu_new", pruned_heads={})  # fmt: skip
    load_model(folder)


@pytest.mark.parametrize("name", ["wpe.weight", "wte.weight"])
def test_no_memory_is_asked_for_that_no_tensor_confirms(name):
    folder = reference_folder(reference_model())
    state = safetensors.torch.load_file(folder / "model.safetensors")
    del state[f"transformer.{name}"]
    safetensors.torch.save_file(state, folder / "model.safetensors")
    change_config(folder, vocab_size=2**31 - 1, n_positions=2**24)  # the largest that are allowed
    with pytest.raises(CheckpointError, match=r"it lacks the matrices wte\.weight or wpe\.weight"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tied_head_that_is_not_finite_is_called_that(value):
    """And not different from the embedding, of which it is a copy."""
    folder = reference_folder(reference_model())
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["transformer.wte.weight"][5, 7] = value
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has values in wte\.weight that are infinite, or not a number"):
        load_model(folder)


def test_all_that_a_config_asks_for_is_refused_at_once():
    folder = reference_folder(reference_model())
    change_config(folder, **REFUSED)
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    assert all(key in raised.value.what for key in REFUSED)
    assert str(raised.value).count("\n") == 1


def test_dropout_mends_three_different_rates():
    folder = reference_folder(reference_model())
    change_config(folder, attn_pdrop=0.2, embd_pdrop=0.3)
    with pytest.warns(ModelNote, match=r"embd_pdrop, attn_pdrop, resid_pdrop = 0\.3, 0\.2, 0\.0, which differ"):
        assert load_model(folder)[0].config.dropout == 0.3
    model, _ = load_model(folder, dropout=0.1)
    assert model.config.dropout == model.h[1].attn.dropout == model.drop.p == 0.1
    change_config(folder, **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.3))
    assert load_model(folder)[0].config.dropout == 0.3


def test_old_configs_say_n_ctx_and_leave_defaults_out():
    folder = reference_folder(reference_model())
    kept = {key: json.loads((folder / "config.json").read_text())[key] for key in
            ("model_type", "vocab_size", "n_embd", "n_layer", "n_head")}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(kept | {"n_ctx": 13}))
    model, _ = load_model(folder)
    assert model.config == GPTConfig(23, 13, 2, 3, 15, dropout=0.1)


@pytest.mark.parametrize("key", ["model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_config_that_lacks_a_size(key):
    folder = reference_folder(reference_model())
    change_config(folder, **{key: None})
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [{"n_layer": "2"}, {"n_head": 2.5}, {"n_head": 4}, {"n_embd": [15]}, {"vocab_size": -1},
     {"tie_word_embeddings": "yes"}, dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), "0.1")],
)  # fmt: skip
def test_a_config_with_wrong_types(changes):
    folder = reference_folder(reference_model())
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=r"config\.json: ") as raised:
        load_model(folder)
    assert str(raised.value).count("\n") == 1
    assert "correct the file" in raised.value.how  # another n_embd would not fit its weights


@pytest.mark.parametrize("content", [b"", b"<html>", b"{", b"[]", b'{"a": "\xff"}', b"[" * 10_000])
def test_a_config_that_is_not_json(content):
    folder = reference_folder(reference_model())
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(folder)


# --- out


def load_there(folder: Path) -> transformers.GPT2LMHeadModel:
    """The reference's own loader, which must have nothing to say."""
    theirs, said = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(said.values())
    assert theirs.dtype == torch.float32
    return theirs.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_reference_loads_what_we_write(tiny_config, bias, tied):
    model = random_model(dataclasses.replace(tiny_config, bias=bias, tie_weights=tied, dropout=0.125), 7)
    save_hf(model, CHAR, "out")
    theirs = load_there(Path("out"))
    with torch.no_grad():
        assert (theirs(tokens(5, 13)).logits - model(tokens(5, 13))).abs().max() < 1e-5
    assert (theirs.config.embd_pdrop, theirs.config.attn_pdrop, theirs.config.resid_pdrop) == (0.125,) * 3
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) is tied
    assert theirs.config.eos_token_id is None
    stored = safetensors.torch.load_file("out/model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    back, tokenizer = load_model("out")
    assert tokenizer.fingerprint() == CHAR.fingerprint()
    assert back.config == dataclasses.replace(model.config, bias=True)
    ours = dict(model.named_parameters())
    assert all(torch.equal(p, ours[name]) if name in ours else not p.any() for name, p in back.named_parameters())


def test_a_bytes_round_trip_through_the_reference():
    """Their folder -> our model -> our folder -> their model -> their folder: the same tensors."""
    theirs = reference_model()
    model, tokenizer = load_model(reference_folder(theirs))
    save_hf(model, tokenizer, Path("ours"))
    load_there(Path("ours")).save_pretrained("again")
    first, ours, again = (
        safetensors.torch.load_file(f"{folder}/model.safetensors") for folder in ("reference", "ours", "again")
    )
    assert first.keys() == ours.keys() == again.keys()
    assert all(torch.equal(first[name], ours[name]) and torch.equal(first[name], again[name]) for name in first)


def test_the_ends_of_documents_are_the_tokenizers():
    tokenizer = GPT2Tokenizer(["a b"])
    model = GPT(GPTConfig(tokenizer.vocab_size, 7, 1, 1, 2)).eval()
    save_hf(model, tokenizer, "out")
    config = load_there(Path("out")).config
    assert config.bos_token_id == config.eos_token_id == tokenizer.eos_token_id == 257


# openai-community/gpt2, config.json
OPENAI = """{
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
  "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
  "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
  "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
  "summary_type": "cls_index", "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257
}"""


def test_a_configuration_says_all_that_openais_own_says(monkeypatch, tiny_model):
    gpt2 = GPT2Tokenizer([])
    monkeypatch.setattr(gpt2, "eos_token_id", 50256)
    monkeypatch.setattr(gpt2, "bos_token_id", 50256)
    written = config_json.transformers_config(dataclasses.replace(preset("gpt2-124m").model, dropout=0.1), gpt2)
    openai = json.loads(OPENAI)
    assert {key: written.get(key, "missing") for key in openai} == openai
    assert {*transformers.GPT2Config().to_dict()} & {*written} >= {*openai} - {"n_ctx", "task_specific_params"}
    save_hf(tiny_model, CHAR, "out")
    theirs = load_there(Path("out"))  # which knows what each of them means
    said = json.loads(Path("out/config.json").read_text())
    assert {key: getattr(theirs.config, key) for key in openai} == {key: said[key] for key in openai}
    theirs.save_pretrained("again")
    CHAR.save(Path("again/tokenizer.json"))
    assert load_model("again")[0].config == load_model("out")[0].config == tiny_model.config


def test_a_model_in_float64_is_written_in_float32(tiny_model):
    save_hf(tiny_model.double(), CHAR, "out")
    assert {t.dtype for t in safetensors.torch.load_file("out/model.safetensors").values()} == {torch.float32}


def test_a_used_folder_is_refused_and_left_alone(tiny_model):
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine")
    before = contents(Path())
    with pytest.raises(CheckpointError, match="out is not empty"):
        save_hf(tiny_model, CHAR, "out")
    with pytest.raises(CheckpointError, match="the tokenizer has 3 tokens, the model 23"):
        save_hf(tiny_model, CharTokenizer("abc"), "new")
    assert contents(Path()) == before


def test_a_write_that_fails_leaves_nothing(tiny_model, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        save_hf(tiny_model, CHAR, "deep/out")
    assert not Path("deep").exists()


# --- the size of the real thing

PEAK = """
import re
from pathlib import Path
from minigpt.formats.pretrained import load_model

def peak():  # in bytes; resource.getrusage would start from the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
model, _ = load_model("gpt2-size")
print((peak() - before) / (4 * model.num_parameters()))
"""


@pytest.fixture(scope="module")
def large():
    shape = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    return reference_model(spread=0.05, **shape)  # wider than that, and logits of hundreds round in the third decimal


@pytest.mark.slow
@pytest.mark.parametrize(("shard_size", "files"), [("5GB", 1), ("150MB", 4), ("5GB", 0)])
def test_a_model_as_large_as_gpt2(shard_size, files, large):
    """124,439,808 parameters: 12 (12 C^2 + 13 C) + 50257 C + 1024 C + 2 C with C = 768; in 1.3 times their memory."""
    folder = reference_folder(large, Path("gpt2-size"), max_shard_size=shard_size)
    CharTokenizer("".join(map(chr, range(0x10000, 0x10000 + 50257)))).save(folder / "tokenizer.json")
    if files == 0:
        torch.save(large.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) == files
    model, _ = load_model(folder)
    assert model.num_parameters() == 124_439_808
    with torch.no_grad():
        idx = tokens(2, 37, 50257)
        assert (model(idx) - large(idx).logits).abs().max() < 1e-4
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs Linux's /proc to measure memory; the weights were right")
    measured = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 0.9 < float(measured.stdout) < 1.3


# --- weights that others trained


@pytest.fixture
def golden() -> Path:
    if not (GOLDEN and GOLDEN.is_dir()):
        pytest.skip("needs MINIGPT_GOLDEN to name the folder with nano_sort_golden.npz")
    return GOLDEN


@pytest.fixture
def nano_sort(golden) -> tuple[GPT, dict[str, torch.Tensor]]:
    """A trained model that sorts six letters, read by our name table, and tensors of one of its forward passes."""
    with np.load(golden / "nano_sort_golden.npz") as archive:
        tensors = {name: torch.from_numpy(archive[name]) for name in archive.files}
    config = GPTConfig(vocab_size=3, block_size=11, n_layer=3, n_head=3, n_embd=48, tie_weights=False)
    model = empty_model(config).eval()
    weights = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("w:")}
    fill(transformers_views(model, conv1d=False), stored_tensors(weights, golden), golden, "")
    return model, {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("p:")}


def record(module: torch.nn.Module, name: str, seen: dict[str, torch.Tensor]) -> None:
    module.register_forward_hook(lambda _module, _args, output: seen.__setitem__(name, output))


@pytest.mark.shared
def test_every_tensor_of_a_trained_model(nano_sort):
    model, expected = nano_sort
    block, seen = model.h[0], {}
    for name, module in {
        "tok_emb": model.wte, "pos_emb": model.wpe, "x": model.drop, "ln1": block.ln_1, "qkv": block.attn.c_attn,
        "yProj": block.attn, "ln2": block.ln_2, "fc": block.mlp.c_fc, "gelu": block.mlp.gelu, "mlp": block.mlp,
        "mlpResid": block, "block0": block, "block1": model.h[1], "block2": model.h[2], "ln_f": model.ln_f,
        "lm_head": model,
    }.items():  # fmt: skip
        record(module, name, seen)
    block.ln_2.register_forward_pre_hook(lambda _module, args: seen.__setitem__("attnResid", args[0]))

    def core(q, k, v, mask, dropout):
        y = explicit_attention(q, k, v, mask, dropout)
        scores = (q @ k.transpose(-2, -1) / 4).masked_fill(~mask, -torch.inf)  # 4 = sqrt(D) for D = 16
        seen.update(q=q, k=k, v=v, att=scores, attSm=scores.softmax(-1), y=y.transpose(1, 2).flatten(2))
        return y

    block.attn.core = core
    with torch.no_grad():
        logits = model(expected["idx"].long())
    seen["probs"] = logits.softmax(-1)
    assert seen.keys() == expected.keys() - {"idx"}
    for name, tensor in seen.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-5), name  # an infinity equals itself


@pytest.mark.shared
def test_a_trained_model_sorts_every_input(nano_sort):
    """All 3^6 = 729 of them: the answer is the six greedy continuations."""
    model, _ = nano_sort
    inputs = [list(letters) for letters in itertools.product(range(3), repeat=6)]
    out = generate(model, inputs, max_new_tokens=6, strategy="greedy", on_overflow="crop")
    assert [sequence[6:] for sequence in out.sequences] == [sorted(letters) for letters in inputs]


# --- the published numbers of GPT-2; with HF_HUB_CACHE and TIKTOKEN_CACHE_DIR filled, no network is needed

BOS = EOS = 50256


@pytest.mark.network
def test_gpt2_has_its_parameters(gpt2):
    assert gpt2[0].num_parameters() == 124_439_808


@pytest.mark.network
@pytest.mark.parametrize(("end", "expected"), [("alligator.", -31.0388), ("crocodile", -35.5485), ("asdf", -42.2685)])
def test_gpt2_knows_the_saying(gpt2, end, expected):
    model, tokenizer = gpt2
    ids = [BOS, *tokenizer.encode(f"See you later, {end}"), EOS]
    assert sequence_log_prob(model, ids) == pytest.approx(expected, abs=1e-3)


@pytest.mark.network
def test_gpt2_on_what_comes_next(gpt2):
    model, tokenizer = gpt2
    table = next_token_table(model, tokenizer.encode("See you"), k=10)
    words = [" soon", " there", " all", " next", " guys", " in", " out", " on", " later", ","]
    chances = [0.084681, 0.073554, 0.072775, 0.072505, 0.061731, 0.055900, 0.053875, 0.040310, 0.028322, 0.027074]
    assert [tokenizer.decode([row[0]]) for row in table] == words
    assert [row[2] for row in table] == pytest.approx(chances, abs=2e-5)
    weather = next_token_table(model, tokenizer.encode("The weather today is"), k=3)
    assert [tokenizer.decode([row[0]]) for row in weather] == [" very", " good", " pretty"]
    assert [row[2] for row in weather] == pytest.approx([0.043, 0.032, 0.031], abs=1e-3)


@pytest.mark.network
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("See you", [6214, 345, 2582, 11, 198, 198, 464, 4453, 286, 262, 26028, 198, 198, 464, 4453, 286, 262, 26028,
                     25, 383, 5172, 3776]),
        ("The dog", [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198,
                     464, 3290]),
    ],
)  # fmt: skip
def test_gpt2_says_greedily(gpt2, prompt, expected):
    """The second from transformers, tests/models/gpt2/test_modeling_gpt2.py."""
    model, tokenizer = gpt2
    ids = tokenizer.encode(prompt)
    out = generate(model, [ids], max_new_tokens=len(expected) - len(ids), strategy="greedy")
    assert out.sequences == [expected]


@pytest.mark.network
def test_gpt2_counts(gpt2):
    """From rust-bert, tests/gpt2.rs: after "One two three four", " five"; and what its logit is."""
    model, tokenizer = gpt2
    ids = tokenizer.encode("One two three four")
    assert ids == [3198, 734, 1115, 1440]
    with torch.no_grad():
        logits = model(torch.tensor([ids]))
    assert logits.shape == (1, 4, 50257)
    assert logits[0, -1].argmax() == 1936
    assert logits[0, -1, 1936].item() == pytest.approx(-69.4948, abs=1e-4)


@pytest.mark.network
def test_gpt2_says_hello(gpt2):
    """From TransformerLens: the mean loss of "Hello world!" after BOS."""
    ids = torch.tensor([[BOS, 15496, 995, 0]])
    with torch.no_grad():
        loss = next_token_loss(gpt2[0](ids[:, :-1]), ids[:, 1:]).item()
    assert loss == pytest.approx(5.331855773925781, abs=4e-5)


@pytest.mark.network
@pytest.mark.parametrize("example", range(5))
def test_gpt2s_attention(gpt2, golden, example):
    """Made with erf GELU: the scores of block 0 come before any GELU and are exact; the best tokens agree later too."""
    model, tokenizer = gpt2
    expected = json.loads((golden / "gpt2_124m_attention.json").read_text(encoding="utf-8"))[example]
    assert tokenizer.encode(expected["prompt"]) == expected["token_ids"]
    seen = []

    def core(q, k, v, mask, dropout):
        seen.append(q @ k.transpose(-2, -1) / 8)  # sqrt(D) for D = 64
        return explicit_attention(q, k, v, mask, dropout)

    attention, usual = model.h[0].attn, model.h[0].attn.core
    attention.core = core
    try:
        with torch.no_grad():
            logits = model(torch.tensor([expected["token_ids"]]))[0, -1]
    finally:
        attention.core = usual
    for head, rows in enumerate(expected["block0_scaled"]):
        for position, row in enumerate(rows):
            assert seen[0][0, head, position, : len(row)].tolist() == pytest.approx(row, abs=1e-4)
    top = [token for token, _ in expected["top20"][:5]]
    assert logits.topk(5).indices.tolist() == top
    chances = [np.exp(logit - expected["logsumexp"]) for _, logit in expected["top20"][:5]]
    assert F.softmax(logits, dim=-1)[top].tolist() == pytest.approx(chances, abs=0.02)
