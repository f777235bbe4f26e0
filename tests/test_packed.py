"""Packed weights: each kind against the plain product, a packed model against its own, and what it refuses."""

import copy
import ctypes
import gc
import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import minigpt
from minigpt import GPT, GPTConfig, KVCache, packed
from minigpt.analysis import ablate, edit, head_scores, trace
from minigpt.config import LoRAConfig
from minigpt.data.verse import write_verse
from minigpt.errors import MiniGPTError
from minigpt.formats.lora_files import base_checksum
from minigpt.formats.weights import save_weights
from minigpt.lora import add_lora
from minigpt.packed import KINDS, PackedLinear, fastest, pack
from minigpt.tokenizers import CharTokenizer

pytestmark = pytest.mark.filterwarnings("ignore::minigpt.errors.ModelNote")  # saved without a tokenizer
SHAPES = [(7, 13), (101, 17), (37, 97), (263, 131), (53, 397)]  # (out, in)


def close(found, expected, error):
    return bool((found - expected).norm() <= error * expected.norm())


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """A cache folder of our own, so that what this machine remembers decides nothing."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    return tmp_path / "packed.json"


@pytest.fixture(params=[(True, True), (False, True), (True, False)], ids=["tied", "untied", "no biases"])
def model(request):
    tied, bias = request.param
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=101, block_size=31, n_layer=3, n_head=2, n_embd=26, tie_weights=tied, bias=bias)
    made = GPT(config).eval()
    with torch.no_grad():  # weights of a size that makes the logits differ; those of the start hardly do
        for name, parameter in made.named_parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.3 if "ln" not in name else 0.1))
    return made


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_the_plain_product(kind, bias, shape):
    torch.manual_seed(0)
    weight, offset = torch.randn(shape), torch.randn(shape[0]) if bias else None
    layer = PackedLinear(weight, offset, kind)
    order = [*KINDS][::-1]
    assert order.index(layer.kind) >= order.index(kind)  # where this torch lacks it, a wider one stands in
    for rows in (*range(1, 34), 211):
        x = torch.randn(rows, shape[1])
        exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
        assert close(layer(x), exact, KINDS[layer.kind].error), (layer.kind, rows)
    x = torch.randn(2, 3, shape[1])
    assert layer(x).shape == (2, 3, shape[0])
    assert close(layer(x)[1, 2], layer(x[1, 2]), 1e-6)  # one vector alone


@pytest.mark.parametrize("num_out", [1, 7, 37])
@pytest.mark.parametrize("rows", [1, 2, 5, 50])
def test_pieces_of_any_size_are_the_whole(monkeypatch, rows, num_out):
    monkeypatch.setattr(packed, "_PIECE_ROWS", rows)
    weight, bias, x = torch.randn(num_out, 13), torch.randn(num_out), torch.randn(2, 3, 13)
    y = PackedLinear(weight, bias, "pieces")(x)
    assert close(y, F.linear(x.double(), weight.double(), bias.double()), 1e-6)
    assert y.is_contiguous()  # whoever reads it may take a view


def test_a_row_of_zeros_and_one_of_large_numbers_are_kept_in_8_bits():
    weight = torch.randn(11, 13)
    weight[3], weight[5] = 0, weight[5] * 1e4
    layer, x = PackedLinear(weight, None, "int8"), torch.randn(5, 13)
    assert torch.equal(layer(x)[:, 3], torch.zeros(5))
    assert close(layer(x)[:, :3], F.linear(x, weight)[:, :3], KINDS["int8"].error)  # a scale for each row


@pytest.mark.parametrize("large", [1e6, -1e6])
def test_a_weight_beyond_float16_is_kept_whole(large):
    weight, x = torch.randn(11, 13), torch.randn(5, 13)
    weight[3, 5] = large
    before = weight.clone()
    layer = PackedLinear(weight, None, "float16")
    assert layer.kind in ("float32", "onednn", "plain")
    assert torch.equal(weight, before)
    assert close(layer(x), F.linear(x, before), 1e-5)


def _missing(*_):
    raise AttributeError("no such operator")


def _wrong(weight, bias):
    return lambda x: F.linear(x, weight, bias) * 1.1


@pytest.mark.parametrize("broken", [_missing, _wrong])
@pytest.mark.parametrize("kind", ["int8", "float16", "float32"])
def test_a_kind_that_is_missing_or_wrong_gives_way_to_others(monkeypatch, kind, broken):
    order = {"int8": "fbgemm8 float16 fbgemm16", "float16": "fbgemm16 float32 onednn", "float32": "onednn plain"}[kind]
    weight, x, asked = torch.randn(17, 13), torch.randn(5, 13), kind
    for other in order.split():
        monkeypatch.setitem(KINDS, kind, packed.Kind(broken, KINDS[kind].error, KINDS[kind].other))
        layer = PackedLinear(weight, None, asked)
        assert layer.kind == other
        assert close(layer(x), F.linear(x, weight), KINDS[other].error)
        kind = other


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(packed, "compiled_library", lambda: "there is no C compiler")


@pytest.mark.parametrize(("kind", "other"), [("int8", "fbgemm8"), ("float16", "fbgemm16"), ("float32", "onednn")])
def test_without_a_compiler_torchs_own_operators_stand_in(no_compiler, kind, other):
    weight, x = torch.randn(17, 13), torch.randn(5, 13)
    layer = PackedLinear(weight, None, kind)
    assert layer.kind == other
    assert close(layer(x), F.linear(x, weight), KINDS[other].error)
    assert isinstance(packed.tried(weight, None, kind, x), str)  # the reason


def test_a_kind_that_the_library_lacks_is_refused_in_words(monkeypatch):
    """As int8 on a processor whose instructions `products.c` does not use."""
    monkeypatch.setattr(packed, "compiled_library", lambda: ctypes.CDLL(None))
    said = packed.tried(torch.randn(17, 13), None, "float32", torch.randn(5, 13))
    assert said == "products.c has no float32 for this processor"


@pytest.fixture
def compiler():
    if isinstance(reason := packed.compiled_library(), str):
        pytest.skip(reason)


COMPILED = [torch.float32, torch.float16, torch.int8]


@pytest.mark.parametrize("dtype", COMPILED)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_is_the_same_beside_any_other_and_for_any_number_of_threads(dtype, threads, compiler):
    """Each number is one sum in one order, whatever stands beside it and whichever thread adds it up."""
    torch.manual_seed(0)
    before, weight, x = torch.get_num_threads(), torch.randint(-9, 9, (53, 397)).float(), torch.randn(13, 397)
    product = packed.CompiledProduct(weight, torch.randn(53), dtype)
    alone = torch.cat([product(row[None]) for row in x])
    x[5] = torch.nan
    try:
        torch.set_num_threads(threads)
        for rows in range(1, 14):
            y = product(x[:rows])
            assert torch.equal(y[:5], alone[:rows][:5])
            assert torch.equal(y[6:], alone[6:rows])
    finally:
        torch.set_num_threads(before)
    assert y[5].isnan().all()


@pytest.mark.parametrize("dtype", COMPILED)
def test_inputs_that_lie_apart_or_do_not_fit_are_no_danger(dtype, compiler):
    """The library sees nothing but addresses."""
    weight = torch.randint(-9, 9, (17, 13)).float()
    product = packed.CompiledProduct(weight, None, dtype)
    x = torch.randn(13, 26)
    for some in (x.t(), x[:, ::2], x[3, ::2], x[None, :2, 13:], x[:0, :13], x.t().double()):
        assert close(product(some), F.linear(some.float(), weight), 1e-4) or some.numel() == 0
        assert product(some).shape == (*some.shape[:-1], 17)
    for wrong in (torch.randn(5, 12), torch.randn(5, 26), torch.randn(26)):
        with pytest.raises(RuntimeError):
            product(wrong)


@pytest.mark.parametrize("dtype", COMPILED)
def test_torchs_default_dtype_decides_nothing_about_memory(dtype, compiler):
    weight, x, before = torch.randint(-9, 9, (17, 13)).float(), torch.randn(3, 13), torch.get_default_dtype()
    expected = packed.CompiledProduct(weight, None, dtype)(x)
    try:
        torch.set_default_dtype(torch.float64)  # a narrower one would be written beyond its end
        found = packed.CompiledProduct(weight, None, dtype)(x)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("weights", "error"), [("float32", 1e-5), ("auto", 1e-5), ("float16", 2e-3), ("int8", 0.1)])
def test_a_packed_model_has_the_models_logits(model, weights, error, no_cache):
    small, idx = pack(model, weights), torch.randint(101, (3, 11))
    expected = model(idx)
    assert close(small(idx), expected, error)
    assert not close(small(idx) * 1.2, expected, error)
    cache = KVCache(model.config, batch_size=3)
    pieces = torch.cat([small(idx[:, :5], cache=cache), small(idx[:, 5:], cache=cache)], dim=1)
    assert close(pieces, expected, error)
    assert small.num_parameters() == model.num_parameters()
    assert set(small.kinds()) == {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"strategy": "beam", "num_beams": 3}, {"top_p": 0.9}])
def test_a_packed_model_writes_the_same(model, options):
    prompts = [[1, 2, 3], [5], [7, 11, 13, 17, 19]]
    expected = minigpt.generate(model, prompts, max_new_tokens=19, **options)
    assert (
        minigpt.generate(pack(model, "float32"), prompts, max_new_tokens=19, **options).sequences == expected.sequences
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_head_in_pieces_is_one_head(model, kind, monkeypatch, no_cache):
    idx = torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(packed, "_HEAD_PIECE", 26 * 30)  # 101 rows: three of 26 and one of 23
    monkeypatch.setattr(packed, "fastest", lambda *_: kind)
    small = pack(model, "auto")
    assert [piece.out_features for piece in small.lm_head.pieces] == [26, 26, 26, 23]
    assert close(small(idx), model(idx), 0.1 if "8" in kind else 2e-3)
    assert "lm_head" in small.kinds()


@pytest.fixture(scope="module")
def trained():
    """A model that has learned to spell verse, and a text that it has not seen: int64 (rows, T + 1)."""
    text = write_verse(0, 60_000).text
    ids = torch.from_numpy(CharTokenizer.from_text(text).encode_array(text).astype("int64"))
    T = 32
    rows = ids[: len(ids) // (T + 1) * (T + 1)].view(-1, T + 1)
    learned, unseen = rows[:-300], rows[-300:]
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=int(ids.max()) + 1, block_size=T, n_layer=2, n_head=2, n_embd=48))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(300):
        batch = learned[torch.randint(len(learned), (16,))]
        minigpt.next_token_loss(model(batch[:, :-1]), batch[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), unseen


def loss_of(model, rows):
    with torch.no_grad():
        return minigpt.next_token_loss(model(rows[:, :-1]), rows[:, 1:]).item()


@pytest.mark.parametrize("kind", ["int8", "fbgemm8", "fbgemm8 with AVX2"])
def test_what_8_bits_cost_is_less_than_half_a_percent(trained, kind, monkeypatch):
    model, rows = trained
    if kind != "int8":
        monkeypatch.setattr(packed, "compiled_library", lambda: "not this time")
    if kind == "fbgemm8 with AVX2":
        monkeypatch.setattr(packed, "_input_steps", lambda: (63, 64))
    small = pack(model, "int8")
    plain = loss_of(model, rows)
    assert plain < 0.6 * math.log(model.config.vocab_size)
    assert abs(loss_of(small, rows) / plain - 1) < 0.005
    kept = [*small.kinds().values()]
    assert kept.count("int8") + kept.count("fbgemm8") >= 5 or "fbgemm" not in torch.backends.quantized.supported_engines


def test_the_allowed_error_keeps_the_loss_within_half_a_percent(trained, no_compiler, monkeypatch):
    """Inputs in ever fewer steps: whichever layers are still trusted, the loss stays."""
    model, rows = trained
    plain, kinds = loss_of(model, rows), set()
    for steps in (40, 31, 20, 10, 5):
        monkeypatch.setattr(packed, "_input_steps", lambda steps=steps: (steps, steps + 1))
        small = pack(model, "int8")
        kinds |= {*small.kinds().values()}
        assert abs(loss_of(small, rows) / plain - 1) < 0.005, (steps, small.kinds())
    assert len(kinds) > 1 or "fbgemm" not in torch.backends.quantized.supported_engines  # some were not trusted


@pytest.mark.parametrize("kind", ["int8", "fbgemm8"])
def test_a_row_in_8_bits_is_the_same_beside_any_other(kind):
    """Where inputs are rounded, each row has a scale of its own, and whole numbers are added without rounding."""
    torch.manual_seed(0)
    layer = PackedLinear(torch.randn(37, 41), torch.randn(37), kind)
    if layer.kind not in ("int8", "fbgemm8"):
        pytest.skip("no whole numbers in this torch")
    x = torch.randn(5, 41)
    x[2] *= 1e6
    assert torch.equal(layer(x)[0], layer(x[:1])[0])
    assert torch.equal(layer(torch.zeros(3, 41)), layer(torch.zeros(1, 41)).expand(3, 37))


def test_a_layer_is_compared_on_what_it_reads(model):
    """A channel that drowns all others leaves them no bits: such a layer is kept in more."""
    with torch.no_grad():
        model.h[1].ln_2.weight[5] = 1e4
        model.h[1].mlp.c_fc.weight[:, 5] *= 1e-4
    kinds = pack(model, "int8").kinds()
    assert "16" in kinds.pop("h.1.mlp.c_fc")
    assert "8" in kinds.pop("h.1.attn.c_attn")


@pytest.fixture
def only_new_objects():
    """The collector, which lists all objects, passes over those that are there before."""
    gc.collect()
    gc.freeze()


def plain_bytes():
    """Of all tensors that the collector lists, each memory once; weights that torch's own operators packed are none."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    plain = [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in plain}.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_one_layer_at_a_time_is_read(weights, tied, tmp_path, monkeypatch, no_compiler, only_new_objects):
    config = GPTConfig(vocab_size=1009, block_size=7, n_layer=2, n_head=1, n_embd=64, tie_weights=tied)
    minigpt.save_hf(GPT(config), None, tmp_path / "saved")
    monkeypatch.setattr(packed, "_HEAD_PIECE", 64 * 256)
    gc.collect()
    most, before, trusted = 0, plain_bytes(), packed._trusted

    def watched(*arguments):
        nonlocal most
        most = max(most, plain_bytes() - before)
        return trusted(*arguments)

    monkeypatch.setattr(packed, "_trusted", watched)
    small, _ = minigpt.load_model(tmp_path / "saved", weights=weights)
    assert isinstance(small, packed.PackedGPT)
    kept, largest = sum(p.nbytes for p in small.parameters()), 4 * 64 * 256
    assert kept + largest <= most <= kept + 2 * largest  # of its biases and of what goes through it a little


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process")
@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_the_peak_of_loading_is_half_again_of_what_is_kept(weights, tmp_path):
    """The kernels' own copies count here too. A first load brings in what the libraries need themselves."""
    for folder, width in (("small", 64), ("large", 640)):
        config = GPTConfig(vocab_size=2003, block_size=64, n_layer=4, n_head=1, n_embd=width, tie_weights=False)
        minigpt.save_hf(GPT(config), None, tmp_path / folder)
    code = f"""
import minigpt
def megabytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
first, _ = minigpt.load_model("small", weights={weights!r})
before = megabytes("VmRSS")
model, _ = minigpt.load_model("large", weights={weights!r})
embeddings = sum(p.nbytes for p in model.parameters()) / 2**20
print(megabytes("VmHWM") - before, megabytes("VmRSS") - before, embeddings)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    peak, kept, embeddings = map(float, done.stdout.split())
    noise = 4  # megabytes: pieces of the file, and the allocator's
    assert peak <= 1.5 * (kept - embeddings) + embeddings + noise, done.stdout


@pytest.mark.parametrize("weights", ["int4", 8, "FLOAT32"])
def test_a_kind_that_there_is_not_is_refused_before_a_weight_is_read(model, weights, tmp_path):
    minigpt.save_hf(model, None, tmp_path / "saved")
    with pytest.raises(MiniGPTError, match="weights"):
        minigpt.load_model(tmp_path / "saved", weights=weights)


@pytest.mark.parametrize("weights", ["float32", "float16", "int8", "auto"])
def test_a_model_that_is_packed_as_it_is_read_is_the_same(model, weights, tmp_path, no_cache):
    minigpt.save_hf(model, None, tmp_path / "saved")
    plain, _ = minigpt.load_model(tmp_path / "saved")
    small, _ = minigpt.load_model(tmp_path / "saved", weights=weights)
    idx = torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(1))
    assert close(small(idx), pack(plain, weights)(idx), 1e-6)
    assert small.kinds() == pack(plain, weights).kinds()


def test_packing_changes_neither_the_model_nor_anybodys_random_numbers(model, no_cache):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    small = pack(model, "auto")
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    idx = torch.randint(101, (1, 5))
    logits = small(idx)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(small(idx), logits)  # what was packed is a copy


def test_the_memory_of_the_plain_weights_is_given_back(model):
    expected = model(idx := torch.randint(101, (1, 5)))
    small = pack(model, "float32", keep=False)
    assert close(small(idx), expected, 1e-5)
    assert sum(layer.weight.numel() for name, layer in model.named_modules() if name.endswith("c_fc")) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda m, idx: m(idx),
        lambda m, idx: m.trunk(idx),
        lambda m, idx: minigpt.generate(m, idx, max_new_tokens=2),
        lambda m, idx: minigpt.next_token_table(m, [3]),
        lambda m, idx: minigpt.sequence_log_prob(m, [3, 4]),
        lambda m, idx: head_scores(m),
        lambda m, idx: pack(m, "float32"),
        lambda m, idx: minigpt.save_hf(m, None, "out"),
        lambda m, idx: add_lora(m, LoRAConfig(), seed=0),
        lambda m, idx: m.state_dict(),
        lambda m, idx: pickle.dumps(m),
        lambda m, idx: copy.deepcopy(m),
    ],
)
def test_a_model_that_was_not_kept_is_refused_in_two_lines(model, call):
    pack(model, "float32", keep=False)
    with pytest.raises(MiniGPTError) as caught:
        call(model, torch.tensor([[3, 4]]))
    assert str(caught.value).count("\n") == 1
    assert not Path("out").exists()


def test_an_adapter_in_use_is_packed_with_the_weights(model):
    add_lora(model, LoRAConfig(rank=3), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_()
    idx = torch.randint(101, (2, 7))
    assert close(pack(model, "float32")(idx), model(idx), 1e-5)


def test_what_is_fastest_is_remembered(no_cache, monkeypatch):
    kind = fastest(17, 13, 10_000)
    assert kind in packed.LOSSLESS
    (key,) = json.loads(no_cache.read_text())
    assert key.endswith("17 x 13, 46 in turn, of plain, transposed, pieces, onednn, float32 x 0.8")
    monkeypatch.setattr(packed, "kind_seconds", lambda *_: pytest.fail("measured twice"))
    assert fastest(17, 13, 10_000) == kind


MOST = [(104, 26), (26, 104)]  # eight twelfths of a block


@pytest.mark.parametrize(("others", "kinds"), [([(26, 26)], {"float32"}), (MOST, {"float32", "plain"})])
def test_what_is_fastest_for_most_weights_is_taken_for_all(model, others, kinds, monkeypatch, compiler):
    """With products all in C, a pass is one call."""
    monkeypatch.setattr(packed, "fastest", lambda *shape: "plain" if shape[:2] in others else "float32")
    small = pack(model, "auto")
    assert set(small.kinds().values()) == kinds
    assert (small.compiled() is None) == ("plain" in kinds)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": 3}'])
def test_a_damaged_memory_costs_time_and_nothing_else(no_cache, content):
    no_cache.write_text(content)
    assert fastest(17, 13, 10_000) in packed.LOSSLESS


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "file"))
    assert fastest(17, 13, 10_000) in packed.LOSSLESS


def test_a_packed_model_refuses_by_name_what_needs_plain_weights(model, tmp_path):
    small = pack(model, "float32")

    def traced():
        with trace(small):
            pass

    def edited():
        with edit(small, ablate("0.mlp")):
            pass

    for call in (
        small.train,
        small.half,
        lambda: small.to(torch.float64),
        lambda: small.to("meta"),
        traced,
        edited,
        lambda: add_lora(small, LoRAConfig(), seed=0),
        lambda: pack(small),
        lambda: minigpt.save_hf(small, None, tmp_path / "out"),
        lambda: save_weights(small, tmp_path / "out"),
        lambda: base_checksum(small),
    ):
        with pytest.raises(MiniGPTError, match="packed"):
            call()
    assert not (tmp_path / "out").exists()
    assert small.to("cpu") is small.float() is small.eval() is small


@pytest.mark.parametrize("weights", ["int4", None, 8, "FLOAT32"])
def test_a_kind_that_there_is_not_is_refused(model, weights):
    with pytest.raises(MiniGPTError, match="weights"):
        pack(model, weights)


def test_the_largest_inputs_and_weights_fit_the_sums_of_8_bits():
    """All of one sign and at their largest, they overflow 16-bit sums of two products, where those are all there is."""
    x = torch.ones(3, 64)
    # Compared on x too: the sum of random inputs can be near 0, and rounding is then a large part of it.
    layer = PackedLinear(torch.ones(7, 64), None, "fbgemm8", x)
    assert layer.kind == "fbgemm8" or "fbgemm" not in torch.backends.quantized.supported_engines
    assert close(layer(x), torch.full((3, 7), 64.0), KINDS["int8"].error)


@pytest.mark.parametrize("num_in", [64, 3079])
def test_the_largest_whole_numbers_fit_the_sums_of_32_bits(num_in, compiler):
    """Of many inputs they would not, if these were rounded into as many steps as 16 bits have."""
    product = packed.CompiledProduct(torch.full((7, num_in), 127.0), None, torch.int8)
    for sign in (1.0, -1.0):
        assert close(product(torch.full((3, num_in), sign)), torch.full((3, 7), sign * 127 * num_in), 1e-6)


@pytest.mark.parametrize("weights", ["float32", "float16", "int8", "auto"])
def test_a_packed_model_is_copied_but_not_pickled(model, weights, no_cache):
    """Its layouts belong to the operators of this process, so another one packs its own."""
    small, idx = pack(model, weights), torch.randint(101, (3, 11))
    for write in (pickle.dumps, lambda packed: torch.save(packed, io.BytesIO())):
        with pytest.raises(MiniGPTError, match="cannot be pickled"):
            write(small)
    with pytest.raises(MiniGPTError, match="a state dict needs plain weights"):
        torch.save(small.state_dict(), io.BytesIO())
    assert torch.equal(copy.deepcopy(small)(idx), small(idx))
