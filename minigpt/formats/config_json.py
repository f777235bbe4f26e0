"""config.json, the transformers library's description of a model's shape: read and written."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.config import GPTConfig
from minigpt.errors import CheckpointError, ConfigError, InputError, ModelNote, brief, named
from minigpt.formats.hub import CONFIG, GENERATION
from minigpt.model import GPT
from minigpt.parameters import came_with, keep_settings
from minigpt.system.files import listed, read_json
from minigpt.tokenizers import Tokenizer

CARRIED = (CONFIG, GENERATION)  # files whose settings an import keeps and an export writes again
CORRECT = "no model has such a value: correct the file, or copy it again from where its model is"

# The name of each field of GPTConfig in transformers.
_FIELDS = {
    "vocab_size": "vocab_size",
    "n_positions": "block_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
# Other names that some tools write, and of which transformers reads some: their values must be the same.
_ALIASES = {
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "hidden_act": "activation_function",
}
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# What transformers can vary and this model cannot: the values that stand for what this model computes. The first of
# them is transformers' default, and the one that we write.
_FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
    "pruned_heads": (None, {}, []),
}
# Settings that change nothing in this model, but that programs expect in a config.json of GPT-2: with the values of
# OpenAI's file, or transformers' defaults. llama.cpp takes the length of the context from n_ctx.
_UNUSED: dict[str, object] = {
    "n_inner": None,  # means 4 n_embd
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


class DifferentRates(ModelNote):
    """A config.json has three dropout rates that differ, and a model here has one, which only training uses."""


def different_rates(path: Path) -> DifferentRates | None:
    """The note on a config.json whose dropout rates differ."""
    rates = _rates(read_json(path))
    what = f"{path}: {', '.join(_DROPOUTS)} = {', '.join(map(brief, rates))}, which differ"
    return None if rates == [rates[0]] * 3 else DifferentRates(f"{what}: only training uses them, and has one here")


def _rates(content: Mapping[str, Any]) -> list[Any]:
    return [content.get(key, 0.1) for key in _DROPOUTS]  # 0.1 is transformers' default


def config_from_transformers(path: Path, rates_may_differ: bool = False) -> GPTConfig:
    """The shape that a config.json of transformers describes.

    Args:
        path: the file.
        rates_may_differ: accept three dropout rates that differ, and take the first: for a caller that does not need
            the rate, or has its own.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is damaged, lacks a size, or describes anything that this model does not compute; the
            error names all of it.
    """
    content = read_json(path)
    content.setdefault("n_positions", content.get("n_ctx"))
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
    if problems:
        raise CheckpointError(
            f"{path} does not describe a model that minigpt can compute: {'; '.join(problems)}",
            "choose a model of GPT-2's architecture; nothing that minigpt knows to change the numbers is ignored",
        )
    if not rates_may_differ and (note := different_rates(path)):
        raise CheckpointError(str(note), f"choose one to train on with: {named('dropout')}")
    return checked_config(
        path,
        **{ours: content[theirs] for theirs, ours in _FIELDS.items()},
        dropout=_rates(content)[0],
        tie_weights=content.get("tie_word_embeddings", True),
    )


def further_parts(path: Path) -> str:
    """The class that a config.json names, if it is one of transformers' that has more parts than a GPT; else ""."""
    named = read_json(path).get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    return first if isinstance(first, str) and first not in ("GPT2LMHeadModel", "GPT2Model") else ""


def transformers_config(
    config: GPTConfig, tokenizer: Tokenizer | None, carried: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """The content of the config.json of a model of ours, with the tokens that open, close and pad its documents.

    Args:
        config: the model's shape, whose settings come first.
        tokenizer: the model's, or None.
        carried: the config.json that the model came with: its other settings are written again, such as several EOS.
    """
    kept = {
        key: value
        for key, value in (carried or {}).items()
        if key not in _DECIDED and not key.startswith("_") and value is not None and _is_sound(key, value, config)
    }
    ends: dict[str, int | list[int] | None] = {"bos_token_id": None, "eos_token_id": None}
    if tokenizer is not None:
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        own = {f"{role}_id": tokenizer.special_id(role) for role in ("bos_token", "eos_token", "pad_token")}
        # The tokenizer may name a token whose id is beyond the model's vocabulary.
        ends |= {key: own_id for key, own_id in own.items() if own_id is not None and own_id < config.vocab_size}
        learned, last = tokenizer.eos_token_id, ends["eos_token_id"]
        if isinstance(last, int) and learned not in (None, last):  # a training here ends documents with the usual one
            ends["eos_token_id"] = [last, learned]
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{key: same[0] for key, same in _FIXED.items() if same[0] is not None},
        **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
        "n_ctx": config.block_size,
        **dict.fromkeys(_DROPOUTS, config.dropout),
        **_UNUSED,
        "tie_word_embeddings": config.tie_weights,
        **ends,
        **kept,
    }


# Settings that do not describe the model or its tokens, or that the model's own shape decides.
_OF_NO_MODEL = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "n_ctx", "n_inner",
                "tie_word_embeddings", *_FIELDS, *_ALIASES, *_FIXED, *_DROPOUTS}  # fmt: skip
_DECIDED = {*_OF_NO_MODEL, "auto_map"}  # auto_map names Python code, which is never copied


def _is_sound(key: str, value: object, config: GPTConfig) -> bool:
    """Whether a setting can be true of the model: ids of tokens must be in its vocabulary."""
    ids = value if isinstance(value, list) else [value]
    return not key.endswith("_token_id") or all(type(i) is int and 0 <= i < config.vocab_size for i in ids)


def carried_from(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings in a folder in transformers' layout, by file: plain data, which is only copied from file to file."""
    return {file: read_json(folder / file) for file in CARRIED if os.path.lexists(folder / file)}


def read_carried(path: Path) -> dict[str, dict[str, Any]]:
    """The settings that `carried_from` gave, read from a file of a run, which may come from somebody else.

    Raises:
        CheckpointError: if the file is a link, or holds anything else.
    """
    content = {} if path.is_symlink() else read_json(path)
    if not content or not _are_carried(content):
        raise CheckpointError(f"{path} does not hold {' and '.join(CARRIED)}", "import the model again")
    return content


def check_carried(carried: Mapping[str, Any]) -> None:
    """Raise InputError if an argument is not what `carried_from` gives: nobody could read it again."""
    if not _are_carried(carried):
        what = f"{named('carried', carried)} holds other things than the content of {' and '.join(CARRIED)}"
        raise InputError(what, f'give {{"{CARRIED[0]}": {{...}}}}, as open_source(...).carried does, or leave it out')


def _are_carried(content: Mapping[str, Any]) -> bool:
    return content.keys() <= set(CARRIED) and all(isinstance(part, Mapping) for part in content.values())


def listed_ends(carried: Mapping[str, Mapping[str, Any]], vocab_size: int) -> list[int]:
    """The ids that the settings of `carried_from` name as ends of a text, those within the tokenizer's vocabulary."""
    found = [_ends(carried.get(file, {})) for file in reversed(CARRIED)]  # as transformers reads them
    ids = next(filter(None, found), [])
    return [token_id for token_id in ids if type(token_id) is int and 0 <= token_id < vocab_size]


def _ends(said: Mapping[str, Any]) -> list[object]:
    """What a file's settings name as ends of a text: one id, or several."""
    ids = said.get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def inherited(base: GPT | None, end: int | None) -> dict[str, dict[str, Any]]:
    """The settings that a run takes over from the model that it starts from, to be kept as `carried_from` gave them.

    `base` is the model, or None for a new one; `end` is as in `with_end`.
    """
    carried, _ = (came_with(base) if base else None) or ({}, None)
    return with_end(carried, end)


def with_end(carried: Mapping[str, Mapping[str, Any]], end: int | None) -> dict[str, dict[str, Any]]:
    """The settings of `carried_from` after a training.

    Args:
        carried: the settings before it.
        end: the token with which it ends its documents, which ends a text from now on; None if there is none.
    """
    found = {file: dict(said) for file, said in carried.items()}
    for said in found.values():
        if end is not None and end not in (ends := _ends(said)):
            said["eos_token_id"] = [*ends, end] if ends else end
    return found


def not_kept(said: Mapping[str, Any], config: GPTConfig, tokenizer: Tokenizer | None) -> list[str]:
    """What a config.json said, each as "key = value", that an export of the model read from it will not contain."""
    written = transformers_config(config, tokenizer, said)
    return [
        f"{key} = {brief(value)}"
        for key, value in said.items()
        if key not in _OF_NO_MODEL and not key.startswith("_") and value not in (None, False, [], {}, written.get(key))
    ]


def keep_carried(model: GPT, carried: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer | None) -> None:
    """Keep with a loaded model the settings of `carried_from`, and of which tokenizer they are."""
    keep_settings(model, (carried, _identity(tokenizer)) if carried else None)


def kept_carried(model: GPT, tokenizer: Tokenizer | None) -> Mapping[str, Mapping[str, Any]]:
    """The settings that `keep_carried` kept, to be written with a tokenizer: the model's own, or none.

    Warns:
        ModelNote: of what will not be written: a setting that cannot be true of the model; or all of them, if this is
            another tokenizer, whose ids may mean something else.
    """
    found: tuple[Mapping[str, Mapping[str, Any]], object] = came_with(model) or ({}, None)
    carried, identity = found
    if carried and tokenizer is not None and _identity(tokenizer) != identity:
        note = f"not kept: {' and '.join(carried)} of the model's folder, because that had another tokenizer"
        warnings.warn(ModelNote(note), stacklevel=4)  # above `checked` and what writes
        return {}
    if lost := not_kept(carried.get(CARRIED[0], {}), model.config, tokenizer):
        note = f"not kept of {CARRIED[0]} of the model's folder: {listed(lost, '; ')}"
        warnings.warn(ModelNote(note), stacklevel=4)
    return carried


def _identity(tokenizer: Tokenizer | None) -> object:
    """What is equal for two tokenizers that give and name the same ids."""
    if tokenizer is None:
        return None
    return tokenizer.fingerprint(), tokenizer.added, tokenizer.settings, tokenizer.end_ids


def checked_config(path: Path, **values: Any) -> GPTConfig:
    """A GPTConfig of values that come from a file, so a wrong one is the file's to mend.

    Raises:
        CheckpointError: if one is of the wrong type, out of range, or contradicts another.
    """
    try:
        return GPTConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.what}", CORRECT) from None
