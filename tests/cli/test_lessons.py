"""docs/gpt2-lessons.md: its commands are accepted, and its Python runs."""

import re
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt.config import GPTConfig
from minigpt.tokenizers import GPT2Tokenizer

PAGE = Path(minigpt.__file__).parent.parent / "docs" / "gpt2-lessons.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="needs the checkout that minigpt was installed from")


def page() -> str:
    return PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""


def commands() -> list[str]:
    """Every command in a block, those with their output too."""
    blocks = re.findall(r"^```(?:bash|text)\n(.*?)^```", page().replace("\\\n", " "), re.MULTILINE | re.DOTALL)
    return re.findall(r"^(?:\$ |\.venv/bin/)(minigpt .*)", "\n".join(blocks), re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_every_command_is_accepted(command, accept):
    accept(command)


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", page(), re.MULTILINE | re.DOTALL))
def test_the_python_runs(code, monkeypatch, capsys):
    tokenizer = GPT2Tokenizer(["l a", "la t"])
    torch.manual_seed(3)
    model = minigpt.GPT(GPTConfig(tokenizer.vocab_size, block_size=41, n_layer=1, n_head=1, n_embd=5)).eval()
    monkeypatch.setattr(minigpt, "load_model", lambda spec: (model, tokenizer), raising=False)
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out


def test_there_are_four_lessons():
    sections = page().split("\n## ")[1:]
    lessons = [section for section in sections if section[0].isdigit()]
    assert len(lessons) == 4
    for lesson in lessons:
        assert lesson.count("```bash") == lesson.count("```python") == lesson.count("\n$ minigpt") == 1
