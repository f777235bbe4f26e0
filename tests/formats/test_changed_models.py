"""A model that was changed by hand: what files and packed weights cannot say is refused by name, never left out."""

import math
import re
from dataclasses import replace
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from minigpt.analysis import ablate, edit, trace
from minigpt.config import GPTConfig, LoRAConfig
from minigpt.errors import InputError
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.run_directory import save_run
from minigpt.lora import add_lora, merge, merged, set_adapter
from minigpt.model import GPT, MLP, Block, explicit_attention
from minigpt.packed import pack
from minigpt.tokenizers import CharTokenizer
from minigpt.training.run import recompute_blocks

CHAR = CharTokenizer("abcdefghijk")
CONFIG = GPTConfig(vocab_size=11, block_size=7, n_layer=2, n_head=3, n_embd=15)
WRITERS = {
    "save_hf": lambda model, folder: save_hf(model, CHAR, folder),
    "save_run": lambda model, folder: save_run(model, CHAR, folder),
    "merged": lambda model, folder: merged(model),
    "save_adapter": lambda model, folder: save_adapter(model, folder),
    "pack": lambda model, folder: pack(model, "float32"),
}


def a_model():
    torch.manual_seed(3)
    return GPT(CONFIG).eval()


class Louder(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


class Deeper(GPT):
    pass


def put(path, part):
    """A change: another part in the place of the one at the path."""
    return lambda model: model.set_submodule(path, part)


def setting(path, name, value):
    return lambda model: setattr(model.get_submodule(path), name, value)


def add_parameter(model):
    model.h[0].mlp.scale = nn.Parameter(torch.tensor(3.0))


def share(model):
    model.h[1].mlp = model.h[0].mlp


def look_ahead(model):
    model.h[1].attn.tril.fill_(True)


def hooked(kind, path):
    return lambda model: getattr(model.get_submodule(path), kind)(lambda *passed: None)


def untie(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)


# what is changed -> how, and what an error must name
CHANGES = {
    "a parameter more": (add_parameter, "h.0.mlp.scale"),
    "a buffer more": (lambda model: model.register_buffer("shift", torch.ones(2)), "shift"),
    "a part more": (lambda model: model.h[1].add_module("gate", nn.Linear(15, 15)), "h.1.gate"),
    "another epsilon": (setting("ln_f", "eps", 0.5), "ln_f.eps = 0.5"),
    "another share of dropout": (setting("h.1.mlp.dropout", "p", 0.7), "h.1.mlp.dropout.p = 0.7"),
    "another number of heads": (setting("h.0.attn", "n_head", 5), "h.0.attn.n_head = 5"),
    "another form of GELU": (put("h.1.mlp.gelu", nn.GELU()), "h.1.mlp.gelu.approximate = 'none'"),
    "another activation": (put("h.1.mlp.gelu", nn.ReLU()), "h.1.mlp.gelu is a ReLU"),
    "another core": (setting("h.1.attn", "core", partial(explicit_attention)), "h.1.attn.core"),
    "another mask": (look_ahead, "h.1.attn.tril"),
    "other layers in a row": (put("h.0.mlp", nn.Sequential(nn.Linear(15, 15))), "h.0.mlp is a Sequential"),
    "an MLP of one's own": (put("h.0.mlp", Louder(CONFIG)), "h.0.mlp is a Louder"),
    "a block that is none": (put("h.0", nn.Identity()), "h.0 is a Identity"),
    "a wider layer": (put("h.0.mlp.c_fc", nn.Linear(15, 61)), "h.0.mlp.c_fc"),
    "no bias": (setting("h.0.mlp.c_fc", "bias", None), "h.0.mlp.c_fc.bias"),
    "a block less": (lambda model: setattr(model, "h", model.h[:1]), "h.1"),
    "a block more": (lambda model: model.h.append(Block(CONFIG, 2)), "h.2"),
    "one block twice": (share, "h.1.mlp"),
    "a head of its own": (untie, "lm_head.weight"),
    "another configuration": (lambda model: setattr(model, "config", replace(CONFIG, n_layer=3)), "h.2"),
    "a model of one's own": (lambda model: setattr(model, "__class__", Deeper), "the model is a Deeper"),
    "a method": (lambda model: setattr(model.h[1], "forward", MethodType(Block.forward, model.h[1])), "h.1.forward"),
    "a hook": (hooked("register_forward_hook", "h.1.mlp"), "h.1.mlp"),
    "a hook before": (hooked("register_forward_pre_hook", "h.1.ln_2"), "h.1.ln_2"),
    "a pruned layer": (lambda model: prune.l1_unstructured(model.h[0].mlp.c_fc, "weight", 0.3), "h.0.mlp.c_fc"),
    "a normed weight": (lambda model: parametrizations.weight_norm(model.h[0].mlp.c_fc), "h.0.mlp.c_fc"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_no_file_can_say_is_refused_by_name(tmp_path, change, writer):
    make, name = CHANGES[change]
    model = a_model()
    if writer != "save_run":  # with an adapter and without
        add_lora(model, LoRAConfig(rank=2, targets=("h.1.attn.c_proj",)), seed=5)
    make(model)
    with pytest.raises(InputError, match=rf"(^|\s){re.escape(name)}(?!\w)") as refused:
        WRITERS[writer](model, tmp_path / "out")
    assert str(refused.value).count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("block", ["edit", "trace"])
def test_nothing_is_written_while_the_model_is_edited(tmp_path, block, writer):
    model = a_model()
    add_lora(model, LoRAConfig(rank=2), seed=5)
    opened = edit(model, ablate("0.1")) if block == "edit" else trace(model)
    with opened:
        model(torch.tensor([[1, 2]]))  # or the edit would say that it touched nothing
        with pytest.raises(InputError, match="an edit or a trace is open on the model"):
            WRITERS[writer](model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("writer", ["save_hf", "save_run"])
@pytest.mark.parametrize(
    "kind", ["plain", "explicit", "recomputed", "compiled", "in training", "adapted", "unused", "merged"]
)
def test_what_changes_no_number_is_written(tmp_path, kind, writer):
    model = a_model()
    ids = torch.tensor([[1, 2, 7, 10]])
    if kind in ("adapted", "unused", "merged"):
        add_lora(model, LoRAConfig(rank=2), seed=5)
        for part in (part for name, part in model.named_parameters() if name.endswith(".B")):
            part.fill_(0.1)
        set_adapter(model, None if kind == "unused" else "default")
        if kind == "merged":
            merge(model)
    if kind == "recomputed":
        recompute_blocks(model)
    if kind == "explicit":
        for block in model.h:
            block.attn.core = explicit_attention
    model.note = "mine"  # which no part reads
    expected = model(ids)
    model.train(kind == "in training")
    WRITERS[writer](torch.compile(model) if kind == "compiled" else model, tmp_path / "out")
    torch.testing.assert_close(load_model(tmp_path / "out")[0](ids), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("writer", ["save_hf", "save_run", "save_adapter"])
def test_weights_that_no_model_can_compute_with_are_not_written(tmp_path, writer, value):
    """What no command reads again is refused while the model is still there, and leaves nothing behind."""
    model = a_model()
    add_lora(model, LoRAConfig(rank=2, targets=("mlp.c_fc",)), seed=5)
    layer = model.h[1].mlp.c_fc
    with torch.no_grad():
        (layer.lora_default.B if writer == "save_adapter" else layer.weight)[-1, 1] = value
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc"):
        WRITERS[writer](model, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_weight_beyond_float32_is_not_written_for_transformers(tmp_path):
    model = a_model().double()
    model.ln_f.bias.data[4] = 1e300
    with pytest.raises(InputError, match=r"ln_f\.bias"):
        WRITERS["save_hf"](model, tmp_path / "out")


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_a_hook_on_all_models_is_one_on_each(register):
    hook = getattr(nn.modules.module, register)(lambda *_: None)
    try:
        with pytest.raises(InputError, match="every module of torch has a hook"):
            merged(a_model())
    finally:
        hook.remove()
    merged(a_model())


def test_torchs_own_counting_is_no_change():
    with FlopCounterMode(display=False) as counter:
        merged(a_model())(torch.zeros(1, 3, dtype=torch.int64))
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("change", ["another share of dropout", "a method", "a hook"])
def test_a_refused_models_numbers_can_be_used_as_is_advised(change):
    """Whatever it was to be written or packed for."""
    model = a_model()
    CHANGES[change][0](model)
    with pytest.raises(InputError, match=r"minigpt\.GPT\(model\.config\) loads them with load_state_dict"):
        pack(model, "float32")
    plain = GPT(model.config)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(pack(plain, "float32").wte.weight, model.wte.weight)
