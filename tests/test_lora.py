"""Adapters: the base stays what it was, to the bit, and files and numbers are PEFT's in both directions."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from torch.nn import functional as F  # noqa: N812

from minigpt.config import GPTConfig, LoRAConfig, TrainConfig
from minigpt.decoding.generate import generate
from minigpt.errors import CheckpointError, ConfigError, MiniGPTError, MissingFileError, ModelNote
from minigpt.formats.gpt2_names import transformers_views
from minigpt.formats.lora_files import base_checksum, load_adapter, save_adapter
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.run_directory import save_run
from minigpt.lora import (
    LoRALinear,
    adapters,
    add_lora,
    lora_layers,
    merge,
    merged,
    set_adapter,
    trainable_parameters,
    unmerge,
)
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from minigpt.training.optim import make_optimizers

# torch's own notice of a name that PEFT still uses
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

ALL = ("c_attn", "c_proj", "c_fc")
CONFIG = LoRAConfig(rank=5, alpha=11.0, targets=ALL)
CHAR = CharTokenizer("".join(map(chr, range(65, 88))))
SHAPE = GPTConfig(vocab_size=23, block_size=13, n_layer=2, n_head=3, n_embd=15)


def reference(seed: int = 11, spread: float = 0.3) -> transformers.GPT2LMHeadModel:
    """The reference library's model of `SHAPE`, with weights far from their first values."""
    config = transformers.GPT2Config(
        vocab_size=23, n_positions=13, n_layer=2, n_head=3, n_embd=15, bos_token_id=None, eos_token_id=None,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


@torch.no_grad()
def ours(theirs: transformers.GPT2LMHeadModel) -> GPT:
    """The same model here."""
    model = GPT(SHAPE).eval()
    state = theirs.state_dict()
    for name, view in transformers_views(model).items():
        view.copy_(state[name])
    return model


@torch.no_grad()
def with_adapter(model: GPT, config: LoRAConfig = CONFIG, name: str = "default", seed: int = 3) -> GPT:
    """The model with an adapter that does something: B is not zero."""
    add_lora(model, config, seed, name)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        if name in layer.adapters():
            B = layer.adapters()[name].B
            B.copy_(torch.randn(B.shape, generator=generator) * 0.1)
    return model


def tokens(batch: int = 5, length: int = 13) -> torch.Tensor:
    return torch.randint(23, (batch, length), generator=torch.Generator().manual_seed(3))


def state(model: GPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def base_of(model: GPT) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state(model).items() if ".lora_" not in name}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    out = model(tokens())
    return out if isinstance(out, torch.Tensor) else out.logits


# --- a new adapter


def test_a_new_adapter_changes_nothing():
    model = ours(reference())
    before, logits_before, random_state = state(model), logits(model), torch.get_rng_state()
    assert add_lora(model, CONFIG, seed=3) == [
        f"h.{i}.{layer}" for i in range(2) for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.equal(logits(model), logits_before)
    assert same(base_of(model), before)
    assert model.lm_head.weight is model.wte.weight
    assert not any(module.training for module in model.modules())


def test_first_values_are_drawn_as_the_reference_draws_them():
    model = ours(reference())
    add_lora(model, CONFIG, seed=3)
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        expected = torch.empty(5, layer.in_features)
        nn.init.kaiming_uniform_(expected, a=math.sqrt(5), generator=generator)
        part = layer.adapters()["default"]
        assert torch.allclose(part.A, expected, rtol=1e-6, atol=0)
        assert torch.equal(part.B, torch.zeros(layer.out_features, 5))


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("attn.c_attn",), ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        (("c_proj",), ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_proj"]),
        (("h.1.mlp.*",), ["h.1.mlp.c_fc", "h.1.mlp.c_proj"]),
        (("mlp.c_fc", "h.0.attn.c_attn"), ["h.0.attn.c_attn", "h.0.mlp.c_fc", "h.1.mlp.c_fc"]),
    ],
)
def test_targets_are_ends_of_names_as_globs(targets, layers):
    model = ours(reference())
    assert add_lora(model, LoRAConfig(targets=targets), seed=0) == layers
    assert list(lora_layers(model)) == layers


def test_only_the_adapter_is_trainable():
    model = ours(reference())
    assert trainable_parameters(model) == model.num_parameters()
    add_lora(model, CONFIG, seed=3)
    # rank 5 times in + out of each of four layers, C = 15: c_attn 15 + 45, c_proj 15 + 15, c_fc 15 + 60, c_proj 60 + 15
    assert trainable_parameters(model) == 2 * 5 * (60 + 30 + 75 + 75)
    wide = GPT(GPTConfig(vocab_size=23, block_size=13, n_layer=1))
    add_lora(wide, LoRAConfig(), seed=3)
    assert 12 * trainable_parameters(wide) == 294_912  # as the module's docstring says of GPT-2 small


def test_a_compiled_model_takes_and_gives_adapters_as_its_original_does(tmp_path):
    plain, model = ours(reference()), ours(reference())
    compiled = torch.compile(model, backend="eager")
    before = logits(compiled)
    assert add_lora(compiled, CONFIG, seed=3) == add_lora(plain, CONFIG, seed=3) != []
    assert torch.equal(logits(compiled), before)
    for one in (plain, model):
        for layer in lora_layers(one).values():
            nn.init.constant_(layer.in_use().B, 0.25)
    assert torch.equal(logits(compiled), logits(plain))
    assert not torch.equal(logits(compiled), before)
    save_adapter(compiled, tmp_path / "a")
    other = torch.compile(ours(reference()), backend="eager")
    assert load_adapter(other, tmp_path / "a") == list(lora_layers(plain)) == list(lora_layers(compiled))
    assert torch.equal(logits(other), logits(plain))


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_computes_the_papers_formula(training):
    model = with_adapter(ours(reference()).train(training), dataclasses.replace(CONFIG, dropout=0.3)).double()
    layer = model.h[1].mlp.c_fc
    assert isinstance(layer, LoRALinear)
    part = layer.adapters()["default"]
    x = torch.randn(2, 7, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(13)
    y = layer(x)
    torch.manual_seed(13)
    dropped = part.dropout(x)
    assert torch.equal(dropped, x) is not training
    W, b, A, B = (p.tolist() for p in (layer.weight, layer.bias, part.A, part.B))
    for row, t, out in ((0, 0, 0), (1, 3, 59), (0, 6, 31)):
        plain, thin = x[row, t].tolist(), dropped[row, t].tolist()
        expected = b[out] + sum(w * v for w, v in zip(W[out], plain, strict=True))
        low = [sum(a * v for a, v in zip(A[r], thin, strict=True)) for r in range(5)]
        expected += 11 / 5 * sum(B[out][r] * low[r] for r in range(5))
        assert y[row, t, out].item() == pytest.approx(expected, abs=1e-12)


# --- training


def adapter_step(model, parameters) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    idx = tokens()
    out = model(idx[:, :-1])
    out = out if isinstance(out, torch.Tensor) else out.logits
    F.cross_entropy(out.flatten(0, 1), idx[:, 1:].flatten()).backward()
    optimizer.step()


def test_a_step_of_training_is_pefts():
    theirs = reference()
    model = with_adapter(ours(theirs)).train()
    save_adapter(model, "adapter")
    wrapped = peft.PeftModel.from_pretrained(theirs, "adapter", is_trainable=True).train()
    before = state(model)
    for each in (model, wrapped):
        adapter_step(each, [p for p in each.parameters() if p.requires_grad])
    reference_values = dict(wrapped.named_parameters())
    parts = {path: layer.adapters()["default"] for path, layer in lora_layers(model).items()}
    assert len(parts) == 8
    for path, part in parts.items():
        for letter in "AB":
            mine = getattr(part, letter).detach()
            expected = reference_values[f"base_model.model.transformer.{path}.lora_{letter}.default.weight"]
            assert (mine - expected).abs().max() < 1e-5
            assert (mine - before[f"{path}.lora_default.{letter}"]).abs().max() > 1e-3


def test_the_base_never_moves():
    model = ours(reference()).train()
    before = state(model)
    add_lora(model, CONFIG, seed=3)
    first = state(model)
    optimizers = make_optimizers(model, TrainConfig(learning_rate=0.1, weight_decay=0.3))
    idx = tokens()
    losses = []
    for _ in range(7):
        loss = F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert same(base_of(model), before)
    moved = {name for name, tensor in state(model).items() if not torch.equal(tensor, first[name])}
    assert moved == set(first) - set(before)
    set_adapter(model, None)
    assert torch.equal(logits(model.eval()), logits(ours(reference())))


def test_two_adapters_are_chosen_and_trained_apart():
    model = ours(reference())
    base = logits(model)
    with_adapter(model, CONFIG, "reviews", seed=3)
    alone = logits(model)
    with_adapter(model, LoRAConfig(rank=3, targets=("mlp.c_fc",)), "verse-2", seed=5)
    second = logits(model)
    expected = logits(with_adapter(ours(reference()), LoRAConfig(rank=3, targets=("mlp.c_fc",)), seed=5))
    assert adapters(model) == {"reviews": CONFIG, "verse-2": LoRAConfig(rank=3, targets=("mlp.c_fc",))}
    assert torch.equal(second, expected)
    assert trainable_parameters(model) == 2 * 3 * 75
    set_adapter(model, "reviews")
    assert torch.equal(logits(model), alone)
    assert trainable_parameters(model) == 2 * 5 * 240
    set_adapter(model, None)
    assert torch.equal(logits(model), base)
    assert trainable_parameters(model) == 0
    assert not any(torch.equal(a, b) for a, b in ((base, alone), (base, second), (alone, second)))


# --- merged


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_merged_computes_the_same_and_unmerge_is_exact(dtype, bound):
    model = with_adapter(ours(reference())).to(dtype)
    before, unmerged = state(model), logits(model)
    merge(model)
    assert (logits(model) - unmerged).abs().max() < bound
    assert list(state(model)) == list(before)
    assert {n for n, tensor in state(model).items() if not torch.equal(tensor, before[n])} == {
        f"{path}.weight" for path in lora_layers(model)
    }
    unmerge(model)
    assert same(state(model), before)
    assert torch.equal(logits(model), unmerged)


def test_merging_touches_only_what_the_adapter_in_use_adapts():
    model = with_adapter(ours(reference()), name="reviews")
    with_adapter(model, LoRAConfig(targets=("h.1.mlp.c_fc",)), "verse")
    before = state(model)
    merge(model)
    assert [name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])] == [
        "h.1.mlp.c_fc.weight"
    ]
    unmerge(model)
    assert same(state(model), before)


def test_a_merged_adapter_is_in_the_way_of_others():
    model = with_adapter(ours(reference()))
    merge(model)
    before = state(model)
    for act in (
        lambda: merge(model),
        lambda: set_adapter(model, None),
        lambda: add_lora(model, CONFIG, 0, "second"),
        lambda: save_adapter(model, "adapter"),
        lambda: base_checksum(model),
    ):
        with pytest.raises(ConfigError, match="an adapter is merged into the weights of this model\nunmerge it first"):
            act()
    assert same(state(model), before)
    assert not Path("adapter").exists()
    unmerge(model)
    with pytest.raises(ConfigError, match="no adapter is merged"):
        unmerge(model)
    set_adapter(model, None)
    with pytest.raises(ConfigError, match="no adapter is in use"):
        merge(model)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", ["lm_head", "wte"])
def test_the_advice_on_an_adapter_of_the_tied_matrix_keeps_its_numbers(target):
    """Merged as it is, such an adapter would change the embedding and the head, which are one."""
    config = peft.LoraConfig(r=5, target_modules=["c_attn", target], init_lora_weights=False)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(reference(), config).eval()
    theirs.save_pretrained("adapter")
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings=False.*copy of wte\.weight.*merge_and_unload"):
        load_adapter(ours(reference()), "adapter")
    base = reference()
    base.config.tie_word_embeddings = False
    base.lm_head.weight = nn.Parameter(base.transformer.wte.weight.detach().clone())
    peft.PeftModel.from_pretrained(base, "adapter").merge_and_unload().save_pretrained("merged")
    with pytest.warns(ModelNote):  # it has no tokenizer
        merged_there = load_model("merged")[0]
    assert (logits(merged_there) - logits(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("already", [True, False])
def test_the_merged_export_is_pefts(already):
    theirs, model = reference(), with_adapter(ours(reference()))
    save_adapter(model, "adapter")
    expected = peft.PeftModel.from_pretrained(theirs, "adapter").merge_and_unload()
    before = state(model)
    if already:
        merge(model)
    plain = merged(model)
    assert not lora_layers(plain)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert plain.lm_head.weight is plain.wte.weight
    save_hf(plain, CHAR, "exported")
    exported = transformers.GPT2LMHeadModel.from_pretrained("exported").eval()
    assert (logits(exported) - logits(expected)).abs().max() < 1e-5
    assert (logits(load_model("exported")[0]) - logits(expected)).abs().max() < 1e-5
    with torch.no_grad():
        for parameter in plain.parameters():  # of its own
            parameter.zero_()
    if already:
        unmerge(model)
    assert same(state(model), before)


def test_merged_keeps_the_dtype_and_without_an_adapter_is_the_base():
    model = with_adapter(ours(reference()).double())
    assert {parameter.dtype for parameter in merged(model).parameters()} == {torch.float64}
    set_adapter(model, None)
    assert same(state(merged(model)), state(ours(reference()).double()))


@pytest.mark.parametrize("form", ["reference", "run"])
@pytest.mark.parametrize("use", ["in use", "merged", "two", "none"])
def test_a_writer_of_models_writes_what_the_model_computes(form, use):
    theirs, model = reference(), with_adapter(ours(reference()))
    save_adapter(model, "adapter")
    expected = logits(theirs if use == "none" else peft.PeftModel.from_pretrained(theirs, "adapter"))
    if use == "two":
        with_adapter(model, name="other", seed=5)
        set_adapter(model, "default")
    if use == "none":
        set_adapter(model, None)
    if use == "merged":
        merge(model)
    before = state(model)
    (save_hf if form == "reference" else save_run)(model, CHAR, Path("out"))
    assert same(state(model), before)
    written, _ = load_model("out")
    assert not lora_layers(written)
    assert (logits(written) - expected).abs().max() < 1e-5


def test_cached_generation_is_that_of_the_merged_model():
    model = with_adapter(ours(reference())).double()
    prompts = [[1, 2, 3], [5], [7, 11]]
    options = {"strategy": "greedy", "max_new_tokens": 10}
    expected = [list(s) for s in generate(merged(model), prompts, use_cache=False, **options).sequences]
    assert [list(s) for s in generate(model, prompts, **options).sequences] == expected
    set_adapter(model, None)
    assert [list(s) for s in generate(model, prompts, **options).sequences] != expected


def test_a_copy_has_adapters_of_its_own():
    model = with_adapter(ours(reference()))
    before, expected = state(model), logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    merge(twin)
    set_adapter(model, "default")
    assert same(state(model), before)
    assert torch.equal(logits(model), expected)


# --- files


@pytest.mark.parametrize("targets", [("attn.c_attn",), ("h.1.*",), ALL])
def test_peft_loads_what_we_save(targets):
    theirs = reference()
    model = with_adapter(ours(theirs), dataclasses.replace(CONFIG, targets=targets))
    assert (logits(model) - logits(theirs)).abs().max() > 0.1
    save_adapter(model, "adapter", base="somewhere/gpt2")
    config = peft.PeftConfig.from_pretrained("adapter")
    assert (config.base_model_name_or_path, config.task_type, config.fan_in_fan_out) == (
        "somewhere/gpt2", "CAUSAL_LM", True,
    )  # fmt: skip
    wrapped = peft.PeftModel.from_pretrained(theirs, "adapter")
    assert (logits(model) - logits(wrapped)).abs().max() < 1e-5


def peft_adapter(theirs, folder: str = "theirs", **changes) -> peft.PeftModel:
    """An adapter that PEFT made of the reference's model, and saved."""
    settings = {"r": 7, "lora_alpha": 13, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **settings | changes)).eval()
    torch.manual_seed(17)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["h.1.mlp.c_fc", "of_another_model"]},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal", "r": 6},
        {"lora_dropout": 0.3},
        {"target_modules": r".*\.(c_attn|c_fc)"},
        {"target_modules": ["c_attn"], "layers_to_transform": [1]},
        {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "h"},
        {"exclude_modules": ["mlp.c_proj"]},
        {"exclude_modules": r".*h\.0\..*"},
    ],
)
def test_we_load_what_peft_saves(changes):
    theirs = reference()
    model = ours(theirs)
    wrapped = peft_adapter(theirs, **changes)
    with pytest.warns(ModelNote, match="theirs does not say which base it adapts"):
        layers = load_adapter(model, "theirs", "reviews")
    assert layers == [
        name.split("model.transformer.")[1] for name, m in wrapped.named_modules() if hasattr(m, "lora_A")
    ]
    assert (logits(model) - logits(wrapped)).abs().max() < 1e-5
    with wrapped.disable_adapter():
        assert (logits(model) - logits(wrapped)).abs().max() > 0.1
    assert trainable_parameters(model) == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert adapters(model)["reviews"].dropout == changes.get("lora_dropout", 0.0)


def test_there_and_back_is_the_same_adapter_without_a_note():
    model = with_adapter(ours(reference()), name="reviews")
    save_adapter(model, "adapter", "reviews")
    assert sorted(path.name for path in Path("adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    back = ours(reference())
    assert load_adapter(back, "adapter", "again") == list(lora_layers(model))
    assert torch.equal(logits(back), logits(model))
    assert not any(module.training for module in back.modules())
    with pytest.raises(CheckpointError, match="adapter is not empty"):
        save_adapter(model, "adapter", "reviews")


def test_merged_weights_are_rounded_once():
    """Then every processor has the same, and an adapter that was trained on them knows them by their checksum."""
    model = with_adapter(ours(reference()))
    plain = merged(model)
    for name, layer in lora_layers(model).items():
        part = layer.in_use()
        change = (
            part.config.alpha / part.config.rank * (part.B.detach().double().numpy() @ part.A.detach().double().numpy())
        )
        expected = layer.weight.detach().double() + torch.from_numpy(change)
        assert torch.equal(plain.get_submodule(name).weight, expected.float())


def test_the_checksum_is_of_the_base_and_of_all_of_it():
    model = ours(reference())
    prints = {base_checksum(model)}
    assert prints == {base_checksum(with_adapter(ours(reference())))}
    assert prints == {base_checksum(ours(reference()).double()), base_checksum(ours(reference()).bfloat16())}
    shorter = GPT(dataclasses.replace(SHAPE, block_size=7))
    own = state(model)
    shorter.load_state_dict(own | {"wpe.weight": own["wpe.weight"][:7]})
    assert prints == {base_checksum(shorter)}
    parameters = dict(model.named_parameters())
    del parameters["wpe.weight"]
    for parameter in parameters.values():  # one number in each weight
        with torch.no_grad():
            parameter.view(-1)[-1] *= 1.02
        prints.add(base_checksum(model))
    assert len(prints) == 1 + len(parameters)


# --- mistakes


@pytest.mark.parametrize(
    ("field", "wrong", "values"),
    [
        ("rank", "is out of range", [0]),
        ("rank", r"is of the wrong type \(\w+\)", [2.0, True, "8"]),
        ("rank", "is out of range", [2**63]),
        ("alpha", "is out of range", [0, 1e101]),
        ("alpha", "is out of range", [math.nan]),
        ("alpha", r"is of the wrong type \(\w+\)", [None]),
        ("dropout", "is out of range", [1.0, -0.1]),
        ("dropout", r"is of the wrong type \(\w+\)", ["no"]),
        ("targets", "cannot be used", [(), ("",)]),
        ("targets", r"is of the wrong type \(\w+\)", ["c_attn", ("c_attn", 3)]),
    ],
)  # fmt: skip
def test_settings_are_checked(field, wrong, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{field} = .* {wrong}\n{field} must be "):
            LoRAConfig(**{field: value})


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"targets": ("attn.c_atn",)}, "a", r"'attn.c_atn' matches .* h.0 to h.1\ndid you mean attn.c_attn\? known: "),
        ({"targets": ("c_attn", "h.2.attn.c_attn")}, "a", "'h.2.attn.c_attn' matches no linear layer"),
        ({"targets": ("lm_head",)}, "a", "'lm_head' matches no linear layer of the blocks"),
        ({"targets": ("proj",)}, "a", "'proj' matches no linear layer of the blocks"),
        ({"targets": ("wte",)}, "a", "'wte' matches no linear layer of the blocks"),
        ({"rank": 16}, "a", "rank = 16 is more than a layer's own, 15"),
        ({}, "a.b", "cannot be called 'a.b'"),
        ({}, "", "cannot be called ''"),
        ({}, "taken", "has an adapter 'taken' already"),
    ],
)
def test_what_cannot_be_added_changes_nothing(changes, name, message):
    model = with_adapter(ours(reference()), name="taken")
    before, trainable = state(model), trainable_parameters(model)
    with pytest.raises(ConfigError, match=message):
        add_lora(model, dataclasses.replace(CONFIG, **changes), 0, name)
    assert same(state(model), before)
    assert trainable_parameters(model) == trainable


@pytest.mark.parametrize("name", ["train", "weight", "None", "keys", "A"])
def test_an_adapter_may_bear_any_plain_name(name):
    model = ours(reference())
    with_adapter(model, name=name)
    adapted = logits(model)
    set_adapter(model, None)
    assert not torch.equal(logits(model), adapted)
    assert list(adapters(model)) == [name]


def test_an_unknown_adapter_is_named():
    model = ours(reference())
    with pytest.raises(ConfigError, match="no adapter 'x'\nadd or load one first"):
        set_adapter(model, "x")
    with_adapter(model, name="reviews")
    with pytest.raises(ConfigError, match="no adapter 'x'\nchoose one that it has: reviews"):
        save_adapter(model, "adapter", "x")
    assert not Path("adapter").exists()


def change_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change) -> None:
    """Rewrite the weights, without the record of the base."""
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def flip_a_bit(folder: Path) -> None:
    """In a value, which stays a finite number: the lowest bit of the last one."""
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


KEY = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"
DAMAGE = {
    "not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json .* is not JSON"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "there is no file .*adapter_config.json"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "there is no file .*safetensors"),
    "old": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        r"adapter_model.bin, .*\n.*save it again",
    ),
    "cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-4]),
        "is damaged",
    ),
    "one bit": (flip_a_bit, "adapter_model.safetensors .* does not have its checksum"),
    "rank": (lambda f: change_config(f, r=4), r"has shape \(5, 15\), expected \(4, 15\)"),
    "vast rank": (lambda f: change_config(f, r=10**12), "rank = 1000000000000 is out of range"),
    "endless rank": (lambda f: change_config(f, r=10**400), "rank = 10.*0 is out of range"),
    "no rank": (lambda f: change_config(f, r=None), "adapter_config.json: rank = None is of the wrong type"),
    "missing": (lambda f: change_tensors(f, lambda t: t.pop(KEY)), f"{KEY} is missing"),
    "extra": (
        lambda f: change_tensors(f, lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(5, 15)})),
        "lm_head.lora_A.weight is not part of",
    ),
    "new tokens": (
        lambda f: change_tensors(f, lambda t: t.update({"base_model.model.transformer.wte.weight": torch.ones(5, 15)})),
        r"wte.weight is not part of .*\n.*merge_and_unload",
    ),
    "shape": (
        lambda f: change_tensors(f, lambda t: t.update({KEY: t[KEY].T.contiguous()})),
        r"has shape \(5, 45\), expected \(45, 5\), looks transposed",
    ),
    "not finite": (lambda f: change_tensors(f, lambda t: t[KEY].fill_(math.nan)), f"values in {KEY} that are"),
    "fewer targets": (
        lambda f: change_config(f, target_modules=["mlp.c_fc"]),
        "attn.c_attn.lora_A.weight is not part of",
    ),
    "foreign targets": (lambda f: change_config(f, target_modules=["q_proj"]), r"\['q_proj'\] names no layer"),
    "an expression, no layer": (
        lambda f: (change_tensors(f, lambda t: t.clear()), change_config(f, target_modules=".*c_attn")),
        r"'\.\*c_attn' names no layer",
    ),
    "an expression, half a layer": (
        lambda f: (change_tensors(f, lambda t: t.pop(KEY)), change_config(f, target_modules=".*")),
        f"{KEY} is missing",
    ),
    "DoRA": (lambda f: change_config(f, use_dora=True), "plain LoRA: use_dora = True"),
    "rank_pattern": (lambda f: change_config(f, rank_pattern={"h.0.mlp.c_fc": 2}), "plain LoRA: rank_pattern = "),
    "alpha_pattern": (lambda f: change_config(f, alpha_pattern={"c_fc": 2}), "plain LoRA: alpha_pattern = "),
    "modules_to_save": (lambda f: change_config(f, modules_to_save=["wte"]), "plain LoRA: modules_to_save = "),
    "bias": (lambda f: change_config(f, bias="lora_only"), "plain LoRA: bias = 'lora_only'"),
    "PiSSA": (lambda f: change_config(f, init_lora_weights="pissa"), "plain LoRA: init_lora_weights = 'pissa'"),
    "IA3": (lambda f: change_config(f, peft_type="IA3"), "plain LoRA: peft_type = 'IA3'"),
    "no type": (lambda f: (f / "adapter_config.json").write_text("{}"), "plain LoRA: peft_type = None"),
    "of tomorrow": (lambda f: change_config(f, use_magic=True), "plain LoRA: use_magic = True"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_refused_and_changes_nothing(damage):
    damaged, message = DAMAGE[damage]
    theirs = with_adapter(ours(reference()), dataclasses.replace(CONFIG, targets=("c_attn", "mlp.c_fc")))
    save_adapter(theirs, "adapter")
    damaged(Path("adapter"))
    model = ours(reference())
    before = state(model)
    with pytest.raises((CheckpointError, MissingFileError, ConfigError), match=message) as caught:
        load_adapter(model, "adapter")
    assert str(caught.value).count("\n") == 1
    assert same(state(model), before)
    assert not lora_layers(model)
    assert trainable_parameters(model) == model.num_parameters()


def test_an_adapter_of_another_base_of_the_same_shape_is_refused_by_name():
    save_adapter(with_adapter(ours(reference())), "adapter", base="the-first")
    other = ours(reference(seed=12))
    prints = [base_checksum(ours(reference()))[:12], base_checksum(other)[:12]]
    with pytest.raises(CheckpointError, match=f"another base, .*{prints[0]}.*{prints[1]}\n.*'the-first'"):
        load_adapter(other, "adapter")
    assert not lora_layers(other)


def test_a_missing_folder_is_named():
    with pytest.raises(MissingFileError, match=r"nowhere/adapter_config\.json\n.* from the hub"):
        load_adapter(ours(reference()), "nowhere")


def test_loading_under_a_merged_adapter_says_so():
    save_adapter(with_adapter(ours(reference())), "adapter")
    model = with_adapter(ours(reference()))
    merge(model)
    with pytest.raises(MiniGPTError, match="unmerge it first"):
        load_adapter(model, "adapter", "second")
