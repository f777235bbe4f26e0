"""A student learns from the mean of its teachers' probabilities beside the text: gradient, run, refusals."""

import json
import math
import os
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt.cli.main import answer as command
from minigpt.config import PRESETS, GPTConfig, RunConfig, TrainConfig, read_yaml, updated
from minigpt.data.documents import Document, Documents
from minigpt.data.tokens import IGNORED
from minigpt.errors import CheckpointError, ConfigError, DivergenceError, Interrupted
from minigpt.formats.run_directory import RunDirectory, read_config, save_run
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from minigpt.training import loop, teachers
from minigpt.training.checkpoint import open_checkpoint
from minigpt.training.distributed import Processes
from minigpt.training.loop import gradients, replay, train
from minigpt.training.run import set_up
from minigpt.training.verify import compare

TEXTS = [f"{'abcdefg'[i % 7] * (1 + i % 5)} {i}" for i in range(31)]
TOKENIZER = CharTokenizer.from_text("\n" + "".join(TEXTS))  # 19 characters
SHAPE = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=11, n_layer=2, n_head=3, n_embd=15)
DOCUMENTS = Documents([Document(text[1:], prompt=text[:1]) for text in TEXTS], "31 texts", 0, 0)
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("no_plots")


def quiet(line):
    pass


def save(name, seed, tokenizer=TOKENIZER, **changes):
    """A run directory of a random model, whose weights are large enough to matter."""
    torch.manual_seed(seed)
    model = GPT(replace(SHAPE, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    save_run(model, tokenizer, name)
    return model


@pytest.fixture
def two():
    """Two teachers of other shapes: one with ids without text and a longer context."""
    save("a", 1, vocab_size=24, block_size=13, n_layer=1, n_head=1, n_embd=7)
    save("b", 2, n_layer=3, n_head=2, n_embd=10, bias=False, tie_weights=False)
    return ("a", "b")


def taught(names, **sections):
    first = RunConfig(
        model=SHAPE, device="cpu", dtype="float32", kernels="torch",
        train=TrainConfig(max_steps=20, batch_size=3, warmup_steps=2, eval_interval=5, save_interval=3, teachers=names),
    )  # fmt: skip
    return updated(first, sections)


def begun(config, data):
    return set_up(config, data, RunDirectory(Path("run")), Processes(), CPU, quiet, None)


def log_probs(model, ids):
    """The log-probabilities behind one document alone, in float64: (T, 19)."""
    scores = model(torch.tensor([ids]))[0][:, : TOKENIZER.vocab_size]
    return scores - scores.exp().sum(-1, keepdim=True).log()


def by_loop(student, models, batches, weight):
    """The two means, position by position, each document alone: -log p of the text, and mixed with the teachers'."""
    of_text = of_both = torch.zeros((), dtype=torch.float64)
    count = 0
    for batch in batches:
        places = torch.zeros_like(batch.inputs) if batch.positions is None else batch.positions
        for row in range(len(batch.inputs)):
            starts = [0] if batch.positions is None else [t for t, place in enumerate(places[row]) if place == 0]
            for start, stop in zip(starts, [*starts[1:], len(places[row])], strict=True):
                ids, wanted = batch.inputs[row, start:stop].tolist(), batch.targets[row, start:stop].tolist()
                own, theirs = log_probs(student, ids), [log_probs(model, ids).exp().detach() for model in models]
                for t, target in enumerate(wanted):
                    if target != IGNORED:
                        mean = sum(p[t] for p in theirs) / len(theirs)
                        of_text = of_text - own[t, target]
                        of_both = of_both - (1 - weight) * own[t, target] - weight * sum(mean * own[t])
                        count += 1
    return of_text / count, of_both / count


@pytest.mark.parametrize("batching", ["padded", "packed", "packed-masked", "text"])
@pytest.mark.parametrize("kernels", ["torch", "fast", "c"])
def test_the_gradient_is_that_of_a_loop_in_float64(two, corpus, batching, kernels):
    weight = 0.7
    more = {"kernels": kernels, "train": {"teacher_weight": weight, "accumulation_steps": 2, "batch_size": 5}}
    text = "\n".join(TEXTS * 3)
    data = replace(corpus, text=text) if batching == "text" else DOCUMENTS
    documents = {} if batching == "text" else {"documents": {"batching": batching}}
    run = begun(taught(two, **more, **documents), data)
    batches = list(run.micro_batches(0, 0, run.processes))
    assert batching == "text" or any((batch.targets == IGNORED).any() for batch in batches)
    states = torch.get_rng_state()
    loss, count = gradients(run, 0, 0, run.processes)
    assert torch.equal(torch.get_rng_state(), states)  # nothing is drawn for them
    exact = GPT(run.model.config).double()
    exact.load_state_dict(run.model.state_dict())
    models = [minigpt.load_model(name)[0].double() for name in two]
    of_text, of_both = by_loop(exact, models, batches, weight)
    of_both.backward()
    assert count == sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    assert loss.item() == pytest.approx(of_text.item(), abs=1e-5)  # what is recorded
    for mine, theirs in zip(run.model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernels", ["torch", "fast", "c"])
def test_a_weight_of_nothing_changes_nothing_to_the_bit(two, kernels):
    config = taught((), kernels=kernels, model={"dropout": 0.1})
    train(config, DOCUMENTS, "alone", quiet)
    train(updated(config, {"train": {"teachers": two, "teacher_weight": 0.0}}), DOCUMENTS, "taught", quiet)
    assert all(found.equal for found in compare(RunDirectory(Path("alone")), RunDirectory(Path("taught"))))
    train(updated(config, {"train": {"teachers": two}}), DOCUMENTS, "more", quiet)
    assert not any(found.equal for found in compare(RunDirectory(Path("alone")), RunDirectory(Path("more"))))


def test_who_equals_its_teacher_has_nothing_to_learn(two):
    save("self", 3)
    config = taught(("self",), init_from="self", train={"teacher_weight": 1.0})
    run = begun(config, DOCUMENTS)
    gradients(run, 0, 0, run.processes)
    assert max(p.grad.abs().max() for p in run.model.parameters()) < 1e-6
    other = begun(updated(config, {"train": {"teachers": two}}), DOCUMENTS)
    gradients(other, 0, 0, other.processes)
    assert max(p.grad.abs().max() for p in other.model.parameters()) > 1e-2


def test_a_student_becomes_its_ensemble(two):
    """Learning from probabilities alone, it comes nearer to their mean than its text would bring it."""
    config = taught(two, train={"max_steps": 60, "learning_rate": 0.01, "eval_interval": 60, "teacher_weight": 1.0})

    def distance(name):
        model, run = minigpt.load_model(Path(name) / "last")[0], begun(config, DOCUMENTS)
        batch = run.loader.batch(0, 5)
        mean = run.teachers.probabilities(batch, TOKENIZER.vocab_size)
        with torch.no_grad():
            own = model(batch.inputs).log_softmax(-1)
        return (mean * (mean.log() - own)).sum(-1)[batch.targets != IGNORED].mean().item()

    train(config, DOCUMENTS, "taught", quiet)
    train(updated(config, {"train": {"teachers": ()}}), DOCUMENTS, "alone", quiet)
    assert distance("taught") < 0.5 * distance("alone")


def test_teachers_stay_out_of_the_run(two):
    run = begun(taught(two), DOCUMENTS)
    before = [parameter.clone() for model in run.teachers.models for parameter in model.parameters()]
    gradients(run, 0, 0, run.processes)
    after = [parameter for model in run.teachers.models for parameter in model.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in after)
    assert all(map(torch.equal, before, after))
    assert not any(model.training for model in run.teachers.models)
    trained = {id(p) for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in run.model.parameters()}
    train(taught(two), DOCUMENTS, "taught", quiet)
    assert minigpt.load_model("taught")[0].num_parameters() == GPT(SHAPE).num_parameters()


def test_a_resume_is_exact_wherever_it_starts(two, monkeypatch, tmp_path):
    config, said = taught(two, model={"dropout": 0.1}), []
    train(config, DOCUMENTS, "straight", said.append)
    assert any(
        f"teachers   {tmp_path / 'a'}, {tmp_path / 'b'}; together 0.5 of what is learned" in line for line in said
    )
    real = loop.gradients

    def stopped(run, taken, first, processes):
        if first == 7 * run.rows_per_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, taken, first, processes)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", stopped)
        with pytest.raises(Interrupted):
            train(config, DOCUMENTS, "broken", quiet)
    broken = RunDirectory(tmp_path / "broken")
    assert read_config(broken).train.teachers == (str(tmp_path / "a"), str(tmp_path / "b"))
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    train(read_config(broken), DOCUMENTS, broken.path, quiet, resume=True)
    assert all(found.equal for found in compare(RunDirectory(tmp_path / "straight"), broken))


def test_a_resume_knows_its_teachers_by_their_weights(two):
    short = taught(two, train={"max_steps": 6})
    train(short, DOCUMENTS, "run", quiet)
    assert len(open_checkpoint(Path("run/last")).manifest["teachers"]) == 2
    longer = updated(short, {"train": {"max_steps": 9}})
    save("c", 5)
    for other in (("a", "c"), ("b", "a"), ("a",), ()):
        with pytest.raises(CheckpointError, match="are not those that run/last has learned from"):
            train(updated(longer, {"train": {"teachers": other}}), DOCUMENTS, "run", quiet, resume=True)
    shutil.move("b", "moved")
    with pytest.raises(minigpt.errors.MissingFileError, match=r"this run learns from .*\n.*name where it lies now as"):
        train(longer, DOCUMENTS, "run", quiet, resume=True)
    moved = updated(longer, {"train": {"teachers": ("a", "moved")}})
    said = []
    assert train(moved, DOCUMENTS, "run", said.append, resume=True).step == 9
    here = Path.cwd()
    before, now = f"{here / 'a'}, {here / 'b'} before", f"{here / 'a'}, {here / 'moved'} from now on"
    assert f"changed    train.teachers: {before}, {now}" in said
    shutil.rmtree("a")
    save("a", 6, vocab_size=24, block_size=13, n_layer=1, n_head=1, n_embd=7)  # another one under its name
    with pytest.raises(CheckpointError, match="are not those that run/last has learned from"):
        train(updated(moved, {"train": {"max_steps": 12}}), DOCUMENTS, "run", quiet, resume=True)


def test_teachers_without_a_share_need_not_be_there(two):
    config = taught(two, train={"max_steps": 3})
    train(config, DOCUMENTS, "run", quiet)
    former = open_checkpoint(Path("run/last")).manifest["teachers"]
    for name in two:
        shutil.move(name, f"{name}-moved")
    unasked = updated(config, {"train": {"max_steps": 6, "teacher_weight": 0.0}})
    assert train(unasked, DOCUMENTS, "run", quiet, resume=True).step == 6
    assert open_checkpoint(Path("run/last")).manifest["teachers"] == former
    asked = updated(config, {"train": {"max_steps": 9}})
    with pytest.raises(minigpt.errors.MissingFileError, match="this run learns from"):
        train(asked, DOCUMENTS, "run", quiet, resume=True)
    save("c", 5)
    with pytest.raises(CheckpointError, match="are not those that run/last has learned from"):
        train(updated(asked, {"train": {"teachers": ("a-moved", "c")}}), DOCUMENTS, "run", quiet, resume=True)
    moved = updated(asked, {"train": {"teachers": ("a-moved", "b-moved")}})
    assert train(moved, DOCUMENTS, "run", quiet, resume=True).step == 9


def test_a_run_that_has_asked_no_teacher_may_begin_to(two):
    config = taught(two, train={"max_steps": 3, "teacher_weight": 0.0})
    assert not begun(config, DOCUMENTS).teachers.models
    train(config, DOCUMENTS, "run", quiet)
    train(taught((), train={"max_steps": 3}), DOCUMENTS, "alone", quiet)
    student, alone = (minigpt.load_model(name)[0].state_dict() for name in ("run", "alone"))
    assert all(torch.equal(student[name], alone[name]) for name in alone)
    train(updated(config, {"train": {"max_steps": 6, "teacher_weight": 0.5}}), DOCUMENTS, "run", quiet, resume=True)
    assert len(open_checkpoint(Path("run/last")).manifest["teachers"]) == 2


def test_a_run_without_teachers_resumes_without(two):
    config = taught((), train={"max_steps": 3})
    train(config, DOCUMENTS, "run", quiet)
    assert "teachers" not in open_checkpoint(Path("run/last")).manifest
    with pytest.raises(CheckpointError, match=r"the teachers .*a, .*b are not those"):
        train(updated(config, {"train": {"max_steps": 6, "teachers": two}}), DOCUMENTS, "run", quiet, resume=True)


def test_a_diverged_step_is_found_and_repeated(two, monkeypatch):
    """The text's loss is finite, and only what the teachers say is not."""
    real = teachers.Teachers.probabilities

    def broken(self, batch, vocab_size):
        return real(self, batch, vocab_size) * (math.nan if broken.calls.append(0) or len(broken.calls) > 4 else 1)

    broken.calls = []
    monkeypatch.setattr(teachers.Teachers, "probabilities", broken)
    with pytest.raises(DivergenceError, match="the loss of micro-batch 0"):
        train(taught(two), DOCUMENTS, "run", quiet)
    run = RunDirectory(Path("run"))
    report = run.diverged / "report.json"
    found = replay(read_config(run), DOCUMENTS, report, quiet)
    assert found == loop.read_report(report)
    assert math.isfinite(float(found.loss))
    assert not math.isfinite(float(found.grad_norm))


def test_an_adapter_is_a_teacher_as_it_computes(two):
    """Merged: its weights are those of a plain model."""
    train(taught((), init_from="b", train={"lora_rank": 3, "learning_rate": 0.1}), DOCUMENTS, "adapted", quiet)
    run = begun(taught(("adapted",)), DOCUMENTS)
    batch = run.loader.batch(0, 5)
    model, _ = minigpt.load_model("adapted")
    expected = model(batch.inputs).softmax(-1)
    found = run.teachers.probabilities(batch, TOKENIZER.vocab_size)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, minigpt.load_model("b")[0](batch.inputs).softmax(-1), atol=1e-3)


def test_settings_in_a_file(two):
    train(taught(two, train={"max_steps": 3}), DOCUMENTS, "run", quiet)
    assert [Path(name).name for name in read_config(RunDirectory(Path("run"))).train.teachers] == ["a", "b"]
    content = read_yaml("run/config.yaml")
    assert [Path(name).name for name in content["train"].pop("teachers")] == ["a", "b"]
    assert content["train"].pop("teacher_weight") == 0.5
    older = updated(RunConfig(), content)  # of a version without them
    assert (older.train.teachers, older.train.teacher_weight) == ((), 0.5)


@pytest.mark.parametrize("wrong", ["a", [""], [3], {"a": 1}])
def test_what_is_no_list_of_models_is_refused(wrong):
    with pytest.raises(ConfigError, match="teachers must be a list of models, such as"):
        updated(RunConfig(), {"train": {"teachers": wrong}})


def two_lines(capsys, *arguments):
    assert command(["train", *arguments, "--out", "new"]) == 2
    assert not Path("new").exists()
    first, second = capsys.readouterr().err.splitlines()[-2:]
    return first.removeprefix("error: "), second.strip()


@pytest.fixture
def play(flags):
    Path("play.txt").write_text("\n".join(TEXTS * 3), encoding="utf-8")
    return flags


def test_each_mistake_is_two_lines_before_anything_is_made(play, capsys):
    def said(*names):
        return two_lines(capsys, *play, *(word for name in names for word in ("--train.teachers", name)))

    save("good", 1)
    first, second = said("checkpoints/wise-3", "good", "gone")
    assert first == f"this run learns from checkpoints/wise-3, gone, and from {Path.cwd()} no such model is found"
    train = f"minigpt train --data {Path('play.txt').absolute()} --model.block_size 7"
    assert second == (
        f"train it: {train} --seed 3 --out checkpoints/wise-3 && {train} --seed 2 --out gone, or name where it lies "
        "now as --train.teachers"
    )
    assert said("good,gone")[1] == (
        "name each by itself: --train.teachers 'good' --train.teachers 'gone', or name where it lies now as "
        "--train.teachers"
    )
    save("order", 1, tokenizer=CharTokenizer(TOKENIZER.characters[::-1]))
    first, second = said("order")
    assert "order has another tokenizer than this run: CharTokenizer" in first
    assert "with 19 tokens there" in first
    save("short", 1, block_size=5)
    first, second = said("good", "short")
    assert first == f"the teacher {Path('short').absolute()} reads 5 tokens at once, and this run's windows have 7"
    assert second == "choose --model.block_size <= 5, or name a teacher with a longer context as --train.teachers"
    assert said("new")[0] == "new is this run, which cannot be its own teacher"
    assert "teacher_weight" in two_lines(capsys, *play, "--train.teacher_weight", "0.3")[0]
    assert "in [0, 1]" in two_lines(capsys, *play, "--train.teachers", "good", "--train.teacher_weight", "1.1")[1]
    assert not Path("data").exists()


def test_a_folder_named_after_a_preset_is_trained_by_it(play, capsys):
    name = next(iter(PRESETS))
    found = two_lines(capsys, *play, "--train.teachers", f"checkpoints/{name}-2")[1]
    words = f"minigpt train --preset {name} --data {Path('play.txt').absolute()} --seed 2 --out checkpoints/{name}-2"
    assert words in found


def test_teachers_are_advised_to_be_different_models_that_hold_out_the_same(play, capsys):
    def advised(*words):
        teachers = [word for name in ("wise", "old-1", "sage") for word in ("--train.teachers", name)]
        commands = two_lines(capsys, *words, *teachers)[1].partition("train it: ")[2].partition(", or name")[0]
        given = [one.split() for one in commands.split(" && ")]
        return [{flag: one[one.index(flag) + 1] for flag in ("--seed", "--train.batch_size") if flag in one}
                for one in given]  # fmt: skip

    assert advised(*play) == [{"--seed": "2"}, {"--seed": "1"}, {"--seed": "3"}]
    Path("talk.jsonl").write_text("\n".join(map(talk, TEXTS)), encoding="utf-8")
    dialogues = ["--data", "talk.jsonl", "--documents.separate", "dialogues", "--seed", "7"]
    wise, old, sage = advised(*dialogues, *play[2:])  # here the seed chooses what validates
    assert (wise["--seed"], old["--seed"], sage["--seed"]) == ("7", "7", "7")
    assert len({one.get("--train.batch_size") for one in (wise, old, sage)}) == 3
    wise, _, sage = advised(*dialogues, "--val-data", "talk.jsonl", *play[2:])
    assert (wise, sage) == ({"--seed": "2"}, {"--seed": "3"})


def test_a_teacher_that_begins_with_halved_windows_is_advised_an_even_one(play, capsys):
    Path("play.txt").write_text("\n".join(TEXTS * 30), encoding="utf-8")
    told = [*play, "--model.block_size", "301", "--train.teachers", "shakespeare-cpu-0"]
    advised = shlex.split(two_lines(capsys, *told)[1].partition("train it: minigpt ")[2].partition(", or name")[0])
    assert advised[advised.index("--model.block_size") + 1] == "302"
    assert command([*advised, "--plan", "--device", "cpu", "--model.n_layer", "1"]) == 0


def talk(text):
    return json.dumps({"messages": [{"role": role, "content": text} for role in ("user", "assistant")]})


@pytest.mark.parametrize(
    ("file", "lines", "own"),
    [
        ("talk.jsonl", [*map(talk, TEXTS)], ["--documents.separate", "dialogues", "--seed", "3"]),
        ("other.jsonl", [f'{{"text": "{text}"}}' for text in TEXTS], ["--documents.val_size", "9", "--seed", "3"]),
        ("play.txt", TEXTS * 3, ["--val-fraction", "0.5"]),
        ("play.txt", TEXTS * 3, ["--val-data", "val.txt"]),
        ("play.txt", TEXTS * 3, ["--init-from", "base"]),
    ],
)
def test_a_teacher_that_is_trained_as_advised_fits_and_knows_nothing_that_validates(capsys, file, lines, own):
    Path(file).write_text("\n".join(lines), encoding="utf-8")
    Path("val.txt").write_text("\n".join(TEXTS[::-1]), encoding="utf-8")
    save("base", 1, tokenizer=CharTokenizer(TOKENIZER.characters[::-1]))
    small = "--train.max_steps 1 --train.warmup_steps 0 --train.batch_size 3 --device cpu".split()
    if "--init-from" not in own:  # a base brings its shape
        small += "--model.block_size 46 --model.n_layer 1 --model.n_head 1 --model.n_embd 6".split()
    student = ["train", *small, "--data", file, *own, "--train.teachers", "wise", "--out", "new"]
    assert command(student) == 2
    told = capsys.readouterr().err
    advised = told.partition("train it: minigpt ")[2].partition(", or name")[0].split()
    assert command([*advised, *small[:4]]) == 0
    assert command(student) == 0
    assert "has learned" not in capsys.readouterr().err
    theirs, ours = (read_config(RunDirectory(Path(name))) for name in ("wise", "new"))
    assert theirs.data == ours.data


def test_a_resume_does_not_advise_to_train_other_teachers(play, capsys):
    save("wise", 1)
    assert command(["train", *play, "--train.teachers", "wise", "--out", "run"]) == 0
    shutil.move("wise", "moved")
    resume = ["train", "--resume", "run", "--train.max_steps", "19"]
    for words in (resume, [*resume, "--plan"]):
        assert command(words) == 2
        way = capsys.readouterr().err.splitlines()[-1].strip()
        assert way == "put it back, or name where it lies now as --train.teachers"
    assert command([*resume, "--train.teachers", "moved"]) == 0
