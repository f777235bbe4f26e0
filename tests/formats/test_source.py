"""Where a model lies is found once: every kind of place gives its shape and its tokenizer, and loads."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt.config import GPTConfig, RunConfig, TrainConfig, write_yaml
from minigpt.data.dialogues import with_template
from minigpt.errors import CheckpointError, MissingFileError, ModelNote
from minigpt.formats import source as module
from minigpt.formats.gpt2_names import transformers_views
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.run_directory import RunDirectory, read_config, save_run, start_run
from minigpt.formats.source import open_source
from minigpt.formats.tokenizer_files import save_hf_tokenizer
from minigpt.formats.weights import StoredTensor, save_weights, write_safetensors
from minigpt.lora import LoRAConfig, LoRALinear, add_lora, merged
from minigpt.model import GPT
from minigpt.packed import PackedGPT
from minigpt.tokenizers import AddedToken, CharTokenizer, GPT2Tokenizer

CHAR = CharTokenizer("".join(map(chr, range(ord("A"), ord("A") + 23))))
RUN = RunDirectory(Path("checkpoints/tiny"))
ADAPTED = RunDirectory(Path("checkpoints/adapted"))
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 22, 0, 5, 8, 9, 7]])


@pytest.fixture
def models(tiny_model, monkeypatch) -> dict[str, GPT]:
    """One model at each kind of place, those of a run's `last` and of the adapter with other weights."""
    newest, adapted = GPT(tiny_model.config).eval(), GPT(tiny_model.config).eval()
    adapted.load_state_dict(tiny_model.state_dict())
    start_run(RUN, RunConfig(model=tiny_model.config), CHAR)
    save_weights(tiny_model, RUN.best_weights)
    save_weights(newest, RUN.last_weights)
    save_hf(tiny_model, CHAR, "folder")
    add_lora(adapted, LoRAConfig(rank=2, targets=("h.*.attn.c_attn",)), seed=5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            parameter.add_(0.25 * ("lora" in name))
    settings = RunConfig(model=tiny_model.config, init_from=str(RUN.path.absolute()), train=TrainConfig(lora_rank=2))
    start_run(ADAPTED, settings, CHAR)
    save_adapter(adapted, ADAPTED.adapter)
    monkeypatch.setattr(module, "fetch_model", {"org/name": Path("folder")}.__getitem__)
    return {"best": tiny_model, "last": newest, "adapted": merged(adapted)}


PLACES = {  # spec: its path, which model it is, its run, whether the transformers library reads it too
    "checkpoints/tiny": (RUN.path, "best", RUN, False),
    "tiny": (RUN.path, "best", RUN, False),
    "checkpoints/tiny/last": (RUN.last, "last", RUN, False),
    "checkpoints/tiny/last/model.safetensors": (RUN.last_weights, "last", RUN, False),
    "checkpoints/adapted": (ADAPTED.path, "adapted", ADAPTED, False),
    "folder": (Path("folder"), "best", None, True),
    "folder/model.safetensors": (Path("folder/model.safetensors"), "best", None, False),
    "org/name": (Path("folder"), "best", None, True),
}


@pytest.mark.parametrize("spec", PLACES)
def test_every_kind_of_place(models, spec):
    path, which, run, is_reference = PLACES[spec]
    source = minigpt.open_source(spec)
    assert source.path == path
    assert (source.run and source.run.path) == (run and run.path)
    assert source.adapter == (ADAPTED.adapter if which == "adapted" else None)
    assert source.transformers_folder == (path if is_reference else None)
    assert source.lasting == (spec if spec == "org/name" else str(path.absolute()))
    model, tokenizer = source.load()
    for config in (source.config, model.config):
        assert config == models[which].config
    for chosen in (source.tokenizer(), tokenizer):
        assert chosen.fingerprint() == CHAR.fingerprint()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), models[which](IDS), rtol=0, atol=1e-5)
    assert source.load(block_size=7, dropout=0.25)[0].config.block_size == 7
    assert minigpt.load_model(spec)[0].config == model.config


def test_a_run_with_an_adapter_reads_as_much_as_it_has_learned_to(models):
    """Its base may read more, but at those positions the adapter was never trained."""
    config = read_config(ADAPTED)
    write_yaml(dataclasses.replace(config, model=dataclasses.replace(config.model, block_size=7)), ADAPTED.config, {})
    for named in ({"spec": "adapted"}, {"spec": "tiny", "adapter": ADAPTED.adapter}):
        assert minigpt.load_model(**named)[0].config.block_size == 7
        assert minigpt.load_model(**named, block_size=9)[0].config.block_size == 9
    assert minigpt.load_model("tiny")[0].config.block_size == 13
    # An adapter on that run may have been trained with more of what its base can read.
    nested, (model, _) = RunDirectory(Path("checkpoints/nested")), minigpt.load_model("adapted", block_size=11)
    settings = RunConfig(model=model.config, init_from=str(ADAPTED.path.absolute()), train=TrainConfig(lora_rank=2))
    start_run(nested, settings, CHAR)
    add_lora(model, LoRAConfig(rank=2), seed=5)
    save_adapter(model, nested.adapter)
    for named in ({"spec": "nested"}, {"spec": "adapted", "adapter": nested.adapter}):
        assert minigpt.load_model(**named)[0].config.block_size == 11


@pytest.mark.parametrize("spec", [spec for spec in PLACES if not spec.endswith(".safetensors")])
def test_a_shape_and_a_tokenizer_need_no_weights(models, spec):
    """Not one byte of them: what is no weights file any more is never opened."""
    for weights in Path().rglob("*.safetensors"):
        weights.write_bytes(b"")
    source = minigpt.open_source(spec)
    assert source.config == models["best"].config
    assert source.tokenizer().fingerprint() == CHAR.fingerprint()


def test_a_shape_takes_the_first_of_three_rates(models):
    content = json.loads(Path("folder/config.json").read_text()) | {"embd_pdrop": 0.125, "attn_pdrop": 0.25}
    Path("folder/config.json").write_text(json.dumps(content))
    assert minigpt.open_source("folder").shape(rates_may_differ=True) == GPTConfig(23, 13, 2, 3, 15, dropout=0.125)
    with pytest.raises(minigpt.MiniGPTError, match="which differ"):
        minigpt.open_source("folder").shape()


@pytest.mark.parametrize("weights", [None, "float32"])
@pytest.mark.parametrize("spec", ["tiny", "checkpoints/adapted"])
def test_an_adapter_is_merged_and_packed_as_a_run_of_its_own_is(models, spec, weights):
    """Also on a run that has one already: its base is then what the first has made of it."""
    base = models["adapted" if spec.endswith("adapted") else "best"]
    again = minigpt.load_model(spec)[0]
    add_lora(again, LoRAConfig(rank=3, targets=("h.1.mlp.c_fc",)), seed=7)
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            parameter.add_(0.5 * ("lora" in name))
    save_adapter(again, "second")
    model, tokenizer = minigpt.load_model(spec, weights=weights, adapter="second/adapter_model.safetensors")
    with torch.no_grad():
        # Products in another order: each logit may differ by some last digits of its own size.
        torch.testing.assert_close(model(IDS), merged(again)(IDS), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(IDS), base(IDS), atol=1e-2)
    assert isinstance(model, PackedGPT) == bool(weights)
    assert type(model.h[0].attn.c_attn) is not LoRALinear
    assert tokenizer.fingerprint() == CHAR.fingerprint()


def test_the_hub_is_asked_when_it_is_needed(monkeypatch):
    monkeypatch.setattr(module, "fetch_model", lambda name: pytest.fail(f"the hub was asked for {name}"))
    monkeypatch.setattr(module, "GPT2Tokenizer", lambda: GPT2Tokenizer(["a b"]))
    assert minigpt.open_source("org/name").run is minigpt.open_source("org/name").adapter is None
    for name in ("gpt2", "openai-community/gpt2-xl"):
        source = minigpt.open_source(name)
        assert (source.name, source.local, source.lasting) == (name, None, name)
        assert isinstance(source.tokenizer(), GPT2Tokenizer)  # which all of its sizes share


@pytest.mark.parametrize("added", [(), (AddedToken("[PAD]"),)], ids=["", "an added token"])
@pytest.mark.parametrize("spec", ["tiny", "folder", "org/name"])
def test_the_settings_of_the_tokenizer_that_an_adapter_was_trained_with_count(models, spec, added):
    """Its run's, or those of the files beside it: the template of dialogues, which token has which role."""
    theirs = CHAR.with_added(added, {"chat_template": "a play", "pad_token": "[PAD]" if added else "W"})
    theirs.save(ADAPTED.tokenizer)
    alone = shutil.copytree(ADAPTED.adapter, "alone")
    save_hf_tokenizer(theirs, alone, 13)
    expected = minigpt.load_model(ADAPTED.path)[1]
    for adapter in (ADAPTED.adapter, alone):
        chosen = minigpt.load_model(spec, adapter=adapter)[1]
        assert chosen.added == expected.added
        assert chosen.settings.items() >= expected.settings.items() >= theirs.settings.items()
    assert minigpt.load_model(spec)[1].settings.keys() <= {"pad_token"}


def test_an_adapter_of_a_run_whose_tokenizer_is_gone_takes_the_base_s(models):
    ADAPTED.tokenizer.unlink()
    model, chosen = minigpt.load_model("tiny", adapter=ADAPTED.adapter)
    assert chosen.fingerprint() == minigpt.load_model("tiny")[1].fingerprint()
    save_hf(model, chosen, "out")


def test_a_base_with_the_adapter_of_a_run_is_exported_as_the_run(models):
    """What came with the base, also where the run does not know any more where that lies, and the run's template."""
    Path("folder/generation_config.json").write_text('{"temperature": 0.75}')
    settings = ADAPTED.config.read_text().replace(str(RUN.path.absolute()), str(Path("folder").absolute()))
    ADAPTED.config.write_text(settings)
    with_template(CHAR).save(ADAPTED.tokenizer)
    save_hf(*minigpt.load_model(ADAPTED.path), "expected")
    Path("folder").rename("moved")
    save_hf(*minigpt.load_model("moved", adapter=ADAPTED.adapter), "found")
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert Path("found", file).read_text() == Path("expected", file).read_text()


def test_a_file_comes_with_what_its_folder_says(models):
    """Where a text ends, and what an import keeps."""
    Path("folder/generation_config.json").write_text('{"eos_token_id": [3, 5], "top_k": 7}')
    for source in map(minigpt.open_source, ("folder", "folder/model.safetensors")):
        assert source.carried["generation_config.json"] == {"eos_token_id": [3, 5], "top_k": 7}
        assert source.load()[1].end_ids == (3, 5)


def test_an_adapter_of_a_run_that_is_named_as_a_model_names_the_run(models):
    """Which every command takes; those that train or import have no flag for an adapter."""
    with pytest.raises(CheckpointError) as raised:
        minigpt.load_model(ADAPTED.adapter)
    assert raised.value.how == f"name its run, {ADAPTED.path.absolute()}, which means the base with it"


def test_a_place_is_found_once(models, monkeypatch):
    """What is put there later under the name is another model."""
    asked = []
    monkeypatch.setattr(module, "fetch_model", lambda name: asked.append(name) or Path("folder"))
    source = minigpt.open_source("org/name")
    assert not asked
    source.load()
    shutil.copytree("folder", "org/name")
    assert (source.path, source.config) == (Path("folder"), models["best"].config)
    assert asked == ["org/name"]
    assert minigpt.open_source("org/name").path == Path("org/name")


def test_a_run_is_meant_by_a_name_that_is_nearly_its_own(models):
    with pytest.raises(MissingFileError, match="no model 'tinny'\ndid you mean tiny"):
        minigpt.open_source("tinny")


def test_a_head_that_is_stored_again_is_compared_once(tmp_path, monkeypatch):
    """GPT-2's takes 154 MB, twice."""
    model = GPT(GPTConfig(vocab_size=11, block_size=7, n_layer=1, n_head=1, n_embd=64))
    again = {**transformers_views(model), "lm_head.weight": model.wte.weight}
    write_safetensors(tmp_path / "alone.safetensors", again)
    compared, equals = [], StoredTensor.equals
    monkeypatch.setattr(StoredTensor, "equals", lambda one, other: compared.append(one) or equals(one, other))
    with pytest.warns(ModelNote):  # of heads, and of the tokenizer
        loaded, _ = open_source(str(tmp_path / "alone.safetensors")).load()
    assert loaded.config.tie_weights
    assert len(compared) == 1


@pytest.mark.parametrize("name", ["run", "run/last", "run/model.safetensors"])
def test_an_impossible_shape_of_a_run_is_its_files_to_mend(tmp_path, monkeypatch, name):
    """No other n_embd fits the weights that lie beside it; of other faults, what is allowed is said."""
    monkeypatch.chdir(tmp_path)
    save_run(GPT(GPTConfig(5, 7, 1, 2, 6)), CharTokenizer.from_text("abcde"), "run")
    settings = Path("run/config.yaml")
    shutil.copytree("run", "run/last")
    for wrong, advice in (
        ("n_head: 5", "correct the file"),
        ("n_head: 0", "at least 1"),
        ("n_haed: 2", "did you mean"),
    ):
        before = settings.read_text()
        settings.write_text(before.replace("n_head: 2", wrong))
        with pytest.raises(CheckpointError, match=r"config\.yaml: ") as raised:
            load_model(name)
        settings.write_text(before)
        assert advice in raised.value.how
