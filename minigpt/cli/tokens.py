"""`minigpt tokenize`."""

from minigpt.cli.models import configured, model_source, piece
from minigpt.cli.settings import TextSettings, Tokenize
from minigpt.cli.streams import given, print_json
from minigpt.formats.run_directory import required
from minigpt.formats.tokenizer_files import named_tokenizer
from minigpt.tokenizers import Tokenizer, read


def run(settings: Tokenize) -> None:
    """Print one line a token."""
    (text,) = given(settings.text)
    _, tokenizer, ids = tokenized(settings, settings.model, text)
    rows = [
        {"id": token_id, "text": piece(tokenizer, token_id), "bytes": tokenizer.token_bytes(token_id).hex(" ")}
        for token_id in ids
    ]
    if settings.json:
        print_json({"tokens": rows})
        return
    print(f"{'id':>6}  {'piece':<16}  bytes")
    for row in rows:
        print(f"{row['id']:>6}  {row['text']!r:<16}  {row['bytes']}")
    print(f"{len(rows)} tokens, {len(text)} characters, vocabulary {tokenizer.vocab_size:,}")


def tokenized(settings: TextSettings, model: str | None, text: str) -> tuple[str, Tokenizer, list[int]]:
    """The name and the tokenizer of --model, or of --tokenizer alone, which needs no model here; a text's tokens."""
    chosen = settings.tokenizer
    if chosen and not model:
        name, tokenizer = chosen, named_tokenizer(chosen)
    else:
        source = model_source(model)
        name, tokenizer = source.name, required(source.tokenizer(chosen), source.name)
    tokenizer = configured(tokenizer, settings)
    return name, tokenizer, read(tokenizer, text)
