"""One run by whatever path it is named, and a model that is written again: nothing that was said of it is lost."""

import json
from pathlib import Path

import pytest

from minigpt.cli.main import run

SMALL = [
    "--model.block_size", "61", "--model.n_layer", "1", "--model.n_head", "2", "--model.n_embd", "8",
    "--train.max_steps", "3", "--train.eval_interval", "3", "--train.batch_size", "3", "--train.warmup_steps", "1",
    "--train.optimizer", "adamw", "--compile", "off",
]  # fmt: skip
DATA = {
    "a text": ("play.txt", "To be, or not to be: that is the question.\n" * 17, []),
    "documents": (
        "lines.jsonl",
        "".join(json.dumps({"text": f"{name} is no keyword: {name * 2},"}) + "\n" for name in "abcdefghijkmnoprstuwy"),
        ["--documents.keywords", "2", "--documents.val_size", "5"],
    ),
}


@pytest.fixture(scope="module", params=DATA)
def trained(request, tmp_path_factory) -> Path:
    """A run on a text, and one on documents whose settings change what is measured."""
    folder = tmp_path_factory.mktemp("trained")
    name, content, flags = DATA[request.param]
    (folder / name).write_text(content)
    (folder / name).with_stem("other").write_text("".join(content.splitlines(keepends=True)[:7]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["train", "--data", name, "--out", "run", *SMALL, *flags]) == 0
    return folder


def measured(arguments: list[str], capsys) -> dict:
    capsys.readouterr()
    assert run(["eval", *arguments, "--json"]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("weights", ["model.safetensors", "last/model.safetensors"])
def test_the_weights_of_a_run_are_measured_as_the_run(weights, trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    path = Path("run") / weights
    (other,) = Path().glob("other.*")
    for data in ([], ["--data", str(other)]):
        assert measured(["--model", str(path), *data], capsys) == measured(["--model", str(path.parent), *data], capsys)
