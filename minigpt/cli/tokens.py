"""`minigpt tokenize`."""

from typing import Any

from minigpt.cli.models import add_model_argument, add_reading_arguments, model_source, piece, reading
from minigpt.cli.parser import CommandParser, print_json
from minigpt.cli.streams import given
from minigpt.formats.run_directory import required
from minigpt.formats.tokenizer_files import named_tokenizer
from minigpt.tokenizers import Tokenizer, read


def make_parser() -> CommandParser:
    """The parser of `minigpt tokenize`."""
    parser = CommandParser(
        "tokenize",
        "Show how a text is cut into tokens: each token's id, its text, and its bytes. A token of GPT-2 may be a part "
        "of a character; its text is then shown as U+FFFD, and the bytes say what it is.",
        '  minigpt tokenize "To be, or not to be"\n'
        '  minigpt tokenize --model gpt2 "See you later, alligator."\n'
        '  minigpt tokenize --model checkpoints/shakespeare-quick "Wherefore?"',
    )
    add_model_argument(parser, weights=False)
    add_reading_arguments(parser)
    parser.add_argument("text", metavar="TEXT", help="the text; - reads standard input")
    return parser


def run(arguments: list[str]) -> None:
    """Print one line a token."""
    values = make_parser().parse(arguments)
    (text,) = given(values["text"])
    _, tokenizer, ids = tokenized(values, text)
    rows = [
        {"id": token_id, "text": piece(tokenizer, token_id), "bytes": tokenizer.token_bytes(token_id).hex(" ")}
        for token_id in ids
    ]
    if values["json"]:
        print_json({"tokens": rows})
        return
    print(f"{'id':>6}  {'piece':<16}  bytes")
    for row in rows:
        print(f"{row['id']:>6}  {row['text']!r:<16}  {row['bytes']}")
    print(f"{len(rows)} tokens, {len(text)} characters, vocabulary {tokenizer.vocab_size:,}")


def tokenized(values: dict[str, Any], text: str) -> tuple[str, Tokenizer, list[int]]:
    """The name and the tokenizer of --model, or of --tokenizer alone, which needs no model here; a text's tokens."""
    spec, chosen = values["model"], values["tokenizer"]
    if chosen and not spec:
        name, tokenizer = chosen, named_tokenizer(chosen)
    else:
        source = model_source(spec)
        name, tokenizer = source.name, required(source.tokenizer(chosen), source.name)
    tokenizer = reading(tokenizer, values)
    return name, tokenizer, read(tokenizer, text)
