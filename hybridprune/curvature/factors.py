"""Second moments of one layer's inputs, output gradients and per-image weight gradients (pure maths).

Every function takes feature maps ``[B, C, H, W]``; a linear layer's inputs and gradients, ``[B, C]`` or
``[B, T, C]``, count as maps of size ``T x 1``. Channels-last maps are read in place, without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]


class Geometry(NamedTuple):
    """Geometry of a convolution, in the order in which `input_factor` takes it."""

    kernel_size: Size = 1
    stride: Size = 1
    padding: Size = 0
    dilation: Size = 1


def geometry_of(layer: nn.Module) -> Geometry:
    """Return the geometry of an ungrouped, zero-padded ``nn.Conv2d``; an ``nn.Linear`` is a 1x1 convolution.

    Raises:
        ValueError: if the layer is of another kind.
    """
    if isinstance(layer, nn.Linear):
        return Geometry()
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
        raise ValueError(f"no curvature rule for {layer}: use nn.Linear or ungrouped, zero-padded nn.Conv2d")
    kernel, dilation = _pair(layer.kernel_size), _pair(layer.dilation)
    if layer.padding == "same":
        total = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        if total[0] % 2 or total[1] % 2:
            raise ValueError(f"no curvature rule for {layer}: its 'same' padding is not symmetric")
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = (0, 0) if isinstance(layer.padding, str) else _pair(layer.padding)
    return Geometry(kernel, _pair(layer.stride), padding, dilation)


def feature_map(activations: Tensor) -> Tensor:
    """View a linear layer's activations ``[B, ..., C]`` as a feature map ``[B, C, T, 1]``."""
    return activations.reshape(len(activations), -1, activations.shape[-1]).transpose(1, 2).unsqueeze(-1)


def input_factor(x: Tensor, kernel_size: Size = 1, stride: Size = 1, padding: Size = 0, dilation: Size = 1) -> Tensor:
    """Return A ``[C_in, C_in]``: mean over images, output positions and kernel offsets of ``x_off x_off^T``.

    Nothing is unfolded. All windows together read the pixel of row i and column j ``n_i m_j`` times, so A is
    a weighted second moment of the pixels. With stride 1 nearly all of them are read equally often, k times
    each way, and inclusion-exclusion needs the plain moment of all pixels and corrections at the border:
    ``9 c(all) - 3 c(border rows) - 3 c(border columns) + c(corners)`` for k = 3 and padding 1.

    Args:
        x: layer input ``[B, C_in, H, W]``, or ``[B, C_in]`` / ``[B, T, C_in]`` of a linear layer.
    """
    x = x if x.ndim == 4 else feature_map(x)
    kernel, *rest = (_pair(size) for size in (kernel_size, stride, padding, dilation))
    (rows, out_height), (columns, out_width) = (
        _read_counts(x.shape[2 + axis], kernel[axis], *(size[axis] for size in rest)) for axis in (0, 1)
    )
    if rest[0] == (1, 1):
        k_rows, k_columns = [kernel[0]] * len(rows), [kernel[1]] * len(columns)
        rows_short, columns_short = [kernel[0] - n for n in rows], [kernel[1] - n for n in columns]
        total = _weighted_moment(x, k_rows, k_columns)
        total -= _weighted_moment(x, rows_short, k_columns)
        total -= _weighted_moment(x, k_rows, columns_short)
        total += _weighted_moment(x, rows_short, columns_short)
    else:
        total = _weighted_moment(x, rows, columns)
    return total / (len(x) * out_height * out_width * kernel[0] * kernel[1])


def gradient_factor(g: Tensor, batch_size: int) -> Tensor:
    """Return G ``[C_out, C_out]``: mean over images and positions of ``(B g)(B g)^T``.

    Args:
        g: gradient ``[b, C_out, H', W']`` of the *mean* loss in the layer's output, or ``[b, C_out]`` /
            ``[b, T, C_out]`` of a linear layer. If b < B images ran through the layer, the others count as 0.
        batch_size: B, the number of images over which the loss is a mean.
    """
    g = g if g.ndim == 4 else feature_map(g)
    assert len(g) <= batch_size
    # B^2 from the gradients, 1 / (B S) from the mean
    return _moment(g.permute(0, 2, 3, 1)) * (batch_size / (g.shape[2] * g.shape[3]))


def weight_gradients(x: Tensor, g: Tensor, geometry: Geometry, batch_size: int) -> Tensor:
    """Return each image's own gradient in the weight, ``[b, C_out, C_in, kh, kw]`` or ``[b, C_out, C_in]``.

    Args:
        x: layer input, as in `input_factor`.
        g: gradient of the mean loss in the layer's output, as in `gradient_factor`.
        batch_size: B, the number of images over which the loss is a mean.
    """
    if x.ndim != 4:
        return weight_gradients(feature_map(x), feature_map(g), geometry, batch_size)[..., 0, 0]
    gradients = torch.stack(list(_offset_gradients(x, g * batch_size, geometry)), dim=-1)
    return gradients.unflatten(-1, _pair(geometry.kernel_size))


def sum_squared_weight_gradients(x: Tensor, g: Tensor, geometry: Geometry, batch_size: int, chunk: int) -> Tensor:
    """Return the sum over images of the squares of `weight_gradients`, ``[C_out, C_in, kh, kw]``.

    Memory is bounded by the gradients of ``chunk`` images at one kernel offset. Takes feature maps only.
    """
    kernel = _pair(geometry.kernel_size)
    total = x.new_zeros(kernel[0] * kernel[1], g.shape[1], x.shape[1])
    for x_chunk, g_chunk in zip(x.split(chunk), g.split(chunk), strict=True):
        for offset, gradients in enumerate(_offset_gradients(x_chunk, g_chunk * batch_size, geometry)):
            total[offset] += gradients.square_().sum(0)
    return total.permute(1, 2, 0).unflatten(-1, kernel)


def _offset_gradients(x: Tensor, g: Tensor, geometry: Geometry) -> Iterator[Tensor]:
    """Yield the per-image weight gradients ``[b, C_out, C_in]`` of one kernel offset after the other."""
    assert len(x) == len(g)
    kernel, stride, padding, dilation = (_pair(size) for size in geometry)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    height, width = g.shape[2:]
    for top in range(0, kernel[0] * dilation[0], dilation[0]):
        for left in range(0, kernel[1] * dilation[1], dilation[1]):
            read = padded[:, top :: stride[0], left :: stride[1]][:, :height, :width]
            yield g.flatten(2) @ read.flatten(1, 2)


def _read_counts(length: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[list[int], int]:
    """Return how many (output position, offset) pairs read each coordinate of an axis; the output length."""
    out_length = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    counts = [0] * length
    for position in range(out_length):
        for offset in range(kernel):
            read = stride * position + dilation * offset - padding
            if 0 <= read < length:
                counts[read] += 1
    return counts, out_length


def _weighted_moment(x: Tensor, row_weights: list[int], column_weights: list[int]) -> Tensor:
    """Return ``sum_nij row_weights[i] column_weights[j] x_nij x_nij^T``; pixels of weight 0 are not read."""
    pixels, scale = x.permute(0, 2, 3, 1), 1
    for axis, weights in ((1, row_weights), (2, column_weights)):
        used = [index for index, weight in enumerate(weights) if weight]
        if not used:
            return x.new_zeros(x.shape[1], x.shape[1])
        if len(used) < len(weights):
            pixels = pixels.index_select(axis, torch.tensor(used, device=x.device))
        if len({weights[index] for index in used}) == 1:
            scale *= weights[used[0]]
        else:
            roots = torch.tensor([weights[index] for index in used], dtype=x.dtype, device=x.device).sqrt()
            pixels = pixels * roots.view([-1 if a == axis else 1 for a in range(4)])
    return _moment(pixels) * scale


def _moment(pixels: Tensor) -> Tensor:
    """Return the sum of ``pixel pixel^T`` over ``[B, H, W, C]``, as ``[C, C]``."""
    rows = pixels.flatten(1, 2)
    if rows.is_contiguous():
        # a few tall products rather than one small one per image, of which narrow layers would need too many
        rows = rows.unflatten(0, (math.gcd(len(rows), 8), -1)).flatten(1, 2)
    return torch.bmm(rows.mT, rows).sum(0)


def _pair(size: Size | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
