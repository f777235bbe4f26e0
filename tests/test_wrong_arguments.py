"""What is no model, no ids, no text or no path, given to each public function: an error that a student understands.

The cases are made, not collected: every argument of every function meets every value that it cannot be.
"""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import minigpt
from minigpt import GPTConfig, KVCache, MiniGPTError, analysis
from minigpt.cli.main import answer as run
from minigpt.config import RunConfig, updated, write_yaml
from minigpt.data.corpora import Corpus
from minigpt.decoding.options import DecodingOptions
from minigpt.errors import InputError, named
from minigpt.formats.run_directory import run_named
from minigpt.formats.source import open_source
from minigpt.formats.tokenizer_files import named_tokenizer
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer
from minigpt.training.loop import train

LONGEST = 2000  # characters of both lines of an error
LETTERS = CharTokenizer("abcdefghijklmnopqrstuvw")  # 23 of them, as many as the tiny model has
TOO_LONG = "x" * 100_000
NUL = "a\0b"


def two_short_lines(error: MiniGPTError) -> bool:
    return str(error).count("\n") == 1 and len(str(error)) <= LONGEST


NO_MODEL = [None, "gpt2", 3, GPTConfig(vocab_size=23, block_size=13, n_layer=2, n_head=3, n_embd=15)]
DEEP = functools.reduce(lambda inner, _: [inner], range(3000), [])
NO_IDS = [None, 3, 1.5, "ab", [1.5], ["a"], [None], torch.tensor(3), b"ab", {1: 2}, {"a": 1}, {1, 2}, DEEP,
          range(10**12), range(10**30)]  # fmt: skip
NO_TEXT = [None, 3, ["a", 3], b"a"]
NO_TOKENIZER = ["gpt2", 3, TOO_LONG]
NO_SETTINGS = [None, 3, "seed", TOO_LONG]
CORPUS = Corpus("letters", "abc", "made here")
NO_PATH = [None, 3, b"a", ["a"], LETTERS, NUL, "\ud800"]


def used(context):
    with context:
        pass


CALLS = {
    "generate: model": (lambda m, x: minigpt.generate(x, [[1]]), NO_MODEL),
    "generate: prompts": (lambda m, x: minigpt.generate(m, x), NO_IDS),
    "generate: a prompt": (lambda m, x: minigpt.generate(m, [x]), NO_IDS),
    "generate: a huge id": (lambda m, x: minigpt.generate(m, [[x]]), [99, 10**30, 10**20_000]),
    "generate: tokenizer": (lambda m, x: minigpt.generate(m, [[1]], tokenizer=x), NO_TOKENIZER),
    "generate: draft": (lambda m, x: minigpt.generate(m, [[1]], draft=x), [3, TOO_LONG, "the model itself"]),
    "generate: its name": (lambda m, x: minigpt.generate(m, [[1]], **{x: 1}), [TOO_LONG, "temprature"]),
    "stream: model": (lambda m, x: minigpt.stream(x, [1]), NO_MODEL),
    "stream: prompt_ids": (lambda m, x: minigpt.stream(m, x), NO_IDS),
    "complete: model": (lambda m, x: minigpt.complete(x, LETTERS, "a"), NO_MODEL),
    "complete: tokenizer": (lambda m, x: minigpt.complete(m, x, "a"), [None, *NO_TOKENIZER]),
    "complete: prompt": (lambda m, x: minigpt.complete(m, LETTERS, x), [*NO_TEXT, TOO_LONG + "é"]),
    "next_token_table: model": (lambda m, x: minigpt.next_token_table(x, [1]), NO_MODEL),
    "next_token_table: ids": (lambda m, x: minigpt.next_token_table(m, x), NO_IDS),
    "token_log_probs: model": (lambda m, x: minigpt.token_log_probs(x, [1]), NO_MODEL),
    "token_log_probs: ids": (lambda m, x: minigpt.token_log_probs(m, x), NO_IDS),
    "sequence_log_prob: model": (lambda m, x: minigpt.sequence_log_prob(x, [1]), NO_MODEL),
    "sequence_log_prob: ids": (lambda m, x: minigpt.sequence_log_prob(m, x), NO_IDS),
    "save_hf: model": (lambda m, x: minigpt.save_hf(x, LETTERS, "out"), NO_MODEL),
    "save_hf: tokenizer": (lambda m, x: minigpt.save_hf(m, x, "out"), NO_TOKENIZER),
    "save_hf: folder": (lambda m, x: minigpt.save_hf(m, LETTERS, x), [*NO_PATH, TOO_LONG, f"a/{TOO_LONG}"]),
    "load_model: spec": (lambda m, x: minigpt.load_model(x), [*NO_PATH, TOO_LONG, f"./{TOO_LONG}", Path(TOO_LONG)]),
    "load_model: tokenizer": (lambda m, x: minigpt.load_model("saved", tokenizer=x), [*NO_PATH[1:], TOO_LONG]),
    "load_model: block_size": (lambda m, x: minigpt.load_model("saved", block_size=x), ["a", 1.5, 0, 14]),
    "load_model: dropout": (lambda m, x: minigpt.load_model("saved", dropout=x), ["a", 1.5, math.nan]),
    "open_source": (lambda m, x: open_source(x), [*NO_PATH, TOO_LONG]),
    "named_tokenizer": (lambda m, x: named_tokenizer(x), [*NO_PATH, TOO_LONG]),
    "run_named": (lambda m, x: run_named(x), [*NO_PATH, TOO_LONG]),
    "updated: config": (lambda m, x: updated(x, {}), [*NO_SETTINGS, RunConfig]),
    "updated: values": (lambda m, x: updated(RunConfig(), x), NO_SETTINGS),
    "write_yaml: config": (lambda m, x: write_yaml(x, "out.yaml", {}), NO_SETTINGS),
    "write_yaml: path": (lambda m, x: write_yaml(RunConfig(), x, {}), NO_PATH),
    "write_yaml: versions": (lambda m, x: write_yaml(RunConfig(), "out.yaml", x), NO_SETTINGS),
    "train: config": (lambda m, x: train(x, CORPUS, "out"), NO_SETTINGS),
    "train: data": (lambda m, x: train(RunConfig(), x, "out"), [None, 3, "shakespeare", TOO_LONG]),
    "train: out": (lambda m, x: train(RunConfig(), CORPUS, x), NO_PATH),
    "train: resume": (lambda m, x: train(RunConfig(), CORPUS, "out", resume=x), [None, 3, "last"]),
    "model: cache": (lambda m, x: m(torch.tensor([[1]]), cache=x), [True, 0, "a", [], {}, torch.ones(2)]),
    "few_shot_prompt: examples": (lambda m, x: minigpt.few_shot_prompt(x, "a"), [*NO_IDS, [DEEP]]),
    "few_shot_prompt: query": (lambda m, x: minigpt.few_shot_prompt([], x), [*NO_TEXT, DEEP]),
    "trace: positions": (lambda m, x: used(analysis.trace(m, positions=x)), [*NO_IDS[2:], [], [DEEP]]),
    "edit": (lambda m, x: used(analysis.edit(m, x)), [*NO_IDS, "a"]),
    "KVCache: config": (lambda m, x: KVCache(x, 1), [None, {"n_layer": 2}]),
    "KVCache: batch_size": (lambda m, x: KVCache(m.config, x), [None, 1.5, "a", 0, -1, 10**12, True]),
    "KVCache: max_length": (lambda m, x: KVCache(m.config, 1, x), [1.5, "a", 0, 14, True]),
    "next_token_loss: targets": (
        lambda m, x: minigpt.next_token_loss(torch.zeros(2, 3, 23), x),
        [
            None,
            [[1, 2, 3]] * 2,
            torch.zeros(2, 3),
            torch.zeros(2, 3, dtype=torch.int32),
            torch.zeros(3, 2, dtype=torch.int64),
            torch.zeros(2, 2, dtype=torch.int64),
            torch.full((2, 3), 23),
            torch.full((2, 3), -1),
        ],
    ),
    "next_token_loss: logits": (
        lambda m, x: minigpt.next_token_loss(x, torch.zeros(3, dtype=torch.int64)),
        [None, torch.tensor(1.0), torch.zeros(3, 23, dtype=torch.int64)],
    ),
    "CharTokenizer": (lambda m, x: CharTokenizer(x), [None, 3, ["a", "b"], b"ab"]),
    "encode": (lambda m, x: LETTERS.encode(x), [None, 3, ["a"], b"a"]),
    "encode_array": (lambda m, x: LETTERS.encode_array(x), [None, 3, ["a"], b"a"]),
    "decode": (lambda m, x: LETTERS.decode(x), [*NO_IDS, [10**20_000], [[1], [2]]]),
    "decode, GPT-2": (lambda m, x: GPT2Tokenizer(["a b"]).decode(x), [b"ab", {1: 2}, {1, 2}, "ab"]),
    "decode_batch": (lambda m, x: LETTERS.decode_batch([x]), NO_IDS),
    "token_bytes": (lambda m, x: LETTERS.token_bytes(x), ["a", None, 1.5, 23, 10**20_000]),
}


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        pytest.param(call, wrong, id=f"{name}-{number}")
        for name, (call, values) in CALLS.items()
        for number, wrong in enumerate(values)
    ],
)
def test_a_wrong_argument_is_a_mistake_in_two_lines(call, wrong, tiny_model):
    minigpt.save_hf(tiny_model, LETTERS, "saved")
    with pytest.raises(MiniGPTError) as caught:
        call(tiny_model, tiny_model if wrong == "the model itself" else wrong)
    assert two_short_lines(caught.value)
    assert sorted(path.name for path in Path().iterdir()) == ["saved"]


HUGE = {
    "text": TOO_LONG,
    "lines": "line\n" * 20_000,
    "bytes": b"x" * 100_000,
    "list of texts": ["x"] * 30_000,
    "text in a list": [TOO_LONG],
    "ids": [99] * 30_000,
    "list of ids": [[99] * 30_000],
    "digits": 10**20_000,
    "digits in a list": [10**20_000],
    "digits, negative": -(10**20_000),
    "digits, deep": [[-(10**20_000)]],
    "bias": {(99,) * 30_000: 1.0},
    "wrong bias": {(1,) * 30_000: "x"},
    "decay": (1, TOO_LONG),
    "range": range(10**12),
    "range, longer": range(10**30),
    "list of ranges": [range(10**12)],
}


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(DecodingOptions)])
def test_an_error_is_short_however_long_the_value(option, huge, tiny_model):
    with pytest.raises(MiniGPTError) as caught:
        minigpt.generate(tiny_model, [[1, 2]], **{"max_new_tokens": 1, option: HUGE[huge]})
    assert two_short_lines(caught.value)


@pytest.mark.parametrize(
    ("option", "whole", "as_float"),
    [
        ("temperature", 10**30, 1e30),
        ("sequence_bias", {(1,): 10**30}, {(1,): 1e30}),
        ("sequence_bias", {(1,): -(10**30)}, {(1,): -1e30}),
        ("exponential_decay_length_penalty", (0, 10**30), (0, 1e30)),
        *((name, 1, 1.0) for name in ("top_p", "min_p", "typical_p", "repetition_penalty")),
        ("repetition_penalty", 1000, 1000.0),
    ],
)
def test_a_whole_number_is_the_float_of_its_value_however_large(option, whole, as_float, tiny_model):
    written = [
        minigpt.generate(tiny_model, [[1, 2]], max_new_tokens=3, eos_token_id=5, **{option: value})
        for value in (whole, as_float)
    ]
    assert written[0] == written[1]


def test_a_sequence_may_come_as_an_iterator(tiny_model):
    ids = [3, 1, 4, 1, 5]
    assert minigpt.token_log_probs(tiny_model, iter(ids)) == minigpt.token_log_probs(tiny_model, ids)
    assert minigpt.sequence_log_prob(tiny_model, iter([ids])) == [minigpt.sequence_log_prob(tiny_model, ids)]


@pytest.mark.parametrize("kind", [MiniGPTError, *MiniGPTError.__subclasses__()])
def test_every_error_shows_the_ends_of_an_endless_line(kind):
    error = kind(f"begins {TOO_LONG} ends", f"do this {TOO_LONG} or that")
    assert error.what.startswith("begins x")
    assert error.what.endswith("x ends")
    assert error.how.startswith("do this x")
    assert error.how.endswith("x or that")
    assert len(str(error)) <= LONGEST
    assert str(kind("what\nis wrong", "how")) == "what is wrong\nhow"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028"])
@pytest.mark.parametrize("names", [{}, {"k": "--k"}], ids=["in Python", "as a flag"])
def test_a_value_of_several_lines_leaves_no_mark_around_its_name(names, ends):
    value = type("Table", (), {"__repr__": lambda self: ends.join(["1 2", "3 4"])})()
    error = InputError(f"{named('k', value)} is no number", f"{named('k')} must be one")
    what, how = error.renamed(names)
    told = str(InputError(what, how))
    assert told == ("--k 1 2 3 4 is no number\n--k must be one" if names else str(error))
    assert str(error) == "k = 1 2 3 4 is no number\nk must be one"


@pytest.mark.parametrize(
    "table", [torch.ones(2, 3), np.ones((2, 3)), torch.nn.Sequential(torch.nn.Linear(2, 3))], ids=type
)
def test_a_table_in_the_place_of_a_setting_is_shown_on_a_line(table):
    calls = GPTConfig, minigpt.load_model, DecodingOptions
    for call, argument in zip(calls, ("n_layer", "spec", "top_k"), strict=True):
        with pytest.raises(MiniGPTError) as caught:
            call(**{argument: table})
        assert two_short_lines(caught.value)
        assert all(sign.isprintable() for sign in str(caught.value).replace("\n", ""))


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "changes"),
    [(2, {}), (1, {}), (5, {}), (3, {"n_head": 5}), (3, {"n_embd": 21}), (3, {"n_layer": 1})],
    ids=["fewer rows", "one row", "more rows", "other heads", "another width", "fewer layers"],
)
def test_a_cache_of_another_shape_is_refused(rows, changes, tiny_model, tiny_config):
    cache = KVCache(dataclasses.replace(tiny_config, **changes), rows)
    for taken in (0, torch.arange(rows) % 2):  # rows of one length, and of several
        cache.rollback(0 if cache.uniform == 0 else cache.length)
        cache.advance(2)
        cache.rollback(taken)
        with pytest.raises(InputError) as caught:
            tiny_model(torch.ones(3, 2, dtype=torch.int64), cache=cache)
        assert two_short_lines(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        *(lambda cache, rows=rows: cache.gather(torch.tensor(rows)) for rows in ([], [3], [-1], [1.0], 1, [[1]])),
        *(lambda cache, n=n: cache.rollback(torch.tensor(n)) for n in ([1, 1, 1, 1], [1.0, 1, 1], [[1]] * 3)),
        lambda cache: cache.rollback(6),
        lambda cache: cache.rollback(-1),
        lambda cache: cache.expand(0),
        *(lambda cache, rows=rows: cache.replace(rows[0], cache, rows[1]) for rows in ((3, 0), (0, 3), (-1, 0))),
        lambda cache: cache.replace(0, KVCache(GPTConfig(block_size=5, n_layer=1, n_head=1, n_embd=2), 1), 0),
    ],
)  # fmt: skip
def test_rows_that_a_cache_cannot_have_leave_it_as_it_was(call, tiny_config):
    cache = KVCache(tiny_config, 3)
    cache.advance(5)
    with pytest.raises(InputError) as caught:
        call(cache)
    assert two_short_lines(caught.value)
    assert cache.length.tolist() == [5, 5, 5]


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_cache_of_uneven_rows_takes_no_other_number_of_rows(rows, tiny_model, tiny_config):
    """One row would be spread over all of them without a word."""
    cache = KVCache(tiny_config, rows)
    tiny_model(torch.ones(rows, 3, dtype=torch.int64), cache=cache)
    cache.rollback(torch.arange(rows) % 2)
    for others in {1, rows - 1, rows + 1}:
        with pytest.raises(InputError, match=f"{others} row") as caught:
            tiny_model(torch.ones(others, 2, dtype=torch.int64), cache=cache)
        assert two_short_lines(caught.value)
    assert cache.length.tolist() == (3 - torch.arange(rows) % 2).tolist()


@torch.no_grad()
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("longer", [1, 4, 1000])
def test_a_cache_made_for_a_larger_block_takes_as_much_as_the_model_has_positions(
    longer, uneven, tiny_model, tiny_config
):
    block = tiny_config.block_size
    cache = KVCache(dataclasses.replace(tiny_config, block_size=block + longer), 2)
    idx = torch.arange(2 * block).view(2, block) % tiny_config.vocab_size
    assert torch.allclose(tiny_model(idx, cache=cache), tiny_model(idx), atol=1e-5)
    if uneven:
        cache.rollback(torch.tensor([0, 1]))
    with pytest.raises(InputError, match=f"{block} of the model's {block} positions") as caught:
        tiny_model(idx[:, :1], cache=cache)
    assert two_short_lines(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("computed", [torch.float32, torch.float64, torch.bfloat16])
def test_a_cache_may_store_in_another_dtype(stored, computed, tiny_model, tiny_config):
    model, idx = tiny_model.to(computed), torch.arange(10).view(2, 5)
    cache = KVCache(tiny_config, 2, dtype=stored)
    logits = torch.cat([model(idx[:, :3], cache=cache), model(idx[:, 3:], cache=cache)], dim=1)
    assert logits.dtype == computed
    coarse = torch.bfloat16 in (stored, computed)
    torch.testing.assert_close(logits, model(idx), rtol=0.1 if coarse else 1e-4, atol=0.1 if coarse else 1e-4)


def test_the_loss_of_one_row_of_logits_is_that_of_a_batch():
    logits = torch.from_numpy(np.linspace(-1.0, 2.0, 23))
    expected = math.log(sum(math.exp(x) for x in logits.tolist())) - logits[7].item()
    assert minigpt.next_token_loss(logits, torch.tensor(7)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "words",
    [
        "next --model {} a",
        "next --tokenizer {} --model saved a",
        "next --adapter {} --model saved a",
        "tokenize --tokenizer {} a",
        "inspect size --model {}",
        "export {} out",
        "export saved {}",
        "import {} out",
        "import saved {}",
        "train --resume {}",
        "train --init-from {}",
        "train --out {} --data text.txt",
        "train --data {}",
        "train --config {}",
        "eval --model saved --data {}",
        "generate a --strategy {}",
        "generate a --{}",
        "{}",
    ],
)
@pytest.mark.parametrize("long", [TOO_LONG, f"folder/{TOO_LONG}"], ids=["name", "path"])
def test_an_endless_word_of_a_command_is_a_mistake_in_two_lines(words, long, tiny_model, capsys):
    minigpt.save_hf(tiny_model, LETTERS, "saved")
    Path("text.txt").write_text("abcd" * 500)
    assert run([long if word == "{}" else word.format(long) for word in words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 1
    assert len(err) <= LONGEST
    assert "permissions" not in err
    assert sorted(path.name for path in Path().iterdir()) == ["saved", "text.txt"]
