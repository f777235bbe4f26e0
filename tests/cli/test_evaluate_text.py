"""`minigpt evaluate-text` as people type it: numbers by hand or by other means, and what it says of mistakes."""

import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from minigpt.cli import evaluate_text as command
from minigpt.cli.parser import SettingsParser
from minigpt.cli.settings import EvaluateText
from minigpt.config import GPTConfig
from minigpt.errors import MiniGPTError, TextNote
from minigpt.evaluation.loss import sequence_log_prob
from minigpt.formats.run_directory import save_run
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer

TRAINING = "the rain in Spain stays mainly in the plain, and nobody knows why it does"
TEXTS = ["a b a b a b", "in Spain stays mainly, a b"]
BLOCK_SIZE = 13
Evaluate = Callable[..., list[dict[str, Any]]]


def settings(*arguments: str) -> EvaluateText:
    return SettingsParser("evaluate-text", EvaluateText).parse(list(arguments))


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """The columns that --json prints."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        command.answer(settings(*arguments, "--json"))
        return json.loads(capsys.readouterr().out)["files"]

    return run


@pytest.fixture
def texts() -> str:
    Path("texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    Path("training.txt").write_text(TRAINING, encoding="utf-8")
    return "texts.txt"


def from_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def random_model(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> GPT:
    """What every --model loads."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=BLOCK_SIZE, n_layer=2, n_head=1, n_embd=7)).eval()
    monkeypatch.setattr(command, "load", lambda *_: (model, tokenizer))
    return model


def test_a_model_is_found_by_its_folder(evaluate):
    """By the real `load`."""
    tokenizer = CharTokenizer.from_text("abc")
    torch.manual_seed(3)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=BLOCK_SIZE, n_layer=2, n_head=1, n_embd=7)).eval()
    save_run(model, tokenizer, Path("saved"))
    Path("t.txt").write_text("abcab", encoding="utf-8")
    (found,) = evaluate("t.txt", "--model", "saved")
    expected = math.exp(-sequence_log_prob(model, tokenizer.encode("abcab")) / 4)
    assert found["models"][0]["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_variety_by_hand(texts, evaluate):
    (found,) = evaluate(texts)
    assert (found["texts"], found["blank"]) == (2, 0)
    assert found["words_per_text"] == (6 + 7) / 2  # the comma is one
    assert found["characters_per_text"] == sum(map(len, TEXTS)) / 2
    assert found["distinct_1"] == 7 / 13
    assert found["distinct_2"] == 7 / 11  # ab ba | in-Spain .. mainly-, ,-a; a-b was there
    assert found["repeated_4"] == pytest.approx((1 / 3 + 0) / 2)


def test_copies_by_hand(texts, evaluate):
    (found,) = evaluate(texts, "--training-data", "training.txt")
    copied = found["copied"]
    assert copied["longest_text"] == "in Spain stays mainly"
    assert (copied["longest_words"], copied["longest_characters"], copied["longest_in"]) == (4, 21, 2)
    assert copied["mean_longest_words"] == (0 + 4) / 2
    assert (copied["share_8"], copied["share_13"], copied["whole"]) == (None, None, 0)  # no text has eight words


def test_a_copy_of_the_training_set_is_called_so(evaluate, capsys):
    lines = [" ".join(f"w{line}x{at}" for at in range(53)) for line in range(3)]
    Path("training.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    Path("copy.txt").write_text(f"new {lines[1]}\n{lines[2]}", encoding="utf-8")
    (found,) = evaluate("copy.txt", "--training-data", "training.jsonl")
    assert found["copied"]["share_13"] == (41 + 41) / (42 + 41)  # only the 13-gram with "new" is new
    assert found["copied"]["share_8"] == (46 + 46) / (47 + 46)
    assert (found["copied"]["longest_words"], found["copied"]["longest_in"], found["copied"]["whole"]) == (53, 1, 1)
    command.answer(settings("copy.txt", "--training-data", "training.jsonl"))
    assert "copy.txt, text 1, copies 53 words: memorised:\n    w1x0 w1x1" in capsys.readouterr().out


LONG = " ".join(f"w{at}" for at in range(17))


@pytest.mark.parametrize("kind", ["generate", "marked", "jsonl", "csv", "stdin json"])
def test_a_copy_is_named_by_its_place_in_the_file(kind, evaluate, monkeypatch):
    """Blank texts before it count: the number is that of the record, not of those that are measured."""
    Path("training.txt").write_text(LONG, encoding="utf-8")
    said = ["  ", "short one", "", "another", LONG, " "]
    answer = json.dumps({"completions": [{"completion": text} for text in said]})
    name = {"generate": "t.json", "marked": "t.json", "jsonl": "t.jsonl", "csv": "t.csv"}.get(kind, "-")
    match kind:
        case "generate":
            Path(name).write_text(answer, encoding="utf-8")
        case "marked":  # as PowerShell writes what a program prints
            Path(name).write_text(answer, encoding="utf-8-sig")
        case "jsonl":
            Path(name).write_text("\n".join(json.dumps({"text": text}) for text in said), encoding="utf-8")
        case "csv":
            Path(name).write_text("text,n\n" + "\n".join(f'"{text}",1' for text in said), encoding="utf-8")
        case _:
            from_stdin(monkeypatch, answer.encode())
    (found,) = evaluate(name, "--training-data", "training.txt")
    assert (found["copied"]["longest_in"], found["texts"], found["blank"]) == (5, 3, 3)


@pytest.mark.parametrize("named", ["file", "folder"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "pairs", "messages", "chat.json"])
def test_whatever_can_be_learned_is_compared(kind, named, evaluate):
    """A file that `train` learns, by its name or in a folder beside others, hides no copy."""
    Path("data").mkdir()
    for name in ("blank.txt", "notes.md"):
        Path("data", name).write_text("\n" if name == "blank.txt" else "a line", encoding="utf-8")
    turns = [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": LONG}]
    name, content = {
        "txt": ("t.txt", LONG),
        "jsonl": ("t.jsonl", json.dumps({"text": LONG})),
        "csv": ("t.csv", f"text,label\n{LONG},1"),
        "pairs": ("t.jsonl", json.dumps({"question": "tell me", "said": LONG})),
        "messages": ("t.jsonl", json.dumps({"messages": turns})),
        "chat.json": ("t.json", json.dumps([{"messages": turns}])),
    }[kind]
    Path("data", name).write_text(content, encoding="utf-8")
    Path("copied.txt").write_text(LONG, encoding="utf-8")
    source = f"data/{name}" if named == "file" else "data"
    field = ["--text-field", "said"] if kind == "pairs" else []
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        (found,) = evaluate("copied.txt", "--training-data", source, *field)
    if name.endswith(".json") and named == "folder":  # it is mostly settings there
        assert [str(note.message) for note in notes] == ["data; 1 other file not read: .json"]
    else:
        assert not notes
        assert (found["copied"]["longest_words"], found["copied"]["whole"]) == (17, 1)


def test_what_is_not_read_in_a_folder_of_texts_is_told(evaluate):
    Path("outs").mkdir()
    Path("outs/a.txt").write_text("a b", encoding="utf-8")
    Path("outs/b.json").write_text(ANSWER.decode(), encoding="utf-8")
    with pytest.warns(TextNote, match=r"outs: 1 document, each a file; 1 other file not read: \.json"):
        evaluate("outs")


@pytest.mark.parametrize("kind", ["generate", "jsonl", "csv", "stdin text", "stdin json"])
def test_every_form_is_read_alike(kind, texts, evaluate, monkeypatch):
    answer = json.dumps({"completions": [{"text": "Once: " + text, "completion": text} for text in TEXTS]})
    expected = evaluate(texts)[0]
    arguments = ["other"]
    match kind:
        case "generate":
            arguments = ["other.json"]
            Path("other.json").write_text(answer, encoding="utf-8")
        case "jsonl":
            arguments = ["other.jsonl", "--text-field", "said"]
            rows = [json.dumps({"n": "x", "said": text}) for text in TEXTS]
            Path("other.jsonl").write_text("\n".join(rows), encoding="utf-8")
        case "csv":
            arguments = ["other.csv"]
            Path("other.csv").write_text("text\n" + "\n".join(f'"{text}"' for text in TEXTS), encoding="utf-8")
        case _:
            arguments = ["-"]
            from_stdin(monkeypatch, ("\n".join(TEXTS) if kind == "stdin text" else answer).encode())
    (found,) = evaluate(*arguments)
    assert {**found, "file": ""} == {**expected, "file": ""}


@pytest.mark.parametrize("kind", ["characters", "gpt2"])
def test_perplexity_is_the_exponential_of_the_mean_surprise(kind, evaluate, monkeypatch):
    """By a loop in float64. GPT-2 opens each text with its own token, so that the first is predicted too."""
    lines = ["abca", "bc", "a", "ccab" * 7]  # the last is longer than the context: it is read in two windows or three
    Path("t.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = CharTokenizer.from_text("abc") if kind == "characters" else GPT2Tokenizer(["c a"])
    model = random_model(tokenizer, monkeypatch)
    surprises, characters = [], 0
    for line in lines:
        ids = ([] if kind == "characters" else [tokenizer.bos_token_id]) + tokenizer.encode(line)
        characters += len(line) - (kind == "characters")
        for start in range(0, len(ids) - 1, BLOCK_SIZE):
            with torch.no_grad():
                logits = model(torch.tensor([ids[start : start + BLOCK_SIZE]]))[0].double()
            targets = ids[start + 1 : start + BLOCK_SIZE + 1]
            surprises += [-row.log_softmax(-1)[target].item() for row, target in zip(logits, targets)]  # noqa: B905
    (found,) = evaluate("t.txt", "--model", "one", "--model", "two")
    assert [measured["model"] for measured in found["models"]] == ["one", "two"]
    for measured in found["models"]:
        assert measured["tokens"] == len(surprises)
        assert measured["perplexity"] == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-5)
        assert measured["bits_per_character"] == pytest.approx(sum(surprises) / math.log(2) / characters, rel=1e-5)


def test_what_may_take_minutes_shows_how_far_it_is(texts, evaluate, monkeypatch):
    """Copies are looked for in all documents, and a model reads each text alone."""
    random_model(CharTokenizer.from_text(" abcdefghijklmnopqrstuvwxyz"), monkeypatch)
    Path("training.txt").write_text("some\n\nother\n\ntexts", encoding="utf-8")
    Path("t.txt").write_text("abc\ndef", encoding="utf-8")
    shown = []

    class Bar(tqdm):
        def update(self, n=1):
            shown.append((self.unit, self.n + n, self.total))
            return super().update(n)

    monkeypatch.setattr(
        command, "tqdm", lambda items, **told: Bar(items, **told | {"delay": 0, "mininterval": 0, "disable": False})
    )
    evaluate("t.txt", "--model", "one", "--training-data", "training.txt")
    assert shown.count(("text", 2, 2)) == 2  # as what is looked for, and by the model
    assert ("document", 1, 1) in shown


def test_references(texts, evaluate):
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu: pip install 'minigpt-torch[metrics]'")
    references = ["a b c a b a", "in Spain stays nothing, a b"]
    Path("references.txt").write_text("\n".join(references), encoding="utf-8")
    (found,) = evaluate(texts, "--reference", "references.txt")
    assert found["bleu"] == sacrebleu.corpus_bleu(TEXTS, [references]).score > 0
    assert found["chrf"] == sacrebleu.corpus_chrf(TEXTS, [references]).score > 0


def test_the_table_has_a_column_a_file_and_fits_eighty(texts, capsys, monkeypatch):
    random_model(CharTokenizer.from_text("".join(TEXTS)), monkeypatch)
    names = [f"{texts[:5]}-{number}-of-a-long-name.txt" for number in range(5)]
    for number, name in enumerate(names):
        Path(name).write_text("\n".join([*TEXTS, "a"][: 1 + number % 3]), encoding="utf-8")
    command.answer(settings(*names, "--training-data", "training.txt", "--model", "m", "--model", "n"))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert [row.split()[1:] for row in out.splitlines() if row.startswith("texts  ")] == [list("1231"), ["2"]]
    assert len(re.findall(r"^perplexity, 2 +\d+\.\d\d", out, re.MULTILINE)) == 2
    assert "perplexity, 1: under m\nperplexity, 2: under n\n" in out
    assert re.search(r"^13-grams copied( +-){4}$", out, re.MULTILINE)


def test_columns_of_files_of_one_name_are_told_apart(texts, capsys):
    for folder in ("before", "after"):
        Path(folder).mkdir()
        Path(folder, "t.txt").write_text("a b", encoding="utf-8")
    command.answer(settings("before/t.txt", "after/t.txt", texts))
    assert capsys.readouterr().out.splitlines()[0].split() == ["before/t.txt", "after/t.txt", "texts.txt"]


@pytest.mark.parametrize(
    ("content", "arguments", "what"),
    [
        ("", "t.txt", "there are no documents in t.txt"),
        ("  \n\n \t\n", "t.txt", "there are no documents in t.txt: all 1 are blank"),
        ("a b", "missing.txt", "there is no file or folder missing.txt"),
        ("a b", "t.txt --training-data nowhere.txt", "there is no corpus, file or folder named 'nowhere.txt'"),
        ("a b", "t.txt --training-data nowhere.jsonl", "there is no file or folder nowhere.jsonl"),
        ("a\nb", "t.txt --reference one.txt", "2 texts and 1 reference are no pairs"),
        ("a\nb", "t.txt --text-field said", "--text-field said is a field of records, and none are read here"),
        ("a", "t.txt --training-data empty", "there is no text in empty"),
        ("a", "- -", "- is given twice"),
        ("a", "- --reference -", "- is given twice"),
        ("a", "x.json", 'x.json has no list "completions"'),
        ("a", "y.json", "all 2 completions in y.json are blank"),
        ("a", "one.txt --reference z.json", "1 of the texts in z.json are blank"),
        ("a", "t.txt --model m", "no text in t.txt has a second token for m to predict"),
    ],
)
def test_mistakes_are_two_lines(content, arguments, what, monkeypatch):
    random_model(CharTokenizer.from_text("ab \n"), monkeypatch)
    Path("t.txt").write_text(content, encoding="utf-8")
    Path("one.txt").write_text("only one", encoding="utf-8")
    Path("empty").mkdir()
    Path("empty/t.txt").write_text(" \n", encoding="utf-8")
    Path("x.json").write_text('{"completions": [{"completion": "a"}, {"text": "b"}]}', encoding="utf-8")
    Path("y.json").write_text('{"completions": [{"completion": ""}, {"completion": " "}]}', encoding="utf-8")
    Path("z.json").write_text('{"completions": [{"completion": "a"}, {"completion": ""}]}', encoding="utf-8")
    with pytest.raises(MiniGPTError) as caught:
        command.answer(settings(*arguments.split()))
    assert what in caught.value.what
    assert caught.value.how


def test_an_answer_that_a_shell_wrote_in_utf_16_is_to_be_saved_as_a_text_in_it_is():
    """As PowerShell's `>` does: what `generate --json` printed is nowhere to be fetched again."""
    advice = {}
    for name in ("t.txt", "t.json"):
        Path(name).write_text('{"completions": [{"completion": "a"}]}', encoding="utf-16")
        with pytest.raises(MiniGPTError, match=f"{name} is not UTF-8 text: it starts with .* UTF-16") as caught:
            command.answer(settings(name))
        advice[name] = caught.value.how
    assert advice["t.json"] == advice["t.txt"]


ANSWER = b'{"prompts": ["a"], "completions": [{"completion": "b"}]}\n'


@pytest.mark.parametrize(
    "content",
    [b"", b" \n", b"\xff\xfe", b'{"completions": []}', b'{"a": ', ANSWER + ANSWER, ANSWER[:-9], b'[{"text": "a"}]',
     b'{"text": "a b"}\n{"text": "c"}\n', b'\n [\n {"text": "a"},', b'{"a": 1, "a": 2}'],
)  # fmt: skip
def test_standard_input_is_named_in_its_errors(content, monkeypatch):
    """Several answers, one that is cut off, and records are no texts: their braces would count as words."""
    from_stdin(monkeypatch, content)
    with pytest.raises(MiniGPTError) as caught:
        command.read_texts("-", None)
    assert "standard input" in str(caught.value)
    assert "input.txt" not in str(caught.value)


@pytest.mark.parametrize("form", ["array", "lines"])
def test_records_in_json_are_read_as_elsewhere(evaluate: Evaluate, form: str) -> None:
    records = [json.dumps({"said": text, "id": 7}) for text in TEXTS]
    content = f"[{', '.join(records)}]" if form == "array" else "\n".join(records)
    Path("records.json").write_text(content, encoding="utf-8")
    Path("records.jsonl").write_text("\n".join(records), encoding="utf-8")
    for flags in ([], ["--text-field", "said"]):
        (found,), (same,) = evaluate("records.json", *flags), evaluate("records.jsonl", *flags)
        assert found == same | {"file": "records.json"}
        assert found["texts"] == 2


def test_the_answer_of_generate_has_no_fields(evaluate: Evaluate) -> None:
    Path("answer.json").write_text(json.dumps({"completions": [{"completion": "a b"}]}), encoding="utf-8")
    assert evaluate("answer.json")[0]["texts"] == 1
    with pytest.raises(MiniGPTError, match="none are read here"):
        evaluate("answer.json", "--text-field", "completion")
