"""Traces and edits against a forward pass written out in float64, and what must be true whatever the weights."""

import contextlib
import json
import math
import os
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import minigpt
from minigpt.analysis import taps
from minigpt.analysis.edits import ablate, knockout, patch
from minigpt.analysis.recording import plan
from minigpt.analysis.taps import PointError, points
from minigpt.analysis.tracing import edit, trace
from minigpt.config import GPTConfig
from minigpt.errors import InputError, MiniGPTError
from minigpt.formats.pretrained import transformers_views
from minigpt.formats.weights import fill, stored_tensors
from minigpt.kv_cache import KVCache
from minigpt.model import explicit_attention, fused_attention
from minigpt.parameters import empty_model

GOLDEN = os.environ.get("MINIGPT_GOLDEN") and Path(os.environ["MINIGPT_GOLDEN"]).resolve()

CONFIG = GPTConfig(vocab_size=19, block_size=13, n_layer=3, n_head=5, n_embd=35)
B, T, L, H, D, C, V = 2, 11, 3, 5, 7, 35, 19
POINTS = points(CONFIG)
# every row of the table that can be edited; of the layers, the one in the middle
EDITABLE = [name for name in POINTS if taps.tap(name).editable and "s.0" not in name and "s.2" not in name]


# --- what is recorded


def test_every_point_equals_the_pass_by_hand(model, idx, by_hand, distance, traced):
    model.double()
    expected = by_hand(model, idx)
    t = traced(model, idx)
    assert t.names == POINTS
    assert set(expected) == set(POINTS)
    for name in POINTS:
        assert distance(t[name], expected[name]) < 1e-11, name
        assert t[name].shape == taps.shape(name, CONFIG, B, T, T)
        assert t.positions(name) == list(range(T))


def test_the_aliases_read_the_same(model, idx, traced):
    t = traced(model, idx)
    assert torch.equal(t["blocks.1.attn.hook_pattern"], t["blocks.1.attn.pattern"])
    assert "ln_final.hook_normalized" in t
    assert "ln_final.hook_norm" not in t
    assert t.get("hook_embed") is t["embed"]


def halved(*args):
    """A core that shows in the logits."""
    return fused_attention(*args) / 2


@pytest.mark.parametrize("own", [halved, explicit_attention])
def test_the_core_is_the_explicit_one_to_the_bit_where_it_must_be_and_else_the_models(model, idx, own, distance):
    outputs = {}
    for core in (halved, explicit_attention):
        for block in model.h:
            block.attn.core = core
        outputs[core] = model(idx).detach()
    assert distance(*outputs.values()) > 0.1
    for block in model.h:
        block.attn.core = own
    for names, core in [("*", explicit_attention), ("*.z", own), ("*.q", own), ("*.pattern", explicit_attention)]:
        with trace(model, names) as t:
            assert torch.equal(model(idx), outputs[core])
        assert t.attention == ("explicit" if core is explicit_attention else "fused")
        assert all(block.attn.core is own for block in model.h)


def test_an_edit_inside_the_core_shows_in_the_trace(model, idx):
    with edit(model, knockout(0, 1, query=3, key=2)), trace(model, "logits") as t:
        model(idx)
    assert t.attention == "explicit"


def test_only_the_layers_that_are_asked_for_are_computed_in_the_open(model, idx):
    seen = []
    for layer, block in enumerate(model.h):
        block.attn.core = lambda *args, layer=layer: seen.append(layer) or fused_attention(*args)
    with trace(model, "blocks.1.attn.pattern"):
        model(idx)
    assert seen == [0, 2]


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("names", ["*", ["*.attn.pattern", "logits"], "blocks.2.attn.head_out"])
def test_the_plan_is_the_traces_bytes_exactly(model, idx, dtype, names, traced):
    t = traced(model, idx, names, dtype=dtype)
    planned = plan(CONFIG, B, T, names, dtype or torch.float32)
    assert planned.total == t.nbytes > 0
    stored = [name for name in t.names if not name.endswith("head_out")]
    assert planned.nbytes == {name: t[name].nbytes for name in stored}
    # and that is the memory that is held, too
    assert planned.total == sum(t[name].untyped_storage().nbytes() for name in stored)


def test_the_plan_of_gpt2_small_by_hand():
    """Analysis by hand, at 16 tokens: B T C, B T 4C, B H T T, B T V, 12 layers, 4 bytes."""
    gpt2 = GPTConfig()
    stream, pattern = 16 * 768, 12 * 16 * 16
    layer = 3 * stream + 2 * 16 + 2 * stream + 4 * stream + 2 * pattern + 2 * stream + 2 * 4 * stream
    assert plan(gpt2, 1, 16).total == 4 * (2 * stream + 12 * layer + 16 + stream + 16 * 50257)
    lines = str(plan(gpt2, 1, 16)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].endswith(f"{plan(gpt2, 1, 16).total:,}")


def test_what_is_recorded_is_a_copy_that_no_later_step_changes(model, idx):
    cache = KVCache(CONFIG, B)
    with torch.no_grad(), trace(model) as t:
        logits = model(idx, cache)
    kept = {name: tensor.clone() for name, tensor in t.items()}
    logits.zero_()
    cache.k.zero_()
    cache.v.zero_()
    for name, tensor in t.items():
        assert torch.equal(tensor, kept[name]), name


def test_positions_dtype_and_device(model, idx, distance, traced):
    whole = traced(model, idx)
    for positions, kept in [(3, [3]), (-1, [10]), ([7, 2], [2, 7]), (slice(4, None, 3), [4, 7, 10])]:
        t = traced(model, idx, positions=positions, dtype=torch.float64, device="cpu")
        for name in POINTS:
            assert t.positions(name) == kept
            assert distance(t[name], whole[name].double()[..., kept, :]) < 1e-5
            assert t[name].dtype == torch.float64
    on_meta = traced(model, idx, "embed", device="meta")
    assert on_meta["embed"].is_meta


def test_the_file_holds_the_arrays(model, idx, tmp_path, traced):
    t = traced(model, idx, ["*.pattern", "*.head_out", "logits"], positions=[2, 5])
    t.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as archive:
        about = json.loads(str(archive["about"]))
        names = set(archive.files) - {"about"}
        assert names == {name for name in t.names if not name.endswith("head_out")}
        for name in names:
            assert np.array_equal(archive[name], t[name].numpy())
            assert about["positions"][name] == [2, 5]
    assert about["attention"] == "explicit"
    assert GPTConfig(**about["config"]) == CONFIG
    halved = traced(model, idx, "logits", dtype=torch.bfloat16)
    halved.save(str(tmp_path / "half.npz"))
    with np.load(tmp_path / "half.npz") as archive:
        assert np.array_equal(archive["logits"], halved["logits"].float().numpy())


@pytest.mark.parametrize("name", EDITABLE)
def test_gradients_reach_every_point(model, idx, name, logits_of):
    """Against the central difference along a direction, made by patches, in float64."""
    model.double()
    direction = torch.randn(taps.shape(name, CONFIG, B, T, T), dtype=torch.float64)
    weights = torch.randn(B, T, V, dtype=torch.float64)
    with trace(model, name, grad=True) as t:
        total = (model(idx) * weights).sum()
    (gradient,) = torch.autograd.grad(total, t[name])
    step = 1e-6
    ends = [logits_of(model, idx, patch(name, t[name].detach() + sign * step * direction)) for sign in (1, -1)]
    found = float(((ends[0] - ends[1]) / (2 * step) * weights).sum())
    assert float((gradient * direction).sum()) == pytest.approx(found, rel=1e-5)


def test_without_grad_nothing_holds_on_to_the_graph(model, idx):
    with trace(model) as t:
        model(idx)
    assert not any(tensor.requires_grad for tensor in t.values())
    with torch.inference_mode(), trace(model) as t:
        model(idx)
    assert not any(tensor.is_inference() for tensor in t.values())


# --- identities


def test_the_identities_of_attention(model, idx, distance, traced):
    t = traced(model, idx)
    for layer in range(L):
        pattern, v = t[f"blocks.{layer}.attn.pattern"], t[f"blocks.{layer}.attn.v"]
        assert (pattern.sum(-1) - 1).abs().max() < 1e-6
        assert pattern.triu(1).count_nonzero() == 0
        assert torch.equal(pattern[:, :, 0, 0], torch.ones(B, H))
        assert torch.equal(t[f"blocks.{layer}.attn.scores"].softmax(-1), pattern)
        assert distance(pattern @ v, t[f"blocks.{layer}.attn.z"]) < 1e-6
        bias = model.h[layer].attn.c_proj.bias.detach()
        assert distance(t[f"blocks.{layer}.attn.head_out"].sum(1) + bias, t[f"blocks.{layer}.attn.out"]) < 1e-5


def test_the_identities_of_the_residual_stream(model, idx, traced):
    t = traced(model, idx)
    stream = t["embed"] + t["pos_embed"]
    for layer in range(L):
        assert torch.equal(t[f"blocks.{layer}.resid_pre"], stream)
        stream = stream + t[f"blocks.{layer}.attn.out"]
        assert torch.equal(t[f"blocks.{layer}.resid_mid"], stream)
        stream = stream + t[f"blocks.{layer}.mlp.out"]
        assert torch.equal(t[f"blocks.{layer}.resid_post"], stream)
    with torch.no_grad():
        assert torch.equal(t["logits"], model.lm_head(model.ln_f(stream)))


# --- several passes


@pytest.mark.parametrize("cut", [[1] * T, [4, 7], [7, 1, 3]])
def test_any_way_of_cutting_gives_the_same_trace(model, idx, cut, distance, traced):
    whole, cache = traced(model.double(), idx), KVCache(CONFIG, B, dtype=torch.float64)
    with torch.no_grad(), trace(model) as t:
        for part in idx.split(cut, dim=1):
            model(part, cache)
    assert t.names == POINTS
    for name in POINTS:
        assert distance(t[name], whole[name]) < 1e-11, name
        assert t.positions(name) == list(range(T))
    assert t.nbytes == whole.nbytes


def test_a_pass_replaces_what_was_recorded_from_its_first_position_on(model, idx, distance, traced):
    changed = idx.clone()
    changed[:, 6:] = (idx[:, 6:] + 1) % V
    whole, cache = traced(model.double(), changed), KVCache(CONFIG, B, dtype=torch.float64)
    with torch.no_grad(), trace(model) as t:
        model(idx, cache)
        cache.rollback(T - 6)
        model(changed[:, 6:], cache)
        for name in POINTS:
            assert distance(t[name], whole[name]) < 1e-11, name
        model(idx[:1, :3])  # from position 0 on: that is everything, and the batch may be another
    short = traced(model, idx[:1, :3])
    for name in POINTS:
        assert torch.equal(t[name], short[name])


def test_a_trace_that_is_opened_late_says_which_positions_it_has(model, idx, distance, traced):
    whole, cache = traced(model.double(), idx), KVCache(CONFIG, B, dtype=torch.float64)
    with torch.no_grad():
        model(idx[:, :5], cache)
        with trace(model) as t:
            model(idx[:, 5:], cache)
    for name in POINTS:
        first = 0 if name.endswith((".k", ".v")) else 5
        assert t.positions(name) == list(range(first, T))
        assert distance(t[name], whole[name][..., first:, :]) < 1e-11


def test_generation_with_a_cache_is_traced(model, distance, as_it_was, traced):
    model.double()
    with trace(model) as t:
        out = minigpt.generate(model, [[3, 1, 4, 1]], max_new_tokens=5, strategy="greedy")
    (ids,) = out.sequences
    whole = traced(model, torch.tensor([ids[:-1]]))  # the last token is chosen, and never fed
    for name in POINTS:
        first = 3 if name == "logits" else 0  # only the logits of what comes next are computed
        assert t.positions(name) == list(range(first, 8))
        assert distance(t[name], whole[name][..., first:, :]) < 1e-11
    as_it_was(model)


def test_the_trunk_alone_is_traced_and_calls_by_hand_are_not(model, idx, distance, traced):
    whole = traced(model, idx)
    with torch.no_grad(), trace(model) as t:
        hidden = model.trunk(idx)
        model.lm_head(model.ln_f(torch.randn(B, T, C)))  # a logit lens, for example
        model.wpe(torch.arange(2))
        model.wte(idx[:, :2])
        model.h[1].mlp(torch.randn(B, T, C))
    assert t.names == [name for name in POINTS if name != "logits"]
    for name in t:
        assert torch.equal(t[name], whole[name])
    with torch.no_grad(), trace(model, "logits") as t:
        hidden = model.trunk(idx[:1])
        model.lm_head(hidden[0, -1])
        assert t.positions("logits") == [10]
        assert distance(t["logits"], whole["logits"][:1, 10:]) < 1e-5
        model(idx)
        model.lm_head(model.trunk(idx)[:, -2:])  # the logits of the pass before are not this one's
        assert t.positions("logits") == [9, 10]
        model.trunk(idx)
        assert "logits" not in t
    with pytest.raises(PointError, match="no pass computed it"):
        traced(model, idx, "logits", positions=12)["logits"]


@pytest.mark.parametrize("context", [trace, lambda model: edit(model, ablate("0.1"))])
def test_rows_of_different_lengths_are_refused(model, context, as_it_was):
    with pytest.raises(InputError, match="different positions"), context(model):
        minigpt.generate(model, [[1, 2, 3], [4, 5]], max_new_tokens=3, strategy="greedy")
    as_it_was(model)


# --- several threads, several blocks


def elsewhere(call):
    """What a call gives in a thread of its own, which is over when this returns."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("block", [trace, lambda model: edit(model, ablate("0.1"), knockout(1, 2, 5, 3))])
@pytest.mark.parametrize("prompts", [[[3, 1, 4]], [[1, 5], [9, 2, 6]]])  # rows of several lengths cannot be traced
def test_a_block_leaves_the_passes_of_other_threads_alone(model, idx, block, prompts, as_it_was):
    """Even those that run in the middle of a pass of its own."""
    alone = minigpt.generate(model, prompts, max_new_tokens=7, strategy="greedy")
    with block(model):
        expected = model(idx)
    others = []

    def interrupt(*_):
        if threading.current_thread() is threading.main_thread():
            others.append(elsewhere(lambda: minigpt.generate(model, prompts, max_new_tokens=7, strategy="greedy")))

    inside = [model.wpe, model.h[1], model.h[1].attn, model.h[2].mlp, model.ln_f]
    with contextlib.ExitStack() as stack:
        for module in inside:
            stack.callback(module.register_forward_pre_hook(interrupt).remove)
        with block(model) as t:
            torch.testing.assert_close(model(idx), expected)
    assert [other.sequences for other in others] == [alone.sequences] * len(inside)
    if t is not None:
        assert t.names == POINTS
        assert t["embed"].shape == (B, T, C)
    as_it_was(model)


def test_threads_have_blocks_of_their_own_which_may_end_in_any_order(model, idx, as_it_was):
    without = {}
    with torch.no_grad():
        for part in ("0.1", "1.mlp", "2.attn"):
            with edit(model, ablate(part)):
                without[part] = model(idx)
    steps = threading.Barrier(len(without), timeout=60)

    @torch.no_grad()
    def study(part, last):
        with edit(model, ablate(part)), trace(model, "logits") as t:
            steps.wait()  # all are open
            for _ in range(last):
                torch.testing.assert_close(model(idx), without[part])
                steps.wait()  # those that were to end have ended
            torch.testing.assert_close(model(idx), without[part])
        for _ in range(last, 2):
            steps.wait()
        return t["logits"]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(study, without, [0, 2, 1]))
    for part, logits in zip(without, found, strict=True):
        torch.testing.assert_close(logits, without[part])
    as_it_was(model)


def test_a_block_hears_nothing_of_other_threads_and_says_so(model, idx):
    said = "no pass .* inside the `with`\\n.*in the same thread"
    with trace(model) as t:
        elsewhere(lambda: model(idx))
    with pytest.raises(PointError, match=said):
        t["embed"]
    with pytest.raises(InputError, match=said), edit(model, ablate("0.1")):
        elsewhere(lambda: model(idx))


def test_an_edit_may_begin_and_end_between_two_steps_of_generate(model, as_it_was):
    """The passes inside the block are edited, those before and after are not."""
    plain = minigpt.generate(model, [[3, 1, 4]], max_new_tokens=9, strategy="greedy")
    only_7 = torch.full((V,), -99.0)
    only_7[7] = 99.0
    stack, steps = contextlib.ExitStack(), []

    def watch(step):
        steps.append(step)
        if len(steps) == 3:
            stack.enter_context(edit(model, patch("logits", only_7.expand(1, 13, V), at=[5, 6])))
        if len(steps) == 5:
            stack.close()

    out = minigpt.generate(model, [[3, 1, 4]], max_new_tokens=9, strategy="greedy", on_step=watch)
    assert out.sequences[0][:6] == plain.sequences[0][:6]
    assert out.sequences[0][6:8] == [7, 7]
    again = minigpt.generate(model, [out.sequences[0][:8]], max_new_tokens=4, strategy="greedy")
    assert again.sequences == out.sequences
    as_it_was(model)


def test_beams_are_refused(model, as_it_was):
    with pytest.raises(InputError, match="the rows of the batch changed"), trace(model):
        minigpt.generate(model, [[1, 2, 3]], max_new_tokens=3, num_beams=3, strategy="beam")
    as_it_was(model)


# --- edits, point by point


def replacing(name, value, places, head=None):
    """For `by_hand`: the same change that a patch makes."""

    def change(at, x):
        if at == name:
            x = x.clone()
            index = (..., places, slice(None)) if head is None else (slice(None), head, places)
            x[index] = value.double()[index]
        return x

    return change


@pytest.mark.parametrize("name", EDITABLE)
def test_an_edit_of_any_point_does_what_the_pass_by_hand_does(model, idx, name, by_hand, distance, as_it_was):
    model.double()
    plain = by_hand(model, idx)
    value = torch.randn(plain[name].shape, dtype=torch.float64)
    if name.endswith((".scores", ".pattern")):
        value = value.tril().softmax(-1).tril() + value.triu(1) * 0
    if name.endswith(".scores"):
        value = value.masked_fill(plain[name] == -math.inf, -math.inf)
    for head in [None, 3] if "H" in taps.tap(name).shape else [None]:
        expected = by_hand(model, idx, replacing(name, value, [2, 6], head))
        with torch.no_grad(), edit(model, patch(name, value, at=[6, 2], head=head)), trace(model) as t:
            logits = model(idx)
        assert distance(logits, plain["logits"]) > 1e-3  # something happened
        assert distance(logits, expected["logits"]) < 1e-9
        for point in POINTS:
            assert distance(t[point], expected[point]) < 1e-9, point
    as_it_was(model)


@pytest.mark.parametrize("name", EDITABLE)
def test_patching_a_pass_with_itself_changes_nothing_to_the_bit(model, idx, name, logits_of, traced):
    t = traced(model, idx, [name, "logits"])
    assert torch.equal(logits_of(model, idx, patch(name, t)), t["logits"])


def test_an_edit_changes_nothing_in_place(model, idx, traced):
    """Neither the cache, nor a tensor that an earlier point shares, nor the trace that the values come from."""
    source, plain = traced(model, (idx + 1) % V), traced(model, idx, "blocks.0.resid_post")["blocks.0.resid_post"]
    kept = {name: tensor.clone() for name, tensor in source.items()}
    caches = [KVCache(CONFIG, B), KVCache(CONFIG, B)]
    with torch.no_grad():
        model(idx, caches[0])
        with edit(model, *[patch(f"blocks.1.attn.{letter}", source, at=[4], head=2) for letter in "kv"]):
            model(idx, caches[1])
    assert torch.equal(caches[1].k[1], caches[0].k[1])
    assert torch.equal(caches[1].v[1], caches[0].v[1])
    recording = trace(model, "blocks.0.resid_post", grad=True)  # the very tensor that block 1 is given
    with torch.no_grad(), edit(model, patch("blocks.1.resid_pre", source)), recording as t:
        model(idx)
    assert torch.equal(t["blocks.0.resid_post"], plain)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in source.items())


@pytest.mark.parametrize("name", EDITABLE)
def test_no_edit_changes_an_earlier_position(model, idx, name, logits_of, traced):
    value = 2 * traced(model, (idx + 1) % V, name)[name]
    plain = traced(model, idx, [name, "logits"])["logits"]
    logits = logits_of(model, idx, patch(name, value, at=7))
    assert torch.equal(logits[:, :7], plain[:, :7])
    assert not torch.equal(logits[:, 7:], plain[:, 7:])


def test_an_edit_of_scores_never_shows_the_future(model, idx, distance):
    """Zeroed scores make all visible keys alike, and only those: the mask comes again."""
    with torch.no_grad(), edit(model, ablate("blocks.1.attn.scores")), trace(model) as t:
        model(idx)
    expected = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    assert distance(t["blocks.1.attn.pattern"], expected.expand(B, H, T, T)) < 1e-6


def test_a_patch_of_the_whole_stream_gives_the_other_prompts_logits_to_the_bit(model, idx, logits_of, traced):
    other = (idx + 5) % V
    expected = model(other).detach()
    for name in [name for name in POINTS if "resid" in name and "mid" not in name] + ["ln_f.out"]:
        assert torch.equal(logits_of(model, idx, patch(name, traced(model, other, name))), expected)


def test_a_pattern_that_looks_only_at_itself_mixes_nothing(model, idx, traced):
    with torch.no_grad(), edit(model, patch("blocks.1.attn.pattern", torch.eye(T).expand(1, H, T, T))):
        t = traced(model, idx)
    assert torch.equal(t["blocks.1.attn.z"], t["blocks.1.attn.v"])


# --- how edits and traces go together


def test_edits_compose_in_order_and_the_inner_block_comes_last(model, idx, as_it_was, logits_of, traced):
    name = "blocks.1.resid_pre"
    a, b = (patch(name, traced(model, (idx + n) % V)) for n in (1, 2))
    only_b = logits_of(model, idx, b)
    assert torch.equal(logits_of(model, idx, a, b), only_b)
    assert not torch.equal(logits_of(model, idx, b, a), only_b)
    with torch.no_grad(), edit(model, a):
        with edit(model, b):
            assert torch.equal(model(idx), only_b)
        inside = model(idx)
    assert torch.equal(inside, logits_of(model, idx, a))
    as_it_was(model)


def test_a_trace_shows_what_the_model_used_inside_and_outside_of_an_edit(model, idx):
    def found(*contexts):
        with torch.no_grad(), contexts[0] as first, contexts[1] as second:
            logits = model(idx)
        t = first or second
        assert torch.equal(t["logits"], logits)
        return t

    edited = ablate("1.mlp", at=slice(2, 9))
    inner, outer = found(edit(model, edited), trace(model)), found(trace(model), edit(model, edited))
    assert inner["blocks.1.mlp.out"][:, 2:9].count_nonzero() == 0
    for name in POINTS:
        assert torch.equal(inner[name], outer[name])


def test_each_block_takes_away_only_its_own(model, idx, distance, as_it_was, traced):
    plain = traced(model, idx)["logits"]
    first, second = trace(model), edit(model, ablate("0.0"))
    t = first.__enter__()
    second.__enter__()
    with torch.no_grad():
        edited = model(idx)
        first.__exit__(None, None, None)  # not in the order in which they were opened
        assert distance(model(idx), edited) < 1e-5
    second.__exit__(None, None, None)
    assert not torch.equal(edited, plain)
    assert torch.equal(t["logits"], edited)
    as_it_was(model)


def test_nothing_is_left_after_an_exception(model, idx, as_it_was):
    before = model(idx)
    with pytest.raises(ZeroDivisionError), trace(model), edit(model, ablate("0.0")):  # and not: it touched nothing
        1 / 0  # noqa: B018
    as_it_was(model)
    with pytest.raises(InputError, match="block_size"), trace(model), edit(model, ablate("0.0")):
        model(torch.zeros(1, 14, dtype=torch.int64))
    as_it_was(model)
    assert torch.equal(model(idx), before)


def test_a_failed_pass_leaves_the_next_one_whole(model, idx, traced):
    def fail(*_):
        raise RuntimeError("mine")

    with torch.no_grad(), trace(model) as t:
        hook = model.h[1].mlp.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="mine"):
            model(idx)
        hook.remove()
        model(idx)
    whole = traced(model, idx)
    assert t.names == POINTS
    assert all(torch.equal(t[name], whole[name]) for name in POINTS)


def test_a_trace_changes_nothing(model, idx, as_it_was):
    before, keys = model(idx), list(model.state_dict())
    with trace(model, [name for name in POINTS if "scores" not in name and "pattern" not in name]):
        assert torch.equal(model(idx), before)
    with trace(model):
        model(idx)
    assert torch.equal(model(idx), before)
    assert list(model.state_dict()) == keys
    as_it_was(model)


COMPILED = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": lambda model: [model.compile(backend="eager"), model][1],
    "called by what is compiled": lambda model: torch.compile(lambda idx: model(idx), backend="eager"),
}


@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.parametrize("called", ["called before", "never called before"])
def test_of_a_compiled_model_all_is_seen_and_changed(model, idx, kind, called, as_it_was):
    with torch.no_grad(), trace(model) as plain, edit(model, ablate("1.2")):
        model(idx)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = COMPILED[kind](model)
    looked_at = compiled if kind == "compiled" else model
    with torch.no_grad():
        before = compiled(idx) if called == "called before" else None
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        with trace(looked_at) as t, edit(looked_at, ablate("1.2")):
            compiled(idx)
        assert t.model is model
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        after = compiled(idx)
    assert before is None or (torch.equal(after, before) and graphs > 0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # outside, it computes compiled
    assert t.names == plain.names == POINTS
    assert all(torch.equal(t[name], plain[name]) for name in POINTS)
    as_it_was(model)


def test_nothing_computes_compiled_until_the_last_of_several_threads_has_left(model, idx):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(idx)
        first = trace(compiled)
        first.__enter__()
        opened, closed = threading.Event(), threading.Event()
        seen = []

        def look():
            with torch.no_grad(), trace(compiled) as t:
                opened.set()
                assert closed.wait(60)
                compiled(idx)
            seen.extend(t.names)

        thread = threading.Thread(target=look)
        thread.start()
        assert opened.wait(60)
        first.__exit__(None, None, None)
        closed.set()
        thread.join()
    assert seen == POINTS


def test_the_first_compilation_of_a_process_does_not_go_inside(model, idx, monkeypatch, as_it_was):
    torch._dynamo.reset()
    monkeypatch.setattr("minigpt.analysis.tracing.sys", types.SimpleNamespace(modules={}))  # nothing is compiled yet
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), trace(model) as t:
        with pytest.raises(InputError, match=r"before the `with`"):
            compiled(idx)
        model(idx)
    assert t.names == POINTS
    as_it_was(model)


def test_training_mode(model, idx, as_it_was):
    model.train()
    with pytest.warns(UserWarning, match="dropout"), trace(model) as t:
        model(idx)
    assert "logits" in t
    with pytest.raises(InputError, match="training mode"), edit(model, ablate("0.1")):
        pass
    as_it_was(model)


# --- edits while generating


@pytest.mark.parametrize(
    "edits",
    [
        [ablate("1.2")],
        [ablate("0.mlp", at=[2, 5])],
        [ablate("blocks.1.attn.k", at=3)],
        [knockout(1, 3, query=5, key=2), knockout(1, 3, query=6, key=0)],
        [patch("blocks.2.resid_mid", torch.linspace(-1, 1, 12 * C).view(1, 12, C), at=slice(2, None))],
        [patch("logits", torch.eye(V)[None, :12] * 9, at=slice(3, 6))],
    ],
)
def test_greedy_decoding_under_an_edit_equals_a_loop_without_a_cache(model, edits, as_it_was):
    prompt = [3, 1, 4, 1]
    with edit(model, *edits):
        (found,) = minigpt.generate(model, [prompt], max_new_tokens=6, strategy="greedy").sequences
    expected = list(prompt)
    with torch.no_grad(), edit(model, *edits):
        for _ in range(6):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert found == expected
    as_it_was(model)


def test_positions_from_the_end_mean_nothing_while_a_cache_continues(model):
    for edited in (ablate("0.1", at=-1), ablate("0.1", at=slice(-2, None)), knockout(0, 1, 3, -1)):
        with pytest.raises(InputError, match="from the end"), edit(model, edited):
            minigpt.generate(model, [[1, 2, 3]], max_new_tokens=3, strategy="greedy")
    with pytest.raises(InputError, match="from the end"), trace(model, positions=-1):
        minigpt.generate(model, [[1, 2, 3]], max_new_tokens=3, strategy="greedy")
    with edit(model, ablate("0.1", at=-1)):  # without a cache, every pass has an end
        minigpt.generate(model, [[1, 2, 3]], max_new_tokens=3, strategy="greedy", use_cache=False)


# --- bad input


def test_bad_traces_say_so_in_two_lines(model, idx, tmp_path, traced):
    def error_of(function):
        with pytest.raises(MiniGPTError) as caught:
            function()
        assert len(str(caught.value).splitlines()) == 2
        return str(caught.value)

    t = traced(model, idx, "blocks.0.*")
    assert "blocks.1.attn.z" in error_of(lambda: t["blocks.1.attn.z"])
    assert "was not recorded" in error_of(lambda: t["blocks.1.attn.head_out"])
    assert "did you mean blocks.0.attn.q" in error_of(lambda: t["blocks.0.atn.q"])
    with trace(model) as empty:
        pass
    assert "no pass" in error_of(lambda: empty["logits"])
    assert "logits" not in empty
    assert "no point 'nothing'" in error_of(lambda: traced(model, idx, "nothing"))
    assert "grad=True" in error_of(lambda: traced(model, idx, grad=True, positions=3))
    assert "no position 13" in error_of(lambda: traced(model, idx, positions=13))
    assert "a Linear has none" in error_of(lambda: traced(torch.nn.Linear(2, 3), idx))
    assert "block_size = 13" in error_of(lambda: plan(CONFIG, 1, 14))
    assert "batch_size = 0" in error_of(lambda: plan(CONFIG, 0, 5))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        t.save(tmp_path / "file" / "t.npz")


# --- a trained model


@pytest.mark.shared
def test_the_tensors_of_a_trained_model_come_out_of_the_taps(distance, traced):
    if not (GOLDEN and GOLDEN.is_dir()):
        pytest.skip("needs MINIGPT_GOLDEN to name the folder with nano_sort_golden.npz")
    with np.load(GOLDEN / "nano_sort_golden.npz") as archive:
        tensors = {name: torch.from_numpy(archive[name]) for name in archive.files}
    model = empty_model(
        GPTConfig(vocab_size=3, block_size=11, n_layer=3, n_head=3, n_embd=48, tie_weights=False)
    ).eval()
    weights = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("w:")}
    fill(transformers_views(model, conv1d=False), stored_tensors(weights, GOLDEN), GOLDEN, "")
    t = traced(model, tensors["p:idx"].long())
    names = {
        "tok_emb": "embed", "pos_emb": "pos_embed", "x": "blocks.0.resid_pre", "ln1": "blocks.0.ln_1.out",
        "q": "blocks.0.attn.q", "k": "blocks.0.attn.k", "v": "blocks.0.attn.v", "att": "blocks.0.attn.scores",
        "attSm": "blocks.0.attn.pattern", "yProj": "blocks.0.attn.out", "attnResid": "blocks.0.resid_mid",
        "ln2": "blocks.0.ln_2.out", "fc": "blocks.0.mlp.pre", "gelu": "blocks.0.mlp.post", "mlp": "blocks.0.mlp.out",
        "mlpResid": "blocks.0.resid_post", "block0": "blocks.1.resid_pre", "block1": "blocks.2.resid_pre",
        "block2": "blocks.2.resid_post", "ln_f": "ln_f.out", "lm_head": "logits",
    }  # fmt: skip
    found = {key: t[name] for key, name in names.items()}
    found["y"] = t["blocks.0.attn.z"].transpose(1, 2).flatten(2)
    found["probs"] = t["logits"].softmax(-1)
    assert {f"p:{key}" for key in found} | {"p:idx", "p:qkv"} == {name for name in tensors if name.startswith("p:")}
    for key, tensor in found.items():
        expected = tensors[f"p:{key}"]
        assert distance(tensor.reshape(expected.shape), expected) < 1e-5, key
