"""How varied texts are, counted on n-grams: n tokens, or words, in a row."""

from collections.abc import Hashable, Sequence

from minigpt.errors import InputError


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all texts together, as a share of their n-grams (Li et al., 2016). 1: none occurs twice.

    Args:
        texts: token ids or words of each text. The share falls with their length, so compare texts of one length.
        n: how many in a row.

    Raises:
        InputError: if `n` is below 1, or no text has n tokens.
    """
    found = [ngram for text in texts for ngram in _ngrams(text, n)]
    if not found:
        raise InputError(f"no text has n = {n} tokens", "give longer texts, or a smaller n")
    return len(set(found)) / len(found)


def repeated_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """N-grams that have occurred before in the same text, as a share of all: 0 for a text that never repeats itself.

    Args and errors are those of `distinct_n`.
    """
    counts = [(len(ngrams), len(set(ngrams))) for ngrams in (_ngrams(text, n) for text in texts)]
    total = sum(number for number, _ in counts)
    if not total:
        raise InputError(f"no text has n = {n} tokens", "give longer texts, or a smaller n")
    return sum(number - different for number, different in counts) / total


def _ngrams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise InputError(f"n = {n} is no length of an n-gram", "choose at least 1")
    return [tuple(text[at : at + n]) for at in range(len(text) - n + 1)]
