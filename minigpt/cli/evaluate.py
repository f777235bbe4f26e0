"""`minigpt eval`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minigpt.cli.models import add_model_argument, add_reading_arguments, load, model_source
from minigpt.cli.parser import CommandParser, print_json
from minigpt.cli.train import are_documents, load_source
from minigpt.config import DocumentsConfig, RunConfig, read_yaml, updated
from minigpt.data.corpora import Corpus
from minigpt.data.documents import Documents
from minigpt.errors import InputError
from minigpt.formats.source import Source
from minigpt.tokenizers import note_special


def make_parser() -> CommandParser:
    """The parser of `minigpt eval`."""
    parser = CommandParser(
        "eval",
        "Measure a model on a text: loss, perplexity, bits per character. The text is read in windows of block_size "
        "tokens, --stride tokens apart. Every token but the first is scored exactly once, by the first window that "
        "reaches it: of all windows but the first, only the last --stride predictions count, and each of them sees at "
        "least block_size - stride + 1 tokens before it. Of separate documents, each is read from its beginning: those "
        "that a run has held out, or all of others.",
        "  minigpt eval\n  minigpt eval --stride 32\n  minigpt eval --model gpt2 --data my-novel.txt --stride 512",
    )
    add_model_argument(parser)
    parser.add_argument(
        "--data", metavar="SOURCE", help="a corpus, file, folder or records (default: what a run was trained on)"
    )
    parser.add_argument(
        "--split",
        choices=["val", "train", "all"],
        help="which part of it (default: val of the corpus it was trained on, all of any other)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from one window to the next; fewer than the block size give every token more context, and take "
        "longer (default: the block size)",
    )
    add_reading_arguments(parser)
    parser.add_device()
    return parser


def run(arguments: list[str]) -> None:
    """Evaluate and print."""
    values = make_parser().parse(arguments)
    from minigpt.data.tokens import split_at
    from minigpt.evaluation.loss import evaluate

    named = model_source(values["model"])
    values["model"], trained = named.name, training_config(named)
    if values["data"] is None and trained is None:
        raise InputError(
            f"{values['model']} is no run that was trained here, so there is no text that belongs to it",
            "name a text to measure it on with --data, or check --model",
        )
    config = trained or RunConfig()
    source, own = measured(config, values["data"])
    if values["data"] is None and not own:
        raise InputError(
            f"{config.data.source} has changed since {values['model']} was trained on it",
            "name with --data where the former one lies, or this one, to measure all of it",
        )
    if isinstance(source, Documents):
        if values["split"] not in (None, "val" if own else "all") or values["stride"] is not None:
            raise InputError(
                f"{values['data'] or config.data.source} holds separate documents: of those that a run was trained on, "
                "the held-out ones are measured, of others all, each from its beginning",
                "leave --split and --stride out",
            )
        evaluate_documents(source, config, own, values)
        return
    split = values["split"] or ("val" if own else "all")
    model, tokenizer = load(values)
    corpus = source
    border = split_at(corpus, config.data)
    text = {"val": corpus.text[border:], "train": corpus.text[:border], "all": corpus.text}[split]
    note_special(tokenizer, text)
    ids = tokenizer.encode_array(text)
    result = evaluate(model, ids, stride=values["stride"], vocab_size=tokenizer.vocab_size)
    bits = result.bits_per_character(len(tokenizer.decode(ids[1:].tolist())))  # the first token is not predicted
    if values["json"]:
        print_json(
            {"loss": result.loss, "perplexity": result.perplexity, "bits_per_character": bits, "tokens": result.tokens}
        )
        return
    print(f"{corpus.name} ({split}): {result.tokens:,} tokens predicted, each once")
    print(f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.3f}, {bits:.4f} bits per character")
    if corpus.floor is not None and split == "val":
        nats, floor = bits * math.log(2), corpus.floor(border, len(corpus.text))
        print(f"{nats:.4f} nats per character, {nats - floor:.4f} above the corpus's own entropy of {floor:.4f}")


def measured(config: RunConfig, named: str | None) -> tuple[Corpus | Documents, bool]:
    """What is to be measured, and whether it is what a run was trained on, wherever it lies and however it is spelled.

    Args:
        config: of the run, or the defaults.
        named: the value of --data, or None for what the run names.
    """
    from minigpt.training.run import fingerprint

    chosen = config
    if named is not None:
        d = config.documents
        if not are_documents(d.separate, named):
            d = DocumentsConfig()  # settings of documents, and this is a text
        elif not Path(d.val_data).exists():
            d = replace(d, val_data="")
        chosen = replace(config, data=replace(config.data, source=named), documents=d)
    source = load_source(chosen)
    if config.data.checksum:
        return source, fingerprint(source) == config.data.checksum
    # A run of an earlier minigpt, which noted none, or no run at all.
    same = named is None or (
        Path(config.data.source).exists() and fingerprint(source) == fingerprint(load_source(config))
    )
    return source, same


def evaluate_documents(documents: Documents, config: RunConfig, own: bool, values: dict[str, Any]) -> None:
    """Evaluate a model on the documents that its run has held out, or on all of others, and print."""
    from minigpt.data.batches import padded
    from minigpt.data.feeds import document_feed, encoded
    from minigpt.evaluation.loss import evaluate_batches

    model, tokenizer = load(values)
    config = replace(config, model=model.config)
    name = Path(values["data"] or config.data.source).stem
    if own:
        chosen = document_feed(documents, name, config, tokenizer).val
    else:
        chosen = encoded(documents.items, config, tokenizer, training=documents.items)
    batches = ((batch.inputs, batch.targets) for batch in padded(chosen, config.train.batch_size, seed=0, epoch=0))
    result = evaluate_batches(model, batches, torch.float32, tokenizer.vocab_size)
    if values["json"]:
        print_json({"loss": result.loss, "perplexity": result.perplexity, "tokens": result.tokens})
        return
    print(f"{name}: {result.tokens:,} tokens of {len(chosen):,} {'held-out ' * own}documents predicted, each once")
    print(f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.3f}")


def training_config(source: Source) -> RunConfig | None:
    """What a model was trained on, and how: known of a run, and of an import of one; else None."""
    content = read_yaml(source.run.config) if source.run else {}
    return updated(RunConfig(), content) if "data" in content else None
