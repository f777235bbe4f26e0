"""A run: everything that the training loop works on, set up from a seed or from a checkpoint."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minigpt.config import RunConfig
from minigpt.data.corpora import Corpus
from minigpt.data.tokens import TokenFile, prepare, random_batch
from minigpt.device import autocast, choose_dtype, keep_freed_memory
from minigpt.errors import first_line
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer
from minigpt.training.checkpoint import RunDirectory
from minigpt.training.distributed import Processes, parallel
from minigpt.training.optim import make_optimizers
from minigpt.training.resume import Checkpoint
from minigpt.training.run_log import Say

TOKEN_FOLDER = Path("data") / "tokens"


@dataclass(frozen=True)
class Run:
    """Everything that the loop works on."""

    config: RunConfig
    directory: RunDirectory
    corpus: Corpus
    tokenizer: Tokenizer
    train: TokenFile
    val: TokenFile
    model: GPT
    forward: nn.Module  # the model, or what stands for it in training: the same weights
    optimizers: list[torch.optim.Optimizer]
    device: torch.device
    dtype: torch.dtype  # of the matrix products
    processes: Processes
    say: Say

    @property
    def sequences_per_step(self) -> int:
        """Windows that one optimizer step learns from, in all processes together."""
        return self.config.train.batch_size * self.config.train.accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Targets that one optimizer step learns from."""
        return self.sequences_per_step * self.config.model.block_size

    def micro_batches(self, first: int, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        """One process's share of the step that begins with window `first`: inputs and targets, (B, T) each."""
        t = self.config.train
        size, count = processes.share(t.batch_size, t.accumulation_steps)
        for number in range(count):
            start = first + (number * processes.size + processes.rank) * size
            x, y = random_batch(self.train, size, self.config.model.block_size, self.config.seed, start)
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def set_up(
    config: RunConfig,
    corpus: Corpus,
    directory: RunDirectory,
    processes: Processes,
    device: torch.device,
    say: Say,
    checkpoint: Checkpoint | None,
) -> Run:
    """Everything that a run needs, from a seed or from a checkpoint. Nothing is written but token files."""
    t = config.train
    processes.share(t.batch_size, t.accumulation_steps)
    keep_freed_memory()
    dtype, reason = choose_dtype(config.dtype, device)
    tokenizer: Tokenizer = CharTokenizer.from_text(corpus.text) if config.data.tokenizer == "char" else GPT2Tokenizer()
    with processes.first_goes_ahead():
        train_tokens, val_tokens = prepare(corpus, tokenizer, config.data, config.model.block_size, TOKEN_FOLDER)
    config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))

    seed_everything(config.seed)
    model = GPT(config.model)
    if checkpoint is not None:
        checkpoint.restore_weights(model)
    model = model.to(device)
    forward, compiled = _compiled(model, config, device, dtype)
    m, num_tokens = config.model, f"{len(train_tokens.ids):,} to train on, {len(val_tokens.ids):,} to validate"
    say(f"corpus     {corpus.origin}")
    say(f"tokens     {num_tokens}, vocabulary {tokenizer.vocab_size:,}")
    say(f"model      {model.num_parameters():,} parameters: "
        f"{m.n_layer} layers, {m.n_head} heads, width {m.n_embd}, block {m.block_size}")  # fmt: skip
    say(f"computing  on {device.type}, {torch.get_num_threads()} threads, {str(dtype)[6:]} ({reason}), {compiled}"
        + (f", {processes.size} processes" if processes.size > 1 else ""))  # fmt: skip
    say(f"seed       {config.seed}")
    forward = parallel(model, forward, t.parallel, processes)
    optimizers = make_optimizers(model, t, dtype)  # of the parameters that each process has by now
    if checkpoint is not None:
        checkpoint.restore_optimizers(model, optimizers)
    if processes.rank > 0:  # each process draws its own dropout
        torch.manual_seed(config.seed + processes.rank)
    return Run(
        config, directory, corpus, tokenizer, train_tokens, val_tokens, model, forward, optimizers, device, dtype,
        processes, say,
    )  # fmt: skip


def seed_everything(seed: int) -> None:
    """Seed every global random state. minigpt draws from torch's alone, but whoever changes the loop may not."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def fingerprint(corpus: Corpus) -> str:
    """The sha256 of a corpus's text."""
    return hashlib.sha256(corpus.text.encode("utf-8")).hexdigest()


def _compiled(model: GPT, config: RunConfig, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """What to call in the model's place, compiled if asked for and possible, and a word for the log."""
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return model, "eager"
    try:
        forward: nn.Module = torch.compile(model)  # type: ignore[assignment]
        # Compilation happens at the first call: find out now whether there is a compiler, on a batch of the real shape.
        x = torch.zeros(config.train.batch_size, config.model.block_size, dtype=torch.int64, device=device)
        with torch.random.fork_rng(), autocast(device, dtype):  # and leave the random state as a run without has it
            forward(x).sum().backward()
        model.zero_grad(set_to_none=True)
    except Exception as error:  # torch raises many kinds here; training goes on without it
        torch._dynamo.reset()
        return model, f"eager (no compilation: {first_line(error)})"
    return forward, "compiled"
