"""The logit lens and the losses of tokens against loops in float64, and the identities that they satisfy."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import minigpt
from minigpt.analysis.lens import Lens, logit_lens, token_losses
from minigpt.analysis.taps import PointError
from minigpt.analysis.tracing import trace
from minigpt.errors import InputError
from minigpt.evaluation.loss import sequence_log_prob
from minigpt.kv_cache import KVCache

B, T, L, C, V = 2, 11, 3, 35, 19
POINTS = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_{part}" for i in range(L) for part in ("mid", "post"))]


@pytest.fixture
def lens(model, idx, traced) -> Lens:
    return logit_lens(traced(model, idx))


# --- the lens


def test_every_point_is_read_with_its_own_statistics(model, idx, by_hand, traced, distance):
    """In float64, position by position; with the last layer's statistics for all, as others had it, this fails."""
    model.double()
    seen = by_hand(model, idx)
    w = model.state_dict()
    expected = torch.empty(len(POINTS), B, T, V, dtype=torch.float64)
    cached = torch.empty_like(expected)
    for p, name in enumerate(POINTS):
        for b in range(B):
            for t in range(T):
                x = seen[name][b, t]
                deviation = math.sqrt(sum((x - x.mean()) ** 2) / C + 1e-5)
                for logits, scale in ((expected, deviation), (cached, seen["ln_f.scale"][b, t])):
                    normed = (x - x.mean()) / scale * w["ln_f.weight"] + w["ln_f.bias"]
                    logits[p, b, t] = w["wte.weight"] @ normed
    lens = logit_lens(traced(model, idx))
    assert lens.points == POINTS
    assert lens.positions == list(range(T))
    assert distance(lens.logits, expected) < 1e-11
    assert distance(cached[:-1], expected[:-1]) > 0.1


def test_the_last_point_is_the_model_to_the_bit(model, idx, lens, traced):
    fused = logit_lens(traced(model, idx, ["*.resid_*", "logits"]))  # as the model runs without us
    with torch.no_grad():
        assert torch.equal(fused.logits[-1], model(idx))
    assert torch.equal(lens.logits[-1], lens.final)
    assert lens.kl_to_final()[-1].count_nonzero() == 0
    assert lens.kl_to_final()[0].mean() > 0.1


def test_probabilities_ranks_and_divergences_by_loops(lens, distance):
    logits = lens.logits.double()
    probs, final = logits.exp(), lens.final.double().exp()
    probs, final = probs / probs.sum(-1, keepdim=True), final / final.sum(-1, keepdim=True)
    assert distance(lens.probs().double(), probs) < 1e-6
    ids, best = lens.top(4)
    for cell in [(0, 0, 0), (3, 1, 7), (6, 0, 10)]:
        likeliest = sorted(range(V), key=lambda v, cell=cell: -probs[cell][v])
        assert ids[cell].tolist() == likeliest[:4]
        assert best[cell].tolist() == pytest.approx(probs[cell][likeliest[:4]].tolist(), abs=1e-6)
        assert [int(lens.rank_of(v)[cell]) for v in likeliest] == list(range(V))
        p, q = final[cell[1:]], probs[cell]
        kl = sum(float(p[v]) * math.log(p[v] / q[v]) for v in range(V))
        assert float(lens.kl_to_final()[cell]) == pytest.approx(kl, abs=1e-5)


def test_chosen_points_and_positions(model, idx, lens, traced):
    some = logit_lens(traced(model, idx), ["*.1.resid_pre", "blocks.0.hook_resid_mid"])
    assert some.points == ["blocks.0.resid_mid", "blocks.1.resid_pre"]
    assert torch.equal(some.logits, lens.logits[1:3])
    assert not any("last" in one.name for one in some.checks)
    early = logit_lens(traced(model, idx), "blocks.0.resid_post")  # the last that is read, and not the last there is
    assert not torch.allclose(early.logits[-1], early.final)
    assert [one.ok for one in early.checks] == [True, True]
    late = logit_lens(traced(model, idx, positions=[4, -1]))
    assert late.positions == [4, 10]
    assert torch.allclose(late.logits, lens.logits[:, :, [4, 10]], atol=1e-5)


def test_a_lens_holds_its_identities_and_sees_when_they_fail(lens):
    assert len(lens.checks) == 4
    assert all(one.ok for one in lens.checks)
    wrong = dataclasses.replace(lens, final=lens.final + torch.eye(V)[3])
    assert [one.ok for one in wrong.checks] == [True, True, False, False]
    lost = dataclasses.replace(lens, logits=lens.logits * math.nan)
    assert not any(one.ok for one in lost.checks)


def test_a_lens_in_bfloat16(model, idx, traced):
    model.bfloat16()
    lens = logit_lens(traced(model, idx))
    assert lens.probs().dtype == torch.float32
    assert all(one.ok for one in lens.checks)


def test_what_no_lens_can_read(model, idx, lens, traced):
    whole = traced(model, idx)
    with pytest.raises(InputError, match=r"mlp\.out is no state"):
        logit_lens(whole, "*.mlp.out")
    with pytest.raises(PointError, match="no point 'resid'"):
        logit_lens(whole, "resid")
    with pytest.raises(PointError, match="logits was not recorded"):
        logit_lens(traced(model, idx, "*.resid_*"))
    with torch.no_grad(), trace(model) as t:
        cache = KVCache(model.config, B)
        model.trunk(idx[:, :5], cache)
        model(idx[:, 5:], cache)
    with pytest.raises(InputError, match="recorded at 11 positions, and logits at 6"):
        logit_lens(t)
    for call in (lambda: lens.rank_of(V), lambda: lens.rank_of(-1), lambda: lens.top(0), lambda: lens.top(V + 1)):
        with pytest.raises(InputError, match=r"0 to 18|1 to 19"):
            call()


# --- losses


@pytest.fixture
def losses(model, idx):
    return token_losses(model, idx[0].tolist())


def test_losses_and_entropies_by_a_loop(model, idx, by_hand, losses):
    ids = idx[0].tolist()
    logits = by_hand(model, idx[:1])["logits"][0]
    for t in range(1, T):
        chances = [float(x) for x in logits[t - 1].exp() / logits[t - 1].exp().sum()]
        assert float(losses.losses[t - 1]) == pytest.approx(-math.log(chances[ids[t]]), abs=1e-4)
        entropy = -sum(p * math.log(p) for p in chances)
        assert float(losses.entropy[t - 1]) == pytest.approx(entropy, abs=1e-4)
        likeliest = sorted(range(V), key=lambda v, p=chances: -p[v])[:3]
        assert losses.top(3)[0][t - 1].tolist() == likeliest
        assert losses.top(3)[1][t - 1].tolist() == pytest.approx([chances[v] for v in likeliest], abs=1e-5)
    assert len(losses.losses) == len(losses.entropy) == T - 1  # nothing predicts the first token


def test_means_and_sums(model, idx, losses):
    with torch.no_grad():
        expected = float(F.cross_entropy(model(idx[:1])[0, :-1], idx[0, 1:]))
    assert losses.mean == pytest.approx(expected, abs=1e-5)  # as far as the logits may be rounded differently
    assert losses.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    total = -sequence_log_prob(model, idx[0])
    assert float(losses.cumulative[-1]) == pytest.approx(total, abs=1e-4)
    assert losses.bits_per_byte(29) == pytest.approx(total / math.log(2) / 29, abs=1e-5)
    assert all(one.ok for one in losses.checks)
    assert len(losses.checks) == 3


def test_a_loss_that_is_no_distribution_is_seen(losses):
    assert [one.ok for one in dataclasses.replace(losses, log_probs=losses.log_probs - 1).checks][:2] == [False] * 2


def test_a_text_of_the_whole_block_and_the_token_after_it(model):
    assert len(token_losses(model, [1] * 14).losses) == 13
    assert token_losses(model.train(), [1, 2]).losses.shape == (1,)
    assert model.training


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "is empty"), ([3], "nothing to predict"), ([3, 19], "id 19"), ([1] * 15, "block_size = 13")],
)
def test_texts_without_a_loss(model, ids, message):
    with pytest.raises(InputError, match=message):
        token_losses(model, ids)


def test_no_bytes_and_no_alternatives(losses):
    with pytest.raises(InputError, match="0 bytes"):
        losses.bits_per_byte(0)
    with pytest.raises(InputError, match="20 likeliest of 19 tokens cannot be shown"):
        losses.top(20)


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"temperature": 0.7, "top_p": 0.9, "seed": 5}], ids=str)
def test_the_log_probabilities_of_the_steps_sum_to_the_score(model, options):
    """What the decoder reports step by step, with a cache and whatever its filters, is the sequence's own score."""
    steps = []
    out = minigpt.generate(model, [[3, 1, 4]], max_new_tokens=7, on_step=steps.append, **options)
    (ids,) = out.sequences
    chosen = [choice.log_prob for step in steps for choice in step.choices]
    assert len(chosen) == 7
    assert chosen == pytest.approx((-token_losses(model, ids).losses[2:]).tolist(), abs=1e-5)
    assert sum(chosen) == pytest.approx(sequence_log_prob(model, ids) - sequence_log_prob(model, ids[:3]), abs=1e-4)
