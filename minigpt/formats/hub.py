"""A model from the hub (huggingface.co, or the mirror that HF_ENDPOINT names) to a folder on this machine.

The files lie in huggingface_hub's cache, which all programs share. A model that is there is used without the network;
to get a newer version, or a generation_config.json that another program did not fetch, remove it from the cache.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from minigpt.errors import DownloadError, MissingFileError, first_line
from minigpt.system.downloads import given_up
from minigpt.system.files import parsed_json

# The files of a model in transformers' layout. Weights: the first of these that exists (no code in them is ever run; an
# index names further files). Tokenizer: the first file alone, or the two others.
CONFIG = "config.json"
GENERATION = "generation_config.json"  # how to write with it, and where a text ends
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

# The sizes of GPT-2, each with its newer name on the hub, where every model has an owner now: the same files.
HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
OTHER_NAME = HUB_NAMES | {owned: name for name, owned in HUB_NAMES.items()}

_TIMEOUT = 10.0  # seconds within which the hub must answer
_PATIENCE = 1800.0  # seconds within which something must reach the disk; huggingface_hub writes 10 MB at once
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def fetch_model(name: str) -> Path:
    """The folder with the files of a model on the hub: from the cache, or downloaded into it.

    Only what a model needs is downloaded: its settings, its weights in one format, its tokenizer. A model that was
    downloaded as gpt2 is also found as openai-community/gpt2, and the other way round; so for each of `HUB_NAMES`. The
    environment variables of huggingface_hub apply: HF_HOME and HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE,
    HF_ENDPOINT, HF_TOKEN.

    Args:
        name: as on the hub: ORG/NAME, or an old name such as gpt2.

    Raises:
        MissingFileError: if there is no such model, or it lacks a file.
        DownloadError: if the hub cannot be reached or refuses, or the cache cannot be written.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported for the first time
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    folders = [_cached_folder(alias) for alias in (name, OTHER_NAME.get(name)) if alias]
    # The folder that lacks the fewest files; if both lack as many, the one of the name that was asked for.
    cached = min((folder for folder in folders if folder), key=lambda folder: len(_missing(folder)), default=None)
    lacking = [CONFIG, WEIGHTS[0], TOKENIZER[0]] if cached is None else _missing(cached)
    if cached is not None and not lacking:
        return cached
    try:
        return given_up(
            lambda: _download(name), lambda: _size(Path(HF_HUB_CACHE, "models--" + name.replace("/", "--"))), _PATIENCE
        )
    except MissingFileError:
        raise
    except GatedRepoError:
        raise DownloadError(
            f"the hub gives {name} only to people who have agreed to its terms",
            f"agree on its page, https://huggingface.co/{name}, and set HF_TOKEN to a token of your account",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise MissingFileError(
            f"the hub has no model {name!r}, or it is private",
            "check the spelling of ORG/NAME; for a private model, set HF_TOKEN to a token of your account",
        ) from None
    except Exception as error:  # each version of huggingface_hub has the errors of its own HTTP library
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise DownloadError(
                f"cannot write {name} into the cache {HF_HUB_CACHE}: {os.strerror(error.errno)}",
                "make room there, or set HF_HUB_CACHE to another folder",
            ) from None
        if cached is not None and set(lacking) <= set(TOKENIZER):  # the hub may not have these either
            return cached
        files = ", ".join(lacking)
        raise DownloadError(
            f"the hub did not give {name} ({first_line(error, 120)}), and the cache {HF_HUB_CACHE} lacks {files}",
            f"connect to the network, set HF_ENDPOINT to a mirror, or copy the files {files} from a machine that has "
            "them into a folder, and name that folder",
        ) from None  # the library's traceback has 80 lines; the error above quotes its first line


def _cached_folder(name: str) -> Path | None:
    """The model's folder in the cache, complete or not; None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, CONFIG)
    except HFValidationError:
        return None  # the hub cannot have a model of this name
    return Path(config).parent if isinstance(config, str) else None


def _size(folder: Path) -> int:
    """The bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it may just have been renamed
            total += path.lstat().st_size
    return total


def _missing(folder: Path) -> list[str]:
    """The files that the folder lacks to be a whole model."""
    present = {path.name for path in folder.iterdir() if path.is_file()}
    missing = [CONFIG] if CONFIG not in present else []
    weights = next((file for file in WEIGHTS if file in present), None)
    if weights is None:
        missing.append(WEIGHTS[0])
    elif weights.endswith(".index.json"):
        missing += [shard for shard in _shards(folder / weights) if shard not in present]
    if TOKENIZER[0] not in present:
        missing += [file for file in TOKENIZER[1:] if file not in present]
    return missing


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names; none if it is damaged, which is an error when it is read."""
    try:
        return sorted(set(parsed_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    # Get the list of files first: it shows within _TIMEOUT whether the hub can be reached.
    on_hub = {file.rfilename for file in HfApi().model_info(name, timeout=_TIMEOUT).siblings or ()}
    weights = next((file for file in WEIGHTS if file in on_hub), None)
    if CONFIG not in on_hub or weights is None:
        raise MissingFileError(
            f"{name} on the hub has no {CONFIG if weights else 'weights that minigpt reads'}",
            f"choose a model whose files include {CONFIG} and one of {', '.join(WEIGHTS)}",
        )

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name, file))

    for file in (*TOKENIZER, *TOKENIZER_EXTRAS, GENERATION):
        if file in on_hub:
            fetch(file)
    whole = fetch(weights)
    for shard in _shards(whole) if weights.endswith(".index.json") else ():
        fetch(shard)
    return fetch(CONFIG).parent
