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
_FLAGS = ("-O2", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-nodefaultlibs", "-lc")
_PATIENCE = 60  # seconds


def shared_library(source: Path) -> ctypes.CDLL:
    """A C file as a library, for this process alone.

    It is compiled now, in about a second, in a private folder that is gone when this returns. So no library is ever
    loaded that others could have written, or that was made for another processor.

    Args:
        source: the file. The compiler is `CC` of the environment, or the first of cc, gcc and clang.

    Raises:
        RuntimeError: if there is no compiler, or it cannot make a library that can be loaded.
    """
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or [*filter(None, map(shutil.which, _NAMES))][:1]
        if not compiler:
            raise RuntimeError(f"there is no C compiler ({', '.join(_NAMES)})")
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
            return ctypes.CDLL(str(library))
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        raise RuntimeError(first_line(problem)) from None
