"""`minigpt explore -o`: the file, what is said of it, and what a mistake costs."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from minigpt.cli.main import answer as run_command
from minigpt.config import GPTConfig, preset
from minigpt.evaluation.loss import evaluate
from minigpt.formats.pretrained import load_model, save_hf
from minigpt.formats.run_directory import save_run
from minigpt.lora import LoRAConfig, add_lora
from minigpt.model import GPT
from minigpt.page.weights import rounded
from minigpt.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer.from_text("\n !',-.:;?ABCDEabcdefgh")
SMALL = "--model.block_size 11 --model.n_layer 1 --model.n_head 2 --model.n_embd 8 --train.max_steps 4 --device cpu"
SMALL += " --train.warmup_steps 1 --train.batch_size 3 --train.eval_interval 2 --dtype float32 --compile off"


def answered(line: str, capsys) -> tuple[dict, str]:
    capsys.readouterr()
    assert run_command([*line.split(), "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run of a text, and one of documents."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "play.txt").write_text("".join(f"To be, {n}, or not.\n" for n in range(200)))
    (folder / "notes.jsonl").write_text("".join(json.dumps({"text": f"Note {n} of it."}) + "\n" for n in range(60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(["train", "--data", "play.txt", "--out", "text", *SMALL.split()]) == 0
        assert run_command(["train", "--data", "notes.jsonl", "--out", "notes", *SMALL.split()]) == 0
    return folder


@pytest.fixture
def at(trained, monkeypatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def about(path: str, number: int = 0) -> dict:
    found = re.search(rf'id="minigpt-model-{number}">(.*?)</script>', Path(path).read_text())
    return json.loads(found[1])["about"]


def test_the_prompt_may_come_from_standard_input(at, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"To be\n")))
    answered("explore --model text --prompt - --weights float32 -o page.html", capsys)
    assert about("page.html")["prompt"] == "To be"


def run_of_page(path: str) -> dict:
    return json.loads(re.search(r'id="minigpt-run-0">(.*?)</script>', Path(path).read_text())[1])


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_the_cost_is_the_difference_of_two_evaluations(at, capsys, precision):
    told, err = answered(f"explore --model text --weights {precision} -o page.html", capsys)
    assert err == f"measuring  what {precision} costs, on the run's validation text\n"
    model, tokenizer = load_model("text")
    text = (at / "play.txt").read_text()
    ids = tokenizer.encode_array(text[int(len(text) * 0.9) :])
    plain, coarse = (evaluate(one, ids).loss for one in (model, rounded(model, precision)))
    assert told["models"][0]["loss_cost"] == pytest.approx(coarse - plain, abs=1e-6)
    assert told["models"][0]["loss_said"] == (
        f"{precision} costs {coarse - plain:+.6f} nats a token: {coarse:.4f} instead of {plain:.4f}, over "
        f"{len(ids) - 1:,} tokens of the run's validation text"
    )
    assert told == {
        "out": "page.html",
        "bytes": Path("page.html").stat().st_size,
        "weights": precision,
        "models": [{"name": "text", **{k: about("page.html")[k] for k in ("prompt", "loss_cost", "loss_said")}}],
    }


def test_documents_are_measured_as_they_are_held_out(at, capsys):
    told, _ = answered("explore --model notes --weights int8 -o page.html", capsys)
    evaluated, _ = answered("eval --model notes", capsys)
    said = re.search(r": ([\d.]+) instead of ([\d.]+), over ([\d,]+) tokens", told["models"][0]["loss_said"])
    assert float(said[2]) == pytest.approx(evaluated["loss"], abs=5e-5)
    assert int(said[3].replace(",", "")) == evaluated["tokens"]


def test_of_much_text_a_part_is_measured(at, capsys, monkeypatch):
    monkeypatch.setattr("minigpt.cli.explore._MOST_WORK", 53 * load_model("text")[0].num_parameters())
    told, _ = answered("explore --model text --weights int8 -o page.html", capsys)
    assert "over 53 tokens" in told["models"][0]["loss_said"]


def test_exact_weights_cost_nothing(at, capsys):
    told, _ = answered("explore --model text -o page.html", capsys)
    assert told["weights"] == "float32"
    assert told["models"][0]["loss_cost"] is None
    assert told["models"][0]["loss_said"] == "the weights are the model's own, in float32"


def test_where_no_text_belongs_to_the_model_that_is_said(tiny_model, capsys):
    save_run(tiny_model, TOKENIZER, "imported")
    told, _ = answered("explore --model imported --weights float16 -o page.html", capsys)
    assert told["models"][0]["loss_said"].startswith("what float16 costs was not measured: the model was not trained")
    assert about("page.html")["loss_cost"] is None


@pytest.mark.parametrize("change", ["removed", "other"])
def test_where_the_text_is_not_there_any_more_that_is_said(at, capsys, change):
    play = at / "play.txt"
    before = play.read_text()
    try:
        play.unlink() if change == "removed" else play.write_text(before + "more\n")
        told, err = answered("explore --model text --weights int8 -o page.html", capsys)
    finally:
        play.write_text(before)
    said = "what int8 costs was not measured: the run's data "
    said += "are not there" if change == "removed" else "have changed"
    assert told["models"][0]["loss_said"] == said
    assert ("play.txt has changed since" if change == "other" else "play.txt") in err
    assert "play.txt" not in Path("page.html").read_text()  # the file names no place of this machine


def test_a_reader_is_told_what_to_do_with_it(at, capsys):
    assert run_command("explore --model text --weights int8 -o page.html".split()) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert re.fullmatch(r"written    page.html: 0.\d\d MB, weights in int8", lines[0])
    assert lines[1].startswith("loss       text: int8 costs")
    assert lines[-1].startswith("open it    with a double click")
    assert max(map(len, lines)) <= 80
    assert err.startswith("measuring  what int8 costs")


def test_two_models_stand_in_one_file(at, capsys):
    told, _ = answered("explore --model text --model notes -o page.html", capsys)
    assert [model["name"] for model in told["models"]] == ["text", "notes"]
    assert about("page.html", 1)["name"] == "notes"


def test_runs_of_one_name_are_told_apart(at, capsys):
    shutil.copytree("text", "again/text", dirs_exist_ok=True)
    told, _ = answered("explore --model text --model notes --model again/text -o page.html", capsys)
    assert [model["name"] for model in told["models"]] == ["text (1)", "notes", "text (3)"]


def test_the_file_names_no_folder_of_this_machine(at, capsys):
    answered(f"explore --model {at / 'text'} -o page.html", capsys)
    assert str(at) not in Path("page.html").read_text()
    assert about("page.html")["name"] == "text"


def test_a_run_is_named_as_its_folder_from_within_too(at, monkeypatch, capsys):
    monkeypatch.chdir("text")
    answered("explore --model . -o ../page.html", capsys)
    assert (about("../page.html")["name"], run_of_page("../page.html")["name"]) == ("text", "text")


def test_the_curve_beside_an_adapter_is_that_of_its_run(at, capsys):
    line = "train --init-from text --preset finetune-text --data play.txt --out adapted --train.lora_rank 2"
    assert run_command([*line.split(), *"--train.max_steps 3 --train.warmup_steps 1 --device cpu".split()]) == 0
    for models, name in {
        "--model adapted": "adapted",
        "--model text --adapter adapted/adapter": "text + adapted",
    }.items():
        told, _ = answered(f"explore {models} -o page.html", capsys)
        assert told["models"][0]["name"] == about("page.html")["name"] == name
        assert (run_of_page("page.html")["name"], run_of_page("page.html")["step"]) == ("adapted", 3)


def test_the_quick_presets_file_has_at_most_a_megabyte_and_a_half(capsys):
    config = preset("shakespeare-quick").model
    characters = "".join(map(chr, range(33, 33 + 65)))
    shape = GPTConfig(65, config.block_size, config.n_layer, config.n_head, config.n_embd, bias=config.bias)
    torch.manual_seed(1)
    save_run(GPT(shape), CharTokenizer(characters), "quick")
    told, _ = answered("explore --model quick -o page.html", capsys)
    assert told["weights"] == "float16"
    assert told["bytes"] <= 1.5e6


def test_a_file_that_is_there_is_replaced_as_a_whole(at, capsys):
    Path("page.html").write_text("before")
    answered("explore --model text -o page.html", capsys)
    assert Path("page.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in Path().iterdir() if path.name.startswith(".minigpt")] == []


def test_folders_that_are_not_there_are_made(at, capsys):
    answered("explore --model text -o new/folder/page.html", capsys)
    assert Path("new/folder/page.html").is_file()


def test_an_adapter_is_merged_into_the_page(tiny_model, capsys):
    from minigpt.formats.lora_files import save_adapter

    save_run(tiny_model, TOKENIZER, "base")
    add_lora(tiny_model, LoRAConfig(rank=2), seed=3)
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    save_adapter(tiny_model, "adapter")
    answered("explore --model base --adapter adapter -o with.html", capsys)
    answered("explore --model base -o without.html", capsys)
    assert (about("with.html")["name"], about("without.html")["name"]) == ("base + adapter", "base")
    pages = [Path(name).read_text() for name in ("with.html", "without.html")]
    merged, plain = (re.findall('class="minigpt-weights-0">(.*?)<', page) for page in pages)
    assert len(merged[0]) == len(plain[0])
    assert merged != plain


MISTAKES = {
    "explore --model text -o page.txt": "page.txt ends in .txt, which is no known format",
    "explore --model text -o page": "page ends in nothing",
    "explore --model text -o folder.html": "folder.html is a folder",
    "explore --model text -o play.txt/page.html": "play.txt is a file, and play.txt/page.html cannot be in it",
    "explore --model nowhere -o page.html": "there is no model 'nowhere'",
    "explore --model text --weights int4 -o page.html": "--weights 'int4' is not a choice",
    "explore --model text --weights int8": "--weights would change nothing without --out",
    "explore --model text --port 9000 -o page.html": "--port would change nothing with --out",
    "explore --model text --no-browser -o page.html": "--no-browser would change nothing with --out",
    "explore --model text --model notes --adapter a -o page.html": "--adapter a belongs to one model, and 2 are named",
    "explore --model bare -o page.html": "no tokenizer is known for bare, and without one no text goes in or out",
    "explore --model adapter -o page.html": "adapter holds an adapter, and no model",
    "explore --model half.safetensors -o page.html": "half.safetensors (100 bytes) is damaged or no safetensors file",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_two_lines_and_nothing_is_written(at, failing, tiny_model, line):
    Path("folder.html").mkdir(exist_ok=True)
    if not Path("bare").exists():
        save_hf(tiny_model, None, "bare")
        add_lora(tiny_model, LoRAConfig(rank=2), seed=3)
        from minigpt.formats.lora_files import save_adapter

        save_adapter(tiny_model, "adapter")
        Path("half.safetensors").write_bytes((at / "text" / "model.safetensors").read_bytes()[:100])
    Path("page.html").unlink(missing_ok=True)
    assert MISTAKES[line] in failing(line.split())


def test_a_model_too_large_is_refused_before_it_is_read(at, failing, monkeypatch):
    monkeypatch.setattr("minigpt.page.single_file.LIMITS", {"float32": 10, "float16": 20, "int8": 30})
    monkeypatch.setattr("minigpt.formats.source.Source.load", None)
    Path("page.html").unlink(missing_ok=True)
    assert "serve it, without --out" in failing("explore --model text -o page.html".split())
