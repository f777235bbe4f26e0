"""A model from the hub (huggingface.co, or the mirror that HF_ENDPOINT names) to a folder on this machine.

The files lie in the cache that huggingface_hub keeps and all programs share. What is there is used as it is, without
the network; to have a newer version fetched, remove the model from the cache.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from minigpt.errors import DownloadError, MissingFileError, first_line
from minigpt.system.downloads import given_up
from minigpt.system.files import parsed_json

# A model folder in transformers' layout. Weights: the first of these that is there, none of which holds code that would
# be run; an index names further files. Tokenizer: either all in one file, or two.
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

# The sizes of GPT-2, and the names under which the hub has them since it gave every model an owner: the same files.
HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
OTHER_NAME = HUB_NAMES | {owned: name for name, owned in HUB_NAMES.items()}

_TIMEOUT = 10.0  # seconds until the hub answers
_PATIENCE = 1800.0  # seconds in which something must reach the disk; huggingface_hub writes 10 MB at once
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def fetch_model(name: str) -> Path:
    """The folder with the files of a model on the hub: from the cache, or fetched into it.

    Only what a model needs is fetched: its configuration, its weights once, its tokenizer. What was fetched as gpt2 is
    found as openai-community/gpt2 too, and so for each of `HUB_NAMES`, either way. The variables of huggingface_hub
    hold: HF_HOME and HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.

    Args:
        name: as on the hub: ORG/NAME, or gpt2 and the like.

    Raises:
        MissingFileError: if there is no such model, or it lacks a file.
        DownloadError: if the hub cannot be reached or refuses, or the cache cannot be written.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported for the first time
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    folders = [_cached_folder(alias) for alias in (name, OTHER_NAME.get(name)) if alias]
    # The fewest files lacking, of two alike the one that was asked for.
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
    except Exception as error:  # the network's come from whichever HTTP library this version of huggingface_hub uses
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise DownloadError(
                f"cannot write {name} into the cache {HF_HUB_CACHE}: {os.strerror(error.errno)}",
                "make room there, or set HF_HUB_CACHE to another folder",
            ) from None
        if cached is not None and set(lacking) <= set(TOKENIZER):  # the hub may well have no others
            return cached
        files = ", ".join(lacking)
        raise DownloadError(
            f"the hub did not give {name} ({first_line(error, 120)}), and the cache {HF_HUB_CACHE} lacks {files}",
            f"connect to the network, set HF_ENDPOINT to a mirror, or copy the files {files} from a machine that has "
            "them into a folder, and name that folder",
        ) from None  # what went wrong inside that library is 80 lines, and the first of them is said


def _cached_folder(name: str) -> Path | None:
    """Where the cache has the model, whole or in part."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, CONFIG)
    except HFValidationError:
        return None  # no name that the hub could have
    return Path(config).parent if isinstance(config, str) else None


def _size(folder: Path) -> int:
    """The bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it has just got another name
            total += path.lstat().st_size
    return total


def _missing(folder: Path) -> list[str]:
    """The files without which the folder is no whole model."""
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
    """The files that an index of weights names; none if it is damaged, which its reader will say."""
    try:
        return sorted(set(parsed_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    # The list of files comes first: it shows within a known time whether the hub can be reached.
    on_hub = {file.rfilename for file in HfApi().model_info(name, timeout=_TIMEOUT).siblings or ()}
    weights = next((file for file in WEIGHTS if file in on_hub), None)
    if CONFIG not in on_hub or weights is None:
        raise MissingFileError(
            f"{name} on the hub has no {CONFIG if weights else 'weights that minigpt reads'}",
            f"choose a model whose files include {CONFIG} and one of {', '.join(WEIGHTS)}",
        )

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name, file))

    for file in (*TOKENIZER, *TOKENIZER_EXTRAS):
        if file in on_hub:
            fetch(file)
    if weights.endswith(".index.json"):
        for shard in _shards(fetch(weights)):
            fetch(shard)
    else:
        fetch(weights)
    return fetch(CONFIG).parent
