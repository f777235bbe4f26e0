"""Prompts in, completions out, both as token ids: which decoder runs, when a row ends, and what comes back.

    generate      prompts -> Generation, by any strategy
    stream        one prompt -> ids as they are chosen, greedily or by sampling
    before_stop   text -> what of it may be shown before a stop string

A prompt is a list of ids. Prompts of different lengths share a batch, and no padding is visible to the model.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from minigpt.decoding.beam_search import Hypothesis, beam_search
from minigpt.decoding.filters import all_banned, apply_filters, check_not_empty
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import FinishReason, Noise, Rows, check_prompts, evaluating, greedy, sample
from minigpt.errors import InputError
from minigpt.model import GPT


class TokenBytes(Protocol):
    """What stop strings need of a tokenizer."""

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
    """

    sequences: list[list[int]]
    scores: list[float]
    finish_reasons: list[FinishReason]


def generate(
    model: GPT, prompts: Sequence[Sequence[int]], *, tokenizer: TokenBytes | None = None, **options: Any
) -> Generation:
    """Continue each prompt.

    Args:
        model: stays as it is: its mode, its weights, and the global random state with it.
        prompts: lists of ids, of any lengths.
        tokenizer: where the bytes of a token come from; only `stop` needs it.
        **options: fields of `DecodingOptions`.

    Raises:
        InputError: before any work, if a prompt or an option cannot be used; later, if bans leave no token to choose.
    """
    job = _Job(model, prompts, tokenizer, DecodingOptions(**options))
    return _search(job) if job.options.uses_beams else _collect(job)


def stream(
    model: GPT, prompt_ids: Sequence[int], *, tokenizer: TokenBytes | None = None, **options: Any
) -> Generator[int, None, None]:
    """The ids that `generate` adds to one prompt, each as soon as it is chosen.

    The model is in evaluation mode until the stream ends or is closed.

    Args:
        model: as for `generate`.
        prompt_ids: ids of the prompt.
        tokenizer: where the bytes of a token come from; only `stop` needs it.
        **options: fields of `DecodingOptions`, without beams.

    Raises:
        InputError: at once, if the prompt or an option cannot be used; later, if bans leave no token to choose.
    """
    job = _Job(model, [prompt_ids], tokenizer, DecodingOptions(**options))
    if job.options.uses_beams or job.options.num_return_sequences > 1:
        raise InputError(
            "a stream shows one sequence that only grows, and beams change their minds until the end",
            'choose strategy="sample" or "greedy" with num_beams = num_return_sequences = 1, or call generate',
        )
    return (token.id for step in _steps(job) for token in step)


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
    """

    def __init__(
        self, model: GPT, prompts: Sequence[Sequence[int]], tokenizer: TokenBytes | None, options: DecodingOptions
    ) -> None:
        options.check_ids(model.config.vocab_size)
        self.model = model
        self.options = options
        self.prompts = check_prompts(prompts, model.config.vocab_size)
        self.limits = [self._limit(number, len(prompt)) for number, prompt in enumerate(self.prompts)]
        if isinstance(options.seed, Sequence) and len(options.seed) != len(prompts):
            raise InputError(
                f"{len(options.seed)} seeds do not match {len(prompts)} prompts",
                "give one seed for the whole batch, or a list with one for each prompt",
            )
        if options.stop_strings and tokenizer is None:
            raise InputError(
                f"stop = {options.stop!r} is text, but only ids are known here",
                "pass the model's tokenizer too: tokenizer=tokenizer",
            )
        self._tokenizer = tokenizer
        self._stop = [text.encode("utf-8") for text in options.stop_strings]

    def _limit(self, number: int, length: int) -> int:
        wanted, block_size = self.options.max_new_tokens, self.model.config.block_size
        room = max(0, block_size + 1 - length)  # one more than the block holds: the last token is never fed back
        if wanted <= room or self.options.on_overflow == "crop":
            return wanted
        if self.options.on_overflow == "stop":
            return room
        raise InputError(
            f"prompt {number} of {length} tokens and {wanted} new ones do not fit block_size = {block_size}",
            f"lower max_new_tokens to {room}, " * (room > 0) + "shorten the prompt, or choose on_overflow: "
            '"stop" ends when the block is full, "crop" goes on with the newest tokens',
        )

    def start_rows(self, copies: int) -> Rows:
        """`copies` rows of each prompt that may grow."""
        growing = [(prompt, limit) for prompt, limit in zip(self.prompts, self.limits, strict=True) if limit]
        longest = max(len(prompt) + limit for prompt, limit in growing)
        return Rows(self.model, [prompt for prompt, _ in growing], copies, longest, self.options.use_cache)

    def noise(self) -> Noise | None:
        """What the draws need, if there are any."""
        return Noise(self.options.seed, self.model.wte.weight.device) if self.options.samples else None

    def finish_reason(self, number: int, ids: Sequence[int]) -> FinishReason | None:
        """Why the row `ids` of prompt `number` ends with its last token, or None if it goes on."""
        num_new = len(ids) - len(self.prompts[number])
        if ids[-1] in self.options.eos:
            return "eos"
        if self._tokenizer is not None and self._stop:
            # A match ends in the last token, or the row would have ended before; and a token is at least one byte.
            reach = min(num_new, max(map(len, self._stop)))
            tail = b"".join(map(self._tokenizer.token_bytes, ids[-reach:]))
            if any(stop in tail for stop in self._stop):
                return "stop"
        return self.limit_reason(number) if num_new == self.limits[number] else None

    def limit_reason(self, number: int) -> FinishReason:
        """What it is called when prompt `number` reaches its limit."""
        return "length" if self.limits[number] == self.options.max_new_tokens else "context"


class _Token(NamedTuple):
    """What one step does to one row."""

    row: int
    id: int
    log_prob: float
    finish_reason: FinishReason | None


@torch.inference_mode()
def _steps(job: _Job) -> Iterator[list[_Token]]:
    """Greedy decoding and sampling: each step gives a token to every row that is not done."""
    options, copies = job.options, job.options.num_return_sequences
    num_rows = len(job.prompts) * copies
    alive = [row for row in range(num_rows) if job.limits[row // copies]]  # rows not done, in the order of `rows`
    if not alive:
        return
    with evaluating(job.model):
        rows = job.start_rows(copies)
        noise = job.noise()
        for num_new in itertools.count():
            scores = apply_filters(rows.logits, rows.ids, options, num_new)  # (R, V)
            check_not_empty(scores, options)
            if noise is None:
                chosen = greedy(scores)  # (R,)
            else:
                # Drawn for the rows that are done too: no row's draws depend on when another one ends.
                drawn = noise.draw(num_rows, scores.size(-1))
                chosen = sample(scores, drawn if len(alive) == num_rows else drawn[alive])
            log_probs = rows.logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]  # (R,)
            tokens = chosen.tolist()
            reasons = [
                job.finish_reason(row // copies, [*ids, token])
                for row, ids, token in zip(alive, rows.ids, tokens, strict=True)
            ]
            yield [_Token(*fields) for fields in zip(alive, tokens, log_probs.tolist(), reasons, strict=True)]
            going = [place for place, reason in enumerate(reasons) if reason is None]
            if not going:
                return
            alive = [alive[place] for place in going]
            rows.advance(going, [tokens[place] for place in going])


def _collect(job: _Job) -> Generation:
    """Run greedy decoding or sampling to its end."""
    copies = job.options.num_return_sequences
    sequences = [list(prompt) for prompt in job.prompts for _ in range(copies)]
    scores = [0.0] * len(sequences)
    reasons = [job.limit_reason(number) for number in range(len(job.prompts)) for _ in range(copies)]
    for token in itertools.chain.from_iterable(_steps(job)):
        sequences[token.row].append(token.id)
        scores[token.row] += token.log_prob
        reasons[token.row] = token.finish_reason or reasons[token.row]
    return Generation(sequences, scores, reasons)


@torch.inference_mode()
def _search(job: _Job) -> Generation:
    """Run beam search or beam sampling."""
    options, copies = job.options, job.options.num_return_sequences
    found: list[list[Hypothesis]] = [[] for _ in job.prompts]
    if any(job.limits):
        with evaluating(job.model):
            rows = job.start_rows(options.num_beams)
            found = beam_search(rows, job.limits, options, job.finish_reason, job.noise())
    results = []
    for number, hypotheses in enumerate(found):
        if not job.limits[number]:
            hypotheses = [Hypothesis(0.0, job.prompts[number], job.limit_reason(number))] * copies
        if not hypotheses:
            raise all_banned(options)
        if len(hypotheses) < copies:
            raise InputError(
                f"prompt {number} has only {len(hypotheses)} possible continuations, fewer than num_return_sequences",
                f"lower num_return_sequences = {copies}, raise max_new_tokens, or relax the filters",
            )
        results += hypotheses[:copies]
    return Generation(
        [list(result.ids) for result in results],
        [result.score for result in results],
        [result.finish_reason for result in results],
    )
