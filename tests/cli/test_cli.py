"""The commands as people type them: what they print, what `--json` says, and what a mistake costs."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt.cli import trainings
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import COMMANDS
from minigpt.cli.main import answer as run
from minigpt.cli.parser import SettingsParser
from minigpt.cli.settings import SETTINGS

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


def once(base: list[str], flags: list[str]) -> list[str]:
    """Flags after the pairs of `base` that they do not overrule, so that no note tells of it."""
    pairs = zip(base[::2], base[1::2], strict=True)
    return [*(word for pair in pairs if pair[0] not in flags for word in pair), *flags]


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


def test_json_has_no_number_for_what_nobody_recorded(trained, capsys):
    import shutil

    shutil.copytree(trained, "run")
    Path("run/metrics.jsonl").write_text("")
    result = result_of(["train", "--resume", "run", "--data", str(trained.parent / "play.txt")], capsys)
    assert (result["step"], result["train_loss"]) == (4, None)
    assert result["best_val_loss"] > 0


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


def test_trainings_that_begin_together_have_names_of_their_own(monkeypatch, capsys, failing):
    Path("play.txt").write_text(TEXT)
    real, codes = trainings.train, []

    def train(*arguments, **options):
        if not codes:  # the other one begins when this one has its name, and nothing more
            codes.append(None)
            codes.append(run(["train", "--data", "play.txt", *SMALL_FLAGS]))
        return real(*arguments, **options)

    monkeypatch.setattr(trainings, "train", train)
    codes.append(run(["train", "--data", "play.txt", *SMALL_FLAGS]))
    assert codes[1:] == [0, 0]
    assert all(Path("checkpoints", name, "metrics.jsonl").is_file() for name in ("play", "play-2"))
    Path("short.txt").write_text("to be")
    failing(["train", "--data", "short.txt", *SMALL_FLAGS])
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["play", "play-2"]


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


def test_a_file_of_prompts_gives_the_same_in_any_batches(trained, capsys):
    Path("prompts.txt").write_text("To be\n\nor not\nAy\n", encoding="utf-8")
    base = ["generate", "--model", str(trained), "--prompts-file", "prompts.txt", "--max-new-tokens", "5"]
    together, apart = (result_of([*base, "--batch-size", size], capsys)["completions"] for size in ("5", "2"))
    assert [row["token_ids"] for row in together] == [row["token_ids"] for row in apart]
    assert [row["prompt_index"] for row in together] == [0, 1, 2]
    assert [row["text"][: -len(row["completion"])] for row in together] == ["To be", "or not", "Ay"]
    alone = ["generate", "--model", str(trained), "--prompt", "or not", "--max-new-tokens", "5", "--seed", "1"]
    assert result_of(alone, capsys)["completions"][0]["token_ids"] == together[1]["token_ids"]


@pytest.mark.parametrize("options", [[], ["--strategy", "greedy"], ["--temperature", "1.5", "--top-k", "7"]])
@pytest.mark.parametrize("tokens", ["1", "4"])
def test_a_draft_changes_nothing_but_the_speed(trained, capsys, options, tokens):
    base = ["generate", "--model", str(trained), "--prompt", "To", "--max-new-tokens", "9", *options]
    plain = result_of(base, capsys)["completions"]
    for draft in ("lookup", str(trained)):
        drafted = result_of([*base, "--draft", draft, "--draft-tokens", tokens], capsys)["completions"]
        assert drafted[0]["token_ids"] == plain[0]["token_ids"]


def test_texts_that_are_banned_or_required(trained, capsys):
    base = ["generate", "--model", str(trained), "--prompt", "To", "--max-new-tokens", "9"]
    greedy = result_of([*base, "--strategy", "greedy"], capsys)["completions"][0]["completion"]
    without = result_of([*base, "--strategy", "greedy", "--ban", greedy[:2]], capsys)["completions"][0]["completion"]
    assert greedy[:2] not in without
    beams = [*base, "--strategy", "beam", "--num-beams", "4"]
    required = result_of([*beams, "--require", "Ay", "--require", "7"], capsys)["completions"][0]["completion"]
    assert "Ay" in required
    assert "7" in required


@pytest.mark.parametrize(("options", "parts"), [
    (["--draft-tokens", "3"], ["--draft-tokens would change nothing without --draft", "add --draft"]),
    (["--draft", "lookup", "--draft-tokens", "0"], ["--draft-tokens 0", "at least 1"]),
    (["--draft", "lookup", "--strategy", "beam", "--num-beams", "2"], ["--num-beams 2", "without beams"]),
    (["--draft", "nowhere/at-all.safetensors"], ["does not exist"]),
    (["--require", "Ay"], ["concerns beams", '--strategy "beam"']),
    (["--require", "", "--strategy", "beam"], ["--require '' is no token", "at least one character"]),
    (["--ban", "?"], ["'?' (U+003F)"]),
    (["--prompts-file", "nowhere.txt"], ["there is no file nowhere.txt", "one prompt a line"]),
    (["--prompts-file", "."], [". is a folder", "one prompt a line"]),
    (["--prompts-file", "p.jsonl"], ["p.jsonl is a file of records", "one prompt a line"]),
    (["--prompts-file", "p.CSV"], ["p.CSV is a file of records", "one prompt a line"]),
    (["--temperature", "nan"], ["--temperature nan: expected a number"]),
    (["--num-beams", "2.5"], ["--num-beams 2.5: expected a whole number"]),
    (["--batch-size", "0"], ["--batch-size 0", "at least 1"]),
])  # fmt: skip
def test_wrong_ways_to_guide_a_decoder(trained, failing, options, parts):
    err = failing(["generate", "--model", str(trained), "--prompt", "To", *options, "--json"])
    for part in parts:
        assert part in err


def test_a_draft_of_other_tokens(trained, tmp_path, failing):
    Path("other.txt").write_text("completely different words, 1 2 3\n" * 60)
    assert run(["train", "--data", "other.txt", "--out", "other", *SMALL_FLAGS]) == 0
    err = failing(["generate", "--model", str(trained), "--prompt", "To", "--draft", "other"])
    assert "has other tokens than the model" in err


def test_a_file_without_prompts(trained, failing):
    Path("empty.txt").write_text(" \n\n\n")
    err = failing(["generate", "--model", str(trained), "--prompts-file", "empty.txt"])
    assert "there is no prompt in empty.txt" in err


def test_prompts_from_a_pipe(trained, capsys):
    """As a shell gives them: minigpt generate --prompts-file <(head openings.txt)."""
    options = ["generate", "--model", str(trained), "--max-new-tokens", "5"]
    Path("p.txt").write_text("To be\nor not\n")
    expected = result_of([*options, "--prompts-file", "p.txt"], capsys)["completions"]
    reading, writing = os.pipe()
    os.write(writing, b"To be\nor not\n")
    os.close(writing)
    assert result_of([*options, "--prompts-file", f"/dev/fd/{reading}"], capsys)["completions"] == expected
    os.close(reading)


@pytest.mark.parametrize("error", [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
])  # fmt: skip
def test_no_memory_is_said_in_two_lines(trained, failing, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("minigpt.cli.generate.generate", full)
    err = failing(["generate", "--model", str(trained), "--prompt", "To", "--json"])
    assert "not enough memory" in err


def test_overflow_is_declared(trained, capsys, failing):
    arguments = ["generate", "--model", str(trained), "--prompt", "To be", "--max-new-tokens", "50"]
    err = failing(arguments)
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
    arguments = ["generate", "--model", str(trained), "--max-new-tokens", "3", "--json", "--prompt"]
    (nothing,), (fresh_line,) = (result_of([*arguments, text], capsys)["completions"] for text in ("", "\n"))
    assert nothing["token_ids"] == fresh_line["token_ids"]
    assert nothing["text"] == nothing["completion"] == fresh_line["completion"]
    assert fresh_line["text"] == "\n" + nothing["text"]


@pytest.mark.parametrize("prompt", ["", "\n", "To be"])
def test_generate_and_complete_give_one_text(trained, capsys, prompt):
    arguments = ["generate", "--model", str(trained), "--prompt", prompt, "--max-new-tokens", "7"]
    (row,) = result_of([*arguments, "--strategy", "greedy"], capsys)["completions"]
    assert run([*arguments, "--strategy", "greedy"]) == 0
    assert capsys.readouterr().out == row["text"] + "\n"
    assert minigpt.complete(*minigpt.load_model(trained), prompt, max_new_tokens=7, strategy="greedy") == row["text"]


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


def test_eval_with_overlapping_windows(trained, capsys, failing, monkeypatch):
    monkeypatch.chdir(trained.parent)
    result = result_of(["eval", "--model", "run", "--stride", "3"], capsys)
    assert result["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1
    assert result["bits_per_character"] == pytest.approx(result["loss"] / math.log(2))  # a token is a character
    assert "--stride 12" in failing(["eval", "--model", "run", "--stride", "12"])
    assert result_of(["eval", "--model", str(Path("run") / "last")], capsys)["tokens"] == result["tokens"]


def test_tokenize(trained, capsys):
    result = result_of(["tokenize", "--model", str(trained), "To be"], capsys)
    assert [row["text"] for row in result["tokens"]] == list("To be")
    assert result["tokens"][0]["bytes"] == "54"
    assert run(["tokenize", "--model", str(trained), "To be"]) == 0
    assert "5 tokens, 5 characters" in capsys.readouterr().out


def test_tokenize_reads_no_weights(trained, reference, capsys, monkeypatch):
    monkeypatch.setattr("minigpt.formats.source._open", None)  # a call would raise
    assert len(result_of(["tokenize", "--model", str(trained), "To be"], capsys)["tokens"]) == 5
    result = result_of(["tokenize", "--model", str(reference.folder), " the later é"], capsys)
    assert [(row["text"], row["bytes"]) for row in result["tokens"]] == [
        (" the", "20 74 68 65"), (" ", "20"), ("later", "6c 61 74 65 72"),
        (" ", "20"), ("\ufffd", "c3"), ("\ufffd", "a9"),
    ]  # fmt: skip


@pytest.mark.shared
def test_tokenize_with_the_vocabulary_of_gpt2(capsys, monkeypatch):
    """The five published sizes share it, so the name alone is enough. The ids are those of OpenAI's own tokenizer."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("needs TIKTOKEN_CACHE_DIR to name a folder with GPT-2's vocabulary")
    monkeypatch.setattr("minigpt.formats.source._open", None)
    result = result_of(["tokenize", "--model", "gpt2-xl", "See you later, \U0001f600"], capsys)
    assert [row["id"] for row in result["tokens"]] == [6214, 345, 1568, 11, 30325, 222]
    assert [row["bytes"] for row in result["tokens"]][-2:] == ["20 f0 9f 98", "80"]
    assert (
        result_of(["tokenize", "--tokenizer", "gpt2", "See you later, \U0001f600"], capsys) == result
    )  # no model at all


def test_a_tokenizer_is_named_for_weights_without_one(reference, capsys, failing):
    import shutil

    shutil.copy(reference.folder / "model.safetensors", "alone.safetensors")
    shutil.copy(reference.folder / "config.json", "config.json")
    assert "--tokenizer" in failing(["next", "--model", "alone.safetensors", "--prompt", "you"])
    reference.tokenizer.save(Path("ours/tokenizer.json"))
    for command in (["next", "--prompt", "you"], ["score", "you the"], ["tokenize", "you the"]):
        alone = result_of([*command, "--model", "alone.safetensors", "--tokenizer", "ours/tokenizer.json"], capsys)
        assert alone == result_of([*command, "--model", str(reference.folder)], capsys)


def test_next_json_is_the_reference_distribution(reference, capsys):
    arguments = ["next", "--model", str(reference.folder), "--prompt", "you the later", "--top", "7"]
    result = result_of(arguments, capsys)
    ids = reference.tokenizer.encode("you the later")
    with torch.no_grad():
        logits = reference.theirs(torch.tensor([ids])).logits[0, -1].double()
    assert list(result) == ["candidates"]
    assert [row["rank"] for row in result["candidates"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["id"] for row in result["candidates"]] == logits.argsort(descending=True)[:7].tolist()
    for row in result["candidates"]:
        assert list(row) == ["rank", "id", "text", "logit", "prob"]
        assert row["text"] == reference.tokenizer.decode([row["id"]], skip_special=False)
        assert row["logit"] == pytest.approx(logits[row["id"]].item(), abs=1e-4)
        assert row["prob"] == pytest.approx(logits.softmax(-1)[row["id"]].item(), rel=1e-4)
    with_bos = result_of([*arguments, "--bos"], capsys)["candidates"]
    with torch.no_grad():
        logits = reference.theirs(torch.tensor([[reference.tokenizer.bos_token_id, *ids]])).logits[0, -1]
    assert [row["id"] for row in with_bos] == logits.argsort(descending=True)[:7].tolist()


def test_next_goes_on_with_the_most_probable_token(reference, capsys):
    arguments = ["next", "--model", str(reference.folder), "--prompt", "you", "--top", "3", "--steps", "4"]
    steps = result_of(arguments, capsys)["steps"]
    ids = torch.tensor([reference.tokenizer.encode("you")])
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, reference.theirs(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert [step["candidates"][0]["id"] for step in steps] == ids[0, -4:].tolist()
    assert steps[3]["token_ids"] == ids[0, :-1].tolist()
    assert steps[3]["text"] == reference.tokenizer.decode(steps[3]["token_ids"])
    assert steps[0]["candidates"] == result_of(arguments[:-2], capsys)["candidates"]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * (2 + 3)
    assert all(len(line) <= 80 for line in lines[1:])  # the first holds the prompt
    assert lines[0] == "after 'you' (tokens: 1, BOS in front: no)"
    best = steps[0]["candidates"][0]
    assert lines[2].split()[:2] == ["1", str(best["id"])]
    assert repr(best["text"]) in lines[2]
    assert lines[2].endswith(" " + "#" * 20)


def test_next_after_nothing_starts_as_generate_does(trained, reference, capsys):
    on_a_fresh_line = result_of(["next", "--model", str(trained), "--prompt", "\n"], capsys)
    assert result_of(["next", "--model", str(trained), "--prompt", ""], capsys) == on_a_fresh_line
    nothing = result_of(["next", "--model", str(reference.folder), "--prompt", ""], capsys)
    assert nothing == result_of(["next", "--model", str(reference.folder), "--prompt", "", "--bos"], capsys)


def test_ids_that_only_pad_the_vocabulary_are_never_shown_or_followed(reference, capsys):
    from minigpt import GPT, GPTConfig
    from minigpt.formats.run_directory import save_run

    assert reference.tokenizer.vocab_size == 267
    model = GPT(GPTConfig(272, block_size=7, n_layer=1, n_head=1, n_embd=3)).eval()
    with torch.no_grad():
        ids = torch.tensor([reference.tokenizer.encode("the")])
        model.wte.weight[267:] += 9 * model.trunk(ids)[0, -1]  # the padding is by far the likeliest
        logits = model(ids)[0, -1]
    assert logits.argmax() >= 267
    save_run(model, reference.tokenizer, Path("padded"))
    ask = ["next", "--model", "padded", "--prompt", "the"]
    candidates = result_of([*ask, "--top", "272"], capsys)["candidates"]
    assert sorted(row["id"] for row in candidates) == list(range(267))
    chances = logits[:267].double().softmax(-1)  # as a decoder sees them
    assert [row["prob"] for row in candidates] == pytest.approx(
        [chances[row["id"]].item() for row in candidates], rel=1e-5
    )
    steps = result_of([*ask, "--steps", "3"], capsys)["steps"]
    assert all(token < 267 for step in steps for token in step["token_ids"])


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--top", "0"], ["--top 0"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--prompt", "To be or not"], ["the prompt has 12 tokens, more than block_size = 11"]),
        (["--prompt", "To be or no", "--steps", "2"], ["11 tokens", "1 more", "block_size = 11"]),
        (["--bos"], ["--bos", "does not have"]),
        (["--model", "nowhere/x"], ["nowhere"]),
        (["--tokeniser", "gpt2"], ["did you mean --tokenizer?"]),
    ],
)
def test_wrong_questions_about_the_next_token(trained, failing, flags, parts):
    err = failing(["next", *once(["--model", str(trained), "--prompt", "To"], flags)])
    assert all(part in err for part in parts), err


def test_score_json_is_the_reference_sum(reference, capsys):
    texts = ["you the later", "the the other", "laterlater"]
    border = reference.tokenizer.bos_token_id
    for flags, bos, eos in (([], 0, 0), (["--bos"], 1, 0), (["--eos"], 0, 1), (["--bos", "--eos"], 1, 1)):
        result = result_of(["score", "--model", str(reference.folder), *texts, *flags], capsys)
        assert list(result) == ["results"]
        assert [row["text"] for row in result["results"]] == texts
        for row in result["results"]:
            ids = [border] * bos + reference.tokenizer.encode(row["text"]) + [border] * eos
            expected = reference.log_probs(ids)
            assert list(row) == ["text", "log_prob", "num_tokens", "perplexity", "tokens"]
            assert row["log_prob"] == pytest.approx(sum(expected), abs=1e-4)
            assert row["num_tokens"] == len(ids) - 1
            assert row["perplexity"] == pytest.approx(math.exp(-sum(expected) / (len(ids) - 1)), rel=1e-4)
            assert [token["id"] for token in row["tokens"]] == ids[1:]
            assert [token["text"] for token in row["tokens"]] == [
                reference.tokenizer.decode([i], False) for i in ids[1:]
            ]
            assert [token["log_prob"] for token in row["tokens"]] == pytest.approx(expected, abs=1e-4)


def test_a_perplexity_that_is_no_size_for_a_column_is_a_power_of_ten(reference, capsys, monkeypatch):
    monkeypatch.setattr("minigpt.cli.score.token_log_probs", lambda _, ids, __: [-690.0] * (len(ids) - 1))
    assert run(["score", "--model", str(reference.folder), "the the"]) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.split()[2] == f"{math.exp(690):.3g}"


def test_score_keeps_the_order_and_marks_the_best(reference, capsys):
    texts = ["you the later", "the the other", "you other the"]
    arguments = ["score", "--model", str(reference.folder), *texts]
    sums = [sum(reference.log_probs(reference.tokenizer.encode(text))) for text in texts]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines[1:4]] == [repr(text) for text in texts]
    assert [line.startswith("*") for line in lines[1:4]] == [total == max(sums) for total in sums]
    assert all(len(line) <= 80 for line in lines)
    assert run(["score", "--model", str(reference.folder), "the later", "--tokens"]) == 0
    out = capsys.readouterr().out
    assert "*" not in out  # alone, it is the best of nothing
    assert out.splitlines()[-1].endswith("'later'")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["T"], ["'T' is 1 token:", "--bos"]),
        ([""], ["'' is 0 tokens"]),
        (["To be", "To be, or no"], ["'To be, or no' has 12 tokens", "block_size = 11", "minigpt eval"]),
        (["To be", "--bos"], ["--bos", "does not have"]),
        (["To be", "--eos"], ["--eos", "does not have"]),
        ([], ["missing: TEXT"]),
        (["what?"], ["U+003F", '--unknown "skip"']),
    ],
)
def test_texts_that_cannot_be_scored(trained, failing, arguments, parts):
    err = failing(["score", "--model", str(trained), *arguments])
    assert all(part in err for part in parts), err


def test_eval_of_a_model_that_was_not_trained_here_reads_no_corpus(reference, capsys, monkeypatch):
    """Whatever lies beside the text, such as an export that is named after one."""
    from minigpt.cli import evaluate

    load_data, loaded = evaluate.load_data, []
    monkeypatch.setattr(evaluate, "load_data", lambda config: loaded.append(config.data.source) or load_data(config))
    Path("shakespeare").mkdir()
    Path("text.txt").write_text("you other the later " * 12)
    tokens = result_of(["eval", "--model", str(reference.folder), "--data", "text.txt"], capsys)["tokens"]
    assert loaded == ["text.txt"]
    assert tokens == len(reference.tokenizer.encode("you other the later " * 12)) - 1


def test_eval_of_a_model_that_was_not_trained_here(reference, capsys, failing):
    """Sliding windows, token by token against the reference."""
    model = str(reference.folder)
    err = failing(["eval", "--model", model])
    assert all(part in err for part in (model, "--data"))
    Path("text.txt").write_text("you other the later " * 12)
    ids = reference.tokenizer.encode("you other the later " * 12)
    for stride in (29, 11, 1):
        result = result_of(["eval", "--model", model, "--data", "text.txt", "--stride", str(stride)], capsys)
        scored = []
        for start in range(0, len(ids), stride):
            window = reference.log_probs(ids[start : start + 30])  # of up to 29 predicted tokens
            scored += window[start and 29 - stride :]
            if start + 30 >= len(ids):
                break
        assert len(scored) == result["tokens"] == len(ids) - 1
        assert result["loss"] == pytest.approx(-sum(scored) / len(scored), abs=1e-5)


TEXTUAL = [
    ["generate", "--prompt", "you", "--model"], ["next", "--prompt", "you", "--model"], ["score", "you", "--model"],
    ["tokenize", "you", "--model"], ["eval", "--data", "t.txt", "--model"], ["compare", "--prompt", "you", "--model"],
    ["inspect", "lens", "you", "--model"], ["inspect", "embed", "near", "you", "--model"],
    ["train", "--data", "t.txt", "--out", "new", "--init-from"], ["import"],
]  # fmt: skip


@pytest.mark.parametrize("command", TEXTUAL, ids=lambda command: command[0])
def test_what_needs_text_asks_for_a_tokenizer(command, reference, failing):
    import shutil

    Path("bare").mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(reference.folder / name, f"bare/{name}")
    Path("t.txt").write_text("you the later" * 99)
    err = failing([*command, "bare", *(["out"] if command == ["import"] else [])])
    assert re.search(r"no tokenizer is known for (\S+/)?bare, and without one no text goes in or out", err)
    assert "name one with --tokenizer" in err


@pytest.mark.filterwarnings("default::minigpt.errors.ModelNote")
def test_a_model_without_a_tokenizer_is_exported_without_one(reference, capsys):
    import shutil

    Path("bare").mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(reference.folder / name, f"bare/{name}")
    assert run(["export", "bare", "out"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("out: config.json, model.safetensors\n")
    (said,) = err.splitlines()
    assert "comes without a tokenizer" in said
    theirs, ours = (json.loads(Path(folder, "config.json").read_text()) for folder in ("bare", "out"))
    assert theirs["bos_token_id"] is not None
    assert all(ours[key] == value for key, value in theirs.items() if key.endswith("_token_id") and value is not None)
    assert run(["inspect", "size", "--model", "out"]) == 0
    result_of(["import", "bare", "run", "--tokenizer", str(reference.folder), "--verify"], capsys)
    assert run(["next", "--model", "run", "--prompt", "you"]) == 0


@pytest.mark.filterwarnings("default::minigpt.errors.ModelNote", "default::minigpt.errors.TextNote")
def test_a_special_token_from_import_to_export(reference, capsys):
    """Added by the reference; carried through a run, shown by its name, drawn by nothing, and written out again."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(reference.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(reference.folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    theirs.resize_token_embeddings(268, mean_resizing=False)
    with torch.no_grad():
        theirs.transformer.wte.weight[267] = 99 * theirs.transformer.ln_f.bias  # the best everywhere, if it could be
    theirs.save_pretrained("padded")
    tokenizer.save_pretrained("padded")
    assert run(["import", "padded", "run", "--verify"]) == 0
    note = "1 of the 268 ids of padded/model.safetensors stand for no text ('[PAD]'): `encode` never gives them"
    assert note in capsys.readouterr().err
    for model in ("padded", "run"):
        flags = ["--model", model, "--prompt", "you [PAD]", "--json"]
        assert run(["generate", *flags, "--max-new-tokens", "5", "--strategy", "greedy"]) == 0
        (completion,) = json.loads(capsys.readouterr().out)["completions"]
        assert max(completion["token_ids"]) < 267
    assert run(["export", "run", "out"]) == 0
    there = transformers.AutoTokenizer.from_pretrained("out")
    assert (there.pad_token, there.pad_token_id, len(there)) == ("[PAD]", 267, 268)


def test_import_makes_a_run_that_every_command_takes(reference, capsys, failing):
    result = result_of(["import", str(reference.folder), "runs/mine"], capsys)
    assert result == {"out": str(Path("runs/mine")), "parameters": reference.theirs.num_parameters(), "parity": None}
    assert sorted(path.name for path in Path("runs/mine").iterdir()) == [
        "config.yaml", "model.safetensors", "reference.json", "tokenizer.json",
    ]  # fmt: skip
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]  # no temporary folder is left
    for command in (
        ["next", "--prompt", "you"],
        ["score", "you the"],
        ["tokenize", "you"],
        ["eval", "--data", "t.txt"],
    ):
        Path("t.txt").write_text("you the later" * 9)
        from_source, from_run = (
            result_of([command[0], "--model", model, *command[1:]], capsys)
            for model in (str(reference.folder), "runs/mine")
        )
        assert from_run == from_source
    assert run(["generate", "--model", "runs/mine", "--prompt", "you", "--max-new-tokens", "3"]) == 0
    assert "--data" in failing(["eval", "--model", "runs/mine"])


def test_import_with_a_shorter_context(reference, capsys, failing):
    Path("empty").mkdir()  # may exist
    result_of(["import", str(reference.folder), "empty", "--block-size", "7", "--verify"], capsys)
    assert "block_size: 7\n" in Path("empty/config.yaml").read_text()
    assert "block_size = 7" in failing(["score", "--model", "empty", "you the later other"])
    assert "31" in failing(["import", str(reference.folder), "long", "--block-size", "31"])


def test_import_verified(reference, trained, capsys):
    arguments = ["import", str(reference.folder), "one", "--verify"]
    result = result_of(arguments, capsys)["parity"]
    assert list(result) == ["reference", "layers", "tokens", "same_argmax"]
    assert result["reference"] == str(reference.folder)
    assert result["tokens"] == result["same_argmax"] == 29
    assert [layer["name"] for layer in result["layers"]] == [
        "embedding", "block 0", "block 1", "block 2", "final norm", "logits",
    ]  # fmt: skip
    assert all(0 <= layer["difference"] < 1e-4 < layer["size"] for layer in result["layers"])
    assert run(["import", str(trained), "two", "--verify"]) == 0  # which the reference does not read
    out = capsys.readouterr().out
    assert f"an export of {trained} (this checks the export, not the source)" in out
    assert "11 tokens: rounding apart" in out
    assert all(len(line) <= 80 or "/" in line for line in out.splitlines())


@pytest.fixture
def lone(reference) -> Path:
    """A weights file without a config.json, in which 128 columns may be any number of heads."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=267, n_positions=7, n_layer=1, n_head=4, n_embd=128, bos_token_id=None, eos_token_id=None
    )
    transformers.GPT2LMHeadModel(config).save_pretrained("lone")
    Path("lone/config.json").unlink()
    reference.tokenizer.save(Path("lone/tokenizer.json"))
    return Path("lone/model.safetensors")


@pytest.mark.filterwarnings("default::minigpt.errors.ModelNote")
def test_assumed_heads_are_said_and_cannot_be_verified(lone, capsys, failing):
    note = f"note: {lone} has no config.json beside it: 2 heads, each 64 wide, were assumed\n"
    for arguments in (
        ["next", "--model", str(lone), "--prompt", "you"],
        ["score", "--model", str(lone), "you the"],
        ["generate", "--model", str(lone), "--prompt", "you", "--max-new-tokens", "2"],
        ["export", str(lone), "out"],
        ["import", str(lone), "in"],
    ):
        assert run(arguments) == 0
        assert capsys.readouterr().err.startswith(note)
    err = failing(["import", str(lone), "proved", "--verify"])
    assert all(part in err for part in ("2 heads, each 64 wide, were assumed", "put the model's config.json beside"))


def test_a_run_is_a_run_whatever_else_lies_there(reference, trained, capsys):
    import shutil

    shutil.copytree(trained, "both")
    shutil.copy(reference.folder / "config.json", "both")
    result = result_of(["import", "both", "again", "--verify"], capsys)
    assert result["parity"]["reference"].startswith("an export of both")


@pytest.mark.parametrize("command", SETTINGS)
def test_what_a_seed_promises_names_its_conditions(command):
    """The number of threads changes the last digits, as another machine does."""
    from minigpt.cli.parser import SettingsParser

    text = " ".join(SettingsParser(command, SETTINGS[command], everything=True).format_help().split())
    promises = [text[: found.start()][-50:] for found in re.finditer("the same seed gives", text)]
    assert len(promises) == (command in ("quickstart", "train", "verify-resume", "generate"))
    assert all(promise.endswith("on the same machine and number of threads, ") for promise in promises)


def test_import_chooses_one_dropout_of_three(reference, capsys, failing):
    import shutil

    shutil.copytree(reference.folder, "rates")
    content = json.loads(Path("rates/config.json").read_text()) | {"attn_pdrop": 0.25}
    Path("rates/config.json").write_text(json.dumps(content))
    assert "--dropout" in failing(["import", "rates", "mine"])
    assert "--dropout" in failing(["import", "rates/model.safetensors", "mine"])
    result_of(["import", "rates", "mine", "--dropout", "0.125"], capsys)
    assert "dropout: 0.125\n" in Path("mine/config.yaml").read_text()
    assert result_of(["tokenize", "--model", "rates", "you"], capsys)["tokens"]  # which needs no dropout


@pytest.mark.parametrize(
    "arguments",
    [["next", "--prompt", "you", "--model"], ["score", "you the", "--model"],
     ["generate", "--prompt", "you", "--max-new-tokens", "2", "--model"], ["inspect", "heads", "--model"],
     ["evaluate-text", "t.txt", "--model"], ["export", "--model"]],
)  # fmt: skip
@pytest.mark.parametrize("spec", ["rates", "rates/model.safetensors"])
@pytest.mark.filterwarnings("default::minigpt.errors.ModelNote")  # as outside of tests, where notes are said
def test_what_trains_nothing_needs_no_dropout(arguments, spec, reference, capsys):
    """And says in a line what the model that it has would drop."""
    import shutil

    shutil.copytree(reference.folder, "rates")
    content = json.loads(Path("rates/config.json").read_text()) | {"attn_pdrop": 0.25, "embd_pdrop": 0.5}
    Path("rates/config.json").write_text(json.dumps(content))
    Path("t.txt").write_text("you the later", encoding="utf-8")
    command = ["export", spec, "out"] if arguments[0] == "export" else [*arguments, spec]
    assert run(command) == 0
    assert "embd_pdrop, attn_pdrop, resid_pdrop = 0.5, 0.25, 0, which differ: only training" in capsys.readouterr().err


def test_training_chooses_one_dropout_of_three(reference, capsys, failing):
    import shutil

    shutil.copytree(reference.folder, "rates")
    content = json.loads(Path("rates/config.json").read_text()) | {"attn_pdrop": 0.25}
    Path("rates/config.json").write_text(json.dumps(content))
    Path("t.txt").write_text("you the later " * 99, encoding="utf-8")
    train = ["train", "--init-from", "rates", "--data", "t.txt", "--plan"]
    assert "--model.dropout" in failing(train)
    assert run([*train, "--model.dropout", "0.125"]) == 0


def test_tokenize_refuses_another_models_tokenizer(reference, failing):
    import shutil

    shutil.copytree(reference.folder, "mixed")
    content = json.loads(Path("mixed/config.json").read_text()) | {"vocab_size": 251}
    Path("mixed/config.json").write_text(json.dumps(content))
    assert "the tokenizer has 267 tokens, the model 251" in failing(["tokenize", "--model", "mixed", "you"])


def test_json_has_no_nan():
    from minigpt.cli.streams import print_json
    from minigpt.errors import CheckpointError

    for value in (float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match="which JSON cannot hold"):
            print_json({"loss": [value]})


@pytest.mark.skipif(sys.platform != "linux", reason="needs paths that are any bytes")
def test_a_path_that_is_not_utf8(reference):
    for flags in ([], ["--json"]):
        out = f"out{len(flags)}\udcff".encode("utf-8", "surrogateescape")
        command = [sys.executable, "-m", "minigpt", "export", str(reference.folder), out, *flags]
        done = subprocess.run(command, capture_output=True, check=True)
        assert not done.stderr
        assert os.path.isdir(out)
        assert b"\\udcff" in done.stdout
    assert os.fsencode(json.loads(done.stdout)["out"]) == out


def test_import_of_a_model_on_the_hub_is_verified_with_what_was_fetched(reference, capsys, monkeypatch):
    monkeypatch.setattr("minigpt.formats.source.fetch_model", {"someone/model": reference.folder}.__getitem__)
    result = result_of(["import", "someone/model", "mine", "--verify"], capsys)
    assert result["parity"]["reference"] == str(reference.folder)


def test_import_of_a_damaged_model_is_refused(reference, failing, monkeypatch):
    from minigpt.formats.pretrained import load_model

    def damaged(source, **options):
        model, tokenizer = load_model(source.path, **options)
        with torch.no_grad():
            model.h[1].mlp.c_fc.weight.mul_(1.5)
        return model, tokenizer

    monkeypatch.setattr("minigpt.formats.source.Source.load_for_text", damaged)
    err = failing(["import", str(reference.folder), "mine", "--verify"])
    assert all(part in err for part in ("differ by", "at block 1,", "1.0e-03", "nothing was written"))


def test_import_verify_without_the_reference_library(reference, failing, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("minigpt.formats.source.Source.load_for_text", None)  # known before the work of loading
    err = failing(["import", str(reference.folder), "mine", "--verify"])
    assert all(part in err for part in ("not installed", "pip install"))


@pytest.mark.parametrize("command", ["import", "export"])
def test_folders_that_are_taken(reference, trained, failing, monkeypatch, command):
    monkeypatch.chdir(trained.parent)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert "run is not empty" in failing([command, str(reference.folder), "run"])
    assert "is a file" in failing([command, str(reference.folder), "play.txt"])
    assert "nowhere" in failing([command, "nowhere/x", "new"])
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_an_import_that_fails_half_way_leaves_nothing(reference, failing, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("minigpt.formats.run_directory.save_weights", full)
    Path("runs").mkdir()
    assert "No space left" in failing(["import", str(reference.folder), "runs/mine"])


def test_export_is_what_the_reference_library_loads(reference, trained, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = result_of(["export", str(reference.folder), "out"], capsys)
    assert list(result) == ["out", "parameters", "files"]
    assert result["files"] == sorted(path.name for path in Path("out").iterdir())
    ids = reference.tokenizer.encode("you the later")
    with torch.no_grad():
        expected = reference.theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained("out")(torch.tensor([ids])).logits, expected)
    assert AutoTokenizer.from_pretrained("out")("you the later").input_ids == ids
    assert run(["export", str(trained), "characters"]) == 0
    assert "written    characters: config.json" in capsys.readouterr().out
    score = result_of(["score", "--model", str(trained), "To be"], capsys)
    assert result_of(["score", "--model", "characters", "To be"], capsys)["results"][0]["log_prob"] == pytest.approx(
        score["results"][0]["log_prob"], abs=1e-5
    )


@pytest.fixture
def gpt2() -> str:
    from minigpt.errors import DownloadError
    from minigpt.formats.hub import fetch_model

    try:
        fetch_model("gpt2")
    except DownloadError as error:
        pytest.skip(f"needs GPT-2's weights, in the hub's cache or from the network: {error.what}")
    return "gpt2"


@pytest.mark.network
def test_the_published_next_tokens_of_gpt2(gpt2, capsys):
    candidates = result_of(["next", "--model", gpt2, "--prompt", "See you"], capsys)["candidates"]
    assert [row["text"].strip() for row in candidates] == [
        "soon", "there", "all", "next", "guys", "in", "out", "on", "later", ",",
    ]  # fmt: skip
    published = [0.084681, 0.073554, 0.072775, 0.072505, 0.061731, 0.055900, 0.053875, 0.040310, 0.028322, 0.027074]
    assert [row["prob"] for row in candidates] == pytest.approx(published, abs=2e-5)
    steps = result_of(["next", "--model", gpt2, "--prompt", "See you", "--steps", "20"], capsys)["steps"]
    assert [step["candidates"][0]["id"] for step in steps] == [
        2582, 11, 198, 198, 464, 4453, 286, 262, 26028, 198, 198, 464, 4453, 286, 262, 26028, 25, 383, 5172, 3776,
    ]  # fmt: skip
    weather = result_of(["next", "--model", gpt2, "--prompt", "The weather today is", "--top", "3"], capsys)
    assert [row["text"] for row in weather["candidates"]] == [" very", " good", " pretty"]
    assert [row["prob"] for row in weather["candidates"]] == pytest.approx([0.043, 0.032, 0.031], abs=1e-3)


@pytest.mark.network
def test_the_published_scores_of_gpt2(gpt2, capsys):
    texts = [f"See you later, {word}." for word in ("alligator", "crocodile", "asdf")]
    results = result_of(["score", "--model", gpt2, "--bos", "--eos", *texts], capsys)["results"]
    assert [row["log_prob"] for row in results] == pytest.approx([-31.0388, -35.5485, -42.2685], abs=1e-3)


def test_doctor(capsys, monkeypatch):
    from minigpt.config import GPTConfig, RunConfig, TrainConfig
    from minigpt.packed import KINDS, Kind
    from minigpt.training import selfcheck

    tiny = RunConfig(model=GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4),
                     train=TrainConfig(batch_size=2))  # fmt: skip
    monkeypatch.setattr("minigpt.cli.doctor.preset", lambda name: tiny)
    vocabularies = []
    real = selfcheck.make_model
    noted = lambda config, *rest: vocabularies.append(config.model.vocab_size) or real(config, *rest)  # noqa: E731
    monkeypatch.setattr(selfcheck, "make_model", noted)
    result = result_of(["doctor", "--no-compile", "--device", "cpu"], capsys)
    assert vocabularies == 4 * [65]  # what a run on Shakespeare has, not GPT-2's 50,257
    assert [timing["name"] for timing in result["timings"]] == [
        "--dtype float32 --compile off --kernels torch", "--dtype bfloat16 --compile off",
        "--dtype float32 --compile off --kernels fast", "--dtype float32 --compile off --kernels c",
    ]  # fmt: skip
    assert result["timings"][0]["difference"] == 0
    assert result["best"].startswith("--dtype")
    layers = {layer["name"]: layer for layer in result["weights"]["layers"]}
    assert {name: (layer["num_out"], layer["num_in"]) for name, layer in layers.items()} == {
        "attn.c_attn": (12, 4), "attn.c_proj": (4, 4), "mlp.c_fc": (16, 4), "mlp.c_proj": (4, 16), "lm_head": (65, 4),
    }  # fmt: skip
    for layer in layers.values():
        assert {*layer["seconds"], *layer["left_out"]} == {*KINDS}
        assert {"plain", "transposed", "pieces", layer["fastest"]} <= {*layer["seconds"]}
    monkeypatch.setitem(KINDS, "float16", Kind(lambda weight, bias: lambda x: x @ weight.T * 1.1, 1e-3))
    assert run(["doctor", "--no-compile", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "fastest safe: --dtype" in out
    assert re.search(r"left out: float16 of mlp.c_fc: \S+ from the plain product", out)
    assert all(len(line) <= 88 for line in out.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as raised:
        run([command, "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"minigpt {command}" in out
    assert [line for line in out.splitlines() if len(line) > 80] == []


def test_top_level_help_and_version(capsys):
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert run(["--version"]) == 0


def test_help_needs_no_torch():
    """Nor does any wait for another heavy library. All in one process, which the first that loads one ends."""
    lines = [[], *([name] for name in SETTINGS), *(["inspect", view] for view in VIEWS)]
    code = f"""
import sys
from minigpt.cli.main import answer as run
from minigpt.cli.parser import SettingsParser
for words in {lines}:
    try: run([*words, "--help"])
    except SystemExit: pass
    heavy = {{"torch", "numpy", "matplotlib", "tiktoken"}} & set(sys.modules)
    if heavy: sys.exit(f"{{words}} loads {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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


# Bad input: two lines, exit 2, nothing half-written.


def test_case_1_unknown_characters(trained, capsys, failing):
    err = failing(["generate", "--model", str(trained), "--prompt", "Wha\U0001f600?", "--max-new-tokens", "2"])
    assert all(part in err for part in ("U+1F600", "U+003F", '--unknown "skip"', f"vocabulary of {len(set(TEXT))}"))
    arguments = ["generate", "--model", str(trained), "--prompt", "T\U0001f600o", "--unknown", "skip",
                 "--max-new-tokens", "2"]  # fmt: skip
    assert result_of(arguments, capsys)["completions"][0]["text"].startswith("To")


def test_case_2_an_empty_prompt_without_a_start(tmp_path, failing):
    Path("one.txt").write_text("abc" * 100)
    assert run(["train", "--data", "one.txt", "--out", "run", *SMALL_FLAGS]) == 0
    assert "prompt is empty" in failing(["generate", "--model", "run", "--prompt", ""])


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--temperature", "-1"], ["--temperature -1"]),
        (["--temperature", "nan"], ["--temperature nan"]),
        (["--temperature", "inf"], ["--temperature inf"]),
        (["--top-k", "-1"], ["--top-k -1"]),
        (["--top-p", "0"], ["--top-p 0"]),
        (["--top-p", "1.5"], ["--top-p 1.5"]),
        (["--num-beams", "0", "--strategy", "beam"], ["--num-beams 0"]),
        (["--num-beams", "2", "--num-return-sequences", "3", "--strategy", "beam"], ["--num-return-sequences 3"]),
        (["--num-beams", "2", "--strategy", "beam", "--temperature", "0.5"], ["--temperature 0.5"]),
        (["--max-new-tokens", "-1"], ["--max-new-tokens -1"]),
        (["--top-k", "many"], ["--top-k", "many"]),
        (["--strategy", "best"], ["--strategy", "best", "greedy"]),
        (["--temprature", "1"], ["--temprature", "did you mean --temperature?"]),
        (["--device", "cuda:99"], ["cuda"]),
    ],
)
def test_wrong_decoding_options(trained, failing, flags, parts):
    err = failing(["generate", "--model", str(trained), "--prompt", "To", *flags])
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
def test_case_8_data_that_is_no_text(failing, content, parts):
    if content is not None:
        Path("data.txt").write_bytes(content)
    err = failing(["train", "--data", "data.txt", "--out", "run", *SMALL_FLAGS])
    assert all(part in err for part in parts), err


def test_case_8_an_empty_folder(failing):
    Path("folder").mkdir()
    assert "folder" in failing(["train", "--data", "folder", "--out", "run", *SMALL_FLAGS])


def test_case_9_a_text_that_is_too_short(failing):
    Path("short.txt").write_text("to be or not to be " * 5)
    err = failing(["train", "--data", "short.txt", "--out", "run", *SMALL_FLAGS])
    assert all(
        part in err for part in ("val split: 10 tokens", "--model.block_size 11 needs 12", "--model.block_size 4")
    )


def test_case_11_another_text_than_the_model_knows(trained, failing):
    Path("other.txt").write_text("QUITE ANOTHER ALPHABET" * 20)
    assert "vocabulary" in failing(["eval", "--model", str(trained), "--data", "other.txt"])
    Path("c.yaml").write_text("model: {vocab_size: 99}\n")
    Path("other.jsonl").write_text('{"text": "QUITE"}\n{"text": "ANOTHER"}\n')  # and the line end behind each
    for data, size in (("other.txt", 14), ("other.jsonl", 11)):
        err = failing(["train", "--config", "c.yaml", "--data", data, "--out", "x", *SMALL_FLAGS])
        assert f"vocab_size = 99, but this run's is {size}" in err
    err = failing(["train", "--config", "c.yaml", "--data", "other.txt", "--out", "x", "--init-from", str(trained)])
    assert "vocab_size = 99, but this run's is 24" in err


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
        (["--train.max_step", "3"], ["--train.max_step", "did you mean --train.max_steps?"]),
        (["--train.max_steps", "many"], ["--train.max_steps many", "a whole number"]),
        (["--train.max_steps", "2.5"], ["max_steps", "2.5"]),
        (["--model.n_head", "3"], ["--model.n_embd 8", "--model.n_head 3"]),
        (["--model.n_layer", "0"], ["--model.n_layer 0 is out of range", "--model.n_layer must be"]),
        (["--model.block_size", "0"], ["--model.block_size 0"]),
        (["--model.dropout", "1"], ["--model.dropout 1"]),
        (["--train.learning_rate", "-1"], ["--train.learning_rate -1"]),
        (["--train.warmup_steps", "9"], ["--train.warmup_steps 9", "--train.max_steps 4", "--train.warmup_ratio"]),
        (["--train.min_learning_rate", "9"], ["--train.min_learning_rate 9", "above --train.learning_rate"]),
        (["--train.optimizer", "sgd"], ["optimizer", "sgd", "adamw"]),
        (["--preset", "quick"], ["quick", "shakespeare-quick"]),
        (["--config", "none.yaml"], ["none.yaml"]),
        (["--dtype", "float16"], ["float16", "bfloat16"]),
        (["--dtype", "int8"], ["int8"]),
        (["--device", "gpu"], ["'gpu'"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--val-fraction", "1.5"], ["--val-fraction 1.5"]),
        (["--tokenizer", "bpe"], ["--tokenizer", "bpe", "gpt2"]),
        (["--plan", "--train.lora_rank", "2", "--train.optimizer", "adamw"], ["adapts a trained model", "--init-from"]),
    ],
)
def test_case_24_wrong_settings(trained, failing, flags, parts):
    data = str(trained.parent / "play.txt")
    err = failing(["train", "--data", data, "--out", "run", *once(SMALL_FLAGS, flags)])
    assert all(part in err for part in parts), err


def test_whole_numbers_are_accepted_for_floats(trained, capsys):
    """nanoGPT's configurator refuses --weight_decay=0 with a bare AssertionError."""
    data = str(trained.parent / "play.txt")
    flags = ["--model.dropout=0", "--train.weight_decay=0", "--train.learning_rate", "1", "--train.grad_clip=0"]
    assert result_of(["train", "--data", data, "--out", "run", *SMALL_FLAGS, *flags], capsys)["step"] == 4


def test_the_output_folder_is_taken(trained, failing, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert "is not empty" in failing(["train", "--data", "play.txt", "--out", "run", *SMALL_FLAGS])
    assert "is a file" in failing(["train", "--data", "play.txt", "--out", "play.txt", *SMALL_FLAGS])


def test_models_that_are_not_there(failing):
    Path("checkpoints").mkdir()
    for command in (["generate", "--prompt", "To"], ["next", "--prompt", "To"], ["score", "To"], ["tokenize", "To"]):
        assert "no trained run" in failing(command)
        assert "there is no model 'gtp2'" in failing([*command, "--model", "gtp2"])
        assert "did you mean gpt2?" in failing([*command, "--model", "gtp2"])
        assert "checkpoints/typo does not exist" in failing([*command, "--model", "checkpoints/typo"])
    assert "checkpoints/typo does not exist" in failing(["eval", "--model", "checkpoints/typo"])
    assert "there is no model 'gtp2'" in failing(["eval", "--model", "gtp2"])


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths")
def test_paths_that_cannot_be_written_or_read(trained, failing):
    data = str(trained.parent / "play.txt")
    Path("file").write_text("x")
    Path("folder").mkdir()
    assert "file" in failing(["train", "--data", data, "--out", "file/run", *SMALL_FLAGS])
    assert "folder" in failing(["train", "--data", data, "--config", "folder", "--out", "run", *SMALL_FLAGS])


def test_an_unknown_command(failing):
    assert "did you mean train?" in failing(["trian"])


def test_debug_shows_where(trained):
    from minigpt.errors import InputError

    with pytest.raises(InputError):
        run(["generate", "--model", str(trained), "--prompt", "To", "--temperature", "-1", "--debug"])


def test_debug_is_a_flag_and_no_word(failing):
    assert "nowhere" in failing(["tokenize", "--model", "nowhere", "--", "--debug"])


def test_case_22_offline_without_a_cache(failing, monkeypatch):
    """No network: the error names the file, the URL and the folder, at once."""
    import socket

    def refuse(*arguments, **options):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    err = failing(["train", "--data", "shakespeare", "--out", "run", *SMALL_FLAGS])
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
    monkeypatch.setattr("minigpt.data.corpora.write_verse", lambda seed: short_verse(seed))
    assert result_of(["eval"], capsys)["loss"] == pytest.approx(result["best_val_loss"], abs=1e-6)
    assert run(["train", "--resume", result["out"]]) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def short_verse(seed):
    from minigpt.data.verse import write_verse

    return write_verse(seed, 20_000)


def test_what_is_told_to_type_next_is_understood_where_a_text_begins_with_a_dash():
    for lines, asked in (
        (trainings.next_steps(Path("run"), "-1,1"), {"prompt": ("-1,1",)}),
        (trainings.first_talk(Path("run"), "-Ann", "-Ben", "hi"), {"user": "-Ann", "reply_as": "-Ben"}),
    ):
        told = "\n".join(lines[1 : lines.index("  import minigpt") - 1])
        command, *words = shlex.split(told.partition(trainings.program())[2].replace("\\\n", ""))
        assert asked.items() <= vars(SettingsParser(command, SETTINGS[command]).parse(words)).items()
