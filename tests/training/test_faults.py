"""Damaged files, full disks, interruptions and malice: what a checkpoint must survive."""

import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minigpt.system.files
from minigpt.cli.main import answer as command
from minigpt.config import LoRAConfig, updated
from minigpt.data.tokens import open_tokens
from minigpt.errors import CheckpointError, ConfigError, DataError, MiniGPTError, MissingFileError
from minigpt.formats.lora_files import WEIGHTS as ADAPTER_WEIGHTS
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import RunDirectory, read_config, save_run
from minigpt.formats.weights import open_weights, read_metadata, write_safetensors
from minigpt.lora import add_lora
from minigpt.training import loop
from minigpt.training.checkpoint import (
    Progress,
    clean,
    keep_best,
    newest_checkpoint,
    open_checkpoint,
    replace_last,
    stored_loss,
)
from minigpt.training.divergence import read_report
from minigpt.training.log import RunLog, print_nothing, read_records
from minigpt.training.loop import train
from minigpt.training.verify import compare, losses

pytestmark = pytest.mark.usefixtures("no_plots")

FULL = OSError(errno.ENOSPC, "No space left on device")
FILES = ["model.safetensors", "state.safetensors", "manifest.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, config) -> RunDirectory:
    """A run of 7 steps, `last/` of step 7 and `previous/` of step 6. Nobody changes it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        patch.setattr(loop, "SAMPLE_TOKENS", 5)
        patch.setattr(RunLog, "draw", lambda log: None)
        train(updated(config, {"train": {"max_steps": 7}}), corpus, out, print_nothing)
    return RunDirectory(out)


@pytest.fixture
def run(finished, tmp_path) -> RunDirectory:
    """A copy of it, to be damaged."""
    shutil.copytree(finished.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def longer(config):
    """Goes on with the run for some steps."""
    return updated(config, {"train": {"max_steps": 11}})


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- damage ---


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_cut_at_every_sixteenth(run, name):
    path = run.last / name
    whole = path.read_bytes()
    for sixteenth in range(16):
        path.write_bytes(whole[: len(whole) * sixteenth // 16])
        with pytest.raises(CheckpointError) as damaged:
            open_checkpoint(run.last)
        assert str(path) in damaged.value.what
        checkpoint, said = newest_checkpoint(run)
        assert (checkpoint.path, checkpoint.progress.step) == (run.previous, 6)
        assert said.startswith(damaged.value.what)
        assert said.endswith(f"going on from {run.previous}, step 6")


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_one_bit_flipped(run, name):
    """61 bits over the file, and 61 in its first bytes, which are the header of the tensors."""
    path = run.last / name
    whole = path.read_bytes()
    bits = 8 * len(whole)
    for bit in {*range(0, bits, bits // 61), *range(0, 8 * 300, 8 * 300 // 61)}:
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(CheckpointError) as damaged:
            open_checkpoint(run.last)
        assert str(path) in damaged.value.what, bit
        assert newest_checkpoint(run)[0].path == run.previous


def test_every_byte_of_a_manifest_counts(run):
    path = run.last / "manifest.json"
    whole = path.read_bytes()
    for number in range(len(whole)):
        path.write_bytes(flipped(whole, 8 * number + number % 8))
        with suppress(ValueError):
            if json.loads(path.read_bytes()) == json.loads(whole):
                continue  # the 17th digit of a loss: another text for the same number
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            open_checkpoint(run.last)


@pytest.mark.parametrize("name", FILES)
def test_training_goes_on_from_the_checkpoint_before(run, finished, name, corpus, config):
    """And does over again what the damaged one had done."""
    (run.last / name).write_bytes((run.last / name).read_bytes()[:-1])
    lines = []
    train(updated(config, {"train": {"max_steps": 7}}), corpus, run.path, lines.append, resume=True)
    assert any(line.startswith("damaged") and str(run.last / name) in line for line in lines)
    assert all(c.equal for c in compare(finished, run))


def test_both_damaged_are_both_named(run, corpus, longer):
    (run.last / "state.safetensors").write_bytes(b"")
    (run.previous / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError) as damaged:
        train(longer, corpus, run.path, print_nothing, resume=True)
    assert str(run.last / "state.safetensors") in damaged.value.what
    assert str(run.previous / "model.safetensors") in damaged.value.what


def test_a_bad_sector_is_like_any_damage(run, monkeypatch):
    real = minigpt.training.checkpoint.sha256_of

    def unreadable(path):
        if path == run.last / "state.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr("minigpt.training.checkpoint.sha256_of", unreadable)
    checkpoint, said = newest_checkpoint(run)
    assert checkpoint.path == run.previous
    assert f"{run.last / 'state.safetensors'} cannot be read: Input/output error" in said


def test_the_best_weights_cut_at_every_sixteenth(run):
    whole = run.best_weights.read_bytes()
    for sixteenth in range(16):
        run.best_weights.write_bytes(whole[: len(whole) * sixteenth // 16])
        with pytest.raises(CheckpointError, match=str(run.best_weights)):
            load_model(run.path)
        load_model(run.last)


def test_the_best_weights_with_one_bit_flipped(run):
    """A value that is still a number; or in the header, where a flipped bit may leave it with the same meaning."""
    whole = run.best_weights.read_bytes()
    header, bits = 8 + int.from_bytes(whole[:8], "little"), 8 * len(whole)
    model, _ = load_model(run.path)
    unseen = []
    for bit in {*range(0, bits, bits // 61), *range(0, 8 * header, 8 * header // 61)}:
        run.best_weights.write_bytes(flipped(whole, bit))
        with suppress(CheckpointError):
            other, _ = load_model(run.path)
            unseen.append(bit)
            assert all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(bit < 8 * header for bit in unseen)
    assert len(unseen) < 10  # of 122


def test_weights_without_a_checksum_are_read(run):
    """Imported ones, and those of an older run."""
    stored = {name: tensor.read() for name, tensor in open_weights(run.best_weights).items()}
    write_safetensors(run.best_weights, stored, metadata={"val_loss": "2.5"})
    load_model(run.path)


def test_damaged_best_weights_stop_no_resume(run, corpus, longer):
    run.best_weights.write_bytes(run.best_weights.read_bytes()[:11])
    train(longer, corpus, run.path, print_nothing, resume=True)
    load_model(run.path)  # a better loss came, and its weights


def test_a_damaged_log_costs_its_lines_alone(run, corpus, longer):
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    strange = [b'{"step": 1, "sec\n', b"\xff\xfe\n", b"7\n", b'{"step": 3}\n', b"[" * 9999 + b"\n"]
    run.metrics.write_bytes(b"".join([lines[0], *strange, *lines[1:]]))
    assert len(read_records(run.metrics)) == len(lines)
    run.metrics.write_bytes(lines[0].replace(b'"lr": ', b'"lr": NaN, "old": ') + b"".join(lines[1:]))
    train(longer, corpus, run.path, print_nothing, resume=True)
    run.metrics.unlink()
    result = train(longer, corpus, run.path, print_nothing, resume=True)
    assert result.step == 11
    assert result.val_loss > 0


def sealed(content: dict) -> str:
    """A manifest with a checksum of its own: what somebody writes who knows how."""
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": seal})


def test_a_manifest_that_lies_about_a_size(run):
    path = run.last / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    size = content["files"]["model.safetensors"]["bytes"]
    content["files"]["model.safetensors"]["bytes"] = size + 1
    path.write_text(sealed(content))
    with pytest.raises(CheckpointError, match=rf"{size:,} bytes instead of {size + 1:,}"):
        open_checkpoint(run.last)


# --- failing writes ---


class Faults:
    """Counts what is written, and lets the n-th of these calls fail, or all from the n-th on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, for_good: bool) -> None:
        self.count, self.failing, self.error, self.for_good = 0, 0, error, for_good
        faults = self

        class File(io.FileIO):
            def write(self, data):
                faults.tick()
                return super().write(data)

        def fdopen(descriptor, mode):
            assert mode == "wb"
            return io.BufferedWriter(File(descriptor, mode))

        monkeypatch.setattr(os, "fdopen", fdopen)
        for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (tempfile, "mkstemp")):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, call: Callable) -> Callable:
        def counted(*arguments, **options):
            self.tick()
            return call(*arguments, **options)

        return counted

    def tick(self) -> None:
        self.count += 1
        if self.count == self.failing or (self.for_good and 0 < self.failing <= self.count):
            raise self.error

    def at(self, number: int) -> None:
        self.count, self.failing = 0, number


@pytest.mark.parametrize(
    ("error", "for_good"),
    [(FULL, False), (FULL, True), (KeyboardInterrupt(), False)],
    ids=["one write fails", "the disk is full", "interrupted"],
)
def test_a_save_that_fails_anywhere_loses_nothing(run, monkeypatch, error, for_good):
    """At each write, fsync, rename and new folder of a save. Afterwards, with room again, the next save is made."""
    stored = {name: tensor.read() for name, tensor in open_weights(run.last / "model.safetensors").items()}
    checkpoints = {"last": content_of(run.last), "previous": content_of(run.previous)}
    facts = {"corpus": "", "log": {}}
    faults = Faults(monkeypatch, error, for_good)
    failures = 0
    for number in itertools.count(1):
        for name, content in checkpoints.items():
            shutil.rmtree(run.path / name, ignore_errors=True)
            faults.at(0)
            (run.path / name).mkdir()
            for file, data in content.items():
                (run.path / name / file).write_bytes(data)
        faults.at(number)
        try:
            replace_last(run, stored, {"loss/0": torch.zeros(())}, Progress(step=100), facts)
        except type(error):
            failures += 1
        calls = faults.count
        faults.at(0)
        checkpoint, _ = newest_checkpoint(run)
        assert checkpoint.progress.step in (7, 100)
        if checkpoint.progress.step == 7:
            assert content_of(checkpoint.path) == checkpoints["last"]
        hidden = {path.name for path in run.path.iterdir() if path.name.startswith(".")} - {".lock"}
        assert hidden <= {".next"}, (number, hidden)
        if hidden:
            assert open_checkpoint(run.following).progress.step == 100
        replace_last(run, stored, {"loss/0": torch.zeros(())}, Progress(step=101), facts)
        assert open_checkpoint(run.last).progress.step == 101
        assert open_checkpoint(run.previous).progress.step in (7, 100)
        assert not run.following.exists()
        if calls < number:
            break
    assert failures > 20  # three files with some calls each, two folders, three renames


class LowerLayer:
    """An overlay file system on which all of a folder lies in a lower layer: none of its folders can be renamed.

    Counts what a save does, removals too, and kills it at the n-th of these calls.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.killed_at, self.folders = 0, 0, set()
        monkeypatch.setattr(os, "fsync", lambda _: None)  # which only takes time here
        for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))

    def freeze(self, folder: Path) -> None:
        self.folders = {self.inode(path) for path in folder.rglob("*") if path.is_dir()}

    @staticmethod
    def inode(path: Path | str) -> tuple[int, int]:
        return os.stat(path).st_dev, os.stat(path).st_ino

    def watched(self, call: Callable) -> Callable:
        def watched(*arguments, **options):
            self.count += 1
            if 0 < self.killed_at <= self.count:  # what would tidy up does nothing more either
                raise KeyboardInterrupt
            if call.__name__ == "replace" and os.path.isdir(arguments[0]) and self.inode(arguments[0]) in self.folders:
                raise OSError(errno.EXDEV, "Invalid cross-device link", str(arguments[0]))
            result = call(*arguments, **options)
            if call.__name__ == "mkdir":  # in the upper layer; the number of a removed one is used again
                self.folders.discard(self.inode(arguments[0]))
            return result

        return watched


def test_a_run_in_the_image_of_a_container_is_saved_and_killed_anywhere(run, monkeypatch):
    """Its folders, of which one waits for its name, cannot be renamed, and are copied: no kill leaves less than a whole
    checkpoint, nor less than two after the next resume."""
    shutil.copytree(run.last, run.following)
    shutil.copytree(run.path, run.path.parent / "image")
    layer = LowerLayer(monkeypatch)
    for number in itertools.count(1):
        layer.killed_at = 0
        shutil.rmtree(run.path)
        shutil.copytree(run.path.parent / "image", run.path)
        layer.freeze(run.path)
        layer.count, layer.killed_at = 0, number
        with suppress(KeyboardInterrupt):
            replace_last(run, {"w": torch.ones(3)}, {}, Progress(step=100), {"corpus": "", "log": {}})
        calls, layer.killed_at = layer.count, 0
        assert newest_checkpoint(run)[0].progress.step in (7, 100)
        clean(run, print_nothing)
        assert {open_checkpoint(path).progress.step for path in (run.last, run.previous)} <= {7, 100}
        replace_last(run, {"w": torch.ones(3)}, {}, Progress(step=101), {"corpus": "", "log": {}})
        assert open_checkpoint(run.last).progress.step == 101
        assert {path.name for path in run.path.iterdir() if path.name.startswith(".")} == {".lock"}
        if calls < number:
            break
    assert calls > 30


def test_a_whole_checkpoint_without_its_name_gets_it(run, monkeypatch):
    """Killed between two renames of a save, where `last/` is damaged: what waits may be all there is."""
    run.last.replace(run.following)
    shutil.copytree(run.previous, run.last)
    (run.last / "state.safetensors").write_bytes(b"half")
    clean(run, print_nothing)
    assert open_checkpoint(run.last).progress.step == 7
    assert not run.following.exists()


def test_a_checkpoint_that_waits_for_its_name_gets_it_before_the_next_is_written(run, monkeypatch):
    """Its own renaming had failed; then the save after it fails too, half-way."""
    run.last.replace(run.following)
    faults = Faults(monkeypatch, FULL, for_good=False)
    faults.at(9)
    with pytest.raises(OSError, match="No space left"):
        replace_last(run, {"w": torch.zeros(3)}, {}, Progress(step=100), {"corpus": "", "log": {}})
    assert newest_checkpoint(run)[0].progress.step == 7


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["one write fails", "interrupted"])
def test_an_adapter_that_cannot_be_kept_leaves_the_one_before(run, monkeypatch, error):
    """At each write, fsync, rename and new folder; what was whole and had no name yet gets it."""
    model, _ = load_model(run.path)
    add_lora(model, LoRAConfig(3), seed=0)
    run.best_weights.unlink()
    failures, faults = 0, Faults(monkeypatch, error, for_good=False)
    for number in itertools.count(1):
        faults.at(0)
        shutil.rmtree(run.adapter, ignore_errors=True)
        keep_best(run, model, 3.0, 3, "")
        faults.at(number)
        try:
            keep_best(run, model, 2.0, 4, "")
        except type(error):
            failures += 1
        calls = faults.count
        faults.at(0)
        clean(run, print_nothing)
        assert stored_loss(run) in (2.0, 3.0)
        assert sorted(path.name for path in run.adapter.iterdir()) == ["adapter_config.json", ADAPTER_WEIGHTS]
        keep_best(run, model, 1.0, 5, "")
        assert stored_loss(run) == 1.0
        if calls < number:
            break
    assert failures > 10


def test_training_goes_on_after_a_save_that_failed(tmp_path, corpus, config, monkeypatch):
    """The disk is full from step 6 on until step 12; the run ends as if it had not been."""
    train(config, corpus, tmp_path / "straight", print_nothing)
    faults, real = Faults(monkeypatch, FULL, for_good=True), loop.gradients

    def gradients(run, taken, first, processes):
        faults.at(1 if 5 <= first // run.rows_per_step < 13 else 0)
        return real(run, taken, first, processes)

    monkeypatch.setattr(loop, "gradients", gradients)
    lines = []
    train(config, corpus, tmp_path / "run", lines.append)
    failed = [line for line in lines if "No space left on device" in line]
    assert [line[:40] for line in failed if "not saved" in line] == [
        "step 6     not saved: No space left on d",
        "step 9     not saved: No space left on d",
        "step 12    not saved: No space left on d",
    ]
    names = {c.name: c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "run"))}
    assert names["last weights"]
    assert names["logged losses"]
    assert names["optimizer and random states"]


def test_records_wait_for_room(run, monkeypatch):
    """What could not be written goes out with the next record; and no checkpoint is made that counts on it."""
    lines = []
    with RunLog(run, 10, lines.append, None, "") as log:
        before = log.marks()
        file, raw = log._files["metrics.jsonl"], io.FileIO(run.metrics, "ab")

        class FullOnce(io.BufferedWriter):
            full = True

            def flush(self):
                if self.full:
                    raise FULL
                super().flush()

        log._files["metrics.jsonl"] = FullOnce(raw)
        log.record(8, 1)
        with pytest.raises(OSError, match="No space left"):
            log.marks()
        log._files["metrics.jsonl"].full = False
        log.record(9, 2)
        assert log.marks()["metrics.jsonl"] > before["metrics.jsonl"]
        file.close()
    assert lines == ["metrics.jsonl not written: No space left on device"]
    assert [record["step"] for record in read_records(run.metrics)][-2:] == [8, 9]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(call, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full_for_a_while(tmp_path, corpus, config):
    train(config, corpus, tmp_path / "straight", print_nothing)
    with mounted(tmp_path / "disk", "size=2m") as disk:
        ballast, lines = disk / "ballast", []

        def say(line):
            lines.append(line)
            if line.startswith("step 5 "):  # the validation loss
                with suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            if line.startswith("step 9 "):
                ballast.unlink()

        train(config, corpus, disk / "run", say)
        assert "step 6     not saved: No space left on device" in lines
        found = compare(RunDirectory(tmp_path / "straight"), RunDirectory(disk / "run"))
        assert [c.name for c in found if not c.equal] == []


def two_lines(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert command(arguments) == 2
    err = capsys.readouterr().err
    lines = err.rstrip("\n").split("\n")
    assert [line[:7] for line in lines] == ["error: ", "       "], err
    return err


def test_a_real_disk_that_stays_full(tmp_path, corpus, flags, capsys):
    """The checkpoint at the end is one that a run needs: the error has two lines, and the one before is whole."""
    Path("play.txt").write_text(corpus.text)
    with mounted(tmp_path / "disk", "size=88k") as disk:
        assert "No space left on device" in two_lines(["train", *flags, "--out", str(disk / "run")], capsys)
        hidden = [path.name for path in (disk / "run").rglob(".*")]
        assert hidden == [".lock"]
        for folder in (disk / "run" / "last", disk / "run" / "previous"):
            if folder.exists():
                open_checkpoint(folder)


def test_folders_that_cannot_be_written(tmp_path, corpus, flags, capsys):
    Path("play.txt").write_text(corpus.text)
    assert "play.txt is a file" in two_lines(["train", *flags, "--out", "play.txt"], capsys)
    assert "play.txt is a file" in two_lines(["train", *flags, "--out", "play.txt/run"], capsys)
    with mounted(tmp_path / "disk", "ro") as disk:
        assert "Read-only file system" in two_lines(["train", *flags, "--out", str(disk / "run")], capsys)


# --- what is no run ---


def test_what_cannot_be_resumed(run, corpus, config, longer, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, what in (("empty", "empty is not a run directory"), ("nowhere", "there is no folder nowhere")):
        assert what in two_lines(["train", "--resume", name], capsys)
    assert list((tmp_path / "empty").iterdir()) == []
    shutil.rmtree(run.last)
    checkpoint, said = newest_checkpoint(run)
    assert checkpoint.path == run.previous
    assert f"there is no checkpoint {run.last}" in said
    shutil.rmtree(run.previous)
    before = content_of(run.path)
    with pytest.raises(MissingFileError, match="has weights, but no checkpoint"):
        train(longer, corpus, run.path, print_nothing, resume=True)
    assert content_of(run.path) == before


def test_an_imported_model_is_no_interrupted_run(finished, corpus, config, tmp_path):
    """Begun again at step 0, it would lose the weights that were imported."""
    model, tokenizer = load_model(finished.path)
    trained = read_config(finished)
    save_run(model, tokenizer, tmp_path / "imported")
    before = (tmp_path / "imported" / "model.safetensors").read_bytes()
    with pytest.raises(MissingFileError, match="has weights, but no checkpoint"):
        train(replace(config, model=trained.model), corpus, tmp_path / "imported", print_nothing, resume=True)
    assert (tmp_path / "imported" / "model.safetensors").read_bytes() == before


def test_the_last_folder_names_its_run(run, capsys, corpus):
    Path("play.txt").write_text(corpus.text)
    config = run.config.read_text().replace("source: shakespeare", "source: play.txt")
    run.config.write_text(config)
    assert command(["train", "--resume", "run/last"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_a_finished_run_without_its_best_weights_advises_what_works(run, capsys, corpus):
    Path("play.txt").write_text(corpus.text)
    run.config.write_text(run.config.read_text().replace("source: shakespeare", "source: play.txt"))
    run.best_weights.unlink()
    assert command(["train", "--resume", "run"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"generate --model (\S+)", out) == re.findall(r"load_model\('(.+)'\)", out) == ["run/last"]
    assert command(["generate", "--model", "run/last", corpus.text[:3], "--max-new-tokens", "2"]) == 0


# --- malice ---


class Canary:
    def __reduce__(self):
        return (Path.touch, (Path("canary-has-sung").absolute(),))


def poisons() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(Canary(), buffer)
    shell = f'{sys.executable} -c \'open("canary-has-sung", "w")\''
    return {
        "pickle": pickle.dumps(Canary()),
        "text pickle": pickle.dumps(Canary(), protocol=0),
        "torch": buffer.getvalue(),
        "yaml": f"seed: !!python/object/apply:os.system [{json.dumps(shell)}]\n".encode(),
        "yaml new": b"seed: !!python/object/new:pathlib.Path [canary-has-sung]\n",
    }


def test_the_canary_can_sing():
    pickle.loads(poisons()["pickle"])
    assert Path("canary-has-sung").exists()


READERS: dict[str, Callable[[RunDirectory], object]] = {
    "config.yaml": lambda run: load_model(run.path),
    "tokenizer.json": lambda run: load_model(run.path),
    "model.safetensors": lambda run: load_model(run.path),
    "last/model.safetensors": lambda run: load_model(run.last),
    "last/manifest.json": lambda run: open_checkpoint(run.last),
    "last/state.safetensors": lambda run: open_weights(run.last / "state.safetensors"),
    "report.json": lambda run: read_report(run.path / "report.json"),
    "tokens.bin": lambda run: open_tokens(run.path / "tokens.bin"),
}


@pytest.mark.parametrize("name", READERS)
def test_no_file_can_run_code(run, name):
    for poison in poisons().values():
        (run.path / name).write_bytes(poison)
        with pytest.raises((CheckpointError, ConfigError, DataError)) as refused:
            READERS[name](run)
        assert len(str(refused.value).splitlines()) == 2
        assert Path(name).name.split(".")[0] in refused.value.what
        assert not Path("canary-has-sung").exists()


def test_a_resume_runs_no_code(run, corpus, longer):
    """All of a checkpoint's files at once, the log, and the best weights."""
    for poison in poisons().values():
        for path in (*run.last.iterdir(), run.best_weights, run.metrics, run.samples):
            path.write_bytes(poison)
        with suppress(MiniGPTError):
            train(longer, corpus, run.path, print_nothing, resume=True)
        with suppress(MiniGPTError):
            read_metadata(run.best_weights)
        assert losses(run)
        assert not Path("canary-has-sung").exists()
