"""Beams against results worked out by hand, brute force and the reference library."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from minigpt.decoding.generate import Step, generate
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT

RAGGED = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16]]
EQUAL = [[1, 2, 3], [4, 5, 6], [9, 8, 7], [1, 2, 3]]
LogProb = Callable[[GPT, Sequence[int], int], float]


def beams(model: GPT, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[list[list[int]], list[float]]:
    """New tokens and scores."""
    options = {"strategy": "beam"} | options
    result = generate(model, prompts, **options)
    lengths = [len(prompt) for prompt in prompts for _ in range(options.get("num_return_sequences", 1))]
    return [ids[n:] for ids, n in zip(result.sequences, lengths, strict=True)], result.scores


# --- by hand -----------------------------------------------------------------------------------------------------

EOS, A, B, C = range(4)
TABLE = [
    [0.25, 0.25, 0.25, 0.25],
    [0.08, 0.12, 0.50, 0.30],  # after A: EOS, A, B, C
    [0.50, 0.12, 0.08, 0.30],
    [0.40, 0.10, 0.05, 0.45],
]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(
    ("length_penalty", "expected", "scores"),
    [
        (1.0, [[B, EOS], [B, C, C]], [-0.6931, -0.8985]),
        (0.0, [[B, EOS], [B, C, C]], [-1.3863, -2.6956]),
    ],
)
def test_worked_by_hand(
    table_model: Callable[..., GPT],
    length_penalty: float,
    early_stopping: bool | str,
    expected: list[list[int]],
    scores: list[float],
) -> None:
    found = beams(
        table_model(TABLE),
        [[A]],
        num_beams=2,
        num_return_sequences=2,
        max_new_tokens=3,
        eos_token_id=EOS,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    assert found[0] == expected
    assert found[1] == pytest.approx(scores, abs=1e-4)


def test_worked_by_hand_where_length_is_rewarded(table_model: Callable[..., GPT]) -> None:
    options = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 3, "eos_token_id": EOS}
    found = beams(table_model(TABLE), [[A]], length_penalty=2.0, **options)
    assert found[0] == [[B, C, C], [C, C, C]]
    assert found[1] == pytest.approx([-0.2995, -0.3112], abs=1e-4)
    assert generate(table_model(TABLE), [[A]], strategy="greedy", eos_token_id=EOS).sequences == [[A, B, EOS]]


def test_never_waits_by_the_present_length_where_length_is_punished(table_model: Callable[..., GPT]) -> None:
    rest = 0.025
    table = [
        [0.25, 0.25, 0.25, 0.25],
        [0.05, rest, 0.90, rest],  # after A comes B,
        [0.05, rest, rest, 0.90],  # then C,
        [0.95, rest / 2, rest / 2, rest],  # then the end
    ]
    found, scores = beams(
        table_model(table),
        [[A]],
        num_beams=2,
        max_new_tokens=50,
        eos_token_id=EOS,
        length_penalty=-1.0,
        early_stopping="never",
    )
    # After two steps EOS (ln .05 = -3) and B, EOS (2 ln .045 = -6.2) are finished, and B, C stands at 2 ln .81 = -0.4.
    # At the length limit it would be worth 50 ln .81 = -10.5, but it is about to end.
    assert found == [[B, C, EOS]]
    assert scores == pytest.approx([3 * math.log(0.9 * 0.9 * 0.95)])


# Decoding of the fixture after [1, 2, 3] with 3 beams and end of sequence 32: values recorded once.
GOLDEN = [
    (1.0, True, [[48, 13, 32], [13, 13, 32], [32]], [-1.8999, -1.9207, -2.1369]),
    (1.0, False, [[13, 13, 13, 32], [48, 13, 32], [13, 13, 32]], [-1.8691, -1.8999, -1.9207]),
    (1.0, "never", [[13, 13, 13, 18, 13, 13], [13, 13, 13, 32], [48, 13, 32]], [-1.8667, -1.8691, -1.8999]),
    (0.0, True, [[32]], [-2.1369]),
    (0.0, False, [[32]], [-2.1369]),
    (0.0, "never", [[32]], [-2.1369]),
    (2.0, True, [[48, 13, 32]], [-0.6333]),
    (2.0, False, [[13, 13, 13, 18, 13, 13]], [-0.3111]),
    (2.0, "never", [[13, 13, 13, 18, 13, 13]], [-0.3111]),
    (-1.0, True, [[32]], [-2.1369]),
    (-1.0, False, [[32]], [-2.1369]),
    (-1.0, "never", [[32]], [-2.1369]),
]


@pytest.mark.parametrize(("length_penalty", "early_stopping", "expected", "scores"), GOLDEN)
def test_three_ways_to_stop_give_three_answers(
    pair: Any, length_penalty: float, early_stopping: bool | str, expected: list[list[int]], scores: list[float]
) -> None:
    found = beams(
        pair.ours,
        [[1, 2, 3]],
        num_beams=3,
        num_return_sequences=len(expected),
        max_new_tokens=6,
        eos_token_id=32,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    assert found[0] == expected
    assert found[1] == pytest.approx(scores, abs=1e-4)


# --- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_enough_beams_find_what_brute_force_finds(
    make_pair: Callable[..., Any], log_prob: LogProb, length_penalty: float
) -> None:
    V, steps, eos = 4, 3, 0
    for seed in range(4):
        model = make_pair(vocab_size=V, seed=seed).ours
        ends = {  # every sequence, cut after its first end
            ids[: ids.index(eos) + 1] if eos in ids else ids for ids in itertools.product(range(V), repeat=steps)
        }
        ranked = sorted((log_prob(model, [1, *ids], len(ids)) / len(ids) ** length_penalty, ids) for ids in ends)
        found, scores = beams(
            model,
            [[1]],
            num_beams=V**steps,
            num_return_sequences=len(ends),
            max_new_tokens=steps,
            eos_token_id=eos,
            length_penalty=length_penalty,
            early_stopping="never",
        )
        assert found == [list(ids) for _, ids in reversed(ranked)]
        assert scores == pytest.approx([score for score, _ in reversed(ranked)], abs=1e-4)


def test_one_beam_is_greedy(tiny_model: GPT) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    greedy = generate(tiny_model, prompts, strategy="greedy", max_new_tokens=9)
    one_beam = generate(tiny_model, prompts, strategy="beam", num_beams=1, max_new_tokens=9, length_penalty=0.0)
    assert one_beam.sequences == greedy.sequences
    assert one_beam.scores == pytest.approx(greedy.scores, abs=1e-4)


CASES: list[dict[str, Any]] = [
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": [3, 11], "early_stopping": True},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "eos_token_id": 7, "early_stopping": "never"},
    {"num_beams": 2, "num_return_sequences": 2, "length_penalty": -0.5, "eos_token_id": 3},
    {"num_beams": 30, "num_return_sequences": 5},  # more beams than tokens in the vocabulary
    {"strategy": "sample", "num_beams": 3, "num_return_sequences": 3, "temperature": 1.3, "seed": 4},
    {"strategy": "sample", "num_beams": 3, "top_k": 5, "eos_token_id": 3, "seed": [4, 5, 6], "temperature": 1.0},
]
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


@pytest.mark.parametrize("options", CASES)
def test_cached_equals_uncached(tiny_model: GPT, options: dict[str, Any]) -> None:
    new = tiny_model.config.block_size + 1 - 5  # to the last position of the context, and the token after it
    cached = beams(tiny_model, PROMPTS, max_new_tokens=new, **options)
    plain = beams(tiny_model, PROMPTS, max_new_tokens=new, use_cache=False, **options)
    assert cached[0] == plain[0]
    assert cached[1] == pytest.approx(plain[1], abs=1e-4)


def test_a_cache_that_does_not_follow_its_beams_is_noticed(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 9}
    right = beams(tiny_model, PROMPTS, **options)
    monkeypatch.setattr(KVCache, "copy_rows", lambda *_, **__: None)
    wrong = beams(tiny_model, PROMPTS, **options)
    assert right[0] != wrong[0], "the tests above could not see a cache that is not reordered"


@pytest.mark.parametrize("draw", [{}, {"strategy": "sample", "seed": 5, "temperature": 1.5}], ids=["best", "drawn"])
def test_beams_move_as_little_as_they_can(
    tiny_model: GPT, monkeypatch: pytest.MonkeyPatch, draw: dict[str, Any]
) -> None:
    """A row is copied for each beam that is not the first child of its parent, and for no other."""
    copies, needed, copy_rows = [], [], KVCache.copy_rows

    def counting(cache: KVCache, parents: Sequence[int], first_column: int) -> None:
        copies.append(sum(row != parent for row, parent in enumerate(parents)))
        copy_rows(cache, parents, first_column)

    def watch(step: Step) -> None:
        going = {(beam.prompt, beam.parent) for beam in step.beams if beam.place is not None}
        needed.append(5 * len(PROMPTS) - len(going))

    monkeypatch.setattr(KVCache, "copy_rows", counting)
    generate(tiny_model, PROMPTS, max_new_tokens=9, on_step=watch, **{"strategy": "beam", "num_beams": 5} | draw)
    assert copies == [count for count in needed[:-1] if count], "after the last step nothing moves"
    assert len(copies) > 5


@pytest.mark.parametrize("options", CASES[:5])
def test_scores_can_be_computed_again(tiny_model: GPT, log_prob: LogProb, options: dict[str, Any]) -> None:
    copies, penalty = options["num_return_sequences"], options.get("length_penalty", 1.0)
    found, scores = beams(tiny_model, PROMPTS, max_new_tokens=8, **options)
    prompts = [prompt for prompt in PROMPTS for _ in range(copies)]
    for prompt, new, score in zip(prompts, found, scores, strict=True):
        assert log_prob(tiny_model, prompt + new, len(new)) / len(new) ** penalty == pytest.approx(score, abs=1e-4)
    for start in range(0, len(found), copies):
        assert sorted(scores[start : start + copies], reverse=True) == scores[start : start + copies]
        assert len(set(map(tuple, found[start : start + copies]))) == copies, "the same sequence twice"


@pytest.mark.parametrize("options", [case for case in CASES if case.get("seed") != 4])
def test_a_prompt_does_not_feel_its_batch(tiny_model: GPT, options: dict[str, Any]) -> None:
    together = beams(tiny_model, PROMPTS, max_new_tokens=8, **options)
    alone: tuple[list[list[int]], list[float]] = ([], [])
    for number, prompt in enumerate(PROMPTS):
        own = {**options, "seed": [options["seed"][number]]} if "seed" in options else options
        found = beams(tiny_model, [prompt], max_new_tokens=8, **own)
        alone = alone[0] + found[0], alone[1] + found[1]
    assert together[0] == alone[0]
    assert together[1] == pytest.approx(alone[1], abs=1e-4)


def test_a_full_context_ends_one_prompt_and_not_the_others(tiny_model: GPT) -> None:
    block = tiny_model.config.block_size
    prompts = [[1] * (block - 2), [2], [3] * block, [4] * (block + 5)]
    result = generate(tiny_model, prompts, strategy="beam", num_beams=3, max_new_tokens=6, on_overflow="stop")
    assert [len(ids) for ids in result.sequences] == [block + 1, 7, block + 1, block + 5]
    assert result.finish_reasons == ["context", "length", "context", "context"]
    assert result.sequences[3] == prompts[3]
    alone = generate(tiny_model, prompts[1:2], strategy="beam", num_beams=3, max_new_tokens=6)
    assert result.sequences[1] == alone.sequences[0]


def test_a_sliding_window_equals_the_plain_one(tiny_model: GPT) -> None:
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 9, "on_overflow": "crop", "num_return_sequences": 3}
    prompts = [[1] * 10, [2, 3]]
    assert beams(tiny_model, prompts, **options)[0] == beams(tiny_model, prompts, use_cache=False, **options)[0]


def test_a_stop_string_ends_a_beam(table_model: Callable[..., GPT]) -> None:
    class Letters:
        vocab_size = 4

        def token_bytes(self, token_id: int) -> bytes:
            return b".abc"[token_id : token_id + 1]

    result = generate(
        table_model(TABLE),
        [[A]],
        tokenizer=Letters(),
        strategy="beam",
        num_beams=2,
        num_return_sequences=2,
        max_new_tokens=3,
        stop=["bc", "b."],
    )
    # "b." and "bc" are the best two of step 2. C, C goes on with log(.3 * .45) / 2, and that is below both.
    assert [ids[1:] for ids in result.sequences] == [[B, EOS], [B, C]]
    assert result.scores == pytest.approx([math.log(0.5 * 0.5) / 2, math.log(0.5 * 0.3) / 2])
    assert result.finish_reasons == ["stop", "stop"]


def test_more_candidates_than_continuations(table_model: Callable[..., GPT]) -> None:
    # Every token ends a sequence, so 5 candidates a beam are wanted, and there are 4. transformers breaks off here.
    options: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2, "eos_token_id": [EOS, A, B, C]}
    assert beams(table_model(TABLE), [[A]], **options)[0] == [[B], [C]]


def test_bans_that_leave_nothing_are_named(tiny_model: GPT) -> None:
    everything = [[token] for token in range(tiny_model.config.vocab_size)]
    with pytest.raises(InputError, match=r"every token is banned.*banned_sequences"):
        beams(tiny_model, [[1]], num_beams=2, banned_sequences=everything, max_new_tokens=3)
    with pytest.raises(InputError, match="num_beams = 4 found 2 continuations of prompt 0, but"):
        beams(
            tiny_model,
            [[1]],
            num_beams=4,
            num_return_sequences=3,
            banned_sequences=everything[2:],
            max_new_tokens=1,
        )


# --- the reference library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    ("prompts", "num_beams", "eos"), [(EQUAL, 2, [32]), (RAGGED, 4, [32, 13]), (RAGGED[:2], 5, [32, 11, 13])]
)
def test_same_beams_as_the_reference(
    pair: Any,
    prompts: list[list[int]],
    num_beams: int,
    eos: list[int],
    length_penalty: float,
    early_stopping: bool | str,
) -> None:
    pair.check(
        prompts,
        strategy="beam",
        eos_token_id=eos,
        num_beams=num_beams,
        num_return_sequences=2,
        max_new_tokens=7,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_same_beams_in_a_random_case(make_pair: Callable[..., Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    pair = make_pair(vocab_size=50, seed=seed)
    lengths = [pick(1, 2, 5, 9) for _ in range(pick(1, 2, 4))]
    prompts = [torch.randint(49, (length,), generator=generator).tolist() for length in lengths]
    num_beams = pick(2, 3, 5)
    sampled: dict[str, Any] = {"strategy": "sample", "temperature": pick(0.7, 1.0, 1.5), "top_p": pick(0.9, 1.0)}
    pair.check(
        prompts,
        eos_token_id=torch.randperm(49, generator=generator)[: pick(0, 1, 3, 8)].tolist(),
        seed=seed,
        num_beams=num_beams,
        num_return_sequences=pick(1, num_beams),
        max_new_tokens=pick(1, 4, 12),
        length_penalty=pick(-1.0, 0.0, 0.5, 1.0, 2.0),
        early_stopping=pick(False, True, "never"),
        repetition_penalty=pick(1.0, 1.3),
        no_repeat_ngram_size=pick(0, 2),
        banned_sequences=[[49]],  # the padding: to the reference it is part of the n-grams of a short prompt
        **pick({"strategy": "beam"}, sampled),
    )
