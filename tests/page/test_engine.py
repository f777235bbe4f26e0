"""The page's forward pass against the model's: every traced point, with and without a cache, at prime sizes."""

import itertools

import pytest
import torch

from minigpt.analysis import ablate, edit, knockout, points, trace
from minigpt.config import GPTConfig
from minigpt.model import GPT
from tests.conftest import random_model
from tests.page.conftest import Call, Node, PageError, the_model

SHAPE = {"vocab_size": 23, "block_size": 13, "n_layer": 2, "n_head": 3, "n_embd": 3 * 5}
CONFIGS = [
    GPTConfig(**SHAPE, bias=bias, tie_weights=tied) for bias, tied in itertools.product((True, False), repeat=2)
] + [GPTConfig(vocab_size=7, block_size=11, n_layer=3, n_head=1, n_embd=2)]
IDS = [5, 1, 5, 22, 0, 17, 3, 11, 2, 7, 19]  # 11 tokens: a prime, and no multiple of four


def ids_of(config: GPTConfig) -> list[int]:
    return [token % config.vocab_size for token in IDS]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_every_point_is_as_in_the_model(node: Node):
    models = [random_model(config, 31) for config in CONFIGS]
    calls: list[Call] = []
    for number, model in enumerate(models):
        calls.append(the_model(str(number), model))
        pieces = [ids_of(model.config)]
        calls.append(("forward", {"model": str(number), "pieces": pieces, "edits": [], "taps": ["*"]}))
    for model, (passed,) in zip(models, node(calls)[1::2], strict=True):
        with trace(model, "*") as t:
            logits = model(torch.tensor([ids_of(model.config)]))
        assert [*passed["traced"]] == points(model.config)
        close(passed["logits"].view_as(logits), logits)
        for name in points(model.config):
            expected = t[name] if name == "pos_embed" else t[name][0]
            assert passed["traced"][name].shape == expected.shape, name
            close(passed["traced"][name], expected)


@pytest.mark.parametrize("cuts", [[1] * 11, [4, 7], [5, 1, 5], [10, 1]])
def test_a_sequence_cut_into_calls_gives_the_same(node: Node, cuts: list[int]):
    model = random_model(CONFIGS[0], 31)
    ends = [*itertools.accumulate(cuts)]
    pieces = [IDS[end - length : end] for end, length in zip(ends, cuts, strict=True)]
    _, passed = node(
        [the_model("m", model), ("forward", {"model": "m", "pieces": pieces, "edits": [], "taps": ["blocks.*"]})]
    )
    with trace(model, "blocks.*") as t:
        logits = model(torch.tensor([IDS]))[0]
    close(torch.cat([piece["logits"].view(-1, 23) for piece in passed]), logits)
    for end, length, piece in zip(ends, cuts, passed, strict=True):
        for name, found in piece["traced"].items():
            if name.endswith((".k", ".v")):
                expected = t[name][0][..., :end, :]
            elif name.endswith((".scores", ".pattern")):
                expected = t[name][0][..., end - length : end, :end]
            else:
                expected = t[name][0][..., end - length : end, :]
            close(found, expected)


def test_the_last_position_alone(node: Node):
    model = random_model(CONFIGS[1], 31)
    _, (passed,) = node(
        [the_model("m", model), ("forward", {"model": "m", "pieces": [IDS], "edits": [], "taps": None, "last": True})]
    )
    close(passed["logits"], model(torch.tensor([IDS]))[0, -1])
    assert passed["traced"] == {}


EDITS = [
    ([{"kind": "ablate_head", "layer": 1, "head": 2}], [ablate("1.2")]),
    ([{"kind": "ablate_attn", "layer": 0}], [ablate("0.attn")]),
    ([{"kind": "ablate_mlp", "layer": 1}], [ablate("1.mlp")]),
    ([{"kind": "cut_edge", "layer": 0, "head": 1, "query": 9, "key": 4}], [knockout(0, 1, 9, 4)]),
    ([{"kind": "cut_edge", "layer": 0, "head": 2, "query": 4, "key": 0}], [knockout(0, 2, 4, 0)]),  # the cut's first
    (
        [
            {"kind": "ablate_mlp", "layer": 0},
            {"kind": "cut_edge", "layer": 1, "head": 0, "query": 7, "key": 7},
            {"kind": "cut_edge", "layer": 1, "head": 0, "query": 7, "key": 0},
            {"kind": "ablate_head", "layer": 0, "head": 0},
        ],
        [ablate("0.mlp"), knockout(1, 0, 7, 7), knockout(1, 0, 7, 0), ablate("0.0")],
    ),
]


@pytest.mark.parametrize("pieces", [[IDS], [IDS[:4], IDS[4:]]], ids=["at once", "with a cache"])
def test_edits_change_what_they_change_in_the_model(node: Node, pieces: list[list[int]]):
    model = random_model(CONFIGS[0], 31)
    calls = [
        ("forward", {"model": "m", "pieces": pieces, "edits": edits, "taps": ["*.pattern", "*.out"]})
        for edits, _ in EDITS
    ]
    _, *results = node([the_model("m", model), *calls])
    unchanged = model(torch.tensor([IDS]))[0]
    for passed, (_, edits) in zip(results, EDITS, strict=True):
        with trace(model, ["*.pattern", "*.out"]) as t, edit(model, *edits):
            logits = model(torch.tensor([IDS]))[0]
        assert not torch.allclose(logits, unchanged)
        close(torch.cat([piece["logits"].view(-1, 23) for piece in passed]), logits)
        if len(pieces) == 1:
            for name, found in passed[0]["traced"].items():
                close(found, t[name][0])


@pytest.mark.parametrize("position", [0, 3, 4, 5, 10])
def test_a_replaced_token(node: Node, position: int):
    model = random_model(CONFIGS[0], 31)
    edits = [{"kind": "replace_token", "position": position, "id": 9}]
    args = {"model": "m", "pieces": [IDS[:4], IDS[4:]], "edits": edits, "taps": None}
    _, passed = node([the_model("m", model), ("forward", args)])
    expected = model(torch.tensor([[*IDS[:position], 9, *IDS[position + 1 :]]]))[0]
    close(torch.cat([piece["logits"].view(-1, 23) for piece in passed]), expected)


WRONG = [
    ({"pieces": [[3, 23]]}, "id 23 is not in the vocabulary of 23"),
    ({"pieces": [[3, -1]]}, "id -1 is not in"),
    ({"pieces": [[]]}, "no tokens"),
    ({"pieces": [[1] * 14]}, "14 tokens are more than there is room for: 13"),
    ({"pieces": [[1] * 12, [1, 1]]}, "2 tokens are more than there is room for: 1"),
    ({"taps": ["blocks.2.*"]}, "there is no point 'blocks.2.*'"),
    ({"edits": [{"kind": "explode"}]}, "there is no edit 'explode'"),
    ({"edits": [{"kind": "ablate_head", "layer": 0, "head": 3}]}, "there is no head 3: the model has 3"),
    ({"edits": [{"kind": "ablate_mlp", "layer": 2}]}, "there is no layer 2: the model has 2"),
    ({"edits": [{"kind": "cut_edge", "layer": 0, "head": 0, "query": 0, "key": 0}]}, "query 0 sees nothing but key 0"),
    ({"edits": [{"kind": "cut_edge", "layer": 0, "head": 0, "query": 2, "key": 3}]}, "query 2 does not see key 3"),
    (
        {"edits": [{"kind": "cut_edge", "layer": 0, "head": 0, "query": 1, "key": key} for key in (0, 1)]},
        "query 1 of head 0.0 is left without any key",
    ),
    ({"edits": [{"kind": "replace_token", "position": 13, "id": 0}]}, "there is no position 13"),
]


def test_what_does_not_fit_is_refused(node: Node):
    usual = {"model": "m", "pieces": [IDS], "edits": [], "taps": None}
    model = random_model(CONFIGS[0], 31)
    cut: GPT = random_model(CONFIGS[3], 31)  # its head is its own
    name, args = the_model("cut", cut)
    args["weights"]["h.1.attn.c_proj.weight"] = args["weights"]["h.1.attn.c_proj.weight"][:, :-1]
    results = node([the_model("m", model), (name, args), *[("forward", usual | wrong) for wrong, _ in WRONG]])
    expected = ["210 numbers of h.1.attn.c_proj.weight, and the model needs 15 x 15", *[said for _, said in WRONG]]
    for result, said in zip(results[1:], expected, strict=True):
        assert isinstance(result, PageError), said
        assert said in str(result)
        assert len(str(result).splitlines()) == 2
