from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.curvature.geometry import Geometry
from hybridprune.curvature.offsets import full_covariance, nearest_kronecker_product, offset_moment
from tests.curvature.oracles import GEOMETRIES, unfolded


def random_covariance(size: int, seed: int = 0) -> Tensor:
    rows = torch.randn(size + 3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.T @ rows / len(rows)


def brute_force_moment(x: Tensor, geometry: Geometry) -> Tensor:
    windows = unfolded(x, geometry)
    images, positions, _, channels = windows.shape
    return torch.einsum("nsoc,nspc->op", windows, windows) / (images * positions * channels)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_offset_moment_equals_that_of_the_unfolded_input(geometry: Geometry, memory_format):
    x = (torch.randn(6, 5, 9, 7, dtype=torch.float64) + 1).contiguous(memory_format=memory_format)
    expected = brute_force_moment(x, geometry)
    torch.testing.assert_close(offset_moment(x, geometry), expected, rtol=1e-10, atol=1e-10)


axis = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2))


@given(rows=axis, columns=axis, batch=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_offset_moment_of_any_geometry_equals_the_unfolded_one(rows, columns, batch):
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, k, _, p, d in (rows, columns)))
    (height, *sizes_h), (width, *sizes_w) = rows, columns
    geometry = Geometry(*zip(sizes_h, sizes_w, strict=True))
    x = torch.arange(batch * 3 * height * width, dtype=torch.float64).sin().view(batch, 3, height, width)
    torch.testing.assert_close(offset_moment(x, geometry), brute_force_moment(x, geometry), rtol=1e-10, atol=1e-10)


def test_offset_moment_keeps_five_digits_in_single_precision():
    x = torch.randn(64, 8, 32, 32) + 3
    expected = brute_force_moment(x.double(), Geometry(3, 1, 1))
    assert (offset_moment(x, Geometry(3, 1, 1)) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_full_covariance_is_that_of_the_weight_s_entries(geometry: Geometry):
    x = torch.randn(7, 3, 9, 7, dtype=torch.float64)
    vectors = unfolded(x, geometry).transpose(2, 3).flatten(2).flatten(0, 1)
    expected = sum(torch.outer(vector, vector) for vector in vectors) / len(vectors)
    torch.testing.assert_close(full_covariance(x, geometry, memory=3000), expected)


@pytest.mark.parametrize(("channels", "offsets"), [(2, 9), (5, 4), (4, 1), (1, 3)])
def test_nearest_kronecker_product_is_as_near_as_the_first_singular_pair(channels: int, offsets: int):
    covariance = random_covariance(channels * offsets)
    a, k = nearest_kronecker_product(covariance, offsets)
    rearranged = torch.stack(
        [covariance[i::offsets, j::offsets].flatten() for i in range(offsets) for j in range(offsets)], dim=1
    )
    singular = torch.linalg.svdvals(rearranged)
    distance = (covariance - torch.kron(a, k)).square().sum()
    torch.testing.assert_close(distance, singular[1:].square().sum(), rtol=1e-9, atol=1e-12)
    assert k.trace().item() == pytest.approx(offsets)
    for factor in (a, k):
        assert torch.equal(factor, factor.T)
        assert torch.linalg.eigvalsh(factor).min() > 0


def test_nearest_kronecker_product_of_a_kronecker_product_is_itself():
    a, k = random_covariance(4), random_covariance(9, seed=1)
    k *= 9 / k.trace()
    actual_a, actual_k = nearest_kronecker_product(torch.kron(a, k), offsets=9)
    torch.testing.assert_close(actual_a, a)
    torch.testing.assert_close(actual_k, k)


def test_nearest_kronecker_product_of_nothing_is_zero():
    a, k = nearest_kronecker_product(torch.zeros(6, 6), offsets=3)
    assert (a.shape, k.shape) == ((2, 2), (3, 3))
    assert not a.any()
    assert not k.any()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_images_in_parts_give_the_same_moment(geometry: Geometry):
    x = torch.randn(5, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(offset_moment(x, geometry, memory=1), offset_moment(x, geometry))
