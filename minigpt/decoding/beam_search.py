"""Beam search and beam sampling: keep the B best sequences in view instead of one, and extend them all.

One step, for each prompt:

    B running beams --model, filters--> B x V continuations --best K, or K drawn--> candidates
    candidates --ended, and among the first B--> finished: the best B of them are kept
               --not ended, the best B---------> the running beams of the next step

Candidates are ranked by the sum of their tokens' log-probabilities. A finished one is scored by that sum divided by
length ** length_penalty; the length counts the new tokens, an end-of-sequence token too, and never the prompt's.

N prompts, B beams of each, R = N * B rows, V tokens in the vocabulary, K candidates of each prompt.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from minigpt.decoding.filters import apply_filters
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import FinishReason, Noise, Rows


class Hypothesis(NamedTuple):
    """A finished sequence: its score, its ids, prompt included, and what ended it."""

    score: float
    ids: list[int]
    finish_reason: FinishReason


class _Beam(NamedTuple):
    """A sequence going on: its total (the sum of log-probabilities), its ids, and the row that it continues."""

    total: float
    ids: list[int]
    row: int


def beam_search(
    rows: Rows,
    limits: Sequence[int],
    options: DecodingOptions,
    finish_reason: Callable[[int, Sequence[int]], FinishReason | None],
    noise: Noise | None = None,
) -> list[list[Hypothesis]]:
    """Find sequences of high score for each prompt.

    Args:
        rows: B rows of each prompt whose limit is above 0, side by side.
        limits: for each of the N prompts, how many tokens it may get.
        options: B, length penalty, early stopping, filters.
        finish_reason: (number of the prompt, ids) -> what ends this sequence, or None. It must end one at its limit.
        noise: for beam sampling; without it, the best candidates are taken.

    Returns:
        For each prompt its finished sequences, best first: B of them, or fewer if no more are possible.
    """
    B = options.num_beams
    searches = [_Search(options, limit, functools.partial(finish_reason, n)) for n, limit in enumerate(limits)]
    alive = [number for number, limit in enumerate(limits) if limit]  # prompts still searched, in the order of the rows
    # All beams of a prompt start equal. All but one start dead, or the first step would find each token B times.
    totals = torch.tensor([0.0] + [-math.inf] * (B - 1), device=rows.logits.device).repeat(len(alive))  # (R,)
    num_new = 0
    while alive:
        # Not normalised again after the filters: what they take from a token, they take from its beam.
        log_probs = apply_filters(rows.logits.log_softmax(-1), rows.ids, options, num_new)  # (R, V)
        num_new += 1
        V = log_probs.size(-1)
        continued = (totals[:, None] + log_probs).view(len(alive), B * V)  # (R, V) -> (N, B * V)
        K = min(max(2, 1 + len(options.eos)) * B, B * V)  # each end-of-sequence token may end all B: leave B to go on
        if noise is None:
            chosen = continued.topk(K).indices  # (N, K), best first
        else:
            # The race of `sampling.sample` for K places: a draw without replacement, in the order of arrival.
            speed = continued.softmax(-1) / noise.draw(len(limits), B * V)[alive]
            chosen = speed.topk(K).indices
        best = zip(continued.gather(-1, chosen).tolist(), chosen.tolist(), strict=True)

        running = []
        going = []
        for place, (number, (scores, indices)) in enumerate(zip(alive, best, strict=True)):
            candidates = []
            for total, index in zip(scores, indices, strict=True):
                row, token = place * B + index // V, index % V
                candidates.append(_Beam(total, [*rows.ids[row], token], row))
            beams = searches[number].step(candidates, num_new)
            if beams:
                going.append(number)
                running += beams
        alive = going
        if alive:
            totals = torch.tensor([beam.total for beam in running], device=totals.device)
            rows.advance([beam.row for beam in running], [beam.ids[-1] for beam in running])
    return [search.finished for search in searches]


class _Search:
    """The search for continuations of one prompt.

    Attributes:
        finished: at most B, best first.
    """

    def __init__(
        self, options: DecodingOptions, limit: int, finish_reason: Callable[[Sequence[int]], FinishReason | None]
    ) -> None:
        self.finished: list[Hypothesis] = []
        self._options = options
        self._limit = limit
        self._finish_reason = finish_reason

    def step(self, candidates: Sequence[_Beam], num_new: int) -> list[_Beam]:
        """Keep those candidates that end here; return the B beams that go on, best first, or none if it is over."""
        B = self._options.num_beams
        running = []
        for place, candidate in enumerate(candidates):
            if candidate.total == -math.inf:
                continue  # banned, or the continuation of a dead beam
            reason = self._finish_reason(candidate.ids)
            if reason is None:
                running.append(candidate)
            elif place < B:  # B others are better than one that ends further down
                self.finished.append(Hypothesis(self._score(candidate.total, num_new), candidate.ids, reason))
        running = sorted(running, key=lambda beam: -beam.total)[:B]
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis.score)[:B]
        if not running or self._is_over(running[0].total, num_new):
            return []
        # The number of rows is fixed: where too few beams go on, dead copies of the best stand in.
        return running + [running[0]._replace(total=-math.inf)] * (B - len(running))

    def _is_over(self, best_total: float, num_new: int) -> bool:
        """Whether no running beam is expected to improve what is finished."""
        if len(self.finished) < self._options.num_beams:
            return False
        if self._options.early_stopping is True:
            return True
        # Totals only fall. Where length is rewarded, the best that could still come is today's total at full length:
        # "never" waits as long as that would do. False judges the beam by its present length, which may be too early.
        patient = self._options.early_stopping == "never" and self._options.length_penalty > 0
        return self._score(best_total, self._limit if patient else num_new) <= self.finished[-1].score

    def _score(self, total: float, length: int) -> float:
        return total / math.pow(length, self._options.length_penalty)
