"""The page's filters, draws and texts against minigpt.decoding."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.analysis import ablate, edit
from minigpt.analysis.decoders import beam_tree
from minigpt.config import GPTConfig
from minigpt.decoding.filters import apply_filters
from minigpt.decoding.generate import generate
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import sample
from minigpt.evaluation.loss import token_log_probs
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from tests.conftest import random_model
from tests.page.conftest import Node, PageError, the_model

V = 31


def with_options(scores: Tensor, history: list[int], num_new: int, options: dict[str, Any]) -> Tensor:
    eos = options.get("eos", [])
    named = {"temperature": 1.0} | {name: value for name, value in options.items() if name != "eos"}
    return apply_filters(scores[None], [history], DecodingOptions(**named, eos_token_id=eos or None), [num_new])[0]


QUARTERS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
TIES = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
GONE = torch.tensor([-math.inf, 2.0, -math.inf, 1.0, 1.5, -3.0])
BY_HAND: list[tuple[Tensor, list[int], dict[str, Any], list[int]]] = [
    (QUARTERS, [], {}, [0, 1, 2, 3]),
    (QUARTERS, [], {"top_k": 2}, [0, 1]),
    (TIES, [], {"top_k": 2}, [1, 2, 3, 4]),
    (TIES, [], {"top_k": 99}, [0, 1, 2, 3, 4, 5]),
    (QUARTERS, [], {"top_p": 1e-30}, [0]),
    (QUARTERS, [], {"top_p": 0.4999}, [0]),
    (QUARTERS, [], {"top_p": 0.5001}, [0, 1]),
    (QUARTERS, [], {"top_p": 0.9999}, [0, 1, 2, 3]),
    (QUARTERS, [], {"min_p": 0.4999}, [0, 1]),
    (QUARTERS, [], {"min_p": 0.5001}, [0]),
    (QUARTERS, [], {"min_p": 1.0}, [0]),
    (TIES, [], {"min_p": 1.0}, [1]),
    (QUARTERS, [], {"epsilon_cutoff": 0.2}, [0, 1]),
    (QUARTERS, [], {"epsilon_cutoff": 0.9}, [0]),
    (QUARTERS, [], {"typical_p": 0.2}, [1]),  # its surprise, ln 4, is nearest to the entropy, 1.75 ln 2
    (QUARTERS, [], {"typical_p": 0.7}, [0, 1]),
    (QUARTERS, [], {"eta_cutoff": 0.5}, [0, 1]),
    (QUARTERS, [], {"temperature": 0.5, "top_p": 0.7}, [0]),  # after the temperature, the best has 16 / 22
    (QUARTERS, [], {"top_k": 2, "top_p": 0.66}, [0]),  # after top-k, the best has 2 / 3
    (TIES, [1, 1], {"repetition_penalty": 2.0, "top_k": 1}, [2, 3, 4]),
    (TIES, [1, 2, 3, 1, 2], {"no_repeat_ngram_size": 3}, [0, 1, 2, 4, 5]),
    (TIES, [1, 2], {"no_repeat_ngram_size": 1}, [0, 3, 4, 5]),
    (TIES, [], {"suppress_tokens": [1, 5]}, [0, 2, 3, 4]),
    (TIES, [], {"eos": [1], "min_new_tokens": 1}, [0, 2, 3, 4, 5]),
    (GONE, [], {"top_p": 0.99}, [1, 3, 4]),
    (GONE, [], {"typical_p": 0.9, "min_p": 0.3}, [1, 3, 4]),
]


def test_filters_of_distributions_written_by_hand(node: Node):
    args = [
        {"scores": scores, "history": history, "options": options, "num_new": 0}
        for scores, history, options, _ in BY_HAND
    ]
    found = node([("filters", each) for each in args])
    for scores, (before, history, options, expected) in zip(found, BY_HAND, strict=True):
        kept = scores.isfinite().nonzero().flatten().tolist()
        assert kept == expected, options
        assert kept == with_options(before, history, 0, options).isfinite().nonzero().flatten().tolist(), options


def drawn_options(generator: torch.Generator) -> dict[str, Any]:
    """Some of the options, with values at which they do something."""

    def one(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    ranges = {
        "temperature": one(0.3, 0.7, 1.0, 1.7, 40.0),
        "top_k": one(0, 1, 3, 20, 50),
        "top_p": one(0.07, 0.5, 0.9, 0.999, 1.0),
        "min_p": one(0.0, 0.01, 0.2, 0.9),
        "typical_p": one(0.05, 0.5, 0.95, 1.0),
        "epsilon_cutoff": one(0.0, 0.001, 0.03),
        "eta_cutoff": one(0.0, 0.001, 0.2),
        "repetition_penalty": one(0.8, 1.0, 1.3),
        "no_repeat_ngram_size": one(0, 1, 2, 3),
        "suppress_tokens": one([], [3], [0, 30]),
        "eos": [7, 2],
        "min_new_tokens": one(0, 4),
    }
    return {name: value for name, value in ranges.items() if one(True, False) or name == "eos"}


def test_filters_of_any_distribution(node: Node):
    generator = torch.Generator().manual_seed(5)
    cases = []
    for number in range(400):
        scores = torch.randn(V, generator=generator) * (0.1 + number % 7)
        history = torch.randint(V, (number % 13,), generator=generator).tolist()
        cases.append((scores, history, number % 9, drawn_options(generator)))
    calls = [
        ("filters", {"scores": scores, "history": history, "options": options, "num_new": num_new})
        for scores, history, num_new, options in cases
    ]
    num_kept = set()
    for found, (scores, history, num_new, options) in zip(node(calls), cases, strict=True):
        expected = with_options(scores, history, num_new, options)
        assert found.isfinite().tolist() == expected.isfinite().tolist(), options
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        num_kept.add(int(found.isfinite().sum()))
    assert len(num_kept) > 15  # they were no mere copies


def test_extreme_temperatures(node: Node):
    scores = torch.tensor([50.0, 1.0, -200.0, 49.999])
    values = [1e-45, 1e-38, 1e-30, 1e-5, 1e30]
    found = node(
        [("filters", {"scores": scores, "history": [], "options": {"temperature": t}, "num_new": 0}) for t in values]
    )
    for one, value in zip(found, values, strict=True):
        expected = with_options(scores, [], 0, {"temperature": value})
        torch.testing.assert_close(one.softmax(-1), expected.softmax(-1), rtol=1e-6, atol=1e-30)


def test_the_distribution_that_is_drawn_from(node: Node):
    options = {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.5}
    typical, first, sharp, penalized = node(
        [
            ("distribution", {"logits": QUARTERS, "options": {"strategy": "greedy", "typical_p": 0.2}, "history": []}),
            ("distribution", {"logits": torch.tensor([1.0, 2.0, 2.0]), "options": {"temperature": 0}, "history": []}),
            ("distribution", {"logits": TIES, "options": {"temperature": 0}, "history": [1]}),
            ("distribution", {"logits": TIES, "options": options, "history": [1]}),
        ]
    )
    assert typical["probs"].tolist() == [1, 0, 0, 0]  # where nothing is drawn, nothing is cut for a draw
    assert first["probs"].tolist() == [0, 1, 0]
    assert sharp["probs"].tolist() == [0, 1, 0, 0, 0, 0]
    assert sharp["kept"] == 1
    expected = with_options(TIES, [1], 0, options)
    torch.testing.assert_close(penalized["probs"], expected.softmax(-1), rtol=1e-6, atol=0)
    assert penalized["kept"] == expected.isfinite().sum()


def test_a_draw_is_the_same_for_the_same_uniform_numbers(node: Node):
    generator = torch.Generator().manual_seed(3)
    cases = [
        (torch.randn(V, generator=generator) * 2, torch.rand(V, generator=generator, dtype=torch.float64).float())
        for _ in range(200)
    ]
    found = node([("draw", {"scores": scores, "uniforms": uniforms}) for scores, uniforms in cases])
    expected = [int(sample(scores, -torch.log1p(-uniforms))) for scores, uniforms in cases]
    assert found == expected
    assert len(set(found)) > 10


def test_a_removed_token_is_never_drawn(node: Node):
    uniforms = torch.zeros(6)  # the shortest time that a runner can have
    assert node([("draw", {"scores": GONE, "uniforms": uniforms})] * 2) == [1, 1]


def test_the_generator_is_uniform_and_a_place_of_the_tape_is_always_the_same(node: Node):
    first, again, other, much, (a, b, c) = node(
        [
            *[("uniforms", {"seeds": seeds, "count": 1000}) for seeds in ([0, 5], [0, 5], [0, 6], [2**32])],
            ("noise", {"seed": 3, "columns": 1000, "places": [4, 2, 4]}),
        ]
    )
    assert torch.equal(first, again)
    assert torch.equal(a, c)
    for one, two in itertools.combinations((first, other, much), 2):
        assert float(torch.corrcoef(torch.stack([one, two]))[0, 1].abs()) < 0.1
    for uniforms in (first, other, much):
        counts = torch.histc(uniforms, 10, 0, 1)
        assert float(((counts - 100) ** 2 / 100).sum()) < 27.9  # chi-squared on 9 degrees of freedom: once in 1,000
    assert not torch.equal(a, b)
    assert float(a.min()) > 0
    assert abs(float(a.mean()) - 1) < 0.15


# --- texts


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(GPTConfig(vocab_size=V, block_size=61, n_layer=2, n_head=3, n_embd=3 * 7), 11)


def test_greedy_text_of_200_tokens(node: Node, model: GPT):
    """The weights are random, but at every step the best token leads by more than rounding could take away."""
    prompt = [3, 1, 4]
    options = {"strategy": "greedy", "max_new_tokens": 200, "on_overflow": "crop"}
    _, steps = node([the_model("m", model), ("generate", {"model": "m", "prompt": prompt, "options": options})])
    (expected,) = generate(model, [prompt], **options).sequences
    for end in range(len(prompt), len(expected)):
        best = model(torch.tensor([expected[:end][-61:]]))[0, -1].topk(2).values
        assert best[0] - best[1] > 2e-3
    assert [token for token, _, _ in steps] == expected[len(prompt) :]
    assert [reason for _, _, reason in steps] == [None] * 199 + ["length"]


def test_sampled_text_for_the_same_uniform_numbers(node: Node, model: GPT):
    """The loop of `decoding.generate` with its noise from outside."""
    prompt, count = [3, 1, 4], 80
    uniforms = torch.rand(count, V, generator=torch.Generator().manual_seed(8))
    options = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1}
    wanted = {**options, "max_new_tokens": count, "on_overflow": "crop"}
    args = {"model": "m", "prompt": prompt, "options": wanted, "uniforms": uniforms.flatten()}
    _, steps = node([the_model("m", model), ("generate", args)])
    ids = list(prompt)
    for n in range(count):
        logits = model(torch.tensor([ids[-61:]]))[0, -1]
        scores = with_options(logits, ids, n, options)
        ids.append(int(sample(scores, -torch.log1p(-uniforms[n]))))
    assert [token for token, _, _ in steps] == ids[len(prompt) :]


def test_log_probabilities_ends_and_limits(node: Node, model: GPT):
    prompt = [3, 1, 4]
    greedy = generate(model, [prompt], strategy="greedy", max_new_tokens=58).sequences[0][3:]
    end = greedy[5]
    cases = [
        {"strategy": "greedy", "max_new_tokens": 58},
        {"strategy": "greedy", "max_new_tokens": 58, "eos": [end]},
        {"strategy": "greedy", "max_new_tokens": 100, "on_overflow": "stop"},
        {"max_new_tokens": 20, "seed": 4},
        {"max_new_tokens": 100},
    ]
    calls = [("generate", {"model": "m", "prompt": prompt, "options": options}) for options in cases]
    short = {"vocab_size": 17, "model": "m", "prompt": prompt, "options": {"max_new_tokens": 50, "temperature": 9}}
    empty = {"model": "m", "prompt": [], "options": {}}
    _, whole, ended, full, drawn, refused, few, nothing = node(
        [the_model("m", model), *calls, ("generate", short), ("generate", empty)]
    )
    log_probs = token_log_probs(model, [*prompt, *greedy])[len(prompt) - 1 :]
    assert [log_prob for _, log_prob, _ in whole] == pytest.approx(log_probs, abs=1e-4)
    assert ended[-1][::2] == [end, "eos"]
    assert len(ended) == greedy.index(end) + 1
    assert [len(full), full[-1][2]] == [59, "context"]  # the last token is never fed back
    assert len(drawn) == 20
    assert isinstance(refused, PageError)
    assert "a prompt of 3 tokens and 100 new ones do not fit block_size = 61" in str(refused)
    assert max(token for token, _, _ in few) < 17
    assert "the prompt is empty" in str(nothing)


def test_a_row_reads_only_what_is_new_and_gives_the_same(node: Node, model: GPT):
    """It grows, shrinks, branches, is edited, slides, and begins anew."""
    ids = [n * n % V for n in range(80)]
    sequences = [
        ids[:5],
        ids[:6],
        ids[:9],
        ids[:4],
        [*ids[:6], 1, 2],
        ids[:60],
        ids[:61],
        ids[:62],
        ids,
        ids[:62][:30],
        ids,
    ]
    off = [{"kind": "ablate_head", "layer": 0, "head": 1}]  # what the layer above has read depends on it
    edits = [[], [], off, off, [], [], [], [], off, [], []]
    _, found = node([the_model("m", model), ("rows", {"model": "m", "sequences": sequences, "edits": edits})])
    for logits, sequence, changed in zip(found, sequences, edits, strict=True):
        with edit(model, *[ablate("0.1")] * len(changed)):
            expected = model(torch.tensor([sequence[-61:]]))[0, -1]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_a_row_reads_a_long_text_in_parts(node: Node, model: GPT):
    ids = [n * n % V for n in range(70)]
    sequences = [ids[:40], ids[:42], ids[:1], ids[20:43], ids]
    _, found = node([the_model("m", model), ("reading", {"model": "m", "sequences": sequences, "most": 16})])
    assert [one["left"] for one in found] == [[23, 7, 0], [0], [0], [6, 0], [0]]  # the last has no room in the cache
    for one, sequence in zip(found, sequences, strict=True):
        expected = model(torch.tensor([sequence[-61:]]))[0, -1]
        torch.testing.assert_close(one["logits"], expected, rtol=0, atol=1e-4)


def test_a_text_goes_on_the_same_wherever_one_begins(node: Node, model: GPT):
    options = {"max_new_tokens": 30, "temperature": 1.2, "seed": 6, "top_k": 25}
    args = {"model": "m", "prompt": [3, 1, 4], "options": options, "places": [0, 1, 17, 29]}
    _, (whole, *rest) = node([the_model("m", model), ("branches", args)])
    assert rest == [whole[place:] for place in args["places"]]


# --- beams

TOKENIZER = CharTokenizer("".join(map(chr, range(65, 65 + V))))
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 1, "max_new_tokens": 5},
    {"num_beams": 3, "max_new_tokens": 7},
    {"num_beams": 4, "max_new_tokens": 9, "eos": [2, 5], "length_penalty": 0.0},
    {"num_beams": 5, "max_new_tokens": 11, "eos": [2, 5, 11], "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 3, "max_new_tokens": 11, "eos": [2, 5, 11], "early_stopping": True},
    {"num_beams": 3, "max_new_tokens": 11, "eos": [0, 13], "length_penalty": 2.0},  # patience finds another
    {"num_beams": 3, "max_new_tokens": 11, "eos": [0, 13], "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 3, "max_new_tokens": 11, "eos": [2, 5, 11, 7, 19], "length_penalty": -1.0},
    {"num_beams": 2, "max_new_tokens": 13, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "max_new_tokens": 80, "on_overflow": "crop"},
    {"num_beams": 2, "max_new_tokens": 80, "on_overflow": "stop"},
    {"num_beams": 4, "max_new_tokens": 6, "eos": [2], "min_new_tokens": 4, "suppress_tokens": [3, 4]},
]


def test_beams_are_those_of_the_search(node: Node, model: GPT):
    """Sequences, scores and every node of the tree."""
    prompts = [[3, 1, 4], [7]]
    cases = [*itertools.product(prompts, SEARCHES)]
    calls = [("beams", {"model": "m", "prompt": prompt, "options": options}) for prompt, options in cases]
    _, *results = node([the_model("m", model), *calls])
    for steps, (prompt, options) in zip(results, cases, strict=True):
        wanted = {name: value for name, value in options.items() if name != "eos"}
        wanted |= {"eos_token_id": options.get("eos")}
        tree = beam_tree(model, prompt, TOKENIZER, **wanted)
        assert [step["done"] for step in steps] == [False] * (len(steps) - 1) + [True]
        for step in steps:  # a tree grows: what was there stays, except which path is the best
            number = len(step["nodes"])
            assert [{**one, "best": None} for one in step["nodes"]] == [
                {**one, "best": None} for one in steps[-1]["nodes"][:number]
            ]
        last = steps[-1]
        for found, expected in zip(last["nodes"], tree.nodes, strict=True):
            candidate = expected.candidate
            assert found == {
                "step": expected.step,
                "parent": expected.parent,
                "id": candidate.id,
                "total": pytest.approx(candidate.total, abs=1e-4),
                "kept": candidate.kept,
                "place": candidate.place,
                "finish_reason": candidate.finish_reason,
                "best": expected.best,
            }, options
        assert last["finished"][0]["ids"] == tree.ids
        copies = len(last["finished"])
        result = generate(model, [prompt], strategy="beam", num_return_sequences=copies, **wanted)
        assert [one["ids"] for one in last["finished"]] == result.sequences
        assert [one["score"] for one in last["finished"]] == pytest.approx(result.scores, abs=1e-4)
        assert [one["finish_reason"] for one in last["finished"]] == result.finish_reasons


def test_a_search_that_cannot_be(node: Node, model: GPT):
    wrong = [
        ({"max_new_tokens": 0}, "0 new tokens leave nothing"),
        ({"num_beams": 0}, "num_beams must be a whole number from 1 on"),
        ({"max_new_tokens": 70}, "do not fit block_size = 61"),
        ({"suppress_tokens": [*range(V)], "num_beams": 2}, "every continuation is banned"),
    ]
    calls = [("beams", {"model": "m", "prompt": [1, 2], "options": options}) for options, _ in wrong]
    streamed = ("generate", {"model": "m", "prompt": [1], "options": {"strategy": "beam"}})
    _, *results, error = node([the_model("m", model), *calls, streamed])
    for result, (_, said) in zip(results, wrong, strict=True):
        assert said in str(result)
    assert "call beamSearch" in str(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperatur": 1}, "there is no option temperatur"),
        ({"temperature": -0.1}, "temperature = -0.1 cannot be used"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": "5"}, "top_k = 5 cannot be used"),
        ({"strategy": "beams"}, "choose among sample, greedy, beam"),
        ({"suppress_tokens": [*range(6)]}, "every token is banned"),
    ],
)
def test_options_that_cannot_be_used(node: Node, options: dict[str, Any], said: str):
    (error,) = node([("distribution", {"logits": TIES, "options": options, "history": []})])
    assert isinstance(error, PageError)
    assert said in str(error)
    assert len(str(error).splitlines()) == 2
