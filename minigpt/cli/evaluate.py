"""`minigpt eval`."""

import math
from pathlib import Path
from typing import Any

import torch

from minigpt.cli.models import add_model_argument, add_unknown_argument, load, model_spec
from minigpt.cli.parser import CommandParser, print_json
from minigpt.cli.train import are_documents, load_source
from minigpt.config import DataConfig, RunConfig, read_yaml, updated
from minigpt.data.documents import Documents
from minigpt.errors import InputError
from minigpt.pretrained import find
from minigpt.training.checkpoint import run_at


def make_parser() -> CommandParser:
    """The parser of `minigpt eval`."""
    parser = CommandParser(
        "eval",
        "Measure a model on a text: loss, perplexity, bits per character. The text is read in windows of block_size "
        "tokens, --stride tokens apart. Every token but the first is scored exactly once, by the first window that "
        "reaches it: of all windows but the first, only the last --stride predictions count, and each of them sees at "
        "least block_size - stride + 1 tokens before it.",
        "  minigpt eval\n  minigpt eval --stride 32\n  minigpt eval --model gpt2 --data my-novel.txt --stride 512",
    )
    add_model_argument(parser)
    parser.add_argument(
        "--data", metavar="SOURCE", help="a corpus, file or folder (default: what a run was trained on)"
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
    add_unknown_argument(parser)
    parser.add_device()
    return parser


def run(arguments: list[str]) -> None:
    """Evaluate and print."""
    values = make_parser().parse(arguments)
    from minigpt.data.corpora import load_corpus
    from minigpt.data.tokens import split_at
    from minigpt.training.evaluate import evaluate

    values["model"] = model_spec(values["model"])
    find(values["model"])  # before it is asked what it was trained on
    trained = training_config(values["model"])
    trained_on = trained.data if trained else None
    if values["data"] is None and trained_on is None:
        raise InputError(
            f"{values['model']} is no run that was trained here, so there is no text that belongs to it",
            "name a text to measure it on with --data, or check --model",
        )
    data = trained_on or DataConfig()
    source = values["data"] or data.source
    own = trained is not None and source == data.source
    if are_documents(trained.documents.separate if trained and own else "auto", source):
        if trained is None or not own or values["split"] not in (None, "val") or values["stride"] is not None:
            raise InputError(
                f"{source} holds separate documents, of which eval knows those alone that a run has held out",
                "leave --data, --split and --stride out; evaluate-text --model measures any documents",
            )
        evaluate_held_out(trained, values)
        return
    split = values["split"] or ("val" if trained_on and source == trained_on.source else "all")
    model, tokenizer = load(values)
    corpus = load_corpus(source)
    border = split_at(corpus, data)
    text = {"val": corpus.text[border:], "train": corpus.text[:border], "all": corpus.text}[split]
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


def evaluate_held_out(config: RunConfig, values: dict[str, Any]) -> None:
    """Evaluate a run on the documents that it has held out, and print."""
    from minigpt.data.feeds import document_feed
    from minigpt.training.evaluate import evaluate_batches

    documents = load_source(config)
    assert isinstance(documents, Documents), "are_documents has said so"
    model, tokenizer = load(values)
    name = Path(config.data.source).stem
    feed = document_feed(documents, name, config, tokenizer)
    batches = ((batch.inputs, batch.targets) for batch in feed.validation())
    result = evaluate_batches(model, batches, torch.float32, tokenizer.vocab_size)
    if values["json"]:
        print_json({"loss": result.loss, "perplexity": result.perplexity, "tokens": result.tokens})
        return
    print(f"{name}: {result.tokens:,} tokens of {len(feed.val):,} held-out documents predicted, each once")
    print(f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.3f}")


def training_config(spec: str) -> RunConfig | None:
    """What a model was trained on, and how: known of a run of our own, and not of an imported one."""
    path = run_at(Path(spec).expanduser()).config
    content = read_yaml(path) if path.is_file() else {}
    return updated(RunConfig(), content) if "data" in content else None
