"""The training loop: `train` sets a run up, `run_steps` is the loop itself, on one screen.

    rows i..j --> logits --> loss --> gradients, averaged over micro-batches --> clipped --> optimizers @ lr_at(step)

There is no trainer class and no callback. To change how minigpt trains, change these lines.
"""

import itertools
import math
import signal
import statistics
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import RunConfig
from minigpt.data.corpora import Corpus, lasting_source
from minigpt.data.documents import Documents, data_checksum
from minigpt.data.tokens import IGNORED
from minigpt.decoding.generate import generate
from minigpt.errors import CheckpointError, Interrupted, counted, named, quoted
from minigpt.evaluation.loss import evaluate_batches, next_token_loss, perplexity
from minigpt.fields import checked
from minigpt.formats.run_directory import RunDirectory, check_new, read_config, read_records, start_run
from minigpt.formats.source import lasting_model
from minigpt.parameters import with_text
from minigpt.system import terminal
from minigpt.system.device import autocast, choose_device, choose_dtype
from minigpt.system.files import named_path, remove
from minigpt.training.checkpoint import (
    Progress,
    checkpoint_tensors,
    checkpoint_to_resume,
    circumstances,
    clean,
    gathered_states,
    keep_best,
    locked,
    open_checkpoint,
    random_states,
    replace_last,
    stored_loss,
)  # fmt: skip
from minigpt.training.distributed import Processes, exchanging, joined, whole
from minigpt.training.divergence import Divergence, check_finite, find_nonfinite, leave_out, read_report
from minigpt.training.document_mask import document_mask
from minigpt.training.kernels import kernels
from minigpt.training.log import PrintLine, RunLog, print_nothing, print_to_stdout
from minigpt.training.optim import set_learning_rate
from minigpt.training.run import Run, choose_kernels, set_up, which_kernels, whole_model
from minigpt.training.signals import StopRequest
from minigpt.training.trackers import open_tracker, tracking_library

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
        best_val_loss: of the weights in `model.safetensors` or `adapter/`: the lowest one of the run, if they could be
            written. Where none could be, the lowest one.
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


@checked
def train(
    config: RunConfig,
    data: Corpus | Documents,
    out: Path | str,
    print_line: PrintLine = print_to_stdout,
    resume: bool = False,
) -> TrainResult:
    """Train a GPT and write a run directory, or resume one as if it had never been interrupted.

    Args:
        config: the settings. `init_from` is the model to start from, "" for a new one: what `load_model` takes, so a
            run by its folder or its name, a folder or a file of weights, gpt2, or ORG/NAME of the hub.
            `model.vocab_size` is replaced by the tokenizer's, and with `init_from` the shape by that of the base,
            except a shorter `block_size` and the dropout.
        data: the text or the documents, already read, as `load_data(config)` does; with `resume`, those of the run.
        out: the run directory. A new one must not exist yet, or be empty, and is made only after all other checks.
        print_line: prints lines for people, each without its line end.
        resume: continue from the newest complete checkpoint in `out`, or begin again if it has none yet. `config` is
            then the run's, `read_config(RunDirectory(out))`, where steps, intervals and such may be others.

    Raises:
        ConfigError: if the device, the dtype or the tracker is not available, or the processes cannot share the batch;
            with `resume`, if more steps are done than are asked for.
        DataError: if the text is too short for block_size, or there are too few documents.
        MissingFileError: with `resume`, if `out` has no checkpoint.
        CheckpointError: if `out` is not empty; with `resume`, if it has no complete checkpoint of this architecture and
            corpus; or if another training is running in it.
        DivergenceError: if the loss or the gradient becomes NaN or infinite. What was saved before is kept.
        Interrupted: if SIGINT or SIGTERM came; the run has been saved.
        PeerError: if another process of this training has died.
    """
    out = named_path(out, "out")
    # Before anything, so that no lock file is left in a folder that is no run.
    former = read_config(RunDirectory(out)) if resume else RunConfig()
    config = lasting_names(config, former)
    directory, progress = RunDirectory(out), Progress()
    checkpoint = lock = None
    changed: dict[str, list[Any]] = {}
    changes_said: list[str] = []
    with joined() as processes, ExitStack() as leaving:
        device = processes.device(choose_device(config.device))
        config = replace(config, kernels=choose_kernels(config, processes, device))
        print_line = print_line if processes.first else print_nothing
        tracking = tracking_library(config.report_to) if processes.first else None
        if resume:
            with processes.first_goes_ahead():
                if processes.first:
                    lock = leaving.enter_context(locked(out))
                    clean(directory, print_line)
            by, _ = which_kernels(config, processes, device, choose_dtype(config.dtype, device))
            here = circumstances(processes, device, by)
            checksum = data_checksum(data)
            checkpoint, changed, changes_said = checkpoint_to_resume(directory, config, checksum, here, print_line)
            progress = checkpoint.progress if checkpoint else progress
            progress.losses = [loss.to(device) for loss in progress.losses]  # read on the CPU, averaged with later ones
        elif processes.first:
            check_new(directory)
        records = read_records(directory.metrics) if resume else []
        # The log is cut to the checkpoint, so an evaluation after it is made again, whatever the settings are now.
        evaluated = {record["step"] for record in records if "val_loss" in record}
        run = set_up(config, data, directory, processes, device, print_line, checkpoint)
        if has_ended(run, progress, records):
            data_now = replace(former.data, source=config.data.source, val_data=config.data.val_data)
            moved = replace(former, init_from=config.init_from, data=data_now)  # by their checksums, the same as before
            if processes.first and moved != former:
                start_run(directory, moved, run.tokenizer, run.carried)
            kept = f", and keeps its {'other ' * (moved != former)}settings" if changed else ""
            print_line(f"resume     nothing is left to do: the run has its {counted(progress.step, 'step')}{kept}")
            limit = "epochs" if run.config.train.epochs else "max_steps"
            print_line(f"           minigpt train --resume {quoted(directory.path)} --train.{limit} N goes on to N")
            return result(run, progress, records)
        if processes.first:
            if not resume:
                lock = leaving.enter_context(locked(out))
                check_new(directory)  # again, under the lock: another process may have started a run here since
                for left in (directory.carried, directory.wandb_id):  # of one that ended before it had learned
                    remove(left)
            start_run(directory, run.config, run.tokenizer, run.carried)
        for line in changes_said:
            print_line(line)
        run = replace(run, lock=lock)
        name, floor, steps = run.loader.name, run.loader.floor, run.config.train.max_steps
        title = name if out.name == name else f"{name}: {out.name}"
        marks = checkpoint.manifest["log"] if checkpoint else None
        log_directory = directory if processes.first else None  # the others write nothing
        by_epoch = run.config.train.epochs > 0
        log = RunLog(log_directory, steps, print_line, floor, title, marks, by_epoch)
        with log.tracking():
            log.tracker = open_tracker(tracking, out, run.config, progress.step) if tracking else None
        with log, StopRequest() as stop:
            if checkpoint:
                log.record(progress.step, progress.tokens, resumed=changed)
                checkpoint.restore_random(processes.rank, device)
                if progress.step > progress.evaluated and progress.step in evaluated:
                    evaluate_and_keep(run, progress, log)
            run_steps(run, progress, log, stop)
            return result(run, progress, log.records if processes.first else records + log.records)


def lasting_names(config: RunConfig, former: RunConfig) -> RunConfig:
    """The settings with the names of models and data as they stay valid in any working directory.

    What those of the run to resume, `former`, name means what it meant, whatever lies here now.
    """
    recorded = {former.init_from, *former.train.teachers}

    def lasting(model: str) -> str:
        return model if model in recorded else lasting_model(model)

    return replace(
        config,
        init_from=lasting(config.init_from),
        train=replace(config.train, teachers=tuple(map(lasting, config.train.teachers))),
        data=replace(
            config.data,
            source=lasting_source(config.data.source),
            val_data=lasting_source(config.data.val_data),
        ),
    )


def run_steps(run: Run, progress: Progress, log: RunLog, stop: StopRequest) -> None:
    """The loop: from `progress` to the last step, or until patience ends, or a signal asks to stop."""
    t, model = run.config.train, run.model
    if progress.step == 0 and run.config.init_from:
        record_validation(run, progress, log, validation_loss(run, progress))  # of the base, to compare with
    if evaluation_due(run, progress):  # of a run that was killed after a save and before the evaluation
        evaluate_and_keep(run, progress, log)
    model.train()
    clock, since, stopping = time.perf_counter(), progress.tokens, False
    while progress.step < t.max_steps and not (stopping or out_of_patience(run, progress)):
        states = random_states(run.device)  # from which the step can be repeated
        lr = set_learning_rate(run.optimizers, progress.step, t)
        loss, num_tokens = gradients(run, progress.step, progress.rows, run.processes)
        # One exchange for two things: the mean loss, and whether any process was asked to stop (then above 0).
        loss, asked = run.processes.mean(torch.stack([loss, torch.full_like(loss, stop.signal is not None)]))
        norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
        grad_norm = whole(norm).item()
        if math.isfinite(loss.item()) and math.isfinite(grad_norm):
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), t.grad_clip or math.inf, norm)
            for optimizer in run.optimizers:
                optimizer.step()
            if num_tokens:  # rows without a target have no loss
                progress.losses.append(loss)
            progress.skipped_in_a_row = 0
        else:
            if run.processes.first:
                with log.forgiving(f"step {progress.step:<5} report not written"):
                    ensure_directory(run, progress, log)
            leave_out(run, progress, lr, loss.item(), grad_norm, states, log.print_line)
        model.zero_grad(set_to_none=True)
        if progress.step == 0:
            V = run.tokenizer.vocab_size
            log.print_line(
                f"step 0     loss {loss.item():.3f}; a model that knows nothing has ln {V} = {math.log(V):.3f}"
            )

        progress.step += 1
        progress.rows += run.rows_of_step(progress.rows)
        progress.tokens += num_tokens
        log.step(progress.step)
        if progress.step % LOG_INTERVAL == 0 or evaluation_due(run, progress):
            speed = (progress.tokens - since) / (time.perf_counter() - clock)
            record(run, progress, log, lr, grad_norm, speed)
            clock, since = time.perf_counter(), progress.tokens
        pause = time.perf_counter()
        stopping = asked.item() > 0
        if stopping or is_due(run, progress, t.save_interval):
            # Before the evaluation, so that nothing is lost if that fails.
            save(run, progress, log, must=stopping or progress.step == t.max_steps)
        if evaluation_due(run, progress) and not stopping:  # it can wait: a resume begins with it
            evaluate_and_keep(run, progress, log)
        clock += time.perf_counter() - pause  # neither saving nor evaluating counts as training time
    if out_of_patience(run, progress):
        log.print_line(
            f"stopped    {counted(progress.evaluations_since_best, 'evaluation')} without a better one: "
            "patience has ended"
        )
        save(run, progress, log, must=True)
    # A signal may also come in the last step, or after it; its sender gets the same answer.
    if run.processes.mean(torch.tensor(float(stopping or stop.signal is not None))).item() > 0:
        raise Interrupted(
            stop.signal or signal.SIGTERM,
            f"stopped at step {progress.step} of {t.max_steps}, and saved",
            f"go on with: minigpt train --resume {quoted(run.directory.path)}",
        )


def gradients(run: Run, step: int, first: int, processes: Processes) -> tuple[Tensor, int]:
    """Leave the gradient of the step after `step` others, which begins with row `first`, in the parameters.

    Returns:
        Its loss of the text alone, the mean over all targets of the step (a scalar; a process's share of it), and their
        number.
    """
    batches = list(run.micro_batches(step, first, processes))
    counts = [int((batch.targets != IGNORED).sum()) for batch in batches]
    mean_count = processes.mean(torch.tensor(sum(counts), dtype=torch.float64)).item()  # of the processes
    total = torch.zeros((), device=run.device)
    for number, (batch, count) in enumerate(zip(batches, counts, strict=True)):
        share = max(mean_count, 1) / max(count, 1)  # so that each target of the step weighs the same
        with (
            exchanging(run.forward, now=number + 1 == len(batches)),
            document_mask(run.model, batch.positions) as cache,
            kernels(run.model, run.kernels),
        ):
            with autocast(run.device, run.dtype):
                logits = with_text(run.forward(batch.inputs, cache), run.tokenizer.vocab_size)  # (B, T) -> (B, T, V)
                loss = next_token_loss(logits, batch.targets)
                learned = run.teachers.mixed(loss, logits, batch)
            (learned / share).backward()  # gradients add up over the micro-batches
        total += loss.detach() / share
    return total, round(mean_count * processes.size)


def evaluation_due(run: Run, progress: Progress) -> bool:
    """Whether an evaluation belongs to this step and has not been made yet."""
    return progress.step > progress.evaluated and is_due(run, progress, run.config.train.eval_interval)


def is_due(run: Run, progress: Progress, interval: int) -> bool:
    """Whether what is done every `interval` steps, or at the end of every epoch where they are counted, is due now."""
    t = run.config.train
    ended = progress.rows % run.loader.rows_per_epoch == 0 if t.epochs else progress.step % interval == 0
    return ended or progress.step == t.max_steps  # and after the last step, in any case


def out_of_patience(run: Run, progress: Progress) -> bool:
    """Whether the validation loss has not become better for too long."""
    return 0 < run.config.train.patience <= progress.evaluations_since_best


def record(run: Run, progress: Progress, log: RunLog, lr: float, grad_norm: float, speed: float) -> None:
    """Record the mean loss since the last record."""
    train_loss = torch.stack(progress.losses).mean().item() if progress.losses else math.nan
    values = {"train_loss": train_loss, "lr": lr, "grad_norm": grad_norm, "tokens_per_second": speed}
    if progress.skipped:
        values["skipped"] = progress.skipped
    log.record(
        progress.step,
        progress.tokens,
        **{name: value for name, value in values.items() if math.isfinite(value)},  # a skipped step has none
    )
    progress.losses = []


def save(run: Run, progress: Progress, log: RunLog, must: bool) -> None:
    """Make a new `last/`. A full disk costs this checkpoint and not the run, unless it is the one that the run needs.

    Raises:
        DivergenceError: if a weight is not finite; the checkpoints before stay.
        OSError: if it cannot be written and `must` be.
        CheckpointError: if another run has taken the place of this one.
    """
    states = gathered_states(random_states(run.device), run.processes)
    weights, state = checkpoint_tensors(run.model, run.optimizers, progress, states)
    check_finite({f"the weight {name}": values for name, values in weights.items()}, progress.step, run.directory)
    with run.processes.first_goes_ahead():  # nobody leaves while the first one writes: torchrun would end it
        if run.processes.first:
            with nullcontext() if must else log.forgiving(f"step {progress.step:<5} not saved"):
                ensure_directory(run, progress, log)
                facts = {**run.origins, "log": log.marks()}
                for line in replace_last(run.directory, weights, state, progress, facts):
                    log.print_line(line)


def ensure_directory(run: Run, progress: Progress, log: RunLog) -> None:
    """Before a write: make the run directory again if somebody has removed it, and lock it.

    Raises:
        CheckpointError: if it holds another run now, which is not to be written over.
        OSError: if it cannot be made.
    """
    directory = run.directory
    if run.lock and run.lock.is_lost():
        run.lock.take()
        if directory.config.exists() and read_config(directory) != run.config:
            raise CheckpointError(
                f"{directory.path} holds another run now: this one was removed, with everything that it had saved",
                f"nothing was written to the other run; begin this one again with another {named('out')}",
            )
    elif directory.config.exists():
        return
    if not directory.config.exists():
        log.print_line(
            f"step {progress.step:<5} {directory.path} was removed: it is made again, without what was in it"
        )
        start_run(directory, run.config, run.tokenizer, run.carried)
    log.restore()


def evaluate_and_keep(run: Run, progress: Progress, log: RunLog) -> None:
    """Evaluate, keep the best weights, record and print it, and let the model write a little.

    Raises:
        DivergenceError: if the loss is not finite.
        CheckpointError: if another run has taken the place of this one.
    """
    val_loss = validation_loss(run, progress)
    progress.evaluated, progress.evaluations_since_best = progress.step, progress.evaluations_since_best + 1
    model = whole_model(run.model)
    if val_loss < progress.best_loss:
        progress.best_loss, progress.evaluations_since_best = val_loss, 0
    if run.processes.first:
        with log.forgiving(f"step {progress.step:<5} best weights not kept"):
            ensure_directory(run, progress, log)
            for line in keep_best(run.directory, model, val_loss, progress.step, run.config.init_from):
                log.print_line(line)
    record_validation(run, progress, log, val_loss)
    if run.processes.first:
        with log.only_shown(f"step {progress.step:<5} no sample"):
            written = generate(
                model, [run.loader.prompt], max_new_tokens=SAMPLE_TOKENS, temperature=0.8, seed=run.config.seed,
                tokenizer=run.tokenizer, eos_token_id=run.loader.eos_token_id, stop=run.loader.stop, on_overflow="crop",
            )  # fmt: skip
            log.sample(progress.step, run.tokenizer.decode(written.sequences[0]))
        log.draw()


def validation_loss(run: Run, progress: Progress) -> float:
    """The loss over the whole validation split, each process computing its share.

    Raises:
        DivergenceError: if it is not finite.
    """
    share, shares = run.evaluation_share
    batches = itertools.islice(run.loader.validation(), share, None, shares)
    part = evaluate_batches(run.model, batches, run.dtype, run.tokenizer.vocab_size)
    loss = run.processes.weighted_mean(part.loss, part.tokens)
    check_finite({"the validation loss": torch.tensor(loss)}, progress.step, run.directory)
    return loss


def record_validation(run: Run, progress: Progress, log: RunLog, val_loss: float) -> None:
    """Record a validation loss, and print it."""
    epoch = progress.rows / run.loader.rows_per_epoch
    log.record(progress.step, progress.tokens, val_loss=val_loss, epoch=epoch)
    more = "" if log.floor is None else f", {val_loss - log.floor:.3f} above the corpus's entropy"
    if run.config.train.epochs:
        more += f", perplexity {terminal.number(perplexity(val_loss), '.2f')}, epoch {epoch:.3g}"
    log.print_line(f"step {progress.step:<5} validation loss {val_loss:.4f}{more}")


def replay(
    config: RunConfig, data: Corpus | Documents, path: Path, print_line: PrintLine = print_to_stdout
) -> Divergence:
    """Compute a step that diverged once more, from the checkpoint that lies beside its report at `path`.

    Settings and data are those of the run.

    Returns:
        What was found this time; equal to the report if the step could be reproduced.

    Raises:
        MissingFileError: if there is no report, or no checkpoint beside it.
        CheckpointError: if one of them is damaged, or the checkpoint is of another corpus.
    """
    report, checkpoint, device = read_report(path), open_checkpoint(path.parent), choose_device(config.device)
    checkpoint.check_data(data_checksum(data), config)
    config = replace(config, kernels=choose_kernels(config, Processes(), device))
    run = set_up(config, data, RunDirectory(path.absolute().parent.parent), Processes(), device, print_line, checkpoint)
    run.model.train()
    checkpoint.restore_random(0, device)
    lr = set_learning_rate(run.optimizers, report.step - 1, config.train)
    loss, _ = gradients(run, report.step - 1, report.first_sequence, Processes())
    grad_norm = torch.nn.utils.get_total_norm(p.grad for p in run.model.parameters() if p.grad is not None).item()
    checkpoint.restore_random(0, device)
    batches = run.micro_batches(report.step - 1, report.first_sequence, Processes())
    culprit = find_nonfinite(run.model, batches, device, run.dtype, run.tokenizer.vocab_size, run.teachers)
    return replace(
        report,
        learning_rate=lr,
        loss=str(loss.item()),
        grad_norm=str(grad_norm),
        num_sequences=run.rows_of_step(report.first_sequence),
        first_nonfinite=culprit,
    )


def has_ended(run: Run, progress: Progress, records: list[dict[str, Any]]) -> bool:
    """Whether a run has taken all its steps, and evaluated the last."""
    return progress.step >= run.config.train.max_steps and records[-1:] != [] and "val_loss" in records[-1]


def result(run: Run, progress: Progress, records: list[dict[str, Any]]) -> TrainResult:
    """How a run stands, from what it recorded."""

    def values(key: str) -> list[float]:
        return [record[key] for record in records if key in record] or [math.nan]  # as when every step was skipped

    kept = stored_loss(run.directory)
    return TrainResult(
        out=str(run.directory.path),
        step=progress.step,
        train_loss=values("train_loss")[-1],
        val_loss=values("val_loss")[-1],
        best_val_loss=kept if math.isfinite(kept) else progress.best_loss,
        tokens_per_second=statistics.median(values("tokens_per_second")),
        seconds=records[-1]["seconds"],
        parameters=run.model.num_parameters(),
    )
