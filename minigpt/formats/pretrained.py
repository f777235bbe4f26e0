"""A model by name, and back: `load_model(spec)` takes GPT-2's weights in any common form, `save_hf` hands them on.

Most GPT-2 weights are published in the layout of the transformers library: a config.json, weights under its names, the
files of the tokenizer. Its names and ours differ by prefixes, and it stores the projections transposed;
`gpt2_names.NAME_TABLE` says all there is to know about that, for both directions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.fields import checked
from minigpt.formats.config_json import CARRIED, transformers_config
from minigpt.formats.gpt2_names import names, transformers_views
from minigpt.formats.hub import CONFIG, WEIGHTS
from minigpt.formats.source import open_source
from minigpt.formats.tokenizer_files import save_hf_tokenizer
from minigpt.formats.weights import write_safetensors
from minigpt.lora import plain
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
) -> tuple[GPT, Tokenizer | None]:
    """A model and its tokenizer; the model on the CPU, in float32, in evaluation mode.

    Values go from the file straight into the model, so the peak of memory is little above the weights themselves. Only
    what torch wrote before version 1.6 has to be read as a whole, which takes twice that.

    Args:
        spec: which model. A path that exists is read, and the network is not asked for it:

            - a run directory (its best weights), or the `last` folder inside one (its newest); one that trained an
              adapter gives the model it was trained on with the adapter merged into it;
            - a folder in transformers' layout, with a config.json: one .safetensors file, else several with their
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
        InputError: if `spec` or `tokenizer` is no path, or nothing can be called so.
        DownloadError: if a model of the hub is neither in the cache nor to be had.

    Warns:
        AssumedHeads: if the number of heads was not to be read anywhere.
        ModelNote: if the model computes a little differently from the program that trained it, has ids without text,
            or comes without a tokenizer.
    """
    return open_source(spec).load(tokenizer=tokenizer, block_size=block_size, dropout=dropout)


@checked
def save_hf(
    model: GPT, tokenizer: Tokenizer | None, folder: Path | str, carried: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write a model so that transformers loads it: `AutoModelForCausalLM` and `AutoTokenizer.from_pretrained(folder)`.

    The weights are written in float32. transformers has no switch for biases: where the model has none, zeros are
    written, which compute the same. An adapter in use is merged into what is written, and not into `model`.

    Args:
        model: any of ours, on any device.
        tokenizer: the one that it was trained with; None writes a folder without one.
        folder: must not exist yet, or be empty. The files appear in it when all of them are whole.
        carried: settings that the model came with, by file (`open_source(spec).carried`), to be written again where
            this model does not decide them.

    Raises:
        CheckpointError: if the folder holds something, or the tokenizer cannot be the model's.
        InputError: if one of the three is something else.
    """
    folder = named_path(folder, "folder")
    check_unused(folder)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config.vocab_size, folder)
    model = plain(model)
    with atomic_folder(folder) as part:
        settings = {**(carried or {}), CONFIG: (carried or {}).get(CONFIG, {})}
        settings[CONFIG] = transformers_config(model.config, tokenizer, settings[CONFIG])
        for file in settings.keys() & set(CARRIED):
            write_text(part / file, json.dumps(settings[file], indent=2) + "\n")
        if tokenizer is not None:
            save_hf_tokenizer(tokenizer, part, model.config.block_size)
        write_safetensors(part / WEIGHTS[0], _with_zero_biases(model), torch.float32)


def _with_zero_biases(model: GPT) -> dict[str, Tensor]:
    """All that transformers expects, in the order of the table: the views of `model`, zeros for biases it has not."""
    views, own = transformers_views(model), own_tensors(model)
    for name in names(model.config.n_layer):
        if name.ours.endswith(".bias") and name.ours not in own:
            views[name.theirs] = torch.zeros(len(own[name.ours.replace(".bias", ".weight")]))
    return views
