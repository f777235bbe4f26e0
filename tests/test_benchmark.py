"""`scripts/benchmark.py` in its smallest sizes: that it runs, and what it refuses before any work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


def benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


def test_the_gpu_s_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = benchmark("gpu", "--size", "tiny", "--quick", "--rounds", "1", "--out", str(tmp_path / "new" / "out"))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "new/out/benchmark-gpu.jsonl").read_text().splitlines()]
    results = {line["case"]: line for line in lines if "result" in line}
    assert {*results} == {"training", "decode, 1 row", "decode, 64 rows"}
    assert not [line for line in lines if "error" in line]
    assert 0 < results["training"]["share_of_product_rate"]
    turns = {line["case"]: line["amount"] for line in lines if "turn" in line}
    # 3 steps of 2 rows of the whole context; 4 new tokens for each row.
    assert turns == {"training": 3 * 2 * 128, "decode, 1 row": 4, "decode, 64 rows": 4 * 64}
    assert "| training | minigpt |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["load", "--rounds", "-5"], "--rounds -5 is not from 0 to"),
        (["load", "--rounds", "10" * 20], "is not from 0 to"),
        (["load", "--only", "minigpt int4"], "load has no 'minigpt int4' of ours; it has: minigpt, minigpt float16"),
        (["load", "--out", "a-file"], "--out a-file cannot be a folder"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_race(arguments: list[str], said: str) -> None:
    Path("a-file").write_text("kept", encoding="utf-8")
    done = benchmark(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [path.name for path in Path().iterdir()] == ["a-file"]
