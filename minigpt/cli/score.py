"""`minigpt score`."""

import math
from typing import Any

from minigpt.cli.models import load
from minigpt.cli.settings import Score
from minigpt.cli.streams import print_json, with_stdin
from minigpt.cli.texts import check_fits, framed, token_text
from minigpt.errors import InputError, counted
from minigpt.evaluation.loss import perplexity, token_log_probs
from minigpt.model import GPT
from minigpt.system import terminal
from minigpt.tokenizers import Tokenizer, read


def answer(settings: Score) -> None:
    """Print one line for each text, in the order given."""
    texts = with_stdin(*settings.text)
    model, tokenizer = load(settings, settings.model, settings.adapter)
    rows = [framed(read(tokenizer, text), tokenizer, bool(settings.bos), settings.eos) for text in texts]
    for text, ids in zip(texts, rows, strict=True):
        _check_length(text, len(ids), model.config.block_size)
    results = [_score(model, tokenizer, text, ids) for text, ids in zip(texts, rows, strict=True)]
    if settings.json:
        print_json({"results": results})
        return
    best = max(result["log_prob"] for result in results)
    print(f"  {'log_prob':>10} {'tokens':>6} {'perplexity':>10}  text")
    for result in results:
        mark = "*" if len(results) > 1 and result["log_prob"] == best else " "
        numbers = f"{result['log_prob']:>10.4f} {result['num_tokens']:>6}"
        numbers += f" {terminal.number(result['perplexity'], '.3f'):>10}"
        print(f"{mark} {numbers}  {terminal.cut(repr(result['text']), 48)}")
        for token in result["tokens"] if settings.tokens else ():
            print(f"  {token['log_prob']:>10.4f} {token['id']:>6} {'':>10}    {token['text']!r}")
    if len(results) > 1:
        print("* the most probable; longer texts are less probable, so compare like with like")


def _check_length(text: str, num_tokens: int, block_size: int) -> None:
    name = terminal.cut(repr(text), 40)
    if num_tokens < 2:
        raise InputError(
            f"{name} is {counted(num_tokens, 'token')}: there is nothing to predict",
            "give a longer text, or put a token in front with --bos if the model has one",
        )
    check_fits(num_tokens, block_size, name, "shorten it, or measure a long text in windows: minigpt eval --data FILE")


def _score(model: GPT, tokenizer: Tokenizer, text: str, ids: list[int]) -> dict[str, Any]:
    log_probs = token_log_probs(model, ids, tokenizer.vocab_size)
    log_prob = math.fsum(log_probs)
    return {
        "text": text,
        "log_prob": log_prob,
        "num_tokens": len(log_probs),
        "perplexity": perplexity(-log_prob / len(log_probs)),
        "tokens": [
            {"id": token_id, "text": token_text(tokenizer, token_id), "log_prob": value}
            for token_id, value in zip(ids[1:], log_probs, strict=True)
        ],
    }
