"""Reading and changing what a model computes, from outside: `with trace(...)`, `with edit(...)`.

The points are those of `taps`. Both contexts put ordinary hooks on the model's modules and replace the attention core
of its layers; when they end, all of this is removed. The model's code knows nothing of it. At every point the value
goes through the open edits first, in the order in which they were opened, then the open traces record it, and then the
model goes on with it: a trace shows what the model used, whichever of the two contexts is the inner one.

    trace            records points while the model runs
    plan             how many bytes that takes, before anything runs (`recording`)
    edit             changes points while the model runs, by what `ablate`, `patch` and `knockout` make (`edits`)

Positions are absolute, also with a KV-cache: a pass that begins at position p replaces what was recorded from p on,
and an edit changes its positions in the pass that computes them. All rows of a batch must begin a pass at the same
position, and no row may join or leave between passes. Modules that are called by hand, outside a pass, are neither
recorded nor changed.

A `with` block belongs to the thread that opened it. Passes of other threads go on meanwhile, neither recorded nor
changed, and each thread may have `with` blocks of its own on the same model.
"""

import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

import minigpt.analysis.taps as taps
from minigpt.analysis.edits import Edit, Editing
from minigpt.analysis.positions import At
from minigpt.analysis.recording import Trace
from minigpt.dropout import drop
from minigpt.errors import InputError
from minigpt.fields import checked
from minigpt.kv_cache import Device
from minigpt.model import GPT, AttentionCore, CausalSelfAttention, attention_scores, explicit_attention
from minigpt.parameters import check_not_packed, in_words, original

_open = in_words("an edit or a trace is open on the model")


@checked
@contextmanager
def trace(
    model: nn.Module,
    points: str | Sequence[str] = "*",
    *,
    device: Device | None = None,
    dtype: torch.dtype | None = None,
    positions: At = None,
    grad: bool = False,
) -> Iterator[Trace]:
    """Record what a model computes inside the `with`, whoever calls it: `model(idx)`, `model.trunk`, `generate`.

    Several passes with a cache make one recording; passes of other threads are not recorded; see the top of this file.
    What the model computes does not change.

    Args:
        model: a GPT, or what `torch.compile` made of one: inside the `with`, that computes as its original does.
        points: names or globs, as `taps.resolve` takes them.
        device: where to keep what is recorded; by default on its own device.
        dtype: of what is kept; by default its own.
        positions: which token positions to keep; in scores and patterns, these are the queries.
        grad: whether to keep the tensors of the pass themselves, for `torch.autograd.grad`, instead of copies.

    Raises:
        PointError: if there is no such point.
        InputError: if the model is none of ours, or an option cannot be used; during a pass, if the rows of a batch
            stand at different positions, or torch compiles the pass.
    """
    gpt = _original(model)
    if gpt.training:
        warnings.warn("the model is in training mode: dropout is traced too", stacklevel=3)
    recording = Trace(gpt, points, device, dtype, positions, grad)
    with _listening(gpt, recording):
        yield recording


@checked
@contextmanager
def edit(model: nn.Module, *edits: Edit) -> Iterator[None]:
    """Change what a model computes inside the `with`, whoever calls it: `model(idx)`, `model.trunk`, `generate`.

    Edits of one point are done in the order given, those of an outer `with` before those of an inner one. Passes of
    other threads are not changed.

    Args:
        model: a GPT in evaluation mode, compiled or not, as for `trace`.
        *edits: what `ablate`, `patch` and `knockout` made.

    Raises:
        InputError: at once, if the model has no such point, head or position, or is in training mode; during a pass, if
            values do not fit, a query is left without a key, the rows of a batch stand at different positions, or torch
            compiles the pass; when the `with` ends, if an edit has touched nothing, or not all positions that it names.
    """
    gpt = _original(model)
    if gpt.training:
        raise InputError(
            "the model is in training mode, where dropout would blur what an edit does", "call model.eval() first"
        )
    listener = Editing(edits, gpt.config)
    with _listening(gpt, listener):
        yield
    listener.check_done()


# --- the hooks


class _Open(threading.local):
    """The traces and edits that are open on a model, and how far its pass is: each thread has its own.

    Attributes:
        edits: those of the open `with edit(...)`, the outermost first.
        traces: the open traces.
        span: the positions of the pass under way.
        running: whether a pass is under way: from wpe to the end of ln_f. Modules that are called by hand, outside it,
            are left alone.
        kept: point -> its value in this pass, where it is needed again: the two terms of each sum in `_Wiring._sums`,
            and `ln_f.out`, by which `_logits` knows what the head reads.
    """

    def __init__(self) -> None:
        self.edits: list[Editing] = []
        self.traces: list[Trace] = []
        self.span = range(0)
        self.running = False
        self.kept: dict[str, Tensor] = {}

    @property
    def listeners(self) -> list[Editing | Trace]:
        """The edits and traces that the passes of this thread go through."""
        return [*self.edits, *self.traces]


class _Wiring:
    """The hooks on one model, shared by all that listen to it: every open trace and edit.

    Attributes:
        open: the listeners of the current thread.
        num_listeners: of all threads.
    """

    def __init__(self, model: GPT) -> None:
        self.open = _Open()
        self.num_listeners = 0
        self._model = model
        self._attentions = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
        self._usual = [attention.core for attention in self._attentions]
        self._hooks = ExitStack()
        layers = range(model.config.n_layer)
        # Two kinds of sum in the model (embed + pos_embed, resid_mid + mlp.out) use their first term as it was before
        # our hook changed it. So `_sum` adds both terms once more, as the hooks have left them, and replaces the
        # model's sum.
        self._sums = {"embed": "pos_embed"} | {f"blocks.{i}.resid_mid": f"blocks.{i}.mlp.out" for i in layers}
        self._terms = {*self._sums, *self._sums.values(), "ln_f.out"}

    def connect(self) -> None:
        """Put the hooks on. Those of one module run in the order in which they are put on here."""
        model = self._model
        self._on_output(model.wte, partial(self._keep, "embed"))  # which positions these are is known only at wpe
        self._on_input(model.wpe, self._begin)
        self._on_input(model.drop, partial(self._sum, "embed"))
        for layer, block in enumerate(model.h):
            self._on_output(block, partial(self._sum, f"blocks.{layer}.resid_mid"))
        for layer, (attention, usual) in enumerate(zip(self._attentions, self._usual, strict=True)):
            attention.core = partial(self._core, f"blocks.{layer}.attn", usual)
            self._hooks.callback(setattr, attention, "core", usual)
        for name in taps.points(model.config)[1:-1]:  # all but embed and logits
            self._connect_point(name)
        self._hooks.callback(model.lm_head.register_forward_hook(self._logits).remove)

    def disconnect(self) -> None:
        """Remove what `connect` has put on."""
        self._hooks.close()

    def _connect_point(self, name: str) -> None:
        module = self._model.get_submodule(taps.module_path(name))
        match taps.tap(name).where:
            case "output":
                self._on_output(module, partial(self._tap, name))
            case "input":
                self._on_input(module, partial(self._tap, name))
            case "heads":
                self._on_input(module, partial(self._tap_heads, name))
            case "scale":
                self._on_input(module, partial(self._tap_scale, name, cast(nn.LayerNorm, module).eps))
            case "argument" | "inside" | "product":
                pass  # `_core` taps the first two; the last is worked out when it is read

    def _on_input(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        @_open
        def changed(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (change(args[0]), *args[1:]) if self.open.listeners else args

        hook = module.register_forward_pre_hook(changed)
        self._hooks.callback(hook.remove)

    def _on_output(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        @_open
        def changed(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return change(output) if self.open.listeners else None

        hook = module.register_forward_hook(changed)
        self._hooks.callback(hook.remove)

    def _begin(self, positions: Tensor) -> Tensor:
        """A pass begins, at the embedding of its positions, which are (T,) if all rows have the same."""
        if torch.compiler.is_compiling():  # for the first time in this process: see `_eager`
            raise InputError(
                "torch.compile would compile the model with a look inside, and lose most of that",
                "call torch.compile before the `with`, or call the original there",
            )
        if "embed" not in self.open.kept:
            return positions
        if positions.dim() == 2:
            raise InputError(
                "the rows of the batch stand at different positions, and cannot be traced or edited together",
                "give prompts of one length, or one prompt at a time",
            )
        first = int(positions[0])
        self.open.span = range(first, first + len(positions))
        self.open.running = True
        for one in self.open.traces:
            one.begin(first, "explicit" if self._any_explicit() else "fused")
        self._keep("embed", self._tap("embed", self.open.kept["embed"]))
        return positions

    def _any_explicit(self) -> bool:
        """Whether some layer computes attention with the explicit core, for us or because the model does so anyway."""
        inside = any(taps.tap(name).where == "inside" for name in self._points())
        return inside or explicit_attention in self._usual

    def _points(self) -> frozenset[str]:
        return frozenset().union(*(one.points for one in self.open.listeners))

    def _keep(self, name: str, x: Tensor) -> Tensor:
        self.open.kept[name] = x
        return x

    def _sum(self, first: str, usual: Tensor) -> Tensor:
        """The sum of two points as the hooks have left them; it replaces the model's."""
        return self.open.kept.pop(first) + self.open.kept.pop(self._sums[first]) if self.open.running else usual

    def _tap(self, name: str, x: Tensor) -> Tensor:
        """Change the value of a point by the open edits, record it, and give it back to the model."""
        if not self.open.running:
            return x
        x = self._record(name, self._change(name, x))
        if name in self._terms:
            self._keep(name, x)
        if name == "ln_f.out":
            self.open.running = False
        return x

    def _change(self, name: str, x: Tensor) -> Tensor:
        for edits in self.open.edits:
            x = edits.change(name, x, self._positions(x), self.open.span.start > 0)
        return x

    def _record(self, name: str, x: Tensor) -> Tensor:
        for one in self.open.traces:
            one.keep(name, x, self._positions(x), self.open.span.start > 0)
        return x

    def _positions(self, x: Tensor) -> range:
        """The positions of a point's tensor: the last ones. Keys and values have all so far, logits often only one."""
        return range(self.open.span.stop - x.size(-2), self.open.span.stop)

    def _tap_heads(self, name: str, x: Tensor) -> Tensor:
        B, T, C = x.shape
        z = x.view(B, T, self._model.config.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        return self._tap(name, z).transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, C)

    def _tap_scale(self, name: str, eps: float, x: Tensor) -> Tensor:
        if self.open.running and name in self._points():
            self._record(name, (x.var(-1, correction=0, keepdim=True) + eps).sqrt())  # (B, T, C) -> (B, T, 1)
        return x

    def _logits(self, _module: nn.Module, args: tuple[Tensor], logits: Tensor) -> Tensor | None:
        """Tap the output head's result, if it has read the final hidden states of the pass, or the last of them."""
        (read,), hidden = args, self.open.kept.get("ln_f.out")
        if hidden is None or not self.open.listeners:
            return None
        B, _, C = hidden.shape
        n = read.numel() // (B * C)
        if read is not hidden and (read.numel() != B * n * C or not torch.equal(read.reshape(B, n, C), hidden[:, -n:])):
            return None
        rows = logits.view(B, n, -1)  # already (B, n, V), unless the head was given single positions without axis n
        return self._record("logits", self._change("logits", rows)).view(logits.shape)

    def _core(
        self, name: str, usual: AttentionCore, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float
    ) -> Tensor:
        """The attention core of a layer: the usual one, or the explicit one if somebody wants to see inside."""
        if not self.open.listeners:
            return usual(q, k, v, mask, dropout)
        q, k, v = (self._tap(f"{name}.{letter}", x) for letter, x in zip("qkv", (q, k, v), strict=True))
        if not {f"{name}.scores", f"{name}.pattern"} & self._points():
            return usual(q, k, v, mask, dropout)
        # `explicit_attention` with two taps in it.
        scores = self._change(f"{name}.scores", attention_scores(q, k, mask))  # (B, H, T, S)
        scores = self._record(f"{name}.scores", scores.masked_fill(~mask, -math.inf))  # no edit uncovers the future
        if self.open.edits:
            _check_keys(name, scores)
        pattern = self._tap(f"{name}.pattern", F.softmax(scores, dim=-1))
        return drop(pattern, dropout) @ v  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)


def _check_keys(name: str, scores: Tensor) -> None:
    """Raise if a query has no key left: its softmax would be 0 / 0."""
    blind = (scores == -math.inf).all(-1).nonzero()  # (B, H, T, S) -> (number, 3)
    if len(blind):
        _, head, row = blind[0].tolist()
        query = row + scores.size(-1) - scores.size(-2)
        raise InputError(
            f"an edit of {name}.scores leaves query {query} of head {head} without any key",
            "leave it at least one, or ablate the whole head",
        )


_wirings: dict[GPT, _Wiring] = {}  # of the models with a listener
_lock = threading.RLock()  # held while hooks are put on and removed
# While there is a listener, nothing runs compiled, in any thread: what torch.compile made knows no hooks put on after
# it. Only torch's compiler itself, whose import takes seconds, knows how to be told so: where it was not imported,
# nothing has been compiled yet.
_eager = ExitStack()


@contextmanager
def _listening(model: GPT, listener: Trace | Editing) -> Iterator[None]:
    """Inside the `with`, the hooks are on the model and serve this listener too."""
    with _lock:
        if model not in _wirings:
            _wirings[model] = _Wiring(model)
            _wirings[model].connect()
        wiring = _wirings[model]
        wiring.num_listeners += 1
        if "torch._dynamo" in sys.modules:
            _eager.enter_context(torch.compiler.set_stance("force_eager"))
        if not wiring.open.listeners:  # an error may have ended this thread's last pass half-way
            wiring.open.running = False
            wiring.open.kept.clear()
    own: list[Any] = wiring.open.traces if isinstance(listener, Trace) else wiring.open.edits
    own.append(listener)
    try:
        yield
    finally:
        own[:] = [other for other in own if other is not listener]
        with _lock:
            wiring.num_listeners -= 1
            if not wiring.num_listeners:
                _wirings.pop(model).disconnect()
            if not _wirings:
                _eager.close()


def _original(model: nn.Module) -> GPT:
    """The model itself; for a compiled one, its original, whose modules take the hooks."""
    gpt = original(model)
    if not isinstance(gpt, GPT):
        raise InputError(f"a {type(model).__name__} has none of the points", "give a minigpt.GPT")
    check_not_packed(gpt, "a look inside")
    return gpt
