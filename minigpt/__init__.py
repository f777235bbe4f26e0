"""A small GPT, written to be read: train it, load it, and decode with it.

The names below are imported when they are first used, so that `import minigpt` costs nothing.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt import analysis as analysis
    from minigpt import errors as errors
    from minigpt import replies as replies
    from minigpt import tokenizers as tokenizers
    from minigpt.chat import Chat as Chat
    from minigpt.completion import complete as complete
    from minigpt.config import GPTConfig as GPTConfig
    from minigpt.data.prompts import few_shot_prompt as few_shot_prompt
    from minigpt.decoding.generate import generate as generate
    from minigpt.decoding.generate import stream as stream
    from minigpt.decoding.options import DecodingOptions as DecodingOptions
    from minigpt.decoding.sampling import next_token_table as next_token_table
    from minigpt.errors import MiniGPTError as MiniGPTError
    from minigpt.evaluation.loss import next_token_loss as next_token_loss
    from minigpt.evaluation.loss import sequence_log_prob as sequence_log_prob
    from minigpt.evaluation.loss import token_log_probs as token_log_probs
    from minigpt.formats.pretrained import load_model as load_model
    from minigpt.formats.pretrained import save_hf as save_hf
    from minigpt.formats.run_directory import save_run as save_run
    from minigpt.formats.source import open_source as open_source
    from minigpt.kv_cache import KVCache as KVCache
    from minigpt.model import GPT as GPT
    from minigpt.packed import pack as pack

__version__ = "0.1.0"

_HOMES = {
    "Chat": "minigpt.chat",
    "DecodingOptions": "minigpt.decoding.options",
    "GPT": "minigpt.model",
    "GPTConfig": "minigpt.config",
    "KVCache": "minigpt.kv_cache",
    "MiniGPTError": "minigpt.errors",
    "complete": "minigpt.completion",
    "few_shot_prompt": "minigpt.data.prompts",
    "generate": "minigpt.decoding.generate",
    "load_model": "minigpt.formats.pretrained",
    "open_source": "minigpt.formats.source",
    "save_hf": "minigpt.formats.pretrained",
    "save_run": "minigpt.formats.run_directory",
    "next_token_loss": "minigpt.evaluation.loss",
    "next_token_table": "minigpt.decoding.sampling",
    "pack": "minigpt.packed",
    "sequence_log_prob": "minigpt.evaluation.loss",
    "stream": "minigpt.decoding.generate",
    "token_log_probs": "minigpt.evaluation.loss",
}
_ROOMS = ("analysis", "errors", "replies", "tokenizers")  # modules that are there without an import of their own
__all__ = [*_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"minigpt.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What is public, and nothing of how it is found."""
    return sorted([*_HOMES, *_ROOMS, "__version__"])
