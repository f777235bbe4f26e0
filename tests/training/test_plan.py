"""The plan of a run: its memory against what torch allocates and what processes take, its time on a false clock."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from minigpt.cli import main
from minigpt.config import GPTConfig, RunConfig, TrainConfig, updated
from minigpt.data.batches import Batch
from minigpt.data.tokens import TokenFile
from minigpt.data.verse import write_verse
from minigpt.evaluation.loss import evaluate, next_token_loss
from minigpt.formats.run_directory import save_run
from minigpt.model import GPT
from minigpt.system import device
from minigpt.system.device import autocast, free_bytes
from minigpt.tokenizers import CharTokenizer
from minigpt.training import plan
from minigpt.training.optim import make_optimizers
from minigpt.training.plan import Workload, how_to_fit, plan_run, predict_memory, resident_bytes
from minigpt.training.run import make_model, recompute_blocks
from minigpt.training.teachers import find_teachers, load_teachers

CPU = torch.device("cpu")
SMALL = RunConfig(
    model=GPTConfig(vocab_size=61, block_size=67, n_layer=3, n_head=3, n_embd=3 * 17, bias=False),
    train=TrainConfig(max_steps=13, batch_size=12, eval_interval=5, warmup_steps=2, optimizer="muon"),
)
VAL_TOKENS = 20_011


def tokens(number: int, vocab_size: int = 61) -> TokenFile:
    ids = np.random.default_rng(0).integers(vocab_size, size=number).astype(np.uint16)
    return TokenFile(Path("unused.bin"), ids, vocab_size, "none")


def most_allocated(run) -> int:
    """The most bytes that torch's own allocator had given out at once while `run()` ran, beyond those at its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        run()
    level = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


@pytest.mark.parametrize(
    ("changes", "dtype", "phase"),
    [
        ({}, torch.float32, "training"),
        ({"model": {"dropout": 0.25}}, torch.float32, "training"),
        ({"train": {"accumulation_steps": 2, "optimizer": "adamw"}}, torch.float32, "training"),
        ({"model": {"vocab_size": 1009}}, torch.float32, "training"),
        ({"model": {"vocab_size": 1009}}, torch.bfloat16, "training"),
        ({"model": {"n_embd": 3 * 41, "block_size": 11}, "train": {"batch_size": 1}}, torch.float32, "updating"),
        ({"model": {"n_embd": 3 * 41, "block_size": 11}, "train": {"batch_size": 1}}, torch.bfloat16, "updating"),
    ],
)
def test_training_and_updating_allocate_what_is_predicted(changes, dtype, phase):
    config = updated(SMALL, changes)
    m, t = config.model, config.train

    def train() -> None:
        model = GPT(m)
        optimizers = make_optimizers(model, t, dtype)
        for _ in range(2):  # the optimizer's state is there from the first update on
            for _ in range(t.accumulation_steps):
                idx = torch.randint(m.vocab_size, (t.batch_size, m.block_size))
                with autocast(CPU, dtype):
                    logits = model(idx)
                    loss = next_token_loss(logits, idx)
                loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    memory = predict_memory(config, CPU, dtype, text(1000, config))
    totals = {name: sum(part.parts.values()) for name, part in memory.phases.items() if name != "evaluating"}
    assert max(totals, key=totals.get) == phase
    predicted = sum(memory.lasting.values()) + totals[phase]
    assert predicted == pytest.approx(most_allocated(train), rel=0.02 if dtype == torch.float32 else 0.06)


PARTS = {
    "an adapter": {"lora_rank": 3},
    "adapters with dropout": {"lora_rank": 3, "lora_dropout": 0.3, "lora_targets": "attn.c_attn,c_proj,mlp.c_fc"},
    "an adapter, accumulating": {"lora_rank": 3, "accumulation_steps": 2},
    "an adapter, recomputing": {"lora_rank": 3, "gradient_checkpointing": True},
    "all but a block frozen": {"freeze": "w?e.*,h.0.*"},
    "all recomputed": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_weights_allocates_at_most_what_is_predicted(part):
    """Weights, gradients and optimizer are what they are; activations are those of training all weights, or fewer."""
    config = updated(SMALL, {"train": {"optimizer": "adamw", **PARTS[part]}})
    m, t = config.model, config.train
    model = make_model(config, None, None, {})
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def train() -> None:
        model = make_model(config, None, None, {})
        if t.gradient_checkpointing:
            recompute_blocks(model)
        optimizers = make_optimizers(model, t, torch.float32)
        for _ in range(2):
            for _ in range(t.accumulation_steps):
                idx = torch.randint(m.vocab_size, (t.batch_size, m.block_size))
                next_token_loss(model(idx), idx).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    memory = predict_memory(config, CPU, torch.float32, text(1000, config))
    assert memory.lasting["weights"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert memory.lasting["optimizer's state"] == 2 * trained
    assert memory.phases["updating"].parts["gradients"] == trained
    predicted = sum(memory.lasting.values()) + max(sum(phase.parts.values()) for phase in memory.phases.values())
    assert 0.1 * predicted < most_allocated(train) <= predicted


@pytest.mark.parametrize(
    ("shape", "vocab_size", "phases"),
    [
        ({"n_embd": 7, "n_layer": 1, "n_head": 1}, 1009, {"training", "asking teachers"}),  # which hold the same there
        ({"n_embd": 401, "n_head": 1}, 19, {"asking teachers"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teachers_allocate_what_is_predicted(tmp_path, dtype, shape, vocab_size, phases):
    """In the step itself; they lie in memory before it."""
    characters = "".join(map(chr, range(1000, 1000 + vocab_size)))
    tokenizer = CharTokenizer(characters)
    first = updated(SMALL, {"model": {"vocab_size": vocab_size}, "train": {"optimizer": "adamw"}})
    for name in ("a", "b"):
        save_run(GPT(replace(first.model, **shape)), tokenizer, tmp_path / name)
    config = updated(first, {"kernels": "torch", "train": {"teachers": (str(tmp_path / "a"), str(tmp_path / "b"))}})
    m, t = config.model, config.train
    teachers = load_teachers(config, find_teachers(config, tokenizer), CPU, "torch")
    idx = torch.randint(m.vocab_size, (t.batch_size, m.block_size))
    batch = Batch(idx, idx)

    def train() -> None:
        model = GPT(m)
        optimizers = make_optimizers(model, t, dtype)
        for _ in range(2):
            with autocast(CPU, dtype):
                logits = model(idx)
                learned = teachers.mixed(next_token_loss(logits, idx), logits, batch)
            learned.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    memory = predict_memory(config, CPU, dtype, text(1000, config))
    found = [p for model in teachers.models for p in model.parameters()]
    assert memory.lasting["teachers' weights"] == 4 * sum(map(torch.numel, found))
    assert memory.largest in phases
    predicted = sum(memory.lasting.values()) - memory.lasting["teachers' weights"]
    predicted += sum(memory.phases[memory.largest].parts.values())
    # In bfloat16, float32 copies of two wide layers are counted, which products make on some processors only.
    copies = 2 * (4 - 2) * idx.numel() * 4 * shape["n_embd"] if dtype == torch.bfloat16 else 0
    assert 0.97 * predicted - copies <= most_allocated(train) <= 1.03 * predicted


def text(num_tokens: int, config: RunConfig = SMALL) -> Workload:
    """A text whose validation split has so many tokens."""
    return Workload.of_text(config.model.block_size, num_tokens)


def evaluation_bytes(monkeypatch, changes, dtype) -> tuple[int, int]:
    """What an evaluation of 15 rows of 67 tokens is predicted to allocate, and what it allocates."""
    monkeypatch.setattr("minigpt.data.tokens.TOKENS_PER_BATCH", 1021)
    config = updated(SMALL, changes)
    ids = tokens(3001).ids
    predicted = (
        predict_memory(config, CPU, dtype, text(len(ids), config)).phases["evaluating"].parts["activations and logits"]
    )
    model = GPT(config.model)
    return predicted, most_allocated(lambda: evaluate(model, ids, dtype))


@pytest.mark.parametrize(
    ("changes", "dtype", "tolerance"),
    [
        ({}, torch.float32, 0.01),
        ({"model": {"vocab_size": 1009}}, torch.float32, 0.01),
        ({"model": {"vocab_size": 1009}}, torch.bfloat16, 0.03),
    ],
)
def test_an_evaluation_allocates_what_is_predicted(monkeypatch, changes, dtype, tolerance):
    predicted, allocated = evaluation_bytes(monkeypatch, changes, dtype)
    assert predicted == pytest.approx(allocated, rel=tolerance)


def test_an_evaluation_in_bfloat16_allocates_at_most_what_is_predicted(monkeypatch):
    """The prediction has float32 copies of two wide layers, which products make on some processors only."""
    predicted, allocated = evaluation_bytes(monkeypatch, {}, torch.bfloat16)
    copies = 2 * (4 - 2) * 15 * 67 * 4 * SMALL.model.n_embd  # two layers; bytes more; rows; tokens; 4 C
    assert predicted - copies <= allocated <= predicted


def test_causal_masks_are_the_models():
    masks = sum(mask.nbytes for mask in GPT(SMALL.model).buffers())
    assert predict_memory(SMALL, CPU, torch.float32, text(1000, SMALL)).lasting["causal masks"] == masks


def test_a_short_validation_split_takes_less():
    phases = [predict_memory(SMALL, CPU, torch.float32, text(n, SMALL)).phases["evaluating"] for n in (68, 69, 68 + 67)]
    one, more, two = (sum(phase.parts.values()) for phase in phases)  # windows of 67 targets
    assert 2 * one == more == two


def test_freed_blocks_are_a_share_of_the_heap_and_only_of_it():
    width = 3 * 1024
    model = GPTConfig(vocab_size=2, block_size=1024, n_layer=1, n_head=3, n_embd=width, bias=False)
    config = replace(SMALL, model=model, train=replace(SMALL.train, batch_size=2, optimizer="adamw"))
    phase = predict_memory(config, CPU, torch.float32, text(1000, config)).phases["training"]
    narrow = 4 * 2 * 1024 * width  # 25 MB: in the heap, as 2 and 4 times as much are not
    # In each of ln_1, c_attn's input, ln_2, c_fc's input, ln_f, lm_head's input, and three gradients.
    assert phase.freed == pytest.approx(0.6 * 9 * narrow, rel=0.01)
    assert predict_memory(config, torch.device("cuda"), torch.float32, text(1000, config)).phases["training"].freed == 0


def test_a_plan_is_complete_and_adds_up():
    result = plan_run(SMALL, text(VAL_TOKENS), tokens(VAL_TOKENS).ids, CPU, torch.float32, 5, measure_seconds=0.0)
    assert result.parameters == GPT(SMALL.model).num_parameters()
    assert result.process > 100e6  # torch alone
    assert result.peak == result.process + result.memory.peak
    assert result.seconds.keys() == {"training", "evaluations", "samples"}
    assert min(result.seconds.values()) > 0
    assert result.advice == ""
    content = json.loads(json.dumps(result.to_dict()))
    assert content["peak"] == result.peak
    assert content["total_seconds"] == pytest.approx(sum(result.seconds.values()))
    lines = result.table().splitlines()
    assert max(map(len, lines)) <= 80
    together = [number for number, line in enumerate(lines) if line.startswith("  together")]
    starts = [lines.index("memory, at its peak"), lines.index("time")]
    for start, end in zip(starts, together, strict=True):
        shares = [float(line.split()[-2]) for line in lines[start + 1 : end]]
        assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert any("(updating holds" in line for line in lines)


def test_where_there_is_no_room_nothing_large_is_tried(monkeypatch):
    monkeypatch.setattr(plan, "measure_time", lambda *arguments: pytest.fail("steps of the real size were tried"))
    monkeypatch.setattr(plan, "rehearse", lambda *arguments: None)
    monkeypatch.setattr(plan, "free_bytes", lambda device: 1)
    result = plan_run(SMALL, text(VAL_TOKENS), tokens(VAL_TOKENS).ids, CPU, torch.float32, 1)
    assert result.seconds is result.total_seconds is None
    assert result.advice == "no batch_size is small enough: lower --model.n_layer or --model.block_size"
    based = how_to_fit(replace(SMALL, init_from="base"), CPU, torch.float32, text(VAL_TOKENS), 1)
    assert based == "no batch_size is small enough: lower --model.block_size"  # the base has its layers
    assert result.advice in result.table()
    assert max(map(len, result.table().splitlines())) <= 80
    assert "free here: 1 B" in result.table()


def test_the_advice_is_the_largest_batch_that_fits(monkeypatch):
    # Else an evaluation takes more than the smaller batches do.
    monkeypatch.setattr("minigpt.data.tokens.TOKENS_PER_BATCH", 1)
    for batch_size, steps in ((6, 2), (4, 3), (3, 4), (2, 6), (1, 12)):
        smaller = updated(SMALL, {"train": {"batch_size": batch_size, "accumulation_steps": steps}})
        enough = predict_memory(smaller, CPU, torch.float32, text(VAL_TOKENS, smaller)).peak
        advice = how_to_fit(SMALL, CPU, torch.float32, text(VAL_TOKENS), enough)
        assert advice.startswith(f"--train.batch_size {batch_size} --train.accumulation_steps {steps}: the same batch")
        assert how_to_fit(SMALL, CPU, torch.float32, text(VAL_TOKENS), enough - 1) != advice


def test_room_that_is_just_enough_is_used(monkeypatch):
    enough = predict_memory(SMALL, CPU, torch.float32, text(VAL_TOKENS, SMALL)).peak
    monkeypatch.setattr(plan, "measure_time", lambda *arguments: {"training": 3600.0 * 26, "samples": 59.94})
    monkeypatch.setattr(plan, "rehearse", lambda *arguments: None)
    for free, measured in ((enough, True), (enough - 1, False), (None, True)):
        monkeypatch.setattr(plan, "free_bytes", lambda device, free=free: free)
        result = plan_run(SMALL, text(VAL_TOKENS), tokens(VAL_TOKENS).ids, CPU, torch.float32, 1)
        assert (result.seconds is not None) == measured
        assert ("26 h 0 min" in result.table()) == ("59.9 s" in result.table()) == measured
        assert ("unknown" in result.table()) == (free is None)


def test_time_is_steps_evaluations_and_samples(monkeypatch):
    """13 steps of 3 micro-batches, 2 s each; after 5, 10 and 13 an evaluation of 20,010 / 8,192 x 7 s, and 11 s."""
    clock = [0.0]
    asked = []

    def takes(seconds: float):
        def spend(*arguments, **options):
            asked.append((arguments, options))
            clock[0] += seconds

        return spend

    monkeypatch.setattr(plan, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(plan, "train_a_little", lambda *arguments: ([], [90.0, 1.0, 2.0, 5.0]))
    monkeypatch.setattr(plan, "evaluate", takes(7.0))
    monkeypatch.setattr(plan, "generate", takes(11.0))
    config = updated(SMALL, {"train": {"accumulation_steps": 3}})
    seconds = plan.measure_time(config, text(VAL_TOKENS), tokens(VAL_TOKENS).ids, CPU, torch.float32, 19, 1.0)
    assert seconds == {
        "training": 13 * 3 * 2.0, "evaluations": pytest.approx(3 * 7 * 20_010 / 8_192), "samples": 33.0,
    }  # fmt: skip
    (_, ids, _), _ = asked[0]
    assert len(ids) == 8_193
    assert asked[1][1]["max_new_tokens"] == 19
    based = replace(config, init_from="base")  # which is evaluated at step 0
    for done, steps, samples, evaluations in ((0, 13, 3, 4), (4, 9, 3, 3), (5, 8, 2, 2), (12, 1, 1, 1), (13, 0, 0, 0)):
        seconds = plan.measure_time(
            based, text(VAL_TOKENS), tokens(VAL_TOKENS).ids, CPU, torch.float32, 19, 1.0, done=done
        )
        assert seconds == {
            "training": steps * 3 * 2.0,
            "evaluations": pytest.approx(evaluations * 7 * 20_010 / 8_192),
            "samples": samples * 11.0,
        }


@pytest.mark.usefixtures("no_plots")
def test_a_plan_of_a_run_to_resume_is_of_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(plan, "rehearse", lambda *arguments: None)
    monkeypatch.setattr(plan, "train_a_little", lambda *arguments: ([], [90.0, 2.0]))
    Path("a.txt").write_text("abcdefg" * 30, encoding="utf-8")
    shape = ["--model.n_layer", "1", "--model.n_head", "1", "--model.n_embd", "6", "--model.block_size", "7"]
    steps = ["--train.max_steps", "3", "--train.warmup_steps", "1", "--train.batch_size", "2", "--device", "cpu"]
    assert main.answer(["train", "--data", "a.txt", "--out", "run", *shape, *steps]) == 0
    for asked, left in ((["--train.max_steps", "14"], 11), ([], 0)):
        capsys.readouterr()
        assert main.answer(["train", "--resume", "run", "--plan", "--json", *asked]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["seconds"]["training"] == left * 2.0
        assert "run at step 3" in err
    assert main.answer(["train", "--resume", "run", "--plan"]) == 0  # a share of no time
    for flag, number, said in (
        ("--model.n_layer", "2", "n_layer is 1 in the run and 2 now"),
        ("--train.max_steps", "2", "the run has taken 3 steps, more than the 2 asked for"),
    ):
        assert main.answer(["train", "--resume", "run", "--plan", flag, number]) == 2  # as the training does
        out, err = capsys.readouterr()
        assert said in err
        assert "changed" not in out
    base = ["--init-from", "run", "--train.eval_interval", "3", "--train.save_interval", "3"]
    assert main.answer(["train", "--data", "a.txt", "--out", "tuned", *base, *steps]) == 0
    again = ["train", "--resume", "tuned", "--train.max_steps", "5", "--plan"]
    assert main.answer([*again, "--init-from", "run"]) == 0  # it is the same base, however it is spelled
    Path("run").rename("gone")  # a resume needs it as little
    assert main.answer(again) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_read_from_the_system(monkeypatch):
    import resource

    assert resident_bytes() < 1.1 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # no address space
    before = resident_bytes()
    held = np.ones(2**28, dtype=np.uint8)  # 256 MiB, every page touched
    assert resident_bytes() - before == pytest.approx(held.nbytes, rel=0.1)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_bytes(CPU) < total
    monkeypatch.setattr(device, "memory_limits", lambda: [(2000, 7), (1000, 300)])
    assert free_bytes(CPU) == 7
    assert free_bytes(torch.device("mps")) is None


PLAN = """
import sys
from pathlib import Path
from minigpt.cli.parser import SettingsParser
from minigpt.cli.run_settings import Train
from minigpt.config import updated
from minigpt.data.corpora import load_corpus
from minigpt.data.tokens import prepare
from minigpt.system.device import choose_device, choose_dtype
from minigpt.tokenizers import CharTokenizer
from minigpt.training import plan

config = SettingsParser("train", Train).parse(sys.argv[1:]).config
corpus = load_corpus(config.data.source)
tokenizer = CharTokenizer.from_text(corpus.text)
splits = prepare(corpus, tokenizer, config.data, config.model.block_size, Path("tokens"))
config = updated(config, {"model": {"vocab_size": tokenizer.vocab_size}})
workload = plan.Workload.of_text(config.model.block_size, len(splits[1].ids))
plan.measure_time = lambda *arguments: {"training": 1.0}  # only the memory is asked for
dtype = choose_dtype(config.dtype, choose_device("cpu"))
print(plan.plan_run(config, workload, splits[1].ids, choose_device("cpu"), dtype, 200).peak)
"""
# A process begins with the peak of the one that started it, so a small one stands between.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""
LARGER = "--model.n_layer 6 --model.n_head 6 --model.n_embd 384"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the heap of glibc was measured")
@pytest.mark.parametrize(("preset", "changes"), [("quick", ""), ("cpu", ""), ("cpu", LARGER)])
def test_the_predicted_peak_is_within_a_fifth_of_the_measured_one(preset, changes):
    settings = f"--preset shakespeare-{preset} --train.max_steps 3 --train.warmup_steps 2 --train.eval_interval 3"
    Path("verse.txt").write_text(write_verse(0, 100_000).text, encoding="utf-8")  # it is evaluated as a whole
    arguments = [*settings.split(), *changes.split(), *"--data verse.txt --device cpu".split()]
    python = [sys.executable, "-c"]
    predicted = subprocess.run([*python, PLAN, *arguments], check=True, capture_output=True, text=True).stdout
    command = [sys.executable, "-m", "minigpt", "train", *arguments]
    measured = subprocess.run([*python, MEASURE, *command], check=True, capture_output=True, text=True).stdout
    assert int(predicted) == pytest.approx(int(measured), rel=0.2)


def test_the_vocabulary_is_the_texts(monkeypatch, capsys):
    monkeypatch.setattr(plan, "rehearse", lambda *arguments: None)
    monkeypatch.setattr(plan, "measure_time", lambda *arguments: {"training": 1.0})
    Path("a.txt").write_text("abcdefg" * 300, encoding="utf-8")
    shape = ["--model.n_layer", "1", "--model.n_head", "1", "--model.n_embd", "6", "--model.block_size", "7"]
    assert main.answer(["train", "--plan", "--data", "a.txt", *shape, "--device", "cpu", "--json"]) == 0
    expected = GPT(GPTConfig(vocab_size=7, block_size=7, n_layer=1, n_head=1, n_embd=6, bias=False))
    assert json.loads(capsys.readouterr().out)["parameters"] == expected.num_parameters()


def no_temporary_folder(monkeypatch):
    def nowhere():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/nowhere']")  # as Python does

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", nowhere)
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_plan_needs_no_temporary_folder(monkeypatch, capsys):
    monkeypatch.setattr(plan, "measure_time", lambda *arguments: {"training": 1.0})
    Path("a.txt").write_text("abcdefg" * 300, encoding="utf-8")
    no_temporary_folder(monkeypatch)
    shape = ["--model.n_layer", "1", "--model.n_head", "1", "--model.n_embd", "6", "--model.block_size", "7"]
    assert main.answer(["train", "--plan", "--data", "a.txt", *shape, "--device", "cpu"]) == 0
    assert "together" in capsys.readouterr().out


def test_what_needs_a_temporary_folder_says_how_to_name_one(monkeypatch, capsys):
    no_temporary_folder(monkeypatch)
    assert main.answer(["verify-resume", "--data", "verse"]) == 2
    what, how = capsys.readouterr().err.splitlines()[-2:]
    assert what == "error: No usable temporary directory found in ['/nowhere']"
    assert "TMPDIR" in how


def test_documents_and_a_model_to_start_from_are_planned(monkeypatch, capsys):
    """Rows are as long as the longest document, epochs become steps, and the base is evaluated too."""
    monkeypatch.setattr(plan, "rehearse", lambda *arguments: None)
    monkeypatch.setattr(plan, "train_a_little", lambda *arguments: ([], [90.0, 2.0]))
    texts = [letter * (3 + number % 15) for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")]
    Path("a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    tokenizer = CharTokenizer.from_text("\n" + "".join(texts))
    shape = GPTConfig(tokenizer.vocab_size + 5, 31, 2, 3, 15)  # a padded vocabulary
    save_run(GPT(shape), tokenizer, Path("base"))
    flags = ["--data", "a.jsonl", "--init-from", "base", "--documents.train_size", "23", "--documents.val_size", "3"]
    steps = ["--documents.max_length", "13", "--train.epochs", "5", "--train.batch_size", "4", "--device", "cpu"]
    assert main.answer(["train", "--plan", *flags, *steps, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == GPT(shape).num_parameters()
    assert found["seconds"]["training"] == 5 * 6 * 2.0
    (training,) = [phase for name, phase in found["memory"]["phases"].items() if name == "training"]
    assert training["parts"]["logits"] == 4 * 4 * 12 * shape.vocab_size  # bytes, rows, inputs: 12 before the 13th
    evaluating = found["memory"]["phases"]["evaluating"]["parts"]["activations and logits"]
    assert 3 * 3 * 4 * shape.vocab_size < evaluating < 20 * 3 * 12 * 4 * shape.vocab_size


def test_a_plan_is_of_the_data_that_the_settings_name(monkeypatch, capsys):
    """As a run is: the settings of one, and another text."""
    monkeypatch.setattr(plan, "rehearse", lambda *arguments: None)
    monkeypatch.setattr(plan, "measure_time", lambda *arguments: {"training": 1.0})
    Path("a.txt").write_text("abcdefg" * 300, encoding="utf-8")
    Path("c.yaml").write_text("data: {checksum: " + 64 * "a" + "}\n", encoding="utf-8")
    arguments = ["train", "--data", "a.txt", "--config", "c.yaml", "--model.block_size", "7", "--device", "cpu"]
    for more in (["--plan"], []):
        assert main.answer([*arguments, *more]) == 2
        assert "a.txt do not have the data.checksum of the settings" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--train.lora_rank", "2"], ["--train.freeze", "h.[1-9].*"]])
def test_adapters_and_frozen_weights_are_planned(capsys, flags):
    """With steps of such a run, which were seen to be taken; the smallest model has no such names, and is rehearsed."""
    texts = "abcdefg\n" * 300
    Path("a.txt").write_text(texts, encoding="utf-8")
    tokenizer = CharTokenizer.from_text(texts)
    save_run(GPT(GPTConfig(tokenizer.vocab_size, 31, 2, 3, 15)), tokenizer, Path("base"))
    few = ["--train.max_steps", "2", "--train.warmup_steps", "1", "--train.batch_size", "2", "--device", "cpu"]
    assert main.answer(["train", "--plan", "--data", "a.txt", "--init-from", "base", *flags, *few]) == 0
    out, err = capsys.readouterr()
    assert "together" in out
    assert "activations are counted as if all weights were trained" in err


def test_a_plan_asks_the_teachers_too(capsys, monkeypatch):
    """They are seen to fit, named, and their time counts."""
    texts = "abcdefg\n" * 300
    Path("a.txt").write_text(texts, encoding="utf-8")
    tokenizer = CharTokenizer.from_text(texts)
    save_run(GPT(GPTConfig(tokenizer.vocab_size, 31, 2, 3, 15)), tokenizer, Path("wise"))
    few = ["--train.max_steps", "2", "--train.warmup_steps", "1", "--train.batch_size", "2", "--device", "cpu"]
    arguments = ["train", "--plan", "--data", "a.txt", *few, "--train.teachers", "wise", "--model.block_size"]
    assert main.answer([*arguments, "29"]) == 0
    assert "\nlearning from wise\n" in capsys.readouterr().out
    monkeypatch.setattr(plan, "rehearse", lambda *arguments: None)
    monkeypatch.setattr(plan, "train_a_little", lambda *arguments: ([], [90.0, 2.0]))
    monkeypatch.setattr(plan, "_seconds_of_teachers", lambda *arguments: 5.0)
    assert main.answer([*arguments, "29", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["teachers"], found["seconds"]["training"]) == (["wise"], 2 * (2.0 + 5.0))
    assert main.answer([*arguments, "37"]) == 2
    assert "the teacher wise reads 31 tokens at once, and this run's windows have 37" in capsys.readouterr().err
