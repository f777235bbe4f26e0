"""Text in, text out: `decoding.generate` with the tokenizer on both sides."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from minigpt.decoding.generate import before_stop, generate
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError, brief
from minigpt.fields import check_value
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer, encode_prompt


def complete(  # noqa: D417 (what an option means is said once, in DecodingOptions)
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 40,
    strategy: Literal["sample", "greedy", "beam"] = "sample",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    epsilon_cutoff: float | None = None,
    eta_cutoff: float | None = None,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    min_new_tokens: int = 0,
    force_eos: bool = False,
    exponential_decay_length_penalty: tuple[int, float] | None = None,
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
    banned_sequences: Sequence[Sequence[int]] = (),
    sequence_bias: Mapping[tuple[int, ...], float] = MappingProxyType({}),
    required_sequences: Sequence[Sequence[int]] = (),
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    num_return_sequences: int = 1,
    eos_token_id: int | Sequence[int] | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = 0,
    batch_size: int | None = None,
    use_cache: bool = True,
    on_overflow: Literal["error", "stop", "crop"] = "error",
    draft: PromptLookup | DraftModel | None = None,
    skip_special: bool = True,
) -> str | list[str]:
    """Continue a text, or several at once.

        print(minigpt.complete(model, tokenizer, "ROMEO:", max_new_tokens=200))

    Args:
        model: stays as it is.
        tokenizer: the model's. Its `end_ids` end a text, if `eos_token_id` names no others.
        prompt: a text, or a list of texts. An empty one begins where the tokenizer begins, with a token that is no part
            of the text.
        skip_special: leave out special tokens, such as the one that ends a document; else their names are shown.
        draft: as for `generate`, and all other options are those of `DecodingOptions`, with their meanings there.

    Returns:
        The prompt with its continuation, up to the first stop string; `text.removeprefix(prompt)` is what is new. Of
        several prompts, or with `num_return_sequences` above 1, a list in the order of `Generation.sequences`.

    Warns:
        TextNote: if a prompt spells a special token, and the tokenizer reads the spelling as text.

    Raises:
        InputError: if the prompt is no text, cannot be encoded, or as `generate`.
    """
    given = locals()
    options: dict[str, Any] = {field.name: given[field.name] for field in dataclasses.fields(DecodingOptions)}
    texts = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, str) else [prompt]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"prompt = {brief(prompt)} is no text", "give a string, or a list of strings")
    check_value("tokenizer", tokenizer, Tokenizer, InputError)
    check_value("skip_special", skip_special, bool, InputError)
    if eos_token_id is None:
        options["eos_token_id"] = tokenizer.end_ids
    rows = [encode_prompt(tokenizer, text) for text in texts]
    out = generate(model, rows, tokenizer=tokenizer, draft=draft, **options)
    owners = [number for number in range(len(texts)) for _ in range(num_return_sequences)]
    written = [
        texts[owner] + new_text(tokenizer, ids[len(rows[owner]) :], stop, skip_special)
        for owner, ids in zip(owners, out.sequences, strict=True)
    ]
    return written[0] if isinstance(prompt, str) and num_return_sequences == 1 else written


def new_text(tokenizer: Tokenizer, ids: Sequence[int], stop: str | Sequence[str] | None, skip_special: bool) -> str:
    """The text of new tokens, up to the first stop string."""
    stops = [stop] if isinstance(stop, str) else stop or ()
    return "".join(before_stop([tokenizer.decode(ids, skip_special)], stops))
