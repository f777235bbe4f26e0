"""Every wrong setting has its own error (case 24), and YAML returns what was written."""

import dataclasses
import subprocess
import sys

import pytest

from minigpt.config import (
    PRESETS,
    DataConfig,
    GPTConfig,
    RunConfig,
    TrainConfig,
    preset,
    read_yaml,
    updated,
    write_yaml,
)
from minigpt.errors import ConfigError, MissingFileError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPTConfig(n_layer=0), "n_layer = 0 is too small"),
        (lambda: GPTConfig(block_size=0), "block_size = 0 is too small"),
        (lambda: GPTConfig(vocab_size=-1), "vocab_size = -1 is too small"),
        (lambda: GPTConfig(n_embd=10, n_head=3), r"n_embd = 10 cannot be split into n_head = 3 .*\n.* 9"),
        (lambda: GPTConfig(dropout=1.0), r"dropout = 1.0 is out of range\n.*\[0, 1\)"),
        (lambda: GPTConfig(dropout=-0.1), "dropout = -0.1 is out of range"),
        (lambda: GPTConfig(dropout=float("nan")), "dropout = nan is of the wrong type"),
        (lambda: GPTConfig(n_layer="4"), r"n_layer = '4' is of the wrong type \(str\)\nn_layer must be int"),
        (lambda: GPTConfig(n_layer=2.5), "n_layer = 2.5 is of the wrong type"),
        (lambda: GPTConfig(n_layer=True), "n_layer = True is of the wrong type"),
        (lambda: GPTConfig(bias=1), "bias = 1 is of the wrong type"),
        (lambda: DataConfig(val_fraction=0.0), "val_fraction = 0.0"),
        (lambda: DataConfig(val_fraction=1), "val_fraction = 1 is out of range"),
        (lambda: DataConfig(tokenizer="bpe"), "must be one of char, gpt2"),
        (lambda: TrainConfig(learning_rate=-1e-3), "learning_rate = -0.001 would not learn"),
        (lambda: TrainConfig(learning_rate=float("inf")), "learning_rate = inf"),
        (lambda: TrainConfig(learning_rate=10**400), "learning_rate = 10+ is of the wrong type"),
        (lambda: TrainConfig(max_steps=10, warmup_steps=11), r"warmup_steps = 11 is more than max_steps = 10"),
        (lambda: TrainConfig(learning_rate=1e-4, min_learning_rate=1e-3), r"min_learning_rate = 0.001 is above"),
        (lambda: TrainConfig(weight_decay=-1), "weight_decay = -1 is negative"),
        (lambda: TrainConfig(grad_clip=-1), "grad_clip = -1 is negative"),
        (lambda: TrainConfig(beta2=1.0), "beta2 = 1.0 is out of range"),
        (lambda: TrainConfig(batch_size=0), "batch_size = 0 is too small"),
        (lambda: TrainConfig(eval_interval=0), "eval_interval = 0 is too small"),
        (lambda: TrainConfig(optimizer="sgd"), "must be one of adamw, muon"),
        (lambda: RunConfig(seed=-1), "seed = -1 is out of range"),
        (lambda: RunConfig(dtype="int8"), "dtype = 'int8'"),
        (lambda: updated(RunConfig(), {"train": {"learning_rat": 1}}),
         r"unknown setting 'train.learning_rat'\ndid you mean learning_rate\?"),
        (lambda: updated(RunConfig(), {"trian": {}}), r"unknown setting 'trian'\ndid you mean train\?"),
        (lambda: updated(RunConfig(), {"train": 3}), "train = 3 is not a section"),
        (lambda: updated(RunConfig(), {"train": {"learning_rate": "fast"}}), "learning_rate = 'fast'"),
        (lambda: preset("shakespear-quick"), r"no preset 'shakespear-quick'\ndid you mean shakespeare-quick\?"),
    ],
)  # fmt: skip
def test_every_wrong_setting_is_named(make, message):
    with pytest.raises(ConfigError, match=message) as raised:
        make()
    assert str(raised.value).count("\n") == 1  # what, and how: two lines


def test_whole_numbers_are_floats_too():
    assert GPTConfig(dropout=0).dropout == 0
    assert TrainConfig(learning_rate=1, min_learning_rate=0).learning_rate == 1


def test_every_preset_is_complete_and_valid():
    assert list(PRESETS) == [
        "shakespeare-quick", "shakespeare-cpu", "shakespeare-char", "finetune-documents", "finetune-text", "gpt2-124m",
    ]  # fmt: skip
    baby = preset("shakespeare-char")
    assert dataclasses.astuple(baby.model)[1:6] == (256, 6, 6, 384, 0.2)
    assert (baby.train.batch_size, baby.train.max_steps, baby.train.optimizer) == (64, 5000, "adamw")
    assert TrainConfig().optimizer == "adamw"


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_returns_what_was_written(tmp_path, name):
    path = tmp_path / "größe.yaml"
    write_yaml(preset(name), path, {"torch": "x"})
    assert updated(RunConfig(), read_yaml(path)) == preset(name)


def test_yaml_reads_scientific_notation(tmp_path):
    """YAML 1.1 takes 1e-3 for text; people write it for numbers."""
    path = tmp_path / "c.yaml"
    path.write_text("train: {learning_rate: 1e-2, min_learning_rate: 0}\n")
    assert updated(RunConfig(), read_yaml(path)).train.learning_rate == 0.01


def test_yaml_reads_on_and_off_as_words(tmp_path):
    """YAML 1.1 takes them for true and false."""
    path = tmp_path / "c.yaml"
    path.write_text("compile: off\n")
    assert updated(RunConfig(), read_yaml(path)).compile == "off"


@pytest.mark.parametrize("content", ["a: [1", "just text", "- 1", ""])
def test_yaml_that_is_none(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_yaml(path)


def test_yaml_never_runs_code(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: !!python/object/apply:os.system ['touch canary']\n")
    with pytest.raises(ConfigError):
        read_yaml(path)
    assert not (tmp_path / "canary").exists()


def test_yaml_missing(tmp_path):
    with pytest.raises(MissingFileError, match="no configuration file"):
        read_yaml(tmp_path / "none.yaml")


def test_configuration_imports_without_torch():
    code = "import sys, minigpt.config, minigpt.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
