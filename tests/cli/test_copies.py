"""One run by whatever path it is named, and a model that is written again: nothing that was said of it is lost."""

import json
from pathlib import Path

import pytest

from minigpt.cli.main import run
from minigpt.config import read_yaml
from minigpt.formats.pretrained import save_hf
from minigpt.tokenizers import CharTokenizer

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

TUNED = ["--documents.train_size", "0", "--documents.max_length", "61", "--train.epochs", "0"]  # against the preset


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


@pytest.mark.parametrize("adapter", [False, True])
def test_an_imported_run_is_measured_as_the_run(adapter, trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    name, copy, flags = "run", str(tmp_path / "copy"), []
    if adapter:
        data, flags = next((file, flags) for file, _, flags in DATA.values() if Path(file).exists())
        flags = [*flags, *TUNED] if flags else ["--train.warmup_steps", "1"]
        name = str(tmp_path / "adapted")
        tuned = ["--train.lora_rank", "2", "--train.max_steps", "3", "--compile", "off"]
        assert run(["train", "--init-from", "run", "--data", data, "--out", name, *tuned, *flags]) == 0
    assert run(["import", name, copy]) == 0
    assert measured(["--model", copy], capsys) == pytest.approx(measured(["--model", name], capsys), rel=1e-5)
    kept, given = (read_yaml(Path(path) / "config.yaml") for path in (copy, name))
    given["train"]["lora_rank"] = 0  # which is merged into the weights
    assert {**kept, "model": {}} == {**given, "model": {}}


SAID = [  # file, key, value in a transformers folder, and whether a copy of the model has it
    ("config.json", "eos_token_id", [3, 5], False),
    ("config.json", "eos_token_id", 3, False),  # there is no tokenizer that could say it
    ("config.json", "id2label", {"0": "good"}, False),
    ("config.json", "task_specific_params", {"mine": {"x": 1}}, False),
    ("config.json", "transformers_version", "4.2.0", True),
    ("config.json", "summary_type", "cls_index", True),
    ("generation_config.json", "temperature", 0.7, False),
    ("generation_config.json", "eos_token_id", None, True),
]


@pytest.mark.filterwarnings("ignore::minigpt.errors.ModelNote")
@pytest.mark.parametrize(("file", "key", "value", "kept"), SAID)
def test_what_an_export_cannot_keep_is_said(tiny_model, capsys, file, key, value, kept):
    save_hf(tiny_model, None, "theirs")
    path = Path("theirs", file)
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), key: value}))
    assert run(["export", "theirs", "ours"]) == 0
    assert (f"not kept of theirs: {file}: {key} = " in capsys.readouterr().err) != kept


def test_what_an_import_cannot_keep_is_said(tiny_model, capsys):
    letters = CharTokenizer("".join(map(chr, range(97, 97 + tiny_model.config.vocab_size))))
    save_hf(tiny_model, letters, "theirs")
    assert run(["import", "theirs", "quiet"]) == 0
    assert "not kept" not in capsys.readouterr().err
    content = json.loads(Path("theirs/config.json").read_text())
    Path("theirs/config.json").write_text(json.dumps({**content, "eos_token_id": [3, 5]}))
    assert run(["import", "theirs", "told"]) == 0
    assert "config.json: eos_token_id = [3, 5]" in capsys.readouterr().err
