"""`minigpt compare` as people type it: settings, a sweep, what it keeps, and what it says of mistakes."""

import csv
import errno
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from minigpt.cli import compare as command
from minigpt.cli.decoders import parse_setting, parse_settings
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer, parser_of
from minigpt.cli.models import load
from minigpt.cli.parser import SettingsParser
from minigpt.cli.settings import SETTINGS as SETTINGS_OF
from minigpt.cli.settings import Compare
from minigpt.config import GPTConfig, LoRAConfig
from minigpt.decoding.generate import generate
from minigpt.errors import InputError, MiniGPTError
from minigpt.evaluation.comparison import difference_interval, mean_interval
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import save_run
from minigpt.lora import add_lora
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from tests.conftest import random_model

TOKENIZER = CharTokenizer.from_text("abcde \n")
PROMPTS = ["ab", "c", "de a"]
BLOCK_SIZE = 19
SETTINGS = ["--setting", "greedy", "--setting", "sample temperature=0.7,1.3", "--setting", "beam num_beams=3"]
SWEEP = ["--prompts-file", "openings.txt", *SETTINGS, "--seeds", "2", "--seed", "5", "--max-new-tokens", "11"]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, GPT]:
    """What --model loads: two random models of characters, and one with a small block."""

    def small_model(seed: int, block_size: int = BLOCK_SIZE) -> GPT:
        return random_model(GPTConfig(TOKENIZER.vocab_size, block_size, n_layer=2, n_head=1, n_embd=7), seed)

    known = {"one": small_model(3), "two": small_model(4), "small": small_model(5, block_size=7)}
    monkeypatch.setattr(command, "load", lambda settings, model, adapter: (known[model], TOKENIZER))
    Path("openings.txt").write_text("\n".join(PROMPTS) + "\n\n", encoding="utf-8")
    return known


def compare(arguments: list[str]) -> None:
    command.answer(SettingsParser("compare", Compare).parse(arguments))


def sweep(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    compare(["--model", "one", *SWEEP, *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_settings_are_parsed():
    (one,) = parse_setting("beam num_beams=5 early_stopping=never length_penalty=0.6")
    assert one.options == {"strategy": "beam", "num_beams": 5, "early_stopping": "never", "length_penalty": 0.6}
    assert one.name == "beam num_beams=5 early_stopping=never length_penalty=0.6"
    grid = parse_setting("temperature=0.5,1 top_k=3,0")
    assert [setting.name for setting in grid] == [
        "sample temperature=0.5 top_k=3", "sample temperature=0.5 top_k=0",
        "sample temperature=1.0 top_k=3", "sample temperature=1.0 top_k=0",
    ]  # fmt: skip
    assert [setting.name for setting in parse_setting("strategy=greedy,sample")] == ["greedy", "sample"]
    for text in command.DEFAULT_SETTINGS:
        assert parse_setting(text)


@pytest.mark.parametrize(
    ("setting", "what", "how"),
    [
        ("stratgy=greedy", "there is no option 'stratgy'", "did you mean strategy?"),
        ("sample temprature=1", "there is no option 'temprature'", "did you mean temperature?"),
        ("  ", "names no setting", "write --setting 'sample temperature=0.8'"),
        ("gready", "'gready' is neither the one strategy", "did you mean greedy?"),
        ("sample greedy", "'greedy' is neither the one strategy", "sample, greedy"),
        ("sample top_k", "'top_k' is neither", "did you mean top_k=?"),
        ("top_k=many", "top_k=many is no whole number", "give top_k a whole number"),
        ("top_k=5.5", "top_k=5.5 is no whole number", "give top_k a whole number"),
        ("temperature=", "temperature= is no number", "give temperature a number"),
        ("temperature=1 temperature=2", "gives temperature twice", "temperature=A,B"),
        ("beam strategy=greedy", "gives strategy twice", "strategy=A,B"),
        ("strategy=gready", "strategy=gready", "choose sample, greedy, beam"),
        ("greedy temperature=0.5", "greedy draws nothing", "leave temperature out"),
        ("sample top_p=0.9,1.5", "top_p = 1.5 is out of range", "above 0 and at most 1"),
        ("beam num_beams=0", "num_beams = 0 is out of range", "from 1 to"),
        ("beam num_beams=2 early_stopping=maybe", "early_stopping=maybe", "choose no, yes, never"),
        ("sample num_return_sequences=2", "there is no option 'num_return_sequences'", "known: temperature"),
    ],
)
def test_settings_that_cannot_be(setting, what, how):
    with pytest.raises(InputError) as caught:
        parse_setting(setting)
    assert what in caught.value.what
    assert repr(setting) in caught.value.what
    assert how in caught.value.how


def test_a_sweep_writes_what_generate_writes(capsys, models):
    result = sweep(capsys)
    names = ["greedy", "sample temperature=0.7", "sample temperature=1.3", "beam num_beams=3"]
    assert [row["setting"] for row in result["rows"]] == names
    assert len(result["completions"]) == 4 * 3 * 2
    for setting, options in zip(
        names,
        [
            {"strategy": "greedy"}, {"temperature": 0.7}, {"temperature": 1.3}, {"strategy": "beam", "num_beams": 3},
        ],
        strict=True,
    ):  # fmt: skip
        own = [one for one in result["completions"] if one["setting"] == setting]
        assert [one["prompt"] for one in own] == [prompt for prompt in PROMPTS for _ in range(2)]
        for one in own:
            ids = TOKENIZER.encode(one["prompt"])
            out = generate(models["one"], [ids], max_new_tokens=11, seed=one["seed"], **options)
            assert one["completion"] == TOKENIZER.decode(out.sequences[0][len(ids) :])
    drawn = [one["seed"] for one in result["completions"] if one["setting"] == names[1]]
    assert drawn == list(range(5, 11))


def test_the_numbers_are_those_of_the_texts(capsys):
    Path("training.txt").write_text("a b a\nc d", encoding="utf-8")
    Path("openings.txt").write_text("\n".join("abcdeab"[:n] for n in range(1, 8)), encoding="utf-8")
    result = sweep(capsys, "--training-data", "training.txt")
    logs = {}
    for row in result["rows"]:
        own = [one for one in result["completions"] if one["setting"] == row["setting"]]
        logs[row["setting"]] = np.array([sum(o["log_prob"] for o in own[at : at + 2]) / 22 for at in range(0, 14, 2)])
        assert list(row["measures"]) == list(command.MEASURES)
        measure, expected = row["measures"]["log p"], mean_interval(logs[row["setting"]], 5)
        assert (measure["mean"], measure["low"], measure["high"]) == pytest.approx(tuple(vars(expected).values()))
        difference = difference_interval(logs[row["setting"]], logs["greedy"], 5)
        assert measure["differs"] == difference.excludes_zero
        assert row["measures"]["tokens"]["mean"] == 11
    assert result["rows"][3]["measures"]["log p"]["mean"] >= result["rows"][0]["measures"]["log p"]["mean"]


def test_two_models_stand_side_by_side(capsys):
    compare(["--model", "one", "--model", "two", *SWEEP, "--show", "1"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "model 1    one\nmodel 2    two\n" in out
    assert out.count("2: sample temperature=1.3") == len(command.MEASURES) - 1  # nothing was said of training data
    (shown,) = out.split("--- 'ab' ---\n")[1:]
    assert shown.startswith("one" + " " * 38 + "two\n" + "-" * 39 + "  " + "-" * 39 + "\n")
    assert "--- 'c' ---" not in out
    assert "of 3 prompts little can be said" in out


def test_adapters_stand_beside_their_base(capsys, models, monkeypatch):
    """By the real `load`: the base alone, then the base with each adapter, merged here by a product of matrices."""
    monkeypatch.setattr(command, "load", load)
    save_run(models["one"], TOKENIZER, Path("base"))
    expected = {"base": models["one"]}
    for seed, name in enumerate(("first", "second")):
        adapted, _ = load_model("base")
        add_lora(adapted, LoRAConfig(rank=2, alpha=6.0), seed)
        layers = [block.attn.c_attn for block in adapted.h]
        own, _ = load_model("base")
        for layer, target in zip(layers, (block.attn.c_attn for block in own.h), strict=True):
            part = layer.adapters()["default"]
            with torch.no_grad():
                part.B.copy_(torch.randn(part.B.shape))
                target.weight += part.B @ part.A * 3
        save_adapter(adapted, name)
        expected[f"base + {name}"] = own
    compare(["--model", "base", "--adapter", "first", "--adapter", "second", *SWEEP[:4], "--seeds", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in result["rows"]] == list(expected)
    for one in result["completions"]:
        ids = TOKENIZER.encode(one["prompt"])
        written = generate(expected[one["model"]], [ids], max_new_tokens=one["num_tokens"], strategy="greedy")
        assert one["completion"] == TOKENIZER.decode(written.sequences[0][len(ids) :])
    assert len({one["log_prob"] for one in result["completions"] if one["prompt_index"] == 0}) == 3


def test_columns_keep_the_lines_of_their_texts(capsys):
    command._print_columns(["one\n\ntwo words", "x" * 9], 5)
    assert capsys.readouterr().out == "one    xxxxx\n       xxxx\ntwo\nwords\n"


def test_one_prompt_has_no_interval(capsys):
    compare(["--model", "one", "--prompt", "ab", *SETTINGS, "--max-new-tokens", "5", "--json"])
    measures = json.loads(capsys.readouterr().out)["rows"][1]["measures"]
    assert measures["tokens"]["mean"] == 5
    assert measures["tokens"]["low"] is measures["tokens"]["high"] is None
    assert not any(measure["differs"] for measure in measures.values())


def test_texts_and_numbers_are_kept(capsys):
    compare(["--model", "one", *SWEEP, "-o", "kept/out.json", "-o", "out.csv"])
    kept = json.loads(Path("kept/out.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    assert kept == sweep(capsys)
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["completion"] for row in rows] == [one["completion"] for one in kept["completions"]]


def test_one_file_that_cannot_be_written_loses_neither_the_others_nor_what_is_printed(capsys, monkeypatch):
    real = command.write_text

    def write_text(path, text):
        if path.parent.name == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, text)

    monkeypatch.setattr(command, "write_text", write_text)
    files = ["full/a.json", "kept.csv", "full/b.csv", "kept.json"]
    out = [word for file in files for word in ("-o", file)]
    flags = ["--model", "one", "--prompt", "ab", *SETTINGS, "--max-new-tokens", "3", *out]
    assert answer(["compare", *flags, "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(Path("kept.json").read_text()) == json.loads(printed.out)
    assert len(Path("kept.csv").read_text().splitlines()) > len(SETTINGS)
    assert "note: full/b.csv could not be written: No space left on device" in printed.err
    assert "error: No space left on device: full/a.json" in printed.err


@pytest.mark.parametrize("line", ["compare --prompt ab", "inspect size", "inspect attn ab"])
def test_a_home_folder_is_meant_behind_an_equals_sign_too(line, tmp_path, monkeypatch):
    """Shells put it in place of ~ at the beginning of a word alone."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    save_run(random_model(GPTConfig(TOKENIZER.vocab_size, 11, 1, 1, 5), 3), TOKENIZER, Path("one"))
    flag = "--output" if "inspect" in line else "--out"
    assert answer([*line.split(), "--model", "one", f"{flag}=~/x.json"]) == 0
    assert (tmp_path / "home" / "x.json").is_file()
    assert not Path("~").exists()


@pytest.mark.parametrize("command", [*SETTINGS_OF, *(f"inspect {view}" for view in VIEWS)])
def test_so_it_is_in_every_flag_that_may_name_a_path(command, monkeypatch):
    """By the names of their values; all others are listed here."""
    monkeypatch.setenv("HOME", "/homes/mine")
    words = {"", "DEVICE", "L.X", "NAME", "NAME=VALUE", "POINT", "PRESET", "SETTING", "STR", "TEXT", "TOKEN"}
    for one in parser_of(*command.split()[:1], command.split()[1:])[0].fields.values():
        kind = get_args(one.kind)[0] if one.several else one.kind
        if kind in (str, Path) and not one.choices:
            found = one.value(["~/x"] if one.several else "~/x")
            expected = "~/x" if one.flag_options.metavar in words else "/homes/mine/x"
            assert found == ((kind(expected),) if one.several else kind(expected)), one.flag


def test_the_records_of_a_folder_at_home_have_fields(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_run(random_model(GPTConfig(TOKENIZER.vocab_size, 11, 1, 1, 5), 3), TOKENIZER, Path("one"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"body": "ab ab", "title": "a"}\n')
    line = "compare --model one --prompt ab --seeds 1 --max-new-tokens 2 --training-data=~/texts --text-field body"
    assert answer(line.split()) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    ["--model {} --model {}/model.safetensors", "--model {} --model link", "--model x --adapter {} --adapter ./{}",
     "--model x --adapter {} --adapter {}/adapter_config.json"],
)  # fmt: skip
def test_one_place_is_not_compared_with_itself(names, capsys):
    save_run(random_model(GPTConfig(TOKENIZER.vocab_size, 11, 1, 1, 5), 3), TOKENIZER, Path("own"))
    Path("own", "adapter_model.safetensors").touch()
    Path("own", "adapter_config.json").touch()
    Path("link").symlink_to("own")
    assert answer(["compare", *names.replace("{}", "own").split(), "--prompt", "ab"]) == 2
    assert "own is named twice, and nothing can differ" in capsys.readouterr().err


def test_a_picture_is_drawn():
    compare(["--model", "one", "--prompt", "ab", "--setting", "greedy", "--max-new-tokens", "5", "-o", "o.png"])
    compare(["--model", "one", *SWEEP, "-o", "o.svg"])
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in Path("o.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("--model one", "there is no prompt to continue"),
        ("--model one --prompts-file missing.txt", "there is no file missing.txt"),
        ("--model one --prompts-file blank.txt", "there is no prompt in blank.txt"),
        ("--model one --prompt ab --prompt a!b", "prompt 1: "),
        ("--model one --prompt ab --seeds 0", "--seeds 0 is out of range"),
        ("--model one --prompt ab --seed -1", "--seed -1 is too small"),
        ("--model one --prompt ab --batch-size 0", "--batch-size 0 is out of range"),
        ("--model one --prompt ab --show -1", "--show -1 is too small"),
        ("--model one --prompt ab --max-new-tokens 0", "--max-new-tokens 0 writes nothing"),
        ("--model one --prompt ab --max-new-tokens 18", "has 2 tokens, and 18 more do not fit block_size = 19"),
        ("--model one --model small --prompt a --prompt abcdeab", "prompt 1 has 7 tokens, and 1 more do not fit"),
        ("--model one --prompt ab --training-data nowhere", "there is no corpus, file or folder named 'nowhere'"),
        ("--model one --prompt ab -o out.txt", "out.txt ends in .txt, which is no known format"),
        ("--model one --prompt ab -o folder.csv", "folder.csv is a folder"),
        ("--model one --prompt ab -o blank.txt/out.json", "blank.txt is a file, and blank.txt/out.json cannot"),
        ("--model one --model one --prompt ab", "one is named twice, and nothing can differ"),
        ("--model gpt2 --model openai-community/gpt2 --prompt ab", "openai-community/gpt2 is named twice"),
        ("--model one --prompt ab --adapter a --adapter a", "a is named twice, and nothing can differ"),
        ("--model one --prompt ab --setting temperature=0.5,0.50", "are the same, and nothing can differ"),
        ("--model one --prompt ab --setting greedy --setting temperature=0", "are the same, and nothing can differ"),
        ("--model one --model two --adapter a --prompt ab", "--adapter a could belong to each of 2 models"),
    ],
)
def test_mistakes_are_two_lines_and_nothing_is_written(arguments, what):
    Path("blank.txt").write_text(" \n\n", encoding="utf-8")
    Path("folder.csv").mkdir()
    before = sorted(Path().iterdir())
    with pytest.raises(MiniGPTError) as caught:
        compare(arguments.split())
    assert what in caught.value.what
    assert caught.value.how
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("setting", "what", "how"),
    [
        ("greedy temperature=0.5", "temperature = 0.5 shapes a draw, but greedy draws nothing",
         "leave temperature out, or choose sample"),
        ("beam top_k=5", "top_k = 5 shapes a draw, but beam draws nothing",
         "leave top_k out, or choose sample with num_beams above 1, which draws beams"),
        ("greedy num_beams=3", "num_beams = 3, but greedy follows a single sequence",
         "leave num_beams out, or choose beam"),
        ("sample length_penalty=2", "length_penalty = 2.0 concerns beams, but there are none",
         "leave length_penalty out, or choose beam with num_beams above 1"),
        ("temperature=0 num_beams=3", "temperature = 0.0 draws nothing, but sample would draw num_beams = 3 beams",
         "choose beam, or a temperature above 0"),
    ],
)  # fmt: skip
def test_what_contradicts_in_a_setting_is_said_in_its_words(setting, what, how):
    """And what is advised is a setting."""
    with pytest.raises(InputError) as caught:
        parse_settings([setting])
    assert (caught.value.what, caught.value.how) == (f"--setting {setting!r}: {what}", how)


def test_settings_that_concern_the_end_stand_beside_others():
    """Only the model knows what ends a text, and how long one may be."""
    found = parse_settings(["greedy", "min_new_tokens=5,50"])
    assert [one.options.get("min_new_tokens", 0) for one in found] == [0, 5, 50]
    with pytest.raises(InputError, match="are the same"):
        parse_settings(["min_new_tokens=5", "min_new_tokens=5 top_k=0"])


def test_the_length_fits_every_model(capsys):
    compare(["--model", "one", "--model", "small", "--prompts-file", "openings.txt", "--setting", "greedy", "--json"])
    completions = json.loads(capsys.readouterr().out)["completions"]
    assert {one["num_tokens"] for one in completions} == {7 - 4}  # the longest prompt has 4 of the 7 places


def test_an_option_about_the_end_of_a_text_is_advised_against_where_there_is_none():
    with pytest.raises(InputError, match=r"\nleave min_new_tokens out; or in Python"):
        compare(["--model", "one", "ab", "--setting", "min_new_tokens=5"])
