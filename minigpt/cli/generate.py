"""`minigpt generate`."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigpt.cli.models import add_model_argument, add_unknown_argument, load
from minigpt.cli.parser import CommandParser, field_help, print_json
from minigpt.data.corpora import load_corpus
from minigpt.decoding.generate import Generation, before_stop, generate, stream
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError, MissingFileError
from minigpt.model import GPT
from minigpt.pretrained import load_model
from minigpt.tokenizers import TextStream, Tokenizer, encode_prompt

# flag -> type; names, meanings and defaults are those of DecodingOptions
FLAGS: dict[str, type] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "epsilon_cutoff": float,
    "eta_cutoff": float,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "min_new_tokens": int,
    "num_beams": int,
    "length_penalty": float,
    "num_return_sequences": int,
}
EARLY_STOPPING = {"no": False, "yes": True, "never": "never"}
LOOKUP = "lookup"


def make_parser() -> CommandParser:
    """The parser of `minigpt generate`."""
    defaults = {field.name: field.default for field in dataclasses.fields(DecodingOptions)}
    parser = CommandParser(
        "generate",
        "Continue a text. It appears as it is written.",
        '  minigpt generate --prompt "ROMEO:"\n'
        '  minigpt generate --prompt "ROMEO:" --max-new-tokens 500 --on-overflow crop\n'
        '  minigpt generate --prompt "To be" --temperature 0.5 --top-p 0.9 --num-return-sequences 3\n'
        '  minigpt generate --prompt "To be" --strategy beam --num-beams 5 --json\n'
        '  minigpt generate --prompt "My lord" --strategy beam --num-beams 8 --require "crown"\n'
        "  minigpt generate --prompts-file openings.txt --batch-size 16 --json > out.json",
    )
    add_model_argument(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="the text to continue; may be given several times"
    )
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="a text file with one prompt a line; empty ones are left out"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts that are continued side by side"
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
            help=field_help(DecodingOptions, name),
        )
    parser.add_argument(
        "--early-stopping", choices=[*EARLY_STOPPING], default="no",
        help="end a beam search when num_beams sequences are complete (yes), when the best unfinished one does not "
        "beat them as it stands (no), or when nothing that it can become would (never)",
    )  # fmt: skip
    parser.add_argument(
        "--ban", action="append", metavar="TEXT",
        help="a text that must not be written, as the model's tokenizer spells it; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--bias", action="append", nargs=2, metavar=("TEXT", "NUMBER"),
        help="add a number to the score of a text's last token where its other tokens have just been written; may be "
        "given several times",
    )  # fmt: skip
    parser.add_argument(
        "--require", action="append", metavar="TEXT",
        help="a text that beam search must write somewhere; may be given several times",
    )  # fmt: skip
    parser.add_argument("--stop", action="append", metavar="STR", help=field_help(DecodingOptions, "stop"))
    parser.add_argument(
        "--on-overflow", choices=["error", "stop", "crop"], default=defaults["on_overflow"],
        help=field_help(DecodingOptions, "on_overflow"),
    )  # fmt: skip
    parser.add_argument(
        "--draft", metavar="MODEL",
        help=f"who guesses the next tokens, for --model to check several at once: the same text, sooner. A smaller "
        f"model of the same vocabulary, or {LOOKUP}: copied from the text so far",
    )  # fmt: skip
    parser.add_argument("--draft-tokens", type=int, metavar="N", help="the most tokens to guess at once")
    parser.add_argument(
        "--seed", type=int, default=defaults["seed"], metavar="INT",
        help="of the draws: the same seed gives the same text; the second prompt's is one more, and so on",
    )  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="compute everything anew for each token, as a check")
    add_unknown_argument(parser)
    parser.add_device()
    return parser


def run(arguments: list[str]) -> None:
    """Continue the prompts; one prompt alone is streamed, several are done together."""
    values = make_parser().parse(arguments)
    texts = prompt_texts(values["prompt"], values["prompts_file"])
    model, tokenizer = load(values)
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    options = _options(values, model, tokenizer, max(map(len, prompts)))
    single = len(prompts) == options["num_return_sequences"] == options["num_beams"] == 1
    if single and options["strategy"] != "beam" and not values["json"]:
        _stream(model, tokenizer, prompts[0], {**options, "seed": values["seed"]})
        return
    start = time.perf_counter()
    out = _in_batches(model, prompts, values["batch_size"], values["seed"], options)
    seconds = time.perf_counter() - start
    rows = [_completion(tokenizer, prompts, number, out, options) for number in range(len(out.scores))]
    num_new = sum(len(row["token_ids"]) - len(prompts[row["prompt_index"]]) for row in rows)
    if values["json"]:
        print_json({"completions": rows, "tokens_per_second": num_new / seconds})
        return
    for row in rows:
        which = f"prompt {row['prompt_index']}, " if len(prompts) > 1 else ""
        print(f"--- {which}score {row['score']:.3f}, ended by: {row['finish_reason']} ---")
        print(row["text"])
    _say_speed(num_new, seconds)


def prompt_texts(given: Sequence[str] | None, file: str | None) -> list[str]:
    """The prompts of the command line, and after them those of a file; one empty prompt if there are none.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is not UTF-8, or has no text.
    """
    texts = list(given or ())
    if file is not None:
        if not Path(file).is_file():
            raise MissingFileError(f"there is no file {file}", "name a text file with one prompt a line")
        texts += [line for line in load_corpus(Path(file)).text.split("\n") if line.strip()]
    return texts or [""]


def _options(values: dict[str, Any], model: GPT, tokenizer: Tokenizer, longest: int) -> dict[str, Any]:
    """The arguments of `generate` but for the seed."""
    room = model.config.block_size + 1 - longest
    default_length = 200 if values["on_overflow"] == "crop" else max(1, min(200, room))
    return {
        **{name: values[name] for name in FLAGS},
        "max_new_tokens": default_length if values["max_new_tokens"] is None else values["max_new_tokens"],
        "strategy": values["strategy"],
        "early_stopping": EARLY_STOPPING[values["early_stopping"]],
        "banned_sequences": [_ids(tokenizer, "--ban", text) for text in values["ban"] or ()],
        "sequence_bias": {
            tuple(_ids(tokenizer, "--bias", text)): _number(number) for text, number in values["bias"] or ()
        },
        "required_sequences": [_ids(tokenizer, "--require", text) for text in values["require"] or ()],
        "stop": values["stop"],
        "on_overflow": values["on_overflow"],
        "use_cache": not values["no_cache"],
        "eos_token_id": tokenizer.eos_token_id,
        "tokenizer": tokenizer,
        "draft": _drafter(values, model, tokenizer),
    }


def _ids(tokenizer: Tokenizer, flag: str, text: str) -> list[int]:
    ids = tokenizer.encode(text)
    if not ids:
        raise InputError(f"{flag} {text!r} is no token", f"give {flag} a text of at least one character")
    return ids


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"--bias ... {text} is no number", "give --bias a text and a number: --bias ROMEO -2.5"
        ) from None


def _drafter(values: dict[str, Any], model: GPT, tokenizer: Tokenizer) -> PromptLookup | DraftModel | None:
    """Whoever --draft names.

    Raises:
        InputError: if its tokens are others than the model's, or there is --draft-tokens without it.
    """
    number = {} if values["draft_tokens"] is None else {"num_tokens": values["draft_tokens"]}
    if values["draft"] is None:
        if number:
            raise InputError("--draft-tokens concerns a draft, but there is none", "add --draft, or leave it out")
        return None
    if values["draft"] == LOOKUP:
        return PromptLookup(**number)
    drafter, own = load_model(values["draft"])
    if own.fingerprint() != tokenizer.fingerprint():
        raise InputError(
            f"{values['draft']} has other tokens than the model: {own.vocab_size} and {tokenizer.vocab_size} of them",
            "choose a draft model that was trained with the same tokenizer",
        )
    return DraftModel(drafter.to(model.wte.weight.device), **number)


def _in_batches(
    model: GPT, prompts: Sequence[list[int]], batch_size: int, seed: int, options: dict[str, Any]
) -> Generation:
    """All completions, under a progress bar. Each prompt has a seed of its own, so the batches change nothing."""
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} continues nothing", "choose at least 1")
    done = Generation([], [], [])
    with tqdm(total=len(prompts), unit="prompt", leave=False, disable=len(prompts) <= batch_size or None) as bar:
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            out = generate(model, batch, **options, seed=[seed + first + number for number in range(len(batch))])
            done.sequences.extend(out.sequences)
            done.scores.extend(out.scores)
            done.finish_reasons.extend(out.finish_reasons)
            bar.update(len(batch))
    return done


def _completion(
    tokenizer: Tokenizer, prompts: Sequence[list[int]], number: int, out: Generation, options: dict[str, Any]
) -> dict[str, Any]:
    """One entry of what --json prints."""
    index = number // options["num_return_sequences"]
    ids, prompt = out.sequences[number], prompts[index]
    completion = "".join(before_stop([tokenizer.decode(ids[len(prompt) :])], options["stop"] or ()))
    return {
        "prompt_index": index,
        "text": tokenizer.decode(prompt) + completion,
        "completion": completion,
        "token_ids": ids,
        "score": out.scores[number],
        "finish_reason": out.finish_reasons[number],
    }


def _stream(model: GPT, tokenizer: Tokenizer, prompt: list[int], options: dict[str, Any]) -> None:
    """Print the prompt, then every character as soon as its last token is chosen."""
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
    if len(prompt) + num_new > model.config.block_size and options["on_overflow"] != "crop":
        print("[the model's block is full; with --on-overflow crop it goes on]", file=sys.stderr)


def _say_speed(num_new: int, seconds: float) -> None:
    print(f"[{num_new} tokens, {num_new / max(seconds, 1e-9):,.0f} a second]", file=sys.stderr)
