"""`minigpt import`."""

import dataclasses
import tempfile
import warnings
from pathlib import Path

import torch

from minigpt.cli.models import note_what_is_not_kept
from minigpt.cli.settings import Import
from minigpt.cli.streams import print_json, print_note
from minigpt.config import RunConfig, updated
from minigpt.errors import CheckpointError, counted
from minigpt.formats.config_json import DifferentRates
from minigpt.formats.parity import ParityReport, compare_with_transformers, require_transformers
from minigpt.formats.pretrained import save_hf
from minigpt.formats.run_directory import save_run
from minigpt.formats.source import AssumedHeads, Source, open_source
from minigpt.model import GPT
from minigpt.system.files import check_unused, named_path
from minigpt.system.signals import tidy
from minigpt.tokenizers import Tokenizer


def answer(settings: Import) -> None:
    """Load, compare if asked, write."""
    directory = named_path(settings.out, "DIR")
    if settings.verify:
        require_transformers()
    check_unused(directory)
    source = open_source(settings.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DifferentRates)
        if settings.verify:
            warnings.simplefilter("error", AssumedHeads)
        try:
            model, tokenizer = source.load_for_text(
                tokenizer=settings.tokenizer, block_size=settings.block_size, dropout=settings.dropout
            )
        except DifferentRates as note:
            raise CheckpointError(str(note), "choose one to train on with: --dropout") from None
        except AssumedHeads as guess:
            raise CheckpointError(
                f"a guess cannot be verified: {guess}",
                "put the model's config.json beside the weights, or leave --verify out",
            ) from None
    compared_with, parity = verified(source, model, tokenizer) if settings.verify else (None, None)
    save_run(model, tokenizer, directory, _fitting(source.trained, model), source.carried)
    note_what_is_not_kept(source, model, tokenizer)
    if settings.json:
        report = parity and {"reference": compared_with, **dataclasses.asdict(parity)}
        print_json({"out": str(directory), "parameters": model.num_parameters(), "parity": report})
        return
    shape = model.config
    print(
        f"model      {model.num_parameters():,} parameters: {counted(shape.n_layer, 'layer')}, "
        f"{counted(shape.n_head, 'head')}, width {shape.n_embd}, block {shape.block_size}"
    )
    if parity:
        print(f"compared   with the transformers library's model of {compared_with}")
        _print_parity(parity)
    print(f"written    {directory}")


def _fitting(trained: RunConfig | None, model: GPT) -> RunConfig | None:
    """The settings of the run that was imported, with documents and windows that fit the model's new context."""
    length = model.config.block_size
    if trained and trained.documents.max_length > length:
        print_note(f"documents.max_length was {trained.documents.max_length}: documents are cut to {length} tokens now")
        trained = updated(trained, {"documents": {"max_length": length}})
    if trained and trained.train.short_windows and length % 2:
        before = trained.train.short_windows
        print_note(f"train.short_windows was {before}: they are off now, because {length} tokens have no half")
        trained = updated(trained, {"train": {"short_windows": 0.0}})
    return trained


def verified(source: Source, model: GPT, tokenizer: Tokenizer) -> tuple[str, ParityReport]:
    """Compare a model with the model that transformers loads from the same source, or from an export of it.

    The ids are drawn from the whole vocabulary, as many as block_size, so that a difference at any position or token
    can show.

    Returns:
        A phrase for what transformers has read, and the report.

    Raises:
        CheckpointError: if they differ by more than rounding.
    """
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, model.config.block_size), generator=random)  # (1, T)
    with tidy(), tempfile.TemporaryDirectory() as temporary:  # which a whole model may be written to
        folder = source.transformers_folder
        if exported := folder is None:
            folder = Path(temporary) / "export"
            save_hf(model, tokenizer, folder)
        parity = compare_with_transformers(model, folder, ids)
    if layer := parity.first_difference:
        raise CheckpointError(
            f"{source.name} and the model made of it differ by {layer.difference:.1e} at {layer.name}, where values "
            f"reach {layer.size:.3g}; rounding can explain {layer.bound:.1e}",
            "nothing was written; the difference begins there, so look at the weights that come just before",
        )
    return f"an export of {source.name} (this checks the export, not the source)" if exported else str(folder), parity


def _print_parity(parity: ParityReport) -> None:
    print(f"  {'':<12} {'difference':>10}  {'largest value':>13}")
    for layer in parity.layers:
        print(f"  {layer.name:<12} {layer.difference:>10.1e}  {layer.size:>13.4g}")
    tokens = counted(parity.tokens, "token")
    print(f"verified   {tokens}: rounding apart, and {parity.same_argmax:,} times the same best token")
