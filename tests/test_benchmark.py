"""`scripts/benchmark.py` in its smallest sizes: that it runs; and what all scripts refuse before any work."""

import json
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
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


@pytest.mark.slow
def test_processes_and_threads_train_on_the_same_batches(tmp_path: Path) -> None:
    done = script(
        "benchmark", "train", "--quick", "--case", "small", "--only", "minigpt torch", "--workers", "1x1,2x1",
        "--rounds", "0", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "benchmark-train.jsonl").read_text().splitlines()]
    turns = {line["contestant"]: line for line in lines if "turn" in line}
    assert {name: turn["amount"] for name, turn in turns.items()} == {
        "minigpt torch, 1 x 1": 3 * 12 * 64,
        "minigpt torch, 2 x 1": 3 * 12 * 64,
    }
    one, two = turns.values()
    assert two["flops"] == one["flops"] / 2  # of the process whose time is taken
    assert "| small | minigpt torch, 2 x 1 |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["benchmark", "load", "--rounds", "-5"], "--rounds -5 is not from 0 to"),
        (
            ["benchmark", "load", "--only", "minigpt int4"],
            "load has no 'minigpt int4' of ours; it has: minigpt, minigpt float16",
        ),
        (["benchmark", "load", "--workers", "2x1"], "--workers 2x1 is not processes x threads of train"),
        (["benchmark", "train", "--workers", "1x1,0x2"], "--workers 0x2 is not processes x threads of train"),
        (["benchmark", "load", "--out", "a-file"], "--out a-file cannot be a folder"),
        (["kill_training", "--kills", "0"], "--kills 0 proves nothing"),
        (["decoder_study", "--model", "./nosuch"], "./nosuch does not exist"),
        (["compare_commits", "no such commit"], "there is no commit 'no such commit' here"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_race(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the process that Python starts for a script, but in this one, where torch is imported already."""
    Path("a-file").write_text("kept", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / f"{arguments[0]}.py"), run_name="__main__")
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert [path.name for path in Path().iterdir()] == ["a-file"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark

    return benchmark


@pytest.mark.parametrize(
    ("case", "quick", "steps"),
    # windows of a step and tokens of a window: 12 x 64, 24 x 128, 64 x 256
    [("small", False, 42), ("shakespeare-quick", False, 10), ("shakespeare-char", False, 3), ("small", True, 3)],
)
def test_a_turn_reads_32768_tokens_in_whole_steps(benchmark: ModuleType, case: str, quick: bool, steps: int) -> None:
    """Never more, except that there are three steps."""
    assert benchmark.steps_of({"kind": "train", "case": case, "quick": quick}) == steps


def test_the_readme_s_table_is_made_of_the_committed_figures(benchmark: ModuleType) -> None:
    table = benchmark.speeds(benchmark.read_lines(benchmark.FIGURES))
    readme = benchmark.README.read_text(encoding="utf-8")
    assert readme.count(f"{benchmark.BEGINS}\n{table}\n{benchmark.ENDS}") == 1
    assert table.count("|\n") > 3


ABOUT = {
    "kind": "train", "size": None, "processor": "AMD EPYC, AVX512", "instructions": ["avx2"], "cores": 2, "threads": 1,
    "clock": "cpu", "versions": {"torch": "2.13.0", "minigpt": "0.1.0"},
}  # fmt: skip


def result(kind: str, contestant: str, **values: object) -> dict[str, object]:
    return {
        "result": kind, "case": "small", "contestant": contestant, "unit": "tokens/s", "median": 1234.5,
        "against": "nanogpt", "ratio": 1.0, "peak_bytes": 351e6,
    } | values  # fmt: skip


def test_new_figures_take_the_place_of_those_of_their_kind_alone(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "FIGURES", Path("figures.jsonl"))
    monkeypatch.setattr(benchmark, "README", Path("README.md"))
    Path("README.md").write_text(f"before\n{benchmark.BEGINS}old\n{benchmark.ENDS}after\n", encoding="utf-8")
    quality = [
        ABOUT | {"kind": "quality", "clock": "wall"},
        result("quality", "nanogpt", case="quick", unit="s", median=1 / 125, loss=1.88649),
        result("quality", "minigpt", case="quick", unit="s", median=1 / 50, ratio=2.5, loss=1.57251),
    ]
    train = [
        ABOUT,
        {"turn": 1},
        result("train", "minigpt fast", ratio=1.5, peak_bytes=3987e5),
        result("train", "nanogpt"),
    ]
    for name, lines in {"one": quality, "other": [ABOUT, result("train", "nanogpt")], "train": train}.items():
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        benchmark.write_readme([Path(name)])
    text = Path("README.md").read_text(encoding="utf-8")
    assert text.startswith(f"before\n{benchmark.BEGINS}\n|")
    assert text.endswith(f"\n{benchmark.ENDS}after\n")
    assert text.count("nanogpt") == 2
    assert (
        "| training, 4 layers, width 128, 12 windows of 64 | nanogpt: 1,234 tokens/s | fast 1.50 × | 351, 399 MB |"
        in text
    )
    assert "| a whole training: quick, beside" in text
    assert " | nanogpt: 125 s, loss 1.886 | 2.50 ×, loss 1.573 | 351, 351 MB |" in text
    assert "quality: AMD EPYC, AVX512 (avx2), 1 thread of 2 cores, wall time, torch 2.13.0." in text
    benchmark.write_readme([])
    assert Path("README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "name",
    ["", "AMD | EPYC", "a\x1b[31mred\x07 one", "two\nlines", "Zwölf <b>Kerne</b>", "`x` *y* [z](w)", "\u202eevil"],
)
def test_a_processor_s_name_cannot_break_the_table(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(benchmark, "processor", lambda: name)
    arguments = Namespace(kind="train", size="124m", clock="wall")
    about = json.loads(json.dumps(benchmark.machine(arguments)))
    assert about["processor"] == name
    words = benchmark.machine_in_words(about)
    assert words.isprintable()
    assert not re.search(r"(?<!\\)[|<>`*\[\]]", words)
    assert f"torch {about['versions']['torch']}".replace("_", r"\_") in words
