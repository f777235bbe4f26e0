"""What a run says."""

import json
from dataclasses import replace

import pytest

from minigpt.formats.run_directory import RunDirectory
from minigpt.tokenizers import CharTokenizer
from minigpt.training import log as run_log
from minigpt.training import loop
from minigpt.training.curves import loss_curve
from minigpt.training.log import RunLog, read_records


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


def test_records_reach_the_file_at_once(run):
    with RunLog(run, 10, lambda line: None, None, "title") as log:
        log.record(1, 100, train_loss=2.5, tokens_per_second=9.0)
        assert json.loads(run.metrics.read_text())["train_loss"] == 2.5
        log.record(2, 200, val_loss=2.0)
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(record["step"], record["tokens"]) for record in records] == [(1, 100), (2, 200)]


def test_the_plot_is_drawn_even_if_the_run_dies(run):
    def interrupted():
        with RunLog(run, 10, lambda line: None, None, "title") as log:
            log.record(1, 100, train_loss=2.5, tokens_per_second=9.0, lr=0.1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert run.plot.read_bytes().startswith(b"\x89PNG")


def test_samples_are_kept_whole_and_shown_in_part(run):
    lines = []
    text = "\n".join(f"line {number} " + "x" * 100 for number in range(30))
    with RunLog(run, 10, lines.append, None, "title") as log:
        log.sample(5, text)
    assert text in run.samples.read_text()
    assert len(lines) == 8
    assert all(len(line) <= 80 for line in lines)


def test_the_plot_shows_what_was_recorded():
    figure = loss_curve([(1, 3.0), (2, 2.0)], [(2, 2.2)], [(1, 0.1), (2, 0.2)], floor=1.5, title="verse")
    losses, rates = figure.axes
    lines = {line.get_label(): line for line in losses.get_lines()}
    assert lines["training"].get_ydata().tolist() == [3.0, 2.0]
    assert lines["validation, whole split"].get_ydata().tolist() == [2.2]
    assert "entropy of the corpus, 1.500" in lines
    assert rates.get_lines()[0].get_ydata().tolist() == [0.1, 0.2]
    assert losses.get_ylabel() == "loss (nats per token)"
    assert rates.get_xlabel() == "step"


def test_a_resumed_log_is_cut_where_its_checkpoint_was(run):
    with RunLog(run, 10, lambda line: None, None, "title") as log:
        log.record(1, 100, lr=0.1)
        log.sample(1, "one")
        marks = log.marks()
        log.record(2, 200, lr=0.2)
        log.sample(2, "two")
    assert marks == {
        "metrics.jsonl": run.metrics.read_bytes().index(b"\n") + 1,
        "samples.txt": len("--- step 1 ---\none\n\n"),
    }
    with RunLog(run, 10, lambda line: None, None, "title", marks) as log:
        assert [record["step"] for record in log.records] == [1]
        log.record(3, 300, lr=0.3)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 3]
    assert "two" not in run.samples.read_text()
    assert log.records[1]["seconds"] >= log.records[0]["seconds"]


def test_a_picture_that_cannot_be_written_is_a_line(run, monkeypatch):
    def full(figure, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigpt.training.log.save_figure", full)
    lines = []
    with RunLog(run, 10, lines.append, None, "title") as log:
        log.record(1, 100, train_loss=2.5, tokens_per_second=9.0, lr=0.1)
    assert lines == ["loss.png not drawn: No space left on device"]


def test_files_that_cannot_be_made_again_cost_lines_until_they_can(run):
    """Records are kept in memory, and written when their place is free again."""
    lines = []
    with RunLog(run, 10, lines.append, None, "title") as log:
        log.record(1, 100, lr=0.1)
        run.metrics.unlink()
        run.metrics.mkdir()
        with pytest.raises(OSError, match="metrics"):
            log.restore()
        log.record(2, 200, lr=0.2)
        log.sample(2, "two")
        log.draw()
        run.metrics.rmdir()
        log.restore()
    assert [record["step"] for record in read_records(run.metrics)] == [1, 2]
    assert "loss.png not drawn: metrics.jsonl is another file now" in lines


def test_damaged_lines_are_left_out(run):
    good = [{"step": 1, "seconds": 1.0}, {"step": 2, "seconds": 2.0, "val_loss": 2.5}]
    lines = [json.dumps(good[0]), "[]", '"x"', "{", "\x00" * 20, json.dumps({"step": 3}), json.dumps(good[1]), '{"st']
    run.metrics.write_text("\n".join(lines))
    assert read_records(run.metrics) == good


ERRORS = [RuntimeError("no memory\nfor that"), ValueError(), KeyError("font"), OSError(28, "No space left on device")]
SHOWN = ["generate", "decode", "loss_curve", "perplexity_curve", "save_figure"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", SHOWN)
def test_what_is_only_shown_ends_no_run(name, error, tmp_path, corpus, config, monkeypatch):
    def failing(*_, **__):
        raise error

    owners = {"generate": loop, "decode": CharTokenizer}
    monkeypatch.setattr(loop, "SAMPLE_TOKENS", 5)
    if name in owners:
        monkeypatch.setattr(RunLog, "draw", lambda log: None)  # of a sample alone
    else:
        monkeypatch.setattr(run_log, "save_figure", lambda *_: None)  # of the other curve
    monkeypatch.setattr(owners.get(name, run_log), name, failing)
    epochs = replace(config, train=replace(config.train, epochs=0.1, warmup_steps=0))
    lines = []
    result = loop.train(epochs, corpus, tmp_path / "run", lines.append)
    assert result.step == read_records(RunDirectory(tmp_path / "run").metrics)[-1]["step"] > 0
    what = "no sample" if name in owners else "not drawn"
    said = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0] if str(error) else "ValueError"
    assert any(what in line and line.endswith(f": {said}") for line in lines)


def test_a_process_without_standard_streams_trains_too(config, corpus, tmp_path, monkeypatch):
    """As under pythonw, or a service that has closed them: print says nothing then, and so does this."""
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert loop.train(replace(config, train=replace(config.train, max_steps=3)), corpus, tmp_path / "run").step == 3
