"""What a decoder considered, against brute force in float64, and against what `generate` does."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from minigpt.analysis import decoders
from minigpt.analysis.decoders import Cuts, beam_tree, sampling_cuts, write_steps
from minigpt.decoding.generate import generate
from minigpt.errors import InputError
from minigpt.tokenizers import CharTokenizer

PROMPT = [3, 1, 4, 1, 5]
TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvw")  # 23, as the model has


def log_probs(model, ids) -> np.ndarray:
    """log p of every next token after `ids`, by one pass in float64."""
    with torch.no_grad():
        return model.double()(torch.tensor([ids]))[0, -1].log_softmax(-1).numpy()


def by_definition(logits: np.ndarray, temperature: float, k: int, p: float, share: float) -> list[np.ndarray]:
    """The stages, each from its definition, in float64."""
    stages = []
    scores = logits.astype(np.float64)

    def softmax(scores):
        powers = np.exp(scores - scores.max())
        return powers / powers.sum()

    stages.append(softmax(scores))
    stages.append(softmax(scores / temperature))
    order = np.argsort(-stages[-1])
    probabilities = np.where(np.isin(np.arange(len(scores)), order[:k]), stages[-1], 0)
    stages.append(probabilities / probabilities.sum())
    total, nucleus = 0.0, []
    for token in order:
        nucleus.append(token)
        total += stages[-1][token]
        if total >= p:
            break
    probabilities = np.where(np.isin(np.arange(len(scores)), nucleus), stages[-1], 0)
    stages.append(probabilities / probabilities.sum())
    probabilities = np.where(stages[-1] >= share * stages[-1].max(), stages[-1], 0)
    stages.append(probabilities / probabilities.sum())
    return stages


def test_the_stages_are_those_of_the_definitions():
    logits = torch.randn(997, generator=torch.Generator().manual_seed(11)) * 2 - 130  # of GPT-2's size
    cuts = sampling_cuts(logits, temperature=0.8, top_k=101, top_p=0.87, min_p=0.05)
    expected = by_definition(logits.numpy(), 0.8, 101, 0.87, 0.05)
    assert cuts.names == ["the model", "temperature 0.8", "top-k 101", "top-p 0.87", "min-p 0.05"]
    for found, stage in zip(cuts.probabilities.numpy(), expected, strict=True):
        np.testing.assert_allclose(found, stage, rtol=2e-5)  # float32 has 1.5e-5 between neighbours at -130 / 0.8
    assert cuts.kept == [(stage > 0).sum() for stage in expected]
    assert cuts.kept[0] == 997 > cuts.kept[2] > cuts.kept[3] > cuts.kept[4] > 1
    entropies = [-(stage[stage > 0] * np.log(stage[stage > 0])).sum() for stage in expected]
    np.testing.assert_allclose(cuts.entropy, entropies, atol=1e-5)
    assert cuts.top(3) == np.argsort(-expected[0])[:3].tolist()
    assert all(check.ok for check in cuts.checks)


def test_the_ends_of_every_option():
    """Cold is the best token, hot is uniform; k = 1 is greedy; p = 1 and k = V leave the softmax, worked in float64."""
    logits = torch.randn(997, generator=torch.Generator().manual_seed(11)) * 2 - 135
    best, softmax = int(logits.argmax()), logits.double().softmax(-1)

    def last(**options):
        return sampling_cuts(logits, **options).probabilities[-1].double()

    for options in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert last(**options).tolist() == torch.eye(997, dtype=torch.float64)[best].tolist()
    np.testing.assert_allclose(last(temperature=1e6), 1 / 997, rtol=1e-4)
    np.testing.assert_allclose(last(top_k=997, top_p=1.0), softmax, rtol=2e-5)
    far = sampling_cuts(torch.tensor([120.0, 0.0]), temperature=50.0)  # e^-120 is 0 in float32, and e^-2.4 is not
    np.testing.assert_allclose(far.probabilities[1], [1 / (1 + math.exp(-2.4)), 1 / (1 + math.exp(2.4))], rtol=1e-5)
    assert all(check.ok for check in far.checks)
    gap = (logits.double() - logits.double().max()) / 0.05  # -2700 and so: each power alone is 0 in float32
    np.testing.assert_allclose(last(temperature=0.05), gap.exp() / gap.exp().sum(), rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 1.3, "top_k": 11, "min_p": 0.2}]
)
def test_the_last_stage_is_what_generate_draws_from(tiny_model, options):
    steps = []
    drawn = {"temperature": 1.0} | options
    generate(tiny_model, [PROMPT], max_new_tokens=1, on_step=steps.append, num_candidates=23, **drawn)
    with torch.no_grad():
        cuts = sampling_cuts(tiny_model(torch.tensor([PROMPT]))[0, -1], **options)
    ((choice,),) = [step.choices for step in steps]
    for candidate in choice.candidates:
        assert cuts.probabilities[-1, candidate.id].item() == pytest.approx(candidate.probability, abs=1e-6)


def test_a_cut_in_the_wrong_place_is_seen():
    logits = torch.randn(37, generator=torch.Generator().manual_seed(2))
    cuts = sampling_cuts(logits, top_p=0.7)
    best = cuts.probabilities[1].argmax()
    cuts.probabilities[1, best] = 0  # the nucleus without its best token
    assert not all(check.ok for check in cuts.checks)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("temperature", 0.7, 0.9),
        ("top_k", 5, 4),
        ("top_k", 4, 5),
        ("top_k", 4, 0),
        ("top_p", 0.6, 0.9),
        ("top_p", 0.9, 0.6),
        ("min_p", 0.1, 0.3),
        ("min_p", 0.3, 0.1),
    ],
)
def test_a_cut_that_is_not_what_it_is_called_is_seen(name, value, told):
    cuts = sampling_cuts(torch.randn(37, generator=torch.Generator().manual_seed(2)), **{name: value})
    assert all(check.ok for check in cuts.checks)
    assert not all(check.ok for check in Cuts([(name, told)], cuts.probabilities).checks)


def test_an_option_that_is_off_cuts_nothing_and_holds():
    cuts = sampling_cuts(torch.randn(37), top_k=0, top_p=1.0, min_p=0.0)
    assert cuts.kept == [37] * 4
    assert all(check.ok for check in cuts.checks)


def test_wrong_scores_are_seen(tiny_model, monkeypatch):
    def wrong(*args, **options):
        out = generate(*args, **options)
        return dataclasses.replace(out, scores=[score + 1 for score in out.scores])

    monkeypatch.setattr(decoders, "generate", wrong)
    monkeypatch.setattr(decoders, "token_log_probs", lambda model, ids, vocab_size: [2.0] * (len(ids) - 1))
    found = write_steps(tiny_model, PROMPT, TOKENIZER, 3, max_new_tokens=3, strategy="greedy")
    assert [check.ok for check in found.checks] == [False, False]
    tree = beam_tree(tiny_model, PROMPT, TOKENIZER, max_new_tokens=3, num_beams=2)
    assert [check.ok for check in tree.checks] == [True, False, False]


def test_sampling_at_temperature_0_has_no_stages(tiny_model):
    with pytest.raises(InputError, match="draws nothing"):
        sampling_cuts(torch.zeros(5), temperature=0)
    with pytest.raises(InputError, match="6 likeliest of 5 tokens cannot"):
        sampling_cuts(torch.zeros(5)).top(6)


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"temperature": 1.1, "top_k": 7, "seed": 5}])
def test_the_steps_sum_to_the_score(tiny_model, options):
    found = write_steps(tiny_model, PROMPT, TOKENIZER, 3, max_new_tokens=7, **options)
    assert found.ids[:5] == PROMPT
    assert [choice.id for choice in found.choices] == found.ids[5:]
    assert len(found.choices) == 7
    assert all(check.ok for check in found.checks)
    assert len(found.checks) == 2
    expected = [log_probs(tiny_model, found.ids[:n])[found.ids[n]] for n in range(5, 12)]
    np.testing.assert_allclose([choice.log_prob for choice in found.choices], expected, atol=1e-4)
    assert found.score == pytest.approx(sum(expected), abs=1e-4)


def test_two_steps_of_all_beams_are_the_exhaustive_search(tiny_model):
    V = 23
    tree = beam_tree(tiny_model, PROMPT, TOKENIZER, num_beams=V, max_new_tokens=2)
    totals = {}
    first = log_probs(tiny_model, PROMPT)
    for one in range(V):
        second = log_probs(tiny_model, [*PROMPT, one])
        totals |= {(one,): first[one]} | {(one, two): first[one] + second[two] for two in range(V)}
    best = max(itertools.product(range(V), repeat=2), key=totals.__getitem__)
    assert tuple(tree.ids[5:]) == best
    assert tree.score == pytest.approx(totals[best] / 2, abs=1e-5)
    for number, node in enumerate(tree.nodes):
        path = tree.path(number)
        assert len(path) == node.step + 1
        assert node.candidate.total == pytest.approx(totals[tuple(path)], abs=1e-4)
    assert [tree.path(number) for number, node in enumerate(tree.nodes) if node.best] == [[best[0]], [*best]]
    assert all(check.ok for check in tree.checks)


def test_one_beam_is_greedy(tiny_model):
    tree = beam_tree(tiny_model, PROMPT, TOKENIZER, num_beams=1, max_new_tokens=6)
    ids = [*PROMPT]
    for _ in range(6):
        ids.append(int(np.argmax(log_probs(tiny_model, ids))))
    assert tree.ids == ids


def test_a_tree_with_forks_is_connected(tiny_model):
    tree = beam_tree(tiny_model, PROMPT, TOKENIZER, num_beams=3, max_new_tokens=6, length_penalty=0.5)
    kept = [sum(n.step == step and n.candidate.kept for n in tree.nodes) for step in range(6)]
    assert kept == [3] * 6
    for number, node in enumerate(tree.nodes):
        if node.parent is not None:
            parent = tree.nodes[node.parent]
            assert parent.candidate.kept
            assert parent.step == node.step - 1
            own = log_probs(tiny_model, PROMPT + tree.path(number)[:-1])[node.candidate.id]
            expected = parent.candidate.total + own
            assert node.candidate.total == pytest.approx(expected, abs=1e-4)
    last = [number for number, node in enumerate(tree.nodes) if node.best][-1]
    assert tree.path(last) == tree.ids[5:]
    assert tree.score == pytest.approx(tree.nodes[last].candidate.total / math.sqrt(6), abs=1e-5)


def test_a_search_for_nothing_is_refused(tiny_model):
    with pytest.raises(InputError, match="leaves nothing to consider"):
        beam_tree(tiny_model, PROMPT, TOKENIZER, max_new_tokens=0)
    with pytest.raises(InputError, match="leaves nothing to consider"):
        write_steps(tiny_model, PROMPT, TOKENIZER, 3, max_new_tokens=0)


@pytest.mark.parametrize("options", [{"num_return_sequences": 2}, {"strategy": "beam"}, {"num_beams": 2}])
def test_steps_are_those_of_one_sequence(tiny_model, options):
    with pytest.raises(InputError, match="only one sequence"):
        write_steps(tiny_model, PROMPT, TOKENIZER, 3, max_new_tokens=4, **options)


def test_an_option_of_other_calls_is_not_its_own_correction(tiny_model):
    with pytest.raises(InputError, match="no option 'num_candidate'") as raised:
        write_steps(tiny_model, PROMPT, TOKENIZER, 3, num_candidate=2)
    assert "did you mean num_candidates?" in raised.value.how
    with pytest.raises(InputError, match="no option 'on_step'") as raised:
        write_steps(tiny_model, PROMPT, TOKENIZER, 3, on_step=print)
    assert "did you mean" not in raised.value.how
