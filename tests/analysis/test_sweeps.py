"""Sweeps against single edits and models whose weights were changed by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch

from minigpt.analysis.edits import ablate, patch
from minigpt.analysis.sweeps import (
    Sweep,
    ablation_sweep,
    logit_difference,
    loss_of,
    patching_sweep,
    total_effects,
)
from minigpt.analysis.taps import PointError
from minigpt.analysis.tracing import edit
from minigpt.errors import InputError
from minigpt.evaluation.loss import sequence_log_prob

B, T, L, H, D, C, V = 2, 11, 3, 5, 7, 35, 19
METRIC = logit_difference([3, 5], 7)


# --- metrics


def test_a_difference_of_logits():
    logits = torch.randn(B, T, V)
    assert METRIC(logits) == pytest.approx(
        float((logits[0, 10, 3] - logits[0, 10, 7] + logits[1, 10, 5] - logits[1, 10, 7]) / 2), abs=1e-6
    )
    expected = float((logits[0, 4, 2] - logits[0, 4, 11] + logits[1, 4, 2] - logits[1, 4, 13]) / 2)
    assert logit_difference(2, [11, 13], position=4)(logits) == pytest.approx(expected, abs=1e-6)
    for token in (19, -1, 10**30, [18, 19], torch.tensor(19)):
        with pytest.raises(InputError, match="is outside the vocabulary of 19"):
            logit_difference(token, 0)(logits)
    with pytest.raises(InputError, match="3 tokens for 2 rows"):
        logit_difference([1, 2, 3], 0)(logits)
    for position in (11, -12):
        with pytest.raises(InputError, match=f"no position {position}"):
            logit_difference(1, 2, position)(logits)


@pytest.mark.parametrize("token", [1.5, True, None, "a", [1.5], [True], {1, 2}, torch.tensor([0.5]), {1: 2}])
def test_what_is_no_token_is_refused_in_two_lines(token):
    for call in (lambda: logit_difference(token, 2), lambda: logit_difference(2, token)):
        with pytest.raises(InputError, match=r"is no token\ngive one id"):
            call()
    with pytest.raises(InputError, match="position"):
        logit_difference(1, 2, token)
    for ids in (token, [token], [[1, 2, 3], [token]]):
        with pytest.raises(InputError, match=r"are no rows of tokens\n"):
            loss_of(ids)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, "numpy", "scalars"])
def test_whole_numbers_of_every_kind_are_tokens(kind):
    logits = torch.randn(B, T, V)
    given = np.array([3, 5]) if kind == "numpy" else [np.int64(3), torch.tensor(5)] if kind == "scalars" else None
    given = torch.tensor([3, 5], dtype=kind) if given is None else given
    assert logit_difference(given, given[1])(logits) == logit_difference([3, 5], 5)(logits)
    assert loss_of([[0, 3, 5], [given[0], -100, given[1]]])(logits[:, :3]) == pytest.approx(
        -float(logits[:, :2].log_softmax(-1)[[0, 0, 1], [0, 1, 1], [3, 5, 5]].mean()), abs=1e-6
    )


def test_a_loss(model, idx):
    with torch.no_grad():
        found = loss_of(idx)(model(idx))
    assert found == pytest.approx(-sum(sequence_log_prob(model, idx)) / (B * (T - 1)), abs=1e-5)


# --- ablation


def test_a_sweep_over_heads_is_one_model_without_weights_after_the_other(model, idx):
    sweep = ablation_sweep(model, idx, METRIC)
    assert sweep.values.shape == (L, H)
    for layer in range(L):
        for head in range(H):
            without = copy.deepcopy(model)
            with torch.no_grad():
                without.h[layer].attn.c_proj.weight[:, head * D : head * D + D] = 0
                assert float(sweep.values[layer, head]) == pytest.approx(METRIC(without(idx)), abs=1e-5)
    with torch.no_grad():
        assert sweep.baseline == pytest.approx(METRIC(model(idx)), abs=1e-12)
    assert sweep.labels[2] == ["2.0", "2.1", "2.2", "2.3", "2.4"]
    assert [(one.error, one.ok) for one in sweep.checks] == [(0.0, True)]
    effects = dict(sweep.top())
    assert effects["1.3"] == float(sweep.values[1, 3]) - sweep.baseline
    sizes = [abs(value) for value in effects.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sweep.top(4)) == 4


def test_sweeps_over_mlps_and_layers(model, idx, logits_of):
    rows, metric = idx.tolist(), loss_of(idx)
    mlps, layers = (ablation_sweep(model, rows, metric, what=what) for what in ("mlps", "layers"))
    assert mlps.labels == [["0.mlp"], ["1.mlp"], ["2.mlp"]]
    assert layers.labels == [["0.layer"], ["1.layer"], ["2.layer"]]
    for layer in range(L):
        without = copy.deepcopy(model)
        with torch.no_grad():
            for module in (without.h[layer].mlp.c_proj, without.h[layer].attn.c_proj):
                module.weight.zero_()
                module.bias.zero_()
                if module is without.h[layer].mlp.c_proj:
                    assert float(mlps.values[layer]) == pytest.approx(metric(without(idx)), abs=1e-5)
            assert float(layers.values[layer]) == pytest.approx(metric(without(idx)), abs=1e-5)


def test_the_mean_over_copies_changes_nothing_and_other_modes_are_the_edits(model, idx, traced, logits_of):
    copies = idx[:1].expand(3, T)
    metric = logit_difference(2, 4)
    sweep = ablation_sweep(model, copies, metric, "mean", traced(model, copies, ["*.z"]))
    assert sweep.values.allclose(torch.tensor(sweep.baseline).double(), atol=1e-5)
    reference = traced(model, torch.randint(V, (7, T)), ["*.z", "*.out"])
    for mode in ("mean", "resample"):
        for what, name in (("heads", "1.2"), ("mlps", "1.mlp")):
            sweep = ablation_sweep(model, idx, metric, mode, reference, what)
            value = sweep.values[1, 2 if what == "heads" else 0]
            assert float(value) == metric(logits_of(model, idx, ablate(name, mode, reference)))
    with pytest.raises(PointError, match=r"attn\.z was not recorded"):
        ablation_sweep(model, idx, metric, "mean", traced(model, idx, "logits"))


def test_a_seed_says_which_rows_a_sweep_draws(model, idx, traced, logits_of):
    reference, drawn = traced(model, torch.randint(V, (7, T)), ["*.z"]), set()
    for seed in range(5):
        values = ablation_sweep(model, idx, METRIC, "resample", reference, seed=seed).values
        assert float(values[1, 2]) == METRIC(logits_of(model, idx, ablate("1.2", "resample", reference, seed=seed)))
        drawn.add(float(values[1, 2]))
    assert len(drawn) > 2


def test_a_mean_ablated_head_gives_the_mean_of_its_outputs_and_not_of_the_logits(model, idx, traced):
    """What is linear is the way through W_O; the logits are not."""
    reference = traced(model, torch.randint(V, (7, T)))
    mean = reference["blocks.1.attn.head_out"].mean(0)
    with edit(model, ablate("1.2", "mean", reference)):
        t = traced(model, idx)
    assert torch.allclose(t["blocks.1.attn.head_out"][:, 2], mean[2].expand(B, T, C), atol=1e-5)
    singles = []
    for row in range(7):
        with edit(model, ablate("1.2", "mean", reference["blocks.1.attn.z"][row : row + 1])):
            singles.append(traced(model, idx, "logits")["logits"])
    assert not torch.allclose(t["logits"], torch.stack(singles).mean(0), atol=1e-2)


# --- patching


@pytest.mark.parametrize("point", ["resid_pre", "attn.out", "mlp.out"])
def test_patching_positions_one_at_a_time(model, idx, point):
    corrupt = idx.clone()
    corrupt[:, 4] = (idx[:, 4] + 1) % V
    sweep = patching_sweep(model, idx, corrupt, METRIC, point)
    assert sweep.values.shape == (L, T)
    with torch.no_grad():
        assert sweep.clean == METRIC(model(idx))
        assert sweep.baseline == METRIC(model(corrupt))
    effects, share = sweep.effects, sweep.normalised
    assert effects[:, :4].abs().max() < 1e-5  # nothing differs before the changed token
    assert effects[0, 4].abs() > 1e-3
    if point == "resid_pre":
        assert float(share[0, 4]) == pytest.approx(1, abs=1e-4)  # in the embeddings, it is all there is
        assert share[0, 5:].abs().max() < 1e-4
    assert torch.allclose(share, (sweep.values - sweep.baseline) / (sweep.clean - sweep.baseline))
    assert [(one.error, one.ok) for one in sweep.checks] == [(0.0, True)]


def test_patching_the_last_position_before_the_last_layer_by_hand(model, idx, traced):
    """One cell, recomputed module by module: the last block on the corrupt stream with one clean vector in it."""
    corrupt = (idx + 3) % V
    streams = [traced(model, ids, "blocks.2.resid_pre")["blocks.2.resid_pre"] for ids in (idx, corrupt)]
    mixed = streams[1].clone()
    mixed[:, 7] = streams[0][:, 7]
    with torch.no_grad():
        logits = model.lm_head(model.ln_f(model.h[2](mixed, torch.arange(T))))
    sweep = patching_sweep(model, idx, corrupt, METRIC)
    assert float(sweep.values[2, 7]) == pytest.approx(METRIC(logits), abs=1e-5)


def test_patching_heads(model, idx, traced, logits_of):
    corrupt = (idx + 3) % V
    sweep = patching_sweep(model, idx.tolist(), corrupt.tolist(), METRIC, "attn.z")
    assert sweep.values.shape == (L, H)
    clean = traced(model, idx, "*.z")
    for layer, head in [(0, 4), (1, 0), (2, 3)]:
        logits = logits_of(model, corrupt, patch(f"blocks.{layer}.attn.z", clean, head=head))
        assert float(sweep.values[layer, head]) == pytest.approx(METRIC(logits), abs=1e-5)
    assert len(set(sweep.values.flatten().tolist())) == L * H


# --- both


def test_a_sweep_sees_that_its_identity_fails(model, idx):
    calls = itertools.count()

    def drifting(logits):
        return float(next(calls))

    for sweep in (ablation_sweep(model, idx, drifting), patching_sweep(model, idx, (idx + 1) % V, drifting)):
        (check,) = sweep.checks
        assert not check.ok


def test_a_metric_may_be_a_tensor_of_one_number(model, idx):
    """As `lambda logits: logits[0, -1, 3]` is: the results are numbers all the same."""
    plain, tensors = (lambda logits: logits[0, -1, 3].item()), (lambda logits: logits[0, -1, 3])
    parts = ["0.1", "2.mlp"]
    effects = total_effects(model, idx, tensors, parts)
    assert effects == total_effects(model, idx, plain, parts)
    assert {type(effect) for effect in effects.values()} == {float}
    sweep = ablation_sweep(model, idx, tensors)
    assert (type(sweep.baseline), type(sweep.checks[0].error)) == (float, float)
    assert type(patching_sweep(model, idx, (idx + 1) % V, tensors).clean) is float


def test_the_model_is_left_as_it_was(model, idx, as_it_was):
    model.train()
    ablation_sweep(model, idx, METRIC, what="layers")
    patching_sweep(model, idx, (idx + 1) % V, METRIC, "attn.z")
    assert model.training
    as_it_was(model)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, i: ablation_sweep(m, i, METRIC, what="neurons"), "'neurons'"),
        (lambda m, i: ablation_sweep(m, i, METRIC, "median"), "'median'"),
        (lambda m, i: ablation_sweep(m, i, METRIC, "mean"), "do not match"),
        (lambda m, i: ablation_sweep(m, [1, 2], METRIC), "not a list of token ids"),
        (lambda m, i: ablation_sweep(m, [[1, 2], [3]], METRIC), "2, 1 tokens"),
        (lambda m, i: ablation_sweep(m, [], METRIC), "no tokens"),
        (lambda m, i: ablation_sweep(m, [[1, 19]], METRIC), "id 19"),
        (lambda m, i: ablation_sweep(m, [[1] * 14] * 2, METRIC), "block_size = 13"),
        (lambda m, i: patching_sweep(m, i, i, METRIC), "cannot tell them apart"),
        (lambda m, i: patching_sweep(m, i, i[:, 1:], METRIC), r"\(2, 11\) tokens and the corrupt ones \(2, 10\)"),
        (lambda m, i: patching_sweep(m, i, i, METRIC, "embed"), "'embed'"),
    ],
)  # fmt: skip
def test_sweeps_that_cannot_be_done(model, idx, as_it_was, run, message):
    with pytest.raises(InputError, match=message) as caught:
        run(model, idx)
    assert len(str(caught.value).splitlines()) == 2
    as_it_was(model)


def test_labels_of_a_grid():
    sweep = Sweep(["0", "1"], ["mlp"], torch.tensor([[3.0], [-5.0]]), 1.0, ())
    assert sweep.labels == [["0.mlp"], ["1.mlp"]]
    assert sweep.top() == [("1.mlp", -6.0), ("0.mlp", 2.0)]
