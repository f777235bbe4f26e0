"""What the README's install leaves behind works from every folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USE = "import minigpt; from minigpt import GPT; print(minigpt.__file__)\n"


@pytest.fixture(scope="module")
def above(tmp_path_factory):
    """A folder with a clone named minigpt, as git names it, and a virtual environment that has it installed."""
    folder = tmp_path_factory.mktemp("above")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / "minigpt").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / "minigpt")
    shutil.copytree(ROOT / "minigpt", folder / "minigpt" / "minigpt", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-e", folder / "minigpt"], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([python, "-c", ask], text=True).strip()
    here = [path for path in sys.path if path.endswith("-packages")]  # the dependencies need no second installation
    Path(packages, "dependencies.pth").write_text("\n".join(here))
    (folder / "script.py").write_text(USE)
    (folder / "test_mine.py").write_text(f"def test_mine():\n    {USE}")
    return folder, python


@pytest.mark.network
def test_a_wheel_has_every_file_of_the_package(above, tmp_path):
    """The page's HTML, CSS and JavaScript too."""
    folder, python = above
    subprocess.run([python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, folder / "minigpt"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {path for path in (ROOT / "minigpt").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.suffix for path in files} >= {".html", ".css", ".js", ".py"}
    assert {path.relative_to(ROOT).as_posix() for path in files} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.network
@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["-c", USE], None),
        (["script.py"], None),
        (["-i"], USE),
        (["-m", "pytest", "-q", "-s", "test_mine.py"], None),
    ],
    ids=["command", "script", "prompt", "pytest"],
)
def test_the_package_is_found_in_the_folder_above_its_clone(above, arguments, typed):
    """Where the clone's folder could be taken for a package without code."""
    folder, python = above
    done = subprocess.run([python, *arguments], cwd=folder, input=typed, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(folder / "minigpt" / "minigpt" / "__init__.py") in done.stdout, done.stderr
