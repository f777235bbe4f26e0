"""`minigpt generate`."""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from minigpt.analysis.edits import ablate
from minigpt.analysis.tracing import edit
from minigpt.cli.models import check_special, load
from minigpt.cli.settings import DEFAULT_LENGTH, EARLY_STOPPING, Generate
from minigpt.cli.streams import print_json, write_product
from minigpt.cli.texts import ids_of, prompt_texts
from minigpt.completion import new_text
from minigpt.data.prompts import SEPARATOR, few_shot_prompt, read_examples
from minigpt.decoding.generate import Generation, Step, before_stop, check_request, generate, stream
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError, brief, counted, named, named_ids
from minigpt.formats.source import open_source
from minigpt.model import GPT
from minigpt.system.files import twice
from minigpt.tokenizers import TextStream, Tokenizer, read

LOOKUP = "lookup"
PROMPTS_TOGETHER = 8  # unless --batch-size says otherwise


def answer(settings: Generate) -> None:
    """Continue the prompts; a single prompt is streamed, several are continued together."""
    without = [ablate(part) for part in settings.ablate]
    if without and settings.weights:
        raise InputError(
            f"--ablate takes parts out of a model, and those of --weights {settings.weights} are packed",
            "leave one of them out",
        )
    texts = _after_examples(settings, prompt_texts(settings))
    copies, rows = settings.options.num_return_sequences, settings.options.batch_size or 1
    if without and settings.draft and (copies > 1 or (rows > 1 and len(texts) > 1)):
        several = f"--num-return-sequences {copies}" if copies > 1 else f"--batch-size {rows}"
        raise InputError(
            f"--ablate edits rows of one length, and with --draft those of {several} grow apart",
            "leave one of the three out",
        )
    model, tokenizer = load(settings, settings.model, settings.adapter)
    if settings.show_special:
        check_special(tokenizer, "--show-special")
    with edit(model, *without) if without else nullcontext():
        _write(settings, texts, model, tokenizer)


def _after_examples(settings: Generate, texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The prompts, each as the query that follows the --examples, if there are any.

    Raises:
        InputError: if a query is blank, or holds what separates examples.
    """
    if settings.examples_file is None:
        return texts
    pairs = read_examples(settings.examples_file)
    prompts = []
    for name, query in texts:
        if not query.strip():
            raise InputError(
                f"{name} is blank, and --examples {settings.examples_file} shows answers to a query",
                'give the input whose output is wanted: minigpt generate --examples FILE "bread"',
            )
        labels = {"input_label": settings.input_label, "output_label": settings.output_label}
        prompts.append(
            (f"{name} with its --examples", few_shot_prompt(pairs, query, instruction=settings.instruction, **labels))
        )
    return prompts


@dataclass(frozen=True)
class _Request:
    """The prompts to continue, and how.

    Attributes:
        prompts: their ids.
        shown: what is shown of them: what was read, and nothing of an empty one, whatever token it starts from.
        names: a name of each prompt, for errors.
        words: what the library's errors call a thing -> what the command line calls it.
        options: the arguments of `generate`, with a seed for each prompt.
        skip_special: whether special tokens are left out of the text.
    """

    model: GPT
    tokenizer: Tokenizer
    prompts: list[list[int]]
    shown: list[str]
    names: list[str]
    words: Mapping[str, str]
    options: dict[str, Any]
    skip_special: bool


def _write(settings: Generate, texts: Sequence[tuple[str, str]], model: GPT, tokenizer: Tokenizer) -> None:
    names = [name for name, _ in texts]
    prompts = [ids_of(tokenizer, name, text) for name, text in texts]
    if again := twice(text for text, _ in settings.bias):
        raise InputError(f"--bias {again[0]!r} is given twice", "give one number for it")
    phrases = {
        "banned_sequences": [_ids(tokenizer, "--ban", text) for text in settings.ban],
        "sequence_bias": {tuple(_ids(tokenizer, "--bias", text)): _number(number) for text, number in settings.bias},
        "required_sequences": [_ids(tokenizer, "--require", text) for text in settings.require],
    }
    words = _words(settings, tokenizer, phrases)
    with _in_words(words, names):
        _check_effect(phrases, tokenizer.end_ids)
        options = {**_options(settings, model, tokenizer, prompts), **phrases}
        check_request(model, prompts, **options)
    beams = settings.options.uses_beams
    skip_special = not settings.show_special
    pairs = zip(texts, prompts, strict=True)
    shown = [tokenizer.decode(ids, skip_special) if text else "" for (_, text), ids in pairs]
    request = _Request(model, tokenizer, prompts, shown, names, words, options, skip_special)
    if options["num_return_sequences"] == len(prompts) == 1 and not beams and not settings.json:
        _stream(request)
        return
    start = time.perf_counter()
    out = _completions(request, together=not settings.ablate or settings.options.batch_size is not None)
    seconds = time.perf_counter() - start
    rows = [_completion(request, number, out) for number in range(len(out.scores))]
    num_new = sum(len(row["token_ids"]) - len(prompts[row["prompt_index"]]) for row in rows)
    if settings.json:
        drafted = {"num_drafted": out.num_drafted, "num_accepted": out.num_accepted} if options["draft"] else {}
        print_json({"completions": rows, "tokens_per_second": num_new / seconds, **drafted})
        return
    for row in rows:
        which = f"prompt {row['prompt_index']}, " if len(prompts) > 1 else ""
        name = "score" if beams else "log-probability"
        print(f"--- {which}{name} {row['score']:.3f}, ended by: {row['finish_reason']} ---")
        write_product(row["text"] + "\n")
    if beams:
        power = f"length ** {options['length_penalty']:g}"
        print(f"[score: the sum of the filtered log-probabilities / {power}]", file=sys.stderr)
    _say_speed(num_new, seconds, out.num_drafted, out.num_accepted)


def _options(settings: Generate, model: GPT, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The arguments of `generate`, with a seed for each prompt."""
    if settings.options.min_new_tokens > 0 and not tokenizer.end_ids:
        raise InputError(
            f"--min-new-tokens {settings.options.min_new_tokens} puts off the end-of-sequence token, but this model "
            "has none",
            "leave --min-new-tokens out",
        )
    length, on_overflow = settings.max_new_tokens, settings.options.on_overflow
    if length is None:
        length = DEFAULT_LENGTH
        if on_overflow == "error":  # the user gave no length, so take what fits; but one token must fit
            fits = max(map(len, prompts)) <= model.config.block_size
            length, on_overflow = (DEFAULT_LENGTH, "stop") if fits else (1, "error")
    return {
        **vars(settings.options),
        "max_new_tokens": length,
        "early_stopping": EARLY_STOPPING[settings.early_stopping],
        "stop": (*settings.stop, *([SEPARATOR] if settings.examples_file else [])),
        "on_overflow": on_overflow,
        "use_cache": not settings.no_cache,
        "eos_token_id": tokenizer.end_ids,
        "seed": [settings.seed + number for number in range(len(prompts))],
        "tokenizer": tokenizer,
        "draft": _drafter(settings, model, tokenizer),
    }


def _ids(tokenizer: Tokenizer, flag: str, text: str) -> list[int]:
    ids = ids_of(tokenizer, f"{flag} {text!r}", text, read)
    if tokenizer.decode(ids, skip_special=False) != text:  # --unknown skip would change this text silently
        raise InputError(
            f"{flag} {text!r} has characters that the model does not know", f"give {flag} a text without them"
        )
    if not ids:
        raise InputError(f"{flag} {text!r} is no token", f"give {flag} a text of at least one character")
    return ids


def _check_effect(phrases: Mapping[str, Any], ends: Sequence[int]) -> None:
    """Refuse what would have no effect: a ban of the end alone, and a bias of a sequence that a banned one ends."""
    for ban in phrases["banned_sequences"]:
        if len(ban) == 1 and ban[0] in ends:
            raise InputError(
                f"{named('banned_sequences')} of {named_ids(ban)} alone would have no effect: it ends a text",
                f"leave it out; {named('min_new_tokens')} puts the end off",
            )
    for ids, ban in itertools.product(phrases["sequence_bias"], phrases["banned_sequences"]):
        if ids[-len(ban) :] == tuple(ban):
            raise InputError(
                f"{named('sequence_bias')} of {named_ids(ids)} would have no effect: {named('banned_sequences')} "
                f"forbids {named_ids(ban)}",
                "take it out of one of the two",
            )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"--bias ... {text} is no number", "give --bias a text and a number: --bias ROMEO -2.5"
        ) from None


def _drafter(settings: Generate, model: GPT, tokenizer: Tokenizer) -> PromptLookup | DraftModel | None:
    """The draft that --draft names.

    Raises:
        InputError: if its tokens differ from the model's.
    """
    number = {} if settings.draft_tokens is None else {"num_tokens": settings.draft_tokens}
    if settings.draft is None:
        return None
    if settings.draft == LOOKUP:
        return PromptLookup(**number)
    drafter, own = open_source(settings.draft).load_for_text(tokenizer=settings.tokenizer, weights=settings.weights)
    if own.fingerprint() != tokenizer.fingerprint():
        raise InputError(
            f"{settings.draft} has other tokens than the model: {own.vocab_size} and {tokenizer.vocab_size} of them",
            "choose a draft model that was trained with the same tokenizer",
        )
    return DraftModel(drafter.to(model.wte.weight.device), **number)


@contextmanager
def _in_words(words: Mapping[str, str], names: Sequence[str]) -> Iterator[None]:
    """Rewrite the library's errors for the command line: texts instead of ids, names of prompts instead of numbers."""
    prompts = {named(f"prompt {number}"): name for number, name in enumerate(names)}
    try:
        yield
    except InputError as error:
        raise InputError(*error.renamed({**words, **prompts})) from error


def _words(settings: Generate, tokenizer: Tokenizer, phrases: dict[str, Any]) -> dict[str, str]:
    """What the library's errors call a thing -> what the command line calls it."""
    required, ends = phrases["required_sequences"], [[end] for end in tokenizer.end_ids]
    known = [*required, *phrases["banned_sequences"], *phrases["sequence_bias"], *ends]
    return {
        **{named_ids(ids): repr(tokenizer.decode(ids, skip_special=False)) for ids in known},
        "banned_sequences": "--ban",
        "sequence_bias": "--bias",
        "required_sequences": "--require",
        named("required_sequences", required): f"--require {brief([*settings.require])}",
        named("early_stopping", True): "--early-stopping yes",
    }


def _completions(request: _Request, together: bool) -> Generation:
    """All completions, under a progress bar. Each prompt has a seed of its own, so nobody's draws depend on others.

    They are written side by side if `together`, else one after the other, because edits need rows of one length.
    """
    options, prompts = request.options, request.prompts
    beams, copies, length = (options[name] for name in ("num_beams", "num_return_sequences", "max_new_tokens"))
    told = {**options, "batch_size": options["batch_size"] or PROMPTS_TOGETHER * max(beams, copies)}
    longest = length * (1 if options["strategy"] == "beam" or beams > 1 else copies)  # of a prompt, in tokens
    outs = []
    with tqdm(total=longest * len(prompts), unit="token", leave=False, disable=None, delay=1) as bar:
        for some in [range(len(prompts))] if together else [[number] for number in range(len(prompts))]:
            told["seed"] = [options["seed"][number] for number in some]
            with _in_words(request.words, [request.names[number] for number in some]):
                advance = partial(_advance, bar, longest * some[0], Counter(), length)
                ours = [prompts[number] for number in some]
                outs.append(generate(request.model, ours, **told, on_step=advance, num_candidates=0))
            bar.update(longest * (some[-1] + 1) - bar.n)
    return Generation(
        sequences=[ids for out in outs for ids in out.sequences],
        scores=[score for out in outs for score in out.scores],
        finish_reasons=[reason for out in outs for reason in out.finish_reasons],
        num_drafted=sum(out.num_drafted for out in outs),
        num_accepted=sum(out.num_accepted for out in outs),
    )


def _advance(bar: tqdm, start: int, written: Counter[int], longest: int, step: Step) -> None:  # type: ignore[type-arg]
    """Move a progress bar on, from where a call of `generate` began; a row that has ended counts in full length."""
    now = Counter([choice.row for choice in step.choices] + [*{candidate.prompt for candidate in step.beams}])
    written.update(now)
    ended = written.keys() - now.keys() if step.beams else {one.row for one in step.choices if one.finish_reason}
    written.update({number: longest - written[number] for number in ended})
    bar.update(start + sum(written.values()) - bar.n)


def _completion(request: _Request, number: int, out: Generation) -> dict[str, Any]:
    """One completion, as --json prints it."""
    index = number // request.options["num_return_sequences"]
    ids, prompt = out.sequences[number], request.prompts[index]
    completion = new_text(request.tokenizer, ids[len(prompt) :], request.options["stop"], request.skip_special)
    return {
        "prompt_index": index,
        "text": request.shown[index] + completion,
        "completion": completion,
        "token_ids": ids,
        "score": out.scores[number],
        "finish_reason": out.finish_reasons[number],
    }


def _stream(request: _Request) -> None:
    """Print the one prompt, then every character as soon as its last token is chosen."""
    tokenizer, options, (prompt,) = request.tokenizer, request.options, request.prompts
    num_new, num_drafted, num_accepted, reason = 0, 0, 0, None

    def count(step: Step) -> None:
        nonlocal num_new, num_drafted, num_accepted, reason
        num_new += len(step.choices)
        num_drafted += step.num_drafted
        num_accepted += sum(choice.drafted for choice in step.choices)
        reason = step.choices[-1].finish_reason

    def pieces() -> Iterator[str]:
        text = TextStream(tokenizer, prompt, request.skip_special)
        for token_id in stream(request.model, prompt, **options, on_step=count, num_candidates=0):
            yield text.feed(token_id)
        yield text.flush()

    start = time.perf_counter()
    try:
        write_product(request.shown[0])
        with _in_words(request.words, request.names):
            for piece in before_stop(pieces(), options["stop"] or ()):
                write_product(piece)
    finally:
        write_product("\n")  # after an error too, because its lines must begin at the left
    _say_speed(num_new, time.perf_counter() - start, num_drafted, num_accepted)
    if reason == "context" or (reason is None and options["max_new_tokens"] != 0):  # None: there was no room at all
        print("[the context is full; with --on-overflow crop it goes on]", file=sys.stderr)


def _say_speed(num_new: int, seconds: float, num_drafted: int, num_accepted: int) -> None:
    drafts = f"; {num_accepted} of {num_drafted} drafted tokens accepted" if num_drafted else ""
    print(f"[{counted(num_new, 'token')}, {num_new / max(seconds, 1e-9):,.0f} a second{drafts}]", file=sys.stderr)
