"""Whole calls: batches, ends, the context's limit, seeds, streams, bad input, and the reference library's ids."""

import dataclasses
import inspect
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack, get_type_hints

import pytest
import torch

import minigpt
from minigpt.decoding import sampling
from minigpt.decoding.filters import apply_filters
from minigpt.decoding.generate import before_stop, check_request, generate, stream
from minigpt.decoding.options import LARGEST, DecodingOptions, Options
from minigpt.decoding.sampling import NoiseTape, choose, next_token_table
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]

STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "greedy"},
    {"strategy": "greedy", "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "eos_token_id": 3},
    {"strategy": "sample", "temperature": 1.0, "seed": 5},
    {"strategy": "sample", "temperature": 1.3, "top_p": 0.9, "num_return_sequences": 3, "eos_token_id": [2, 3]},
    {"strategy": "sample", "temperature": 0},
]


class Letters:
    """A tokenizer for stop strings: "." for 0, then the alphabet, with some tokens longer than a letter."""

    TABLE = b". a b c d e f g h i j k l m n o p ab ba \xe2\x82 \xac xy zz".split()
    vocab_size = len(TABLE)

    def __repr__(self) -> str:  # the same in every process that shares these tests
        return "Letters()"

    def token_bytes(self, token_id: int) -> bytes:
        return self.TABLE[token_id]


class Scripted(GPT):
    """A model that writes what it is told: after any ids, the next one of the script is certain."""

    def __init__(self, tiny: GPT, script: Sequence[int], prompt_length: int) -> None:
        super().__init__(tiny.config)
        self.script = script
        self.prompt_length = prompt_length
        self.lm_head = torch.nn.Identity()

    def trunk(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        done = idx.size(1) if cache is None else cache.longest + idx.size(1)
        if cache is not None:
            cache.advance(idx.size(1))
        logits = torch.full((*idx.shape, self.config.vocab_size), -1e4)
        logits[:, -1, self.script[done - self.prompt_length]] = 0.0
        return logits


# --- batches and the cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", STRATEGIES)
def test_cached_equals_uncached(tiny_model: GPT, options: dict[str, Any]) -> None:
    new = tiny_model.config.block_size + 1 - 5  # to the last position of the context, and the token after it
    cached = generate(tiny_model, PROMPTS, max_new_tokens=new, **options)
    plain = generate(tiny_model, PROMPTS, max_new_tokens=new, use_cache=False, **options)
    assert cached.sequences == plain.sequences
    assert cached.finish_reasons == plain.finish_reasons
    assert cached.scores == pytest.approx(plain.scores, abs=1e-4)


def test_a_ragged_batch_equals_its_rows(tiny_model: GPT) -> None:
    options: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 8, "eos_token_id": [5, 11]}
    together = generate(tiny_model, PROMPTS, repetition_penalty=1.3, **options)
    alone = [generate(tiny_model, [prompt], repetition_penalty=1.3, **options) for prompt in PROMPTS]
    assert together.sequences == [one.sequences[0] for one in alone]
    assert together.finish_reasons == [one.finish_reasons[0] for one in alone]
    assert together.scores == pytest.approx([one.scores[0] for one in alone], abs=1e-4)


def test_greedy_is_the_best_token_of_plain_forwards(tiny_model: GPT) -> None:
    ids = [1, 2, 3]
    for _ in range(9):
        with torch.no_grad():
            ids = [*ids, int(tiny_model(torch.tensor([ids]))[0, -1].argmax())]
    assert generate(tiny_model, [[1, 2, 3]], strategy="greedy", max_new_tokens=9).sequences == [ids]


@pytest.mark.parametrize("options", STRATEGIES)
def test_scores_are_the_models_log_probabilities(
    tiny_model: GPT, log_prob: Callable[..., float], options: dict[str, Any]
) -> None:
    result = generate(tiny_model, PROMPTS, max_new_tokens=8, **options)
    prompts = [prompt for prompt in PROMPTS for _ in range(options.get("num_return_sequences", 1))]
    for prompt, ids, score in zip(prompts, result.sequences, result.scores, strict=True):
        assert ids[: len(prompt)] == prompt
        assert score == pytest.approx(log_prob(tiny_model, ids, len(ids) - len(prompt)), abs=1e-4)


def test_no_ngram_is_written_twice(tiny_model: GPT) -> None:
    result = generate(tiny_model, PROMPTS, max_new_tokens=9, temperature=0.3, no_repeat_ngram_size=2)
    for ids in result.sequences:
        pairs = list(itertools.pairwise(ids))
        assert len(set(pairs)) == len(pairs)


# --- ends --------------------------------------------------------------------------------------------------------


def test_each_row_ends_by_itself(tiny_model: GPT) -> None:
    free = generate(tiny_model, PROMPTS, strategy="greedy", max_new_tokens=8).sequences
    eos = free[0][4]  # what row 0 writes second
    result = generate(tiny_model, PROMPTS, strategy="greedy", max_new_tokens=8, eos_token_id=eos)
    for ids, prompt, unbounded, reason in zip(result.sequences, PROMPTS, free, result.finish_reasons, strict=True):
        end = unbounded.index(eos, len(prompt)) + 1 if eos in unbounded[len(prompt) :] else len(unbounded)
        assert ids == unbounded[:end]
        assert reason == ("eos" if eos in ids[len(prompt) :] else "length")
    assert set(result.finish_reasons) == {"eos", "length"}


def test_the_end_of_sequence_in_a_prompt_ends_nothing(tiny_model: GPT) -> None:
    free = generate(tiny_model, [[1, 2]], strategy="greedy", max_new_tokens=5)
    assert generate(tiny_model, [[1, 2]], strategy="greedy", max_new_tokens=5, eos_token_id=[1]) == free


def test_rows_that_are_done_are_not_computed(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_fed = []
    trunk = tiny_model.trunk
    monkeypatch.setattr(tiny_model, "trunk", lambda idx, cache: rows_fed.append(len(idx)) or trunk(idx, cache))
    result = generate(tiny_model, PROMPTS, strategy="greedy", max_new_tokens=8, eos_token_id=[*range(0, 23, 2)])
    new = [len(ids) - len(prompt) for ids, prompt in zip(result.sequences, PROMPTS, strict=True)]
    assert len(set(new)) > 1
    # The last token of a row is never fed back: a row of n new tokens is fed n times, the prompt included.
    assert rows_fed == [sum(n > step for n in new) for step in range(max(new))]


@pytest.mark.parametrize(
    ("script", "stop", "length", "reason"),
    [
        ([1, 2, 3, 4, 5], ["cd"], 4, "stop"),  # over two tokens
        ([1, 17, 2, 3], ["bb"], 3, "stop"),  # from inside the token "ab"
        ([1, 17, 3], "ab", 2, "stop"),  # a single string, a single token
        ([1, 1, 2, 5], ["zz", "ab"], 3, "stop"),  # the second "a" begins a match, though it breaks off another
        ([21, 21, 5], ["yx"], 2, "stop"),  # from inside one token to inside the next
        ([19, 20, 3], ["€"], 2, "stop"),  # one character, two tokens
        ([3, 3, 3], ["bc"], 3, "length"),  # the prompt ends in "b", but does not count
        ([1, 2, 3], ["xyz" * 9], 3, "length"),
    ],
)
def test_stop_strings_across_tokens(tiny_model: GPT, script: list[int], stop: Any, length: int, reason: str) -> None:
    model = Scripted(tiny_model, script, prompt_length=2)
    result = generate(model, [[1, 2]], strategy="greedy", max_new_tokens=len(script), stop=stop, tokenizer=Letters())
    assert result.sequences == [[1, 2, *script[:length]]]
    assert result.finish_reasons == [reason]


@pytest.mark.parametrize("text", ["one\n\ntwo", "aababab", "no end", "ab", "", "a"])
@pytest.mark.parametrize("stop", [["\n\n"], ["ab", "bab"], ["e", "o\n"], ["zz"], []])
def test_text_before_a_stop_string(text: str, stop: list[str]) -> None:
    expected = text[: min((text.find(s) for s in stop if s in text), default=len(text))]
    for size in range(1, len(text) + 2):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert "".join(before_stop(pieces, stop)) == expected


def test_text_is_held_back_no_longer_than_needed() -> None:
    fed: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ["x", "a", "y", "ab", "a", "z"]:
            fed.append(piece)
            yield piece

    shown = [(text, "".join(fed)) for text in before_stop(pieces(), ["abc"])]
    assert shown == [
        ("x", "x"),
        ("", "xa"),  # may begin "abc"
        ("ay", "xay"),
        ("", "xayab"),
        ("ab", "xayaba"),
        ("az", "xayabaz"),
        ("", "xayabaz"),
    ]


# --- the context's limit -----------------------------------------------------------------------------------------


def test_the_context_is_used_to_its_last_position(tiny_model: GPT) -> None:
    block = tiny_model.config.block_size
    for length in (1, block - 1, block):
        prompt = [3] * length
        result = generate(tiny_model, [prompt], strategy="greedy", max_new_tokens=block + 1 - length)
        assert len(result.sequences[0]) == block + 1
        assert result.finish_reasons == ["length"]
        too_many = block + 2 - length
        with pytest.raises(InputError, match=f"{length} and max_new_tokens = {too_many} .* block_size = {block}"):
            generate(tiny_model, [[1], prompt], strategy="greedy", max_new_tokens=too_many)


def test_stop_at_the_limit(tiny_model: GPT) -> None:
    block = tiny_model.config.block_size
    prompts = [[1] * (block - 2), [2], [3] * block, [4] * (block + 1), [5] * (block + 5)]
    result = generate(tiny_model, prompts, strategy="greedy", max_new_tokens=6, on_overflow="stop")
    assert [len(ids) - len(prompt) for ids, prompt in zip(result.sequences, prompts, strict=True)] == [3, 6, 1, 0, 0]
    assert result.finish_reasons == ["context", "length", "context", "context", "context"]
    assert result.sequences[1] == generate(tiny_model, [[2]], strategy="greedy", max_new_tokens=6).sequences[0]
    assert list(stream(tiny_model, prompts[4], on_overflow="stop")) == []


@pytest.mark.parametrize("use_cache", [True, False])
def test_crop_recomputes_the_newest_tokens(tiny_model: GPT, use_cache: bool) -> None:
    block = tiny_model.config.block_size
    prompts = [[1] * (block - 2), [2, 3], [4] * (block + 5)]
    expected = [list(prompt) for prompt in prompts]
    for ids in expected:
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(tiny_model(torch.tensor([ids[-block:]]))[0, -1].argmax()))
    result = generate(tiny_model, prompts, strategy="greedy", max_new_tokens=6, on_overflow="crop", use_cache=use_cache)
    assert result.sequences == expected
    assert result.finish_reasons == ["length"] * 3


@pytest.mark.parametrize(
    ("copies", "options"), [(1, {"strategy": "greedy"}), (2, {}), (2, {"strategy": "beam", "num_beams": 3})]
)
def test_no_new_tokens_gives_the_prompt(tiny_model: GPT, copies: int, options: dict[str, Any]) -> None:
    result = generate(tiny_model, [[1], [3] * 99], max_new_tokens=0, num_return_sequences=copies, **options)
    assert result.sequences == [[1]] * copies + [[3] * 99] * copies
    assert result.finish_reasons == ["length"] * 2 * copies
    assert result.scores == [0.0] * 2 * copies
    assert list(stream(tiny_model, [1, 2], max_new_tokens=0)) == []


# --- chance ------------------------------------------------------------------------------------------------------


def test_a_seed_decides_everything(tiny_model: GPT) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.5, "num_return_sequences": 4}
    first = generate(tiny_model, PROMPTS, seed=3, **options)
    assert generate(tiny_model, PROMPTS, seed=3, **options) == first
    assert generate(tiny_model, PROMPTS, seed=4, **options) != first
    assert generate(tiny_model, PROMPTS, seed=None, **options) != generate(tiny_model, PROMPTS, seed=None, **options)


def test_copies_of_a_prompt_differ_from_their_first_token(tiny_model: GPT) -> None:
    # nanochat once drew the first token a single time for all copies. With 23 tokens equally likely, 16 draws agree by
    # chance once in 23 ** 15 times.
    with torch.no_grad():
        tiny_model.wte.weight.zero_()  # and with it the head
    result = generate(tiny_model, [[1]], max_new_tokens=1, temperature=1, num_return_sequences=16)
    assert len({ids[1] for ids in result.sequences}) > 1


@pytest.mark.parametrize("seed", [7, [7, 8, 9], None])
@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"temperature": 0}, {"strategy": "beam", "num_beams": 3}])
def test_where_nothing_is_drawn_every_seed_gives_the_same(tiny_model: GPT, options: dict[str, Any], seed: Any) -> None:
    expected = generate(tiny_model, PROMPTS, max_new_tokens=3, **options)
    assert generate(tiny_model, PROMPTS, max_new_tokens=3, seed=seed, **options) == expected


def test_a_seed_per_prompt_makes_it_independent_of_its_batch(tiny_model: GPT) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.5, "num_return_sequences": 2, "eos_token_id": 3}
    together = generate(tiny_model, PROMPTS, seed=[7, 8, 9], **options)
    alone = [generate(tiny_model, [ids], seed=seed, **options) for ids, seed in zip(PROMPTS, [7, 8, 9], strict=True)]
    assert together.sequences == [ids for one in alone for ids in one.sequences]


def test_temperature_zero_is_greedy_and_draws_nothing(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = generate(tiny_model, PROMPTS, strategy="greedy", max_new_tokens=8)
    assert generate(tiny_model, PROMPTS, temperature=1e-40, max_new_tokens=8).sequences == greedy.sequences
    monkeypatch.setattr(NoiseTape, "at", lambda *_: pytest.fail("drawn"))
    assert generate(tiny_model, PROMPTS, temperature=0, max_new_tokens=8) == greedy


def test_two_tokens_have_the_joint_distribution_of_the_model(make_pair: Callable[..., Any]) -> None:
    V, draws = 8, 2500
    model = make_pair(vocab_size=V).ours
    with torch.no_grad():
        first = model(torch.tensor([[1, 2, 3]]))[0, -1].double().softmax(-1)
        second = model(torch.tensor([[1, 2, 3, token] for token in range(V)]))[:, -1].double().softmax(-1)
    joint = (first[:, None] * second).flatten()
    result = generate(model, [[1, 2, 3]], max_new_tokens=2, temperature=1, num_return_sequences=draws)
    observed = torch.bincount(torch.tensor([ids[3] * V + ids[4] for ids in result.sequences]), minlength=V * V)
    common = joint * draws >= 5
    observed = torch.cat([observed[common], observed[~common].sum()[None]])
    expected = torch.cat([joint[common], joint[~common].sum()[None]]) * draws
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2) > 1e-4


# --- streams, and what a call leaves behind ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [case for case in STRATEGIES if "num_return_sequences" not in case])
def test_a_stream_is_what_generate_gives(tiny_model: GPT, options: dict[str, Any]) -> None:
    ids = generate(tiny_model, [[1, 2, 3]], max_new_tokens=8, **options).sequences[0]
    assert [1, 2, 3, *stream(tiny_model, [1, 2, 3], max_new_tokens=8, **options)] == ids


@pytest.mark.parametrize("draft", [None, PromptLookup()])
@pytest.mark.parametrize("held", [0, 1, 3, 4])
def test_a_stream_goes_on_from_a_cache(tiny_model: GPT, held: int, draft: PromptLookup | None) -> None:
    prompt = [3, 1, 4, 1, 5]
    options: Options = {"max_new_tokens": 7, "seed": 2}
    expected = list(stream(tiny_model, prompt, **options))
    cache = KVCache(tiny_model.config, 1)
    if held:
        tiny_model(torch.tensor([prompt[:held]]), cache=cache)
    shapes: list[int] = []
    watch = tiny_model.wte.register_forward_hook(lambda _, idx, out: shapes.append(idx[0].numel()))
    assert list(stream(tiny_model, prompt, cache=cache, draft=draft, **options)) == expected
    watch.remove()
    assert shapes[0] == len(prompt) - held  # what it holds is not read again
    assert cache.longest == len(prompt) + len(expected) - 1  # the last was never read
    again = KVCache(tiny_model.config, 1)
    tiny_model(torch.tensor([[*prompt, *expected[:-1]]]), cache=again)
    assert torch.allclose(cache.k, again.k, atol=1e-5)
    cache.rollback(cache.longest - 2)
    assert list(stream(tiny_model, [3, 1, 2], cache=cache, **options)) == list(stream(tiny_model, [3, 1, 2], **options))


def test_a_stream_that_is_closed_leaves_what_it_has_read(tiny_model: GPT) -> None:
    cache = KVCache(tiny_model.config, 1)
    tokens = stream(tiny_model, [3, 1, 4], cache=cache, max_new_tokens=7)
    new = [next(tokens), next(tokens)]
    tokens.close()
    again = KVCache(tiny_model.config, 1)
    tiny_model(torch.tensor([[3, 1, 4, *new][: cache.longest]]), cache=again)
    assert 3 <= cache.longest <= 5
    assert torch.allclose(cache.k, again.k, atol=1e-5)


@pytest.mark.parametrize("draft", ["lookup", "model"])
@pytest.mark.parametrize("stopped", [None, 1, 2])
def test_no_refused_draft_stays_in_a_cache(tiny_model: GPT, draft: str, stopped: int | None) -> None:
    """Whether the text ends, at any of its tokens, or its reader leaves."""
    prompt = [3, 1, 4, 1, 3, 1]
    for end in range(tiny_model.config.vocab_size):
        cache = KVCache(tiny_model.config, 1)
        guess = PromptLookup() if draft == "lookup" else DraftModel(GPT(tiny_model.config))
        tokens = stream(tiny_model, prompt, cache=cache, draft=guess, max_new_tokens=5, seed=end, eos_token_id=end)
        new = list(itertools.islice(tokens, stopped))
        tokens.close()
        assert cache.longest == len(prompt) + len(new) - 1
        again = KVCache(tiny_model.config, 1)
        tiny_model(torch.tensor([[*prompt, *new[:-1]]]), cache=again)
        read = cache.longest
        assert torch.allclose(cache.k[..., :read, :], again.k[..., :read, :], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "held", "options", "message"),
    [
        ({"batch_size": 2}, 0, {}, "is not for one row"),
        ({"dtype": torch.float64}, 0, {}, "is not for one row"),
        ({"max_length": 2}, 0, {}, "does not hold the beginning of a prompt of 3"),
        ({}, 3, {}, "does not hold the beginning of a prompt of 3"),
        ({}, 2, {"use_cache": False}, "leave one of the two out"),
    ],
)
def test_a_cache_that_does_not_fit_a_stream(
    tiny_model: GPT, shape: dict[str, Any], held: int, options: Options, message: str
) -> None:
    cache = KVCache(tiny_model.config, **{"batch_size": 1, **shape})
    if held:
        tiny_model(torch.ones(1, held, dtype=torch.int64), cache=cache)
    with pytest.raises(InputError, match=message):
        stream(tiny_model, [3, 1, 4], cache=cache, max_new_tokens=2, **options)


def test_a_stream_computes_a_token_only_when_asked(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    trunk = tiny_model.trunk
    monkeypatch.setattr(tiny_model, "trunk", lambda idx, cache: calls.append(1) or trunk(idx, cache))
    tokens = stream(tiny_model.train(), [1, 2, 3], strategy="greedy", max_new_tokens=5)
    assert len(calls) == 0
    next(tokens)
    next(tokens)
    assert len(calls) == 2
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    tokens.close()
    assert tiny_model.training, "a stream that is closed early leaves the model in evaluation mode"


@pytest.mark.parametrize("options", [{"strategy": "beam", "num_beams": 2}, *STRATEGIES])
def test_a_call_changes_nothing(tiny_config: Any, options: dict[str, Any]) -> None:
    model = GPT(type(tiny_config)(**{**vars(tiny_config), "dropout": 0.5})).train()
    model.h[0].eval()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    prompts = [list(prompt) for prompt in PROMPTS]
    first = generate(model, prompts, max_new_tokens=8, **options)
    assert first == generate(model, prompts, max_new_tokens=8, **options), "dropout was on"
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert prompts == PROMPTS
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {}, {"strategy": "beam", "num_beams": 2}])
def test_nothing_is_kept_for_gradients(
    tiny_model: GPT, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    grad_enabled = []
    trunk = tiny_model.trunk

    def watched(idx: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        grad_enabled.append(torch.is_grad_enabled())
        return trunk(idx, cache)

    monkeypatch.setattr(tiny_model, "trunk", watched)
    generate(tiny_model, PROMPTS, max_new_tokens=3, **options)
    assert grad_enabled == [False] * 3


def test_the_mode_is_restored_after_an_error(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model, "trunk", lambda idx, cache: 1 / 0)
    for options in ({"strategy": "greedy"}, {"strategy": "beam", "num_beams": 2}):
        with pytest.raises(ZeroDivisionError):
            generate(tiny_model.train(), PROMPTS, max_new_tokens=3, **options)
        assert tiny_model.training


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "prompt 1 is empty"),
        ([[1], [2, 23]], "prompt 1: id 23 at position 1 is outside the vocabulary of 23"),
        ([[-1]], "prompt 0: id -1 at position 0 is outside the vocabulary of 23"),
        ([1, 2], "prompt 0 is 1, not a list of token ids"),
        ("text", "prompt 0 is 'text', not a list of token ids"),
        ([[1.5]], r"prompt 0 is \[1.5\], not a list of token ids"),
        ([[10**400]], "prompt 0: id 1000"),
        ([None], "prompt 0 is None, not a list of token ids"),
        (None, "prompts = None cannot be used"),
        (7, "prompts = 7 cannot be used"),
    ],
)
def test_bad_prompts(tiny_model: GPT, prompts: Any, message: str) -> None:
    for call in (generate, check_request):
        with pytest.raises(InputError, match=message):
            call(tiny_model, prompts, max_new_tokens=3)


MANY = {"beams": {"strategy": "beam", "num_beams": 10**6}, "rows": {"num_return_sequences": 10**6}}


@pytest.mark.parametrize("options", MANY.values(), ids=MANY)
def test_more_rows_than_there_is_memory_for_are_refused(tiny_model, monkeypatch, options):
    c = tiny_model.config
    least = 10**6 * (2 * 4 * c.n_layer * c.n_embd * 7 + 2 * 4 * c.vocab_size)  # 3 tokens and 4 new ones; 2 of scores
    monkeypatch.setattr(sampling, "free_bytes", lambda device: least - 1)
    with pytest.raises(InputError, match=r"^1,000,000 sequences side by side need [\d.]+ GB of memory or more, and"):
        generate(tiny_model, [[1, 2, 3]], max_new_tokens=4, **options)
    generate(tiny_model, [[1, 2, 3]], max_new_tokens=4, **options | {name: 2 for name in options if name != "strategy"})


NUMBERS = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "num_beams", "length_penalty",
    "num_return_sequences",
)  # fmt: skip
LISTS = ("banned_sequences", "sequence_bias", "required_sequences", "suppress_tokens", "begin_suppress_tokens")
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.5}, "temperature = -0.5"),
    ({"temperature": math.nan}, "temperature = nan"),
    ({"temperature": math.inf}, "temperature = inf"),
    ({"temperature": "hot"}, "temperature = 'hot'"),
    ({"temperature": 1e31}, r"temperature = 1e\+31"),  # these overflow float32, sooner or later
    ({"repetition_penalty": 1e-40}, "repetition_penalty = 1e-40"),
    ({"repetition_penalty": 1e4}, "repetition_penalty = 10000"),
    ({"sequence_bias": {(1,): 1e39}}, r"sequence_bias of \[1\] is 1e\+39"),
    ({"sequence_bias": {(1,): -(10**400)}}, r"sequence_bias of \[1\] is -1000"),
    ({"sequence_bias": {(1,): math.inf}}, r"sequence_bias of \[1\] is inf"),
    ({"sequence_bias": {(1,): "2"}}, r"sequence_bias of \[1\] is '2'"),
    ({"exponential_decay_length_penalty": (1, 1e200), "eos_token_id": 3}, "exponential_decay_length_penalty = "),
    ({"exponential_decay_length_penalty": (1, 10**400), "eos_token_id": 3}, "exponential_decay_length_penalty = "),
    *(({name: 10**400}, f"{name} = 1000") for name in NUMBERS),
    ({"strategy": "beam", "num_beams": 10**9}, "num_beams = 1000000000"),
    ({"num_return_sequences": 10**9}, "num_return_sequences = 1000000000"),
    ({"seed": 10**400}, "seed = 1000"),
    ({"seed": [1.5]}, "seed = 1.5"),
    *(({name: value}, f"{name} = {value} cannot be used") for name in LISTS for value in (5, None)),
    ({"sequence_bias": [[1]]}, r"sequence_bias = \[\[1\]\] cannot be used"),
    ({"top_k": -1}, "top_k = -1"),
    ({"top_k": 2.5}, "top_k = 2.5"),
    ({"top_k": True}, "top_k = True"),
    ({"top_p": 0.0}, "top_p = 0.0"),
    ({"top_p": 1.1}, "top_p = 1.1"),
    ({"top_p": math.nan}, "top_p = nan"),
    ({"min_p": -0.1}, "min_p = -0.1"),
    ({"min_p": 2}, "min_p = 2"),
    ({"typical_p": 0}, "typical_p = 0"),
    ({"repetition_penalty": 0}, "repetition_penalty = 0"),
    ({"repetition_penalty": None}, "repetition_penalty = None"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size = -1"),
    ({"max_new_tokens": -1}, "max_new_tokens = -1"),
    ({"max_new_tokens": 2.0}, "max_new_tokens = 2.0"),
    ({"min_new_tokens": 9}, "min_new_tokens = 9 is more than max_new_tokens = 3"),
    ({"num_beams": 0}, "num_beams = 0"),
    ({"num_return_sequences": 0}, "num_return_sequences = 0"),
    ({"strategy": "beam", "num_beams": 2, "length_penalty": math.nan}, "length_penalty = nan"),
    ({"strategy": "beam", "num_beams": 2, "early_stopping": "always"}, "early_stopping = 'always'"),
    ({"strategy": "beam", "num_beams": 2, "early_stopping": 1}, "early_stopping = 1"),
    ({"strategy": "best"}, "strategy = 'best'"),
    ({"on_overflow": "slide"}, "on_overflow = 'slide'"),
    ({"use_cache": "yes"}, "use_cache = 'yes'"),
    ({"seed": -1}, "seed = -1"),
    ({"seed": 0.5}, "seed = 0.5"),
    ({"seed": [1, 2, 3]}, "3 seeds for 1 prompt"),
    ({"eos_token_id": 23}, "eos_token_id: id 23 at position 0 is outside the vocabulary of 23"),
    ({"eos_token_id": "."}, "eos_token_id = '.'"),
    ({"eos_token_id": 1.5}, "eos_token_id = 1.5"),
    ({"eos_token_id": True}, "eos_token_id = True"),
    ({"suppress_tokens": [True]}, r"suppress_tokens = \[True\]"),
    ({"stop": ""}, "stop = ''"),
    ({"stop": ["a", ""]}, "stop = "),
    ({"stop": 7}, "stop = 7"),
    ({"stop": b"x"}, "stop = b'x'"),
    ({"tokenizer": 5}, "tokenizer = 5"),
    ({"stop": "a"}, "stop = 'a' is text"),
    ({"banned_sequences": [1]}, "banned_sequences holds 1"),
    ({"banned_sequences": [[]]}, r"banned_sequences holds \[\]"),
    ({"banned_sequences": [[1, 23]]}, "banned_sequences: id 23 at position"),
    ({"sequence_bias": {(1,): math.nan}}, r"sequence_bias of \[1\] is nan"),
    ({"sequence_bias": {(-1,): 1.0}}, "sequence_bias: id -1 at position"),
    ({"epsilon_cutoff": 1.0}, "epsilon_cutoff = 1.0"),
    ({"epsilon_cutoff": -0.1}, "epsilon_cutoff = -0.1"),
    ({"eta_cutoff": math.nan}, "eta_cutoff = nan"),
    ({"force_eos": 1}, "force_eos = 1"),
    ({"suppress_tokens": 3}, "suppress_tokens = 3"),
    ({"suppress_tokens": [[3]]}, r"suppress_tokens = \[\[3\]\]"),
    ({"suppress_tokens": [23]}, "suppress_tokens: id 23 at position"),
    ({"begin_suppress_tokens": [-1]}, "begin_suppress_tokens: id -1 at position"),
    ({"exponential_decay_length_penalty": 1.5, "eos_token_id": 3}, "exponential_decay_length_penalty = 1.5"),
    ({"exponential_decay_length_penalty": (1, 0), "eos_token_id": 3}, "exponential_decay_length_penalty = "),
    ({"exponential_decay_length_penalty": (-1, 2), "eos_token_id": 3}, "exponential_decay_length_penalty = "),
    ({"exponential_decay_length_penalty": (1.5, 2), "eos_token_id": 3}, "exponential_decay_length_penalty = "),
    ({"exponential_decay_length_penalty": (1, math.nan), "eos_token_id": 3}, "exponential_decay_length_penalty = "),
    ({"strategy": "beam", "required_sequences": [1]}, "required_sequences holds 1"),
    ({"strategy": "beam", "required_sequences": [[1], []]}, r"required_sequences holds \[\]"),
    ({"strategy": "beam", "required_sequences": [[1, 23]]}, "required_sequences: id 23 at position"),
    (
        {"strategy": "beam", "required_sequences": [[1, 2], [3, 4]]},
        "the required sequences hold 4 tokens, but prompt 0 gets 3 that are free",
    ),
    (
        {"strategy": "beam", "required_sequences": [[1, 2]], "eos_token_id": 3, "force_eos": True, "max_new_tokens": 2},
        "the required sequences hold 2 tokens, but prompt 0 gets 1 that are free",
    ),
    (
        {"strategy": "beam", "required_sequences": [[4], [1, 2]], "stop": ["x", "ab"], "tokenizer": Letters()},
        r"required_sequences wants \[1, 2\], but stop = 'ab' ends the text before that",
    ),
    # Contradictions: what would be ignored is refused.
    ({"min_new_tokens": 2}, "min_new_tokens = 2 concerns the end-of-sequence token, but eos_token_id names none"),
    ({"force_eos": True}, "force_eos = True concerns the end-of-sequence token"),
    ({"exponential_decay_length_penalty": (1, 2.0)}, "exponential_decay_length_penalty = .* concerns the end"),
    ({"force_eos": True, "eos_token_id": [3, 4], "suppress_tokens": [3, 4]}, "suppress_tokens forbids all"),
    ({"strategy": "greedy", "eta_cutoff": 0.1}, "eta_cutoff = 0.1 shapes a draw"),
    ({"required_sequences": [[1]]}, "required_sequences = .* concerns beams"),
    ({"num_beams": 2, "required_sequences": [[1]]}, "strategy = 'sample' draws"),
    (
        {"strategy": "beam", "required_sequences": [[1, 2]], "banned_sequences": [[2]]},
        r"required_sequences wants \[1, 2\], but banned_sequences forbids \[2\]",
    ),
    ({"strategy": "beam", "required_sequences": [[1, 2]], "suppress_tokens": [1]}, "but suppress_tokens forbids"),
    ({"strategy": "beam", "required_sequences": [[1, 2]], "eos_token_id": [4, 2]}, "but eos_token_id forbids"),
    ({"strategy": "beam", "num_beams": 2, "temperature": 0.8}, "temperature = 0.8 shapes a draw"),
    ({"strategy": "beam", "num_beams": 2, "top_k": 5}, "top_k = 5 shapes a draw"),
    ({"strategy": "greedy", "top_p": 0.9}, "top_p = 0.9 shapes a draw"),
    ({"strategy": "greedy", "num_beams": 2}, "num_beams = 2"),
    ({"strategy": "greedy", "num_return_sequences": 2}, "num_return_sequences = 2 would all be the same"),
    *(
        ({"temperature": 0, name: value}, rf"{name} = {value} shapes a draw, but temperature = 0 draws nothing")
        for name, value in {
            "top_k": 5,
            "top_p": 0.9,
            "min_p": 0.1,
            "typical_p": 0.2,
            "epsilon_cutoff": 0.001,
            "eta_cutoff": 0.1,
        }.items()
    ),
    ({"temperature": 0, "num_return_sequences": 2}, "num_return_sequences = 2 would all be the same"),
    ({"temperature": 0, "num_beams": 2}, "temperature = 0 draws nothing"),
    ({"length_penalty": 2.0}, "length_penalty = 2.0 concerns beams"),
    ({"early_stopping": True}, "early_stopping = True concerns beams"),
    ({"strategy": "beam", "num_beams": 2, "num_return_sequences": 3}, "num_return_sequences = 3 is more than"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(options) for options, _ in BAD_OPTIONS])
def test_bad_options(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str) -> None:
    monkeypatch.setattr(tiny_model, "trunk", lambda idx, cache: pytest.fail("worked before checking"))
    for decode in (
        lambda **o: generate(tiny_model, [[1]], **o),
        lambda **o: stream(tiny_model, [1], **o),
        lambda **o: check_request(tiny_model, [[1]], **o),
    ):
        with pytest.raises(InputError, match=message) as caught:
            decode(**{"max_new_tokens": 3, **options})
        assert "\n" not in caught.value.what + caught.value.how
        assert caught.value.how


@pytest.mark.parametrize(
    "options", [{"strategy": "greedy", "temperature": 0}, {"strategy": "beam", "temperature": 1}, {"temperature": 0}]
)
def test_options_that_say_the_same_are_no_contradiction(tiny_model: GPT, options: dict[str, Any]) -> None:
    assert generate(tiny_model, [[1]], max_new_tokens=2, top_k=0, top_p=1.0, min_p=0, **options)


def test_sampling_has_a_temperature_of_its_own(tiny_model: GPT) -> None:
    default = generate(tiny_model, PROMPTS, max_new_tokens=8)
    assert default == generate(tiny_model, PROMPTS, max_new_tokens=8, strategy="sample", temperature=0.8, seed=0)
    assert default != generate(tiny_model, PROMPTS, max_new_tokens=8, temperature=1.0)


@pytest.mark.parametrize("call", [generate, check_request, lambda model, prompts, **o: stream(model, *prompts, **o)])
@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"temprature": 0.5}, "there is no option 'temprature'\ndid you mean temperature[?]"),
        ({"max_tokens": 7}, "there is no option 'max_tokens'\ndid you mean max_new_tokens[?]"),
        ({"tokeniser": None}, "there is no option 'tokeniser'\ndid you mean tokenizer[?]"),
        ({"xyzzy": 1}, "there is no option 'xyzzy'\nhelp"),
    ],
)
def test_unknown_options_are_refused(
    tiny_model: GPT, call: Callable[..., object], options: dict[str, Any], answer: str
) -> None:
    with pytest.raises(InputError, match=answer) as caught:
        call(tiny_model, [[1]], **options)
    assert isinstance(caught.value, TypeError)  # what Python says of an argument that it does not know


def test_a_misspelt_option_is_answered_with_one_that_this_call_has(tiny_model: GPT) -> None:
    given: dict[str, Any] = {"cahce": None}
    with pytest.raises(InputError, match=r"did you mean cache[?] help"):
        stream(tiny_model, [1], **given)
    with pytest.raises(InputError, match="no option 'cahce'\nhelp"):
        generate(tiny_model, [[1]], **given)


@torch.no_grad()
@pytest.mark.parametrize("given", [{}, {"eos_token_id": 7, "repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}])
def test_the_page_opens_with_the_loop(tiny_model: GPT, given: dict[str, Any]) -> None:
    """The five lines of the docstring, as they stand there."""
    page = inspect.getdoc(inspect.getmodule(generate)) or ""
    loop = textwrap.dedent(page.partition("::\n\n")[2].partition("\n\n")[0])
    assert len(loop.splitlines()) == 5
    names: dict[str, Any] = {"model": tiny_model, "ids": [*PROMPTS[1]], "start": len(PROMPTS[1]), "longest": 8}
    names |= {"options": DecodingOptions(strategy="greedy", **given), "noise": None, "done": False}
    names |= {"torch": torch, "apply_filters": apply_filters, "choose": choose}
    while not names["done"]:
        exec(loop, names)
    out = generate(tiny_model, PROMPTS, max_new_tokens=8, strategy="greedy", **given)
    assert names["ids"] == out.sequences[1]


def test_the_signatures_name_the_fields_of_the_options() -> None:
    """For editors and type checkers, which cannot take them from the dataclass."""
    assert get_type_hints(Options) == get_type_hints(DecodingOptions)
    assert [*Options.__annotations__] == [field.name for field in dataclasses.fields(DecodingOptions)]
    assert not Options.__required_keys__
    for call in (generate, stream, check_request):
        assert get_type_hints(call)["options"] == Unpack[Options]


@pytest.mark.parametrize("prompts", ["ROMEO:", ["ROMEO:"], [[1], "ROMEO:"], ("ROMEO:",)])
def test_text_is_no_prompt(tiny_model: GPT, prompts: Any) -> None:
    calls = (generate, check_request, stream, next_token_table, minigpt.token_log_probs, minigpt.sequence_log_prob)
    for call in calls:
        said = r"prompt \d is .*'ROMEO:'.*, not a list of token ids\nencode text first.*minigpt\.complete"
        with pytest.raises(InputError, match=said):
            call(tiny_model, prompts)  # type: ignore[operator]


def test_beams_are_not_streamed(tiny_model: GPT) -> None:
    with pytest.raises(InputError, match="one sequence that only grows, but a beam search"):
        stream(tiny_model, [1], max_new_tokens=2, strategy="beam", num_beams=2)
    with pytest.raises(InputError, match="shows one sequence, but num_return_sequences = 2 asks for several"):
        stream(tiny_model, [1], max_new_tokens=2, num_return_sequences=2)


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_bans_that_leave_nothing_are_named(tiny_model: GPT, strategy: str) -> None:
    with pytest.raises(InputError, match=r"every token is banned.*banned_sequences"):
        generate(
            tiny_model,
            [[1]],
            strategy=strategy,
            max_new_tokens=2,
            banned_sequences=[[token] for token in range(tiny_model.config.vocab_size)],
        )


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {}, {"strategy": "beam", "num_beams": 2}])
def test_a_model_of_nan_is_refused(tiny_model: GPT, options: dict[str, Any]) -> None:
    with torch.no_grad():
        tiny_model.ln_f.weight.fill_(math.nan)
    with pytest.raises(InputError, match="not numbers"):
        generate(tiny_model, [[1]], max_new_tokens=2, **options)


def test_odd_but_sound_settings(tiny_model: GPT) -> None:
    for options in (
        {"top_k": 2**63 - 1}, {"top_p": 1e-9}, {"temperature": 1e-6}, {"temperature": 1e6}, {"top_k": None},
        {"temperature": LARGEST, "repetition_penalty": 0.001, "sequence_bias": {(2,): LARGEST, (1, 2): LARGEST}},
        {"temperature": 1e-30, "repetition_penalty": 1000, "sequence_bias": {(2,): -LARGEST}},
        {"exponential_decay_length_penalty": (0, LARGEST), "eos_token_id": 3, "temperature": 1e-30},
        {"no_repeat_ngram_size": 2**63 - 1}, {"on_overflow": "stop", "max_new_tokens": 2**63 - 1},
    ):  # fmt: skip
        result = generate(tiny_model, [[1]], **{"max_new_tokens": 3, **options})
        assert all(0 <= token < tiny_model.config.vocab_size for token in result.sequences[0])
        assert math.isfinite(result.scores[0])
    assert generate(tiny_model, []).sequences == []


# --- the reference library ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_a_random_case_equals_the_reference(make_pair: Callable[..., Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    lengths = [pick(1, 2, 5, 9) for _ in range(pick(1, 2, 4))]
    prompts = [torch.randint(49, (length,), generator=generator).tolist() for length in lengths]
    sampled = {
        "strategy": "sample",
        "temperature": pick(0.7, 1.0, 1.5),
        "top_k": pick(0, 5, 20),
        "top_p": pick(0.8, 1.0),
        "num_return_sequences": pick(1, 3),
    }
    make_pair(seed=seed).check(
        prompts,
        eos_token_id=torch.randperm(49, generator=generator)[: pick(0, 1, 3, 8)].tolist(),
        max_new_tokens=pick(1, 6, 20),
        seed=seed,
        repetition_penalty=pick(1.0, 1.3),
        no_repeat_ngram_size=pick(0, 2),
        banned_sequences=[[49]],  # the padding: to the reference it is part of the n-grams of a short prompt
        **pick({"strategy": "greedy"}, sampled),
    )


SAME = [  # each line is one decoder in several words
    [{}, {"temperature": 0.8}, {"top_k": 0}, {"top_p": 1.0, "min_p": 0}, {"typical_p": 1, "epsilon_cutoff": 0.0}],
    [{"temperature": 1}, {"temperature": 1.0, "eta_cutoff": 0, "repetition_penalty": 1}],
    [{"top_k": 5}, {"top_k": 5, "top_p": 1}],
    [{"strategy": "greedy"}, {"temperature": 0}, {"strategy": "beam"}, {"strategy": "greedy", "top_p": None}],
    [{"strategy": "greedy", "no_repeat_ngram_size": 2}, {"temperature": 0, "no_repeat_ngram_size": 2}],
    [{"strategy": "beam", "num_beams": 3}, {"strategy": "beam", "num_beams": 3, "length_penalty": 1}],
    [{"strategy": "beam", "num_beams": 3, "length_penalty": 0.5}],
    [{"strategy": "sample", "num_beams": 3}, {"num_beams": 3, "top_k": 0}],
]


def test_the_effect_of_options_is_equal_where_they_write_the_same(tiny_model):
    decoders = [(number, options) for number, line in enumerate(SAME) for options in line]
    effects = [DecodingOptions(**options).effect for _, options in decoders]
    for (number, options), effect in zip(decoders, effects, strict=True):
        for (other, _), theirs in zip(decoders, effects, strict=True):
            assert (effect == theirs) == (number == other)
        given, simple = ({**options}, {name: getattr(effect, name) for name in ("strategy", "temperature", "top_k")})
        simple = {**given, **simple} | dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff"))
        written = [
            generate(tiny_model, [[3, 1, 4], [1]], max_new_tokens=9, eos_token_id=2, **words)
            for words in (given, simple)
        ]
        assert written[0].sequences == written[1].sequences
