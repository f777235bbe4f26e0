"""Everything that can be asked of a decoder, checked where it is written down. Imports without torch.

A field's docstring is the help text of its command-line flag.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from minigpt.errors import InputError, brief, near

# The largest number that may be added to a score, or scale one. Scores are float32 and end at 3e38: an infinite one
# would become NaN in the next softmax.
LARGEST = 1e30


class UnknownOptionError(InputError, TypeError):
    """There is no option of that name."""


@dataclass(frozen=True)
class DecodingOptions:
    """The options of `generate` and `stream`.

    Raises:
        UnknownOptionError: if there is no such option.
        InputError: if a value is out of its range, or contradicts another.
    """

    def __new__(cls, *_: object, **options: object) -> "DecodingOptions":
        """Where every caller's options pass, a misspelt one is answered with the right one."""
        for name in options.keys() - cls.__dataclass_fields__.keys():
            raise UnknownOptionError(
                f"there is no option {brief(name)}",
                near(name, [*cls.__dataclass_fields__, *_BESIDE])
                + "help(minigpt.decoding.options.DecodingOptions) lists them all",
            )
        return super().__new__(cls)

    max_new_tokens: int = 40
    """the most tokens to add to a prompt; 0 gives the prompt back"""
    strategy: Literal["sample", "greedy", "beam"] = "sample"
    """draw each token, take the best one, or look for the best sequence; sample with num_beams > 1 draws its beams"""
    temperature: float | None = None
    """divides the scores before a draw: below 1 the likely tokens gain, above 1 the unlikely, 0 takes the best one;
    0.8 unless given"""
    top_k: int | None = None
    """draw from the k best tokens; 0 is off"""
    top_p: float | None = None
    """draw from the fewest tokens that together have probability p; 1 is off"""
    min_p: float | None = None
    """draw from the tokens that have at least this share of the best one's probability; 0 is off"""
    typical_p: float | None = None
    """draw from the tokens that are about as surprising as expected, together of probability p; 1 is off"""
    epsilon_cutoff: float | None = None
    """draw from the tokens of at least this probability; 0 is off, 0.0003 to 0.0009 is usual"""
    eta_cutoff: float | None = None
    """the same, with a lower bar where the model is unsure: eta, or sqrt(eta) * exp(-entropy) if that is less; 0 is
    off, 0.0003 to 0.004 is usual"""
    repetition_penalty: float = 1.0
    """a token that is there already, in the prompt too, has its score divided by this, or multiplied if negative"""
    no_repeat_ngram_size: int = 0
    """no n tokens in a row are written twice; 0 is off"""
    min_new_tokens: int = 0
    """no end-of-sequence token before this many others"""
    force_eos: bool = False
    """the last of max_new_tokens is an end-of-sequence token, whatever the other options say"""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """(start, factor): after start new tokens, the score s of an end-of-sequence token grows by |s| * (factor ** n - 1)
    at the n-th token from there; a factor above 1 makes long sequences ever less likely"""
    suppress_tokens: Sequence[int] = ()
    """ids that must not be written, end-of-sequence tokens too"""
    begin_suppress_tokens: Sequence[int] = ()
    """ids that must not be the first new token"""
    banned_sequences: Sequence[Sequence[int]] = ()
    """sequences of ids that must not be written; one end-of-sequence token alone is min_new_tokens' business"""
    sequence_bias: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    """sequence of ids -> what is added to the score of its last id, where the others have just been written"""
    required_sequences: Sequence[Sequence[int]] = ()
    """sequences of ids that beam search must write, each somewhere in the new tokens, in any order"""
    num_beams: int = 1
    """sequences that beam search keeps in view"""
    length_penalty: float = 1.0
    """a beam's score is its log-probability / length ** this: above 0 favours long sequences, below 0 short ones"""
    early_stopping: bool | Literal["never"] = False
    """end a beam search when num_beams sequences are complete (true), when the best unfinished one does not beat them
    as it stands (false), or when nothing that it can become would beat them (never)"""
    num_return_sequences: int = 1
    """completions of each prompt"""
    eos_token_id: int | Sequence[int] | None = None
    """the token that ends a sequence, or several; it is kept"""
    stop: str | Sequence[str] | None = None
    """strings that end a sequence once its new text contains one"""
    seed: int | Sequence[int] | None = 0
    """of the draws. A list, one seed per prompt, makes what is drawn for a prompt independent of its batch; None takes
    a fresh seed each time"""
    use_cache: bool = True
    """keep keys and values; without it the same tokens come, slowly"""
    on_overflow: Literal["error", "stop", "crop"] = "error"
    """where prompt and new tokens do not fit the block: refuse before any work, stop when it is full, or go on with the
    newest block_size tokens, which are then all computed again for each new one"""

    def __post_init__(self) -> None:
        for name, (whole, allows, advice) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _DRAWING:
                continue  # off
            _refuse(
                not _is_number(value, whole) or not allows(value),
                f"{name} = {brief(value)} cannot be used",
                f"{name} must be {advice}",
            )
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, bool | str) or value not in choices:
                raise InputError(f"{name} = {brief(value)} is unknown", f"{name} must be one of {choices}")
        self._check_sequences()
        self._check_contradictions()
        if self.strategy == "sample" and self.temperature is None:
            object.__setattr__(self, "temperature", 0.8)  # not the field's default: a search has no temperature

    @property
    def uses_beams(self) -> bool:
        """Whether several sequences are kept in view, to search among them or to draw them."""
        return self.strategy == "beam" or self.num_beams > 1

    @property
    def samples(self) -> bool:
        """Whether anything is drawn. At temperature 0, the limit of sampling, the best token always wins."""
        return self.strategy == "sample" and self.temperature != 0

    @property
    def eos(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple."""
        return _as_tuple(self.eos_token_id)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return _as_tuple(self.stop)

    @property
    def bans(self) -> list[str]:
        """Names of those options in use that may leave a step without any token."""
        return [name for name in _BANS if getattr(self, name)]

    def check_ids(self, vocab_size: int) -> None:
        """Refuse options that name a token the vocabulary does not have.

        Raises:
            InputError: with the option and the id.
        """
        named: dict[str, Iterable[Sequence[int]]] = {
            "eos_token_id": [self.eos],
            **{name: [getattr(self, name)] for name in _ID_LISTS},
            **{name: getattr(self, name) for name in _SEQUENCE_LISTS},
        }
        for name, sequences in named.items():
            for token_id in (token_id for ids in sequences for token_id in ids):
                if not 0 <= token_id < vocab_size:
                    raise InputError(
                        f"{name} names token {brief(token_id)}, outside the vocabulary of {vocab_size}",
                        f"use ids from 0 to {vocab_size - 1}",
                    )

    def _check_sequences(self) -> None:
        _refuse(
            not all(_is_number(token_id, whole=True) for token_id in self.eos),
            f"eos_token_id = {brief(self.eos_token_id)} cannot be used",
            "eos_token_id must be a token id, or a list of them",
        )
        for text in self.stop_strings:
            _refuse(
                not isinstance(text, str) or not text or any("\ud800" <= sign <= "\udfff" for sign in text),
                f"stop = {brief(text)} cannot be used",
                "stop must be a string of at least one character, or several, and of whole characters",
            )
        for name in _ID_LISTS:
            ids = getattr(self, name)
            _refuse(
                not _made_of_ids(ids), f"{name} = {brief(ids)} cannot be used", f"{name} must be a list of token ids"
            )
        for name, (kind, advice) in _SEQUENCE_LISTS.items():
            sequences = getattr(self, name)
            _refuse(
                not isinstance(sequences, kind),
                f"{name} = {brief(sequences)} cannot be used",
                f"{name} must be {advice}",
            )
            for ids in sequences:
                if not ids or not _made_of_ids(ids):
                    raise InputError(
                        f"{name} holds {brief(ids)}", f"each sequence in {name} is made of token ids, at least one"
                    )
        for ids, bias in self.sequence_bias.items():
            if not _is_number(bias) or not (bias == -math.inf or abs(bias) <= LARGEST):
                raise InputError(
                    f"sequence_bias of {brief([*ids])} is {brief(bias)}",
                    f"a bias is a number from {-LARGEST:g} to {LARGEST:g}, or -inf to ban",
                )
        decay = self.exponential_decay_length_penalty
        _refuse(
            decay is not None and not _is_decay(decay),
            f"exponential_decay_length_penalty = {brief(decay)} cannot be used",
            "give a pair (start, factor): after start new tokens, 0 or more, a factor above 0 and at most "
            f"{LARGEST:g}; 1.05 is mild",
        )
        for seed in _as_tuple(self.seed):
            check_seed(seed, "; give one, or a list with one for each prompt")

    def _check_contradictions(self) -> None:
        """An option that would have no effect is a misunderstanding, so it is refused, not ignored."""
        for name, off in _DRAWING.items():
            value = getattr(self, name)
            greedy_at_zero = name == "temperature" and value == 0 and self.strategy == "greedy"
            _refuse(
                self.strategy != "sample" and value not in (None, off) and not greedy_at_zero,
                f"{name} = {value} shapes a draw, but strategy = {brief(self.strategy)} draws nothing",
                f'leave {name} out, or choose strategy="sample" (with num_beams above 1 it draws beams)',
            )
        for name, off in _SEARCHING.items():
            value = getattr(self, name)
            _refuse(
                not self.uses_beams and value not in (off, []),
                f"{name} = {brief(value)} concerns beams, but there are none",
                f'leave {name} out, or choose strategy="beam" with num_beams above 1',
            )
        _refuse(
            self.strategy == "greedy" and self.num_beams > 1,
            f"num_beams = {self.num_beams}, but strategy = 'greedy' follows a single sequence",
            'leave num_beams out, or choose strategy="beam"',
        )
        _refuse(
            self.strategy == "sample" and self.num_beams > 1 and self.temperature == 0,
            f"temperature = 0 draws nothing, but strategy = 'sample' would draw num_beams = {self.num_beams} beams",
            'choose strategy="beam", or a temperature above 0',
        )
        _refuse(
            self.uses_beams and self.num_return_sequences > self.num_beams,
            f"num_return_sequences = {self.num_return_sequences} is more than num_beams = {self.num_beams}",
            "a search finds num_beams sequences: raise num_beams, or ask for fewer",
        )
        _refuse(
            not self.uses_beams and not self.samples and self.num_return_sequences > 1,
            f"num_return_sequences = {self.num_return_sequences} would all be the same: nothing is drawn",
            'choose strategy="sample" with a temperature above 0, or strategy="beam"',
        )
        _refuse(
            self.min_new_tokens > self.max_new_tokens,
            f"min_new_tokens = {self.min_new_tokens} is more than max_new_tokens = {self.max_new_tokens}",
            "lower min_new_tokens, or raise max_new_tokens",
        )
        self._check_ends()
        self._check_required()

    def _check_ends(self) -> None:
        for name in ("min_new_tokens", "force_eos", "exponential_decay_length_penalty"):
            _refuse(
                bool(getattr(self, name)) and not self.eos,
                f"{name} = {getattr(self, name)} concerns the end-of-sequence token, but eos_token_id names none",
                f"give eos_token_id, or leave {name} out",
            )
        _refuse(
            self.force_eos and set(self.eos) <= set(self.suppress_tokens),
            f"force_eos wants one of {brief([*self.eos])} at the end, but suppress_tokens forbids all of them",
            "leave one of the two out",
        )

    def _check_required(self) -> None:
        _refuse(
            bool(self.required_sequences) and self.samples,
            "required_sequences are looked for by beam search, but strategy = 'sample' draws",
            'choose strategy="beam"',
        )
        never = {
            "eos_token_id": [[token_id] for token_id in self.eos],  # it ends the sequence, even inside a required one
            "suppress_tokens": [[token_id] for token_id in self.suppress_tokens],
            "banned_sequences": self.banned_sequences,
        }
        for required in self.required_sequences:
            for name, sequences in never.items():
                for ids in sequences:
                    _refuse(
                        contains(required, ids),
                        f"required_sequences wants {brief([*required])}, but {name} forbids {brief([*ids])} in it",
                        "take it out of one of the two",
                    )


def check_seed(seed: object, more: str = "") -> None:
    """See that torch can draw by it.

    Args:
        seed: what a caller gave for one.
        more: of the advice.

    Raises:
        InputError: if it is none.
    """
    _refuse(
        not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63,
        f"seed = {brief(seed)} cannot be used",
        f"a seed is a whole number from 0 to 2**63 - 1{more}",
    )


class _Number(NamedTuple):
    whole: bool
    allows: Callable[[float], bool]
    advice: str


_COUNT = range(2**63)  # what torch can count
_MOST_ROWS = 1_000_000
_NUMBERS = {
    "max_new_tokens": _Number(True, lambda x: x in _COUNT, "a whole number from 0 to 2**63 - 1"),
    "temperature": _Number(
        False, lambda x: 0 <= x <= LARGEST, f"from 0 to {LARGEST:g}: 0 takes the best token, 1 leaves the scores alone"
    ),
    "top_k": _Number(True, lambda x: x in _COUNT, "a whole number below 2**63: 0 is off, 50 keeps the 50 best tokens"),
    "top_p": _Number(False, lambda x: 0 < x <= 1, "above 0 and at most 1: 1 is off"),
    "min_p": _Number(False, lambda x: 0 <= x <= 1, "from 0 to 1: 0 is off"),
    "typical_p": _Number(False, lambda x: 0 < x <= 1, "above 0 and at most 1: 1 is off"),
    "epsilon_cutoff": _Number(False, lambda x: 0 <= x < 1, "from 0 to below 1: 0 is off"),
    "eta_cutoff": _Number(False, lambda x: 0 <= x < 1, "from 0 to below 1: 0 is off"),
    "repetition_penalty": _Number(
        False, lambda x: 0.001 <= x <= 1000, "from 0.001 to 1000: 1 is off, 1.2 discourages repetition"
    ),
    "no_repeat_ngram_size": _Number(
        True, lambda x: x in _COUNT, "a whole number below 2**63: 0 is off, 3 forbids a repeated triple"
    ),
    "min_new_tokens": _Number(True, lambda x: x in _COUNT, "a whole number from 0 to 2**63 - 1"),
    "num_beams": _Number(True, lambda x: 1 <= x <= _MOST_ROWS, f"a whole number from 1 to {_MOST_ROWS:,}"),
    "length_penalty": _Number(False, lambda x: abs(x) <= 10, "from -10 to 10: 0 is the sum, 1 the mean per token"),
    "num_return_sequences": _Number(True, lambda x: 1 <= x <= _MOST_ROWS, f"a whole number from 1 to {_MOST_ROWS:,}"),
}
_CHOICES: dict[str, tuple[bool | str, ...]] = {
    "strategy": ("sample", "greedy", "beam"),
    "early_stopping": (False, True, "never"),
    "force_eos": (True, False),
    "use_cache": (True, False),
    "on_overflow": ("error", "stop", "crop"),
}
# What only a draw, and what only beams take notice of, each with the value that is off.
_DRAWING: dict[str, Any] = {
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
}
_SEARCHING: dict[str, Any] = {"length_penalty": 1, "early_stopping": False, "required_sequences": ()}
_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_SEQUENCE_LISTS: dict[str, tuple[type, str]] = {
    "banned_sequences": (Sequence, "a list of lists of token ids"),
    "sequence_bias": (Mapping, "a dict: tuple of token ids -> bias"),
    "required_sequences": (Sequence, "a list of lists of token ids"),
}
_BESIDE = ("tokenizer", "draft", "on_step", "num_candidates")  # what else `generate` takes by name
_BANS = ("banned_sequences", "sequence_bias", "no_repeat_ngram_size", "min_new_tokens", *_ID_LISTS)


def check_count(name: str, value: object) -> None:
    """Refuse what does not count anything: a number that is not whole, or below 1.

    Raises:
        InputError: with the name and the value.
    """
    _refuse(
        not _is_number(value, whole=True) or value not in _COUNT[1:],
        f"{name} = {brief(value)} cannot be used",
        f"{name} must be a whole number, 1 or more",
    )


def contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether `part` occurs in `ids`, without a gap."""
    return any(list(ids[at : at + len(part)]) == list(part) for at in range(len(ids) - len(part) + 1))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """None, one value or several, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str | bytes) or not isinstance(value, Sequence) else tuple(value)


def _made_of_ids(value: object) -> bool:
    return isinstance(value, list | tuple) and all(_is_number(token_id, whole=True) for token_id in value)


def _is_number(value: object, whole: bool = False) -> bool:
    """Whether it is an int, or a float too where it need not be whole. To Python bool is one, but top_k=True is not."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def _is_decay(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    start, factor = value
    return _is_number(start, whole=True) and start in _COUNT and _is_number(factor) and 0 < factor <= LARGEST


def _refuse(condition: bool, what: str, how: str) -> None:
    if condition:
        raise InputError(what, how)
