"""Which parts of a text stand word for word in a training set: did a model write them, or remember them?

One number for each word answers all questions: the length in words of the longest span that ends with this word and
stands in the training set. The largest number is the longest copied span; an n-gram occurs in the training set if the
number of its last word is at least n.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from minigpt.evaluation.diversity import WORD, words


@dataclass(frozen=True)
class Overlap:
    """A text compared with a training set.

    Attributes:
        text: as it was given.
        lengths: for each of its words, the length of the longest span that ends there and stands in the training set.
    """

    text: str = field(repr=False)
    lengths: tuple[int, ...] = field(repr=False)

    @property
    def longest(self) -> int:
        """The longest span copied from the training set, in words; 0 if the training set has none of the words."""
        return max(self.lengths, default=0)

    @property
    def longest_text(self) -> str:
        """This span as the text has it, blanks included; if there are several, the first."""
        if not self.longest:
            return ""
        end = self.lengths.index(self.longest)
        places = [found.span() for found in WORD.finditer(self.text)]
        return self.text[places[end - self.longest + 1][0] : places[end][1]]


def overlaps(texts: Collection[str], training: Iterable[str]) -> list[Overlap]:
    """Compare texts with a training set.

    Words must be equal, case included. The blanks between them need not be equal, so that different line ends do not
    hide a copy. No span goes from one text, or one training document, into the next.

    Args:
        texts: the texts. They are held in memory with some 600 bytes a word. They are read twice.
        training: the documents of the training set. They are read once, a word at a time: millions of words take
            seconds.
    """
    known = SuffixAutomaton(words(text) for text in texts)
    found = known.matching_lengths((word[0] for word in WORD.finditer(document)) for document in training)
    return [Overlap(text, tuple(lengths)) for text, lengths in zip(texts, found, strict=True)]


def copied_share(found: Sequence[Overlap], n: int) -> float | None:
    """The share of the n-grams of all texts that occur in the training set; None if no text has n words.

    Args:
        found: as `overlaps` returns them.
        n: words in a row. Brown et al. (2020) used 13 to find test data in a training set.
    """
    ends = [length >= n for overlap in found for length in overlap.lengths[n - 1 :]]
    return sum(ends) / len(ends) if ends else None


class SuffixAutomaton:
    """All spans of words that some texts have, as paths from state 0 (Blumer et al., 1985).

    Every span leads to one state, and all spans of a state end at the same positions in the texts. The longest of them
    has `_lengths[state]` words; the others are its suffixes. Suffixes so short that they end at more positions belong
    to `_links[state]`. There are at most two states for each word, however many spans there are.

    Args:
        texts: the words, or other tokens, of each text.
    """

    def __init__(self, texts: Iterable[Iterable[Hashable]]) -> None:
        self._steps: list[dict[Hashable, int]] = [{}]
        self._links = [-1]
        self._lengths = [0]
        self._ends: list[list[int]] = []  # for each text and word, the state of everything up to this word
        state = 0
        for text in texts:
            ends = []
            for word in text:
                state = self._append(state, word)
                ends.append(state)
            self._ends.append(ends)
            state = self._append(state, object())  # a word that equals no other, so that no span crosses it

    def matching_lengths(self, training: Iterable[Iterable[Hashable]]) -> list[list[int]]:
        """For each word of each text, the length of the longest span that ends there and stands in a training document.

        These are the matching statistics of Chang and Lawler (1994). Time grows with the number of training words,
        memory does not.
        """
        longest = [0] * len(self._steps)  # state -> length of its longest span that was found in training
        for document in training:
            self._follow(document, longest)
        order = sorted(range(1, len(longest)), key=self._lengths.__getitem__)
        for state in reversed(order):  # if a span was found, so were its suffixes
            if longest[state]:
                longest[self._links[state]] = self._lengths[self._links[state]]
        for state in order:  # if none of its spans was found, a shorter suffix may have been
            longest[state] = longest[state] or longest[self._links[state]]
        return [[longest[state] for state in ends] for ends in self._ends]

    def _follow(self, document: Iterable[Hashable], longest: list[int]) -> None:
        """Walk along a document, always in the state of the longest span that ends here and stands in the texts."""
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
        """The state of `state`'s longest span followed by `word`, split off from longer spans if it shares theirs."""
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
