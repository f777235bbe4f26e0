"""Fine-tuning: whose weights move, by how much, and on which targets."""

import json
import math
import re
import shutil
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file

from minigpt.cli import main
from minigpt.cli.import_model import _fitting
from minigpt.cli.parser import SettingsParser
from minigpt.cli.run_settings import Train, shaped_as_base
from minigpt.cli.trainings import epoch_table
from minigpt.config import (
    DataConfig,
    DocumentsConfig,
    GPTConfig,
    RunConfig,
    TrainConfig,
    preset,
    read_yaml,
    updated,
    write_yaml,
)
from minigpt.data.corpora import Corpus
from minigpt.data.documents import Document, Documents, data_checksum, with_keywords
from minigpt.data.loaders import document_loader
from minigpt.data.sources import load_data
from minigpt.data.tokens import IGNORED
from minigpt.data.verse import write_verse
from minigpt.errors import CheckpointError, ConfigError, DownloadError, MissingFileError, TextNote
from minigpt.formats.gpt2_names import transformers_views
from minigpt.formats.hub import fetch_model
from minigpt.formats.lora_files import base_checksum
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import RunDirectory, read_config, save_run
from minigpt.formats.weights import save_weights
from minigpt.model import GPT
from minigpt.system.figures import save_figure
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, note_special
from minigpt.training import loop, run
from minigpt.training.curves import perplexity_curve
from minigpt.training.log import epochs_of, read_records
from minigpt.training.loop import train
from minigpt.training.run import in_steps, new_tokenizer, note_learned
from minigpt.training.verify import compare

TEXTS = [f"{'abcdefg'[i % 7] * (1 + i % 5)} {i}" for i in range(31)]
TOKENIZER = CharTokenizer.from_text("\n" + "".join(TEXTS))  # 19 characters
SHAPE = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=11, n_layer=2, n_head=3, n_embd=15)
DOCS = Path(__file__).parents[2] / "docs"
PRESET = "finetune-documents"
DOCUMENTS = Documents([Document(text) for text in TEXTS], "31 texts", 0, 0)

pytestmark = pytest.mark.usefixtures("no_plots")


def quiet(line: str) -> None:
    pass


@pytest.fixture
def base(tmp_path):
    """A run directory of a random model, whose weights are large enough to matter."""
    torch.manual_seed(3)
    model = GPT(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_run(model, TOKENIZER, tmp_path / "base")
    return tmp_path / "base"


def config(base, **sections) -> RunConfig:
    settings = {
        "init_from": str(base), "device": "cpu", "dtype": "float32", "model": {"block_size": 11, "dropout": 0.0},
        "documents": {"val_size": 5},
        "train": {"batch_size": 4, "epochs": 2, "warmup_ratio": 0.1, "learning_rate": 0.01},
    }  # fmt: skip
    first = updated(RunConfig(model=SHAPE), settings)
    return updated(first, sections)


def test_one_step_is_the_reference_librarys_step(base, tmp_path):
    """The same weights, the same documents, torch's own AdamW and clipping: the same weights afterwards."""
    settings = config(base, train={"epochs": 0.0, "max_steps": 1, "weight_decay": 0.3, "warmup_ratio": 0.0,
                                   "warmup_steps": 0, "accumulation_steps": 2})  # fmt: skip
    model, _ = load_model(base)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=TOKENIZER.vocab_size, n_positions=11, n_embd=15, n_layer=2, n_head=3, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    ).train()  # fmt: skip
    theirs.load_state_dict({**theirs.state_dict(), **transformers_views(model)})
    theirs.tie_weights()
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    rest = [p for p in theirs.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.99)
    )
    loader = document_loader(DOCUMENTS, "texts", settings, TOKENIZER)
    losses, count = 0.0, 0
    for first in (0, 4):
        batch = loader.batch(first, 4)
        logits = theirs(batch.inputs).logits
        losses = losses + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        count += int((batch.targets != IGNORED).sum())
    (losses / count).backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    optimizer.step()

    train(settings, DOCUMENTS, tmp_path / "run", quiet)
    ours, _ = load_model(tmp_path / "run" / "last")
    for name, view in transformers_views(ours).items():
        difference = (view - theirs.state_dict()[name]).abs()
        if name.endswith("c_attn.bias"):
            # A bias of the keys shifts all scores of a query alike: its gradient is 0 but for rounding, which AdamW's
            # first step blows up to the size of the learning rate.
            difference[15:30] = 0
        assert difference.max() < 1e-5, name
    (record,) = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if "train_loss" in r]
    assert record["train_loss"] == pytest.approx((losses / count).item(), abs=1e-5)
    assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert record["tokens"] == count


def test_epochs_decide_steps_evaluations_and_saves(base, tmp_path):
    result = train(config(base), DOCUMENTS, tmp_path / "run", quiet)
    assert result.step == 14  # 26 documents in batches of 4: 7 steps an epoch
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [(r["step"], r["epoch"]) for r in records if "val_loss" in r] == [(0, 0.0), (7, 1.0), (14, 2.0)]
    assert [round(r["lr"], 9) for r in records if r["step"] == 14 and "lr" in r] == [
        round(1e-4 + 0.5 * (1 + math.cos(math.pi * 11 / 12)) * (0.01 - 1e-4), 9)  # 2 steps of warm-up, then 12
    ]
    assert [(epoch, val) for epoch, _, val in epochs_of(records)] == [
        (r["epoch"], r["val_loss"]) for r in records if "val_loss" in r
    ]


def test_the_base_is_measured_before_the_first_step(base, tmp_path, capsys):
    """By a loop over held-out documents in float64; it is recorded, and its weights are not kept as a result."""
    settings = config(base, train={"epochs": 1, "learning_rate": 3.0, "warmup_ratio": 0.0})  # which does harm
    result = train(settings, DOCUMENTS, tmp_path / "run", quiet)
    model = load_model(base)[0].double()
    held_out = document_loader(DOCUMENTS, "texts", settings, TOKENIZER).val
    losses = []
    for inputs, targets in map(held_out.example, range(len(held_out))):
        log_probs = model(torch.from_numpy(inputs.astype("int64"))[None])[0].log_softmax(-1)  # (T, V)
        losses += [-log_probs[place, target].item() for place, target in enumerate(targets) if target != IGNORED]
    (_, training, before), (_, _, after) = epochs_of(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert before == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert math.isnan(training)
    assert after == result.val_loss == result.best_val_loss > before
    _, zero, one, _ = epoch_table(read_records(tmp_path / "run" / "metrics.jsonl"))[1:]
    assert zero.split() == ["0", "-", f"{before:.4f}", f"{math.exp(before):.2f}"]
    assert one.split()[0] == "1"


def test_the_perplexity_of_the_base_is_drawn(tmp_path):
    figure = perplexity_curve([(0, math.nan, math.log(5)), (1, math.log(3), math.log(2))])
    training, validation = (line.get_xydata().tolist() for line in figure.axes[0].lines)
    assert validation == [[0, pytest.approx(5)], [1, pytest.approx(2)]]
    assert training[1] == [1, pytest.approx(3)]
    save_figure(figure, tmp_path / "perplexity.png")  # without a warning of what is not a number


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"lora_rank": 3, "lora_dropout": 0.1, "gradient_checkpointing": True}},
        {"documents": {"batching": "packed-masked"}, "model": {"dropout": 0.1}},
        {"train": {"gradient_checkpointing": True, "freeze": "wte.*,h.0.*"}},
    ],
)
def test_fine_tuning_resumes_exactly(base, tmp_path, monkeypatch, sections):
    settings = config(base, **sections)
    train(settings, DOCUMENTS, tmp_path / "straight", quiet)
    real = loop.gradients

    def dies(run, taken, first, processes):
        if first == 3 * run.rows_per_step:
            raise KeyboardInterrupt
        return real(run, taken, first, processes)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", dies)
        with pytest.raises(KeyboardInterrupt):
            train(settings, DOCUMENTS, tmp_path / "broken", quiet)
    # With the settings as the command line reads them: those of the run directory.
    train(read_config(RunDirectory(tmp_path / "broken")), DOCUMENTS, tmp_path / "broken", quiet, resume=True)
    straight, broken = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "broken")
    assert epochs_of(read_records(straight.metrics))[1:] == epochs_of(read_records(broken.metrics))[1:]
    if "lora_rank" in sections.get("train", {}):
        assert load_file(straight.last_weights).keys() == load_file(broken.last_weights).keys()
        for name, values in load_file(straight.last_weights).items():
            assert torch.equal(values, load_file(broken.last_weights)[name])
    else:
        assert all(c.equal for c in compare(straight, broken))


def test_an_adapter_is_all_that_is_trained_and_saved(base, tmp_path):
    before, _ = load_model(base)
    train(config(base, train={"lora_rank": 3}), DOCUMENTS, tmp_path / "run", quiet)
    run = RunDirectory(tmp_path / "run")
    assert not run.best_weights.exists()
    assert all(".lora_" in name for name in load_file(run.last_weights))
    assert sum(t.numel() for t in load_file(run.last_weights).values()) == 2 * 3 * (15 + 45)  # A and B of two c_attn
    after, _ = load_model(base)
    assert base_checksum(after) == base_checksum(before)
    adapted, tokenizer = load_model(run.path)
    assert tokenizer.vocab_size == TOKENIZER.vocab_size
    idx = torch.tensor([[1, 2, 3, 5, 7]])
    assert not torch.allclose(adapted(idx), before(idx), atol=1e-3)


def test_an_adapters_checkpoint_knows_its_base(base, tmp_path):
    settings = config(base, train={"lora_rank": 3, "epochs": 1})
    train(settings, DOCUMENTS, tmp_path / "run", quiet)
    model, _ = load_model(base)
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[2, 3] += 1
    (tmp_path / "base" / "model.safetensors").unlink()
    save_weights(model, tmp_path / "base" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not the one that the adapter in") as raised:
        train(updated(settings, {"train": {"epochs": 2}}), DOCUMENTS, tmp_path / "run", quiet, resume=True)
    assert "trained further has its former weights in previous/" in raised.value.how


def test_what_is_frozen_does_not_move(base, tmp_path):
    before, _ = load_model(base)
    train(config(base, train={"freeze": "wte.weight, h.0.*", "weight_decay": 0.5}), DOCUMENTS, tmp_path / "run", quiet)
    after, _ = load_model(tmp_path / "run" / "last")
    moved = {
        name
        for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert {name for name in moved if name == "wte.weight" or name.startswith("h.0.")} == set()
    assert "h.1.mlp.c_fc.weight" in moved
    with pytest.raises(ConfigError, match=r"freeze = 'h\.7\.\*' matches no parameter"):
        train(config(base, train={"freeze": "h.7.*"}), DOCUMENTS, tmp_path / "other", quiet)
    with pytest.raises(ConfigError, match="leaves nothing to train") as refused:
        train(config(base, train={"freeze": "*"}), DOCUMENTS, tmp_path / "other", quiet)
    assert refused.value.renamed({"freeze": "--freeze"})[0] == "--freeze '*' leaves nothing to train"
    assert not (tmp_path / "other").exists()


def test_gradient_checkpointing_changes_no_number(base, tmp_path):
    for name, on in (("on", True), ("off", False)):
        settings = config(base, train={"gradient_checkpointing": on}, model={"dropout": 0.1})
        train(settings, DOCUMENTS, tmp_path / name, quiet)
    on, off = (load_file(RunDirectory(tmp_path / name).last_weights) for name in ("on", "off"))
    assert all(torch.equal(on[name], off[name]) for name in off)


def test_batching_leaves_the_first_loss_alone(base, tmp_path):
    """Padded or packed with a mask, the same documents in other rows: before the first step, the same validation."""
    losses = []
    for batching in ("padded", "packed-masked"):
        settings = config(base, documents={"batching": batching}, train={"batch_size": 26, "learning_rate": 1e-9,
                          "min_learning_rate": 0.0, "epochs": 1})  # fmt: skip
        train(settings, DOCUMENTS, tmp_path / batching, quiet)
        records = read_records(tmp_path / batching / "metrics.jsonl")
        losses.append([r["train_loss"] for r in records if "train_loss" in r])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_fine_tuning_lowers_the_loss_on_held_out_documents(base, tmp_path):
    full = train(config(base, train={"epochs": 6}), DOCUMENTS, tmp_path / "full", quiet)
    lora = train(config(base, train={"epochs": 6, "lora_rank": 3, "lora_targets": "c_attn,mlp.*"}), DOCUMENTS,
                 tmp_path / "lora", quiet)  # fmt: skip
    before = {epochs_of(read_records(tmp_path / name / "metrics.jsonl"))[0][2] for name in ("full", "lora")}
    assert len(before) == 1  # an adapter begins as the base, to the bit
    assert full.best_val_loss < min(before) - 0.3
    assert lora.best_val_loss < min(before) - 0.1


def test_settings_of_the_command_line(base, tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    shared = ["train", "--init-from", str(base), "--data", str(tmp_path / "texts.jsonl"), "--preset"]
    run = [*shared, "finetune-documents", "--documents.max_length", "11", "--documents.train_size", "20"]
    small = ["--documents.val_size", "5", "--train.epochs", "1", "--device", "cpu"]
    assert main.answer([*run, *small, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "training loss   validation loss   perplexity" in printed
    for flags, words in (
        (["--model.n_layer", "5"], ["--model.n_layer 5 is not the 2 of", "leave it out"]),
        (
            ["--documents.max_length", "12"],
            ["--documents.max_length 12 does not lie between 2 and --model.block_size 11"],
        ),
        (["--documents.text_field", "body"], ["body", "text"]),
        (["--documents.train_size", "50"], ["50", "31"]),
        (["--train.lora_rank", "3", "--train.lora_targets", "lm_head"], ["matches no linear layer"]),
        (["--tokenizer", "gpt2"], ["--tokenizer gpt2 would change nothing", "brings its own"]),
    ):
        assert main.answer([*run, *small, *flags, "--out", str(tmp_path / "bad")]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        errors = said[next(i for i, line in enumerate(said) if line.startswith("error:")) :]
        assert len(errors) == 2
        assert all(word in " ".join(errors) for word in words), errors
        assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("name", "content", "flags", "words"),
    [
        ("a.jsonl", '{"text": "a 0"}\n{"text": ', [], ["a.jsonl, line 2 is not JSON"]),
        ("a.jsonl", '{"text": "a 0"}\n{"body": "b 1"}', [], ["a.jsonl, line 2 has no field 'text'", "body"]),
        ("a.csv", "title,body\na 0,b 1\n", ["--documents.text_field", "text"], ["no field 'text'", "title, body"]),
        ("a.txt", " \n\n \t\n", [], ["a.txt", "blank"]),
        (
            "a.txt", "a?!\n\nb?!\n\nc?!", ["--documents.train_size", "2"],
            ["2 of 2 documents", "'!' (U+0021), '?' (U+003F)"],
        ),
        ("a.txt", "a 0\n\nabc!\n", [], ["1 of 1 document, such as the one that begins 'abc!'", "'!' (U+0021)"]),
        (
            "a.csv", "q,a\nabcdefgabcdefg,1\n2,3\n",
            ["--documents.prompt_field", "q", "--documents.completion_field", "a", "--documents.max_length", "7"],
            ["leave", "nothing"],
        ),
    ],
)  # fmt: skip
def test_documents_that_cannot_be_learned(base, tmp_path, capsys, name, content, flags, words):
    (tmp_path / name).write_text(content, encoding="utf-8")
    fine_tune = ["train", "--preset", "finetune-documents", "--init-from", str(base), "--data", str(tmp_path / name)]
    sizes = ["--documents.max_length", "11", "--documents.train_size", "1", "--documents.val_size", "1"]
    before = sorted(tmp_path.rglob("*"))
    assert main.answer([*fine_tune, *sizes, *flags, "--device", "cpu"]) == 2
    error, advice = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert advice.startswith("       ")
    for word in words:
        assert word in error
    assert sorted(tmp_path.rglob("*")) == before


def settings_of(*arguments: str) -> RunConfig:
    """As `minigpt train` reads them."""
    return shaped_as_base(SettingsParser("train", Train).parse(list(arguments)))


@pytest.mark.parametrize(
    ("flags", "lesson"),
    [
        (["--data", "reviews.jsonl"], PRESET),
        (["--data", "reviews.json"], PRESET),
        (["--data", "reviews.txt", "--documents.separate", "on"], PRESET),
        (["--data", "reviews.CSV", "--config", "some.yaml"], PRESET),
        (["--data", "novel.txt"], "finetune-text"),
        (["--data", "reviews.jsonl", "--documents.separate", "off"], "finetune-text"),
    ],
)
def test_without_a_preset_a_trained_model_gets_the_rates_of_a_lesson(base, flags, lesson):
    """Those of the quick preset, Muon's above all, would undo what it has learned."""
    Path("some.yaml").write_text(f"init_from: {base}\ntrain: {{epochs: 7}}\n", encoding="utf-8")
    Path(flags[1]).touch()  # whether the data are there is seen at once
    start = [] if "--config" in flags else ["--init-from", str(base)]
    train, expected = settings_of(*start, *flags).train, preset(lesson).train
    assert train == (updated(expected, {"epochs": 7}) if "--config" in flags else expected)
    found = SettingsParser("train", Train).parse(["--data", "novel.txt"]).config
    assert found == updated(preset("shakespeare-quick"), {"data": {"source": "novel.txt"}})
    found = SettingsParser("train", Train).parse(["--preset", "shakespeare-cpu", *start]).config
    assert found == updated(preset("shakespeare-cpu"), {"init_from": str(base)} if start else {})


@pytest.mark.parametrize(
    ("own", "flags", "expected"), [(307, [], 256), (11, [], 11), (307, ["--model.block_size", "293"], 293)]
)
def test_the_context_is_the_presets_or_the_models(tmp_path, own, flags, expected):
    save_run(GPT(replace(SHAPE, block_size=own)), TOKENIZER, tmp_path / "base")
    start = ["--preset", "finetune-text", "--init-from", str(tmp_path / "base")]
    assert settings_of(*start, *flags).model == replace(SHAPE, block_size=expected)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train.lora_rank", "3"], "--train.lora_rank 3 adapts a trained model, and there is none to start from"),
        (["--documents.keywords", "3"], "--documents.keywords 3 is for separate documents, and a.txt is read as one"),
        (["--documents.text_field", "body"], "--documents.text_field 'body' is for separate documents"),
    ],
)
def test_a_setting_that_would_do_nothing_or_leave_nothing_is_refused(capsys, flags, words):
    Path("a.txt").write_text("a text\n" * 300, encoding="utf-8")
    quick = ["train", "--data", "a.txt", "--train.optimizer", "adamw", "--train.max_steps", "1"]
    assert main.answer([*quick, "--train.warmup_steps", "0", "--out", "run", *flags]) == 2
    error, advice = capsys.readouterr().err.splitlines()
    assert words in error
    assert "--" in advice
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flag", "kind"), [("turns 2", "dialogues"), ("learned replies", "dialogues"), ("keywords 3", "on")]
)
def test_the_kind_that_a_setting_is_for_is_advised(capsys, flag, kind):
    Path("a.txt").write_text("a text\n" * 300, encoding="utf-8")
    line = ["train", "--data", "a.txt", *f"--documents.{flag}".split()]
    assert main.answer(line) == 2
    assert f'add --documents.separate "{kind}"' in capsys.readouterr().err
    main.answer([*line, "--documents.separate", kind, "--plan"])
    assert "would change nothing" not in capsys.readouterr().err


def test_a_file_that_epochs_overrule_is_told(base, capsys):
    Path("mine.yaml").write_text("train:\n  max_steps: 307\n  batch_size: 2\n")
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    lesson = ["train", "--preset", PRESET, "--init-from", str(base), "--data", "a.txt", "--config", "mine.yaml"]
    main.answer([*lesson, "--documents.max_length", "11", "--plan"])
    assert "note: epochs = 3 decides max_steps, whatever --config says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train.max_steps", "307"], "--train.max_steps 307 would change nothing: --train.epochs 3 decides it"),
        (["--train.eval_interval=1"], "--train.eval_interval 1 would change nothing: --train.epochs 3 decides it"),
        (["--train.warmup_steps", "2"], "--train.warmup_steps 2 would change nothing: --train.epochs 3 decides it"),
    ],
)
def test_a_flag_that_epochs_overrule_is_refused(base, capsys, flags, words):
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    lesson = ["train", "--preset", PRESET, "--init-from", str(base), "--data", "a.txt", "--out", "run"]
    sizes = ["--documents.max_length", "11", "--documents.train_size", "7", "--documents.val_size", "5"]
    assert main.answer([*lesson, *sizes, *flags]) == 2
    assert words in capsys.readouterr().err
    assert not Path("run").exists()


def test_an_adapter_for_another_base_is_refused(base, tmp_path, capsys):
    train(config(base, train={"lora_rank": 3, "epochs": 1}), DOCUMENTS, tmp_path / "run", quiet)
    save_run(GPT(SHAPE), TOKENIZER, tmp_path / "other")
    adapted = ["generate", "--model", str(tmp_path / "other"), "--adapter", str(tmp_path / "run" / "adapter")]
    assert main.answer([*adapted, "--prompt", "a"]) == 2
    error, advice = capsys.readouterr().err.splitlines()
    assert "adapts another base" in error
    assert "has its former weights in previous/" in advice
    assert str(base) in advice


def test_a_run_with_an_adapter_is_found_from_any_folder_and_says_what_it_lacks(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(config("base", train={"lora_rank": 3, "epochs": 1}), DOCUMENTS, Path("run"), quiet)
    here, _ = load_model("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there, _ = load_model("../run")
    idx = torch.tensor([[1, 2, 3, 5, 7]])
    assert torch.equal(here(idx), there(idx))
    with pytest.raises(CheckpointError, match=r"run/last belongs to a run that trains an adapter.*\n.*--resume"):
        load_model("../run/last")
    write = ["generate", "--model", str(base), "--prompt", "a", "--adapter", "../run"]
    assert main.answer(write) == 2
    assert "run is a run, and no adapter\n       name the adapter in it: ../run/adapter" in capsys.readouterr().err
    (tmp_path / "run" / "adapter").rename(tmp_path / "moved")
    with pytest.raises(MissingFileError, match=r"has no adapter: its evaluations.*\n.*--resume"):
        load_model("../run")
    (tmp_path / "moved").rename(tmp_path / "run" / "adapter")
    base.rename(tmp_path / "other")
    with pytest.raises(MissingFileError, match=f"adapts {base}, which is not there any more\n.*--adapter"):
        load_model("../run")
    moved = config(tmp_path / "other", train={"lora_rank": 3, "epochs": 1})
    train(moved, DOCUMENTS, Path("../run"), quiet, resume=True)  # nothing is left to do, except to note the new place
    assert torch.equal(load_model("../run")[0](idx), here(idx))


def test_a_run_is_called_after_the_preset_that_it_has(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpus = Corpus("shakespeare", "\n".join(TEXTS) * 5, "made up for tests")
    monkeypatch.setattr("minigpt.data.sources.load_corpus", lambda source: corpus)
    begin = ["train", "--init-from", str(base), "--data", "shakespeare", "--device", "cpu", "--json"]
    assert main.answer([*begin, "--train.max_steps", "1", "--train.warmup_steps", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "checkpoints/finetune-text"


def test_an_adapters_scale_stays_for_a_runs_whole_life(base, tmp_path):
    settings = config(base, train={"lora_rank": 3, "epochs": 1})
    train(settings, DOCUMENTS, tmp_path / "run", quiet)
    with pytest.raises(CheckpointError, match=r"train\.lora_alpha"):
        train(updated(settings, {"train": {"lora_alpha": 97.0}}), DOCUMENTS, tmp_path / "run", quiet, resume=True)


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1e-9, 50, "0"), (1e9, 10**13, "156,250,000,000,000,000,000")])
def test_epochs_without_a_step_or_an_end_are_called_epochs(epochs, rows, steps):
    """Whoever gives --train.epochs has not given the number of steps that follows from it."""
    with pytest.raises(ConfigError) as raised:
        in_steps(TrainConfig(epochs=epochs), rows)
    assert raised.value.what == f"epochs = {epochs} of {rows:,} rows is {steps} steps of 64"
    assert raised.value.how.startswith("choose epochs")


@pytest.mark.parametrize(
    ("rows", "accumulation", "epochs", "steps", "interval"),
    [(28, 1, 2.0, 14, 7), (180, 32, 3.0, 6, 2), (3008, 2, 3.0, 1128, 376), (100, 2, 0.5, 7, 13)],
)
def test_epochs_in_steps_by_hand(rows, accumulation, epochs, steps, interval):
    """The last step of an epoch may be smaller: 180 rows are a step of 128 and one of 52."""
    t = TrainConfig(epochs=epochs, batch_size=4, accumulation_steps=accumulation)
    found = in_steps(t, rows)
    assert (found.max_steps, found.eval_interval, found.save_interval) == (steps, interval, interval)


def test_a_warm_up_that_is_a_share_is_not_compared_with_the_steps():
    assert in_steps(TrainConfig(max_steps=20, warmup_ratio=0.1), 1).warmup_steps == 2


def test_held_out_documents_are_evaluated_as_in_training(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    lesson = ["train", "--init-from", str(base), "--data", "a.jsonl", "--out", "run", "--device", "cpu", "--json"]
    sizes = ["--documents.max_length", "11", "--documents.train_size", "20", "--documents.val_size", "5"]
    assert main.answer([*lesson, *sizes, "--train.epochs", "1", "--train.learning_rate", "0.01"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main.answer(["eval", "--model", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(trained["best_val_loss"], abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(trained["best_val_loss"]), rel=1e-5)
    for flags in (["--split", "train"], ["--stride", "5"]):
        assert main.answer(["eval", "--model", "run", *flags]) == 2
        assert "holds separate documents" in capsys.readouterr().err


def test_the_yaml_file_is_the_preset(base, tmp_path):
    assert updated(RunConfig(), read_yaml(DOCS / "fine-tuning.yaml")) == preset("finetune-documents")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    data = ["--init-from", str(base), "--data", str(tmp_path / "texts.txt"), "--documents.max_length", "11"]
    few = ["--documents.train_size", "13", "--documents.val_size", "5", "--device", "cpu"]
    for name, where in (("yaml", ["--config", str(DOCS / "fine-tuning.yaml")]), ("preset", ["--preset", PRESET])):
        assert main.answer(["train", *where, *data, *few, "--out", str(tmp_path / name)]) == 0
    assert all(c.equal for c in compare(RunDirectory(tmp_path / "yaml"), RunDirectory(tmp_path / "preset")))


def test_the_page(accept):
    page = (DOCS / "fine-tuning.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?:^|`)(minigpt [a-z][^`\n>]*)", page.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= 13
    Path("docs").mkdir()
    shutil.copy(DOCS / "fine-tuning.yaml", "docs")
    write_yaml(preset(PRESET), Path("checkpoints/keywords/config.yaml"), versions={})  # which the page leaves
    for command in commands:
        accept(command)
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert shown == (DOCS / "fine-tuning.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", (DOCS / "fine-tuning.md").read_text(encoding="utf-8"), re.DOTALL)
)
def test_the_python_of_the_page_runs(code, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    letters = CharTokenizer.from_text("keywords: abcdefghijklmnopqrstuvwxyz,\n")
    model = GPT(GPTConfig(letters.vocab_size, block_size=256, n_layer=1, n_head=1, n_embd=2))
    for name in ("base", "full", "keywords"):
        save_run(model, letters, f"checkpoints/{name}")
    reviews = [" ".join("abcdefghijklmnopqr"[int(digit)] * 2 for digit in str(i)) for i in range(5300)]
    Path("reviews.txt").write_text("\n".join(reviews), encoding="utf-8")
    Path("openings.txt").write_text("a\nbcd\nef\n", encoding="utf-8")
    exec(compile(code, "fine-tuning.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.network
def test_the_well_known_lesson(tmp_path, shared_cache):
    """GPT-2 itself and real reviews, with every number of the lesson: held-out reviews become likelier."""
    reviews = shared_cache / "movie-reviews" / "pos.txt"
    if not reviews.is_file():
        pytest.skip("needs MINIGPT_CACHE to name a folder that holds movie-reviews/{pos,neg}.txt")
    try:
        fetch_model("gpt2")
    except DownloadError as error:
        pytest.skip(f"needs GPT-2's weights, in the hub's cache or from the network: {error.what}")
    lesson = ["train", "--preset", PRESET, "--data", str(reviews), "--out", str(tmp_path / "run")]
    assert main.answer(lesson) == 0
    (start, _, before), *epochs = epochs_of(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert (start, len(epochs)) == (0, 3)
    assert all(validation < before for _, _, validation in epochs)


def answered(capsys, *arguments):
    assert main.answer([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_other_documents_are_all_measured(base, tmp_path, capsys):
    """For a run on documents, and for a model of another origin."""
    lines = [json.dumps({"text": text}) for text in TEXTS]
    Path("a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    Path("b.csv").write_text("text,label\n" + "\n".join(f"{text},1" for text in TEXTS[:7]), encoding="utf-8")
    lesson = ["train", "--init-from", str(base), "--data", "a.jsonl", "--out", "run", "--device", "cpu"]
    sizes = ["--documents.max_length", "11", "--documents.train_size", "20", "--documents.val_size", "5"]
    answered(capsys, *lesson, *sizes, "--train.epochs", "1")
    for name in ("run", str(base)):
        model = load_model(name)[0].double()
        losses = []
        for text in TEXTS[:7]:
            ids = torch.tensor(TOKENIZER.encode(text + "\n"))
            log_probs = model(ids[None, :-1])[0].log_softmax(-1)
            losses += [-row[target].item() for row, target in zip(log_probs, ids[1:], strict=True)]
        found = answered(capsys, "eval", "--model", name, "--data", "b.csv")
        assert found["tokens"] == len(losses)
        assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("kind", ["text", "documents"])
@pytest.mark.parametrize("out", [None, "sub/run"])
def test_a_run_that_lies_in_what_it_learns_from_can_go_on(base, tmp_path, monkeypatch, capsys, kind, out):
    """What it writes there is no part of the text: neither for itself nor for the next one."""
    home = tmp_path / "My Texts"
    home.mkdir()
    for number, text in enumerate(TEXTS * 3 if kind == "text" else TEXTS):
        (home / f"{number}.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(home)
    separate = ["--documents.separate", "off" if kind == "text" else "on"]
    start = ["train", "--init-from", str(base), "--preset", "finetune-text" if kind == "text" else PRESET]
    sizes = ["--documents.train_size", "0", "--documents.val_size", "0", "--documents.max_length", "11"]
    steps = ["--train.warmup_steps", "1"] if kind == "text" else sizes
    more = ["--train.max_steps", "2"] if kind == "text" else ["--train.epochs", "1"]
    start += ["--data", ".", *separate, *steps, "--device", "cpu"]
    trained = answered(capsys, *start, *more, *(["--out", out] if out else []))
    run = Path(out or "checkpoints/my-texts")
    assert (run / "samples.txt").stat().st_size
    more[-1] = "4" if kind == "text" else "2"
    assert answered(capsys, "train", "--resume", str(run), *more)["step"] == 2 * trained["step"]
    second = answered(capsys, *start, *more, "--out", "second")
    assert read_yaml(Path("second/config.yaml"))["data"] == read_yaml(run / "config.yaml")["data"]
    assert second["step"] == 2 * trained["step"]


def test_documents_that_validated_and_have_moved_can_be_named(base, tmp_path, monkeypatch, capsys):
    """Else the run's training documents would be measured as if they were others, without a word."""
    for name, part in {"a": TEXTS[:23], "v": TEXTS[23:], "b": TEXTS[:7]}.items():
        Path(f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in part), encoding="utf-8")
    sizes = ["--documents.train_size", "0", "--documents.val_size", "0", "--documents.max_length", "11"]
    start = ["train", "--init-from", str(base), "--preset", PRESET, "--device", "cpu", "--out", "run"]
    answered(capsys, *start, "--data", "a.jsonl", "--val-data", "v.jsonl", *sizes, "--train.epochs", "1")
    evaluate = ["eval", "--model", "run"]
    expected = answered(capsys, *evaluate)
    Path("v.jsonl").rename("w.jsonl")
    assert answered(capsys, *evaluate, "--val-data", "w.jsonl") == expected
    assert answered(capsys, *evaluate, "--data", "a.jsonl", "--val-data", "w.jsonl") == expected
    assert main.answer(evaluate) == 2
    assert "name where it lies now: --data, or --val-data" in capsys.readouterr().err
    for data in ("a.jsonl", "b.jsonl"):
        assert main.answer([*evaluate, "--data", data]) == 0
        err = " ".join(capsys.readouterr().err.split())
        assert (
            f"{Path('v.jsonl').absolute()}, this run's validation data, does not exist any more: all of {data} is "
            in err
        )
        assert "--val-data names its new place" in err
    assert main.answer(["eval", "--model", str(base), "--data", "b.jsonl", "--val-data", "w.jsonl"]) == 2
    assert "--val-data w.jsonl is for" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["text", "documents", "val_data", "text val_data"])
def test_what_a_file_is_does_not_depend_on_how_its_place_is_spelled(base, tmp_path, monkeypatch, capsys, kind):
    """Trained in one folder; measured and resumed from another, after the file has moved and got another name."""
    is_text = kind.startswith("text")
    suffix = "txt" if is_text else "jsonl"
    content = "".join(TEXTS * 3) if is_text else "\n".join(json.dumps({"text": text}) for text in TEXTS)
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir(), away.mkdir()
    data, other = home / f"a.{suffix}", home / f"other.{suffix}"
    data.write_text(content, encoding="utf-8")
    other.write_text(content + ("a" if is_text else '\n{"text": "g 7"}'), encoding="utf-8")
    (home / "val.jsonl").write_text('{"text": "abc"}\n{"text": "cab"}\n{"text": "a 1"}', encoding="utf-8")
    (home / "val.txt").write_text("".join(reversed(TEXTS)), encoding="utf-8")
    flags = ["--val-data", f"val.{suffix}"] * kind.endswith("val_data")
    preset_name = "finetune-text" if is_text else PRESET
    steps = ["--train.max_steps", "2"] if is_text else ["--train.epochs", "1"]
    warm = ["--train.warmup_steps", "1"] * (is_text)
    few = ["--documents.train_size", "0", "--documents.val_size", "0", "--documents.max_length", "11"] * (not is_text)
    monkeypatch.chdir(home)
    start = ["train", "--init-from", str(base), "--preset", preset_name, "--device", "cpu", "--out", "../run"]
    trained = answered(capsys, *start, "--data", f"a.{suffix}", *flags, *steps, *warm, *few)
    run = str(tmp_path / "run")
    expected = answered(capsys, "eval", "--model", run)
    assert expected["loss"] == pytest.approx(trained["val_loss"], abs=1e-4)
    for spelled in (f"a.{suffix}", f"./a.{suffix}", f"../home/a.{suffix}", str(data)):
        assert answered(capsys, "eval", "--model", run, "--data", spelled) == expected
    assert answered(capsys, "eval", "--model", run, "--data", str(other))["tokens"] > expected["tokens"]
    monkeypatch.chdir(away)
    assert answered(capsys, "eval", "--model", run) == expected
    more = ["--train.max_steps", "4"] if is_text else ["--train.epochs", "2"]
    assert answered(capsys, "train", "--resume", run, *more)["step"] == 2 * trained["step"]
    moved = away / f"b.{suffix}"
    data.rename(moved)
    more = ["--train.max_steps", "6"] if is_text else ["--train.epochs", "3"]
    assert main.answer(["train", "--resume", run, *more]) == 2
    assert "name where it lies now: --data" in capsys.readouterr().err
    assert main.answer(["train", "--resume", run, *more, "--data", str(other)]) == 2
    assert f"does not hold what {run}/last was trained on" in capsys.readouterr().err
    assert answered(capsys, "train", "--resume", run, *more, "--data", f"b.{suffix}")["step"] == 3 * trained["step"]
    assert read_yaml(tmp_path / "run" / "config.yaml")["data"]["source"] == str(moved)
    assert answered(capsys, "eval", "--model", run, "--data", str(moved))["tokens"] == expected["tokens"]
    moved.write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
    assert main.answer(["eval", "--model", run]) == 2
    assert "has changed since" in capsys.readouterr().err


def test_an_adapters_base_may_move(base, tmp_path):
    settings = config(base, train={"lora_rank": 3, "epochs": 1})
    train(settings, DOCUMENTS, tmp_path / "run", quiet)
    moved = tmp_path / "moved"
    base.rename(moved)
    longer = updated(settings, {"init_from": str(moved), "train": {"epochs": 2}})
    assert train(longer, DOCUMENTS, tmp_path / "run", quiet, resume=True).step == 14
    assert read_config(RunDirectory(tmp_path / "run")).init_from == str(moved)


def test_a_base_without_a_line_end_says_so(tmp_path):
    tokenizer = CharTokenizer.from_text("".join(TEXTS))
    save_run(GPT(replace(SHAPE, vocab_size=tokenizer.vocab_size)), tokenizer, tmp_path / "plain")
    with pytest.raises(ConfigError, match="nothing can end a document: the tokenizer's 18 tokens are neither EOS nor"):
        train(config(tmp_path / "plain"), DOCUMENTS, tmp_path / "run", quiet)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train.lora_alpha", "3"], "--train.lora_alpha 3.0 would change nothing: it is an adapter's"),
        (["--train.lora_targets", "mlp"], "--train.lora_targets mlp would change nothing"),
        (["--train.lora_dropout", "0.1"], "--train.lora_dropout 0.1 would change nothing"),
        (["--train.optimizer", "adamw", "--train.muon_learning_rate", "0.3"], "--train.muon_learning_rate 0.3 would"),
        (
            ["--train.optimizer", "adamw", "--train.muon_momentum", "0.3"],
            "--train.muon_momentum 0.3 would change nothing",
        ),
        (["--train.warmup_ratio", "0.5", "--train.warmup_steps", "1"], "--train.warmup_steps 1 would change nothing"),
        (["--documents.separate", "off", "--documents.max_length", "7"], "--documents.max_length 7 would change"),
        (["--val-data", "b.txt", "--val-fraction", "0.3"], "--val-fraction 0.3 would change nothing: --val-data names"),
    ],
)
def test_a_flag_that_another_makes_useless_is_refused(flags, words, capsys):
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    assert main.answer(["train", "--data", "a.txt", "--model.block_size", "7", "--plan", *flags]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_share_of_a_text_holds_out_no_documents(base, capsys):
    Path("a.jsonl").write_text('{"text": "a 0"}', encoding="utf-8")
    assert main.answer(["train", "--init-from", str(base), "--data", "a.jsonl", "--val-fraction", "0.3"]) == 2
    assert "--val-fraction 0.3 would change nothing" in capsys.readouterr().err


def test_a_new_model_knows_the_letters_of_keywords():
    """Those of "keywords: a, b", and the lower case of the documents' own, which none of them need hold."""
    shouting = Documents([Document("ABBA WXW"), Document("CDC ABBA")], "2 texts", 0, 0)
    tokenizer = new_tokenizer(RunConfig(documents=DocumentsConfig(keywords=2)), shouting)
    for document in with_keywords(shouting.items, 2, shouting.items):
        assert tokenizer.decode(tokenizer.encode(document.prompt + document.text)) == document.prompt + document.text
    assert "k" not in new_tokenizer(RunConfig(), shouting).characters


def test_documents_are_looked_through_one_by_one():
    """Never joined into one text, which would take as much memory again as all of them."""
    documents = Documents([Document("AB " * 100_003, "c") for _ in range(11)], "11 texts", 0, 0)
    tracemalloc.start()
    try:
        tokenizer = new_tokenizer(RunConfig(documents=DocumentsConfig(keywords=2)), documents)
        note_special(GPT2Tokenizer(["t h"]), documents.texts)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {*"ABabc \n"} <= {*tokenizer.characters}
    assert most < sum(map(len, documents.texts)) / 2  # all of it in lower case, one after another, is a text at a time


def test_a_text_of_its_own_validates(base, tmp_path, capsys):
    """Learned is the whole of the one, and measured the whole of the other, as `eval` measures it by itself."""
    Path("a.txt").write_text("".join(TEXTS * 3), encoding="utf-8")
    Path("v.txt").write_text("".join(reversed(TEXTS)), encoding="utf-8")
    start = [
        "train",
        "--init-from",
        str(base),
        "--preset",
        "finetune-text",
        "--device",
        "cpu",
        "--train.max_steps",
        "2",
    ]
    start += ["--train.warmup_steps", "1", "--data", "a.txt"]
    answered(capsys, *start, "--val-data", "v.txt", "--out", "run")
    trained = answered(capsys, "eval", "--model", "run")
    assert trained == answered(capsys, "eval", "--model", "run", "--data", "v.txt")
    assert answered(capsys, "eval", "--model", "run", "--split", "train") == answered(
        capsys, "eval", "--model", "run", "--data", "a.txt", "--split", "train"
    )
    sizes = [len("".join(TEXTS * 3)), len("".join(TEXTS))]
    assert answered(capsys, "eval", "--model", "run", "--split", "train")["tokens"] == sizes[0] - 1
    assert trained["tokens"] == sizes[1] - 1
    assert main.answer([*start, "--val-data", "v.txt", "--plan"]) == 0
    capsys.readouterr()
    assert main.answer(["eval", "--model", "run", "--data", "v.txt", "--val-data", "a.txt"]) == 2
    assert "are not what run was trained on" in capsys.readouterr().err
    longer = ["train", "--resume", "run", "--train.max_steps", "4"]
    Path("w.txt").write_text(Path("v.txt").read_text(encoding="utf-8") + "a", encoding="utf-8")
    assert main.answer([*longer, "--val-data", "w.txt"]) == 2
    assert "w.txt does not hold what run/last was trained on" in capsys.readouterr().err
    Path("v.txt").rename("moved.txt")
    assert answered(capsys, *longer, "--val-data", "moved.txt")["step"] == 4
    assert answered(capsys, "eval", "--model", "run")["tokens"] == trained["tokens"]


def test_an_import_with_a_shorter_context_can_still_be_measured(base, capsys):
    """Its documents were cut at a number of tokens that the import has no positions for."""
    lines = [json.dumps({"text": text}) for text in TEXTS]
    Path("a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    start = ["train", "--init-from", str(base), "--preset", PRESET, "--device", "cpu", "--data", "a.jsonl"]
    sizes = ["--documents.train_size", "0", "--documents.val_size", "0", "--documents.max_length", "11"]
    answered(capsys, *start, *sizes, "--train.epochs", "1", "--out", "run")
    assert main.answer(["import", "run", "short", "--block-size", "7"]) == 0
    assert "documents.max_length was 11: documents are cut to 7 tokens now" in capsys.readouterr().err
    assert answered(capsys, "eval", "--model", "short")["tokens"] > 0
    assert main.answer(["import", "run", "same"]) == 0
    assert "max_length" not in capsys.readouterr().err


def test_an_import_with_an_odd_context_no_longer_asks_for_half_windows(capsys):
    trained = RunConfig(train=TrainConfig(short_windows=0.5))
    assert _fitting(trained, SimpleNamespace(config=GPTConfig(block_size=7))).train.short_windows == 0
    assert "short_windows was 0.5: they are off now, because 7 tokens have no half" in capsys.readouterr().err
    assert _fitting(trained, SimpleNamespace(config=GPTConfig(block_size=8))) == trained


def rows_of(batches):
    """The ids of the rows of batches, as far as they count."""
    return [
        (x[0].item(), *y[y != IGNORED].tolist())
        for batch in batches
        for x, y in zip(batch.inputs, batch.targets, strict=True)
    ]


LEARNED_BEFORE = [
    ("documents", {"seed": 1}, True),
    ("documents", {"documents": {"val_size": 7}}, True),
    ("documents", {"documents": {"val_size": 3}}, False),  # all of them were held out before
    ("documents", {}, False),
    ("text", {"data": {"val_fraction": 0.5}}, True),
    ("text", {"data": {"val_fraction": 0.2}}, False),
]


@pytest.mark.parametrize("role", ["base", "teacher"])
@pytest.mark.parametrize(("kind", "changes", "learned"), LEARNED_BEFORE)
def test_what_another_model_has_learned_does_not_validate_in_silence(base, tmp_path, role, kind, changes, learned):
    text = "\n".join(TEXTS)
    data = DOCUMENTS if kind == "documents" else Corpus("texts", text, "made up")
    begun = config(base, train={"epochs": 0.0, "max_steps": 1, "warmup_ratio": 0.0, "warmup_steps": 0})
    begun = updated(begun, {"data": {"val_fraction": 0.3}})
    first = tmp_path / "first"
    train(begun, data, first, quiet)
    second = updated(begun, changes)
    if role == "base":
        second = updated(second, {"init_from": str(first)})
    else:
        second = updated(second, {"train": {"teachers": [str(first)]}})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TextNote)
        train(second, data, tmp_path / "second", quiet)
    notes = [str(note.message) for note in said if issubclass(note.category, TextNote)]
    if kind == "documents":
        before, now = (document_loader(data, "texts", one, TOKENIZER) for one in (begun, second))
        known = set(rows_of(before.batch(place, 1) for place in range(before.rows_per_epoch)))
        held_out = rows_of(now.validation())
        counts = f"{sum(row in known for row in held_out)} of the {len(held_out)} documents"
    else:
        half, most = (int(len(text) * share) for share in (0.5, 0.7))
        counts = f"{most - half} of the {len(text) - half} characters"
    assert [f"{first} has learned {counts} that validate here" in note for note in notes] == [True] * learned


def test_nor_what_it_learned_of_a_corpus_that_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt.data.corpora.write_verse", lambda seed: write_verse(seed, 20_000))
    (tmp_path / "other.txt").write_text("so it goes on\n" * 9, encoding="utf-8")
    beside = RunConfig(data=DataConfig(source="verse", val_data=str(tmp_path / "other.txt")))
    alone = RunConfig(data=DataConfig(source="verse"))
    theirs, ours = (updated(one, {"data": {"checksum": data_checksum(load_data(one))}}) for one in (beside, alone))
    with pytest.warns(TextNote, match="first has learned ([0-9,]+) of the \\1 characters that validate here"):
        note_learned(ours, load_data(ours), [SimpleNamespace(name="first", trained=theirs)])


PLAY = "\n\n".join(f"ANN:\nWhat is {n}?\n\nBEN:\nIt is {n + 1}.\n\nSCENE {n}" for n in range(20))
LOG = "\n\n".join(f"[10:02] Ann: What is {n}?\n[10:03] Ben: It is {n + 1}." for n in range(20))


@pytest.mark.parametrize(
    ("text", "separate", "what"),
    [("\n".join(TEXTS), "on", "documents"), (PLAY, "dialogues", "replies"), (LOG, "dialogues", "replies")],
)
@pytest.mark.parametrize("before", ["folder", "folder/text.txt"])
def test_nor_what_it_learned_of_the_same_words_as_one_text(tmp_path, monkeypatch, text, separate, what, before):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/text.txt").write_text(text, encoding="utf-8")
    documents = DocumentsConfig(separate=separate, val_size=4)
    theirs = RunConfig(data=DataConfig(source=before, val_fraction=0.01))
    ours = RunConfig(data=DataConfig(source="folder/text.txt"), documents=documents)
    theirs, ours = (updated(one, {"data": {"checksum": data_checksum(load_data(one))}}) for one in (theirs, ours))
    with pytest.warns(TextNote, match=f"first has learned [34] of the 4 {what} that validate here"):
        note_learned(ours, load_data(ours), [SimpleNamespace(name="first", trained=theirs)])
    with warnings.catch_warnings():  # of what it did not learn, nothing is said
        warnings.simplefilter("error", TextNote)
        note_learned(ours, load_data(ours), [SimpleNamespace(name="first", trained=updated(theirs, HARDLY))])


HARDLY = {"data": {"val_fraction": 0.999}}
READ_BEFORE = [
    ({"source": "all.txt", "val_data": "other.txt"}, {"source": "all.txt"}, True),
    ({"source": "all.txt"}, {"source": "other.txt", "val_data": "all.txt"}, True),
    ({"source": "other.txt", "val_data": "all.txt"}, {"source": "all.txt"}, False),
]


@pytest.mark.parametrize("separate", ["off", "on"])
@pytest.mark.parametrize(("before", "now", "learned"), READ_BEFORE)
def test_nor_what_it_learned_of_the_same_file_beside_another(
    base, tmp_path, monkeypatch, separate, before, now, learned
):
    monkeypatch.chdir(tmp_path)
    Path("all.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    Path("other.txt").write_text("\n".join(text[::-1] for text in TEXTS[:12]), encoding="utf-8")
    usual = config(base, train={"epochs": 0.0, "max_steps": 1, "warmup_ratio": 0.0, "warmup_steps": 0})
    usual = replace(usual, documents=DocumentsConfig(separate=separate))
    first = updated(usual, {"data": before})
    train(first, load_data(first), "first", quiet)
    second = updated(usual, {"data": now, "init_from": "first"})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TextNote)
        train(second, load_data(second), "second", quiet)
    assert ["first has learned" in str(note.message) for note in said] == [True] * learned


def test_the_model_to_start_from_is_looked_up_once(base, tmp_path, monkeypatch):
    """So what a note says it has learned is of the weights that were read."""
    asked, real = [], run.open_source
    monkeypatch.setattr(run, "open_source", lambda spec: asked.append(spec) or real(spec))
    once = config(base, train={"epochs": 0.0, "max_steps": 1, "warmup_ratio": 0.0, "warmup_steps": 0})
    train(once, DOCUMENTS, tmp_path / "run", quiet)
    assert asked == [str(base)]
