"""Which embeddings are similar, and how the residual stream grows from them.

Letters as in `model.py`, N for the rows of a table, and P for the points of the stream: P = 1 + 2 n_layer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from minigpt.analysis.checks import Check, measured
from minigpt.analysis.lens import stream_points
from minigpt.analysis.recording import Trace, allowed
from minigpt.config import VocabSize
from minigpt.errors import InputError
from minigpt.fields import check_most, check_place, checked
from minigpt.model import GPT
from minigpt.parameters import num_with_text
from minigpt.system import notebook
from minigpt.system.terminal import Brief

# --- neighbours


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of an embedding table.

    Attributes:
        token_id: the row whose neighbours these are: a token's id, or a position.
        kind: of the similarity: "cosine" or "dot".
        ids: the nearest rows, the most similar first.
        similarities: of these rows.
        own: the row's similarity with itself: 1 for cosines, else its squared norm.
    """

    token_id: int
    kind: str
    ids: list[int]
    similarities: list[float]
    own: float

    def _repr_html_(self) -> str:
        names = [f"row {token_id}" for token_id in self.ids]
        return notebook.shown(
            f"Nearest to row {self.token_id}", notebook.bars(names, self.similarities, what=self.kind)
        )

    @property
    def checks(self) -> list[Check]:
        """Similarities never rise; cosines lie within -1 to 1, and a row's with itself is 1."""
        rises = [after - before for before, after in zip(self.similarities, self.similarities[1:], strict=False)]
        checks = [measured("similarities never rise", max([0.0, *rises]), 0.0)]
        if self.kind == "cosine":
            largest = max(map(abs, self.similarities))
            checks.append(measured("similarity with itself = 1", abs(self.own - 1), 1e-5))
            checks.append(measured("no cosine beyond 1", max(0.0, largest - 1), 1e-5))
        return checks


@checked
@torch.no_grad()
def neighbours(
    model: GPT,
    token_id: int,
    k: int = 10,
    kind: Literal["cosine", "dot"] = "cosine",
    table: Literal["wte", "wpe"] = "wte",
    vocab_size: VocabSize | None = None,
) -> Neighbours:
    """The rows of an embedding table that are most similar to a given row, without this row itself.

    Args:
        model: the model whose table is read.
        token_id: the row: a token's id; with "wpe", a position.
        k: how many; at most N - 1.
        kind: "cosine"; or "dot", which favours rows of large norm.
        table: "wte" or "wpe".
        vocab_size: the tokenizer's, so that a row of "wte" without text is nobody's neighbour; see
            `parameters.with_text`.

    Raises:
        InputError: if there is no such table, row or similarity, or k is not from 1 to N - 1.
    """
    rows: Tensor = model.get_parameter(f"{table}.weight")
    rows = rows[: num_with_text(model, vocab_size)] if table == "wte" else rows  # (N, C)
    N = len(rows)
    check_place(token_id, N, "row", f"{table} has")
    check_most(k, N - 1, f"neighbours among the {N} rows of {table}")
    if kind == "cosine":
        rows = _directions(rows)
    similarities = rows @ rows[token_id]  # (N, C) @ (C,) -> (N,)
    own = float(similarities[token_id])
    similarities[token_id] = -torch.inf
    best = similarities.topk(k)
    return Neighbours(token_id, kind, best.indices.tolist(), best.values.tolist(), own)


def _directions(rows: Tensor) -> Tensor:
    """The rows (N, C) at length 1, in float32 or better: 16 bits would make of 1 up to 1.008."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)


# --- principal components


class PCA(Brief):
    """The k directions along which the rows of a matrix differ most.

    Attributes:
        mean: of the rows, (C,).
        components: the directions, orthonormal, (k, C); in each, the entry of the largest absolute value is positive.
        explained: their shares of the variance, (k,), the largest first.
        projected: the rows' coordinates, (N, k): row = mean + projected @ components, if k is as large as possible.
    """

    mean: Tensor
    components: Tensor
    explained: Tensor
    projected: Tensor

    def _repr_html_(self) -> str:
        names = [f"component {n}" for n in range(len(self.explained))]
        title = f"Principal components of {len(self.projected):,} rows"
        return notebook.shown(title, notebook.bars(names, self.explained.tolist(), what="share of the variance"))

    @property
    def checks(self) -> list[Check]:
        """Directions are orthonormal, coordinates centred and uncorrelated; shares never rise, and sum to at most 1."""
        products = self.projected.T @ self.projected  # (k, k)
        lengths = products.diagonal().sqrt()
        identity = torch.eye(len(lengths)).to(products)
        checks = {
            "the components are orthonormal": self.components @ self.components.T - identity,
            "the coordinates are uncorrelated": (products - lengths.square().diag()) / lengths[0] ** 2,
            "the coordinates are centred": self.projected.mean(0) / lengths[0],
            "the shares never rise": self.explained.diff().clamp(min=0).sum(),
            "the shares sum to at most 1": (self.explained.sum() - 1).clamp(min=0),
        }
        return [measured(name, float(error.abs().max()), 1e-9) for name, error in checks.items()]


@checked
@torch.no_grad()
def pca(matrix: Tensor, k: int = 2) -> PCA:
    """Principal components of the rows, by a singular value decomposition of the rows minus their mean, in float64.

    Args:
        matrix: (N, C): an embedding table, or chosen rows of it.
        k: how many, at most min(N, C).

    Raises:
        InputError: if k is out of this range, all rows are the same, or a number is not finite or not real.
    """
    if matrix.layout != torch.strided or matrix.is_complex() or matrix.is_meta:
        raise InputError(
            f"a matrix of {matrix.dtype}, {matrix.layout}, on {matrix.device} is no table of real numbers",
            "give one: of a sparse matrix to_dense(), of a complex one its .real, its .imag or its .abs()",
        )
    rows = matrix.double()
    if not rows.isfinite().all():
        raise InputError("the matrix holds infinite numbers or NaN", "leave out the rows that have them")
    if matrix.dim() != 2 or not 1 <= k <= min(matrix.shape):
        raise InputError(
            f"a tensor of the shape {tuple(matrix.shape)} has no {k} principal components",
            "give a matrix (N, C), and k from 1 to the smaller of its sizes",
        )
    mean = rows.mean(0)
    rows = rows - mean
    R = torch.linalg.qr(rows, mode="r").R  # (n, C), n = min(N, C): it has the same singular values and is much smaller
    _, sizes, directions = torch.linalg.svd(R, full_matrices=False)  # (n,), (n, C)
    if not sizes[0] > 1e-12 * mean.abs().max():
        raise InputError("all rows are the same, and differ in no direction", "give rows that differ")
    components = directions[:k]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))  # its sign is free: choose one
    components = components * largest.sign()
    return PCA(mean, components, (sizes.square() / sizes.square().sum())[:k], rows @ components.T)


# --- positions


class PositionSimilarity(Brief):
    """How similar the embeddings of the positions are.

    Attributes:
        cosines: (block_size, block_size).
    """

    cosines: Tensor

    def _repr_html_(self) -> str:
        names = [str(n) for n in range(len(self.cosines))]
        title = f"Cosine between the embeddings of {len(names):,} positions"
        return notebook.shown(title, notebook.heat_map(names, names, self.cosines))

    @property
    def checks(self) -> list[Check]:
        """The diagonal is 1, the matrix symmetric, and no cosine beyond 1."""
        return [
            measured("similarity with itself = 1", float((self.cosines.diagonal() - 1).abs().max()), 1e-5),
            measured("symmetric", float((self.cosines - self.cosines.T).abs().max()), 1e-5),
            measured("no cosine beyond 1", float((self.cosines.abs() - 1).clamp(min=0).max()), 1e-5),
        ]


@checked
@torch.no_grad()
def position_similarity(model: GPT) -> PositionSimilarity:
    """The cosine between the embeddings of any two positions."""
    rows = _directions(model.wpe.weight)
    return PositionSimilarity(rows @ rows.T)


# --- the residual stream


class ResidualNorms(Brief):
    """The residual stream, and what was written into it.

    Attributes:
        points: the names of its states: the embeddings, and after every sublayer; P of them.
        positions: the absolute positions, T of them.
        stream: the states (P, B, T, C).
        writes: what each sublayer added (P, B, T, C); the first is the sum of the embeddings.
        dtype: the model's.
    """

    points: list[str]
    positions: list[int]
    stream: Tensor
    writes: Tensor
    dtype: torch.dtype

    @property
    def norms(self) -> Tensor:
        """Length of the stream at every point (P, B, T)."""
        return self.stream.norm(dim=-1)

    @property
    def cosine_to_final(self) -> Tensor:
        """Cosine between the stream at every point and at the last (P, B, T)."""
        return F.cosine_similarity(self.stream, self.stream[-1:], dim=-1)

    @property
    def shares(self) -> Tensor:
        """The share of each write in the final stream, projected on its direction, (P, B, T): they sum to 1 over P.

        A negative share is a write that points against the final stream.
        """
        final = self.stream[-1].double()
        return ((self.writes.double() * final).sum(-1) / final.square().sum(-1)).to(self.stream.dtype)

    @checked
    def largest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k dimensions of the largest absolute value: their int64 indices and values, both (P, B, T, k).

        Raises:
            InputError: if the stream has fewer than k dimensions.
        """
        check_most(k, self.stream.size(-1), "dimensions of the stream")
        dimensions = self.stream.abs().topk(k).indices
        return dimensions, self.stream.gather(-1, dimensions)

    def _repr_html_(self) -> str:
        names = [f"position {n}" for n in self.positions]
        return notebook.shown("Length of the residual stream", notebook.heat_map(self.points, names, self.norms[:, 0]))

    @property
    def checks(self) -> list[Check]:
        """Every state is the one before plus what was written; the last is the sum of all writes.

        The first is true to the bit, unless the trace has kept the values in a dtype that is not the model's.
        """
        steps = self.stream[:-1] + self.writes[1:] - self.stream[1:]
        final, dtype = self.stream[-1], self.stream.dtype
        exact = allowed(0.0, float(self.stream.abs().max()), self.dtype, dtype) if self.dtype != dtype else 0.0
        near = allowed(1e-5, 1, self.dtype, dtype)
        total = (self.writes.sum(0) - final).abs().max() / final.abs().max()
        return [
            measured("resid_mid = resid_pre + attn.out", float(steps[::2].abs().max()), exact),
            measured("resid_post = resid_mid + mlp.out", float(steps[1::2].abs().max()), exact),
            measured("embed + pos_embed + all writes = the final stream", float(total), near),
            measured("the shares sum to 1", float((self.shares.sum(0) - 1).abs().max()), near),
        ]


@checked
@torch.no_grad()
def residual_norms(t: Trace) -> ResidualNorms:
    """How the residual stream grows.

    Args:
        t: a trace that has recorded the embeddings, the stream, and what attention and MLPs write.

    Raises:
        PointError: if one of these points was not recorded.
        InputError: if they were recorded at different positions.
    """
    points = stream_points(t.config)
    sublayers = [f"blocks.{layer}.{part}.out" for layer in range(t.config.n_layer) for part in ("attn", "mlp")]
    positions = t.shared_positions([*points, "embed", "pos_embed", *sublayers])
    writes = [t["embed"] + t["pos_embed"], *(t[name] for name in sublayers)]
    stream = torch.stack([t[name] for name in points])
    return ResidualNorms(points, positions, stream, torch.stack(writes), t.model.wte.weight.dtype)
