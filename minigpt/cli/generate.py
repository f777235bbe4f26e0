"""`minigpt generate`."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tqdm import tqdm

from minigpt.analysis.edits import ablate
from minigpt.analysis.tracing import edit
from minigpt.cli.models import add_model_argument, add_reading_arguments, load
from minigpt.cli.parser import CommandParser, field_help, print_json
from minigpt.cli.streams import given, write_product
from minigpt.completion import new_text
from minigpt.data.corpora import read_text
from minigpt.decoding.generate import Generation, Step, before_stop, check_request, generate, stream
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import DataError, InputError, MissingFileError, brief, named, named_ids
from minigpt.formats.source import open_source
from minigpt.model import GPT
from minigpt.tokenizers import TextStream, Tokenizer, encode_prompt, read

NUMBERS: dict[str, type] = {  # the options that are one number, with its type
    name: kind
    for name, hint in get_type_hints(DecodingOptions).items()
    for kind in (int, float)
    if hint in (kind, kind | None)
}
CHOICES = {
    name: get_args(hint) for name, hint in get_type_hints(DecodingOptions).items() if get_origin(hint) is Literal
}
EARLY_STOPPING = {"no": False, "yes": True, "never": "never"}
LOOKUP = "lookup"
DEFAULT_LENGTH = 200


def make_parser() -> CommandParser:
    """The parser of `minigpt generate`."""
    parser = CommandParser(
        "generate",
        "Continue a text. It appears as it is written.",
        '  minigpt generate "ROMEO:"\n'
        '  minigpt generate --prompt "ROMEO:" --max-new-tokens 500 --on-overflow crop\n'
        '  minigpt generate "To be" --top-p 0.9 --num-return-sequences 3\n'
        '  minigpt generate --prompt "To be" --strategy beam --num-beams 5 --json\n'
        '  minigpt generate "My lord" --strategy beam --num-beams 8 --require "crown"\n'
        '  minigpt generate --prompt "ROMEO:" --ablate 0.1\n'
        "  minigpt generate --prompts-file openings.txt --batch-size 16 --json > out.json",
    )
    add_model_argument(parser)
    add_prompts(parser)
    parser.add_argument(
        "--batch-size", type=int, metavar="N",
        help="prompts that are continued side by side (default: 8, or 1 with --ablate, for then they must be of one "
        "length)",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help=f"the most tokens to add (default: {DEFAULT_LENGTH}, or what fits the model's block)",
    )  # fmt: skip
    for option in dataclasses.fields(DecodingOptions):
        name, kind = option.name, NUMBERS.get(option.name)
        shown = {"type": kind, "metavar": kind.__name__.upper()} if kind else {"choices": CHOICES.get(name)}
        if (kind or name in CHOICES) and name != "max_new_tokens":
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                default=option.default,
                help=field_help(DecodingOptions, name),
                **shown,
            )
    parser.add_argument(
        "--early-stopping", choices=[*EARLY_STOPPING], default="no",
        help="end a beam search when num_beams sequences are complete (yes), when the best unfinished one does not "
        "beat them as it stands (no), or when nothing that it can become would (never)",
    )  # fmt: skip
    parser.add_argument(
        "--ban", dest="banned_sequences", action="append", metavar="TEXT",
        help="a text that must not be written, as the model's tokenizer spells it; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--bias", dest="sequence_bias", action="append", nargs=2, metavar=("TEXT", "NUMBER"),
        help="add a number to the score of a text's last token where its other tokens have just been written; may be "
        "given several times",
    )  # fmt: skip
    parser.add_argument(
        "--require", dest="required_sequences", action="append", metavar="TEXT",
        help="a text that beam search must write somewhere; may be given several times",
    )  # fmt: skip
    parser.add_argument("--stop", action="append", metavar="STR", help=field_help(DecodingOptions, "stop"))
    parser.add_argument(
        "--draft", metavar="MODEL",
        help=f"who guesses the next tokens, for --model to check several at once: the same text, sooner. A smaller "
        f"model of the same vocabulary, or {LOOKUP}: copied from the text so far",
    )  # fmt: skip
    parser.add_argument("--draft-tokens", type=int, metavar="N", help="the most tokens to guess at once")
    parser.add_argument(
        "--seed", type=int, default=DecodingOptions.seed, metavar="INT",
        help="of the draws: the same seed gives the same text, on the same machine; the second prompt's is one more, "
        "and so on",
    )  # fmt: skip
    parser.add_argument(
        "--show-special", action="store_true",
        help="show special tokens, such as the one that ends a document, by their names (default: they are no text)",
    )  # fmt: skip
    parser.add_argument(
        "--ablate", action="append", metavar="L.X",
        help="write without this part: 1.0 a head, 1.attn, 1.mlp; may be given several times",
    )  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="compute everything anew for each token, as a check")
    add_reading_arguments(parser)
    parser.add_device()
    return parser


def run(arguments: list[str]) -> None:
    """Continue the prompts; one prompt alone is streamed, several are done together."""
    values = make_parser().parse(arguments)
    without = [ablate(part) for part in values["ablate"] or ()]
    if values["batch_size"] is None:
        values["batch_size"] = 1 if without else 8
    if values["batch_size"] < 1:
        raise InputError(f"--batch-size {values['batch_size']} continues nothing", "choose at least 1")
    texts = prompt_texts(values)
    model, tokenizer = load(values)
    with edit(model, *without) if without else nullcontext():
        _write(values, texts, model, tokenizer)


def _write(values: dict[str, Any], texts: Sequence[tuple[str, str]], model: GPT, tokenizer: Tokenizer) -> None:
    names = [name for name, _ in texts]
    prompts = [encoded(partial(encode_prompt, tokenizer), name, text) for name, text in texts]
    options, hidden = _options(values, model, tokenizer, prompts), not values["show_special"]
    words = _words(values, tokenizer, options)
    with _in_words(words, names):
        check_request(model, prompts, **options)
    if options["num_return_sequences"] == len(prompts) == 1 and not _uses_beams(options) and not values["json"]:
        _stream(model, tokenizer, prompts[0], words, options, hidden)
        return
    start = time.perf_counter()
    out = _in_batches(model, tokenizer, prompts, names, words, values["batch_size"], options)
    seconds = time.perf_counter() - start
    rows = [_completion(tokenizer, prompts, number, out, options, hidden) for number in range(len(out.scores))]
    num_new = sum(len(row["token_ids"]) - len(prompts[row["prompt_index"]]) for row in rows)
    if values["json"]:
        drafted = {"num_drafted": out.num_drafted, "num_accepted": out.num_accepted} if options["draft"] else {}
        print_json({"completions": rows, "tokens_per_second": num_new / seconds, **drafted})
        return
    for row in rows:
        which = f"prompt {row['prompt_index']}, " if len(prompts) > 1 else ""
        name = "score" if _uses_beams(options) else "log-probability"
        print(f"--- {which}{name} {row['score']:.3f}, ended by: {row['finish_reason']} ---")
        write_product(row["text"] + "\n")
    if _uses_beams(options):
        power = f"length ** {options['length_penalty']:g}"
        print(f"[score: the sum of the filtered log-probabilities / {power}]", file=sys.stderr)
    _say_speed(num_new, seconds, out.num_drafted, out.num_accepted)


def add_prompts(parser: CommandParser) -> None:
    """Add TEXT, --prompt and --prompts-file, which `prompt_texts` reads."""
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help="the text to continue, as with --prompt; - reads standard input"
    )
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="the text to continue; may be given several times"
    )
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="a text file with one prompt a line; empty ones are left out"
    )


def given_prompts(values: dict[str, Any]) -> list[str]:
    """TEXT, and every --prompt, as they were typed."""
    return [text for text in (values["text"], *(values["prompt"] or ())) if text is not None]


def prompt_texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The prompts of the command line, and after them those of a file; one empty prompt if there are none.

    Args:
        values: of the flags of `add_prompts`.

    Returns:
        For each what an error calls it, and its text.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is a folder, is not UTF-8, or has no text.
        InputError: if two prompts are "-", or standard input is not UTF-8.
    """
    prompts, file = given_prompts(values), values["prompts_file"]
    texts = [(f"prompt {number}", text) for number, text in enumerate(given(*prompts))]
    if file is None:
        return texts if len(texts) > 1 else [("the prompt", text) for _, text in texts or [("", "")]]
    advice = "name a text file with one prompt a line"
    if Path(file).is_dir():
        raise DataError(f"{file} is a folder", advice)
    if not Path(file).exists():
        raise MissingFileError(f"there is no file {file}", advice)
    lines = [
        (f"line {n} of {file}", line) for n, line in enumerate(read_text(Path(file)).split("\n"), 1) if line.strip()
    ]
    if not lines:
        raise DataError(f"there is no prompt in {file}", advice)
    return texts + lines


def encoded(encode: Callable[[str], list[int]], name: str, text: str) -> list[int]:
    """Ids of a text; an error says which text it is, if there are others."""
    try:
        return encode(text)
    except InputError as error:
        raise InputError(f"{name}: {error.what}".removeprefix("the prompt: "), error.how) from error


def _options(
    values: dict[str, Any], model: GPT, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The arguments of `generate`, with a seed for each prompt."""
    if values["min_new_tokens"] > 0 and tokenizer.eos_token_id is None:
        raise InputError(
            f"--min-new-tokens {values['min_new_tokens']} puts off the end-of-sequence token, but this model has none",
            "leave --min-new-tokens out",
        )
    length, on_overflow = values["max_new_tokens"], values["on_overflow"]
    if length is None:
        length = DEFAULT_LENGTH
        if on_overflow == "error":  # nobody asked for this length, so what fits will do; but one token must
            fits = max(map(len, prompts)) <= model.config.block_size
            length, on_overflow = (DEFAULT_LENGTH, "stop") if fits else (1, "error")
    return {
        **{name: values[name] for name in (*NUMBERS, *CHOICES)},
        "max_new_tokens": length,
        "early_stopping": EARLY_STOPPING[values["early_stopping"]],
        "banned_sequences": [_ids(tokenizer, "--ban", text) for text in values["banned_sequences"] or ()],
        "sequence_bias": {
            tuple(_ids(tokenizer, "--bias", text)): _number(number) for text, number in values["sequence_bias"] or ()
        },
        "required_sequences": [_ids(tokenizer, "--require", text) for text in values["required_sequences"] or ()],
        "stop": values["stop"],
        "on_overflow": on_overflow,
        "use_cache": not values["no_cache"],
        "eos_token_id": tokenizer.eos_token_id,
        "seed": [values["seed"] + number for number in range(len(prompts))],
        "tokenizer": tokenizer,
        "draft": _drafter(values, model, tokenizer),
    }


def _ids(tokenizer: Tokenizer, flag: str, text: str) -> list[int]:
    ids = encoded(partial(read, tokenizer), f"{flag} {text!r}", text)
    if tokenizer.decode(ids, skip_special=False) != text:  # as --unknown skip leaves it; another text was not asked for
        raise InputError(
            f"{flag} {text!r} has characters that the model does not know", f"give {flag} a text without them"
        )
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
        InputError: if its tokens are others than the model's, or --draft-tokens is below 1 or without it.
    """
    number = {} if values["draft_tokens"] is None else {"num_tokens": values["draft_tokens"]}
    if number and values["draft_tokens"] < 1:
        raise InputError(f"--draft-tokens {values['draft_tokens']} guesses nothing", "choose at least 1")
    if values["draft"] is None:
        if number:
            raise InputError("--draft-tokens concerns a draft, but there is none", "add --draft, or leave it out")
        return None
    if values["draft"] == LOOKUP:
        return PromptLookup(**number)
    drafter, own = open_source(values["draft"]).load_for_text()
    if own.fingerprint() != tokenizer.fingerprint():
        raise InputError(
            f"{values['draft']} has other tokens than the model: {own.vocab_size} and {tokenizer.vocab_size} of them",
            "choose a draft model that was trained with the same tokenizer",
        )
    return DraftModel(drafter.to(model.wte.weight.device), **number)


@contextmanager
def _in_words(words: Mapping[str, str], names: Sequence[str]) -> Iterator[None]:
    """Errors of the library as who types knows it: texts instead of ids, and names instead of numbers of prompts."""
    prompts = {named(f"prompt {number}"): name for number, name in enumerate(names)}
    try:
        yield
    except InputError as error:
        raise InputError(*error.renamed({**words, **prompts})) from error


def _words(values: dict[str, Any], tokenizer: Tokenizer, options: dict[str, Any]) -> dict[str, str]:
    """What an error of the library names otherwise than who types it."""
    required, end = options["required_sequences"], options["eos_token_id"]
    known = [*required, *options["banned_sequences"], *options["sequence_bias"], *([] if end is None else [[end]])]
    return {
        **{named_ids(ids): repr(tokenizer.decode(ids, skip_special=False)) for ids in known},
        named("required_sequences", required): f"--require {brief(values['required_sequences'])}",
        named("early_stopping", True): "--early-stopping yes",
    }


def _in_batches(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    names: Sequence[str],
    words: Mapping[str, str],
    batch_size: int,
    options: dict[str, Any],
) -> Generation:
    """All completions, under a progress bar. Each prompt has a seed of its own, so the batches change no draw."""
    outs = []
    longest, num_batches = options["max_new_tokens"], math.ceil(len(prompts) / batch_size)
    with tqdm(total=longest * num_batches, unit="step", leave=False, disable=None, delay=1) as bar:

        def advance(_: Step) -> None:
            bar.update()

        for number in range(num_batches):
            batch = slice(number * batch_size, (number + 1) * batch_size)
            ours = {**options, "seed": options["seed"][batch]}
            with _in_words(words, names[batch]):
                outs.append(generate(model, prompts[batch], **ours, on_step=advance, num_candidates=1))
            bar.update((number + 1) * longest - bar.n)  # those steps that were not needed
    return Generation(
        sequences=[ids for out in outs for ids in out.sequences],
        scores=[score for out in outs for score in out.scores],
        finish_reasons=[reason for out in outs for reason in out.finish_reasons],
        num_drafted=sum(out.num_drafted for out in outs),
        num_accepted=sum(out.num_accepted for out in outs),
    )


def _completion(
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    number: int,
    out: Generation,
    options: dict[str, Any],
    skip_special: bool,
) -> dict[str, Any]:
    """One entry of what --json prints."""
    index = number // options["num_return_sequences"]
    ids, prompt = out.sequences[number], prompts[index]
    completion = new_text(tokenizer, ids[len(prompt) :], options["stop"], skip_special)
    return {
        "prompt_index": index,
        "text": tokenizer.decode(prompt, skip_special) + completion,
        "completion": completion,
        "token_ids": ids,
        "score": out.scores[number],
        "finish_reason": out.finish_reasons[number],
    }


def _uses_beams(options: dict[str, Any]) -> bool:
    return options["strategy"] == "beam" or options["num_beams"] > 1


def _stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: list[int],
    words: Mapping[str, str],
    options: dict[str, Any],
    skip_special: bool,
) -> None:
    """Print the prompt, then every character as soon as its last token is chosen."""
    num_new, num_drafted, num_accepted, reason = 0, 0, 0, None

    def count(step: Step) -> None:
        nonlocal num_new, num_drafted, num_accepted, reason
        num_new += len(step.choices)
        num_drafted += step.num_drafted
        num_accepted += sum(choice.drafted for choice in step.choices)
        reason = step.choices[-1].finish_reason

    def pieces() -> Iterator[str]:
        text = TextStream(tokenizer, prompt, skip_special)
        for token_id in stream(model, prompt, **options, on_step=count, num_candidates=1):
            yield text.feed(token_id)
        yield text.flush()

    start = time.perf_counter()
    try:
        write_product(tokenizer.decode(prompt, skip_special))
        with _in_words(words, ["the prompt"]):
            for piece in before_stop(pieces(), options["stop"] or ()):
                write_product(piece)
    finally:
        write_product("\n")  # after an error too: its lines begin on the left
    _say_speed(num_new, time.perf_counter() - start, num_drafted, num_accepted)
    if reason == "context" or (reason is None and options["max_new_tokens"] != 0):  # there was no room at all
        print("[the model's block is full; with --on-overflow crop it goes on]", file=sys.stderr)


def _say_speed(num_new: int, seconds: float, num_drafted: int, num_accepted: int) -> None:
    drafts = f"; {num_accepted} of {num_drafted} drafted tokens accepted" if num_drafted else ""
    print(f"[{num_new} tokens, {num_new / max(seconds, 1e-9):,.0f} a second{drafts}]", file=sys.stderr)
