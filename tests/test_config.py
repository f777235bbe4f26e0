"""Every wrong setting has its own error, and YAML returns what was written."""

import dataclasses
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np
import pytest
from typing_extensions import TypeAliasType

from minigpt.cli.parser import Command, Flag, SettingsParser
from minigpt.config import (
    PRESETS,
    DataConfig,
    DocumentsConfig,
    GPTConfig,
    LoRAConfig,
    RunConfig,
    TrainConfig,
    preset,
    read_yaml,
    updated,
    write_yaml,
)
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import ConfigError, MissingFileError
from minigpt.fields import Form, check_value, hints, matches

S = TypeVar("S")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPTConfig(n_layer=0), "n_layer = 0 is out of range"),
        (lambda: GPTConfig(block_size=0), "block_size = 0 is out of range"),
        (lambda: GPTConfig(vocab_size=-1), "vocab_size = -1 is out of range"),
        (lambda: GPTConfig(n_embd=10, n_head=3), r"n_embd = 10 cannot be split into n_head = 3 .*\n.* 9"),
        (lambda: GPTConfig(dropout=1.0), r"dropout = 1.0 is out of range\n.*\[0, 1\)"),
        (lambda: GPTConfig(dropout=-0.1), "dropout = -0.1 is out of range"),
        (lambda: GPTConfig(dropout=float("nan")), "dropout = nan is out of range"),
        (lambda: GPTConfig(n_layer="4"), r"n_layer = '4' is of the wrong type \(str\)\nn_layer must be a whole number"),
        (lambda: GPTConfig(n_layer=2.5), "n_layer = 2.5 is of the wrong type"),
        (lambda: GPTConfig(n_layer=True), "n_layer = True is of the wrong type"),
        (lambda: GPTConfig(bias=1), "bias = 1 is of the wrong type"),
        (lambda: LoRAConfig(targets=["attn.c_proj"]), r"wrong type \(list\)\ntargets must be a tuple, each a text"),
        (lambda: DataConfig(val_fraction=0.0), "val_fraction = 0.0"),
        (lambda: DataConfig(val_fraction=1), "val_fraction = 1 is out of range"),
        (lambda: DataConfig(tokenizer="bpe"), "must be one of char, gpt2"),
        (lambda: TrainConfig(learning_rate=-1e-3), "learning_rate = -0.001 would not learn"),
        (lambda: TrainConfig(learning_rate=float("inf")), "learning_rate = inf"),
        (lambda: TrainConfig(learning_rate=10**400), r"learning_rate = 10+\.\.\.0+ is out of range"),
        (lambda: TrainConfig(max_steps=10, warmup_steps=11), r"warmup_steps = 11 is more than max_steps = 10"),
        (lambda: TrainConfig(learning_rate=1e-4, min_learning_rate=1e-3), r"min_learning_rate = 0.001 is above"),
        (lambda: TrainConfig(weight_decay=-1), "weight_decay = -1 is out of range"),
        (lambda: TrainConfig(grad_clip=-1), "grad_clip = -1 is out of range"),
        (lambda: TrainConfig(beta2=1.0), "beta2 = 1.0 is out of range"),
        (lambda: TrainConfig(batch_size=0), "batch_size = 0 is out of range"),
        (lambda: TrainConfig(eval_interval=0), "eval_interval = 0 is out of range"),
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
        "shakespeare-quick", "shakespeare-cpu", "shakespeare-best", "shakespeare-char", "finetune-documents", "chat",
        "chat-shakespeare", "finetune-text", "gpt2-124m",
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


def words(settings, where=()):
    """Where the settings are that hold free text, and no choice between words."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from words(value, (*where, field.name))
        elif get_type_hints(type(settings))[field.name] is str:
            yield (*where, field.name)


@pytest.mark.parametrize("place", list(words(RunConfig())), ids=".".join)
def test_a_word_that_yaml_reads_as_something_else_is_refused_unless_it_is_quoted(tmp_path, place):
    """`text_field: yes` is no column called "on", `2020-01-01` no text, and `~` nothing; with quotes each is a word."""
    path = tmp_path / "c.yaml"
    pair = {"prompt_field": "  completion_field: a\n", "completion_field": "  prompt_field: q\n"}.get(place[-1], "")
    for written in ("yes", "NO", "on", "off", "true", "False", "7", "1.5", "2020-01-01", "~", "null", ""):
        indented = [f"{'  ' * depth}{name}:" for depth, name in enumerate(place)]
        path.write_text("\n".join(indented) + f" {written}\n")
        with pytest.raises(ConfigError, match=rf"^{re.escape('.'.join(place))} = .* is no text") as refused:
            updated(RunConfig(), read_yaml(path))
        assert "put quotes around" in refused.value.how
        path.write_text("\n".join(indented) + f" '{written}'\n" + pair * bool(written))
        section = updated(RunConfig(), read_yaml(path))
        for name in place:
            section = getattr(section, name)
        assert section == written


@pytest.mark.parametrize("content", ["a: [1", "just text", "- 1", ""])
def test_yaml_that_is_none(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_yaml(path)


def test_settings_of_an_older_run_are_read_under_their_names_of_today(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "documents: {batching: confined, val_data: held-out.jsonl, max_length: 7}\ndata: {source: all.jsonl}\n"
    )
    config = updated(RunConfig(), read_yaml(path))
    assert (config.documents.batching, config.documents.max_length) == ("packed-masked", 7)
    assert (config.data.source, config.data.val_data) == ("all.jsonl", "held-out.jsonl")


def test_a_setting_under_both_its_names_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("documents: {val_data: a.jsonl}\ndata: {val_data: b.jsonl}\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'documents.val_data'"):
        updated(RunConfig(), read_yaml(path))


def test_settings_that_are_read_again_are_those_of_the_file(tmp_path):
    """Whatever was made of them in the meantime; and another content is read anew."""
    path = tmp_path / "c.yaml"
    path.write_text("documents: {batching: confined}\ndata: {source: all.jsonl}\nversions: {torch: x}\n")
    first = read_yaml(path)
    first["data"]["source"] = "changed"
    assert read_yaml(path) == {"documents": {"batching": "packed-masked"}, "data": {"source": "all.jsonl"}}
    path.write_text("data: {source: new.jsonl}\n")
    assert read_yaml(path) == {"data": {"source": "new.jsonl"}}


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


# --- whatever a file of settings holds ---

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
)
STRANGE = {
    "no date": "seed: 2020-99-99",
    "no number": "seed: !!int abc",
    "an empty number": "seed: !!int ''",
    "an empty float": "seed: !!float ''",
    "no truth": "seed: !!bool maybe",
    "no timestamp": "seed: !!timestamp x",
    "no bytes": "seed: !!binary 'ä'",
    "digits without an end": "seed: " + "9" * 5000,
    "a prefix alone": "seed: 0x_",
    "hexadecimal without an end": "seed: 0x" + "f" * 5000,
    "brackets": "seed: " + "[" * 3000,
    "closed brackets": "seed: " + "[" * 3000 + "]" * 3000,
    "an alias": "seed: &a 1\ntrain: {max_steps: *a}",
    "aliases without an end": BOMB,
    "an alias to nothing": "seed: *a",
    "itself": "train: &a {max_steps: *a}",
    "a list for a key": "? [a]\n: 1",
    "a mapping for a key": "? {a: 1}\n: 1",
    "a long word": "seed: " + "x" * 100_000,
    "a long key": "x" * 100_000 + ": 1",
    "a long list": "train: [" + "x, " * 30_000 + "]",
    "half a character": 'seed: "\\ud800"',
    "a control character": "seed: \x07",
    "a tab": "train:\n\tseed: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "a set": "train: !!set {a, b}",
    "code": "seed: !!python/object/apply:os.getcwd []",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_yaml_that_cannot_be_settings_is_two_short_lines(tmp_path, kind):
    path = tmp_path / "c.yaml"
    path.write_text(STRANGE[kind], encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError) as refused:
        updated(RunConfig(), read_yaml(path))
    what, how = str(refused.value).split("\n")
    assert len(what) < 400
    assert len(how) < 400


@pytest.mark.parametrize("place", ["a folder", "a pipe", "a device", "half a character", "too large"])
def test_what_is_no_file_of_settings_is_two_lines(tmp_path, place):
    path = tmp_path / "c.yaml"
    if place == "a folder":
        path.mkdir()
    elif place == "a pipe":
        os.mkfifo(path)  # to which nobody writes: who waits for it, waits for ever
    elif place == "a device":
        path = Path("/dev/zero")
    else:
        path.write_bytes(b"seed: \xff" if place == "half a character" else b"#" * 2**21)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as refused:
        read_yaml(path)
    assert str(refused.value).count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: 1\ndtype: auto\nseed: 2\n", "'seed' is there twice, in lines 1 and 3"),
        (
            "train:\n  max_steps: 3\nmodel: {n_layer: 1}\ntrain:\n  batch_size: 5\n",
            "'train' is there twice, in lines 1 a",
        ),
        ("train:\n  max_steps: 3\n  batch_size: 3\n  max_steps: 5\n", "'max_steps' is there twice, in lines 2 and 4"),
        ("model: {n_layer: 1, n_layer: 2}\n", "'n_layer' is there twice, in lines 1 and 1"),
        ("versions:\n  a: {b: [{c: 1,\n    c: 1}]}\n", "'c' is there twice, in lines 2 and 3"),
        ("on: 1\nyes: 1\n", "True is there twice, in lines 1 and 2"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_both_lines(tmp_path, content, said):
    """At any depth: the library keeps the last, and nothing that was written may be dropped without a word."""
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_yaml(path)


@pytest.mark.parametrize(
    "spelled", ["010", "-010", "0_10", "1_0", "1:30", "0x1F", "0b11", "1_0.5", "1:30.5", "!!int '010'", "!!float 1_0"]
)
@pytest.mark.parametrize("name", ["seed", "train: {grad_clip"])
def test_a_number_is_spelled_as_a_flag_takes_it(tmp_path, name, spelled):
    """YAML 1.1 reads 010 as 8 and 1:30 as 90; nobody means that, so nothing is guessed."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{name}: {spelled}" + "}" * ("{" in name))
    with pytest.raises(ConfigError, match=re.escape(repr(spelled.split()[-1].strip("'")))):
        read_yaml(path)


class Numbers(Command):
    """To see."""

    whole: Annotated[int | None, Flag(short="-w")] = None
    """a whole number"""
    number: float = 0
    """a number"""
    train: TrainConfig = preset("shakespeare-quick").train


@pytest.mark.parametrize("spelled", ["010", "1_0", "1:30", "0x1F", "\u0661", "1__0"])
@pytest.mark.parametrize("flag", ["--whole", "--train.max_steps", "--train.grad_clip"])
def test_a_flag_takes_no_other_spelling(flag, spelled):
    for arguments in ([flag, spelled], [f"{flag}={spelled}"], ["-w", spelled], [f"-w{spelled}"], [f"-w={spelled}"]):
        with pytest.raises(ConfigError, match=re.escape(spelled)):
            SettingsParser("try", Numbers).parse(arguments)


@pytest.mark.parametrize("spelled", ["0", "7", "-0", "+3", "0.5", ".5", "5.", "1e-3", "1E3", "2.5e+1", "-1e2"])
def test_a_plain_number_is_read_everywhere_alike(tmp_path, spelled):
    path = tmp_path / "c.yaml"
    path.write_text(f"train: {{weight_decay: {spelled.replace('-', '', spelled[0] == '-')}}}")
    assert updated(RunConfig(), read_yaml(path)).train.weight_decay == abs(float(spelled))
    for arguments in ([f"--number={spelled}"], ["--number", spelled]):
        assert SettingsParser("try", Numbers).parse(arguments).number == float(spelled)


@pytest.mark.parametrize("written", ["3", "[a]", "x", "null"])
def test_versions_are_a_section(tmp_path, written):
    path = tmp_path / "c.yaml"
    path.write_text(f"seed: 1\nversions: {written}\n")
    with pytest.raises(ConfigError, match="versions"):
        read_yaml(path)


@pytest.mark.parametrize("spelled", ["1e400", ".inf", "-.inf", ".nan", "inf", "nan"])
def test_what_is_not_finite_is_said_to_be_out_of_range(tmp_path, spelled):
    path = tmp_path / "c.yaml"
    path.write_text(f"train: {{learning_rate: {spelled}}}")
    with pytest.raises(ConfigError, match=r"^learning_rate = -?(inf|nan) (is not a|would|is out)") as refused:
        updated(RunConfig(), read_yaml(path))
    assert "type" not in str(refused.value)
    assert "float" not in str(refused.value)


# --- numbers without an end ---

CONFIGS = (GPTConfig, DataConfig, DocumentsConfig, TrainConfig, LoRAConfig, RunConfig)


@pytest.mark.parametrize("config", [*CONFIGS, DecodingOptions, PromptLookup, DraftModel])
def test_every_default_follows_the_rule_beside_it(config):
    """Only values that are not the default are checked when an object is made."""
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            check_value(field.name, field.default, hints(config)[field.name], ConfigError)


EXTREME = [-1, -(2**63), 2**63, 2**64, 10**400, 10**5000, -1e-300, 1e308, math.inf, -math.inf, math.nan]
NUMBERS = [
    (config, field.name, place)
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    for place, value in enumerate(EXTREME)
    if not (isinstance(field.default, float) and value in (2**63, 2**64))  # which a rate may be, and diverges
]


def test_every_number_has_two_ends():
    """Hundreds of cases in one test: a test of its own would take each of them ten times as long."""
    assert len(NUMBERS) > 300
    for config, name, place in NUMBERS:
        case = f"{config.__name__}.{name}, extreme {place}"
        refused: Exception | None = None
        try:
            config(**{name: EXTREME[place]})
        except Exception as error:
            refused = error
        assert isinstance(refused, ConfigError), f"{case}: {refused!r:.300}"
        assert re.match(rf"{name} = .*\n{name} must be ", str(refused)), f"{case}: {refused}"
        assert len(str(refused)) < 300, case


def test_an_array_named_by_a_type_statement_is_an_array():
    """As numpy's NDArray is from 2.5 on, where Python has such statements."""
    named = TypeAliasType("named", np.ndarray[tuple[Any, ...], np.dtype[S]], type_params=(S,))
    assert matches(np.arange(3), named[np.integer])
    assert matches(np.arange(3), Annotated[named[np.integer], Form("one row", lambda ids: ids.ndim == 1)])
    assert not matches([0, 1, 2], named[np.integer])
