"""`--weights`: on every command that only reads a model the same answer, and a refusal where weights are looked at."""

import io
import json
import math
import sys

import pytest
import torch

from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.cli.main import parser_of
from minigpt.cli.settings import SETTINGS
from minigpt.config import GPTConfig, LoRAConfig
from minigpt.data.dialogues import with_template
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.run_directory import save_run
from minigpt.lora import add_lora
from minigpt.tokenizers import CharTokenizer
from tests.conftest import random_model

CHARACTERS = "\n :abcdefghij"
LINES = {  # of each command and view that has the flag
    "next": ["next", "ab"],
    "eval": ["eval", "--data", "text.txt"],
    "score": ["score", "ab", "cd"],
    "generate": ["generate", "ab", "--max-new-tokens", "3", "--strategy", "greedy"],
    "chat": ["chat", "--user", "a", "--as", "b", "--max-new-tokens", "3", "--strategy", "greedy"],
    "compare": ["compare", "--prompt", "ab", "--max-new-tokens", "3", "--setting", "greedy", "--seeds", "1"],
    "evaluate-text": ["evaluate-text", "text.txt", "--model", "checkpoints/run"],
    "evaluate-chat": [
        "evaluate-chat",
        "--data",
        "log.txt",
        "--max-new-tokens",
        "3",
        "--setting",
        "greedy",
        "--history",
        "0",
        "1",
    ],
    "inspect loss": ["inspect", "loss", "abc"],
    "inspect next": ["inspect", "next", "abc"],
    "inspect steps": ["inspect", "steps", "abc", "-n", "2"],
    "inspect beams": ["inspect", "beams", "abc", "-n", "2"],
}


@pytest.fixture(autouse=True)
def a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", sys.stdin)  # put back at the end
    tokenizer = CharTokenizer(CHARACTERS)
    model = random_model(GPTConfig(tokenizer.vocab_size, block_size=17, n_layer=2, n_head=3, n_embd=15), 7)
    save_run(model, with_template(tokenizer), tmp_path / "checkpoints" / "run")
    add_lora(model, LoRAConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_()
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "log.txt").write_text("a: bad\nb: cab\n\nb: fad\na: bed\n")
    (tmp_path / "text.txt").write_text("a bad cab\nfed a big hag, jab".replace(",", ""), encoding="utf-8")


def answered(capsys, line):
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"ab\n"))  # which chat reads
    assert run([*line, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def numbers(value):
    """All numbers in an answer, but for times; and its texts, which are the same or another model wrote them."""
    if isinstance(value, dict):
        return [
            one
            for key, inner in value.items()
            if "second" not in key and key not in ("weights", "layers", "plain_loss", "relative_change")
            for one in numbers(inner)
        ]
    return [one for inner in value for one in numbers(inner)] if isinstance(value, list) else [value]


def same(found, expected, error):
    found, expected = numbers(found), numbers(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, float) and isinstance(other, float):
            assert math.isclose(one, other, rel_tol=error, abs_tol=error)
        else:
            assert one == other


def test_all_that_only_read_a_model_have_the_flag_and_no_others():
    lines = [*([name] for name in SETTINGS), *(["inspect", view] for view in VIEWS)]
    parsers = {" ".join(line): parser_of(line[0], line[1:])[0] for line in lines}
    with_flag = {
        name for name, parser in parsers.items() if any(field.flag == "--weights" for field in parser.fields.values())
    }
    assert with_flag == set(LINES) | {"explore"}  # whose flag says how its file keeps them


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_an_answer_is_the_plain_models(capsys, line):
    expected = answered(capsys, line)
    for weights, error in (("float32", 1e-4), ("auto", 1e-4), ("float16", 1e-2)):
        same(answered(capsys, [*line, "--weights", weights]), expected, error)


@pytest.mark.parametrize("name", [name for name in LINES if name not in ("compare", "evaluate-text")])
def test_an_adapter_is_packed_with_its_base(capsys, name):
    line = [*LINES[name], "--adapter", "adapter"]
    same(answered(capsys, [*line, "--weights", "float32"]), answered(capsys, line), 1e-4)


def test_a_draft_is_packed_too(capsys, monkeypatch):
    packed = []
    monkeypatch.setattr("minigpt.cli.generate.DraftModel", lambda model, **_: packed.append(model.weights))
    assert run([*LINES["generate"], "--weights", "float32", "--draft", "checkpoints/run"]) == 0
    assert packed == ["float32"]


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_eval_says_what_the_weights_cost(capsys, weights):
    plain = answered(capsys, LINES["eval"])
    found = answered(capsys, [*LINES["eval"], "--weights", weights])
    assert found["plain_loss"] == plain["loss"]
    assert found["relative_change"] == pytest.approx((found["loss"] - plain["loss"]) / plain["loss"])
    assert sum(found["layers"].values()) == 2 * 4 + 1
    assert run([*LINES["eval"], "--weights", weights]) == 0
    assert f"{plain['loss']:.4f} with plain weights" in capsys.readouterr().out
    assert run(LINES["eval"]) == 0
    assert "plain" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ([*LINES["generate"], "--weights", "int8", "--ablate", "0.1"], "--ablate"),
        ([*LINES["generate"], "--weights", "int4"], "--weights"),
        ([*LINES["score"], "--weights", "auto", "--device", "meta"], "meta"),
        (["inspect", "attn", "abc", "--weights", "int8"], "--weights"),
    ],
)
def test_what_cannot_be_packed_is_refused(failing, line, what):
    assert what in failing(line)


def test_a_packed_model_is_for_the_cpu(failing, monkeypatch):
    monkeypatch.setattr("minigpt.system.device.available_devices", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "CPU" in failing([*LINES["score"], "--weights", "int8", "--device", "cuda"])
    assert run([*LINES["score"], "--weights", "int8"]) == 0  # where nobody says, it is the CPU
