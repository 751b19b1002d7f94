from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hybridprune.curvature.geometry import Geometry, geometry_of
from hybridprune.curvature.gradients import bytes_per_image, sum_squared_weight_gradients, weight_gradients
from tests.curvature.oracles import GEOMETRIES, per_image_gradients


def gradients_by_autograd(geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Images ``[5, 3, 9, 7]``, their mean loss's gradient in a convolution's output, and each one's in the weight."""
    kernel_size, stride, padding, dilation = geometry
    layer = nn.Conv2d(3, 4, kernel_size, stride, padding, dilation).double()
    images, labels = torch.randn(5, 3, 9, 7, dtype=torch.float64), torch.randint(6, (5,))
    output = layer(images)
    head = nn.Linear(output[0].numel(), 6).double()
    (g,) = torch.autograd.grad(F.cross_entropy(head(output.flatten(1)), labels), output)
    assert geometry_of(layer).pairs() == geometry.pairs()
    (dw,) = per_image_gradients(lambda x: head(layer(x).flatten(1)), [layer.weight], images, labels)
    return images, g, dw


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_weight_gradients_equal_one_backward_pass_per_image(geometry: Geometry):
    images, g, expected = gradients_by_autograd(geometry)
    torch.testing.assert_close(weight_gradients(images, g, geometry, batch_size=5), expected)
    squares = sum_squared_weight_gradients(images, g, geometry, batch_size=5)
    torch.testing.assert_close(squares, expected.square().sum(0))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_mean_is_taken_from_the_input_at_every_offset_and_position(geometry: Geometry):
    images, g, dw = gradients_by_autograd(geometry)
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    shift = 5 * torch.einsum("nohw,i->noi", g, mean)
    expected = dw - shift[..., None, None]
    torch.testing.assert_close(weight_gradients(images, g, geometry, 5, mean), expected)
    squares = sum_squared_weight_gradients(images, g, geometry, 5, mean=mean)
    torch.testing.assert_close(squares, expected.square().sum(0))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_basis_of_offsets_rotates_before_the_squares(geometry: Geometry):
    images, g, dw = gradients_by_autograd(geometry)
    q, _ = torch.linalg.qr(torch.randn(geometry.offsets(), geometry.offsets(), dtype=torch.float64))
    expected = (dw.flatten(3) @ q).square().sum(0).view(dw.shape[1:])
    squares = sum_squared_weight_gradients(images, g, geometry, 5, q_offset=q)
    torch.testing.assert_close(squares, expected)


@pytest.mark.parametrize("tokens", [(), (3,)])
def test_weight_gradients_of_a_linear_layer(tokens: tuple[int, ...]):
    x, g = torch.randn(4, *tokens, 3, dtype=torch.float64), torch.randn(4, *tokens, 2, dtype=torch.float64)
    expected = torch.stack([4 * g[n].view(-1, 2).T @ x[n].view(-1, 3) for n in range(4)])
    torch.testing.assert_close(weight_gradients(x, g, Geometry(), batch_size=4), expected)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.elements = max(self.elements, output.numel())
        return output


def test_squares_of_outer_products_are_a_product_of_squares() -> None:
    """Of 32 images' gradients of a wide linear layer, none is ever made."""
    x, g = torch.randn(32, 48, 1, 1, dtype=torch.float64), torch.randn(32, 40, 1, 1, dtype=torch.float64)
    mean = torch.randn(48, dtype=torch.float64)
    with Largest() as largest:
        squares = sum_squared_weight_gradients(x, g, Geometry(), batch_size=32, mean=mean)
    assert largest.elements <= 48 * 40
    expected = weight_gradients(x, g, Geometry(), 32, mean).square().sum(0)
    torch.testing.assert_close(squares, expected)


@pytest.mark.parametrize("shape", [(6, 5, 9, 9), (6, 5, 1, 1)], ids=str)
@pytest.mark.parametrize("with_offsets", [False, True])
def test_what_is_in_memory_is_what_was_said(shape: tuple[int, ...], with_offsets: bool) -> None:
    geometry = Geometry(3, 1, 1)
    x, g = torch.randn(*shape), torch.randn(6, 7, *shape[2:])
    q = torch.linalg.qr(torch.randn(9, 9))[0] if with_offsets else None
    with Largest() as largest:
        sum_squared_weight_gradients(x, g, geometry, 6, frames=2, q_offset=q)
    said = 3 * bytes_per_image(x, g, geometry, 2, with_offsets)
    assert 4 * largest.elements <= said < 16 * 4 * largest.elements
