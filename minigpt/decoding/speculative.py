"""Speculative decoding: guess a few tokens cheaply, and check them all in one pass of the model.

A pass over five tokens takes little longer than a pass over one: with few rows, a model waits for its weights to come
from memory, not for arithmetic. So the next tokens are drafted, the model reads all of them at once, and chooses a
token after each:

    written    to be or not
    draft                     to   be   that   is
    chosen                    to   be   or     ...   ...
    new                       to   be   or

Choices are kept as long as the draft agrees with them. The first that differs is kept too, because everything before it
is what the model chose. So a bad draft costs time, and never changes the text.

Sampling needs no rule of its own, because draft and model draw with the same noise. A draw is a race
(`sampling.sample`) whose noise belongs to a place in the text, not to who draws: the closer the draft's probabilities
are to the model's, the more often the same token wins both races, at total variation distance d at least
(1 - d) / (1 + d) of the time (Daliri, Musco and Suresh, 2024). The rule that is better known (Leviathan, Kalman and
Matias, 2023) accepts 1 - d and has the same distribution, but its text depends on the draft. Here it is the text that
the seed gives without one.

R rows, V tokens in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from minigpt.decoding.filters import apply_filters
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import NoiseTape, Rows, choose
from minigpt.errors import InputError
from minigpt.fields import Bounds, check_fields
from minigpt.model import GPT

_Count = Annotated[int, Bounds(1, 2**63 - 1)]


class Drafter(Protocol):
    """Whoever guesses how rows go on, during one call of `generate`."""

    def draft(self, rows: Sequence[int], ids: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
        """For each row at most `counts[i]` tokens that may come next.

        Args:
            rows: the numbers of the rows that go on, never more than in the call before. A new one takes the place of
                one that is done, and has its prompt alone.
            ids: of each, prompt included.
            counts: how many guesses are of use.
        """


@dataclass(frozen=True)
class PromptLookup:
    """Drafts copied from the row itself: what followed the first time that it ended like this (Saxena, 2023).

    It costs next to nothing, and pays where text repeats itself: code, tables, answers that quote the question.

    Attributes:
        num_tokens: the most tokens to draft at once.
        max_ngram: how many of the last tokens to look for; if they are nowhere else, one less is tried, down to 1.

    Raises:
        InputError: if one of them is below 1.
    """

    num_tokens: _Count = 10
    max_ngram: _Count = 2

    def __post_init__(self) -> None:
        check_fields(self, InputError)

    def draft(self, rows: Sequence[int], ids: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
        """What followed the first occurrence of each row's end."""
        return [list(self._continuation(row)[:count]) for row, count in zip(ids, counts, strict=True)]

    def _continuation(self, ids: Sequence[int]) -> Sequence[int]:
        for size in range(min(self.max_ngram, len(ids) - 1), 0, -1):
            for start in range(len(ids) - size):
                if ids[start : start + size] == ids[-size:]:
                    return ids[start + size :]
        return []


@dataclass(frozen=True)
class DraftModel:
    """Drafts written by a smaller model of the same vocabulary, with the same filters and the same noise.

    Attributes:
        model: stays as it is.
        num_tokens: the most tokens to draft at once.

    Raises:
        InputError: if `num_tokens` is below 1.
    """

    model: GPT
    num_tokens: _Count = 4

    def __post_init__(self) -> None:
        check_fields(self, InputError)


class ModelDrafter:
    """A draft model at work, with a KV-cache of its own.

    Args:
        rows: of the draft model, in evaluation mode, after the prompts.
        numbers: of these rows.
        options: the filters, which shape the draft's choices too.
        tape: the noise of its draws, shared with the model that it drafts for; None if nothing is drawn.
    """

    def __init__(self, rows: Rows, numbers: Sequence[int], options: DecodingOptions, tape: NoiseTape | None) -> None:
        self._rows = rows
        self._numbers = list(numbers)
        self._prompt_lengths = dict(zip(numbers, map(len, rows.ids), strict=True))
        self._options = options
        self._tape = tape

    def draft(self, rows: Sequence[int], ids: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
        """The draft model's choices, one after the other."""
        drafts: list[list[int]] = [[] for _ in rows]
        self._take_in(rows, ids)
        if not max(counts):
            return drafts
        parents = [self._numbers.index(row) for row in rows]
        self._numbers = list(rows)
        # What was accepted of the last draft is there already. The newest token never is: it was the model's choice.
        keep: list[int] | None = [
            min(_agreement(self._rows.ids[parent], written), len(written) - 1)
            for parent, written in zip(parents, ids, strict=True)
        ]
        new = [list(written[n:]) for written, n in zip(ids, keep or (), strict=True)]
        for _ in range(max(counts)):
            self._rows.advance(parents, new, keep)
            steps = [len(row) - self._prompt_lengths[number] for number, row in zip(rows, self._rows.ids, strict=True)]
            scores = apply_filters(self._rows.last_logits, self._rows.ids, self._options, steps)
            chosen = choose(scores, None if self._tape is None else self._tape.at(rows, steps)).tolist()
            for draft, token in zip(drafts, chosen, strict=True):
                draft.append(token)
            parents, new, keep = list(range(len(rows))), [[token] for token in chosen], None
        return [draft[:count] for draft, count in zip(drafts, counts, strict=True)]

    def _take_in(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Rows that are new replace some that are done."""
        new = {number: prompt for number, prompt in zip(rows, ids, strict=True) if number not in self._numbers}
        if not new:
            return
        done = [place for place, number in enumerate(self._numbers) if number not in rows][: len(new)]
        self._rows.replace(done, [*new.values()])
        for place, (number, prompt) in zip(done, new.items(), strict=True):
            self._numbers[place] = number
            self._prompt_lengths[number] = len(prompt)


def _agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids are the same."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
