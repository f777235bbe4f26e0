"""Counted by hand."""

import pytest

from minigpt.evaluation.diversity import distinct_n, repeated_n, words


def test_a_hand_worked_text():
    text = "to be or not to be".split()
    assert distinct_n([text], 1) == 4 / 6  # to be or not
    assert distinct_n([text], 2) == 4 / 5  # to-be twice
    assert repeated_n([text], 1) == pytest.approx(2 / 6)
    assert repeated_n([text], 2) == pytest.approx(1 / 5)
    assert repeated_n([text], 3) == 0


def test_texts_together():
    texts = [[1, 2, 3], [1, 2, 4], [7]]
    assert distinct_n(texts, 2) == 3 / 4  # (1, 2) is in both
    assert repeated_n(texts, 2) == 0  # but in neither twice
    assert distinct_n(texts, 1) == 5 / 7


def test_repetition_is_averaged_over_texts_not_over_their_ngrams():
    """seq-rep-4 by hand: "a a a a a a a" has four 4-grams, three of them again; "a b c d e" has two, both new."""
    texts = [["a"] * 7, list("abcde"), list("abc")]  # the last has no 4-gram, and is left out
    assert repeated_n(texts, 4) == (3 / 4 + 0) / 2  # of all six together it would be 3 / 6


@pytest.mark.parametrize("measure", [distinct_n, repeated_n])
def test_nothing_to_count(measure):
    assert measure([[1, 2], []], 3) is None


def test_what_a_word_is():
    assert words("It's Bob’s,\n  isn't it? 3.5_x — 'Oh'") == [
        "It's", "Bob’s", ",", "isn't", "it", "?", "3", ".", "5_x", "—", "'", "Oh", "'",
    ]  # fmt: skip
    assert words(" \n\t") == []
