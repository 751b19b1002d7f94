"""Geometry of the layers that curvature knows: ungrouped convolutions, and linear layers as 1x1 convolutions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

Size = int | tuple[int, int]


class Geometry(NamedTuple):
    """Geometry of a convolution, as the functions on feature maps take it."""

    kernel_size: Size = 1
    stride: Size = 1
    padding: Size = 0
    dilation: Size = 1

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Return kernel size, stride, padding and dilation as (rows, columns)."""
        kernel, stride, padding, dilation = (pair(size) for size in self)
        return kernel, stride, padding, dilation

    def offsets(self) -> int:
        """Return the number of kernel offsets k^2."""
        kernel = pair(self.kernel_size)
        return kernel[0] * kernel[1]

    def positions(self, height: int, width: int) -> int:
        """Return the number of output positions H' W' of an input of H x W."""
        return len(self.reads(0, height)[0]) * len(self.reads(1, width)[0])

    def reads(self, axis: int, length: int) -> list[list[int]]:
        """Return the *padded* coordinates read along an axis, ``[kernel offset][output position]``."""
        kernel, stride, padding, dilation = (size[axis] for size in self.pairs())
        out_length = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        return [[stride * position + dilation * offset for position in range(out_length)] for offset in range(kernel)]


def geometry_of(layer: nn.Module) -> Geometry:
    """Return the geometry of an ungrouped, zero-padded ``nn.Conv2d``; an ``nn.Linear`` is a 1x1 convolution.

    Raises:
        ValueError: if the layer is of another kind.
    """
    if isinstance(layer, nn.Linear):
        return Geometry()
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
        raise ValueError(f"no curvature rule for {layer}: use nn.Linear or ungrouped, zero-padded nn.Conv2d")
    kernel, dilation = pair(layer.kernel_size), pair(layer.dilation)
    if layer.padding == "same":
        total = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        if total[0] % 2 or total[1] % 2:
            raise ValueError(f"no curvature rule for {layer}: its 'same' padding is not symmetric")
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = (0, 0) if isinstance(layer.padding, str) else pair(layer.padding)
    return Geometry(kernel, pair(layer.stride), padding, dilation)


def feature_map(activations: Tensor) -> Tensor:
    """View a linear layer's activations ``[B, ..., C]`` as a feature map ``[B, C, T, 1]``."""
    return activations.reshape(len(activations), -1, activations.shape[-1]).transpose(1, 2).unsqueeze(-1)


def pair(size: Size | tuple[int, ...]) -> tuple[int, int]:
    """Return a size as (rows, columns)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
