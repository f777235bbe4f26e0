"""Prompts in, completions out, both as token ids: which decoder runs, when a row ends, and what comes back.

The plain loop, for one prompt and without a cache, is five lines. Before the first pass, `start = len(ids)`; `noise` is
what `NoiseTape.at` gives, anew in each pass, or None for greedy decoding; and `longest = options.max_new_tokens`::

    logits = model(torch.tensor([ids]))[:, -1]                          # prefill: (1, V)
    scores = apply_filters(logits, [ids], options, [len(ids) - start])  # filter
    token = choose(scores, noise).item()                                # choose
    ids.append(token)                                                   # append
    done = token in options.eos or len(ids) - start == longest          # stop, or begin again

`_steps` below is this loop for many rows at once, line by line. What it adds is behind the names that it calls:

    ragged rows    prompts of different lengths share a batch, no padding is visible to the model, and only new tokens
                   are fed to it (`sampling.Rows`, which keeps the keys and values)
    many prompts   a row that has ended leaves the batch, and a prompt that waits takes its place (`batch`)
    drafts         somebody guesses a few tokens ahead; one pass checks all of them, so a step may append several, and
                   what was guessed wrong is taken back (`speculative`)
    stop strings   text that may begin or end inside a token (`request`)

Beam search is a loop of its own, `beam_search`. What is public:

    generate       prompts -> Generation, by any strategy
    stream         one prompt -> ids as they are chosen, greedily or by sampling
    check_request  refuse what cannot be generated, without generating
    before_stop    text -> what of it may be shown before a stop string
"""

import contextlib
import itertools
import reprlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import torch

from minigpt.config import CountOrOff
from minigpt.decoding.batch import Batch, Choice, Totals
from minigpt.decoding.beam_search import BeamCandidate, Hypothesis, beam_search
from minigpt.decoding.filters import all_banned, apply_filters
from minigpt.decoding.options import DecodingOptions, Options
from minigpt.decoding.request import Request, TokenBytes
from minigpt.decoding.sampling import FinishReason, choose
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError, counted, named
from minigpt.fields import checked
from minigpt.kv_cache import KVCache
from minigpt.model import GPT
from minigpt.parameters import evaluating


@dataclass(frozen=True)
class Generation:
    """What `generate` returns: completions of prompt 0 first, then of prompt 1, and so on.

    Attributes:
        sequences: ids, prompt included. An end-of-sequence token is kept, and so is the token that completed a stop
            string.
        scores: a beam's score; else the log-probability of the completion as the model sees it, without any filter: the
            sum over its tokens.
        finish_reasons: "eos" (end-of-sequence token), "stop" (a stop string), "length" (max_new_tokens) or "context"
            (the context was full, with on_overflow="stop").
        num_drafted: how many tokens a draft proposed, over all sequences.
        num_accepted: how many of them were written.
    """

    sequences: list[list[int]]
    scores: list[float]
    finish_reasons: list[FinishReason]
    num_drafted: int = 0
    num_accepted: int = 0

    def __repr__(self) -> str:
        rows = [*zip(self.sequences, self.scores, self.finish_reasons, strict=True)]
        lines = [
            f"{counted(len(ids), 'id')} {reprlib.repr(ids)}, score {x:.3f}, {reason}" for ids, x, reason in rows[:5]
        ]
        more = ["..."] if len(rows) > 5 else []
        return "Generation(" + "\n  ".join([*lines, *more]) + ")"


class Step(NamedTuple):
    """What one step of `generate` decided; a step is one pass of the model.

    Attributes:
        choices: greedy decoding and sampling: a token for each row that is not done, or several from a draft.
        num_drafted: how many tokens a draft had proposed for this step.
        beams: beam search: what was considered for each prompt.
    """

    choices: tuple[Choice, ...] = ()
    num_drafted: int = 0
    beams: tuple[BeamCandidate, ...] = ()


@checked
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: TokenBytes | None = None,
    draft: PromptLookup | DraftModel | None = None,
    on_step: Callable[[Step], None] | None = None,
    num_candidates: CountOrOff = 10,
    **options: Unpack[Options],
) -> Generation:
    """Continue each prompt.

    Args:
        model: stays as it is: its mode, its weights, and the global random state with it.
        prompts: lists of ids, of any lengths.
        tokenizer: the model's. `stop` needs the bytes of its tokens, and ids that it does not know are never chosen.
            It ends nothing by itself: that takes `eos_token_id=tokenizer.end_ids`, as `complete` gives.
        draft: who guesses several tokens at once, for the model to check (see `speculative`). The text stays the same.
        on_step: is told after each step what was considered and chosen. It cannot change the result.
        num_candidates: how many tokens it is shown, 0 for none; beam search shows all that it considered.
        **options: fields of `DecodingOptions`.

    Raises:
        InputError: before any work, if a prompt or an option cannot be used; later, if bans leave no token to choose,
            or no beam finds room for all required sequences.
    """
    request = Request(model, prompts, tokenizer, draft, DecodingOptions(**options))
    return _search(request, on_step) if request.options.uses_beams else _collect(request, on_step, num_candidates)


@checked
def stream(
    model: GPT,
    prompt_ids: Sequence[int],
    *,
    tokenizer: TokenBytes | None = None,
    draft: PromptLookup | DraftModel | None = None,
    cache: KVCache | None = None,
    on_step: Callable[[Step], None] | None = None,
    num_candidates: CountOrOff = 10,
    **options: Unpack[Options],
) -> Generator[int, None, None]:
    """The ids that `generate` adds to one prompt, each as soon as it is chosen.

    The model is in evaluation mode until the stream ends or is closed.

    Args:
        model: as for `generate`.
        prompt_ids: ids of the prompt.
        tokenizer: as for `generate`.
        draft: as for `generate`.
        cache: one row, which holds the beginning of the prompt, so that this need not be read again. In the end it
            holds all of the prompt and the new ids that was read. None for one of the stream's own.
        on_step: as for `generate`; it is told of a step before the step's ids are given.
        num_candidates: as for `generate`.
        **options: fields of `DecodingOptions`, without beams.

    Raises:
        InputError: at once, if the prompt or an option cannot be used; later, if bans leave no token to choose.
    """
    request = Request(model, [prompt_ids], tokenizer, draft, DecodingOptions(**options), cache)
    beams, several = request.options.uses_beams, request.options.num_return_sequences
    if beams or several > 1:
        raise InputError(
            "a stream shows one sequence that only grows, but a beam search may replace it until the end"
            if beams
            else f"a stream shows one sequence, but {named('num_return_sequences', several)} asks for several",
            'choose strategy="sample" or "greedy" with num_beams = num_return_sequences = 1, or call generate',
        )
    return _chosen_ids(request, on_step, num_candidates)


@torch.inference_mode()
def _chosen_ids(
    request: Request, on_step: Callable[[Step], None] | None, num_candidates: int
) -> Generator[int, None, None]:
    """The ids of all steps.

    If the caller stops early, the steps are ended at once, so that the model gets its mode back without waiting for the
    garbage collector. What was drafted and not given leaves the caller's cache.
    """
    cache, num_read = request.cache, len(request.prompts[0]) - 1
    try:
        with contextlib.closing(_watched_steps(request, on_step, num_candidates)) as steps:
            for step in steps:
                for choice in step.choices:
                    num_read += 1
                    yield choice.id
    finally:
        if cache is not None:
            cache.rollback(max(0, cache.longest - num_read))


@checked
def check_request(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: TokenBytes | None = None,
    draft: PromptLookup | DraftModel | None = None,
    **options: Unpack[Options],
) -> None:
    """Raise where `generate` would refuse these prompts or options, and generate nothing.

    It is for callers that cut many prompts into batches, and ask before the first batch whether all can be continued.

    Args:
        model: as for `generate`, and so is the rest.
        prompts: those of all batches.
        tokenizer: the model's.
        draft: who guesses.
        **options: fields of `DecodingOptions`.

    Raises:
        InputError: where `generate` would, before any work.
    """
    Request(model, prompts, tokenizer, draft, DecodingOptions(**options))


def before_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Text that comes in pieces, up to the first stop string; what may be the beginning of one is held back.

    `generate` and `stream` give the ids of a stop string too, for it may end inside a token. This is for their text,
    streamed or, as `"".join(before_stop([text], stop))`, whole.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [held.find(text) for text in stop if text in held]
        if found:
            yield held[: min(found)]
            return
        lengths = (n for text in stop for n in range(1, len(text)) if held.endswith(text[:n]))
        shown = len(held) - max(lengths, default=0)
        yield held[:shown]
        held = held[shown:]
    yield held


def _watched_steps(
    request: Request, on_step: Callable[[Step], None] | None, num_candidates: int, totals: Totals | None = None
) -> Generator[Step, None, None]:
    """The steps of `_steps`, each shown to whoever watches."""
    watched = on_step is not None
    with contextlib.closing(_steps(request, num_candidates if watched else 0, watched, totals)) as steps:
        for step in steps:
            if on_step is not None:
                on_step(step)
            yield step


def _steps(
    request: Request, num_candidates: int = 0, scored: bool = False, totals: Totals | None = None
) -> Generator[Step, None, None]:
    """Greedy decoding and sampling: each step gives every row that goes on a token, or more if a draft was right.

    The caller sets inference mode: a generator that does has to set it again at each step. What is chosen is added to
    `totals`, if there are any.
    """
    numbers = [row for row in range(request.num_rows) if request.limit(row)]
    if not numbers:
        return
    with contextlib.ExitStack() as stack:
        for model in request.models:
            stack.enter_context(evaluating(model))
        batch = Batch(request, numbers)  # prefill
        while batch.numbers:
            at = batch.places()
            scores = apply_filters(at.logits, at.before, request.options, at.num_new)  # filter
            tokens = choose(scores, batch.noise(at))  # choose
            new = batch.append(at, scores, tokens, num_candidates, scored)  # append
            if totals is not None:
                totals.add(at, tokens, new)
            yield Step(tuple(itertools.chain.from_iterable(new)), num_drafted=sum(map(len, batch.drafts)))
            batch.go_on(new, tokens)  # stop, or begin again


@torch.inference_mode()
def _collect(request: Request, on_step: Callable[[Step], None] | None, num_candidates: int) -> Generation:
    """Run greedy decoding or sampling to its end."""
    prompt_numbers = [request.prompt_of(row) for row in range(request.num_rows)]
    sequences = [list(request.prompts[number]) for number in prompt_numbers]
    totals = Totals(len(sequences))
    reasons = [request.limit_reason(number) for number in prompt_numbers]
    num_drafted, num_accepted = 0, 0
    for step in _watched_steps(request, on_step, num_candidates, totals):
        for choice in step.choices:
            sequences[choice.row].append(choice.id)
            reasons[choice.row] = choice.finish_reason or reasons[choice.row]
            num_accepted += choice.drafted
        num_drafted += step.num_drafted
    return Generation(sequences, totals.read(), reasons, num_drafted, num_accepted)


@torch.inference_mode()
def _search(request: Request, on_step: Callable[[Step], None] | None) -> Generation:
    """Run beam search or beam sampling."""
    options, copies = request.options, request.options.num_return_sequences
    found: list[list[Hypothesis]] = [[] for _ in request.prompts]
    if any(request.limits):
        with evaluating(request.model):
            growing = [number for number, limit in enumerate(request.limits) if limit]
            first = growing[: options.batch_size and options.batch_size // options.num_beams]
            rows = request.start_rows(request.model, [number for number in first for _ in range(options.num_beams)])
            tell = None if on_step is None else lambda beams: on_step(Step(beams=beams))
            tape = request.tape(len(request.prompts), options.num_beams * request.vocab_size)
            found = beam_search(rows, request.prompts, request.limits, options, request.finish_reason, tape, tell)
    results = []
    for number, hypotheses in enumerate(found):
        if not request.limits[number]:
            hypotheses = [Hypothesis(0.0, request.prompts[number], request.limit_reason(number))] * copies
        if not hypotheses and options.required_sequences:
            raise InputError(
                f"no continuation of {named(f'prompt {number}')} was found that holds all of "
                f"{named('required_sequences')}",
                f"raise {named('max_new_tokens')} or {named('num_beams')}, or relax "
                + ", ".join(map(named, options.bans) if options.bans else ["what is required"]),
            )
        if not hypotheses:
            raise all_banned(options)
        if len(hypotheses) < copies:
            raise InputError(
                f"{named('num_beams', options.num_beams)} found {len(hypotheses)} continuations of "
                f"{named(f'prompt {number}')}, but {named('num_return_sequences', copies)} asks for more",
                f"raise {named('num_beams')} or {named('max_new_tokens')}, ask for fewer, or relax "
                + ", ".join(map(named, options.bans) if options.bans else ["the filters"]),
            )
        results += hypotheses[:copies]
    return Generation(
        [list(result.ids) for result in results],
        [result.score for result in results],
        [result.finish_reason for result in results],
    )
