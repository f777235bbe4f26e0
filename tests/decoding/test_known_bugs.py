"""Bugs that other decoders had, and which test would see each of them here.

The first table says where; what has no other place is tested below it.
"""

import ast
import gc
import itertools
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import GPTConfig
from minigpt.decoding import filters
from minigpt.decoding.generate import before_stop, generate, stream
from minigpt.decoding.request import Request
from minigpt.decoding.sampling import NoiseTape
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT
from minigpt.tokenizers import TextStream

# number, as in the names of the tests below: what went wrong, and the tests that would see it
BUGS: dict[int, tuple[str, list[str]]] = {
    1: ("an early stop for the whole batch", ["test_beam_search::test_a_prompt_does_not_feel_its_batch"]),
    2: (
        "the wrong bound with a length penalty",
        [
            "test_beam_search::test_same_beams_as_the_reference",
            "test_beam_search::test_enough_beams_find_what_brute_force_finds",
        ],
    ),
    3: ("the prompt counted as length", ["test_known_bugs::test_row_3_a_prompt_has_no_length"]),
    4: ("beams that ignore stop strings", ["test_beam_search::test_a_stop_string_ends_a_beam"]),
    5: ("ends judged on other ids than returned", ["test_known_bugs::test_row_5_what_is_returned_was_judged"]),
    6: (
        "a cache that does not follow its beams",
        [
            "test_beam_search::test_cached_equals_uncached",
            "test_beam_search::test_a_cache_that_does_not_follow_its_beams_is_noticed",
        ],
    ),
    7: ("scores that are not the sum", ["test_beam_search::test_scores_can_be_computed_again"]),
    8: (
        "draws of probability zero",
        ["test_sampling::test_a_removed_token_is_never_drawn", "test_known_bugs::test_row_8_a_million_draws"],
    ),
    9: ("a tiny top-p that removes everything", ["test_known_bugs::test_row_9_a_tiny_nucleus"]),
    10: (
        "ties that depend on the batch size",
        [
            "test_filters::test_top_k_keeps_what_ties_with_the_last_place",
            "test_known_bugs::test_row_10_ties_do_not_depend_on_the_batch",
        ],
    ),
    11: (
        "division by a temperature of zero; top-k beyond the vocabulary",
        [
            "test_generate::test_temperature_zero_is_greedy_and_draws_nothing",
            "test_generate::test_odd_but_sound_settings",
        ],
    ),
    12: ("one first token for all copies", ["test_generate::test_copies_of_a_prompt_differ_from_their_first_token"]),
    13: (
        "a draft that bends the distribution",
        [
            "test_parity::test_case_38_two_tokens_with_a_bad_draft_have_the_models_distribution",
            "test_speculative::test_draft_and_model_agree_as_often_as_promised",
            "test_speculative::test_a_perfect_draft_is_accepted_whole",
        ],
    ),
    14: ("speculation that is not greedy", ["test_speculative::test_a_draft_changes_nothing"]),
    15: (
        "paths that nobody runs, masks without an offset",
        ["test_generate::test_cached_equals_uncached", "test_sampling::test_rows_give_the_logits_of_a_plain_forward"],
    ),
    16: (
        "a stop string that is missed when another match breaks off",
        [
            "test_generate::test_stop_strings_across_tokens",
            "test_known_bugs::test_rows_16_17_19_text_before_a_stop_string",
        ],
    ),
    17: (
        "stop strings seen on token borders alone",
        [
            "test_generate::test_text_before_a_stop_string",
            "test_known_bugs::test_rows_16_17_19_text_before_a_stop_string",
        ],
    ),
    18: ("tokens after an end", ["test_speculative::test_nothing_is_written_after_an_end_inside_a_draft"]),
    19: (
        "stop strings that end inside a character",
        ["test_known_bugs::test_rows_16_17_19_text_before_a_stop_string"],
    ),
    20: ("characters decoded by halves", ["test_tokenizers::test_stream_is_one_shot_decoding"]),
    21: ("text taken back", ["test_tokenizers::test_stream_never_takes_text_back"]),
    22: ("a prompt that ends inside a character", ["test_tokenizers::test_prompt_may_end_inside_a_character"]),
    23: ("streams that lag", ["test_tokenizers::test_complete_characters_are_given_out_at_once"]),
    24: (
        "positions that count padding",
        ["test_generate::test_a_ragged_batch_equals_its_rows", "test_kv_cache::test_ragged_rows_equal_single_rows"],
    ),
    25: (
        "offsets of positions; the last position",
        [
            "test_generate::test_the_context_is_used_to_its_last_position",
            "test_kv_cache::test_any_cut_gives_the_uncached_logits",
        ],
    ),
    26: (
        "keys that are never written",
        ["test_kv_cache::test_cached_keys_equal_a_full_forward_column_by_column"],
    ),
    27: ("penalties on padding", ["test_generate::test_a_ragged_batch_equals_its_rows", "test_parity::test_greedy"]),
    28: (
        "seeds that repeat or are ignored",
        [
            "test_generate::test_a_seed_per_prompt_makes_it_independent_of_its_batch",
            "test_known_bugs::test_row_28_rows_of_one_seed_differ",
        ],
    ),
    29: (
        "NaN from rows without any key",
        [
            "test_kv_cache::test_dead_columns_may_hold_anything_finite",
            "test_known_bugs::test_row_29_no_padding_makes_nan",
        ],
    ),
    30: ("differences in 16 bit that alarm", ["test_known_bugs::test_row_30_sixteen_bits_differ_as_documented"]),
    31: ("padding guessed from ids", ["test_known_bugs::test_row_31_no_id_means_padding"]),
    32: ("penalties that count the prompt", ["test_known_bugs::test_row_32_the_penalty_counts_the_prompt"]),
    34: ("caches that slide", ["test_generate::test_crop_recomputes_the_newest_tokens"]),
}
NOT_HERE = {33: "no decoder of ours is compiled, so there is nothing to compile again"}

TESTS = Path(__file__).parent.parent
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def names_of_tests(folder: Path) -> set[str]:
    return {
        f"{path.stem}::{node.name}"
        for path in folder.rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_bug_has_its_test() -> None:
    assert sorted({*BUGS, *NOT_HERE}) == list(range(1, 35))
    there = names_of_tests(TESTS)
    for number, (_, tests) in BUGS.items():
        assert tests, number
        assert set(tests) <= there, number


def test_every_difference_on_the_page_has_its_test() -> None:
    page = TESTS.parent / "docs" / "decoding-differences.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| D")]
    assert [row.split("|")[1].strip() for row in rows] == [f"D{n}" for n in range(1, 16)]
    there = names_of_tests(TESTS)
    for row in rows:
        assert row.split("`")[-2] in there, row


# --- ends and lengths --------------------------------------------------------------------------------------------


def test_row_3_a_prompt_has_no_length(table_model: Callable[..., GPT]) -> None:
    table = [[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]]
    options: dict[str, Any] = {"strategy": "beam", "num_beams": 3, "max_new_tokens": 3, "eos_token_id": 0}
    prompts = [[1], [2, 2, 2, 2, 2, 1], [2, 1]]
    result = generate(table_model(table), prompts, length_penalty=2.0, **options)
    assert result.scores == pytest.approx([result.scores[0]] * 3)
    assert [ids[len(prompt) :] for ids, prompt in zip(result.sequences, prompts, strict=True)] == [
        result.sequences[0][1:]
    ] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "greedy"},
        {"draft": PromptLookup(3, 1)},
        {"strategy": "beam", "num_beams": 3, "num_return_sequences": 3},
        {"strategy": "beam", "num_beams": 3, "required_sequences": [[4]]},
    ],
    ids=str,
)
def test_row_5_what_is_returned_was_judged(
    tiny_model: GPT, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    judged = []
    judge = Request.finish_reason

    def watched(request: Request, number: int, before: list[int], token: int) -> Any:
        reason = judge(request, number, before, token)
        judged.append(([*before, token], reason))
        return reason

    monkeypatch.setattr(Request, "finish_reason", watched)
    result = generate(tiny_model, PROMPTS, max_new_tokens=6, eos_token_id=[3, 5], **options)
    assert all(pair in judged for pair in zip(result.sequences, result.finish_reasons, strict=True))


# --- draws -------------------------------------------------------------------------------------------------------


def test_row_8_a_million_draws() -> None:
    scores = torch.randn(1, 11, generator=torch.Generator().manual_seed(0)) * 3
    kept = filters.top_p(filters.top_k(scores, 7), 0.9)
    tape = NoiseTape(2, torch.device("cpu"), 50_000, 11)
    for n in range(20):
        drawn = (kept.softmax(-1) / tape.at(range(50_000), [n] * 50_000)).argmax(-1)
        assert kept[0, drawn].isfinite().all()


@pytest.mark.parametrize("p", [0.0, 1e-8, 1e-4, 1 - 1e-9, 1.0])
def test_row_9_a_tiny_nucleus(tiny_model: GPT, p: float) -> None:
    scores = torch.randn(5, 23, generator=torch.Generator().manual_seed(0)) * 4
    for dtype in (torch.float32, torch.bfloat16):
        kept = filters.top_p(scores.to(dtype), p)
        assert torch.equal(kept.amax(-1), scores.to(dtype).amax(-1))
        assert not kept.isnan().any()
        model = tiny_model.to(dtype)
        if p > 0:
            ids = generate(model, PROMPTS, top_p=p, temperature=1.0, max_new_tokens=6).sequences
            if p < 1e-3:
                assert ids == generate(model, PROMPTS, strategy="greedy", max_new_tokens=6).sequences


def test_row_10_ties_do_not_depend_on_the_batch(tiny_model: GPT) -> None:
    with torch.no_grad():
        tiny_model.wte.weight[5] = tiny_model.wte.weight[7]  # two tokens that the model cannot tell apart
    options: dict[str, Any] = {"top_k": 1, "temperature": 1.0, "max_new_tokens": 6}
    for copies in (1, 2, 5):
        together = generate(tiny_model, PROMPTS * copies, seed=list(range(3 * copies)), **options)
        alone = [
            generate(tiny_model, [prompt], seed=[seed], **options).sequences[0]
            for seed, prompt in enumerate(PROMPTS * copies)
        ]
        assert together.sequences == alone


def test_row_28_rows_of_one_seed_differ(tiny_model: GPT) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "max_new_tokens": 8}
    same = generate(tiny_model, [[1, 2]] * 4, seed=5, num_return_sequences=2, **options).sequences
    assert len(set(map(tuple, same))) == 8
    # A seed for each prompt: what is drawn is what the prompt would get alone, so equal seeds give equal draws.
    twins = generate(tiny_model, [[1, 2], [1, 2], [1, 2]], seed=[5, 5, 6], **options).sequences
    assert twins[0] == twins[1] != twins[2]
    mixed = generate(tiny_model, [[9], [1, 2]], seed=[8, 5], **options).sequences
    assert mixed[1] == twins[0]


# --- stop strings --------------------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer of all bytes, and of some longer pieces that are cut anywhere, also inside characters."""

    bos_token_id = eos_token_id = start_token_id = None

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.tokens = [bytes([n]) for n in range(256)] + list(pieces)
        self.vocab_size = len(self.tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]


class Told(GPT):
    """A model that writes what it is told."""

    def __init__(self, script: Sequence[int], vocab_size: int) -> None:
        super().__init__(GPTConfig(vocab_size=vocab_size, block_size=256, n_layer=1, n_head=1, n_embd=1))
        self.script = torch.tensor([*script, 0])
        self.lm_head = torch.nn.Identity()

    def trunk(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        past = 0 if cache is None else cache.longest
        if cache is not None:
            cache.positions(idx.size(1))
            cache.advance(idx.size(1))
        following = self.script[past : past + idx.size(1)].expand(len(idx), -1)
        return torch.nn.functional.one_hot(following, self.config.vocab_size) * 99.0


ALPHABET = st.sampled_from("ab\n é€語😀")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    text=st.text(ALPHABET, min_size=1, max_size=12),
    stop=st.lists(st.text(ALPHABET, min_size=1, max_size=3), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=40, max_size=40),
)
def test_rows_16_17_19_text_before_a_stop_string(text: str, stop: list[str], cuts: list[int]) -> None:
    """Any Unicode text, cut into any tokens: it ends where its bytes hold a stop string, streamed or in one shot."""
    data = text.encode("utf-8")
    borders = [0, *itertools.takewhile(lambda at: at < len(data), itertools.accumulate(cuts)), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(borders)]
    tokenizer = Pieces(pieces)
    script = list(range(256, 256 + len(pieces)))
    model = Told(script, tokenizer.vocab_size)
    options: dict[str, Any] = {
        "strategy": "greedy",
        "max_new_tokens": len(script),
        "stop": stop,
        "tokenizer": tokenizer,
    }

    # The oracle looks at the whole text: the shortest row of tokens whose bytes hold a stop string.
    wanted = [word.encode("utf-8") for word in stop]
    ends = [n for n in range(1, len(pieces) + 1) if any(word in b"".join(pieces[:n]) for word in wanted)]
    result = generate(model, [[0]], **options)
    assert result.sequences == [[0, *script[: min(ends, default=len(script))]]]
    assert result.finish_reasons == ["stop" if ends else "length"]
    assert [0, *stream(model, [0], **options)] == result.sequences[0]
    assert generate(model, [[0]], draft=PromptLookup(2, 1), **options).sequences == result.sequences

    def shown() -> Any:
        decoder = TextStream(tokenizer)  # type: ignore[arg-type]
        for token_id in stream(model, [0], **options):
            yield decoder.feed(token_id)
        yield decoder.flush()

    expected = text[: min((text.find(word) for word in stop if word in text), default=len(text))]
    assert "".join(before_stop(shown(), stop)) == expected


# --- padding and numbers -------------------------------------------------------------------------------------------


def test_row_29_no_padding_makes_nan(tiny_model: GPT) -> None:
    for lengths in itertools.product((1, 2, 13), repeat=3):
        prompts = [[3] * length for length in lengths]
        result = generate(tiny_model, prompts, strategy="greedy", max_new_tokens=3, on_overflow="stop")
        assert all(score <= 0 for score in result.scores), "not a number, or no log-probability"


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.25)])
def test_row_30_sixteen_bits_differ_as_documented(tiny_model: GPT, dtype: torch.dtype, bound: float) -> None:
    model = tiny_model.to(dtype)
    idx = torch.randint(23, (2, 13), generator=torch.Generator().manual_seed(0))
    cache = KVCache(model.config, 2, dtype=dtype)
    stepped = torch.cat([model(idx[:, t : t + 1], cache) for t in range(13)], dim=1)
    assert (stepped - model(idx)).abs().max() < bound


def test_row_31_no_id_means_padding(tiny_model: GPT) -> None:
    for token in range(23):
        prompts = [[token, token, 5], [5]]
        together = generate(tiny_model, prompts, strategy="greedy", max_new_tokens=3, eos_token_id=token)
        for prompt, ids in zip(prompts, together.sequences, strict=True):
            alone = generate(tiny_model, [prompt], strategy="greedy", max_new_tokens=3, eos_token_id=token)
            assert alone.sequences == [ids]


def test_row_32_the_penalty_counts_the_prompt(tiny_model: GPT) -> None:
    free, changed = [], []
    options: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 1}
    for start in range(12):
        prompt = [*range(start, start + 12)]
        with torch.no_grad():
            logits = tiny_model(torch.tensor([prompt]))[0, -1]
        punished = logits.clone()
        punished[prompt] = torch.where(logits < 0, logits * 9.0, logits / 9.0)[prompt]
        free.append(int(logits.argmax()))
        changed.append(generate(tiny_model, [prompt], repetition_penalty=9.0, **options).sequences[0][-1])
        assert changed[-1] == punished.argmax()
        assert generate(tiny_model, [prompt], no_repeat_ngram_size=1, **options).sequences[0][-1] not in prompt
    assert free != changed, "the penalty must matter somewhere"


# --- what a call leaves behind -------------------------------------------------------------------------------------

CALLS: list[dict[str, Any]] = [
    {"strategy": "greedy"},
    {"temperature": 1.0, "top_k": 5, "num_return_sequences": 2},
    {"strategy": "beam", "num_beams": 3, "required_sequences": [[4]]},
    {"temperature": 1.0, "num_beams": 2},
    {"draft": PromptLookup(3, 1)},
]


@pytest.mark.parametrize("options", [CALLS[2], {"draft": "model"}], ids=str)
def test_two_hundred_calls_keep_nothing(tiny_model: GPT, options: dict[str, Any]) -> None:
    if options.get("draft") == "model":
        options = {"draft": DraftModel(GPT(tiny_model.config), 3)}

    def alive() -> tuple[int, int]:
        gc.collect()
        things = gc.get_objects()
        return len(things), sum(issubclass(type(thing), torch.Tensor) for thing in things)  # some fake their class

    def call() -> None:
        generate(tiny_model, PROMPTS[:2], max_new_tokens=3, **options)

    call()
    objects, tensors = alive()
    for _ in range(200):
        call()
    later, tensors_later = alive()
    assert tensors_later == tensors
    assert later < objects + 200, "something is kept from every call"


def test_two_hundred_calls_take_no_memory(tiny_model: GPT) -> None:
    def call() -> None:
        generate(tiny_model, PROMPTS[:2], max_new_tokens=2, strategy="greedy")

    call()
    tracemalloc.start()
    try:
        call()
        gc.collect()
        early, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            call()
        gc.collect()
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late - early < 200 * 512, "the ids of one call alone take more"


def test_ids_that_the_tokenizer_does_not_know_are_never_chosen(tiny_model: GPT) -> None:
    """A vocabulary padded to a round size: its last ids have random weights, and no text."""

    class Small:
        vocab_size = 7

        def token_bytes(self, token_id: int) -> bytes:
            return bytes([97 + token_id])

    with torch.no_grad():
        tiny_model.wte.weight[7:] *= 20  # without a tokenizer, these win
    prompts = [[1, 2, 3], [4]]
    cases = [*CALLS, {"draft": DraftModel(tiny_model, 2)}]
    for options in cases:
        free = generate(tiny_model, prompts, max_new_tokens=6, **options)
        found = generate(tiny_model, prompts, max_new_tokens=6, tokenizer=Small(), **options)
        assert any(token >= 7 for ids in free.sequences for token in ids)
        assert all(token < 7 for ids in found.sequences for token in ids)
    assert all(token < 7 for token in stream(tiny_model, [1], tokenizer=Small(), max_new_tokens=6, temperature=2.0))
    for changes in ({"banned_sequences": [[7]]}, {"eos_token_id": 7}):
        with pytest.raises(InputError, match="id 7 at position 0 is outside the vocabulary of 7"):
            generate(tiny_model, prompts, tokenizer=Small(), **changes)
    with pytest.raises(InputError, match="id 7 at position 0 is outside the vocabulary of 7"):
        generate(tiny_model, [[7]], tokenizer=Small())
