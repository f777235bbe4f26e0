"""`scripts/benchmark.py` in its smallest sizes: that it runs; and what all scripts refuse before any work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_gpu_s_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = script(
        "benchmark", "gpu", "--size", "tiny", "--quick", "--rounds", "1", "--out", str(tmp_path / "new" / "out")
    )
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
        (["benchmark", "load", "--rounds", "-5"], "--rounds -5 is not from 0 to"),
        (
            ["benchmark", "load", "--only", "minigpt int4"],
            "load has no 'minigpt int4' of ours; it has: minigpt, minigpt float16",
        ),
        (["benchmark", "load", "--out", "a-file"], "--out a-file cannot be a folder"),
        (["kill_training", "--kills", "0"], "--kills 0 proves nothing"),
        (["decoder_study", "--model", "./nosuch"], "./nosuch does not exist"),
        (["compare_commits", "no such commit"], "there is no commit 'no such commit' here"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_race(arguments: list[str], said: str) -> None:
    Path("a-file").write_text("kept", encoding="utf-8")
    done = script(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [path.name for path in Path().iterdir()] == ["a-file"]
