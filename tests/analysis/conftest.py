"""A model of distinct prime sizes, a forward pass written out in float64, and short ways to trace and edit."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from minigpt.analysis.tracing import edit, trace
from minigpt.config import GPTConfig
from minigpt.model import GPT, fused_attention
from tests.conftest import random_model

CONFIG = GPTConfig(vocab_size=19, block_size=13, n_layer=3, n_head=5, n_embd=35)
B, T, L, H, D, C, V = 2, 11, 3, 5, 7, 35, 19


@pytest.fixture
def model() -> GPT:
    return random_model(CONFIG, 7)


@pytest.fixture
def idx() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))


def pass_by_hand(model: GPT, idx: Tensor, change=lambda name, x: x) -> dict[str, Tensor]:
    """Every point of a forward pass in float64, head by head; `change` may replace what goes on from there."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    seen = {}

    def put(name, x):
        seen[name] = change(name, x)
        return seen[name]

    def norm(x, module, name):
        mean = x.mean(-1, keepdim=True)
        scale = put(f"{name}.scale", (((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5) ** 0.5)
        return put(f"{name}.out", (x - mean) / scale * w[f"{module}.weight"] + w[f"{module}.bias"])

    def heads(make):
        return torch.stack([make(h) for h in range(H)], dim=1)

    with torch.no_grad():
        T = idx.size(1)
        x = put("embed", w["wte.weight"][idx]) + put("pos_embed", w["wpe.weight"][:T])
        for layer in range(L):
            h, b = f"h.{layer}", f"blocks.{layer}"
            x = put(f"{b}.resid_pre", x)
            normed = norm(x, f"{h}.ln_1", f"{b}.ln_1")
            qkv = normed @ w[f"{h}.attn.c_attn.weight"].T + w[f"{h}.attn.c_attn.bias"]
            parts = [x.split(D, dim=2) for x in qkv.split(C, dim=2)]
            q, k, v = (put(f"{b}.attn.{letter}", torch.stack(x, 1)) for letter, x in zip("qkv", parts, strict=True))
            scores = torch.full((len(idx), H, T, T), -math.inf, dtype=torch.float64)
            for t, s in itertools.combinations_with_replacement(range(T), 2):
                scores[:, :, s, t] = (q[:, :, s] * k[:, :, t]).sum(-1) / math.sqrt(D)
            e = put(f"{b}.attn.scores", scores).exp()
            pattern = put(f"{b}.attn.pattern", e / e.sum(-1, keepdim=True))
            z = put(f"{b}.attn.z", heads(lambda i, pattern=pattern, v=v: pattern[:, i] @ v[:, i]))
            W = w[f"{h}.attn.c_proj.weight"].T
            head_out = put(f"{b}.attn.head_out", heads(lambda i, z=z, W=W: z[:, i] @ W[i * D : i * D + D]))
            x = x + put(f"{b}.attn.out", head_out.sum(1) + w[f"{h}.attn.c_proj.bias"])
            x = put(f"{b}.resid_mid", x)
            pre = norm(x, f"{h}.ln_2", f"{b}.ln_2") @ w[f"{h}.mlp.c_fc.weight"].T + w[f"{h}.mlp.c_fc.bias"]
            pre = put(f"{b}.mlp.pre", pre)
            post = 0.5 * pre * (1 + torch.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3)))
            post = put(f"{b}.mlp.post", post)
            x = x + put(f"{b}.mlp.out", post @ w[f"{h}.mlp.c_proj.weight"].T + w[f"{h}.mlp.c_proj.bias"])
            x = put(f"{b}.resid_post", x)
        put("logits", norm(x, "ln_f", "ln_f") @ w["wte.weight"].T)
    return seen


@pytest.fixture
def by_hand():
    return pass_by_hand


@pytest.fixture
def distance():
    """The largest difference; equal infinities are at no distance."""

    def measure(a: Tensor, b: Tensor) -> float:
        assert a.shape == b.shape
        return float(torch.where(a == b, 0, (a - b).abs()).max())

    return measure


@pytest.fixture
def as_it_was():
    """Nothing of a trace or an edit is left on the model."""

    def check(model: GPT) -> None:
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert all(block.attn.core is fused_attention for block in model.h)
        assert set(model.state_dict()) == set(GPT(CONFIG).state_dict())

    return check


@pytest.fixture
def logits_of():
    def run(model: GPT, idx: Tensor, *edits) -> Tensor:
        with torch.no_grad(), edit(model, *edits):
            return model(idx)

    return run


@pytest.fixture
def traced():
    def run(model: GPT, idx: Tensor, names="*", **options):
        with torch.no_grad(), trace(model, names, **options) as t:
            model(idx)
        return t

    return run
