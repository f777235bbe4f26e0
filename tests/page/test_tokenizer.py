"""The page's tokenizers against minigpt.tokenizers: the same ids, bytes and texts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt.cli.texts import token_text
from minigpt.tokenizers import AddedToken, CharTokenizer, GPT2Tokenizer, TextStream, Tokenizer
from tests.page.conftest import Call, Node, PageError
from tests.test_tokenizers import FORKS, TINY_MERGES, TRICKY_TEXTS

CHARACTERS = "".join(sorted(set("\n !'abcdefghijklmnop<>|é日😀\ufeff\u2028")))
# Merges that show where a word was cut, and one whose word no order of merging reaches: it is a token all the same.
CONTRACTIONS = ["' r", "'r e", "' v", "'v e", "' l", "'l l", "' m", "' t", "' d", "' S"]
UNREACHABLE = ["u v", "w x", "v w", "x y", "vw xy", "u vwxy"]
MERGES = [*TINY_MERGES, *CONTRACTIONS, *UNREACHABLE]
TOKENIZERS = {
    "char": CharTokenizer(CHARACTERS),
    "tiny": GPT2Tokenizer(MERGES),
    "added": GPT2Tokenizer(MERGES).with_added([AddedToken("[PAD]"), AddedToken("é!")], {}),
}


def the_tokenizer(name: str, tokenizer: Tokenizer) -> Call:
    return "tokenizer", {"name": name, "content": tokenizer.described()}


def drawn(pieces: list[str], count: int, most: int, seed: int) -> list[str]:
    """Texts of these pieces, of any length up to the most."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(most, (count,), generator=generator).tolist()
    return ["".join(pieces[i] for i in torch.randint(len(pieces), (n,), generator=generator)) for n in lengths]


def check_texts(node: Node, name: str, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Every text gives the same ids, and they give it back, whole and token by token."""
    expected = [tokenizer.encode(text) for text in texts]
    args = [{"tokenizer": name, "text": text} for text in texts]
    facts, *found = node([the_tokenizer(name, tokenizer), *[("encode", each) for each in args]])
    assert facts == {
        "vocab_size": tokenizer.vocab_size,
        "start_token_id": tokenizer.start_token_id,
        "special_ids": facts["special_ids"],
    }
    assert {*facts["special_ids"]} == tokenizer.special_ids
    for text, ids, right in zip(texts, found, expected, strict=True):
        assert ids == right, repr(text)
    calls: list[Call] = [("decode", {"tokenizer": name, "ids": ids}) for ids in expected]
    calls += [("stream", {"tokenizer": name, "prompt": ids[:2], "ids": ids[2:]}) for ids in expected]
    _, *results = node([the_tokenizer(name, tokenizer), *calls])
    decoded, streamed = results[: len(texts)], results[len(texts) :]
    assert decoded == texts
    for ids, pieces in zip(expected, streamed, strict=True):
        stream = TextStream(tokenizer, ids[:2])
        assert pieces == [*map(stream.feed, ids[2:]), stream.flush()]


def test_characters(node: Node):
    check_texts(node, "char", TOKENIZERS["char"], ["", "\ufeffab", *drawn(list(CHARACTERS), 50, 20, 1)])


@pytest.mark.parametrize("name", ["tiny", "added"])
def test_byte_pairs(node: Node, name: str):
    spelled = ["<|endoftext|>", "[PAD]", "é!", " aaaaaaa", "uvwxy", "uv", "xyuvw"]
    check_texts(node, name, TOKENIZERS[name], [*TRICKY_TEXTS, *drawn([*FORKS, *spelled], 300, 20, 2)])


@pytest.mark.shared
def test_the_published_byte_pairs(node: Node):
    letters = [*FORKS, *"etaoinshrdlu", " the", "ing", "—", "\n\n", "<|endoftext|>", "ſ", "ǅ", "٣", "²"]
    books = [Path(__file__).read_text("utf-8"), "a" * 300, " " * 1000 + "x"]
    check_texts(node, "gpt2", GPT2Tokenizer(), [*TRICKY_TEXTS, *books, *drawn(letters, 300, 60, 3)])


def test_any_bytes_and_what_is_shown_of_a_token(node: Node):
    """Ids that no text gives: halves of characters, special tokens, ids that only pad the model's vocabulary."""
    tokenizer = TOKENIZERS["added"]
    size = tokenizer.vocab_size + len(tokenizer.added)
    generator = torch.Generator().manual_seed(4)
    lists: list[list[int]] = [torch.randint(size, (n % 9,), generator=generator).tolist() for n in range(200)]
    calls: list[Call] = [("decode", {"tokenizer": "added", "ids": ids}) for ids in lists]
    calls += [("stream", {"tokenizer": "added", "prompt": [], "ids": ids}) for ids in lists]
    calls.append(("pieces", {"tokenizer": "added", "ids": [*range(size + 3)]}))
    _, *results = node([the_tokenizer("added", tokenizer), *calls])
    assert results[:200] == [tokenizer.decode(ids) for ids in lists]
    assert ["".join(pieces) for pieces in results[200:400]] == results[:200]
    for token_id, text, bytes_, special in results[400][:size]:
        assert text == token_text(tokenizer, token_id, "backslashreplace")
        assert bytes(bytes_) == tokenizer.token_bytes(token_id)
        assert special == (token_id in tokenizer.special_ids)
    assert [piece[1:] for piece in results[400][size:]] == [[f"#{size + n}", [], False] for n in range(3)]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("encode", {"tokenizer": "char", "text": "abxz"}, "vocabulary of 28: 'x' (U+0078), 'z' (U+007A)"),
    ("encode", {"tokenizer": "char", "text": "🤖"}, "'🤖' (U+1F916)"),
    ("encode", {"tokenizer": "char", "text": "ab\ud83d"}, "a lone surrogate at position 2"),
    ("encode", {"tokenizer": "tiny", "text": "\ude00a"}, "a lone surrogate at position 0"),
    ("encode_prompt", {"tokenizer": "short", "text": ""}, "no token to start from"),
    ("tokenizer", {"name": "new", "content": {"type": "sentencepiece"}}, "a tokenizer of type 'sentencepiece'"),
]


def test_what_cannot_be_read_is_refused(node: Node):
    tokenizers = TOKENIZERS | {"short": CharTokenizer("ab")}
    calls = [the_tokenizer(name, tokenizer) for name, tokenizer in tokenizers.items()]
    prompts: list[Call] = [("encode_prompt", {"tokenizer": name, "text": ""}) for name in ("char", "tiny")]
    results = node([*calls, *prompts, *[(call, args) for call, args, _ in REFUSED]])
    assert results[4:6] == [[CHARACTERS.index("\n")], [256 + len(MERGES)]]
    for result, (_, _, said) in zip(results[6:], REFUSED, strict=True):
        assert isinstance(result, PageError), said
        assert said in str(result)
        assert len(str(result).splitlines()) == 2
