"""Counted by hand."""

import pytest

from minigpt.analysis.diversity import distinct_n, repeated_n
from minigpt.errors import InputError


def test_a_hand_worked_text():
    text = "to be or not to be".split()
    assert distinct_n([text], 1) == 4 / 6  # to be or not
    assert distinct_n([text], 2) == 4 / 5  # to-be twice
    assert repeated_n([text], 1) == 2 / 6
    assert repeated_n([text], 2) == 1 / 5
    assert repeated_n([text], 3) == 0


def test_texts_together():
    texts = [[1, 2, 3], [1, 2, 4], [7]]
    assert distinct_n(texts, 2) == 3 / 4  # (1, 2) is in both
    assert repeated_n(texts, 2) == 0  # but in neither twice
    assert distinct_n(texts, 1) == 5 / 7


@pytest.mark.parametrize("measure", [distinct_n, repeated_n])
def test_nothing_to_count(measure):
    with pytest.raises(InputError, match="no text has n = 3 tokens"):
        measure([[1, 2], []], 3)
    with pytest.raises(InputError, match="n = 0 is no length"):
        measure([[1, 2]], 0)
