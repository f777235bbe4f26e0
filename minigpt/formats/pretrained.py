"""Loading and writing models: `load_model(spec)` reads GPT-2's weights in any common format, `save_hf` writes them.

Most GPT-2 weights are published in the layout of the transformers library: a config.json, weights under its names, the
files of the tokenizer. Its names differ from ours by prefixes, and it stores the projections transposed: see
`gpt2_names.NAME_TABLE`, which is used in both directions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import Weights
from minigpt.fields import checked
from minigpt.formats.config_json import CARRIED, check_carried, kept_carried, transformers_config
from minigpt.formats.gpt2_names import names, transformers_views
from minigpt.formats.hub import CONFIG, WEIGHTS
from minigpt.formats.source import open_source
from minigpt.formats.tokenizer_files import save_hf_tokenizer
from minigpt.formats.weights import write_safetensors
from minigpt.lora import without_adapters
from minigpt.model import GPT
from minigpt.parameters import own_tensors
from minigpt.system.files import atomic_folder, check_unused, named_path, write_text
from minigpt.tokenizers import Tokenizer, check_vocabulary


def load_model(
    spec: str | Path,
    *,
    tokenizer: str | Path | None = None,
    block_size: int | None = None,
    dropout: float | None = None,
    weights: Weights | None = None,
    adapter: str | Path | None = None,
) -> tuple[GPT, Tokenizer | None]:
    """A model and its tokenizer; the model is on the CPU, in float32, in evaluation mode.

    Values are read from the file directly into the model, so the peak of memory is little above the weights themselves.
    Only files that torch wrote before version 1.6 must be read as a whole, which takes twice as much.

    Args:
        spec: which model. A path that exists is read, without the network:

            - a run directory (its best weights), or the `last` folder inside one (its newest weights); a run that
              trained an adapter gives its base with the adapter merged into it;
            - a folder in transformers' layout, with a config.json: one .safetensors file, else several with their
              index, else the same as pytorch_model.bin; or the index;
            - one .safetensors or .bin file: of a run directory; or with a config.json beside it; or without, and then
              the shape is taken from the tensors, and each head is assumed to be 64 wide, as in all sizes of GPT-2;
            - nanoGPT's ckpt.pt. Its own code computes the erf form of GELU, this model the tanh form, as GPT-2 does: an
              activation differs by up to 5e-4, and a logit in about the third decimal.

            Anything else that looks like a path is an error. All other names are models on the hub, from the cache that
            all programs share, or downloaded: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or ORG/NAME.
        tokenizer: by default the one that comes with the model, or none if ours cannot reproduce it exactly; for
            weights without one, GPT-2's if the vocabulary is as large as GPT-2's, else none. Otherwise "gpt2", a
            tokenizer.json or its folder, or a text file whose distinct characters in sorted order are the vocabulary.
            One that differs from the model's is an error.
        block_size: a shorter context than the model's: only the first position embeddings are read.
        dropout: for further training, instead of the source's own rate, or the first of three that differ.
        weights: pack the model for inference, as `minigpt.pack` does, while it is read: one layer at a time is in
            memory as the file has it. Only an adapter needs all of its base at once.
        adapter: a LoRA adapter to merge into the model: a folder that `save_adapter` or PEFT wrote. A tokenizer in that
            folder, or of the run that trained it, is the one it was trained with: its special tokens and settings
            count, and it must agree with the model's as one that `tokenizer` names.

    Returns:
        The model; and its tokenizer, or None if the model has none and none was given.

    Raises:
        MissingFileError: if there is no such file, folder or model.
        CheckpointError: if it is damaged, incomplete, of another architecture, or not a safe file.
        ConfigError: if `block_size` or `dropout` is out of range.
        InputError: if `spec`, `tokenizer` or `adapter` is no path, or no file can have this name, or there are no such
            `weights`.
        DownloadError: if a model of the hub is not in the cache and cannot be downloaded.

    Warns:
        AssumedHeads: if the number of heads is written nowhere.
        ModelNote: if the model computes slightly other numbers than the program that trained it, has ids without text,
            no tokenizer, or three dropout rates that differ.
    """
    return open_source(spec).load(
        tokenizer=tokenizer, block_size=block_size, dropout=dropout, weights=weights, adapter=adapter
    )


@checked
def save_hf(
    model: GPT, tokenizer: Tokenizer | None, folder: Path | str, carried: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write a model so that transformers loads it: `AutoModelForCausalLM` and `AutoTokenizer.from_pretrained(folder)`.

    The weights are written in float32. transformers cannot switch biases off: for a model without them, zeros are
    written, which compute the same. An active adapter is merged into the written weights, but not into `model`.

    Args:
        model: a GPT, on any device.
        tokenizer: the one that it was trained with; None writes a folder without one.
        folder: must not exist yet, or be empty. The files appear in it when all of them are complete.
        carried: settings that the model came with, by file (`open_source(spec).carried`); those that the model itself
            does not decide are written again. By default those of the folder that `load_model` read it from, unless
            `tokenizer` is another than that folder's; {} writes none.

    Raises:
        CheckpointError: if the folder is not empty, or the tokenizer cannot be the model's.
        InputError: if `model`, `tokenizer`, `folder` or `carried` is of another type or form, or a weight is not finite
            in float32.

    Warns:
        ModelNote: of settings that the model came with, by default, and that are not written.
    """
    folder = named_path(folder, "folder")
    check_unused(folder)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config.vocab_size, folder)
    if carried is None:
        carried = kept_carried(model, tokenizer)
    check_carried(carried)
    model = without_adapters(model)
    with atomic_folder(folder) as part:
        settings = {**carried, CONFIG: carried.get(CONFIG, {})}
        settings[CONFIG] = transformers_config(model.config, tokenizer, settings[CONFIG])
        for file in settings.keys() & set(CARRIED):
            write_text(part / file, json.dumps(settings[file], indent=2) + "\n")
        if tokenizer is not None:
            save_hf_tokenizer(tokenizer, part, model.config.block_size)
        write_safetensors(part / WEIGHTS[0], _with_zero_biases(model), torch.float32, finite=True)


def _with_zero_biases(model: GPT) -> dict[str, Tensor]:
    """The tensors that transformers expects, in the order of the table: views of `model`, zeros for missing biases."""
    views, own = transformers_views(model), own_tensors(model)
    for name in names(model.config.n_layer):
        if name.ours.endswith(".bias") and name.ours not in own:
            views[name.theirs] = torch.zeros(len(own[name.ours.replace(".bias", ".weight")]))
    return views
