"""`minigpt next`."""

from typing import Any

from minigpt.cli.models import load
from minigpt.cli.settings import Next
from minigpt.cli.streams import print_json, with_stdin
from minigpt.cli.texts import check_fits, framed, token_text
from minigpt.decoding.sampling import next_token_table
from minigpt.errors import InputError
from minigpt.system import terminal
from minigpt.tokenizers import encode_prompt, read

PIECE_WIDTH, BAR_WIDTH = 22, 20


def answer(settings: Next) -> None:
    """Print one table for each step."""
    typed = settings.prompt if settings.text is None else settings.text
    if typed is None:
        raise InputError("a text is missing", 'give one: minigpt next "See you"')
    (prompt,) = with_stdin(typed)
    model, tokenizer = load(settings, settings.model, settings.adapter)
    ids = framed(read(tokenizer, prompt), tokenizer, bool(settings.bos)) or encode_prompt(tokenizer, "")
    more = settings.steps - 1  # the last step adds no token
    fewer = "shorten the prompt, or take fewer --steps" if more else ""
    check_fits(len(ids), model.config.block_size, "the prompt", fewer, more)
    steps: list[dict[str, Any]] = []
    for _ in range(settings.steps):
        table = next_token_table(model, ids, settings.top, tokenizer.vocab_size)
        candidates = [
            {"rank": rank, "id": token_id, "text": token_text(tokenizer, token_id), "logit": logit, "prob": probability}
            for rank, (token_id, logit, probability) in enumerate(table, start=1)
        ]
        steps.append({"text": tokenizer.decode(ids), "token_ids": ids, "candidates": candidates})
        ids = [*ids, table[0][0]]
    if settings.json:
        print_json({"candidates": steps[0]["candidates"]} if len(steps) == 1 else {"steps": steps})
        return
    for step in steps:
        front = "yes" if step["token_ids"][0] == tokenizer.bos_token_id else "no"
        print(f"after {step['text']!r} (tokens: {len(step['token_ids'])}, BOS in front: {front})")
        _print_table(step["candidates"])


def _print_table(candidates: list[dict[str, Any]]) -> None:
    print(f"{'rank':>4} {'id':>6}  {'piece':<{PIECE_WIDTH}} {'logit':>10} {'probability':>11}")
    for row in candidates:
        bar = "#" * round(BAR_WIDTH * row["prob"] / candidates[0]["prob"])
        text = terminal.fitted(repr(row["text"]), PIECE_WIDTH)
        numbers = f"{row['logit']:>10.4f} {row['prob']:>11.6f}"
        print(f"{row['rank']:>4} {row['id']:>6}  {text} {numbers} {bar}".rstrip())
