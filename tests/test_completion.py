"""Text in, text out: the same tokens as `generate`, with the tokenizer on both sides."""

import dataclasses
import inspect
from typing import Any, get_type_hints

import pytest
import torch

import minigpt
from minigpt.config import GPTConfig
from minigpt.decoding.generate import generate
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.speculative import PromptLookup
from minigpt.errors import InputError, TextNote
from minigpt.model import GPT
from minigpt.tokenizers import END_OF_TEXT, CharTokenizer, GPT2Tokenizer
from tests.conftest import random_model

TOKENIZER = GPT2Tokenizer(["t h", "th e"])
EOS = TOKENIZER.eos_token_id


@pytest.fixture(scope="module")
def model() -> GPT:
    """With padding in its vocabulary, and the likeliest of its tokens in it; it often ends a document."""
    model = random_model(GPTConfig(TOKENIZER.vocab_size + 5, block_size=31, n_layer=2, n_head=1, n_embd=7), 3)
    with torch.no_grad():
        model.wte.weight[:, 0] = 0
        model.wte.weight[EOS:, 0] = torch.tensor([0.7] + [5.0] * 5)
        model.ln_f.bias[0] = 6
    return model


def test_every_option_is_named_in_the_signature():
    named = inspect.signature(minigpt.complete).parameters
    options = {field.name: field for field in dataclasses.fields(DecodingOptions)}
    assert [*named][:3] == ["model", "tokenizer", "prompt"]
    assert [*named][3:] == [*options, "draft", "skip_special"]
    hints = inspect.get_annotations(minigpt.complete, eval_str=True)
    types = get_type_hints(DecodingOptions)
    for name, field in options.items():
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        assert named[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert (named[name].default, hints[name]) == (default, types[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "greedy"},
        {"strategy": "beam", "num_beams": 3},
        {"num_return_sequences": 3, "seed": 5},
        {"temperature": 1.5, "top_k": 7, "eos_token_id": 104, "draft": PromptLookup(), "seed": 2},
    ],
)
def test_it_is_generate_with_text_on_both_sides(model: GPT, options: dict[str, Any]):
    prompts = ["the", "y", ""]
    rows = [TOKENIZER.encode(prompt) or [EOS] for prompt in prompts]
    out = generate(model, rows, tokenizer=TOKENIZER, max_new_tokens=23, **{"eos_token_id": EOS, **options})
    found = minigpt.complete(model, TOKENIZER, prompts, max_new_tokens=23, **options)
    assert found == TOKENIZER.decode_batch(out.sequences)
    shown = minigpt.complete(model, TOKENIZER, prompts, max_new_tokens=23, skip_special=False, **options)
    assert shown != found
    if "eos_token_id" not in options:  # else it stands inside, perhaps between two halves of a character
        assert [text.replace(END_OF_TEXT, "") for text in shown] == found
    alone = generate(model, rows[:1], tokenizer=TOKENIZER, max_new_tokens=23, **{"eos_token_id": EOS, **options})
    texts = TOKENIZER.decode_batch(alone.sequences)
    one = minigpt.complete(model, TOKENIZER, "the", max_new_tokens=23, **options)
    assert one == (texts if options.get("num_return_sequences") else texts[0])


def test_a_text_ends_before_its_stop_string(model: GPT):
    free = minigpt.complete(model, TOKENIZER, "the", max_new_tokens=23, eos_token_id=(), seed=1)
    assert isinstance(free, str)
    stop = free[9:11]
    for given in (stop, ["never", stop]):
        cut = minigpt.complete(model, TOKENIZER, "the", max_new_tokens=23, eos_token_id=(), seed=1, stop=given)
        assert cut == "the" + free[3:].partition(stop)[0]


@pytest.mark.parametrize("stop", [END_OF_TEXT, "of"])
@pytest.mark.parametrize("skip_special", [False, True])
def test_a_special_tokens_name_is_text_for_a_stop_string(model: GPT, stop: str, skip_special: bool):
    """Also where the name is not shown, and where the string is a part of it."""
    options: dict[str, Any] = {"sequence_bias": {(EOS,): 1e3}, "max_new_tokens": 7, "eos_token_id": (), "stop": stop}
    out = generate(model, [TOKENIZER.encode("the")], tokenizer=TOKENIZER, **options)
    assert (out.sequences[0][-2:], out.finish_reasons) == ([TOKENIZER.encode("the")[-1], EOS], ["stop"])
    text = minigpt.complete(model, TOKENIZER, "the", skip_special=skip_special, **options)
    assert text == "the" + ("" if skip_special else END_OF_TEXT.partition(stop)[0])


def test_a_name_in_a_prompt_is_text_unless_the_tokenizer_says_otherwise(model: GPT):
    text, reading = f"the{END_OF_TEXT}y", GPT2Tokenizer(["t h", "th e"])
    with pytest.warns(TextNote, match="is read as text; --special"):
        minigpt.complete(model, reading, text, max_new_tokens=1)
    reading.allow_special = True
    ids = [*TOKENIZER.encode("the"), EOS, *TOKENIZER.encode("y")]
    assert reading.encode(text) == reading.encode_array(text).tolist() == ids
    assert reading.encode(text, allow_special=False) == TOKENIZER.encode(text)
    assert reading.fingerprint() == TOKENIZER.fingerprint()
    out = generate(model, [ids], tokenizer=TOKENIZER, max_new_tokens=5, eos_token_id=EOS)
    found = minigpt.complete(model, reading, text, max_new_tokens=5)
    assert isinstance(found, str)
    assert found.removeprefix(text) == TOKENIZER.decode(out.sequences[0][len(ids) :])


def test_a_model_of_characters(tiny_model: GPT):
    tokenizer = CharTokenizer("abcdefghijklmnopqrstu \n")
    out = generate(tiny_model, [tokenizer.encode("ab c")], max_new_tokens=9)
    assert minigpt.complete(tiny_model, tokenizer, "ab c", max_new_tokens=9) == tokenizer.decode(out.sequences[0])


@pytest.mark.parametrize("nobody", [None, "gpt2"])
def test_text_needs_a_tokenizer(model: GPT, nobody: Any):
    with pytest.raises(
        InputError,
        match=r"tokenizer = .* is of the wrong type .*\n.* a tokenizer: the model's; if load_model",
    ):
        minigpt.complete(model, nobody, "the")


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]], ["a", 3], [None]])
def test_ids_are_no_text(model: GPT, prompt: Any):
    with pytest.raises(InputError, match=r"prompt = .* is no text\ngive a string"):
        minigpt.complete(model, TOKENIZER, prompt)
