"""Sums of components: exact where there are enough, never worse for more sweeps, bounded, and alike everywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.pruning.directions import components as module
from hybridprune.pruning.directions.components import Components, components, left_vectors, start_of
from tests.pruning.random_curvature import source


def summed(found: Components) -> Tensor:
    """``sum_r out_r x in_r x offset_r``, entry by entry."""
    return torch.einsum("or,ir,kr->oik", found.outputs, found.inputs, found.offsets)


def random_sum(rank: int, sizes: tuple[int, int, int], seed: int) -> Tensor:
    """A tensor of at most this rank."""
    draw = source(seed)
    return torch.einsum("or,ir,kr->oik", *(torch.randn(n, rank, generator=draw, dtype=torch.float64) for n in sizes))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_sum_of_components_is_found(rank: int) -> None:
    tensor = random_sum(rank, (6, 5, 9), seed=rank)
    found = components(tensor, rank, 400)
    assert found.error < 1e-6
    torch.testing.assert_close(summed(found), tensor, rtol=0, atol=1e-2)


def test_a_matrix_is_cut_as_by_its_singular_values() -> None:
    matrix = torch.randn(6, 5, 1, generator=source(0), dtype=torch.float64)
    values = torch.linalg.svdvals(matrix[:, :, 0]).square()
    assert components(matrix, 2, 300).error == pytest.approx(float(values[2:].sum() / values.sum()), rel=1e-3)


@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from([3, 9]), st.integers(2, 9), st.integers(0, 99))
def test_the_error_is_that_of_the_sum_and_never_grows_with_the_sweeps(
    outputs: int, inputs: int, offsets: int, rank: int, seed: int
) -> None:
    tensor = torch.randn(outputs, inputs, offsets, generator=source(seed), dtype=torch.float64)
    errors = []
    for sweeps in (1, 3, 10):
        found = components(tensor, rank, sweeps)
        assert [factor.shape for factor in found[:3]] == [(n, rank) for n in tensor.shape]
        expected = float((tensor - summed(found)).square().sum() / tensor.square().sum())
        assert found.error == pytest.approx(expected, abs=1e-9)
        errors.append(found.error)
    assert all(after <= before + 1e-15 for before, after in pairwise(errors))  # beyond rounding


def test_components_of_a_tensor_without_a_best_sum_stay_bounded() -> None:
    # Of rank 3 and the limit of tensors of rank 2, whose components grow without bound (de Silva & Lim 2008).
    x, y = torch.eye(2, dtype=torch.float64)
    tensor = sum(torch.einsum("o,i,k->oik", *parts) for parts in ((x, x, y), (x, y, x), (y, x, x)))
    assert isinstance(tensor, Tensor)
    found = components(tensor, 2, 400)
    assert found.error < 0.05
    assert max(float(factor.abs().max()) for factor in found[:3]) < 10


def test_factors_of_a_component_have_one_norm() -> None:
    found = components(torch.randn(5, 4, 9, generator=source(1)), 6, 5)
    norms = torch.stack([factor.norm(dim=0) for factor in found[:3]])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


@pytest.mark.parametrize("wide", [10, 10_000])
def test_a_start_that_is_known_changes_nothing(monkeypatch: pytest.MonkeyPatch, wide: int) -> None:
    monkeypatch.setattr(module, "WIDE", wide)
    tensor = torch.randn(8, 7, 9, generator=source(3), dtype=torch.float64)
    for rank in (3, 12):  # fewer and more than there are vectors
        for known, anew in zip(components(tensor, rank, 2, start_of(tensor)), components(tensor, rank, 2), strict=True):
            torch.testing.assert_close(known, anew, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="another tensor"):
        components(tensor, 3, 2, start_of(tensor.transpose(0, 1)))


def test_large_tensors_are_decomposed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(8, 7, 9, generator=source(2), dtype=torch.float64)
    small = components(tensor, 12, 10)
    monkeypatch.setattr(module, "WIDE", 10)
    large = components(tensor, 12, 10)
    assert large.error == pytest.approx(small.error, rel=1e-3) and large.outputs.dtype == torch.float64


def test_nothing_is_a_sum_of_nothing() -> None:
    assert components(torch.zeros(3, 4, 9), 2, 3).error == 0.0


def test_singular_vectors_have_a_sign_of_their_own() -> None:
    unfolding = torch.randn(7, 30, generator=source(0), dtype=torch.float64)
    vectors = left_vectors(unfolding)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close((vectors.T @ unfolding).norm(dim=1), torch.linalg.svdvals(unfolding))
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())
