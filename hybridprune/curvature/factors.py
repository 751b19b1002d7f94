"""Channel moments of one layer's inputs and output gradients: A, its mean and G (pure maths).

Every function takes feature maps ``[B, C, H, W]``; a linear layer's inputs and gradients, ``[B, C]`` or
``[B, T, C]``, count as maps of size ``T x 1``. Channels-last maps are read in place, without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hybridprune.curvature.geometry import Geometry, feature_map

WIDE = 256
"""From so many channels on, three eighths less to compute outweigh smaller products."""


def input_factor(x: Tensor, geometry: Geometry) -> Tensor:
    """Return A ``[C_in, C_in]``: mean over images, output positions and kernel offsets of ``x_off x_off^T``.

    Nothing is unfolded. All windows together read the pixel of row i and column j ``n_i m_j`` times, so A is
    a weighted second moment of the pixels. With stride 1 nearly all of them are read equally often, k times
    each way, and inclusion-exclusion needs the plain moment of all pixels and corrections at the border:
    ``9 c(all) - 3 c(border rows) - 3 c(border columns) + c(corners)`` for k = 3 and padding 1.

    Args:
        x: layer input ``[B, C_in, H, W]``, or ``[B, C_in]`` / ``[B, T, C_in]`` of a linear layer.
    """
    x = x if x.ndim == 4 else feature_map(x)
    kernel, stride, *_ = geometry.pairs()
    rows, columns, reads = _read_counts(geometry, *x.shape[2:])
    if stride == (1, 1):
        k_rows, k_columns = [kernel[0]] * len(rows), [kernel[1]] * len(columns)
        rows_short, columns_short = [kernel[0] - n for n in rows], [kernel[1] - n for n in columns]
        total = _weighted_moment(x, k_rows, k_columns)
        total -= _weighted_moment(x, rows_short, k_columns)
        total -= _weighted_moment(x, k_rows, columns_short)
        total += _weighted_moment(x, rows_short, columns_short)
    else:
        total = _weighted_moment(x, rows, columns)
    return total / (len(x) * reads)


def input_mean(x: Tensor, geometry: Geometry) -> Tensor:
    """Return mu ``[C_in]``: mean over images, output positions and kernel offsets of ``x_off``; padding is 0.

    Args:
        x: layer input, as in `input_factor`.
    """
    x = x if x.ndim == 4 else feature_map(x)
    rows, columns, reads = _read_counts(geometry, *x.shape[2:])
    weights = torch.outer(_as_tensor(rows, x), _as_tensor(columns, x))
    # a product with ones: sums over images are slow where these lie far apart
    total = x.new_ones(len(x)) @ x.permute(0, 2, 3, 1).flatten(1)
    return weights.flatten() @ total.view(-1, x.shape[1]) / (len(x) * reads)


def gradient_factor(g: Tensor, batch_size: int, frames: int = 1) -> Tensor:
    """Return G ``[C_out, C_out]``: mean over images and positions of ``(B g)(B g)^T``.

    Args:
        g: gradient ``[b, C_out, H', W']`` of the *mean* loss in the layer's output, or ``[b, C_out]`` /
            ``[b, T, C_out]`` of a linear layer. If b < B images ran through the layer, the others count as 0.
        batch_size: B, the number of images over which the loss is a mean.
        frames: how many of the maps belong to each image.
    """
    g = g if g.ndim == 4 else feature_map(g)
    assert len(g) <= batch_size * frames and len(g) % frames == 0, (g.shape, batch_size, frames)
    # B^2 from the gradients, 1 / (B S) from the mean
    return _moment(g.permute(0, 2, 3, 1)) * (batch_size / (frames * g.shape[2] * g.shape[3]))


@lru_cache
def _read_counts(geometry: Geometry, height: int, width: int) -> tuple[list[int], list[int], int]:
    """Return how often each row and each column is read, and the number of (output position, offset) pairs."""
    padding, counts, reads = geometry.pairs()[2], [], 1
    for axis, length in enumerate((height, width)):
        coordinates = [read - padding[axis] for offset in geometry.reads(axis, length) for read in offset]
        counts.append([0] * length)
        reads *= len(coordinates)
        for read in coordinates:
            if 0 <= read < length:
                counts[axis][read] += 1
    return counts[0], counts[1], reads


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
            roots = _as_tensor([weights[index] for index in used], x).sqrt()
            pixels = pixels * roots.view([-1 if a == axis else 1 for a in range(4)])
    return _moment(pixels) * scale


def _moment(pixels: Tensor) -> Tensor:
    """Return the sum of ``pixel pixel^T`` over ``[B, H, W, C]``, as ``[C, C]``."""
    rows = pixels.flatten(1, 2)
    if rows.is_contiguous():
        # a few tall products rather than one small one per image, of which narrow layers would need too many
        rows = rows.unflatten(0, (math.gcd(len(rows), 8), -1)).flatten(1, 2)
    return gram(rows)


def gram(rows: Tensor) -> Tensor:
    """Return the sum of ``row row^T`` over the rows of ``[B, N, C]``, as ``[C, C]``."""
    channels = rows.shape[2]
    if channels < WIDE:
        return torch.bmm(rows.mT, rows).sum(0)
    # it is symmetric: of a wide one the lower half is not computed
    total = rows.new_empty(channels, channels)
    for start in range(0, channels, step := -(-channels // 4)):
        block = torch.bmm(rows[..., start : start + step].mT, rows[..., start:]).sum(0)
        total[start : start + step, start:] = block
        total[start:, start : start + step] = block.T
    return total


def _as_tensor(weights: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=like.dtype, device=like.device)
