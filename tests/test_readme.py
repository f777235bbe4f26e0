"""The README's commands and code run."""

import re
from pathlib import Path

import pytest

import minigpt
from minigpt.cli.main import COMMANDS
from minigpt.config import preset, write_yaml

ROOT = Path(minigpt.__file__).parent.parent
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the checkout that minigpt was installed from")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_two_setup_commands_that_stand_alone(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from readme_commands import setup_commands

    first, second = setup_commands()
    assert first.endswith("minigpt quickstart")
    assert second.endswith("pytest -n logical")
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert "-c constraints.txt" in command


def test_the_python_runs():
    blocks = code_blocks("python")
    assert len(blocks) == 2
    exec(compile(blocks[0], "README.md", "exec"), {})


def test_the_second_python_block_is_what_quickstart_prints():
    from minigpt.cli.trainings import next_steps

    printed = "".join("".join(next_steps(Path("checkpoints/shakespeare-quick"), "ROMEO:")).split())
    readme = "".join(code_blocks("python")[1].split())
    for part in (
        "minigpt.load_model(",
        "minigpt.complete(",
        "model,tokenizer,",
        "max_new_tokens=300",
    ):
        assert part in printed
        assert part in readme


def mentioned_commands() -> list[str]:
    """Every `minigpt ...` in the README's text and blocks, without the set-up commands."""
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"(?:`|^\.venv/bin/)(minigpt [a-z][^`\n]*)", text, re.MULTILINE)
    return sorted({command for command in found if command.split()[1] in COMMANDS})


@pytest.mark.parametrize("command", mentioned_commands() if README.is_file() else [])
def test_every_command_in_the_readme_is_accepted(command, accept):
    """Parsed by the real parsers; what they do is tested elsewhere, and by running command one."""
    path = Path("checkpoints/shakespeare-quick/config.yaml")  # which command one leaves
    write_yaml(preset("shakespeare-quick"), path, versions={})
    accept(command)


def test_links_lead_somewhere():
    for page in [README, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
