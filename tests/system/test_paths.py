"""A path is the same path in every function that takes one: a text or a Path, with ~ for the home folder."""

from pathlib import Path

import pytest
import torch

from minigpt.analysis import trace
from minigpt.analysis.results import Result
from minigpt.config import DataConfig, GPTConfig, LoRAConfig, RunConfig, TrainConfig, read_yaml, write_yaml
from minigpt.data.corpora import Corpus, load_corpus
from minigpt.data.documents import read_documents
from minigpt.errors import LONGEST, InputError, MissingFileError
from minigpt.formats.lora_files import load_adapter, save_adapter
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.run_directory import save_run
from minigpt.formats.source import open_source
from minigpt.formats.tokenizer_files import load_hf_tokenizer, save_hf_tokenizer
from minigpt.formats.weights import open_weights, save_weights
from minigpt.lora import add_lora
from minigpt.model import GPT
from minigpt.system.figures import new_figure, save_figure
from minigpt.system.files import named_path
from minigpt.tokenizers import CharTokenizer, load_tokenizer
from minigpt.training.loop import train

CHAR = CharTokenizer("abcdefg")
CONFIG = GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=1, n_embd=3)


def a_model(adapted=False):
    torch.manual_seed(3)
    model = GPT(CONFIG).eval()
    if adapted:
        add_lora(model, LoRAConfig(rank=2), seed=5)
    return model


def traced():
    model = a_model()
    with trace(model) as recorded:
        model(torch.tensor([[1, 2]]))
    return recorded


def short_run(path):
    config = RunConfig(
        model=CONFIG, train=TrainConfig(max_steps=1, batch_size=1, warmup_steps=0), data=DataConfig(), device="cpu"
    )
    train(config, Corpus("mine", "abcdefg" * 13, "mine"), path, lambda line: None)


# what writes at a path -> and what reads that again
WRITERS = {
    "save_hf/x": lambda path: save_hf(a_model(), CHAR, path),
    "save_run/x": lambda path: save_run(a_model(), CHAR, path),
    "save_adapter/x": lambda path: save_adapter(a_model(adapted=True), path),
    "train/x": short_run,
    "save_hf_tokenizer/x": lambda path: save_hf_tokenizer(CHAR, path, 5),
    "tokenizer.save/x.json": lambda path: CHAR.save(path),
    "trace.save/x.npz": lambda path: traced().save(path),
    "record.save/x.npz": lambda path: Result("size", "mine", CONFIG, {}).save(path),
    "record.save/x.json": lambda path: Result("size", "mine", CONFIG, {}).save(path),
    "save_figure/x.png": lambda path: save_figure(new_figure(1, 1), path),
    "write_yaml/x.yaml": lambda path: write_yaml(RunConfig(), path, {}),
    "save_weights/x.safetensors": lambda path: save_weights(a_model(), path),
}
READERS = {
    "save_hf/x": load_model,
    "save_run/x": open_source,
    "save_adapter/x": lambda path: load_adapter(a_model(), path),
    "save_hf_tokenizer/x": load_hf_tokenizer,
    "tokenizer.save/x.json": load_tokenizer,
    "write_yaml/x.yaml": read_yaml,
    "save_weights/x.safetensors": open_weights,
    "text/x.txt": load_corpus,
    "documents/x.txt": read_documents,
    "load_model/x.json": lambda path: load_model("../home/model", tokenizer=path),
}
NO_PATHS = {"a number": 3, "nothing": None, "yes": True, "bytes": b"x", "a zero byte": "a\0b", "endless": "x" * 5000}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The home folder; the working folder is another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("form", ["text", "Path", "~ in a text", "~ in a Path"])
def test_what_is_written_is_where_it_was_said(home, writer, form):
    _, name = writer.split("/")
    where = home if "~" in form else Path.cwd()
    WRITERS[writer]((Path if "Path" in form else str)(f"~/{name}" if "~" in form else name))
    assert (where / name).exists()
    assert not Path("~").exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["text", "Path", "~ in a text", "~ in a Path"])
def test_what_is_read_is_what_was_named(home, reader, form):
    kind, name = reader.split("/")
    where = home if "~" in form else Path.cwd()
    if kind == "load_model":
        save_run(a_model(), CHAR, home / "model")
        CHAR.save(where / name)
    elif name.endswith(".txt"):
        (where / name).write_text("abc\n\ndefg")
    else:
        WRITERS[reader](where / name)
    READERS[reader]((Path if "Path" in form else str)(f"~/{name}" if "~" in form else name))


@pytest.mark.parametrize("function", [*WRITERS, *(f"reading {name}" for name in READERS)])
@pytest.mark.parametrize("kind", NO_PATHS)
def test_what_is_no_path_is_two_lines(home, function, kind):
    save_run(a_model(), CHAR, home / "model")
    call = READERS[function.removeprefix("reading ")] if function.startswith("reading") else WRITERS[function]
    if function == "reading load_model/x.json" and kind == "nothing":
        return  # the model's own
    with pytest.raises((InputError, MissingFileError)) as refused:  # the latter of what might be a corpus by its name
        call(NO_PATHS[kind])
    assert str(refused.value).count("\n") == 1
    assert max(map(len, str(refused.value).split("\n"))) <= LONGEST  # a path is shown whole, up to there
    assert list(Path().iterdir()) == []


def test_a_path_named_twice_is_the_same(home):
    """./~ is a folder of that name here, and stays one."""
    once = named_path("./~/x", "path")
    assert named_path(once, "path") == once == Path.cwd() / "~" / "x"
    assert named_path("~/x", "path") == home / "x"


@pytest.mark.parametrize("base", [3, b"x", Path("x"), ["x"]])
def test_the_base_of_an_adapter_is_a_text(base):
    with pytest.raises(InputError, match=r"^base = "):
        save_adapter(a_model(adapted=True), "x", base=base)
