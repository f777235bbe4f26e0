"""Filters against distributions written by hand, their own laws, and the reference library's processors."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minigpt.decoding import filters
from minigpt.decoding.options import LARGEST, DecodingOptions
from minigpt.errors import InputError


def kept(scores: Tensor) -> list[list[int]]:
    """Ids left in each row."""
    return [row.isfinite().nonzero().flatten().tolist() for row in scores]


def logits_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).log()


# --- written by hand ---------------------------------------------------------------------------------------------

QUARTERS = [0.5, 0.25, 0.125, 0.125]  # boundaries are tried from both sides: a processor rounds powers in its own way
MIXED = [0.125, 0.5, 0.125, 0.25]


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [[0], [1]]), (2, [[0, 1], [1, 3]]), (4, [[0, 1, 2, 3]] * 2), (99, [[0, 1, 2, 3]] * 2)]
)
def test_top_k(k: int, expected: list[list[int]]) -> None:
    assert kept(filters.top_k(logits_of(QUARTERS, MIXED), k)) == expected


def test_top_k_keeps_what_ties_with_the_last_place() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [3.0, 3.0, 0.0, 0.0, 0.0, 0.0]])
    assert kept(filters.top_k(scores, 2)) == [[1, 2, 3, 4], [0, 1]]
    assert kept(filters.top_k(scores, 1)) == [[1], [0, 1]]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-30, [[0], [1]]),  # the best one survives, however small p is
        (0.25, [[0], [1]]),
        (0.4999, [[0], [1]]),
        (0.5001, [[0, 1], [1, 3]]),
        (0.7499, [[0, 1], [1, 3]]),
        (0.9999, [[0, 1, 2, 3]] * 2),
    ],
)
def test_top_p(p: float, expected: list[list[int]]) -> None:
    assert kept(filters.top_p(logits_of(QUARTERS, MIXED), p)) == expected


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("digits", [9, 1], ids=["no ties", "ties"])
@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 1 - 1e-6])
def test_top_p_of_many_tokens(p: float, digits: int, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way for a large vocabulary removes the same, of those that tie too."""
    scores = (3 * torch.randn(3, 2053, generator=torch.Generator().manual_seed(5))).round(decimals=digits)
    scores[1, ::3] = -math.inf
    many = filters.top_p(scores, p, keep)
    monkeypatch.setattr(filters, "MANY", 2054)
    assert torch.equal(many, filters.top_p(scores, p, keep))


@pytest.mark.parametrize("columns", [13, 2053])
def test_top_p_of_scores_with_a_gradient(columns: int) -> None:
    """What stays has a gradient of 1, and what is removed of 0."""
    scores = torch.randn(3, columns, generator=torch.Generator().manual_seed(7), requires_grad=True)
    left = filters.top_p(scores, 0.9)
    stays = left.isfinite()
    assert 0 < stays.sum() < stays.numel()
    left[stays].sum().backward()
    assert torch.equal(scores.grad, stays.float())


def test_top_p_counts_what_the_filters_before_have_left() -> None:
    options = DecodingOptions(temperature=1, top_k=2, top_p=0.6)
    # Of two tokens, 0.5 and 0.25 before, the first has two thirds now: enough.
    assert kept(filters.apply_filters(logits_of(QUARTERS), [[0]], options, [0])) == [[0]]
    assert kept(filters.top_p(logits_of(QUARTERS), 0.6)) == [[0, 1]]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.2501, [[0, 1], [1, 3]]), (0.2499, [[0, 1, 2, 3]] * 2), (1, [[0], [1]])]
)
def test_min_p(share: float, expected: list[list[int]]) -> None:
    assert kept(filters.min_p(logits_of(QUARTERS, MIXED), share)) == expected


def test_typical_p_may_remove_the_best_token() -> None:
    # Entropy 1.208 nats; surprises .693, 1.386, 1.897, 2.303: the second token is the most typical.
    assert kept(filters.typical_p(logits_of([0.5, 0.25, 0.15, 0.1]), 0.2)) == [[1]]
    assert kept(filters.typical_p(logits_of(QUARTERS), 0.2499)) == [[1]]
    assert kept(filters.typical_p(logits_of(QUARTERS), 0.2501)) == [[0, 1]]
    assert kept(filters.typical_p(logits_of([0.5, 0.25, 0.15, 0.1], [0.1, 0.15, 0.25, 0.5]), 0.7)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("name", "bar", "number"), [("top_p", 0.5, 2), ("min_p", 1.0, 4), ("epsilon_cutoff", 0.25, 4)])
def test_what_is_reached_exactly_is_reached(name: str, bar: float, number: int) -> None:
    """Four equal tokens have a quarter each on every processor: e^0 is 1."""
    assert [len(row) for row in kept(getattr(filters, name)(torch.zeros(1, 4), bar))] == [number]


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"])
def test_keep_leaves_that_many(name: str) -> None:
    strict = {"top_k": 1, "top_p": 1e-9, "min_p": 1.0, "typical_p": 1e-9}.get(name, 0.99)
    scores = logits_of([0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4])
    assert [len(row) for row in kept(getattr(filters, name)(scores, strict, keep=3))] == [3, 3]


def test_temperature_divides() -> None:
    torch.testing.assert_close(filters.temperature(torch.tensor([[2.0, -4.0]]), 2.0), torch.tensor([[1.0, -2.0]]))


def test_numbers_that_generate_has_used_serve_gradients_and_float64() -> None:
    """It runs in inference mode, whose tensors autograd refuses; 0.3 and 0.7 are no float32."""
    with torch.inference_mode():
        filters.temperature(torch.tensor([[1.0, 2.0]]), 0.3)
        filters.top_p(torch.tensor([[1.0, 2.0]]), 0.7)
    scores = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64, requires_grad=True)
    divided = filters.temperature(scores, 0.3)
    assert divided.tolist() == [[1 / 0.3, 2 / 0.3, 4 / 0.3]]
    filters.top_p(divided, 0.7).max().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0, 1 / 0.3]]


@pytest.mark.parametrize("value", [1e-30, 1e-37, 1e-40, 1e-46, 1e-320])
def test_a_temperature_near_zero_leaves_the_best(value: float) -> None:
    """Quotients overflow float32, and 1e-46 is 0 in it; the limit is known: the best tokens in equal shares."""
    scores = torch.tensor([[3.0, -1.0, 3.0, 2.9], [-5.0, -6.0, -4.5, -math.inf], [1e9, -1e30, 2e9, 0.0]])
    shares = filters.temperature(scores, value).softmax(-1)
    assert shares.tolist() == [[0.5, 0, 0.5, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    nothing = torch.full((1, 4), -math.inf)
    assert torch.equal(filters.temperature(nothing, value), nothing), "where all is banned, that must stay visible"


def test_rows_that_do_not_overflow_are_divided_and_no_more() -> None:
    scores = torch.tensor([[1e30, 9e29, 1.0], [0.3, -0.7, 0.1], [0.0, -math.inf, -math.inf]])
    found = filters.temperature(scores, 1e-10)
    assert found[0].softmax(-1).tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(found[1:], scores[1:] / 1e-10)
    assert torch.equal(filters.temperature(scores, 1.3), scores / 1.3)


def test_the_hottest_temperature_makes_all_that_is_left_equal() -> None:
    shares = filters.temperature(torch.tensor([[40.0, -math.inf, -90.0]]), LARGEST).softmax(-1)
    assert shares.tolist() == [[0.5, 0.0, 0.5]]


def test_repetition_penalty_counts_each_token_once_and_follows_the_sign() -> None:
    scores = torch.tensor([[2.0, -2.0, 0.0, 4.0], [2.0, -2.0, -math.inf, 4.0]])
    result = filters.repetition_penalty(scores, [[0, 1, 0, 0, 2], [3, 2]], 2.0)
    torch.testing.assert_close(result, torch.tensor([[1.0, -4.0, 0.0, 4.0], [2.0, -2.0, -math.inf, 2.0]]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [[2, 4], [0, 1, 2, 3]]),  # the second row's history is a single token
        (2, [[2, 4], [0, 1, 2, 3, 4]]),  # 1 was followed by 3, 1 and 0
        (3, [[0, 1, 2, 4], [0, 1, 2, 3, 4]]),  # 0, 1 was followed by 3
        (4, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (9, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
    ],
)
def test_no_repeat_ngram(size: int, expected: list[list[int]]) -> None:
    history = [[0, 1, 3, 1, 1, 0, 1], [4]]
    assert kept(filters.no_repeat_ngram(torch.zeros(2, 5), history, size)) == expected


def test_biases_add_up_and_wait_for_their_beginning() -> None:
    biases = {(3,): 1.0, (1, 3): 0.5, (2, 1, 3): -4.0, (0, 0): -math.inf}
    result = filters.bias_sequences(torch.zeros(3, 4), [[2, 1], [1], [0]], biases)
    assert result.tolist() == [[0, 0, 0, -2.5], [0, 0, 0, 1.5], [-math.inf, 0, 0, 1.0]]


def test_an_end_of_sequence_token_alone_is_not_banned() -> None:
    options = DecodingOptions(banned_sequences=[[0], [1], [2, 1]], eos_token_id=[0], temperature=1)
    assert kept(filters.apply_filters(torch.zeros(1, 4), [[3]], options, [0])) == [[0, 2, 3]]


def test_min_new_tokens_hides_the_end() -> None:
    options = DecodingOptions(min_new_tokens=2, eos_token_id=[0, 2], temperature=1)
    assert [kept(filters.apply_filters(torch.zeros(1, 4), [[3]], options, [n])) for n in (0, 1, 2)] == [
        [[1, 3]],
        [[1, 3]],
        [[0, 1, 2, 3]],
    ]


def test_rows_of_different_lengths_have_their_own_beginning_and_end() -> None:
    options = DecodingOptions(
        min_new_tokens=2, max_new_tokens=4, eos_token_id=[0], begin_suppress_tokens=[1], force_eos=True, temperature=1
    )
    found = filters.apply_filters(torch.zeros(4, 3), [[2]] * 4, options, [0, 1, 2, 3])
    assert kept(found) == [[2], [1, 2], [0, 1, 2], [0]]


def test_a_forced_end_comes_after_what_hides_it() -> None:
    options = DecodingOptions(min_new_tokens=2, max_new_tokens=2, eos_token_id=[0, 3], force_eos=True, temperature=1)
    found = filters.apply_filters(torch.full((1, 4), -7.0), [[2]], options, [1])
    assert found.tolist() == [[0.0, -math.inf, -math.inf, 0.0]]


def test_the_end_grows_more_attractive() -> None:
    options = DecodingOptions(exponential_decay_length_penalty=(3, 2.0), eos_token_id=[0, 1], temperature=1)
    scores = torch.tensor([[1.5, -2.0, 5.0]]).expand(4, 3)
    found = filters.apply_filters(scores, [[2]] * 4, options, [2, 3, 4, 6])
    # |s| * (2 ** n - 1) for n = 0, 0, 1, 3
    assert found.tolist() == [[1.5, -2.0, 5.0], [1.5, -2.0, 5.0], [3.0, 0.0, 5.0], [12.0, 12.0, 5.0]]
    banned = torch.tensor([[-math.inf, 1.0, 5.0]])
    assert filters.favour_end(banned, [4], [0, 1], 3, 2.0).tolist() == [[-math.inf, 2.0, 5.0]]


@pytest.mark.parametrize(("factor", "length"), [(1e200, 2), (1.05, 20_000), (LARGEST, 10**18)])
def test_an_end_that_is_overdue_by_far_has_a_large_score_and_no_infinite_one(factor: float, length: int) -> None:
    found = filters.favour_end(torch.tensor([[-3.0, 0.0, -math.inf]]), [length], [0, 1, 2], 0, factor)
    assert found.tolist() == [[pytest.approx(LARGEST), 0.0, -math.inf]]


def test_an_end_that_is_ever_less_wanted_loses_its_score_twice_at_most() -> None:
    found = filters.favour_end(torch.tensor([[-3.0, 3.0]]), [20_000], [0, 1], 0, 0.5)
    assert found.tolist() == [[-6.0, 0.0]]  # s + |s| * (0 - 1)


def test_suppressed_tokens() -> None:
    options = DecodingOptions(suppress_tokens=[0, 2], begin_suppress_tokens=[3], eos_token_id=0, temperature=1)
    assert kept(filters.apply_filters(torch.zeros(2, 5), [[2]] * 2, options, [0, 1])) == [[1, 4], [1, 3, 4]]


@pytest.mark.parametrize(("epsilon", "expected"), [(0.1249, [[0, 1, 2, 3]] * 2), (0.1251, [[0, 1], [1, 3]])])
def test_epsilon_cutoff(epsilon: float, expected: list[list[int]]) -> None:
    assert kept(filters.epsilon_cutoff(logits_of(QUARTERS, MIXED), epsilon)) == expected
    assert kept(filters.epsilon_cutoff(logits_of(QUARTERS, MIXED), 0.9)) == [[0], [1]]


def test_eta_cutoff_comes_down_where_the_model_is_unsure() -> None:
    # The entropy is 1.75 ln 2, so the bar is sqrt(eta) * 2 ** -1.75 = 0.297 sqrt(eta): .133 for eta = 0.2, .1226 for
    # 0.17. Of the third row it is 0.33, so the bar is eta itself, for sqrt(.04) * exp(-.33) = .144 is more.
    assert kept(filters.eta_cutoff(logits_of(QUARTERS, MIXED), 0.2)) == [[0, 1], [1, 3]]
    assert kept(filters.eta_cutoff(logits_of(QUARTERS, MIXED), 0.17)) == [[0, 1, 2, 3]] * 2
    assert kept(filters.eta_cutoff(logits_of([0.92, 0.05, 0.03]), 0.04)) == [[0, 1]]
    assert kept(filters.eta_cutoff(logits_of([0.25] * 4), 0.9)) == [[0, 1, 2, 3]]


def test_a_step_without_any_token_names_the_bans() -> None:
    options = DecodingOptions(banned_sequences=[[0], [1]], no_repeat_ngram_size=1)
    scores = filters.apply_filters(torch.zeros(2, 3), [[0], [2]], options, [0, 0])
    with pytest.raises(InputError, match=r"every token is banned.*banned_sequences, no_repeat_ngram_size"):
        filters.check_not_empty(scores, options)


@pytest.mark.parametrize(
    "option",
    [
        {"sequence_bias": {(1,): 1.0}},
        {"repetition_penalty": 2.0},
        {"no_repeat_ngram_size": 1},
        {"banned_sequences": [[2]]},
        {"min_new_tokens": 1},
        {"force_eos": True, "max_new_tokens": 1},
        {"exponential_decay_length_penalty": (0, 2.0)},
        {"suppress_tokens": [1]},
        {"begin_suppress_tokens": [1]},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_p": 0.1},
        {"min_p": 0.9},
        {"typical_p": 0.1},
        {"epsilon_cutoff": 0.9},
        {"eta_cutoff": 0.9},
    ],
    ids=str,
)
def test_no_filter_changes_its_input(option: dict[str, Any]) -> None:
    options = DecodingOptions(**{"eos_token_id": 3, "temperature": 1, **option})
    num_new = [1 if "exponential_decay_length_penalty" in option else 0]
    before = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]])
    scores = before.clone()
    assert not torch.equal(filters.apply_filters(scores, [[0]], options, num_new), before)
    assert torch.equal(scores, before)


# --- laws --------------------------------------------------------------------------------------------------------

FILTERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "top_k": lambda scores, x: filters.top_k(scores, 1 + int(x * 12)),
    "top_p": filters.top_p,
    "min_p": filters.min_p,
    "typical_p": filters.typical_p,
    "epsilon_cutoff": filters.epsilon_cutoff,
    "eta_cutoff": filters.eta_cutoff,
}
rows = st.lists(st.floats(-20, 20, width=32) | st.sampled_from([-math.inf, 0.0, 1.0]), min_size=7, max_size=7)
batches = st.lists(rows.filter(lambda row: max(row) > -math.inf), min_size=2, max_size=3).map(torch.tensor)
law = settings(derandomize=True, deadline=None, max_examples=40)


@pytest.mark.parametrize("name", FILTERS)
@law
@given(scores=batches, x=st.floats(0.01, 0.99))
def test_a_filter_only_removes(name: str, scores: Tensor, x: float) -> None:
    before = scores.clone()
    result = FILTERS[name](scores, x)
    assert torch.equal(scores, before), "the input was changed"
    assert result.isfinite().any(-1).all(), "a row is empty"
    assert torch.equal(result[result.isfinite()], scores[result.isfinite()]), "a kept score was changed"
    assert (result[~result.isfinite()] == -math.inf).all()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", FILTERS)
def test_a_row_does_not_depend_on_its_batch(name: str, seed: int) -> None:
    """With scores at random: of tokens that tie, rounding may choose, and it need not be the same in a batch."""
    generator = torch.Generator().manual_seed(seed)
    scores, x = 5 * torch.randn(3, 7, generator=generator), float(torch.rand((), generator=generator))
    scores[torch.rand(3, 7, generator=generator) < 0.2] = -math.inf
    scores[:, 3] = 1.0  # no row is empty
    singles = torch.cat([FILTERS[name](row[None], x) for row in scores])
    assert torch.equal(FILTERS[name](scores, x), singles)


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "epsilon_cutoff", "eta_cutoff"])
@law
@given(scores=batches, x=st.floats(0.01, 0.99))
def test_the_best_token_survives(name: str, scores: Tensor, x: float) -> None:
    result = FILTERS[name](scores, x)
    assert torch.equal(result.amax(-1), scores.amax(-1))


@pytest.mark.parametrize(
    ("name", "grows"),
    [("top_k", True), ("top_p", True), ("min_p", False), ("epsilon_cutoff", False), ("eta_cutoff", False)],
)
@law
@given(scores=batches, x=st.floats(0.01, 0.99), y=st.floats(0.01, 0.99))
def test_a_looser_setting_keeps_more(name: str, grows: bool, scores: Tensor, x: float, y: float) -> None:
    strict, loose = sorted((x, y), reverse=not grows)
    gone = FILTERS[name](scores, loose) == -math.inf
    assert (FILTERS[name](scores, strict)[gone] == -math.inf).all()


@law
@given(scores=batches, penalty=st.floats(1.0, 4.0), history=st.lists(st.integers(0, 6), max_size=9))
def test_a_penalty_never_raises_a_score(scores: Tensor, penalty: float, history: list[int]) -> None:
    result = filters.repetition_penalty(scores, [history] * len(scores), penalty)
    unseen = [token for token in range(7) if token not in history]
    assert (result <= scores).all()
    assert torch.equal(result[:, unseen], scores[:, unseen])


@law
@given(scores=batches, history=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_neutral_values_do_nothing(scores: Tensor, history: list[int]) -> None:
    neutral = DecodingOptions(
        temperature=1, top_k=0, top_p=1, min_p=0, typical_p=1, repetition_penalty=1, no_repeat_ngram_size=0
    )
    assert torch.equal(filters.apply_filters(scores, [history] * len(scores), neutral, [0] * len(scores)), scores)


@law
@given(scores=batches, history=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_what_shapes_a_draw_leaves_the_best_token_alone(scores: Tensor, history: list[int]) -> None:
    options = DecodingOptions(temperature=0)
    for name, value in {"top_k": 1, "top_p": 0.1, "typical_p": 0.1, "min_p": 0.9}.items():
        object.__setattr__(options, name, value)  # which nobody can ask for together
    assert torch.equal(filters.apply_filters(scores, [history] * len(scores), options, [0] * len(scores)), scores)


# --- the reference library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_the_chain_equals_the_reference_librarys(seed: int) -> None:
    process = pytest.importorskip("transformers").generation.logits_process
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: float) -> float:
        return values[int(torch.randint(len(values), (), generator=generator))]

    V, R, T, keep = int(pick(11, 50, 211)), 3, 17, int(pick(1, 3))
    ids = torch.randint(min(V, 9), (R, T), generator=generator)
    scores = torch.randn(R, V, generator=generator) * pick(0.5, 2.0, 6.0)
    options = DecodingOptions(
        repetition_penalty=pick(0.7, 1.0, 1.4),
        no_repeat_ngram_size=int(pick(0, 2, 3)),
        banned_sequences=[[4], [int(ids[0, -1]), 2], [5, 6]],
        sequence_bias={(3,): 1.5, (int(ids[1, -1]), 2): -2.0},
        min_new_tokens=int(pick(0, 3)),
        exponential_decay_length_penalty=(0, pick(0.9, 1.5)),
        suppress_tokens=[7],
        begin_suppress_tokens=[8],
        eos_token_id=[1] if keep == 1 else [0, 1],
        temperature=pick(0.5, 1.0, 1.7),
        top_k=int(pick(0, 3, 10)),
        top_p=pick(0.3, 0.8, 1.0),
        min_p=pick(0.0, 0.05, 0.3),
        typical_p=pick(0.2, 0.9, 1.0),
        epsilon_cutoff=pick(0.0, 0.02),
        eta_cutoff=pick(0.0, 0.05),
        num_beams=keep,
    )
    num_new = int(pick(0, 2))
    eos = list(options.eos)
    chain = [
        process.SequenceBiasLogitsProcessor({k: float(v) for k, v in options.sequence_bias.items()}),
        process.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)),
        options.no_repeat_ngram_size and process.NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size),
        process.NoBadWordsLogitsProcessor([list(banned) for banned in options.banned_sequences], eos),
        process.MinNewTokensLengthLogitsProcessor(T - num_new, options.min_new_tokens, eos),
        process.ExponentialDecayLengthPenalty(options.exponential_decay_length_penalty, eos, T - num_new),
        process.SuppressTokensLogitsProcessor([7]),
        process.SuppressTokensAtBeginLogitsProcessor([8], T - num_new),
        process.TemperatureLogitsWarper(float(options.temperature or 0)),
        options.top_k and process.TopKLogitsWarper(options.top_k, min_tokens_to_keep=keep),
        process.TopPLogitsWarper(float(options.top_p or 0), min_tokens_to_keep=keep),
        process.MinPLogitsWarper(float(options.min_p or 0), min_tokens_to_keep=keep),
        options.typical_p != 1 and process.TypicalLogitsWarper(float(options.typical_p or 0), min_tokens_to_keep=keep),
        options.epsilon_cutoff and process.EpsilonLogitsWarper(options.epsilon_cutoff, min_tokens_to_keep=keep),
        options.eta_cutoff and process.EtaLogitsWarper(options.eta_cutoff, min_tokens_to_keep=keep),
    ]
    expected = scores
    for processor in filter(None, chain):
        expected = processor(ids, expected)
    assert torch.equal(filters.apply_filters(scores, ids.tolist(), options, num_new=[num_new] * R), expected)
