"""Every parameter of every public function meets values of other types: two lines, or what it was asked for."""

import functools
import inspect
import math
import re
import shutil
import types
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import minigpt
import minigpt.analysis.edits as analysis_edits
import minigpt.analysis.recording as analysis_trace
from minigpt import GPT, GPTConfig, MiniGPTError, analysis, config, lora, replies, tokenizers
from minigpt.data.batches import Batch, encode
from minigpt.data.dialogues import with_template
from minigpt.data.documents import Document
from minigpt.tokenizers import CharTokenizer, TextStream
from tests.conftest import TINY, random_model

ROOT = Path(__file__).parents[1]
LETTERS = CharTokenizer("\n:abcdefghijklmnopqrstu")
IDS = [3, 1, 4, 1, 5]
DOCUMENTS = [Document("ab"), Document("cd"), Document("efg")]
NOT_CALLED = {
    "minigpt.MiniGPTError",  # raised, not called
    "minigpt.open_source",  # its one argument meets more values in test_wrong_arguments
    "minigpt.GPTConfig",  # settings, whose fields test_config checks
    "minigpt.DecodingOptions",  # likewise, in test_wrong_arguments
    *("minigpt.lora.LoRALinear", "minigpt.lora.LowRank"),  # made by add_lora
    *("minigpt.tokenizers.Tokenizer", "minigpt.tokenizers.TokenBytes"),  # what others are
    "minigpt.tokenizers.AddedToken",  # a record of a file
    *("minigpt.tokenizers.check_has_tokenizer", "minigpt.tokenizers.check_vocabulary"),  # called by our own code alone
}


def documented() -> dict[str, Callable[..., Any]]:
    """The functions that the README and docs/ import from a file of the package."""
    pages = "\n".join(
        page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    )
    found = {"minigpt.data.dialogues.render": import_module("minigpt.data.dialogues").render}
    for module, names in re.findall(r"^from (minigpt\.\w+\.\w+) import (.+)$", pages, re.MULTILINE):
        found |= {f"{module}.{name}": getattr(import_module(module), name) for name in names.split(", ")}
    return {name: thing for name, thing in found.items() if not name.startswith("minigpt.analysis.")}


def methods() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The methods with which people read results, each with arguments."""
    model = GPT(GPTConfig(vocab_size=23, block_size=13, n_layer=2, n_head=3, n_embd=15)).eval()
    with torch.no_grad(), analysis.trace(model) as t:
        model(torch.tensor([IDS]))
    parts, heads = analysis.attribute(t, 3), analysis.head_scores(model)
    cache, other = (minigpt.KVCache(model.config, 2) for _ in range(2))
    cache.advance(5)
    return {
        "KVCache.rollback": (cache.rollback, {"num_tokens": torch.tensor([1, 2])}),
        "KVCache.gather": (cache.gather, {"rows": torch.tensor([1, 0]), "first_column": 0}),
        "KVCache.expand": (cache.expand, {"num_copies": 1}),
        "KVCache.replace": (cache.replace, {"row": 1, "other": other, "other_row": 1}),
        "Trace.__getitem__": (t.__getitem__, {"name": "logits"}),
        "LogitLens.top": (analysis.logit_lens(t).top, {"k": 3}),
        "LogitLens.rank_of": (analysis.logit_lens(t).rank_of, {"token_id": 3}),
        "TokenLosses.bits_per_byte": (analysis.token_losses(model, IDS).bits_per_byte, {"num_bytes": 3}),
        "Trace.positions": (t.positions, {"name": "logits"}),
        "Trace.shared_positions": (t.shared_positions, {"names": ["logits"]}),
        "ResidualNorms.largest": (analysis.residual_norms(t).largest, {"k": 3}),
        "Sweep.top": (analysis.ablation_sweep(model, [IDS], lambda logits: float(logits[0, -1, 3])).top, {"k": 3}),
        "TextStream.feed": (TextStream(LETTERS).feed, {"token_id": 3}),
        "TokenLosses.top": (analysis.token_losses(model, IDS).top, {"k": 3}),
        "Attribution.top": (parts.top, {"k": 3}),
        "HeadScores.sorted": (heads.sorted, {"kind": "previous"}),
        "HeadScores.best": (heads.best, {"kind": "previous", "k": 3}),
        "Tokenizer.decode": (LETTERS.decode, {"ids": IDS, "skip_special": True}),
        "Tokenizer.special_id": (LETTERS.special_id, {"role": "pad_token"}),
        "Tokenizer.decode_batch": (LETTERS.decode_batch, {"sequences": [IDS], "skip_special": True}),
    }


@functools.cache
def public() -> dict[str, Callable[..., Any]]:
    """The functions and classes that each room offers."""
    rooms = {
        minigpt: sorted(
            {*minigpt.__all__} - {"analysis", "errors", "replies", "tokenizers"}
        ),  # the same in every process
        analysis: analysis.__all__,
        replies: [n for n, thing in vars(replies).items() if getattr(thing, "__module__", "") == "minigpt.replies"],
        lora: lora.__all__,
        tokenizers: [
            n for n, thing in vars(tokenizers).items() if getattr(thing, "__module__", "") == "minigpt.tokenizers"
        ],
        config: ["preset", "updated"],
    }
    found = {f"{room.__name__}.{name}": getattr(room, name) for room, names in rooms.items() for name in names}
    found["minigpt.tokenizers.CharTokenizer.from_text"] = CharTokenizer.from_text
    found["minigpt.tokenizers.CharTokenizer.save"] = LETTERS.save
    found |= documented()
    return {name: thing for name, thing in found.items() if name not in NOT_CALLED and "._" not in name}


@functools.cache
def read_only() -> tuple[analysis_trace.Trace, Any]:
    """What takes a while to make, and what nothing changes: the values of the model, and texts as ids."""
    model = random_model(TINY, 7)
    with analysis.trace(model) as t:
        model(torch.tensor([IDS]))
    return t, encode(DOCUMENTS, LETTERS, 2, 5, 7)


def arguments(name: str, model: GPT) -> dict[str, Any]:
    """Arguments with which a public function does its work."""
    shape = model.config
    adapted = GPT(shape) if ".lora." in name else model
    if ".lora." in name:
        lora.add_lora(adapted, lora.LoRAConfig(), 0)
        if name.endswith(".unmerge"):
            lora.merge(adapted)
    t, encoded = read_only()
    metric = lambda logits: float(logits[0, -1, 3])  # noqa: E731
    given: dict[str, dict[str, Any]] = {
        "minigpt.GPT": {"config": shape},
        "minigpt.Chat": {
            "model": model, "tokenizer": with_template(LETTERS), "turns": 2, "system": "ab", "reply_as": "c",
            "user": "d", "messages": [], "filters": [replies.loops], "tries": 2, "max_new_tokens": 3, "seed": 1,
        },
        "minigpt.KVCache": {"config": shape, "batch_size": 2, "max_length": 5, "dtype": torch.float32, "device": "cpu"},
        "minigpt.complete": {
            "model": model, "tokenizer": LETTERS, "prompt": "ab", "max_new_tokens": 2, "strategy": "greedy",
            "draft": None, "skip_special": True,
        },
        "minigpt.few_shot_prompt": {
            "examples": [("a", "b")], "query": "c", "instruction": "d", "input_label": "e:", "output_label": "f:",
            "separator": "##",
        },
        "minigpt.generate": {
            "model": model, "prompts": [IDS], "tokenizer": LETTERS, "draft": None, "on_step": None,
            "num_candidates": 3, "max_new_tokens": 2,
        },
        "minigpt.load_model": {
            "spec": "saved", "tokenizer": None, "block_size": 7, "dropout": 0.1, "weights": None, "adapter": None,
        },
        "minigpt.pack": {"model": model, "weights": "float32", "keep": True},
        "minigpt.save_hf": {"model": model, "tokenizer": LETTERS, "folder": "out", "carried": None},
        "minigpt.save_run": {
            "model": model, "tokenizer": LETTERS, "folder": "out", "trained": None, "carried": None,
        },
        "minigpt.next_token_loss": {"logits": torch.zeros(2, 23), "targets": torch.zeros(2, dtype=torch.int64)},
        "minigpt.next_token_table": {"model": model, "ids": IDS, "k": 3, "vocab_size": 21},
        "minigpt.sequence_log_prob": {"model": model, "ids": IDS, "vocab_size": 21},
        "minigpt.token_log_probs": {"model": model, "ids": IDS, "vocab_size": 21},
        "minigpt.stream": {
            "model": model, "prompt_ids": IDS, "tokenizer": LETTERS, "draft": None, "cache": None, "on_step": None,
            "num_candidates": 3, "max_new_tokens": 2,
        },
        "minigpt.analysis.ablate": {"what": "0.1", "mode": "mean", "reference": t, "at": 2, "seed": 3},
        "minigpt.analysis.ablation_sweep": {
            "model": model, "ids": [IDS], "metric": metric, "mode": "zero", "reference": None,
            "what": "mlps", "seed": 3,
        },
        "minigpt.analysis.attribute": {
            "t": t, "target": 3, "against": 5, "by": "head", "position": -1, "row": 0,
        },
        "minigpt.analysis.edit": {"model": model},
        "minigpt.analysis.head_scores": {
            "model": model, "ids": None, "seed": 3, "length": 5, "start_token_id": 2, "vocab_size": 21,
        },
        "minigpt.analysis.knockout": {"layer": 0, "head": 1, "query": 3, "key": 2},
        "minigpt.analysis.logit_lens": {"t": t, "points": "*.resid_post", "vocab_size": 21},
        "minigpt.analysis.model_size": {
            "config": shape, "batch_size": 2, "tokens": 3, "bytes_per_value": 4, "optimizer": "adamw",
            "attention": "fused",
        },
        "minigpt.analysis.neighbours": {
            "model": model, "token_id": 3, "k": 2, "kind": "cosine", "table": "wte", "vocab_size": 21,
        },
        "minigpt.analysis.patch": {"point": "blocks.0.attn.z", "source": t, "at": 2, "head": 1},
        "minigpt.analysis.patching_sweep": {
            "model": model, "clean": [IDS], "corrupt": [[2, *IDS[1:]]], "metric": metric, "point": "attn.z",
        },
        "minigpt.analysis.pca": {"matrix": torch.eye(5, 3), "k": 2},
        "minigpt.analysis.plan": {
            "config": shape, "batch_size": 2, "tokens": 3, "points": "*", "dtype": torch.float32,
        },
        "minigpt.analysis.points": {"config": shape},
        "minigpt.analysis.position_similarity": {"model": model},
        "minigpt.analysis.residual_norms": {"t": t},
        "minigpt.analysis.token_losses": {"model": model, "ids": IDS, "vocab_size": 21},
        "minigpt.analysis.total_effects": {"model": model, "ids": [IDS], "metric": metric, "parts": ["0.1"]},
        "minigpt.analysis.trace": {
            "model": model, "points": "*", "device": None, "dtype": None, "positions": None, "grad": False,
        },
        "minigpt.replies.length": {"least": 2, "most": 5},
        "minigpt.replies.blocklist": {"words": ["a"]},
        "minigpt.replies.read_blocklist": {"path": "saved.json"},
        "minigpt.replies.faults": {"reply": "a", "messages": [], "filters": [replies.loops]},
        **{f"minigpt.replies.{n}": {"reply": "a", "messages": []}
           for n in ("is_empty", "echoes", "repeats_itself", "loops")},
        "minigpt.lora.add_lora": {"model": model, "config": lora.LoRAConfig(), "seed": 3, "name": "other"},
        "minigpt.lora.set_adapter": {"model": adapted, "name": "default"},
        "minigpt.tokenizers.CharTokenizer": {"characters": "ab", "unknown": "error"},
        "minigpt.tokenizers.CharTokenizer.from_text": {"text": "ab", "unknown": "error"},
        "minigpt.tokenizers.CharTokenizer.save": {"path": "tokenizer.json"},
        "minigpt.tokenizers.GPT2Tokenizer": {"merges": ["a b"]},
        "minigpt.tokenizers.TextStream": {"tokenizer": LETTERS, "prompt_ids": IDS, "skip_special": True},
        "minigpt.tokenizers.encode_prompt": {"tokenizer": LETTERS, "text": "ab"},
        "minigpt.tokenizers.load_tokenizer": {"path": "saved.json"},
        "minigpt.tokenizers.note_special": {"tokenizer": LETTERS, "texts": ["ab"], "how": "write it otherwise"},
        "minigpt.tokenizers.read": {"tokenizer": LETTERS, "text": "ab"},
        "minigpt.data.batches.encode": {
            "documents": DOCUMENTS, "tokenizer": LETTERS, "eos_id": 2, "max_length": 5, "block_size": 7,
            "earlier": False,
        },
        "minigpt.data.batches.padded": {"encoded": encoded, "batch_size": 2, "seed": 3, "epoch": 1},
        "minigpt.data.dialogues.render": {"messages": [{"role": "user", "content": "a"}], "reply_as": "b"},
        "minigpt.data.documents.keyword_line": {"words": ["ab"]},
        "minigpt.data.documents.read_documents": {"path": "saved.txt", "settings": config.DocumentsConfig()},
        "minigpt.data.documents.split": {
            "documents": DOCUMENTS, "train_size": 1, "val_size": 1, "seed": 3, "validation": None,
        },
        "minigpt.data.documents.with_keywords": {"documents": DOCUMENTS, "k": 2, "training": DOCUMENTS},
        "minigpt.evaluation.loss.evaluate_batches": {
            "model": model, "batches": [Batch(torch.tensor([IDS]), torch.tensor([IDS]))], "dtype": torch.float32,
            "vocab_size": 21,
        },
        "minigpt.config.preset": {"name": "shakespeare-quick"},
        "minigpt.config.updated": {"config": config.RunConfig(), "values": {"seed": 3}, "where": "a."},
    }  # fmt: skip
    return given.get(name) or {"model": adapted}


def used(result: Any, model: GPT) -> None:
    """What is lazy does its work."""
    if isinstance(result, Generator):
        list(result)
    if isinstance(result, analysis_edits.Edit):
        result = analysis.edit(model, result)
    if isinstance(result, AbstractContextManager):
        with result:
            model(torch.tensor([IDS]))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are read, written once."""
    folder = tmp_path_factory.mktemp("written")
    minigpt.save_hf(random_model(TINY, 7), LETTERS, folder / "saved")
    LETTERS.save(folder / "saved.json")
    (folder / "saved.txt").write_text("ab\ncd\n", encoding="utf-8")
    return folder


@pytest.fixture
def files(written: Path) -> None:
    """In the folder of each test, where they can be spoiled."""
    shutil.copytree(written, ".", dirs_exist_ok=True)


WRONG = [None, "x", 1.5, True, -1, [], torch.tensor(math.nan)]


def may_be(value: object, hint: Any) -> bool:
    """Whether an annotation allows a value; of what is not decided here, such as lists of ids, it may."""
    if get_origin(hint) is Annotated:
        return may_be(value, get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return any(may_be(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return any(type(value) is type(part) and value == part for part in get_args(hint))
    if hint is float:
        return type(value) in (int, float)
    if hint in (bool, int, str, type(None)):
        return type(value) is hint
    # None of the wrong values is one of these.
    return hint not in (GPT, GPTConfig, analysis_trace.Trace, torch.dtype, torch.device, Path, lora.LoRAConfig)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", public())
def test_the_arguments_to_begin_with_are_right(name, tiny_model):
    function, given = public()[name], arguments(name, tiny_model)
    known = inspect.signature(function).parameters.values()
    missing = {one.name for one in known if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)} - {*given}
    assert name == "minigpt.complete" or not missing  # whose options test_wrong_arguments has
    used(function(**given), tiny_model)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("name", "parameter"),
    [(name, one.name) for name, function in public().items() for one in inspect.signature(function).parameters.values()
     if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.annotation is not Any],
)  # fmt: skip
def test_an_argument_of_another_type_is_a_mistake_in_two_lines(name, parameter, tiny_model):
    function = public()[name]
    home = function.__init__ if isinstance(function, type) else function
    hint = get_type_hints(home, include_extras=True)[parameter]
    for wrong in WRONG:
        given = {**arguments(name, tiny_model), parameter: wrong}
        try:
            used(function(**given), tiny_model)
        except MiniGPTError as error:
            assert str(error).count("\n") == 1  # noqa: PT017 (there need not be one)
        else:
            assert may_be(wrong, hint), f"{wrong!r} was taken without a word"


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, parameter) for name, (_, given) in methods().items() for parameter in given]
)
def test_so_do_methods(name, parameter):
    method, given = methods()[name]
    method(**given)
    hint = get_type_hints(method, include_extras=True)[parameter]
    for wrong in WRONG:
        try:
            method(**given | {parameter: wrong})
        except MiniGPTError as error:
            assert str(error).count("\n") == 1  # noqa: PT017 (there need not be one)
        else:
            assert may_be(wrong, hint), f"{wrong!r} was taken without a word"


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_numpy_and_torch_are_numbers(number, tiny_model):
    found = analysis.neighbours(tiny_model, number, number)
    assert found == analysis.neighbours(tiny_model, 3, 3)
    assert type(found.token_id) is int
    assert minigpt.next_token_table(tiny_model, IDS, number) == minigpt.next_token_table(tiny_model, IDS, 3)


def test_a_checked_function_still_looks_like_itself():
    signature = inspect.signature(analysis.neighbours)
    assert list(signature.parameters) == ["model", "token_id", "k", "kind", "table", "vocab_size"]
    assert analysis.neighbours.__doc__.startswith("The rows of an embedding table")
    with pytest.raises(TypeError, match=r"neighbours\(\) missing 1 required positional argument: 'token_id'"):
        analysis.neighbours(GPT(GPTConfig(vocab_size=5, block_size=3, n_layer=1, n_head=1, n_embd=2)))


def test_a_compiled_model_is_a_model(tiny_model):
    compiled = torch.compile(tiny_model, backend="eager")
    assert minigpt.generate(compiled, [IDS], max_new_tokens=2) == minigpt.generate(tiny_model, [IDS], max_new_tokens=2)
