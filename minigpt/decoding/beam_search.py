"""Beam search and beam sampling: keep the B best sequences in view instead of one, and extend them all.

One step, for each prompt:

    B running beams --model, filters--> B x V continuations --best K, or K drawn--> candidates
    candidates --ended, and among the first B--> finished: the best B of them are kept
               --not ended, the best B---------> the running beams of the next step

Candidates are ranked by the sum of their tokens' log-probabilities. A finished one is scored by that sum divided by
length ** length_penalty; the length counts the new tokens, an end-of-sequence token too, and never the prompt's.
Where words must appear (`constraints`), the tokens that bring them on are candidates too, a sequence ends only when it
has all of them, and candidates are taken in the order of `constraints.in_turn`, not of their sums.

N prompts, B beams of each, R = N * B rows, V tokens in the vocabulary, K candidates of each prompt.
"""

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from minigpt.decoding.constraints import in_turn, next_tokens, num_required, progress
from minigpt.decoding.filters import apply_filters
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import FinishReason, NoiseTape, Rows, tensor


class Hypothesis(NamedTuple):
    """A finished sequence: its score, its ids, prompt included, and what ended it."""

    score: float
    ids: list[int]
    finish_reason: FinishReason


@dataclass(frozen=True)
class BeamCandidate:
    """What one step considered for one prompt: a beam and a token that may follow it. Best first, or as drawn.

    Attributes:
        prompt: its number.
        parent: the place of the beam among its prompt's: 0 to B - 1.
        id: the token.
        total: the sum of log-probabilities, after filters, of the sequence's tokens.
        kept: whether it goes on, or is among the best B finished ones of now.
        place: where it goes on; the next step names it by this as `parent`.
        finish_reason: what ends it, if something does.
    """

    prompt: int
    parent: int
    id: int
    total: float
    kept: bool
    place: int | None
    finish_reason: FinishReason | None


class _Beam(NamedTuple):
    """A row that goes on with a token, and the sum of log-probabilities then.

    Attributes:
        total: the sum.
        row: its number.
        before: its ids, which are those of `Rows`: they grow with the next step.
        token: the token.
    """

    total: float
    row: int
    before: Sequence[int]
    token: int

    @property
    def ids(self) -> list[int]:
        """The whole sequence."""
        return [*self.before, self.token]


def beam_search(
    rows: Rows,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    options: DecodingOptions,
    finish_reason: Callable[[int, Sequence[int], int], FinishReason | None],
    tape: NoiseTape | None = None,
    on_step: Callable[[tuple[BeamCandidate, ...]], None] | None = None,
) -> list[list[Hypothesis]]:
    """Find sequences of high score for each prompt.

    Args:
        rows: B rows, side by side, of each of the first prompts whose limit is above 0. The others take the places of
            those whose search is over.
        prompts: the ids of all.
        limits: for each prompt, how many tokens it may get.
        options: B, length penalty, early stopping, filters.
        finish_reason: (number of the prompt, ids, the next id) -> what ends this sequence, or None. It must end one at
            its limit.
        tape: noise (N, B * V) for beam sampling; without it, the best candidates are taken.
        on_step: is told after each step what it considered.

    Returns:
        For each prompt its finished sequences, best first: B of them, or fewer if no more are possible.
    """
    B = options.num_beams
    searches = [_Search(options, limit, functools.partial(finish_reason, n)) for n, limit in enumerate(limits)]
    waiting = deque(number for number, limit in enumerate(limits) if limit)
    alive = [waiting.popleft() for _ in range(len(rows.ids) // B)]  # prompts being searched, in the order of the rows
    running = [beam for place, number in enumerate(alive) for beam in _equal_beams(prompts[number], B, place * B)]
    ranks = [*range(B)] * len(alive)  # of the beam in each row, among its prompt's
    while alive:
        totals = tensor([[beam.total] for beam in running], np.float32, rows.last_logits.device)  # (R, 1)
        num_new = [searches[number].num_new for number in alive]
        # No second log_softmax after the filters: what a penalty takes from a token's score, its beam loses too.
        log_probs = rows.last_logits.log_softmax(-1)  # (R, V)
        log_probs = apply_filters(log_probs, rows.ids, options, [n for n in num_new for _ in range(B)])
        V = log_probs.size(-1)
        continued = log_probs.add_(totals).view(len(alive), B * V)  # (R, V) -> (N, B * V)
        # At worst all B beams have each end-of-sequence token first, which are len(eos) * B that end: leave B to go on.
        K = min(max(2, 1 + len(options.eos)) * B, B * V)
        if tape is None:
            values, chosen = continued.topk(K)  # (N, K), best first
        else:
            # The race of `sampling.sample` for K places: a draw without replacement, in the order of arrival.
            noise = tape.at(alive, num_new).view(-1, V)  # by rank
            noise = noise[[row - row % B + rank for row, rank in enumerate(ranks)]]  # by row
            speed = continued.softmax(-1) / noise.view_as(continued)
            tape.keep_only(alive, num_new)
            chosen = speed.topk(K).indices
            values = continued.gather(-1, chosen)

        running, going, new_ranks = [], [], []
        seen: list[BeamCandidate] = []
        for place, (number, indices, sums) in enumerate(zip(alive, chosen.tolist(), values.tolist(), strict=True)):
            first_row = place * B
            if options.required_sequences:
                start = len(prompts[number])
                new = [ids[start:] for ids in rows.ids[first_row : first_row + B]]
                sums, indices = _with_required(indices, continued[place], new, options.required_sequences)
            candidates = []
            for total, index in zip(sums, indices, strict=True):
                row = first_row + index // V
                candidates.append(_Beam(total, row, rows.ids[row], index % V))
            beams = searches[number].step(candidates)
            if on_step is not None:
                seen += searches[number].report(number, ranks, candidates, beams)
            if not beams and waiting:
                number = waiting.popleft()
                beams = _equal_beams(prompts[number], B, first_row)
                upcoming = [prompts[n] for n in itertools.islice(waiting, len(alive) - 1)]
                rows.replace([beam.row for beam in beams], [prompts[number]] * B, upcoming)
            if beams:
                going.append(number)
                order = _order(beams, first_row)
                running += [beams[rank] for rank in order]
                new_ranks += order
        if on_step is not None:
            on_step(tuple(seen))
        alive, ranks = going, new_ranks
        if alive:
            rows.advance([beam.row for beam in running], [[beam.token] for beam in running])
    return [search.finished for search in searches]


def _equal_beams(prompt: Sequence[int], count: int, first_row: int) -> list[_Beam]:
    """How a search begins: all beams except one are at -inf, or the first step would find each token B times."""
    return [_Beam(-math.inf if n else 0.0, first_row + n, prompt[:-1], prompt[-1]) for n in range(count)]


def _order(beams: Sequence[_Beam], first_row: int) -> list[int]:
    """The ranks of the beams that a prompt's rows become: a row goes on with its first child, which is not copied."""
    first: dict[int, int] = {}
    others = iter([rank for rank, beam in enumerate(beams) if first.setdefault(beam.row, rank) != rank])
    return [first[row] if row in first else next(others) for row in range(first_row, first_row + len(beams))]


def _with_required(
    indices: Sequence[int], continued: Tensor, new: Sequence[Sequence[int]], required: Sequence[Sequence[int]]
) -> tuple[list[float], list[int]]:
    """The best candidates of one prompt, each beam's own best, and those that bring required sequences on, best first.

    Args:
        indices: the best, as indices into `continued`.
        continued: totals (B * V) of all continuations.
        new: the new tokens of the B beams.
        required: the sequences.

    Returns:
        Their totals, and their indices.
    """
    by_beam = continued.view(len(new), -1)  # (B * V) -> (B, V)
    V = by_beam.size(1)
    wanted = {
        beam * V + token
        for beam, (ids, best) in enumerate(zip(new, by_beam.argmax(-1).tolist(), strict=True))
        for token in (best, *next_tokens(ids, required))
    }
    together = sorted(wanted.union(indices))
    pairs = sorted(zip(continued[together].tolist(), together, strict=True), key=lambda pair: -pair[0])
    return [total for total, _ in pairs], [index for _, index in pairs]


class _Search:
    """The search for continuations of one prompt.

    Attributes:
        finished: at most B, best first.
        num_new: how many tokens each beam has after the prompt.
    """

    def __init__(
        self, options: DecodingOptions, limit: int, finish_reason: Callable[[Sequence[int], int], FinishReason | None]
    ) -> None:
        self.finished: list[Hypothesis] = []
        self.num_new = 0
        self._options = options
        self._limit = limit
        self._finish_reason = finish_reason

    def step(self, candidates: Sequence[_Beam]) -> list[_Beam]:
        """Keep those candidates that end here; return the B beams that go on, best first, or none if it is over."""
        self.num_new = num_new = self.num_new + 1
        B = self._options.num_beams
        running = []
        for place, (candidate, reason) in enumerate(self._possible(candidates, num_new)):
            if reason is None:
                running.append(candidate)
            elif place < B:  # B others are better than one that ends further down
                self.finished.append(Hypothesis(self._score(candidate.total, num_new), candidate.ids, reason))
        if self._options.samples:  # candidates came in the order of the draw
            running.sort(key=lambda beam: -beam.total)
        running = sorted(running[:B], key=lambda beam: -beam.total)
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis.score)[:B]
        if not running or self._is_over(running[0].total, num_new):
            return []
        # The number of rows is fixed: where too few beams go on, dead copies of the best stand in.
        if len(running) < B:
            running += [running[0]._replace(total=-math.inf)] * (B - len(running))
        return running

    def report(
        self, number: int, ranks: Sequence[int], candidates: Sequence[_Beam], beams: Sequence[_Beam]
    ) -> list[BeamCandidate]:
        """What `step` has just done with the candidates of prompt `number`."""
        told = []
        for candidate in candidates:
            if candidate.total == -math.inf:
                continue
            place, ids = next((place for place, beam in enumerate(beams) if beam is candidate), None), candidate.ids
            kept = place is not None or any(hypothesis.ids == ids for hypothesis in self.finished)
            told.append(
                BeamCandidate(
                    prompt=number,
                    parent=ranks[candidate.row],
                    id=candidate.token,
                    total=candidate.total,
                    kept=kept,
                    place=place,
                    finish_reason=self._finish_reason(candidate.before, candidate.token),
                )
            )
        return told

    def _possible(self, candidates: Sequence[_Beam], num_new: int) -> list[tuple[_Beam, FinishReason | None]]:
        """The candidates that may be kept, each with what ends it, in the order in which they are served."""
        # One whose total is -inf is banned, or the continuation of a dead beam.
        alive = ((each, self._finish_reason(each.before, each.token)) for each in candidates if each.total != -math.inf)
        required = self._options.required_sequences
        if not required:
            return [*alive]
        possible = []
        for candidate, reason in alive:
            in_place = progress(candidate.ids[-num_new:], required)
            if reason is None or in_place == num_required(required):  # else it ends before all is written
                possible.append((in_place, candidate, reason))
        return [(candidate, reason) for _, candidate, reason in in_turn(possible, lambda entry: entry[0])]

    def _is_over(self, best_total: float, num_new: int) -> bool:
        """Whether no running beam is expected to improve what is finished."""
        if len(self.finished) < self._options.num_beams:
            return False
        if self._options.early_stopping is True:
            return True
        # A total never rises. If length_penalty is above 0, a beam's best possible score is its present total at full
        # length, and "never" compares with that. False takes the present length, and may stop too early.
        patient = self._options.early_stopping == "never" and self._options.length_penalty > 0
        return self._score(best_total, self._limit if patient else num_new) <= self.finished[-1].score

    def _score(self, total: float, length: int) -> float:
        return total / math.pow(length, self._options.length_penalty)
