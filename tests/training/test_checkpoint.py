"""Exact resume: a run that was interrupted is, byte for byte, the run that was not."""

import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt.cli.trainings import summary
from minigpt.config import GPTConfig, RunConfig, TrainConfig, updated, write_yaml
from minigpt.data.corpora import Corpus
from minigpt.errors import CheckpointError, ConfigError, Interrupted, MiniGPTError, MissingFileError
from minigpt.evaluation.loss import Evaluation
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import RunDirectory, read_config
from minigpt.formats.weights import open_weights, read_metadata
from minigpt.training import checkpoint, loop
from minigpt.training.checkpoint import (
    changes,
    checkpoint_to_resume,
    circumstances,
    keep_best,
    locked,
    newest_checkpoint,
    open_checkpoint,
    random_states,
    restore_random_states,
    stored_loss,
)
from minigpt.training.distributed import Processes
from minigpt.training.loop import train
from minigpt.training.verify import compare, losses

TEXT = "".join(f"{word} {number}\n" for number, word in enumerate(["to", "be", "or", "not"] * 50))
CORPUS = Corpus("counting", TEXT, "made up for tests")
CONFIG = RunConfig(
    model=GPTConfig(block_size=7, n_layer=2, n_head=1, n_embd=6, dropout=0.1),
    train=TrainConfig(max_steps=20, batch_size=4, warmup_steps=2, eval_interval=5, save_interval=3),
    device="cpu",
    dtype="float32",
)


pytestmark = pytest.mark.usefixtures("no_plots")


def quiet(line: str) -> None:
    pass


class PulledPlug(BaseException):
    """Nothing in the loop catches it, as nothing catches a power cut."""


def die_at(monkeypatch, *steps):
    """The n-th run in this test dies in the middle of the n-th of these steps."""
    real, waiting = loop.gradients, list(steps)

    def gradients(run, taken, first, processes):
        if waiting and first == waiting[0] * run.rows_per_step:
            waiting.pop(0)
            raise PulledPlug
        return real(run, taken, first, processes)

    monkeypatch.setattr(loop, "gradients", gradients)


def interrupted(config, out, monkeypatch, *steps):
    """A run that dies at some steps and is resumed each time."""
    die_at(monkeypatch, *steps)
    for number in range(len(steps)):
        with pytest.raises(PulledPlug):
            train(config, CORPUS, out, quiet, resume=number > 0)
    return train(config, CORPUS, out, quiet, resume=True)


VARIANTS = {
    "adamw": {"train": {"optimizer": "adamw"}},
    "muon": {"train": {"optimizer": "muon"}},
    "accumulation": {"train": {"batch_size": 2, "accumulation_steps": 3}},
    "bfloat16": {"dtype": "bfloat16"},
    "no dropout": {"model": {"dropout": 0.0}, "train": {"optimizer": "muon"}},
    "a save at every step": {"train": {"save_interval": 1}},
    "GPU": {"device": "cuda", "compile": "off"},
}
NEEDS_GPU = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("variant", [pytest.param(name, marks=NEEDS_GPU * (name == "GPU")) for name in VARIANTS])
def test_dying_and_going_on_changes_no_byte(tmp_path, monkeypatch, variant):
    """7 steps, death, 6, death, 7: the second resume too, where others have gone wrong (KempnerForge issue 57)."""
    config = updated(CONFIG, VARIANTS[variant])
    straight = train(config, CORPUS, tmp_path / "straight", quiet)
    broken = interrupted(config, tmp_path / "broken", monkeypatch, 7, 13)
    found = compare(RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "broken"))
    assert [(c.name, c.equal) for c in found] == [(c.name, True) for c in found]
    logged = json.loads(losses(RunDirectory(tmp_path / "broken")))
    assert [entry[0] for entry in logged] == [5, 5, 10, 10, 15, 15, 20, 20]  # training and validation
    assert (broken.val_loss, broken.best_val_loss) == (straight.val_loss, straight.best_val_loss)
    assert broken.train_loss == straight.train_loss
    samples = [(tmp_path / name / "samples.txt").read_text() for name in ("straight", "broken")]
    assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_any_pattern_of_interruptions_changes_no_byte(tmp_path, monkeypatch, seed):
    """Random intervals and settings; deaths in steps, in the middle of saves, and in evaluations."""
    draw = random.Random(seed)
    settings = {
        "max_steps": 25,
        "save_interval": draw.randint(1, 7),
        "eval_interval": draw.randint(1, 9),
        "accumulation_steps": draw.randint(1, 3),
        "patience": draw.choice([0, 0, 1, 2, 3]),
        "on_nonfinite": "skip",
        "optimizer": draw.choice(["adamw", "muon"]),
    }
    config = updated(CONFIG, {"train": settings, "model": {"dropout": draw.choice([0.0, 0.1])}})
    bad = set(draw.sample(range(25), draw.randint(0, 4)))
    monkeypatch.setattr(loop, "LOG_INTERVAL", draw.randint(1, 6))
    deaths = []  # a function, and how many calls of it are left until the process dies there
    real = {name: getattr(loop, name) for name in ("gradients", "replace_last", "evaluate_batches", "keep_best")}

    def dying(name):
        def call(*arguments):
            if deaths and deaths[0][0] == name:
                deaths[0][1] -= 1
                if deaths[0][1] == 0:
                    if name == "replace_last" and draw.random() < 0.5:
                        real[name](*arguments)
                    raise PulledPlug
            result = real[name](*arguments)
            skipped = name == "gradients" and arguments[1] in bad
            return (result[0] * math.nan, result[1]) if skipped else result

        return call

    for name in real:
        monkeypatch.setattr(loop, name, dying(name))
    train(config, CORPUS, tmp_path / "straight", quiet)
    out, number = tmp_path / "broken", draw.randint(1, 5)
    while True:
        if (out / "model.safetensors").exists() and not (out / "last").exists():
            shutil.rmtree(out)  # evaluated and not saved yet: it cannot be resumed, and says so
        name = draw.choice(list(real))
        deaths = [[name, draw.randint(1, 9 if name == "gradients" else 3)]] * (number > 0)
        number -= 1
        try:
            train(config, CORPUS, out, quiet, resume=out.exists())
            break
        except PulledPlug:
            continue
    found = compare(RunDirectory(tmp_path / "straight"), RunDirectory(out))
    assert [c.name for c in found if not c.equal] == [], settings
    samples = [(path / "samples.txt").read_text() for path in (tmp_path / "straight", out)]
    assert samples[0] == samples[1]


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    config = updated(CONFIG, {"train": {"max_steps": 7}})
    train(config, CORPUS, tmp_path / "run", quiet)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    shorter = updated(config, {"train": {"max_steps": 5}})
    with pytest.raises(ConfigError, match=r"has taken 7 steps, more than the 5 asked for\nchoose a larger max_steps"):
        train(shorter, CORPUS, tmp_path / "run", quiet, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_without_an_evaluation_says_which_weights_it_has(tmp_path):
    """Stopped before its first one."""
    train(updated(CONFIG, {"train": {"max_steps": 3}}), CORPUS, tmp_path / "run", quiet)
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"has no model\.safetensors: its evaluations.*\n.*--resume .*run/last"):
        load_model(tmp_path / "run")
    load_model(tmp_path / "run" / "last")


@pytest.mark.parametrize("name", ["last", "previous"])
def test_the_weights_of_both_checkpoints_can_be_loaded(tmp_path, name):
    """By the folder and by the file: when the newest is damaged, the one before it is all there is."""
    train(updated(CONFIG, {"train": {"max_steps": 3, "save_interval": 2}}), CORPUS, tmp_path / "run", quiet)
    weights = tmp_path / "run" / name / "model.safetensors"
    stored = {name: tensor.read() for name, tensor in open_weights(weights).items()}
    for place in (weights, weights.parent):
        model, tokenizer = load_model(place)
        assert tokenizer is not None
        own = model.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())


def test_a_comparison_sees_one_bit(tmp_path, monkeypatch):
    """The proof itself: another seed, and it must say that nothing is equal."""
    train(CONFIG, CORPUS, tmp_path / "a", quiet)
    train(updated(CONFIG, {"seed": 1}), CORPUS, tmp_path / "b", quiet)
    found = compare(RunDirectory(tmp_path / "a"), RunDirectory(tmp_path / "b"))
    assert not any(c.equal for c in found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, monkeypatch, number):
    """At a step that is neither saved nor recorded by itself, and with the losses since the last record kept."""
    straight = train(CONFIG, CORPUS, tmp_path / "straight", quiet)
    real = loop.gradients

    def gradients(run, taken, first, processes):
        if first == 6 * run.rows_per_step:
            os.kill(os.getpid(), number)
        return real(run, taken, first, processes)

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", gradients)
        with pytest.raises(Interrupted) as stop:
            train(CONFIG, CORPUS, tmp_path / "broken", quiet)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert stop.value.signal == number
    assert stop.value.what == "stopped at step 7 of 20, and saved"
    assert stop.value.how.endswith(f"minigpt train --resume {tmp_path / 'broken'}")
    assert open_checkpoint(tmp_path / "broken" / "last").progress.step == 7
    again = train(CONFIG, CORPUS, tmp_path / "broken", quiet, resume=True)
    assert again.train_loss == straight.train_loss
    assert losses(RunDirectory(tmp_path / "broken")) == losses(RunDirectory(tmp_path / "straight"))


def test_a_second_signal_ends_at_once_and_damages_nothing(tmp_path, monkeypatch):
    def gradients(run, taken, first, processes):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one was not heard")

    train(updated(CONFIG, {"train": {"max_steps": 3}}), CORPUS, tmp_path / "run", quiet)
    monkeypatch.setattr(loop, "gradients", gradients)
    with pytest.raises(KeyboardInterrupt) as stop:
        train(CONFIG, CORPUS, tmp_path / "run", quiet, resume=True)
    assert not isinstance(stop.value, Interrupted)
    assert open_checkpoint(tmp_path / "run" / "last").progress.step == 3


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch):
    interrupted(CONFIG, tmp_path / "broken", monkeypatch, 1)
    train(CONFIG, CORPUS, tmp_path / "straight", quiet)
    assert all(c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "broken")))


def test_a_run_killed_between_its_last_save_and_its_evaluation(tmp_path, monkeypatch):
    """nanochat issue 446: the evaluation at the end dies. Its result is not lost but made up for."""
    straight = train(CONFIG, CORPUS, tmp_path / "straight", quiet)
    real, calls = loop.evaluate_batches, []

    def evaluate(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise PulledPlug
        return real(*arguments)

    monkeypatch.setattr(loop, "evaluate_batches", evaluate)
    with pytest.raises(PulledPlug):
        train(CONFIG, CORPUS, tmp_path / "broken", quiet)
    broken = train(CONFIG, CORPUS, tmp_path / "broken", quiet, resume=True)
    assert broken.val_loss == straight.val_loss
    assert all(c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "broken")))


def test_a_finished_run_says_so_and_changes_nothing(tmp_path):
    result = train(CONFIG, CORPUS, tmp_path / "run", quiet)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    lines = []
    again = train(CONFIG, CORPUS, tmp_path / "run", lines.append, resume=True)
    assert any("nothing is left to do: the run has its 20 steps" in line for line in lines)
    assert (again.step, again.val_loss, again.train_loss) == (result.step, result.val_loss, result.train_loss)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_of_a_finished_run_no_change_is_promised(tmp_path):
    train(CONFIG, CORPUS, tmp_path / "run", quiet)
    lines = []
    train(updated(CONFIG, {"train": {"beta1": 0.8}}), CORPUS, tmp_path / "run", lines.append, resume=True)
    assert any("nothing is left to do: the run has its 20 steps, and keeps its settings" in line for line in lines)
    assert not any(line.startswith("changed") for line in lines)
    assert read_config(RunDirectory(tmp_path / "run")).train.beta1 == CONFIG.train.beta1


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"max_steps": 19, "beta1": 0.8}, "more than the 19 asked for"),
        ({"max_steps": 22, "beta1": 0.8, "teachers": ("nowhere",)}, "nowhere"),
    ],
)
def test_a_refused_resume_says_no_change_as_done(tmp_path, changed, error):
    train(CONFIG, CORPUS, tmp_path / "run", quiet)
    lines = []
    with pytest.raises(MiniGPTError, match=error):
        train(updated(CONFIG, {"train": changed}), CORPUS, tmp_path / "run", lines.append, resume=True)
    assert not any(line.startswith("changed") for line in lines)
    assert read_config(RunDirectory(tmp_path / "run")).train.beta1 == CONFIG.train.beta1


def test_a_folder_with_the_name_of_the_base_on_the_hub_does_not_stand_in_the_way(tmp_path, monkeypatch):
    """A clone of gpt2 in the working directory; the run needs its base no more."""
    train(CONFIG, CORPUS, tmp_path / "run", quiet)
    begun = replace(read_config(RunDirectory(tmp_path / "run")), init_from="gpt2")
    write_yaml(begun, tmp_path / "run" / "config.yaml", {})
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    longer = updated(begun, {"train": {"max_steps": 22}})
    assert train(longer, CORPUS, tmp_path / "run", quiet, resume=True).step == 22
    assert read_config(RunDirectory(tmp_path / "run")).init_from == "gpt2"


def test_a_longer_run_follows_the_schedule_of_its_new_length(tmp_path):
    """The rate at step 25 of 40 is that of a run of 40 steps, however many the first part was meant to have."""
    from minigpt.training.optim import lr_at

    train(CONFIG, CORPUS, tmp_path / "run", quiet)
    longer = updated(CONFIG, {"train": {"max_steps": 40, "learning_rate": 0.02, "batch_size": 3}})
    lines = []
    train(longer, CORPUS, tmp_path / "run", lines.append, resume=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["lr"] for r in records if r["step"] == 25 and "lr" in r] == [lr_at(24, longer.train)]
    assert [r["resumed"] for r in records if "resumed" in r] == [
        {"train.max_steps": [20, 40], "train.batch_size": [4, 3], "train.learning_rate": [0.001, 0.02]}
    ]
    assert any("train.batch_size: 4 before, 3 from now on" in line for line in lines)
    assert records[-1]["tokens"] == (20 * 4 + 20 * 3) * 7  # the new batches go on where the old ones ended
    assert read_config(RunDirectory(tmp_path / "run")).train.max_steps == 40


def test_another_architecture_is_refused_field_by_field(tmp_path):
    train(updated(CONFIG, {"train": {"max_steps": 2}}), CORPUS, tmp_path / "run", quiet)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    other = updated(CONFIG, {"model": {"n_layer": 3, "n_embd": 9}, "train": {"optimizer": "muon"}})
    with pytest.raises(CheckpointError) as refused:
        train(other, CORPUS, tmp_path / "run", quiet, resume=True)
    for part in ("model.n_layer is 2 in the run and 3 now", "model.n_embd is 6", "train.optimizer is adamw"):
        assert part in refused.value.what
    with pytest.raises(CheckpointError, match="shakespeare does not hold what "):
        train(CONFIG, Corpus("counting", TEXT + "x", ""), tmp_path / "run", quiet, resume=True)
    with pytest.raises(MissingFileError, match="is not a run directory"):
        train(CONFIG, CORPUS, tmp_path / "elsewhere", quiet, resume=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("empty", ["before", "now"])
def test_an_empty_setting_is_said_at_a_resume(tmp_path, empty):
    train(updated(CONFIG, {"train": {"max_steps": 2}}), CORPUS, tmp_path / "run", quiet)
    run = RunDirectory(tmp_path / "run")
    none, some = read_config(run), updated(read_config(run), {"train": {"freeze": "wte.*"}})
    before, now = (none, some) if empty == "before" else (some, none)
    shown = ("none", "wte.*") if empty == "before" else ("wte.*", "none")
    with pytest.raises(CheckpointError, match=r"train.freeze is {} in the run and {} now".format(*shown)):
        changes(before, now)
    moved = {empty == "before": "", empty == "now": "v.txt"}
    write_yaml(updated(before, {"data": {"val_data": moved[True]}, "train": {"freeze": ""}}), run.config, {})
    later = updated(none, {"data": {"val_data": moved[False]}})
    *_, lines = checkpoint_to_resume(run, later, open_checkpoint(run.last).manifest["corpus"], {}, quiet)
    assert f"changed    data.val_data: {moved[True] or 'none'} before, {moved[False] or 'none'} from now on" in lines


def test_patience_ends_a_run(tmp_path, monkeypatch):
    """Losses 3, 2, 2, 5, ...: the second evaluation is the best, and two worse ones are enough."""
    values = iter([3.0, 2.0, 2.0, 5.0, 1.0])
    monkeypatch.setattr(loop, "evaluate_batches", lambda *_: Evaluation(next(values), 10))
    config = updated(CONFIG, {"train": {"patience": 2, "eval_interval": 4}})
    lines = []
    result = train(config, CORPUS, tmp_path / "run", lines.append)
    assert (result.step, result.best_val_loss) == (16, 2.0)
    assert any("2 evaluations without a better one" in line for line in lines)
    assert open_checkpoint(tmp_path / "run" / "last").progress.evaluations_since_best == 2
    again = train(config, CORPUS, tmp_path / "run", quiet, resume=True)
    assert again.step == 16
    assert next(values) == 1.0  # which nobody has asked for


def test_better_weights_are_never_replaced_by_worse_ones(tmp_path):
    """A run that was killed meets steps again whose better weights lie there already."""
    train(updated(CONFIG, {"train": {"max_steps": 2}}), CORPUS, tmp_path / "run", quiet)
    run = RunDirectory(tmp_path / "run")
    model, _ = load_model(run.path)
    before, best = run.best_weights.read_bytes(), stored_loss(run)
    keep_best(run, model, best + 0.001, 5, "")
    assert run.best_weights.read_bytes() == before
    keep_best(run, model, best - 0.001, 5, "")
    assert stored_loss(run) == best - 0.001


@pytest.mark.parametrize(("seen", "since_best"), [([3.0, 2.0, 2.5, 4.0], 1), ([4.0, 3.0, 2.5, 2.0], 0)])
def test_best_weights_that_could_not_be_kept_are_not_promised(tmp_path, monkeypatch, seen, since_best):
    """There is no room for those of loss 2: the next best are the best that there are, and the summary says so."""
    values, real = iter(seen), checkpoint.save_weights

    def save_weights(model, path, metadata):
        if float(metadata["val_loss"]) == 2.0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(model, path, metadata)

    monkeypatch.setattr(loop, "evaluate_batches", lambda *_: Evaluation(next(values), 10))
    monkeypatch.setattr(checkpoint, "save_weights", save_weights)
    lines, run = [], RunDirectory(tmp_path / "run")
    result = train(CONFIG, CORPUS, run.path, lines.append)
    assert f"step {5 + 5 * seen.index(2.0):<5} best weights not kept: No space left on device" in lines
    assert result.best_val_loss == stored_loss(run) == 2.5
    progress = open_checkpoint(run.last).progress
    # Patience goes by what was seen; the last save was before the last evaluation.
    assert (progress.best_loss, progress.evaluations_since_best) == (min(seen[:-1]), since_best)
    said = "\n".join(summary(result, CONFIG, run))
    assert f"{seen[-1]:.4f} on the whole validation split, best kept 2.5000\n" in said
    assert "model.safetensors (the best kept)" in said
    assert read_metadata(run.best_weights)["step"] == "15"


def test_one_training_a_folder(tmp_path):
    """Two trainings would replace each other's checkpoints: the second is refused, and changes nothing."""
    train(updated(CONFIG, {"train": {"max_steps": 3}}), CORPUS, tmp_path / "run", quiet)
    before = (tmp_path / "run" / "last" / "manifest.json").read_bytes()
    with (
        locked(tmp_path / "run"),
        pytest.raises(CheckpointError, match="another training is running in"),
    ):
        train(CONFIG, CORPUS, tmp_path / "run", quiet, resume=True)
    assert (tmp_path / "run" / "last" / "manifest.json").read_bytes() == before
    train(CONFIG, CORPUS, tmp_path / "run", quiet, resume=True)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_where_there_are_no_locks_a_note_says_so_and_the_run_goes_on(tmp_path, monkeypatch, number):
    """As on Lustre without its option flock, or NFS without its lock service."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    for steps, resume in ((3, False), (5, True)):
        config = updated(CONFIG, {"train": {"max_steps": steps}})
        with pytest.warns(UserWarning, match="without locks") as notes:
            assert train(config, CORPUS, tmp_path / "run", quiet, resume=resume).step == steps
        assert len(notes) == 1
        assert not locks_are_lost(tmp_path / "run")


def locks_are_lost(folder):
    with pytest.warns(UserWarning, match="without locks"), locked(folder) as lock:
        return lock.is_lost()


def test_every_random_state_comes_back(tmp_path):
    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    random.gauss(0, 1)  # leaves a spare one behind, and so does randn
    np.random.randn()
    states = random_states(torch.device("cpu"))
    first = draw()
    draw()
    restore_random_states(states, torch.device("cpu"))
    assert draw() == first


def test_what_was_left_half_written_is_removed(tmp_path):
    train(updated(CONFIG, {"train": {"max_steps": 3}}), CORPUS, tmp_path / "run", quiet)
    for name in (".minigpt-abcdefgh", ".minigpt-stuvwxyz"):
        (tmp_path / "run" / name / "part").mkdir(parents=True)
        (tmp_path / "run" / name / "part" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "run" / ".minigpt-loss.png.stuvwxyz.tmp").write_bytes(b"half")
    train(CONFIG, CORPUS, tmp_path / "run", quiet, resume=True)
    assert {path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")} == {".lock"}


def rewritten(path: Path, **changes) -> None:
    """A manifest with other entries, and the checksum that belongs to it."""
    content = {**json.loads(path.read_text()), **changes}
    del content["sha256"]
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": seal}))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ["python", "torch", "numpy", "threads", "processor", "processes", "device"])
def test_what_rounds_otherwise_is_said_once(tmp_path, name, dropout):
    """All that the numbers depend on besides the settings; the next checkpoint has what was said."""
    config = updated(CONFIG, {"model": {"dropout": dropout}})
    drawn = ", and dropout is drawn anew" if dropout and name in ("processes", "device") else ""
    train(updated(config, {"train": {"max_steps": 3}}), CORPUS, tmp_path / "run", quiet)
    versions = open_checkpoint(tmp_path / "run" / "last").manifest["versions"]
    rewritten(tmp_path / "run" / "last" / "manifest.json", versions={**versions, name: "another"})
    said = [[], []]
    for steps, lines in zip((6, 9), said, strict=True):
        train(updated(config, {"train": {"max_steps": steps}}), CORPUS, tmp_path / "run", lines.append, resume=True)
    told = [[line for line in lines if line.startswith("changed") and "now; " in line] for lines in said]
    assert told == [[f"changed    {name}: another before, {versions[name]} now; the last digits may differ{drawn}"], []]


@pytest.mark.parametrize("size", [1, 3])
def test_the_number_of_processes_is_among_what_was_there(size):
    here = circumstances(Processes(0, size), torch.device("meta"), "torch")
    assert (here["processes"], here["device"]) == (str(size), "meta")


def test_a_checkpoint_from_before_the_processor_was_noted_goes_on(tmp_path):
    train(updated(CONFIG, {"train": {"max_steps": 3}}), CORPUS, tmp_path / "run", quiet)
    versions = open_checkpoint(tmp_path / "run" / "last").manifest["versions"]
    del versions["processor"]
    rewritten(tmp_path / "run" / "last" / "manifest.json", versions=versions)
    said = []
    assert train(CONFIG, CORPUS, tmp_path / "run", said.append, resume=True).step == 20
    assert not any("last digits" in line for line in said)


@pytest.mark.parametrize("number", [1, 3])
def test_a_checkpoint_of_another_format_is_refused(tmp_path, number):
    train(updated(CONFIG, {"train": {"max_steps": 6}}), CORPUS, tmp_path / "run", quiet)
    rewritten(tmp_path / "run" / "last" / "manifest.json", format=number)
    assert open_checkpoint(tmp_path / "run" / "previous").progress.step == 3  # an older one is not taken instead
    with pytest.raises(CheckpointError, match=f"of format {number}; this minigpt reads 2"):
        newest_checkpoint(RunDirectory(tmp_path / "run"))


PAGE = Path(loop.__file__).parent.parent.parent / "docs" / "resume.md"


def commands() -> list[str]:
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    return sorted(set(re.findall(r"(?:^|`)(minigpt [a-z][^`\n]*)", text, re.MULTILINE)))


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the checkout that minigpt was installed from")
@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_page_is_accepted(command, accept, tmp_path):
    """By the real parsers, in a folder that has the run which the page speaks of."""
    write_yaml(CONFIG, tmp_path / "checkpoints" / "mine" / "config.yaml", versions={})
    accept(command)


def test_the_page_has_commands():
    assert len(commands()) > 5 or not PAGE.is_file()
