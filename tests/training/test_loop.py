"""The loop: reproducible to the byte, exact under accumulation, and unable to lose the best weights."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt.cli.main import answer as command
from minigpt.config import GPTConfig, RunConfig, TrainConfig, preset, updated
from minigpt.data.corpora import Corpus
from minigpt.data.verse import write_verse
from minigpt.errors import CheckpointError, ConfigError, DataError, DivergenceError
from minigpt.evaluation.loss import Evaluation
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import RunDirectory, newest_run, read_config, unused_run
from minigpt.training import loop
from minigpt.training.loop import train

TEXT = "".join(f"{word} {number}\n" for number, word in enumerate(["to", "be", "or", "not"] * 50))
CORPUS = Corpus("counting", TEXT, "made up for tests")
SMALL = RunConfig(
    model=GPTConfig(block_size=7, n_layer=2, n_head=1, n_embd=6),
    train=TrainConfig(max_steps=6, batch_size=4, warmup_steps=2, eval_interval=3, save_interval=2, optimizer="muon"),
    device="cpu",
    dtype="float32",
)


def quiet(line: str) -> None:
    pass


def read_metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_leaves_a_complete_directory(tmp_path):
    lines = []
    result = train(SMALL, CORPUS, tmp_path / "run", lines.append)
    run = RunDirectory(tmp_path / "run")
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml", "tokenizer.json", "model.safetensors", "last", "previous", "metrics.jsonl", "loss.png",
        "samples.txt", ".lock",
    }  # fmt: skip
    assert run.plot.read_bytes().startswith(b"\x89PNG")
    assert (result.step, result.out) == (6, str(run.path))
    assert result.best_val_loss <= result.val_loss
    assert result.tokens_per_second > 0
    (model, tokenizer), config = load_model(run.path), read_config(run)
    assert model.num_parameters() == result.parameters
    assert config.model.vocab_size == tokenizer.vocab_size == len(set(TEXT))
    assert not model.training
    records = read_metrics(run.metrics)
    assert [r["step"] for r in records if "val_loss" in r] == [3, 6]
    last = next(r for r in reversed(records) if "train_loss" in r)
    assert last.keys() == {"step", "tokens", "seconds", "train_loss", "lr", "grad_norm", "tokens_per_second"}
    assert last["tokens"] == 6 * 4 * 7
    assert f"ln {len(set(TEXT))} = {math.log(len(set(TEXT))):.3f}" in "\n".join(lines)
    assert "--- step 3 ---" in run.samples.read_text()


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, optimizer):
    config = updated(SMALL, {"train": {"optimizer": optimizer}, "model": {"dropout": 0.1}})
    for name in ("a", "b"):
        train(config, CORPUS, tmp_path / name, quiet)
    train(dataclasses.replace(config, seed=1), CORPUS, tmp_path / "c", quiet)
    a, b, c = (file_hash(RunDirectory(tmp_path / name).last_weights) for name in "abc")
    assert a == b
    assert a != c


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_is_exact(tmp_path, optimizer):
    """8 x 1 = 4 x 2 = 1 x 8: the same windows, the same mean gradient, the same logged loss."""
    results = []
    for batch_size in (8, 4, 1):
        config = updated(
            SMALL,
            {"train": {"batch_size": batch_size, "accumulation_steps": 8 // batch_size, "optimizer": optimizer}},
        )
        out = tmp_path / str(batch_size)
        train(config, CORPUS, out, quiet)
        model, _ = load_model(out / "last")
        loss = read_metrics(RunDirectory(out).metrics)[-2]["train_loss"]
        results.append((torch.cat([p.flatten() for p in model.parameters()]), loss))
    for weights, loss in results[1:]:
        assert weights.dtype == torch.float64
        assert (weights - results[0][0]).abs().max() < 1e-10
        assert loss == pytest.approx(results[0][1], abs=1e-12)


@pytest.mark.usefixtures("no_plots")
def test_a_worse_evaluation_never_replaces_the_best_weights(tmp_path, monkeypatch):
    """nanoGPT overwrites its best loss with a worse one when it always saves (its train.py, line 274)."""
    losses = iter([2.0, 1.0, 3.0])
    monkeypatch.setattr(loop, "evaluate_batches", lambda *_: Evaluation(next(losses), 10))
    config = updated(SMALL, {"train": {"eval_interval": 2, "save_interval": 1}})
    written = []
    real = loop.keep_best

    def watch(run, model, loss, step, base):
        lines = real(run, model, loss, step, base)
        if not written or file_hash(run.best_weights) != written[-1][1]:
            written.append((step, file_hash(run.best_weights)))
        return lines

    monkeypatch.setattr(loop, "keep_best", watch)
    result = train(config, CORPUS, tmp_path / "run", quiet)
    assert (result.val_loss, result.best_val_loss) == (3.0, 1.0)
    run = RunDirectory(tmp_path / "run")
    assert [step for step, _ in written] == [2, 4]
    assert file_hash(run.best_weights) == written[1][1] != written[0][1]
    best, last = load_file(run.best_weights), load_file(run.last_weights)
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_weights_are_saved_before_they_are_evaluated(tmp_path, monkeypatch):
    """A final evaluation that dies must not cost the run (nanochat issue 446)."""

    def dies(*_):
        raise MemoryError

    monkeypatch.setattr(loop, "evaluate_batches", dies)
    with pytest.raises(MemoryError):
        train(updated(SMALL, {"train": {"eval_interval": 6}}), CORPUS, tmp_path / "run", quiet)
    run = RunDirectory(tmp_path / "run")
    load_model(run.last)
    assert run.plot.is_file()


def test_loss_falls_and_the_floor_is_drawn(tmp_path, monkeypatch):
    """On the built-in corpus, whose entropy is known: better than chance, and not below the floor."""
    short = Corpus("verse", write_verse(num_characters=20_000).text[:20_000], "made up", lambda start, stop: 0.4)
    lines = []
    learn = {"max_steps": 120, "eval_interval": 120, "warmup_steps": 5, "learning_rate": 0.02}
    config = updated(SMALL, {"model": {"block_size": 16, "n_embd": 32}, "train": learn})
    result = train(config, short, tmp_path / "run", lines.append)
    assert 0.4 < result.val_loss < 2.9
    assert any("above the corpus's entropy" in line for line in lines)


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="is not empty"):
        train(SMALL, CORPUS, tmp_path / "run", quiet)
    with pytest.raises(CheckpointError, match="is a file"):
        train(SMALL, CORPUS, tmp_path / "run" / "mine.txt", quiet)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
    assert unused_run(tmp_path, "run").path.name == "run-2"
    assert unused_run(tmp_path, "new").path.name == "new"


def test_a_short_corpus_leaves_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"val split: 3 tokens, but block_size = 7 needs 8"):
        train(SMALL, Corpus("short", "abcdefghij" * 3, ""), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no cuda device"):
        train(dataclasses.replace(SMALL, device="cuda"), CORPUS, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_plots")
def test_training_goes_on_where_compilation_does_not_work(tmp_path, monkeypatch):
    def no_compiler(model):
        def forward(x):
            raise RuntimeError("no C++ compiler found\nand many more lines")

        return forward

    monkeypatch.setattr(torch, "compile", no_compiler)
    lines, small = [], dataclasses.replace(SMALL, kernels="torch")
    train(dataclasses.replace(small, compile="on"), CORPUS, tmp_path / "a", lines.append)
    train(small, CORPUS, tmp_path / "b", quiet)
    assert any("eager (no compilation: no C++ compiler found)" in line for line in lines)
    assert file_hash(RunDirectory(tmp_path / "a").last_weights) == file_hash(RunDirectory(tmp_path / "b").last_weights)


@pytest.mark.usefixtures("no_plots")
def test_a_run_that_diverges_stops_before_it_saves(tmp_path, monkeypatch):
    """A gradient of NaN at step 5: the weights saved at step 4 stay, and the error says when."""
    real, calls = loop.next_token_loss, []

    def breaks(logits, targets):
        calls.append(1)
        return real(logits, targets) * (math.nan if len(calls) == 5 else 1.0)

    monkeypatch.setattr(loop, "next_token_loss", breaks)
    with pytest.raises(DivergenceError, match=r"diverged in step 5: loss nan"):
        train(SMALL, CORPUS, tmp_path / "run", quiet)
    monkeypatch.undo()
    run = RunDirectory(tmp_path / "run")
    model, _ = load_model(run.path / "last")
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert all("NaN" not in line for line in run.metrics.read_text().splitlines())


@pytest.mark.usefixtures("no_plots")
def test_the_speed_leaves_evaluations_out(tmp_path, monkeypatch):
    """A clock that only moves in evaluations and in batches: one second a step, 100 for an evaluation."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    gradients, assess = loop.gradients, loop.evaluate_batches

    def slow_gradients(*arguments):
        now[0] += 1
        return gradients(*arguments)

    def slow_evaluation(*arguments):
        now[0] += 100
        return assess(*arguments)

    monkeypatch.setattr(loop, "gradients", slow_gradients)
    monkeypatch.setattr(loop, "evaluate_batches", slow_evaluation)
    config = updated(SMALL, {"train": {"max_steps": 20, "eval_interval": 5, "save_interval": 7}})
    result = train(config, CORPUS, tmp_path / "run", quiet)
    speeds = {r["tokens_per_second"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train_loss" in r}
    assert speeds == {4 * 7}
    assert result.tokens_per_second == 4 * 7


@pytest.mark.slow
def test_compiled_training_gives_the_same_loss(tmp_path):
    results = []
    for compile_ in ("on", "off"):
        lines = []
        results.append(train(dataclasses.replace(SMALL, compile=compile_), CORPUS, tmp_path / compile_, lines.append))
        if compile_ == "on" and not any(line.endswith(", compiled") for line in lines):
            pytest.skip("needs a C++ compiler that torch.compile can use")
    assert results[0].val_loss == pytest.approx(results[1].val_loss, abs=1e-4)
    # Checkpoints of compiled models used to carry a prefix that broke loading (nanoGPT issue 325).
    names = {name: set(load_file(RunDirectory(tmp_path / name).best_weights)) for name in ("on", "off")}
    assert names["on"] == names["off"]


@pytest.fixture(scope="module")
def verse():
    return Corpus("verse", write_verse(0, 200_000).text, "made up for tests")  # it is evaluated as a whole


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("seed", range(10))
def test_ten_seeds_of_a_short_quick_preset_stay_finite(tmp_path, seed, verse):
    config = updated(preset("shakespeare-quick"), {"seed": seed, "train": {"max_steps": 40, "eval_interval": 40}})
    result = train(config, verse, tmp_path / "run", quiet)
    records = read_metrics(RunDirectory(tmp_path / "run").metrics)
    assert all(math.isfinite(r["train_loss"]) and math.isfinite(r["grad_norm"]) for r in records if "train_loss" in r)
    assert result.val_loss < 2.6


@pytest.mark.usefixtures("no_plots")
def test_the_newest_run_is_found(tmp_path):
    config = updated(SMALL, {"train": {"max_steps": 2, "warmup_steps": 1}})
    for name in ("z", "a"):
        train(config, CORPUS, tmp_path / name, quiet)
    (tmp_path / "not-a-run").mkdir()
    assert newest_run(tmp_path).path.name == "a"
    (tmp_path / "adapted" / "adapter").mkdir(parents=True)
    assert newest_run(tmp_path).path.name == "adapted"


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json", "model.safetensors"])
def test_a_damaged_part_of_a_run_is_named(tmp_path, name):
    train(updated(SMALL, {"train": {"max_steps": 2, "warmup_steps": 1}}), CORPUS, tmp_path / "run", quiet)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_model(tmp_path / "run")


@pytest.mark.usefixtures("no_plots")
def test_parts_of_different_runs_are_refused(tmp_path):
    config = updated(SMALL, {"train": {"max_steps": 2, "warmup_steps": 1}})
    train(config, CORPUS, tmp_path / "a", quiet)
    train(config, Corpus("other", TEXT.upper() + "?!;", ""), tmp_path / "b", quiet)
    (tmp_path / "a" / "tokenizer.json").write_bytes((tmp_path / "b" / "tokenizer.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"has \d+ tokens, the model \d+"):
        load_model(tmp_path / "a")


@pytest.mark.parametrize("name", ["gpu", "cuda:97"])
def test_a_device_is_asked_for_before_any_text(monkeypatch, capsys, name):
    def fetched(*_, **__):
        raise AssertionError("a text was fetched for a device that is not there")

    monkeypatch.setattr("minigpt.data.sources.load_corpus", fetched)
    assert command(["train", "--device", name]) == 2
    assert name.partition(":")[0] in capsys.readouterr().err
