"""How varied texts are, measured by n-grams: n tokens, or words, in a row."""

import re
from collections.abc import Hashable, Sequence

# What counts as a word everywhere in minigpt, as a pattern and as a sentence.
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
WORD_MEANING = "a word: letters, digits and underscores, apostrophes inside; or any other character except a blank"


def words(text: str) -> list[str]:
    """The words of a text, in their own case; `WORD` says what a word is."""
    return WORD.findall(text)


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """How many different n-grams all texts together have, divided by how many they have in all (Li et al., 2016).

    1 means that no n-gram occurs twice, None that no text has n tokens.

    Args:
        texts: token ids or words of each text. The share falls with their length, so compare texts of equal length.
        n: length of an n-gram, at least 1.
    """
    found = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(found)) / len(found) if found else None


def repeated_n(texts: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """The share of a text's n-grams that occurred earlier in the same text, averaged over the texts.

    This is seq-rep-n of Welleck et al. (2020): 0 for texts that never repeat themselves. Texts of fewer than n tokens
    are left out; None if all are. Arguments are those of `distinct_n`.
    """
    usable = [ngrams for ngrams in (_ngrams(text, n) for text in texts) if ngrams]
    return sum(1 - len(set(ngrams)) / len(ngrams) for ngrams in usable) / len(usable) if usable else None


def _ngrams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(text[at : at + n]) for at in range(len(text) - n + 1)]
