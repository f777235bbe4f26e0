"""Scores of heads: of patterns that are known, of a circuit built by hand, of GPT-2, and against loops."""

import copy
import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch

from minigpt.analysis.heads import HeadScores, attention_checks, head_scores, repeated_tokens, scores_of_pattern
from minigpt.analysis.lens import token_losses
from minigpt.analysis.taps import PointError
from minigpt.config import GPTConfig
from minigpt.errors import InputError
from minigpt.model import GPT

GOLDEN = os.environ.get("MINIGPT_GOLDEN") and Path(os.environ["MINIGPT_GOLDEN"]).resolve()

B, T, L, H, D, V = 2, 11, 3, 5, 7, 19
PERIOD = 5  # 1 + 2 * 5 = T


def looking_at(key_of) -> torch.Tensor:
    """A pattern (T, T) whose queries look at one key each: `key_of(query)`, or themselves where that is none."""
    pattern = torch.zeros(T, T)
    for query in range(T):
        key = key_of(query)
        pattern[query, key if 0 <= key <= query else query] = 1
    return pattern


# --- patterns that are known

KINDS = {
    "previous": lambda t: t - 1,
    "first": lambda t: 0,
    "self": lambda t: t,
    "duplicate": lambda t: t - PERIOD if t > PERIOD else t,
    "induction": lambda t: t - PERIOD + 1 if t > PERIOD else t,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_does_only_that_scores_1_and_others_0(kind):
    scores = scores_of_pattern(looking_at(KINDS[kind])[None], PERIOD)
    assert scores[kind].tolist() == [1.0]
    assert scores["entropy"].tolist() == [0.0]
    others = [other for other in KINDS if other != kind]
    if kind in ("duplicate", "induction"):
        others.remove("self")  # what such a head does where nothing has repeated
        assert scores["self"].tolist() == [0.5]
    assert all(scores[other].tolist() == [0.0] for other in others)


def test_a_head_that_looks_everywhere_has_entropy_1():
    pattern = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    scores = scores_of_pattern(pattern[None], PERIOD)
    assert float(scores["entropy"]) == pytest.approx(1)
    shares = [1 / t for t in range(3, T + 1)]
    for kind in ("previous", "first"):
        assert float(scores[kind]) == pytest.approx(sum(shares) / len(shares))
    for kind in ("induction", "duplicate"):
        assert float(scores[kind]) == pytest.approx(sum(shares[4:]) / 5)
    assert float(scores["self"]) == pytest.approx((0.5 + sum(shares)) / 10)


def test_the_scores_by_a_loop_of_all_heads_at_once():
    pattern = torch.rand(2, 3, T, T, dtype=torch.float64).tril()
    pattern /= pattern.sum(-1, keepdim=True)
    scores = scores_of_pattern(pattern, 4)
    for place in [(0, 1), (1, 2)]:
        p = pattern[place]
        late, repeated = range(2, T), range(5, T)
        expected = {
            "previous": sum(p[t, t - 1] for t in late) / len(late),
            "first": sum(p[t, 0] for t in late) / len(late),
            "self": sum(p[t, t] for t in range(1, T)) / (T - 1),
            "duplicate": sum(p[t, t - 4] for t in repeated) / len(repeated),
            "induction": sum(p[t, t - 3] for t in repeated) / len(repeated),
            "entropy": sum(
                -sum(float(p[t, s]) * math.log(p[t, s]) for s in range(t + 1)) / math.log(t + 1) for t in range(1, T)
            ) / (T - 1),
        }  # fmt: skip
        assert set(scores) == set(expected)
        for kind, value in expected.items():
            assert float(scores[kind][place]) == pytest.approx(float(value), abs=1e-12), kind


@pytest.mark.parametrize(("size", "period"), [(2, None), (11, 2), (11, 10), (11, 11), (4, 3)])
def test_patterns_that_are_too_short(size, period):
    with pytest.raises(InputError) as caught:
        scores_of_pattern(torch.eye(size)[None], period)
    assert len(str(caught.value).splitlines()) == 2


# --- the tokens


def test_random_tokens_come_twice_and_nothing_else_does():
    config = GPTConfig(vocab_size=211, block_size=128, n_layer=1, n_head=1, n_embd=2)
    for start in (None, 0, 210, repeated_tokens(config, 50, seed=3)[7]):  # the last would be drawn anyway
        ids = repeated_tokens(config, 50, seed=3, start_token_id=start)
        assert len(ids) == 101
        assert ids[1:51] == ids[51:]
        assert len(set(ids)) == 51
        assert start is None or ids[0] == start
    assert repeated_tokens(config, 50, seed=3) == repeated_tokens(config, 50, seed=3)
    assert repeated_tokens(config, 50, seed=3) != repeated_tokens(config, 50, seed=4)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0])
def test_what_is_no_seed(model, seed):
    with pytest.raises(InputError, match="seed must be a whole number"):
        repeated_tokens(model.config, 5, seed)


def test_as_many_as_there_is_room_for(model):
    assert len(repeated_tokens(model.config, 50, 0)) == 13  # the context holds 1 + 2 * 6
    few = dataclasses.replace(model.config, vocab_size=5)
    assert sorted(set(repeated_tokens(few, 50, 0))) == [0, 1, 2, 3, 4]
    for config, length in [
        (few, 2),
        (dataclasses.replace(few, vocab_size=3), 50),
        (dataclasses.replace(few, block_size=6), 9),
    ]:
        with pytest.raises(InputError, match="2 tokens that are repeated"):
            repeated_tokens(config, length, 0)
    for start in (-1, 19):
        with pytest.raises(InputError, match=f"no token {start}"):
            repeated_tokens(model.config, 4, 0, start)


# --- models


def induction_circuit(V: int, block_size: int) -> GPT:
    """Two layers, one head each, MLPs without effect: the smallest model that copies what followed last time.

    The stream has three parts, each a row of numbers of which one is 1: the token (V), the position (block_size), the
    token before (V). Layer 0 looks one position back and writes the token there into the third part; layer 1 looks for
    the place whose third part is its own token, and writes the token there, times 4, into the first. The norms
    disturb nothing: at every position the same number n of ones stands in a stream of C, so its mean is n / C and its
    deviation sqrt(n / C - (n / C)^2 + eps) everywhere, and the weights and biases of `c_attn` undo both.
    """
    token, place, before = slice(0, V), slice(V, V + block_size), slice(V + block_size, 2 * V + block_size)
    C = 2 * V + block_size
    model = GPT(GPTConfig(vocab_size=V, block_size=block_size, n_layer=2, n_head=1, n_embd=C)).eval().double()
    sharp = 100 * math.sqrt(C)  # after the division by sqrt(D), a match is 100 more than none: e^-100 is nothing
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.wte.weight[:, token] = torch.eye(V)
        model.wpe.weight[:, place] = torch.eye(block_size)
        for norm in (model.h[0].ln_1, model.h[0].ln_2, model.h[1].ln_1, model.h[1].ln_2):
            norm.weight.fill_(1)
        model.ln_f.weight.fill_(20)  # so that the likeliest token is almost certain
        for layer, ones in ((0, 2), (1, 3)):
            attn, wanted = model.h[layer].attn, torch.zeros(3, C, C, dtype=torch.float64)  # q, k, v of the plain stream
            if layer == 0:
                wanted[0, range(block_size - 1), range(V + 1, V + block_size)] = sharp  # position i asks for i - 1
                wanted[1, :block_size, place] = torch.eye(block_size).double()
                attn.c_proj.weight[before, :V] = torch.eye(V).double()
            else:
                wanted[0, :V, token] = sharp * torch.eye(V).double()
                wanted[1, :V, before] = torch.eye(V).double()
                attn.c_proj.weight[token, :V] = 4 * torch.eye(V).double()
            wanted[2, :V, token] = torch.eye(V).double()
            mean = ones / C
            deviation = math.sqrt(mean - mean**2 + 1e-5)
            attn.c_attn.weight.copy_(deviation * wanted.flatten(0, 1))
            attn.c_attn.bias.copy_(mean * wanted.flatten(0, 1).sum(1))
    return model.float()


@pytest.mark.parametrize("seed", range(3))
def test_the_circuit_built_by_hand_scores_1(seed):
    model = induction_circuit(V=11, block_size=17)
    found = head_scores(model, seed=seed, length=8)
    assert found.period == 8
    assert found.scores["previous"][0].tolist() == [1.0]
    assert found.scores["induction"][1].tolist() == [1.0]
    assert float(found.scores["induction"][0]) < 1e-40
    assert found.best("induction", 1) == [("1.0", 1.0)]
    assert found.best("previous", 1) == [("0.0", 1.0)]
    with pytest.raises(InputError, match="k = -2"):
        found.best("previous", -2)
    ids = torch.tensor([found.ids])
    with torch.no_grad():
        assert torch.equal(model(ids)[0, 9:-1].argmax(-1), ids[0, 10:])  # it copies without a fault
    losses = token_losses(model, found.ids).losses
    assert losses[9:].max() < 0.01 < 2 < losses[:8].mean()  # and the second time is cheap


def test_heads_by_their_patterns(model, traced):
    found = head_scores(model, seed=4)
    pattern = torch.cat(list(traced(model, torch.tensor([found.ids]), "*.pattern").values()))
    for kind, expected in scores_of_pattern(pattern, 6).items():
        assert torch.equal(found.scores[kind], expected)
        assert expected.shape == (L, H)
    assert set(found.scores) == {*KINDS, "entropy"}
    assert all(one.ok for one in found.checks)


def test_on_a_text_repetition_is_not_scored(model, idx):
    found = head_scores(model.train(), idx[0].tolist())
    assert model.training
    assert found.period is None
    assert set(found.scores) == {"previous", "first", "self", "entropy"}
    assert found.ids == idx[0].tolist()
    with pytest.raises(InputError, match="no score 'induction'"):
        found.best("induction")


def test_permuted_heads_have_permuted_scores(model):
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        for block in permuted.h:
            for parameter in (block.attn.c_attn.weight, block.attn.c_attn.bias):
                parts = parameter.view(3, H, D, -1)
                parts.copy_(parts[:, order].clone())
            columns = block.attn.c_proj.weight.view(-1, H, D)
            columns.copy_(columns[:, order].clone())
    before, after = head_scores(model).scores, head_scores(permuted).scores
    for kind, scores in before.items():
        assert torch.allclose(after[kind], scores[:, order], atol=1e-5)
    assert not torch.allclose(after["previous"], before["previous"], atol=1e-3)


def test_the_best_come_first():
    scores = torch.tensor([[0.1, 0.7, 0.3], [0.7, 0.0, 0.9]])
    found = HeadScores({"self": scores}, [1, 2, 3], None)
    assert [head for head, _ in found.sorted("self")] == ["1.2", "0.1", "1.0", "0.2", "0.0", "1.1"]
    assert found.best("self", 2) == [("1.2", pytest.approx(0.9)), ("0.1", pytest.approx(0.7))]
    assert found.checks[0].ok
    assert not HeadScores({"self": scores - 0.2}, [1, 2, 3], None).checks[0].ok


@pytest.mark.parametrize(
    ("ids", "message"), [([], "empty"), ([1, 2], "so few tokens: 2"), ([1, 2, 19], "id 19"), ([1] * 14, "block_size")]
)
def test_texts_that_cannot_be_scored(model, ids, message):
    with pytest.raises(InputError, match=message):
        head_scores(model, ids)


# --- the identities of attention


def test_attention_holds_its_identities_and_a_fault_is_seen(model, idx, traced):
    t = traced(model, idx)
    for layer in range(L):
        checks = attention_checks(t, layer)
        assert len(checks) == 6
        assert all(one.ok for one in checks)
    faults = {"pattern": [0, 1, 2, 3, 4, 5], "z": [4], "scores": [2], "q": [3], "v": [4]}
    for name, expected in faults.items():
        changed = type("Changed", (dict,), {"model": model})({point: t[point].clone() for point in t})
        changed[f"blocks.1.attn.{name}"] += 0.5
        failed = [number for number, one in enumerate(attention_checks(changed, 1)) if not one.ok]
        if name == "scores":  # the same number more for every key changes nothing
            assert failed == []
            changed[f"blocks.1.attn.{name}"][..., 0] += 0.5
            failed = [number for number, one in enumerate(attention_checks(changed, 1)) if not one.ok]
        assert failed == expected, name
    with pytest.raises(PointError, match="was not recorded"):
        attention_checks(traced(model, idx, "*.pattern"), 0)


# --- GPT-2


@pytest.mark.shared
def test_heads_of_gpt2_from_its_stored_attention():
    """Block 0 comes before any GELU, and its stored scores are GPT-2's own; means over five prompts, as published."""
    if not (GOLDEN and GOLDEN.is_dir()):
        pytest.skip("needs MINIGPT_GOLDEN to name the folder with gpt2_124m_attention.json")
    selves, previous = [], []
    for example in json.loads((GOLDEN / "gpt2_124m_attention.json").read_text(encoding="utf-8")):
        size = len(example["token_ids"])
        scores = torch.full((12, size, size), -math.inf)
        of_411 = torch.eye(size)
        for head, rows in enumerate(example["block0_scaled"]):
            for query, row in enumerate(rows):
                scores[head, query, : query + 1] = torch.tensor(row)
        for query, weight in enumerate(example["prev_token_411"], start=1):
            of_411[query, [query - 1, query]] = torch.tensor([weight, 1 - weight])
        pattern = scores.softmax(-1)
        stored = torch.tensor(example["pattern_last_row"][0])
        assert torch.allclose(pattern[:, -1], stored, atol=1e-6)
        selves.append(scores_of_pattern(pattern)["self"])
        previous.append(float(scores_of_pattern(of_411)["previous"]))
    mean = torch.stack(selves).mean(0)
    assert [round(float(mean[head]), 2) for head in (1, 5, 3)] == [0.97, 0.88, 0.80]
    assert round(float(torch.stack(selves)[:, 1].min()), 2) == 0.88
    assert mean.argsort(descending=True)[:3].tolist() == [1, 5, 3]
    assert min(previous) > 0.9988
