"""A model by name, and back: `load_model(spec)` takes GPT-2's weights in any common form, `save_hf` hands them on.

"The reference" is the transformers library. Most GPT-2 weights are published in its layout: a config.json, weights
under its names, the files of the tokenizer. Its names and ours differ by prefixes, and its projections are stored
transposed; `gpt2_names.NAME_TABLE` is all there is to know about that, in both directions.
"""

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.data.corpora import load_corpus
from minigpt.errors import CheckpointError, ConfigError, MiniGPTError, MissingFileError, ModelNote, near
from minigpt.formats.gpt2_names import names, reference_views
from minigpt.formats.hub import CONFIG, HUB_NAMES, TOKENIZER, TOKENIZER_EXTRAS, WEIGHTS, fetch_model
from minigpt.formats.lora_files import load_adapter
from minigpt.formats.run_directory import CHECKPOINTS, check_vocabulary, read_config, read_run, required, run_at
from minigpt.formats.tokenizer_files import load_hf_tokenizer, save_hf_tokenizer
from minigpt.formats.weights import StoredTensor, fill, load_torch_file, open_weights, stored_tensors, write_safetensors
from minigpt.lora import merged, plain
from minigpt.model import GPT
from minigpt.parameters import empty_model, own_tensors
from minigpt.system.files import atomic_folder, check_unused, listed, read_json, write_text
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer

GPT2_VOCABULARIES = (50257, 50304)  # GPT-2's own, and padded to a multiple of 64, which is also one of 128


class AssumedHeads(ModelNote):
    """Weights came without a configuration, and do not show into how many heads their attention is split."""


# What wrappers put before a name: torch.compile, data parallelism, and the reference itself or its bare trunk.
_PREFIXES = re.compile(r"^(?:(?:_orig_mod|module|transformer)\.)+")
# Causal masks, which older files hold. c_attn.bias is none of them.
_BUFFERS = re.compile(r"h\.\d+\.attn\.(?:bias|masked_bias)")


def load_model(
    spec: str | Path,
    *,
    tokenizer: str | Path | None = None,
    block_size: int | None = None,
    dropout: float | None = None,
) -> tuple[GPT, Tokenizer | None]:
    """A model and its tokenizer; the model on the CPU, in float32, in evaluation mode.

    Values go from the file straight into the model, so the peak of memory is little above the weights themselves. Only
    what torch wrote before version 1.6 has to be read as a whole, which takes twice that.

    Args:
        spec: which model. A path that exists is read, and the network is not asked for it:

            - a run directory (its best weights), or the `last` folder inside one (its newest); one that trained an
              adapter gives the model it was trained on with the adapter merged into it;
            - a folder in the reference's layout, with a config.json: one .safetensors file, else several with their
              index, else the same as pytorch_model.bin;
            - one .safetensors or .bin file: of a run directory, or with a config.json beside it, or without, and then
              the shape comes from the tensors and each head is taken to be 64 wide, as in all sizes of GPT-2;
            - nanoGPT's ckpt.pt. Its own code computes the erf form of GELU, this model the tanh form, as GPT-2: an
              activation differs by up to 5e-4, and a logit in about the third decimal.

            Anything else that looks like a path is an error. What remains are models on the hub, from the cache that
            all programs share or else fetched: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or ORG/NAME.
        tokenizer: by default the one that comes with the model; for weights without one, GPT-2's if the vocabulary is
            as large as GPT-2's, else none. Otherwise "gpt2", a tokenizer.json or its folder, or a text file whose
            distinct characters in sorted order are the vocabulary. One that differs from the model's is an error.
        block_size: a shorter context than the model's: the first position embeddings alone are read.
        dropout: for further training, in the place of the source's own.

    Returns:
        The model; and its tokenizer, or None if none came with it and none was named.

    Raises:
        MissingFileError: if there is no such file, folder or model.
        CheckpointError: if what is there is damaged, incomplete, of another architecture, or not a safe file; no model
            is made of a part of it.
        ConfigError: if `block_size` or `dropout` is out of range.
        DownloadError: if a model of the hub is neither in the cache nor to be had.

    Warns:
        AssumedHeads: if the number of heads was not to be read anywhere.
        ModelNote: if the model computes a little differently from the program that trained it, has ids without text,
            or comes without a tokenizer.
    """
    return _load(spec, tokenizer, block_size, dropout, needs_text=False)


def load_for_text(
    spec: str | Path,
    *,
    tokenizer: str | Path | None = None,
    block_size: int | None = None,
    dropout: float | None = None,
) -> tuple[GPT, Tokenizer]:
    """`load_model` for what reads or writes text: without a tokenizer it is an InputError, before a weight is read."""
    model, chosen = _load(spec, tokenizer, block_size, dropout, needs_text=True)
    assert chosen is not None
    return model, chosen


def _load(
    spec: str | Path, tokenizer: str | Path | None, block_size: int | None, dropout: float | None, needs_text: bool
) -> tuple[GPT, Tokenizer | None]:
    path = _locate(spec)
    if _is_run(path) and read_config(run_at(path if path.is_dir() else path.parent)).train.lora_rank:
        return _load_adapted(path, tokenizer, block_size, dropout)
    source = _adjusted(_open(path, dropout), block_size, dropout)
    chosen = _tokenizer(source, tokenizer)
    if chosen is not None or needs_text:
        check_vocabulary(required(chosen, spec), source.config.vocab_size, source.path)
    model = empty_model(source.config)
    targets = {_bare(name): view for name, view in reference_views(model, source.conv1d).items()}
    fill(targets, source.stored, source.path, source.how)
    for note in _notes(source, chosen, tokenizer):
        warnings.warn(note, stacklevel=3)
    return model.eval(), chosen


def model_config(spec: str | Path) -> GPTConfig:
    """The shape of a model, without its weights. Args and errors are those of `load_model`."""
    path = _locate(spec)
    if _is_run(path):
        return read_config(run_at(path if path.is_dir() else path.parent)).model
    return _open(path, None).config


def lasting_spec(spec: str) -> str:
    """A model's path as it is found from any folder; the name of one on the hub as it is."""
    path = Path(run_named(spec)).expanduser()
    return str(path.absolute()) if spec and path.exists() else spec


def run_named(spec: str) -> str:
    """The path of a run that is meant by its name alone; anything else, and a name that means something else, as is."""
    run = CHECKPOINTS / spec
    alone = spec not in ("", ".", "..") and Path(spec).name == spec and spec not in HUB_NAMES
    return str(run) if alone and not os.path.lexists(spec) and _is_run(run) else spec


def _load_adapted(
    path: Path, tokenizer: str | Path | None, block_size: int | None, dropout: float | None
) -> tuple[GPT, Tokenizer]:
    """The base that a run started from, with the run's best adapter merged into it."""
    run = run_at(path if path.is_dir() else path.parent)
    base = read_config(run).init_from
    if path != run.path:
        raise CheckpointError(
            f"{path} is part of a run that trains an adapter: it is there to go on from, and no model",
            f"name {run.path}, which means its best adapter, or go on with minigpt train --resume {run.path}",
        )
    if not run.adapter.exists():
        raise MissingFileError(
            f"{run.path} has no adapter yet: its first evaluation makes it",
            f"go on with minigpt train --resume {run.path}",
        )
    if _looks_like_a_path(base) and not Path(base).exists():
        raise MissingFileError(
            f"{run.adapter} adapts {base}, which is not there any more",
            f"put it back, or name the base where it is now, with --adapter {run.adapter}",
        )
    model, chosen = load_for_text(base, tokenizer=tokenizer or run.tokenizer, block_size=block_size, dropout=dropout)
    load_adapter(model, run.adapter)
    return merged(model), chosen


def save_hf(model: GPT, tokenizer: Tokenizer | None, folder: Path | str) -> None:
    """Write a model so that the reference loads it: `AutoModelForCausalLM` and `AutoTokenizer.from_pretrained(folder)`.

    The weights are written in float32. The reference has no switch for biases: where the model has none, zeros are
    written, which compute the same. An adapter in use is merged into what is written, and not into `model`.

    Args:
        model: any of ours, on any device.
        tokenizer: the one that it was trained with; None writes a folder without one.
        folder: must not exist yet, or be empty. The files appear in it when all of them are whole.

    Raises:
        CheckpointError: if the folder holds something, or the tokenizer cannot be the model's.
    """
    folder = Path(folder)
    check_unused(folder)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config.vocab_size, folder)
    model = plain(model)
    with atomic_folder(folder) as part:
        write_text(part / CONFIG, json.dumps(reference_config(model.config, tokenizer), indent=2) + "\n")
        if tokenizer is not None:
            save_hf_tokenizer(tokenizer, part, model.config.block_size)
        write_safetensors(part / WEIGHTS[0], _with_zero_biases(model), torch.float32)


def _with_zero_biases(model: GPT) -> dict[str, Tensor]:
    """All that the reference expects, in the order of the table: the views of `model`, zeros for biases it has not."""
    views, own = reference_views(model), own_tensors(model)
    for name in names(model.config.n_layer):
        if name.ours.endswith(".bias") and name.ours not in own:
            views[name.theirs] = torch.zeros(len(own[name.ours.replace(".bias", ".weight")]))
    return views


# --- config.json

# The reference's name of a field of GPTConfig.
_FIELDS = {
    "vocab_size": "vocab_size",
    "n_positions": "block_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
# Other names that some tools write, and the reference partly reads: they must say the same.
_ALIASES = {
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "hidden_act": "activation_function",
}
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# What the reference can vary and this model cannot: the values that ask for what this model computes. The first of them
# is what the reference takes where a config.json is silent, and what we write.
_FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
    "pruned_heads": (None, {}, []),
}
# What this model does not depend on, and readers of GPT-2's configurations look for; as OpenAI's own has it, or as the
# reference fills it in. llama.cpp takes the length of the context from n_ctx.
_UNUSED: dict[str, object] = {
    "n_inner": None,  # which is 4 n_embd
    "initializer_range": 0.02,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "torch_dtype": "float32",
    "use_cache": True,
}


def config_from_reference(path: Path, dropout: float | None = None) -> GPTConfig:
    """The shape that a config.json of the reference asks for.

    Args:
        path: the file.
        dropout: what the caller will put in the place of its three rates, which then may differ.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, lacks a size, or asks for anything that this model does not compute; all of
            it is named.
    """
    content = read_json(path)
    content.setdefault("n_positions", content.get("n_ctx"))
    rates = [content.get(key, 0.1) for key in _DROPOUTS]  # 0.1 is the reference's own
    problems = [f"{key} is missing" for key in ("model_type", *_FIELDS) if content.get(key) is None]
    for key, same in _FIXED.items():
        if content.get(key, same[0]) not in same:
            problems.append(f"{key} = {content[key]!r}, not {' or '.join(map(repr, same))}")
    for alias, key in _ALIASES.items():
        value = content.get(key, _FIXED.get(key, (None,))[0])
        if alias in content and content[alias] != value:
            problems.append(f"{alias} = {content[alias]!r}, but {key} = {value!r}")
    if content.get("n_inner") not in (None, 4 * content["n_embd"] if isinstance(content.get("n_embd"), int) else None):
        problems.append(f"n_inner = {content['n_inner']!r}, not 4 n_embd")
    if dropout is None and rates != [rates[0]] * 3:
        problems.append(
            f"{', '.join(_DROPOUTS)} = {rates}, which differ "
            "(minigpt import --dropout chooses one, or dropout= in Python)"
        )
    if problems:
        raise CheckpointError(
            f"{path} does not describe a model that minigpt can compute: {'; '.join(problems)}",
            "choose a model of GPT-2's architecture; nothing that minigpt knows to change the numbers is ignored",
        )
    return _config(
        path,
        **{ours: content[theirs] for theirs, ours in _FIELDS.items()},
        dropout=rates[0],
        tie_weights=content.get("tie_word_embeddings", True),
    )


def reference_config(config: GPTConfig, tokenizer: Tokenizer | None) -> dict[str, object]:
    """What config.json must say of a model of ours, and of the tokens that open, close and pad its documents."""
    ends: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None}
    if tokenizer is not None:
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        own = {f"{role}_id": tokenizer.special_id(role) for role in ("bos_token", "eos_token", "pad_token")}
        # A token may be named that the model was never made large enough to have.
        ends |= {key: own_id for key, own_id in own.items() if own_id is not None and own_id < config.vocab_size}
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{key: same[0] for key, same in _FIXED.items() if same[0] is not None},
        **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
        "n_ctx": config.block_size,
        **dict.fromkeys(_DROPOUTS, config.dropout),
        **_UNUSED,
        "tie_word_embeddings": config.tie_weights,
        **ends,
    }


def _config(path: Path, **values: Any) -> GPTConfig:
    """A GPTConfig of values that come from a file."""
    try:
        return GPTConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.what}", error.how) from None


# --- where a model lies


@dataclass(frozen=True)
class _Source:
    """A model in files, whose values are not read yet.

    Attributes:
        path: the file or folder.
        config: its shape.
        stored: its tensors, by the reference's names without prefixes.
        conv1d: whether they have the reference's orientation.
        how: what to look at if the tensors do not fit the shape.
        trained_with: the tokenizer, where it is known for sure.
        tokenizer_folder: else where its files lie, if anywhere.
        note: what one should know of the model.
    """

    path: Path
    config: GPTConfig
    stored: Mapping[str, StoredTensor]
    conv1d: bool
    how: str
    trained_with: Tokenizer | None = None
    tokenizer_folder: Path | None = None
    note: ModelNote | None = None


def find(spec: str | Path) -> Path | None:
    """The path that is meant, which exists; None for a name on the hub, which was not asked yet.

    Raises:
        MissingFileError: if it is neither.
    """
    path = Path(os.path.expanduser(spec if isinstance(spec, Path) else run_named(spec)))
    if spec and os.path.exists(path):
        return path
    name = str(spec)
    if isinstance(spec, Path) or _looks_like_a_path(name):
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise MissingFileError(f"{name} does not exist{where}", f"check the path; trained runs lie in {CHECKPOINTS}/")
    if name in HUB_NAMES or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return None
    runs = sorted(run.name for run in CHECKPOINTS.glob("*") if _is_run(run))
    hint = f"{near(name, [*HUB_NAMES, *runs])}known: {', '.join(HUB_NAMES)}"
    raise MissingFileError(f"there is no model {name!r}", f"{hint}; others on the hub are ORG/NAME, or give a path")


def reference_folder(spec: str | Path) -> Path | None:
    """The folder in the reference's layout that `load_model` reads, fetched if need be; None for a run or a file.

    Raises:
        MissingFileError: if there is no such path or model.
        DownloadError: if a model on the hub cannot be had.
    """
    path = _locate(spec)
    return path if path.is_dir() and not _is_run(path) and os.path.lexists(path / CONFIG) else None


def _locate(spec: str | Path) -> Path:
    """The path that is meant, or the folder of a model fetched from the hub."""
    return find(spec) or fetch_model(str(spec))


def _is_run(path: Path) -> bool:
    """Whether a folder or file is of a run directory, which it then is whatever else lies there."""
    folder = path if path.is_dir() else path.parent
    run = run_at(folder)
    return os.path.lexists(run.config) and path in (folder, run.best_weights, run.last_weights)


def _looks_like_a_path(name: str) -> bool:
    first, *rest = Path(name).parts or [""]
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.endswith((".safetensors", ".bin", ".pt"))
        or (bool(rest) and (os.path.isdir(first) or first == str(CHECKPOINTS)))  # a run, asked for from elsewhere
    )


def _open(path: Path, dropout: float | None) -> _Source:
    """The model at a path that exists."""
    if _is_run(path):
        return _open_run(path if path.is_dir() else path.parent)
    if path.is_dir():
        return _open_folder(path, dropout)
    if path.suffix == ".safetensors":
        return _open_state(path, open_weights(path), dropout)
    if path.suffix in (".bin", ".pt"):
        content = load_torch_file(path)
        if isinstance(content, dict) and "model_args" in content:
            return _open_nanogpt(path, content)
        return _open_state(path, stored_tensors(content, path), dropout)
    raise CheckpointError(f"{path} is no model", "name a folder, or a file that ends in .safetensors, .bin or .pt")


def _open_run(folder: Path) -> _Source:
    config, tokenizer, weights = read_run(folder)
    how = "use the config.yaml that lies beside these weights"
    stored = _bare_names(open_weights(weights), weights)
    return _checked(_Source(weights, config.model, stored, conv1d=False, how=how, trained_with=tokenizer))


def _open_folder(folder: Path, dropout: float | None) -> _Source:
    present = sorted(path.name for path in folder.iterdir())
    weights = next((name for name in WEIGHTS if name in present), None)
    if CONFIG not in present or weights is None:
        lacking = "config.yaml (of a run) nor config.json" if CONFIG not in present else " nor ".join(WEIGHTS)
        raise MissingFileError(
            f"{folder} holds no model: it has neither {lacking}, but {listed(present) or 'nothing'}",
            "name a run directory, a folder that a model of the hub was copied into, or one weights file",
        )
    return _open_state(folder / weights, open_weights(folder / weights), dropout)


def _open_state(path: Path, state: Mapping[str, StoredTensor], dropout: float | None) -> _Source:
    """Weights under the reference's names; config.json, if there is one, lies beside them."""
    stored, config_path = _bare_names(state, path), path.parent / CONFIG
    note = None
    if os.path.lexists(config_path):  # a link that leads nowhere is an error, and no reason to guess
        config, how = config_from_reference(config_path, dropout), f"check that {config_path} belongs to these weights"
    else:
        config, how = _config_from_tensors(stored, path), f"put the {CONFIG} of this model beside it"
        note = AssumedHeads(f"{path} has no {CONFIG} beside it: {config.n_head} heads, each 64 wide, were assumed")
    folder = tokenizer_beside(path)
    return _checked(_Source(path, config, stored, conv1d=True, how=how, tokenizer_folder=folder, note=note))


def _open_nanogpt(path: Path, checkpoint: Mapping[str, Any]) -> _Source:
    """A checkpoint of nanoGPT: names of the reference, orientation of nn.Linear, the shape under "model_args"."""
    arguments = checkpoint["model_args"]
    fields = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    if not isinstance(arguments, dict) or "model" not in checkpoint or any(key not in arguments for key in fields):
        raise CheckpointError(
            f"{path} is no checkpoint of nanoGPT: that has a state dict under 'model', and under 'model_args' "
            f"{', '.join(fields)}",
            "name the ckpt.pt that nanoGPT's train.py wrote",
        )
    stored = _bare_names(stored_tensors(checkpoint["model"], path), path)
    config = _config(path, **{key: arguments[key] for key in fields}, tie_weights=_is_tied(stored))
    how = "its model_args do not belong to its tensors: name the ckpt.pt that train.py wrote"
    folder = tokenizer_beside(path)
    note = ModelNote(
        "nanoGPT computes the erf form of GELU, this model the tanh form: logits differ in about the third decimal"
    )
    return _checked(_Source(path, config, stored, conv1d=False, how=how, tokenizer_folder=folder, note=note))


def tokenizer_beside(path: Path) -> Path | None:
    """The folder of a file, if a tokenizer, or a part of one, lies in it too."""
    return path.parent if any((path.parent / name).is_file() for name in TOKENIZER) else None


def _bare(name: str) -> str:
    return _PREFIXES.sub("", name)


def _bare_names(state: Mapping[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """The weights without the prefixes of their names, and without buffers."""
    stored: dict[str, StoredTensor] = {}
    for name, tensor in state.items():
        bare = _bare(name)
        if bare in stored:
            raise CheckpointError(f"{path} has {bare} twice, under different prefixes", "keep one of the two models")
        if not _BUFFERS.fullmatch(bare):
            stored[bare] = tensor
    return stored


def _sizes(stored: Mapping[str, StoredTensor]) -> dict[str, int]:
    """What the tensors say about the shape, as far as they are there."""
    sizes: dict[str, int] = {}
    for name, rows in (("wte.weight", "vocab_size"), ("wpe.weight", "block_size")):
        if name in stored and len(stored[name].shape) == 2:
            sizes[rows], sizes["n_embd"] = stored[name].shape
    if layers := {match[1] for name in stored if (match := re.match(r"h\.(\d+)\.", name))}:
        sizes["n_layer"] = len(layers)
    return sizes


def _all_sizes(stored: Mapping[str, StoredTensor], path: Path) -> dict[str, int]:
    """What the tensors say about the shape, which must be all but the heads."""
    sizes = _sizes(stored)
    if len(sizes) < 4:
        raise CheckpointError(
            f"{path} does not hold the weights of a GPT-2: it lacks the matrices wte.weight or wpe.weight, or layers "
            f"from h.0 on; it has {listed(sorted(stored)) or 'nothing'}",
            "name a whole model of GPT-2's architecture, in the names of the transformers library or of nanoGPT",
        )
    return sizes


def _config_from_tensors(stored: Mapping[str, StoredTensor], path: Path) -> GPTConfig:
    sizes = _all_sizes(stored, path)
    if sizes["n_embd"] % 64:
        raise CheckpointError(
            f"{path} alone does not tell the shape of a GPT-2: n_embd = {sizes['n_embd']} is no multiple of 64",
            f"put the {CONFIG} of this model beside it",
        )
    return _config(path, **sizes, n_head=sizes["n_embd"] // 64, tie_weights=_is_tied(stored))


def _is_tied(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the output head is the token embedding: it is left out, or stored again with the same values."""
    if "lm_head.weight" not in stored:
        return True
    embedding, head = stored.get("wte.weight"), stored["lm_head.weight"]
    return embedding is not None and len(head.shape) == 2 and head.equals(embedding)


def _checked(source: _Source) -> _Source:
    """The source, with a tied head left out, if its configuration and its tensors say the same.

    Sizes are compared first, and without a model: a wrong one could ask for any amount of memory, and so could one that
    no tensor confirms.
    """
    config, stored = source.config, dict(source.stored)
    differing = [
        f"{key} = {getattr(config, key)} there, {size} here"
        for key, size in _all_sizes(stored, source.path).items()
        if getattr(config, key) != size
    ]
    if differing:
        raise CheckpointError(f"the configuration disagrees with {source.path}: {'; '.join(differing)}", source.how)
    if config.tie_weights:
        if not _is_tied(stored):
            raise CheckpointError(
                f"the configuration disagrees with {source.path}: it says that the output head is the token embedding, "
                "but lm_head.weight differs from wte.weight",
                source.how,
            )
        stored.pop("lm_head.weight", None)
    return dataclasses.replace(source, stored=stored)


def _adjusted(source: _Source, block_size: int | None, dropout: float | None) -> _Source:
    """The source with a shorter context, or another dropout."""
    changes: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    stored = dict(source.stored)
    if block_size is not None:
        if block_size > source.config.block_size:
            raise ConfigError(
                f"block_size = {block_size} is more than the model's {source.config.block_size}",
                f"choose at most {source.config.block_size}: the model has no position embedding beyond that",
            )
        changes["block_size"] = block_size
    config = dataclasses.replace(source.config, **changes)
    if "wpe.weight" in stored:
        stored["wpe.weight"] = stored["wpe.weight"].first_rows(config.block_size)
    return dataclasses.replace(source, config=config, stored=stored)


# --- its tokenizer


def _tokenizer(source: _Source, named: str | Path | None) -> Tokenizer | None:
    """The tokenizer that is named, else the one that comes with the model, else GPT-2's if that is sure to fit."""
    if named is not None:
        chosen = named_tokenizer(named)
        try:
            own = _own_tokenizer(source)
        except MiniGPTError:
            own = None  # it is not there or cannot be read, so the named one stands
        if own is not None and chosen.fingerprint() != own.fingerprint():
            raise CheckpointError(
                f"{source.path} comes with the tokenizer {own.fingerprint()[:12]} (fingerprint), and {named} is "
                f"{chosen.fingerprint()[:12]}",
                "leave the tokenizer out: the model has its own",
            )
        return own or chosen  # of the same ids, and the model's own knows the names of special tokens
    if (own := _own_tokenizer(source)) is not None:
        return own
    # Settings of a tokenizer without its vocabulary are those of another kind, such as SentencePiece.
    described = any((source.path.parent / name).is_file() for name in TOKENIZER_EXTRAS)
    return GPT2Tokenizer() if source.config.vocab_size in GPT2_VOCABULARIES and not described else None


def _notes(source: _Source, tokenizer: Tokenizer | None, named: str | Path | None) -> Iterator[ModelNote]:
    """What one should know of a model that was loaded with a tokenizer, or without."""
    if source.note is not None:
        yield source.note
    size, bare = source.config.vocab_size, source.trained_with is None and source.tokenizer_folder is None
    if tokenizer is None:
        yield ModelNote(
            f"{source.path} comes without a tokenizer, and its {size:,} ids are not GPT-2's: only ids go in and out "
            "(--tokenizer, or tokenizer= in Python, names one)"
        )
        return
    if bare and named is None:
        yield ModelNote(f"{source.path} comes without a tokenizer: GPT-2's was taken, which {size:,} ids are usual for")
    spare, names = size - tokenizer.vocab_size, [token.content for token in tokenizer.added]
    if source.trained_with is None and spare and (names or spare >= 128 or size % 8):
        some = f" ({listed([repr(name)[:40] for name in names])})" if names else ""
        yield ModelNote(
            f"of the {size:,} ids of {source.path}, {spare:,} without text{some}: no text gives them, and none is drawn"
        )


def _own_tokenizer(source: _Source) -> Tokenizer | None:
    """The tokenizer that comes with the model, if one does."""
    if source.trained_with is None and source.tokenizer_folder is not None:
        return load_hf_tokenizer(source.tokenizer_folder)
    return source.trained_with


def named_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer that --tokenizer names; see `load_model`."""
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return load_hf_tokenizer(path)
    if path.suffix == ".json" and path.is_file():
        return load_hf_tokenizer(path.parent) if path.name == TOKENIZER[0] else load_tokenizer(path)
    if path.is_file():
        return CharTokenizer.from_text(load_corpus(path).text)
    if name == "gpt2":
        return GPT2Tokenizer()
    raise MissingFileError(
        f"there is no tokenizer {str(name)!r}",
        "give gpt2, a tokenizer.json or its folder, or a text file whose characters are the vocabulary",
    )
