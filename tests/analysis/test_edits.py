"""Each kind of edit against what it says it does, its JSON form, and what cannot be done."""

import copy
import itertools
import math

import pytest
import torch

import minigpt
from minigpt.analysis.edits import ablate, knockout, patch
from minigpt.analysis.taps import PointError, points
from minigpt.analysis.tracing import edit, trace
from minigpt.config import GPTConfig
from minigpt.errors import InputError

CONFIG = GPTConfig(vocab_size=19, block_size=13, n_layer=3, n_head=5, n_embd=35)
B, T, L, H, D, C, V = 2, 11, 3, 5, 7, 35, 19
POINTS = points(CONFIG)


# --- ablate


def test_a_head_without_contribution_is_a_head_without_weights(model, idx, distance, logits_of):
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.h[2].attn.c_proj.weight[:, 3 * D : 4 * D] = 0
        assert distance(logits_of(model, idx, ablate("2.3")), without(idx)) < 1e-5


def test_without_any_contribution_the_head_reads_the_embeddings(model, idx, logits_of):
    edits = [ablate(f"{layer}.{part}") for layer in range(L) for part in ("attn", "mlp")]
    with torch.no_grad():
        embedded = model.wte(idx) + model.wpe(torch.arange(T))
        assert torch.equal(logits_of(model, idx, *edits), model.lm_head(model.ln_f(embedded)))


@pytest.mark.parametrize(
    "what", ["1.2", "0.mlp", "2.attn", "blocks.1.attn.pattern", "embed", "blocks.2.hook_resid_mid"]
)
def test_the_mean_over_copies_changes_nothing(model, idx, what, traced):
    """Copies that are made after the pass: rows of one batch, though alike, may be rounded differently."""
    plain, point = traced(model, idx[:1]), ablate(what).point
    copies = plain[point].expand(3, *plain[point].shape[1:])
    with torch.no_grad(), trace(model), edit(model, ablate(what, "mean", copies)):
        assert torch.equal(model(idx[:1]), plain["logits"])


def test_the_mean_is_over_rows_and_for_each_position(model, idx, distance, traced):
    reference = traced(model, torch.randint(V, (7, T)))
    with torch.no_grad(), edit(model, ablate("1.2", "mean", reference, at=slice(3, 8))):
        t = traced(model, idx)
    z, mean = t["blocks.1.attn.z"], reference["blocks.1.attn.z"].mean(0)
    for b, place in itertools.product(range(B), range(3, 8)):
        assert distance(z[b, 2, place], mean[2, place]) < 1e-6
    plain = traced(model, idx)["blocks.1.attn.z"]
    assert torch.equal(z[:, :, :3], plain[:, :, :3])
    assert torch.equal(z[:, [0, 1, 3, 4]], plain[:, [0, 1, 3, 4]])


def test_resample_takes_other_rows_and_the_same_ones_for_a_seed(model, traced):
    batch = torch.randint(V, (5, T), generator=torch.Generator().manual_seed(1))
    reference, drawn = traced(model, batch), set()
    for seed in range(6):
        with torch.no_grad(), edit(model, ablate("0.mlp", "resample", reference, seed=seed)):
            t, again = (traced(model, batch, ["blocks.0.mlp.out", "logits"]) for _ in range(2))
        rows = []
        for row in t["blocks.0.mlp.out"]:
            (found,) = [n for n in range(5) if torch.equal(reference["blocks.0.mlp.out"][n], row)]
            rows.append(found)
        assert all(found != row for row, found in enumerate(rows))
        assert torch.equal(again["logits"], t["logits"])
        drawn.add(tuple(rows))
    assert len(drawn) > 3


def test_resample_follows_no_rows_that_come_or_go(model, traced, as_it_was):
    """A row that ends would leave its number, and so its draw, to the next one."""
    reference = traced(model, torch.randint(V, (7, 13), generator=torch.Generator().manual_seed(1)), "*.mlp.out")
    edited, prompts = ablate("1.mlp", "resample", reference, seed=3), [[3, 1, 4], [1, 5, 9], [2, 6, 5]]

    def written(**options):
        with edit(model, edited):
            return minigpt.generate(model, prompts, max_new_tokens=9, **options).sequences

    rows = [set(row[3:]) for row in written(strategy="greedy")]
    some = set.union(*rows) - set.intersection(*rows)  # tokens with which some rows end, and others do not
    with pytest.raises(InputError, match=r"their number changed from 3 to [12]"):
        written(strategy="greedy", eos_token_id=min(some))
    with pytest.raises(InputError, match="their number changed from 3 to 6"):
        written(strategy="beam", num_beams=2)
    as_it_was(model)


# --- knockout


@pytest.mark.parametrize(("query", "key"), [(6, 2), (10, 10), (-1, 0), (-3, -4)])
def test_a_knockout_is_a_softmax_without_that_key(model, idx, query, key, by_hand, distance):
    model.double()
    row, column = query % T, key % T

    def change(name, x):
        if name == "blocks.1.attn.scores":
            x[:, 3, row, column] = -math.inf
        return x

    expected = by_hand(model, idx, change)
    with torch.no_grad(), edit(model, knockout(1, 3, query, key)), trace(model) as t:
        model(idx)
    for name in POINTS:
        assert distance(t[name], expected[name]) < 1e-10, name
    assert t["blocks.1.attn.pattern"][:, 3, row, column].count_nonzero() == 0


def test_a_query_keeps_at_least_one_key(model, idx, as_it_was, logits_of):
    with pytest.raises(InputError, match="query 0"):
        knockout(0, 0, query=0, key=0)
    with pytest.raises(InputError, match="leaves query 2 of head 1 without any key"):
        logits_of(model, idx, *[knockout(0, 1, query=2, key=key) for key in range(3)])
    with pytest.raises(InputError, match="query 0 of head 4"):
        logits_of(model, idx, knockout(0, 4, query=-T, key=0))
    with pytest.raises(InputError, match="query 2 does not see key 3"):
        logits_of(model, idx, knockout(0, 1, query=2, key=3))
    as_it_was(model)


# --- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: ablate("0.5"), "no head 5: the model has 5"),
        (lambda t: ablate("3.0"), "3 layers"),
        (lambda t: ablate("0.mpl"), "no point '0.mpl'"),
        (lambda t: ablate("blocks.0.mlp.uot"), "no point 'blocks.0.mlp.uot'\ndid you mean blocks.0.mlp.out"),
        (lambda t: ablate("2.mpl"), "no point '2.mpl'\ndid you mean 2.mlp"),
        (lambda t: ablate("head 1"), "no point 'head 1'\nhead 1 of layer 0 is \"0.1\""),
        (lambda t: ablate(0.1), 'what = 0.1 names no part\n.* head 1 of layer 0 is "0.1"'),
        (lambda t: "0.1", "'0.1' is no edit\nmake one of it: edit.model, ablate"),
        (lambda t: ablate("0.0", "median"), "mode = 'median' is not a choice"),
        (lambda t: ablate("0.0", "mean"), "do not match"),
        (lambda t: ablate("0.0", "zero", t), "do not match"),
        (lambda t: ablate("0.0", "resample", t["blocks.0.attn.z"][:1]), "1 row"),
        (lambda t: ablate("pos_embed", "mean", t), "same for every row"),
        (lambda t: ablate("0.0", "resample", t, seed=2**63), "seed must be a whole number"),
        (lambda t: ablate("0.0", at=13), "no position 13"),
        (lambda t: ablate("0.0", at=-14), "no position -14"),
        (lambda t: ablate("0.0", at=12), "did not touch position 12: .* 0 to 10"),
        (lambda t: ablate("0.0", at=[3, 12]), "did not touch position 12"),
        (lambda t: ablate("0.0", at=-12), "did not touch position -12"),
        (lambda t: ablate("0.0", at=slice(11, None)), "did not touch anything"),
        (lambda t: ablate("0.0", at=[]), "names no positions"),
        (lambda t: ablate("0.0", at="last"), "names no positions"),
        (lambda t: ablate("0.0", at=slice(0, 3, 0)), "names no positions"),
        (lambda t: ablate("0.0", at=1.5), "names no positions"),
        (lambda t: patch("blocks.0.ln_1.scale", t), "cannot be edited"),
        (lambda t: patch("blocks.0.attn.head_out", t), "cannot be edited"),
        (lambda t: patch("embed", t, head=1), "not split into heads"),
        (lambda t: patch("blocks.0.attn.z", t, head=-1), "no head -1"),
        (lambda t: patch("embed", t["embed"][:, :6]), "6 positions, and position 10"),
        (lambda t: patch("embed", torch.zeros(B, 12, C)), "did not touch position 11"),
        (lambda t: patch("embed", t["embed"][..., 1:]), r"\(2, 11, 34\)"),
        (lambda t: patch("embed", torch.zeros(3, T, C)), r"\(3, 11, 35\)"),
        (lambda t: patch("embed", torch.zeros(T, C)), r"\(11, 35\)"),
        (lambda t: patch("blocks.0.attn.z", torch.zeros(B, T, C)), r"\(2, 11, 35\)"),
        (lambda t: patch("blocks.0.attn.pattern", torch.zeros(B, H, T, 9)), r"\(2, 5, 11, 9\)"),
        (lambda t: knockout(0, 7, 3, 1), "no head 7"),
        (lambda t: knockout(4, 0, 3, 1), "3 layers"),
        (lambda t: knockout(0, 0, 3, 13), "no position 13"),
        (lambda t: knockout(0, 0, 12, 1), "did not touch position 12"),
    ],
)
def test_edits_that_cannot_be_done_say_so_in_two_lines(model, idx, make, message, as_it_was, logits_of, traced):
    with pytest.raises(InputError, match=message) as caught:
        logits_of(model, idx, make(traced(model, idx, ["*embed", "blocks.0.*"])))
    assert len(str(caught.value).splitlines()) == 2
    as_it_was(model)


def test_a_reference_must_have_the_positions_from_the_first_on(model, idx, traced):
    with pytest.raises(InputError, match="not all from 0 on"):
        patch("embed", traced(model, idx, positions=[3, 4]))
    with pytest.raises(PointError, match="embed was not recorded"):
        patch("embed", traced(model, idx, "logits"))


@pytest.mark.parametrize(("blocks", "heads", "there"), [
    (1, 1, "there is block 0, head 0 in it"), (1, 3, "there is block 0, heads 0 to 2 in it"),
    (2, 1, "there are blocks 0 to 1, head 0 in each"), (5, 3, "there are blocks 0 to 4, heads 0 to 2 in each"),
])  # fmt: skip
def test_what_there_is_of_blocks_and_heads(blocks, heads, there):
    shape = GPTConfig(vocab_size=3, block_size=5, n_layer=blocks, n_head=heads, n_embd=6)
    for wrong in ("0.7", "9.0"):
        with pytest.raises(InputError) as error:
            ablate(wrong).check(shape)
        assert error.value.how == there
