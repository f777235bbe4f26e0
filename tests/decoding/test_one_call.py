"""A pass of one token in C: the numbers of the plain model's, for any sizes, rows and threads."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import minigpt
from minigpt import GPT, GPTConfig, KVCache, packed
from minigpt.config import Weights
from minigpt.decoding import one_call
from minigpt.decoding.generate import stream
from minigpt.decoding.one_token import OneToken
from minigpt.errors import InputError
from minigpt.packed import PackedGELU, PackedGPT, PackedLinear, cache_dtype, new_cache, pack
from tests.conftest import random_model

# D, H: heads that fill no register, some, or eight of them and a rest, where a register has 4, 8 or 16 numbers.
HEADS = [(1, 3), (5, 3), (13, 2), (16, 1), (40, 2), (67, 2), (107, 1), (149, 1)]
LENGTHS = [[3], [3, 3, 3, 3, 3], [2, 0, 3], [1, 4, 4, 0, 2, 3, 5], [0]]


@pytest.fixture(autouse=True)
def compiler() -> None:
    if isinstance(reason := packed.compiled_library(), str):
        pytest.skip(reason)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def model_of(D: int = 5, H: int = 3, bias: bool = True, tied: bool = True) -> GPT:
    config = GPTConfig(
        vocab_size=37, block_size=11, n_layer=2, n_head=H, n_embd=D * H, dropout=0.0, bias=bias, tie_weights=tied
    )
    return random_model(config, 7)


def rows_of(lengths: list[int], vocab_size: int = 37) -> list[list[int]]:
    """For each row so many tokens, and one more."""
    return [[(7 * row + 11 * n + 2) % vocab_size for n in range(length + 1)] for row, length in enumerate(lengths)]


def expected(model: GPT, lengths: list[int]) -> Tensor:
    """Each row by itself, without a cache."""
    return torch.cat([model(torch.tensor([row]))[:, -1] for row in rows_of(lengths)])


def distance(logits: Tensor, wanted: Tensor) -> float:
    return ((logits - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item()


def found(small: GPT, lengths: list[int], cache: KVCache) -> Tensor:
    """One token at a time, in C, all rows to their ends."""
    step, logits = OneToken(small), torch.empty(0)
    assert step._one_call is not None
    rows, longest = rows_of(lengths), max(lengths)
    for number in range(longest + 1):
        idx = torch.tensor([row[min(number, len(row) - 1)] for row in rows])
        logits = step(idx, cache)
        if number < longest:  # what a short row got too often is taken back
            cache.rollback(cache.length - torch.tensor([min(number + 1, length) for length in lengths]))
    return logits


def pack_compiled(model: GPT, kind: Weights) -> PackedGPT:
    small = pack(model, kind)
    if small.compiled() is None:
        pytest.skip(f"{kind} is not in C on this processor")
    return small


@pytest.mark.parametrize(("D", "H"), HEADS)
@torch.inference_mode()
def test_it_is_the_plain_pass(D: int, H: int) -> None:
    model = model_of(D, H, bias=D % 2 == 0, tied=D < 40)
    small = pack_compiled(model, "float32")
    for lengths in LENGTHS:
        logits = found(small, lengths, new_cache(small, len(lengths)))
        assert distance(logits, expected(model.double(), lengths)) < 1e-5
        model.float()


@pytest.mark.parametrize(("kind", "error"), [("float16", 1e-5), ("int8", 1e-3)])  # of which each input is rounded
@pytest.mark.parametrize(("D", "H"), HEADS)
@torch.inference_mode()
def test_it_is_the_packed_models_pass(D: int, H: int, kind: str, error: float) -> None:
    small = pack_compiled(model_of(D, H, bias=D % 2 == 0, tied=D < 40), kind)
    assert cache_dtype(small) == torch.float16
    for lengths in LENGTHS:
        wanted = expected(small, lengths)
        assert distance(found(small, lengths, KVCache(small.config, len(lengths))), wanted) < error
        assert distance(found(small, lengths, new_cache(small, len(lengths))), wanted) < 1e-2  # with rounded keys


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("D", "H"), [(13, 3), (211, 1)])
@torch.inference_mode()
def test_a_row_is_the_same_beside_any_other_and_for_any_number_of_threads(
    D: int, H: int, kind: Weights, num_threads: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number is computed in one order, whatever stands beside it and whichever thread does it."""
    monkeypatch.setattr(one_call, "_FOR_A_THREAD", 1)
    small, lengths = pack_compiled(model_of(D, H), kind), LENGTHS[3] * 5  # 35 rows
    cache = new_cache(small, len(lengths))
    small(torch.tensor([(row[:-1] + 5 * [0])[:5] for row in rows_of(lengths)]), cache)
    cache.rollback(cache.length - torch.tensor(lengths))
    idx = torch.tensor([row[-1] for row in rows_of(lengths)])
    torch.set_num_threads(1)
    alone = []
    for row, length in enumerate(lengths):
        one = new_cache(small, 1)
        one.kv.copy_(cache.kv[:, :, row : row + 1])
        one._set_lengths([length])
        alone.append(OneToken(small)(idx[row : row + 1], one))
    torch.set_num_threads(num_threads)
    assert torch.equal(OneToken(small)(idx, cache), torch.cat(alone))


@torch.inference_mode()
def test_what_is_no_number_stays_in_its_row() -> None:
    small = pack_compiled(model_of(13, 3), "float32")
    expected, cache = (new_cache(small, 3) for _ in range(2))
    for each in (expected, cache):
        small(torch.tensor([[1, 2, 3]] * 3), each)
    cache.kv[1, 1, 1, 2, 0] = torch.nan
    idx = torch.tensor([5, 7, 11])
    logits, wanted = OneToken(small)(idx, cache), OneToken(small)(idx, expected)
    assert logits[1].isnan().all()
    assert torch.equal(logits[::2], wanted[::2])


@torch.inference_mode()
def test_to_the_last_position_and_not_beyond() -> None:
    model = model_of(16, 2)
    small, row = pack_compiled(model, "float32"), rows_of([10])[0]
    step, cache = OneToken(small), new_cache(small, 1)
    for token in row:
        logits = step(torch.tensor([token]), cache)
    assert distance(logits, model(torch.tensor([row]))[:, -1]) < 1e-5
    with pytest.raises(InputError, match="1 more tokens do not fit"):
        step(torch.tensor([3]), cache)


@pytest.mark.parametrize("shape", [(1,), (7, 13), (3, 11, 31)])
def test_gelu_of_a_prompt_is_torchs(shape: tuple[int, ...]) -> None:
    wide = 5 * torch.randn(*shape, 2, generator=torch.Generator().manual_seed(0))
    for x in (wide[..., 0], torch.full(shape, 0.0), torch.full(shape, 30.0), torch.full(shape, -30.0)):
        torch.testing.assert_close(PackedGELU()(x), F.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-6)
    assert PackedGELU()(torch.full(shape, torch.nan)).isnan().all()


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"strategy": "beam", "num_beams": 3}, {"top_p": 0.9}])
@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_texts_are_those_of_the_packed_model_without_a_cache(kind: str, options: dict[str, Any]) -> None:
    """Of several lengths, some of which end early, and whose places other prompts take."""
    small = pack_compiled(model_of(16, 2), kind)
    prompts = [row[: n + 1] for n, row in enumerate(rows_of([1, 2, 3, 4, 5]))]
    given: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": 3, **options}
    cached = minigpt.generate(small, prompts, batch_size=3, **given)
    assert cached.sequences == minigpt.generate(small, prompts, use_cache=False, **given).sequences


class Doubled(PackedLinear):
    """A layer with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def turned(model: PackedGPT) -> None:
    model.wte.weight = nn.Parameter(model.wte.weight.detach().t().contiguous().t(), requires_grad=False)


def in_double(model: PackedGPT) -> None:
    model.h[0].ln_1.double()
    model.h[0].ln_1.register_forward_pre_hook(lambda part, given: given[0].double())
    model.h[0].ln_1.register_forward_hook(lambda part, given, out: out.float())


def wrapped(model: PackedGPT) -> None:
    model.lm_head = nn.Sequential(model.lm_head)  # type: ignore[assignment]


def doubled(model: PackedGPT) -> None:
    model.h[1].mlp.c_proj.__class__ = Doubled


def exchanged(model: PackedGPT) -> None:
    plain = nn.Linear(15, 15)
    plain.load_state_dict(model_of().h[0].attn.c_proj.state_dict())
    model.h[0].attn.c_proj = plain.eval()


@pytest.mark.parametrize("change", [turned, in_double, wrapped, doubled, exchanged])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_model_that_is_not_as_it_was_made_is_computed_by_its_parts(
    change: Callable[[PackedGPT], None], kind: Weights
) -> None:
    small = pack_compiled(model_of(), kind)
    change(small)
    assert small.compiled() is None
    assert cache_dtype(small) == torch.float32
    given: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 6}
    uncached = minigpt.generate(small, [[1, 2, 3]], use_cache=False, **given)
    assert minigpt.generate(small, [[1, 2, 3]], **given).sequences == uncached.sequences


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_gelu_of_another_dtype_is_torchs(dtype: torch.dtype) -> None:
    """As a hook makes it: the library would read and write beyond its ends."""
    x = torch.linspace(-5, 5, 37, dtype=dtype)
    assert torch.equal(PackedGELU()(x), nn.GELU()(x))
    assert PackedGELU()(x.to("meta")).shape == x.shape


@pytest.mark.parametrize("keep", [True, False])
def test_weights_that_lie_apart_are_read_as_they_are(keep: bool) -> None:
    model = model_of()
    for part in (model.wte, model.wpe):
        part.weight = nn.Parameter(torch.cat([part.weight.detach(), part.weight.detach()], dim=1)[:, :15])
    model.lm_head.weight = model.wte.weight
    expected = minigpt.generate(model, [[1, 2, 3]], strategy="greedy", max_new_tokens=6)
    small = pack(model, "float32", keep=keep)
    assert minigpt.generate(small, [[1, 2, 3]], strategy="greedy", max_new_tokens=6).sequences == expected.sequences


def test_numbers_stay_in_memory_as_long_as_a_pass_may_read_them() -> None:
    small = pack_compiled(model_of(), "float32")
    step, expected = OneToken(small), OneToken(small)(torch.tensor([3]), new_cache(small, 1))
    for part in (small.wte, small.wpe, small.ln_f):
        part.weight.data = torch.full_like(part.weight, torch.nan)
    gc.collect()
    torch.full((15 * 37,), torch.nan)  # where something was given back
    assert torch.equal(step(torch.tensor([3]), new_cache(small, 1)), expected)


def test_a_hook_on_a_packed_layer_is_called() -> None:
    small, seen = pack_compiled(model_of(), "float16"), list[int]()
    small.h[1].mlp.c_fc.register_forward_hook(lambda part, given, out: seen.append(out.size(1)))
    assert not OneToken(small).fits()
    minigpt.generate(small, [[1, 2, 3]], strategy="greedy", max_new_tokens=3)
    assert seen == [3, 1, 1]


def test_keys_that_float16_does_not_hold_are_kept_whole() -> None:
    """And so is everything where the products are not all in C, as another way to keep them is asked for."""
    model = model_of()
    with torch.no_grad():
        model.h[0].attn.c_attn.bias[17] = 5e4
    assert cache_dtype(pack_compiled(model, "float16")) == torch.float32
    assert cache_dtype(pack_compiled(model_of(), "float32")) == torch.float32
    assert cache_dtype(model_of()) == torch.float32
    assert cache_dtype(model_of().double()) == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_cache_of_ones_own_may_be_in_either_dtype(dtype: torch.dtype) -> None:
    small, prompt = pack_compiled(model_of(), "float16"), [1, 2, 3]
    cache = KVCache(small.config, 1, dtype=dtype)
    small(torch.tensor([prompt[:-1]]), cache)
    given: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 5}
    expected = list(stream(small, prompt, **given))
    assert list(stream(small, prompt, cache=cache, **given)) == expected
    with pytest.raises(InputError, match="not for one row of this model"):
        next(iter(stream(small, prompt, cache=KVCache(small.config, 1, dtype=torch.bfloat16), **given)))


@pytest.mark.parametrize(("D", "H", "rows"), [(5, 3, 2), (3, 5, 1), (5, 2, 1)])
def test_a_cache_of_another_shape_is_refused(D: int, H: int, rows: int) -> None:
    """The library would write beyond its end."""
    small = pack_compiled(model_of(5, 3), "float16")
    with pytest.raises(InputError, match="does not fit 1 rows and 3 heads of 5 in layer 1"):
        OneToken(small)(torch.tensor([1]), KVCache(model_of(D, H).config, rows))
