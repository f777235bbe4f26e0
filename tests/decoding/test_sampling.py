"""Draws have the distribution they should have, depend on the seed alone, and rows feed the model what they say."""

import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt import parameters
from minigpt.config import GPTConfig
from minigpt.decoding import sampling
from minigpt.decoding.generate import generate, stream
from minigpt.decoding.sampling import NoiseTape, Rows
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT

CPU = torch.device("cpu")
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def p_value(observed: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's chi-squared test: how often a fit as bad as this comes by chance. Rare cells are merged."""
    expected = observed.sum() * probabilities.double()
    rare = expected < 5
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2))


def counts(tokens: Tensor, size: int) -> Tensor:
    return torch.bincount(tokens, minlength=size).double()


def drawn(seed: int | list[int] | None, rows: int, columns: int) -> Tensor:
    """The noise of the first token of every row."""
    return NoiseTape(seed, CPU, rows, columns).at(range(rows), [0] * rows)


def test_draws_follow_the_softmax() -> None:
    draws = 20_000
    scores = torch.randn(11, generator=torch.Generator().manual_seed(3)) * 1.5
    values = []
    for seed in range(4):
        tokens = sampling.sample(scores.expand(draws, -1), drawn(seed, draws, 11))
        values.append(p_value(counts(tokens, 11), scores.softmax(-1)))
        # The test can tell: with this many draws, a temperature 10 % off does not pass.
        assert p_value(counts(tokens, 11), (scores / 1.1).softmax(-1)) < 1e-4
    assert min(values) > 1e-4
    assert min(values) < 1 - 1e-4, "too good a fit: is the noise used twice?"


def test_rows_and_steps_are_drawn_independently() -> None:
    tape = NoiseTape(0, CPU, 2000, 3)
    scores = torch.tensor([0.5, 0.3, 0.2]).log()
    pairs = torch.zeros(9)
    for n in range(20):
        rows = sampling.sample(scores.expand(2000, -1), tape.at(range(2000), [n] * 2000)).view(2, 1000)
        pairs += torch.bincount(rows[0] * 3 + rows[1], minlength=9)
    assert p_value(pairs.double(), (scores.exp()[:, None] * scores.exp()).flatten()) > 1e-4


def test_a_removed_token_is_never_drawn() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    scores[::3] = -math.inf
    tape = NoiseTape(1, CPU, 20_000, 50)
    for n in range(20):
        noise = tape.at(range(20_000), [n] * 20_000)
        tape.keep_only([0], [n])
        assert scores[sampling.sample(scores.expand(20_000, -1), noise)].isfinite().all()


def test_noise_of_zero_does_not_draw_a_removed_token(monkeypatch: pytest.MonkeyPatch) -> None:
    # An exponential kernel may round to 0, and 0 / 0 is NaN, which argmax takes for the largest.
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator: self.fill_(0.0))
    assert sampling.sample(torch.tensor([[-math.inf, 0.0]]), drawn(0, 1, 2)).tolist() == [1]


def test_draws_are_those_of_multinomial() -> None:
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    for seed in range(20):
        expected = torch.multinomial(scores.softmax(-1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        assert torch.equal(sampling.sample(scores, drawn(seed, 6, 40)), expected)


def test_seeds_of_prompts_are_independent_streams() -> None:
    both = drawn([3, 4], 6, 5)
    assert torch.equal(both, torch.cat([drawn(3, 3, 5), drawn(4, 3, 5)]))
    assert not torch.equal(drawn(None, 6, 5), drawn(None, 6, 5))


def test_greedy_takes_the_first_of_equals() -> None:
    assert sampling.greedy(torch.tensor([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]])).tolist() == [1, 0]
    many = torch.zeros(2, 2053)
    many[1, [1999, 2001]] = 1.0
    assert sampling.greedy(many).tolist() == [0, 1999]


@pytest.mark.parametrize("columns", [13, 2053])
def test_greedy_takes_scores_with_a_gradient(columns: int) -> None:
    scores = torch.randn(3, columns, generator=torch.Generator().manual_seed(7), requires_grad=True)
    assert sampling.greedy(scores).tolist() == [row.index(max(row)) for row in scores.tolist()]


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_rows_give_the_logits_of_a_plain_forward(tiny_model: GPT, use_cache: bool) -> None:
    def check() -> None:
        for ids, logits in zip(rows.ids, rows.logits, strict=True):
            window = torch.tensor([ids[-tiny_model.config.block_size :]])
            torch.testing.assert_close(logits[-1], tiny_model(window)[0, -1], atol=1e-5, rtol=1e-5)

    rows = Rows(
        tiny_model, [[1, 2, 3], [4, 5, 6, 7, 8], [9]], [2, 2, 2], max_length=99, use_cache=use_cache, vocab_size=23
    )
    assert rows.ids == [[1, 2, 3]] * 2 + [[4, 5, 6, 7, 8]] * 2 + [[9]] * 2
    check()
    rows.advance([0, 1, 2, 3, 4, 5], [[1], [2], [3], [4], [5], [6]])  # every row goes on
    check()
    rows.advance([1, 1, 3, 2, 4, 4], [[1], [2], [3], [4], [5], [6]])  # beams fork, swap and die
    assert rows.ids[1] == [1, 2, 3, 2, 2]
    check()
    rows.advance([1, 3, 4], [[7], [8], [9]])  # rows leave
    check()
    for token in range(10):  # past the end of the context, where the window slides
        rows.advance([0, 1, 2], [[token]] * 3)
        check()


@pytest.mark.parametrize("fast", [True, False], ids=["one token", "whole pass"])
@torch.no_grad()
def test_rows_become_others_in_any_order(tiny_model: GPT, fast: bool) -> None:
    if not fast:
        tiny_model.ln_f.register_forward_hook(lambda part, given, out: None)
    rows = Rows(tiny_model, [[1, 2, 3], [4, 5]], [5, 5], max_length=13, use_cache=True, vocab_size=23)
    draw = random.Random(7)
    for _ in range(8):
        parents = [first + draw.randrange(5) for first in (0, 5) for _ in range(5)]
        rows.advance(parents, [[draw.randrange(23)] for _ in parents])
        expected = torch.cat([tiny_model(torch.tensor([ids]))[:, -1] for ids in rows.ids])
        torch.testing.assert_close(rows.last_logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_prompt_is_fed_once_for_all_its_copies(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = []
    trunk = tiny_model.trunk
    monkeypatch.setattr(tiny_model, "trunk", lambda idx, cache: fed.append(tuple(idx.shape)) or trunk(idx, cache))
    rows = Rows(tiny_model, [[1, 2, 3], [4, 5]], [3, 3], max_length=9, use_cache=True, vocab_size=23)
    rows.advance(range(6), [[1]] * 6)
    assert fed == [(2, 3), (6, 1)]


def test_next_token_table(tiny_model: GPT) -> None:
    with torch.no_grad():
        logits = tiny_model(torch.tensor([[4, 2]]))[0, -1]
    table = sampling.next_token_table(tiny_model, [4, 2], k=3)
    assert [token for token, _, _ in table] == logits.argsort(descending=True)[:3].tolist()
    for token, logit, probability in table:
        assert logit == pytest.approx(logits[token].item())
        assert probability == pytest.approx((logits.double().exp()[token] / logits.double().exp().sum()).item())
    assert sum(row[2] for row in sampling.next_token_table(tiny_model, [4], k=999)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("ids", "k", "message"),
    [
        ([], 5, "empty"),
        ([1, 23], 5, "id 23 at position 1 is outside the vocabulary of 23"),
        ([1], 0, "k = 0"),
        ([1], 1.5, "k = 1.5"),
        ([1] * 14, 5, "14 tokens .* block_size = 13"),
    ],
)
def test_next_token_table_refuses(tiny_model: GPT, ids: list[int], k: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampling.next_token_table(tiny_model, ids, k)


def test_prompts_may_hold_any_integers() -> None:
    expected = [[1, 2], [0]]
    assert sampling.check_prompts(((1, 2), [0]), 3) == expected
    assert sampling.check_prompts([torch.tensor([1, 2]), torch.tensor([0])], 3) == expected
    assert sampling.check_prompts([torch.tensor([1, 2]).numpy(), [0]], 3) == expected


@pytest.mark.parametrize("check", [lambda model: model.eval(), lambda model: model.train(), lambda m: m.h[0].eval()])
def test_modes_are_restored(tiny_model: GPT, check: Callable[[GPT], object]) -> None:
    check(tiny_model.train())
    before = [module.training for module in tiny_model.modules()]
    with contextlib.suppress(ZeroDivisionError), parameters.evaluating(tiny_model):
        assert not any(module.training for module in tiny_model.modules())
        raise ZeroDivisionError
    assert [module.training for module in tiny_model.modules()] == before


@pytest.mark.parametrize("end", ["reached", "closed", "error"])
@pytest.mark.parametrize("begins_first", [True, False])
def test_streams_of_one_model_share_its_evaluation_mode(
    tiny_model: GPT, tiny_config: GPTConfig, begins_first: bool, end: str
) -> None:
    """Dropout comes back with the last of them, however the other one ended."""
    prompts = {"short": [1, 2, 3], "long": [9]}
    expected = {
        name: list(stream(tiny_model, ids, strategy="greedy", max_new_tokens=8)) for name, ids in prompts.items()
    }
    model = GPT(replace(tiny_config, dropout=0.5))
    model.load_state_dict(tiny_model.state_dict())
    model.train()
    model.h[0].eval()
    modes = [module.training for module in model.modules()]

    def watch(_: object) -> None:
        if end == "error" and len(found["short"]) == 3:
            raise ZeroDivisionError

    limit = 3 if end == "reached" else 8
    short = stream(model, prompts["short"], strategy="greedy", max_new_tokens=limit, on_step=watch)
    long = stream(model, prompts["long"], strategy="greedy", max_new_tokens=8)
    found: dict[str, list[int]] = {"short": [], "long": []}
    assert [module.training for module in model.modules()] == modes, "nobody has asked for a token yet"
    for _ in range(3):
        for name, ids in [("short", short), ("long", long)][:: 1 if begins_first else -1]:
            found[name].append(next(ids))
    if end == "closed":
        short.close()
    with pytest.raises(ZeroDivisionError if end == "error" else StopIteration):
        next(short)
    assert not any(module.training for module in model.modules())
    found["long"].extend(long)
    assert found == {"short": expected["short"][:3], "long": expected["long"]}
    assert [module.training for module in model.modules()] == modes


class Poisoned(GPT):
    """The logits after one token are not numbers."""

    token: int
    value: float

    def trunk(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        hidden = super().trunk(idx, cache)
        hidden[..., 0] = torch.where(idx == self.token, self.value, hidden[..., 0])
        return hidden


def poisoned(tiny_model: GPT, token: int, value: float) -> Poisoned:
    model = Poisoned(tiny_model.config).eval()
    model.load_state_dict(tiny_model.state_dict())
    model.token, model.value = token, value
    return model


DECODERS: list[dict[str, Any]] = [
    {"strategy": "greedy"},
    {"temperature": 1.0, "num_return_sequences": 2},
    {"strategy": "beam", "num_beams": 3},
    {"strategy": "greedy", "use_cache": False},
    {"strategy": "greedy", "draft": PromptLookup(3, 1)},
]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", DECODERS, ids=str)
def test_logits_that_stop_being_numbers_are_refused(tiny_model: GPT, options: dict[str, Any], value: float) -> None:
    """The prompt is sound. The first new token is made to be 5, and what comes after that is not."""
    model = poisoned(tiny_model, 5, value)
    told = {"sequence_bias": {(5,): 1e9}, "max_new_tokens": 3, **options}
    assert generate(model, PROMPTS, **{**told, "max_new_tokens": 1}).sequences[0][-1] == 5
    with pytest.raises(InputError, match="not numbers"):
        generate(model, PROMPTS, **told)


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_of_several_rows_that_stop_being_numbers_are_refused(tiny_model: GPT, rows: int) -> None:
    """In a pass of one token for each row, which no model of a class of its own takes."""
    torch.nn.init.constant_(tiny_model.wpe.weight[5], math.nan)
    generate(tiny_model, [[1, 2, 3]] * rows, max_new_tokens=3)
    with pytest.raises(InputError, match="not numbers"):
        generate(tiny_model, [[1, 2, 3]] * rows, max_new_tokens=4)


@pytest.mark.parametrize("options", [*DECODERS, {"draft": "model"}], ids=str)
def test_what_stands_in_for_a_missing_token_may_be_anything(tiny_model: GPT, options: dict[str, Any]) -> None:
    """Short rows are filled up with token 0, here and in the passes of a draft that rows follow differently far."""
    if options.get("draft") == "model":
        options = {"draft": DraftModel(GPT(tiny_model.config), 3)}
    told = {"suppress_tokens": [0], "max_new_tokens": 6, **options}
    assert generate(poisoned(tiny_model, 0, math.nan), PROMPTS, **told) == generate(tiny_model, PROMPTS, **told)
