"""The token that ends a document is no text, and its name in a text is no token: in every command, unless asked for."""

import json
import math
import shlex
from pathlib import Path

import pytest
import torch

from minigpt import cli
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.config import GPTConfig
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.run_directory import save_run
from minigpt.formats.tokenizer_files import save_hf_tokenizer
from minigpt.lora import LoRAConfig, add_lora
from minigpt.model import GPT
from minigpt.tokenizers import END_OF_TEXT, AddedToken, CharTokenizer, GPT2Tokenizer
from minigpt.training import loop
from tests.conftest import random_model

pytestmark = pytest.mark.filterwarnings("default::minigpt.errors.TextNote")  # as outside of tests, where notes are said

NOTE = "note: <|endoftext|> is read as text; --special reads it as the token"
SPELLED = "the<|endoftext|>you"
PROMPTS = "--prompt the --prompt you"


@pytest.fixture(scope="module")
def ending(tmp_path_factory) -> Path:
    """A model that ends documents: of what it writes, every other token or so is the one that does."""
    tokenizer = GPT2Tokenizer(["t h", "th e", "Ġ the", "y o", "yo u"])
    model = random_model(GPTConfig(tokenizer.vocab_size, block_size=67, n_layer=2, n_head=1, n_embd=7), 5)
    with torch.no_grad():
        model.wte.weight[:, 0] = 0
        model.wte.weight[tokenizer.eos_token_id, 0] = 0.6
        model.ln_f.bias[0] = 6
    path = tmp_path_factory.mktemp("ending") / "run"
    save_run(model, tokenizer, path)
    return path


def said(line: str, model: Path, capsys) -> tuple[str, str]:
    words = shlex.split(line.replace("{model}", f"--model {model}"))
    capsys.readouterr()
    assert run(words) == 0
    return capsys.readouterr()


# --- what is shown


@pytest.mark.parametrize(
    "line",
    [
        "generate {model} --prompt the --seed 3 --max-new-tokens 40",
        f"generate {{model}} {PROMPTS} --seed 3 --max-new-tokens 40",
        f"generate {{model}} {PROMPTS} --seed 3 --max-new-tokens 40 --json",
        f"generate {{model}} {PROMPTS} --max-new-tokens 7 --strategy beam --num-beams 3",
    ],
    ids=["streamed", "batch", "json", "beams"],
)
def test_generate_shows_the_end_of_a_document_only_if_asked(line, ending, capsys):
    shown, _ = said(f"{line} --show-special", ending, capsys)
    assert END_OF_TEXT in shown
    assert said(line, ending, capsys)[0] == shown.replace(END_OF_TEXT, "") or "tokens_per_second" in shown
    if "--json" in line:
        hidden = json.loads(said(line, ending, capsys)[0])["completions"]
        rows = json.loads(shown)["completions"]
        assert any(END_OF_TEXT in row["completion"] for row in rows)
        for row, other in zip(rows, hidden, strict=True):
            assert {key: other[key] for key in ("text", "completion")} == {
                key: row[key].replace(END_OF_TEXT, "") for key in ("text", "completion")
            }
            assert (row["token_ids"], row["finish_reason"]) == (other["token_ids"], other["finish_reason"])


@pytest.mark.parametrize(
    "line",
    [
        "next {model} --prompt the --bos --steps 5 --json",
        f"compare {{model}} {PROMPTS} --seed 3 --max-new-tokens 40 --json",
        "inspect steps {model} the -n 40",
        "inspect beams {model} the -n 7",
    ],
)
def test_nobody_else_shows_it_in_a_text(line, ending, capsys):
    out, _ = said(line, ending, capsys)
    if "--json" in line:
        answer = json.loads(out)
        assert answer.get("steps") or answer["completions"]
        for row in answer.get("steps", []) + answer.get("completions", []):
            assert END_OF_TEXT not in row.get("text", "") + row.get("completion", "")
    else:  # the table of steps calls it by its name; the text that they make stands below
        assert END_OF_TEXT not in (out if "beams" in line else out.splitlines()[-1])


def test_completions_are_measured_without_it(ending, capsys):
    out, _ = said(f"generate {{model}} {PROMPTS} --seed 3 --max-new-tokens 40 --json", ending, capsys)
    rows = json.loads(out)["completions"]
    assert any(row["finish_reason"] == "eos" and row["completion"].strip() for row in rows)
    Path("out.json").write_text(out)
    Path("bare.jsonl").write_text("".join(json.dumps({"text": row["completion"]}) + "\n" for row in rows))
    command = "evaluate-text {file} {model} --json"
    first, second = (
        json.loads(said(command.replace("{file}", file), ending, capsys)[0])["files"][0]["models"]
        for file in ("out.json", "bare.jsonl")
    )
    assert first == second


def test_samples_of_a_run_are_text(ending, capsys, monkeypatch):
    monkeypatch.setattr(loop, "SAMPLE_TOKENS", 200)  # as it is outside the tests
    texts = [f"the you {word}" for word in ("the", "you", "they", "her", "yes", "oh", "tea")]
    Path("documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said(
        f"train --init-from {ending} --data documents.jsonl --out tuned --train.epochs 2 --documents.train_size 5 "
        "--documents.val_size 2 --documents.max_length 11 --train.batch_size 5 --json", ending, capsys,
    )  # fmt: skip
    samples = Path("tuned/samples.txt").read_text()
    assert samples.count("--- step") == 2
    assert END_OF_TEXT not in samples


# --- what is read

LOG = "you: the\nher: {}\n\nher: you\nyou: oh, tea\n"  # two dialogues
READING = {
    "generate": f"generate {{model}} --prompt '{SPELLED}' --max-new-tokens 1 --json",
    "generate several": f"generate {{model}} --prompt '{SPELLED}' --prompt '{SPELLED}' --max-new-tokens 1 --json",
    "generate --ban": f"generate {{model}} --prompt the --ban '{SPELLED}' --max-new-tokens 1",
    "compare": f"compare {{model}} --prompt '{SPELLED}' --seeds 1 --max-new-tokens 1",
    "next": f"next {{model}} --prompt '{SPELLED}'",
    "score": f"score {{model}} '{SPELLED}' '{SPELLED}'",
    "tokenize": f"tokenize {{model}} '{SPELLED}'",
    "eval": "eval {model} --data spelled.txt",
    "evaluate-text": "evaluate-text {model} spelled.txt",
    "evaluate-chat": "evaluate-chat {model} --data log.txt --max-new-tokens 2 --history 0 1",
    "inspect ablate": f"inspect ablate {{model}} '{SPELLED}' --sweep mlps",
    "inspect attn": f"inspect attn {{model}} '{SPELLED}'",
    "inspect beams": f"inspect beams {{model}} '{SPELLED}' -n 1",
    "inspect embed": f"inspect embed {{model}} pca '{SPELLED} the e o'",
    "inspect heads": f"inspect heads {{model}} '{SPELLED}'",
    "inspect lens": f"inspect lens {{model}} '{SPELLED}'",
    "inspect loss": f"inspect loss {{model}} '{SPELLED}'",
    "inspect next": f"inspect next {{model}} '{SPELLED}'",
    "inspect patch": f"inspect patch {{model}} --clean '{SPELLED}' --corrupt 'you{END_OF_TEXT}the' --token e "
    "--against o",
    "inspect steps": f"inspect steps {{model}} '{SPELLED}' -n 1",
    "inspect tokens": f"inspect tokens {{model}} '{SPELLED}'",
    "inspect why": f"inspect why {{model}} '{SPELLED}'",
}


def test_every_view_that_reads_a_text_is_here():
    assert {name.split()[1] for name in READING if name.startswith("inspect")} == VIEWS.keys() - {
        "size",
        "arch",
        "runs",
        "temperature",
    }


@pytest.mark.parametrize("name", READING)
def test_a_name_in_a_text_is_text_and_that_is_said_once(name, ending, capsys):
    Path("spelled.txt").write_text(f"{SPELLED}\n\n{SPELLED}\n")
    Path("log.txt").write_text(LOG.format(SPELLED))
    assert said(READING[name], ending, capsys)[1].count(NOTE) == 1
    plain = READING[name].replace(END_OF_TEXT, "!")
    Path("spelled.txt").write_text("the you the you")
    Path("log.txt").write_text(LOG.format("you"))
    assert "is read as text" not in said(plain, ending, capsys)[1]


@pytest.mark.parametrize("name", READING)
def test_asked_for_it_is_the_token(name, ending, capsys):
    Path("spelled.txt").write_text(f"{SPELLED}\n\n{SPELLED}\n")
    Path("log.txt").write_text(LOG.format(SPELLED))
    out, err = said(f"{READING[name]} --special", ending, capsys)
    assert "is read as text" not in err
    if name in ("score", "tokenize", "inspect tokens", "inspect loss"):
        assert END_OF_TEXT in out  # by its name, as one token
    if name == "generate":
        (row,) = json.loads(out)["completions"]
        assert len(row["token_ids"]) == 4
        assert row["text"] == "theyou" + row["completion"]


def test_only_one_place_reads_what_people_type():
    for path in Path(cli.__file__).parent.glob("*.py"):
        assert "tokenizer.encode(" not in path.read_text(encoding="utf-8"), f"{path}: minigpt.tokenizers.read"


def test_a_tokenizer_without_special_tokens_is_asked_in_vain(failing, ending):
    save_run(
        GPT(GPTConfig(vocab_size=3, block_size=7, n_layer=1, n_head=1, n_embd=2)), CharTokenizer("abc"), Path("abc")
    )
    assert "--special asks for tokens" in failing(["next", "--model", "abc", "--prompt", "a", "--special"])


# --- two commands, one question


@pytest.mark.parametrize("flags", ["", "--bos", "--no-bos"])
def test_what_comes_next_is_one_question(reference, flags, capsys):
    model = reference.folder
    table = json.loads(said(f"next {{model}} --prompt 'the later' --top 7 --json {flags}", model, capsys)[0])
    view = json.loads(said(f"inspect next {{model}} 'the later' --top 7 --json {flags}", model, capsys)[0])
    best = [int(token_id) for token_id in view["numbers"]["best"]["values"]]
    assert [row["id"] for row in table["candidates"]] == best
    (logits,) = (view["numbers"]["logit"]["values"],)
    assert [row["logit"] for row in table["candidates"]] == pytest.approx([logits[n] for n in best], abs=1e-4)
    if flags != "--bos":  # which generate never puts in front
        for line in ("generate {model} --prompt 'the later' --strategy greedy --max-new-tokens 1 --json",):
            assert json.loads(said(line, model, capsys)[0])["completions"][0]["token_ids"][-1] == best[0]
        steps = json.loads(said("inspect steps {model} 'the later' -n 1 --json", model, capsys)[0])
        assert steps["numbers"]["chosen"]["values"] == best[:1]


@pytest.mark.parametrize("flags", ["", "--bos", "--no-bos"])
def test_how_probable_a_text_is_is_one_question(reference, flags, capsys):
    (row,) = json.loads(said(f"score {{model}} 'the later you' --json {flags}", reference.folder, capsys)[0])["results"]
    view = json.loads(said(f"inspect loss {{model}} 'the later you' --json {flags}", reference.folder, capsys)[0])
    assert len(view["numbers"]["loss"]["values"]) == row["num_tokens"]
    assert -sum(view["numbers"]["loss"]["values"]) == pytest.approx(row["log_prob"], abs=1e-3)


@pytest.mark.parametrize("separate", ["on", "off"])
def test_a_training_says_that_it_learns_the_name_as_text(ending, capsys, separate):
    Path("spelled.txt").write_text("".join(f"{SPELLED} {n}\n\n" for n in range(99)))
    sizes = "--documents.train_size 50 --documents.val_size 9 --documents.max_length 13 --train.epochs 1"
    rest = sizes if separate == "on" else "--train.max_steps 1 --train.warmup_steps 0"
    line = f"train --init-from {ending} --data spelled.txt --documents.separate {separate} {rest} --device cpu"
    err = said(f"{line} --out {separate}", ending, capsys)[1]
    how = "put each text into a record of its own (.jsonl) without it"
    assert err.count(f"note: <|endoftext|> is read as text; {how}") == 1
    assert "--special" not in err
    if separate == "on":
        err = said(f"eval --model {separate} --data spelled.txt", ending, capsys)[1]
        assert err.count(NOTE) == 1
        assert "is read as text" not in said(f"eval --model {separate} --data spelled.txt --special", ending, capsys)[1]


@pytest.mark.parametrize(("text", "characters"), [(SPELLED, 3), (f"the{END_OF_TEXT}you you{END_OF_TEXT}", 7)])
def test_bits_are_spread_over_what_is_text(ending, capsys, text, characters):
    """The first token is not predicted, and the end of a text is no text; all characters are ASCII."""
    Path("spelled.txt").write_text(text)
    (row,) = json.loads(said(f"score {{model}} '{text}' --special --json", ending, capsys)[0])["results"]
    measured = json.loads(said("eval {model} --data spelled.txt --special --json", ending, capsys)[0])
    view = json.loads(said(f"inspect loss {{model}} '{text}' --special --json", ending, capsys)[0])["numbers"]
    expected = pytest.approx(-row["log_prob"] / math.log(2) / characters, abs=1e-4)
    assert measured["bits_per_character"] == expected
    assert view["bits_per_byte"]["values"] == expected


def test_an_end_alone_has_no_bits_a_character(ending, capsys):
    Path("spelled.txt").write_text(f"the{END_OF_TEXT}")
    for line in ("eval {model} --data spelled.txt", f"inspect loss {{model}} 'the{END_OF_TEXT}'"):
        assert "- bits" in said(f"{line} --special", ending, capsys)[0]
    assert "bits_per_byte" not in json.loads(said(f"{line} --special --json", ending, capsys)[0])["numbers"]


def test_how_a_text_is_cut_is_one_question(reference, capsys):
    rows = json.loads(said("tokenize {model} 'the later you' --json", reference.folder, capsys)[0])["tokens"]
    view = json.loads(said("inspect tokens {model} 'the later you' --json", reference.folder, capsys)[0])
    assert [token["id"] for token in view["tokens"]] == [row["id"] for row in rows]


@pytest.mark.parametrize("flags", [[], ["--special"]], ids=["", "--special"])
@pytest.mark.parametrize("command", ["generate", "next", "score", "tokenize", "inspect tokens", "inspect loss"])
def test_an_added_token_is_no_text_either_way_and_that_is_said_once(tmp_path, capsys, command, flags):
    """Other programs read [PAD] in a text as the token; here no text gives it."""
    tokenizer = GPT2Tokenizer(["t h", "th e"]).with_added([AddedToken("[PAD]"), AddedToken("[SEP]")], {})
    save_run(GPT(GPTConfig(tokenizer.vocab_size + 2, 67, 1, 1, 6)), tokenizer, tmp_path / "run")
    assert run([*command.split(), "the [PAD] the", "--model", str(tmp_path / "run"), *flags]) == 0
    err = capsys.readouterr().err
    assert err.count("note: [PAD] is read as text") == 1
    assert "--special" in err
    assert "[SEP]" not in err


CHAT = GPT2Tokenizer(["t h", "th e"])


@pytest.mark.parametrize(
    ("theirs", "flags", "code", "said"),
    [
        (CHAT.with_added([AddedToken("[PAD]")], {}), [], 0, "note: [PAD] is read as text"),
        (CHAT, [], 0, ""),
        (GPT2Tokenizer(["t h", "th a"]), [], 2, "error: run comes with the tokenizer"),
        (GPT2Tokenizer(["t h", "th a"]), ["--tokenizer", "run"], 0, ""),
        (None, [], 2, "error: the tokenizer in adapter is none that minigpt can reproduce"),
        (None, ["--tokenizer", "run"], 0, ""),
    ],
)
@pytest.mark.parametrize("command", ["generate", "next", "score", "inspect loss"])
def test_a_tokenizer_beside_an_adapter_is_the_one_that_it_was_trained_with(
    tmp_path, capsys, monkeypatch, command, theirs, flags, code, said
):
    """Its special tokens count, and one that gives other ids is refused."""
    monkeypatch.chdir(tmp_path)
    model = GPT(GPTConfig(CHAT.vocab_size + 2, 67, 1, 1, 6))
    save_run(model, CHAT, "run")
    add_lora(model, LoRAConfig(rank=2), seed=5)
    save_adapter(model, "adapter")
    if theirs is None:
        Path("adapter/tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unigram"}}')
    else:
        save_hf_tokenizer(theirs, "adapter", 67)
    for name in ("adapter", "adapter/adapter_model.safetensors"):
        line = [*command.split(), "the [PAD] the", "--model", "run", "--adapter", name, *flags]
        assert run(line) == code
        err = capsys.readouterr().err
        assert said in err
        assert ("read as text" in err) is ("read as text" in said)
        if code:
            assert "--tokenizer" in err


def test_a_ban_of_the_end_alone_is_refused(ending, failing):
    """It would be ignored, as by transformers; in a longer sequence it counts."""
    command = ["generate", "the", "--model", str(ending), "--special", "--max-new-tokens", "2"]
    what, how = failing([*command, "--ban", END_OF_TEXT]).splitlines()
    assert f"--ban of {END_OF_TEXT!r} alone would have no effect" in what
    assert "--min-new-tokens puts the end off" in how
    assert run([*command, "--ban", f"the{END_OF_TEXT}"]) == 0


def test_a_border_that_was_added_behind_the_vocabulary_is_called_so(failing):
    tokenizer = CharTokenizer("abc").with_added([AddedToken("<bos>")], {"bos_token": "<bos>"})
    save_run(random_model(GPTConfig(4, block_size=5, n_layer=1, n_head=1, n_embd=7), 5), tokenizer, "added")
    assert "--bos asks for a token of the vocabulary, and this model's was added behind it" in failing(
        ["score", "abc", "--model", "added", "--bos"]
    )
