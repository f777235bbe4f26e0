"""`minigpt tokenize`."""

from minigpt.cli.models import tokenized
from minigpt.cli.settings import Tokenize
from minigpt.cli.streams import print_json, with_stdin
from minigpt.cli.texts import token_text
from minigpt.errors import counted


def answer(settings: Tokenize) -> None:
    """Print one line for each token."""
    (text,) = with_stdin(settings.text)
    _, tokenizer, ids = tokenized(settings, settings.model, text)
    rows = [
        {"id": token_id, "text": token_text(tokenizer, token_id), "bytes": tokenizer.token_bytes(token_id).hex(" ")}
        for token_id in ids
    ]
    if settings.json:
        print_json({"tokens": rows})
        return
    print(f"{'id':>6}  {'piece':<16}  bytes")
    for row in rows:
        print(f"{row['id']:>6}  {row['text']!r:<16}  {row['bytes']}")
    print(f"{counted(len(rows), 'token')}, {counted(len(text), 'character')}, vocabulary {tokenizer.vocab_size:,}")
