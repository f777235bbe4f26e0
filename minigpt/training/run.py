"""A run: everything that the training loop works on, set up from a seed, from a model, or from a checkpoint."""

import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from minigpt.config import LoRAConfig, RunConfig, TrainConfig, check_has_base
from minigpt.data.batches import NOTHING, Batch
from minigpt.data.corpora import DIALOGUE_SOURCES, NAMED_SOURCES, Corpus, kind_of, source_name
from minigpt.data.dialogues import NAMES, check_template, heading, with_template
from minigpt.data.documents import Document, Documents, data_checksum, keyword_line, parted
from minigpt.data.loaders import Loader, TextLoader, document_loader, text_loader
from minigpt.data.sources import load_data
from minigpt.data.tokens import prepare, split_at
from minigpt.errors import (
    ConfigError,
    MiniGPTError,
    MissingFileError,
    TextNote,
    counted,
    did_you_mean,
    first_line,
    named,
)
from minigpt.formats.config_json import inherited
from minigpt.formats.lora_files import base_checksum
from minigpt.formats.run_directory import RunDirectory, read_config
from minigpt.formats.source import Source, open_source
from minigpt.kv_cache import KVCache
from minigpt.lora import adapters, add_lora
from minigpt.model import GPT
from minigpt.parameters import empty_model, in_words, trainable_parameters
from minigpt.system.device import autocast, choose_dtype, keep_freed_memory, why_dtype
from minigpt.tokenizers import (
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    check_has_tokenizer,
    load_tokenizer,
    note_special,
)
from minigpt.training import steps
from minigpt.training.checkpoint import Checkpoint, Progress, RunLock, circumstances
from minigpt.training.distributed import READING, Processes, parallel, whole
from minigpt.training.kernels import Kernels, best_here
from minigpt.training.log import PrintLine
from minigpt.training.optim import make_optimizers
from minigpt.training.teachers import NO_TEACHERS, Teachers, find_teachers, load_teachers

TOKEN_FOLDER = Path("data") / "tokens"


@dataclass(frozen=True)
class Run:
    """Everything that the loop works on."""

    config: RunConfig
    directory: RunDirectory
    tokenizer: Tokenizer
    loader: Loader
    origins: dict[str, Any]  # where the run comes from, as every checkpoint records it; see `set_up`
    model: GPT
    forward: nn.Module  # the model, or a module that replaces it in training, with the same weights
    optimizers: list[torch.optim.Optimizer]
    device: torch.device
    dtype: torch.dtype  # of the matrix products
    processes: Processes
    kernels: Kernels = "torch"  # by which steps compute
    teachers: Teachers = NO_TEACHERS
    carried: Mapping[str, Any] = field(default_factory=dict)  # settings that the model to start from came with
    lock: RunLock | None = None  # of the first process, which writes the directory

    @property
    def rows_per_step(self) -> int:
        """Rows that an optimizer step learns from, in all processes together; see `rows_of_step`."""
        return self.config.train.batch_size * self.config.train.accumulation_steps

    @property
    def rows_to_read(self) -> int:
        """Number of rows in all epochs asked for; 0 if steps are counted."""
        return rows_in(self.config.train.epochs, self.loader.rows_per_epoch)

    def rows_of_step(self, first: int) -> int:
        """Rows of the step that begins with row `first`: fewer than the others where an epoch ends.

        With documents, and where epochs are counted, no step reaches into the next epoch. A text of which only the
        steps are counted is read without an end.
        """
        most, rows = self.rows_per_step, self.loader.rows_per_epoch
        if self.config.train.epochs:
            most = min(most, self.rows_to_read - first)
        elif isinstance(self.loader, TextLoader):
            return most
        return min(most, rows - first % rows)

    @property
    def evaluation_share(self) -> tuple[int, int]:
        """(i, n): this process computes part i of n of an evaluation.

        Under fsdp it is (0, 1), all of it, because every pass needs every process.
        """
        return (0, 1) if self.config.train.parallel == "fsdp" else (self.processes.rank, self.processes.size)

    def micro_batches(self, step: int, first: int, processes: Processes) -> Iterator[Batch]:
        """One process's share of the step after `step` others, which begins with row `first`."""
        t = self.config.train
        short = isinstance(self.loader, TextLoader) and step < t.short_windows * t.max_steps
        size, count = processes.share(t.batch_size, t.accumulation_steps)
        stop, everybody = first + self.rows_of_step(first), size * processes.size
        for start in range(first, min(stop, first + count * everybody), everybody):
            own = min(start + processes.rank * size, stop)
            batch = self.loader.batch(own, min(size, stop - own)) if own < stop else NOTHING
            if short and batch is not NOTHING:
                batch = batch.halved()
            positions = None if batch.positions is None else batch.positions.to(self.device, non_blocking=True)
            inputs, targets = (part.to(self.device, non_blocking=True) for part in (batch.inputs, batch.targets))
            yield Batch(inputs, targets, positions)


def set_up(
    config: RunConfig,
    data: Corpus | Documents,
    directory: RunDirectory,
    processes: Processes,
    device: torch.device,
    print_line: PrintLine,
    checkpoint: Checkpoint | None,
) -> Run:
    """Everything that a run needs, from a seed, from a model, or from a checkpoint. Only token files are written.

    Returns:
        The run. Its `origins` are the circumstances, and the checksum of the corpus; of a run that trains an adapter,
        that of its base; of one with teachers, theirs; and of one on documents, the batch size that their order is made
        for.
    """
    processes.share(config.train.batch_size, config.train.accumulation_steps)  # raises now, before any work
    keep_freed_memory()
    dtype = choose_dtype(config.dtype, device)
    config, tokenizer, base, source = starting_point(config, data, directory, checkpoint)
    if processes.first:
        how = "put each text into a record of its own (.jsonl) without it, and its end is learned as the token"
        note_special(tokenizer, data.texts, how)
    kernels, why_kernels = which_kernels(config, processes, device, dtype)
    teaching = find_teachers(config, tokenizer, directory.path, resumed=checkpoint is not None)
    teachers = load_teachers(config, teaching, device, kernels)
    t, former = config.train, checkpoint.manifest if checkpoint else {}
    if checkpoint is not None and t.asked == t.teachers:
        checkpoint.check_teachers(teachers.checksums, t.teachers)
    config, loader, origins = read_data(config, data, tokenizer, processes, checkpoint)
    if processes.first and checkpoint is None:
        note_learned(config, data, [*([source] if source else []), *teaching])
    origins["versions"] = circumstances(processes, device, kernels)
    if t.teachers:
        origins["teachers"] = teachers.checksums if t.asked else former.get("teachers", [])
    if base is not None and t.lora_rank:
        origins["base"] = base_checksum(base)
    carried = inherited(base, tokenizer.eos_token_id if isinstance(data, Documents) else None)
    seed_everything(config.seed)
    model = make_model(config, base, checkpoint, origins).to(device)
    if t.gradient_checkpointing:
        recompute_blocks(model)
    forward, compiled = _compiled(model, config, processes, device, dtype)
    m, threads = config.model, torch.get_num_threads()
    size = f"{counted(m.n_layer, 'layer')}, {counted(m.n_head, 'head')}, width {m.n_embd}, block {m.block_size}"
    number = f"{str(dtype)[6:]} ({why_dtype(config.dtype, device)})"
    where = f"on {device.type}, {counted(threads, 'thread')}, {number}, {compiled}"
    if config.kernels != "torch":
        where += f", {why_kernels}"
    for line in loader.described:
        print_line(line)
    print_line(f"model      {model.num_parameters():,} parameters: {size}")
    if config.init_from:
        trained = f"{trainable_parameters(model):,} parameters are trained" + (", as adapters" if t.lora_rank else "")
        print_line(f"from       {config.init_from}; {trained}")
    if t.teachers:
        print_line(f"teachers   {', '.join(t.teachers)}; together {t.teacher_weight:g} of what is learned")
    print_line(f"computing  {where}" + (f", {processes.size} processes" if processes.size > 1 else ""))
    print_line(f"seed       {config.seed}")
    forward = parallel(model, forward, t.parallel, processes)
    optimizers = make_optimizers(model, t, dtype)  # of the parameters that each process has by now
    if checkpoint is not None:
        checkpoint.restore_optimizers(model, optimizers)
    if processes.rank > 0:  # each process draws its own dropout
        torch.manual_seed(config.seed + processes.rank)
    return Run(
        config, directory, tokenizer, loader, origins, model, forward, optimizers, device, dtype, processes, kernels,
        teachers, carried,
    )  # fmt: skip


def starting_point(
    config: RunConfig, data: Corpus | Documents, directory: RunDirectory, checkpoint: Checkpoint | None
) -> tuple[RunConfig, Tokenizer, GPT | None, Source | None]:
    """The settings with the model's shape, its tokenizer, and the model to start from and where it lies, if it is read.

    Raises:
        ConfigError: if an adapter is to be trained and there is no model to start from.
    """
    check_has_base(config)
    if config.init_from and (checkpoint is None or config.train.lora_rank):
        try:
            source = open_source(config.init_from)
        except MissingFileError as error:
            if checkpoint is None:
                raise
            how = f"put it back, or name where it is now as {named('init_from')}"
            raise MissingFileError(f"{directory.path} trains an adapter of a model, and {error.what}", how) from None
        base, tokenizer = source.load_for_text(block_size=config.model.block_size, dropout=config.model.dropout)
        return replace(config, model=base.config), _for_data(tokenizer, config), base, source
    return *before_weights(config, data, directory if checkpoint else None), None, None


def before_weights(
    config: RunConfig, data: Corpus | Documents, resumed: RunDirectory | None = None
) -> tuple[RunConfig, Tokenizer]:
    """The settings of a run that begins, or is resumed, with the model's shape, and its tokenizer: all without weights.

    Raises:
        ConfigError: if an adapter is to be trained and there is no model to start from.
    """
    check_has_base(config)
    if resumed:  # what it began from need not be there any more
        shape = replace(config.model, vocab_size=read_config(resumed).model.vocab_size)
        return replace(config, model=shape), load_tokenizer(resumed.tokenizer)
    if not config.init_from:
        tokenizer = _for_data(new_tokenizer(config, data), config)
        return replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size)), tokenizer
    source = open_source(config.init_from)  # its shape is in the settings, and may have more ids than the tokenizer
    return config, _for_data(check_has_tokenizer(source.tokenizer(needs_text=True), source.name), config)


def _for_data(tokenizer: Tokenizer, config: RunConfig) -> Tokenizer:
    """The tokenizer; one that learns dialogues has their template, which exports write.

    Raises:
        InputError: if it has another template.
    """
    if kind_of(config.documents.separate, config.data.source) != "dialogues":
        return tokenizer
    check_template(tokenizer, config.init_from)
    return with_template(tokenizer)


def read_data(
    config: RunConfig,
    data: Corpus | Documents,
    tokenizer: Tokenizer,
    processes: Processes,
    checkpoint: Checkpoint | None,
) -> tuple[RunConfig, Loader, dict[str, Any]]:
    """The settings with the data's checksum and with epochs in steps, the loader of the data, and the run's origins.

    Raises:
        ConfigError: if the data are not those that the settings name by their checksum, or more steps are done than are
            asked for.
        DataError: if a run that begins would validate on what it learns.
    """
    if isinstance(data, Corpus) and checkpoint is None:
        data.check_held_out()
    progress = checkpoint.progress if checkpoint else Progress()
    origins: dict[str, Any] = {"corpus": expected_checksum(config, data)}
    if isinstance(data, Documents):
        origins["laid_out_for"] = checkpoint.order_batch_size if checkpoint else config.train.batch_size
    with processes.first_goes_ahead(READING):
        loader = make_loader(config, data, tokenizer, origins.get("laid_out_for"))
    rows = loader.rows_per_epoch
    train = in_steps(config.train, rows, progress.step, progress.rows)
    done, asked, limit = float(progress.step), float(train.max_steps), "max_steps"
    if train.epochs:
        done, asked, limit = progress.rows / rows, rows_in(train.epochs, rows) / rows, "epochs"
    if done > asked:
        raise ConfigError(
            f"the run has taken {done:g} {limit.removeprefix('max_')}, more than the {asked:g} asked for",
            f"choose a larger {named(limit)}; steps cannot be undone",
        )
    return replace(config, data=replace(config.data, checksum=origins["corpus"]), train=train), loader, origins


def note_learned(config: RunConfig, data: Corpus | Documents, models: Sequence[Source]) -> None:
    """Say of models that a run began with, or learned from, that they have learned some of what validates in it.

    This is known of runs on the same data, which held out others of them; or on the same file or corpus, or its folder,
    read otherwise: with validation data of its own, or as one text.

    Args:
        config: the run's, with the checksum of its data.
        data: the run's.
        models: where the models lie.
    """
    for source in models:
        theirs = source.trained
        if theirs is None:
            continue
        alike = theirs.data.checksum == config.data.checksum
        before = data if alike else _read_before(theirs, config)
        if isinstance(data, Documents) and before:
            validating = parted(data, config.documents, config.seed)[1]
            if isinstance(before, Corpus):
                own = [set(_spoken(_last_part(one))) for one in validating]
                lines = set().union(*own).intersection(_spoken(before.text[: split_at(before, theirs.data)]))
                known = sum(bool(said) and said <= lines for said in own)
            else:
                learned = {one.dialogue or one for one in parted(before, theirs.documents, theirs.seed)[0]}
                known = sum((one.dialogue or one) in learned for one in validating)
            number = len(validating)
            what = "replies" if validating[0].dialogue else "documents"
            same = f"seed = {theirs.seed} and documents.val_size = {theirs.documents.val_size}"
        elif isinstance(data, Corpus) and isinstance(before, Corpus):
            text, border = before.text[: split_at(before, theirs.data)], split_at(data, config.data)
            held_out = data.text[border:]
            number, known = len(held_out), len(text) - border if data.text.startswith(text) else 0
            if not alike and held_out.strip() and held_out.strip() in text:
                known = number
            elif not alike and text in held_out:
                known = len(text)
            what = "characters"
            same = f"val_fraction = {theirs.data.val_fraction}"
        else:
            continue
        if known > 0:
            note = f"{source.name} has learned {known:,} of the {number:,} {what} that validate here: their loss tells"
            how = f"with {same}, they would be those that it held out" if alike else "validate on what it has not read"
            warnings.warn(TextNote(f"{note} little; {how}"), stacklevel=2)


def _spoken(text: str) -> Iterator[str]:
    """The lines of a text, without names: what a play and a log say alike, and documents and the text they are of."""
    parts = (line[line.rfind(": ") + 1 :].strip() for line in text.split("\n"))
    return (part for part in parts if part and not part.endswith(":"))


def _last_part(document: Document) -> str:
    """A document with its prompt, of which only the last turn if it has several."""
    return document.prompt[(document.turns or (0,))[-1] :] + document.text


def _read_before(theirs: RunConfig, config: RunConfig) -> Corpus | Documents | None:
    """What another run was trained on, if this one reads it, a part of it or more, there too, and it is as it was."""

    def lies(place: str) -> Path:
        return Path(DIALOGUE_SOURCES.get(place, place) if place in NAMED_SOURCES else os.path.realpath(place))

    former, places = lies(theirs.data.source), filter(None, (config.data.source, config.data.val_data))
    if any(own.is_relative_to(former) or former.is_relative_to(own) for own in map(lies, places)):
        with suppress(MiniGPTError):
            found = load_data(theirs)
            return found if data_checksum(found) == theirs.data.checksum else None
    return None


def expected_checksum(config: RunConfig, data: Corpus | Documents) -> str:
    """The checksum of the data.

    Raises:
        ConfigError: if the settings name another one.
    """
    found = data_checksum(data)
    if config.data.checksum not in ("", found):
        raise ConfigError(
            f"the data of {config.data.source} do not have the data.checksum of the settings",
            f"name the former data as {named('source')}, or train a new run on these, without {named('checksum')} in "
            "its settings",
        )
    return found


def make_model(config: RunConfig, base: GPT | None, checkpoint: Checkpoint | None, origins: Mapping[str, Any]) -> GPT:
    """A new model or the base, with an adapter and frozen parameters as asked for, and with a checkpoint's weights.

    Raises:
        CheckpointError: if the checkpoint is of another base, or of another architecture.
        ConfigError: if `freeze` names no parameter, or all of them.
    """
    t, model = config.train, GPT(config.model) if base is None else base
    if t.lora_rank:
        try:
            targets = tuple(_globs(t.lora_targets))
            add_lora(model, LoRAConfig(t.lora_rank, t.lora_alpha, t.lora_dropout, targets), config.seed)
        except ConfigError as error:  # which names the fields of LoRAConfig
            raise ConfigError(*error.renamed({name: named(f"lora_{name}") for name in vars(LoRAConfig())})) from None
    freeze(model, t.freeze)
    if checkpoint is not None:
        checkpoint.check_base(origins.get("base"), config.init_from)
        checkpoint.restore_weights(model)
    return model


def whole_model(model: GPT) -> GPT:
    """The model itself, or if each process has only a part of it, a whole copy; every process must call it."""
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return model
    copy = empty_model(model.config)
    for name, adapter in adapters(model).items():
        add_lora(copy, adapter, seed=0, name=name)
    with torch.no_grad():
        for mine, parameter in zip(copy.parameters(), model.parameters(), strict=True):
            mine.copy_(whole(parameter))
    return copy


def new_tokenizer(config: RunConfig, data: Corpus | Documents) -> Tokenizer:
    """The tokenizer of a new model. One of characters knows those of the data, and the line end behind documents."""
    if config.data.tokenizer == "gpt2":
        return GPT2Tokenizer()
    if isinstance(data, Corpus):
        return CharTokenizer.from_text(data.text)
    known = set("\n").union(*data.texts)
    if any(document.dialogue for document in data.items):  # who talks with it may have no other name
        known.update(*map(heading, NAMES.values()))
    if config.documents.keywords:  # they come in lower case, in a line whose other letters are minigpt's own
        known.update(keyword_line(["", ""]))
        for text in data.texts:
            known.update(text.lower())
    return CharTokenizer.from_text("".join(known))


def make_loader(
    config: RunConfig, data: Corpus | Documents, tokenizer: Tokenizer, order_batch_size: int | None = None
) -> Loader:
    """A text or documents as the numbered rows that a run reads; for documents, see `data.loaders.document_loader`.

    Raises:
        ConfigError: if a setting contradicts the model or another.
        DataError: if the data are too short.
        InputError: if the tokenizer does not know a character of it.
    """
    if isinstance(data, Documents):
        return document_loader(data, source_name(config.data.source), config, tokenizer, order_batch_size)
    return text_loader(
        data, config, tokenizer, *prepare(data, tokenizer, config.data, config.model.block_size, TOKEN_FOLDER)
    )


def rows_in(epochs: float, rows_per_epoch: int) -> int:
    """Number of rows in this many epochs, which need not be a whole number."""
    return math.ceil(round(epochs * rows_per_epoch, 6))  # 0.1 * 70 is a little more than 7


def in_steps(t: TrainConfig, rows_per_epoch: int, step: int = 0, rows: int = 0) -> TrainConfig:
    """The settings with epochs and shares turned into steps.

    Args:
        t: the settings.
        rows_per_epoch: of the data.
        step: steps taken already, of whatever size.
        rows: rows read in them. The steps to come read the rest, and the last of each epoch may be smaller.
    """
    if t.epochs:
        size, wanted = t.batch_size * t.accumulation_steps, rows_in(t.epochs, rows_per_epoch)
        begun = min(-rows % rows_per_epoch, max(0, wanted - rows))  # rows that the epoch begun has still to give
        whole_epochs, part = divmod(max(0, wanted - rows - begun), rows_per_epoch)
        per_epoch = _ceil_div(rows_per_epoch, size)
        max_steps = step + _ceil_div(begun, size) + whole_epochs * per_epoch + _ceil_div(part, size)
        try:
            t = replace(t, max_steps=max_steps, warmup_steps=0, eval_interval=per_epoch, save_interval=per_epoch)
        except ConfigError:
            raise ConfigError(
                f"{named('epochs', t.epochs)} of {rows_per_epoch:,} rows is {max_steps:,} steps of {size}",
                f"choose {named('epochs')} so that there is at least one step, and not endlessly many",
            ) from None
    if t.warmup_ratio:
        t = replace(t, warmup_steps=math.ceil(t.warmup_ratio * t.max_steps))
    return t


def _ceil_div(a: int, b: int) -> int:
    """The quotient a / b, rounded up."""
    return -(-a // b)


def freeze(model: GPT, patterns: str) -> None:
    """Keep the parameters whose names match one of the globs, which stand between commas, from training.

    Raises:
        ConfigError: if a glob matches no parameter, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in _globs(patterns):
        matching = [parameter for name, parameter in parameters.items() if fnmatchcase(name, pattern)]
        if not matching:
            what = f"{named('freeze', pattern)} matches no parameter"
            raise ConfigError(what, did_you_mean(pattern, list(parameters)[:9]))
        for parameter in matching:
            parameter.requires_grad_(False)
    if trainable_parameters(model) == 0:
        raise ConfigError(f"{named('freeze', patterns)} leaves nothing to train", "freeze less")


def _globs(words: str) -> list[str]:
    """The globs in a text, which are separated by commas."""
    return [glob.strip() for glob in words.split(",") if glob.strip()]


def recompute_blocks(model: GPT) -> None:
    """Keep only the inputs of the blocks for the backward pass, and compute the rest again (Chen et al., 2016)."""
    for block in model.h:
        block.forward = partial(_recomputed, block.forward)


@in_words("")
def _recomputed(forward: Callable[..., Tensor], x: Tensor, positions: Tensor, cache: KVCache | None = None) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, positions, cache)
    y: Tensor = recompute(forward, x, positions, cache, use_reentrant=False)
    return y


def seed_everything(seed: int) -> None:
    """Seed every global random state. minigpt only draws from torch's, but a changed loop may use others."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_kernels(config: RunConfig, processes: Processes, device: torch.device) -> Kernels:
    """Who computes a step's layers: as asked; auto takes others than torch's where they fit and were measured to win.

    A run records the answer, so a resume computes as before, on another processor too.
    """
    if config.kernels != "auto":
        return config.kernels
    fits, _ = which_kernels(replace(config, kernels="fast"), processes, device, choose_dtype(config.dtype, device))
    if fits == "torch":  # asked first: on a GPU, nothing is worth compiling for
        return "torch"
    t, m = config.train, config.model
    number = math.inf if t.epochs else t.max_steps
    tokens = number * t.batch_size * t.accumulation_steps * m.block_size
    return best_here(6 * 12 * m.n_layer * m.n_embd**2 * tokens)  # the products of the blocks, in both directions


def which_kernels(
    config: RunConfig, processes: Processes, device: torch.device, dtype: torch.dtype
) -> tuple[Kernels, str]:
    """By which kernels steps compute: as asked, where that is possible, else by torch's; and a word for the log."""
    asked: Kernels = "torch" if config.kernels == "auto" else config.kernels
    apart = config.compile == "on" or (processes.size > 1 and config.train.parallel == "fsdp")
    if asked == "torch":
        return asked, "torch's kernels"
    if device.type != "cpu" or dtype != torch.float32 or apart:
        return "torch", f"torch's kernels ({asked}: float32, on a CPU, eager, not fsdp)"
    if asked == "c" and (reason := steps.unavailable()):
        return "torch", f"torch's kernels (c: {reason})"
    if asked == "fast":
        return asked, "fast kernels"
    masked = config.documents.batching == "packed-masked"
    return asked, "kernels in C" + (", attention by torch's (its document mask)" if masked else "")


def _compiled(
    model: GPT, config: RunConfig, processes: Processes, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, str]:
    """The module to call instead of the model, compiled if that is wanted and possible; and a word for the log."""
    t = config.train
    if processes.size > 1 and t.parallel == "fsdp":  # its tensors are not cut yet
        return model, "eager (fsdp)"
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return model, "eager"
    if config.documents.batching == "packed-masked" or adapters(model):
        return model, "eager (its layers are exchanged)"
    rows, _ = processes.share(t.batch_size, t.accumulation_steps)
    try:
        forward: nn.Module = torch.compile(model)  # type: ignore[assignment]
        # Compilation happens at the first call: find out now whether there is a compiler, on a batch of the real shape.
        x = torch.zeros(rows, config.model.block_size, dtype=torch.int64, device=device)
        with torch.random.fork_rng(), autocast(device, dtype):  # so that the random state is as without compiling
            forward(x).sum().backward()
        model.zero_grad(set_to_none=True)
    except Exception as error:  # torch raises many kinds here; training goes on without it
        torch._dynamo.reset()
        return model, f"eager (no compilation: {first_line(error)})"
    return forward, "compiled"
