"""Training on dialogues: what is learned, what the run keeps of it, and what transformers makes of its export."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigpt.chat import Chat
from minigpt.cli import main
from minigpt.cli.parser import SettingsParser
from minigpt.cli.run_settings import Train
from minigpt.config import GPTConfig, preset
from minigpt.data.dialogues import CHAT_TEMPLATE, render
from minigpt.data.sources import held_out_dialogues
from minigpt.decoding.generate import generate
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import RunDirectory, read_config, save_run
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer

PLAY = "".join(
    f"SCENE {number}.\n\nANN:\nIs it {number}?\n\nBEN:\nIt is,\nand no more.\n\nANN:\nWell.\n\n"
    for number in range(2, 13)
)
SHAPE = GPTConfig(vocab_size=263, block_size=61, n_layer=2, n_head=3, n_embd=15)
FLAGS = (
    "--data play.txt --documents.separate dialogues --documents.val_size 3 --model.n_layer 1 --model.n_head 1 "
    "--model.n_embd 6 --model.block_size 61 --train.max_steps 6 --train.warmup_steps 1 --train.batch_size 4 "
    "--train.eval_interval 3 --train.save_interval 3 --device cpu --dtype float32 --compile off"
).split()

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(autouse=True)
def play(own_folder):
    Path("play.txt").write_text(PLAY, encoding="utf-8")


def save_base(tokenizer: Tokenizer, folder: str = "base") -> None:
    torch.manual_seed(3)
    save_run(GPT(replace(SHAPE, vocab_size=tokenizer.vocab_size)).eval(), tokenizer, folder)


def same_ids_there(run: str) -> None:
    """The exported tokenizer renders a conversation to our ids."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [dev]")
    assert main.answer(["export", run, "out"]) == 0
    _, tokenizer = load_model(run)
    assert tokenizer.settings["chat_template"] == CHAT_TEMPLATE
    theirs = transformers.AutoTokenizer.from_pretrained("out")
    messages = [
        {"role": "user", "content": "Is it so?\n\nWell"},
        {"role": "assistant", "name": "BEN", "content": "It is"},
    ]
    ids = theirs.apply_chat_template([*messages, messages[0]], add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(render([*messages, messages[0]]))


def test_a_run_from_nothing(capsys):
    assert main.answer(["train", *FLAGS, "--out", "run"]) == 0
    shown = capsys.readouterr().out
    assert "11 dialogues; 22 replies, each after 4 turns at most" in shown
    assert "16 replies to train on, 6 to validate" in shown
    assert "chat --model run --user ANN --as BEN\n" in shown  # 22 replies, and 11 each; of equals the first
    assert "minigpt.Chat(model, tokenizer, user='ANN', reply_as='BEN')" in shown
    samples = Path("run/samples.txt").read_text(encoding="utf-8")
    for sample in samples.split("--- step ")[1:]:  # the shortest prompt that is held out, and one reply to it
        assert re.match(r"\d+ ---\nANN:\nIs it \d+\?\n\nBEN:\n", sample)
    config = read_config(RunDirectory(Path("run")))
    assert len(held_out_dialogues(config)) == 3
    tokenizer = load_tokenizer("run/tokenizer.json")
    assert isinstance(tokenizer, CharTokenizer)
    assert set(tokenizer.characters) == set("".join(PLAY.split("SCENE")) + "USER:ASSISTANT:") - set(".") | {"."}
    assert tokenizer.settings == {"chat_template": CHAT_TEMPLATE}
    same_ids_there("run")
    assert main.answer(["eval", "--model", "run"]) == 0
    assert "6 held-out documents" in capsys.readouterr().out


def test_what_is_typed_next_names_nobody_where_nobody_has_a_name(capsys):
    reply = {"role": "assistant", "content": "and so on"}
    lines = (json.dumps({"messages": [{"role": "user", "content": letter}, reply]}) for letter in "ab")
    Path("talks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert main.answer(["train", *FLAGS, "--data", "talks.jsonl", "--documents.val_size", "1", "--out", "run"]) == 0
    shown = capsys.readouterr().out
    assert "chat --model run\n" in shown
    assert "minigpt.Chat(model, tokenizer)\n" in shown
    said = ast.literal_eval(re.search(r"print\(chat\.say\((.*)\)\)", shown)[1])
    assert said in ("a", "b")
    assert Chat(*load_model("run"), max_new_tokens=3).say(said)  # it knows no other letters than those of the talks


def test_a_sample_is_one_reply(monkeypatch):
    """A model of characters ends its reply with a blank line; what would follow was never learned."""
    asked = []

    def noted(model, prompts, **options):
        asked.append((options["stop"], options["eos_token_id"]))
        return generate(model, prompts, **options)

    monkeypatch.setattr("minigpt.training.loop.generate", noted)
    assert main.answer(["train", *FLAGS, "--out", "run"]) == 0
    assert asked == [("\n\n", None)] * 2
    tokenizer = GPT2Tokenizer(["t h"])
    save_base(tokenizer)
    flags = ["--documents.val_size", "3", "--train.epochs", "1", "--device", "cpu", "--dtype", "float32"]
    assert main.answer(["train", "--data", "play.txt", "--preset", "chat", "--init-from", "base", *flags]) == 0
    assert set(asked[2:]) == {(None, tokenizer.eos_token_id)}


def test_a_resumed_run_is_the_same(capsys):
    short = [*FLAGS, "--train.max_steps", "3"]
    assert main.answer(["train", *FLAGS, "--out", "whole"]) == 0
    assert main.answer(["train", *short, "--out", "halves"]) == 0
    assert main.answer(["train", "--resume", "halves", "--train.max_steps", "6"]) == 0
    whole, halves = (Path(name, "tokenizer.json").read_bytes() for name in ("whole", "halves"))
    assert whole == halves


@pytest.mark.parametrize("lora", [[], ["--train.lora_rank", "2"]])
def test_a_run_from_a_model_of_byte_pairs(lora):
    save_base(GPT2Tokenizer(["t h", "th e", "Ċ Ċ", "Ġ t", "i t", "Ġ it"]))
    flags = ["--data", "play.txt", "--preset", "chat", "--init-from", "base", "--documents.val_size", "3"]
    flags += ["--train.epochs", "1", "--train.batch_size", "4", "--device", "cpu", "--dtype", "float32"]
    assert main.answer(["train", *flags, *lora, "--out", "run"]) == 0
    assert load_tokenizer("run/tokenizer.json").vocab_size == 263  # the vocabulary has not grown
    same_ids_there("run")


@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["train", "plan"])
def test_another_template_is_refused_by_name_and_never_run(plan, capsys):
    tokenizer = GPT2Tokenizer(["t h", "th e", "Ċ Ċ", "Ġ t", "i t", "Ġ it"])
    save_base(tokenizer.with_added([], {"chat_template": "{{ 7 * 191 }}"}))
    flags = ["--data", "play.txt", "--preset", "chat", "--init-from", "base", "--out", "run"]
    assert main.answer(["train", *flags, *plan]) == 2
    shown = capsys.readouterr().err
    assert "base has a chat template of its own, '{{ 7 * 191 }}'" in shown
    assert "1337" not in shown
    assert not Path("run").exists()


def test_the_presets_of_dialogues():
    def parsed(*flags: str) -> Train:
        return SettingsParser("train", Train).parse(list(flags))

    assert parsed("--init-from", "x", "--data", "shakespeare-dialogues").preset == "chat"
    assert parsed("--init-from", "x", "--data", "a.jsonl", "--documents.separate", "dialogues").preset == "chat"
    assert preset("chat").init_from == "gpt2"
    assert preset("chat-shakespeare").data.source == "shakespeare-dialogues"


TALKS = {
    "messages": ("x.jsonl", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    "an array": ("x.json", [{"utterances": [{"history": ["a"], "candidates": ["b"]}]}]),
    "PersonaChat": ("x.json", {"train": [], "valid": [{"utterances": [{"history": ["a"], "candidates": ["b"]}]}]}),
    "rows": ("x.ndjson", {"personality": [], "history": ["a"], "candidates": ["b"]}),
    "ConvAI2": ("x.json", [{"dialog": [{"sender": "a", "text": "a"}, {"sender": "b", "text": "b"}]}]),
}


@pytest.mark.parametrize("form", TALKS)
def test_dialogues_choose_their_preset_or_are_told_of_it(form, capsys):
    """With a model to start from, it is chat; without one, two presets would fit."""
    name, content = TALKS[form]
    Path(name).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def chosen(*flags: str) -> str:
        return SettingsParser("train", Train).parse(["--data", name, *flags]).preset

    assert chosen("--init-from", "x") == "chat"
    assert chosen("--init-from", "x", "--documents.text_field", "summary") == "finetune-documents"
    assert chosen("--init-from", "x", "--documents.separate", "on") == "finetune-documents"
    pair = ("--documents.prompt_field", "q", "--documents.completion_field", "a")
    assert chosen("--init-from", "x", *pair) == "finetune-documents"
    for command in ("train", "quickstart"):
        assert main.answer([command, "--data", name, "--out", "run"]) == 2
        shown = capsys.readouterr().err
        assert f"{name} holds dialogues, and these settings would read it as documents" in shown
        assert f"minigpt train --preset chat --data {name}" in shown
        assert "--preset chat-shakespeare" in shown


def test_records_with_a_text_are_documents():
    record = {"text": "a story", "messages": [{"role": "user", "content": "a"}]}
    for content in (record, {"text": "a story", "dialog": []}, {"prompt": "a", "history": 3}):
        Path("x.jsonl").write_text(json.dumps(content) + "\nbroken", encoding="utf-8")
        assert (
            SettingsParser("train", Train).parse(["--data", "x.jsonl", "--init-from", "x"]).preset
            == "finetune-documents"
        )


def test_a_plan_reads_the_dialogues(capsys):
    assert main.answer(["train", *FLAGS, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
