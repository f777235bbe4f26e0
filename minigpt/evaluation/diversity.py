"""How varied texts are, measured by n-grams: n tokens, or words, in a row."""

import re
from collections.abc import Hashable, Sequence

from minigpt.errors import InputError

# What counts as a word everywhere in minigpt, as a pattern and as a sentence.
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
WORD_MEANING = "a word: letters, digits and underscores, apostrophes inside; or any other character except a blank"


def words(text: str) -> list[str]:
    """The words of a text, in their own case; `WORD` says what a word is."""
    return WORD.findall(text)


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """How many different n-grams all texts together have, divided by how many they have in all (Li et al., 2016).

    1 means that no n-gram occurs twice.

    Args:
        texts: token ids or words of each text. The share falls with their length, so compare texts of equal length.
        n: length of an n-gram.

    Raises:
        InputError: if `n` is below 1, or no text has n tokens.
    """
    found = [ngram for text in texts for ngram in _ngrams(text, n)]
    _check_any(found, n)
    return len(set(found)) / len(found)


def repeated_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """The share of a text's n-grams that occurred earlier in the same text, averaged over the texts.

    This is seq-rep-n of Welleck et al. (2020): 0 for texts that never repeat themselves. Texts of fewer than n tokens
    are left out. Arguments and errors are those of `distinct_n`.
    """
    usable = [ngrams for ngrams in (_ngrams(text, n) for text in texts) if ngrams]
    _check_any(usable, n)
    return sum(1 - len(set(ngrams)) / len(ngrams) for ngrams in usable) / len(usable)


def _ngrams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise InputError(f"n = {n} is no length of an n-gram", "choose at least 1")
    return [tuple(text[at : at + n]) for at in range(len(text) - n + 1)]


def _check_any(found: Sequence[object], n: int) -> None:
    if not found:
        raise InputError(f"no text has n = {n} tokens", "give longer texts, or a smaller n")
