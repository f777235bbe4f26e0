"""The training loop: `train` sets a run up, `run_steps` is the loop itself, on one screen.

    windows i..j --> logits --> loss --> gradients, averaged over micro-batches --> clipped --> optimizers @ lr_at(step)

There is no trainer class and no callback. To change how minigpt trains, change these lines.
"""

import math
import signal
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import RunConfig
from minigpt.data.corpora import Corpus
from minigpt.data.tokens import split_at
from minigpt.decoding.generate import generate
from minigpt.device import autocast, choose_device
from minigpt.errors import Interrupted
from minigpt.training.checkpoint import RunDirectory, check_unused, read_config, start_run
from minigpt.training.distributed import Processes, exchanging, joined, whole, whole_model
from minigpt.training.divergence import Divergence, find_nonfinite, leave_out, read_report
from minigpt.training.evaluate import evaluate, next_token_loss
from minigpt.training.optim import set_learning_rate
from minigpt.training.resume import (
    Progress,
    checkpoint_tensors,
    checkpoint_to_resume,
    clean,
    gathered_states,
    keep_best,
    locked,
    open_checkpoint,
    random_states,
    replace_last,
    stored_loss,
)  # fmt: skip
from minigpt.training.run import Run, fingerprint, set_up
from minigpt.training.run_log import RunLog, Say, read_records, say_nothing, say_to_stdout
from minigpt.training.signals import StopRequest

LOG_INTERVAL = 10  # steps between records
SAMPLE_TOKENS = 200


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `--json` prints exactly these fields.

    Attributes:
        out: the run directory.
        step: optimizer steps taken.
        train_loss: mean loss of the last recorded steps, nats per token.
        val_loss: loss over the whole validation split at the end.
        best_val_loss: the lowest one of the run; the weights in `model.safetensors` are those.
        tokens_per_second: median over the run, evaluations and pauses left out.
        seconds: wall time of the loop, with its evaluations.
        parameters: of the model, a tied head counted once.
    """

    out: str
    step: int
    train_loss: float
    val_loss: float
    best_val_loss: float
    tokens_per_second: float
    seconds: float
    parameters: int


def train(config: RunConfig, corpus: Corpus, out: Path, say: Say = say_to_stdout, resume: bool = False) -> TrainResult:
    """Train a GPT on a corpus and leave a run directory, or go on with one as if it had never been interrupted.

    Args:
        config: the settings; `model.vocab_size` is replaced by the tokenizer's.
        corpus: the text.
        out: the run directory. A new one must not exist yet, or be empty, and is made only when all else is found in
            order.
        say: where the lines for people go.
        resume: go on from the newest whole checkpoint in `out`.

    Raises:
        ConfigError: if the device or dtype cannot be had, or the processes cannot share out the batch.
        DataError: if the corpus is too short for the block size.
        MissingFileError: to resume, if `out` holds no checkpoint.
        CheckpointError: if `out` holds something already; to resume, if it holds no whole checkpoint of this
            architecture and corpus; or if another training is at work in it.
        DivergenceError: if the loss or the gradient stops being a number. What was saved before is kept.
        Interrupted: if SIGINT or SIGTERM came; the run has been saved.
        PeerError: if another process of this training has died.
    """
    directory, checkpoint, progress = RunDirectory(out), None, Progress()
    changed: dict[str, list[Any]] = {}
    with joined(choose_device(config.device)) as (processes, device), ExitStack() as leaving:
        say = say if processes.first else say_nothing
        if resume:
            read_config(directory)  # before a lock is left in a folder that is no run
            if processes.first:
                leaving.enter_context(locked(out))
                clean(out)
            checkpoint, changed = checkpoint_to_resume(directory, config, fingerprint(corpus), say)
            progress = checkpoint.progress if checkpoint else progress
        elif processes.first:
            check_unused(out)
        run = set_up(config, corpus, directory, processes, device, say, checkpoint)
        records = read_records(directory.metrics) if resume else []
        if has_ended(run, progress, records):
            say(f"resume     nothing is left to do: the run has its {progress.step} steps. "
                "--train.max_steps N goes on to N")  # fmt: skip
            return result(run, progress, records)
        if processes.first:
            if not resume:
                out.mkdir(parents=True, exist_ok=True)
                leaving.enter_context(locked(out))
                check_unused(out)  # nobody may have come first
            start_run(directory, run.config, run.tokenizer)
        floor = None
        if corpus.floor is not None and config.data.tokenizer == "char":
            floor = corpus.floor(split_at(corpus, config.data), len(corpus.text))
        title = corpus.name if out.name == corpus.name else f"{corpus.name}: {out.name}"
        marks = checkpoint.manifest["log"] if checkpoint else None
        log = RunLog(directory if processes.first else None, config.train.max_steps, say, floor, title, marks)
        with log, StopRequest() as stop:
            if checkpoint:
                log.record(progress.step, progress.sequences * config.model.block_size, resumed=changed)
                checkpoint.restore_random(processes.rank, device)
            run_steps(run, progress, log, stop)
            return result(run, progress, log.records)


def run_steps(run: Run, progress: Progress, log: RunLog, stop: StopRequest) -> None:
    """The loop: from where `progress` stands to the last step, or until patience ends or somebody asks to stop."""
    t, model = run.config.train, run.model
    if assessment_due(run, progress):  # of a run that was killed after a save and before the evaluation
        assess(run, progress, log)
    model.train()
    clock, since, stopping = time.perf_counter(), progress.step, False
    while progress.step < t.max_steps and not (stopping or out_of_patience(run, progress)):
        states = random_states(run.device)  # from which the step can be repeated
        lr = set_learning_rate(run.optimizers, progress.step, t)
        loss = gradients(run, progress.sequences, run.processes)
        loss, asked = run.processes.mean(torch.stack([loss, torch.full_like(loss, stop.signal is not None)]))
        norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
        grad_norm = whole(norm).item()
        if math.isfinite(loss.item()) and math.isfinite(grad_norm):
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), t.grad_clip or math.inf, norm)
            for optimizer in run.optimizers:
                optimizer.step()
            progress.losses.append(loss)
            progress.skipped_in_a_row = 0
        else:
            leave_out(run, progress, lr, loss.item(), grad_norm, states)
        model.zero_grad(set_to_none=True)
        if progress.step == 0:
            log.say(f"step 0     loss {loss.item():.3f}; a model that knows nothing has ln {model.config.vocab_size} = "
                    f"{math.log(model.config.vocab_size):.3f}")  # fmt: skip

        progress.step += 1
        progress.sequences += run.sequences_per_step
        log.step(progress.step)
        if progress.step % LOG_INTERVAL == 0 or assessment_due(run, progress):
            speed = (progress.step - since) * run.tokens_per_step / (time.perf_counter() - clock)
            record(run, progress, log, lr, grad_norm, speed)
            clock, since = time.perf_counter(), progress.step
        pause = time.perf_counter()
        stopping = asked.item() > 0
        if stopping or progress.step % t.save_interval == 0 or progress.step == t.max_steps:
            # Before the evaluation, which must not cost the run if it dies.
            save(run, progress, log, must=stopping or progress.step == t.max_steps)
        if assessment_due(run, progress):
            assess(run, progress, log)
        clock += time.perf_counter() - pause  # neither saving nor evaluating counts as training time
    if out_of_patience(run, progress):
        log.say(f"stopped    {progress.stale} evaluations without a better one: patience has ended")
        save(run, progress, log, must=True)
    elif progress.step < t.max_steps:
        raise Interrupted(
            stop.signal or signal.SIGTERM,
            f"stopped at step {progress.step} of {t.max_steps}, and saved",
            f"go on with: minigpt train --resume {run.directory.path}",
        )


def gradients(run: Run, first: int, processes: Processes) -> Tensor:
    """Leave the gradient of the step that begins with window `first` in the parameters; its mean loss, a scalar."""
    batches = list(run.micro_batches(first, processes))
    total = torch.zeros((), device=run.device)
    for number, (x, y) in enumerate(batches):  # (B, T), (B, T)
        with exchanging(run.forward, now=number + 1 == len(batches)):
            with autocast(run.device, run.dtype):
                logits = run.forward(x)  # (B, T) -> (B, T, V)
                loss = next_token_loss(logits, y) / len(batches)
            loss.backward()  # gradients add up over the micro-batches
        total += loss.detach()
    return total


def assessment_due(run: Run, progress: Progress) -> bool:
    """Whether an evaluation belongs to this step and has not been made yet."""
    t = run.config.train
    return progress.step > progress.evaluated and (progress.step % t.eval_interval == 0 or progress.step == t.max_steps)


def out_of_patience(run: Run, progress: Progress) -> bool:
    """Whether the validation loss has not become better for too long."""
    return 0 < run.config.train.patience <= progress.stale


def record(run: Run, progress: Progress, log: RunLog, lr: float, grad_norm: float, speed: float) -> None:
    """Record the mean loss since the last record."""
    train_loss = torch.stack(progress.losses).mean().item() if progress.losses else math.nan
    values = {"train_loss": train_loss, "lr": lr, "grad_norm": grad_norm, "tokens_per_second": speed}
    if progress.skipped:
        values["skipped"] = progress.skipped
    log.record(
        progress.step,
        progress.sequences * run.config.model.block_size,
        **{name: value for name, value in values.items() if math.isfinite(value)},  # a skipped step has none
    )
    progress.losses = []


def save(run: Run, progress: Progress, log: RunLog, must: bool) -> None:
    """Make a new `last/`. A full disk costs this checkpoint and not the run, unless it is the one that the run needs.

    Raises:
        OSError: if it cannot be written and `must` be.
    """
    states = gathered_states(random_states(run.device), run.processes)
    tensors = checkpoint_tensors(run.model, run.optimizers, progress, states)
    if run.processes.first:
        try:
            facts = {"corpus": fingerprint(run.corpus), "log": log.marks()}
            replace_last(run.directory, *tensors, progress, facts)
        except OSError as error:
            if must:
                raise
            log.say(f"step {progress.step:<5} not saved, {error.strerror}: the checkpoint before it stays")


def assess(run: Run, progress: Progress, log: RunLog) -> None:
    """Evaluate, keep the best weights, record it, say it, and let the model write a little."""
    loss = torch.tensor(evaluate(run.model, run.val.ids, run.dtype).loss, dtype=torch.float64)
    val_loss = run.processes.mean(loss).item()
    progress.evaluated, progress.stale = progress.step, progress.stale + 1
    model = whole_model(run.model)
    if val_loss < progress.best_loss:
        progress.best_loss, progress.stale = val_loss, 0
        if run.processes.first:
            keep_best(run.directory, model, val_loss, progress.step)
    log.record(progress.step, progress.sequences * run.config.model.block_size, val_loss=val_loss)
    above = "" if log.floor is None else f", {val_loss - log.floor:.3f} above the corpus's entropy"
    log.say(f"step {progress.step:<5} validation loss {val_loss:.4f}{above}")
    if run.processes.first:
        start = run.tokenizer.start_token_id
        prompt = [int(run.val.ids[0]) if start is None else start]
        written = generate(
            model, [prompt], max_new_tokens=SAMPLE_TOKENS, temperature=0.8, seed=run.config.seed, on_overflow="crop"
        )
        log.sample(progress.step, run.tokenizer.decode(written.sequences[0]))
        log.draw()


def replay(config: RunConfig, corpus: Corpus, path: Path, say: Say = say_to_stdout) -> Divergence:
    """Compute a step that diverged once more, from the checkpoint that lies beside its report.

    Args:
        config: the run's settings.
        corpus: the text it was trained on.
        path: the report.
        say: where the lines for people go.

    Returns:
        What was found this time; equal to the report if the step could be reproduced.

    Raises:
        MissingFileError: if there is no report, or no checkpoint beside it.
        CheckpointError: if one of them is damaged, or the checkpoint is of another corpus.
    """
    report, checkpoint, device = read_report(path), open_checkpoint(path.parent), choose_device(config.device)
    run = set_up(config, corpus, RunDirectory(path.parent.parent), Processes(), device, say, checkpoint)
    run.model.train()
    checkpoint.restore_random(0, device)
    lr = set_learning_rate(run.optimizers, report.step, config.train)
    loss = gradients(run, report.first_sequence, Processes()).item()
    grad_norm = torch.nn.utils.get_total_norm(p.grad for p in run.model.parameters() if p.grad is not None).item()
    checkpoint.restore_random(0, device)
    batches = run.micro_batches(report.first_sequence, Processes())
    culprit = find_nonfinite(run.model, batches, device, run.dtype)
    return replace(report, learning_rate=lr, loss=str(loss), grad_norm=str(grad_norm), first_nonfinite=culprit)


def has_ended(run: Run, progress: Progress, records: list[dict[str, Any]]) -> bool:
    """Whether a run has taken all its steps, and evaluated the last."""
    return progress.step >= run.config.train.max_steps and records[-1:] != [] and "val_loss" in records[-1]


def result(run: Run, progress: Progress, records: list[dict[str, Any]]) -> TrainResult:
    """How a run stands, from what it recorded."""

    def values(key: str) -> list[float]:
        return [record[key] for record in records if key in record]

    return TrainResult(
        out=str(run.directory.path),
        step=progress.step,
        train_loss=values("train_loss")[-1],
        val_loss=values("val_loss")[-1],
        best_val_loss=min(progress.best_loss, stored_loss(run.directory)),
        tokens_per_second=statistics.median(values("tokens_per_second")),
        seconds=records[-1]["seconds"],
        parameters=run.model.num_parameters(),
    )
