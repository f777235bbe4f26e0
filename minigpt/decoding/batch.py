"""The rows that `generate` writes side by side, and the tokens that they get.

    slot    0     1     2         what is being written, in as many slots as `batch_size` allows
    row     4     1     5         which of all rows that is: 0, 2 and 3 are done, and 6 waits for a slot

A row may end with a draft: tokens that are guessed, and not decided yet. Then a token is chosen at several places:
after the row's text, and after each token of its draft.

R rows in slots, M places, T tokens fed at once, V tokens in the vocabulary.
"""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from minigpt.decoding.filters import check_not_empty
from minigpt.decoding.request import Request
from minigpt.decoding.sampling import FinishReason

_SCORED_AT_ONCE = 4096  # numbers


class Candidate(NamedTuple):
    """A token that could have been chosen.

    Attributes:
        id: the token.
        log_prob: what the model gives it.
        probability: what it was chosen with: after every filter, 0 if it was removed.
    """

    id: int
    log_prob: float
    probability: float


class Choice(NamedTuple):
    """A token that one row gets.

    Attributes:
        row: its number: prompt 0's copies come first, then prompt 1's.
        id: the token.
        log_prob: what the model gives it; NaN if nobody watches.
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


class Places(NamedTuple):
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


class Batch:
    """The rows that are written side by side: what each has, what is drafted for it, and who takes its place.

    Attributes:
        numbers: of the rows, in the order of the batch. Empty when all are done.
        drafts: the guessed tokens at the end of each row, which are not checked yet.
    """

    def __init__(self, request: Request, numbers: Sequence[int]) -> None:
        """The first `batch_size` of the rows with these numbers; the others wait."""
        self._request = request
        self.numbers = list(numbers[: request.options.batch_size])
        self._waiting = deque(numbers[len(self.numbers) :])
        prompt_numbers = list(map(request.prompt_of, self.numbers))
        self._rows = request.start_rows(request.model, prompt_numbers, request.cache)
        self._tape = request.tape(request.num_rows, request.vocab_size)
        self._drafter = request.start_drafter(self.numbers, self._tape)
        self.drafts: list[list[int]] = [[] for _ in self.numbers]

    def places(self) -> Places:
        """Where tokens are chosen next."""
        ids, numbers = self._rows.ids, self.numbers
        if not any(self.drafts):
            num_new = list(map(self._request.num_new, numbers, ids))
            return Places(self._rows.last_logits, ids, num_new, range(len(ids)), numbers, [0] * len(ids))
        places = [(slot, n) for slot, draft in enumerate(self.drafts) for n in range(len(draft) + 1)]
        slots, ahead = zip(*places, strict=True)
        before = [ids[slot][: len(ids[slot]) - len(self.drafts[slot]) + n] for slot, n in places]
        rows = [numbers[slot] for slot in slots]
        num_new = list(map(self._request.num_new, rows, before))
        return Places(self._rows.logits[slots, ahead], before, num_new, slots, rows, ahead)  # (R, T, V) -> (M, V)

    def noise(self, at: Places) -> Tensor | None:
        """Noise (M, V) to choose with, if anything is drawn."""
        if self._tape is None:
            return None
        noise = self._tape.at(at.rows, at.num_new)
        self._tape.keep_only(at.rows, at.num_new)
        return noise

    def append(
        self, at: Places, scores: Tensor, tokens: Tensor, num_candidates: int = 0, scored: bool = False
    ) -> list[list[Choice]]:
        """The new tokens of each row: what was chosen at the places where its draft agrees with it, and one more.

        Args:
            at: the places.
            scores: what was chosen by, float32 (M, V).
            tokens: what was chosen, int64 (M,).
            num_candidates: how many tokens somebody wants to see of each place.
            scored: whether somebody wants log-probabilities.
        """
        chosen = tokens.tolist()
        log_probs = [math.nan] * len(chosen)
        if scored:
            log_probs = _log_probs([at.logits], [tokens])
        candidates = _candidates(at.logits, scores, num_candidates) if num_candidates else [()] * len(chosen)
        new: list[list[Choice]] = [[] for _ in self.numbers]
        reached = []
        for place, (slot, n, row, token) in enumerate(zip(at.slots, at.ahead, at.rows, chosen, strict=True)):
            if n and not (new[slot][-1].drafted and new[slot][-1].finish_reason is None):
                continue  # a token of the draft before this place was refused, or ended the row: nothing is chosen here
            reached.append(place)
            drafted = token in self.drafts[slot][n : n + 1]
            reason = self._request.finish_reason(self._request.prompt_of(row), at.before[place], token)
            new[slot].append(Choice(row, token, log_probs[place], drafted, reason, candidates[place]))
        if self._request.options.bans:
            check_not_empty(scores[reached], self._request.options)
        return new

    def go_on(self, new: Sequence[Sequence[Choice]], tokens: Tensor) -> None:
        """Rows that are done leave, and those that wait take their places; all get their new tokens and new logits.

        For example, a slot whose draft is right in its first token and wrong in its second::

            ids     a b c D E      the row: text, then the draft D E, which was fed with c
            new     D F            the choices after c and after D
            last    F              the newest token: the model has not read it yet
            keep    4              a b c D, the ids that the model has read and that stay
            written a b c D F      the new text, for which the next draft, G H, is asked
            fed     F G H          the newest token and its draft: `added`

        Args:
            new: the choices of each row.
            tokens: what was chosen at all places, int64 (M,).
        """
        ids = self._rows.ids
        if self._drafter is None and all(choices[-1].finish_reason is None for choices in new):
            self._rows.advance(range(len(ids)), [[choices[-1].id] for choices in new], idx=tokens)
            return
        # By slot. A row ends with its draft, so all its new tokens except the last are in it already: keep the text and
        # the accepted part of the draft, and drop the rest.
        last = {slot: choices[-1].id for slot, choices in enumerate(new) if choices[-1].finish_reason is None}
        keep = {slot: len(ids[slot]) - len(self.drafts[slot]) + len(new[slot]) - 1 for slot in last}
        begun = self._fill([slot for slot in range(len(ids)) if slot not in last])
        for slot in begun:  # the prompt's last id is all that the row lacks
            prompt = self._request.prompt(self.numbers[slot])
            last[slot], keep[slot] = prompt[-1], len(prompt) - 1
        going = sorted(last)  # slots; a list below has an item for each of them
        self.numbers = [self.numbers[slot] for slot in going]
        if not going:
            return
        if self._drafter is None:
            self._rows.advance(going, [[last[slot]] for slot in going])
            return
        written = [[*ids[slot][: keep[slot]], last[slot]] for slot in going]
        counts = self._request.draft_lengths(self.numbers, written, self._rows.room(map(len, written)))
        # A prompt that has just come in gets no draft yet, like the first prompts, for which `drafts` begins empty.
        counts = [0 if slot in begun else count for slot, count in zip(going, counts, strict=True)]
        self.drafts = self._drafter.draft(self.numbers, written, counts)
        added = [[last[slot], *draft] for slot, draft in zip(going, self.drafts, strict=True)]
        self._rows.advance(going, added, [keep[slot] for slot in going])

    def _fill(self, free: Sequence[int]) -> list[int]:
        """Rows that wait take the first of these slots, which are returned; each has its prompt except the last id."""
        filled = list(free[: len(self._waiting)])
        if filled:
            for slot in filled:
                self.numbers[slot] = self._waiting.popleft()
            soon = itertools.islice(self._waiting, len(self.numbers) - len(filled))
            prompts = [self._request.prompt(self.numbers[slot]) for slot in filled]
            self._rows.replace(filled, prompts, [self._request.prompt(number) for number in soon])
        return filled


class Totals:
    """The log-probability of all that each row has written.

    It is computed for several steps at once, because in a small model starting takes longer than computing.
    """

    def __init__(self, num_rows: int) -> None:
        self._totals = [0.0] * num_rows
        self._logits: list[Tensor] = []  # of the steps that are not in the totals yet, and so below
        self._tokens: list[Tensor] = []
        self._rows: list[int | None] = []  # of each place; None where nothing was chosen

    def add(self, at: Places, tokens: Tensor, new: Sequence[Sequence[Choice]]) -> None:
        """A step: its places, what was chosen there, int64 (M,), and which choices were reached in each slot."""
        self._logits.append(at.logits)
        self._tokens.append(tokens)
        places = zip(at.rows, at.slots, at.ahead, strict=True)
        self._rows += [row if ahead < len(new[slot]) else None for row, slot, ahead in places]
        if len(self._rows) * at.logits.size(-1) >= _SCORED_AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        for row, log_prob in zip(self._rows, _log_probs(self._logits, self._tokens), strict=True):
            if row is not None:
                self._totals[row] += log_prob
        self._logits, self._tokens, self._rows = [], [], []

    def read(self) -> list[float]:
        """Of each row, in nats."""
        if self._rows:
            self._sum_up()
        return self._totals


def _log_probs(logits: Sequence[Tensor], tokens: Sequence[Tensor]) -> list[float]:
    """The log-probability of each token, (M,), by the logits beside it, (M, V): minus its cross-entropy."""
    of_all, chosen = (torch.cat(list(parts)) if len(parts) > 1 else parts[0] for parts in (logits, tokens))
    return [-loss for loss in cross_entropy(of_all, chosen, reduction="none").tolist()]


def _candidates(logits: Tensor, scores: Tensor, count: int) -> list[tuple[Candidate, ...]]:
    """The tokens that the model finds likeliest, at each of M places: (M, V), (M, V) -> M times `count`."""
    log_probs = logits.log_softmax(-1)
    best = log_probs.topk(min(count, log_probs.size(-1)))
    probabilities = scores.softmax(-1).gather(-1, best.indices)
    return [
        tuple(Candidate(*fields) for fields in zip(*place, strict=True))
        for place in zip(best.indices.tolist(), best.values.tolist(), probabilities.tolist(), strict=True)
    ]
