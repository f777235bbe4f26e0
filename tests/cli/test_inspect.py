"""`minigpt inspect`: every view in every form, its numbers against the reference library, and what a mistake costs."""

import copy
import io
import json
import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import minigpt
from minigpt.analysis.checks import Check
from minigpt.analysis.heads import HeadScores
from minigpt.analysis.lens import Lens
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.cli.main import parser_of
from minigpt.config import GPTConfig, LoRAConfig, RunConfig
from minigpt.decoding.options import DecodingOptions
from minigpt.formats.lora_files import save_adapter
from minigpt.formats.run_directory import save_run
from minigpt.lora import add_lora
from minigpt.model import GPT
from minigpt.system.terminal import columns
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer
from tests.conftest import random_model

DOCS = Path(__file__).parent.parent.parent / "docs"
TEXT = "the later you"  # of the reference's vocabulary: "th", "e", ...
CHARACTERS = "\n $,.ATabcdefhimnorstu中"

# A command line of every view, and more where it has several forms; {model} is put in.
COMMANDS = {
    "size": "size {model} --tokens 7",
    "size what if": "size --preset gpt2-124m --what-if n_layer=2 n_embd=96",
    "arch": "arch {model}",
    "arch diff": "arch {model} --diff gpt2-124m",
    "tokens": "tokens 'to be 中' {model}",
    "next": "next 'to be' {model} --temperature 0.8 --top-k 7 --top-p 0.9 --min-p 0.01",
    "temperature": "temperature 3.0 1.5 -0.5 --at 0.5 2",
    "attn": "attn 'to be,\n or' {model}",
    "attn head": "attn 'to be, or' {model} --layer 1 --head 2",
    "heads": "heads {model} --length 5",
    "heads of a text": "heads 'to be' {model} --by self --top 2",
    "lens": "lens 'to be' {model} --rank-of ' '",
    "lens points": "lens 'to be' {model} --points blocks.*.resid_post --position 1",
    "lens norms": "lens 'to be' {model} --norms",
    "why": "why 'to be' {model} --by head",
    "why against": "why 'to be' {model} --token a --against 中 --by neuron --top 3",
    "loss": "loss 'to be, or 中' {model}",
    "ablate": "ablate 'to be' {model} --part 1.0 0.mlp",
    "ablate sweep": "ablate --repeated 5 --rows 2 {model}",
    "ablate mean": "ablate 'to' {model} --mode mean --reference 'abc' 'bcd' --sweep layers --token a --against b",
    "patch": "patch {model} --clean 'to be' --corrupt 'to bi' --token a --against o",
    "embed near": "embed near e {model} --top 3",
    "embed pca": "embed pca {model}",
    "embed positions": "embed positions {model}",
    "steps": "steps 'to' {model} -n 3",
    "steps drawn": "steps 'to' {model} -n 3 --temperature 1.2 --top-k 5 --seed 3",
    "beams": "beams 'to' {model} -n 3 --beams 3",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A run directory of a random character model of distinct prime sizes."""
    gpt = random_model(GPTConfig(vocab_size=len(CHARACTERS), block_size=19, n_layer=2, n_head=3, n_embd=3 * 5), 5)
    path = tmp_path_factory.mktemp("inspected") / "run"
    save_run(gpt, CharTokenizer(CHARACTERS), path)
    return path


def words(command: str, model: Path) -> list[str]:
    return ["inspect", *shlex.split(command.replace("{model}", "--model {path}").replace("{path}", str(model)))]


def printed(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert run(arguments) == 0
    return capsys.readouterr().out


def record_of(arguments: list[str], capsys) -> dict:
    out = printed([*arguments, "--json"], capsys)
    assert out.count("\n") == 1
    return json.loads(out)


def numbers_of(record: dict) -> dict[str, np.ndarray]:
    return {name: np.array(numbers["values"], dtype=float) for name, numbers in record["numbers"].items()}


def test_every_view_has_a_command_here():
    assert {name.split()[0] for name in COMMANDS} == set(VIEWS) - {"runs"}  # whose test is its own


@pytest.mark.parametrize("name", COMMANDS)
def test_a_view_in_80_columns_with_its_identities(name, model, capsys):
    out = printed([*words(COMMANDS[name], model), "--check"], capsys)
    lines = out.splitlines()
    assert [line for line in lines if columns(line) > 80 and str(model) not in line] == []
    held = [line for line in lines if line.startswith("holds  error")]
    assert held
    assert not any("FAILS" in line for line in lines)
    if record_of(words(COMMANDS[name], model), capsys)["prompt"] is not None:
        assert "BOS in front: no" in lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_view_in_the_schema(name, model, capsys):
    record = record_of([*words(COMMANDS[name], model), "--check"], capsys)
    assert record["schema"] == "minigpt-trace/1"
    assert record["view"] == name.split()[0]
    assert {"model", "prompt", "bos", "tokens", "labels", "settings", "numbers", "checks"} < set(record)
    assert record["checks"]
    assert all(check["ok"] and check["error"] <= check["tolerance"] for check in record["checks"])
    assert record["numbers"]
    for numbers in record["numbers"].values():
        assert len(numbers["axes"]) == len(numbers["shape"])
        assert list(np.shape(numbers["values"])) == numbers["shape"]
        for axis, size in zip(numbers["axes"], numbers["shape"], strict=True):
            assert len(record["labels"].get(axis, [None] * size)) == size


@pytest.mark.parametrize("name", ["steps", "beams"])
def test_what_ends_a_continuation_is_a_list_only_of_several(name, model, capsys):
    assert record_of(words(COMMANDS[name], model), capsys)["settings"]["eos_token_id"] is None


def test_help_teaches(capsys):
    overview = printed(["inspect"], capsys)
    assert all(re.search(rf"^  {name} ", overview, re.MULTILINE) for name in VIEWS)
    assert max(map(len, overview.splitlines())) <= 80
    with pytest.raises(SystemExit):
        run(["inspect", "--help"])
    assert capsys.readouterr().out == overview


@pytest.mark.parametrize("name", VIEWS)
def test_the_help_of_a_view_shows_commands_that_it_accepts(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = parser_of("inspect", [name])[0]
    assert [line for line in parser.format_help().splitlines() if len(line) > 80] == []
    examples = parser.settings.examples.replace("\\\n", " ").strip().splitlines()
    assert examples
    for example in examples:
        program, command, view, *arguments = shlex.split(re.sub(r" < .*", "", example))
        assert (program, command, view) == ("minigpt", "inspect", name)
        parser.parse(arguments)


# --- numbers


def test_tokens_and_tokenize_need_no_model_where_a_tokenizer_is_named(tmp_path, capsys):
    (tmp_path / "letters.txt").write_text("To be, or not\n")
    rest = ["--tokenizer", str(tmp_path / "letters.txt"), "to be not"]
    record = record_of(["inspect", "tokens", *rest], capsys)
    pieces = json.loads(printed(["tokenize", *rest, "--json"], capsys))["tokens"]
    assert record["tokens"] == [{"id": piece["id"], "text": piece["text"]} for piece in pieces]
    assert [piece["text"] for piece in pieces] == list("to be not")


def test_temperature_by_hand(capsys):
    """The logits ln 9, 0 and -ln 9 have odds of 81 : 9 : 1; their square roots are 9 : 3 : 1."""
    nine = math.log(9)
    record = record_of(["inspect", "temperature", str(nine), "0", str(-nine), "--at", "1", "2"], capsys)
    odds = np.array([[81 / 91, 9 / 91, 1 / 91], [9 / 13, 3 / 13, 1 / 13]])
    found = numbers_of(record)
    np.testing.assert_allclose(found["probability"], odds, atol=1e-6)
    np.testing.assert_allclose(found["entropy"], -(odds * np.log(odds)).sum(1), atol=1e-6)
    assert record["labels"] == {"temperature": ["1", "2"], "logit": ["2.19722", "0", "-2.19722"]}
    lines = printed(["inspect", "temperature", str(nine), "0", str(-nine), "--at", "1", "2"], capsys).splitlines()
    assert lines[1].split() == ["logit", "T", "=", "1", "T", "=", "2"]
    assert lines[2].split() == ["2.19722", "0.8901", "0.6923"]


@pytest.mark.parametrize(("words", "wrong"), [
    (["3", "1e39"], "LOGIT 1e+39 is out of range"),
    (["3", "nan"], "LOGIT nan: expected a number"),
    (["3", "--at", "0"], "--at 0 draws nothing"),
    (["3", "--at", "-1"], "--at -1.0 is out of range"),
    ([], "missing: LOGIT"),
])  # fmt: skip
def test_a_temperature_or_a_logit_without_meaning_is_refused(words, wrong, failing):
    what, how = failing(["inspect", "temperature", *words]).splitlines()
    assert what.startswith(f"error: {wrong}")
    assert how.strip()


def attentions(reference, ids: list[int]) -> torch.Tensor:
    """The reference's patterns (layers, heads, T, T)."""
    reference.theirs.set_attn_implementation("eager")
    with torch.no_grad():
        found = reference.theirs(torch.tensor([ids]), output_attentions=True).attentions
    return torch.cat(list(found))


@pytest.mark.parametrize("bos", [True, False, None])
def test_attention_is_the_references_with_bos_or_without(reference, capsys, bos):
    flag = {True: ["--bos"], False: ["--no-bos"], None: []}[bos]
    record = record_of(["inspect", "attn", TEXT, "--model", str(reference.folder), *flag], capsys)
    ids = reference.tokenizer.encode(TEXT)
    if bos is not False:  # GPT-2's documents begin behind this token, so it is the default
        ids = [reference.tokenizer.bos_token_id, *ids]
    assert [token["id"] for token in record["tokens"]] == ids
    assert record["bos"] is (bos is not False)
    np.testing.assert_allclose(numbers_of(record)["pattern"], attentions(reference, ids), atol=1e-5)
    out = printed(["inspect", "attn", TEXT, "--model", str(reference.folder), *flag], capsys)
    assert f"BOS in front: {'no' if bos is False else 'yes'}" in out


def test_an_adapter_reads_as_the_run_that_trained_it(reference, capsys, tmp_path):
    """Which has seen no document begin, whatever its base has."""
    adapted, tokenizer = minigpt.load_model(reference.folder)
    own = tmp_path / "run"
    save_run(adapted, tokenizer, own, RunConfig(model=adapted.config))
    add_lora(adapted, LoRAConfig(rank=2), seed=3)  # B is zero: the base's own numbers
    save_adapter(adapted, own / "adapter")
    line = ["inspect", "attn", TEXT, "--model"]
    by_run = record_of([*line, str(own)], capsys)
    by_adapter = record_of([*line, str(reference.folder), "--adapter", str(own / "adapter")], capsys)
    assert by_adapter["bos"] is by_run["bos"] is False
    assert by_adapter["numbers"] == by_run["numbers"]


def test_losses_are_the_references(reference, capsys):
    record = record_of(["inspect", "loss", TEXT, "--no-bos", "--model", str(reference.folder)], capsys)
    expected = -np.array(reference.log_probs(reference.tokenizer.encode(TEXT)))
    found = numbers_of(record)
    np.testing.assert_allclose(found["loss"], expected, atol=1e-4)
    assert found["mean"] == pytest.approx(expected.mean(), abs=1e-4)
    num_bytes = len(TEXT.encode()) - len(reference.tokenizer.token_bytes(reference.tokenizer.encode(TEXT)[0]))
    assert found["bits_per_byte"] == pytest.approx(expected.sum() / math.log(2) / num_bytes, abs=1e-4)


def test_the_next_token_is_the_references(reference, capsys):
    record = record_of(["inspect", "next", TEXT, "--no-bos", "--model", str(reference.folder)], capsys)
    with torch.no_grad():
        logits = reference.theirs(torch.tensor([reference.tokenizer.encode(TEXT)])).logits[0, -1]
    np.testing.assert_allclose(numbers_of(record)["logit"], logits, atol=1e-4)
    np.testing.assert_allclose(numbers_of(record)["probability"][0], logits.softmax(-1), atol=1e-6)
    assert numbers_of(record)["best"].tolist() == logits.topk(12).indices.tolist()


def test_a_draw_has_the_same_temperature_wherever_it_is_shown(model, capsys):
    flags = ["to be", "--model", str(model), "--top-p", "0.9", "--top", "3"]
    shown = record_of(["inspect", "next", *flags], capsys)
    drawn = record_of(["inspect", "steps", *flags, "-n", "1"], capsys)
    assert drawn["settings"]["temperature"] == shown["settings"]["temperature"] == DecodingOptions().temperature
    best = shown["numbers"]["best"]["values"][:3]
    expected = numbers_of(shown)["probability"][-1][best]
    np.testing.assert_allclose(numbers_of(drawn)["candidate_probability"][0], expected, atol=1e-5)
    assert record_of(["inspect", "next", *flags[:3]], capsys)["settings"] == {}


def test_the_lens_reads_the_references_hidden_states(reference, capsys):
    """resid_post of a block, through the reference's own last norm and head."""
    flags = ["--no-bos", "--top", "1", "--points", "*.resid_post", "--model", str(reference.folder)]
    record = record_of(["inspect", "lens", TEXT, *flags], capsys)
    theirs, ids = reference.theirs, torch.tensor([reference.tokenizer.encode(TEXT)])
    with torch.no_grad():
        states = theirs(ids, output_hidden_states=True).hidden_states[1:-1]  # the last one is normalised already
        logits = [theirs.lm_head(theirs.transformer.ln_f(state))[0] for state in states] + [theirs(ids).logits[0]]
    expected = torch.stack(logits).softmax(-1).max(-1)
    assert record["labels"]["point"] == ["blocks.0.resid_post", "blocks.1.resid_post", "blocks.2.resid_post"]
    np.testing.assert_allclose(numbers_of(record)["top_probability"][..., 0], expected.values, atol=1e-4)
    np.testing.assert_array_equal(numbers_of(record)["top_id"][..., 0], expected.indices)


def test_an_ablated_head_is_a_head_without_output_weights(model, reference, capsys):
    record = record_of(["inspect", "ablate", TEXT, "--no-bos", "--model", str(reference.folder)], capsys)
    ids = torch.tensor([reference.tokenizer.encode(TEXT)])
    weight = reference.theirs.transformer.h[1].attn.c_proj.weight  # (in, out): head 3 of 5 reads rows 21 to 27 of 35
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[21:28] = 0
        expected = reference.theirs(ids, labels=ids).loss.item()
        weight.copy_(kept)
        baseline = reference.theirs(ids, labels=ids).loss.item()
    assert numbers_of(record)["value"][1, 3] == pytest.approx(expected, abs=1e-4)
    assert numbers_of(record)["baseline"] == pytest.approx(baseline, abs=1e-4)
    assert abs(expected - baseline) > 1e-3


def test_the_loss_on_the_second_copy_is_of_the_tokens_that_can_be_known(model, capsys):
    """One row of 1 + 5 + 5 tokens: the second copy's tokens but its first, each predicted from all before."""
    record = record_of(words("ablate --repeated 5 --rows 1 --seed 4 {model}", model), capsys)
    ids = [token["id"] for token in record["tokens"]]
    assert ids[1:6] == ids[6:11]
    losses = numbers_of(record_of(["inspect", "loss", record["prompt"], "--model", str(model)], capsys))["loss"]
    assert numbers_of(record)["baseline"] == pytest.approx(losses[6:].mean(), abs=1e-5)


def test_a_sweep_draws_from_all_reference_texts_by_the_seed(model, capsys):
    found = []
    for seed in range(6):
        command = f"ablate 'to be' {{model}} --mode resample --seed {seed} --reference 'be to' 'or be'"
        swept, alone = (record_of(words(command + flag, model), capsys) for flag in ("", " --part 1.2"))
        assert numbers_of(swept)["value"][1, 2] == numbers_of(alone)["value"]
        found.append(float(numbers_of(alone)["value"]))
    assert len(set(found)) == 2


def test_any_point_is_replaced_by_a_mean(model, capsys):
    """With the same stream from the first block on, what was read makes no difference."""
    command = "ablate '{text}' {model} --part blocks.0.resid_pre --mode mean --reference 'be to' 'or be'"
    command += " --token a --against b"
    read = [record_of(words(command.replace("{text}", text), model), capsys) for text in ("to be", "a mob")]
    (before, after), (other, same) = ([float(numbers_of(one)[name]) for name in ("baseline", "value")] for one in read)
    assert before != other
    assert after == pytest.approx(same, abs=1e-5)


def test_the_size_is_gpt2s():
    """Counted by hand elsewhere; here it must come through the flags."""
    from minigpt.cli.views.shape import view_size

    values = parser_of("inspect", ["size"])[0].parse("--preset gpt2-124m --tokens 1024".split())
    numbers = view_size(values).result.numbers
    assert sum(numbers["parameters"].values) == 124_439_808
    assert sum(numbers["forward_flops"].values) == 291_648_307_200


# --- forms


def test_the_prompt_may_come_from_standard_input(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("to 中\n\n".encode())))
    record = record_of(words("loss - {model}", model), capsys)
    assert record["prompt"] == "to 中\n"


PICTURES = [name for name in COMMANDS if not name.startswith("tokens")]


@pytest.mark.parametrize("name", ["attn", "why"])
def test_a_picture(name, model, tmp_path, capsys):
    out = printed([*words(COMMANDS[name], model), "-o", f"{name}.svg"], capsys)
    assert out.endswith(f"written    {name}.svg\n")
    assert (tmp_path / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_every_picture(name, model, tmp_path, capsys):
    printed([*words(COMMANDS[name], model), "-o", "a.png"], capsys)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_data_files_hold_what_json_holds(model, tmp_path, capsys):
    arguments = words(COMMANDS["attn"], model)
    record = record_of([*arguments, "-o", "deep/a.json"], capsys)
    assert json.loads(Path("deep/a.json").read_text(encoding="utf-8")) == record
    printed([*arguments, "-o", "a.npz"], capsys)
    with np.load("a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["pattern"], numbers_of(record)["pattern"].astype(np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "deep"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_an_identity_that_fails_is_exit_code_1(model, monkeypatch, capsys, flags):
    monkeypatch.setattr(Lens, "checks", property(lambda self: [Check("one = two", 1.0, 1e-5, False)]))
    with pytest.raises(SystemExit) as stop:
        run([*words(COMMANDS["lens"], model), "--check", *flags])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "one = two" in out
    assert ("FAILS  error 1.0e+00 of 1e-05" in out) == (not flags)
    assert run(words(COMMANDS["lens"], model)) == 0  # nobody asked


def test_heads_are_sorted_by_what_was_asked(model, capsys, monkeypatch):
    scores = {kind: torch.zeros(2, 3) for kind in ("previous", "induction", "first", "self", "entropy", "duplicate")}
    scores["first"][1, 2], scores["induction"][0, 1] = 0.75, 0.5
    found = HeadScores(scores, [1, 2, 3, 4, 2, 3, 4], 3)
    monkeypatch.setattr("minigpt.cli.views.heads.head_scores", lambda *arguments: found)
    lines = printed(words("heads {model} --by first --top 2", model), capsys).splitlines()
    assert lines[2:4] == [
        "0.1 looks at what followed the same token the first time, with 0.50 of its weight",
        "1.2 rests on the first token, with 0.75 of its weight",
    ]
    rows = lines[4:]
    assert rows[0].split() == ["head", "induction", "duplicate", "previous", "first", "*", "self", "entropy"]
    assert rows[1].split() == ["1.2", "0.000", "0.000", "0.000", "0.750", "0.000", "0.000"]
    assert len(rows) == 3
    assert printed(words("heads {model}", model), capsys).splitlines()[5].startswith("0.1 ")


@pytest.mark.parametrize(
    ("scores", "said", "by"),
    [
        ({"induction": 0.01, "previous": 0.61}, ["0.1 looks at the token before, with 0.61"], "previous"),
        ({"induction": 0.9, "previous": 0.61}, ["0.1 looks at what", "0.1 looks at the token before"], "induction"),
        ({"first": 0.99, "duplicate": 0.4, "entropy": 1.0}, ["0.1 looks at the same", "0.1 rests on"], "duplicate"),
        ({"first": 0.99, "entropy": 1.0}, ["0.1 rests on the first token, with 0.99"], "first"),
        ({"self": 0.1, "previous": 0.05, "entropy": 1.0}, ["0.1 looks at the token itself, with 0.10"], "self"),
    ],
)
def test_heads_open_with_what_the_model_shows(model, capsys, monkeypatch, scores, said, by):
    every = {kind: torch.zeros(2, 3) for kind in ("previous", "induction", "first", "self", "entropy", "duplicate")}
    for kind, score in scores.items():
        every[kind][0, 1] = score
    found = HeadScores(every, [1, 2, 3, 4, 2, 3, 4], 3)
    monkeypatch.setattr("minigpt.cli.views.heads.head_scores", lambda *arguments: found)
    lines = printed(words("heads {model}", model), capsys).splitlines()
    assert len(lines) == 2 + len(said) + 1 + 6
    for line, start in zip(lines[2:], said, strict=False):
        assert line.startswith(start)
    assert f" {by} *" in lines[2 + len(said)]


def test_why_tells_what_a_part_adds_from_what_is_lost_without_it(model, capsys):
    """The two are one only in the last layer's end: the last MLP acts through the norm and the head alone."""
    record = record_of(words("why 'to be' {model} --token a --against b --by head", model), capsys)
    lines = printed(words("why 'to be' {model} --token a --against b --by head", model), capsys).splitlines()
    assert lines[2].split() == ["part", "adds", "in", "all"]
    own, tokenizer = minigpt.load_model(str(model))
    row, a, b = torch.tensor([tokenizer.encode("to be")]), *tokenizer.encode("ab")
    wanted = record["labels"]["shown"]
    assert set(wanted) == {f"{layer}.{part}" for layer in (0, 1) for part in ("0", "1", "2", "mlp")}
    size = own.config.n_embd // own.config.n_head
    with torch.no_grad():
        whole = own(row)[0, -1]
        for part, value in zip(wanted, numbers_of(record)["in_all"], strict=True):
            without = copy.deepcopy(own)  # the oracle has no hooks: its weights are gone
            layer, name = part.split(".")
            block = without.h[int(layer)]
            if name == "mlp":
                block.mlp.c_proj.weight.zero_()
                block.mlp.c_proj.bias.zero_()
            else:
                block.attn.c_proj.weight[:, int(name) * size : (int(name) + 1) * size] = 0
            change = whole - without(row)[0, -1]
            assert value == pytest.approx(float(change[a] - change[b]), abs=1e-5)
            assert any(line.split()[:1] == [part] and f"{value:+.4f}" in line for line in lines)
    assert lines[-2] == "adds: directly; in all: what is lost without it, through later parts too"
    layers = printed(words("why 'to be' {model} --by layer", model), capsys)
    assert "in all" not in layers  # no one part's name
    neurons = record_of(words("why 'to be' {model} --by neuron --top 7", model), capsys)["labels"]["shown"]
    assert not {"0.mlp.1", "1.mlp.49"} & {*neurons}  # a neuron is not taken away


def test_runs_are_compared_by_their_records(model, tmp_path, capsys):
    long = "path" * 22
    for number, name in enumerate(["one", "two", long]):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text((model / "config.yaml").read_text())
        records = [
            {"step": 10, "tokens": 90, "seconds": 1.5, "train_loss": 3.0 + number, "lr": 0.1, "grad_norm": 2.0},
            {"step": 20, "tokens": 180, "seconds": 2.5, "val_loss": 2.5 + number},
            {"step": 30, "tokens": 270, "seconds": 3.5, "val_loss": 2.75 + number},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = printed(["inspect", "runs", "one", "two", "--check"], capsys).splitlines()
    assert out[1].split() == ["one", "30", "270", "4", "3.0000", "2.5000", "20"]
    assert out[2].split() == ["two", "30", "270", "4", "4.0000", "3.5000", "20"]
    again = printed(["inspect", "runs", "./one", "two", "one", "two/"], capsys).splitlines()  # by other names
    assert [line.split()[0] for line in again[1:3]] == ["./one", "two"]
    assert len(again) == 4
    out = printed(["inspect", "runs", "one", long], capsys).splitlines()
    assert max(map(len, out)) == 80
    assert out[2].startswith("…")
    assert out[2].split()[:2] == ["…" + "path" * 6, "30"]
    record = record_of(["inspect", "runs", "one", "two", "-o", "runs.png"], capsys)
    assert numbers_of(record)["two val_loss value"].tolist() == [3.5, 3.75]
    assert numbers_of(record)["two val_loss step"].tolist() == [20, 30]
    assert Path("runs.png").is_file()


def test_of_all_that_lies_in_a_folder_the_runs_are_compared(model, tmp_path, capsys):
    """The shell gives checkpoints/* every name in it: those of its README and of imported models too."""
    for name in ("imported", "one"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text((model / "config.yaml").read_text())
    (tmp_path / "one" / "metrics.jsonl").write_text(json.dumps({"step": 5, "seconds": 1.5, "val_loss": 3.0}) + "\n")
    (tmp_path / "README.md").write_text("what lies here")
    assert run(["inspect", "runs", "README.md", "imported", "one"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[:-1]] == ["run", "one"]
    assert err.splitlines() == [
        "note: left out: README.md is not a run directory: it has no config.yaml",
        "note: left out: imported has no metrics.jsonl with anything in it",
    ]
    assert run(["inspect", "runs", "one", "onee"]) == 2  # a name of nothing is a slip
    assert run(["inspect", "runs", "README.md", "imported"]) == 2


# --- mistakes


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("lense 'to' {model}", "there is no view 'lense'"),
        ("lens 'to' {model} --points blocks.0.resid_pots", "there is no point 'blocks.0.resid_pots'"),
        ("lens 'to' {model} --points blocks.2.resid_post", "asks for layer 2, and the model has 2 layers"),
        ("lens 'to' {model} --points blocks.0.attn.out", "is no state of the residual stream"),
        ("lens 'to' {model} --position 2", "there is no position 2: the prompt has 2"),
        ("lens 'to' {model} --rank-of 'be'", "--rank-of 'be' is 2 tokens: 'b', 'e'"),
        ("attn 'to' {model} --layer 2", "there is no layer 2: the model has 2"),
        ("attn 'to' {model} --layer 1 --head 3", "there is no head 3: the model has 3"),
        ("attn 'to' {model} --head 1", "--head 1 is in every layer"),
        ("attn '' {model}", "the prompt is empty"),
        ("attn 'to' {model} --bos", "--bos asks for a token"),
        ("heads {model} --bos", "--bos asks for a token"),
        ("ablate {model} --repeated 5 --bos", "--bos asks for a token"),
        ("attn 'to be, or to be, or.' {model}", "the prompt has 20 tokens, more than block_size = 19"),
        ("attn 'xyz' {model}", "unknown"),
        ("why 'to' {model} --token 'to'", "--token 'to' is 2 tokens: 't', 'o'"),
        ("why 'to' {model} --token ''", "--token '' is 0 tokens"),
        ("loss 't' {model}", "1 token leaves nothing to predict"),
        ("next 'to' {model} --top 99", "99 likeliest of 23 tokens cannot be shown"),
        ("next 'to' {model} --temperature 0", "draws nothing"),
        ("next 'to' {model} --top-p 7", "--top-p 7"),
        ("ablate {model}", "there must be one text"),
        ("ablate 'to' {model} --repeated 5", "there must be one text"),
        ("ablate 'to' {model} --part 1.9", "there is no head 9"),
        ("ablate 'to' {model} --part x.y", "there is no point 'x.y'"),
        ("ablate 'to' {model} --mode mean", "a reference of 1 text"),
        ("ablate 'to' {model} --mode mean --reference abc d", "a text of 1 token"),
        ("ablate --repeated 5 --token a {model}", "--token would change nothing with --repeated"),
        ("ablate 'to' {model} --token a", "a difference of logits needs two tokens"),
        ("ablate --repeated 2 {model}", "2 tokens that are repeated"),
        ("patch {model} --clean to --corrupt b --token a --against o", "the clean rows are (1, 2) tokens"),
        ("embed near {model}", "near whom"),
        ("embed pca ab {model}", "2 different tokens make no plane"),
        ("embed far e {model}", "WHAT 'far' is not a choice"),
        ("steps 'to' {model} -n 99", "do not fit"),
        ("beams 'to' {model} -n 0", "leaves nothing to consider"),
        ("beams 'to' {model} -n 3 --beams 1001", "--beams must be at least 1 and at most 1,000"),
        ("steps 'to' {model} -n 0", "leaves nothing to consider"),
        ("why 'to' {model} --top 0", "--top 0 shows nothing"),
        ("why 'to' {model} --token a --against a", "differs by 0 whatever the model"),
        ("heads 'to be' {model} --top -1", "--top -1 shows nothing"),
        ("loss 'to' {model} --worst 0", "--worst 0 shows nothing"),
        ("lens 'to' {model} --norms --rank-of a", "--rank-of would change nothing with --norms"),
        ("lens 'to' {model} --norms --points *.resid_pre", "--points would change nothing with --norms"),
        (
            "ablate 'to' {model} --reference ab cd",
            "--reference would change nothing without --mode mean or --mode resample",
        ),
        ("ablate 'to' {model} --token a --against a", "differ by 0 whatever the model"),
        ("embed positions e {model}", "TEXT would change nothing with WHAT positions"),
        ("size {model} --tokens 99", "1 row of 99 tokens"),
        ("size {model} --what-if n_layers=3", "unknown setting 'n_layers'"),
        ("size {model} --what-if n_layer", "it has no ="),
        ("size {model} --preset gpt2-124m", "--model would change nothing with --preset"),
        ("tokens '' {model}", "the text is empty"),
        ("runs {path}", "has no metrics.jsonl"),
        ("runs nowhere", "is not a run directory"),
        ("attn 'to' {model} -o a.gif", "a.gif ends in .gif"),
        ("attn 'to' {model} -o a", "a ends in nothing"),
        ("tokens 'to' {model} -o a.png", "this view has no picture"),
        ("attn 'to' {model} -o {path}/config.yaml/deep/a.png", "config.yaml is a file"),
        ("attn 'to' --model nowhere/run -o {path}/config.yaml/a.png", "config.yaml is a file"),  # seen before the work
        ("attn 'to' --model nowhere/run", "nowhere/run"),
    ],
)
def test_a_mistake_is_two_lines(command, what, model, failing):
    assert what in failing(words(command, model))


def test_the_nearest_views_and_points_are_named(model, capsys):
    assert run(words("lense 'to' {model}", model)) == 2
    assert "did you mean lens?" in capsys.readouterr().err
    assert run(words("lens 'to' {model} --points blocks.0.resid_pots", model)) == 2
    said = capsys.readouterr().err
    assert "blocks.0.resid_post" in said
    assert "docs/internals.md lists them all" in said
    assert "minigpt.analysis" not in said  # which nobody can type here


def test_a_folder_without_permission_is_seen_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # whoever is root may write anywhere
    assert run(["inspect", "attn", "to", "--model", "nowhere/run", "-o", str(tmp_path / "new" / "a.png")]) == 2
    assert f"nothing can be written to the folder {tmp_path}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_keeps_its_files(model, tmp_path, capsys):
    (tmp_path / "a.json").mkdir()
    assert run([*words("attn 'to' {model}", model), "-o", "a.json"]) == 2
    assert "a.json is a folder" in capsys.readouterr().err


# --- documents


def document(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8") if DOCS.is_dir() else ""


def commands_of(page: str) -> list[str]:
    blocks = re.findall(r"^```(?:bash|text)\n(.*?)^```", page.replace("\\\n", " "), re.MULTILINE | re.DOTALL)
    found = re.findall(r"^(?:\$ |\.venv/bin/)?(minigpt [a-z].*)", "\n".join(blocks), re.MULTILINE)
    return [re.sub(r" [<>|] .*", "", command) for command in found]


needs_docs = pytest.mark.skipif(not DOCS.is_dir(), reason="needs the checkout that minigpt was installed from")


@needs_docs
@pytest.mark.parametrize("name", ["internals.md", "trace-schema.md", "induction-study.md"])
def test_every_command_of_the_pages_is_accepted(name, accept):
    commands = commands_of(document(name))
    assert commands
    for command in commands:
        if not command.endswith("--help"):
            accept(command)


PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", PYTHON.findall(document("internals.md")))
def test_the_python_of_the_points_page_runs(code, model, monkeypatch, capsys):
    loaded = minigpt.load_model(model)
    monkeypatch.setattr(minigpt, "load_model", lambda spec: loaded, raising=False)
    exec(compile(code, "internals.md", "exec"), {})


@needs_docs
def test_the_schemas_page_names_every_field(model, capsys):
    page = document("trace-schema.md")
    record = record_of([*words(COMMANDS["attn"], model), "--check"], capsys)
    for field in record:
        assert f"`{field}`" in page
    for name in VIEWS:
        assert f"| `{name}` |" in page


@needs_docs
@pytest.mark.parametrize("name", COMMANDS)
def test_the_schemas_page_names_every_number_and_label_of_a_view(name, model, capsys):
    page = document("trace-schema.md")
    record = record_of(words(COMMANDS[name], model), capsys)
    *_, row = re.findall(rf"^\| `{record['view']}` \|.*", page, re.MULTILINE)
    for number in record["numbers"]:
        assert f"`{number}`" in row
    axes = {axis for number in record["numbers"].values() for axis in number["axes"]}
    for label in record["labels"]:
        assert label in axes or f"in `{record['view']}` also `{label}`" in page


@pytest.mark.parametrize(
    ("view", "same"),
    [("steps 'a' -n 5", "--strategy greedy"), ("beams 'a' -n 5 --beams 3", "--strategy beam --num-beams 3")],
)
def test_a_view_of_a_continuation_ends_where_generate_ends(view, same, tmp_path, capsys):
    tokenizer = GPT2Tokenizer(["t h", "th e"])
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, block_size=19, n_layer=2, n_head=3, n_embd=15, tie_weights=False
    )
    model = GPT(config).eval()
    with torch.no_grad():  # whatever came before, the end is likely, and every other token unlikely
        model.ln_f.weight.zero_()
        model.ln_f.bias.fill_(1.0)
        model.lm_head.weight[tokenizer.eos_token_id] = 1.0
    save_run(model, tokenizer, tmp_path / "run")
    command = f"generate --model {tmp_path / 'run'} --prompt a --max-new-tokens 5 --json {same}"
    (written,) = json.loads(printed(shlex.split(command), capsys))["completions"]
    assert written["finish_reason"] == "eos"
    record = record_of(["inspect", *shlex.split(view), "--model", str(tmp_path / "run")], capsys)
    values = {name: numbers["values"] for name, numbers in record["numbers"].items()}
    ids = (
        values["chosen"]
        if "chosen" in values
        else [n for n, best in zip(values["id"], values["best"], strict=True) if best]
    )
    assert ids == [tokenizer.eos_token_id]
    assert values["score"] == pytest.approx(written["score"])


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_a_token_whose_row_is_zeros_is_near_to_nobody(capsys, kind):
    """As that of padding often is."""
    gpt = random_model(GPTConfig(vocab_size=len(CHARACTERS), block_size=7, n_layer=1, n_head=1, n_embd=5), 5)
    with torch.no_grad():
        gpt.wte.weight[CHARACTERS.index("$")] = 0.0
    save_run(gpt, CharTokenizer(CHARACTERS), Path("run"))
    flags = ["--model", "run", "--kind", kind, "--top", "3"]
    record = record_of(["inspect", "embed", "near", "$", *flags], capsys)
    assert record["numbers"]["similarity"]["values"] == [0.0, 0.0, 0.0]
    assert run(["inspect", "embed", "near", "$", *flags]) == 0
    assert "█" not in capsys.readouterr().out
