"""The loss against loops in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from minigpt.errors import DataError, InputError
from minigpt.evaluation.loss import evaluate, next_token_loss, sequence_log_prob, token_log_probs
from minigpt.model import GPT


def log_softmax_by_loop(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x - max(logits)) for x in logits)) + max(logits)
    return [x - total for x in logits]


def test_loss_is_the_mean_over_real_targets():
    logits = torch.randn(3, 5, 7, dtype=torch.float64)
    targets = torch.randint(7, (3, 5))
    targets[0, 1] = targets[2, 4] = -100
    terms = [
        -log_softmax_by_loop(logits[b, t].tolist())[targets[b, t]]
        for b in range(3) for t in range(5) if targets[b, t] != -100
    ]  # fmt: skip
    assert len(terms) == 13
    assert next_token_loss(logits, targets).item() == pytest.approx(sum(terms) / 13, abs=1e-12)


def test_no_target_is_no_loss_and_no_nan():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = next_token_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_loss_of_bfloat16_logits_is_float32():
    logits = torch.randn(2, 3, 5).bfloat16()
    assert next_token_loss(logits, torch.zeros(2, 3, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize("num_tokens", [2, 13, 14, 15, 53])
def test_every_token_but_the_first_is_predicted_once(tiny_model, num_tokens, monkeypatch):
    monkeypatch.setattr("minigpt.data.tokens.TOKENS_PER_BATCH", 26)  # two windows a batch
    ids = np.random.default_rng(0).integers(0, 23, num_tokens).astype(np.uint16)
    total = 0.0
    with torch.no_grad():
        for start in range(0, num_tokens - 1, 13):
            window = torch.from_numpy(ids[start : start + 14].astype(np.int64))
            logits = tiny_model(window[None, :-1])[0]
            total -= sum(
                log_softmax_by_loop(row.tolist())[target] for row, target in zip(logits, window[1:], strict=True)
            )
    result = evaluate(tiny_model, ids)
    assert result.tokens == num_tokens - 1
    assert result.loss == pytest.approx(total / (num_tokens - 1), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_character(2 * result.tokens) == pytest.approx(result.loss / math.log(2) / 2)


def test_evaluation_restores_the_mode_even_after_an_error(tiny_model):
    tiny_model.train()
    evaluate(tiny_model, np.array([1, 2, 3]))
    assert tiny_model.training
    with pytest.raises(InputError, match="ids from 1 to 99"):
        evaluate(tiny_model, np.array([1, 99, 3]))
    assert tiny_model.training


def test_nothing_to_predict(tiny_model):
    with pytest.raises(DataError, match="1 token: there is nothing to predict"):
        evaluate(tiny_model, np.array([1]))


@pytest.mark.parametrize(
    "ids", [np.array([1.5, 2.0]), np.array([[1, 2], [3, 4]]), np.array([True, False]), [1, 2], torch.tensor([1, 2])]
)
def test_a_text_is_whole_numbers_in_one_dimension(tiny_model, ids):
    with pytest.raises(InputError, match="cannot be used") as caught:
        evaluate(tiny_model, ids)
    assert "whole numbers in one dimension" in caught.value.how


def test_sequence_log_prob_is_the_sum_over_tokens(tiny_model):
    rows = [[3, 1, 4, 1, 5], [9, 2], [6]]
    expected = []
    for row in rows:
        logits = tiny_model(torch.tensor([row]))[0].tolist()
        expected.append(sum(log_softmax_by_loop(logits[t])[row[t + 1]] for t in range(len(row) - 1)))
    assert sequence_log_prob(tiny_model, rows) == pytest.approx(expected, abs=1e-5)
    assert sequence_log_prob(tiny_model, rows[0]) == pytest.approx(expected[0], abs=1e-5)
    assert sequence_log_prob(tiny_model, np.array(rows[0])) == pytest.approx(expected[0], abs=1e-5)
    assert sequence_log_prob(tiny_model, torch.tensor(rows[0])) == pytest.approx(expected[0], abs=1e-5)
    assert sequence_log_prob(tiny_model, torch.tensor([rows[0], rows[0]])) == pytest.approx([expected[0]] * 2, abs=1e-5)


def test_token_log_probs_are_the_terms_of_that_sum(tiny_model):
    row = [3, 1, 4, 1, 5, 9, 2, 6]
    logits = tiny_model.double()(torch.tensor([row]))[0].tolist()
    expected = [log_softmax_by_loop(logits[t])[row[t + 1]] for t in range(7)]
    assert token_log_probs(tiny_model, row) == pytest.approx(expected, abs=1e-13)  # float64 stays float64
    assert sequence_log_prob(tiny_model, row) == pytest.approx(math.fsum(expected), abs=1e-13)
    assert token_log_probs(tiny_model, [6]) == []


def test_scoring_is_without_dropout_and_gradients(tiny_config):
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(tiny_config, dropout=0.5))
    assert token_log_probs(model, [3, 1, 4, 1]) == token_log_probs(model, [3, 1, 4, 1])
    assert model.training


def test_log_probs_of_bfloat16_logits_are_float32(tiny_model):
    in_full = token_log_probs(tiny_model, [3, 1, 4, 1, 5])
    in_half = token_log_probs(tiny_model.bfloat16(), [3, 1, 4, 1, 5])
    assert in_half == pytest.approx(in_full, abs=0.2)
    assert any(torch.tensor(x).bfloat16().item() != x for x in in_half)


def test_sequences_that_cannot_be_scored(tiny_model):
    with pytest.raises(InputError, match="id 23 at position 1"):
        sequence_log_prob(tiny_model, [1, 23])
    with pytest.raises(InputError, match="id -1 at position 0"):
        sequence_log_prob(tiny_model, [-1, 2])
    with pytest.raises(InputError, match="prompt 1 is empty"):
        sequence_log_prob(tiny_model, [[1, 2], []])
    with pytest.raises(InputError, match=r"14 tokens .* block_size = 13"):
        sequence_log_prob(tiny_model, [1] * 14)
