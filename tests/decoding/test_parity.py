"""Forty cases, each decoded by the transformers library too, live: ids exactly, scores of beams within 1e-4.

Each also says what its first row begins with, so that both libraries cannot go wrong together unseen.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.decoding.generate import Step, generate
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT

A = [[1, 2, 3]]
SINGLE = [[7]]
EQUAL = [[1, 2, 3], [4, 5, 6], [9, 8, 7], [1, 2, 3]]
RAGGED = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16]]
REPEATING = [[3, 3, 4, 3, 3, 4, 3]]
LONG = [[(7 * n) % 49 for n in range(40)]]
EOS, SEVERAL = [32], [32, 11, 13]

# number: prompts, end of sequence, new tokens, options, how row 0 begins
GREEDY: dict[int, tuple[list[list[int]], list[int], int, dict[str, Any], list[int]]] = {
    1: (A, [], 16, {}, [32] * 9 + [18] * 7),
    2: (SINGLE, [], 16, {}, [32] * 16),
    3: (EQUAL, EOS, 16, {}, [32]),
    4: (RAGGED, EOS, 16, {}, [32]),
    5: (LONG, [], 25, {}, []),  # to the last position
    6: (EQUAL, SEVERAL, 16, {}, [32]),
    9: (A, EOS, 12, {"min_new_tokens": 5}, [48, 13, 13, 18, 13]),
    10: (REPEATING, [], 12, {"repetition_penalty": 1.3}, [2, 35, 11, 7, 32, 32, 32, 32, 18, 13, 32, 32]),
    11: (REPEATING, [], 12, {"repetition_penalty": 0.7}, [2] * 7 + [32] * 5),
    12: (RAGGED, EOS, 12, {"repetition_penalty": 1.3}, []),
    13: (REPEATING, [], 12, {"no_repeat_ngram_size": 2}, [2, 35, 11, 7, 32, 32, 18, 32, 48, 32, 8, 28]),
    14: (A, [], 12, {"no_repeat_ngram_size": 1}, [32, 13, 48, 18, 28, 9, 31, 7, 24, 11, 8, 47]),
    15: (A, [], 12, {"banned_sequences": [[32], [13, 13], [48, 18, 28]]}, [48, 13, 48, 48, 13, 11, 47, 13, 39]),
    16: (A, [], 8, {"suppress_tokens": [32], "begin_suppress_tokens": [48]}, [13] * 5 + [39, 39, 13]),
    17: (A, EOS, 4, {"min_new_tokens": 4, "force_eos": True}, [48, 13, 13, 32]),
    18: (A, EOS, 24, {"exponential_decay_length_penalty": (2, 1.5), "min_new_tokens": 1}, [48, 13, 32]),
    19: (A, [], 8, {"sequence_bias": {(13,): 2.0, (13, 13): -5.0}}, [13, 32, 13, 32]),
    20: (
        RAGGED,
        EOS,
        12,
        {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 3,
            "banned_sequences": [[11], [13, 32]],
            "min_new_tokens": 3,
        },
        [],
    ),
}


@pytest.mark.parametrize("number", GREEDY)
def test_greedy(pair: Any, number: int) -> None:
    prompts, eos, new, options, row = GREEDY[number]
    found = pair.check(prompts, strategy="greedy", eos_token_id=eos, max_new_tokens=new, **options)
    assert found[0][: len(row)] == row


def test_case_5_has_no_room_for_one_more(pair: Any) -> None:
    with pytest.raises(InputError, match="40 and max_new_tokens = 26 do not fit block_size = 64"):
        generate(pair.ours, LONG, strategy="greedy", max_new_tokens=26)


def test_case_7_an_end_of_sequence_as_padding(pair: Any) -> None:
    width, new = 3, 16
    theirs = pair.theirs.generate(
        torch.tensor(EQUAL), attention_mask=torch.ones(4, width), max_new_tokens=new, eos_token_id=SEVERAL
    )
    ours = generate(pair.ours, EQUAL, strategy="greedy", max_new_tokens=new, eos_token_id=SEVERAL)
    padded = [[*ids, *[32] * (theirs.size(1) - len(ids))] for ids in ours.sequences]
    assert padded == theirs.tolist()
    assert padded[0][width:] == [32] * 4


def test_case_8_a_limit_on_the_total_is_one_on_what_is_new(pair: Any) -> None:
    expected, _ = pair.generate(A, max_length=10)
    result = generate(pair.ours, A, strategy="greedy", max_new_tokens=10 - len(A[0]))
    assert result.sequences[0] == A[0] + expected[0]
    assert len(result.sequences[0]) == 10


BEAMS: dict[int, tuple[list[list[int]], list[int], int, dict[str, Any]]] = {
    21: (A, EOS, 6, {"num_beams": 3, "num_return_sequences": 3, "early_stopping": False}),
    22: (A, EOS, 6, {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True}),
    23: (A, EOS, 6, {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never"}),
    24: (A, EOS, 6, {"num_beams": 3, "length_penalty": 0.0}),
    25: (A, EOS, 12, {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"}),
    26: (A, EOS, 6, {"num_beams": 3, "length_penalty": -1.0}),
    27: (EQUAL, [32, 11, 13], 10, {"num_beams": 5, "num_return_sequences": 2}),
    28: (RAGGED, EOS, 10, {"num_beams": 4}),
    29: (
        A,
        EOS,
        10,
        {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    ),
    30: (A, [], 4, {"num_beams": 20, "num_return_sequences": 20}),
}
BEAM_SCORES = {
    21: [-1.8691, -1.8999, -1.9207],
    22: [-1.8999, -1.9207, -2.1369],
    23: [-1.8667, -1.8691, -1.8999],
    24: [-2.1369],
    25: [-0.1358],
    26: [-2.1369],
    29: [-2.2992],
    30: [-1.5486, -1.6425, -1.8043],
}


@pytest.mark.parametrize("number", BEAMS)
def test_beams(pair: Any, number: int) -> None:
    prompts, eos, new, options = BEAMS[number]
    asked: dict[str, Any] = {"strategy": "beam", "eos_token_id": eos, "max_new_tokens": new, **options}
    pair.check(prompts, **asked)
    golden = BEAM_SCORES.get(number, [])
    assert generate(pair.ours, prompts, **asked).scores[: len(golden)] == pytest.approx(golden, abs=1e-4)


FILTERS: list[dict[str, Any]] = [
    {"suppress_tokens": [32], "begin_suppress_tokens": [48]},
    {"force_eos": True, "min_new_tokens": 3},
    {"exponential_decay_length_penalty": (1, 1.2)},
    {"banned_sequences": [[11], [13, 32]]},
    {"sequence_bias": {(13,): 2.0, (13, 13): -5.0}},
]


@pytest.mark.parametrize("options", FILTERS)
def test_beams_with_filters(pair: Any, options: dict[str, Any]) -> None:
    pair.check(RAGGED, strategy="beam", num_beams=3, eos_token_id=[32, 13], max_new_tokens=8, **options)


SAMPLES: dict[int, tuple[list[list[int]], list[int], int, dict[str, Any]]] = {
    31: (EQUAL, EOS, 12, {"temperature": 0.8, "top_k": 10, "top_p": 0.9}),
    32: (A, [], 12, {"temperature": 1.0, "top_k": 50}),
    33: (
        A,
        EOS,
        12,
        {
            "temperature": 1.0,
            "min_p": 0.05,
            "typical_p": 0.9,
            "eta_cutoff": 0.01,
            "epsilon_cutoff": 0.001,
            "num_return_sequences": 4,
        },
    ),
    34: (RAGGED, EOS, 12, {"temperature": 1.0, "top_p": 0.8}),
    35: (A, EOS, 8, {"temperature": 1.2, "top_k": 10, "num_beams": 3, "num_return_sequences": 3}),
}


@pytest.mark.parametrize("seed", [0, 1, 1234])
@pytest.mark.parametrize("number", SAMPLES)
def test_samples(pair: Any, number: int, seed: int) -> None:
    prompts, eos, new, options = SAMPLES[number]
    asked: dict[str, Any] = {"eos_token_id": eos, "max_new_tokens": new, "seed": seed, **options}
    found = pair.check(prompts, **asked)
    if (number, seed) == (32, 1234):
        assert found == [[25, 25, 25, 9, 9, 48, 7, 25, 14, 2, 8, 29]]
    if (number, seed) == (35, 1234):
        assert generate(pair.ours, prompts, **asked).scores == pytest.approx([-1.7790, -2.1159, -2.2305], abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("prompts", "eos", "options"),
    [
        (RAGGED, [32, 13], {"temperature": 1.4, "repetition_penalty": 1.3, "num_return_sequences": 2}),
        (EQUAL, [], {"temperature": 1.0, "eta_cutoff": 0.05, "top_p": 0.95}),
        (EQUAL, [], {"temperature": 1.0, "top_p": 0.9, "num_beams": 3}),
        (RAGGED, [32, 13], {"temperature": 0.9, "epsilon_cutoff": 0.02, "num_beams": 3}),
        (
            RAGGED,
            [32, 13],
            {"temperature": 0.9, "min_p": 0.02, "length_penalty": 2.0, "early_stopping": True, "num_beams": 3},
        ),
    ],
)
def test_more_samples(pair: Any, prompts: list[list[int]], eos: list[int], options: dict[str, Any], seed: int) -> None:
    pair.check(prompts, eos_token_id=eos, max_new_tokens=8, seed=seed, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 5}],
    ids=["plain", "penalty", "ngram", "minimum"],
)
def test_case_36_a_draft_model(pair: Any, make_pair: Callable[..., Any], options: dict[str, Any]) -> None:
    draft = make_pair(seed=6, n_layer=1)
    theirs, _ = pair.generate(A, EOS, max_new_tokens=20, assistant_model=draft.theirs, **options)
    asked: dict[str, Any] = {"strategy": "greedy", "eos_token_id": EOS, "max_new_tokens": 20, **options}
    assert pair.check(A, DraftModel(draft.ours), **asked) == theirs, "its own speculation writes something else"
    plain = generate(pair.ours, RAGGED, **asked).sequences
    assert plain[0] == A[0] + theirs[0]
    for num_tokens in range(1, 9):
        assert generate(pair.ours, RAGGED, draft=DraftModel(draft.ours, num_tokens), **asked).sequences == plain


def test_case_37_prompt_lookup(pair: Any) -> None:
    for prompts in (A, REPEATING):
        theirs, _ = pair.generate(prompts, max_new_tokens=20, prompt_lookup_num_tokens=4)
        assert pair.check(prompts, PromptLookup(num_tokens=4), strategy="greedy", max_new_tokens=20) == theirs


@pytest.mark.parametrize("number", [31, 33, 34])
def test_case_38_a_draft_samples_what_the_reference_samples(
    pair: Any, make_pair: Callable[..., Any], number: int
) -> None:
    prompts, eos, new, options = SAMPLES[number]
    for draft in (DraftModel(make_pair(seed=6, n_layer=1).ours, 3), PromptLookup(num_tokens=4, max_ngram=1)):
        pair.check(prompts, draft, eos_token_id=eos, max_new_tokens=new, seed=7, **options)


@pytest.mark.parametrize("number", [1, 21, 31])
def test_case_39_with_and_without_a_cache(pair: Any, number: int) -> None:
    prompts, eos, new, options, *_ = (GREEDY | BEAMS | SAMPLES)[number]
    strategy = {1: "greedy", 21: "beam", 31: "sample"}[number]
    asked: dict[str, Any] = {"strategy": strategy, "eos_token_id": eos, "max_new_tokens": new, **options}
    for use_cache in (True, False):
        pair.check(prompts, use_cache=use_cache, **asked)


@torch.no_grad()
def test_case_39_each_steps_logits(pair: Any) -> None:
    theirs = pair.theirs.generate(
        torch.tensor(A),
        attention_mask=torch.ones(1, 3),
        max_new_tokens=16,
        eos_token_id=None,
        pad_token_id=49,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = [row[0].log_softmax(-1).max() for row in theirs.logits]
    for use_cache in (True, False):
        steps: list[Step] = []
        generate(pair.ours, A, strategy="greedy", max_new_tokens=16, use_cache=use_cache, on_step=steps.append)
        found = [step.choices[0].log_prob for step in steps]
        assert found == pytest.approx([float(value) for value in expected], abs=1e-5)


# --- tables instead of models --------------------------------------------------------------------------------------


class History(GPT):
    """A model whose next-token probabilities are a table, by the length and the last two tokens: (T, V, V, V)."""

    def __init__(self, table: torch.Tensor) -> None:
        V = table.size(1)
        super().__init__(GPTConfig(vocab_size=V, n_embd=V, n_head=1, n_layer=1, block_size=len(table)))
        self.table = table
        self.lm_head = torch.nn.Identity()

    def trunk(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        assert cache is None, "a table keeps nothing"
        before = torch.cat([idx[:, :1], idx[:, :-1]], dim=1)
        return self.table[torch.arange(idx.size(1)), before, idx].log()

    def as_their_processor(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """What makes any model of the reference library this table."""
        return self.table[ids.size(1) - 1, ids[:, -2], ids[:, -1]].log()


def check_table(host: Any, model: History, prompts: Sequence[Sequence[int]], eos: list[int], **options: Any) -> None:
    """`host` lends the reference library a model, whose scores are replaced by the table."""
    copies = options.get("num_return_sequences", 1)
    expected, scores = host.generate(prompts, eos, logits_processor=[model.as_their_processor], **options)
    result = generate(model, prompts, strategy="beam", eos_token_id=eos, use_cache=False, **options)
    lengths = [len(prompt) for prompt in prompts for _ in range(copies)]
    assert [ids[n:] for ids, n in zip(result.sequences, lengths, strict=True)] == expected
    assert result.scores == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(
    ("length_penalty", "scores"), [(0.0, [-1.3863, -2.6956]), (1.0, [-0.6931, -0.8985]), (2.0, [-0.2995, -0.3112])]
)
def test_case_40_a_table_worked_by_hand(
    make_pair: Callable[..., Any], length_penalty: float, scores: list[float], early_stopping: bool | str
) -> None:
    by_last = torch.tensor(
        [[0.25, 0.25, 0.25, 0.25], [0.08, 0.12, 0.50, 0.30], [0.50, 0.12, 0.08, 0.30], [0.40, 0.10, 0.05, 0.45]]
    )
    model = History(by_last.expand(8, 4, 4, 4))
    options: dict[str, Any] = {
        "num_beams": 2,
        "num_return_sequences": 2,
        "max_new_tokens": 3,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
    }
    check_table(make_pair(vocab_size=4), model, [[1, 1]], [0], **options)
    found = generate(model, [[1, 1]], strategy="beam", eos_token_id=0, use_cache=False, **options)
    assert found.scores == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(10))
def test_a_thousand_random_tables(make_pair: Callable[..., Any], hundred: int) -> None:
    V = 6
    host = make_pair(vocab_size=V)
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        generator = torch.Generator().manual_seed(seed)

        def pick(*values: Any, generator: torch.Generator = generator) -> Any:
            return values[int(torch.randint(len(values), (), generator=generator))]

        # By the length too, or two orders of the same steps would have equal sums, and a tie may go either way.
        model = History((2.0 * torch.randn(16, V, V, V, generator=generator)).softmax(-1))
        length, num_beams = pick(2, 3, 5), pick(2, 3, 4, 5, 7)
        check_table(
            host,
            model,
            [torch.randint(V, (length,), generator=generator).tolist() for _ in range(pick(1, 2, 3))],
            torch.randperm(V, generator=generator)[: pick(0, 1, 2, 3)].tolist(),
            num_beams=num_beams,
            num_return_sequences=pick(1, num_beams),
            max_new_tokens=pick(2, 3, 5, 8),
            length_penalty=pick(-1.0, 0.0, 0.5, 1.0, 2.0),
            early_stopping=pick(False, True, "never"),
        )


# --- a joint distribution ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_case_38_two_tokens_with_a_bad_draft_have_the_models_distribution(make_pair: Callable[..., Any]) -> None:
    V, draws = 8, 2500
    model, draft = make_pair(vocab_size=V).ours, make_pair(vocab_size=V, seed=6, n_layer=1).ours
    prompt = [1, 2, 3]
    with torch.no_grad():
        first = model(torch.tensor([prompt]))[0, -1].double().softmax(-1)
        second = model(torch.tensor([[*prompt, token] for token in range(V)]))[:, -1].double().softmax(-1)
        third = model(torch.tensor([[*prompt, *two] for two in itertools.product(range(V), repeat=2)]))[:, -1].double()
        start = int(first.argmax())
        guess = draft(torch.tensor([[*prompt, start]]))[0, -1].double().softmax(-1)
    # The first token comes without a draft: look at the two after it, given the commonest first one.
    assert (second[start] - guess).abs().sum() / 2 > 0.4, "the draft is too good to be a test"
    joint = (second[start][:, None] * third.softmax(-1).view(V, V, V)[start]).flatten()
    result = generate(
        model,
        [prompt],
        draft=DraftModel(draft, 2),
        max_new_tokens=4,
        temperature=1,
        num_return_sequences=int(draws / float(first[start])),
        seed=3,
    )
    pairs = [ids[4] * V + ids[5] for ids in result.sequences if ids[3] == start]
    observed = torch.bincount(torch.tensor(pairs), minlength=V * V).double()
    common = joint * len(pairs) >= 5
    observed = torch.cat([observed[common], observed[~common].sum()[None]])
    expected = torch.cat([joint[common], joint[~common].sum()[None]]) * len(pairs)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    p = float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), torch.tensor(statistic / 2)))
    assert 1e-4 < p < 1 - 1e-4
    assert 0 < result.num_accepted < result.num_drafted
    assert math.isfinite(sum(result.scores))
