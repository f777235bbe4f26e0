"""The architecture against independent oracles: a loop in float64, the reference library, and its own definitions."""

import copy
import math

import pytest
import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT, CausalSelfAttention, explicit_attention, fused_attention

CORES = [explicit_attention, fused_attention]


def with_core(model: GPT, core: object) -> GPT:
    for block in model.h:
        block.attn.core = core
    return model


def attention_by_loops(module: CausalSelfAttention, x: Tensor) -> Tensor:
    """Causal self-attention written with Python loops over rows, heads, queries and keys."""
    B, T, C = x.shape
    D = C // module.n_head
    y = torch.zeros_like(x)
    for b in range(B):
        qkv = [module.c_attn.weight @ x[b, t] + module.c_attn.bias for t in range(T)]
        for head in range(module.n_head):
            q, k, v = ([row[part * C + head * D : part * C + (head + 1) * D] for row in qkv] for part in range(3))
            for t in range(T):
                scores = [float(q[t] @ k[s]) / math.sqrt(D) for s in range(t + 1)]
                highest = max(scores)
                weights = [math.exp(score - highest) for score in scores]
                for s in range(t + 1):
                    y[b, t, head * D : (head + 1) * D] += weights[s] / sum(weights) * v[s]
    return torch.stack([torch.stack([module.c_proj.weight @ row + module.c_proj.bias for row in rows]) for rows in y])


@pytest.mark.parametrize("core", CORES)
def test_attention_equals_loops_in_float64(tiny_model, core):
    module = copy.deepcopy(tiny_model.h[1].attn).double()
    module.core = core
    x = torch.randn(2, 7, 15, dtype=torch.float64)
    with torch.no_grad():
        expected = attention_by_loops(module, x)
        assert (module(x, torch.arange(7)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("scale", [1, 100])
def test_no_position_sees_the_future(tiny_model, core, scale):
    """A finite mask is outbid by large scores (minGPT issue 75): hence also with the weights times 100."""
    model = with_core(tiny_model, core)
    with torch.no_grad():
        for block in model.h:
            block.attn.c_attn.weight.mul_(scale)
        idx = torch.randint(23, (2, 11))
        before = model(idx)
        for t in range(11):
            changed = idx.clone()
            changed[:, t] = (changed[:, t] + 1) % 23
            after = model(changed)
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.equal(after[:, t:], before[:, t:])


def test_the_two_cores_give_the_same_numbers_and_gradients(tiny_model):
    """In float64, so that rounding (1e-16) and a bug are told apart."""
    tiny_model.double()
    idx = torch.randint(23, (3, 13))
    results = []
    for core in CORES:
        model = with_core(tiny_model, core)
        model.zero_grad()
        logits = model(idx)
        logits.logsumexp(-1).sum().backward()
        results.append((logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    (logits_a, grads_a), (logits_b, grads_b) = results
    assert (logits_a - logits_b).abs().max() < 1e-12
    assert max(float((a - b).abs().max()) for a, b in zip(grads_a, grads_b, strict=True)) < 1e-10


def test_the_fused_core_takes_bfloat16_on_a_cpu(tiny_model):
    idx = torch.randint(23, (2, 13))
    expected = tiny_model(idx)
    with torch.autocast("cpu", torch.bfloat16):
        found = tiny_model(idx)
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_gpt2_names_are_kept():
    """A rename would break every checkpoint: the names are the interface to the weights."""
    names = set(GPT(GPTConfig(vocab_size=5, block_size=3, n_layer=1, n_head=1, n_embd=2)).state_dict())
    assert names == {
        "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias", "lm_head.weight",
        "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.ln_2.weight", "h.0.ln_2.bias",
        "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", "h.0.attn.c_proj.weight", "h.0.attn.c_proj.bias",
        "h.0.mlp.c_fc.weight", "h.0.mlp.c_fc.bias", "h.0.mlp.c_proj.weight", "h.0.mlp.c_proj.bias",
    }  # fmt: skip


def test_the_mask_is_a_registered_buffer_outside_the_state_dict(tiny_model):
    buffers = dict(tiny_model.named_buffers())
    assert set(buffers) == {"h.0.attn.tril", "h.1.attn.tril"}
    assert buffers["h.0.attn.tril"].dtype == torch.bool
    assert buffers["h.0.attn.tril"].tolist() == [[s <= t for s in range(13)] for t in range(13)]


def tied(model: GPT) -> bool:
    return model.lm_head.weight is model.wte.weight


def test_tying_survives_what_people_do_to_models(tiny_model):
    assert tied(tiny_model)
    assert tied(copy.deepcopy(tiny_model))
    assert tied(copy.deepcopy(tiny_model).double())
    other = GPT(tiny_model.config)
    other.load_state_dict(tiny_model.state_dict())
    assert tied(other)
    other.init_weights()
    assert tied(other)
    assert "lm_head.weight" not in dict(tiny_model.named_parameters())
    assert torch.compile(tiny_model)._orig_mod.lm_head.weight is tiny_model.wte.weight


def test_a_tied_gradient_is_the_sum_of_both_uses(tiny_model):
    idx = torch.randint(23, (2, 7))
    tiny_model(idx).square().sum().backward()
    untied = GPT(GPTConfig(**{**vars(tiny_model.config), "tie_weights": False}))
    untied.load_state_dict(tiny_model.state_dict())
    untied(idx).square().sum().backward()
    assert not tied(untied)
    both = untied.wte.weight.grad + untied.lm_head.weight.grad
    assert torch.allclose(tiny_model.wte.weight.grad, both, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # GPT-2 small, as published
        ({}, 124_439_808),
        # by hand: 65*128 + 256*128 + 4*(4*128 + 128*384 + 384 + 128*128 + 128 + 2*128*512 + 512 + 128) + 2*128
        ({"vocab_size": 65, "block_size": 256, "n_layer": 4, "n_head": 4, "n_embd": 128}, 834_432),
        ({"vocab_size": 65, "block_size": 256, "n_layer": 4, "n_head": 4, "n_embd": 128, "tie_weights": False},
         834_432 + 65 * 128),
    ],
)  # fmt: skip
def test_parameters_are_counted_once(settings, expected):
    with torch.device("meta"):
        assert GPT(GPTConfig(**settings)).num_parameters() == expected


@pytest.mark.parametrize("seed", range(5))
def test_step_zero_loss_is_ln_vocabulary(seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=65, block_size=32, n_layer=4, n_head=4, n_embd=64))
    idx = torch.randint(65, (16, 33))
    loss = torch.nn.functional.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.1


def test_initial_spread_of_the_weights():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=997, block_size=101, n_layer=3, n_head=2, n_embd=64))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "ln_" in name:
            assert (parameter == 1).all()
        else:
            expected = 0.02 / math.sqrt(6) if "c_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name


def test_more_tokens_than_positions_are_refused_with_both_numbers(tiny_model):
    with pytest.raises(InputError, match=r"14 tokens .* block_size = 13"):
        tiny_model(torch.zeros(1, 14, dtype=torch.int64))


def test_dropout_is_off_in_evaluation_in_every_path():
    """nanoGPT dropped attention weights in evaluation too, once, on its fused path (its pull request 240)."""
    config = GPTConfig(vocab_size=23, block_size=13, n_layer=2, n_head=3, n_embd=15, dropout=0.5)
    idx = torch.randint(23, (2, 7))
    for core in CORES:
        model = with_core(GPT(config), core).eval()
        assert torch.equal(model(idx), model(idx))
        cache = KVCache(config, 2)
        assert torch.allclose(model(idx), model(idx, cache=cache), atol=1e-6)
        model.train()
        assert not torch.equal(model(idx), model(idx))


def test_logits_equal_the_reference_library():
    """Random weights, odd sizes; Conv1D stores its weight transposed."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [dev]")
    torch.manual_seed(3)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=61,
            n_positions=19,
            n_embd=21,
            n_layer=3,
            n_head=7,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    model = GPT(GPTConfig(vocab_size=61, block_size=19, n_layer=3, n_head=7, n_embd=21)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = reference.get_parameter(f"transformer.{name}")
            weight.normal_(std=0.3)
            is_conv1d = any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            parameter.copy_(weight.T if is_conv1d else weight)
        idx = torch.randint(61, (3, 19))
        assert (model.double()(idx) - reference.double()(idx).logits).abs().max() < 1e-10


def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    idx = torch.randint(11, (4, 9))
    idx[:, 0] = torch.arange(4)  # every row can be told apart from its first token on
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize(
    ("idx", "said"),
    [
        ([1, 2], r"ids are a list"),
        (torch.tensor([1, 2]), r"ids are torch.int64 \(2,\)"),
        (torch.ones(2, 3), r"ids are torch.float32 \(2, 3\)"),
        (torch.ones(2, 3, dtype=torch.int32), r"ids are torch.int32 \(2, 3\)"),
        (torch.ones(2, 3, 5, dtype=torch.int64), r"ids are torch.int64 \(2, 3, 5\)"),
        (torch.ones(2, 0, dtype=torch.int64), r"ids are torch.int64 \(2, 0\)"),
        (torch.tensor([[3, 23]]), r"ids from 3 to 23 .* vocabulary of 23"),
        (torch.tensor([[3, 5], [-1, 7]]), r"ids from -1 to 7 .* vocabulary of 23"),
        (torch.tensor([[2**62]]), r"ids from \d+ to \d+ .* vocabulary of 23"),
    ],
)
def test_what_is_no_ids_is_refused_before_it_is_looked_up(tiny_model, idx, said):
    looked_up = []
    tiny_model.wte.register_forward_pre_hook(lambda *_: looked_up.append(1))
    with pytest.raises(InputError, match=said):
        tiny_model(idx)
    assert not looked_up  # on a GPU the lookup itself would end the process


def test_ids_are_checked_without_getting_in_anybodys_way(tiny_model):
    """A compiled pass reads no values, so it stays one piece; under vmap no single value can be read."""
    idx = torch.randint(23, (3, 7))
    expected = tiny_model(idx)
    compiled = torch.compile(tiny_model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(idx), expected)
    with_core(tiny_model, explicit_attention)
    rows = torch.vmap(lambda row: tiny_model(row[None])[0])
    torch.testing.assert_close(rows(idx), expected)
    with pytest.raises(InputError, match="ids from"):
        rows(idx + 23)
