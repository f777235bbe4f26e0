"""Attention and the MLP in C compute what the formulas say in float64, both ways, with any number of threads."""

import math
from functools import partial

import pytest
import torch

from minigpt.errors import InputError
from minigpt.model import explicit_attention
from minigpt.training import kernels, steps

pytestmark = pytest.mark.skipif(bool(steps.unavailable()), reason=f"steps.c: {steps.unavailable()}")


@pytest.fixture(params=[1, 2, 5], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def both_ways(function, dy, *inputs):
    """The result and the gradients of the inputs, all in the inputs' type."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def attention(function, dropout=0.0):
    """Attention of queries, keys and values side by side, (B, T, 3C), as in a model; seeded."""

    def computed(qkv, H):
        torch.manual_seed(3)
        B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
        q, k, v = (part.view(B, T, H, -1).transpose(1, 2) for part in qkv.split(C, dim=2))
        mask = torch.ones(T, T, dtype=torch.bool).tril()
        return function(q, k, v, mask, dropout).transpose(1, 2).reshape(B, T, C)

    return computed


# Around the tiles: 1, 24 queries, 16 or 32 columns in a panel, 192 steps between two visits of the sums.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 24, 16), (2, 1, 25, 17), (1, 3, 48, 3), (2, 2, 131, 33), (1, 2, 397, 11)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("B", "H", "T", "D"), SHAPES)
def test_attention_equals_the_formula_in_float64(B, H, T, D, dropout, threads):
    torch.manual_seed(T)
    qkv, dy = 2 * torch.randn(B, T, 3 * H * D), torch.randn(B, T, H * D)
    ours = both_ways(lambda x: attention(steps.attention, dropout)(x, H), dy, qkv)
    expected = both_ways(lambda x: attention(explicit_attention, dropout)(x, H), dy, qkv.double())
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 2e-6 * other.norm() + 1e-6  # the last gradient of a single position is zero


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_attention_of_any_strides(order):
    q, k, v, dy = (
        torch.randn([(2, 3, 29, 5)[d] for d in order]).permute(*map(order.index, range(4))) for _ in range(4)
    )
    mask = torch.ones(29, 29, dtype=torch.bool).tril()
    k = k.contiguous()  # unlike the others
    ours = both_ways(lambda *qkv: steps.attention(*qkv, mask, 0.0), dy, q, k, v)
    expected = both_ways(lambda *qkv: explicit_attention(*qkv, mask, 0.0), dy, *(x.double() for x in (q, k, v)))
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-5, atol=1e-5)


def test_scores_of_any_size():
    """Equal, and so large that their powers overflow unless the largest is taken off first.

    Against the same formula in float32, because a score of 10,000 is rounded by 0.001, whoever computes it.
    """
    torch.manual_seed(5)
    for size in (0.0, 1e-20, 30.0, 1e4, 1e9):
        q, k, v, dy = (torch.randn(1, 2, 37, 3) for _ in range(4))
        inputs, mask = (size * q, k, v), torch.ones(37, 37, dtype=torch.bool).tril()
        ours = both_ways(lambda *qkv: steps.attention(*qkv, mask, 0.0), dy, *inputs)  # noqa: B023
        usual = both_ways(lambda *qkv: explicit_attention(*qkv, mask, 0.0), dy, *inputs)  # noqa: B023
        for one, other in zip(ours, usual, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 + 1e-6 * size)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_number_reaches_those_who_look_at_it(wrong):
    q, k, v = (torch.randn(1, 1, 29, 5) for _ in range(3))
    mask = torch.ones(29, 29, dtype=torch.bool).tril()
    for part in (q, k, v):
        before, part[0, 0, 17, 2] = part[0, 0, 17, 2].clone(), wrong
        finite, usual = (f(q, k, v, mask, 0.0).isfinite().all(-1)[0, 0] for f in (steps.attention, explicit_attention))
        assert part is v or finite[:17].all()  # of v, the weights before are 0, and 0 times this is NaN
        if math.isnan(wrong):
            assert finite.equal(usual)
        part[0, 0, 17, 2] = before


def test_the_number_of_threads_changes_nothing_to_the_bit():
    """Each sum has the same order, whoever computes it."""
    before, found = torch.get_num_threads(), []
    qkv, dy, x = torch.randn(3, 41, 3 * 2 * 7), torch.randn(3, 41, 2 * 7), torch.randn(3, 41, 2 * 7)
    weights = [weight.requires_grad_(False) for weight in mlp_weights(14, 57, True)]  # their gradients are torch's
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        attended = both_ways(lambda x: attention(steps.attention)(x, 2), dy, qkv)
        found.append(attended + both_ways(lambda x: steps.mlp(x, *weights), dy, x))
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(one.equal(other) for one, other in zip(found[0], others, strict=True))


def mlp_weights(C, W, bias):
    """A weight and a bias that widen, and two that narrow."""
    sizes = ((W, C), (W,), (C, W), (C,))
    return [torch.randn(size) / size[-1] ** 0.5 if len(size) == 2 or bias else None for size in sizes]


def mlp_formula(x, widen, widen_bias, narrow, narrow_bias):
    x = x @ widen.T + (0 if widen_bias is None else widen_bias)
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x @ narrow.T + (0 if narrow_bias is None else narrow_bias)


# Around the tiles: 48 positions, 4 to 16 numbers in a register, 192 steps between two visits of the sums.
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "W"),
    [((1, 1), 1), ((5, 3), 13), ((2, 24, 16), 64), ((7, 7, 17), 67), ((3, 31, 211), 401), ((97, 2), 199)],
)
def test_an_mlp_equals_the_formula_in_float64(shape, W, bias, threads):
    torch.manual_seed(W)
    x, dy, weights = 2 * torch.randn(shape), torch.randn(shape), mlp_weights(shape[-1], W, bias)

    def of_all(function, number_type):
        def computed(*given):
            given = iter(given)
            return function(next(given), *(weight if weight is None else next(given) for weight in weights))

        inputs = [part.to(number_type) for part in (x, *weights) if part is not None]
        return both_ways(computed, dy, *inputs)

    for one, other in zip(of_all(steps.mlp, torch.float32), of_all(mlp_formula, torch.float64), strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= 2e-6 * other.norm() + 1e-6


def test_an_mlp_whose_input_needs_no_gradient_gives_that_of_its_weights():
    torch.manual_seed(2)
    x, weights = torch.randn(53, 7), mlp_weights(7, 29, True)
    dy, found = torch.randn(53, 7), []
    for function, number_type in ((steps.mlp, torch.float32), (mlp_formula, torch.float64)):
        found.append(both_ways(partial(function, x.to(number_type)), dy, *(part.to(number_type) for part in weights)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-5, atol=1e-5)


def test_an_mlp_of_any_strides_and_frozen_weights():
    torch.manual_seed(1)
    x, dy = torch.randn(7, 11, 5).transpose(0, 1), torch.randn(11, 5, 7).transpose(1, 2)
    widen, narrow = torch.randn(11, 29)[:, ::3].T[:, :5], torch.randn(10, 5).T  # (10, 5), (5, 10)
    ours = both_ways(lambda x: steps.mlp(x, widen, None, narrow, None), dy, x)
    expected = both_ways(lambda x: mlp_formula(x, widen.double(), None, narrow.double(), None), dy, x.double())
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x", [-math.inf, -1e4, -30.0, 0.0, 30.0, 1e4, math.inf, math.nan])
def test_gelu_in_an_mlp_goes_to_its_limits(x):
    one = torch.ones(1, 1)
    y, slope = both_ways(
        lambda x: steps.mlp(x, one, None, one, None), torch.ones(3, 1), torch.tensor([[1.0], [x], [-1]])
    )
    assert y[1].isfinite() == math.isfinite(x)
    if math.isfinite(x):
        assert y[1] == pytest.approx(max(x, 0.0), abs=1e-30)
        assert slope[1] == pytest.approx(0.5 if x == 0 else float(x > 0), abs=1e-20)
    assert y[0] == pytest.approx(0.841192, abs=1e-6)  # the neighbours are as ever


def test_a_library_that_computes_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(steps, "explicit_attention", lambda q, k, v, **rest: explicit_attention(q, k, 1.1 * v, **rest))
    steps.unavailable.cache_clear()
    try:
        assert "other numbers" in steps.unavailable()
    finally:
        steps.unavailable.cache_clear()


@pytest.mark.parametrize(
    "around",
    [lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad, torch.inference_mode],
    ids=["meta", "autocast", "no_grad", "inference_mode"],
)
def test_what_surrounds_the_first_who_asks_decides_nothing(around):
    """The answer is kept for all who ask later. Of oneDNN, the answer inside is that outside."""
    outside = kernels._multiplies_right()
    steps.unavailable.cache_clear()
    try:
        with around():
            assert (steps.unavailable(), kernels._multiplies_right()) == ("", outside)
    finally:
        steps.unavailable.cache_clear()


def layer(x):
    """Of x (2, 3, 4, 5) itself and a weight."""
    return kernels._linear(torch.nn.Linear(5, 7), x)


@pytest.mark.parametrize(
    "function",
    [
        kernels._gelu,
        lambda x: steps.mlp(x, *mlp_weights(5, 7, True)),
        lambda x: steps.attention(x, x, x, torch.ones(4, 4, dtype=torch.bool).tril(), 0.0),
        layer,
    ],
    ids=["gelu", "mlp", "attention", "linear"],
)
def test_a_second_derivative_is_refused_in_two_lines(function):
    if function is layer and not kernels._multiplies_right():
        pytest.skip("torch was built without oneDNN")
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    with pytest.raises(InputError, match="no second derivatives") as raised:
        torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    assert 'kernels="torch"' in raised.value.how
    (slope,) = torch.autograd.grad(function(x).square().sum(), x)
    assert not slope.requires_grad


def test_without_a_compiler_the_reason_is_said(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    steps.unavailable.cache_clear()
    steps._library.cache_clear()
    try:
        assert "no-such-compiler" in steps.unavailable()
    finally:
        steps.unavailable.cache_clear()
        steps._library.cache_clear()
