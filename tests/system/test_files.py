"""A file is whole, or as it was."""

import errno
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from minigpt.data.documents import read_documents
from minigpt.errors import CheckpointError, DataError, InputError
from minigpt.formats.weights import open_weights
from minigpt.system import files
from minigpt.system.downloads import mismatch
from minigpt.system.files import (
    atomic_folder,
    atomic_write,
    check_unused,
    first_bytes,
    json_items,
    leftovers,
    listed,
    new_folder,
    read_json,
    write_text,
    writing,
)
from minigpt.tokenizers import AddedToken, CharTokenizer
from minigpt.training.log import read_records


def test_the_old_content_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "old\n")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old\n"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    path = tmp_path / "b.txt"
    write_text(path, "old")

    def fail_halfway():
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail_halfway()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_text_is_utf8_with_its_line_ends(tmp_path):
    write_text(tmp_path / "t", "naïve\r\n\n")
    assert (tmp_path / "t").read_bytes() == "naïve\r\n\n".encode()


def test_others_may_read_it(tmp_path):
    write_text(tmp_path / "t", "x")
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_mount_with_permissions_of_its_own_is_written_to(tmp_path, monkeypatch):
    """As a folder of Windows in a virtual machine, where nobody may change the mode of a file."""

    def refused(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    monkeypatch.setattr(os, "fchmod", refused)
    write_text(tmp_path / "t", "x")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"t": "x"}


def test_a_folder_that_cannot_be_renamed_is_moved_aside_with_all_that_is_in_it(tmp_path, monkeypatch):
    """As one of a container's image."""
    folder, real = tmp_path / "last", os.replace
    write_text(folder / "deep" / "mine.txt", "kept")
    (folder / "deep" / "mine.txt").chmod(0o500)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("nowhere")

    def replace(source, target):
        if Path(source) == folder:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert files.make_way(folder, {"manifest.json"}).endswith(f"is {tmp_path / 'last-moved-aside'} now")
    aside = tmp_path / "last-moved-aside"
    assert list(tmp_path.iterdir()) == [aside]
    assert {str(path.relative_to(aside)) for path in aside.rglob("*")} == {"deep", "deep/mine.txt", "empty", "link"}
    assert os.readlink(aside / "link") == "nowhere"
    assert (aside / "deep" / "mine.txt").read_text() == "kept"
    assert stat.S_IMODE((aside / "deep" / "mine.txt").stat().st_mode) == 0o500


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_when_it_is_whole(tmp_path, there):
    folder = tmp_path / "deep" / "out"
    if there:
        folder.mkdir(parents=True)
        number = folder.stat().st_ino
    with atomic_folder(folder) as part:
        (part / "a").write_text("1")
        assert not (folder / "a").exists()
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    if there:
        assert folder.stat().st_ino == number  # it was filled, not replaced
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_no_parents_behind(tmp_path, error):
    (tmp_path / "old").mkdir()

    def fail_halfway():
        with atomic_folder(tmp_path / "old" / "new" / "newer" / "out") as part:
            (part / "a").write_text("1")
            raise error

    with pytest.raises(type(error)):
        fail_halfway()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["old"]


def test_long_lists_are_cut():
    assert listed([str(n) for n in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed([str(n) for n in range(67)], "; ") == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9 and 57 more"


@contextmanager
def another_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(call, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["mounted", "linked", "linked to nothing yet", "all else is read-only"])
def test_a_folder_on_another_disk_is_filled(tmp_path, kind):
    """No rename goes from one file system to another, or through a folder that cannot be written."""
    with another_disk(tmp_path / "disk") as disk:
        (disk / "there").mkdir()
        out = {"mounted": disk / "there" / "m", "linked": disk / "there", "linked to nothing yet": disk / "not" / "yet"}
        if kind == "all else is read-only":
            with another_disk(disk / "there" / "m"):
                (disk / "there" / "m").chmod(0o777)
                subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
                fill(disk / "there" / "m")
        elif kind == "mounted":
            with another_disk(out[kind]):
                fill(out[kind])
        else:
            (tmp_path / "link").symlink_to(out[kind])
            fill(tmp_path / "link")
            assert (tmp_path / "link").is_symlink()


def fill(folder: Path) -> None:
    with atomic_folder(folder) as part:
        (part / "a").write_text("1")
        assert not (folder / "a").exists()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "1"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        b"\n<!DOCTYPE html><title>Please log in</title>",
        b"\xef\xbb\xbf<HTML>proxy</HTML>",
        b'<?xml version="1.0"?><Error><Code>NoSuchBucket</Code></Error>',
        b"<Error>NoSuchBucket</Error>",
    ],
)
def test_whoever_reads_a_file_knows_what_came_in_its_place(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is empty|git-lfs pointer|HTML or XML page"):
        first_bytes(path)
    assert not mismatch(path, "0" * 64).startswith("a truncated, damaged or different file")


@pytest.mark.parametrize("text", ['{"a": 3, "a": 5}', '{"b": [{"a": {"c": 1}, "a": 2}]}', '{"a": 1, "\\u0061": 1}'])
def test_a_key_that_is_there_twice_is_refused_in_every_file_of_json(tmp_path, text):
    """At any depth: Python keeps the last, and nothing that was written may be dropped without a word."""
    for name in ("config.json", "e.jsonl", "metrics.jsonl", "model.safetensors"):
        (tmp_path / name).write_text(f"{text}\n")
    header = text.encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="the key 'a' is there twice"):
        read_json(tmp_path / "config.json")
    (tmp_path / "e.jsonl").write_text(f'{{"text": "x"}}\n{text}\n')
    with pytest.raises(DataError, match=r"line 2 .*the key 'a' is there twice"):
        read_documents(tmp_path / "e.jsonl")
    with pytest.raises(CheckpointError, match="the key 'a' is there twice"):
        open_weights(tmp_path / "model.safetensors")


def test_a_number_of_any_length_is_json(tmp_path):
    """Nobody may ask for the field that has it."""
    number = "-" + "7" * 5000
    (tmp_path / "config.json").write_text(f'{{"a": {number}, "b": 3}}')
    assert read_json(tmp_path / "config.json") == {"a": -math.inf, "b": 3}
    (tmp_path / "e.jsonl").write_text(f'{{"text": "x", "hash": {number}}}\n')
    assert [one.text for one in read_documents(tmp_path / "e.jsonl").items] == ["x"]
    assert list(json_items(f"[{number}]")) == [-math.inf]


def test_a_record_with_a_key_twice_is_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1, "step": 2}\n{"step": 3, "seconds": 5}\n')
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [3]


def test_only_what_is_named_by_minigpt_itself_was_left_by_it(tmp_path):
    """Names that people give, and a folder where a file is made or a file where a folder is, stay."""
    ours = {".minigpt-abcd_123", ".minigpt-loss.png.k3_x9zab.tmp", ".minigpt-wandb-id.abcdefgh.tmp"}
    theirs = [".minigpt-notes", ".my.tmp", ".minigpt-", ".minigpt-abcdefghi", ".my.notes.tmp", ".minigpt-ABCDEFGH",
              ".a.abcdefgh.tmp", "minigpt-abcdefgh", ".minigpt-a.abcdefgh.tmp.gz", ".minigpt-1234567\n"]  # fmt: skip
    for name in [*ours, *theirs]:
        (tmp_path / name).write_bytes(b"x") if ".tmp" in name else (tmp_path / name).mkdir()
    (tmp_path / ".minigpt-notebook").mkdir()
    (tmp_path / ".minigpt-notebook" / "mine.txt").write_bytes(b"x")
    (tmp_path / ".minigpt-afile001").write_bytes(b"x")
    (tmp_path / ".minigpt-folder.abcdefgh.tmp").mkdir()
    assert {path.name for path in leftovers(tmp_path)} == ours


def test_what_a_killed_process_leaves_is_found(tmp_path):
    """By the names that are really made, and not by what somebody thinks they are."""
    (tmp_path / "other").mkdir()
    with new_folder(tmp_path / "folder"), atomic_write(tmp_path / "file.json"):
        assert sorted(path.is_dir() for path in leftovers(tmp_path)) == [False, True]


def written_by_another(how: str, path: Path, lives: bool) -> subprocess.Popen[bytes]:
    """A process that has begun to write at a path, and was killed there, or waits."""
    lines = f"""
        import os, pathlib, signal, time
        from minigpt.system.files import atomic_folder, atomic_write
        path = pathlib.Path({str(path)!r})
        with {how}(path) as found:
            found.write(b"half") if {how} is atomic_write else (found / "half").write_text("a")
            {how} is atomic_write and found.flush()
            print("begun", flush=True)
            time.sleep(600) if {lives} else os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(lines)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    if not lives:
        process.wait()
    return process


PLACES = {"a file": "atomic_write", "a new folder": "atomic_folder", "a folder that is there": "atomic_folder"}


@pytest.mark.parametrize("lives", [False, True], ids=["killed", "alive"])
@pytest.mark.parametrize("place", PLACES)
def test_what_a_killed_process_leaves_is_cleared_by_the_next_in_its_place(tmp_path, place, lives):
    """What another process still writes stays, and so does a file of a user's."""
    inside = place == "a folder that is there"
    path = tmp_path / "place" / "out"
    (path if inside else path.parent).mkdir(parents=True)
    (path.parent / ".minigpt-mine").mkdir()
    process = written_by_another(PLACES[place], path, lives)
    try:
        (left,) = leftovers(path if inside else path.parent)
        if PLACES[place] == "atomic_write":
            write_text(path, "whole")
        elif lives and inside:
            with pytest.raises(CheckpointError, match="out is not empty"):
                check_unused(path)
        else:
            check_unused(path)
            with atomic_folder(path) as part:
                (part / "whole").write_text("a")
            assert [found.name for found in path.iterdir() if found != left] == ["whole"]
        assert left.exists() == lives
        assert {found.name for found in path.parent.iterdir()} - {left.name} == {".minigpt-mine"} | {"out"}
    finally:
        process.kill()
        process.communicate()


class Counted(str):
    """A text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)


def test_names_in_a_file_are_compared_about_once_each():
    """A header, a vocabulary or added tokens may have a hundred thousand names: all with all would take hours."""
    names = [Counted(f"name {number}") for number in range(2003)]
    Counted.compared = 0
    with pytest.raises(ValueError, match=f"^the key '{names[-1]}' is there twice$"):
        files._object([(name, 1) for name in [*names, Counted(names[-1])]])
    assert Counted.compared < 3 * len(names)

    Counted.compared = 0
    with pytest.raises(InputError, match=f"'{names[-1]}' is added, and a token already"):
        CharTokenizer("abc").with_added([AddedToken(name) for name in [*names, Counted(names[-1])]], {})
    assert Counted.compared < 3 * len(names)


@pytest.mark.parametrize("letter", ["b", "字"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path, letter):
    path = tmp_path / (letter * (250 // len(letter.encode())) + ".json")
    write_text(path, "x")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def into_a_folder(path):
    with atomic_folder(path.parent / "folder") as part:
        write_text(part / "inside.txt", "a")


def into_an_empty_folder(path):
    (path.parent / "folder").mkdir()
    into_a_folder(path)


def into_a_new_folder(path):
    with new_folder(path.parent / "folder") as part, atomic_write(part / "inside.txt") as file:
        file.write(b"a")


def by_itself(path):
    with writing(path):
        os.fsync(0)


WRITTEN = {  # how it is written -> what an error names
    "a file": (partial(write_text, text="a"), "file.txt"),
    "no file of ours": (by_itself, "file.txt"),
    "a folder": (into_a_folder, "folder/inside.txt"),
    "an empty folder": (into_an_empty_folder, "folder/inside.txt"),
    "a new folder": (into_a_new_folder, "folder/inside.txt"),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_full_disk_names_what_was_being_written(tmp_path, monkeypatch, how):
    """And no temporary file, which is not there any more."""
    write, named = WRITTEN[how]

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write(tmp_path / "file.txt")
    assert Path(error.value.filename) == tmp_path / named


@pytest.mark.parametrize("how", ["a file", "a new folder"])
def test_what_cannot_be_made_is_named_and_no_temporary_file(tmp_path, monkeypatch, how):
    write, _ = WRITTEN[how]

    def refused(dir, prefix, **_):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/{prefix}abc")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda suffix, prefix, dir: refused(dir, prefix))
    with pytest.raises(PermissionError) as error:
        write(tmp_path / "file.txt")
    assert Path(error.value.filename).parent == tmp_path
    assert ".minigpt-" not in error.value.filename
