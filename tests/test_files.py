"""A file is whole, or as it was."""

import os
import stat

import pytest

from minigpt.files import atomic_write, write_text


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
