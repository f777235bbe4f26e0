"""Tokenizers in the reference layout: the reference is the oracle, for what is accepted and for what is refused."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import CheckpointError, ConfigError, DataError, InputError, MissingFileError
from minigpt.formats import tokenizer_files
from minigpt.formats.tokenizer_files import load_hf_tokenizer, named_tokenizer, save_hf_tokenizer
from minigpt.tokenizers import END_OF_TEXT, AddedToken, CharTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer

hf = pytest.importorskip("tokenizers", reason="needs the extra [dev]")  # Hugging Face's, no code of tiktoken in it
transformers = pytest.importorskip("transformers", reason="needs the extra [dev]")

thorough = settings(max_examples=200, deadline=None)
BLOCK_SIZE = 13
SIZE = 401  # of the vocabulary that is trained here, without <|endoftext|>

# A few lines to learn pairs from: words with and without a blank, contractions, indents, blank lines, other scripts.
LINES = [
    "the cat sat on the mat, and the rat's hat wasn't the cat's; they'll see it's theirs, we've said, I'd, you're\n",
    "def the_cat(sat):\n    if sat:\n        return  the_cat(sat - 1)  # 1234 == 12 * 34\n\n\n    return 22 / 7\n",
    "naïve café Ångström русский кот 日本語 日本 😀😃 👩‍👩‍👧 ½ ² Ⅷ ٣٤\u3000\xa0 \t\t!!! ... ?!\r\n\r\n",
] * 3
# Where GPT-2's pattern forks: contractions, blanks of every kind, marks, digits of other scripts, the special token.
# fmt: off
FORKS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'", "’s", "the", " the", "cat", "THE", "é", "e\u0301",
         "日本", " кот", "😀", "👩\u200d👧", "1", "34", "½", "²", "٣", "Ⅷ", "!", "...", "_", " ", "  ", "    ", "\n",
         "\n\n", "\t", "\r\n", "\x00", "\x1c", "\x85", "\xa0", "\u180e", "\u200b", "\u2028", "\u3000", "\ufeff",
         "\ue000", "\U0010ffff", "def f(x):\n    return", END_OF_TEXT, "<|endoftext", "|>"]
# fmt: on
any_text = st.text() | st.lists(st.sampled_from(FORKS), max_size=20).map("".join)
TEXTS = ["", *FORKS, *LINES[:3], "".join(FORKS), " ".join(reversed(FORKS))]

CHARACTERS = "\n !\"'\\/a{b}cdé\u0301\u200d\ufeff\ue000\x00\x7f\x85\xa0\u2028\u3000\t\r日😀👩\U0010ffff'’"


@pytest.fixture(scope="module")
def trained() -> Any:
    """A byte-level BPE of their library, trained by their trainer; <|endoftext|> added behind what it learned."""
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    assert tokenizer.get_vocab_size() == SIZE + 1
    return tokenizer


@pytest.fixture(scope="module")
def described(trained: Any) -> dict[str, Any]:
    """Its tokenizer.json, parsed."""
    content: dict[str, Any] = json.loads(trained.to_str())
    return content


@pytest.fixture(scope="module")
def pairs(described: dict[str, Any]) -> GPT2Tokenizer:
    return GPT2Tokenizer([" ".join(merge) for merge in described["model"]["merges"]])


@pytest.fixture(scope="module")
def exported(pairs: GPT2Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(pairs, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", "not set"))
    if not (folder / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").is_file():
        pytest.skip("needs GPT-2's vocab.bpe: set TIKTOKEN_CACHE_DIR to a tiktoken cache that has it")
    return GPT2Tokenizer()


def export(tokenizer: Tokenizer, folder: Path) -> Path:
    """The tokenizer beside a config.json, as with a model."""
    save_hf_tokenizer(tokenizer, folder, BLOCK_SIZE)
    write(folder, {"config.json": {"model_type": "gpt2", "n_positions": BLOCK_SIZE}})
    return folder


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        folder.joinpath(name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def agree(ours: GPT2Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert theirs.encode(text, split_special_tokens=True) == ids
    assert theirs.decode(ids) == ours.decode(ids) == text
    special = ours.encode(text, allow_special=True)
    assert theirs.encode(text) == special  # their default is our exception
    assert theirs.decode(special) == ours.decode(special, skip_special=False) == text
    assert theirs.decode(special, skip_special_tokens=True) == ours.decode(special)


# --- out: their tokenizer from our files


def test_byte_pairs_are_the_same_there(pairs: GPT2Tokenizer, exported: Path) -> None:
    theirs = reference(exported)
    for text in TEXTS:
        agree(pairs, theirs, text)
    thorough(given(any_text)(lambda text: agree(pairs, theirs, text)))()
    assert pairs.encode("the cat") != pairs.encode("thecat")  # merges and words play a part in it


def test_any_ids_are_the_same_text_there(pairs: GPT2Tokenizer, exported: Path) -> None:
    theirs = reference(exported)

    @thorough
    @given(st.lists(st.integers(0, SIZE) | st.integers(180, 260)))  # often halves of characters
    def same(ids: list[int]) -> None:
        assert theirs.decode(ids) == pairs.decode(ids, skip_special=False)

    same()


def test_their_tokenizer_knows_what_the_model_takes(exported: Path) -> None:
    theirs = reference(exported)
    assert type(theirs) is transformers.GPT2Tokenizer
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == (END_OF_TEXT,) * 3
    assert (theirs.eos_token_id, len(theirs), theirs.model_max_length) == (SIZE, SIZE + 1, BLOCK_SIZE)
    assert {path.name for path in exported.iterdir()} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    }


def test_their_older_files_suffice(pairs: GPT2Tokenizer, exported: Path, tmp_path: Path) -> None:
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    theirs = reference(tmp_path)
    for text in TEXTS:
        agree(pairs, theirs, text)


def test_characters_are_the_same_there(tmp_path: Path) -> None:
    ours = CharTokenizer.from_text(CHARACTERS)
    theirs = reference(export(ours, tmp_path))
    assert type(theirs) is transformers.PreTrainedTokenizerFast  # not GPT-2's, for all that config.json says
    assert (len(theirs), theirs.model_max_length) == (len(set(CHARACTERS)), BLOCK_SIZE)
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == (None,) * 3

    @thorough
    @given(st.text(alphabet=CHARACTERS))
    def same(text: str) -> None:
        ids = ours.encode(text)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == text

    same()
    assert theirs("a b", return_tensors="pt").input_ids.tolist() == [ours.encode("a b")]


@settings(deadline=None)
@given(corpus=st.text(min_size=1), order=st.randoms(use_true_random=False))
def test_any_characters_in_any_order(corpus: str, order: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    characters = sorted(set(corpus))
    order.shuffle(characters)
    ours = CharTokenizer("".join(characters))
    folder = tmp_path_factory.mktemp("characters")
    save_hf_tokenizer(ours, folder, BLOCK_SIZE)
    theirs = hf.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert theirs.encode(corpus).ids == [characters.index(character) for character in corpus]
    assert theirs.decode(theirs.encode(corpus).ids) == corpus
    loaded = load_hf_tokenizer(folder)
    assert loaded.fingerprint() == ours.fingerprint()
    assert loaded.encode(corpus) == ours.encode(corpus)


def test_unknown_characters_are_an_error_there_too(tmp_path: Path) -> None:
    theirs = reference(export(CharTokenizer("abc"), tmp_path))
    with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
        theirs.encode("abd")


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    class Words:
        vocab_size = 2

    with pytest.raises(ConfigError, match="a Words has no form in transformers' layout"):
        save_hf_tokenizer(Words(), tmp_path, BLOCK_SIZE)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# --- back again


@pytest.mark.parametrize("use", ["", "truncation", "padding"])
@pytest.mark.parametrize("kind", ["pairs", "characters"])
def test_round_trips(kind: str, use: str, pairs: GPT2Tokenizer, tmp_path: Path) -> None:
    ours: Tokenizer = pairs if kind == "pairs" else CharTokenizer(CHARACTERS[:-2])
    theirs = reference(export(ours, tmp_path / "ours"))
    assert load_hf_tokenizer(tmp_path / "ours").fingerprint() == ours.fingerprint()
    if use == "truncation":  # the setting stays in what they save, without effect on the next call
        theirs("abc", truncation=True, max_length=2)
    if use == "padding" and kind == "pairs":
        theirs.pad_token = theirs.eos_token
        theirs(["a", "the cat"], padding=True)
    theirs.save_pretrained(tmp_path / "theirs")
    saved = json.loads((tmp_path / "theirs" / "tokenizer.json").read_text(encoding="utf-8"))
    assert not use or kind == "characters" or saved[use] is not None
    loaded = load_hf_tokenizer(tmp_path / "theirs")
    assert loaded.fingerprint() == ours.fingerprint()
    write(tmp_path / "theirs", {"config.json": {"model_type": "gpt2"}})
    assert reference(tmp_path / "theirs").encode("abc !") == loaded.encode("abc !")


def test_trained_vocabulary_is_read(trained: Any, pairs: GPT2Tokenizer, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "tokenizer.json"))
    loaded = load_hf_tokenizer(tmp_path)
    assert isinstance(loaded, GPT2Tokenizer)
    assert loaded.fingerprint() == pairs.fingerprint()

    @thorough
    @given(any_text)
    def same(text: str) -> None:
        assert loaded.encode(text, allow_special=True) == trained.encode(text).ids

    same()


def test_their_older_files_are_read(trained: Any, pairs: GPT2Tokenizer, tmp_path: Path) -> None:
    trained.model.save(str(tmp_path))  # their vocab.json, without <|endoftext|>, and their merges.txt
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    assert load_hf_tokenizer(tmp_path).fingerprint() == pairs.fingerprint()
    merges = (tmp_path / "merges.txt").read_bytes()
    assert merges.startswith(b"#version")
    (tmp_path / "merges.txt").write_bytes(merges.partition(b"\n")[2].replace(b"\n", b"\r\n"))
    assert load_hf_tokenizer(tmp_path).fingerprint() == pairs.fingerprint()
    write(tmp_path, {"added_tokens.json": {END_OF_TEXT: SIZE}, "special_tokens_map.json": {"eos_token": END_OF_TEXT}})
    assert load_hf_tokenizer(tmp_path).fingerprint() == pairs.fingerprint()
    write(tmp_path, {"added_tokens.json": {END_OF_TEXT: SIZE, "<pad>": SIZE + 1}})
    with pytest.raises(CheckpointError, match=r"added_tokens\.json has '<pad>'"):
        load_hf_tokenizer(tmp_path)


def test_files_of_transformers_4_are_read(described: dict[str, Any], pairs: GPT2Tokenizer, tmp_path: Path) -> None:
    content = copy.deepcopy(described)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]  # and not pairs
    content["model"]["vocab"][END_OF_TEXT] = SIZE
    content["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    del content["model"]["type"], content["pre_tokenizer"]["use_regex"]  # GPT-2's own is older than these
    token = {"content": END_OF_TEXT, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {
        "add_prefix_space": False,
        "add_bos_token": False,
        "added_tokens_decoder": {str(SIZE): {**token, "special": True}},
        "bos_token": {"__type": "AddedToken", **token},
        "eos_token": END_OF_TEXT,
        "pad_token": None,
        "clean_up_tokenization_spaces": True,
        "extra_special_tokens": {},
        "split_special_tokens": True,
        "tokenizer_class": "GPT2Tokenizer",
    }
    special = {"bos_token": token, "eos_token": token, "additional_special_tokens": [END_OF_TEXT]}
    write(tmp_path, {"tokenizer.json": content, "tokenizer_config.json": config, "special_tokens_map.json": special})
    assert load_hf_tokenizer(tmp_path).fingerprint() == pairs.fingerprint()


@pytest.mark.parametrize("name", ["my-bpe.json", "tokenizer.json", "vocab.json", "merges.txt"])
def test_a_file_is_known_by_what_it_holds(name: str, pairs: GPT2Tokenizer, exported: Path, tmp_path: Path) -> None:
    """The `tokenizers` library saves under any name; of the older form, one file names both."""
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((exported / file).read_bytes())
    if name not in ("vocab.json", "merges.txt"):
        hf.Tokenizer.from_file(str(exported / "tokenizer.json")).save(str(tmp_path / name))
    assert named_tokenizer(tmp_path / name).fingerprint() == pairs.fingerprint()


def test_a_pickle_is_no_text_whose_characters_are_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"  # which nanoGPT writes; never opened as one
    path.write_bytes(b"\x80\x04\x95\x0b\x00")
    with pytest.raises(DataError, match="0x80") as raised:
        named_tokenizer(path)
    assert "UTF-8 text" in raised.value.how


def test_a_file_of_another_name_may_be_foreign_or_none(described: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, {"lower.json": {**described, "normalizer": {"type": "Lowercase"}}, "none.json": {"a": 1}})
    with pytest.raises(tokenizer_files.ForeignTokenizerError, match=r"lower\.json.*normalizer"):
        named_tokenizer(tmp_path / "lower.json")
    with pytest.raises(CheckpointError, match=r"none\.json.*damaged or not a tokenizer"):
        named_tokenizer(tmp_path / "none.json")


def test_our_own_run_directory_is_read(pairs: GPT2Tokenizer, tmp_path: Path) -> None:
    for ours in (CharTokenizer("abc"), pairs):
        ours.save(tmp_path / "tokenizer.json")
        assert load_hf_tokenizer(tmp_path).fingerprint() == ours.fingerprint()
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    write(tmp_path, {"tokenizer.json": {**content, "merges": content["merges"][:-1]}})
    with pytest.raises(CheckpointError, match="the fingerprint differs"):
        load_hf_tokenizer(tmp_path)


# --- what is refused, and that it deserves it

Change = Callable[[dict[str, Any]], object]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [SIZE], "tokens": [END_OF_TEXT]}},
}
LLAMA_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


def swap(vocabulary: dict[str, int], left: str, right: str) -> None:
    vocabulary[left], vocabulary[right] = vocabulary[right], vocabulary[left]


def contradict(content: dict[str, Any]) -> None:
    """Two merges whose order is not the one they can have been learned in: "he" comes too early for "th" and "e"."""
    content["model"]["merges"] = [["h", "e"], ["t", "h"], ["th", "e"]]
    bytes_alone = [token for token, token_id in content["model"]["vocab"].items() if token_id < 256]
    content["model"]["vocab"] = {token: i for i, token in enumerate([*bytes_alone, "he", "th", "the"])}
    content["added_tokens"][0]["id"] = 259


DIFFERENT: dict[str, tuple[str, Change]] = {
    "a normalizer": ("it has a normalizer", lambda c: c.update(normalizer={"type": "Lowercase"})),
    "a blank in front": ("add_prefix_space = True", lambda c: c["pre_tokenizer"].update(add_prefix_space=True)),
    "no words": ("use_regex = False", lambda c: c["pre_tokenizer"].update(use_regex=False)),
    "other words": ("type = 'Sequence'", lambda c: c.update(pre_tokenizer=LLAMA_WORDS)),
    "no bytes": ("its pre_tokenizer is None", lambda c: c.update(pre_tokenizer=None)),
    "a beginning": ("its post_processor, a 'TemplateProcessing', may add", lambda c: c.update(post_processor=BOS)),
    "dropout": ("dropout = 0.9", lambda c: c["model"].update(dropout=0.9)),
    "one more word": (
        "added_tokens has 'covid', which is no special token",
        lambda c: c["added_tokens"].append({"id": SIZE + 1, "content": "covid", **FLAGS, "special": False}),
    ),
    "a word as a token": (
        "added_tokens has 'the'",
        lambda c: c["added_tokens"].append({"id": c["model"]["vocab"]["the"], "content": "the", **FLAGS}),
    ),
    "a greedy token": ("<|endoftext|> with lstrip", lambda c: c["added_tokens"][0].update(lstrip=True)),
    "a lonely token": ("<|endoftext|> with single_word", lambda c: c["added_tokens"][0].update(single_word=True)),
    "swapped bytes": (
        "id 0 is '\"', and by the order of its merges '!'",
        lambda c: swap(c["model"]["vocab"], "!", '"'),
    ),
    "swapped merges": ("id 256 is", lambda c: swap(c["model"]["vocab"], *list(c["model"]["vocab"])[256:258])),
    "merges in reverse": ("does not join two earlier|id 256 is", lambda c: c["model"]["merges"].reverse()),
    "merges that contradict": ("merge 'th e' is never reached", contradict),
}


def showing(content: dict[str, Any]) -> list[list[int] | str]:
    """What their library makes of texts that show any difference."""
    theirs = hf.Tokenizer.from_str(json.dumps(content))
    return [theirs.encode(text).ids for text in (*TEXTS, '!"', "covid", f"a {END_OF_TEXT} b{END_OF_TEXT}c")]


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_tokenizer_is_refused_by_name(name: str, described: dict[str, Any], tmp_path: Path) -> None:
    message, change = DIFFERENT[name]
    content = copy.deepcopy(described)
    change(content)
    assert showing(content) != showing(described)  # it gives other ids
    write(tmp_path, {"tokenizer.json": content})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_hf_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.what
    assert "\n" not in caught.value.what + caught.value.how


def other_values(value: object) -> Iterator[object]:
    yield from (None, True, 0.5, "x", [], {"type": "Strip"})
    if isinstance(value, list):
        yield [*value, None]


def changes(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Every place in a JSON value, and something else to put there; of long lists and tables the first two entries."""
    for other in other_values(value):
        yield path, other
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[: 2 if len(value) > 20 else None] if items else ():
        yield from changes(inner, (*path, key))


def changed(content: Any, path: tuple[str | int, ...], other: object) -> Any:
    if not path:
        return other
    content = copy.copy(content)
    content[path[0]] = changed(content[path[0]], path[1:], other)
    return content


def by_the_references(folder: Path, texts: list[str]) -> Iterator[list[list[int]]]:
    """The ids by both of their libraries, where they read the folder at all."""
    with suppress(Exception):  # they raise nothing more special
        yield [reference(folder).encode(text) for text in texts]
    content = json.loads((folder / "tokenizer.json").read_bytes())
    if content[
        "added_tokens"
    ]:  # else only the settings beside it name <|endoftext|>, and this library does not see them
        with suppress(Exception):
            theirs = hf.Tokenizer.from_str(json.dumps({**content, "padding": None, "truncation": None}))
            yield [theirs.encode(text).ids for text in texts]


@pytest.mark.parametrize("kind", ["pairs", "characters"])
def test_no_change_slips_through(kind: str, pairs: GPT2Tokenizer, exported: Path, tmp_path: Path) -> None:
    """Put anything anywhere: it is refused in two lines, or it changes nothing."""
    ours: Tokenizer = pairs if kind == "pairs" else CharTokenizer("ab c")
    folder = exported if kind == "pairs" else export(ours, tmp_path / "characters")
    files = {path.name: json.loads(path.read_bytes()) for path in folder.glob("tokenizer*.json")}
    texts = ["ab c", "", "  "] if kind == "characters" else [*LINES[:3], f"the{END_OF_TEXT} cat"]
    expected = [reference(folder).encode(text) for text in texts]
    accepted, refusals = 0, []
    for name, content in files.items():
        for path, other in changes(content):
            new = changed(content, path, other)
            write(tmp_path / "new", {**files, name: new, "config.json": {"model_type": "gpt2"}})
            try:
                loaded = load_hf_tokenizer(tmp_path / "new")
            except CheckpointError as error:
                refusals.append(error)
                continue
            assert loaded.fingerprint() == ours.fingerprint(), (name, path, other)
            accepted += 1
            for ids in by_the_references(tmp_path / "new", texts):
                assert ids == expected, (name, path, other)
    assert accepted
    assert len(refusals) > accepted
    assert all(str(tmp_path) in error.what and "\n" not in error.what + error.how for error in refusals)


PAD = {"content": "[PAD]", **FLAGS}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "class": ("its tokenizer_class is 'BertTokenizer'", {"tokenizer_class": "BertTokenizer"}),
    "blank": ("add_prefix_space = True", {"add_prefix_space": True}),
    "beginning": ("add_bos_token = True", {"add_bos_token": True}),
    "code": ("auto_map = ", {"auto_map": {"AutoTokenizer": ["x.X", None]}}),
    "pad": ("pad_token has '!', which text gives", {"pad_token": "!"}),
    "bos": ("bos_token has 'the', which text gives", {"bos_token": {"content": "the", **FLAGS}}),
    "more": ("additional_special_tokens has 'a', which text gives", {"additional_special_tokens": ["a"]}),
    "extra": ("extra_special_tokens has 'a', which text gives", {"extra_special_tokens": {"user_token": "a"}}),
    "gap": (rf"has '\[PAD\]' as '{SIZE + 2}', and not {SIZE + 1}", {"added_tokens_decoder": {str(SIZE + 2): PAD}}),
    "ids": (rf"has '\[PAD\]' as '{SIZE + 2}', and not", {"added_tokens_decoder": {SIZE + 1: PAD, SIZE + 2: PAD}}),
    "no id": ("invalid literal", {"added_tokens_decoder": {"x": PAD}}),
    "no name": ("a special token is called ''", {"pad_token": ""}),
    "id": (f"added_tokens_decoder has .* as '3', and not {SIZE}", {"added_tokens_decoder": {"3": END_OF_TEXT}}),
    "strip": ("eos_token has .* with rstrip", {"eos_token": {"content": END_OF_TEXT, "rstrip": True}}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_beside_it_are_not_ignored(name: str, described: dict[str, Any], tmp_path: Path) -> None:
    message, config = SETTINGS[name]
    write(tmp_path, {"tokenizer.json": described, "tokenizer_config.json": config})
    with pytest.raises(CheckpointError, match=message):
        load_hf_tokenizer(tmp_path)
    write(tmp_path, {"tokenizer.json": described, "tokenizer_config.json": {}, "special_tokens_map.json": config})
    if name in ("pad", "bos", "more", "extra", "strip"):
        with pytest.raises(CheckpointError, match=message):
            load_hf_tokenizer(tmp_path)


def test_end_of_text_must_be_there(described: dict[str, Any], pairs: GPT2Tokenizer, tmp_path: Path) -> None:
    content = {**described, "added_tokens": []}
    generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(
        tmp_path, {"config.json": {"model_type": "gpt2"}, "tokenizer.json": content, "tokenizer_config.json": generic}
    )
    assert len(reference(tmp_path)) == SIZE  # it has no such token there, and the model no such id
    with pytest.raises(CheckpointError, match=f"id {SIZE} is None, and by the order of its merges '<.endoftext.>'"):
        load_hf_tokenizer(tmp_path)
    for config in ({}, {**generic, "eos_token": END_OF_TEXT}):
        write(tmp_path, {"tokenizer_config.json": config})
        assert len(reference(tmp_path)) == SIZE + 1
        assert load_hf_tokenizer(tmp_path).fingerprint() == pairs.fingerprint()


def test_padding_may_bring_a_token(described: dict[str, Any], tmp_path: Path) -> None:
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "[PAD]"}
    write(tmp_path, {"tokenizer.json": {**described, "padding": padding}, "config.json": {"model_type": "gpt2"}})
    write(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}})
    theirs = reference(tmp_path)
    assert (len(theirs), theirs.convert_tokens_to_ids("[PAD]")) == (SIZE + 2, SIZE + 1)
    loaded = load_hf_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.added) == (SIZE + 1, (AddedToken("[PAD]"),))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: hf.Tokenizer(hf.models.Unigram([("a", 0.5)], 0, False)), "model has type = 'Unigram'"),
        (lambda: hf.Tokenizer(hf.models.WordPiece({"a": 0, "[UNK]": 1})), "model has type = 'WordPiece'"),
        (lambda: hf.Tokenizer(hf.models.WordLevel({"ab": 0}, "[UNK]")), r"unk_token = '\[UNK\]'"),
        (lambda: hf.Tokenizer(hf.models.BPE({"a": 0}, [])), "its pre_tokenizer is None"),
        (lambda: hf.Tokenizer(hf.models.BPE({"a": 0}, [], end_of_word_suffix="</w>")), "end_of_word_suffix = '</w>'"),
    ],
)
def test_other_models_are_refused_by_name(tokenizer: Callable[[], Any], message: str, tmp_path: Path) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=message):
        load_hf_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"]["vocab"].update({"ab": 3}), "token 'ab' is not one character"),
        (lambda c: c["model"]["vocab"].update({"d": 4}), "the ids of its 4 tokens are not 0 to 3"),
        (lambda c: c["model"]["vocab"].update({"d": 2}), "the ids of its 4 tokens are not 0 to 3"),
        (lambda c: c["model"]["vocab"].update({"\ud800": 3}), "lone surrogate"),
        (lambda c: c["model"]["vocab"].clear(), "at least one character"),
        (lambda c: c["added_tokens"].append({"id": 3, "content": "d"}), "'d', which is no special token"),
        (lambda c: c["added_tokens"].append({"id": 1, **PAD}), r"'\[PAD\]' as 1, and not 3"),
        (lambda c: c["added_tokens"].append({"id": 1, **PAD, "content": "b", "lstrip": True}), "'b' with lstrip"),
        (lambda c: c["pre_tokenizer"].update(pattern={"Regex": r"\s"}), "its pre_tokenizer has pattern ="),
        (lambda c: c["decoder"].update(type="WordPiece"), "its decoder has type = 'WordPiece'"),
    ],
)
def test_other_characters_are_refused_by_name(change: Change, message: str, tmp_path: Path) -> None:
    save_hf_tokenizer(CharTokenizer("abc"), tmp_path, BLOCK_SIZE)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    write(tmp_path, {"tokenizer.json": content})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_hf_tokenizer(tmp_path)
    str(caught.value).encode("utf-8")  # it can be printed, whatever the file held


# --- special tokens behind the vocabulary


def names_there(theirs: Any) -> dict[int, str]:
    """Their special tokens by id."""
    return {token_id: token.content for token_id, token in theirs.added_tokens_decoder.items()}


def names_here(ours: Tokenizer) -> dict[int, str]:
    end = {} if ours.eos_token_id is None else {ours.eos_token_id: END_OF_TEXT}
    return end | {ours.vocab_size + place: token.content for place, token in enumerate(ours.added)}


ROLES: dict[str, dict[str, Any]] = {
    "pad": {"pad_token": "[PAD]"},
    "end": {"pad_token": END_OF_TEXT},
    "own ends": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<m>"},
    "talk": {"extra_special_tokens": ["<user>", "<bot>"], "sep_token": "<sep>", "cls_token": "<cls>"},
    "strip": {"mask_token": transformers.AddedToken("<m>", lstrip=True, rstrip=True, special=True)},
    "unicode": {"pad_token": "｜填充 ｜"},
}


@pytest.mark.parametrize("form", ["theirs", "run", "ours", "older", "oldest"])
@pytest.mark.parametrize(
    ("kind", "roles"), [("pairs", name) for name in ROLES] + [("characters", name) for name in ROLES if name != "end"]
)
def test_special_tokens_come_in_and_go_out_again(
    kind: str, roles: str, form: str, pairs: GPT2Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Added by the reference, read here, written here, read there: the same ids, names, flags and roles."""
    plain: Tokenizer = pairs if kind == "pairs" else CharTokenizer(CHARACTERS[:-2])
    theirs = reference(export(plain, tmp_path / "plain"))
    theirs.add_special_tokens(ROLES[roles])
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder)
    config = {"config.json": {"model_type": "gpt2", "n_positions": BLOCK_SIZE}}
    write(folder, config)
    ours = load_hf_tokenizer(folder)
    if form == "run":
        ours.save(tmp_path / "run.json")
        ours = load_tokenizer(tmp_path / "run.json")
    if form in ("ours", "older", "oldest"):
        folder = export(ours, tmp_path / "ours")
    if form in ("older", "oldest") and kind == "pairs":
        (folder / "tokenizer.json").unlink()
    if form == "oldest" and kind == "pairs":  # as version 4 and earlier wrote them
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").unlink()
        decoder = settings.pop("added_tokens_decoder", {})
        added = {token["content"]: int(token_id) for token_id, token in decoder.items()}
        special = {key: value for key, value in settings.items() if key.endswith("_token")}
        special |= {"additional_special_tokens": settings.get("extra_special_tokens", [])}
        write(folder, {"added_tokens.json": added, "special_tokens_map.json": special})
    back = load_hf_tokenizer(folder)
    for tokenizer in (ours, back):
        assert tokenizer.fingerprint() == plain.fingerprint()
        assert tokenizer.vocab_size == plain.vocab_size
        assert names_here(tokenizer) == names_there(theirs)
        text = "a the [PAD] <s> b" if kind == "pairs" else "a b"
        assert tokenizer.encode(text) == plain.encode(text)
        ids = [*tokenizer.encode(text), *names_here(tokenizer), *tokenizer.encode(text)]
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)
        for role in ("bos_token", "eos_token", "pad_token", "mask_token", "sep_token"):
            assert tokenizer.special_id(role) == getattr(theirs, f"{role}_id"), role
    capfd.readouterr()
    there = reference(export(back, tmp_path / "again"))
    assert capfd.readouterr().err == ""  # nothing in our files puzzles it
    assert names_there(there) == names_there(theirs)
    if form != "oldest":
        assert there.added_tokens_decoder == theirs.added_tokens_decoder  # its flags too
        assert there.special_tokens_map == theirs.special_tokens_map
    assert there.all_special_ids == theirs.all_special_ids
    for token in theirs.all_special_tokens if form != "oldest" else ():  # which has no flags
        for text in (token, f" {token} " if kind == "characters" else f"the {token} cat"):
            assert there.encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"added_tokens.json": {"[PAD]": SIZE + 1}, "special_tokens_map.json": {"pad_token": "[PAD]"}}, ["[PAD]"]),
        ({"special_tokens_map.json": {"pad_token": PAD}}, ["[PAD]"]),
        (
            {
                "tokenizer_config.json": {
                    "additional_special_tokens": ["<user>", "<bot>"],
                    "mask_token": "<m>",
                    "pad_token": "[PAD]",
                    "bos_token": "<s>",
                }
            },
            ["<s>", "[PAD]", "<m>", "<user>", "<bot>"],
        ),
        ({"tokenizer_config.json": {"extra_special_tokens": {"user_token": "<user>"}}}, ["<user>"]),
        ({"tokenizer_config.json": {"added_tokens_decoder": {str(SIZE + 1): PAD}}}, ["[PAD]"]),
    ],
)
def test_special_tokens_of_older_files_have_the_references_ids(
    files: dict[str, Any], names: list[str], exported: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    write(tmp_path, files)
    loaded = load_hf_tokenizer(tmp_path)
    assert [token.content for token in loaded.added] == names
    assert names_here(loaded) == names_there(reference(tmp_path))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    ids = {name: SIZE + 1 + place for place, name in enumerate(names)}
    write(tmp_path, {"vocab.json": vocabulary | ids})  # some write them there too
    assert names_here(load_hf_tokenizer(tmp_path)) == names_here(loaded)


def test_settings_that_change_no_id_are_written_out_again(pairs: GPT2Tokenizer, tmp_path: Path) -> None:
    export(pairs, tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(
        tmp_path / "ours", padding_side="left", truncation_side="left", pad_token=END_OF_TEXT
    )
    theirs.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    theirs.save_pretrained(tmp_path / "theirs")
    others = {"split_special_tokens": True, "model_input_names": ["input_ids"], "somebodys": {"own": [1, 2.5]}}
    config = tmp_path / "theirs" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | others), encoding="utf-8")
    there = reference(export(load_hf_tokenizer(tmp_path / "theirs"), tmp_path / "again"))
    written = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert {key: written.get(key) for key in others} == others
    assert there(f"a{END_OF_TEXT}").input_ids == load_hf_tokenizer(tmp_path / "again").encode(f"a{END_OF_TEXT}")
    assert (there.padding_side, there.truncation_side, there.pad_token) == ("left", "left", END_OF_TEXT)
    assert len(there) == SIZE + 1
    assert there.chat_template == theirs.chat_template  # which lies in a file of its own there


# --- merges that contradict each other


def words_of(merges: list[tuple[str, str]]) -> Any:
    """Their byte pairs, by the definition: a pair is merged if it is listed."""
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(left + right for left, right in merges)]
    model = hf.models.BPE({token: token_id for token_id, token in enumerate(vocabulary)}, merges)
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@st.composite
def learned_or_not(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges in any order in which each joins earlier tokens into a new one; few letters, so that they collide."""
    tokens, merges = ["a", "b"], []
    for _ in range(draw(st.integers(1, 11))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if left + right not in tokens and len(left + right) < 12:
            tokens.append(left + right)
            merges.append((left, right))
    return merges


def test_merges_contradict_if_and_only_if_a_token_is_not_merged_back_to_itself() -> None:
    seen = set()

    @settings(max_examples=200, deadline=None)
    @given(learned_or_not(), st.lists(st.text("ab", max_size=29), max_size=7))
    def same(merges: list[tuple[str, str]], texts: list[str]) -> None:
        theirs, ours = words_of(merges), GPT2Tokenizer([" ".join(merge) for merge in merges])
        lost = [merge for merge in merges if theirs.encode("".join(merge)).tokens != ["".join(merge)]]
        assert tokenizer_files._unreachable_merge(ours) == (" ".join(lost[0]) if lost else None)
        seen.add(bool(lost))
        for text in [] if lost else texts:
            assert theirs.encode(text).ids == ours.encode(text)

    same()
    assert seen == {True, False}


def test_contradicting_merges_are_not_written(tmp_path: Path) -> None:
    merges = ["h e", "t h", "th e"]
    assert words_of([("h", "e"), ("t", "h"), ("th", "e")]).encode("the").tokens == ["t", "he"]
    tokenizer = GPT2Tokenizer(merges)
    assert tokenizer.encode("the") == [258]  # tiktoken knows what comes of the pair, and not the pair
    with pytest.raises(InputError, match="merge 'th e' is never reached"):
        save_hf_tokenizer(tokenizer, tmp_path, BLOCK_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_no_merge_makes_the_special_token(tmp_path: Path) -> None:
    merges = [f"{END_OF_TEXT[:n]} {END_OF_TEXT[n]}" for n in range(1, len(END_OF_TEXT))]
    vocabulary = [*list(GPT2Tokenizer([]).vocabulary)[:-1], *(merge.replace(" ", "") for merge in merges)]
    write(tmp_path, {"vocab.json": {token: token_id for token_id, token in enumerate(vocabulary)}})
    (tmp_path / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not join two earlier tokens into a new one"):
        load_hf_tokenizer(tmp_path)


# --- files that are not what they seem


def test_missing_files_are_listed(exported: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingFileError, match=r"tokenizer\.json, vocab\.json, merges\.txt not found"):
            load_hf_tokenizer(folder)
    (tmp_path / "vocab.json").write_bytes((exported / "vocab.json").read_bytes())
    with pytest.raises(MissingFileError, match=r": tokenizer\.json, merges\.txt not found"):
        load_hf_tokenizer(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 456318\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (POINTER, r"is a git-lfs pointer"),
        (b"\n <!DOCTYPE html>\n<html>not found</html>", "is an HTML or XML page"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text"),
        (b"", "is empty"),
        (b'{"model": {"type": "BPE", "vocab": {"a"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "holds a JSON list, and no object\nname the file that was meant, or copy"),
    ],
)
def test_damaged_files_are_named(name: str, data: bytes, message: str, exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        if name not in ("vocab.json", "merges.txt") or path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    load_hf_tokenizer(tmp_path)  # sound before
    (tmp_path / name).write_bytes(data)
    if name == "merges.txt" and "JSON" in message:
        message = f"the tokenizer in {tmp_path} is none"
    else:
        message = rf"{name} \({len(data):,} bytes\) {message}"
    with pytest.raises(CheckpointError, match=message) as caught:
        load_hf_tokenizer(tmp_path)
    assert "\n" not in caught.value.what + caught.value.how
    assert len(caught.value.what) < 500
    assert (tmp_path / name).read_bytes() == data


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)  # a hole that takes no room on the disk
    with pytest.raises(CheckpointError, match=r"tokenizer\.json \(1,099,511,627,776 bytes\) is larger than 67,108,864"):
        load_hf_tokenizer(tmp_path)


# --- two implementations of the pattern


@pytest.fixture(scope="module")
def sewn() -> tuple[GPT2Tokenizer, Any]:
    """Merges across every seam: any first or last byte of a character with a letter, a digit, a mark, a blank.

    Where a character belongs to the word beside it, they are merged; so the ids tell what the pattern takes it for.
    """
    spell = {letter: letter for letter in hf.pre_tokenizers.ByteLevel.alphabet()}
    merges = {}
    for seam in ("a", "1", "!", "Ġ"):
        for letter in sorted(spell):
            for left, right in ((seam, letter), (letter, seam)):
                merges.setdefault(left + right, (left, right))
    alphabet = list(GPT2Tokenizer([]).vocabulary)[:-1]
    vocabulary = {token: token_id for token_id, token in enumerate([*alphabet, *merges])}
    theirs = hf.Tokenizer(hf.models.BPE(vocabulary, list(merges.values())))
    theirs.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return GPT2Tokenizer([f"{left} {right}" for left, right in merges.values()]), theirs


def check_characters(sewn: tuple[GPT2Tokenizer, Any], points: range) -> None:
    ours, theirs = sewn
    texts = [f"a{c}a1{c}1!{c}! {c} {c}{c} '{c}'s" for c in map(chr, points) if not "\ud800" <= c <= "\udfff"]
    for text, encoding in zip(texts, theirs.encode_batch(texts), strict=True):
        assert encoding.ids == ours.encode(text), text


def test_characters_are_of_the_same_kind(sewn: tuple[GPT2Tokenizer, Any]) -> None:
    for start, stop in ((0, 0x600), (0x2000, 0x2200), (0x3000, 0x3100), (0xFE00, 0x10000), (0x1F600, 0x1F650)):
        check_characters(sewn, range(start, stop))
    ours, theirs = sewn

    @thorough
    @given(any_text)
    def same(text: str) -> None:
        assert theirs.encode(text).ids == ours.encode(text)

    same()


@pytest.mark.slow
def test_all_characters_are_of_the_same_kind(sewn: tuple[GPT2Tokenizer, Any]) -> None:
    for start in range(0, 0x110000, 0x1000):
        check_characters(sewn, range(start, start + 0x1000))


# --- GPT-2's real vocabulary


@pytest.mark.shared
def test_gpt2_is_the_same_there(gpt2: GPT2Tokenizer, tmp_path: Path) -> None:
    theirs = reference(export(gpt2, tmp_path / "ours"))
    assert (theirs.eos_token_id, len(theirs)) == (50256, 50257)
    for text in TEXTS:
        agree(gpt2, theirs, text)
    thorough(given(any_text)(lambda text: agree(gpt2, theirs, text)))()

    @thorough
    @given(st.lists(st.integers(0, 50256) | st.integers(160, 300)))
    def same(ids: list[int]) -> None:
        assert theirs.decode(ids) == gpt2.decode(ids, skip_special=False)

    same()
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        assert load_hf_tokenizer(tmp_path / folder).fingerprint() == gpt2.fingerprint()
    (tmp_path / "ours" / "tokenizer.json").unlink()
    assert load_hf_tokenizer(tmp_path / "ours").fingerprint() == gpt2.fingerprint()


@pytest.mark.shared
def test_gpt2s_ids_are_those_of_another_implementation(gpt2: GPT2Tokenizer, tmp_path: Path) -> None:
    save_hf_tokenizer(gpt2, tmp_path, 1024)
    theirs = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True

    @settings(max_examples=500, deadline=None)
    @given(any_text)
    def same(text: str) -> None:
        assert theirs.encode(text).ids == gpt2.encode(text)

    same()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_what_is_no_file_in_the_place_of_a_file_is_named(name, tmp_path):
    save_hf_tokenizer(CharTokenizer("abc"), tmp_path, 11)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(MissingFileError, match=f"{name} is no regular file"):
        load_hf_tokenizer(tmp_path)
