"""`minigpt eval`."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minigpt.cli.models import learned_before, load, model_source, trained_source, without_data
from minigpt.cli.settings import Eval
from minigpt.cli.streams import print_json
from minigpt.cli.texts import data_of_run, val_data_beside, with_val_data
from minigpt.config import DocumentsConfig, RunConfig, updated
from minigpt.data.batches import padded
from minigpt.data.corpora import NAMED_SOURCES, Corpus, are_documents, kind_of, source_name
from minigpt.data.documents import Documents, data_checksum
from minigpt.data.loaders import document_loader, encoded
from minigpt.data.sources import fitting_kind, load_data
from minigpt.data.tokens import split_at
from minigpt.errors import InputError, counted, quoted
from minigpt.evaluation.loss import Evaluation, evaluate, evaluate_batches
from minigpt.formats.source import Source
from minigpt.model import GPT
from minigpt.packed import PackedGPT
from minigpt.system import terminal
from minigpt.tokenizers import note_special
from minigpt.training.run import note_learned


def answer(settings: Eval) -> None:
    """Evaluate and print."""
    source = model_source(settings.model)
    learner = trained_source(source, settings.adapter)
    config, data, own = data_to_measure(settings, learner)
    if own and config.data.checksum and settings.split in (None, "val"):
        note_learned(config, data, learned_before(learner))
    if isinstance(data, Documents):
        evaluate_documents(data, config, own, settings, source.name)
    else:
        evaluate_text(data, config, own, settings, source.name)


def data_to_measure(settings: Eval, source: Source) -> tuple[RunConfig, Corpus | Documents, bool]:
    """The settings that say how data are read, the data, and whether the model was trained on them.

    Raises:
        InputError: if there are none, or a flag does not fit them.
        MiniGPTError: as `without_data`, or `load_data`.
    """
    trained = source.trained
    if settings.data is None and trained is None:
        raise without_data(
            source,
            "is no run that was trained here, so there is no text that belongs to it",
            "name a text to measure it on with --data, or check --model",
        )
    config = trained or RunConfig()
    if field := settings.text_field:
        fields = {"text_field": field, "prompt_field": "", "completion_field": ""}
        config = updated(config, {"documents": fields})
    config = with_val_data(config, settings.val_data)
    told = settings.data or config.data.source
    if field and config.documents.separate == "off":
        raise InputError(
            f"--text-field {field} is a field of records, and documents.separate is off in {source.name}: it reads "
            "them as one text",
            "leave --text-field out",
        )
    if field and not are_documents(config.documents.separate, told):
        raise InputError(
            f"--text-field {field} is a field of records, and {told} is one text",
            "leave --text-field out, or name a file of records with --data",
        )
    if kind_of(config.documents.separate, told) == "documents" and fitting_kind(config.documents, told) == "dialogues":
        raise InputError(
            f"{told} holds dialogues, and {source.name} is no run that was trained on any",
            f"measure its replies in them: minigpt evaluate-chat --model {quoted(source.name)} --data {quoted(told)}",
        )
    data, own = named_data(config, settings.data)
    if settings.data and settings.val_data and not own:
        raise InputError(
            f"{settings.data} and --val-data {settings.val_data} are not what {source.name} was trained on",
            "leave --val-data out, to measure all of other data",
        )
    if settings.data is None and not own:
        raise InputError(
            f"{config.data.source} has changed since {source.name} was trained on it",
            "name the former data with --data; or name this one with --data, to measure all of it",
        )
    if isinstance(data, Documents) and (
        settings.split not in (None, "val" if own else "all") or settings.stride is not None
    ):
        raise InputError(
            f"{told} holds separate documents, each read from its beginning: the "
            "held-out ones of a run's own documents, or all of others",
            "leave --split and --stride out",
        )
    return config, data, own


def evaluate_text(corpus: Corpus, config: RunConfig, own: bool, settings: Eval, model_name: str) -> None:
    """Evaluate a model on a part of its run's own text, or on all of another, and print."""
    split = settings.split or ("val" if own else "all")
    model, tokenizer = load(settings, model_name, settings.adapter)
    border = split_at(corpus, config.data)
    text = {"val": corpus.text[border:], "train": corpus.text[:border], "all": corpus.text}[split]
    note_special(tokenizer, [text])
    ids = tokenizer.encode_array(text)
    measure = partial(evaluate, ids=ids, stride=settings.stride, vocab_size=tokenizer.vocab_size)
    result = measure(model)
    cost = cost_of_weights(model, settings, model_name, result, measure)
    bits = result.bits_per_character(len(tokenizer.decode(ids[1:].tolist())))  # the first token is not predicted
    lines = [
        f"{corpus.name} ({split}): {counted(result.tokens, 'token')} predicted, each once",
        f"loss {result.loss:.4f} nats per token, perplexity {terminal.number(result.perplexity, '.3f')}, "
        f"{terminal.decimals(bits, 4)} bits per character",
    ]
    if bits is not None and corpus.floor is not None and split == "val":
        nats, floor = bits * math.log(2), corpus.floor(border, len(corpus.text))
        lines.append(f"{nats:.4f} nats per character, {nats - floor:.4f} above the corpus's own entropy of {floor:.4f}")
    show(result, lines, settings.json, cost, bits_per_character=bits)


def named_data(config: RunConfig, name: str | None) -> tuple[Corpus | Documents, bool]:
    """The data that --data or else the run names, and whether the run was trained on them, wherever they lie now."""
    chosen = config
    if name is not None:
        d = config.documents
        documents = are_documents(d.separate, name)
        alike = documents == are_documents(d.separate, config.data.source)
        val_data = val_data_beside(config, name) if alike else ""  # else it was read in another way
        settings = replace(config.data, source=name, val_data=val_data)
        chosen = replace(config, data=settings, documents=d if documents else DocumentsConfig())
    data = data_of_run(chosen) if name is None else load_data(chosen)
    if config.data.checksum:
        own = data_checksum(data) == config.data.checksum
        if not (own or name is None) and chosen.data.val_data:  # of other data all is measured, and nothing else
            data = load_data(replace(chosen, data=replace(chosen.data, val_data="")))
        return data, own
    # A model that was not trained here has no checksum.
    theirs = config.data.source  # of a model that is no run, the usual one, which it need not have learned
    known = theirs not in NAMED_SOURCES and Path(theirs).exists()
    same = name is None or (known and data_checksum(data) == data_checksum(load_data(config)))
    return data, same


def evaluate_documents(documents: Documents, config: RunConfig, own: bool, settings: Eval, model_name: str) -> None:
    """Evaluate a model on the documents that its run has held out, or on all documents of another source, and print."""
    model, tokenizer = load(settings, model_name, settings.adapter)
    config = replace(config, model=model.config)
    name = source_name(settings.data or config.data.source)
    note_special(tokenizer, documents.texts)
    if own:
        chosen = document_loader(documents, name, config, tokenizer).val
    else:
        chosen = encoded(documents.items, config, tokenizer, training=documents.items)

    def measure(model: GPT) -> Evaluation:
        batches = padded(chosen, config.train.batch_size, seed=0, epoch=0)
        return evaluate_batches(model, batches, torch.float32, tokenizer.vocab_size)

    result = measure(model)
    cost = cost_of_weights(model, settings, model_name, result, measure)
    lines = [
        f"{name}: {counted(result.tokens, 'token')} of {counted(len(chosen), 'held-out ' * own + 'document')} "
        "predicted, each once",
        f"loss {result.loss:.4f} nats per token, perplexity {terminal.number(result.perplexity, '.3f')}",
    ]
    show(result, lines, settings.json, cost)


def cost_of_weights(
    model: GPT, settings: Eval, name: str, result: Evaluation, measure: Callable[[GPT], Evaluation]
) -> dict[str, Any]:
    """What --weights cost, by the loss of the plain model on the same text; nothing without the flag."""
    if not isinstance(model, PackedGPT):
        return {}
    plain, _ = load(replace(settings, weights=None), name, settings.adapter)
    plain_loss = measure(plain).loss
    return {
        "weights": model.weights,
        "layers": dict(Counter(model.kinds().values())),
        "plain_loss": plain_loss,
        "relative_change": (result.loss - plain_loss) / plain_loss if plain_loss else None,
    }


def show(
    result: Evaluation, lines: Sequence[str], as_json: bool, cost: Mapping[str, Any], **more: float | None
) -> None:
    """Print an evaluation, in numbers or in lines, and what --weights cost, if they were asked for."""
    if as_json:
        print_json({"loss": result.loss, "perplexity": result.perplexity, **more, "tokens": result.tokens, **cost})
        return
    print(*lines, sep="\n")
    if cost:
        layers = " and ".join(f"{counted(number, 'layer')} in {kind}" for kind, number in cost["layers"].items())
        change = "" if cost["relative_change"] is None else f", {round(100 * cost['relative_change'], 3) + 0.0:+.3f} %"
        print(f"loss {cost['plain_loss']:.4f} with plain weights{change} with --weights {cost['weights']}: {layers}")
