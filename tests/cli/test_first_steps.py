"""What people type first, and what they are answered: names of other programs, runs half done, texts without a flag."""

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import COMMANDS, parser_of
from minigpt.cli.main import answer as run
from minigpt.cli.parser import SettingsParser
from minigpt.cli.run_settings import Train
from minigpt.cli.settings import SETTINGS
from minigpt.config import DataConfig, DocumentsConfig, GPTConfig, RunConfig, TrainConfig, write_yaml
from minigpt.errors import ALIASES
from minigpt.formats.run_directory import LOCK, RunDirectory, newest_run, save_run, start_run, unfinished_run
from minigpt.formats.weights import save_weights
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer


def begun(
    path: Path,
    step: int,
    saved: bool = True,
    best: bool = False,
    alphabet: str = "abc",
    **settings: Any,
) -> RunDirectory:
    """A run as it is after some steps."""
    config = GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=1, n_embd=2)
    made = RunDirectory(path)
    train = TrainConfig(max_steps=7, warmup_steps=0, **settings)
    start_run(made, RunConfig(model=config, train=train), CharTokenizer.from_text(alphabet))
    if saved:
        made.last.mkdir()
        (made.last / "manifest.json").write_text(json.dumps({"progress": {"step": step, "evaluations_since_best": 3}}))
        save_weights(GPT(config), made.last_weights)
    if best:
        save_weights(GPT(config), made.best_weights)
    return made


# --- flags


@pytest.mark.parametrize(("flag", "right"), [
    ("--lr", "--train.learning_rate"), ("--train.lr", "--train.learning_rate"),
    ("--learning-rate", "--train.learning_rate"),
    ("--steps", "--train.max_steps"), ("--max_iters", "--train.max_steps"), ("--batch", "--train.batch_size"),
    ("--batch-size", "--train.batch_size"), ("--epochs", "--train.epochs"), ("--layers", "--model.n_layer"),
    ("--train.n_layer", "--model.n_layer"), ("--heads", "--model.n_head"), ("--dropout", "--model.dropout"),
    ("--ctx", "--model.block_size"), ("--model", "--init-from"), ("--output_dir", "--out"), ("--dataset", "--data"),
    ("--train.max_step", "--train.max_steps"), ("--sead", "--seed"),
])  # fmt: skip
def test_other_names_of_a_setting(failing, flag, right):
    what, how = failing(["train", flag, "3"]).splitlines()
    assert what == f"error: unknown argument {flag}"
    assert how.startswith(f"       did you mean {right}? ")


BY_PLACE = [
    ("import", "src"), ("import", "model"), ("import", "out"), ("import", "checkpoint"),
    ("export", "model"), ("export", "out"), ("export", "checkpoint"), ("export", "output_dir"),
]  # fmt: skip


@pytest.mark.parametrize("form", [["--{}", "x", "y"], ["--{}=x", "y"], ["x", "--{}", "y"], ["--{}=x"]])
@pytest.mark.parametrize(("command", "name"), BY_PLACE)
def test_a_flag_for_what_is_given_by_its_place(failing, command, name, form):
    what, how = failing([command, *(word.format(name) for word in form)]).splitlines()
    first = {"import": "SRC", "export": "MODEL"}[command]
    metavar = "DIR" if name.startswith("out") else first
    assert what == f"error: unknown argument --{name}"
    assert how == (
        f"       {metavar} is given without a flag: minigpt {command} {first} DIR [flags]; see minigpt {command} --help"
    )


@pytest.mark.parametrize(("words", "flags"), [
    (["train", "--init-from", "mine", "--preset", "finetune-documents"],
     ["--documents.text_field", "--documents.prompt_field", "--documents.completion_field"]),
    (["eval", "--model", "mine"], ["--text-field"]),
    (["evaluate-text", "r.jsonl"], ["--text-field"]),
])  # fmt: skip
def test_who_must_name_the_field_of_the_text_is_told_the_flag(failing, words, flags):
    begun(Path("mine"), step=7, best=True)
    Path("r.jsonl").write_text('{"content": "ab", "title": "c"}\n')
    how = failing([*words, *([] if words[1] == "r.jsonl" else ["--data", "r.jsonl"])]).splitlines()[1]
    assert [word.strip(",") for word in how.split() if word.startswith("--")] == flags
    assert f"name one of them as {flags[0]}" in how


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_adapter_cannot_begin_in_a_run(failing, optimizer):
    begun(Path("mine"), step=2, optimizer=optimizer)
    what, how = failing(["train", "--resume", "mine", "--train.lora_rank", "2"]).splitlines()
    assert what == "error: --train.lora_rank 2: mine trains no adapter, and none can begin in the middle of a run"
    assert how == "       leave it out, or start a new run with --init-from mine"


@pytest.mark.parametrize("flag", ["--xq", "--train.foo", "--zebra", "--train", "--pl"])
def test_nothing_is_suggested_where_nothing_is_near(failing, flag):
    assert "did you mean" not in failing(["train", flag, "3"])


@pytest.mark.parametrize(("arguments", "answer"), [
    (["quickstart", "--tokenizer", "gpt2"], "minigpt train has --tokenizer; "),
    (["quickstart", "--preset", "shakespeare-cpu"], "minigpt train has --preset; "),
    (["quickstart", "--layers", "3"], "minigpt train has --model.n_layer; "),
    (["generate", "--lr", "3"], "minigpt train has --train.learning_rate; "),
    (["next", "a", "--temperature", "3"], "minigpt generate has --temperature; "),
    (["score", "a", "--top-p", "3"], "minigpt generate has --top-p; "),
    (["generate", "--max-length", "3"], "did you mean --max-new-tokens? "),
    (["generate", "to", "be"], "a text with spaces is put in quotes; "),
])  # fmt: skip
def test_what_a_command_does_not_take(failing, arguments, answer):
    assert failing(arguments).splitlines()[1].startswith(f"       {answer}")


def parser(command):
    """That of a command or of a view."""
    name, *view = command.split()
    return parser_of(name, view)[0]


def test_every_other_name_leads_to_something():
    known = {*parser("train").names(), *parser("generate").names(), *COMMANDS, "model", "prompt", "source"}
    assert set(ALIASES.values()) <= known


@pytest.mark.parametrize(("arguments", "way"), [
    (["generate", "--prompt", "--My"], "--prompt=--My"),
    (["generate", "--stop", "--"], "--stop=--"),
    (["next", "--prompt", "-a"], "--prompt=-a"),
    (["train", "--data", "-x.txt"], "--data=-x.txt"),
    (["generate", "--prompt"], "--prompt=..."),
])  # fmt: skip
def test_a_value_that_looks_like_a_flag(failing, arguments, way):
    assert way in failing(arguments).splitlines()[1]


PARSED = [
    *(name for name in SETTINGS if name != "verify-resume"),  # whose flags are train's
    *(f"inspect {view}" for view in VIEWS),
]


@pytest.mark.parametrize("command", PARSED)
def test_a_word_that_is_not_a_choice_is_answered_with_the_nearest(failing, command):
    for one in parser(command).fields.values():
        name = one.flag
        for choice in one.choices:
            wrong = f"{choice}{choice[-1]}"
            flags = [name] * name.startswith("-") + [wrong]
            what, how = failing([*command.split(), *flags]).splitlines()
            assert what in (f"error: {name} {wrong!r} is not a choice", f"error: there is no preset {wrong!r}")
            hint = f"did you mean {choice}? " if len(choice) > 1 else ""  # a single letter, of c, resembles nothing
            assert how.startswith(f"       {hint}known: ")


@pytest.mark.parametrize("command", PARSED)
def test_what_is_missing_is_named_and_shown_in_an_example(failing, command):
    missing = [one.flag for one in parser(command).fields.values() if one.required]
    if not missing:
        return
    what, how = failing(command.split()).splitlines()
    assert what == f"error: missing: {', '.join(missing)}"
    assert how.startswith(f"       for example: minigpt {command} ")
    assert how.endswith(f"; see minigpt {command} --help")
    assert "\\" not in how


def test_help_of_a_command_by_the_word(capsys):
    texts = []
    for arguments in (["help", "tokenize"], ["tokenize", "--help"]):
        with pytest.raises(SystemExit) as end:
            run(arguments)
        assert end.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert run(["help"]) == 0
    assert "commands:" in capsys.readouterr().out


def test_examples_come_before_fifty_settings():
    text = SettingsParser("train", Train, everything=True).format_help()
    assert text.index("examples:") < text.index("--train.max_steps")


def test_the_first_screen_of_train_is_what_people_need(capsys):
    with pytest.raises(SystemExit):
        run(["train", "--help"])
    out = capsys.readouterr().out
    screen = "\n".join(out.splitlines()[:24])
    for wanted in ("--data", "--preset", "--init-from", "--out", "--resume", "--plan", "minigpt train --resume"):
        assert wanted in screen
    assert "--help-all            show --model.*, --documents.*, --train.* too" in screen
    hidden = [one.flag for one in SettingsParser("train", Train).fields.values() if one.section]
    assert len(hidden) > 40
    assert not [flag for flag in hidden if f"  {flag} {{" in out or f"  {flag} N" in out]
    with pytest.raises(SystemExit):
        run(["train", "--help-all"])
    out = capsys.readouterr().out
    assert all(f"  {flag} " in out for flag in hidden)
    assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", PARSED)
def test_help_says_a_default_once(command):
    for one in parser(command).fields.values():
        assert len(re.findall(r"\(default|unless given", one.help)) <= 1, one.flag


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("chosen", "block_size"), [("shakespeare-cpu", 256), ("gpt2-124m", 1024)])
def test_help_shows_the_defaults_of_the_layers_below_the_flags(capsys, order, chosen, block_size):
    Path("c.yaml").write_text("train: {max_steps: 1234}\n", encoding="utf-8")
    flags = [["--help-all"], ["--preset", chosen], ["--config", "c.yaml"], ["--train.batch_size", "4321"]][::order]
    with pytest.raises(SystemExit) as end:
        run(["train", *(word for flag in flags for word in flag)])
    assert end.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"grows with its square (default: {block_size})" in out
    assert "number of optimizer steps (default: 1234)" in out
    assert "4321" not in out


# --- texts and models


def test_a_text_needs_no_flag(capsys):
    save_run(GPT(GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=1, n_embd=2)), CharTokenizer.from_text("abc"),
             Path("checkpoints/abc"))  # fmt: skip
    for command in (["generate", "--max-new-tokens", "2"], ["next"]):
        answers = []
        for text in (["ab"], ["--prompt", "ab"], ["--model", "abc", "ab"], ["ab", "--model=abc"]):
            assert run([*command, *text, "--device", "cpu", "--json"]) == 0
            answers.append({**json.loads(capsys.readouterr().out), "tokens_per_second": 0})
        assert answers[0] == answers[1] == answers[2] == answers[3]
    assert run(["generate", "ab", "--prompt", "c", "--max-new-tokens", "1", "--json", "--device", "cpu"]) == 0
    completions = json.loads(capsys.readouterr().out)["completions"]
    assert [row["text"][: -len(row["completion"])] for row in completions] == ["ab", "c"]
    for both in (["next"], ["next", "a", "--prompt", "b"]):
        assert run(both) == 2


@pytest.mark.parametrize("command", [
    ["tokenize", "ab"], ["next", "ab"], ["score", "ab"], ["inspect", "size"], ["inspect", "attn", "ab"],
    ["eval", "--data", "t.txt"], ["compare", "ab", "--max-new-tokens", "1", "--seeds", "1"],
])  # fmt: skip
def test_a_run_is_named_without_its_folder(capsys, command):
    begun(Path("checkpoints/mine"), 7, best=True)
    Path("t.txt").write_text("abcab" * 9)
    answers = []
    for name in ("mine", "checkpoints/mine"):
        assert run([*command, "--model", name]) == 0, capsys.readouterr().err
        answers.append(capsys.readouterr().out.replace("checkpoints/mine", "mine"))
    assert answers[0].replace("checkpoints/mine", "mine") == answers[1]


def test_a_run_to_compare_is_named_without_its_folder(capsys):
    begun(Path("checkpoints/mine"), 7).metrics.write_text('{"step": 7, "seconds": 2.0, "train_loss": 1.5}\n')
    assert run(["inspect", "runs", "mine"]) == 0, capsys.readouterr().err


def test_a_name_that_means_something_else_keeps_its_meaning(monkeypatch):
    from minigpt.formats.run_directory import run_named
    from minigpt.formats.source import open_source

    for name in ("gpt2", "mine", "."):
        save_run(GPT(GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=1, n_embd=2)),
                 CharTokenizer.from_text("abc"), Path("checkpoints") / name / "deep")  # fmt: skip
    assert run_named("gpt2") == "gpt2"
    assert open_source("gpt2").local is None
    Path("checkpoints/mine/deep").rename("checkpoints/run")
    assert run_named("run") == str(Path("checkpoints/run"))
    Path("run").mkdir()
    assert open_source("run").path == Path("run")


# --- runs half done


def test_no_run_says_where_it_looked(failing):
    assert f"no trained run in {Path.cwd() / 'checkpoints'}" in failing(["generate", "ROMEO"])


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("command", [["generate", "a"], ["next", "a"], ["score", "ab"], ["inspect", "size"]])
def test_an_interrupted_first_run_is_named(failing, command, saved):
    begun(Path("checkpoints/mine"), 2, saved)
    err = failing(command)
    assert "checkpoints/mine was interrupted" in err
    assert "minigpt train --resume checkpoints/mine" in err
    assert ("--model checkpoints/mine/last" in err) == saved
    if saved:
        assert run([*command, "--model", "checkpoints/mine/last"]) == 0


@pytest.mark.parametrize("here", [True, False])
def test_a_run_that_was_killed_before_it_saved_anything_says_how_it_goes_on(failing, here):
    """Not one that was imported: that has lost its weights."""
    run = begun(Path("checkpoints/mine"), 0, saved=False)
    if here:
        (run.path / LOCK).touch()
    err = failing(["generate", "a", "--model", "checkpoints/mine"])
    assert ("minigpt train --resume checkpoints/mine" in err) == here
    assert "newest weights" not in err


def test_which_run_is_unfinished():
    parent = Path("checkpoints")
    assert unfinished_run(parent, "a") is None
    begun(parent / "a", 7, best=True)
    assert unfinished_run(parent, "a") is None
    for number, (step, settings) in enumerate([(6, {}), (6, {"patience": 3}), (6, {"patience": 4}), (7, {})], 2):
        begun(parent / f"a-{number}", step, best=True, **settings)
    assert unfinished_run(parent, "a").path == parent / "a-4"
    begun(parent / "b", 0, saved=False)
    assert unfinished_run(parent, "b").path == parent / "b"
    (begun(parent / "b-2", 0, saved=False).path / "config.yaml").write_text("train: {of_another_version: 3}")
    assert unfinished_run(parent, "b").path == parent / "b"  # what cannot be read is in no new run's way
    save_run(GPT(GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=1, n_embd=2)), CharTokenizer.from_text("abc"),
             parent / "c")  # fmt: skip
    assert unfinished_run(parent, "c") is None  # an imported model has no steps to take
    assert newest_run(parent).path == parent / "c"


@pytest.mark.parametrize("command", [["quickstart"], ["quickstart", "--data", "t.txt"], ["train", "--data", "t.txt"]])
def test_a_new_run_beside_an_interrupted_one_says_so(capsys, monkeypatch, command):
    from minigpt.data.corpora import Corpus

    text = "abcab" * 40
    Path("t.txt").write_text(text)
    monkeypatch.setattr("minigpt.cli.trainings.load_quickstart_corpus", lambda: (Corpus("t", text, ""), "why"))
    monkeypatch.setattr(
        "minigpt.cli.trainings.train", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    name = "shakespeare-quick" if command == ["quickstart"] else "t"
    begun(Path("checkpoints") / name, 2)
    assert run(command) == 130
    out = capsys.readouterr().out
    assert f"checkpoints/{name} has steps left, and this is a new run" in out
    assert f"train --resume checkpoints/{name}" in out


def test_resume_takes_the_name_of_a_run(failing):
    made = begun(Path("checkpoints/mine"), 2, saved=False)
    write_yaml(RunConfig(), made.config, {})
    assert "named 'nowhere'" in failing(["train", "--resume", "mine", "--data", "nowhere"])
    assert "there is no folder nowhere" in failing(["train", "--resume", "nowhere"])


def test_a_run_is_not_resumed_from_its_last_checkpoint_where_the_one_before_is_named(failing):
    made = begun(Path("checkpoints/mine"), 2)
    made.previous.mkdir()
    assert "move checkpoints/mine/last away" in failing(["train", "--resume", "checkpoints/mine/previous"])


# --- standard input


@pytest.mark.parametrize("command", ["generate --max-new-tokens 3", "next", "score", "tokenize", "inspect loss"])
def test_a_dash_is_what_standard_input_holds(command, capsys, monkeypatch):
    begun(Path("mine"), step=7, best=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\n")))
    answers = []
    for text in ("abc", "-"):
        assert run([*command.split(), text, "--model", "mine", "--json"]) == 0
        answers.append({**json.loads(capsys.readouterr().out), "tokens_per_second": None})
    assert answers[0] == answers[1]


@pytest.mark.parametrize("command", ["generate --max-new-tokens 3", "next", "score", "tokenize", "inspect loss"])
def test_standard_input_is_read_as_a_file_is(command, capsys, monkeypatch):
    """Windows' line ends and a byte order mark are no part of what people wrote."""
    begun(Path("mine"), step=7, best=True, alphabet="ab\n")
    answers = []
    for content in (b"a\nb", b"a\r\nb\r\n", b"\xef\xbb\xbfa\rb\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run([*command.split(), "-", "--model", "mine", "--json"]) == 0, capsys.readouterr().err
        answers.append({**json.loads(capsys.readouterr().out), "tokens_per_second": None})
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("content", ["a".encode("utf-16"), b"a\0", b"\xff"])
def test_standard_input_that_is_no_text(content, capsys, monkeypatch):
    begun(Path("mine"), step=7, best=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run(["score", "-", "--model", "mine"]) == 2
    assert capsys.readouterr().err.startswith("error: standard input is not UTF-8 text: ")


# --- what a second newcomer met


@pytest.mark.parametrize(("flag", "answer"), [
    ("--data.val_fraction", "did you mean --val-fraction? "),
    ("--data.val_fraction=1", "did you mean --val-fraction? "),
    ("--data.tokenizer", "did you mean --tokenizer? "), ("--data.source", "did you mean --data? "),
    ("--model.vocab_size", "it follows from the tokenizer, and with characters from the text; "),
    ("--data.checksum", "see minigpt train"), ("--data.x", "see minigpt train"),
    ("--model.x", "see minigpt train"), ("--model.n_layers", "did you mean --model.n_layer? "),
    ("--documents.x", "see minigpt train"), ("--documents.text_fields", "did you mean --documents.text_field? "),
    ("--seed.x", "see minigpt train"), ("--out.dir", "see minigpt train"), ("--config.file", "did you mean --data? "),
])  # fmt: skip
def test_a_setting_looked_for_in_a_section(failing, flag, answer):
    what, how = failing(["train", flag, "0.2"]).splitlines()
    assert what == f"error: unknown argument {flag.removesuffix('=1')}"
    assert how.startswith(f"       {answer}")


def test_a_newer_run_that_is_not_done_is_named(capsys):
    name = "shakespeare-quick"
    parent = Path("checkpoints")
    for number, path in enumerate([parent / f"{name}-1", parent / name, parent / f"{name}-2"]):
        made = begun(path, 7 if number == 1 else 2, best=number == 1)
        for file in (path, *path.rglob("*")):
            os.utime(file, (1e9 + number, 1e9 + number))
    assert run(["generate", "a", "--max-new-tokens", "1"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert f"model      {parent / name}, the newest run (--model: others)" in err
    assert f"unfinished {made.path} is newer (train --resume goes on)" in err
    assert not any(f"{name}-1" in line for line in err)
    assert all(len(line) <= 80 for line in err)


@pytest.mark.parametrize("flag", ["--resume", "--resume="])
def test_a_run_that_is_not_there_is_answered_with_those_that_are(failing, flag):
    for name in ("mine", "other"):
        begun(Path("checkpoints") / name, 2)
    for wrong in ("min", "checkpoints/min"):
        words = [flag, wrong] if flag == "--resume" else [flag + wrong]
        what, how = failing(["train", *words]).splitlines()
        assert what == f"error: there is no folder {wrong}, nor a run of that name"
        assert how == "       did you mean mine? known: mine, other"


@pytest.mark.parametrize("part", ["9.9", "9.0", "9.attn", "9.mlp", "0.9"])
def test_a_part_that_is_not_there_is_answered_with_those_that_are(failing, part):
    begun(Path("checkpoints/mine"), 7, best=True)
    assert "there is block 0, head 0 in it" in failing(["generate", "a", "--model", "mine", "--ablate", part])


def test_documents_in_another_field_are_measured(capsys, failing):
    save_run(GPT(GPTConfig(vocab_size=4, block_size=5, n_layer=1, n_head=1, n_embd=2)),
             CharTokenizer.from_text("abc\n"), Path("checkpoints/mine"))  # fmt: skip
    Path("a.jsonl").write_text('{"text": "abc", "z": "bca"}\n')
    Path("b.jsonl").write_text('{"body": "abc", "more": "bca"}\n')
    Path("t.txt").write_text("abcab" * 9)
    answers = []
    for words in (["a.jsonl"], ["b.jsonl", "--text-field", "body"], ["a.jsonl", "--text-field", "z"]):
        assert run(["eval", "--model", "mine", "--json", "--data", *words]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] != answers[2]
    assert "--text-field" in failing(["eval", "--model", "mine", "--data", "t.txt", "--text-field", "body"])
    one_text = RunConfig(data=DataConfig(source="b.jsonl"), documents=DocumentsConfig(separate="off"))
    save_run(GPT(GPTConfig(vocab_size=4, block_size=5, n_layer=1, n_head=1, n_embd=2)),
             CharTokenizer.from_text("abc\n"), Path("checkpoints/whole"), one_text)  # fmt: skip
    for words in ([], ["--data", "a.jsonl"]):
        assert "documents.separate is off in" in failing(["eval", "--model", "whole", *words, "--text-field", "body"])


def test_the_table_of_heads_says_what_its_columns_are(capsys):
    save_run(GPT(GPTConfig(vocab_size=3, block_size=5, n_layer=2, n_head=13, n_embd=26)),
             CharTokenizer.from_text("abc"), Path("many"))  # fmt: skip
    assert run(["inspect", "ablate", "abc", "--model", "many"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.split()[:1] == ["head"] for line in lines) >= 1


def test_the_proof_of_a_resume_needs_no_network_and_passes_on_what_its_training_says(failing, monkeypatch):
    from minigpt.training import verify

    sources = []
    monkeypatch.setattr(verify, "run_straight", lambda config, _: sources.append(config.data.source))
    monkeypatch.setattr(verify, "run_interrupted", lambda *_: None)
    monkeypatch.setattr(verify, "compare", lambda *_: [])
    for words in ([], ["--data", "t.txt"], ["--config", "c.yaml"]):
        Path("c.yaml").write_text("data: {source: u.txt}\n")
        assert run(["verify-resume", *words]) == 0
    assert sources == ["verse", "t.txt", "u.txt"]
    monkeypatch.undo()
