"""`minigpt next`."""

from typing import Any

from minigpt.cli.models import (
    add_bos_argument,
    add_model_argument,
    add_reading_arguments,
    check_fits,
    counted,
    framed,
    load,
    piece,
    shortened,
)
from minigpt.cli.parser import CommandParser, print_json
from minigpt.cli.streams import given
from minigpt.errors import InputError

PIECE_WIDTH, BAR_WIDTH = 22, 20


def make_parser() -> CommandParser:
    """The parser of `minigpt next`."""
    parser = CommandParser(
        "next",
        "Show what the model expects after a text: the most probable next tokens, with their logits and "
        "probabilities. Bars are relative to the first row. --steps goes on with the most probable token, and "
        "shows the table of every step.",
        '  minigpt next "See you"\n'
        '  minigpt next --prompt "Once upon a time" --top 5 --steps 5\n'
        '  minigpt next --model gpt2 --prompt "See you" --json',
    )
    add_model_argument(parser)
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help='the text to look beyond; "" is the beginning of a text, - reads standard input',
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the same, as a flag")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="rows of the table")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="tables, one token further each")
    add_bos_argument(parser)
    add_reading_arguments(parser)
    parser.add_device()
    return parser


def run(arguments: list[str]) -> None:
    """Print one table a step."""
    values = make_parser().parse(arguments)
    from minigpt.decoding.sampling import next_token_table
    from minigpt.tokenizers import encode_prompt, read

    typed = [text for text in (values["text"], values["prompt"]) if text is not None]
    if not typed:
        raise InputError("a text is missing, to look beyond", 'give one: minigpt next "See you"')
    if len(typed) > 1:
        raise InputError("there are two texts, TEXT and --prompt, and one is looked beyond", "leave one of them out")
    (prompt,) = given(*typed)
    model, tokenizer = load(values)
    ids = framed(read(tokenizer, prompt), tokenizer, values["bos"]) or encode_prompt(tokenizer, "")
    if values["top"] < 1:
        raise InputError(f"--top {values['top']} asks for no row", "choose --top of at least 1")
    _check_room(len(ids), values["steps"], model.config.block_size)
    steps: list[dict[str, Any]] = []
    for _ in range(values["steps"]):
        table = next_token_table(model, ids, values["top"], tokenizer.vocab_size)
        candidates = [
            {"rank": rank, "id": token_id, "text": piece(tokenizer, token_id), "logit": logit, "prob": probability}
            for rank, (token_id, logit, probability) in enumerate(table, start=1)
        ]
        steps.append({"text": tokenizer.decode(ids), "token_ids": ids, "candidates": candidates})
        ids = [*ids, table[0][0]]
    if values["json"]:
        print_json({"candidates": steps[0]["candidates"]} if len(steps) == 1 else {"steps": steps})
        return
    for step in steps:
        front = "yes" if step["token_ids"][0] == tokenizer.bos_token_id else "no"
        print(f"after {step['text']!r} (tokens: {len(step['token_ids'])}, BOS in front: {front})")
        _print_table(step["candidates"])


def _check_room(num_tokens: int, steps: int, block_size: int) -> None:
    if steps < 1:
        raise InputError(f"--steps {steps} asks for no table", "choose --steps of at least 1")
    check_fits(num_tokens, block_size, "the prompt")
    if num_tokens + steps - 1 > block_size:
        raise InputError(
            f"{counted(num_tokens)} and {steps - 1} more on the way to step {steps} exceed block_size = {block_size}",
            "shorten the prompt, or take fewer --steps",
        )


def _print_table(candidates: list[dict[str, Any]]) -> None:
    print(f"{'rank':>4} {'id':>6}  {'piece':<{PIECE_WIDTH}} {'logit':>10} {'probability':>11}")
    for row in candidates:
        bar = "#" * round(BAR_WIDTH * row["prob"] / candidates[0]["prob"])
        text = shortened(repr(row["text"]), PIECE_WIDTH)
        numbers = f"{row['logit']:>10.4f} {row['prob']:>11.6f}"
        print(f"{row['rank']:>4} {row['id']:>6}  {text:<{PIECE_WIDTH}} {numbers} {bar}".rstrip())
