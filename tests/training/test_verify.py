"""The proof that a resume is exact, and that the proof would see it if it were not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from minigpt.cli.main import answer as command
from minigpt.cli.parser import SettingsParser
from minigpt.cli.run_settings import VerifyResume
from minigpt.config import updated
from minigpt.errors import CheckpointError
from minigpt.formats.run_directory import RunDirectory
from minigpt.training import run as room
from minigpt.training import verify
from minigpt.training.log import print_nothing
from minigpt.training.loop import train
from minigpt.training.verify import at_step, compare, run_straight, shortened, step_of


def test_a_shortened_run_keeps_its_settings(config):
    config = updated(config, {"report_to": "wandb", "train": {"warmup_steps": 9, "eval_interval": 4}})
    short = shortened(config, 7)
    assert short.model == config.model
    assert short.report_to == "none"
    t = short.train
    assert (t.max_steps, t.warmup_steps, t.save_interval, t.eval_interval) == (7, 7, 1, 3)
    assert updated(short, {"report_to": "wandb", "kernels": "auto", "train": vars(config.train)}) == config


@pytest.mark.parametrize("steps", [1000, 8])
def test_a_shortened_run_computes_by_the_kernels_of_the_whole_one(config, monkeypatch, steps):
    a_step = 72 * config.model.n_layer * config.model.n_embd**2 * config.train.batch_size * config.model.block_size
    monkeypatch.setattr(room, "best_here", lambda operations: "c" if operations > 100 * a_step else "torch")
    whole = updated(config, {"kernels": "auto", "device": "cpu", "dtype": "float32", "train": {"max_steps": steps}})
    assert shortened(whole, 7).kernels == ("c" if steps == 1000 else "torch")


@pytest.mark.usefixtures("no_plots")
def test_the_step_of_a_run_and_its_comparison(tmp_path, corpus, config):
    config = updated(config, {"train": {"max_steps": 4}})
    run = RunDirectory(tmp_path / "run")
    assert step_of(run) == 0
    assert not at_step(1)(run)
    train(config, corpus, run.path, print_nothing)
    assert step_of(run) == 4
    assert at_step(4)(run)
    assert not at_step(5)(run)
    other = RunDirectory(tmp_path / "other")
    shutil.copytree(run.path, other.path)
    assert all(c.equal for c in compare(run, other))
    for name, changed in {
        "last/model.safetensors": "last weights",
        "last/state.safetensors": "optimizer and random states",
        "model.safetensors": "best weights",
    }.items():
        content = (other.path / name).read_bytes()
        (other.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert [c.name for c in compare(run, other) if not c.equal] == [changed]
        (other.path / name).write_bytes(content)
    lines = run.metrics.read_text().splitlines()
    first = json.loads(lines[0])
    other.metrics.write_text("\n".join([json.dumps({**first, "train_loss": first["train_loss"] + 1e-9}), *lines[1:]]))
    assert [c.name for c in compare(run, other) if not c.equal] == ["logged losses"]
    other.metrics.write_text("\n".join([json.dumps({**first, "tokens_per_second": 1.0, "seconds": 9}), *lines[1:]]))
    assert all(c.equal for c in compare(run, other))
    (run.last / "manifest.json").unlink()  # as between two renames
    assert step_of(run) == open_step(run.previous)


def open_step(folder: Path) -> int:
    return json.loads((folder / "manifest.json").read_text())["progress"]["step"]


@pytest.fixture
def stand_ins(monkeypatch):
    """Two runs that need no time, of which the second differs if asked to."""
    differing = []

    def straight(config, folder):
        return fake(folder / "straight", b"same")

    def interrupted(config, folder, moments, say):
        for _ in moments:
            say("killed     at step 3, and resumed")
        return fake(folder / "interrupted", b"other" if differing else b"same")

    def fake(path, content):
        run = RunDirectory(path)
        run.last.mkdir(parents=True)
        for file in (run.best_weights, run.last_weights, run.last / "state.safetensors"):
            file.write_bytes(content)
        return run

    monkeypatch.setattr(verify, "run_straight", straight)
    monkeypatch.setattr(verify, "run_interrupted", interrupted)
    return differing


def test_the_command_says_what_is_equal(stand_ins, capsys):
    assert command(["verify-resume", "--kills", "3", "--steps", "9"]) == 0
    out = capsys.readouterr().out
    assert out.count("killed ") == 3 + 1
    assert "equal      optimizer and random states" in out
    assert "byte for byte" in out
    assert command(["verify-resume", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["steps"], printed["kills"]) == (20, 2)
    assert set(printed["equal"].values()) == {True}


def test_the_command_fails_on_a_difference(stand_ins, capsys):
    stand_ins.append(True)
    with pytest.raises(SystemExit) as ended:
        command(["verify-resume"])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "DIFFERENT  best weights" in out
    assert "equal      logged losses" in out


@pytest.mark.skipif(os.name != "posix", reason="needs signals and a shell")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["straight", "broken"])
def test_a_command_that_is_stopped_leaves_no_training_behind(tmp_path, monkeypatch, number, phase):
    """The signal is for the command alone, as from `kill`; the training would go on for a minute."""
    if phase == "broken":
        monkeypatch.setattr(verify, "run_straight", lambda config, folder: RunDirectory(folder / "straight"))
    training, told, folders = tmp_path / "training", tmp_path / "pid", tmp_path / "folders"
    training.write_text(f"#!/bin/sh\necho $$ > {told}.new; mv {told}.new {told}; exec sleep 60\n")
    training.chmod(0o700)
    folders.mkdir()
    monkeypatch.setattr(sys, "executable", str(training))
    monkeypatch.setattr(tempfile, "tempdir", str(folders))

    due = [number]

    class Watched(subprocess.Popen):
        """The signal comes while the command waits for its training."""

        def wait(self, timeout=None):
            self.stop()
            return super().wait(timeout)

        def poll(self):
            self.stop()
            return super().poll()

        def stop(self):
            if due:
                while not told.exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), due.pop())

    monkeypatch.setattr(subprocess, "Popen", Watched)
    endings = signal.SIGTERM, signal.SIGHUP
    before = [signal.signal(one, signal.default_int_handler) for one in endings]  # ends no test, if nothing is done
    try:
        if number == signal.SIGINT:
            assert command(["verify-resume", "--steps", "9"]) == 130
        else:
            with pytest.raises(SystemExit, match=f"^{128 + number}$"):
                command(["verify-resume", "--steps", "9"])
    finally:
        after = [signal.signal(*pair) for pair in zip(endings, before, strict=True)]
    assert after == [signal.default_int_handler] * 2
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    assert list(folders.iterdir()) == []


@pytest.mark.parametrize("flags", [["--kills", "0"], ["--kills", "20"], ["--kills", "-1"], ["--steps", "1"]])
def test_impossible_kills(flags, capsys):
    assert command(["verify-resume", *flags]) == 2
    assert "that cannot be" in capsys.readouterr().err


def test_the_parser_shows_what_it_takes():
    flags = ["--steps", "7", "--model.dropout", "0.5", "--report-to", "none"]
    settings = SettingsParser("verify-resume", VerifyResume).parse(flags)
    assert (settings.steps, settings.config.model.dropout) == (7, 0.5)


@pytest.mark.slow
def test_a_real_run_killed_twice(corpus, flags, capsys):
    Path("play.txt").write_text(corpus.text)
    assert command(["verify-resume", *flags, "--model.dropout", "0.1", "--steps", "15"]) == 0
    out = capsys.readouterr().out
    assert out.count("killed     at step") == 2
    assert out.count("\nequal      ") == 4


@pytest.mark.slow
def test_a_training_that_fails_is_no_proof(tmp_path, config):
    broken = updated(config, {"data": {"source": "nowhere.txt"}})
    with pytest.raises(CheckpointError, match=r"^there is no corpus, file or folder named .nowhere\.txt.\ngive a path"):
        run_straight(broken, tmp_path)


@pytest.mark.slow
def test_an_adapter_is_proved_too(corpus, flags, capsys):
    """Its base is named and not kept; what is best is the adapter."""
    Path("play.txt").write_text(corpus.text)
    assert command(["train", *flags, "--out", "base"]) == 0
    arguments = "--init-from base --data play.txt --train.lora_rank 2 --train.optimizer adamw --device cpu".split()
    assert command(["verify-resume", *arguments, "--steps", "6", "--kills", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (len(printed["equal"]), set(printed["equal"].values())) == (4, {True})


@pytest.mark.slow
def test_a_run_with_teachers_is_proved_too(corpus, flags, capsys):
    Path("play.txt").write_text(corpus.text)
    assert command(["train", *flags, "--out", "wise"]) == 0
    taught = ["--train.teachers", "wise", "--model.dropout", "0.1", "--steps", "6", "--kills", "1", "--json"]
    assert command(["verify-resume", *flags, *taught]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (len(printed["equal"]), set(printed["equal"].values())) == (4, {True})


def test_a_training_takes_no_modules_of_the_working_folder(tmp_path, monkeypatch, config):
    """As the command itself takes none: somebody's random.py is no part of the proof."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command) or Ended())
    with verify._training(config, tmp_path):
        pass
    python, safe, *rest = started[0]
    assert (python, safe, rest[:3]) == (sys.executable, "-P", ["-m", "minigpt", "train"])


class Ended:
    """A process that has ended with a mistake."""

    returncode = 2

    def wait(self) -> int:
        return 2

    def kill(self) -> None:
        pass


def test_what_a_training_says_of_its_mistake_is_said_as_it_says_it(tmp_path, monkeypatch, config):
    said = "warning of a library\nerror: there is no corpus, file or folder named 'x'\n       give a path\n"
    monkeypatch.chdir(tmp_path)

    (tmp_path / verify.OUTPUT).write_text(said)
    with pytest.raises(CheckpointError) as error:
        verify._finish(Ended(), tmp_path)
    assert (error.value.what, error.value.how) == ("there is no corpus, file or folder named 'x'", "give a path")
