"""Steps with NaN or infinite numbers: which tensor was the first, and a report from which the step can be repeated."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config import write_yaml
from minigpt.data.batches import Batch
from minigpt.errors import CheckpointError, DivergenceError, named, quoted
from minigpt.evaluation.loss import next_token_loss
from minigpt.formats.run_directory import RunDirectory
from minigpt.model import GPT
from minigpt.parameters import with_text
from minigpt.system.device import autocast
from minigpt.system.files import make_way, new_folder, read_json, write_text
from minigpt.training.checkpoint import (
    FILES,
    Progress,
    checkpoint_tensors,
    gathered_states,
    restore_random_states,
    write_checkpoint,
)  # fmt: skip
from minigpt.training.distributed import Processes, whole
from minigpt.training.document_mask import document_mask
from minigpt.training.log import PrintLine
from minigpt.training.run import Run
from minigpt.training.teachers import NO_TEACHERS, Teachers

REPORT = "report.json"
MOST_SKIPPED = 10  # steps in a row: a run that skips more will not recover


@dataclass(frozen=True)
class Divergence:
    """A step whose loss or gradient was infinite or not a number; it was not taken.

    Attributes:
        step: counted from 1, as a run prints it.
        learning_rate: of the step.
        loss: of the step; a text such as "nan", because JSON has no such number.
        grad_norm: of the step, in the same form.
        seed: of the run: with it, the rows follow from their numbers.
        first_sequence: number of the first row of the step.
        num_sequences: rows in the step.
        first_nonfinite: the first tensor that was not finite, in the order of computing.
    """

    step: int
    learning_rate: float
    loss: str
    grad_norm: str
    seed: int
    first_sequence: int
    num_sequences: int
    first_nonfinite: str


def leave_out(
    run: Run,
    progress: Progress,
    lr: float,
    loss: float,
    grad_norm: float,
    states: Mapping[str, Tensor],
    print_line: PrintLine,
) -> None:
    """Do not take a step whose loss or gradient is not finite: count it as skipped, or stop with a report.

    Weights, progress and random states are those before the step.

    Raises:
        DivergenceError: unless such steps are skipped. The report is in `diverged/`, with a checkpoint of the state
            before, if there was room for them.
    """
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    what = f"step {progress.step + 1}: loss {loss}, gradient norm {grad_norm}, learning rate {lr:.3g}"
    if run.config.train.on_nonfinite == "skip" and progress.skipped_in_a_row < MOST_SKIPPED:
        print_line(f"skipped    {what}")
        return
    ranks = gathered_states(states, run.processes)
    # All search as the first does: under fsdp each pass needs every process, so that none may find another tensor, by
    # dropout of its own, and end sooner. The first's is also the one that a replay finds.
    restore_random_states({name: values[0] for name, values in ranks.items()}, run.device)
    batches = run.micro_batches(progress.step, progress.rows, Processes())
    culprit = find_nonfinite(run.model, batches, run.device, run.dtype, run.tokenizer.vocab_size, run.teachers)
    tensors = checkpoint_tensors(run.model, run.optimizers, progress, ranks)
    report = Divergence(
        progress.step + 1, lr, str(loss), str(grad_norm), run.config.seed, progress.rows,
        run.rows_of_step(progress.rows), culprit,
    )  # fmt: skip
    folder = run.directory.diverged
    repeat = f"to repeat the step: minigpt train --replay {quoted(folder / REPORT)}"
    with run.processes.first_goes_ahead():  # nobody leaves while the first one writes: torchrun would end it
        if run.processes.first:
            try:
                if moved := make_way(folder, {*FILES, REPORT, run.directory.diverged_settings.name}):
                    repeat += f"; {moved}"
                with new_folder(folder) as part:
                    write_checkpoint(part, *tensors, progress, {**run.origins, "log": {}})
                    write_text(part / REPORT, json.dumps(asdict(report), indent=1))
                    write_yaml(run.config, part / run.directory.diverged_settings.name, versions={})
            except OSError as error:  # a full disk must not hide what has happened
                repeat = f"no report could be written: {error.strerror or error}"
    raise DivergenceError(
        f"training diverged in {what}; the first tensor that is not finite: {culprit}",
        f"{_again(run.directory)}; {repeat}",
    )


def _again(directory: RunDirectory) -> str:
    """How to go on after a divergence, or if nothing was saved, to begin anew."""
    resume = f"go on from the last checkpoint with minigpt train --resume {quoted(directory.path)}"
    way = resume if directory.last.exists() else f"begin again with another {named('out')}"
    return f"{way} and a lower learning rate or a longer warm-up"


def check_finite(tensors: Mapping[str, Tensor], step: int, directory: RunDirectory) -> None:
    """Raise if one of these tensors, by their names for the error, is not finite after so many steps.

    The loss and the gradient were finite, but a learning rate that is far too large can still make such weights.

    Raises:
        DivergenceError: if one of them is infinite or not a number.
    """
    for name, tensor in tensors.items():
        if not _all_finite(tensor):
            how = _again(directory)
            if directory.previous.exists():
                how += f"; if it ends here again, remove {directory.last} first: {directory.previous.name}/ is older"
            elif directory.last.exists():
                how += f"; if it ends here again, begin a new run with another {named('out')}"
            raise DivergenceError(f"training diverged: {name} is not finite after step {step}", how)


def read_report(path: Path) -> Divergence:
    """The report of a diverged step.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is no report.
    """
    content = read_json(path)
    expected: dict[str, Any] = {field.name: field.type for field in fields(Divergence)}
    if content.keys() != expected.keys() or not all(isinstance(content[name], expected[name]) for name in expected):
        raise CheckpointError(f"{path} is no report of a diverged step", f"name a run's diverged/{REPORT}")
    return Divergence(**content)


def find_nonfinite(
    model: GPT,
    batches: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype,
    vocab_size: int | None = None,
    teachers: Teachers = NO_TEACHERS,
) -> str:
    """Name the first tensor of a step that is infinite or not a number, in the order of computing.

    Weights come first, then for each micro-batch the outputs of the modules, the loss, and the gradients from the head
    downwards. Weights and random state are those before the step. The model is left without gradients. `vocab_size` is
    the tokenizer's; see `parameters.with_text`.

    Returns:
        A few words, such as "the output of h.2.mlp.c_fc in micro-batch 0".
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if not _all_finite(parameter):
            return f"the weight {name}"
    for number, batch in enumerate(batches):
        model.zero_grad(set_to_none=True)
        outputs: list[str] = []
        hooks = [module.register_forward_hook(_watch(name, outputs)) for name, module in model.named_modules() if name]
        with document_mask(model, batch.positions) as cache:
            try:
                with autocast(device, dtype):
                    logits = with_text(model(batch.inputs, cache), vocab_size)
                    loss = teachers.mixed(next_token_loss(logits, batch.targets), logits, batch)
            finally:
                for hook in hooks:
                    hook.remove()
            if outputs:
                return f"the output of {outputs[0]} in micro-batch {number}"
            if not _all_finite(loss):
                return f"the loss of micro-batch {number}"
            loss.backward()
        bad = [name for name, p in reversed(parameters.items()) if p.grad is not None and not _all_finite(p.grad)]
        model.zero_grad(set_to_none=True)
        if bad:
            return f"the gradient of {bad[0]} in micro-batch {number}"
    return "none alone: only the sum over the step is not finite"


def _watch(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
        if not _all_finite(output):
            found.append(name)

    return hook


def _all_finite(tensor: Tensor) -> bool:
    return bool(whole(tensor.detach()).isfinite().all())
