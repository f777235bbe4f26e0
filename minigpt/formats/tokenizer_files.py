"""Tokenizers to and from transformers' layout: the files that `transformers.AutoTokenizer` reads and writes.

    tokenizer.json            the whole tokenizer: how text is cut into words, vocabulary, merges, added tokens
    tokenizer_config.json     its class, its special tokens and their roles, how many tokens the model takes
    vocab.json, merges.txt    GPT-2's byte pairs in an older form, read if there is no tokenizer.json

A model that gets almost the right ids writes nonsense, without any error. So a tokenizer is reproduced exactly here, or
refused with an error that names the reason; its model then has none. A special token that was added after the
vocabulary is kept as an id without text. An added word that is not special is refused, because any text that contains
it would get its id.
"""

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from minigpt.data.corpora import read_plain_text
from minigpt.errors import CheckpointError, ConfigError, InputError, MissingFileError, brief, first_line
from minigpt.formats.hub import OTHER_NAME, TOKENIZER
from minigpt.system.files import named_path, read_json, read_text, write_text
from minigpt.tokenizers import END_OF_TEXT, AddedToken, CharTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer

T = TypeVar("T")
Special = tuple[str, dict[str, Any]]  # the setting that names a special token, and its description there


@dataclass(frozen=True)
class _Kind:
    """How one of our classes of tokenizer is described in transformers' layout.

    Attributes:
        classes: the possible names of its class in tokenizer_config.json, first the one that we write; None: no name.
        pre_tokenizer: how text is cut into words.
        decoder: how tokens become text.
        model: how words become ids, without the vocabulary.
        free: settings that change no id and no text.
    """

    classes: tuple[str | None, ...]
    pre_tokenizer: dict[str, object]
    decoder: dict[str, object]
    model: dict[str, object]
    free: dict[str, set[str]]


_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # one class, whose name changed with transformers 5
_CHARACTERS = _Kind(
    classes=_GENERIC,
    pre_tokenizer={"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
    decoder={"type": "Fuse"},  # without it, there would be blanks between the characters
    # An unknown word gets the id of unk_token. This one is not in the vocabulary, so an unknown word is an error.
    model={"type": "WordLevel", "unk_token": "<no such character>"},
    free={"model": {"vocab"}},
)
_BYTE_PAIRS = _Kind(
    classes=("GPT2Tokenizer", "GPT2TokenizerFast", None, *_GENERIC),
    pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    model={
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
    },
    free={
        "pre_tokenizer": {"trim_offsets"},
        "decoder": {"add_prefix_space", "trim_offsets", "use_regex"},
        # No byte is unknown; and looking up a whole word gives the same as merging it: see `_unreachable_merge`.
        "model": {"vocab", "merges", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"},
    },
)

# How transformers describes <|endoftext|>: it needs no blank before or after it, and absorbs none.
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

_CONFIG, _SPECIAL, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_CHAT = "chat_template.jinja"  # a file since transformers 4.52; it may also be one of the settings
_LISTS = ("added_tokens", "added_tokens_decoder", _ADDED)  # lists of added tokens; other settings give a token a role
# The order in which transformers adds tokens that have a role but no id.
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Settings that are not written out again: what we write ourselves, and what concerns a program or its files.
_OURS = {"model_max_length", "clean_up_tokenization_spaces", "tokenizer_class", "add_prefix_space",
         "added_tokens_decoder", "add_bos_token", "add_eos_token", "auto_map", "backend", "errors", "is_local",
         "local_files_only", "name_or_path", "processor_class", "special_tokens_map_file", "tokenizer_file",
         "transformers_version", "use_fast"}  # fmt: skip


class ForeignTokenizerError(CheckpointError):
    """A tokenizer that ours cannot reproduce. Nothing is damaged, and its model can be used with ids."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder contains a tokenizer, or a part of one."""
    return any(os.path.lexists(folder / file) for file in TOKENIZER)


def save_hf_tokenizer(tokenizer: Tokenizer, folder: Path | str, block_size: int) -> None:
    """Write the files from which `AutoTokenizer.from_pretrained(folder)` makes the same tokenizer.

    That call needs no other argument and no network, but the model's config.json beside these files. Ids and decoded
    text are the same, with one difference: transformers reads "<|endoftext|>" in a text as that token, unless it gets
    `split_special_tokens=True`; our `encode` reads it as text, unless it gets `allow_special=True`.

    In transformers too, characters outside a CharTokenizer's vocabulary are an error ("WordLevel error: Missing [UNK]
    token"); `unknown="skip"` is not written to the files. Added tokens are written with their roles.

    Args:
        tokenizer: a CharTokenizer or a GPT2Tokenizer.
        folder: made if it does not exist. Files of the same names in it are replaced.
        block_size: the most tokens that the model takes at once, `model_max_length` in transformers.

    Raises:
        ConfigError: if the tokenizer is of another class.
        InputError: if its merges contradict each other: see `load_hf_tokenizer`.
        OSError: if the folder cannot be written.
    """
    folder = named_path(folder, "folder")
    config: dict[str, object] = {"model_max_length": block_size, "clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, CharTokenizer):
        config["tokenizer_class"] = _CHARACTERS.classes[0]
        vocabulary = {character: token_id for token_id, character in enumerate(tokenizer.characters)}
        content = _layout(_CHARACTERS, _added_tokens(tokenizer), vocab=vocabulary)
    elif isinstance(tokenizer, GPT2Tokenizer):
        if (merge := _unreachable_merge(tokenizer)) is not None:
            raise InputError(
                f"merge {merge!r} is never reached: earlier merges take its bytes, and transformers gives other ids",
                "order the merges as they were learned, the first to be applied first",
            )
        config |= {"tokenizer_class": _BYTE_PAIRS.classes[0], "add_prefix_space": False}
        config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        added = [{"id": tokenizer.vocab_size - 1, "content": END_OF_TEXT, **_FLAGS}, *_added_tokens(tokenizer)]
        content = _layout(_BYTE_PAIRS, added, vocab=tokenizer.vocabulary, merges=tokenizer.merges)
        _write_json(folder / "vocab.json", tokenizer.vocabulary)
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *tokenizer.merges, ""]))
    else:
        raise ConfigError(
            f"a {type(tokenizer).__name__} has no form in transformers' layout",
            "give a CharTokenizer or a GPT2Tokenizer",
        )
    if tokenizer.added:  # for programs that read the older files, where only this one lists them
        config["added_tokens_decoder"] = {
            str(token.pop("id")): token for token in copy.deepcopy(content["added_tokens"])
        }
    _write_json(folder / "tokenizer.json", content)
    _write_json(folder / _CONFIG, {**config, **tokenizer.settings})


def _added_tokens(tokenizer: Tokenizer) -> list[dict[str, object]]:
    """The descriptions of the tokens that were added after the vocabulary, for the files."""
    return [
        {"id": token_id, **_FLAGS, **token._asdict()}
        for token_id, token in enumerate(tokenizer.added, start=tokenizer.vocab_size)
    ]


def load_hf_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer in a folder of transformers' layout, or in a run directory of our own.

    It reads tokenizer.json (transformers' or our own), or else vocab.json with merges.txt; and the special tokens of
    tokenizer_config.json, special_tokens_map.json and added_tokens.json. Byte pairs must be built as GPT-2's are: the
    256 bytes, the merges in the order of their ids, `<|endoftext|>` last. Characters must be described as
    `save_hf_tokenizer` does it. Special tokens after the vocabulary are kept by name: see `Tokenizer.added`.

    Settings that change no id are ignored: transformers sets `truncation` and `padding` anew with every call, and
    `clean_up_tokenization_spaces` changes decoded text, which here is always the text of the ids.

    Raises:
        MissingFileError: if the folder has no tokenizer; the error lists the files that were looked for.
        CheckpointError: if a file is damaged.
        ForeignTokenizerError: if ours cannot reproduce the tokenizer: it has another model or pattern, a normalizer, an
            added word, ids in another order, or merges that contradict each other.
    """
    folder = named_path(folder, "folder")
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if os.path.lexists(whole):  # if it is no file, reading it is an error
        content = read_json(whole)
        if "type" in content:  # our own form
            return load_tokenizer(whole)
    elif os.path.lexists(vocab) and os.path.lexists(merges):
        content = _layout(_BYTE_PAIRS, [], vocab=read_json(vocab), merges=_read_merges(merges))
    else:
        missing = [path.name for path in (whole, vocab, merges) if not os.path.lexists(path)]
        raise MissingFileError(
            f"{folder} has no tokenizer: {', '.join(missing)} not found",
            "put tokenizer.json there, or vocab.json and merges.txt, from where the weights come from",
        )
    settings = {name: read_json(path) for name in (_CONFIG, _SPECIAL, _ADDED) if os.path.lexists(path := folder / name)}
    if os.path.lexists(folder / _CHAT):
        settings.setdefault(_CONFIG, {})["chat_template"] = read_text(folder / _CHAT)
    return _reproduced(content, settings, folder)


def _reproduced(content: dict[str, Any], settings: dict[str, dict[str, Any]], path: Path) -> Tokenizer:
    """`_read_tokenizer` of what lies at a path."""
    try:
        return _read_tokenizer(content, settings)
    except ValueError as error:  # also what the tokenizers themselves raise
        raise ForeignTokenizerError(
            f"the tokenizer in {path} is none that minigpt can reproduce exactly: {first_line(error, 200)}",
            "encode with the library that made it and give the model ids, in Python; or name another with --tokenizer",
        ) from error


def named_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer that --tokenizer names; see `minigpt.load_model`."""
    path = named_path(name, "tokenizer")
    if path.is_dir():
        return load_hf_tokenizer(path)
    if path.name in TOKENIZER and os.path.lexists(path):
        return load_hf_tokenizer(path.parent)
    if path.suffix == ".json" and os.path.lexists(path):  # of either form; what lies beside it is another's
        content = read_json(path)
        return _reproduced(content, {}, path) if "model" in content else load_tokenizer(path)
    if os.path.lexists(path):
        return CharTokenizer.from_text(read_plain_text(path))
    if name in OTHER_NAME:  # all of these models have it
        return GPT2Tokenizer()
    raise MissingFileError(
        f"there is no tokenizer {str(name)!r}",
        "give gpt2, a tokenizer.json or its folder, or a text file whose characters are the vocabulary",
    )


def _layout(kind: _Kind, added_tokens: list[dict[str, object]], **vocabulary: object) -> dict[str, Any]:
    """The content of tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": kind.pre_tokenizer,
        "post_processor": None,
        "decoder": kind.decoder,
        "model": {**kind.model, **vocabulary},
    }


# From here to `_read_merges`, a ValueError says why we cannot reproduce the tokenizer.


def _read_tokenizer(content: dict[str, Any], settings: dict[str, dict[str, Any]]) -> Tokenizer:
    """The tokenizer of a parsed tokenizer.json and of the files that may lie beside it, by their names."""
    model = _typed(content.get("model"), dict, "model")
    kind = _CHARACTERS if model.get("type") == "WordLevel" else _BYTE_PAIRS
    config = settings.get(_CONFIG, {})
    _check_parts(content, kind)
    _check_config(config, kind)
    special = list(_special_tokens(content, settings))
    names = {name for _, token in special if isinstance(name := token.get("content"), str)}
    tokens = _tokens_by_id(model.get("vocab"))
    tokenizer: CharTokenizer | GPT2Tokenizer
    if kind is _CHARACTERS:
        tokenizer = _read_characters(tokens, names)
        text = list(tokenizer.characters)
    else:
        if END_OF_TEXT not in tokens and (END_OF_TEXT in names or config.get("tokenizer_class") not in _GENERIC):
            tokens.append(END_OF_TEXT)  # as transformers does; its GPT2Tokenizer has this one anyway
        tokenizer = _read_byte_pairs(tokens, _typed(model.get("merges"), list, "list of merges"))
        text = list(tokenizer.vocabulary)
    added = _read_added(special, tokens, text)
    return tokenizer.with_added(added, _read_settings({**config, **settings.get(_SPECIAL, {})}))


def _check_parts(content: dict[str, Any], kind: _Kind) -> None:
    """Raise if the tokenizer treats text differently from ours."""
    for part, ours in (("model", kind.model), ("pre_tokenizer", kind.pre_tokenizer), ("decoder", kind.decoder)):
        for key, value in _typed(content.get(part), dict, part).items():
            # None, False, 0 and "" all mean "off".
            if key not in kind.free.get(part, ()) and (value or None) != (ours.get(key) or None):
                raise ValueError(f"its {part} has {key} = {brief(value)}, and not {ours.get(key)!r}")
    if content.get("normalizer") is not None:
        raise ValueError(f"it has a normalizer, {brief(content['normalizer'])}")
    after = _typed(content.get("post_processor") or {}, dict, "post_processor")
    text_alone = [{"Sequence": {"id": "A", "type_id": 0}}]
    # ByteLevel only shifts offsets; the template is how transformers 5 writes "add nothing".
    if after and after.get("type") != "ByteLevel" and after.get("single") != text_alone:
        raise ValueError(f"its post_processor, a {brief(after.get('type'))}, may add tokens")


def _check_config(config: dict[str, Any], kind: _Kind) -> None:
    """Raise if tokenizer_config.json changes what the tokenizer.json beside it does."""
    if config.get("tokenizer_class") not in kind.classes:
        raise ValueError(f"its tokenizer_class is {brief(config.get('tokenizer_class'))}, and not {kind.classes[0]}")
    for key in ("add_prefix_space", "add_bos_token", "add_eos_token", "auto_map"):
        if config.get(key):
            raise ValueError(f"{_CONFIG} has {key} = {brief(config[key])}")


def _special_tokens(content: dict[str, Any], settings: dict[str, dict[str, Any]]) -> Iterator[Special]:
    """Every added or special token, from all places that name one: its content, and its id and flags if given."""
    config = settings.get(_CONFIG, {})
    for token in _typed(content.get("added_tokens") or [], list, "added_tokens"):
        yield "added_tokens", _described(token)
    for token_id, token in _typed(config.get("added_tokens_decoder") or {}, dict, "added_tokens_decoder").items():
        yield "added_tokens_decoder", {**_described(token), "id": token_id}
    for text, token_id in settings.get(_ADDED, {}).items():
        yield _ADDED, {"content": text, "id": token_id}
    if content.get("padding"):
        yield "padding", _described(_typed(content["padding"], dict, "padding").get("pad_token"))
    for key, value in [*config.items(), *settings.get(_SPECIAL, {}).items()]:
        if key.endswith("_token") and isinstance(value, str | dict):  # bos_token is text, add_bos_token is a bool
            yield key, _described(value)
        if key.endswith("_special_tokens") and isinstance(value, list | dict):  # split_special_tokens is a bool, too
            yield from ((key, _described(token)) for token in (value.values() if isinstance(value, dict) else value))


def _described(token: object) -> dict[str, Any]:
    """A token's description; some files give only its content."""
    return {"content": token} if isinstance(token, str) else _typed(token, dict, "special token")


def _tokens_by_id(vocabulary: object) -> list[str]:
    ids = _typed(vocabulary, dict, "vocabulary")
    tokens: list[str] = sorted(ids, key=lambda token: _typed(ids[token], int, "token id"))
    if [ids[token] for token in tokens] != list(range(len(ids))):
        raise ValueError(f"the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}")
    return tokens


def _read_characters(tokens: list[str], special: set[str]) -> CharTokenizer:
    characters = list(takewhile(lambda token: len(token) == 1 or token not in special, tokens))
    if longer := [token for token in characters if len(token) != 1]:
        raise ValueError(f"token {brief(longer[0])} is not one character")
    return CharTokenizer("".join(characters))


def _read_byte_pairs(tokens: list[str], merges: list[object]) -> GPT2Tokenizer:
    tokenizer = GPT2Tokenizer([_merge(entry) for entry in merges])
    for token_id, (found, expected) in enumerate(zip_longest(tokens[: tokenizer.vocab_size], tokenizer.vocabulary)):
        if found != expected:
            raise ValueError(f"id {token_id} is {brief(found)}, and by the order of its merges {brief(expected)}")
    if (merge := _unreachable_merge(tokenizer)) is not None:
        raise ValueError(f"merge {brief(merge)} is never reached, because earlier merges take its bytes")
    return tokenizer


def _read_added(special: list[Special], tokens: list[str], text: list[str]) -> Iterator[AddedToken]:
    """The special tokens after the vocabulary, in the order of their ids, which must continue those of the vocabulary.

    Args:
        special: all descriptions of special tokens.
        tokens: all tokens of the model.
        text: the first of these tokens: those that text can give.
    """
    known = {name: token_id for token_id, name in enumerate(text)}
    behind: dict[str, list[Special]] = {}
    rest = [("its vocabulary", {"content": name, "id": token_id}) for token_id, name in enumerate(tokens)][len(text) :]
    for where, token in (*rest, *special):
        name = AddedToken.described(token).content
        if name in known:
            _check_known(where, token, known[name], merged=text[-1] == END_OF_TEXT)
        else:
            behind.setdefault(name, []).append((where, token))
    for token_id, name in enumerate(sorted(behind, key=lambda name: _place(behind[name])), start=len(text)):
        said = behind[name]
        if all(where in _LISTS and not token.get("special") for where, token in said):
            raise ValueError(f"{said[0][0]} has {brief(name)}, which is no special token: a text may give it")
        for where, token in said:
            _check_id(where, token, token_id)
        yield AddedToken.described(next((token for _, token in said if "lstrip" in token), name))


def _place(said: list[Special]) -> tuple[bool, int, int]:
    """A sort key for added tokens: by id; then those without an id, in the order in which transformers adds them."""
    ids = [int(str(token["id"])) for _, token in said if "id" in token]
    roles = [_ROLES.index(where) for where, _ in said if where in _ROLES]
    return not ids, (ids or [0])[0], min(roles, default=len(_ROLES))


def _check_known(where: str, token: dict[str, Any], token_id: int, merged: bool) -> None:
    """Raise if a special token that text can give would change ids, because it is cut out before anything is merged."""
    _check_id(where, token, token_id)
    name = token["content"]
    if merged and name != END_OF_TEXT:
        raise ValueError(f"{where} has {brief(name)}, which text gives, and {END_OF_TEXT} is the only such token")
    if flag := next((flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)), None):
        raise ValueError(f"{where} has {brief(name)} with {flag}, which changes the text around it")


def _check_id(where: str, token: dict[str, Any], token_id: int) -> None:
    if str(token.get("id", token_id)) != str(token_id):
        raise ValueError(f"{where} has {brief(token['content'])} as {brief(token['id'])}, and not {token_id}")


def _read_settings(config: dict[str, Any]) -> dict[str, object]:
    """The settings that are kept and written again, such as the roles of special tokens: all except `_OURS`."""
    return {key: value for key, value in config.items() if key not in _OURS and value is not None}


def _merge(entry: object) -> str:
    """A merge in our form, "left right"; transformers also writes it as a pair."""
    match entry:
        case str():
            return entry
        case [str(left), str(right)]:
            return f"{left} {right}"
    raise ValueError(f"merge {brief(entry)} is not a pair of tokens")


def _unreachable_merge(tokenizer: GPT2Tokenizer) -> str | None:
    """The first merge that is never made when the bytes of its own token are encoded, or None.

    transformers merges a pair if the pair is listed; tiktoken merges it if the result is a token. Both always give the
    same tokens if and only if the bytes of each token are merged back to this token. That is so if no earlier merge
    crosses the boundary between its two halves. The loop looks at the two tokens that meet at this boundary: first the
    halves, then, step by step back in time, smaller tokens, down to bytes.
    """
    ids = tokenizer.vocabulary
    first = len(ids) - 1 - len(tokenizer.merges)  # 256: from here on, ids are in the order of the merges
    halves = [tuple(ids[half] for half in merge.split(" ")) for merge in tokenizer.merges]
    merged = {pair: first + rank for rank, pair in enumerate(halves)}
    for rank, (left, right) in enumerate(halves):
        before = first + rank
        while merged.get((left, right), before) >= before and max(left, right) >= first:
            if left > right:
                before, left = left, halves[left - first][1]
            else:  # of two equal pairs that overlap, the left one is merged first, and takes a token from the right one
                before, right = right + 1, halves[right - first][0]
        if merged.get((left, right), before) < before:
            return tokenizer.merges[rank]
    return None


def _typed(value: object, kind: type[T], name: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"its {name} is {brief(value)}, and no {kind.__name__}")
    return value


def _read_merges(path: Path) -> list[str]:
    """The lines of a merges.txt, without the version that may be its first. GPT-2's letters include no line end."""
    lines = read_text(path).splitlines()
    return lines[1:] if lines and lines[0].startswith("#version") else lines


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
