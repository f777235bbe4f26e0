"""Words that must appear: every returned sequence has them, and enough beams find the best ones that do."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.decoding.constraints import in_turn, next_tokens, progress
from minigpt.decoding.generate import generate
from minigpt.decoding.options import contains
from minigpt.errors import InputError
from minigpt.model import GPT

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


@pytest.mark.parametrize(
    ("new", "in_place", "wanted"),
    [
        ([], 0, {5, 1}),
        ([5], 1, {6, 1}),
        ([5, 6], 2, {7, 1}),  # all but one of the first
        ([5, 6, 5], 1, {6, 1}),  # broken off, but its last token begins it again
        ([5, 6, 7], 3, {1}),
        ([5, 6, 7, 9, 1], 4, {2}),
        ([5, 6, 7, 9, 1, 2], 5, set()),
        ([1, 2, 5], 3, {6}),
        ([9, 9], 0, {5, 1}),
    ],
)
def test_progress_by_hand(new: list[int], in_place: int, wanted: set[int]) -> None:
    required = [[5, 6, 7], [1, 2]]
    assert progress(new, required) == in_place
    assert next_tokens(new, required) == wanted


def test_what_two_sequences_share_counts_for_both_once_they_are_whole() -> None:
    assert progress([1, 2], [[1, 2], [2, 3]]) == 3
    assert progress([1, 2, 3], [[1, 2], [2, 3]]) == 4
    assert progress([1], [[1, 2], [1, 3]]) == 1, "of what is begun, only the longest counts"


def test_places_are_given_in_turn() -> None:
    # Best first: a number is the bank, a letter tells its members apart.
    order = in_turn(["0a", "0b", "2a", "0c", "1a", "2b"], lambda item: int(item[0]))
    assert order == ["2a", "1a", "0a", "2b", "0b", "0c"]
    assert in_turn([3, 1, 2], lambda _: 0) == [3, 1, 2]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    required=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=3),
    new=st.lists(st.integers(0, 3), max_size=8),
)
def test_one_of_the_next_tokens_always_brings_on(required: list[list[int]], new: list[int]) -> None:
    tokens = next_tokens(new, required)
    now = progress(new, required)
    assert bool(tokens) == (now < sum(map(len, required)))
    if tokens:
        assert max(progress([*new, token], required) for token in tokens) > now


REQUIRED = [[[1]], [[1, 2]], [[2, 2]], [[1], [2]], [[1, 2], [2, 3]], [[1, 1], [1, 2]], [[3, 1], [1]]]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("required", REQUIRED, ids=str)
def test_enough_beams_find_what_brute_force_finds(
    table_model: Callable[..., GPT], required: list[list[int]], length_penalty: float
) -> None:
    V, steps, eos = 4, 4, 0
    chance = random.Random(str(required))
    rows = [[chance.random() for _ in range(V)] for _ in range(V)]
    table = [[x / sum(row) for x in row] for row in rows]

    def score(new: tuple[int, ...]) -> float:
        return sum(math.log(table[a][b]) for a, b in itertools.pairwise((1, *new))) / len(new) ** length_penalty

    ends = {ids[: ids.index(eos) + 1] if eos in ids else ids for ids in itertools.product(range(V), repeat=steps)}
    ranked = sorted((ids for ids in ends if all(contains(ids, part) for part in required)), key=score, reverse=True)
    result = generate(
        table_model(table),
        [[1]],
        strategy="beam",
        num_beams=V**steps,
        num_return_sequences=len(ranked),
        max_new_tokens=steps,
        eos_token_id=eos,
        length_penalty=length_penalty,
        early_stopping="never",
        required_sequences=required,
    )
    assert result.scores == pytest.approx([score(ids) for ids in ranked], abs=1e-4)
    assert {tuple(ids[1:]) for ids in result.sequences} == set(ranked)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_every_result_has_every_word(tiny_model: GPT, num_beams: int, seed: int) -> None:
    """Also in the shortest time that is allowed, for ragged prompts, and with ends and stops in the way."""
    generator = torch.Generator().manual_seed(seed)
    required = [torch.randint(4, 15, (int(n),), generator=generator).tolist() for n in (1, 2, 1 + seed % 3)]
    options: dict[str, Any] = {
        "strategy": "beam",
        "num_beams": num_beams,
        "eos_token_id": [1, 2, 3],
        "length_penalty": [-1.0, 0.0, 1.0, 2.0][seed % 4],
        "early_stopping": [False, True, "never"][seed % 3],
        "required_sequences": required,
    }
    shortest = sum(map(len, required))
    for new in (shortest, 8):
        result = generate(tiny_model, PROMPTS, max_new_tokens=new, **options)
        alone = [generate(tiny_model, [ids], max_new_tokens=new, **options).sequences[0] for ids in PROMPTS]
        assert result.sequences == alone
        for prompt, ids in zip(PROMPTS, result.sequences, strict=True):
            assert all(contains(ids[len(prompt) :], part) for part in required)
            assert not {1, 2, 3} & set(ids[len(prompt) : -1])


def test_more_beams_find_more_sequences_with_every_word(tiny_model: GPT) -> None:
    """Few beams near the limit have the words: the error says what was found, and its advice is good."""
    options: dict[str, Any] = {"strategy": "beam", "max_new_tokens": 4, "required_sequences": [[4, 7], [9]]}
    with pytest.raises(InputError, match=r"num_beams = 5 found [1-4] continuations of prompt 0") as caught:
        generate(tiny_model, PROMPTS, num_beams=5, num_return_sequences=5, **options)
    assert "raise num_beams" in caught.value.how
    found = generate(tiny_model, PROMPTS, num_beams=40, num_return_sequences=5, **options)
    for number, prompt in enumerate(PROMPTS):
        ids = found.sequences[5 * number : 5 * (number + 1)]
        assert len(set(map(tuple, ids))) == 5
        assert all(contains(row[len(prompt) :], part) for row in ids for part in options["required_sequences"])


@pytest.mark.parametrize("num_beams", [1, 5])
def test_words_leave_room_for_a_forced_end(tiny_model: GPT, num_beams: int) -> None:
    options: dict[str, Any] = {"strategy": "beam", "eos_token_id": 3, "force_eos": True, "num_beams": num_beams}
    for required in ([[4, 7], [9]], [[4, 7, 9]]):
        result = generate(tiny_model, PROMPTS, max_new_tokens=4, required_sequences=required, **options)
        for prompt, ids in zip(PROMPTS, result.sequences, strict=True):
            assert ids[-1] == 3
            assert all(contains(ids[len(prompt) :], part) for part in required)
    # Where the context ends before, nothing is forced, and the words may take it all.
    full = [[5] * 11]  # room for 3 in a context of 13
    options |= {"max_new_tokens": 9, "on_overflow": "stop", "required_sequences": [[4, 7, 9]]}
    assert generate(tiny_model, full, **options).sequences == [[*full[0], 4, 7, 9]]


def test_a_stop_string_waits_for_the_words(table_model: Callable[..., GPT]) -> None:
    class Letters:
        vocab_size = 4

        def token_bytes(self, token_id: int) -> bytes:
            return b".abc"[token_id : token_id + 1]

    table = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], [0.1, 0.21, 0.3, 0.39], [0.1, 0.2, 0.3, 0.4]]
    options: dict[str, Any] = {"strategy": "beam", "num_beams": 3, "max_new_tokens": 3, "required_sequences": [[1]]}
    result = generate(table_model(table), [[1]], tokenizer=Letters(), stop="c", **options)
    # Without the word, "c" alone is best: ln .4 = -0.92. With it, "bac" has (ln .3 + ln .21 + ln .4) / 3 = -1.23, "abc"
    # has (ln .2 + ln .3 + ln .39) / 3 = -1.25, "ac" has (ln .2 + ln .4) / 2 = -1.26, and whatever ends without "c" is
    # longer in "a" and "b".
    assert result.sequences == [[1, 2, 1, 3]]
    assert result.scores == pytest.approx([math.log(0.3 * 0.21 * 0.4) / 3], abs=1e-4)
    assert result.finish_reasons == ["stop"]


def test_without_words_nothing_changes(tiny_model: GPT) -> None:
    options: dict[str, Any] = {"strategy": "beam", "num_beams": 3, "num_return_sequences": 3, "eos_token_id": 3}
    plain = generate(tiny_model, PROMPTS, max_new_tokens=8, **options)
    assert generate(tiny_model, PROMPTS, max_new_tokens=8, required_sequences=[], **options) == plain
    # A word that the best sequences have anyway leaves the best one the best.
    token = plain.sequences[0][len(PROMPTS[0])]
    found = generate(tiny_model, PROMPTS[:1], max_new_tokens=8, required_sequences=[[token]], **options)
    assert found.scores[0] >= plain.scores[0] - 1e-4


def test_words_that_other_options_keep_out_are_named(tiny_model: GPT) -> None:
    with pytest.raises(InputError, match="no continuation of prompt 0 was found") as caught:
        generate(
            tiny_model, [[7, 8]], strategy="beam", max_new_tokens=3, required_sequences=[[7, 8]], no_repeat_ngram_size=2
        )
    assert "no_repeat_ngram_size" in caught.value.how
