"""Adapters to and from files in the layout of the PEFT library: `adapter_config.json`, `adapter_model.safetensors`."""

import dataclasses
import hashlib
import json
import math
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import LoRAConfig, are_texts
from minigpt.errors import CheckpointError, ConfigError, MissingFileError, ModelNote
from minigpt.fields import checked
from minigpt.formats.gpt2_names import transformers_views
from minigpt.formats.weights import check_values, fill, open_weights, read_metadata, with_checksum, write_safetensors
from minigpt.lora import (
    KNOWN,
    LowRank,
    adaptable,
    adapters,
    attach,
    check_known,
    check_unmerged,
    lora_layers,
    matching,
    new_adapter,
)
from minigpt.model import GPT
from minigpt.parameters import as_built
from minigpt.system.files import atomic_folder, check_unused, listed, named_path, read_json, write_text

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_TRUNK = "transformer."  # how the name of a layer begins in transformers
_BASE = "minigpt_base"  # the key of the base's checksum, in the header of the weights
# What both refusals of another base add: in float32, the last digits of a merged weight are the processor's.
ANEW = "; if the base is a run with an adapter, which an earlier minigpt merged in float32, train anew"
# The settings of an adapter_config.json that are read, or that change no numbers.
_ACCEPTED = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "auto_mapping", "base_model_name_or_path",
    "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type",
}  # fmt: skip
# Settings that must have one of these values, because only this is computed here. All other settings must be off.
_FIXED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # other initialisations change the base too
}


def base_checksum(model: GPT) -> str:
    """SHA-256 of the base. Adapters do not change it, nor whether the base is in float64, float32 or bfloat16.

    It covers every weight in the order of `NAME_TABLE`, except a tied head: its name there, its shape, and its values
    rounded to bfloat16, little-endian. The position embedding is left out too, because a base that is loaded with a
    smaller block_size has fewer rows of it.

    Raises:
        ConfigError: if an adapter is merged, because these are not the weights of the base.
    """
    check_unmerged(model)
    digest = hashlib.sha256()
    for name, tensor in transformers_views(model, conv1d=False).items():
        if not name.endswith("wpe.weight"):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@checked
def save_adapter(
    model: GPT,
    folder: Path | str,
    name: str = "default",
    base: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter so that PEFT loads it: `PeftModel.from_pretrained(base_model, folder)`.

    Args:
        model: the base and its adapters.
        folder: must not exist yet, or be empty. Both files appear in it when they are complete.
        name: of the adapter; it is not written.
        base: where the base comes from, as information in the file.
        metadata: texts for the header of the weights.

    Raises:
        ConfigError: if there is no such adapter, or one is merged.
        CheckpointError: if the folder is not empty.
        InputError: if the model has other parts than a GPT and adapters, the adapter is not finite, the folder is no
            path, or `base` no text.
    """
    folder = named_path(folder, "folder")
    model = as_built(model, KNOWN)
    check_unused(folder)
    check_known(model, name)
    config = adapters(model)[name]
    adapter = {path: layer.adapters()[name] for path, layer in lora_layers(model).items() if name in layer.adapters()}
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": [_TRUNK + path for path in adapter],  # full names, because PEFT knows no globs
        "fan_in_fan_out": True,  # transformers keeps these weights as (in, out), in modules called Conv1D
        "bias": "none",
        "inference_mode": True,
    }
    tensors = _peft_tensors(adapter)
    header = with_checksum({**(metadata or {}), _BASE: base_checksum(model)}, tensors)
    with atomic_folder(folder) as part:
        write_text(part / CONFIG, json.dumps(content, indent=2) + "\n")
        write_safetensors(part / WEIGHTS, tensors, metadata=header, finite=True)


@checked
def load_adapter(model: GPT, folder: Path | str, name: str = "default") -> list[str]:
    """Put an adapter from files on a model, activate it, and freeze everything else.

    Args:
        model: the base, with or without other adapters; if there is an error, it is not changed.
        folder: written by `save_adapter`, or by PEFT for plain LoRA on a GPT-2; one of its two files means it too.
        name: a name for the adapter: letters, digits, - and _.

    Returns:
        The names of the layers that it adapts.

    Raises:
        MissingFileError: if a file is not there.
        CheckpointError: if a file is damaged, describes what is not computed here, or belongs to another base.
        ConfigError: if the rank is above that of a layer, the name is in use or not allowed, or an adapter is merged.

    Warns:
        ModelNote: if the files have no checksum of their base, so that only shapes could be compared.
    """
    folder = adapter_folder(folder)
    config_path, weights = folder / CONFIG, folder / WEIGHTS
    content = adapter_settings(folder)
    check_values(weights)
    stored, recorded = open_weights(weights), read_metadata(weights).get(_BASE)
    config = _config_from_peft(content, config_path, model, stored)
    if recorded is not None and recorded != (own := base_checksum(model)):
        raise CheckpointError(
            f"{folder} adapts another base, with the checksum {recorded[:12]}; this model has {own[:12]}",
            f"load the base that it was trained on; {CONFIG} calls it {content.get('base_model_name_or_path')!r}; a "
            f"run that was trained further has its former weights in previous/, until it saves again{ANEW}",
        )
    adapter = new_adapter(model, config, config.targets, name)
    how = f"check that {config_path} and this base belong to it"
    if others := [tensor for tensor in stored if f".{_TRUNK}h." not in tensor]:  # such as the rows of new tokens
        how = "it changes more than the blocks: in PEFT, "
        if model.config.tie_weights and any(".lora_" in tensor for tensor in others):  # merged, it would change both
            how += "load the base with tie_word_embeddings=False, make its lm_head.weight a copy of wte.weight, "
        how += "merge it (merge_and_unload), and save that model as a whole"
    fill(_peft_tensors(adapter), stored, weights, how)
    attach(model, adapter, name)
    if recorded is None:
        note = f"{folder} does not say which base it adapts: its shapes fit this one, and no more is known"
        warnings.warn(ModelNote(note), stacklevel=3)  # above `checked`
    return list(adapter)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The content of an adapter's configuration, which needs no model.

    Raises:
        MissingFileError, CheckpointError: if it is not there, or if the weights are in an older file.
    """
    config_path, weights = folder / CONFIG, folder / WEIGHTS
    if not weights.exists() and weights.with_suffix(".bin").exists():
        raise CheckpointError(
            f"{folder} has its weights in {weights.stem}.bin, which old versions of PEFT wrote",
            "load it with a newer PEFT and save it again, as .safetensors",
        )
    if not config_path.exists() and (inside := adapters_at(folder)):
        what = "a run" if Path(folder, "config.yaml").exists() else "a folder with adapters in it"
        names = " or ".join(map(str, inside))
        raise MissingFileError(f"{folder} is {what}, and no adapter", f"name the adapter in it: {names}")
    if not os.path.lexists(config_path):
        how = "name an adapter's folder: none is fetched from the hub; `hf download ORG/NAME` says where it puts one"
        raise MissingFileError(f"there is no file {config_path}", how)
    return read_json(config_path)


def adapter_folder(name: Path | str) -> Path:
    """The folder that an adapter's name means, which may be that of one of its files. Raises as `named_path`."""
    path = named_path(name, "adapter")
    return path.parent if path.name in (CONFIG, WEIGHTS) else path


def adapters_at(path: Path) -> list[Path]:
    """The folders of the adapters at a path: its own, or those in it, as PEFT writes adapters that have names."""
    path = adapter_folder(path)
    found = sorted(config.parent for config in path.glob(f"*/{CONFIG}") if not config.parent.name.startswith("."))
    return [path] if (path / CONFIG).exists() else found


def base_of(adapter: Path) -> str:
    """What an adapter's file calls its base; "" if it does not say. Raises as `read_json`."""
    name = read_json(adapter / CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) else ""


def _peft_tensors(adapter: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """An adapter's matrices under PEFT's names; PEFT stores them in our orientation, even beside a Conv1D.

    Writing into them changes the adapter.
    """
    return {
        f"base_model.model.{_TRUNK}{path}.lora_{letter}.weight": matrix.detach()
        for path, part in adapter.items()
        for letter, matrix in (("A", part.A), ("B", part.B))
    }


def _config_from_peft(content: Mapping[str, Any], path: Path, model: GPT, stored: Collection[str]) -> LoRAConfig:
    """The LoRA that an adapter_config.json describes; the targets are the full names of its layers.

    A list of targets says which layers these are, so that a missing one is noticed. Where they are chosen otherwise, by
    an expression or as a list without some of them, the names of the tensors tell.
    """
    refused = [
        f"{key} = {value!r:.80}"
        for key, value in {"peft_type": None, **content}.items()
        if (value not in _FIXED[key] if key in _FIXED else value and key not in _ACCEPTED)
    ]
    if refused:
        raise CheckpointError(
            f"{path} does not describe plain LoRA: {listed(refused)}",
            "choose an adapter of plain LoRA; nothing that would change the numbers is ignored",
        )
    targets = content.get("target_modules")
    known = list(adaptable(model))
    if isinstance(targets, list) and not any(map(content.get, ("exclude_modules", "layers_to_transform"))):
        # PEFT accepts a target that matches nothing.
        layers = matching(known, [name.removeprefix(_TRUNK) for name in targets] if are_texts(targets) else [])
    else:
        layers = [layer for layer in known if f"base_model.model.{_TRUNK}{layer}.lora_A.weight" in stored]
    if not layers:
        raise CheckpointError(
            f"{path}: target_modules = {targets!r:.80} names no layer of this model",
            "it must name linear layers of GPT-2's blocks, such as c_attn",
        )
    try:  # settings that the file lacks have PEFT's defaults
        config = LoRAConfig(
            content.get("r", 8), content.get("lora_alpha", 8), content.get("lora_dropout", 0.0), tuple(layers)
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.what}", error.how) from None
    if content.get("use_rslora"):  # alpha / sqrt(R) instead of alpha / R (Kalajdzievski, 2023)
        config = dataclasses.replace(config, alpha=config.alpha * math.sqrt(config.rank))
    return config
