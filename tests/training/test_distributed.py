"""Several real processes against one: the same losses, the same files, one voice, and an end for all.

The processes of a test are the command, started by torchrun, or this file again: what each of them then does is one of
the functions called `worker_...`. All speak through gloo, on the CPU.
"""

import json
import math
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import minigpt
from minigpt.config import GPTConfig, RunConfig, TrainConfig, updated, write_yaml
from minigpt.data.batches import Batch
from minigpt.data.corpora import Corpus
from minigpt.data.documents import Document, Documents
from minigpt.data.tokens import windows_in_order
from minigpt.errors import ConfigError, DivergenceError
from minigpt.evaluation.loss import evaluate, evaluate_batches
from minigpt.formats.lora_files import load_adapter
from minigpt.formats.run_directory import RunDirectory, save_run
from minigpt.formats.weights import open_weights
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from minigpt.training import divergence, loop
from minigpt.training import run as run_module
from minigpt.training.checkpoint import clean, open_checkpoint
from minigpt.training.distributed import LAUNCHER, Processes, exchanging, joined, parallel
from minigpt.training.log import RunLog, print_nothing
from minigpt.training.loop import train
from minigpt.training.run import read_data, set_up
from minigpt.training.verify import compare

TEXT = "".join(f"{word} {number}\n" for number, word in enumerate(["to", "be", "or", "not"] * 150))
CORPUS = Corpus("counting", TEXT, "made up for tests")
CONFIG = RunConfig(  # every tensor has an odd number of rows, so that two processes never have parts of one size
    model=GPTConfig(block_size=7, n_layer=2, n_head=3, n_embd=3 * 5),
    train=TrainConfig(max_steps=20, batch_size=2, accumulation_steps=4, warmup_steps=3, learning_rate=0.01,
                      eval_interval=1, save_interval=20),
    device="cpu",
    dtype="float32",
)  # fmt: skip
VARIANTS = {
    "adamw": {},
    "muon": {"train": {"optimizer": "muon", "batch_size": 4, "accumulation_steps": 1}},
    "untied": {"model": {"tie_weights": False}, "train": {"optimizer": "muon"}},
    "clipped": {"train": {"grad_clip": 0.1, "batch_size": 4, "accumulation_steps": 1}},
    "not clipped": {"train": {"grad_clip": 0.0}},
}
UNASSESSED = updated(CONFIG, {"train": {"max_steps": 5, "eval_interval": 5}})
BOTH = ("ddp", "fsdp")
COSTS = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "process_costs.py"))
bytes_sent, numbers_held = COSTS["bytes_sent"], COSTS["numbers_held"]
PAGE = (Path(__file__).parents[2] / "docs" / "several-processes.md").read_text(encoding="utf-8")
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FLAGS = (
    "--data text.txt --device cpu --model.block_size 7 --model.n_layer 2 --model.n_head 3 --model.n_embd 15 "
    "--train.batch_size 2 --train.warmup_steps 3"
).split()
BEGIN = """
import os, runpy, sys, torch
os.environ |= {told}
os.dup2(os.open(os.environ["RANK"] + ".log", os.O_WRONLY | os.O_CREAT), 2)
sys.argv = {call}
torch.set_num_threads(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LONG = "--train.max_steps 100000 --train.save_interval 3 --out run".split()


# What the processes do


class PulledPlug(BaseException):
    """Nothing in the loop catches it, as nothing catches a power cut."""


def pulled_plug(*arguments):
    raise PulledPlug


def without_decoration(monkeypatch=None):
    """Samples and plots take longer than the training here."""
    patch = monkeypatch.setattr if monkeypatch else setattr
    patch(RunLog, "draw", lambda log: None)
    patch(loop, "SAMPLE_TOKENS", 2)


def variant(name, how="ddp"):
    return updated(updated(CONFIG, VARIANTS[name]), {"train": {"parallel": how}})


def tuned():
    """Runs on documents, some of all weights and some of an adapter; each batching, and unlike numbers of targets."""
    texts = [f"{'abcdefg'[number % 7] * (1 + number % 5)} {number}" for number in range(31)]
    documents = Documents([Document(text) for text in texts], "31 texts", 0, 0)
    shared = {"train": {"max_steps": 12, "eval_interval": 3, "save_interval": 6}, "model": {"block_size": 11}}
    config = updated(CONFIG, shared)
    adapted = updated(config, {"init_from": "base", "train": {"lora_rank": 3, "lora_targets": "c_attn,mlp.*"}})
    return {
        "padded": (config, documents),
        "packed-masked": (updated(config, {"documents": {"batching": "packed-masked"}}), documents),
        "taught": (updated(config, {"train": {"teachers": ("base",)}}), documents),
        "adapted": (adapted, Corpus("texts", "\n".join(9 * texts), "made up for tests")),
        "adapted packed": (updated(adapted, {"documents": {"batching": "packed"}}), documents),
    }


def train_until(step, config, out, resume=False):
    """Train, and die in the middle of a step; the checkpoint before it is the one to go on from."""
    real = loop.gradients

    def gradients(run, taken, first, processes):
        if first == step * run.rows_per_step:
            raise PulledPlug
        return real(run, taken, first, processes)

    loop.gradients = gradients
    try:
        train(updated(config, {"train": {"save_interval": 1}}), CORPUS, out, print_nothing, resume)
    except PulledPlug:
        return
    finally:
        loop.gradients = real
    raise AssertionError(f"step {step} was never reached")


def worker_train(*names):
    for name in names:
        for how in BOTH if len(names) > 1 else BOTH[:1]:
            train(variant(name, how), CORPUS, Path(name, how), print_nothing)


def worker_begin():
    """A run of each kind to its seventh step; and with dropout, straight through and with a death at 7 and 13."""
    for how in BOTH:
        train_until(7, variant("untied", how), Path("begun", how))
        config = updated(variant("muon", how), {"model": {"dropout": 0.3}, "train": {"save_interval": 1}})
        train(config, CORPUS, Path("straight", how), print_nothing)
        train_until(7, config, Path("broken", how))
        train_until(13, config, Path("broken", how), resume=True)
        train(config, CORPUS, Path("broken", how), print_nothing, resume=True)


def worker_go_on():
    """Each run with what the other one began; and one that lacks nothing but its evaluation."""
    result = train(UNASSESSED, CORPUS, Path("unassessed"), print_nothing, resume=True)
    assert math.isfinite(result.train_loss), "each process knows what was recorded before"
    for how, other in zip(BOTH, reversed(BOTH), strict=True):
        train(variant("untied", how), CORPUS, Path("begun", other), print_nothing, resume=True)


def worker_count():
    """The bytes of the collectives of a step, and the numbers that lie here after it, written by the first process."""
    from torch.profiler import profile

    counted = {}
    for how in BOTH:
        run = set_up(variant("adamw", how), CORPUS, RunDirectory(Path()), ALL, torch.device("cpu"), print_nothing, None)
        for _ in range(3):  # DDP rearranges its buffers in the second step
            run.model.zero_grad(set_to_none=True)
            with profile(record_shapes=True) as profiler:
                loop.gradients(run, 0, 0, ALL)
            run.optimizers[0].step()
        events = [(event.name, event.input_shapes) for event in profiler.events()]
        parameters = list(run.model.parameters())
        states = [run.optimizers[0].state[p] for p in parameters]
        moments = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq")]
        held = [parameters, [p.grad for p in parameters], *moments]
        counted[how] = {
            # a gradient; the loop's count of targets, which is exchanged too, is a scalar
            "all_reduce": [shapes[0][0] for name, shapes in events if name == "gloo:all_reduce" and shapes[0]],
            "all_gather": [shapes[1][0] for name, shapes in events if name == "c10d::_allgather_base_"],
            "reduce_scatter": [shapes[0][0] for name, shapes in events if name == "c10d::_reduce_scatter_base_"],
            "broadcast": [shapes[0][0] for name, shapes in events if name == "gloo:broadcast"],
            "held": [sum(getattr(t, "_local_tensor", t).numel() for t in tensors) for tensors in held],
        }  # fmt: skip
    if ALL.first:
        Path("counted.json").write_text(json.dumps(counted))


def worker_fine_tune():
    for name, (config, source) in tuned().items():
        for how in BOTH:
            train(updated(config, {"train": {"parallel": how}}), source, Path(name, how), print_nothing)


def worker_diverge():
    """The first process writes its report for longer than the 30 seconds after which torchrun kills it."""
    real = divergence.write_checkpoint

    def slowly(*arguments):
        time.sleep(35)
        real(*arguments)

    divergence.write_checkpoint = slowly
    large = {"train": {"learning_rate": 1e30, "save_interval": 50, "eval_interval": 50, "max_steps": 50}}
    train(updated(CONFIG, large), CORPUS, Path("run"), print_nothing)


def worker_end_after_an_evaluation():
    """Two runs whose last checkpoint follows a pass without a backward one, after which fsdp gathers no longer."""
    worse = {"train": {"learning_rate": 5.0, "patience": 1, "warmup_steps": 0, "save_interval": 50, "parallel": "fsdp"}}
    train(updated(CONFIG, worse), CORPUS, Path("patient"), print_nothing)
    large = {"train": {"learning_rate": 1e30, "eval_interval": 50, "save_interval": 50, "parallel": "fsdp"}}
    with pytest.raises(DivergenceError):
        train(updated(CONFIG, large), CORPUS, Path("diverged"), print_nothing)


def worker_diverge_by_dropout():
    """A weight that is finite only where dropout does not double it: with masks of their own, two processes differ."""
    real = run_module.make_model

    def large(*arguments):
        model = real(*arguments)
        with torch.no_grad():
            model.wpe.weight[0, 0] = 3e38
        return model

    run_module.make_model = large
    dropping = updated(CONFIG, {"model": {"dropout": 0.5}, "train": {"accumulation_steps": 1, "eval_interval": 50}})
    for how in BOTH:
        for seed in range(3):
            out = Path(how, str(seed))
            with pytest.raises(DivergenceError) as told:
                train(updated(dropping, {"seed": seed, "train": {"parallel": how}}), CORPUS, out, print_nothing)
            out.with_suffix(f".{ALL.rank}").write_text(told.value.what)


# What is started, and what is found afterwards


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def work(*arguments):
    """Two processes of this file, with what torchrun would tell them.

    They are copies of a process that has imported what they need and done nothing else: imports would take most of
    their time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minigpt.training.verify", "torch._dynamo", "torch.distributed.fsdp", "pytest"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": store.host, "MASTER_PORT": str(store.port)}
    told["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is here, and not in the first of them
    processes = []
    for rank in ("0", "1"):
        code = BEGIN.format(told={**told, "RANK": rank, "LOCAL_RANK": rank}, call=[__file__, *arguments])
        processes.append(context.Process(target=exec, args=(code,)))
        processes[-1].start()
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0], "".join(p.read_text() for p in Path().glob("*.log"))


def start(*flags, launch=LAUNCH):
    """`torchrun ... -m minigpt train ...` on two processes."""
    Path("text.txt").write_text(TEXT)
    return subprocess.Popen(
        [*launch, "-m", "minigpt", "train", *FLAGS, *flags],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome(process, patience=60):
    """Exit status, standard output, standard error: once all have ended, which is within that many seconds."""
    output, errors = process.communicate(timeout=patience)
    return process.returncode, output, errors


def errors_of_ours(text):
    """The lines of minigpt's errors: (what, how) of each."""
    return re.findall(r"^error: (.*)\n       (.*)$", text, re.MULTILINE)


def ranks(process):
    """The process ids that torchrun started, by rank."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"PPid:\t{process.pid}\n" in status.read_text():
                words = (status.parent / "environ").read_bytes().split(b"\0")
                found |= {int(word[5:]): int(status.parent.name) for word in words if word.startswith(b"RANK=")}
        except OSError:  # it has ended meanwhile
            continue
    return found


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_steps(run, expected, number=4 * 20):
    """Every record that training and evaluation made: four numbers of each of 20 steps, or as many; 1e-5."""
    keys = ("train_loss", "grad_norm", "val_loss", "lr")
    mine, others = (
        {(record["step"], key): record[key] for record in records(path) for key in keys if key in record}
        for path in (run, expected)
    )
    assert len(others) == number
    assert mine == pytest.approx(others, abs=1e-5, rel=0)


def shapes(path):
    return {name: stored.shape for name, stored in open_weights(path).items()}


def test_two_processes_take_the_steps_of_one(monkeypatch):
    without_decoration(monkeypatch)
    command = [*LAUNCH, __file__, "train", "adamw"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    train(variant("adamw"), CORPUS, Path("one"), print_nothing)
    assert_same_steps(Path("adamw", "ddp"), Path("one"))


@pytest.mark.slow
def test_every_kind_takes_the_steps_of_one(monkeypatch):
    """Both ways to share the work, both optimizers, accumulation, clipping, and heads: the same losses and files."""
    without_decoration(monkeypatch)
    work("train", *VARIANTS)
    for name in VARIANTS:
        one = Path(name, "one")
        train(variant(name), CORPUS, one, print_nothing)
        for how in BOTH:
            assert_same_steps(Path(name, how), one)
            for file in ("model.safetensors", "last/model.safetensors"):
                assert shapes(Path(name, how, file)) == shapes(one / file)
            state, expected = (shapes(run / "last" / "state.safetensors") for run in (Path(name, how), one))
            assert {key: shape for key, shape in state.items() if not key.endswith("/1")} == expected
            model, _ = minigpt.load_model(str(Path(name, how)))
            loss = evaluate(model, set_up_alone(variant(name)).loader.val.ids).loss
            assert loss == pytest.approx(min(r["val_loss"] for r in records(one) if "val_loss" in r), abs=1e-5)


@pytest.mark.slow
def test_documents_and_adapters_take_the_steps_of_one(monkeypatch):
    """Rows differ in how many targets they have; and an adapter is whole where each process has a part of it."""
    without_decoration(monkeypatch)
    tokenizer = CharTokenizer.from_text("\nabcdefg 0123456789")
    save_run(GPT(GPTConfig(tokenizer.vocab_size, 11, 2, 3, 15)), tokenizer, Path("base"))
    work("fine_tune")
    for name, (config, source) in tuned().items():
        one = Path(name, "one")
        train(config, source, one, print_nothing)
        first = 1 if config.init_from else 0  # the base is evaluated too
        for how in BOTH:
            run = Path(name, how)
            assert_same_steps(run, one, first + 4 + 3 * 5)  # evaluations at 3, 6, 9, 12, and records there and at 10
            for file in ("last/model.safetensors", "last/state.safetensors"):
                own, expected = shapes(run / file), shapes(one / file)
                assert {key: shape for key, shape in own.items() if not key.endswith("/1")} == expected
            assert torch.allclose(best_logits(run), best_logits(one), rtol=0, atol=1e-4)
    config, source = tuned()["adapted"]
    longer = updated(config, {"train": {"max_steps": 14}})
    assert train(longer, source, Path("adapted", "fsdp"), print_nothing, resume=True).step == 14


def best_logits(run):
    """Of the weights that are kept, on tokens of their own, and without what cannot be seen from outside.

    A bias of the keys is such: no score depends on it, so that its gradient is rounding alone.
    """
    if Path(run, "adapter").exists():
        model, _ = minigpt.load_model("base")
        load_adapter(model, run / "adapter")
    else:
        model, _ = minigpt.load_model(str(run))
    idx = torch.randint(model.config.vocab_size, (5, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(idx)


def set_up_alone(config):
    return set_up(config, CORPUS, RunDirectory(Path()), Processes(), torch.device("cpu"), print_nothing, None)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(monkeypatch):
    """Two, one, two; DDP that becomes FSDP and the other way round. With dropout, two and two are equal in each bit."""
    without_decoration(monkeypatch)
    train(variant("untied"), CORPUS, Path("one"), print_nothing)
    work("begin")
    for how in BOTH:
        train_until(13, variant("untied", how), Path("begun", how), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_and_keep", pulled_plug)
        with pytest.raises(PulledPlug):
            train(UNASSESSED, CORPUS, Path("unassessed"), print_nothing)
    work("go_on")
    assert "val_loss" in records(Path("unassessed"))[-1]
    for how in BOTH:
        assert_same_steps(Path("begun", how), Path("one"))
        found = compare(RunDirectory(Path("straight", how)), RunDirectory(Path("broken", how)))
        assert [(c.name, c.equal) for c in found] == [(c.name, True) for c in found]
        state = open_weights(Path("straight", how, "last", "state.safetensors"))
        assert not state["random/torch/0"].read().equal(state["random/torch/1"].read())  # two dropouts, not one twice


@pytest.mark.slow
def test_one_process_of_each_launch_speaks_and_chooses():
    """One JSON object, each line once, one run directory, also beside another launch; one folder of tokens."""
    Path("checkpoints", "text").mkdir(parents=True)  # so that the names must be numbered
    once = ("corpus     ", "computing  on cpu, 1 thread,", "step 0     ", "step 5     val", "finished   5 steps")
    launches = [start("--json", "--train.max_steps", "5") for _ in range(2)]
    names = []
    for status, output, errors in [outcome(launch, patience=300) for launch in launches]:
        assert status == 0, errors
        result = json.loads(output)  # which more than one object would not be
        assert result["step"] == 5
        names.append(result["out"])
        for line in once:
            assert errors.count(line) == 1
        assert "2 processes" in errors
        assert len(records(Path(result["out"]))) == 2  # of a step, and of an evaluation
    assert sorted(names) == ["checkpoints/text-2", "checkpoints/text-3"]
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["text", "text-2", "text-3"]
    assert len(list(Path("data", "tokens").iterdir())) == 1


def test_a_path_that_is_told_is_the_path():
    path = Path("checkpoints", "wörter\udcff-2")
    assert Processes().path_of_first(path) == path


@pytest.mark.slow
@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_all(how, killed, monkeypatch):
    """kill -9 in the middle. The survivor says so in two lines, and the last checkpoint is good."""
    process = start(*LONG, "--train.parallel", how)
    wait_for(Path("run", "last"), process)
    pids = ranks(process)
    assert sorted(pids) == [0, 1]
    os.kill(pids[killed], signal.SIGKILL)
    status, _, errors = outcome(process)
    assert status == 1
    ((what, mend),) = errors_of_ours(errors)
    assert what.startswith(f"process {1 - killed} of 2 has lost another one: ")
    assert mend.endswith("go on from the last checkpoint: minigpt train --resume DIR")
    assert not [pid for pid in pids.values() if Path("/proc", str(pid)).exists()]
    without_decoration(monkeypatch)
    clean(RunDirectory(Path("run")), print_nothing)  # it may have died between the two renames of a save
    step = open_checkpoint(Path("run", "last")).progress.step
    config = loop.read_config(RunDirectory(Path("run")))
    config = updated(config, {"train": {"max_steps": step + 2, "eval_interval": step + 2}})
    assert train(config, Corpus("text.txt", TEXT, ""), Path("run"), print_nothing, resume=True).step == step + 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", ["torchrun", "one process"])
def test_a_signal_stops_all_at_one_step(number, to):
    process = start(*LONG)
    wait_for(Path("run", "last"), process)
    os.kill(process.pid if to == "torchrun" else ranks(process)[1], number)
    status, _, errors = outcome(process)
    assert status == 1  # torchrun has no other for a run that did not end well
    ((step, mend),) = re.findall(r"^stopped at step (\d+) of 100000, and saved\n(.*)$", errors, re.MULTILINE)
    assert mend == "go on with: minigpt train --resume run"
    assert open_checkpoint(Path("run", "last")).progress.step == int(step)
    assert errors_of_ours(errors) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", BOTH)
def test_a_divergence_is_told_once(how):
    flags = "--train.learning_rate 1e30 --train.max_steps 50 --train.save_interval 1000 --out run".split()
    status, _, errors = outcome(start(*flags, "--train.parallel", how))
    assert status == 1
    ((what, _),) = errors_of_ours(errors)
    assert what.startswith("training diverged in step ")
    report = json.loads(Path("run", "diverged", "report.json").read_text())
    assert f"step {report['step']}:" in what
    assert report["first_nonfinite"] in what


@pytest.mark.slow
def test_all_find_the_same_tensor_although_each_draws_its_own_dropout():
    work("diverge_by_dropout")
    for run in [Path(how, str(seed)) for how in BOTH for seed in range(3)]:
        found = json.loads((run / "diverged" / "report.json").read_text())["first_nonfinite"]
        for rank in (0, 1):
            assert run.with_suffix(f".{rank}").read_text().endswith(f": {found}")


@pytest.mark.slow
def test_a_run_that_ends_after_an_evaluation_is_saved():
    work("end_after_an_evaluation")
    assert 1 < open_checkpoint(Path("patient", "last")).progress.step < CONFIG.train.max_steps
    report = json.loads(Path("diverged", "diverged", "report.json").read_text())
    assert report["first_nonfinite"].startswith("the output of ")
    assert open_checkpoint(Path("diverged", "diverged")).progress.step == report["step"] - 1


def test_who_waits_for_the_first_needs_no_gpu(monkeypatch):
    """Where there is a GPU, a barrier goes through NCCL, even if all tensors lie on the CPU."""
    seen = []
    monkeypatch.setattr(dist, "barrier", lambda: seen.append("barrier"))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group=None: seen.append(tensor.device.type))
    for rank in (0, 1):
        with Processes(rank, 2).first_goes_ahead():
            seen.append(rank)
    assert seen == [0, "cpu", "cpu", 1]


def test_who_waits_for_the_data_waits_as_long_as_they_are_encoded(monkeypatch):
    """GPT-2's tokens come at a few megabytes a second, so a text of some gigabytes takes longer than a step may."""
    seen = []
    monkeypatch.setattr(dist, "new_group", lambda timeout, backend: (timeout, backend))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group=None: seen.append(group))
    read_data(CONFIG, CORPUS, CharTokenizer.from_text(TEXT), Processes(1, 2), None)
    assert seen == [(timedelta(days=1), "gloo")]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert Processes(0, 2).device(torch.device("cuda")) == torch.device("cuda", 0)
    assert Processes(1, 2).device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="no GPU for process 1, counted from 0: this machine has 1 GPU"):
        Processes(1, 2).device(torch.device("cuda"))


@pytest.mark.slow
def test_nobody_leaves_while_a_report_is_written():
    """torchrun asks all processes to end as soon as one of them has left, and 30 seconds later it kills them."""
    process = subprocess.Popen(
        [*LAUNCH, __file__, "diverge"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    status, _, errors = outcome(process, patience=120)
    assert status == 1
    assert "training diverged in step " in errors
    report = json.loads(Path("run", "diverged", "report.json").read_text())
    assert open_checkpoint(Path("run", "diverged")).progress.step == report["step"] - 1


def test_a_batch_that_cannot_be_shared_out_is_refused_by_its_flags():
    with pytest.raises(ConfigError) as refused:
        Processes(0, 2).share(3, 5)
    flags = {"batch_size": "--rows", "accumulation_steps": "--times"}
    assert refused.value.renamed(flags) == (
        "2 processes cannot share out --times 5 micro-batches of --rows 3 rows",
        "choose --rows or --times as a multiple of 2",
    )


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out_is_refused_once():
    status, _, errors = outcome(start("--train.batch_size", "3", "--train.accumulation_steps", "5", "--out", "run"))
    assert status == 1
    assert errors_of_ours(errors) == [
        (
            "2 processes cannot share out --train.accumulation_steps 5 micro-batches of --train.batch_size 3 rows",
            "choose --train.batch_size or --train.accumulation_steps as a multiple of 2",
        )
    ]
    assert not Path("run").exists()


@pytest.mark.slow
def test_two_launchers_meet():
    """As on two machines, one process each, by torchrun's own rendezvous."""
    meeting = "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:29417 --rdzv-id 7".split()
    launch = [*LAUNCH[:3], *meeting]
    machines = [start("--train.max_steps", "5", "--out", "run", launch=launch) for _ in range(2)]
    ends = [outcome(machine) for machine in machines]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert sum("finished   5 steps" in output for _, output, _ in ends) == 1
    assert sum("2 processes" in output for _, output, _ in ends) == 1


@pytest.mark.slow
def test_the_formulae_are_what_is_counted():
    """Two processes, four micro-batches: what torch's profiler saw, and what lies in the first process."""
    work("count")
    counted = json.loads(Path("counted.json").read_text())
    model = set_up_alone(variant("adamw")).model
    size, micro_batches, number = 2, 2, 4  # processes, micro-batches of each, bytes of a float32
    for how, seen in counted.items():
        in_a_ring = 2 * (size - 1) / size * sum(seen["all_reduce"]) if how == "ddp" else 0
        in_a_ring += (size - 1) * sum(seen["all_gather"] + seen["reduce_scatter"])
        assert seen["broadcast"] == []
        assert bytes_sent(model, how, size, micro_batches) == number * in_a_ring
        assert seen["held"] == [numbers_held(model, how, size)] * 4


@pytest.fixture
def pretended():
    """Makes this process the first of many that do not exist: what it hands to the others can be counted."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    yield lambda size: dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64])
def test_the_formulae_hold_up_to_64(how, size, pretended):
    """Two micro-batches of one of 64 processes: the parts that go around a ring, and the numbers that lie here."""
    from torch.profiler import profile

    pretended(size)
    config, micro_batches, buckets = updated(CONFIG.model, {"vocab_size": 61}), 2, []
    model = GPT(config)
    forward = parallel(model, model, how, Processes(0, size))
    if how == "ddp":

        def exchange(state, bucket):
            buckets.append(bucket.buffer().numel())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        forward.register_comm_hook(None, exchange)
    optimizer = torch.optim.AdamW(model.parameters())
    with profile(record_shapes=True) as profiler:
        for number in range(micro_batches):
            with exchanging(forward, now=number + 1 == micro_batches):
                forward(torch.zeros(2, 7, dtype=torch.int64)).sum().backward()
    optimizer.step()
    events = [(event.name, event.input_shapes) for event in profiler.events()]
    parts = [shapes[1][0] for name, shapes in events if name == "c10d::_allgather_base_"]
    parts += [shapes[0][0] for name, shapes in events if name == "c10d::_reduce_scatter_base_"]
    whole = GPT(config)
    assert bytes_sent(whole, how, size, micro_batches) == round(4 * (2 * (size - 1) / size * sum(buckets))) + (
        4 * (size - 1) * sum(parts)
    )
    parameters = list(model.parameters())
    states = [optimizer.state[parameter] for parameter in parameters]
    for held in (
        parameters,
        [p.grad for p in parameters],
        *([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq")),
    ):
        assert sum(getattr(t, "_local_tensor", t).numel() for t in held) == numbers_held(whole, how, size)


def test_every_command_of_the_page_is_accepted(accept):
    """What torchrun starts, by the real parser; in a folder that has the run which the page speaks of."""
    write_yaml(CONFIG, Path("checkpoints", "my-run", "config.yaml"), versions={})
    commands = re.findall(r"^torchrun .* -m (minigpt .*)$", PAGE.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        accept(command)


def test_the_tables_of_the_page():
    """Each number for 1 to 64 GPUs is that of the formulae, which the tests above have counted."""
    rows = [
        [int(cell.replace(",", "")) for cell in row.strip("| ").split("|")]
        for row in re.findall(r"^\| \d+ \|.*$", PAGE, re.MULTILINE)
    ]
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert [row[0] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    for size, *cells in rows:
        held = [16 * numbers_held(model, how, size) for how in BOTH]
        assert cells == [round(number / 1e6) for number in held + [bytes_sent(model, how, size) for how in BOTH]]
    block = sum(parameter.nbytes for parameter in model.h[0].parameters())
    outside = sum(parameter.nbytes for parameter in model.parameters()) - 12 * block
    borrowed = [round(number / 1e6) for number in (2 * outside + 2 * block, outside, outside, block)]
    assert "needs another {} MB for a time here: {} MB for the embeddings, {} for their gradient, {} for each".format(
        *borrowed
    ) in " ".join(PAGE.split())


@pytest.mark.parametrize("size", [2, 8, 64])
def test_what_a_ring_sends(size):
    """Each process hands on what it received, until all have every part; added up, the same backwards."""
    parts = [{rank} for rank in range(size)]
    latest, sent = list(range(size)), 0
    while any(len(part) < size for part in parts):
        latest = [latest[rank - 1] for rank in range(size)]
        sent += 1
        for part, new in zip(parts, latest, strict=True):
            part.add(new)
    model = GPT(GPTConfig(vocab_size=64, block_size=64, n_layer=3, n_head=1, n_embd=64))  # nothing is rounded up
    blocks, everything = (4 * sum(p.numel() for p in module.parameters()) for module in (model.h, model))
    assert bytes_sent(model, "ddp", size) == 2 * sent * everything // size
    assert bytes_sent(model, "fsdp", size, 5) == 5 * sent * (blocks + 2 * everything) // size
    assert numbers_held(model, "fsdp", size) * 4 * size == numbers_held(model, "ddp", size) * 4 == everything


@pytest.mark.parametrize(("size", "batch_size", "accumulation_steps"), [(2, 3, 4), (3, 6, 2), (5, 5, 5), (1, 7, 3)])
def test_every_sequence_has_one_process(size, batch_size, accumulation_steps):
    """Together the processes read the windows that one would, each once, in micro-batches of one size."""
    config = updated(CONFIG, {"train": {"batch_size": batch_size, "accumulation_steps": accumulation_steps}})
    run = set_up_alone(config)

    def read(processes):
        return [tuple(row) for batch in run.micro_batches(0, 17, processes) for row in batch.inputs.tolist()]

    shares = [read(Processes(rank, size)) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for row in share) == sorted(read(Processes()))


def test_parts_of_an_evaluation_are_the_whole(tiny_model):
    ids = torch.randint(23, (13 * 11,), generator=torch.Generator().manual_seed(3)).numpy()
    batches = [Batch(*window) for window in windows_in_order(ids, 2, 13)]
    for size in (2, 3, 7):
        parts = [evaluate_batches(tiny_model, batches[rank::size], torch.float32) for rank in range(size)]
        whole = evaluate_batches(tiny_model, batches, torch.float32)
        assert sum(part.tokens for part in parts) == whole.tokens
        assert sum(part.loss * part.tokens for part in parts) / whole.tokens == pytest.approx(whole.loss, abs=1e-12)
    assert parts[6].tokens == 0


def test_fsdp_without_torchrun_is_one_process(monkeypatch):
    without_decoration(monkeypatch)
    for how in BOTH:
        train(updated(variant("muon", how), {"train": {"max_steps": 4}}), CORPUS, Path(how), print_nothing)
    weights = [Path(how, "last", "model.safetensors").read_bytes() for how in BOTH]
    assert weights[0] == weights[1]


def test_half_of_torchruns_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE = 2 .* lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT"), joined():
        pass


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch, name):
    for variable in ("WORLD_SIZE", *LAUNCHER):
        monkeypatch.setenv(variable, "2")
    for told in ("two", "-1", "2.0"):
        monkeypatch.setenv(name, told)
        with pytest.raises(ConfigError, match=f"the environment says {name} = '{told}'"), joined():
            pass


def test_a_later_training_finds_nothing_of_an_earlier_one(monkeypatch):
    """Of several in one program: else a process would wait for the addresses of a group that is gone."""
    for variable in ("WORLD_SIZE", *LAUNCHER):
        monkeypatch.setenv(variable, "2")
    launchers, groups = dist.HashStore(), []

    def begin(store, **options):
        assert not store.check(["address"])
        store.set("address", "of this group")
        groups.append(store)

    met = sys.modules["torch.distributed.rendezvous"]  # a function of torch.distributed has its name
    monkeypatch.setattr(met, "rendezvous", lambda *_, **__: iter([(launchers, 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for number in range(3):
        with joined() as processes:
            assert (processes.rank, processes.size, len(groups)) == (1, 2, number + 1)


def test_an_empty_variable_says_nothing(monkeypatch):
    """As in a job's script that names one which is not set."""
    monkeypatch.setenv("WORLD_SIZE", "")
    with joined() as processes:
        assert processes.size == 1


if __name__ == "__main__":
    without_decoration()
    with joined() as ALL:
        globals()[f"worker_{sys.argv[1]}"](*sys.argv[2:])
