"""A model with more ids than its tokenizer says what the same model says without them, wherever a number is told.

The oracle is the model cut to size: the same weights without the rows of the ids that have no text. These rows are made
so large that wherever one of them counted, nothing would be right.
"""

import ast
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.config import GPTConfig
from minigpt.decoding.sampling import next_token_table
from minigpt.evaluation.loss import sequence_log_prob
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import save_run
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from minigpt.training import loop
from tests.conftest import random_model

CHARACTERS = "\n $,.ATabcdefhimnorstu中"
TEXT = "to be\n or not\n" * 31
WITHOUT_PROBABILITIES = {"size", "arch", "tokens", "runs", "temperature"}  # of a model
COMMANDS = {
    "inspect embed": "inspect embed near t {model}",
    "inspect embed of all": "inspect embed pca {model}",
    "inspect next": "inspect next 'to be' {model} --top-k 7 --top-p 0.9",
    "inspect attn": "inspect attn 'to be' {model}",
    "inspect heads": "inspect heads {model} --length 5",
    "inspect heads of a text": "inspect heads 'to be' {model}",
    "inspect lens": "inspect lens 'to be' {model}",
    "inspect lens norms": "inspect lens 'to be' {model} --norms",
    "inspect why": "inspect why 'to be' {model} --by head",
    "inspect loss": "inspect loss 'to be, or 中' {model}",
    "inspect ablate": "inspect ablate 'to be' {model} --part 1.0 0.mlp",
    "inspect ablate sweep": "inspect ablate --repeated 5 --rows 2 {model}",
    "inspect ablate mean": "inspect ablate 'to' {model} --mode mean --reference 'abc' 'bcd' --sweep layers",
    "inspect patch": "inspect patch {model} --clean 'to be' --corrupt 'to bi' --token a --against o",
    "inspect steps": "inspect steps 'to' {model} -n 3",
    "inspect steps drawn": "inspect steps 'to' {model} -n 3 --temperature 1.2 --top-k 5 --seed 3",
    "inspect beams": "inspect beams 'to' {model} -n 3 --beams 3",
    "next": "next {model} --prompt 'to be' --top 24 --steps 3",
    "score": "score {model} 'to be' 'no rose'",
    "eval": "eval {model} --data text.txt --stride 7",
    "evaluate-text": "evaluate-text text.txt {model}",
    "greedy": "generate {model} --prompt to --prompt 'be ' --strategy greedy --max-new-tokens 9",
    "sampling": "generate {model} --prompt to --max-new-tokens 9 --top-p 0.9 --num-return-sequences 3",
    "beams": "generate {model} --prompt to --max-new-tokens 9 --strategy beam --num-beams 3",
    "drawn beams": "generate {model} --prompt to --max-new-tokens 9 --num-beams 3",
    "a draft": "generate {model} --prompt to --max-new-tokens 9 --draft {path}",
    "a draft of another size": "generate {model} --prompt to --max-new-tokens 9 --draft {path}/../cut",
    "a draft of another size, padded": "generate --model {path}/../cut --prompt to --max-new-tokens 9 --draft {path}",
    "evaluate-chat": "evaluate-chat {model} --data log.txt --max-new-tokens 5 --history 0 1 --unknown skip",
    "compare": "compare {model} --prompt to --prompt 'be ' --max-new-tokens 7 --seeds 2",
}
FINE_TUNING = (
    "train --data text.txt --init-from {path} --out {path}-tuned --train.max_steps 3 --train.eval_interval 1 "
    "--train.batch_size 3 --train.learning_rate 0.01 --train.warmup_steps 1"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    V, folder = len(CHARACTERS), tmp_path_factory.mktemp("models")
    cut = random_model(GPTConfig(vocab_size=V, block_size=19, n_layer=2, n_head=3, n_embd=3 * 5, dropout=0.0), 5)
    padded = GPT(GPTConfig(vocab_size=V + 9, block_size=19, n_layer=2, n_head=3, n_embd=3 * 5, dropout=0.0)).eval()
    rows = torch.cat([cut.wte.weight, 9 * torch.randn(9, 15)])
    padded.load_state_dict(cut.state_dict() | {"wte.weight": rows, "lm_head.weight": rows})
    for name, model in {"cut": cut, "padded": padded}.items():
        save_run(model, CharTokenizer(CHARACTERS), folder / name)
    return {name: folder / name for name in ("cut", "padded")}


def answer(line: str, path: Path, capsys) -> object:
    Path("text.txt").write_text(TEXT)
    Path("log.txt").write_text("a: to be\nb: or not\n\nb: no\na: be to me\n")  # the colon is no token
    words = shlex.split(line.replace("{model}", f"--model {path}").replace("{path}", str(path)))
    words += ["--check"] * (words[0] == "inspect") + ["--json"]
    capsys.readouterr()
    assert run(words) == 0
    return json.loads(capsys.readouterr().out)


def compared(found: object, expected: object) -> None:
    """Equal, floats nearly; without what names the model, and how long it took."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found.keys() - {"model", "config", "tokens_per_second"}:
            compared(found[key], expected[key])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compared(one, other)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    else:
        assert found == expected


def sources() -> dict[str, str]:
    """The functions of the package and the scripts, and the pieces of Python of the pages, that know a tokenizer."""
    root = Path(minigpt.__file__).parent.parent
    found = {}
    for path in [*root.glob("minigpt/**/*.py"), *root.glob("scripts/*.py")]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                found[f"{path.relative_to(root)}: {node.name}"] = ast.get_source_segment(text, node) or ""
    for path in [root / "README.md", *root.glob("docs/*.md")]:
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found |= {f"{path.relative_to(root)}: {number}": block for number, block in enumerate(blocks)}
    return {name: text for name, text in found.items() if "tokenizer" in text}


TAKING = {
    "generate", "stream", "check_request", "next_token_table", "token_log_probs", "sequence_log_prob", "evaluate",
    "evaluate_batches", "token_losses", "logit_lens", "loss_of", "repeated_tokens", "find_nonfinite", "Rows",
    "neighbours",
}  # fmt: skip


def test_whoever_knows_the_tokenizer_hands_it_on():
    calls = 0
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            if called in TAKING:
                calls += 1
                given = ast.unparse(node)
                assert re.search(r"\btokenizer=|vocab_size|\bV\b|\*\*", given), f"{name}: {given}"
    assert calls > 20


def test_every_view_is_here():
    assert {name.split()[1] for name in COMMANDS if name.startswith("inspect")} == VIEWS.keys() - WITHOUT_PROBABILITIES


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_as_if_they_were_not_there(name, models, capsys):
    compared(*(answer(COMMANDS[name], models[which], capsys) for which in ("padded", "cut")))


def test_training_learns_as_if_they_were_not_there(models, capsys, monkeypatch):
    """And ends: at each evaluation the model writes a sample."""
    monkeypatch.setattr(loop, "SAMPLE_TOKENS", 200)  # as it is outside the tests
    records = []
    for path in models.values():
        answer(FINE_TUNING, path, capsys)
        lines = Path(f"{path}-tuned", "metrics.jsonl").read_text().splitlines()
        values = ("val_loss", "train_loss", "grad_norm")
        records.append([[json.loads(line).get(key) for key in values] for line in lines])
    assert len(records[0]) == 7  # one of the base, and of each step the training and the validation loss
    compared(*records)


def test_all_numbers_of_one_text_agree(models, capsys):
    """One window of text: next, score, eval, the validation loss of the base, generate and Python."""
    path = models["padded"]
    (written,) = answer("generate {model} --prompt t --strategy greedy --max-new-tokens 17", path, capsys)[
        "completions"
    ]
    text = written["text"]
    (scored,) = answer(f"score {{model}} {shlex.quote(text)}", path, capsys)["results"]
    assert scored["log_prob"] == pytest.approx(written["score"], rel=1e-5)
    (first, *_) = answer("next {model} --prompt t", path, capsys)["candidates"]
    assert math.log(first["prob"]) == pytest.approx(scored["tokens"][0]["log_prob"], rel=1e-5)
    Path("one.txt").write_text(text)
    measured = answer("eval {model} --data one.txt", path, capsys)
    assert measured["loss"] == pytest.approx(-written["score"] / 17, rel=1e-5)
    validation = answer("eval {model} --data text.txt --split val", path, capsys)["loss"]
    answer(FINE_TUNING.replace("-tuned", "-again"), path, capsys)
    base = json.loads(Path(f"{path}-again", "metrics.jsonl").read_text().splitlines()[0])
    assert base["val_loss"] == pytest.approx(validation, rel=1e-5)
    model, tokenizer = load_model(path)
    V, ids = tokenizer.vocab_size, tokenizer.encode(text)
    assert sequence_log_prob(model, ids, vocab_size=V) == pytest.approx(written["score"], rel=1e-5)
    assert next_token_table(model, ids[:1], vocab_size=V)[0][2] == pytest.approx(first["prob"], rel=1e-5)
    assert sequence_log_prob(model, ids) < 2 * written["score"]  # where no tokenizer is known, every id counts
