"""Several processes that train one model: which rows each reads, and the few numbers that they exchange.

`torchrun --nproc-per-node 4 -m minigpt train ...` starts the same program four times. Each process reads its share of
every batch, and gradients are averaged before each step, so that all of them take the same one:

    ddp   every process has the whole model and all of the optimizer's state (Li et al., 2020)
    fsdp  each has one part of every tensor, and gathers the others while a block computes (Zhao et al., 2023)

The batch of a step, `batch_size * accumulation_steps` rows, is the same for any number of processes.
"""

import gc
import itertools
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minigpt.errors import ConfigError, Interrupted, PeerError, brief, counted, first_line, named, passed
from minigpt.model import GPT
from minigpt.system.signals import leave

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE = timedelta(minutes=10)  # how long a process waits for another before it assumes that this one has died
READING = timedelta(days=1)  # the same while the first reads the data: it may fetch them, and encode them for hours
LONGEST_PATH = 4096  # bytes
_GROUPS = itertools.count()  # of this process, one after another: all processes count alike
LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # variables that torchrun sets, besides WORLD_SIZE

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Processes:
    """All processes of a run, as one of them sees them. `Processes()` is a run with one process.

    Attributes:
        rank: this process's number, from 0.
        size: how many processes there are.
        store: keys and values that all processes can read. The launcher keeps it, so it outlives each process.
    """

    rank: int = 0
    size: int = 1
    store: "Store | None" = None

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes files."""
        return self.rank == 0

    def share(self, batch_size: int, accumulation_steps: int) -> tuple[int, int]:
        """Rows in a micro-batch of each process, and micro-batches in its step.

        Raises:
            ConfigError: if neither the micro-batches nor their rows can be dealt out evenly.
        """
        if accumulation_steps % self.size == 0:
            return batch_size, accumulation_steps // self.size
        if batch_size % self.size == 0:
            return batch_size // self.size, accumulation_steps
        raise ConfigError(
            f"{self.size} processes cannot share out {named('accumulation_steps', accumulation_steps)} micro-batches "
            f"of {named('batch_size', batch_size)} rows",
            f"choose {named('batch_size')} or {named('accumulation_steps')} as a multiple of {self.size}",
        )

    def device(self, device: torch.device) -> torch.device:
        """The device of this process, if all use devices of this kind: with several GPUs each process takes its own.

        Raises:
            ConfigError: if there are fewer GPUs than processes.
        """
        if self.size == 1 or device.type != "cuda":
            return device
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= count:
            raise ConfigError(
                f"there is no GPU for process {number}, counted from 0: this machine has {counted(count, 'GPU')}",
                f"start as many processes as there are GPUs, or choose {passed('device', 'cpu')}",
            )
        own = torch.device("cuda", number)
        torch.cuda.set_device(own)
        return own

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, of any shape; every process must call it."""
        if self.size == 1:
            return values
        total = values.detach().to("cpu", copy=True)
        dist.all_reduce(total)
        return total.to(values.device) / self.size

    def weighted_mean(self, value: float, weight: float) -> float:
        """The mean over all processes, in float64, each with its weight; every process must call it."""
        if self.size == 1:
            return value
        total, weights = self.mean(torch.tensor([value * weight, weight], dtype=torch.float64)).tolist()
        return total / weights

    def gathered(self, values: Tensor) -> list[Tensor]:
        """The values of all processes, which have one shape, in the order of the ranks; on the CPU."""
        if self.size == 1:
            return [values]
        mine = values.cpu()
        everybody = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everybody, mine)
        return everybody

    def path_of_first(self, path: Path | None) -> Path:
        """The path that the first process has chosen; every process must ask."""
        letters = bytearray(os.fsencode(path or "").ljust(LONGEST_PATH, b"\0"))
        found = self.gathered(torch.frombuffer(letters, dtype=torch.uint8))[0]
        return Path(os.fsdecode(found.numpy().tobytes().rstrip(b"\0")))

    @contextmanager
    def first_goes_ahead(self, patience: timedelta | None = None) -> Iterator[None]:
        """A context that the other processes enter when the first has left it, so that they find what it wrote.

        They wait with this `patience` for a first one that lives; by default with `PATIENCE`.
        """
        if self.size == 1:
            yield
            return
        group = dist.new_group(timeout=patience, backend="gloo") if patience else None
        here = torch.zeros(1)  # on the CPU: a barrier would go through NCCL wherever there is a GPU, used or not
        if not self.first:
            dist.all_reduce(here, group=group)
        yield
        if self.first:
            dist.all_reduce(here, group=group)

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """A context around a whole program: of all processes, only the first to meet an error prints it.

        The others meet the same error, or the loss of a process, and end without printing.
        """
        if self.size == 1:
            yield
            return
        signal.signal(signal.SIGTERM, leave)  # torchrun sends one to all others as soon as one process has left
        with warnings.catch_warnings():
            if not self.first:
                warnings.simplefilter("ignore")  # the first one meets them too
            try:
                yield
            except (Exception, KeyboardInterrupt) as error:
                if not self._first_to_tell():
                    raise SystemExit(128 + error.signal if isinstance(error, Interrupted) else 2) from None
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in `leave`, until the two lines are written
                raise

    def _first_to_tell(self) -> bool:
        assert self.store is not None
        try:
            told: int = self.store.add("told", 1)
        except RuntimeError:  # the launcher, which keeps the store, has gone too
            return True
        return told == 1


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this run, inside the `with`. A `with` inside another one has the same processes.

    torchrun tells each process its number in the environment; without it the run has one process. They communicate
    through gloo for tensors on the CPU, and through NCCL for tensors on GPUs.

    Raises:
        ConfigError: if the environment has only a part of what torchrun sets, or something else.
        PeerError: instead of the many errors that a process raises when another one has died.
    """
    size = _number("WORLD_SIZE")
    if size <= 1:
        yield Processes()
        return
    if dist.is_initialized():
        yield Processes(dist.get_rank(), size)
        return
    if missing := [name for name in LAUNCHER if not os.environ.get(name)]:
        raise ConfigError(
            f"WORLD_SIZE = {size} promises several processes, but the environment lacks {', '.join(missing)}",
            "start them with torchrun, which sets all of them, or unset WORLD_SIZE",
        )
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        _number(name)
    from torch.distributed.rendezvous import rendezvous

    store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    # Else a later group finds the addresses of this one.
    store = dist.PrefixStore(f"minigpt/{next(_GROUPS)}", store)  # type: ignore[attr-defined]
    dist.init_process_group(store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Processes(rank, size, store)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or _tells_of_a_peer(error):
            reason = first_line(error, 400).split("] ", 1)[-1].split(". ")[0]  # without a place in gloo, and advice
            raise PeerError(
                f"process {rank} of {size} has lost another one: {reason}",
                "look for its own error above; go on from the last checkpoint: minigpt train --resume DIR",
            ) from error
        raise
    finally:
        gc.collect()  # else wrappers that refer to themselves hold the group, and gloo aborts a finished process
        dist.destroy_process_group()


def _number(name: str) -> int:
    """A variable of the environment; 1 if it is empty, or not there. Raises ConfigError if it is no number."""
    told = os.environ.get(name) or "1"
    if not (told.isascii() and told.isdecimal()):
        what = f"the environment says {name} = {brief(told)}, and training reads there what torchrun sets, a number"
        raise ConfigError(what, f"unset {name}, or start several processes with torchrun")
    return int(told)


def parallel(model: GPT, forward: nn.Module, how: Parallel, processes: Processes) -> nn.Module:
    """The module to call in training instead of `forward`, the model or its compiled twin.

    Its gradients are those of the whole batch. The model must have the same weights in every process; with "fsdp", each
    process then keeps only a part of every parameter.
    """
    if processes.size == 1:
        return forward
    device = next(model.parameters()).device
    if how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (processes.size,))
        for block in model.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers gets another name, which torch 2.9 lacks
        return nn.parallel.DistributedDataParallel(
            forward,
            device_ids=ids,
            broadcast_buffers=False,  # they are the causal masks, which are the same everywhere
            gradient_as_bucket_view=True,  # the gradient is a view of the buffer that is sent, so it is in memory once
        )


def exchanging(forward: nn.Module, now: bool) -> Any:
    """A context for one micro-batch: under ddp gradients are exchanged only with the last one of a step.

    Under fsdp they are exchanged with each, because no process has room for a whole gradient.
    """
    if isinstance(forward, nn.parallel.DistributedDataParallel) and not now:
        return forward.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A whole tensor from the parts that the processes may have; every process must call it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def give_back(model: nn.Module) -> None:
    """Let go of what fsdp gathered for passes that no backward pass followed: the parameters are the parts again."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator] # torch's FSDPModule


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, cut as `like` is; itself if that is not cut."""
    if not hasattr(like, "full_tensor"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)  # nothing is sent


def _tells_of_a_peer(error: RuntimeError) -> bool:
    """Whether gloo raised the error, which has no class of its own for errors of the network."""
    return any(word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset"))
