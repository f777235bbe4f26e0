"""What a process holds and sends when several train one model: the table of docs/several-processes.md.

python scripts/process_costs.py
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from minigpt import GPT, GPTConfig
from minigpt.training.distributed import Parallel


def numbers_held(model: GPT, how: Parallel, size: int) -> int:
    """Of the model's numbers, those that stay in the process that has most of them.

    As many numbers has its gradient, and twice as many AdamW's state.
    """
    return sum(_part(parameter, how, size) for parameter in model.parameters())


def bytes_sent(model: GPT, how: Parallel, size: int, micro_batches: int = 1) -> int:
    """What each process sends in a step, in bytes, if all pass their parts around a ring.

    To gather n parts of a tensor in every process, or to add up n tensors and leave each process its part of the sum,
    is n - 1 sendings of one part. DDP does both to the gradient, once a step. FSDP2, in each micro-batch, gathers the
    blocks for the forward pass and once more for the backward pass, gathers what lies outside them once, and adds up
    the gradient.

    Args:
        model: whole.
        how: "ddp" or "fsdp", see `minigpt.training.distributed`.
        size: processes.
        micro_batches: that each of them computes for a step.
    """
    if how == "ddp":
        return round(2 * (size - 1) / size * _bytes(model.parameters(), how, 1))
    everything, blocks = (_bytes(module.parameters(), how, size) for module in (model, model.h))
    return micro_batches * (size - 1) * (2 * everything + blocks)


def _bytes(parameters: Iterable[Tensor], how: Parallel, size: int) -> int:
    return sum(_part(parameter, how, size) * parameter.element_size() for parameter in parameters)


def _part(parameter: Tensor, how: Parallel, size: int) -> int:
    """The numbers of one process's part of a tensor: under fsdp of n processes, every n-th row, rounded up."""
    cut = size if how == "fsdp" else 1
    return -(-parameter.size(0) // cut) * parameter[0].numel()


def main() -> None:
    """Print MB of GPT-2 small and AdamW: GPUs, held under ddp and fsdp, sent under ddp and fsdp."""
    with torch.device("meta"):
        model = GPT(GPTConfig())
    kinds: tuple[Parallel, ...] = ("ddp", "fsdp")
    for size in (1, 2, 4, 8, 16, 32, 64):
        held = [16 * numbers_held(model, how, size) for how in kinds]
        sent = [bytes_sent(model, how, size) for how in kinds]
        print(size, *(f"{number / 1e6:,.0f}" for number in held + sent))


if __name__ == "__main__":
    main()
