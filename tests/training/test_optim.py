"""The schedule as a list, the groups as a partition, Muon against torch's."""

import inspect
import math
import sys

import pytest
import torch

from minigpt.config import GPTConfig, TrainConfig
from minigpt.model import GPT
from minigpt.training.optim import Muon, lr_at, make_optimizers, orthogonalize, parameter_groups, set_learning_rate


def test_the_schedule_is_this_list():
    """By hand: 1/4, 2/4, 3/4, 4/4 of the peak; then 0.2 + 0.8 * (1 + cos(pi p)) / 2 for p = 0, 1/4, 1/2, 3/4, 1."""
    config = TrainConfig(max_steps=8, warmup_steps=4, learning_rate=1.0, min_learning_rate=0.2)
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2]
    assert [lr_at(step, config) for step in range(9)] == pytest.approx(expected)


def test_the_schedule_is_clamped_at_both_ends():
    """Beyond its end a cosine rises again; one trainer reached a rate of -127 that way (nanochat 775)."""
    config = TrainConfig(max_steps=8, warmup_steps=4, learning_rate=1.0, min_learning_rate=0.2)
    assert [lr_at(step, config) for step in (9, 12, 10**9)] == [0.2] * 3
    assert lr_at(-5, config) == 0.25
    assert lr_at(0, TrainConfig(max_steps=3, warmup_steps=0)) == TrainConfig().learning_rate
    assert lr_at(3, TrainConfig(max_steps=3, warmup_steps=3)) == TrainConfig().min_learning_rate


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_the_groups_are_a_partition(optimizer, tie_weights):
    model = GPT(GPTConfig(vocab_size=7, block_size=5, n_layer=2, n_head=1, n_embd=3, tie_weights=tie_weights))
    model.wpe.weight.requires_grad_(False)
    groups = parameter_groups(model, TrainConfig(optimizer=optimizer))
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    assert all(parameter.dim() == 1 for parameter in groups["no_decay"]) is (optimizer == "adamw")
    assert all(parameter.dim() == 2 for parameter in groups["decay"] + groups["muon"])
    assert len(groups["muon"]) == (8 if optimizer == "muon" else 0)
    optimized = [id(p) for o in make_optimizers(model, TrainConfig(optimizer=optimizer)) for g in o.param_groups
                 for p in g["params"]]  # fmt: skip
    assert sorted(optimized) == sorted(grouped)


def test_where_only_matrices_are_trained_there_is_muon_alone():
    model = GPT(GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=1, n_embd=3, bias=False))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "h.0.mlp.c_fc.weight")
    (muon,) = make_optimizers(model, TrainConfig(optimizer="muon"))
    assert [group["params"] for group in muon.param_groups] == [[], [model.h[0].mlp.c_fc.weight]]


def test_all_rates_follow_one_schedule():
    config = TrainConfig(optimizer="muon", learning_rate=0.4, min_learning_rate=0.1, muon_learning_rate=2.0,
                         max_steps=10, warmup_steps=2)  # fmt: skip
    optimizers = make_optimizers(GPT(GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=1, n_embd=3)), config)
    assert set_learning_rate(optimizers, 0, config) == pytest.approx(0.2)
    muon, adamw = optimizers
    assert [g["lr"] for g in muon.param_groups] == pytest.approx([1.0, 1.0])
    assert [g["lr"] for g in adamw.param_groups] == pytest.approx([0.2])
    set_learning_rate(optimizers, 99, config)
    assert [g["lr"] for g in muon.param_groups] == pytest.approx([0.5, 0.5])
    assert [g["lr"] for g in adamw.param_groups] == pytest.approx([0.1])


def test_muon_takes_the_steps_of_torch():
    """Torch iterates in bfloat16 (8 bits): its directions agree with ours to a few hundredths."""
    torch.manual_seed(0)
    shapes = [(17, 5), (5, 17), (11, 11), (17, 5)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    a = Muon(ours, lr=0.1, weight_decay=0.3, momentum=0.9)
    b = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.3, momentum=0.9, adjust_lr_fn="original")
    for _ in range(3):
        starts = [parameter.detach().clone() for parameter in ours]
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
            other.data.copy_(mine.data)
        a.step()
        b.step()
        for start, mine, other in zip(starts, ours, theirs, strict=True):
            step, expected = mine - start, other - start
            assert (step - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("shape", [(3, 7, 19), (3, 19, 7), (2, 13, 13)])
def test_orthogonalize_keeps_directions_and_evens_sizes_out(shape):
    torch.manual_seed(1)
    matrices = torch.randn(shape, dtype=torch.float64)
    result = orthogonalize(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    sizes = u.mT @ result @ vh.mT  # diagonal if the singular vectors are the same
    diagonal = sizes.diagonal(dim1=-2, dim2=-1)
    assert (sizes - torch.diag_embed(diagonal)).abs().max() < 1e-6
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    assert torch.allclose(result[1:2], orthogonalize(matrices[1:2]), atol=1e-10)


def test_muon_leaves_what_has_no_gradient():
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    Muon([parameter], lr=1.0, weight_decay=0.5, momentum=0.95).step()
    assert torch.equal(parameter, torch.ones(3, 2))


def test_stacked_matrices_are_taken_one_by_one():
    torch.manual_seed(2)
    whole = torch.nn.Parameter(torch.randn(15, 5))
    parts = [torch.nn.Parameter(part.clone()) for part in whole.detach().split(5)]
    whole.grad = torch.randn(15, 5)
    for part, grad in zip(parts, whole.grad.split(5), strict=True):
        part.grad = grad.clone()
    Muon([{"params": [whole], "stacked": 3}], lr=0.1, weight_decay=0.3, momentum=0.95).step()
    Muon(parts, lr=0.1, weight_decay=0.3, momentum=0.95).step()
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


def test_no_step_waits_for_the_compiler(monkeypatch):
    """To import it takes about as long as to import torch, in every training, whether it compiles or not."""
    monkeypatch.delattr(inspect.unwrap(torch.optim.Optimizer.add_param_group), "__dynamo_disable", raising=False)
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # nobody can import it now
    model = GPT(GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=1, n_embd=3))
    muon, adamw = make_optimizers(model, TrainConfig(optimizer="muon"))
    assert isinstance(adamw, torch.optim.AdamW)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in (muon, adamw):
        optimizer.step()
        assert optimizer.state
