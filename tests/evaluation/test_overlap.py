"""The suffix automaton against a search that tries everything, and spans told by hand."""

from hypothesis import given
from hypothesis import strategies as st

from minigpt.evaluation.overlap import Overlap, SuffixAutomaton, copied_share, overlaps

LETTERS = st.lists(st.text("ab", max_size=19) | st.text("abc", max_size=13), max_size=5)


def by_brute_force(texts: list[str], training: list[str]) -> list[list[int]]:
    """For every place the longest piece ending there that is in a training document."""
    return [
        [
            max((n for n in range(end + 1) if any(text[end - n : end] in known for known in training)), default=0)
            for end in range(1, len(text) + 1)
        ]
        for text in texts
    ]


@given(texts=LETTERS, training=LETTERS)
def test_matching_lengths_are_those_of_brute_force(texts, training):
    assert SuffixAutomaton(texts).matching_lengths(training) == by_brute_force(texts, training)


@given(texts=LETTERS, training=LETTERS)
def test_the_longest_span_and_the_shares_are_those_of_brute_force(texts, training):
    found = overlaps([" ".join(text) for text in texts], [" ".join(text) for text in training])
    for text, overlap in zip(texts, found, strict=True):
        pieces = [text[a:b] for a in range(len(text)) for b in range(a + 1, len(text) + 1)]
        copied = [piece for piece in pieces if any(piece in known for known in training)]
        assert overlap.longest == max(map(len, copied), default=0)
        assert overlap.longest_text == " ".join(next((p for p in copied if len(p) == overlap.longest), ""))
    for n in (1, 2, 5):
        ngrams = [text[at : at + n] for text in texts for at in range(len(text) - n + 1)]
        if ngrams:
            copied = sum(any(ngram in known for known in training) for ngram in ngrams)
            assert copied_share(found, n) == copied / len(ngrams)
        else:
            assert copied_share(found, n) is None


def test_a_span_is_quoted_as_the_text_spells_it():
    training = ["He said: it was the best of times, it was\nthe worst of times."]
    (overlap,) = overlaps(["And it  was\nthe worst of times! And it was the best"], training)
    assert overlap.longest == 6
    assert overlap.longest_text == "it  was\nthe worst of times"
    assert overlap.lengths == (0, 1, 2, 3, 4, 5, 6, 0, 0, 1, 2, 3, 4)


def test_no_span_crosses_a_document():
    training = ["one two", "three four"]
    (apart,) = overlaps(["one two three four"], training)
    assert apart.longest_text == "one two"
    first, second = overlaps(["one two", "three four"], ["one two three four"])
    assert (first.lengths, second.lengths) == ((1, 2), (1, 2))


def test_case_counts_and_nothing_is_copied_from_nothing():
    assert [found.longest for found in overlaps(["The End", ""], ["the end"])] == [0, 0]
    (overlap,) = overlaps(["The End"], [])
    assert overlap == Overlap("The End", (0, 0))
    assert overlap.longest_text == ""


def test_a_long_text_is_found_whole():
    """30,011 words with a period of 7 and one foreign word in the middle: two spans, and no recursion."""
    text = ["abcdefg"[at % 7] for at in range(30_011)]
    written = [*text[:15_013], "x", *text[15_014:]]
    (overlap,) = overlaps([" ".join(written)], [" ".join(text)])
    assert overlap.longest == 15_013
    assert overlap.lengths[15_013] == 0
    assert overlap.lengths[-1] == 30_011 - 15_014
