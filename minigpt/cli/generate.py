"""`minigpt generate`."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

from minigpt.cli.models import add_model_argument, add_unknown_argument, load, reading
from minigpt.cli.parser import CommandParser, field_help, print_json
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer

# flag -> type; names, meanings and defaults are those of DecodingOptions
FLAGS: dict[str, type] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "num_beams": int,
    "length_penalty": float,
    "num_return_sequences": int,
    "seed": int,
}
OWN_HELP = {"seed": "of the draws: the same seed gives the same text"}  # a list of seeds is for Python


def make_parser() -> CommandParser:
    """The parser of `minigpt generate`."""
    from minigpt.decoding.options import DecodingOptions

    defaults = {field.name: field.default for field in dataclasses.fields(DecodingOptions)}
    parser = CommandParser(
        "generate",
        "Continue a text. It appears as it is written.",
        '  minigpt generate --prompt "ROMEO:"\n'
        '  minigpt generate --prompt "ROMEO:" --max-new-tokens 500 --on-overflow crop\n'
        '  minigpt generate --prompt "To be" --temperature 0.5 --top-p 0.9 --num-return-sequences 3\n'
        '  minigpt generate --prompt "To be" --strategy beam --num-beams 5 --json',
    )
    add_model_argument(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="the text to continue; may be given several times"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help="the most tokens to add (default: 200, or what fits the model's block)",
    )  # fmt: skip
    parser.add_argument(
        "--strategy", choices=["sample", "greedy", "beam"], default=defaults["strategy"],
        help=field_help(DecodingOptions, "strategy"),
    )  # fmt: skip
    for name, kind in FLAGS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=defaults[name],
            metavar=kind.__name__.upper(),
            help=OWN_HELP.get(name) or field_help(DecodingOptions, name),
        )
    parser.add_argument("--stop", action="append", metavar="STR", help=field_help(DecodingOptions, "stop"))
    parser.add_argument(
        "--on-overflow", choices=["error", "stop", "crop"], default=defaults["on_overflow"],
        help=field_help(DecodingOptions, "on_overflow"),
    )  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="compute everything anew for each token, as a check")
    add_unknown_argument(parser)
    parser.add_device()
    return parser


def run(arguments: list[str]) -> None:
    """Continue the prompts; one prompt alone is streamed, several are done together."""
    values = make_parser().parse(arguments)
    from minigpt.decoding.generate import before_stop, generate
    from minigpt.device import choose_device
    from minigpt.tokenizers import encode_prompt

    device = choose_device(values["device"])
    model, tokenizer = load(values["model"])
    model.to(device)
    tokenizer = reading(tokenizer, values["unknown"])
    prompts = [encode_prompt(tokenizer, text) for text in values["prompt"] or [""]]
    room = model.config.block_size + 1 - max(map(len, prompts))
    default_length = 200 if values["on_overflow"] == "crop" else max(1, min(200, room))
    options = {
        **{name: values[name] for name in FLAGS},
        "max_new_tokens": default_length if values["max_new_tokens"] is None else values["max_new_tokens"],
        "strategy": values["strategy"],
        "stop": values["stop"],
        "on_overflow": values["on_overflow"],
        "use_cache": not values["no_cache"],
        "eos_token_id": tokenizer.eos_token_id,
        "tokenizer": tokenizer,
    }
    alone = (
        len(prompts) == options["num_return_sequences"] == options["num_beams"] == 1 and options["strategy"] != "beam"
    )
    if alone and not values["json"]:
        _stream(model, tokenizer, prompts[0], options)
        return
    start = time.perf_counter()
    out = generate(model, prompts, **options)
    seconds = time.perf_counter() - start
    completions = []
    for number, ids in enumerate(out.sequences):
        index = number // options["num_return_sequences"]
        new_text = tokenizer.decode(ids[len(prompts[index]) :])
        completion = "".join(before_stop([new_text], values["stop"] or ()))
        completions.append({
            "prompt_index": index,
            "text": tokenizer.decode(prompts[index]) + completion,
            "completion": completion,
            "token_ids": ids,
            "score": out.scores[number],
            "finish_reason": out.finish_reasons[number],
        })  # fmt: skip
    num_new = sum(len(ids) - len(prompts[c["prompt_index"]]) for ids, c in zip(out.sequences, completions, strict=True))
    if values["json"]:
        print_json({"completions": completions, "tokens_per_second": num_new / seconds})
        return
    for row in completions:
        print(f"--- prompt {row['prompt_index']}, score {row['score']:.3f}, {row['finish_reason']} ---")
        print(row["text"])
    _say_speed(num_new, seconds)


def _stream(model: GPT, tokenizer: Tokenizer, prompt: list[int], options: dict[str, Any]) -> None:
    """Print the prompt, then every character as soon as its last token is chosen."""
    from minigpt.decoding.generate import before_stop, stream
    from minigpt.tokenizers import TextStream

    tokens = stream(model, prompt, **options)  # checks everything now, before a word is printed
    num_new = 0

    def pieces() -> Iterator[str]:
        nonlocal num_new
        text = TextStream(tokenizer, prompt)
        for token_id in tokens:
            num_new += 1
            yield text.feed(token_id)
        yield text.flush()

    start = time.perf_counter()
    write = sys.stdout.write
    write(tokenizer.decode(prompt))
    for piece in before_stop(pieces(), options["stop"] or ()):
        write(piece)
        sys.stdout.flush()
    write("\n")
    sys.stdout.flush()
    _say_speed(num_new, time.perf_counter() - start)


def _say_speed(num_new: int, seconds: float) -> None:
    print(f"[{num_new} tokens, {num_new / max(seconds, 1e-9):,.0f} a second]", file=sys.stderr)
