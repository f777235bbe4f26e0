"""Whatever flag is written changes the answer, or is refused: every flag of every command, beside every other mode."""

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch

from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.cli.main import parser_of
from minigpt.cli.settings import SETTINGS
from minigpt.config import GPTConfig
from minigpt.data.dialogues import with_template
from minigpt.errors import ConfigError
from minigpt.formats.run_directory import save_run
from minigpt.model import GPT
from minigpt.tokenizers import GPT2Tokenizer
from tests.cli.conftest import MERGES
from tests.conftest import random_model

# command or view -> its line, and what is written behind it before the flag that is looked at.
JSON = ["--json"]
TEXT = "the later you"
MODES = {
    "next": (["next", "the"], [[], JSON, ["--steps", "2"]]),
    "score": (["score", TEXT], [[], ["--tokens"]]),
    "generate": (
        ["generate", "the later", "--max-new-tokens", "9"],
        [[], JSON, ["--strategy", "greedy"], ["--temperature", "0"], ["--strategy", "beam", "--num-beams", "3"],
         ["--num-beams", "3"], ["--draft", "lookup"], ["--no-cache"], ["--ablate", "0.1"], ["--prompts-file", "p.txt"],
         ["--examples", "pairs.tsv", "--input-label", "I", "--output-label", "O"]],
    ),
    "chat": (
        ["chat", "--model", "talker", "--max-new-tokens", "9"],
        [[], JSON, ["--strategy", "greedy"], ["--max-characters", "2"]],
    ),
    "compare": (
        ["compare", "--prompt", "the later", "--prompt", "you", "--max-new-tokens", "4", "--setting", "sample",
         "--setting", "greedy"],
        [[], JSON, ["--training-data", "text.txt"], ["--training-data", "a.jsonl", "--text-field", "u"]],
    ),
    "eval": (["eval", "--data", "text.txt"], [[], JSON]),
    "evaluate-text": (
        ["evaluate-text", "text.txt"],
        [[], JSON, ["--model", "other"], ["--training-data", "text.txt"],
         ["--training-data", "a.jsonl", "--text-field", "u"]],
    ),
    "evaluate-chat": (
        ["evaluate-chat", "--data", "log.txt", "--max-new-tokens", "4", "--history", "0", "1", "--candidates", "2"],
        [[], JSON],
    ),
    "tokenize": (["tokenize", TEXT], [[], JSON]),
    "explore": (["explore", "-o", "o.html"], [[], JSON]),
    "size": (["inspect", "size"], [[], JSON, ["--preset", "gpt2-124m"]]),
    "arch": (["inspect", "arch"], [[], JSON, ["--preset", "gpt2-124m"]]),
    "tokens": (["inspect", "tokens", TEXT], [[], JSON]),
    "loss": (["inspect", "loss", TEXT], [[], JSON]),
    "next view": (["inspect", "next", "the"], [[], JSON, ["--temperature", "0.7"]]),
    "temperature": (["inspect", "temperature", "3", "-0.5"], [[], JSON]),
    "steps": (["inspect", "steps", "the", "-n", "3"], [[], JSON, ["--temperature", "1.7"], ["--temperature", "0"]]),
    "beams": (["inspect", "beams", "the", "-n", "3"], [[], JSON]),
    "attn": (["inspect", "attn", TEXT], [[], JSON, ["--layer", "1"], ["--layer", "1", "--head", "2"]]),
    "heads": (["inspect", "heads"], [[], JSON, [TEXT], [TEXT, "--json"]]),
    "lens": (["inspect", "lens", TEXT], [[], JSON, ["--norms"], ["--norms", "--json"]]),
    "why": (["inspect", "why", TEXT], [[], JSON, ["--by", "head"]]),
    "ablate": (
        ["inspect", "ablate"],
        [["the later you"], ["the later you", "--part", "0.1"], ["the later you", "--sweep", "mlps"],
         ["the later you", "--token", "e", "--against", "u"], ["--repeated", "5"], ["--repeated", "5", "--json"],
         ["--repeated", "5", "--part", "0.1"], ["--repeated", "5", "--mode", "resample"]],
    ),
    "patch": (
        ["inspect", "patch", "--clean", "the later", "--corrupt", "the you", "--token", "e", "--against", "u"],
        [[], JSON, ["--point", "attn.z"]],
    ),
    "embed near": (["inspect", "embed", "near", "e"], [[], JSON]),
    "embed pca": (["inspect", "embed", "pca"], [[], JSON, ["the later"]]),
    "embed positions": (["inspect", "embed", "positions"], [[], JSON]),
}  # fmt: skip
CASES = [(name, mode) for name, (_, modes) in MODES.items() for mode in modes]

VALUES = {
    "--prompt": "you", "--prompts-file": "p.txt", "--model": "third", "--setting": "beam", "--text-field": "t",
    "--data": "p.txt", "--training-data": "text.txt", "--require": "e", "--draft": "lookup", "--ablate": "1.0",
    "--part": "1.0", "--out": "o.json", "--output": "o.json", "--what-if": "n_layer=7", "--diff": "gpt2-124m",
    "--preset": "gpt2-124m", "--points": "*.resid_post", "--rank-of": "e", "--token": "o", "--against": "t",
    "--clean": "the la", "--corrupt": "you la", "--val-data": "p.txt", "--temperature": "0.3", "--top-p": "0.2",
    "--min-p": "0.5", "--typical-p": "0.2", "--epsilon-cutoff": "0.05", "--eta-cutoff": "0.5", "--length-penalty": "3",
    "--repetition-penalty": "1.9", "--exponential-decay-length-penalty": "1 1.5", "--adapter": "adapter",
    "--position": "1", "--length": "7", "--examples": "pairs.tsv", "--at": "0.7", "--reference": "p.txt",
    "--min-characters": "50", "--blocklist": "p.txt", "--turns": "1", "--replies": "3",
}  # fmt: skip
# What may well change nothing, although it was heeded.
WITHOUT_EFFECT = {
    "--debug": "shows where an error was raised",
    "--device": "this machine has one",
    "--tokenizer": "the model has its own, and that is it",
    "--unknown": "the tokenizer knows every character",
    "--bos": "as this model was trained, anyway",
    "--batch-size": "how many are worked on at once, at most",
    "--no-cache": "a check: the same, computed anew",
    "--split": "all, of a text that a model was not trained on",
    "--show": "prompts that are shown, at most",
    **dict.fromkeys(
        (
            "--on-overflow",
            "--stop",
            "--ban",
            "--bias",
            "--no-repeat-ngram-size",
            "--early-stopping",
            "--min-new-tokens",
        ),
        "the text need not have what it is about",
    ),
    **dict.fromkeys(("--draft", "--draft-tokens"), "the same text, sooner if there is something to guess"),
    "--weights": "the same text, sooner",
    "--tries": "a reply may pass at the first",
    "--blocklist": "a reply may be without its words",
    "--show-special": "there need be none",
    "--special": "likewise",
}
MISTAKES = ("--draft", "--strategy", "--what-if")  # the error names what contradicts them


def parser(line):
    """That of the command or of the view."""
    return parser_of(line[0], line[1:])[0]


def written(one):
    """A flag with a value that is not its default."""
    if one.kind is bool and not one.section:
        return [one.flag]
    if one.flag in VALUES:
        return [one.flag, *(VALUES[one.flag].split() if one.kind is not str else [VALUES[one.flag]])]
    if one.choices:
        return [one.flag, next(choice for choice in reversed(one.choices) if choice != one.default)]
    return [one.flag, "3" if one.default == 2 else "2" if one.kind in (int, float) else "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models of byte pairs, which have a token that is no text, and texts."""
    folder = tmp_path_factory.mktemp("flags")
    tokenizer = GPT2Tokenizer(MERGES)
    for seed, name in enumerate(("checkpoints/newest", "other", "third")):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(tokenizer.vocab_size, 29, 3, 5, 35)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        save_run(model, tokenizer, folder / name)
    save_run(
        random_model(GPTConfig(tokenizer.vocab_size, 127, 3, 5, 35), 3), with_template(tokenizer), folder / "talker"
    )
    (folder / "text.txt").write_text("the later you the\n\nlater the you\n" * 5)
    (folder / "p.txt").write_text("the later\nyou the\n")
    log = (
        "the: you see\nyou: the later you\nthe: see you later\n\nyou: or the\nthe: later\n\nsee: the you\nyou: or see\n"
    )
    (folder / "log.txt").write_text(log)
    (folder / "pairs.tsv").write_text("t\th\n")
    (folder / "a.jsonl").write_text('{"t": "the later you", "u": "the the"}\n{"t": "you see", "u": "later or"}\n')
    return folder


def answer(line):
    """The exit code, and all that was said and written; the speed left out."""
    out = io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"the\nyou\nlater\n"))  # which chat reads
    for written in (Path("o.json"), Path("o.html")):
        written.unlink(missing_ok=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run(line)
    said = re.sub(r"[\d,]+ a second|\"tokens_per_second\": [\d.e+]+", "", out.getvalue())
    return code, said + "".join(path.read_text() for path in sorted(Path().glob("o.[jh]*")))


@pytest.mark.parametrize(("name", "mode"), CASES, ids=[" ".join([name, *mode]) for name, mode in CASES])
def test_no_flag_is_dropped_without_a_word(folder, monkeypatch, name, mode):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", sys.stdin)  # put back at the end
    line = MODES[name][0]
    code, without = answer([*line, *mode])
    assert code == 0, without
    silent, misnamed = [], []
    for one in parser(line).fields.values():
        known = one.flag_options.positional or one.flag in (*line, *mode, "--json", *WITHOUT_EFFECT)
        if known or (one.flag_options.short and one.flag_options.short in line):
            continue
        code, said = answer([*line, *mode, *written(one)])
        if code == 0 and said == without:
            silent.append(one.flag)
        if code == 2 and one.flag not in said and one.name not in said and one.flag not in MISTAKES:
            misnamed.append((one.flag, said))
    assert silent == []
    assert misnamed == []


def test_every_command_with_flags_that_may_be_needless_is_here():
    """A training is looked at elsewhere: `refuse_needless`. Of the others, each flag does something by itself."""
    lines = [line for line, _ in MODES.values()]
    here = {line[1] if line[0] == "inspect" else line[0] for line in lines}
    assert {*SETTINGS, *VIEWS} - here == {"quickstart", "train", "verify-resume", "import", "export", "doctor", "runs"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate-text text.txt --device cpu", "--device would change nothing without --model"),
        ("evaluate-text text.txt --weights int8", "--weights would change nothing without --model"),
        ("generate the --draft-tokens 3", "--draft-tokens would change nothing without --draft"),
        ("generate the --seed 3 --strategy greedy", "--seed would change nothing without --strategy sample"),
        ("generate the --seed 3 --temperature 0", "--seed would change nothing with --temperature 0"),
        ("generate the --seed 3 --temperature 0.0", "--seed would change nothing with --temperature 0"),
        ("generate the --top-k 3 --temperature 0", "--top-k 3 shapes a draw, but --temperature 0.0 draws nothing"),
        ("inspect steps the --seed 3 --temperature 0", "--seed would change nothing with --temperature 0"),
        ("inspect lens the --norms --top 3", "--top would change nothing with --norms"),
        ("inspect embed pca --top 3", "--top would change nothing without WHAT near"),
        ("inspect heads the --seed 3", "--seed would change nothing with TEXT"),
        ("inspect ablate the --seed 3", "--seed would change nothing without --repeated or --mode resample"),
        ("train --plan --replay x/diverged/report.json", "--plan would change nothing with --replay"),
        ("train --preset chat --train.epochs 0 --train.warmup_steps 3", "choose --train.warmup_ratio 0"),
    ],
)
def test_what_would_have_to_be_added_or_left_out_is_named(folder, monkeypatch, capsys, line, said):
    monkeypatch.chdir(folder)
    place = Path("x/diverged/report.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("{}")
    (folder / "x" / "config.yaml").write_text("{}")
    assert run(line.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["quickstart", "verify-resume", "train"])
def test_every_command_that_trains_refuses_what_would_change_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert run([command, "--train.epochs", "2", "--train.eval_interval", "3"]) == 2
    assert "--train.eval_interval 3 would change nothing: --train.epochs 2 decides it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "flags", "said"),
    [
        ("val_fraction: 0.3", "--data a.jsonl", "documents are held out by their number"),
        ("val_fraction: 0.3", "--data a.txt --val-data b.txt", "--val-data names what validates"),
        ("tokenizer: gpt2", "--data a.txt --init-from base", "base brings its own"),
    ],
)
def test_what_a_file_says_of_data_in_vain_is_said(tmp_path, monkeypatch, capsys, written, flags, said):
    """The same as a flag is refused; a file may be a whole run's."""
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(f"data: {{{written}}}\n")
    parser_of("train", [])[0].parse(["--config", "c.yaml", *flags.split()])
    name, _, value = written.partition(": ")
    assert f"note: {name} in --config would change nothing: {said}\n" in capsys.readouterr().err
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{flag} {value} would change nothing: {said}"):
        parser_of("train", [])[0].parse([flag, value, *flags.split()])


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("evaluate-chat --data ./talks.json -o talks.json", "--data"),
        ("evaluate-chat --data other.json --val-data talks.json -o report.md -o talks.json", "--val-data"),
        ("compare the --training-data ~/talks.json -o talks.json", "--training-data"),
    ],
)
def test_a_result_is_not_written_over_what_is_read(tmp_path, monkeypatch, line, flag):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("talks.json").write_text("[]")
    Path("older.json").write_text("[]")
    command, *rest = line.split()
    with pytest.raises(ConfigError, match=f"--out talks.json would be written over what is read as {flag}"):
        parser_of(command, [])[0].parse(rest)
    parser_of(command, [])[0].parse([*rest[:-1], "older.json"])  # a result of before


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("evaluate-chat --data . -o texts/a.md", "--data"),
        ("evaluate-chat --data ~/texts -o linked.md", "--data"),
        ("compare the --training-data texts -o texts/a.csv", "--training-data"),
    ],
)
def test_a_result_is_not_written_over_what_is_read_in_a_folder(tmp_path, monkeypatch, line, flag):
    """Over what is not read there, such as a picture of before, it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("texts").mkdir()
    for file in ("a.md", "a.csv", "a.png"):
        Path("texts", file).touch()
    Path("linked.md").symlink_to("texts/a.md")
    command, *rest = line.split()
    with pytest.raises(ConfigError, match=f"--out {rest[-1]} would be written over what is read as {flag}"):
        parser_of(command, [])[0].parse(rest)
    parser_of(command, [])[0].parse([*rest[:-1], "texts/a.png"])


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        ("model.safetensors", "tokenizer.json"),
        ("metrics.jsonl", "loss.png"),  # a run that trains an adapter has no weights of its own
        ("pytorch_model.bin", "config.json"),
        ("adapter_model.safetensors", "adapter_config.json"),
    ],
)
@pytest.mark.parametrize("line", ["inspect attn the --output", "compare the --model gpt2 --out"])
def test_a_result_is_not_written_over_a_file_of_a_model(tmp_path, monkeypatch, line, beside, name):
    """Even of one that the command does not name, such as the newest run, which is read by default."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run", beside).touch()
    for file in (name, f"run/{name}", "run/of-mine.json"):
        Path(file).touch()
    command, *words = line.split()
    parser, rest = parser_of(command, words)
    with pytest.raises(ConfigError, match=f"{rest[-1]} run/{name} would be written over a file of the model in run"):
        parser.parse([*rest, f"run/{name}"])
    for result in ("run/of-mine.json", "run/new.json", name):  # the first may be one of before
        parser.parse([*rest, result])


@pytest.mark.parametrize("command", ["quickstart", "verify-resume", "train"])
def test_an_adapter_of_nothing_is_refused_before_a_corpus_is_asked_for(command, monkeypatch, capsys):
    for place in ("load_quickstart_corpus", "load_data"):
        monkeypatch.setattr(f"minigpt.cli.trainings.{place}", lambda *_: pytest.fail("a corpus was asked for"))
    assert run([command, "--train.lora_rank", "2", "--train.optimizer", "adamw"]) == 2
    told = capsys.readouterr().err
    assert "--train.lora_rank 2 adapts a trained model, and there is none to start from" in told
    assert ("--init-from" in told) == (command != "quickstart")  # which has no such flag


@pytest.mark.parametrize("command", ["quickstart", "verify-resume", "train"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_how_processes_share_the_work_is_refused_where_there_is_one(monkeypatch, command, how):
    parser = parser_of(command, [])[0]
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match=f"--train.parallel {how} would change nothing: there is one process"):
        parser.parse(["--train.parallel", how])
    monkeypatch.setenv("WORLD_SIZE", "2")
    parser.parse(["--train.parallel", how])


@pytest.mark.parametrize("arguments", [["train", "--data", "verse", "--plan"], ["verify-resume"]])
def test_a_plan_or_a_proof_is_refused_where_there_are_several_processes(monkeypatch, capsys, arguments):
    """Each of them would print one of its own, as if it were alone; and what a proof starts would train together."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(arguments) == 2
    told = capsys.readouterr()
    assert f"{arguments[-1]} is for one process, and several were started" in told.err
    assert "without torchrun" in told.err
    assert not told.out


@pytest.mark.parametrize("command", [name for name in SETTINGS if name != "inspect"])
def test_a_flag_that_is_overruled_is_named(command):
    """The last value counts, as is usual; that a former one does not is said."""
    parser, _ = parser_of(command, [])
    for one in parser.fields.values():
        if one.several or one.kind is bool or one.flag_options.positional:
            continue
        assert vars(parser.parse_args([f"{one.flag}=1", f"{one.flag}=2"])) == {one.path: "2"}
        assert parser.overruled == [f"{one.flag} is given more than once: 2 counts, 1 does not"]
        parser.overruled.clear()
        assert vars(parser.parse_args([f"{one.flag}=1", f"{one.flag}=1"])) == {one.path: "1"}
        assert not parser.overruled


def test_what_is_overruled_is_told(capsys):
    parser_of("tokenize", [])[0].parse(["the", "--model", "other", "--model=third"])
    assert capsys.readouterr().err == "note: --model is given more than once: third counts, other does not\n"
