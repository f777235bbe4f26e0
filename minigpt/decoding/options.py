"""Everything that can be asked of a decoder, checked where it is written down. Imports without torch.

A field's docstring is the help text of its command-line flag.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Annotated, Any, Literal, TypedDict, get_args

from minigpt.errors import InputError, UnknownOptionError, named, named_ids, passed, refuse_if
from minigpt.fields import ABOVE_0, BELOW_1, Bounds, Form, check_fields, check_ids, hints

_refuse = partial(refuse_if, InputError)

# The largest number that may be added to a score, or scale one. Scores are float32 and end at 3e38: an infinite one
# would become NaN in the next softmax.
LARGEST = 1e30


@dataclass(frozen=True)
class Concerns:
    """What a field is for. Where there is no such thing, it must be off, because it would have no effect.

    Attributes:
        whom: a draw, several beams, or the end-of-sequence token.
        off: the value that does nothing; None does nothing either.
    """

    whom: Literal["draw", "beams", "end"]
    off: object = None


_MOST = 2**63 - 1  # what torch can count
_Seed = Annotated[int, Bounds(0, _MOST, "a whole number from 0 to 2**63 - 1, or a list with one for each prompt")]
_TokenId = Annotated[int, Form("a token id, or a list of them")]
_Ids = Annotated[Sequence[int], Form("a list of token ids")]
_SomeIds = Annotated[Sequence[int], Form("a list of token ids, at least one", bool)]
_KeyIds = Annotated[tuple[int, ...], Form("a tuple of token ids, at least one", bool)]
_Lists = Annotated[Sequence[_SomeIds], Form("a list of lists of token ids")]
_Text = Annotated[
    str,
    Form("a string of at least one character, or several, and of whole characters",
         re.compile("[^\ud800-\udfff]+").fullmatch),
]  # fmt: skip
_Bias = Annotated[
    float,
    Form(f"from {-LARGEST:g} to {LARGEST:g}, or -inf to ban", lambda bias: bias == -math.inf or abs(bias) <= LARGEST),
]
_Decay = tuple[Annotated[int, Bounds(0, _MOST)], Annotated[float, Bounds(ABOVE_0, LARGEST)]]
_DECAY = Form(
    f"a pair (start, factor): after start new tokens, 0 or more, a factor above 0 and at most {LARGEST:g}; 1.05 is mild"
)
_FROM_0 = Bounds(0, _MOST, "a whole number from 0 to 2**63 - 1")
_ROWS = Bounds(1, 1_000_000, "a whole number from 1 to 1,000,000")
_TEMPERATURE = Bounds(0, LARGEST, f"from 0 to {LARGEST:g}: 0 takes the best token, 1 leaves the scores alone")
_TOP_K = Bounds(0, _MOST, "a whole number below 2**63: 0 is off, 50 keeps the 50 best tokens")
_NUCLEUS = Bounds(ABOVE_0, 1, "above 0 and at most 1: 1 is off")
_SHARE = Bounds(0, 1, "from 0 to 1: 0 is off")
_CUTOFF = Bounds(0, BELOW_1, "from 0 to below 1: 0 is off")
_PENALTY = Bounds(0.001, 1000, "from 0.001 to 1000: 1 is off, 1.2 discourages repetition")
_NGRAM = Bounds(0, _MOST, "a whole number below 2**63: 0 is off, 3 forbids a repeated triple")
_LENGTH = Bounds(-10, 10, "from -10 to 10: 0 is the sum, 1 the mean per token")
_SEQUENCES = ("banned_sequences", "sequence_bias", "required_sequences")
_BANS = (  # what may leave a step without any token
    "banned_sequences", "sequence_bias", "no_repeat_ngram_size", "min_new_tokens", "suppress_tokens",
    "begin_suppress_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class DecodingOptions:
    """The options of `generate` and `stream`.

    Raises:
        UnknownOptionError: if there is no such option.
        InputError: if a value is out of its range, or contradicts another.
    """

    def __new__(cls, *_: object, **options: object) -> "DecodingOptions":
        """Every caller's options come through here: a misspelt one is refused, with the nearest right name."""
        for name in options.keys() - cls.__dataclass_fields__.keys():
            raise UnknownOptionError(name, cls.__dataclass_fields__, "minigpt.decoding.options.DecodingOptions")
        return super().__new__(cls)

    max_new_tokens: Annotated[int, _FROM_0] = 40
    """the most tokens to add to a prompt; 0 gives the prompt back"""
    strategy: Literal["sample", "greedy", "beam"] = "sample"
    """draw each token, take the best one, or look for the best sequence; sample with num_beams > 1 draws its beams"""
    temperature: Annotated[float | None, _TEMPERATURE, Concerns("draw", off=1)] = None
    """divides the scores before a draw: below 1 the likely tokens gain, above 1 the unlikely, 0 takes the best one;
    0.8 unless given"""
    top_k: Annotated[int | None, _TOP_K, Concerns("draw", off=0)] = None
    """draw from the k best tokens; 0 is off"""
    top_p: Annotated[float | None, _NUCLEUS, Concerns("draw", off=1)] = None
    """draw from the fewest tokens that together have probability p; 1 is off"""
    min_p: Annotated[float | None, _SHARE, Concerns("draw", off=0)] = None
    """draw from the tokens that have at least this share of the best one's probability; 0 is off"""
    typical_p: Annotated[float | None, _NUCLEUS, Concerns("draw", off=1)] = None
    """draw from the tokens that are about as surprising as expected, together of probability p; 1 is off"""
    epsilon_cutoff: Annotated[float | None, _CUTOFF, Concerns("draw", off=0)] = None
    """draw from the tokens of at least this probability; 0 is off, 0.0003 to 0.0009 is usual"""
    eta_cutoff: Annotated[float | None, _CUTOFF, Concerns("draw", off=0)] = None
    """the same, with a lower bar where the model is unsure: eta, or sqrt(eta) * exp(-entropy) if that is less; 0 is
    off, 0.0003 to 0.004 is usual"""
    repetition_penalty: Annotated[float, _PENALTY] = 1.0
    """a token that is there already, in the prompt too, has its score divided by this, or multiplied if negative"""
    no_repeat_ngram_size: Annotated[int, _NGRAM] = 0
    """no n tokens in a row are written twice; 0 is off"""
    min_new_tokens: Annotated[int, _FROM_0, Concerns("end", off=0)] = 0
    """no end-of-sequence token before this many others"""
    force_eos: Annotated[bool, Concerns("end", off=False)] = False
    """the last of max_new_tokens is an end-of-sequence token, whatever the other options say"""
    exponential_decay_length_penalty: Annotated[_Decay | None, _DECAY, Concerns("end")] = None
    """(start, factor): after start new tokens, the score s of an end-of-sequence token grows by |s| * (factor ** n - 1)
    at the n-th token from there; a factor above 1 makes long sequences ever less likely"""
    suppress_tokens: _Ids = ()
    """ids that must not be written, end-of-sequence tokens too"""
    begin_suppress_tokens: _Ids = ()
    """ids that must not be the first new token"""
    banned_sequences: _Lists = ()
    """sequences of ids that must not be written; one end-of-sequence token alone is ignored, as in transformers:
    suppress_tokens forbids it, and min_new_tokens puts it off"""
    sequence_bias: Annotated[Mapping[_KeyIds, _Bias], Form("a dict: tuple of token ids -> bias")] = field(
        default_factory=dict
    )
    """sequence of ids -> what is added to the score of its last id, where the others have just been written"""
    required_sequences: Annotated[_Lists, Concerns("beams", off=())] = ()
    """sequences of ids that beam search must write, each somewhere in the new tokens, in any order"""
    num_beams: Annotated[int, _ROWS] = 1
    """sequences that beam search keeps in view"""
    length_penalty: Annotated[float, _LENGTH, Concerns("beams", off=1)] = 1.0
    """a beam's score is its log-probability / length ** this: above 0 favours long sequences, below 0 short ones"""
    early_stopping: Annotated[bool | Literal["never"], Concerns("beams", off=False)] = False
    """end a beam search when num_beams sequences are complete (true), when the best unfinished one does not beat them
    as it stands (false), or when nothing that it can become would beat them (never)"""
    num_return_sequences: Annotated[int, _ROWS] = 1
    """completions of each prompt"""
    eos_token_id: _TokenId | Sequence[_TokenId] | None = None
    """the token that ends a sequence, or several; it is kept. None: no token does. `complete`, `Chat` and the
    command line name the tokenizer's `end_ids` here"""
    stop: _Text | Sequence[_Text] | None = None
    """strings that end a sequence once its new text contains one; the name of a special token is text here, even where
    it is not shown"""
    seed: _Seed | Sequence[_Seed] | None = 0
    """of the draws; where nothing is drawn, every seed gives the same. A list, one seed per prompt, makes what is drawn
    for a prompt independent of its batch; None takes a fresh seed each time"""
    batch_size: Annotated[int | None, Bounds(1, _MOST, below="continues nothing")] = None
    """the most sequences that are written side by side, and each beam is one; the others wait, and take the places of
    those that are done; all at once unless given"""
    use_cache: bool = True
    """keep keys and values; without it the same tokens come, slowly"""
    on_overflow: Literal["error", "stop", "crop"] = "error"
    """where prompt and new tokens do not fit the context: refuse before any work, stop when it is full, or go on with
    the newest block_size tokens, which are then all computed again for each new one"""

    def __post_init__(self) -> None:
        check_fields(self, InputError)
        self._check_contradictions()
        if self.strategy == "sample" and self.temperature is None:
            object.__setattr__(self, "temperature", 0.8)  # not the field's default: a search has no temperature

    @classmethod
    def before_model(cls, **options: Any) -> "DecodingOptions":
        """Options that are checked before a model is loaded.

        `max_new_tokens` and `eos_token_id` depend on the model: until then they have values that contradict nothing.
        """
        return cls(**options, max_new_tokens=2**31, eos_token_id=0)

    @property
    def uses_beams(self) -> bool:
        """Whether several sequences are kept in view, to search among them or to draw them."""
        return self.strategy == "beam" or self.num_beams > 1

    @property
    def samples(self) -> bool:
        """Whether anything is drawn. At temperature 0, the limit of sampling, the best token always wins."""
        return self.strategy == "sample" and self.temperature != 0

    @property
    def effect(self) -> "DecodingOptions":
        """The same decoder in its plainest words: equal for options that write the same, such as top_k = 0 and none."""
        off = [name for name, concerns in _concerns().items() if concerns.whom == "draw" and name != "temperature"]
        plain: dict[str, Any] = {name: None for name in off if getattr(self, name) == _concerns()[name].off}
        one_beam = self.strategy == "beam" and self.num_beams == 1 and self.early_stopping != "never"
        if one_beam or not (self.samples or self.uses_beams):
            plain |= {"strategy": "greedy", "temperature": None, "length_penalty": 1.0, "early_stopping": False}
        return replace(self, **plain)

    @property
    def eos(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple."""
        return _as_tuple(self.eos_token_id)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return _as_tuple(self.stop)

    @cached_property
    def bans(self) -> list[str]:
        """Names of those options in use that may leave a step without any token."""
        return [name for name in _BANS if getattr(self, name)]

    def check_ids(self, vocab_size: int) -> None:
        """Refuse options that name a token the vocabulary does not have.

        Raises:
            InputError: with the option and the id.
        """
        given: dict[str, Iterable[Sequence[int]]] = {
            "eos_token_id": [self.eos],
            "suppress_tokens": [self.suppress_tokens],
            "begin_suppress_tokens": [self.begin_suppress_tokens],
            **{name: getattr(self, name) for name in _SEQUENCES},
        }
        for name, sequences in given.items():
            for ids in sequences:
                check_ids(ids, vocab_size, named(name))

    def _is(self, name: str) -> str:
        """A field and its value, in an error."""
        return named(name, getattr(self, name))

    def _check_contradictions(self) -> None:
        """An option that would have no effect is a misunderstanding, so it is refused, not ignored."""
        _refuse(
            self.min_new_tokens > self.max_new_tokens,
            f"{self._is('min_new_tokens')} is more than {self._is('max_new_tokens')}",
            f"lower {named('min_new_tokens')}, or raise {named('max_new_tokens')}",
        )
        for name, concerns in _concerns().items():
            value = getattr(self, name)
            if value is not None and value != concerns.off and value != []:
                self._check_concerned(name, concerns.whom)
        _refuse(
            self.strategy == "greedy" and self.num_beams > 1,
            f"{self._is('num_beams')}, but {self._is('strategy')} follows a single sequence",
            f"leave {named('num_beams')} out, or choose {passed('strategy', 'beam')}",
        )
        _refuse(
            self.strategy == "sample" and self.num_beams > 1 and self.temperature == 0,
            f"{self._is('temperature')} draws nothing, but {self._is('strategy')} would draw {self._is('num_beams')} "
            "beams",
            f"choose {passed('strategy', 'beam')}, or a temperature above 0",
        )
        _refuse(
            self.batch_size is not None and self.num_beams > self.batch_size,
            f"{self._is('num_beams')} do not fit {self._is('batch_size')}",
            f"raise {named('batch_size')} to {self.num_beams}, or lower {named('num_beams')}",
        )
        _refuse(
            self.uses_beams and self.num_return_sequences > self.num_beams,
            f"{self._is('num_return_sequences')} is more than {self._is('num_beams')}",
            f"a search finds {named('num_beams')} sequences: raise {named('num_beams')}, or ask for fewer",
        )
        _refuse(
            not self.uses_beams and not self.samples and self.num_return_sequences > 1,
            f"{self._is('num_return_sequences')} would all be the same: nothing is drawn",
            f"choose {passed('strategy', 'sample')} with a temperature above 0, or {passed('strategy', 'beam')}",
        )
        _refuse(
            self.force_eos and set(self.eos) <= set(self.suppress_tokens),
            f"{named('force_eos')} wants one of {named_ids(self.eos)} at the end, but {named('suppress_tokens')} "
            "forbids all of them",
            "leave one of the two out",
        )
        self._check_required()

    def _check_concerned(self, name: str, whom: str) -> None:
        """Refuse a field that is not off, where it concerns nobody."""
        at_zero = name == "temperature" and self.temperature == 0 and self.strategy != "beam"
        if self.strategy == "sample":
            idle, instead = "temperature", f"a {named('temperature')} above 0"
        else:
            idle = "strategy"
            beams = f" with {named('num_beams')} above 1, which draws beams" if self.strategy == "beam" else ""
            instead = f"{passed('strategy', 'sample')}{beams}"
        _refuse(
            whom == "draw" and not self.samples and not at_zero,
            f"{self._is(name)} shapes a draw, but {self._is(idle)} draws nothing",
            f"leave {named(name)} out, or choose {instead}",
        )
        _refuse(
            whom == "beams" and not self.uses_beams,
            f"{self._is(name)} concerns beams, but there are none",
            f"leave {named(name)} out, or choose {passed('strategy', 'beam')} with {named('num_beams')} above 1",
        )
        _refuse(
            whom == "end" and not self.eos,
            f"{self._is(name)} concerns the end-of-sequence token, but {named('eos_token_id')} names none",
            f"leave {named(name)} out; or in Python, if the model has such a token, name it as {named('eos_token_id')}",
        )

    def _check_required(self) -> None:
        _refuse(
            bool(self.required_sequences) and self.samples,
            f"{named('required_sequences')} are looked for by beam search, but {self._is('strategy')} draws",
            f"choose {passed('strategy', 'beam')}",
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
                        f"{named('required_sequences')} wants {named_ids(required)}, but {named(name)} forbids "
                        f"{named_ids(ids)} in it",
                        "take it out of one of the two",
                    )


class Options(TypedDict, total=False):
    """The fields of `DecodingOptions` by name, for signatures: Python has no way to take them from the class."""

    max_new_tokens: int
    strategy: Literal["sample", "greedy", "beam"]
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_new_tokens: int
    force_eos: bool
    exponential_decay_length_penalty: tuple[int, float] | None
    suppress_tokens: Sequence[int]
    begin_suppress_tokens: Sequence[int]
    banned_sequences: Sequence[Sequence[int]]
    sequence_bias: Mapping[tuple[int, ...], float]
    required_sequences: Sequence[Sequence[int]]
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    num_return_sequences: int
    eos_token_id: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    seed: int | Sequence[int] | None
    batch_size: int | None
    use_cache: bool
    on_overflow: Literal["error", "stop", "crop"]


@cache
def _concerns() -> dict[str, Concerns]:
    """The fields that do not concern every strategy."""
    found = ((name, remark) for name, hint in hints(DecodingOptions).items() for remark in get_args(hint)[1:])
    return {name: remark for name, remark in found if isinstance(remark, Concerns)}


def contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether `part` occurs in `ids`, without a gap."""
    return any(list(ids[at : at + len(part)]) == list(part) for at in range(len(ids) - len(part) + 1))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """None, one value or several, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str | bytes) or not isinstance(value, Sequence) else tuple(value)
