"""Changes of what a model computes: described here, carried out by `tracing.edit`.

    ablate           replace a component's values by zeros, by a mean, or by those of other rows
    patch            replace a point's values by those of another pass, or by any others
    knockout         hide one key from one query of one head

Letters as in `model.py`, P for the positions that a value has, R for the rows of a reference.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from torch import Tensor

import minigpt.analysis.taps as taps
from minigpt.analysis.positions import At, Places, check_fixed, check_in_context, chosen, counts_from_end, normal
from minigpt.analysis.recording import Trace
from minigpt.config import GPTConfig, Seed
from minigpt.errors import InputError, brief, near
from minigpt.fields import Form, checked
from minigpt.system.terminal import Brief

Mode = Literal["zero", "mean", "resample"]  # what takes the place of what is ablated


class Edit(Brief, kw_only=True):
    """A change of one point. Made by `ablate`, `patch` and `knockout`.

    Attributes:
        point: its name.
        at: the positions that are changed, all by default. In scores and patterns, these are the queries.
        head: which head is changed, all by default.
    """

    point: str
    at: At = None
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", normal(self.at))

    @property
    def places(self) -> Places:
        """`at`, as `normal` has made it."""
        return cast(Places, self.at)

    @property
    def from_end(self) -> bool:
        """Whether `at` counts positions from the end of a pass."""
        return counts_from_end(self.places)

    @property
    def needed(self) -> Sequence[int]:
        """The positions that `at` names one by one: each of them must be reached by some pass."""
        return self.places if isinstance(self.places, tuple) else ()

    def check(self, config: GPTConfig) -> None:
        """Check that a model of this shape has the point, the head and the positions.

        Raises:
            InputError: if it lacks one of them, or the point cannot be edited.
        """
        tap = taps.tap(taps.find(self.point, config))
        if not tap.editable:
            instead = "attn.z" if tap.where == "product" else "the norm's .out"
            raise InputError(f"{self.point} is worked out from other points and cannot be edited", f"edit {instead}")
        if self.head is not None and "H" not in tap.shape:
            raise InputError(f"{self.point} is not split into heads", "leave head out, or edit attn.z")
        if self.head is not None and not 0 <= self.head < config.n_head:
            raise InputError(
                f"there is no head {self.head}: the model has {config.n_head} a layer",
                taps.what_there_is(config),
            )
        check_in_context(self.places, config)

    def new_values(self, old: Tensor, places: Sequence[int]) -> Tensor:
        """The values that replace `old` (B, [H,] len(places), ...), of its shape or one that broadcasts to it."""
        raise NotImplementedError

    def apply(self, x: Tensor, positions: range, places: Sequence[int]) -> Tensor:
        """A copy of the point's tensor `x`, which holds `positions`, changed at `places`."""
        rows = [place - positions.start for place in places]
        values = self.new_values(x[..., rows, :], places).to(x)
        # With the strides of x, so that the next operation runs the same kernel as without the edit. `clone` would not
        # keep the strides of q, k and v, which are views of one product.
        changed = x.new_empty_strided(x.size(), x.stride()).copy_(x)
        if self.head is None:
            changed[..., rows, :] = values
        else:
            changed[:, self.head, rows] = values[:, self.head]
        return changed


class Ablation(Edit, kw_only=True):
    """See `ablate`.

    Attributes:
        mode: what replaces the component: "zero", "mean" or "resample".
        reference: "mean": the mean (1, ..., P, ...); "resample": the rows to draw from (R, ..., P, ...); "zero": None.
        seed: of the drawing of rows.
    """

    mode: Mode
    reference: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.reference is None) != (self.mode == "zero"):
            raise InputError(
                f"mode = {self.mode!r} and reference = {'None' if self.reference is None else 'a tensor'} do not match",
                "mean and resample need a reference, a trace or a tensor; zero needs none",
            )
        if self.mode == "resample" and self.reference is not None and len(self.reference) < 2:
            raise InputError(
                "the reference has 1 row, but resample gives row i any row except row i",
                "give a reference of at least 2 rows, or use patch with this one",
            )

    def check(self, config: GPTConfig) -> None:
        """As for every edit. Also refuse a mean or resampling of the positions' embeddings, which have no rows."""
        super().check(config)
        if self.mode != "zero" and "B" not in taps.tap(taps.find(self.point, config)).shape:
            raise InputError(f"{self.point} is the same for every row", 'ablate it with mode="zero", or patch it')

    def new_values(self, old: Tensor, places: Sequence[int]) -> Tensor:
        """Zeros, or the reference's values at these positions."""
        if self.reference is None:
            return torch.zeros_like(old)
        reference = self.reference
        if self.mode == "resample":
            R, B = len(reference), len(old)
            generator = torch.Generator().manual_seed(self.seed)  # new, so that every pass and point draws the same
            steps = torch.randint(1, R, (B,), generator=generator)
            reference = reference[(torch.arange(B) + steps).to(reference.device) % R]  # (R, ...) -> (B, ...)
        return _at_places(self.point, reference, old, places)


class Patch(Edit, kw_only=True):
    """See `patch`.

    Attributes:
        value: the point's whole tensor (B or 1, ..., P, ...), of the positions from 0 on.
    """

    value: Tensor

    @property
    def needed(self) -> Sequence[int]:
        """The positions that `at` names one by one; if it is None, all that the value has."""
        return range(self.value.size(-2)) if self.places is None else super().needed

    def new_values(self, old: Tensor, places: Sequence[int]) -> Tensor:
        """The value at these positions."""
        return _at_places(self.point, self.value, old, places)


class Knockout(Edit, kw_only=True):
    """See `knockout`.

    Attributes:
        key: the position that the query no longer sees.
    """

    key: int

    def __post_init__(self) -> None:
        super().__post_init__()
        normal(self.key)

    @property
    def from_end(self) -> bool:
        """Whether the query or the key counts from the end of a pass."""
        return super().from_end or self.key < 0

    def check(self, config: GPTConfig) -> None:
        """As for every edit; the key must lie within block_size too."""
        super().check(config)
        check_in_context((self.key,), config)

    def new_values(self, old: Tensor, places: Sequence[int]) -> Tensor:
        """The scores (B, H, 1, S), with -inf for the key."""
        (query,) = places
        key = self.key if self.key >= 0 else self.key + old.size(-1)
        if not 0 <= key <= query:
            raise InputError(
                f"query {query} does not see key {key} in any case: the mask hides what comes after it",
                f"choose a key from 0 to {query}",
            )
        scores = old.clone()
        scores[..., key] = -math.inf
        return scores


_PART = 'head 1 of layer 0 is "0.1", its attention "0.attn", its MLP "0.mlp"'


@checked
def ablate(
    what: Annotated[str, Form(f"a part: {_PART}", wrong="names no part")],
    mode: Mode = "zero",
    reference: Trace | Tensor | None = None,
    at: At = None,
    seed: Seed = 0,
) -> Ablation:
    """Remove a component's contribution.

    Args:
        what: "9.6": head 6 of layer 9, whose z is changed; "9.attn" or "9.mlp": the part, whose out is changed; or the
            name of any point.
        mode: what replaces it. "zero": zeros; for scores, this gives every visible key the same weight. "mean": the
            mean over the reference's rows, position by position. "resample": for each row of the batch, the values of
            a random row of the reference that has another number than this row.
        reference: a trace that has recorded the point from position 0 on, or such a tensor.
        at: the positions that are changed, all by default.
        seed: of the rows that "resample" draws.

    Raises:
        PointError: if no model has such a part.
        InputError: if mode and reference do not belong together, or the reference lacks the point.
    """
    head = None
    if found := re.fullmatch(r"(\d+)\.(\d+|attn|mlp)", what):
        layer, part = found.groups()
        head = int(part) if part.isdecimal() else None
        what = f"blocks.{layer}." + (f"{part}.out" if head is None else "attn.z")
    elif not taps.exists(what):
        layer, *_ = *re.findall(r"\d+", what), "0"
        known = [f"{layer}.attn", f"{layer}.mlp", *(tap.name.replace("{l}", layer) for tap in taps.TAPS)]
        raise taps.PointError(
            f"there is no point {what!r}",
            f"{near(what, known)}{_PART}; minigpt.analysis.points(model.config) lists the points",
        )
    values = None if reference is None else _values(reference, what)
    if mode == "mean" and values is not None:
        # The mean of copies must be the copy itself, to the bit: in float64, 3 x and its third are exact.
        values = values.double().mean(0, keepdim=True).to(values.dtype)  # (R, ..., P, ...) -> (1, ..., P, ...)
    return Ablation(point=what, mode=mode, reference=values, at=at, head=head, seed=seed)


@checked
def patch(point: str, source: Trace | Tensor, at: At = None, head: int | None = None) -> Patch:
    """Replace a point's values by those of another pass, or by any others.

    Args:
        point: its name.
        source: a trace that has recorded the point from position 0 on, or a tensor of the point's shape with all its
            positions. A single row is used for every row of the batch.
        at: which positions are replaced, each by the same position of the source; by default all that the source has,
            and then the pass must have all of these.
        head: which head of q, k, v, scores, pattern or z; all by default.

    Raises:
        InputError: if the source lacks the point.
    """
    return Patch(point=point, value=_values(source, point), at=at, head=head)


@checked
def knockout(layer: int, head: int, query: int, key: int) -> Knockout:
    """Hide one key from one query of one head; the weight that the key had goes to the query's other keys.

    The score becomes -inf before the softmax. The query must keep at least one key.
    """
    if query == 0:
        raise InputError("query 0 sees nothing but key 0 and must keep one key", "choose a query from 1 on")
    return Knockout(point=f"blocks.{layer}.attn.scores", at=query, head=head, key=key)


class Editing:
    """The edits of one `with`, and the positions that they have changed.

    Attributes:
        points: the names of the points that they change.
    """

    def __init__(self, edits: Sequence[Edit], config: GPTConfig) -> None:
        for one in edits:
            if not isinstance(one, Edit):
                raise InputError(
                    f"{brief(one)} is no edit", "make one of it: edit(model, ablate(...)), or by patch or by knockout"
                )
            one.check(config)
        self._edits = [dataclasses.replace(one, point=taps.find(one.point, config)) for one in edits]
        self._touched: list[set[int]] = [set() for _ in edits]  # positions, counted from both ends
        self._longest = 0
        self._num_rows = 0  # of the batch, in the pass that began the cache which later passes continue
        self.points = frozenset(one.point for one in self._edits)

    def change(self, name: str, x: Tensor, positions: range, continued: bool) -> Tensor:
        """A point's tensor, which holds `positions`, after the edits of that point."""
        self._longest = max(self._longest, positions.stop)
        for one, touched in zip(self._edits, self._touched, strict=True):
            if one.point != name:
                continue
            check_fixed(one.from_end, continued, f"the edit of {name}")
            if isinstance(one, Ablation) and one.mode == "resample":
                self._check_rows(name, len(x), continued)
            if places := chosen(one.places, positions):
                x = one.apply(x, positions, places)
                touched.update(places, [place - positions.stop for place in places])
        return x

    def _check_rows(self, name: str, num_rows: int, continued: bool) -> None:
        if not continued or not self._num_rows:
            self._num_rows = num_rows
        if num_rows != self._num_rows:
            raise InputError(
                f"the edit of {name} draws for each row, but their number changed from {self._num_rows} to {num_rows}",
                "resample in one prompt at a time, without beams and without further sequences",
            )

    def check_done(self) -> None:
        """Check that every edit has changed something, and all positions that it names.

        Raises:
            InputError: if not; it names the first edit that has not.
        """
        for one, touched in zip(self._edits, self._touched, strict=True):
            missing = [place for place in one.needed if place not in touched]
            if touched and not missing:
                continue
            if not self._longest:
                raise InputError(
                    f"the edit of {one.point} touched nothing: no pass of the model was run inside the `with`",
                    "call the model inside it, in the same thread",
                )
            raise InputError(
                f"the edit of {one.point} did not touch {f'position {missing[0]}' if missing else 'anything'}:"
                f" the passes inside the `with` reached positions 0 to {self._longest - 1}",
                "choose positions that are computed there, with `at`",
            )


def _values(source: Trace | Tensor, point: str) -> Tensor:
    """A point's values from position 0 on."""
    if isinstance(source, Tensor):
        return source
    values, positions = source[point], source.positions(point)
    if positions != list(range(len(positions))):
        raise InputError(
            f"the trace has {point} at {len(positions)} positions from {positions[0]} on, and not all from 0 on",
            "record it without `positions`, in one pass",
        )
    return values


def _at_places(point: str, value: Tensor, old: Tensor, places: Sequence[int]) -> Tensor:
    """What replaces `old` (B, [H,] len(places), ...): a value (B or 1, [H,] P, ...), cut to these positions."""
    lead, width = tuple(old.shape[:-2]), old.size(-1)
    fits = value.dim() == old.dim() and tuple(value.shape[:-2]) in (lead, (1, *lead[1:]))
    # A pass with a cache has only the keys so far, and the value may have later ones too.
    fits = fits and (value.size(-1) == width or (value.size(-1) > width and taps.tap(point).shape.endswith("S")))
    if not fits:
        raise InputError(
            f"the value for {point} has the shape {tuple(value.shape)}",
            f"give one of {(*lead, max(places) + 1, width)}; the first size may be 1, and there may be more positions",
        )
    if max(places) >= value.size(-2):
        raise InputError(
            f"the value for {point} has {value.size(-2)} positions, and position {max(places)} is to be changed",
            f"give a value of at least {max(places) + 1} positions, or choose fewer with `at`",
        )
    return value[..., list(places), :width]
