"""Where a model lies: `open_source(spec)` finds it once, and then gives its shape, its tokenizer, and the model.

Read it from top to bottom: which path or name is meant; what a source can give; and how the tensors of each kind of
source are found, checked, and renamed to the names of the transformers library, which most files have.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from minigpt.config import GPTConfig, RunConfig, Weights, read_yaml
from minigpt.data.corpora import are_documents
from minigpt.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    MiniGPTError,
    MissingFileError,
    ModelNote,
    brief,
    named,
    near,
    passed,
    quoted,
)
from minigpt.fields import check_value
from minigpt.formats.config_json import (
    CARRIED,
    DifferentRates,
    carried_from,
    checked_config,
    config_from_transformers,
    different_rates,
    further_parts,
    keep_carried,
    listed_ends,
    read_carried,
    with_end,
)
from minigpt.formats.gpt2_names import names, transformers_views
from minigpt.formats.hub import CONFIG, HUB_NAMES, OTHER_NAME, TOKENIZER, TOKENIZER_EXTRAS, WEIGHTS, fetch_model
from minigpt.formats.lora_files import CONFIG as ADAPTER
from minigpt.formats.lora_files import WEIGHTS as ADAPTER_WEIGHTS
from minigpt.formats.lora_files import adapter_folder, adapter_settings, adapters_at, base_of, load_adapter
from minigpt.formats.run_directory import (
    CHECKPOINTS,
    RunDirectory,
    read_config,
    run_named,
    run_of,
    run_of_adapter,
    run_weights,
)
from minigpt.formats.tokenizer_files import ForeignTokenizerError, has_tokenizer, load_hf_tokenizer, named_tokenizer
from minigpt.formats.weights import (
    StoredTensor,
    check_table,
    fill,
    load_torch_file,
    open_weights,
    read_into,
    stored_tensors,
)
from minigpt.lora import merged
from minigpt.model import GPT
from minigpt.packed import PackedGPT, pack
from minigpt.parameters import empty_model, shapes_alone
from minigpt.system.files import listed, named_path
from minigpt.tokenizers import (
    END_OF_TEXT,
    GPT2Tokenizer,
    Tokenizer,
    check_has_tokenizer,
    check_vocabulary,
    load_tokenizer,
)

GPT2_VOCABULARIES = (50257, 50304)  # GPT-2's own, and padded to a multiple of 64, which is also one of 128

# What wrappers put before a name: torch.compile, data parallelism, and transformers itself or its bare trunk.
_PREFIXES = re.compile(r"^(?:(?:_orig_mod|module|transformer)\.)+")
# How one of several files of a model is called, with their number.
_PART = re.compile(r"-\d{5}-of-(\d{5})\.")
# Causal masks, which older files contain. c_attn.bias is not one of them.
_BUFFERS = re.compile(r"h\.\d+\.attn\.(?:bias|masked_bias)")


class AssumedHeads(ModelNote):
    """The number of heads was assumed, because weights without a configuration do not show it."""


def open_source(spec: str | Path) -> "Source":
    """Find where a model lies. Nothing of it is read yet, and the hub is not asked before it is needed.

    Args:
        spec: which model; see `minigpt.load_model`.

    Raises:
        MissingFileError: if it is no path that exists, no run in checkpoints/, and no possible name on the hub.
        InputError: if it is no path, or no file can have this name.
    """
    name = str(spec) if isinstance(spec, Path) else run_named(spec)
    path = named_path(name, "model")
    if spec and os.path.exists(path):
        return Source(name, path)
    if isinstance(spec, Path) or _looks_like_a_path(name):
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise MissingFileError(f"{name} does not exist{where}", f"check the path; trained runs lie in {CHECKPOINTS}/")
    if name in HUB_NAMES or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return Source(name, None)
    runs = sorted(run.name for run in CHECKPOINTS.glob("*") if run_of(run))
    hint = f"{near(name, [*HUB_NAMES, *runs])}known: {', '.join(HUB_NAMES)}"
    raise MissingFileError(f"there is no model {name!r}", f"{hint}; others on the hub are ORG/NAME, or give a path")


def lasting_model(spec: str) -> str:
    """The name of a model as one that stays valid in any working directory; "", or what is not there, as it is."""
    with suppress(MissingFileError):
        return open_source(spec).lasting if spec else ""
    return spec


def is_of_model(path: Path) -> bool:
    """Whether a file is one of those that a run or the folder of a model or an adapter consists of."""
    run = RunDirectory(path.parent)
    if not any(os.path.lexists(path.parent / name) for name in (*WEIGHTS, ADAPTER_WEIGHTS, run.metrics.name)):
        return False
    own = (run.tokenizer, run.carried, run.plot, run.perplexity_plot)
    return path.name in {*WEIGHTS, *TOKENIZER, *TOKENIZER_EXTRAS, *CARRIED, ADAPTER, *(file.name for file in own)}


def _looks_like_a_path(name: str) -> bool:
    first, *rest = Path(name).parts or [""]
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.endswith((".safetensors", ".bin", ".pt"))
        or (bool(rest) and (os.path.exists(first) or first == str(CHECKPOINTS)))  # a run, but not from here
    )


class Loading(TypedDict, total=False):
    """What `load` and `load_for_text` may be asked for; see `minigpt.load_model`."""

    tokenizer: str | Path | None
    block_size: int | None
    dropout: float | None
    weights: Weights | None
    adapter: str | Path | None


@dataclass(frozen=True)
class Source:
    """Where a model lies: in a run, a folder in transformers' layout, one file, or on the hub.

    Its methods and properties raise the errors of `minigpt.load_model`.

    Attributes:
        name: as the user gave it; for a run that was given by its name alone, its path.
        local: the file or folder of that name; None for a model on the hub.
    """

    name: str
    local: Path | None

    def _repr_html_(self) -> str | None:
        """What a notebook shows: of a run its losses and its newest sample; of any other source the usual line."""
        return self.run._repr_html_() if self.run else None

    @cached_property
    def path(self) -> Path:
        """The file or folder; a model on the hub is downloaded first, unless it is in the cache."""
        return self.local or fetch_model(self.name)

    @property
    def folder(self) -> Path:
        """The folder of the model: `path`, or the folder that contains it."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def lasting(self) -> str:
        """A name that stays valid in any working directory."""
        return str(self.local.absolute()) if self.local else self.name

    @cached_property
    def run(self) -> RunDirectory | None:
        """The run that the model belongs to, or None; a model on the hub belongs to none."""
        return run_of(self.local) if self.local else None

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter, if the run trains one; it exists after the first evaluation."""
        return self.run.adapter if self.run and read_config(self.run).train.lora_rank else None

    @property
    def transformers_folder(self) -> Path | None:
        """The folder in transformers' layout, which that library reads too; None for a run or a file."""
        is_one = self.path.is_dir() and not self.run and os.path.lexists(self.path / CONFIG)
        return self.path if is_one else None

    @property
    def carried(self) -> dict[str, dict[str, Any]]:
        """The settings of transformers that came with the model, by file; see `config_json.carried_from`.

        A run that trains an adapter, and began when nobody kept those of its base, gives what the base says now.
        """
        return self._carried(None)

    def _carried(self, base: "Source | None") -> dict[str, dict[str, Any]]:
        """`carried`, with the base of an adapter where it lies now, unless that is where the run says."""
        if self._recorded or not (self.run and self.adapter):
            return self._recorded
        config = read_config(self.run)
        learned = are_documents(config.documents.separate, config.data.source)
        end = load_tokenizer(self.run.tokenizer).eos_token_id if learned else None
        return with_end((base or open_source(config.init_from)).carried, end)

    @property
    def _recorded(self) -> dict[str, dict[str, Any]]:
        """Those that lie with the model itself; of a file, beside it. nanoGPT's has its settings in it."""
        if self.run:
            return read_carried(self.run.carried) if os.path.lexists(self.run.carried) else {}
        beside = self.path.suffix != ".pt" and os.path.lexists(self.folder / CONFIG)
        return carried_from(self.folder) if beside else {}

    @property
    def trained(self) -> RunConfig | None:
        """What a run, or an import of one, was trained on, and how; None of any other model."""
        config = read_config(self.run) if self.run else None
        return config if self.run and "data" in read_yaml(self.run.config) else None

    @property
    def config(self) -> GPTConfig:
        """The shape; weights are read only if no file beside them describes it."""
        return self.shape()

    def _longest(self) -> int:
        """The most tokens that `load` can make it read: of a run with an adapter, those of its base."""
        if self.run and self.adapter:
            return open_source(read_config(self.run).init_from)._longest()
        return self.config.block_size

    def shape(self, rates_may_differ: bool = False) -> GPTConfig:
        """`config`; with `rates_may_differ`, a config.json whose three dropout rates differ gives the first of them."""
        if self.run:
            return read_config(self.run).model
        if folder := self.transformers_folder:
            return config_from_transformers(folder / CONFIG, rates_may_differ)
        weights = _open(self, rates_may_differ)
        if weights.note is not None:
            warnings.warn(weights.note, stacklevel=3)
        return weights.config

    def tokenizer(self, wanted: str | Path | None = None, *, needs_text: bool = False) -> Tokenizer | None:
        """The tokenizer, without the model; the arguments are those of `load`."""
        if wanted is None and self.local is None and self.name in OTHER_NAME:
            return GPT2Tokenizer()  # all of these models have it
        return self._tokenizer(self.shape(rates_may_differ=True).vocab_size, wanted, needs_text)

    def load(
        self,
        *,
        tokenizer: str | Path | None = None,
        block_size: int | None = None,
        dropout: float | None = None,
        weights: Weights | None = None,
        adapter: str | Path | None = None,
        needs_text: bool = False,
    ) -> tuple[GPT, Tokenizer | None]:
        """The model and its tokenizer, which must be there if `needs_text`; see `minigpt.load_model`."""
        check_value("weights", weights, Weights | None, InputError)
        options: Loading = {"tokenizer": tokenizer, "block_size": block_size, "dropout": dropout}
        if adapter is not None:
            folder = adapter_folder(adapter)
            adapter_settings(folder)  # raises now, before any weights are read, or downloaded
            run = run_of_adapter(folder)
            if run and not os.path.lexists(run.tokenizer):  # the adapter was copied without what it needs of its run
                run = None
            brought = run.tokenizer if run else folder if has_tokenizer(folder) else None
            if tokenizer is None:
                options["tokenizer"] = brought
            elif run:
                own = None
                with suppress(MiniGPTError):  # the named one is used in the place of one that cannot be read
                    own = load_tokenizer(run.tokenizer)
                _check_same(own, named_tokenizer(tokenizer), run.path, tokenizer, f"leave {named('tokenizer')} out")
            if run and block_size is None:  # its positions beyond those of the run were never trained with the adapter
                with suppress(MiniGPTError), warnings.catch_warnings(action="ignore"):
                    options["block_size"] = min(read_config(run).model.block_size, self._longest())
            try:
                model, chosen = self.load(**options, needs_text=needs_text)
            except CheckpointError:
                if tokenizer is None and brought:  # which is another because this may not be the adapter's base
                    load_adapter(self.load(block_size=block_size, dropout=dropout)[0], folder)
                raise
            load_adapter(model, folder)
            if run:
                keep_carried(model, Source(str(run.path), run.path)._carried(self), chosen)
            elif brought and tokenizer is None:
                own = None
                with suppress(MiniGPTError), warnings.catch_warnings(action="ignore"):
                    own = self.tokenizer()
                keep_carried(model, self.carried, own)  # whose they are, whatever the adapter brings
            return (pack(model, weights, keep=False) if weights else merged(model)), chosen
        if self.run and self.adapter:
            return self._load_adapted(self.run, {**options, "weights": weights})
        found = _adjusted(_open(self, rates_may_differ=True), block_size, dropout)
        chosen = self._tokenizer(found.config.vocab_size, tokenizer, needs_text)
        if needs_text:
            check_has_tokenizer(chosen, self.name)
        model = found.packed(weights) if weights else found.plain()
        keep_carried(model, self.carried, chosen)
        for note in self._notes(found, chosen):
            warnings.warn(note, stacklevel=3)
        return model.eval(), chosen

    def load_for_text(self, **options: Unpack[Loading]) -> tuple[GPT, Tokenizer]:
        """`load` for what reads or writes text: without a tokenizer, an InputError before any weights are read."""
        model, chosen = self.load(**options, needs_text=True)
        return model, check_has_tokenizer(chosen, self.name)

    def _load_adapted(self, run: RunDirectory, options: Loading) -> tuple[GPT, Tokenizer]:
        """The base of a run, with the run's best adapter merged into it."""
        base = read_config(run).init_from
        if self.path != run.path:
            raise CheckpointError(
                f"{self.path} belongs to a run that trains an adapter: one can resume from it, but it is no model",
                f"name {run.path}, which means its best adapter, or go on: minigpt train --resume {quoted(run.path)}",
            )
        if not os.path.lexists(run.adapter):
            raise MissingFileError(
                f"{run.path} has no adapter: its evaluations make it",
                f"go on with minigpt train --resume {quoted(run.path)}",
            )
        try:
            source = open_source(base)
        except MissingFileError:
            raise MissingFileError(
                f"{run.adapter} adapts {base}, which is not there any more",
                f"put it back, or write where it is now as init_from into {run.config}, or name both: "
                f"minigpt generate --model BASE --adapter {quoted(run.adapter)}",
            ) from None
        here: Loading = {"adapter": run.adapter}
        return source.load_for_text(**options | here)

    def _tokenizer(self, vocab_size: int, wanted: str | Path | None, needs_text: bool = False) -> Tokenizer | None:
        """The tokenizer that is named, else the one that comes with the model, else GPT-2's if it certainly fits.

        If there is none, a note says why; not if `needs_text`, because then that is an error.
        """
        # Settings without a vocabulary belong to a tokenizer of another kind, such as SentencePiece.
        described = any(os.path.lexists(self.folder / file) for file in (*TOKENIZER, *TOKENIZER_EXTRAS))
        why = "with settings of one" if described else f"its {vocab_size:,} ids are not GPT-2's"
        lacking = f"{self.path} comes without a tokenizer, and {why}"
        try:
            chosen = self._own_tokenizer() if wanted is None else self._agreed_tokenizer(wanted, vocab_size)
        except ForeignTokenizerError as error:
            if wanted is not None or needs_text:
                raise
            chosen, lacking = None, error.what
        if chosen is None and vocab_size in GPT2_VOCABULARIES and not described:
            chosen = GPT2Tokenizer()
            note = f"{self.path} comes without a tokenizer: GPT-2's is used, because it usually has {vocab_size:,} ids"
            warnings.warn(ModelNote(note), stacklevel=4)
        if chosen is None and not needs_text:
            note = f"{lacking}; only ids go in and out (--tokenizer, or tokenizer= in Python, names one)"
            warnings.warn(ModelNote(note), stacklevel=4)
        if chosen is None:
            return None
        check_vocabulary(chosen, vocab_size, self.path)
        ends = listed_ends(self._recorded, chosen.vocab_size)
        return chosen.with_ends(ends) if ends else chosen

    def _own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that comes with the model, or None."""
        if self.run:
            return load_tokenizer(self.run.tokenizer)
        return load_hf_tokenizer(self.folder) if has_tokenizer(self.folder) else None  # an incomplete one is an error

    def _agreed_tokenizer(self, wanted: str | Path, vocab_size: int) -> Tokenizer:
        """The tokenizer that is named; an error if the model comes with a different one."""
        chosen = named_tokenizer(wanted)
        try:
            own = self._own_tokenizer()
            if own is not None:
                check_vocabulary(own, vocab_size, self.path)
        except MiniGPTError:
            own = None  # it does not exist, cannot be read or does not fit, so the named one is used
        how = f"use the model's own: {passed('tokenizer', str(self.folder))}"
        _check_same(own, chosen, self.path, wanted, how)
        if own is None or chosen.added:  # both give the same ids; one may name more special tokens
            return chosen
        return own.with_added(own.added, {**own.settings, **chosen.settings})

    def _notes(self, weights: "_StoredModel", tokenizer: Tokenizer | None) -> Iterator[ModelNote]:
        """Notes on what may surprise in a model that was loaded with this tokenizer."""
        if weights.note is not None:
            yield weights.note
        if tokenizer is None:
            return  # which was said before
        path, size = weights.path, weights.config.vocab_size
        spare, names = size - tokenizer.vocab_size, [token.content for token in tokenizer.added]
        if not self.run and spare and (names or spare >= 128 or size % 8):
            some = f" ({listed([repr(name)[:40] for name in names])})" if names else ""
            own = [tokenizer.special_id(role) for role in ("bos_token", "eos_token")]
            others = [repr(names[i - tokenizer.vocab_size]) for i in own if i is not None and i >= tokenizer.vocab_size]
            if not others or tokenizer.eos_token_id is None:
                ends = ""
            else:
                ends = f"; documents begin and end with {END_OF_TEXT}, not with {' and '.join(others)}"
            yield ModelNote(
                f"{spare:,} of the {size:,} ids of {path} stand for no text{some}: `encode` never gives them, and they "
                f"are never drawn{ends}"
            )


def _check_same(own: Tokenizer | None, chosen: Tokenizer, path: Path, wanted: str | Path, how: str) -> None:
    """Refuse another tokenizer than what lies at a path comes with, if it comes with one."""
    if own is not None and chosen.fingerprint() != own.fingerprint():
        raise CheckpointError(
            f"{path} comes with the tokenizer {own.fingerprint()[:12]} (fingerprint), and {wanted} is "
            f"{chosen.fingerprint()[:12]}",
            how,
        )


# --- its weights


@dataclass(frozen=True)
class _StoredModel:
    """The tensors of a model in its files; their values are not read yet.

    Attributes:
        path: the file.
        config: the shape.
        stored: the tensors, by transformers' names, without prefixes.
        conv1d: whether they have transformers' orientation.
        how: what to check if the tensors do not fit the shape, as the second line of an error.
        note: a warning about the model, or None.
    """

    path: Path
    config: GPTConfig
    stored: dict[str, StoredTensor]
    conv1d: bool
    how: str
    note: ModelNote | None = None

    def plain(self) -> GPT:
        """A model with these weights."""
        model = empty_model(self.config)
        fill(self._targets(model), self.stored, self.path, self.how)
        return model

    def packed(self, weights: Weights) -> PackedGPT:
        """The same, packed: the plain weights of one layer at a time are all that is read into memory."""
        with shapes_alone():
            shape = GPT(self.config)
        targets = self._targets(shape)
        check_table(targets, self.stored, self.path, self.how)
        theirs = {name.ours: (_bare(name.theirs), name.conv1d and self.conv1d) for name in names(self.config.n_layer)}

        def read(part: str, rows: slice) -> dict[str, Tensor]:
            tensors = {}
            for key, expected in shape.get_submodule(part).named_parameters(recurse=False):
                name, transposed = theirs[f"{part}.{key}"]
                found, target = self.stored[name], torch.empty(expected[rows].shape)
                if transposed:  # such a layer is always read whole
                    read_into(target.T, name, found, self.path)
                else:
                    read_into(target, name, found.rows(*rows.indices(len(expected))[:2]), self.path)
                tensors[key] = target
            return tensors

        return PackedGPT(self.config, weights, read)

    def _targets(self, model: GPT) -> dict[str, Tensor]:
        """Where in a model the tensor of each name belongs."""
        return {_bare(name): view for name, view in transformers_views(model, self.conv1d).items()}


def _open(source: Source, rates_may_differ: bool) -> _StoredModel:
    path = source.path
    if source.run:
        return _open_run(source.run, source.folder)
    if not source.transformers_folder and (found := adapters_at(path)):
        run = run_of_adapter(found[0])
        raise CheckpointError(
            f"{path} holds an adapter, and no model",
            f"name its run, {run.path}, which means the base with it"
            if run
            else "name its base, and it as the adapter: minigpt generate "
            f"--model {quoted(base_of(found[0]) or 'MODEL')} --adapter {quoted(found[0])}; "
            f"or in Python, load_adapter(model, {str(found[0])!r})",
        )
    if path.is_dir():
        files = [name for name in path.iterdir() if name.suffix in (".safetensors", ".bin", ".pt")]
        if [name.suffix for name in files] != [".pt"] or os.path.lexists(path / CONFIG):
            return _open_folder(path, rates_may_differ)
        (path,) = files  # as in the folder that nanoGPT's training writes, whose file tells the shape
    if (part := _PART.search(path.name)) and int(part[1]) > 1:
        raise CheckpointError(f"{path} is one of {int(part[1])} parts of a model", f"name its folder: {path.parent}")
    if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
        return _open_state(path, open_weights(path), rates_may_differ)
    if path.suffix in (".bin", ".pt"):
        content = load_torch_file(path)
        if isinstance(content, dict) and "model_args" in content:
            return _open_nanogpt(path, content)
        return _open_state(path, stored_tensors(content, path), rates_may_differ)
    known = os.path.lexists(path.parent / CONFIG) or run_of(path.parent)
    where = f"its folder, {path.parent}" if known else "a folder"
    raise CheckpointError(f"{path} is no model", f"name {where}, or a file that ends in .safetensors, .bin or .pt")


def _open_run(run: RunDirectory, folder: Path) -> _StoredModel:
    weights, how = run_weights(run, folder), "use the config.yaml that lies beside these weights"
    stored = _bare_names(open_weights(weights), weights)
    return _checked(_StoredModel(weights, read_config(run).model, stored, conv1d=False, how=how))


def _open_folder(folder: Path, rates_may_differ: bool) -> _StoredModel:
    present = sorted(path.name for path in folder.iterdir())
    weights = next((name for name in WEIGHTS if name in present), None)
    if CONFIG not in present or weights is None:
        lacking = "config.yaml (of a run) nor config.json" if CONFIG not in present else " nor ".join(WEIGHTS)
        numbers = [int(name[11:]) for name in present if re.fullmatch(r"checkpoint-\d+", name)]  # of a Trainer
        raise MissingFileError(
            f"{folder} holds no model: it has neither {lacking}, but {listed(present) or 'nothing'}",
            f"name its newest checkpoint, {folder / f'checkpoint-{max(numbers)}'}"
            if numbers
            else "name a run directory, a folder that a model of the hub was copied into, or one weights file",
        )
    return _open_state(folder / weights, open_weights(folder / weights), rates_may_differ)


def _open_state(path: Path, state: Mapping[str, StoredTensor], rates_may_differ: bool) -> _StoredModel:
    """Weights under transformers' names; config.json, if there is one, lies beside them."""
    stored, config_path = _bare_names(state, path), path.parent / CONFIG
    note: ModelNote | None
    if os.path.lexists(config_path):  # a link to nowhere is an error, not a reason to guess
        config, note = config_from_transformers(config_path, rates_may_differ), different_rates(config_path)
        how = f"check that {config_path} belongs to these weights"
        if other := further_parts(config_path):
            how = f"{config_path} calls it a {other}: load it as transformers' GPT2LMHeadModel, and save that"
    else:
        config, how = _config_from_tensors(stored, path), f"put the {CONFIG} of this model beside it"
        note = AssumedHeads(f"{path} has no {CONFIG} beside it: {config.n_head} heads, each 64 wide, were assumed")
    return _checked(_StoredModel(path, config, stored, conv1d=True, how=how, note=note))


def _open_nanogpt(path: Path, checkpoint: Mapping[str, Any]) -> _StoredModel:
    """A checkpoint of nanoGPT: transformers' names, orientation of nn.Linear, the shape under "model_args"."""
    arguments = checkpoint["model_args"]
    fields = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
    usual = {"dropout": 0.0, "bias": True}  # nanoGPT's own, where an older one does not say
    if not isinstance(arguments, dict) or "model" not in checkpoint or any(key not in arguments for key in fields):
        raise CheckpointError(
            f"{path} is no checkpoint of nanoGPT: that has a state dict under 'model', and under 'model_args' "
            f"{', '.join(fields)}",
            "name the ckpt.pt that nanoGPT's train.py wrote",
        )
    # A fork's own, of which nobody here knows what they change: rotary positions, for example, fit the same tensors.
    if unknown := [f"{key} = {brief(value)}" for key, value in arguments.items() if key not in (*fields, *usual)]:
        raise CheckpointError(
            f"{path} does not describe a model that minigpt can compute: its model_args say {listed(unknown, '; ')}, "
            "which nanoGPT does not know",
            "name a checkpoint of nanoGPT itself; or if they change no number of it, take them out of its model_args",
        )
    stored = _bare_names(stored_tensors(checkpoint["model"], path), path)
    shape = {key: arguments.get(key, usual.get(key)) for key in (*fields, *usual)}
    config = checked_config(path, **shape, tie_weights=_take_tied_head(stored))
    how = "its model_args do not belong to its tensors: name the ckpt.pt that train.py wrote"
    note = ModelNote(
        "nanoGPT computes the erf form of GELU, this model the tanh form: logits differ in about the third decimal"
    )
    return _checked(_StoredModel(path, config, stored, conv1d=False, how=how, note=note))


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


def _sizes(stored: Mapping[str, StoredTensor], path: Path) -> dict[str, int]:
    """What the tensors say about the shape: all of it except the number of heads."""
    sizes: dict[str, int] = {}
    for name, rows in (("wte.weight", "vocab_size"), ("wpe.weight", "block_size")):
        if name in stored and len(stored[name].shape) == 2:
            sizes[rows], sizes["n_embd"] = stored[name].shape
    if layers := {match[1] for name in stored if (match := re.match(r"h\.(\d+)\.", name))}:
        sizes["n_layer"] = len(layers)
    if len(sizes) < 4:
        raise CheckpointError(
            f"{path} does not hold the weights of a GPT-2: it lacks the matrices wte.weight or wpe.weight, or layers "
            f"from h.0 on; it has {listed(sorted(stored)) or 'nothing'}",
            "name a whole model of GPT-2's architecture, in the names of the transformers library or of nanoGPT",
        )
    return sizes


def _config_from_tensors(stored: dict[str, StoredTensor], path: Path) -> GPTConfig:
    _name_the_embedding(stored)
    sizes = _sizes(stored, path)
    if sizes["n_embd"] % 64:
        raise CheckpointError(
            f"{path} alone does not tell the shape of a GPT-2: n_embd = {sizes['n_embd']} is no multiple of 64",
            f"put the {CONFIG} of this model beside it",
        )
    return checked_config(path, **sizes, n_head=sizes["n_embd"] // 64, tie_weights=_take_tied_head(stored))


def _name_the_embedding(stored: dict[str, StoredTensor]) -> None:
    """Give a tied matrix that lies under the head's name alone, as safetensors itself keeps it, its own name."""
    if "lm_head.weight" in stored:
        stored.setdefault("wte.weight", stored["lm_head.weight"])


def _take_tied_head(stored: dict[str, StoredTensor]) -> bool:
    """Whether the output head is the token embedding: it is left out, or is the same again, and is then taken out."""
    embedding, head = stored.get("wte.weight"), stored.get("lm_head.weight")
    if head is not None and (embedding is None or len(head.shape) != 2 or not head.equals(embedding)):
        return False
    stored.pop("lm_head.weight", None)
    return True


def _checked(weights: _StoredModel) -> _StoredModel:
    """Check that configuration and tensors agree, and leave a tied head out.

    Sizes are compared before a model is made, because a wrong size could need any amount of memory.
    """
    config = weights.config
    if config.tie_weights:
        _name_the_embedding(weights.stored)
    differing = [
        f"{key} = {getattr(config, key)} there, {size} here"
        for key, size in _sizes(weights.stored, weights.path).items()
        if getattr(config, key) != size
    ]
    if differing:
        raise CheckpointError(f"the configuration disagrees with {weights.path}: {'; '.join(differing)}", weights.how)
    if config.tie_weights and not _take_tied_head(weights.stored):
        raise CheckpointError(
            f"the configuration disagrees with {weights.path}: it says that the output head is the token embedding, "
            "but lm_head.weight differs from wte.weight",
            weights.how,
        )
    return weights


def _adjusted(weights: _StoredModel, block_size: int | None, dropout: float | None) -> _StoredModel:
    """The weights with a shorter context, or another dropout."""
    changes: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    stored = dict(weights.stored)
    if block_size is not None:
        changes["block_size"] = block_size
    config = dataclasses.replace(weights.config, **changes)  # this checks their types and bounds
    if config.block_size > weights.config.block_size:
        raise ConfigError(
            f"{named('block_size', block_size)} is more than the model's {weights.config.block_size}",
            f"choose at most {weights.config.block_size}: the model has no position embedding beyond that",
        )
    if "wpe.weight" in stored:
        stored["wpe.weight"] = stored["wpe.weight"].rows(0, config.block_size)
    note = None if isinstance(weights.note, DifferentRates) and dropout is not None else weights.note
    return dataclasses.replace(weights, config=config, stored=stored, note=note)
