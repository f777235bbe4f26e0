"""How varied texts are, counted on n-grams: n tokens, or words, in a row."""

import re
from collections.abc import Hashable, Sequence

from minigpt.errors import InputError

# What a word is wherever minigpt counts them, and the same in a line for people.
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
WORD_MEANING = "a word: letters, digits and underscores, apostrophes inside; or any other character but a blank"


def words(text: str) -> list[str]:
    """The words of a text, upper and lower case kept: `WORD` says what one is."""
    return WORD.findall(text)


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all texts together, as a share of their n-grams (Li et al., 2016). 1: none occurs twice.

    Args:
        texts: token ids or words of each text. The share falls with their length, so compare texts of one length.
        n: how many in a row.

    Raises:
        InputError: if `n` is below 1, or no text has n tokens.
    """
    found = [ngram for text in texts for ngram in _ngrams(text, n)]
    _check_any(found, n)
    return len(set(found)) / len(found)


def repeated_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """N-grams that have occurred before in the same text, as a share of its n-grams, averaged over the texts.

    It is seq-rep-n of Welleck et al. (2020): 0 for texts that never repeat themselves. Texts of fewer than n tokens
    are left out. Args and errors are those of `distinct_n`.
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
