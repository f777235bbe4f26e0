"""Prompts in, completions out, both as token ids: which decoder runs, when a row ends, and what comes back.

The plain loop, for one prompt and without a cache, is five lines. Before the first pass, `start = len(ids)`; `noise` is
what `Noise.draw` gives, anew in each pass, or None for greedy decoding; and `longest = options.max_new_tokens`::

    logits = model(torch.tensor([ids]))[:, -1]                          # prefill: (1, V)
    scores = apply_filters(logits, [ids], options, [len(ids) - start])  # filter
    token = choose(scores, noise).item()                                # choose
    ids.append(token)                                                   # append
    done = token in options.eos or len(ids) - start == longest          # stop, or begin again

`_steps` and `_choose` below are this loop for many rows at once. What they add:

    ragged rows    prompts of different lengths share a batch, no padding is visible to the model, and a row that has
                   ended leaves the batch (`sampling.Rows`, which also keeps the keys and values)
    drafts         somebody guesses a few tokens ahead; one pass checks all of them, so a step may append several, and
                   what was guessed wrong is taken back (`speculative`)
    stop strings   text that may begin or end inside a token

Beam search is a loop of its own, `beam_search`. What is public:

    generate       prompts -> Generation, by any strategy
    stream         one prompt -> ids as they are chosen, greedily or by sampling
    check_request  refuse what cannot be generated, without generating
    before_stop    text -> what of it may be shown before a stop string
"""

import contextlib
import itertools
import math
import reprlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Unpack

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from minigpt.config import Count
from minigpt.decoding.beam_search import BeamCandidate, Hypothesis, beam_search
from minigpt.decoding.constraints import num_required
from minigpt.decoding.filters import all_banned, apply_filters, check_not_empty
from minigpt.decoding.options import DecodingOptions, Options
from minigpt.decoding.sampling import FinishReason, Noise, NoiseTape, Rows, check_prompts, choose
from minigpt.decoding.speculative import Drafter, DraftModel, ModelDrafter, PromptLookup
from minigpt.errors import InputError, named, named_ids
from minigpt.fields import checked
from minigpt.model import GPT
from minigpt.parameters import evaluating, num_with_text


class TokenBytes(Protocol):
    """What a decoder needs of a tokenizer.

    Attributes:
        vocab_size: number of ids. A model may have more, which have no text; see `parameters.with_text`.
    """

    vocab_size: int

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for: at least one."""


@dataclass(frozen=True)
class Generation:
    """What `generate` returns: completions of prompt 0 first, then of prompt 1, and so on.

    Attributes:
        sequences: ids, prompt included. An end-of-sequence token is kept, and so is the token that completed a stop
            string.
        scores: a beam's score; else the log-probability of the completion as the model sees it, without any filter: the
            sum over its tokens.
        finish_reasons: "eos" (end-of-sequence token), "stop" (a stop string), "length" (max_new_tokens) or "context"
            (the block was full, with on_overflow="stop").
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
        lines = [f"{len(ids)} ids {reprlib.repr(ids)}, score {x:.3f}, {reason}" for ids, x, reason in rows[:5]]
        more = ["..."] if len(rows) > 5 else []
        return "Generation(" + "\n  ".join([*lines, *more]) + ")"


@dataclass(frozen=True)
class Candidate:
    """A token that could have been chosen.

    Attributes:
        id: the token.
        log_prob: what the model gives it.
        probability: what it was chosen with: after every filter, 0 if it was removed.
    """

    id: int
    log_prob: float
    probability: float


@dataclass(frozen=True)
class Choice:
    """A token that one row gets.

    Attributes:
        row: its number: prompt 0's copies come first, then prompt 1's.
        id: the token.
        log_prob: what the model gives it; NaN if nobody watches a stream.
        drafted: whether a draft proposed it.
        finish_reason: what ends the row with this token, if something does.
        candidates: the tokens that the model finds likeliest, best first; empty if nobody watches.
    """

    row: int
    id: int
    log_prob: float
    drafted: bool
    finish_reason: FinishReason | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Step:
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
    num_candidates: Count = 10,
    **options: Unpack[Options],
) -> Generation:
    """Continue each prompt.

    Args:
        model: stays as it is: its mode, its weights, and the global random state with it.
        prompts: lists of ids, of any lengths.
        tokenizer: the model's. `stop` needs the bytes of its tokens, and ids that it does not know are never chosen.
        draft: who guesses several tokens at once, for the model to check (see `speculative`). The text stays the same.
        on_step: is told after each step what was considered and chosen. It cannot change the result.
        num_candidates: how many tokens it is shown; beam search shows all that it considered.
        **options: fields of `DecodingOptions`.

    Raises:
        InputError: before any work, if a prompt or an option cannot be used; later, if bans leave no token to choose,
            or no beam finds room for all required sequences.
    """
    job = _Job(model, prompts, tokenizer, draft, DecodingOptions(**options))
    return _search(job, on_step) if job.options.uses_beams else _collect(job, on_step, num_candidates)


@checked
def stream(
    model: GPT,
    prompt_ids: Sequence[int],
    *,
    tokenizer: TokenBytes | None = None,
    draft: PromptLookup | DraftModel | None = None,
    on_step: Callable[[Step], None] | None = None,
    num_candidates: Count = 10,
    **options: Unpack[Options],
) -> Generator[int, None, None]:
    """The ids that `generate` adds to one prompt, each as soon as it is chosen.

    The model is in evaluation mode until the stream ends or is closed.

    Args:
        model: as for `generate`.
        prompt_ids: ids of the prompt.
        tokenizer: as for `generate`.
        draft: as for `generate`.
        on_step: as for `generate`; it is told of a step before the step's ids are given.
        num_candidates: as for `generate`.
        **options: fields of `DecodingOptions`, without beams.

    Raises:
        InputError: at once, if the prompt or an option cannot be used; later, if bans leave no token to choose.
    """
    job = _Job(model, [prompt_ids], tokenizer, draft, DecodingOptions(**options))
    if job.options.uses_beams or job.options.num_return_sequences > 1:
        raise InputError(
            "a stream shows one sequence that only grows, but a beam search may replace it until the end",
            'choose strategy="sample" or "greedy" with num_beams = num_return_sequences = 1, or call generate',
        )
    return _chosen_ids(job, on_step, num_candidates)


def _chosen_ids(job: "_Job", on_step: Callable[[Step], None] | None, num_candidates: int) -> Generator[int, None, None]:
    """The ids of all steps. Closed early, it closes the steps, whatever this Python does with what it leaves behind."""
    with contextlib.closing(_watched_steps(job, on_step, num_candidates, scored=on_step is not None)) as steps:
        for step in steps:
            for choice in step.choices:
                yield choice.id


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
    _Job(model, prompts, tokenizer, draft, DecodingOptions(**options))


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


class _Job:
    """One call, checked: the prompts, how far each may go, and what ends it.

    Attributes:
        prompts: lists of ids.
        limits: how many tokens each prompt may get.
        vocab_size: how many tokens there are to choose from.
    """

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        tokenizer: TokenBytes | None,
        draft: PromptLookup | DraftModel | None,
        options: DecodingOptions,
    ) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "token_bytes"):
            raise InputError(f"{named('tokenizer', tokenizer)} is none", "give the one that load_model returns")
        self.vocab_size = num_with_text(model, None if tokenizer is None else tokenizer.vocab_size)
        options.check_ids(self.vocab_size)
        self.model = model
        self.draft = draft
        self.options = options
        self.prompts = check_prompts(prompts, self.vocab_size)
        self.limits = [self._limit(number, len(prompt)) for number, prompt in enumerate(self.prompts)]
        if isinstance(options.seed, Sequence) and len(options.seed) != len(self.prompts):
            raise InputError(
                f"{len(options.seed)} seeds do not match {len(self.prompts)} prompts",
                "give one seed for the whole batch, or a list with one for each prompt",
            )
        if options.stop_strings and tokenizer is None:
            raise InputError(
                f"{named('stop', options.stop)} is text, but only ids are known here",
                "pass the model's tokenizer too: tokenizer=tokenizer",
            )
        self._tokenizer = tokenizer
        self._eos = set(options.eos)
        self._stop = [text.encode("utf-8") for text in options.stop_strings]
        self._check_draft()
        self._check_required()

    def _limit(self, number: int, length: int) -> int:
        wanted, block_size = self.options.max_new_tokens, self.model.config.block_size
        room = max(0, block_size + 1 - length)  # one more than the block holds: the last token is never fed back
        if wanted <= room or self.options.on_overflow == "crop":
            return wanted
        if self.options.on_overflow == "stop":
            return room
        too_much = f"and {named('max_new_tokens', wanted)} do not fit" if room else "alone does not fit"
        lower = f"lower {named('max_new_tokens')} to {room}, " if room else ""
        raise InputError(
            f"{named(f'prompt {number}')} of length {length} {too_much} block_size = {block_size}",
            f"{lower}shorten the prompt, or choose {named('on_overflow')}: "
            '"stop" ends when the block is full, "crop" goes on with the newest tokens',
        )

    def _check_draft(self) -> None:
        if self.draft is None:
            return
        if self.options.uses_beams:
            raise InputError(
                f"a draft guesses how one sequence goes on, and {named('num_beams', self.options.num_beams)} changes "
                "sequences",
                f"leave {named('draft')} out, or search without beams",
            )
        with_text = None if self._tokenizer is None else self._tokenizer.vocab_size
        if isinstance(self.draft, DraftModel) and num_with_text(self.draft.model, with_text) != self.vocab_size:
            raise InputError(
                f"the draft model has a vocabulary of {self.draft.model.config.vocab_size} tokens, "
                f"the model one of {self.model.config.vocab_size}",
                "choose a draft model that was trained with the same tokenizer",
            )

    def _check_required(self) -> None:
        required = self.options.required_sequences
        needed = num_required(required)
        for number, limit in enumerate(self.limits if required else ()):
            # With force_eos the last of max_new_tokens is not free. Where the context ends the row earlier, nothing is
            # forced.
            room = limit - (self.options.force_eos and limit == self.options.max_new_tokens)
            if room < needed:
                raise InputError(
                    f"the required sequences hold {needed} tokens, but {named(f'prompt {number}')} gets {room} "
                    "that are free",
                    f"raise {named('max_new_tokens')}, shorten the prompt, or require less",
                )
        for ids, stop in itertools.product(required, self.options.stop_strings):
            # Also where one ends with it: it would be found, and then cut off the text.
            if stop.encode("utf-8") in self._bytes(ids):
                raise InputError(
                    f"{named('required_sequences')} wants {named_ids(ids)}, but {named('stop', stop)} ends the text "
                    "before that",
                    "take it out of one of the two",
                )

    @property
    def num_rows(self) -> int:
        """How many sequences there will be without beams: `num_return_sequences` of each prompt, side by side."""
        return len(self.prompts) * self.options.num_return_sequences

    @property
    def models(self) -> list[GPT]:
        """All that take part."""
        return [self.model, self.draft.model] if isinstance(self.draft, DraftModel) else [self.model]

    def prompt_of(self, row: int) -> int:
        """Which prompt a row continues."""
        return row // self.options.num_return_sequences

    def prompt(self, row: int) -> list[int]:
        """The ids of that."""
        return self.prompts[self.prompt_of(row)]

    def limit(self, row: int) -> int:
        """How many tokens a row may get."""
        return self.limits[self.prompt_of(row)]

    def num_new(self, row: int, ids: Sequence[int]) -> int:
        """How many of a row's ids come after its prompt."""
        return len(ids) - len(self.prompt(row))

    def draft_lengths(self, rows: Sequence[int], ids: Sequence[Sequence[int]], room: int) -> list[int]:
        """How many tokens it makes sense to draft for each row: one more comes from the model."""
        assert self.draft is not None
        longest = min(room, self.draft.num_tokens)
        return [min(longest, self.limit(row) - self.num_new(row, own) - 1) for row, own in zip(rows, ids, strict=True)]

    def start_drafter(self, rows: Sequence[int], tape: NoiseTape | None) -> Drafter | None:
        """Whoever drafts for these rows, and for those that take their places."""
        if isinstance(self.draft, DraftModel):
            theirs = self.start_rows(self.draft.model, list(map(self.prompt_of, rows)))
            return ModelDrafter(theirs, rows, self.options, tape)
        return self.draft

    def start_rows(self, model: GPT, prompt_numbers: Sequence[int]) -> Rows:
        """A row for each of these numbers, with the logits of this model, and room for what takes its place."""
        growing = [(len(prompt), limit) for prompt, limit in zip(self.prompts, self.limits, strict=True) if limit]
        longest = max(length + limit for length, limit in growing)
        fits = max(length for length, _ in growing) <= model.config.block_size
        copies = Counter(prompt_numbers)
        prompts = [self.prompts[number] for number in copies]
        use_cache = self.options.use_cache and fits
        return Rows(model, prompts, [*copies.values()], longest, use_cache, self.vocab_size)

    def noise(self) -> Noise | None:
        """What the draws need, if there are any."""
        return Noise(self.options.seed, self.model.wte.weight.device) if self.options.samples else None

    def finish_reason(self, prompt_number: int, ids: Sequence[int]) -> FinishReason | None:
        """Why the row `ids` of this prompt ends with its last token, or None if it goes on."""
        num_new = len(ids) - len(self.prompts[prompt_number])
        if ids[-1] in self._eos:
            return "eos"
        if self._stop:
            # A match ends in the last token, or the row would have ended before; and a token is at least one byte.
            reach = min(num_new, max(map(len, self._stop)))
            tail = self._bytes(ids[-reach:])
            if any(stop in tail for stop in self._stop):
                return "stop"
        return self.limit_reason(prompt_number) if num_new == self.limits[prompt_number] else None

    def _bytes(self, ids: Sequence[int]) -> bytes:
        """The text of ids, where there are stop strings to look for."""
        assert self._tokenizer is not None
        return b"".join(map(self._tokenizer.token_bytes, ids))

    def limit_reason(self, prompt_number: int) -> FinishReason:
        """What it is called when a row of this prompt reaches its limit."""
        return "length" if self.limits[prompt_number] == self.options.max_new_tokens else "context"


def _watched_steps(
    job: "_Job", on_step: Callable[[Step], None] | None, num_candidates: int, scored: bool = True
) -> Generator[Step, None, None]:
    """The steps of `_steps`, each shown to whoever watches."""
    with contextlib.closing(_steps(job, num_candidates if on_step else 0, scored)) as steps:
        for step in steps:
            if on_step is not None:
                on_step(step)
            yield step


@torch.inference_mode()
def _steps(job: _Job, num_candidates: int = 0, scored: bool = True) -> Generator[Step, None, None]:
    """Greedy decoding and sampling: each step gives every row that goes on a token, or more if a draft was right."""
    numbers = [row for row in range(job.num_rows) if job.limit(row)]
    if not numbers:
        return
    with contextlib.ExitStack() as stack:
        for model in job.models:
            stack.enter_context(evaluating(model))
        batch = _Batch(job, numbers)  # prefill
        while batch.numbers:
            at = batch.places()
            scores = apply_filters(at.logits, at.before, job.options, at.num_new)  # filter
            tokens = choose(scores, batch.noise(at))  # choose
            new = _appended(job, batch, at, scores, tokens, num_candidates, scored)  # append
            yield Step(tuple(itertools.chain.from_iterable(new)), num_drafted=sum(map(len, batch.drafts)))
            batch.go_on(new, tokens)  # stop, or begin again


class _Places(NamedTuple):
    """Where tokens are chosen: after each row, and after each token of its draft. All rows together have M places.

    Attributes:
        logits: float32 (M, V).
        before: the ids before each place, prompt included.
        num_new: how many of them come after the prompt.
        slots: which row of the batch each place belongs to.
        rows: the number of that row.
        ahead: how many tokens of the draft come before the place.
    """

    logits: Tensor
    before: Sequence[Sequence[int]]
    num_new: Sequence[int]
    slots: Sequence[int]
    rows: Sequence[int]
    ahead: Sequence[int]


class _Batch:
    """The rows that are written side by side: what each has, what is drafted for it, and who takes its place.

    Attributes:
        numbers: of the rows, in the order of the batch. Empty when all are done.
        drafts: what each row ends with that is not decided yet.
    """

    def __init__(self, job: _Job, numbers: Sequence[int]) -> None:
        """The first `batch_size` of the rows with these numbers; the others wait."""
        self._job = job
        self.numbers = list(numbers[: job.options.batch_size])
        self._waiting = deque(numbers[len(self.numbers) :])
        self._rows = job.start_rows(job.model, list(map(job.prompt_of, self.numbers)))
        noise = job.noise()
        self._tape = None if noise is None else NoiseTape(noise, job.num_rows, job.vocab_size)
        self._drafter = job.start_drafter(self.numbers, self._tape)
        self.drafts: list[list[int]] = [[] for _ in self.numbers]

    def places(self) -> _Places:
        """Where tokens are chosen next."""
        ids, numbers = self._rows.ids, self.numbers
        if not any(self.drafts):
            num_new = list(map(self._job.num_new, numbers, ids))
            return _Places(self._rows.last_logits, ids, num_new, range(len(ids)), numbers, [0] * len(ids))
        places = [(slot, n) for slot, draft in enumerate(self.drafts) for n in range(len(draft) + 1)]
        slots, ahead = zip(*places, strict=True)
        before = [ids[slot][: len(ids[slot]) - len(self.drafts[slot]) + n] for slot, n in places]
        rows = [numbers[slot] for slot in slots]
        num_new = list(map(self._job.num_new, rows, before))
        return _Places(self._rows.logits[slots, ahead], before, num_new, slots, rows, ahead)  # (R, T, V) -> (M, V)

    def noise(self, at: _Places) -> Tensor | None:
        """Noise (M, V) to choose with, if anything is drawn."""
        if self._tape is None:
            return None
        noise = self._tape.at(at.rows, at.num_new)
        self._tape.keep_only(at.rows, at.num_new)
        return noise

    def go_on(self, new: Sequence[Sequence[Choice]], tokens: Tensor) -> None:
        """Rows that are done leave, and those that wait take their places; all get their new tokens and new logits.

        Args:
            new: the choices of each row.
            tokens: what was chosen at all places, int64 (M,).
        """
        ids = self._rows.ids
        # A row ends with its draft, so all its new tokens but the last are in it already. Keep up to them, and drop the
        # rest of the draft.
        last = {slot: choices[-1].id for slot, choices in enumerate(new) if choices[-1].finish_reason is None}
        keep = {slot: len(ids[slot]) - len(self.drafts[slot]) + len(new[slot]) - 1 for slot in last}
        places = [slot for slot in range(len(ids)) if slot not in last][: len(self._waiting)]
        if places:
            self.numbers[:] = [
                self._waiting.popleft() if slot in places else own for slot, own in enumerate(self.numbers)
            ]
            prompts = [self._job.prompt(self.numbers[slot]) for slot in places]
            upcoming = [self._job.prompt(row) for row in itertools.islice(self._waiting, len(ids) - len(places))]
            self._rows.replace(places, prompts, upcoming)
            last |= {slot: prompt[-1] for slot, prompt in zip(places, prompts, strict=True)}
            keep |= {slot: len(prompt) - 1 for slot, prompt in zip(places, prompts, strict=True)}
        going = sorted(last)
        self.numbers = [self.numbers[slot] for slot in going]
        if not going:
            return
        if self._drafter is None:
            unchanged = len(going) == len(new) and not places  # then `tokens` is what all rows get
            self._rows.advance(going, [[last[slot]] for slot in going], idx=tokens if unchanged else None)
            return
        written = [[*ids[slot][: keep[slot]], last[slot]] for slot in going]
        counts = self._job.draft_lengths(self.numbers, written, self._rows.room(map(len, written)))
        # The first token after a prompt is not drafted, as it is not where the pass over the prompt gives it.
        counts = [0 if slot in places else count for slot, count in zip(going, counts, strict=True)]
        self.drafts = self._drafter.draft(self.numbers, written, counts)
        added = [[last[slot], *draft] for slot, draft in zip(going, self.drafts, strict=True)]
        self._rows.advance(going, added, [keep[slot] for slot in going])


def _appended(
    job: _Job, batch: _Batch, at: _Places, scores: Tensor, tokens: Tensor, num_candidates: int, scored: bool
) -> list[list[Choice]]:
    """New tokens of each row: what was chosen at the places where its draft agrees with it, and one more."""
    chosen = tokens.tolist()
    log_probs = [math.nan] * len(chosen)
    if scored:  # the cross-entropy of a token is minus its log-probability
        log_probs = [-loss for loss in cross_entropy(at.logits, tokens, reduction="none").tolist()]
    candidates = _candidates(at.logits, scores, num_candidates) if num_candidates else [()] * len(chosen)
    new: list[list[Choice]] = [[] for _ in batch.numbers]
    reached = []
    for place, (slot, n, row, token) in enumerate(zip(at.slots, at.ahead, at.rows, chosen, strict=True)):
        if n and not (new[slot][-1].drafted and new[slot][-1].finish_reason is None):
            continue  # a token of the draft before this place was refused, or ended the row: nothing is chosen here
        reached.append(place)
        drafted = token in batch.drafts[slot][n : n + 1]
        reason = job.finish_reason(job.prompt_of(row), [*at.before[place], token])
        new[slot].append(Choice(row, token, log_probs[place], drafted, reason, candidates[place]))
    if job.options.bans:
        check_not_empty(scores[reached], job.options)
    return new


def _candidates(logits: Tensor, scores: Tensor, count: int) -> list[tuple[Candidate, ...]]:
    """The tokens that the model finds likeliest, at each of M places: (M, V), (M, V) -> M times `count`."""
    log_probs = logits.log_softmax(-1)
    best = log_probs.topk(min(count, log_probs.size(-1)))
    probabilities = scores.softmax(-1).gather(-1, best.indices)
    return [
        tuple(Candidate(*fields) for fields in zip(*place, strict=True))
        for place in zip(best.indices.tolist(), best.values.tolist(), probabilities.tolist(), strict=True)
    ]


def _collect(job: _Job, on_step: Callable[[Step], None] | None, num_candidates: int) -> Generation:
    """Run greedy decoding or sampling to its end."""
    prompt_numbers = [job.prompt_of(row) for row in range(job.num_rows)]
    sequences = [list(job.prompts[number]) for number in prompt_numbers]
    scores = [0.0] * len(sequences)
    reasons = [job.limit_reason(number) for number in prompt_numbers]
    num_drafted, num_accepted = 0, 0
    for step in _watched_steps(job, on_step, num_candidates):
        for choice in step.choices:
            sequences[choice.row].append(choice.id)
            scores[choice.row] += choice.log_prob
            reasons[choice.row] = choice.finish_reason or reasons[choice.row]
            num_accepted += choice.drafted
        num_drafted += step.num_drafted
    return Generation(sequences, scores, reasons, num_drafted, num_accepted)


@torch.inference_mode()
def _search(job: _Job, on_step: Callable[[Step], None] | None) -> Generation:
    """Run beam search or beam sampling."""
    options, copies = job.options, job.options.num_return_sequences
    found: list[list[Hypothesis]] = [[] for _ in job.prompts]
    if any(job.limits):
        with evaluating(job.model):
            growing = [number for number, limit in enumerate(job.limits) if limit]
            first = growing[: options.batch_size and options.batch_size // options.num_beams]
            rows = job.start_rows(job.model, [number for number in first for _ in range(options.num_beams)])
            tell = None if on_step is None else lambda beams: on_step(Step(beams=beams))
            found = beam_search(rows, job.prompts, job.limits, options, job.finish_reason, job.noise(), tell)
    results = []
    for number, hypotheses in enumerate(found):
        if not job.limits[number]:
            hypotheses = [Hypothesis(0.0, job.prompts[number], job.limit_reason(number))] * copies
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
                f"{named(f'prompt {number}')}, and {named('num_return_sequences', copies)}",
                f"raise {named('num_beams')} or {named('max_new_tokens')}, ask for fewer, or relax "
                + ", ".join(map(named, options.bans) if options.bans else ["the filters"]),
            )
        results += hypotheses[:copies]
    return Generation(
        [list(result.ids) for result in results],
        [result.score for result in results],
        [result.finish_reason for result in results],
    )
