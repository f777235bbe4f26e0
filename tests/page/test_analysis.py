"""What the page reads off a pass against minigpt.analysis."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from minigpt.analysis import attribute, logit_lens, model_size, token_losses, trace
from minigpt.analysis.heads import scores_of_pattern
from minigpt.config import GPTConfig
from tests.conftest import random_model
from tests.page.conftest import Call, Node, the_model
from tests.page.test_engine import CONFIGS, ids_of

MODELS = [random_model(config, 37) for config in CONFIGS]


def of_each_model(node: Node, name: str, **more: object) -> list[Any]:
    """What one call gives for the ids of each model."""
    calls: list[Call] = []
    for model in MODELS:
        calls += [the_model("m", model), (name, {"model": "m", "ids": ids_of(model.config), **more})]
    return node(calls)[1::2]


def test_the_loss_of_every_token(node: Node):
    for model, found in zip(MODELS, of_each_model(node, "losses", k=5), strict=True):
        expected = token_losses(model, ids_of(model.config))
        assert [token["loss"] for token in found["tokens"]] == pytest.approx(expected.losses.tolist(), abs=1e-4)
        assert [token["entropy"] for token in found["tokens"]] == pytest.approx(expected.entropy.tolist(), abs=1e-4)
        assert found["sum"] == pytest.approx(float(expected.cumulative[-1]), abs=1e-3)
        assert found["mean"] == pytest.approx(expected.mean, abs=1e-4)
        assert found["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
        ids, probabilities = expected.top(5)
        for token, best, shares in zip(found["tokens"], ids.tolist(), probabilities.tolist(), strict=True):
            assert [other["id"] for other in token["alternatives"]] == best
            assert [other["probability"] for other in token["alternatives"]] == pytest.approx(shares, abs=1e-4)
            assert token["probability"] == pytest.approx(math.exp(-token["loss"]))


def test_the_lens(node: Node):
    for model, found in zip(MODELS, of_each_model(node, "lens", k=3), strict=True):
        with trace(model, ["*.resid_*", "logits"]) as t:
            model(torch.tensor([ids_of(model.config)]))
        expected = logit_lens(t)
        assert found["points"] == expected.points
        rows = torch.stack([torch.stack(rows) for rows in found["rows"]])
        torch.testing.assert_close(rows, expected.logits[:, 0], rtol=0, atol=1e-4)
        ids, probabilities = expected.top(3)
        best = [[[one["id"] for one in place] for place in row] for row in found["best"]]
        shares = [[[one["probability"] for one in place] for place in row] for row in found["best"]]
        assert best == ids[:, 0].tolist()
        torch.testing.assert_close(torch.tensor(shares), probabilities[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("by", ["component", "layer", "head"])
@pytest.mark.parametrize(("against", "position"), [(None, 10), (3, 6)])
def test_the_parts_of_a_logit_add_up(node: Node, by: str, against: int | None, position: int):
    answers = of_each_model(node, "attribute", target=5, against=against, by=by, position=position)
    for model, found in zip(MODELS, answers, strict=True):
        with trace(model) as t:
            model(torch.tensor([ids_of(model.config)]))
        expected = attribute(t, 5, against, by, position)
        assert [part["label"] for part in found["parts"]] == expected.labels
        assert [part["value"] for part in found["parts"]] == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert {part["label"]: part["value"] for part in found["constants"]} == pytest.approx(
            expected.constants, abs=1e-4
        )
        assert found["total"] == pytest.approx(expected.total, abs=1e-4)
        assert found["logit"] == pytest.approx(expected.logit, abs=1e-4)
        assert abs(found["remainder"]) < 1e-4


@pytest.mark.parametrize("period", [None, 3, 5])
def test_the_scores_of_heads(node: Node, period: int | None):
    pattern = torch.randn(7, 11, 11, generator=torch.Generator().manual_seed(2)) * 3
    pattern = pattern.masked_fill(torch.ones(11, 11, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
    (found,) = node([("scores_of_pattern", {"pattern": pattern, "shape": [7, 11, 11], "period": period})])
    expected = scores_of_pattern(pattern, period)
    assert found == {kind: pytest.approx(scores.tolist(), abs=1e-5) for kind, scores in expected.items()}


def test_the_text_that_shows_induction(node: Node):
    cases = [(23, 13), (61, 1024), (200, 1024), (9, 1024), (4, 1024), (3, 1024), (50, 6)]
    calls = [("repeated_tokens", {"config": {"block_size": block_size}, "V": V, "seed": 5}) for V, block_size in cases]
    for found, (V, block_size) in zip(node(calls), cases, strict=True):
        length = min(50, (block_size - 1) // 2, V - 1)
        if length < 3:
            assert found is None
            continue
        first, *ids = found["ids"]
        assert found["period"] == length
        assert ids[:length] == ids[length:]
        assert len({first, *ids}) == length + 1
        assert {first, *ids} <= {*range(V)}


def test_what_each_module_costs(node: Node):
    configs = [*CONFIGS, GPTConfig(bias=False)]
    calls = [("size", {"config": dataclasses.asdict(config), "tokens": 7}) for config in configs]
    for rows, config in zip(node(calls), configs, strict=True):
        expected = {
            row.name: (row.parameters, row.forward_flops)
            for row in model_size(config, tokens=7).rows
            if row.parameters or row.forward_flops or row.name == "lm_head"
        }
        assert {row["name"]: (row["parameters"], row["flops"]) for row in rows} == expected
        assert all(row["bytes"] == 4 * row["parameters"] for row in rows)
