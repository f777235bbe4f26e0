"""What this machine has, and which way of computing is fastest on it, measured: the substance of `minigpt doctor`."""

import importlib.util
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minigpt.config import RunConfig
from minigpt.errors import first_line
from minigpt.evaluation.loss import next_token_loss
from minigpt.system.device import autocast, available_devices, multiplies_bfloat16, processor
from minigpt.system.downloads import cache_dir
from minigpt.training import steps
from minigpt.training.distributed import Processes
from minigpt.training.kernels import Kernels, kernels
from minigpt.training.optim import make_optimizers
from minigpt.training.run import make_model, recompute_blocks, which_kernels

# The losses of two ways to compute the same step may differ only by rounding: bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
MOST_STEPS = 10
SECONDS = 15.0  # how long each way is measured, after one step that warms up; at least one step


def facts() -> dict[str, str]:
    """What this machine has: versions, threads, instruction sets, compiler, devices, folders."""
    capabilities = torch.cpu.get_capabilities()
    sets = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve") if capabilities.get(name)]
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} logical cores",
        "processor": processor(),
        "instructions": ", ".join(sets) or "none of those that matter here",
        "devices": ", ".join(available_devices()),
        "compiler": compiler or "none: torch.compile will not work",
        "corpora": str(cache_dir().resolve()),
        "tiktoken": "installed" if importlib.util.find_spec("tiktoken") else "missing: GPT-2's tokens need it",
    }


@dataclass(frozen=True)
class Timing:
    """One way of computing a training step.

    Attributes:
        name: dtype, mode and kernels, as flags.
        tokens_per_second: median over the measured steps; None if it does not work here.
        difference: largest distance of its losses from float32's, in nats; None if one of the two does not work here.
        safe: whether that is within rounding.
        note: why it does not work, or how long compilation took.
    """

    name: str
    tokens_per_second: float | None
    difference: float | None
    safe: bool
    note: str


def time_settings(
    config: RunConfig,
    device: torch.device,
    with_compile: bool,
    tell: Callable[[str], None] = print,
) -> list[Timing]:
    """Time the same training steps in each dtype, eager and compiled, and on a CPU by `training.kernels`.

    All have the same first weights and batches. torch.compile takes a while to start; `tell` gets a line that says what
    is being measured.
    """
    ways: list[tuple[torch.dtype, bool, Kernels]] = [(torch.float32, False, "torch"), (torch.bfloat16, False, "torch")]
    if device.type == "cpu":
        ways += [(torch.float32, False, "fast"), (torch.float32, False, "c")]
    if with_compile:
        dtypes = [torch.float32, *([torch.bfloat16] if multiplies_bfloat16(device) else [])]
        ways += [(dtype, True, "torch") for dtype in dtypes]
    timings: list[Timing] = []
    usual: list[float] | None = None  # the losses of float32, eager
    for dtype, compiled, by in ways:
        name = f"--dtype {str(dtype)[6:]} --compile {'on' if compiled else 'off'}"
        if device.type == "cpu" and dtype == torch.float32 and not compiled:  # where auto may choose either
            name += f" --kernels {by}"
        tell(f"measuring {name} ...")
        try:
            if by == "c" and steps.unavailable():
                raise RuntimeError(steps.unavailable())
            way = replace(config, kernels=by)
            losses, times = train_a_little(way, device, dtype, compiled, SECONDS)
        except Exception as error:  # a missing compiler raises many kinds
            timings.append(Timing(name, None, None, False, first_line(error)))
            continue
        if (dtype, compiled, by) == (torch.float32, False, "torch"):
            usual = losses
        difference = max((abs(a - b) for a, b in zip(losses, usual or [], strict=False)), default=None)
        tokens = config.train.batch_size * config.model.block_size
        note = f"compiling took {times[0]:.0f} s" if compiled else ""
        speed = tokens / statistics.median(times[1:])
        timings.append(Timing(name, speed, difference, difference is not None and difference <= TOLERANCE[dtype], note))
    return timings


def train_a_little(
    config: RunConfig, device: torch.device, dtype: torch.dtype, compiled: bool, seconds: float
) -> tuple[list[float], list[float]]:
    """Losses and times in seconds of a few steps, the first of which warms up and compiles.

    A run's own step has more: it accumulates, clips, follows a schedule, and may mask documents.
    """
    torch.manual_seed(0)
    by, _ = which_kernels(config, Processes(), device, dtype)
    model = make_model(config, None, None, {}).to(device)
    if config.train.gradient_checkpointing:
        recompute_blocks(model)
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
    optimizers = make_optimizers(model, config.train, dtype)
    losses: list[float] = []
    times: list[float] = []
    while len(times) < 2 or (sum(times[1:]) < seconds and len(times) <= MOST_STEPS):
        start = time.perf_counter()
        tokens = torch.randint(config.model.vocab_size, (config.train.batch_size, config.model.block_size + 1))
        x, y = tokens[:, :-1].to(device), tokens[:, 1:].to(device)
        with kernels(model, by):
            with autocast(device, dtype):
                loss = next_token_loss(forward(x), y)
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        times.append(time.perf_counter() - start)
    return losses, times
