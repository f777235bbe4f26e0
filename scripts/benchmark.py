"""Measure this machine: how fast minigpt decodes, trains and loads, and how good it gets, beside others in one run.

    python scripts/benchmark.py decode [--size 124m] [--against transformers,nanogpt,llama.cpp]
    python scripts/benchmark.py train [--case small --case shakespeare-quick] [--against nanogpt]
    python scripts/benchmark.py train --workers 1x1,1x2,2x1 [--case shakespeare-quick]
    python scripts/benchmark.py load [--against transformers]
    python scripts/benchmark.py quality [--case shakespeare-quick] [--against nanogpt]
    python scripts/benchmark.py gpu [--against nanogpt]
    python scripts/benchmark.py readme [out/benchmark-train.jsonl ...]

Each contestant has a process of its own, and they take turns, A B A B, so that what else the machine does falls on all
of them alike; the first turn warms up and does not count. Written are, into --out, benchmark-KIND.jsonl (the machine,
then a JSON object a turn and one a result) and a picture of the same name; the results are printed as a table in
Markdown too. A ratio is the median of the ratios turn by turn. Memory is the largest that the process has held.

transformers comes with minigpt's extra [dev]; nanogpt needs its checkout, --nanogpt PATH; llama.cpp needs
`pip install gguf xllamacpp`. On a busy machine --clock cpu, with one thread, says more than the clock on the wall.

`--workers 1x1,1x2,2x1` sets processes x threads of each beside each other, on one machine, for the same batches. It
needs an idle machine. `quality --case shakespeare-quick --rounds 0`, one whole run, takes three minutes a contestant;
`--case shakespeare-cpu` some ten.

`readme` puts the results of such files into docs/benchmarks.jsonl, in place of its former ones of the same kinds, and
writes the README's table anew, which is made of nothing else.

`gpu` trains GPT-2 small's shape in bfloat16, compiled, with a fused optimizer, and decodes with it, on one GPU, for at
most eight minutes. The share is that of the card's own rate of bfloat16 products, measured beside each turn. Without a
GPU it computes on the CPU in float32: `gpu --size tiny --quick` shows that it runs.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import minigpt
from minigpt.analysis.accounting import model_size
from minigpt.config import DataConfig, GPTConfig, RunConfig, TrainConfig, preset
from minigpt.data.corpora import Corpus, load_corpus
from minigpt.data.verse import write_verse
from minigpt.formats.run_directory import RunDirectory
from minigpt.model import GPT
from minigpt.system.device import keep_freed_memory, memory_limits, processor
from minigpt.system.figures import BLUE, GREY, new_figure, save_figure
from minigpt.system.files import write_text

# One turn: does the work, and says how much it was and what came of it.
Turn = Callable[[], dict[str, Any]]

SIZES = {
    "tiny": GPTConfig(vocab_size=61, block_size=128, n_layer=2, n_head=2, n_embd=32),
    "quick": GPTConfig(vocab_size=65, block_size=1024, n_layer=3, n_head=3, n_embd=96),
    "124m": GPTConfig(vocab_size=50257),
}
DECODING: dict[str, dict[str, Any]] = {
    "greedy, 1 row": {"rows": 1, "strategy": "greedy"},
    "greedy, 8 rows": {"rows": 8, "strategy": "greedy"},
    "5 beams": {"rows": 1, "strategy": "beam", "num_beams": 5},
    "prefill": {"rows": 1, "strategy": "greedy"},  # a long prompt, and one token
    "decode, 1 row": {"rows": 1, "strategy": "greedy"},
    "decode, 64 rows": {"rows": 64, "strategy": "greedy"},
}
ON_GPU = ("decode, 1 row", "decode, 64 rows")
# nanoGPT's two configurations: of its CPU recipe, and its baby GPT
PEER_SHAPES = {
    "small": RunConfig(model=GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False),
                       train=TrainConfig(batch_size=12, beta2=0.99)),
    "baby": RunConfig(model=GPTConfig(block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2, bias=False),
                      train=TrainConfig(batch_size=64, beta2=0.99)),
}  # fmt: skip
PRESETS = ("shakespeare-quick", "shakespeare-cpu", "shakespeare-char")
CASES = {
    "decode": [case for case in DECODING if case not in ON_GPU],
    "gpu": ["training", *ON_GPU],
    "train": [*PEER_SHAPES, *PRESETS],
    "load": ["a folder of weights"],
    "quality": ["shakespeare-quick", "shakespeare-cpu"],
}
OURS = {
    "decode": ["minigpt", "minigpt auto", "minigpt float32", "minigpt float16", "minigpt int8"],
    "gpu": ["minigpt"],
    "train": ["minigpt torch", "minigpt fast", "minigpt c"],  # the setting `kernels`, of which auto takes one
    "load": ["minigpt", "minigpt float16"],
    "quality": ["minigpt"],
}
PEERS = {
    "decode": ["transformers", "nanogpt", "llama.cpp"],
    "gpu": ["nanogpt"],
    "train": ["nanogpt"],
    "load": ["transformers"],
    "quality": ["nanogpt"],
}
# Speeds, or the time of one.
SIZED = ("decode", "load", "gpu")
UNITS = {"decode": "tokens/s", "gpu": "tokens/s", "train": "tokens/s", "load": "s", "quality": "s"}
GPU_ROWS = 16  # of a step, each of a whole context
MOST_ROUNDS = 1000
STEPS, STEPS_ON_GPU = 3, 30  # of training, in a turn: some seconds on a CPU, and on a GPU one
TOKENS = 2**15  # of a turn on a CPU, about: of few small steps the first, with cold caches, would decide
leaving = contextlib.ExitStack()  # of a contestant's process: what it joined
CPU = torch.device("cpu")
ONE_TOKEN = torch.zeros(1, 1, dtype=torch.int64)


# --- the contestants: each function sets one up, in its own process


def ids_of(config: GPTConfig, case: str, quick: bool) -> tuple[list[list[int]], int]:
    """Prompts, and how many tokens to add to each."""
    length = min(512 if case == "prefill" else 32, config.block_size // 2)
    generator = torch.Generator().manual_seed(5)
    rows = DECODING[case]["rows"]
    prompts = torch.randint(config.vocab_size, (rows, length), generator=generator).tolist()
    return prompts, 1 if case == "prefill" else 4 if quick else 32


def decode_minigpt(job: dict[str, Any]) -> Turn:
    """Our own decoder, with plain or packed weights."""
    weights = job["contestant"].removeprefix("minigpt").strip()
    model = minigpt.open_source(job["folder"]).load()[0].eval()
    if weights:
        model = minigpt.pack(model, weights, keep=False)
    prompts, new = ids_of(model.config, job["case"], job["quick"])
    options = {key: value for key, value in DECODING[job["case"]].items() if key != "rows"}

    def turn() -> dict[str, Any]:
        out = minigpt.generate(model, prompts, max_new_tokens=new, eos_token_id=None, **options)
        return {"amount": amount_of(job["case"], prompts, new), "ids": [list(row)[-new:] for row in out.sequences]}

    return turn


def amount_of(case: str, prompts: list[list[int]], new: int) -> int:
    """Tokens that a turn computes: those of the prompt for a prefill, the new ones of one row a prompt otherwise."""
    return len(prompts[0]) if case == "prefill" else new * len(prompts)


def decode_transformers(job: dict[str, Any]) -> Turn:
    """`generate` of the transformers library, with its cache."""
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.GPT2LMHeadModel.from_pretrained(job["folder"]).eval()
    model.generation_config.eos_token_id = None  # no row ends early
    c = model.config
    shape = GPTConfig(vocab_size=c.vocab_size, block_size=c.n_positions, n_embd=c.n_embd, n_head=c.n_head)
    prompts, new = ids_of(shape, job["case"], job["quick"])
    idx = torch.tensor(prompts)
    options = {"do_sample": False, "num_beams": DECODING[job["case"]].get("num_beams", 1), "pad_token_id": 0}

    def turn() -> dict[str, Any]:
        with torch.inference_mode():
            out = model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=new, **options)
        return {"amount": amount_of(job["case"], prompts, new), "ids": out[:, idx.size(1) :].tolist()}

    return turn


def nanogpt_model(job: dict[str, Any], config: GPTConfig) -> Any:
    """The class of nanoGPT with random weights: what it computes does not change how long that takes."""
    sys.path.insert(0, job["nanogpt"])
    import model as theirs

    fields = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    torch.manual_seed(1337)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        return theirs.GPT(theirs.GPTConfig(**{name: getattr(config, name) for name in fields}))


def decode_nanogpt(job: dict[str, Any]) -> Turn:
    """Decode by nanoGPT's `generate`, which has no cache and no beams."""
    model = nanogpt_model(job, SIZES[job["size"]]).eval()
    prompts, new = ids_of(SIZES[job["size"]], job["case"], job["quick"])
    idx = torch.tensor(prompts)

    def turn() -> dict[str, Any]:
        with torch.inference_mode():
            model.generate(idx, new, top_k=1)
        return {"amount": amount_of(job["case"], prompts, new)}

    return turn


def decode_llama(job: dict[str, Any]) -> Turn:
    """llama.cpp's server in this process, on the same weights in a GGUF file of float32."""
    import xllamacpp

    model = minigpt.open_source(job["folder"]).load()[0]
    prompts, new = ids_of(model.config, job["case"], job["quick"])
    path = Path(job["folder"]).parent / f"{os.getpid()}.gguf"
    write_gguf(model, path)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.warmup = str(path), 1, True
    params.cpuparams.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)

    def turn() -> dict[str, Any]:
        asked = {"prompt": prompts[0], "n_predict": new, "temperature": 0.0, "top_k": 1, "cache_prompt": False}
        timings = server.handle_completions({**asked, "ignore_eos": True})["timings"]
        kind = "prompt" if job["case"] == "prefill" else "predicted"
        return {"amount": timings[f"{kind}_n"], "seconds": timings[f"{kind}_ms"] / 1000}

    return turn


def write_gguf(model: GPT, path: Path) -> None:
    """The weights as llama.cpp reads them: architecture gpt2, zero biases where there are none, made-up texts."""
    from gguf import GGUFWriter

    c, tensors = model.config, {name: value.detach().numpy() for name, value in model.named_parameters()}
    writer = GGUFWriter(str(path), "gpt2")
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(4 * c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("rwkv")  # whose vocabulary is plain byte strings
    writer.add_token_list([f"<{i}>".encode() for i in range(c.vocab_size)])
    writer.add_token_types([1] * c.vocab_size)
    writer.add_tensor("token_embd.weight", tensors["wte.weight"])
    writer.add_tensor("position_embd.weight", tensors["wpe.weight"])
    layers = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
              "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}  # fmt: skip
    names = {f"blk.{i}.{theirs}": f"h.{i}.{ours}" for i in range(c.n_layer) for theirs, ours in layers.items()}
    for theirs, ours in {"output_norm": "ln_f", **names}.items():
        weight = tensors[f"{ours}.weight"]
        writer.add_tensor(f"{theirs}.weight", weight)
        writer.add_tensor(f"{theirs}.bias", tensors.get(f"{ours}.bias", 0 * weight.reshape(len(weight), -1)[:, 0]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def device() -> torch.device:
    """Where `gpu` computes: the first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def steps_of(job: dict[str, Any]) -> int:
    """Steps of training in a turn, the same for all contestants."""
    if job["kind"] == "gpu" and device().type == "cuda":
        return STEPS_ON_GPU
    c = training(job)
    return STEPS if job["quick"] else max(STEPS, TOKENS // (c.train.batch_size * c.model.block_size))


def training(job: dict[str, Any]) -> RunConfig:
    """The settings of a training case, without what would need more than its steps."""
    if job["kind"] == "gpu":
        small = preset("gpt2-124m")
        rows = 2 if job["quick"] else GPU_ROWS
        return replace(
            small,
            model=SIZES[job["size"]],
            data=DataConfig(),
            train=replace(small.train, batch_size=rows, accumulation_steps=1),
            device=device().type,
            dtype="bfloat16" if device().type == "cuda" else "float32",
            compile="off" if job["quick"] else "on",
        )
    config = PEER_SHAPES.get(job["case"]) or preset(job["case"])
    return replace(config, device="cpu", dtype="float32", compile="off")


def of_characters(vocab_size: int) -> Corpus:
    """A text of exactly so many different characters, drawn evenly: a vocabulary of any size without its files."""
    characters = [chr(0x10000 + number) for number in range(vocab_size)]  # beyond the halves of characters
    draws = torch.randint(vocab_size, (200_000,), generator=torch.Generator().manual_seed(1)).tolist()
    return Corpus("characters", "".join(characters + [characters[draw] for draw in draws]), "made up")


def workers(contestant: str) -> tuple[int, int]:
    """How many processes a contestant has, and threads of each; 0 threads are as many as torch takes."""
    found = re.search(r"(\d+) x (\d+)$", contestant)
    return (int(found[1]), int(found[2])) if found else (1, 0)


def other_processes(job: dict[str, Any], number: int) -> list["subprocess.Popen[str]"]:
    """Start the other processes of a training, and tell this one that it is the first."""
    if number == 1:
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(shared, RANK="0", LOCAL_RANK="0")
    command = [sys.executable, str(Path(__file__).resolve()), "--contestant", json.dumps(job)]
    return [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(1, number)
    ]  # fmt: skip


def train_minigpt(job: dict[str, Any]) -> Turn:
    """Steps of our loop, with its own functions; the product rate is measured beside them."""
    from minigpt.training.distributed import Processes, joined
    from minigpt.training.loop import gradients
    from minigpt.training.optim import set_learning_rate
    from minigpt.training.run import set_up

    words = job["contestant"].replace(",", "").split()  # such as "minigpt c, 2 x 1"; on a GPU, "minigpt"
    kernels = words[1] if len(words) > 1 else "torch"
    config, directory = replace(training(job), kernels=kernels), RunDirectory(Path(job["folder"]) / "run")
    Path(job["folder"]).mkdir(exist_ok=True)
    os.chdir(job["folder"])  # where the tokens are kept
    verse = Corpus("verse", write_verse(1, 200_000).text, "made up")
    corpus = of_characters(config.model.vocab_size) if job["kind"] == "gpu" else verse
    number, threads = workers(job["contestant"])
    others = [] if "RANK" in os.environ else other_processes(job, number)
    if threads:
        torch.set_num_threads(threads)
    processes = leaving.enter_context(joined()) if number > 1 else Processes()
    run = set_up(config, corpus, directory, processes, torch.device(config.device), lambda line: None, None)
    run.model.train()
    m, t = run.config.model, run.config.train
    tokens, steps, done = t.batch_size * m.block_size, steps_of(job), 0
    flops = model_size(m, t.batch_size).training_flops

    def turn() -> dict[str, Any]:
        nonlocal done
        said = [json.loads(answered(other)) for other in others]  # that it is ready, or what the turn before took
        for other in others:
            ask(other)
        for _ in range(steps):
            set_learning_rate(run.optimizers, done, t)
            gradients(run, done, done * t.batch_size, run.processes)
            norm = torch.nn.utils.get_total_norm(p.grad for p in run.model.parameters() if p.grad is not None)
            torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), t.grad_clip, norm)
            for optimizer in run.optimizers:
                optimizer.step()
            run.model.zero_grad(set_to_none=True)
            done += 1
        besides = sum(one.get("peak_bytes", 0) for one in said)
        return {"amount": steps * tokens, "flops": steps * flops / number, "peak_bytes_besides": besides}

    return turn


def nanogpt_step(
    model: Any, optimizer: torch.optim.Optimizer, data: torch.Tensor, B: int, T: int, where: torch.device = CPU
) -> None:
    """A step of nanoGPT's model, with a batch drawn as its train.py draws it; in bfloat16 on a GPU."""
    starts = torch.randint(len(data) - T, (B,))
    x, y = (torch.stack([data[i + ahead : i + ahead + T] for i in starts]) for ahead in (0, 1))
    if where.type == "cuda":
        x, y = (part.pin_memory().to(where, non_blocking=True) for part in (x, y))
    with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
        loss = model(x, y)[1]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def train_nanogpt(job: dict[str, Any]) -> Turn:
    """Steps of nanoGPT's model and optimizer."""
    c = training(job)
    vocab_size = c.model.vocab_size if job["kind"] == "gpu" else 65
    data = torch.randint(vocab_size, (200_000,))
    model = nanogpt_model(job, replace(c.model, vocab_size=vocab_size)).to(c.device)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), c.device)
    if c.compile == "on":
        model = torch.compile(model)
    T, B, steps = c.model.block_size, c.train.batch_size, steps_of(job)

    def turn() -> dict[str, Any]:
        for _ in range(steps):
            nanogpt_step(model, optimizer, data, B, T, torch.device(c.device))
        return {"amount": steps * B * T}

    return turn


def load_minigpt(job: dict[str, Any]) -> Turn:
    """A model from a folder, plain or packed, and one token: weights that were only mapped are read then."""
    weights = job["contestant"].removeprefix("minigpt").strip()
    options = {"weights": weights} if weights else {}

    def turn() -> dict[str, Any]:
        model = minigpt.open_source(job["folder"]).load(**options)[0].eval()
        with torch.inference_mode():
            model(ONE_TOKEN)
        return {"amount": 1}

    return turn


def load_transformers(job: dict[str, Any]) -> Turn:
    """The same folder by the transformers library."""
    import transformers

    transformers.logging.set_verbosity_error()

    def turn() -> dict[str, Any]:
        model = transformers.GPT2LMHeadModel.from_pretrained(job["folder"]).eval()
        with torch.inference_mode():
            model(ONE_TOKEN)
        return {"amount": 1}

    return turn


def quality_minigpt(job: dict[str, Any]) -> Turn:
    """A whole run of a preset; each turn has the next seed."""
    from minigpt.training.loop import train

    config, seed = training(job), 0
    os.chdir(job["folder"])
    if job["quick"]:
        config = replace(config, train=replace(config.train, max_steps=5, warmup_steps=1, batch_size=2))
    corpus = Corpus("verse", write_verse(1, 20_000).text, "made up") if job["quick"] else load_corpus("shakespeare")

    def turn() -> dict[str, Any]:
        nonlocal seed
        out = Path(tempfile.mkdtemp(dir=job["folder"]))
        result = train(replace(config, seed=seed), corpus, out / "run", lambda line: None)
        seed += 1
        return {"amount": 1, "loss": result.val_loss}

    return turn


def quality_nanogpt(job: dict[str, Any]) -> Turn:
    """Train by nanoGPT's recipe for a CPU: 2,000 steps of its small shape; the loss is that of all held-out windows."""
    text = load_corpus("shakespeare").text
    index = {char: i for i, char in enumerate(sorted(set(text)))}
    data = torch.tensor([index[char] for char in text])
    train, held_out = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
    c, seed = PEER_SHAPES["small"], 0
    T, B = c.model.block_size, c.train.batch_size

    def turn() -> dict[str, Any]:
        nonlocal seed
        model = nanogpt_model(job, replace(c.model, vocab_size=len(index)))
        torch.manual_seed(seed)
        seed += 1
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        steps = 5 if job["quick"] else 2000
        for step in range(steps):
            share = min(1.0, (step + 1) / 100) * (0.1 + 0.9 * (1 - step / steps))  # warm-up, and down to a tenth
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * share
            nanogpt_step(model, optimizer, train, B, T)
        rows = (len(held_out) - 1) // T
        x, y = (held_out[ahead : ahead + rows * T].view(rows, T) for ahead in (0, 1))
        with torch.no_grad():
            parts = [(model(a, b)[1].item(), len(a)) for a, b in zip(x.split(128), y.split(128), strict=True)]
        return {"amount": 1, "loss": sum(loss * n for loss, n in parts) / rows}

    return turn


def gpu_minigpt(job: dict[str, Any]) -> Turn:
    """Training steps, or our decoder with weights of bfloat16, on the GPU."""
    if job["case"] == "training":
        return train_minigpt(job)
    torch.manual_seed(1)
    where = device()
    model = GPT(SIZES[job["size"]]).eval().to(where, torch.bfloat16 if where.type == "cuda" else torch.float32)
    prompts, new = ids_of(model.config, job["case"], job["quick"])

    def turn() -> dict[str, Any]:
        minigpt.generate(model, prompts, max_new_tokens=new, strategy="greedy", eos_token_id=None)
        return {"amount": amount_of(job["case"], prompts, new)}

    return turn


SETUPS: dict[tuple[str, str], Callable[[dict[str, Any]], Turn]] = {
    ("decode", "minigpt"): decode_minigpt,
    ("decode", "transformers"): decode_transformers,
    ("decode", "nanogpt"): decode_nanogpt,
    ("decode", "llama.cpp"): decode_llama,
    ("train", "minigpt"): train_minigpt,
    ("train", "nanogpt"): train_nanogpt,
    ("gpu", "minigpt"): gpu_minigpt,
    ("gpu", "nanogpt"): train_nanogpt,
    ("load", "minigpt"): load_minigpt,
    ("load", "transformers"): load_transformers,
    ("quality", "minigpt"): quality_minigpt,
    ("quality", "nanogpt"): quality_nanogpt,
}


def contestant(job: dict[str, Any]) -> None:
    """The process of one contestant: a turn for each line of standard input, a JSON object for each turn."""
    answers, sys.stdout = sys.stdout, sys.stderr
    keep_freed_memory()
    turn = SETUPS[job["kind"], re.split(r"[ ,]", job["contestant"])[0]](job)
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        done = turn()
        if job["kind"] == "gpu" and torch.cuda.is_available():
            torch.cuda.synchronize()
        done = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, **done}
        if job["kind"] in ("train", "gpu"):
            done["rate"] = product_rate(device() if job["kind"] == "gpu" else CPU)
        done["peak_bytes"] = peak_memory() + done.pop("peak_bytes_besides", 0)  # of its other processes
        if job["kind"] == "gpu" and torch.cuda.is_available():
            done["peak_bytes"] = torch.cuda.max_memory_allocated()
        print(json.dumps(done), file=answers, flush=True)


def peak_memory() -> int:
    """The most bytes that this process has held in memory at once.

    On Linux, `getrusage` counts what the process was that started this one, too.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def product_rate(where: torch.device) -> float:
    """Floating-point operations a second in one product of torch's, the best of five.

    On a CPU, float32 and a second of CPU time; on a GPU, bfloat16, a larger product and a second of the wall's.
    """
    on_gpu = where.type == "cuda"
    size, clock = (8192, time.perf_counter) if on_gpu else (1024, time.process_time)
    a, rates = torch.randn(size, size, device=where, dtype=torch.bfloat16 if on_gpu else torch.float32), []
    for _ in range(5):
        start = clock()
        a @ a
        if on_gpu:
            torch.cuda.synchronize()
        rates.append(2 * size**3 / (clock() - start))
    return max(rates)


# --- the race


def turns(
    kind: str, case: str, names: list[str], arguments: argparse.Namespace, folder: str
) -> Iterator[dict[str, Any]]:
    """All turns of one case, in their order. A contestant that fails is named, with its last line, and is out."""
    processes, errors = {}, {}
    for name in names:
        own = tempfile.mkdtemp(dir=folder) if kind in ("train", "quality", "gpu") else folder
        job = {"kind": kind, "case": case, "contestant": name, "folder": own, "size": arguments.size,
               "nanogpt": arguments.nanogpt, "quick": arguments.quick}  # fmt: skip
        command = [sys.executable, str(Path(__file__).resolve()), "--contestant", json.dumps(job)]
        errors[name] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it outlives this line)
        processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors[name], text=True
        )

    def out(name: str) -> dict[str, Any]:
        processes.pop(name).wait()
        errors[name].seek(0)
        said = [line for line in errors[name].read().splitlines() if line.strip()] or ["it died"]
        return {"case": case, "contestant": name, "error": said[-1]}

    try:
        for name in list(processes):
            if not answered(processes[name]):
                yield out(name)
        for number in range(arguments.rounds + 1):
            for name in list(processes):
                ask(processes[name])
                if not (done := answered(processes[name])):
                    yield out(name)
                elif number > 0 or arguments.rounds == 0:
                    yield {"case": case, "contestant": name, "turn": number, **json.loads(done)}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def ask(process: "subprocess.Popen[str]") -> None:
    """Ask a contestant for a turn."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def answered(process: "subprocess.Popen[str]") -> str:
    """The next line of a contestant; empty if it has died."""
    assert process.stdout is not None
    return process.stdout.readline()


def results(kind: str, rows: list[dict[str, Any]], clock: str) -> Iterator[dict[str, Any]]:
    """Medians and spreads of amounts a second, and ratios to the first peer, or else to the first contestant."""
    cases = dict.fromkeys(row["case"] for row in rows)
    for case in cases:
        of_case: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["case"] == case and "error" not in row:
                of_case.setdefault(row["contestant"], []).append(row)
        speeds = {name: [row["amount"] / row[clock_of(row, clock)] for row in group] for name, group in of_case.items()}
        against = next((name for name in speeds if name in PEERS[kind]), next(iter(speeds), ""))
        for name, group in of_case.items():
            ratios = [one / other for one, other in zip(speeds[name], speeds[against], strict=False)]
            row = {
                "result": kind,
                "case": case,
                "contestant": name,
                "unit": UNITS[kind],
                "median": statistics.median(speeds[name]),
                "lowest": min(speeds[name]),
                "highest": max(speeds[name]),
                "turns": len(group),
                "against": against,
                "ratio": statistics.median(ratios),
                "ratio_lowest": min(ratios),
                "ratio_highest": max(ratios),
                "peak_bytes": max(row["peak_bytes"] for row in group),
            }
            if "loss" in group[0]:
                row["loss"] = statistics.median(turn["loss"] for turn in group)
            if "ids" in group[0] and "ids" in of_case[against][0]:
                row["same_ids"] = group[0]["ids"] == of_case[against][0]["ids"]
            if "flops" in group[0]:
                spent = "seconds" if kind == "gpu" and torch.cuda.is_available() else "cpu_seconds"
                shares = [turn["flops"] / turn[spent] / turn["rate"] for turn in group]
                row["share_of_product_rate"] = statistics.median(shares)
            yield row


def clock_of(row: dict[str, Any], clock: str) -> str:
    """Which of a turn's times counts: llama.cpp tells its own, of the wall."""
    return "cpu_seconds" if clock == "cpu" else "seconds"


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| case | contestant | median (lowest to highest) | ratio | memory | |", "|---|---|---|---|---|---|"]
    for row in rows:
        notes = [f"loss {row['loss']:.4f}"] if "loss" in row else []
        if "same_ids" in row and row["contestant"] != row["against"]:
            notes.append("same ids" if row["same_ids"] else "other ids")
        if "share_of_product_rate" in row:
            notes.append(f"{row['share_of_product_rate']:.0%} of torch's product rate")
        shown = [row["median"], row["lowest"], row["highest"]]
        if row["unit"] == "s":
            shown = [1 / row["median"], 1 / row["highest"], 1 / row["lowest"]]
        middle, low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in shown)
        speed = f"{middle} {row['unit']} ({low} to {high})"
        ratio = f"{row['ratio']:.2f} x {row['against']}" if row["contestant"] != row["against"] else "1"
        memory = f"{row['peak_bytes'] / 1e6:,.0f} MB"
        lines.append(f"| {row['case']} | {row['contestant']} | {speed} | {ratio} | {memory} | {', '.join(notes)} |")
    return "\n".join(lines)


FIGURES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.jsonl"  # of which the README's table is made
README = FIGURES.parents[1] / "README.md"
BEGINS, ENDS = "<!-- made by scripts/benchmark.py readme: -->\n", "<!-- so far -->\n"
WORDS = {
    "decode": "writing by {size}: {case}",
    "train": "training, {case}",
    "load": "loading {size}, and one token",
    "quality": "a whole training: {case}, beside nanoGPT's recipe for a CPU without its evaluations",
}


def speeds(lines: list[dict[str, Any]]) -> str:
    """The README's table, in Markdown: every case that has a peer, and under it on what machine that was."""
    machines = {line["kind"]: line for line in lines if "processor" in line}
    table = [
        "| what | beside | minigpt, as a multiple of its speed | peak memory, in the same order |",
        "|---|---|---|---|",
    ]
    for kind, words in WORDS.items():
        rows = [line for line in lines if line.get("result") == kind]
        for case in dict.fromkeys(row["case"] for row in rows):
            of_case = [row for row in rows if row["case"] == case]
            peer = next(row for row in of_case if row["contestant"] == row["against"])
            ours = [row for row in of_case if row is not peer]
            if peer["contestant"] not in PEERS[kind]:
                continue
            value = 1 / peer["median"] if peer["unit"] == "s" else peer["median"]
            beside = f"{peer['contestant']}: {three_digits(value)} {peer['unit']}{loss_of(peer)}"
            times = [f"{way(row)}{row['ratio']:.2f} ×{loss_of(row)}" for row in ours]
            memory = [three_digits(row["peak_bytes"] / 1e6) for row in (peer, *ours)]
            name = words.format(size=size_of(machines[kind]["size"]), case=shape_of(case))
            table.append(f"| {name} | {beside} | {', '.join(times)} | {', '.join(memory)} MB |")
    where: dict[str, list[str]] = {}
    for kind, about in machines.items():
        if kind in WORDS:
            where.setdefault(machine_in_words(about), []).append(kind)
    return "\n".join([*table, "", *(f"{', '.join(kinds)}: {words}." for words, kinds in where.items()), ""])


def size_of(size: str | None) -> str:
    """How many parameters a model has, in words."""
    return f"{model_size(SIZES[size]).parameters / 1e6:.3g}M parameters" if size else ""


def shape_of(case: str) -> str:
    """A case in words: of nanoGPT's two, how large they are."""
    if case not in PEER_SHAPES:
        return case
    m, t = PEER_SHAPES[case].model, PEER_SHAPES[case].train
    dropout = f", dropout {m.dropout}" if m.dropout else ""
    return f"{m.n_layer} layers, width {m.n_embd}, {t.batch_size} windows of {m.block_size}{dropout}"


def way(row: dict[str, Any]) -> str:
    """What is special about one of our contestants, with a space behind it."""
    return f"{row['contestant']} ".removeprefix("minigpt ")


def loss_of(row: dict[str, Any]) -> str:
    """The loss of a training, if it has one, as a clause."""
    return f", loss {row['loss']:.3f}" if "loss" in row else ""


def three_digits(value: float) -> str:
    """A number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine_in_words(about: dict[str, Any]) -> str:
    """On what, by what clock and with which versions something was measured, as Markdown without surprises."""
    clock = "CPU time" if about["clock"] == "cpu" else "wall time"
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''} of {about['cores']} cores"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if name != "minigpt")
    units = f" ({', '.join(about['instructions'])})" if about["instructions"] else ""
    said = f"{about['processor']}{units}, {threads}, {clock}, {versions}"
    printable = " ".join("".join(char if char.isprintable() else " " for char in said).split())
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", printable)


def write_readme(new: list[Path]) -> None:
    """Put the results of new files into the figures, in place of the former ones of these kinds; and the README."""
    lines = read_lines(FIGURES) if FIGURES.exists() else []
    for path in new:
        found = [line for line in read_lines(path) if "turn" not in line and "error" not in line]
        kinds = {line.get("kind", line.get("result")) for line in found}
        lines = [line for line in lines if line.get("kind", line.get("result")) not in kinds] + found
    write_text(FIGURES, "".join(json.dumps(line) + "\n" for line in lines))
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGINS)
    after = rest.partition(ENDS)[2]
    write_text(README, f"{before}{BEGINS}\n{speeds(lines)}\n{ENDS}{after}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw(kind: str, rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each contestant in each case: its ratio, with the spread over the turns."""
    figure = new_figure(8, 1 + 0.3 * len(rows))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        axes.barh(y, row["ratio"], color=GREY if row["contestant"] == row["against"] else BLUE)
        axes.hlines(y, row["ratio_lowest"], row["ratio_highest"], color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row['case']}: {row['contestant']}" for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set_xlabel("speed, as a multiple of the grey bar's")
    save_figure(figure, path)


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on, as far as a program can know."""
    versions = {"python": platform.python_version(), "minigpt": minigpt.__version__}
    for name in ("torch", "numpy", "transformers", "xllamacpp"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    known = torch.cpu.get_capabilities()
    units = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "amx_fp16", "neon", "sve")
    pages, allowed = ("SC_PAGE_SIZE", "SC_PHYS_PAGES"), [limit for limit, _ in memory_limits()]
    return {
        "kind": arguments.kind, "size": arguments.size if arguments.kind in SIZED else None,
        "processor": processor(), "instructions": [name for name in units if known.get(name)],
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "clock": arguments.clock,
        "memory_bytes": min([math.prod(map(os.sysconf, pages)), *allowed]) if hasattr(os, "sysconf") else None,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None, "system": platform.platform(),
        "versions": versions, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def main() -> None:
    """Run the race that is asked for."""
    if sys.argv[1:2] == ["--contestant"]:
        contestant(json.loads(sys.argv[2]))
        return
    if sys.argv[1:2] == ["readme"]:
        write_readme([Path(name) for name in sys.argv[2:]])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=CASES)
    parser.add_argument("--against", default="", metavar="NAMES", help="peers, with commas between them")
    parser.add_argument("--case", action="append", metavar="CASE", help="only this one; can be repeated")
    parser.add_argument("--only", action="append", metavar="NAME", help="of ours, only this one; can be repeated")
    parser.add_argument("--workers", default="", metavar="PxT,...", help="of train: processes x threads of each")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count, of each contestant")
    parser.add_argument("--size", choices=SIZES, default="124m", help="the model that is decoded and loaded, at random")
    parser.add_argument("--nanogpt", default="", metavar="PATH", help="a checkout of nanoGPT")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="which time the speeds are of")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="as little work as shows that the script runs")
    arguments = parser.parse_args()
    peers = [name for name in arguments.against.split(",") if name]
    for name in peers:
        if name not in PEERS[arguments.kind]:
            parser.error(f"{arguments.kind} has no {name}; it has: {', '.join(PEERS[arguments.kind])}")
    if "nanogpt" in peers and not (Path(arguments.nanogpt) / "model.py").is_file():
        parser.error("nanogpt needs --nanogpt PATH, its checkout, which has a model.py")
    for case in arguments.case or ():
        if case not in CASES[arguments.kind]:
            parser.error(f"{arguments.kind} has no case {case!r}; it has: {', '.join(CASES[arguments.kind])}")
    for name in arguments.only or ():
        if name not in OURS[arguments.kind]:
            parser.error(f"{arguments.kind} has no {name!r} of ours; it has: {', '.join(OURS[arguments.kind])}")
    workers_asked = [each for each in arguments.workers.split(",") if each]
    for each in workers_asked:
        if not re.fullmatch(r"[1-9]\d?x[1-9]\d?", each) or arguments.kind != "train":
            parser.error(f"--workers {each} is not processes x threads of train, such as 2x1")
    if not 0 <= arguments.rounds <= MOST_ROUNDS:
        parser.error(f"--rounds {arguments.rounds} is not from 0 to {MOST_ROUNDS}")
    try:  # now, and not after the race
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out} cannot be a folder: {error.strerror}")
    about, rows = machine(arguments), []
    print(json.dumps(about), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary) / "weights")
        if arguments.kind in ("decode", "load"):
            torch.manual_seed(1)
            minigpt.save_hf(GPT(SIZES[arguments.size]), None, folder)
        else:
            Path(folder).mkdir()
        for case in arguments.case or CASES[arguments.kind]:
            ours = arguments.only or OURS[arguments.kind]
            if workers_asked:
                ours = [f"{name}, {each.replace('x', ' x ')}" for name in ours for each in workers_asked]
            names = [*ours, *(name for name in peers if can(name, case))]
            for row in turns(arguments.kind, case, names, arguments, folder):
                rows.append(row)
                shown = {key: value for key, value in row.items() if key != "ids"}
                print(json.dumps(shown), file=sys.stderr, flush=True)
    found = [*results(arguments.kind, rows, arguments.clock)]
    for row in found:
        print(json.dumps(row))
    lines = [about, *rows, *found]
    path = arguments.out / f"benchmark-{arguments.kind}.jsonl"
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    if found:
        draw(arguments.kind, found, path.with_suffix(".png"))
    print(f"\n{table(found)}")


def can(peer: str, case: str) -> bool:
    """Whether a peer takes part in a case: nanoGPT has its own shapes and no beams, llama.cpp decodes one row here."""
    if peer == "nanogpt":
        return case not in ("5 beams", *PRESETS[1:], *ON_GPU)
    return peer != "llama.cpp" or case in ("greedy, 1 row", "prefill")


if __name__ == "__main__":
    main()
