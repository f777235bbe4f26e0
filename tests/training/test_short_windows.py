"""The first steps of a run may read each window as two of half its length, of which none sees the other."""

import math
from dataclasses import replace

import pytest
import torch

from minigpt.cli.main import answer as command
from minigpt.config import RunConfig, updated
from minigpt.data.batches import Batch
from minigpt.errors import ConfigError, DivergenceError, Interrupted
from minigpt.formats.run_directory import RunDirectory
from minigpt.model import GPT
from minigpt.training import loop
from minigpt.training.distributed import Processes
from minigpt.training.divergence import read_report
from minigpt.training.log import print_nothing
from minigpt.training.loop import gradients, replay, train
from minigpt.training.run import Run, set_up
from minigpt.training.verify import compare

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def config(config) -> RunConfig:
    """8 of 19 steps, which is no whole number of them: 0.4 of 19 is 7.6."""
    changes = {"max_steps": 19, "short_windows": 0.4, "batch_size": 3, "accumulation_steps": 2}
    return updated(config, {"model": {"block_size": 14, "dropout": 0.0}, "train": changes})


def begun(config, corpus, out) -> Run:
    return set_up(config, corpus, RunDirectory(out), Processes(), torch.device("cpu"), print_nothing, None)


def test_halves_of_a_window():
    rows = torch.arange(24).view(2, 12)
    halves = Batch(rows, rows + 1).halved()
    assert halves.inputs.tolist() == [[*range(first, first + 6)] for first in (0, 6, 12, 18)]
    assert halves.targets.tolist() == [[*range(first + 1, first + 7)] for first in (0, 6, 12, 18)]


def test_the_first_steps_learn_from_halves(tmp_path, corpus, config, monkeypatch):
    shapes, real = [], loop.gradients

    def seen(run, taken, first, processes):
        shapes.append({tuple(batch.inputs.shape) for batch in run.micro_batches(taken, first, processes)})
        return real(run, taken, first, processes)

    monkeypatch.setattr(loop, "gradients", seen)
    train(config, corpus, tmp_path / "run", print_nothing)
    assert shapes == 8 * [{(6, 7)}] + 11 * [{(3, 14)}]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_same_halves(tmp_path, corpus, config, processes):
    config = updated(config, {"train": {"batch_size": 2 * processes, "accumulation_steps": 1, "epochs": 1.0}})
    run = begun(config, corpus, tmp_path)
    first = run.rows_to_read - run.rows_to_read % (2 * processes)  # the last step of the epoch, which has fewer rows
    assert 0 < run.rows_of_step(first) < 2 * processes
    for row in (0, first):
        parts = [[*run.micro_batches(0, row, Processes(rank, processes))] for rank in range(processes)]
        learned = [
            targets for part in parts for batch in part for targets in batch.targets.tolist() if len(targets) > 1
        ]
        (alone,) = run.micro_batches(0, row, Processes())
        assert sorted(learned) == sorted(alone.targets.tolist())


def test_the_gradient_is_that_of_windows_half_as_long(tmp_path, corpus, config):
    """In float64, by a model that has no positions beyond: a second half that saw the first would need them."""
    run = begun(config, corpus, tmp_path)
    exact = GPT(replace(run.model.config, block_size=7)).double()
    weights = {name: values.clone() for name, values in run.model.state_dict().items() if name in exact.state_dict()}
    weights["wpe.weight"] = weights["wpe.weight"][:7]
    exact.load_state_dict(weights)
    losses = []
    for row in range(6):
        windows = run.loader.batch(row, 1)
        for start in (0, 7):
            logits = exact(windows.inputs[:, start : start + 7])
            losses.append(torch.nn.functional.cross_entropy(logits[0], windows.targets[0, start : start + 7]))
    mean = torch.stack(losses).mean()
    mean.backward()
    loss, count = gradients(run, 7, 0, run.processes)
    assert count == 6 * 14
    assert loss.item() == pytest.approx(mean.item(), abs=1e-5)
    for name, parameter in exact.named_parameters():
        mine = run.model.get_parameter(name).grad
        torch.testing.assert_close(mine[: len(parameter)].double(), parameter.grad, rtol=1e-4, atol=1e-6)
    assert not run.model.wpe.weight.grad[7:].any()


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_a_resume_goes_on_exactly(tmp_path, corpus, config, monkeypatch, stop):
    """Before, at and after the change; to the bit, because the same kernels see the same shapes."""
    train(config, corpus, tmp_path / "straight", print_nothing)
    real = loop.gradients

    def stopping(run, taken, first, processes):
        if taken == stop:
            raise Interrupted(2, "stopped", "")
        return real(run, taken, first, processes)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", stopping)
        with pytest.raises(Interrupted):
            train(config, corpus, tmp_path / "broken", print_nothing)
    train(config, corpus, tmp_path / "broken", print_nothing, resume=True)
    assert all(c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "broken")))


@pytest.mark.parametrize("step", [5, 12])
def test_a_step_that_diverged_is_repeated_with_its_windows(tmp_path, corpus, config, monkeypatch, step):
    real = loop.gradients

    def poisoned(run, taken, first, processes):
        if taken == step:
            with torch.no_grad():
                run.model.ln_f.weight[3] = math.inf
        return real(run, taken, first, processes)

    shapes, batches = [], Run.micro_batches

    def seen(run, taken, first, processes):
        for batch in batches(run, taken, first, processes):
            shapes.append(tuple(batch.inputs.shape))
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", poisoned)
        with pytest.raises(DivergenceError):
            train(config, corpus, tmp_path / "run", print_nothing)
    monkeypatch.setattr(Run, "micro_batches", seen)
    run = RunDirectory(tmp_path / "run")
    report = read_report(run.diverged / "report.json")
    assert replay(config, corpus, run.diverged / "report.json", print_nothing) == report
    assert set(shapes) == {(6, 7) if step < 8 else (3, 14)}


def test_an_odd_window_has_no_halves(config):
    with pytest.raises(
        ConfigError, match=r"block_size = 15 cannot be halved.*\nchoose an even block_size, or short_wi"
    ):
        updated(config, {"model": {"block_size": 15}})


def test_a_preset_s_short_windows_are_switched_off_as_advised(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five. " * 90)
    words = ["train", "--preset", "shakespeare-cpu", "--data", str(text), "--model.block_size", "15", "--plan"]
    assert command(words) == 2
    way = "choose an even --model.block_size, or --train.short_windows 0\n"
    assert capsys.readouterr().err.endswith(way)
    assert command([*words, "--train.short_windows", "0"]) == 0
