"""What an error says is true, and what it advises can be done."""

import ast
import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.cli.parser import SettingsParser
from minigpt.cli.settings import SETTINGS
from minigpt.config import DataConfig, DocumentsConfig, GPTConfig, RunConfig, TrainConfig
from minigpt.decoding.options import DecodingOptions
from minigpt.errors import ConfigError, MiniGPTError, quoted
from minigpt.formats.pretrained import save_hf
from minigpt.formats.run_directory import save_run
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer
from tests.conftest import random_model

PACKAGE = Path(minigpt.__file__).parent
CHARACTERS = "\nabcdefghijklmnopqrstuv"
LETTERS = CharTokenizer(CHARACTERS)
SHAPE = GPTConfig(vocab_size=23, block_size=13, n_layer=1, n_head=2, n_embd=6)
STEPS = ["--device", "cpu", "--train.max_steps", "2", "--train.batch_size", "2", "--train.warmup_steps", "0"]
NEW = ["--model.n_layer", "1", "--model.n_head", "2", "--model.n_embd", "6", "--model.block_size", "7", *STEPS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model without a tokenizer, a run, and texts of its letters."""
    folder = tmp_path_factory.mktemp("prepared")
    model = random_model(SHAPE, seed=3)
    save_hf(model, None, folder / "bare")
    save_run(model, LETTERS, folder / "run")
    for number, name in enumerate(("learned.txt", "held.txt")):
        text = "".join(LETTERS.decode([(i * i + number) % 23]) for i in range(331))
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "letters.txt").write_text(CHARACTERS, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def files(prepared, tmp_path, monkeypatch):
    """Every test has a copy of them."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)


def test_a_model_without_a_tokenizer_is_trained_as_the_error_advises(failing):
    start = ["train", "--data", "learned.txt", "--out", "new", *STEPS, "--init-from"]
    told = failing([*start, "bare"])
    assert "minigpt import MODEL DIR --tokenizer" in told
    assert run(["import", "bare", "whole", "--tokenizer", "letters.txt"]) == 0
    assert run([*start, "whole"]) == 0


@pytest.mark.parametrize("model", ["bare", "run"])
def test_a_draft_without_a_tokenizer_has_the_one_that_is_named(model, failing):
    line = ["generate", "abc", "--model", model, "--draft", "bare", "--max-new-tokens", "3"]
    assert "name one with --tokenizer" in failing(line)
    assert run([*line, "--tokenizer", "letters.txt"]) == 0


@pytest.mark.slow
def test_no_flag_is_blamed_that_nobody_gave(capsys):
    many = ["--num-return-sequences", "130000", "--max-new-tokens", "0"]
    assert run(["generate", "abc", "--model", "run", *many]) == 0
    assert capsys.readouterr().out.count("abc") == 130_000


def test_as_many_rows_as_copies_make_at_once_may_be_given():
    assert DecodingOptions(strategy="beam", num_beams=1_000_000, batch_size=8_000_000).batch_size == 8_000_000


@pytest.mark.parametrize("changed", ["learned.txt", "held.txt"])
def test_of_data_that_changed_the_text_and_what_validates_are_named(changed, capsys):
    assert run(["train", "--data", "learned.txt", "--val-data", "held.txt", "--out", "new", *NEW]) == 0
    shutil.copy("letters.txt", changed)
    assert run(["train", "--resume", "new", "--train.max_steps", "4"]) == 2
    what, how = capsys.readouterr().err.rstrip("\n").split("\n")[-2:]
    assert re.search(r"\S*learned.txt or \S*held.txt does not hold what new/last was trained on", what)
    assert "new place as --data or --val-data" in how


def test_a_text_validates_no_model_that_learns_it(failing):
    assert "all of the text to validate is in learned" in failing(
        ["train", "--data", "learned.txt", "--val-data", "learned.txt", "--out", "new", *NEW]
    )


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.NDJSON"])
def test_records_do_not_validate_a_text_by_their_letters(name, failing):
    Path(name).write_text("text\nabc\n", encoding="utf-8")
    line = ["train", "--data", "learned.txt", "--val-data", name, *NEW]
    assert f"--val-data {name!r} holds separate documents, and learned.txt is read as one text" in failing(line)
    assert run([*line, "--documents.separate", "off", "--out", "new"]) == 0


@pytest.mark.parametrize("beside", [[], ["--data", "learned.txt"], ["--train.max_steps", "9"]], ids=" ".join)
@pytest.mark.parametrize("best", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_a_folder_without_a_checkpoint_is_refused_before_its_data_are_read(best, beside, failing, monkeypatch):
    monkeypatch.setattr("minigpt.cli.trainings.data_of_run", lambda config: pytest.fail("a corpus was asked for"))
    Path("run", best).parent.mkdir(exist_ok=True)
    Path("run/model.safetensors").rename(Path("run", best))
    told = failing(["train", "--resume", "run", *beside])
    assert "run has weights, but no checkpoint to go on from" in told
    way = shlex.split(told.partition("start a new run from them, with ")[2])
    assert way == ["--init-from", "run"]
    if best == "model.safetensors":  # the other is no adapter, but has its name
        assert run(["train", *way, "--data", "learned.txt", "--out", "new", *STEPS]) == 0


@pytest.fixture(scope="module")
def begun(prepared, tmp_path_factory):
    """A run of two steps. Nobody changes it."""
    out = tmp_path_factory.mktemp("begun") / "new"
    assert run(["train", "--data", str(prepared / "learned.txt"), "--out", str(out), *NEW]) == 0
    return out


@pytest.mark.parametrize("left", ["last", "previous", ".next", ".next previous", "last previous", "last .next"])
def test_a_run_that_was_killed_anywhere_is_resumed(left, begun, capsys):
    shutil.copytree(begun, "new")
    Path("new/last").rename("whole")
    for name in left.split():
        shutil.copytree("whole", Path("new", name), dirs_exist_ok=True)
    for name in {"last", "previous", ".next"} - {*left.split()}:
        shutil.rmtree(Path("new", name), ignore_errors=True)
    assert run(["train", "--resume", "new", "--train.max_steps", "3"]) == 0
    assert "resume     new at step 2" in capsys.readouterr().out


def test_a_base_that_moved_is_named_where_it_is(capsys):
    Path("d.txt").write_text("\n".join("abcdefghijkl"[i:] for i in range(9)), encoding="utf-8")
    documents = ["--documents.separate", "on", "--documents.train_size", "5", "--documents.val_size", "2",
                 "--documents.max_length", "13", "--train.lora_rank", "1", "--train.epochs", "1"]  # fmt: skip
    assert run(["train", "--init-from", "run", "--data", "d.txt", "--out", "new", "--device", "cpu", *documents]) == 0
    Path("run").rename("moved")
    again = ["train", "--resume", "new", "--train.epochs", "2"]
    assert run(again) == 2
    told = capsys.readouterr().err
    assert "new trains an adapter of a model, and" in told
    assert "where it is now as --init-from" in told
    assert run([*again, "--init-from", "moved"]) == 0


@pytest.mark.parametrize("line", [f"train --init-from new --data learned.txt --out next {' '.join(STEPS)}",
                                  "export new out", "import new out", "eval --model new"])  # fmt: skip
def test_where_a_base_is_now_is_written_as_advised(line, capsys):
    Path("d.txt").write_text("\n".join("abcdefghijkl"[i:] for i in range(9)), encoding="utf-8")
    documents = ["--documents.separate", "on", "--documents.train_size", "5", "--documents.val_size", "2",
                 "--documents.max_length", "13", "--train.lora_rank", "1", "--train.epochs", "1"]  # fmt: skip
    assert run(["train", "--init-from", "run", "--data", "d.txt", "--out", "new", "--device", "cpu", *documents]) == 0
    Path("run").rename("moved")
    assert run(line.split()) == 2
    settings = re.search(r"write where it is now as init_from into (\S+),", capsys.readouterr().err)[1]
    base = re.compile("^init_from: .*$", re.MULTILINE)
    Path(settings).write_text(base.sub("init_from: moved", Path(settings).read_text(encoding="utf-8")), "utf-8")
    assert run(line.split()) == 0


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        (["next", "abc", "--model", "run", "--tokenizer", ""], "--tokenizer"),
        (["next", "abc", "--model", "run", "--adapter", ""], "--adapter"),
        (["generate", "abc", "--model", "run", "--adapter", ""], "--adapter"),
        (["tokenize", "abc", "--tokenizer", ""], "--tokenizer"),
        (["import", "run", ""], "DIR"),
        (["export", "run", ""], "DIR"),
        (["import", "run", "new", "--tokenizer", ""], "--tokenizer"),
        (["generate", "--model", "run", "--prompts-file", ""], "--prompts-file"),
    ],
)
def test_an_empty_name_is_no_path(line, flag, failing):
    """As a variable of a shell that is not set."""
    assert re.match(rf"error: {flag} is empty, and (no path|names nothing)\n", failing(line))


@pytest.mark.parametrize("content", ["5", "model: [", "model: 5", "modle: {}", "model: {n_layer: -1}"])
def test_a_damaged_file_is_named_once(content, failing):
    Path("run/config.yaml").write_text(content, encoding="utf-8")
    told = failing(["next", "abc", "--model", "run"]).partition("\n")[0]
    assert told.startswith("error: run/config.yaml")
    assert told.count("config.yaml") == 1


VIEW_SETTINGS = {f"inspect {name}": view for name, (view, _, _) in VIEWS.items()}
NAMES = ("DIR", "FILE", "FILE.yaml", "MODEL", "SOURCE", "SRC", "RUN", "NAME", "T", "REPORT")
EMPTY = [
    (command, one.flag)
    for command, settings in {**SETTINGS, **VIEW_SETTINGS}.items()
    for one in SettingsParser(command, settings).fields.values()
    if one.kind in (str, Path, tuple[str, ...])
    and (one.flag_options.metavar in NAMES or one.kind is Path)
    and (one.optional or one.flag_options.metavar != "NAME")  # --as "" is the usual name
]


@pytest.mark.parametrize(("command", "flag"), EMPTY)
def test_an_empty_name_is_not_left_out(command, flag):
    parser = SettingsParser(command, {**SETTINGS, **VIEW_SETTINGS}[command])
    with pytest.raises(ConfigError, match=f"{flag} is empty, and names nothing"):
        parser.given([flag, ""] if flag.startswith("-") else ["other"] * (flag == "DIR") + [""])


@pytest.mark.parametrize(
    ("preset", "flag"), [("shakespeare-best", "--train.teachers"), ("finetune-documents", "--init-from")]
)
def test_what_a_preset_names_is_taken_away_as_advised(preset, flag, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five.\n\n" * 90 + "\n\n".join("abcdefghij"))
    words = ["train", "--preset", preset, "--data", str(text), "--plan", "--model.n_layer", "1"]
    words += ["--documents.train_size", "0", "--documents.val_size", "2"] * (flag == "--init-from")
    assert run([*words, flag, ""]) == 2
    line = capsys.readouterr().err.rstrip("\n").partition("with the line ")[2]
    (tmp_path / "none.yaml").write_text(line)
    assert run([*words, "--config", str(tmp_path / "none.yaml")]) == 0


OF_THE_MODEL = ["heads", "heads --json", "embed positions --check", "embed pca -o pca.json", "ablate --repeated 3",
                "ablate --repeated 3 --part 0.1"]  # fmt: skip
OF_A_TEXT = ["heads abc", "embed near a", "embed pca abc", "heads --bos", "ablate abc", "attn abc", "lens abc",
             "ablate --repeated 3 --mode mean --reference abcabca --reference bcdbcda"]  # fmt: skip


@pytest.mark.filterwarnings("always::minigpt.errors.ModelNote")
@pytest.mark.parametrize("view", OF_THE_MODEL)
def test_a_view_without_a_text_needs_no_tokenizer(view, capsys):
    assert run(["inspect", *view.split(), "--model", "bare"]) == 0
    assert "only ids go in and out" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::minigpt.errors.ModelNote")
@pytest.mark.parametrize("view", OF_A_TEXT)
def test_a_view_with_a_text_asks_for_one(view, capsys):
    line = ["inspect", *view.split(), "--model", "bare"]
    assert run(line) == 2
    assert "name one with --tokenizer" in capsys.readouterr().err
    if "--bos" not in line:  # which no characters have
        assert run([*line, "--tokenizer", "letters.txt"]) == 0


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize(
    "line", ["next abc --model run", "eval --model run", "train --resume run", "export run new", "inspect runs run"]
)
def test_settings_that_are_no_file_are_not_called_absent(line, kind, failing):
    Path("run/config.yaml").unlink()
    os.mkfifo("run/config.yaml") if kind == "pipe" else Path("run/config.yaml").mkdir()
    assert failing(line.split()).startswith("error: run/config.yaml is no regular file")


@pytest.mark.parametrize(
    ("line", "how"),
    [
        (f"train --data learned.txt {' '.join(NEW)}", "as --out"),
        (f"train --data learned.txt --out new/run {' '.join(NEW)}", "as --out"),
        ("train --preset shakespeare-cpu", "as --out"),  # before anything is downloaded
        ("quickstart --data learned.txt", "as --out"),
        ("export run new", "choose another"),
        ("import run new", "choose another"),
        ("explore --model run -o page.html", "choose another"),
        ("inspect heads --model run -o heads.png", "choose another"),
    ],
)
def test_a_folder_that_cannot_be_written_is_found_before_the_work(line, how, failing, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # whoever is root may write anywhere
    told = failing(line.split())
    assert f"nothing can be written to the folder {tmp_path}: " in told
    assert how in told


YAML = ["null", "true", "x", "1.5", "-1", "[]", "{a: 1}", ".nan", "010", "2020-01-01", "!!binary aGk=", "9e99"]
SECTIONS = {"": RunConfig, "model": GPTConfig, "train": TrainConfig, "data": DataConfig, "documents": DocumentsConfig}
KEYS = [(section, field.name) for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("section", "key"), KEYS, ids=map(".".join, KEYS))
def test_a_setting_in_a_file_is_taken_or_refused_by_the_name_of_file_and_key(section, key):
    """And by no flag, because none was given."""
    whole, values, parser = RunConfig(), Path("values.yaml"), SettingsParser("train", SETTINGS["train"])
    for value in YAML:
        values.write_text(f"{section}:\n  {key}: {value}\n" if section else f"{key}: {value}\n", encoding="utf-8")
        try:
            taken = parser.parse(["--data", "learned.txt", "--config", "values.yaml"])
        except MiniGPTError as error:
            what, how = error.renamed({})
            assert what.startswith(("values.yaml: ", "values.yaml is not readable YAML: ")), (value, what)
            assert key in what, (value, what)
            assert "--" not in how, (value, how)
        else:
            config = vars(taken)["config"]
            found, usual = (getattr(getattr(one, section) if section else one, key) for one in (config, whole))
            written = str([*usual] if isinstance(usual, tuple) else usual).lower()
            assert key == "source" or found != usual or value == written, f"{value} was dropped"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("train: {lora_alpha: 3.0}", "lora_alpha in --config would change nothing"),
        ("train: {muon_momentum: 0.5, optimizer: adamw}", "muon_momentum in --config would change nothing"),
        ("train: {warmup_ratio: 0.1, warmup_steps: 7}", "warmup_steps in --config would change nothing"),
        ("{train: {short_windows: 0.3}, documents: {separate: on}}", "short_windows in --config would change nothing"),
        ("documents: {separate: 'off', keywords: 2}", "keywords in --config would change nothing"),
    ],
)
def test_a_setting_of_a_file_that_another_overrules_is_said(written, said, capsys):
    Path("values.yaml").write_text(written, encoding="utf-8")
    SettingsParser("train", SETTINGS["train"]).parse(["--data", "learned.txt", "--config", "values.yaml"])
    assert f"note: {said}" in capsys.readouterr().err


def test_the_flags_that_quickstart_lacks_are_those_of_train(failing):
    Path("short.txt").write_text("abcdefgh" * 9, encoding="utf-8")
    told = failing(["quickstart", "--data", "short.txt"])
    assert re.search(r"use --model.block_size \d, .*\(flags of minigpt train\)", told)


def test_dialogues_are_measured_as_eval_advises(capsys):
    talk = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "bcd"}] * 2
    Path("talks.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 3, encoding="utf-8")
    save_run(random_model(dataclasses.replace(SHAPE, vocab_size=257, block_size=64), 3), GPT2Tokenizer([]), "bytes")
    assert run(["eval", "--model", "bytes", "--data", "talks.jsonl"]) == 2
    way = re.search(r"minigpt (evaluate-chat --model bytes --data \S+)", capsys.readouterr().err)
    rest = ["--replies", "2", "--candidates", "2", "--max-new-tokens", "2"]
    assert run([*way[1].split(), *rest]) == 0


@pytest.mark.parametrize("length", [2, 9, 40, 300])
def test_a_text_that_is_too_short_is_read_with_the_block_size_that_is_advised(length, capsys):
    Path("short.txt").write_text(("abcdefgh" * 99)[:length], encoding="utf-8")
    line = ["train", "--data", "short.txt", "--out", "new", *NEW[:6], *STEPS, "--model.block_size"]
    assert run([*line, "128"]) == 2
    way = re.search(r"--model.block_size (\d+),", capsys.readouterr().err.split("\n")[-2])
    if way:
        assert run([*line, way[1]]) == 0


@pytest.mark.parametrize(
    "line",
    [
        *(f"{command} --model gpt2 --adapter nowhere" for command in (
            "generate a", "chat", "next a", "score a", "compare a", "explore", "inspect heads a",
            "eval --data learned.txt")),
        "train --init-from gpt2 --data nowhere", "train --init-from gpt2 --data nowhere.jsonl",
        "verify-resume --init-from gpt2 --data nowhere", "eval --model gpt2 --data nowhere",
        "evaluate-text nowhere.txt --model gpt2", "compare --model gpt2 --prompt a --training-data nowhere",
    ],
)  # fmt: skip
def test_what_is_not_there_is_missed_before_a_model_is_fetched(line, monkeypatch, failing):
    monkeypatch.setattr("minigpt.formats.source.fetch_model", lambda name: pytest.fail("a model was asked for"))
    assert re.search(r"there is no (\w+, )?file.* '?nowhere", failing(line.split()))


def test_a_tracker_that_is_not_installed_is_missed_before_a_corpus_is_asked_for(monkeypatch, failing):
    monkeypatch.setattr("minigpt.cli.trainings.load_data", lambda config: pytest.fail("a corpus was asked for"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "--report-to 'wandb' needs a package" in failing(["train", "--report-to", "wandb"])


MISTAKES = [
    "eval --model run --data pairs.csv",
    "evaluate-text pairs.csv",
    "compare --model run --prompt a --training-data pairs.csv",
    "train --data pairs.csv",
    "train --init-from run --data strange.txt",
    "train --init-from run --data strange.jsonl --documents.train_size 1 --documents.val_size 1",
    "eval --model run --data strange.txt",
    "eval --model run --data strange.jsonl",
    "score z --model run",
    "tokenize z --model run",
    "chat --model run --user z",
    "chat --model run --strategy greedy --temperature 0.5",
    "generate a --model run --strategy beam --temperature 0.5",
    "train --init-from run --data learned.txt --train.lora_rank 9 --train.optimizer adamw",
    "train --init-from run --data learned.txt --train.lora_rank 2 --train.optimizer adamw --train.lora_targets ,",
    "train --init-from run --data learned.txt --model.n_layer 3",
]


@pytest.mark.filterwarnings("always::minigpt.errors.ModelNote")
@pytest.mark.parametrize("line", MISTAKES)
def test_advice_is_in_words_of_the_command(line, capsys):
    Path("pairs.csv").write_text("setting,prompt,completion\ngreedy,ab,cd\nbeam,ab,cde\n", encoding="utf-8")
    Path("strange.txt").write_text("xyz" * 99, encoding="utf-8")
    Path("strange.jsonl").write_text('{"text": "xyz"}\n{"text": "zyx"}\n', encoding="utf-8")
    assert run(line.split()) == 2
    told = "\n".join(capsys.readouterr().err.rstrip("\n").split("\n")[-2:])
    assert not BARE.search(told)
    assert set(FLAG.findall(told)) <= KNOWN[line.split()[0]]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train {text}", "--data {text}"),
        ("train {run}", "--resume {run} or --init-from {run}"),
        ("train {bare}", "--init-from {bare}"),
        ("train shakespeare", "--data shakespeare"),
        ("quickstart {text}", "--data {text}"),
        ("verify-resume {text}", "--data {text}"),
        ("chat {run}", "--model {run}"),
        ("chat gpt2", "--model gpt2"),
        ("eval {run}", "--model {run}"),
        ("eval {text}", "--data {text} or --val-data {text}"),
        ("eval bare/model.safetensors", "--model bare/model.safetensors"),
        ("explore {run}", "--model {run}"),
        ("evaluate-chat {text}", "--data {text}"),
        ("generate a {run}", "--model {run}"),
        ("compare a {text}", "--training-data {text} or --prompts-file {text}"),
        ("inspect size {run}", "--model {run}"),
        ("inspect lens a {run}", "--model {run}"),
    ],
)
def test_a_model_or_a_file_without_its_flag_is_answered_with_the_flag(line, meant, failing):
    names = {"text": "learned.txt", "run": "run", "bare": "bare"}
    assert f"\n       did you mean {meant.format(**names)}? see minigpt" in failing(line.format(**names).split())


@pytest.mark.parametrize("command", [*SETTINGS, *(f"inspect {view}" for view in VIEWS)])
def test_what_is_meant_by_a_bare_word_can_be_typed(command):
    parser = SettingsParser(command, {**SETTINGS, **VIEW_SETTINGS}[command])
    for word in ("run", "bare", "learned.txt", "shakespeare", "gpt2", "nothing", "", "/"):
        for meant in parser._taking(word):
            parser.parse_args(shlex.split(meant))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("generate learned.txt --model run", "minigpt generate - < learned.txt"),
        ("next learned.txt --model run", "minigpt next - < learned.txt"),
        ("score abc learned.txt --model run", "minigpt score - < learned.txt"),
        ("tokenize run --model run", "--model run"),
        ("generate run --model run", "--model run"),
        ("inspect heads run --model run", "--model run"),
    ],
)
def test_a_text_that_names_a_file_is_told(line, meant, capsys):
    """Whoever writes `generate checkpoints/mine` may mean the model, and gets a continuation of its name."""
    run([*line.split(), "--unknown", "skip"])
    assert f"is taken as a text, and there is such a file; did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["score --prompt a", "tokenize --prompt a", "tokenize --text a", "import --source run new",
             "import --init-from run new", "export --model run new", "evaluate-text --data learned.txt"]
)  # fmt: skip
def test_what_is_given_by_its_place_is_asked_of_no_other_command(line, failing):
    told = failing(line.split())
    assert f"is given without a flag: minigpt {line.split()[0]} " in told


@pytest.mark.parametrize("view", ["steps", "beams"])
def test_a_view_without_room_advises_what_it_has(view, capsys):
    assert run(["inspect", view, "ab", "--model", "run", "-n", "1000"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "error: the prompt of length 2 and --max-new-tokens 1000 do not fit" in told
    assert "overflow" not in told
    lower = re.search(r"lower (--max-new-tokens) to (\d+), or shorten the prompt", told)
    assert run(["inspect", view, "ab", "--model", "run", *lower.groups()]) == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", [b"my run", b"it's", b"a$b `c` *", "größe".encode(), b"mod\xe8le", b"mod\xe8ab'\\c d"])
def test_a_path_in_an_advised_command_is_read_as_it_was(name):
    told = quoted(Path(os.fsdecode(name)))
    assert told.encode("utf-8")  # which a terminal can show
    read = subprocess.run(["bash", "-c", f"printf '%s|' {told}"], capture_output=True, check=True, env={})
    assert read.stdout == name + b"|"


FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
COMMAND_LINE = re.compile(r"minigpt ((?:inspect )?[a-z-]+)([^;,:`\n]*)")
KNOWN = {
    command: {one.flag for one in SettingsParser(command, settings).fields.values()}
    for command, settings in {**SETTINGS, **VIEW_SETTINGS}.items()
}
SETTINGS_NAMES = {one.name for name, kind in SETTINGS.items() for one in SettingsParser(name, kind).fields.values()}
BARE = re.compile(rf"(?<![\w.-])({'|'.join(name for name in SETTINGS_NAMES if '_' in name)}|rank|targets)\b")
NO_FLAGS = {"--help", "--version", "--help-all", "--model.vocab_size", "--nproc-per-node", "--name"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_flag_that_the_package_names_exists_where_it_names_it(file):
    texts = [node.value for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip
    for text in texts:
        for found in COMMAND_LINE.finditer(text):
            command = found[1] if found[1] in KNOWN else found[1].split()[0]
            flags = set(FLAG.findall(found[2])) if command in KNOWN else set()
            assert flags <= KNOWN.get(command, set()) | NO_FLAGS, found[0]
        if " --best" not in text:  # a drawing with arrows
            named = {
                flag for flag in FLAG.findall(text) if not any(flag in known for known in set().union(*KNOWN.values()))
            }
            assert named <= NO_FLAGS, text


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_stands_behind_a_flag_in_a_command_line_is_quoted(file):
    """As a folder called "my runs" needs it; only numbers and names of settings do not."""
    plain = {"limit", "settings.port", "way", "name"}
    for text in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts = text.values if isinstance(text, ast.JoinedStr) else []
        for before, value in itertools.pairwise(parts):
            told = before.value if isinstance(before, ast.Constant) else ""
            if re.search(r"minigpt [a-z-]+( [^;:,]*)? --[\w.-]+ $", told) and isinstance(value, ast.FormattedValue):
                assert ast.unparse(value.value).startswith("quoted(") or ast.unparse(value.value) in plain, told


def test_advice_about_a_folder_with_a_blank_in_its_name_can_be_typed(capsys):
    out = "my runs/the first"
    assert run(["train", "--data", "learned.txt", "--out", out, *NEW]) == 0
    assert run(["train", "--resume", out]) == 0
    line = re.search(r"minigpt (train --resume .* --train.max_steps) N", capsys.readouterr().out)[1]
    assert run([*shlex.split(line), "3"]) == 0
    Path(out, "model.safetensors").unlink()
    assert run(["next", "abc", "--model", out]) == 2
    line = re.search(r"minigpt (train --resume [^,]*), or name", capsys.readouterr().err)[1]
    assert run([*shlex.split(line), "--train.max_steps", "4"]) == 0
