"""The pages of docs/ that are lessons: their commands are accepted, and their Python runs."""

import re
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt.config import GPTConfig
from minigpt.data.dialogues import with_template
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer

DOCS = Path(minigpt.__file__).parent.parent / "docs"
PAGES = ("gpt2-lessons", "chatting")

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs the checkout that minigpt was installed from")


def page(name: str) -> str:
    path = DOCS / f"{name}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def commands() -> list[str]:
    """Every command in a block, those with their output too."""
    found = []
    for name in PAGES:
        text = page(name).replace("\\\n", " ")
        for kind, block in re.findall(r"^```(bash|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            begins = r"(?:\$ |\.venv/bin/)" + "?" * (kind == "bash")
            found += re.findall(rf"^{begins}(minigpt .*)", block, re.MULTILINE)
    return found


def stand_in(name: str) -> Tokenizer:
    """The tokenizer of a small model that stands in for the page's own."""
    return (
        with_template(CharTokenizer("\n" + "".join(map(chr, range(32, 127)))))
        if name == "chatting"
        else (GPT2Tokenizer(["l a", "la t"]))
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_is_accepted(command, accept):
    accept(command)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (name, code)
        for name in PAGES
        for code in re.findall(r"^```python\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)
    ],
)
def test_the_python_runs(name, code, monkeypatch, capsys):
    tokenizer = stand_in(name)
    torch.manual_seed(3)
    model = minigpt.GPT(GPTConfig(tokenizer.vocab_size, block_size=61, n_layer=1, n_head=1, n_embd=5)).eval()
    monkeypatch.setattr(minigpt, "load_model", lambda spec: (model, tokenizer), raising=False)
    exec(compile(code, f"{name}.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_four_lessons():
    sections = page("gpt2-lessons").split("\n## ")[1:]
    lessons = [section for section in sections if section[0].isdigit()]
    assert len(lessons) == 4
    for lesson in lessons:
        assert lesson.count("```bash") == lesson.count("```python") == lesson.count("\n$ minigpt") == 1
