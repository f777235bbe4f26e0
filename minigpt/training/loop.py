"""The training loop: `train` sets a run up, `run_steps` is the loop itself, on one screen.

    batch i --> logits --> loss --> gradients, averaged over micro-batches --> clipped --> optimizers @ lr_at(step)

There is no trainer class and no callback. To change how minigpt trains, change these lines.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minigpt.config import RunConfig
from minigpt.data.corpora import Corpus
from minigpt.data.tokens import TokenFile, prepare, random_batch, split_at
from minigpt.decoding.generate import generate
from minigpt.device import autocast, choose_device, choose_dtype, keep_freed_memory
from minigpt.errors import DivergenceError, first_line
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer
from minigpt.training.checkpoint import RunDirectory, check_unused, start_run
from minigpt.training.evaluate import Evaluation, evaluate, next_token_loss
from minigpt.training.optim import make_optimizers, set_learning_rate
from minigpt.training.run_log import RunLog, Say, say_to_stdout
from minigpt.weights import save_weights

LOG_INTERVAL = 10  # steps between records; in between, the loss stays on its device and nothing waits for it
SAMPLE_TOKENS = 200
TOKEN_FOLDER = Path("data") / "tokens"


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


@dataclass(frozen=True)
class Run:
    """Everything that the loop works on."""

    config: RunConfig
    directory: RunDirectory
    tokenizer: Tokenizer
    train: TokenFile
    val: TokenFile
    model: GPT
    forward: Callable[[Tensor], Tensor]  # the model, or its compiled twin: the same weights
    optimizers: list[torch.optim.Optimizer]
    device: torch.device
    dtype: torch.dtype  # of the matrix products

    @property
    def tokens_per_step(self) -> int:
        """Targets that one optimizer step learns from."""
        t = self.config.train
        return t.batch_size * t.accumulation_steps * self.config.model.block_size


def train(config: RunConfig, corpus: Corpus, out: Path, say: Say = say_to_stdout) -> TrainResult:
    """Train a GPT on a corpus and leave a run directory.

    Args:
        config: the settings; `model.vocab_size` is replaced by the tokenizer's.
        corpus: the text.
        out: the run directory; it must not exist yet, or be empty, and is made only when all else is found in order.
        say: where the lines for people go.

    Raises:
        ConfigError: if the device or dtype cannot be had.
        DataError: if the corpus is too short for the block size.
        CheckpointError: if `out` holds something already.
        DivergenceError: if the loss or the gradient stops being a number. What was saved before is kept.
    """
    check_unused(out)
    keep_freed_memory()
    device = choose_device(config.device)
    dtype, reason = choose_dtype(config.dtype, device)
    tokenizer: Tokenizer = CharTokenizer.from_text(corpus.text) if config.data.tokenizer == "char" else GPT2Tokenizer()
    train_tokens, val_tokens = prepare(corpus, tokenizer, config.data, config.model.block_size, TOKEN_FOLDER)
    config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))

    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    forward, compiled = _compiled(model, config, device, dtype)
    m, num_tokens = config.model, f"{len(train_tokens.ids):,} to train on, {len(val_tokens.ids):,} to validate"
    say(f"corpus     {corpus.origin}")
    say(f"tokens     {num_tokens}, vocabulary {tokenizer.vocab_size:,}")
    say(f"model      {model.num_parameters():,} parameters: "
        f"{m.n_layer} layers, {m.n_head} heads, width {m.n_embd}, block {m.block_size}")  # fmt: skip
    say(f"computing  on {device.type}, {torch.get_num_threads()} threads, {str(dtype)[6:]} ({reason}), {compiled}")
    say(f"seed       {config.seed}")

    directory = RunDirectory(out)
    start_run(directory, config, tokenizer)
    optimizers = make_optimizers(model, config.train, dtype)
    run = Run(config, directory, tokenizer, train_tokens, val_tokens, model, forward, optimizers, device, dtype)
    floor = None
    if corpus.floor is not None and config.data.tokenizer == "char":
        floor = corpus.floor(split_at(corpus, config.data), len(corpus.text))
    title = corpus.name if out.name == corpus.name else f"{corpus.name}: {out.name}"
    with RunLog(directory, config.train.max_steps, say, floor, title) as log:
        return run_steps(run, log)


def run_steps(run: Run, log: RunLog) -> TrainResult:
    """The loop."""
    t, model, block_size = run.config.train, run.model, run.config.model.block_size
    best = last = Evaluation(math.inf, 0)
    losses: list[Tensor] = []  # since the last record
    speeds: list[float] = []
    model.train()
    clock = time.perf_counter()
    for step in range(t.max_steps):
        lr = set_learning_rate(run.optimizers, step, t)
        loss = torch.zeros((), device=run.device)
        for micro in range(step * t.accumulation_steps, (step + 1) * t.accumulation_steps):
            x, y = random_batch(run.train, t.batch_size, block_size, run.config.seed, micro)  # (B, T), (B, T)
            with autocast(run.device, run.dtype):
                logits = run.forward(x.to(run.device, non_blocking=True))  # (B, T) -> (B, T, V)
                micro_loss = next_token_loss(logits, y.to(run.device, non_blocking=True)) / t.accumulation_steps
            micro_loss.backward()  # gradients add up over the micro-batches
            loss += micro_loss.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), t.grad_clip or math.inf)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss)

        done, finished = step + 1, step + 1 == t.max_steps
        save, assess = (finished or done % interval == 0 for interval in (t.save_interval, t.eval_interval))
        log.step(done)
        if step == 0:
            log.say(f"step 0     loss {loss.item():.3f}; a model that knows nothing has ln {model.config.vocab_size} = "
                    f"{math.log(model.config.vocab_size):.3f}")  # fmt: skip
        if save or assess or done % LOG_INTERVAL == 0:
            train_loss = torch.stack(losses).mean().item()  # the one place that waits for the device
            check_finite(done, lr, train_loss, grad_norm.item())
            speeds.append(len(losses) * run.tokens_per_step / (time.perf_counter() - clock))
            log.record(
                done, done * run.tokens_per_step, train_loss=train_loss, lr=lr, grad_norm=grad_norm.item(),
                tokens_per_second=speeds[-1],
            )  # fmt: skip
            if save:  # save first: an evaluation that dies must not cost the run
                save_weights(model, run.directory.last_weights)
            if assess:
                last = evaluate(model, run.val.ids, run.dtype)
                if last.loss < best.loss:
                    best = last
                    save_weights(model, run.directory.best_weights)
                report(run, log, done, last)
            losses, clock = [], time.perf_counter()  # neither saving nor evaluating counts as training time
    return TrainResult(
        str(run.directory.path), t.max_steps, train_loss, last.loss, best.loss, statistics.median(speeds), log.seconds,
        model.num_parameters(),
    )  # fmt: skip


def check_finite(step: int, lr: float, loss: float, grad_norm: float) -> None:
    """Stop a run that has diverged, before its weights replace good ones on disk.

    Raises:
        DivergenceError: if the loss or the norm of the gradient is infinite or not a number.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise DivergenceError(
            f"training diverged by step {step}: loss {loss}, gradient norm {grad_norm}, learning rate {lr:.3g}",
            "lower the learning rate or lengthen the warm-up; the weights saved before are as they were",
        )


def report(run: Run, log: RunLog, step: int, evaluation: Evaluation) -> None:
    """Record an evaluation, say it, and let the model write a little."""
    log.record(step, step * run.tokens_per_step, val_loss=evaluation.loss)
    above = "" if log.floor is None else f", {evaluation.loss - log.floor:.3f} above the corpus's entropy"
    log.say(f"step {step:<5} validation loss {evaluation.loss:.4f}{above}")
    start = run.tokenizer.start_token_id
    prompt = [int(run.val.ids[0]) if start is None else start]
    written = generate(
        run.model, [prompt], max_new_tokens=SAMPLE_TOKENS, temperature=0.8, seed=run.config.seed, on_overflow="crop"
    )
    log.sample(step, run.tokenizer.decode(written.sequences[0]))
    log.draw()


def _compiled(
    model: GPT, config: RunConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[Tensor], Tensor], str]:
    """The model's forward, compiled if asked for and possible, and a word for the log."""
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return model, "eager"
    try:
        forward = torch.compile(model)
        # Compilation happens at the first call: find out now whether there is a compiler, on a batch of the real shape.
        x = torch.zeros(config.train.batch_size, config.model.block_size, dtype=torch.int64, device=device)
        with torch.random.fork_rng(), autocast(device, dtype):  # and leave the random state as a run without has it
            forward(x).sum().backward()
        model.zero_grad(set_to_none=True)
    except Exception as error:  # torch raises many kinds here; training goes on without it
        torch._dynamo.reset()
        return model, f"eager (no compilation: {first_line(error)})"
    return forward, "compiled"
