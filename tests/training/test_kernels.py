"""`--kernels fast` and `c` compute what torch computes, both ways, and a run with them is exact in its own way."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from minigpt.cli import main
from minigpt.config import DocumentsConfig, RunConfig
from minigpt.errors import Interrupted
from minigpt.formats.run_directory import read_config
from minigpt.lora import LoRALinear
from minigpt.model import GPT, MLP, explicit_attention, fused_attention
from minigpt.parameters import as_built
from minigpt.training import kernels as room
from minigpt.training import loop, steps
from minigpt.training.checkpoint import open_checkpoint
from minigpt.training.distributed import Processes
from minigpt.training.document_mask import document_mask
from minigpt.training.kernels import kernels
from minigpt.training.loop import train
from minigpt.training.run import choose_kernels, which_kernels

GELU_BLOCK = 7  # numbers
MULTIPLIES_BY_ONEDNN = room.multiplies_by_onednn


def quiet(line):
    pass


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch):
    """oneDNN multiplies right where it is not the fastest, too."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(room, "multiplies_by_onednn", lambda: True)
    monkeypatch.setattr(room, "turns_by_onednn", lambda: True)
    monkeypatch.setattr(room, "AT_ONCE", GELU_BLOCK)


@pytest.fixture
def really():
    """Whether oneDNN is used on the processor that is named."""
    MULTIPLIES_BY_ONEDNN.cache_clear()
    yield MULTIPLIES_BY_ONEDNN
    MULTIPLIES_BY_ONEDNN.cache_clear()


def counting(monkeypatch, room, name):
    """A function of a room, whose `calls` are counted from now on."""
    real = getattr(room, name)

    def counted(*arguments):
        counted.calls += 1
        return real(*arguments)

    counted.calls = 0
    monkeypatch.setattr(room, name, counted)
    return counted


@pytest.fixture
def products(monkeypatch):
    """Counts the products by oneDNN."""
    return counting(monkeypatch, room, "_product")


@pytest.fixture
def attentions(monkeypatch):
    """Counts what attention is computed in C."""
    if reason := steps.unavailable():
        pytest.skip(f"steps.c: {reason}")
    return counting(monkeypatch, steps, "attention")


def linear(x, weight, bias=None):
    layer = nn.Linear(1, 1)
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias
    return inside(layer, x)


def gelu(x, approximate="tanh"):
    return inside(nn.GELU(approximate), x)


def inside(layer, x):
    with kernels(layer, "fast"):
        y = layer(x)
    assert "forward" not in vars(layer)
    return y


def both_ways(function, *inputs):
    """The result, and the gradients of the inputs that ask for one."""
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    y = function(*inputs)
    y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape))
    return [y.detach(), *(x.grad for x in inputs if x.requires_grad)]


@pytest.mark.parametrize("shape", [(2, 13, 5), (11, 5), (1, 1, 5)])
@pytest.mark.parametrize(("out", "bias"), [(3, True), (17, True), (5, False), (1, False)])
@pytest.mark.parametrize("frozen", ["nothing", "weight", "input"])
@pytest.mark.parametrize("turns", [True, False])
def test_a_linear_layer_equals_the_formula_in_float64(monkeypatch, products, shape, out, bias, frozen, turns):
    monkeypatch.setattr(room, "turns_by_onednn", lambda: turns)
    torch.manual_seed(out)
    inputs = [
        torch.randn(shape, requires_grad=frozen != "input"),
        torch.randn(out, 5, requires_grad=frozen != "weight"),
        *([torch.randn(out, requires_grad=True)] if bias else []),
    ]
    if not any(x.requires_grad for x in inputs):
        pytest.skip("nothing to learn")
    ours = both_ways(linear, *inputs)
    expected = both_ways(
        lambda x, w, b=None: torch.einsum("...i,oi->...o", x, w) + (0 if b is None else b),
        *(x.detach().double().requires_grad_(x.requires_grad) for x in inputs),
    )
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one.double(), other, rtol=1e-5, atol=1e-5)
    assert products.calls == 1 + (frozen != "input") + (turns and frozen != "weight")


def test_gradients_of_one_number_reach_a_linear_layer():
    """They come as a view without strides."""
    x, w = torch.randn(7, 5), torch.randn(3, 5, requires_grad=True)
    linear(x, w).sum().backward()
    assert torch.allclose(w.grad, x.sum(0).expand(3, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 11), (1,), (GELU_BLOCK,)])
def test_gelu_equals_the_formula_in_float64(shape):
    x = torch.linspace(-11, 11, math.prod(shape)).view(shape)[..., torch.randperm(shape[-1])].requires_grad_()

    def formula(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    ours = both_ways(gelu, x)
    expected = both_ways(formula, x.detach().double().requires_grad_())
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("x", [-1e4, -100.0, 0.0, 100.0, 1e4, math.inf, math.nan])
def test_gelu_goes_to_its_limits(x):
    x = torch.tensor([x], requires_grad=True)
    ours = both_ways(gelu, x)
    assert ours[0].equal(F.gelu(x, approximate="tanh")) or not x.isfinite()
    assert math.isnan(ours[0].item()) == math.isnan(x.item())
    if x.isfinite():
        assert -ours[1].item() == pytest.approx(0.5 if x == 0 else float(x > 0))  # of -y


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_everything_else_is_left_to_torch(dtype):
    x, w = torch.randn(2, 5, dtype=dtype), torch.randn(3, 5, dtype=dtype)
    wide = torch.randn(2, 5)
    assert linear(x, w).equal(x @ w.T)
    assert gelu(x).grad_fn is None
    with torch.no_grad():
        ours = linear(wide, w.float()), gelu(wide)
    erf = gelu(wide, approximate="none")
    assert ours[0].equal(F.linear(wide, w.float()))
    assert ours[1].equal(F.gelu(wide, approximate="tanh"))
    assert erf.equal(F.gelu(wide))


@pytest.mark.usefixtures("attentions")
def test_attention_takes_its_place_where_it_is_the_usual_one(tiny_model, attentions):
    idx = torch.randint(23, (2, 11))
    expected = tiny_model(idx)
    tiny_model.h[1].attn.core = explicit_attention
    with kernels(tiny_model, "c"):
        assert (tiny_model(idx) - expected).abs().max() < 1e-5
        assert attentions.calls == 1  # of two layers
        as_built(tiny_model, {})  # it is still a plain model, whose numbers are the same
        with torch.no_grad():
            tiny_model(idx)
        with document_mask(tiny_model, torch.arange(11).remainder(7).expand(2, -1)) as cache:
            tiny_model(idx, cache)
    assert attentions.calls == 1
    assert [block.attn.core for block in tiny_model.h] == [fused_attention, explicit_attention]
    assert not any({"forward"} & {*vars(part)} for part in tiny_model.modules())


@pytest.fixture
def mlps(monkeypatch):
    """Counts what MLPs are computed in C, on a processor where they are."""
    if reason := steps.unavailable():
        pytest.skip(f"steps.c: {reason}")
    monkeypatch.setattr(room, "turns_by_onednn", lambda: False)
    return counting(monkeypatch, steps, "mlp")


class WatchedMLP(MLP):
    def forward(self, x):
        return super().forward(x)


def hook(part, given, result=None):
    return None


def set_on_itself(layer):
    layer.forward = type(layer).forward.__get__(layer)


def narrowed(mlp):
    """Fewer neurons within, as after pruning."""
    mlp.c_fc = nn.Linear(mlp.c_fc.in_features, 5)
    mlp.c_proj = nn.Linear(5, mlp.c_proj.out_features)


def without_neurons(mlp):
    mlp.c_fc, mlp.c_proj = nn.Linear(mlp.c_fc.in_features, 0), nn.Linear(0, mlp.c_proj.out_features)


def test_an_mlp_takes_its_place_and_learns_the_same(tiny_model, mlps):
    narrowed(tiny_model.h[0].mlp)
    idx, found = torch.randint(23, (2, 11)), []
    for which in ("c", "torch"):
        tiny_model.zero_grad(set_to_none=True)
        with kernels(tiny_model, which):
            logits = tiny_model(idx)
            logits.backward(torch.linspace(-1, 2, logits.numel()).view(logits.shape))
        found.append([logits.detach(), *(parameter.grad.clone() for parameter in tiny_model.parameters())])
    assert mlps.calls == 2
    assert all((one - other).norm() <= 1e-5 * other.norm() for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda mlp: mlp.c_fc.register_forward_hook(hook),
        lambda mlp: mlp.gelu.register_forward_pre_hook(hook),
        lambda mlp: mlp.c_proj.register_full_backward_hook(hook),
        lambda mlp: mlp.c_proj.register_full_backward_pre_hook(hook),
        lambda mlp: set_on_itself(mlp.c_fc),
        set_on_itself,
        lambda mlp: setattr(mlp.c_fc, "bias", nn.Parameter(torch.ones(1))),  # for all neurons
        without_neurons,
        lambda mlp: setattr(mlp, "gelu", nn.GELU()),
        lambda mlp: setattr(mlp, "gelu", nn.ReLU()),
        lambda mlp: setattr(mlp, "__class__", WatchedMLP),
        lambda mlp: setattr(mlp, "c_fc", LoRALinear(mlp.c_fc)),
        lambda mlp: torch.nn.utils.parametrizations.weight_norm(mlp.c_proj),
    ],
    ids="hook before-hook backward-hook before-backward-hook forward-of-layer forward bias none erf relu subclass lora "
    "parametrized".split(),
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_mlp_that_is_not_as_usual_is_left_alone(tiny_model, mlps, change):
    change(tiny_model.h[1].mlp)
    idx = torch.randint(23, (2, 11))
    expected = tiny_model(idx)
    with kernels(tiny_model, "c"):
        assert (tiny_model(idx) - expected).abs().max() < 1e-5
    assert mlps.calls == 1  # of two layers


def test_an_mlp_of_another_type_or_without_gradients_is_torchs(tiny_model, mlps):
    idx = torch.randint(23, (2, 11))
    with kernels(tiny_model, "c"):
        with torch.no_grad():
            tiny_model(idx)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            tiny_model.h[0].mlp(torch.zeros(2, 3))
    with kernels(tiny_model.double(), "c"):
        tiny_model(idx)
        with pytest.raises(RuntimeError, match="same dtype"):
            tiny_model.h[0].mlp(torch.zeros(2, 15))
    assert mlps.calls == 0


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_whoever_watches_all_modules_sees_those_within_an_mlp(tiny_model, mlps, kind):
    handle = getattr(nn.modules.module, f"register_module_{kind}")(hook)
    try:
        with kernels(tiny_model, "c"):
            tiny_model(torch.randint(23, (2, 11)))
    finally:
        handle.remove()
    assert mlps.calls == 0


def test_a_frozen_mlp_keeps_nothing_for_gradients_of_its_weights(tiny_model, mlps):
    """An adapter elsewhere needs the gradient of what the MLP was given, which is made of GELU's slopes alone."""
    mlp, x = tiny_model.h[0].mlp, torch.randn(5, 15, requires_grad=True)
    kept = []
    for part in (mlp.c_proj, mlp.c_fc):
        with kernels(tiny_model, "c"):
            y = mlp(x)
        kept.append([saved if saved is None else tuple(saved.shape) for saved in y.grad_fn.saved_tensors[:3]])
        part.requires_grad_(False)
    with kernels(tiny_model, "c"):
        y = mlp(x)
    kept.append([saved if saved is None else tuple(saved.shape) for saved in y.grad_fn.saved_tensors[:3]])
    assert kept == [[(5, 15), (5, 60), (5, 60)], [(5, 15), None, (5, 60)], [None, None, (5, 60)]]
    expected = torch.autograd.grad(mlp(x).sum(), x)[0]
    assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], expected, rtol=1e-4, atol=1e-6)
    assert mlps.calls == 3


def losses(run):
    return [row["train_loss"] for row in loop.read_records(loop.RunDirectory(run).metrics) if "train_loss" in row]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize(
    ("by", "turns", "words"),
    [("fast", True, "fast kernels"), ("c", True, "kernels in C"), ("c", False, "kernels in C")],
)
def test_a_run_learns_the_same_and_resumes_to_the_bit(
    corpus, config, tmp_path, monkeypatch, products, recomputed, by, turns, words
):
    monkeypatch.setattr(room, "turns_by_onednn", lambda: turns)
    config = replace(config, kernels="torch", train=replace(config.train, gradient_checkpointing=recomputed))
    fast, said = replace(config, kernels=by), []
    train(config, corpus, tmp_path / "torch", quiet)
    before = products.calls
    train(fast, corpus, tmp_path / "straight", said.append)
    # 9 layers, both ways; 8 lie in blocks
    assert products.calls - before == (20 * (9 * 3 + (8 if recomputed else 0)) if turns else 0)
    assert any(words in line for line in said)
    assert losses(tmp_path / "straight") == pytest.approx(losses(tmp_path / "torch"), rel=1e-4)
    real = loop.gradients

    def gradients(run, taken, first, processes):
        if first == 6 * run.rows_per_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, taken, first, processes)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", gradients)
        with pytest.raises(Interrupted):
            train(fast, corpus, tmp_path / "broken", quiet)
    train(fast, corpus, tmp_path / "broken", quiet, resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "broken")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("no_plots")
def test_where_they_do_not_fit_the_log_says_so(corpus, config, tmp_path):
    said = []
    train(replace(config, kernels="fast", dtype="bfloat16"), corpus, tmp_path / "run", said.append)
    assert any("torch's kernels (fast: float32, on a CPU, eager, not fsdp)" in line for line in said)


@pytest.mark.parametrize("batching", ["padded", "packed", "packed-masked"])
def test_under_a_document_mask_attention_stays_with_torch_and_the_log_says_so(config, attentions, batching):
    documents = replace(config, kernels="c", documents=DocumentsConfig(batching=batching))
    _, said = which_kernels(documents, Processes(), torch.device("cpu"), torch.float32)
    assert said.startswith("kernels in C")
    model, positions = GPT(config.model), torch.tensor([[0, 1, 2, 0, 1, 0, 1]])
    with document_mask(model, positions if batching == "packed-masked" else None) as cache, kernels(model, "c"):
        model(torch.zeros(1, 7, dtype=torch.int64), cache)
    assert ("attention by torch's" in said) == (attentions.calls == 0) == (batching == "packed-masked")


@pytest.mark.usefixtures("no_plots")
def test_a_run_in_c_goes_on_where_there_is_no_compiler(corpus, config, tmp_path, monkeypatch, attentions):
    run, said = tmp_path / "run", []
    train(replace(config, kernels="c", train=replace(config.train, max_steps=3)), corpus, run, said.append)
    assert attentions.calls > 0
    before, compiler = attentions.calls, steps.compiler()
    with monkeypatch.context() as patched:
        patched.setattr(steps, "unavailable", lambda: "there is no C compiler")
        train(
            replace(config, kernels="c", train=replace(config.train, max_steps=5)),
            corpus,
            run,
            said.append,
            resume=True,
        )
    assert any(line.startswith(f"changed    compiler: {compiler} before, no kernels in C now") for line in said)
    assert attentions.calls == before
    assert any("torch's kernels (c: there is no C compiler)" in line for line in said)
    assert read_config(loop.RunDirectory(run)).kernels == "c"  # on the first machine it computes as before
    train(replace(config, kernels="c", train=replace(config.train, max_steps=7)), corpus, run, said.append, resume=True)
    assert any(line.startswith(f"changed    compiler: no kernels in C before, {compiler} now") for line in said)
    assert attentions.calls > before


@pytest.mark.usefixtures("no_plots")
def test_a_run_that_trains_an_adapter_uses_them_too(corpus, config, tmp_path, products):
    config = replace(config, kernels="torch")
    train(config, corpus, tmp_path / "base", quiet)
    before = products.calls
    adapting = replace(config, init_from=str(tmp_path / "base"), train=replace(config.train, lora_rank=3))
    train(adapting, corpus, tmp_path / "torch", quiet)
    assert products.calls == before
    train(replace(adapting, kernels="fast"), corpus, tmp_path / "fast", quiet)
    assert products.calls > before
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "torch"), rel=1e-4)


@pytest.mark.usefixtures("no_plots")
def test_teachers_use_them_too(corpus, config, tmp_path, products):
    train(replace(config, kernels="torch"), corpus, tmp_path / "wise", quiet)
    before = products.calls
    taught = replace(config, kernels="fast", train=replace(config.train, teachers=(str(tmp_path / "wise"),)))
    train(taught, corpus, tmp_path / "run", quiet)
    assert products.calls - before == 20 * (9 * 3 + 9)  # 9 layers: the student's both ways, the teacher's one way


AMD = "AMD EPYC 9B45 128-Core Processor, AVX512"


@pytest.mark.parametrize(
    ("name", "settings", "taken"),
    [
        (AMD, {}, "fast"),
        ("AuthenticAMD, AVX512", {}, "fast"),
        ("AMD Ryzen 5 3600 6-Core Processor, AVX2", {}, "fast"),
        ("AMD EPYC, DEFAULT", {}, "torch"),
        ("Intel(R) Xeon(R) CPU @ 2.80GHz, AVX512", {}, "torch"),
        (AMD, {"dtype": "bfloat16"}, "torch"),
        (AMD, {"kernels": "torch"}, "torch"),
        ("Intel(R) Xeon(R) CPU @ 2.80GHz, AVX2", {"kernels": "fast"}, "fast"),
    ],
)
@pytest.mark.usefixtures("no_plots")
def test_a_run_chooses_once_and_a_resume_takes_the_same(
    corpus, config, tmp_path, monkeypatch, really, name, settings, taken
):
    monkeypatch.setattr(room, "multiplies_by_onednn", really)
    monkeypatch.setattr(room, "processor", lambda: name)
    config = replace(config, **({"kernels": "auto"} | settings), train=replace(config.train, max_steps=3))
    said = []
    train(config, corpus, tmp_path / "run", said.append)
    assert any("fast kernels" in line for line in said) == (taken == "fast")
    recorded = read_config(loop.RunDirectory(tmp_path / "run"))
    assert recorded.kernels == taken
    monkeypatch.setattr(room, "processor", lambda: AMD if taken == "torch" else "another, AVX2")  # a resume elsewhere
    train(replace(recorded, train=replace(recorded.train, max_steps=5)), corpus, tmp_path / "run", said.append, True)
    assert read_config(loop.RunDirectory(tmp_path / "run")).kernels == taken
    assert not any(line.startswith("changed    kernels") for line in said)


@pytest.mark.usefixtures("no_plots", "attentions")
def test_a_resume_with_another_compiler_says_so(corpus, config, tmp_path, monkeypatch):
    run, said, real = tmp_path / "run", [], steps.compiler()
    assert real[0].isalnum()
    for number, compiler, told in ((3, real, False), (5, "another 1.0", True), (7, "another 1.0", False)):
        monkeypatch.setattr(steps, "compiler", lambda compiler=compiler: compiler)
        said.clear()
        few = replace(config, kernels="c", train=replace(config.train, max_steps=number))
        train(few, corpus, run, said.append, resume=number > 3)
        assert any(line.startswith(f"changed    compiler: {real} before, another 1.0 now") for line in said) == told


@pytest.mark.usefixtures("no_plots")
def test_a_run_that_only_asks_for_c_compiles_nothing_and_notes_no_compiler(corpus, config, tmp_path, monkeypatch):
    run, said, calls = tmp_path / "run", [], []
    monkeypatch.setattr(steps, "unavailable", lambda: calls.append(1) or "")
    monkeypatch.setattr(steps, "compiler", lambda: calls.append(1) or "any 1.0")
    for number in (3, 5):
        few = replace(config, kernels="c", dtype="bfloat16", train=replace(config.train, max_steps=number))
        train(few, corpus, run, said.append, resume=number > 3)
    assert calls == []
    assert "compiler" not in open_checkpoint(run / "last").manifest["versions"]
    assert not any("compiler" in line for line in said)


@pytest.mark.parametrize(
    ("name", "turns", "reason", "short", "long"),
    [
        ("AMD EPYC 9B45 128-Core Processor, AVX512", True, "", "fast", "fast"),
        ("AMD Ryzen 5 3600 6-Core Processor, AVX2", False, "", "fast", "c"),
        ("AMD Ryzen 5 3600 6-Core Processor, AVX2", False, "there is no C compiler", "fast", "fast"),
        ("Intel(R) Xeon(R) CPU @ 2.80GHz, AVX2", False, "", "torch", "torch"),
    ],
)
def test_a_long_run_is_worth_compiling_for(monkeypatch, really, name, turns, reason, short, long):
    monkeypatch.setattr(room, "multiplies_by_onednn", really)
    monkeypatch.setattr(room, "processor", lambda: name)
    monkeypatch.setattr(room, "turns_by_onednn", lambda: turns)
    monkeypatch.setattr(steps, "unavailable", lambda: reason)
    assert [room.best_here(operations) for operations in (1e9, 1e14)] == [short, long]


@pytest.mark.parametrize(
    ("device", "settings", "apart", "asked"),
    [
        ("cpu", {}, {}, 1),
        ("cuda", {}, {}, 0),
        ("cpu", {"dtype": "bfloat16"}, {}, 0),
        ("cpu", {"compile": "on"}, {}, 0),
        ("cpu", {}, {"parallel": "fsdp"}, 0),
    ],
)
def test_nothing_is_compiled_where_only_torch_computes(config, monkeypatch, device, settings, apart, asked):
    calls = []
    monkeypatch.setattr(room, "processor", lambda: "AMD EPYC 7763 64-Core Processor, AVX2")
    monkeypatch.setattr(room, "turns_by_onednn", lambda: False)
    monkeypatch.setattr(steps, "unavailable", lambda: calls.append(1) or "")
    long = replace(config, kernels="auto", train=replace(config.train, max_steps=10**12, **apart), **settings)
    assert choose_kernels(long, Processes(size=2), torch.device(device)) == ("c" if asked else "torch")
    assert len(calls) == asked


def test_a_plan_times_the_kernels_that_the_run_will_take(flags, tmp_path, monkeypatch, products):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text("to be or not to be, that is the question: " * 50, encoding="utf-8")
    monkeypatch.setattr(room, "processor", lambda: AMD)
    assert main.answer(["train", "--plan", *flags, "--kernels", "torch"]) == 0
    assert products.calls == 0
    assert main.answer(["train", "--plan", *flags]) == 0
    assert products.calls > 0


def test_a_run_from_before_the_setting_goes_on_as_it_began(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\n", encoding="utf-8")
    assert read_config(loop.RunDirectory(tmp_path)).kernels == "torch"
    assert RunConfig().kernels == "auto"


@pytest.mark.parametrize("wrong", [AttributeError("no such operator"), RuntimeError("not here"), 1.0])
def test_a_product_that_is_missing_or_wrong_is_not_used(monkeypatch, really, wrong):
    def product(x, weight, bias=None):
        if isinstance(wrong, Exception):
            raise wrong
        return x @ weight.T + bias + wrong

    monkeypatch.setattr(room, "processor", lambda: AMD)
    assert really()
    monkeypatch.setattr(room, "_product", product)
    really.cache_clear()
    assert not really()
