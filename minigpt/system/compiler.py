"""The machine's C compiler, where there is one."""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from minigpt.errors import first_line

_NAMES = ("cc", "gcc", "clang")
# For the processor at hand. OpenMP's functions are not linked: they are torch's, so that both share one set of threads.
_FLAGS = (
    "-O2", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-nodefaultlibs",
    "-lc",
)  # fmt: skip
_PATIENCE = 60  # seconds


def shared_library(source: Path) -> ctypes.CDLL:
    """A C file as a library, for this process alone.

    It is compiled now, in about a second, in a private folder that is gone when this returns. So no library is ever
    loaded that others could have written, or that was made for another processor.

    Args:
        source: the file. The compiler is `CC` of the environment, or the first of cc, gcc and clang whose library can
            be loaded: that of clang needs its own OpenMP.

    Raises:
        RuntimeError: if there is no compiler, or none makes a library that can be loaded; with the first one's reason.
    """
    try:
        chosen = shlex.split(os.environ.get("CC", ""))
    except ValueError as problem:
        raise RuntimeError(first_line(problem)) from None
    found: dict[str, str] = {}
    for path in filter(None, map(shutil.which, _NAMES)):
        found.setdefault(os.path.realpath(path), path)  # one compiler may have several names
    compilers = [chosen] if chosen else [[path] for path in found.values()]
    problems = []
    for compiler in compilers:
        try:
            return _compiled(source, compiler)
        except RuntimeError as problem:
            problems.append(problem)
    raise problems[0] if problems else RuntimeError(f"there is no C compiler ({', '.join(_NAMES)})")


def _compiled(source: Path, compiler: list[str]) -> ctypes.CDLL:
    """The library that this compiler, a command line, makes of a file."""
    try:
        with tempfile.TemporaryDirectory(prefix="minigpt-") as folder:
            library = Path(folder, f"{source.stem}.so")
            with subprocess.Popen(  # noqa: S603 - the user's own compiler, and a file of ours
                [*compiler, str(source), *_FLAGS, "-o", str(library)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                errors="replace", start_new_session=True,
                env={**os.environ, "LC_ALL": "C", "TMPDIR": folder},  # whose messages say "error"
            ) as process:  # fmt: skip
                try:
                    _, said = process.communicate(timeout=_PATIENCE)
                except BaseException:
                    with suppress(ProcessLookupError):  # `CC` may be a script, and ends with all that it has started
                        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
                    raise
            if process.returncode:
                wrong = [line for line in said.splitlines() if "error" in line]
                wrong = wrong or [f"exit status {process.returncode}"]
                raise RuntimeError(f"{Path(compiler[0]).name}: {wrong[0]}")
            try:
                return ctypes.CDLL(str(library))
            except OSError as problem:  # its first words are the path, which is gone when anybody reads them
                said = str(problem).removeprefix(f"{library}: ")
                raise OSError(
                    "clang needs libomp: set CC=gcc, or LD_PRELOAD=libomp.so" if "__kmpc_" in said else said
                ) from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        raise RuntimeError(first_line(problem)) from None
