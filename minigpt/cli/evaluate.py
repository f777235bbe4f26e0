"""`minigpt eval`."""

import math

from minigpt.cli.models import add_model_argument, add_unknown_argument, model_path, reading
from minigpt.cli.parser import CommandParser, print_json


def make_parser() -> CommandParser:
    """The parser of `minigpt eval`."""
    parser = CommandParser(
        "eval",
        "Measure a model on a text. Every token but the first is predicted once, in windows of the model's block size.",
        "  minigpt eval\n"
        "  minigpt eval --stride 32\n"
        "  minigpt eval --model checkpoints/shakespeare-quick --data my-novel.txt",
    )
    add_model_argument(parser)
    parser.add_argument("--data", metavar="SOURCE", help="a corpus, file or folder (default: what it was trained on)")
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
    from minigpt.device import choose_device
    from minigpt.training.checkpoint import load_run
    from minigpt.training.evaluate import evaluate

    device = choose_device(values["device"])
    model, tokenizer, config = load_run(model_path(values["model"]))
    source = values["data"] or config.data.source
    split = values["split"] or ("val" if source == config.data.source else "all")
    corpus = load_corpus(source)
    border = split_at(corpus, config.data)
    text = {"val": corpus.text[border:], "train": corpus.text[:border], "all": corpus.text}[split]
    ids = reading(tokenizer, values["unknown"]).encode_array(text)
    result = evaluate(model.to(device), ids, stride=values["stride"])
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
