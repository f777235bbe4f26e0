"""Optimizers and their schedule: which weights decay, AdamW, Muon, and the learning rate as a function of the step."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minigpt.config import TrainConfig
from minigpt.model import GPT
from minigpt.training.distributed import part_of, whole


def lr_at(step: int, config: TrainConfig) -> float:
    """AdamW's learning rate at a step, counted from 0.

    Linear warm-up to `learning_rate` over `warmup_steps`, then half a cosine (Loshchilov and Hutter, 2017, without
    restarts) or a line down to `min_learning_rate` at `max_steps`. Clamped at both ends, so a run that is continued
    beyond its end never leaves the range.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (max(step, 0) + 1) / config.warmup_steps
    if step >= config.max_steps:
        return config.min_learning_rate
    progress = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)  # 0 -> 1
    share = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))  # 1 -> 0
    return config.min_learning_rate + share * (config.learning_rate - config.min_learning_rate)


def parameter_groups(model: GPT, config: TrainConfig) -> dict[str, list[nn.Parameter]]:
    """Every trainable parameter in exactly one of three groups.

    `muon`: matrices of the blocks, under Muon. `decay`: matrices and embeddings that AdamW shrinks. `no_decay`: biases
    and layer norms, which never decay; under Muon the embeddings and the head as well.
    """
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "no_decay": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            groups["no_decay"].append(parameter)
        elif config.optimizer == "adamw":
            groups["decay"].append(parameter)
        else:
            groups["muon" if name.startswith("h.") else "no_decay"].append(parameter)
    return groups


def make_optimizers(model: GPT, config: TrainConfig, dtype: torch.dtype = torch.float32) -> list[Optimizer]:
    """The optimizers of a run; each parameter belongs to one of them.

    Every param group carries "peak_lr"; `set_learning_rate` moves all of them along the one schedule. `dtype` is that
    of the run's matrix products, Muon's included.
    """
    groups = parameter_groups(model, config)
    adamw_groups = [
        {"params": groups[name], "weight_decay": decay, "peak_lr": config.learning_rate}
        for name, decay in (("decay", config.weight_decay), ("no_decay", 0.0))
        if groups[name]
    ]
    optimizers: list[Optimizer] = []
    if adamw_groups:
        # fused: one kernel over all tensors; the same numbers, several times faster on the many small tensors here
        optimizers = [AdamW(adamw_groups, config.learning_rate, (config.beta1, config.beta2), fused=True)]
    if not groups["muon"]:
        return optimizers
    # c_attn holds three maps on top of each other: queries, keys and values
    stacked = {id(parameter) for name, parameter in model.named_parameters() if name.endswith("c_attn.weight")}
    muon_groups = [
        {"params": [p for p in groups["muon"] if id(p) in stacked], "stacked": 3, "peak_lr": config.muon_learning_rate},
        {"params": [p for p in groups["muon"] if id(p) not in stacked], "peak_lr": config.muon_learning_rate},
    ]
    muon = Muon(muon_groups, config.muon_learning_rate, config.weight_decay, config.muon_momentum, dtype)
    return [muon, *optimizers]


def set_learning_rate(optimizers: list[Optimizer], step: int, config: TrainConfig) -> float:
    """Set every group's rate for this step: its peak, scaled as `lr_at` scales AdamW's. Returns AdamW's rate."""
    lr = lr_at(step, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr / config.learning_rate
    return lr


class AdamW(torch.optim.AdamW):
    """torch's, without wrappers that keep torch.compile away from it: nobody compiles its step.

    They import that compiler, which takes about as long as to import torch, at the start of every training.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(Optimizer):
    """Momentum whose update is made orthogonal: MomentUm Orthogonalized by Newton-Schulz (Jordan et al., 2024).

    A gradient matrix is dominated by a few directions. Muon replaces it by the nearest (semi-)orthogonal matrix, so
    that every direction moves by the same amount; far fewer steps reach the same loss. For matrices only.

    The numbers are those of `torch.optim.Muon(adjust_lr_fn="original")`, tested. It is written out here for two
    reasons: torch's iteration is always in bfloat16, which costs a hundred times the time on a CPU without bfloat16
    units, and it takes one matrix at a time, where this one takes all matrices of a shape in one batched product.

    Where each of several processes has a part of every matrix, all put the whole update together, make it orthogonal,
    and keep their part.

    Args:
        params: matrices, or param groups of them. A group's "stacked" says how many matrices each of its parameters
            holds on top of each other; they are made orthogonal one by one.
        lr: learning rate; each matrix's is larger by sqrt(rows / columns) if it has more rows than columns.
        weight_decay: decoupled, scaled by `lr`.
        momentum: decay rate of the running mean of the gradients (Nesterov's form).
        dtype: of the matrix products, for float32 gradients; wider ones keep theirs.
    """

    add_param_group = AdamW.add_param_group

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float,
        momentum: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "stacked": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None, "Muon does not evaluate closures"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            mean = state["momentum_buffer"]
            mean.lerp_(parameter.grad, 1 - momentum)
            updates.append(whole(parameter.grad.lerp(mean, momentum)))  # Nesterov: look one step ahead
        rows, columns = parameters[0].size(0) // group["stacked"], parameters[0].size(1)
        scale = math.sqrt(max(1.0, rows / columns))
        matrices = torch.stack(updates).view(-1, rows, columns)  # (parameters * stacked, rows, columns)
        if matrices.dtype == torch.float32:
            matrices = matrices.to(self.dtype)
        orthogonal = orthogonalize(matrices).to(parameters[0].dtype).reshape(-1, *parameters[0].shape)
        for parameter, update in zip(parameters, orthogonal, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(part_of(update, parameter), alpha=-lr * scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Push every singular value of each matrix (K, M, N) towards 1, and leave its singular vectors.

    A quintic Newton-Schulz iteration, x -> a x + b x^3 + c x^5 on the singular values. The coefficients are chosen for
    a steep slope at zero, not to converge: five steps bring every value into about 0.7 to 1.2, and that is enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices  # the products below are square in the rows: make those the shorter side
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # now every singular value is at most 1
    for _ in range(5):
        gram = x @ x.mT  # (K, M, M)
        quintic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram^2, summed inside the product
        x = torch.baddbmm(x, quintic, x, beta=a)  # a x + quintic x
    return x.mT if tall else x
