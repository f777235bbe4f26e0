"""One call of `generate`, checked before any work: the prompts, how far each may go, and what ends it.

Without beams, what is written is numbered by rows: `num_return_sequences` rows of prompt 0, then those of prompt 1, and
so on.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from minigpt.decoding.constraints import num_required
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import FinishReason, NoiseTape, Rows, check_prompts
from minigpt.decoding.speculative import Drafter, DraftModel, ModelDrafter, PromptLookup
from minigpt.errors import InputError, counted, either, named, named_ids
from minigpt.kv_cache import KVCache
from minigpt.model import GPT
from minigpt.packed import cache_dtype
from minigpt.parameters import num_with_text


class TokenBytes(Protocol):
    """What a decoder needs of a tokenizer.

    Attributes:
        vocab_size: number of ids. A model may have more, which have no text; see `parameters.with_text`.
    """

    vocab_size: int

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for: at least one."""


class Request:
    """One call, checked: the prompts, how far each may go, and what ends it.

    Attributes:
        prompts: lists of ids.
        limits: how many tokens each prompt may get.
        vocab_size: how many tokens there are to choose from.
        cache: what the model has read of the only prompt, or None.
    """

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        tokenizer: TokenBytes | None,
        draft: PromptLookup | DraftModel | None,
        options: DecodingOptions,
        cache: KVCache | None = None,
    ) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "token_bytes"):
            raise InputError(f"{named('tokenizer', tokenizer)} is none", "give the one that load_model returns")
        self.vocab_size = num_with_text(model, None if tokenizer is None else tokenizer.vocab_size)
        options.check_ids(self.vocab_size)
        self.model = model
        self.draft = draft
        self.options = options
        self.cache = cache
        self.prompts = check_prompts(prompts, self.vocab_size)
        self.limits = [self._limit(number, len(prompt)) for number, prompt in enumerate(self.prompts)]
        if isinstance(options.seed, Sequence) and len(options.seed) != len(self.prompts):
            raise InputError(
                f"{counted(len(options.seed), 'seed')} for {counted(len(self.prompts), 'prompt')}",
                "give one seed for the whole batch, or a list with one for each prompt",
            )
        if options.stop_strings and tokenizer is None:
            raise InputError(
                f"{named('stop', options.stop)} is text, but only ids are known here",
                "pass the model's tokenizer too: tokenizer=tokenizer",
            )
        self._tokenizer = tokenizer
        self._eos = set(options.eos)
        self._stop = [text.encode("utf-8") for text in options.stop_strings]
        self._longest_stop = max(map(len, self._stop), default=0)
        self._check_draft()
        self._check_required()
        self._check_cache()

    def _limit(self, number: int, length: int) -> int:
        wanted, block_size = self.options.max_new_tokens, self.model.config.block_size
        room = max(0, block_size + 1 - length)  # one more than the context holds: the last token is never fed back
        if wanted <= room or self.options.on_overflow == "crop":
            return wanted
        if self.options.on_overflow == "stop":
            return room
        too_much = f"and {named('max_new_tokens', wanted)} do not fit" if room else "alone does not fit"
        lower = [f"lower {named('max_new_tokens')} to {room}"] if room else []
        overflow = '"stop" ends when the context is full, "crop" goes on with the newest tokens'
        raise InputError(
            f"{named(f'prompt {number}')} of length {length} {too_much} block_size = {block_size}",
            either(*lower, "shorten the prompt", f"choose {named('on_overflow')}: {overflow}"),
        )

    def _check_draft(self) -> None:
        if self.draft is None:
            return
        if self.options.uses_beams:
            raise InputError(
                "a draft guesses how one sequence goes on, but with "
                f"{named('num_beams', self.options.num_beams)} a row may go on from another one at every step",
                f"leave {named('draft')} out, or search without beams",
            )
        with_text = None if self._tokenizer is None else self._tokenizer.vocab_size
        if isinstance(self.draft, DraftModel) and num_with_text(self.draft.model, with_text) != self.vocab_size:
            raise InputError(
                f"the draft model has a vocabulary of {self.draft.model.config.vocab_size} tokens, "
                f"the model one of {self.model.config.vocab_size}",
                "choose a draft model that was trained with the same tokenizer; and if it was, and one of the two has "
                f"ids without text, pass that too: {named('tokenizer')}",
            )

    def _check_required(self) -> None:
        required = self.options.required_sequences
        needed = num_required(required)
        for number, limit in enumerate(self.limits if required else ()):
            # With force_eos the last of max_new_tokens is not free. Where the context ends the row earlier, nothing is
            # forced.
            room = limit - (self.options.force_eos and limit == self.options.max_new_tokens)
            if room < needed:
                raise InputError(
                    f"the required sequences hold {needed} tokens, but {named(f'prompt {number}')} gets {room} "
                    "that are free",
                    f"raise {named('max_new_tokens')}, shorten the prompt, or require less",
                )
        for ids, stop in itertools.product(required, self.options.stop_strings):
            # Also where it ends with a stop string: it would be written, and then the text is cut before that string.
            if stop.encode("utf-8") in self._bytes(ids):
                raise InputError(
                    f"{named('required_sequences')} wants {named_ids(ids)}, but {named('stop', stop)} ends the text "
                    "before that",
                    "take it out of one of the two",
                )

    def _check_cache(self) -> None:
        cache, weight = self.cache, self.model.wte.weight
        if cache is None:
            return
        (length,) = map(len, self.prompts)
        if not self.options.use_cache:
            raise InputError(
                f"{named('use_cache', False)}, and a {named('cache')} is given", "leave one of the two out"
            )
        dtypes = weight.dtype, cache_dtype(self.model)
        if cache.batch_size != 1 or cache.kv.dtype not in dtypes or cache.kv.device != weight.device:
            raise InputError(
                f"{cache!r} is not for one row of this model",
                "make it with KVCache(model.config, 1, dtype=model.wte.weight.dtype, device=model.wte.weight.device)",
            )
        if not cache.longest < length <= cache.max_length:
            raise InputError(
                f"{cache!r} does not hold the beginning of a prompt of {length} tokens",
                "take back what differs with cache.rollback, the prompt's last token too: its logits are needed",
            )

    @property
    def num_rows(self) -> int:
        """How many sequences there will be without beams: `num_return_sequences` of each prompt, side by side."""
        return len(self.prompts) * self.options.num_return_sequences

    @property
    def models(self) -> list[GPT]:
        """All that take part."""
        return [self.model, self.draft.model] if isinstance(self.draft, DraftModel) else [self.model]

    def prompt_of(self, row: int) -> int:
        """Which prompt a row continues."""
        return row // self.options.num_return_sequences

    def prompt(self, row: int) -> list[int]:
        """The ids of that."""
        return self.prompts[self.prompt_of(row)]

    def limit(self, row: int) -> int:
        """How many tokens a row may get."""
        return self.limits[self.prompt_of(row)]

    def num_new(self, row: int, ids: Sequence[int]) -> int:
        """How many of a row's ids come after its prompt."""
        return len(ids) - len(self.prompt(row))

    def draft_lengths(self, rows: Sequence[int], ids: Sequence[Sequence[int]], room: int) -> list[int]:
        """How many tokens it makes sense to draft for each row: one more comes from the model."""
        assert self.draft is not None
        longest = min(room, self.draft.num_tokens)
        return [min(longest, self.limit(row) - self.num_new(row, own) - 1) for row, own in zip(rows, ids, strict=True)]

    def start_drafter(self, rows: Sequence[int], tape: NoiseTape | None) -> Drafter | None:
        """Whoever drafts for these rows, and for those that take their places."""
        if isinstance(self.draft, DraftModel):
            theirs = self.start_rows(self.draft.model, list(map(self.prompt_of, rows)))
            return ModelDrafter(theirs, rows, self.options, tape)
        return self.draft

    def start_rows(self, model: GPT, prompt_numbers: Sequence[int], cache: KVCache | None = None) -> Rows:
        """A row for each of these numbers, with the logits of this model, and room for what takes its place."""
        growing = [(len(prompt), limit) for prompt, limit in zip(self.prompts, self.limits, strict=True) if limit]
        longest = max(length + limit for length, limit in growing)
        fits = max(length for length, _ in growing) <= model.config.block_size
        copies = Counter(prompt_numbers)
        prompts = [self.prompts[number] for number in copies]
        use_cache = self.options.use_cache and fits
        return Rows(model, prompts, [*copies.values()], longest, use_cache, self.vocab_size, cache)

    def tape(self, rows: int, columns: int) -> NoiseTape | None:
        """The noise of the draws, if there are any: (rows, columns) at a time."""
        device = self.model.wte.weight.device
        return NoiseTape(self.options.seed, device, rows, columns) if self.options.samples else None

    def finish_reason(self, prompt_number: int, before: Sequence[int], token: int) -> FinishReason | None:
        """Why a row of this prompt ends with this token, which follows the ids `before`, or None if it goes on."""
        num_new = len(before) + 1 - len(self.prompts[prompt_number])
        if token in self._eos:
            return "eos"
        if self._stop:
            # A match ends in the last token, or the row would have ended before; and a token is at least one byte.
            reach = min(num_new, self._longest_stop)
            tail = self._bytes([*before[len(before) + 1 - reach :], token])
            if any(stop in tail for stop in self._stop):
                return "stop"
        return self.limit_reason(prompt_number) if num_new == self.limits[prompt_number] else None

    def _bytes(self, ids: Sequence[int]) -> bytes:
        """The text of ids, where there are stop strings to look for."""
        assert self._tokenizer is not None
        return b"".join(map(self._tokenizer.token_bytes, ids))

    def limit_reason(self, prompt_number: int) -> FinishReason:
        """What it is called when a row of this prompt reaches its limit."""
        return "length" if self.limits[prompt_number] == self.options.max_new_tokens else "context"
