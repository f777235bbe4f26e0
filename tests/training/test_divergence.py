"""A run that loses its numbers: what it says, what it keeps, and that the step can be repeated."""

import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minigpt.cli.main import answer as command
from minigpt.config import updated
from minigpt.data.batches import Batch
from minigpt.data.corpora import Corpus
from minigpt.data.tokens import prepare, random_batch
from minigpt.errors import CheckpointError, DivergenceError, MissingFileError
from minigpt.evaluation.loss import Evaluation, next_token_loss
from minigpt.formats.run_directory import RunDirectory, read_config
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from minigpt.training import divergence, loop
from minigpt.training.checkpoint import open_checkpoint
from minigpt.training.divergence import MOST_SKIPPED, find_nonfinite, read_report
from minigpt.training.log import print_nothing, read_records
from minigpt.training.loop import replay, train
from minigpt.training.run import recompute_blocks
from minigpt.training.verify import compare

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def config(config):
    """With all that a repeated step has to get right: dropout, and three micro-batches."""
    return updated(config, {"train": {"batch_size": 2, "accumulation_steps": 3}})


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def diverging(config, corpus, out: Path) -> DivergenceError:
    with pytest.raises(DivergenceError) as diverged:
        train(config, corpus, out, print_nothing)
    return diverged.value


def replayed(corpus, out: Path):
    """The report, and what a replay finds; the run is not touched by it."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run = RunDirectory(out)
    now = replay(read_config(run), corpus, run.diverged / "report.json", print_nothing)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    return read_report(run.diverged / "report.json"), now


def at_step(step: int, monkeypatch, do) -> None:
    """Call `do(model)` before the step is computed, once the learning rate has been set."""
    real = loop.gradients

    def gradients(run, taken, first, processes):
        if taken == step:
            do(run.model)
        return real(run, taken, first, processes)

    monkeypatch.setattr(loop, "gradients", gradients)


def scaled_losses(monkeypatch, factor_of) -> None:
    """Multiply the loss of a micro-batch by a number that its targets decide, in training and in the search alike."""

    def scaled(logits, targets):
        return next_token_loss(logits, targets) * factor_of(targets)

    monkeypatch.setattr(loop, "next_token_loss", scaled)
    monkeypatch.setattr(divergence, "next_token_loss", scaled)


def watch_batches(monkeypatch) -> list:
    """The targets of every micro-batch, in order."""
    seen = []
    real = random_batch

    def remember(*arguments):
        x, y = real(*arguments)
        seen.append(y)
        return x, y

    monkeypatch.setattr("minigpt.data.loaders.random_batch", remember)
    return seen


def forward_by_hand(model: GPT, x: torch.Tensor):
    """Every output of the forward pass without dropout, in the order of computing."""
    c = model.config
    B, T = x.shape
    tokens, places = model.wte(x), model.wpe(torch.arange(T))
    yield "wte", tokens
    yield "wpe", places
    stream = tokens + places  # (B, T, C)
    yield "drop", stream
    for number, block in enumerate(model.h):
        name = f"h.{number}"
        normed = nn.functional.layer_norm(stream, (c.n_embd,), block.ln_1.weight, block.ln_1.bias)
        yield f"{name}.ln_1", normed
        qkv = normed @ block.attn.c_attn.weight.T + block.attn.c_attn.bias  # (B, T, 3C)
        yield f"{name}.attn.c_attn", qkv
        q, k, v = (part.view(B, T, c.n_head, -1).transpose(1, 2) for part in qkv.split(c.n_embd, -1))
        scores = (q @ k.mT / math.sqrt(c.n_embd // c.n_head)).masked_fill(~torch.ones(T, T).tril().bool(), -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1)
        out = mixed @ block.attn.c_proj.weight.T + block.attn.c_proj.bias
        yield f"{name}.attn.c_proj", out
        stream = stream + out
        normed = nn.functional.layer_norm(stream, (c.n_embd,), block.ln_2.weight, block.ln_2.bias)
        yield f"{name}.ln_2", normed
        wide = normed @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
        yield f"{name}.mlp.c_fc", wide
        wide = nn.functional.gelu(wide, approximate="tanh")
        yield f"{name}.mlp.gelu", wide
        out = wide @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
        yield f"{name}.mlp.c_proj", out
        stream = stream + out


def test_a_learning_rate_far_too_large(tmp_path, corpus, config, monkeypatch):
    """Weights of 1e30 after one step; their products are infinite. The first of them, found by hand."""
    seen = watch_batches(monkeypatch)
    large = {"train": {"learning_rate": 1e30, "warmup_steps": 0, "save_interval": 1}, "model": {"dropout": 0.0}}
    error = diverging(updated(config, large), corpus, tmp_path / "run")
    report, now = replayed(corpus, tmp_path / "run")
    assert now == report
    run = RunDirectory(tmp_path / "run")
    model = GPT(read_config(run).model)
    model.load_state_dict(load_file(run.diverged / "model.safetensors"), strict=False)
    expected = None
    with torch.no_grad():
        x = torch.cat([torch.zeros_like(seen[3][:, :1]), seen[3][:, :-1]], 1)  # but for the first token of a window
        for name, output in forward_by_hand(model, x):
            if expected is None and not output[:, 1:].isfinite().all():
                expected = name
    assert report.first_nonfinite == f"the output of {expected} in micro-batch 0"
    assert (report.step, report.first_sequence, report.num_sequences) == (2, 6, 6)
    assert "training diverged in step 2: loss nan" in error.what
    assert str(run.diverged / "report.json") in error.how
    assert hashes(run.last)["model.safetensors"] == hashes(run.diverged)["model.safetensors"]


@pytest.mark.parametrize("name", ["h.1.mlp.c_fc.weight", "wpe.weight", "ln_f.bias"])
def test_one_weight_that_is_not_a_number(tmp_path, corpus, config, monkeypatch, name):
    def poison(model):
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3] = math.nan

    at_step(7, monkeypatch, poison)
    diverging(config, corpus, tmp_path / "run")
    report, now = replayed(corpus, tmp_path / "run")
    assert report.first_nonfinite == f"the weight {name}"
    assert now == report
    assert open_checkpoint(tmp_path / "run" / "last").progress.step == 6
    checkpoint = open_checkpoint(tmp_path / "run" / "diverged")
    assert (checkpoint.progress.step, report.step) == (7, 8)


def test_what_was_saved_before_stays(tmp_path, corpus, config, monkeypatch):
    """Both checkpoints and the best weights are as they were before the step; and the run goes on from there."""
    run, taken, real = RunDirectory(tmp_path / "run"), [], loop.leave_out

    def kept() -> list[dict[str, str]]:
        return [hashes(folder) for folder in (run.last, run.previous)] + [hashes(run.path)["model.safetensors"]]

    def leave_out(*arguments):
        taken.append(kept())
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "leave_out", leave_out)
        at_step(8, patch, lambda model: model.wte.weight.data.fill_(math.inf))
        diverging(config, corpus, run.path)
    assert taken == [kept()]
    assert open_checkpoint(run.last).progress.step == 6
    assert all("NaN" not in line for line in run.metrics.read_text().splitlines())
    train(config, corpus, run.path, print_nothing, resume=True)
    train(config, corpus, tmp_path / "straight", print_nothing)
    assert all(c.equal for c in compare(RunDirectory(tmp_path / "straight"), run))


def test_the_loss_of_one_micro_batch(tmp_path, corpus, config, monkeypatch):
    seen = watch_batches(monkeypatch)
    scaled_losses(monkeypatch, lambda y: math.nan if len(seen) > 13 and torch.equal(y, seen[13]) else 1.0)
    diverging(config, corpus, tmp_path / "run")
    report, now = replayed(corpus, tmp_path / "run")
    assert report.first_nonfinite == "the loss of micro-batch 1"  # the 14th micro-batch of all, three a step
    assert (report.step, report.loss, report.first_sequence) == (5, "nan", 4 * 3 * 2)
    assert now == report


def test_a_gradient_that_overflows_where_the_loss_does_not(tmp_path, corpus, config, monkeypatch):
    """The loss times 1e38 is finite; on the way down gradients exceed float32, and float64 says by how much."""
    seen = watch_batches(monkeypatch)
    config = updated(config, {"model": {"dropout": 0.0}})
    scaled_losses(monkeypatch, lambda y: 1e38 if len(seen) >= 6 and torch.equal(y, seen[5]) else 1.0)
    diverging(config, corpus, tmp_path / "run")
    report, now = replayed(corpus, tmp_path / "run")
    assert now == report
    assert math.isfinite(float(report.loss))
    assert not math.isfinite(float(report.grad_norm))
    found = report.first_nonfinite
    assert found.startswith("the gradient of ")
    assert found.endswith(" in micro-batch 2")
    name = found.split()[3]
    run = RunDirectory(tmp_path / "run")
    model = GPT(read_config(run).model)
    model.load_state_dict(load_file(run.diverged / "model.safetensors"), strict=False)
    model.double()
    report_config = read_config(run)
    assert report_config.model.dropout == 0
    x_and_y = list(batches_of(report, corpus, report_config))[2]
    (next_token_loss(model(x_and_y[0]).double(), x_and_y[1]) * 1e38).backward()
    largest = {n: p.grad.abs().max().item() for n, p in model.named_parameters()}
    limit = torch.finfo(torch.float32).max
    assert largest[name] > limit / 100  # it, or a product on the way to it, is beyond the range
    below = list(largest)[list(largest).index(name) + 1 :]  # nearer to the head
    assert all(largest[n] < limit for n in below)


def test_the_step_is_repeated_with_its_dropout(tmp_path, corpus, config, monkeypatch):
    """The loss is finite, and every mask is in it; the search begins in the random state of the step too."""
    seen, states = watch_batches(monkeypatch), []
    scaled_losses(monkeypatch, lambda y: 1e38 if len(seen) >= 15 and torch.equal(y, seen[14]) else 1.0)

    def noted(call):
        def noting(*arguments):
            states.append(torch.get_rng_state())
            return call(*arguments)

        return noting

    monkeypatch.setattr(loop, "gradients", noted(loop.gradients))
    for module in (loop, divergence):
        monkeypatch.setattr(module, "find_nonfinite", noted(module.find_nonfinite))
    diverging(updated(config, {"model": {"dropout": 0.3}}), corpus, tmp_path / "run")
    report, now = replayed(corpus, tmp_path / "run")
    assert report.step == 5
    assert math.isfinite(float(report.loss))
    assert now == report
    # Five steps, the search; and in the replay the step and the search again.
    assert all(torch.equal(state, states[4]) for state in states[5:])
    assert len(states) == 8


def batches_of(report, corpus: Corpus, config):
    """The micro-batches of a step from its report alone, and the corpus."""
    tokens, _ = prepare(corpus, CharTokenizer.from_text(corpus.text), config.data, config.model.block_size, Path("tok"))
    size = config.train.batch_size
    for first in range(report.first_sequence, report.first_sequence + report.num_sequences, size):
        yield random_batch(tokens, size, config.model.block_size, report.seed, first)


def test_a_full_disk_does_not_hide_what_has_happened(tmp_path, corpus, config, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    at_step(7, monkeypatch, lambda model: model.wte.weight.data.fill_(math.inf))
    monkeypatch.setattr(divergence, "write_checkpoint", full)
    error = diverging(config, corpus, tmp_path / "run")
    assert "training diverged in step 8" in error.what
    assert "the weight wte.weight" in error.what
    assert "no report could be written: No space left on device" in error.how
    assert "--replay" not in error.how
    assert open_checkpoint(tmp_path / "run" / "last").progress.step == 6
    assert not (tmp_path / "run" / "diverged").exists()


def test_two_gradients_alone(tmp_path, corpus, config, monkeypatch):
    """Hooks make just two of them infinite, and the nearer to the head was the first. A replay has no such hooks."""
    names = ["h.0.attn.c_proj.weight", "h.1.mlp.c_fc.weight"]

    def poison(model):
        for name in names:
            model.get_parameter(name).register_hook(lambda g: g * math.inf)

    with monkeypatch.context() as patch:
        at_step(4, patch, poison)
        diverging(config, corpus, tmp_path / "run")
    report, now = replayed(corpus, tmp_path / "run")
    assert report.first_nonfinite == f"the gradient of {names[1]} in micro-batch 0"
    assert now.first_nonfinite == "none alone: only the sum over the step is not finite"
    assert now != report


def test_weights_that_a_finite_step_has_made_infinite_are_not_saved(tmp_path, corpus, config):
    """1e39 is beyond float32: the step's loss and gradient are finite, and no weight is after it."""
    large = {"train": {"learning_rate": 1e39, "warmup_steps": 0, "save_interval": 1}}
    error = diverging(updated(config, large), corpus, tmp_path / "run")
    assert "the weight wte.weight is not finite after step 1" in error.what
    assert not (tmp_path / "run" / "last").exists()
    later = {"train": {"learning_rate": 1e39, "warmup_steps": 0, "save_interval": 5}}
    diverging(updated(config, later), corpus, tmp_path / "later")
    report, now = replayed(corpus, tmp_path / "later")
    assert report.first_nonfinite == "the weight wte.weight"
    assert now == report


def test_a_validation_loss_that_is_not_a_number(tmp_path, corpus, config, monkeypatch):
    monkeypatch.setattr(loop, "evaluate_batches", lambda *_: Evaluation(math.nan, 10))
    error = diverging(config, corpus, tmp_path / "run")
    assert error.what == "training diverged: the validation loss is not finite after step 5"
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("save_interval", [20, 5, 2])
def test_what_is_advised_after_a_divergence_exists(tmp_path, corpus, config, monkeypatch, save_interval):
    """At step 5: nothing was saved, or once, or twice."""
    monkeypatch.setattr(loop, "evaluate_batches", lambda *_: Evaluation(math.nan, 10))
    run = RunDirectory(tmp_path / "run")
    error = diverging(updated(config, {"train": {"save_interval": save_interval}}), corpus, run.path)
    assert [run.last.exists(), run.previous.exists()] == [save_interval <= 5, save_interval == 2]
    assert (f"--resume {run.path}" in error.how) == run.last.exists()
    assert ("previous/ is older" in error.how) == run.previous.exists()
    assert ("with another out" in error.how) != run.previous.exists()


def state_of(run) -> str:
    """Of the weights and of the optimizers, as one number."""
    digest = hashlib.sha256()
    for parameter in run.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    for optimizer in run.optimizers:
        for values in optimizer.state.values():
            for tensor in values.values():
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skipped_steps_change_nothing(tmp_path, corpus, config, monkeypatch, optimizer):
    """Not the weights, not the optimizer: the steps are counted, and the schedule goes on."""
    bad, states, real = {3, 4, 11}, {}, loop.gradients

    def gradients(run, taken, first, processes):
        step = first // run.rows_per_step
        states[step] = state_of(run)
        loss, num_tokens = real(run, taken, first, processes)
        return loss * (math.nan if step in bad else 1.0), num_tokens

    monkeypatch.setattr(loop, "gradients", gradients)
    config = updated(config, {"train": {"on_nonfinite": "skip", "optimizer": optimizer}})
    lines = []
    train(config, corpus, tmp_path / "run", lines.append)
    assert [step for step in range(19) if states[step] == states[step + 1]] == sorted(bad)
    assert [line[:24] for line in lines if line.startswith("skipped")] == [
        "skipped    step 4: loss nan,"[:24], "skipped    step 5: loss nan,"[:24], "skipped    step 12: loss nan,"[:24],
    ]  # fmt: skip
    records = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if "lr" in r]
    assert [(r["step"], r.get("skipped")) for r in records] == [(5, 2), (10, 2), (15, 3), (20, 3)]
    assert open_checkpoint(tmp_path / "run" / "last").progress.skipped == 3


def test_too_many_skipped_in_a_row(tmp_path, corpus, config, monkeypatch):
    """Nine, a good one, and then ten: the tenth ends the run."""
    bad, real = {*range(2, 11), *range(12, 99)}, loop.gradients

    def gradients(run, taken, first, processes):
        loss, num_tokens = real(run, taken, first, processes)
        return loss * (math.nan if first // run.rows_per_step in bad else 1.0), num_tokens

    monkeypatch.setattr(loop, "gradients", gradients)
    config = updated(config, {"train": {"on_nonfinite": "skip", "max_steps": 40}})
    error = diverging(config, corpus, tmp_path / "run")
    assert "diverged in step 22" in error.what
    assert MOST_SKIPPED == 10
    progress = open_checkpoint(tmp_path / "run" / "diverged").progress
    assert (progress.skipped, progress.skipped_in_a_row) == (19, 10)


def test_a_run_whose_steps_were_all_skipped_has_a_result(tmp_path, corpus, config, monkeypatch):
    real = loop.gradients
    monkeypatch.setattr(loop, "gradients", lambda *arguments: (real(*arguments)[0] * math.nan, 1))
    short = updated(config, {"train": {"on_nonfinite": "skip", "max_steps": 5}})
    result = train(short, corpus, tmp_path / "run", print_nothing)
    assert math.isnan(result.train_loss)
    assert math.isfinite(result.val_loss)


def test_a_batch_without_targets_is_no_divergence(tmp_path, corpus, config, monkeypatch):
    """nanochat issue 590: the mean over no targets is 0 / 0, and the weights are lost."""
    real, count = random_batch, []

    def sometimes_empty(*arguments):
        x, y = real(*arguments)
        count.append(1)
        return x, torch.full_like(y, -100) if len(count) in (5, 10, 11, 12) else y

    monkeypatch.setattr("minigpt.data.loaders.random_batch", sometimes_empty)
    result = train(config, corpus, tmp_path / "run", print_nothing)
    assert result.step == 20
    assert math.isfinite(result.train_loss)


# --- the command line ---


@pytest.fixture
def diverged(corpus, flags, capsys) -> Path:
    """A report that the command line has left."""
    Path("play.txt").write_text(corpus.text)
    rates = ["--train.learning_rate", "1e30", "--train.warmup_steps", "0"]
    others = [word for pair in zip(flags[::2], flags[1::2], strict=True) if pair[0] not in rates for word in pair]
    assert command(["train", *others, *rates, "--out", "run"]) == 2
    err = capsys.readouterr().err
    lines = err.rstrip("\n").split("\n")
    assert [line[:7] for line in lines] == ["error: ", "       "]
    assert "the first tensor that is not finite: the output of" in lines[0]
    assert "minigpt train --replay run/diverged/report.json" in lines[1]
    return Path("run/diverged/report.json")


def test_replay_on_the_command_line(diverged, capsys, monkeypatch):
    assert command(["train", "--replay", str(diverged)]) == 0
    assert "reproduced       yes, all of it" in capsys.readouterr().out
    assert command(["train", "--replay", str(diverged), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("reproduced") is True
    assert printed == json.loads(diverged.read_text())
    assert command(["train", "--replay", str(diverged), "--train.learning_rate", "1e29", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reproduced"] is False
    play = Path("play.txt").absolute()
    monkeypatch.chdir(diverged.parent)
    assert command(["train", "--replay", "report.json", "--data", str(play)]) == 0
    assert "reproduced       yes, all of it" in capsys.readouterr().out


def test_a_step_is_repeated_with_its_own_settings_after_a_resume_with_others(diverged, capsys):
    """As the error advises to go on; and whoever gives settings at a replay means these."""
    report = json.loads(diverged.read_text())
    resume = ["train", "--resume", "run", "--train.learning_rate", "0.001", "--train.min_learning_rate", "0.0001"]
    assert command([*resume, "--train.batch_size", "2", "--train.max_steps", str(report["step"] + 1)]) == 0
    capsys.readouterr()
    assert command(["train", "--replay", str(diverged), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("reproduced") is True
    assert printed == report


def test_replay_needs_the_text_of_the_run(diverged, corpus, capsys):
    Path("play.txt").write_text(corpus.text.replace("to", "ot"))
    assert command(["train", "--replay", str(diverged)]) == 2
    assert re.search(r"\S+play.txt does not hold", capsys.readouterr().err)


def test_bad_reports(diverged, capsys):
    good = json.loads(diverged.read_text())
    wrong = [
        ("not json", "is not JSON"),
        ("[1]", "holds a JSON list"),
        (json.dumps({**good, "more": 1}), "is no report"),
        (json.dumps({**good, "step": "1"}), "is no report"),
        (json.dumps({key: good[key] for key in ("step", "loss")}), "is no report"),
    ]
    for text, part in wrong:
        diverged.write_text(text)
        with pytest.raises(CheckpointError, match=part):
            read_report(diverged)
        assert command(["train", "--replay", str(diverged)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 2
    diverged.unlink()
    with pytest.raises(MissingFileError):
        read_report(diverged)


def test_a_report_without_its_checkpoint(diverged, capsys):
    weights = diverged.parent / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert command(["train", "--replay", str(diverged)]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err
    (diverged.parent / "manifest.json").unlink()
    assert command(["train", "--replay", str(diverged)]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert command(["train", "--replay", "nowhere.json"]) == 2
    assert "there is no file nowhere.json" in capsys.readouterr().err
    assert command(["train", "--replay", "elsewhere/diverged/report.json"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_a_backward_pass_that_computes_anew_sees_the_document_mask(tiny_model):
    """With gradient checkpointing, attention is computed in the backward pass too: within documents there as well."""
    recompute_blocks(tiny_model)
    tiny_model.wpe.weight.register_hook(lambda g: g * math.inf)
    ids = torch.arange(7)[None]
    packed = Batch(ids, ids, torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    found = find_nonfinite(tiny_model, [packed], torch.device("cpu"), torch.float32)
    assert found == "the gradient of wpe.weight in micro-batch 0"
