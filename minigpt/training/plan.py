"""What a run will need, before it starts: memory by formula, time from a few real steps.

The memory is what is held all the time, plus the largest of the phases that follow one another: teachers asked, if
there are any, a forward and backward pass, an update, an evaluation. `docs/memory.md` derives the formulae and compares
them with real runs.
"""

import dataclasses
import io
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch

from minigpt.analysis.accounting import FLOAT, human, model_size
from minigpt.config import GPTConfig, RunConfig
from minigpt.data.batches import Batch
from minigpt.data.loaders import Loader, TextLoader
from minigpt.data.tokens import TOKENS_PER_BATCH, Ids, rows_at_once
from minigpt.decoding.generate import generate
from minigpt.evaluation.loss import evaluate
from minigpt.lora import LowRank
from minigpt.model import GPT
from minigpt.parameters import empty_model
from minigpt.system.device import LARGEST_IN_HEAP, autocast, free_bytes, keep_freed_memory
from minigpt.training.curves import loss_curve
from minigpt.training.distributed import Processes
from minigpt.training.optim import Muon, make_optimizers
from minigpt.training.run import make_model, which_kernels
from minigpt.training.selfcheck import train_a_little
from minigpt.training.teachers import Teachers, shapes_of

# What glibc's heap takes besides the blocks in use: freed blocks between them that are too small to be used again. As a
# share of the blocks in use, measured on Linux (docs/memory.md).
HEAP_OVERHEAD = 0.6


@dataclass(frozen=True)
class Workload:
    """How much a run reads at once, and how much in an evaluation.

    Attributes:
        row: tokens of the longest training row, T.
        val_row: tokens of the longest validation row.
        val_rows: number of validation rows.
        val_tokens: tokens that are predicted in all of them.
        batched: whether an evaluation reads as many rows at once as training does, which is so for documents; if not,
            it reads as many as `TOKENS_PER_BATCH` allows.
    """

    row: int
    val_row: int
    val_rows: int
    val_tokens: int
    batched: bool

    @classmethod
    def of_text(cls, block_size: int, num_tokens: int) -> "Workload":
        """The workload of a text whose validation split has `num_tokens` tokens."""
        return cls(block_size, block_size, -(-(num_tokens - 1) // block_size), num_tokens - 1, batched=False)

    @classmethod
    def of_loader(cls, loader: Loader) -> "Workload":
        """The workload of a text or of documents, as a loader has them."""
        if isinstance(loader, TextLoader):
            return cls.of_text(loader.block_size, len(loader.val.ids))
        epoch, lengths = loader.read(0), loader.val.lengths
        row = max(int(epoch.encoded.lengths[documents].sum()) for documents in epoch.rows)
        return cls(row, int(lengths.max()), len(lengths), int(lengths.sum()), batched=True)

    def evaluated_at_once(self, batch_size: int) -> int:
        """Tokens of the largest batch of an evaluation."""
        rows = batch_size if self.batched else rows_at_once(self.val_row)
        return self.val_row * min(self.val_rows, rows)


@dataclass(frozen=True)
class Phase:
    """What a part of the loop holds while it runs, in bytes.

    Attributes:
        parts: name -> bytes.
        freed: blocks of the heap that are free but too small to be used again.
    """

    parts: dict[str, int]
    freed: int

    @property
    def total(self) -> int:
        """The bytes of all parts and of the freed blocks."""
        return sum(self.parts.values()) + self.freed


@dataclass(frozen=True)
class Memory:
    """What a run adds to its process, in bytes.

    Attributes:
        lasting: what is held all the time.
        phases: what comes on top of it, one phase after another.
    """

    lasting: dict[str, int]
    phases: dict[str, Phase]

    @property
    def largest(self) -> str:
        """The phase that decides the peak."""
        return max(self.phases, key=lambda name: self.phases[name].total)

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return sum(self.lasting.values()) + self.phases[self.largest].total


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        parameters: of the model, a tied head counted once.
        device: where it computes.
        dtype: of its matrix products.
        process: bytes that the process holds without the run: Python, torch, the corpus, and the libraries that
            training loads. 0 on a GPU, whose memory holds none of them, and on a system that does not tell.
        memory: what the run adds.
        free: bytes that are still free on the device; None if the system does not tell.
        seconds: wall time of what is left of the run, part by part; None if it was not measured, because there is too
            little memory.
        advice: which settings to change if there is too little memory, else "".
        teachers: the models from which it learns, by name.
    """

    parameters: int
    device: str
    dtype: str
    process: int
    memory: Memory
    free: int | None
    seconds: dict[str, float] | None
    advice: str
    teachers: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """The most memory that the process will hold, in bytes."""
        return self.process + self.memory.peak

    @property
    def total_seconds(self) -> float | None:
        """Wall time of the run."""
        return None if self.seconds is None else sum(self.seconds.values())

    def table(self) -> str:
        """The plan for people, each line with its share of the whole."""
        largest = self.memory.largest
        phase = self.memory.phases[largest]
        parts = {"the process itself": self.process, **self.memory.lasting}
        parts |= {f"{largest}: {name}": part for name, part in phase.parts.items()}
        parts["freed blocks of the heap"] = phase.freed
        lines = [f"{self.parameters:,} parameters on {self.device}, {self.dtype}"]
        lines += [f"learning from {', '.join(self.teachers)}"] * bool(self.teachers)
        lines += ["", "memory, at its peak"]
        lines += [_line(name, human(part, "B"), part / self.peak) for name, part in parts.items() if part]
        lines.append(_line("together", human(self.peak, "B"), 1.0))
        for name, other in self.memory.phases.items():
            if name != largest:
                lines.append(f"  ({name} holds {human(other.total, 'B')} in place of {largest})")
        free = "unknown" if self.free is None else human(self.free, "B")
        lines += [f"  the run adds {human(self.memory.peak, 'B')}; free here: {free}", ""]
        if self.seconds is None or self.total_seconds is None:
            return "\n".join([*lines, "time was not measured: the memory is not there", f"  {self.advice}"])
        lines.append("time")
        whole = self.total_seconds or 1.0
        lines += [_line(name, _duration(part), part / whole) for name, part in self.seconds.items()]
        return "\n".join([*lines, _line("together", _duration(self.total_seconds), 1.0)])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {**dataclasses.asdict(self), "peak": self.peak, "total_seconds": self.total_seconds}


def plan_run(
    config: RunConfig,
    workload: Workload,
    val_ids: Ids,
    device: torch.device,
    dtype: torch.dtype,
    sample_tokens: int,
    measure_seconds: float = 10.0,
    done: int = 0,
) -> Plan:
    """Predict the memory and the time of a run.

    The measured steps are as large as the run's own, and take place only if the formula says that there is room for
    them. They are not compiled: what compiling changes in time and memory is not predicted. Each measured step has one
    micro-batch and one update, so a run that accumulates gradients takes a little less time.

    Args:
        config: the run, with its true vocabulary size. Its data must be open already, so that their memory counts as
            the process's.
        workload: how much data it reads at once.
        val_ids: the validation split, (number of tokens,); a part of it is evaluated.
        device: where to compute.
        dtype: of the matrix products.
        sample_tokens: how many tokens the model writes after each evaluation.
        measure_seconds: how long to measure training steps, after one to warm up; at least one step, at most ten.
        done: steps that a run to resume has taken already: the time is that of the others.
    """
    keep_freed_memory()
    rehearse(config, device, dtype)
    process, free = resident_bytes() if device.type == "cpu" else 0, free_bytes(device)
    memory = predict_memory(config, device, dtype, workload)
    seconds, advice = None, ""
    if free is None or memory.peak <= free:
        seconds = measure_time(config, workload, val_ids, device, dtype, sample_tokens, measure_seconds, done)
    else:
        advice = how_to_fit(config, device, dtype, workload, free)
    parameters = model_size(config.model).parameters
    teachers = config.train.asked
    return Plan(parameters, str(device), str(dtype)[6:], process, memory, free, seconds, advice, teachers)


def predict_memory(config: RunConfig, device: torch.device, dtype: torch.dtype, workload: Workload) -> Memory:
    """The memory that a run adds to its process, by formula; nothing is allocated.

    Args:
        config: the run, with its true vocabulary size.
        device: where it computes; a GPU's allocator is assumed to waste nothing, which was not measured.
        dtype: of the matrix products.
        workload: how much it reads at once.

    Returns:
        The memory. If weights are frozen, or blocks recomputed, the activations are an upper bound: those of training
        all weights.
    """
    m, t = config.model, config.train
    value: Literal[2, 4] = 4 if dtype == torch.float32 else 2
    size = model_size(m, t.batch_size, workload.row, bytes_per_value=value, optimizer=t.optimizer)
    gradients = [row.gradient_bytes for row in size.rows]
    weights, optimizer, adapters = size.parameter_bytes, size.optimizer_bytes, 0
    if t.lora_rank or t.freeze:
        weights, gradients, optimizer, adapters = _of_a_part(config, dtype, t.batch_size * workload.row * value)
    tokens, shapes = t.batch_size * workload.row, shapes_of(config)
    activations, so_far = [row.activation_bytes for row in size.rows], gradients if t.accumulation_steps > 1 else []
    blocks = {
        "training": {
            "activations": activations,
            **_backward_blocks(m, tokens, value),
            "adapters": [adapters],
            "gradients so far": so_far,
            # the second loss: of its four tensors, the place of two is the first loss's gradients' later
            "teachers' probabilities": (1 if value == FLOAT else 2) * [FLOAT * tokens * m.vocab_size] if shapes else [],
        },
        "updating": {
            "gradients": gradients,
            "Muon's matrices": _muon_blocks(m, value) if t.optimizer == "muon" else [],
        },
        "evaluating": {
            "activations and logits": _evaluation_blocks(m, workload.evaluated_at_once(t.batch_size), value)
        },
    }
    if shapes:
        blocks["asking teachers"] = {
            "activations": activations,
            "logits, teachers' mean": [value * tokens * m.vocab_size, FLOAT * tokens * m.vocab_size],
            "a teacher's pass": max((_evaluation_blocks(shape, tokens, value) for shape in shapes), key=sum),
            "adapters": [adapters],
            "gradients so far": so_far,
        }
    lasting = {
        "weights": weights,
        "optimizer's state": optimizer,
        "causal masks": sum(shape.n_layer * shape.block_size**2 for shape in (m, *shapes)),
        "teachers' weights": sum(model_size(shape).parameter_bytes for shape in shapes),
    }
    overhead = HEAP_OVERHEAD if device.type == "cpu" else 0.0
    return Memory(lasting, {name: _phase(parts, overhead) for name, parts in blocks.items()})


def _of_a_part(config: RunConfig, dtype: torch.dtype, column: int) -> tuple[int, list[int], int, int]:
    """Bytes where adapters are trained or weights frozen: weights, each gradient, optimizer, what adapters keep.

    Args:
        config: the run.
        dtype: of the matrix products.
        column: bytes of one number for every token of a micro-batch.
    """
    model = make_model(config, empty_model(config.model), None, {})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state = sum(
        FLOAT * parameter.numel() * (1 if isinstance(optimizer, Muon) else 2)
        for optimizer in make_optimizers(model, config.train, dtype)
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    ranks = [part for part in model.modules() if isinstance(part, LowRank)]
    kept = sum(part.config.rank + 2 * part.A.size(1) * (part.config.dropout > 0) for part in ranks)
    weights = sum(FLOAT * parameter.numel() for parameter in model.parameters())
    return weights, [FLOAT * parameter.numel() for parameter in trained], state, kept * column


def _phase(blocks: dict[str, list[int]], overhead: float) -> Phase:
    in_heap = sum(block for part in blocks.values() for block in part if block <= LARGEST_IN_HEAP)
    return Phase({name: sum(part) for name, part in blocks.items() if part}, round(overhead * in_heap))


def _backward_blocks(m: GPTConfig, tokens: int, value: int) -> dict[str, list[int]]:
    """What a forward and backward pass holds besides what autograd keeps.

    The logits are held throughout. The backward pass begins with two gradients of their size. Later, in the last MLP,
    it has allocated three tensors of the residual stream's size more than it has freed. The larger of the two counts.
    """
    at_loss, in_mlp = 2 * [FLOAT * tokens * m.vocab_size], 3 * [FLOAT * tokens * m.n_embd]
    return {"logits": [value * tokens * m.vocab_size], "gradients of activations": max(at_loss, in_mlp, key=sum)}


def _muon_blocks(m: GPTConfig, value: int) -> list[int]:
    """What Muon holds while it makes a group of matrices orthogonal: here those of `c_fc`, the largest group.

    For all n_layer matrices (4C, C): the updates one by one; then, in the number format of the matrix products, the
    updates as one stack, the iterate and the next iterate; and two products (C, C) for each matrix.
    """
    square = m.n_embd**2
    updates, stacks = m.n_layer * [4 * square * FLOAT], 3 * [4 * square * m.n_layer * value]
    return [*updates, *stacks, *(2 * [square * m.n_layer * value])]


def _evaluation_blocks(m: GPTConfig, tokens: int, value: int) -> list[int]:
    """What an evaluation holds at the larger of two moments: inside an MLP, or around the logits.

    In the MLP: the block's input, the stream after attention, its norm, the wide layer twice, and the logits of the
    batch before, which stay until the new ones replace them. Around the logits: the new logits, with the old ones and
    the output head's input; or with their log-softmax and, if they are not float32, a float32 copy.

    In bfloat16, the MLP is counted as if it were float32, which is the most it can hold: a processor without units for
    bfloat16 may make float32 copies of what it multiplies.
    """
    narrow, logits = FLOAT * tokens * m.n_embd, tokens * m.vocab_size
    in_mlp = [narrow, narrow, narrow, 4 * narrow, 4 * narrow, value * logits]
    at_loss = [narrow, value * logits, *((1 if value == FLOAT else 2) * [FLOAT * logits])]
    return max(in_mlp, at_loss, key=sum)


def how_to_fit(config: RunConfig, device: torch.device, dtype: torch.dtype, workload: Workload, free: int) -> str:
    """Which setting to change if the run adds more memory than is free."""
    t = config.train
    for batch_size in range(t.batch_size - 1, 0, -1):
        if t.batch_size % batch_size == 0:
            steps = t.accumulation_steps * t.batch_size // batch_size
            smaller = replace(config, train=replace(t, batch_size=batch_size, accumulation_steps=steps))
            if predict_memory(smaller, device, dtype, workload).peak <= free:
                return f"--train.batch_size {batch_size} --train.accumulation_steps {steps}: the same batch a step"
    fewer = "" if config.init_from else "--model.n_layer or "  # a model to start from has its layers
    return f"no batch_size is small enough: lower {fewer}--model.block_size"


def measure_time(
    config: RunConfig,
    workload: Workload,
    val_ids: Ids,
    device: torch.device,
    dtype: torch.dtype,
    sample_tokens: int,
    seconds: float,
    done: int = 0,
) -> dict[str, float]:
    """Seconds of a run after `done` steps, from a few steps, a part of an evaluation and a sample of the real size."""
    m, t = config.model, config.train
    as_long = replace(config, model=replace(m, block_size=workload.row))  # rows of the run's own length
    times = train_a_little(as_long, device, dtype, False, seconds)[1]
    asking = _seconds_of_teachers(as_long, device, dtype)
    left = max(0, t.max_steps - done)
    evaluations = -(-t.max_steps // t.eval_interval) - done // t.eval_interval if left else 0  # the last step has one
    samples = evaluations
    if config.init_from and not done:
        evaluations += 1  # of the model to start from
    model = GPT(m).to(device)
    part = val_ids[: TOKENS_PER_BATCH + 1]
    start = perf_counter()
    evaluate(model, part, dtype)
    evaluated = perf_counter()
    generate(model, [[0]], max_new_tokens=sample_tokens, on_overflow="crop")
    return {
        "training": left * t.accumulation_steps * (statistics.median(times[1:]) + asking),
        "evaluations": evaluations * (evaluated - start) * workload.val_tokens / (len(part) - 1),
        "samples": samples * (perf_counter() - evaluated),
    }


def _seconds_of_teachers(config: RunConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds in which a run's teachers read one micro-batch, as models of their shapes do; 0 without any."""
    batch_size, T = config.train.batch_size, config.model.block_size
    shapes = [replace(shape, block_size=max(T, shape.block_size)) for shape in shapes_of(config)]  # for packed rows
    if not shapes:
        return 0.0
    V = min(shape.vocab_size for shape in (config.model, *shapes))  # as many ids at most have text
    by, _ = which_kernels(config, Processes(), device, dtype)
    teachers = Teachers([GPT(shape).to(device).eval().requires_grad_(False) for shape in shapes], kernels=by)
    idx = torch.zeros(batch_size, T, dtype=torch.int64, device=device)
    times = []
    with autocast(device, dtype):
        for _ in range(3):
            start = perf_counter()
            teachers.probabilities(Batch(idx, idx), V)
            times.append(perf_counter() - start)
    return statistics.median(times)


def rehearse(config: RunConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Do once, on the smallest model, what a run does, so that the libraries that it loads count as the process's.

    Freezing and adapters are left out: a glob such as h.5.* would match nothing in its one layer.
    """
    smallest = GPTConfig(vocab_size=2, block_size=2, n_layer=1, n_head=1, n_embd=2)
    whole = replace(config.train, lora_rank=0, freeze="", teachers=())
    train_a_little(replace(config, model=smallest, train=whole), device, dtype, False, 0.0)
    loss_curve([(1, 1.0)], [(1, 1.0)], [(1, 1.0)]).savefig(io.BytesIO(), format="png")  # a plan writes no file


def resident_bytes() -> int:
    """Physical memory that this process holds; 0 if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _line(name: str, amount: str, share: float) -> str:
    return f"  {name:<44}{amount:>12}{100 * share:>7.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
