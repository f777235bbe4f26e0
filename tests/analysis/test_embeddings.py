"""Neighbours by brute force, principal components by the covariance, the residual stream by sums."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from minigpt.analysis.attribution import attribute
from minigpt.analysis.embeddings import neighbours, pca, position_similarity, residual_norms
from minigpt.analysis.heads import attention_checks
from minigpt.analysis.lens import logit_lens
from minigpt.analysis.taps import PointError
from minigpt.analysis.tracing import trace
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache

B, T, L, C, V = 2, 11, 3, 35, 19

# --- neighbours


@pytest.mark.parametrize("table", ["wte", "wpe"])
@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_neighbours_by_brute_force(model, table, kind):
    rows = getattr(model, table).weight.detach().double().numpy()
    for token in (0, 7, len(rows) - 1):
        similar = rows @ rows[token]
        if kind == "cosine":
            similar = np.array(
                [row @ rows[token] / math.sqrt((row @ row) * (rows[token] @ rows[token])) for row in rows]
            )
        order = [other for other in np.argsort(-similar).tolist() if other != token]
        found = neighbours(model, token, 5, kind, table)
        assert found.ids == order[:5]
        assert found.similarities == pytest.approx(similar[order[:5]].tolist(), abs=1e-4)
        assert found.own == pytest.approx(similar[token], rel=1e-5)
        assert all(one.ok for one in found.checks)
        assert neighbours(model, token, len(rows) - 1, kind, table).ids == order


def test_neighbours_in_disorder_are_seen(model):
    found = neighbours(model, 3, 4)
    wrong = dataclasses.replace(found, similarities=found.similarities[::-1], own=0.9)
    assert [one.ok for one in wrong.checks] == [False, False, True]
    assert not dataclasses.replace(found, similarities=[1.1]).checks[2].ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_id": 19}, "no row 19"),
        ({"token_id": -1}, "no row -1"),
        ({"token_id": 13, "table": "wpe"}, "no row 13"),
        ({"token_id": 0, "k": 0}, "0 neighbours among"),
        ({"token_id": 0, "k": 19}, "19 neighbours among"),
        ({"token_id": 0, "kind": "angle"}, "'angle'"),
        ({"token_id": 0, "table": "lm_head"}, "'lm_head'"),
    ],
)
def test_neighbours_that_there_are_not(model, options, message):
    with pytest.raises(InputError, match=message) as caught:
        neighbours(model, **options)
    assert len(str(caught.value).splitlines()) == 2


# --- principal components


@pytest.mark.parametrize(("N", "C"), [(23, 7), (7, 23)])
def test_components_are_the_eigenvectors_of_the_covariance(N, C):
    matrix = torch.randn(N, C) @ torch.randn(C, C) + 5
    rank = min(N - 1, C)
    values, vectors = np.linalg.eigh(np.cov(matrix.double().numpy(), rowvar=False))
    for k in (1, 3, min(N, C)):
        found = pca(matrix, k)
        assert found.components.shape == (k, C)
        assert found.projected.shape == (N, k)
        assert found.explained.numpy() == pytest.approx((values[::-1] / values.sum())[:k], abs=1e-9)
        for n in range(min(k, rank)):
            assert abs(found.components[n].numpy() @ vectors[:, -1 - n]) == pytest.approx(1, abs=1e-6)
            assert found.components[n, found.components[n].abs().argmax()] > 0
        assert all(one.ok for one in found.checks)
        left = (matrix.double() - found.mean - found.projected @ found.components).square().sum()
        whole = (matrix.double() - matrix.double().mean(0)).square().sum()
        assert float(left / whole) == pytest.approx(1 - float(found.explained.sum()), abs=1e-9)
    assert float(left / whole) < 1e-12  # at full rank, nothing is left


def test_a_known_line():
    """Points on a line through (1, 2, 3) along (2, -1, 2) / 3: one component, which explains everything."""
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3
    found = pca(torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([[-2.0], [-1.0], [0.0], [3.0]]) * direction, 2)
    assert found.explained.tolist() == pytest.approx([1, 0], abs=1e-12)
    assert found.components[0].tolist() == pytest.approx(direction.tolist(), abs=1e-6)
    assert found.projected[:, 0].tolist() == pytest.approx([-2, -1, 0, 3], abs=1e-6)
    assert found.mean.tolist() == pytest.approx([1, 2, 3], abs=1e-6)


def test_components_that_are_none_are_seen():
    found = pca(torch.randn(11, 5), 3)
    names = {"components": 0, "projected": 2, "explained": 4}
    for name, place in names.items():
        wrong = dataclasses.replace(found, **{name: getattr(found, name) + 1})
        assert not wrong.checks[place].ok
    skewed = found.projected.clone()
    skewed[:, 1] += skewed[:, 0]
    assert not dataclasses.replace(found, projected=skewed).checks[1].ok
    assert not dataclasses.replace(found, explained=found.explained.flip(0)).checks[3].ok


@pytest.mark.parametrize(
    ("matrix", "k", "message"),
    [
        (torch.randn(5, 3), 4, r"\(5, 3\) has no 4"),
        (torch.randn(5, 3), 0, "no 0 principal"),
        (torch.randn(5), 1, r"\(5,\)"),
        (torch.full((5, 3), 0.1), 1, "all rows are the same"),
        (torch.zeros(1, 3), 1, "all rows are the same"),
    ],
)
def test_matrices_without_components(matrix, k, message):
    with pytest.raises(InputError, match=message):
        pca(matrix, k)


# --- positions


def test_similarity_of_positions(model):
    found = position_similarity(model)
    rows = model.wpe.weight.detach()
    for i, j in [(0, 12), (4, 5), (7, 7)]:
        cosine = float(rows[i] @ rows[j]) / math.sqrt(float(rows[i] @ rows[i]) * float(rows[j] @ rows[j]))
        assert float(found.cosines[i, j]) == pytest.approx(cosine, abs=1e-5)
    assert found.cosines.shape == (13, 13)
    assert all(one.ok for one in found.checks)
    faults = [torch.eye(13), torch.ones(13, 13).triu(), torch.ones(13, 13)]
    for place, fault in enumerate(faults):
        assert not dataclasses.replace(found, cosines=found.cosines + fault).checks[place].ok


# --- the residual stream


def test_the_stream_by_a_loop(model, idx, by_hand, traced):
    seen, found = by_hand(model, idx), residual_norms(traced(model, idx))
    stream, writes, names = [seen["blocks.0.resid_pre"]], [seen["embed"] + seen["pos_embed"]], ["blocks.0.resid_pre"]
    for i in range(L):
        for part, state in (("attn", "mid"), ("mlp", "post")):
            names.append(f"blocks.{i}.resid_{state}")
            stream.append(seen[names[-1]])
            writes.append(seen[f"blocks.{i}.{part}.out"])
    assert found.points == names
    assert found.norms.shape == found.shares.shape == (1 + 2 * L, B, T)
    for p in range(1 + 2 * L):
        for cell in [(0, 0), (1, 7)]:
            x, final, write = stream[p][cell], stream[-1][cell], writes[p][cell]
            length = math.sqrt(float(x @ x))
            assert float(found.norms[p][cell]) == pytest.approx(length, rel=1e-4)
            cosine = float(x @ final) / length / math.sqrt(float(final @ final))
            assert float(found.cosine_to_final[p][cell]) == pytest.approx(cosine, abs=1e-5)
            assert float(found.shares[p][cell]) == pytest.approx(float(write @ final / (final @ final)), abs=1e-5)
            order = sorted(range(C), key=lambda c, x=x: -abs(x[c]))[:3]
            dimensions, values = found.largest(3)
            assert dimensions[p][cell].tolist() == order
            assert values[p][cell].tolist() == pytest.approx(x[order].tolist(), abs=1e-4)


def test_the_stream_holds_its_identities_and_a_fault_is_seen(model, idx, traced):
    found = residual_norms(traced(model, idx))
    assert len(found.checks) == 4
    assert all(one.ok for one in found.checks)
    assert [one.error for one in found.checks[:2]] == [0.0, 0.0]  # to the bit
    for place, expected in [(1, [False, True, False, False]), (2, [True, False, False, False])]:
        writes = found.writes.clone()
        writes[place] *= 2
        assert [one.ok for one in dataclasses.replace(found, writes=writes).checks] == expected


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("computed", DTYPES, ids=str)
def test_the_tables_of_a_model_in_any_dtype_have_cosines(model, computed):
    model.to(computed)
    for table in ("wte", "wpe"):
        assert all(one.ok for one in neighbours(model, 3, 4, table=table).checks)
    assert all(one.ok for one in position_similarity(model).checks)


@pytest.mark.parametrize("kept", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("computed", DTYPES, ids=str)
def test_a_sound_trace_in_any_dtype_is_found_sound_and_a_fault_is_seen(model, idx, computed, kept):
    model.to(computed)
    with torch.no_grad(), trace(model, dtype=kept) as t:
        model(idx)
    found, lens, split = residual_norms(t), logit_lens(t), attribute(t, 3)
    checks = [*found.checks, *lens.checks, *split.checks, *(one for i in (0, 1) for one in attention_checks(t, i))]
    assert [one for one in checks if not one.ok] == []
    assert kept not in (None, computed) or [one.error for one in found.checks[:2]] == [0.0, 0.0]  # to the bit
    for wrong in (
        dataclasses.replace(found, writes=found.writes * 2),
        dataclasses.replace(lens, final=lens.final * 2),
        dataclasses.replace(split, values=split.values + split.values.abs()),
    ):
        assert not all(one.ok for one in wrong.checks)


def test_the_stream_of_a_pass_with_a_cache_and_of_chosen_positions(model, idx, traced):
    whole = residual_norms(traced(model, idx))
    with torch.no_grad(), trace(model) as t:
        cache = KVCache(model.config, B)
        model(idx[:, :4], cache)
        model(idx[:, 4:], cache)
    found = residual_norms(t)
    assert torch.allclose(found.norms, whole.norms, rtol=1e-4)
    assert all(one.ok for one in found.checks)
    late = residual_norms(traced(model, idx, positions=[3, 5]))
    assert late.positions == [3, 5]
    step = 2**-23  # of float32: other shapes may take another kernel, but sums in float64 are rounded to it once
    assert torch.allclose(late.shares, whole.shares[..., [3, 5]], rtol=step, atol=0)


def test_what_cannot_be_read_of_the_stream(model, idx, traced):
    found = residual_norms(traced(model, idx))
    for k in (0, 36):
        with pytest.raises(InputError, match=f"^{k} dimensions of the stream cannot"):
            found.largest(k)
    with pytest.raises(PointError, match="pos_embed was not recorded"):
        residual_norms(traced(model, idx, ["embed", "blocks.*"]))


@pytest.mark.filterwarnings("error:Casting complex")  # torch only warns where it leaves out what is imaginary
@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.complex(x, -x),
        torch.Tensor.to_sparse,
        lambda x: x.to("meta"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_no_table_of_real_numbers_has_principal_components(make):
    with pytest.raises(InputError, match=r"is no table of real numbers\n"):
        pca(make(torch.randn(7, 5)))


@pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 5), (7, 0), (), (7,), (2, 3, 5)])
def test_no_matrix_has_no_principal_components(shape):
    with pytest.raises(InputError, match=r"has no 2 principal components\n"):
        pca(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_of_every_kind_have_principal_components(dtype):
    """All of these hold 0, 1 and nothing else here."""
    ones = torch.eye(7, 5)
    assert pca(ones.to(dtype)).explained.equal(pca(ones).explained)
