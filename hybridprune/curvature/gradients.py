"""Per-image gradients of one layer's weight and the sum of their squares (pure maths)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.curvature.geometry import Geometry, feature_map


def weight_gradients(x: Tensor, g: Tensor, geometry: Geometry, batch_size: int, mean: Tensor | None = None) -> Tensor:
    """Return each image's own gradient in the weight, ``[b, C_out, C_in, kh, kw]`` or ``[b, C_out, C_in]``.

    Args:
        x: layer input ``[b, C_in, H, W]``, or ``[b, C_in]`` / ``[b, T, C_in]`` of a linear layer.
        g: gradient of the mean loss in the layer's output, as in `gradient_factor`.
        batch_size: B, the number of images over which the loss is a mean.
        mean: ``[C_in]``, subtracted from the padded input, the padding included.
    """
    if x.ndim != 4:
        return weight_gradients(feature_map(x), feature_map(g), geometry, batch_size, mean)[..., 0, 0]
    gradients = torch.stack(list(_offset_gradients(x, g * batch_size, geometry, mean)), dim=-1)
    return gradients.unflatten(-1, geometry.pairs()[0])


def sum_squared_weight_gradients(
    x: Tensor,
    g: Tensor,
    geometry: Geometry,
    batch_size: int,
    chunk: int,
    mean: Tensor | None = None,
    q_offset: Tensor | None = None,
) -> Tensor:
    """Return the sum over images of the squares of `weight_gradients`, ``[C_out, C_in, kh, kw]``.

    Memory is bounded by the gradients of ``chunk`` images, at one kernel offset unless there is a basis of
    offsets. Takes feature maps only.

    Args:
        q_offset: orthogonal ``[k^2, k^2]``, rotates the flattened offsets of the gradients before they are squared.
    """
    total = x.new_zeros(geometry.offsets(), g.shape[1], x.shape[1])
    for x_chunk, g_chunk in zip(x.split(chunk), g.split(chunk), strict=True):
        gradients = _offset_gradients(x_chunk, g_chunk * batch_size, geometry, mean)
        if q_offset is not None:
            gradients = torch.einsum("oe,onij->enij", q_offset.to(x), torch.stack(list(gradients)))
        for offset, each in enumerate(gradients):
            total[offset] += each.square_().sum(0)
    return total.permute(1, 2, 0).unflatten(-1, geometry.pairs()[0])


def _offset_gradients(x: Tensor, g: Tensor, geometry: Geometry, mean: Tensor | None) -> Iterator[Tensor]:
    """Yield the per-image weight gradients ``[b, C_out, C_in]`` of one kernel offset after the other."""
    assert len(x) == len(g)
    kernel, stride, padding, dilation = geometry.pairs()
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    if mean is not None:
        assert mean.shape == (x.shape[1],)
        padded = padded - mean.to(x)
    height, width = g.shape[2:]
    for top in range(0, kernel[0] * dilation[0], dilation[0]):
        for left in range(0, kernel[1] * dilation[1], dilation[1]):
            read = padded[:, top :: stride[0], left :: stride[1]][:, :height, :width]
            yield g.flatten(2) @ read.flatten(1, 2)
