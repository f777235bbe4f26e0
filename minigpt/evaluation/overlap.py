"""What of a text stands word for word in a training set: did a model write it, or remember it?

One number a word answers all: how many words, up to and including it, stand in the training set in a row. The largest
is the longest copied span, and an n-gram occurs in the training set if the number at its last word is n or more.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from minigpt.errors import InputError
from minigpt.evaluation.diversity import WORD, words


@dataclass(frozen=True)
class Overlap:
    """A text beside a training set.

    Attributes:
        text: as it was given.
        lengths: for each of its words, how many words in a row end there and stand in the training set.
    """

    text: str = field(repr=False)
    lengths: tuple[int, ...] = field(repr=False)

    @property
    def longest(self) -> int:
        """The longest span copied from the training set, in words; 0 if none of the words is known there."""
        return max(self.lengths, default=0)

    @property
    def longest_text(self) -> str:
        """That span as the text spells it, its blanks too; of several the first."""
        if not self.longest:
            return ""
        end = self.lengths.index(self.longest)
        places = [found.span() for found in WORD.finditer(self.text)]
        return self.text[places[end - self.longest + 1][0] : places[end][1]]


def overlaps(texts: Sequence[str], training: Iterable[str]) -> list[Overlap]:
    """Compare texts with a training set.

    Words must be equal, case included; the blanks between them need not, so that a text is not made new by other line
    ends. No span goes from one text, or one training document, into the next.

    Args:
        texts: what was written. They are held in memory with some 600 bytes a word.
        training: its documents. They are read once, a word at a time: millions of words take seconds.
    """
    known = SuffixAutomaton([words(text) for text in texts])
    found = known.matching_lengths((word[0] for word in WORD.finditer(document)) for document in training)
    return [Overlap(text, tuple(lengths)) for text, lengths in zip(texts, found, strict=True)]


def copied_share(found: Sequence[Overlap], n: int) -> float:
    """The share of the n-grams of all texts that occur in the training set.

    Args:
        found: of `overlaps`.
        n: words in a row. 13 is what Brown et al. (2020) looked for between training set and tests.

    Raises:
        InputError: if no text has n words.
    """
    ends = [length >= n for overlap in found for length in overlap.lengths[n - 1 :]]
    if not ends:
        raise InputError(f"no text has n = {n} words", "give longer texts, or a smaller n")
    return sum(ends) / len(ends)


class SuffixAutomaton:
    """All runs of words that some texts have, as paths from state 0 (Blumer et al., 1985).

    Every run leads to one state, and a state stands for runs that end at the same places. The longest of these has
    `_lengths[state]` words. The shorter ones are its suffixes, down to where they occur at more places: these belong to
    `_links[state]`. There are at most two states a word, however many runs there are.

    Args:
        texts: the words, or other tokens, of each text.
    """

    def __init__(self, texts: Sequence[Sequence[Hashable]]) -> None:
        self._steps: list[dict[Hashable, int]] = [{}]
        self._links = [-1]
        self._lengths = [0]
        self._ends: list[list[int]] = []  # for each text, the state of everything up to a word
        state = 0
        for text in texts:
            ends = []
            for word in text:
                state = self._append(state, word)
                ends.append(state)
            self._ends.append(ends)
            state = self._append(state, object())  # a word that equals no other, so that no run crosses it

    def matching_lengths(self, training: Iterable[Iterable[Hashable]]) -> list[list[int]]:
        """For each word of each text, how many words in a row end there and stand in one of the training documents.

        These are the matching statistics of Chang and Lawler (1994). Time grows with the number of words, memory not.
        """
        longest = [0] * len(self._steps)  # of the runs of each state, as far as training has shown
        for document in training:
            self._follow(document, longest)
        order = sorted(range(1, len(longest)), key=self._lengths.__getitem__)
        for state in reversed(order):  # where a run stands, its suffixes stand
            if longest[state]:
                longest[self._links[state]] = self._lengths[self._links[state]]
        for state in order:  # of a run that does not, a suffix may
            longest[state] = longest[state] or longest[self._links[state]]
        return [[longest[state] for state in ends] for ends in self._ends]

    def _follow(self, document: Iterable[Hashable], longest: list[int]) -> None:
        """Walk along a document, always in the state of the longest run that ends here and that the texts have too."""
        steps, links, lengths = self._steps, self._links, self._lengths
        state = length = 0
        for word in document:
            after = steps[state].get(word)
            while after is None and state:
                state = links[state]
                length = lengths[state]
                after = steps[state].get(word)
            if after is not None:
                state = after
                length += 1
                if length > longest[state]:
                    longest[state] = length

    def _append(self, last: int, word: Hashable) -> int:
        """The new state of everything so far, one word longer than `last`."""
        new = self._add({}, self._lengths[last] + 1)
        state = last
        while state >= 0 and word not in self._steps[state]:
            self._steps[state][word] = new
            state = self._links[state]
        self._links[new] = 0 if state < 0 else self._shared(state, word)
        return new

    def _shared(self, state: int, word: Hashable) -> int:
        """The state of the longest run of `state` and then `word`, parted from longer runs that end at fewer places."""
        after = self._steps[state][word]
        length = self._lengths[state] + 1
        if self._lengths[after] == length:
            return after
        clone = self._add(dict(self._steps[after]), length)
        self._links[clone], self._links[after] = self._links[after], clone
        while state >= 0 and self._steps[state].get(word) == after:
            self._steps[state][word] = clone
            state = self._links[state]
        return clone

    def _add(self, steps: dict[Hashable, int], length: int) -> int:
        self._steps.append(steps)
        self._links.append(0)
        self._lengths.append(length)
        return len(self._steps) - 1
