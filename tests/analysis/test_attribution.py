"""A logit taken apart: the parts against a loop in float64, and that nothing is missing."""

import dataclasses

import numpy as np
import pytest
import torch

from minigpt.analysis.attribution import attribute
from minigpt.analysis.edits import ablate
from minigpt.analysis.taps import PointError
from minigpt.analysis.tracing import edit, trace
from minigpt.config import GPTConfig, LoRAConfig
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.lora import add_lora, lora_layers, merge, merged, set_adapter
from minigpt.model import GPT

B, T, L, H, D, C, V = 2, 11, 3, 5, 7, 35, 19
EVERY = ["component", "layer", "head", "neuron"]


@pytest.fixture
def whole(model, idx, traced):
    return traced(model, idx)


def share(model, seen, vector, row, place, direction) -> float:
    """What a vector of the stream adds to the logit, with the norm's scale held: number by number, in float64."""
    mean = sum(float(x) for x in vector) / C
    scale, weight = float(seen["ln_f.scale"][row, place]), model.ln_f.weight.detach()
    return sum((float(vector[c]) - mean) / scale * float(weight[c]) * float(direction[c]) for c in range(C))


@pytest.mark.parametrize(("row", "place", "target", "against"), [(0, 10, 3, None), (1, 4, 17, 2)])
def test_every_part_by_a_loop(model, idx, by_hand, traced, row, place, target, against):
    model.double()
    seen, t = by_hand(model, idx), traced(model, idx)
    w = {name: tensor.detach() for name, tensor in model.named_parameters()}
    direction = w["wte.weight"][target] - (0 if against is None else w["wte.weight"][against])

    def of(vector):
        return share(model, seen, vector, row, place, direction)

    expected = {"embed": of(seen["embed"][row, place]), "pos_embed": of(seen["pos_embed"][place])}
    for i in range(L):
        attention, mlp = seen[f"blocks.{i}.attn.out"][row, place], seen[f"blocks.{i}.mlp.out"][row, place]
        expected |= {f"{i}.attn": of(attention), f"{i}.mlp": of(mlp), f"{i}": of(attention + mlp)}
        for h in range(H):
            expected[f"{i}.{h}"] = of(seen[f"blocks.{i}.attn.head_out"][row, h, place])
        post, back = seen[f"blocks.{i}.mlp.post"][row, place], w[f"h.{i}.mlp.c_proj.weight"]
        for n in (0, 1, 71, 139):
            expected[f"{i}.mlp.{n}"] = of(post[n] * back[:, n])
        expected[f"h.{i}.attn.c_proj.bias"] = of(w[f"h.{i}.attn.c_proj.bias"])
        expected[f"h.{i}.mlp.c_proj.bias"] = of(w[f"h.{i}.mlp.c_proj.bias"])
    expected["ln_f.bias"] = float(w["ln_f.bias"] @ direction)

    missing = set(expected)
    for by in EVERY:
        a = attribute(t, target, against, by, place, row)
        found = dict(zip(a.labels, a.values.tolist(), strict=True)) | a.constants
        for name in found.keys() & expected.keys():
            assert found[name] == pytest.approx(expected[name], abs=1e-11), (by, name)
        missing -= found.keys()
        logits = seen["logits"][row, place]
        assert a.logit == pytest.approx(float(logits[target] - (0 if against is None else logits[against])), abs=1e-11)
        assert abs(a.remainder) < 1e-11
    assert not missing


@pytest.mark.parametrize(("by", "parts", "constants"), [
    ("component", 2 + 2 * L, 1), ("layer", 2 + L, 1), ("head", 2 + L * (H + 1), 1 + L),
    ("neuron", 2 + L * (1 + 4 * C), 1 + L),
])  # fmt: skip
def test_no_part_is_missing_in_float32(model, whole, by, parts, constants):
    for target, against in [(0, None), (7, 13)]:
        a = attribute(whole, target, against, by)
        assert len(a.labels) == len(set(a.labels)) == len(a.values) == parts
        assert len(a.constants) == constants
        (one,) = a.checks
        assert one.ok
        assert one.error < 1e-5
        assert a.total + a.remainder == pytest.approx(a.logit, abs=1e-12)


def test_heads_and_their_bias_are_attention_and_neurons_and_theirs_the_mlp(whole):
    coarse, heads, neurons = (attribute(whole, 5, 11, by) for by in ("component", "head", "neuron"))
    parts = dict(zip(coarse.labels, coarse.values.tolist(), strict=True))
    for fine, part in ((heads, "attn"), (neurons, "mlp")):
        values = dict(zip(fine.labels, fine.values.tolist(), strict=True))
        for i in range(L):
            prefix = f"{i}." if part == "attn" else f"{i}.mlp."
            own = [value for label, value in values.items() if label.startswith(prefix) and label[-1].isdigit()]
            assert len(own) == (H if part == "attn" else 4 * C)
            assert sum(own) + fine.constants[f"h.{i}.{part}.c_proj.bias"] == pytest.approx(
                parts[f"{i}.{part}"], abs=1e-5
            )


def test_a_difference_is_the_difference_of_two_and_blind_to_what_raises_every_token(model, idx, whole, traced):
    difference, one, other = (
        attribute(whole, 3, 8, "head"),
        attribute(whole, 3, by="head"),
        attribute(whole, 8, by="head"),
    )
    assert torch.allclose(difference.values, one.values - other.values, atol=1e-12)
    untied = GPT(dataclasses.replace(model.config, tie_weights=False)).eval()
    untied.load_state_dict(model.state_dict() | {"lm_head.weight": model.wte.weight + torch.randn(C)})
    raised = attribute(traced(untied, idx), 3, 8, "head")
    assert torch.allclose(raised.values, difference.values, atol=1e-5)
    assert raised.checks[0].ok
    assert attribute(traced(untied, idx), 3).checks[0].ok


def test_a_part_that_is_taken_away_adds_nothing(model, idx):
    with torch.no_grad(), edit(model, ablate("1.2"), ablate("2.mlp")), trace(model) as t:
        model(idx)
    a = attribute(t, 4, by="head")
    values = dict(zip(a.labels, a.values.tolist(), strict=True))
    assert values["1.2"] == values["2.mlp"] == 0
    assert a.checks[0].ok


@pytest.mark.parametrize("state", ["in use", "merged", "not in use"])
def test_an_adapter_is_a_part_of_what_heads_and_neurons_write(model, idx, traced, distance, state):
    """The oracle is what the modules gave; a model with W + BA written into plain weights says what each head did."""
    add_lora(model, LoRAConfig(rank=3, targets=("c_proj",)), seed=1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_default.B.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    plain = merged(model)
    if state == "merged":
        merge(model)
    elif state == "not in use":
        set_adapter(model, None)
        plain = merged(model)
    t, expected = traced(model, idx), traced(plain, idx)
    for layer in range(3):
        heads = t[f"blocks.{layer}.attn.head_out"]  # (B, H, T, C)
        assert distance(heads, expected[f"blocks.{layer}.attn.head_out"]) < 1e-4
        whole = heads.sum(1) + model.h[layer].attn.c_proj.bias
        assert distance(whole, t[f"blocks.{layer}.attn.out"]) < 1e-4
    for by in ("head", "neuron"):
        found = attribute(t, 5, by=by)
        assert abs(found.remainder) < 1e-4
        np.testing.assert_allclose(found.values, attribute(expected, 5, by=by).values, atol=1e-4)


def test_without_biases_there_are_no_constants(traced):
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=V, block_size=13, n_layer=L, n_head=H, n_embd=C, bias=False)).eval()
    for by in EVERY:
        a = attribute(traced(model, torch.tensor([[1, 2, 3]])), 5, by=by)
        assert a.constants == {}
        assert a.checks[0].ok


def test_positions_are_absolute_or_from_the_end_with_a_cache_too(model, idx, whole):
    with torch.no_grad(), trace(model) as t:
        cache = KVCache(model.config, B)
        model.trunk(idx[:, :6], cache)
        model(idx[:, 6:], cache)  # logits from position 6 on
    for position, place in [(-1, 10), (10, 10), (-5, 6), (6, 6)]:
        a, expected = attribute(t, 3, position=position, row=1), attribute(whole, 3, position=place, row=1)
        assert a.position == place
        assert torch.allclose(a.values, expected.values, atol=1e-5)
    for position in (5, 11, -6):
        with pytest.raises(InputError, match=rf"position {position} were not recorded\nchoose one from 6 to 10"):
            attribute(t, 3, position=position)


def test_the_largest_parts_come_first(whole):
    a = attribute(whole, 3, by="neuron")
    sizes = [abs(value) for _, value in a.top()]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == len(a.labels)
    assert a.top(7) == a.top()[:7]
    with pytest.raises(InputError, match="k = -1"):
        a.top(-1)
    assert all(value == a.values[a.labels.index(label)] for label, value in a.top(7))


def test_a_token_against_itself_is_refused(whole):
    with pytest.raises(InputError, match="differs by 0"):
        attribute(whole, 3, 3)


def test_a_missing_part_is_seen(whole):
    a = attribute(whole, 3)
    one = dataclasses.replace(a, values=a.values[1:], labels=a.labels[1:]).checks[0]
    assert not one.ok
    assert one.error == pytest.approx(abs(float(a.values[0])), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": V}, "no token 19"),
        ({"target": -1}, "no token -1"),
        ({"target": 0, "against": 40}, "no token 40"),
        ({"target": 0, "by": "word"}, "'word'"),
        ({"target": 0, "row": 2}, "no row 2: the trace has 2"),
        ({"target": 0, "position": 11}, "position 11"),
    ],
)
def test_what_cannot_be_taken_apart(whole, options, message):
    with pytest.raises(InputError, match=message) as caught:
        attribute(whole, **options)
    assert len(str(caught.value).splitlines()) == 2


def test_a_trace_without_the_parts(model, idx, traced):
    with pytest.raises(PointError, match=r"attn\.z was not recorded"):
        attribute(traced(model, idx, ["*embed", "*.out", "ln_f.scale", "logits"]), 3, by="head")
