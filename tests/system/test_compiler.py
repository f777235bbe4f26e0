"""A C file as a library: made by the machine's compiler, or refused in one line."""

import ctypes
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from minigpt.system.compiler import shared_library

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "seven.c"
    path.write_text("int seven(int x) { return 7 * x; }\n")
    return path


@needs_compiler
def test_a_function_is_compiled_and_nothing_is_left(source, tmp_path, monkeypatch):
    """In a folder of this user alone, whose name nobody can know before; whatever the compiler writes lies there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/proc")  # where nobody can write
    modes, real = [], ctypes.CDLL
    noted = lambda path: modes.append(Path(path).parent.stat().st_mode & 0o777) or real(path)  # noqa: E731
    monkeypatch.setattr(ctypes, "CDLL", noted)
    assert shared_library(source).seven(11) == 77
    assert modes == [0o700]
    assert [path.name for path in tmp_path.iterdir()] == ["seven.c"]


@needs_compiler
def test_the_compiler_of_the_environment_is_taken(source, tmp_path, monkeypatch):
    noted = tmp_path / "noted"
    wrapper = tmp_path / "my compiler"
    wrapper.write_text(f'#!/bin/sh\necho "$1 $LC_ALL" > "{noted}"\nshift\nexec cc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", f"'{wrapper}' -first")
    assert shared_library(source).seven(2) == 14
    assert noted.read_text() == "-first C\n"  # and its errors are in English


@needs_compiler
def test_what_does_not_compile_is_refused_with_the_compilers_first_error(source):
    source.write_text("int seven(int x) { return seventy; }\n")
    with pytest.raises(RuntimeError, match=r"seven.c:1:\d+: error: .*seventy"):
        shared_library(source)


@needs_compiler
def test_what_cannot_be_loaded_is_refused(source):
    source.write_text("int missing(int); int seven(int x) { return missing(x); }\n")
    with pytest.raises(RuntimeError, match=r"^undefined symbol: missing"):  # its path, which is gone, is left out
        shared_library(source)


@needs_compiler
def test_clang_without_its_openmp_says_what_to_do(source):
    source.write_text("int __kmpc_fork_call(int); int seven(int x) { return __kmpc_fork_call(x); }\n")
    with pytest.raises(RuntimeError, match=r"^clang needs libomp: set CC=gcc, or LD_PRELOAD=libomp\.so$"):
        shared_library(source)


@needs_compiler
def test_the_next_compiler_is_taken_where_the_first_ones_library_cannot_be_loaded(source, tmp_path, monkeypatch):
    """As that of clang, without its OpenMP; and one that is found under two names is asked once."""
    monkeypatch.delenv("CC", raising=False)
    real, noted = shutil.which("cc") or shutil.which("gcc"), tmp_path / "noted"
    scripts = {
        "cc": f'echo cc >> "{noted}"; exec "{real}" "$@" -DNEEDS_MISSING',
        "gcc": f'echo gcc >> "{noted}"; exec "{real}" "$@"',
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "clang").symlink_to(tmp_path / "cc")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    source.write_text(
        "#ifdef NEEDS_MISSING\nint missing(int); int seven(int x) { return missing(x); }\n"
        "#else\nint seven(int x) { return 7 * x; }\n#endif\n"
    )
    assert shared_library(source).seven(3) == 21
    assert noted.read_text() == "cc\ngcc\n"
    (tmp_path / "gcc").write_text("#!/bin/sh\nexit 1\n")
    noted.unlink()
    with pytest.raises(RuntimeError, match=r"^undefined symbol: missing"):  # the first one's reason
        shared_library(source)
    assert noted.read_text() == "cc\n"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no groups of processes")
@pytest.mark.parametrize("stopped", [subprocess.TimeoutExpired, KeyboardInterrupt])
def test_a_compiler_that_hangs_ends_with_all_that_it_started(source, tmp_path, monkeypatch, stopped):
    """A script that waits for another process, which opens a pipe: it is at an end when nobody holds it any more."""
    fifo, wrapper = tmp_path / "pipe", tmp_path / "cc"
    os.mkfifo(fifo)
    wrapper.write_text(f'#!/bin/sh\n(sleep 60; true) > "{fifo}"\ntrue\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    open_now = []

    def communicate(*_: object, **__: object) -> None:
        open_now.append(fifo.open("rb"))  # once the process is there
        raise stopped("cc", 60)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(KeyboardInterrupt if stopped is KeyboardInterrupt else RuntimeError):
        shared_library(source)
    (pipe,) = open_now
    with pipe:
        ready, _, _ = select.select([pipe], [], [], 30)
        assert ready
        assert pipe.read() == b""


@pytest.mark.parametrize("cc", ["/nowhere/cc", "'", "false"])
def test_a_compiler_that_is_none_is_refused(source, monkeypatch, cc):
    monkeypatch.setenv("CC", cc)
    with pytest.raises(RuntimeError):
        shared_library(source)


def test_without_a_compiler_that_is_the_reason(source, tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"there is no C compiler \(cc, gcc, clang\)"):
        shared_library(source)
