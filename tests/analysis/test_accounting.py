"""What a model costs: counted on paper here, and on the real model by torch itself."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minigpt.analysis.accounting import human, model_size
from minigpt.config import GPTConfig, TrainConfig
from minigpt.errors import InputError
from minigpt.evaluation.loss import next_token_loss
from minigpt.kv_cache import KVCache
from minigpt.model import GPT, explicit_attention, fused_attention
from minigpt.system.device import autocast
from minigpt.training.optim import make_optimizers

CORES = {"explicit": explicit_attention, "fused": fused_attention}
SHAPE = GPTConfig(vocab_size=29, block_size=17, n_layer=2, n_head=3, n_embd=3 * 7)
SHAPES = [
    SHAPE,
    replace(SHAPE, bias=False),
    replace(SHAPE, tie_weights=False, n_layer=3),
    replace(SHAPE, tie_weights=False, bias=False, n_head=1, n_layer=1),
]
B, T = 5, 11
GPT2 = GPTConfig()


def model_of(config: GPTConfig, attention: str = "fused") -> GPT:
    torch.manual_seed(0)
    model = GPT(config)
    for block in model.h:
        block.attn.core = CORES[attention]
    return model


def loss_of(model: GPT, batch_size: int = B, tokens: int = T) -> torch.Tensor:
    idx = torch.randint(model.config.vocab_size, (batch_size, tokens))
    return next_token_loss(model(idx), idx.clone())


@pytest.mark.parametrize("config", SHAPES)
def test_parameters_are_the_models(config):
    size, model = model_size(config), GPT(config)
    assert size.parameters == model.num_parameters()
    rows = {row.name: row.parameters for row in size.rows if row.parameters}
    modules = dict(model.named_modules(remove_duplicate=False))
    own = {name: sum(p.numel() for p in module.parameters(recurse=False)) for name, module in modules.items()}
    if config.tie_weights:
        own["lm_head"] = 0
    assert rows == {name: number for name, number in own.items() if number}


@pytest.mark.parametrize("config", SHAPES)
def test_flops_are_what_torch_counts(config):
    model = model_of(config, "explicit")
    with FlopCounterMode(display=False) as forward:
        loss = loss_of(model)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    size = model_size(config, B, T)
    assert size.forward_flops == forward.get_total_flops()
    assert size.training_flops == forward.get_total_flops() + backward.get_total_flops()
    counted = {module.removeprefix("GPT."): sum(ops.values()) for module, ops in forward.get_flop_counts().items()}
    rows = {row.name: row.forward_flops for row in size.rows}
    for module in ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj", "lm_head"):
        assert rows[module] == counted[module]
    attention = counted["h.0.attn"] - counted["h.0.attn.c_attn"] - counted["h.0.attn.c_proj"]
    assert rows["h.0.attn scores"] == rows["h.0.attn values"] == attention / 2


def test_the_numbers_that_go_around_for_gpt2_small():
    size = model_size(GPT2)
    assert size.parameters == 124_439_808
    assert size.forward_flops == 291_648_307_200
    assert size.training_flops == 874_944_921_600
    rows = {row.name: row.forward_flops for row in size.rows}
    assert rows["h.7.attn.c_attn"] == 3_623_878_656
    assert rows["h.7.attn scores"] == rows["h.7.attn values"] == 1_610_612_736
    assert rows["h.7.attn.c_proj"] == 1_207_959_552
    assert rows["h.7.mlp.c_fc"] == rows["h.7.mlp.c_proj"] == 4_831_838_208
    assert rows["lm_head"] == 79_047_426_048
    half = model_size(GPT2, tokens=1, bytes_per_value=2)
    assert half.kv_cache_bytes == 36_864


def test_training_flops_follow_palm():
    """Chowdhery et al., 2022, appendix B: 6 N + 12 L C T a token, for a model without biases; N without positions."""
    size = model_size(replace(GPT2, bias=False))
    N = size.parameters - GPT2.block_size * GPT2.n_embd
    palm = GPT2.block_size * (6 * N + 12 * GPT2.n_layer * GPT2.n_embd * GPT2.block_size)
    assert palm == 875_062_886_400
    assert size.training_flops == pytest.approx(palm, rel=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_the_caches(dtype):
    cache = KVCache(SHAPE, batch_size=B, max_length=T, dtype=dtype)
    assert model_size(SHAPE, B, T, bytes_per_value=dtype.itemsize).kv_cache_bytes == cache.k.nbytes + cache.v.nbytes


def kept_bytes(model: GPT, dtype: torch.dtype, batch_size: int) -> int:
    """What autograd keeps for the backward pass: every storage once, without those that live as long as the model."""
    living = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(torch.device("cpu"), dtype):
        loss_of(model, batch_size)
    return sum(size for address, (size, _) in kept.items() if address not in living)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("attention", ["explicit", "fused"])
@pytest.mark.parametrize("config", SHAPES)
def test_activation_bytes_are_what_autograd_keeps(config, attention, dropout, dtype):
    config = replace(config, dropout=dropout)
    for batch_size in (1, B):
        size = model_size(config, batch_size, T, bytes_per_value=dtype.itemsize, attention=attention)
        assert size.activation_bytes == kept_bytes(model_of(config, attention), dtype, batch_size)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("config", SHAPES)
def test_gradients_and_optimizer_state_are_the_real_ones(config, optimizer):
    model = model_of(config)
    optimizers = make_optimizers(model, TrainConfig(optimizer=optimizer))
    loss_of(model, tokens=config.block_size).backward()
    size = model_size(config, optimizer=optimizer)
    assert size.gradient_bytes == sum(p.grad.nbytes for p in model.parameters())
    assert size.parameter_bytes == sum(p.nbytes for p in model.parameters())
    for each in optimizers:
        each.step()
    states = [value for each in optimizers for state in each.state.values() for value in state.values()]
    assert size.optimizer_bytes == sum(value.nbytes for value in states if value.dim() > 0)  # not the step counters


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("config", [*SHAPES, GPT2])
def test_the_identities_hold_and_a_lost_row_breaks_them(config, optimizer):
    size = model_size(config, optimizer=optimizer)
    checks = size.checks
    assert all(check.ok and check.error <= check.tolerance for check in checks)
    without = replace(size, rows=tuple(row for row in size.rows if row.name != "h.0.attn.c_attn"))
    broken = {check.name.split(" =")[0] for check in without.checks if not check.ok}
    assert broken == {"parameters", "forward FLOPs", "training FLOPs", "gradients", "optimizer"}
    without = replace(size, rows=tuple(row for row in size.rows if row.name != "h.0.attn values"))
    broken = {check.name.split(" =")[0] for check in without.checks if not check.ok}
    assert broken == {"forward FLOPs", "training FLOPs", "KV-cache"}


def test_the_table_folds_the_blocks_and_fits_the_terminal():
    lines = model_size(GPT2).table().splitlines()
    for config in (GPT2, replace(GPT2, dropout=0.5, n_layer=100, n_embd=12 * 1024)):
        table = model_size(config, 97, optimizer="muon", attention="explicit").table().splitlines()
        assert max(map(len, table)) <= 80
        assert not any(re.search(r"[a-z]\d", line) for line in table)  # no column runs into the next
        assert {len(line) for line in table if "attn scores" in line} == {80}  # or is pushed aside
        assert all(len(line) in (0, 30, 40, 50, 60, 70, 80) for line in table[: table.index("")])
    (blocks,) = [line for line in lines if line.startswith("h.0 ... h.11  x 12")]
    assert blocks.split()[-2:] == ["75.5", "MB"]  # 12 layers x 2 x 1,024 x 768 x 4 bytes
    assert "85.1 M" in blocks
    assert not any("h.1." in line for line in lines)
    (total,) = [line for line in lines if line.startswith("together")]
    assert "124 M" in total
    assert "292 G" in total
    assert "lm_head: its weight is wte's, counted there" in lines
    assert model_size(replace(GPT2, n_layer=1)).table().splitlines()[3].startswith("h.0    ")


def test_the_rows_add_up():
    size = model_size(replace(SHAPE, dropout=0.5), 2, 3, 2, "muon", "explicit")
    for name in ("parameters", "forward_flops", "activation_bytes", "gradient_bytes", "optimizer_bytes"):
        assert getattr(size, name) == sum(getattr(row, name) for row in size.rows) > 0
    assert size.training_flops == sum(row.forward_flops + row.backward_flops for row in size.rows)
    assert size.config == replace(SHAPE, dropout=0.5)
    assert (size.batch_size, size.tokens, size.bytes_per_value) == (2, 3, 2)
    assert (size.optimizer, size.attention) == ("muon", "explicit")


@pytest.mark.parametrize(
    ("batch_size", "tokens", "wrong"),
    [
        (0, 3, "batch_size = 0 .*\nbatch_size must be at least 1 "),
        (1, 0, "tokens = 0 .*\ntokens must be at least 1 "),
        (10**30, 3, "batch_size = 10+ .*\nbatch_size must be .* at most 16,777,216"),
        (1, 18, "1 row of 18 tokens .*\n.*block_size = 17"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(batch_size, tokens, wrong):
    with pytest.raises(InputError, match=wrong):
        model_size(SHAPE, batch_size, tokens)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1536, "1.54 k"), (124_439_808, "124 M"), (99_960, "100 k"),
        (99_940, "99.9 k"), (999_600, "1 M"), (875_062_886_400, "875 G"), (2e18, "2 E"),
        (3 * 10**21, "3 Z"), (5e32, "500 Q"), (7 * 10**33, "7e+03 Q"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(number, text):
    assert human(number) == text
    assert human(number, "B") == (text + "B" if " " in text else text + " B")


def test_what_if_does_without_torch():
    code = "import sys, minigpt.analysis.accounting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
