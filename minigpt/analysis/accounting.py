"""What a model costs, worked out from its configuration: parameters, floating-point operations, memory, by module.

No model is built and torch is not imported, so any shape can be tried at once. The conventions:

FLOPs        matrix products only, 2 for each multiply-add. Attention counts with the whole (T, S) square, as
             `explicit_attention` computes it, though the causal mask drops half of it. The backward pass costs
             twice the forward one, because each product has two factors, and the gradient of each is one more product.
kept         bytes that autograd keeps from the forward pass for the backward pass, on a CPU. A tensor that several
             modules keep is counted once, at the first of them; parameters and the mask buffer are not counted.
number size  `bytes_per_value` is that of the matrix products: 4 in float32, 2 under bfloat16 autocast. Weights, sums,
             norms, gradients and the optimizer's state are float32 either way.

The bytes kept are those of torch 2.13 on a CPU, where the tests measure them. On a GPU they are an upper bound: the
fused kernel there works in bfloat16, and draws its dropout again instead of keeping it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from minigpt.analysis.checks import Check, measured
from minigpt.config import GPTConfig, Size
from minigpt.errors import InputError, counted
from minigpt.fields import checked
from minigpt.system import notebook

FLOAT = 4  # bytes of a float32
INT = 8  # bytes of an int64


@dataclass(frozen=True)
class Row:
    """What one module of the model costs.

    Attributes:
        name: its path in the model; attention's core has two rows, one a matrix product, and the loss has one.
        parameters: numbers that are trained.
        forward_flops: of one forward pass over the batch.
        activation_bytes: kept for the backward pass.
        optimizer_bytes: state of the optimizer.
        kv_cache_bytes: keys and values of the batch.
        note: why a number differs from what one would expect, or "".
    """

    name: str
    parameters: int = 0
    forward_flops: int = 0
    activation_bytes: int = 0
    optimizer_bytes: int = 0
    kv_cache_bytes: int = 0
    note: str = ""

    @property
    def backward_flops(self) -> int:
        """Of one backward pass."""
        return 2 * self.forward_flops

    @property
    def gradient_bytes(self) -> int:
        """Of the parameters' gradients."""
        return FLOAT * self.parameters


@dataclass(frozen=True)
class ModelSize:
    """The rows of a model and their sums.

    Attributes:
        config: the model's shape.
        batch_size: rows of the batch, B.
        tokens: tokens a row, T.
        bytes_per_value: of the matrix products and the cache.
        optimizer: "adamw" or "muon".
        attention: "fused" or "explicit".
        rows: in the order of the forward pass.
        parameters: of the whole model, a tied head counted once.
        forward_flops: of one forward pass over the batch.
        activation_bytes: kept for the backward pass of the batch.
        gradient_bytes: of the gradients.
        optimizer_bytes: of the optimizer's state; its step counters, 4 bytes a tensor, are left out.
        kv_cache_bytes: of the keys and values of the batch; the counter of lengths, 8 bytes a row, is left out.
    """

    config: GPTConfig
    batch_size: int
    tokens: int
    bytes_per_value: int
    optimizer: str
    attention: str
    rows: tuple[Row, ...]
    parameters: int = field(init=False)
    forward_flops: int = field(init=False)
    activation_bytes: int = field(init=False)
    gradient_bytes: int = field(init=False)
    optimizer_bytes: int = field(init=False)
    kv_cache_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        for one in fields(self):
            if not one.init:
                object.__setattr__(self, one.name, sum(getattr(row, one.name) for row in self.rows))

    @property
    def parameter_bytes(self) -> int:
        """Of the weights."""
        return FLOAT * self.parameters

    @property
    def training_flops(self) -> int:
        """Of one forward and one backward pass over the batch."""
        return sum(row.forward_flops + row.backward_flops for row in self.rows)

    @property
    def checks(self) -> list[Check]:
        """The sums equal the closed formulae of books and papers; errors are relative."""
        c, B, T = self.config, self.batch_size, self.tokens
        L, C, V = c.n_layer, c.n_embd, c.vocab_size
        heads = 1 if c.tie_weights else 2
        matrices = 12 * L * C * C + (heads * V + c.block_size) * C
        vectors = (13 * L + 2) * C if c.bias else (2 * L + 1) * C
        states = 2 * (matrices + vectors) - (12 * L * C * C if self.optimizer == "muon" else 0)
        forward = 2 * B * T * (12 * L * C * C + V * C) + 4 * L * B * T * T * C
        identities = {
            "parameters = 12 L C^2 + (V + block_size) C + vectors": (self.parameters, matrices + vectors),
            "forward FLOPs = 2 B T (12 L C^2 + V C) + 4 L B T^2 C": (self.forward_flops, forward),
            "training FLOPs = 3 x forward": (self.training_flops, 3 * forward),
            "gradients = 4 bytes a parameter": (self.gradient_bytes, 4 * (matrices + vectors)),
            "optimizer = 4 bytes a state": (self.optimizer_bytes, 4 * states),
            "KV-cache = 2 L B T C numbers": (self.kv_cache_bytes, 2 * L * B * T * C * self.bytes_per_value),
        }
        return [measured(name, abs(found - right) / right, 0.0) for name, (found, right) in identities.items()]

    def _repr_html_(self) -> str:
        return notebook.shown(f"{self.parameters:,} parameters", notebook.text_block(self.table()))

    def table(self) -> str:
        """The rows as text, 80 columns wide; all blocks are alike, so only the first one's parts are listed."""
        headings = ("numbers", "FLOPs", "kept", "gradient", "optimizer", "KV-cache")
        blocks = [row for row in self.rows if row.name.startswith("h.")]
        first, count = self.rows.index(blocks[0]), self.config.n_layer
        lines = [
            " " * _NAME_WIDTH + "".join(f"{heading:>{_WIDTH}}" for heading in headings),
            *(_line(row.name, [row]) for row in self.rows[:first]),
            _line("h.0" if count == 1 else f"h.0 ... h.{count - 1}  x {count}", blocks),
            *(_line("  " + row.name.removeprefix("h.0."), [row]) for row in blocks[: len(blocks) // count]),
            *(_line(row.name, [row]) for row in self.rows[first + len(blocks) :]),
            _line("together", self.rows),
            "",
            "the indented lines are one block; the line above them is the sum of all blocks",
        ]
        return "\n".join(lines + [f"{row.name}: {row.note}" for row in self.rows if row.note])


BYTES = ("parameter", "activation", "gradient", "optimizer", "kv_cache")
_NAME_WIDTH, _WIDTH = 20, 10  # of the columns of the table


@checked
def model_size(
    config: GPTConfig,
    batch_size: Size = 1,
    tokens: Size | None = None,
    bytes_per_value: Literal[2, 4] = 4,
    optimizer: Literal["adamw", "muon"] = "adamw",
    attention: Literal["fused", "explicit"] = "fused",
) -> ModelSize:
    """Count what a model of this shape costs.

    Args:
        config: the shape.
        batch_size: rows of a batch, B.
        tokens: tokens a row, T; block_size by default. The cache is counted with all of them in it.
        bytes_per_value: of the matrix products and the cache: 4 for float32, 2 for bfloat16.
        optimizer: whose state is counted: for AdamW two float32 a parameter; for Muon one a parameter of the blocks'
            matrices, and AdamW's two for all other parameters.
        attention: which core keeps activations: the fused one, or the explicit one with its (T, T) patterns.

    Raises:
        InputError: if the batch is empty, or its rows are longer than the context.
    """
    tokens = config.block_size if tokens is None else tokens
    check_pass(config, batch_size, tokens)
    counter = _Counter(config, batch_size, tokens, bytes_per_value, optimizer == "muon", attention == "explicit")
    return ModelSize(config, batch_size, tokens, bytes_per_value, optimizer, attention, tuple(counter.rows()))


def check_pass(config: GPTConfig, batch_size: int, tokens: int) -> None:
    """Raise InputError if a model cannot read rows of so many tokens."""
    if tokens > config.block_size:
        raise InputError(
            f"a batch of {counted(batch_size, 'row')} of {counted(tokens, 'token')} cannot go through this model",
            f"choose tokens up to block_size = {config.block_size}",
        )


@dataclass(frozen=True)
class _Counter:
    """The sizes of one training step, from which the row of each module is worked out."""

    config: GPTConfig
    B: int
    T: int
    value: int  # bytes of a number that a matrix product takes
    muon: bool
    explicit: bool

    def rows(self) -> Iterator[Row]:
        """All rows, in the order of the forward pass."""
        c, N = self.config, self.B * self.T
        yield self._embedding("wte", c.vocab_size, INT * N)
        yield self._embedding("wpe", c.block_size, INT * self.T)
        yield from self._dropout("drop")
        for layer in range(c.n_layer):
            yield from self._block(f"h.{layer}")
        yield self._norm("ln_f")
        yield self._head()
        # The log-softmax, the targets, and two scalars: the sum of the weights and the number of targets.
        yield Row("loss", activation_bytes=FLOAT * N * c.vocab_size + INT * N + FLOAT + INT)

    def _block(self, name: str) -> Iterator[Row]:
        C = self.config.n_embd
        yield self._norm(f"{name}.ln_1")
        yield self._linear(f"{name}.attn.c_attn", C, 3 * C)
        yield from self._core(f"{name}.attn")
        yield self._linear(f"{name}.attn.c_proj", C, C, shares_input=self._fused_kernel and self.value == FLOAT)
        yield from self._dropout(f"{name}.attn.resid_dropout")
        yield self._norm(f"{name}.ln_2")
        yield self._linear(f"{name}.mlp.c_fc", C, 4 * C)
        yield Row(f"{name}.mlp.gelu", activation_bytes=self.value * self.B * self.T * 4 * C)
        yield self._linear(f"{name}.mlp.c_proj", 4 * C, C)
        yield from self._dropout(f"{name}.mlp.dropout")

    @property
    def _fused_kernel(self) -> bool:
        """Whether attention runs in the kernel without patterns: on a CPU, dropout needs them, tile by tile."""
        return not self.explicit and self.config.dropout == 0

    def _core(self, name: str) -> Iterator[Row]:
        """Attention's two products: of q, k, v (B, H, T, D) and, except in the fused kernel, patterns (B, H, T, T)."""
        B, T, C, H = self.B, self.T, self.config.n_embd, self.config.n_head
        value = self.value if self.explicit else FLOAT  # the fused core takes float32 on a CPU
        width, pattern = value * B * T * C, value * B * H * T * T
        flops = 2 * B * T * T * C
        if self._fused_kernel:
            of_scores, of_values = FLOAT * B * H * T, width  # each query's logsumexp; the mixed values
        else:
            of_scores = pattern + (T * T if self.explicit else 0)  # the explicit core keeps its mask, inverted
            of_values = _mask_bytes(B * H * T * T) if self.config.dropout else 0
            if self.explicit and self.config.dropout:
                of_values += pattern  # what dropout leaves of the pattern
        yield Row(f"{name} scores", 0, flops, 2 * width + of_scores, kv_cache_bytes=self.value * B * T * C)
        yield Row(f"{name} values", 0, flops, width + of_values, kv_cache_bytes=self.value * B * T * C)

    def _linear(self, name: str, inputs: int, outputs: int, shares_input: bool = False) -> Row:
        """A linear layer of a block. It keeps its input, and the copy of its weight that autocast made."""
        N, weights, bias = self.B * self.T, inputs * outputs, outputs if self.config.bias else 0
        kept = (0 if shares_input else self.value * N * inputs) + self._cast(weights)
        states = (weights if self.muon else 2 * weights) + 2 * bias
        return Row(name, weights + bias, 2 * N * weights, kept, FLOAT * states)

    def _head(self) -> Row:
        N, weights, tied = self.B * self.T, self.config.n_embd * self.config.vocab_size, self.config.tie_weights
        kept = self.value * N * self.config.n_embd + self._cast(weights)
        parameters, note = (0, "its weight is wte's, counted there") if tied else (weights, "")
        return Row("lm_head", parameters, 2 * N * weights, kept, 2 * FLOAT * parameters, note=note)

    def _cast(self, weights: int) -> int:
        return 0 if self.value == FLOAT else self.value * weights

    def _embedding(self, name: str, size: int, kept: int) -> Row:
        """An embedding keeps the ids that it looked up."""
        weights = size * self.config.n_embd
        return Row(name, weights, 0, kept, 2 * FLOAT * weights)

    def _norm(self, name: str) -> Row:
        """A layer norm keeps its input, and the mean and inverse deviation of each position."""
        N, C = self.B * self.T, self.config.n_embd
        parameters = 2 * C if self.config.bias else C
        return Row(name, parameters, 0, FLOAT * N * (C + 2), 2 * FLOAT * parameters)

    def _dropout(self, name: str) -> Iterator[Row]:
        """A dropout keeps its mask."""
        if self.config.dropout:
            yield Row(name, activation_bytes=_mask_bytes(self.B * self.T * self.config.n_embd))


def _mask_bytes(values: int) -> int:
    """Of a mask of dropout: a byte a value, in whole random words."""
    return -(-values // INT) * INT


_PREFIXES = "kMGTPEZYRQ"  # all that there are


def human(number: float, unit: str = "") -> str:
    """A number with three digits and a decimal prefix: 124439808 -> "124 M"."""
    power = 0
    while number >= 999.5 and power < len(_PREFIXES):
        number, power = number / 1000, power + 1
    return f"{number:.3g} {_PREFIXES[power - 1] if power else ''}{unit}".rstrip()


def _line(name: str, rows: Sequence[Row]) -> str:
    counts = [sum(row.parameters for row in rows), sum(row.forward_flops for row in rows)]
    sizes = [sum(getattr(row, f"{kind}_bytes") for row in rows) for kind in BYTES[1:]]
    cells = [human(count) for count in counts] + [human(size, "B") for size in sizes]
    line = f"{name:<{_NAME_WIDTH}}" + "".join(f"{'' if cell.split()[0] == '0' else cell:>{_WIDTH}}" for cell in cells)
    return line.rstrip()
