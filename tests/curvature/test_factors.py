from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.curvature.factors import (
    Geometry,
    geometry_of,
    gradient_factor,
    input_factor,
    sum_squared_weight_gradients,
    weight_gradients,
)

from .nets import per_image_gradients

GEOMETRIES = [
    Geometry(3, 1, 1),
    Geometry(1),
    Geometry(1, 2),
    Geometry(3, 2, 1),
    Geometry(3, 1, 0),
    Geometry(5, 1, 2),
    Geometry(3, 1, 2, 2),
    Geometry((3, 1), (1, 2), (1, 0)),
    Geometry((2, 3), (2, 1), (0, 2), (1, 2)),
    Geometry(7, 3, 3),
]


def unfolded_input_factor(x: Tensor, geometry: Geometry) -> Tensor:
    kernel_size, stride, padding, dilation = geometry
    columns = F.unfold(x, kernel_size, dilation=dilation, padding=padding, stride=stride)
    offsets = columns.shape[1] // x.shape[1]
    vectors = columns.unflatten(1, (x.shape[1], offsets)).permute(0, 2, 3, 1).flatten(0, 2)
    return torch.einsum("nc,nd->cd", vectors, vectors) / len(vectors)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_input_factor_equals_the_moment_of_the_unfolded_input(geometry: Geometry, memory_format):
    x = torch.randn(6, 5, 9, 7, dtype=torch.float64) + 1
    x = x.contiguous(memory_format=memory_format)
    expected = unfolded_input_factor(x, geometry)
    torch.testing.assert_close(input_factor(x, *geometry), expected, rtol=1e-10, atol=1e-10)


def test_input_factor_keeps_five_digits_in_single_precision():
    x = torch.randn(64, 8, 32, 32) + 3
    expected = unfolded_input_factor(x.double(), Geometry(3, 1, 1))
    error = (input_factor(x, 3, 1, 1) - expected).norm() / expected.norm()
    assert error < 1e-5


axis = st.tuples(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2)
)


@given(rows=axis, columns=axis, batch=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_input_factor_of_any_geometry_equals_the_unfolded_one(rows, columns, batch):
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, k, _, p, d in (rows, columns)))
    (height, *sizes_h), (width, *sizes_w) = rows, columns
    geometry = Geometry(*zip(sizes_h, sizes_w, strict=True))
    x = torch.arange(batch * 3 * height * width, dtype=torch.float64).sin().view(batch, 3, height, width)
    expected = unfolded_input_factor(x, geometry)
    torch.testing.assert_close(input_factor(x, *geometry), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3), (4, 6, 3)])
def test_factors_of_a_linear_layer_average_over_all_but_the_last_axis(shape: tuple[int, ...]):
    x = torch.randn(shape, dtype=torch.float64)
    rows = x.reshape(-1, 3)
    expected = sum(torch.outer(row, row) for row in rows) / len(rows)
    torch.testing.assert_close(input_factor(x), expected)
    torch.testing.assert_close(gradient_factor(x / 4, batch_size=4), expected)


def test_gradient_factor_counts_absent_images_as_zero():
    g = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    vectors = (8 * g).permute(0, 2, 3, 1).reshape(-1, 4)
    expected = torch.einsum("nc,nd->cd", vectors, vectors) / (8 * 10)
    torch.testing.assert_close(gradient_factor(g, batch_size=8), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_weight_gradients_equal_one_backward_pass_per_image(geometry: Geometry):
    kernel_size, stride, padding, dilation = geometry
    layer = nn.Conv2d(3, 4, kernel_size, stride, padding, dilation).double()
    images, labels = torch.randn(5, 3, 9, 7, dtype=torch.float64), torch.randint(6, (5,))
    output = layer(images)
    head = nn.Linear(output[0].numel(), 6).double()
    (g,) = torch.autograd.grad(F.cross_entropy(head(output.flatten(1)), labels), output)
    (expected,) = per_image_gradients(lambda x: head(layer(x).flatten(1)), [layer.weight], images, labels)

    actual = weight_gradients(images, g, geometry_of(layer), batch_size=5)

    torch.testing.assert_close(actual, expected)
    squares = sum_squared_weight_gradients(images, g, geometry_of(layer), batch_size=5, chunk=2)
    torch.testing.assert_close(squares, expected.square().sum(0))


@pytest.mark.parametrize("tokens", [(), (3,)])
def test_weight_gradients_of_a_linear_layer(tokens: tuple[int, ...]):
    x, g = torch.randn(4, *tokens, 3, dtype=torch.float64), torch.randn(4, *tokens, 2, dtype=torch.float64)
    expected = torch.stack([4 * g[n].view(-1, 2).T @ x[n].view(-1, 3) for n in range(4)])
    torch.testing.assert_close(weight_gradients(x, g, Geometry(), batch_size=4), expected)


def test_geometry_of_reads_symmetric_named_paddings():
    same = nn.Conv2d(2, 2, (3, 7), padding="same", dilation=(2, 1))
    assert geometry_of(same) == Geometry((3, 7), (1, 1), (2, 3), (2, 1))
    assert geometry_of(nn.Conv2d(2, 2, 3, padding="valid")).padding == (0, 0)
    assert geometry_of(nn.Linear(2, 3)) == Geometry(1, 1, 0, 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 2, padding="same"),
        nn.BatchNorm2d(2),
    ],
    ids=["grouped", "reflecting", "asymmetric", "batch norm"],
)
def test_geometry_of_refuses_layers_without_a_rule(layer: nn.Module):
    with pytest.raises(ValueError, match="no curvature rule"):
        geometry_of(layer)
