"""One run by whatever path it is named, and a model that is written again: nothing that was said of it is lost."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt.cli.main import answer as run
from minigpt.config import LoRAConfig, read_yaml
from minigpt.errors import ModelNote
from minigpt.formats.config_json import inherited
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.run_directory import save_run
from minigpt.formats.tokenizer_files import save_hf_tokenizer
from minigpt.lora import add_lora, merged
from minigpt.tokenizers import AddedToken, CharTokenizer

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


def test_a_base_with_the_adapter_of_a_run_is_measured_as_the_run(trained, capsys, monkeypatch, tmp_path):
    """Even on the data of that run, most of which the adapter has learned."""
    monkeypatch.chdir(trained)
    (other,) = Path().glob("other.*")
    data = str(tmp_path / other.name)
    Path(data).write_text(other.read_text() * 3)  # enough to validate; a document that is there again is left out
    before, flags = next((file, flags) for file, _, flags in DATA.values() if Path(file).exists())
    flags = [*flags, *TUNED] if flags else ["--train.warmup_steps", "1"]
    tuned = ["--train.lora_rank", "2", "--train.max_steps", "3", "--compile", "off"]
    name = str(tmp_path / "adapted")
    assert run(["train", "--init-from", "run", "--data", data, "--out", name, *flags, *tuned]) == 0
    link = tmp_path / "link"
    link.symlink_to(Path(name, "adapter"))
    for own in ([], ["--data", data], ["--data", before]):
        for adapter in (f"{name}/adapter", str(link)):
            adapted = measured(["--model", "run", "--adapter", adapter, *own], capsys)
            assert adapted == measured(["--model", name, *own], capsys)


SAID = [  # file, key, value in a transformers folder, and whether an export of the model has it
    ("config.json", "eos_token_id", [3, 5], True),
    ("config.json", "pad_token_id", 3, True),
    ("config.json", "id2label", {"0": "good"}, True),
    ("config.json", "of_somebody", {"x": [1, {"y": None}]}, True),
    ("config.json", "task_specific_params", {"mine": {"x": 1}}, True),
    ("config.json", "begin_suppress_tokens", [3], True),
    ("config.json", "eos_token_id", [3, 10**9], False),  # which the model does not have
    ("config.json", "auto_map", {"AutoModel": "code.Model"}, False),  # code, which does not come along
    ("generation_config.json", "temperature", 0.7, True),
    ("generation_config.json", "eos_token_id", [3, 5], True),
]


@pytest.fixture
def theirs(tiny_model) -> Path:
    letters = CharTokenizer("".join(map(chr, range(97, 97 + tiny_model.config.vocab_size))))
    save_hf(tiny_model, letters, "theirs")
    return Path("theirs")


def say(path: Path, **settings) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **settings}))


@pytest.mark.parametrize("through", [[], ["run"], ["run", "copy"]], ids=["straight", "a run", "a copy of a run"])
@pytest.mark.parametrize(("file", "key", "value", "kept"), SAID)
def test_what_a_folder_says_is_in_its_export_or_told(theirs, capsys, through, file, key, value, kept):
    say(theirs / file, **{key: value})
    source = "theirs"
    for name in through:
        assert run(["import", source, name]) == 0
        source = name
    assert run(["export", source, "ours"]) == 0
    assert (f"{key} = " in capsys.readouterr().err) != kept
    written = json.loads(Path("ours", file).read_text())
    assert (written.get(key) == value) == kept
    assert load_model("ours")[0].config == load_model("theirs")[0].config


def as_it_is(model):
    return model


def with_an_adapter(model):
    """One that changes nothing yet."""
    add_lora(model, LoRAConfig(rank=2), seed=5)
    return model


@pytest.mark.parametrize("has_tokenizer", [True, False])
@pytest.mark.parametrize("change", [as_it_is, copy.deepcopy, with_an_adapter, merged])
@pytest.mark.parametrize(("file", "key", "value", "kept"), SAID)
def test_python_writes_what_the_command_exports(theirs, has_tokenizer, change, file, key, value, kept):
    say(theirs / file, **{key: value})
    if not has_tokenizer:
        for path in (*theirs.glob("tokenizer*"), *theirs.glob("special*")):
            path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelNote)  # that there is no tokenizer
        assert run(["export", "theirs", "exported"]) == 0
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        model, tokenizer = load_model("theirs")
        save_hf(change(model), tokenizer, "ours")
    assert any(f"{key} = " in str(note.message) for note in notes) != kept
    found, expected = ({path.name for path in Path(folder).iterdir()} for folder in ("ours", "exported"))
    assert found == expected
    for name in found & {"config.json", "generation_config.json"}:
        assert json.loads(Path("ours", name).read_text()) == json.loads(Path("exported", name).read_text())


@pytest.mark.parametrize("through", ["save_hf", "save_run", "an adapter's"])
def test_another_tokenizer_decides_for_itself(theirs, through):
    """The ids that the folder lists are of its own tokenizer; what is left out because of that is said."""
    say(theirs / "config.json", eos_token_id=[3, 5])
    say(theirs / "generation_config.json", temperature=0.7)
    model, tokenizer = load_model("theirs")
    other = tokenizer.with_ends([7])
    if through == "an adapter's":
        save_adapter(with_an_adapter(model), "adapter")
        more = tokenizer.with_added([AddedToken("[PAD]")], {})
        save_hf_tokenizer(more, Path("adapter"), model.config.block_size)
        model, other = load_model("theirs", adapter="adapter")
    with pytest.warns(ModelNote, match=r"config\.json and generation_config\.json"):
        minigpt.save_run(model, other, "ours") if through == "save_run" else save_hf(model, other, "ours")
    assert not Path("ours/reference.json").exists()
    assert not Path("ours/generation_config.json").exists()
    minigpt.save_run(*load_model("theirs"), "kept")
    assert json.loads(Path("kept/reference.json").read_text())["generation_config.json"] == {"temperature": 0.7}


def test_an_adapter_that_brings_the_tokenizer_of_its_base_keeps_what_the_base_said(theirs):
    say(theirs / "config.json", eos_token_id=[3, 5])
    model, tokenizer = load_model("theirs")
    save_adapter(with_an_adapter(model), "adapter")
    save_hf_tokenizer(tokenizer, Path("adapter"), model.config.block_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelNote)
        save_hf(*load_model("theirs", adapter="adapter"), "ours")
    assert json.loads(Path("ours/config.json").read_text())["eos_token_id"] == [3, 5]


@pytest.mark.parametrize("through", [[], ["run"], ["run", "copy"]], ids=["straight", "a run", "a copy of a run"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_text_ends_at_each_of_the_ends_that_a_folder_lists(theirs, capsys, through, file):
    options = {"max_new_tokens": 11, "seed": 7, "on_overflow": "stop"}
    model, tokenizer = load_model("theirs")
    whole = minigpt.complete(model, tokenizer, "a", **options)
    assert tokenizer.end_ids == ()
    end = next(letter for number, letter in enumerate(whole[4:], 4) if letter not in whole[1:number])
    ended = whole[: whole.index(end, 1) + 1]
    assert len(ended) < len(whole)
    never = next(letter for letter in map(chr, range(97, 123)) if letter not in whole)
    say(theirs / file, eos_token_id=[*tokenizer.encode(never + end), 10**9])
    source = "theirs"
    for name in through:
        assert run(["import", source, name]) == 0
        source = name
    model, tokenizer = load_model(source)
    assert tokenizer.end_ids == tuple(tokenizer.encode(never + end))
    assert tokenizer.decode(tokenizer.encode(whole)) == whole  # which it is in a text, too
    assert minigpt.complete(model, tokenizer, "a", **options) == ended
    capsys.readouterr()
    flags = ["--model", source, "--max-new-tokens", "11", "--seed", "7", "--on-overflow", "stop", "--json"]
    assert run(["generate", "a", *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)["completions"]
    assert (found["text"], found["finish_reason"]) == (ended, "eos")


def test_what_the_model_decides_is_not_taken_from_its_former_settings(theirs):
    """A shorter context, and another rate of dropout."""
    say(theirs / "config.json", n_ctx=13, torch_dtype="float16")
    assert run(["import", "theirs", "run", "--block-size", "7", "--dropout", "0.25"]) == 0
    assert run(["export", "run", "ours"]) == 0
    written = json.loads(Path("ours/config.json").read_text())
    assert [written[key] for key in ("n_ctx", "n_positions", "attn_pdrop", "torch_dtype")] == [7, 7, 0.25, "float32"]


@pytest.mark.parametrize("carried", [{"model_type": "gpt2"}, {"config.json": "gpt2"}])
@pytest.mark.parametrize("write", [minigpt.save_run, minigpt.save_hf])
def test_settings_that_could_not_be_read_again_are_not_written(theirs, write, carried):
    """The content of a config.json, in the place of the file's name and content."""
    model, tokenizer = minigpt.load_model("theirs")
    with pytest.raises(minigpt.MiniGPTError, match="carried"):
        write(model, tokenizer, "ours", carried=carried)
    assert not Path("ours").exists()


@pytest.mark.parametrize("how", ["link", "nothing", "another name", "a list", "no JSON", "folder"])
def test_settings_in_a_run_of_somebody_are_data_and_no_link(theirs, capsys, how):
    say(theirs / "generation_config.json", temperature=0.7)
    assert run(["import", "theirs", "run"]) == 0
    path = Path("run/reference.json")
    content = path.read_text()
    path.unlink()
    if how == "link":
        Path("elsewhere.json").write_text(content)
        path.symlink_to(Path("elsewhere.json").absolute())
    elif how == "folder":
        path.mkdir()
    else:
        odd = {"nothing": "{}", "another name": '{"../x.json": {}}', "a list": '{"config.json": []}', "no JSON": "?"}
        path.write_text(odd[how])
    assert run(["export", "run", "ours"]) == 2
    assert "reference.json" in capsys.readouterr().err
    assert not Path("ours").exists()


def changed_copy(reference, folder: Path, **said: object) -> Path:
    """The reference's folder, with other settings of generation."""
    shutil.copytree(reference.folder, folder)
    for file in ("config.json", "generation_config.json"):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | said), encoding="utf-8")
    return folder


@pytest.mark.parametrize("several", [False, True])
def test_a_text_ends_where_the_reference_library_ends_it(reference, several, tmp_path):
    """One id as the end of a text, and a list of one, mean the same."""
    prompt = reference.tokenizer.encode("the later")
    free = minigpt.generate(load_model(reference.folder)[0], [prompt], max_new_tokens=9, strategy="greedy")
    end = free.sequences[0][len(prompt) + 3]
    folder = changed_copy(reference, tmp_path / "other", eos_token_id=[end] if several else end)
    theirs = type(reference.theirs).from_pretrained(folder)
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=9, do_sample=False, pad_token_id=0)[0].tolist()
    model, tokenizer = load_model(folder)
    ours = minigpt.generate(model, [prompt], max_new_tokens=9, strategy="greedy", eos_token_id=tokenizer.end_ids)
    assert ours.sequences[0] == expected
    assert expected[-1] == end


@pytest.mark.parametrize("further", [[], ["--train.lora_rank", "2"]], ids=["all", "adapter"])
@pytest.mark.parametrize("imported", [False, True])
def test_a_fine_tuned_model_has_the_settings_of_its_base(reference, imported, further, tmp_path, monkeypatch):
    """And ends a text where the base did, and where its documents end."""
    monkeypatch.chdir(tmp_path)
    changed_copy(reference, tmp_path / "base", eos_token_id=5, my_key="kept", temperature=0.3)
    assert not imported or run(["import", "base", "whole"]) == 0
    Path("d.txt").write_text("\n".join("the later you"[i:] for i in range(9)), encoding="utf-8")
    assert run(["train", "--init-from", "whole" if imported else "base", "--data", "d.txt", "--documents.separate",
                "on", "--documents.train_size", "5", "--documents.val_size", "2", "--documents.max_length", "13",
                "--train.epochs", "1", "--out", "tuned", *further]) == 0  # fmt: skip
    assert run(["train", "--resume", "tuned", "--train.epochs", "2"]) == 0
    assert run(["export", "tuned", "out"]) == 0
    ends = reference.tokenizer.eos_token_id, 5
    assert set(load_model("tuned")[1].end_ids) == set(load_model("out")[1].end_ids) == set(ends)
    for file in ("config.json", "generation_config.json"):
        written = json.loads(Path("out", file).read_text(encoding="utf-8"))
        assert (written["my_key"], written["temperature"]) == ("kept", 0.3)
        assert set(written["eos_token_id"]) == set(ends)
    if further:  # of which base it is stays known where its settings were not recorded, as in older runs
        Path("tuned/reference.json").unlink()
        assert run(["export", "tuned", "again"]) == 0
        assert set(load_model("tuned")[1].end_ids) == set(ends)
        for file in ("config.json", "generation_config.json"):
            assert json.loads(Path("again", file).read_text()) == json.loads(Path("out", file).read_text())


@pytest.mark.parametrize("said", [None, 5, [5, 7]])
def test_what_a_training_learns_as_the_end_is_one_in_every_file(reference, said, tmp_path):
    """Also where the base's own generation_config.json, which the reference library prefers, named none."""
    model, tokenizer = load_model(changed_copy(reference, tmp_path / "base", eos_token_id=said))
    save_run(model, tokenizer, tmp_path / "tuned", None, inherited(model, tokenizer.eos_token_id))
    save_hf(*load_model(tmp_path / "tuned"), tmp_path / "out")
    theirs = type(reference.theirs).from_pretrained(tmp_path / "out")
    for found in (theirs.config.eos_token_id, theirs.generation_config.eos_token_id):
        assert {tokenizer.eos_token_id} <= {*(found if isinstance(found, list) else [found])}
