from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.curvature import factors
from hybridprune.curvature.factors import gradient_factor, input_factor, input_mean
from hybridprune.curvature.geometry import Geometry
from tests.curvature.oracles import GEOMETRIES, unfolded


def unfolded_input_factor(x: Tensor, geometry: Geometry) -> Tensor:
    vectors = unfolded(x, geometry).flatten(0, 2)
    return torch.einsum("nc,nd->cd", vectors, vectors) / len(vectors)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_input_factor_equals_the_moment_of_the_unfolded_input(geometry: Geometry, memory_format):
    x = torch.randn(6, 5, 9, 7, dtype=torch.float64) + 1
    x = x.contiguous(memory_format=memory_format)
    expected = unfolded_input_factor(x, geometry)
    torch.testing.assert_close(input_factor(x, geometry), expected, rtol=1e-10, atol=1e-10)
    mean = unfolded(x, geometry).mean((0, 1, 2))
    torch.testing.assert_close(input_mean(x, geometry), mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [5, 8, 11])
def test_wide_factors_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch, channels: int):
    monkeypatch.setattr(factors, "WIDE", 5)
    x = torch.randn(6, channels, 9, 7, dtype=torch.float64) + 1
    torch.testing.assert_close(input_factor(x, Geometry(3, 1, 1)), unfolded_input_factor(x, Geometry(3, 1, 1)))
    expected = torch.einsum("nchw,ndhw->cd", x, x) * len(x) / (9 * 7)
    torch.testing.assert_close(gradient_factor(x, len(x)), expected)


def test_input_factor_keeps_five_digits_in_single_precision():
    x = torch.randn(64, 8, 32, 32) + 3
    expected = unfolded_input_factor(x.double(), Geometry(3, 1, 1))
    error = (input_factor(x, Geometry(3, 1, 1)) - expected).norm() / expected.norm()
    assert error < 1e-5
    mean = unfolded(x.double(), Geometry(3, 1, 1)).mean((0, 1, 2))
    assert (input_mean(x, Geometry(3, 1, 1)) - mean).norm() < 1e-5 * mean.norm()


axis = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2))


@given(rows=axis, columns=axis, batch=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_input_factor_of_any_geometry_equals_the_unfolded_one(rows, columns, batch):
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, k, _, p, d in (rows, columns)))
    (height, *sizes_h), (width, *sizes_w) = rows, columns
    geometry = Geometry(*zip(sizes_h, sizes_w, strict=True))
    x = torch.arange(batch * 3 * height * width, dtype=torch.float64).sin().view(batch, 3, height, width)
    expected = unfolded_input_factor(x, geometry)
    torch.testing.assert_close(input_factor(x, geometry), expected, rtol=1e-10, atol=1e-10)
    mean = unfolded(x, geometry).mean((0, 1, 2))
    torch.testing.assert_close(input_mean(x, geometry), mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3), (4, 6, 3)])
def test_factors_of_a_linear_layer_average_over_all_but_the_last_axis(shape: tuple[int, ...]):
    x = torch.randn(shape, dtype=torch.float64)
    rows = x.reshape(-1, 3)
    expected = sum(torch.outer(row, row) for row in rows) / len(rows)
    torch.testing.assert_close(input_factor(x, Geometry()), expected)
    torch.testing.assert_close(gradient_factor(x / 4, batch_size=4), expected)
    torch.testing.assert_close(input_mean(x, Geometry()), rows.mean(0))


def test_gradient_factor_counts_absent_images_as_zero():
    g = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    vectors = (8 * g).permute(0, 2, 3, 1).reshape(-1, 4)
    expected = torch.einsum("nc,nd->cd", vectors, vectors) / (8 * 10)
    torch.testing.assert_close(gradient_factor(g, batch_size=8), expected)
