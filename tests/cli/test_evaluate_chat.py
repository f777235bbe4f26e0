"""`minigpt evaluate-chat` as people type it: on what it measures, what it says, and what it refuses."""

import json
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minigpt.cli import evaluate_chat
from minigpt.cli.chat_report import markdown
from minigpt.cli.main import answer as run
from minigpt.data import dialogue_files, sources
from minigpt.errors import TextNote
from minigpt.evaluation import references
from minigpt.evaluation.comparison import mean_interval, permutation_p
from minigpt.evaluation.failures import MODES

NAMES = ("ANN", "BOB", "CID")
WORDS = "a hen ran at dawn; the red hat is on the mat. no man can see it, and she said so to me".split()
SMALL = """--model.n_layer 1 --model.n_head 1 --model.n_embd 7 --model.block_size 97 --train.max_steps 2
--train.warmup_steps 1 --train.batch_size 5"""
IN_STEPS = "--train.epochs 0 --train.warmup_ratio 0 --train.warmup_steps 1"
PARTLY = ("overlap", "gain", "repeated-4")  # measures of which some replies have no value
FEW = ["--max-new-tokens", "11", "--history", "0", "2", "--candidates", "3"]


def scenes(count: int, seed: int) -> str:
    """A play whose scenes have three to seven speeches, no two alike."""
    chance = np.random.default_rng(seed)
    text = ""
    for number in range(count):
        speeches = [
            f"{NAMES[place % len(NAMES)]}:\n{' '.join(chance.choice(WORDS, int(chance.integers(2, 6))))}\n\n"
            for place in range(int(chance.integers(3, 8)))
        ]
        text += f"SCENE {number + 1}\n\n{''.join(speeches)}"
    return text


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a play, a run that was trained on it, and one that was trained on its text."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "play.txt").write_text(scenes(31, seed=3))
    (folder / "other.txt").write_text(scenes(5, seed=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        line = f"train --data play.txt --tokenizer char --device cpu {SMALL}"
        assert run(f"{line} --documents.separate dialogues --documents.turns 2 --out run".split()) == 0
        assert run(f"{line} --out text".split()) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def evaluated(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert run(["evaluate-chat", "--model", "run", *FEW, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_measures_the_held_out_dialogues_as_eval_does(capsys):
    found = evaluated(capsys, "--replies", "1000")
    assert found.pop("data").startswith("held-out dialogues of ")
    assert run(["eval", "--model", "run", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert (found["dialogues"], found["turns"]) == (3, 2)
    assert found["measured"] == found["true_replies"]
    assert found["perplexity"] == pytest.approx(other["perplexity"], rel=1e-5)
    assert found["tokens"] == other["tokens"]
    again = evaluated(capsys, "--replies", "1000", "--data", "play.txt")
    assert again.pop("data") == "held-out dialogues of play.txt"
    assert again == found


@pytest.fixture
def learned_before(capsys) -> Callable[[str], list[str]]:
    """A function: what a command notes of what other models have learned."""

    def notes(line: str) -> list[str]:
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always", TextNote)
            assert run(line.split()) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "has learned" in line]

    return notes


def test_what_the_base_of_a_run_has_learned_is_not_held_out_in_silence(learned_before, monkeypatch):
    """As when the run was trained: it held out others of the same data."""
    for name, flags, change in (
        ("run", f"--documents.separate dialogues --documents.turns 2 {IN_STEPS}", "--seed 1"),
        ("text", "--train.warmup_steps 1", "--val-fraction 0.4"),
    ):
        line = f"train --init-from {name} --data play.txt --device cpu --train.max_steps 2 {flags}"
        measure = ["eval", "eval --data play.txt", *([f"evaluate-chat {' '.join(FEW)}"] if name == "run" else [])]
        for out, further in ((f"{name}-other", change), (f"{name}-same", "")):
            notes = learned_before(f"{line} {further} --out {out}")
            assert len(notes) == (further == change)
            for command in measure:
                assert learned_before(f"{command} --model {out}") == notes
    read, reads = evaluate_chat.read_dialogues, []
    for module in (evaluate_chat, sources):
        monkeypatch.setattr(module, "read_dialogues", lambda path: reads.append(path) or read(path))
    assert learned_before(f"evaluate-chat {' '.join(FEW)} --model run-other")
    assert len(reads) == 1
    assert not learned_before("eval --model text-other --split train")
    assert not learned_before(f"evaluate-chat {' '.join(FEW)} --model run-other --data other.txt")
    shutil.rmtree("run")
    assert not learned_before("eval --model run-other")  # nobody knows any more


@pytest.mark.parametrize("kind", ["file", "named"])
def test_dialogues_that_validated_and_have_moved_can_be_named(capsys, kind):
    """As in `eval`: else all that was trained on would be measured, without a word. A named source does not move."""
    validation = "other.txt" if kind == "file" else "verse-dialogues"
    line = f"train --data play.txt --val-data {validation} --tokenizer char --device cpu {SMALL}"
    separate = "--documents.separate dialogues --documents.train_size 0 --documents.val_size 0 --out moved"
    assert run(f"{line} {separate}".split()) == 0
    command = ["--replies", "7", "--model", "moved"]
    before = evaluated(capsys, *command, "--data", "play.txt")
    assert before["data"] == "held-out dialogues of play.txt"
    if kind == "named":
        return
    Path("other.txt").rename("new.txt")
    assert evaluated(capsys, *command, "--data", "play.txt", "--val-data", "new.txt") == before
    capsys.readouterr()
    assert run(["evaluate-chat", *FEW, *command, "--data", "play.txt", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["data"] == "all of play.txt: 31 dialogues"
    assert "validation data, does not exist any more: all of play.txt is measured" in " ".join(printed.err.split())
    assert run(["evaluate-chat", *FEW, *command]) == 2
    assert "name where it lies now: --data, or --val-data" in capsys.readouterr().err
    assert run(["evaluate-chat", *FEW, *command, "--data", "new.txt", "--val-data", "play.txt"]) == 2
    assert "leave --val-data out" in capsys.readouterr().err
    assert run(["evaluate-chat", *FEW, "--model", "run", "--val-data", "new.txt"]) == 2
    assert "--val-data new.txt is for a run whose" in capsys.readouterr().err


def test_other_dialogues_are_measured_whole_by_any_model(capsys):
    found = evaluated(capsys, "--data", "other.txt")
    assert (found["data"], found["dialogues"]) == ("all of other.txt: 5 dialogues", 5)
    assert run(["evaluate-chat", "--model", "text", "--data", "other.txt", *FEW, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["dialogues"] == 5
    assert plain["turns"] == 4  # the usual number, because the run has none
    assert plain["perplexity"] != found["perplexity"]


def test_eval_of_an_exported_run_says_what_measures_dialogues_and_no_more_than_is_known(failing):
    said = [{"role": role, "content": text} for role, text in (("user", "A hen ran."), ("assistant", "A hen."))]
    Path("talk.jsonl").write_text(f"{json.dumps({'messages': said})}\n" * 3)
    assert run(["export", "run", "exported"]) == 0
    first, second = failing(["eval", "--model", "exported", "--data", "talk.jsonl"]).splitlines()[-2:]
    assert "talk.jsonl holds dialogues, and exported is no run that was trained on any" in first
    advised = shlex.split(second.partition("minigpt ")[2])
    assert advised[:3] == ["evaluate-chat", "--model", "exported"]
    assert run([*advised, *FEW[:4], "--unknown", "skip"]) == 0


def test_what_a_source_holds_without_a_reply_or_to_train_on_is_said(capsys):
    Path("part.txt").write_text(scenes(3, seed=6) + "SCENE 4\n\nANN:\nA hen.\n")
    assert evaluated(capsys, "--data", "part.txt")["data"] == (
        "all of part.txt: 3 dialogues; 1 dialogue without a reply left out"
    )
    entry = {"personality": ["a red hat"], "utterances": [{"history": ["a hen"], "candidates": ["so", "no man"]}]}
    Path("chats.json").write_text(json.dumps({"train": [entry], "valid": [entry] * 3}))
    found = evaluated(capsys, "--data", "chats.json")
    assert found["dialogues"] == 3
    assert found["data"].startswith("what is there to validate of chats.json: 4 dialogues")


def test_the_numbers_are_those_of_the_texts(capsys):
    """Worked out again from the replies that it gives."""
    found = evaluated(capsys, "--data", "other.txt", "--seeds", "2", "--seed", "5")
    true, first, second = found["arms"]
    assert [arm["setting"] for arm in found["arms"]] == ["true replies", "sample temperature=0.8", "greedy"]
    assert [len(arm["replies"]) for arm in found["arms"]] == [found["measured"], *[2 * found["measured"]] * 2]
    assert all(reply["reply"] == reply["true_reply"] for reply in true["replies"])
    for arm in found["arms"]:
        for mode in MODES:
            assert arm["failures"][mode] == sum(mode in reply["failures"] for reply in arm["replies"])

    def by_dialogue(arm: dict) -> np.ndarray:
        rows = [(reply["dialogue"], reply["num_tokens"]) for reply in arm["replies"]]
        return np.array([np.mean([n for d, n in rows if d == own]) for own in sorted({d for d, _ in rows})])

    measure = second["measures"]["tokens"]
    assert {name: measure[name] for name in ("mean", "low", "high")} == pytest.approx(
        vars(mean_interval(by_dialogue(second), seed=5))
    )
    assert measure["p"] == permutation_p(by_dialogue(second), by_dialogue(first), seed=5)
    assert first["measures"]["tokens"]["difference_to_first"]["mean"] == 0
    greedy = [reply["reply"] for reply in second["replies"]]
    assert greedy[::2] == greedy[1::2]
    assert all(reply["num_tokens"] <= 11 for reply in first["replies"])
    assert [one["turns"] for one in found["coherence"]] == [0, 2]
    assert found["coherence"][0]["first"]["mean"] == pytest.approx(1 / 3)


def test_scores_are_those_of_the_libraries(capsys):
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu: pip install 'minigpt-torch[metrics]'")
    pytest.importorskip("nltk", reason="needs nltk: pip install 'minigpt-torch[metrics]'")
    found = evaluated(capsys, "--data", "other.txt")
    for arm in found["arms"][1:]:
        texts, truth = ([reply[name] for reply in arm["replies"]] for name in ("reply", "true_reply"))
        assert arm["whole"]["BLEU"] == sacrebleu.corpus_bleu(texts, [truth]).score
        assert arm["whole"]["chrF"] == sacrebleu.corpus_chrf(texts, [truth]).score
        meteor = references.meteor(texts, truth)
        assert arm["whole"][meteor.name] == pytest.approx(sum(meteor.each) / len(texts))
    assert len(found["signatures"]) == 3


def test_without_the_packages_the_rest_is_measured_and_that_is_said(monkeypatch, capsys):
    for package in ("sacrebleu", "nltk.translate.meteor_score"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run(["evaluate-chat", "--model", "run", *FEW, "--json"]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["arms"][1]["whole"]) == ["distinct-1", "distinct-2", "distinct-3"]
    (note,) = [line for line in err.splitlines() if line.startswith("note: BLEU and chrF need a package")]
    assert 'pip install "minigpt-torch[metrics]"' in note


def test_what_is_printed_fits_80_columns_and_what_is_written_has_it_all(capsys):
    arguments = ["--data", "other.txt", "--setting", "greedy", "--setting", "sample temperature=3"]
    for file in ("out/report.md", "out/report.png", "elsewhere.svg", "all.json"):
        arguments += ["-o", file]
    assert run(["evaluate-chat", "--model", "run", *FEW, *arguments]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    written = json.loads(Path("all.json").read_text())
    report = Path("out/report.md").read_text()
    assert report.startswith("# How run replies\n")
    assert "(report.png)" in report
    assert "elsewhere" not in report
    assert Path("out/report.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in Path("elsewhere.svg").read_text()
    for text in (out, report):
        assert "in 5 dialogues: too few to say much" in " ".join(text.split())
        for name in ("Coherence across turns", "Closeness and variety", "Settings compared", "Failures", *MODES):
            assert name in text
        assert f"{written['perplexity']:.3f}" in text
        assert f"{written['coherence'][1]['drop']['mean']:.3f}" in text
        mode, reply = next(
            (mode, reply) for mode in MODES for reply in written["arms"][1]["replies"] if mode in reply["failures"]
        )
        assert f"{mode}, greedy" in text
        assert f"ialogue {reply['dialogue']}, turn {reply['turn']}: " in text


def test_a_report_shows_what_was_said_as_it_is(capsys):
    """Whatever a model or a dialogue says is text in a report, and no Markdown."""
    found = evaluated(capsys, "--data", "other.txt", "--setting", "greedy")
    said = "# No heading\n```\n<img src=x>\n`````\n![no](picture)\n| no | table |\n\x1b[31mred"
    for reply in found["arms"][1]["replies"]:
        reply |= {"reply": said, "before": said, "failures": {"loop": "goes round: `*<b>*\x1b`"}}
    found |= {"model": "a*b*_c_<i>", "data": "all of [no](link) & ~~none~~"}
    found["arms"][1]["failures"]["loop"] = 3
    text = "\n".join(markdown(found, ["my picture (1).png"]))
    blocks = re.findall(r"^(`{3,})text\n(.*?)\n\1$", text, re.MULTILINE | re.DOTALL)
    assert [fence for fence, _ in blocks] == ["``````"] * 3
    assert "\x1b" not in text  # which a terminal would obey when it shows the file
    shown = said.replace("\x1b", r"\x1b")
    for _, block in blocks:
        assert block == "\n".join([*(f"> {line}" for line in shown.split("\n")), shown])
    outside = re.sub(r"^(`{3,})text\n(.*?)\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"(?<!\\)[<>~&]|(?<!\\)[*](?!\d)", outside) == []
    assert r"# How a\*b\*\_c\_\<i\> replies" in outside
    assert r"data: all of \[no\](link) \& \~\~none\~\~" in outside
    assert "](my%20picture%20%281%29.png)" in outside


def test_differences_say_over_how_many_dialogues_they_are(capsys):
    """Of replies of fewer than four words, nothing is known of four in a row."""
    short = ["--max-new-tokens", "7", "--setting", "sample temperature=1,1.5"]
    assert run(["evaluate-chat", "--model", "run", "--data", "other.txt", *FEW, *short, "-o", "all.json"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    found = json.loads(Path("all.json").read_text())
    for name, measure in found["arms"][2]["measures"].items():
        pairs = measure["difference_to_first"]["dialogues"]
        assert pairs == (5 if name not in PARTLY else pairs)
        told = f"Minus that of 1: over {pairs} of 5 dialogues, which have both"
        assert (told in out) == (pairs < 5) or name not in PARTLY
    assert found["arms"][2]["measures"]["repeated-4"]["difference_to_first"]["dialogues"] < 5


def test_the_source_is_read_once(capsys, monkeypatch):
    read = []
    monkeypatch.setattr(dialogue_files, "_from_file", lambda *given, real=dialogue_files._from_file: (
        read.append(given[0]), real(*given))[1])  # fmt: skip
    for arguments in ([], ["--data", "play.txt"], ["--data", "other.txt"]):
        read.clear()
        evaluated(capsys, *arguments)
        assert [Path(file).name for file in read] == [arguments[-1] if arguments else "play.txt"]


def test_one_dialogue_has_no_other_to_be_compared_with(capsys):
    Path("one.txt").write_text(scenes(1, seed=5))
    line = ["evaluate-chat", "--model", "run", "--data", "one.txt", "--max-new-tokens", "11", "--json"]
    assert run(line) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["coherence"] is None
    assert found["arms"][2]["measures"]["tokens"]["p"] is None
    assert "note: coherence is not measured: there is one dialogue" in err
    assert run([*line[:-1], "-o", "one.png", "-o", "one.md"]) == 0


@pytest.mark.parametrize(
    ("arguments", "what", "how"),
    [
        (["--model", "text"], "text is no run that was trained on dialogues", "--data shakespeare-dialogues"),
        (["--model", "run", "--candidates", "4"], "--candidates 4 replies of different dialogues", "from 2 to 3"),
        (["--model", "run", "--max-new-tokens", "97"], "--max-new-tokens 97 leaves no room for a turn", "lower"),
        (["--model", "run", "--max-new-tokens", "95"], "too long, before all", "lower --max-new-tokens"),
        (["--model", "run", "--data", "silent.txt"], "no dialogue in silent.txt has a reply", "another turn before"),
        (["--model", "run", "--data", "strange.txt"], "characters outside this tokenizer", "remove these documents"),
        (["--model", "run", "--data", "nothing.txt"], "there is no file or folder nothing.txt", "check the path"),
        (["--model", "run", "--history", "1", "-2"], "(1, -2) cannot be used", "must be numbers from 0 to 999,999"),
        (["--model", "run", "-o", "report.pdf"], "report.pdf ends in .pdf", ".md, .json, .png, .svg"),
        (
            ["--model", "run", "--setting", "greedy", "--setting", "sample", "--setting", "sample temperature=0.8"],
            "--setting 'sample' and 'sample temperature=0.8' are the same", "leave one of them out",
        ),
        *(
            (["--model", "run", "--setting", one, "--setting", other], "are the same, and nothing can differ", "leave")
            for one, other in (("sample", "sample top_k=0"), ("greedy", "sample temperature=0"), ("beam", "greedy"))
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(failing, arguments, what, how):
    Path("silent.txt").write_text("ANN:\nA hen.\n")
    Path("strange.txt").write_text("ANN:\nA hen.\n\nBOB:\nQuick! Zürich 7\n", encoding="utf-8")
    first, second = failing(["evaluate-chat", *arguments]).splitlines()[-2:]
    assert what in first
    assert how in second


def test_dialogues_that_have_changed_since_are_not_held_out(failing, capsys):
    config = Path("run/config.yaml")
    config.write_text(re.sub(r"source: .*play.txt", "source: play.txt", config.read_text()))
    Path("play.txt").write_text(scenes(31, seed=9))
    first, second = failing(["evaluate-chat", "--model", "run"]).splitlines()[-2:]
    assert "play.txt has changed since run was trained on it" in first
    assert "--data" in second
    assert evaluated(capsys, "--data", "play.txt")["data"] == "all of play.txt: 31 dialogues"
