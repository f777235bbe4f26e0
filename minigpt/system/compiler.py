"""The machine's C compiler, where there is one."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
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
            subprocess.run(  # noqa: S603 - the user's own compiler, and a file of ours
                [*compiler, str(source), *_FLAGS, "-o", str(library)],
                check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=_PATIENCE, env={**os.environ, "LC_ALL": "C"},  # whose messages say "error"
            )  # fmt: skip
            return ctypes.CDLL(str(library))
    except subprocess.CalledProcessError as failed:
        wrong = [line for line in failed.stderr.splitlines() if "error" in line] or [f"exit status {failed.returncode}"]
        raise RuntimeError(f"{Path(compiler[0]).name}: {wrong[0]}") from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        raise RuntimeError(first_line(problem)) from None
