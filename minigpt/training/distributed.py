"""Several processes that train one model: who reads what, and the few things that they tell each other.

`torchrun --nproc-per-node 4 -m minigpt train ...` starts the same program four times. Each process reads its share of
every batch, and gradients are averaged before each step, so that all of them take the same one:

    ddp   every process has the whole model and all of the optimizer's state (Li et al., 2020)
    fsdp  each has one part of every tensor, and borrows the others for the length of a block (Zhao et al., 2023)

The batch of a step, `batch_size * accumulation_steps` sequences, is the same for any number of processes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minigpt.errors import ConfigError, PeerError
from minigpt.model import GPT
from minigpt.weights import empty_model

PATIENCE = timedelta(minutes=10)  # how long a process waits for another before it takes it for dead


@dataclass(frozen=True)
class Processes:
    """All processes of a run, as one of them sees them. `Processes()` is a run of one.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def share(self, batch_size: int, accumulation_steps: int) -> tuple[int, int]:
        """Sequences in a micro-batch of each process, and micro-batches in its step.

        Raises:
            ConfigError: if neither the micro-batches nor their sequences can be dealt out evenly.
        """
        if accumulation_steps % self.size == 0:
            return batch_size, accumulation_steps // self.size
        if batch_size % self.size == 0:
            return batch_size // self.size, accumulation_steps
        raise ConfigError(
            f"{self.size} processes cannot share out {accumulation_steps} micro-batches of {batch_size} sequences",
            f"choose batch_size or accumulation_steps as a multiple of {self.size}",
        )

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, of any shape; every process must ask."""
        if self.size == 1:
            return values
        total = values.detach().to(_device(), copy=True)
        dist.all_reduce(total)
        return total.to(values.device) / self.size

    def gathered(self, values: Tensor) -> list[Tensor]:
        """Everybody's values, equal in shape, in the order of the ranks; on the CPU."""
        if self.size == 1:
            return [values]
        mine = values.to(_device())
        everybody = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everybody, mine)
        return [part.cpu() for part in everybody]

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """A block that the others enter when the first has left it: what it wrote there, they find."""
        if self.size > 1 and not self.first:
            dist.barrier()
        yield
        if self.size > 1 and self.first:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes of this run and the device of this one, for as long as the block lasts.

    torchrun tells each process its number in the environment; without it the run has one process.

    Args:
        device: as `choose_device` gives it; of several GPUs each process takes its own.

    Raises:
        PeerError: in place of the many errors that a process raises when another one has died.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(), device
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, size), device
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or _tells_of_a_peer(error):
            raise PeerError(
                f"process {rank} of {size} has lost another one: {str(error).splitlines()[0][:100]}",
                "its own error stands above; go on from the last checkpoint with --resume",
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def parallel(model: GPT, forward: nn.Module, how: Literal["ddp", "fsdp"], processes: Processes) -> nn.Module:
    """What to call in training in place of the model; its gradients are those of the whole batch.

    Args:
        model: with the same weights in every process. Under "fsdp" its parameters become parts of themselves.
        forward: the model, or its compiled twin.
        how: see the top of this file.
        processes: of this run.
    """
    if processes.size == 1:
        return forward
    if how == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for block in model.h:
            fully_shard(block)
        fully_shard(model)
        return model
    device = next(model.parameters()).device
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(forward, device_ids=ids)


def exchanging(forward: Any, now: bool) -> Any:
    """A context for one micro-batch: gradients are exchanged only with the last one of a step."""
    if isinstance(forward, nn.parallel.DistributedDataParallel):
        return nullcontext() if now else forward.no_sync()
    if hasattr(forward, "set_requires_gradient_sync"):
        forward.set_requires_gradient_sync(now)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a part, put together; every process must ask."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def whole_model(model: GPT) -> GPT:
    """The model itself, or if each process has only a part of it, a whole copy; every process must ask."""
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return model
    copy = empty_model(model.config)
    with torch.no_grad():
        for mine, parameter in zip(copy.parameters(), model.parameters(), strict=True):
            mine.copy_(whole(parameter))
    return copy


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, cut as `like` is; itself if that is not cut."""
    if not hasattr(like, "full_tensor"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(values, like.device_mesh, like.placements)


def _device() -> torch.device:
    """Where the processes exchange tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _tells_of_a_peer(error: RuntimeError) -> bool:
    """Whether gloo raised it, which has no class of its own for what it meets on the network."""
    return any(word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset"))
