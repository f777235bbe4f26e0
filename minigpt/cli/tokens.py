"""`minigpt tokenize`."""

from minigpt.cli.models import add_model_argument, add_unknown_argument, model_path, reading
from minigpt.cli.parser import CommandParser, print_json
from minigpt.tokenizers import load_tokenizer
from minigpt.training.checkpoint import run_at


def make_parser() -> CommandParser:
    """The parser of `minigpt tokenize`."""
    parser = CommandParser(
        "tokenize",
        "Show how a text is cut into tokens: each token's id, its text, and its bytes.",
        '  minigpt tokenize "To be, or not to be"\n'
        '  minigpt tokenize --model checkpoints/shakespeare-quick "Wherefore?"',
    )
    add_model_argument(parser)
    add_unknown_argument(parser)
    parser.add_argument("text", help="the text")
    return parser


def run(arguments: list[str]) -> None:
    """Print one line a token."""
    values = make_parser().parse(arguments)
    tokenizer = reading(load_tokenizer(run_at(model_path(values["model"])).tokenizer), values["unknown"])
    rows = []
    for token_id in tokenizer.encode(values["text"]):
        piece = tokenizer.token_bytes(token_id)
        rows.append({"id": token_id, "text": piece.decode("utf-8", errors="replace"), "bytes": piece.hex(" ")})
    if values["json"]:
        print_json({"tokens": rows})
        return
    print(f"{'id':>6}  {'piece':<16}  bytes")
    for row in rows:
        print(f"{row['id']:>6}  {row['text']!r:<16}  {row['bytes']}")
    print(f"{len(rows)} tokens, {len(values['text'])} characters, vocabulary {tokenizer.vocab_size:,}")
