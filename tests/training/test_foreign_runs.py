"""A run directory from somebody else: nothing is written outside of it, and no mark in it is trusted."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from minigpt.cli.main import answer as command
from minigpt.cli.trainings import epoch_table
from minigpt.config import updated
from minigpt.errors import CheckpointError, ConfigError, Interrupted, MiniGPTError
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import LOCK, RunDirectory, read_config
from minigpt.formats.weights import open_weights, write_safetensors
from minigpt.lora import LoRAConfig, add_lora
from minigpt.system import files
from minigpt.system.downloads import sha256_of
from minigpt.training import checkpoint, log, loop
from minigpt.training.checkpoint import (
    Progress,
    clean,
    keep_best,
    locked,
    newest_checkpoint,
    open_checkpoint,
    random_states,
    replace_last,
    stored_loss,
)
from minigpt.training.log import RunLog, print_nothing, read_records
from minigpt.training.loop import train
from minigpt.training.verify import compare

pytestmark = pytest.mark.usefixtures("no_plots")

DRAW = RunLog.draw
PRECIOUS = b"nobody may touch this\n" * 11


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, config) -> RunDirectory:
    """A run of 7 steps. Nobody changes it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        patch.setattr(loop, "SAMPLE_TOKENS", 5)
        patch.setattr(RunLog, "draw", lambda log: None)
        train(updated(config, {"train": {"max_steps": 7}}), corpus, out, print_nothing)
    return RunDirectory(out)


@pytest.fixture
def run(finished, tmp_path) -> RunDirectory:
    shutil.copytree(finished.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def longer(config):
    return updated(config, {"train": {"max_steps": 11}})


@pytest.fixture
def outside(tmp_path) -> Path:
    """What lies outside: a file, an empty folder, a folder with a file, and a name that is free."""
    folder = tmp_path / "outside"
    (folder / "empty").mkdir(parents=True)
    (folder / "full").mkdir()
    for path in (folder / "file", folder / "full" / "model.safetensors"):
        path.write_bytes(PRECIOUS)
    return folder


def found_in(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


NAMES = ["config.yaml", "tokenizer.json", "model.safetensors", "metrics.jsonl", "samples.txt", "loss.png", ".lock",
         "perplexity.png", "last", "previous", ".next", "diverged", "adapter", ".adapter", "tensorboard", "wandb-id",
         ".minigpt-abcdefgh", ".minigpt-metrics.jsonl.abcdefgh.tmp"]  # fmt: skip


@pytest.mark.parametrize("target", ["file", "empty", "full", "free"])
@pytest.mark.parametrize("name", NAMES)
def test_a_link_out_of_a_run_is_never_followed(run, outside, corpus, longer, name, target):
    """Every name that a run writes, and every kind of thing that a link may lead to."""
    files.remove(run.path / name)
    (run.path / name).symlink_to(outside / target, target_is_directory=target in ("empty", "full"))
    before = found_in(outside)
    expected = "config.yaml" if name == "config.yaml" else f"{run.path / name} is a link to"  # which is read first
    with pytest.raises(MiniGPTError, match=re.escape(expected)):
        train(longer, corpus, run.path, print_nothing, resume=True)
    assert found_in(outside) == before
    assert (run.path / name).is_symlink()  # what it was, for its owner to look at


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", ".lock"])
def test_a_second_name_of_a_file_elsewhere_is_never_written(run, outside, corpus, longer, name):
    (run.path / name).unlink()
    os.link(outside / "file", run.path / name)
    with pytest.raises(OSError, match="second name"):
        train(longer, corpus, run.path, print_nothing, resume=True)
    assert (outside / "file").read_bytes() == PRECIOUS


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", ".lock"])
def test_a_pipe_in_the_place_of_a_log_does_not_hang(run, corpus, longer, name):
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    with pytest.raises((OSError, CheckpointError), match=r"is no file|No such device"):
        train(longer, corpus, run.path, print_nothing, resume=True)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", ".lock"])
def test_a_link_that_comes_between_check_and_write_is_not_followed(run, outside, corpus, longer, monkeypatch, name):
    """It is put there in the last moment: when the file is opened."""
    real = os.open

    def late(path, *arguments, **options):
        if Path(path).name == name and not Path(path).is_symlink():
            Path(path).unlink()
            Path(path).symlink_to(outside / "file")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(OSError, match=r"symbolic|link") as refused:
        train(longer, corpus, run.path, print_nothing, resume=True)
    assert refused.value.errno == errno.ELOOP
    assert (outside / "file").read_bytes() == PRECIOUS


@pytest.mark.parametrize("name", [".next", ".adapter", "diverged"])
@pytest.mark.parametrize("target", ["empty", "full", "free"])
def test_a_folder_never_takes_the_place_that_a_link_leads_to(run, outside, name, target):
    before = found_in(outside)

    def write():
        with files.new_folder(run.path / name) as part:
            (part / "model.safetensors").write_bytes(b"new")
            (run.path / name).symlink_to(outside / target)  # in the last moment

    with pytest.raises(OSError, match=name):
        write()
    assert found_in(outside) == before
    assert not [path for path in run.path.iterdir() if path.name.startswith(".minigpt")]


def test_a_link_below_a_cache_is_not_followed(tmp_path, outside):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "corpus").symlink_to(outside / "full")
    before = found_in(outside)
    with pytest.raises(OSError, match="a link leads out of") as refused:  # noqa: SIM117
        with files.atomic_write(tmp_path / "cache" / "corpus" / "model.safetensors", tmp_path / "cache") as file:
            file.write(b"new")
    assert refused.value.errno == errno.ELOOP
    assert found_in(outside) == before
    (tmp_path / "linked").symlink_to(tmp_path / "cache")  # the cache itself may lie anywhere
    with files.atomic_write(tmp_path / "linked" / "other" / "file", tmp_path / "linked") as file:
        file.write(b"new")
    assert (tmp_path / "cache" / "other" / "file").read_bytes() == b"new"


# --- a checkpoint that waits for its name ---


def damaged(folder: Path, how: str) -> None:
    """A checkpoint that is not whole."""
    if how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "file":
        shutil.rmtree(folder)
        folder.write_bytes(PRECIOUS)
    else:
        (folder / how).write_bytes((folder / how).read_bytes()[:-2])  # the last byte may be a line end


@pytest.mark.parametrize("how", ["empty", "file", "model.safetensors", "state.safetensors", "manifest.json"])
def test_only_a_whole_checkpoint_becomes_the_last(run, how):
    shutil.copytree(run.previous, run.following)
    damaged(run.following, how)
    before = {folder: found_in(folder) for folder in (run.last, run.previous)}
    lines = []
    clean(run, lines.append)
    assert {folder: found_in(folder) for folder in (run.last, run.previous)} == before
    assert not run.following.exists()
    assert [line.startswith("damaged ") and ".next" in line for line in lines] == [True]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "in a checkpoint"])
@pytest.mark.parametrize("save", [False, True], ids=["at a resume", "at a save"])
def test_what_a_person_keeps_where_a_checkpoint_waits_is_moved_and_not_removed(run, beside, save):
    if beside:
        shutil.copytree(run.previous, run.following)
        damaged(run.following, "state.safetensors")
    (run.following / "thesis").mkdir(parents=True)
    (run.following / "thesis" / "one.txt").write_text("mine")
    lines = []
    if save:
        lines += replace_last(run, {"w": torch.zeros(3)}, {}, Progress(step=100), {"corpus": "", "log": {}})
    else:
        clean(run, lines.append)
    assert str(run.path / "next-moved-aside") in lines[0]
    assert not run.following.exists()
    assert (run.path / "next-moved-aside" / "thesis" / "one.txt").read_text() == "mine"


@pytest.mark.parametrize("where", ["last", "previous"])
def test_what_a_person_keeps_beside_a_checkpoint_is_moved_and_that_is_said(run, where):
    """Whenever the folder would go: that of last/ after two saves, that of previous/ after one."""
    (getattr(run, where) / "notes.txt").write_text("mine")
    lines = []
    for step in (100, 101, 102):
        lines += replace_last(run, {"w": torch.zeros(3)}, {}, Progress(step=step), {"corpus": "", "log": {}})
    aside = run.path / "previous-moved-aside"
    assert lines == [f"moved      {run.previous} holds files that are not minigpt's, and is {aside} now"]
    assert (aside / "notes.txt").read_text() == "mine"
    assert not (run.last / "notes.txt").exists()


@pytest.fixture
def adapted(run):
    """The run with a best adapter, of the loss 3; and the model."""
    model, _ = load_model(run.path)
    add_lora(model, LoRAConfig(2), seed=0)
    run.best_weights.unlink()
    assert keep_best(run, model, 3.0, 1, "") == []
    return run, model


def test_what_a_person_keeps_beside_an_adapter_is_moved_and_that_is_said(adapted):
    run, model = adapted
    (run.adapter / "notes.txt").write_text("mine")
    (line,) = keep_best(run, model, 2.0, 2, "")
    assert line.startswith("moved ")
    assert str(run.path / "adapter-moved-aside") in line
    assert (run.path / "adapter-moved-aside" / "notes.txt").read_text() == "mine"
    assert stored_loss(run) == 2.0


@pytest.mark.parametrize(
    "how", ["empty", "worse", "no loss", "adapter_config.json", "adapter_model.safetensors", "foreign"]
)
@pytest.mark.parametrize("save", [False, True], ids=["at a resume", "at an evaluation"])
def test_only_a_whole_and_better_adapter_becomes_the_best(adapted, how, save):
    run, model = adapted
    waiting = run.following_adapter
    losses = {"worse": {"val_loss": "3.5"}, "no loss": {}}
    save_adapter(model, waiting, metadata=losses.get(how, {"val_loss": "1.0"}))
    if how == "foreign":
        shutil.rmtree(waiting)
        (waiting / "thesis").mkdir(parents=True)
    elif how not in losses:
        damaged(waiting, how)
    before, lines = found_in(run.adapter), []
    if save:
        lines += keep_best(run, model, 4.0, 2, "")
    else:
        clean(run, lines.append)
    assert found_in(run.adapter) == before
    assert not waiting.exists()
    assert [line.startswith("damaged ") and ".adapter" in line for line in lines] == [True]
    assert (run.path / "adapter-moved-aside" / "thesis").is_dir() is (how == "foreign")


def test_a_damaged_one_is_in_the_way_of_no_save(run):
    shutil.copytree(run.previous, run.following)
    damaged(run.following, "state.safetensors")
    replace_last(run, {"w": torch.zeros(3)}, {}, Progress(step=100), {"corpus": "", "log": {}})
    assert newest_checkpoint(run)[0].progress.step == 100
    assert open_checkpoint(run.previous).progress.step == 7


# --- marks ---


@pytest.mark.parametrize("mark", [1, 100, 10**6, 2**62])
def test_a_mark_that_is_no_end_of_a_record_cuts_nothing(run, mark):
    before = {path: path.read_bytes() for path in (run.metrics, run.samples)}
    lines = []
    with RunLog(run, 10, lines.append, None, "", dict.fromkeys(("metrics.jsonl", "samples.txt"), mark)):
        pass
    assert {path: path.read_bytes() for path in before} == before
    assert [line.split()[0] for line in lines] == ["metrics.jsonl", "samples.txt"]


def test_a_mark_at_the_end_of_a_record_cuts_there(run):
    first = run.metrics.read_bytes().index(b"\n") + 1
    with RunLog(run, 10, print_nothing, None, "", {"metrics.jsonl": first, "samples.txt": 0}) as log:
        assert len(log.records) == 1
    assert len(run.metrics.read_bytes()) == first
    assert run.samples.read_bytes() == b""
    assert len(read_records(run.metrics)) == 1


# --- values of another type: a checksum is no signature, and a log has none ---

ODD = [None, True, -1, 1.5, 10**30, "7", "x" * 9999, [], [1], {}, {"a": 1}, math.nan, math.inf]


def sealed(content: dict) -> str:
    """A manifest with a checksum of its own: what somebody writes who knows how."""
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": seal})


def places(content: dict, at: tuple = ()) -> Iterator[tuple]:
    for key, value in content.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from places(value, (*at, key))


def test_a_manifest_may_say_anything(run, finished, corpus, longer):
    """Every value in it, of every other type, and every key left out: used, or refused in two short lines."""
    path = run.last / "manifest.json"
    whole = json.loads(path.read_text())
    del whole["sha256"]
    shutil.rmtree(run.previous)
    refused = 0
    for place in places(whole):
        for odd in [*ODD, "left out"]:
            content = json.loads(json.dumps(whole))
            inner = content
            for key in place[:-1]:
                inner = inner[key]
            if odd == "left out":
                del inner[place[-1]]
            else:
                inner[place[-1]] = odd
            path.write_text(sealed(content))
            try:
                open_checkpoint(run.last)
            except MiniGPTError as error:
                refused += 1
                assert len(str(error)) < 600, (place, odd)  # noqa: PT017
    assert refused > 250


def restated(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Another state in a checkpoint, with right checksums."""
    path, manifest = folder / "state.safetensors", folder / "manifest.json"
    write_safetensors(path, state)
    content = json.loads(manifest.read_text())
    del content["sha256"]
    content["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest.write_text(sealed(content))


STATES = ["AdamW/wte.weight/exp_avg", "AdamW/wte.weight/exp_avg_sq", "AdamW/wte.weight/step", "random/python/0",
          "random/python_spare/0", "random/numpy/0", "random/numpy_spare/0", "random/torch/0", "loss/0"]  # fmt: skip
WRONG = {
    "shorter": lambda t: t.reshape(-1)[:-1],
    "longer": lambda t: torch.cat([t.reshape(-1)] * 2),
    "of three": lambda t: torch.zeros(3, dtype=t.dtype),
    "another type": lambda t: t.to(torch.int32),
    "left out": None,
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_does_not_fit_is_told_before_a_model_is_built(run, name, how):
    """Tensors of other shapes and types, or none, under a right checksum: `previous/` is gone back to."""
    state = {key: stored.read() for key, stored in open_weights(run.last / "state.safetensors").items()}
    state.setdefault("loss/0", torch.tensor(2.5))
    if WRONG[how] is None:
        del state[name]
    else:
        state[name] = WRONG[how](state[name])
    restated(run.last, state)
    if (name, how) == ("loss/0", "left out"):  # as after every record
        assert open_checkpoint(run.last).progress.losses == []
        return
    with pytest.raises(CheckpointError, match="has no state of this run's under"):
        open_checkpoint(run.last)
    older, said = newest_checkpoint(run)
    assert older.progress.step == 6
    assert "going on from" in said


@pytest.mark.parametrize("name", ["AdamW/nobody/exp_avg", "AdamW/wte.weight/more", "Other/wte.weight/exp_avg", "loss/x",
                                  "random/other/0", "random/torch/x", "random", "AdamW"])  # fmt: skip
def test_a_state_of_another_name_is_told(run, name):
    state = {key: stored.read() for key, stored in open_weights(run.last / "state.safetensors").items()}
    restated(run.last, {**state, name: torch.zeros(3)})
    with pytest.raises(CheckpointError, match="has no state of this run's under"):
        open_checkpoint(run.last)


BEYOND = {
    "no twister's word": lambda t: t.index_fill(0, torch.tensor([0]), 2**32),
    "negative words": lambda t: torch.full_like(t, -1),
    "a state that gives zeros for ever": torch.zeros_like,
    "a place behind the words": lambda t: t.index_fill(0, torch.tensor([624]), 625),
    "a place far from the words": lambda t: t.index_fill(0, torch.tensor([624]), 10**6),
    "a place before the words": lambda t: t.index_fill(0, torch.tensor([624]), -1),
    "two spare numbers": lambda t: t.index_fill(0, torch.tensor([len(t) - 1]), 2),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *[("random/numpy/0", how) for how in BEYOND],
        *[("random/python/0", how) for how in BEYOND if "spare" not in how],  # which is another tensor there
        ("random/torch/0", "a state that gives zeros for ever"),
    ],
)
def test_a_random_state_that_no_generator_has_is_gone_back_from(run, name, how):
    """Of the right shape and type. NumPy checks none of it, and reads its memory wherever the place points to."""
    state = {key: stored.read() for key, stored in open_weights(run.last / "state.safetensors").items()}
    restated(run.last, {**state, name: BEYOND[how](state[name])})
    before = random_states(torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"has no state of this run's under 'random/\*/0'"):
        open_checkpoint(run.last)
    assert newest_checkpoint(run)[0].path == run.previous
    now = random_states(torch.device("cpu"))
    assert all(torch.equal(before[key], now[key]) for key in before if key != "python_spare")  # which is NaN


@pytest.mark.parametrize("path", [(), ("files", "model.safetensors"), ("progress",)])
def test_what_a_manifest_says_beside_what_is_read_is_refused(run, path):
    """Nobody would read it; who writes more raises the format."""
    manifest = run.last / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]
    inner = content
    for key in path:
        inner = inner[key]
    inner["learned"] = 1
    manifest.write_text(sealed(content))
    for resumed in (lambda: open_checkpoint(run.last), lambda: newest_checkpoint(run)):  # an older one would lose work
        with pytest.raises(CheckpointError, match="says 'learned', which this minigpt does not know") as refused:
            resumed()
        assert str(manifest) in refused.value.what
        assert refused.value.how == "resume it with the minigpt that wrote it; its weights can be used with any"


@pytest.mark.parametrize("lacks", ["corpus", "log", "progress.step", "progress.sequences", "progress.tokens",
                                   "progress.evaluated", "progress.evaluations_since_best",
                                   "progress.skipped"])  # fmt: skip
def test_a_manifest_that_lacks_something_is_not_filled_up(run, lacks):
    path = run.last / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    section, _, key = lacks.rpartition(".")
    del (content[section] if section else content)[key]
    path.write_text(sealed(content))
    assert newest_checkpoint(run)[0].path == run.previous
    with pytest.raises(CheckpointError, match="does not say what") as refused:
        open_checkpoint(run.last)
    assert "copy" not in refused.value.how, "its seal fits, so a copy would be the same"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "config.json", "sub/model.safetensors", ""])
def test_a_manifest_names_its_own_files_alone(run, monkeypatch, name):
    """Whatever else it names is not even looked at."""
    path, opened = run.last / "manifest.json", []
    content = json.loads(path.read_text())
    del content["sha256"]
    content["files"][name] = content["files"]["model.safetensors"]
    path.write_text(sealed(content))
    monkeypatch.setattr(checkpoint, "_check_file", lambda file, *_: opened.append(file))
    with pytest.raises(CheckpointError, match="does not say what a checkpoint's manifest must"):
        open_checkpoint(run.last)
    assert not opened


@pytest.mark.parametrize("name", ["model.safetensors", "loss.png", "samples.txt", "metrics.jsonl", "perplexity.png"])
def test_a_folder_in_the_place_of_a_file_is_refused_at_the_start(run, corpus, longer, name):
    """Else hours of training end with weights that were never kept."""
    files.remove(run.path / name)
    (run.path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} is no file"):
        train(longer, corpus, run.path, print_nothing, resume=True)


RECORD = {"step": 3, "tokens": 9, "seconds": 1.5, "train_loss": 2.5, "val_loss": 2.4, "lr": 0.1, "grad_norm": 1.0,
          "tokens_per_second": 5.0, "epoch": 0.5, "skipped": 1}  # fmt: skip


@pytest.mark.parametrize("name", RECORD)
def test_a_record_may_say_anything(run, capsys, name):
    """Every value of a record, of every other type: `inspect runs` and the summary of a run compute with the rest."""
    whole = run.metrics.read_bytes()
    for odd in [*ODD, "left out"]:
        record = {**RECORD, name: odd}
        if odd == "left out":
            del record[name]
        run.metrics.write_bytes(whole + (json.dumps(record) + "\n").encode())
        assert command(["inspect", "runs", str(run.path)]) == 0
        epoch_table(read_records(run.metrics))
    capsys.readouterr()


@pytest.mark.parametrize("name", ["seconds", "train_loss", "val_loss"])
def test_a_number_beyond_reading_takes_no_line_of_digits(run, capsys, name):
    with run.metrics.open("a") as file:
        file.write(json.dumps({**RECORD, name: 1e308}) + "\n")
        file.write(json.dumps({**RECORD, name: -1e308}) + "\n")
    assert command(["inspect", "runs", str(run.path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 200
    assert max(map(len, epoch_table(read_records(run.metrics)))) < 100


@pytest.mark.parametrize("written", ["0" * 64, "", "right"])
def test_another_text_than_the_settings_name_is_refused(run, tmp_path, corpus, config, written):
    """As of `train --config RUN/config.yaml` after the text has changed."""
    checksum = read_config(run).data.checksum if written == "right" else written
    asked = updated(config, {"data": {"checksum": checksum}, "train": {"max_steps": 2}})
    if written == "0" * 64:
        with pytest.raises(ConfigError, match=r"data\.checksum"):
            train(asked, corpus, tmp_path / "new", print_nothing)
        assert not (tmp_path / "new").exists()
    else:
        train(asked, corpus, tmp_path / "new", print_nothing)


@pytest.mark.parametrize(
    ("text", "flags", "code"),
    [
        ("right", [], 0),
        ("other", [], 2),
        ("other", ["--data", "same.txt"], 2),
        ("right", ["--data", "moved.txt"], 0),
        ("right", ["--data", "different.txt"], 2),
    ],
)
def test_a_checksum_in_a_file_of_settings_is_a_promise_about_its_data(tmp_path, monkeypatch, capsys, text, flags, code):
    monkeypatch.chdir(tmp_path)
    right, other = (
        "to be or not to be, that is the question\n" * 29,
        "whether it is nobler in the mind to suffer\n" * 29,
    )
    for name, content in {"same": {"right": right, "other": other}[text], "moved": right, "different": other}.items():
        Path(f"{name}.txt").write_text(content)
    checksum = hashlib.sha256(right.encode()).hexdigest()
    Path("c.yaml").write_text(
        f"data: {{source: same.txt, checksum: {checksum}}}\ntrain: {{max_steps: 2, batch_size: 2, warmup_steps: 0}}\n"
        "model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 7}\n"
    )
    assert command(["train", "--config", "c.yaml", "--out", "run", *flags]) == code
    assert ("data.checksum" in capsys.readouterr().err) == (code == 2)
    assert Path("run").exists() == (code == 0)
    if code == 0:
        assert read_config(RunDirectory(Path("run"))).data.checksum == checksum


def test_an_unchanged_record_counts(run):
    before = len(read_records(run.metrics))
    with run.metrics.open("a") as file:
        file.write(json.dumps(RECORD) + "\n")
    assert len(read_records(run.metrics)) == before + 1


# --- a run directory that is removed, or that was never more than begun ---


@pytest.mark.parametrize("how", ["removed", "removed with its parent", "emptied"])
def test_a_run_directory_that_is_removed_is_made_whole_by_the_next_save(tmp_path, corpus, config, monkeypatch, how):
    """What is said at the end, "go on with", is then true, and the run ends as if nothing had been."""
    out, real, lines = tmp_path / "parent" / "run", loop.gradients, []
    train(config, corpus, tmp_path / "straight", print_nothing)
    longer = updated(config, {"train": {"max_steps": 20}})

    def gradients(run, taken, first, processes):
        step = first // run.rows_per_step
        if step == 7 and not any("was removed" in line for line in lines):
            shutil.rmtree(out.parent if "parent" in how else out)
            if how == "emptied":
                out.mkdir()
        if step == 13 and not resumed:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, taken, first, processes)

    resumed = False
    monkeypatch.setattr(loop, "gradients", gradients)
    with pytest.raises(Interrupted) as stop:
        train(longer, corpus, out, lines.append)
    assert next(line for line in lines if "was removed" in line).startswith("step 9 ")
    assert str(out) in stop.value.how
    resumed = True
    train(longer, corpus, out, lines.append, resume=True)
    names = {c.name: c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(out))}
    assert names["last weights"]
    assert names["logged losses"]
    assert names["optimizer and random states"]
    load_model(out)


def during_step(number, act, monkeypatch):
    """Act once, in the midst of a step."""
    real, due = loop.gradients, [number]

    def gradients(run, taken, first, processes):
        if due and first // run.rows_per_step == due[0]:
            due.clear()
            act()
        return real(run, taken, first, processes)

    monkeypatch.setattr(loop, "gradients", gradients)


@pytest.mark.parametrize("first", ["eval_interval", "save_interval"])
@pytest.mark.parametrize("ended", [False, True])
def test_another_run_that_took_the_place_of_a_removed_one_is_not_written_to(
    tmp_path, corpus, config, monkeypatch, ended, first
):
    out, before = tmp_path / "run", {}
    intervals = {"max_steps": 23, "eval_interval": 23, "save_interval": 23, first: 5}
    other = updated(config, {"seed": 11, "train": {"max_steps": 3}})
    with ExitStack() as other_process:

        def take_the_place():
            shutil.rmtree(out)
            train(other, corpus, out, print_nothing)
            before.update(found_in(out))
            if not ended:
                other_process.enter_context(locked(out))

        monkeypatch.setattr(RunLog, "draw", DRAW)
        monkeypatch.setattr(log, "save_figure", lambda figure, path: path.write_bytes(os.urandom(7)))
        during_step(7, take_the_place, monkeypatch)
        with pytest.raises(CheckpointError, match="holds another run now" if ended else "another training is running"):
            train(updated(config, {"train": intervals}), corpus, out, print_nothing)
    assert before
    assert found_in(out) == before


@pytest.mark.parametrize("what", ["a file", "below a file", "a link to itself"])
def test_a_run_goes_on_while_something_else_has_its_folders_name(tmp_path, corpus, config, monkeypatch, what):
    """What is for people alone is a line then, and so is a save; when the folder is back, nothing is lost."""
    out, away, lines = tmp_path / "parent" / "run", tmp_path / "away", []
    config = updated(config, {"train": {"max_steps": 17, "eval_interval": 2, "save_interval": 2}})
    train(config, corpus, tmp_path / "straight", print_nothing)
    place = out.parent if what == "below a file" else out

    def take_away():
        place.rename(away)
        place.symlink_to(place) if "link" in what else place.touch()

    def bring_back():
        place.unlink()
        away.rename(place)

    monkeypatch.setattr(RunLog, "draw", DRAW)
    monkeypatch.setattr(log, "save_figure", lambda figure, path: path.write_bytes(b"a picture"))
    during_step(13, bring_back, monkeypatch)
    during_step(7, take_away, monkeypatch)
    train(config, corpus, out, lines.append)
    for said in ("best weights not kept: ", "not saved: ", "loss.png not drawn: "):
        assert any(said in line for line in lines), said
    names = {c.name: c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(out))}
    assert names["last weights"]
    assert names["logged losses"]


def test_a_run_directory_may_be_a_link_to_what_is_not_there_yet(tmp_path, corpus, config):
    """As on another disk, where an export may go too."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "run")
    train(updated(config, {"train": {"max_steps": 3}}), corpus, tmp_path / "link", print_nothing)
    assert (tmp_path / "link").is_symlink()
    load_model(tmp_path / "elsewhere" / "run")


def test_a_run_directory_that_was_made_again_is_locked(tmp_path, corpus, config, monkeypatch):
    out, refused = tmp_path / "run", []

    def try_another():
        with pytest.raises(CheckpointError, match="another training is running"):
            train(config, corpus, out, print_nothing, resume=True)
        refused.append(True)

    during_step(11, try_another, monkeypatch)
    during_step(7, lambda: shutil.rmtree(out), monkeypatch)
    train(config, corpus, out, print_nothing)
    assert refused


@pytest.mark.parametrize("what", ["the folder", "the lock"])
def test_a_run_goes_on_in_a_copy_of_its_own_folder(tmp_path, corpus, config, monkeypatch, what):
    """What lies there is its own by its settings, whatever numbers the file system gives the files."""
    out, lines = tmp_path / "run", []
    train(config, corpus, tmp_path / "straight", print_nothing)

    def exchange():
        if what == "the lock":
            (out / LOCK).unlink()
            return
        shutil.copytree(out, tmp_path / "copy")
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "copy", out)

    during_step(7, exchange, monkeypatch)
    train(config, corpus, out, lines.append)
    assert not any("was removed" in line for line in lines)
    names = {c.name: c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(out))}
    assert names["last weights"]
    assert names["logged losses"]


def test_a_run_that_ended_before_it_learned_anything_can_be_begun_again(tmp_path, corpus, config, monkeypatch):
    def no_room(*arguments):
        raise MemoryError

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", no_room)
        with pytest.raises(MemoryError):
            train(config, corpus, out, print_nothing)
    (out / ".minigpt-halfhalf").mkdir()
    for watched in ("tensorboard", "wandb"):
        (out / watched).mkdir()
    (out / "wandb-id").write_text("that of the other run")
    (out / "reference.json").write_text('{"config.json": {"eos_token_id": 1}}')
    smaller = updated(config, {"train": {"batch_size": 3, "max_steps": 7}})
    train(smaller, corpus, out, print_nothing)
    assert read_config(RunDirectory(out)).train.batch_size == 3
    assert not {"reference.json", "wandb-id"} & {path.name for path in out.iterdir()}  # they tell of the other run
    with pytest.raises(CheckpointError, match="not empty"):
        train(smaller, corpus, out, print_nothing)


@pytest.mark.parametrize("name", ["model.safetensors", "last", "previous", ".next", "adapter", ".adapter", "notes.txt"])
def test_a_folder_with_anything_more_is_never_begun_again(run, corpus, config, name):
    kept = [run.config, run.path / ".lock"]
    for path in run.path.iterdir():
        if path not in kept:
            files.remove(path)
    (run.path / name).mkdir()
    with pytest.raises(CheckpointError, match="not empty"):
        train(config, corpus, run.path, print_nothing)


def test_a_run_whose_checkpoints_were_removed_keeps_its_records(run, corpus, config):
    for path in (run.last, run.previous, run.best_weights):
        files.remove(path)
    before = found_in(run.path)
    with pytest.raises(CheckpointError, match="not empty"):
        train(config, corpus, run.path, print_nothing)
    assert found_in(run.path) == before
