"""The commands as people type them: what they print, what `--json` says, and what a mistake costs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.cli.main import COMMANDS, run

TEXT = "".join(f"{word} {number}\n" for number, word in enumerate(["To be", "or not", "to be,", "Ay me!"] * 60))
SMALL_FLAGS = (
    "--model.block_size 11 --model.n_layer 1 --model.n_head 2 --model.n_embd 8 --train.max_steps 4 "
    "--train.warmup_steps 1 --train.batch_size 3 --train.eval_interval 2 "
    "--device cpu --dtype float32 --compile off"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run directory, made once by the command line itself."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "play.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["train", "--data", "play.txt", "--out", "run", *SMALL_FLAGS]) == 0
    return folder / "run"


def failing(arguments: list[str], capsys) -> str:
    """The two lines of a refused command; nothing on standard output, no traceback, nothing new on disk."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.rstrip("\n").split("\n")
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("       ")
    assert "Traceback" not in err
    assert sorted(Path().rglob("*")) == before
    return err


def result_of(arguments: list[str], capsys) -> dict:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_train_says_what_to_type_next(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert run(["train", "--data", "play.txt", "--out", "again", *SMALL_FLAGS]) == 0
    out = capsys.readouterr().out
    assert "generate --model again" in out
    assert all(len(line) <= 80 or "/" in line for line in out.splitlines())  # a path may be long
    python = out.split("or in Python (")[1]
    code = "\n".join(line[2:] for line in python.splitlines()[1:])
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=trained.parent
    )
    command = (
        out.split("next, let it write:\n")[1].split("or in Python")[0].replace("\\\n", " ").split("minigpt ", 1)[1]
    )
    import shlex

    capsys.readouterr()
    assert run(shlex.split(command)) == 0
    assert capsys.readouterr().out == printed.stdout  # the three lines of Python do the same as the command


def test_train_json_is_one_object(trained, capsys, monkeypatch, tmp_path):
    result = result_of(["train", "--data", str(trained.parent / "play.txt"), "--out", "x", *SMALL_FLAGS], capsys)
    assert list(result) == [
        "out", "step", "train_loss", "val_loss", "best_val_loss", "tokens_per_second", "seconds", "parameters",
    ]  # fmt: skip
    assert (result["out"], result["step"]) == ("x", 4)


def test_a_run_is_trained_again_from_its_own_configuration(trained, capsys):
    data = str(trained.parent / "play.txt")
    result = result_of(["train", "--config", str(trained / "config.yaml"), "--data", data, "--out", "x"], capsys)
    assert result["step"] == 4
    assert (Path("x") / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_flags_beat_the_file_and_the_file_the_preset(tmp_path, capsys, trained):
    Path("c.yaml").write_text(
        "train: {max_steps: 3, warmup_steps: 1, eval_interval: 3}\nmodel: {n_embd: 4, n_head: 2}\n"
    )
    flags = [flag for flag in SMALL_FLAGS if flag not in ("--model.n_embd", "8", "--train.max_steps", "4")]
    data = str(trained.parent / "play.txt")
    result_of(["train", "--config", "c.yaml", "--data", data, "--out", "x", "--train.max_steps", "2", *flags], capsys)
    config = (Path("x") / "config.yaml").read_text()
    assert "max_steps: 2" in config
    assert "n_embd: 4" in config
    assert "optimizer: muon" in config  # the default preset's


def test_the_default_folder_is_numbered_and_found_again(trained, capsys):
    data = str(trained.parent / "play.txt")
    for name in ("play", "play-2"):  # after the corpus, where that is not the preset's
        assert result_of(["train", "--data", data, *SMALL_FLAGS], capsys)["out"] == str(Path("checkpoints") / name)
    assert run(["generate", "--prompt", "To", "--max-new-tokens", "3"]) == 0
    assert "play-2, the newest run" in capsys.readouterr().err


def test_generate_json(trained, capsys):
    flags = ["--prompt", "To be", "--prompt", "A", "--num-return-sequences", "2", "--max-new-tokens", "5"]
    arguments = ["generate", "--model", str(trained), *flags]
    result = result_of(arguments, capsys)
    assert list(result) == ["completions", "tokens_per_second"]
    assert [c["prompt_index"] for c in result["completions"]] == [0, 0, 1, 1]
    for completion in result["completions"]:
        assert list(completion) == ["prompt_index", "text", "completion", "token_ids", "score", "finish_reason"]
        prompt = ["To be", "A"][completion["prompt_index"]]
        assert completion["text"] == prompt + completion["completion"]
        assert len(completion["token_ids"]) == len(prompt) + 5
        assert completion["finish_reason"] == "length"


@pytest.mark.parametrize(
    "options",
    [["--strategy", "greedy"], ["--temperature", "0"], ["--top-k", "3", "--top-p", "0.9", "--min-p", "0.01"],
     ["--strategy", "greedy", "--no-cache"], ["--repetition-penalty", "1.3", "--seed", "5"]],
)  # fmt: skip
def test_streamed_text_is_the_text_of_json(trained, capsys, options):
    arguments = ["generate", "--model", str(trained), "--prompt", "To be", "--max-new-tokens", "6", *options]
    text = result_of(arguments, capsys)["completions"][0]["text"]
    assert run(arguments) == 0
    assert capsys.readouterr().out == text + "\n"


def test_strategies_agree_where_they_must(trained, capsys):
    texts = [
        result_of(["generate", "--model", str(trained), "--prompt", "To be", "--max-new-tokens", "6", *options], capsys)
        for options in (["--strategy", "greedy"], ["--temperature", "0"], ["--top-k", "1"],
                        ["--strategy", "beam", "--num-beams", "1"], ["--strategy", "greedy", "--no-cache"])
    ]  # fmt: skip
    assert len({text["completions"][0]["text"] for text in texts}) == 1


def test_overflow_is_declared(trained, capsys):
    arguments = ["generate", "--model", str(trained), "--prompt", "To be", "--max-new-tokens", "50"]
    err = failing(arguments, capsys)
    assert all(number in err for number in ("5", "50", "11"))
    assert len(result_of([*arguments, "--on-overflow", "crop"], capsys)["completions"][0]["token_ids"]) == 55
    stopped = result_of([*arguments, "--on-overflow", "stop"], capsys)["completions"][0]
    assert (len(stopped["token_ids"]), stopped["finish_reason"]) == (12, "context")


def test_a_stop_string_ends_the_text(trained, capsys):
    arguments = ["generate", "--model", str(trained), "--prompt", "To", "--max-new-tokens", "9", "--seed", "3"]
    completion = result_of(arguments, capsys)["completions"][0]["completion"]
    stop = completion[4:6]
    stopped = result_of([*arguments, "--stop", stop], capsys)["completions"][0]
    assert stopped["completion"] == completion[: completion.find(stop)]
    assert stopped["finish_reason"] == "stop"
    assert run([*arguments, "--stop", stop]) == 0
    assert capsys.readouterr().out == stopped["text"] + "\n"  # the same when streamed


def test_generate_from_nothing_starts_a_line(trained, capsys):
    """Case 2."""
    assert run(["generate", "--model", str(trained), "--prompt", "", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("\n")


def test_eval(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent)
    result = result_of(["eval", "--model", "run"], capsys)
    assert list(result) == ["loss", "perplexity", "bits_per_character", "tokens"]
    assert result["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1
    recorded = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert result["loss"] == pytest.approx(min(r["val_loss"] for r in recorded if "val_loss" in r), abs=1e-6)
    assert result_of(["eval", "--model", "run", "--split", "all"], capsys)["tokens"] == len(TEXT) - 1
    assert run(["eval", "--model", "run"]) == 0
    assert "bits per character" in capsys.readouterr().out


def test_eval_with_overlapping_windows(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent)
    result = result_of(["eval", "--model", "run", "--stride", "3"], capsys)
    assert result["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1
    assert result["bits_per_character"] == pytest.approx(result["loss"] / math.log(2))  # a token is a character
    assert "stride = 12" in failing(["eval", "--model", "run", "--stride", "12"], capsys)
    assert result_of(["eval", "--model", str(Path("run") / "last")], capsys)["tokens"] == result["tokens"]


def test_tokenize(trained, capsys):
    result = result_of(["tokenize", "--model", str(trained), "To be"], capsys)
    assert [row["text"] for row in result["tokens"]] == list("To be")
    assert result["tokens"][0]["bytes"] == "54"
    assert run(["tokenize", "--model", str(trained), "To be"]) == 0
    assert "5 tokens, 5 characters" in capsys.readouterr().out


def test_doctor(capsys, monkeypatch):
    from minigpt.config import GPTConfig, RunConfig, TrainConfig
    from minigpt.training import selfcheck

    tiny = RunConfig(model=GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4),
                     train=TrainConfig(batch_size=2))  # fmt: skip
    monkeypatch.setattr("minigpt.cli.doctor.preset", lambda name: tiny)
    vocabularies = []
    real = selfcheck.GPT
    monkeypatch.setattr(selfcheck, "GPT", lambda config: vocabularies.append(config.vocab_size) or real(config))
    result = result_of(["doctor", "--no-compile", "--device", "cpu"], capsys)
    assert vocabularies == [65, 65]  # what a run on Shakespeare has, not GPT-2's 50,257
    assert [timing["name"] for timing in result["timings"]] == [
        "--dtype float32 --compile off", "--dtype bfloat16 --compile off",
    ]  # fmt: skip
    assert result["timings"][0]["difference"] == 0
    assert result["best"].startswith("--dtype")
    assert run(["doctor", "--no-compile", "--device", "cpu"]) == 0
    assert "fastest safe: --dtype" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as raised:
        run([command, "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"minigpt {command}" in out


def test_top_level_help_and_version(capsys):
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert run(["--version"]) == 0


def test_help_needs_no_torch():
    code = "import sys; from minigpt.cli.main import run; run(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_a_reader_that_leaves_early_is_no_error(trained):
    """`minigpt generate ... | head -c 1`."""
    command = [sys.executable, "-m", "minigpt", "generate", "--model", str(trained), "--prompt", "To",
               "--max-new-tokens", "300", "--on-overflow", "crop"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0, error
    assert "Traceback" not in error


# Bad input: two lines, exit 2, nothing half-written. Numbers are those of the project's list of failure cases.


def test_case_1_unknown_characters(trained, capsys):
    err = failing(["generate", "--model", str(trained), "--prompt", "Wha\U0001f600?", "--max-new-tokens", "2"], capsys)
    assert all(part in err for part in ("U+1F600", "U+003F", "--unknown skip", f"vocabulary of {len(set(TEXT))}"))
    arguments = ["generate", "--model", str(trained), "--prompt", "T\U0001f600o", "--unknown", "skip",
                 "--max-new-tokens", "2"]  # fmt: skip
    assert result_of(arguments, capsys)["completions"][0]["text"].startswith("To")


def test_case_2_an_empty_prompt_without_a_start(tmp_path, capsys):
    Path("one.txt").write_text("abc" * 100)
    assert run(["train", "--data", "one.txt", "--out", "run", *SMALL_FLAGS]) == 0
    assert "prompt is empty" in failing(["generate", "--model", "run", "--prompt", ""], capsys)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--temperature", "-1"], ["temperature = -1"]),  # case 5
        (["--temperature", "nan"], ["--temperature nan"]),
        (["--temperature", "inf"], ["--temperature inf"]),
        (["--top-k", "-1"], ["top_k = -1"]),  # case 6
        (["--top-p", "0"], ["top_p = 0"]),
        (["--top-p", "1.5"], ["top_p = 1.5"]),
        (["--num-beams", "0", "--strategy", "beam"], ["num_beams = 0"]),  # case 7
        (["--num-beams", "2", "--num-return-sequences", "3", "--strategy", "beam"], ["num_return_sequences = 3"]),
        (["--num-beams", "2", "--strategy", "beam", "--temperature", "0.5"], ["temperature = 0.5"]),
        (["--max-new-tokens", "-1"], ["max_new_tokens = -1"]),
        (["--top-k", "many"], ["--top-k", "many"]),
        (["--strategy", "best"], ["--strategy", "best", "greedy"]),
        (["--temprature", "1"], ["--temprature", "did you mean --temperature?"]),
        (["--device", "cuda:99"], ["cuda"]),  # case 20
    ],
)
def test_wrong_decoding_options(trained, capsys, flags, parts):
    err = failing(["generate", "--model", str(trained), "--prompt", "To", *flags], capsys)
    assert all(part in err for part in parts), err


def test_case_6_values_that_are_allowed(trained, capsys):
    for flags in (
        ["--top-k", "0"],
        ["--top-k", "1000"],
        ["--top-p", "1"],
        ["--top-p", "1e-9"],
        ["--max-new-tokens", "0"],
    ):
        assert result_of(["generate", "--model", str(trained), "--prompt", "To", *flags], capsys)["completions"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["there is no corpus"]),
        (b"", ["no text in data.txt"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0", ["byte", "0"]),
        (b"abc\xff\xfed", ["offset 3", "UTF-8"]),
        ("abc".encode("utf-16"), ["UTF-16"]),
    ],
)
def test_case_8_data_that_is_no_text(capsys, content, parts):
    if content is not None:
        Path("data.txt").write_bytes(content)
    err = failing(["train", "--data", "data.txt", "--out", "run", *SMALL_FLAGS], capsys)
    assert all(part in err for part in parts), err


def test_case_8_an_empty_folder(capsys):
    Path("folder").mkdir()
    assert "folder" in failing(["train", "--data", "folder", "--out", "run", *SMALL_FLAGS], capsys)


def test_case_9_a_text_that_is_too_short(capsys):
    Path("short.txt").write_text("to be or not to be " * 5)
    err = failing(["train", "--data", "short.txt", "--out", "run", *SMALL_FLAGS], capsys)
    assert all(part in err for part in ("val split: 10 tokens", "block_size = 11 needs 12", "--model.block_size 4"))


def test_case_11_another_text_than_the_model_knows(trained, capsys):
    Path("other.txt").write_text("QUITE ANOTHER ALPHABET" * 20)
    assert "vocabulary" in failing(["eval", "--model", str(trained), "--data", "other.txt"], capsys)
    Path("c.yaml").write_text("model: {vocab_size: 99}\n")
    err = failing(["train", "--config", "c.yaml", "--data", "other.txt", "--out", "x", *SMALL_FLAGS], capsys)
    assert "vocab_size = 99" in err


def test_case_12_a_vocabulary_above_65535_is_not_wrapped():
    """70,000 different characters; GPT-2's tokenizer aside, no text of people has so many."""
    from minigpt.config import DataConfig
    from minigpt.data.corpora import Corpus
    from minigpt.data.tokens import prepare
    from minigpt.tokenizers import CharTokenizer

    points = [point for point in range(0x4E00, 0x20000) if not 0xD800 <= point < 0xE000][:70_000]
    corpus = Corpus("wide", "".join(map(chr, points)), "")
    tokenizer = CharTokenizer.from_text(corpus.text)
    train, val = prepare(corpus, tokenizer, DataConfig(), 5, Path("tokens"))
    assert train.ids.dtype == val.ids.dtype == "uint32"
    assert tokenizer.decode(val.ids.tolist()) == corpus.text[63_000:]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--train.max_step", "3"], ["--train.max_step", "did you mean --train.max_steps?"]),  # case 24
        (["--train.max_steps", "many"], ["max_steps", "int", "many"]),
        (["--train.max_steps", "2.5"], ["max_steps", "2.5"]),
        (["--model.n_head", "3"], ["n_embd = 8", "n_head = 3"]),
        (["--model.n_layer", "0"], ["n_layer = 0"]),
        (["--model.block_size", "0"], ["block_size = 0"]),
        (["--model.dropout", "1"], ["dropout = 1"]),
        (["--train.learning_rate", "-1"], ["learning_rate = -1"]),
        (["--train.warmup_steps", "9"], ["warmup_steps = 9", "max_steps = 4"]),
        (["--train.min_learning_rate", "9"], ["min_learning_rate = 9", "learning_rate"]),
        (["--train.optimizer", "sgd"], ["optimizer", "sgd", "adamw"]),
        (["--preset", "quick"], ["quick", "shakespeare-quick"]),
        (["--config", "none.yaml"], ["none.yaml"]),
        (["--dtype", "float16"], ["float16", "bfloat16"]),  # case 20
        (["--dtype", "int8"], ["int8"]),
        (["--device", "gpu"], ["'gpu'"]),
        (["--seed", "-1"], ["seed = -1"]),
        (["--val-fraction", "1.5"], ["val_fraction = 1.5"]),
        (["--tokenizer", "bpe"], ["--tokenizer", "bpe", "gpt2"]),
    ],
)
def test_case_24_wrong_settings(trained, capsys, flags, parts):
    data = str(trained.parent / "play.txt")
    err = failing(["train", "--data", data, "--out", "run", *SMALL_FLAGS, *flags], capsys)
    assert all(part in err for part in parts), err


def test_whole_numbers_are_accepted_for_floats(trained, capsys):
    """nanoGPT's configurator refuses --weight_decay=0 with a bare AssertionError."""
    data = str(trained.parent / "play.txt")
    flags = ["--model.dropout=0", "--train.weight_decay=0", "--train.learning_rate", "1", "--train.grad_clip=0"]
    assert result_of(["train", "--data", data, "--out", "run", *SMALL_FLAGS, *flags], capsys)["step"] == 4


def test_the_output_folder_is_taken(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert "is not empty" in failing(["train", "--data", "play.txt", "--out", "run", *SMALL_FLAGS], capsys)
    assert "is a file" in failing(["train", "--data", "play.txt", "--out", "play.txt", *SMALL_FLAGS], capsys)


def test_models_that_are_not_there(capsys):
    assert "not a run directory" in failing(["generate", "--model", "nowhere", "--prompt", "To"], capsys)
    assert "no trained run" in failing(["generate", "--prompt", "To"], capsys)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths")
def test_paths_that_cannot_be_written_or_read(trained, capsys):
    data = str(trained.parent / "play.txt")
    Path("file").write_text("x")
    Path("folder").mkdir()
    assert "file" in failing(["train", "--data", data, "--out", "file/run", *SMALL_FLAGS], capsys)
    assert "folder" in failing(["train", "--data", data, "--config", "folder", "--out", "run", *SMALL_FLAGS], capsys)


def test_an_unknown_command(capsys):
    assert "did you mean train?" in failing(["trian"], capsys)


def test_debug_shows_where(trained):
    from minigpt.errors import InputError

    with pytest.raises(InputError):
        run(["generate", "--model", str(trained), "--prompt", "To", "--temperature", "-1", "--debug"])


def test_case_22_offline_without_a_cache(capsys, monkeypatch):
    """No network: the error names the file, the URL and the folder, at once."""
    import socket

    def refuse(*arguments, **options):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    err = failing(["train", "--data", "shakespeare", "--out", "run", *SMALL_FLAGS], capsys)
    assert "https://raw.githubusercontent.com/karpathy/char-rnn" in err
    assert "input.txt" in err


def test_quickstart_falls_back_to_what_this_machine_has(capsys, monkeypatch):
    import socket

    def refuse(*arguments, **options):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("minigpt.data.corpora.write_verse", short_verse)
    flags = "--train.max_steps 2 --train.warmup_steps 1 --train.batch_size 2 --train.eval_interval 2".split()
    result = result_of(["quickstart", *flags], capsys)
    assert result["out"] == str(Path("checkpoints") / "shakespeare-quick")


def short_verse(seed):
    from minigpt.data.verse import write_verse

    return write_verse(seed, 20_000)
