"""TensorBoard and W&B get what the run log gets, and cannot do a training harm."""

import json
import sys
import types
from pathlib import Path

import pytest

from minigpt.config import updated
from minigpt.errors import ConfigError
from minigpt.formats.run_directory import RunDirectory
from minigpt.training import loop
from minigpt.training.log import RunLog, print_nothing, read_records
from minigpt.training.loop import train
from minigpt.training.trackers import tracking_library
from minigpt.training.verify import compare

pytestmark = pytest.mark.usefixtures("no_plots")


class FakeRun:
    """One run of a stand-in for W&B: everything it was told."""

    def __init__(self, options):
        self.options, self.told, self.finished = options, [], False

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package."""
    module = types.ModuleType("wandb")
    module.runs = []
    module.Html = lambda text: f"HTML {text}"

    def init(**options):
        module.runs.append(FakeRun(options))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class FakeWriter:
    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.texts = folder, purge_step, [], []
        self.flushed = 0
        self.closed = False

    def add_scalar(self, name, value, step):
        self.scalars.append((step, name, value))

    def add_text(self, name, text, step):
        self.texts.append((step, name, text))

    def flush(self):
        self.flushed = len(self.scalars)

    def close(self):
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch):
    """A stand-in for torch's writer of event files."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.writers = []

    def writer(folder, purge_step):
        module.writers.append(FakeWriter(folder, purge_step))
        return module.writers[-1]

    module.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return module


def numbers(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("step", "resumed")}


def dies_at(step: int, patch) -> None:
    real = loop.gradients

    def gradients(run, taken, first, processes):
        if first == step * run.rows_per_step:
            raise KeyboardInterrupt
        return real(run, taken, first, processes)

    patch.setattr(loop, "gradients", gradients)


def interrupted(config, corpus, out: Path, monkeypatch, say=print_nothing) -> None:
    """Killed after 13 steps, of which the last checkpoint has 12; then resumed."""
    with monkeypatch.context() as patch:
        dies_at(13, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, corpus, out, say)
    train(config, corpus, out, say, resume=True)


def test_wandb_is_told_every_record_and_every_sample(tmp_path, corpus, config, wandb):
    train(updated(config, {"report_to": "wandb"}), corpus, tmp_path / "run", print_nothing)
    (run,) = wandb.runs
    assert run.finished
    options = run.options
    assert (options["project"], options["name"], options["resume"]) == ("minigpt", "run", "allow")
    assert options["config"]["train"]["max_steps"] == 20
    told = [(step, values) for step, values in run.told if "sample" not in values]
    assert told == [(r["step"], numbers(r)) for r in read_records(tmp_path / "run" / "metrics.jsonl")]
    samples = [(step, values["sample"]) for step, values in run.told if "sample" in values]
    assert [step for step, _ in samples] == [5, 10, 15, 20]
    assert all(text.startswith("HTML <pre>") for _, text in samples)


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path, corpus, config, wandb, monkeypatch):
    interrupted(updated(config, {"report_to": "wandb"}), corpus, tmp_path / "run", monkeypatch)
    train(updated(config, {"report_to": "wandb"}), corpus, tmp_path / "another", print_nothing)
    first, second, another = (run.options["id"] for run in wandb.runs)
    assert first == second == (tmp_path / "run" / "wandb-id").read_text()
    assert another != first
    steps = [step for run in wandb.runs[:2] for step, values in run.told if "train_loss" in values]
    assert steps == [5, 10, 15, 20]


def test_tensorboard_is_told_every_record_and_every_sample(tmp_path, corpus, config, tensorboard, monkeypatch):
    interrupted(updated(config, {"report_to": "tensorboard"}), corpus, tmp_path / "run", monkeypatch)
    first, second = tensorboard.writers
    assert first.folder == second.folder == tmp_path / "run" / "tensorboard"
    assert (first.purge_step, second.purge_step) == (1, 13)  # nothing of steps 1 and up, or 13 and up, is left over
    assert first.closed
    assert second.closed
    assert second.flushed == len(second.scalars)
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    expected = [(r["step"], name, value) for r in records for name, value in numbers(r).items()]
    assert first.scalars + second.scalars == expected
    assert [text[0] for text in first.texts + second.texts] == [5, 10, 15, 20]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_changes_no_byte(tmp_path, corpus, config, wandb, tensorboard, name):
    train(config, corpus, tmp_path / "without", print_nothing)
    train(updated(config, {"report_to": name}), corpus, tmp_path / "with", print_nothing)
    assert all(c.equal for c in compare(RunDirectory(tmp_path / "without"), RunDirectory(tmp_path / "with")))


@pytest.mark.parametrize("name", ["wandb", "torch.utils.tensorboard"])
def test_a_missing_package_is_two_lines_and_leaves_nothing(tmp_path, corpus, config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    kind = name.rpartition(".")[2]
    with pytest.raises(ConfigError) as missing:
        train(updated(config, {"report_to": kind}), corpus, tmp_path / "run", print_nothing)
    assert f"report_to = {kind!r} needs a package" in missing.value.what
    assert f'pip install "minigpt-torch[{kind}]"' in missing.value.how
    flags = {"report_to": "--report-to"}
    assert 'choose --report-to "none"' in missing.value.renamed(flags)[1]  # a run to resume may ask for it by itself
    assert not (tmp_path / "run").exists()


def test_nothing_is_imported_that_nobody_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert tracking_library("none") is None


def test_a_tracker_that_fails_is_one_line_and_then_silence(tmp_path, corpus, config, wandb):
    def fails(self, values, step):
        calls.append(step)
        if step == 10:
            raise ConnectionError("the network is away\nand more")

    calls, lines = [], []
    FakeRunThatFails = type("FakeRunThatFails", (FakeRun,), {"log": fails})
    wandb.init = lambda **options: FakeRunThatFails(options)
    result = train(updated(config, {"report_to": "wandb"}), corpus, tmp_path / "run", lines.append)
    assert result.step == 20
    assert calls == [5, 5, 5, 10]  # a record, another, a sample; and after the error nothing
    assert [line for line in lines if "report_to" in line] == [
        "report_to  failed, and training goes on without it: the network is away"
    ]
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) == 8


def test_a_tracker_that_cannot_begin_ends_no_training(tmp_path, corpus, config, wandb):
    def no_key(**options):
        raise RuntimeError("api_key not configured")

    wandb.init, lines = no_key, []
    assert train(updated(config, {"report_to": "wandb"}), corpus, tmp_path / "run", lines.append).step == 20
    assert sum("api_key not configured" in line for line in lines) == 1


def test_the_tracker_is_closed_however_a_run_ends(tmp_path, corpus, config, wandb, monkeypatch):
    dies_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(updated(config, {"report_to": "wandb"}), corpus, tmp_path / "run", print_nothing)
    assert wandb.runs[0].finished


def test_only_the_first_process_tracks(tmp_path):
    """The others keep a log in memory alone, and have no tracker."""
    with RunLog(None, 1, print_nothing, None, "") as log:
        log.record(1, 1, train_loss=1.0, tokens_per_second=1.0)
        log.sample(1, "x")
    assert log.tracker is None


def test_what_tensorboard_reads(tmp_path, corpus, config, monkeypatch):
    """Its own reader sees each step once, although the killed run had gone further than its checkpoint."""
    pytest.importorskip("tensorboard", reason="needs the extra: pip install minigpt-torch[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(loop, "LOG_INTERVAL", 1)
    config = updated(config, {"report_to": "tensorboard"})
    with monkeypatch.context() as patch:
        dies_at(14, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, corpus, tmp_path / "run", print_nothing)
    train(config, corpus, tmp_path / "run", print_nothing, resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    for name in ("train_loss", "val_loss", "lr", "grad_norm"):
        expected = [(r["step"], r[name]) for r in records if name in r]
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in read] == [step for step, _ in expected]
        assert [value for _, value in read] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert [event.step for event in events.Tensors("sample/text_summary")] == [5, 10, 15, 20]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_wandb_keeps_offline(tmp_path, corpus, config, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra: pip install minigpt-torch[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    lines = []
    interrupted(updated(config, {"report_to": "wandb"}), corpus, tmp_path / "run", monkeypatch, lines.append)
    assert not [line for line in lines if "report_to" in line and "failed" in line]
    identity = (tmp_path / "run" / "wandb-id").read_text()
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2  # one of each part; `wandb sync` makes one run of them
    assert all(file.stat().st_size > 0 for file in files)
    train(config, corpus, tmp_path / "straight", print_nothing)
    assert all(c.equal for c in compare(RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "run")))


def test_the_setting_is_a_setting(tmp_path, corpus, config, wandb):
    with pytest.raises(ConfigError, match="report_to = 'mlflow' is not a choice"):
        updated(config, {"report_to": "mlflow"})
    train(config, corpus, tmp_path / "run", print_nothing)
    more = updated(config, {"report_to": "wandb", "train": {"max_steps": 22}})
    train(more, corpus, tmp_path / "run", print_nothing, resume=True)
    # From the checkpoint on, which was made before the evaluation of its step.
    assert [step for step, values in wandb.runs[0].told if "val_loss" in values] == [20, 22]
    resumed = [r["resumed"] for r in read_records(tmp_path / "run" / "metrics.jsonl") if "resumed" in r]
    assert json.dumps(resumed) == json.dumps([{"report_to": ["none", "wandb"], "train.max_steps": [20, 22]}])
